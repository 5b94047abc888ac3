"""The exact gradient of the expected image loss, its ingredients, and the estimates compared with it."""

import json

import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.estimators import compare_gradients
from e2e_lib.config import replace
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.experiments import gradient_alignment as gradients
from e2e_lib.experiments.variants import MAPS
from e2e_lib.models.systems import build
from e2e_lib.repro.randomness import generator
from e2e_lib.training.loop import train


@pytest.fixture(scope="module")
def case(config, corpus):
    """The tiny model, a batch of one caption, and the caption's variants."""
    model = build(config).eval()
    dialogues, store, _ = load_split(corpus, "train")
    example = next(e for d in dialogues for e in examples_of(d) if e.response.photo and not e.response.text)
    batch = Collator(model.formatter, store)([example])
    return model, batch, gradients.caption_variants(model, batch, positions=2, words=3, noises=4, rng=generator("family"))


def test_logits_of_a_caption_are_those_before_each_of_its_tokens(config, examples):
    rows, store = examples
    example = next(e for e in rows if e.response.photo and not any(turn.photo for turn in e.context))
    model = build(config).eval()
    context, _ = model.formatter.context(example.context, example.response.speaker)
    response, is_caption = model.formatter.response(example.response)
    with torch.no_grad():
        logits = model.language(torch.tensor([context + response])).logits[0]
    at = [len(context) + n for n, of_caption in enumerate(is_caption) if of_caption]
    caption_logits, ids = gradients.caption_of(model, Collator(model.formatter, store)([example]))
    torch.testing.assert_close(caption_logits, logits[[n - 1 for n in at]])
    assert model.tokenizer.decode(ids).strip() == example.response.photo.caption


def test_variants_are_every_choice_of_words_at_their_positions(case):
    model, _, variants = case
    assert variants.choices.tolist() == [[i, j] for i in range(3) for j in range(3)]
    for choice, ids, text in zip(variants.choices, variants.ids, variants.texts, strict=True):
        assert torch.equal(ids[variants.positions], variants.words[torch.arange(2), choice])
        assert text == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert variants.index_of(F.one_hot(choice, 3)) == variants.texts.index(text) or variants.texts.count(text) > 1
    others = [t for t in range(variants.ids.shape[1]) if t not in variants.positions.tolist()]
    assert (variants.ids[:, others] == variants.ids[:1, others]).all()
    p = variants.logits.softmax(-1)
    assert torch.equal(p[others].argmax(-1), variants.ids[0, others]) and (p[others].max(-1).values == 1).all()
    assert p[variants.positions[:, None], variants.words].sum(-1) == pytest.approx(1.0)


def test_the_exact_gradient_is_the_slope_of_the_expected_loss(case):
    _, _, variants = case
    expected, gradient = variants.exact_gradient()
    p = variants.free_logits.double().softmax(-1)
    table = variants.losses.double().reshape(3, 3)
    assert float(expected) == pytest.approx(float(p[0] @ table @ p[1]))
    for n, m in ((0, 0), (0, 2), (1, 1)):
        values = []
        for step in (1e-4, -1e-4):
            free = variants.free_logits.double().clone()
            free[n, m] += step
            q = free.softmax(-1)
            values.append(float(q[0] @ table @ q[1]))
        assert float(gradient[n, m]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-3, abs=1e-7)


def test_an_embedding_gradient_is_the_slope_of_its_captions_loss(case, monkeypatch):
    model, batch, variants = case
    direction = torch.randn(variants.embedding_gradients.shape[1:], generator=generator("direction"))
    again, _ = gradients.image_losses(model, batch, variants.texts[:1], 4, generator("family"))
    torch.testing.assert_close(again[0], variants.losses[0])  # the same noise for every caption
    encode, values = model.generator.encode, []
    for step in (4e-4, -4e-4):
        monkeypatch.setattr(model.generator, "encode",
                            lambda ids, embeddings, step=step: encode(ids, embeddings + step * direction))
        values.append(float(gradients.image_losses(model, batch, variants.texts[:1], 4, generator("family"))[0][0]))
    slope = float((variants.embedding_gradients[0] * direction).sum())
    assert slope == pytest.approx((values[0] - values[1]) / 8e-4, rel=0.05, abs=1e-5)


def test_reinforce_is_unbiased_and_equal_losses_have_no_gradient(case):
    _, _, variants = case
    estimates = gradients.reinforce_estimates(variants, draws=600, samples=8, rng=generator("draws"))
    report = compare_gradients(estimates, variants.exact_gradient()[1])
    assert report["relative_bias"] < 4 * report["standard_error"]
    flat = gradients.CaptionVariants(**{**vars(variants), "losses": torch.ones_like(variants.losses)})
    assert flat.exact_gradient()[1].abs().max() < 1e-6


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel", "decoupled", "reinmax"])
def test_estimates_through_the_bridge_are_sampled_and_reproducible(case, estimator):
    model, _, variants = case
    bridge = CaptionBridge(model.tokenizer, model.generator.tokenizer, "span", estimator=estimator, length=model.generator.max_length)
    embedding = model.generator.text_encoder.get_input_embeddings()
    one, other = (gradients.bridge_estimates(variants, bridge, embedding, 1.0, draws=20, rng=generator("draws"))
                  for _ in range(2))
    assert torch.equal(one, other) and one.shape == (20, 2, 3) and one.isfinite().all()
    assert one.abs().max() > 0 and one.sum(-1).abs().max() < 1e-4  # softmax's gradient sums to nothing
    assert (one.std(0).max() == 0) == (estimator == "straight_through")  # only the argmax samples nothing


def test_every_map_and_estimator_is_measured_once(config, shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("\n".join(caption_words()))
    for key, value in (("train.epochs", 1), ("train.epoch_examples", 4), ("bridge.word_list", "words.txt")):
        config = replace(config, key, value)
    train(config, 0, lambda _: None)
    monkeypatch.setattr(gradients, "ESTIMATORS", (("gumbel", 1.0), ("reinmax", 1.0)))
    small, lines = {"captions": 2, "positions": 1, "words": 3, "noises": 2, "draws": 40}, []
    record = json.loads(gradients.measure(config, 0, lines.append, **small).read_text())
    assert [(row["mapping"], row["estimator"]) for row in record["rows"]] == [
        *((name, estimator) for name in MAPS if name != "none" for estimator in ("gumbel", "reinmax")), ("all", "reinforce")]
    for row in record["rows"]:
        assert row["n"] == 2 and -1 <= row["cosine"]["mean"] <= 1 and row["relative_variance"]["mean"] >= 0
        assert row["seconds_per_draw"]["mean"] > 0
    # With one position there is one gradient that sums to zero over three words, and REINFORCE must point along it.
    assert record["rows"][-1]["cosine"]["mean"] > 0.8 and len(record["captions"]) == 2
    gradients.measure(config, 0, lines.append, **small)
    assert "gradients.json is there already" in lines[-1]
