"""What notebooks show: plots with a footer, photo grids, chats as bubbles, tokens as chips, tables.

Each function returns a Figure (a matplotlib Figure), an Html or a Markdown, which notebooks show as they are. Colours are Okabe and
Ito's, which colour-blind readers can tell apart. All text of datasets and models is escaped.
"""

import base64
import html
import io
import math
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath
from PIL import Image

from e2e_lib.data.dialogue import Dialogue, Turn
from e2e_lib.report import tables
from e2e_lib.repro.results import METRICS

ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE, GREY = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#777777"

# System: its name in figures and its colour.
STYLES = {name: (tables.SYSTEMS[name], colour) for name, colour in (("end_to_end", BLUE), ("pipeline", PURPLE), ("divter", GREEN))}


class Html(str):
    """HTML that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)


class Markdown(str):
    """Markdown that a notebook shows as such."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


class Figure(Figure):
    """A Figure that a notebook shows as PNG whatever backend is active; ``note`` says profile, N and seeds in its footer."""

    def __init__(self, width: float, height: float, note: str = "") -> None:
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        FigureCanvasAgg(self)
        if note:
            self.supxlabel(escape_mathtext(note), x=0.01, ha="left", fontsize=8, color="#555555")

    def to_bytes(self, kind: str) -> bytes:
        """The figure as "png" or "pdf"; the same figure gives the same bytes, since no date is written into it."""
        out = io.BytesIO()
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            undated = {"Software": None} if kind == "png" else {"CreationDate": None, "Producer": None}
            self.savefig(out, format=kind, dpi=120, metadata=undated)
        return out.getvalue()

    def _repr_png_(self) -> bytes:
        return self.to_bytes("png")


def escape_mathtext(text: str, width: int = 0) -> str:
    """Text as matplotlib is to show it: dollar signs are no formulas. Wrapped at ``width`` characters if that is above 0."""
    wrapped = "\n".join(textwrap.wrap(text, width)) if width else text
    return wrapped.replace("$", r"\$")


def footer(profile: str, seeds: Sequence[int], n: str) -> str:
    return f"profile {profile} · N = {n} · seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def style_axes(ax: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels with units, a faint grid and no frame."""
    ax.set_title(escape_mathtext(title), fontsize=10, loc="left")
    ax.set(xlabel=x, ylabel=y)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def annotate_empty(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, escape_mathtext(text, 40), transform=ax.transAxes, ha="center", va="center", fontsize=9, color=GREY)


def photo_grid(images: Sequence[Any], titles: Sequence[str], *, columns: int = 6, heading: str = "", note: str = "",
               colours: Sequence[str] | None = None, side: float = 1.4, wrap: int = 24) -> Figure:
    """Photos (PIL images, arrays or files) at their own pixels, enlarged, with titles above; None stands for a photo that was not drawn."""
    lines = max((len(textwrap.wrap(title, wrap)) for title in titles), default=1)
    head, high = 0.1 + 0.25 * bool(heading), side + 0.15 + 0.13 * lines  # inches
    width, height = columns * (side + 0.15) + 0.1, head + max(1, math.ceil(len(images) / columns)) * high + 0.3 * bool(note)
    figure = Figure(width, height, note)
    figure.set_layout_engine("none")  # every photo has its place; working it out would take most of the time
    for i, (image, title, colour) in enumerate(zip(images, titles, colours or ["black"] * len(images), strict=True)):
        left, top = 0.1 + i % columns * (side + 0.15), head + (i // columns + 1) * high
        ax = figure.add_axes((left / width, 1 - top / height, side / width, side / height))
        ax.axis("off")
        if image is None:
            ax.imshow(np.full((64, 64, 3), 242, np.uint8))
            annotate_empty(ax, "no photo")
        else:
            ax.imshow(np.asarray(Image.open(image) if isinstance(image, Path) else image), interpolation="nearest")
        ax.set_title(escape_mathtext(title, wrap), fontsize=7.5, color=colour)
    if not images:
        ax = figure.add_axes((0, 0, 1, 1))
        ax.axis("off")
        annotate_empty(ax, "nothing to show")
    if heading:
        figure.text(0.1 / width, 1 - 0.2 / height, escape_mathtext(heading), fontsize=11, va="center")
    return figure


# ---------------------------------------------------------------------------------------------------------------- chats

PhotoOf = Callable[[str], Image.Image]  # a photo id to its image, such as PhotoStore.load
_LINE, _PAD, _PHOTO = 0.2, 0.1, 1.28  # inches: a line of text, the space around it, a photo of 64 pixels at 50 a inch


def _bubble(turn: Turn) -> tuple[list[str], list[str], float, float]:
    """A turn's lines of text, the lines of its photo's caption, and the width and height of its bubble in inches."""
    text = textwrap.wrap(turn.text, 46)
    caption = textwrap.wrap(f"“{turn.photo.caption}”", 40) if turn.photo and turn.photo.caption else []
    widths = [TextPath((0, 0), escape_mathtext(line), size=10).get_extents().width / 72 for line in text]
    widths += [TextPath((0, 0), escape_mathtext(line), size=8).get_extents().width / 72 for line in caption] + [_PHOTO] * bool(turn.photo)
    height = _LINE * len(text) + bool(turn.photo) * (_PHOTO + 0.04) + 0.16 * len(caption) + 2 * _PAD + 0.06 * bool(text and turn.photo)
    return text, caption, max(widths, default=0.3) + 2 * _PAD + 0.06, height


def chat_figure(turns: Sequence[Turn], photo_of: PhotoOf, *, names: tuple[str, str] = ("you", "partner"), me: int = 0, heading: str = "",
                note: str = "", width: float = 7.0) -> Figure:
    """A chat as a messenger shows it: the turns of speaker ``me`` on the right, photos inline with their captions below them."""
    bubbles = [_bubble(turn) for turn in turns]
    tops, y = [], 0.45 * bool(heading) + 0.1
    for turn, (_, _, _, height), before in zip(turns, bubbles, [None, *turns], strict=False):
        y += 0.24 if before is None or before.speaker != turn.speaker else 0.06
        tops.append(y)
        y += height
    figure = Figure(width, y + 0.15 + 0.25 * bool(note))
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(y + 0.15 + 0.25 * bool(note), 0))
    ax.axis("off")
    for turn, top, (text, caption, wide, high), before in zip(turns, tops, bubbles, [None, *turns], strict=False):
        mine = turn.speaker == me
        left = width - 0.25 - wide if mine else 0.25
        ax.add_patch(FancyBboxPatch((left + 0.08, top + 0.08), wide - 0.16, high - 0.16, boxstyle="round,pad=0.08,rounding_size=0.12",
                                    facecolor="#d6ecfa" if mine else "#eeeeee", edgecolor="none"))
        if before is None or before.speaker != turn.speaker:
            ax.text(left + wide - 0.05 if mine else left + 0.05, top - 0.04, escape_mathtext(names[turn.speaker]), fontsize=7.5, color=GREY,
                    ha="right" if mine else "left", va="bottom")
        y = top + _PAD
        for line in text:
            ax.text(left + _PAD, y + _LINE / 2, escape_mathtext(line), fontsize=10, va="center")
            y += _LINE
        if turn.photo:
            y += 0.06 * bool(text)
            ax.imshow(np.asarray(photo_of(turn.photo.photo_id)), interpolation="nearest", zorder=3,
                      extent=(left + _PAD, left + _PAD + _PHOTO, y + _PHOTO, y))
            y += _PHOTO + 0.04
        for line in caption:
            ax.text(left + _PAD, y + 0.08, escape_mathtext(line), fontsize=8, style="italic", color="#444444", va="center")
            y += 0.16
    ax.set(xlim=(0, width), ylim=(figure.get_figheight(), 0), aspect="auto")  # imshow changes both
    if heading:
        ax.text(0.25, 0.25, escape_mathtext(heading), fontsize=11, va="center")
    if note:
        ax.text(0.25, figure.get_figheight() - 0.15, escape_mathtext(note), fontsize=8, color="#555555", va="center")
    return figure


def image_tag(image: Image.Image, side: int = 128) -> str:
    """An <img> with the photo inside it, enlarged without blurring."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    data = base64.b64encode(out.getvalue()).decode()
    style = "image-rendering:pixelated;border-radius:8px"
    return f'<img alt="photo" width="{side}" height="{side}" style="{style}" src="data:image/png;base64,{data}">'


def chat_html(dialogue: Dialogue, photo_of: PhotoOf) -> str:
    """One dialogue as bubbles, speaker 0 on the left; readable without its styles too."""
    lines = [f'<p style="margin:4px 0;color:#777;font-size:80%">{html.escape(dialogue.dialogue_id)}</p>']
    for turn in dialogue.turns:
        body = [html.escape(turn.text)]
        if turn.photo:
            body += [image_tag(photo_of(turn.photo.photo_id)), f"<i style='font-size:85%'>“{html.escape(turn.photo.caption)}”</i>"]
        side, colour = ("left", "#eeeeee") if turn.speaker == 0 else ("right", "#d6ecfa")
        style = f"display:inline-block;max-width:85%;text-align:left;color:#111;background:{colour};border-radius:12px;padding:5px 9px"
        lines.append(f'<div style="text-align:{side};margin:3px 0"><div style="{style}"><b>{"AB"[turn.speaker]}:</b> '
                     f'{"<br>".join(body)}</div></div>')
    return "\n".join(lines)


def chats_html(dialogues: Sequence[Dialogue], photo_of: PhotoOf) -> Html:
    """Dialogues side by side, two in a row."""
    cells = [f'<div style="width:46%;min-width:260px;border:1px solid #ddd;border-radius:10px;padding:8px">{chat_html(d, photo_of)}</div>'
             for d in dialogues]
    return Html('<div style="display:flex;flex-wrap:wrap;gap:12px;font-size:13px">' + "".join(cells) + "</div>")


def tokens_html(rows: Mapping[str, Sequence[str]], marked: Mapping[str, Sequence[bool]] | None = None) -> Html:
    """Named rows of tokens as chips; those marked are coloured."""
    out = []
    for name, pieces in rows.items():
        flags = (marked or {}).get(name) or [False] * len(pieces)
        style = "color:#111;padding:1px 4px;border-radius:4px;background:"
        chips = [f'<code style="{style}{"#ffd9a0" if flag else "#eeeeee"}">{html.escape(piece)}</code>'
                 for piece, flag in zip(pieces, flags, strict=True)]
        out.append(f'<p style="line-height:1.9"><b>{html.escape(name)}</b> ({len(pieces)} tokens)<br>{" ".join(chips)}</p>')
    return Html("\n".join(out))


# --------------------------------------------------------------------------------------------------------------- tables

def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """A Markdown table; numbers are right-aligned and written with thousands separators, floats with three decimals."""
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.3f}"
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "–" if value is None else str(value)
        return html.escape(text, quote=False).replace("|", r"\|").replace("\n", " ")
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(re.fullmatch(r"[-–\d.,± ]+", row[i]) for row in cells) for i in range(len(headings))]
    lines = [headings, ["--:" if right else ":--" for right in numeric], *cells]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def scores_table(summary: Mapping[str, Any]) -> Markdown:
    """Our scores, a row a metric and a column a system that ran: mean ± sample standard deviation over seeds, and what each metric means."""
    scores = tables.by_metric(summary)
    rows = [(*row, better, meaning) for row, (_, better, meaning) in zip(scores.to_numpy(), METRICS.values(), strict=True)]
    note = html.escape(f"{tables.note(summary)} {tables.legend(scores)}", quote=False)
    return Markdown(f"{table([*scores, 'better', 'what it is'], rows)}\n\n{note}")


def table2_markdown(summary: Mapping[str, Any], published: Mapping[str, Any]) -> Markdown:
    """Our scores and, below and never in the same column, the paper's own table."""
    return Markdown(f"**This repository, profile {summary['profile']}, on MiniChat**\n\n{scores_table(summary)}\n\n"
                    f"**The paper's own numbers, on PhotoChat and DialogCC** ({published['source']})\n\n{published_table(published)}\n\n"
                    "Other data, other sizes, other features: the two tables do not compare.")


def published_table(published: Mapping[str, Any]) -> Markdown:
    """Table 1 or 2 of the paper, as ``results.published`` reads it, with the paper's own two decimals (IS as it stands there)."""
    printed = tables.published_table(published)
    return table(list(printed), printed.to_numpy().tolist())


def table1_markdown(splits: Mapping[str, Mapping[str, Any]], profile: str, published: Mapping[str, Any]) -> Markdown:
    """Table 1 for our corpus and, below it, the paper's."""
    columns = [key for key in published["columns"] if key not in ("dataset", "split")]
    headings = [f"MiniChat (profile {profile})", *(published["columns"][key] for key in columns)]
    ours = table(headings, [[name, *(row[key] for key in columns)] for name, row in splits.items()])
    return Markdown(f"**Our corpus, profile {profile}**\n\n{ours}\n\n**The paper's corpora** ({published['source']})\n\n"
                    f"{published_table(published)}")


def pretraining_table(reached: Mapping[str, Any]) -> Markdown:
    """What the shipped parts reach on unseen data."""
    n = reached["n"]
    names = list(reached["scene_reader"])
    rows: list[tuple[Any, ...]] = [("autoencoder", *[None] * len(names), float(reached["autoencoder_psnr_db"]), n["autoencoder_psnr_db"])]
    for label, scores, key in (("scene reader, real photos", reached["scene_reader"], "scene_reader"),
                               ("photo → words through the perceptron", reached["perceptron"], "perceptron"),
                               ("drawn from gold captions, triples met", reached["drawn_from_gold"]["seen"], "drawn_from_gold"),
                               ("drawn from gold captions, triples held out", reached["drawn_from_gold"]["unseen"], "drawn_from_gold"),
                               ("drawn from captions that tell everything", reached["drawn_from_everything"], "drawn_from_everything")):
        rows.append((label, *(float(scores[name]) if name in scores else None for name in names), None, n[key]))
    return table(["part", *names, "PSNR (dB)", "N"], rows)


def quiet() -> None:
    """Keeps progress bars and warnings of the libraries out of a notebook's saved output."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    import diffusers
    import transformers
    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
