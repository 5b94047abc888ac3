"""The image generator (section 2.4, Eq. 12): a latent diffusion model in Stable Diffusion's own layout.

The CLIP text encoder and the autoencoder stay frozen; the UNet learns. Captions enter as embeddings, so that
the bridge can hand over embeddings that carry a gradient to the language model. Axes: B photos, L
text-encoder positions, D2 its width, C channels and s side of latents, S side of photos in pixels.
"""

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from e2e_lib.bridge.alignment import vocabulary_size
from e2e_lib.bridge.gumbel import full_precision
from e2e_lib.config import ConfigError
from e2e_lib.data.photos import square, to_floats, to_pixels
from e2e_lib.models.adapters import add_unet_lora, in_autocast
from e2e_lib.models.hub import load_pretrained, load_tokenizer, loading
from e2e_lib.models.losses import left_out
from e2e_lib.repro.randomness import one_each

PREDICTIONS = ("epsilon", "v_prediction")  # what a UNet may give, in the scheduler's words


class ImageGenerator(nn.Module):
    """Captions to photos: ``denoising_loss`` trains it, ``draw`` uses it."""

    text_encoder: Any  # nn.Module types attributes as modules, which hides what these classes can do
    unet: Any
    vae: Any
    learner = "unet"

    def __init__(self, tokenizer: Any, text_encoder: CLIPTextModel, unet: UNet2DConditionModel,
                 vae: nn.Module, scheduler: DDPMScheduler) -> None:
        super().__init__()
        _check_fit(tokenizer, text_encoder.config, unet.config, vae.config, scheduler.config)
        self.tokenizer, self.scheduler = tokenizer, scheduler
        # Channels last in memory: a sixth faster to draw on a CPU.
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae
        self.unet.to(memory_format=torch.channels_last)
        self.vae.to(memory_format=torch.channels_last)
        for frozen in (self.text_encoder, self.vae):
            frozen.requires_grad_(False)

    @property
    def max_length(self) -> int:
        """L, the longest caption in tokens, start and end marks included."""
        return self.text_encoder.config.max_position_embeddings

    @property
    def photo_size(self) -> int:
        """S, the side in pixels of the photos that it draws and learns from."""
        scale = getattr(self.vae, "spatial_compression_ratio", None)
        return self.unet.config.sample_size * (scale or 2 ** (len(self.vae.config.block_out_channels) - 1))

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Captions to CLIP tokens (B, L), padded to the encoder's limit L, longer ones truncated."""
        return self.tokenizer(list(captions), padding="max_length", truncation=True,
                              max_length=self.max_length, return_tensors="pt").input_ids  # (B, L)

    def encode(self, input_ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """The text encoder's hidden states (B, L, D2) of tokens (B, L).

        ``embeddings`` (B, L, D2), if given, take the place of its own table's. CLIPTextModel takes no
        embeddings, so a hook on its table returns ours: the rest of the forward pass is the library's own.
        """
        if embeddings is None:
            return self.text_encoder(input_ids=input_ids).last_hidden_state
        hook = self.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
        try:
            return self.text_encoder(input_ids=input_ids).last_hidden_state
        finally:
            hook.remove()

    @torch.no_grad()
    def to_latents(self, photos: Tensor | Sequence[Tensor]) -> Tensor:
        """B photos, uint8 (3, H, W) of any size, to scaled latents (B, C, s, s)."""
        pixels = to_floats(square(photos, self.photo_size)).to(self.vae.device, self.vae.dtype)
        encoded = self.vae.encode(pixels)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return full_precision(latents) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, s, s) to photos (B, 3, S, S), uint8."""
        decoded = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return to_pixels(decoded.float())

    def noise_of(self, latents: Tensor, rngs: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Noise like the latents (B, C, s, s) and timesteps (B,), all equally likely: each photo's from its
        own one of ``rngs``, so that they do not depend on the batch it is in."""
        # Drawn on the CPU whatever the device, so that a run's noise does not depend on the machine.
        noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs])
        count = self.scheduler.config.num_train_timesteps
        timesteps = torch.cat([torch.randint(count, (1,), generator=rng) for rng in rngs])
        return noise.to(latents), timesteps.to(latents.device)

    def denoising_loss(self, latents: Tensor, text: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Eq. 12: mean squared error of the predicted noise, for latents and noise (B, C, s, s), text (B, L,
        D2) and timesteps (B,).

        A scheduler whose ``prediction_type`` is "v_prediction" (the mini parts, but not 2.1-base) asks for
        the velocity instead: the same error, weighted differently over the timesteps.
        """
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        predicts_noise = self.scheduler.config.prediction_type == "epsilon"
        target = noise if predicts_noise else self.scheduler.get_velocity(latents, noise, timesteps)
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=text).sample  # (B, C, s, s)
        return F.mse_loss(full_precision(predicted), full_precision(target))

    def photo_loss(self, photos: Sequence[Tensor], text: Tensor, rngs: Sequence[torch.Generator],
                   caption_dropout: float) -> Tensor:
        """Eq. 12 for B photos, uint8 (3, H, W), each with its own one of ``rngs``, and the text encoder's
        hidden states (B, L, D2). A random share of these are the empty caption's instead: a UNet that learns
        with captions only forgets what guidance compares them with."""
        dropped = left_out(rngs, caption_dropout)
        if any(dropped):
            empty = self.encode(self.tokenize([""]).to(text.device)).to(text)  # (1, L, D2)
            text = torch.where(torch.tensor(dropped, device=text.device)[:, None, None], empty, text)
        latents = self.to_latents(photos)  # (B, C, s, s)
        return self.denoising_loss(latents, text, *self.noise_of(latents, rngs))

    def caption_loss(self, captions: Sequence[str], photos: Sequence[Tensor], rngs: Sequence[torch.Generator],
                     caption_dropout: float) -> Tensor:
        """``photo_loss`` for captions as text: how the generator is trained alone."""
        text = self.encode(self.tokenize(captions).to(self.unet.device))  # (B, L, D2)
        return self.photo_loss(photos, text, rngs, caption_dropout)

    def sampler(self, num_inference_steps: int) -> DDIMScheduler:
        """DDIM over so many of the scheduler's timesteps. Raises ConfigError where there are fewer."""
        sampler = DDIMScheduler.from_config(self.scheduler.config)
        count, spacing = sampler.config.num_train_timesteps, sampler.config.timestep_spacing
        most = count - (sampler.config.steps_offset if spacing == "leading" else 0)
        if num_inference_steps > most:
            raise ConfigError(f"inference.num_inference_steps = {num_inference_steps}: the image generator's "
                              f"scheduler takes at most {most}")
        sampler.set_timesteps(num_inference_steps)
        return sampler

    @torch.no_grad()
    def draw(self, captions: Sequence[str], rng: torch.Generator | Sequence[torch.Generator], *,
             num_inference_steps: int, guidance_scale: float) -> Tensor:
        """B captions to photos (B, 3, S, S), uint8, with DDIM and classifier-free guidance (none at 1).

        Each photo's starting noise comes from its own ``rng``, or is drawn one after another from a single
        one, so that photo i does not depend on the batch size.
        """
        with in_autocast(self.unet, self.text_encoder.dtype):
            return self._draw(captions, one_each(rng, len(captions)), num_inference_steps, guidance_scale)

    def _draw(self, captions: Sequence[str], rngs: Sequence[torch.Generator], num_inference_steps: int,
              guidance_scale: float) -> Tensor:
        device = self.unet.device
        text = self.encode(self.tokenize(captions).to(device))  # (B, L, D2)
        empty = self.encode(self.tokenize([""]).to(device)).expand_as(text)  # (B, L, D2)
        sampler = self.sampler(num_inference_steps)
        side, channels = self.unet.config.sample_size, self.unet.config.in_channels
        noise = [torch.randn((channels, side, side), generator=rng) for rng in rngs]
        latents = torch.stack(noise).to(device)  # (B, C, s, s)
        for timestep in sampler.timesteps:
            if guidance_scale > 1:
                both = self.unet(torch.cat([latents, latents]), timestep,  # (2 B, C, s, s)
                                 encoder_hidden_states=torch.cat([empty, text])).sample
                uncond, cond = both.chunk(2)
                predicted = uncond + guidance_scale * (cond - uncond)
            else:
                predicted = self.unet(latents, timestep, encoder_hidden_states=text).sample
            latents = sampler.step(predicted.float(), timestep, latents).prev_sample
        return self.decode(latents).cpu()  # (B, 3, S, S)


def _check_fit(tokenizer: Any, text_encoder: Any, unet: Any, vae: Any, scheduler: Any) -> None:
    """Raises ValueError for parts, given by their configurations, that do not work together, or not here."""
    words, channels = vocabulary_size(tokenizer), vae.latent_channels
    problems = {
        f"its tokenizer has {words} words, its text encoder {text_encoder.vocab_size}":
            words > text_encoder.vocab_size,
        f"its text encoder is {text_encoder.hidden_size} wide, its UNet reads {unet.cross_attention_dim}":
            text_encoder.hidden_size != unet.cross_attention_dim,
        f"its autoencoder has {channels} channels, its UNet takes {unet.in_channels} and gives "
        f"{unet.out_channels}": not channels == unet.in_channels == unet.out_channels,
        f"its scheduler's prediction_type is {scheduler.prediction_type!r}, none of "
        f"{', '.join(PREDICTIONS)}": scheduler.prediction_type not in PREDICTIONS}
    for problem, is_there in problems.items():
        if is_there:
            raise ValueError(problem)


def load_generator(source: str, lora: int = 0, frozen: torch.dtype = torch.float32) -> ImageGenerator:
    """An image generator from a folder or hub id in Stable Diffusion's layout.

    What does not learn is in the format ``frozen``: the text encoder, the autoencoder, and with LoRA factors
    of rank ``lora`` the UNet. Raises CheckpointError.
    """
    with loading("generator", source) as place:
        if "num_train_timesteps" not in DDPMScheduler.load_config(place, subfolder="scheduler"):
            raise ValueError("its scheduler_config.json has no num_train_timesteps")
        vae_class = diffusers.AutoencoderKL.load_config(place, subfolder="vae")["_class_name"]
        generator = ImageGenerator(
            load_tokenizer(place, "pad", subfolder="tokenizer"),
            load_pretrained(CLIPTextModel, place, frozen, subfolder="text_encoder"),
            load_pretrained(UNet2DConditionModel, place, frozen if lora else torch.float32, subfolder="unet"),
            load_pretrained(getattr(diffusers, vae_class), place, frozen, subfolder="vae"),
            DDPMScheduler.from_pretrained(place, subfolder="scheduler"))
    if lora:
        add_unet_lora(generator.unet, lora)
    return generator
