"""What the tests of the models share."""

import torch

from e2e_lib.experiments import dense_maps
from e2e_lib.repro import randomness

# Where the parts are that stand in for the shipped ones.
PARTS = {"mini": ("language", "perceptron", "generator"), "mini-baselines": ("captioner", "dialogue", "translator")}


def run(model, batch, temperature=1.0, key="step"):
    """A training pass with the random numbers of ``key``."""
    return model(batch, temperature=temperature, seed=randomness.seed_of(key))


def script(monkeypatch, model, turns):
    """Has a model write these turns, one after another."""
    answers = iter(turns)
    monkeypatch.setattr(model.language, "generate", lambda inputs_embeds, **_: torch.tensor(
        [model.formatter.response(next(answers)).ids]))


def gradients_of(loss, module):
    """A loss's gradient for each weight of a module that is not frozen; None where no path leads."""
    weights = [p for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)


def largest(gradients):
    return max((g.abs().max().item() for g in gradients if g is not None), default=0.0)


def noise_photo(seed, height=64, width=64):
    """A photo, uint8 (3, height, width), of one tone (by its seed) and much noise."""
    noise = torch.randint(0, 100, (3, height, width), generator=randomness.generator(seed))
    return (20 * seed % 150 + noise).to(torch.uint8)


# Captions whose tokens differ between the two tokenizers.
SENTENCES = ["an orange umbrella standing in the garden", "here is a red hat, a red hat at the beach", "two kites"]


def pairs_of(sides):
    """The SENTENCES in the tokens of both of ``sides``, as a fixture has them."""
    return [dense_maps.pair(*sides[:2], text, sides[2]) for text in SENTENCES]


MIXED = [noise_photo(0), noise_photo(1, 120, 200), noise_photo(2, 33, 20), noise_photo(3, 70, 300)]  # of any size


@torch.no_grad()
def enlarge(module):
    """Larger weights, so that outputs depend on inputs and not on rounding. Returns the module."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8)
    return module
