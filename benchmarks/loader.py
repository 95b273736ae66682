"""Samples per second of the loader, of Jittor's own Dataset and of PyTorch's DataLoader.

    python benchmarks/loader.py [--workers 2] [--rounds 5] [--epochs 3] [--python-with-torch PATH]

All load the same samples with the same transform and as many workers, and hand over batches of
their framework's arrays. Each turn is a process of its own: an epoch to get going (Jittor's
workers run ahead into the next epoch, so the first one says nothing), then the measured epochs.
The loaders take turns, so that a machine that gets slower does so for all.

* `image`: a JPEG of 480x640 is decoded, resized by a random factor, cut to 256x256, mirrored and
  normalised; batches of 8, float32.
* `cheap`: an array of 32x32x3 uint8 is padded, cut at a random place, mirrored and normalised, as
  for CIFAR; batches of 32.
* `copy`: the same array is only copied. Here the loader itself is what costs.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

cv2.setNumThreads(0)  # in every loader's workers: the comparison is of loaders

LOADERS = ("ours", "jittor", "torch")
CROP = 256
#: Workload -> samples of an epoch, of a batch.
SIZES = {"image": (256, 8), "cheap": (10_000, 32), "copy": (40_000, 32)}
ASKED = 0.95


class Images:
    """Encoded pictures in memory."""

    def __init__(self, length: int) -> None:
        self.length = length
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 255, (8, 24, 32, 3), np.uint8)
        large = [cv2.resize(image, (640, 480), interpolation=cv2.INTER_CUBIC) for image in coarse]
        self.files = [cv2.imencode(".jpg", image)[1].tobytes() for image in large]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> np.ndarray:
        data = np.frombuffer(self.files[index % len(self.files)], np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR)


def augment(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(480, 640, 3) uint8 to (3, 256, 256) float32."""
    scale = generator.uniform(0.75, 1.25)
    image = cv2.resize(image, None, fx=scale, fy=scale)
    top, left = (int(generator.integers(0, size - CROP + 1)) for size in image.shape[:2])
    image = image[top : top + CROP, left : left + CROP]
    if generator.integers(2):
        image = image[:, ::-1]
    image = (image.astype(np.float32) / 255 - 0.45) / 0.23
    return np.ascontiguousarray(image.transpose(2, 0, 1))


class Arrays:
    """Small arrays in memory."""

    def __init__(self, length: int) -> None:
        self.values = np.random.default_rng(0).integers(0, 255, (length, 32, 32, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[index]


def augment_small(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(32, 32, 3) uint8 to (3, 32, 32) float32."""
    padded = np.zeros((40, 40, 3), np.uint8)
    padded[4:36, 4:36] = image
    top, left, mirror = generator.integers(0, (9, 9, 2))
    image = padded[top : top + 32, left : left + 32]
    if mirror:
        image = image[:, ::-1]
    image = (image.astype(np.float32) / 255 - 0.45) / 0.23
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def copied(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The cheapest transform."""
    return image.copy()


WORKLOADS: dict[str, tuple[Callable[[int], Any], Callable[..., np.ndarray]]] = {
    "image": (Images, augment),
    "cheap": (Arrays, augment_small),
    "copy": (Arrays, copied),
}


class Transformed:
    """Samples with their transform, for loaders that know no transforms; one generator each."""

    def __init__(self, dataset: Any, transform: Callable[..., np.ndarray]) -> None:
        self.dataset, self.transform = dataset, transform
        self.generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.transform(self.dataset[index], self.generator)


def ours(workload: str, length: int, batch: int, workers: int) -> Callable[[int], Iterable[Any]]:
    """Epochs of batches of `jt.Var`."""
    import jtlightning  # noqa: F401, I001 - prepares the environment
    import jittor as jt

    from jtlightning.data.loader import Loader

    make, transform = WORKLOADS[workload]
    loader = Loader(
        make(length),
        batch,
        collate=np.stack,
        transform=transform,
        shuffle=True,
        num_workers=workers,
    )
    return lambda epoch: (jt.array(batch) for batch in loader.batches(epoch))


def jittor(workload: str, length: int, batch: int, workers: int) -> Callable[[int], Iterable[Any]]:
    """Epochs of batches of `jt.Var`."""
    import jtlightning  # noqa: F401, I001 - prepares the environment
    from jittor.dataset import Dataset

    make, transform = WORKLOADS[workload]
    samples = Transformed(make(length), transform)

    class Samples(Dataset):
        def __getitem__(self, index: int) -> np.ndarray:
            return samples[index]

    dataset = Samples().set_attrs(
        total_len=length, batch_size=batch, shuffle=True, num_workers=workers
    )
    return lambda epoch: dataset


def torch(workload: str, length: int, batch: int, workers: int) -> Callable[[int], Iterable[Any]]:
    """Epochs of batches of `torch.Tensor`."""
    from torch.utils.data import DataLoader

    make, transform = WORKLOADS[workload]
    loader = DataLoader(
        Transformed(make(length), transform),
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda epoch: loader


def measure(loader: str, workload: str, workers: int, length: int, epochs: int) -> float:
    """Samples per second over `epochs` epochs, after one to get going."""
    batch = SIZES[workload][1]
    batches = globals()[loader](workload, length, batch, workers)
    began = 0.0
    for epoch in range(epochs + 1):
        if epoch == 1:
            began = time.perf_counter()
        count = sum(len(one) for one in batches(epoch))
        if count != length:
            raise RuntimeError(f"{loader} gave {count} samples of {length}")
    return epochs * length / (time.perf_counter() - began)


def turn(python: str, loader: str, workload: str, arguments: argparse.Namespace) -> float:
    """One measurement, in a process of its own."""
    length = max(SIZES[workload][1], int(SIZES[workload][0] * arguments.scale))
    command = [python, __file__, "--one", loader, workload, "--length", str(length)]
    command += ["--workers", str(arguments.workers), "--epochs", str(arguments.epochs)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if result.returncode:
        raise SystemExit(f"{loader}, {workload} failed:\n{result.stderr}")
    return float(result.stdout.split()[-1])


def has_torch(python: str) -> bool:
    """Whether this interpreter can import PyTorch."""
    if python == sys.executable:
        return importlib.util.find_spec("torch") is not None
    return not subprocess.run([python, "-c", "import torch"], check=False).returncode


def compare(arguments: argparse.Namespace) -> None:
    """Measure in turns and print the table."""
    pythons = dict.fromkeys(LOADERS[:2], sys.executable)
    if has_torch(arguments.python_with_torch):
        pythons["torch"] = arguments.python_with_torch
    else:
        sys.stdout.write("torch is not installed: its column is left out\n")
    sys.stdout.write(
        f"{arguments.workers} workers, medians of {arguments.rounds} rounds, {arguments.epochs} "
        "epochs each; samples/s (lowest to highest)\n"
    )
    for workload in arguments.workloads:
        rates: dict[str, list[float]] = {name: [] for name in pythons}
        for number in range(arguments.rounds):
            # Turns in both directions, so that nobody always follows the same neighbour.
            for name in list(pythons)[:: 1 if number % 2 == 0 else -1]:
                rates[name].append(turn(pythons[name], name, workload, arguments))
        median = {name: statistics.median(values) for name, values in rates.items()}
        for name, values in rates.items():
            ratio = median["ours"] / median[name]
            told = f"{median[name]:9.1f} ({min(values):.1f} to {max(values):.1f})"
            sys.stdout.write(f"{workload:6} {name:7} {told:34} ours is {ratio:.2f} of it\n")
        pairs = [one / two for one, two in zip(rates["ours"], rates["jittor"], strict=True)]
        ratio = statistics.median(pairs)
        verdict = "reached" if ratio >= ASKED else "MISSED"
        sys.stdout.write(
            f"{workload:6} ours / jittor, median of the rounds: {ratio:.2f} (asked: {ASKED}, "
            f"{verdict})\n"
        )


def main() -> None:
    """Run the benchmark, or one turn of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the samples of an epoch")
    parser.add_argument("--workloads", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--python-with-torch", default=sys.executable, metavar="PATH")
    parser.add_argument("--one", nargs=2, metavar=("LOADER", "WORKLOAD"), help="a single turn")
    parser.add_argument("--length", type=int, help="samples of an epoch of --one")
    arguments = parser.parse_args()
    if arguments.one:
        loader, workload = arguments.one
        length = arguments.length or SIZES[workload][0]
        rate = measure(loader, workload, arguments.workers, length, arguments.epochs)
        sys.stdout.write(f"\n{rate:.2f}\n")
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
