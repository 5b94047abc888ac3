"""What partners ask about photos, what counts as an answer, and captions with wrong words in them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example, examples_of
from e2e_lib.data.minichat import questions as questions
from e2e_lib.data.minichat.chats import make_chat
from e2e_lib.data.minichat.questions import Question, answered, corrupt_words, detail_accuracy, question_of
from e2e_lib.data.minichat.scenes import Scene
from e2e_lib.data.minichat.smalltalk import QUESTIONS, QUIZ_ANSWERS

SCENE = Scene("kite", "red", "beach", 2, "small", "night")
PHOTO = Turn(0, "Look!", SharedPhoto("p", "some red kites at the beach"))


def asked(question, reply, photo=PHOTO):
    return question_of(Example("d", 2, (photo, Turn(1, question)), Turn(0, reply)), {"p": SCENE})


def test_every_answer_of_the_phrase_book_is_read_as_what_it_means():
    kinds = [(name, answers) for name, pairs in QUESTIONS.items() for _, answers in pairs] + list(QUIZ_ANSWERS.items())
    for name, answers in kinds:
        for key, texts in answers.items():
            for text in texts:
                assert answered(text, name) == (int(key[1]) if name == "number" else key), text
    assert answered("What a nice photo!", "number") is None and answered("Two or three.", "number") is None


def test_a_question_is_about_what_the_caption_leaves_out():
    assert asked("Lovely! How many are there?", "Two.") == Question("p", "number", 2)
    assert asked("How many kites can you see?", "There are two of them.") == Question("p", "number", 2)
    assert asked("Was it at night?", "Yes, it was night.") == Question("p", "time", "night")
    assert asked("Lovely!", "Two.") is None  # nothing was asked
    assert asked("How many are there?", "Thank you!") is None  # and not answered
    told = Turn(0, "", SharedPhoto("p", "two red kites at the beach at night"))
    assert asked("How many are there?", "Two.", told) is None and asked("Was it at night?", "Yes, it was night.", told) is None


def test_chats_hold_questions_and_their_truths():
    found = []
    for i in range(300):
        chat = make_chat("test", i, 0)
        for example in examples_of(chat.dialogue):
            if question := question_of(example, chat.scenes):
                found.append(question)
                assert getattr(chat.scenes[question.photo_id], question.attribute) == question.truth
                assert question.attribute in ("number", "size", "time")
    assert len(found) > 60 and {q.attribute for q in found} == {"number", "size", "time"}


def test_accuracy_is_counted_by_attribute():
    questions = [Question("a", "number", 2), Question("b", "time", "day"), None, Question("c", "time", "night")]
    scores = detail_accuracy(questions, ["Two.", "At night.", "Two.", "Under the stars."])
    assert scores["details"] == pytest.approx(2 / 3) and scores["details_n"] == 3
    assert (scores["details_number"], scores["details_time"], scores["details_size"]) == (1.0, 0.5, None)


@given(st.lists(st.sampled_from(["a", "red", "dog", "at", "beach"]), min_size=1, max_size=12), st.sampled_from([0, 0.25, 0.5, 1]), st.integers(0, 99))
def test_a_share_of_a_captions_words_is_replaced(words, share, seed):
    out = corrupt_words(" ".join(words), share, ["blue", "cat", "red"], random.Random(seed)).split()
    assert len(out) == len(words) and sum(a != b for a, b in zip(out, words, strict=True)) == round(share * len(words))
    assert out == corrupt_words(" ".join(words), share, ["blue", "cat", "red"], random.Random(seed)).split()


def test_unsaid_is_told_by_size_or_number():
    assert questions.omitted_attributes(SCENE, "two red kites at the beach") == ["time"]
    assert questions.omitted_attributes(Scene("kite", "red", "beach", 1, "big", "day"), "a kite") == ["colour", "place", "time", "size"]
