"""Captions with wrong words, drawn again: what is counted, against counts by hand and a line fitted by numpy."""

import json

import numpy as np
import pytest

from e2e_lib.config import replace
from e2e_lib.experiments import propagation
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.repro import files
from e2e_lib.repro.results import ResultsError
from e2e_lib.training import loop


def test_what_a_caption_still_names():
    gold = {"thing": "kite", "colour": "red", "place": "beach"}
    assert propagation.named_share("two red kites at the beach", gold) == 1
    assert propagation.named_share("two redder kites at the beach", gold) == pytest.approx(2 / 3)
    assert propagation.named_share("", gold) == 0


def test_slopes_are_those_of_fitted_lines_and_intervals_hold_them():
    rng = np.random.default_rng(0)
    right = (rng.random((len(propagation.SHARES), 40)) < 0.9 - 0.6 * np.array(propagation.SHARES)[:, None]).astype(float)
    found = propagation.by_share(right)
    assert found["slope"]["mean"] == pytest.approx(np.polyfit(propagation.SHARES, right.mean(1), 1)[0])
    assert [row["mean"] for row in found["accuracy"]] == pytest.approx(right.mean(1).tolist())
    assert found["slope"]["low"] < -0.6 < found["slope"]["high"] < 0
    flat = propagation.by_share(np.ones((len(propagation.SHARES), 5)))
    assert flat["slope"] == {"mean": 0, "low": 0, "high": 0}


def test_every_system_draws_the_same_wrong_captions_once(config, shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, value in (("train.epochs", 1), ("train.epoch_examples", 4), ("evaluation.max_text_only_examples", 2)):
        config = replace(config, key, value)
    systems, captions = ("end_to_end", "pipeline"), []
    for system in systems:
        loop.train(replace(config, "model.system", system), 0, lambda _: None)
        evaluate(replace(config, "model.system", system), 0, lambda _: None)
    draw = propagation.draw_photos
    monkeypatch.setattr(propagation, "draw_photos", lambda model, texts, *rest: captions.append(texts) or draw(model, texts, *rest))
    lines, shares = [], len(propagation.SHARES)
    path = propagation.propagate(config, [0], systems, lines.append, photos=3)
    record = json.loads(path.read_text())
    assert record["photos"] == 3 and len(captions) == 2 * shares and captions[:shares] == captions[shares:]  # system by system
    changed = [sum(a != b for one, other in zip(captions[0], texts, strict=True) for a, b in zip(one.split(), other.split(), strict=True))
               for texts in captions[:shares]]
    assert changed[0] == 0 and changed == sorted(changed) and changed[-1] > 0
    assert set(record["systems"]) == {"caption", *systems} and record["systems"]["caption"]["accuracy"][0]["mean"] == 1
    assert record["systems"]["caption"]["slope"]["mean"] < 0
    before = path.read_bytes()
    propagation.propagate(config, [0], systems, lines.append, photos=3)
    assert "is there already" in lines[-1] and path.read_bytes() == before and len(captions) == 2 * shares

    path = propagation.gold_fid(config, [0], systems, lines.append)
    record = json.loads(path.read_text())
    assert captions[-1] == captions[-2] and len(captions[-1]) == record["photos"] >= 3
    assert set(captions[0]) <= set(captions[-1])  # every gold caption, once
    for system in systems:
        fids = record["systems"][system]
        run = json.loads((tmp_path / "results" / "smoke" / "runs" / f"{system}-seed0.json").read_text())
        assert len(fids["from_gold"]) == len(fids["before"]) == 1 and fids["from_own"] == [run["metrics"]["fid"]]
        assert record["drawn_anew"] < fids["from_gold"][0]  # drawn with random weights
    before = path.read_bytes()
    propagation.gold_fid(config, [0], systems, lines.append)
    assert "is there already" in lines[-1] and path.read_bytes() == before


def test_a_corpus_without_scenes_is_named(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "weights_hash", lambda folder: "0")
    monkeypatch.setattr(propagation, "read_answers", lambda *_: {0: [{"text": "hello"}]})
    with pytest.raises(ResultsError, match="no photo whose scene .*only MiniChat"):
        propagation.propagate(config, [0], ["end_to_end"], lambda _: None)
