"""One comparison of an audit, whatever the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: the stage or quantity.
        error: largest absolute error.
        relative: the same over the reference's spread.
        limit: largest error allowed; 0 where equality is required.
        note: what was compared.
    """

    name: str
    error: float
    relative: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


def exact(name: str, error: float, note: str) -> Check:
    """A check that allows no difference."""
    return Check(name, float(error), float(error), 0.0, note)


def relative(name: str, value: float, expected: float, limit: float) -> Check:
    """A check of one number, relative to the expected one."""
    error = abs(value - expected)
    note = f"{value:.6f}, recorded {expected:.6f}"
    return Check(name, error, error / max(abs(expected), 1e-12), limit * abs(expected), note)
