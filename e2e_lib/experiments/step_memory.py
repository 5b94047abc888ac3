"""What a training step, and answering, take of a device's memory: the passes on the meta device.

The parts' own code runs, forward and backward, as ``EndToEndModel.forward``, ``Pipeline.forward`` and the
training loop call it. Put in the place of real code is only what reads numbers, or needs a tokenizer: picking
positions out of a batch, and the bridge, as tensors of the sizes that its usual way makes (a dynamic map and
an estimator with one softmax; others make a few more of the same size). Axes: B examples, T tokens, N tokens
that have a loss, P context photos, R response photos, C caption positions, V1 and V2 vocabularies, L
text-encoder positions, D2 its width.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from e2e_lib.config import Config
from e2e_lib.models.adapters import FORMATS, checkpoint_activations
from e2e_lib.models.memory import CudaFunctions, LiveBytes, count_recomputation, size_of
from e2e_lib.models.meta_parts import MetaParts
from e2e_lib.training.step import image_gradients

GRADIENTS = "gradients of "  # and a part's name: who owns them, where live bytes are counted
CAPTION = 32  # tokens of a caption, at most as many as a response has; PhotoChat's are shorter
_empty = partial(torch.empty, device="meta")
_ids = partial(torch.empty, device="meta", dtype=torch.long)


@dataclass(frozen=True)
class BatchSizes:
    """How large a batch is: B, T, N, P, R and C."""

    examples: int
    tokens: int
    learnt: int
    context_photos: int
    response_photos: int
    caption: int


def full_batch(config: Config) -> BatchSizes:
    """A batch of the largest usual size: each example has the longest context with one photo, and a response
    as long as an answer may be, with one photo. Of a whole dialogue, half of the tokens are learnt."""
    examples, response = config.train.batch_size, config.inference.max_new_tokens
    seen = examples if config.model.joint and config.model.image_input == "qformer" else 0
    tokens = config.data.max_context + response
    learnt = tokens // 2 if config.train.examples == "dialogues" else response
    return BatchSizes(examples, tokens, examples * learnt, seen, examples, min(CAPTION, response))


def step_bytes(parts: MetaParts, config: Config, batch: BatchSizes) -> Counter[str]:
    """Live bytes by owner at the fullest moment of a logged step, weights and optimizer states left out.

    Owners are the parts' names (their activations and temporaries), those after ``GRADIENTS``, "bridge", and
    "image gradient" (which the log shows). The parts are used up: build others for another step.
    """
    functions, modules = CudaFunctions(_half(config)), parts.modules()
    counter = LiveBytes(chain(*((*m.parameters(), *m.buffers()) for m in modules.values())))
    accumulates = config.train.gradient_accumulation_steps > 1
    _recompute(parts, config, functions)
    learnt: list[tuple[str, Tensor]] = []
    for name, module in modules.items():
        module.train(name != "captioner")
        learnt += [(name, p) for p in module.parameters() if p.requires_grad]
    for name, parameter in learnt:
        parameter.register_post_accumulate_grad_hook(partial(_own_gradient, counter, name))
        if accumulates:  # those of the batches before this one
            parameter.grad = torch.empty_like(parameter)
            counter.add(parameter.grad, GRADIENTS + name)
    with counter:
        earlier = _image_gradients(parts, counter) if accumulates else []
        with functions:
            text_loss, image_loss = _losses(parts, config, batch, counter)
            loss = text_loss + image_loss
        functions.forget_copies()
        counter.owner = "image gradient"
        from_image = image_gradients(SimpleNamespace(language=parts.language), image_loss)  # type: ignore
        for gradient in from_image:
            counter.add(gradient, "image gradient")
        counter.owner = "image gradient"
        from_image = [one + other for one, other in zip(earlier, from_image, strict=False)] or from_image
        del earlier
        loss.backward()  # type: ignore[no-untyped-call]
    return _fuller(counter.at_peak, _of_the_optimizer(learnt, size_of(from_image)))


def step_flops(parts: MetaParts, config: Config, batch: BatchSizes) -> int:
    """Floating-point operations of a batch's forward and backward pass, what is computed again counted again;
    attention's own two products, about a hundredth of all, are not. The parts are used up."""
    functions, modules = CudaFunctions(_half(config)), parts.modules()
    counter = LiveBytes(chain(*((*m.parameters(), *m.buffers()) for m in modules.values())))
    _recompute(parts, config, functions)
    for name, module in modules.items():
        module.train(name != "captioner")
    with FlopCounterMode(display=False) as operations:
        with functions:
            text_loss, image_loss = _losses(parts, config, batch, counter)
        (text_loss + image_loss).backward()  # type: ignore[no-untyped-call]
    return operations.get_total_flops()


def _recompute(parts: MetaParts, config: Config, functions: CudaFunctions) -> None:
    """Computes activations again in the backward pass, where that is set."""
    if config.train.checkpointing:
        models = [parts.language, *([parts.generator.unet] if parts.generator else [])]
        checkpoint_activations(*models)
        for model in models:
            count_recomputation(model, functions)


def answering_bytes(parts: MetaParts, config: Config) -> int:
    """Live bytes at the fullest moment of answering ``inference.batch_size`` contexts, weights left out: the
    keys and values of all tokens, or what drawing as many photos takes."""
    settings, language = config.inference, parts.language.config
    rows = settings.batch_size * settings.num_beams
    tokens = config.data.max_context + settings.max_new_tokens
    heads = getattr(language, "num_key_value_heads", None) or language.num_attention_heads
    width = heads * (language.hidden_size // language.num_attention_heads)
    number = 4 if _half(config) is None else 2
    cache = 2 * language.num_hidden_layers * rows * tokens * width * number
    return max(cache, _drawing_bytes(parts, config) if parts.generator else 0)


def _drawing_bytes(parts: MetaParts, config: Config) -> int:
    generator: Any = parts.generator
    functions, photos = CudaFunctions(_half(config)), config.inference.batch_size
    counter = LiveBytes(chain(*((*m.parameters(), *m.buffers()) for m in parts.modules().values())))
    guided = photos * (2 if config.inference.guidance_scale > 1 else 1)
    side, channels = generator.unet.config.sample_size, generator.unet.config.in_channels
    text = _empty(guided, generator.max_length, generator.unet.config.cross_attention_dim,
                  dtype=generator.text_encoder.dtype)
    with counter, functions, torch.no_grad():
        generator.unet(_empty(guided, channels, side, side), _ids(guided), encoder_hidden_states=text)
        functions.forget_copies()
        generator.decode(_empty(photos, channels, side, side))
    return counter.peak


def _half(config: Config) -> torch.dtype | None:
    dtype = FORMATS[config.train.mixed_precision]
    return None if dtype == torch.float32 else dtype


def _own_gradient(counter: LiveBytes, name: str, parameter: Tensor) -> None:
    if parameter.grad is not None:
        counter.add(parameter.grad, GRADIENTS + name)


def _image_gradients(parts: MetaParts, counter: LiveBytes) -> list[Tensor]:
    """Those of the batches before this one."""
    counter.owner = "image gradient"
    return [_empty(p.shape, dtype=p.dtype) for p in parts.language.parameters() if p.requires_grad]


def _of_the_optimizer(learnt: list[tuple[str, Tensor]], from_image: int) -> Counter[str]:
    """What is live while weights change: all gradients, and two copies of the largest one (its norm's; the
    optimizer's, where it is not one kernel)."""
    usage = Counter({"image gradient": from_image})
    for name, parameter in learnt:
        usage[GRADIENTS + name] += size_of([parameter])
    largest = max(learnt, key=lambda row: size_of([row[1]]), default=None)
    if largest:
        usage[largest[0]] += 2 * size_of([largest[1]])
    return usage


def _fuller(one: Counter[str], other: Counter[str]) -> Counter[str]:
    return max(one, other, key=lambda usage: sum(usage.values()))


def _losses(parts: MetaParts, config: Config, batch: BatchSizes, counter: LiveBytes) -> tuple[Tensor, Tensor]:
    """The text loss and the weighted image loss of a batch."""
    logits = _response_logits(parts, batch, counter)  # (N, V1)
    text_loss = F.cross_entropy(logits.float(), _ids(batch.learnt))
    if not batch.response_photos:
        return text_loss, text_loss.new_zeros(())
    generator = parts.generator
    if generator is None:
        counter.owner = "transformer"
        return text_loss, _code_loss(parts, batch)
    embedding, ids = generator.text_encoder.get_input_embeddings(), _ids(batch.response_photos,
                                                                         generator.max_length)
    counter.owner = "bridge"
    embeddings = embedding(ids)  # (R, L, D2)
    if config.model.joint:
        at = _ids(batch.response_photos, batch.caption)
        caption_logits = counter.made_by(logits, "language")[at].float()  # (R, C, V1)
        embeddings = counter.made_by(_Bridge.apply(caption_logits, embeddings), "bridge")
    counter.owner = "text_encoder"
    text = counter.made_by(generator.encode(ids, embeddings), "text_encoder")  # (R, L, D2)
    counter.owner = "vae"
    size = generator.photo_size
    latents = generator.to_latents(_empty(batch.response_photos, 3, size, size, dtype=torch.uint8))
    counter.owner = "unet"
    weight = config.train.image_loss_weight
    noise = generator.noise_of(latents, [torch.Generator()] * len(latents))
    return text_loss, weight * generator.denoising_loss(latents, text, *noise)


def _response_logits(parts: MetaParts, batch: BatchSizes, counter: LiveBytes) -> Tensor:
    language, shape = parts.language, (batch.examples, batch.tokens)
    counter.owner = "language"
    embeddings = language.get_input_embeddings()(_ids(shape))  # (B, T, D)
    if parts.perceptron is not None and batch.context_photos:
        counter.owner = "perceptron"
        side: Any = parts.perceptron.vision_model.config.image_size
        photos = _empty(batch.context_photos, 3, side, side, dtype=torch.uint8)
        queries = counter.made_by(parts.perceptron(photos), "perceptron").to(embeddings.dtype)  # (P, Q, D)
        counter.owner = "language"
        embeddings = embeddings.masked_scatter(_empty(*shape, 1, dtype=torch.bool), queries)
    mask = _empty(batch.examples, 1, batch.tokens, batch.tokens, dtype=torch.bool)
    hidden = language.base_model(inputs_embeds=embeddings, attention_mask=mask,
                                 use_cache=False).last_hidden_state  # (B, T, D)
    logits: Tensor = language.get_output_embeddings()(hidden[_ids(batch.learnt), _ids(batch.learnt)])
    return counter.made_by(logits, "language")  # (N, V1)


def _code_loss(parts: MetaParts, batch: BatchSizes) -> Tensor:
    """The loss of Divter's translator: captions, and the codes of photos."""
    vqvae, size = parts.vqvae, parts.vqvae.config.sample_size
    with torch.no_grad():
        latents = vqvae.encode(_empty(batch.response_photos, 3, size, size)).latents
    codes = latents[0, 0].numel()
    length = parts.caption_length + codes
    ids = _ids(batch.response_photos, length)
    mask = _empty(batch.response_photos, 1, length, length, dtype=torch.bool)
    logits = parts.transformer(input_ids=ids, attention_mask=mask, position_ids=ids).logits
    last = logits[:, -codes:, -1 - vqvae.config.num_vq_embeddings:-1].float()  # (R, codes, K)
    return F.cross_entropy(last.flatten(0, 1), _ids(batch.response_photos * codes))


class _Bridge(torch.autograd.Function):
    """The bridge's tensors: noise and noisy logits forward, a gradient of the logits backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, embeddings: Tensor) -> Tensor:
        noise = torch.empty_like(logits)
        noisy = logits + noise
        ctx.save_for_backward(logits, noise, noisy.exp().sum(-1))
        return torch.empty_like(embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return torch.empty_like(ctx.saved_tensors[0]), None
