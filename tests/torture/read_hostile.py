"""Reads a file of weights in a process of its own and tells its outcome and peak memory as JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.weights import read_weights


def memory(field: str) -> int:
    """A field of the process's status, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def main(path: str) -> None:
    # ru_maxrss would start with the peak of the process that started this one.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before, start = memory("VmRSS"), time.monotonic()
    try:
        weights = read_weights(path)
        outcome = f"{len(weights)} tensors"
        for array in weights.values():
            array.max(initial=0)
    except CheckpointError as error:
        outcome = str(error)
    peak = memory("VmHWM") - before
    sys.stdout.write(
        json.dumps({"outcome": outcome, "peak": peak, "seconds": time.monotonic() - start})
    )


if __name__ == "__main__":
    main(sys.argv[1])
