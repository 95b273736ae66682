"""One row of benchmarks/gpu.py, in a process of its own: prints a line of JSON.

    python benchmarks/gpu_step.py --model dformer_tiny --batch 8 --size 480x640 --precision 32

Trains on random data by the trainer, with and without the check for finite numbers, then asks the
network by DFormer's protocol for latency (batch 1), and counts what that costs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jtlightning import Callback, Trainer, runtime

runtime.prepare()

import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402

from segtasks.commands import benchmark_measure  # noqa: E402
from segtasks.data.samples import SegmentationBatch  # noqa: E402
from segtasks.models import dformer  # noqa: E402
from segtasks.tasks import SegmentationTask  # noqa: E402

#: Steps before the timed ones: the first three compile, on a GPU cuDNN tries its algorithms.
WARM_UP = 5
CLASSES = 40


class Clock(Callback):
    """The time from the end of the warm-up to the end of training, the device waited for."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.began_s = self.seconds = self.first_s = 0.0

    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.first_s = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        if trainer.global_step in (1, WARM_UP, WARM_UP + self.steps):
            jt.sync_all(True)
            now_s = time.perf_counter()
            if trainer.global_step == 1:
                self.first_s = now_s - self.first_s
            elif trainer.global_step == WARM_UP:
                self.began_s = now_s
            else:
                self.seconds = now_s - self.began_s


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    height, width = map(int, arguments.size.split("x"))
    logging.disable(logging.WARNING)
    shapes = [(1, 3, height, width)] * 2
    network = getattr(dformer, arguments.model)(num_classes=CLASSES)
    batches = random_batches(arguments.batch, height, width)
    benchmark_measure.forget_peak()
    checked = train(network, batches, arguments, barebones=False)
    peak = benchmark_measure.peak_mib()
    bare = train(network, batches, arguments, barebones=True)
    counts = benchmark_measure.count(network, shapes)
    speed = benchmark_measure.measure(
        network, shapes, batch=1, warm_up=arguments.warm_up, runs=arguments.runs
    )
    step_s = checked.seconds / arguments.steps
    row = {
        "model": arguments.model,
        "batch": arguments.batch,
        "size": arguments.size,
        "precision": arguments.precision,
        "tf32": os.environ.get("NVIDIA_TF32_OVERRIDE") != "0",
        "device": "cuda" if jt.flags.use_cuda else "cpu",
        "first_step_s": checked.first_s,
        "ms_per_step": 1000 * step_s,
        "samples_per_s": arguments.batch / step_s,
        "check_ms": 1000 * (step_s - bare.seconds / arguments.steps),
        "peak_mib": peak,
        # Forward and backward pass: three times the forward one; 2 FLOPs per multiply-accumulate.
        "tflop_per_s": 6e-12 * sum((counts.macs_layers, counts.macs_products))
        * arguments.batch / step_s,
        "latency_ms": speed.percentile(50),
        "latency_p95_ms": speed.percentile(95),
    }  # fmt: skip
    sys.stdout.write(json.dumps(row) + "\n")


def train(network: Any, batches: Any, arguments: argparse.Namespace, **more: Any) -> Clock:
    clock = Clock(arguments.steps)
    precision = arguments.precision
    Trainer(
        accelerator=arguments.device,
        precision=int(precision) if precision == "32" else precision,
        max_steps=WARM_UP + arguments.steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    ).fit(SegmentationTask(network), batches)
    return clock


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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dformer_tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", choices=("32", "16-mixed", "bf16-mixed"), default="32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--runs", type=int, default=300)
    return parser.parse_args()


if __name__ == "__main__":
    main()
