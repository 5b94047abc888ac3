"""What notebooks show where nothing is trained: one sentence with the command, or what the parts as they ship say."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from e2e_lib.__main__ import app
from e2e_lib.config import PAPER_SYSTEMS
from e2e_lib.lessons import trained
from e2e_lib.report import plots
from e2e_lib.repro.files import ResultsError
from e2e_lib.repro.run_files import seed_folder


@pytest.mark.parametrize(("path", "profile", "seeds", "command"), [
    ("runs/mini/end_to_end/seed-0/answers", "mini", [0, 1, 2], "make reproduce"),
    ("results/smoke/summary.json", "smoke", [0], "e2e reproduce --profile smoke"),
    ("runs/smoke/divter/seed-1/answers", "smoke", [0, 1], "e2e reproduce --profile smoke --seeds 0 1"),
    ("runs/mini/divter/seed-7/answers", "mini", [7], "e2e reproduce --seeds 7"),
    ("results/mini/gold_fid.json", "mini", [0], "e2e compare"),
    ("results/mini/ablations.json", "mini", [0], "e2e ablate"),
    ("results/smoke/gradients.json", "smoke", [0], "e2e ablate --profile smoke"),
    ("results/mini/benchmarks.json", "mini", [0], "make bench"),
])
def test_the_sentence_names_what_is_missing_and_a_command_that_makes_it(tmp_path, path, profile, seeds, command):
    sentence = trained.not_yet(tmp_path / path, profile, seeds)
    assert f"`{tmp_path / path}` is not there yet" in sentence and f"`{command}` makes it (" in sentence
    if command.startswith("e2e "):  # its options are those of the command line
        assert CliRunner().invoke(app, [*shlex.split(command)[1:], "--help"]).exit_code == 0


def test_answers_are_missing_until_every_system_and_seed_has_them(tmp_path):
    folders = [seed_folder(tmp_path, "mini", system, seed) / "answers" for system in PAPER_SYSTEMS for seed in (0, 4)]
    for folder in folders:
        assert f"`{folder}`" in trained.missing_answers("mini", [0, 4], tmp_path)
        folder.mkdir(parents=True)
    assert trained.missing_answers("mini", [0, 4], tmp_path) is None


def test_scores_are_missing_until_every_system_and_seed_has_them(tmp_path):
    (tmp_path / "mini" / "runs").mkdir(parents=True)
    for system in PAPER_SYSTEMS:
        path = tmp_path / "mini" / "runs" / f"{system}-seed2.json"
        assert f"`{path}`" in trained.missing_scores("mini", [2], tmp_path)
        path.write_text("{}")
    assert trained.missing_scores("mini", [2], tmp_path) is None


def test_what_was_measured_is_viewed_and_damage_is_not_hidden(tmp_path):
    path = tmp_path / "mini" / "pretraining.json"
    assert f"`{path}` is not there yet. `e2e pretrain` makes it" in trained.if_measured("mini", "pretraining", len, tmp_path)
    path.parent.mkdir()
    path.write_text(json.dumps({"a": 1}))
    assert trained.if_measured("mini", "pretraining", lambda content: content["a"], tmp_path) == 1
    path.write_text("{")
    with pytest.raises(ResultsError, match="pretraining.json"):
        trained.if_measured("mini", "pretraining", len, tmp_path)


def test_answers_given_now_have_the_form_of_saved_ones(config, corpus, examples, model):
    some, _ = examples
    few = [example for example in some if example.response.photos][:3]
    rows = trained.answer_now({"end_to_end": model, "again": model}, few, corpus, config, 3)
    assert [(row["dialogue_id"], row["index"]) for row in rows["end_to_end"]] == [(e.dialogue_id, e.index) for e in few]
    assert all(len(row["images"]) == len(row["captions"]) for row in rows["end_to_end"])
    assert [scene["photo_id"] for row in rows["end_to_end"] for scene in row["scenes"]] == [
        photo_id for row in rows["end_to_end"] for photo_id in row["gold_photo_ids"]]
    texts = [[row["text"] for row in of_system] for of_system in rows.values()]
    assert texts[0] == texts[1] and trained.answer_now({"end_to_end": model}, [], corpus, config, 3) == {"end_to_end": []}


def test_right_photos_are_counted_by_the_titles_of_the_gallery():
    titles = ["gold: End-to-end, right: x", "End-to-end, right: a very long caption that goes on over more than one line",
              "End-to-end, aligned, wrong thing, place: right", "gold: y", "End-to-end, no photo: shares no photo", "End-to-end, aligned, right: y"]
    figure = plots.photo_grid([None] * 6, titles, columns=3)
    assert trained.right_in_gallery(figure, ["end_to_end", "end_to_end_aligned"]) == (
        "Right in thing, colour and place: End-to-end 1 of 2; End-to-end, aligned 1 of 2.")


def test_an_answer_is_made_of_a_file_of_results_or_says_what_makes_it(tmp_path):
    assert trained.answer("mini", "pretraining", lambda record: "It is so.", tmp_path).startswith("*Not shown: `")
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "pretraining.json").write_text('{"a": 3}')
    assert trained.answer("mini", "pretraining", lambda record: f"It is {record['a']}.", tmp_path) == "**Answer.** It is 3."
