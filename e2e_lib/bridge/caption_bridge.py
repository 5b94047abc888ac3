"""The bridge between a language model and a text encoder with another vocabulary (sections 2.4.1-2.4.2), usable by itself.

>>> bridge = CaptionBridge(source_tokenizer, target_tokenizer, mapping="span")
>>> out = bridge(captions, logits, text_encoder.get_input_embeddings(), temperature=0.5)
>>> loss_of(out.embeddings).backward()                      # reaches the logits
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from e2e_lib.bridge.alignment import Encoding, align_ids_to_text, check_tokenizer, encode_with_offsets
from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature
from e2e_lib.bridge.transfer import probability_of, static_transfer, transfer
from e2e_lib.bridge.vocabulary import MAPPINGS, POOLINGS, StaticMap, caption_map, static_piece, static_word

__all__ = ["BridgeOutput", "CaptionBridge"]

PADDING = 1024  # models pad their vocabularies up to such multiples; logits may be wider than the tokenizer by less than this
UNLIMITED = 100_000  # a tokenizer without a limit of its own questions an astronomic one


@dataclass
class BridgeOutput:
    """What the text encoder needs: ``embeddings`` (B, L, D2), exactly E[input_ids] with a gradient to the logits, ``input_ids`` and
    ``attention_mask`` (B, L). ``truncated`` captions were longer than the encoder's limit and lost their end."""

    embeddings: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    truncated: int


class CaptionBridge:
    """Lets a loss on a text encoder's side reach the logits of a language model that wrote the captions, whatever their tokenizers.

    ``mapping``: "sentence" (Eq. 10, the paper's), "word", "span", "static_piece" (Eq. 8), "static_word" (needs ``words``), or "none", which
    lets no gradient through. ``pooling``: "mean" (Eq. 11) or "sum" over positions. ``length``: tokens the text encoder takes; by default
    the target tokenizer's own limit, or the longest caption if it has none. ``estimator``: one of ``estimators.RELAXATIONS``.

    Raises TypeError for tokenizers without character offsets, ValueError for names that do not exist.
    """

    def __init__(self, source_tokenizer: Any, target_tokenizer: Any, mapping: str = "span", *, pooling: str = "mean", estimator: str = "gumbel",
                 words: Iterable[str] = (), length: int | None = None) -> None:
        check_tokenizer(source_tokenizer, "source")
        check_tokenizer(target_tokenizer, "target")
        for name, value, allowed in (("mapping", mapping, MAPPINGS), ("pooling", pooling, POOLINGS), ("estimator", estimator, tuple(RELAXATIONS))):
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer
        self.mapping, self.pooling, self.estimator = mapping, pooling, estimator
        limit = target_tokenizer.model_max_length
        self.length = length or (limit if limit < UNLIMITED else None)
        self._static: StaticMap | None = None
        if mapping == "static_piece":
            self._static = static_piece(source_tokenizer, target_tokenizer)
        elif mapping == "static_word":
            self._static = static_word(source_tokenizer, target_tokenizer, words)

    def __call__(self, captions: list[str], logits: Tensor, embedding: nn.Embedding, temperature: float = 1.0,
                 noise: str | Tensor | None = "gumbel", generator: torch.Generator | None = None, *,
                 source_ids: Tensor | None = None, source_mask: Tensor | None = None) -> BridgeOutput:
        """Captions and the logits (B, C, V1) that wrote them, padded on the right, to the text encoder's embeddings.

        ``noise``: "gumbel" draws it from ``generator`` (Eq. 4), None leaves it out, a tensor shaped as the logits is used as it is.
        ``source_ids`` and ``source_mask`` (B, C) are the tokens the captions were decoded from; by default the source tokenizer's own.
        Raises ValueError for shapes that do not fit, logits that are not numbers, a temperature that is not positive, tokens that do not
        align_ids_to_text their caption.
        """
        if isinstance(noise, str) and noise != "gumbel":
            raise ValueError(f"noise {noise!r} is unknown; allowed: 'gumbel', None, or a tensor shaped as the logits")
        if isinstance(noise, Tensor) and noise.shape != logits.shape:
            raise ValueError(f"the noise {tuple(noise.shape)} is not shaped as the logits {tuple(logits.shape)}")
        source = self._source(captions, logits, source_ids, source_mask)
        target, truncated = encode_with_offsets(self.target_tokenizer, captions, special=True, length=self.length)
        _check_width("embedding", embedding.num_embeddings, self.target_tokenizer, "target")
        device = embedding.weight.device
        input_ids = target.input_ids.to(device)
        embeddings = embedding(input_ids)
        if self.mapping != "none" and len(captions):
            embeddings = embeddings + self._gradient(captions, logits, source, target, embedding, embeddings, temperature, noise, generator)
        return BridgeOutput(embeddings, input_ids, target.attention_mask.to(device), truncated)

    def _source(self, captions: list[str], logits: Tensor, ids: Tensor | None, mask: Tensor | None) -> Encoding:
        if logits.ndim != 3 or len(logits) != len(captions):
            raise ValueError(f"{len(captions)} captions need logits of shape ({len(captions)}, positions, words), got {tuple(logits.shape)}")
        _check_width("logits", logits.shape[-1], self.source_tokenizer, "source")
        if ids is not None:
            mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            if ids.shape != logits.shape[:2] or mask.shape != ids.shape:
                raise ValueError(f"source_ids {tuple(ids.shape)} and source_mask {tuple(mask.shape)} do not fit logits {tuple(logits.shape)}")
            return align_ids_to_text(self.source_tokenizer, captions, ids, mask)
        pieces, _ = encode_with_offsets(self.source_tokenizer, captions, special=False)
        needed = pieces.valid.shape[1]
        if needed > logits.shape[1]:
            longest = int(pieces.valid.sum(1).argmax())
            raise ValueError(f"caption {longest} ({captions[longest]!r}) has {needed} tokens, but the logits {tuple(logits.shape)} have "
                             f"{logits.shape[1]} positions")
        return pieces

    def _gradient(self, captions: list[str], logits: Tensor, source: Encoding, target: Encoding, embedding: nn.Embedding, embeddings: Tensor,
                  temperature: float, noise: str | Tensor | None, generator: torch.Generator | None) -> Tensor:
        count, device = source.valid.shape[1], embeddings.device
        logits = logits[:, :count] if logits.dtype == torch.float64 else logits[:, :count].float()
        ids = source.input_ids.to(device)
        y = None  # where the gradient is that of one softmax, y is needed at few words only and never written out
        drawn: Tensor | None = None
        if self.estimator in ("gumbel", "soft"):
            drawn = gumbel_noise(logits.shape, generator) if isinstance(noise, str) else noise if noise is None else noise[:, :count]
        elif self.estimator != "straight_through":
            y = RELAXATIONS[self.estimator](logits, temperature, generator, drawn=ids)
        if self._static is None:
            chosen = probability_of(logits, ids, temperature, drawn) if y is None else y.gather(-1, ids[:, None, :].expand(-1, count, -1))
            return transfer(chosen, _to(caption_map(self.mapping, captions, source, target, self.pooling), device), embeddings)
        y = softmax_with_temperature(logits, temperature, drawn) if y is None else y
        pool = source.valid.to(y)
        pool = pool / pool.sum(1, keepdim=True).clamp_min(1) if self.pooling == "mean" else pool
        added = static_transfer(y, pool, _to(self._static, device), embedding.weight)
        return added[:, None, :] * target.valid.to(added)[:, :, None]


def _check_width(what: str, width: int, tokenizer: Any, role: str) -> None:
    size = len(tokenizer)
    if not size <= width < size + PADDING:
        raise ValueError(f"the {what} are {width} words wide, but the {role} tokenizer has {size}")


def _to(holder: Any, device: torch.device) -> Any:
    return type(holder)(**{name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(holder).items()})
