"""What a step's batches add up to in the training log."""

from types import SimpleNamespace

import pytest
import torch

from e2e_lib.models.losses import Output
from e2e_lib.training.step import Step, mean, norm


def test_the_norm_is_that_of_one_long_vector():
    gradients = [torch.randn(3, 4), None, torch.randn(7).half()]
    vector = torch.cat([g.flatten().float() for g in gradients if g is not None])
    assert norm(gradients) == pytest.approx(vector.norm().item(), rel=1e-5) and norm([None]) == 0


def test_the_mean_of_losses_is_over_what_they_are_means_of():
    values = torch.rand(30, dtype=torch.float64)
    parts = [(part.mean().item(), len(part)) for part in values.split([1, 9, 20])]
    assert mean(parts) == pytest.approx(values.mean().item(), rel=1e-12) and mean([]) is None


def test_batches_add_up_whether_or_not_they_have_photos():
    step = Step(6, 4, 10, 2, 1.0, 0.1, logged=True)
    for text, image, truncated, cut, gradient in ((1.0, None, 0, [0, 2], []), (2.0, 0.5, 1, [3, 0], [1.0, 2.0]),
                                                 (4.0, None, 0, [0, 0], []), (8.0, 0.25, 2, [1, 1], [10.0, -3.0])):
        loss, photos = torch.tensor(text), torch.tensor(image or 0.0)
        output = Output(loss, photos, ["a boat"] if image else [], truncated, tokens=1)
        step.add(SimpleNamespace(context_cut=cut, response_cut=cut[:1]), output, [torch.tensor(g) for g in gradient])
    assert (step.text_losses, step.image_losses, step.truncated) == ([(1, 1), (2, 1), (4, 1), (8, 1)], [(0.5, 1), (0.25, 1)], 3)
    assert (step.contexts_cut, step.responses_cut) == (4, 2) and torch.stack(step.from_image).tolist() == [11, -1]
