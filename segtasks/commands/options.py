"""Numbers on the command line: what `add_argument` takes as `type`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def positive_count(text: str) -> int:
    """A whole number above 0."""
    return _number(text, int, lambda value: value >= 1, "a whole number above 0")


def positive_number(text: str) -> float:
    """A finite number above 0."""
    return _number(text, float, lambda value: 0 < value < math.inf, "a number above 0")


def number_within(lowest: float, highest: float) -> Callable[[str], float]:
    """A type of numbers between two limits, both included."""

    def number(text: str) -> float:
        wanted = f"a number of {lowest:g} to {highest:g}"
        return _number(text, float, lambda value: lowest <= value <= highest, wanted)

    return number


def _number(
    text: str, read: Callable[[str], _Number], fits: Callable[[_Number], bool], wanted: str
) -> _Number:
    try:
        value = read(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
    return value
