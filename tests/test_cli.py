import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.config import RENAMED

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def test_help_names_every_command_and_each_explains_its_options():
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert names == ["reproduce", "data", "pretrain", "train", "evaluate", "compare", "ablate", "figures", "readme", "notebooks",
                     "chat", "config", "vocabularies", "doctor"]
    page = run("--help").stdout
    for name in names:
        assert re.search(rf"^  {name} +\w", page, re.M) and run(name, "--help").exit_code == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["config", "--profile", "mnii"], "did you mean 'mini'"),
    (["config", "--set", "train.learning_rat=1"], "did you mean 'train.learning_rate'"),
    (["config", "--set", "train.learning_rate=7"], "a number from"),
    (["config", "--set", "inference.beams=2"], "is called 'inference.num_beams' now"),
    (["train", "--system", "pipe"], "one of end_to_end, pipeline, divter"),
    (["ablate", "--variants", "maps", "spam"], "'spam' is unknown"),
    (["evaluate", "--profile", "smoke", "--seeds", "987654"], "there is no checkpoint"),
    (["vocabularies", "--captions", "absent.txt"], "absent.txt"),
])
def test_a_mistake_is_one_clear_message_and_exit_code_1(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.strip().startswith(f"e2e {arguments[0]}: ")


@pytest.mark.parametrize("command", ["data", "pretrain", "train", "evaluate", "compare", "ablate"])
@pytest.mark.parametrize("profile", ["small", "paper"])
def test_a_profile_whose_dialogues_are_missing_stops_at_once(command, profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(command, "--profile", profile)
    assert result.exit_code == 1 and "data.name = 'photochat': there is no such corpus" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["train", "--epochs", "3"], ["bench"], ["train", "--seeds"], ["train", "--seeds", "one"],
                                       ["train", "--seeds", "-1"]])
def test_misuse_is_explained_and_exits_with_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and "Error: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["reproduce", "figures", "readme", "notebooks"])
def test_commands_that_read_the_repository_name_its_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(command)
    assert result.exit_code == 1 and f"cd {ROOT}" in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--profile", "mini"], [0, 1, 2]), (["--profile", "smoke"], [0]), (["--seeds", "4", "5", "--set", "train.epochs=1"], [4, 5]),
    (["--seeds", "4", "--seeds", "5"], [4, 5])])
def test_seeds_are_listed_or_those_of_the_profile(arguments, expected, monkeypatch):
    seeds = []
    monkeypatch.setattr("e2e_lib.training.loop.train", lambda config, seed, echo: seeds.append(seed))
    assert run("train", *arguments).exit_code == 0 and seeds == expected


def test_system_is_a_short_form_of_a_setting(monkeypatch):
    systems = []
    monkeypatch.setattr("e2e_lib.training.loop.train", lambda config, seed, echo: systems.append(config.model.system))
    for arguments in (["--system", "divter"], ["--set", "model.system=pipeline"], []):
        assert run("train", "--seeds", "0", *arguments).exit_code == 0
    assert systems == ["divter", "pipeline", "end_to_end"]


def test_config_prints_every_setting_with_its_value():
    page = run("config", "--set", "train.learning_rate=1e-4", "--set", "bridge.noise=false").stdout
    assert "train.learning_rate = 0.0001" in page and "bridge.noise = False" in page and "one of mean, sum" in page
    assert not [old for old in RENAMED if f"\n{old} = " in page]


def test_an_interrupt_says_that_nothing_is_lost(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("e2e_lib.repro.provenance.library_versions", interrupted)
    result = run("doctor")
    assert result.exit_code == 130 and "goes on from there" in result.stderr


def test_an_error_that_is_not_the_users_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("e2e_lib.repro.provenance.library_versions", lambda: 1 / 0)
    assert isinstance(run("doctor").exception, ZeroDivisionError)


def test_the_module_runs_as_a_program_and_starts_without_torch():
    script = "import sys; from e2e_lib.__main__ import app; app(['config'], standalone_mode=False); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    done = subprocess.run([sys.executable, "-m", "e2e_lib", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "torch-fidelity" in done.stdout
