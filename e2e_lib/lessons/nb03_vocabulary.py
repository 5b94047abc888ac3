"""The helpers and figures of notebook 03, on the vocabulary transformation matrix (section 2.4.2, Eq. 8-11).

Every map is written out here as the paper would have it, with matrices of V1 × V2 numbers, so that ``bridge`` can be checked and its
maps be seen. Axes: C tokens of the language model, L positions of the text encoder, V1 and V2 their vocabularies, D2 the text encoder's
width, N captions.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch, Patch
from torch import Tensor

from e2e_lib.bridge.alignment import encode_with_offsets, overlap, word_spans
from e2e_lib.bridge.vocabulary import DYNAMIC, StaticMap, dense_matrix, normalized_tokens, static_piece, static_word
from e2e_lib.data.collate import Batch
from e2e_lib.experiments.gradient_alignment import image_losses
from e2e_lib.experiments.vocabularies import load_tokenizer
from e2e_lib.models.end_to_end import EndToEndModel
from e2e_lib.report.plots import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, Figure, Markdown, escape_mathtext, style_axes, table
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.results import RESULTS, load_json

# Map: its name in figures and its colour.
MAPS = {"static_piece": ("static, by piece (Eq. 8)", SKY), "static_word": ("static, by word", BLUE), "sentence": ("sentence (Eq. 10)", VERMILLION),
        "word": ("word", ORANGE), "span": ("span", GREEN), "all": ("no map needed", PURPLE)}
ADVICE = "← say more    say less →"


# -------------------------------------------------------------------------------------------------- one caption, two tokenizers

@dataclass(frozen=True)
class Pair:
    """A caption in the tokens of both sides. ``source`` (C) and ``target`` (L) are the tokens as their vocabularies spell them, ``*_ids``
    (C,) and (L,) their numbers, ``*_spans`` the first and one past the last character of each without blanks. ``valid`` (L,) is False for
    marks and padding. ``touch`` and ``alike`` (C, L): which share a character, and which look the same."""

    text: str
    source: list[str]
    target: list[str]
    source_ids: Tensor
    target_ids: Tensor
    source_spans: Tensor
    target_spans: Tensor
    valid: Tensor
    touch: Tensor
    alike: Tensor


def pair(source_tokenizer: Any, target_tokenizer: Any, text: str, length: int | None = None) -> Pair:
    """Cuts ``text`` with both tokenizers, the second with its marks and, if given, padded to ``length``."""
    (a, _), (b, _) = encode_with_offsets(source_tokenizer, [text], special=False), encode_with_offsets(target_tokenizer, [text], special=True, length=length)
    sides = ((source_tokenizer, a), (target_tokenizer, b))
    pieces = [tokenizer.convert_ids_to_tokens(side.input_ids[0].tolist()) for tokenizer, side in sides]
    looks = [[vocabulary[i] for i in side.input_ids[0].tolist()] for vocabulary, side in ((normalized_tokens(tokenizer), side) for tokenizer, side in sides)]
    alike = torch.tensor([[x == y != "" for y in looks[1]] for x in looks[0]]) & b.valid
    # Some tokenizers count the blank before a token to it; a token that is nothing but a blank keeps it.
    spans = [torch.tensor([[last - (len(text[first:last].lstrip()) or last - first), last] for first, last in side.spans[0].tolist()])
             for _, side in sides]
    return Pair(text, pieces[0], pieces[1], a.input_ids[0], b.input_ids[0], spans[0], spans[1], b.valid[0], overlap(a.spans, b.spans)[0] & b.valid,
                alike)


def strips_figure(pair: Pair, note: str, names: tuple[str, str] = ("language model", "text encoder")) -> Figure:
    """The sentence, a column a character, between its tokens on either side; by colour, whether the other side has a token that looks alike."""
    figure, size = Figure(10, 2.5, note), min(12, 520 / len(pair.text))
    ax = figure.subplots()
    kinds = (("looks like a token over the same characters", SKY), ("looks like a token elsewhere in the sentence", PURPLE),
             ("no token looks like it", ORANGE))
    for spans, axis, keep, bottom in ((pair.source_spans, 1, [True] * len(pair.source), 1.9), (pair.target_spans, 0, pair.valid.tolist(), 0)):
        kind = 2 - pair.alike.any(axis).int() - (pair.alike & pair.touch).any(axis).int()
        for (first, last), k, kept in zip(spans.tolist(), kind.tolist(), keep, strict=True):
            if kept:
                ax.add_patch(FancyBboxPatch((first + 0.16, bottom + 0.1), last - first - 0.32, 0.6, boxstyle="round,pad=0.08", linewidth=0.8,
                                            facecolor=kinds[k][1], alpha=0.55, edgecolor="black"))
                ax.text((first + last) / 2, bottom + 0.4, escape_mathtext(pair.text[first:last]), ha="center", va="center", fontsize=0.8 * size,
                        family="monospace")
    for place, character in enumerate(pair.text):
        ax.text(place + 0.5, 1.35, escape_mathtext(character), ha="center", va="center", fontsize=size, family="monospace")
    for name, y, count in zip(names, (2.3, 0.4), (len(pair.source), int(pair.valid.sum())), strict=True):
        ax.text(-0.6, y, f"{name}\n{count} tokens", ha="right", va="center", fontsize=9)
    ax.set(xlim=(-0.17 * len(pair.text), len(pair.text) + 0.2), ylim=(-0.1, 2.9))
    ax.axis("off")
    ax.set_title("One sentence, encode_with_offsets by two tokenizers (a column a character)", fontsize=10, loc="left")
    figure.legend(handles=[Patch(facecolor=c, alpha=0.55, edgecolor="black", label=label) for label, c in kinds], loc="outside upper center", ncols=3,
                  frameon=False, fontsize=8)
    return figure


def real_strips(sources: Sequence[str], text: str, names: tuple[str, str], note: str) -> Figure | Markdown:
    """The strips of two real tokenizers (hub ids, folders or ``survey.PACKAGED``), or a sentence where they cannot be had here."""
    try:
        return strips_figure(pair(load_tokenizer(sources[0]), load_tokenizer(sources[1]), text), note, names)
    except CheckpointError:
        return Markdown(f"`{sources[0]}` and `{sources[1]}` cannot both be had here; `.venv/bin/pip install -e '.[vocabularies]'` brings them.")


def surveys(live: Mapping[str, Any], folder: Path = RESULTS / "vocabularies") -> dict[str, Any]:
    """``bridge.survey`` of two tokenizers, by name: ``live`` first, then each file that `e2e vocabularies` wrote."""
    return {**live, **{path.stem.replace("_", " → "): load_json(path) for path in sorted(folder.glob("*.json"))}}


def disagreement_table(found: Mapping[str, Any]) -> Markdown:
    rows = [[name, r["captions"], f"{r['vocabulary']['source']:,} and {r['vocabulary']['target']:,}",
             *(" and ".join(f"{pairs[key]:.2f}" for key in keys) for pairs, keys in (
                 (r["tokens_a_caption"], ("source", "target")), (r["words"], ("source_tokens_a_word", "target_tokens_a_word")))),
             *(f"{share:.1%}" for share in (r["words"]["one_token_on_both_sides"], r["characters"]["same_span"], r["static"]["lost"]))]
            for name, r in found.items()]
    return table(["vocabularies", "captions (N)", "word_spans in each", "tokens a caption", "tokens a word", "word_spans that are one token on both sides",
                  "text encoder's tokens with exactly one source token's characters", "source tokens that a static map loses"], rows)


def density_table(found: Mapping[str, Any]) -> Markdown:
    names = list(dict.fromkeys(name for r in found.values() for name in r["density"]))
    rows = [[name, r["vocabulary"]["source"] * r["vocabulary"]["target"], *(f"{r['density'].get(key, float('nan')):.1e}" for key in names)]
            for name, r in found.items()]
    return table(["vocabularies", "numbers in a matrix", *(MAPS[name][0] for name in names)], rows)


# ---------------------------------------------------------------------------------------------------------- maps, written out

Matrix = tuple[Tensor, Tensor, Tensor]  # M (V1, V2), the weights (C,) of the positions it pools, the positions (L,) it is added at
Map = Callable[[Pair], list[Matrix]]


def static_matrix(static: StaticMap, rows: int, columns: int) -> Tensor:
    """Eq. 8: the matrix (rows, columns) of a static map, float64; an entry counts the terms that hold both tokens."""
    sides = [torch.zeros(size, static.count, dtype=torch.float64).index_put((token, term), torch.ones((), dtype=torch.float64))
             for size, token, term in ((rows, static.source, static.source_term), (columns, static.target, static.target_term))]
    return sides[0] @ sides[1].T


def mean_of(pair: Pair) -> Tensor:
    """Eq. 11's weights (C,) of an average over all positions."""
    return torch.full((len(pair.source),), 1 / len(pair.source), dtype=torch.float64)


def matrices(mapping: str, pair: Pair, rows: int, columns: int) -> list[Matrix]:
    """The matrices of a dynamic map for one caption, float64: one for "sentence" (Eq. 10), one a word, one a target token for "span"."""
    spans, _ = word_spans([pair.text])
    mean = mean_of(pair)

    def matrix(chosen: Tensor, aimed: Tensor) -> Tensor:
        return dense_matrix(pair.source_ids[chosen], pair.target_ids[aimed], rows, columns).double()

    if mapping == "sentence":
        return [(matrix(torch.ones_like(mean, dtype=torch.bool), pair.valid), mean, pair.valid.double())]
    if mapping == "word":
        of_words = zip(overlap(spans, pair.source_spans[None])[0], overlap(spans, pair.target_spans[None])[0] & pair.valid, strict=True)
        return [(matrix(chosen, aimed), mean, pair.valid.double()) for chosen, aimed in of_words]
    ones = torch.eye(len(pair.target), dtype=torch.float64)
    return [(matrix(pair.touch[:, at], ones[at] > 0), pair.touch[:, at] / pair.touch[:, at].sum().double(), ones[at])
            for at in range(len(pair.target)) if pair.touch[:, at].any()]


def maps_of(source_tokenizer: Any, target_tokenizer: Any, english: Sequence[str]) -> dict[str, Map]:
    """Every map of two tokenizers by name, written out; ``english`` is the word list of "static_word"."""
    sizes = len(source_tokenizer), len(target_tokenizer)
    fixed = {"static_piece": static_matrix(static_piece(source_tokenizer, target_tokenizer), *sizes),
             "static_word": static_matrix(static_word(source_tokenizer, target_tokenizer, english), *sizes)}

    def static(matrix: Tensor, pair: Pair) -> list[Matrix]:
        return [(matrix, mean_of(pair), pair.valid.double())]

    return {**{name: partial(static, matrix) for name, matrix in fixed.items()},
            **{name: partial(matrices, name, rows=sizes[0], columns=sizes[1]) for name in DYNAMIC}}


def heard(found: Sequence[Matrix], pull: Tensor, embeddings: Tensor) -> Tensor:
    """What the language model hears, (C, V1): the gradient to h of Eq. 9 and 11, Σ_k pool_k ⊗ M_k E (Σ_l place_k[l] pull[l]).

    ``pull`` (L, D2) is the loss's gradient to the text encoder's embeddings, ``embeddings`` (V2, D2) its table. Positive at [t, i] means
    that the loss would grow if position t said more of word i.
    """
    return torch.stack([torch.outer(pool, matrix @ (embeddings @ (place @ pull))) for matrix, pool, place in found]).sum(0)


def independent(found: Sequence[Matrix], embeddings: Tensor, rng: torch.Generator, pulls: int = 128) -> int:
    """How many numbers get through a map: the rank of what is heard of ``pulls`` random pulls (at most ``pulls``)."""
    each = torch.randn((pulls, len(found[0][2]), embeddings.shape[1]), generator=rng, dtype=torch.float64)
    return int(torch.linalg.matrix_rank(torch.stack([heard(found, pull, embeddings).flatten() for pull in each])))


def linked(found: Sequence[Matrix], pair: Pair) -> Tensor:
    """Which of the caption's own tokens a map links, (C, L): some matrix has a number for them, and pools the one and is added at the other."""
    return torch.stack([(m[pair.source_ids][:, pair.target_ids] * pool[:, None] * place) > 0 for m, pool, place in found]).any(0) & pair.valid


def links(found: Tensor, pair: Pair) -> tuple[int, int, int]:
    """Of the links (C, L) of a map: how many join tokens that share characters, how many join others, and how many are missing."""
    return int((found & pair.touch).sum()), int((found & ~pair.touch).sum()), int((~found & pair.touch).sum())


def matrices_figure(pair: Pair, found: Mapping[str, Tensor], note: str) -> Figure:
    """Each map's links (C, L) among the caption's own tokens, and where they go wrong."""
    figure = Figure(10, 7, note)
    axes, keep = figure.subplots(2, 3, sharex=True, sharey=True).flatten(), pair.valid
    kinds = {"links tokens that share characters": BLUE, "links tokens that share none": ORANGE, "a link is missing": "#bbbbbb"}
    for ax, (name, shown) in zip(axes, found.items(), strict=False):
        kind = torch.where(shown, 2 - pair.touch.int(), 3 * pair.touch.int())[:, keep]
        ax.imshow(kind.numpy(), cmap=ListedColormap(["white", *kinds.values()]), vmin=0, vmax=3, aspect="auto")
        right, wrong, _ = links(shown, pair)
        ax.set_title(f"{MAPS[name][0]}: {right + wrong} links, {wrong} wrong", fontsize=9, loc="left")
        ax.set_xticks(range(int(keep.sum())), [escape_mathtext(t) for t, k in zip(pair.target, keep.tolist(), strict=True) if k], rotation=90, fontsize=8)
        ax.set_yticks(range(len(pair.source)), [escape_mathtext(t) for t in pair.source], fontsize=8)
        ax.tick_params(labelbottom=True)
        ax.set_xticks(np.arange(-0.5, int(keep.sum())), minor=True)
        ax.set_yticks(np.arange(-0.5, len(pair.source)), minor=True)
        ax.grid(which="minor", color="#dddddd", linewidth=0.5)
        ax.tick_params(which="minor", length=0)
    for ax in axes[len(found):]:
        ax.axis("off")
    axes[-1].legend(handles=[Patch(color=colour, label=label) for label, colour in kinds.items()], loc="center", frameon=False, fontsize=9)
    figure.supylabel("token of the language model", fontsize=9)
    figure.suptitle("Token of the text encoder (columns) that each token of the language model (rows) is mapped to", fontsize=10)
    return figure


# ------------------------------------------------------------------------------------------------------- what an image loss says

@dataclass(frozen=True)
class Slip:
    """A caption of a photo as it is and with one word wrong. ``pairs`` are (right, wrong), ``at`` is the position of the word in the language
    model's tokens; ``losses`` (2,) are the image losses and ``pulls`` (2, L, D2) their gradients to the embeddings."""

    pairs: tuple[Pair, Pair]
    at: int
    losses: Tensor
    pulls: Tensor


def slip_of(model: EndToEndModel, batch: Batch, choices: Sequence[str], draws: int, rng: torch.Generator) -> Slip | None:
    """Puts another of ``choices`` for the first of them in the batch's one caption; the image loss is a mean of ``draws`` noises, the same for
    both. None where the caption holds none of them, or where the two are not one token each."""
    text, length = batch.captions[0], model.generator.max_length
    said = re.search(rf"\b({'|'.join(choices)})\b", text)
    if said is None:
        return None
    others = [word for word in choices if word != said[0]]
    slipped = text[:said.start()] + others[int(torch.randint(len(others), (), generator=rng))] + text[said.end():]
    right, wrong = (pair(model.tokenizer, model.generator.tokenizer, caption, length) for caption in (text, slipped))
    if len(right.source) != len(wrong.source) or int((right.source_ids != wrong.source_ids).sum()) != 1:
        return None
    losses, pulls = image_losses(model, batch, [text, slipped], draws, rng)
    return Slip((right, wrong), int((right.source_ids != wrong.source_ids).nonzero()), losses, pulls.double())


def own(gradient: Tensor, pair: Pair) -> Tensor:
    """Of a gradient (C, V1), what each position hears about the token it says, (C,)."""
    return gradient.gather(1, pair.source_ids[:, None])[:, 0]


def share_of_best(values: Tensor, index: int) -> float:
    """1 if ``values[index]`` is the largest, shared with whatever is as large; else 0."""
    best = torch.isclose(values, values.max(), rtol=1e-9, atol=0)
    return float(best[index]) / int(best.sum())


def score(slips: Sequence[Slip], mapping: Map, embeddings: Tensor, choices: Tensor) -> dict[str, float]:
    """How well a map tells what is wrong, shares from 0 to 1 over the slips: "points", of all word_spans said the wrong one hears most that it is to
    be said less; "notices", it hears so more than the right word in its place would; "names", of the word_spans ``choices`` (their tokens) the
    right one hears most that it is to be said more. Ties are shared."""
    found: dict[str, list[float]] = {"points": [], "notices": [], "names": []}
    for slip in slips:
        right, wrong = (heard(mapping(side), pull, embeddings) for side, pull in zip(slip.pairs, slip.pulls, strict=True))
        found["points"].append(share_of_best(own(wrong, slip.pairs[1]), slip.at))
        found["notices"].append(float(own(wrong, slip.pairs[1])[slip.at] > own(right, slip.pairs[0])[slip.at]))
        found["names"].append(share_of_best(-wrong[slip.at, choices], choices.tolist().index(int(slip.pairs[0].source_ids[slip.at]))))
    return {key: float(np.mean(values)) for key, values in found.items()}


def divided(slip: Slip, embeddings: Tensor) -> Tensor:
    """The one number of Eq. 10, Σ_j E[j]·Σ_l pull[l], split into the part of the word that goes wrong and that of all others: (2, 2), the rows
    for the right and the wrong caption. A token that comes twice counts once, and to the word if it is in both parts."""
    parts = []
    for side, pull in zip(slip.pairs, slip.pulls, strict=True):
        word = side.target_ids[side.touch[slip.at]].unique()
        rest = [j for j in side.target_ids[side.valid].unique().tolist() if j not in word.tolist()]
        each = embeddings @ pull[side.valid].sum(0)
        parts.append(torch.stack([each[word].sum(), each[rest].sum()]))
    return torch.stack(parts)


def swaps(model: EndToEndModel, batch: Batch, pair: Pair, logits: Tensor, others: int, draws: int, rng: torch.Generator) -> Tensor:
    """The exact answer, (C,): how much lower the image loss is with another word at each position, everything else as it is.

    A mean over the ``others`` word_spans that the model finds likeliest there, weighted by its probabilities; the same ``draws`` noises throughout.
    """
    special = torch.tensor(model.tokenizer.all_special_ids)
    allowed = logits.index_fill(1, special, -torch.inf).scatter(1, pair.source_ids[:, None], -torch.inf)
    likely = allowed.topk(others, -1)
    texts = [pair.text]
    for place, word in itertools.product(range(len(pair.source)), range(others)):
        ids = pair.source_ids.clone()
        ids[place] = likely.indices[place, word]
        texts.append(model.tokenizer.decode(ids).strip())
    losses, _ = image_losses(model, batch, texts, draws, rng)
    return losses[0] - (likely.values.softmax(-1) * losses[1:].reshape(-1, others)).sum(-1)


def heat(ax: Axes, values: Tensor, rows: Sequence[str], columns: Sequence[str], texts: Sequence[Sequence[str]] = (), limit: float = 1) -> Any:
    """A heat map (rows, columns) from purple at -limit over white to orange at limit; ``texts`` are written into its cells."""
    image = ax.imshow(values.numpy(), cmap="PuOr_r", vmin=-1.4 * limit, vmax=1.4 * limit, aspect="auto")  # its ends are too dark to be told apart
    for (i, line), j in itertools.product(enumerate(texts), range(len(columns))):
        dark = bool(values[i, j] < -0.8 * limit)
        ax.text(j, i, line[j], ha="center", va="center", fontsize=8, color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), [escape_mathtext(text) for text in columns], rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(range(len(rows)), [escape_mathtext(text) for text in rows], fontsize=9)
    return image


def positions_figure(pair: Pair, found: Mapping[str, Tensor], note: str) -> Figure:
    """For each map, what each position (rows) hears about each of the caption's tokens (columns), of gradients (C, V1) scaled to at most 1."""
    figure = Figure(10, 3.9, note)
    axes = figure.subplots(1, len(found), sharey=True)
    for ax, (name, gradient) in zip(np.atleast_1d(axes), found.items(), strict=True):
        shown = gradient[:, pair.source_ids]
        image = heat(ax, shown / shown.abs().max(), pair.source, pair.source)
        ax.set_title(MAPS[name][0], fontsize=10, loc="left")
        ax.set_xlabel("about the token")
    np.atleast_1d(axes)[0].set_ylabel("what the position of … hears")
    figure.colorbar(image, ax=axes, label=ADVICE, ticks=[-1, 0, 1], boundaries=np.linspace(-1, 1, 101))
    return figure


def heard_figure(photo: Any, pair: Pair, rows: Mapping[str, Tensor], title: str, note: str, marked: int | None = None) -> Figure:
    """The photo and, token by token, what each row (C,) says about the caption, each row scaled to at most 1; the ``marked`` token is framed."""
    figure = Figure(10, 1.9 + 0.27 * len(rows), note)
    left, right = figure.subplots(1, 2, width_ratios=(1, 4.6))
    left.imshow(np.asarray(photo), interpolation="nearest")
    left.set_title("the photo shared", fontsize=9)
    left.axis("off")
    scales = [float(values.abs().max()) for values in rows.values()]
    scaled = torch.stack([values.double() / scale for values, scale in zip(rows.values(), scales, strict=True)])
    image = heat(right, scaled, [f"{name} (1 = {scale:.1g})" for name, scale in zip(rows, scales, strict=True)], pair.source,
                 [["0" if abs(value) < 0.05 else f"{value:+.1f}" for value in line] for line in scaled.tolist()])
    if marked is not None:
        right.add_patch(FancyBboxPatch((marked - 0.46, -0.46), 0.92, len(rows) - 0.08, boxstyle="square,pad=0", fill=False, linewidth=2))
    right.axhline(0.5, color="black", linewidth=1)
    right.set_title(escape_mathtext(title), fontsize=10, loc="left")
    figure.colorbar(image, ax=right, label=ADVICE, ticks=[-1, 0, 1], boundaries=np.linspace(-1, 1, 101))
    return figure


def slips_figure(found: Mapping[str, Mapping[str, float]], chances: Mapping[str, float], n: int, note: str) -> Figure:
    """Bars a map for each question of ``score``, with one standard error and what guessing would reach."""
    figure = Figure(9.5, 3.4, note)
    ax = figure.subplots()
    questions = {"points": "points at the wrong word\nof all word_spans said", "notices": "notices: says “less” more loudly\nthan about the right word",
                 "names": "names the right word\nof all it could be"}
    wide = 0.8 / len(found)
    for number, (name, values) in enumerate(found.items()):
        heights = np.array([values[key] for key in questions])
        ax.bar(np.arange(3) + (number - (len(found) - 1) / 2) * wide, heights, 0.9 * wide, color=MAPS[name][1] if name in MAPS else PURPLE,
               label=MAPS[name][0] if name in MAPS else name, yerr=np.sqrt(heights * (1 - heights) / n), ecolor="#444444", capsize=2)
    for place, key in enumerate(questions):
        ax.plot([place - 0.45, place + 0.45], [chances[key]] * 2, color="black", linestyle=":", label="guessing" if place == 0 else None)
    ax.set_xticks(range(3), list(questions.values()))
    style_axes(ax, "A wrong word in the caption: what each map tells the language model about it", "", "share of captions")
    ax.set_ylim(0, 1.05)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
