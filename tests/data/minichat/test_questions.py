"""Detail questions: which are asked, what counts as an answer; and captions with wrong words in them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example, examples_of
from e2e_lib.data.minichat.chats import describe, make_chat, sample_scene
from e2e_lib.data.minichat.english import QUESTIONS, QUIZ
from e2e_lib.data.minichat.questions import (
    Question,
    corrupt_words,
    detail_question,
    ending_in,
    omitted_attributes,
    stated_value,
)
from e2e_lib.data.minichat.scenes import Scene

SCENE = Scene("kite", "red", "beach", 2, "small", "night")
PHOTO = Turn(0, "Look!", (SharedPhoto("p", "some red kites at the beach"),))


def question_in(text, reply, photo=PHOTO):
    return detail_question(Example("d", 2, (photo, Turn(1, text)), Turn(0, reply)), {"p": SCENE})


def test_stated_value_reads_every_answer_of_the_phrase_book():
    answers = [(name, of_question) for name, pairs in QUESTIONS.items() for _, of_question in pairs]
    answers += [(name, quiz["answers"]) for name, quiz in QUIZ.items()]
    for name, by_value in answers:
        for key, texts in by_value.items():
            for text in texts:
                assert stated_value(text, name) == (int(key) if name == "number" else key), text
    assert stated_value("What a nice photo!", "number") is None
    assert stated_value("Two or three.", "number") is None


def test_ending_in_matches_a_filled_question_at_the_end_only():
    pattern = ending_in("How many {noun} can you see?")
    assert pattern.search("Lovely! How many red kites can you see?")
    assert not pattern.search("How many kites can you see? Two!")


def test_detail_question_is_about_what_the_caption_omits():
    assert question_in("Lovely! How many are there?", "Two.") == Question("p", "number", 2)
    assert question_in("How many kites can you see?", "There are two of them.") == Question("p", "number", 2)
    assert question_in("Was it at night?", "Yes, it was night.") == Question("p", "time", "night")
    assert question_in("Lovely!", "Two.") is None  # no question
    assert question_in("How many are there?", "Thank you!") is None  # no answer
    assert question_in("How many are there?", "Three.") is None  # a wrong one
    full = Turn(0, "", (SharedPhoto("p", "two red kites at the beach at night"),))
    assert question_in("How many are there?", "Two.", full) is None
    assert question_in("Was it at night?", "Yes, it was night.", full) is None


def test_chats_contain_detail_questions_with_true_answers():
    questions = []
    for i in range(300):
        chat = make_chat("test", i, 0)
        for example in examples_of(chat.dialogue):
            if question := detail_question(example, chat.scenes):
                questions.append(question)
                assert getattr(chat.scenes[question.photo_id], question.attribute) == question.truth
                assert question.answered_by(example.response.text)
    assert len(questions) > 60 and {q.attribute for q in questions} == {"number", "size", "time"}


words = st.lists(st.sampled_from(["a", "red", "dog", "at", "beach"]), min_size=1, max_size=12)


@given(words, st.sampled_from([0, 0.25, 0.5, 1]), st.integers(0, 99))
def test_corrupt_words_replaces_exactly_the_share(caption, share, seed):
    others = ["blue", "cat", "red"]
    first, again = (corrupt_words(" ".join(caption), share, others, random.Random(seed)) for _ in range(2))
    corrupted = first.split()
    assert len(corrupted) == len(caption) and first == again
    changed = sum(a != b for a, b in zip(corrupted, caption, strict=True))
    assert changed == round(share * len(caption))


def test_omitted_attributes_include_size_or_number_but_never_both():
    assert omitted_attributes(SCENE, "two red kites at the beach") == ["time"]
    large = Scene("kite", "red", "beach", 1, "big", "day")
    assert omitted_attributes(large, "a kite") == ["colour", "place", "time", "size"]


@pytest.mark.parametrize(("detail", "omits"), [(0.0, True), (1.0, False)])
def test_captions_omit_details_or_nothing(detail, omits):
    rng = random.Random(4)
    for _ in range(200):
        scene = sample_scene(rng, "test")
        omitted = omitted_attributes(scene, describe(scene, rng, detail))
        assert omitted == (["time", "size" if scene.number == 1 else "number"] if omits else [])
