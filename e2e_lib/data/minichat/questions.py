"""Two claims of the paper that MiniChat can test (section 1): captions omit details, and errors propagate.

A detail question is about the last photo of a context, and about something that the photo's caption omits: a
system that sees the photo can answer it, one that reads the caption has to guess.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.english import CAPTIONS, QUESTIONS, QUIZ
from e2e_lib.data.minichat.scenes import Scene

# Which words of a reply state which value of an attribute.
_VALUE_WORDS: dict[str, dict[Any, str]] = {
    "number": {2: r"two", 3: r"three"}, "size": {"big": r"big(ger)?", "small": r"small(er)?"},
    "time": {"day": r"day|sunshine", "evening": r"evening|sunset|sun went down", "night": r"night|stars"},
}


def ending_in(question: str) -> re.Pattern[str]:
    """Matches a text that ends in one of MiniChat's questions, whatever fills its slots."""
    return re.compile(".+".join(re.escape(part) for part in re.split(r"{\w+}", question)) + "$")


_ENDINGS = [(name, ending_in(question)) for name, pairs in QUESTIONS.items() for question, _ in pairs]
_ENDINGS += [(name, ending_in(question)) for name, quiz in QUIZ.items() for question in quiz["questions"]]


@dataclass(frozen=True)
class Question:
    """A detail question: the photo that it is about, the attribute, and the attribute's true value."""

    photo_id: str
    attribute: str
    truth: Any

    def answered_by(self, reply: str) -> bool:
        """Whether a reply gives the true answer."""
        return stated_value(reply, self.attribute) == self.truth


def omitted_attributes(scene: Scene, caption: str) -> list[str]:
    """The attributes that a caption does not name; size applies to single things, number to groups."""
    words = {"thing": f"{scene.thing}s?", "colour": scene.colour, "place": scene.place,
             "time": "|".join(CAPTIONS[scene.time])}
    words |= {"size": scene.size} if scene.number == 1 else {"number": ("two", "three")[scene.number - 2]}
    return [name for name, pattern in words.items() if not re.search(rf"\b({pattern})\b", caption)]


def detail_question(example: Example, scenes: Mapping[str, Scene]) -> Question | None:
    """The detail question that the last turn asks and the response answers truly; None if there is none.

    ``scenes`` holds what each photo shows, by photo id.
    """
    sharing = [turn for turn in example.context if turn.photos]
    last, reply = example.context[-1], example.response
    if not sharing or not reply.text or (last is not sharing[-1] and last.speaker == reply.speaker):
        return None
    photo = sharing[-1].photos[-1]
    scene = scenes[photo.photo_id]
    omitted = omitted_attributes(scene, photo.caption)
    for name, ending in _ENDINGS:
        if name in omitted and ending.search(last.text):
            question = Question(photo.photo_id, name, getattr(scene, name))
            if question.answered_by(reply.text):
                return question
    return None


def stated_value(text: str, attribute: str) -> Any:
    """The value of number, size or time that a reply states; None if it states none, or several."""
    values = [value for value, words in _VALUE_WORDS[attribute].items()
              if re.search(rf"\b({words})\b", text.lower())]
    return values[0] if len(values) == 1 else None


def corrupt_words(caption: str, share: float, words: Sequence[str], rng: random.Random) -> str:
    """The caption with a share (0 to 1) of its words replaced, each by another one of ``words``."""
    corrupted = caption.split()
    for i in rng.sample(range(len(corrupted)), round(share * len(corrupted))):
        corrupted[i] = rng.choice([word for word in words if word != corrupted[i]])
    return " ".join(corrupted)
