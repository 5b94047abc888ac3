"""How Divter draws, code by code, and how diffusion does, step by step: notebook 05. N codes a photo, K codes in the book; C, s, s latents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.data.photos import to_floats, to_pixels
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.translator import ImageTranslator
from e2e_lib.pretraining.image import psnr_db
from e2e_lib.report.plots import Figure, Markdown, escape_mathtext, photo_grid, table

Drawer = ImageGenerator | ImageTranslator


@torch.no_grad()
def rebuilt(drawer: Drawer, photos: Tensor) -> Tensor:
    """Photos (B, 3, S, S), uint8, after the autoencoder in which a drawer draws."""
    if isinstance(drawer, ImageTranslator):
        return drawer.to_photos(drawer.to_codes(to_floats(photos)))
    return decoded(drawer, drawer.to_latents(to_floats(photos)))


@torch.no_grad()
def decoded(drawer: ImageGenerator, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, s, s) to photos (B, 3, S, S), uint8."""
    return to_pixels(drawer.vae.decode(latents / drawer.vae.config.scaling_factor).sample)


def holds(drawer: Drawer) -> str:
    """What one photo is, in the space in which a drawer draws."""
    if isinstance(drawer, ImageTranslator):
        return f"{drawer.side} × {drawer.side} codes out of {drawer.codes} ({drawer.side**2 * math.log2(drawer.codes):,.0f} bits)"
    _, channels, side, _ = latent_shape(drawer)
    return f"{channels} × {side} × {side} = {channels * side**2:,} real numbers"


def latent_shape(drawer: ImageGenerator) -> tuple[int, int, int, int]:
    """The shape (1, C, s, s) of one photo's latents."""
    side = drawer.unet.config.sample_size
    return 1, drawer.unet.config.in_channels, side, side


def read_right(reader: SceneClassifier, photos: Tensor, scenes: Sequence[Scene], names: Sequence[str] = tuple(ATTRIBUTES)) -> dict[str, float]:
    """The share of photos (B, 3, 64, 64), uint8, in which the scene reader sees what their scene has, for each attribute."""
    seen = reader.read(photos)
    return {name: sum(row[name] == getattr(scene, name) for row, scene in zip(seen, scenes, strict=True)) / len(scenes) for name in names}


def rebuilt_table(photos: Tensor, found: Mapping[str, Tensor], holds: Mapping[str, str], scenes: Sequence[Scene], reader: SceneClassifier) -> Markdown:
    """What is left of photos (N, 3, 64, 64) after each autoencoder, ``found`` by its name: PSNR, and what the scene reader still sees rightly."""
    rows: list[list[Any]] = [["none: the photos themselves", "", None, *(f"{share:.0%}" for share in read_right(reader, photos, scenes).values())]]
    for name, again in found.items():
        shares = read_right(reader, again, scenes)
        rows.append([name, holds[name], f"{psnr_db(again, photos).mean():.1f}", *(f"{share:.0%}" for share in shares.values())])
    return table([f"autoencoder (N = {len(photos)} test photos)", "a photo is", "PSNR (dB)", *ATTRIBUTES], rows)


def rebuilt_figure(photos: Tensor, found: Mapping[str, Tensor], note: str) -> Figure:
    """Photos (n, 3, S, S) above, and what is left of them after each autoencoder below."""
    images, titles = list(photos), ["photo"] * len(photos)
    for name, again in found.items():
        images += list(again)
        titles += [f"{name}: {value:.1f} dB" for value in psnr_db(again, photos).tolist()]
    return photo_grid([image.permute(1, 2, 0).numpy() for image in images], titles, columns=len(photos), note=note)


@torch.no_grad()
def code_log_probs(translator: ImageTranslator, captions: list[str], codes: Tensor) -> Tensor:
    """log P of each code, given the caption and the codes before it: codes (B, n) to (B, n + 1, K), of which the last is for the next code."""
    return translator.code_logits(captions, codes).log_softmax(-1)


@torch.no_grad()
def code_bits(translator: ImageTranslator, captions: list[str], codes: Tensor) -> Tensor:
    """How surprising each code (B, N) is given the caption and the codes before it, in bits (B, N)."""
    log_p = code_log_probs(translator, captions, codes[:, :-1])
    return -log_p.gather(2, codes[..., None])[..., 0] / math.log(2)


def code_colours(translator: ImageTranslator, codes: Tensor) -> Tensor:
    """The mean colour (n, 3), from 0 to 1, of a photo that is nothing but one code, for each of n codes."""
    return translator.to_photos(codes[:, None].expand(-1, translator.side**2)).float().mean((2, 3)) / 255


def codes_figure(translator: ImageTranslator, photo: Tensor, note: str) -> Figure:
    """A photo (3, S, S), uint8, cut into squares; the code that stands for each; and the photo made of the codes."""
    codes = translator.to_codes(to_floats(photo[None]))
    side, colours = translator.side, code_colours(translator, codes[0])
    figure = Figure(9.6, 3.5, note)
    axes = figure.subplots(1, 3)
    axes[0].imshow(photo.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[0].set_title(f"a photo, cut into {side} × {side}", fontsize=9)
    axes[1].imshow(colours.view(side, side, 3).numpy(), interpolation="nearest")
    for place, (code, colour) in enumerate(zip(codes[0].tolist(), colours, strict=True)):
        ink = "black" if colour.mean() > 0.5 else "white"
        axes[1].text(place % side, place // side, str(code), ha="center", va="center", fontsize=6.5, color=ink)
    axes[1].set_title(f"its codes: numbers from 0 to {translator.codes - 1}", fontsize=9)
    axes[2].imshow(translator.to_photos(codes)[0].permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[2].set_title("the photo made of these codes", fontsize=9)
    for ax in (axes[0], axes[2]):
        for line in np.arange(1, side) * photo.shape[-1] / side - 0.5:
            ax.axhline(line, color="white", linewidth=0.5)
            ax.axvline(line, color="white", linewidth=0.5)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    return figure


def surprise_figure(translator: ImageTranslator, photo: Tensor, caption: str, note: str) -> Figure:
    """A photo (3, S, S), uint8, and how surprising each of its codes is with the caption and without it."""
    codes, side = translator.to_codes(to_floats(photo[None])), translator.side
    bits = code_bits(translator, [caption, ""], codes.expand(2, -1))
    figure = Figure(9.6, 3.4, note)
    axes = figure.subplots(1, 3)
    axes[0].imshow(photo.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[0].set_title(escape_mathtext(f"“{caption}”", 42), fontsize=9)
    for ax, each, name in zip(axes[1:], bits, ("with the caption", "without it"), strict=True):
        image = ax.imshow(each.view(side, side).numpy(), cmap="cividis", vmin=0, vmax=max(1.0, float(bits.max())))
        ax.set_title(f"{name}: {each.sum():.0f} bits in all", fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="bits a code", shrink=0.8)
    return figure


def unfinished(translator: ImageTranslator, codes: Tensor, counts: Sequence[int]) -> Tensor:
    """A drawing (1, N) after its first codes, (len(counts), 3, S, S), uint8: squares not written yet are grey. The last code written stands in
    for those to come, since the decoder looks at neighbours too."""
    photos = []
    for count in counts:
        photo = translator.to_photos(torch.cat([codes[:, :count], codes[:, count - 1:count].expand(-1, codes.shape[1] - count)], 1))[0]
        written = (torch.arange(codes.shape[1]) < count).view(translator.side, translator.side)
        shown = written.repeat_interleave(photo.shape[-1] // translator.side, 0).repeat_interleave(photo.shape[-1] // translator.side, 1)
        photos.append(torch.where(shown, photo, torch.full_like(photo, 225)))
    return torch.stack(photos)


def rows_figure(rows: Mapping[str, Tensor], titles: Sequence[str], note: str, heading: str = "") -> Figure:
    """Named rows of photos (n, 3, S, S), uint8, with a title above each column; a row's name stands at its left."""
    count = max(len(photos) for photos in rows.values())
    figure = Figure(max(6.0, 1.35 * count + 1.3), 1.4 * len(rows) + 0.6 + 0.25 * bool(heading), note)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, photos) in zip(axes, rows.items(), strict=True):
        for ax, photo in zip(line, photos, strict=False):
            ax.imshow(photo.permute(1, 2, 0).numpy(), interpolation="nearest")
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(escape_mathtext(name, 14), fontsize=8.5)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(escape_mathtext(title, 22), fontsize=8)
    if heading:
        figure.suptitle(escape_mathtext(heading, 110), fontsize=10)
    return figure


def seen_as(row: Mapping[str, Any]) -> str:
    """What the scene reader sees, in a few words."""
    return f"{row['number']} {row['colour']} {row['thing']}{'s' * (row['number'] > 1)}, {row['place']}, {row['time']}"
