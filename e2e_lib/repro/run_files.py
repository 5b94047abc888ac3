"""A run's folder: where it is, and reading what is in it, each row checked as it is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from e2e_lib.config import Config, ConfigError, check_seed, with_defaults
from e2e_lib.repro.files import ResultsError, find_problem, read_json, read_json_lines

RUNS = Path("runs")
NUMBER = int | float
Rows = list[dict[str, Any]]
# What stands in every row of a file, as `files.find_problem` checks it; a corpus may add to answers.
LOG = {"step": int, "epoch": NUMBER, "seconds": NUMBER, "*": NUMBER | None}  # besides its "kind"
ANSWER = {"dialogue_id": str, "index": int, "text": str, "captions": [str], "gold_text": str,
          "gold_captions": [str], "gold_photo_ids": [str]}
DETAIL = {"dialogue_id": str, "index": int, "text": str, "right": bool}
GALLERY = {"photo_id": str, "gold": str, "caption": str | None, "drawn": bool}


def run_folder(config: Config, seed: int, root: Path = RUNS) -> Path:
    """The folder of the run of a configuration with a seed. Raises ConfigError for what is no seed."""
    return seed_folder(root, config.profile, config.model.system, seed)


def seed_folder(root: Path, profile: str, system: str, seed: int) -> Path:
    """The folder of the run of a system with a seed. Raises ConfigError for what is no seed."""
    return root / profile / system / f"seed-{check_seed(seed)}"


def usual_system(profile: str, seed: int, root: Path = RUNS) -> str:
    """The end-to-end system that is chatted with unless another is asked for: the first one that is trained,
    the aligned one first, which more often draws what is meant; "end_to_end" where none is."""
    return next((name for name in ("end_to_end_aligned", "end_to_end")
                 if (seed_folder(root, profile, name, seed) / "done.json").is_file()), "end_to_end")


def read_done(folder: Path) -> dict[str, Any] | None:
    """What a run's ``done.json`` holds, its "config" with defaults; None where the run is not done.
    Raises ResultsError if it is damaged."""
    if not (folder / "done.json").is_file():
        return None
    done = read_json(folder / "done.json", _made_by(folder, "train"), {"config": {}}, remove=folder)
    try:
        return {**done, "config": with_defaults(done["config"])}
    except ConfigError as error:
        raise ResultsError(f"{folder / 'done.json'}: {error}; delete {folder} and make it again with "
                           f"`{_made_by(folder, 'train')}`") from None


def read_log(folder: Path) -> Rows:
    """A run's training log so far, [] before its first line. Raises ResultsError if it is damaged."""
    return _log(folder, growing=True) if (folder / "log.jsonl").is_file() else []


def read_logs(profile: str, seeds: Sequence[int], root: Path = RUNS) -> dict[int, Rows]:
    """The training log of each seed. Raises ResultsError if one is missing or damaged."""
    return {seed: _log(seed_folder(root, profile, "end_to_end", seed)) for seed in seeds}


def _log(folder: Path, growing: bool = False) -> Rows:
    # Lines are written as a run goes on, so that a log is made again only together with its run.
    path, made_by = folder / "log.jsonl", _made_by(folder, "train")
    rows = read_json_lines(path, made_by, {"kind": str}, growing=growing, remove=folder)
    for number, row in enumerate(rows, 1):
        numbers = {name: value for name, value in row.items() if name != "kind"}
        shape = LOG | ({"n": int} if row["kind"] == "dev" else {})
        if problem := find_problem(numbers, shape):
            raise ResultsError(f"{path}, row {number}, {problem}; delete {folder} and make it again with "
                               f"`{made_by}`")
    return rows


def read_gallery(folder: Path) -> Rows:
    """The dev answers that a run saved in ``folder`` (``<run>/gallery/epoch-<k>``); "image" is the file of
    the drawn photo, or None. Raises ResultsError if any is missing or damaged."""
    run = folder.parents[1]
    made_by = _made_by(run, "train")
    rows: Rows = read_json(folder / "gallery.json", made_by, [GALLERY], remove=run)
    for i, row in enumerate(rows):
        row["image"] = _photo(folder / f"{i}.png", run, made_by) if row["drawn"] else None
    return rows


def read_answers(profile: str, seeds: Sequence[int], root: Path = RUNS, system: str = "end_to_end",
                 folder: str = "answers") -> dict[int, Rows]:
    """The test answers of each seed; ``images`` are the files of the drawn photos. Raises ResultsError."""
    answers = _read(profile, seeds, root, system, folder, "answers.jsonl", ANSWER)
    for seed, rows in answers.items():
        place = seed_folder(root, profile, system, seed) / folder
        for i, row in enumerate(rows):
            row["images"] = [_photo(place / f"{i}-{k}.png", place, _made_by(place.parent, folder))
                             for k in range(len(row["captions"]))]
    return answers


def read_details(profile: str, seeds: Sequence[int], root: Path = RUNS, system: str = "end_to_end",
                 folder: str = "answers") -> dict[int, Rows]:
    """Each seed's replies to questions about details that captions leave out. Raises ResultsError."""
    return _read(profile, seeds, root, system, folder, "details.jsonl", DETAIL)


def _read(profile: str, seeds: Sequence[int], root: Path, system: str, folder: str, name: str,
          shape: Any) -> dict[int, Rows]:
    places = {seed: seed_folder(root, profile, system, seed) / folder for seed in seeds}
    return {seed: read_json_lines(place / name, _made_by(place.parent, folder), shape, remove=place)
            for seed, place in places.items()}


def _made_by(run: Path, what: str) -> str:
    """The command that trains the run in a folder ("train"), or that answers with it into a folder."""
    profile, system, seed = run.parts[-3:]
    end = f"--profile {profile} --seeds {seed.removeprefix('seed-')}"
    if (root := run.parents[2]).parent.name == "ablations":
        return f"e2e ablate {end} --variants {root.name}"
    if what.endswith("-ablation"):
        return f"e2e ablate {end}"
    return f"e2e {'train' if what == 'train' else 'evaluate'} {end} --system {system}"


def _photo(path: Path, remove: Path, made_by: str) -> Path:
    if not path.is_file():
        raise ResultsError(f"{path}: no such file; delete {remove} and make it again with `{made_by}`")
    try:
        with Image.open(path) as photo:
            photo.verify()
    except (OSError, SyntaxError, ValueError) as error:
        raise ResultsError(f"{path}: a damaged photo ({error}); delete {remove} and make it again with "
                           f"`{made_by}`") from None
    return path


def keyed(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of answers by the example that they answer."""
    return {(row["dialogue_id"], row["index"]): row for row in rows}
