"""What grows with the number of dialogues: measured on a small made-up corpus, worked out for a large one.

Every process of training reads all dialogues, and the index of all photos, into its memory before the first
step. Both take as much per dialogue whatever their number (``tests/experiments/test_growth.py``), so that a
corpus of a million dialogues need not be here to know what it takes.
"""

import gc
import random
import tempfile
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from e2e_lib.config import Config
from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn, write_dialogues
from e2e_lib.data.examples import split_examples
from e2e_lib.data.photo_index import PhotoIndex, PhotoRow
from e2e_lib.sources.synthetic import WORDS
from e2e_lib.training.batches import training_examples

GIB = 2**30
DIALOGUES = 2000  # of the made-up corpus
WORDS_A_TURN = 13  # of which Llama-2's 20 tokens are made, marks included
MMDIALOG_PHOTOS = 1_530_000  # different ones, as its authors count them; dialogues share some
PHOTO_BYTES = 200_000  # of a photo on disk, assumed: a JPEG of about a megapixel
# What there is, assumed: a month; the share of host memory that a rented V100 comes with; a disk.
LIMITS = {"days of training": 30.0, "host memory of a process, GiB": 61.0, "photos on disk, GiB": 1000.0}


class CorpusSize(NamedTuple):
    """Training dialogues, their turns (runs of one speaker's messages as one) and photos, and the tokens of a
    turn with its marks, in Llama-2's tokens."""

    dialogues: int
    turns: float
    photos: float
    tokens: int = 20


MMDIALOG = CorpusSize(1_079_117, 4.56, 2.59)  # as its authors count it (Feng et al., ACL 2023)


class Reading(NamedTuple):
    """What reading a corpus takes, per dialogue: seconds, and bytes that stay and that are there at most."""

    seconds: float
    kept: float
    most: float


def measure(config: Config, dialogues: int = DIALOGUES) -> Reading:
    """Makes a corpus with MMDialog's mean sizes and reads it as training does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, dialogues)
        _read(config, folder)  # the first time also loads what is needed
        began = time.process_time()
        _read(config, folder)
        seconds = time.process_time() - began
        gc.collect()
        tracemalloc.start()
        try:
            held = _read(config, folder)
            kept, most = tracemalloc.get_traced_memory()
            del held
        finally:
            tracemalloc.stop()
    return Reading(seconds / dialogues, kept / dialogues, most / dialogues)


def _read(config: Config, folder: Path) -> Any:
    """What a training process holds of the training split, and of a dev split, which is small."""
    examples, store = split_examples(folder, "train")
    return training_examples(examples, config.train), store, split_examples(folder, "dev")


def make(folder: Path, dialogues: int, seed: int = 0) -> None:
    """Writes a corpus of MMDialog's mean numbers of turns, words and photos, as `e2e data` leaves one; its
    photos are files of a byte, which the index knows."""
    rng, photos = random.Random(seed), round(dialogues * MMDIALOG_PHOTOS / MMDIALOG.dialogues)
    ids = [f"photo-{number:012d}" for number in range(photos)]
    (folder / "photos").mkdir()
    with PhotoIndex(folder / "photos") as index:
        index.execute("BEGIN")
        for photo_id in ids:
            file = f"{rng.getrandbits(256):064x}.jpg"
            (folder / "photos" / file).write_bytes(b" ")
            index.put(PhotoRow(f"https://photos.example.org/{rng.getrandbits(128):032x}.jpg", photo_id, "ok",
                               sha256=file[:64], width=1024, height=1024, bytes=1, source="downloaded",
                               file=file))
        index.execute("COMMIT")
    for split, count in (("train", dialogues), ("dev", max(1, dialogues // 100))):
        write_dialogues(folder / f"{split}.jsonl", [_dialogue(f"{split}-{number}", ids, rng)
                                                    for number in range(count)])


def _dialogue(name: str, ids: list[str], rng: random.Random) -> Dialogue:
    turns = [Turn(k % 2, " ".join(rng.choices(WORDS, k=WORDS_A_TURN)))
             for k in range(_about(MMDIALOG.turns, rng))]
    for _ in range(_about(MMDIALOG.photos, rng)):
        k = rng.randrange(len(turns))
        photo = SharedPhoto(rng.choice(ids), " ".join(rng.choices(WORDS, k=10)))
        turns[k] = Turn(turns[k].speaker, turns[k].text, (*turns[k].photos, photo))
    return Dialogue(name, tuple(turns))


def _about(mean: float, rng: random.Random) -> int:
    """One of the two whole numbers beside a mean, so that they have it."""
    return int(mean) + (rng.random() < mean % 1)


def at_size(reading: Reading, dialogues: int, photos: int, workers: int) -> dict[str, float]:
    """What a corpus of so many dialogues and different photos takes: minutes before the first step, GiB of
    host memory for each process, and for it and its loader's ``workers`` once they have touched all of it
    (each then has a copy of its own), and GiB of photos on disk."""
    kept = reading.kept * dialogues / GIB
    return {"minutes_to_read": reading.seconds * dialogues / 60, "host_gb": kept,
            "host_gb_while_reading": reading.most * dialogues / GIB,
            "host_gb_with_workers": kept * (1 + workers), "photos_gb": photos * PHOTO_BYTES / GIB}


def needs(config: Config, hours: Mapping[int, float], host_gb: float,
          found: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per number of devices and thing of which there may be too little: "what", its "need" and "limit".
    ``hours`` are those of an epoch by number of devices, ``host_gb`` what a process takes without a corpus,
    ``found`` is ``at_size``."""
    rows = []
    for devices, epoch in hours.items():
        of = (epoch * config.train.epochs / 24, host_gb + found["host_gb_with_workers"], found["photos_gb"])
        rows += [{"devices": devices, "what": what, "need": round(need, 2), "limit": limit}
                 for (what, limit), need in zip(LIMITS.items(), of, strict=True)]
    return rows
