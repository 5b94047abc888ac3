import json
import subprocess
import sys
from pathlib import Path

import pytest

from e2e_lib.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_help_names_every_command_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, (_, meaning, _) in COMMANDS.items():
        assert name in shown and meaning in shown


@pytest.mark.parametrize(("argv", "said"), [
    (["config", "--profile", "mnii"], "did you mean 'mini'"),
    (["config", "--set", "train.learning_rat=1"], "did you mean 'train.learning_rate'"),
    (["config", "--set", "train.learning_rate=7"], "a number from"),
    (["config", "--set", "bridge.pooling=max"], "one of mean, sum"),
    (["reproduce", "--profile", "paper"], "cannot run yet"),
    (["train", "--profile", "small"], "still lacks"),
    (["evaluate", "--profile", "smoke", "--seeds", "987654"], "there is no checkpoint"),
    (["ablate", "--variants", "spam"], "variant 'spam' is unknown; allowed: maps"),
    (["train", "--system", "pipe"], "one of end_to_end, pipeline, divter"),
    (["bench", "nothing", "--json"], "no benchmark is called nothing; there are: bridge"),
])
def test_a_users_mistake_is_one_clear_message_and_exit_code_1(argv: list[str], said: str, capsys: pytest.CaptureFixture[str],
                                                              tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_config_prints_every_setting_with_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--set", "train.learning_rate=1e-4"]) == 0
    shown = capsys.readouterr().out
    assert "train.learning_rate = 0.0001" in shown and "bridge.pooling = mean" in shown and "one of mean, sum" in shown


def test_an_interrupt_says_that_nothing_is_lost(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "doctor", (interrupted, "x", ()))
    assert main(["doctor"]) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_flags_of_a_benchmark_reach_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tests" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / f"bench_{name}.py").write_text(f"import json, sys\nprint(json.dumps({{'benchmark': '{name}', 'flags': sys.argv[1:]}}))\n")
    monkeypatch.setattr("e2e_lib.__main__.ROOT", tmp_path)
    assert main(["bench", "two", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"benchmark": "two", "flags": ["--json"]}]


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "e2e_lib", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "torch-fidelity" in done.stdout
