"""Joint training (section 2.5, Eq. 13): one loop, on one device or several, that can be killed at any moment and resumes exactly.

A run's folder holds ``log.jsonl`` (what the notebook draws), ``latest`` (a checkpoint to go on from), ``best`` (the weights of the
epoch with the best dev score), ``gallery`` (the same dev chats answered after each epoch) and, once it ended, ``done.json``.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import get_constant_schedule_with_warmup

from e2e_lib.config import SHIPPED, Bridge, Config, with_defaults
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import Example, examples_of, load_split
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.evaluation.scores import photo_scores, text_scores
from e2e_lib.inference.respond import respond
from e2e_lib.models.systems import System, build
from e2e_lib.repro import files
from e2e_lib.repro.randomness import generator, seed_of, seeded
from e2e_lib.repro.run_files import RUNS, read_log, run_folder
from e2e_lib.training import checkpoints
from e2e_lib.training.dev import GALLERY, dev_examples, dev_score, save_gallery

Echo = Callable[[str], None]


def temperature_at(bridge: Bridge, epochs_done: float) -> float:
    """τ of Eq. 5: linear from start to end over the first ``temperature_epochs`` epochs, then constant (section 3.1.2)."""
    share = min(1.0, epochs_done / bridge.temperature_epochs) if bridge.temperature_epochs else 1.0
    return bridge.temperature_start + share * (bridge.temperature_end - bridge.temperature_start)


def norm(gradients: Sequence[Tensor | None]) -> float:
    """The Euclidean norm of all gradients together."""
    return math.sqrt(sum(float(g.detach().float().square().sum()) for g in gradients if g is not None))


def train(config: Config, seed: int, echo: Echo = print, *, root: Path = RUNS, data_root: Path | None = None) -> Path:
    """Trains the configuration's system, or resumes it, or finds it done; returns the run's folder.

    Raises CheckpointError if what stands there is of another configuration, and files.SaveError when a checkpoint cannot be written
    (the last one then still stands).
    """
    folder = run_folder(config, seed, root)
    if (folder / "done.json").is_file():
        check_configuration(json.loads((folder / "done.json").read_text())["config"], config, folder)
        echo(f"seed {seed}: {folder} is trained already")
        return folder
    return _Run(config, seed, folder, data_root, echo).train()


def check_configuration(found: dict[str, Any], config: Config, folder: Path) -> None:
    """Raises CheckpointError if a checkpoint was made with other settings, naming them. How answers are written may differ."""
    expected = json.loads(json.dumps(asdict(config)))
    found = with_defaults(found)
    different = [f"{section}.{key}: {found[section].get(key)!r} there, {value!r} here"
                 for section in ("data", "model", "bridge", "train") for key, value in expected[section].items()
                 if found[section].get(key) != value]
    if different:
        raise files.CheckpointError(f"the checkpoint at {folder} is of another configuration ({'; '.join(different[:3])}"
                                          f"{' …' if len(different) > 3 else ''}); use the same settings, or remove the folder to train anew")


def load_trained(config: Config, seed: int, *, root: Path = RUNS) -> Any:
    """The best weights of a finished run, ready to answer. Raises CheckpointError if it is missing, damaged or of other settings."""
    folder = run_folder(config, seed, root)
    weights, state = checkpoints.load(folder / "best")
    check_configuration(state["config"], config, folder)
    model = build(config)
    put_weights(model, weights, folder)
    return model.eval()


def trained_or_shipped(config: Config, seed: int, *, root: Path = RUNS) -> tuple[Any, str]:
    """The trained system of a seed, or its pretrained parts where there is no such run, and which it is."""
    try:
        model = load_trained(config, seed, root=root)
        return model, f"weights after {'joint ' * model.joint}training, seed {seed}"
    except files.CheckpointError:
        return build(config).eval(), "parts as they ship"


def put_weights(model: System, weights: dict[str, Tensor], folder: Path) -> None:
    missing = set(model.trained_weights()) ^ set(weights)
    if missing:
        raise files.CheckpointError(f"the checkpoint at {folder} does not fit the model: {len(missing)} tensors are only in one of them, "
                                          f"{sorted(missing)[0]} first; remove the folder to train anew")
    model.load_state_dict(weights, strict=False)


class _Run:
    """One run's state; ``train`` reads from top to bottom."""

    def __init__(self, config: Config, seed: int, folder: Path, data_root: Path | None, echo: Echo) -> None:
        self.config, self.seed, self.folder, self.echo = config, seed, folder, echo
        settings = config.train
        # A batch without photos leaves the generator or the perceptron unused.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(mixed_precision=settings.mixed_precision, gradient_accumulation_steps=settings.gradient_accumulation_steps,
                                       kwargs_handlers=[unused])
        with self.accelerator.main_process_first():
            corpus = prepare(config, echo, *([data_root] if data_root else []))
        self.examples, self.store = _read(corpus, "train", echo)
        dev, self.dev_store = _read(corpus, "dev", echo)
        self.dev = dev_examples(dev, settings.dev_examples)
        self.lengths = [sum(len(turn.text) + 40 * bool(turn.photo) for turn in (*e.context, e.response)) for e in self.examples]
        with seeded(seed, "new weights"):  # rows for new tokens, if a tokenizer has to grow
            self.model = build(config)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # What is trained apart is clipped apart, too: then one loop trains as several would.
        self.clipped = [self.parameters] if self.model.joint else [
            [p for p in part.parameters() if p.requires_grad] for part in self.model.trained_parts().values()]
        optimizer = torch.optim.AdamW(self.parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        # Not prepared by accelerate, which would count a step once for each process.
        self.schedule = get_constant_schedule_with_warmup(optimizer, settings.warmup_steps)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.reader = load_scene_classifier(SHIPPED)
        self.state: dict[str, Any] = {"epoch": 0, "batch": 0, "step": 0, "best": None, "since_best": 0, "seconds": 0.0}
        self.collate = Collator(self.model.formatter, self.store, config.data.photo_size)
        self.began = time.monotonic()

    @property
    def batches_per_epoch(self) -> int:
        count = self.config.train.epoch_examples or len(self.examples)
        return math.ceil(min(count, len(self.examples)) / (self.config.train.batch_size * self.accelerator.num_processes))

    def train(self) -> Path:
        self._resume()
        while self.state["epoch"] < self.config.train.epochs and self.state["since_best"] < self.config.train.patience:
            self._epoch()
            self._score(self.state["epoch"] + 1)
            self.state = broadcast_object_list([self.state])[0]  # only the main process scores, all must stop together
            self.state |= {"epoch": self.state["epoch"] + 1, "batch": 0}
            self._save()
        if self.accelerator.is_main_process:
            files.write_json(self.folder / "done.json", {"config": asdict(self.config), "seed": self.seed, "steps": self.state["step"],
                                                         "epochs": self.state["epoch"], "seconds": self._seconds(), "best": self.state["best"]})
        self.accelerator.wait_for_everyone()  # and not end_training: it would leave no process group for the next seed
        return self.folder

    def _loader(self, epoch: int) -> Any:
        rng = generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.examples), generator=rng)[:self.config.train.epoch_examples or None].tolist()
        order = by_length(order, self.lengths, self.config.train.batch_size, rng)
        chosen: Subset[Example] = Subset(self.examples, order)  # type: ignore[arg-type]
        return self.accelerator.prepare(DataLoader(chosen, self.config.train.batch_size, collate_fn=self.collate))

    def _epoch(self) -> None:
        self.wrapped.train()
        epoch, total = self.state["epoch"], self.batches_per_epoch * self.config.train.epochs
        loader = self.accelerator.skip_first_batches(self._loader(epoch), self.state["batch"])
        seen, clock = 0, time.monotonic()
        for batch in loader:
            step, number = self.state["step"], epoch * self.batches_per_epoch + self.state["batch"]
            log_now = step % self.config.train.log_every == 0
            # Dropout, where a model has it, draws from torch's global state; seeding it by step makes resuming exact.
            torch.manual_seed(seed_of(self.seed, "dropout", number, self.accelerator.process_index))
            temperature = temperature_at(self.config.bridge, epoch + self.state["batch"] / self.batches_per_epoch)
            with self.accelerator.accumulate(self.wrapped):
                rng = generator(self.seed, "noise", number, self.accelerator.process_index)
                output = self.wrapped(batch, temperature=temperature, rng=rng)
                from_image = self._image_gradient(output.image_loss) if log_now else None
                self.accelerator.backward(output.loss)
                line = self._line(output, temperature, from_image) if log_now else None
                if self.accelerator.sync_gradients:
                    self.accelerator.unscale_gradients()  # once, however many parts are clipped
                    for parameters in self.clipped:
                        torch.nn.utils.clip_grad_norm_(parameters, self.config.train.max_grad_norm)
                self.optimizer.step()
                if self.accelerator.sync_gradients and not self.accelerator.optimizer_step_was_skipped:
                    self.schedule.step()
                self.optimizer.zero_grad()
            seen += len(batch.input_ids) * self.accelerator.num_processes
            self.state["batch"] += 1
            if self.accelerator.sync_gradients:
                self.state["step"] += 1
            if line:
                self._log({"kind": "step", "step": step, "epoch": number / self.batches_per_epoch, **line,
                           "examples_per_second": seen / (time.monotonic() - clock), "seconds": self._seconds()})
                left = (time.monotonic() - clock) / (seen or 1) * self.config.train.batch_size * self.accelerator.num_processes * (total - number - 1)
                self.echo(f"seed {self.seed}: step {step + 1}, epoch {number / self.batches_per_epoch:.2f} of {self.config.train.epochs}, text "
                          f"{line['text_loss']:.3f}, image {line['image_loss'] or 0:.3f}, τ {temperature:.2f}, about {left:.0f} s left")
            if self.accelerator.sync_gradients and self.state["step"] % self.config.train.checkpoint_every == 0:
                self._save()

    def _image_gradient(self, image_loss: Tensor) -> float | None:
        """The norm of the language model's gradient from the image loss alone: what the bridge lets through."""
        if not image_loss.requires_grad:
            return None
        weights = [p for p in self.model.language.parameters() if p.requires_grad]
        return norm(torch.autograd.grad(image_loss, weights, retain_graph=True, allow_unused=True))

    def _line(self, output: Any, temperature: float, from_image: float | None) -> dict[str, Any]:
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0  # fp16 gradients are scaled up
        norms = {f"gradient_{name}": norm([p.grad for p in part.parameters()]) / scale for name, part in self.model.trained_parts().items()}
        return {"text_loss": output.text_loss.item(), "image_loss": output.image_loss.item() if output.drawn else None, "temperature": temperature,
                **norms, "gradient_language_from_image": from_image, "learning_rate": self.schedule.get_last_lr()[0],
                "captions_cut": output.truncated}

    def _score(self, epoch: int) -> None:
        """Dev BLEU-2 and FID, the gallery, and the best weights so far."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        answers = respond(self.model, self.dev, self.dev_store, self.config.inference, generator(self.seed, "dev"), self.config.data.photo_size)
        scores = {**text_scores(self.dev, answers), **photo_scores(self.dev, answers, self.dev_store, self.reader, self.config.data.photo_size)}
        score = dev_score(scores)
        self._log({"kind": "dev", "step": self.state["step"], "epoch": epoch, "bleu2": scores["bleu2"], "fid": scores["fid"],
                   "score": score if math.isfinite(score) else None, "n": len(self.dev), "seconds": self._seconds()})
        self.echo(f"seed {self.seed}: after epoch {epoch}, dev BLEU-2 {scores['bleu2']:.2f}, FID "
                  + (f"{scores['fid']:.2f}" if scores["fid"] is not None else "none (fewer than two photos drawn)"))
        save_gallery(self.folder / "gallery" / f"epoch-{epoch}", self.dev, answers)
        if self.state["best"] is None or score > self.state["best"]["score"]:
            self.state |= {"best": {"epoch": epoch, "score": score if math.isfinite(score) else -1e9}, "since_best": 0}
            checkpoints.save(self.folder / "best", self.model.trained_weights(), {"config": asdict(self.config), "seed": self.seed, "epoch": epoch})
        else:
            self.state["since_best"] += 1
        self.accelerator.wait_for_everyone()

    def _seconds(self) -> float:
        return self.state["seconds"] + time.monotonic() - self.began

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {**self.state, "config": asdict(self.config), "seed": self.seed, "schedule": self.schedule.state_dict(),
                     "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None, "seconds": self._seconds()}
            checkpoints.save(self.folder / "latest", self.model.trained_weights(), state, self.optimizer)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        if not checkpoints.exists(self.folder / "latest"):
            if self.accelerator.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                files.write_text(self.folder / "log.jsonl", "")
                self._gallery_before()
            return
        weights, state = checkpoints.load(self.folder / "latest", optimizer=self.optimizer)
        check_configuration(state["config"], self.config, self.folder)
        put_weights(self.model, weights, self.folder)
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.state = {key: state[key] for key in self.state}
        if self.accelerator.is_main_process:
            # What came after the checkpoint is done again; a line that a kill or a full disk cut off is among it.
            kept = [line for line in read_log(self.folder) if line["seconds"] <= state["seconds"]]
            files.write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self.echo(f"seed {self.seed}: going on after step {self.state['step']}")

    def _gallery_before(self) -> None:
        few = [e for e in self.dev if e.response.photo][:GALLERY]
        answers = respond(self.model, few, self.dev_store, self.config.inference, generator(self.seed, "dev"), self.config.data.photo_size)
        save_gallery(self.folder / "gallery" / "epoch-0", few, answers)

    def _log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            files.append_text(self.folder / "log.jsonl", json.dumps(line) + "\n")


def _read(corpus: Path, split: str, echo: Echo) -> tuple[list[Example], PhotoStore]:
    dialogues, store, report = load_split(corpus, split)
    if report.problems:
        echo(f"{split}: {report}")
    return [example for dialogue in dialogues for example in examples_of(dialogue)], store


POOL = 16  # batches among which examples of like length are sought


def by_length(order: Sequence[int], lengths: Sequence[int], batch: int, rng: torch.Generator) -> list[int]:
    """The same indices, examples of like length in one batch, since a batch is as slow as its longest; the batches in random order.

    Only within ``POOL`` batches at a time, so that what meets in a batch is still a matter of chance.
    """
    batches = []
    for first in range(0, len(order), POOL * batch):
        pool = sorted(order[first:first + POOL * batch], key=lambda i: lengths[i])
        batches += [pool[k:k + batch] for k in range(0, len(pool), batch)]
    last = [batches.pop()] if len(order) % batch else []  # one that is not full must stay the last
    return [i for number in torch.randperm(len(batches), generator=rng).tolist() for i in batches[number]] + [i for part in last for i in part]
