"""The numbers of a built corpus: ``e2e data stats`` (Table 1), and how many of its photos are there."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e_lib.data.dialogue import DataError, Dialogue, read_dialogues
from e2e_lib.data.photo_index import INDEX, PhotoRow, usable_photos
from e2e_lib.data.statistics import Table1
from e2e_lib.repro import files

SPLITS = ("train", "dev", "test")
TOTAL = "total"  # as the paper's Table 1 calls the row of all splits together
Photos = Mapping[str, PhotoRow] | None  # by id, the fetched and the drawn ones; None without an index


def statistics(folder: Path, photo_turns: str = "left_out",
               real_only: bool = False) -> tuple[str, dict[str, Any]]:
    """A corpus's name ("" if it is not said), and for each split, and for all of them as ``TOTAL``, the
    columns of Table 1, "kept", "left_out", "set_aside", and "photos": how many of the distinct ones were
    fetched, drawn, or neither (if that is known).

    The total has a photo of several splits as one distinct image, where the paper's is the sum of its splits.
    With ``real_only``, dialogues with a photo that was not fetched are left out. Raises DataError where there
    is no split, or nothing is left of one.
    """
    name, path = "", files.complete_files(folder) / "report.json"
    if path.is_file():
        name = str(files.read_json(path, "e2e data build", {}).get("corpus", ""))
    there = [split for split in SPLITS if (folder / f"{split}.jsonl").is_file()]
    if not there:
        raise DataError(f"{folder}: neither train.jsonl nor dev.jsonl nor test.jsonl is here; `e2e data "
                        "build` writes them, and `e2e data` those of a profile")
    photos = usable_photos(folder / "photos") if (folder / "photos" / INDEX).is_file() else None
    made, total = dict[str, Any](), _Counts(Table1(photo_turns))
    for split in there:
        dialogues, report = read_dialogues(folder / f"{split}.jsonl")
        counts = _Counts(Table1(photo_turns), set_aside=Counter(problem.field for problem in report.problems))
        for dialogue in dialogues:
            if real_only and not _is_real(dialogue, photos or {}):
                counts.left_out += 1
            else:
                counts.table.add(dialogue)
        if not counts.table.dialogues:
            raise DataError(f"{folder / split}.jsonl: no dialogue has all its photos; `e2e data photos "
                            f"{folder}` fetches them")
        made[split] = counts.row(photos)
        total.add(counts)
    return name, {**made, TOTAL: total.row(photos)}


def _is_real(dialogue: Dialogue, photos: Mapping[str, PhotoRow]) -> bool:
    """Whether all photos of a dialogue were fetched."""
    return all(photo.photo_id in photos and photos[photo.photo_id].status == "ok"
               for photo in dialogue.photos)


@dataclass
class _Counts:
    """What was counted of a split, or of several."""

    table: Table1
    left_out: int = 0
    set_aside: Counter[str] = field(default_factory=Counter)

    def add(self, other: "_Counts") -> None:
        self.table += other.table
        self.left_out += other.left_out
        self.set_aside += other.set_aside

    def row(self, photos: Photos) -> dict[str, Any]:
        row = {**self.table.row(), "kept": self.table.dialogues, "left_out": self.left_out,
               "set_aside": dict(self.set_aside), "photos": {}}
        if photos is not None:
            found = Counter(photos[name].status if name in photos else "" for name in self.table.photo_ids)
            row["photos"] = {"fetched": found["ok"], "drawn": found["drawn"], "not fetched": found[""]}
        return row
