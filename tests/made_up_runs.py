"""Made-up answers of runs, for tests of what is counted from them."""

import numpy as np
import torch

from e2e_lib.evaluation.image import PhotoFeatures
from e2e_lib.evaluation.scores import Metric, reduce

WORDS = ["a", "red", "dog", "at", "the", "beach", "two", "no"]


class RightWords:
    """A corpus's own score: the share of the answer's words that are right."""

    metrics = {"right": Metric("right words", "higher", "share")}

    def values(self, row):
        gold = row["gold_text"].split()
        return {"right": np.mean([mine == word for mine, word in zip(row["text"].split(), gold, strict=True)])}


def made_up_run(seed, dialogues=20, quality=0.7, side=1.0, photos=None):
    """Answers, four to a dialogue and one of three with a photo, of a system that gets the share ``quality`` of words right.

    Runs of the same ``photos`` (by default the seed) have the same gold answers and photos; drawn photos are the nearer
    to these the smaller ``side``."""
    gold_rng, rng = np.random.default_rng(seed if photos is None else photos), np.random.default_rng([seed, 1])
    hard, rows = gold_rng.normal(0, 0.1, dialogues), []
    for i in range(4 * dialogues):
        gold = gold_rng.choice(WORDS, gold_rng.integers(1, 9))
        right = rng.random(len(gold)) < quality + hard[i // 4]
        text = " ".join(np.where(right, gold, rng.choice(WORDS, len(gold))))
        caption = {"captions": ["a"], "gold_captions": ["a"], "gold_photo_ids": [f"p{i}"], "images": [f"{i}.png"]} if i % 3 == 0 else {}
        rows.append({"text": text, "gold_text": " ".join(gold), "dialogue_id": f"d{i // 4:04d}", "captions": [], **caption})
    n = sum(len(row["captions"]) for row in rows)
    gold = gold_rng.normal(0, 1, (n, 3))
    drawn = gold + side * rng.normal(1, 1, (n, 3))
    sides = (PhotoFeatures(torch.from_numpy(x), torch.from_numpy(np.pad(2 * x, [(0, 0), (0, 1)]))) for x in (drawn, gold))
    return reduce(rows, *sides, RightWords())
