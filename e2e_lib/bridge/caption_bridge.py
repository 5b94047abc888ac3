"""The bridge as one call: captions and their logits to a text encoder's embeddings (sections 2.4.1-2.4.2).

>>> bridge = CaptionBridge(source_tokenizer, target_tokenizer, mapping="span")
>>> out = bridge(captions, logits, text_encoder.get_input_embeddings(), temperature=0.5)
>>> loss_of(out.embeddings).backward()                      # reaches the logits

Axes: B captions, C source positions, L target positions, V1 source vocabulary, D2 embedding width.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from e2e_lib.bridge import aligned, vocabulary
from e2e_lib.bridge.alignment import (
    Encoding,
    align_ids_to_text,
    check_texts,
    check_tokenizer,
    encode_with_offsets,
    vocabulary_size,
    without_undrawn,
)
from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.bridge.fast import aligned_softmax, aligned_transfer, likeliest, token_probabilities
from e2e_lib.bridge.gumbel import (
    check_logits,
    check_temperature,
    full_precision,
    gumbel_noise,
    softmax_with_temperature,
)
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
    (needs ``words``), "aligned", which speaks of every word at every position, or "none", which lets
    no gradient through. Controls of "aligned": "aligned_shuffled", in which each word has another one's
    embedding, and "aligned_random", in which that other one is drawn anew for every batch.
    ``pooling``: "mean" (Eq. 11) or "sum" over positions. ``added_at``: where Eq. 11 adds to the embeddings,
    at the tokens of the "caption" or also at its start and end marks, "caption_and_marks" (as the authors'
    released code); "span" and "aligned" add at the tokens they are about. ``length``: tokens the text encoder
    takes, marks included; by default the target tokenizer's own limit, or the longest caption if it has none.
    ``estimator``: one of ``estimators.RELAXATIONS``. ``top_k``: with "aligned", the words of each position
    that get a gradient, its own and the likeliest others; None for all. Raises TypeError for tokenizers
    without character offsets, ValueError for names that do not exist, for a length that is no whole number,
    does not hold the marks or is more than the tokenizer's limit, and for a ``top_k`` that is no whole number
    from 2 or has another mapping.
    """

    def __init__(self, source_tokenizer: Any, target_tokenizer: Any, mapping: str = "span", *,
                 pooling: str = "mean", estimator: str = "gumbel", added_at: str = "caption",
                 words: Iterable[str] = (), length: int | None = None,
                 top_k: int | None = None) -> None:
        check_tokenizer(source_tokenizer, "source")
        check_tokenizer(target_tokenizer, "target")
        for name, value, allowed in (("mapping", mapping, vocabulary.MAPPINGS),
                                     ("pooling", pooling, vocabulary.POOLINGS),
                                     ("estimator", estimator, tuple(RELAXATIONS)),
                                     ("added_at", added_at, vocabulary.ADDED_AT)):
            if value not in allowed:
                raise ValueError(f"{name} {value!r} is unknown; allowed: {', '.join(allowed)}")
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer
        self.mapping, self.pooling, self.estimator = mapping, pooling, estimator
        self.added_at, self.length = added_at, _checked_length(target_tokenizer, length)
        self.sizes = {role: vocabulary_size(tokenizer) for role, tokenizer in
                      (("source", source_tokenizer), ("target", target_tokenizer))}
        self.top_k = _checked_top_k(top_k, mapping)
        self.static_map, self.spelling = None, None
        if mapping == "static_piece":
            self.static_map = vocabulary.static_piece(source_tokenizer, target_tokenizer)
        elif mapping == "static_word":
            self.static_map = vocabulary.static_word(source_tokenizer, target_tokenizer, words)
        elif mapping.startswith("aligned"):
            self.spelling = aligned.spelling(source_tokenizer, target_tokenizer)
            if mapping == "aligned_shuffled":
                self.spelling = aligned.shuffled(self.spelling)

    def __call__(self, captions: list[str], logits: Tensor, embedding: nn.Embedding, temperature: float = 1.0,
                 noise: Tensor | str | None = "gumbel", rng: torch.Generator | None = None, *,
                 source_ids: Tensor | None = None, source_mask: Tensor | None = None) -> BridgeOutput:
        """Captions and the logits (B, C, V1) that wrote them, padded on the right, to embeddings (B, L, D2).

        ``noise`` is Eq. 4's g: a tensor shaped as the logits, "gumbel" to sample it from ``rng``, None for
        none. ``rng`` also serves estimators that sample by themselves. ``source_ids`` (B, C) are the tokens
        the captions were decoded from, by default the source tokenizer's own; ``source_mask`` is False for
        padding, which the logits may fill with anything. Logits of -inf mask words. Everything is computed in
        float32 (float64 where given), also under autocast; the result has the embedding's type and device.
        Raises ValueError for shapes that do not fit, logits that hold NaN, +inf or no word at a position of a
        caption, a temperature that is not positive and tokens that do not spell their caption; TypeError for
        captions that are no list of texts.
        """
        if isinstance(noise, str) and noise != "gumbel":
            raise ValueError(f"noise {noise!r} is unknown; allowed: 'gumbel', None, a tensor like the logits")
        check_temperature(temperature)
        captions = check_texts("captions", captions)
        source = self._encode_source(captions, logits, source_ids, source_mask)
        if isinstance(noise, Tensor) and noise.shape != logits.shape:
            raise ValueError(f"the noise {tuple(noise.shape)} is not shaped as logits {tuple(logits.shape)}")
        target, truncated = encode_with_offsets(self.target_tokenizer, captions, special=True,
                                                length=self.length)
        self._check_width("embedding", len(embedding.weight), "target")
        device = embedding.weight.device
        input_ids, attention_mask = target.input_ids.to(device), target.attention_mask.to(device)  # (B, L)
        embeddings = embedding(input_ids)  # (B, L, D2)
        if captions:
            with _no_autocast(logits, embeddings):
                drawn = without_undrawn(source, target, truncated)
                logits = full_precision(logits[:, :source.input_ids.shape[1]])  # (B, C, V1)
                noise = self._noise(logits, noise, rng)
                if self.spelling is not None:
                    weights = aligned.alignment_weights(drawn, target, self.pooling)  # (B, L, C)
                    words = self.spelling.embeddings(embedding.weight, logits)  # (V1, D2)
                    if self.mapping == "aligned_random":
                        order = aligned.order_of_batch(self.spelling, captions).to(words.device)
                        words = torch.cat([words[order], words[len(order):]])
                    added = self._aligned(logits, source, temperature, noise, rng, weights, words)
                else:
                    y = self._relaxation(logits, source, temperature, noise, rng)
                    added = self._added(y, captions, drawn, target, embeddings, embedding.weight)
                embeddings = embeddings + added.to(embeddings)
        return BridgeOutput(embeddings, input_ids, attention_mask, int(truncated.sum()))

    def _noise(self, logits: Tensor, noise: Tensor | str | None, rng: torch.Generator | None
               ) -> Tensor | None:
        """Eq. 4's g for the logits (B, C, V1), None for estimators that do without."""
        if noise is None or self.estimator not in NOISY or self.mapping == "none":
            return None
        return (gumbel_noise(logits.shape, rng) if isinstance(noise, str)
                else noise[:, :logits.shape[1]]).to(logits)

    def _aligned(self, logits: Tensor, source: Encoding, temperature: float, noise: Tensor | None,
                 rng: torch.Generator | None, weights: Tensor, words: Tensor) -> Tensor:
        """What the aligned map adds to the embeddings: zeros (B, L, D2) with the gradient to the logits."""
        ids = source.input_ids.to(logits.device)  # (B, C)
        if self.estimator in ONE_SOFTMAX:
            real = source.attention_mask.bool().to(logits.device)
            return aligned_softmax(logits, ids, temperature, noise, weights, words, real, self.top_k)
        y = self._relaxation(logits, source, temperature, noise, rng)  # (B, C, V1)
        if self.top_k:
            kept, values = likeliest(logits.detach() / temperature, ids, self.top_k)  # (B, C, k)
            return aligned_transfer(y, weights, words, (kept, values.softmax(-1)))
        return aligned_transfer(y, weights, words)

    def _relaxation(self, logits: Tensor, source: Encoding, temperature: float, noise: Tensor | None,
                    rng: torch.Generator | None) -> Tensor:
        """Vectors over the words (B, C, V1) with the gradient of Eq. 7's h; for dynamic maps only their
        entries at the caption's tokens (B, C, C), for "none" the logits. Padding gets no gradient."""
        real = source.attention_mask.bool().to(logits.device)  # (B, C)
        ids = source.input_ids.to(logits.device)  # (B, C)
        if self.estimator in ONE_SOFTMAX and self.mapping in vocabulary.DYNAMIC:
            return token_probabilities(logits, ids, temperature, noise, real)  # (B, C, C)
        noisy = logits if noise is None else logits + noise
        largest = noisy.detach().amax(-1) / temperature  # (B, C)
        check_logits(largest, logits, real)
        if self.mapping == "none":
            return logits
        if not largest.isfinite().all():  # padding
            noisy = noisy.masked_fill(~real[:, :, None], 0)
        if self.estimator in ONE_SOFTMAX:
            return softmax_with_temperature(noisy, temperature)  # (B, C, V1)
        y = RELAXATIONS[self.estimator](noisy, temperature, rng, ids)  # (B, C, V1)
        return at_tokens(y, ids) if self.mapping in vocabulary.DYNAMIC else y

    def _added(self, y: Tensor, captions: list[str], source: Encoding, target: Encoding, embeddings: Tensor,
               table: Tensor) -> Tensor:
        """What Eq. 9 and 11 add to the embeddings (B, L, D2): zeros with the gradient to y."""
        if self.mapping == "none":
            return torch.zeros_like(embeddings)
        if self.static_map is None:
            factored = vocabulary.caption_map(self.mapping, captions, source, target, self.pooling,
                                              self.added_at)
            return transfer(y, factored, embeddings)  # (B, L, D2)
        pooling = vocabulary.pooling_weights(source.token_mask, self.pooling)  # (B, C)
        added = static_transfer(y, pooling, self.static_map, table)  # (B, D2)
        positions = vocabulary.positions_added_at(target, self.added_at).to(added)  # (B, L)
        return positions[:, :, None] * added[:, None, :]  # (B, L, D2)

    def _encode_source(self, captions: list[str], logits: Tensor, ids: Tensor | None,
                       mask: Tensor | None) -> Encoding:
        """The captions' tokens, one per position of the logits, which may have more positions."""
        if (not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.ndim != 3
                or len(logits) != len(captions)):
            got = f"{tuple(logits.shape)} of {logits.dtype}" if isinstance(logits, Tensor) else type(logits)
            raise ValueError(f"{len(captions)} captions need logits of shape ({len(captions)}, positions, "
                             f"words), got {got}")
        self._check_width("logits", logits.shape[-1], "source")
        if ids is None:
            encoding, _ = encode_with_offsets(self.source_tokenizer, captions, special=False)
            length = encoding.input_ids.shape[1]
            if length > logits.shape[1]:
                row = int(encoding.attention_mask.sum(1).argmax())
                raise ValueError(f"caption {row} ({captions[row]!r}) has {length} tokens, but the logits "
                                 f"{tuple(logits.shape)} have {logits.shape[1]} positions")
            return encoding
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
        if ids.shape != logits.shape[:2] or mask.shape != ids.shape:
            raise ValueError(f"source_ids {tuple(ids.shape)} and source_mask {tuple(mask.shape)} do not "
                             f"fit logits {tuple(logits.shape)}")
        if ids.is_floating_point() or (mask & ((ids < 0) | (ids >= logits.shape[-1]))).any():
            raise ValueError(f"source_ids must be whole numbers from 0 to {logits.shape[-1] - 1}; give a "
                             "source_mask that is False where they are padding")
        return align_ids_to_text(self.source_tokenizer, captions, ids, mask)

    def _check_width(self, name: str, width: int, role: str) -> None:
        size = self.sizes[role]
        if not size <= width < size + PADDING:
            raise ValueError(f"the {name} are {width} words wide, but the {role} tokenizer has {size}")


def _checked_length(tokenizer: Any, length: int | None) -> int | None:
    """Tokens the text encoder takes, by default all that its tokenizer allows, None for no limit."""
    limit, least = tokenizer.model_max_length, max(1, tokenizer.num_special_tokens_to_add())
    if length is None and limit >= UNLIMITED:
        return None
    length = limit if length is None else length
    if not isinstance(length, int) or isinstance(length, bool) or not least <= length <= limit:
        most = f", and of at most {limit}, its tokenizer's limit" if limit < UNLIMITED else ""
        raise ValueError(f"length {length!r}: the text encoder needs a whole number of tokens of at least "
                         f"{least}, which hold its start and end marks{most}")
    return length


def _checked_top_k(top_k: int | None, mapping: str) -> int | None:
    """How many words get a gradient, None for all."""
    if top_k is None:
        return None
    if not mapping.startswith("aligned"):
        raise ValueError(f"top_k {top_k!r} needs the mapping aligned, not {mapping}")
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 2:
        raise ValueError(f"top_k {top_k!r}: words of each position that get a gradient; a whole number of at "
                         "least 2, as one word has none to be compared with, or None for all")
    return top_k


@contextlib.contextmanager
def _no_autocast(*tensors: Tensor) -> Iterator[None]:
    """Mixed precision would multiply in half precision what was made float32 on purpose."""
    with contextlib.ExitStack() as stack:
        for kind in {tensor.device.type for tensor in tensors}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
