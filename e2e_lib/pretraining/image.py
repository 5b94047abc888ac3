"""Image generation from scratch: autoencoder, latent diffusion model, and Divter's codes and translator."""

from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel, VQModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, GPT2Config, GPT2LMHeadModel

from e2e_lib.data.minichat.chats import CAPTION_DETAIL, describe
from e2e_lib.data.minichat.scenes import Scene
from e2e_lib.data.photos import to_floats, to_pixels
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.translator import ImageTranslator, drop_captions
from e2e_lib.pretraining.fit import Pretraining, Probes, sample_photos
from e2e_lib.pretraining.language import CAPTION_LIMIT, token_settings
from e2e_lib.repro.randomness import python_random, seeded

LATENT_CHANNELS = 8
BATCH_SIZE = 16  # latents
DETAILS = (CAPTION_DETAIL, CAPTION_DETAIL, 1.0)  # of a photo's captions: as in chats, and nothing omitted


def random_crops(photos: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Crops (count, 3, 32, 32), floats from -1 to 1, most from the lower parts, where the things are."""
    batch = photos[torch.randint(len(photos), (count,), generator=rng)]
    left, top = torch.randint(33, (2,), generator=rng).tolist()
    top = max(top, int(torch.randint(33, (1,), generator=rng)))
    crops = to_floats(batch[:, :, top:top + 32, left:left + 32])
    return crops.contiguous(memory_format=torch.channels_last)


def reconstruction_loss(reconstructed: Tensor, photos: Tensor) -> Tensor:
    """L1 and L2 in one: the mean absolute and the mean squared error."""
    error = reconstructed - photos
    return error.abs().mean() + error.square().mean()


def train_autoencoder(run: Pretraining) -> AutoencoderDC:
    """64-pixel photos to 8×16×16 latents, learnt by reconstructing crops.

    Noise on the latents makes nearby ones decode to nearby photos. A third of the steps decode latents of
    half the size to photos of half the size (the regularizer of EQ-VAE, Kouzelis et al. 2025): latents that
    scale as photos do are smooth, and a diffusion model learns them several times sooner. In the end the
    encoder is fixed, and the decoder goes on without noise, for sharpness.
    """
    # The first block folds pixels into channels: at full resolution, a step of the same quality costs five
    # times as much. Channels last in memory are a quarter faster on a CPU.
    encoder, decoder = ({f"{side}_block_out_channels": (32, 32, 64), f"{side}_layers_per_block": (0, 1, 2),
                         f"{side}_qkv_multiscales": ((), (), ())} for side in ("encoder", "decoder"))
    with seeded(run.seed, "autoencoder"):
        autoencoder = AutoencoderDC(latent_channels=LATENT_CHANNELS, **encoder, **decoder)
        autoencoder = autoencoder.to(memory_format=torch.channels_last)
    photos, _ = sample_photos(run.config.pretrain.photos, run.seed, "autoencoder photos")

    def autoencoder_loss(rng: torch.Generator) -> Tensor:
        crops = random_crops(photos, 48, rng)
        latents = autoencoder.encode(crops).latent
        if torch.rand((), generator=rng) < 1 / 3:
            latents, crops = (nn.functional.avg_pool2d(batch, 2) for batch in (latents, crops))
        noise = 0.02 * latents.detach().std() * torch.randn(latents.shape, generator=rng)
        penalty = 1e-3 * latents.square().mean()  # on growing, which would make the noise meaningless
        return reconstruction_loss(autoencoder.decode(latents + noise).sample, crops) + penalty

    def decoder_loss(rng: torch.Generator) -> Tensor:
        crops = random_crops(photos, 48, rng)
        with torch.no_grad():
            latents = autoencoder.encode(crops).latent
        return reconstruction_loss(autoencoder.decode(latents).sample, crops)

    run.fit("autoencoder", autoencoder, autoencoder_loss, 2.5e-3)
    run.fit("decoder", autoencoder.decoder, decoder_loss, 1.5e-3)
    with torch.no_grad():
        scale = autoencoder.encode(to_floats(photos[:512])).latent.std()
    autoencoder.register_to_config(scaling_factor=float(1 / scale))
    return autoencoder


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderDC, photos: Tensor) -> Tensor:
    """Photos (N, 3, H, W), uint8, through the autoencoder."""
    return torch.cat([to_pixels(autoencoder.decode(autoencoder.encode(to_floats(part)).latent).sample)
                      for part in photos.split(64)])


def psnr_db(reconstructed: Tensor, photos: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) in decibel of photos (N, 3, H, W), both uint8; higher is closer."""
    error = (reconstructed.float() - photos.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp_min(1e-8))


def captioned_photos(run: Pretraining) -> tuple[Tensor, list[Scene], list[list[str]]]:
    """Photos (N, 3, 64, 64), uint8, their scenes, and N captions of each of the DETAILS."""
    photos, scenes = sample_photos(run.config.pretrain.photos, run.seed, "generator photos")
    rng = python_random(run.seed, "captions")
    return photos, scenes, [[describe(scene, rng, detail) for scene in scenes] for detail in DETAILS]


def new_generator_parts(tokenizer: Any) -> tuple[CLIPTextModel, UNet2DConditionModel, DDPMScheduler]:
    text_encoder = CLIPTextModel(CLIPTextConfig(
        hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CAPTION_LIMIT, **token_settings(tokenizer)))
    # The pooled caption is added to the timestep (as in DeepFloyd IF), and both scale what every block
    # computes: with cross-attention alone, which thing to draw is learnt long after colour and place.
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96), layers_per_block=1, cross_attention_dim=96, attention_head_dim=6,
        norm_num_groups=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text",
        addition_embed_type_num_heads=8, resnet_time_scale_shift="scale_shift")
    # Stable Diffusion 2.1's schedule and "v" target, which gives high noise, where it is decided what a photo
    # shows, more weight than noise prediction does. Latents have no bounds at which to clip them.
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                              prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    return text_encoder, unet, scheduler


def train_generator(run: Pretraining) -> ImageGenerator:
    """The text encoder (probes of the attributes stand in for CLIP's images), then Eq. 12 on frozen latents.

    A tenth of the captions are empty, for classifier-free guidance. Timesteps are sampled around the middle,
    where shapes are decided (logit-normal, Esser et al. 2024).

    The high-noise stage: day or night is decided earlier. But Stable Diffusion's schedule leaves a trace of
    the photo at its last timestep, so the UNet learns to take the time of day from the noise instead of the
    caption. Therefore both go on with a schedule that ends in pure noise (Lin et al. 2024). Photos are drawn
    with Stable Diffusion's own: the model keeps the time of day named in the caption, and where it names
    none, the noise still varies it (with the other schedule, joint training gave nearly all photos the same).
    """
    tokenizer = AutoTokenizer.from_pretrained(run.parts / "generator" / "tokenizer")
    vae = AutoencoderDC.from_pretrained(run.parts / "generator" / "vae", torch_dtype=torch.float32)
    with seeded(run.seed, "generator"):
        text_encoder, unet, scheduler = new_generator_parts(tokenizer)
        probes = Probes(text_encoder.config.hidden_size)
    generator = ImageGenerator(tokenizer, text_encoder, unet, vae, scheduler)
    text_encoder.requires_grad_(True)
    photos, scenes, texts = captioned_photos(run)
    latents = torch.cat([generator.to_latents(part) for part in photos.split(256)])  # (N, C, s, s)
    captions = torch.stack([generator.tokenize(of_kind) for of_kind in texts])  # (3, N, L)
    empty = generator.tokenize([""])  # (1, L)
    labels = torch.tensor([scene.labels for scene in scenes])  # (N, attributes)
    full, timestep_count = len(DETAILS) - 1, scheduler.config.num_train_timesteps

    def text_loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (64,), generator=rng)
        return probes.loss(generator.encode(captions[full, index]), labels[index])

    def denoising_loss(rng: torch.Generator, high_noise_share: float) -> Tensor:
        """Eq. 12; a share of photos has full captions and a timestep among the noisiest fifth."""
        index = torch.randint(len(latents), (BATCH_SIZE,), generator=rng)
        high_noise = torch.rand(BATCH_SIZE if high_noise_share else 0, generator=rng) < high_noise_share
        kinds = torch.randint(len(DETAILS), (BATCH_SIZE,), generator=rng)
        drop = torch.rand(BATCH_SIZE, 1, generator=rng) < 0.1
        timesteps = (torch.randn(BATCH_SIZE, generator=rng).sigmoid() * timestep_count).long()
        if high_noise_share:
            kinds = torch.where(high_noise, full, kinds)
            last = torch.randint(timestep_count * 4 // 5, timestep_count, (BATCH_SIZE,), generator=rng)
            timesteps = torch.where(high_noise, last, timesteps)
        ids = torch.where(drop, empty, captions[kinds, index])  # (B, L)
        batch = latents[index].contiguous(memory_format=torch.channels_last)  # (B, C, s, s)
        return generator.denoising_loss(batch, generator.encode(ids), torch.randn(batch.shape, generator=rng),
                                        timesteps)

    probed = nn.ModuleDict({"text_encoder": text_encoder, "probes": probes})
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    run.fit("text_encoder", probed, text_loss, 1e-3)
    usual, high_noise = (partial(denoising_loss, high_noise_share=share) for share in (0.0, 0.6))
    run.fit("generator", both, usual, 1.5e-3)
    generator.scheduler = DDPMScheduler.from_config(scheduler.config, rescale_betas_zero_snr=True)
    run.fit("light", both, high_noise, 1.5e-3)
    generator.scheduler = scheduler
    return generator


def train_vqvae(run: Pretraining) -> VQModel:
    """Divter's autoencoder, 64-pixel photos to 8×8 codes out of 512, learnt by reconstructing crops."""
    with seeded(run.seed, "vqvae"):
        vqvae = VQModel(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 24, 32, 32), layers_per_block=1, latent_channels=32, sample_size=64,
            num_vq_embeddings=512, norm_num_groups=8, mid_block_add_attention=False)
        vqvae = vqvae.to(memory_format=torch.channels_last)
    photos, _ = sample_photos(run.config.pretrain.photos, run.seed, "autoencoder photos")
    modules = nn.ModuleDict({"vqvae": vqvae})
    modules.register_buffer("usage", torch.zeros(vqvae.config.num_vq_embeddings))  # of codes, of late

    def loss_of(rng: torch.Generator) -> Tensor:
        crops = random_crops(photos, 32, rng)
        latents = vqvae.encode(crops).latents  # (B, D, 4, 4)
        with torch.no_grad():  # codes that fell out of use become random latents; else most would stay unused
            ids = vqvae.quantize(latents)[2][2].flatten()
            usage = modules.get_buffer("usage").mul_(0.98).scatter_add_(0, ids, torch.ones(len(ids)))
            unused = (usage < 0.5).nonzero().squeeze(1)[:64]
            vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (B · 4 · 4, D)
            index = torch.randint(len(vectors), (len(unused),), generator=rng)
            vqvae.quantize.embedding.weight[unused] = vectors[index]
            usage[unused] = 1.0
        latents, commitment, _ = vqvae.quantize(latents)
        return reconstruction_loss(vqvae.decode(latents, force_not_quantize=True).sample, crops) + commitment

    run.fit("vqvae", modules, loss_of, 2e-3)
    return vqvae


def train_translator(run: Pretraining, vqvae: VQModel) -> ImageTranslator:
    """DALL-E's second stage, a small GPT-2: codes given captions, on what the diffusion model learns from."""
    tokenizer = AutoTokenizer.from_pretrained(run.parts / "generator" / "tokenizer")
    side = vqvae.config.sample_size // 2 ** (len(vqvae.config.block_out_channels) - 1)
    with seeded(run.seed, "translator"):
        transformer = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer) + vqvae.config.num_vq_embeddings + 1, n_embd=96, n_layer=4, n_head=4,
            n_positions=CAPTION_LIMIT + 1 + side**2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    translator = ImageTranslator(tokenizer, vqvae, transformer, CAPTION_LIMIT)
    photos, _, captions = captioned_photos(run)
    codes = torch.cat([translator.to_codes(part) for part in photos.split(256)])  # (N, codes per photo)

    def loss_of(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(codes), (32,), generator=rng)
        kinds = torch.randint(len(DETAILS), (32,), generator=rng)
        texts = [captions[kind][i] for kind, i in zip(kinds.tolist(), index.tolist(), strict=True)]
        return translator.code_loss(drop_captions(texts, rng), codes[index])

    run.fit("translator", transformer, loss_of, 1.5e-3)
    return translator
