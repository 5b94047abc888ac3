"""Captions that are wrong, as people's are: training captions of MiniChat with known faults.

Photos, and what they truly show, stay as they are, so that it can be measured whether a model that learns
from wrong captions names and draws the right thing. PhotoChat's descriptions contradict their chats at times,
and DialogCC's are texts from the web that were written for other photos.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.english import PLACES as PLACE_PHRASES
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.repro.randomness import python_random

NAMED = ("colour", "thing", "place")  # the attributes that every caption of MiniChat names
_WORDS: dict[str, dict[str, str]] = {
    "colour": {value: value for value in ATTRIBUTES["colour"]},
    "thing": {value: value for value in ATTRIBUTES["thing"]},
    "place": {value: PLACE_PHRASES[value][0] for value in ATTRIBUTES["place"]},
}
_VAGUE = {"colour": "", "thing": "thing", "place": "somewhere"}
_PLURAL = {"thing": "(s?)"}  # what may follow a word, and stays


def named_values(caption: str) -> dict[str, str]:
    """The values of thing, colour and place that a caption names first; an attribute that it does not name is
    left out."""
    found: dict[str, str] = {}
    for attribute, words in _WORDS.items():
        at = {match.start(): value for value, word in words.items()
              if (match := re.search(rf"\b{word}{_PLURAL.get(attribute, '')}\b", caption))}
        if at:
            found[attribute] = at[min(at)]
    return found


def _renamed(caption: str, attribute: str, word: str) -> str:
    """The caption with another word for an attribute's value, or none (""), and articles that agree."""
    value = named_values(caption).get(attribute)
    if value is None:
        return caption
    pattern = rf"\b{_WORDS[attribute][value]}{_PLURAL.get(attribute, '')}\b" + ("" if word else " ?")
    changed = re.sub(pattern, rf"{word}\1" if attribute in _PLURAL else word, caption, count=1)
    return re.sub(r"\b(an?) (?=(\w))", lambda m: f"{'an' if m[2] in 'aeiou' else 'a'} ", changed)


def _wrong_word(caption: str, attribute: str, rng: random.Random) -> str:
    value = named_values(caption).get(attribute)
    word = rng.choice([word for other, word in _WORDS[attribute].items() if other != value])
    return _renamed(caption, attribute, word)


def _next_colour(caption: str, attribute: str, rng: random.Random) -> str:
    values, colour = ATTRIBUTES["colour"], named_values(caption).get("colour")
    if colour is None:
        return caption
    return _renamed(caption, "colour", values[(values.index(colour) + 1) % len(values)])


def _vague(caption: str, attribute: str, rng: random.Random) -> str:
    attribute = rng.choice(NAMED)
    return _renamed(caption, attribute, _VAGUE[attribute])


Fault = Callable[[str, str, random.Random], str]
# Ways in which captions are wrong: what may be wrong in one, each with the same probability and independently
# of the others, and how it becomes so. "random": each of the words for colour, thing and place. "systematic":
# red is always called orange, orange yellow, and so on, so that words alone never show that it is wrong.
# "vague": one of the words is left out. "other_photo" needs the other captions, see ``with_faults``.
FAULTS: Mapping[str, tuple[tuple[str, ...], Fault | None]] = {
    "random": (NAMED, _wrong_word), **{attribute: ((attribute,), _wrong_word) for attribute in NAMED},
    "systematic": (("colour",), _next_colour), "vague": (("caption",), _vague),
    "other_photo": (("caption",), None)}


def with_faults(examples: Sequence[Example], kind: str, rate: float, seed: int) -> list[Example]:
    """The examples with captions that are wrong with probability ``rate`` (from 0 to 1), in the way ``kind``
    of FAULTS.

    A photo has one caption wherever it is shared. Whether, and how, it is wrong depends on its id and
    ``seed`` alone; what is wrong at one rate is wrong, in the same way, at every higher one.
    """
    parts, fault = FAULTS[kind]
    every = sorted({photo.caption for example in examples for photo in example.response.photos})

    def caption_of(photo: SharedPhoto) -> str:
        caption = photo.caption
        for part in parts:
            rng = python_random(seed, "caption fault", kind, part, photo.photo_id)
            if rng.random() >= rate:
                continue
            others = [other for other in rng.sample(every, min(2, len(every))) if other != photo.caption]
            caption = fault(caption, part, rng) if fault else (others or [caption])[0]
        return caption

    def changed(turn: Turn) -> Turn:
        photos = tuple(replace(photo, caption=caption_of(photo)) for photo in turn.photos)
        return replace(turn, photos=photos) if photos else turn

    return [replace(example, context=tuple(map(changed, example.context)), response=changed(example.response))
            for example in examples]
