"""Divter's translator: codes, losses and photos against loops over single captions and codes."""

import copy
import shutil

import pytest
import torch
from model_helpers import enlarge, noise_photo
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from e2e_lib.data.photos import to_floats, to_pixels
from e2e_lib.models.translator import CAPTION_DROPOUT, ImageTranslator, drop_captions, load_translator
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import generator

CAPTIONS = ["a red car", "", "two blue cats at the beach, in the evening"]
PHOTOS = [noise_photo(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def translator(systems):
    """Divter's translator with larger weights, so that photos depend on the caption and on the codes before."""
    own = copy.deepcopy(systems["divter"].generator)
    enlarge(own.transformer)
    return own


def ids_of(translator, caption):
    """A caption's tokens and the token that begins a photo, without padding."""
    ids = translator.tokenizer(caption, truncation=True, max_length=translator.max_length)["input_ids"]
    return [*ids, len(translator.tokenizer) + translator.codes]


def log_p(translator, caption, codes):
    """Log-probabilities of the next code, from the transformer without padding, batch or cache."""
    words = len(translator.tokenizer)
    ids = torch.tensor([ids_of(translator, caption) + [words + code for code in codes]])
    return F.log_softmax(translator.transformer(ids).logits[0, -1, words:words + translator.codes].double(), -1)


def test_captions_are_padded_on_the_left_and_followed_by_the_start_of_a_photo(translator):
    captions = [*CAPTIONS, "a red car and " * 20]
    ids, mask = translator.tokenize(captions)
    assert ids.shape == mask.shape == (4, translator.max_length + 1)
    for row, real, caption in zip(ids, mask, captions, strict=True):
        own = ids_of(translator, caption)
        assert row[-len(own):].tolist() == own and real.tolist() == [0] * (len(row) - len(own)) + [1] * len(own)
    assert mask.sum(1)[1] == 3 and mask[3].all()  # an empty caption has its marks; a long one is truncated


@torch.no_grad()
def test_codes_are_the_nearest_in_the_codebook_row_by_row(translator):
    codes, codebook, side = translator.to_codes(PHOTOS), translator.vqvae.quantize.embedding.weight, translator.side
    latents = translator.vqvae.encode(to_floats(torch.stack(PHOTOS))).latents
    assert codes.shape == (3, side**2) and latents.shape[2:] == (side, side)
    for latent, row in zip(latents, codes, strict=True):
        assert row.tolist() == [int((codebook - latent[:, y, x]).square().sum(1).argmin())
                                for y in range(side) for x in range(side)]
    assert len(codes.unique()) > 3 and len({tuple(row) for row in codes.tolist()}) == 3


@torch.no_grad()
def test_photos_of_codes_are_the_autoencoders_own(translator):
    photos = translator.to_photos(translator.to_codes(PHOTOS))
    assert photos.dtype == torch.uint8 and photos.shape == (3, 3, 64, 64) and not torch.equal(photos[0], photos[1])
    expected = to_pixels(translator.vqvae(to_floats(torch.stack(PHOTOS))).sample)
    assert (photos.int() - expected.int()).abs().max() <= 1  # rounding


@torch.no_grad()
def test_the_code_loss_is_a_loop_over_captions_and_codes(translator):
    codes = translator.to_codes(PHOTOS)
    losses = [-log_p(translator, caption, row[:n])[row[n]].item()
              for caption, row in zip(CAPTIONS, codes.tolist(), strict=True) for n in range(len(row))]
    mean = sum(losses) / len(losses)
    assert translator.code_loss(CAPTIONS, codes).item() == pytest.approx(mean, rel=1e-5)
    shuffled = [CAPTIONS[2], CAPTIONS[0], CAPTIONS[1]]
    assert translator.code_loss(shuffled, codes).item() != pytest.approx(mean, rel=1e-3)
    following = translator.code_logits(CAPTIONS, codes[:, :5])  # the last logits are of the code that comes next
    assert following.shape == (3, 6, translator.codes)
    expected = log_p(translator, CAPTIONS[0], codes[0, :5].tolist()).float()
    assert torch.allclose(following[0, -1].log_softmax(-1), expected, atol=1e-4)


@torch.no_grad()
def test_a_tenth_of_the_captions_is_dropped_in_training(translator):
    captions = [f"{number} cats" for number in range(5000)]
    kept = drop_captions(captions, generator(0))
    assert all(new in (old, "") for old, new in zip(captions, kept, strict=True))
    assert abs(kept.count("") / 5000 - CAPTION_DROPOUT) < 0.02
    keys, codes = [0, 1, 2], translator.to_codes(PHOTOS)
    chances = [float(torch.rand((), generator=generator(key))) for key in keys]
    share = sum(sorted(chances)[:2]) / 2  # so that one of the three is left out
    loss = translator.caption_loss(captions[:3], PHOTOS, [generator(key) for key in keys], share)
    texts = [caption if chance >= share else "" for caption, chance in zip(captions, chances, strict=False)]
    assert texts.count("") == 1 and torch.equal(loss, translator.code_loss(texts, codes))
    assert not torch.equal(loss, translator.code_loss(captions[:3], codes))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@torch.no_grad()
def test_drawing_is_a_loop_without_cache_and_without_batches(translator, guidance_scale):
    rng, expected = generator("draw"), []
    for caption in CAPTIONS:
        # Gumbel's noise, as in Eq. 4
        noise = -torch.empty(translator.side**2, translator.codes).exponential_(generator=rng).log()
        codes = []
        for n in range(translator.side**2):
            scores = log_p(translator, caption, codes)
            if guidance_scale > 1:
                uncond = log_p(translator, "", codes)
                scores = uncond + guidance_scale * (scores - uncond)
            codes.append(int((scores + noise[n]).argmax()))
        expected.append(codes)
    photos = translator.draw(CAPTIONS, generator("draw"), guidance_scale=guidance_scale)
    assert (photos.int() - translator.to_photos(torch.tensor(expected)).int()).abs().max() <= 1
    assert len({tuple(codes) for codes in expected}) == 3


def test_drawing_ignores_the_number_of_steps_but_not_the_noise(translator):
    photos = translator.draw(CAPTIONS, generator("draw"), guidance_scale=2.0)
    assert photos.shape == (3, 3, 64, 64) and photos.dtype == torch.uint8
    again = translator.draw(CAPTIONS, generator("draw"), num_inference_steps=9, guidance_scale=2.0)
    assert torch.equal(photos, again) and not torch.equal(photos[0], photos[2])
    assert not torch.equal(photos, translator.draw(CAPTIONS, generator("another"), guidance_scale=2.0))


@pytest.mark.parametrize("change", [{"vocab_size": 2}, {"n_positions": -1}])
def test_a_transformer_of_the_wrong_size_is_refused(translator, tmp_path, config, change):
    right = {"vocab_size": translator.first + translator.codes + 1,
             "n_positions": translator.max_length + 1 + translator.side**2}
    sizes = {key: value + change.get(key, 0) for key, value in right.items()}
    wrong = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None, **sizes))
    complaint = (f"has {sizes['vocab_size']} words, {sizes['n_positions']} positions; {right['vocab_size']} and at "
                 f"least {right['n_positions']} are needed for {translator.first} words, 24 codes and 4² of them")
    with pytest.raises(ValueError, match=complaint):
        ImageTranslator(translator.tokenizer, translator.vqvae, wrong, translator.max_length)
    shutil.copytree(config.model.translator, tmp_path / "translator")
    wrong.save_pretrained(tmp_path / "translator" / "transformer")
    with pytest.raises(CheckpointError, match="translator: could not load"):
        load_translator(str(tmp_path / "translator"))
