"""The options that users write in their configurations, name, type and default."""

from __future__ import annotations

import inspect
from pathlib import Path

from jtlightning.trainer import Trainer

PINNED = Path(__file__).parent / "trainer_options.txt"


def test_trainer_options_are_the_pinned_ones() -> None:
    """A change here is a change for every user: it needs a line in CHANGELOG.md."""
    parameters = list(inspect.signature(Trainer).parameters.values())
    found = [f"{p.name}: {p.annotation} = {p.default!r}" for p in parameters]
    assert found == PINNED.read_text().splitlines()
