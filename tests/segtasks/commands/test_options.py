"""Numbers that options take, and what is said about others."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from segtasks.commands.options import number_within, positive_count, positive_number


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [
        (positive_count, "1", 1),
        (positive_number, "0.5", 0.5),
        (number_within(0, 100), "0", 0),
        (number_within(0, 100), "100", 100),
    ],
)
def test_numbers_within_the_limits_are_taken(
    kind: Callable[[str], float], text: str, number: float
) -> None:
    assert kind(text) == number


@pytest.mark.parametrize(
    ("kind", "texts", "wanted"),
    [
        (positive_count, ("0", "-1", "1.5", "many"), "a whole number above 0"),
        (positive_number, ("0", "-1", "nan", "inf", "much"), "a number above 0"),
        (number_within(0, 1), ("-0.1", "1.1", "nan", "much"), "a number of 0 to 1"),
    ],
)
def test_others_are_refused(
    kind: Callable[[str], float], texts: tuple[str, ...], wanted: str
) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^must be {wanted}, got '{text}'$"):
            kind(text)
