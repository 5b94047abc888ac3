"""Pretraining the parts of the `mini` profile from scratch on MiniChat (section 3.1.4 starts from pretrained parts; so do we).

Five parts, in order: the scene reader that judges photos, the autoencoder, the language model with both tokenizers,
the perceptron (with the language model frozen, as BLIP-2's second stage), and the generator's UNet with its text encoder.
Each can be interrupted and goes on where it was. Nothing here sees a held-out triple except the reader, which must judge them.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaForCausalLM

from e2e_lib import checkpoints
from e2e_lib.config import Config
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import IGNORED, Example, Layout, examples_of
from e2e_lib.data.minichat import Chat, describe, make_chat, sample_scene
from e2e_lib.data.scenes import ATTRIBUTES, Scene, draw_scene
from e2e_lib.evaluation.reader import SceneReader
from e2e_lib.models.end_to_end import put_photos, to_floats
from e2e_lib.models.generator import ImageGenerator, to_pixels
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.models.tokenizers import train_clip_like, train_llama_like
from e2e_lib.randomness import generator, python_random, seed_of

LLAMA_VOCABULARY, CLIP_MERGES, CAPTION_LIMIT = 640, 110, 32
QUERIES = 8  # 32 in BLIP-2
LATENT_CHANNELS = 8
Echo = Callable[[str], None]


def fit(name: str, modules: nn.Module, loss_of: Callable[[torch.Generator], Tensor], *, steps: int, learning_rate: float,
        seed: int, work: Path, echo: Echo, save_seconds: float = 60.0) -> None:
    """Trains ``modules`` for ``steps`` steps of AdamW (3 % warm-up, then a cosine to zero), resuming from ``work``/``name``.

    ``loss_of`` gets a generator that depends on the step alone, so an interrupted run ends where an uninterrupted one does.
    """
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / (0.03 * steps + 1), 0.5 + 0.5 * np.cos(np.pi * k / steps)))
    folder, first, seconds = work / name, 0, 0.0
    if checkpoints.exists(folder):
        weights, state = checkpoints.load(folder, optimizer=optimizer)
        if (state["steps"], state["seed"]) != (steps, seed):
            raise checkpoints.CheckpointError(f"{folder} was begun with {state['steps']} steps and seed {state['seed']}, not {steps} and {seed}; "
                                              "remove it to start again")
        modules.load_state_dict(weights)
        first, seconds = state["step"], state["seconds"]
        schedule.load_state_dict(state["schedule"])
    modules.train()
    began = saved = shown = time.monotonic()

    def save(step: int) -> None:
        checkpoints.save(folder, modules.state_dict(), {"step": step, "steps": steps, "seed": seed, "schedule": schedule.state_dict(),
                                                        "seconds": seconds + time.monotonic() - began}, optimizer)

    for step in range(first, steps):
        loss = loss_of(generator(seed, name, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        now = time.monotonic()
        if now - shown > 15 or step + 1 == steps:
            left = (now - began) / (step + 1 - first) * (steps - step - 1)
            echo(f"{name}: step {step + 1:,} of {steps:,}, loss {loss.item():.4f}, about {left / 60:.0f} min left")
            shown = now
        if now - saved > save_seconds and step + 1 < steps:
            save(step + 1)
            saved = now
    if first < steps:
        save(steps)
    modules.eval()


# ----------------------------------------------------------------------------------------------------------- photos

def photo_pool(count: int, *key: Any, every_triple: bool = False) -> tuple[Tensor, list[Scene]]:
    """``count`` photos (N, 3, 64, 64) uint8 and their scenes; without held-out triples unless ``every_triple``."""
    rng, scenes = python_random(*key), []
    for _ in range(count):
        scene = sample_scene(rng, "train")
        if every_triple:
            scene = replace(scene, **{name: rng.choice(ATTRIBUTES[name]) for name in ("thing", "colour", "place")})
        scenes.append(scene)
    return draw_photos(scenes, [seed_of(*key, i) for i in range(count)]), scenes


def _pick(count: int, batch: int, rng: torch.Generator) -> Tensor:
    return torch.randint(count, (batch,), generator=rng)


# ----------------------------------------------------------------------------------------------------- scene reader

def train_reader(config: Config, work: Path, echo: Echo) -> SceneReader:
    """The judge of photos: cross-entropy of every attribute, on all triples, with blur and noise so that it also reads drawn photos."""
    seed = config.pretrain.seed
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "reader"))
        reader = SceneReader()
    photos, scenes = photo_pool(config.pretrain.photos, seed, "reader photos", every_triple=True)
    labels = torch.tensor([scene.labels for scene in scenes])

    def loss_of(rng: torch.Generator) -> Tensor:
        index = _pick(len(photos), 64, rng)
        batch = photos[index].float()
        soft = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        blur = torch.rand(len(index), 1, 1, 1, generator=rng) * (torch.rand(len(index), 1, 1, 1, generator=rng) < 0.5)
        batch = (1 - blur) * batch + blur * soft + 6 * torch.randn(batch.shape, generator=rng)
        logits = reader(batch.clamp(0, 255).to(torch.uint8))
        return sum((F.cross_entropy(logits[name], labels[index, i]) for i, name in enumerate(ATTRIBUTES)), torch.zeros(()))

    fit("scene_reader", reader, loss_of, steps=config.pretrain.reader_steps, learning_rate=2e-3, seed=seed, work=work, echo=echo)
    return reader


def reading_accuracy(read: list[dict[str, Any]], scenes: list[Scene]) -> dict[str, float]:
    """The share of photos whose attribute was read rightly, for each attribute."""
    return {name: float(np.mean([row[name] == getattr(scene, name) for row, scene in zip(read, scenes, strict=True)])) for name in ATTRIBUTES}


# ------------------------------------------------------------------------------------------------------ autoencoder

def new_autoencoder() -> AutoencoderDC:
    """64 px photos to 8×16×16 latents. It works at 32 and 16 px only (its first block folds pixels into channels), which is
    what makes it sharp after minutes: at full resolution a step of the same quality costs five times as much."""
    return AutoencoderDC(latent_channels=LATENT_CHANNELS, encoder_block_out_channels=(32, 32, 64), decoder_block_out_channels=(32, 32, 64),
                         encoder_layers_per_block=(0, 1, 2), decoder_layers_per_block=(0, 1, 2),
                         encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()))


def train_autoencoder(config: Config, work: Path, echo: Echo) -> AutoencoderDC:
    """Reconstruction (L1 and L2), with noise on the latents so that nearby latents decode to nearby photos.

    A third of the steps decode latents of half the size to photos of half the size (the regularizer of EQ-VAE, Kouzelis et al. 2025):
    latents that scale as photos do are smooth, which a diffusion model learns several times sooner. It learns on 32-pixel crops from the
    lower part of the photos, where the things stand: skies are learnt by the way.
    """
    seed = config.pretrain.seed
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "autoencoder"))
        autoencoder = new_autoencoder().to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    photos, _ = photo_pool(config.pretrain.photos, seed, "autoencoder photos")

    def crops(rng: torch.Generator) -> Tensor:
        batch = photos[_pick(len(photos), 48, rng)]
        left, top = torch.randint(33, (2,), generator=rng).tolist()
        top = max(top, int(torch.randint(33, (1,), generator=rng)))
        return to_floats(batch[:, :, top:top + 32, left:left + 32]).contiguous(memory_format=torch.channels_last)

    def loss_of(rng: torch.Generator) -> Tensor:
        real = crops(rng)
        latents = autoencoder.encode(real).latent
        if torch.rand((), generator=rng) < 1 / 3:
            latents, real = F.avg_pool2d(latents, 2), F.avg_pool2d(real, 2)
        noise = torch.randn(latents.shape, generator=rng)
        error = autoencoder.decode(latents + 0.02 * latents.detach().std() * noise).sample - real
        # The small pull towards unit size keeps the latents from growing, which would make the noise above meaningless.
        return error.abs().mean() + error.square().mean() + 1e-3 * latents.square().mean()

    fit("autoencoder", autoencoder, loss_of, steps=config.pretrain.autoencoder_steps, learning_rate=2.5e-3, seed=seed, work=work, echo=echo)

    def sharpness_of(rng: torch.Generator) -> Tensor:
        real = crops(rng)
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


def psnr_db(autoencoder: AutoencoderDC, photos: Tensor) -> float:
    """Mean peak signal-to-noise ratio of reconstructed uint8 photos (N, 3, H, W), in decibel."""
    values = []
    with torch.no_grad():
        for part in photos.split(64):
            redrawn = autoencoder.decode(autoencoder.encode(to_floats(part)).latent).sample
            error = (to_pixels(redrawn).float() - part.float()).square().mean(dim=(1, 2, 3))
            values.append(10 * torch.log10(255**2 / error.clamp_min(1e-8)))
    return float(torch.cat(values).mean())


# --------------------------------------------------------------------------------------------------- language model

def _chats(config: Config, count: int) -> list[Chat]:
    """Chats of a stream of their own, so that no dialogue of the corpus is among them."""
    return [make_chat("train", i, seed_of(config.pretrain.seed, "pretraining chats")) for i in range(count)]


def train_tokenizers(config: Config, folder: Path) -> None:
    """Writes ``language`` and ``generator/tokenizer`` below ``folder``; kept small, so that rarer words split, and differently."""
    turns = [turn for chat in _chats(config, min(config.pretrain.chats, 5000)) for turn in chat.dialogue.turns]
    captions = [turn.photo.caption for turn in turns if turn.photo]
    roles = ("User", "Assistant")
    texts = [f"{roles[turn.speaker]}: {turn.text}\n" for turn in turns if turn.text] + captions
    train_llama_like(texts, vocabulary=LLAMA_VOCABULARY).save_pretrained(folder / "language")
    train_clip_like(captions, merges=CLIP_MERGES, limit=CAPTION_LIMIT).save_pretrained(folder / "generator" / "tokenizer")


def new_language(tokenizer: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def pick_example(chat: Chat, rng: random.Random) -> Example:
    """One response of a chat, half of the time one that shares a photo."""
    examples = examples_of(chat.dialogue)
    sharing = [e for e in examples if e.response.photo]
    return rng.choice(sharing) if sharing and rng.random() < 0.5 else rng.choice(examples[len(examples) // 2:])


def retelling(chat: Chat, rng: random.Random) -> Example:
    """A photo and nothing else, answered by a full caption of it: how the language model is asked what it sees."""
    photo = rng.choice(chat.dialogue.photos)
    return Example(chat.dialogue.dialogue_id, 1, (Turn(0, "", photo),),
                   Turn(1, "", SharedPhoto(photo.photo_id, describe(chat.scenes[photo.photo_id], rng, 1.0))))


def written_chat(chat: Chat, tokenizer: Any, rng: random.Random, max_context: int) -> tuple[list[int], list[int], list[int]]:
    """A chat up to one response as (tokens, labels of everything, labels of the response), photos written as captions.

    Half the chats describe context photos in full, so that the answers to questions about them can be learnt. What a context photo
    shows is given, not predicted: its words have no loss.
    """
    full = {photo.photo_id: describe(chat.scenes[photo.photo_id], rng, 1.0) for photo in chat.dialogue.photos}
    example = retelling(chat, rng) if rng.random() < 0.2 else pick_example(chat, rng)
    blind = rng.random() < 0.5 and len(example.context) > 1
    layout = Layout(tokenizer, 1, max_context, (lambda photo: photo.caption) if blind else (lambda photo: full[photo.photo_id]))
    context, _ = layout.context(example.context, example.response.speaker)
    response, _ = layout.response(example.response)
    labels, inside = [], False
    for token in context:
        inside = inside and token != layout.end
        labels.append(IGNORED if inside else token)
        inside = inside or token == layout.start
    return context + response, labels + response, [IGNORED] * len(context) + response


def train_language(config: Config, work: Path, folder: Path, echo: Echo) -> LlamaForCausalLM:
    """Next-token prediction on written chats, then on their responses alone: as Llama-2-chat was pretrained, then tuned to answer.

    The second round is where it learns to gather what to draw: few tokens of a chat depend on that, and all of them are in responses.
    """
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "language")
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "language"))
        model = new_language(tokenizer)
    rng = python_random(seed, "written chats")
    # Sorted by length, so that a batch of neighbours needs little padding.
    chats = sorted((written_chat(chat, tokenizer, rng, config.data.max_context) for chat in _chats(config, config.pretrain.chats)),
                   key=lambda written: len(written[0]))

    def loss_on(side: int) -> Callable[[torch.Generator], Tensor]:
        def loss_of(step_rng: torch.Generator) -> Tensor:
            first = int(torch.randint(max(1, len(chats) - 32), (1,), generator=step_rng))
            batch = chats[first:first + 32]
            ids = pad_sequence([torch.tensor(written[0]) for written in batch], batch_first=True, padding_value=tokenizer.pad_token_id)
            labels = pad_sequence([torch.tensor(written[side]) for written in batch], batch_first=True, padding_value=IGNORED)
            return model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        return loss_of

    for name, side, steps, rate in (("language", 1, config.pretrain.language_steps, 3e-3), ("answers", 2, config.pretrain.answer_steps, 2e-3)):
        fit(name, model, loss_on(side), steps=steps, learning_rate=rate, seed=seed, work=work, echo=echo)
    return model


# -------------------------------------------------------------------------------------------------------- perceptron

def new_perceptron(language_width: int) -> ImagePerceptron:
    vision = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
    qformer = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "encoder_hidden_size": 96,
               "cross_attention_frequency": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ImagePerceptron(vision, qformer, queries=QUERIES, language_width=language_width)


def train_perceptron(config: Config, work: Path, folder: Path, echo: Echo) -> ImagePerceptron:
    """BLIP-2's two stages: first the queries must hold what a photo shows (linear probes stand in for image-text matching), then the
    frozen language model must also be able to tell it and to chat about it."""
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "language")
    language = LlamaForCausalLM.from_pretrained(folder / "language", dtype=torch.float32).requires_grad_(False).eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "perceptron"))
        perceptron = new_perceptron(language.config.hidden_size)
        probes = nn.ModuleDict({name: nn.Linear(language.config.hidden_size, len(values)) for name, values in ATTRIBUTES.items()})
    seeing = nn.ModuleDict({"perceptron": perceptron, "probes": probes})
    photos, photographed = photo_pool(config.pretrain.photos, seed, "perceptron photos")
    answers = torch.tensor([scene.labels for scene in photographed])

    def probed(queries: Tensor, truth: Tensor) -> Tensor:
        return sum((F.cross_entropy(probes[name](queries.mean(1)), truth[:, i]) for i, name in enumerate(ATTRIBUTES)), torch.zeros(()))

    def sight_of(step_rng: torch.Generator) -> Tensor:
        index = _pick(len(photos), 64, step_rng)
        shift = (torch.randint(5, (2,), generator=step_rng) - 2).tolist()  # a vision transformer has to be taught that a shift changes nothing
        return probed(perceptron(to_floats(photos[index]).roll(shift, (2, 3))), answers[index])

    fit("sight", seeing, sight_of, steps=config.pretrain.sight_steps, learning_rate=1e-3, seed=seed, work=work, echo=echo)
    layout = Layout(tokenizer, QUERIES, config.data.max_context)
    rng = python_random(seed, "seen chats")
    rows = []
    for chat in _chats(config, config.pretrain.chats // 2):
        example = retelling(chat, rng) if rng.random() < 0.5 else pick_example(chat, rng)
        context, kept = layout.context(example.context, example.response.speaker)
        shown = [turn.photo.photo_id for turn in kept if turn.photo]
        if shown:
            response, _ = layout.response(example.response)
            rows.append((context, response, [chat.scenes[photo_id] for photo_id in shown], example.dialogue_id))
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))

    def loss_of(step_rng: torch.Generator) -> Tensor:
        first = int(torch.randint(max(1, len(rows) - 32), (1,), generator=step_rng))
        batch = rows[first:first + 32]
        scenes = [scene for row in batch for scene in row[2]]
        seeds = torch.randint(2**31, (len(scenes),), generator=step_rng).tolist()  # a new drawing of the scene each time
        queries = perceptron(to_floats(draw_photos(scenes, seeds)))
        ids = pad_sequence([torch.tensor(c + r) for c, r, *_ in batch], batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor([IGNORED] * len(c) + r) for c, r, *_ in batch], batch_first=True, padding_value=IGNORED)
        embeddings = put_photos(language.get_input_embeddings()(ids), ids == layout.slot, queries)
        told = language(inputs_embeds=embeddings, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        truth = torch.tensor([scene.labels for scene in scenes])
        return told + 0.3 * probed(queries, truth)

    fit("perceptron", seeing, loss_of, steps=config.pretrain.perceptron_steps, learning_rate=1e-3, seed=seed, work=work, echo=echo)
    return perceptron


def draw_photos(scenes: list[Scene], seeds: list[int]) -> Tensor:
    """Photos (N, 3, 64, 64), uint8."""
    return torch.from_numpy(np.stack([np.asarray(draw_scene(s, k)) for s, k in zip(scenes, seeds, strict=True)])).permute(0, 3, 1, 2).contiguous()


# --------------------------------------------------------------------------------------------------------- generator

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
    middle, where shapes are decided (logit-normal, Esser et al. 2024)."""
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "generator" / "tokenizer")
    vae = AutoencoderDC.from_pretrained(folder / "generator" / "vae", torch_dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "generator"))
        text_encoder, unet, scheduler = new_generator_parts(tokenizer)
        probes = nn.ModuleDict({name: nn.Linear(text_encoder.config.hidden_size, len(values)) for name, values in ATTRIBUTES.items()})
    made = ImageGenerator(tokenizer, text_encoder, unet.to(memory_format=torch.channels_last), vae, scheduler)
    text_encoder.requires_grad_(True)
    photos, scenes = photo_pool(config.pretrain.photos, seed, "generator photos")
    latents = torch.cat([made.to_latents(to_floats(part)) for part in photos.split(256)])
    rng = python_random(seed, "captions")
    captions = torch.stack([made.tokenize([describe(scene, rng, detail) for scene in scenes]) for detail in (0.35, 0.35, 1.0)])
    empty = made.tokenize([""])
    truth = torch.tensor([scene.labels for scene in scenes])

    def reading_of(step_rng: torch.Generator) -> Tensor:
        index = _pick(len(latents), 64, step_rng)
        told = made.encode(captions[-1, index]).mean(1)  # the captions that leave nothing out
        return sum((F.cross_entropy(probes[name](told), truth[index, i]) for i, name in enumerate(ATTRIBUTES)), torch.zeros(()))

    fit("text_encoder", nn.ModuleDict({"text_encoder": text_encoder, "probes": probes}), reading_of, steps=config.pretrain.text_steps,
        learning_rate=1e-3, seed=seed, work=work, echo=echo)

    def loss_of(step_rng: torch.Generator) -> Tensor:
        index = _pick(len(latents), 16, step_rng)
        ids = captions[_pick(len(captions), 16, step_rng), index]
        ids = torch.where(torch.rand(16, 1, generator=step_rng) < 0.1, empty, ids)
        timesteps = (torch.randn(16, generator=step_rng).sigmoid() * scheduler.config.num_train_timesteps).long()
        return made.denoising_loss(latents[index].contiguous(memory_format=torch.channels_last), made.encode(ids), step_rng, timesteps)

    fit("generator", nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}), loss_of, steps=config.pretrain.generator_steps,
        learning_rate=1.5e-3, seed=seed, work=work, echo=echo)
    return made
