"""LoRA adapters of a language model as files: peft's own folders, written, read, and taken as a source.

A folder holds ``adapter_config.json``, which names the base model and its revision, and
``adapter_model.safetensors`` with the factors and the rows of new tokens.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from e2e_lib.config import ConfigError
from e2e_lib.models import language
from e2e_lib.models.adapters import add_language_lora
from e2e_lib.models.hub import LOADING, unreachable
from e2e_lib.models.losses import misfit
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError

PREFIX = "base_model.model."  # of the names of tensors in a file


def is_adapter(source: str) -> bool:
    """Whether a part's source is a folder with a LoRA adapter."""
    return (Path(source).expanduser() / CONFIG_NAME).is_file()


def read_adapter(folder: Path) -> tuple[str, int]:
    """The source of the model that an adapter belongs to, and its rank. Raises CheckpointError."""
    shape = {"base_model_name_or_path": str, "r": int, "revision?": str | None}
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        if problem := files.find_problem(settings, shape):
            raise ValueError(problem)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the adapter at {folder} cannot be used: its {CONFIG_NAME} is missing or "
                              f"damaged ({error})") from None
    revision = settings.get("revision")
    return settings["base_model_name_or_path"] + (f"@{revision}" if revision else ""), settings["r"]


def save_adapter(model: Any, folder: Path, base: str, revision: str | None) -> None:
    """Writes a language model's LoRA factors and rows of new tokens, as peft does, for the model ``base``."""
    settings = copy.copy(model.peft_config["default"])
    settings.base_model_name_or_path, settings.revision = base, revision
    settings.task_type, settings.inference_mode = "CAUSAL_LM", True
    settings.target_modules = sorted(settings.target_modules)  # a set has no order
    settings.save_pretrained(folder)
    save_file({PREFIX + name: tensor.detach().cpu().contiguous()
               for name, tensor in adapter_weights(model).items()}, folder / SAFETENSORS_WEIGHTS_NAME)


def load_adapter(model: Any, folder: Path, part: str = "language") -> None:
    """Loads the factors and rows in ``folder`` into a language model that has LoRA of the same rank and new
    tokens (see ``adapters.add_language_lora``). Raises CheckpointError where they do not fit it."""
    try:
        saved = {name.removeprefix(PREFIX): tensor
                 for name, tensor in load_file(folder / SAFETENSORS_WEIGHTS_NAME).items()}
    except LOADING as error:
        raise unreachable(part, str(folder), error) from None
    if problem := misfit(adapter_weights(model), saved):
        raise CheckpointError(f"the adapter at {folder} does not fit the model: {problem}; `e2e export` "
                              "makes one that does")
    set_peft_model_state_dict(model, saved)


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """A language model's LoRA factors and rows of new tokens, by name."""
    weights: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return weights


def merge_adapter(model: Any) -> None:
    """Adds a language model's LoRA factors to its weights, and puts the rows of new tokens into its tables,
    in the weights' own number format; an ordinary model is left. Raises ConfigError for weights of 4 bits."""
    if getattr(model, "is_loaded_in_4bit", False):
        raise ConfigError("a LoRA adapter cannot be merged into weights of 4 bits without loss; set "
                          "model.language_lora to the adapter's own rank, or model.language_bits=16")
    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):  # of a table with rows of new tokens
            model.set_submodule(name, module.unload_and_optionally_merge_module(True, False, None))
        elif hasattr(module, "lora_A"):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    model.tie_weights()
    del model.peft_config  # else it would be saved as an adapter
    model._hf_peft_config_loaded = False


def load_language(source: str, part: str = "language", kind: Any = LlamaForCausalLM, lora: int = 0,
                  frozen: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Any]:
    """As ``language.load_language``, also of a folder with a LoRA adapter: the model that it names, with it.

    With ``lora`` of the adapter's own rank its factors go on learning; with another they are merged into the
    weights first. Raises CheckpointError, and ConfigError for a merge into 4 bits.
    """
    if not is_adapter(source):
        return language.load_language(source, part, kind, lora=lora, frozen=frozen, **options)
    folder = Path(source).expanduser()
    base, rank = read_adapter(folder)
    model, tokenizer = language.load_language(base, part, kind, lora=rank, **options,
                                              frozen=frozen if lora else torch.float32)
    load_adapter(model, folder, part)
    if lora != rank:
        merge_adapter(model)
        model.requires_grad_(True)
        if lora:
            markers = (language.PAD, language.IMAGE_START, language.IMAGE_END, language.IMAGE_TOKEN)
            add_language_lora(model, lora, tokenizer.convert_tokens_to_ids(markers))
    return model, tokenizer
