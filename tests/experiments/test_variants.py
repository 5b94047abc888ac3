"""Variants: their names, what they change, and what they are compared with."""

import pytest

from e2e_lib.config import ConfigError, replace, table
from e2e_lib.experiments.variants import RUNS, VARIANTS, apply_variant, names_of, reference_of, run_root


def test_names_are_variants_or_groups_and_a_misspelt_one_is_named():
    assert names_of(["span", "maps"]) == ["span", "none", "static_piece", "static_word", "sentence", "word", "aligned"]
    assert set(names_of(["maps", "estimators", "ingredients"])) == set(VARIANTS)
    with pytest.raises(ConfigError, match="variant 'spam' is unknown; allowed: maps, .*span"):
        names_of(["span", "spam"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_what_it_says_and_nothing_else(config, name):
    config = replace(config, "model.system", apply_variant(config, name).model.system)  # which may change others
    before, after = table(config), table(apply_variant(config, name))
    changed = {row["key"] for row, old in zip(after, before, strict=True) if row != old}
    assert changed <= {override.partition("=")[0] for override in VARIANTS[name]}
    assert bool(changed) == (name not in ("sentence", "aligned_straight_through"))
    assert (run_root(config, name) == RUNS) == (not changed)


def test_what_a_variant_is_compared_with():
    assert {reference_of(name) for name in ("sentence", "span", "static_word", "aligned_straight_through")} == {"none"}
    assert {reference_of(name) for name in ("aligned_gumbel_rao", "aligned_own_captions")} == {"aligned_straight_through"}
    assert {reference_of(name) for name in ("no_perceptron", "weight_10", "temperature_1", "own_captions")} == {"sentence"}
