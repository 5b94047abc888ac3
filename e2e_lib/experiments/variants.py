"""Variants of the end-to-end model: each vocabulary map, estimator and ingredient (sections 2.4.1-2.5)."""

from collections.abc import Sequence
from pathlib import Path

from e2e_lib.config import Config, ConfigError, replace
from e2e_lib.repro.run_files import RUNS

# What a variant changes of the profile, which is the paper's way: "sentence" changes nothing.
MAPS = ("none", "static_piece", "static_word", "sentence", "word", "span", "aligned")
VARIANTS: dict[str, tuple[str, ...]] = {
    **{name: (f"bridge.mapping={name}",) for name in MAPS},
    # Estimators, with the map that tells words apart. ReinMax needs a temperature of at least 1, so none is
    # annealed. "soft" would be "gumbel" again, as the text encoder gets whole tokens; REINFORCE would draw
    # many photos per caption. With gold captions "straight_through" must equal "decoupled": a check.
    **{f"span_{name}": ("bridge.mapping=span", f"bridge.estimator={name}", "bridge.temperature_end=1")
       for name in ("straight_through", "gumbel", "decoupled", "gumbel_rao", "reinmax")},
    # The other ingredients, one at a time.
    "no_perceptron": ("model.image_input=captions",),
    "own_captions": ("bridge.caption_source=predicted",),
    "no_noise": ("bridge.noise=false",),
    "temperature_1": ("bridge.temperature_start=1", "bridge.temperature_end=1"),
    "temperature_0.01": ("bridge.temperature_start=0.01", "bridge.temperature_end=0.01"),
    "weight_0.1": ("train.image_loss_weight=0.1",),
    "weight_10": ("train.image_loss_weight=10",),
    # At λ = 1 the image's gradient into the words is about a hundredth of the text's; here it is three times
    # as long, whatever the map. The last one is a control: its gradient is as long, and says nothing.
    **{f"strong_{name}": (f"bridge.mapping={name}", "bridge.gradient_ratio=3", "bridge.temperature_end=1",
                          "bridge.estimator=straight_through")
       for name in ("sentence", "span", "aligned", "aligned_shuffled")},
}
GROUPS = {"maps": MAPS, "estimators": tuple(name for name in VARIANTS if name.startswith("span_")),
          "ingredients": tuple(VARIANTS)[list(VARIANTS).index("no_perceptron"):]}


def names_of(words: Sequence[str]) -> list[str]:
    """Variants by their own names or their groups', each once. Raises ConfigError for any other name."""
    names = [name for word in words for name in (GROUPS.get(word) or (word,))]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ConfigError(f"variant {unknown[0]!r} is unknown; allowed: {', '.join([*GROUPS, *VARIANTS])}")
    return list(dict.fromkeys(names))


def apply_variant(config: Config, name: str) -> Config:
    """The configuration of a variant."""
    for override in VARIANTS[name]:
        key, _, value = override.partition("=")
        config = replace(config, key, value)
    return config


def reference_of(name: str) -> str:
    """The variant that another one is compared with: for maps and estimators, training that differs only in
    having no gradient from the image; else the paper's way."""
    return "none" if name in MAPS or name.startswith(("span_", "strong_")) else "sentence"


def run_root(config: Config, name: str) -> Path:
    """The folder of a variant's runs; the profile's own for one that changes nothing."""
    return RUNS if apply_variant(config, name) == config else RUNS / "ablations" / name
