"""Variants: their names, what they change, and what they are compared with."""

import pytest

from e2e_lib.config import ConfigError, table
from e2e_lib.experiments.variants import RUNS, VARIANTS, apply_variant, names_of, reference_of, run_root


def test_names_are_variants_or_groups_and_a_misspelt_one_is_named():
    assert names_of(["span", "maps"]) == ["span", "none", "static_piece", "static_word", "sentence", "word", "aligned"]
    assert set(names_of(["maps", "estimators", "ingredients"])) == set(VARIANTS)
    with pytest.raises(ConfigError, match="variant 'spam' is unknown; allowed: maps, .*span"):
        names_of(["span", "spam"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_what_it_says_and_nothing_else(config, name):
    before, after = table(config), table(apply_variant(config, name))
    changed = {row["key"] for row, old in zip(after, before, strict=True) if row != old}
    assert changed <= {override.partition("=")[0] for override in VARIANTS[name]}
    assert bool(changed) == (name != "sentence")
    assert (run_root(config, name) == RUNS) == (name == "sentence")


def test_what_a_variant_is_compared_with():
    assert {reference_of(name) for name in ("sentence", "span", "span_gumbel_rao", "static_word", "strong_aligned")} == {"none"}
    assert {reference_of(name) for name in ("no_perceptron", "weight_10", "temperature_1")} == {"sentence"}
    strong = [dict(change.split("=") for change in VARIANTS[name]) for name in VARIANTS if name.startswith("strong_")]
    assert len(strong) == 4 and len({tuple(sorted({**one, "bridge.mapping": ""}.items())) for one in strong}) == 1
