"""The statistics of a corpus, in the columns of the paper's Table 1 (section 3.1.1)."""

from collections.abc import Sequence
from itertools import groupby
from typing import TypedDict

from e2e_lib.data.dialogue import DataError, Dialogue


class Table1Row(TypedDict):
    """The columns of Table 1 for one split."""

    dialogues: int
    utterances: int
    consecutive_utterances: int
    utterances_per_dialogue: float
    images: int
    distinct_images: int
    images_per_dialogue: float


def table_1(dialogues: Sequence[Dialogue]) -> Table1Row:
    """Table 1 for one split, unrounded. Raises DataError for an empty split.

    "Utterances in which photos are shared are excluded": a turn that shares a photo counts only as an image,
    even where it has text beside the photo. The others are counted one by one (``utterances``) and with each
    run by the same speaker as one (``consecutive_utterances``). The paper does not say whether an excluded
    turn ends a run. It does not here: those turns are taken out first, so what a partner says just before and
    just after a photo is one run. ``utterances_per_dialogue`` counts runs, as the paper does.
    """
    if not dialogues:
        raise DataError("Table 1 of an empty split: expected at least one dialogue")
    speakers = [[turn.speaker for turn in dialogue.turns if not turn.photo] for dialogue in dialogues]
    photo_ids = [photo.photo_id for dialogue in dialogues for photo in dialogue.photos]
    runs = sum(1 for of_dialogue in speakers for _ in groupby(of_dialogue))
    return {
        "dialogues": len(dialogues),
        "utterances": sum(map(len, speakers)),
        "consecutive_utterances": runs,
        "utterances_per_dialogue": runs / len(dialogues),
        "images": len(photo_ids),
        "distinct_images": len(set(photo_ids)),
        "images_per_dialogue": len(photo_ids) / len(dialogues),
    }
