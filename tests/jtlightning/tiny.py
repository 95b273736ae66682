"""The smallest task with everything that must survive a restart, shared so that kernels are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from jtlightning.data.datamodule import DataModule
from jtlightning.data.loader import Loader
from jtlightning.optim import AdamW, PolySchedule
from jtlightning.task import Task


@dataclass(frozen=True)
class PointBatch:
    x: np.ndarray
    y: np.ndarray


class Points:
    """Sixteen-dimensional points of three clusters."""

    def __init__(self, count: int = 24) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(index)
        label = index % 3
        return (rng.normal(size=16) + 2 * label).astype(np.float32), label


def jitter(sample: tuple[np.ndarray, int], rng: np.random.Generator) -> tuple[np.ndarray, int]:
    x, y = sample
    return x + rng.normal(scale=0.1, size=x.shape).astype(np.float32), y


def collate(samples: list[tuple[np.ndarray, int]]) -> PointBatch:
    return PointBatch(
        np.stack([s[0] for s in samples]), np.array([s[1] for s in samples], np.int32)
    )


class TinyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, 8)
        self.bn = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(8, 3)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.fc2(self.drop(nn.relu(self.bn(self.fc1(x)))))


class TinyTask(Task):
    """Batch norm, dropout, AdamW with two groups, a schedule; `losses` holds what was trained."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.model = TinyNet()
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
        loss = nn.cross_entropy_loss(self.model(batch.x), batch.y)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.model(batch.x)
        self.log("val/loss", nn.cross_entropy_loss(logits, batch.y))

    def predict_step(self, batch: Any, batch_idx: int) -> np.ndarray:
        return self.model(batch.x).numpy()

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.model.parameters() if not p.is_stop_grad()]
        groups = [
            {"name": "decay", "params": [p for p in parameters if p.ndim > 1]},
            {
                "name": "no_decay",
                "params": [p for p in parameters if p.ndim <= 1],
                "weight_decay": 0.0,
            },
        ]
        return AdamW(lr=self.lr).build(groups), PolySchedule(warmup_steps=2)


class TinyData(DataModule):
    def __init__(self, batch_size: int = 4, train: int = 24, val: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train, self.val = Points(train), Points(val)

    def train_dataloader(self) -> Loader:
        return Loader(self.train, self.batch_size, collate=collate, transform=jitter, shuffle=True)

    def val_dataloader(self) -> Loader:
        return Loader(self.val, self.batch_size, collate=collate)

    test_dataloader = predict_dataloader = val_dataloader


def parameters_of(task: Task) -> dict[str, np.ndarray]:
    return {name: p.numpy() for name, p in task.named_parameters()}
