"""What each of several processes runs in `test_processes.py`: python program.py SCENARIO FOLDER."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

import jtlightning  # noqa: F401 - before Jittor
from jtlightning import Trainer
from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.ema import EMA
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class OneLayerLess(TinyTask):
    """Without dropout, whose draws differ between processes."""

    def __init__(self) -> None:
        super().__init__()
        self.model.drop.p = 0.0


class At(Callback):
    """Does something on one rank after a step."""

    def __init__(self, rank: int, step: int, action: Any) -> None:
        self.rank, self.step, self.action = rank, step, action

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            self.action()


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, *_: Any) -> None:
        self.values.append(outputs.item())


def make_trainer(folder: Path, *callbacks: Callback, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": 2, **arguments}
    return Trainer(
        accelerator="cpu", default_root_dir=str(folder), callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip


def train(folder: Path, batch_size: int, *callbacks: Callback, **arguments: Any) -> dict[str, Any]:
    """Train with batches of that size per process, validating on 7 samples."""
    ckpt_path = arguments.pop("ckpt_path", None)
    losses = Losses()
    trainer = make_trainer(folder, losses, EMA(0.5), *callbacks, sync_batchnorm=True, **arguments)
    task, data = OneLayerLess(), TinyData(batch_size=batch_size, train=24, val=7)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return {
        "weights": {name: value.tolist() for name, value in parameters_of(task).items()},
        "losses": losses.values,
        "metrics": dict(trainer.metrics),
        "steps": trainer.global_step,
        "files": sorted(path.name for path in folder.rglob("*.ckpt")),
        "rank": trainer.global_rank,
        "world": trainer.world_size,
    }


def validate(folder: Path) -> dict[str, Any]:
    """Validate the newest checkpoint on 7 samples, in batches of 2."""
    trainer = make_trainer(folder, EMA(0.5))
    data = TinyData(batch_size=2, val=7)
    return {"metrics": trainer.validate(OneLayerLess(), datamodule=data, ckpt_path="last")}


def exchange(folder: Path) -> dict[str, Any]:
    """Everything that processes tell each other."""
    import jittor as jt

    from jtlightning import distributed

    ranks = distributed.find_ranks()
    gradients = [jt.array(np.full((2, 3), 1.0 + ranks.rank, np.float32)), jt.ones((1,)) * 4]
    distributed.average(gradients, ranks)
    weight = jt.array(np.full(3, float(ranks.rank), np.float32))
    distributed.share_parameters([weight], ranks)
    return {
        "gathered": distributed.gather({"rank": ranks.rank, "text": "x" * ranks.rank}, ranks),
        "broadcast": distributed.broadcast("from 0" if ranks.rank == 0 else None, ranks),
        "averaged": [gradient.numpy().tolist() for gradient in gradients],
        "shared": weight.numpy().tolist(),
    }


def fail() -> None:
    raise KeyError("the one that broke")


SCENARIOS = {
    "exchange": exchange,
    "validate": validate,
    "train": lambda folder: train(folder, 2),
    "twice": lambda folder: train(folder, 4),
    "half": lambda folder: train(folder, 2, max_steps=3),
    "resume": lambda folder: train(folder, 2, ckpt_path="last"),
    "stop": lambda folder: train(
        folder, 2, At(1, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)), max_epochs=50
    ),
    "killed": lambda folder: train(
        folder, 2, At(1, 3, lambda: os.kill(os.getpid(), signal.SIGKILL)), max_epochs=50
    ),
    "error": lambda folder: train(folder, 2, At(1, 3, fail), max_epochs=50),
}


if __name__ == "__main__":
    scenario, out = sys.argv[1], Path(sys.argv[2])
    result = SCENARIOS[scenario](out / "runs")
    name = f"{scenario}-{os.environ.get('OMPI_COMM_WORLD_RANK', 'alone')}.json"
    (out / name).write_text(json.dumps(result))
