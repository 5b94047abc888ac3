"""The joined model: what each equation says, what the image loss reaches, and what it does not."""

import dataclasses

import pytest
import torch
from model_helpers import MIXED, gradients_of, largest, run

from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.bridge.vocabulary import MAPPINGS
from e2e_lib.data.collate import Collator, photo_rngs
from e2e_lib.data.dialogue import Turn
from e2e_lib.models.end_to_end import caption_positions, merge_image_embeddings
from e2e_lib.models.losses import left_out, response_loss
from e2e_lib.repro.randomness import generator, seed_of

PREDICTED = ("bridge.caption_source", "predicted")


def numbers_of(batch, caption):
    """The numbers, among the batch's tokens that have a loss, of the words of one caption."""
    numbers = {(row, t): n for n, (row, t) in enumerate(batch.is_learnt.nonzero().tolist())}
    return [numbers[row, t] for row, t in (batch.caption_index == caption).nonzero().tolist()]


def language_logits(model, batch):
    """The logits of the batch's tokens that have a loss, (N, V1), out of those of all tokens."""
    logits = model.language(inputs_embeds=model.embed_context(batch), attention_mask=batch.attention_mask).logits
    return torch.stack([logits[row, t - 1] for row, t in batch.is_learnt.nonzero().tolist()])


@pytest.mark.parametrize("changes", [
    (), (PREDICTED,), (("bridge.noise", False),), (("bridge.pooling", "sum"),),
    *((("bridge.mapping", mapping),) for mapping in MAPPINGS[1:]),
    *((("bridge.estimator", name), ("bridge.temperature_end", 1.0)) for name in RELAXATIONS)])  # ReinMax needs 1
def test_the_image_loss_alone_reaches_the_language_model_and_the_perceptron(new_model, batch, changes):
    model = new_model(*changes)
    output = run(model, batch)
    assert largest(gradients_of(output.image_loss, model.perceptron)) > 0
    before = {name: p.clone() for name, p in model.language.named_parameters()}
    optimizer = torch.optim.SGD(model.language.parameters(), lr=10.0)
    output.image_loss.backward()
    optimizer.step()
    changed = [name for name, p in model.language.named_parameters() if not torch.equal(p, before[name])]
    assert any("layers.0" in name for name in changed) and any("embed_tokens" in name for name in changed)


def test_without_a_mapping_the_image_loss_reaches_nothing_but_the_unet(new_model, batch):
    model = new_model(("bridge.mapping", "none"))
    output = run(model, batch)
    for part in (model.language, model.perceptron):
        assert all(g is None or not g.any() for g in gradients_of(output.image_loss, part))
    assert largest(gradients_of(output.image_loss, model.generator.unet)) > 0
    assert largest(gradients_of(output.loss, model.language)) > 0  # the text loss still trains it


def test_the_mapping_changes_no_number_of_the_forward_pass(new_model, batch):
    first, *others = [run(new_model(PREDICTED, ("bridge.mapping", mapping)), batch) for mapping in MAPPINGS]
    for other in others:
        assert torch.equal(first.image_loss, other.image_loss) and torch.equal(first.text_loss, other.text_loss)
        assert first.captions == other.captions


def test_the_noise_of_eq_12_is_the_same_for_every_estimator(model, new_model, batch):
    expected = run(model, batch).image_loss
    for change in (("bridge.noise", False), *(("bridge.estimator", name) for name in RELAXATIONS)):
        assert torch.equal(run(new_model(change, ("bridge.temperature_end", 1.0)), batch).image_loss, expected), change


def test_pooling_by_sum_gives_a_larger_gradient_than_the_mean(new_model, batch):
    models = {pooling: new_model(("bridge.pooling", pooling)) for pooling in ("mean", "sum")}
    sizes = {pooling: largest(gradients_of(run(model, batch).image_loss, model.language))
             for pooling, model in models.items()}
    assert sizes["sum"] > 2 * sizes["mean"]  # captions are several tokens long


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_eq_13_is_a_weighted_sum(new_model, batch, weight):
    model = new_model(("train.image_loss_weight", weight))
    output = run(model, batch)
    expected = output.text_loss.item() + weight * output.image_loss.item()
    assert output.loss.item() == pytest.approx(expected, rel=1e-6) and output.image_loss.item() > 0.1
    expected = response_loss(language_logits(model, batch), batch).item()
    assert output.text_loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_image_loss_is_eq_12_on_the_target_photos_and_gold_captions(model, batch):
    images, losses = model.generator, []
    for photo, caption, key in zip(batch.target_photos, batch.captions, batch.photo_keys, strict=True):
        rng = generator(seed_of("step"), "photo", key)
        assert torch.rand((), generator=rng) >= 0.1  # this one is not left out
        latents = images.to_latents([photo])
        noise, timesteps = torch.randn(latents.shape[1:], generator=rng), torch.randint(1000, (1,), generator=rng)
        losses.append(images.denoising_loss(latents, images.encode(images.tokenize([caption])), noise[None], timesteps).item())
    output = run(model, batch)
    assert output.image_loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5) and output.captions == batch.captions


def test_a_left_out_caption_is_an_empty_one_and_its_photo_says_nothing_about_words(new_model, batch):
    plain, dropping = new_model(("train.caption_dropout", 0)), new_model(("train.caption_dropout", 1))
    images, rngs = plain.generator, photo_rngs(batch, seed_of("step"), "photo")
    output = run(dropping, batch)
    for rng in rngs:
        torch.rand((), generator=rng)
    latents = images.to_latents(batch.target_photos)
    text = images.encode(images.tokenize([""] * len(latents)))
    expected = images.denoising_loss(latents, text, *images.noise_of(latents, rngs))
    assert output.image_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert largest(gradients_of(output.image_loss, dropping.language)) == 0
    assert largest(gradients_of(run(plain, batch).image_loss, plain.language)) > 0
    with torch.no_grad():
        shares = [run(new_model(("train.caption_dropout", share)), batch).image_loss.item() for share in (0.0, 1.0)]
    assert shares[0] != shares[1]


def test_a_photos_noise_does_not_depend_on_its_batch(model, examples):
    rows, store = examples
    sharing = [e for e in rows if e.response.photos][:3]
    collator = Collator(model.formatter, store)
    together, apart = run(model, collator(sharing)), [run(model, collator([e])) for e in reversed(sharing)]
    assert together.image_loss.item() == pytest.approx(sum(o.image_loss.item() for o in apart) / 3, rel=1e-5)
    gradient, sums = gradients_of(together.image_loss, model.language), [gradients_of(o.image_loss, model.language) for o in apart]
    for k, whole in enumerate(gradient):
        if whole is not None:
            assert torch.allclose(whole, sum(one[k] for one in sums) / 3, atol=1e-7)


def test_caption_positions_against_a_loop(model, batch):
    logits = language_logits(model, batch).detach()
    caption_logits, gold, mask = caption_positions(logits, batch)
    assert len(caption_logits) == len(batch.target_rows) == len(batch.captions) == 4
    for r, row in enumerate(batch.target_rows.tolist()):
        at = [t for t in range(batch.input_ids.shape[1]) if batch.caption_index[row, t] >= 0]
        assert mask[r].tolist() == [True] * len(at) + [False] * (mask.shape[1] - len(at))
        for k, t in enumerate(at):
            assert torch.equal(caption_logits[r, k], logits[numbers_of(batch, r)[k]]) and gold[r, k] == batch.input_ids[row, t]
        assert model.tokenizer.decode(gold[r, :len(at)]) == batch.captions[r]


@pytest.mark.parametrize("noise", [True, False])
def test_predicted_captions_are_the_likeliest_tokens_with_or_without_noise(new_model, batch, noise):
    model = new_model(PREDICTED, ("bridge.noise", noise))
    logits, _, mask = caption_positions(language_logits(model, batch), batch)
    for row, (length, key) in enumerate(zip(mask.sum(1).tolist(), batch.photo_keys, strict=True)):
        own = gumbel_noise((length, logits.shape[-1]), generator(seed_of("step"), "words", key))
        logits[row, :length] += noise * own
    ids = logits.argmax(-1)
    output = run(model, batch)
    assert output.captions != batch.captions
    assert output.captions == [model.tokenizer.decode([i for i in row[real].tolist() if i not in model.formatter.no_words]).strip()
                               for row, real in zip(ids, mask, strict=True)]
    assert (output.captions != run(model, batch, key="another step").captions) == noise
    # Photos are drawn from these: given as gold captions, they give the same image loss to the last bit.
    gold, formatter = batch.input_ids.clone(), model.formatter
    ids = ids.masked_fill(ids == formatter.image_token_id, formatter.pad_token_id)  # no photo belongs there
    gold[batch.target_rows] = gold[batch.target_rows].masked_scatter(batch.caption_index[batch.target_rows] >= 0, ids[mask])
    as_gold = dataclasses.replace(batch, captions=output.captions, input_ids=gold)
    assert torch.equal(output.image_loss, run(new_model(("bridge.noise", noise)), as_gold).image_loss)


@pytest.mark.parametrize("mapping", MAPPINGS[1:])
def test_special_tokens_predicted_inside_a_caption_are_no_words(new_model, batch, mapping):
    model = new_model(PREDICTED, ("bridge.noise", False), ("bridge.mapping", mapping))
    language, (_, wanted, mask) = language_logits(model, batch), caption_positions(language_logits(model, batch), batch)
    wanted[:, 1], wanted[:, 3] = model.formatter.eos_token_ids  # the end of an answer, and a new line
    logits, numbers = torch.zeros_like(language), torch.arange(wanted.shape[1])
    at = [numbers_of(batch, r) for r in range(len(mask))]
    for positions, ids in zip(at, wanted, strict=True):
        logits[positions, ids[:len(positions)]] = 3.0
    text, captions, _ = model.encode_captions(logits.requires_grad_(), batch, 1.0, 7)
    kept = mask & (numbers != 1) & (numbers != 3)
    assert captions == [model.tokenizer.decode(ids[words]).strip() for ids, words in zip(wanted, kept, strict=True)]
    assert not any("\n" in caption or "</s>" in caption for caption in captions)
    weights = torch.randn(text.shape, generator=generator("weights"))
    gradient, = torch.autograd.grad((text * weights).sum(), logits)
    for positions in at:
        reached = gradient[positions].abs().sum(1) > 0
        assert not reached[[1, 3]].any() and reached[[0, 2]].all()


def test_several_photos_of_a_response_are_learnt_as_single_ones_are(new_model, examples):
    (rows, store), model = examples, new_model(("train.caption_dropout", 0))
    one, two = [e for e in rows if e.response.photos][:2]
    both = dataclasses.replace(one, response=Turn(one.response.speaker, "", (*one.response.photos, *two.response.photos)))
    together = Collator(model.formatter, store)([both, two])
    logits, gold, mask = caption_positions(language_logits(model, together), together)
    captions = [photo.caption for e in (one, two, two) for photo in e.response.photos]
    assert together.target_rows.tolist() == [0, 0, 1] and captions == together.captions
    assert [model.tokenizer.decode(ids[real]) for ids, real in zip(gold, mask, strict=True)] == captions
    output = run(model, together)
    rngs = photo_rngs(together, seed_of("step"), "photo")
    latents = model.generator.to_latents([store.tensor(e.response.photos[0].photo_id) for e in (one, two, two)])
    left_out(rngs, 0)
    expected = model.generator.denoising_loss(latents, model.generator.encode(model.generator.tokenize(captions)),
                                              *model.generator.noise_of(latents, rngs))
    assert output.captions == captions and output.image_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    full = language_logits(model, together)
    gradient, = torch.autograd.grad(model.encode_captions(full, together, 1.0, 7)[0][1].square().sum(), full)
    reached = (gradient.abs().sum(-1) > 0).nonzero()[:, 0]
    assert reached.tolist() == numbers_of(together, 1)  # its own words alone


def test_query_embeddings_replace_image_tokens_in_reading_order():
    is_image = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]], dtype=torch.bool)
    words, queries = torch.randn(3, 5, 4, generator=generator(0)), torch.randn(3, 2, 4, generator=generator(1))
    expected, next_query = words.clone(), iter(queries.flatten(0, 1))
    for row in range(3):
        for t in range(5):
            if is_image[row, t]:
                expected[row, t] = next(next_query)
    assert torch.equal(merge_image_embeddings(words, is_image, queries), expected)
    with pytest.raises(ValueError, match="6 image tokens in the text, but 2 photos of 2 query embeddings"):
        merge_image_embeddings(words, is_image, queries[:2])


@pytest.mark.parametrize("train", [True, False])
def test_the_context_is_words_and_photos_with_a_gradient(model, batch, train):
    embeddings = model.train(train).embed_context(batch)  # gradients are measured in evaluation mode, too
    is_image = batch.input_ids == model.formatter.image_token_id
    assert is_image.sum() == len(batch.photos) * model.perceptron.queries > 0
    assert torch.equal(embeddings[is_image], model.perceptron(batch.photos).flatten(0, 1))
    assert torch.equal(embeddings[~is_image], model.language.get_input_embeddings()(batch.input_ids)[~is_image])
    assert largest(gradients_of(embeddings[is_image].sum(), model.perceptron)) > 0


def test_photos_of_any_size_are_read_and_learnt_from(model, batch):
    photos = [MIXED[i % len(MIXED)] for i in range(len(batch.photos))]
    mixed = dataclasses.replace(batch, photos=photos, target_photos=MIXED)
    output = run(model, mixed)
    output.loss.backward()
    assert output.loss.isfinite() and not torch.equal(output.image_loss, run(model, batch).image_loss)
    assert largest(p.grad for p in model.perceptron.parameters()) > 0
