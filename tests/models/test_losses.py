"""Eq. 2 against a loop, and which weights count as trained."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from e2e_lib.data.collate import IGNORED, Batch
from e2e_lib.models.losses import Output, response_loss
from e2e_lib.repro.randomness import generator


@pytest.fixture
def rows():
    """Logits (3, 7, 11) and labels (3, 7), of which some are ignored."""
    labels = torch.randint(11, (3, 7), generator=generator("labels"))
    labels[0, :4] = labels[1, :2] = labels[1, 6:] = labels[2, 3] = IGNORED
    return 3 * torch.randn(3, 7, 11, generator=generator("logits")), labels


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), min_size=1, max_size=6), st.floats(0, 10), st.integers(0, 99))
def test_the_parts_of_a_step_add_up_to_eq_13_of_all_of_it_however_it_is_cut(batches, weight, seed):
    rng = torch.Generator().manual_seed(seed)
    of_tokens, of_photos = ([torch.rand(sizes[k], generator=rng, dtype=torch.float64) for sizes in batches] for k in (0, 1))
    outputs = [Output(tokens.mean(), photos.mean() if len(photos) else photos.sum(), ["a cat"] * len(photos), 0, len(tokens), weight)
               for tokens, photos in zip(of_tokens, of_photos, strict=True)]
    all_tokens, all_photos = torch.cat(of_tokens), torch.cat(of_photos)
    whole = all_tokens.mean() + weight * (all_photos.mean() if len(all_photos) else 0)
    parts = [output.part_of(len(all_tokens), len(all_photos)) for output in outputs]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)
    assert len(outputs) > 1 or outputs[0].loss.item() == pytest.approx(whole.item(), rel=1e-12)


def test_eq_2_is_a_loop_over_the_tokens_of_the_responses(rows):
    logits, labels = rows
    learnt = [(row, t) for row in range(3) for t in range(1, 7) if labels[row, t] != IGNORED]
    batch = Batch(**{f.name: labels for f in fields(Batch)})
    assert batch.is_learnt.nonzero().tolist() == list(map(list, learnt)) and labels[2, 0] != IGNORED
    losses = [-F.log_softmax(logits[row, t - 1].double(), -1)[labels[row, t]].item() for row, t in learnt]
    of_learnt = torch.stack([logits[row, t - 1] for row, t in learnt])
    assert response_loss(of_learnt, batch).item() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert response_loss(of_learnt.bfloat16(), batch).dtype == torch.float32
