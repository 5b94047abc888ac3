"""What an epoch is made of: examples, their order, and the processes that make batches of them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Subset

from e2e_lib.config import ConfigError, Train
from e2e_lib.data.collate import Batch, Collator
from e2e_lib.data.dialogue import DataError
from e2e_lib.data.examples import Example, by_dialogue

POOL = 16  # batches among which examples of similar length are put together


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


def batch_loader(examples: Sequence[list[Example]], order: Sequence[int], collator: Collator, batch_size: int,
                 workers: int) -> "DataLoader[list[Example]]":
    """Batches of the examples at ``order``, made ahead by ``workers`` processes, or (0) by this one.

    A batch is the same whoever makes it. What a process cannot read becomes an error in the batch's place,
    for ``sound`` to raise: torch would put that process's traceback into the message.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or each process's first batch prints a warning
    rows: Subset[list[Example]] = Subset(examples, order)  # type: ignore[arg-type]
    return DataLoader(rows, batch_size, collate_fn=partial(_collate, collator), num_workers=workers)


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
