"""What is looked at after each epoch: one score for early stopping, and a gallery that shows the same answers."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from e2e_lib import corpora
from e2e_lib.config import replace
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example, Response
from e2e_lib.evaluation.scores import dev_scores
from e2e_lib.inference.respond import respond
from e2e_lib.repro.randomness import generator, seed_of
from e2e_lib.training.dev import GALLERY_SIZE, DevSet, dev_examples, dev_score, save_gallery


def test_the_dev_score_rises_with_bleu_and_falls_with_fid():
    assert dev_score({"bleu2": 4.0, "fid": 20.0}) == pytest.approx(math.log(4 / 20))
    assert dev_score({"bleu2": 5.0, "fid": 20.0}) > dev_score({"bleu2": 4.0, "fid": 20.0})
    assert dev_score({"bleu2": 4.0, "fid": 20.0}) > dev_score({"bleu2": 4.0, "fid": 21.0})
    assert dev_score({"bleu2": 4.0, "fid": None}) == -math.inf < dev_score({"bleu2": 0.0, "fid": 1e6})


def rows_of(kinds):
    """Examples whose responses share a photo ("p") or do not ("t")."""
    return [Example("d", i, (Turn(0, "hi"),), Turn(1, "", (SharedPhoto(f"p{i}", f"caption {i}"),)) if kind == "p" else
                    Turn(1, "hello")) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize(("kinds", "count", "expected"), [
    ("tptptp", 4, [1, 3, 0, 2]), ("tptptp", 99, [1, 3, 5, 0, 2, 4]), ("ttttp", 4, [4, 0, 1, 2]), ("pppp", 2, [0])])
def test_half_of_the_dev_examples_share_photos_where_there_are_enough(kinds, count, expected):
    assert [e.index for e in dev_examples(rows_of(kinds), count)] == expected


def test_the_gallery_shows_the_first_answers_to_gold_photos(tmp_path):
    examples = rows_of("tp" * 9)
    photos = torch.randint(256, (len(examples), 3, 8, 8), generator=generator(0), dtype=torch.uint8)
    answers = [Response("hi", [f"own {i}"], [photos[i]]) if i != 3 else Response("no photo") for i in range(len(examples))]
    save_gallery(tmp_path / "gallery", examples, answers)
    rows = json.loads((tmp_path / "gallery" / "gallery.json").read_text())
    assert [row["photo_id"] for row in rows] == [f"p{2 * k + 1}" for k in range(GALLERY_SIZE)]
    assert rows[0] == {"photo_id": "p1", "gold": "caption 1", "caption": "own 1", "drawn": True}
    assert rows[1] == {"photo_id": "p3", "gold": "caption 3", "caption": None, "drawn": False}
    saved = {path.stem: np.array(Image.open(path)) for path in (tmp_path / "gallery").glob("*.png")}
    assert saved.keys() == {str(k) for k in range(GALLERY_SIZE) if k != 1}
    assert np.array_equal(saved["2"], photos[5].permute(1, 2, 0).numpy())


def test_the_gallery_shows_every_gold_photo_of_an_answer(tmp_path):
    example = Example("d", 1, (Turn(0, "hi"),), Turn(1, "", (SharedPhoto("p", "gold one"), SharedPhoto("q", "gold two"))))
    white, black = torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8)
    answers = [Response("", ["own one"], [white]), Response("", ["one", "two", "three"], [white, black, white])]
    save_gallery(tmp_path / "gallery", [example] * 2, answers)
    rows = json.loads((tmp_path / "gallery" / "gallery.json").read_text())
    assert [(row["photo_id"], row["gold"], row["caption"], row["drawn"]) for row in rows] == [
        ("p", "gold one", "own one", True), ("q", "gold two", None, False), ("p", "gold one", "one", True), ("q", "gold two", "two", True)]
    shown = {path.name: int(np.array(Image.open(path)).max()) for path in (tmp_path / "gallery").glob("*.png")}
    assert shown == {"0.png": 255, "2.png": 255, "3.png": 0}


def test_a_dev_set_is_answered_with_the_same_random_numbers_after_each_epoch(config, systems, examples, tmp_path, monkeypatch):
    config, seeds = replace(config, "inference.max_new_tokens", 4), []

    def answer(*arguments):  # a model so small writes the same nonsense whatever it draws
        seeds.append(arguments[-1])
        return respond(*arguments)

    monkeypatch.setattr("e2e_lib.training.dev.respond", answer)
    dev, model = DevSet(config, 7, examples[0], examples[1], tmp_path), systems["end_to_end"]
    first, again = dev.score(model, 1), dev.score(model, 2)
    assert seeds == [seed_of(7, "dev")] * 2
    answers = respond(model, dev.examples, examples[1], config.inference, seed_of(7, "dev"))
    extractor = corpora.named("minichat").feature_extractor()
    expected = dev_scores(dev.examples, answers, examples[1], extractor)
    assert first == again == {**expected, "score": dev_score(expected)} and len(dev.examples) == 6
    dev.save_gallery_before_training(model)
    galleries = [json.loads((tmp_path / f"epoch-{epoch}" / "gallery.json").read_text()) for epoch in range(3)]
    assert galleries[1] == galleries[2] and [row["gold"] for row in galleries[0]] == [row["gold"] for row in galleries[1]]
