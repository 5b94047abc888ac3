"""Full sharding (PyTorch's FSDP2): each of several processes keeps its share of all that learns, of the
gradients and of the optimizer's states.

A layer of the language model is whole in a process only while it is at work, forward and backward. What else
learns (embeddings and head, perceptron, image generator) is whole during a pass of the model: a process whose
batch has no photo does not call the image generator, and where one process gathers weights, all must.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from e2e_lib.config import Train
from e2e_lib.models.losses import Output
from e2e_lib.training.step import image_gradients

Made = TypeVar("Made")


def layers_of(language: Any) -> list[nn.Module]:
    """The layers of a language model: what its library says is not to be split."""
    kinds = set(language._no_split_modules)
    return [module for module in language.modules() if type(module).__name__ in kinds]


class Sharding:
    """How a system's weights lie in the processes of ``accelerator``: whole in each, or, if it ``is_full``,
    what learns in shares, as DTensors but for those that a pass has gathered. What does not learn is whole.
    """

    def __init__(self, model: Any, accelerator: Accelerator, settings: Train) -> None:
        self.model, self.accelerator = model, accelerator
        self.is_full = settings.full_sharding and accelerator.num_processes > 1
        self.layers: list[Any] = []
        self.shares: dict[str, Tensor] = {}  # the weights that learn, by name
        self.used: dict[str, bool] = {}  # of those outside of layers, whether this step gave a gradient here
        if self.is_full:
            self._share_out()
            self._watch_use()

    def _share_out(self) -> None:
        common: dict[str, Any] = {
            "mesh": init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,)),
            "ignored_params": {p for p in self.model.parameters() if not p.requires_grad}}
        for part in self.model.trained_parts().values():  # FSDP2 takes no weights in another order
            part.to(memory_format=torch.contiguous_format)
        self.layers = layers_of(self.model.language)
        for layer in self.layers:
            fully_shard(layer, reshard_after_forward=True, **common)
        fully_shard(self.model, reshard_after_forward=False, **common)
        # Where some processes use a part and others do not, it has a gradient in all, or they would not meet.
        self.model.set_reduce_scatter_unused_params(True)
        # Or generation would wait for all processes at each token, but each answers batches of its own.
        self.model.language._is_fsdp_managed_module = False
        # Answering is a forward pass of the whole, or a layer that is called first would take itself for it.
        self.model.answering = lambda work: work()
        register_fsdp_forward_method(self.model, "answering")
        self.shares = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _watch_use(self) -> None:
        self.model.unshard()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter is not self.shares[name]:
                self.used[name] = False
                parameter.register_post_accumulate_grad_hook(
                    lambda _, name=name: self.used.update({name: True}))
        self.model.reshard()

    def drop_unused(self) -> None:
        """Leaves what had no part in a step, in any process, without a gradient, so that it stays as it is.
        Without shares, it has none anyway."""
        if not self.is_full:
            return
        here = torch.tensor(list(self.used.values()), dtype=torch.long, device=self.accelerator.device)
        for name, count in zip(self.used, self.accelerator.reduce(here, "sum").tolist(), strict=True):
            self.used[name] = False
            if not count:
                self.shares[name].grad = None

    def image_gradients(self, output: Output, share: float, counts: bool) -> list[Tensor]:
        """The language model's gradient from ``share`` times the image loss of a batch, one tensor per
        weight; [] without a path, or where the batch does not count.

        Of weights in shares, all processes' together, in which all must take part; [] where none has a path.
        Its backward pass goes through all that learns, which keeps the gradients that it has.
        """
        if not self.is_full:
            return image_gradients(self.model, output.image_loss * share) if counts else []
        path = torch.tensor(int(output.image_loss.requires_grad and counts), device=self.accelerator.device)
        if not self.accelerator.reduce(path, "sum"):
            return []
        before = {name: p.grad for name, p in self.shares.items()}
        self._set_gradients({})
        # FSDP2 averages over processes. The text loss leads all of them through all layers.
        weight = share * counts * self.accelerator.num_processes
        (output.image_loss * weight + output.text_loss * 0).backward(retain_graph=True)
        made = [p.grad for name, p in self.shares.items()
                if name.startswith("language.") and p.grad is not None]
        self._set_gradients(before)
        return made

    def _set_gradients(self, gradients: dict[str, Tensor | None]) -> None:
        for name, parameter in self.shares.items():
            parameter.grad = gradients.get(name)

    def answer(self, work: Callable[[], Made]) -> Made:
        """What ``work`` gives, which calls the model's parts as often as each process likes: all weights are
        whole in each meanwhile. All must call this."""
        def with_all() -> Made:
            self.model.set_reshard_after_forward(False)
            for layer in self.layers:
                layer.unshard()
            return work()

        if not self.is_full:
            return work()
        made: Made = self.model.answering(with_all)
        self.model.reset_iter_state()  # back to shares
        for layer in self.layers:
            layer.set_reshard_after_forward(True)
        return made
