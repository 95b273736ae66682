"""A working folder with stand-ins for the trainer, data and tasks: no Jittor, no kernels."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from jtlightning.cli import Link, main

STANDINS = '''
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from jtlightning.checkpoint.container import Checkpoint, write_checkpoint

events = []


class Callback: ...


class Stop(Callback):
    """Stop early.

    Args:
        monitor: Name of a metric.
        patience: Validations to wait.
    """

    def __init__(self, monitor: str, patience: int = 3) -> None:
        self.monitor, self.patience = monitor, patience


class Trainer:
    """Runs a task.

    Args:
        max_epochs: Epochs to train for.
        limit_train_batches: Batches, or a fraction of them.
        accelerator: The device.
        callbacks: In calling order.
        default_root_dir: Folder of the experiment.
        max_time: Longest time.
    """

    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        limit_train_batches: int | float = 1.0,
        accelerator: Literal["auto", "cpu"] = "auto",
        callbacks: list[Callback] | None = None,
        default_root_dir: str = "runs/default",
        max_time: str | None = None,
        learning_rate: float = 0.1,
    ) -> None:
        events.append("trainer")
        self.arguments = {k: v for k, v in locals().items() if k != "self"}
        self.callbacks = list(callbacks or [])
        self.loggers = []
        self.run = None

    def _run(self, stage, task, datamodule, ckpt_path):
        self.task, self.datamodule, self.ckpt_path = task, datamodule, ckpt_path
        events.append((stage, self))

    def fit(self, task, datamodule=None, ckpt_path=None):
        self._run("fit", task, datamodule, ckpt_path)
        checkpoint = Checkpoint(metadata={"loop": {}})
        self.callbacks[0].on_save_checkpoint(self, task, checkpoint)
        write_checkpoint("made.ckpt", checkpoint)

    def test(self, task, datamodule=None, ckpt_path=None):
        self._run("test", task, datamodule, ckpt_path)
        return {"test/miou": 0.25, "test/accuracy": 1 / 3}


class Data: ...


class Rooms(Data):
    def __init__(self, root: str, num_classes: int = 5, scales: list[float] | None = None) -> None:
        events.append("data")
        self.root, self.num_classes, self.scales = root, num_classes, scales


class Bare(Data):
    """Data that does not say how many classes it has."""


class Segmenter:
    def __init__(self, num_classes: int, drop: float) -> None:
        self.num_classes, self.drop = num_classes, drop


def tiny(
    num_classes: int, *, drop: float = 0.1, decoder: Literal["ham", "mlp"] = "ham"
) -> Segmenter:
    return Segmenter(num_classes, drop)


def base(num_classes: int, *, drop: float = 0.2) -> Segmenter:
    return Segmenter(num_classes, drop)


def wide(width: int) -> Segmenter:
    return Segmenter(width, 0.0)


def refuse(num_classes: int, *, drop: float = 0.1) -> Segmenter:
    raise ValueError(f"drop is {drop}") from KeyError("why")


class Task: ...


class SegTask(Task):
    """Segmentation.

    Args:
        model: Gives the logits.
        lr: Learning rate.
    """

    def __init__(self, model: Segmenter, lr: float = 1e-3) -> None:
        events.append("task")
        self.model, self.lr = model, lr
'''

CONFIG = """\
# A comment.
trainer:
  max_epochs: 3
data:
  class_path: standins.Rooms
  init_args:
    root: rooms
task:
  class_path: standins.SegTask
  init_args:
    model:
      class_path: standins.tiny
"""


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-ins, importable because they lie in the working folder."""
    (tmp_path / "standins.py").write_text(STANDINS)
    (tmp_path / "demo.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)
    yield importlib.import_module("standins")
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run(standins: ModuleType, tmp_path: Path) -> Callable[..., int]:
    """`run("fit", ...)`: the command line on the stand-ins; `shipped` is the folder of configs."""

    def call(*argv: str) -> int:
        return main(
            argv,
            prog="segtasks",
            trainer_class=standins.Trainer,
            task_base=standins.Task,
            data_base=standins.Data,
            config_paths=[tmp_path / "shipped"],
            links=[Link("data.num_classes", "task.init_args.model.init_args.num_classes")],
        )

    return call
