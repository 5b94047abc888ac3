"""A run's folder: where it is, its training log and its test answers."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e_lib.config import Config
from e2e_lib.repro.results import ResultsError

RUNS = Path("runs")


def run_folder(config: Config, seed: int, root: Path = RUNS) -> Path:
    return seed_folder(root, config.profile, config.model.system, seed)


def seed_folder(root: Path, profile: str, system: str, seed: int) -> Path:
    """Where the run of a system with a seed stands."""
    return root / profile / system / f"seed-{seed}"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that was cut off is left out."""
    lines = []
    for text in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines() if (folder / "log.jsonl").is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


# ------------------------------------------------------------------------------------------------ reading a run's folder

def _json_lines(path: Path, made_by: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ResultsError(f"{path}: no such file; `{made_by}` makes it")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path}, row {number}: not readable JSON ({error}); remove the run's folder and make it again with "
                               f"`{made_by}`") from None
    return rows


def read_logs(profile: str, seeds: Sequence[int], root: Path = RUNS) -> dict[int, list[dict[str, Any]]]:
    """The training log of each seed, as ``training`` wrote it. Raises ResultsError if one is missing or damaged."""
    return {seed: _json_lines(seed_folder(root, profile, "end_to_end", seed) / "log.jsonl", f"e2e train --profile {profile}") for seed in seeds}


def read_answers(profile: str, seeds: Sequence[int], root: Path = RUNS, system: str = "end_to_end",
                 folder: str = "answers") -> dict[int, list[dict[str, Any]]]:
    """The test answers of each seed; ``image`` is the drawn photo's file, or None. Raises ResultsError."""
    answers = {}
    for seed in seeds:
        place = seed_folder(root, profile, system, seed) / folder
        rows = _json_lines(place / "answers.jsonl", f"e2e evaluate --profile {profile}")
        answers[seed] = [{**row, "image": place / f"{i}.png" if (place / f"{i}.png").is_file() else None} for i, row in enumerate(rows)]
    return answers


def read_details(profile: str, seeds: Sequence[int], root: Path = RUNS, system: str = "end_to_end",
                 folder: str = "answers") -> dict[int, list[dict[str, Any]]]:
    """The replies of each seed to questions about details that captions leave out. Raises ResultsError."""
    return {seed: _json_lines(seed_folder(root, profile, system, seed) / folder / "details.jsonl", f"e2e evaluate --profile {profile}")
            for seed in seeds}


def keyed(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of answers by the example that they answer."""
    return {(row["dialogue_id"], row["index"]): row for row in rows}
