"""Exact facts stop a notebook that gets them wrong; what was measured is reported, whatever it is."""

import pytest

from e2e_lib.lessons.claims import confirm, observe


def test_an_exact_fact_is_shown_or_stops_the_notebook(capsys):
    confirm("two is even", True, "2 = 2 · 1")
    assert capsys.readouterr().out == "✓ two is even: 2 = 2 · 1\n"
    with pytest.raises(AssertionError, match="three is even.*3 is odd"):
        confirm("three is even", False, "3 is odd")


def test_what_was_measured_is_reported_either_way(capsys):
    observe("the coin shows heads", True, "once")
    observe("the coin shows heads", False, "never")
    assert capsys.readouterr().out == ("✓ the coin shows heads: once\n"
                                       "✗ does not hold here: the coin shows heads: never\n")
