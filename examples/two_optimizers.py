"""Several optimizers: a generator against a discriminator, `python examples/two_optimizers.py`.

With `automatic_optimization = False` the training step says itself what is updated, and when.
"""
# ruff: noqa: D102 - the methods are described in jtlightning.Task

from __future__ import annotations

import tempfile

import jtlightning  # before jittor: it prepares the environment

import jittor as jt  # isort: skip
import numpy as np
from jittor import nn

from jtlightning.optim import AdamW, CosineSchedule


class GAN(jtlightning.Task):
    """Learns to draw points from a ring."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, points: jt.Var, batch_idx: int) -> None:
        generator, discriminator = self.optimizers()
        drawn = self.generator(jt.randn(points.shape))

        right = self.judge(points, is_real=1) + self.judge(drawn.detach(), is_real=0)
        self.manual_backward(right, discriminator)
        self.optimizer_step(discriminator)

        fooled = self.judge(drawn, is_real=1)
        # Fills the gradients of the generator only; the discriminator's weights stay.
        self.manual_backward(fooled, generator)
        self.optimizer_step(generator)
        self.log_dict({"train/discriminator": right, "train/generator": fooled}, prog_bar=True)

    def judge(self, points: jt.Var, is_real: int) -> jt.Var:
        """What it costs the discriminator to take points (B, 2) for real ones, or for drawn."""
        labels = jt.full((points.shape[0],), is_real, dtype="int32")
        return nn.cross_entropy_loss(self.discriminator(points), labels)

    def predict_step(self, noise: jt.Var, batch_idx: int) -> np.ndarray:
        return self.generator(noise).numpy()

    def configure_optimizers(self) -> list[object]:
        optimizer = AdamW(lr=0.005, betas=(0.5, 0.99))
        # One may have a schedule, the other not; each keeps its own count of updates.
        return [
            (optimizer.build([{"params": self.generator.parameters()}]), CosineSchedule()),
            optimizer.build([{"params": self.discriminator.parameters()}]),
        ]


def rings(count: int) -> list[np.ndarray]:
    """Batches of points (64, 2) at a distance of about 1 from (2, 2)."""
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, (count, 64)), rng.normal(1, 0.05, (count, 64))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2) + 2
    return list(points.astype(np.float32))


if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="gan-")
    trainer = jtlightning.Trainer(max_epochs=20, default_root_dir=folder, log_every_n_steps=10)
    task = GAN()
    trainer.fit(task, rings(50))
    noise = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    (drawn,) = trainer.predict(task, [noise])
    print(f"drawn around ({drawn[:, 0].mean():.2f}, {drawn[:, 1].mean():.2f}), real: (2, 2)")
