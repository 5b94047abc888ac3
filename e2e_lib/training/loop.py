"""Joint training (section 2.5, Eq. 13): one loop, which can be killed at any moment and resumes exactly.

A run's folder holds ``log.jsonl`` (what the notebook shows), ``latest`` (a checkpoint to go on from) and
``before`` (the one before it), ``best`` (the weights of the epoch with the best dev score), ``gallery`` (the
same dev chats answered after each epoch) and, once it ended, ``done.json``.
"""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import get_constant_schedule_with_warmup

from e2e_lib.config import Config, ConfigError
from e2e_lib.corpora import DATA, prepare
from e2e_lib.data.collate import Batch, Collator
from e2e_lib.models.adapters import checkpoint_activations
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import PhotoChatModel, build, origins, ready
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seed_of, seeded
from e2e_lib.repro.run_files import NUMBER, RUNS, read_done, read_log, run_folder
from e2e_lib.training import checkpoints
from e2e_lib.training.batches import Epochs, read_split, training_examples
from e2e_lib.training.dev import DevSet
from e2e_lib.training.precision import forget_others, gather_states, new_accelerator, new_optimizer
from e2e_lib.training.processes import from_first, together
from e2e_lib.training.saving import BEFORE, LATEST, alone_in, newest
from e2e_lib.training.sharding import Sharding
from e2e_lib.training.shares import gathered, whole
from e2e_lib.training.step import Step, mean, norm, temperature_at

Echo = Callable[[str], None]
STATE: dict[str, Any] = {  # what a checkpoint to go on from holds besides weights, see `files.find_problem`
    "epoch": int, "batch": int, "step": int, "best": dict | None, "since_best": int, "seconds": NUMBER,
    "config": {}, "schedule": {}, "scaler": dict | None, "examples?": int, "processes?": int}


def train(config: Config, seed: int, echo: Echo = print, *, root: Path = RUNS,
          data_root: Path = DATA) -> Path:
    """Trains the configuration's system, or resumes it, or finds it done; returns the run's folder.

    Raises CheckpointError if the folder holds a run of another configuration, or that and files.ResultsError
    if it is damaged; ConfigError for a setting that is more than a part can do, or if training diverges;
    files.SaveError when a checkpoint cannot be written (the last one is then untouched); and ProcessError
    where another run is at work in the folder, or another process of this one ended.
    """
    folder = run_folder(config, seed, root)
    if done := read_done(folder):
        checkpoints.check_made_with(done, config, folder)
        echo(f"seed {seed}: {folder} is trained already")
        return folder
    with together(), alone_in(folder):
        _Run(config, seed, folder, data_root, echo).train()
    return folder


def load_trained(config: Config, seed: int, *, root: Path = RUNS) -> PhotoChatModel:
    """The best weights of a finished run, ready to answer.

    Raises CheckpointError if the run is missing, damaged or of other settings.
    """
    folder = run_folder(config, seed, root)
    weights, state = checkpoints.load(folder / "best", shape={"config": {}})
    checkpoints.check_made_with(state, config, folder)
    model = build(config)
    checkpoints.load_run(model, weights, config, seed, folder)
    return ready(model)


def trained_or_shipped(config: Config, seed: int, *, root: Path = RUNS) -> tuple[PhotoChatModel, str]:
    """The trained system of a seed, or its pretrained parts where there is no such run, and which it is."""
    try:
        model = load_trained(config, seed, root=root)
        return model, f"weights after {'joint ' * model.joint}training, seed {seed}"
    except CheckpointError:
        return ready(build(config)), "parts as they ship"


class _Run:
    """One run: everything it is made of, and ``state``, which a checkpoint saves."""

    def __init__(self, config: Config, seed: int, folder: Path, data_root: Path, echo: Echo) -> None:
        self.config, self.seed, self.folder = config, seed, folder
        settings = config.train
        self.accelerator = new_accelerator(settings)
        self.echo = echo = echo if self.accelerator.is_main_process else lambda _: None
        with seeded(seed, "new weights"):  # rows for new tokens, if a tokenizer has to grow
            self.model = build(config).to(self.accelerator.device)  # where photos are captioned, too
        self.parts = origins(config)
        if settings.start_from:
            self.parts["start_from"] = checkpoints.start_from(self.model, config, seed)
        for part, source in self.parts.items():
            echo(f"{part}: {source}")
        if getattr(getattr(self.model, "perceptron", None), "projection_is_new", False):
            echo("projection: a new one, with random numbers; `e2e warmup` trains one to begin with "
                 "(model.projection)")
        if settings.checkpointing:
            unet = getattr(self.model.generator, "unet", None)  # which a translator has not
            checkpoint_activations(self.model.language, *([unet] if unet else []))
        with self.accelerator.main_process_first():
            corpus = prepare(config, echo, data_root)
            examples, store = read_split(config, corpus, "train", self.model, echo)
            groups = training_examples(examples, settings)
            dev, dev_store = read_split(config, corpus, "dev", self.model, echo)
        self.dev = DevSet(config, seed, dev, dev_store, folder / "gallery")
        self.epochs = Epochs(groups, settings, Collator(self.model.formatter, store), seed,
                             config.data.workers, self.accelerator.num_processes,
                             self.accelerator.process_index)
        self.sharding = Sharding(self.model, self.accelerator, settings)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Each part is clipped by itself, so that one with a large gradient takes nothing from the others.
        self.clipped = [[p for p in part.parameters() if p.requires_grad]
                        for part in self.model.trained_parts().values()]
        drawing = getattr(self.model.generator, self.model.generator.learner)
        optimizer = new_optimizer(parameters, settings, self.accelerator.device, set(drawing.parameters()),
                                  self.accelerator.num_processes)
        # Not prepared by accelerate, which would count a step once for each process.
        self.schedule = get_constant_schedule_with_warmup(optimizer, settings.warmup_steps)
        # Not in DDP, where the model itself adds up gradients.
        self.wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=self.sharding.is_full)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        # "batch" counts an epoch's rounds of batches, one for each process, and "examples" what was in them.
        self.state: dict[str, Any] = {"epoch": 0, "batch": 0, "examples": 0, "step": 0, "best": None,
                                      "since_best": 0, "seconds": 0.0}
        self.began = time.monotonic()

    def train(self) -> None:
        """All that is left to do."""
        self.resume()
        while self.state["epoch"] < self.config.train.epochs and (
                self.state["since_best"] < self.config.train.patience):
            began, examples = time.monotonic(), 0
            for step in self.steps():
                examples += self.epochs.examples_per_round * step.batches
                if step.logged:
                    self.log(step, examples, time.monotonic() - began)
                if self.state["step"] % self.config.train.checkpoint_every == 0:
                    self.save()
            self.score()
            self.save()
        self.finish()

    def steps(self) -> Iterator[Step]:
        """Trains on the rest of the epoch, step by step; ``state`` counts a step when it is yielded."""
        self.wrapped.train()
        epoch = self.state["epoch"]
        batches = self.epochs.batches(epoch, self.state["examples"])
        while members := list(itertools.islice(batches, self.config.train.gradient_accumulation_steps)):
            at = self.state["batch"]
            # Each loss is a mean over the whole step, however that is cut into batches and processes.
            sizes = torch.tensor([sum(int(batch.is_learnt.sum()) for batch, counts in members if counts),
                                  sum(len(batch.captions) for batch, counts in members if counts)])
            tokens, photos = self.accelerator.reduce(sizes.to(self.accelerator.device), "sum").tolist()
            step = Step(epoch * self.epochs.rounds + at, len(members), tokens, photos,
                        self.temperature_of(at), self.schedule.get_last_lr()[0],
                        self.state["step"] % self.config.train.log_every == 0)
            for k, (batch, counts) in enumerate(members):
                # Gradients of several processes are added up once, with those of the last batch.
                alone = k + 1 < len(members)
                with self.accelerator.no_sync(self.wrapped) if alone else contextlib.nullcontext():
                    self.train_on(batch, step, k, counts)
            self.finish_step(step)
            self.state["batch"] += len(members)
            done = self.state["examples"] + len(members) * self.epochs.examples_per_round
            self.state["examples"] = min(done, self.epochs.size)
            self.state["step"] += 1
            yield step

    def temperature_of(self, batch: int) -> float:
        """τ of a batch of the epoch."""
        return temperature_at(self.config.bridge, self.state["epoch"] + batch / self.epochs.rounds)

    def train_on(self, batch: Batch, step: Step, k: int, counts: bool) -> None:
        """Forward and backward for the step's batch number ``k``, with a loss of 0 if it does not count.

        Raises ConfigError.
        """
        number, epoch, batch = step.number + k, self.state["epoch"], batch.to(self.accelerator.device)
        # Dropout, where a model has it, draws from torch's global state: seeded by batch, resuming is exact.
        torch.manual_seed(seed_of(self.seed, "dropout", number, self.accelerator.process_index))
        try:
            output = self.wrapped(batch, temperature=self.temperature_of(self.state["batch"] + k),
                                  seed=seed_of(self.seed, "noise", epoch))
        except ValueError as error:  # the bridge's, of logits that are no numbers
            raise ConfigError(f"step {self.state['step']}: {error}") from error
        if step.logged:
            share = len(output.captions) / max(1, step.photos)
            from_image = self.sharding.image_gradients(output, share * self.scale, counts)
            step.add(batch, output, from_image, counts)
        # Over several processes, gradients are averaged: to add them up, each counts as often as there are.
        weight = self.accelerator.num_processes * counts
        self.accelerator.backward(output.part_of(step.tokens, step.photos) * weight)

    def finish_step(self, step: Step) -> None:
        """New weights from the gradients of a step's batches. Raises ConfigError."""
        self.sharding.drop_unused()
        if step.logged:
            if self.accelerator.num_processes > 1:
                step.add_up(self.model.language, self.accelerator.reduce)
            step.norms = self.gradient_norms(step)
        self.clip()
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad()

    def clip(self) -> None:
        """Clips the gradient of each part that has its own. Raises ConfigError if it is no number."""
        self.accelerator.unscale_gradients()  # once, however many parts are clipped
        for parameters in self.clipped:
            size = whole(torch.nn.utils.clip_grad_norm_(parameters, self.config.train.max_grad_norm))
            # A scaler leaves such a step out and goes on with smaller numbers.
            if not self.accelerator.scaler and not size.isfinite():
                settings = self.config.train
                raise ConfigError(f"the gradient of step {self.state['step']} is not finite; lower "
                                  f"train.learning_rate (now {settings.learning_rate:g}) or "
                                  f"train.image_loss_weight (now {settings.image_loss_weight:g})")

    @property
    def scale(self) -> float:
        """What fp16's losses are multiplied by, so that their gradients do not vanish; 1 in other formats."""
        return self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0

    def gradient_norms(self, step: Step) -> dict[str, float | None]:
        """The gradient norm of every trained part, as ``gradient_<part>``, and that from the image loss."""
        from_image = norm(step.from_image) / self.scale if step.from_image else None
        return {"gradient_language_from_image": from_image,
                **{f"gradient_{name}": norm([p.grad for p in part.parameters()]) / self.scale
                   for name, part in self.model.trained_parts().items()}}

    def log(self, step: Step, examples: int, seconds: float) -> None:
        """Writes a line of the log and says how far the run is: ``examples`` took the last ``seconds``."""
        epoch = step.number / self.epochs.rounds
        text_loss, image_loss = mean(step.text_losses), mean(step.image_losses)
        self._write_line({
            "kind": "step", "step": self.state["step"] - 1, "epoch": epoch, "text_loss": text_loss,
            "image_loss": image_loss, "temperature": step.temperature, **step.norms,
            "learning_rate": step.learning_rate, "captions_truncated": step.truncated,
            "contexts_cut": step.contexts_cut, "responses_cut": step.responses_cut,
            "examples_per_second": examples / seconds})
        batches_left = self.epochs.rounds * self.config.train.epochs - step.number - step.batches
        self.echo(f"seed {self.seed}: step {self.state['step']}, epoch {epoch:.2f} of "
                  f"{self.config.train.epochs}, text {text_loss:.3f}, image {image_loss or 0:.3f}, "
                  f"τ {step.temperature:.2f}, about "
                  f"{seconds / examples * self.epochs.examples_per_round * batches_left:.0f} s left")

    def score(self) -> None:
        """Ends the epoch: dev BLEU-2 and FID, the gallery, and the best weights so far."""
        epoch = self.state["epoch"] + 1
        scores = self.sharding.answer(lambda: self.dev.score(self.model, epoch))
        weights = gathered(trainable_weights(self.model))
        from_first(lambda: self._keep_best(scores, epoch, weights))
        # All must stop together, though their scores may differ in last digits.
        self.state = broadcast_object_list([self.state])[0]
        self.state |= {"epoch": epoch, "batch": 0, "examples": 0}

    def _keep_best(self, scores: dict[str, Any], epoch: int, weights: dict[str, Any]) -> None:
        score = scores["score"] if math.isfinite(scores["score"]) else None
        self._write_line({"kind": "dev", "step": self.state["step"], "epoch": epoch, "bleu2": scores["bleu2"],
                          "fid": scores["fid"], "score": score, "n": len(self.dev.examples)})
        fid = "none (fewer than two photos drawn)" if scores["fid"] is None else f"{scores['fid']:.2f}"
        self.echo(f"seed {self.seed}: after epoch {epoch}, dev BLEU-2 {scores['bleu2']:.2f}, FID {fid}")
        score = -1e9 if score is None else score
        best = self.state["best"]
        if best is None or score > best["score"] or self.config.train.keep == "last":
            self.state |= {"best": {"epoch": epoch, "score": score}, "since_best": 0}
            checkpoints.save(self.folder / "best", weights, {
                **checkpoints.made_with(self.config), "seed": self.seed, "epoch": epoch})
        else:
            self.state["since_best"] += 1

    def _write_line(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            line = {**line, "seconds": self.seconds()}
            files.append_text(self.folder / "log.jsonl", json.dumps(line) + "\n")

    def seconds(self) -> float:
        return self.state["seconds"] + time.monotonic() - self.began

    def save(self) -> None:
        """Writes ``latest``, from which the run goes on exactly. Raises files.SaveError."""
        weights, optimizer = gathered(trainable_weights(self.model)), gather_states(self.optimizer.optimizer)
        scaler = self.accelerator.scaler
        state = {**self.state, **checkpoints.made_with(self.config), "seed": self.seed,
                 "processes": self.accelerator.num_processes, "seconds": self.seconds(),
                 "schedule": self.schedule.state_dict(), "scaler": scaler.state_dict() if scaler else None}
        from_first(lambda: checkpoints.save(self.folder / LATEST, weights, state, optimizer,
                                            before=self.folder / BEFORE))

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint, or begins: an empty log and the gallery before training.

        Raises CheckpointError and files.SaveError.
        """
        found = from_first(lambda: newest(self.folder, self.echo))
        if found is None:
            from_first(lambda: files.write_text(self.folder / "log.jsonl", ""))
            self.sharding.answer(lambda: self.dev.save_gallery_before_training(self.model))
            return
        folder, hashes = found
        optimizer = self.optimizer.optimizer
        weights, state = checkpoints.load(folder, optimizer=optimizer, shape=STATE, hashes=hashes)
        forget_others(optimizer)
        checkpoints.check_made_with(state, self.config, self.folder)
        checkpoints.load_weights(self.model, weights, self.folder)
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.find_place(state)
        from_first(lambda: self._drop_log_after(state["seconds"]))

    def find_place(self, saved: dict[str, Any]) -> None:
        """Takes over what a checkpoint has done, whatever number of processes did it."""
        now = self.accelerator.num_processes
        then = saved.get("processes", now)
        # Before this was written down, rounds were all that was.
        done = saved.get("examples", saved["batch"] * self.epochs.examples_per_round)
        self.state = {key: saved.get(key) for key in self.state} | {"examples": min(done, self.epochs.size)}
        other = ""
        if then != now:
            self.state["batch"] = done // self.epochs.examples_per_round
            examples = self.epochs.examples_per_round * self.config.train.gradient_accumulation_steps
            other = (f" with {now} process{'es' * (now > 1)} instead of {then}: a step has {examples} "
                     "examples from here")
        self.echo(f"seed {self.seed}: going on after step {self.state['step']}{other}")

    def _drop_log_after(self, seconds: float) -> None:
        # What came after the checkpoint is done again, a line that a kill cut off included.
        kept = [line for line in read_log(self.folder) if line["seconds"] <= seconds]
        files.write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def finish(self) -> None:
        """Writes ``done.json``, the last thing a run does."""
        # And not end_training, which would leave no process group for the next seed.
        from_first(lambda: files.write_json(self.folder / "done.json", {
            **checkpoints.made_with(self.config), "seed": self.seed, "steps": self.state["step"],
            "epochs": self.state["epoch"], "seconds": self.seconds(), "best": self.state["best"],
            "parts": self.parts}))
