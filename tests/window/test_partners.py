"""What a window offers: what ships, every trained run that is there, an export; each loaded when it is asked for."""

import dataclasses
import gc

import pytest
from trained_runs import save_trained

from e2e_lib import config as settings
from e2e_lib.config import ConfigError, Inference
from e2e_lib.repro.files import CheckpointError
from e2e_lib.training.loop import load_trained
from e2e_lib.window.partners import Answerer, Partners, at_temperature, usual_temperature


@pytest.fixture
def first(systems):
    return Answerer("the export at ./x", systems["end_to_end"], Inference())


def test_what_ships_and_trained_runs_are_offered(config, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = settings.replace(config, "model.system", "pipeline")
    for own, seed in [(pipeline, 3), (config, 10), (config, 2)]:
        save_trained(own, seed)
    for name in ("end_to_end/seed-07", "end_to_end/seed-x", "other/seed-0"):
        (tmp_path / "runs" / config.profile / name).mkdir(parents=True)
        (tmp_path / "runs" / config.profile / name / "done.json").touch()
    (tmp_path / "runs" / config.profile / "divter" / "seed-0").mkdir(parents=True)  # not finished
    partners = Partners(first, config)
    assert partners.names == [
        "the export at ./x", "end_to_end, as it ships", "pipeline, as it ships", "divter, as it ships",
        "end_to_end, trained (seed 2)", "end_to_end, trained (seed 10)", "pipeline, trained (seed 3)"]
    trained = partners.get("pipeline, trained (seed 3)")
    assert all(a.equal(b) for a, b in zip(trained.model.state_dict().values(), load_trained(pipeline, 3).state_dict().values(),
                                          strict=True))
    assert partners.get("pipeline, trained (seed 3)") is trained and partners.get(first.name) is first
    assert trained.settings == config.inference


def test_the_first_is_not_offered_twice(systems, config, tmp_path):
    shipped = Answerer("end_to_end, as it ships", systems["end_to_end"], config.inference)
    assert Partners(shipped, config, tmp_path).names == ["end_to_end, as it ships", "pipeline, as it ships", "divter, as it ships"]


def test_one_that_nobody_talks_to_is_let_go(first, config, tmp_path):
    partners = Partners(first, config, tmp_path)
    held = partners.get("end_to_end, as it ships")
    assert len(partners._loaded) == 1
    del held
    gc.collect()
    assert len(partners._loaded) == 0


def test_what_cannot_be_loaded_says_why(first, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_trained(config, 0)
    partners = Partners(first, settings.replace(config, "train.learning_rate", 0.5))
    with pytest.raises(CheckpointError, match="learning_rate"):
        partners.get("end_to_end, trained (seed 0)")
    for file in (folder / "best").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError):
        Partners(first, config).get("end_to_end, trained (seed 0)")
    with pytest.raises(ConfigError, match="no system 'nobody'; there are the export"):
        partners.get("nobody")


def test_a_temperature_samples_and_none_searches():
    usual = Inference()
    assert usual_temperature(usual) == 0 and usual_temperature(dataclasses.replace(usual, chat_num_beams=1)) == 0.7
    assert usual_temperature(dataclasses.replace(usual, temperature=0.3)) == 0.3
    sampling = at_temperature(usual, 1.2)
    assert (sampling.do_sample, sampling.temperature, sampling.num_beams) == (True, 1.2, 1)
    assert at_temperature(usual, 0).num_beams == usual.chat_num_beams == 8
    assert at_temperature(dataclasses.replace(usual, num_beams=3), 0).num_beams == 3  # as it was set
    searching = at_temperature(dataclasses.replace(usual, temperature=0.3), 0)
    assert (searching.do_sample, searching.num_beams) == (False, 8)
