"""Photos that somebody chooses, drops or pastes in a window."""

import io
from collections.abc import Callable
from typing import Any

import panel as pn
from PIL import Image

from e2e_lib.data.photo_input import PhotoError, decode_photo

MAX_BYTES = 10_000_000  # a photo's file; its pixels are limited by `photo_input.MAX_PIXELS`
KEPT_SIDE = 1024  # pixels; models read at most half of that, and a chat keeps its photos in memory


def opened(name: str, content: bytes) -> Image.Image:
    """A photo's file as an RGB image of at most ``KEPT_SIDE`` pixels a side. Raises PhotoError."""
    where = f"“{name[:80]}”"
    if len(content) > MAX_BYTES:
        raise PhotoError(where, f"the file is larger than {MAX_BYTES // 1_000_000} MB; scale the photo down "
                         "first")
    photo = decode_photo(io.BytesIO(content), where)
    photo.thumbnail((KEPT_SIDE, KEPT_SIDE))
    return photo


class PhotoDropper(pn.widgets.FileDropper):
    """Where photos are chosen, dropped, or pasted (also while the text box has the focus).

    ``received`` is called with the name and content of each file, ``removed`` with the name of one that was
    taken back. The browser refuses larger files than ``MAX_BYTES``; for whoever goes round that, this class
    keeps nothing of a file that comes in several pieces, since the browser sends each one whole.
    """

    def __init__(self, received: Callable[[str, bytes], None], removed: Callable[[str], None],
                 **params: Any) -> None:
        self._received, self._removed = received, removed
        super().__init__(accepted_filetypes=["image/*"], max_file_size=f"{MAX_BYTES // 1_000_000}MB",
                         chunk_size=MAX_BYTES + 2, multiple=True, layout="compact", **params)

    def _process_event(self, event: Any) -> None:
        name = str(event.data["name"])
        if event.event_name == "delete_event":
            self._removed(name)
        elif event.data["total_chunks"] == 1:
            self._received(name, bytes(event.data["data"]))
