"""The parts of the three systems (section 3.1.4), what each of them reads of a photo, and which loss reaches which part: notebook 05."""

import inspect
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from e2e_lib.data.collate import Batch
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat import questions as questions
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.data.photos import PhotoSource, to_floats
from e2e_lib.models.end_to_end import EndToEndModel
from e2e_lib.models.pipeline import Pipeline
from e2e_lib.models.systems import System
from e2e_lib.report.plots import GREY, STYLES, VERMILLION, Figure, Html, Markdown, escape_mathtext, table, tokens_html
from e2e_lib.training.loop import norm


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


def tokens_read(model: System, example: Example, store: PhotoSource, size: int) -> tuple[list[str], list[bool]]:
    """An example's context as the tokens that a system reads (at most ``data.max_context``), and which of them stand for photos."""
    formatter = model.formatter
    seen, = formatter.look([example], store, size)
    ids, _ = formatter.context(seen.context, example.response.speaker)
    inside, of_photo = False, []
    for i in ids:
        inside = inside and i != formatter.end
        of_photo.append(inside)
        inside = inside or i == formatter.start
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
    return dict(zip(ids, model.captioner.generate_captions(torch.stack([store.tensor(i, size) for i in ids])), strict=True)) if ids else {}


class Teller:
    """A captioner that is a function from photos (B, 3, S, S), uint8, to B texts."""

    def __init__(self, tell: Callable[[Tensor], list[str]]) -> None:
        self.tell = tell


def with_captioner(model: Pipeline, tell: Callable[[Tensor], list[str]]) -> Pipeline:
    """A baseline with the same weights and another captioner."""
    return Pipeline(model.language, model.tokenizer, Teller(tell), model.generator, model.formatter.max_context).eval()  # type: ignore[arg-type]


def told_shares(scenes: Mapping[str, Scene], captions: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """For each attribute, how many captions tell it rightly, and of how many photos. Size is asked of single things, number of several."""
    found = {}
    for name in ATTRIBUTES:
        of = [i for i in captions if name not in ("number", "size") or (name == "number") == (scenes[i].number > 1)]
        found[name] = sum(name not in questions.omitted_attributes(scenes[i], captions[i]) for i in of), len(of)
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


def cards_figure(cards: Sequence[Card], note: str, columns: int = 2) -> Figure:
    """Photos with what is said about them on their right."""
    side, pitch, width = 1.15, 0.155, 9.6 / columns
    letters = round((width - side - 0.3) * 16.5)
    texts = [[(part, colour) for text, colour in card.lines for part in textwrap.wrap(text, letters, subsequent_indent="   ")] for card in cards]
    high = max([side, *(pitch * len(lines) for lines in texts)]) + 0.2
    height = max(1, math.ceil(len(cards) / columns)) * high + 0.35
    figure = Figure(9.8, height, note)
    figure.set_layout_engine("none")
    for i, (card, lines) in enumerate(zip(cards, texts, strict=True)):
        left, top = 0.1 + i % columns * width, 0.05 + i // columns * high
        ax = figure.add_axes((left / 9.8, 1 - (top + side) / height, side / 9.8, side / height))
        ax.imshow(np.asarray(Image.open(card.photo) if isinstance(card.photo, Path) else card.photo), interpolation="nearest")
        ax.axis("off")
        for number, (text, colour) in enumerate(lines):
            figure.text((left + side + 0.1) / 9.8, 1 - (top + pitch * (number + 0.5)) / height, escape_mathtext(text), fontsize=8, color=colour, va="center")
    if not cards:
        figure.text(0.5, 0.5, "nothing to show", ha="center", va="center", fontsize=9, color=GREY)
    return figure


def caption_cards(photo_ids: Sequence[str], scenes: Mapping[str, Scene], gold: Mapping[str, str], said: Mapping[str, str], store: Any) -> list[Card]:
    """A card a photo: the gold caption, the captioner's, and what the captioner does not tell rightly."""
    def missing(photo_id: str) -> str:
        names = [f"{name} ({getattr(scenes[photo_id], name)})" for name in questions.omitted_attributes(scenes[photo_id], said[photo_id])]
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
    said = [[Counter(re.findall(r"\w+", caption)) for caption in sees.generate_captions(photos)] for photos in (train, test)]
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
