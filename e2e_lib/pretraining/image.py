"""Drawing from scratch: the autoencoder and the latent diffusion model, and Divter's codes and translator."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, GPT2Config, GPT2LMHeadModel

from e2e_lib.config import Config
from e2e_lib.data.minichat.chats import describe
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.data.photos import to_floats, to_pixels
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.translator import ImageTranslator, drop_captions
from e2e_lib.pretraining.fit import Echo, fit, photo_pool, pick
from e2e_lib.pretraining.language import CAPTION_LIMIT
from e2e_lib.repro.randomness import python_random, seeded

LATENT_CHANNELS = 8


def new_autoencoder() -> AutoencoderDC:
    """64 px photos to 8×16×16 latents. It works at 32 and 16 px only (its first block folds pixels into channels), which is
    what makes it sharp after minutes: at full resolution a step of the same quality costs five times as much."""
    return AutoencoderDC(latent_channels=LATENT_CHANNELS, encoder_block_out_channels=(32, 32, 64), decoder_block_out_channels=(32, 32, 64),
                         encoder_layers_per_block=(0, 1, 2), decoder_layers_per_block=(0, 1, 2),
                         encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()))


def crops(photos: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """``count`` crops of 32 pixels (count, 3, 32, 32), floats from -1 to 1, from the lower part of the photos, where the things stand."""
    batch = photos[pick(len(photos), count, rng)]
    left, top = torch.randint(33, (2,), generator=rng).tolist()
    top = max(top, int(torch.randint(33, (1,), generator=rng)))
    return to_floats(batch[:, :, top:top + 32, left:left + 32]).contiguous(memory_format=torch.channels_last)


def train_autoencoder(config: Config, work: Path, echo: Echo) -> AutoencoderDC:
    """Reconstruction (L1 and L2), with noise on the latents so that nearby latents decode to nearby photos.

    A third of the steps decode latents of half the size to photos of half the size (the regularizer of EQ-VAE, Kouzelis et al. 2025):
    latents that scale as photos do are smooth, which a diffusion model learns several times sooner. It learns on 32-pixel crops from the
    lower part of the photos, where the things stand: skies are learnt by the way.
    """
    seed = config.pretrain.seed
    with seeded(seed, "autoencoder"):
        autoencoder = new_autoencoder().to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    photos, _ = photo_pool(config.pretrain.photos, seed, "autoencoder photos")

    def loss_of(rng: torch.Generator) -> Tensor:
        real = crops(photos, 48, rng)
        latents = autoencoder.encode(real).latent
        if torch.rand((), generator=rng) < 1 / 3:
            latents, real = F.avg_pool2d(latents, 2), F.avg_pool2d(real, 2)
        noise = torch.randn(latents.shape, generator=rng)
        error = autoencoder.decode(latents + 0.02 * latents.detach().std() * noise).sample - real
        # The small pull towards unit size keeps the latents from growing, which would make the noise above meaningless.
        return error.abs().mean() + error.square().mean() + 1e-3 * latents.square().mean()

    fit("autoencoder", autoencoder, loss_of, steps=config.pretrain.autoencoder_steps, learning_rate=2.5e-3, seed=seed, work=work, echo=echo)

    def sharpness_of(rng: torch.Generator) -> Tensor:
        real = crops(photos, 48, rng)
        with torch.no_grad():
            latents = autoencoder.encode(real).latent
        error = autoencoder.decode(latents).sample - real
        return error.abs().mean() + error.square().mean()

    # The encoder, and with it the space the generator works in, is settled; the decoder alone goes on, without noise, for sharpness.
    fit("decoder", autoencoder.decoder, sharpness_of, steps=config.pretrain.decoder_steps, learning_rate=1.5e-3, seed=seed, work=work, echo=echo)
    with torch.no_grad():
        scale = autoencoder.encode(to_floats(photos[:512])).latent.std()
    autoencoder.register_to_config(scaling_factor=float(1 / scale))
    return autoencoder


def redrawn(autoencoder: AutoencoderDC, photos: Tensor) -> Tensor:
    """Photos (N, 3, H, W), uint8, after the autoencoder."""
    with torch.no_grad():
        return torch.cat([to_pixels(autoencoder.decode(autoencoder.encode(to_floats(part)).latent).sample) for part in photos.split(64)])


def psnr_db(redrawn: Tensor, photos: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) of each reconstructed photo (N, 3, H, W), both uint8, in decibel; higher is closer."""
    error = (redrawn.float() - photos.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp_min(1e-8))


def new_generator_parts(tokenizer: Any) -> tuple[CLIPTextModel, UNet2DConditionModel, DDPMScheduler]:
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CAPTION_LIMIT, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(64, 96), layers_per_block=1,
        cross_attention_dim=96, attention_head_dim=6, norm_num_groups=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        # The pooled caption is added to the timestep (as in DeepFloyd IF), and both scale what every block computes: with cross-attention
        # alone, which thing to draw is learnt long after colour and place.
        addition_embed_type="text", addition_embed_type_num_heads=8, resnet_time_scale_shift="scale_shift")
    # Stable Diffusion 2.1's own schedule and its "v" target, which weighs what a photo shows (decided at high noise) more than plain noise
    # prediction does: worth it after minutes of training. clip_sample is off because latents are not bounded as pixels are.
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
                              clip_sample=False, steps_offset=1)
    return text, unet, scheduler


def train_generator(config: Config, work: Path, folder: Path, echo: Echo) -> ImageGenerator:
    """First the text encoder, which must know what a caption says (linear probes stand in for CLIP's pictures); then Eq. 12 on the frozen
    autoencoder's latents, text encoder and UNet together. A tenth of the captions are empty, for guidance. Timesteps are drawn around the
    middle, where shapes are decided (logit-normal, Esser et al. 2024).

    Whether it is day or night is decided before that. But Stable Diffusion's schedule leaves a trace of the photo at its last timestep, enough
    to tell them apart, and so the UNet learns to see the light in the noise instead of reading it in the caption. Therefore both go on for a
    while with a schedule that ends in pure noise (Lin et al. 2024). They draw with Stable Diffusion's own: the captions' light is not forgotten,
    and where a caption tells none, the noise still varies it (with the other schedule, joint training gave nearly all of them the same)."""
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "generator" / "tokenizer")
    vae = AutoencoderDC.from_pretrained(folder / "generator" / "vae", torch_dtype=torch.float32)
    with seeded(seed, "generator"):
        text_encoder, unet, scheduler = new_generator_parts(tokenizer)
        probes = nn.ModuleDict({name: nn.Linear(text_encoder.config.hidden_size, len(values)) for name, values in ATTRIBUTES.items()})
    made = ImageGenerator(tokenizer, text_encoder, unet, vae, scheduler)
    text_encoder.requires_grad_(True)
    photos, scenes = photo_pool(config.pretrain.photos, seed, "generator photos")
    latents = torch.cat([made.to_latents(to_floats(part)) for part in photos.split(256)])
    rng = python_random(seed, "captions")
    captions = torch.stack([made.tokenize([describe(scene, rng, detail) for scene in scenes]) for detail in (0.35, 0.35, 1.0)])
    empty = made.tokenize([""])
    truth = torch.tensor([scene.labels for scene in scenes])

    def reading_of(step_rng: torch.Generator) -> Tensor:
        index = pick(len(latents), 64, step_rng)
        told = made.encode(captions[-1, index]).mean(1)  # the captions that leave nothing out
        return sum((F.cross_entropy(probes[name](told), truth[index, i]) for i, name in enumerate(ATTRIBUTES)), torch.zeros(()))

    fit("text_encoder", nn.ModuleDict({"text_encoder": text_encoder, "probes": probes}), reading_of, steps=config.pretrain.text_encoder_steps,
        learning_rate=1e-3, seed=seed, work=work, echo=echo)

    last = scheduler.config.num_train_timesteps

    def denoising_loss(step_rng: torch.Generator, index: Tensor, kinds: Tensor, late: Tensor | None = None) -> Tensor:
        """Eq. 12 for the photos ``index``, told in captions of ``kinds``; those that are ``late`` at the noisiest fifth of the timesteps."""
        ids = torch.where(torch.rand(16, 1, generator=step_rng) < 0.1, empty, captions[kinds, index])
        timesteps = (torch.randn(16, generator=step_rng).sigmoid() * last).long()
        if late is not None:
            timesteps = torch.where(late, torch.randint(last * 4 // 5, last, (16,), generator=step_rng), timesteps)
        return made.denoising_loss(latents[index].contiguous(memory_format=torch.channels_last), made.encode(ids), step_rng, timesteps)

    def loss_of(step_rng: torch.Generator) -> Tensor:
        index = pick(len(latents), 16, step_rng)
        return denoising_loss(step_rng, index, pick(len(captions), 16, step_rng))

    def light_loss_of(step_rng: torch.Generator) -> Tensor:
        index = pick(len(latents), 16, step_rng)
        late = torch.rand(16, generator=step_rng) < 0.6  # with captions that leave nothing out
        return denoising_loss(step_rng, index, torch.where(late, len(captions) - 1, pick(len(captions), 16, step_rng)), late)

    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    fit("generator", both, loss_of, steps=config.pretrain.generator_steps, learning_rate=1.5e-3, seed=seed, work=work, echo=echo)
    made.scheduler = DDPMScheduler.from_config(scheduler.config, rescale_betas_zero_snr=True)
    fit("light", both, light_loss_of, steps=config.pretrain.high_noise_steps, learning_rate=1.5e-3, seed=seed, work=work, echo=echo)
    made.scheduler = scheduler
    return made


# ----------------------------------------------------------------------------------------------------------- Divter's

class Codebook(nn.Module):
    """A VQ autoencoder in training, and how often each of its codes was used of late."""

    use: Tensor

    def __init__(self, vqvae: VQModel) -> None:
        super().__init__()
        self.vqvae = vqvae
        self.register_buffer("use", torch.zeros(vqvae.config.num_vq_embeddings))


def new_vqvae() -> VQModel:
    """64 px photos to 8×8 codes out of 512."""
    return VQModel(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(16, 24, 32, 32),
                   layers_per_block=1, latent_channels=32, sample_size=64, num_vq_embeddings=512, norm_num_groups=8, mid_block_add_attention=False)


def train_vqvae(config: Config, work: Path, echo: Echo) -> VQModel:
    """Reconstruction (L1 and L2) through the codes, on 32-pixel crops as the other autoencoder's. Codes that fell out of use are given
    to places that are badly matched, without which most of the book stays empty."""
    seed = config.pretrain.seed
    with seeded(seed, "vqvae"):
        book = Codebook(new_vqvae().to(memory_format=torch.channels_last))
    photos, _ = photo_pool(config.pretrain.photos, seed, "autoencoder photos")

    def loss_of(rng: torch.Generator) -> Tensor:
        real, vqvae = crops(photos, 32, rng), book.vqvae
        latents = vqvae.encode(real).latents
        with torch.no_grad():
            found = vqvae.quantize(latents)[2][2]
            book.use.mul_(0.98).scatter_add_(0, found.flatten(), torch.ones(found.numel()))
            unused = (book.use < 0.5).nonzero().squeeze(1)[:64]
            places = latents.permute(0, 2, 3, 1).flatten(0, 2)
            vqvae.quantize.embedding.weight[unused] = places[pick(len(places), len(unused), rng)]
            book.use[unused] = 1.0
        quantized, commitment, _ = vqvae.quantize(latents)
        error = vqvae.decode(quantized, force_not_quantize=True).sample - real
        return error.abs().mean() + error.square().mean() + commitment

    fit("vqvae", book, loss_of, steps=config.pretrain.vqvae_steps, learning_rate=2e-3, seed=seed, work=work, echo=echo)
    return book.vqvae


def new_translator(tokenizer: Any, vqvae: VQModel) -> ImageTranslator:
    """A small GPT-2 over the caption's words and the picture's codes."""
    side = vqvae.config.sample_size // 2 ** (len(vqvae.config.block_out_channels) - 1)
    transformer = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer) + vqvae.config.num_vq_embeddings + 1, n_embd=96, n_layer=4, n_head=4, n_positions=CAPTION_LIMIT + 1 + side**2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    return ImageTranslator(tokenizer, vqvae, transformer, CAPTION_LIMIT)


def train_translator(config: Config, work: Path, folder: Path, vqvae: VQModel, echo: Echo) -> ImageTranslator:
    """DALL-E's second stage: codes given captions, on the photos and captions that the diffusion model has."""
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "generator" / "tokenizer")
    with seeded(seed, "translator"):
        made = new_translator(tokenizer, vqvae)
    photos, scenes = photo_pool(config.pretrain.photos, seed, "generator photos")
    codes = torch.cat([made.to_codes(to_floats(part)) for part in photos.split(256)])
    rng = python_random(seed, "captions")
    captions = [[describe(scene, rng, detail) for scene in scenes] for detail in (0.35, 0.35, 1.0)]

    def loss_of(step_rng: torch.Generator) -> Tensor:
        index, kind = pick(len(codes), 32, step_rng), pick(len(captions), 32, step_rng)
        said = [captions[k][i] for k, i in zip(kind.tolist(), index.tolist(), strict=True)]
        return made.code_loss(drop_captions(said, step_rng), codes[index])

    fit("translator", made.transformer, loss_of, steps=config.pretrain.translator_steps, learning_rate=1.5e-3, seed=seed, work=work, echo=echo)
    return made
