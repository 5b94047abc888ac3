"""A step is the same however it is cut: in one batch, in four, or in four of which two processes take two each."""

import dataclasses
import multiprocessing

import pytest
import torch
from cut_training import train_in_float64
from safetensors.torch import load_file

from e2e_lib.config import replace
from e2e_lib.corpora import prepare
from e2e_lib.repro.run_files import read_log, run_folder

STEPS = 10


def test_losses_gradients_and_weights_of_ten_steps_are_those_of_one_batch_however_they_are_cut(config, tmp_path):
    changes = {"epochs": STEPS, "epoch_examples": 16, "checkpoint_every": 99, "patience": 99, "log_every": 1, "warmup_steps": 2,
               "examples": "responses"}
    config = replace(config, "bridge.temperature_epochs", 0)  # τ is a batch's
    for key, value in changes.items():
        config = replace(config, f"train.{key}", value)
    data_root = tmp_path / "data"
    prepare(config, lambda _: None, data_root)
    cuts = {}
    for name, size, batches in (("one", 16, 1), ("four", 4, 4), ("two", 4, 2)):
        cuts[name] = dataclasses.replace(replace(replace(config, "train.batch_size", size), "train.gradient_accumulation_steps", batches),
                                         profile=name)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["e2e_lib.training.loop"])
    processes = [context.Process(target=train_in_float64, args=(cuts["two"], tmp_path, data_root, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for name in ("one", "four"):
        train_in_float64(cuts[name], tmp_path, data_root)
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    folders = [run_folder(cuts[name], 0, tmp_path) for name in cuts]
    logs = [[line for line in read_log(folder) if line["kind"] == "step"] for folder in folders]
    whole = load_file(folders[0] / "latest" / "model.safetensors")
    assert len(logs[0]) == STEPS and sum(line["image_loss"] is not None for line in logs[0]) > STEPS // 2
    for folder, log in zip(folders[1:], logs[1:], strict=True):
        for one, line in zip(logs[0], log, strict=True):
            for key in ("text_loss", "image_loss", "gradient_language", "gradient_perceptron", "gradient_unet", "gradient_language_from_image"):
                assert line[key] == (one[key] and pytest.approx(one[key], rel=1e-10)), (folder.parts[-3], one["step"], key)
        weights = load_file(folder / "latest" / "model.safetensors")
        assert weights.keys() == whole.keys() and {tensor.dtype for tensor in weights.values()} == {torch.float64}
        for name, tensor in weights.items():
            assert torch.allclose(tensor, whole[name], rtol=1e-10, atol=1e-10), (folder.parts[-3], name)
