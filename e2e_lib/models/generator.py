"""The image generator (section 2.4, Eq. 12): a latent diffusion model in Stable Diffusion's own formatter.

The CLIP text encoder and the autoencoder stay frozen; the UNet learns. Captions enter as embeddings, so that the bridge can
hand over embeddings that carry a gradient to the language model.
"""

from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModel

from e2e_lib.bridge.alignment import encode_with_offsets
from e2e_lib.data.photos import to_pixels
from e2e_lib.models.hub import LOADING, locate, unreachable


class ImageGenerator(nn.Module):
    """Captions to photos: ``denoising_loss`` trains it, ``draw`` uses it."""

    text_encoder: Any  # nn.Module's attributes are typed as tensors or modules, which hides what the libraries' classes can do
    unet: Any
    vae: Any
    learner = "unet"

    def __init__(self, tokenizer: Any, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, vae: nn.Module, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.tokenizer, self.scheduler = tokenizer, scheduler
        # Channels last in memory: a sixth faster to draw on a CPU.
        self.text_encoder, self.unet, self.vae = text_encoder, unet, vae
        self.unet.to(memory_format=torch.channels_last)
        self.vae.to(memory_format=torch.channels_last)
        for frozen in (self.text_encoder, self.vae):
            frozen.requires_grad_(False)

    def tokenize(self, captions: list[str]) -> Tensor:
        """Captions to CLIP tokens (B, L), padded to the encoder's limit L, longer ones encode_with_offsets."""
        return encode_with_offsets(self.tokenizer, captions, special=True, length=self.limit)[0].input_ids

    @property
    def limit(self) -> int:
        """The longest caption in tokens, start and end marks included."""
        return self.text_encoder.config.max_position_embeddings

    def embed(self, input_ids: Tensor) -> Tensor:
        """CLIP's token embeddings E[ids], (B, L) to (B, L, D2), before positions are added."""
        return self.text_encoder.get_input_embeddings()(input_ids)

    def encode(self, input_ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """The text encoder's hidden states (B, L, D2), from ``embeddings`` in place of its own table if they are given.

        CLIPTextModel takes no embeddings, so a hook on its table returns ours: the rest of the forward pass is the library's own.
        """
        if embeddings is None:
            return self.text_encoder(input_ids=input_ids).last_hidden_state
        hook = self.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
        try:
            return self.text_encoder(input_ids=input_ids).last_hidden_state
        finally:
            hook.remove()

    @torch.no_grad()
    def to_latents(self, photos: Tensor) -> Tensor:
        """Photos (B, 3, S, S), floats from -1 to 1, to scaled latents (B, C, s, s)."""
        encoded = self.vae.encode(photos)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return latents * self.vae.config.scaling_factor

    def denoising_loss(self, latents: Tensor, text: Tensor, rng: torch.Generator, timesteps: Tensor | None = None) -> Tensor:
        """Eq. 12: the mean squared error of the predicted noise, one random timestep a photo, all as likely unless ``timesteps`` (B,) are given.

        A scheduler whose ``prediction_type`` is "v_prediction" (Stable Diffusion 2.1, the mini parts) asks for the velocity
        instead, the same error weighted differently over the timesteps.
        """
        # Drawn on the CPU whatever the device, so that a run's noise does not depend on the machine.
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        if timesteps is None:
            timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),), generator=rng)
        timesteps = timesteps.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = noise if self.scheduler.config.prediction_type == "epsilon" else self.scheduler.get_velocity(latents, noise, timesteps)
        return F.mse_loss(self.unet(noisy, timesteps, encoder_hidden_states=text).sample.float(), target.float())

    def caption_loss(self, captions: list[str], photos: Tensor, rng: torch.Generator) -> Tensor:
        """Eq. 12 for photos (B, 3, S, S), floats from -1 to 1, and their captions as text: how the generator is trained by itself."""
        return self.denoising_loss(self.to_latents(photos), self.encode(self.tokenize(captions).to(photos.device)), rng)

    @torch.no_grad()
    def draw(self, captions: list[str], rng: torch.Generator, *, num_inference_steps: int = 20, guidance_scale: float = 2.5) -> Tensor:
        """Captions to photos (B, 3, S, S), uint8, with DDIM and classifier-free guidance (none at 1).

        Each photo's starting noise is drawn one after another from ``rng``, so photo i does not depend on the batch size.
        """
        device = self.unet.device
        text = self.encode(self.tokenize(captions).to(device))
        empty = self.encode(self.tokenize([""]).to(device)).expand_as(text)
        side, channels = self.unet.config.sample_size, self.unet.config.in_channels
        latents = torch.stack([torch.randn((channels, side, side), generator=rng) for _ in captions]).to(text)
        sampler = DDIMScheduler.from_config(self.scheduler.config)
        sampler.set_timesteps(num_inference_steps)
        for timestep in sampler.timesteps:
            if guidance_scale > 1:
                without, wanted = self.unet(torch.cat([latents, latents]), timestep, encoder_hidden_states=torch.cat([empty, text])).sample.chunk(2)
                noise = without + guidance_scale * (wanted - without)
            else:
                noise = self.unet(latents, timestep, encoder_hidden_states=text).sample
            latents = sampler.step(noise, timestep, latents).prev_sample
        photos = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return to_pixels(photos).cpu()


def load_generator(source: str) -> ImageGenerator:
    """An image generator from a folder or hub id in Stable Diffusion's layout, in float32. Raises CheckpointError."""
    place = locate(source, "generator")
    try:
        vae_class = getattr(diffusers, diffusers.AutoencoderKL.load_config(place, subfolder="vae")["_class_name"])
        return ImageGenerator(
            AutoTokenizer.from_pretrained(place, subfolder="tokenizer"),
            CLIPTextModel.from_pretrained(place, subfolder="text_encoder", dtype=torch.float32),
            UNet2DConditionModel.from_pretrained(place, subfolder="unet", torch_dtype=torch.float32),
            vae_class.from_pretrained(place, subfolder="vae", torch_dtype=torch.float32),
            DDPMScheduler.from_pretrained(place, subfolder="scheduler"),
        )
    except LOADING as error:
        raise unreachable("generator", source, error) from None
