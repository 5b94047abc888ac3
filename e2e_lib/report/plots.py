"""What notebooks show: figures with a footer, photo grids, chats as bubbles, tokens as chips, tables.

Functions return a Figure (a matplotlib Figure), an Html or a Markdown, which notebooks show as they are.
Colours are Okabe and Ito's, for colour-blind readers. All text of datasets and models is escaped.
"""

import base64
import html
import io
import math
import os
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from e2e_lib.data.dialogue import Dialogue, Turn
from e2e_lib.data.photo_input import open_photo

ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, GREY, BLACK = "#D55E00", "#CC79A7", "#777777", "#222222"

# A system, and a vocabulary map: its name in figures and its colour.
STYLES = {"end_to_end": ("End-to-end", BLUE), "end_to_end_aligned": ("End-to-end, aligned", VERMILLION),
          "pipeline": ("Pipeline", PURPLE), "divter": ("Divter", GREEN)}
MAP_STYLES = {"static_piece": ("static, by piece (Eq. 8)", SKY), "static_word": ("static, by word", BLUE),
              "sentence": ("sentence (Eq. 10)", VERMILLION), "word": ("word", ORANGE),
              "span": ("span", GREEN), "aligned": ("aligned", BLACK),
              "aligned_shuffled": ("aligned, shuffled words", GREY),
              "aligned_random": ("aligned, words shuffled anew per batch", GREY),
              "all": ("no map needed", PURPLE)}
# A gradient estimator: its name in figures, its colour and its marker.
ESTIMATOR_STYLES = {
    "straight_through": ("straight-through argmax", GREY, "x"), "decoupled": ("decoupled", SKY, "v"),
    "gumbel": ("straight-through Gumbel", VERMILLION, "o"), "gumbel_rao": ("Gumbel-Rao", ORANGE, "s"),
    "soft": ("soft", GREEN, "^"), "reinmax": ("ReinMax", BLUE, "D"),
    "reinforce": ("REINFORCE, leave-one-out", PURPLE, "*")}
PhotoOf = Callable[[str], Image.Image]  # a photo id to its image, such as PhotoStore.load


def style_of(name: str) -> tuple[str, str]:
    """Label and colour of a system, or of a variant of joint training, which has the colour of its map."""
    colour = MAP_STYLES.get(name, MAP_STYLES.get(name.partition("_")[0], ("", PURPLE)))[1]
    return STYLES.get(name, (name.replace("_", " ") + " (Eq. 10)" * (name == "sentence"), colour))


class Html(str):
    """HTML that a notebook shows as such."""

    _repr_html_ = str.__str__


class Markdown(str):
    """Markdown that a notebook shows as such."""

    _repr_markdown_ = __repr__ = str.__str__


class Figure(matplotlib.figure.Figure):
    """A Figure that notebooks show as PNG whatever backend is active; ``note`` says profile, N and seeds."""

    def __init__(self, width: float, height: float, note: str = "") -> None:
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        FigureCanvasAgg(self)
        if note:
            text = escape_mathtext(note, round(16 * width))
            self.supxlabel(text, x=0.01, ha="left", fontsize=8, color="#555555")

    def alternative_text(self) -> str:
        """The figure's titles and its footer, for those who cannot see it."""
        titles = [ax.get_title(place) for ax in self.axes for place in ("left", "center")]
        note = self.get_supxlabel()
        texts = [text.get_text() for text in self.texts if text.get_text() != note]
        words = [" ".join(text.split()) for text in (*texts, *titles, note)]
        return " · ".join(dict.fromkeys(filter(None, words)))

    def to_bytes(self, kind: str) -> bytes:
        """The figure as "png" or "pdf"; the same figure gives the same bytes: no date is written into it."""
        out = io.BytesIO()
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            undated = {"Software": None} if kind == "png" else {"CreationDate": None, "Producer": None}
            self.savefig(out, format=kind, dpi=120, metadata=undated)
        return out.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return self.to_bytes("png"), {"alt": self.alternative_text()}


def escape_mathtext(text: str, width: int = 0) -> str:
    """Text for matplotlib: dollar signs are no formulas. Wrapped at ``width`` characters if not 0."""
    wrapped = "\n".join(textwrap.wrap(text, width)) if width else text
    return wrapped.replace("$", r"\$")


def footer(profile: str, seeds: Sequence[int], n: str) -> str:
    """What stands below every figure: the profile, ``n`` in words, and the training seeds."""
    return f"profile {profile} · N = {n} · seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def style_axes(ax: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels with units, a faint grid and no frame."""
    ax.set_title(escape_mathtext(title), fontsize=10, loc="left")
    ax.set(xlabel=x, ylabel=y)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def legend_on_the_right(figure: Figure) -> None:
    """One legend for all panels, outside them; each label once."""
    panels = [zip(*ax.get_legend_handles_labels(), strict=True) for ax in figure.axes]
    handles = {label: handle for panel in panels for handle, label in panel}
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize=8)


def heat_map(ax: Axes, frame: pd.DataFrame, title: str, texts: pd.DataFrame | None = None,
             **options: Any) -> Any:
    """Numbers as colours, with ``texts`` in the cells, by default from purple over white to orange.

    ``options`` are those of ``seaborn.heatmap``. Returns the artist that a colour bar is made for.
    """
    escaped = frame.rename(index=lambda key: escape_mathtext(str(key)),
                           columns=lambda key: escape_mathtext(str(key)))
    sns.heatmap(escaped, ax=ax, annot=texts, fmt="", annot_kws={"fontsize": 8}, xticklabels=True,
                yticklabels=True, linewidths=0.5, linecolor="#dddddd",
                **{"cmap": "PuOr_r", "cbar": False, **options})
    ax.set(xlabel="", ylabel="")
    ax.set_title(escape_mathtext(title), fontsize=10, loc="left")
    ax.tick_params("x", rotation=90)
    ax.tick_params("y", rotation=0)
    return ax.collections[0]


def annotate_empty(ax: Axes, text: str) -> None:
    """Says in the middle of a panel why there is nothing in it."""
    ax.text(0.5, 0.5, escape_mathtext(text, 40), transform=ax.transAxes, ha="center", va="center", fontsize=9,
            color=GREY)


def photo_grid(images: Sequence[Any], titles: Sequence[str], *, columns: int = 6, heading: str = "",
               note: str = "", colours: Sequence[str] | None = None, side: float = 1.4,
               wrap: int = 24) -> Figure:
    """Photos (PIL images, arrays, files; None: not drawn), ``side`` inches wide, titles above. Raises
    PhotoError for a file that is no photo."""
    lines = max((len(textwrap.wrap(title, wrap)) for title in titles), default=1)
    rows, gap, above = max(1, math.ceil(len(images) / columns)), 0.15, 0.15 + 0.13 * lines  # inches
    head, foot = 0.1 + 0.25 * bool(heading), 0.05 + 0.3 * bool(note)
    width, height = columns * (side + gap) + 0.1, head + rows * (side + above) + foot
    figure = Figure(width, height, note)
    figure.set_layout_engine("none")  # photos have their places; a layout engine would take most of the time
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={
        "left": 0.1 / width, "right": 1 - gap / width, "bottom": foot / height,
        "top": 1 - (head + above) / height, "wspace": gap / side, "hspace": above / side}).ravel()
    for ax in axes:
        ax.axis("off")
    empty, colours = np.full((64, 64, 3), 242, np.uint8), colours or ["black"] * len(images)
    for ax, image, title, colour in zip(axes, images, titles, colours, strict=False):
        photo = open_photo(image) if isinstance(image, Path) else image
        ax.imshow(empty if photo is None else np.asarray(photo), interpolation="nearest")
        annotate_empty(ax, "no photo" if photo is None else "")
        ax.set_title(escape_mathtext(title, wrap), fontsize=7.5, color=colour)
    figure.text(0.1 / width, 1 - 0.2 / height, escape_mathtext(heading), fontsize=11, va="center")
    return figure


def image_tag(image: Image.Image, side: int = 128, alt: str = "photo") -> str:
    """An <img> with the photo inside it, enlarged without blurring."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    return (f'<img alt="{html.escape(alt)}" width="{side}" height="{side}" src="{source}" '
            'style="image-rendering:pixelated;border-radius:8px">')


def chat_html(turns: Sequence[Turn], photo_of: PhotoOf, *, names: tuple[str, str] = ("A", "B"),
              note: str = "") -> Html:
    """A chat as bubbles, speaker 0 on the left, photos above their captions; readable without styles too."""
    lines = []
    for turn in turns:
        body = [html.escape(turn.text)] if turn.text else []
        for photo in turn.photos:
            body.append(image_tag(photo_of(photo.photo_id), alt=photo.caption or "photo"))
            body.append(f"<i style='font-size:85%'>“{html.escape(photo.caption)}”</i>")
        side, colour = ("left", "#eeeeee") if turn.speaker == 0 else ("right", "#d6ecfa")
        style = (f"display:inline-block;max-width:85%;text-align:left;color:#111;background:{colour};"
                 "border-radius:12px;padding:5px 9px")
        lines.append(f'<div style="text-align:{side};margin:3px 0"><div style="{style}">'
                     f'<b>{html.escape(names[turn.speaker])}:</b> {"<br>".join(body)}</div></div>')
    if note:
        lines.append(f'<p style="margin:4px 0;color:#777;font-size:80%">{html.escape(note)}</p>')
    return Html(f'<div style="max-width:640px;font-size:13px">{"".join(lines)}</div>')


def chats_html(dialogues: Sequence[Dialogue], photo_of: PhotoOf) -> Html:
    """Dialogues side by side, two in a row, each with its id below."""
    style = "width:46%;min-width:260px;border:1px solid #ddd;border-radius:10px;padding:8px"
    chats = (chat_html(dialogue.turns, photo_of, note=dialogue.dialogue_id) for dialogue in dialogues)
    cells = "".join(f'<div style="{style}">{chat}</div>' for chat in chats)
    return Html(f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cells}</div>')


def tokens_html(rows: Mapping[str, Sequence[str]],
                marked: Mapping[str, Sequence[bool]] | None = None) -> Html:
    """Named rows of tokens as chips; those marked are coloured and bold."""
    out = []
    for name, tokens in rows.items():
        flags = (marked or {}).get(name) or [False] * len(tokens)
        style = "color:#111;padding:1px 4px;border-radius:4px;background:"
        texts = [f"<b>{html.escape(token)}</b>" if flag else html.escape(token)
                 for token, flag in zip(tokens, flags, strict=True)]
        chips = [f'<code style="{style}{"#ffd9a0" if flag else "#eeeeee"}">{text}</code>'
                 for text, flag in zip(texts, flags, strict=True)]
        out.append(f'<p style="line-height:1.9"><b>{html.escape(name)}</b> ({len(tokens)} tokens)<br>'
                   f'{" ".join(chips)}</p>')
    return Html("\n".join(out))


def sides(texts: pd.DataFrame) -> list[str]:
    """ "right" for a column of numbers (no text of it has a letter), "left" for every other."""
    return ["left" if texts[column].str.contains(r"[^\W\d_]").any() else "right" for column in texts]


def markdown(frame: pd.DataFrame, note: str = "") -> Markdown:
    """A table as Markdown, without its index, a note below.

    Whole numbers have thousands separators, floats three decimals; "–" stands where there is nothing.
    """
    def text(value: Any) -> str:
        if value is None or isinstance(value, float) and math.isnan(value):
            return "–"
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        return f"{value:z,.3f}" if isinstance(value, float) else f"{value:,}" if number else str(value)
    texts = frame.astype(object).map(text)
    escaped = texts.map(lambda text: html.escape(text, quote=False).replace("|", r"\|").replace("\n", " "))
    page = escaped.to_markdown(index=False, disable_numparse=True, colalign=sides(texts))
    return Markdown(f"{page}\n\n{note}" if note else page)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """Rows under ``headings`` as a Markdown table."""
    return markdown(pd.DataFrame([list(row) for row in rows], columns=list(headings), dtype=object))


def quiet() -> None:
    """Keeps progress bars and warnings of the libraries out of a notebook's saved output, and in it the
    alternative texts of figures, which matplotlib's own display, once something wakes it, would drop."""
    if shell := get_ipython():
        shell.display_formatter.formatters["image/png"].for_type(Figure, Figure._repr_png_)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    import diffusers
    import transformers
    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
