"""The figures of results, by the frames that they are drawn from and the photos that they show."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from e2e_lib import versions
from e2e_lib.corpora import folder_of
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.report import photos, plots, results_figures
from e2e_lib.repro import run_files
from e2e_lib.repro.results import RESULTS, ResultsError, load_json


def test_every_figure_of_the_committed_results_can_be_drawn():
    comparison, differences, ablations, gradients, propagation = (load_json(RESULTS / "mini" / f"{name}.json") for name in (
        "comparison", "ablation_differences", "ablations", "gradients", "propagation"))
    figures = [results_figures.differences_figure(comparison), results_figures.fid_figure(comparison),
               results_figures.differences_figure(differences, ("scene_accuracy", "fid"), 1),
               results_figures.variants_figure(ablations), results_figures.propagation_figure(propagation),
               results_figures.estimators_figure(gradients, "cosine", "title"),
               results_figures.estimators_figure(gradients, "relative_variance", "title", log=True)]
    for figure in figures:
        figure.to_bytes("png")
        assert "profile mini · N = " in figure.alternative_text()


def test_differences_are_grey_where_neither_is_better_after_correction():
    numbers = {"difference": 1.0, "by_seed": [1.0], "low": 0.5, "high": 1.5, "p": 0.01, "system": "end_to_end"}
    pairs = [numbers | {"than": than, "metric": "bleu1", "p_corrected": p} for than, p in (("pipeline", 0.2), ("divter", 0.03))]
    measured = {"profile": "mini", "seeds": [0], "examples": 9, "dialogues": 3, "pairs": pairs, "higher_is_better": {"bleu1": True}}
    figure = results_figures.differences_figure(measured, ("bleu1", "details"), 1)
    assert [ax.get_title("left") for ax in figure.axes] == ["BLEU-1"]  # nothing was compared in detail questions
    assert [line.get_color() for line in figure.axes[0].get_lines() if line.get_marker() == "o"] == [plots.GREY, plots.BLUE]
    assert "grey: neither is better, p ≥ 0.05 (Holm)" in figure.alternative_text()


def test_the_fid_curve_says_what_stands_on_either_side():
    measured = {"profile": "mini", "seeds": [3, 4], "fid_by_number": {"divter": [{"n": 2, "mean": 3.0, "std": 1.0}]}}
    old = results_figures.fid_figure(measured | {"draws": 2000}).alternative_text()
    new = results_figures.fid_figure(measured | {"numbers": versions.versions("intervals")}).alternative_text()
    assert "the same test answers on both sides" in new and "seed 3" in new and "version" not in new
    assert "drawn apart on either side" in old and "made with intervals version 1" in old


def test_fid_by_number_has_bands_of_one_standard_deviation():
    frame = results_figures.fid_frame({"fid_by_number": {"divter": [{"n": 2, "mean": 3.0, "std": 1.0}]}})
    assert frame[["label", "x", "mean", "low", "high"]].to_numpy().tolist() == [["Divter", 2, 3.0, 2.0, 4.0]]


def test_propagation_has_a_point_per_system_and_share():
    accuracy = [{"mean": 1.0, "low": 0.9, "high": 1.0}, {"mean": 0.5, "low": 0.4, "high": 0.6}]
    frame = results_figures.propagation_frame({"arguments": {"shares": [0, 0.75]}, "systems": {
        "caption": {"accuracy": accuracy[::-1]}, "divter": {"accuracy": accuracy}}})
    assert frame.label.tolist() == ["named by the caption itself"] * 2 + ["Divter"] * 2
    assert frame[frame.label == "Divter"][["x", "mean", "low"]].to_numpy().tolist() == [[0, 1.0, 0.9], [0.75, 0.5, 0.4]]


def test_systems_with_the_same_numbers_are_one_line_with_both_names():
    accuracy = [{"mean": 0.5, "low": 0.4, "high": 0.6}]
    frame = results_figures.propagation_frame({"arguments": {"shares": [0]}, "systems": {
        name: {"accuracy": accuracy} for name in ("end_to_end", "pipeline")} | {"divter": {"accuracy": [accuracy[0] | {"low": 0.3}]}}})
    assert frame.label.tolist() == ["End-to-end = Pipeline", "Divter"] and frame.colour.tolist() == [plots.BLUE, plots.GREEN]


def test_gradients_have_a_row_per_map_estimator_and_temperature():
    rows = [{"mapping": "span", "estimator": "gumbel", "temperature": 0.1, "bias": {"mean": 0.0, "std": 0.5}}]
    gradients = {"rows": rows, "arguments": {"captions": 5, "draws": 64, "seed": 0, "settings": {"profile": "mini"}}}
    assert results_figures.gradient_frame(gradients, "bias").to_numpy().tolist() == [
        ["span", "straight-through Gumbel", 0.1, 0.0, 0.5]]
    results_figures.estimators_figure(gradients, "bias", "title", log=True).to_bytes("png")  # zero has no logarithm


@pytest.fixture
def run(config, corpus, tmp_path):
    """A finished run as training and evaluation leave it, without a drawn photo."""
    folder = tmp_path / "runs" / "smoke" / "end_to_end" / "seed-0"
    (folder / "answers").mkdir(parents=True)
    (folder / "log.jsonl").write_text("")
    (folder / "done.json").write_text(json.dumps({"config": {"data": vars(config.data)}}))
    dialogues, _, _ = load_split(corpus, "test")
    scenes, rows = read_scenes(corpus / "scenes.jsonl"), []
    for example in (example for dialogue in dialogues for example in examples_of(dialogue)):
        gold = example.response.photos
        due = [{"photo_id": photo.photo_id, "gold": vars(scenes[photo.photo_id]), "drawn": None, "named": None} for photo in gold]
        rows.append({"text": "<b>$1 or $2?</b>", "gold_text": example.response.text, "captions": [],
                     "gold_photo_ids": [photo.photo_id for photo in gold], "scenes": due, "dialogue_id": example.dialogue_id, "index": example.index,
                     "gold_captions": [photo.caption for photo in gold]})
    (folder / "answers" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    photo = next(row["gold_photo_ids"][0] for row in rows if row["gold_photo_ids"])
    for epoch in range(12):
        gallery = folder / "gallery" / f"epoch-{epoch}"
        gallery.mkdir(parents=True)
        page = [{"photo_id": photo, "gold": "gold", "caption": None, "drawn": False}]
        (gallery / "gallery.json").write_text(json.dumps(page))
    target = folder_of(config.data, tmp_path / "data")
    target.parent.mkdir()
    target.symlink_to(corpus)
    return tmp_path


def test_every_figure_is_drawn_and_again_the_same_even_when_nothing_was_generated(run, monkeypatch):
    def draw(name):
        return results_figures.draw_all("smoke", [0], runs=run / "runs", data=run / "data", out=run / name)

    first = draw("one")
    assert {path.suffix for path in first} == {".png", ".pdf"} and len(first) == 16
    panels = results_figures.training_curves.PANELS
    monkeypatch.setattr(results_figures.training_curves, "PANELS", dict(itertools.islice(panels.items(), 1)))
    again = draw("two")  # one of the curves is enough, and one of every other kind
    assert 0 < len(again) < len(first)
    assert all(path.read_bytes() == (run / "one" / "smoke" / path.name).read_bytes() for path in again)
    for path in first:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert len(np.unique(np.asarray(image.convert("L")))) > 2, path.name


def test_a_missing_run_is_named(run):
    with pytest.raises(ResultsError, match=r"seed-7"):
        results_figures.draw_all("smoke", [7], runs=run / "runs")
    with pytest.raises(ResultsError, match="no seeds were given"):
        results_figures.draw_all("smoke", [], runs=run / "runs")


def test_the_gallery_over_epochs_has_the_first_and_the_last(run, corpus):
    figure = photos.gallery_over_epochs("smoke", 0, corpus, run / "runs")
    titles = [" ".join(ax.get_title().split()) for ax in figure.axes if ax.get_title()]
    assert titles == ["gold: gold"] + [f"{when}: shares no photo" for when in (
        "before", "epoch 3", "epoch 6", "epoch 8", "epoch 11")]


def test_galleries_and_the_example_chat_show_what_was_generated(run, corpus):
    answers = run_files.read_answers("smoke", [0], run / "runs")[0]
    assert "did the model share another" in photos.example_chat(answers, corpus, "smoke", 0)
    red = run / "red.png"
    Image.new("RGB", (64, 64), "red").save(red)
    for row in answers:
        row |= {"images": [red] * len(row["scenes"]), "captions": ["$a photo$"] * len(row["scenes"])}
        for scene in row["scenes"]:
            scene["drawn"] = {**scene["gold"], "colour": "none"}
    figure = photos.gallery({"end_to_end": answers, "divter": answers}, corpus, "smoke", 0, 2, columns=3)
    titles = [" ".join(ax.get_title().split()) for ax in figure.axes]
    assert titles[1::3] == [r"End-to-end, wrong colour: \$a photo\$"] * 2 and titles[2].startswith("Divter, wrong colour")
    assert all(np.asarray(ax.images[0].get_array())[0, 0].tolist() == [255, 0, 0] for ax in figure.axes[1:3])
    page = photos.example_chat(answers, corpus, "smoke", 0)
    assert "&lt;b&gt;$1 or $2?&lt;/b&gt;" in page and 'alt="$a photo$"' in page and page.count("<img") >= 2
