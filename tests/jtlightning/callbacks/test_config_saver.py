"""What a run was configured with stays beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jtlightning.callbacks.config_saver import ConfigSaver
from jtlightning.checkpoint.container import Checkpoint
from jtlightning.checkpoint.errors import CheckpointError
from tests.jtlightning.fake_trainer import FakeTrainer


class _Log:
    def __init__(self) -> None:
        self.configs: list[Any] = []

    def log_config(self, config: dict[str, Any]) -> None:
        self.configs.append(config)


def _start(folder: Path | None, lr: int) -> list[Any]:
    log = _Log()
    trainer: Any = FakeTrainer(folder or Path())
    trainer.loggers = [log]
    if folder is None:
        trainer.run = None
    task: Any = None
    ConfigSaver({"lr": lr}, f"lr: {lr}\n").on_fit_start(trainer, task)
    return log.configs


def test_changed_configuration_of_a_continued_run_is_numbered(tmp_path: Path) -> None:
    for lr in (1, 1, 2, 2, 1):
        _start(tmp_path, lr)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "config.yaml": "lr: 1\n",
        "config-1.yaml": "lr: 2\n",
        "config-2.yaml": "lr: 1\n",
    }


def test_loggers_and_checkpoints_get_the_configuration(tmp_path: Path) -> None:
    assert _start(tmp_path, 1) == [{"lr": 1}]
    checkpoint = Checkpoint()
    nothing: Any = None
    ConfigSaver({"lr": 1}, "lr: 1\n").on_save_checkpoint(nothing, nothing, checkpoint)
    assert checkpoint.metadata == {"config": {"lr": 1}}


def test_run_without_a_folder_writes_nothing(tmp_path: Path) -> None:
    assert _start(None, 1) == [{"lr": 1}]
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/config\.yaml: could not be written"):
        _start(tmp_path / "file", 1)
