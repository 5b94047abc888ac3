"""Polynomial programming: its first value by hand, training towards the optimum, and what is written."""

import json

import pytest

from e2e_lib.experiments import polynomial

START = (0.45**1.5 + 0.55**1.5) / 2


PUBLISHED = {("decoupled", 1.0): 0.3522, ("gumbel", 0.1): 0.3365, ("reinmax", 1.0): 0.3054}  # after as many steps


def test_the_committed_long_training_ends_where_others_published_that_it_does():
    ends = polynomial.long_polynomial()
    assert {case: ends[case] for case in PUBLISHED} == pytest.approx(PUBLISHED, abs=0.001)
    assert min(ends.values()) > 0.45**1.5


def test_training_begins_at_an_even_chance_and_falls():
    values = polynomial.polynomial("reinforce", 1.0, steps=60, latents=8)
    assert len(values) == 61 and values[0] == pytest.approx(START) and 0.45**1.5 < values[-1] < values[0]


def test_every_estimator_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    path = polynomial.measure(lines.append, steps=3)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["estimator"], row["temperature"]) for row in rows] == list(polynomial.CASES)
    assert all(abs(row["end"] - START) < 0.01 for row in rows)
    assert polynomial.long_polynomial()["soft", 0.1] == rows[3]["end"]
    polynomial.measure(lines.append, steps=3)
    assert lines[-1].endswith("polynomial.json is there already")
