"""Notebook 05: how Divter draws, code by code. Axes: B batch, N codes per photo, K codes in the codebook."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.data.photos import to_image
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.translator import ImageTranslator
from e2e_lib.report.plots import Figure, photo_grid


@torch.no_grad()
def reconstruct(generator: ImageGenerator | ImageTranslator, photos: Tensor) -> Tensor:
    """Photos (B, 3, S, S), uint8, encoded and decoded by a generator's autoencoder."""
    if isinstance(generator, ImageTranslator):
        return generator.to_photos(generator.to_codes(photos))
    return generator.decode(generator.to_latents(photos))


def attribute_accuracy(classifier: SceneClassifier, photos: Tensor,
                       scenes: Sequence[Scene]) -> dict[str, float]:
    """For each attribute, the share of photos (B, 3, S, S), uint8, classified as their scene's value."""
    predicted = classifier.predict(photos)
    return {name: sum(row[name] == getattr(scene, name) for row, scene in zip(predicted, scenes, strict=True))
            / len(scenes) for name in ATTRIBUTES}


@torch.no_grad()
def code_log_probs(translator: ImageTranslator, captions: Sequence[str], codes: Tensor) -> Tensor:
    """log P of each code given the caption and the codes before it: codes (B, n) to (B, n + 1, K), the last
    for the code that comes next."""
    return translator.code_logits(captions, codes).log_softmax(-1)


def code_bits(translator: ImageTranslator, captions: Sequence[str], codes: Tensor) -> Tensor:
    """-log2 P of each code (B, N) given the caption and the codes before it, (B, N)."""
    log_p = code_log_probs(translator, captions, codes[:, :-1])  # (B, N, K)
    return -log_p.gather(2, codes[..., None])[..., 0] / math.log(2)


def code_colours(translator: ImageTranslator, codes: Tensor) -> Tensor:
    """The mean colour (n, 3), from 0 to 1, of a photo of one code repeated, for each of n codes."""
    return translator.to_photos(codes[:, None].expand(-1, translator.side**2)).float().mean((2, 3)) / 255


def partial_photos(translator: ImageTranslator, codes: Tensor, counts: Sequence[int]) -> Tensor:
    """The photo of codes (1, N) after its first ``counts`` codes, uint8 (len(counts), 3, S, S); grey after.

    Since the decoder looks at neighbours, too, the last known code stands in for those to come.
    """
    known = torch.arange(codes.shape[1]) < torch.tensor(counts)[:, None]  # (n, N)
    filled = torch.where(known, codes, codes[0, torch.tensor(counts) - 1][:, None])  # (n, N)
    photos = torch.cat([translator.to_photos(row[None]) for row in filled])
    grid = known.view(-1, 1, translator.side, translator.side)
    scale = photos.shape[-1] // translator.side
    visible = grid.repeat_interleave(scale, 2).repeat_interleave(scale, 3)  # (n, 1, S, S)
    return torch.where(visible, photos, torch.full_like(photos, 225))


def photo_rows(rows: Mapping[str, Tensor], titles: Sequence[str], note: str, heading: str = "") -> Figure:
    """One row of photos (n, 3, S, S), uint8, per name; the first row has the titles of the columns, too."""
    images = [to_image(photo) for photos in rows.values() for photo in photos]
    names = [name for name, photos in rows.items() for _ in photos]
    names[:len(titles)] = [f"{name}: {title}" for name, title in zip(names, titles, strict=False)]
    return photo_grid(images, names, columns=len(titles), heading=heading, note=note)
