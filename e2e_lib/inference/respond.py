"""Answering: text and photos together, batched, from an explicit generator (section 2.5)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from e2e_lib.config import Inference
from e2e_lib.data.collate import IMAGE_END, IMAGE_START, Collator
from e2e_lib.data.examples import Example, Response
from e2e_lib.data.photos import PhotoSource
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.systems import PhotoChatModel


@contextmanager
def seeded_from(rng: torch.Generator) -> Iterator[None]:
    """Runs code that draws from torch's global state on a seed of ``rng``, and restores that state."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=rng)))
        yield


@torch.no_grad()
def generate_texts(model: PhotoChatModel, examples: Sequence[Example], store: PhotoSource,
                   settings: Inference, rng: torch.Generator) -> list[Response]:
    """The words of the answers, captions included, nothing drawn yet. One batch, KV-cached.

    Where the model reads photos as captions, the contexts carry them (see ``captioner.with_captions``).
    """
    batch = Collator(model.formatter, store, answering=True)(examples).to(model.language.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.do_sample and settings.num_beams == 1:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p,
                    "top_k": 0}
    with seeded_from(rng):
        ids = model.language.generate(
            inputs_embeds=model.embed_context(batch), attention_mask=batch.attention_mask, use_cache=True,
            max_new_tokens=settings.max_new_tokens, num_beams=settings.num_beams, **sampling,
            pad_token_id=model.formatter.pad_token_id, eos_token_id=model.formatter.eos_token_ids)  # (B, T)
    return [parse_response(model, row) for row in ids]


def parse_response(model: PhotoChatModel, ids: Tensor) -> Response:
    """Generated tokens (T,) to text and caption.

    A caption left open ends with the tokens; an empty one is no photo.
    """
    markers = (model.formatter.image_start_id, model.formatter.image_end_id)
    hidden = {*model.tokenizer.all_special_ids, *model.formatter.eos_token_ids}
    decoded = model.tokenizer.decode([i for i in ids.tolist() if i in markers or i not in hidden])
    text, _, rest = decoded.partition(IMAGE_START)
    caption, _, after = rest.partition(IMAGE_END)
    text, caption, after = (" ".join(part.replace(IMAGE_START, " ").replace(IMAGE_END, " ").split())
                            for part in (text, caption, after))
    return Response(f"{text} {after}".strip(), caption or None)


@torch.no_grad()
def respond(model: PhotoChatModel, examples: Sequence[Example], store: PhotoSource, settings: Inference,
            rng: torch.Generator, progress: Callable[[str, int, int], None] | None = None) -> list[Response]:
    """Answers each example's context with text, a photo, or both.

    The same model, examples, settings and generator give the same answers; the batch size of ``settings`` is
    part of that, since sampled words are drawn batch by batch. ``progress`` is called with what was done
    ("written" or "drawn"), how many are done, and of how many.
    """
    model.eval()
    # Contexts of similar length are answered together: a batch is as slow as its longest.
    order = sorted(range(len(examples)), key=lambda i: sum(len(turn.text) for turn in examples[i].context))
    if model.captioner:
        examples = with_captions(examples, model.captioner, store)
    by_index: dict[int, Response] = {}
    for first in range(0, len(examples), settings.batch_size):
        part = order[first:first + settings.batch_size]
        texts = generate_texts(model, [examples[i] for i in part], store, settings, rng)
        by_index |= dict(zip(part, texts, strict=True))
        if progress:
            progress("written", len(by_index), len(examples))
    responses = [by_index[i] for i in range(len(examples))]
    sharing = [response for response in responses if response.caption]
    for first in range(0, len(sharing), settings.batch_size):
        part_sharing = sharing[first:first + settings.batch_size]
        photos = draw_photos(model.generator, [response.caption or "" for response in part_sharing], settings,
                             rng)
        for response, photo in zip(part_sharing, photos, strict=True):
            response.photo = photo
        if progress:
            progress("drawn", first + len(part_sharing), len(sharing))
    return responses


def draw_photos(generator: Any, captions: Sequence[str], settings: Inference, rng: torch.Generator) -> Tensor:
    """Captions as photos (N, 3, S, S), uint8, by an image generator or translator, as when answering."""
    return torch.cat([
        generator.draw(captions[first:first + settings.batch_size], rng,
                       num_inference_steps=settings.num_inference_steps,
                       guidance_scale=settings.guidance_scale)
        for first in range(0, len(captions), settings.batch_size)])
