"""The file of MiniChat's English: what it must have, and what is said when it has something else."""

import random
from dataclasses import fields

import pytest

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.minichat import chats, english
from e2e_lib.data.minichat.scenes import THINGS, TIMES

TEXT = english.PATH.read_text(encoding="utf-8")


def test_slots_that_the_file_lists_are_those_that_chats_fill():
    filled = chats._slots(chats.sample_scene(random.Random(0), "train"), random.Random(0), frozenset())
    tables = english.load(english.PATH)
    assert set(filled) == {*tables["slots"], *tables["agreement"]}
    assert "A_noun" not in filled and filled["A_noun"] == filled["a_noun"][0].upper() + filled["a_noun"][1:]


def test_every_situation_can_be_about_something_and_everything_has_a_situation():
    for situation in english.SITUATIONS.values():
        assert set(situation.unsuitable_things) < set(THINGS)
        assert all(set(opening) - {"states"} in ({"knower"}, {"asker"}) for opening in situation.openings)
        assert {opening.get("states", "thing") for opening in situation.openings} <= {"thing", "colour", "place"}
    assert not set.intersection(*(set(situation.unsuitable_things) for situation in english.SITUATIONS.values())) - {"bird"}


def test_shared_lists_stand_in_for_their_slot():
    colour = english.SITUATIONS["walk"].questions["colour"]
    assert len(colour) > 5 and colour[-1] == "{Other_colour} again?" and "{colour_questions}" not in colour


@pytest.mark.parametrize("old, new, message", [
    ("\n[slots]\n", "\n[slots\n", r"expected a readable TOML file"),
    ('pities = ["What a pity!",', 'pities = ["What a {pity}!",', r"phrases\.pities: expected slots of noun, .*; found 'What a \{pity\}!'"),
    ('pities = ["What a pity!",', 'pities = ["What a {pity!",', r"phrases\.pities: expected slots of"),
    ('pities = ["What a pity!", "Oh, too bad.", "Never mind.", "That is sad."]', 'pities = "Pity!"', r"phrases\.pities: expected a list of texts, found 'Pity!'"),
    ('pities = ["What a pity!", "Oh, too bad.", "Never mind.", "That is sad."]', "pities = []", r"phrases\.pities: expected a list of texts, found \[\]"),
    ("{noun} all alone {place}{time}", "{noun} all alone {at}{time}", r"captions\.templates: expected slots of noun, place, time, is; "),
    ('"Is that {at_other_place}?" =', '"Is that {at_x}?" =', r"open_questions: expected slots of"),
    ('when = ["We were out there', 'wen = ["We were out there', r"situations\.holiday: .*'wen'"),
])
def test_broken_file_is_refused_with_its_table_and_what_was_expected(tmp_path, old, new, message):
    assert TEXT.count(old) == 1
    (tmp_path / "english.toml").write_text(TEXT.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=rf"english\.toml.*{message}"):
        english.load(tmp_path / "english.toml")


def test_missing_file_or_entry_is_named(tmp_path):
    with pytest.raises(DataError, match="nothing.toml: expected a readable TOML file"):
        english.load(tmp_path / "nothing.toml")
    with pytest.raises(DataError, match=r"english\.toml, phrases: expected an entry 'hellos' beside greetings, "):
        english.PHRASES["hellos"]
    assert all(english.CAPTIONS[time] for time in TIMES)
    assert {field.name for field in fields(english.Situation)} >= set(english.load(english.PATH)["situations"]["lost"].__dict__)
