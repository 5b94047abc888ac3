"""Answering: text and photos together, batched, from an explicit generator (section 2.5)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from e2e_lib.config import Inference
from e2e_lib.data.collate import IMAGE_END, IMAGE_START, Collator
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoSource
from e2e_lib.models.systems import System


@dataclass
class Response:
    """An answer: its text (may be empty), and the caption and photo (3, S, S) uint8 if it shares one."""

    text: str
    caption: str | None = None
    photo: Tensor | None = None

    @property
    def image(self) -> Image.Image | None:
        return None if self.photo is None else Image.fromarray(self.photo.permute(1, 2, 0).numpy())


@contextmanager
def seeded_from(rng: torch.Generator) -> Iterator[None]:
    """Runs a library that draws from torch's global state on a seed of ``rng``, and puts the global state back."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=rng)))
        yield


@torch.no_grad()
def write(model: System, examples: Sequence[Example], store: PhotoSource, settings: Inference, rng: torch.Generator,
          photo_size: int) -> list[Response]:
    """The words of the answers to the examples' contexts, captions included, nothing drawn yet. One batch, KV-cached."""
    batch = Collator(model.formatter, store, photo_size, answering=True)(examples).to(model.language.device)
    chosen = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    with seeded_from(rng):
        written = model.language.generate(
            inputs_embeds=model.read(batch), attention_mask=batch.attention_mask, max_new_tokens=settings.max_new_tokens, use_cache=True,
            num_beams=settings.num_beams, pad_token_id=model.formatter.pad, eos_token_id=model.formatter.stops,
            **(chosen if settings.do_sample and settings.num_beams == 1 else {"do_sample": False}))
    return [parse(model, ids) for ids in written]


def parse(model: System, ids: Tensor) -> Response:
    """Generated tokens to text and caption. A caption left open ends where the tokens end; an empty one is no photo."""
    markers = (model.formatter.start, model.formatter.end)
    hidden = {*model.tokenizer.all_special_ids, *model.formatter.stops}
    words = model.tokenizer.decode([i for i in ids.tolist() if i in markers or i not in hidden])
    text, _, rest = words.partition(IMAGE_START)
    caption, _, after = rest.partition(IMAGE_END)
    text, caption, after = (" ".join(part.replace(IMAGE_START, " ").replace(IMAGE_END, " ").split()) for part in (text, caption, after))
    return Response(f"{text} {after}".strip(), caption or None)


@torch.no_grad()
def respond(model: System, examples: Sequence[Example], store: PhotoSource, settings: Inference, rng: torch.Generator,
            photo_size: int = 64, progress: Callable[[str, int, int], None] | None = None) -> list[Response]:
    """Answers each example's context with text, a photo, or both.

    The same model, examples, settings and generator give the same answers; the batch size of ``settings`` is part of that, since
    sampled words are drawn batch by batch. ``progress`` is called with what is under way, how many are done, and of how many.
    """
    model.eval()
    # Contexts of like length are answered together: a batch is as slow as its longest.
    order = sorted(range(len(examples)), key=lambda i: sum(len(turn.text) for turn in examples[i].context))
    answered: dict[int, Response] = {}
    for first in range(0, len(examples), settings.batch_size):
        part = order[first:first + settings.batch_size]
        answered |= dict(zip(part, write(model, [examples[i] for i in part], store, settings, rng, photo_size), strict=True))
        if progress:
            progress("written", len(answered), len(examples))
    responses = [answered[i] for i in range(len(examples))]
    sharing = [response for response in responses if response.caption]
    for first in range(0, len(sharing), settings.batch_size):
        chosen = sharing[first:first + settings.batch_size]
        photos = model.generator.draw([r.caption or "" for r in chosen], rng, num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale)
        for response, photo in zip(chosen, photos, strict=True):
            response.photo = photo
        if progress:
            progress("drawn", first + len(chosen), len(sharing))
    return responses


def draw(drawer: Any, captions: Sequence[str], settings: Inference, rng: torch.Generator) -> Tensor:
    """Captions as photos (N, 3, S, S), uint8, by ``drawer`` (an image generator or translator), as when answering."""
    return torch.cat([drawer.draw(list(captions[first:first + settings.batch_size]), rng, num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale)
                      for first in range(0, len(captions), settings.batch_size)])
