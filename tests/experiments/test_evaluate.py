"""Which contexts are answered, and what is saved of the answers."""

import json

import pytest

from e2e_lib.config import replace
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.experiments.evaluate import contexts_to_answer, evaluate, saved_answers
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.run_files import read_answers, read_details
from e2e_lib.training.loop import train


def test_contexts_with_a_photo_are_all_answered_and_some_of_the_others(corpus):
    dialogues, _, _ = load_split(corpus, "train")
    examples = [e for d in dialogues for e in examples_of(d)]
    sharing, others = ([e for e in examples if bool(e.response.photo) == shares] for shares in (True, False))
    assert contexts_to_answer(examples, 0) == sharing + others
    some = contexts_to_answer(examples, 3)
    assert some[:-3] == sharing and [others.index(e) for e in some[-3:]] == [i * len(others) // 3 for i in range(3)]


def test_answers_are_saved_scored_and_kept_until_the_weights_change(config, shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(replace(config, "train.epochs", 1), "train.epoch_examples", 4)
    with pytest.raises(CheckpointError, match="there is no checkpoint at .*best; train one with `e2e train`"):
        evaluate(config, 0, lambda _: None)
    folder, lines = train(config, 0, lambda _: None), []
    path = evaluate(config, 0, lines.append)
    run = json.loads(path.read_text())
    rows, details = read_answers("smoke", [0])[0], read_details("smoke", [0])[0]
    assert len(rows) == run["metrics"]["n"]["examples"] and len(details) == run["metrics"]["details_n"]
    assert set(rows[0]) == {"dialogue_id", "index", "text", "caption", "gold_text", "gold_caption", "gold_photo_id", "scene", "image"}
    assert all(set(row) == {"dialogue_id", "index", "photo_id", "attribute", "truth", "text", "right"} for row in details)
    assert [row["scene"] for row in rows if row["scene"]][0].keys() == {"photo_id", "gold", "drawn"}
    assert all((row["image"] is not None) == (row["caption"] is not None) for row in rows)
    assert run["provenance"]["numbers"] == {"minichat": 1, "scoring": 1, "decoding": 1, "training": 1}
    assert set(run["provenance"]["data"]) == {"train.jsonl", "dev.jsonl", "test.jsonl", "scenes.jsonl"}
    corpus = next((tmp_path / "data").iterdir())
    assert saved_answers(config, "end_to_end", 0, corpus).counts["n"] == run["metrics"]["n"]
    evaluate(config, 0, lines.append)
    assert lines[-1].endswith("end_to_end-seed0.json is there already")
    evaluate(replace(config, "inference.max_new_tokens", 5), 0, lines.append)
    assert "is there already" not in lines[-1]
    weights = next((folder / "best").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="is damaged"):
        evaluate(config, 0, lines.append)
