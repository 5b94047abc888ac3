"""What a step's batches add up to in the training log."""

from types import SimpleNamespace

import pytest
import torch

from e2e_lib.config import SYSTEMS
from e2e_lib.data.collate import Collator
from e2e_lib.models.captioner import with_captions
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


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_has_the_same_gradient_however_it_is_cut(new_model, six, system):
    # In float64, so that only the sums' order differs; photos' noise is keyed by their place in the corpus.
    # A ratio to the text's gradient is of a batch, so it alone depends on the cut.
    changes = (("model.system", system), ("bridge.gradient_ratio", 0.0))
    model = new_model(*changes).double().eval()  # without GPT-2's dropout
    rows, store = six
    rows = with_captions(rows, model.captioner, store) if model.captioner else rows
    make = Collator(model.formatter, store)

    def gradient(size):
        batches = [make(rows[first:first + size]) for first in range(0, len(rows), size)]
        tokens, photos = (sum(counts) for counts in zip(*((int(b.is_learnt.sum()), len(b.captions)) for b in batches), strict=True))
        model.zero_grad()
        for one in batches:
            model(one, temperature=0.7, seed=3).part_of(tokens, photos).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole = gradient(6)
    for size in (4, 2, 1):
        cut = gradient(size)
        assert cut.keys() == whole.keys()
        for name, expected in whole.items():
            assert torch.allclose(cut[name], expected, rtol=1e-10, atol=1e-10 * max(1, expected.abs().max())), (size, name)
