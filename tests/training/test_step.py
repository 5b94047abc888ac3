"""What a step's batches add up to in the training log."""

from types import SimpleNamespace

import pytest
import torch

from e2e_lib.models.losses import Output
from e2e_lib.training.step import Step, norm


def test_the_norm_is_that_of_one_long_vector():
    gradients = [torch.randn(3, 4), None, torch.randn(7).half()]
    vector = torch.cat([g.flatten().float() for g in gradients if g is not None])
    assert norm(gradients) == pytest.approx(vector.norm().item(), rel=1e-5) and norm([None]) == 0


def test_batches_add_up_whether_or_not_they_have_photos():
    step = Step(6, 4, 1.0, 0.1, logged=True)
    for text, image, truncated, cut, gradient in ((1.0, None, 0, [0, 2], []), (2.0, 0.5, 1, [3, 0], [1.0, 2.0]),
                                                 (4.0, None, 0, [0, 0], []), (8.0, 0.25, 2, [1, 1], [10.0, -3.0])):
        loss, photos = torch.tensor(text), torch.tensor(image or 0.0)
        output = Output(loss + photos, loss, photos, ["a boat"] if image else [], truncated)
        step.add(SimpleNamespace(context_cut=cut, response_cut=cut[:1]), output, [torch.tensor(g) for g in gradient])
    assert (step.text_losses, step.image_losses, step.truncated) == ([1, 2, 4, 8], [0.5, 0.25], 3)
    assert (step.contexts_cut, step.responses_cut) == (4, 2) and torch.stack(step.from_image).tolist() == [11, -1]
