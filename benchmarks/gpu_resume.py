"""One row of benchmarks/gpu.py: whether a training that is resumed ends where another does.

    python benchmarks/gpu_resume.py --model dformer_tiny --batch 2 --size 64x64 --deterministic 1

Four trainings, each in a process of its own: straight through, the same once more (what differs
there is not resuming's doing), half of it with a checkpoint, and the rest from that.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("straight", "again", "half", "rest")


def main() -> None:
    """Start the parts and compare, or be one."""
    arguments, given = parse()
    if arguments.part:
        train(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        ends = {}
        for part in PARTS:
            command = [sys.executable, __file__, *given, f"--part={part}", f"--folder={folder}"]
            code = subprocess.run(command, check=False).returncode
            if code:
                sys.exit(code if code > 0 else 128 - code)
            with np.load(Path(folder) / f"{part}.npz") as archive:
                ends[part] = dict(archive)
    assert drift(ends["half"], ends["rest"]) > 0, "the first half went on to the end"
    row = {
        "steps": arguments.steps,
        "repeated": drift(ends["straight"], ends["again"]),
        "resumed": drift(ends["straight"], ends["rest"]),
    }
    sys.stdout.write(json.dumps(row) + "\n")


def drift(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Largest difference of a tensor over its largest value; 0: every bit is equal."""
    if all(np.array_equal(one[name], other[name]) for name in one):
        return 0.0
    return max(
        float(np.abs(one[name] - other[name]).max() / max(float(np.abs(one[name]).max()), 1e-30))
        for name in one
    )


def train(arguments: argparse.Namespace) -> None:
    """One part; writes its final weights and statistics."""
    import gpu_step  # beside this file; brings Jittor, which the comparing process does not need

    from jtlightning import Callback, Trainer
    from segtasks.models import dformer
    from segtasks.tasks import SegmentationTask

    class Stop(Callback):
        """Ends a training half way."""

        def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
            trainer.should_stop |= trainer.global_step == arguments.steps // 2

    logging.disable(logging.WARNING)
    parted = arguments.part in ("half", "rest")
    height, width = map(int, arguments.size.split("x"))
    trainer = Trainer(
        accelerator=arguments.device,
        precision=gpu_step.precision_of(arguments),
        deterministic=bool(arguments.deterministic),
        max_steps=arguments.steps,
        callbacks=[Stop()] if arguments.part == "half" else [],
        logger=False,
        enable_checkpointing=parted,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(Path(arguments.folder) / "runs"),
    )
    # Behind the trainer, which has set the seed.
    network = getattr(dformer, arguments.model)(num_classes=gpu_step.CLASSES)
    batches = gpu_step.random_batches(arguments.batch, height, width)
    trainer.fit(
        SegmentationTask(network),
        batches * arguments.steps,
        ckpt_path="last" if arguments.part == "rest" else None,
    )
    tensors = {name: value.numpy() for name, value in network.named_parameters()}
    np.savez(Path(arguments.folder) / f"{arguments.part}.npz", **tensors)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The options, and those to hand on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dformer_tiny")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=("32", "16-mixed", "bf16-mixed"), default="32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--deterministic", type=int, choices=(0, 1), default=1)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(), sys.argv[1:]


if __name__ == "__main__":
    main()
