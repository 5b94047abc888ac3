"""The exact gradient of the expected image loss, its ingredients, and the estimates compared with it."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from trained_runs import save_trained

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.estimators import compare_gradients
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.config import replace
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.experiments import gradient_alignment as gradients
from e2e_lib.experiments.variants import MAPS
from e2e_lib.models.systems import build
from e2e_lib.repro.randomness import generator


@pytest.fixture(scope="module")
def case(config, corpus):
    """The tiny model, a batch of one caption, and the caption's variants."""
    model = build(config).eval()
    dialogues, store, _ = load_split(corpus, "train")
    example = next(e for d in dialogues for e in examples_of(d) if e.response.photos and not e.response.text)
    batch = Collator(model.formatter, store)([example])
    return model, batch, gradients.caption_variants(model, batch, positions=2, words=3, noises=4, rng=generator("family"))


def test_logits_of_a_caption_are_those_before_each_of_its_tokens(config, examples):
    rows, store = examples
    example = next(e for e in rows if e.response.photos and not any(turn.photos for turn in e.context))
    model = build(config).eval()
    context = model.formatter.context(example.context, example.response.speaker).ids
    response, caption_index, *_ = model.formatter.response(example.response)
    with torch.no_grad():
        logits = model.language(torch.tensor([context + response])).logits[0]
    at = [len(context) + n for n, number in enumerate(caption_index) if number == 0]
    caption_logits, ids = gradients.caption_of(model, Collator(model.formatter, store)([example]))
    torch.testing.assert_close(caption_logits, logits[[n - 1 for n in at]])
    assert model.tokenizer.decode(ids).strip() == example.response.photos[0].caption


def test_the_likeliest_words_vary_where_the_model_is_least_sure_and_no_special_token_does(case, monkeypatch):
    model, batch, _ = case
    logits, gold = gradients.caption_of(model, batch)
    special = model.tokenizer.all_special_ids
    logits[:, special] = 9.0  # likelier than any word
    monkeypatch.setattr(gradients, "caption_of", lambda *_: (logits, gold))
    variants = gradients.caption_variants(model, batch, positions=2, words=4, noises=1, rng=generator("family"))
    allowed = [i for i in range(logits.shape[1]) if i not in special]
    p = logits[:, allowed].double().softmax(-1)
    entropy = (-p * p.log()).sum(-1).tolist()
    assert variants.positions.tolist() == sorted(sorted(range(len(gold)), key=lambda t: entropy[t])[-2:])
    for at, words in zip(variants.positions.tolist(), variants.words.tolist(), strict=True):
        assert words == sorted(allowed, key=lambda i: float(logits[at, i]), reverse=True)[:4]
    assert torch.equal(variants.free_logits, logits[variants.positions[:, None], variants.words])


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
    encode, values = model.generator.encode, []
    for step in (4e-4, -4e-4):
        monkeypatch.setattr(model.generator, "encode",
                            lambda ids, embeddings, step=step: encode(ids, embeddings + step * direction))
        values.append(gradients.image_losses(model, batch, variants.texts[::4], 4, generator("family"))[0])
    slopes = (variants.embedding_gradients[::4] * direction).sum((1, 2))
    assert slopes.tolist() == pytest.approx(((values[0] - values[1]) / 8e-4).tolist(), rel=0.05, abs=1e-5)
    assert slopes.std() > 0.01 * slopes.abs().mean()  # each caption has its own


def test_every_caption_is_judged_under_the_same_noise_at_timesteps_spread_over_their_range(case):
    model, batch, variants = case
    seen, unet = [], model.generator.unet
    hook = unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].tolist()))
    losses, slopes = gradients.image_losses(model, batch, variants.texts, 4, generator("family"))
    hook.remove()
    assert seen == [seen[0]] * len(variants.texts) and [t * 4 // 1000 for t in seen[0]] == [0, 1, 2, 3]
    assert torch.equal(losses, variants.losses) and torch.equal(slopes, variants.embedding_gradients)
    rng, latents = generator("family"), model.generator.to_latents(batch.target_photos).expand(4, -1, -1, -1)
    torch.rand(4, generator=rng)  # of the timesteps; then comes the noise
    noise = torch.randn(latents.shape, generator=rng)
    for text, loss, slope in zip(variants.texts, losses, slopes, strict=True):  # each caption alone
        encoded = model.generator.encode(model.generator.tokenize([text])).expand(4, -1, -1)
        with torch.no_grad():
            expected = model.generator.denoising_loss(latents, encoded, noise, torch.tensor(seen[0]))
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
        alone = gradients.image_losses(model, batch, [text], 4, generator("family"))
        assert torch.equal(alone[0][0], loss) and torch.equal(alone[1][0], slope)
    assert len(set(losses.tolist())) > 1


def test_reinforce_is_unbiased_and_equal_losses_have_no_gradient(case):
    _, _, variants = case
    estimates = gradients.reinforce_estimates(variants, draws=600, samples=8, rng=generator("draws"))
    report = compare_gradients(estimates, variants.exact_gradient()[1])
    assert report["relative_bias"] < 4 * report["standard_error"]
    flat = gradients.CaptionVariants(**{**vars(variants), "losses": torch.ones_like(variants.losses)})
    assert flat.exact_gradient()[1].abs().max() < 1e-6


@pytest.mark.parametrize(("estimator", "temperature"), [("straight_through", 1.0), ("gumbel", 1.0), ("gumbel", 0.4)])
def test_an_estimate_is_the_slope_of_eq_11_times_the_sampled_captions_own_gradient(case, estimator, temperature):
    """Eq. 5, 10 and 11 with softmax's derivative written out, one draw after another, sign included."""
    model, _, variants = case
    slopes = torch.randn(variants.embedding_gradients.shape, generator=generator("slopes"), dtype=torch.float64)
    variants = dataclasses.replace(variants, embedding_gradients=slopes.float())
    bridge = CaptionBridge(model.tokenizer, model.generator.tokenizer, "sentence", estimator=estimator, length=model.generator.max_length)
    embedding = model.generator.text_encoder.get_input_embeddings()
    estimates = gradients.bridge_estimates(variants, bridge, embedding, temperature, draws=20, rng=generator("draws"))
    noise = gumbel_noise((20, 2, 3), generator("draws")).double()
    clip, table, positions, seen = model.generator.tokenizer, embedding.weight.detach().double(), variants.positions.tolist(), set()
    for draw, estimate in enumerate(estimates):
        z = variants.free_logits.detach().double() + (0 if estimator == "straight_through" else noise[draw])
        one, other = z.argmax(-1).tolist()
        number = 3 * one + other
        seen.add(number)
        q = (z / temperature).softmax(-1)  # (n, m); all other positions are sure of their token
        in_caption = set(variants.ids[number].tolist())
        target = clip(variants.texts[number])["input_ids"]
        inner = [n for n, token in enumerate(target) if token not in (clip.bos_token_id, clip.eos_token_id)]
        added = sum(table[token] for token in {target[n] for n in inner})  # ΣE[j] of Eq. 9, at every inner position
        weight = float(added @ sum(slopes[number][n] for n in inner)) / len(variants.ids[number])
        for n in range(len(positions)):
            member = torch.tensor([float(word in in_caption) for word in variants.words[n].tolist()])
            expected = weight * q[n] * (member - float(q[n] @ member.double())) / temperature
            assert estimate[n].tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5), (draw, n)
    assert estimates.abs().max() > 1e-3 and (len(seen) == 1) == (estimator == "straight_through")


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


def test_estimators_that_sample_often_make_an_eighth_of_the_estimates_and_time_is_per_estimate(case, monkeypatch):
    model, _, variants = case
    clock = itertools.count()
    monkeypatch.setattr(gradients.time, "perf_counter", lambda: float(next(clock)))
    cases = [("span", "gumbel", 1.0), ("word", "gumbel_rao", 0.5), ("all", "reinforce", 1.0)]
    rows = gradients.alignment(variants, model, cases, draws=40, rng=generator("draws"))
    assert [(row["mapping"], row["estimator"], row["temperature"]) for row in rows] == cases
    assert [(row["draws"], row["seconds_per_draw"]) for row in rows] == [(40, 1 / 40), (5, 1 / 5), (5, 1 / 5)]
    bridge = CaptionBridge(model.tokenizer, model.generator.tokenizer, "span", length=model.generator.max_length)
    embedding = model.generator.text_encoder.get_input_embeddings()
    estimates = gradients.bridge_estimates(variants, bridge, embedding, 1.0, draws=40, rng=generator("draws"))
    assert rows[0].items() >= compare_gradients(estimates, variants.exact_gradient()[1]).items()


def test_every_map_and_estimator_is_measured_once(config, shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("\n".join(caption_words()))
    config = replace(config, "bridge.word_list", "words.txt")
    save_trained(config)
    monkeypatch.setattr(gradients, "ESTIMATORS", (("gumbel", 1.0), ("reinmax", 1.0)))
    families, measured, caption_variants, alignment = [], [], gradients.caption_variants, gradients.alignment

    def remember(kept, value):
        kept.append(value)
        return value

    monkeypatch.setattr(gradients, "caption_variants", lambda *args, **how: remember(families, caption_variants(*args, **how)))
    monkeypatch.setattr(gradients, "alignment", lambda *args, **how: remember(measured, alignment(*args, **how)))
    small, lines = {"captions": 2, "positions": 1, "words": 3, "noises": 2, "draws": 40}, []
    record = json.loads(gradients.measure(config, 0, lines.append, **small).read_text())
    assert [(row["mapping"], row["estimator"]) for row in record["rows"]] == [
        *((name, estimator) for name in MAPS if name != "none" for estimator in ("gumbel", "reinmax")), ("all", "reinforce")]
    for row in record["rows"]:
        assert row["n"] == 2 and -1 <= row["cosine"]["mean"] <= 1 and row["relative_variance"]["mean"] >= 0
        assert row["seconds_per_draw"]["mean"] > 0
    for number, row in enumerate(record["rows"]):  # the same row of either caption
        for name in ("cosine", "relative_bias", "seconds_per_draw"):
            values = [rows[number][name] for rows in measured]
            assert row[name] == {"mean": pytest.approx(np.mean(values)), "std": pytest.approx(np.std(values, ddof=1))}
    for line, family in zip(record["captions"], families, strict=True):
        expected, gradient = family.exact_gradient()
        assert line["expected_image_loss"] == pytest.approx(float(expected)) and line["gradient_norm"] == pytest.approx(float(gradient.norm()))
        assert line["spread"] == pytest.approx(family.losses.std().item())
    # With one position there is one gradient that sums to zero over three words, and REINFORCE must point along it.
    assert record["rows"][-1]["cosine"]["mean"] > 0.8 and len(record["captions"]) == 2
    gradients.measure(config, 0, lines.append, **small)
    assert "gradients.json is there already" in lines[-1]
