"""The profile `paper`, from the hub's layouts to scores: small checkpoints, through the same functions, all three systems."""

import hashlib
import io
import json

import hub_checkpoints
import pytest
import torch
from model_helpers import noise_photo
from safetensors.torch import load_file

from e2e_lib import corpora
from e2e_lib.config import load, replace
from e2e_lib.data.photo_index import PhotoIndex, PhotoRow
from e2e_lib.data.photos import PhotoStore, to_image
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import build
from e2e_lib.repro import files
from e2e_lib.repro.run_files import read_answers, read_log
from e2e_lib.sources import synthetic
from e2e_lib.sources.build import build as build_corpus
from e2e_lib.training.loop import load_trained, train


class InceptionLike:
    """Features and logits of Inception's shapes, from a fixed random projection of small photos."""

    def extract(self, photos):
        rng = torch.Generator().manual_seed(0)
        pixels = torch.stack([torch.nn.functional.interpolate(photo[None].float() / 255, (8, 8))[0].flatten() for photo in photos])
        features = (pixels @ torch.randn(192, 2048, generator=rng)).relu()
        return features, features @ torch.randn(2048, 1008, generator=rng) / 2048


@pytest.fixture(scope="module")
def photochat(tmp_path_factory):
    """A built PhotoChat, made up, with all its photos."""
    base = tmp_path_factory.mktemp("photochat")
    source = synthetic.write("photochat", base / "source", {"train": 8, "dev": 3, "test": 3})
    build_corpus("photochat", source, base / "corpus", lambda _: None)
    statuses = []  # one photo of the test split could not be fetched
    with PhotoIndex(base / "corpus" / "photos") as index:
        for number, line in enumerate((base / "corpus" / "photos.jsonl").read_text().splitlines()):
            row, content = json.loads(line), io.BytesIO()
            to_image(noise_photo(number, 48, 80)).save(content, format="JPEG")
            name = f"{hashlib.sha256(content.getvalue()).hexdigest()}.jpg"
            (index.folder / name).write_bytes(content.getvalue())
            status = "drawn" if row["splits"] == ["test"] and "drawn" not in statuses else "ok"
            statuses.append(status)
            index.put(PhotoRow(row["url"], row["photo_id"], status, sha256=name[:-4], width=80, height=48, bytes=len(content.getvalue()),
                               source="downloaded", file=name))
    return base / "corpus"


@pytest.fixture(scope="module")
def paper(photochat, weights, tmp_path_factory):
    """The profile with small parts, few steps, and AdamW in 32 bits, which needs nothing that is not installed."""
    hub, config = tmp_path_factory.mktemp("hub"), load("paper")
    parts = {"language": hub_checkpoints.save_llama(hub / "llama"), "perceptron": hub_checkpoints.save_blip2(hub / "blip2"),
             "captioner": hub / "blip2", "generator": hub_checkpoints.save_diffusion(hub / "diffusion"),
             "dialogue": hub_checkpoints.save_dialogpt(hub / "dialogpt"), "translator": weights / "mini-baselines" / "translator"}
    changes = {"data.folder": photochat, "data.max_context": 192, "data.workers": 0, "inference.max_new_tokens": 16,
               "inference.num_inference_steps": 2, "train.epochs": 1, "train.epoch_examples": 12, "train.batch_size": 2, "train.warmup_steps": 2,
               "train.gradient_accumulation_steps": 2, "train.checkpoint_every": 1, "train.log_every": 1, "train.dev_examples": 4,
               "train.optimizer": "adamw", "train.learning_rate": 1e-3, **{f"model.{part}": path for part, path in parts.items()}}
    for key, value in changes.items():
        config = replace(config, key, str(value))
    return config


@pytest.fixture(autouse=True)
def inception(monkeypatch):
    photochat = corpora.CORPORA["photochat"]
    monkeypatch.setitem(corpora.CORPORA, "photochat", corpora.Corpus(photochat.write, InceptionLike, photochat.version))


def interrupted(monkeypatch, saves, run):
    """Runs until the ``saves``-th checkpoint, which is cut off."""
    count, real = [], files.atomic_folder

    def cut(folder):
        count.append(folder.name)
        if count.count("latest") == saves:
            raise KeyboardInterrupt
        return real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_folder", cut)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_the_end_to_end_model_trains_in_half_precision_resumes_exactly_answers_and_is_scored(paper, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    paper = replace(paper, "train.caption_dropout", 0)  # or a step's only photo may say nothing about words
    whole, again = (lambda root=root: train(paper, 0, lambda _: None, root=tmp_path / root) for root in ("runs", "again"))
    folder = whole()
    for saves in (2, 3):
        interrupted(monkeypatch, saves, again)
    assert files.sha256(again() / "latest" / "model.safetensors") == files.sha256(folder / "latest" / "model.safetensors")
    steps = [row for row in read_log(folder) if row["kind"] == "step"]
    assert len(steps) == 3 and all(0 < row["gradient_language_from_image"] < 100 for row in steps if row["image_loss"])
    assert any(row["image_loss"] for row in steps)
    in_32_bits = replace(replace(paper, "model.frozen", "float32"), "train.mixed_precision", "no")
    exact = [row for row in read_log(train(in_32_bits, 0, lambda _: None, root=tmp_path / "exact")) if row["kind"] == "step"]
    for half, whole in zip(steps, exact, strict=True):  # neither vanishes, nor is scaled
        for name in ("gradient_language_from_image", "gradient_language", "gradient_unet"):
            assert half[name] == (whole[name] and pytest.approx(whole[name], rel=0.2)), name
    before, after = build(paper), load_trained(paper, 0, root=tmp_path / "runs")
    assert before.language.dtype == before.generator.vae.dtype == before.perceptron.vision_model.dtype == torch.float16
    began, ended = trainable_weights(before), trainable_weights(after)
    learnt = {name for name, tensor in ended.items() if not torch.equal(tensor, began[name])}
    assert {name.split(".")[0] for name in learnt} == {"language", "perceptron", "generator"}
    assert all(tensor.dtype == torch.float32 for tensor in ended.values())
    assert not any("vision_model" in name or "text_encoder" in name or "base_layer" in name for name in ended)
    path = evaluate(paper, 0, lambda _: None, runs_root=tmp_path / "runs")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["n"]["examples"] == len(read_answers("paper", [0], tmp_path / "runs")[0]) and "scene_accuracy" not in metrics
    assert metrics["n"]["gold_photos_drawn_from_captions"] == 1 < metrics["n"]["gold_photos"]


@pytest.mark.parametrize("changes", [
    {"model.unet_lora": 4}, {"model.frozen": "bfloat16", "train.mixed_precision": "bf16", "model.perceptron_trains": "projection"},
    {"model.frozen": "float32", "train.mixed_precision": "no", "train.examples": "dialogues"},
    {"model.system": "pipeline"}, {"model.system": "divter", "model.frozen": "float32", "train.mixed_precision": "no"}])
def test_other_formats_adapters_and_the_baselines_train_and_answer(paper, changes, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for key, value in {**changes, "train.epoch_examples": 4}.items():
        paper = replace(paper, key, value)
    train(paper, 0, lambda _: None)
    evaluate(paper, 0, lambda _: None)
    assert all(row["text"] is not None for row in read_answers("paper", [0], system=paper.model.system)[0])
    assert PhotoStore(paper.data.folder + "/photos").index


def test_states_of_8_bits_come_back_exactly(paper, monkeypatch, tmp_path):
    """bitsandbytes keeps them in dictionaries of their own."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    for key, value in {"train.optimizer": "adamw8bit", "model.frozen": "float32", "train.mixed_precision": "no"}.items():
        paper = replace(paper, key, value)
    whole, again = (lambda root=root: train(paper, 0, lambda _: None, root=tmp_path / root) for root in ("runs", "again"))
    folder = whole()
    interrupted(monkeypatch, 3, again)
    assert files.sha256(again() / "latest" / "model.safetensors") == files.sha256(folder / "latest" / "model.safetensors")
    assert any(tensor.dtype == torch.uint8 for tensor in load_file(folder / "latest" / "optimizer.safetensors").values())


def test_a_language_model_in_4_bits_trains_resumes_exactly_and_answers(paper, monkeypatch, tmp_path):
    """It is answered with before it is trained, and not when it is resumed: bitsandbytes stores it otherwise after the first on some CPUs."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    llama = hub_checkpoints.save_llama(tmp_path / "llama", intermediate_size=128)
    for key, value in {"model.language": str(llama), "model.language_bits": 4, "train.epoch_examples": 8}.items():
        paper = replace(paper, key, value)
    whole, again = (lambda root=root: train(paper, 0, lambda _: None, root=tmp_path / root) for root in ("runs", "again"))
    folder = whole()
    interrupted(monkeypatch, 2, again)
    assert files.sha256(again() / "latest" / "model.safetensors") == files.sha256(folder / "latest" / "model.safetensors")
    saved = {name: tensor for name, tensor in load_file(folder / "best" / "model.safetensors").items() if name.startswith("language.")}
    assert all(tensor.dtype == torch.float32 and ("lora_" in name or "trainable_tokens" in name) for name, tensor in saved.items())
    assert all(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name)  # they were zeros
    evaluate(paper, 0, lambda _: None, runs_root=tmp_path / "runs")
    assert all(row["text"] is not None for row in read_answers("paper", [0], tmp_path / "runs")[0])
