"""Whatever is wrong with a part, the error names it and says what to do."""

import json
import shutil

import pytest
import torch
from model_helpers import PARTS
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from e2e_lib.config import BASELINES, SHIPPED
from e2e_lib.models import hub
from e2e_lib.models.captioner import load_captioner
from e2e_lib.models.generator import load_generator
from e2e_lib.models.language import load_language
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.translator import load_translator
from e2e_lib.repro.files import CheckpointError

LOADERS = {"language": load_language, "perceptron": load_perceptron, "generator": load_generator,
           "captioner": load_captioner, "translator": load_translator,
           "dialogue": lambda place: load_language(place, "dialogue", GPT2LMHeadModel)}


def copied(weights, tmp_path, part, name=""):
    """A folder of its own with what stands for a shipped part."""
    (place,) = (place for place, parts in PARTS.items() if part in parts)
    return shutil.copytree(weights / place / part, tmp_path / (name or part))


@pytest.mark.parametrize("part", LOADERS)
def test_a_missing_part_is_named(tmp_path, part):
    with pytest.raises(CheckpointError, match=f"{part}: there is no folder {tmp_path}/absent; name a folder"):
        LOADERS[part](f"{tmp_path}/absent")
    with pytest.raises(CheckpointError, match=f"{part}: there is no folder ~/absent-{part}"):
        LOADERS[part](f"~/absent-{part}")
    with pytest.raises(CheckpointError, match=f"{part}: could not load .*--set model.{part}=FOLDER"):
        LOADERS[part](str(tmp_path))
    with pytest.raises(CheckpointError, match=f"{part}: could not load 'nobody/nothing': it was not downloaded before.* you are offline"):
        LOADERS[part]("nobody/nothing")


def test_a_local_folder_or_hub_id_is_used_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "part").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.locate(f"{tmp_path}/part", "language") == f"{tmp_path}/part"
    assert hub.locate("./part", "language") == "part" and hub.locate("owner/name", "language") == "owner/name"


WEIGHTS = {"language": "", "perceptron": "", "captioner": "", "dialogue": "", "generator": "unet vae text_encoder",
           "translator": "vqvae transformer"}
DAMAGES = [(part, f"{folder}/*.safetensors".lstrip("/"), how) for part, folders in WEIGHTS.items()
           for folder in folders.split() or [""] for how in ("cut short", "gone")] + [
    ("captioner", "tokenizer.json", "cut short"), ("translator", "tokenizer/tokenizer.json", "cut short"),
    *(("captioner", "preprocessor_config.json", how) for how in ("gone", "cut short", "text"))]


@pytest.mark.parametrize(("part", "pattern", "how"), DAMAGES)
def test_a_damaged_local_part_is_named(weights, tmp_path, damage, part, pattern, how):
    damage(next(copied(weights, tmp_path, part).glob(pattern)), how)
    with pytest.raises(CheckpointError, match=f"{part}: could not load"):
        LOADERS[part](str(tmp_path / part))


SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.parametrize(("part", "other", "complaint"), [
    ("language", "dialogue", "of 'gpt2' instead of 'llama'"), ("dialogue", "language", "of 'llama' instead of 'gpt2'"),
    ("language", "captioner", "of 'blip-2' instead of 'llama'"), ("perceptron", "language", ""), ("captioner", "language", ""),
    ("generator", "translator", ""), ("translator", "generator", "")])
def test_the_folder_of_another_part_is_refused_and_no_model_of_random_weights_made(weights, tmp_path, part, other, complaint):
    folder = copied(weights, tmp_path, other)
    if (folder / "config.json").is_file():  # a model of defaults, which this must not become, would fill the memory
        small = json.loads((folder / "config.json").read_text()) | SMALL
        (folder / "config.json").write_text(json.dumps(small))
    with pytest.raises(CheckpointError, match=f"{part}: could not load .*{complaint}"):
        LOADERS[part](str(folder))


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


ONE_TENSOR = {"missing": without, "of another shape": lambda tensors, name: tensors | {name: torch.zeros(7)},
              "without numbers": lambda tensors, name: tensors | {name: torch.full_like(tensors[name], torch.nan)}}


@pytest.mark.parametrize("how", ONE_TENSOR)
@pytest.mark.parametrize(("part", "pattern"), [
    (part, f"{folder}/*.safetensors".lstrip("/")) for part, folders in WEIGHTS.items() for folder in folders.split() or [""]])
def test_a_part_one_of_whose_tensors_is_wrong_is_named(weights, tmp_path, part, pattern, how):
    path = next(copied(weights, tmp_path, part).glob(pattern))
    tensors = load_file(path)
    name = sorted(key for key in tensors if key.endswith("weight"))[-1]
    save_file(ONE_TENSOR[how](tensors, name), path)
    with pytest.raises(CheckpointError, match=f"{part}: could not load .*") as caught:
        LOADERS[part](str(tmp_path / part))
    assert how != "without numbers" or f"hold values that are not numbers, {name} first" in str(caught.value)


FILES = [
    ("language", "config.json", json.dumps(SMALL), "of None instead of 'llama'"), ("language", "config.json", "[]", ""), ("language", "config.json", "", ""),
    ("language", "tokenizer.json", "{}", ""), ("dialogue", "tokenizer.json", None, ""), ("translator", "tokenizer/tokenizer.json", None, ""),
    ("dialogue", "token*", None, "its tokenizer has no words"), ("captioner", "token*", None, "its tokenizer has no words"),
    ("language", "tokenizer_config.json", '{"tokenizer_class": "TokenizersBackend"}', "its tokenizer has no bos_token"),
    ("perceptron", "config.json", "[]", ""), ("perceptron", "config.json", "{}", ""), ("generator", "vae/config.json", "{}", "_class_name"),
    ("generator", "vae/config.json", '{"_class_name": "Nonsense"}', "no attribute Nonsense"),
    ("generator", "unet/config.json", '{"_class_name": "Transformer2DModel"}', "instead of 'UNet2DConditionModel'"),
    ("generator", "text_encoder/config.json", '{"model_type": "t5"}', "of 't5' instead of 'clip_text_model'"),
    ("generator", "scheduler/scheduler_config.json", "{}", "no num_train_timesteps"), ("generator", "scheduler/*", None, ""),
    ("captioner", "preprocessor_config.json", "[]", ""), ("captioner", "preprocessor_config.json", '{"image_mean": "x", "image_std": 3}', "")]


@pytest.mark.parametrize(("part", "pattern", "content", "complaint"), FILES)
def test_a_part_one_of_whose_files_says_something_else_is_named(weights, tmp_path, part, pattern, content, complaint):
    for path in list(copied(weights, tmp_path, part).glob(pattern)):
        path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=f"{part}: could not load .*{complaint}"):
        LOADERS[part](str(tmp_path / part))


def test_a_pickle_that_is_none_is_named(weights, tmp_path):
    path = copied(weights, tmp_path, "language") / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin")).write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="language: could not load"):
        LOADERS["language"](str(path.parent))


def test_a_tokenizer_of_more_words_than_the_text_encoder_is_refused(weights, tmp_path):
    folder = copied(weights, tmp_path, "generator") / "tokenizer"
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "content": "[more]", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="could not load .*its tokenizer has 595 words, its text encoder 594"):
        LOADERS["generator"](str(folder.parent))


def test_another_command_says_its_own_way_to_name_a_source():
    error = hub.unreachable("tokenizer", "a/b", OSError("line one\nline two"), "--source FOLDER")
    assert "tokenizer: could not load 'a/b' (OSError: line one)" in str(error) and "; --source FOLDER takes another" in str(error)
    assert "--set model.captioner=FOLDER" in str(hub.unreachable("captioner", "a/b", KeyError()))


@pytest.mark.parametrize(("source", "name"), [(SHIPPED, "perceptron/model.safetensors"),
                                              (BASELINES, "translator/vqvae/config.json")])
def test_a_damaged_shipped_part_is_named_whichever_is_loaded(weights, tmp_path, monkeypatch, damage, source, name):
    monkeypatch.setattr(hub, "WEIGHTS", shutil.copytree(weights, tmp_path / "weights"))
    damage(tmp_path / "weights" / source.removeprefix("shipped:") / name, "flipped")
    with pytest.raises(CheckpointError, match=f"{source.removeprefix('shipped:')} is damaged: {name} is not what was saved"):
        hub.locate(source, "language")
