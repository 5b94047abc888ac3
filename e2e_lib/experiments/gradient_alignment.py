"""What the image loss tells the language model through each map and estimator, against the truth (sections 2.4.1-2.4.2).

The truth can be had where it can be added up: of a real caption, the few positions the model is least sure of may each take one of its
likeliest words, and nothing else may change. Then the expected image loss is a sum over that family of captions, and so is its exact
gradient with respect to those words' logits. Each caption's loss, and its gradient with respect to the text encoder's embeddings, is
computed once, with the same noise and timesteps for all; after that, any number of draws of any estimator costs next to nothing.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.estimators import compare_gradients, reinforce
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.data.collate import Batch
from e2e_lib.data.photos import to_floats
from e2e_lib.models.end_to_end import EndToEndModel, caption_positions

CLOSED = -1e4  # the logit of a word that may not be chosen


@dataclass
class Family:
    """A caption and its variants, N of them. ``logits`` (C, V1) let only the variants' words be chosen; ``positions`` (n,) and ``words``
    (n, m) say which vary; ``choices`` (N, n) index ``words``; ``ids`` (N, C) and ``texts`` are the captions; ``losses`` (N,) their image
    losses and ``pulls`` (N, L, D2) the gradients of those with respect to the text encoder's embeddings."""

    logits: Tensor
    positions: Tensor
    words: Tensor
    choices: Tensor
    ids: Tensor
    texts: list[str]
    losses: Tensor
    pulls: Tensor

    @property
    def free(self) -> Tensor:
        """The logits (n, m) of the words that may vary."""
        return self.logits[self.positions[:, None], self.words]

    def chosen(self, onehot: Tensor) -> Tensor:
        """The number of the caption that one-hot choices (…, n, m) make."""
        place = self.words.shape[1] ** torch.arange(self.words.shape[0] - 1, -1, -1)
        return (onehot.argmax(-1) * place).sum(-1)

    def truth(self) -> tuple[Tensor, Tensor]:
        """The expected image loss () and its gradient (n, m), every caption added up."""
        free = self.free.clone().requires_grad_()
        log_p = F.log_softmax(free, -1)
        each = log_p[torch.arange(len(free)), self.choices].sum(-1).exp()
        expected = (each * self.losses).sum()
        return expected.detach(), torch.autograd.grad(expected, free)[0]


def caption_of(model: EndToEndModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits (C, V1) and gold tokens (C,) of the batch's one response caption, under teacher forcing."""
    with torch.no_grad():
        out = model.language(inputs_embeds=model.read(batch), attention_mask=batch.attention_mask).logits
        logits, gold, _ = caption_positions(out, batch)
    return logits[0], gold[0]


def family_of(model: EndToEndModel, batch: Batch, *, positions: int, words: int, draws: int, rng: torch.Generator) -> Family:
    """The family of the one caption in ``batch`` (a batch of one response that shares a photo): its ``positions`` least certain positions, the
    ``words`` likeliest words at each, and ``draws`` pairs of noise and timestep for the image loss."""
    logits, gold = caption_of(model, batch)
    logits = logits.index_fill(1, torch.tensor(model.tokenizer.all_special_ids), CLOSED)  # a word, not a mark
    p = logits.softmax(-1)
    at = (-(p * p.clamp_min(1e-12).log()).sum(-1)).topk(min(positions, len(gold))).indices.sort().values
    candidates = logits[at].topk(words, -1).indices
    choices = torch.tensor(list(itertools.product(range(words), repeat=len(at))))
    ids = gold.repeat(len(choices), 1)
    ids[:, at] = candidates.gather(1, choices.T).T
    closed = torch.full_like(logits, CLOSED).scatter(1, gold[:, None], 0.0)  # elsewhere the gold word stands
    closed[at] = torch.full_like(closed[at], CLOSED).scatter(1, candidates, logits[at].gather(1, candidates))
    texts = [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    losses, pulls = image_losses(model, batch, texts, draws, rng)
    return Family(closed, at, candidates, choices, ids, texts, losses, pulls)


def image_losses(model: EndToEndModel, batch: Batch, texts: list[str], draws: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The image loss of the batch's one photo under each text, (N,), and its gradient with respect to the text encoder's embeddings (N, L, D2):
    means over ``draws`` pairs of noise and timestep, the same for every text."""
    generator = model.generator
    latents = generator.to_latents(to_floats(batch.target_photos)).expand(draws, -1, -1, -1)
    # One timestep in each of ``draws`` equal intervals: as many high as low ones, whatever the number.
    timesteps = ((torch.arange(draws) + torch.rand(draws, generator=rng)) * generator.scheduler.config.num_train_timesteps / draws).long()
    noise_state = rng.get_state()
    losses, pulls = [], []
    for text in texts:
        ids = generator.tokenize([text])
        embeddings = generator.embed(ids).detach().requires_grad_()
        loss = generator.denoising_loss(latents, generator.encode(ids, embeddings).expand(draws, -1, -1), rng.set_state(noise_state), timesteps)
        pulls.append(torch.autograd.grad(loss, embeddings)[0][0])
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(pulls)


def estimates(family: Family, bridge: CaptionBridge, embedding: torch.nn.Embedding, *, temperature: float, draws: int,
              rng: torch.Generator, batch: int = 128) -> Tensor:
    """``draws`` estimates (draws, n, m) of the gradient of the expected image loss through ``bridge``: draw a caption, pull at it."""
    found = []
    for first in range(0, draws, batch):
        size = min(batch, draws - first)
        logits = family.logits.expand(size, -1, -1).clone().requires_grad_()
        noise = gumbel_noise((size, *family.free.shape), rng)
        picked = family.free.expand(size, -1, -1) if bridge.estimator == "straight_through" else family.free + noise
        number = family.chosen(F.one_hot(picked.argmax(-1), family.words.shape[1]))
        full = torch.zeros_like(logits)
        full[:, family.positions[:, None], family.words] = noise
        out = bridge([family.texts[i] for i in number.tolist()], logits, embedding, temperature, full, rng, source_ids=family.ids[number])
        gradient, = torch.autograd.grad((out.embeddings * family.pulls[number]).sum(), logits)
        found.append(gradient[:, family.positions[:, None], family.words])
    return torch.cat(found)


def reinforce_estimates(family: Family, *, draws: int, samples: int, rng: torch.Generator) -> Tensor:
    """The same from REINFORCE with leave-one-out, which asks for ``samples`` captions' losses and for no gradient of the image."""
    found = []
    for _ in range(draws):
        free = family.free.clone().requires_grad_()
        value = reinforce(lambda d: family.losses[family.chosen(d)], free, generator=rng, samples=samples)
        found.append(torch.autograd.grad(value, free)[0])
    return torch.stack(found)


def measure(family: Family, model: EndToEndModel, cases: Sequence[tuple[str, str, float]], *, draws: int, rng: torch.Generator,
            words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row for each (map, estimator, temperature): ``compare_gradients``'s figures and the seconds a draw took. The map "all" with the estimator
    "reinforce" is REINFORCE, which needs no map. It and Gumbel-Rao draw 16 times for one estimate, and are asked for an eighth as many."""
    _, truth = family.truth()
    table = model.generator.text_encoder.get_input_embeddings()
    rows = []
    for mapping, estimator, temperature in cases:
        began = time.perf_counter()
        if estimator == "reinforce":
            found = reinforce_estimates(family, draws=draws // 8, samples=16, rng=rng)
        else:
            bridge = CaptionBridge(model.tokenizer, model.generator.tokenizer, mapping, estimator=estimator, words=words,
                                   length=model.generator.limit)
            few = draws // 8 if estimator == "gumbel_rao" else draws
            found = estimates(family, bridge, table, temperature=temperature, draws=few, rng=rng)
        rows.append({"mapping": mapping, "estimator": estimator, "temperature": temperature, "draws": len(found),
                     "seconds_a_draw": (time.perf_counter() - began) / len(found), **compare_gradients(found, truth)})
    return rows
