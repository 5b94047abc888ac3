import json
import re

import numpy as np
import pytest
from PIL import Image

from e2e_lib.corpora import folder_of
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.data.minichat import questions as questions
from e2e_lib.data.minichat.chats import HELD_OUT, describe, make_chat
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.data.minichat.scenes import COLOURS, PLACES, THINGS, Scene
from e2e_lib.report import figures
from e2e_lib.repro import run_files
from e2e_lib.repro.randomness import python_random
from e2e_lib.repro.results import ResultsError

SCENE = {"thing": "kite", "colour": "red", "place": "beach", "number": 1, "size": "big", "time": "day"}


def log(seed, images=True, fid=True):
    steps = [{"kind": "step", "step": 10 * i, "epoch": i / 4, "text_loss": 2 - i / 8 + seed, "image_loss": 1.0 + seed if images else None,
              "temperature": 1 - i / 8, "gradient_language": 1.0, "gradient_perceptron": 0.0, "gradient_unet": 0.5,
              "gradient_language_from_image": 0.01 if images else None} for i in range(8)]
    return steps + [{"kind": "dev", "epoch": e, "bleu2": 5.0 + e, "fid": 9.0 - e if fid else None, "score": None, "n": 8} for e in (1, 2)]


def answer(drawn, caption, gold=SCENE):
    return {"scene": {"photo_id": "x", "gold": gold, "drawn": drawn}, "caption": caption, "image": None, "gold_caption": "gold"}


def mean_line(ax):
    return max(ax.lines, key=lambda line: line.get_linewidth())


def test_loss_curves_show_the_mean_over_seeds_and_say_whose():
    figure = figures.loss_curves({0: log(0), 1: log(1)}, "mini")
    text = mean_line(figure.axes[0])
    assert np.allclose(text.get_ydata(), [2.5 - i / 8 for i in range(8)])
    assert len(figure.axes[0].lines) == 3  # two seeds and their mean
    assert figure.get_supxlabel() == "profile mini · N = 71 training steps · seeds 0, 1"


def test_the_mean_stops_where_a_seed_stopped():
    shorter = [line for line in log(1) if line["kind"] == "dev" or line["step"] < 40]
    assert len(mean_line(figures.loss_curves({0: log(0), 1: shorter}, "mini").axes[0]).get_xdata()) == 4


def test_gradients_of_zero_are_left_out_of_the_log_axis():
    ax = figures.gradient_norms({0: log(0)}, "smoke").axes[0]
    shown = {line.get_label(): len(line.get_xdata()) for line in ax.lines}
    assert shown["perceptron"] == 0 and shown["language model, from the image loss alone"] == 8


def test_curves_without_a_value_say_so():
    loss, dev = figures.loss_curves({0: log(0, images=False)}, "smoke"), figures.dev_curves({0: log(0, fid=False)}, "smoke")
    assert "no batch of the log had a photo" in loss.axes[1].texts[0].get_text().replace("\n", " ")
    assert "fewer than two photos were drawn" in dev.axes[1].texts[0].get_text().replace("\n", " ")
    assert "N = 8 dev responses" in dev.get_supxlabel()


@pytest.mark.parametrize(("drawn", "caption", "cause"), [
    (SCENE, "nothing of it", "right"),
    ({**SCENE, "thing": "car"}, "a red kite at the beach", "wrong drawing"),
    ({**SCENE, "thing": "car"}, "two red kites at the beach", "wrong drawing"),
    ({**SCENE, "thing": "car"}, "a red car at the beach", "wrong words"),
    (None, None, "no photo"),
])
def test_causes_tell_words_from_drawing(drawn, caption, cause):
    assert figures.causes([answer(drawn, caption)])["thing"] == {cause: 1}


def test_a_longer_word_does_not_count_as_said():
    ball = {**SCENE, "thing": "ball"}
    assert figures.causes([answer(SCENE, "a red balloon at the beach", ball)])["thing"] == {"wrong words": 1}


def test_accuracy_by_attribute_parts_held_out_triples():
    thing, colour, place = sorted(HELD_OUT)[0]
    unmet = {**SCENE, "thing": thing, "colour": colour, "place": place}
    met = {**SCENE, "thing": "kite", "colour": "red", "place": next(p for p in PLACES if ("kite", "red", p) not in HELD_OUT)}
    rows = [answer(met, "", met), answer(None, None, met), answer({**unmet, "size": "small"}, "", unmet), {"scene": None}]
    assert figures.by_attribute(rows, False) == dict.fromkeys(SCENE, 0.5)
    assert figures.by_attribute(rows, True) == {**dict.fromkeys(SCENE, 1.0), "size": 0.0}
    assert figures.by_attribute([], True) is None


@pytest.mark.parametrize("index", range(20))
def test_a_full_caption_leaves_nothing_unsaid(index):
    scene = next(iter(make_chat("train", index, 3).scenes.values()))
    rng = python_random(index)
    assert questions.omitted_attributes(scene, describe(scene, rng, 1.0)) == []
    assert questions.omitted_attributes(scene, describe(scene, rng, 0.0)) == ["time", "size" if scene.number == 1 else "number"]


def test_the_triple_map_counts_and_crosses():
    figure = figures.triple_map([("car", "red", "beach")] * 3, "title", "note")
    beach = figure.axes[0]
    table = beach.images[0].get_array()
    assert table[COLOURS.index("red"), THINGS.index("car")] == 3 and table.sum() == 3
    crossed = {(THINGS[int(x)], COLOURS[int(y)], "beach") for x, y in zip(*beach.lines[-1].get_data(), strict=True)}
    assert crossed == {triple for triple in HELD_OUT if triple[2] == "beach"}


@pytest.fixture
def run(config, corpus, tmp_path, monkeypatch):
    """A finished run as training and evaluation leave it, with the first photo drawn and the others not."""
    folder = tmp_path / "runs" / "smoke" / "end_to_end" / "seed-0"
    (folder / "answers").mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log(0)))
    (folder / "done.json").write_text(json.dumps({"config": {"data": vars(config.data)}}))
    dialogues, store, _ = load_split(corpus, "test")
    scenes, rows = read_scenes(corpus / "scenes.jsonl"), []
    for example in (example for dialogue in dialogues for example in examples_of(dialogue)):
        gold = example.response.photo
        scene = {"photo_id": gold.photo_id, "gold": vars(scenes[gold.photo_id]), "drawn": None} if gold else None
        rows.append({"text": "<b>$1 or $2?</b>", "caption": None, "gold_photo_id": gold and gold.photo_id, "scene": scene,
                     "dialogue_id": example.dialogue_id, "index": example.index, "gold_caption": gold and gold.caption})
    (folder / "answers" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    photo = next(row["gold_photo_id"] for row in rows if row["gold_photo_id"])
    for epoch in (0, 1, 2):
        gallery = folder / "gallery" / f"epoch-{epoch}"
        gallery.mkdir(parents=True)
        (gallery / "gallery.json").write_text(json.dumps([{"photo_id": photo, "gold": "gold", "caption": None, "drawn": False}]))
    target = folder_of(config.data, tmp_path / "data")
    target.parent.mkdir()
    target.symlink_to(corpus)
    return tmp_path, folder, rows


def test_draw_all_writes_every_figure_even_when_nothing_was_drawn(run):
    root, _, _ = run
    made = figures.draw_all("smoke", [0], runs=root / "runs", data=root / "data", out=root / "figures")
    assert {path.suffix for path in made} == {".png", ".pdf"} and len(made) >= 16
    for path in made:
        assert path.parent == root / "figures" / "smoke" and b"CreationDate" not in path.read_bytes()
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.convert("L").getextrema()[1] == 255 and len(image.getcolors(1 << 20)) > 2, path.name


def test_a_figure_drawn_twice_has_the_same_bytes():
    first, second = (figures.loss_curves({0: log(0)}, "smoke") for _ in range(2))
    assert first.to_bytes("png") == second.to_bytes("png") and first.to_bytes("pdf") == second.to_bytes("pdf")


def test_the_example_chat_ends_with_the_models_answer(run):
    root, folder, rows = run
    corpus = figures.corpus_of("smoke", 0, root / "runs", root / "data")
    for row, i in zip(rows, range(len(rows)), strict=True):
        if row["scene"]:
            row["caption"] = "$drawn$"
            Image.new("RGB", (64, 64), "red").save(folder / "answers" / f"{i}.png")
    (folder / "answers" / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = run_files.read_answers("smoke", [0], root / "runs")
    figure = figures.example_chat(answers[0], corpus, "smoke", 0)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert r"“\$drawn\$”" in said and r"<b>\$1 or \$2?</b>" in said
    assert np.array(figure.axes[0].images[-1].get_array())[0, 0].tolist() == [255, 0, 0]
    figure.to_bytes("png")


def test_a_missing_or_damaged_run_is_named(run):
    root, folder, _ = run
    with pytest.raises(ResultsError, match=r"seed-7/log\.jsonl: no such file; `e2e train --profile smoke` makes it"):
        run_files.read_logs("smoke", [7], root / "runs")
    (folder / "log.jsonl").write_text('{"kind": "dev"}\n{"kind": ')
    with pytest.raises(ResultsError, match=r"log\.jsonl, row 2: not readable JSON"):
        run_files.read_logs("smoke", [0], root / "runs")
    with pytest.raises(ResultsError, match="no seeds were given"):
        figures.draw_all("smoke", [], runs=root / "runs")


def test_a_scene_of_one_is_asked_for_its_size_only():
    assert "number" not in questions.omitted_attributes(Scene("car", "red", "city"), "a red car in the city")
    assert re.search("size", " ".join(questions.omitted_attributes(Scene("car", "red", "city"), "a red car in the city")))
