"""Training runs for processes of their own, which must be able to import them: one kills itself, two train together."""

import os
import signal
from collections import Counter
from pathlib import Path

import torch

from e2e_lib.models.captioner import Captioner
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


def train_together(rank, configs, root):
    """What each of two processes does: trains every configuration with the other, as `torchrun` starts them.

    Writes how many photos it captioned into ``root``.
    """
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    # They meet by a file instead of a port, which another test could have.
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
    generate, captioned = Captioner.generate_captions, []
    Captioner.generate_captions = lambda self, photos: captioned.append(len(photos)) or generate(self, photos)
    for config in configs:
        train(config, 0, lambda _: None, root=root, data_root=root / "data")
    (root / f"captioned-{rank}").write_text(str(sum(captioned)))
    torch.distributed.destroy_process_group()
