"""Datasets that worker processes can import."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Sample:
    image: np.ndarray
    name: str


@dataclass
class Batch:
    image: np.ndarray
    names: list[str]


def collate(samples: list[Sample]) -> Batch:
    return Batch(np.stack([s.image for s in samples]), [s.name for s in samples])


def collate_never(samples: list[Sample]) -> Batch:
    raise TypeError(f"a slip that {len(samples)} samples cannot help")


def collate_few(samples: list[Sample]) -> Batch:
    if len(samples) > 2:
        raise ValueError("too many for this")
    return collate(samples)


def add_noise(sample: Sample, generator: np.random.Generator) -> Sample:
    noise = generator.standard_normal(sample.image.shape, dtype=np.float32)
    return Sample(sample.image + noise, sample.name)


class Images:
    """Sample i is an image full of i; `mischief` maps an index to something that goes wrong."""

    def __init__(self, length: int, mischief: dict[int, str] | None = None, size: int = 4) -> None:
        self.length = length
        self.mischief = mischief or {}
        self.size = size

    def __len__(self) -> int:
        return self.length

    def describe(self, index: int) -> str:
        return f"folder/{index}.png"

    def __getitem__(self, index: int) -> Sample | None:
        kind = self.mischief.get(index)
        if kind == "raise":
            raise OSError("broken image")
        if kind == "memory":
            raise MemoryError
        if kind == "nothing":
            return None
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "leave":
            os._exit(3)
        if kind == "fork" and not os.fork():  # a child that holds on to all that we have open
            signal.alarm(20)
            threading.Event().wait()
        if kind == "hang":
            threading.Event().wait()
        if kind is not None and kind.startswith("/"):  # leave a trace in this folder
            (Path(kind) / f"{index}").touch()
        width = {"shape": self.size + 1, "grow": 40 + index // 2 * 64}.get(kind or "", self.size)
        return Sample(np.full((3, self.size, width), index, np.float32), str(index))


def collate_endlessly(samples: list[Sample]) -> Batch:
    threading.Event().wait()
    return collate(samples)


class HangsInWorkers(Images):
    """Never arrives in another process."""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "home": os.getpid()}

    def __setstate__(self, state: dict[str, object]) -> None:
        if state["home"] != os.getpid():
            threading.Event().wait()


class Environment:
    """A sample tells about the process that loads it, once that has multiplied matrices."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, object]:
        import sys

        cv2 = sys.modules.get("cv2")
        large = np.ones((300, 300))  # large enough for a BLAS to share among its threads
        large @ large
        if cv2 is not None:
            cv2.GaussianBlur(np.ones((500, 500, 3), np.float32), (9, 9), 2)
        return {
            "nvcc": os.environ.get("nvcc_path"),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "cv2_threads": cv2.getNumThreads() if cv2 is not None else 1,
            "frameworks": sorted({"jittor", "torch"} & set(sys.modules)),
            "own_threads": threading.active_count(),
            "system_threads": len(list(Path("/proc/self/task").iterdir())),
            "devices": [f for f in open_files() if "nvidia" in f],
            "pid": os.getpid(),
        }


def open_files() -> list[str]:
    """What this process's descriptors point to."""
    return [str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]


def first(samples: list[object]) -> object:
    return samples[0]
