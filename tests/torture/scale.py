"""How often a torture test repeats, and where its measured row goes."""

from __future__ import annotations

import json
import os
from pathlib import Path


def count(ci: int, full: int) -> int:
    """The number of repetitions: `full` where the environment says TORTURE=full, else `ci`."""
    return full if os.environ.get("TORTURE") == "full" else ci


def report(row: str, asked: str, measured: str) -> None:
    """Append a row of the table of docs/reliability.md to the file that TORTURE_REPORT names."""
    path = os.environ.get("TORTURE_REPORT")
    if path:
        line = json.dumps({"row": row, "asked": asked, "measured": measured})
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
