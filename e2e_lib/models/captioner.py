"""The image captioner of both baselines (section 3.1.4): photos to captions for a text-only model.

The paper's pipeline captions the photos of a context with BLIP-2 and lets the language model read the
captions; so do we, with the same class at every scale. Captions are made once per photo, before any batch,
and kept beside the photos.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, LogitsProcessor, LogitsProcessorList
from transformers.image_processing_utils import BaseImageProcessor

from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.data.dialogue import Turn, clean_text
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoSource, normalised
from e2e_lib.models.hub import load_pretrained, load_tokenizer, loading
from e2e_lib.repro.randomness import generator
from e2e_lib.versions import versions

MAX_NEW_TOKENS = 40  # of a caption
BATCH_SIZE = 64  # photos captioned at once


class Captioner(nn.Module):
    """Photos to captions, with BLIP-2 (ViT, Q-Former, and a language model of its own); frozen."""

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: Blip2ForConditionalGeneration, tokenizer: Any, mean: Sequence[float],
                 std: Sequence[float], samples: bool = False) -> None:
        super().__init__()
        self.model, self.tokenizer, self.samples = model.requires_grad_(False).eval(), tokenizer, samples
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        # Names the file of its captions: other weights or code, another key. A few values tell weights apart.
        digest = hashlib.sha256(repr((MAX_NEW_TOKENS, samples, versions("decoding"), *mean, *std)).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode() + tensor.flatten()[:8].float().cpu().numpy().tobytes())
        self.key = digest.hexdigest()[:12]

    def train(self, mode: bool = True) -> "Captioner":
        """Stays in evaluation mode: with dropout, a photo's caption would depend on when it was made."""
        return super().train(False)

    def pixels(self, photos: Sequence[Tensor]) -> Tensor:
        """N photos, uint8 (3, H, W) of any size, as the vision model expects them: floats (N, 3, side, side).
        """
        side = self.model.config.vision_config.image_size
        return normalised(photos, side, self.mean, self.std)

    @torch.no_grad()
    def generate_captions(self, photos: Sequence[Tensor]) -> list[str]:
        """A caption of each photo, uint8 (3, H, W): the likeliest, token by token, or a sample where the
        captioner ``samples``, with random numbers that depend on the photo alone."""
        captions: list[str] = []
        for first in range(0, len(photos), BATCH_SIZE):
            part = photos[first:first + BATCH_SIZE]
            noise = LogitsProcessorList([GumbelNoise(part)] if self.samples else [])
            ids = self.model.generate(pixel_values=self.pixels(part), max_new_tokens=MAX_NEW_TOKENS,
                                      do_sample=False, logits_processor=noise)
            captions += map(clean_text, self.tokenizer.batch_decode(ids, skip_special_tokens=True))
        return captions


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to each photo's logits, so that the likeliest token of the sum is a sample (the
    Gumbel-max trick, Eq. 4), and a photo's caption does not depend on the photos beside it."""

    def __init__(self, photos: Sequence[Tensor]) -> None:
        self.rngs = [generator("caption", hashlib.sha256(photo.cpu().numpy().tobytes()).hexdigest())
                     for photo in photos]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores`` (N, V) with noise."""
        noise = torch.stack([gumbel_noise(scores.shape[1:], rng) for rng in self.rngs])  # (N, V)
        return scores + noise.to(scores.device)


def with_captions(examples: Sequence[Example], captioner: Captioner, store: PhotoSource) -> list[Example]:
    """The examples whose context photos carry the captioner's captions instead of gold ones.

    A photo is captioned once; ``store`` keeps the captions. Raises PhotoError and files.SaveError.
    """
    captions = store.captions(captioner.key)
    shared = {photo.photo_id for example in examples for turn in example.context for photo in turn.photos}
    if new := sorted(shared - captions.keys()):
        for first in range(0, len(new), BATCH_SIZE):  # photos at their own size are large: not all at once
            part = new[first:first + BATCH_SIZE]
            generated = captioner.generate_captions([store.tensor(photo_id) for photo_id in part])
            captions |= dict(zip(part, generated, strict=True))
        store.keep_captions(captioner.key, captions)

    def captioned(turn: Turn) -> Turn:
        photos = (replace(photo, caption=captions[photo.photo_id]) for photo in turn.photos)
        return replace(turn, photos=tuple(photos))

    return [replace(example, context=tuple(map(captioned, example.context))) for example in examples]


def load_captioner(source: str, samples: bool = False) -> Captioner:
    """The captioner in float32, which ``samples`` its captions or writes the likeliest ones. Raises
    CheckpointError."""
    with loading("captioner", source) as place:
        settings, _ = BaseImageProcessor.get_image_processor_dict(place)
        captioner = Captioner(load_pretrained(Blip2ForConditionalGeneration, place), load_tokenizer(place),
                              settings["image_mean"], settings["image_std"], samples)
    return captioner
