"""The bootstrap's metrics against the ones that are reported, and its intervals and p-values against what theory says."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageOps
from scipy.linalg import sqrtm

from e2e_lib.config import SHIPPED
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.evaluation.sharing import scene_accuracy
from e2e_lib.evaluation.text import bleu, rouge_l
from e2e_lib.experiments import comparison
from e2e_lib.repro.results import ResultsError

WORDS = ["a", "red", "dog", "at", "the", "beach", "two", "no"]


def some_answers(seed, examples=40, shift=0.0):
    """Made-up rows of answers.jsonl and features."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(examples):
        gold = " ".join(rng.choice(WORDS, rng.integers(1, 9))) if i % 5 else ""
        text = " ".join(word if rng.random() < 0.7 + shift else rng.choice(WORDS) for word in gold.split())
        due = i % 3 == 0
        scene = {"gold": {"thing": "dog", "colour": "red", "place": "beach"},
                 "drawn": None if i % 12 == 0 else {"thing": "dog", "colour": rng.choice(["red", "blue"]), "place": rng.choice(["beach", "city"])}}
        rows.append({"text": text, "gold_text": gold, "image": f"{i}.png" if due and i % 12 else None, "gold_photo_id": f"p{i}" if due else None,
                     "scene": scene if due else None, "dialogue_id": f"d{i // 4}", **({"right": i % 8 == 1} if i % 4 == 1 else {})})
    drawn, golds = sum(bool(r["image"]) for r in rows), sum(bool(r["gold_photo_id"]) for r in rows)
    things = rng.dirichlet(np.ones(5), drawn)
    return rows, comparison.reduce(rows, rng.normal(shift, 1, (drawn, 3)), things, rng.normal(0, 1, (golds, 3)))


def test_every_metric_is_the_reported_one_when_each_example_counts_once():
    rows, answers = some_answers(0)
    once = np.ones((1, len(rows)))
    found = {name: float(metric(answers, once)[0]) for name, (metric, _) in comparison.METRICS.items()}
    said, gold = zip(*((r["text"], r["gold_text"]) for r in rows if r["gold_text"]), strict=True)
    theirs = bleu(said, gold)
    assert found["bleu1"] == pytest.approx(theirs["bleu1"]) and found["bleu2"] == pytest.approx(theirs["bleu2"])
    assert found["rougeL"] == pytest.approx(rouge_l(said, gold))
    scenes = [r["scene"] for r in rows if r["scene"]]
    names = ("thing", "colour", "place")
    assert found["scene_accuracy"] == pytest.approx(scene_accuracy([s["drawn"] for s in scenes], [s["gold"] for s in scenes], names)["scene_accuracy"])
    a, b = answers.drawn, answers.gold
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * sqrtm(np.cov(a.T) @ np.cov(b.T)).real)
    assert found["fid"] == pytest.approx(expected)
    assert found["details"] == np.mean([r["right"] for r in rows if "right" in r]) == 0.5
    p = torch.from_numpy(answers.things)
    assert found["is"] == pytest.approx(float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp()))


@given(st.integers(0, 1000))
def test_weights_are_repetitions(seed):
    rows, answers = some_answers(1, examples=16)
    weights = comparison.resamplings([r["dialogue_id"] for r in rows], 1, np.random.default_rng(seed))
    repeated = [i for i, n in enumerate(weights[0]) for _ in range(int(n))]
    assert len(repeated) == len(rows) and all(weights[0][i] == weights[0][i // 4 * 4] for i in range(16))  # whole dialogues
    again = [rows[i] for i in repeated]
    at = {name: {int(e): k for k, e in enumerate(getattr(answers, f"{name}_at"))} for name in ("drawn", "gold")}
    pick = {name: [at[name][i] for i in repeated if i in at[name]] for name in at}
    if len(pick["drawn"]) < 4 or len(pick["gold"]) < 2 or not any(r["gold_text"] for r in again):
        return
    written_out = comparison.reduce(again, answers.drawn[pick["drawn"]], answers.things[pick["drawn"]], answers.gold[pick["gold"]])
    for metric, _ in comparison.METRICS.values():
        assert metric(answers, weights)[0] == pytest.approx(metric(written_out, np.ones((1, len(rows))))[0], rel=1e-6, abs=1e-6)


def test_a_better_system_is_told_from_an_equal_one():
    rows, worse = some_answers(2, examples=400)
    _, better = some_answers(2, examples=400, shift=0.25)
    weights = comparison.resamplings([r["dialogue_id"] for r in rows], 500, np.random.default_rng(0))
    good, bad = (comparison.resampled(runs, weights) for runs in ([better, better], [worse, worse]))
    found = comparison.compare(good, bad)
    assert found["bleu2"]["low"] > 0 and found["bleu2"]["p"] == pytest.approx(2 / 501) and found["bleu2"]["low"] < found["bleu2"]["difference"]
    same = comparison.compare(bad, bad)
    assert all(row["difference"] == row["low"] == row["high"] == 0 and row["p"] == 1 for row in same.values())


def test_differences_are_of_means_over_runs_and_corrected_together():
    rows, one = some_answers(5, examples=80)
    _, two = some_answers(6, examples=80)
    weights = comparison.resamplings([r["dialogue_id"] for r in rows], 30, np.random.default_rng(0))
    found = comparison.differences({"a": [one, two], "b": [two, two], "c": [one, one]}, [("a", "b"), ("c", "b")], weights, ("bleu1", "fid"))
    assert [(row["system"], row["than"], row["metric"]) for row in found] == [(name, "b", metric) for name in "ac" for metric in ("bleu1", "fid")]
    for metric in ("bleu1", "fid"):
        half, whole = (row["difference"] for row in found if row["metric"] == metric)
        score = comparison.METRICS[metric][0]
        assert half == pytest.approx(whole / 2) and whole == pytest.approx(float((score(one, weights[:1] * 0 + 1) - score(two, weights[:1] * 0 + 1))[0]))
    assert [row["p_corrected"] for row in found] == comparison.holm([row["p"] for row in found])
    assert all(row["difference"] == pytest.approx(np.mean(row["by_seed"])) for row in found) and found[0]["by_seed"][1] == 0


def test_the_interval_of_a_mean_is_the_normal_one():
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 0.2, 2000)
    base = comparison.Answers(*(np.zeros((2000, 6)), values, values, values, *(np.zeros((0, 3)), np.zeros(0, np.int64)) * 2, np.zeros((0, 5))))
    weights = comparison.resamplings([str(i) for i in range(2000)], 1000, rng)
    spread = comparison.METRICS["scene_accuracy"][0](base, weights).std()
    assert spread == pytest.approx(0.2 / 2000**0.5, rel=0.15)


def test_a_metric_without_anything_to_count_is_left_out_and_so_are_draws_without():
    rows, answers = some_answers(4)
    rows = [{key: value for key, value in row.items() if key != "right"} for row in rows]
    answers = comparison.reduce(rows, answers.drawn, answers.things, answers.gold)
    weights = comparison.resamplings([r["dialogue_id"] for r in rows], 20, np.random.default_rng(0))
    scored = comparison.resampled([answers], weights)
    assert set(comparison.compare(scored, scored)) == set(comparison.METRICS) - {"details"}
    asked = comparison.reduce([*rows, {"dialogue_id": "d0", "right": True, "text": ""}], answers.drawn, answers.things, answers.gold)
    weights = np.ones((2, len(rows) + 1))
    weights[0, -1] = 0
    scored = comparison.resampled([asked], weights)
    assert comparison.compare(scored, scored)["details"] == {"difference": 0, "by_seed": [0], "low": 0, "high": 0, "p": 1}
    assert np.isnan(comparison.METRICS["details"][0](asked, weights)[0]) and comparison.METRICS["details"][0](asked, weights)[1] == 1


def test_holm_is_as_worked_by_hand():
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert comparison.holm([0.9, 0.5]) == [1.0, 1.0] and comparison.holm([]) == []


def test_photos_and_rows_must_agree():
    rows, answers = some_answers(0)
    with pytest.raises(ValueError, match="answers with a drawn photo, but features of 1"):
        comparison.reduce(rows, answers.drawn[:1], answers.things, answers.gold)


def save_run(folder, examples, store, photo_of, text_of, colour):
    """Answers as ``evaluate`` saves them: photos by ``photo_of``, texts by ``text_of``, every photo read as red and drawn in ``colour``."""
    scene = {"gold": {"thing": "kite", "colour": "red", "place": "snow"}, "drawn": {"thing": "kite", "colour": colour, "place": "snow"}}
    (folder / "answers").mkdir(parents=True)
    lines = []
    for i, e in enumerate(examples):
        gold = e.response.photo
        lines.append(json.dumps({"dialogue_id": e.dialogue_id, "text": text_of(e), "gold_text": e.response.text, "scene": scene if gold else None,
                                 "gold_photo_id": gold.photo_id if gold else None}))
        if gold:
            photo_of(store.load(gold.photo_id)).save(folder / "answers" / f"{i}.png")
    (folder / "answers" / "answers.jsonl").write_text("\n".join(lines) + "\n")
    details = [json.dumps({"dialogue_id": examples[0].dialogue_id, "right": colour == "red" or i == 0}) for i in range(4)]
    (folder / "answers" / "details.jsonl").write_text("\n".join(details) + "\n")


def test_systems_are_compared_from_their_saved_answers(config, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "prepare", lambda *_: corpus)
    monkeypatch.chdir(tmp_path)
    dialogues, store, _ = load_split(corpus, "train")
    examples = [e for d in dialogues for e in examples_of(d)]
    perfect = (lambda photo: photo, lambda e: e.response.text, "red")
    poor = (lambda photo: ImageOps.invert(photo), lambda e: e.response.text[::-1], "blue")
    for system, made in (("end_to_end", perfect), ("pipeline", poor)):
        save_run(tmp_path / "runs" / "smoke" / system / "seed-0", examples, store, *made)
    reader = load_scene_classifier(SHIPPED)
    found = json.loads(comparison.compare_systems(config, [0], ["end_to_end", "pipeline"], reader, print, draws=50).read_text())
    assert found["examples"] == len(examples) + 4 and found["dialogues"] == len(dialogues)
    rows = {row["metric"]: row for row in found["pairs"]}
    assert set(rows) == set(comparison.METRICS) and rows["bleu1"]["difference"] > 80 and rows["rougeL"]["low"] > 80
    assert rows["fid"]["high"] < 0  # less is better
    assert rows["scene_accuracy"]["difference"] == pytest.approx(1 / 3)
    assert rows["details"]["difference"] == rows["details"]["low"] == 0.75  # all of them in one dialogue
    perfect_fid, poor_fid = (found["fid_by_number"][system] for system in ("end_to_end", "pipeline"))
    assert [row["n"] for row in perfect_fid] == [row["n"] for row in poor_fid] and perfect_fid[-1]["mean"] == pytest.approx(0, abs=1e-6)
    assert perfect_fid[0]["mean"] > perfect_fid[-1]["mean"]  # biased upwards by few photos
    assert all(row["p_corrected"] >= row["p"] for row in found["pairs"])
    save_run(tmp_path / "runs" / "smoke" / "divter" / "seed-0", examples[1:], store, *perfect)
    with pytest.raises(ResultsError, match="divter, seed 0, answered other test examples than end_to_end, seed 0"):
        comparison.compare_systems(config, [0], ["end_to_end", "divter"], reader, print, draws=5)
    save_run(tmp_path / "runs" / "smoke" / "divter" / "seed-1", [e for e in examples if not e.response.photo], store, *perfect)
    with pytest.raises(ResultsError, match="divter, seed 1, drew 0 photos"):
        comparison.answers_of(config, "divter", 1, corpus, reader)
