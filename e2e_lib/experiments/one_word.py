"""What each vocabulary map lets the photo say about one word of a caption, beside the truth (section 2.4.2).

A caption names the wrong colour. The image loss's gradient, through a map, says how the loss would change if
another colour stood there; the loss is computed again with that colour, too. Axes: L text-encoder positions,
D2 its width, n colours.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from e2e_lib import corpora
from e2e_lib.config import Config
from e2e_lib.data.collate import Batch, Collator
from e2e_lib.data.examples import split_examples
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.data.minichat.scenes import COLOURS
from e2e_lib.experiments.ablation import measurement_settings
from e2e_lib.experiments.dense_maps import (
    Map,
    Pair,
    aligned_maps_of,
    gradient_to_h,
    maps_of,
    numbers_through,
    pair,
)
from e2e_lib.experiments.evaluate import Echo
from e2e_lib.experiments.gradient_alignment import image_losses
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training.loop import load_trained

MAPS = ("sentence", "static_piece", "span", "aligned")


def first_word(caption: str, choices: Sequence[str]) -> re.Match[str] | None:
    """The first of ``choices`` that a caption has as a word of its own, and where."""
    return re.search(rf"\b({'|'.join(choices)})\b", caption)


def with_each_word(model: Any, caption: str, choices: Sequence[str]
                   ) -> tuple[str, int, dict[str, Pair]] | None:
    """The first of ``choices`` that a caption has, its position, and the caption with each of them there.

    None where the caption has none of them, or where any two are not one token each.
    """
    found = first_word(caption, choices)
    if found is None:
        return None
    source, target = model.tokenizer, model.generator.tokenizer
    pairs = {word: pair(source, target, caption[:found.start()] + word + caption[found.end():],
                        model.generator.max_length) for word in choices}
    own, differ = pairs[found[0]].source.input_ids, set()
    for each in pairs.values():
        if len(each.source.input_ids) != len(own):
            return None
        differ |= {*(each.source.input_ids != own).nonzero()[:, 0].tolist()}
    return (found[0], differ.pop(), pairs) if len(differ) == 1 else None


def what_maps_say(model: Any, batch: Batch, maps: Mapping[str, Map], choices: Sequence[str], noises: int,
                  rng: torch.Generator) -> dict[str, Any] | None:
    """What each map lets the photo say of every choice, where the batch's one caption has a wrong one.

    "written" stands in ``caption``, "true" is the photo's; "exact": how much the image loss (a mean over
    ``noises``) changes with each of the "words" there; "said": the same as each map's gradient predicts it,
    per unit of probability; "numbers": how many numbers get through each map. None as ``with_each_word``.
    """
    found = with_each_word(model, batch.captions[0], choices)
    if found is None:
        return None
    true, at, pairs = found
    others = [word for word in choices if word != true]
    written = others[int(torch.randint(len(others), (), generator=rng))]
    losses, gradients = image_losses(model, batch, [each.text for each in pairs.values()], noises, rng)
    caption, number = pairs[written], [*pairs].index(written)
    ids = torch.stack([each.source.input_ids[at] for each in pairs.values()])  # (n,)
    table = model.generator.text_encoder.get_input_embeddings().weight.detach().double()  # (V2, D2)
    said, numbers = {}, {}
    for name, of in maps.items():
        slope = gradient_to_h(of(caption), gradients[number].double(), table)[at, ids]  # (n,)
        said[name] = (slope - slope[number]).tolist()
        numbers[name] = numbers_through(of(caption), table, generator("numbers", name))
    return {"caption": caption.text, "written": written, "true": true, "words": [*pairs],
            "exact": (losses - losses[number]).tolist(), "said": said, "numbers": numbers}


def measure(config: Config, seed: int, echo: Echo, *, noises: int = 64) -> Path:
    """Measures the first dev caption that has a colour with the trained model of ``seed``; writes
    ``results/<profile>/one_word.json``. Raises ResultsError where no caption has one, and CheckpointError."""
    path = results.RESULTS / config.profile / "one_word.json"
    settings = {"noises": noises, "seed": seed, **measurement_settings(config),
                "weights": files.weights_hash(run_folder(config, seed) / "best")}
    if results.is_up_to_date(path, settings, echo):
        return path
    examples, store = split_examples(corpora.prepare(config, echo), "dev", real_only=config.data.real_only)
    model = load_trained(config, seed)
    sides = model.tokenizer, model.generator.tokenizer
    every = {**maps_of(*sides, caption_words()), **aligned_maps_of(*sides)}
    maps, collator = {name: every[name] for name in MAPS}, Collator(model.formatter, store)
    for example in examples:
        if len(example.response.photos) != 1 or example.response.text:
            continue
        found = what_maps_say(model, collator([example]), maps, COLOURS, noises, generator(seed, "one word"))
        if found:
            return files.write_json(path, {
                "command": f"e2e ablate --profile {config.profile}", "arguments": settings,
                "photo_id": example.response.photos[0].photo_id, **found,
                "provenance": provenance_record(config, seeds={"training": seed})})
    raise results.ResultsError(f"{path} was not written: no dev caption names one of {', '.join(COLOURS)}")
