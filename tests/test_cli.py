import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.config import RENAMED, load
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import build
from e2e_lib.repro import files
from e2e_lib.repro.run_files import run_folder
from e2e_lib.reproduce import NOTEBOOKS
from e2e_lib.training import checkpoints

ROOT = Path(__file__).parents[1]


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def test_help_names_every_command_and_each_explains_its_options():
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    names += [group.name for group in cli.app.registered_groups]
    assert names == ["reproduce", "pretrain", "warmup", "train", "evaluate", "compare", "ablate", "figures", "readme", "notebooks",
                     "chat", "export", "config", "plan", "cost", "vocabularies", "doctor", "data"]
    page = run("--help").stdout
    for name in names:
        assert re.search(rf"^  {name} +\w", page, re.M) and run(name, "--help").exit_code == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["config", "--profile", "mnii"], "did you mean 'mini'"),
    (["config", "--set", "train.learning_rat=1"], "did you mean 'train.learning_rate'"),
    (["config", "--set", "train.learning_rate=7"], "a number from"),
    (["config", "--set", "inference.beams=2"], "is called 'inference.num_beams' now"),
    (["train", "--system", "pipe"], "one of end_to_end, end_to_end_aligned, pipeline, divter"),
    (["ablate", "--variants", "maps", "spam"], "'spam' is unknown"),
    (["evaluate", "--profile", "smoke", "--seeds", "987654"], "there is no checkpoint"),
    (["vocabularies", "--captions", "absent.txt"], "absent.txt"),
    (["pretrain", "--profile", "smoke", "--out", "/dev/null/parts"], "could not save /dev/null/parts: Not a directory"),
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
    assert result.exit_code == 1 and "e2e data build photochat" in result.stderr
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


WITH_SEEDS = ["reproduce", "train", "evaluate", "compare", "ablate", "notebooks"]


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "99999999999999999999"])
@pytest.mark.parametrize("command", [*WITH_SEEDS, "figures", "chat"])
def test_a_seed_out_of_range_is_refused_before_any_work(command, seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(command, "--seed=" + seed if command == "chat" else "--seeds=" + seed)
    assert result.exit_code == 2 and "Invalid value for '--seed" in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*WITH_SEEDS, "chat", "data", "pretrain", "config"])
def test_the_corpus_has_the_same_range_of_seeds(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT if command in ("reproduce", "notebooks") else tmp_path)
    result = run(command, "--profile", "smoke", "--set", "data.seed=9223372036854775808")
    assert result.exit_code == 1 and "data.seed = '9223372036854775808' is not allowed" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_seed_given_twice_is_refused():
    result = run("train", "--seeds", "4", "5", "4")
    assert result.exit_code == 1 and "--seeds: 4 is given twice" in result.stderr


def test_figures_of_an_unknown_profile_are_refused_like_all_else():
    result = run("figures", "--profile", "mnii")
    assert result.exit_code == 1 and "did you mean 'mini'" in result.stderr


def test_another_checkout_is_not_this_one(tmp_path, monkeypatch):
    for name in ("e2e_lib", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    result = run("readme")
    assert result.exit_code == 1 and f"is not its root; go there first: cd {ROOT}" in result.stderr
    monkeypatch.setattr(cli, "ROOT", tmp_path / "site-packages")  # installed, not run from a checkout
    monkeypatch.chdir(tmp_path / "notebooks")
    assert "is not its root; go to the root of a clone of it first" in run("readme").stderr


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_cleans_up_like_an_interrupt(number, monkeypatch, tmp_path):
    def asked_to_end():
        with files.atomic_folder(tmp_path / "corpus"):
            os.kill(os.getpid(), number)

    monkeypatch.setattr("e2e_lib.repro.provenance.library_versions", asked_to_end)
    result = run("doctor")
    assert result.exit_code == 128 + number and "goes on from there" in result.stderr and not list(tmp_path.iterdir())
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_hangup_that_is_ignored_stays_so(monkeypatch):
    monkeypatch.setattr("e2e_lib.repro.provenance.library_versions", lambda: os.kill(os.getpid(), signal.SIGHUP) or {})
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run("doctor").exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_letters_gets_replacements(encoding):
    done = subprocess.run([sys.executable, "-m", "e2e_lib", "config"], cwd=ROOT, capture_output=True, timeout=60,
                          env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and b"    ?, the weight of the image loss in Eq. 13" in done.stdout
    failed = subprocess.run([sys.executable, "-m", "e2e_lib", "config", "--profile", "\u03bb"], cwd=ROOT, capture_output=True,
                            timeout=60, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert failed.returncode == 1 and b"is unknown; allowed: " in failed.stderr and b"Traceback" not in failed.stderr


def test_an_error_that_is_not_the_users_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("e2e_lib.repro.provenance.library_versions", lambda: 1 / 0)
    assert isinstance(run("doctor").exception, ZeroDivisionError)


def test_the_module_runs_as_a_program_and_starts_without_torch():
    script = "import sys; from e2e_lib.__main__ import app; app(['config'], standalone_mode=False); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60).returncode == 0
    done = subprocess.run([sys.executable, "-m", "e2e_lib", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "torch-fidelity" in done.stdout


@pytest.mark.parametrize(("arguments", "message"), [
    (["09"], "no notebook is called '09'; there are: 00_quickstart, 01_data"), (["03_vocab"], "did you mean '03_vocabulary_matrix'?"),
    (["02", "-p", "drawz=5"], "unknown parameter 'drawz' (value 5); did you mean 'draws'?; its cell"),
    (["02", "-p", "profile=smoke"], "parameter 'profile': profile, seeds and overrides are options of the command"),
    (["-p", "draws=5"], "parameters are those of one notebook: name it"), (["02", "-p", "draws"], "expected NAME=VALUE"),
    (["02", "--set", "train.epoch=3"], "did you mean 'train.epochs'")])
def test_a_notebook_or_parameter_that_is_not_there_is_one_clear_message(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("e2e_lib.repro.notebooks._run", lambda *_: pytest.fail("it ran"))
    result = run("notebooks", "--profile", "smoke", *arguments)
    assert result.exit_code == 1 and message in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_one_notebook_runs_with_settings_and_parameters_of_its_own(monkeypatch):
    ran = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("e2e_lib.repro.notebooks.run_notebooks", lambda paths, output, **options: ran.append((paths, output, options)) or [])
    assert run("notebooks", "2", "--profile", "smoke", "--set", "train.epochs=3", "-p", "draws=4000", "-p", "logits=[0, 1, 2]").exit_code == 0
    ((paths, output, options),) = ran
    assert paths == [Path("notebooks/02_straight_through_gumbel.ipynb")] and output == Path("results/smoke/notebooks")
    assert options["parameters"] == {"profile": "smoke", "seeds": [0], "overrides": ["train.epochs=3"], "draws": 4000, "logits": [0, 1, 2]}
    assert run("notebooks", "--profile", "smoke").exit_code == 0 and len(ran[1][0]) == len(NOTEBOOKS)


def typed(content, *arguments):
    return CliRunner().invoke(cli.app, ["chat", "--profile", "smoke", *arguments], input=content)


def test_a_chat_ends_with_its_input_whatever_bytes_that_has(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (b"Hi!\n", b"caf\xe9 \xff\n/quit\n", b""):
        result = typed(content, "--set", "inference.max_new_tokens=4")
        assert result.exit_code == 0 and result.stdout.count("partner:") == bool(content)
        assert "the parts as they ship (there is no checkpoint at runs/smoke/end_to_end/seed-0/best" in result.stdout


def test_a_chat_takes_the_trained_run_that_there_is(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    partners, config = [], load("smoke")
    monkeypatch.setattr("e2e_lib.inference.chat.chat_in_terminal", lambda partner, say: partners.append(partner))
    for seed in (0, 3):
        model = build(config)
        with torch.no_grad():
            model.language.model.norm.weight.fill_(1.5 + seed)
        checkpoints.save(run_folder(config, seed) / "best", trainable_weights(model), checkpoints.made_with(config))
    for arguments, scale, weights in (([], 1.5, "the trained run of seed 0"), (["--run", "3"], 4.5, "the trained run of seed 3"),
                                      (["--set", "data.max_context=99"], 1.0, r"parts as they ship \(the checkpoint at .* another")):
        result = typed(b"", *arguments)
        assert result.exit_code == 0 and re.search(f"end_to_end answers with .*{weights}", result.stdout)
        assert (partners[-1].model.language.model.norm.weight == scale).all()
        assert partners[-1].settings.num_beams == config.inference.chat_num_beams
    missing = typed(b"", "--run", "1")
    assert missing.exit_code == 1 and "there is no checkpoint at runs/smoke/end_to_end/seed-1/best" in missing.stderr
    typed(b"", "--seed", "8", "--set", "inference.temperature=1.5")
    assert partners[-1].settings.temperature == 1.5 and partners[-1].settings.num_beams == 1 and partners[-1].seed == 8


def test_an_interrupt_before_a_chat_begins_ends_it_politely(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("e2e_lib.models.systems.build", interrupted)
    result = typed(b"Hi!\n")
    assert result.exit_code == 0 and not result.output
