"""What the trainer adds to a step: a bare Jittor loop against three settings of `Trainer`.

Run: python benchmarks/overhead.py [--steps 2000] [--rounds 10]

The network is an MLP 32-64-64-10 with batches of 32, so that a step takes next to no time by
itself. All variants take turns within one run, as other work on the machine comes and goes; the
medians over the rounds are compared. The first steps of each turn are left out.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jtlightning import Task, Trainer, runtime

runtime.prepare()

import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402
from jittor import nn  # noqa: E402

SKIP = 20


class Batches:
    """The same few batches over and over; notes when each was asked for."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.batches = [
            (
                rng.normal(size=(32, 32)).astype(np.float32),
                rng.integers(0, 10, 32).astype(np.int32),
            )
            for _ in range(8)
        ]
        self.count = count
        self.times: list[float] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        self.times = []
        for index in range(self.count):
            self.times.append(time.perf_counter())
            yield self.batches[index % 8]

    def microseconds_per_step(self) -> float:
        """Mean over all but the first steps."""
        return 1e6 * (self.times[-1] - self.times[SKIP]) / (len(self.times) - 1 - SKIP)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


class MLPTask(Task):
    """The network with a cross entropy; `logs` says whether it logs its loss."""

    def __init__(self, logs: bool) -> None:
        super().__init__()
        self.model = network()
        self.logs = logs

    def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
        x, y = batch
        loss = nn.cross_entropy_loss(self.model(x), y)
        if self.logs:
            self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return jt.optim.AdamW(list(self.model.parameters()), lr=1e-3)


def bare(batches: Batches, root: Path) -> None:
    """What one writes without a trainer."""
    model = network()
    optimizer = jt.optim.AdamW(list(model.parameters()), lr=1e-3)
    for x, y in batches:
        loss = nn.cross_entropy_loss(model(jt.array(x)), jt.array(y))
        optimizer.step(loss)
        jt.sync_all()


def trained(logs: bool, **settings: Any) -> Any:
    def run(batches: Batches, root: Path) -> None:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=str(root),
            enable_model_summary=False,
            **settings,
        )
        trainer.fit(MLPTask(logs), batches)

    return run


VARIANTS = {
    "bare loop": bare,
    "barebones": trained(False, barebones=True),
    "default, nothing logged": trained(False),
    "default, one scalar": trained(True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="steps of each variant in all")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    jt.flags.use_cuda = 0
    per_round = options.steps // options.rounds
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds + 1):  # the first compiles and is dropped
        for name, variant in VARIANTS.items():
            batches = Batches(per_round + SKIP + 1)
            with tempfile.TemporaryDirectory() as folder:
                variant(batches, Path(folder))
            times[name].append(batches.microseconds_per_step())
    base = statistics.median(times["bare loop"][1:])
    print(f"{'variant':26} {'us per step':>12} {'over bare':>10} {'fastest':>9}")
    for name, values in times.items():
        middle = statistics.median(values[1:])
        differences = [v - b for v, b in zip(values[1:], times["bare loop"][1:], strict=True)]
        over = statistics.median(differences)
        print(f"{name:26} {middle:12.0f} {over:10.0f} {min(values[1:]):9.0f}")
    print(f"bare loop: {base:.0f} us; {options.steps} steps each in {options.rounds} rounds")


if __name__ == "__main__":
    main()
