"""A tiny end-to-end model of random weights, made of the real classes and saved in the hub's own layout, and a tiny corpus."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test must never reach for a hub

import pytest
import torch
from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaForCausalLM

from e2e_lib import config as settings
from e2e_lib import files
from e2e_lib.data.corpus import build_corpus
from e2e_lib.data.examples import Collator, examples_of, load_split
from e2e_lib.data.minichat import make_chat
from e2e_lib.evaluation.reader import SceneReader
from e2e_lib.models import sources
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.models.systems import build
from e2e_lib.models.tokenizers import train_clip_like, train_llama_like

torch.set_num_threads(1)
WIDTH, QUERIES, CAPTION_LIMIT = 32, 4, 32


def save_parts(folder):
    """Every part in ``folder``, in the layout of the shipped ones."""
    turns = [turn for i in range(300) for turn in make_chat("train", i, 99).dialogue.turns]
    captions = [turn.photo.caption for turn in turns if turn.photo]
    words = train_llama_like([f"{('User', 'Assistant')[turn.speaker]}: {turn.text}\n" for turn in turns if turn.text] + captions, vocabulary=420)
    clip = train_clip_like(captions, merges=80, limit=CAPTION_LIMIT)
    torch.manual_seed(0)
    language = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id))
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CAPTION_LIMIT, bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        cross_attention_dim=WIDTH, attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    vae = AutoencoderDC(
        latent_channels=4, encoder_block_out_channels=(8, 16, 16), decoder_block_out_channels=(8, 16, 16), scaling_factor=0.7,
        encoder_layers_per_block=(0, 1, 1), decoder_layers_per_block=(0, 1, 1),
        encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()))
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    qformer = {**tower, "encoder_hidden_size": WIDTH, "cross_attention_frequency": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    perceptron = ImagePerceptron({**tower, "image_size": 64, "patch_size": 16}, qformer, queries=QUERIES, language_width=WIDTH)
    words.save_pretrained(folder / "language")
    language.save_pretrained(folder / "language")
    perceptron.save_pretrained(folder / "perceptron")
    clip.save_pretrained(folder / "generator" / "tokenizer")
    for part, name in ((text_encoder, "text_encoder"), (unet, "unet"), (vae, "vae"), (scheduler, "scheduler")):
        part.save_pretrained(folder / "generator" / name)
    SceneReader(width=8).save_pretrained(folder / "scene_reader")
    files.write_json(folder / "manifest.json", files.sha256_folder(folder))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder to stand in for ``sources.WEIGHTS``, with tiny parts as "mini"."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        save_parts(folder / "mini")
    return folder


@pytest.fixture
def shipped(weights, monkeypatch):
    """The tiny parts take the place of the shipped ones."""
    monkeypatch.setattr(sources, "WEIGHTS", weights)
    return weights / "mini"


@pytest.fixture(scope="session")
def config(weights):
    """The smoke profile on the tiny parts (as local folders) and a tiny corpus."""
    made = settings.load("smoke", ["data.train=12", "data.dev=4", "data.test=4", "train.dev_examples=6", "inference.diffusion_steps=2",
                                   "inference.max_new_tokens=8", "train.epoch_examples=12", "train.batch_size=4"])
    for part in ("language", "perceptron", "generator"):
        made = settings.replace(made, f"model.{part}", str(weights / "mini" / part))
    return made


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "corpus"
    build_corpus(folder, train=12, dev=4, test=4, seed=0)
    return folder


@pytest.fixture
def new_model(config):
    """Builds the tiny model, with settings changed as in ``new_model(("bridge.noise", False))``; the same weights every time."""
    def make(*changes):
        changed = config
        for key, value in changes:
            changed = settings.replace(changed, key, value)
        return build(changed)
    return make


@pytest.fixture
def model(new_model):
    return new_model()


@pytest.fixture(scope="session")
def examples(corpus):
    """All training examples of the tiny corpus and their photo store."""
    dialogues, store, _ = load_split(corpus, "train")
    return [example for dialogue in dialogues for example in examples_of(dialogue)], store


@pytest.fixture
def batch(model, examples):
    """Six examples: two responses with photos after a context with a photo, two more with photos, two of text only."""
    rows, store = examples
    seen = [e for e in rows if e.response.photo and any(turn.photo for turn in e.context)][:2]
    first = [e for e in rows if e.response.photo and not any(turn.photo for turn in e.context)][:2]
    text = [e for e in rows if not e.response.photo and len(e.context) > 2][:2]
    return Collator(model.layout, store, 64)([text[0], seen[0], first[0], text[1], seen[1], first[1]])
