"""A training run that kills itself, for a process of its own, which must be able to import it."""

import os
import signal
from collections import Counter
from pathlib import Path

import torch

from e2e_lib.repro import files
from e2e_lib.training import checkpoints
from e2e_lib.training.loop import train


def train_in_process(config, root, data_root, kill=None):
    """What a process of its own does: trains, and kills itself in the ``call``-th checkpoint of ``kill``.

    Either half way into the weights, or between the two renames that put the checkpoint in its place.
    """
    torch.set_num_threads(1)
    where, call = kill or ("nowhere", 0)
    save_file, rename, calls = checkpoints.save_file, os.replace, Counter()

    def half_a_file(tensors, path):
        calls["save"] += 1
        save_file(tensors, path)
        if where == "weights" and calls["save"] == call:
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    def half_a_replacement(source, target):
        calls["replace"] += Path(source).name == "latest"
        if where == "renames" and calls["replace"] == call and Path(target).name == "latest":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    checkpoints.save_file, files.os.replace = half_a_file, half_a_replacement
    train(config, 0, lambda _: None, root=root, data_root=data_root)
