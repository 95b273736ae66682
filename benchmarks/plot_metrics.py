"""Draw columns of runs' metrics.csv over the step: python benchmarks/plot_metrics.py --help."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--metric", default="train/loss_step", help="a column of metrics.csv")
    parser.add_argument("--labels", nargs="+", help="one per run; default: its experiment")
    parser.add_argument("--out", type=Path, required=True, help="a picture, .png or .svg")
    arguments = parser.parse_args()
    labels = arguments.labels or [run.resolve().parent.name for run in arguments.runs]
    mpl.use("agg")
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for run, label in zip(arguments.runs, labels, strict=True):
        steps, values = read(run / "metrics.csv", arguments.metric)
        axes.plot(steps, values, marker=".", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel(arguments.metric)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=120)


def read(path: Path, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows that have the metric."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or metric not in rows[0]:
        known = ", ".join(rows[0]) if rows else "none"
        raise SystemExit(f"{path} has no column {metric!r}; it has: {known}")
    found = [(int(row["step"]), float(row[metric])) for row in rows if row[metric]]
    return [step for step, _ in found], [value for _, value in found]


if __name__ == "__main__":
    main()
