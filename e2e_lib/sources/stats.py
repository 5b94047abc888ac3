"""The numbers of a built corpus: ``e2e data stats`` (Table 1), and how many of its photos are there."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from e2e_lib.data.dialogue import DataError, read_dialogues
from e2e_lib.data.photo_index import INDEX, usable_photos
from e2e_lib.data.statistics import Table1
from e2e_lib.repro import files

SPLITS = ("train", "dev", "test")


def statistics(folder: Path, photo_turns: str = "left_out",
               real_only: bool = False) -> tuple[str, dict[str, Any]]:
    """A corpus's name ("" if it is not said), and for each split the columns of Table 1, "kept", "left_out",
    "set_aside", and "photos": how many of the distinct ones were fetched, drawn, or neither (if that is
    known).

    With ``real_only``, dialogues with a photo that was not fetched are left out. Raises DataError where there
    is no split, or nothing is left of one.
    """
    name, path = "", folder / "report.json"
    if path.is_file():
        name = str(files.read_json(path, "e2e data build", {}).get("corpus", ""))
    there = [split for split in SPLITS if (folder / f"{split}.jsonl").is_file()]
    if not there:
        raise DataError(f"{folder}: neither train.jsonl nor dev.jsonl nor test.jsonl is here; `e2e data "
                        "build` writes them, and `e2e data` those of a profile")
    has_index = (folder / "photos" / INDEX).is_file()
    photos = usable_photos(folder / "photos") if has_index else {}
    status: dict[str, str] = defaultdict(lambda: "not fetched")
    status.update({name: row.status for name, row in photos.items()})
    made: dict[str, Any] = {}
    for split in there:
        dialogues, report = read_dialogues(folder / f"{split}.jsonl")
        table = Table1(photo_turns)
        for dialogue in dialogues:
            if not real_only or all(status[photo.photo_id] == "ok" for photo in dialogue.photos):
                table.add(dialogue)
        if not table.dialogues:
            raise DataError(f"{folder / split}.jsonl: no dialogue has all its photos; `e2e data photos "
                            f"{folder}` fetches them")
        found = Counter(status[photo_id] for photo_id in table.photo_ids)
        made[split] = {**table.row(), "kept": table.dialogues, "left_out": len(dialogues) - table.dialogues,
                       "set_aside": dict(Counter(problem.field for problem in report.problems)),
                       "photos": {"fetched": found["ok"], "drawn": found["drawn"],
                                  "not fetched": found["not fetched"]} if has_index else {}}
    return name, made
