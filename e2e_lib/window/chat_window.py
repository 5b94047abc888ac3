"""A chat with a model in a window; in a notebook's cell it shows itself, ``page`` serves it."""

import asyncio
import html
import io
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import panel as pn
from PIL import Image

from e2e_lib.data.dialogue import SharedPhoto, Turn, clean_text
from e2e_lib.inference.chat import ChatPartner, left_out
from e2e_lib.window import saved
from e2e_lib.window.look import message, photo_button
from e2e_lib.window.partners import Partners, at_temperature, usual_temperature
from e2e_lib.window.samples import sample_photos
from e2e_lib.window.uploads import PhotoDropper, opened

MAX_LETTERS = 2_000
MAX_PHOTOS = 4  # with one message
TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0, 1.3)
LAID_OUT = 0.3  # seconds that a browser takes to lay out a message
HINT = "Say something, share a photo, or both. Enter sends."
EXAMPLE = "Such as: My daughter wants a kite. Yellow would be great. Can you show me one?"
# Models are shared by all windows, and random numbers by all that a process draws: one answer at a time.
_ONE_AT_A_TIME = ThreadPoolExecutor(1, thread_name_prefix="answers")


def prepare(in_notebook: bool = True) -> None:
    """Brings what windows need into the page: once, in a cell of a notebook before the one that shows one.

    In a notebook it stands in the cell's output (some MB), so that windows work without a network.
    """
    pn.extension("filedropper", inline=in_notebook)


async def _show_latest(message: Any, feed: pn.chat.ChatFeed) -> None:
    """Scrolls to the last message once the browser has laid it out, photos too."""
    del message
    await asyncio.sleep(LAID_OUT)
    if feed.objects:
        feed.scroll_to(len(feed.objects) - 1)


class ChatWindow(pn.viewable.Viewer):
    """One person's chat: a text box, photos to share, and how the partner answers.

    Each window has a chat of its own, in ``partner``. What was chosen (the system, the temperature, the seed)
    holds from the next answer on; ``answered`` keeps it for each answer, in order. An answer that fails
    leaves the chat as it was. ``height`` is that of the messages, in pixels. Raises ConfigError for a
    ``seed`` that is none.
    """

    def __init__(self, partners: Partners, seed: int = 0, height: int = 430) -> None:
        super().__init__()
        self.partners = partners
        self.partner = ChatPartner(partners.first.model, partners.first.settings, seed)
        self.answered: list[dict[str, Any]] = []
        self.waiting: dict[str, Image.Image] = {}  # photos that go along with the next message, by name
        self._answerer, self._stage, self.busy = partners.first, "", False
        self._said: tuple[str, dict[str, Image.Image]] = "", {}  # what the next answer is to
        self._make_inputs(seed, height)
        self._make_layout()
        self._tell(HINT)

    # What is shown

    def _make_inputs(self, seed: int, height: int) -> None:
        first = usual_temperature(self.partners.first.settings)
        self.box = pn.chat.ChatAreaInput(label="Your message", placeholder=EXAMPLE, max_length=MAX_LETTERS,
                                         rows=2, resizable=False, sizing_mode="stretch_width")
        # Not a ChatInterface: that would send what is typed as Markdown.
        self.chat = pn.chat.ChatFeed(callback=self._answer, callback_user=saved.NAMES[1],
                                     placeholder_threshold=0, post_hook=_show_latest, height=height,
                                     sizing_mode="stretch_width")
        self.system = pn.widgets.Select(label="Who answers", options=self.partners.names, width=250)
        options = {f"{value:g}" if value else "0: the likeliest words": value
                   for value in sorted({*TEMPERATURES, first})}
        self.temperature = pn.widgets.Select(label="Temperature", options=options, value=first, width=190)
        self.seed = pn.widgets.TextInput(label="Seed", value=str(seed), max_length=19, width=110)
        self.send = pn.widgets.Button(label="Send", color="primary", width=110)
        self.more = pn.widgets.Button(label="Let the partner go on", width=180)
        self.start_over = pn.widgets.Button(label="Start over", width=110)
        self.take_back = pn.widgets.Button(label="Take the photos back", visible=False, width=180)
        self.status = pn.pane.HTML("", sizing_mode="stretch_width")
        self.attached = pn.pane.HTML("", sizing_mode="stretch_width")
        self.save_json = pn.widgets.FileDownload(
            label="Save as JSON", filename="chat.json", callback=lambda: io.BytesIO(self.as_json().encode()))
        self.save_html = pn.widgets.FileDownload(
            label="Save as HTML", filename="chat.html", callback=lambda: io.BytesIO(self.as_html().encode()))

    def _make_layout(self) -> None:
        self.box.param.watch(lambda event: self._send(self.box.value), "enter_pressed")
        self.send.on_click(lambda event: self._send(self.box.value_input))
        self.more.on_click(lambda event: self._go_on())
        self.start_over.on_click(lambda event: self.clear())
        self.take_back.on_click(lambda event: self._drop_photos())
        self.samples = {name: photo_button(name, photo) for name, photo in sample_photos().items()}
        for name, button in self.samples.items():
            button.on_click(partial(self._sample_chosen, name))
        self._dropper = pn.Column(self._new_dropper(), width=330)
        self._layout = pn.Column(
            pn.FlexBox(self.system, self.temperature, self.seed),
            self.chat, self.status, self.attached, self.box,
            pn.FlexBox(self.send, self.more, self.take_back, self.start_over, self.save_json, self.save_html),
            pn.FlexBox(self._dropper, pn.Column(pn.pane.HTML("Or share one of these:"),
                                                pn.FlexBox(*self.samples.values(), margin=(0, 6)),
                                                styles={"flex": "1 1 300px"})),
            sizing_mode="stretch_width", max_width=900)

    def __panel__(self) -> pn.viewable.Viewable:
        return self._layout

    def _new_dropper(self) -> PhotoDropper:
        return PhotoDropper(self._uploaded, self._taken_back, label="Photos: choose, drop or paste",
                            sizing_mode="stretch_width")

    def _tell(self, line: str) -> None:
        """One line below the chat, which screen readers read out."""
        self.status.object = f'<div role="status">{html.escape(line)}</div>'

    # Photos that go along

    def attach(self, name: str, photo: Image.Image) -> None:
        """Lets a photo go along with the next message."""
        if len({*self.waiting, name}) > MAX_PHOTOS:
            self._tell(f"“{name[:80]}” does not go along: at most {MAX_PHOTOS} photos go with one message")
            return
        self.waiting[name] = photo
        self._show_waiting()

    def _sample_chosen(self, name: str, event: Any) -> None:
        self.attach(name, sample_photos()[name])

    def _show_waiting(self) -> None:
        photos = [f'<div style="width:96px">{saved.photo_html(photo, "", "you", 96)}</div>'
                  for photo in self.waiting.values()]
        self.attached.object = (f'With your next message:<div style="display:flex;gap:8px">{"".join(photos)}'
                                "</div>" if photos else "")
        self.take_back.visible = bool(photos)

    def _uploaded(self, name: str, content: bytes) -> None:
        try:
            self.attach(name, opened(name, content))
        except ValueError as error:  # PhotoError
            self._tell(f"Not taken: {error}")

    def _taken_back(self, name: str) -> None:
        self.waiting.pop(name, None)
        self._show_waiting()

    def _drop_photos(self) -> None:
        self.waiting = {}
        self._show_waiting()
        self._dropper.objects = [self._new_dropper()]  # with an empty list of files

    # The chat

    def clear(self) -> None:
        """Starts over: with an empty chat, and nobody's photos."""
        if self.busy:
            return
        self.partner = ChatPartner(self.partner.model, self.partner.settings, self.partner.seed)
        self.answered = []
        self.chat.objects = []
        self._drop_photos()
        self._set_text("")
        self._tell(f"A new chat. {HINT}")

    def _send(self, text: str | None) -> None:
        words = clean_text((text or "")[:MAX_LETTERS])
        if self.busy:
            return
        if not words and not self.waiting:
            self._tell(HINT)
            return
        self._said = words, self.waiting
        turn = Turn(0, words, tuple(SharedPhoto(name, "") for name in self.waiting))
        shown = message(turn, self.waiting.__getitem__)
        self._set_text("")
        self._drop_photos()
        self._set_busy(True)
        self.chat.send(shown)

    def _go_on(self) -> None:
        if self.busy:
            return
        if not self.partner.turns:
            self._tell(f"The chat has not begun. {HINT}")
            return
        self._said = "", {}
        self._set_busy(True)
        self.chat.respond()

    def _set_busy(self, busy: bool) -> None:
        """Whether an answer is under way, while which nothing else can be sent."""
        self.busy = self.box.disabled_enter = busy
        for button in (self.send, self.more, self.start_over, self.take_back):
            button.disabled = busy

    def _set_text(self, text: str) -> None:
        """The content of the text box, also where the browser has another one than was last heard of."""
        self.box.value_input = text or " "
        self.box.value_input = text

    async def _answer(self, contents: Any) -> pn.chat.ChatMessage | None:
        """The partner's message; the callback of the chat's interface, which waits for it."""
        del contents  # what the interface shows of the message
        (text, photos), begun = self._said, time.monotonic()
        number = (self.seed.value or "").strip()[:20]
        choice = {"system": self.system.value, "temperature": self.temperature.value,
                  "seed": int(number) if number.isdecimal() else number}
        self._stage = "waiting for another chat's answer"
        answer = asyncio.get_running_loop().run_in_executor(
            _ONE_AT_A_TIME, partial(self._ask, text, list(photos.values()), **choice))
        try:
            while not answer.done():
                self._tell(f"Your partner is {self._stage} …")
                await asyncio.wait([answer], timeout=0.1)
            unread = answer.result()
        except Exception as error:
            self._failed(error, text, photos)
            return None
        finally:
            self._set_busy(False)
        self.answered.append(choice)
        self._tell(f"Answered in {time.monotonic() - begun:.1f} s by {choice['system']}."
                   f"{f' But {unread}.' if unread else ''}")
        return message(self.partner.turns[-1], self.partner.album.images.__getitem__)

    def _ask(self, text: str, photos: list[Image.Image], system: str, temperature: float, seed: int) -> str:
        """Has the partner answer, in the thread of answers; returns what it did not read, as ``left_out``.
        Raises what ``ChatPartner.say`` does."""
        if system != self._answerer.name:
            self._stage = f"being loaded ({system})"
            self._answerer = self.partners.get(system)
        self._stage = "writing"
        new = ChatPartner(self._answerer.model, at_temperature(self._answerer.settings, temperature), seed)
        new.album, new.turns = self.partner.album, self.partner.turns
        if text or photos:
            new.say(text, photos, self._progress)
        else:
            new.go_on(self._progress)
        self.partner = new
        return left_out(new)

    def _progress(self, what: str, done: int, total: int) -> None:
        if what == "written":
            self._stage = "drawing"

    def _failed(self, error: Exception, text: str, photos: dict[str, Image.Image]) -> None:
        """Says why there is no answer, and gives back what was to be sent."""
        ours = type(error).__module__.startswith("e2e_lib.") or type(error) is ValueError
        if not ours:
            logging.getLogger(__name__).error("an answer failed", exc_info=error)
        self._tell(f"Not answered: {error}" if ours else "Not answered, because of an error inside "
                   f"({type(error).__name__}: {error}). The chat is as it was; try again")
        if text or photos:
            self.chat.objects = self.chat.objects[:-1]
            if not self.box.value_input:  # nothing else was typed in the meantime
                self._set_text(text)
            for name, photo in photos.items():
                self.attach(name, photo)

    # Saving

    def as_json(self) -> str:
        """The chat so far as ``saved.chat_json`` gives it."""
        return saved.chat_json(self.partner.turns, self.partner.album.images, self.answered)

    def as_html(self) -> str:
        """The chat so far as a page of its own."""
        by = dict.fromkeys(f"{row['system']}, temperature {row['temperature']:g}, seed {row['seed']}"
                           for row in self.answered)
        return saved.chat_page(self.partner.turns, self.partner.album.images.__getitem__,
                               f"Answered by: {'; '.join(by) or 'nobody yet'}.")
