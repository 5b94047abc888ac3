"""Captions with wrong words, drawn again: what is counted, against counts by hand and a line fitted by numpy."""

import json

import numpy as np
import pytest

from e2e_lib.config import SHIPPED, replace
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.experiments import propagation
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.training import loop


def test_what_a_caption_still_names():
    gold = {"thing": "kite", "colour": "red", "place": "beach"}
    assert propagation.named("two red kites at the beach", gold) == 1
    assert propagation.named("two redder kites at the beach", gold) == pytest.approx(2 / 3)
    assert propagation.named("", gold) == 0


def test_slopes_are_those_of_fitted_lines_and_intervals_hold_them():
    rng = np.random.default_rng(0)
    right = (rng.random((len(propagation.SHARES), 40)) < 0.9 - 0.6 * np.array(propagation.SHARES)[:, None]).astype(float)
    found = propagation.described(right)
    assert found["slope"]["mean"] == pytest.approx(np.polyfit(propagation.SHARES, right.mean(1), 1)[0])
    assert [row["mean"] for row in found["accuracy"]] == pytest.approx(right.mean(1).tolist())
    assert found["slope"]["low"] < -0.6 < found["slope"]["high"] < 0
    reach = found["accuracy"][0]["high"] - found["accuracy"][0]["low"]  # against the normal interval of a mean
    assert reach == pytest.approx(2 * 1.96 * right[0].std() / 40**0.5, rel=0.2)
    flat = propagation.described(np.ones((len(propagation.SHARES), 5)))
    assert flat["slope"] == {"mean": 0, "low": 0, "high": 0}


def test_every_system_draws_the_same_wrong_captions_once(config, shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, value in (("train.epochs", 1), ("train.epoch_examples", 4), ("evaluation.max_text_only_examples", 2)):
        config = replace(config, key, value)
    systems, drawn = ("end_to_end", "pipeline"), []
    for system in systems:
        made = replace(config, "model.system", system)
        loop.train(made, 0, lambda _: None)
        evaluate(made, 0, lambda _: None)
    load = propagation.load_trained

    def watched(*args, **kwargs):
        model = load(*args, **kwargs)
        draw = model.generator.draw
        model.generator.draw = lambda captions, *a, **k: drawn.append(captions) or draw(captions, *a, **k)
        return model

    monkeypatch.setattr(propagation, "load_trained", watched)
    reader, said = load_scene_classifier(SHIPPED), []
    path = propagation.propagate(config, [0], systems, reader, said.append, photos=3)
    found = json.loads(path.read_text())
    shares = len(propagation.SHARES)
    assert found["photos"] == 3 and len(drawn) == 2 * shares and drawn[:shares] == drawn[shares:]  # system by system
    changed = [sum(a != b for one, other in zip(drawn[0], captions, strict=True) for a, b in zip(one.split(), other.split(), strict=True))
               for captions in drawn[:shares]]
    assert changed[0] == 0 and changed == sorted(changed) and changed[-1] > 0
    assert set(found["systems"]) == {"caption", *systems} and found["systems"]["caption"]["accuracy"][0]["mean"] == 1
    assert found["systems"]["caption"]["slope"]["mean"] < 0
    before = path.read_bytes()
    propagation.propagate(config, [0], systems, reader, said.append, photos=3)
    assert "is there already" in said[-1] and path.read_bytes() == before and len(drawn) == 2 * shares

    path = propagation.gold_fid(config, [0], systems, reader, said.append)
    found = json.loads(path.read_text())
    assert drawn[-1] == drawn[-2] and len(drawn[-1]) == found["photos"] >= 3 and set(drawn[0]) <= set(drawn[-1])  # every gold caption, once
    for system in systems:
        fids, run = found["systems"][system], json.loads((tmp_path / "results" / "smoke" / "runs" / f"{system}-seed0.json").read_text())
        assert len(fids["from_gold"]) == len(fids["before"]) == 1 and fids["from_own"] == [run["metrics"]["fid"]]
        assert found["drawn_anew"] < fids["from_gold"][0]  # drawers of random weights
    before = path.read_bytes()
    propagation.gold_fid(config, [0], systems, reader, said.append)
    assert "is there already" in said[-1] and path.read_bytes() == before
