"""The paper's parts, from checkpoints in the hub's own layouts: small ones, through the same functions."""

import json
import shutil
import time
from pathlib import Path

import hub_checkpoints
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hub_server import COMMIT, HubServer
from model_helpers import noise_photo
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Blip2ForConditionalGeneration, BlipImageProcessorPil, LlamaConfig, LlamaForCausalLM

from e2e_lib.config import SHIPPED
from e2e_lib.data.photos import to_image
from e2e_lib.models.generator import load_generator
from e2e_lib.models.hub import ANSWER_SECONDS, origin
from e2e_lib.models.language import load_language
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seeded

META = Path(__file__).resolve().parents[3] / "shared" / "tokenizers" / "llama-2"


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def blip2(hub_folder):
    return hub_checkpoints.save_blip2(hub_folder / "blip2")


@pytest.fixture(scope="module")
def llama(hub_folder):
    return hub_checkpoints.save_llama(hub_folder / "llama")


@pytest.fixture(scope="module")
def diffusion(hub_folder):
    return hub_checkpoints.save_diffusion(hub_folder / "diffusion")


def loaded(source):
    with seeded("new rows"):
        return load_language(source)


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == of and torch.equal(a, b) for (name, a), (of, b) in pairs)


SIZES = [(64, 64), (224, 224), (364, 364), (512, 512), (100, 300), (333, 50), (1, 1), (56, 56)]


@torch.no_grad()
def test_the_perceptron_out_of_a_whole_blip2_sees_what_the_stock_model_sees(blip2):
    """Photos of any size and shape, through the stock processor and the stock model up to the Q-Former's output."""
    perceptron, stock = load_perceptron(str(blip2), 64), Blip2ForConditionalGeneration.from_pretrained(blip2).eval()
    photos = [noise_photo(i, *size) for i, size in enumerate(SIZES)]
    pixels = BlipImageProcessorPil.from_pretrained(blip2)([to_image(photo) for photo in photos], return_tensors="pt").pixel_values
    assert (perceptron.pixel_values(photos) - pixels).abs().max() < 1e-5
    patches = stock.vision_model(pixel_values=pixels).last_hidden_state
    queries = stock.qformer(query_embeds=stock.query_tokens.expand(len(photos), -1, -1), encoder_hidden_states=patches).last_hidden_state
    assert perceptron(photos).shape == (len(photos), 8, 64)
    assert torch.allclose(perceptron(photos), perceptron.language_projection(queries), atol=1e-5)


@pytest.fixture
def hub_server(blip2, llama, tmp_path, monkeypatch):
    """A hub with two repositories, a gated and a withdrawn one; the client's cache is empty."""
    refused = {"meta/gated": (403, "GatedRepo"), "meta/secret": (401, "RepoNotFound")}
    with HubServer({"meta/llama": llama, "sales/blip2": blip2}, refused) as server:
        for name, value in {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "cache"),
                            "HF_HUB_DISABLE_XET": True,
                            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}"}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield server


def test_a_part_comes_from_the_hub_once_and_then_from_its_copy(hub_server, llama):
    for source in ("meta/llama", f"meta/llama@{COMMIT}"):
        language, words = loaded(source)
        local, theirs = loaded(str(llama))
        assert same_weights(language, local) and words.get_vocab() == theirs.get_vocab()
    downloads = [path for path in hub_server.asked if "/resolve/" in path and path.endswith(".safetensors")]
    assert {path.rpartition("/")[2] for path in downloads} == {path.name for path in llama.glob("*.safetensors")}
    assert not any(path.endswith((".bin", ".pt", ".md")) for path in hub_server.asked)
    assert origin("meta/llama") == origin(f"meta/llama@{COMMIT}") == f"meta/llama@{COMMIT}"  # what results record
    assert origin(SHIPPED) == SHIPPED and origin("meta/never") == "meta/never" and origin(str(llama)) == str(llama)
    hub_server.shutdown()
    assert same_weights(loaded("meta/llama")[0], local)  # nobody answers any more


@pytest.mark.parametrize(("source", "why"), [
    ("meta/gated", "it is gated: accept its licence on its page, log in with `hf auth login`"),
    ("meta/secret", "no such repository: it is misspelt, withdrawn, or private"),
    ("meta/gone", "no such repository: it is misspelt, withdrawn, or private"),
    ("not a name", "no such repository: it is misspelt, withdrawn, or private"),
    ("meta/llama@other", 'not in this revision; leave out what follows "@"')])
def test_why_the_hub_gives_no_part_is_said_at_once(hub_server, source, why):
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"language: could not load '{source}': .*{why}.*--set model.language=FOLDER"):
        load_language(source)
    asked = len(hub_server.asked)
    assert asked <= 4 and time.monotonic() - began < 60  # no more tries than one


def test_offline_is_said_without_trying_again_and_again(monkeypatch, tmp_path):
    tried = []

    class Deaf:
        def head(self, *arguments, **settings):
            tried.append(settings["timeout"])
            raise OSError("unreachable")

    monkeypatch.setattr("e2e_lib.models.hub.get_session", Deaf)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="not downloaded before, and the hub does not answer: you are offline"):
        load_language("meta/llama")
    assert tried == [ANSWER_SECONDS] and ANSWER_SECONDS < 5


def test_a_damaged_shard_a_missing_one_and_another_architecture_are_named(llama, blip2, tmp_path, damage):
    for number, how in enumerate(("cut short", "gone")):
        folder = shutil.copytree(llama, tmp_path / str(number))
        damage(sorted(folder.glob("model-*.safetensors"))[1], how)
        with pytest.raises(CheckpointError, match="language: could not load .*a file is missing or damaged"):
            load_language(str(folder))
    with pytest.raises(CheckpointError, match="of 'gpt2' instead of 'llama'"):
        load_language(str(hub_checkpoints.save_dialogpt(tmp_path / "gpt")))
    folder = shutil.copytree(blip2, tmp_path / "blip")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"]["query_tokens"]
    tensors = load_file(shard)
    del tensors["query_tokens"]
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match="perceptron: could not load .*1 of its weights are not in the files, query_tokens first"):
        load_perceptron(str(folder), 64)


TEXTS = ["[INST] a red car [/INST]", "a red car", " two  cats", "it's a haha moment", "café", "a\nb", "", "A Big Orange Balloon!"]


def test_a_tokenizer_of_llamas_class_gives_metas_tokens_after_a_special_one(llama):
    """Text is cut as if it stood alone, whichever mark it follows: as the tokenizers library's own encoding of tokenizer.json."""
    _, words = load_language(str(llama))
    backend = Tokenizer.from_file(str(llama / "tokenizer.json"))
    for text in TEXTS:
        for before in ("", "<s>", "</s>", "<s></s>"):
            assert words(before + text, add_special_tokens=False)["input_ids"] == backend.encode(before + text, add_special_tokens=False).ids
    assert words.chat_template and words.convert_tokens_to_ids("[IMG]") == len(backend.get_vocab()) + 1


@pytest.mark.skipif(not META.is_dir(), reason="Llama-2's tokenizer is not beside this repository")
def test_llama_2_itself_cuts_its_template_as_its_authors_do(llama, tmp_path):
    """518, 25580, 29962 are Meta's own tokens of "[INST]" after the beginning."""
    folder = shutil.copytree(META, tmp_path / "llama-2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizer"}))
    config = LlamaConfig(vocab_size=32000, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    _, words = load_language(str(folder))
    assert words("<s>[INST] hello", add_special_tokens=False)["input_ids"] == [1, 518, 25580, 29962, 22172]


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_drawing_equals_the_stock_pipeline(diffusion, guidance):
    generator, captions = load_generator(str(diffusion)), ["a red car on the beach", "two tents"]
    stock = StableDiffusionPipeline.from_pretrained(diffusion)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(5)
    noise = torch.stack([torch.randn(4, 8, 8, generator=rng) for _ in captions])
    theirs = stock(captions, latents=noise, num_inference_steps=6, guidance_scale=guidance, output_type="np").images
    ours = generator.draw(captions, torch.Generator().manual_seed(5), num_inference_steps=6, guidance_scale=guidance)
    difference = (ours.permute(0, 2, 3, 1).float() - torch.from_numpy(theirs * 255).round()).abs().max()
    assert ours.shape == (2, 3, 64, 64) and difference <= 1 and ours.float().std() > 5
    assert generator.scheduler.config.prediction_type == "epsilon"
