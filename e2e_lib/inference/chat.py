"""A running chat with a model."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e2e_lib.config import Inference
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import to_square
from e2e_lib.inference.respond import Response, respond
from e2e_lib.models.systems import System


class PhotoAlbum:
    """Photos held in memory under a name, for a chat that is not a dataset; reads like a PhotoStore."""

    def __init__(self) -> None:
        self.images: dict[str, Image.Image] = {}

    def add(self, image: Image.Image) -> str:
        name = f"photo {len(self.images) + 1}"
        self.images[name] = image.convert("RGB")
        return name

    def tensor(self, photo_id: str, size: int) -> Tensor:
        return torch.from_numpy(np.array(to_square(self.images[photo_id], size))).permute(2, 0, 1)


class ChatPartner:
    """A running chat with a model: ``say`` something (text, a photo, or both) and get its answer."""

    def __init__(self, model: System, settings: Inference, seed: int = 0, photo_size: int = 64) -> None:
        self.model, self.settings, self.photo_size = model, settings, photo_size
        self.rng = torch.Generator().manual_seed(seed)
        self.album, self.turns = PhotoAlbum(), []

    turns: list[Turn]

    def _photo(self, image: Image.Image | None, caption: str) -> SharedPhoto | None:
        return SharedPhoto(self.album.add(image), caption) if image else None

    def say(self, text: str = "", photo: Image.Image | None = None) -> Response:
        """The partner's answer to what was said; both are remembered as context of the next. Raises ValueError if nothing was said."""
        if not text.strip() and photo is None:
            raise ValueError("say something: a text, a photo, or both")
        self.turns.append(Turn(0, text.strip(), self._photo(photo, "")))
        return self.go_on()

    def go_on(self) -> Response:
        """Lets the partner speak (again) without saying anything, say to send the photo it announced."""
        if not self.turns:
            raise ValueError("the chat has not begun; say something first")
        example = Example("chat", len(self.turns), tuple(self.turns), Turn(1, ""))
        answer = respond(self.model, [example], self.album, self.settings, self.rng, self.photo_size)[0]
        self.turns.append(Turn(1, answer.text, self._photo(answer.image, answer.caption or "")))
        return answer
