"""MiniChat on disk reads back as it was made, and damaged files of scenes are named."""

import dataclasses
import itertools
import json

import pytest

from e2e_lib.config import Data
from e2e_lib.data.dialogue import DataError, read_dialogues
from e2e_lib.data.minichat.chats import make_chat, photo_seed
from e2e_lib.data.minichat.corpus import count_triples, open_photos, read_scenes, write
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene, draw_scene
from e2e_lib.data.photos import PhotoStore

SPLITS = ("train", "dev", "test")


def test_corpus_is_complete_and_reads_back(tmp_path):
    messages = []
    write(Data(train=6, dev=3, test=4, seed=2, photo_size=32), tmp_path, messages.append)
    scenes, store = read_scenes(tmp_path / "scenes.jsonl"), PhotoStore(tmp_path / "photos")
    dialogues = {split: read_dialogues(tmp_path / f"{split}.jsonl")[0] for split in SPLITS}
    assert {split: len(rows) for split, rows in dialogues.items()} == {"train": 6, "dev": 3, "test": 4}
    assert [p.photo_id for split in SPLITS for d in dialogues[split] for p in d.photos] == list(scenes)
    chats = [make_chat("train", i, 2) for i in range(6)]
    assert dialogues["train"] == [chat.dialogue for chat in chats]
    is_open = {photo_id for photo_id in open_photos(tmp_path / "scenes.jsonl") if "/train/" in photo_id}
    assert is_open == {photo_id for chat in chats for photo_id in chat.open_photos}
    for photo_id, scene in scenes.items():
        assert store.load(photo_id).tobytes() == draw_scene(scene, photo_seed(photo_id, 2), 32).tobytes()
    assert messages[-1] == "data: 12 of 13 dialogues"


def test_triples_are_counted_as_the_photos_show_them(tmp_path):
    settings = Data(train=16, dev=6, test=30, photo_size=8)
    write(settings, tmp_path, lambda _: None)
    shown = {split: set() for split in SPLITS}
    for line in (tmp_path / "scenes.jsonl").read_text().splitlines():
        row = json.loads(line)
        shown[row["split"]].add((row["thing"], row["colour"], row["place"]))
    counts = count_triples(settings)
    held_out = {triple for triple in itertools.product(*(ATTRIBUTES[name] for name in ("thing", "colour", "place")))
                if sum(k * ATTRIBUTES[name].index(value) for k, name, value in zip((1, 2, 4), ("thing", "colour", "place"), triple, strict=True)) % 9 == 0}
    assert counts == {"all": 14 * 8 * 6, "held_out": len(held_out), "in_test": len(shown["test"] & held_out)} and counts["in_test"] > 0
    assert not (shown["train"] | shown["dev"]) & held_out
    assert count_triples(Data()) == {"all": 672, "held_out": 74, "in_test": 51}  # MiniChat's, of version 1


ROW = {"photo_id": "p", "split": "train", **dataclasses.asdict(Scene("car", "red", "beach"))}


@pytest.mark.parametrize(("text", "message"), [
    (json.dumps(ROW | {"colour": "grey"}),
     "scenes.jsonl, row 1, colour: expected one of red, .* found 'grey'"),
    (json.dumps(ROW) + "\n" + json.dumps(ROW), "row 2, photo_id: 'p' stands in an earlier row"),
    (json.dumps(ROW | {"photo_id": ""}), "row 1, photo_id: expected a string"),
    (json.dumps(ROW | {"number": True}), "row 1, number: expected one of 1, 2, 3, found True"),
    (json.dumps(ROW | {"thing": ["car"]}), "row 1, thing: expected one of car"),
    ("{oops", "row 1: the line is not readable JSON"),
    ("[1]", "row 1: expected an object, found list"),
    ("\n", "no scene in the file"),
])
def test_bad_scenes_are_named(tmp_path, text, message):
    (tmp_path / "scenes.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_scenes(tmp_path / "scenes.jsonl")


def test_missing_scene_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_scenes(tmp_path / "scenes.jsonl")
