"""Runs the quick tests with every version of Python that the package supports and this machine has, each in a
virtual environment of its own, ``.venvs/3.12`` and the like; says which ran and which are not here.

    .venv/bin/python tests/versions.py [TEST ...]    other tests than the quick ones, passed to pytest
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("tests/bridge", "tests/data", "tests/evaluation", "tests/models", "tests/test_config.py", "tests/repro/test_files.py",
         "tests/repro/test_results.py", "tests/repro/test_randomness.py")
INSTALLED = Path.home() / ".pyenv" / "versions"  # where pyenv keeps versions that are not on the path


def supported(requires: str) -> list[str]:
    """The versions that ``requires-python`` (">=3.11,<3.14") allows: 3.11, 3.12 and 3.13."""
    low, high = (int(bound.rpartition(".")[2]) for bound in requires.split(","))
    return [f"3.{minor}" for minor in range(low, high)]


def find_python(version: str, installed: Path = INSTALLED) -> str | None:
    """A Python of this version that starts, from the path or from pyenv's folder; None where there is none."""
    candidates = [shutil.which(f"python{version}"), *sorted(installed.glob(f"{version}.*/bin/python"))]
    print_version = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", print_version], capture_output=True, text=True)
        if done.stdout.strip() == version:  # pyenv leaves a python3.12 on the path that does not start
            return str(candidate)
    return None


def main(tests: list[str], root: Path = ROOT, installed: Path = INSTALLED) -> int:
    """Runs ``tests``, by default the quick ones; returns 1 if any version failed, or none is here."""
    requires = tomllib.loads((root / "pyproject.toml").read_text())["project"]["requires-python"]
    outcome: dict[str, str] = {}
    for version in supported(requires):
        if (python := find_python(version, installed)) is None:
            outcome[version] = "not on this machine"
            continue
        print(f"== Python {version}: {python}", flush=True)
        done = subprocess.run(["make", "test", f"VENV=.venvs/{version}", f"PYTHON={python}",
                               f"TESTS={' '.join(tests or QUICK)}"], cwd=root)
        outcome[version] = "passed" if done.returncode == 0 else "FAILED"
    for version, what in outcome.items():
        print(f"Python {version}: {what}")
    return int("FAILED" in outcome.values() or "passed" not in outcome.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
