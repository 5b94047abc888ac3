"""MiniChat's dialogues are sound English, true of their photos, and determine what the photos must show."""

import collections
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import e2e_lib
from e2e_lib.data.dialogue import parse_dialogue, to_row
from e2e_lib.data.minichat.chats import (
    HELD_OUT,
    Chat,
    caption_words,
    describe,
    make_chat,
    photo_seed,
    sample_scene,
)
from e2e_lib.data.minichat.english import PHRASES
from e2e_lib.data.minichat.scenes import COLOURS, PLACES, THINGS, TIMES

# Written here again on purpose, so that a mistake in the phrase tables is found.
PLACE_WORDS = {"beach": {"beach", "sea"}, "forest": {"forest", "woods"}, "city": {"city", "downtown"},
               "snow": {"snow"}, "desert": {"desert"}, "garden": {"garden"}}
TIME_WORDS = {"day": {"day", "sunshine"}, "evening": {"evening", "sunset", "sun"},
              "night": {"night", "stars"}}
THING_WORDS, COLOUR_WORDS = {t: {t} for t in THINGS}, {c: {c} for c in COLOURS}
CUE_WORDS = re.compile(r"show|see|picture|photo|look|please|sure|send|go ahead|curious|here it is", re.I)
TRIPLE_WORDS = (("thing", THING_WORDS), ("colour", COLOUR_WORDS), ("place", PLACE_WORDS))


@pytest.fixture(scope="module")
def chats() -> list[Chat]:
    return [make_chat(split, i, 0) for split in ("train", "test") for i in range(500)]


def words(text: str) -> set[str]:
    plain = set(re.findall(r"[a-z]+", text.lower()))
    return plain | {word[:-1] for word in plain if word.endswith("s")}


def values_in(text: str, table: dict[str, set[str]]) -> set[str]:
    """The values of an attribute that a text names."""
    return {value for value, names in table.items() if names & words(text)}


def turns_before_photo(chat: Chat):
    turns = chat.dialogue.turns
    return turns[:next(i for i, turn in enumerate(turns) if turn.photos)]


def test_make_chat_depends_only_on_its_arguments():
    first = [make_chat("dev", i, 3) for i in range(20)]
    assert first[::-1] == [make_chat("dev", i, 3) for i in reversed(range(20))]
    assert make_chat("dev", 0, 3) != make_chat("dev", 0, 4)
    assert make_chat("dev", 0, 3).dialogue.turns != make_chat("train", 0, 3).dialogue.turns


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("train", "dev", "test")), st.integers(0, 10**6), st.integers(0, 10**6))
def test_chats_are_well_formed_and_survive_json(split, index, seed):
    chat = make_chat(split, index, seed)
    dialogue = chat.dialogue
    assert parse_dialogue(json.loads(json.dumps(to_row(dialogue)))) == dialogue
    assert dialogue.dialogue_id == f"minichat/{split}/{index:06d}"
    assert [p.photo_id for p in dialogue.photos] == list(chat.scenes) and 1 <= len(chat.scenes) <= 3
    assert 4 <= len(dialogue.turns) <= 9 and not dialogue.turns[0].photos and dialogue.turns[0].text
    assert chat.open_photos <= set(list(chat.scenes)[:1]) and (not chat.open_photos or len(chat.scenes) > 1)
    text = " ".join(turn.text for turn in dialogue.turns if turn.text)
    assert not re.search(r"[{}]|  |\ba [aeiou]|\ban [^aeiou]", text), text
    for turn in dialogue.turns:
        assert turn.text == turn.text.strip()
        assert not turn.text or (turn.text[0].isupper() and turn.text[-1] in ".!?")


def test_held_out_triples_occur_only_in_test_and_hide_no_pair():
    assert 0.10 <= len(HELD_OUT) / (14 * 8 * 6) <= 0.115
    others = [(t, c, p) for t in THINGS for c in COLOURS for p in PLACES if (t, c, p) not in HELD_OUT]
    assert len({(t, c) for t, c, _ in others}) == 14 * 8
    assert len({(t, p) for t, _, p in others}) == 14 * 6 and len({(c, p) for _, c, p in others}) == 8 * 6
    for split, low, high in (("train", 0, 0), ("dev", 0, 0), ("test", 0.19, 0.30)):
        triples = [scene.triple for i in range(600) for scene in make_chat(split, i, 1).scenes.values()]
        assert low <= sum(triple in HELD_OUT for triple in triples) / len(triples) <= high
    with pytest.raises(ValueError, match="'valid' is not one of train, dev, test"):
        sample_scene(random.Random(0), "valid")


def test_sampled_scenes_have_the_stated_frequencies():
    rng = random.Random(5)
    scenes = [sample_scene(rng, "test") for _ in range(4000)]
    counts = collections.Counter(scene.number for scene in scenes)
    assert all(abs(counts[n] / 4000 - share) < 0.03 for n, share in ((1, 0.6), (2, 0.25), (3, 0.15)))
    assert all(scene.size == "small" for scene in scenes if scene.number > 1)
    assert abs(sum(scene.triple in HELD_OUT for scene in scenes) / 4000 - 0.25) < 0.03


@pytest.mark.parametrize("detail", (0.0, 0.35, 1.0))
def test_captions_name_thing_colour_and_place_and_are_true(detail):
    rng, patterns, with_time = random.Random(1), set(), 0
    for _ in range(1500):
        scene = sample_scene(rng, "test")
        caption = describe(scene, rng, detail)
        assert 5 <= len(caption.split()) <= 16 and caption == caption.lower() and not caption.endswith(".")
        for name, table in TRIPLE_WORDS:
            assert values_in(caption, table) == {getattr(scene, name)}
        assert values_in(caption, TIME_WORDS) <= {scene.time}
        noun = scene.thing + "s" * (scene.number > 1)
        determiner = "an?|an? (big|small)|two|three|some" if scene.number == 1 else "two|three|some"
        assert re.search(rf"\b({determiner}) {scene.colour} {noun}\b", caption), caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)
        assert not words(caption) & ({"two", "three"} - {{1: "a", 2: "two", 3: "three"}[scene.number]})
        assert not words(caption) & ({"big", "small"} - {scene.size})
        assert not (" is " in caption and scene.number > 1)
        assert not (" are " in caption and scene.number == 1)
        with_time += bool(values_in(caption, TIME_WORDS))
        patterns.add(re.sub("|".join((*THINGS, *COLOURS, *PLACES)), "_", caption))
    assert abs(with_time / 1500 - detail) < 0.05 and len(patterns) >= 8


def test_shipped_word_list_is_caption_words():
    shipped = Path(e2e_lib.__file__).parent / "weights" / "word-lists" / "minichat.txt"
    assert shipped.read_text(encoding="utf-8").split() == caption_words()


def test_earlier_turns_and_photos_determine_each_photo(chats):
    for chat in chats:
        before, earlier = "", []
        for turn in chat.dialogue.turns:
            if turn.photos and turn.photos[0].photo_id not in chat.open_photos:
                scene = chat.scenes[turn.photos[0].photo_id]
                for name, table in TRIPLE_WORDS:
                    value = getattr(scene, name)
                    in_photos = {getattr(other, name) for other in earlier}
                    assert value in values_in(before, table) | in_photos, (name, before, scene)
            before += " " + turn.text
            if turn.photos:
                earlier.append(chat.scenes[turn.photos[0].photo_id])


def test_no_single_turn_determines_the_first_photo(chats):
    for chat in chats:
        if not chat.open_photos:
            scene = next(iter(chat.scenes.values()))
            for turn in turns_before_photo(chat):
                named = [getattr(scene, name) in values_in(turn.text, table) for name, table in TRIPLE_WORDS]
                assert not all(named), turn.text


def test_some_second_photos_depend_on_the_first_photo(chats):
    dependent = 0
    for chat in chats:
        if chat.open_photos:
            turns = chat.dialogue.turns
            second = [i for i, turn in enumerate(turns) if turn.photos][1]
            text, scene = " ".join(turn.text for turn in turns[:second]), list(chat.scenes.values())[1]
            dependent += (scene.thing not in values_in(text, THING_WORDS)
                          or scene.place not in values_in(text, PLACE_WORDS))
    assert dependent >= 0.03 * len(chats)


def test_photo_follows_each_cue_and_nothing_else(chats):
    cues = [cue for name in ("requests", "announcements", "acceptances", "rescues") for cue in PHRASES[name]]
    ends = [re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(cue)) for cue in cues]
    is_cue = re.compile(f"(^|.* )({'|'.join(ends)})$")
    assert len(cues) >= 12 and all(CUE_WORDS.search(cue) for cue in cues)
    for chat in chats:
        turns = chat.dialogue.turns
        for before, turn in zip(turns, turns[1:], strict=False):
            assert bool(is_cue.match(before.text)) == bool(turn.photos), (before.text, turn)
        assert not is_cue.match(turns[-1].text)
    assert not any(is_cue.match(phrase) for phrase in PHRASES["no_photo"] + PHRASES["pities"])


QUESTION_PATTERNS = (
    ("number", re.compile(r"how many", re.I), {1: {"one"}, 2: {"two"}, 3: {"three"}}),
    ("size", re.compile(r"\b(big|what size)\b", re.I), {"big": {"big", "bigger"}, "small": {"small"}}),
    ("time", re.compile(r"at night\?|evening\?|what time|when was|when did you take the|when that was", re.I),
     TIME_WORDS))


def test_answers_about_a_photo_are_true(chats):
    counts = collections.Counter()
    for chat in chats:
        scene = None
        for turn, answer in zip(chat.dialogue.turns, chat.dialogue.turns[1:], strict=False):
            scene = chat.scenes[turn.photos[0].photo_id] if turn.photos else scene
            question = turn.text if turn.photos else re.split(r"(?<=[.!]) ", turn.text)[-1]
            if scene is None or not turn.text.endswith("?") or answer.photos:
                continue
            for name, pattern, table in QUESTION_PATTERNS:
                if not pattern.search(question):
                    continue
                truth = getattr(scene, name)
                assert values_in(answer.text, table) == {truth}, (turn.text, answer.text, scene)
                guesses = values_in(question, TIME_WORDS) if name == "time" else set()
                if len(guesses) == 1 and not re.search("what time|when", question, re.I):
                    assert answer.text.startswith("No") == (truth not in guesses), (turn.text, answer.text)
                counts[name] += 1
    assert min(counts.values()) > 20 and len(counts) == 3


def test_captions_and_words_of_a_chat_are_true_of_its_photos(chats):
    for chat in chats:
        first = next(iter(chat.scenes.values()))
        for photo in chat.dialogue.photos:
            scene = chat.scenes[photo.photo_id]
            for name, table in TRIPLE_WORDS:
                assert values_in(photo.caption, table) == {getattr(scene, name)}
            assert values_in(photo.caption, TIME_WORDS) <= {scene.time}
        before = " ".join(turn.text for turn in turns_before_photo(chat))
        caption = chat.dialogue.photos[0].caption
        # What the words state, the caption states too.
        assert values_in(before, TIME_WORDS) <= values_in(caption, TIME_WORDS), (before, caption)
        for word in ("two", "three", "big", "small"):
            assert (word in words(before)) <= (word in words(caption)), (before, caption)
            assert word not in words(before) or word in {("", "two", "three")[first.number - 1], first.size}


def test_verbs_agree_with_their_subjects(chats):
    for chat in chats:
        text = " ".join(turn.text for turn in chat.dialogue.turns)
        assert not re.search(r"\b(they|those|ones) (is|was|does)\b|\b(it|that|one) (are|were)\b", text, re.I)
        assert not re.search(r"\b(there|right beside) (is|was) (also )?(two|three|some)\b", text, re.I), text


def test_chats_are_varied(chats):
    openings = collections.Counter(chat.dialogue.turns[0].text for chat in chats)
    assert len({tuple(turn.text for turn in chat.dialogue.turns) for chat in chats}) >= 0.95 * len(chats)
    assert len(openings) >= 0.4 * len(chats) and openings.most_common(1)[0][1] <= 0.03 * len(chats)
    texts = [text for chat in chats for turn in chat.dialogue.turns
             for text in (turn.text, turn.photos[0].caption if turn.photos else "")]
    assert 350 <= len({word for text in texts for word in re.findall(r"[a-z]+", text.lower())}) <= 750
    lengths = [sum(len(turn.text.split()) for turn in chat.dialogue.turns) for chat in chats]
    assert 40 <= sum(lengths) / len(lengths) <= 80 and max(lengths) <= 110
    photos = collections.Counter(len(chat.scenes) for chat in chats)
    assert 0.6 <= photos[1] / len(chats) <= 0.8 and 0.02 <= photos[3] / len(chats) <= 0.09
    turns = [turn for chat in chats for turn in chat.dialogue.turns]
    sharers = collections.Counter(turn.speaker for turn in turns if turn.photos)
    assert min(sharers.values()) > 0.4 * sum(sharers.values())
    assert {scene.time for chat in chats for scene in chat.scenes.values()} == set(TIMES)


def test_photo_seeds_are_stable_and_distinct():
    assert photo_seed("minichat/test/000012-0", 0) == photo_seed("minichat/test/000012-0", 0)
    assert photo_seed("minichat/test/000012-0", 0) != photo_seed("minichat/test/000012-0", 1)
    assert len({photo_seed(f"minichat/train/{i:06d}-0", 0) for i in range(500)}) == 500
    assert 0 <= photo_seed("x", 0) < 2**32
