"""Two questions of the paper as experiments whose answer is known in MiniChat: captions lose detail, and errors propagate (section 1)."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.scenes import Scene
from e2e_lib.data.minichat.smalltalk import CAPTION_TIMES, QUESTIONS, QUIZ

# What a reply says of an attribute: its value, by the words that mean it.
_SAID: dict[str, dict[Any, str]] = {
    "number": {2: r"two", 3: r"three"}, "size": {"big": r"big(ger)?", "small": r"small(er)?"},
    "time": {"day": r"day|sunshine", "evening": r"evening|sunset|sun went down", "night": r"night|stars"},
}


def ending_in(question: str) -> re.Pattern[str]:
    """What finds a question of the phrase book at the end of a text, whatever fills its places."""
    return re.compile(".+".join(re.escape(part) for part in re.split(r"{\w+}", question)) + "$")


def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    asked = [(name, question) for name, pairs in QUESTIONS.items() for question, _ in pairs]
    asked += [(name, question) for name, questions in QUIZ.items() for question in questions]
    return [(name, ending_in(question)) for name, question in asked]


_ASKED = _patterns()


@dataclass(frozen=True)
class Question:
    """A question about the last photo of a context, on something that its caption does not say."""

    photo_id: str
    attribute: str
    truth: Any

    def answered_by(self, reply: str) -> bool:
        """Whether a reply gives the true answer."""
        return answered(reply, self.attribute) == self.truth


def omitted_attributes(scene: Scene, caption: str) -> list[str]:
    """The attributes of a scene that its caption does not tell: size is asked of single things, number of several."""
    told = {"thing": rf"{scene.thing}s?", "colour": scene.colour, "place": scene.place, "time": "|".join(CAPTION_TIMES[scene.time])}
    told |= {"size": scene.size} if scene.number == 1 else {"number": ("two", "three")[scene.number - 2]}
    return [name for name, words in told.items() if not re.search(rf"\b({words})\b", caption)]


def question_of(example: Example, scenes: Mapping[str, Scene]) -> Question | None:
    """The question that the response should answer, if it is about a detail that only the photo shows; None otherwise."""
    shared = [turn for turn in example.context if turn.photo]
    last = example.context[-1]
    if not shared or not example.response.text or last is not shared[-1] and last.speaker == example.response.speaker:
        return None
    photo = shared[-1].photo
    assert photo is not None
    scene = scenes[photo.photo_id]
    for name, pattern in _ASKED:
        if pattern.search(last.text) and name in omitted_attributes(scene, photo.caption) and answered(example.response.text, name) == getattr(scene, name):
            return Question(photo.photo_id, name, getattr(scene, name))
    return None


def answered(text: str, attribute: str) -> Any:
    """The value of an attribute that a reply gives, or None where it gives none, or several."""
    found = [value for value, words in _SAID[attribute].items() if re.search(rf"\b({words})\b", text.lower())]
    return found[0] if len(found) == 1 else None


def detail_accuracy(questions: Sequence[Question | None], replies: Sequence[str]) -> dict[str, float | int | None]:
    """The share of questions answered rightly, in all and for each attribute, and how many were asked; None where none was."""
    rows = [(q, q.answered_by(reply)) for q, reply in zip(questions, replies, strict=True) if q]
    scores: dict[str, float | int | None] = {"details": sum(right for _, right in rows) / len(rows) if rows else None, "details_n": len(rows)}
    for name in _SAID:
        of_kind = [right for q, right in rows if q.attribute == name]
        scores |= {f"details_{name}": sum(of_kind) / len(of_kind) if of_kind else None, f"details_{name}_n": len(of_kind)}
    return scores


def corrupt_words(caption: str, share: float, words: Sequence[str], rng: random.Random) -> str:
    """The caption with a share (0 to 1) of its words replaced, each by another one of ``words``."""
    said = caption.split()
    for i in rng.sample(range(len(said)), round(share * len(said))):
        said[i] = rng.choice([word for word in words if word != said[i]])
    return " ".join(said)
