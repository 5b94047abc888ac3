"""The training loop that all parts share, and the photos they learn from."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from e2e_lib.data.minichat.chats import sample_scene
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene, render_photos
from e2e_lib.repro import files
from e2e_lib.repro.randomness import generator, python_random, seed_of
from e2e_lib.training import checkpoints

Echo = Callable[[str], None]


def fit(name: str, modules: nn.Module, loss_of: Callable[[torch.Generator], Tensor], *, steps: int, learning_rate: float,
        seed: int, work: Path, echo: Echo, save_seconds: float = 60.0) -> None:
    """Trains ``modules`` for ``steps`` steps of AdamW (3 % warm-up, then a cosine to zero), resuming from ``work``/``name``.

    ``loss_of`` gets a generator that depends on the step alone, so an interrupted run ends where an uninterrupted one does.
    """
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / (0.03 * steps + 1), 0.5 + 0.5 * np.cos(np.pi * k / steps)))
    folder, first, seconds = work / name, 0, 0.0
    if checkpoints.exists(folder):
        weights, state = checkpoints.load(folder, optimizer=optimizer)
        if (state["steps"], state["seed"]) != (steps, seed):
            raise files.CheckpointError(f"{folder} was begun with {state['steps']} steps and seed {state['seed']}, not {steps} and {seed}; "
                                              "remove it to start again")
        modules.load_state_dict(weights)
        first, seconds = state["step"], state["seconds"]
        schedule.load_state_dict(state["schedule"])
    modules.train()
    began = saved = shown = time.monotonic()

    def save(step: int) -> None:
        checkpoints.save(folder, modules.state_dict(), {"step": step, "steps": steps, "seed": seed, "schedule": schedule.state_dict(),
                                                        "seconds": seconds + time.monotonic() - began}, optimizer)

    for step in range(first, steps):
        loss = loss_of(generator(seed, name, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        now = time.monotonic()
        if now - shown > 15 or step + 1 == steps:
            left = (now - began) / (step + 1 - first) * (steps - step - 1)
            echo(f"{name}: step {step + 1:,} of {steps:,}, loss {loss.item():.4f}, about {left / 60:.0f} min left")
            shown = now
        if now - saved > save_seconds and step + 1 < steps:
            save(step + 1)
            saved = now
    if first < steps:
        save(steps)
    modules.eval()


def photo_pool(count: int, *key: Any, every_triple: bool = False) -> tuple[Tensor, list[Scene]]:
    """``count`` photos (N, 3, 64, 64) uint8 and their scenes; without held-out triples unless ``every_triple``."""
    rng, scenes = python_random(*key), []
    for _ in range(count):
        scene = sample_scene(rng, "train")
        if every_triple:
            scene = replace(scene, **{name: rng.choice(ATTRIBUTES[name]) for name in ("thing", "colour", "place")})
        scenes.append(scene)
    return render_photos(scenes, [seed_of(*key, i) for i in range(count)]), scenes


def pick(count: int, batch: int, rng: torch.Generator) -> Tensor:
    return torch.randint(count, (batch,), generator=rng)
