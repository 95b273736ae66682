"""The resolved configuration of a run, saved beside its results and inside its checkpoints."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jtlightning.callbacks.base import Callback
from jtlightning.checkpoint.atomic import atomic_file

if TYPE_CHECKING:
    from jtlightning.checkpoint.container import Checkpoint
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer


class ConfigSaver(Callback):
    """Write what a run was configured with; the command line adds this callback itself.

    A continued run whose configuration has changed adds `config-1.yaml`, `config-2.yaml`, ...
    to its folder: what an earlier part ran with is never overwritten, and nothing is refused.

    Args:
        config: The resolved configuration, JSON values.
        text: The same as YAML.
    """

    def __init__(self, config: dict[str, Any], text: str) -> None:
        self.config = config
        self.text = text

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        if trainer.run is not None:
            save_numbered(trainer.run.path, self.text)
        trainer.tell_loggers("log_config", self.config)

    def on_save_checkpoint(self, trainer: Trainer, task: Task, checkpoint: Checkpoint) -> None:
        checkpoint.metadata["config"] = self.config


def save_numbered(folder: Path, text: str) -> Path:
    """Write `text` as config.yaml, or config-1.yaml ...; a newest file that equals it is kept."""
    names = (folder / (f"config-{n}.yaml" if n else "config.yaml") for n in count())
    newest = None
    for path in names:
        if not path.exists():
            break
        newest = path
    if newest is not None and newest.read_text(encoding="utf-8") == text:
        return newest
    with atomic_file(path) as write:
        write(text.encode())
    return path
