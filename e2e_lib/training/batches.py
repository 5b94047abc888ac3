"""What an epoch is made of: examples, their order, and the processes that make batches of them."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from e2e_lib.config import Config, ConfigError, Train
from e2e_lib.corpora import training_captions
from e2e_lib.data.collate import Batch, Collator
from e2e_lib.data.dialogue import DataError
from e2e_lib.data.examples import Example, by_dialogue, split_examples
from e2e_lib.data.photos import PhotoStore
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.repro.randomness import generator

POOL = 16  # batches among which examples of similar length are put together


def read_split(config: Config, corpus: Path, split: str, model: PhotoChatModel,
               echo: Callable[[str], None]) -> tuple[list[Example], PhotoStore]:
    """A split's examples as the model reads them, and its photos. Raises DataError."""
    examples, store = split_examples(corpus, split, echo, config.data.real_only)
    if split == "train":
        examples = training_captions(config.data, examples)
    return with_captions(examples, model.captioner, store) if model.captioner else examples, store


def training_examples(examples: Sequence[Example], settings: Train) -> list[list[Example]]:
    """What an epoch is made of: each response, or all of one speaker's in a dialogue. Raises ConfigError."""
    speakers = {"all": (True, False), "first": (True,), "second": (False,)}[settings.speakers]
    kept = [e for e in examples if (e.response.speaker == e.context[0].speaker) in speakers]
    if not kept:
        raise ConfigError(f"train.speakers = {settings.speakers!r}: no dialogue has a response of that one")
    return by_dialogue(kept) if settings.examples == "dialogues" else [[example] for example in kept]


def length_of(group: Sequence[Example]) -> int:
    """About how long a row of a batch will be: its longest context, and its responses."""
    turns = (*group[-1].context, *(example.response for example in group))
    return sum(len(turn.text) + 40 * len(turn.photos) for turn in turns)


def by_length(order: Sequence[int], lengths: Sequence[int], batch: int, rng: torch.Generator) -> list[int]:
    """The same indices, examples of similar length in one batch: a batch is as slow as its longest.

    The batches come in random order. Examples are sorted within ``POOL`` batches at a time only, so that
    chance still decides which of them share a batch.
    """
    batches = []
    for first in range(0, len(order), POOL * batch):
        pool = sorted(order[first:first + POOL * batch], key=lambda i: lengths[i])
        batches += [pool[k:k + batch] for k in range(0, len(pool), batch)]
    last = [batches.pop()] if len(order) % batch else []  # one that is not full must stay the last
    shuffled = [batches[number] for number in torch.randperm(len(batches), generator=rng).tolist()]
    return [i for part in [*shuffled, *last] for i in part]


def own_batches(order: Sequence[int], size: int, processes: int = 1,
                own: int = 0) -> list[tuple[list[int], bool]]:
    """What process number ``own`` of several trains on, round by round: the indices of its batch, and whether
    they count.

    Batches of ``size`` go to the processes in turn. Where the last round has too few of them, a process takes
    an example of another one, which counts for nothing, since all must take part in every round.
    """
    batches = [list(order[first:first + size]) for first in range(0, len(order), size)]
    rounds = [batches[first:first + processes] for first in range(0, len(batches), processes)]
    return [(batches[own], True) if own < len(batches) else (batches[0][:1], False) for batches in rounds]


class Epochs:
    """The epochs of a run: an order of its examples for each, and the batches that this process makes."""

    def __init__(self, examples: Sequence[list[Example]], settings: Train, collator: Collator, seed: int,
                 workers: int, processes: int = 1, own: int = 0) -> None:
        self.examples, self.settings, self.collator, self.seed = examples, settings, collator, seed
        self.workers, self.processes, self.own = workers, processes, own
        self.lengths = list(map(length_of, examples))

    @property
    def size(self) -> int:
        """Examples per epoch."""
        return min(self.settings.epoch_examples or len(self.examples), len(self.examples))

    @property
    def rounds(self) -> int:
        """Batches per epoch of each process."""
        return math.ceil(self.size / self.examples_per_round)

    @property
    def examples_per_round(self) -> int:
        """Of all processes, a batch each."""
        return self.settings.batch_size * self.processes

    def order(self, epoch: int) -> list[int]:
        """The examples of an epoch, in an order that depends on seed and epoch alone."""
        rng = generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.examples), generator=rng)[:self.size].tolist()
        return by_length(order, self.lengths, self.settings.batch_size, rng)

    def batches(self, epoch: int, done: int = 0) -> Iterator[tuple[Batch, bool]]:
        """This process's batches of what is left of an epoch once so many examples are done, and whether they
        count, see ``own_batches``."""
        own = own_batches(self.order(epoch)[done:], self.settings.batch_size, self.processes, self.own)
        made = batch_loader(self.examples, [batch for batch, _ in own], self.collator, self.workers)
        return zip(sound(made), (counts for _, counts in own), strict=True)


def batch_loader(examples: Sequence[list[Example]], batches: Sequence[Sequence[int]], collator: Collator,
                 workers: int) -> "DataLoader[list[Example]]":
    """Batches of examples by their indices, made ahead by ``workers`` processes, or (0) by this one.

    A batch is the same whoever makes it. What a process cannot read becomes an error in the batch's place,
    for ``sound`` to raise: torch would put that process's traceback into the message.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or each process's first batch prints a warning
    rows: Any = examples  # a sequence will do as a data set, and as a sampler
    sampler: Any = batches
    return DataLoader(rows, batch_sampler=sampler, collate_fn=partial(_collate, collator),
                      num_workers=workers)


def _collate(collator: Collator, groups: Sequence[Sequence[Example]]) -> Batch | DataError:
    try:
        return collator.dialogues(groups)
    except DataError as error:
        return DataError(str(error))  # of a class that any process can unpack


def sound(batches: Iterable[Batch | DataError]) -> Iterator[Batch]:
    """The batches. Raises DataError for a photo that cannot be read, ConfigError if a process died."""
    rows = iter(batches)
    while True:
        try:
            batch = next(rows)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ConfigError("a process that reads data died, most likely for want of memory; set "
                              "data.workers lower, and the same command goes on") from None
        if isinstance(batch, DataError):
            raise batch
        yield batch
