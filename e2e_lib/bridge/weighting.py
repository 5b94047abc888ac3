"""How much the photo's gradient says about the words, beside the text's own gradient (not in the paper)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def weighted_gradient(logits: Tensor, is_caption: Tensor, weight: float,
                      ratio: float) -> tuple[Tensor, Tensor]:
    """The same logits (N, V1) twice: for the text loss, and for the bridge.

    The gradient that comes back from the second ones is multiplied by ``weight``, which changes nothing else
    that the image loss trains, as λ of Eq. 13 would. With a ``ratio`` above 0 it is made that many times as
    long as the text loss's gradient at the words of captions, ``is_caption`` (N,), of this batch: then
    neither the size of the losses nor that of the models matters. ``weight`` does not, either, but for 0.
    Where no gradient of the text loss comes with it, as for the log, it keeps its own length.
    """
    if weight == 1 and ratio == 0:
        return logits, logits
    return _Weighted.apply(logits, is_caption, weight, ratio)  # type: ignore[no-untyped-call, no-any-return]


class _Weighted(torch.autograd.Function):
    """A backward pass that meets both gradients: it can compare them only where they come together."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, is_caption: Tensor, weight: float,
                ratio: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.is_caption, ctx.weight, ctx.ratio = is_caption, weight, ratio
        return logits.view_as(logits), logits.view_as(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_text: Tensor | None, from_photos: Tensor | None) -> Any:
        if from_photos is None:
            return from_text, None, None, None
        from_photos = from_photos * ctx.weight
        if ctx.ratio and from_text is not None:
            length, text_length = from_photos.float().norm(), from_text[ctx.is_caption].float().norm()
            compared = (length > 0) & (text_length > 0)
            scale = torch.where(compared, ctx.ratio * text_length / length, 1.0)
            from_photos = from_photos * scale.to(from_photos)
        return (from_photos if from_text is None else from_text + from_photos), None, None, None
