"""From the language model's words to the text encoder's embeddings, and the gradient back (section 2.4.2, Eq. 9 and 11).

Forward, the text encoder gets exactly its own embeddings of the caption. Backward, pooling h M over the caption's positions leaves
one number a caption, s = pool_t Σ_{i∈A} h[t, i], because M has rank one. It enters as (s - sg(s)) Σ_{j∈B} E[j] at every position.
"""

import torch
from torch import Tensor


def said(relaxation: Tensor, source_members: Tensor, positions: Tensor, pooling: str) -> Tensor:
    """s of each caption (B,): how much of the language model's choice falls on the caption's own tokens.

    ``relaxation`` (B, C, V1) is y of Eq. 5, or h: both give the same gradient, and only the gradient of s is ever used.
    ``source_members`` (B, V1) is 1_A, ``positions`` (B, C) says which positions are the caption's. Pooling is "mean" (the paper) or
    "sum" (its released code).
    """
    on_caption = torch.einsum("bcv,bv->bc", relaxation, source_members) * positions
    total = on_caption.sum(1)
    return total / positions.sum(1).clamp_min(1) if pooling == "mean" else total


def transfer(embeddings: Tensor, input_ids: Tensor, target_members: Tensor, table: Tensor, s: Tensor, valid: Tensor) -> Tensor:
    """Eq. 11: the caption's embeddings (B, L, D2) with the gradient to the language model attached.

    ``embeddings`` are E[input_ids]; ``target_members`` (B, V2) is 1_B; ``table`` (V2, D2) is E; ``valid`` (B, L) leaves out the start,
    end and padding tokens, which belong to no word. The values of ``embeddings`` are unchanged.
    """
    if embeddings.shape[:2] != input_ids.shape or len(s) != len(embeddings):
        raise ValueError(f"embeddings {tuple(embeddings.shape)}, input_ids {tuple(input_ids.shape)} and s {tuple(s.shape)} do not belong together")
    direction = target_members @ table  # (B, D2): Σ_{j∈B} E[j]
    push = (s - s.detach()).unsqueeze(1) * direction  # zero forward
    return embeddings + push.unsqueeze(1) * valid.unsqueeze(2)
