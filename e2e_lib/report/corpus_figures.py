"""Figures of dialogue corpora: how long messages are, when photos are shared, what captions say, and what
became of the photos' addresses (section 3.1.1). Titles say what was found."""

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from e2e_lib.data.dialogue import Dialogue
from e2e_lib.data.photo_index import PASSING
from e2e_lib.download.report import MEANINGS
from e2e_lib.report import plots
from e2e_lib.report.plots import Figure, annotate_empty, escape_mathtext

Corpora = Mapping[str, Sequence[Dialogue]]  # a corpus's name in figures: its dialogues
COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN)
SMALL_WORDS = frozenset("a an and are at by for from he her his i in into is it its of on or she some that "
                        "the their there they this to was we were with you".split())
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def turn_frame(corpora: Corpora) -> pd.DataFrame:
    """One row per turn that has text: corpus and words (separated by blanks)."""
    return pd.DataFrame([(name, len(turn.text.split())) for name, dialogues in corpora.items()
                         for dialogue in dialogues for turn in dialogue.turns if turn.text],
                        columns=["corpus", "words"]).astype({"words": int})


def sharing_frame(corpora: Corpora) -> pd.DataFrame:
    """One row per turn that shares photos: corpus, and its place, from 0 (first turn) to 1 (last turn).

    The only turn of a dialogue has place 0.
    """
    return pd.DataFrame([(name, i / max(1, len(dialogue.turns) - 1)) for name, dialogues in corpora.items()
                         for dialogue in dialogues for i, turn in enumerate(dialogue.turns) if turn.photos],
                        columns=["corpus", "place"]).astype({"place": float})


def caption_frame(corpora: Corpora, most: int) -> pd.DataFrame:
    """The ``most`` frequent words of each corpus's captions: corpus, word (in lower case), and share of the
    captions that have it once or more. ``SMALL_WORDS`` are left out; words of equal frequency stand in the
    order of the alphabet."""
    rows = []
    for name, dialogues in corpora.items():
        captions = [photo.caption for dialogue in dialogues for photo in dialogue.photos]
        words = (set(_WORD.findall(caption.lower())) - SMALL_WORDS for caption in captions)
        counts = Counter(word for of_caption in words for word in of_caption)
        rows += [(name, word, count / len(captions))
                 for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]
    return pd.DataFrame(rows, columns=["corpus", "word", "share"])


def turn_lengths(corpora: Corpora, note: str) -> Figure:
    """The share of messages with at most so many words."""
    return _shares(turn_frame(corpora), "words", "Half of the messages are no longer than",
                   lambda half: f"{half:g} word" + "s" * (half != 1), "words in a message",
                   "share of messages", note)


def sharing_moments(corpora: Corpora, note: str) -> Figure:
    """The share of photos that were shared by some point of a chat."""
    finding = "Half of the photos have come by this point of the chat:"
    figure = _shares(sharing_frame(corpora), "place", finding, "{:.0%}".format,
                     "place in the chat: 0 is the first turn, 1 the last", "share of turns with photos", note)
    figure.axes[0].set_xlim(-0.02, 1.02)
    return figure


def _shares(frame: pd.DataFrame, column: str, finding: str, said: Callable[[float], str], x: str, y: str,
            note: str) -> Figure:
    """Cumulated shares of ``column``, a line per corpus; the title has each one's median."""
    figure = Figure(8, 3.4, note)
    ax = figure.subplots()
    halves = frame.groupby("corpus", sort=False)[column].quantile(0.5, interpolation="lower")
    found = ", ".join(f"{said(half)} in {name}" for name, half in halves.items())
    _styled(ax, f"{finding} {found}" if len(frame) else "There is nothing to count", x, y)
    if frame.empty:
        annotate_empty(ax, "nothing to count")
        return figure
    sns.ecdfplot(frame, x=column, hue="corpus", palette=list(COLOURS[:len(halves)]), ax=ax)
    ax.axhline(0.5, color=plots.GREY, linewidth=0.8, linestyle=":")
    ax.set(xlabel=x, ylabel=y)
    sns.move_legend(ax, "lower right", title="", frameon=False)
    return figure


def caption_words(corpora: Corpora, note: str, most: int = 12) -> Figure:
    """The most frequent words of captions, a panel per corpus."""
    frame = caption_frame(corpora, most)
    figure = Figure(9, 1.4 + 0.22 * most, f"{note} · without small words such as “the”")
    axes = figure.subplots(1, len(corpora), squeeze=False).ravel()
    for ax, name, colour in zip(axes, corpora, COLOURS, strict=False):
        group = frame[frame.corpus == name]
        if group.empty:
            annotate_empty(ax, "no captions")
            continue
        sns.barplot(group.assign(word=group.word.map(escape_mathtext)), x="share", y="word", color=colour,
                    saturation=1, ax=ax)
        first = group.iloc[0]
        title = f"{name}: “{first.word}” is in {first.share:.0%} of the captions"
        _styled(ax, title, "share of captions", "", 30)
        ax.tick_params(labelsize=8)
    return figure


def address_figure(visits: Mapping[str, Mapping[str, int]], note: str) -> Figure:
    """How many addresses have which status after each of the ``visits`` (its name: statuses)."""
    frame = pd.DataFrame([(name, status, count) for name, counts in visits.items()
                          for status, count in counts.items()], columns=["visit", "status", "addresses"])
    figure = Figure(8.5, 1.4 + 0.4 * max(2, frame.status.nunique()), note)
    ax = figure.subplots()
    figure.suptitle(textwrap.fill(address_finding(visits), 105), fontsize=10, x=0.01, ha="left")
    plots.style_axes(ax, "", "addresses", "")
    if frame.empty:
        annotate_empty(ax, "no photo was asked for yet")
        return figure
    order = [status for status in MEANINGS if status in set(frame.status)]
    frame["label"] = [f"{status}: {MEANINGS[status]}" for status in frame.status]
    sns.barplot(frame, x="addresses", y="label", hue="visit", order=[f"{s}: {MEANINGS[s]}" for s in order],
                palette=list(COLOURS[:len(visits)]), saturation=1, ax=ax)
    for bars in ax.containers:
        if isinstance(bars, BarContainer):
            ax.bar_label(bars, fontsize=8, padding=2)
    ax.set(xlabel="addresses", ylabel="")
    ax.set_yticks(ax.get_yticks(), [textwrap.fill(label.get_text(), 44) for label in ax.get_yticklabels()],
                  fontsize=8)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def address_finding(visits: Mapping[str, Mapping[str, int]]) -> str:
    """One sentence: how many addresses gave a photo, and what asking again brought."""
    if not visits or not any(visits.values()):
        return "Nothing is known of these addresses yet"
    first, last = list(visits.values())[0], list(visits.values())[-1]
    total, photos = sum(first.values()), first.get("ok", 0)
    if len(visits) == 1:
        return f"{photos:,} of {total:,} addresses gave a photo"
    passing, more = sum(first.get(status, 0) for status in PASSING), last.get("ok", 0) - photos
    return (f"{photos:,} of {total:,} addresses gave a photo at once; asking {passing:,} again that had "
            f"failed for a passing reason brought {more:,} more")


def _styled(ax: Axes, title: str, x: str, y: str, width: int = 92) -> None:
    plots.style_axes(ax, textwrap.fill(title, width), x, y)
