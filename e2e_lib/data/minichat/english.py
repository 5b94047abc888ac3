"""MiniChat's English: ``english.toml``, which explains its tables and slots, read once and checked."""

import string
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.minichat.scenes import PLACES, SIZES, TIMES

Phrases = tuple[str, ...]
Lists = dict[str, Phrases]


@dataclass(frozen=True)
class Situation:
    """One kind of chat. The *knower* answers the questions of the *asker*; either may share the photo.

    ``openings`` are texts by speaker ("knower" or "asker"), with the attribute that they state, if any, under
    "states"; ``questions`` and ``answers`` are about the attributes not stated yet; ``when`` states the time;
    ``asides`` are side remarks; ``asker_shares`` is what the asker says before sharing (without it, the
    knower shares); ``interest`` and ``reactions`` are what the partner says before and after the photo where
    the general phrases do not fit; ``unsuitable_things`` are those that it is never about.
    """

    openings: tuple[dict[str, str], ...]
    questions: Lists
    answers: Lists
    when: Phrases
    asides: Phrases
    asker_shares: Phrases = ()
    interest: Phrases = ()
    reactions: Phrases = ()
    unsuitable_things: Phrases = ()


# The shape of the file: str is a text, [str] a list of texts; ... stands for any name not given.
_TRIPLE = dict.fromkeys(("thing", "colour", "place"), [str])
_DETAILS = {name: {"questions": [str], "answers": dict.fromkeys(values, [str])}
            for name, values in (("number", ("2", "3")), ("size", SIZES), ("time", TIMES))}
_SHAPE = {
    "slots": {...: str}, "caption_slots": {...: str}, "singular": {...: str}, "plural": {...: str},
    "people": dict.fromkeys(("male", "female", "names"), [str]),
    "places": dict.fromkeys(PLACES, [str]), "times": dict.fromkeys(TIMES, [str]),
    "captions": dict.fromkeys(("templates", *TIMES), [str]),
    "phrases": dict.fromkeys((
        "greetings", "interest", "pauses", "agreements", "right_guesses", "wrong_colours", "wrong_places",
        "requests", "announcements", "offers", "acceptances", "no_photo", "pities", "rescues", "with_photo",
        "reactions", "quiz_replies", "open_openings", "viewer_closings", "sharer_closings"), [str]),
}
