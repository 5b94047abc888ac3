"""Notebook 00's twins: what is asked of each system, against the photos and captions it is given."""

from types import SimpleNamespace

import numpy as np

from e2e_lib.data.minichat.scenes import Scene
from e2e_lib.lessons import nb00_twins as twins
from e2e_lib.lessons import nb05_questions as questions

SCENE, TEXT = Scene("kite", "yellow", "beach", time="evening"), "Look! Can you tell when that was?"


def test_twins_differ_in_the_one_attribute():
    photos = twins.twin_photos(SCENE, "time")
    assert list(photos) == ["day", "evening", "night"]
    pixels = [np.asarray(photo) for photo in photos.values()]
    assert all((one != other).mean() > 0.1 for one, other in zip(pixels, pixels[1:], strict=False))
    assert list(twins.twin_photos(Scene("boat", "blue", "beach", 2), "number")) == [2, 3]


def test_each_system_is_asked_about_each_photo_with_the_same_words(monkeypatch):
    asked = []

    def answers(model, example, album, phrasings):
        photo, = (photo for turn in example.context for photo in turn.photos)
        asked.append((model.name, example.context[-1].text, np.asarray(album.images[photo.photo_id]), photo.caption))
        return dict.fromkeys(phrasings, 1 / len(phrasings))
    monkeypatch.setattr(questions, "answer_probabilities", answers)
    captioner = SimpleNamespace(key="own", generate_captions=lambda photos: [f"mean {photos[0].float().mean():.0f}"])
    models = {"end_to_end": SimpleNamespace(name="reads", captioner=None), "pipeline": SimpleNamespace(name="is told", captioner=captioner)}
    result = twins.ask_about_twins(models, captioner, TEXT, SCENE, "time")
    photos = twins.twin_photos(SCENE, "time")
    assert [name for name, *_ in asked] == ["reads", "is told"] * 3 and {text for _, text, *_ in asked} == {TEXT}
    for i, photo in enumerate(photos.values()):
        assert all((pixels == np.asarray(photo)).all() for _, _, pixels, _ in asked[2 * i:2 * i + 2])
        assert asked[2 * i][3] == "" and asked[2 * i + 1][3] == f"mean {np.asarray(photo).mean():.0f}"
    assert {name: list(rows) for name, rows in result.probabilities.items()} == dict.fromkeys(models, list(photos))
    assert set(result.probabilities["pipeline"]["day"]) == {"day", "evening", "night"}
