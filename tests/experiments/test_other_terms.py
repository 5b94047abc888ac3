"""The systems on other terms: what differs from the profile's own, what each is compared with, what is written."""

import json

import pytest
from made_up_runs import made_up_run

from e2e_lib import corpora
from e2e_lib.config import SYSTEMS, replace
from e2e_lib.evaluation.scores import METRICS
from e2e_lib.experiments import other_terms
from e2e_lib.report import table_files, tables
from e2e_lib.repro import results

PROVENANCE = {"config": {}, "weights": {"trained": "0"}}


def test_terms_change_what_they_are_about_and_nothing_else(config):
    for name, terms in other_terms.TERMS.items():
        for system in terms.systems:
            run = other_terms.settings_of(config, name, system)
            for key, value in terms.settings.items():
                section, _, field = key.partition(".")
                assert getattr(getattr(run, section), field) == value
                own = getattr(getattr(replace(config, "model.system", system), section), field)
                run = replace(run, key, own)
            assert run == replace(config, "model.system", system)
    assert other_terms.TERMS.keys() == tables.TERMS.keys()
    assert other_terms.TERMS["clean"].systems == SYSTEMS


@pytest.fixture
def trained(config, tmp_path, monkeypatch):
    """What training and scoring were called with; runs are made up, the same for a system and seed on any terms."""
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(other_terms, "train", lambda run, seed, echo, root: calls.append((run, seed, root)))

    def evaluate(run, seed, echo, label, into, runs_root):
        assert calls[-1] == (run, seed, runs_root)
        results.write_run(run.profile, label, seed, {"bleu2": 1.0 + seed, "n": {"examples": 80}}, PROVENANCE, folder=into)

    monkeypatch.setattr(other_terms, "evaluate", evaluate)
    monkeypatch.setattr(corpora, "prepare", lambda config, echo: tmp_path)
    monkeypatch.setattr(corpora, "metrics_of", lambda data: METRICS)  # made-up answers have no scenes

    def read_runs(config, roots, seeds, corpus):
        return {name: [made_up_run(seed, quality=0.9 if "aligned" in system else 0.5, photos=seed) for seed in seeds]
                for name, (system, _) in roots.items()}

    monkeypatch.setattr(other_terms, "read_runs", read_runs)
    return calls


def test_every_system_is_trained_on_its_terms_and_compared(config, trained):
    lines = []
    path = other_terms.compare(config, [0, 1], lines.append)
    assert len(trained) == 2 * sum(len(terms.systems) for terms in other_terms.TERMS.values())
    assert len({(root, run.model.system, seed) for run, seed, root in trained}) == len(trained)
    record = results.load_json(path)
    assert set(record["systems"]) == {other_terms.label(name, system) for name, terms in other_terms.TERMS.items()
                                      for system in terms.systems}
    assert record["systems"]["divter.clean"]["bleu2"] == {"mean": 1.5, "std": pytest.approx(0.5**0.5), "n": 2}
    pairs = {(pair["system"], pair["than"]) for pair in record["pairs"]}
    assert ("end_to_end_aligned.control", "end_to_end_aligned") in pairs and ("pipeline.told_more", "pipeline") in pairs
    assert ("end_to_end.clean", "pipeline.clean") in pairs
    apart = {(one, other) for one, other in pairs if "." in other and one.partition(".")[2] != other.partition(".")[2]}
    assert apart == {("end_to_end_aligned.clean_ratio_1", f"{system}.clean") for system in SYSTEMS}
    better = [pair for pair in record["pairs"] if (pair["system"], pair["than"], pair["metric"])
              == ("end_to_end_aligned.clean", "pipeline.clean", "bleu2")]
    assert better[0]["low"] > 0
    other_terms.summarise(config, [0, 1], lines.append)
    assert lines[-1].endswith("terms.json is there already")
    (results.RESULTS / config.profile / "terms" / "divter.clean-seed1.json").unlink()
    left = results.load_json(other_terms.summarise(config, [0, 1], lines.append))["systems"]
    assert "left out: clean" in lines[-1] and not any(name.endswith(".clean") for name in left)


def test_tables_name_the_terms(config, trained):
    record = results.load_json(other_terms.compare(config, [0], lambda _: None))
    chosen = tables.of_term(record, "told_more")
    assert {*chosen["systems"]} == {"divter", "pipeline"}
    frame = tables.differences(record)
    assert "End-to-end, aligned, shuffled words" in set(frame.system)
    assert {"Pipeline, captions that tell more", "Pipeline, right captions"} <= set(frame.system) | set(frame.than)
    for name in ("terms", "terms_differences"):
        numbers, texts, note = table_files.forms(name, json.loads(json.dumps(record)))
        assert len(numbers) and len(texts) and "smoke" in note
