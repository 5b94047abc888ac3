"""The exact gradient of the expected image loss, its ingredients, and the estimators' distance from it."""

import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.experiments import gradient_alignment as gradients
from e2e_lib.models.systems import build
from e2e_lib.repro.randomness import generator


@pytest.fixture(scope="module")
def family(config, corpus):
    model = build(config).eval()
    dialogues, store, _ = load_split(corpus, "train")
    example = next(e for d in dialogues for e in examples_of(d) if e.response.photo and not e.response.text)
    batch = Collator(model.formatter, store, config.data.photo_size)([example])
    return model, batch, gradients.family_of(model, batch, positions=2, words=3, draws=4, rng=generator("family"))


def test_a_family_is_every_choice_of_words_at_its_positions(family):
    model, _, made = family
    assert made.choices.tolist() == [[i, j] for i in range(3) for j in range(3)]
    for choice, ids, text in zip(made.choices, made.ids, made.texts, strict=True):
        assert torch.equal(ids[made.positions], made.words[torch.arange(2), choice])
        assert text == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert made.chosen(F.one_hot(choice, 3)) == made.texts.index(text) or made.texts.count(text) > 1
    others = [t for t in range(made.ids.shape[1]) if t not in made.positions.tolist()]
    assert (made.ids[:, others] == made.ids[:1, others]).all()
    p = made.logits.softmax(-1)
    assert torch.equal(p[others].argmax(-1), made.ids[0, others]) and (p[others].max(-1).values == 1).all()
    assert p[made.positions[:, None], made.words].sum(-1) == pytest.approx(1.0)


def test_the_truth_is_the_slope_of_the_expected_loss(family):
    _, _, made = family
    expected, gradient = made.truth()
    p = made.free.double().softmax(-1)
    table = made.losses.double().reshape(3, 3)
    assert float(expected) == pytest.approx(float(p[0] @ table @ p[1]))
    for n, m in ((0, 0), (0, 2), (1, 1)):
        moved = []
        for step in (1e-4, -1e-4):
            free = made.free.double().clone()
            free[n, m] += step
            q = free.softmax(-1)
            moved.append(float(q[0] @ table @ q[1]))
        assert float(gradient[n, m]) == pytest.approx((moved[0] - moved[1]) / 2e-4, rel=1e-3, abs=1e-7)


def test_a_pull_is_the_slope_of_its_captions_loss(family):
    model, batch, made = family
    generator_ = model.generator
    direction = torch.randn(made.pulls.shape[1:], generator=generator("direction"))
    again, _ = gradients.image_losses(model, batch, made.texts[:1], 4, generator("family"))
    torch.testing.assert_close(again[0], made.losses[0])  # the same noise for every caption
    original, values = generator_.embed, []
    for step in (4e-4, -4e-4):
        generator_.embed = lambda ids, step=step: original(ids) + step * direction
        values.append(float(gradients.image_losses(model, batch, made.texts[:1], 4, generator("family"))[0][0]))
    generator_.embed = original
    assert float((made.pulls[0] * direction).sum()) == pytest.approx((values[0] - values[1]) / 8e-4, rel=0.05, abs=1e-5)


def test_reinforce_finds_the_truth_and_a_family_of_equal_losses_has_none(family):
    _, _, made = family
    report = gradients.compare(gradients.reinforce_estimates(made, draws=600, samples=8, rng=generator("draws")), made.truth()[1])
    assert report["relative_bias"] < 4 * report["standard_error"]
    flat = gradients.Family(**{**vars(made), "losses": torch.ones_like(made.losses)})
    assert flat.truth()[1].abs().max() < 1e-6


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel", "decoupled", "reinmax"])
def test_estimates_through_the_bridge_are_drawn_and_reproducible(family, estimator):
    model, _, made = family
    bridge = CaptionBridge(model.tokenizer, model.generator.tokenizer, "span", estimator=estimator,
                           length=model.generator.text_encoder.config.max_position_embeddings)
    table = model.generator.text_encoder.get_input_embeddings()
    found = [gradients.estimates(made, bridge, table, temperature=1.0, draws=20, rng=generator("draws"), batch=size) for size in (20, 20)]
    assert torch.equal(*found) and found[0].shape == (20, 2, 3) and found[0].isfinite().all()
    assert found[0].abs().max() > 0 and found[0].sum(-1).abs().max() < 1e-4  # softmax's gradient sums to nothing
    assert (found[0].std(0).max() == 0) == (estimator == "straight_through")  # only the argmax draws nothing


def test_compare_knows_an_exact_a_scaled_and_an_opposite_estimate():
    truth = torch.tensor([[1.0, -1.0]])
    exact, scaled, opposite = (gradients.compare((factor * truth).expand(5, 1, 2), truth) for factor in (1.0, 3.0, -1.0))
    assert exact["cosine"] == pytest.approx(1) and exact["relative_bias"] == pytest.approx(0) and exact["relative_variance"] == 0
    assert scaled["cosine"] == pytest.approx(1) and scaled["length"] == pytest.approx(3) and scaled["scaled_bias"] == pytest.approx(0, abs=1e-9)
    assert opposite["cosine"] == pytest.approx(-1)
