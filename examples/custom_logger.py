"""A logger of your own: one JSON object a line, for whatever reads that."""
# ruff: noqa: D102 - the methods are described in jtlightning.Logger

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jtlightning
from jtlightning.run_directory import RunDirectory

log = logging.getLogger(__name__)


class JSONLogger(jtlightning.Logger):
    """Write scalars to a file in the run's folder.

    What belongs to one step may come in several calls, and a continued run may repeat those of
    its first step; a reader merges the lines of a step, the last value counts.

    Args:
        name: Of the file.
    """

    def __init__(self, name: str = "metrics.jsonl") -> None:
        self.name = name
        self.path: Path | None = None  # None: not started, or given up

    def start(self, run: RunDirectory, *, resumed_step: int | None) -> None:
        self.path = run.path / self.name
        if resumed_step is None or not self.path.exists():
            return
        # A killed run may have written steps that are about to be done again.
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        kept = [row for row in rows if row["step"] <= resumed_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def log_metrics(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        self._append({"step": step, "epoch": epoch, **metrics})

    def _append(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:  # a logger never ends a run: say so once, then stay silent
            log.warning("no more metrics in %s: %s", self.path, error)
            self.path = None
