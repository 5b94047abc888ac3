"""A running chat is the same as answering its examples, remembers only what was answered, and overwrites nothing."""

import dataclasses
import io
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_helpers import script
from PIL import Image

from e2e_lib.config import SYSTEMS, ConfigError, Inference
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.photo_input import PhotoError
from e2e_lib.inference.chat import ChatPartner, PhotoAlbum, chat_in_terminal, chat_settings, save_as_new
from e2e_lib.inference.respond import respond

GREEDY = Inference(do_sample=False, max_new_tokens=12, num_inference_steps=2)
SAMPLED = dataclasses.replace(GREEDY, do_sample=True, temperature=1.5, top_p=1.0)


@pytest.fixture
def model(talkative):
    return talkative("end_to_end")


@pytest.fixture
def scripted(systems, monkeypatch):
    """A partner that writes these turns, one after another, and draws as it likes."""
    def make(*turns):
        script(monkeypatch, systems["end_to_end"], turns)
        return ChatPartner(systems["end_to_end"], GREEDY)
    return make


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Types lines to a partner in an empty folder until they end; returns what was shown. An exception is raised instead."""
    monkeypatch.chdir(tmp_path)

    def chat_with(partner, *lines):
        typing, shown = iter(lines), []

        def type_next(prompt):
            line = next(typing, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", type_next)
        chat_in_terminal(partner, shown.append)
        return shown
    return chat_with


def grey(value, height=40, width=60):
    return Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8))


def photo_turn(*captions, text="look"):
    return Turn(1, text, tuple(SharedPhoto("p", caption) for caption in captions))


def test_an_album_reads_like_a_store():
    album = PhotoAlbum()
    names = [album.add(grey(10)), album.add(grey(200, 16, 9).convert("L"))]
    assert len(set(names)) == 2 and list(album.images) == names
    for name, value, size in zip(names, (10, 200), ((40, 60), (16, 9)), strict=True):
        assert torch.equal(album.tensor(name), torch.full((3, *size), value, dtype=torch.uint8))
    assert album.captions("key") == {}
    album.keep_captions("key", {"photo 1": "grey"})
    assert album.captions("key") == {"photo 1": "grey"} and album.captions("other") == {}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_chat_answers_as_its_turns_would_be_answered_elsewhere(talkative, system):
    partner = ChatPartner(talkative(system), GREEDY, seed=4)
    first = partner.say("  hi there  ", grey(90))
    assert partner.turns == [Turn(0, "hi there", (SharedPhoto("photo 1", ""),)), Turn(1, first.text, partner.turns[1].photos)]
    second = partner.say("and then?")
    assert [turn.speaker for turn in partner.turns] == [0, 1, 0, 1] and partner.turns[3].text == second.text
    example = Example("c", 3, tuple(partner.turns[:3]), Turn(1, ""))
    (expected,) = respond(partner.model, [example], partner.album, GREEDY, 0)
    assert (second.text, second.captions) == (expected.text, expected.captions)
    captioner = partner.model.captioner
    if captioner:  # the photo is read as its caption
        (caption,) = captioner.generate_captions([partner.album.tensor("photo 1")])
        assert partner.album.captions(captioner.key)["photo 1"] == caption


def test_the_partners_own_photos_are_context_of_what_follows(scripted, monkeypatch):
    partner = scripted(photo_turn("two red cars", "a cat"), photo_turn("a boat"), Turn(1, "yes"))
    answer = partner.say("show me")
    assert partner.turns[-1] == Turn(1, "look", (SharedPhoto("photo 1", "two red cars"), SharedPhoto("photo 2", "a cat")))
    assert torch.equal(partner.album.tensor("photo 2"), answer.photos[1]) and not torch.equal(*answer.photos)
    partner.go_on()
    assert [turn.speaker for turn in partner.turns] == [0, 1, 1]
    assert partner.turns[-1].photos == (SharedPhoto("photo 3", "a boat"),)
    seen, embed = [], partner.model.embed_context
    monkeypatch.setattr(partner.model, "embed_context", lambda batch: seen.extend(batch.photos) or embed(batch))
    partner.say("nice")  # with all photos to look at
    assert len(seen) == 3 and torch.equal(seen[1], answer.photos[1])


def test_photos_of_a_message_are_seen_in_their_order_and_in_any_form(systems, tmp_path, monkeypatch):
    model, seen = systems["end_to_end"], []
    embed = model.embed_context
    monkeypatch.setattr(model, "embed_context", lambda batch: seen.extend(batch.photos) or embed(batch))
    grey(1).save(tmp_path / "cat.png")
    content, array = io.BytesIO(), np.full((40, 60, 3), 4, np.uint8)
    grey(3).save(content, "PNG")
    forms = [str(tmp_path / "cat.png"), tmp_path / "cat.png", content.getvalue(), array, torch.from_numpy(array), grey(6).convert("L")]
    partner = ChatPartner(model, GREEDY)
    partner.say("look", forms)
    assert [int(photo[0, 0, 0]) for photo in seen] == [1, 1, 3, 4, 4, 6]
    assert [photo.photo_id for photo in partner.turns[0].photos] == [f"photo {n}" for n in range(1, 7)]
    ChatPartner(model, GREEDY).say("", array)  # one alone needs no list
    assert int(seen[-1][0, 0, 0]) == 4


def test_a_photo_of_a_phone_is_seen_upright_and_a_transparent_one_on_white(systems):
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.linear_gradient("L").crop((0, 0, 60, 250)).convert("RGB").save(content, "JPEG", exif=exif, quality=95)
    clear = Image.new("RGBA", (8, 8), (0, 255, 0, 0))
    partner = ChatPartner(systems["end_to_end"], GREEDY)
    partner.say("look", (content, clear))
    upright = np.rot90(np.asarray(Image.linear_gradient("L").crop((0, 0, 60, 250)), int), -1)
    assert np.abs(partner.album.tensor("photo 1")[0].numpy() - upright).max() <= 2
    assert (partner.album.tensor("photo 2") == 255).all()


def test_ten_photos_are_answered_and_what_does_not_fit_is_counted(systems):
    partner = ChatPartner(systems["end_to_end"], GREEDY)
    answer = partner.say("look", [grey(n) for n in range(10)])
    assert len(partner.turns[0].photos) == 10 and answer.context_tokens_cut == 0
    assert ChatPartner(systems["end_to_end"], GREEDY).say("look", [grey(n) for n in range(90)]).context_tokens_cut > 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_text_of_any_length_is_answered(systems, system):
    partner = ChatPartner(systems[system], GREEDY)
    text = "We flew a red kite. " * 60
    answer = partner.say(text)
    assert answer.context_tokens_cut > 0 and partner.turns[0].text == text.strip()
    assert partner.say("and then?").context_tokens_cut > answer.context_tokens_cut


WRONG = {
    "no text": (lambda partner: partner.say(None, grey(1)), TypeError, "expected a text .str., found NoneType"),
    "a number": (lambda partner: partner.say(3), TypeError, "found int"),
    "bytes": (lambda partner: partner.say(b"hi"), TypeError, "found bytes"),
    "a photo first": (lambda partner: partner.say(grey(1)), TypeError, "a photo comes second"),
    "nothing": (lambda partner: partner.say(" \n\u200b"), ValueError, "say something: a text, a photo, or both"),
    "no photos": (lambda partner: partner.say("", []), ValueError, "say something"),
    "an absent file": (lambda partner: partner.say("look", "nope.jpg"), PhotoError, "'nope.jpg'.*no such file"),
    "one bad of two": (lambda partner: partner.say("look", [grey(1), np.zeros((0, 5, 3))]), PhotoError, "no pixel"),
    "no photo in a list": (lambda partner: partner.say("look", [grey(1), None]), PhotoError, "NoneType: expected a photo"),
}


def test_what_is_refused_is_not_remembered(model):
    partner, untouched = ChatPartner(model, SAMPLED), ChatPartner(model, SAMPLED)
    for do, kind, message in WRONG.values():
        with pytest.raises(kind, match=message):
            do(partner)
        assert partner.turns == [] and partner.album.images == {}
    assert partner.say("hi").text == untouched.say("hi").text


def test_half_a_surrogate_and_line_ends_are_made_plain(systems):
    partner = ChatPartner(systems["end_to_end"], GREEDY)
    partner.say("x\ud83d\n\n  y")
    assert partner.turns[0].text == "x\ufffd y"


@pytest.mark.parametrize(("system", "error"), [("end_to_end", KeyboardInterrupt), ("pipeline", RuntimeError)])
def test_a_message_enters_the_chat_only_with_its_answer(talkative, monkeypatch, system, error):
    model = talkative(system)
    partner, calm = (ChatPartner(model, SAMPLED, seed=3) for _ in range(2))
    for chatting in (partner, calm):
        chatting.say("Hi!", grey(9))
    turns, images = list(partner.turns), dict(partner.album.images)
    captions = dict(partner.album._captions)

    def fail(*_, **__):
        raise error

    for part, name in ((model, "embed_context"), (model.language, "generate"), (model.generator, "draw")):
        with monkeypatch.context() as patch:
            patch.setattr(model.language, "generate", lambda inputs_embeds, **_: torch.tensor(
                [model.formatter.response(photo_turn("a boat")).ids]))
            patch.setattr(part, name, fail)
            for do in (lambda: partner.say("Yellow, I think.", grey(70)), partner.go_on):
                with pytest.raises(error):
                    do()
                assert partner.turns == turns and partner.album.images == images and partner.album._captions == captions
    for words in ("Yellow, I think.", "and then?"):
        again, expected = (chatting.say(words, grey(70)) for chatting in (partner, calm))
        assert (again.text, again.captions) == (expected.text, expected.captions)
    assert partner.turns == calm.turns and list(partner.album.images) == list(calm.album.images)


def test_the_same_seed_gives_the_same_chat(model):
    answers = [ChatPartner(model, SAMPLED, seed=seed).say("hi").text for seed in (5, 5, 6)]
    assert answers[0] == answers[1] != answers[2]


def test_nothing_can_go_on_before_anything_was_said(systems):
    with pytest.raises(ValueError, match="has not begun"):
        ChatPartner(systems["end_to_end"], GREEDY).go_on()


def test_a_chat_searches_for_its_words_unless_something_else_was_set(systems, monkeypatch):
    usual = Inference(max_new_tokens=6, num_inference_steps=1)
    assert chat_settings(usual) == dataclasses.replace(usual, num_beams=8)
    for changed in ({"temperature": 1.3}, {"do_sample": False}, {"top_p": 0.5}, {"num_beams": 2}, {"chat_num_beams": 1}):
        assert chat_settings(dataclasses.replace(usual, **changed)) == dataclasses.replace(usual, **changed)
    first, second = (ChatPartner(systems["end_to_end"], chat_settings(usual), seed=seed).say("Hello!") for seed in (0, 1))
    assert first.text == second.text  # the seed is the photos'


def test_a_drawn_photo_goes_to_a_free_name(scripted, typed, tmp_path):
    (tmp_path / "photo-1.png").write_text("x")
    (tmp_path / "photo-3.png").symlink_to("nowhere")
    partner = scripted(photo_turn("two red cars", "a cat"), Turn(1, "yes"))
    shown = typed(partner, "I have a red kite.", "Nice!", "")
    assert shown[1:] == ["partner: look", "partner shares photo-2.png: two red cars", "partner shares photo-4.png: a cat", "partner: yes", ""]
    assert (tmp_path / "photo-1.png").read_text() == "x" and not (tmp_path / "nowhere").exists()
    for name, photo_id in (("photo-2.png", "photo 1"), ("photo-4.png", "photo 2")):
        assert np.array_equal(Image.open(tmp_path / name), partner.album.images[photo_id])


def test_chats_at_the_same_time_take_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start, names = threading.Barrier(4), []

    def save(value):
        start.wait()
        names.extend((save_as_new(grey(value)), value) for _ in range(8))

    threads = [threading.Thread(target=save, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(name.stem[6:]) for name, _ in names) == list(range(1, 33))
    assert all(Image.open(name).getpixel((0, 0))[0] == value for name, value in names)


def test_a_photo_that_is_not_written_whole_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = open

    class Full(io.FileIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda path, mode="r", **kwargs: Full(path, "xb") if mode == "xb" else opened(path, mode, **kwargs))
    with pytest.raises(OSError, match="No space"):
        save_as_new(grey(1))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files_does_not_end_the_chat(scripted, typed, monkeypatch):
    partner = scripted(photo_turn("a cat", text=""), Turn(1, "yes"))
    monkeypatch.chdir("/proc")
    shown = typed(partner, "Show me!", "Nice!")
    assert shown[1:] == ["partner shares a photo: a cat (not saved: No such file or directory)", "partner: yes", ""]


def test_a_chat_ends_politely(scripted, typed):
    for end in (EOFError(), KeyboardInterrupt(), OSError(5, "Input/output error"), RuntimeError("input(): lost sys.stdin"), "", "  ", "/quit"):
        partner = scripted(Turn(1, "yes"))
        assert typed(partner, "Hi!", end, "never read")[1:] == ["partner: yes", ""] and len(partner.turns) == 2


def test_an_interrupted_answer_ends_the_chat_without_it(scripted, typed, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    partner = scripted()
    monkeypatch.setattr(partner.model.language, "generate", interrupted)
    assert typed(partner, "Hi!", "never read")[1:] == [""] and partner.turns == []


def test_commands_explain_themselves_and_a_text_may_begin_with_a_slash(scripted, typed):
    partner = scripted(Turn(1, "yes"), Turn(1, "no"), Turn(1, ""))
    shown = typed(partner, "/help", "/more", "/photo", "/foto cat.jpg", "//photo is a command", "/more", "/more")
    for command in ("/photo FILE", "/more", "/help", "/quit", "//"):
        assert command in shown[1]
    assert shown[2] == "(not sent: the chat has not begun; say something first)"
    assert shown[3] == "(not sent: /photo needs the name of a file)"
    assert shown[4].startswith("There is no command /foto.") and shown[4].endswith(shown[1])
    assert shown[5:] == ["partner: yes", "partner: no", "partner: (says nothing)", ""]
    assert [turn.text for turn in partner.turns] == ["/photo is a command", "yes", "no", ""]


PASTED = ["my cat.png", '"my cat.png"', "'my cat.png'", r"my\ cat.png", "~/my cat.png", '"~/my cat.png"', " my cat.png ",
          "file://HOME/my%20cat.png", "'file://HOME/my%20cat.png'", r"HOME/my\ cat.png"]


def test_photo_takes_a_file_as_terminals_paste_it(scripted, typed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    grey(77).save(tmp_path / "my cat.png")
    partner = scripted(*[Turn(1, "nice")] * len(PASTED))
    shown = typed(partner, *["/photo " + name.replace("HOME", str(tmp_path)) for name in PASTED])
    assert shown[1:] == ["partner: nice"] * len(PASTED) + [""]
    assert [image.getpixel((0, 0)) for image in partner.album.images.values()] == [(77, 77, 77)] * len(PASTED)


def test_photo_takes_several_files_and_names_the_one_that_is_missing(scripted, typed, tmp_path):
    for value, name in ((7, "a b.png"), (8, "it's.png")):
        grey(value).save(tmp_path / name)
    partner = scripted(Turn(1, "nice"), Turn(1, "yes"))
    shown = typed(partner, r"""/photo a\ b.png "it's.png" """, "/photo it's.png", "/photo it's", "/photo 'a b.png' nope.png")
    assert shown[1:3] == ["partner: nice", "partner: yes"]
    assert [len(turn.photos) for turn in partner.turns] == [2, 0, 1, 0]
    assert '"it\'s"' in shown[3] and "no such file" in shown[3] and "'nope.png'" in shown[4] and "no such file" in shown[4]


def test_a_message_longer_than_the_context_says_what_is_left_out(systems, typed):
    partner = ChatPartner(systems["end_to_end"], GREEDY)
    shown = typed(partner, "Hi!", "We flew a red kite. " * 60, "ok", "We flew a red kite. " * 60)
    cut = partner.model.formatter.context(partner.turns[2:3], 1).cut
    notice = f"(the message is longer than the 192 tokens that the partner reads: its first {cut} were left out)"
    assert cut > 0 and [i for i, line in enumerate(shown) if line == notice] == [2, 5] and len(shown) == 8


def test_a_chat_longer_than_the_context_says_so_once(scripted, typed):
    partner = scripted(*[Turn(1, "I like it, too.")] * 30)
    shown = typed(partner, *["We flew a red kite at the beach."] * 30)
    (notice,) = [i for i, line in enumerate(shown) if "from now on its oldest messages are left out" in line]
    assert len(shown) == 33  # an introduction, 30 answers, the notice, and an empty line
    cut = [partner.model.formatter.context(partner.turns[:2 * said + 1], 1).cut for said in range(30)]
    assert cut[notice - 2] == 0 < cut[notice - 1]


def test_an_impossible_seed_is_refused(systems):
    for seed in (-1, 2**63, 1.5):
        with pytest.raises(ConfigError, match="expected a whole number from 0"):
            ChatPartner(systems["end_to_end"], GREEDY, seed=seed)


@pytest.mark.fuzz
@given(st.one_of(st.text(st.characters(codec=None, exclude_categories=())), st.binary(), st.none(), st.floats()),
       st.one_of(st.none(), st.text(), st.binary(), st.lists(st.one_of(st.none(), st.text(), st.binary(), st.integers()), max_size=3)))
def test_whatever_is_said_is_answered_or_refused(systems, text, photos):
    partner = ChatPartner(systems["end_to_end"], dataclasses.replace(GREEDY, max_new_tokens=1))
    try:
        partner.say(text, photos)
    except (TypeError, ValueError) as error:
        assert partner.turns == [] and str(error).startswith(("say", "photo", "found"))
    else:
        assert len(partner.turns) == 2
