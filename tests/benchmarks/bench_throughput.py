"""Tokens and photos per second of joint training, and where a step's time goes, with mini's parts.

Compared are whole dialogues as examples with the same responses one by one, and two processes, which talk by gloo as
they do in training, with one process that has as many threads as each of them, and with one that has all cores. A step
is a training loop's: a batch is made, forward, backward, clipping part by part, AdamW. All cases take turns, again and
again, so that a busy machine slows all of them alike, and a ratio is the median of the rounds' ratios, with their
standard deviation. Rates are of this machine and its parts of a few million weights: they say nothing of another one,
ratios are what counts. Tokens are those that have a loss, photos those of responses.
Prints one JSON line.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from e2e_lib import config as configuration
from e2e_lib.config import Config
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import Batch, Collator
from e2e_lib.data.examples import Example, by_dialogue, examples_of, load_split
from e2e_lib.models import end_to_end
from e2e_lib.models.systems import build
from e2e_lib.training.precision import new_optimizer

ROUNDS, WARM_UP = 15, 2
DIALOGUES = 8  # in a process's batch, as one of their speakers sees them
CORES = os.cpu_count() or 1
SHARE = max(1, CORES // 2)  # threads of each of two processes, as `e2e train --launch 2` sets them
OTHERS = "losses and what lies between"


class Stopwatch:
    """Whose turn it is, and how long each part had it. The backward pass is divided where a gradient has come as far
    as a part's result, which begins that part's turn, and as far as what the part was given, which ends it."""

    def __init__(self) -> None:
        self.seconds, self.now, self.since = Counter[str](), OTHERS, time.perf_counter()

    def turn(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[self.now] += now - self.since
        self.now, self.since = name, now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with all of its time counted as its own."""
        def run(*args: Any, **kwargs: Any) -> Any:
            before = self.now
            args, kwargs = tuple(map(self._given, args)), {key: self._given(value) for key, value in kwargs.items()}
            self.turn(f"{name}, forward")
            made = function(*args, **kwargs)
            self.turn(before)
            for tensor in (made,) if isinstance(made, Tensor) else vars(made).values():
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: self.turn(f"{name}, backward"))
            return made
        return run

    def _given(self, value: Any) -> Any:
        """What a part is given, as a view: its hook comes before that of the part which made it."""
        if not isinstance(value, Tensor) or not value.requires_grad or value.is_leaf:
            return value
        view = value.view_as(value)
        view.register_hook(lambda _: self.turn(OTHERS))
        return view


def watch_parts(model: Any, watch: Stopwatch) -> None:
    """Has every part of a model say when it is its turn; ``response_logits`` is left to the caller."""
    words, generator = model.language.get_input_embeddings(), model.generator
    words.forward = watch.timed("language model", words.forward)  # its table's backward pass is long
    model.perceptron.forward = watch.timed("perceptron", model.perceptron.forward)
    model.bridge = watch.timed("bridge", model.bridge)
    for name, method in (("text encoder", "encode"), ("VAE", "to_latents"), ("UNet", "denoising_loss")):
        setattr(generator, method, watch.timed(name, getattr(generator, method)))


class Learner:
    """A model that learns in this process, alone or, ``together``, with all others."""

    def __init__(self, model: Any, config: Config, together: bool = False) -> None:
        self.model, self.parts = model.train(), model.trained_parts().values()
        self.optimizer = new_optimizer([p for p in model.parameters() if p.requires_grad], config.train,
                                       torch.device("cpu"))
        # As the training loop has it.
        self.wrapped = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True) \
            if together else model

    def step(self, make: Callable[[], Batch], turn: Callable[[str], None] = lambda _: None) -> Batch:
        turn("data")
        batch = make()
        turn(OTHERS)
        loss = self.wrapped(batch, temperature=0.5, seed=0).loss
        loss.backward()
        turn("clipping and AdamW")
        for part in self.parts:
            torch.nn.utils.clip_grad_norm_([p for p in part.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        turn(OTHERS)
        return batch


class Process:
    """One of the two processes: the models that it trains and the batches that it makes."""

    def __init__(self, rank: int, meeting: Path) -> None:
        self.rank, config = rank, configuration.load("smoke")
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        torch.set_num_threads(SHARE)
        dialogues, store, _ = load_split(prepare(config, lambda _: None), "train")
        self.groups = by_dialogue([example for dialogue in dialogues for example in examples_of(dialogue)])
        model = build(config)
        self.collator, self.watch = Collator(model.formatter, store), Stopwatch()
        self.alone, self.watched = Learner(deepcopy(model), config), Learner(deepcopy(model), config)
        watch_parts(self.watched.model, self.watch)
        self.together = Learner(model, config, together=True)

    def groups_of(self, number: int, rank: int) -> list[list[Example]]:
        """A process's dialogues of a round, of which there are as many as fit."""
        first = (2 * number + rank) * DIALOGUES % (len(self.groups) - len(self.groups) % DIALOGUES)
        return self.groups[first:first + DIALOGUES]

    def dialogues(self, number: int, rank: int = 0) -> Batch:
        return self.collator.dialogues(self.groups_of(number, rank))

    def responses(self, number: int, rank: int = 0) -> Batch:
        return self.collator([example for group in self.groups_of(number, rank) for example in group])

    def watched_step(self, number: int) -> Batch:
        with mock.patch.object(end_to_end, "response_logits",
                               self.watch.timed("language model", end_to_end.response_logits)):
            return self.watched.step(partial(self.dialogues, number), self.watch.turn)

    def case(self, name: str, number: int) -> Batch | None:
        """One of CASES; None where this process has no part in it."""
        make = self.responses if name.endswith("responses") else self.dialogues
        if name.startswith("two processes"):
            return self.together.step(partial(make, number, self.rank))
        if self.rank:
            return None
        if name == "parts":
            return self.watched_step(number)
        torch.set_num_threads(CORES if name.endswith("all cores") else SHARE)
        batch = self.alone.step(partial(make, number))
        torch.set_num_threads(SHARE)
        return batch


CASES = ("one process", "one process, responses", "one process, all cores", "two processes",
         "two processes, responses", "parts")


def measure(rank: int, folder: Path, rounds: int) -> None:
    """What each process does; the first one writes what it measured."""
    process, measured = Process(rank, folder / "meeting"), []
    for number in range(WARM_UP + rounds):
        first = number % len(CASES)
        row: dict[str, Any] = {}
        for name in CASES[first:] + CASES[:first]:  # so that none always comes first
            distributed.barrier()
            process.watch.seconds.clear()
            process.watch.turn(OTHERS)
            process.watch.seconds.clear()
            began = time.perf_counter()
            batch = process.case(name, number)
            distributed.barrier()  # a step is over when all have made it
            seconds = time.perf_counter() - began
            counts = torch.tensor([batch.is_learnt.sum(), len(batch.captions), batch.attention_mask.sum()]
                                  if batch else [0, 0, 0])
            distributed.all_reduce(counts)
            row[name] = {"seconds": seconds, **dict(zip(("tokens", "photos", "read"), counts.tolist(), strict=True))}
            if name == "parts":
                row["seconds of parts"] = dict(process.watch.seconds)
        measured += [row] if number >= WARM_UP else []
    if rank == 0:
        (folder / "measured.json").write_text(json.dumps(measured))
    distributed.destroy_process_group()


def rates(measured: list[dict[str, Any]], name: str) -> dict[str, float]:
    """A case's medians: seconds of a step, and tokens and photos per second."""
    return {"step_seconds": round(statistics.median(row[name]["seconds"] for row in measured), 4),
            **{f"{what}_per_second": round(statistics.median(row[name][what] / row[name]["seconds"] for row in measured), 1)
               for what in ("tokens", "photos")}}


def ratio(measured: list[dict[str, Any]], one: str, other: str) -> dict[str, float]:
    """How many times as many tokens per second one case learns from as the other."""
    values = [row[one]["tokens"] / row[one]["seconds"] * row[other]["seconds"] / row[other]["tokens"] for row in measured]
    return {"median": round(statistics.median(values), 3),
            "std": round(statistics.stdev(values), 3) if len(values) > 1 else 0.0}


def shares(measured: list[dict[str, Any]]) -> dict[str, float]:
    """Which share of a step each part takes, forward and backward; together 1."""
    total: Counter[str] = sum((Counter(row["seconds of parts"]) for row in measured), Counter())
    return {name: round(seconds / total.total(), 3) for name, seconds in total.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"timed rounds, by default {ROUNDS}")
    rounds = parser.parse_args().rounds
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice does not hold: some batches have no photos
    prepare(configuration.load("smoke"), lambda _: None)  # before two of them would
    with tempfile.TemporaryDirectory() as name:
        torch.multiprocessing.spawn(measure, args=(Path(name), rounds), nprocs=2)
        measured = json.loads((Path(name) / "measured.json").read_text())
    compared = {"whole dialogues over their responses": ("one process", "one process, responses"),
                "the same in two processes": ("two processes", "two processes, responses"),
                "two processes over one": ("two processes", "one process"),
                "the same of single responses": ("two processes, responses", "one process, responses"),
                "two processes over one with all cores": ("two processes", "one process, all cores")}
    record = {
        "benchmark": "throughput", "profile": "mini parts", "dialogues": DIALOGUES, "rounds": rounds, "cores": CORES,
        "threads_of_each_process": SHARE, "rates_are_of": "this machine alone: compare the ratios",
        "rates": {name: rates(measured, name) for name in CASES if name != "parts"},
        "tokens_per_second_ratios": {name: ratio(measured, *pair) for name, pair in compared.items()},
        "tokens_read_by_responses_over_dialogues": round(statistics.median(
            row["one process, responses"]["read"] / row["one process"]["read"] for row in measured), 2),
        "watched_step_over_plain": round(statistics.median(
            row["parts"]["seconds"] / row["one process"]["seconds"] for row in measured), 3),
        "shares_of_a_step": shares(measured)}
    print(f"{SHARE} thread(s) in each process, {DIALOGUES} dialogues in its batch; rates are of this machine, ratios count")
    for name, row in record["rates"].items():
        print(f"    {name:26} {row['step_seconds']:8.3f} s a step {row['tokens_per_second']:8.1f} tokens/s "
              f"{row['photos_per_second']:6.1f} photos/s")
    for name, row in record["tokens_per_second_ratios"].items():
        print(f"    {name:38} {row['median']:.2f} ± {row['std']:.2f} ×")
    for name, share in record["shares_of_a_step"].items():
        print(f"    {name:38} {share:6.1%}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
