"""What one of several processes holds of a part: its weights, their gradients and optimizer states, in bytes.

Without sharding, each has all of it, of gradients room for all the time (DDP's buckets). With
``train.optimizer_sharding`` it has its share of the states, with ``train.full_sharding`` of all that learns;
see ``training.sharding`` for what is put together meanwhile.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from e2e_lib.config import Config
from e2e_lib.experiments.step_memory import GRADIENTS
from e2e_lib.models.memory import count_of, fullest_share, size_of, state_bytes
from e2e_lib.training.sharding import layers_of

DRAWING = {"unet", "transformer"}  # parts whose learning rate is the generator's


class Part(NamedTuple):
    """A part's sizes: numbers, those of each tensor that learns, bytes by number format, and, of a language
    model, how many of the numbers that learn are in each layer."""

    name: str
    parameters: int
    learnt: tuple[int, ...]
    formats: dict[str, int]
    weights: int
    layers: tuple[int, ...] = ()

    @property
    def learnt_bytes(self) -> int:
        """In float32, as all that learns."""
        return 4 * sum(self.learnt)

    @property
    def rest_bytes(self) -> int:
        """What learns outside of layers."""
        return self.learnt_bytes - 4 * sum(self.layers)


class Held(NamedTuple):
    """Bytes of a part in a process, at the fullest moment of a step, and ``answering``: all that is there
    then, but for what answering makes."""

    weights: int
    gradients: int
    states: int
    answering: int


def sizes_of(modules: Mapping[str, nn.Module]) -> list[Part]:
    """The sizes of parts by name."""
    parts = []
    for name, module in modules.items():
        weights, formats = list(module.parameters()), dict[str, int]()
        for tensor in weights:
            number = "nf4" if tensor.dtype == torch.uint8 else str(tensor.dtype).removeprefix("torch.")
            formats[number] = formats.get(number, 0) + size_of([tensor])
        everything: list[Tensor] = [*weights, *module.buffers()]
        layers = layers_of(module) if name == "language" else []
        parts.append(Part(name, sum(map(count_of, weights)), _learnt(module), formats, size_of(everything),
                          tuple(sum(_learnt(layer)) for layer in layers)))
    return parts


def _learnt(module: nn.Module) -> tuple[int, ...]:
    return tuple(p.numel() for p in module.parameters() if p.requires_grad)


def held(config: Config, parts: Iterable[Part], at_peak: Mapping[str, int],
         processes: int) -> dict[str, Held]:
    """What a process holds of each part; ``at_peak`` has the gradients that one process alone has."""
    parts = list(parts)
    if processes > 1 and config.train.full_sharding:
        return {part.name: _shared_out(part, processes) for part in parts}
    of_parts = states(config, parts, processes)
    rows = {}
    for part in parts:
        buckets = part.learnt_bytes if processes > 1 else 0
        gradients, own = max(at_peak.get(GRADIENTS + part.name, 0), buckets), of_parts[part.name]
        left = gradients if processes > 1 else 0  # buckets stay while answering
        rows[part.name] = Held(part.weights, gradients, own, part.weights + own + left)
    return rows


def _shared_out(part: Part, processes: int) -> Held:
    """A share of everything, and what is whole: what learns outside of layers, and two layers, of which one
    is awaited."""
    share = -(-part.learnt_bytes // processes)
    at_once, frozen = part.rest_bytes + 8 * max(part.layers, default=0), part.weights - part.learnt_bytes
    return Held(frozen + share + at_once, share + at_once, 2 * share,
                frozen + part.learnt_bytes + 3 * share)


def states(config: Config, parts: Iterable[Part], processes: int) -> dict[str, int]:
    """Bytes of the optimizer's states by part, in the process that has most of them."""
    optimizer = config.train.optimizer
    if processes == 1 or not config.train.optimizer_sharding:
        return {part.name: state_bytes(part.learnt, optimizer) for part in parts}
    tensors = [(part.name, count) for part in parts for count in part.learnt]
    groups = ([tensor for tensor in tensors if (tensor[0] in DRAWING) == last] for last in (False, True))
    share = fullest_share(groups, processes)
    return {part.name: state_bytes((count for name, count in share if name == part.name), optimizer)
            for part in parts}
