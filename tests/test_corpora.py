"""A corpus of someone else's: 20 lines, photos of another size, own features, no scenes; and what a plug may lack."""

import json

import pytest
import torch
from PIL import Image

from e2e_lib import config as settings
from e2e_lib import corpora
from e2e_lib.config import ConfigError, Data
from e2e_lib.corpora import Corpus
from e2e_lib.data.dialogue import Dialogue, SharedPhoto, Turn, write_dialogues
from e2e_lib.data.examples import split_examples
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation.scores import Metric
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.repro import files, results
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.run_files import read_answers, read_details, run_folder
from e2e_lib.training.loop import train

COLOURS = ("red", "green", "blue")


def write(settings, folder, echo):
    """People who show each other plain photos, 200 x 120 pixels."""
    store = PhotoStore(folder / "photos")
    for split, count in (("train", settings.train), ("dev", settings.dev), ("test", settings.test)):
        dialogues = []
        for i in range(count):
            photo_id, colour = f"{split}-{i}", COLOURS[i % 3]
            store.add(photo_id, Image.new("RGB", (200, 120), colour), durable=False)
            dialogues.append(Dialogue(photo_id, (
                Turn(0, "what is your favourite colour?"), Turn(1, "look:"),
                Turn(1, "", (SharedPhoto(photo_id, f"a {colour} wall"),)), Turn(0, f"ah, {colour}!"))))
        write_dialogues(folder / f"{split}.jsonl", dialogues)


class MeanColour:
    def extract(self, photos):
        means = torch.stack([photo.float().mean((1, 2)) / 255 for photo in photos])
        return means, 10 * means


class Politeness:
    metrics = {"politeness": Metric("politeness", "higher", "share of replies that say please")}

    def __init__(self, folder):
        assert (folder / "test.jsonl").is_file()

    def questions(self, examples):
        return [(examples[0], {"about": "colours"})]

    def annotate(self, examples, responses):
        return [{"polite": "please" in response.text} for response in responses]

    def values(self, row):
        return {"politeness": float(row["polite"])} if "polite" in row else {"arguments": 0.5}


@pytest.fixture
def tiny(config, shipped, tmp_path, monkeypatch):
    """The tiny parts, and a corpus "walls" for them, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write, MeanColour))
    for key, value in (("data.name", "walls"), ("train.epochs", 1), ("train.dev_examples", 4)):
        config = settings.replace(config, key, value)
    return config


def run_of(config):
    """A run's metrics once it was trained, evaluated and summarised."""
    train(config, 0, lambda _: None)
    path = evaluate(config, 0, lambda _: None)
    summary = results.summarise(config.profile)
    run = json.loads(path.read_text())
    assert summary["test"] == run["metrics"]["n"]
    assert run["provenance"]["numbers"]["walls"] == 1 and set(run["provenance"]["data"]) == {"train.jsonl", "dev.jsonl", "test.jsonl"}
    return run["metrics"]


@pytest.mark.parametrize("system", ["end_to_end", "pipeline"])
def test_a_corpus_of_twenty_lines_is_trained_on_and_scored(tiny, system):
    metrics = run_of(settings.replace(tiny, "model.system", system))
    assert metrics["n"] == {"examples": 12, "texts": 8, "gold_photos": 4}
    assert {"bleu1", "rougeL", "caption_bleu", "intent_f1", "fid", "kid"} <= set(metrics)
    assert not [name for name in metrics if name.startswith(("scene", "details"))]
    rows = read_answers("smoke", [0], system=system)[0]
    assert len(rows) == 12 and "scene" not in rows[0] and read_details("smoke", [0], system=system)[0] == []


def test_what_only_a_corpus_can_score_comes_with_it(tiny, monkeypatch):
    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write, MeanColour, scores=Politeness))
    metrics = run_of(tiny)
    assert metrics["politeness"] == 0 and metrics["arguments"] == 0.5
    assert [row["polite"] for row in read_answers("smoke", [0])[0]] == [False] * 12
    (reply,) = read_details("smoke", [0])[0]
    assert reply["about"] == "colours" and reply["right"] is False
    assert list(corpora.metrics_of(tiny.data))[-1] == "politeness" and "scene_accuracy" in corpora.metrics_of(Data())


def test_a_result_is_kept_until_the_corpus_has_another_version(tiny, monkeypatch):
    train(tiny, 0, lambda _: None)
    lines = []
    evaluate(tiny, 0, lines.append)
    evaluate(tiny, 0, lines.append)
    assert lines[-1].endswith("end_to_end-seed0.json is there already")
    before = corpora.folder_of(tiny.data)
    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write, MeanColour, version=2))
    assert corpora.folder_of(tiny.data) != before
    with pytest.raises(CheckpointError, match="another version, whose training gave other weights .walls 1 there, 2 here"):
        evaluate(tiny, 0, lines.append)


def test_a_corpus_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="data.name = 'minicaht': there is no such corpus; there are: minichat"
                                          ".*e2e_lib.corpora.CORPORA.*did you mean 'minichat'"):
        corpora.named("minicaht")


@pytest.mark.parametrize("lacking", ["dev.jsonl", "photos"])
def test_what_a_corpus_did_not_write_is_named(tiny, monkeypatch, lacking):
    def write_less(settings, folder, echo):
        write(settings, folder, echo)
        (folder / lacking).rename(folder / "elsewhere")

    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write_less, MeanColour))
    with pytest.raises(ConfigError, match=f"corpus 'walls': its `write` left out {lacking}; see e2e_lib.corpora.Corpus"):
        corpora.prepare(tiny, lambda _: None)
    assert not corpora.folder_of(tiny.data).exists()


def test_an_error_while_a_corpus_is_written_is_said_to_be_the_corpuss(tiny, monkeypatch):
    def write_elsewhere(settings, folder, echo):
        (folder / "dialogues.zip").read_bytes()

    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write_elsewhere, MeanColour))
    with pytest.raises(ConfigError, match="corpus 'walls': its `write` stopped with FileNotFoundError: .*dialogues.zip"):
        corpora.prepare(tiny, lambda _: None)

    def write_to_a_full_disk(settings, folder, echo):
        raise files.SaveError("could not save it: the disk is full")

    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write_to_a_full_disk, MeanColour))
    with pytest.raises(files.SaveError, match="the disk is full"):
        corpora.prepare(tiny, lambda _: None)


class OneTooFew:
    def extract(self, photos):
        return torch.zeros(len(photos) - 1, 2), torch.zeros(len(photos) - 1, 2)


class Lists:
    def extract(self, photos):
        return [[0.0] for _ in photos], [[0.0] for _ in photos]


@pytest.mark.parametrize(("extractor", "message"), [
    (lambda: torch.nn.Linear(1, 1), "gives a Linear, which has no extract"),
    (OneTooFew, "gives features of no two photos .ValueError: OneTooFew.extract gave "),
    (Lists, "gives features of no two photos .TypeError: "),
])
def test_a_feature_extractor_that_cannot_extract_is_named_before_any_training(tiny, monkeypatch, extractor, message):
    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write, extractor))
    with pytest.raises(ConfigError, match=f"corpus 'walls': its `feature_extractor` {message}.*; see e2e_lib.evaluation.image.FeatureExtractor"):
        train(tiny, 0, lambda _: None)
    assert not list(run_folder(tiny, 0).glob("[a-z]*"))  # but for the mark that it is in use


def test_scores_without_a_method_are_named(tiny, monkeypatch, tmp_path):
    class Half:
        metrics, values = {}, dict

    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write, MeanColour, scores=lambda _: Half()))
    with pytest.raises(ConfigError, match="corpus 'walls': its `scores` gives a Half, which has no questions and no annotate; "
                                          "see e2e_lib.evaluation.scores.CorpusScores"):
        corpora.scores_of(tiny.data, tmp_path)


@pytest.mark.parametrize(("method", "gives", "message"), [
    ("questions", [("colours", {})], "`questions` gives as pair 1 .'colours', ..., not an Example and a dictionary"),
    ("questions", {}, "`questions` gives another form: expected a list, found dict"),
    ("annotate", [], "`annotate` gives 0 rows for 1 answers"),
    ("annotate", ["polite"], "`annotate` gives another form: row 1: expected an object, found str"),
    ("annotate", [{"text": "please"}], "`annotate` overwrites what answers have: text"),
    ("annotate", [{"polite": {1}}], "`annotate` gives another form: it cannot be saved as JSON"),
    ("values", 0.5, "`values` gives another form: expected an object, found float"),
    ("values", {"politeness": "much"}, "`values` gives another form: field 'politeness': expected int or float or bool, found 'much'"),
    ("counts", [1], "`counts` gives another form: expected an object, found list"),
    ("counts", {"n": {"replies": "many"}}, "`counts` gives another form: field 'n.replies': expected int or float, found 'many'"),
])
def test_scores_of_another_form_are_named_before_anything_is_answered(tiny, monkeypatch, method, gives, message):
    odd = type("Odd", (Politeness,), {method: lambda *_: gives})
    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write, MeanColour, scores=odd))
    folder = corpora.prepare(tiny, lambda _: None)
    examples, _ = split_examples(folder, "test")
    with pytest.raises(ConfigError, match=f"corpus 'walls': its {message}.*; see e2e_lib.evaluation.scores.CorpusScores"):
        corpora.scores_of(tiny.data, folder).questions(examples)


@pytest.mark.parametrize(("scores", "message"), [
    (type("Odd", (Politeness,), {"metrics": ["politeness"]}), "`metrics` is of another form: expected a mapping, found list"),
    (type("Odd", (Politeness,), {"metrics": {"politeness": "higher"}}), "`metrics` is of another form: field 'politeness': expected Metric, found 'higher'"),
    (lambda folder: Politeness(folder), "`scores` is no class with politeness in its `metrics`"),  # which no table would show
])
def test_metrics_of_another_form_are_named(tiny, monkeypatch, scores, message):
    monkeypatch.setitem(corpora.CORPORA, "walls", Corpus(write, MeanColour, scores=scores))
    with pytest.raises(ConfigError, match=f"corpus 'walls': its {message}"):
        corpora.scores_of(tiny.data, corpora.prepare(tiny, lambda _: None))


def test_a_corpus_is_written_once_and_whole(tiny):
    lines = []
    folder = corpora.prepare(tiny, lines.append)
    assert folder == corpora.prepare(tiny, lines.append) == corpora.folder_of(tiny.data)
    assert lines == [f"data: written to {folder}", f"data: {folder} is there already"]
    assert corpora.scores_of(tiny.data, folder) is None
