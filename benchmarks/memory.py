"""Whether memory or the graph grows over thousands of steps of a run with everything switched on.

Run: python benchmarks/memory.py [--steps 5000]

A small network with batch norm and dropout, four micro-batches per step, metrics logged in every
step, averaged weights, checkpoints, and a validation every tenth of the run. Two figures are
printed: the largest number of operations alive at a step boundary against that of step 50, and the
slope of resident memory, by least squares over the steps after the first fifth.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jtlightning import Callback, Loader, Task, Trainer, runtime

runtime.prepare()

import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402
from jittor import nn  # noqa: E402

from jtlightning.callbacks import EMA, MemoryGuard, ModelCheckpoint  # noqa: E402
from jtlightning.callbacks.memory_guard import host_mib  # noqa: E402
from jtlightning.optim import AdamW, PolySchedule, trainable  # noqa: E402

WINDOW = 4  # micro-batches of a step
REFERENCE_STEP = 50


class Points:
    """Sixteen-dimensional points of three clusters, moved a little at every visit."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full(16, 2.0 * (index % 3), np.float32), index % 3


def jitter(sample: tuple[np.ndarray, int], rng: np.random.Generator) -> tuple[np.ndarray, int]:
    return sample[0] + rng.normal(size=16).astype(np.float32), sample[1]


def stack(samples: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([s[0] for s in samples]), np.array([s[1] for s in samples], np.int32)


class Small(Task):
    """Two linear layers with batch norm and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn = nn.Linear(16, 8), nn.BatchNorm1d(8)
        self.drop, self.fc2 = nn.Dropout(0.2), nn.Linear(8, 3)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.fc2(self.drop(nn.relu(self.bn(self.fc1(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
        logits = self(batch[0])
        loss = nn.cross_entropy_loss(logits, batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/logits", logits.mean(), on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.cross_entropy_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        groups = [{"params": trainable(self.parameters())}]
        return AdamW(lr=0.01).build(groups), PolySchedule(warmup_steps=2)


@dataclass
class Growth(Callback):
    """What is alive at every step boundary, and how much memory is resident."""

    operations: list[int] = field(default_factory=list)
    variables: list[int] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.at_step_boundary:
            info = jt.liveness_info()
            self.operations.append(info["lived_ops"])
            self.variables.append(info["lived_vars"])
            self.mib.append(host_mib())

    def ratio(self, numbers: list[int]) -> float:
        """The largest number from step 50 on against that of step 50."""
        reference, largest = numbers[REFERENCE_STEP - 1], max(numbers[REFERENCE_STEP - 1 :])
        return largest / reference if reference else 1.0 + largest

    def slope(self) -> float:
        """MiB per 1,000 steps, by least squares over the steps after the first fifth."""
        mib = np.array(self.mib[len(self.mib) // 5 :])
        return float(1000 * np.polyfit(np.arange(len(mib)), mib, 1)[0])


def train(folder: Path, steps: int) -> Growth:
    """Train for so many steps (at least 60) and return what was seen."""
    growth = Growth()
    validate_every = max(steps // 10, 1) * WINDOW
    batches = min(2 * validate_every, steps * WINDOW)  # of an epoch, so that several are ended
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        max_steps=steps,
        accumulate_grad_batches=WINDOW,
        val_check_interval=validate_every,
        log_every_n_steps=1,
        callbacks=[EMA(0.99), MemoryGuard(), growth, ModelCheckpoint(monitor="val/loss")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Small(),
        Loader(Points(4 * batches), 4, collate=stack, transform=jitter, shuffle=True),
        Loader(Points(8), 4, collate=stack),
    )
    return growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        growth = train(Path(folder), arguments.steps)
    first, last = REFERENCE_STEP - 1, len(growth.mib)
    print(f"{last} steps of {WINDOW} micro-batches")
    for what, numbers in (("operations", growth.operations), ("Vars", growth.variables)):
        asked = " (asked: 1.05)" if what == "operations" else ""
        print(
            f"live {what}: {numbers[first]} at step {REFERENCE_STEP}, later at most "
            f"{max(numbers[first:])}, {growth.ratio(numbers):.3f} times{asked}"
        )
    print(f"resident memory: {growth.mib[first]:.1f} MiB at step {REFERENCE_STEP}, ", end="")
    print(f"{growth.mib[-1]:.1f} MiB at step {last}")
    print(f"slope: {growth.slope():.3f} MiB per 1,000 steps (asked: 1)")


if __name__ == "__main__":
    main()
