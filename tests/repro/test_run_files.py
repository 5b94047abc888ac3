import dataclasses
import json

import pytest
from PIL import Image

from e2e_lib.config import ConfigError, load, replace
from e2e_lib.repro import run_files
from e2e_lib.repro.results import ResultsError

STEP = {"kind": "step", "step": 1, "epoch": 0.5, "seconds": 2.5, "text_loss": 1.5, "image_loss": None}
DEV = {"kind": "dev", "step": 2, "epoch": 1, "seconds": 3.5, "bleu2": 1.5, "n": 6}
ANSWER = {"dialogue_id": "a", "index": 1, "text": "yes", "captions": [], "gold_text": "no", "gold_captions": [], "gold_photo_ids": []}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_profile_system_and_seed_has_its_own_folder(tmp_path):
    configs = [load("smoke"), load("mini"), replace(load("mini"), "model.system", "divter")]
    assert len({run_files.run_folder(config, seed, tmp_path) for config in configs for seed in (0, 1)}) == 6
    assert run_files.run_folder(configs[2], 1, tmp_path) == tmp_path / "mini" / "divter" / "seed-1"


@pytest.mark.parametrize("seed", [-1, 2**63, "0"])
def test_no_run_has_a_seed_out_of_range(seed):
    with pytest.raises(ConfigError, match="expected a whole number from 0 to 9223372036854775807"):
        run_files.run_folder(load("smoke"), seed)


def test_a_running_log_may_end_in_a_line_that_was_cut_off(tmp_path):
    folder = run_files.seed_folder(tmp_path, "smoke", "end_to_end", 0)
    assert run_files.read_log(folder) == []
    with open(write(folder / "log.jsonl", STEP, DEV), "a") as log:
        log.write('{"step": ')
    assert run_files.read_log(folder) == [STEP, DEV]
    with pytest.raises(ResultsError, match=rf"log\.jsonl, row 3: damaged, .*; delete {folder} and make it again with `e2e train --profile smoke --seeds 0 --system end_to_end`"):
        run_files.read_logs("smoke", [0], tmp_path)
    with pytest.raises(ResultsError, match=r"seed-7/log\.jsonl: no such file in .*; `e2e train --profile smoke --seeds 7 --system end_to_end` makes it$"):
        run_files.read_logs("smoke", [7], tmp_path)
    (folder / "log.jsonl").unlink()
    with pytest.raises(ResultsError, match=f"makes it, once {folder} is deleted"):  # a run that is done is kept
        run_files.read_logs("smoke", [0], tmp_path)


@pytest.mark.parametrize(("line", "message"), [
    ({"step": 1}, "field 'kind': expected str, found None"),
    ({**STEP, "epoch": "one"}, "field 'epoch': expected int or float, found 'one'"),
    ({**STEP, "text_loss": "low"}, "field 'text_loss': expected int or float or None, found 'low'"),
    ({key: value for key, value in DEV.items() if key != "n"}, "field 'n': expected int, found None"),
    ([1], "expected an object, found list"),
])
def test_a_line_of_a_log_that_lacks_something_is_named(tmp_path, line, message):
    folder = run_files.seed_folder(tmp_path, "smoke", "end_to_end", 0)
    write(folder / "log.jsonl", STEP, line)
    for read in (lambda: run_files.read_log(folder), lambda: run_files.read_logs("smoke", [0], tmp_path)):
        with pytest.raises(ResultsError, match=rf"log\.jsonl, row 2.*{message}; delete {folder} and make it again with `e2e train "):
            read()


def test_answers_come_with_the_files_of_their_drawn_photos(tmp_path):
    rows = [ANSWER, {**ANSWER, "index": 3, "captions": ["a kite", "a hat"]}]
    folder = run_files.seed_folder(tmp_path, "smoke", "pipeline", 2) / "answers"
    write(folder / "answers.jsonl", *rows)
    write(folder / "details.jsonl", {"dialogue_id": "a", "index": 5, "text": "two", "right": True})
    again = f"delete {folder} and make it again with `e2e evaluate --profile smoke --seeds 2 --system pipeline`"
    Image.new("RGB", (2, 2)).save(folder / "1-0.png")
    with pytest.raises(ResultsError, match=rf"1-1\.png: no such file; {again}"):
        run_files.read_answers("smoke", [2], tmp_path, "pipeline")
    (folder / "1-1.png").write_bytes((folder / "1-0.png").read_bytes()[:40])
    with pytest.raises(ResultsError, match=rf"1-1\.png: a damaged photo .*; {again}"):
        run_files.read_answers("smoke", [2], tmp_path, "pipeline")
    Image.new("RGB", (2, 2)).save(folder / "1-1.png")
    answers = run_files.read_answers("smoke", [2], tmp_path, "pipeline")[2]
    assert answers == [{**rows[0], "images": []}, {**rows[1], "images": [folder / "1-0.png", folder / "1-1.png"]}]
    assert run_files.keyed(answers)["a", 3] is answers[1]
    assert run_files.read_details("smoke", [2], tmp_path, "pipeline")[2][0]["right"]
    with pytest.raises(ResultsError, match="`e2e evaluate --profile smoke --seeds 2 --system divter` makes it"):
        run_files.read_answers("smoke", [2], tmp_path, "divter")


@pytest.mark.parametrize(("row", "message"), [
    ({"dialogue_id": "a", "index": 1, "text": "yes", "caption": None}, "field 'captions': expected a list, found NoneType"),  # of before
    ({**ANSWER, "index": True}, "field 'index': expected int, found True"),
    ({**ANSWER, "captions": ["a kite", 3]}, "field 'captions', row 2: expected str, found 3"),
])
def test_an_answer_that_lacks_something_is_named(tmp_path, row, message):
    folder = run_files.seed_folder(tmp_path, "smoke", "end_to_end", 0) / "answers"
    write(folder / "answers.jsonl", ANSWER, row)
    with pytest.raises(ResultsError, match=rf"answers\.jsonl, row 2: {message}; delete {folder} and"):
        run_files.read_answers("smoke", [0], tmp_path)


@pytest.mark.parametrize(("root", "folder", "command"), [
    ("runs", "answers-ablation", "e2e ablate --profile smoke --seeds 0"),
    ("runs/ablations/span", "answers-ablation", "e2e ablate --profile smoke --seeds 0 --variants span"),
])
def test_answers_of_a_variant_are_made_by_another_command(tmp_path, root, folder, command):
    with pytest.raises(ResultsError, match=f"answers.jsonl: no such file in .*; `{command}` makes it"):
        run_files.read_answers("smoke", [0], tmp_path / root, folder=folder)


def test_a_gallery_comes_with_the_files_of_its_photos(tmp_path):
    folder = run_files.seed_folder(tmp_path, "smoke", "end_to_end", 0) / "gallery" / "epoch-1"
    rows = [{"photo_id": "1", "gold": "a kite", "caption": None, "drawn": False}, {"photo_id": "2", "gold": "a hat", "caption": "a cap", "drawn": True}]
    folder.mkdir(parents=True)
    (folder / "gallery.json").write_text(json.dumps(rows))
    with pytest.raises(ResultsError, match=rf"1\.png: no such file; delete {folder.parents[1]} and make it again with `e2e train"):
        run_files.read_gallery(folder)
    Image.new("RGB", (2, 2)).save(folder / "1.png")
    assert [row["image"] for row in run_files.read_gallery(folder)] == [None, folder / "1.png"]
    for damaged, message in (([{"photo_id": "1"}], "row 1, field 'gold': expected str, found None"), ({}, "expected a list, found dict")):
        (folder / "gallery.json").write_text(json.dumps(damaged))
        with pytest.raises(ResultsError, match=rf"gallery\.json: {message}; delete {folder.parents[1]} and"):
            run_files.read_gallery(folder)


def test_what_a_run_says_once_done_is_read_or_named(tmp_path):
    folder = run_files.seed_folder(tmp_path, "smoke", "divter", 0)
    assert run_files.read_done(folder) is None
    config = dataclasses.asdict(load("smoke"))
    lacking = {**config, "train": {key: value for key, value in config["train"].items() if key != "patience"}}
    write(folder / "done.json", {"config": lacking, "steps": 3})
    assert run_files.read_done(folder) == {"config": config, "steps": 3}
    for content, message in ((b'{"config": ', "damaged, it is not readable JSON"), (b"[]", "expected an object, found list"),
                             (b"{}", "field 'config': expected an object, found NoneType"),
                             (b'{"config": {"data": []}}', r"section .data. of a saved configuration is \[\], no object")):
        (folder / "done.json").write_bytes(content)
        with pytest.raises(ResultsError, match=rf"done\.json: {message}.*; delete {folder} and make it again with `e2e train --profile smoke --seeds 0 --system divter`"):
            run_files.read_done(folder)


def test_the_usual_system_is_the_aligned_one_if_it_is_trained(tmp_path):
    assert run_files.usual_system("mini", 0, tmp_path) == "end_to_end"
    for name in ("end_to_end", "end_to_end_aligned"):
        folder = tmp_path / "mini" / name / "seed-0"
        folder.mkdir(parents=True)
        assert run_files.usual_system("mini", 0, tmp_path) == "end_to_end"  # it is not done yet
        (folder / "done.json").write_text("{}")
        assert run_files.usual_system("mini", 0, tmp_path) == name and run_files.usual_system("mini", 1, tmp_path) == "end_to_end"
        assert run_files.usual_system("smoke", 0, tmp_path) == "end_to_end"
