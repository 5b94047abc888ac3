"""Do the tests notice? Each mutant in ``*.toml`` beside this file is a slip that someone could make in e2e_lib.

``make mutants``, or ``python tests/mutants/run.py WORD ...`` for those with one of the words in their file, reason or
tests. Every mutant is put into a copy of the checkout, and the tests that it names must fail there. Exit status 1: fewer
than 95 % are noticed, or an entry no longer fits the code; 2: the tests fail without any mutant.
"""

import argparse
import ast
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).parent
ROOMS = ("bridge", "models", "training", "evaluation", "inference", "gradients", "other")
ROOM_OF = {"experiments/evaluate.py": "evaluation", "experiments/gradient_alignment.py": "gradients",
           "experiments/propagation.py": "gradients"}
AIM, LIMIT, MEMORY = 0.95, 600, 8 * 2**30  # the share to be noticed; seconds and bytes that a mutant's tests may take
PRELOADED = ("torch", "transformers", "diffusers", "accelerate", "pandas", "scipy.linalg", "sacrebleu.metrics", "nltk",
             "rouge_score.rouge_scorer", "pytest", "matplotlib.pyplot", "torch.utils.data", "transformers.models.llama",
             "transformers.models.blip_2.modeling_blip_2", "diffusers.models", "PIL.Image")


@dataclass(frozen=True)
class Mutant:
    """One small change of ``file``: ``old`` (occurs once) becomes ``new``, and ``tests`` should fail."""

    file: str
    old: str
    new: str
    why: str  # what would go wrong for a user
    tests: str  # what to give to pytest

    @property
    def room(self) -> str:
        path = self.file.removeprefix("e2e_lib/")
        room = ROOM_OF.get(path, path.split("/")[0])
        return room if room in ROOMS else "other"

    def problem(self, root: Path = ROOT) -> str:
        """Why this entry does not fit the code under ``root`` (any more); empty if it does."""
        if not (root / self.file).is_file():
            return "no such file"
        source = (root / self.file).read_text()
        if source.count(self.old) != 1:
            return f"'old' occurs {source.count(self.old)} times"
        try:
            ast.parse(source.replace(self.old, self.new))
        except SyntaxError as error:
            return f"'new' does not parse: {error}"
        if self.old.split() == self.new.split():
            return "'new' is the same"
        for path, _, name in (test.partition("::") for test in self.tests.split()):
            if not (root / path).is_file() or f"def {name}" not in (root / path).read_text():
                return f"no such tests: {path} {name}"
        return ""


def read_mutants() -> list[Mutant]:
    """All mutants, of every list."""
    lists = [tomllib.loads(path.read_text()) for path in sorted(LISTS.glob("*.toml"))]
    return [Mutant(**entry) for entries in lists for entry in entries["mutant"]]


def copy_checkout(folder: Path) -> Path:
    """The checkout's files, committed or not, without what git ignores."""
    names = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run_tests(folder: Path, tests: Sequence[str], log: Path) -> None:
    """Runs tests in a copy, as a forked process: the libraries are loaded already, the package is not."""
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)  # for processes that tests start
    sys.path.insert(0, str(folder))
    import pytest

    import e2e_lib
    if not Path(str(e2e_lib.__file__)).is_relative_to(folder):
        os._exit(70)
    code = pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(code))


class Slots:
    """As many copies of the checkout as there are workers, each for one process at a time, none of which outlives it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.free, self.busy = list(folders), dict[int, tuple[multiprocessing.Process, Path, object, float]]()
        self.fork = multiprocessing.get_context("fork")

    def __enter__(self) -> "Slots":
        return self

    def __exit__(self, *_: object) -> None:
        for process, *_rest in self.busy.values():
            process.kill()

    def start(self, what: object, tests: Sequence[str], mutant: Mutant | None = None) -> None:
        folder = self.free.pop()
        if mutant:
            source = (folder / mutant.file).read_text()
            (folder / mutant.file).write_text(source.replace(mutant.old, mutant.new))
        process = self.fork.Process(target=run_tests, args=(folder, tests, folder.with_suffix(".log")))
        process.start()
        self.busy[process.sentinel] = process, folder, what, time.monotonic()

    def finish(self, mutated: bool = True) -> tuple[object, int | None, str, float]:
        """Waits for one process: what it was started for, pytest's exit code (None: out of time), its output, seconds."""
        while True:
            ended = connection.wait([*self.busy], timeout=1)
            late = [key for key, (*_, began) in self.busy.items() if mutated and time.monotonic() - began > LIMIT]
            for key in [*ended, *late]:
                process, folder, what, began = self.busy.pop(int(str(key)))
                if key in late and process.is_alive():
                    process.kill()
                process.join()
                self.free.append(folder)
                code = None if process.exitcode is None or process.exitcode < 0 else process.exitcode
                return what, code, folder.with_suffix(".log").read_text(errors="replace"), time.monotonic() - began


def outcome(code: int | None, output: str) -> str:
    """What to say of a mutant's tests: who noticed it, or that no one did."""
    if code is None:
        return "killed: out of time, or the process died"
    failed = next((line.split(" - ")[0] for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return {0: "SURVIVED", 1: f"killed: {failed}", 2: f"killed: {failed or 'interrupted'}"}.get(code, f"ERROR {code}")


def check_tests(slots: Slots, mutants: Sequence[Mutant], workers: int) -> str:
    """Runs the named tests without a mutant; what failed, if anything."""
    tests = list(dict.fromkeys(name for mutant in mutants for name in mutant.tests.split()))
    parts = [part for part in (tests[k::workers] for k in range(workers)) if part]
    for part in parts:
        slots.start(None, part)
    results = [slots.finish(mutated=False) for _ in parts]
    return "\n".join(output for _, code, output, _ in results if code != 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants with one of these words in their file, reason or tests")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no copies and no processes behind
    mutants = [mutant for mutant in read_mutants() if not arguments.words or any(
        word in text for word in arguments.words for text in (mutant.file, mutant.why, mutant.tests, mutant.room))]
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                   "HYPOTHESIS_PROFILE": "mutants"}
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        importlib.import_module(name)
    from hypothesis import HealthCheck, Phase, settings
    settings.register_profile("mutants", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow],
                              phases=[Phase.explicit, Phase.generate])  # one failing input is enough, it need not be the smallest
    killed, seen, began = Counter[str](), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as base:
        whole = copy_checkout(Path(base) / "whole")  # as it was at the start, whatever is edited meanwhile
        bad = {mutant: problem for mutant in mutants if (problem := mutant.problem(whole))}
        for mutant, problem in bad.items():
            print(f"error: {mutant.file}: {mutant.why}: {problem}: {mutant.old!r}")
        mutants = sorted((mutant for mutant in mutants if mutant not in bad), key=lambda mutant: mutant.tests)
        copies = [shutil.copytree(whole, Path(base) / f"copy{k}") for k in range(arguments.workers)]
        with Slots(copies) as slots:
            if failures := check_tests(slots, mutants, arguments.workers):
                print(failures, "the tests fail without any mutant", sep="\n")
                return 2
            print(f"the tests pass without a mutant, in {time.monotonic() - began:.0f} s; {len(mutants)} mutants", flush=True)
            waiting = list(mutants)
            while waiting or slots.busy:
                while waiting and slots.free:
                    mutant = waiting.pop(0)
                    slots.start(mutant, mutant.tests.split(), mutant)
                done, code, output, seconds = slots.finish()
                assert isinstance(done, Mutant)
                for folder in slots.free:
                    shutil.copy2(whole / done.file, folder / done.file)
                said = outcome(code, output)
                seen[done.room] += 1
                killed[done.room] += said.startswith("killed")
                print(f"{said:10s} {done.file}: {done.why} ({seconds:.0f} s)", flush=True)
    for room in filter(seen.get, ROOMS):
        print(f"{room:12s} killed {killed[room]} of {seen[room]} ({killed[room] / seen[room]:.0%})")
    share = killed.total() / max(1, seen.total())
    print(f"{'all':12s} killed {killed.total()} of {seen.total()} ({share:.1%}) in {time.monotonic() - began:.0f} s")
    return int(bool(bad) or share < AIM)


if __name__ == "__main__":
    sys.exit(main())
