"""The experiment with captions that are wrong: what its runs begin from and learn from, and what it writes."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from e2e_lib.config import replace
from e2e_lib.corpora import training_captions
from e2e_lib.data.examples import split_examples
from e2e_lib.evaluation.intervals import holm
from e2e_lib.experiments import faults
from e2e_lib.experiments.comparison import numbers_of
from e2e_lib.experiments.faults import Condition
from e2e_lib.repro import files, results
from e2e_lib.repro.run_files import RUNS
from e2e_lib.training import batches


def test_every_condition_has_its_controls():
    for condition, maps in faults.CONDITIONS.items():
        assert {"none", "sentence", "aligned", "aligned_shuffled"} <= set(maps), condition
    names = [condition.name for condition in faults.CONDITIONS]
    assert len(set(names)) == len(names)
    assert {c.rate for c in faults.CONDITIONS if c.kind == "random" and c.caption_source == "gold"} == set(faults.RATES)


def test_runs_of_a_condition_differ_in_the_map_alone(config):
    for condition, maps in faults.CONDITIONS.items():
        runs = [faults.settings_of(config, condition, mapping) for mapping in maps if mapping != faults.BEFORE]
        assert len({repr(replace(run, "bridge.mapping", "none")) for run in runs}) == 1
        start = runs[0].train.start_from
        adapted = f"{faults.adapted_folder(config, condition)}/seed-{{seed}}/best"
        assert start == (adapted if condition.start == "adapted" else "")
        assert faults.adaptation_of(config, condition).data == runs[0].data


def test_only_training_captions_are_wrong(config, corpus):
    faulty = faults.settings_of(config, Condition("systematic", 1.0), "none")
    examples, _ = split_examples(corpus, "train")
    changed = training_captions(faulty.data, examples)
    captions = [[photo.caption for example in rows for photo in example.response.photos] for rows in (examples, changed)]
    assert len(captions[0]) > 5 and all(one != other for one, other in zip(*captions, strict=True))
    assert [e.response.text for e in changed] == [e.response.text for e in examples]
    assert training_captions(config.data, examples) == examples
    model = SimpleNamespace(captioner=None)
    for split, is_wrong in (("train", True), ("dev", False)):
        gold, _ = split_examples(corpus, split)
        read, _ = batches.read_split(faulty, corpus, split, model, lambda _: None)
        assert (read != gold) == is_wrong


@pytest.fixture
def tiny(config, tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    for key, value in (("train.epochs", 1), ("train.epoch_examples", 12)):
        config = replace(config, key, value)
    monkeypatch.setattr(faults, "MAX_TEXT_ONLY", 5)
    monkeypatch.setattr(faults, "CONDITIONS", {Condition("random", 0.5): (faults.BEFORE, "none", "aligned")})
    return config


def test_runs_begin_from_adapted_parts_and_are_kept(tiny):
    lines = []
    path = faults.faults(tiny, [0], lines.append)
    root = RUNS / "faults"
    assert sorted(str(done.relative_to(root)) for done in root.rglob("done.json")) == [
        "random_0.5/adapted/smoke/end_to_end/seed-0/done.json",
        "random_0.5_adapted_gold/aligned/smoke/end_to_end/seed-0/done.json",
        "random_0.5_adapted_gold/none/smoke/end_to_end/seed-0/done.json"]
    adapted = files.weights_hash(root / "random_0.5" / "adapted" / "smoke" / "end_to_end" / "seed-0" / "best")
    for mapping in ("none", "aligned"):
        done = json.loads((root / "random_0.5_adapted_gold" / mapping / "smoke" / "end_to_end" / "seed-0" / "done.json").read_text())
        assert done["parts"]["start_from"] == adapted and done["config"]["bridge"]["mapping"] == mapping
    record = json.loads(path.read_text())
    scores = {run["system"]: run["metrics"] for run in results.read_runs("smoke", folder="faults")}
    assert [(row["kind"], row["rate"], row["mapping"], row["caption_source"], row["start"]) for row in record["rows"]] == [
        ("random", 0.5, mapping, "gold", "adapted") for mapping in ("before", "none", "aligned")]
    assert (root / "random_0.5" / "adapted" / "smoke" / "end_to_end" / "seed-0" / "answers" / "answers.jsonl").is_file()
    for row in record["rows"]:
        assert row["label"] == f"random_0.5_adapted_gold_{row['mapping']}"
        own = scores[row["label"]]
        assert row["scores"]["rougeL"] == {"mean": pytest.approx(own["rougeL"]), "std": None, "n": 1}
    before = {one: one.read_bytes() for one in [*results.RESULTS.rglob("*.json"), *RUNS.rglob("done.json")]}
    faults.faults(tiny, [0], lines.append)
    assert {one: one.read_bytes() for one in before} == before and "faults.json is there already" in lines[-1]

    # The tiny model shares no photo of its own accord, and there must be some to compare.
    for folder in RUNS.rglob(faults.ANSWERS):
        rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        (folder / "answers.jsonl").write_text("".join(json.dumps(row | {"captions": ["a"]}) + "\n" for row in rows))
        for number in range(len(rows)):
            Image.effect_noise((64, 64), 50 + number).convert("RGB").save(folder / f"{number}-0.png")
    path.unlink()
    record = json.loads(faults.summarise(tiny, [0], lines.append).read_text())
    for row in record["rows"]:  # the photo due is one of a dialogue's, and "a" names nothing
        shares = pd.DataFrame(row["things"]).T
        assert shares.shown.sum() == pytest.approx(1) and (shares.named == 0).all()
    pairs = record["pairs"]
    assert {(pair["system"], pair["than"], pair["kind"]) for pair in pairs} == {
        (one, other, "random") for one, other in (("aligned", "none"), ("aligned", "before"), ("none", "before"))}
    assert [pair["p_corrected"] for pair in pairs] == holm([pair["p"] for pair in pairs])
    assert record["numbers"] == numbers_of(tiny) and record["dialogues"] > 0
    assert {"rougeL", "scene_accuracy", "caption_accuracy"} <= {pair["metric"] for pair in pairs}
    faults.summarise(tiny, [0, 1], lines.append)
    assert any("random_0.5_adapted_gold: 1 of 2 seeds have runs of all maps" in line for line in lines)
