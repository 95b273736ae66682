"""The whole idea, a task, some data, a trainer: `python examples/train_from_scratch.py`."""
# ruff: noqa: D102 - the methods are described in jtlightning.Task

from __future__ import annotations

import tempfile

import jtlightning  # before jittor: it prepares the environment

import jittor as jt  # isort: skip
import numpy as np
from jittor import nn

from jtlightning.optim import AdamW, CosineSchedule


class Classifier(jtlightning.Task):
    """Tells the inside of a circle from the outside."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch: tuple[jt.Var, jt.Var], batch_idx: int) -> jt.Var:
        points, labels = batch
        loss = nn.cross_entropy_loss(self.model(points), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[jt.Var, jt.Var], batch_idx: int) -> None:
        points, labels = batch
        index, _ = jt.argmax(self.model(points), dim=1)
        self.log("val/accuracy", (index == labels).float32().mean(), prog_bar=True)

    def configure_optimizers(self) -> tuple[jt.optim.Optimizer, CosineSchedule]:
        groups = [{"params": self.model.parameters()}]
        return AdamW(lr=0.02).build(groups), CosineSchedule()


def batches(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points in a square, labelled by whether they lie within a circle."""
    points = np.random.default_rng(seed).uniform(-1, 1, (count, 64, 2)).astype(np.float32)
    labels = ((points**2).sum(2) < 0.5).astype(np.int32)
    return list(zip(points, labels, strict=True))


if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="circle-")
    trainer = jtlightning.Trainer(max_epochs=10, default_root_dir=folder)
    trainer.fit(Classifier(), batches(50, seed=0), batches(10, seed=1))
    print(f"accuracy {trainer.metrics['val/accuracy']:.3f}; the run lies in {folder}")
