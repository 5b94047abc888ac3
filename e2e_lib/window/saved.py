"""Turns of a chat as HTML, in the window and in a file of their own, and a whole chat as JSON.

Whatever was typed, written by a model or given as a name is text: it is escaped here, and nowhere else does
text become markup.
"""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from e2e_lib.data.dialogue import SharedPhoto, Turn, clean_text
from e2e_lib.data.photo_input import decode_photo
from e2e_lib.repro import files
from e2e_lib.repro.files import ResultsError

SMALL, LARGE = 192, 320  # pixels that a small photo is enlarged to, and that a large one is shown in
NAMES = ("You", "Partner")
PhotoOf = Callable[[str], Image.Image]
MADE_BY = "e2e chat --web"
_CHAT = {"turns": [{"speaker": int, "text": str, "photos": [{"photo_id": str, "caption": str}]}],
         "photos": {"*": str}, "answered": [{"system": str, "temperature": int | float, "seed": int}]}
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>A chat with photos</title>
<style>
body {{ max-width: 42em; margin: 2em auto; padding: 0 1em; font-family: sans-serif; color: #111 }}
section {{ margin: .7em 0; padding: .5em .9em; border-radius: .8em; background: #eee; width: fit-content }}
section.partner {{ background: #d6ecfa; margin-left: auto }}
footer {{ color: #595959; font-size: 85% }}
</style>
</head>
<body>
<h1>A chat with photos</h1>
{turns}
<footer>{note}</footer>
</body>
</html>
"""


def base64_png(image: Image.Image) -> str:
    """An image as a PNG file in base64."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def photo_html(image: Image.Image, caption: str, owner: str, side: int = LARGE) -> str:
    """A photo at most ``side`` pixels large, its caption below if it has one; one of ``SMALL`` / 2 pixels or
    less is enlarged by whole pixels."""
    enlarged = max(image.size) <= min(SMALL, side) // 2
    scale = min(SMALL, side) // max(image.size) if enlarged else min(1, side / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    if scale < 0.5:
        image = image.resize((2 * width, 2 * height))  # two points a pixel, for sharp screens
    alt = html.escape(caption or f"a photo that {owner.lower()} shared")
    style = f"border-radius:8px;max-width:100%;{'image-rendering:pixelated' if enlarged else ''}"
    below = f"<figcaption>“{html.escape(caption)}”</figcaption>" if caption else ""
    return (f'<figure style="margin:4px 0"><img alt="{alt}" width="{width}" height="{height}" '
            f'style="{style}" src="data:image/png;base64,{base64_png(image)}">{below}</figure>')


def turn_html(turn: Turn, photo_of: PhotoOf) -> str:
    """What was said in a turn: the text, then the photos."""
    words = f'<div style="overflow-wrap:anywhere">{html.escape(turn.text)}</div>' if turn.text else ""
    photos = [photo_html(photo_of(photo.photo_id), photo.caption, NAMES[turn.speaker])
              for photo in turn.photos]
    shown = f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(photos)}</div>' if photos else ""
    return (words + shown) or "<i>(says nothing)</i>"


def chat_page(turns: Sequence[Turn], photo_of: PhotoOf, note: str) -> str:
    """A chat as a page that needs no other file; ``note`` says below what answered."""
    parts = [f'<section class="{NAMES[turn.speaker].lower()}"><b>{NAMES[turn.speaker]}</b>'
             f"{turn_html(turn, photo_of)}</section>" for turn in turns]
    return _PAGE.format(turns="\n".join(parts), note=html.escape(note))


def chat_json(turns: Sequence[Turn], photos: Mapping[str, Image.Image],
              answered: Sequence[Mapping[str, Any]]) -> str:
    """A chat as JSON, as ``read_chat`` reads it: "turns", "photos" (PNG in base64, by photo id) and
    "answered" (the settings of each answer, in order)."""
    shared = {photo.photo_id for turn in turns for photo in turn.photos}
    chat = {"turns": [dataclasses.asdict(turn) for turn in turns], "answered": list(answered),
            "photos": {name: base64_png(photos[name]) for name in photos if name in shared}}
    return json.dumps(chat, ensure_ascii=False, indent=1) + "\n"


def read_chat(path: Path | str) -> tuple[list[Turn], dict[str, Image.Image]]:
    """The turns of a saved chat, and its photos by their ids: what a ``ChatPartner`` needs to go on with it.

    Raises ResultsError for a file that is missing, damaged or no chat.
    """
    chat = files.read_json(path, MADE_BY, _CHAT)
    turns, photos = [], {}
    for number, row in enumerate(chat["turns"], 1):
        if row["speaker"] not in (0, 1):
            raise ResultsError(f"{path}: field 'turns', row {number}, field 'speaker': expected 0 or 1, "
                               f"found {row['speaker']!r}; save the chat again with `{MADE_BY}`")
        turns.append(Turn(row["speaker"], clean_text(row["text"]),
                          tuple(SharedPhoto(**photo) for photo in row["photos"])))
    for name in (photo.photo_id for turn in turns for photo in turn.photos):
        try:
            content = base64.b64decode(chat["photos"].get(name, ""), validate=True)
            photos[name] = decode_photo(io.BytesIO(content), f"photo {name!r}")
        except ValueError as error:  # PhotoError, too
            raise ResultsError(f"{path}: field 'photos.{name}': {error}; save the chat again with "
                               f"`{MADE_BY}`") from None
    return turns, photos
