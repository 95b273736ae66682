"""What the trainer adds to a step, against a bare Jittor loop that calls `sync_all`.

Run: python benchmarks/overhead.py [--steps 2000]          an MLP 32-64-64-10, batches of 32
     python benchmarks/overhead.py --dformer [--steps 30]  DFormer-Tiny, batches of 2 at 256x256

A step of the bare loop runs before every step of the trainer, on a network of its own, so that
both meet the same machine. Times are means over blocks of steps, and their median over the blocks,
which leaves out what other work on the machine does to a few of them.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from jtlightning import Task, Trainer, runtime

runtime.prepare()

import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402
from jittor import nn  # noqa: E402

Loss = Callable[[nn.Module, Any], jt.Var]


class Setting:
    """A network, its loss, and batches of NumPy arrays."""

    def __init__(self, network: Callable[[], nn.Module], loss: Loss, batches: list[Any]) -> None:
        self.network, self.loss, self.batches = network, loss, batches


def mlp() -> Setting:
    def network() -> nn.Module:
        sizes = (32, 64, 64, 10)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    rng = np.random.default_rng(0)
    batches = [
        (rng.normal(size=(32, 32)).astype(np.float32), rng.integers(0, 10, 32).astype(np.int32))
        for _ in range(8)
    ]
    return Setting(
        network, lambda net, batch: nn.cross_entropy_loss(net(batch[0]), batch[1]), batches
    )


def dformer() -> Setting:
    from segtasks.losses.segmentation import cross_entropy
    from segtasks.models.dformer import dformer_tiny

    rng = np.random.default_rng(0)
    pair = [rng.normal(size=(2, 3, 256, 256)).astype(np.float32) for _ in range(2)]
    label = rng.integers(0, 40, (2, 256, 256)).astype(np.int32)
    return Setting(
        lambda: dformer_tiny(num_classes=40),
        lambda net, batch: cross_entropy(net(batch[0], batch[1]), batch[2]),
        [(*pair, label)],
    )


class Bare:
    """The loop that one writes without a trainer, a step at a time."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.network = setting, setting.network()
        self.network.train()
        trained = [p for p in self.network.parameters() if not p.is_stop_grad()]
        self.optimizer = jt.optim.AdamW(trained, lr=1e-4)

    def step(self, batch: Any) -> None:
        batch = tuple(jt.array(array) for array in batch)
        self.optimizer.step(self.setting.loss(self.network, batch))
        jt.sync_all()


class Interleaved:
    """Batches for the trainer; takes a bare step before each, and times both."""

    def __init__(self, setting: Setting, steps: int) -> None:
        self.batches, self.steps, self.bare = setting.batches, steps, Bare(setting)
        self.bare_s: list[float] = []
        self.trainer_s: list[float] = []

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.steps):
            batch = self.batches[index % len(self.batches)]
            start = time.perf_counter()
            self.bare.step(batch)
            middle = time.perf_counter()
            yield batch
            self.bare_s.append(middle - start)
            self.trainer_s.append(time.perf_counter() - middle)


class Trained(Task):
    """The setting as a task; `logs` says whether it logs its loss."""

    def __init__(self, setting: Setting, logs: bool) -> None:
        super().__init__()
        self.model, self.setting, self.logs = setting.network(), setting, logs

    def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
        loss = self.setting.loss(self.model, batch)
        if self.logs:
            self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if not p.is_stop_grad()]
        return jt.optim.AdamW(trained, lr=1e-4)


VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "barebones": (False, {"barebones": True}),
    "default, nothing logged": (False, {}),
    "default, one scalar": (True, {}),
}


def measure(setting: Setting, steps: int, skip: int, name: str) -> tuple[float, float]:
    """Seconds per step of the bare loop and of the trainer."""
    logs, arguments = VARIANTS[name]
    source = Interleaved(setting, steps + skip)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=folder,
            enable_model_summary=False,
            **arguments,
        )
        trainer.fit(Trained(setting, logs), source)
    return block_median(source.bare_s[skip:]), block_median(source.trainer_s[skip:])


def block_median(seconds: list[float]) -> float:
    """Median over twenty blocks of their means."""
    size = max(len(seconds) // 20, 1)
    return statistics.median(
        statistics.mean(seconds[i : i + size]) for i in range(0, len(seconds), size)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="what the trainer adds to a step")
    parser.add_argument("--dformer", action="store_true", help="DFormer-Tiny instead of the MLP")
    parser.add_argument("--steps", type=int, help="2000, or 30 for DFormer")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    steps = options.steps or (30 if options.dformer else 2000)
    setting, skip = (dformer(), 4) if options.dformer else (mlp(), 100)
    rows = {name: measure(setting, steps, skip, name) for name in VARIANTS}
    print(f"\n{'variant':26} {'bare us':>12} {'trainer us':>12} {'added us':>9} {'ratio':>7}")
    for name, (bare_s, trainer_s) in rows.items():
        added_us = 1e6 * (trainer_s - bare_s)
        ratio = trainer_s / bare_s
        print(
            f"{name:26} {1e6 * bare_s:12.0f} {1e6 * trainer_s:12.0f} {added_us:9.0f} {ratio:7.3f}"
        )
    print(f"{steps} steps of each")


if __name__ == "__main__":
    main()
