"""How fast MiniChat is written: dialogues per second with photos drawn and saved, and read back from disk.

Prints one JSON line.
"""

import json
import tempfile
import time
from pathlib import Path

from e2e_lib.config import Data
from e2e_lib.data.examples import load_split
from e2e_lib.data.minichat.corpus import read_scenes, write

DIALOGUES = 1500


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder)
        start = time.perf_counter()
        write(Data(train=DIALOGUES, dev=1, test=1), corpus, lambda _: None)
        write_seconds = time.perf_counter() - start
        start = time.perf_counter()
        load_split(corpus, "train")
        read_seconds = time.perf_counter() - start
        photos = len(read_scenes(corpus / "scenes.jsonl"))
    print(json.dumps({
        "benchmark": "minichat", "dialogues": DIALOGUES, "photos": photos,
        "written_per_second": round(DIALOGUES / write_seconds),
        "read_per_second": round(DIALOGUES / read_seconds),
        "writing_over_reading": round(write_seconds / read_seconds, 2),
        "target": "at least 500 written per second"}))


if __name__ == "__main__":
    main()
