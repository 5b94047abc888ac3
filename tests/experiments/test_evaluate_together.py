"""Two processes share out the test set, and leave the answers and the results file that one process leaves."""

import json
import multiprocessing
import shutil

from evaluated_together import evaluate_together
from trained_runs import save_trained

from e2e_lib.config import replace
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.repro import files
from e2e_lib.repro.run_files import read_answers, run_folder


def test_two_processes_answer_the_test_set_as_one_does(config, shipped, tmp_path, monkeypatch):
    # Seven contexts in batches of two: in the last round there is one, and the second process has none.
    config = replace(replace(config, "evaluation.max_text_only_examples", 2), "inference.batch_size", 2)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    monkeypatch.chdir(one)
    save_trained(config)
    shutil.copytree(one, two)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["e2e_lib.experiments.evaluate"])
    processes = [context.Process(target=evaluate_together, args=(rank, config, two)) for rank in (0, 1)]
    for process in processes:
        process.start()
    alone = json.loads(evaluate(config, 0, lambda _: None).read_text())
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    made = [files.sha256_folder(folder / run_folder(config, 0) / "answers") for folder in (one, two)]
    assert made[0] == made[1] and len(read_answers("smoke", [0])[0]) == alone["metrics"]["n"]["examples"] == 7
    results = [path for path in (two / "results").rglob("*.json")]
    found, = (json.loads(path.read_text()) for path in results)
    for run in (alone, found):
        del run["provenance"]["evaluation"], run["provenance"]["time"]
    assert found == alone
