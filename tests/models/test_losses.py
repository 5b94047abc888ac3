"""Eq. 2 against a loop, and which weights count as trained."""

from dataclasses import fields

import pytest
import torch
from torch.nn import functional as F

from e2e_lib.data.collate import IGNORED, Batch
from e2e_lib.models.losses import response_loss
from e2e_lib.repro.randomness import generator


@pytest.fixture
def rows():
    """Logits (3, 7, 11) and labels (3, 7), of which some are ignored."""
    labels = torch.randint(11, (3, 7), generator=generator("labels"))
    labels[0, :4] = labels[1, :2] = labels[1, 6:] = labels[2, 3] = IGNORED
    return 3 * torch.randn(3, 7, 11, generator=generator("logits")), labels


def test_eq_2_is_a_loop_over_the_tokens_of_the_responses(rows):
    logits, labels = rows
    learnt = [(row, t) for row in range(3) for t in range(1, 7) if labels[row, t] != IGNORED]
    batch = Batch(**{f.name: labels for f in fields(Batch)})
    assert batch.is_learnt.nonzero().tolist() == list(map(list, learnt)) and labels[2, 0] != IGNORED
    losses = [-F.log_softmax(logits[row, t - 1].double(), -1)[labels[row, t]].item() for row, t in learnt]
    of_learnt = torch.stack([logits[row, t - 1] for row, t in learnt])
    assert response_loss(of_learnt, batch).item() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert response_loss(of_learnt.bfloat16(), batch).dtype == torch.float32
