"""The baselines: nothing but text passes between their parts, and each part does what it would do alone."""

import pytest
import torch
from model_helpers import gradients_of, run

from e2e_lib.data.collate import Collator, photo_rngs
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.losses import left_out
from e2e_lib.repro.randomness import seed_of

LEARNERS = {"pipeline": "unet", "divter": "transformer"}


@pytest.fixture(params=LEARNERS)
def system(request, systems):
    """Not to be changed."""
    return systems[request.param]


@pytest.fixture(params=LEARNERS)
def own(request, new_model):
    """A baseline to be changed, in evaluation mode: without dropout."""
    return new_model(("model.system", request.param)).eval()


def batch_of(model, examples, store):
    return Collator(model.formatter, store)(with_captions(examples, model.captioner, store))


def test_contexts_hold_captions_as_text_and_no_photo(system, six):
    batch, tokenizer = batch_of(system, *six), system.tokenizer
    assert batch.photos == [] and not (batch.input_ids == system.formatter.image_token_id).any()
    captions = [turn.photos[0].caption for example in with_captions(six[0], system.captioner, six[1])
                for turn in example.context if turn.photos]
    chats = ["".join(tokenizer.decode(ids).split()) for ids in batch.input_ids]
    assert len(captions) >= 3
    assert all(any("".join(caption.split()) in chat for chat in chats) for caption in captions)
    gold = [photo for e in six[0] for photo in e.response.photos]
    assert batch.captions == [photo.caption for photo in gold]
    assert all(torch.equal(photo, six[1].tensor(shared.photo_id))
               for photo, shared in zip(batch.target_photos, gold, strict=True))


@torch.no_grad()
def test_the_pipelines_image_loss_is_eq_12_on_the_gold_captions(systems, six):
    pipeline, rows = systems["pipeline"], [e for e in six[0] if e.response.photos]
    batch, images, errors = batch_of(pipeline, *six), pipeline.generator, []
    output, rngs = run(pipeline, batch), photo_rngs(batch, seed_of("step"), "photo")
    latents = [images.to_latents([six[1].tensor(e.response.photos[0].photo_id)]) for e in rows]
    assert not any(left_out(rngs, 0.1))
    noise = [torch.randn(latents[0].shape[1:], generator=rng) for rng in rngs]
    timesteps = torch.cat([torch.randint(1000, (1,), generator=rng) for rng in rngs])
    for row, latent, wanted, t in zip(rows, latents, noise, timesteps, strict=True):
        ids = images.tokenizer([row.response.photos[0].caption], padding="max_length", max_length=images.max_length,
                               truncation=True, return_tensors="pt").input_ids
        text = images.text_encoder(ids).last_hidden_state
        noisy = images.scheduler.add_noise(latent, wanted[None], t[None])
        errors.append((images.unet(noisy, t, encoder_hidden_states=text).sample - wanted).square().mean().item())
    assert output.image_loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_the_loss_is_the_sum_of_both_parts_losses(system, six):
    batch = batch_of(system, *six)
    output = run(system, batch)
    assert torch.equal(output.loss, output.text_loss + output.image_loss) and output.image_loss > 0.1
    assert torch.equal(output.image_loss,
                       system.generator.caption_loss(batch.captions, batch.target_photos,
                                                     photo_rngs(batch, seed_of("step"), "photo"), 0.1))
    assert output.captions == [e.response.photos[0].caption for e in six[0] if e.response.photos]


def test_no_gradient_passes_between_the_parts(own, six):
    output, learner = run(own, batch_of(own, *six)), own.generator.learner
    parts = {"language": own.language, learner: own.generator.get_submodule(learner)}
    assert own.trained_parts() == parts and learner in LEARNERS.values() and not own.joint
    assert all(g is None for g in gradients_of(output.image_loss, own.language))
    assert all(g is None for g in gradients_of(output.text_loss, own.generator))
    output.loss.backward()
    reached = {name for name, p in own.named_parameters() if p.grad is not None and p.grad.any()}
    trained = {id(p) for part in parts.values() for p in part.parameters()}
    assert reached == {name for name, p in own.named_parameters() if id(p) in trained}
    assert reached == {name for name, p in own.named_parameters() if p.requires_grad}  # captioner, encoders: frozen
