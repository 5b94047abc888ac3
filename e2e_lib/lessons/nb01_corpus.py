"""Notebook 01's corpora in the formats of PhotoChat and DialogCC: made-up ones with known faults, or a real
one that ``e2e data build`` wrote (sections 2.1 and 3.1.1).
"""

import json
import random
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from e2e_lib.data.dialogue import Dialogue, read_dialogues
from e2e_lib.data.minichat.chats import sample_scene
from e2e_lib.data.minichat.scenes import Scene
from e2e_lib.data.photo_index import INDEX, usable_photos
from e2e_lib.data.statistics import beside_paper
from e2e_lib.lessons.parameters import ParameterError
from e2e_lib.report.plots import Markdown, markdown
from e2e_lib.repro import files
from e2e_lib.sources import synthetic
from e2e_lib.sources.stats import SPLITS, statistics

SYNTHETIC = "synthetic"  # the parameter's value for made-up corpora
NAMES = {"photochat": "PhotoChat", "dialogcc": "DialogCC"}
COUNTS = {"train": 300, "dev": 40, "test": 40}  # sound dialogues per split
Row = dict[str, Any]


def scene_of(photo_id: str) -> Scene:
    """The MiniChat scene that a made-up photo shows; the same photo always shows the same one."""
    return sample_scene(random.Random(photo_id), "train")


def _third_speaker(row: Row) -> None:
    row["dialogue"][2] |= {"user_id": 2} if "user_id" in row["dialogue"][2] else \
        {"speaker": "Somebody else", "utterance": "And me?"}


def _two_shares(row: Row) -> None:
    for message in row["dialogue"][:2]:
        message["share_photo"] = True


def _no_description(row: Row) -> None:
    row["photo_description"] = ""


def _repeated_id(row: Row) -> None:
    row["dialogue_id"] = "wow:0" if isinstance(row["dialogue_id"], str) else 0


def _number_for_words(row: Row) -> None:
    row["dialogue"][1]["utterance"] = 12


# What is done to one more row of the training split each, and what that is called.
FAULTS: dict[str, dict[str, Callable[[Row], None]]] = {
    "photochat": {"a third user": _third_speaker, "two messages share the one photo": _two_shares,
                  "no description of the photo": _no_description, "the id of an earlier row": _repeated_id},
    "dialogcc": {"a third speaker": _third_speaker, "a number where words should be": _number_for_words,
                 "the id of an earlier row": _repeated_id}}


def write_source(name: str, folder: Path, seed: int = 0) -> Path:
    """Made-up files of "photochat" or "dialogcc" in ``folder``, in the corpus's own layout.

    Beside the dialogues of ``COUNTS``, the training split has a row for each of the corpus's ``FAULTS``. The
    objects of a PhotoChat photo are the thing and the place of its ``scene_of``, which the lesson's server
    draws.
    """
    faults, counts = FAULTS[name], COUNTS | {"train": COUNTS["train"] + len(FAULTS[name])}
    synthetic.write(name, folder, counts, seed)
    for path in sorted(folder.rglob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        if name == "photochat":
            for row in rows:
                row["photo_description"] = _described(row)
        if path.name.startswith("train"):
            for row, spoil in zip(rows[COUNTS["train"]:], faults.values(), strict=True):
                spoil(row)
        files.write_text(path, json.dumps(rows, indent=1))
    return folder


def _described(row: Row) -> str:
    """A row's description with the objects of its photo's scene, and the people it had."""
    people = row["photo_description"].partition("Objects in the photo: ")[0]
    scene = scene_of(row["photo_id"])
    return f"{people}Objects in the photo: {scene.thing.capitalize()}, {scene.place.capitalize()}"


def row_text(source: Path, most: int = 3, longest: int = 40) -> str:
    """The first training row of a source as JSON: what its format looks like.

    ``most`` messages of its dialogue are shown, up to the first with a photo; of a list of photos the first,
    and of long texts the beginning.
    """
    path = next(path for path in sorted(source.rglob("*.json")) if path.name.startswith("train"))
    row: Row = json.loads(path.read_text(encoding="utf-8"))[0]
    shares = [bool(message.get("share_photo") or message.get("shared_image")) for message in row["dialogue"]]
    last, lines = shares.index(True) + 1, list[str]()
    for key, value in row.items():
        if key == "dialogue":
            first = max(0, last - most)
            lines += [f"dialogue[{i}]: {_shortened(value[i], longest)}" for i in range(first, last)]
        else:
            lines.append(f"{key}: {_shortened(value, longest)}")
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="    ") for line in lines)


def _shortened(value: Any, longest: int) -> str:
    """A value as JSON, its long texts cut and its lists with one item."""
    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [*map(cut, value[:1]), *["…"] * (len(value) > 1)]
        return f"{value[:longest]}…" if isinstance(value, str) and len(value) > longest else value
    return json.dumps(cut(value), ensure_ascii=False)


def real_corpus(corpus_folder: str) -> dict[str, Path]:
    """The folder of a built corpus by its name. Raises ParameterError where it has no split, or no report."""
    folder = Path(corpus_folder).expanduser()
    missing = [name for name in ("train.jsonl", "report.json") if not (folder / name).is_file()]
    if missing:
        raise ParameterError(f"parameter 'corpus_folder' = {corpus_folder!r}: there is no {missing[0]} in "
                             f"it; expected {SYNTHETIC!r}, or the folder that `e2e data build` wrote, as "
                             "seen from the repository's root")
    name = str(files.read_json(folder / "report.json", "e2e data build", {}).get("corpus", folder.name))
    return {NAMES.get(name, name): folder}


def set_aside(folders: Mapping[str, Path]) -> list[list[Any]]:
    """Of each built corpus's splits: corpus, split, rows kept, rows set aside, and for which fields."""
    rows = []
    for name, folder in folders.items():
        splits = files.read_json(folder / "report.json", "e2e data build", {"splits": {}})["splits"]
        for split in [split for split in SPLITS if split in splits]:
            aside = splits[split]["set_aside"]
            reasons = ", ".join(f"{field} ({count})" for field, count in aside.items())
            rows.append([name, split, splits[split]["kept"], sum(aside.values()), reasons or "–"])
    return rows


def table_1(folders: Mapping[str, Path], paper: Mapping[str, Any]) -> Markdown:
    """Table 1 of built corpora, each with the paper's rows and the differences from them in brackets."""
    parts = []
    for name, folder in folders.items():
        is_made_up = name.startswith(SYNTHETIC)
        rows = beside_paper(statistics(folder)[1], paper["rows"], name.removeprefix(SYNTHETIC).strip())
        frame = pd.DataFrame(rows).replace("ours", SYNTHETIC if is_made_up else "ours")
        parts.append(f"**{name}**\n\n{markdown(frame.rename(columns=lambda key: key.replace('_', ' ')))}")
    return Markdown("\n\n".join(parts))


def photo_rows(folder: Path) -> list[Row]:
    """The rows of a built corpus's photos: "photo_id", "url", "caption", and what else is known of each."""
    return files.read_json_lines(folder / "photos.jsonl", "e2e data build")


def real_only(folder: Path) -> dict[str, int]:
    """How many of a built corpus's training dialogues have all of their photos fetched ("kept"), and how many
    have not ("left_out"); what ``e2e data stats --real-only`` counts."""
    photos = usable_photos(folder / "photos") if (folder / "photos" / INDEX).is_file() else {}
    fetched = {photo_id for photo_id, row in photos.items() if row.status == "ok"}
    dialogues = read_dialogues(folder / "train.jsonl")[0]
    kept = sum(all(photo.photo_id in fetched for photo in dialogue.photos) for dialogue in dialogues)
    return {"kept": kept, "left_out": len(dialogues) - kept}


def answered(dialogues: Sequence[Dialogue]) -> int:
    """In how many dialogues the partner says something, at any later time, after a photo was shared."""
    return sum(any(turn.photos and any(later.speaker != turn.speaker and later.text
                                       for later in dialogue.turns[i + 1:])
                   for i, turn in enumerate(dialogue.turns)) for dialogue in dialogues)


def shared_by_opener(dialogues: Sequence[Dialogue]) -> int:
    """In how many dialogues the first photo is shared by the one who speaks first."""
    first = [next((turn.speaker for turn in dialogue.turns if turn.photos), None) for dialogue in dialogues]
    return sum(speaker == dialogue.turns[0].speaker
               for speaker, dialogue in zip(first, dialogues, strict=True))


def before_photos(dialogues: Sequence[Dialogue]) -> Counter[str]:
    """What stands right before each turn with photos: a "question" of the partner, "other" words of the
    partner, words of the one who "shares", or "nothing", where it is the first turn."""
    found: Counter[str] = Counter()
    for dialogue in dialogues:
        for before, turn in zip((None, *dialogue.turns), dialogue.turns, strict=False):
            if turn.photos:
                found["nothing" if before is None else "shares" if before.speaker == turn.speaker else
                      "question" if before.text.endswith("?") else "other"] += 1
    return found


def most_frequent(items: Sequence[Any], among: Collection[Any]) -> set[Any]:
    """Which of ``among`` stand most often in ``items``; several where they tie."""
    counts = Counter(item for item in items if item in among)
    return {item for item, count in counts.items() if count == max(counts.values())}
