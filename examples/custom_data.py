"""Data of your own: a data set, an augmentation and the module that hands them to the trainer.

Nothing here imports Jittor, so that the loader's worker processes stay light.
"""
# ruff: noqa: D102 - the methods are described in jtlightning.DataModule

from __future__ import annotations

import numpy as np

from jtlightning import DataModule, Loader

Sample = tuple[np.ndarray, int]


class Circle:
    """Points in a square, labelled by whether they lie within a circle.

    A data set is anything with a length and `[index]`; it reads a sample when asked for it.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        point = np.random.default_rng((self.seed, index)).uniform(-1, 1, 2).astype(np.float32)
        return point, int((point**2).sum() < 0.5)


def turn(sample: Sample, generator: np.random.Generator) -> Sample:
    """Rotate by a random angle, drawn from the generator of (seed, epoch, index)."""
    (x, y), label = sample
    sin, cos = np.sin(angle := generator.uniform(0, 2 * np.pi)), np.cos(angle)
    return np.array([cos * x - sin * y, sin * x + cos * y], np.float32), label


def stack(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Make a batch: points (B, 2), labels (B,)."""
    points, labels = zip(*samples, strict=True)
    return np.stack(points), np.array(labels, np.int32)


class CircleData(DataModule):
    """Points for training and for validation.

    Args:
        size: Points for training; a fifth of it is for validation.
        batch_size: Points in a batch.
        num_workers: Processes that load; 0 for none.
    """

    def __init__(self, size: int = 3200, batch_size: int = 64, num_workers: int = 0) -> None:
        self.size, self.batch_size, self.num_workers = size, batch_size, num_workers

    def setup(self, stage: str) -> None:
        if self.size < 5 * self.batch_size:
            raise ValueError(f"size is {self.size}; validation needs {5 * self.batch_size}")
        self.train, self.val = Circle(self.size, seed=0), Circle(self.size // 5, seed=1)

    def train_dataloader(self) -> Loader:
        return Loader(
            self.train,
            self.batch_size,
            collate=stack,
            transform=turn,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> Loader:
        return Loader(self.val, self.batch_size, collate=stack, num_workers=self.num_workers)

    test_dataloader = val_dataloader
