import json

import pytest

from e2e_lib.config import load, replace
from e2e_lib.repro import run_files
from e2e_lib.repro.results import ResultsError


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_profile_system_and_seed_has_its_own_folder(tmp_path):
    configs = [load("smoke"), load("mini"), replace(load("mini"), "model.system", "divter")]
    assert len({run_files.run_folder(config, seed, tmp_path) for config in configs for seed in (0, 1)}) == 6
    assert run_files.run_folder(configs[2], 1, tmp_path) == tmp_path / "mini" / "divter" / "seed-1"


def test_a_running_log_may_end_in_a_line_that_was_cut_off(tmp_path):
    folder = run_files.seed_folder(tmp_path, "smoke", "end_to_end", 0)
    assert run_files.read_log(folder) == []
    with open(write(folder / "log.jsonl", {"step": 1}, {"step": 2}), "a") as log:
        log.write('{"step": ')
    assert run_files.read_log(folder) == [{"step": 1}, {"step": 2}]
    with pytest.raises(ResultsError, match=r"log\.jsonl, row 3: damaged, .*make it again with `e2e train --profile smoke --system end_to_end`"):
        run_files.read_logs("smoke", [0], tmp_path)
    with pytest.raises(ResultsError, match=r"seed-7/log\.jsonl: no such file in .*; `e2e train --profile smoke --system end_to_end` makes it"):
        run_files.read_logs("smoke", [7], tmp_path)


def test_answers_come_with_the_file_of_their_drawn_photo(tmp_path):
    rows = [{"dialogue_id": "a", "index": 1, "text": "yes"}, {"dialogue_id": "a", "index": 3, "text": "look"}]
    folder = run_files.seed_folder(tmp_path, "smoke", "pipeline", 2) / "answers"
    write(folder / "answers.jsonl", *rows)
    write(folder / "details.jsonl", {"dialogue_id": "a", "index": 5, "text": "two", "right": True})
    (folder / "1.png").touch()
    answers = run_files.read_answers("smoke", [2], tmp_path, "pipeline")[2]
    assert answers == [{**rows[0], "image": None}, {**rows[1], "image": folder / "1.png"}]
    assert run_files.keyed(answers)["a", 3] is answers[1]
    assert run_files.read_details("smoke", [2], tmp_path, "pipeline")[2][0]["right"]
    with pytest.raises(ResultsError, match="`e2e evaluate --profile smoke --system divter` makes it"):
        run_files.read_answers("smoke", [2], tmp_path, "divter")
