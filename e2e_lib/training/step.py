"""One step of the optimizer (section 2.5): what its batches did, as the training log has it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from e2e_lib.config import Bridge
from e2e_lib.data.collate import Batch
from e2e_lib.models.losses import Output
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.training.shares import whole


@dataclass
class Step:
    """One step of the optimizer, made of ``batches`` of which the first is the run's ``number``-th, with
    ``tokens`` that have a loss and ``photos`` of responses, in all processes.

    τ and learning rate are those of its first batch. If it is ``logged``, its losses (means over its tokens
    and photos), its gradient of the image loss, and its gradient norms are kept; until ``add_up``, what this
    process has of them.
    """

    number: int
    batches: int
    tokens: int
    photos: int
    temperature: float
    learning_rate: float
    logged: bool
    text_losses: list[tuple[float, int]] = field(default_factory=list)  # with the number of tokens, or photos
    image_losses: list[tuple[float, int]] = field(default_factory=list)
    truncated: int = 0
    contexts_cut: int = 0
    responses_cut: int = 0
    from_image: list[Tensor] = field(default_factory=list)
    norms: dict[str, float | None] = field(default_factory=dict)

    def add(self, batch: Batch, output: Output, from_image: list[Tensor], counts: bool = True) -> None:
        """Adds one of its batches, and what it gave; examples that lost tokens are counted. Of one that does
        not count, only the gradient, which is then the other processes'."""
        both = zip(self.from_image, from_image, strict=False)  # one may be []
        self.from_image = [one + other for one, other in both] or self.from_image or from_image
        if not counts:
            return
        self.contexts_cut += sum(map(bool, batch.context_cut))
        self.responses_cut += sum(map(bool, batch.response_cut))
        self.text_losses.append((output.text_loss.item(), output.tokens))
        self.image_losses += [(output.image_loss.item(), len(output.captions))] if output.captions else []
        self.truncated += output.truncated

    def add_up(self, language: nn.Module, sum_of_all: Callable[[Tensor], Tensor]) -> None:
        """Puts together what several processes have of the step. All must call it; ``sum_of_all`` adds up a
        tensor of each."""
        weights = [p for p in language.parameters() if p.requires_grad]
        sums = [value for losses in (self.text_losses, self.image_losses)
                for value in (sum(loss * count for loss, count in losses), sum(n for _, n in losses))]
        counts = [self.truncated, self.contexts_cut, self.responses_cut, len(self.from_image)]
        text, tokens, image, photos, *counts = sum_of_all(torch.tensor(
            [*sums, *counts], dtype=torch.float64, device=weights[0].device)).tolist()
        self.text_losses, self.image_losses = ([(total / n, int(n))] if n else []
                                               for total, n in ((text, tokens), (image, photos)))
        self.truncated, self.contexts_cut, self.responses_cut, some_have_it = map(int, counts)
        if some_have_it and not isinstance(weights[0], DTensor):  # shares are of all processes' sum
            self.from_image = [sum_of_all(gradient) for gradient in
                               self.from_image or (torch.zeros_like(p) for p in weights)]


def temperature_at(bridge: Bridge, epochs_done: float) -> float:
    """τ of Eq. 5: linear over the first ``temperature_epochs`` epochs, then constant (section 3.1.2)."""
    share = min(1.0, epochs_done / bridge.temperature_epochs) if bridge.temperature_epochs else 1.0
    return bridge.temperature_start + share * (bridge.temperature_end - bridge.temperature_start)


def mean(losses: Sequence[tuple[float, int]]) -> float | None:
    """The mean of losses, each with the number of tokens or photos whose mean it is; None of none."""
    return sum(loss * count for loss, count in losses) / sum(n for _, n in losses) if losses else None


def norm(gradients: Sequence[Tensor | None]) -> float:
    """The Euclidean norm of all gradients together, with the shares of all processes; None counts as zero."""
    return math.sqrt(sum(float(whole(g.detach().float().square().sum())) for g in gradients
                         if g is not None))


def image_gradients(model: PhotoChatModel, image_loss: Tensor) -> list[Tensor]:
    """The language model's gradient from the image loss alone, one tensor per weight; [] without a path. It
    is as long as it is before ``bridge.gradient_ratio``, which compares it with the text loss's."""
    if not image_loss.requires_grad:
        return []
    weights = [p for p in model.language.parameters() if p.requires_grad]
    return list(torch.autograd.grad(image_loss, weights, retain_graph=True, allow_unused=True,
                                    materialize_grads=True))
