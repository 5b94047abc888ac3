"""From results to figures and tables, and nothing else: what the notebooks show and what stands under ``figures/``.

Every function takes what was read from a run's folder and returns a Figure (a matplotlib Figure), which notebooks show as it is.
"""

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from e2e_lib.config import Data
from e2e_lib.corpora import DATA, folder_of
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import examples_of, load_split, subsample
from e2e_lib.data.minichat.chats import HELD_OUT
from e2e_lib.data.minichat.scenes import ATTRIBUTES, COLOURS, PLACES, THINGS
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation.sharing import CORE_ATTRIBUTES
from e2e_lib.report.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILLION,
    Figure,
    annotate_empty,
    chat_figure,
    escape_mathtext,
    footer,
    photo_grid,
    style_axes,
)
from e2e_lib.repro import files
from e2e_lib.repro.results import ResultsError, load_json
from e2e_lib.repro.run_files import RUNS, read_answers, read_logs, seed_folder

FIGURES = Path("figures")
CORE = CORE_ATTRIBUTES
# What became of a photo that is due, and its colour.
CAUSES = {"right": BLUE, "wrong words": ORANGE, "wrong drawing": VERMILLION, "no photo": "#bbbbbb"}


# ------------------------------------------------------------------------------------------------------- training curves

def _curve(ax: Axes, logs: Mapping[int, list[dict[str, Any]]], kind: str, key: str, colour: str, label: str, style: str = "-") -> bool:
    """A thin line a seed and, where every seed has a value, their mean; on a log axis only what is above zero. False if there is none."""
    log = ax.get_yscale() == "log"

    def shown(line: dict[str, Any]) -> bool:
        return line["kind"] == kind and line.get(key) is not None and (line[key] > 0 or not log)

    runs = [{line["epoch"]: line[key] for line in lines if shown(line)} for lines in logs.values()]
    marker = "o" if kind == "dev" else ""
    for run in runs if len(runs) > 1 else ():
        ax.plot(list(run), list(run.values()), color=colour, alpha=0.4, linewidth=0.8, linestyle=style)
    common = sorted(set.intersection(*map(set, runs))) if runs else []
    means = [statistics.fmean(run[x] for run in runs) for x in common]
    ax.plot(common, means, color=colour, linewidth=2, linestyle=style, label=label, marker=marker)
    return any(runs)


def _two_panels(logs: Mapping[int, list[dict[str, Any]]], kind: str, note: str, left: tuple[str, str, str], right: tuple[str, str, str],
                missing: str) -> Figure:
    figure = Figure(9, 3.4, note)
    for ax, (key, title, unit), colour in zip(figure.subplots(1, 2), (left, right), (BLUE, VERMILLION), strict=True):
        found = _curve(ax, logs, kind, key, colour, "mean over seeds" if len(logs) > 1 else "one seed")
        style_axes(ax, title, "epoch", unit)
        if found:
            ax.legend(frameon=False, fontsize=8)
        else:
            annotate_empty(ax, missing)
    return figure


def _steps(logs: Mapping[int, list[dict[str, Any]]]) -> str:
    last = max((line["step"] + 1 for lines in logs.values() for line in lines if line["kind"] == "step"), default=0)
    return f"{last} training steps"


def loss_curves(logs: Mapping[int, list[dict[str, Any]]], profile: str) -> Figure:
    """Text and image loss while training (the two terms of Eq. 13); thin lines are single seeds."""
    return _two_panels(logs, "step", footer(profile, list(logs), _steps(logs)), ("text_loss", "Text loss (Eq. 2)", "nats a token"),
                       ("image_loss", "Image loss (Eq. 12)", "mean squared error of the noise"), "no batch of the log had a photo to draw")


def dev_curves(logs: Mapping[int, list[dict[str, Any]]], profile: str) -> Figure:
    """Dev BLEU-2 and FID after each epoch, which decide about early stopping."""
    n = next((line["n"] for lines in logs.values() for line in lines if line["kind"] == "dev"), 0)
    return _two_panels(logs, "dev", footer(profile, list(logs), f"{n} dev responses"),
                       ("bleu2", "Dev BLEU-2 (higher is better)", "BLEU-2, 0-100"),
                       ("fid", "Dev FID (lower is better)", "FID, scene reader's features"), "fewer than two photos were drawn: no FID")


def temperature_curve(logs: Mapping[int, list[dict[str, Any]]], profile: str) -> Figure:
    """The temperature of Eq. 5 over the epochs."""
    figure = Figure(6, 2.8, footer(profile, list(logs), _steps(logs)))
    ax = figure.subplots()
    _curve(ax, logs, "step", "temperature", PURPLE, "τ")
    style_axes(ax, "Temperature τ of the Gumbel-softmax (Eq. 5)", "epoch", "τ")
    ax.set_ylim(0)
    return figure


def gradient_norms(logs: Mapping[int, list[dict[str, Any]]], profile: str) -> Figure:
    """Gradient norm of each part from the whole loss, and of the language model from the image loss alone; zeros cannot be shown."""
    figure = Figure(8, 4, footer(profile, list(logs), _steps(logs)))
    ax = figure.subplots()
    ax.set_yscale("log")
    lines = (("gradient_language", BLUE, "language model", "-"), ("gradient_perceptron", GREEN, "perceptron", "-."),
             ("gradient_unet", ORANGE, "image generator (UNet)", "--"),
             ("gradient_language_from_image", VERMILLION, "language model, from the image loss alone", ":"))
    found = [_curve(ax, logs, "step", *line) for line in lines]
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 1e-8 * high))  # once a softmax has settled, what is left of a gradient is rounding
    style_axes(ax, "Gradient norms", "epoch", "Euclidean norm (log)")
    if any(found):
        ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16))
    else:
        annotate_empty(ax, "no gradient above zero was logged")
    return figure


# --------------------------------------------------------------------------------------------------------------- photos

def gallery_over_epochs(profile: str, seed: int, corpus: Path, root: Path = RUNS, most: int = 4) -> Figure:
    """The same dev chats answered before joint training and after epochs (at most ``most`` of them), beside the gold photo."""
    folders = sorted((seed_folder(root, profile, "end_to_end", seed) / "gallery").glob("epoch-*"), key=lambda path: int(path.name[6:]))
    if len(folders) > most + 1:
        folders = [folders[round(i * (len(folders) - 1) / most)] for i in range(most + 1)]
    tables = [json.loads((folder / "gallery.json").read_text(encoding="utf-8")) for folder in folders]
    store = PhotoStore(corpus / "photos")
    images: list[Any] = []
    titles: list[str] = []
    for i, gold in enumerate(tables[0] if tables else ()):
        images.append(store.load(gold["photo_id"]))
        titles.append(f"gold: {gold['gold']}")
        for folder, rows in zip(folders, tables, strict=True):
            when = "before" if folder.name == "epoch-0" else folder.name.replace("-", " ")
            images.append(folder / f"{i}.png" if rows[i]["drawn"] else None)
            titles.append(f"{when}: {rows[i]['caption'] or 'shares no photo'}")
    return photo_grid(images, titles, columns=len(folders) + 1, heading="The same dev chats, before and during joint training",
                      note=footer(profile, [seed], f"{len(tables[0]) if tables else 0} dev chats"))


def wrong(row: Mapping[str, Any], names: Sequence[str] = CORE) -> list[str]:
    """Which attributes of an answer's photo are not what the gold photo shows; without a photo, all."""
    scene = row["scene"]
    return [name for name in names if scene["drawn"] is None or scene["drawn"][name] != scene["gold"][name]]


def gallery_pairs(answers: Sequence[Mapping[str, Any]], corpus: Path, profile: str, seed: int, count: int = 12) -> Figure:
    """Gold and drawn photos in pairs: every k-th test response that should share a photo, in the test set's order, so failures too."""
    due = [row for row in answers if row["scene"]]
    shown = subsample(due, count)
    store = PhotoStore(corpus / "photos")
    images: list[Any] = []
    titles: list[str] = []
    colours: list[str] = []
    for row in shown:
        errors = wrong(row)
        images += [store.load(row["gold_photo_id"]), row["image"]]
        verdict = f"wrong {', '.join(errors)}" if errors else "right"
        titles += [f"gold: {row['gold_caption']}", f"{verdict}: {row['caption'] or 'shares no photo'}"]
        colours += ["black", VERMILLION if errors else BLUE]
    return photo_grid(images, titles, colours=colours, heading="Gold photo, and what was drawn from the model's own caption",
                      note=footer(profile, [seed], f"{len(shown)} of {len(due)} test photos, subsample spaced"))


# ------------------------------------------------------------------------------------------------------- scene accuracy

def by_attribute(answers: Sequence[Mapping[str, Any]], held_out: bool) -> dict[str, float] | None:
    """The share of photos drawn right in each attribute, over gold photos whose triple is (or is not) held out; None if there are none."""
    rows = [row for row in answers if row["scene"] and (tuple(row["scene"]["gold"][name] for name in CORE) in HELD_OUT) == held_out]
    return {name: sum(not wrong(row, [name]) for row in rows) / len(rows) for name in ATTRIBUTES} if rows else None


def scene_bars(answers: Mapping[int, Sequence[Mapping[str, Any]]], profile: str) -> Figure:
    """Scene accuracy by attribute, for triples met in training and for held-out ones; dots are single seeds."""
    counts = [sum(bool(row["scene"]) for row in rows) for rows in answers.values()]
    figure = Figure(8, 3.6, footer(profile, list(answers), f"{max(counts, default=0)} test photos a seed"))
    ax = figure.subplots()
    at = np.arange(len(ATTRIBUTES))
    kinds = ((False, BLUE, "triple met in training", -0.2), (True, ORANGE, "triple held out for the test", 0.2))
    for held_out, colour, label, shift in kinds:
        runs = [scores for rows in answers.values() if (scores := by_attribute(rows, held_out))]
        if runs:
            ax.bar(at + shift, [statistics.fmean(run[name] for run in runs) for name in ATTRIBUTES], 0.38, color=colour, label=label)
            for run in runs if len(runs) > 1 else ():
                ax.plot(at + shift, [run[name] for name in ATTRIBUTES], ".", color="black", markersize=4)
    ax.hlines([1 / len(values) for values in ATTRIBUTES.values()], at - 0.42, at + 0.42, color=VERMILLION, label="guessing subsample")
    ax.set_xticks(at, list(ATTRIBUTES))
    ax.set_ylim(0, 1.02)
    style_axes(ax, "Is it what it should be? Drawn photos, read by the scene reader", "", "share of gold photos")
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.1))
    return figure


def causes(answers: Sequence[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """For thing, colour and place, how many test photos are "right", not there ("no photo"), wrong because the model's own caption does not
    say what is meant ("wrong words"), or wrong though it does ("wrong drawing")."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in CORE}
    for row in (row for row in answers if row["scene"]):
        for name in CORE:
            counts[name][_cause(row, name)] += 1
    return counts


def _cause(row: Mapping[str, Any], name: str) -> str:
    if row["scene"]["drawn"] is None:
        return "no photo"
    if not wrong(row, [name]):
        return "right"
    return "wrong drawing" if re.search(rf"\b{row['scene']['gold'][name]}s?\b", row["caption"] or "") else "wrong words"


def cause_bars(answers: Mapping[int, Sequence[Mapping[str, Any]]], profile: str) -> Figure:
    """Where errors come from, all seeds together: the words of the caption, or the drawing of it."""
    counts = {name: sum((causes(rows)[name] for rows in answers.values()), Counter[str]()) for name in CORE}
    n = sum(counts["thing"].values())
    figure = Figure(8, 2.9, footer(profile, list(answers), f"{n} test photos, all seeds together"))
    ax = figure.subplots()
    left = np.zeros(len(CORE))
    for cause, colour in CAUSES.items():
        share = np.array([counts[name][cause] / max(1, n) for name in CORE])
        ax.barh(CORE, share, left=left, color=colour, label=cause)
        left += share
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    style_axes(ax, "Who made the error: the words or the drawing?", "share of gold photos", "")
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.22))
    return figure


def triple_map(triples: Sequence[tuple[str, str, str]], title: str, note: str) -> Figure:
    """How many photos show each (thing, colour, place), a panel a place; held-out triples are crossed."""
    counts = Counter(triples)
    figure = Figure(10, 5.2, note)
    axes = figure.subplots(2, 3, sharex=True, sharey=True).flat
    for ax, place in zip(axes, PLACES, strict=True):
        table = np.array([[counts[thing, colour, place] for thing in THINGS] for colour in COLOURS])
        image = ax.imshow(table, cmap="cividis", vmin=0, vmax=max(counts.values(), default=1), aspect="auto")
        crossed = [(x, y) for x, thing in enumerate(THINGS) for y, colour in enumerate(COLOURS) if (thing, colour, place) in HELD_OUT]
        for colour, width in (("black", 2.5), ("white", 1.0)):  # outlined, to be seen on any cell
            ax.plot(*zip(*crossed, strict=True), "x", color=colour, markersize=5, markeredgewidth=width)
        ax.set_title(place, fontsize=10)
        ax.set_xticks(range(len(THINGS)), THINGS, rotation=90, fontsize=8)
        ax.set_yticks(range(len(COLOURS)), COLOURS, fontsize=8)
    figure.colorbar(image, ax=figure.axes, label="photos", shrink=0.7, ticks=MaxNLocator(integer=True))
    figure.suptitle(escape_mathtext(title), fontsize=11, x=0.01, ha="left")
    return figure


# ------------------------------------------------------------------------------------------------------------ everything

def example_chat(answers: Sequence[Mapping[str, Any]], corpus: Path, profile: str, seed: int) -> Figure:
    """The first test context with a photo in it whose reply is due to share one too, and what the model answered."""
    dialogues, store, _ = load_split(corpus, "test")
    examples = {(example.dialogue_id, example.index): example for dialogue in dialogues for example in examples_of(dialogue)}
    pairs = [(example, row) for row in answers if (example := examples[row["dialogue_id"], row["index"]]).response.photo and row["image"]
             and any(turn.photo for turn in example.context)]
    if pairs:
        example, row = pairs[0]
        turns = [Turn(int(turn.speaker == example.response.speaker), turn.text, turn.photo) for turn in example.context]
        turns.append(Turn(1, row["text"], SharedPhoto("drawn", row["caption"])))
        return chat_figure(turns, lambda name: Image.open(row["image"]) if name == "drawn" else store.load(name),
                           names=("User", "Assistant"), heading="A test chat; the last turn is the model's own",
                           note=footer(profile, [seed], f"1 of {len(answers)} test responses, the first with photos both ways"))
    figure = Figure(6, 1.5, footer(profile, [seed], f"{len(answers)} test responses"))
    ax = figure.subplots()
    ax.axis("off")
    annotate_empty(ax, "in no test chat with a photo did the model share another")
    return figure


def draw_all(profile: str, seeds: Sequence[int], *, runs: Path = RUNS, data: Path = DATA, out: Path = FIGURES) -> list[Path]:
    """Draws every figure of a profile's runs into ``out``/<profile>, as PNG and PDF; returns the files.

    The corpus is the one the first seed was trained on. Raises ResultsError where a run or its answers are missing.
    """
    if not seeds:
        raise ResultsError("no seeds were given; figures need at least one trained run")
    logs, answers, first = read_logs(profile, seeds, runs), read_answers(profile, seeds, runs), seeds[0]
    corpus = corpus_of(profile, first, runs, data)
    made = {
        "losses": loss_curves(logs, profile), "temperature": temperature_curve(logs, profile),
        "gradient_norms": gradient_norms(logs, profile), "dev": dev_curves(logs, profile),
        "scene_accuracy": scene_bars(answers, profile), "errors": cause_bars(answers, profile),
        "gallery": gallery_pairs(answers[first], corpus, profile, first),
        "gallery_over_epochs": gallery_over_epochs(profile, first, corpus, runs),
        "chat": example_chat(answers[first], corpus, profile, first),
    }
    return [files.write_bytes(out / profile / f"{name}.{kind}", figure.to_bytes(kind))
            for name, figure in made.items() for kind in ("png", "pdf")]


def corpus_of(profile: str, seed: int, runs: Path = RUNS, data: Path = DATA) -> Path:
    """The corpus that a finished run was trained on. Raises ResultsError."""
    done = load_json(seed_folder(runs, profile, "end_to_end", seed) / "done.json")
    return folder_of(Data(**done["config"]["data"]), data)
