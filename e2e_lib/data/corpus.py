"""MiniChat on disk: the corpus of a configuration, made once and never silently stale, and what its photos show."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e2e_lib import files
from e2e_lib.config import Config, ConfigError
from e2e_lib.data.dialogue import DataError, write_dialogues
from e2e_lib.data.minichat import HELD_OUT, SPLITS, make_chat, photo_seed
from e2e_lib.data.photos import PhotoStore
from e2e_lib.data.scenes import ATTRIBUTES, Scene, draw_scene

DATA = Path("data")
_SOURCES = ("corpus.py", "minichat.py", "minichat_phrases.py", "minichat_smalltalk.py", "scenes.py")


def corpus_folder(config: Config, root: Path = DATA) -> Path:
    """Where the configuration's corpus stands. Its name holds a hash of the settings and of the code that writes it."""
    code = "".join(files.sha256(Path(__file__).parent / name) for name in _SOURCES)
    key = hashlib.sha256((repr(sorted(asdict(config.data).items())) + code).encode()).hexdigest()[:12]
    return root / f"{config.data.name}-{key}"


def prepare(config: Config, echo: Callable[[str], None], root: Path = DATA) -> Path:
    """Makes the corpus unless it is there; returns its folder. Raises ConfigError for a corpus that cannot be made here."""
    if config.data.name != "minichat":
        raise ConfigError(f"data.name = {config.data.name!r}: only minichat can be made so far; the readers of real datasets come later")
    folder = files.settle_folder(corpus_folder(config, root))
    if folder.is_dir():
        echo(f"data: {folder} is there already")
        return folder
    sizes = config.data
    tenth = max(1, (sizes.train + sizes.dev + sizes.test) // 5)

    def progress(done: int, of: int) -> None:
        if done % tenth == 0:
            echo(f"data: {done:,} of {of:,} dialogues")

    counts = build_corpus(folder, train=sizes.train, dev=sizes.dev, test=sizes.test, seed=sizes.seed,
                                   photo_size=sizes.photo_size, progress=progress)
    echo(f"data: {sum(counts['dialogues'].values()):,} dialogues with {counts['photos']:,} photos in {folder}")
    return folder


def build_corpus(folder: Path | str, *, train: int = 3000, dev: int = 300, test: int = 500, seed: int = 0, photo_size: int = 64,
                 progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Writes the corpus: a JSON-lines file a split, ``scenes.jsonl`` and the photos (RGB, ``photo_size`` pixels square).

    ``progress`` is called with (dialogues done, all dialogues). Returns counts. The folder appears only when all is in place.
    Raises files.SaveError.
    """
    counts = dict(zip(SPLITS, (train, dev, test), strict=True))
    with files.new_folder(folder) as work:
        store, rows, done = PhotoStore(work / "photos"), [], 0
        for split, count in counts.items():
            chats = []
            for index in range(count):
                chat = make_chat(split, index, seed)
                chats.append(chat.dialogue)
                for photo_id, scene in chat.scenes.items():
                    store.add(photo_id, draw_scene(scene, photo_seed(photo_id, seed), photo_size), durable=False)
                    rows.append({"photo_id": photo_id, "split": split, **asdict(scene), "open": photo_id in chat.open_photos})
                done += 1
                if progress:
                    progress(done, sum(counts.values()))
            write_dialogues(work / f"{split}.jsonl", chats)
        files.write_text(work / "scenes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    held_out = sum((row["thing"], row["colour"], row["place"]) in HELD_OUT for row in rows)
    return {"dialogues": counts, "photos": len(rows), "held_out_photos": held_out, "seed": seed}


def _scene_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; `e2e data` makes the corpus of a profile")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path.name}, row {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: the line is not readable JSON ({error}); make the corpus again with `e2e data`") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, found {type(row).__name__}")
        yield where, row


def open_photos(path: Path | str) -> set[str]:
    """The ids of the photos that nothing before them determines (see ``minichat.Chat``): left out of scene accuracy."""
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
            if row.get(name) not in values or isinstance(row.get(name), bool):
                raise DataError(f"{where}, {name}: expected one of {', '.join(map(str, values))}, found {row.get(name)!r}")
        scenes[photo_id] = Scene(**{name: row[name] for name in ATTRIBUTES})
    if not scenes:
        raise DataError(f"{path}: no scene in the file; make the corpus again with `e2e data`")
    return scenes
