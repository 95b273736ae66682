"""One row of benchmarks/gpu.py: how long training waits for batches that come from files.

    python benchmarks/gpu_data.py --model dformer_tiny --batch 8 --size 480x640 --workers 8

Rooms are rendered into the folder `build` for this row and later ones, and trained on through the
data module's worker processes, in one epoch that is long enough: each scene comes several times,
differently cut.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import gpu_step  # beside this file; brings Jittor
import jittor as jt

from segtasks.data import RGBDDataModule
from segtasks.data.rooms import CLASS_NAMES, write_rooms
from segtasks.models import dformer

SPLIT = "long.txt"
FOLDER = Path(__file__).resolve().parents[1] / "build" / "gpu-rooms"


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    logging.disable(logging.WARNING)
    network = getattr(dformer, arguments.model)(num_classes=len(CLASS_NAMES))
    clock = gpu_step.train(network, rooms(arguments), arguments)
    row = {
        "device": "cuda" if jt.flags.use_cuda else "cpu",
        "workers": arguments.workers,
        "steps": arguments.steps,
        "ms_per_step": 1000 * clock.seconds / arguments.steps,
        "samples_per_s": arguments.batch * arguments.steps / clock.seconds,
        "wait_percent": 100 * clock.waited_s / clock.seconds,
    }
    sys.stdout.write(json.dumps(row) + "\n")


def rooms(arguments: argparse.Namespace) -> RGBDDataModule:
    """Scenes on disk, as many lines of them as the steps need."""
    height, width = map(int, arguments.size.split("x"))
    root = FOLDER / f"{arguments.scenes}-{arguments.size}"
    write_rooms(root, train=arguments.scenes, val=1, size=(height, width))
    lines = (root / "train.txt").read_text(encoding="utf-8").splitlines()
    wanted = (gpu_step.WARM_UP + arguments.steps) * arguments.batch
    times = -(-wanted // len(lines))
    (root / SPLIT).write_text("\n".join(lines * times) + "\n", encoding="utf-8")
    return RGBDDataModule(
        str(root),
        len(CLASS_NAMES),
        crop_size=(height, width),
        batch_size=arguments.batch,
        num_workers=arguments.workers,
        train_split=SPLIT,
        check_files=False,
    )


def parse() -> argparse.Namespace:
    parser = gpu_step.options(__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=48)
    return parser.parse_args()


if __name__ == "__main__":
    main()
