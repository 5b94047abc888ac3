"""The window does what its buttons say, keeps one person's chat, and shows text as text. No browser: widgets are set as one does."""

import base64
import dataclasses
import html
import io
import json
import re
import time

import numpy as np
import pytest
from model_helpers import script
from PIL import Image

from e2e_lib.config import ConfigError, Inference
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.inference import respond
from e2e_lib.inference.chat import ChatPartner
from e2e_lib.repro.files import ResultsError
from e2e_lib.window import chat_window
from e2e_lib.window.chat_window import MAX_LETTERS, MAX_PHOTOS, ChatWindow
from e2e_lib.window.partners import Answerer, Partners
from e2e_lib.window.saved import read_chat
from e2e_lib.window.uploads import MAX_BYTES

GREEDY = Inference(do_sample=False, max_new_tokens=6, num_inference_steps=2)
NASTY = '<img src=x onerror=alert(1)> "&amp; **bold** $x$ <script>'


@pytest.fixture(scope="module")
def partners(systems, config):
    return Partners(Answerer("tiny", systems["end_to_end"], GREEDY), config)


@pytest.fixture(autouse=True)
def no_browser_to_wait_for(monkeypatch):
    monkeypatch.setattr(chat_window, "LAID_OUT", 0)


@pytest.fixture(scope="module")
def first_window(partners):
    return ChatWindow(partners)


@pytest.fixture
def window(first_window, partners):
    """A window as it opens: always the same one, since making one takes a third of a second."""
    first_window.clear()
    first_window.system.options, first_window.system.value = partners.names, "tiny"
    first_window.temperature.value, first_window.seed.value = 0.0, "0"
    return first_window


@pytest.fixture
def scripted(systems, monkeypatch):
    """What the partner will say, turn after turn; photos are drawn as they come."""
    def make(*turns):
        script(monkeypatch, systems["end_to_end"], turns)
    return make


def type_in(window, text):
    """What the browser sends when somebody types and presses Enter."""
    window.box.value = text
    window.box.enter_pressed = True


def click(button):
    button.clicks += 1


def shown(window):
    """Name and HTML of each message."""
    return [(message.user, message.object.object) for message in window.chat.objects]


def said(window):
    """The line below the chat, as it is read."""
    return html.unescape(re.sub("<[^>]+>", "", window.status.object))


def photo(value=10, size=(64, 64)):
    return Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8))


def png(image):
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def upload(window, name, content, piece=1, pieces=1, event="upload_event"):
    """What the browser sends when a file is chosen, dropped or pasted, or taken back."""
    data = {"name": name, "data": content, "chunk": piece, "total_chunks": pieces, "type": "image/png"}
    window._dropper[0]._process_event(type("Event", (), {"event_name": event, "data": data})())


def test_a_chat_in_the_window_is_the_chat_in_python(window, partners):
    type_in(window, "Hello there!")
    upload(window, "a.png", png(photo()))
    window.box.value_input = "Look at this"
    click(window.send)
    click(window.more)
    partner = ChatPartner(partners.first.model, window.partner.settings, 0)
    partner.say("Hello there!")
    partner.say("Look at this", photo())
    partner.go_on()
    assert window.partner.turns == partner.turns and len(partner.turns) == 5
    assert [(user, "Hello" in text) for user, text in shown(window)][:2] == [("You", True), ("Partner", False)]
    assert [user for user, _ in shown(window)] == ["You", "Partner", "You", "Partner", "Partner"]
    assert "<img" in shown(window)[2][1] and window.waiting == {} and "Answered in" in said(window)


def test_drawn_photos_stand_in_the_reply_with_their_captions(window, scripted):
    scripted(Turn(1, "Here.", (SharedPhoto("p", "a red kite"), SharedPhoto("p", "a boat"))))
    type_in(window, "Show me")
    reply = shown(window)[1][1]
    assert reply.count("data:image/png;base64,") == 2 and 'alt="a red kite"' in reply and "“a boat”" in reply
    drawn = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', reply)[1])))
    assert drawn.tobytes() == window.partner.album.images["photo 1"].tobytes()


def test_what_was_typed_written_or_named_is_never_markup(window, scripted):
    scripted(Turn(1, NASTY, (SharedPhoto("p", NASTY),)), Turn(1, "ok"))
    upload(window, NASTY, png(photo()))
    attached = window.attached.object
    type_in(window, NASTY)
    upload(window, NASTY, b"no photo")
    refused = window.status.object
    window.system.options = [*window.system.options, NASTY]
    window.system.value = NASTY
    type_in(window, "hello")
    assert "Not answered: there is no system" in said(window)
    pieces = [*[text for _, text in shown(window)], attached, refused, window.status.object, window.as_html()]
    assert not any(tag in piece for piece in pieces for tag in ("<img src=x", "<script", "<b>bold"))
    mine, answer = (text for _, text in shown(window))
    assert mine.count(html.escape(NASTY)) == 1 and answer.count(html.escape(NASTY)) == 3  # also beside and below the photo
    assert html.escape(NASTY) in refused and html.escape(NASTY) in window.status.object and window.as_html().count(html.escape(NASTY)) == 4


def test_a_photo_that_is_none_or_too_large_is_refused_with_a_sentence(window, monkeypatch):
    for name, content, reason in [("note.txt", b"text", "in a format that is not read"), ("empty.png", b"", "empty"),
                                  ("large.png", bytes(MAX_BYTES + 1), "the file is larger than 10 MB"),
                                  ("wide.png", png(Image.new("1", (60_000, 1_000))), "pixels")]:
        upload(window, name, content)
        assert name in said(window) and reason in said(window) and said(window).startswith("Not taken: ")
        assert window.waiting == {}
    type_in(window, "hello")
    assert len(window.partner.turns) == 2


def test_a_file_in_pieces_is_not_kept(window):
    for piece in (1, 2, 3):
        upload(window, "large.png", png(photo()), piece, pieces=3)
    assert window.waiting == {} and window._dropper[0]._file_buffer == {} and window._dropper[0].value == {}


def test_at_most_so_many_photos_go_with_a_message_and_all_can_be_taken_back(window):
    for i in range(MAX_PHOTOS + 1):
        upload(window, f"{i}.png", png(photo(i)))
    assert list(window.waiting) == [f"{i}.png" for i in range(MAX_PHOTOS)] and "at most 4" in said(window)
    upload(window, "1.png", b"", event="delete_event")
    assert list(window.waiting) == ["0.png", "2.png", "3.png"] and window.take_back.visible
    click(window.take_back)
    assert window.waiting == {} and window.attached.object == "" and not window.take_back.visible


def test_a_large_photo_is_kept_smaller(window):
    upload(window, "large.png", png(photo(size=(3000, 1500))))
    assert window.waiting["large.png"].size == (1024, 512)


def test_a_sample_goes_along_as_a_photo_does(window):
    click(list(window.samples.values())[0])
    click(window.send)
    (shared,) = window.partner.turns[0].photos
    assert window.partner.turns[0].text == "" and window.partner.album.images[shared.photo_id].size == (64, 64)
    assert [button.label for button in window.samples.values()] == list(window.samples) and len(window.samples) > 3


def test_nothing_to_send_says_what_to_do(window):
    click(window.send)
    type_in(window, "  ")
    click(window.more)
    assert window.partner.turns == [] and shown(window) == [] and "has not begun" in said(window)


def test_a_text_is_cut_at_its_limit(window):
    type_in(window, "a" * (MAX_LETTERS + 500))
    assert len(window.partner.turns[0].text) == MAX_LETTERS


def test_start_over_leaves_nothing(window):
    type_in(window, "hello")
    first = window.partner.turns[1]
    upload(window, "a.png", png(photo()))
    click(window.start_over)
    assert (window.partner.turns, window.answered, window.chat.objects, window.waiting) == ([], [], [], {})
    assert window.partner.album.images == {}
    type_in(window, "hello")
    assert window.partner.turns[1] == first  # the random numbers begin anew, too


def test_choices_hold_from_the_next_answer_on(window, systems):
    type_in(window, "hello")
    window.temperature.value, window.seed.value = 1.3, "7"
    type_in(window, "and now?")
    assert window.partner.settings.do_sample and window.partner.settings.temperature == 1.3 and window.partner.seed == 7
    window.system.value = "pipeline, as it ships"
    type_in(window, "who is there?")
    assert type(window.partner.model) is type(systems["pipeline"]) and len(window.partner.turns) == 6
    assert window.answered == [{"system": "tiny", "temperature": 0.0, "seed": 0}, {"system": "tiny", "temperature": 1.3, "seed": 7},
                               {"system": "pipeline, as it ships", "temperature": 1.3, "seed": 7}]


def test_a_seed_that_is_none_is_refused_with_a_sentence(window):
    for seed in ("", "-1", "1.5", "many", "9" * 19, "9" * 5000):
        window.seed.value = seed
        type_in(window, "hello")
        assert "whole number" in said(window) and window.partner.turns == [] and window.box.value_input == "hello", seed


def test_an_answer_that_fails_leaves_the_chat_usable(window, monkeypatch):
    type_in(window, "hello")
    before, turns = shown(window), list(window.partner.turns)
    for error in (RuntimeError("out of memory"), ConfigError("not so"), KeyError("x")):
        def fail(*_, error=error, **__):
            raise error

        click(window.take_back)
        upload(window, "a.png", png(photo()))
        with monkeypatch.context() as broken:
            broken.setattr("e2e_lib.inference.chat.respond", fail)
            type_in(window, "how are you?")
        assert "Not answered" in said(window) and str(error) in said(window)
        assert shown(window) == before and window.partner.turns == turns and not window.busy and not window.send.disabled
        assert window.box.value_input == "how are you?" and list(window.waiting) == ["a.png"]  # nothing to type again
    click(window.send)
    assert len(window.partner.turns) == 4 and window.partner.turns[2].text == "how are you?" and window.partner.turns[2].photos


def test_a_failure_does_not_overwrite_what_was_typed_since(window, monkeypatch):
    def fail(*_, **__):
        window.box.value_input = "next"
        raise RuntimeError("broken")

    monkeypatch.setattr("e2e_lib.inference.chat.respond", fail)
    type_in(window, "hello")
    assert window.box.value_input == "next" and window.partner.turns == [] and not window.busy


def test_what_is_going_on_is_said_while_it_does(window, scripted, monkeypatch):
    def slowly(work):
        def run(*args):
            time.sleep(0.3)
            return work(*args)
        return run

    lines = []
    window.status.param.watch(lambda event: lines.append(said(window)), "object")
    scripted(Turn(1, "Here.", (SharedPhoto("p", "a red kite"),)))
    for name in ("generate_texts", "draw_photos"):
        monkeypatch.setattr(respond, name, slowly(getattr(respond, name)))
    type_in(window, "Show me")
    stages = [line.split("Your partner is ")[1] for line in lines if "Your partner is" in line]
    assert [stage for stage in dict.fromkeys(stages) if "waiting" not in stage] == ["writing …", "drawing …"]
    assert "Answered in" in lines[-1]


def test_a_chat_too_long_to_be_read_whole_says_so(window):
    type_in(window, "word " * 380)
    assert "longer than the" in said(window)


def test_only_one_answer_is_under_way(window, monkeypatch):
    seen, ask = [], window._ask

    def ask_and_be_asked(*args, **kwargs):
        seen.append((window.busy, window.send.disabled, window.box.disabled_enter))
        type_in(window, "meanwhile")
        click(window.more)
        click(window.start_over)
        return ask(*args, **kwargs)

    monkeypatch.setattr(window, "_ask", ask_and_be_asked)
    type_in(window, "hello")
    assert seen == [(True, True, True)] and [turn.text for turn in window.partner.turns][:1] == ["hello"]
    assert len(window.partner.turns) == 2 and not window.busy


def test_several_people_do_not_share_a_chat(partners):
    one, other = ChatWindow(partners), ChatWindow(partners)
    type_in(one, "hello")
    upload(one, "a.png", png(photo()))
    assert other.partner.turns == [] and other.chat.objects == [] and other.waiting == {} and other.answered == []
    type_in(other, "good evening")
    assert [window.partner.turns[0].text for window in (one, other)] == ["hello", "good evening"]
    assert one.partner.model is other.partner.model  # the weights are shared


def test_the_seed_and_the_temperature_begin_as_they_are_given(systems, config):
    sampling = dataclasses.replace(GREEDY, do_sample=True, temperature=0.35)
    window = ChatWindow(Partners(Answerer("tiny", systems["end_to_end"], sampling), config), seed=2**63 - 1)
    assert window.temperature.value == 0.35 and window.seed.value == str(2**63 - 1)
    with pytest.raises(ConfigError, match="seed"):
        ChatWindow(Partners(Answerer("tiny", systems["end_to_end"], GREEDY), config), seed=-1)


def test_a_saved_chat_comes_back(window, scripted, tmp_path):
    scripted(Turn(1, "Here.", (SharedPhoto("p", "a red kite"),)), Turn(1, NASTY))
    click(list(window.samples.values())[1])
    window.box.value_input = "what is this?"
    click(window.send)
    type_in(window, NASTY)
    (tmp_path / "chat.json").write_bytes(window.save_json.callback().read())
    turns, photos = read_chat(tmp_path / "chat.json")
    assert turns == window.partner.turns and photos.keys() == window.partner.album.images.keys() and len(photos) == 2
    assert all(photos[name].tobytes() == image.tobytes() for name, image in window.partner.album.images.items())
    assert json.loads((tmp_path / "chat.json").read_bytes())["answered"] == window.answered
    page = window.save_html.callback().read().decode()
    assert page.count("<section") == 4 and page.count("<img") == 2 and page.count(html.escape(NASTY)) == 2
    assert "tiny, temperature 0, seed 0" in page and "<script" not in page and "http" not in page


def test_a_damaged_chat_is_named(window, tmp_path):
    click(list(window.samples.values())[1])
    click(window.send)
    for change, reason in [
            (lambda chat: chat["turns"][0].update(speaker=2), "expected 0 or 1, found 2"),
            (lambda chat: chat["turns"][0].update(text=3), "expected str, found 3"),
            (lambda chat: chat["photos"].clear(), "'photos.photo 1': .*empty"),
            (lambda chat: chat["photos"].update({"photo 1": "?"}), "'photos.photo 1'"),
            (lambda chat: chat.pop("answered"), "'answered': expected a list")]:
        chat = json.loads(window.as_json())
        change(chat)
        (tmp_path / "chat.json").write_text(json.dumps(chat))
        with pytest.raises(ResultsError, match=f"chat.json: .*{reason}"):
            read_chat(tmp_path / "chat.json")


def test_an_empty_chat_can_be_saved(window):
    assert json.loads(window.as_json())["turns"] == [] and "nobody yet" in window.as_html()
