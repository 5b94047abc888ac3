"""MiniChat: seeded two-person chats in which photos are shared and talked about, with every photo's content known.

What a photo must show follows from the words of several turns, or from a photo before it, so "did it draw what was meant" can be
measured. Captions leave things out, as people's do, and the partner asks about them. Some (thing, colour, place) triples occur only in
the test split. Chats are put together from ``minichat_phrases`` and ``minichat_smalltalk``; each depends only on its split, index and seed.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn
from e2e_lib.data.minichat import smalltalk
from e2e_lib.data.minichat.phrases import SITUATIONS, Situation
from e2e_lib.data.minichat.scenes import ATTRIBUTES, COLOURS, PLACES, SIZES, THINGS, TIMES, Scene

Triple = tuple[str, str, str]
SPLITS = ("train", "dev", "test")
# A Latin pattern: a triple is held out when the sum of its indices is 0 modulo 9; each pair keeps at least five other partners.
HELD_OUT: frozenset[Triple] = frozenset(
    (thing, colour, place)
    for i, thing in enumerate(THINGS) for j, colour in enumerate(COLOURS) for k, place in enumerate(PLACES) if (i + 2 * j + 4 * k) % 9 == 0
)
_HELD = sorted(HELD_OUT)
_SEEN = [(t, c, p) for t in THINGS for c in COLOURS for p in PLACES if (t, c, p) not in HELD_OUT]
_HELD_OUT_SHARE = 0.25  # of the test split's photos
_CAPTION_DETAIL = 0.35
_WORDS, _TURNS = (40, 110), (4, 9)
_NUMBER_WORDS = {1: "a", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Chat:
    """A dialogue and what its photos truly show.

    ``open_photos`` are the ids of those few photos that nothing before them determines: they are there to be looked at, since the
    next photo depends on them. Leave them out when scoring whether a model drew what was meant.
    """

    dialogue: Dialogue
    scenes: dict[str, Scene]
    open_photos: frozenset[str] = frozenset()


def photo_seed(photo_id: str, seed: int) -> int:
    """The seed with which ``draw_scene`` draws this photo, from 0 to 2**32 - 1; the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{photo_id}".encode()).digest()[:4], "big")


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _plural(thing: str, number: int) -> str:
    return thing if number == 1 else thing + "s"


def _noun_phrase(scene: Scene, told: frozenset[str], colour: bool) -> str:
    """ "a big red car", "two red cars" or "some red cars", with the details in ``told``."""
    words = f"{scene.colour} {_plural(scene.thing, scene.number)}" if colour else _plural(scene.thing, scene.number)
    if scene.number > 1:
        return f"{_NUMBER_WORDS[scene.number] if 'number' in told else 'some'} {words}"
    return _article(f"{scene.size} {words}" if "size" in told else words)


_CAPTION_PLACES = {place: words[0] for place, words in smalltalk.PLACE_PHRASES.items()}


def _describe(scene: Scene, rng: random.Random, told: frozenset[str]) -> str:
    time = " " + rng.choice(smalltalk.CAPTION_TIMES[scene.time]) if "time" in told else ""
    return rng.choice(smalltalk.CAPTIONS).format(noun=_noun_phrase(scene, told, colour=True), place=_CAPTION_PLACES[scene.place], time=time,
                                        is_="is" if scene.number == 1 else "are")


def _details(scene: Scene, rng: random.Random, chance: float) -> frozenset[str]:
    count = "number" if scene.number > 1 else "size"
    return frozenset(name for name in (count, "time") if rng.random() < chance)


def describe(scene: Scene, rng: random.Random, detail: float) -> str:
    """A caption of 5 to 16 words: thing, colour, place, and, each with probability ``detail`` (0 to 1), number or size, and time."""
    return _describe(scene, rng, _details(scene, rng, detail))


def caption_words(scenes: int = 2000) -> list[str]:
    """The words of captions, sorted: MiniChat's own English, for the word-level map of the bridge."""
    rng = random.Random(0)
    return sorted({word for _ in range(scenes) for word in describe(sample_scene(rng, "test"), rng, 0.7).replace(",", " ").split()})


def _choose_triple(rng: random.Random, split: str, held: list[Triple], seen: list[Triple]) -> Triple:
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    return rng.choice(held if split == "test" and held and rng.random() < _HELD_OUT_SHARE else seen)


def sample_scene(rng: random.Random, split: str) -> Scene:
    """A scene for a split; triples in HELD_OUT come only in "test", there a quarter of the time. Raises ValueError for another split."""
    thing, colour, place = _choose_triple(rng, split, _HELD, _SEEN)
    number = rng.choices((1, 2, 3), (60, 25, 15))[0]
    return Scene(thing, colour, place, number, rng.choice(SIZES) if number == 1 else "small", rng.choice(TIMES))




_CAPITALS = ("They", "Is", "At", "At_y", "Colour", "A_noun", "A_plain", "X", "Name", "Child_they")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]




def _slots(scene: Scene, rng: random.Random, told: frozenset[str]) -> dict[str, str]:
    """Everything a phrase about ``scene`` may say, with one wrong colour {x}, place {at_y} and thing {z} for guesses and asides."""
    single = scene.number == 1
    noun, person, child = _plural(scene.thing, scene.number), rng.choice(smalltalk.HIS + smalltalk.HER), rng.choice(("son", "daughter"))
    wrong_place = rng.choice([place for place in PLACES if place != scene.place])
    a_noun = _noun_phrase(scene, told, colour=False)
    agreeing = smalltalk.SINGULAR if single else smalltalk.PLURAL
    slots = agreeing | {
        "noun": noun, "a_noun": a_noun, "a_plain": _article(noun) if single else noun,
        "the_noun": a_noun if not single and "number" in told else a_noun.split(" ", 1)[1],
        "colour": scene.colour, "x": rng.choice([colour for colour in COLOURS if colour != scene.colour]),
        "at": rng.choice(smalltalk.PLACE_PHRASES[scene.place]), "to": "to the " + scene.place,
        "when": rng.choice(smalltalk.TIME_PHRASES[scene.time]),
        "at_y": smalltalk.PLACE_PHRASES[wrong_place][0], "to_y": "to the " + wrong_place,
        "z": _article(rng.choice([thing for thing in THINGS if thing != scene.thing])),
        "person": person, "poss": "his" if person in smalltalk.HIS else "her",
        "child": child, "child_they": "he" if child == "son" else "she", "name": rng.choice(smalltalk.NAMES),
    }
    return slots | {name: _upper(slots[name[0].lower() + name[1:]]) for name in _CAPITALS}


@dataclass
class _Talk:
    """A chat while it is being written."""

    split: str
    index: int
    rng: random.Random
    turns: list[Turn] = field(default_factory=list)
    scenes: dict[str, Scene] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def say(self, speaker: int, *sentences: str) -> None:
        """Adds sentences, to the turn before if the same speaker just spoke; says nothing if all of them are empty."""
        text = " ".join(sentence for sentence in sentences if sentence)
        if text and self.turns and self.turns[-1].speaker == speaker and not self.turns[-1].photo:
            text = f"{self.turns.pop().text} {text}"
        if text:
            self.turns.append(Turn(speaker, text))

    def share(self, speaker: int, scene: Scene, caption: str, text: str) -> None:
        photo_id = f"minichat/{self.split}/{self.index:06d}-{len(self.scenes)}"
        self.scenes[photo_id] = scene
        self.turns.append(Turn(speaker, text, SharedPhoto(photo_id, caption)))

    def pick(self, options: Sequence[str], slots: dict[str, str], chance: float = 1.0) -> str:
        """One of the options, filled in, not said in this chat before if that can be; "" when chance is against it."""
        if chance < 1.0 and self.rng.random() >= chance:
            return ""
        phrase = self.rng.choice(options)
        if phrase in self.used:
            phrase = self.rng.choice([option for option in options if option not in self.used] or options)
        self.used.add(phrase)
        return phrase.format_map(slots)

    def last_speaker(self) -> int:
        return self.turns[-1].speaker


@dataclass(frozen=True)
class _Coming:
    """The photo that the talk leads to: who shares it, what it shows, what the words told of it, and how people react."""

    sharer: int
    scene: Scene
    slots: dict[str, str]
    told: frozenset[str]
    interest: tuple[str, ...] = smalltalk.INTEREST
    react: tuple[str, ...] = ()


def _question(talk: _Talk, situation: Situation, name: str, slots: dict[str, str]) -> tuple[str, str]:
    """A question about one attribute and its true answer; some questions guess, rightly or wrongly."""
    ask = talk.rng.choice(situation.ask[name])
    if not any(slot in ask for slot in ("{x}", "{X}", "_y}")):
        pause, answer = talk.pick(smalltalk.PAUSES, slots, 0.06), talk.pick(situation.tell[name], slots)
        return ask.format_map(slots), f"{pause} {answer}".strip()
    if talk.rng.random() < 0.35:
        right = slots | {"x": slots["colour"], "X": slots["Colour"], "at_y": slots["at"], "At_y": slots["At"], "to_y": slots["to"]}
        return ask.format_map(right), talk.pick(smalltalk.RIGHT_GUESS, slots)
    return ask.format_map(slots), talk.pick(smalltalk.WRONG_COLOUR if name == "colour" else smalltalk.WRONG_PLACE, slots)


def _first(talk: _Talk, brisk: bool) -> _Coming:
    """From hello to all that the first photo must show; thing, colour and place come from at least two turns."""
    rng, scene = talk.rng, sample_scene(talk.rng, talk.split)
    situation = rng.choice([s for s in SITUATIONS.values() if scene.thing in s.things])
    told = _details(scene, rng, 0.4)
    slots = _slots(scene, rng, told)
    knower = rng.randrange(2)
    asker = 1 - knower
    said, who, text = rng.choice([opening for opening in situation.openings if opening[0] or not brisk])
    greeting = "" if text.startswith(("Hello", "Hi", "Help", "Greetings")) else talk.pick(smalltalk.GREETINGS, slots, 0.2)
    talk.say(knower if who == "knower" else asker, greeting, text.format_map(slots))
    missing = [name for name in ("thing", *rng.sample(("colour", "place"), 2)) if name not in said.split()]
    agree = who == "asker" and bool(said)
    while missing:
        ask, tell = _question(talk, situation, missing.pop(0), slots)
        interested = talk.last_speaker() == knower
        talk.say(asker, talk.pick(situation.interest, slots, 0.4) if interested else "", ask)
        talk.say(knower, talk.pick(smalltalk.AGREEMENTS, slots) if agree and not tell.startswith(("Yes", "No", "That is")) else "", tell)
        agree = False
        if missing and (brisk or len(missing) == 2 or rng.random() < 0.35):
            talk.say(knower, talk.pick(situation.tell[missing.pop(0)], slots))
    talk.say(knower, talk.pick(situation.when, slots) if "time" in told else "", talk.pick(situation.aside, slots, 0.3))
    if situation.bridge:
        talk.say(asker, talk.pick(situation.bridge, slots))
    return _Coming(asker if situation.bridge else knower, scene, slots, told, situation.interest, situation.react)


def _open(talk: _Talk) -> _Coming:
    """The beginning of a chat whose first photo only the photo itself tells of."""
    scene = sample_scene(talk.rng, talk.split)
    slots, sharer = _slots(scene, talk.rng, frozenset()), talk.rng.randrange(2)
    talk.say(sharer, talk.pick(smalltalk.GREETINGS, slots, 0.4), talk.pick(smalltalk.OPEN_OPENINGS, slots))
    return _Coming(sharer, scene, slots, frozenset())


def _next(talk: _Talk, before: _Coming) -> _Coming:
    """From one photo to the next, which shares two of thing, colour and place, or one, with the photo before it."""
    rng, scene = talk.rng, before.scene
    change = rng.choice(("colour", "place", "thing"))
    choices = [scene.triple[:i] + (value,) + scene.triple[i + 1:] for i, name in enumerate(("thing", "colour", "place")) if name == change
               for value in ATTRIBUTES[name] if value != scene.triple[i]]
    if change == "thing":  # another thing may have any colour
        choices = [(thing, colour, place) for thing, _, place in choices for colour in COLOURS]
    triple = _choose_triple(rng, talk.split, [t for t in choices if t in HELD_OUT], [t for t in choices if t not in HELD_OUT])
    number = scene.number if change != "thing" else rng.choices((1, 2, 3), (70, 20, 10))[0]
    size = scene.size if change != "thing" else rng.choice(SIZES) if number == 1 else "small"
    new = Scene(*triple, number, size, rng.choice(TIMES))
    # "The same" has as many or is as big as the photo before.
    told = _details(new, rng, 0.4) - {"time"} if change == "thing" else frozenset({"number" if number > 1 else "size"})
    slots = _slots(new, rng, told)
    if change == "colour":
        slots |= {"x": scene.colour}
    who, ask, words = rng.choice([lead for lead in smalltalk.NEXT[change] if lead[2] not in talk.used])
    talk.used.add(words)
    speaker = before.sharer if who == "sharer" else 1 - before.sharer
    if ask:
        talk.say(1 - speaker, ask.format_map(slots))
    talk.say(speaker, words.format_map(slots))
    return _Coming(speaker, new, slots, told)


def _cue(talk: _Talk, photo: _Coming, hurry: float) -> tuple[str, ...]:
    """The cue for the photo: a request, an announcement, an offer that is accepted, or a rescue. Returns what may be said along with it."""
    sharer, slots, style = photo.sharer, photo.slots, talk.rng.random()
    if style < 0.3 + hurry:
        talk.say(sharer, talk.pick(smalltalk.ANNOUNCEMENTS, slots))
    elif style < 0.38:
        talk.say(sharer, talk.pick(smalltalk.NO_PHOTO, slots))
        talk.say(1 - sharer, talk.pick(smalltalk.PITIES, slots))
        talk.say(sharer, talk.pick(smalltalk.RESCUES, slots))
    elif style < 0.82:
        interested = talk.last_speaker() == sharer
        talk.say(1 - sharer, talk.pick(photo.interest, slots, 0.4) if interested else "", talk.pick(smalltalk.REQUESTS, slots))
        return smalltalk.PHOTO_WORDS
    else:
        talk.say(sharer, talk.pick(smalltalk.OFFERS, slots))
        talk.say(1 - sharer, talk.pick(smalltalk.ACCEPTANCES, slots))
        return smalltalk.PHOTO_WORDS
    return ()


def _answer_key(scene: Scene, name: str) -> str:
    return f"n{scene.number}" if name == "number" else str(getattr(scene, name))


def _ask_about(talk: _Talk, photo: _Coming, omitted_attributes: list[str], is_open: bool) -> None:
    """The partner asks about something that the caption left out, and gets a true answer."""
    if omitted_attributes and talk.rng.random() < 0.9:
        name = talk.rng.choice(omitted_attributes)
        question, answers = talk.rng.choice(smalltalk.QUESTIONS[name])
        options = answers[_answer_key(photo.scene, name)]
    else:
        question, options = talk.rng.choice(smalltalk.LOOKING if is_open else smalltalk.DOUBTS)
    talk.say(1 - photo.sharer, question.format_map(photo.slots))
    talk.say(photo.sharer, talk.pick(options, photo.slots))


def _share_and_react(talk: _Talk, photo: _Coming, last: bool, is_open: bool, hurry: float) -> None:
    """The cue, the photo, and what is said about it; nothing that the photo leaves open is said wrongly."""
    # Asked for an unknown thing, people say "it", however many there are.
    words = _cue(talk, replace(photo, slots=photo.slots | {"them": "it", "that": "it"}) if is_open else photo, hurry)
    shown = photo.told | _details(photo.scene, talk.rng, _CAPTION_DETAIL)
    omitted_attributes = [name for name in ("number" if photo.scene.number > 1 else "size", "time") if name not in shown]
    riddles = [name for name in omitted_attributes if name in smalltalk.QUIZ]
    quiz = talk.rng.choice(riddles) if riddles and last and talk.rng.random() < 0.15 else ""
    text = talk.pick(smalltalk.QUIZ[quiz], photo.slots) if quiz else talk.pick(words, photo.slots, 0.75) if words else ""
    talk.share(photo.sharer, photo.scene, _describe(photo.scene, talk.rng, shown), text)
    if quiz:
        talk.say(1 - photo.sharer, talk.pick(smalltalk.QUIZ_ANSWERS[quiz][_answer_key(photo.scene, quiz)], photo.slots))
        talk.say(photo.sharer, talk.pick(smalltalk.QUIZ_REPLIES, photo.slots))
        return
    talk.say(1 - photo.sharer, talk.pick(photo.react if photo.react and talk.rng.random() < 0.7 else smalltalk.REACTIONS, photo.slots))
    if talk.rng.random() < (0.75 - hurry if last else 0.25 * (1 - hurry)) and (omitted_attributes or is_open or talk.rng.random() < 0.4):
        _ask_about(talk, photo, omitted_attributes, is_open)


def _write(talk: _Talk, photos: int, start_open: bool) -> None:
    brisk = photos > 1  # several photos leave less room for questions
    hurry = {1: 0.0, 2: 0.2, 3: 0.7}[photos]
    photo = _open(talk) if start_open else _first(talk, brisk)
    for number in range(photos):
        if number:
            photo = _next(talk, photo)
        _share_and_react(talk, photo, last=number == photos - 1, is_open=start_open and number == 0, hurry=hurry)
    if talk.rng.random() < 0.6 - hurry / 2:
        speaker = 1 - talk.last_speaker()
        talk.say(speaker, talk.pick(smalltalk.SHARER_CLOSINGS if speaker == photo.sharer else smalltalk.CLOSINGS, photo.slots))


def make_chat(split: str, index: int, seed: int) -> Chat:
    """The chat with this number of a split ("train", "dev" or "test"); the same arguments give the same chat. Raises ValueError."""
    rng = random.Random(f"{seed}/{split}/{index}")
    photos = rng.choices((1, 2, 3), (70, 25, 5))[0]
    start_open = photos > 1 and rng.random() < 0.25
    while True:
        talk = _Talk(split, index, rng)
        _write(talk, photos, start_open)
        words = sum(len(turn.text.split()) + (len(turn.photo.caption.split()) if turn.photo else 0) for turn in talk.turns)
        if _WORDS[0] <= words <= _WORDS[1] and _TURNS[0] <= len(talk.turns) <= _TURNS[1]:
            dialogue = Dialogue(f"minichat/{split}/{index:06d}", tuple(talk.turns))
            return Chat(dialogue, talk.scenes, frozenset(list(talk.scenes)[:1] if start_open else ()))
