"""Runs as training leaves them, for tests of what is done with a run: made at once, without training anything."""


import torch

from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import build
from e2e_lib.repro import files
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training import checkpoints


def save_trained(config, seed=0, weights_of=None):
    """Saves the run of ``config`` and ``seed`` below the current folder, with weights of its own; returns its folder.

    They are larger than those that it began with, so that answers depend on contexts and not on rounding; ``weights_of``
    gives it another seed's."""
    rng, folder = generator("trained", seed if weights_of is None else weights_of), run_folder(config, seed)
    weights = {name: 8 * tensor + 0.02 * torch.randn(tensor.shape, generator=rng) if tensor.ndim > 1 else tensor
               for name, tensor in trainable_weights(build(config)).items()}
    checkpoints.save(folder / "best", weights, {**checkpoints.made_with(config), "seed": seed, "epoch": 1})
    files.write_json(folder / "done.json", {**checkpoints.made_with(config), "seed": seed, "steps": 7, "epochs": 1, "seconds": 9.5,
                                            "best": {"epoch": 1, "score": -0.5}})
    return folder
