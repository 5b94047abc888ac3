"""Differences between runs: those of the tables' scores, with intervals that hold, and from saved answers alone."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from made_up_runs import made_up_run
from PIL import ImageOps

from e2e_lib import corpora, versions
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.data.photos import to_tensor
from e2e_lib.evaluation import image, intervals
from e2e_lib.evaluation.image import PhotoFeatures, features_of, inception_score
from e2e_lib.evaluation.scores import METRICS, SCORES, all_scores, reduce
from e2e_lib.experiments import comparison, evaluate
from e2e_lib.repro.results import ResultsError


def test_a_better_system_is_told_from_an_equal_one():
    worse, better = made_up_run(2, 100), made_up_run(2, 100, quality=0.95)
    pairs = [("better", "worse"), ("worse", "worse")]
    sure, none = comparison.differences({"better": [better], "worse": [worse]}, pairs, ["bleu2"])
    assert sure["low"] > 0 and sure["p_corrected"] < 0.001 and sure["low"] < sure["difference"] < sure["high"]
    assert none["difference"] == none["low"] == none["high"] == 0 and none["p"] == none["p_corrected"] == 1


@pytest.mark.parametrize("metric", [*SCORES, "right"])
def test_a_difference_is_that_of_the_scores_in_the_tables(metric, monkeypatch):
    monkeypatch.setattr(intervals, "MOST", 3)
    runs = {"a": [made_up_run(5, 45), made_up_run(6, 45, side=0.5)], "b": [made_up_run(7, 45, side=2), made_up_run(8, 45)]}
    cells = {name: np.mean([all_scores(run)[metric] for run in both]) for name, both in runs.items()}
    row, = comparison.differences(runs, [("a", "b")], [metric])
    assert row["difference"] == pytest.approx(cells["a"] - cells["b"], abs=1e-9)
    assert row["by_seed"] == pytest.approx([all_scores(one)[metric] - all_scores(other)[metric] for one, other in zip(*runs.values(), strict=True)])
    assert row["low"] <= row["difference"] <= row["high"]


def test_differences_are_of_means_over_runs_and_corrected_together():
    one, two = made_up_run(5), made_up_run(6)
    rows = comparison.differences({"a": [one, two], "b": [two, two], "c": [one, one]}, [("a", "b"), ("c", "b")], ("bleu1", "fid"))
    assert [(row["system"], row["than"], row["metric"]) for row in rows] == [
        (name, "b", metric) for name in "ac" for metric in ("bleu1", "fid")]
    for metric in ("bleu1", "fid"):
        half, whole = (row["difference"] for row in rows if row["metric"] == metric)
        assert half == pytest.approx(whole / 2)
    assert [row["p_corrected"] for row in rows] == intervals.holm([row["p"] for row in rows])
    assert rows[0]["by_seed"][1] == 0


def test_a_metric_with_nothing_to_score_is_left_out():
    run = made_up_run(4)
    without_captions = reduce([{"dialogue_id": i, "text": "a", "gold_text": "a", "captions": []} for i in run.dialogue_ids],
                              *(PhotoFeatures(torch.zeros(0, 1), torch.zeros(0, 1)),) * 2)
    rows = comparison.differences({"a": [without_captions], "b": [without_captions]}, [("a", "b")], ("bleu1", "fid", "caption_bleu"))
    assert [row["metric"] for row in rows] == ["bleu1"]


def test_what_has_no_interval_is_said(config, monkeypatch):
    monkeypatch.setattr(corpora, "metrics_of", lambda _: METRICS)
    runs = {name: [made_up_run(4, dialogues=2)] for name in ("a", "b")}  # each of two dialogues has photos: without one, too few
    lines = []
    record = comparison.differences_record(config, [0], runs, [("a", "b")], lines.append)
    assert [row["metric"] for row in record["pairs"]] == ["bleu1", "bleu2", "rougeL"]
    assert [line.split(":")[0] for line in lines] == ["a and b are not compared in IS*", "a and b are not compared in FID*"]


QUALITY = {"one": 0.7, "like": 0.7, "unlike": 0.55}


def simulated_runs(base, names, rng):
    """The answers of ``base`` with other scores: drawn anew for each system, with gold photos that all of them have."""
    dialogue = np.unique(base.dialogue_ids, return_inverse=True)[1]
    hard, words = rng.normal(0, 0.1, dialogue.max() + 1)[dialogue], base.texts[:, 5].astype(int)
    gold, runs = rng.normal(0, 1, (len(base.gold), 3)), {}
    for name in names:
        quality = np.clip(QUALITY[name] + hard, 0, 1)
        texts = base.texts.copy()
        texts[:, 0] = rng.binomial(words, quality)
        drawn = gold * QUALITY[name] + rng.normal(0, 0.7, gold.shape)
        photos = {side: PhotoFeatures(torch.from_numpy(x), torch.zeros(len(x), 2)) for side, x in (("drawn", drawn), ("gold", gold))}
        right = (rng.random(len(words)) < quality).astype(float)
        rouge = quality + rng.normal(0, 0.3, len(words))
        runs[name] = [dataclasses.replace(base, texts=texts, rouge=rouge, values={"right": right}, **photos)]
    return runs


def test_intervals_of_differences_hold_the_expected_difference():
    base, rng, sets = made_up_run(0), np.random.default_rng(0), 40
    pairs, metrics = [("one", "like"), ("one", "unlike")], ("bleu1", "rougeL", "right", "fid")
    tables = [comparison.differences(simulated_runs(base, QUALITY, rng), pairs, metrics) for _ in range(sets)]
    held = {}
    for rows in zip(*tables, strict=True):  # of one pair and metric
        found = np.mean([row["difference"] for row in rows])
        known = {"rougeL": 15, "right": 0.15}.get(rows[0]["metric"], found) if rows[0]["than"] == "unlike" else 0
        assert found == pytest.approx(known, abs=4 * np.std([row["difference"] for row in rows]) / sets**0.5)
        assert (abs(known) > 0) == (rows[0]["than"] == "unlike")
        held[rows[0]["than"], rows[0]["metric"]] = np.mean([row["low"] <= known <= row["high"] for row in rows])
    assert len(held) == 8 and min(held.values()) >= 0.85 and 0.92 <= np.mean([*held.values()]) <= 0.99, held


def test_where_nothing_differs_a_false_claim_among_all_is_rare():
    base, rng, false = made_up_run(0), np.random.default_rng(0), []
    names = ["one", "like"]
    for _ in range(300):
        runs = {f"{name}{i}": run for i in range(2) for name, run in simulated_runs(base, names, rng).items()}
        rows = comparison.differences(runs, [("one0", "like0"), ("one0", "one1"), ("like0", "like1"), ("one1", "like1")], ("rougeL", "right"))
        false.append([min(row[key] for row in rows) < 0.05 for key in ("p", "p_corrected")])
    uncorrected, corrected = np.mean(false, 0)
    assert len(rows) == 8 and uncorrected > 0.15 and corrected <= 0.08, (uncorrected, corrected)


def test_a_copy_of_the_gold_photos_has_fid_0_at_every_number():
    run = made_up_run(7, 60, side=0)
    rows = comparison.fid_by_number(run)
    assert [row["n"] for row in rows] == [10, 20, 30, 40, 60, 80]
    assert [row["mean"] for row in rows] == pytest.approx([0] * 6, abs=1e-6)
    assert [row["std"] for row in rows] == pytest.approx([0] * 6, abs=1e-6)


def test_fid_by_number_is_too_high_by_what_few_photos_make_it():
    """Photos with one feature that tells them apart, a normal number: FID is (difference of means)² + (of standard deviations)².
    Of n pairs out of N without anything in common it is expected to be (2 + 1) (1 / n - 1 / N) above that of all N."""
    x = np.pad(np.random.default_rng(0).normal(size=(2, 800, 1)), [(0, 0), (0, 0), (0, 1)])
    drawn, gold = (PhotoFeatures(torch.from_numpy(side), torch.zeros(800, 2)) for side in x)
    run = dataclasses.replace(made_up_run(7), drawn=drawn, gold=gold, drawn_rows=np.arange(800), gold_rows=np.arange(800))
    rows = comparison.fid_by_number(run, subsets=200)
    assert rows[0]["mean"] - image.fid(drawn, gold) == pytest.approx(3 * (1 / 100 - 1 / 800), rel=0.25)
    assert rows[-1] == {"n": 800, "mean": pytest.approx(image.fid(drawn, gold)), "std": pytest.approx(0, abs=1e-9)}
    assert [row["mean"] for row in rows] == sorted([row["mean"] for row in rows], reverse=True)


def test_fid_by_number_takes_all_photos_of_the_examples_that_have_both():
    run = made_up_run(7, 20)
    fewer = dataclasses.replace(run, drawn=run.drawn.take(torch.arange(1, 27)), drawn_rows=run.drawn_rows[1:])
    rows = comparison.fid_by_number(fewer)
    assert rows[-1]["n"] == 26 and rows[-1]["mean"] == pytest.approx(image.fid(fewer.drawn, run.gold.take(torch.arange(1, 27))))


def save_run(folder, examples, store, photo_of, text_of, colour):
    """Answers as ``evaluate`` saves them, every photo as if it was classified as red or blue."""
    gold_scene = {name: "x" for name in ("thing", "colour", "place", "number", "size", "time")}
    (folder / "answers").mkdir(parents=True)
    lines = []
    for i, e in enumerate(examples):
        ids = [photo.photo_id for photo in e.response.photos]
        lines.append(json.dumps({
            "dialogue_id": e.dialogue_id, "index": e.index, "text": text_of(e), "captions": ["a"] * len(ids), "gold_text": e.response.text,
            "gold_captions": ["a"] * len(ids), "gold_photo_ids": ids,
            "scenes": [{"photo_id": name, "gold": gold_scene, "drawn": gold_scene | {"colour": colour}, "named": {}} for name in ids]}))
        for k, name in enumerate(ids):
            photo_of(store.load(name)).save(folder / "answers" / f"{i}-{k}.png")
    (folder / "answers" / "answers.jsonl").write_text("\n".join(lines) + "\n")
    details = [json.dumps({"dialogue_id": examples[i % 2 * -1].dialogue_id, "index": 0, "photo_id": "p", "attribute": "number", "truth": 2,
                           "text": "Two." if colour == "x" or i == 0 else "Three.", "right": True}) for i in range(4)]
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
    record = json.loads(comparison.compare_systems(config, [0], ["end_to_end", "pipeline"], print).read_text())
    assert record["examples"] == len(examples) + 4 and record["dialogues"] == len(dialogues)
    assert record["numbers"]["intervals"] == versions.INTERVALS and record["numbers"]["minichat"] == versions.MINICHAT
    rows = {row["metric"]: row for row in record["pairs"]}
    assert list(rows) == ["bleu1", "bleu2", "rougeL", "is", "fid", "scene_accuracy", "caption_accuracy", "details"] == list(record["higher_is_better"])
    assert rows["bleu1"]["difference"] > 80 and rows["rougeL"]["low"] > 80
    assert rows["fid"]["high"] < 0 and not record["higher_is_better"]["fid"]
    assert rows["scene_accuracy"]["difference"] == pytest.approx(1 / 3)
    assert rows["details"]["difference"] == pytest.approx(0.75)
    cells = {system: all_scores(evaluate.saved_answers(config, system, 0, corpus)) for system in ("end_to_end", "pipeline")}
    for metric, row in rows.items():
        assert row["difference"] == pytest.approx(cells["end_to_end"][metric] - cells["pipeline"][metric], abs=1e-9)
    # The Inception Score is that of the drawn photos, here the gold ones inverted.
    inverted = [to_tensor(ImageOps.invert(store.load(photo.photo_id))) for e in examples for photo in e.response.photos]
    assert cells["pipeline"]["is"] == pytest.approx(inception_score(features_of(inverted, corpora.extractor_of(config.data)))[0])
    assert cells["pipeline"]["is"] != pytest.approx(cells["end_to_end"]["is"])
    perfect_fid, poor_fid = (record["fid_by_number"][system] for system in ("end_to_end", "pipeline"))
    assert [row["n"] for row in perfect_fid] == [row["n"] for row in poor_fid]
    assert [row["mean"] for row in perfect_fid] == pytest.approx([0] * len(perfect_fid), abs=1e-5)
    save_run(tmp_path / "runs" / "smoke" / "divter" / "seed-0", examples[1:], store, *perfect)
    with pytest.raises(ResultsError, match="divter, seed 0, answered other test examples than end_to_end, seed 0"):
        comparison.compare_systems(config, [0], ["end_to_end", "divter"], print)
    texts = [e for e in examples if not e.response.photos]
    for system, answers in (("divter", perfect), ("pipeline", poor)):
        save_run(tmp_path / "runs" / "smoke" / system / "seed-1", texts, store, *answers)
    lines = []
    record = json.loads(comparison.compare_systems(config, [1], ["divter", "pipeline"], lines.append).read_text())
    metrics = {row["metric"] for row in record["pairs"]}
    assert "bleu1" in metrics and not metrics & {"is", "fid"}  # nobody drew a photo: texts are compared all the same
    assert any(line.startswith("divter and pipeline are not compared in FID*: fewer than two dialogues") for line in lines)


def test_a_damaged_photo_among_the_answers_is_named(config, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dialogues, store, _ = load_split(corpus, "train")
    examples = [e for d in dialogues for e in examples_of(d) if e.response.photos]
    folder = tmp_path / "runs" / "smoke" / "end_to_end" / "seed-0"
    save_run(folder, examples, store, lambda photo: photo, lambda e: "a", "x")
    photo = folder / "answers" / "0-0.png"
    for content in (b"no photo", photo.read_bytes()[:-200]):
        photo.write_bytes(content)
        with pytest.raises(ResultsError, match=r"0-0.png: .*damaged.*delete .*answers.*e2e evaluate --profile smoke --seeds 0"):
            evaluate.saved_answers(config, "end_to_end", 0, corpus, tmp_path / "runs")
