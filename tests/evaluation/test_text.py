import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu
from sacrebleu.metrics import BLEU

from e2e_lib.evaluation.text import bleu, bleu_signature, ngram_counts, rouge_l, rouge_l_whitespace

# The two hypotheses of nltk's documentation of corpus_bleu, each with its first reference.
HYPOTHESES = ["It is a guide to action which ensures that the military always obeys the commands of the party",
              "he read the book because he was interested in world history"]
REFERENCES = ["It is a guide to action that ensures that the military will forever heed Party commands",
              "he was interested in world history because he read the book"]

texts = st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)
pairs_of_texts = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)


def bleu_of(pairs):
    return bleu(np.sum([ngram_counts(*pair) for pair in pairs], axis=0))


def ngrams(text: str, order: int) -> Counter:
    words = text.split()
    return Counter(tuple(words[i:i + order]) for i in range(len(words) - order + 1))


def naive_precision(pairs: list[tuple[str, str]], order: int) -> float:
    matches = sum((ngrams(h, order) & ngrams(r, order)).total() for h, r in pairs)
    total = sum(ngrams(h, order).total() for h, _ in pairs)
    return matches / total if total else 0.0


def naive_brevity(pairs: list[tuple[str, str]]) -> float:
    ours, theirs = sum(len(h.split()) for h, _ in pairs), sum(len(r.split()) for _, r in pairs)
    return 1.0 if ours >= theirs else math.exp(1 - theirs / ours) if ours else 0.0


@given(pairs_of_texts)
def test_bleu_equals_its_definition(pairs):
    scores, brevity = bleu_of(pairs), naive_brevity(pairs)
    one, two = naive_precision(pairs, 1), naive_precision(pairs, 2)
    assert scores["bleu1"] == pytest.approx(100 * brevity * one)
    assert scores["bleu2"] == pytest.approx(100 * brevity * two)
    assert scores["bleu1_cumulative"] == pytest.approx(100 * brevity * one)
    assert scores["bleu2_cumulative"] == pytest.approx(100 * brevity * math.sqrt(one * two))


@given(pairs_of_texts)
def test_bleu_equals_sacrebleus_own_count_of_the_texts(pairs):
    scores = bleu_of(pairs)
    for order in (1, 2):
        metric = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
        score = metric.corpus_score([h for h, _ in pairs], [[r for _, r in pairs]])
        assert scores[f"bleu{order}_cumulative"] == score.score
        assert scores[f"bleu{order}"] == score.bp * score.precisions[order - 1]
    assert str(metric.get_signature()) == bleu_signature()


def test_bleu_equals_nltk_on_its_documentation_example():
    split = [[r.split()] for r in REFERENCES], [h.split() for h in HYPOTHESES]
    scores = bleu_of(zip(HYPOTHESES, REFERENCES, strict=True))
    assert scores["bleu1"] == pytest.approx(100 * corpus_bleu(*split, weights=(1,)))
    assert scores["bleu2"] == pytest.approx(100 * corpus_bleu(*split, weights=(0, 1)))
    assert scores["bleu2_cumulative"] == pytest.approx(100 * corpus_bleu(*split, weights=(0.5, 0.5)))
    assert scores["bleu2"] != pytest.approx(scores["bleu2_cumulative"])


def test_bleu_is_of_all_pairs_and_not_the_mean_of_sentences():
    pooled = bleu_of([("a", "a"), ("b b b", "c c c")])["bleu1"]
    assert pooled == pytest.approx(25)  # 1 of 4 words, not the mean of 100 and 0


def test_brevity_penalty_in_closed_form():
    assert bleu_of([("a b", "a b c d")])["bleu2"] == pytest.approx(100 * math.exp(-1))


@pytest.mark.parametrize("hypothesis, reference", [("", "a b"), ("a b", ""), ("", ""), ("a", "b"), ("  ", "a")])
def test_nothing_in_common_is_zero_without_a_warning(hypothesis, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(bleu_of([(hypothesis, reference)]).values()) == {0.0}
        assert rouge_l(hypothesis, reference) == 0


def test_the_signature_says_how_the_text_was_split():
    assert all(part in bleu_signature() for part in ("tok:none", "smooth:none", "case:mixed", "nrefs:1"))


def naive_rouge(hypothesis: str, reference: str) -> float:
    h, r = hypothesis.split(), reference.split()
    subsequences = {tuple(w for i, w in enumerate(h) if mask >> i & 1) for mask in range(1 << len(h))}

    def inside(candidate: tuple[str, ...]) -> bool:
        words = iter(r)
        return all(word in words for word in candidate)

    longest = max(len(c) for c in subsequences if inside(c))
    return 2 * longest / (len(h) + len(r)) if longest else 0.0


@settings(max_examples=50)
@given(texts, texts)
def test_rouge_l_equals_its_definition(hypothesis, reference):
    assert rouge_l(hypothesis, reference) == pytest.approx(naive_rouge(hypothesis, reference))


words_as_they_stand = st.lists(st.sampled_from(["a", "A", "a,", "B!", "🚀"]), max_size=7).map(" ".join)


@given(words_as_they_stand, words_as_they_stand)
def test_rouge_l_of_white_space_takes_words_as_they_stand(hypothesis, reference):
    assert rouge_l_whitespace(hypothesis, reference) == pytest.approx(naive_rouge(hypothesis, reference))


def test_the_two_rouge_l_differ_by_case_and_punctuation():
    assert rouge_l("A red Kite.", "a red kite") == pytest.approx(1) and rouge_l_whitespace("A red Kite.", "a red kite") == pytest.approx(1 / 3)
    assert rouge_l("un café", "un café") == pytest.approx(1) and rouge_l_whitespace("ein blauer", "ein blauer Hund") == pytest.approx(4 / 5)


def test_rouge_l_does_not_stem_and_ignores_case_and_punctuation():
    assert rouge_l("a photo", "a photos") == pytest.approx(0.5)
    assert rouge_l("A photo!", "a photo") == pytest.approx(1)
