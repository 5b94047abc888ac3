"""A running chat with a model (section 2.5), in Python or in a terminal."""

import contextlib
import dataclasses
import io
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from e2e_lib.config import Inference, check_seed
from e2e_lib.data.dialogue import SharedPhoto, Turn, clean_text
from e2e_lib.data.examples import Example, Response
from e2e_lib.data.photo_input import PhotoInput, open_photo
from e2e_lib.data.photos import to_tensor
from e2e_lib.inference.respond import respond
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.repro.randomness import seed_of

HELP = """\
/photo FILE [FILE ...]  shares photos
/more                   lets the partner go on
/help                   shows these commands
/quit                   ends the chat, as do an empty line and the end of input
//TEXT                  says a text that begins with a slash"""

Progress = Callable[[str, int, int], None]


class PhotoAlbum:
    """Photos and their captions held in memory, for a chat that is not a dataset; reads like a PhotoStore."""

    def __init__(self) -> None:
        self.images: dict[str, Image.Image] = {}
        self._captions: dict[str, dict[str, str]] = {}

    def add(self, photo: PhotoInput) -> str:
        """Adds a photo in any form that ``open_photo`` takes; returns the id it gets. Raises PhotoError."""
        photo_id = f"photo {len(self.images) + 1}"
        self.images[photo_id] = open_photo(photo)
        return photo_id

    def tensor(self, photo_id: str) -> Tensor:
        """The photo as uint8 (3, H, W)."""
        return to_tensor(self.images[photo_id])

    def captions(self, key: str) -> dict[str, str]:
        return dict(self._captions.get(key, {}))

    def keep_captions(self, key: str, captions: Mapping[str, str]) -> None:
        self._captions[key] = dict(captions)

    def copy(self) -> "PhotoAlbum":
        """An album of its own with the same photos and captions."""
        copied = PhotoAlbum()
        copied.update(self)
        return copied

    def update(self, other: "PhotoAlbum") -> None:
        """Takes over the photos and captions of another album."""
        self.images.update(other.images)
        self._captions.update(other._captions)


class ChatPartner:
    """A chat with a model: ``say`` something (text, photos, or both) and get its answer.

    ``turns`` holds the chat so far (speaker 0 is you), ``album`` its photos. The same ``seed`` and the same
    words give the same answers. What fails or is interrupted leaves the chat as it was.
    Raises ConfigError for a ``seed`` that is no whole number from 0 to ``config.MAX_SEED``.
    """

    def __init__(self, model: PhotoChatModel, settings: Inference, seed: int = 0) -> None:
        self.model, self.settings = model, settings
        self.seed = check_seed(seed)
        self.album, self.turns = PhotoAlbum(), list[Turn]()

    def say(self, text: str = "", photos: PhotoInput | Sequence[PhotoInput] | None = None,
            progress: Progress | None = None) -> Response:
        """The partner's answer; what was said and the answer become context.

        ``photos`` is one photo, or a list or tuple of several, each in any form that ``open_photo`` takes.
        What does not fit the model's context, the oldest first, is counted in the response's
        ``context_tokens_cut``. ``progress`` is told what is done, as by ``respond``.
        Raises TypeError for a text that is none, PhotoError for a photo that is none, and ValueError if
        nothing was said.
        """
        if not isinstance(text, str):
            raise TypeError(f"say(text, photos): expected a text (str), found {type(text).__name__}; "
                            'a photo comes second: say("", photo)')
        given: Sequence[Any] = photos if isinstance(photos, list | tuple) else [photos]
        album, words = self.album.copy(), clean_text(text)
        shared = tuple(SharedPhoto(album.add(photo), "") for photo in given if photos is not None)
        if not words and not shared:
            raise ValueError("say something: a text, a photo, or both")
        return self._answer(progress, album, Turn(0, words, shared))

    def go_on(self, progress: Progress | None = None) -> Response:
        """Lets the partner speak (again), for instance to send the photo it announced.

        Raises ValueError before anything was said.
        """
        if not self.turns:
            raise ValueError("the chat has not begun; say something first")
        return self._answer(progress, self.album.copy())

    def _answer(self, progress: Progress | None, album: PhotoAlbum, *said: Turn) -> Response:
        context = (*self.turns, *said)
        example = Example("chat", len(context), context, Turn(1, ""))
        seed = seed_of(self.seed, "chat", len(context))
        answer = respond(self.model, [example], album, self.settings, seed, progress)[0]
        photos = zip(answer.images, answer.captions, strict=True)
        shared = tuple(SharedPhoto(album.add(image), caption) for image, caption in photos)
        self.album.update(album)
        self.turns += [*said, Turn(1, answer.text, shared)]
        return answer


def chat_settings(settings: Inference) -> Inference:
    """The settings of a chat: ``chat_num_beams`` beams, unless how words are chosen was set otherwise.

    A small model's samples have broken words where a person leaves the world it knows; a search has few.
    """
    choice = ("do_sample", "temperature", "top_p", "num_beams")
    if any(getattr(settings, name) != getattr(Inference, name) for name in choice):
        return settings
    return dataclasses.replace(settings, num_beams=settings.chat_num_beams)


def chat_in_terminal(partner: ChatPartner, say: Callable[[str], None]) -> None:
    """Chats with whoever types, until "/quit", an empty line, Ctrl-C or the end of input.

    Photos that the partner draws are saved in the current folder, none over another file.
    """
    say("Say something; /photo FILE shares a photo, /help lists the commands, an empty line ends the chat.")
    if sys.stdin is not None and sys.stdin.errors == "strict":  # bytes that are no text must not end the chat
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with contextlib.suppress(KeyboardInterrupt):
        while (line := _read_line()) not in ("", "/quit"):
            try:
                answer = _send(partner, line, say)
            except ValueError as error:  # PhotoError, too
                say(f"(not sent: {error})")
            else:
                _show(answer, partner, say)
    say("")


def _read_line() -> str:
    """What was typed, "" at the end of input or where there is none."""
    try:
        return input("you: ").strip()
    except (EOFError, OSError, RuntimeError):
        return ""


def _send(partner: ChatPartner, line: str, say: Callable[[str], None]) -> Response | None:
    """Does what a line says; returns the partner's answer, if there is one. Raises ValueError."""
    if not line.startswith("/") or line.startswith("//"):
        return partner.say(line[1:] if line.startswith("//") else line)
    command, *rest = line.split(maxsplit=1)
    if command == "/more":
        return partner.go_on()
    if command == "/photo":
        return partner.say(photos=_file_names("".join(rest)))
    say(HELP if command == "/help" else f"There is no command {command}. The commands are\n{HELP}")
    return None


def _file_names(text: str) -> list[str]:
    """The names of files as terminals paste them: quoted, with backslashes before blanks, or as they are."""
    if not text:
        raise ValueError("/photo needs the name of a file")
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if Path(text).expanduser().is_file():
            return [text]
    try:
        return shlex.split(text)
    except ValueError:  # a quotation mark without its other half
        return [text]


def _show(answer: Response | None, partner: ChatPartner, say: Callable[[str], None]) -> None:
    if answer is None:
        return
    if unread := left_out(partner):
        say(f"({unread})")
    if answer.text or not answer.images:
        say(f"partner: {answer.text or '(says nothing)'}")
    for image, caption in zip(answer.images, answer.captions, strict=True):
        try:
            say(f"partner shares {save_as_new(image)}: {caption}")
        except OSError as error:
            say(f"partner shares a photo: {caption} (not saved: {error.strerror})")


def left_out(partner: ChatPartner) -> str:
    """What the partner, who spoke last, did not read: of a long message each time, of a long chat once."""
    formatter, turns = partner.model.formatter, partner.turns
    limit = f"longer than the {formatter.max_context} tokens that the partner reads"
    if cut := formatter.context(turns[-2:-1], 1).cut:
        return f"the message is {limit}: its first {cut} were left out"
    if formatter.context(turns[:-1], 1).cut and not formatter.context(turns[:-3], 1).cut:
        return f"the chat is {limit}: from now on its oldest messages are left out"
    return ""


def save_as_new(image: Image.Image) -> Path:
    """Saves a photo in the current folder as photo-1.png, or with the first number that is free.

    Raises OSError.
    """
    encoded, number = io.BytesIO(), 1
    image.save(encoded, format="PNG")
    while True:
        path = Path(f"photo-{number}.png")
        try:
            file = open(path, "xb")  # fails where there is one, also one that another chat has just made
        except FileExistsError:
            number += 1
            continue
        try:
            with file:
                file.write(encoded.getbuffer())
        except OSError:
            path.unlink()
            raise
        return path
