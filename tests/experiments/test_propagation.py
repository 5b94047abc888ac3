"""Captions with wrong words, drawn again: what is counted, against counts by hand and a line fitted by numpy."""

import copy
import itertools
import json

import numpy as np
import pytest
import scipy.stats
import torch
from trained_runs import save_trained

from e2e_lib import corpora
from e2e_lib.config import replace
from e2e_lib.data.examples import Response, split_examples
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.evaluation.image import features_of, fid
from e2e_lib.evaluation.minichat import MiniChatScores
from e2e_lib.evaluation.scores import answer_row
from e2e_lib.experiments import propagation
from e2e_lib.models import hub
from e2e_lib.repro import files, results
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.results import ResultsError
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training import checkpoints

SYSTEMS, SEEDS, SHARES = ("end_to_end", "pipeline"), (0, 1), propagation.SHARES


def quiet(_):
    pass


def test_what_a_caption_still_names():
    gold = {"thing": "kite", "colour": "red", "place": "beach"}
    assert propagation.named_share("two red kites at the beach", gold) == 1
    assert propagation.named_share("two redder kites at the beach", gold) == pytest.approx(2 / 3)
    assert propagation.named_share("two infrared kites at the beach", gold) == pytest.approx(2 / 3)
    assert propagation.named_share("", gold) == 0


def test_slopes_are_those_of_fitted_lines_with_intervals_over_dialogues():
    rng = np.random.default_rng(0)
    right = (rng.random((len(SHARES), 40)) < 0.9 - 0.6 * np.array(SHARES)[:, None]).astype(float)
    # Two photos of each dialogue, alike, are no more than one.
    for found in (propagation.by_share(right, [str(i) for i in range(40)]),
                  propagation.by_share(right.repeat(2, 1), [str(i // 2) for i in range(80)])):
        assert found["slope"]["mean"] == pytest.approx(np.polyfit(SHARES, right.mean(1), 1)[0])
        assert [row["mean"] for row in found["accuracy"]] == pytest.approx(right.mean(1).tolist())
        assert found["slope"]["low"] < -0.6 < found["slope"]["high"] < 0
        slopes = [np.polyfit(SHARES, column, 1)[0] for column in right.T]
        for row, values in [(found["slope"], slopes), *zip(found["accuracy"], right, strict=True)]:
            expected = scipy.stats.t.interval(0.95, 39, np.mean(values), scipy.stats.sem(values))
            assert (row["low"], row["high"]) == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))
    flat = propagation.by_share(np.ones((len(SHARES), 5)), list("abcde"))
    assert flat["slope"] == {"mean": 0, "low": 0, "high": 0}


class Pixels:
    """In place of the scene classifier, which gives all photos drawn with random weights the same scene: reads one from their sum."""

    def predict(self, photos):
        sums = [int(photo.long().sum()) for photo in photos]
        return [{name: values[value // 3**k % len(values)] for k, (name, values) in enumerate(ATTRIBUTES.items())} for value in sums]


@pytest.fixture(scope="module")
def trained(config, weights, tmp_path_factory):
    """A folder, its configuration and test examples; both systems are trained with both seeds, and the first run is answered."""
    folder, config = tmp_path_factory.mktemp("trained"), replace(config, "train.epochs", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(hub, "WEIGHTS", weights)
        corpus = corpora.prepare(config, quiet)
        examples, _ = split_examples(corpus, "test")
        answers = [Response("hello")] * len(examples)
        notes = MiniChatScores(corpus).annotate(examples, answers)
        lines = [json.dumps(answer_row(*pair) | note) for *pair, note in zip(examples, answers, notes, strict=True)]
        for system, seed in itertools.product(SYSTEMS, SEEDS):
            save_trained(replace(config, "model.system", system), seed)
            results.write_run("smoke", system, seed, {"fid": SYSTEMS.index(system) + seed / 4}, {"config": {}})
        with files.atomic_folder(run_folder(config, 0) / "answers") as new:
            files.write_text(new / "answers.jsonl", "\n".join(lines) + "\n")
    return folder, config, examples


@pytest.fixture
def runs(trained, shipped, monkeypatch):
    folder, *rest = trained
    monkeypatch.chdir(folder)
    return rest


def quick_photos(generator, captions, settings, rng):
    """In place of ``draw_photos``: depends on the same things, the weights, the captions, and the random numbers from ``rng``."""
    tone = int(1e6 * sum(float(weight.detach().double().sum()) for weight in generator.unet.parameters())) % 97
    noise = torch.randint(60, (len(captions), 3, 8, 8), generator=rng)
    shades = torch.tensor([tone + sum(map(ord, caption)) % 97 for caption in captions])
    return (noise + shades[:, None, None, None]).to(torch.uint8)


@pytest.fixture
def drawn(runs, systems, monkeypatch):
    """Draws captions with a system's weights, those of a seed or (None) those that it began with; ``drawn.captions`` are all drawn."""
    config, calls, models = runs[0], [], {}

    def remember(generator, captions, settings, rng):
        calls.append(captions)
        assert settings == config.inference
        return quick_photos(generator, captions, settings, rng)

    def draw(captions, rng, system, seed):
        if (system, seed) not in models:
            model = models[system, seed] = copy.deepcopy(systems[system])
            if seed is not None:
                folder = run_folder(replace(config, "model.system", system), seed)
                model.load_state_dict(checkpoints.load(folder / "best")[0], strict=False)
        return list(quick_photos(models[system, seed].generator, captions, config.inference, rng))

    monkeypatch.setattr(propagation, "draw_photos", remember)
    draw.captions = calls
    return draw


def test_every_system_and_seed_draws_the_same_wrong_captions_once(runs, drawn, monkeypatch):
    (config, examples), captions, lines, count = runs, drawn.captions, [], len(SHARES)
    monkeypatch.setattr(propagation, "load_scene_classifier", Pixels)
    path = propagation.propagate(config, SEEDS, SYSTEMS, lines.append, photos=4)
    record = json.loads(path.read_text())
    assert record["photos"] == 4 and captions == captions[:count] * 4  # systems by seeds
    gold = {photo.caption: photo.photo_id for example in examples for photo in example.response.photos}
    assert set(captions[0]) <= set(gold)
    changed = [sum(a != b for one, other in zip(captions[0], texts, strict=True) for a, b in zip(one.split(), other.split(), strict=True))
               for texts in captions[:count]]
    assert changed[0] == 0 and changed == sorted(changed) and changed[-1] > 0
    assert set(record["systems"]) == {"caption", *SYSTEMS} and record["systems"]["caption"]["accuracy"][0]["mean"] == 1
    assert record["systems"]["caption"]["slope"]["mean"] < 0
    scenes = read_scenes(corpora.folder_of(config.data) / "scenes.jsonl")
    due, found = [scenes[gold[caption]] for caption in captions[0]], []
    for system in SYSTEMS:
        means = np.zeros(count)
        for seed in SEEDS:  # each share from the same starting noise
            for k, texts in enumerate(captions[:count]):
                predicted = Pixels().predict(drawn(texts, generator(seed, "corrupt_words"), system, seed))
                right = [[row[name] == getattr(scene, name) for name in ("thing", "colour", "place")] for row, scene in zip(predicted, due, strict=True)]
                means[k] += np.mean(right) / len(SEEDS)
        found.append([row["mean"] for row in record["systems"][system]["accuracy"]])
        assert found[-1] == pytest.approx(means.tolist())
        assert record["systems"][system]["slope"]["mean"] == pytest.approx(np.polyfit(SHARES, means, 1)[0])
    assert found[0] != found[1] and len(set(found[0])) > 1
    before = path.read_bytes()
    propagation.propagate(config, SEEDS, SYSTEMS, lines.append, photos=4)
    assert "is there already" in lines[-1] and path.read_bytes() == before and len(captions) == 4 * count


def test_fid_from_gold_captions_before_and_after_training(runs, drawn):
    (config, examples), lines = runs, []
    shared = [photo for example in examples for photo in example.response.photos]
    captions = [photo.caption for photo in shared]
    path = propagation.gold_fid(config, SEEDS, SYSTEMS, lines.append)
    record, extractor = json.loads(path.read_text()), corpora.extractor_of(config.data)
    _, store = split_examples(corpora.folder_of(config.data), "test")
    gold = features_of([store.tensor(photo.photo_id) for photo in shared], extractor)
    # Systems by seeds after training; before it, both draw with the same part, so each seed once.
    assert drawn.captions == [captions] * 6 and record["photos"] == len(shared) >= 4
    for system in SYSTEMS:
        fids = record["systems"][system]
        assert fids["from_own"] == [SYSTEMS.index(system) + seed / 4 for seed in SEEDS]
        for seed in SEEDS:
            for name, weights in (("before", None), ("from_gold", seed)):
                photos = drawn(captions, generator(seed, "gold"), system, weights)
                assert fids[name][seed] == pytest.approx(fid(features_of(photos, extractor), gold), rel=1e-6), (system, seed, name)
        assert len({*fids["before"], *fids["from_gold"]}) == 4
    assert 0 < record["drawn_anew"] < record["systems"]["end_to_end"]["from_gold"][0]
    before = path.read_bytes()
    propagation.gold_fid(config, SEEDS, SYSTEMS, lines.append)
    assert "is there already" in lines[-1] and path.read_bytes() == before


def test_a_corpus_without_scenes_is_named(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "weights_hash", lambda folder: "0")
    monkeypatch.setattr(propagation, "read_answers", lambda *_: {0: [{"text": "hello"}]})
    with pytest.raises(ResultsError, match="no photo whose scene .*only MiniChat"):
        propagation.propagate(config, [0], ["end_to_end"], lambda _: None)
