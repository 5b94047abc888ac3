"""Variants of the end-to-end model: each vocabulary map, estimator and ingredient (sections 2.4.1-2.5)."""

from collections.abc import Sequence
from pathlib import Path

from e2e_lib.config import Config, ConfigError, replace
from e2e_lib.repro.run_files import RUNS

# What a variant changes of the profile, which is the paper's way: "sentence" changes nothing.
MAPS = ("none", "static_piece", "static_word", "sentence", "word", "span", "aligned")
VARIANTS: dict[str, tuple[str, ...]] = {
    **{name: (f"bridge.mapping={name}",) for name in MAPS},
    # The system whose gradient speaks of every word, three times as long as the text's; then other estimators
    # in it ("decoupled" equals the first where gold captions are drawn, and REINFORCE would draw many photos
    # per caption), and its own captions drawn.
    **{f"aligned_{name}": ("model.system=end_to_end_aligned", f"bridge.estimator={name}")
       for name in ("straight_through", "gumbel", "gumbel_rao", "reinmax")},
    "aligned_own_captions": ("model.system=end_to_end_aligned", "bridge.caption_source=predicted"),
    # The other ingredients of the paper's way, one at a time.
    "no_perceptron": ("model.image_input=captions",),
    "own_captions": ("bridge.caption_source=predicted",),
    "no_noise": ("bridge.noise=false",),
    "temperature_1": ("bridge.temperature_start=1", "bridge.temperature_end=1"),
    "weight_10": ("train.image_loss_weight=10",),
}
ALIGNED = "aligned_straight_through"  # the system as it is compared with the others
GROUPS = {"maps": MAPS, "estimators": tuple(name for name in VARIANTS if name.startswith("aligned_")),
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
    """The variant that another one is compared with: for maps and the aligned system, training that differs
    only in having no gradient from the image; for what that system is varied in, the system; else the paper's
    way."""
    if name in MAPS or name == ALIGNED:
        return "none"
    return ALIGNED if name in GROUPS["estimators"] else "sentence"


def run_root(config: Config, name: str) -> Path:
    """The folder of a variant's runs; the profile's own for a system as it is compared with the others."""
    variant = apply_variant(config, name)
    own = replace(config, "model.system", variant.model.system)
    return RUNS if variant == own else RUNS / "ablations" / name
