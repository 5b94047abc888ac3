"""A run's folder: where it is, its training log and its test answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e_lib.config import Config
from e2e_lib.repro.files import read_json_lines

RUNS = Path("runs")
Rows = list[dict[str, Any]]


def run_folder(config: Config, seed: int, root: Path = RUNS) -> Path:
    """The folder of the run of a configuration with a seed."""
    return seed_folder(root, config.profile, config.model.system, seed)


def seed_folder(root: Path, profile: str, system: str, seed: int) -> Path:
    """The folder of the run of a system with a seed."""
    return root / profile / system / f"seed-{seed}"


def read_log(folder: Path) -> Rows:
    """A run's training log so far, [] before its first line. Raises ResultsError if it is damaged."""
    path = folder / "log.jsonl"
    return read_json_lines(path, "e2e train", growing=True) if path.is_file() else []


def read_logs(profile: str, seeds: Sequence[int], root: Path = RUNS) -> dict[int, Rows]:
    """The training log of each seed. Raises ResultsError if one is missing or damaged."""
    return _read(profile, seeds, root, "end_to_end", "log.jsonl", "train")


def read_answers(profile: str, seeds: Sequence[int], root: Path = RUNS, system: str = "end_to_end",
                 folder: str = "answers") -> dict[int, Rows]:
    """The test answers of each seed; ``image`` is the drawn photo's file, or None. Raises ResultsError."""
    answers = _read(profile, seeds, root, system, f"{folder}/answers.jsonl")
    for seed, rows in answers.items():
        for i, row in enumerate(rows):
            image = seed_folder(root, profile, system, seed) / folder / f"{i}.png"
            row["image"] = image if image.is_file() else None
    return answers


def read_details(profile: str, seeds: Sequence[int], root: Path = RUNS, system: str = "end_to_end",
                 folder: str = "answers") -> dict[int, Rows]:
    """Each seed's replies to questions about details that captions leave out. Raises ResultsError."""
    return _read(profile, seeds, root, system, f"{folder}/details.jsonl")


def _read(profile: str, seeds: Sequence[int], root: Path, system: str, name: str,
          command: str = "evaluate") -> dict[int, Rows]:
    return {seed: read_json_lines(seed_folder(root, profile, system, seed) / name,
                                  f"e2e {command} --profile {profile} --system {system}")
            for seed in seeds}


def keyed(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of answers by the example that they answer."""
    return {(row["dialogue_id"], row["index"]): row for row in rows}
