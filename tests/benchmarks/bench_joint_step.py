"""What the join costs: a joint training step against the sum of a language-model step and a diffusion step of the same batch.

Prints one JSON line. The three are timed in turn, again and again, so that a busy machine slows all of them alike.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch

from e2e_lib import config as configuration
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import examples_of, load_split
from e2e_lib.data.photos import to_floats
from e2e_lib.models.losses import response_loss
from e2e_lib.models.systems import build

ROUNDS, BATCH = 15, 16


def main() -> None:
    config = configuration.load("smoke")
    dialogues, store, _ = load_split(prepare(config, lambda _: None), "train")
    model = build(config).train()
    examples = [e for d in dialogues for e in examples_of(d)]
    # Half of the batch shares photos: the share at which the join has most to do is all, at which it has least is none.
    sharing = [e for e in examples if e.response.photo][:BATCH // 2]
    batch = Collator(model.formatter, store, config.data.photo_size)(sharing + [e for e in examples if not e.response.photo][:BATCH - len(sharing)])
    optimizers = {name: torch.optim.AdamW([p for part in parts for p in part.parameters() if p.requires_grad], 1e-6) for name, parts in {
        "language": (model.language, model.perceptron), "diffusion": (model.generator,), "joint": (model,)}.items()}

    def language() -> torch.Tensor:
        return response_loss(model.language(inputs_embeds=model.read(batch), attention_mask=batch.attention_mask).logits, batch.labels)

    def diffusion() -> torch.Tensor:
        generator = model.generator
        text = generator.encode(generator.tokenize(batch.captions))
        return generator.denoising_loss(generator.to_latents(to_floats(batch.target_photos)), text, torch.Generator().manual_seed(0))

    def joint() -> torch.Tensor:
        return model(batch, temperature=0.5, rng=torch.Generator().manual_seed(0)).loss

    steps: dict[str, Callable[[], torch.Tensor]] = {"language": language, "diffusion": diffusion, "joint": joint}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(ROUNDS + 2):
        for name, loss in steps.items():
            began = time.perf_counter()
            optimizers[name].zero_grad()
            loss().backward()
            optimizers[name].step()
            if round_number >= 2:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [j / (a + b) for j, a, b in zip(seconds["joint"], seconds["language"], seconds["diffusion"], strict=True)]
    print(json.dumps({"benchmark": "joint_step", "profile": "mini parts", "batch": BATCH, "photos": len(batch.captions), "rounds": ROUNDS,
                      "threads": torch.get_num_threads(), "median_seconds": {k: round(v, 4) for k, v in median.items()},
                      "joint_over_sum": round(statistics.median(ratios), 3), "target": "at most 1.10"}))


if __name__ == "__main__":
    main()
