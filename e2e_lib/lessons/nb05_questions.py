"""Notebook 05: questions about what captions leave out, asked again with counterfactual photos, and how well
they can be answered without a photo."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional as F

from e2e_lib.config import PAPER_SYSTEMS
from e2e_lib.data.collate import Collator
from e2e_lib.data.dialogue import Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.chats import photo_seed
from e2e_lib.data.minichat.english import QUESTIONS, QUIZ
from e2e_lib.data.minichat.questions import Question, ending_in
from e2e_lib.data.minichat.scenes import SIZES, TIMES, Scene, draw_scene
from e2e_lib.data.photos import PhotoSource, PhotoStore
from e2e_lib.inference.chat import PhotoAlbum
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.language import response_logits
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.report.plots import STYLES, Figure, Markdown, escape_mathtext, table
from e2e_lib.report.tables import mean_and_sd

# The attributes that captions leave out and people ask about, and the values of each.
DETAILS: dict[str, tuple[Any, ...]] = {"number": (2, 3), "size": SIZES, "time": TIMES}
NO_QUESTION = Markdown("*In this test split nobody asks about a detail that a caption leaves out; a larger "
                       "one (`data.test`) has such questions.*")


def answer_phrasings(text: str) -> dict[Any, tuple[str, ...]]:
    """MiniChat's answers to the question that ends a text, by the value they give; {} without a question."""
    quiz = [(question, of_kind["answers"]) for of_kind in QUIZ.values() for question in of_kind["questions"]]
    for question, answers in (*chain(*QUESTIONS.values()), *quiz):
        if ending_in(question).search(text):
            return {int(key) if key.isdigit() else key: phrasings for key, phrasings in answers.items()}
    return {}


@torch.no_grad()
def answer_probabilities(model: PhotoChatModel, example: Example, store: PhotoSource,
                         answers: Mapping[Any, Sequence[str]]) -> dict[Any, float]:
    """A system's probability of each value after the example's context, all phrasings of the value together,
    normalised over ``answers``. Where the system reads captions, the context must carry the captioner's."""
    texts = [(value, text) for value, phrasings in answers.items() for text in phrasings]
    rows = [replace(example, response=Turn(example.response.speaker, text)) for _, text in texts]
    batch = Collator(model.formatter, store)(rows)
    logits = response_logits(model.language, model.embed_context(batch), batch)  # (N, V), all texts' tokens
    nats = F.cross_entropy(logits.float(), batch.labels[batch.is_learnt], reduction="none").double()  # (N,)
    of_text = batch.is_learnt.nonzero()[:, 0]  # (N,): the text that each token belongs to
    shares = (-nats.new_zeros(len(rows)).index_add(0, of_text, nats)).softmax(0).tolist()  # (A,)
    return {value: sum(share for (of, _), share in zip(texts, shares, strict=True) if of == value)
            for value in answers}


@dataclass(frozen=True)
class Counterfactuals:
    """A question asked about versions of its photo: ``photos`` and their ``captions`` by the value shown, and
    ``probabilities[system][value shown][value answered]``."""

    text: str
    photos: dict[Any, Image.Image]
    captions: dict[Any, str]
    probabilities: dict[str, dict[Any, dict[Any, float]]]


def counterfactual_photos(question: Question, scene: Scene, seed: int) -> dict[Any, Image.Image]:
    """The question's photo, rendered again with each value of the attribute; ``seed`` is the corpus's.

    The one with the true value is the photo itself; in the others the scenery may move a little.
    """
    photo = photo_seed(question.photo_id, seed)
    return {value: draw_scene(replace(scene, **{question.attribute: value}), photo)
            for value in DETAILS[question.attribute]}


def ask(models: Mapping[str, PhotoChatModel], example: Example, question: Question, scene: Scene,
        store: PhotoStore, captioner: Any, seed: int) -> Counterfactuals:
    """Every system's answers about each counterfactual photo; the baselines read ``captioner``'s captions."""
    photos = counterfactual_photos(question, scene, seed)
    text = example.context[-1].text
    results = Counterfactuals(text, photos, {}, {name: {} for name in models})
    album = PhotoAlbum()
    shared = [photo.photo_id for turn in example.context for photo in turn.photos]
    album.images = {photo_id: store.load(photo_id) for photo_id in shared}
    for value, photo in photos.items():
        album.images[question.photo_id] = photo
        album.keep_captions(captioner.key, {})  # those of the photo before
        captioned, = with_captions([example], captioner, album)
        results.captions[value] = album.captions(captioner.key)[question.photo_id]
        for name, model in models.items():
            results.probabilities[name][value] = answer_probabilities(
                model, captioned if model.captioner else example, album, answer_phrasings(text))
    return results


def max_change(results: Counterfactuals, system: str) -> float:
    """The largest difference between two of the photos in the probability of any answer."""
    return _spread(results.probabilities[system].values())


def change_of_same_captions(results: Counterfactuals, system: str) -> float | None:
    """``max_change`` between photos that the captioner gave the same caption; None if there are no two."""
    by_caption: dict[str, list[dict[Any, float]]] = {}
    for value, answers in results.probabilities[system].items():
        by_caption.setdefault(results.captions[value], []).append(answers)
    pairs = [answers for answers in by_caption.values() if len(answers) > 1]
    return max((_spread(answers) for answers in pairs), default=None)


def _spread(rows: Iterable[Mapping[Any, float]]) -> float:
    """The largest difference between two rows of the same columns."""
    columns = zip(*(row.values() for row in rows), strict=True)
    return max(max(column) - min(column) for column in columns)


def correct_answers(results: Sequence[Counterfactuals], system: str) -> tuple[int, int]:
    """For how many photos the most probable answer is the value shown, and the number of photos."""
    hits = [max(answers, key=answers.__getitem__) == truth
            for one in results for truth, answers in one.probabilities[system].items()]
    return sum(hits), len(hits)


def counterfactuals_figure(results: Counterfactuals, note: str) -> Figure:
    """One row per photo, with its caption and each system's answer probabilities, the true one coloured."""
    names = list(results.probabilities)
    figure = Figure(9.6, 1.35 * len(results.photos) + 0.9, note)
    axes = figure.subplots(len(results.photos), 1 + len(names), squeeze=False)
    for row, (truth, photo) in zip(axes, results.photos.items(), strict=True):
        row[0].imshow(np.asarray(photo), interpolation="nearest")
        row[0].set(xticks=[], yticks=[], ylabel=str(truth))
        row[0].set_xlabel(escape_mathtext(f"“{results.captions[truth]}”", 34), fontsize=7.5)
        for ax, name in zip(row[1:], names, strict=True):
            answers = results.probabilities[name][truth]
            bars = ax.barh([str(value) for value in answers], list(answers.values()),
                           color=[STYLES[name][1] if value == truth else "#bbbbbb" for value in answers])
            ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
            ax.set(xlim=(0, 1.25), xticks=[0, 0.5, 1])
            ax.invert_yaxis()
    for ax, name in zip(axes[0, 1:], names, strict=True):
        hits, n = correct_answers([results], name)
        ax.set_title(f"{STYLES[name][0]}: right about {hits} of {n} photos\nP(answer)", fontsize=9)
    figure.suptitle(escape_mathtext(f"“{results.text}”", 100), fontsize=10)
    return figure


def accuracy_without_photo(questions: Sequence[Question]) -> dict[str, tuple[float, float]]:
    """The accuracy of two ways to answer without a photo, for all questions ("details") and per attribute
    ("details_<attribute>"): guessing uniformly, and always giving the attribute's most frequent answer."""
    truths = {name: [q.truth for q in questions if q.attribute == name] for name in DETAILS}
    uniform = {name: len(values) / len(DETAILS[name]) for name, values in truths.items()}
    frequent = {name: max(Counter(values).values(), default=0) for name, values in truths.items()}
    hits = {"details": (sum(uniform.values()), sum(frequent.values()), len(questions))}
    hits |= {f"details_{name}": (uniform[name], frequent[name], len(truths[name])) for name in DETAILS}
    return {key: (right / n, most / n) for key, (right, most, n) in hits.items() if n}


def scores_by_system(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> pd.DataFrame:
    """Mean ± standard deviation over seeds: one row per metric (a key of a run's), one column per system of
    the paper."""
    rows = [{"system": run["system"], **run["metrics"]} for run in runs]
    frame = pd.DataFrame(rows, columns=["system", *metrics]).set_index("system").astype(float)
    seeds = {label: frame[frame.index == name] for name, (label, _) in STYLES.items()
             if name in PAPER_SYSTEMS}
    return pd.DataFrame({label: [mean_and_sd(of[key].mean(), of[key].std(), 3) for key in metrics]
                         for label, of in seeds.items()}, index=list(metrics))


def details_table(runs: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> Markdown:
    """The accuracy of every system's replies to questions about details, and what needs no photo."""
    baselines = accuracy_without_photo(questions)
    scores = scores_by_system(runs, list(baselines))
    counts = Counter(f"details_{q.attribute}" for q in questions) + Counter(details=len(questions))
    rows = [[key.removeprefix("details_"), counts[key], *row, *baselines[key]]
            for key, row in zip(scores.index, scores.to_numpy(), strict=True)]
    return table(["questions", "N per seed", *scores, "uniform guess", "most frequent answer"], rows)


def details_in_words(runs: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> str:
    """Each system's share of right answers to all questions about details, a mean over seeds, and what is
    reached without a photo."""
    guess, most = accuracy_without_photo(questions)["details"]
    systems = {label: [run["metrics"]["details"] for run in runs if run["system"] == name]
               for name, (label, _) in STYLES.items()}
    said = ", ".join(f"{label} {np.mean(shares):.0%}" for label, shares in systems.items()
                     if shares and None not in shares)
    return (f"Without any photo, always giving the most frequent answer is right in {most:.0%}, a guess in "
            f"{guess:.0%}. The systems: {said}.")
