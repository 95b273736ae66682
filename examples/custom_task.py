"""A task of your own, told by arguments what to use.

From Python as below: `python examples/custom_task.py`. From YAML: custom.yaml names this class.
"""
# ruff: noqa: D102 - the methods are described in jtlightning.Task

from __future__ import annotations

import tempfile
from typing import Any

import jtlightning  # before jittor: it prepares the environment

import jittor as jt  # isort: skip
from jittor import nn

from jtlightning.optim import AdamW, CosineSchedule, OptimizerConfig, Schedule


class CircleTask(jtlightning.Task):
    """Tells the inside of a circle from the outside.

    Args:
        width: Hidden units.
        optimizer: AdamW at 0.02 unless given.
        schedule: Half a cosine unless given.
    """

    def __init__(
        self,
        width: int = 32,
        optimizer: OptimizerConfig | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
        self.optimizer = optimizer or AdamW(lr=0.02)
        self.schedule = schedule or CosineSchedule()

    def training_step(self, batch: tuple[jt.Var, jt.Var], batch_idx: int) -> jt.Var:
        points, labels = batch
        loss = nn.cross_entropy_loss(self.model(points), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[jt.Var, jt.Var], batch_idx: int) -> None:
        points, labels = batch
        index, _ = jt.argmax(self.model(points), dim=1)
        self.log("val/accuracy", (index == labels).float32().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return self.optimizer.build([{"params": self.model.parameters()}]), self.schedule


if __name__ == "__main__":
    from custom_data import CircleData
    from custom_logger import JSONLogger
    from custom_schedule import TriangleSchedule

    folder = tempfile.mkdtemp(prefix="task-")
    trainer = jtlightning.Trainer(max_epochs=10, default_root_dir=folder, logger=JSONLogger())
    task = CircleTask(schedule=TriangleSchedule(peak=0.3))  # after the trainer, which seeds
    trainer.fit(task, datamodule=CircleData())
    print(f"accuracy {trainer.metrics['val/accuracy']:.3f}; the run lies in {folder}")
