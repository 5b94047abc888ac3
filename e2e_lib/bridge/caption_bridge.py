"""The bridge as one call: captions and their logits to a text encoder's embeddings (sections 2.4.1-2.4.2).

>>> bridge = CaptionBridge(source_tokenizer, target_tokenizer, mapping="span")
>>> out = bridge(captions, logits, text_encoder.get_input_embeddings(), temperature=0.5)
>>> loss_of(out.embeddings).backward()                      # reaches the logits

Axes: B captions, C source positions, L target positions, V1 source vocabulary, D2 embedding width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from e2e_lib.bridge import vocabulary
from e2e_lib.bridge.alignment import Encoding, align_ids_to_text, check_tokenizer, encode_with_offsets
from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.bridge.fast import token_probabilities
from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature
from e2e_lib.bridge.transfer import at_tokens, static_transfer, transfer

NOISY = ("gumbel", "soft")  # estimators with the gradient of Eq. 5, noise included
ONE_SOFTMAX = (*NOISY, "straight_through")  # estimators with the gradient of one softmax
PADDING = 1024  # models pad their vocabularies: logits may be wider than the tokenizer by less than this
UNLIMITED = 100_000  # a tokenizer without a limit reports an astronomic one


@dataclass
class BridgeOutput:
    """What the text encoder needs: ``embeddings`` (B, L, D2), exactly E[input_ids], with a gradient to the
    logits; ``input_ids``, ``attention_mask`` (B, L). ``truncated`` captions were too long and lost their
    end."""

    embeddings: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    truncated: int


class CaptionBridge:
    """Carries the gradient of a text encoder's embeddings to the logits that wrote the captions.

    ``mapping``: "sentence" (Eq. 10, the paper's), "word", "span", "static_piece" (Eq. 8), "static_word"
    (needs ``words``), or "none", which lets no gradient through. ``pooling``: "mean" (Eq. 11) or "sum" over
    positions. ``length``: tokens the text encoder takes; by default the target tokenizer's own limit, or the
    longest caption if it has none. ``estimator``: one of ``estimators.RELAXATIONS``. Raises TypeError for
    tokenizers without character offsets, ValueError for names that do not exist.
    """

    def __init__(self, source_tokenizer: Any, target_tokenizer: Any, mapping: str = "span", *,
                 pooling: str = "mean", estimator: str = "gumbel", words: Iterable[str] = (),
                 length: int | None = None) -> None:
        check_tokenizer(source_tokenizer, "source")
        check_tokenizer(target_tokenizer, "target")
        for name, value, allowed in (("mapping", mapping, vocabulary.MAPPINGS),
                                     ("pooling", pooling, vocabulary.POOLINGS),
                                     ("estimator", estimator, tuple(RELAXATIONS))):
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer
        self.mapping, self.pooling, self.estimator = mapping, pooling, estimator
        limit = target_tokenizer.model_max_length
        self.length = length or (limit if limit < UNLIMITED else None)
        self.static_map = None
        if mapping == "static_piece":
            self.static_map = vocabulary.static_piece(source_tokenizer, target_tokenizer)
        elif mapping == "static_word":
            self.static_map = vocabulary.static_word(source_tokenizer, target_tokenizer, words)

    def __call__(self, captions: list[str], logits: Tensor, embedding: nn.Embedding, temperature: float = 1.0,
                 noise: Tensor | str | None = "gumbel", rng: torch.Generator | None = None, *,
                 source_ids: Tensor | None = None, source_mask: Tensor | None = None) -> BridgeOutput:
        """Captions and the logits (B, C, V1) that wrote them, padded on the right, to embeddings (B, L, D2).

        ``noise`` is Eq. 4's g: a tensor shaped as the logits, "gumbel" to sample it from ``rng``, None for
        none. ``rng`` also serves estimators that sample by themselves. ``source_ids`` (B, C) are the tokens
        the captions were decoded from, by default the source tokenizer's own; ``source_mask`` is False for
        padding. Raises ValueError for shapes that do not fit, logits that are not numbers, a temperature that
        is not positive and tokens that do not spell their caption.
        """
        if isinstance(noise, str) and noise != "gumbel":
            raise ValueError(f"noise {noise!r} is unknown; allowed: 'gumbel', None, a tensor like the logits")
        if isinstance(noise, Tensor) and noise.shape != logits.shape:
            raise ValueError(f"the noise {tuple(noise.shape)} is not shaped as logits {tuple(logits.shape)}")
        source = self._encode_source(captions, logits, source_ids, source_mask)
        target, truncated = encode_with_offsets(self.target_tokenizer, captions, special=True,
                                                length=self.length)
        _check_width("embedding", embedding.num_embeddings, self.target_tokenizer, "target")
        device = embedding.weight.device
        input_ids, attention_mask = target.input_ids.to(device), target.attention_mask.to(device)  # (B, L)
        embeddings = embedding(input_ids)  # (B, L, D2)
        if self.mapping == "none" or not captions:
            return BridgeOutput(embeddings, input_ids, attention_mask, truncated)

        logits = logits[:, :source.input_ids.shape[1]]  # (B, C, V1)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.estimator not in NOISY:
            noise = None
        elif noise is not None:
            noise = gumbel_noise(logits.shape, rng) if isinstance(noise, str) else noise[:, :logits.shape[1]]
        ids = source.input_ids.to(device)  # (B, C)
        if self.estimator not in ONE_SOFTMAX:
            y = RELAXATIONS[self.estimator](logits, temperature, rng, ids)  # (B, C, V1)
        elif self.static_map is not None:
            y = softmax_with_temperature(logits, temperature, noise)  # (B, C, V1)
        if self.static_map is not None:
            pooling = vocabulary.pooling_weights(source.token_mask, self.pooling)  # (B, C)
            added = static_transfer(y, pooling, self.static_map, embedding.weight)[:, None, :]  # (B, 1, D2)
            added = added * target.token_mask.to(added)[:, :, None]  # (B, L, D2)
        else:
            probabilities = (token_probabilities(logits, ids, temperature, noise)
                             if self.estimator in ONE_SOFTMAX else at_tokens(y, ids))  # (B, C, C)
            factored = vocabulary.caption_map(self.mapping, captions, source, target, self.pooling)
            added = transfer(probabilities, factored, embeddings)  # (B, L, D2)
        return BridgeOutput(embeddings + added, input_ids, attention_mask, truncated)

    def _encode_source(self, captions: list[str], logits: Tensor, ids: Tensor | None,
                       mask: Tensor | None) -> Encoding:
        """The captions' tokens, one per position of the logits, which may have more positions."""
        if logits.ndim != 3 or len(logits) != len(captions):
            raise ValueError(f"{len(captions)} captions need logits of shape ({len(captions)}, positions, "
                             f"words), got {tuple(logits.shape)}")
        _check_width("logits", logits.shape[-1], self.source_tokenizer, "source")
        if ids is not None:
            mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            if ids.shape != logits.shape[:2] or mask.shape != ids.shape:
                raise ValueError(f"source_ids {tuple(ids.shape)} and source_mask {tuple(mask.shape)} do not "
                                 f"fit logits {tuple(logits.shape)}")
            return align_ids_to_text(self.source_tokenizer, captions, ids, mask)
        encoding, _ = encode_with_offsets(self.source_tokenizer, captions, special=False)
        length = encoding.input_ids.shape[1]
        if length > logits.shape[1]:
            row = int(encoding.attention_mask.sum(1).argmax())
            raise ValueError(f"caption {row} ({captions[row]!r}) has {length} tokens, but the logits "
                             f"{tuple(logits.shape)} have {logits.shape[1]} positions")
        return encoding


def _check_width(name: str, width: int, tokenizer: Any, role: str) -> None:
    if not len(tokenizer) <= width < len(tokenizer) + PADDING:
        raise ValueError(f"the {name} are {width} words wide, but the {role} tokenizer has {len(tokenizer)}")
