"""`e2e chat --web` hands the page what `e2e chat` would answer with."""

import pytest
from trained_runs import save_trained
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib import config as settings
from e2e_lib.training.export import export
from e2e_lib.window import page


@pytest.fixture
def chat(shipped, tmp_path, monkeypatch):
    """Runs the command in an empty folder; returns its result and what the page was served with."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        served = []
        monkeypatch.setattr(page, "serve", lambda partners, say, *rest: served.append((partners, *rest)))
        return CliRunner().invoke(cli.app, ["chat", *arguments]), served
    return invoke


def test_the_page_is_this_machines_alone_unless_it_is_told_otherwise(chat):
    done, [(partners, seed, host, port)] = chat("--profile", "smoke", "--web")
    assert done.exit_code == 0 and (seed, host, port) == (0, "127.0.0.1", 5006)
    assert partners.first.name == "end_to_end, as it ships" and "the parts as they ship" in done.stdout
    _, [(_, seed, host, port)] = chat("--profile", "smoke", "--web", "--seed", "4", "--host", "198.51.100.7", "--port", "80")
    assert (seed, host, port) == (4, "198.51.100.7", 80)


def test_a_trained_run_and_an_export_answer_first(chat, tmp_path):
    folder = save_trained(settings.load("smoke"), 0)
    _, [(partners, *_)] = chat("--profile", "smoke", "--web")
    assert partners.names == ["end_to_end, trained (seed 0)", "end_to_end, as it ships", "pipeline, as it ships",
                              "divter, as it ships"]
    export(folder, tmp_path / "mine", False, lambda line: None)
    _, [(partners, *_)] = chat("--from", str(tmp_path / "mine"), "--web")
    assert partners.names == ["end_to_end, exported (mine)", "end_to_end, as it ships", "pipeline, as it ships",
                              "divter, as it ships", "end_to_end, trained (seed 0)"]


@pytest.mark.parametrize("option", [("--port", "80"), ("--host", "localhost")])
def test_options_of_the_page_need_the_page(chat, option):
    done, served = chat("--profile", "smoke", *option)
    assert done.exit_code == 1 and "add --web" in done.stderr and not served
