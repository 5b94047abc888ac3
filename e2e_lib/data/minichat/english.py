"""MiniChat's English: ``english.toml``, which explains its tables and slots, read once and checked."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_lib.data.dialogue import DataError

PATH = Path(__file__).with_name("english.toml")
Phrases = tuple[str, ...]
Lists = dict[str, Phrases]


@dataclass(frozen=True)
class Situation:
    """One kind of chat. The *knower* answers the questions of the *asker*; either may share the photo.

    ``openings`` are texts by speaker, with the attribute that they state, if any, under "states";
    ``questions`` and ``answers`` are about the attributes not stated yet; ``when`` states the time;
    ``asides`` are side remarks; ``asker_shares`` is what the asker says before sharing (without it, the
    knower shares); ``interest`` and ``reactions`` are what the partner says before and after the photo, if
    not the general phrases; ``unsuitable_things`` are those that such a chat is never about.
    """

    openings: tuple[dict[str, str], ...]
    questions: Lists
    answers: Lists
    when: Phrases
    asides: Phrases
    interest: Phrases
    asker_shares: Phrases = ()
    reactions: Phrases = ()
    unsuitable_things: Phrases = ()


class Slots(dict[str, str]):
    """What fills the slots of phrases; a slot whose name starts with a capital gives text that does."""

    def __missing__(self, slot: str) -> str:
        name = slot[:1].lower() + slot[1:]
        if name not in self:
            raise KeyError(slot)
        return self[name][:1].upper() + self[name][1:]


class Table(dict[str, Any]):
    """Tables and tuples of texts by name. Raises DataError for a name that it lacks."""

    def __init__(self, where: str, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self.where = where

    def __missing__(self, name: object) -> Any:
        raise DataError(f"{self.where}: expected an entry {name!r} beside {', '.join(self)}")


def load(path: Path) -> Table:
    """The tables of such a file. Raises DataError, naming file, table and what was expected, for a file that
    is no TOML, an entry that is no list of texts or an empty one, and a text with an unknown slot."""
    try:
        file = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a readable TOML file ({error})") from None
    shared = {f"{{{name}}}": texts for name, texts in file.get("shared", {}).items()}

    def checked(value: Any, where: str, slots: dict[str, str], in_list: bool = False) -> Any:
        if isinstance(value, dict):
            return Table(where, {checked(name, where, slots, in_list=True):
                                 checked(entry, f"{where}.{name}", slots, in_list)
                                 for name, entry in value.items()})
        if isinstance(value, list) and value:
            texts = [text for entry in value for text in shared.get(str(entry), [entry])]
            return tuple(checked(text, where, slots, in_list=True) for text in texts)
        if not (isinstance(value, str) and in_list):
            raise DataError(f"{where}: expected a list of texts, found {value!r}")
        try:
            value.format_map(slots)
        except (AttributeError, LookupError, ValueError) as error:
            known = ", ".join(slots)
            raise DataError(f"{where}: expected slots of {known}; found {value!r} ({error})") from None
        return value

    slots = Slots.fromkeys((*file.get("slots", ()), *file.get("agreement", ())), "")
    own_slots = {"captions": Slots.fromkeys(file.get("caption_slots", ()), "")}
    tables = Table(path.name, {name: checked(table, f"{path.name}, {name}", own_slots.get(name, slots))
                               for name, table in file.items()})
    for name, table in tables["situations"].items():
        try:
            tables["situations"][name] = Situation(**{"interest": tables["phrases"]["interest"], **table})
        except TypeError as error:
            raise DataError(f"{table.where}: {error}") from None
    return tables


_TABLES = load(PATH)
AGREEMENT: Lists = _TABLES["agreement"]
PEOPLE: Lists = _TABLES["people"]
PLACES: Lists = _TABLES["places"]
TIMES: Lists = _TABLES["times"]
CAPTIONS: Lists = _TABLES["captions"]
PHRASES: Lists = _TABLES["phrases"]
SITUATIONS: dict[str, Situation] = _TABLES["situations"]
NEXT_PHOTO: dict[str, tuple[dict[str, str], ...]] = _TABLES["next_photo"]
OPEN_QUESTIONS, CHECKS = (tuple(_TABLES[name].items()) for name in ("open_questions", "checks"))
QUIZ: dict[str, Any] = _TABLES["quiz"]
# Questions about what a photo shows by attribute, each with its answers by value.
QUESTIONS: dict[str, tuple[tuple[str, Lists], ...]] = {
    attribute: tuple((question, form["answers"]) for form in forms.values() for question in form["questions"])
    for attribute, forms in _TABLES["questions"].items()}
