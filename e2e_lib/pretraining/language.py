"""Dialogue models from scratch: the Llama of the end-to-end model and the pipeline, and Divter's GPT-2."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from e2e_lib.config import Config
from e2e_lib.data.collate import IGNORED, PromptFormatter
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example, examples_of
from e2e_lib.data.minichat.chats import Chat, describe, make_chat
from e2e_lib.pretraining.fit import Pretraining
from e2e_lib.pretraining.tokenizers import train_clip_like, train_llama_like
from e2e_lib.repro.randomness import python_random, seed_of, seeded

# Small vocabularies, so that rarer words are split, and differently by the two tokenizers.
LLAMA_VOCABULARY, CLIP_MERGES = 640, 110
CAPTION_LIMIT = 32  # tokens
BATCH_SIZE = 32  # chats


def make_chats(config: Config, count: int) -> list[Chat]:
    """Chats with a seed of their own, so that no dialogue of the corpus is among them."""
    return [make_chat("train", i, seed_of(config.pretrain.seed, "pretraining chats")) for i in range(count)]


def train_tokenizers(config: Config, folder: Path) -> None:
    """Writes the tokenizers ``language`` and ``generator/tokenizer`` into ``folder``."""
    chats = make_chats(config, min(config.pretrain.chats, 5000))
    turns = [turn for chat in chats for turn in chat.dialogue.turns]
    captions = [photo.caption for turn in turns for photo in turn.photos]
    texts = [f"{('User', 'Assistant')[turn.speaker]}: {turn.text}\n" for turn in turns if turn.text]
    train_llama_like(texts + captions, LLAMA_VOCABULARY).save_pretrained(folder / "language")
    train_clip_like(captions, CLIP_MERGES, CAPTION_LIMIT).save_pretrained(folder / "generator" / "tokenizer")


def token_settings(tokenizer: Any) -> dict[str, Any]:
    """What every configuration of a model says of its tokens: how many, and the ids of the special ones."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {"vocab_size": len(tokenizer), **ids}


def sample_example(chat: Chat, rng: random.Random) -> Example:
    """One response of a chat, half of the time one that shares a photo, else one of the second half."""
    examples = examples_of(chat.dialogue)
    sharing = [example for example in examples if example.response.photos]
    return rng.choice(sharing if sharing and rng.random() < 0.5 else examples[len(examples) // 2:])


def captioning_example(chat: Chat, rng: random.Random) -> Example:
    """One photo of a chat alone, answered by a caption that leaves nothing out."""
    photo = rng.choice(chat.dialogue.photos)
    caption = SharedPhoto(photo.photo_id, describe(chat.scenes[photo.photo_id], rng, 1.0))
    return Example(chat.dialogue.dialogue_id, 1, (Turn(0, "", (photo,)),), Turn(1, "", (caption,)))


def tokenize_chat(chat: Chat, tokenizer: Any, rng: random.Random, max_context: int,
                  full_captions: float) -> tuple[list[int], list[int], list[int]]:
    """A chat up to one response, photos as captions: token ids, labels of all and of the response.

    In a share ``full_captions`` (0 to 1) of chats the captions of context photos leave nothing out, so that
    answers to questions about them can be learnt. They have no loss: they are given, not predicted.
    """
    full = {photo.photo_id: SharedPhoto(photo.photo_id, describe(chat.scenes[photo.photo_id], rng, 1.0))
            for photo in chat.dialogue.photos}
    is_captioning = rng.random() < 0.2 * bool(full_captions)
    example = captioning_example(chat, rng) if is_captioning else sample_example(chat, rng)
    turns = example.context
    if rng.random() >= 1 - full_captions or (len(turns) == 1 and full_captions):
        turns = tuple(replace(turn, photos=tuple(full[photo.photo_id] for photo in turn.photos))
                      for turn in turns)
    formatter = PromptFormatter(tokenizer, 1, max_context, photos_as_captions=True)
    context = formatter.context(turns, example.response.speaker).ids
    response = formatter.response(example.response).ids
    labels, in_caption = [], False
    for token in context:
        in_caption = in_caption and token != formatter.image_end_id
        labels.append(IGNORED if in_caption else token)
        in_caption = in_caption or token == formatter.image_start_id
    return context + response, labels + response, [IGNORED] * len(context) + response


def similar_rows(rows: Sequence[Any], rng: torch.Generator) -> Sequence[Any]:
    """A batch of neighbours; rows are sorted by length, so that little padding is needed."""
    first = int(torch.randint(max(1, len(rows) - BATCH_SIZE), (1,), generator=rng))
    return rows[first:first + BATCH_SIZE]


def pad_rows(ids: Sequence[list[int]], labels: Sequence[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows of token ids and labels, padded on the right: input_ids, attention_mask and labels (B, T)."""
    input_ids, targets = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
        for rows, padding in ((ids, pad_token_id), (labels, IGNORED)))
    return {"input_ids": input_ids, "attention_mask": (input_ids != pad_token_id).long(), "labels": targets}


def train_language(run: Pretraining) -> LlamaForCausalLM:
    """The Llama of the end-to-end model and the pipeline; half of its chats have full captions."""
    return _train_chat_model(run, ("language", "answers"), 0.5, lambda ids: LlamaForCausalLM(LlamaConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, **ids)))


def train_dialogue(run: Pretraining) -> GPT2LMHeadModel:
    """Divter's dialogue model in DialoGPT's architecture, as long trained as the Llama; no full captions."""
    stages = ("dialogue", "dialogue_answers")
    return _train_chat_model(run, stages, 0.0, lambda ids: GPT2LMHeadModel(GPT2Config(
        n_embd=128, n_layer=3, n_head=4, n_positions=320, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        **ids)))


def _train_chat_model(run: Pretraining, stages: tuple[str, str], full_captions: float,
                      new_model: Callable[[Any], Any]) -> Any:
    """Next-token prediction on chats, then supervised fine-tuning (SFT) on responses, as Llama-2-chat had.

    In SFT it learns to gather what to draw: few tokens of a chat depend on that, all of them in responses.
    """
    tokenizer = AutoTokenizer.from_pretrained(run.parts / "language")
    with seeded(run.seed, stages[0]):
        model = new_model(token_settings(tokenizer))
    rng = python_random(run.seed, "written chats")
    chats = [tokenize_chat(chat, tokenizer, rng, run.config.data.max_context, full_captions)
             for chat in make_chats(run.config, run.config.pretrain.chats)]
    chats.sort(key=lambda chat: len(chat[0]))

    def loss_on(labels: int, step_rng: torch.Generator) -> Tensor:
        columns = list(zip(*similar_rows(chats, step_rng), strict=True))
        return model(**pad_rows(columns[0], columns[labels], tokenizer.pad_token_id)).loss

    run.fit(stages[0], model, partial(loss_on, 1), 3e-3)
    run.fit(stages[1], model, partial(loss_on, 2), 2e-3)
    return model
