"""One row of benchmarks/gpu.py, in a process of its own: prints a line of JSON.

    python benchmarks/gpu_step.py --model dformer_tiny --batch 8 --size 480x640 --precision 32

Trains on random data by the trainer, with and without the check for finite numbers in turns, then
asks the network by DFormer's protocol for latency (batch 1), and counts what that costs.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jtlightning import Callback, Trainer, runtime
from jtlightning.precision import mixed_precision

runtime.prepare()

import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402

from jtlightning.data.datamodule import DataModule  # noqa: E402
from segtasks.commands import benchmark_measure  # noqa: E402
from segtasks.data.samples import SegmentationBatch  # noqa: E402
from segtasks.models import dformer  # noqa: E402
from segtasks.tasks import SegmentationTask  # noqa: E402

#: Steps before the timed ones: the first three compile, on a GPU cuDNN tries its algorithms.
WARM_UP = 5
#: The same where an earlier training of the process has compiled.
WARM_AGAIN = 2
#: Turns of training with the check for finite numbers and without it.
ROUNDS = 5
CLASSES = 40


class Clock(Callback):
    """The time from the end of the warm-up to the end of training, the device waited for.

    Args:
        steps: Timed ones.
        warm_up: Steps before them.
    """

    def __init__(self, steps: int, warm_up: int = WARM_UP) -> None:
        self.steps, self.warm_up = steps, warm_up
        self.began_s = self.seconds = self.first_s = self.read_s = 0.0
        self.waited_s = 0.0  # for batches, in the timed steps

    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.first_s = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, *_: Any) -> None:
        if trainer.global_step not in (1, self.warm_up, self.warm_up + self.steps):
            return
        jt.sync_all(True)
        now_s = time.perf_counter()
        if trainer.global_step == 1:
            self.first_s = now_s - self.first_s
        elif trainer.global_step > self.warm_up:
            self.seconds = now_s - self.began_s
            self.waited_s = trainer.data_wait_s - self.waited_s
        if trainer.global_step == self.warm_up:
            # All is computed: what is left is one number's way to the host.
            outputs.item()
            self.began_s = time.perf_counter()
            self.read_s, self.waited_s = self.began_s - now_s, trainer.data_wait_s


@dataclass
class Turns:
    """Trainings with the check and without it, in pairs.

    Attributes:
        checked: Milliseconds per step with the check, by round.
        differences: What they are above those without it, by round.
        reads_us: Microseconds of reading one number that is there already.
        first_s: Of the first step of all, compiling included.
        peak_mib: Memory behind the first training.
    """

    checked: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    reads_us: list[float] = field(default_factory=list)
    first_s: float = 0.0
    peak_mib: float | None = None

    @property
    def rounds(self) -> int:
        """Pairs that were run."""
        return len(self.checked)


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    height, width = map(int, arguments.size.split("x"))
    logging.disable(logging.WARNING)
    network = getattr(dformer, arguments.model)(num_classes=CLASSES)
    turns = alternate(network, random_batches(arguments.batch, height, width), arguments)
    step_s = statistics.mean(turns.checked) / 1000
    counts = benchmark_measure.count(network, [(1, 3, height, width)] * 2)
    row = {
        "device": "cuda" if jt.flags.use_cuda else "cpu",
        "parameters": counts.trainable,
        "steps": arguments.steps // turns.rounds * turns.rounds,
        "first_step_s": turns.first_s,
        "ms_per_step": 1000 * step_s,
        "samples_per_s": arguments.batch / step_s,
        "check_ms": turns.differences,
        "read_us": statistics.median(turns.reads_us),
        "peak_mib": turns.peak_mib,
        # Forward and backward pass: three times the forward one; 2 FLOPs per multiply-accumulate.
        "tflop_per_s": 6e-12 * sum((counts.macs_layers, counts.macs_products))
        * arguments.batch / step_s,
        **latency(network, arguments),
    }  # fmt: skip
    sys.stdout.write(json.dumps(row) + "\n")


def alternate(network: Any, batches: Any, arguments: argparse.Namespace) -> Turns:
    """Train with the check and without it in turns, so that both meet the same machine.

    The check costs more than its read: the norm of the gradients, and a wait in which the next
    kernels are not yet in the queue. Only whole steps show that, and only in pairs close to each
    other, whose differences tell the noise as well.
    """
    rounds = min(ROUNDS, arguments.steps)
    steps = arguments.steps // rounds
    turns = Turns()
    benchmark_measure.forget_peak()
    for turn in range(rounds):
        warm_up = WARM_AGAIN if turn else WARM_UP
        checked = train(network, batches, arguments, Clock(steps, warm_up))
        if turn == 0:
            turns.first_s, turns.peak_mib = checked.first_s, benchmark_measure.peak_mib()
        bare = train(network, batches, arguments, Clock(steps, warm_up), barebones=True)
        turns.checked.append(1000 * checked.seconds / steps)
        turns.differences.append(1000 * (checked.seconds - bare.seconds) / steps)
        turns.reads_us += [1e6 * checked.read_s, 1e6 * bare.read_s]
    return turns


def train(
    network: Any,
    batches: Any,
    arguments: argparse.Namespace,
    clock: Clock | None = None,
    **more: Any,
) -> Clock:
    """Train for the steps of `clock`; `batches`: a loader, or a data module."""
    clock = clock or Clock(arguments.steps)
    source = "datamodule" if isinstance(batches, DataModule) else "train_dataloaders"
    Trainer(
        accelerator=arguments.device,
        precision=precision_of(arguments),
        max_steps=clock.warm_up + clock.steps,
        callbacks=[clock],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    ).fit(SegmentationTask(network), **{source: batches})
    return clock


def precision_of(arguments: argparse.Namespace) -> Any:
    """As the trainer takes it."""
    return 32 if arguments.precision == "32" else arguments.precision


def latency(network: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of one image; nothing where no passes are asked for."""
    if not arguments.runs:
        return {}
    height, width = map(int, arguments.size.split("x"))
    with mixed_precision(network, precision_of(arguments)):
        speed = benchmark_measure.measure(
            network,
            [(1, 3, height, width)] * 2,
            batch=1,
            warm_up=arguments.warm_up,
            runs=arguments.runs,
        )
    return {"latency_ms": speed.percentile(50), "latency_p95_ms": speed.percentile(95)}


def random_batches(batch: int, height: int, width: int) -> list[SegmentationBatch]:
    """Two different ones, so that nothing can be kept from step to step."""
    rng = np.random.default_rng(0)
    names = [str(index) for index in range(batch)]
    return [
        SegmentationBatch(
            *(rng.standard_normal((batch, 3, height, width), dtype=np.float32) for _ in range(2)),
            rng.integers(0, CLASSES, (batch, height, width), dtype=np.int32),
            names,
        )
        for _ in range(2)
    ]


def options(description: str) -> argparse.ArgumentParser:
    """What every script of a row takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default="dformer_tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="480x640", help="HEIGHTxWIDTH")
    parser.add_argument("--steps", type=int, default=50, help="timed ones")
    parser.add_argument("--precision", choices=("32", "16-mixed", "bf16-mixed"), default="32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--warm-up", type=int, default=100, help="passes before those of latency")
    parser.add_argument("--runs", type=int, default=300, help="passes of latency; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
