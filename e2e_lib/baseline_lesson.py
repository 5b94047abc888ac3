"""The helpers and figures of notebook 05, on the three systems of section 3.1.4: what each of them reads, says and draws.

Axes: B chats or photos, T tokens, N codes a photo, K codes in the book, C, s, s the latents of the diffusion model.
"""

import inspect
import math
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from e2e_lib import claims
from e2e_lib.claims import Question
from e2e_lib.data.dialogue import Turn
from e2e_lib.data.examples import IGNORED, Batch, Collator, Example
from e2e_lib.data.minichat import photo_seed
from e2e_lib.data.minichat_smalltalk import QUESTIONS, QUIZ, QUIZ_ANSWERS
from e2e_lib.data.photos import PhotoSource
from e2e_lib.data.scenes import ATTRIBUTES, SIZES, TIMES, Scene, draw_scene
from e2e_lib.evaluation.reader import SceneReader
from e2e_lib.figures import CORE, causes, wrong
from e2e_lib.models.end_to_end import EndToEndModel, to_floats
from e2e_lib.models.generator import ImageGenerator, to_pixels
from e2e_lib.models.pipeline import Pipeline
from e2e_lib.models.systems import System
from e2e_lib.models.translator import ImageTranslator
from e2e_lib.show import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, Html, Markdown, Plot, dress, note_of, photo_grid, plain, table, tokens_html
from e2e_lib.tables import SYSTEMS
from e2e_lib.training import norm

# System: its name in figures and its colour.
STYLES = {name: (SYSTEMS[name], colour) for name, colour in (("end_to_end", BLUE), ("pipeline", PURPLE), ("divter", GREEN))}
# The details that captions leave out and people ask about, and what each can be.
DETAILS: dict[str, tuple[Any, ...]] = {"number": (2, 3), "size": SIZES, "time": TIMES}
NO_QUESTION = Markdown("*In this test split nobody asks about a detail that a caption leaves out; a larger one (`data.test`) has such questions.*")
Drawer = ImageGenerator | ImageTranslator
Row = TypeVar("Row")


def evenly(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows at even distances, in order, from the first on; all of them if there are no more."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)


# ------------------------------------------------------------------------------------------------------------------ parts

def jobs(model: System) -> dict[str, nn.Module]:
    """A system's parts by what they do: "sees", "writes" and "draws"."""
    return {"sees": model.perceptron if isinstance(model, EndToEndModel) else model.captioner.model,
            "writes": model.language, "draws": model.generator}


def parts_table(models: Mapping[str, System]) -> Markdown:
    """The classes that do each job in each system, their weights, and how many of these training changes."""
    def cell(job: str, part: nn.Module) -> str:
        inside = [type(child).__name__ for child in part.children()] if job == "draws" else [type(part).__name__]
        weights = sum(p.numel() for p in part.parameters())
        learning = sum(p.numel() for p in part.parameters() if p.requires_grad)
        learns = "all learn" if learning == weights else f"{learning:,} learn" if learning else "all frozen"
        return f"{' + '.join(f'`{name}`' for name in inside)}, {weights:,} weights, {learns}"

    found = {name: jobs(model) for name, model in models.items()}
    return table(["", *(STYLES[name][0] for name in models)], [[job, *(cell(job, parts[job]) for parts in found.values())]
                                                                for job in ("sees", "writes", "draws")])


def source_of(*functions: Callable[..., Any]) -> str:
    """The source of functions as it stands in the library."""
    return "\n".join(textwrap.dedent(inspect.getsource(function)) for function in functions).rstrip()


# ---------------------------------------------------------------------------------------------------------------- reading

def tokens_read(model: System, example: Example, store: PhotoSource, size: int) -> tuple[list[str], list[bool]]:
    """An example's context as the tokens that a system reads (at most ``data.max_context``), and which of them stand for photos."""
    layout = model.layout
    seen, = layout.look([example], store, size)
    ids, _ = layout.context(seen.context, example.response.speaker)
    inside, of_photo = False, []
    for i in ids:
        inside = inside and i != layout.end
        of_photo.append(inside)
        inside = inside or i == layout.start
    pieces = model.tokenizer.convert_ids_to_tokens(ids)
    return ["⏎" if piece in ("<0x0A>", "\n") else piece for piece in pieces], of_photo


def reads_html(models: Mapping[str, System], example: Example, store: PhotoSource, size: int) -> Html:
    """What each system reads of one context, token by token, once where several read the same; what stands for a photo is coloured."""
    alike: dict[tuple[tuple[str, ...], tuple[bool, ...]], list[str]] = {}
    for name, model in models.items():
        pieces, flags = tokens_read(model, example, store, size)
        alike.setdefault((tuple(pieces), tuple(flags)), []).append(STYLES[name][0])
    names = {found: f"{' and '.join(who)}: {sum(found[1])} of them for photos" for found, who in alike.items()}
    return tokens_html({name: found[0] for found, name in names.items()}, {name: found[1] for found, name in names.items()})


def captions_of(examples: Sequence[Example]) -> dict[str, str]:
    """The gold captions of all photos in contexts and responses, by photo id, in order."""
    return {turn.photo.photo_id: turn.photo.caption for example in examples for turn in (*example.context, example.response) if turn.photo}


def retold(model: Pipeline, photo_ids: Sequence[str], store: PhotoSource, size: int) -> dict[str, str]:
    """What a baseline's captioner says of photos, by photo id."""
    ids = list(dict.fromkeys(photo_ids))
    return dict(zip(ids, model.captioner.tell(torch.stack([store.tensor(i, size) for i in ids])), strict=True)) if ids else {}


class Teller:
    """A captioner that is a function from photos (B, 3, S, S), uint8, to B texts."""

    def __init__(self, tell: Callable[[Tensor], list[str]]) -> None:
        self.tell = tell


def with_captioner(model: Pipeline, tell: Callable[[Tensor], list[str]]) -> Pipeline:
    """A baseline with the same weights and another captioner."""
    return Pipeline(model.language, model.tokenizer, Teller(tell), model.generator, model.layout.max_context).eval()  # type: ignore[arg-type]


def told_shares(scenes: Mapping[str, Scene], captions: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """For each attribute, how many captions tell it rightly, and of how many photos. Size is asked of single things, number of several."""
    found = {}
    for name in ATTRIBUTES:
        of = [i for i in captions if name not in ("number", "size") or (name == "number") == (scenes[i].number > 1)]
        found[name] = sum(name not in claims.unsaid(scenes[i], captions[i]) for i in of), len(of)
    return found


def told_table(scenes: Mapping[str, Scene], gold: Mapping[str, str], said: Mapping[str, str]) -> Markdown:
    """Side by side for people's captions and the captioner's, by photo id: what they tell."""
    sides = [told_shares(scenes, captions) for captions in (gold, said)]
    rows = [[name, sides[0][name][1], *(f"{side[name][0] / side[name][1]:.0%}" if side[name][1] else None for side in sides)] for name in ATTRIBUTES]
    return table(["attribute", "photos (N)", "told by the gold captions", "told by the captioner"], rows)


@dataclass(frozen=True)
class Card:
    """A photo (PIL image, array or file) and lines of text beside it, each with its colour."""

    photo: Any
    lines: Sequence[tuple[str, str]]


def cards_figure(cards: Sequence[Card], note: str, columns: int = 2) -> Plot:
    """Photos with what is said about them on their right."""
    side, pitch, width = 1.15, 0.155, 9.6 / columns
    letters = round((width - side - 0.3) * 16.5)
    texts = [[(part, colour) for text, colour in card.lines for part in textwrap.wrap(text, letters, subsequent_indent="   ")] for card in cards]
    high = max([side, *(pitch * len(lines) for lines in texts)]) + 0.2
    height = max(1, math.ceil(len(cards) / columns)) * high + 0.35
    figure = Plot(9.8, height, note)
    figure.set_layout_engine("none")
    for i, (card, lines) in enumerate(zip(cards, texts, strict=True)):
        left, top = 0.1 + i % columns * width, 0.05 + i // columns * high
        ax = figure.add_axes((left / 9.8, 1 - (top + side) / height, side / 9.8, side / height))
        ax.imshow(np.asarray(Image.open(card.photo) if isinstance(card.photo, Path) else card.photo), interpolation="nearest")
        ax.axis("off")
        for number, (text, colour) in enumerate(lines):
            figure.text((left + side + 0.1) / 9.8, 1 - (top + pitch * (number + 0.5)) / height, plain(text), fontsize=8, color=colour, va="center")
    if not cards:
        figure.text(0.5, 0.5, "nothing to show", ha="center", va="center", fontsize=9, color=GREY)
    return figure


def caption_cards(photo_ids: Sequence[str], scenes: Mapping[str, Scene], gold: Mapping[str, str], said: Mapping[str, str], store: Any) -> list[Card]:
    """A card a photo: the gold caption, the captioner's, and what the captioner does not tell rightly."""
    def missing(photo_id: str) -> str:
        names = [f"{name} ({getattr(scenes[photo_id], name)})" for name in claims.unsaid(scenes[photo_id], said[photo_id])]
        return f"the captioner does not tell: {', '.join(names) or 'nothing, it tells all'}"

    return [Card(store.load(i), [(f"gold: {gold[i]}", "black"), (f"captioner: {said[i]}", "black"), (missing(i), VERMILLION)]) for i in photo_ids]


def reading_features(model: System, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """What a system reads of photos (B, 3, S, S), uint8, as numbers (B, F), for two sets: all numbers of its query embeddings, or, where it reads
    words, how often each word comes in the captioner's caption."""
    sees: Any = model.perceptron if isinstance(model, EndToEndModel) else model.captioner
    if not hasattr(sees, "tell"):
        with torch.no_grad():
            vectors = [torch.cat([sees(to_floats(part)).flatten(1) for part in photos.split(128)]) for photos in (train, test)]
        return vectors[0], vectors[1]
    said = [[Counter(re.findall(r"\w+", caption)) for caption in sees.tell(photos)] for photos in (train, test)]
    words = sorted(set().union(*said[0]))
    counts = [torch.tensor([[float(caption[word]) for word in words] for caption in captions]) for captions in said]
    return counts[0].view(len(train), -1), counts[1].view(len(test), -1)


def probe(train: Tensor, truth: Tensor, test: Tensor) -> Tensor:
    """What a linear read-out finds: classes (n,) of features ``test`` (n, F), after ridge regression on ``train`` (m, F) and ``truth`` (m,)."""
    mean, scale = train.double().mean(0), train.double().std(0) + 1e-6
    known, asked = (F.pad((x.double() - mean) / scale, (0, 1), value=1.0) for x in (train, test))
    wanted = F.one_hot(truth).double()
    weights = torch.linalg.solve(known.T @ known + 0.2 * len(train) * torch.eye(known.shape[1], dtype=torch.float64), known.T @ wanted)
    return (asked @ weights).argmax(1)


def readable(features: Mapping[str, tuple[Tensor, Tensor]], train: Sequence[Scene], test: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """For each attribute, the share of ``test`` photos of which a linear read-out of each kind of features finds the value, after ``train`` photos;
    "most frequent" is what always guessing the most frequent value of ``train`` reaches, "n" how many photos count. Of size only single things
    count, of number several; an attribute of which there is too little is left out."""
    found = {}
    for name in ATTRIBUTES:
        sets = []
        for scenes in (train, test):
            sets.append([i for i, scene in enumerate(scenes) if name not in ("number", "size") or (name == "number") == (scene.number > 1)])
        values = sorted({getattr(train[i], name) for i in sets[0]}, key=ATTRIBUTES[name].index)
        truth = torch.tensor([values.index(getattr(train[i], name)) for i in sets[0]])
        gold = [getattr(test[i], name) for i in sets[1]]
        if len(values) < 2 or not gold:
            continue
        usual = values[int(truth.bincount().argmax())]
        found[name] = {"n": float(len(gold)), "most frequent": sum(value == usual for value in gold) / len(gold)}
        for kind, (known, asked) in features.items():
            guessed = [values[i] for i in probe(known[sets[0]], truth, asked[sets[1]]).tolist()]
            found[name][kind] = sum(a == b for a, b in zip(guessed, gold, strict=True)) / len(gold)
    return found


def readable_table(found: Mapping[str, Mapping[str, float]]) -> Markdown:
    kinds = [key for key in next(iter(found.values()), {}) if key not in ("n", "most frequent")]
    return table(["attribute", "test photos (N)", *(f"read from {kind}" for kind in kinds), "always the most frequent value"],
                 [[name, int(row["n"]), *(f"{row[kind]:.0%}" for kind in (*kinds, "most frequent"))] for name, row in found.items()])


# ---------------------------------------------------------------------------------------------- questions, and twins of photos

Asked = tuple[Example, Question]


def questions_in(examples: Sequence[Example], scenes: Mapping[str, Scene]) -> list[Asked]:
    """The examples that ask about a detail which the caption of the last photo leaves out, in order, with the question."""
    return [(example, question) for example in examples if (question := claims.question_of(example, scenes))]


def phrasings(text: str) -> dict[Any, tuple[str, ...]]:
    """All answers that MiniChat knows to the question at the end of ``text``, by the value they mean; empty for another text."""
    known = [*(pair for pairs in QUESTIONS.values() for pair in pairs), *((ask, QUIZ_ANSWERS[name]) for name, asks in QUIZ.items() for ask in asks)]
    for question, answers in known:
        if re.search(".+".join(re.escape(part) for part in re.split(r"{\w+}", question)) + "$", text):
            return {int(key[1:]) if key in ("n2", "n3") else key: said for key, said in answers.items()}
    return {}


@torch.no_grad()
def beliefs(model: System, example: Example, store: PhotoSource, answers: Mapping[Any, Sequence[str]], size: int) -> dict[Any, float]:
    """How likely a system finds the answers of each value, all their phrasings together, after the example's context; they add up to 1."""
    texts = [(value, text) for value, said in answers.items() for text in said]
    batch = Collator(model.layout, store, size)([replace(example, response=Turn(example.response.speaker, text)) for _, text in texts])
    logits = model.language(inputs_embeds=model.read(batch), attention_mask=batch.attention_mask).logits[:, :-1].float()
    lost = F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none")
    shares = (-lost.view(len(texts), -1).sum(1).double()).softmax(0).tolist()
    return {value: sum(share for (of, _), share in zip(texts, shares, strict=True) if of == value) for value in answers}


class Swapped:
    """A photo store in which one photo is exchanged for another; reads like a PhotoStore."""

    def __init__(self, store: PhotoSource, photo_id: str, image: Image.Image) -> None:
        self.store, self.photo_id, self.image = store, photo_id, image

    def tensor(self, photo_id: str, size: int) -> Tensor:
        if photo_id != self.photo_id:
            return self.store.tensor(photo_id, size)
        return torch.from_numpy(np.array(self.image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Swap:
    """One question asked about several twins of its photo: ``photos`` and the captioner's ``captions`` by the value that they show, and for each
    system and shown value how likely it finds each answer."""

    attribute: str
    asked: str
    photos: dict[Any, Image.Image]
    captions: dict[Any, str]
    found: dict[str, dict[Any, dict[Any, float]]]


def twins(question: Question, scene: Scene, seed: int, size: int) -> dict[Any, Image.Image]:
    """The question's photo, drawn anew once for each value that the attribute can have; ``seed`` is the corpus's. The true one is the same
    photo to the pixel; in the others, scenery may have moved a little."""
    return {value: draw_scene(replace(scene, **{question.attribute: value}), photo_seed(question.photo_id, seed), size)
            for value in DETAILS[question.attribute]}


def swap(models: Mapping[str, System], asked: Asked, scenes: Mapping[str, Scene], store: PhotoSource, seed: int, size: int) -> Swap:
    """Asks every system the question about each twin of its photo; ``models`` must hold a baseline, whose captioner tells of the twins."""
    example, question = asked
    photos = twins(question, scenes[question.photo_id], seed, size)
    answers = phrasings(example.context[-1].text)
    sources = {value: Swapped(store, question.photo_id, photo) for value, photo in photos.items()}
    captioner = next(model for model in models.values() if isinstance(model, Pipeline))
    captions = {value: retold(captioner, [question.photo_id], source, size)[question.photo_id] for value, source in sources.items()}
    found = {name: {value: beliefs(model, example, source, answers, size) for value, source in sources.items()} for name, model in models.items()}
    return Swap(question.attribute, example.context[-1].text, photos, captions, found)


def moved(swapped: Swap, system: str) -> float:
    """The largest difference that the choice of the twin makes to any answer's probability."""
    rows = [list(shown.values()) for shown in swapped.found[system].values()]
    return max(max(column) - min(column) for column in zip(*rows, strict=True))


def followed(swaps: Sequence[Swap], system: str) -> tuple[int, int]:
    """For how many twins the system's likeliest answer is what the twin shows, and of how many."""
    hits = [max(answers, key=lambda value: answers[value]) == shown for one in swaps for shown, answers in one.found[system].items()]
    return sum(hits), len(hits)


def swap_figure(swapped: Swap, note: str) -> Plot:
    """A row a twin: the photo, what the captioner says of it, and each system's probability for each answer, the true one in its colour."""
    count, names = len(swapped.photos), list(swapped.found)
    figure = Plot(9.6, 1.35 * count + 0.9, note)
    axes = figure.subplots(count, 1 + len(names), squeeze=False, width_ratios=(1, *[1.15] * len(names)))
    for row, (shown, photo) in zip(axes, swapped.photos.items(), strict=True):
        row[0].imshow(np.asarray(photo), interpolation="nearest")
        row[0].set(xticks=[], yticks=[])
        row[0].set_ylabel(str(shown), fontsize=10)
        row[0].set_xlabel(plain(f"“{swapped.captions[shown]}”", 34), fontsize=7.5)
        for ax, name in zip(row[1:], names, strict=True):
            answers = swapped.found[name][shown]
            ax.barh([str(value) for value in answers], list(answers.values()), color=[STYLES[name][1] if v == shown else "#bbbbbb" for v in answers])
            for place, share in enumerate(answers.values()):
                ax.text(share + 0.02, place, f"{share:.2f}", va="center", fontsize=8)
            ax.set(xlim=(0, 1.25), xticks=[0, 0.5, 1])
            ax.invert_yaxis()
            ax.tick_params(labelsize=8)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_title("photo, captioner’s words", fontsize=9)
    for ax, name in zip(axes[0, 1:], names, strict=True):
        ax.set_title(f"{STYLES[name][0]}: P(answer)", fontsize=9)
    figure.suptitle(plain(f"“{swapped.asked}”  One chat, one question, and the photo swapped for its twin", 100), fontsize=10)
    return figure


# ------------------------------------------------------------------------------------------------- answers and scores of runs

def keyed(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of answers by the example that they answer."""
    return {(row["dialogue_id"], row["index"]): row for row in rows}


def reply_cards(asked: Sequence[Asked], captions: Mapping[str, str], replies: Mapping[str, Mapping[tuple[str, int], Mapping[str, Any]]],
                store: Any) -> list[Card]:
    """A card a question: its photo, what was asked, what the captioner says of the photo, and each system's reply with ✓ or ✗."""
    cards = []
    for example, question in asked:
        lines = [(f"“{example.context[-1].text}”", "black"), (f"captioner: {captions[question.photo_id]}", GREY),
                 (f"true {question.attribute}: {question.truth}", "black")]
        for name, rows in replies.items():
            row = rows.get((example.dialogue_id, example.index))
            text = "was not asked" if row is None else f"{'✓' if row['right'] else '✗'} {row['text'] or '(says nothing)'}"
            lines.append((f"{STYLES[name][0]}: {text}", GREY if row is None else BLUE if row["right"] else VERMILLION))
        cards.append(Card(store.load(question.photo_id), lines))
    return cards


def by_system(runs: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[float]]:
    """A metric of runs by system, one value a seed; runs without it are left out."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if run["system"] in STYLES and run["metrics"].get(key) is not None:
            found.setdefault(run["system"], []).append(run["metrics"][key])
    return {name: found[name] for name in STYLES if name in found}


def said_spread(values: Sequence[float], form: str = ".2f") -> str:
    """ "mean ± sample standard deviation", the latter left out of a single value; "none" of no value."""
    if not values:
        return "none"
    return f"{statistics.fmean(values):{form}}" + (f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else "")


def guesses(asked: Sequence[Asked]) -> dict[str, tuple[float, float]]:
    """What needs no photo at all, for "details" (all questions) and each "details_…": the expected share of right answers if one guesses evenly,
    and if one always gives the most frequent answer to questions on that attribute. An attribute of which nobody asks is left out."""
    counts = {name: Counter(q.truth for _, q in asked if q.attribute == name) for name in DETAILS}
    found = {f"details_{name}": (1 / len(DETAILS[name]), max(c.values()) / c.total()) for name, c in counts.items() if c}
    if not found:
        return {}
    weights = [counts[key.removeprefix("details_")].total() / len(asked) for key in found]
    of_all = [sum(weight * pair[i] for weight, pair in zip(weights, found.values(), strict=True)) for i in (0, 1)]
    return {"details": (of_all[0], of_all[1]), **found}


def details_figure(runs: Sequence[Mapping[str, Any]], guess: Mapping[str, tuple[float, float]], profile: str) -> Plot:
    """Bars a system and kind of question, dots single seeds, and what those reach who do not look."""
    seeds, first = sorted({run["seed"] for run in runs}), runs[0]["metrics"] if runs else {}
    figure = Plot(9, 3.6, note_of(profile, seeds, f"{first.get('details_n', 0)} test questions a seed"))
    ax, wide = figure.subplots(), 0.8 / len(STYLES)
    for number, (name, (label, colour)) in enumerate(STYLES.items()):
        scores = [by_system(runs, key).get(name, []) for key in guess]
        at = np.arange(len(guess)) + (number - 1) * wide
        ax.bar(at, [statistics.fmean(values) if values else 0 for values in scores], 0.92 * wide, color=colour, label=label)
        for x, values in zip(at, scores, strict=True):
            ax.plot([x] * len(values), values, ".", color="black", markersize=4)
    for i, (label, style) in enumerate((("guessing evenly", ":"), ("always the most frequent answer", "--"))):
        for place, pair in enumerate(guess.values()):
            ax.plot([place - 0.45, place + 0.45], [pair[i]] * 2, color="black", linestyle=style, label=label if place == 0 else None)
    names = [key.removeprefix("details").strip("_") or "all" for key in guess]
    ax.set_xticks(range(len(guess)), [f"{name}\nN = {first.get(f'{key}_n', 0)}" for name, key in zip(names, guess, strict=True)])
    ax.set_ylim(0, 1.02)
    dress(ax, "Questions about what a caption leaves out: share of right replies", "", "share")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


# ---------------------------------------------------------------------------------------------------------- drawing by codes

@torch.no_grad()
def rebuilt(drawer: Drawer, photos: Tensor) -> Tensor:
    """Photos (B, 3, S, S), uint8, after the autoencoder in which a drawer draws."""
    if isinstance(drawer, ImageTranslator):
        return drawer.to_photos(drawer.to_codes(to_floats(photos)))
    return decoded(drawer, drawer.to_latents(to_floats(photos)))


@torch.no_grad()
def decoded(drawer: ImageGenerator, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, s, s) to photos (B, 3, S, S), uint8."""
    return to_pixels(drawer.vae.decode(latents / drawer.vae.config.scaling_factor).sample)


def holds(drawer: Drawer) -> str:
    """What one photo is, in the space in which a drawer draws."""
    if isinstance(drawer, ImageTranslator):
        return f"{drawer.side} × {drawer.side} codes out of {drawer.codes} ({drawer.side**2 * math.log2(drawer.codes):,.0f} bits)"
    _, channels, side, _ = latent_shape(drawer)
    return f"{channels} × {side} × {side} = {channels * side**2:,} real numbers"


def latent_shape(drawer: ImageGenerator) -> tuple[int, int, int, int]:
    """The shape (1, C, s, s) of one photo's latents."""
    side = drawer.unet.config.sample_size
    return 1, drawer.unet.config.in_channels, side, side


def psnr_db(found: Tensor, photos: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each of B photos (B, 3, S, S), uint8, in decibel; higher is closer."""
    error = (found.float() - photos.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp_min(1e-8))


def read_right(reader: SceneReader, photos: Tensor, scenes: Sequence[Scene], names: Sequence[str] = tuple(ATTRIBUTES)) -> dict[str, float]:
    """The share of photos (B, 3, 64, 64), uint8, in which the scene reader sees what their scene has, for each attribute."""
    seen = reader.read(photos)
    return {name: sum(row[name] == getattr(scene, name) for row, scene in zip(seen, scenes, strict=True)) / len(scenes) for name in names}


def rebuilt_table(photos: Tensor, found: Mapping[str, Tensor], holds: Mapping[str, str], scenes: Sequence[Scene], reader: SceneReader) -> Markdown:
    """What is left of photos (N, 3, 64, 64) after each autoencoder, ``found`` by its name: PSNR, and what the scene reader still sees rightly."""
    rows: list[list[Any]] = [["none: the photos themselves", "", None, *(f"{share:.0%}" for share in read_right(reader, photos, scenes).values())]]
    for name, again in found.items():
        shares = read_right(reader, again, scenes)
        rows.append([name, holds[name], f"{psnr_db(again, photos).mean():.1f}", *(f"{share:.0%}" for share in shares.values())])
    return table([f"autoencoder (N = {len(photos)} test photos)", "a photo is", "PSNR (dB)", *ATTRIBUTES], rows)


def rebuilt_figure(photos: Tensor, found: Mapping[str, Tensor], note: str) -> Plot:
    """Photos (n, 3, S, S) above, and what is left of them after each autoencoder below."""
    images, titles = list(photos), ["photo"] * len(photos)
    for name, again in found.items():
        images += list(again)
        titles += [f"{name}: {value:.1f} dB" for value in psnr_db(again, photos).tolist()]
    return photo_grid([image.permute(1, 2, 0).numpy() for image in images], titles, columns=len(photos), note=note)


@torch.no_grad()
def code_log_probs(translator: ImageTranslator, captions: list[str], codes: Tensor) -> Tensor:
    """log P of each code, given the caption and the codes before it: codes (B, n) to (B, n + 1, K), of which the last is for the next code."""
    ids, mask = translator.tokenize(captions)
    mask = torch.cat([mask, torch.ones_like(codes)], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)  # the padding before a caption is not counted
    out = translator.transformer(input_ids=torch.cat([ids, codes + translator.first], 1), attention_mask=mask, position_ids=positions)
    return out.logits[:, ids.shape[1] - 1:, translator.first:-1].float().log_softmax(-1)


@torch.no_grad()
def code_bits(translator: ImageTranslator, captions: list[str], codes: Tensor) -> Tensor:
    """How surprising each code (B, N) is given the caption and the codes before it, in bits (B, N)."""
    log_p = code_log_probs(translator, captions, codes[:, :-1])
    return -log_p.gather(2, codes[..., None])[..., 0] / math.log(2)


def code_colours(translator: ImageTranslator, codes: Tensor) -> Tensor:
    """The mean colour (n, 3), from 0 to 1, of a photo that is nothing but one code, for each of n codes."""
    return translator.to_photos(codes[:, None].expand(-1, translator.side**2)).float().mean((2, 3)) / 255


def codes_figure(translator: ImageTranslator, photo: Tensor, note: str) -> Plot:
    """A photo (3, S, S), uint8, cut into squares; the code that stands for each; and the photo made of the codes."""
    codes = translator.to_codes(to_floats(photo[None]))
    side, colours = translator.side, code_colours(translator, codes[0])
    figure = Plot(9.6, 3.5, note)
    axes = figure.subplots(1, 3)
    axes[0].imshow(photo.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[0].set_title(f"a photo, cut into {side} × {side}", fontsize=9)
    axes[1].imshow(colours.view(side, side, 3).numpy(), interpolation="nearest")
    for place, (code, colour) in enumerate(zip(codes[0].tolist(), colours, strict=True)):
        ink = "black" if colour.mean() > 0.5 else "white"
        axes[1].text(place % side, place // side, str(code), ha="center", va="center", fontsize=6.5, color=ink)
    axes[1].set_title(f"its codes: numbers from 0 to {translator.codes - 1}", fontsize=9)
    axes[2].imshow(translator.to_photos(codes)[0].permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[2].set_title("the photo made of these codes", fontsize=9)
    for ax in (axes[0], axes[2]):
        for line in np.arange(1, side) * photo.shape[-1] / side - 0.5:
            ax.axhline(line, color="white", linewidth=0.5)
            ax.axvline(line, color="white", linewidth=0.5)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return figure


def surprise_figure(translator: ImageTranslator, photo: Tensor, caption: str, note: str) -> Plot:
    """A photo (3, S, S), uint8, and how surprising each of its codes is with the caption and without it."""
    codes, side = translator.to_codes(to_floats(photo[None])), translator.side
    bits = code_bits(translator, [caption, ""], codes.expand(2, -1))
    figure = Plot(9.6, 3.4, note)
    axes = figure.subplots(1, 3)
    axes[0].imshow(photo.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[0].set_title(plain(f"“{caption}”", 42), fontsize=9)
    for ax, each, name in zip(axes[1:], bits, ("with the caption", "without it"), strict=True):
        image = ax.imshow(each.view(side, side).numpy(), cmap="cividis", vmin=0, vmax=max(1.0, float(bits.max())))
        ax.set_title(f"{name}: {each.sum():.0f} bits in all", fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="bits a code", shrink=0.8)
    return figure


def unfinished(translator: ImageTranslator, codes: Tensor, counts: Sequence[int]) -> Tensor:
    """A drawing (1, N) after its first codes, (len(counts), 3, S, S), uint8: squares not written yet are grey. The last code written stands in
    for those to come, since the decoder looks at neighbours too."""
    photos = []
    for count in counts:
        photo = translator.to_photos(torch.cat([codes[:, :count], codes[:, count - 1:count].expand(-1, codes.shape[1] - count)], 1))[0]
        written = (torch.arange(codes.shape[1]) < count).view(translator.side, translator.side)
        shown = written.repeat_interleave(photo.shape[-1] // translator.side, 0).repeat_interleave(photo.shape[-1] // translator.side, 1)
        photos.append(torch.where(shown, photo, torch.full_like(photo, 225)))
    return torch.stack(photos)


def rows_figure(rows: Mapping[str, Tensor], titles: Sequence[str], note: str, heading: str = "") -> Plot:
    """Named rows of photos (n, 3, S, S), uint8, with a title above each column; a row's name stands at its left."""
    count = max(len(photos) for photos in rows.values())
    figure = Plot(max(6.0, 1.35 * count + 1.3), 1.4 * len(rows) + 0.6 + 0.25 * bool(heading), note)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, photos) in zip(axes, rows.items(), strict=True):
        for ax, photo in zip(line, photos, strict=False):
            ax.imshow(photo.permute(1, 2, 0).numpy(), interpolation="nearest")
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(plain(name, 14), fontsize=8.5)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(plain(title, 22), fontsize=8)
    if heading:
        figure.suptitle(plain(heading, 110), fontsize=10)
    return figure


def seen_as(row: Mapping[str, Any]) -> str:
    """What the scene reader sees, in a few words."""
    return f"{row['number']} {row['colour']} {row['thing']}{'s' * (row['number'] > 1)}, {row['place']}, {row['time']}"


# ------------------------------------------------------------------------------------------------- side by side, and where it fails

def chats_figure(answers: Mapping[str, Sequence[dict[str, Any]]], store: Any, count: int, profile: str, seed: int) -> Plot:
    """The same test chats drawn by every system beside the gold photo: every k-th response of which it is known what it should show."""
    found = {name: keyed(rows) for name, rows in answers.items()}
    first = next(iter(found.values()))
    due = [key for key, row in first.items() if row["scene"] and all(key in rows for rows in found.values())]
    images: list[Any] = []
    titles: list[str] = []
    colours: list[str] = []
    for key in evenly(due, count):
        images.append(store.load(first[key]["gold_photo_id"]))
        titles.append(f"gold: {first[key]['gold_caption']}")
        colours.append("black")
        for name, rows in found.items():
            errors, row = wrong(rows[key]), rows[key]
            verdict = "no photo" if row["image"] is None else f"wrong {', '.join(errors)}" if errors else "right"
            images.append(row["image"])
            titles.append(f"{STYLES[name][0]}, {verdict}: {row['caption'] or 'shares none'}")
            colours.append(VERMILLION if errors else BLUE)
    shown = min(count, len(due))
    return photo_grid(images, titles, columns=1 + len(found), colours=colours, side=1.75, wrap=32,
                      heading="The same test chats, drawn by every system from its own caption",
                      note=note_of(profile, [seed], f"{shown} of {len(due)} test photos, evenly spaced"))


CAUSES = (("right", BLUE), ("wrong words", ORANGE), ("wrong drawing", VERMILLION), ("no photo", "#bbbbbb"))


def causes_of(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> dict[str, dict[str, Counter[str]]]:
    """``figures.causes`` for each system, all seeds together."""
    return {name: {part: sum((causes(rows)[part] for rows in seeds.values()), Counter[str]()) for part in CORE} for name, seeds in answers.items()}


def causes_figure(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]], profile: str) -> Plot:
    """For every system, what share of thing, colour and place is right, and who made the errors."""
    counts = causes_of(answers)
    seeds = sorted({seed for rows in answers.values() for seed in rows})
    most = max(sum(found[CORE[0]].values()) for found in counts.values())
    figure = Plot(9.6, 2.9, note_of(profile, seeds, f"{most} test photos a system, all seeds together"))
    for ax, (name, found) in zip(np.atleast_1d(figure.subplots(1, len(counts), sharey=True)), counts.items(), strict=True):
        left = np.zeros(len(CORE))
        for cause, colour in CAUSES:
            share = np.array([found[part][cause] / max(1, sum(found[part].values())) for part in CORE])
            ax.barh(CORE, share, left=left, color=colour, label=cause)
            left += share
        ax.set_xlim(0, 1)
        dress(ax, STYLES[name][0], "share of gold photos", "")
    ax.invert_yaxis()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def verdicts(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> dict[str, Counter[str]]:
    """How often thing, colour and place of a system's photos are right or wrong, and by whose fault, all three and all seeds together."""
    return {name: sum(found.values(), Counter[str]()) for name, found in causes_of(answers).items()}


def causes_table(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> Markdown:
    """The ``verdicts`` as a table."""
    rows = [[STYLES[name][0], total.total(), *(total[cause] for cause, _ in CAUSES)] for name, total in verdicts(answers).items()]
    return table(["system", "verdicts (N)", *(cause for cause, _ in CAUSES)], rows)


# -------------------------------------------------------------------------------------------------------------- gradients

def pulls(model: System, batch: Batch, rng: torch.Generator, temperature: float = 1.0) -> dict[str, dict[str, float | None]]:
    """The norm of each loss's gradient ("text", "image") to the weights of each job that learn; None where no weight has a gradient at all,
    which is less than zero: no path leads there. A part that is frozen is left out. No weight is changed."""
    output = model(batch, temperature=temperature, rng=rng)
    found: dict[str, dict[str, float | None]] = {}
    for job, part in jobs(model).items():
        weights = [p for p in part.parameters() if p.requires_grad]
        if not weights:
            continue
        found[job] = {}
        for name, loss in (("text", output.text_loss), ("image", output.image_loss)):
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
            found[job][name] = norm(gradients) if any(g is not None for g in gradients) else None
    return found


def pulls_table(found: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Markdown:
    """Who hears which loss: a row a system and loss, a column a job."""
    def cell(parts: Mapping[str, Mapping[str, float | None]], job: str, loss: str) -> str:
        if job not in parts:
            return "frozen"
        value = parts[job][loss]
        return "no path" if value is None else f"{value:.4f}"

    names = {"text": "words (Eq. 2)", "image": "drawing"}
    return table(["system", "gradient of the loss of the …", "to what sees", "to what writes", "to what draws"],
                 [[STYLES[system][0], names[loss], *(cell(parts, job, loss) for job in ("sees", "writes", "draws"))]
                  for system, parts in found.items() for loss in names])
