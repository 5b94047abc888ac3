"""The image captioner of the two baselines (section 3.1.4): what stands between a photo and a dialogue model that cannot see.

The paper's pipeline captions the photos of a context with BLIP-2 and lets the language model read the captions; so do we, with the same
class at every scale.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, Blip2ForConditionalGeneration
from transformers.image_processing_utils import BaseImageProcessor

from e2e_lib.data.collate import PromptFormatter
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoSource
from e2e_lib.models.hub import LOADING, locate, unreachable

LONGEST = 40  # tokens of a caption
TOGETHER = 64  # photos captioned at once


class Captioner(nn.Module):
    """Photos to captions, with BLIP-2 (ViT, Q-Former, and a language model of its own); frozen."""

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: Blip2ForConditionalGeneration, tokenizer: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Captioner":
        """Stays as it is: with dropout, a photo's caption would depend on when it was first met."""
        return super().train(False)

    def pixels(self, photos: Tensor) -> Tensor:
        """Photos (N, 3, S, S), uint8, at the size and scale that the vision model was trained on: floats (N, 3, side, side)."""
        side, device = self.model.config.vision_config.image_size, self.model.device
        floats = photos.to(device).float() / 255
        if floats.shape[-1] != side:
            floats = F.interpolate(floats, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (floats - self.mean.to(device)) / self.std.to(device)

    @torch.no_grad()
    def generate_captions(self, photos: Tensor) -> list[str]:
        """The likeliest caption, word by word, of each photo (N, 3, S, S), uint8."""
        captions: list[str] = []
        for part in photos.split(TOGETHER):
            ids = self.model.generate(pixel_values=self.pixels(part), max_new_tokens=LONGEST, do_sample=False)
            captions += [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return captions


class CaptionLayout(PromptFormatter):
    """Chats as a dialogue model reads them that cannot see: a context's photos as what the captioner says of them."""

    def __init__(self, tokenizer: Any, max_context: int, captioner: Captioner) -> None:
        super().__init__(tokenizer, 1, max_context, lambda photo: photo.caption)
        self.captioner = captioner
        self.said: dict[str, str] = {}  # by what the photo shows, since chats give their photos what names they like

    def look(self, examples: Sequence[Example], store: PhotoSource, size: int) -> list[Example]:
        """The examples with the captioner's captions in their contexts. A photo is captioned once, however often it is met."""
        shown = {turn.photo.photo_id for example in examples for turn in example.context if turn.photo}
        photos = {photo_id: store.tensor(photo_id, size) for photo_id in sorted(shown)}
        keys = {photo_id: hashlib.sha256(photo.numpy().tobytes()).hexdigest() for photo_id, photo in photos.items()}
        new = {key: photos[photo_id] for photo_id, key in keys.items() if key not in self.said}
        if new:
            self.said |= dict(zip(new, self.captioner.generate_captions(torch.stack(list(new.values()))), strict=True))
        return [replace(example, context=tuple(
            replace(turn, photo=replace(turn.photo, caption=self.said[keys[turn.photo.photo_id]])) if turn.photo else turn
            for turn in example.context)) for example in examples]


def load_captioner(source: str) -> Captioner:
    """The captioner in float32. Raises CheckpointError."""
    place = locate(source, "captioner")
    try:
        model = Blip2ForConditionalGeneration.from_pretrained(place, dtype=torch.float32)
        settings, _ = BaseImageProcessor.get_image_processor_dict(place)
        return Captioner(model, AutoTokenizer.from_pretrained(place), settings["image_mean"], settings["image_std"])
    except (*LOADING, KeyError) as error:  # KeyError: a preprocessor_config.json without mean or standard deviation
        raise unreachable("captioner", source, error) from None
