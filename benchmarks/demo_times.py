"""Print where the time of `make demo` went: installing, compiling, training, evaluating.

    python benchmarks/demo_times.py INSTALL_SECONDS EXPERIMENT

Reads the newest `times.json` of each command in the runs of EXPERIMENT, such as runs/demo.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(install: str, experiment: str) -> None:
    """Print the line."""
    newest = {}
    for path in sorted(Path(experiment).glob("*/times.json"), key=lambda p: p.stat().st_mtime):
        times = json.loads(path.read_text())
        newest[times["command"]] = times
    compiling = sum(times["compiling"] for times in newest.values())
    apart = {name: times["seconds"] - times["compiling"] for name, times in newest.items()}
    sys.stdout.write(
        f"seconds: install {install.strip()}, compile {compiling:.0f}, "
        f"train {apart['fit']:.0f}, evaluate {apart['test']:.0f}\n"
        f"runs, checkpoints, results and pictures: {Path(experiment).resolve()}\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
