"""A schedule of your own: a closed form of the step, so that there is nothing to save."""

from __future__ import annotations

from dataclasses import dataclass

import jtlightning  # noqa: F401 - before jittor, which the next import brings
from jtlightning.optim import Schedule


@dataclass(frozen=True)
class TriangleSchedule(Schedule):
    """Straight up from 0 to 1, then straight down to 0.

    Args:
        peak: Where the 1 is, as a part of the run, above 0 and below 1.
    """

    peak: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what has no meaning, before anything is trained."""
        if not 0 < self.peak < 1:
            raise ValueError(f"peak is {self.peak}; it must be above 0 and below 1")

    def __call__(self, step: int, total_steps: int) -> float:
        """Factor for update number `step`, from 0."""
        done = (step + 1) / (total_steps + 1)
        return done / self.peak if done < self.peak else (1 - done) / (1 - self.peak)
