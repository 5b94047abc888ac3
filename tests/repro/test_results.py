import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.config import load
from e2e_lib.repro import files, results
from e2e_lib.repro.results import (
    ResultsError,
    load_json,
    published,
    read_runs,
    read_summary,
    summarise,
    write_run,
)

PUBLISHED = Path(__file__).resolve().parents[2] / "results"


def provenance(seed: int = 0, lr: float = 5e-5) -> dict:
    return {"config": {"profile": "mini", "seed": seed, "train": {"lr": lr, "seed": seed}}, "seeds": {"train": seed}}


def write(root, seed, system="end_to_end", lr=5e-5, profile="mini", **metrics):
    return write_run(profile, system, seed, {"n": {"dialogues": 500}, **metrics}, provenance(seed, lr), root)


def test_runs_come_back_as_written_in_order(tmp_path):
    path = write(tmp_path, 10, bleu1=0.25, signature="nrefs:1")
    write(tmp_path, 9, bleu1=0.5)
    write(tmp_path, 0, system="divter", bleu1=0.125)
    assert path == tmp_path / "mini" / "runs" / "end_to_end-seed10.json"
    runs = read_runs("mini", tmp_path)
    assert [(run["system"], run["seed"]) for run in runs] == [("divter", 0), ("end_to_end", 9), ("end_to_end", 10)]
    assert runs[2] == json.loads(path.read_text()) == {
        "profile": "mini", "system": "end_to_end", "seed": 10, "provenance": provenance(10),
        "metrics": {"n": {"dialogues": 500}, "bleu1": 0.25, "signature": "nrefs:1"}}
    assert read_runs("smoke", tmp_path) == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=5))
def test_summary_agrees_with_numpy(tmp_path_factory, values):
    root = tmp_path_factory.mktemp("results")
    for seed, value in enumerate(values):
        write(root, seed, bleu1=value)
    cell = summarise("mini", root)["systems"]["end_to_end"]["bleu1"]
    assert cell["mean"] == pytest.approx(np.mean(values)) and cell["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert cell["n"] == len(values)


def test_summary_has_the_numeric_metrics_common_to_a_systems_runs(tmp_path):
    write(tmp_path, 0, bleu1=0.5, fid=3, kid=0.1, signature="a", shared=True)
    write(tmp_path, 1, bleu1=0.25, fid=5, kid=None, signature="a", shared=True)
    write(tmp_path, 0, system="pipeline", kid=0.5)
    made = summarise("mini", tmp_path)
    assert made == {
        "profile": "mini",
        "systems": {"end_to_end": {"bleu1": {"mean": 0.375, "std": math.sqrt(2 * 0.125**2), "n": 2},
                                   "fid": {"mean": 4.0, "std": math.sqrt(2), "n": 2}},
                    "pipeline": {"kid": {"mean": 0.5, "std": None, "n": 1}}},
        "runs": ["end_to_end-seed0.json", "end_to_end-seed1.json", "pipeline-seed0.json"],
        "test": {"dialogues": 500}}
    assert read_summary("mini", tmp_path) == made


def test_runs_of_another_configuration_are_refused_by_name(tmp_path):
    write(tmp_path, 0, bleu1=0.5)
    write(tmp_path, 0, system="pipeline", lr=1e-3, bleu1=0.5)  # another system may be configured otherwise
    summarise("mini", tmp_path)
    write(tmp_path, 1, lr=1e-4, bleu1=0.5)
    before = (tmp_path / "mini" / "summary.json").read_bytes()
    with pytest.raises(ResultsError, match=r"end_to_end-seed1\.json .* end_to_end-seed0\.json: train\.lr is 5e-05 there and 0\.0001 here"):
        summarise("mini", tmp_path)
    assert (tmp_path / "mini" / "summary.json").read_bytes() == before


def test_runs_of_another_profile_are_refused_by_name(tmp_path):
    path = write(tmp_path, 0, bleu1=0.5)
    (tmp_path / "smoke" / "runs").mkdir(parents=True)
    (tmp_path / "smoke" / "runs" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ResultsError, match=r"end_to_end-seed0\.json: it holds .* of profile 'mini', expected .* of profile 'smoke'"):
        summarise("smoke", tmp_path)


def test_test_sets_of_different_sizes_are_refused(tmp_path):
    write(tmp_path, 0, bleu1=0.5)
    write(tmp_path, 1, bleu1=0.5, n={"dialogues": 64})
    with pytest.raises(ResultsError, match=r"end_to_end-seed1\.json and end_to_end-seed0\.json differ in test set .*64.*make one of them again"):
        summarise("mini", tmp_path)


def test_nothing_to_summarise_says_how_to_make_it(tmp_path):
    with pytest.raises(ResultsError, match="no runs to summarise; make them with `e2e reproduce --profile mini`"):
        summarise("mini", tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    (b'{"profile": "mini", "sys', "damaged, it is not readable JSON"),
    (b"\xff\xfe\x00", "damaged, it is not readable JSON"),
    (b"[" * 100_000, "damaged, it is not readable JSON"),
    (b"[]", "expected an object, found list"),
    (b'{"profile": "mini", "system": "end_to_end", "seed": true}', "field 'seed': expected int, found True"),
    (b'{"profile": "mini", "system": "pipeline", "seed": 0, "metrics": {}, "provenance": {"config": {}}}', "it holds pipeline-seed0.json of .* expected end_to_end-seed0.json"),
    (b'{"profile": "mini", "system": "end_to_end", "seed": 0, "metrics": {}, "provenance": {}}', "provenance.config"),
    (b'{"profile": "mini", "system": "end_to_end", "seed": 0, "metrics": {}, "provenance": {"config": "mini"}}', "field 'provenance.config': expected an object, found str"),
    (b'{"profile": "mini", "system": "end_to_end", "seed": 0, "metrics": {}, "provenance": {"config": {"train": [1]}}}', "section 'train' of a saved configuration"),
    (b'{"profile": "mini", "system": "end_to_end", "seed": 0, "metrics": {}, "provenance": {"config": {}, "numbers": ["scoring"]}}', "field 'provenance.numbers': expected an object"),
    (b'{"profile": "mini", "system": "end_to_end", "seed": 0, "metrics": {}, "provenance": {"config": {}, "weights": "a"}}', "field 'provenance.weights': expected an object"),
    (b'{"profile": "mini", "system": "end_to_end", "seed": 0, "metrics": {"fid": NaN}, "provenance": {"config": {}}}', "'fid' is nan"),
])
def test_a_damaged_run_is_named(tmp_path, content, message):
    path = tmp_path / "mini" / "runs" / "end_to_end-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=rf"(?s)end_to_end-seed0\.json: .*{message}"):
        summarise("mini", tmp_path)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"metrics": {"fid": math.nan}}, "metric 'fid' is nan"),
    ({"metrics": {"fid": math.inf}}, "metric 'fid' is inf"),
    ({"metrics": {"per_thing": {"kite": math.nan}}}, "cannot be kept as JSON"),
    ({"metrics": {"fid": object()}}, "cannot be kept as JSON"),
    ({"system": "../end"}, "field 'system': expected lower-case letters"),
    ({"seed": -1}, "seed -1 is not allowed: expected a whole number from 0 to 9223372036854775807"),
    ({"seed": 2**63}, "seed 9223372036854775808 is not allowed"),
    ({"metrics": {"n": [4]}}, "field 'metrics.n': expected an object, found list"),
    ({"provenance": {}}, "provenance.config"),
])
def test_what_is_no_result_is_not_written(tmp_path, arguments, message):
    good = {"profile": "mini", "system": "end_to_end", "seed": 0, "metrics": {}, "provenance": provenance()}
    with pytest.raises(ResultsError, match=f"was not written: .*{message}"):
        write_run(**good | arguments, root=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"gone\.json: no such file"):
        load_json(tmp_path / "gone.json")
    with pytest.raises(ResultsError, match=r"summary\.json: no such file"):
        read_summary("mini", tmp_path)


def test_published_table_1_adds_up():
    table = published(1, PUBLISHED)
    assert table["source"] == "arXiv 2408.08650 v1, Table 1" and len(table["rows"]) == 8
    rows = {(row["dataset"], row["split"]): row for row in table["rows"]}
    for dataset in ("PhotoChat", "DialogCC"):
        total = rows[dataset, "total"]
        for column in ("dialogues", "utterances", "consecutive_utterances", "images", "distinct_images"):
            assert sum(rows[dataset, split][column] for split in ("train", "dev", "test")) == total[column]
    for row in table["rows"]:
        assert row.keys() == table["columns"].keys()
        assert row["utterances_per_dialogue"] == pytest.approx(row["consecutive_utterances"] / row["dialogues"], abs=0.00501)
        assert row["images_per_dialogue"] == pytest.approx(row["images"] / row["dialogues"], abs=0.00501)


def test_published_table_2_has_the_papers_order_of_systems():
    table = published(2, PUBLISHED)
    assert table["source"] == "arXiv 2408.08650 v1, Table 2"
    rows = {(row["dataset"], row["system"]): row for row in table["rows"]}
    assert [len([key for key in rows if key[0] == dataset]) for dataset in ("PhotoChat", "DialogCC")] == [4, 3]
    reported, ours = rows["PhotoChat", "divter_reported"], rows["PhotoChat", "end_to_end"]
    assert (reported["is"], reported["is_std"], reported["fid"]) == (15.8, 0.6, 29.16)
    assert [ours[key] for key in ("bleu1", "bleu2", "rougeL", "is", "is_std", "fid")] == [12.08, 2.94, 11.0, 14.47, 0.94, 75.88]
    for dataset in ("PhotoChat", "DialogCC"):
        divter, pipeline, joint = (rows[dataset, system] for system in ("divter", "pipeline", "end_to_end"))
        for key in ("bleu1", "bleu2", "rougeL", "is"):
            assert divter[key] < pipeline[key] < joint[key]
        assert divter["fid"] > pipeline["fid"] > joint["fid"]
    for row in table["rows"]:
        assert set(table["columns"]) <= row.keys()


def versioned(root, system, seed, numbers, shipped="a"):
    made_by = {**provenance(seed), "numbers": numbers, "weights": {"shipped": shipped}}
    write_run("mini", system, seed, {"bleu1": 1.0}, made_by, root)


@pytest.mark.parametrize(("numbers", "shipped", "message"), [
    ({"scoring": 2}, "a", r"differ in versions of the code \(\{'scoring': 2\}, not \{'scoring': 1\}\); make one of them again with `e2e reproduce --profile mini`"),
    ({}, "a", r"differ in versions of the code \(None, not"),
    ({"scoring": 1}, "b", r"differ in shipped parts \(b, not a\)"),
])
def test_runs_of_different_versions_or_parts_are_never_in_one_table(tmp_path, numbers, shipped, message):
    for system in ("divter", "pipeline"):
        versioned(tmp_path, system, 0, {"scoring": 1})
    versioned(tmp_path, "pipeline", 1, numbers, shipped)
    with pytest.raises(ResultsError, match=rf"pipeline-seed1\.json and divter-seed0\.json {message}"):
        summarise("mini", tmp_path)
    assert summarise("mini", tmp_path, seeds=[0])["runs"] == ["divter-seed0.json", "pipeline-seed0.json"]


def test_results_stay_readable_when_a_version_is_raised_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("e2e_lib.versions.DECODING", 1)
    monkeypatch.setattr("e2e_lib.versions.SCORING", 4)
    for seed in (0, 1):
        versioned(tmp_path, "divter", seed, {"decoding": 1, "scoring": 4, "walls": 7})  # the last is another corpus's
    before = summarise("mini", tmp_path)
    assert before["numbers"] == {"decoding": 1, "scoring": 4, "walls": 7} and results.version_note(before) == ""
    monkeypatch.setattr("e2e_lib.versions.DECODING", 2)
    assert summarise("mini", tmp_path) == before
    note = "made with decoding version 1; the code is at decoding version 2: `e2e compare --profile mini` makes them again"
    path = tmp_path / "mini" / "summary.json"
    assert results.version_note(read_summary("mini", tmp_path)) == note == results.version_note(read_runs("mini", tmp_path)[1])
    files.write_json(path, {key: value for key, value in before.items() if key != "numbers"})  # of before summaries had it
    assert results.version_note(load_json(path)) == note
    versioned(tmp_path, "divter", 0, {"decoding": 2, "scoring": 4, "walls": 7})  # one run is made again, the summary is not
    assert results.version_note(load_json(path)) == note
    monkeypatch.setattr("e2e_lib.versions.SCORING", 5)
    assert "made with decoding version 1 and scoring version 4; the code is at decoding version 2 and scoring version 5" in results.version_note(before)


def test_the_note_names_the_command_that_makes_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr("e2e_lib.versions.GRADIENTS", 2)
    write_run("mini", "span", 0, {"bleu1": 1.0}, {**provenance(), "numbers": {"gradients": 1}}, tmp_path, "ablations")
    assert "`e2e ablate --profile mini`" in results.version_note(summarise("mini", tmp_path, "ablations"))
    measured = {"command": "e2e ablate --profile smoke", "arguments": {"numbers": {"gradients": 1}}}
    assert results.version_note(measured).endswith("`e2e ablate --profile smoke` makes them again")
    assert results.version_note({"arguments": {"seeds": [0]}, "provenance": None}) == results.version_note({}) == ""


def test_runs_from_earlier_parts_are_outdated(tmp_path):
    shipped = files.sha256(results.MANIFEST)
    for profile, parts in (("now", shipped), ("before", "another")):
        write_run(profile, "divter", 0, {"bleu1": 1.0}, {**provenance(), "weights": {"shipped": parts}}, tmp_path)
        summary = summarise(profile, tmp_path)
        assert summary["shipped"] == parts and results.is_outdated(summary) == (profile == "before")
    assert not results.is_outdated({})


def test_a_measurement_is_up_to_date_only_with_the_same_settings(tmp_path):
    path, lines = files.write_json(tmp_path / "measured.json", {"arguments": {"rounds": 3, "maps": ["none"]}}), []
    assert results.is_up_to_date(path, {"rounds": 3, "maps": ("none",)}, lines.append) and lines == [f"{path} is there already"]
    assert not results.is_up_to_date(path, {"rounds": 4, "maps": ("none",)}, lines.append)
    assert not results.is_up_to_date(tmp_path / "gone.json", {}, lines.append) and len(lines) == 1


def test_a_measurement_from_before_a_setting_existed_had_its_default(tmp_path):
    now = dataclasses.asdict(load("mini"))
    older = {"bridge": {name: value for name, value in now["bridge"].items() if name != "added_at"}}
    path = files.write_json(tmp_path / "measured.json", {"arguments": {"settings": older}})
    for added_at, same in ((now["bridge"]["added_at"], True), ("elsewhere", False)):
        settings = {"settings": {"bridge": {**now["bridge"], "added_at": added_at}}}
        assert results.is_up_to_date(path, settings, lambda _: None) == same


@pytest.mark.parametrize(("path", "content", "message"), [
    ("mini/summary.json", {"profile": "mini", "systems": [], "runs": [], "test": {}}, "field 'systems': expected an object, found list.*`e2e reproduce --profile mini`"),
    ("smoke/ablations.json", [], "expected an object, found list.*`e2e ablate --profile smoke`"),
    ("mini/comparison.json", {"pairs": [{"system": "divter"}]}, "field 'profile': expected str"),
    ("mini/propagation.json", {"profile": "mini", "photos": 3}, "field 'arguments': expected an object, found NoneType"),
    ("paper/gold_fid.json", {}, "field 'profile': .*`e2e compare --profile paper`"),
    ("mini/benchmarks.json", {"measured": {}}, "field 'measured': expected a list, found dict.*`make bench`"),
    ("published/table1.json", {}, "field 'source': .*`git restore results/published`"),
    ("estimators/polynomial.json", {"rows": [{"end": "low"}]}, "field 'rows', row 1, field 'estimator': .*`e2e ablate`"),
    ("vocabularies/a.json", 3, "expected an object, found int.*`e2e vocabularies`"),
])
def test_a_result_of_another_shape_is_named_with_the_command_that_makes_it(tmp_path, path, content, message):
    files.write_json(tmp_path / path, content)
    with pytest.raises(ResultsError, match=rf"(?s){path}: .*{message}"):
        load_json(tmp_path / path)
    (tmp_path / path).unlink()
    with pytest.raises(ResultsError, match="no such file in .*; `.+` makes it"):
        load_json(tmp_path / path)


def test_a_row_that_lacks_something_is_named(tmp_path):
    comparison = load_json(PUBLISHED / "mini" / "comparison.json")
    del comparison["pairs"][2]["low"]
    path = files.write_json(tmp_path / "mini" / "comparison.json", comparison)
    with pytest.raises(ResultsError, match=r"field 'pairs', row 3, field 'low': expected int or float, found None; delete the file and make it again"):
        load_json(path)


def test_every_committed_result_has_its_shape():
    paths = [path for path in PUBLISHED.rglob("*.json") if not {"smoke", "notebooks"} & {*path.parts}]
    assert len(paths) > 20 and all(load_json(path) for path in paths)


def test_the_committed_summaries_follow_from_the_committed_runs(tmp_path):
    for folder, name in (("runs", "summary.json"), ("ablations", "ablations.json")):
        shutil.copytree(PUBLISHED / "mini" / folder, tmp_path / "mini" / folder)
        seeds = {run["seed"] for run in read_runs("mini", tmp_path, folder)}
        assert summarise("mini", tmp_path, folder, sorted(seeds)) == load_json(PUBLISHED / "mini" / name)
