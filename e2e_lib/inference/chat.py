"""A running chat with a model (section 2.5)."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from e2e_lib.config import Inference
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example, Response
from e2e_lib.data.photos import to_tensor
from e2e_lib.inference.respond import respond
from e2e_lib.models.systems import PhotoChatModel


class PhotoAlbum:
    """Photos and their captions held in memory, for a chat that is not a dataset; reads like a PhotoStore."""

    def __init__(self) -> None:
        self.images: dict[str, Image.Image] = {}
        self._captions: dict[str, dict[str, str]] = {}

    def add(self, image: Image.Image) -> str:
        """Adds a photo; returns the id it gets."""
        photo_id = f"photo {len(self.images) + 1}"
        self.images[photo_id] = image.convert("RGB")
        return photo_id

    def tensor(self, photo_id: str) -> Tensor:
        """The photo as uint8 (3, H, W)."""
        return to_tensor(self.images[photo_id])

    def captions(self, key: str) -> dict[str, str]:
        return dict(self._captions.get(key, {}))

    def keep_captions(self, key: str, captions: Mapping[str, str]) -> None:
        self._captions[key] = dict(captions)


class ChatPartner:
    """A chat with a model: ``say`` something (text, a photo, or both) and get its answer.

    ``turns`` holds the chat so far (speaker 0 is you), ``album`` its photos. The same ``seed`` and the same
    words give the same answers.
    """

    def __init__(self, model: PhotoChatModel, settings: Inference, seed: int = 0) -> None:
        self.model, self.settings = model, settings
        self.rng = torch.Generator().manual_seed(seed)
        self.album, self.turns = PhotoAlbum(), list[Turn]()

    def _shared(self, image: Image.Image | None, caption: str) -> SharedPhoto | None:
        return SharedPhoto(self.album.add(image), caption) if image else None

    def say(self, text: str = "", photo: Image.Image | None = None) -> Response:
        """The partner's answer; what was said and the answer become context.

        Raises ValueError if nothing was said.
        """
        if not text.strip() and photo is None:
            raise ValueError("say something: a text, a photo, or both")
        self.turns.append(Turn(0, text.strip(), self._shared(photo, "")))
        return self.go_on()

    def go_on(self) -> Response:
        """Lets the partner speak (again), for instance to send the photo it announced.

        Raises ValueError before anything was said.
        """
        if not self.turns:
            raise ValueError("the chat has not begun; say something first")
        example = Example("chat", len(self.turns), tuple(self.turns), Turn(1, ""))
        answer = respond(self.model, [example], self.album, self.settings, self.rng)[0]
        self.turns.append(Turn(1, answer.text, self._shared(answer.image, answer.caption or "")))
        return answer


def chat_in_terminal(partner: ChatPartner, say: Callable[[str], None]) -> None:
    """Chats with whoever types, until an empty line or the end of input; drawn photos become files here."""
    say("Say something; `/photo FILE` shares a photo, `/more` lets the partner go on, an empty line ends it.")
    photos = 0
    with contextlib.suppress(EOFError):
        while line := input("you: ").strip():
            try:
                if line == "/more":
                    answer = partner.go_on()
                elif line.startswith("/photo "):
                    answer = partner.say(photo=Image.open(Path(line[7:].strip()).expanduser()))
                else:
                    answer = partner.say(line)
            except (OSError, ValueError) as error:
                say(f"(not sent: {error})")
                continue
            say(f"partner: {answer.text}")
            if answer.image:
                photos += 1
                answer.image.save(f"photo-{photos}.png")
                say(f"partner shares photo-{photos}.png: {answer.caption}")
