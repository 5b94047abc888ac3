"""The joined model: what each equation says, what the image loss reaches, and what it does not."""

import dataclasses
import shutil

import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge.alignment import encode_with_offsets
from e2e_lib.bridge.estimators import RELAXATIONS
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.bridge.vocabulary import MAPPINGS
from e2e_lib.config import replace
from e2e_lib.data.collate import IGNORED, Collator
from e2e_lib.data.photos import to_floats
from e2e_lib.models.end_to_end import caption_positions, merge_image_embeddings
from e2e_lib.models.losses import response_loss
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.systems import build
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import generator

OWN = ("bridge.caption_source", "predicted")  # the model's own captions under teacher forcing


def forward(model, batch, temperature=1.0, key="step"):
    return model(batch, temperature=temperature, rng=generator(key))


def gradients_of(loss, module):
    weights = [p for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)


def largest(gradients):
    return max((g.abs().max().item() for g in gradients if g is not None), default=0.0)


def language_logits(model, batch):
    return model.language(inputs_embeds=model.read(batch), attention_mask=batch.attention_mask).logits


# ------------------------------------------------------------------------------------------- what the image loss reaches

@pytest.mark.parametrize("changes", [
    (), (OWN,), (("bridge.noise", False),), (("bridge.pooling", "sum"),),
    *((("bridge.mapping", mapping),) for mapping in MAPPINGS[1:]), *((("bridge.estimator", name),) for name in RELAXATIONS)])
def test_the_image_loss_alone_reaches_the_language_model_and_the_perceptron(new_model, batch, changes):
    model = new_model(*changes)
    output = forward(model, batch)
    assert largest(gradients_of(output.image_loss, model.language)) > 0
    assert largest(gradients_of(output.image_loss, model.perceptron)) > 0
    before = {name: p.clone() for name, p in model.language.named_parameters()}
    optimizer = torch.optim.SGD(model.language.parameters(), lr=10.0)
    output.image_loss.backward()
    optimizer.step()
    changed = [name for name, p in model.language.named_parameters() if not torch.equal(p, before[name])]
    assert any("layers.0" in name for name in changed) and any("embed_tokens" in name for name in changed)


def test_without_a_mapping_the_image_loss_reaches_nothing_but_the_unet(new_model, batch):
    model = new_model(("bridge.mapping", "none"))
    output = forward(model, batch)
    for part in (model.language, model.perceptron):
        assert all(g is None or not g.any() for g in gradients_of(output.image_loss, part))
    assert largest(gradients_of(output.image_loss, model.generator.unet)) > 0
    assert largest(gradients_of(output.loss, model.language)) > 0  # the text loss still trains it


def test_the_mapping_changes_no_number_of_the_forward_pass(new_model, batch):
    outputs = [forward(new_model(OWN, ("bridge.mapping", mapping)), batch) for mapping in MAPPINGS]
    for output in outputs[1:]:
        assert torch.equal(outputs[0].image_loss, output.image_loss) and torch.equal(outputs[0].text_loss, output.text_loss)
        assert outputs[0].drawn == output.drawn


@pytest.mark.parametrize("change", [("bridge.noise", False), ("bridge.estimator", "gumbel_rao"), ("bridge.estimator", "reinmax")])
def test_whatever_an_estimator_draws_the_photos_noise_is_the_same(new_model, batch, change):
    outputs = [forward(new_model(*changes), batch) for changes in ((), (change,))]
    assert outputs[0].image_loss == outputs[1].image_loss


def test_pooling_by_sum_gives_a_larger_gradient_than_the_mean(new_model, batch):
    sizes = {}
    for pooling in ("mean", "sum"):
        model = new_model(("bridge.pooling", pooling))
        sizes[pooling] = largest(gradients_of(forward(model, batch).image_loss, model.language))
    assert sizes["sum"] > 2 * sizes["mean"]  # captions are several tokens long


def test_text_encoder_and_autoencoder_stay_frozen(model, batch):
    forward(model, batch).loss.backward()
    frozen = [*model.generator.text_encoder.parameters(), *model.generator.vae.parameters()]
    assert all(not p.requires_grad and p.grad is None for p in frozen)
    names = set(model.trained_weights())
    assert names and not any("vae" in name or "text_encoder" in name for name in names)
    assert {name.split(".")[0] for name in names} == {"language", "perceptron", "generator"}


def test_every_trained_weight_gets_a_gradient(model, batch):
    # What gets none would never be trained, and stops a run on several devices.
    forward(model, batch).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


# ------------------------------------------------------------------------------------------------------------ the losses

@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_eq_13_is_a_weighted_sum(new_model, batch, weight):
    output = forward(new_model(("train.image_loss_weight", weight)), batch)
    assert output.loss.item() == pytest.approx(output.text_loss.item() + weight * output.image_loss.item(), rel=1e-6)
    assert output.image_loss.item() > 0.1


def test_eq_2_is_a_loop_over_the_tokens_of_the_responses(model, batch):
    logits = language_logits(model, batch)
    total, count = 0.0, 0
    for row in range(len(batch.input_ids)):
        for t in range(1, batch.input_ids.shape[1]):
            if batch.labels[row, t] != IGNORED:
                total -= F.log_softmax(logits[row, t - 1].double(), -1)[batch.input_ids[row, t]].item()
                count += 1
    assert response_loss(logits, batch.labels).item() == pytest.approx(total / count, rel=1e-5)
    assert forward(model, batch).text_loss.item() == pytest.approx(total / count, rel=1e-5)


def test_the_text_loss_ignores_what_the_model_says_about_the_context(model, batch):
    logits = language_logits(model, batch).detach()
    loss = response_loss(logits, batch.labels)
    elsewhere = logits.clone()
    predicts_response = F.pad(batch.labels[:, 1:] != IGNORED, (0, 1))
    elsewhere[~predicts_response] = 100 * torch.randn(elsewhere[~predicts_response].shape, generator=generator(0))
    assert torch.equal(response_loss(elsewhere, batch.labels), loss)
    elsewhere[predicts_response] += torch.randn(elsewhere[predicts_response].shape, generator=generator(1))
    assert not torch.equal(response_loss(elsewhere, batch.labels), loss)


def test_eq_12_is_the_squared_error_of_the_predicted_noise(model, batch):
    generator_part = model.generator
    latents = generator_part.to_latents(to_floats(batch.target_photos))
    text = generator_part.encode(generator_part.tokenize(batch.captions))
    loss = generator_part.denoising_loss(latents, text, generator("eq 12"))
    rng = generator("eq 12")
    noise = torch.randn(latents.shape, generator=rng)
    timesteps = torch.randint(generator_part.scheduler.config.num_train_timesteps, (len(latents),), generator=rng)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's "scaled linear" schedule
    kept = torch.cumprod(1 - betas, 0)
    errors = []
    for i, t in enumerate(timesteps.tolist()):
        noisy = (kept[t].sqrt() * latents[i] + (1 - kept[t]).sqrt() * noise[i]).float()
        predicted = generator_part.unet(noisy[None], torch.tensor([t]), encoder_hidden_states=text[i][None]).sample[0]
        errors.append((predicted - noise[i]).square().mean().item())
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert largest(gradients_of(loss, generator_part.unet)) > 0


def test_a_generator_that_predicts_velocity_is_trained_on_velocity(model, batch):
    generator_part = model.generator
    latents = generator_part.to_latents(to_floats(batch.target_photos))
    text = generator_part.encode(generator_part.tokenize(batch.captions))
    generator_part.scheduler.register_to_config(prediction_type="v_prediction")
    loss = generator_part.denoising_loss(latents, text, generator("v"))
    rng = generator("v")
    noise = torch.randn(latents.shape, generator=rng)
    timesteps = torch.randint(1000, (len(latents),), generator=rng)
    kept = generator_part.scheduler.alphas_cumprod[timesteps][:, None, None, None]
    noisy, velocity = kept.sqrt() * latents + (1 - kept).sqrt() * noise, kept.sqrt() * noise - (1 - kept).sqrt() * latents
    predicted = generator_part.unet(noisy, timesteps, encoder_hidden_states=text).sample
    assert loss.item() == pytest.approx(F.mse_loss(predicted, velocity).item(), rel=1e-4)


def test_a_batch_without_photos_to_draw_has_a_text_loss_only(model, examples):
    rows, store = examples
    text = [e for e in rows if not e.response.photo][:3]
    output = forward(model, Collator(model.formatter, store, 64)(text))
    assert output.image_loss == 0 and output.drawn == [] and torch.equal(output.loss, output.text_loss)
    output.loss.backward()
    assert all(p.grad is None for p in model.generator.unet.parameters())


def test_the_same_generator_gives_the_same_losses(model, batch):
    first, again, other = forward(model, batch), forward(model, batch), forward(model, batch, key="another step")
    assert torch.equal(first.loss, again.loss) and first.drawn == again.drawn
    assert not torch.equal(first.image_loss, other.image_loss)


# ---------------------------------------------------------------------------------------------------------- the captions

def test_caption_positions_against_a_loop(model, batch):
    logits = language_logits(model, batch).detach()
    found, gold, real = caption_positions(logits, batch)
    assert len(found) == len(batch.target_rows) == len(batch.captions) == 4
    for r, row in enumerate(batch.target_rows.tolist()):
        at = [t for t in range(batch.input_ids.shape[1]) if batch.is_caption[row, t]]
        assert real[r].tolist() == [True] * len(at) + [False] * (real.shape[1] - len(at))
        for k, t in enumerate(at):
            assert torch.equal(found[r, k], logits[row, t - 1]) and gold[r, k] == batch.input_ids[row, t]
        assert model.tokenizer.decode(gold[r, :len(at)]) == batch.captions[r]


def test_gold_captions_are_the_dialogues_own(new_model, batch):
    assert forward(new_model(), batch).drawn == batch.captions


def test_without_noise_the_drawn_captions_are_the_likeliest_words(new_model, batch):
    model = new_model(OWN, ("bridge.noise", False))
    logits = language_logits(model, batch)
    expected = []
    for row in batch.target_rows.tolist():
        at = batch.is_caption[row].nonzero().squeeze(1)
        expected.append(model.tokenizer.decode(logits[row, at - 1].argmax(-1), skip_special_tokens=True).strip())
    assert forward(model, batch).drawn == expected != batch.captions


def test_with_noise_the_drawn_captions_are_those_of_the_noisy_logits(new_model, batch):
    model = new_model(OWN)
    logits, _, real = caption_positions(language_logits(model, batch), batch)
    ids = (logits + gumbel_noise(logits.shape, generator("step"))).argmax(-1)
    expected = [model.tokenizer.decode(row[keep], skip_special_tokens=True).strip() for row, keep in zip(ids, real, strict=True)]
    output = forward(model, batch)
    assert output.drawn == expected
    assert output.drawn != forward(model, batch, key="another step").drawn


def test_photos_are_drawn_from_the_captions_that_are_reported(new_model, batch):
    # The same captions given as gold ones must give the same image loss, to the last bit.
    model = new_model(OWN)
    written = forward(model, batch)
    logits, _, real = caption_positions(language_logits(model, batch), batch)
    ids = (logits + gumbel_noise(logits.shape, generator("step"))).argmax(-1)
    gold = batch.input_ids.clone()
    gold[batch.target_rows] = gold[batch.target_rows].masked_scatter(batch.is_caption[batch.target_rows], ids[real])
    as_gold = forward(new_model(), dataclasses.replace(batch, captions=written.drawn, input_ids=gold))
    assert torch.equal(written.image_loss, as_gold.image_loss)


def test_a_caption_that_is_too_long_is_cut_and_counted(model, batch):
    limit = model.generator.text_encoder.config.max_position_embeddings
    texts = ["a red car", "a red car and " * 20, ""]
    tokens = model.generator.tokenize(texts)
    pieces, truncated = encode_with_offsets(model.generator.tokenizer, texts, special=True, length=limit)
    assert truncated == 1 and tokens.shape == pieces.valid.shape == (3, limit)
    words = model.generator.tokenizer
    for caption, ids, valid in zip(texts, tokens, pieces.valid, strict=True):
        alone = words(caption, add_special_tokens=False)["input_ids"][:limit - 2]
        assert ids[valid].tolist() == alone
        assert ids[0] == words.bos_token_id and ids[len(alone) + 1] == words.eos_token_id
    caption = "a red car and " * 20
    count = len(model.tokenizer(caption, add_special_tokens=False)["input_ids"])
    table = model.generator.text_encoder.get_input_embeddings()
    assert model.bridge([caption], torch.zeros(1, count, len(model.tokenizer)), table).truncated == 1


def test_a_caption_of_exactly_the_limit_is_whole(model):
    limit = model.generator.text_encoder.config.max_position_embeddings
    token = model.generator.tokenizer("a", add_special_tokens=False)["input_ids"]
    assert len(token) == 1
    exact, longer = " ".join("a" * (limit - 2)), " ".join("a" * (limit - 1))
    assert [encode_with_offsets(model.generator.tokenizer, [text], special=True, length=limit)[1] for text in (exact, longer)] == [0, 1]


def test_the_text_encoder_reads_handed_over_embeddings_as_its_own(model):
    ids = model.generator.tokenize(["a red car at the beach", "two cats"])
    own = model.generator.embed(ids)
    assert torch.equal(model.generator.encode(ids, own), model.generator.encode(ids))
    changed = own.clone()
    changed[0, 2] += 1
    moved = model.generator.encode(ids, changed)
    assert not torch.equal(moved[0], model.generator.encode(ids)[0]) and torch.equal(moved[1], model.generator.encode(ids)[1])
    assert torch.equal(model.generator.encode(ids), model.generator.encode(ids, own))  # the hook is gone again


# ------------------------------------------------------------------------------------------------------------ the photos

def test_photos_fill_their_slots_in_reading_order():
    slots = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]], dtype=torch.bool)
    words, queries = torch.randn(3, 5, 4, generator=generator(0)), torch.randn(3, 2, 4, generator=generator(1))
    expected, next_query = words.clone(), iter(queries.flatten(0, 1))
    for row in range(3):
        for t in range(5):
            if slots[row, t]:
                expected[row, t] = next(next_query)
    assert torch.equal(merge_image_embeddings(words, slots, queries), expected)


def test_more_photos_than_slots_is_an_error():
    with pytest.raises(ValueError, match="3 photo slots in the text, but 2 photos of 2 query embeddings"):
        merge_image_embeddings(torch.zeros(1, 4, 8), torch.tensor([[True, True, True, False]]), torch.zeros(2, 2, 8))


def test_the_model_reads_its_photos(model, batch):
    read = model.read(batch)
    slots = batch.input_ids == model.formatter.slot
    assert slots.sum() == len(batch.photos) * model.perceptron.queries > 0
    assert torch.equal(read[slots], model.perceptron(to_floats(batch.photos)).flatten(0, 1))
    assert torch.equal(read[~slots], model.language.get_input_embeddings()(batch.input_ids)[~slots])


@torch.no_grad()
def test_while_answering_a_photo_is_looked_at_once(model, monkeypatch):
    looked = []
    monkeypatch.setattr(model.perceptron, "forward", lambda photos, see=model.perceptron.forward: looked.append(len(photos)) or see(photos))
    monkeypatch.setattr("e2e_lib.models.end_to_end.REMEMBERED", 2)
    one, two, three = photos = torch.randint(256, (3, 3, 64, 64), generator=generator(0), dtype=torch.uint8)
    expected = model.eval().perceptron(to_floats(photos))
    for asked, shown, new in (((one, two, one), [0, 1, 0], 2), ((two,), [1], 0), ((three, two, one), [2, 1, 0], 1), ((two, one), [1, 0], 1)):
        looked.clear()  # last of all, the photo that was met first has been forgotten, but no photo in a batch before the batch was read
        assert torch.allclose(model.see(torch.stack(asked)), expected[shown], atol=1e-6) and sum(looked) == new


@pytest.mark.parametrize("learn", [lambda model: model.train(), lambda model: model.load_state_dict(model.state_dict())])
@torch.no_grad()
def test_what_was_seen_is_forgotten_when_the_perceptron_may_have_changed(model, batch, learn):
    before = model.eval().see(batch.photos)
    model.perceptron.language_projection.bias.add_(1)
    learn(model)
    assert torch.allclose(model.eval().see(batch.photos), before + 1, atol=1e-5)


def test_while_training_photos_are_looked_at_with_a_gradient(model, batch):
    with torch.no_grad():
        model.eval().see(batch.photos)
    for mode in (True, False):  # also in evaluation mode, in which gradients are measured
        assert model.train(mode).see(batch.photos).requires_grad


def test_eq_3_projects_the_queries_into_the_language_model(model, batch):
    photos, perceptron = to_floats(batch.photos), model.perceptron.eval()
    assert photos.min() >= -1 and photos.max() <= 1
    for i, photo in enumerate(photos):
        patches = perceptron.vision_model(pixel_values=photo[None]).last_hidden_state
        hidden = perceptron.qformer(query_embeds=perceptron.query_tokens, encoder_hidden_states=patches).last_hidden_state[0]
        projection = perceptron.language_projection
        assert torch.allclose(perceptron(photos)[i], hidden @ projection.weight.T + projection.bias, atol=1e-5)


@torch.no_grad()
def test_a_drawn_photo_does_not_depend_on_its_batch(model):
    captions = ["a red car", "two cats at the beach", "a boat"]
    together = model.generator.draw(captions, generator("draw"), num_inference_steps=3)
    assert together.shape == (3, 3, 64, 64) and together.dtype == torch.uint8
    assert torch.equal(together, model.generator.draw(captions, generator("draw"), num_inference_steps=3))
    rng = generator("draw")
    for caption, photo in zip(captions, together, strict=True):
        alone = model.generator.draw([caption], rng, num_inference_steps=3)[0]
        assert (alone.int() - photo.int()).abs().max() <= 1  # rounding of sums in another order
    assert not torch.equal(together[0], together[1])


def test_guidance_of_one_draws_the_plain_prediction(model):
    captions = ["a red car", "a blue boat"]
    plain = model.generator.draw(captions, generator("draw"), num_inference_steps=3, guidance_scale=1.0)
    almost = model.generator.draw(captions, generator("draw"), num_inference_steps=3, guidance_scale=1.0 + 1e-6)
    guided = model.generator.draw(captions, generator("draw"), num_inference_steps=3, guidance_scale=30.0)
    assert (plain.int() - almost.int()).abs().max() <= 1 and not torch.equal(plain, guided)


# --------------------------------------------------------------------------------------------------------------- building

def test_shipped_parts_and_a_local_copy_are_the_same_model(shipped, config, model):
    from_shipped = config
    for part in ("language", "perceptron", "generator"):
        from_shipped = replace(from_shipped, f"model.{part}", "shipped:mini")
    theirs = build(from_shipped).state_dict()
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("part", ["language", "perceptron", "generator"])
def test_a_missing_part_is_named(config, tmp_path, part):
    with pytest.raises(CheckpointError, match=f"{part}: there is no folder {tmp_path}/absent"):
        build(replace(config, f"model.{part}", f"{tmp_path}/absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"{part}: could not load .*--set model.{part}=FOLDER"):
        build(replace(config, f"model.{part}", f"{tmp_path}/empty"))


def test_a_damaged_shipped_part_is_named(weights, config, tmp_path, monkeypatch):
    shutil.copytree(weights, tmp_path / "weights")
    monkeypatch.setattr(hub, "WEIGHTS", tmp_path / "weights")
    path = tmp_path / "weights" / "mini" / "perceptron" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged: perceptron/model.safetensors is not what was saved"):
        build(replace(config, "model.perceptron", "shipped:mini"))


@pytest.mark.parametrize("name", ["language", "perceptron", "generator/unet", "generator/vae", "generator/text_encoder"])
@pytest.mark.parametrize("damage", ["encode_with_offsets short", "gone"])
def test_a_damaged_local_part_is_named(weights, config, tmp_path, name, damage):
    part = name.split("/")[0]
    shutil.copytree(weights / "mini" / part, tmp_path / part)
    path = next((tmp_path / name).glob("*.safetensors"))
    content = path.read_bytes()
    path.unlink()
    if damage == "encode_with_offsets short":
        path.write_bytes(content[:len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{part}: could not load"):
        build(replace(config, f"model.{part}", str(tmp_path / part)))


def test_parts_of_different_widths_are_named(config, tmp_path):
    perceptron = load_perceptron(config.model.perceptron)
    perceptron.language_projection = torch.nn.Linear(32, 48)
    perceptron._hub_mixin_config["language_width"] = 48
    perceptron.save_pretrained(tmp_path / "perceptron")
    with pytest.raises(ValueError, match="projects to 48 numbers, but the language model is 32 wide"):
        build(replace(config, "model.perceptron", str(tmp_path / "perceptron")))


def test_a_captioner_can_take_the_perceptrons_place(new_model, examples):
    """Words stand where photos were, and everything else is as before: one loss, and an image gradient to the language model."""
    model = new_model(("model.image_input", "captions"), ("bridge.mapping", "span"))
    rows, store = examples
    chosen = [e for e in rows if e.response.photo and any(turn.photo for turn in e.context)][:2]
    batch = Collator(model.formatter, store, 64)(chosen)
    assert len(batch.photos) == 0 and len(batch.target_photos) == 2
    told = " ".join(model.formatter.said.values())
    assert told and all(word in model.tokenizer.decode(batch.input_ids.flatten()) for word in told.split()[:3])
    output = model(batch, temperature=1.0, rng=generator(0))
    gradients = torch.autograd.grad(output.image_loss, list(model.language.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    assert all(name.startswith(("language.", "generator.unet.")) for name in model.trained_weights())
