"""Whatever is wrong with a part, the error names it and says what to do."""

import shutil

import pytest
from model_helpers import PARTS
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


@pytest.mark.parametrize("part", LOADERS)
def test_a_missing_part_is_named(tmp_path, part):
    with pytest.raises(CheckpointError, match=f"{part}: there is no folder {tmp_path}/absent; name a folder"):
        LOADERS[part](f"{tmp_path}/absent")
    with pytest.raises(CheckpointError, match=f"{part}: could not load .*--set model.{part}=FOLDER"):
        LOADERS[part](str(tmp_path))
    with pytest.raises(CheckpointError, match=f"{part}: could not load 'nobody/nothing' .*or you are offline"):
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
    (place,) = (place for place, parts in PARTS.items() if part in parts)
    shutil.copytree(weights / place / part, tmp_path / part)
    damage(next((tmp_path / part).glob(pattern)), how)
    with pytest.raises(CheckpointError, match=f"{part}: could not load"):
        LOADERS[part](str(tmp_path / part))


@pytest.mark.parametrize(("source", "name"), [(SHIPPED, "perceptron/model.safetensors"),
                                              (BASELINES, "translator/vqvae/config.json")])
def test_a_damaged_shipped_part_is_named_whichever_is_loaded(weights, tmp_path, monkeypatch, damage, source, name):
    monkeypatch.setattr(hub, "WEIGHTS", shutil.copytree(weights, tmp_path / "weights"))
    damage(tmp_path / "weights" / source.removeprefix("shipped:") / name, "flipped")
    with pytest.raises(CheckpointError, match=f"{source.removeprefix('shipped:')} is damaged: {name} is not what was saved"):
        hub.locate(source, "language")
