"""Scores of reduced answers: against each one's own definition, and under weights against repeated answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import nn

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example, Response
from e2e_lib.evaluation import scores
from e2e_lib.evaluation.image import PhotoFeatures, features_of
from e2e_lib.evaluation.scores import METRICS, SCORES, Metric, all_scores, reduce, score
from e2e_lib.evaluation.text import bleu, ngram_counts, rouge_l

WORDS = ["a", "red", "dog", "at", "the", "beach", "two", "no"]


class OneScore:
    """A corpus's own score: half the length of the text, of every eighth answer, and questions about everything."""

    metrics = {"length": Metric("length", "higher", "words"), "never": Metric("never", "lower", "nothing")}

    def values(self, row):
        return {"length": min(1.0, len(row["text"].split()) / 2)} if row["index"] % 8 == 0 else {"other": float("nan")}

    def counts(self, rows):
        return {"length_n": sum(row["index"] % 8 == 0 for row in rows), "n": {"eighths": 1}}


def made_up_answers(seed, examples=40, shift=0.0):
    """Rows of answers.jsonl, and features of their photos."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(examples):
        gold = " ".join(rng.choice(WORDS, rng.integers(1, 9))) if i % 5 else ""
        text = " ".join(word if rng.random() < 0.7 + shift else rng.choice(WORDS) for word in gold.split())
        due = i % 3 == 0
        caption = " ".join(rng.choice(WORDS, 3)) if due and i % 12 or i % 7 == 1 else None
        rows.append({"text": text, "gold_text": gold, "image": f"{i}.png" if caption else None, "caption": caption,
                     "gold_photo_id": f"p{i}" if due else None, "gold_caption": "a red dog" if due else None,
                     "dialogue_id": f"d{i // 4}", "index": i})
    photos = []
    for count, mean in ((sum(bool(row["image"]) for row in rows), shift), (sum(bool(row["gold_photo_id"]) for row in rows), 0)):
        photos.append(PhotoFeatures(torch.from_numpy(rng.normal(mean, 1, (count, 3))), torch.from_numpy(rng.normal(0, 2, (count, 5)))))
    return rows, *photos


def inception_scores(logits, splits):
    """Of photos shuffled as torch-fidelity does, in so many splits."""
    p = torch.from_numpy(np.random.RandomState(0).permutation(logits.softmax(1).numpy()))
    parts = [p[i * len(p) // splits:(i + 1) * len(p) // splits] for i in range(splits)]
    return [float((part * (part.log() - part.mean(0).log())).sum(1).mean().exp()) for part in parts]


def test_every_score_is_what_it_is_called():
    rows, drawn, gold = made_up_answers(0)
    found = all_scores(reduce(rows, drawn, gold, OneScore()))
    texts = [(row["text"], row["gold_text"]) for row in rows if row["gold_text"]]
    captions = [(row["caption"] or "", row["gold_caption"]) for row in rows if row["gold_photo_id"]]
    for prefix, pairs in (("", texts), ("caption_", captions)):
        expected = bleu(np.sum([ngram_counts(*pair) for pair in pairs], 0))
        for name in ("bleu1", "bleu2"):
            assert found[prefix + name] == expected[name]
    assert found["bleu2_cumulative"] > found["bleu2"] and found["caption_bleu"] == expected["bleu2_cumulative"]
    assert found["rougeL"] == pytest.approx(100 * np.mean([rouge_l(*pair) for pair in texts]))
    shares, due = (np.array([row[name] is not None for row in rows]) for name in ("caption", "gold_photo_id"))
    assert found["intent_precision"] == pytest.approx((shares & due).sum() / shares.sum())
    assert found["intent_recall"] == pytest.approx((shares & due).sum() / due.sum())
    a, b = drawn.features.numpy(), gold.features.numpy()
    covariances = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert found["fid"] == pytest.approx(expected)
    parts = inception_scores(drawn.logits, max(1, len(drawn) // 10))
    assert found["is"] == pytest.approx(np.mean(parts)) and found["is_std"] == pytest.approx(np.std(parts))
    assert found["kid"] > found["kid_std"] * -1e9 and found["kid_std"] >= 0
    assert found["length"] == np.mean([min(1, len(row["text"].split()) / 2) for row in rows[::8]])
    assert found["never"] is None and found["other"] is None
    assert found["drawn_photos"] == len(drawn) == shares.sum() and found["length_n"] == 5
    assert found["n"] == {"examples": 40, "texts": len(texts), "gold_photos": len(captions), "eighths": 1}
    assert "nrefs:1" in found["sacrebleu_signature"]
    assert set(METRICS) <= set(SCORES) <= set(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_weights_are_repetitions(seed):
    rows, drawn, gold = made_up_answers(1, examples=30)
    answers = reduce(rows, drawn, gold, OneScore())
    weights = np.random.default_rng(seed).integers(0, 3, size=(1, len(rows))).astype(float)
    repeated = [i for i, count in enumerate(weights[0]) for _ in range(int(count))]
    sides = []
    for photos, at in ((drawn, answers.drawn_rows), (gold, answers.gold_rows)):
        place = {int(row): i for i, row in enumerate(at)}
        sides.append(photos.take(torch.tensor([place[i] for i in repeated if i in place], dtype=torch.long)))
    again = reduce([rows[i] for i in repeated], *sides, OneScore())
    for name in (*SCORES, "length"):
        expected = score(name, again, np.ones((1, len(repeated))))
        assert score(name, answers, weights) == pytest.approx(expected, nan_ok=True, rel=1e-6, abs=1e-6), name


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
    with pytest.raises(ValueError, match="answers with a drawn photo, but features of 1"):
        reduce(rows, drawn.take(torch.tensor([0])), gold)
    with pytest.raises(ValueError, match="14 answers with a gold photo, but features of 0"):
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
    examples = [Example("d", i, (Turn(0, "hello"),), Turn(1, "", SharedPhoto(str(i), "a dog")) if i % 2 else Turn(1, "a b c"))
                for i in range(count)]
    return examples, [Response("a b d", "a dog" if i < shared else None, Store().tensor(100 + i) if i < shared else None)
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
