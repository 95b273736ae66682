"""A folder of small pictures with one or several that go wrong, each in its own way."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segtasks.data.images import read_grey

#: What is wrong with a file, and what happens while a sample is loaded.
FILES = ("missing", "unreadable", "truncated", "shape")
ACCIDENTS = ("exception", "killed", "hung")
COUNT, BATCH = 24, 4


@dataclass(frozen=True)
class PointBatch:
    """As in the tiny task, whose module imports Jittor."""

    x: np.ndarray
    y: np.ndarray


class Pictures:
    """Sample i is the picture `i.jpg`, 16 numbers, and its class.

    Args:
        folder: Where the pictures are.
        accidents: Index -> what happens there.
        marked: The file `began` is written when the first of these is loaded, with the time.
    """

    def __init__(self, folder: Path, accidents: dict[int, str], marked: list[int]) -> None:
        self.folder, self.accidents, self.marked = folder, accidents, marked

    def __len__(self) -> int:
        return COUNT

    def describe(self, index: int) -> str:
        return str(self.folder / f"{index}.jpg")

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        began = self.folder / "began"
        if index in self.marked and not began.exists():
            began.write_text(repr(time.time()))
        accident = self.accidents.get(index)
        if accident == "exception":
            raise RuntimeError("an accident in __getitem__")
        if accident == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if accident == "hung":
            threading.Event().wait()
        return read_grey(self.folder / f"{index}.jpg").ravel() / np.float32(255), index % 3


def jitter(
    sample: tuple[np.ndarray, int], generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    x, y = sample
    return x + generator.normal(scale=0.1, size=x.shape).astype(np.float32), y


def collate(samples: list[tuple[np.ndarray, int]]) -> PointBatch:
    return PointBatch(
        np.stack([s[0] for s in samples]), np.array([s[1] for s in samples], np.int32)
    )


def make_pictures(folder: Path, wrong: dict[int, str]) -> None:
    """Write the pictures, and damage the files that `wrong` says."""
    import cv2

    rng = np.random.default_rng(0)
    for index in range(COUNT):
        width = 5 if wrong.get(index) == "shape" else 4
        file = folder / f"{index}.jpg"
        cv2.imwrite(str(file), rng.integers(0, 255, (4, width), np.uint8))
        data = file.read_bytes()
        if wrong.get(index) == "missing":
            file.unlink()
        if wrong.get(index) == "unreadable":
            file.write_bytes(rng.bytes(len(data)))
        if wrong.get(index) == "truncated":
            file.write_bytes(data[: len(data) * 2 // 3])
