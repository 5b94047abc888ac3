"""Eq. 2 against a loop, and which weights count as trained."""

import pytest
import torch
from torch.nn import functional as F

from e2e_lib.data.collate import IGNORED
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
    losses = [-F.log_softmax(logits[row, t - 1].double(), -1)[labels[row, t]].item()
              for row in range(3) for t in range(1, 7) if labels[row, t] != IGNORED]
    assert response_loss(logits, labels).item() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert response_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_the_text_loss_ignores_logits_that_predict_no_response(rows):
    logits, labels = rows
    loss, predicts_response = response_loss(logits, labels), F.pad(labels[:, 1:] != IGNORED, (0, 1))
    for positions, same in ((~predicts_response, True), (predicts_response, False)):
        changed = logits.clone()
        changed[positions] += torch.randn(changed[positions].shape, generator=generator(0))
        assert torch.equal(response_loss(changed, labels), loss) == same
