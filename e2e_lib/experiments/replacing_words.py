"""What the photo's gradient says of another word, beside what that word really does (section 2.4.2).

The aligned map says of every word at every position how much the image loss would change if that word stood
there: the first order of the change. Here the words are really replaced, one at a time, and the loss computed
again with the same noise and timesteps. Axes: C source positions, V1 words, L text-encoder positions, D2 its
width.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2e_lib import corpora
from e2e_lib.bridge import aligned
from e2e_lib.bridge.alignment import encode_with_offsets
from e2e_lib.config import Config
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import split_examples
from e2e_lib.experiments.ablation import measurement_settings
from e2e_lib.experiments.evaluate import Echo
from e2e_lib.experiments.gradient_alignment import caption_of, image_losses
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training.loop import load_trained


def first_order(model: Any, spelling: aligned.Spelling, caption: str, embedding_gradient: Tensor) -> Tensor:
    """∂L/∂h (C, V1) of the aligned map, from the image loss's gradient on the embeddings (L, D2);
    ``spelling`` is that of the model's two tokenizers."""
    images = model.generator
    table = images.text_encoder.get_input_embeddings().weight
    source, _ = encode_with_offsets(model.tokenizer, [caption], special=False)
    target, _ = encode_with_offsets(images.tokenizer, [caption], special=True, length=images.max_length)
    weights = aligned.alignment_weights(source, target, "mean")  # (1, L, C)
    h = torch.zeros(1, source.input_ids.shape[1], model.language.config.vocab_size, requires_grad=True)
    words = spelling.embeddings(table, h)  # (V1, D2)
    added = aligned.plain_transfer(h, weights, words)  # (1, L, D2)
    return torch.autograd.grad((added[0] * embedding_gradient).sum(), h)[0][0]


def whole_words(model: Any, caption: str) -> list[int]:
    """The source positions of a caption at which one token writes a whole word."""
    source, _ = encode_with_offsets(model.tokenizer, [caption], special=False)
    words = {word.span() for word in re.finditer(r"\w+", caption)}
    spans = [(last - len(caption[first:last].lstrip()), last) for first, last in source.spans[0].tolist()]
    return [t for t, span in enumerate(spans) if span in words and source.token_mask[0, t]]


def replacements(model: Any, spelling: aligned.Spelling, batch: Any, *, words: int, noises: int,
                 rng: torch.Generator) -> list[dict[str, Any]]:
    """For each whole word of the batch's one caption, the ``words`` likeliest other whole words in its place:
    a row each, with the change of the image loss that the gradient predicts, and the exact one."""
    caption = batch.captions[0]
    logits, ids = caption_of(model, batch)  # (C, V1), (C,)
    texts = aligned.token_texts(model.tokenizer)
    begins = torch.tensor([token.startswith("▁") and len(text) > 1 for token, text in zip(
        model.tokenizer.convert_ids_to_tokens(range(len(texts))), texts, strict=True)])  # (V1,)
    rows, changed = [], []
    for t in whole_words(model, caption):
        likely = logits[t, :len(texts)].masked_fill(~begins, -torch.inf)
        likely[ids[t]] = -torch.inf
        for w in likely.topk(words).indices.tolist():
            other = ids.clone()
            other[t] = w
            rows.append({"caption": caption, "position": t, "word": texts[int(ids[t])], "other": texts[w],
                         "ids": (t, w)})
            changed.append(model.tokenizer.decode(other, skip_special_tokens=True).strip())
    losses, gradients = image_losses(model, batch, [caption, *changed], noises, rng)
    slope = first_order(model, spelling, caption, gradients[0])  # (C, V1)
    for row, loss in zip(rows, losses[1:].tolist(), strict=True):
        t, w = row.pop("ids")
        row |= {"predicted": float(slope[t, w] - slope[t, ids[t]]), "exact": loss - float(losses[0])}
    return rows


def measure(config: Config, seed: int, echo: Echo, *, captions: int = 16, words: int = 6,
            noises: int = 16) -> Path:
    """Measures dev captions with the trained model of ``seed``; writes ``results/<profile>/
    replacements.json``: all rows, and the correlation of predicted and exact changes within a caption and
    position (mean over captions). Raises CheckpointError."""
    path = results.RESULTS / config.profile / "replacements.json"
    settings = {"captions": captions, "words": words, "noises": noises, "seed": seed,
                **measurement_settings(config),
                "weights": files.weights_hash(run_folder(config, seed) / "best")}
    if results.is_up_to_date(path, settings, echo):
        return path
    examples, store = split_examples(corpora.prepare(config, echo), "dev", real_only=config.data.real_only)
    sharing = [e for e in examples if len(e.response.photos) == 1 and not e.response.text][:captions]
    model, rows = load_trained(config, seed), []
    collator = Collator(model.formatter, store)
    spelling = aligned.spelling(model.tokenizer, model.generator.tokenizer)
    for number, example in enumerate(sharing, 1):
        rows += replacements(model, spelling, collator([example]), words=words, noises=noises,
                             rng=generator(seed, "replacements", number))
        echo(f"caption {number} of {len(sharing)}: {len(rows)} words replaced")
    return files.write_json(path, {
        "command": f"e2e ablate --profile {config.profile}", "arguments": settings, "rows": rows,
        **agreement(rows), "provenance": provenance_record(config, seeds={"training": seed})})


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How predicted and exact changes agree: ``correlation`` of all rows, and of each caption (mean, standard
    deviation, number); ``same_sign``: share of rows."""
    predicted, exact = (np.array([row[name] for row in rows]) for name in ("predicted", "exact"))
    by_caption: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_caption.setdefault(row["caption"], []).append(i)
    each = [float(np.corrcoef(predicted[at], exact[at])[0, 1]) for at in by_caption.values() if len(at) > 2]
    return {"correlation": float(np.corrcoef(predicted, exact)[0, 1]),
            "correlation_by_caption": results.mean_and_std(each),
            "same_sign": float(np.mean(np.sign(predicted) == np.sign(exact)))}
