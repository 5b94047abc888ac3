"""Runs the benchmarks in turn: `make bench`, and then benchmarks.json, or `make bench BENCH=name`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from e2e_lib.repro.files import write_json

HERE = Path(__file__).parent


def main(words: list[str], folder: Path = HERE, results: Path = HERE.parents[1] / "results") -> int:
    """``words`` are a benchmark's name, or nothing for all, and flags to pass on; returns the exit code."""
    scripts = sorted(folder.glob("bench_*.py"))
    names, flags = ([word for word in words if word.startswith("-") == flag] for flag in (False, True))
    selected = [script for script in scripts if not names or script.stem.removeprefix("bench_") in names]
    if not selected:
        print(f"no benchmark is called {' or '.join(names)}; there are: "
              + ", ".join(script.stem.removeprefix("bench_") for script in scripts), file=sys.stderr)
        return 1
    measured = []
    for script in selected:
        done = subprocess.run([sys.executable, str(script), *flags], stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip(), flush=True)
        if done.returncode:
            return done.returncode
        measured.append(json.loads(done.stdout.strip().splitlines()[-1]))
    if len(selected) == len(scripts):
        write_json(results / "mini" / "benchmarks.json",
                   {"command": "make bench", "cpu_count": os.cpu_count(), "measured": measured})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
