"""The aligned map: Eq. 9 position by position, with every word that the language model could have written.

At source position t, with the text encoder's positions S(t) that share a character with it, the gradient g of
the loss on the embeddings says how good each word w would have been there,

    ∂L/∂h[t, w] = Σ_{l∈S(t)} g_l · Ē(w) / |T(l)|

where T(l) are the source positions that share a character with l, and Ē(w) is the mean embedding of the
target tokens that spell w. So the image loss can say "not red: green", where a map of the caption's own
tokens can only say "less of red". Eq. 9's M is a static matrix here, and h M E = h Ē.
Axes: B captions, C source positions, L target positions, n links, k words with a gradient, V1 and V2
vocabularies, D2 embedding width.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.alignment import Encoding, overlap, special_ids, vocabulary_size
from e2e_lib.bridge.gumbel import full_precision
from e2e_lib.bridge.vocabulary import pooling_weights

CARRIER = "a "  # what stands before a word, so that tokenizers mark its beginning


def token_texts(tokenizer: Any) -> list[str]:
    """What each token of a vocabulary writes, by id, without blanks around it; "" for special tokens, parts
    of a character and ids that no token has."""
    ids, special = range(vocabulary_size(tokenizer)), {*special_ids(tokenizer)}
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return ["" if i in special or "\ufffd" in text else text.removeprefix("##").removesuffix("</w>").strip()
            for i, text in zip(ids, texts, strict=True)]


def tokens_in_a_caption(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """The tokens of each word where it follows another word."""
    backend = tokenizer.backend_tokenizer  # twice as fast for all words of a vocabulary
    backend.no_truncation()  # the tokenizer sets both anew with every call
    backend.no_padding()
    rows = backend.encode_batch([CARRIER + word for word in words], add_special_tokens=False)
    return [[i for i, (_, end) in zip(row.ids, row.offsets, strict=True) if end > len(CARRIER)]
            for row in rows]


@dataclass
class Spelling:
    """Ē of each source token as a sparse matrix: token w has the links from ``starts[w]`` to ``starts[w +
    1]``, with the target tokens ``target_ids`` (n,) by ``weights`` (n,) that sum to 1. Tokens that write
    nothing have none."""

    target_ids: Tensor
    weights: Tensor
    starts: Tensor  # (V1,)
    order: Tensor | None = None  # (V1,): which token's Ē each token has, by default its own
    _latest: tuple[tuple[Any, ...], Tensor, Tensor] | None = field(default=None, repr=False)

    def embeddings(self, table: Tensor, logits: Tensor) -> Tensor:
        """Ē (V1, D2) from the table E (V2, D2), with the type, device and words of ``logits`` (…, V1): zeros
        for tokens that write nothing and those of a model's padded vocabulary. Kept (131 MB at the paper's
        size), and computed anew where the table changed, by anything but its ``.data``."""
        table = table.detach()
        version = None if table.is_inference() else table._version
        key = (table.data_ptr(), version, table.dtype, table.device, table.shape, table.stride(),
               logits.dtype, logits.device, logits.shape[-1])
        if self._latest is None or version is None or self._latest[0] != key:
            rows = full_precision(table)
            words = F.embedding_bag(self.target_ids.to(rows.device), rows, self.starts.to(rows.device),
                                    mode="sum", per_sample_weights=self.weights.to(rows))  # (V1, D2)
            if self.order is not None:
                words = words[self.order.to(words.device)]
            padding = logits.shape[-1] - len(words)
            # The table is kept, too, so that no other can come to lie where it lies.
            self._latest = key, F.pad(words, (0, 0, 0, padding)).to(logits), table
        return self._latest[1]


def spelling(source_tokenizer: Any, target_tokenizer: Any) -> Spelling:
    """Which target tokens say what a source token says.

    A token that words of the target's vocabulary are written with has the mean of these words, where a word
    counts 1 / id², as vocabularies list frequent words first: so "▁red" is red, and "▁pur" is purple, which
    its letters do not say. Any other token has the mean of the target tokens that spell it. With Llama-2's
    and CLIP's tokens, cosines with the true gradient of 0.85 for colours and 0.37 for things became 0.82 and
    0.32 where tokens were spelled alone, or where only whole words had an Ē.
    """
    source_texts, target_texts = token_texts(source_tokenizer), token_texts(target_tokenizer)
    words = [j for j, tokens in enumerate(tokens_in_a_caption(target_tokenizer, target_texts))
             if tokens == [j]]
    special = special_ids(source_tokenizer)
    written = tokens_in_a_caption(source_tokenizer, [target_texts[j] for j in words])
    links = [(i, j, 1 / (1 + j)**2) for j, pieces in zip(words, written, strict=True)
             for i in {*pieces}.difference(special)]
    in_words = {i for i, _, _ in links}
    others = [i for i in range(len(source_texts)) if i not in in_words]
    spelled = tokens_in_a_caption(target_tokenizer, [source_texts[i] for i in others])
    links += [(i, j, 1.0) for i, tokens in zip(others, spelled, strict=True) for j in tokens]
    source, target, weights = torch.tensor(sorted(links), dtype=torch.float64).reshape(-1, 3).T.contiguous()
    source = source.long()
    counts = source.bincount(minlength=len(source_texts))  # (V1,)
    total = source.bincount(weights, minlength=len(source_texts))  # (V1,)
    return Spelling(target.long(), weights / total[source], counts.cumsum(0) - counts)


def shuffled(spelled: Spelling) -> Spelling:
    """A control: each source token that writes anything has the Ē of another one, always the same. The
    embeddings keep their lengths, and what they say of a word is another word's."""
    return replace(spelled, order=another_order(spelled, 0))


def another_order(spelled: Spelling, seed: int) -> Tensor:
    """Which token's Ē each token has, (V1,), drawn anew for each seed: of those that write anything never its
    own."""
    ends = torch.cat([spelled.starts[1:], torch.tensor([len(spelled.target_ids)])])  # (V1,)
    writes = (ends > spelled.starts).nonzero()[:, 0]  # (n,)
    writes = writes[torch.randperm(len(writes), generator=torch.Generator().manual_seed(seed))]
    return torch.arange(len(ends)).scatter(0, writes, writes.roll(1))


def order_of_batch(spelled: Spelling, captions: Sequence[str]) -> Tensor:
    """``another_order`` for a batch of captions: as good as random, and the same when training resumes."""
    return another_order(spelled, zlib.crc32("\n".join(captions).encode()))


def alignment_weights(source: Encoding, target: Encoding, pooling: str) -> Tensor:
    """What source position t counts at target position l, (B, L, C): 1 / |T(l)| ("mean") or 1 ("sum") where
    they share a character, else 0."""
    shared = overlap(target.spans, source.spans) & target.token_mask[:, :, None] & source.token_mask[:, None]
    return pooling_weights(shared, pooling)


def plain_transfer(y: Tensor, weights: Tensor, words: Tensor, kept: Tensor | None = None) -> Tensor:
    """The definition: what vectors y (B, C, V1) add to the embeddings through Ē ``words`` (V1, D2), zeros (B,
    L, D2). With ``kept`` (B, C, k), each position's other words have the mean of the Ē of those, weighted
    with y."""
    if kept is None:
        transferred = y @ words  # (B, C, D2)
    else:
        y = y.gather(-1, kept)  # (B, C, k)
        inside = (y[..., None, :] @ words[kept])[..., 0, :]  # (B, C, D2)
        total = y.sum(-1, keepdim=True)  # (B, C, 1)
        transferred = inside + (1 - total) * (inside / total).detach()
    return weights.to(y) @ (transferred - transferred.detach())
