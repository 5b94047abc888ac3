import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2e_lib import config as configuration
from e2e_lib.config import (
    PROFILES,
    RENAMED,
    ConfigError,
    check_seed,
    load,
    overrides_of,
    replace,
    table,
    with_defaults,
)

FIELDS = {f"{section.name}.{f.name}": f for section in dataclasses.fields(configuration.Config)[1:]
          for f in dataclasses.fields(getattr(load("mini"), section.name))}


@pytest.mark.parametrize("profile", ["smoke", "mini", "smol", "small", "paper"])
def test_every_profile_loads_and_its_own_values_are_allowed(profile):
    config = load(profile)
    assert config.profile == profile and config == PROFILES[profile]
    rows = table(config)
    assert [row["key"] for row in rows] == list(FIELDS) and all(row["meaning"] and row["allowed"] for row in rows)
    for row in rows:  # reading back what is printed changes nothing, and passes the checks
        assert replace(config, row["key"], row["value"]) == config


def test_the_paper_profile_has_the_papers_settings():
    config = load("paper")
    assert (config.bridge.temperature_start, config.bridge.temperature_end, config.bridge.temperature_epochs) == (1.0, 0.01, 3.0)
    assert (config.bridge.mapping, config.bridge.pooling, config.bridge.noise) == ("sentence", "mean", True)
    assert (config.train.learning_rate, config.train.warmup_steps, config.train.image_loss_weight) == (5e-5, 1000, 1.0)
    assert (config.inference.temperature, config.inference.do_sample) == (0.7, True)
    assert not [value for value in vars(config.model).values() if str(value).startswith("shipped:")]  # those are a thousand times smaller


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_names_the_new_one(old, new):
    assert new in FIELDS and old not in FIELDS
    with pytest.raises(ConfigError, match=f"{old!r} is called {new!r} now"):
        load("smoke", [f"{old}=1"])


def test_a_misspelt_old_key_names_the_new_one_too():
    with pytest.raises(ConfigError, match="did you mean 'inference.guidance_scale'"):
        load("smoke", ["inference.guidence=1"])


@pytest.mark.parametrize(("profile", "hint"), [("mni", "did you mean 'mini'"), ("PAPER2", "allowed: mini, smoke, smol, small, paper"), ("", "allowed")])
def test_an_unknown_profile_names_the_nearest(profile, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        load(profile)
    assert repr(profile) in str(caught.value)


@pytest.mark.parametrize(("key", "nearest"), [
    ("train.learing_rate", "train.learning_rate"), ("bridge.poolng", "bridge.pooling"), ("data.photo_sise", "data.photo_size"),
    ("learning_rate", "train.learning_rate"), ("bridge.learning_rate", "train.learning_rate"), ("Inference.beams", "inference.num_beams")])
def test_an_unknown_key_names_the_nearest_and_the_value(key, nearest):
    with pytest.raises(ConfigError) as caught:
        load("smoke", [f"{key}=0.5"])
    assert repr(key) in str(caught.value) and "'0.5'" in str(caught.value) and f"did you mean {nearest!r}" in str(caught.value)


def test_a_key_like_no_other_gets_no_guess():
    with pytest.raises(ConfigError, match="'zzzz' .* is unknown; `e2e config` lists all"):
        replace(load("smoke"), "zzzz", 1)


@pytest.mark.parametrize("override", ["train.epochs", "train.epochs 3", ""])
def test_an_override_without_a_value_shows_how_it_is_written(override):
    with pytest.raises(ConfigError, match="expected section.key=value, such as"):
        load("smoke", [override])


@pytest.mark.parametrize(("key", "value", "allowed"), [
    ("train.epochs", "0", "a whole number from 1 to 1000000000"), ("train.epochs", "2.5", "a whole number"), ("train.epochs", "many", "a whole number"),
    ("train.epochs", "", "a whole number"), ("train.learning_rate", "nan", "a number from 1e-08 to 1"), ("train.learning_rate", "2", "from 1e-08 to 1"),
    ("train.learning_rate", "-1e-4", "from 1e-08 to 1"), ("train.learning_rate", "inf", "from 1e-08 to 1"),
    ("train.image_loss_weight", "inf", "a number of at least 0"), ("train.image_loss_weight", "-1", "at least 0"),
    ("train.image_loss_weight", "nan", "at least 0"), ("bridge.temperature_end", "0", "a number from 0.001 to 100"),
    ("bridge.mapping", "letter", "one of none, static_piece"), ("bridge.mapping", "", "sentence, word, span"), ("bridge.noise", "yes", "true or false"),
    ("bridge.noise", "1", "true or false"), ("inference.top_p", "1.01", "0.001 to 1"), ("inference.num_beams", "33", "from 1 to 32"),
    ("inference.guidance_scale", "1e30", "from 1 to 100"), ("data.photo_size", "5000", "from 8 to 4096"),
    ("train.batch_size", "100000000000000000000", "from 1 to 1000000000"), ("train.learning_rate", 10**400, "from 1e-08 to 1")])
def test_a_value_that_is_not_allowed_is_named_with_what_is(key, value, allowed):
    with pytest.raises(ConfigError) as caught:
        replace(load("smoke"), key, value)
    assert f"{key} = {value!r} is not allowed: expected " in str(caught.value) and allowed in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("train.epochs", 2.5), ("train.epochs", None), ("train.learning_rate", [1e-3]), ("train.epochs", float("inf")),
                                            ("train.epochs", True), ("model.language", None), ("model.language", ""), ("model.language", 3)])
def test_a_value_of_another_type_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} = .* is not allowed"):
        replace(load("smoke"), key, value)


def test_overrides_apply_in_order_and_touch_nothing_else():
    config = load("mini", ["train.epochs=7", " train.learning_rate = 1e-4 ", "bridge.noise=False", "train.epochs=8", "model.language=a=b/c"])
    expected = dataclasses.replace(PROFILES["mini"], train=dataclasses.replace(PROFILES["mini"].train, epochs=8, learning_rate=1e-4),
                                   bridge=dataclasses.replace(PROFILES["mini"].bridge, noise=False),
                                   model=dataclasses.replace(PROFILES["mini"].model, language="a=b/c"))
    assert config == expected and PROFILES["mini"].train.epochs != 8


def test_overrides_of_a_configuration_give_it_back():
    config = load("mini", ["train.epochs=7", "bridge.noise=False", "model.language=a=b/c"])
    assert len(overrides_of(config)) == 3 and load("mini", overrides_of(config)) == config
    assert overrides_of(load("paper")) == []


def test_a_saved_configuration_gets_the_defaults_of_newer_settings():
    saved = dataclasses.asdict(load("mini", ["train.epochs=7"]))
    del saved["train"]["patience"], saved["evaluation"]
    full = with_defaults(saved)
    assert full["train"] == {**dataclasses.asdict(load("mini").train), "epochs": 7} and full["profile"] == "mini"
    assert full["evaluation"] == {"max_text_only_examples": 0, "inception_weights": ""}


@pytest.mark.parametrize(("saved", "message"), [
    ("mini", "is an object of settings, not str"), ([1], "not list"), (None, "not NoneType"),
    ({"profile": "mini", "train": "fast"}, "section 'train' of a saved configuration is 'fast', no object")])
def test_a_saved_configuration_of_another_shape_is_refused(saved, message):
    with pytest.raises(ConfigError, match=message):
        with_defaults(saved)


@pytest.mark.parametrize("seed", [-1, 2**63, True, 1.0, "1", None])
def test_every_seed_has_one_range(seed):
    assert [check_seed(right) for right in (0, 7, 2**63 - 1)] == [0, 7, 2**63 - 1]
    with pytest.raises(ConfigError, match="expected a whole number from 0 to 9223372036854775807"):
        check_seed(seed)


@pytest.mark.parametrize("key", ["data.seed", "pretrain.seed"])
def test_settings_that_are_seeds_have_the_range_of_seeds(key):
    assert key in {row["key"] for row in table(load("mini", [f"{key}=9223372036854775807"]))}
    for value in ("9223372036854775808", "-1"):
        with pytest.raises(ConfigError, match=f"{key} = '{value}' is not allowed: expected a whole number from 0 to 9223372036854775807"):
            load("mini", [f"{key}={value}"])


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load("mini").train.epochs = 3  # type: ignore[misc]


def allowed_values(f):
    rules, kind = f.metadata, type(f.default)
    if rules["choices"]:
        return st.sampled_from(rules["choices"])
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(alphabet="abc/:.-=", min_size=1)
    if kind is int:
        return st.integers(rules["low"], rules["high"] if rules["high"] is not None else 10**9)
    return st.floats(rules["low"], rules["high"] if rules["high"] is not None else 1e9)


@given(st.data())
@pytest.mark.fuzz
def test_a_configuration_survives_being_printed_and_set_again(data):
    keys = data.draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=6, unique=True))
    config = load("mini")
    for key in keys:
        config = replace(config, key, data.draw(allowed_values(FIELDS[key]), label=key))
    again = load("mini", [f"{row['key']}={row['value']}" for row in table(config)])
    assert again == config


@given(st.data())
@pytest.mark.fuzz
def test_a_number_is_accepted_exactly_if_it_lies_within_its_bounds(data):
    key = data.draw(st.sampled_from([key for key, f in FIELDS.items() if type(f.default) is float]))
    value, rules = data.draw(st.floats(allow_nan=True, allow_infinity=True)), FIELDS[key].metadata
    low = rules["low"] if rules["low"] is not None else -math.inf
    high = rules["high"] if rules["high"] is not None else math.inf
    section, name = key.split(".")
    if math.isfinite(value) and low <= value <= high:
        assert getattr(getattr(replace(load("mini"), key, value), section), name) == value
    else:
        with pytest.raises(ConfigError):
            replace(load("mini"), key, value)
