"""What joint training of the full-size parts takes on an accelerator: random weights, no downloads, ten minutes at most.

    python tests/device/paper_scale.py --out FOLDER

Builds the profile `paper` and takes joint steps in fp16 and bf16. Writes FOLDER/paper_scale.json: peak memory against the plan, tokens and
photos a second, the share of the device's peak, and the bridge's cost against its floor (the straight-through Gumbel-softmax over the same
logits); and FOLDER/profile-FORMAT.txt, a profiler's table. `--tiny` does all of it with the mini parts' sizes, on a CPU in seconds.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from small_tokenizers import TEXTS, tokenizer  # noqa: E402

from e2e_lib.bridge.gumbel import softmax_with_temperature, straight_through  # noqa: E402
from e2e_lib.config import load, replace  # noqa: E402
from e2e_lib.data.collate import Collator  # noqa: E402
from e2e_lib.data.dialogue import SharedPhoto, Turn  # noqa: E402
from e2e_lib.data.examples import Example  # noqa: E402
from e2e_lib.experiments.step_memory import BatchSizes, step_bytes  # noqa: E402
from e2e_lib.models import meta_parts  # noqa: E402
from e2e_lib.models.adapters import checkpoint_activations  # noqa: E402
from e2e_lib.models.end_to_end import EndToEndModel  # noqa: E402
from e2e_lib.models.generator import ImageGenerator  # noqa: E402
from e2e_lib.models.language import add_markers  # noqa: E402
from e2e_lib.models.memory import size_of, state_bytes  # noqa: E402
from e2e_lib.models.systems import new_bridge  # noqa: E402
from e2e_lib.training.precision import new_optimizer  # noqa: E402
from e2e_lib.training.step import image_gradients  # noqa: E402

GIB = 2**30
# Floating-point operations a second in half precision without sparsity, from the makers' data sheets.
PEAKS = {"V100": 125e12, "A100": 312e12, "H100": 989e12, "H200": 989e12, "T4": 65e12, "4090": 165e12}
FORMATS = {"fp16": "float16", "bf16": "bfloat16"}


def configured(precision, tiny):
    config = load("smoke" if tiny else "paper", ["train.batch_size=2", "data.max_context=96", "train.checkpointing=true"] if tiny else [])
    if importlib.util.find_spec("bitsandbytes") is None:
        config = replace(config, "train.optimizer", "adamw")
    # Each step is one batch, the first of its step.
    for key, value in {"train.mixed_precision": precision, "model.frozen": FORMATS[precision], "train.gradient_accumulation_steps": 1,
                       "model.language_lora": 32, "model.perceptron_trains": "qformer"}.items():
        config = replace(config, key, value)
    return config


def padded(words, size):
    """A tokenizer with further words up to ``size``, none of which any text has."""
    definition = json.loads(words.backend_tokenizer.to_str())
    vocabulary = definition["model"]["vocab"]
    for number in range(1 + max(words.get_vocab().values()), size):
        vocabulary[f"filler{number}"] = number
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(definition)), model_max_length=words.model_max_length,
                                   **words.special_tokens_map)


def assembled(config, device):
    """The end-to-end model with random weights, and tokenizers of the right size."""
    torch.manual_seed(0)
    parts = meta_parts.build(config, device)
    words = padded(tokenizer("sentencepiece"), parts.language.config.vocab_size - meta_parts.MARKERS)
    add_markers(words)
    length = parts.generator.max_length
    clip = padded(tokenizer("clip", length), parts.generator.text_encoder.config.vocab_size)
    generator = ImageGenerator(clip, parts.generator.text_encoder, parts.generator.unet, parts.generator.vae, parts.generator.scheduler)
    return EndToEndModel(language=parts.language, tokenizer=words, perceptron=parts.perceptron, captioner=None, generator=generator,
                         bridge=new_bridge(config.bridge, words, generator), max_context=config.data.max_context,
                         image_loss_weight=config.train.image_loss_weight, settings=config.bridge,
                         caption_dropout=config.train.caption_dropout)


class Photos:
    """Any photo, of noise, 512 pixels wide."""

    def tensor(self, photo_id):
        return torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(int(photo_id)))


def full_batch(model, config):
    """Contexts that fill ``data.max_context`` with a photo each, and responses with a photo."""
    turn = " ".join(TEXTS[:6])
    context = tuple(Turn(number % 2, turn) for number in range(config.data.max_context // 24 + 1))
    return Collator(model.formatter, Photos())([
        Example(str(k), 0, (*context, Turn(0, TEXTS[0], (SharedPhoto(str(k), TEXTS[1]),))), Turn(1, turn, (SharedPhoto(str(100 + k), TEXTS[2]),)))
        for k in range(config.train.batch_size)])


class Steps:
    """Joint steps as the training loop takes them."""

    def __init__(self, model, config, batch, device):
        self.model, self.batch, self.device = model.train(), batch, device
        checkpoint_activations(model.language, model.generator.unet)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = new_optimizer(self.parameters, config.train, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.mixed_precision == "fp16")
        self.half = getattr(torch, FORMATS[config.train.mixed_precision])

    def __call__(self, logged=False):
        with torch.autocast(self.device.type, dtype=self.half):
            output = self.model(self.batch, temperature=0.5, seed=0)
            loss = output.text_loss + output.image_loss
        kept = image_gradients(self.model, output.image_loss * self.scaler.get_scale()) if logged else []
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 400.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        del kept
        return float(loss.detach())


def synchronized(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def sizes(batch):
    caption = max(int((batch.caption_index == k).sum()) for k in range(len(batch.captions)))
    return BatchSizes(*batch.input_ids.shape, int(batch.is_learnt.sum()), len(batch.photos), len(batch.captions), caption)


def planned_bytes(config, batch):
    parts = meta_parts.build(config)
    weights = [tensor for module in parts.modules().values() for tensor in (*module.parameters(), *module.buffers())]
    states = state_bytes([p.numel() for p in weights if p.requires_grad], config.train.optimizer)
    return size_of(weights) + states + step_bytes(parts, config, sizes(batch)).total()


def bridge_cost(model, batch, device, rounds):
    """Seconds of the bridge and of its floor, forward and backward, over the same logits."""
    embedding, width = model.generator.text_encoder.get_input_embeddings(), model.language.config.vocab_size
    ids = [model.formatter.tokenize(caption) for caption in batch.captions]
    logits = torch.randn(len(ids), max(map(len, ids)), width, device=device, requires_grad=True)
    noise = torch.randn_like(logits)

    def bridge():
        out = model.bridge(batch.captions, logits, embedding, 0.5, noise)
        out.embeddings.float().square().sum().backward()

    def floor():
        straight_through(softmax_with_temperature(logits, 0.5, noise)).square().sum().backward()

    seconds = {"bridge": [], "floor": []}
    for _ in range(rounds + 1):
        for name, run in (("bridge", bridge), ("floor", floor)):
            logits.grad = None
            began = synchronized(device)
            run()
            seconds[name].append(synchronized(device) - began)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {"logits": list(logits.shape), "seconds": median, "over_floor": median["bridge"] / median["floor"]}


def measured(precision, device, tiny, steps, folder):
    config = configured(precision, tiny)
    model = assembled(config, device.type)
    batch = full_batch(model, config).to(device)
    run, cuda = Steps(model, config, batch, device), device.type == "cuda"
    with FlopCounterMode(display=False) as operations:
        run()  # makes the optimizer's states, too
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    loss = run(logged=True)
    peak = {name: getattr(torch.cuda, f"max_memory_{name}")() if cuda else None for name in ("allocated", "reserved")}
    began = synchronized(device)
    for _ in range(steps):
        run()
    seconds = (synchronized(device) - began) / steps
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        run()
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    (folder / f"profile-{precision}.txt").write_text(recorded.key_averages().table(sort_by=order, row_limit=30))
    rate, planned = operations.get_total_flops() / seconds, planned_bytes(config, batch)
    most = next((value for name, value in PEAKS.items() if cuda and name in torch.cuda.get_device_name()), None)
    return {
        "format": precision, "optimizer": config.train.optimizer, "batch": asdict(sizes(batch)), "loss": loss, "planned_gb": planned / GIB,
        **{f"{name}_gb": value and value / GIB for name, value in peak.items()},
        "measured_over_planned": peak["allocated"] and peak["allocated"] / planned, "seconds_per_step": seconds,
        "tokens_per_second": batch.input_ids.numel() / seconds, "photos_per_second": (len(batch.photos) + len(batch.captions)) / seconds,
        "operations_per_second": rate, "share_of_peak": most and rate / most, "bridge": bridge_cost(model, batch, device, 3 if tiny else 10)}


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--formats", nargs="+", default=[*FORMATS], choices=FORMATS)
    parser.add_argument("--steps", type=int, default=0, help="timed steps  [default: 8; tiny: 1]")
    parser.add_argument("--minutes", type=float, default=9.0, help="after half of which no other format is begun")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
    if device.type == "cpu" and not options.tiny:
        parser.error("no accelerator is here; --tiny runs on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    began, runs = time.monotonic(), []
    for precision in options.formats:
        if time.monotonic() - began > 30 * options.minutes:
            runs.append({"format": precision, "left_out": "no time left"})
        elif device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            runs.append({"format": precision, "left_out": "the device has no bf16 of its own"})
        else:
            try:
                runs.append(measured(precision, device, options.tiny, options.steps or (1 if options.tiny else 8), options.out))
            except torch.OutOfMemoryError as error:
                runs.append({"format": precision, "left_out": str(error).splitlines()[0]})
            if device.type == "cuda":
                torch.cuda.empty_cache()
        # Written after each, so that what is cut off leaves what was measured.
        (options.out / "paper_scale.json").write_text(json.dumps({
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "tiny": options.tiny, "runs": runs,
            "device_gb": torch.cuda.get_device_properties(0).total_memory / GIB if device.type == "cuda" else None,
            "torch": torch.__version__, "seconds": time.monotonic() - began}, indent=2))
        print(json.dumps(runs[-1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
