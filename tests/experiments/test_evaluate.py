"""Which contexts are answered and by what, what is saved of the answers, and how saved answers are scored."""

import json

import numpy as np
import pytest
import torch
from inception_file import NarrowInception, save_inception
from PIL import Image
from trained_runs import save_trained

from e2e_lib import corpora, versions
from e2e_lib.config import BASELINES, SHIPPED, ConfigError, replace
from e2e_lib.data.examples import Response, examples_of, load_split, split_examples
from e2e_lib.data.minichat.questions import Question
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation import image
from e2e_lib.evaluation.image import features_of, inception_score
from e2e_lib.evaluation.scores import answer_row, score_once
from e2e_lib.experiments import evaluate as evaluation
from e2e_lib.experiments.evaluate import contexts_to_answer, evaluate, saved_answers
from e2e_lib.inference.respond import respond
from e2e_lib.models import hub
from e2e_lib.models.systems import build, origins
from e2e_lib.repro import files, results
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import generator, seed_of
from e2e_lib.repro.run_files import read_answers, read_details, run_folder
from e2e_lib.training import checkpoints


def quiet(_):
    pass


@pytest.fixture
def tiny(config, shipped, tmp_path, monkeypatch):
    """The configuration with few test examples, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return replace(config, "evaluation.max_text_only_examples", 6)


def test_contexts_with_a_photo_are_all_answered_and_some_of_the_others(corpus):
    dialogues, _, _ = load_split(corpus, "train")
    examples = [e for d in dialogues for e in examples_of(d)]
    sharing, others = ([e for e in examples if bool(e.response.photos) == shares] for shares in (True, False))
    assert contexts_to_answer(examples, 0) == sharing + others
    some = contexts_to_answer(examples, 3)
    assert some[:-3] == sharing and [others.index(e) for e in some[-3:]] == [i * len(others) // 3 for i in range(3)]


def pixels(photo):
    return photo.permute(1, 2, 0).numpy().tolist()


def test_the_trained_weights_answer_the_test_set_and_the_corpus_questions(tiny):
    """And not the parts that training began with, in training mode, on another split or with other random numbers."""
    save_trained(tiny, 1)
    evaluated, corpus = evaluate(tiny, 1, quiet), corpora.prepare(tiny, quiet)
    every, store = split_examples(corpus, "test")
    examples, trained = contexts_to_answer(every, 6), build(tiny)
    trained.load_state_dict(checkpoints.load(run_folder(tiny, 1) / "best")[0], strict=False)
    expected = respond(trained.eval(), examples, store, tiny.inference, seed_of(1, "test"))
    untrained = respond(build(tiny).eval(), examples, store, tiny.inference, seed_of(1, "test"))
    rows, details = read_answers("smoke", [1])[1], read_details("smoke", [1])[1]
    assert [(row["text"], row["captions"]) for row in rows] == [(answer.text, answer.captions) for answer in expected]
    assert [row["text"] for row in rows] != [answer.text for answer in untrained]
    for row, example, answer in zip(rows, examples, expected, strict=True):
        gold = example.response
        assert (row["dialogue_id"], row["index"], row["gold_text"]) == (example.dialogue_id, example.index, gold.text)
        assert row["gold_captions"] == [photo.caption for photo in gold.photos]
        assert row["gold_photo_ids"] == [photo.photo_id for photo in gold.photos]
        assert [np.array(Image.open(path)).tolist() for path in row["images"]] == [pixels(photo) for photo in answer.photos]
    questions = corpora.scores_of(tiny.data, corpus).questions(every)
    replies = respond(trained, [example for example, _ in questions], store, tiny.inference, seed_of(1, "details"))
    assert details == [{"dialogue_id": example.dialogue_id, "index": example.index, **question, "text": reply.text,
                        "right": Question(**question).answered_by(reply.text)}
                       for (example, question), reply in zip(questions, replies, strict=True)] != []
    metrics = json.loads(evaluated.read_text())["metrics"]
    assert metrics["n"]["examples"] == len(rows) == 11 and metrics["details_n"] == len(details)
    assert metrics["drawn_photos"] == sum(len(row["images"]) for row in rows)


def test_a_reply_that_answers_its_question_is_right(tiny, monkeypatch):
    save_trained(tiny)
    every, _ = split_examples(corpora.prepare(tiny, quiet), "test")
    gold = {(e.dialogue_id, e.index): e.response.text for e in every}

    def answered(model, examples, *_, **__):  # the gold replies, where there is no photo to send
        return [Response(gold[e.dialogue_id, e.index]) for e in examples]

    monkeypatch.setattr("e2e_lib.experiments.evaluate.respond", answered)
    metrics = json.loads(evaluate(tiny, 0, quiet).read_text())["metrics"]
    assert [row["right"] for row in read_details("smoke", [0])[0]] == [True] * metrics["details_n"] != []
    assert metrics["details"] == 1 and metrics["bleu2"] == metrics["rougeL"] == 100 and metrics["intent_f1"] == 0
    assert metrics["scene_accuracy"] == 0 and metrics["scene_missing"] == metrics["scene_n"] > 0


def test_saved_answers_are_scored_with_their_own_photos_beside_the_gold_ones(tiny, tmp_path):
    """As many drawn as gold photos, so that nothing but the pixels tells one side from the other."""
    corpus = corpora.prepare(tiny, quiet)
    every, store = split_examples(corpus, "test")
    examples = contexts_to_answer(every, 6)
    number_of = [2, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]  # the first five should share one each
    photos = torch.randint(256, (5, 3, 64, 64), generator=generator("drawn"), dtype=torch.uint8)
    assert [len(e.response.photos) for e in examples] == [1] * 5 + [0] * 6
    folder, left = run_folder(tiny, 0) / "answers", list(photos)
    with files.atomic_folder(folder) as new:
        lines = []
        for i, (example, number) in enumerate(zip(examples, number_of, strict=True)):
            response = Response("hello", ["a car"] * number, [left.pop(0) for _ in range(number)])
            lines.append(json.dumps(answer_row(example, response) | {"scenes": []}))
            for k, image in enumerate(response.images):
                image.save(new / f"{i}-{k}.png")
        files.write_text(new / "answers.jsonl", "\n".join(lines) + "\n")
        files.write_text(new / "details.jsonl", "")
    answers, extractor = saved_answers(tiny, "end_to_end", 0, corpus), corpora.extractor_of(tiny.data)
    gold = [store.tensor(photo.photo_id) for example in examples for photo in example.response.photos]
    for side, rows, expected, at in ((answers.drawn, answers.drawn_rows, list(photos), [0, 0, 2, 3, 6]),
                                     (answers.gold, answers.gold_rows, gold, [0, 1, 2, 3, 4])):
        assert rows.tolist() == at and torch.equal(side.features, features_of(expected, extractor).features)
    score, other = (inception_score(features_of(side, extractor))[0] for side in (list(photos), gold))
    assert score_once("is", answers) == pytest.approx(score) != pytest.approx(other)


def test_answers_are_kept_until_something_changes_that_decides_them(tiny, monkeypatch):
    with pytest.raises(CheckpointError, match="there is no checkpoint at .*best; train one with `e2e train`"):
        evaluate(tiny, 0, quiet)
    photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
    monkeypatch.setattr("e2e_lib.experiments.evaluate.respond", lambda model, examples, *_: [Response("hi", ["a car"], [photo]) for _ in examples])
    folder, lines = save_trained(tiny), []
    path = evaluate(tiny, 0, lines.append)
    run, rows, details = json.loads(path.read_text()), read_answers("smoke", [0])[0], read_details("smoke", [0])[0]
    assert set(rows[0]) == {"dialogue_id", "index", "text", "captions", "gold_text", "gold_captions", "gold_photo_ids", "scenes", "images"}
    assert all(set(row) == {"dialogue_id", "index", "photo_id", "attribute", "truth", "text", "right"} for row in details)
    assert [scene for row in rows for scene in row["scenes"]][0].keys() == {"photo_id", "gold", "drawn", "named"}
    assert all(len(row["images"]) == 1 for row in rows)
    assert run["provenance"]["numbers"] == versions.versions("minichat", "scoring", "decoding", "training")
    assert set(run["provenance"]["data"]) == {"train.jsonl", "dev.jsonl", "test.jsonl", "scenes.jsonl"}
    assert run["provenance"]["training"] == {"seconds": 9.5, "steps": 7, "epochs": 1, "best": {"epoch": 1, "score": -0.5}}

    def is_kept(config=tiny):
        evaluate(config, 0, lines.append)
        return lines[-1].endswith("end_to_end-seed0.json is there already")

    assert is_kept() and not is_kept(replace(tiny, "inference.max_new_tokens", 5)) and not is_kept() and is_kept()
    for name in ("SCORING", "DECODING", "TRAINING"):
        monkeypatch.setattr(versions, name, 99)
        if name == "TRAINING":
            with pytest.raises(CheckpointError, match="another version, .*remove the folder to train anew"):
                evaluate(tiny, 0, quiet)
            save_trained(tiny)
        assert not is_kept() and is_kept(), name
    (hub.WEIGHTS / "mini" / "manifest.json").touch()
    assert is_kept()  # by what it holds
    save_trained(tiny, weights_of=1)
    assert not is_kept() and is_kept()
    weights = next((folder / "best").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="is damaged"):
        evaluate(tiny, 0, lines.append)


def test_photos_are_scored_by_inception_besides_where_its_weights_are_set(tiny, tmp_path, monkeypatch):
    """From a file in torch-fidelity's own layout to the run's result and the summary, under names of their own."""
    weights = tmp_path / "inception.pth"
    sha = save_inception(weights)
    for module in (image, evaluation):
        monkeypatch.setattr(module, "INCEPTION_SHA256", sha)
    monkeypatch.setattr(image, "FeatureExtractorInceptionV3", NarrowInception)
    scored, real = [], evaluation.inception_scores
    monkeypatch.setattr(evaluation, "inception_scores", lambda *given: scored.append((given, real(*given))) or scored[-1][1])
    photos = list(torch.randint(256, (3, 3, 8, 8), generator=generator("drawn"), dtype=torch.uint8))
    monkeypatch.setattr("e2e_lib.experiments.evaluate.respond", lambda model, examples, *_: [
        Response("hi", ["a car"] * (i < 3), photos[i:i + 1]) for i, _ in enumerate(examples)])
    save_trained(tiny)
    plain = json.loads(evaluate(tiny, 0, quiet).read_text())
    with_it, said = replace(tiny, "evaluation.inception_weights", str(weights)), []
    run = json.loads(evaluate(with_it, 0, quiet).read_text())
    names = [name for name in run["metrics"] if name.startswith("inception_")]
    assert len(names) == 5 and {name: value for name, value in run["metrics"].items() if name not in names} == plain["metrics"]
    store = PhotoStore(corpora.prepare(tiny, quiet) / "photos")
    gold = [store.tensor(photo_id) for row in read_answers("smoke", [0])[0] for photo_id in row["gold_photo_ids"]]
    (([*sides, path], scores),) = scored
    assert path == weights and {name: run["metrics"][name] for name in names} == scores
    assert all(torch.equal(*pair) for side, expected in zip(sides, (photos, gold), strict=True) for pair in zip(side, expected, strict=True))
    assert scores["inception_fid"] != pytest.approx(run["metrics"]["fid"])
    assert run["provenance"]["weights"]["inception"] == sha and "inception" not in plain["provenance"]["weights"]
    assert results.summarise("smoke")["systems"]["end_to_end"]["inception_fid"]["mean"] == run["metrics"]["inception_fid"]
    evaluate(with_it, 0, said.append)
    assert said[-1].endswith("is there already")
    weights.write_bytes(b"another file")
    with pytest.raises(ConfigError, match="evaluation.inception_weights: .*inception.pth: another file, or a damaged one"):
        evaluate(with_it, 0, quiet)


@pytest.mark.parametrize(("changes", "parts"), [
    ((), {"shipped"}), ((("model.image_input", "captions"),), {"shipped", "baselines"}),
    ((("model.system", "pipeline"),), {"shipped", "baselines"})])
def test_a_result_names_the_shipped_parts_that_its_system_is_made_of(tiny, monkeypatch, changes, parts):
    shipped = {"language": SHIPPED, "perceptron": SHIPPED, "generator": SHIPPED, "captioner": BASELINES}
    weights = {}
    for key, value in (*changes, *((f"model.{part}", source) for part, source in shipped.items())):
        tiny = replace(tiny, key, value)
    monkeypatch.setattr("e2e_lib.experiments.evaluate.respond", lambda model, examples, *_: [Response("hi") for _ in examples])
    for perceptron in (SHIPPED, str(hub.WEIGHTS / "mini" / "perceptron")):  # a copy of one's own is none of the shipped
        local = replace(tiny, "model.perceptron", perceptron)
        save_trained(local)
        weights[perceptron] = json.loads(evaluate(local, 0, quiet).read_text())["provenance"]["weights"]
        read = "perceptron" in origins(local) and perceptron != SHIPPED
        assert weights[perceptron].keys() == {"trained", *parts} | ({"perceptron"} if read else set())
        assert not read or weights[perceptron]["perceptron"].endswith("perceptron")
        for name, place in (("shipped", "mini"), ("baselines", "mini-baselines")):
            assert name not in parts or weights[perceptron][name] == files.sha256(hub.WEIGHTS / place / "manifest.json")
