"""Time one training step of DFormer-Tiny: batch 2, 256x256, float32.

    python benchmarks/dformer_step.py [--steps 10] [--batch 2] [--size 256 256] [--profile]

Prints the median over the steps after the warm-up (three steps: Jittor compiles in the first two).
A step is forward pass, loss, backward pass, AdamW on all parameters and `jt.sync_all`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import segtasks  # noqa: F401  prepares the environment, so that the next line works anywhere

import jittor as jt  # isort: skip
import numpy as np

from segtasks.losses.segmentation import cross_entropy
from segtasks.models.dformer import dformer_tiny, parameter_groups

WARM_UP = 3


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--profile", action="store_true", help="list the most expensive kernels")
    arguments = parser.parse_args()
    step = training_step(arguments.batch, *arguments.size)
    times = [timed(step) for _ in range(WARM_UP + arguments.steps)][WARM_UP:]
    sys.stdout.write(f"median {statistics.median(times):.3f} s, fastest {min(times):.3f} s\n")
    if arguments.profile:
        with jt.profile_scope() as report:
            step()
        for name, _, count, total, *_ in report[1:31]:
            sys.stdout.write(f"{float(total) / 1e6:8.1f} ms {count:>4} calls  {name[:150]}\n")


def training_step(batch: int, height: int, width: int) -> Callable[[], None]:
    """A step on fixed random data."""
    rng = np.random.default_rng(0)
    image = jt.array(rng.standard_normal((batch, 3, height, width), dtype=np.float32))
    depth = jt.array(rng.standard_normal((batch, 3, height, width), dtype=np.float32))
    label = jt.array(rng.integers(0, 40, (batch, height, width), dtype=np.int32))
    model = dformer_tiny(40)
    model.train()
    optimizer = jt.optim.AdamW(parameter_groups(model, "all"), lr=1e-4)

    def step() -> None:
        optimizer.step(cross_entropy(model(image, depth), label))
        jt.sync_all(True)

    return step


def timed(step: Callable[[], None]) -> float:
    """Seconds one step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
