"""Scores of reduced answers: against each one's own definition, and under weights against repeated answers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from scipy.linalg import sqrtm
from torch import nn

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example, Response
from e2e_lib.evaluation import scores
from e2e_lib.evaluation.image import PhotoFeatures, features_of
from e2e_lib.evaluation.scores import METRICS, SCORES, Metric, all_scores, reduce, score
from e2e_lib.evaluation.text import bleu, ngram_counts

WORDS = ["a", "red", "dog", "at", "the", "beach", "two", "Dog!", "RED"]


class OneScore:
    """A corpus's own score: half the length of the text, of every eighth answer, and questions about everything."""

    metrics = {"length": Metric("length", "higher", "words"), "never": Metric("never", "lower", "nothing")}

    def values(self, row):
        return {"length": min(1.0, len(row["text"].split()) / 2)} if row["index"] % 8 == 0 else {"other": float("nan")}

    def counts(self, rows):
        return {"length_n": sum(row["index"] % 8 == 0 for row in rows), "n": {"eighths": 1}}


def made_up_answers(seed, examples=72, shift=0.0):
    """Rows of answers.jsonl and features of their photos: some answers share none or several, and as many in all as they should."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(examples):
        gold = " ".join(rng.choice(WORDS, rng.integers(1, 9))) if i % 5 else ""
        text = " ".join(word if rng.random() < 0.7 + shift else rng.choice(WORDS) for word in gold.split() or ["yes"])
        due, shared = (i % 3 == 0) + (i % 12 == 3), (i % 3 == 0 and i % 9 > 0) + (i % 7 == 1) + (i in (1, 8, 15))
        rows.append({"text": text, "gold_text": gold, "images": [f"{i}-{k}.png" for k in range(shared)],
                     "captions": [" ".join(rng.choice(WORDS, 3)) for _ in range(shared)],
                     "gold_photo_ids": [f"p{i}-{k}" for k in range(due)], "gold_captions": ["a red dog"] * due,
                     "dialogue_id": f"d{i // 4}", "index": i})
    photos = []
    for count, mean in ((sum(len(row["images"]) for row in rows), shift), (sum(len(row["gold_photo_ids"]) for row in rows), 0)):
        photos.append(PhotoFeatures(torch.from_numpy(rng.normal(mean, 1, (count, 3))), torch.from_numpy(rng.normal(0, 2, (count, 5)))))
    return rows, *photos


def sacrebleu(pairs, order):
    """sacrebleu's own scores of texts: of this order alone, and of all orders up to it."""
    metric = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
    found = metric.corpus_score([hypothesis for hypothesis, _ in pairs], [[reference for _, reference in pairs]])
    return found.bp * found.precisions[-1], found.score


def longest_common_subsequence(one, other):
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, j in itertools.product(range(len(one)), range(len(other))):
        table[i + 1, j + 1] = table[i, j] + 1 if one[i] == other[j] else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def inception_scores(logits, splits):
    """Of photos shuffled as torch-fidelity does, in so many splits."""
    p = torch.from_numpy(np.random.RandomState(0).permutation(logits.softmax(1).numpy()))
    parts = [p[i * len(p) // splits:(i + 1) * len(p) // splits] for i in range(splits)]
    return [float((part * (part.log() - part.mean(0).log())).sum(1).mean().exp()) for part in parts]


def kernel_distance(x, y):
    """KID without subsets: the unbiased estimate of the squared MMD under (x·y / d + 1)³."""
    xx, yy, xy = ((one @ other.T / x.shape[1] + 1) ** 3 for one, other in ((x, x), (y, y), (x, y)))
    n = len(x)
    return (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1)) - 2 * xy.mean()


def test_every_score_is_what_it_is_called():
    """Each computed by another library or by hand, from the texts and features themselves."""
    rows, drawn, gold = made_up_answers(0)
    found = all_scores(reduce(rows, drawn, gold, OneScore()))
    texts = [(row["text"], row["gold_text"]) for row in rows if row["gold_text"]]
    captions = [(" ".join(row["captions"]), " ".join(row["gold_captions"])) for row in rows if row["gold_photo_ids"]]
    assert len(texts) < len(rows) and ("", "a red dog") in captions  # a photo that was not drawn has an empty caption
    for prefix, pairs in (("", texts), ("caption_", captions)):
        for order in (1, 2):
            assert found[f"{prefix}bleu{order}"] == pytest.approx(sacrebleu(pairs, order)[0])
    assert found["bleu1_cumulative"] == pytest.approx(sacrebleu(texts, 1)[1]) and found["caption_bleu"] == pytest.approx(sacrebleu(captions, 2)[1])
    assert found["bleu2_cumulative"] == pytest.approx(sacrebleu(texts, 2)[1]) != pytest.approx(found["bleu2"])
    split = [[[reference.split()] for _, reference in texts], [hypothesis.split() for hypothesis, _ in texts]]
    assert found["bleu1"] == pytest.approx(100 * corpus_bleu(*split, weights=(1,)))
    scorer = RougeScorer(["rougeL"])
    assert found["rougeL"] == pytest.approx(100 * np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in texts]))
    words = [(one.split(), other.split()) for one, other in texts]
    assert found["rougeL_whitespace"] == pytest.approx(100 * np.mean([2 * longest_common_subsequence(*pair) / sum(map(len, pair)) for pair in words]))
    shares, due = (np.array([bool(row[name]) for row in rows]) for name in ("captions", "gold_photo_ids"))
    precision, recall = (shares & due).sum() / shares.sum(), (shares & due).sum() / due.sum()
    assert found["intent_precision"] == pytest.approx(precision) != pytest.approx(recall)
    assert found["intent_recall"] == pytest.approx(recall) and found["intent_f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
    a, b = drawn.features.numpy(), gold.features.numpy()
    covariances = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert found["fid"] == pytest.approx(expected)
    parts, others = (inception_scores(side.logits, 3) for side in (drawn, gold))  # a split for every ten of thirty photos
    assert found["is"] == pytest.approx(np.mean(parts)) != pytest.approx(np.mean(others))
    assert found["is_std"] == pytest.approx(np.std(parts)) != pytest.approx(np.std(others))
    assert len(drawn) == len(gold) == 30 and found["kid"] == pytest.approx(kernel_distance(a, b))  # subsets of 30 are all photos
    assert found["kid_std"] == pytest.approx(0, abs=1e-9)
    assert found["length"] == np.mean([min(1, len(row["text"].split()) / 2) for row in rows[::8]])
    assert found["never"] is None and found["other"] is None
    assert found["drawn_photos"] == 30 and found["length_n"] == 9
    assert found["n"] == {"examples": 72, "texts": len(texts), "gold_photos": 30, "eighths": 1}
    assert "nrefs:1" in found["sacrebleu_signature"]
    assert set(METRICS) <= set(SCORES) <= set(found)


def test_kid_of_unequal_numbers_has_a_spread_over_its_subsets():
    rows, drawn, gold = made_up_answers(0)
    fewer = [row if i != 1 else row | {"images": [], "captions": []} for i, row in enumerate(rows)]
    found = all_scores(reduce(fewer, drawn.take(torch.arange(len(rows[1]["images"]), 30)), gold))
    assert found["kid_std"] > 0 and abs(found["kid"] - kernel_distance(drawn.features.numpy(), gold.features.numpy())) < 1


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_weights_are_repetitions(seed):
    rows, drawn, gold = made_up_answers(1, examples=30)
    answers = reduce(rows, drawn, gold, OneScore())
    weights = np.random.default_rng(seed).integers(0, 3, size=(1, len(rows))).astype(float)
    repeated = [i for i, count in enumerate(weights[0]) for _ in range(int(count))]
    sides = []
    for photos, name in ((drawn, "images"), (gold, "gold_photo_ids")):
        of_rows = [i for i, row in enumerate(rows) for _ in row[name]]
        sides.append(photos.take(torch.tensor([k for k, i in enumerate(of_rows) for _ in range(int(weights[0, i]))], dtype=torch.long)))
    again = reduce([rows[i] for i in repeated], *sides, OneScore())
    for name in (*SCORES, "length"):
        expected = score(name, again, np.ones((1, len(repeated))))
        assert score(name, answers, weights) == pytest.approx(expected, nan_ok=True, rel=1e-6, abs=1e-6), name


def test_weights_of_ones_are_the_test_set_itself():
    answers = reduce(*made_up_answers(4), OneScore())
    for name in (*SCORES, "length"):
        once, twice = score(name, answers, np.array([[1.0], [2.0]]) * np.ones((2, 72)))
        assert once == pytest.approx(scores.score_once(name, answers), rel=1e-12)
        assert once == pytest.approx(twice) or name in ("fid", "kid", "kid_std")  # which know how many photos there are


def test_a_set_with_nothing_to_score_is_nan():
    rows, drawn, gold = made_up_answers(2)
    answers = reduce(rows, drawn, gold, OneScore())
    weights = np.zeros((2, len(rows)))
    weights[1] = 1
    for name in (*SCORES, "length"):
        none, some = score(name, answers, weights)
        assert (none == 0 if name.startswith("intent") else np.isnan(none)) and np.isfinite(some), name


def test_replies_to_questions_count_in_the_corpus_own_scores_only():
    rows, drawn, gold = made_up_answers(3)
    question = {"dialogue_id": "d0", "index": 8, "text": "yes it is", "right": True}
    without, found = (all_scores(reduce(these, drawn, gold, OneScore())) for these in (rows, [*rows, question]))
    assert {name for name in found if found[name] != without[name]} == {"length", "length_n"}


def test_photos_and_rows_must_agree():
    rows, drawn, gold = made_up_answers(0)
    with pytest.raises(ValueError, match="drawn photos in the answers, but features of 1"):
        reduce(rows, drawn.take(torch.tensor([0])), gold)
    with pytest.raises(ValueError, match="30 gold photos in the answers, but features of 0"):
        reduce(rows, drawn, gold.take(torch.tensor([], dtype=torch.long)))


class Means(nn.Module):
    def extract(self, photos):
        means = torch.stack([photo.float().mean((1, 2)) for photo in photos])
        return means, means


class Store:
    def tensor(self, photo_id):
        return torch.randint(256, (3, 5, 7), generator=torch.Generator().manual_seed(int(photo_id)), dtype=torch.uint8)


def dev_answers(count, shared):
    """Examples of which every other one shares a photo, and answers of which the first ``shared`` have one."""
    examples = [Example("d", i, (Turn(0, "hello"),), Turn(1, "", (SharedPhoto(str(i), "a dog"),)) if i % 2 else Turn(1, "a b c"))
                for i in range(count)]
    return examples, [Response("a b d", ["a dog"] * (i < shared), [Store().tensor(100 + i)] * (i < shared))
                      for i in range(count)]


def test_dev_scores_are_bleu2_and_fid():
    examples, responses = dev_answers(12, 5)
    found = scores.dev_scores(examples, responses, Store(), Means())
    assert found["bleu2"] == bleu(np.sum([ngram_counts("a b d", "a b c")] * 6, 0))["bleu2"] == pytest.approx(50)
    sides = [features_of([Store().tensor(i) for i in ids], Means()) for ids in (range(100, 105), range(1, 12, 2))]
    assert found["fid"] == scores.image.fid(*sides) > 0


def test_dev_answers_without_photos_or_texts_have_no_fid_and_a_bleu_of_0():
    examples, responses = dev_answers(12, 1)
    assert scores.dev_scores(examples, responses, Store(), Means())["fid"] is None
    assert scores.dev_scores(examples[1:2], responses[1:2], Store(), Means()) == {"bleu2": 0.0, "fid": None}
