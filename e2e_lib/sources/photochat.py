"""PhotoChat (Zang et al. 2021) from its own JSON files, as dialogues and photos.

A dialogue has messages, of which at most one shares the photo that ``photo_description`` describes::

    The photo has your friend's son Azaria. Objects in the photo: Boy, Man, Footwear

Two versions of the files are in use. The older has no ``photo_id`` and one dialogue that never shares its
photo: it is then shared in user 0's last turn, where the newer version has it, and counted as repaired.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from e2e_lib.data.dialogue import DataError, Dialogue, SharedPhoto, Turn, clean_text
from e2e_lib.sources.reading import RowProblem, SourcePhoto, SourceReport, add_problem, keep, rows

CAPTIONS = ("labels", "authors", "full")
_DESCRIPTION = re.compile(r"(?:The photo has your (?P<relation>(?:\S+'s )?\S+) (?P<name>.+?)\. ?)?"
                          r"Objects in the photo: ?(?P<labels>.*)", re.DOTALL)
_FLICKR = re.compile(r"/(?P<photo>[0-9]+_[0-9a-f]+)_o\.\w+$")
Speaker = Annotated[int, msgspec.Meta(ge=0, le=1)]


class _Message(msgspec.Struct):
    message: str
    share_photo: bool
    user_id: Speaker


class _Row(msgspec.Struct):
    dialogue: list[_Message]
    dialogue_id: int | str
    photo_description: str
    photo_url: str | None = None
    photo_id: str | None = None


def read(path: Path, split: str, report: SourceReport,
         captions: str = "labels") -> Iterator[tuple[Dialogue, list[SourcePhoto]]]:
    """The dialogues of one file, each with its photo; ``report`` counts what was kept and what was not.

    ``captions`` is how a caption is made of a description: "labels" joins the objects' names, "authors" keeps
    "Objects in the photo: …" as the paper's released code does, "full" keeps the whole description, people's
    names included. Ids are ``<split>/<dialogue_id>``, since numbers begin anew in each split.
    """
    if captions not in CAPTIONS:
        raise DataError(f"captions {captions!r}: expected one of {', '.join(CAPTIONS)}")
    for number, row in rows(path, _Row, report):
        try:
            dialogue, photo = _parse(row, split, captions, report)
        except RowProblem as problem:
            add_problem(report, path, number, problem.field, problem.reason)
        else:
            if keep(report, path, number, dialogue):
                yield dialogue, [photo]


def _parse(row: Any, split: str, captions: str, report: SourceReport) -> tuple[Dialogue, SourcePhoto]:
    photo = describe(row.photo_description, captions)
    if not photo.labels:
        report.repaired["description of another form, used whole as caption"] += 1
    found = _FLICKR.search(row.photo_url or "")
    own = (row.photo_id or "").strip()
    photo_id = own or (f"flickr/{found['photo']}" if found else f"{split}/{row.dialogue_id}")
    photo = msgspec.structs.replace(photo, photo_id=photo_id, url=(row.photo_url or "").strip())
    shared, turns = (SharedPhoto(photo_id, photo.caption),), list[Turn]()
    for message in row.dialogue:
        turn = Turn(message.user_id, clean_text(message.message), shared if message.share_photo else ())
        if turn.text or turn.photos:
            turns.append(turn)
        else:
            report.repaired["blank message left out"] += 1
    shares = sum(bool(turn.photos) for turn in turns)
    if shares > 1:
        raise RowProblem("share_photo", f"{shares} messages share the dialogue's one photo")
    if not shares:
        report.repaired["photo never shared, shared in user 0's last turn"] += 1
        turns.append(Turn(0, "", shared))
    return Dialogue(f"{split}/{row.dialogue_id}", tuple(turns)), photo


def describe(description: str, captions: str = "labels") -> SourcePhoto:
    """A photo's caption, labels, and whom it shows, from its description; without id and address.

    A description of another form is the caption as it is, without labels. Raises RowProblem for an empty one.
    """
    text = clean_text(description)
    if not text:
        raise RowProblem("photo_description", "expected a description, found none")
    found = _DESCRIPTION.fullmatch(text)
    if not found:
        return SourcePhoto("", "", text)
    labels = tuple(label for part in found["labels"].rstrip(".").split(",") if (label := part.strip()))
    if not labels:
        raise RowProblem("photo_description", f"no objects in {text!r}")
    caption = {"labels": ", ".join(labels), "authors": f"Objects in the photo: {found['labels']}",
               "full": text}
    return SourcePhoto("", "", caption[captions], labels, found["relation"] or "", found["name"] or "")
