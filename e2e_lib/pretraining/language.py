"""Dialogue models from scratch: tokenizers, the Llama of the end-to-end model and the pipeline, and Divter's GPT-2."""

import random
from collections.abc import Callable
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
from e2e_lib.pretraining.fit import Echo, fit
from e2e_lib.pretraining.tokenizers import train_clip_like, train_llama_like
from e2e_lib.repro.randomness import python_random, seed_of, seeded

LLAMA_VOCABULARY, CLIP_MERGES, CAPTION_LIMIT = 640, 110, 32


def chats_of(config: Config, count: int) -> list[Chat]:
    """Chats of a stream of their own, so that no dialogue of the corpus is among them."""
    return [make_chat("train", i, seed_of(config.pretrain.seed, "pretraining chats")) for i in range(count)]


def train_tokenizers(config: Config, folder: Path) -> None:
    """Writes ``language`` and ``generator/tokenizer`` below ``folder``; kept small, so that rarer words split, and differently."""
    turns = [turn for chat in chats_of(config, min(config.pretrain.chats, 5000)) for turn in chat.dialogue.turns]
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


def written_chat(chat: Chat, tokenizer: Any, rng: random.Random, max_context: int, told: float) -> tuple[list[int], list[int], list[int]]:
    """A chat up to one response as (tokens, labels of everything, labels of the response), photos written as captions.

    A share ``told`` of the chats describes context photos in full, so that the answers to questions about them can be learnt; the others
    have the captions of the chat. What a context photo shows is given, not predicted: its words have no loss.
    """
    full = {photo.photo_id: describe(chat.scenes[photo.photo_id], rng, 1.0) for photo in chat.dialogue.photos}
    example = retelling(chat, rng) if rng.random() < 0.2 * bool(told) else pick_example(chat, rng)
    blind = rng.random() < 1 - told and (len(example.context) > 1 or not told)
    formatter = PromptFormatter(tokenizer, 1, max_context, (lambda photo: photo.caption) if blind else (lambda photo: full[photo.photo_id]))
    context, _ = formatter.context(example.context, example.response.speaker)
    response, _ = formatter.response(example.response)
    labels, inside = [], False
    for token in context:
        inside = inside and token != formatter.end
        labels.append(IGNORED if inside else token)
        inside = inside or token == formatter.start
    return context + response, labels + response, [IGNORED] * len(context) + response


def train_language(config: Config, work: Path, folder: Path, echo: Echo) -> LlamaForCausalLM:
    """The Llama of the end-to-end model and the pipeline. Half its chats describe photos in full, since it will see them."""
    return learn_to_chat(new_language, ("language", "answers"), 0.5, config, work, folder, echo)


def new_dialogue(tokenizer: Any) -> GPT2LMHeadModel:
    """As wide as ``new_language`` and a layer shallower, in DialoGPT's architecture; DialoGPT is a tenth of Llama-2."""
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_embd=128, n_layer=3, n_head=4, n_positions=320, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def train_dialogue(config: Config, work: Path, folder: Path, echo: Echo) -> GPT2LMHeadModel:
    """Divter's dialogue model, on as many chats and steps as the Llama. It will never know more of a photo than a caption says."""
    return learn_to_chat(new_dialogue, ("dialogue", "dialogue_answers"), 0.0, config, work, folder, echo)


def learn_to_chat(new: Callable[[Any], Any], names: tuple[str, str], told: float, config: Config, work: Path, folder: Path, echo: Echo) -> Any:
    """A ``new`` model after next-token prediction on written chats, then on their responses alone: as Llama-2-chat was pretrained, then tuned
    to answer. ``names`` are those of the two rounds; ``told`` is ``written_chat``'s.

    The second round is where it learns to gather what to draw: few tokens of a chat depend on that, and all of them are in responses.
    """
    seed = config.pretrain.seed
    tokenizer = AutoTokenizer.from_pretrained(folder / "language")
    with seeded(seed, names[0]):
        model = new(tokenizer)
    rng = python_random(seed, "written chats")
    # Sorted by length, so that a batch of neighbours needs little padding.
    chats = sorted((written_chat(chat, tokenizer, rng, config.data.max_context, told) for chat in chats_of(config, config.pretrain.chats)),
                   key=lambda written: len(written[0]))

    def loss_on(side: int) -> Callable[[torch.Generator], Tensor]:
        def loss_of(step_rng: torch.Generator) -> Tensor:
            first = int(torch.randint(max(1, len(chats) - 32), (1,), generator=step_rng))
            batch = chats[first:first + 32]
            ids = pad_sequence([torch.tensor(written[0]) for written in batch], batch_first=True, padding_value=tokenizer.pad_token_id)
            labels = pad_sequence([torch.tensor(written[side]) for written in batch], batch_first=True, padding_value=IGNORED)
            return model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        return loss_of

    rounds = ((1, config.pretrain.language_steps, 3e-3), (2, config.pretrain.sft_steps, 2e-3))
    for name, (side, steps, rate) in zip(names, rounds, strict=True):
        fit(name, model, loss_on(side), steps=steps, learning_rate=rate, seed=seed, work=work, echo=echo)
    return model
