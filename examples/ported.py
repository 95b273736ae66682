"""The port of a Lightning script; docs/porting.md shows both. `python examples/ported.py`."""
# ruff: noqa: D101, D102, D103 - as in the script that it was

from __future__ import annotations

import tempfile

import jtlightning as L  # before jittor

import numpy as np  # isort: skip
import jittor as jt
from jittor import nn

from jtlightning.callbacks import EMA, LearningRateMonitor, ModelCheckpoint
from jtlightning.loggers import CSVLogger
from jtlightning.optim import AdamW, CosineSchedule, trainable


class Classifier(L.Task):
    def __init__(self, width: int = 32, lr: float = 0.02):
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))

    def training_step(self, batch, batch_idx):
        points, labels = batch
        loss = nn.cross_entropy_loss(self.model(points), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        points, labels = batch
        index, _ = jt.argmax(self.model(points), dim=1)
        accuracy = (index == labels).float32().mean()
        self.log("val/accuracy", accuracy, prog_bar=True)

    def configure_optimizers(self):
        groups = [{"params": trainable(self.parameters())}]
        schedule = CosineSchedule(warmup_steps=20)
        return AdamW(lr=self.lr).build(groups), schedule


class Points:
    def __init__(self, count: int, seed: int):
        rng = np.random.default_rng(seed)
        self.points = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
        self.labels = ((self.points**2).sum(1) < 0.5).astype(np.int32)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.points[index], self.labels[index]


def stack(samples):
    points, labels = zip(*samples, strict=True)
    return np.stack(points), np.stack(labels)


if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="ported-")
    trainer = L.Trainer(
        max_epochs=10,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        default_root_dir=folder,
        logger=CSVLogger(),
        callbacks=[
            EMA(decay=0.99),
            ModelCheckpoint(monitor="val/accuracy", mode="max", save_top_k=2),
            LearningRateMonitor(),
        ],
        seed=42,
    )
    train = L.Loader(Points(3200, seed=0), 64, collate=stack, shuffle=True)
    val = L.Loader(Points(640, seed=1), 64, collate=stack)
    task = Classifier()
    trainer.fit(task, train, val)
    trainer.validate(task, val, ckpt_path="best")
    print(f"accuracy of the best checkpoint {trainer.metrics['val/accuracy']:.4f}")
