"""Answering: text and photos together, batched, from an explicit seed (section 2.5)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from e2e_lib.config import Inference
from e2e_lib.data.collate import Collator
from e2e_lib.data.dialogue import clean_text
from e2e_lib.data.examples import Example, Response
from e2e_lib.data.photos import PhotoSource
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.repro.randomness import generator, one_each

Row = TypeVar("Row")
Made = TypeVar("Made")


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
    return [replace(parse_response(model, row), context_tokens_cut=cut)
            for row, cut in zip(ids, batch.context_cut, strict=True)]


def parse_response(model: PhotoChatModel, ids: Tensor) -> Response:
    """Generated tokens (T,) to text and captions.

    Each ``[IMG] caption [/IMG]`` is a photo, what stands outside of them is text. A caption left open ends
    with the tokens; an empty one is no photo. Marks spelled out as words are words.
    """
    markers = (model.formatter.image_start_id, model.formatter.image_end_id)
    parts: list[list[list[int]]] = [[[]]]  # text, caption, text, ...: each the runs of tokens between marks
    for i in ids.tolist():
        if i == markers[len(parts) % 2 == 0]:
            parts.append([[]])
        elif i in markers:  # a mark that begins or ends nothing
            parts[-1].append([])
        elif i not in model.formatter.no_words:
            parts[-1][-1].append(i)
    texts = [clean_text(" ".join(map(model.tokenizer.decode, runs))) for runs in parts]
    return Response(clean_text(" ".join(texts[::2])), [caption for caption in texts[1::2] if caption])


@torch.no_grad()
def respond(model: PhotoChatModel, examples: Sequence[Example], store: PhotoSource, settings: Inference,
            seed: int, progress: Callable[[str, int, int], None] | None = None) -> list[Response]:
    """Answers each example's context with text, photos, or both.

    The same model, examples, settings and ``seed`` give the same answers; the batch size of ``settings`` is
    part of that, since words are sampled batch by batch. Where there are several processes, all must call
    this: each answers every so many-th batch, and all get all answers, the same as one process alone would
    give. ``progress`` is called with what was done ("written" or "drawn"), how many are, and of how many.
    """
    model.eval()
    # Contexts of similar length are answered together: a batch is as slow as its longest.
    order = sorted(range(len(examples)), key=lambda i: sum(len(turn.text) for turn in examples[i].context))
    if model.captioner:
        examples = with_captions(examples, model.captioner, store)

    def write(rows: Sequence[int]) -> list[Response]:
        return generate_texts(model, [examples[i] for i in rows], store, settings,
                              generator(seed, "words", rows[0]))

    texts = _shared_out(order, settings.batch_size, write, _reported(progress, "written"))
    responses = dict(zip(order, texts, strict=True))
    due = [(i, k) for i in range(len(examples)) for k in range(len(responses[i].captions))]

    def draw(rows: Sequence[tuple[int, int]]) -> list[Tensor]:
        photos = draw_photos(model.generator, [responses[i].captions[k] for i, k in rows], settings,
                             [generator(seed, "photo", i, k) for i, k in rows])
        return list(photos)

    photos = _shared_out(due, settings.batch_size, draw, _reported(progress, "drawn"))
    for (i, _), photo in zip(due, photos, strict=True):
        responses[i].photos.append(photo)
    return [responses[i] for i in range(len(examples))]


def _shared_out(rows: Sequence[Row], size: int, work: Callable[[Sequence[Row]], list[Made]],
                report: Callable[[int, int], None]) -> list[Made]:
    """What ``work`` makes of each row, ``size`` rows at a time, by all processes in turn."""
    state = PartialState()
    made: list[Made] = []
    batches = [rows[first:first + size] for first in range(0, len(rows), size)]
    for first in range(0, len(batches), state.num_processes):
        own = batches[first + state.process_index:][:1]
        made += gather_object(work(own[0]) if own else [])
        report(len(made), len(rows))
    return made


def _reported(progress: Callable[[str, int, int], None] | None, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total) if progress else None


def draw_photos(drawer: Any, captions: Sequence[str], settings: Inference,
                rngs: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Captions as photos (N, 3, S, S), uint8, by an image generator or translator, as when answering; each
    photo with its own one of ``rngs``, or one after another from the same."""
    own, size = one_each(rngs, len(captions)), settings.batch_size
    return torch.cat([
        drawer.draw(captions[first:first + size], own[first:first + size],
                    num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale)
        for first in range(0, len(captions), size)])
