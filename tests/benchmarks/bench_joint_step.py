"""What the join costs: a joint training step against the sum of a language-model step and a diffusion step.

And against the same step with logits at all positions instead of at those that have a loss, all on the same batch; and
a step on whole dialogues against one on their responses. Prints one JSON line. They are timed in turn, again and again, so that a busy
machine slows all of them alike.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from e2e_lib import config as configuration
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import Batch, Collator, photo_rngs
from e2e_lib.data.examples import by_dialogue, examples_of, load_split
from e2e_lib.models.language import response_logits
from e2e_lib.models.losses import response_loss
from e2e_lib.models.systems import build
from e2e_lib.training.dev import dev_examples

ROUNDS, WARM_UP, BATCH, DIALOGUES = 15, 2, 16, 8  # of these, as one of their speakers sees them


def main() -> None:
    config = configuration.load("smoke")
    dialogues, store, _ = load_split(prepare(config, lambda _: None), "train")
    model: Any = build(config).train()
    # Half of the batch shares photos: without any the join has nothing to do, with photos only it has most.
    rows = dev_examples([e for d in dialogues for e in examples_of(d)], BATCH)
    batch = Collator(model.formatter, store)(rows)
    parts = {"language": (model.language, model.perceptron), "diffusion": (model.generator,), "joint": (model,)}
    optimizers = {
        name: torch.optim.AdamW([p for part in group for p in part.parameters() if p.requires_grad], 1e-6)
        for name, group in parts.items()}

    def language() -> torch.Tensor:
        return response_loss(response_logits(model.language, model.embed_context(batch), batch), batch)

    def diffusion() -> torch.Tensor:
        return model.generator.caption_loss(batch.captions, batch.target_photos, photo_rngs(batch, 0, "photo"), 0.1)

    def joint() -> torch.Tensor:
        return model(batch, temperature=0.5, seed=0).loss

    def at_all_positions(language: Any, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        logits = language(inputs_embeds=embeddings, attention_mask=batch.attention_mask).logits
        return logits[:, :-1][batch.is_learnt[:, 1:]]

    def joint_all_logits() -> torch.Tensor:
        with mock.patch("e2e_lib.models.end_to_end.response_logits", at_all_positions):
            return joint()

    groups = by_dialogue([e for d in dialogues for e in examples_of(d)])[:DIALOGUES]
    collator = Collator(model.formatter, store)
    forms = {"responses": collator([e for group in groups for e in group]), "dialogues": collator.dialogues(groups)}

    def in_form(name: str) -> torch.Tensor:
        return model(forms[name], temperature=0.5, seed=0).loss

    steps: dict[str, Callable[[], torch.Tensor]] = {"language": language, "diffusion": diffusion, "joint": joint,
                                                    "joint_all_logits": joint_all_logits,
                                                    **{name: partial(in_form, name) for name in forms}}
    optimizers |= dict.fromkeys(("joint_all_logits", *forms), optimizers["joint"])
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + ROUNDS):
        for name, loss in steps.items():
            began = time.perf_counter()
            optimizers[name].zero_grad()
            loss().backward()
            optimizers[name].step()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3)

    ratios = [j / (a + b) for j, a, b in zip(seconds["joint"], seconds["language"], seconds["diffusion"], strict=True)]
    print(json.dumps({
        "benchmark": "joint_step", "profile": "mini parts", "batch": BATCH, "photos": len(batch.captions),
        "rounds": ROUNDS, "threads": torch.get_num_threads(),
        "median_seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "joint_over_sum": round(statistics.median(ratios), 3), "target": "at most 1.10",
        "joint_over_all_logits": ratio("joint", "joint_all_logits"),
        "learnt_tokens": int(batch.is_learnt.sum()), "tokens": int(batch.attention_mask.sum()),
        "whole_dialogues_over_their_responses": ratio("dialogues", "responses"),
        "their_tokens": {name: int(form.attention_mask.sum()) for name, form in forms.items()}}))


if __name__ == "__main__":
    main()
