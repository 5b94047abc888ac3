"""How fast published corpora are read: dialogues per CPU second, against parsing the same files alone.

The files are made up, in the real formats and of a tenth of the real size (E2E_SOURCES_SCALE=1 for all of it).
The floor is msgspec's own decoding of each row, untyped and typed. Prints one JSON line.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

import msgspec

from e2e_lib.sources import synthetic
from e2e_lib.sources.build import READERS, build, find_files
from e2e_lib.sources.dialogcc import _Row as DialogCC
from e2e_lib.sources.photochat import _Row as PhotoChat
from e2e_lib.sources.reading import SourceReport

COUNTS = {"photochat": {"train": 10286, "dev": 1000, "test": 1000}, "dialogcc": {"train": 68402, "valid": 7644, "test": 7324}}
ROWS = {"photochat": PhotoChat, "dialogcc": DialogCC}
SCALE = float(os.environ.get("E2E_SOURCES_SCALE", "0.1"))


def cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(name, folder):
    counts = {split: int(SCALE * count) for split, count in COUNTS[name].items()}
    files = find_files(synthetic.write(name, folder / name, counts))
    total = sum(counts.values())

    def parse(kind):
        for path in sum(files.values(), []):
            decoder = msgspec.json.Decoder(kind)
            for raw in msgspec.json.decode(path.read_bytes(), type=list[msgspec.Raw]):
                decoder.decode(raw)

    def read():
        for split, paths in files.items():
            report = SourceReport()
            kept = sum(1 for path in paths for _ in READERS[name](path, split, report))
            assert kept == report.kept

    read()  # the first time also loads what is needed
    reading, untyped, typed = cpu_seconds(read), cpu_seconds(lambda: parse(object)), cpu_seconds(lambda: parse(ROWS[name]))
    building = cpu_seconds(lambda: build(name, folder / name, folder / f"{name}-built", lambda _: None))
    return {"dialogues": total, "read_per_second": round(total / reading), "over_untyped_parsing": round(reading / untyped, 2),
            "over_typed_parsing": round(reading / typed, 2), "building_over_reading": round(building / reading, 2)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured = {name: measure(name, Path(folder)) for name in COUNTS}
    print(json.dumps({"benchmark": "sources", "scale": SCALE, **measured,
                      "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                      "target": "whole DialogCC read in 8 CPU seconds and 700 MiB, PhotoChat in 2"}))


if __name__ == "__main__":
    main()
