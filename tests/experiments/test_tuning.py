"""Settings tried on dev: as many for every system, scored on dev, and kept."""

import json

import pytest

from e2e_lib.config import SYSTEMS, load, replace
from e2e_lib.data.examples import split_examples
from e2e_lib.experiments import tuning
from e2e_lib.repro import results
from e2e_lib.repro.run_files import RUNS, read_answers


def test_every_system_is_tried_with_as_many_other_settings():
    assert tuning.TRIED.keys() == {*SYSTEMS} and len({len(tried) for tried in tuning.TRIED.values()}) == 1
    for system, tried in tuning.TRIED.items():
        own = replace(load("mini"), "model.system", system)
        assert tried[0] == {}
        for changes in tried[1:]:
            for key, value in changes.items():
                assert replace(own, key, value) != own, (system, key)
    labels = [tuning.label(*each) for each in tuning._all()]
    assert len(set(labels)) == len(labels)


def test_runs_are_scored_on_dev_and_kept_and_guidance_needs_no_training_of_its_own(config, tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "TRIED", {"pipeline": (tuning.OWN, {"train.learning_rate": 1e-2}, tuning.NO_GUIDANCE)})
    config, lines = replace(config, "train.epochs", 1), []
    record = json.loads(tuning.tune(config, [0], lines.append).read_text())
    assert record["split"] == "dev" and [(row["system"], row["settings"]) for row in record["rows"]] == [
        ("pipeline", {}), ("pipeline", {"train.learning_rate": 1e-2}), ("pipeline", {"inference.guidance_scale": 1.0})]
    assert sorted(str(path.parent) for path in RUNS.rglob("done.json")) == [
        "runs/smoke/pipeline/seed-0", "runs/tuning/pipeline.learning_rate_0.01/smoke/pipeline/seed-0"]
    found = {run["system"]: run for run in results.read_runs("smoke", folder="tuning")}
    assert all(run["provenance"]["split"] == "dev" for run in found.values())
    for row in record["rows"]:
        own = found[tuning.label(row["system"], row["settings"])]["metrics"]
        assert row["scores"]["rougeL"] == {"mean": pytest.approx(own["rougeL"]), "std": None, "n": 1}
    answers = read_answers("smoke", [0], system="pipeline", folder="dev_answers_pipeline")[0]
    (corpus,) = (tmp_path / "data").iterdir()
    assert {row["dialogue_id"] for row in answers} == {example.dialogue_id for example in split_examples(corpus, "dev")[0]}

    before = {path: path.read_bytes() for path in results.RESULTS.rglob("*.json")}
    tuning.tune(config, [0], lines.append)
    assert {path: path.read_bytes() for path in before} == before
    tuning.summarise(config, [0], lines.append)
    (results.RESULTS / "smoke" / "tuning" / "pipeline-seed0.json").unlink()
    left = json.loads(tuning.summarise(config, [0], lines.append).read_text())["rows"]
    assert len(left) == 2 and lines[-1].endswith("left out: pipeline")
