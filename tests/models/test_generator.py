"""The image generator: its captions are the tokenizer's, its loss is Eq. 12, and its photos depend on nothing else."""

import copy

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from model_helpers import MIXED, gradients_of, largest
from transformers import CLIPTextConfig, CLIPTextModel

from e2e_lib.bridge.alignment import encode_with_offsets
from e2e_lib.config import ConfigError
from e2e_lib.data.photos import square
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.repro import randomness

CAPTIONS = ["a red car", "two cats at the beach", "a boat"]


@pytest.fixture
def images(systems):
    """The image generator, not to be changed."""
    return systems["end_to_end"].generator


def test_captions_are_tokenized_as_the_tokenizer_and_the_bridge_do(images):
    texts, words, limit = ["a red car", "a red car and " * 20, "", "¡sí! a_b"], images.tokenizer, images.max_length
    ids = images.tokenize(texts)
    pieces, truncated = encode_with_offsets(words, texts, special=True, length=limit)
    assert truncated.tolist() == [False, True, False, False] and ids.shape == (4, limit) and torch.equal(ids, pieces.input_ids)
    for caption, row, in_caption in zip(texts, ids, pieces.token_mask, strict=True):
        alone = words(caption, add_special_tokens=False)["input_ids"][:limit - 2]
        padding = [words.pad_token_id] * (limit - 2 - len(alone))
        assert row.tolist() == [words.bos_token_id, *alone, words.eos_token_id, *padding]
        assert row[in_caption].tolist() == alone


def test_the_text_encoder_reads_given_embeddings_as_its_own(images):
    ids = images.tokenize(CAPTIONS[:2])
    own = images.text_encoder.get_input_embeddings()(ids)
    plain = images.encode(ids)
    assert torch.equal(images.encode(ids, own), plain)
    changed = own.clone()
    changed[0, 2] += 1
    moved = images.encode(ids, changed)
    assert not torch.equal(moved[0], plain[0]) and torch.equal(moved[1], plain[1])
    assert torch.equal(images.encode(ids), plain)  # the hook is gone again


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_eq_12_is_the_squared_error_of_the_predicted_noise_or_velocity(images, prediction_type):
    images = copy.deepcopy(images)
    images.scheduler.register_to_config(prediction_type=prediction_type)
    latents, text = images.to_latents(MIXED), images.encode(images.tokenize([*CAPTIONS, ""]))
    rngs = [randomness.generator("eq 12", i) for i in range(len(latents))]
    noise, timesteps = images.noise_of(latents, rngs)
    loss = images.denoising_loss(latents, text, noise, timesteps)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's schedule
    kept = torch.cumprod(1 - betas, 0)
    errors = []
    for i, t in enumerate(timesteps.tolist()):
        signal, noisy_share = kept[t].sqrt(), (1 - kept[t]).sqrt()
        noisy = (signal * latents[i] + noisy_share * noise[i]).float()
        velocity = signal * noise[i] - noisy_share * latents[i]
        predicted = images.unet(noisy[None], torch.tensor([t]), encoder_hidden_states=text[i][None]).sample[0]
        target = noise[i] if prediction_type == "epsilon" else velocity
        errors.append((predicted - target).square().mean().item())
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert largest(gradients_of(loss, images.unet)) > 0
    first = torch.full_like(timesteps, 3)
    given = images.denoising_loss(latents, text, noise, first)
    noisy = kept[3].sqrt() * latents + (1 - kept[3]).sqrt() * noise
    predicted = images.unet(noisy.float(), first, encoder_hidden_states=text).sample
    target = noise if prediction_type == "epsilon" else kept[3].sqrt() * noise - (1 - kept[3]).sqrt() * latents
    assert given.item() == pytest.approx((predicted - target).square().mean().item(), rel=1e-4)


@torch.no_grad()
def test_latents_are_the_autoencoders_for_photos_of_any_size(images):
    photos = square(MIXED, images.photo_size)
    latents = images.to_latents(MIXED)
    expected = images.vae.encode(photos / 127.5 - 1).latent * 0.7
    assert latents.shape == (4, 4, 16, 16) and torch.allclose(latents, expected, atol=1e-6)
    back = (images.vae.decode(latents / 0.7).sample.clamp(-1, 1) + 1) * 127.5
    assert images.decode(latents).dtype == torch.uint8
    assert (images.decode(latents).float() - back).abs().max() <= 0.51  # rounding


TINY_AUTOENCODERS = {
    AutoencoderKL: {"block_out_channels": (8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3,
                    "up_block_types": ("UpDecoderBlock2D",) * 3, "norm_num_groups": 4, "latent_channels": 4},
    AutoencoderDC: {"latent_channels": 4, "encoder_block_out_channels": (8, 16), "encoder_layers_per_block": (0, 1),
                    "decoder_block_out_channels": (8, 16), "decoder_layers_per_block": (0, 1),
                    "encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}}


@pytest.mark.parametrize("kind", TINY_AUTOENCODERS)
@torch.no_grad()
def test_the_photo_size_is_what_any_autoencoder_decodes_to(images, kind):
    vae = kind(**TINY_AUTOENCODERS[kind]).eval()
    other = ImageGenerator(images.tokenizer, images.text_encoder, images.unet, vae, images.scheduler)
    side = other.unet.config.sample_size
    assert other.decode(torch.zeros(1, 4, side, side)).shape[2:] == (other.photo_size,) * 2
    latents = other.to_latents(MIXED)
    assert latents.shape == (4, 4, side, side) and torch.equal(latents, other.to_latents(MIXED))  # the likeliest, no sample


@pytest.mark.parametrize(("spacing", "offset", "most"), [("leading", 1, 999), ("leading", 0, 1000), ("trailing", 1, 1000), ("linspace", 0, 1000)])
def test_it_draws_with_as_many_steps_as_the_scheduler_has_and_refuses_more(images, spacing, offset, most):
    images = copy.deepcopy(images)
    images.scheduler.register_to_config(timestep_spacing=spacing, steps_offset=offset)
    timesteps = images.sampler(most).timesteps
    assert len(set(timesteps.tolist())) == most and 0 <= timesteps.min() and timesteps.max() < 1000
    for count in (most + 1, 10**9):
        with pytest.raises(ConfigError, match=f"inference.num_inference_steps = {count}: .* scheduler takes at most {most}$"):
            draw(images, CAPTIONS[:1], num_inference_steps=count)


def other_parts(images, **changes):
    parts = {"tokenizer": images.tokenizer, "text_encoder": images.text_encoder, "unet": images.unet, "vae": images.vae,
             "scheduler": images.scheduler}
    return ImageGenerator(**parts | changes)


def with_settings(part, **changes):
    other = copy.deepcopy(part)
    other.register_to_config(**changes)
    return other


def test_parts_that_do_not_work_together_are_refused_with_what_differs(images):
    narrow = CLIPTextModel(CLIPTextConfig(vocab_size=len(images.tokenizer), hidden_size=16, num_attention_heads=1, num_hidden_layers=1))
    for changes, complaint in (
            ({"text_encoder": narrow}, "its text encoder is 16 wide, its UNet reads 32"),
            ({"unet": with_settings(images.unet, in_channels=9)}, "its autoencoder has 4 channels, its UNet takes 9 and gives 4"),
            ({"unet": with_settings(images.unet, out_channels=8)}, "its autoencoder has 4 channels, its UNet takes 4 and gives 8"),
            ({"scheduler": with_settings(images.scheduler, prediction_type="sample")},
             "its scheduler's prediction_type is 'sample', none of epsilon, v_prediction")):
        with pytest.raises(ValueError, match=complaint):
            other_parts(images, **changes)
    assert other_parts(images).photo_size == images.photo_size


def draw(drawer, captions, key="draw", **settings):
    return drawer.draw(captions, randomness.generator(key), **{"num_inference_steps": 3, "guidance_scale": 2.5} | settings)


def test_a_drawn_photo_does_not_depend_on_its_batch(images):
    together = draw(images, CAPTIONS)
    assert together.shape == (3, 3, 64, 64) and together.dtype == torch.uint8
    assert torch.equal(together, draw(images, CAPTIONS)) and not torch.equal(together, draw(images, CAPTIONS, "other"))
    rng = randomness.generator("draw")
    for caption, photo in zip(CAPTIONS, together, strict=True):
        alone = images.draw([caption], rng, num_inference_steps=3, guidance_scale=2.5)[0]
        assert (alone.int() - photo.int()).abs().max() <= 1  # rounding of sums in another order
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("scale", [1.0, 3.0])
@torch.no_grad()
def test_drawing_is_ddim_with_classifier_free_guidance(images, scale):
    captions = CAPTIONS[:2]
    noise = torch.randn(2, 4, 16, 16, generator=randomness.generator("draw"))
    text, empty = (images.encode(images.tokenize(texts)) for texts in (captions, ["", ""]))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept, latents = torch.cumprod(1 - betas, 0), noise.double()
    for t in (667, 334, 1):  # three of 1,000 steps, "leading", with Stable Diffusion's offset of 1
        cond, uncond = (images.unet(latents.float(), t, encoder_hidden_states=x).sample for x in (text, empty))
        predicted = (uncond + scale * (cond - uncond)).double()
        clean = (latents - (1 - kept[t]).sqrt() * predicted) / kept[t].sqrt()
        before = kept[max(t - 333, 0)]
        latents = before.sqrt() * clean + (1 - before).sqrt() * predicted
    expected = images.decode(latents.float())
    assert (draw(images, captions, guidance_scale=scale).int() - expected.int()).abs().max() <= 1
