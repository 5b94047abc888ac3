"""The training loop that all parts share, and what several recipes need: photos, labels and losses."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e2e_lib.config import Config
from e2e_lib.data.minichat.chats import sample_scene
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene, render_photos
from e2e_lib.evaluation.minichat import CORE_ATTRIBUTES
from e2e_lib.repro import files, randomness
from e2e_lib.training import checkpoints

# The setting of each stage's steps. A stage's name is its checkpoint's folder and part of every step's
# seed, so another name gives other weights: the stages keep those with which the shipped parts were made.
STEPS = {
    "scene_reader": "scene_classifier_steps", "autoencoder": "autoencoder_steps", "decoder": "decoder_steps",
    "language": "language_steps", "answers": "sft_steps", "sight": "vision_steps",
    "perceptron": "perceptron_steps", "looking": "visual_instruction_steps",
    "text_encoder": "text_encoder_steps", "generator": "generator_steps", "light": "high_noise_steps",
    "captioner": "captioner_steps", "dialogue": "language_steps", "dialogue_answers": "sft_steps",
    "vqvae": "vqvae_steps", "translator": "translator_steps",
}
SAVE_SECONDS, REPORT_SECONDS = 60.0, 15.0  # between two checkpoints and two reports of a stage


@dataclass(frozen=True)
class Pretraining:
    """The settings, a folder of checkpoints (``work``), one of finished parts, and where to report."""

    config: Config
    work: Path
    parts: Path
    echo: Callable[[str], None]

    @property
    def seed(self) -> int:
        return self.config.pretrain.seed

    def fit(self, name: str, modules: nn.Module, loss_of: Callable[[torch.Generator], Tensor],
            learning_rate: float) -> None:
        """Trains a stage with AdamW (3 % warm-up, then a cosine to zero); resumes from ``work``/``name``.

        ``loss_of`` gets a generator that depends on the step alone, so an interrupted stage ends where an
        uninterrupted one does. Raises CheckpointError for a checkpoint of another length or seed.
        """
        steps = getattr(self.config.pretrain, STEPS[name])
        parameters = [p for p in modules.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: min((k + 1) / (0.03 * steps + 1), 0.5 + 0.5 * np.cos(np.pi * k / steps)))
        folder, first, seconds = self.work / name, 0, 0.0
        if checkpoints.exists(folder):
            weights, state = checkpoints.load(folder, optimizer=optimizer)
            if (state["steps"], state["seed"]) != (steps, self.seed):
                raise files.CheckpointError(
                    f"{folder} was begun with {state['steps']} steps and seed {state['seed']}, not {steps} "
                    f"and {self.seed}; remove it to start again")
            modules.load_state_dict(weights)
            first, seconds = state["step"], state["seconds"]
            schedule.load_state_dict(state["schedule"])
        modules.train()
        start = last_save = last_report = time.monotonic()

        for step in range(first, steps):
            loss = loss_of(randomness.generator(self.seed, name, step))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            now, done = time.monotonic(), step + 1
            if now - last_report > REPORT_SECONDS or done == steps:
                minutes = (now - start) / (done - first) * (steps - done) / 60
                self.echo(f"{name}: step {done:,} of {steps:,}, loss {loss.item():.4f}, "
                          f"about {minutes:.0f} min left")
                last_report = now
            if now - last_save > SAVE_SECONDS or done == steps:
                state = {"step": done, "steps": steps, "seed": self.seed, "seconds": seconds + now - start,
                         "schedule": schedule.state_dict()}
                checkpoints.save(folder, modules.state_dict(), state, optimizer)
                last_save = now
        modules.eval()


def sample_photos(count: int, *key: object, every_triple: bool = False) -> tuple[Tensor, list[Scene]]:
    """Photos (count, 3, 64, 64), uint8, and their scenes; of held-out triples only with ``every_triple``."""
    rng, scenes = randomness.python_random(*key), []
    for _ in range(count):
        scene = sample_scene(rng, "train")
        if every_triple:
            scene = replace(scene, **{name: rng.choice(ATTRIBUTES[name]) for name in CORE_ATTRIBUTES})
        scenes.append(scene)
    return render_photos(scenes, [randomness.seed_of(*key, i) for i in range(count)]), scenes


def attribute_loss(logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """The sum of the cross-entropies: logits (N, values) of each attribute and labels (N, attributes)."""
    losses = [F.cross_entropy(logits[name], labels[:, i]) for i, name in enumerate(ATTRIBUTES)]
    return sum(losses, torch.zeros(()))


class Probes(nn.ModuleDict):
    """A linear classifier of each attribute, on vectors of ``width`` numbers."""

    def __init__(self, width: int) -> None:
        super().__init__({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """``attribute_loss`` for the mean over T of hidden states (N, T, D) and labels (N, attributes)."""
        mean = hidden.mean(1)  # (N, D)
        return attribute_loss({name: probe(mean) for name, probe in self.items()}, labels)
