"""Variants of the model: named, trained once, kept, scored on the same test examples; and the files that notebook 03 reads."""

import json

import pytest
from PIL import Image

from e2e_lib.config import SHIPPED, ConfigError, replace, table
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.experiments import ablation
from e2e_lib.repro import results


@pytest.fixture
def tiny(config, tmp_path, monkeypatch, shipped):
    """The tiny configuration of conftest, trained for three steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for key, value in (("train.epochs", 1), ("train.epoch_examples", 12)):
        config = replace(config, key, value)
    return config


def test_names_are_variants_or_groups_and_a_misspelt_one_is_named():
    assert ablation.names_of(["span", "maps"]) == ["span", "none", "static_piece", "static_word", "sentence", "word"]
    assert set(ablation.names_of(["maps", "estimators", "ingredients"])) == set(ablation.VARIANTS)
    with pytest.raises(ConfigError, match="variant 'spam' is unknown; allowed: maps, .*span"):
        ablation.names_of(["span", "spam"])


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_a_variant_changes_what_it_says_and_nothing_else(config, name):
    before, after = table(config), table(ablation.apply_variant(config, name))
    changed = {row["key"] for row, old in zip(after, before, strict=True) if row != old}
    assert changed <= {override.partition("=")[0] for override in ablation.VARIANTS[name]}
    assert bool(changed) == (name != "sentence")


def test_variants_are_trained_and_scored_once_on_the_same_examples(tiny, monkeypatch):
    monkeypatch.setattr(ablation, "OTHERS", 5)
    said = []
    summary = ablation.ablate(tiny, [0, 1], said.append, ["none", "sentence"])
    assert set(summary["systems"]) == {"none", "sentence"} and summary["systems"]["none"]["bleu1"]["n"] == 2
    runs = results.read_runs("smoke", folder="ablations")
    assert {(run["system"], run["seed"]) for run in runs} == {("none", 0), ("none", 1), ("sentence", 0), ("sentence", 1)}
    for run in runs:
        counts = run["metrics"]["n"]
        assert counts["examples"] == counts["gold_photos"] + 5
        assert run["provenance"]["config"]["bridge"]["mapping"] == run["system"]
    assert json.loads(open("results/smoke/ablations.json").read()) == json.loads(json.dumps(summary))
    assert sorted(str(path) for path in ablation.RUNS.rglob("done.json")) == [
        *(f"runs/ablations/none/smoke/end_to_end/seed-{seed}/done.json" for seed in (0, 1)),
        *(f"runs/smoke/end_to_end/seed-{seed}/done.json" for seed in (0, 1))]  # the paper's way is the profile's own run
    before = {path: path.read_bytes() for path in results.RESULTS.rglob("*.json")}
    again = []
    ablation.ablate(tiny, [0, 1], again.append, ["none", "sentence"])
    assert sum("is trained already" in line for line in again) == 4 and sum("is there already" in line for line in again if "results" in line) == 4
    assert {path: path.read_bytes() for path in results.RESULTS.rglob("*.json")} == before

    # Now what has been answered is compared. The tiny model shares no photo of its own accord, and there must be some to compare.
    for folder in ablation.RUNS.rglob(ablation.ANSWERS):
        for number in range(4):
            Image.effect_noise((64, 64), 50 + number).convert("RGB").save(folder / f"{number}.png")
    said, reader = [], load_scene_classifier(SHIPPED)
    found = json.loads(ablation.differences(tiny, [0, 1], reader, said.append, draws=20).read_text())
    assert {(pair["system"], pair["than"]) for pair in found["pairs"]} == {("sentence", "none")} and found["seeds"] == [0, 1]
    scored = {pair["metric"]: pair["difference"] for pair in found["pairs"]}
    by_hand = summary["systems"]["sentence"]["rougeL"]["mean"] - summary["systems"]["none"]["rougeL"]["mean"]
    assert scored["rougeL"] == pytest.approx(by_hand, abs=1e-6) and set(scored) == set(ablation.COMPARED)
    assert said[0].startswith("1 of 20 variants have runs of seeds 0, 1 and are compared; without: static_piece,")
    ablation.differences(tiny, [0, 1], reader, said.append, draws=20)
    assert "ablation_differences.json is there already" in said[-1]
    assert ablation.differences(tiny, [2], reader, said.append) is None and said[-1].startswith("0 of 20 variants")


def test_what_a_variant_is_compared_with():
    assert {ablation.reference_of(name) for name in ("sentence", "span", "span_gumbel_rao", "static_word", "weight_100_none")} == {"none"}
    assert {ablation.reference_of(name) for name in ("no_perceptron", "weight_10", "temperature_1")} == {"sentence"}
    for name in ("weight_100", "weight_100_span"):  # from which it differs in nothing but the bridge
        changes = set(ablation.VARIANTS[name]) ^ set(ablation.VARIANTS[ablation.reference_of(name)])
        assert changes and all(change.startswith("bridge.") for change in changes)


def test_the_gradients_are_compared_once_and_steps_are_timed(tiny, monkeypatch):
    ablation.train(tiny, 0, lambda _: None)
    monkeypatch.setattr(ablation, "ESTIMATORS", (("gumbel", 1.0), ("reinmax", 1.0)))
    small = {"captions": 2, "positions": 1, "words": 3, "noises": 2, "draws": 40}
    found = json.loads(ablation.truths(tiny, 0, print, **small).read_text())
    maps = [name for name in ablation.MAPS if name != "none"]
    assert [(row["mapping"], row["estimator"]) for row in found["rows"]] == [
        *((name, estimator) for name in maps for estimator in ("gumbel", "reinmax")), ("all", "reinforce")]
    for row in found["rows"]:
        assert row["n"] == 2 and -1 <= row["cosine"]["mean"] <= 1 and row["relative_variance"]["mean"] >= 0 and row["seconds_a_draw"]["mean"] > 0
    # With one position there is one gradient that sums to zero over three words, and REINFORCE must point along it.
    assert found["rows"][-1]["cosine"]["mean"] > 0.8 and len(found["captions"]) == 2
    said = []
    ablation.truths(tiny, 0, said.append, **small)
    assert "gradients.json is there already" in said[-1]
    steps = json.loads(ablation.step_seconds(tiny, print, rounds=2, batch=4).read_text())
    assert [row["mapping"] for row in steps["rows"]] == list(ablation.MAPS)
    assert steps["rows"][0]["over_none"] == 1 and all(row["seconds"] > 0 for row in steps["rows"])


def test_coins_are_tossed_by_every_estimator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(ablation.coins(lambda _: None, steps=3).read_text())
    assert [(row["estimator"], row["temperature"]) for row in found["rows"]] == list(ablation.COINS)
    start = (0.45**1.5 + 0.55**1.5) / 2
    assert all(abs(row["end"] - start) < 0.01 for row in found["rows"])
