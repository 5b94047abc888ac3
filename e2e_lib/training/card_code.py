"""The code of a model card: how stock libraries load an export's parts, and how this package takes it in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e_lib.config import Config
from e2e_lib.models.exported import ADAPTER, NAMED

QUESTION = "Hello! What are you doing today?"
CAPTION = "a photo of a red car"

_LANGUAGE = """\
{imports}

tokenizer = AutoTokenizer.from_pretrained("./{part}")
model = {kind}.from_pretrained("./{part}"{options})
model.generation_config = GenerationConfig.from_pretrained("./{part}")
{prompt}
answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1]:]
print(tokenizer.decode(answer))  # a photo stands there as its caption: [IMG] caption [/IMG]"""

_TEMPLATE = """
messages = [{{"role": "user", "content": "{question}"}}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                    return_dict=False)"""

_OWN_FORMAT = """
def tokens(text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

turns = [*tokens("User: {question}"), *tokens("\\n")]
ids = torch.tensor([[tokenizer.bos_token_id, *turns, *tokens("Assistant:")]])"""

_NF4 = """, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype="{frozen}")"""

_GENERATOR = """\
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("./generator")
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # as the run draws
drawn = pipeline("{caption}", num_inference_steps={steps}, guidance_scale={guidance},
                 generator=torch.Generator().manual_seed(0){latent}).images
{photo}
photo.save("photo.png")"""

_DECODED = """\
with torch.no_grad():
    decoded = pipeline.vae.decode(drawn / pipeline.vae.config.scaling_factor).sample
photo = pipeline.image_processor.postprocess(decoded)[0]"""

_CHAT = """\
from e2e_lib.inference.chat import ChatPartner, chat_settings
from e2e_lib.models.exported import load_exported

model, config = load_exported(".")
partner = ChatPartner(model, chat_settings(config.inference))
print(partner.say("{question}").text)"""


def sections(folder: Path, record: Mapping[str, Any], config: Config, formatter: Any) -> list[str]:
    """The sections with code of the card of the export in ``folder``; the code runs in that folder."""
    parts = {name: row["as"] for name, row in record["parts"].items() if row["as"] != NAMED}
    written = ["## With the stock libraries\n\nIn this folder:", _block(_language(parts, config, formatter))]
    if "generator" in parts:
        written.append(_block(_generator(config, folder)))
    own = [f"`{name}/`" for name in ("perceptron", "translator") if name in parts]
    note = f" {' and '.join(own)} has no stock class and is read by e2e_lib." if own else ""
    return [*written, "## With e2e_lib\n\nOn the command line `e2e chat --from DIR`, and in Python:",
            _block(_CHAT.format(question=QUESTION)),
            f"Training goes on from a part with `e2e train --set model.PART=DIR/PART`.{note}"]


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


def _language(parts: Mapping[str, str], config: Config, formatter: Any) -> str:
    part = "dialogue" if "dialogue" in parts else "language"
    adapter, nf4 = parts[part] == ADAPTER, parts[part] == ADAPTER and config.model.language_bits == 4
    names = ["AutoTokenizer", "GenerationConfig", *(["BitsAndBytesConfig"] if nf4 else []),
             *([] if adapter else ["AutoModelForCausalLM"])]
    imports = ["import torch", *(["from peft import AutoPeftModelForCausalLM"] if adapter else []),
               f"from transformers import {', '.join(sorted(names))}"]
    prompt = _TEMPLATE if formatter.template else _OWN_FORMAT
    # As the run had it: else the base model is in whatever format its files have.
    dtype = f', dtype="{config.model.frozen}"' if adapter else ""
    return _LANGUAGE.format(
        imports="\n".join(imports), part=part,
        options=dtype + (_NF4.format(frozen=config.model.frozen) if nf4 else ""),
        kind="AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM",
        prompt=prompt.format(question=QUESTION))


def _generator(config: Config, folder: Path) -> str:
    settings, autoencoder = config.inference, folder / "generator" / "vae" / "config.json"
    # Which the pipeline cannot call: it hands over a generator that this class does not take.
    by_hand = json.loads(autoencoder.read_text(encoding="utf-8"))["_class_name"] == "AutoencoderDC"
    return _GENERATOR.format(caption=CAPTION, steps=settings.num_inference_steps,
                             guidance=settings.guidance_scale,
                             latent=', output_type="latent"' if by_hand else "",
                             photo=_DECODED if by_hand else "photo = drawn[0]")
