"""Eq. 9 and 11 in rank-one form against the matrix product written out, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from e2e_lib.bridge.gumbel import gumbel_noise, relaxed, straight_through
from e2e_lib.bridge.transfer import said, transfer
from e2e_lib.bridge.vocabulary import members
from e2e_lib.randomness import generator


def written_out(logits: Tensor, temperature: float, noise: Tensor, source: list[list[int]], target: list[list[int]], table: Tensor,
                pooling: str) -> list[Tensor]:
    """Eq. 4-7 and 9-11 for each caption of a batch, with the full matrix M (V1, V2), entry by entry."""
    results = []
    for row, (a, b) in enumerate(zip(source, target, strict=True)):
        z = logits[row, :len(a)]
        y = torch.softmax((z + noise[row, :len(a)].to(z)) / temperature, -1)
        hard = torch.zeros_like(y)
        for t in range(len(a)):
            hard[t, y[t].argmax()] = 1
        h = hard - y.detach() + y  # Eq. 7
        matrix = torch.zeros(logits.shape[-1], len(table), dtype=table.dtype)  # Eq. 10
        for i in set(a):
            for j in set(b):
                matrix[i, j] = 1
        pushed = h @ matrix @ table  # (T, D2), Eq. 9 followed by the embedding table
        pooled = pushed.mean(0) if pooling == "mean" else pushed.sum(0)
        results.append(table[torch.tensor(b)] + (pooled - pooled.detach()))  # Eq. 11
    return results


@st.composite
def captions(draw):
    v1, v2 = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    count = draw(st.integers(1, 4))
    source = [draw(st.lists(st.integers(0, v1 - 1), min_size=1, max_size=7)) for _ in range(count)]  # repeated tokens are likely
    target = [draw(st.lists(st.integers(0, v2 - 1), min_size=1, max_size=7)) for _ in range(count)]
    return v1, v2, source, target, draw(st.integers(1, 5)), draw(st.sampled_from([0.05, 0.5, 1.0, 3.0])), draw(st.integers(0, 10**6))


def padded(rows: list[list[int]], before: int, after: int) -> tuple[Tensor, Tensor]:
    """Token rows with ``before`` start tokens and at least ``after`` end tokens, filled up with token 0, and what counts."""
    longest = max(map(len, rows)) + before + after
    ids, valid = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, before:before + len(row)] = torch.tensor(row)
        valid[i, before:before + len(row)] = True
    return ids, valid


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@given(case=captions())
@settings(max_examples=60, deadline=None)
def test_rank_one_form_equals_the_matrix_product(pooling, case):
    v1, v2, source, target, width, temperature, seed = case
    rng = generator(seed)
    table = torch.randn(v2, width, generator=rng, dtype=torch.float64)
    source_ids, positions = padded(source, 0, 0)
    target_ids, valid = padded(target, 1, 1)
    logits = torch.randn(*source_ids.shape, v1, generator=rng, dtype=torch.float64, requires_grad=True)
    noise = gumbel_noise(logits.shape, rng)
    weight = torch.randn(*target_ids.shape, width, generator=rng, dtype=torch.float64)

    y = relaxed(logits, temperature, noise)
    a, b = members(source_ids, positions, v1).double(), members(target_ids, valid, v2).double()
    s = said(y, a, positions, pooling)
    ours = transfer(table[target_ids], target_ids, b, table, s, valid)
    dense = written_out(logits, temperature, noise, source, target, table, pooling)

    assert torch.equal(ours, table[target_ids])  # forward: CLIP's own embeddings, to the last bit, padding included
    for row, expected in enumerate(dense):
        assert torch.equal(ours[row, 1:1 + len(expected)], expected.detach())
    loss = sum((expected * weight[row, 1:1 + len(expected)]).sum() for row, expected in enumerate(dense))
    expected_gradient, = torch.autograd.grad(loss, logits)
    # The start, end and padding positions get weight too: nothing of it may come back.
    gradient, = torch.autograd.grad((ours * weight).sum(), logits)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
    assert not gradient[~positions].any()

    # h in place of y: the same gradient.
    s_of_h = said(straight_through(relaxed(logits, temperature, noise)), a, positions, pooling)
    from_h, = torch.autograd.grad((transfer(table[target_ids], target_ids, b, table, s_of_h, valid) * weight).sum(), logits)
    assert torch.allclose(from_h, gradient, rtol=1e-9, atol=1e-12)


def test_s_is_the_share_of_positions_that_say_one_of_the_captions_tokens():
    h = torch.eye(5)[torch.tensor([[0, 2, 4, 1], [3, 3, 0, 0]])]  # (2, 4, 5): what was said, position by position
    positions = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    a = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    assert said(h, a, positions, "sum").tolist() == [2, 2]
    assert said(h, a, positions, "mean").tolist() == [0.5, 1]


def test_a_caption_without_tokens_gives_no_gradient_and_no_nan():
    logits = torch.randn(2, 3, 4, requires_grad=True, generator=generator(0))
    positions = torch.tensor([[True, True, False], [False, False, False]])
    a = members(torch.zeros(2, 3, dtype=torch.long), positions, 4)
    s = said(relaxed(logits, 1.0), a, positions, "mean")
    out = transfer(torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 6), torch.randn(6, 3), s, torch.ones(2, 5))
    gradient, = torch.autograd.grad(out.sum(), logits)
    assert torch.isfinite(out).all() and gradient[0].any() and not gradient[1].any()


@pytest.mark.parametrize("wrong", ["ids", "s"])
def test_shapes_that_do_not_belong_together_are_named(wrong):
    ids = torch.zeros(2, 4 if wrong == "ids" else 5, dtype=torch.long)
    s = torch.zeros(3 if wrong == "s" else 2)
    with pytest.raises(ValueError, match=r"embeddings \(2, 5, 3\).*do not belong together"):
        transfer(torch.zeros(2, 5, 3), ids, torch.zeros(2, 6), torch.zeros(6, 3), s, torch.ones(2, 5))
