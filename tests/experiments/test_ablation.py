"""Variants are trained once, kept, scored on the same test examples and compared; steps are timed."""

import json

import pytest
from PIL import Image

from e2e_lib.config import replace
from e2e_lib.experiments import ablation
from e2e_lib.experiments.variants import MAPS, RUNS, VARIANTS
from e2e_lib.repro import results


@pytest.fixture
def tiny(config, tmp_path, monkeypatch, shipped):
    """The tiny configuration of conftest, trained for three steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for key, value in (("train.epochs", 1), ("train.epoch_examples", 12)):
        config = replace(config, key, value)
    return config


def test_variants_are_trained_scored_and_compared_once(tiny, monkeypatch):
    monkeypatch.setattr(ablation, "MAX_TEXT_ONLY", 5)
    summary = ablation.ablate(tiny, [0, 1], lambda _: None, ["none", "sentence"])
    assert set(summary["systems"]) == {"none", "sentence"} and summary["systems"]["none"]["bleu1"]["n"] == 2
    runs = results.read_runs("smoke", folder="ablations")
    assert {(run["system"], run["seed"]) for run in runs} == {("none", 0), ("none", 1), ("sentence", 0), ("sentence", 1)}
    for run in runs:
        counts = run["metrics"]["n"]
        assert counts["examples"] == counts["gold_photos"] + 5
        assert run["provenance"]["config"]["bridge"]["mapping"] == run["system"]
    assert json.loads((results.RESULTS / "smoke" / "ablations.json").read_text()) == json.loads(json.dumps(summary))
    assert sorted(str(path) for path in RUNS.rglob("done.json")) == [
        *(f"runs/ablations/none/smoke/end_to_end/seed-{seed}/done.json" for seed in (0, 1)),
        *(f"runs/smoke/end_to_end/seed-{seed}/done.json" for seed in (0, 1))]  # the paper's way is the profile's own run
    before = {path: path.read_bytes() for path in results.RESULTS.rglob("*.json")}
    lines = []
    ablation.ablate(tiny, [0, 1], lines.append, ["none", "sentence"])
    assert sum("is trained already" in line for line in lines) == 4
    assert sum("is there already" in line for line in lines if "results" in line) == 4
    assert {path: path.read_bytes() for path in results.RESULTS.rglob("*.json")} == before

    # The tiny model shares no photo of its own accord, and there must be some to compare.
    for folder in RUNS.rglob(ablation.ANSWERS):
        path = folder / "answers.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"captions": ["a"]}) + "\n" for row in rows))
        for number in range(len(rows)):
            Image.effect_noise((64, 64), 50 + number).convert("RGB").save(folder / f"{number}-0.png")
    lines.clear()
    record = json.loads(ablation.differences(tiny, [0, 1], lines.append).read_text())
    assert {(pair["system"], pair["than"]) for pair in record["pairs"]} == {("sentence", "none")} and record["seeds"] == [0, 1]
    differences = {pair["metric"]: pair["difference"] for pair in record["pairs"]}
    by_hand = summary["systems"]["sentence"]["rougeL"]["mean"] - summary["systems"]["none"]["rougeL"]["mean"]
    assert differences["rougeL"] == pytest.approx(by_hand, abs=1e-6) and list(differences) == ["bleu2", "rougeL", "fid", "scene_accuracy", "caption_accuracy"]
    assert any("not compared in detail questions: fewer than two dialogues" in line for line in lines)
    assert lines[0].startswith(f"1 of {len(VARIANTS) - 1} variants have runs of seeds 0, 1 and are compared; without: static_piece,")
    ablation.differences(tiny, [0, 1], lines.append)
    assert "ablation_differences.json is there already" in lines[-1]
    assert ablation.differences(tiny, [2], lines.append) is None and lines[-1].startswith(f"0 of {len(VARIANTS) - 1} variants")


def test_steps_are_timed_with_every_map(tiny, tmp_path):
    (tmp_path / "words.txt").write_text("red\nkite\nbeach")
    tiny = replace(tiny, "bridge.word_list", "words.txt")
    record = json.loads(ablation.step_seconds(tiny, print, rounds=2, batch=4).read_text())
    assert [row["mapping"] for row in record["rows"]] == list(MAPS)
    assert record["rows"][0]["over_none"] == 1 and all(row["seconds"] > 0 for row in record["rows"])
