"""The dynamic vocabulary transformation matrix (section 2.4.2, Eq. 10), in its rank-one form.

M[i, j] = 1 where i is one of the caption's tokens in the language model's vocabulary (the set A) and j one of its tokens in the text
encoder's (the set B). So M = 1_A 1_Bᵀ: two indicator vectors say all there is, and the matrix is never built.
"""

import torch
from torch import Tensor


def members(input_ids: Tensor, valid: Tensor, vocabulary: int) -> Tensor:
    """The indicator vector of each caption's token set: ids (B, n) and which of them count (B, n) to (B, vocabulary) of 0 and 1."""
    # One spare column takes what does not count, so that no token is mistaken for padding.
    column = torch.where(valid, input_ids, vocabulary)
    return torch.zeros(len(input_ids), vocabulary + 1, device=input_ids.device).scatter_(1, column, 1.0)[:, :vocabulary]


def dense_matrix(source: Tensor, target: Tensor) -> Tensor:
    """Eq. 10 written out, (V1,) and (V2,) indicators to M (V1, V2): for pictures and for tests, never for training."""
    return torch.outer(source, target)
