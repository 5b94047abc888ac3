"""What each of the three systems costs, at profile mini: parameters, time per reply, training steps, and memory.

All answer the same chats, each of which has one photo in its context. The time of a reply begins with the chat on disk
and ends with its text, or with its text and the photo it shares: it holds reading the photo, the perceptron or the
captioner, generating tokens, and drawing. Every reply has TOKENS tokens and every photo is drawn from the gold caption,
so that no system is faster for having less to say. The context's photos are new to the systems each time, as in a chat;
in the cases "captions kept" the baselines have their captions from before (the end-to-end model keeps nothing of a
photo, so its perceptron runs again). Not timed: loading the parts and, for a training step, making the batch and
captioning its photos, which happens once per photo.

The systems are timed in turn, again and again, so that a busy machine slows all of them alike, and a ratio is the
median of the rounds' ratios, with their standard deviation. Peak memory is that of a process which does nothing else,
and how much of it came after the libraries were loaded; from run to run it varies by some 20 MB.
Prints one JSON line.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections import defaultdict
from typing import Any

import torch

from e2e_lib import config as configuration
from e2e_lib.config import SYSTEMS, Config
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import Batch, Collator
from e2e_lib.data.examples import Example, examples_of, load_split
from e2e_lib.data.photos import PhotoSource, PhotoStore
from e2e_lib.inference.chat import PhotoAlbum
from e2e_lib.inference.respond import draw_photos, generate_texts
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.systems import PhotoChatModel, build
from e2e_lib.repro.provenance import peak_memory_bytes
from e2e_lib.repro.randomness import generator, python_random
from e2e_lib.training.dev import dev_examples

BATCH, ROUNDS, WARM_UP = 16, 15, 2
TOKENS = 16  # of a reply: MiniChat's have 15 on average, those with a photo 16
STEP = "training step"


class FreshCaptions(PhotoAlbum):
    """The photos of a store, with the captions of no captioner yet; those it makes are kept here and not on disk."""

    def __init__(self, store: PhotoStore) -> None:
        super().__init__()
        self.tensor = store.tensor  # type: ignore[method-assign]


def chats(config: Config) -> tuple[list[Example], list[Example], PhotoStore]:
    """The examples to answer, those to train on, and their photos."""
    dialogues, store, _ = load_split(prepare(config, lambda _: None), "train")
    examples = [example for dialogue in dialogues for example in examples_of(dialogue)]
    # The first examples of a dialogue have the shortest contexts, and no photos in them.
    python_random("bench systems").shuffle(examples)
    # One per dialogue, or two of them would have the same photo in their contexts.
    to_answer = {e.dialogue_id: e for e in examples
                 if e.response.photos and sum(len(turn.photos) for turn in e.context) == 1}
    return list(to_answer.values())[:BATCH], dev_examples(examples, BATCH), store  # half of the latter share a photo


def system_of(config: Config, name: str) -> Any:
    """A system all of whose replies have TOKENS tokens: ``inference.max_new_tokens`` is the other half of that."""
    model = build(configuration.replace(config, "model.system", name))
    model.language.generation_config.min_new_tokens = TOKENS
    return model


def captioned(model: PhotoChatModel, examples: list[Example], store: PhotoSource) -> list[Example]:
    return with_captions(examples, model.captioner, store) if model.captioner else examples


def reply_seconds(model: PhotoChatModel, examples: list[Example], store: PhotoStore,
                  config: Config) -> dict[str, float]:
    """Seconds to the replies' text, to their text and photos, and to their text where captions were kept."""
    settings, rng, fresh = config.inference, generator("bench systems"), FreshCaptions(store)
    captions = [example.response.photos[0].caption for example in examples if example.response.photos]
    model.eval()
    began = time.perf_counter()
    generate_texts(model, captioned(model, examples, fresh), fresh, settings, rng)
    written = time.perf_counter()
    draw_photos(model.generator, captions, settings, rng)
    drawn = time.perf_counter()
    generate_texts(model, captioned(model, examples, fresh), fresh, settings, rng)
    again = time.perf_counter()
    cases = {"words": written - began, "words and photo": drawn - began, "words, captions kept": again - drawn}
    return {f"{case}, batch {len(examples)}": seconds for case, seconds in cases.items()}


def optimizer_of(model: PhotoChatModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], 1e-6)


def batch_of(model: PhotoChatModel, examples: list[Example], store: PhotoStore) -> Batch:
    fresh = FreshCaptions(store)
    return Collator(model.formatter, fresh)(captioned(model, examples, fresh))


def step_seconds(model: PhotoChatModel, optimizer: torch.optim.Optimizer, batch: Batch) -> dict[str, float]:
    """Seconds of a training step."""
    model.train()
    began = time.perf_counter()
    optimizer.zero_grad()
    model(batch, temperature=0.5, seed=0).loss.backward()
    optimizer.step()
    return {STEP: time.perf_counter() - began}


def peak_of(config: Config, name: str, training: bool) -> dict[str, int]:
    """Bytes that this process needs at most to load a system and answer once, or train it for two steps."""
    libraries = peak_memory_bytes()
    to_answer, to_learn, store = chats(config)
    model = system_of(config, name)
    if training:
        optimizer, batch = optimizer_of(model), batch_of(model, to_learn, store)
        for _ in range(2):  # the optimizer's state comes with the first step, the second has gradients beside it
            step_seconds(model, optimizer, batch)
    else:
        reply_seconds(model, to_answer, store, config)
    peak = peak_memory_bytes()
    return {"peak_bytes": peak, "beyond_libraries_bytes": peak - libraries}


def peaks(config: Config) -> dict[str, dict[str, dict[str, int]]]:
    """Each system's peak memory while answering and while training, every one in a process of its own."""
    jobs = [(config, name, training) for name in SYSTEMS for training in (False, True)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = iter(pool.starmap(peak_of, jobs, chunksize=1))
    return {name: {"answering": next(results), "training": next(results)} for name in SYSTEMS}


def timed(config: Config, models: dict[str, PhotoChatModel]) -> dict[str, dict[str, list[float]]]:
    """Seconds of every case and system, one number per round."""
    to_answer, to_learn, store = chats(config)
    batches = {name: batch_of(model, to_learn, store) for name, model in models.items()}
    optimizers = {name: optimizer_of(model) for name, model in models.items()}
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(WARM_UP + ROUNDS):
        first = number % len(SYSTEMS)
        names = SYSTEMS[first:] + SYSTEMS[:first]  # so that none always comes first
        results = [(name, reply_seconds(models[name], examples, store, config))
                   for examples in ([to_answer[number % BATCH]], to_answer) for name in names]
        results += [(name, step_seconds(models[name], optimizers[name], batches[name])) for name in names]
        for name, cases in results if number >= WARM_UP else ():
            for case, value in cases.items():
                seconds[case][name].append(value)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change a setting, e.g. model.captioner=FOLDER")
    arguments = parser.parse_args()
    config = configuration.load("mini", [*arguments.set, f"inference.max_new_tokens={TOKENS}"])
    # Memory first: Linux starts a child's peak at what its parent holds, and this process holds little yet.
    memory = peaks(config)
    models = {name: system_of(config, name) for name in SYSTEMS}
    seconds = timed(config, models)
    rows = {}
    for name, model in models.items():
        median = {case: statistics.median(values[name]) for case, values in seconds.items()}
        ratios = {case: [a / b for a, b in zip(values[name], values["pipeline"], strict=True)]
                  for case, values in seconds.items()}
        ratio = {case: round(statistics.median(values), 3) for case, values in ratios.items()}
        spread = {case: round(statistics.stdev(values), 3) for case, values in ratios.items()}
        replies = [case for case in seconds if case != STEP]
        rows[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "reply_seconds": {case: round(median[case], 4) for case in replies},
            "reply_over_pipeline": {case: ratio[case] for case in replies},
            "reply_over_pipeline_std": {case: spread[case] for case in replies},
            "trained_examples_per_second": round(BATCH / median[STEP], 1), "step_over_pipeline": ratio[STEP],
            "memory": memory[name]}
        if not arguments.json:
            print(f"{name:10}  {rows[name]['parameters'] / 1e6:.2f} M parameters   "
                  f"{rows[name]['trained_examples_per_second']:.1f} examples per second in training")
            for case in replies:
                print(f"    {case:30} {median[case]:8.3f} s   {ratio[case]:.2f} ± {spread[case]:.2f} × the pipeline's")
    print(json.dumps({
        "benchmark": "systems", "profile": config.profile, "systems": rows, "tokens_per_reply": TOKENS,
        "batch": [1, BATCH], "rounds": ROUNDS, "threads": torch.get_num_threads(),
        "device": str(next(models["pipeline"].parameters()).device),
        "target": "end_to_end's reply_over_pipeline at most 1"}))


if __name__ == "__main__":
    main()
