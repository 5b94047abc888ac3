"""The recipe of the generator at two steps per stage, its captions and crops, and PSNR."""

import json

import pytest
import torch

from e2e_lib.config import SHIPPED, load
from e2e_lib.data.minichat.questions import omitted_attributes
from e2e_lib.models.generator import load_generator
from e2e_lib.models.hub import WEIGHTS
from e2e_lib.pretraining.fit import Pretraining, sample_photos
from e2e_lib.pretraining.image import captioned_photos, psnr_db, random_crops, reconstruct, train_generator


def test_generator_trains_in_three_stages_and_each_once(tmp_path):
    messages = []
    run = Pretraining(load("smoke"), tmp_path, WEIGHTS / "mini", messages.append)
    first, stages = train_generator(run), ["text_encoder", "generator", "light"]
    assert [message.partition(":")[0] for message in messages] == stages
    assert all(json.loads((tmp_path / stage / "state.json").read_text())["step"] == 2 for stage in stages)
    # Photos are drawn with Stable Diffusion's schedule, which the shipped generator has too.
    assert torch.equal(first.scheduler.alphas_cumprod, load_generator(SHIPPED).scheduler.alphas_cumprod)
    assert first.scheduler.alphas_cumprod[-1] > 0.004
    again = train_generator(run)
    assert len(messages) == 3
    for name, tensor in first.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor)


def test_one_of_three_captions_per_photo_omits_nothing(tmp_path):
    photos, scenes, captions = captioned_photos(Pretraining(load("smoke"), tmp_path, tmp_path, print))
    assert len(photos) == len(scenes) and [len(texts) for texts in captions] == [len(scenes)] * 3
    omissions = [[omitted_attributes(scene, text) for scene, text in zip(scenes, texts, strict=True)]
                 for texts in captions]
    assert any(omissions[0]) and any(omissions[1]) and not any(omissions[2])


def test_crops_are_pieces_of_the_photos():
    photos, _ = sample_photos(3, 0, "crops")
    crops = random_crops(photos, 4, torch.Generator().manual_seed(0))
    assert crops.shape == (4, 3, 32, 32) and -1 <= crops.min() and crops.max() <= 1
    windows = (photos.float() / 127.5 - 1).unfold(2, 32, 1).unfold(3, 32, 1)  # (3, 3, 33, 33, 32, 32)
    for crop in crops:
        assert (windows == crop[:, None, None]).all(-1).all(-1).all(1).any()


def test_psnr_is_ten_log_of_the_squared_range_over_the_squared_error():
    photos = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    shifted = photos + torch.tensor([1, 5], dtype=torch.uint8).view(2, 1, 1, 1)
    assert psnr_db(shifted, photos).tolist() == pytest.approx([48.1308, 34.1514], abs=1e-3)


def test_shipped_autoencoder_reconstructs_unseen_photos():
    photos, _ = sample_photos(8, 123, "unseen")
    reconstructed = reconstruct(load_generator(SHIPPED).vae, photos)
    assert reconstructed.shape == photos.shape and psnr_db(reconstructed, photos).mean() > 25
