import collections
import dataclasses
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.data.dialogue import DataError, parse_dialogue, read_dialogues, to_row
from e2e_lib.data.minichat import chats as minichat
from e2e_lib.data.minichat import smalltalk as minichat_smalltalk
from e2e_lib.data.minichat.chats import HELD_OUT, Chat, describe, make_chat, photo_seed, sample_scene
from e2e_lib.data.minichat.corpus import build_corpus, read_scenes
from e2e_lib.data.minichat.scenes import COLOURS, PLACES, THINGS, TIMES, Scene, draw_scene
from e2e_lib.data.photos import PhotoStore

# Written down here again on purpose, so that a slip in the phrase tables is seen.
PLACE_WORDS = {"beach": {"beach", "sea"}, "forest": {"forest", "woods"}, "city": {"city", "downtown"}, "snow": {"snow"},
               "desert": {"desert"}, "garden": {"garden"}}
TIME_SIGNS = {"day": {"day", "sunshine"}, "evening": {"evening", "sunset", "sun"}, "night": {"night", "stars"}}
CUE_SIGNS = re.compile(r"show|see|picture|photo|look|please|sure|send|go ahead|curious|here it is", re.I)


@pytest.fixture(scope="module")
def chats() -> list[Chat]:
    return [make_chat(split, i, 0) for split in ("train", "test") for i in range(500)]


def words(text: str) -> set[str]:
    found = set(re.findall(r"[a-z]+", text.lower()))
    return found | {word[:-1] for word in found if word.endswith("s")}


def values_in(text: str, table: dict[str, set[str]]) -> set[str]:
    return {value for value, signs in table.items() if signs & words(text)}


THING_WORDS, COLOUR_WORDS = {t: {t} for t in THINGS}, {c: {c} for c in COLOURS}


def test_the_same_arguments_give_the_same_chat_in_any_order():
    first = [make_chat("dev", i, 3) for i in range(20)]
    assert first[::-1] == [make_chat("dev", i, 3) for i in reversed(range(20))]
    assert make_chat("dev", 0, 3) != make_chat("dev", 0, 4)
    assert make_chat("dev", 0, 3).dialogue.turns != make_chat("train", 0, 3).dialogue.turns


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("train", "dev", "test")), st.integers(0, 10**6), st.integers(0, 10**6))
def test_chats_round_trip_and_keep_their_shape(split, index, seed):
    chat = make_chat(split, index, seed)
    dialogue = chat.dialogue
    assert parse_dialogue(json.loads(json.dumps(to_row(dialogue)))) == dialogue
    assert dialogue.dialogue_id == f"minichat/{split}/{index:06d}"
    assert [p.photo_id for p in dialogue.photos] == list(chat.scenes) and 1 <= len(chat.scenes) <= 3
    assert 4 <= len(dialogue.turns) <= 9 and not dialogue.turns[0].photo and dialogue.turns[0].text
    assert chat.open_photos <= set(list(chat.scenes)[:1]) and (not chat.open_photos or len(chat.scenes) > 1)
    text = " ".join(t.text for t in dialogue.turns if t.text)
    assert not re.search(r"[{}]|  |\ba [aeiou]|\ban [^aeiou]", text), text
    for turn in dialogue.turns:
        assert turn.text == turn.text.strip() and (not turn.text or (turn.text[0].isupper() and turn.text[-1] in ".!?"))


def test_held_out_triples_come_only_in_test_and_hide_no_pair():
    assert 0.10 <= len(HELD_OUT) / (14 * 8 * 6) <= 0.115
    seen = [(t, c, p) for t in THINGS for c in COLOURS for p in PLACES if (t, c, p) not in HELD_OUT]
    assert len({(t, c) for t, c, _ in seen}) == 14 * 8
    assert len({(t, p) for t, _, p in seen}) == 14 * 6 and len({(c, p) for _, c, p in seen}) == 8 * 6
    for split, low, high in (("train", 0, 0), ("dev", 0, 0), ("test", 0.19, 0.30)):
        triples = [s.triple for i in range(600) for s in make_chat(split, i, 1).scenes.values()]
        assert low <= sum(t in HELD_OUT for t in triples) / len(triples) <= high
    with pytest.raises(ValueError, match="'valid' is not one of train, dev, test"):
        sample_scene(random.Random(0), "valid")


def test_sampled_scenes_follow_their_shares():
    rng = random.Random(5)
    scenes = [sample_scene(rng, "test") for _ in range(4000)]
    counts = collections.Counter(s.number for s in scenes)
    assert all(abs(counts[n] / 4000 - share) < 0.03 for n, share in ((1, 0.6), (2, 0.25), (3, 0.15)))
    assert all(s.size == "small" for s in scenes if s.number > 1)
    assert abs(sum(s.triple in HELD_OUT for s in scenes) / 4000 - 0.25) < 0.03


@pytest.mark.parametrize("detail", (0.0, 0.35, 1.0))
def test_captions_name_thing_colour_and_place_and_agree(detail):
    rng, shapes, said = random.Random(1), set(), 0
    for _ in range(1500):
        scene = sample_scene(rng, "test")
        caption = describe(scene, rng, detail)
        assert 5 <= len(caption.split()) <= 16 and caption == caption.lower() and not caption.endswith(".")
        assert values_in(caption, THING_WORDS) == {scene.thing} and values_in(caption, COLOUR_WORDS) == {scene.colour}
        assert values_in(caption, PLACE_WORDS) == {scene.place} and values_in(caption, TIME_SIGNS) <= {scene.time}
        noun = scene.thing + "s" * (scene.number > 1)
        before = r"\b(an?|an? (big|small)|two|three|some) " if scene.number == 1 else r"\b(two|three|some) "
        assert re.search(before + f"{scene.colour} {noun}\\b", caption), caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)
        assert not words(caption) & ({"two", "three"} - {{1: "a", 2: "two", 3: "three"}[scene.number]})
        assert not words(caption) & ({"big", "small"} - {scene.size})
        assert not (" is " in caption and scene.number > 1) and not (" are " in caption and scene.number == 1)
        said += bool(values_in(caption, TIME_SIGNS))
        shapes.add(re.sub("|".join((*THINGS, *COLOURS, *PLACES)), "_", caption))
    assert abs(said / 1500 - detail) < 0.05 and len(shapes) >= 8


def test_each_photo_follows_from_what_came_before(chats):
    for chat in chats:
        before, shown = "", []
        for turn in chat.dialogue.turns:
            if turn.photo and turn.photo.photo_id not in chat.open_photos:
                scene = chat.scenes[turn.photo.photo_id]
                for name, table in (("thing", THING_WORDS), ("colour", COLOUR_WORDS), ("place", PLACE_WORDS)):
                    value = getattr(scene, name)
                    assert value in values_in(before, table) or value in {getattr(s, name) for s in shown}, (name, before, scene)
            before += " " + turn.text
            if turn.photo:
                shown.append(chat.scenes[turn.photo.photo_id])


def test_the_first_photo_takes_more_than_one_turn_to_know(chats):
    for chat in chats:
        if not chat.open_photos:
            scene = next(iter(chat.scenes.values()))
            for turn in chat.dialogue.turns[: next(i for i, t in enumerate(chat.dialogue.turns) if t.photo)]:
                told = [v in values_in(turn.text, w) for v, w in zip(scene.triple, (THING_WORDS, COLOUR_WORDS, PLACE_WORDS), strict=True)]
                assert not all(told), turn.text


def test_some_second_photos_need_the_first_to_be_seen(chats):
    needing = 0
    for chat in chats:
        if chat.open_photos:
            turns = chat.dialogue.turns
            second = [i for i, t in enumerate(turns) if t.photo][1]
            text = " ".join(t.text for t in turns[:second])
            scene = list(chat.scenes.values())[1]
            needing += scene.thing not in values_in(text, THING_WORDS) or scene.place not in values_in(text, PLACE_WORDS)
    assert needing >= 0.03 * len(chats)


def test_a_photo_comes_after_a_cue_and_only_then(chats):
    cues = [*minichat_smalltalk.REQUESTS, *minichat_smalltalk.ANNOUNCEMENTS, *minichat_smalltalk.ACCEPTANCES, *minichat_smalltalk.RESCUES]
    ends = [re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(cue)) for cue in cues]
    is_cue = re.compile(f"(^|.* )({'|'.join(ends)})$")
    assert len(cues) >= 12 and all(CUE_SIGNS.search(cue) for cue in cues)
    for chat in chats:
        turns = chat.dialogue.turns
        for before, turn in zip(turns, turns[1:], strict=False):
            assert bool(is_cue.match(before.text)) == bool(turn.photo), (before.text, turn)
        assert not is_cue.match(turns[-1].text)
        for phrase in minichat_smalltalk.NO_PHOTO + minichat_smalltalk.PITIES:
            assert not is_cue.match(phrase)


ANSWERABLE = (("number", re.compile(r"how many", re.I), {1: {"one"}, 2: {"two"}, 3: {"three"}}),
              ("size", re.compile(r"\b(big|what size)\b", re.I), {"big": {"big", "bigger"}, "small": {"small"}}),
              ("time", re.compile(r"at night\?|evening\?|what time|when was|when did you take the|when that was", re.I), TIME_SIGNS))


def test_answers_about_a_photo_are_true(chats):
    seen = collections.Counter()
    for chat in chats:
        scene = None
        for turn, answer in zip(chat.dialogue.turns, chat.dialogue.turns[1:], strict=False):
            scene = chat.scenes[turn.photo.photo_id] if turn.photo else scene
            last = re.split(r"(?<=[.!]) ", turn.text)[-1] if not turn.photo else turn.text
            if scene is None or not turn.text.endswith("?") or answer.photo:
                continue
            for name, asks, table in ANSWERABLE:
                if asks.search(last):
                    truth = getattr(scene, name)
                    signs = {value for value, sign in table.items() if sign & words(answer.text)}
                    assert signs == {truth}, (turn.text, answer.text, scene)
                    opens_no, asked = answer.text.startswith("No"), values_in(last, TIME_SIGNS) if name == "time" else set()
                    if len(asked) == 1 and not re.search("what time|when", last, re.I):
                        assert opens_no == (truth not in asked), (turn.text, answer.text)
                    seen[name] += 1
    assert min(seen.values()) > 20 and len(seen) == 3


def test_captions_and_words_of_a_chat_are_true_of_the_photos(chats):
    for chat in chats:
        first, turns = next(iter(chat.scenes.values())), chat.dialogue.turns
        for photo in chat.dialogue.photos:
            scene = chat.scenes[photo.photo_id]
            assert values_in(photo.caption, THING_WORDS) == {scene.thing} and values_in(photo.caption, PLACE_WORDS) == {scene.place}
            assert values_in(photo.caption, COLOUR_WORDS) == {scene.colour} and values_in(photo.caption, TIME_SIGNS) <= {scene.time}
        before = " ".join(t.text for t in turns[: next(i for i, t in enumerate(turns) if t.photo)])
        caption = chat.dialogue.photos[0].caption
        assert values_in(before, TIME_SIGNS) <= values_in(caption, TIME_SIGNS), (before, caption)  # what was told is drawn
        for word in ("two", "three", "big", "small"):
            assert (word in words(before)) <= (word in words(caption)), (before, caption)
            assert not (word in words(before) and word not in {("", "two", "three")[first.number - 1], first.size})


def test_verbs_agree_with_their_subjects(chats):
    for chat in chats:
        text = " ".join(turn.text for turn in chat.dialogue.turns)
        assert not re.search(r"\b(they|those|ones) (is|was|does)\b|\b(it|that|one) (are|were)\b", text, re.I), text
        assert not re.search(r"\b(there|right beside) (is|was) (also )?(two|three|some)\b", text, re.I), text


def test_chats_are_varied(chats):
    firsts = collections.Counter(c.dialogue.turns[0].text for c in chats)
    assert len({tuple(t.text for t in c.dialogue.turns) for c in chats}) >= 0.95 * len(chats)
    assert len(firsts) >= 0.4 * len(chats) and firsts.most_common(1)[0][1] <= 0.03 * len(chats)
    vocabulary = collections.Counter(word for c in chats for t in c.dialogue.turns
                                     for word in re.findall(r"[a-z]+", f"{t.text} {t.photo.caption if t.photo else ''}".lower()))
    assert 350 <= len(vocabulary) <= 750
    lengths = [sum(len(t.text.split()) for t in c.dialogue.turns) for c in chats]
    assert 40 <= sum(lengths) / len(lengths) <= 80 and max(lengths) <= 110
    photos = collections.Counter(len(c.scenes) for c in chats)
    assert 0.6 <= photos[1] / len(chats) <= 0.8 and 0.02 <= photos[3] / len(chats) <= 0.09
    sharers = collections.Counter(t.speaker for c in chats for t in c.dialogue.turns if t.photo)
    assert min(sharers.values()) > 0.4 * sum(sharers.values())
    assert {s.time for c in chats for s in c.scenes.values()} == set(TIMES)


def test_a_corpus_is_complete_and_reads_back(tmp_path):
    calls = []
    counts = build_corpus(tmp_path / "corpus", train=6, dev=3, test=4, seed=2, photo_size=32, progress=lambda *c: calls.append(c))
    scenes = read_scenes(tmp_path / "corpus" / "scenes.jsonl")
    assert counts["dialogues"] == {"train": 6, "dev": 3, "test": 4} and counts["photos"] == len(scenes) and calls[-1] == (13, 13)
    store = PhotoStore(tmp_path / "corpus" / "photos")
    dialogues = [d for split in ("train", "dev", "test") for d in read_dialogues(tmp_path / "corpus" / f"{split}.jsonl")[0]]
    assert [p.photo_id for d in dialogues for p in d.photos] == list(scenes)
    assert dialogues[0] == make_chat("train", 0, 2).dialogue
    for photo_id, scene in scenes.items():
        assert store.load(photo_id).tobytes() == draw_scene(scene, photo_seed(photo_id, 2), 32).tobytes()


def test_a_cut_off_build_leaves_nothing(tmp_path):
    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(tmp_path / "corpus", train=5, dev=1, test=1, photo_size=16, progress=stop)
    assert list(tmp_path.iterdir()) == []


GOOD = {"photo_id": "p", "split": "train", **dataclasses.asdict(Scene("car", "red", "beach"))}


@pytest.mark.parametrize(("text", "message"), [
    (json.dumps(GOOD | {"colour": "grey"}), "scenes.jsonl, row 1, colour: expected one of red, .* found 'grey'"),
    (json.dumps(GOOD) + "\n" + json.dumps(GOOD), "row 2, photo_id: 'p' stands in an earlier row"),
    (json.dumps(GOOD | {"photo_id": ""}), "row 1, photo_id: expected a string"),
    (json.dumps(GOOD | {"number": True}), "row 1, number: expected one of 1, 2, 3, found True"),
    (json.dumps(GOOD | {"thing": ["car"]}), "row 1, thing: expected one of car"),
    ("{oops", "row 1: the line is not readable JSON"), ("[1]", "row 1: expected an object, found list"), ("\n", "no scene in the file"),
])
def test_bad_scenes_are_named(tmp_path, text, message):
    (tmp_path / "scenes.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_scenes(tmp_path / "scenes.jsonl")


def test_a_missing_scene_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_scenes(tmp_path / "scenes.jsonl")


def test_photo_seeds_are_stable_and_differ():
    assert photo_seed("minichat/test/000012-0", 0) == photo_seed("minichat/test/000012-0", 0) != photo_seed("minichat/test/000012-0", 1)
    assert len({photo_seed(f"minichat/train/{i:06d}-0", 0) for i in range(500)}) == 500
    assert 0 <= minichat.photo_seed("x", 0) < 2**32
