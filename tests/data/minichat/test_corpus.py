"""MiniChat on disk reads back as it was made, and damaged files of scenes are named."""

import dataclasses
import json

import pytest

from e2e_lib.config import Data
from e2e_lib.data.dialogue import DataError, read_dialogues
from e2e_lib.data.minichat.chats import make_chat, photo_seed
from e2e_lib.data.minichat.corpus import open_photos, read_scenes, write
from e2e_lib.data.minichat.scenes import Scene, draw_scene
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
