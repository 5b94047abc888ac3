"""How fast MiniChat is made: dialogues a second with photos drawn and saved, against a corpus read back from disk. Prints one JSON line."""

import json
import tempfile
import time
from pathlib import Path

from e2e_lib.data.examples import load_split
from e2e_lib.data.minichat.corpus import build_corpus

DIALOGUES = 1500


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        began = time.perf_counter()
        counts = build_corpus(corpus, train=DIALOGUES, dev=1, test=1)
        made = time.perf_counter() - began
        began = time.perf_counter()
        load_split(corpus, "train")
        read = time.perf_counter() - began
    print(json.dumps({"benchmark": "minichat", "dialogues": DIALOGUES, "photos": counts["photos"], "made_per_second": round(DIALOGUES / made),
                      "read_per_second": round(DIALOGUES / read), "making_over_reading": round(made / read, 2), "target": "at least 500 made a second"}))


if __name__ == "__main__":
    main()
