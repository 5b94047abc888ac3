"""MiniChat on disk: its dialogues, photos, and what the photos show."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e2e_lib.config import Data
from e2e_lib.data.dialogue import DataError, write_dialogues
from e2e_lib.data.minichat.chats import HELD_OUT, SPLITS, make_chat, photo_seed
from e2e_lib.data.minichat.scenes import ATTRIBUTES, COLOURS, PLACES, THINGS, Scene, draw_scene
from e2e_lib.data.photos import PhotoStore
from e2e_lib.repro import files


def write(settings: Data, folder: Path, echo: Callable[[str], None]) -> None:
    """Writes MiniChat into an empty ``folder``: one JSON-lines file per split, ``scenes.jsonl``, ``photos/``.

    The photos are RGB, ``settings.photo_size`` pixels square. Reports progress to ``echo`` after each fifth.
    Raises files.SaveError.
    """
    counts = dict(zip(SPLITS, (settings.train, settings.dev, settings.test), strict=True))
    total, done = sum(counts.values()), 0
    store, rows = PhotoStore(folder / "photos"), []
    for split, count in counts.items():
        dialogues = []
        for index in range(count):
            chat = make_chat(split, index, settings.seed)
            dialogues.append(chat.dialogue)
            for photo_id, scene in chat.scenes.items():
                photo = draw_scene(scene, photo_seed(photo_id, settings.seed), settings.photo_size)
                store.add(photo_id, photo, durable=False)
                rows.append({"photo_id": photo_id, "split": split, **asdict(scene),
                             "open": photo_id in chat.open_photos})
            done += 1
            if done % max(1, total // 5) == 0:
                echo(f"data: {done:,} of {total:,} dialogues")
        write_dialogues(folder / f"{split}.jsonl", dialogues)
    files.write_text(folder / "scenes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def count_triples(settings: Data) -> dict[str, int]:
    """How many triples of thing, colour and place there are ("all"), how many are "held_out" (no photo of the
    training or dev split shows them), and how many of these a photo of the test split shows ("in_test")."""
    shown = {scene.triple for index in range(settings.test)
             for scene in make_chat("test", index, settings.seed).scenes.values()}
    return {"all": len(THINGS) * len(COLOURS) * len(PLACES), "held_out": len(HELD_OUT),
            "in_test": len(shown & HELD_OUT)}


def _scene_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; `e2e data` makes the corpus of a profile")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        where = f"{path.name}, row {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: the line is not readable JSON ({error}); make the corpus again "
                            "with `e2e data`") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, found {type(row).__name__}")
        yield where, row


def open_photos(path: Path | str) -> set[str]:
    """The ids of the photos that nothing before them determines (see ``chats.Chat``). Raises DataError."""
    return {row["photo_id"] for _, row in _scene_rows(Path(path)) if row.get("open")}


def read_scenes(path: Path | str) -> dict[str, Scene]:
    """What each photo of a corpus shows, by photo id. Raises DataError naming file, row and field."""
    scenes: dict[str, Scene] = {}
    for where, row in _scene_rows(Path(path)):
        photo_id = row.get("photo_id")
        if not isinstance(photo_id, str) or not photo_id:
            raise DataError(f"{where}, photo_id: expected a string that is not empty, found {photo_id!r}")
        if photo_id in scenes:
            raise DataError(f"{where}, photo_id: {photo_id!r} stands in an earlier row already")
        for name, values in ATTRIBUTES.items():
            value = row.get(name)
            if value not in values or isinstance(value, bool):
                allowed = ", ".join(map(str, values))
                raise DataError(f"{where}, {name}: expected one of {allowed}, found {value!r}")
        scenes[photo_id] = Scene(**{name: row[name] for name in ATTRIBUTES})
    if not scenes:
        raise DataError(f"{path}: no scene in the file; make the corpus again with `e2e data`")
    return scenes
