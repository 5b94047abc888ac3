"""Seeing from scratch: the scene reader that judges photos, the perceptron, and the baselines' captioner."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, LlamaForCausalLM

from e2e_lib.config import Config
from e2e_lib.data.collate import IGNORED, IMAGE_TOKEN, PromptFormatter
from e2e_lib.data.examples import examples_of
from e2e_lib.data.minichat.chats import describe
from e2e_lib.data.minichat.questions import question_of
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene, render_photos
from e2e_lib.data.photos import to_floats
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.models.end_to_end import merge_image_embeddings
from e2e_lib.models.hub import load_own
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.pretraining.fit import Echo, fit, photo_pool, pick
from e2e_lib.pretraining.language import chats_of, pick_example, retelling
from e2e_lib.repro.randomness import python_random, seeded

QUERIES = 8  # 32 in BLIP-2
DETAIL = 0.35  # the share of what could be said that the captions of dialogues do say


def train_scene_classifier(config: Config, work: Path, echo: Echo) -> SceneClassifier:
    """The judge of photos: cross-entropy of every attribute, on all triples, with blur and noise so that it also reads drawn photos."""
    seed = config.pretrain.seed
    with seeded(seed, "reader"):
        reader = SceneClassifier()
    photos, scenes = photo_pool(config.pretrain.photos, seed, "reader photos", every_triple=True)
    labels = torch.tensor([scene.labels for scene in scenes])

    def loss_of(rng: torch.Generator) -> Tensor:
        index = pick(len(photos), 64, rng)
        batch = photos[index].float()
        soft = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        blur = torch.rand(len(index), 1, 1, 1, generator=rng) * (torch.rand(len(index), 1, 1, 1, generator=rng) < 0.5)
        batch = (1 - blur) * batch + blur * soft + 6 * torch.randn(batch.shape, generator=rng)
        logits = reader(batch.clamp(0, 255).to(torch.uint8))
        return sum((F.cross_entropy(logits[name], labels[index, i]) for i, name in enumerate(ATTRIBUTES)), torch.zeros(()))

    fit("scene_reader", reader, loss_of, steps=config.pretrain.scene_classifier_steps, learning_rate=2e-3, seed=seed, work=work, echo=echo)
    return reader


def reading_accuracy(read: list[dict[str, Any]], scenes: list[Scene]) -> dict[str, float]:
    """The share of photos whose attribute was read rightly, for each attribute."""
    return {name: float(np.mean([row[name] == getattr(scene, name) for row, scene in zip(read, scenes, strict=True)])) for name in ATTRIBUTES}


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
    with seeded(seed, "perceptron"):
        perceptron = new_perceptron(language.config.hidden_size)
        probes = nn.ModuleDict({name: nn.Linear(language.config.hidden_size, len(values)) for name, values in ATTRIBUTES.items()})
    seeing = nn.ModuleDict({"perceptron": perceptron, "probes": probes})
    photos, photographed = photo_pool(config.pretrain.photos, seed, "perceptron photos")
    answers = torch.tensor([scene.labels for scene in photographed])

    def probed(queries: Tensor, truth: Tensor) -> Tensor:
        return sum((F.cross_entropy(probes[name](queries.mean(1)), truth[:, i]) for i, name in enumerate(ATTRIBUTES)), torch.zeros(()))

    def sight_of(step_rng: torch.Generator) -> Tensor:
        index = pick(len(photos), 64, step_rng)
        shift = (torch.randint(5, (2,), generator=step_rng) - 2).tolist()  # a vision transformer has to be taught that a shift changes nothing
        return probed(perceptron(to_floats(photos[index]).roll(shift, (2, 3))), answers[index])

    fit("sight", seeing, sight_of, steps=config.pretrain.vision_steps, learning_rate=1e-3, seed=seed, work=work, echo=echo)
    formatter = PromptFormatter(tokenizer, QUERIES, config.data.max_context)
    rng = python_random(seed, "seen chats")
    rows = []
    for chat in chats_of(config, config.pretrain.chats // 2):
        example = retelling(chat, rng) if rng.random() < 0.5 else pick_example(chat, rng)
        context, kept = formatter.context(example.context, example.response.speaker)
        shown = [turn.photo.photo_id for turn in kept if turn.photo]
        if shown:
            response, _ = formatter.response(example.response)
            rows.append((context, response, [chat.scenes[photo_id] for photo_id in shown], example.dialogue_id))
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))

    def loss_of(step_rng: torch.Generator) -> Tensor:
        first = int(torch.randint(max(1, len(rows) - 32), (1,), generator=step_rng))
        batch = rows[first:first + 32]
        scenes = [scene for row in batch for scene in row[2]]
        seeds = torch.randint(2**31, (len(scenes),), generator=step_rng).tolist()  # a new drawing of the scene each time
        queries = perceptron(to_floats(render_photos(scenes, seeds)))
        ids = pad_sequence([torch.tensor(c + r) for c, r, *_ in batch], batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor([IGNORED] * len(c) + r) for c, r, *_ in batch], batch_first=True, padding_value=IGNORED)
        embeddings = merge_image_embeddings(language.get_input_embeddings()(ids), ids == formatter.slot, queries)
        told = language(inputs_embeds=embeddings, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        truth = torch.tensor([scene.labels for scene in scenes])
        return told + 0.3 * probed(queries, truth)

    fit("perceptron", seeing, loss_of, steps=config.pretrain.perceptron_steps, learning_rate=1e-3, seed=seed, work=work, echo=echo)
    return perceptron


def train_looking(config: Config, work: Path, folder: Path, echo: Echo) -> tuple[LlamaForCausalLM, ImagePerceptron]:
    """The language model and the perceptron together, on responses to photos: LLaVA's second stage (Liu et al. 2023). Before it, what is asked
    of a photo is in the vectors and the language model does not look it up there. A quarter of the responses retell a photo in full; of the
    others, half answer a question about what a caption leaves out (where the chat has one), and a third of their chats keep captions in the
    photos' places, so that reading those is not unlearnt."""
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "language")
    language = LlamaForCausalLM.from_pretrained(folder / "language", dtype=torch.float32)
    perceptron = load_own(ImagePerceptron, str(folder / "perceptron"))
    seeing = PromptFormatter(tokenizer, QUERIES, config.data.max_context)
    told = PromptFormatter(tokenizer, 1, config.data.max_context, lambda photo: photo.caption)
    rng = python_random(seed, "looking chats")
    rows = []
    for chat in chats_of(config, config.pretrain.chats // 2):
        asked = [example for example in examples_of(chat.dialogue) if question_of(example, chat.scenes)]
        retold = bool(chat.dialogue.photos) and rng.random() < 0.25
        example = retelling(chat, rng) if retold else rng.choice(asked) if asked and rng.random() < 0.5 else pick_example(chat, rng)
        formatter = told if not retold and rng.random() < 1 / 3 else seeing
        context, kept = formatter.context(example.context, example.response.speaker)
        response, _ = formatter.response(example.response)
        rows.append((context, response, [chat.scenes[turn.photo.photo_id] for turn in kept if turn.photo and formatter is seeing]))
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))

    def loss_of(step_rng: torch.Generator) -> Tensor:
        first = int(torch.randint(max(1, len(rows) - 32), (1,), generator=step_rng))
        batch = rows[first:first + 32]
        scenes = [scene for row in batch for scene in row[2]]
        ids = pad_sequence([torch.tensor(c + r) for c, r, _ in batch], batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor([IGNORED] * len(c) + r) for c, r, _ in batch], batch_first=True, padding_value=IGNORED)
        embeddings = language.get_input_embeddings()(ids)
        if scenes:
            seeds = torch.randint(2**31, (len(scenes),), generator=step_rng).tolist()
            embeddings = merge_image_embeddings(embeddings, ids == seeing.slot, perceptron(to_floats(render_photos(scenes, seeds))))
        return language(inputs_embeds=embeddings, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss

    fit("looking", nn.ModuleDict({"language": language, "perceptron": perceptron}), loss_of, steps=config.pretrain.visual_instruction_steps,
        learning_rate=1e-3, seed=seed, work=work, echo=echo)
    return language, perceptron


def new_captioner(perceptron: ImagePerceptron, tokenizer: Any) -> Blip2ForConditionalGeneration:
    """A BLIP-2 with the perceptron's own vision transformer, Q-Former and queries, and a small language model after it."""
    model = Blip2ForConditionalGeneration(Blip2Config(
        vision_config=perceptron.vision_model.config.to_dict(), qformer_config=perceptron.qformer.config.to_dict(), num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        text_config={"model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 96, "word_embed_proj_dim": 96, "ffn_dim": 256,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "dropout": 0.0,
                     "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}))
    model.vision_model.load_state_dict(perceptron.vision_model.state_dict())
    model.qformer.load_state_dict(perceptron.qformer.state_dict())
    model.query_tokens.data.copy_(perceptron.query_tokens.data)
    return model


def train_captioner(config: Config, work: Path, folder: Path, echo: Echo) -> Blip2ForConditionalGeneration:
    """The baselines' captioner: BLIP-2 tuned on captions as people write them, as the paper's was on COCO's. So it leaves out what they do.

    What the perceptron sees is kept as it is; only what follows it learns, and photos are looked at once.
    """
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "language")
    perceptron = load_own(ImagePerceptron, str(folder / "perceptron"))
    with seeded(seed, "captioner"):
        model = new_captioner(perceptron, tokenizer)
    for frozen in (model.vision_model, model.qformer):
        frozen.requires_grad_(False)
    model.query_tokens.requires_grad_(False)
    photos, scenes = photo_pool(config.pretrain.photos, seed, "captioner photos")
    with torch.no_grad():
        seen = torch.cat([model.qformer(query_embeds=model.query_tokens.expand(len(part), -1, -1),
                                        encoder_hidden_states=model.vision_model(to_floats(part)).last_hidden_state).last_hidden_state
                          for part in photos.split(256)])  # (N, Q, width)
    rng = python_random(seed, "captions of photos")
    rows = [[tokenizer.bos_token_id, *tokenizer(describe(scene, rng, DETAIL), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for scene in scenes]
    language = model.language_model

    def loss_of(step_rng: torch.Generator) -> Tensor:
        index = pick(len(seen), 64, step_rng)
        ids = pad_sequence([torch.tensor(rows[i]) for i in index.tolist()], batch_first=True, padding_value=IGNORED)
        words = language.get_input_embeddings()(ids.clamp_min(0))
        logits = language(inputs_embeds=torch.cat([model.language_projection(seen[index]), words], 1)).logits[:, QUERIES:-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED)

    learning = nn.ModuleDict({"projection": model.language_projection, "language": language})
    fit("captioner", learning, loss_of, steps=config.pretrain.captioner_steps, learning_rate=2e-3, seed=seed, work=work, echo=echo)
    return model
