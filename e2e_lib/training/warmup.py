"""The projection's warm-up (section 2.3): it alone learns, on captions of and replies to context photos.

A new projection gives a language model nothing that it could read, and joint training would first spoil what
the model can do. So, as in LLaVA's first stage, language model, ViT and Q-Former are frozen here, there is no
image loss, and the projection has a learning rate of its own.

``runs/warmup/PROFILE`` holds ``latest``, a checkpoint to go on from, and at the end ``projection``, the
folder that ``model.projection`` takes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from e2e_lib.config import Config, check_seed
from e2e_lib.corpora import DATA, prepare
from e2e_lib.data.collate import Batch, Collator, PromptFormatter
from e2e_lib.data.dialogue import DataError, Turn
from e2e_lib.data.examples import Example, split_examples
from e2e_lib.models.adapters import FORMATS, in_autocast
from e2e_lib.models.end_to_end import merge_image_embeddings
from e2e_lib.models.language import load_language, response_logits
from e2e_lib.models.losses import response_loss
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.projection import fit_projection, save_projection
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import generator, seeded
from e2e_lib.repro.run_files import NUMBER, RUNS
from e2e_lib.training import checkpoints

Echo = Callable[[str], None]
QUESTION = "What does the photo show?"
SAVE_SECONDS, REPORT_SECONDS = 60.0, 15.0  # between two checkpoints and two reports
STATE = {"step": int, "seed": int, "seconds": NUMBER, "losses": [NUMBER], "scaler": dict, "made": dict}


def warm_up(config: Config, seed: int = 0, echo: Echo = print, *, root: Path = RUNS,
            data_root: Path = DATA) -> Path:
    """Trains the projection of a configuration, goes on with it, or finds it done; returns its folder.

    Raises CheckpointError where there is one of other settings, or a damaged one; DataError where no photo of
    the training split stands in a context; and files.SaveError when a checkpoint cannot be written.
    """
    folder = root / "warmup" / config.profile
    made = _made_with(config, check_seed(seed))
    if (folder / "projection").is_dir():
        done = files.read_json(folder / "projection" / "projection.json", "e2e warmup", {"made": dict},
                               remove=folder)
        _check_same(done["made"], made, folder)
        echo(f"{folder / 'projection'}: the projection is trained already")
        return folder / "projection"
    run = _Warmup(config, seed, folder, made, echo, data_root)
    run.resume()
    run.run()
    return save_projection(folder / "projection", run.projection, {
        "language": config.model.language, "perceptron": config.model.perceptron, "seed": seed,
        "steps": config.warmup.steps, "losses": run.state["losses"], "seconds": run.state["seconds"],
        "made": made})


def warmup_examples(examples: Sequence[Example]) -> list[Example]:
    """What the projection learns from: each reply of text alone to a turn with photos, which is its whole
    context, and for each photo a question whose answer is its caption."""
    captions = [Example(example.dialogue_id, example.index,
                        (Turn(1 - turn.speaker, QUESTION, (photo,)),), Turn(turn.speaker, photo.caption))
                for example in examples for turn in (example.response,) for photo in turn.photos]
    replies = [replace(example, context=example.context[-1:]) for example in examples
               if example.context[-1].photos and example.response.text and not example.response.photos]
    return captions + replies


class _Warmup:
    """A warm-up: its parts, and ``state``, which a checkpoint saves."""

    def __init__(self, config: Config, seed: int, folder: Path, made: dict[str, Any], echo: Echo,
                 data_root: Path) -> None:
        self.settings, self.seed, self.folder, self.made, self.echo = config.warmup, seed, folder, made, echo
        parts, frozen = config.model, getattr(torch, config.model.frozen)
        self.dtype = FORMATS[config.train.mixed_precision]  # of the forward pass
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with seeded(seed, "new weights"):  # the same rows of new tokens as in joint training
            self.language, tokenizer = load_language(parts.language, lora=parts.language_lora,
                                                     frozen=frozen, chat_format=parts.chat_format,
                                                     bits=parts.language_bits, compute=self.dtype)
        width = self.language.config.hidden_size
        self.perceptron = load_perceptron(parts.perceptron, width, "projection", frozen)
        fit_projection(self.perceptron, width)
        self.language.requires_grad_(False).eval().to(device)
        self.perceptron.eval().to(device)  # without dropout, so that a step depends on its number alone
        self.formatter = PromptFormatter(tokenizer, self.perceptron.queries, config.data.max_context)
        corpus = prepare(config, echo, data_root)
        examples, store = split_examples(corpus, "train", echo, config.data.real_only)
        self.examples = warmup_examples(examples)
        if not self.examples:
            raise DataError(f"{corpus}: no training dialogue shares a photo, from which a projection could "
                            "learn")
        self.collate = Collator(self.formatter, store)
        weights = list(self.projection.parameters())
        self.optimizer = torch.optim.AdamW(weights, config.warmup.learning_rate, weight_decay=0.0)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": []}
        self.device = device

    @property
    def projection(self) -> nn.Linear:
        """The only part that learns."""
        return self.perceptron.language_projection

    def batch(self, step: int) -> Batch:
        """The examples of a step, which depend on the seed and on it alone."""
        rng = generator(self.seed, "warmup", step)
        chosen = torch.randint(len(self.examples), (self.settings.batch_size,), generator=rng)
        return self.collate([self.examples[i] for i in chosen]).to(self.device)

    def loss(self, batch: Batch) -> Tensor:
        """Eq. 2 alone."""
        words = self.language.get_input_embeddings()(batch.input_ids)  # (B, T, D)
        with in_autocast(self.language, self.dtype):
            if batch.photos:
                queries = self.perceptron(batch.photos)  # (P, Q, D)
                is_image = batch.input_ids == self.formatter.image_token_id
                words = merge_image_embeddings(words, is_image, queries)
            return response_loss(response_logits(self.language, words, batch), batch)

    def rate(self, step: int) -> float:
        """The learning rate: a rise over 3 % of the steps, then a cosine to zero."""
        share = step / self.settings.steps
        return self.settings.learning_rate * min((step + 1) / (0.03 * self.settings.steps + 1),
                                                 0.5 + 0.5 * math.cos(math.pi * share))

    def run(self) -> None:
        """Trains what is left, saving about once a minute."""
        start = last_save = last_report = time.monotonic()
        before, first, steps = self.state["seconds"], self.state["step"], self.settings.steps
        for step in range(first, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step)
            loss = self.loss(self.batch(step))
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimizer)
            self.scaler.update()
            now = time.monotonic()
            self.state |= {"step": step + 1, "seconds": before + now - start,
                           "losses": [*self.state["losses"], loss.item()]}
            if not math.isfinite(loss.item()):
                raise CheckpointError(f"the loss of warm-up step {step} is not finite; lower "
                                      f"warmup.learning_rate (now {self.settings.learning_rate:g})")
            if now - last_report > REPORT_SECONDS or step + 1 == steps:
                left = (now - start) / (step + 1 - first) * (steps - step - 1)
                self.echo(f"warm-up: step {step + 1:,} of {steps:,}, loss "
                          f"{fmean(self.state['losses'][-20:]):.3f}, about {left:.0f} s left")
                last_report = now
            if now - last_save > SAVE_SECONDS:
                self.save()
                last_save = now

    def save(self) -> None:
        """Writes ``latest``, from which the warm-up goes on exactly."""
        checkpoints.save(self.folder / "latest", self.projection.state_dict(), {
            **self.state, "seed": self.seed, "made": self.made, "scaler": self.scaler.state_dict()},
            self.optimizer)

    def resume(self) -> None:
        """Goes on from ``latest``, if there is one."""
        if not checkpoints.exists(self.folder / "latest"):
            return
        weights, state = checkpoints.load(self.folder / "latest", optimizer=self.optimizer, shape=STATE)
        _check_same(state["made"], self.made, self.folder)
        self.projection.load_state_dict(weights)
        self.scaler.load_state_dict(state["scaler"])
        self.state = {key: state[key] for key in self.state}
        self.echo(f"warm-up: going on after step {self.state['step']}")


def _made_with(config: Config, seed: int) -> dict[str, Any]:
    """What decides a warmed-up projection."""
    parts = ("language", "perceptron", "frozen", "chat_format")
    data = {name: value for name, value in asdict(config.data).items() if name != "workers"}
    return {"seed": seed, **{f"warmup.{name}": value for name, value in asdict(config.warmup).items()},
            "train.mixed_precision": config.train.mixed_precision,
            **{f"model.{name}": getattr(config.model, name) for name in parts},
            **{f"data.{name}": value for name, value in data.items()}}


def _check_same(there: dict[str, Any], here: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError naming what differs from the settings that a warm-up was made with."""
    if different := checkpoints.differences(there, here):
        raise CheckpointError(f"the warm-up in {folder} is of other settings ({different}); use the same, or "
                              "remove the folder to train anew")
