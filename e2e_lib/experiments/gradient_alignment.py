"""The image loss's gradient through each map and estimator, next to the exact one (sections 2.4.1-2.4.2).

The exact gradient is a sum where only the few positions of a real caption that the model is least sure of
vary, each among its likeliest words. Each variant's image loss, and its gradient with respect to the text
encoder's embeddings, is computed once, with the same noise and timesteps for all; then estimates are cheap.
Axes: N variants, n positions, m words, C caption positions, L text-encoder positions, D2 its width, V1 words.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from e2e_lib import corpora
from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.estimators import compare_gradients, reinforce
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.config import Config
from e2e_lib.data.collate import Batch, Collator
from e2e_lib.data.examples import split_examples
from e2e_lib.experiments.ablation import measurement_settings
from e2e_lib.experiments.evaluate import Echo
from e2e_lib.experiments.variants import MAPS
from e2e_lib.models.end_to_end import caption_positions
from e2e_lib.models.language import response_logits
from e2e_lib.models.systems import word_list
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import provenance_record
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import run_folder
from e2e_lib.training.loop import load_trained

EXCLUDED = -1e4  # the logit of a word that may not be chosen
ESTIMATORS = (("straight_through", 1.0), ("gumbel", 1.0), ("gumbel", 0.1), ("decoupled", 1.0),
              ("gumbel_rao", 0.5), ("reinmax", 1.0))


@dataclass
class CaptionVariants:
    """A caption's N variants, their image losses, and the gradients of these."""

    logits: Tensor  # (C, V1) that let only the variants' words be chosen
    positions: Tensor  # (n,) that vary
    words: Tensor  # (n, m) that may stand there
    choices: Tensor  # (N, n) indices of words
    ids: Tensor  # (N, C)
    texts: list[str]  # N
    losses: Tensor  # (N,)
    embedding_gradients: Tensor  # (N, L, D2) of the losses

    @property
    def free_logits(self) -> Tensor:
        """The logits (n, m) of the words that may vary."""
        return self.logits[self.positions[:, None], self.words]

    def index_of(self, one_hot: Tensor) -> Tensor:
        """The number (…) of the variant with the one-hot choices (…, n, m)."""
        place = self.words.shape[1] ** torch.arange(self.words.shape[0] - 1, -1, -1)  # (n,)
        return (one_hot.argmax(-1) * place).sum(-1)

    def exact_gradient(self) -> tuple[Tensor, Tensor]:
        """The expected image loss () and its gradient (n, m), summed over all variants."""
        free = self.free_logits.clone().requires_grad_()
        log_p = F.log_softmax(free, -1)  # (n, m)
        p = log_p[torch.arange(len(free)), self.choices].sum(-1).exp()  # (N,)
        expected = (p * self.losses).sum()
        return expected.detach(), torch.autograd.grad(expected, free)[0]


def caption_of(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits (C, V1) and gold tokens (C,) of the batch's one response caption, under teacher forcing."""
    with torch.no_grad():
        logits = response_logits(model.language, model.embed_context(batch), batch)  # (N, V1)
        caption_logits, gold_ids, _ = caption_positions(logits, batch)  # (1, C, V1), (1, C)
    return caption_logits[0], gold_ids[0]


def caption_variants(model: Any, batch: Batch, *, positions: int, words: int, noises: int,
                     rng: torch.Generator) -> CaptionVariants:
    """The variants of the batch's one response caption: the ``words`` likeliest words at its ``positions``
    least certain positions, with ``noises`` pairs of noise and timestep for the image loss."""
    logits, gold_ids = caption_of(model, batch)
    logits = logits.index_fill(1, torch.tensor(model.tokenizer.all_special_ids), EXCLUDED)  # (C, V1)
    p = logits.softmax(-1)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(-1)  # (C,)
    at = entropy.topk(min(positions, len(gold_ids))).indices.sort().values  # (n,)
    candidates = logits[at].topk(words, -1).indices  # (n, m)
    choices = torch.tensor(list(itertools.product(range(words), repeat=len(at))))  # (N, n)
    ids = gold_ids.repeat(len(choices), 1)  # (N, C)
    ids[:, at] = candidates.gather(1, choices.T).T
    excluded = torch.full_like(logits, EXCLUDED)
    limited = excluded.scatter(1, gold_ids[:, None], 0.0)  # elsewhere the gold word stays
    limited[at] = excluded[at].scatter(1, candidates, logits[at].gather(1, candidates))
    texts = [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    losses = image_losses(model, batch, texts, noises, rng)
    return CaptionVariants(limited, at, candidates, choices, ids, texts, *losses)


def image_losses(model: Any, batch: Batch, texts: list[str], noises: int,
                 rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The image loss (N,) of the batch's one photo under each text, and its gradient (N, L, D2) with respect
    to the text encoder's embeddings: means over ``noises`` pairs of noise and timestep, the same for all."""
    image_generator = model.generator
    latents = image_generator.to_latents(batch.target_photos).expand(noises, -1, -1, -1)
    # One timestep in each of ``noises`` equal intervals: as many high as low ones, whatever the number.
    steps = image_generator.scheduler.config.num_train_timesteps
    timesteps = ((torch.arange(noises) + torch.rand(noises, generator=rng)) * steps / noises).long()
    table, noise = image_generator.text_encoder.get_input_embeddings(), torch.randn(latents.shape,
                                                                                    generator=rng)
    losses, gradients = [], []
    for text in texts:
        ids = image_generator.tokenize([text])  # (1, L)
        embeddings = table(ids).detach().requires_grad_()  # (1, L, D2)
        encoded = image_generator.encode(ids, embeddings).expand(noises, -1, -1)
        loss = image_generator.denoising_loss(latents, encoded, noise, timesteps)
        gradients.append(torch.autograd.grad(loss, embeddings)[0][0])
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(gradients)


def bridge_estimates(variants: CaptionVariants, bridge: CaptionBridge, embedding: torch.nn.Embedding,
                     temperature: float, *, draws: int, rng: torch.Generator, batch: int = 128) -> Tensor:
    """Estimates (draws, n, m) of that gradient, each from a sampled caption's loss through ``bridge``."""
    estimates, free = [], variants.free_logits  # (n, m)
    for first in range(0, draws, batch):
        size = min(batch, draws - first)
        logits = variants.logits.expand(size, -1, -1).clone().requires_grad_()  # (B, C, V1)
        noise = gumbel_noise((size, *free.shape), rng)
        noisy = free.expand(size, -1, -1) if bridge.estimator == "straight_through" else free + noise
        number = variants.index_of(F.one_hot(noisy.argmax(-1), free.shape[1]))  # (B,)
        full = torch.zeros_like(logits)
        full[:, variants.positions[:, None], variants.words] = noise
        out = bridge([variants.texts[i] for i in number.tolist()], logits, embedding, temperature, full, rng,
                     source_ids=variants.ids[number])
        gradient, = torch.autograd.grad((out.embeddings * variants.embedding_gradients[number]).sum(), logits)
        estimates.append(gradient[:, variants.positions[:, None], variants.words])
    return torch.cat(estimates)


def reinforce_estimates(variants: CaptionVariants, *, draws: int, samples: int,
                        rng: torch.Generator) -> Tensor:
    """The same from REINFORCE with leave-one-out: from ``samples`` captions' losses, no gradient of them."""
    free = variants.free_logits.requires_grad_()
    values = (reinforce(lambda one_hot: variants.losses[variants.index_of(one_hot)], free, rng=rng,
                        samples=samples) for _ in range(draws))
    return torch.stack([torch.autograd.grad(value, free)[0] for value in values])


def alignment(variants: CaptionVariants, model: Any, cases: Sequence[tuple[str, str, float]], *, draws: int,
              rng: torch.Generator, words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row per (map, estimator, temperature): ``compare_gradients``'s numbers, and seconds per estimate.
    "reinforce" needs no map. It and Gumbel-Rao sample 16 times per estimate, and make an eighth as many."""
    _, exact = variants.exact_gradient()
    embedding = model.generator.text_encoder.get_input_embeddings()
    rows = []
    for mapping, estimator, temperature in cases:
        count = draws // 8 if estimator in ("reinforce", "gumbel_rao") else draws
        began = time.perf_counter()
        if estimator == "reinforce":
            estimates = reinforce_estimates(variants, draws=count, samples=16, rng=rng)
        else:
            bridge = CaptionBridge(model.tokenizer, model.generator.tokenizer, mapping, estimator=estimator,
                                   words=words, length=model.generator.max_length)
            estimates = bridge_estimates(variants, bridge, embedding, temperature, draws=count, rng=rng)
        rows.append({"mapping": mapping, "estimator": estimator, "temperature": temperature, "draws": count,
                     "seconds_per_draw": (time.perf_counter() - began) / count,
                     **compare_gradients(estimates, exact)})
    return rows


def measure(config: Config, seed: int, echo: Echo, *, captions: int = 24, positions: int = 2, words: int = 5,
            noises: int = 16, draws: int = 1024) -> Path:
    """Measures every map and estimator on dev captions of the trained model of ``seed``. Writes
    ``results/<profile>/gradients.json``: mean, deviation, number of captions. Raises CheckpointError."""
    path = results.RESULTS / config.profile / "gradients.json"
    settings = {"captions": captions, "positions": positions, "words": words, "noises": noises,
                "draws": draws, "seed": seed, **measurement_settings(config),
                "weights": files.weights_hash(run_folder(config, seed) / "best")}
    if results.is_up_to_date(path, settings, echo):
        return path
    examples, store = split_examples(corpora.prepare(config, echo), "dev", real_only=config.data.real_only)
    sharing = [e for e in examples if len(e.response.photos) == 1 and not e.response.text][:captions]
    model, listed = load_trained(config, seed), word_list(config.bridge.word_list)
    cases = [(mapping, *estimator) for mapping in MAPS if mapping != "none" for estimator in ESTIMATORS]
    rows, lines = [], []
    for number, example in enumerate(sharing, 1):
        variants = caption_variants(model, Collator(model.formatter, store)([example]), positions=positions,
                                    words=words, noises=noises, rng=generator(seed, "family", number))
        expected, exact = variants.exact_gradient()
        lines.append({"caption": example.response.photos[0].caption,
                      "expected_image_loss": float(expected), "spread": float(variants.losses.std()),
                      "gradient_norm": float(exact.norm())})
        rows += alignment(variants, model, [*cases, ("all", "reinforce", 1.0)], draws=draws, words=listed,
                          rng=generator(seed, "draws", number))
        echo(f"caption {number} of {len(sharing)}: {len(variants.texts)} variants, image loss {expected:.4f}")
    case = ["mapping", "estimator", "temperature"]
    groups = pd.DataFrame(rows).drop(columns="draws").groupby(case, sort=False)
    spread = groups.agg(["mean", "std"]).stack(0)  # a row per case and number: mean, std
    return files.write_json(path, {
        "command": f"e2e ablate --profile {config.profile}", "arguments": settings, "captions": lines,
        "rows": [{**dict(zip(case, key, strict=True)), "n": len(group),
                  **spread.loc[key].to_dict("index")} for key, group in groups],
        "provenance": provenance_record(config, seeds={"training": seed})})
