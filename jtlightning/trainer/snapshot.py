"""A run as a `Checkpoint`, and back: the only place that knows what goes into one."""

from __future__ import annotations

import logging
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import jittor as jt
import numpy as np

from jtlightning.checkpoint.container import Checkpoint
from jtlightning.checkpoint.weights import load_weights
from jtlightning.optim import OptimizerStateError

if TYPE_CHECKING:
    from jtlightning.optim import OptimizerDriver
    from jtlightning.task import Task
    from jtlightning.trainer.running import Running

log = logging.getLogger(__name__)

FORMAT = 1


def capture(trainer: Running, task: Task, *, weights_only: bool = False) -> Checkpoint:
    """Everything that resuming needs; call it at a step boundary only."""
    named = dict(task.named_parameters())
    arrays = jt.fetch_sync(list(named.values()))
    tensors = {f"model/{name}": array for name, array in zip(named, arrays, strict=True)}
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "loop": trainer.state.state_dict(),
        "seed": trainer.seed,
        "versions": _versions(),
        "git_commit": _git_commit(),
        "metrics": trainer.metrics.state_dict(),
    }
    checkpoint = Checkpoint(tensors=tensors, metadata=metadata)
    if not weights_only:
        _capture_training(trainer, checkpoint)
    trainer.hooks.call("on_save_checkpoint", checkpoint)
    return checkpoint


def _capture_training(trainer: Running, checkpoint: Checkpoint) -> None:
    checkpoint.metadata["optimizer"] = []
    for driver in trainer.drivers:
        checkpoint.tensors.update(driver.state_tensors())
        entry = {"class": type(driver.optimizer).__name__, "updates": driver.updates}
        checkpoint.metadata["optimizer"].append(entry)
    scaler = trainer.scaler
    checkpoint.metadata["precision"] = trainer.precision
    checkpoint.metadata["loss_scaler"] = None if scaler is None else scaler.state_dict()
    checkpoint.metadata["schedule"] = [driver.describe_schedule() for driver in trainer.drivers]
    checkpoint.metadata["data"] = {
        "num_training_batches": trainer.num_training_batches,
        "processes": trainer.world_size,
        "state": trainer.datamodule.state_dict() if trainer.datamodule is not None else {},
    }
    # A save comes before the loggers get the row of its step, which a kill in between would lose.
    checkpoint.metadata["unwritten_logs"] = trainer.unwritten_logs
    checkpoint.metadata["loggers"] = {x.state_key: x.state_dict() for x in trainer.loggers}
    callbacks = checkpoint.metadata["callbacks"] = {}
    for callback in trainer.callbacks:
        state = callback.state_dict()
        if state:
            key = callback.state_key
            callbacks[key] = _split_arrays(state, f"callback/{key}", checkpoint.tensors)


def _split_arrays(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """Move the arrays below `value` into `tensors`; what is left is JSON."""
    if not isinstance(value, dict):
        return value
    rest = {}
    for name, item in value.items():
        if isinstance(item, np.ndarray):
            tensors[f"{path}/{name}"] = item
        else:
            rest[name] = _split_arrays(item, f"{path}/{name}", tensors)
    return rest


def _join_arrays(state: dict[str, Any], prefix: str, tensors: dict[str, np.ndarray]) -> None:
    """The inverse of `_split_arrays`, into `state`."""
    for name, array in tensors.items():
        if name.startswith(prefix):
            *folders, leaf = name.removeprefix(prefix).split("/")
            place = state
            for folder in folders:
                place = place.setdefault(folder, {})
            place[leaf] = array


def restore_weights(task: Task, checkpoint: Checkpoint, source: str) -> None:
    """Load the raw weights; a `WeightsError` tells what does not fit."""
    prefix = "model/"
    weights = {
        name.removeprefix(prefix): array
        for name, array in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
    load_weights(
        task,
        weights,
        source=source,
        remedy="A checkpoint fits the model that it was trained with; its configuration is inside "
        "it (leave out --config), and in the folder of its run (config.yaml).",
    )


def restore_callbacks(trainer: Running, checkpoint: Checkpoint) -> None:
    """Hand every callback the state saved under its key; a callback that is new starts fresh."""
    saved = checkpoint.metadata.get("callbacks", {})
    for callback in trainer.callbacks:
        if callback.state_key not in saved:
            continue
        state = saved[callback.state_key]
        _join_arrays(state, f"callback/{callback.state_key}/", checkpoint.tensors)
        callback.load_state_dict(state)


def restore_training(trainer: Running, checkpoint: Checkpoint, source: str) -> None:
    """Restore optimizer, metrics, data module and loggers; the position has been before."""
    metadata = checkpoint.metadata
    _restore_optimizers(trainer.drivers, checkpoint, source)
    if trainer.scaler is not None and metadata["loss_scaler"] is not None:
        trainer.scaler.load_state_dict(metadata["loss_scaler"])
    trainer.metrics.load_state_dict(metadata["metrics"])
    for logger in trainer.loggers:
        if logger.state_key in metadata["loggers"]:
            logger.load_state_dict(metadata["loggers"][logger.state_key])
    trainer.log_metrics(metadata["unwritten_logs"])
    data = metadata["data"]
    # The same samples are done, whoever takes the rest of them.
    state = trainer.state
    state.batch_in_epoch = state.batch_in_epoch * data["processes"] // trainer.world_size
    if trainer.datamodule is not None:
        trainer.datamodule.load_state_dict(data["state"])
    for what, saved, now in (
        ("batches per epoch", data["num_training_batches"], trainer.num_training_batches),
        ("processes", data["processes"], trainer.world_size),
        ("seed", metadata["seed"], trainer.seed),
        ("precision", metadata["precision"], trainer.precision),
    ):
        if saved != now:
            log.warning(
                "%s was saved with %s %s, this run has %s: it continues, but not bit for bit",
                source,
                what,
                saved,
                now,
            )


def _restore_optimizers(
    drivers: list[OptimizerDriver], checkpoint: Checkpoint, source: str
) -> None:
    entries = checkpoint.metadata["optimizer"]
    if len(entries) != len(drivers):
        raise OptimizerStateError(
            f"{source} holds the state of {len(entries)} optimizers, this run has {len(drivers)}; "
            "continue with the task that it was saved from"
        )
    tensors = {n: a for n, a in checkpoint.tensors.items() if n.startswith("optimizer/")}
    for driver, entry in zip(drivers, entries, strict=True):
        groups = {str(index) for index in driver.groups}
        own = {n: a for n, a in tensors.items() if n.split("/")[1] in groups}
        driver.load_tensors(own, source)
        driver.updates = entry["updates"]


def restore_counters(trainer: Running, checkpoint: Checkpoint) -> None:
    """Restore the position alone."""
    trainer.state.load_state_dict(checkpoint.metadata["loop"])


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("jtlightning", "jittor", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # used from a source tree that is not installed
            versions[package] = "not installed"
    return versions


@cache
def _git_commit() -> str | None:
    """The commit of the working folder, or None outside a repository or without git."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
