"""A few hundred steps with everything switched on keep neither operations nor Vars."""

from __future__ import annotations

from pathlib import Path

from benchmarks.memory import train


def test_nothing_accumulates_over_hundreds_of_steps(tmp_path: Path) -> None:
    growth = train(tmp_path, 300)
    assert len(growth.mib) == 300
    assert growth.ratio(growth.operations) <= 1.05
    assert growth.ratio(growth.variables) <= 1.05
    assert growth.variables[-1] < 100  # some twenty parameters and statistics, moments, averages
