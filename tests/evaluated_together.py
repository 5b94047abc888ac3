"""Evaluation by one of two processes, which must be able to import it."""

import os

import torch

from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.training.processes import together


def evaluate_together(rank, config, folder):
    """What each of two processes does in a folder that has a trained run: evaluates it, as the command does."""
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    # They meet by a file instead of a port, which another test could have.
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    with together():
        evaluate(config, 0, lambda _: None)
    os._exit(0)  # and not into a meeting at the end, which the first one reaches later
