"""Questions about what captions leave out, asked of the three systems; photos swapped for their twins; scores: notebook 05."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.data.collate import IGNORED, Collator
from e2e_lib.data.dialogue import Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat import questions as questions
from e2e_lib.data.minichat.chats import photo_seed
from e2e_lib.data.minichat.questions import Question
from e2e_lib.data.minichat.scenes import SIZES, TIMES, Scene, draw_scene
from e2e_lib.data.minichat.smalltalk import QUESTIONS, QUIZ, QUIZ_ANSWERS
from e2e_lib.data.photos import PhotoSource
from e2e_lib.lessons.nb05_reading import Card, retold
from e2e_lib.models.pipeline import Pipeline
from e2e_lib.models.systems import System
from e2e_lib.report.plots import BLUE, GREY, STYLES, VERMILLION, Figure, Markdown, escape_mathtext, footer, style_axes

# The details that captions leave out and people ask about, and what each can be.
DETAILS: dict[str, tuple[Any, ...]] = {"number": (2, 3), "size": SIZES, "time": TIMES}
NO_QUESTION = Markdown("*In this test split nobody asks about a detail that a caption leaves out; a larger one (`data.test`) has such questions.*")
Asked = tuple[Example, Question]


def questions_in(examples: Sequence[Example], scenes: Mapping[str, Scene]) -> list[Asked]:
    """The examples that ask about a detail which the caption of the last photo leaves out, in order, with the question."""
    return [(example, question) for example in examples if (question := questions.question_of(example, scenes))]


def phrasings(text: str) -> dict[Any, tuple[str, ...]]:
    """All answers that MiniChat knows to the question at the end of ``text``, by the value they mean; empty for another text."""
    known = [*(pair for pairs in QUESTIONS.values() for pair in pairs), *((ask, QUIZ_ANSWERS[name]) for name, asks in QUIZ.items() for ask in asks)]
    for question, answers in known:
        if questions.ending_in(question).search(text):
            return {int(key[1:]) if key in ("n2", "n3") else key: said for key, said in answers.items()}
    return {}


@torch.no_grad()
def beliefs(model: System, example: Example, store: PhotoSource, answers: Mapping[Any, Sequence[str]], size: int) -> dict[Any, float]:
    """How likely a system finds the answers of each value, all their phrasings together, after the example's context; they add up to 1."""
    texts = [(value, text) for value, said in answers.items() for text in said]
    batch = Collator(model.formatter, store, size)([replace(example, response=Turn(example.response.speaker, text)) for _, text in texts])
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


def swap_figure(swapped: Swap, note: str) -> Figure:
    """A row a twin: the photo, what the captioner says of it, and each system's probability for each answer, the true one in its colour."""
    count, names = len(swapped.photos), list(swapped.found)
    figure = Figure(9.6, 1.35 * count + 0.9, note)
    axes = figure.subplots(count, 1 + len(names), squeeze=False, width_ratios=(1, *[1.15] * len(names)))
    for row, (shown, photo) in zip(axes, swapped.photos.items(), strict=True):
        row[0].imshow(np.asarray(photo), interpolation="nearest")
        row[0].set(xticks=[], yticks=[])
        row[0].set_ylabel(str(shown), fontsize=10)
        row[0].set_xlabel(escape_mathtext(f"“{swapped.captions[shown]}”", 34), fontsize=7.5)
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
    figure.suptitle(escape_mathtext(f"“{swapped.asked}”  One chat, one question, and the photo swapped for its twin", 100), fontsize=10)
    return figure


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
    """What needs no photo at all, for "details" (all questions) and each "details_…": the expected share of right answers if one guesses subsample,
    and if one always gives the most frequent answer to questions on that attribute. An attribute of which nobody asks is left out."""
    counts = {name: Counter(q.truth for _, q in asked if q.attribute == name) for name in DETAILS}
    found = {f"details_{name}": (1 / len(DETAILS[name]), max(c.values()) / c.total()) for name, c in counts.items() if c}
    if not found:
        return {}
    weights = [counts[key.removeprefix("details_")].total() / len(asked) for key in found]
    of_all = [sum(weight * pair[i] for weight, pair in zip(weights, found.values(), strict=True)) for i in (0, 1)]
    return {"details": (of_all[0], of_all[1]), **found}


def details_figure(runs: Sequence[Mapping[str, Any]], guess: Mapping[str, tuple[float, float]], profile: str) -> Figure:
    """Bars a system and kind of question, dots single seeds, and what those reach who do not look."""
    seeds, first = sorted({run["seed"] for run in runs}), runs[0]["metrics"] if runs else {}
    figure = Figure(9, 3.6, footer(profile, seeds, f"{first.get('details_n', 0)} test questions a seed"))
    ax, wide = figure.subplots(), 0.8 / len(STYLES)
    for number, (name, (label, colour)) in enumerate(STYLES.items()):
        scores = [by_system(runs, key).get(name, []) for key in guess]
        at = np.arange(len(guess)) + (number - 1) * wide
        ax.bar(at, [statistics.fmean(values) if values else 0 for values in scores], 0.92 * wide, color=colour, label=label)
        for x, values in zip(at, scores, strict=True):
            ax.plot([x] * len(values), values, ".", color="black", markersize=4)
    for i, (label, style) in enumerate((("guessing subsample", ":"), ("always the most frequent answer", "--"))):
        for place, pair in enumerate(guess.values()):
            ax.plot([place - 0.45, place + 0.45], [pair[i]] * 2, color="black", linestyle=style, label=label if place == 0 else None)
    names = [key.removeprefix("details").strip("_") or "all" for key in guess]
    ax.set_xticks(range(len(guess)), [f"{name}\nN = {first.get(f'{key}_n', 0)}" for name, key in zip(names, guess, strict=True)])
    ax.set_ylim(0, 1.02)
    style_axes(ax, "Questions about what a caption leaves out: share of right replies", "", "share")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
