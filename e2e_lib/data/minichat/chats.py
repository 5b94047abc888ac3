"""MiniChat: seeded two-person chats in which photos are shared and talked about, all of known content.

What a photo must show follows from the words of several turns, or from a photo before it, so "did it draw
what was meant" can be measured. Captions leave things out, as people's do, and the partner asks about them.
Some (thing, colour, place) triples occur only in the test split. Chats are put together from the phrases of
``english.toml``; each depends only on its split, index and seed.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn
from e2e_lib.data.minichat import english
from e2e_lib.data.minichat.english import PHRASES, SITUATIONS, Situation, Slots
from e2e_lib.data.minichat.scenes import ATTRIBUTES, COLOURS, PLACES, SIZES, THINGS, TIMES, Scene

Triple = tuple[str, str, str]
SPLITS = ("train", "dev", "test")
# A Latin pattern on the indices of a triple's values; each pair of values keeps at least five other partners.
HELD_OUT: frozenset[Triple] = frozenset(
    (thing, colour, place) for i, thing in enumerate(THINGS) for j, colour in enumerate(COLOURS)
    for k, place in enumerate(PLACES) if (i + 2 * j + 4 * k) % 9 == 0
)
_HELD_OUT = sorted(HELD_OUT)  # in a fixed order, to sample from
_TRAINED = [(t, c, p) for t in THINGS for c in COLOURS for p in PLACES if (t, c, p) not in HELD_OUT]
_HELD_OUT_SHARE = 0.25  # of the test split's photos
CAPTION_DETAIL = 0.35  # the probability with which the caption of a chat names a detail that the chat omits
CHAT_DETAIL = 0.4  # and with which the chat names it, and then the caption as well
TOLD_DETAIL = CHAT_DETAIL + (1 - CHAT_DETAIL) * CAPTION_DETAIL  # so often do captions in chats name a detail
_WORDS, _TURNS = (40, 110), (4, 9)  # fewest and most of a chat
_NUMBER_WORDS = {2: "two", 3: "three"}
_TRUE_SLOTS = {"other_colour": "colour", "at_other_place": "at"}  # what makes a guess with one of these right


@dataclass(frozen=True)
class Chat:
    """A dialogue and what its photos truly show, by photo id.

    ``open_photos`` are the ids of those few photos that nothing before them determines: they are there to be
    looked at, since the next photo depends on them. Leave them out when scoring whether a model drew what was
    meant.
    """

    dialogue: Dialogue
    scenes: dict[str, Scene]
    open_photos: frozenset[str] = frozenset()


def photo_seed(photo_id: str, seed: int) -> int:
    """The seed with which ``draw_scene`` draws this photo, from 0 to 2**32 - 1; the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{photo_id}".encode()).digest()[:4], "big")


def _choose_triple(rng: random.Random, split: str, held_out: list[Triple], others: list[Triple]) -> Triple:
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not one of {', '.join(SPLITS)}")
    return rng.choice(held_out if split == "test" and held_out and rng.random() < _HELD_OUT_SHARE else others)


def _sample_number_and_size(rng: random.Random, shares: tuple[int, int, int]) -> tuple[int, str]:
    number = rng.choices((1, 2, 3), shares)[0]
    return number, rng.choice(SIZES) if number == 1 else "small"


def sample_scene(rng: random.Random, split: str) -> Scene:
    """A scene for a split, in "test" a quarter of the time with a HELD_OUT triple. Raises ValueError."""
    thing, colour, place = _choose_triple(rng, split, _HELD_OUT, _TRAINED)
    return Scene(thing, colour, place, *_sample_number_and_size(rng, (60, 25, 15)), rng.choice(TIMES))


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun_phrase(scene: Scene, details: frozenset[str], colour: bool) -> str:
    """ "a big red car", "two red cars" or "some red cars", with what is in ``details``."""
    words = f"{scene.colour} {scene.noun}" if colour else scene.noun
    if scene.number > 1:
        return f"{_NUMBER_WORDS[scene.number] if 'number' in details else 'some'} {words}"
    return _article(f"{scene.size} {words}" if "size" in details else words)


def _sample_details(scene: Scene, rng: random.Random, probability: float) -> frozenset[str]:
    return frozenset(name for name in scene.details if rng.random() < probability)


def _caption(scene: Scene, rng: random.Random, details: frozenset[str]) -> str:
    time = " " + rng.choice(english.CAPTIONS[scene.time]) if "time" in details else ""
    return rng.choice(english.CAPTIONS["templates"]).format_map({
        "noun": _noun_phrase(scene, details, colour=True), "place": english.PLACES[scene.place][0],
        "time": time, "is": english.AGREEMENT["is"][scene.number > 1]})


def describe(scene: Scene, rng: random.Random, detail: float) -> str:
    """A caption of 5 to 16 words: thing, colour, place, and with probability ``detail`` each detail."""
    return _caption(scene, rng, _sample_details(scene, rng, detail))


def caption_words(scenes: int = 2000) -> list[str]:
    """The words of captions, sorted; weights/word-lists/minichat.txt holds them for the bridge's word map."""
    rng = random.Random(0)
    captions = [describe(sample_scene(rng, "test"), rng, 0.7) for _ in range(scenes)]
    return sorted({word for caption in captions for word in caption.replace(",", " ").split()})


def _slots(scene: Scene, rng: random.Random, details: frozenset[str]) -> Slots:
    """What fills the slots of phrases about ``scene`` (see ``english.toml``)."""
    several, people = scene.number > 1, english.PEOPLE
    person, child = rng.choice(people["male"] + people["female"]), rng.choice(("son", "daughter"))
    other_place = rng.choice([place for place in PLACES if place != scene.place])
    a_noun = _noun_phrase(scene, details, colour=False)
    return Slots({slot: forms[several] for slot, forms in english.AGREEMENT.items()} | {
        "noun": scene.noun, "a_noun": a_noun, "bare_noun": scene.noun if several else _article(scene.noun),
        "the_noun": a_noun if several and "number" in details else a_noun.split(" ", 1)[1],
        "colour": scene.colour,
        "other_colour": rng.choice([colour for colour in COLOURS if colour != scene.colour]),
        "at": rng.choice(english.PLACES[scene.place]), "to": "to the " + scene.place,
        "when": rng.choice(english.TIMES[scene.time]),
        "at_other_place": english.PLACES[other_place][0], "to_other_place": "to the " + other_place,
        "other_thing": _article(rng.choice([thing for thing in THINGS if thing != scene.thing])),
        "person": person, "his_or_her": "his" if person in people["male"] else "her",
        "child": child, "he_or_she": "he" if child == "son" else "she", "name": rng.choice(people["names"])})


@dataclass
class _Draft:
    """A chat while it is being written."""

    split: str
    index: int
    rng: random.Random
    turns: list[Turn] = field(default_factory=list)
    scenes: dict[str, Scene] = field(default_factory=dict)
    used_phrases: set[str] = field(default_factory=set)

    def say(self, speaker: int, *sentences: str) -> None:
        """Adds sentences, to the last turn if it is the same speaker's; nothing if all are empty."""
        text = " ".join(sentence for sentence in sentences if sentence)
        if text and self.turns and self.turns[-1].speaker == speaker and not self.turns[-1].photos:
            text = f"{self.turns.pop().text} {text}"
        if text:
            self.turns.append(Turn(speaker, text))

    def share(self, speaker: int, scene: Scene, caption: str, text: str) -> None:
        photo_id = f"minichat/{self.split}/{self.index:06d}-{len(self.scenes)}"
        self.scenes[photo_id] = scene
        self.turns.append(Turn(speaker, text, (SharedPhoto(photo_id, caption),)))

    def choose(self, phrases: Sequence[str], slots: Slots, probability: float = 1.0) -> str:
        """With ``probability`` one of the phrases, filled in, if possible one new to this chat; else ""."""
        if probability < 1.0 and self.rng.random() >= probability:
            return ""
        phrase = self.rng.choice(phrases)
        if phrase in self.used_phrases:
            unused = [other for other in phrases if other not in self.used_phrases]
            phrase = self.rng.choice(unused or phrases)
        self.used_phrases.add(phrase)
        return phrase.format_map(slots)


@dataclass(frozen=True)
class _Photo:
    """The photo that the chat leads to, what fills the phrases about it, and the details that they state."""

    sharer: int
    scene: Scene
    slots: Slots
    details: frozenset[str]
    interest: tuple[str, ...] = PHRASES["interest"]
    reactions: tuple[str, ...] = ()


def _question(draft: _Draft, situation: Situation, name: str, slots: Slots) -> tuple[str, str]:
    """A question about one attribute and its true answer; some questions guess, rightly or wrongly."""
    question = draft.rng.choice(situation.questions[name])
    if not any(slot in question.lower() for slot in _TRUE_SLOTS):
        pause = draft.choose(PHRASES["pauses"], slots, 0.06)
        return question.format_map(slots), f"{pause} {draft.choose(situation.answers[name], slots)}".strip()
    if draft.rng.random() < 0.35:
        right = Slots(slots | {other: slots[true] for other, true in _TRUE_SLOTS.items()})
        return question.format_map(right), draft.choose(PHRASES["right_guesses"], slots)
    corrections = PHRASES["wrong_colours"] if name == "colour" else PHRASES["wrong_places"]
    return question.format_map(slots), draft.choose(corrections, slots)


def _lead_to_first_photo(draft: _Draft, several_photos: bool) -> _Photo:
    """From hello to all that the first photo must show; thing, colour and place take at least two turns."""
    rng, scene = draft.rng, sample_scene(draft.rng, draft.split)
    situation = rng.choice([s for s in SITUATIONS.values() if scene.thing not in s.unsuitable_things])
    details = _sample_details(scene, rng, CHAT_DETAIL)
    slots = _slots(scene, rng, details)
    knower = rng.randrange(2)
    asker = 1 - knower
    # Several photos leave less room for questions: such chats open with something that is stated.
    opening = rng.choice([o for o in situation.openings if "states" in o or not several_photos])
    by_asker, stated = "asker" in opening, opening.get("states")
    text = opening["asker" if by_asker else "knower"]
    greets = text.startswith(("Hello", "Hi", "Help", "Greetings"))
    greeting = "" if greets else draft.choose(PHRASES["greetings"], slots, 0.2)
    draft.say(asker if by_asker else knower, greeting, text.format_map(slots))
    missing = [name for name in ("thing", *rng.sample(("colour", "place"), 2)) if name != stated]
    agree = by_asker and bool(stated)
    while missing:
        question, answer = _question(draft, situation, missing.pop(0), slots)
        interested = draft.turns[-1].speaker == knower
        draft.say(asker, draft.choose(situation.interest, slots, 0.4) if interested else "", question)
        agree = agree and not answer.startswith(("Yes", "No", "That is"))
        draft.say(knower, draft.choose(PHRASES["agreements"], slots) if agree else "", answer)
        agree = False
        if missing and (several_photos or len(missing) == 2 or rng.random() < 0.35):
            draft.say(knower, draft.choose(situation.answers[missing.pop(0)], slots))
    draft.say(knower, draft.choose(situation.when, slots) if "time" in details else "",
              draft.choose(situation.asides, slots, 0.3))
    if situation.asker_shares:
        draft.say(asker, draft.choose(situation.asker_shares, slots))
    sharer = asker if situation.asker_shares else knower
    return _Photo(sharer, scene, slots, details, situation.interest, situation.reactions)


def _lead_to_open_photo(draft: _Draft) -> _Photo:
    """The beginning of a chat in which nothing but the first photo itself says what it shows."""
    scene = sample_scene(draft.rng, draft.split)
    slots, sharer = _slots(scene, draft.rng, frozenset()), draft.rng.randrange(2)
    greeting = draft.choose(PHRASES["greetings"], slots, 0.4)
    draft.say(sharer, greeting, draft.choose(PHRASES["open_openings"], slots))
    return _Photo(sharer, scene, slots, frozenset())


def _lead_to_next_photo(draft: _Draft, before: _Photo) -> _Photo:
    """From one photo to the next, which shares one or two of thing, colour and place with the first."""
    rng, scene = draft.rng, before.scene
    change = rng.choice(("colour", "place", "thing"))
    at = ("thing", "colour", "place").index(change)
    values = [value for value in ATTRIBUTES[change] if value != scene.triple[at]]
    triples = [scene.triple[:at] + (value,) + scene.triple[at + 1:] for value in values]
    if change == "thing":  # another thing may have any colour
        triples = [(thing, colour, place) for thing, _, place in triples for colour in COLOURS]
    held_out, others = [t for t in triples if t in HELD_OUT], [t for t in triples if t not in HELD_OUT]
    triple, number, size = _choose_triple(rng, draft.split, held_out, others), scene.number, scene.size
    if change == "thing":
        number, size = _sample_number_and_size(rng, (70, 20, 10))
    scene = Scene(*triple, number, size, rng.choice(TIMES))
    # "The same" has as many or is as big as in the photo before.
    same = frozenset(scene.details[:1])
    details = _sample_details(scene, rng, CHAT_DETAIL) & same if change == "thing" else same
    slots = _slots(scene, rng, details)
    if change == "colour":
        slots |= {"other_colour": before.scene.colour}
    leads = english.NEXT_PHOTO[change]
    lead = rng.choice([lead for lead in leads if draft.used_phrases.isdisjoint(lead.values())])
    draft.used_phrases.update(lead.values())
    by_sharer = "sharer" in lead
    speaker = before.sharer if by_sharer else 1 - before.sharer
    draft.say(1 - speaker, lead.get("question", "").format_map(slots))
    draft.say(speaker, lead["sharer" if by_sharer else "viewer"].format_map(slots))
    return _Photo(speaker, scene, slots, details)


def _cue(draft: _Draft, photo: _Photo, brevity: float) -> tuple[str, ...]:
    """A request, announcement, accepted offer or late find; returns what may be said with the photo."""
    sharer, partner, slots, style = photo.sharer, 1 - photo.sharer, photo.slots, draft.rng.random()
    if style < 0.3 + brevity:
        draft.say(sharer, draft.choose(PHRASES["announcements"], slots))
        return ()
    if style < 0.38:
        draft.say(sharer, draft.choose(PHRASES["no_photo"], slots))
        draft.say(partner, draft.choose(PHRASES["pities"], slots))
        draft.say(sharer, draft.choose(PHRASES["rescues"], slots))
        return ()
    if style < 0.82:
        interested = draft.turns[-1].speaker == sharer
        draft.say(partner, draft.choose(photo.interest, slots, 0.4) if interested else "",
                  draft.choose(PHRASES["requests"], slots))
    else:
        draft.say(sharer, draft.choose(PHRASES["offers"], slots))
        draft.say(partner, draft.choose(PHRASES["acceptances"], slots))
    return PHRASES["with_photo"]


def _ask_about(draft: _Draft, photo: _Photo, omitted: list[str], is_open: bool) -> None:
    """The partner asks about something that the caption leaves out, and gets a true answer."""
    if omitted and draft.rng.random() < 0.9:
        name = draft.rng.choice(omitted)
        question, answers_by_value = draft.rng.choice(english.QUESTIONS[name])
        answers = answers_by_value[str(getattr(photo.scene, name))]
    else:
        question, answers = draft.rng.choice(english.OPEN_QUESTIONS if is_open else english.CHECKS)
    draft.say(1 - photo.sharer, question.format_map(photo.slots))
    draft.say(photo.sharer, draft.choose(answers, photo.slots))


def _share_and_react(draft: _Draft, photo: _Photo, last: bool, is_open: bool, brevity: float) -> None:
    """The cue, the photo, and what is said about it; nothing that the caption omits is stated wrongly."""
    rng, sharer, partner, slots = draft.rng, photo.sharer, 1 - photo.sharer, photo.slots
    # Asked for an unknown thing, people say "it", however many there are.
    cue_photo = replace(photo, slots=Slots(slots, them="it", that="it")) if is_open else photo
    phrases = _cue(draft, cue_photo, brevity)
    in_caption = photo.details | _sample_details(photo.scene, rng, CAPTION_DETAIL)
    omitted = [name for name in photo.scene.details if name not in in_caption]
    riddles = [name for name in omitted if name in english.QUIZ]
    quiz = rng.choice(riddles) if riddles and last and rng.random() < 0.15 else ""
    if quiz:
        text = draft.choose(english.QUIZ[quiz]["questions"], slots)
    else:
        text = draft.choose(phrases, slots, 0.75) if phrases else ""
    draft.share(sharer, photo.scene, _caption(photo.scene, rng, in_caption), text)
    if quiz:
        answers = english.QUIZ[quiz]["answers"][str(getattr(photo.scene, quiz))]
        draft.say(partner, draft.choose(answers, slots))
        draft.say(sharer, draft.choose(PHRASES["quiz_replies"], slots))
        return
    reactions = photo.reactions if photo.reactions and rng.random() < 0.7 else PHRASES["reactions"]
    draft.say(partner, draft.choose(reactions, slots))
    asks = rng.random() < (0.75 - brevity if last else 0.25 * (1 - brevity))
    if asks and (omitted or is_open or rng.random() < 0.4):
        _ask_about(draft, photo, omitted, is_open)


def _write(draft: _Draft, photos: int, starts_open: bool) -> None:
    brevity = {1: 0.0, 2: 0.2, 3: 0.7}[photos]  # how much less is said around each of several photos
    photo = _lead_to_open_photo(draft) if starts_open else _lead_to_first_photo(draft, photos > 1)
    for number in range(photos):
        if number:
            photo = _lead_to_next_photo(draft, photo)
        _share_and_react(draft, photo, number == photos - 1, starts_open and number == 0, brevity)
    if draft.rng.random() < 0.6 - brevity / 2:
        speaker = 1 - draft.turns[-1].speaker
        closings = PHRASES["sharer_closings"] if speaker == photo.sharer else PHRASES["viewer_closings"]
        draft.say(speaker, draft.choose(closings, photo.slots))


def make_chat(split: str, index: int, seed: int) -> Chat:
    """The chat with this number of a split ("train", "dev" or "test"): 1 to 3 photos, 4 to 9 turns.

    The same arguments give the same chat, of 40 to 110 words. Raises ValueError for another split.
    """
    rng = random.Random(f"{seed}/{split}/{index}")
    photos = rng.choices((1, 2, 3), (70, 25, 5))[0]
    starts_open = photos > 1 and rng.random() < 0.25
    while True:
        draft = _Draft(split, index, rng)
        _write(draft, photos, starts_open)
        dialogue = Dialogue(f"minichat/{split}/{index:06d}", tuple(draft.turns))
        texts = [turn.text for turn in dialogue.turns] + [photo.caption for photo in dialogue.photos]
        words = sum(len(text.split()) for text in texts)
        if _WORDS[0] <= words <= _WORDS[1] and _TURNS[0] <= len(dialogue.turns) <= _TURNS[1]:
            return Chat(dialogue, draft.scenes, frozenset(list(draft.scenes)[:1] if starts_open else ()))
