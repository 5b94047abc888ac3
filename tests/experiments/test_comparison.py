"""Differences between runs: of means over seeds, corrected together, and from saved answers alone."""

import json

import numpy as np
import pytest
import torch
from PIL import ImageOps

from e2e_lib import corpora
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.evaluation import bootstrap, image
from e2e_lib.evaluation.image import PhotoFeatures
from e2e_lib.evaluation.scores import reduce, score
from e2e_lib.experiments import comparison
from e2e_lib.repro.results import ResultsError

WORDS = ["a", "red", "dog", "at", "the", "beach", "two", "no"]


def made_up_run(seed, examples=80, shift=0.0):
    """Answers whose texts and photos are the nearer to gold the larger ``shift``."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(examples):
        gold = " ".join(rng.choice(WORDS, rng.integers(1, 9)))
        text = " ".join(word if rng.random() < 0.7 + shift else rng.choice(WORDS) for word in gold.split())
        photo = {"image": f"{i}.png", "caption": "a", "gold_photo_id": f"p{i}", "gold_caption": "a"} if i % 3 == 0 else {}
        rows.append({"text": text, "gold_text": gold, "dialogue_id": f"d{i // 4}", **photo})
    count = len(range(0, examples, 3))
    photos = [PhotoFeatures(torch.from_numpy(rng.normal(mean, 1, (count, 3))), torch.zeros(count, 2).double()) for mean in (1 - shift, 0)]
    return reduce(rows, *photos)


def resampled(run, draws=500):
    return bootstrap.resamplings(run.dialogue_ids, draws, np.random.default_rng(0))


def test_a_better_system_is_told_from_an_equal_one():
    worse, better = made_up_run(2, 400), made_up_run(2, 400, shift=0.25)
    pairs = [("better", "worse"), ("worse", "worse")]
    sure, none = comparison.differences({"better": [better], "worse": [worse]}, pairs, resampled(worse), ["bleu2"])
    assert sure["low"] > 0 and sure["p"] == pytest.approx(2 / 501) and sure["low"] < sure["difference"] < sure["high"]
    assert none["difference"] == none["low"] == none["high"] == 0 and none["p"] == none["p_corrected"] == 1


def test_differences_are_of_means_over_runs_and_corrected_together():
    one, two = made_up_run(5), made_up_run(6)
    rows = comparison.differences({"a": [one, two], "b": [two, two], "c": [one, one]}, [("a", "b"), ("c", "b")],
                                  resampled(one, 30), ("bleu1", "fid"))
    assert [(row["system"], row["than"], row["metric"]) for row in rows] == [
        (name, "b", metric) for name in "ac" for metric in ("bleu1", "fid")]
    once = np.ones((1, 80))
    for metric in ("bleu1", "fid"):
        half, whole = (row["difference"] for row in rows if row["metric"] == metric)
        assert half == pytest.approx(whole / 2)
        assert whole == pytest.approx(float((score(metric, one, once) - score(metric, two, once))[0]))
    assert [row["p_corrected"] for row in rows] == bootstrap.holm([row["p"] for row in rows])
    assert all(row["difference"] == pytest.approx(np.mean(row["by_seed"])) for row in rows) and rows[0]["by_seed"][1] == 0


def test_a_metric_with_nothing_to_score_is_left_out():
    run = made_up_run(4)
    without_captions = reduce([{"dialogue_id": i, "text": "a", "gold_text": "a"} for i in run.dialogue_ids],
                              *(PhotoFeatures(torch.zeros(0, 1), torch.zeros(0, 1)),) * 2)
    rows = comparison.differences({"a": [without_captions], "b": [without_captions]}, [("a", "b")], resampled(run, 20),
                                  ("bleu1", "fid", "caption_bleu"))
    assert [row["metric"] for row in rows] == ["bleu1"]


def test_fid_falls_with_the_number_of_photos():
    run = made_up_run(7, 240, shift=1)
    rows = comparison.fid_by_number(run, np.random.default_rng(0))
    assert [row["n"] for row in rows] == [10, 20, 30, 40, 60, 80]
    assert rows[0]["mean"] > rows[2]["mean"] > rows[-1]["mean"] == pytest.approx(image.fid(run.drawn, run.gold))
    assert rows[-1]["std"] == pytest.approx(0, abs=1e-9)


def save_run(folder, examples, store, photo_of, text_of, colour):
    """Answers as ``evaluate`` saves them, every photo as if it was classified as red or blue."""
    scene = {"gold": {name: "x" for name in ("thing", "colour", "place", "number", "size", "time")}}
    scene["drawn"] = scene["gold"] | {"colour": colour}
    (folder / "answers").mkdir(parents=True)
    lines = []
    for i, e in enumerate(examples):
        gold = e.response.photo
        lines.append(json.dumps({
            "dialogue_id": e.dialogue_id, "text": text_of(e), "caption": "a" if gold else None, "gold_text": e.response.text,
            "gold_caption": "a", "scene": scene if gold else None, "gold_photo_id": gold.photo_id if gold else None}))
        if gold:
            photo_of(store.load(gold.photo_id)).save(folder / "answers" / f"{i}.png")
    (folder / "answers" / "answers.jsonl").write_text("\n".join(lines) + "\n")
    details = [json.dumps({"dialogue_id": examples[0].dialogue_id, "photo_id": "p", "attribute": "number", "truth": 2,
                           "text": "Two." if colour == "x" or i == 0 else "Three."}) for i in range(4)]
    (folder / "answers" / "details.jsonl").write_text("\n".join(details) + "\n")


def test_systems_are_compared_from_their_saved_answers(config, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "prepare", lambda *_: corpus)
    monkeypatch.chdir(tmp_path)
    dialogues, store, _ = load_split(corpus, "train")
    examples = [e for d in dialogues for e in examples_of(d)]
    perfect = (lambda photo: photo, lambda e: e.response.text, "x")
    poor = (lambda photo: ImageOps.invert(photo), lambda e: e.response.text[::-1], "blue")
    for system, answers in (("end_to_end", perfect), ("pipeline", poor)):
        save_run(tmp_path / "runs" / "smoke" / system / "seed-0", examples, store, *answers)
    record = json.loads(comparison.compare_systems(config, [0], ["end_to_end", "pipeline"], print, draws=50).read_text())
    assert record["examples"] == len(examples) + 4 and record["dialogues"] == len(dialogues)
    rows = {row["metric"]: row for row in record["pairs"]}
    assert list(rows) == ["bleu1", "bleu2", "rougeL", "is", "fid", "scene_accuracy", "details"] == list(record["higher_is_better"])
    assert rows["bleu1"]["difference"] > 80 and rows["rougeL"]["low"] > 80
    assert rows["fid"]["high"] < 0 and not record["higher_is_better"]["fid"]
    assert rows["scene_accuracy"]["difference"] == pytest.approx(1 / 3)
    assert rows["details"]["difference"] == rows["details"]["low"] == 0.75  # all of them in one dialogue
    perfect_fid, poor_fid = (record["fid_by_number"][system] for system in ("end_to_end", "pipeline"))
    assert [row["n"] for row in perfect_fid] == [row["n"] for row in poor_fid] and perfect_fid[-1]["mean"] == pytest.approx(0, abs=1e-6)
    save_run(tmp_path / "runs" / "smoke" / "divter" / "seed-0", examples[1:], store, *perfect)
    with pytest.raises(ResultsError, match="divter, seed 0, answered other test examples than end_to_end, seed 0"):
        comparison.compare_systems(config, [0], ["end_to_end", "divter"], print, draws=5)
    texts = [e for e in examples if not e.response.photo]
    for system, answers in (("divter", perfect), ("pipeline", poor)):
        save_run(tmp_path / "runs" / "smoke" / system / "seed-1", texts, store, *answers)
    record = json.loads(comparison.compare_systems(config, [1], ["divter", "pipeline"], print, draws=5).read_text())
    metrics = {row["metric"] for row in record["pairs"]}
    assert "bleu1" in metrics and not metrics & {"is", "fid"}  # nobody drew a photo: texts are compared all the same
