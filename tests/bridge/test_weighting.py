"""The weight of the photo's gradient into the words, against gradients taken apart."""

import pytest
import torch

from e2e_lib.bridge.weighting import weighted_gradient
from e2e_lib.repro.randomness import generator


def gradients(weight, ratio, scale=1.0):
    """The logits' gradient from a text loss, from a photo loss that reads captions alone, and from both."""
    logits = torch.randn(6, 5, generator=generator("logits"), dtype=torch.float64)
    is_caption = torch.tensor([False, True, True, False, True, False])
    targets, direction = torch.tensor([0, 3, 1, 4, 2, 2]), torch.randn(3, 5, generator=generator("photo"), dtype=torch.float64)
    losses = {"text": lambda text, photos: torch.nn.functional.cross_entropy(text, targets),
              "photo": lambda text, photos: scale * (photos[is_caption].softmax(-1) * direction).sum()}
    losses["both"] = lambda text, photos: losses["text"](text, photos) + losses["photo"](text, photos)
    losses["photo beside zero"] = lambda text, photos: losses["photo"](text, photos) + 0 * losses["text"](text, photos)
    found = {}
    for name, loss in losses.items():
        free = logits.clone().requires_grad_()
        text, photos = weighted_gradient(free, is_caption, weight, ratio)
        assert torch.equal(text, logits) and torch.equal(photos, logits)
        found[name], = torch.autograd.grad(loss(text, photos), free)
    return found, is_caption


@pytest.mark.parametrize("weight", [0.0, 1.0, 100.0])
def test_a_weight_multiplies_the_photos_gradient_alone(weight):
    plain, _ = gradients(1.0, 0.0)
    found, _ = gradients(weight, 0.0)
    assert torch.allclose(found["text"], plain["text"]) and torch.allclose(found["photo"], weight * plain["photo"])
    assert torch.allclose(found["both"], plain["text"] + weight * plain["photo"])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_ratio_makes_it_that_many_times_as_long_as_the_texts_at_captions(scale):
    plain, is_caption = gradients(1.0, 0.0, scale)
    found, _ = gradients(1.0, 3.0, scale)
    added = found["both"] - plain["text"]
    assert float(added.norm()) == pytest.approx(3 * float(plain["text"][is_caption].norm()), rel=1e-6)
    assert float(torch.cosine_similarity(added.flatten(), plain["photo"].flatten(), 0)) == pytest.approx(1)
    assert torch.allclose(found["text"], plain["text"])
    for name in ("photo", "photo beside zero"):  # alone, as the log has it, there is nothing to compare it with
        assert torch.allclose(found[name], plain["photo"])


def test_no_gradient_stays_none():
    logits = torch.zeros(2, 3, requires_grad=True)
    text, photos = weighted_gradient(logits, torch.tensor([True, False]), 1.0, 2.0)
    (text.logsumexp(-1).sum() + 0 * photos.sum()).backward()
    assert torch.allclose(logits.grad, torch.full((2, 3), 1 / 3))
