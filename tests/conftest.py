"""A tiny corpus, and tiny parts of random weights for every system: the real classes, saved as the hub saves them."""

import copy
import os
import signal
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test must never reach for a hub

import pytest
import torch
from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel, VQModel
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from model_helpers import PARTS
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from e2e_lib import config as settings
from e2e_lib.config import Data
from e2e_lib.data.collate import IMAGE_TOKEN, Collator
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.data.minichat.chats import make_chat
from e2e_lib.data.minichat.corpus import write as write_minichat
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.models import hub
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.models.systems import build
from e2e_lib.pretraining.tokenizers import train_clip_like, train_llama_like
from e2e_lib.repro import files

# It takes two seconds to import, in each worker, and jsonschema needs it for addresses alone, which no notebook has.
sys.modules["rfc3987_syntax"] = None
torch.set_num_threads(1)
# A shell that runs the tests in the background has these ignored, and the tests of interruptions need them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
# How many inputs a test marked "fuzz" makes up: a few in the tests, as many as E2E_FUZZ_EXAMPLES says with HYPOTHESIS_PROFILE=fuzz.
for name, how in {"default": {"max_examples": 15, "derandomize": True},
                  "fuzz": {"max_examples": int(os.environ.get("E2E_FUZZ_EXAMPLES", "10000")), "derandomize": False}}.items():
    hypothesis_settings.register_profile(name, deadline=None, suppress_health_check=[HealthCheck.too_slow], **how)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
WIDTH, QUERIES, CAPTION_LIMIT = 32, 4, 32
CODES, SIDE = 24, 4  # entries of the codebook, and codes along a side of a photo
TOWER = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
QFORMER = {**TOWER, "encoder_hidden_size": WIDTH, "cross_attention_frequency": 1}


def pytest_collection_modifyitems(items):
    """The longest test comes first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: "smoke_runs_every_notebook" not in item.name)


def special_ids(tokenizer):
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def save_parts(folder):
    """Every part of the end-to-end model in ``folder``, in the layout of the shipped ones. Returns the tokenizers."""
    turns = [turn for i in range(300) for turn in make_chat("train", i, 99).dialogue.turns]
    captions = [turn.photos[0].caption for turn in turns if turn.photos]
    lines = [f"{('User', 'Assistant')[turn.speaker]}: {turn.text}\n" for turn in turns if turn.text]
    words = train_llama_like(lines + captions, vocabulary=420)
    clip = train_clip_like(captions, merges=80, limit=CAPTION_LIMIT)
    torch.manual_seed(0)
    small = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=512, tie_word_embeddings=True,
                                            **small, **special_ids(words)))
    text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(clip), max_position_embeddings=CAPTION_LIMIT,
                                                **small, **special_ids(clip)))
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=8, cross_attention_dim=WIDTH, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    vae = AutoencoderDC(
        latent_channels=4, encoder_block_out_channels=(8, 16, 16), decoder_block_out_channels=(8, 16, 16),
        scaling_factor=0.7, encoder_layers_per_block=(0, 1, 1), decoder_layers_per_block=(0, 1, 1),
        encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()))
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                              steps_offset=1)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    perceptron = ImagePerceptron({**TOWER, "image_size": 64, "patch_size": 16}, {**QFORMER, **no_dropout},
                                 queries=QUERIES, language_width=WIDTH)
    for part, name in ((words, "language"), (language, "language"), (perceptron, "perceptron"),
                       (clip, "generator/tokenizer"), (text_encoder, "generator/text_encoder"),
                       (unet, "generator/unet"), (vae, "generator/vae"), (scheduler, "generator/scheduler"),
                       (SceneClassifier(width=8), "scene_reader")):
        part.save_pretrained(folder / name)
    files.write_json(folder / "manifest.json", files.sha256_folder(folder))
    return words, clip


def save_baselines(folder, words, clip):
    """Every part that only the baselines have, in ``folder``. Dropout is left as the hub's models have it."""
    torch.manual_seed(1)
    captioner = Blip2ForConditionalGeneration(Blip2Config(
        vision_config={**TOWER, "image_size": 64, "patch_size": 16}, qformer_config={**QFORMER, "vocab_size": 8},
        text_config={"model_type": "opt", "vocab_size": len(words), "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH,
                     "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
                     **special_ids(words)},
        num_query_tokens=QUERIES, image_token_index=words.convert_tokens_to_ids(IMAGE_TOKEN)))
    with torch.no_grad():  # larger weights, so that captions depend on the photos
        for parameter in captioner.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        table = captioner.get_input_embeddings().weight
        table[words.convert_tokens_to_ids("<0x00>"):][:256] = 0  # bytes and image tokens are never the likeliest
        table[words.convert_tokens_to_ids(IMAGE_TOKEN)] = 0
        table[words.eos_token_id] *= 2  # and some captions end
    small = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2}
    dialogue = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=512, **small, **special_ids(words)))
    vqvae = VQModel(
        sample_size=64, block_out_channels=(8, 8, 8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5, norm_num_groups=4, latent_channels=4, num_vq_embeddings=CODES)
    with torch.no_grad():  # a codebook of what it encodes, so that a photo has several codes
        latents = vqvae.encode(2 * torch.rand(2, 3, 64, 64) - 1).latents
        vqvae.quantize.embedding.weight.copy_(latents.permute(0, 2, 3, 1).flatten(0, 2)[:CODES])
    transformer = GPT2LMHeadModel(GPT2Config(vocab_size=len(clip) + CODES + 1, n_positions=CAPTION_LIMIT + 1 + SIDE**2,
                                             bos_token_id=None, eos_token_id=None, **small))
    for part, name in ((words, "captioner"), (captioner, "captioner"), (words, "dialogue"), (dialogue, "dialogue"),
                       (clip, "translator/tokenizer"), (vqvae, "translator/vqvae"),
                       (transformer, "translator/transformer")):
        part.save_pretrained(folder / name)
    scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    files.write_json(folder / "captioner" / "preprocessor_config.json", scale)
    files.write_json(folder / "manifest.json", files.sha256_folder(folder))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder to stand in for ``hub.WEIGHTS``, with tiny parts as "mini" and "mini-baselines"."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        tokenizers = save_parts(folder / "mini")
        save_baselines(folder / "mini-baselines", *tokenizers)
    return folder


@pytest.fixture
def shipped(weights, monkeypatch):
    """The tiny parts take the place of the shipped ones."""
    monkeypatch.setattr(hub, "WEIGHTS", weights)
    return weights / "mini"


@pytest.fixture(scope="session")
def config(weights):
    """The smoke profile on the tiny parts (as local folders) and a tiny corpus."""
    tiny = settings.load("smoke", [
        "data.train=12", "data.dev=4", "data.test=4", "train.dev_examples=6", "inference.num_inference_steps=2",
        "inference.max_new_tokens=8", "train.epoch_examples=12", "train.batch_size=4",
        "train.examples=responses"])
    for place, parts in PARTS.items():
        for part in parts:
            tiny = settings.replace(tiny, f"model.{part}", str(weights / place / part))
    return tiny


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "corpus"
    folder.mkdir()
    write_minichat(Data(train=12, dev=4, test=4), folder, lambda _: None)
    return folder


@pytest.fixture(scope="session")
def built():
    """The models of ``new_model`` by its changes, of which every test gets copies."""
    return {}


@pytest.fixture
def new_model(config, built):
    """Makes a tiny system, settings changed as in ``new_model(("bridge.noise", False))``; always the same weights."""
    def make(*changes):
        if changes not in built:
            changed = config
            for key, value in changes:
                changed = settings.replace(changed, key, value)
            built[changes] = build(changed)
        return copy.deepcopy(built[changes])
    return make


@pytest.fixture
def model(new_model):
    return new_model()


@pytest.fixture(scope="session")
def systems(config):
    """All three systems in evaluation mode, by name. Not to be changed."""
    return {name: build(settings.replace(config, "model.system", name)).eval() for name in settings.SYSTEMS}


@pytest.fixture(scope="session")
def sides(systems):
    """The tokenizers of the language model and of the text encoder, and the text encoder's limit in tokens."""
    generator = systems["end_to_end"].generator
    return systems["end_to_end"].tokenizer, generator.tokenizer, generator.text_encoder.config.max_position_embeddings


@pytest.fixture(scope="session")
def table(systems):
    """The text encoder's embeddings (V2, D2) in double precision."""
    return systems["end_to_end"].generator.text_encoder.get_input_embeddings().weight.detach().double()


@pytest.fixture(scope="session")
def examples(corpus):
    """All training examples of the tiny corpus and their photo store."""
    dialogues, store, _ = load_split(corpus, "train")
    return [example for dialogue in dialogues for example in examples_of(dialogue)], store


@pytest.fixture(scope="session")
def six(examples):
    """Six examples and their photos: with and without photos in their contexts and responses, in no order."""
    rows, store = examples
    kinds = {kind: [e for e in rows if (any(turn.photos for turn in e.context), bool(e.response.photos)) == kind]
             for kind in ((True, True), (True, False), (False, True), (False, False))}
    return [kinds[True, False][0], kinds[True, True][0], kinds[False, False][0], kinds[False, True][0],
            kinds[True, True][-1], kinds[True, False][-1]], store


@pytest.fixture
def batch(model, examples):
    """Six examples: two responses with photos after a context with a photo, two more with photos, two of text only."""
    rows, store = examples
    in_both = [e for e in rows if e.response.photos and any(turn.photos for turn in e.context)][:2]
    in_response = [e for e in rows if e.response.photos and not any(turn.photos for turn in e.context)][:2]
    text = [e for e in rows if not e.response.photos and len(e.context) > 2][:2]
    return Collator(model.formatter, store)([
        text[0], in_both[0], in_response[0], text[1], in_both[1], in_response[1]])


@pytest.fixture
def damage():
    """Damages a file, as in ``damage(path, "cut short")``; also "flipped", "empty", "text" and "gone"."""
    def do(path, how):
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1:]
        kinds = {"cut short": content[:middle], "flipped": flipped, "empty": b"", "text": b"{}"}
        path.unlink()
        if how != "gone":
            path.write_bytes(kinds[how])
    return do


@pytest.fixture
def talkative(new_model):
    """A system by name, with larger weights, so that its words depend on the context and not on rounding."""
    def make(name):
        system = new_model(("model.system", name)).eval()
        with torch.no_grad():
            for key, parameter in system.named_parameters():
                if key.startswith(("language", "perceptron")) and parameter.ndim > 1:
                    parameter.mul_(8)
        return system
    return make
