"""Write predictions to files, batch by batch or all at the end."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jittor as jt
import numpy as np

from jtlightning.callbacks.base import Callback
from jtlightning.checkpoint.atomic import atomic_file

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_BATCH_FILE = re.compile(r"batch-\d{6,}\.npz")


class BasePredictionWriter(Callback):
    """Calls `write_on_batch_end` or `write_on_epoch_end` with predictions; write those you need.

    With `Trainer.predict(..., return_predictions=False)` nothing is kept in memory but what
    `epoch` and `both` need.

    Args:
        interval: `batch` to write after each batch, `epoch` to write all predictions at the end,
            or `both`.
    """

    def __init__(self, interval: Literal["batch", "epoch", "both"] = "batch") -> None:
        if interval not in ("batch", "epoch", "both"):
            name = type(self).__name__
            raise ValueError(f"{name}.interval must be batch, epoch or both, got {interval!r}")
        self.interval = interval
        self._kept: list[Any] = []

    def write_on_batch_end(
        self, trainer: Trainer, task: Task, prediction: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what `predict_step` returned for one batch; every Var in it is a NumPy array."""
        raise NotImplementedError(f"{type(self).__name__} needs write_on_batch_end")

    def write_on_epoch_end(self, trainer: Trainer, task: Task, predictions: list[Any]) -> None:
        """Write the predictions of all batches; every Var in them is a NumPy array."""
        raise NotImplementedError(f"{type(self).__name__} needs write_on_epoch_end")

    def on_predict_start(self, trainer: Trainer, task: Task) -> None:
        self._kept = []

    def on_predict_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        prediction = _as_arrays(outputs)
        if self.interval != "epoch":
            self.write_on_batch_end(trainer, task, prediction, batch, batch_idx)
        if self.interval != "batch":
            self._kept.append(prediction)

    def on_predict_end(self, trainer: Trainer, task: Task) -> None:
        if self.interval != "batch":
            self.write_on_epoch_end(trainer, task, self._kept)
        self._kept = []


class PredictionWriter(BasePredictionWriter):
    """Write predictions as NumPy archives, which `numpy.load` reads without pickle.

    A batch becomes `batch-000000.npz`, all together `predictions.npz`, in which the batches are
    joined along their first axis. An array that `predict_step` returns is named `prediction`; of
    dicts, dataclasses, lists and tuples each array or number has its path as name, such as
    `boxes` or `levels/0`. Batch files of an earlier prediction in the folder are removed first.

    Args:
        interval: `batch`, `epoch` or `both`.
        folder: Where to write; a relative path lies in the run's folder.
    """

    def __init__(
        self,
        interval: Literal["batch", "epoch", "both"] = "batch",
        folder: str = "predictions",
    ) -> None:
        super().__init__(interval)
        self.folder = folder
        self._path: Path | None = None

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        if stage != "predict":
            return
        path = Path(self.folder)
        if trainer.run is not None:
            path = trainer.run.path / path
        elif not path.is_absolute():
            raise ValueError(
                f"PredictionWriter.folder is {self.folder!r}, but this run has no folder of its "
                "own: give an absolute path"
            )
        self._path = path

    def on_predict_start(self, trainer: Trainer, task: Task) -> None:
        super().on_predict_start(trainer, task)
        assert self._path is not None
        for old in [*self._path.glob("batch-*.npz"), self._path / "predictions.npz"]:
            if _BATCH_FILE.fullmatch(old.name) or old.name == "predictions.npz":
                old.unlink(missing_ok=True)

    def write_on_batch_end(
        self, trainer: Trainer, task: Task, prediction: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write(f"batch-{batch_idx:06d}.npz", _named(prediction, f"batch {batch_idx}"))

    def write_on_epoch_end(self, trainer: Trainer, task: Task, predictions: list[Any]) -> None:
        batches = [_named(p, f"batch {i}") for i, p in enumerate(predictions)]
        self._write("predictions.npz", _join(batches))

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        assert self._path is not None
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with atomic_file(self._path / name) as write:
            write(buffer.getbuffer())


def _as_arrays(value: Any) -> Any:
    """The value with NumPy arrays in place of Vars, which would keep their graphs alive."""
    if isinstance(value, jt.Var):
        return value.numpy()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _as_arrays(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_as_arrays(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _named(prediction: Any, where: str) -> dict[str, np.ndarray]:
    """Name -> array, for all that is in a prediction.

    Raises:
        ValueError: Something in there is neither an array nor a number nor a text.
    """
    arrays = {}
    for name, leaf in _leaves(prediction, ""):
        array = np.asarray(leaf)
        if array.dtype.hasobject:
            raise ValueError(
                f"PredictionWriter cannot write {name or 'the prediction'} of {where}, a "
                f"{type(leaf).__name__}: return arrays, numbers and texts from predict_step, or "
                "subclass BasePredictionWriter"
            )
        arrays[name or "prediction"] = array
    return arrays


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}/{key}" if path else str(key))


def _join(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The batches joined along the first axis; numbers become an axis of batches.

    Raises:
        ValueError: The batches hold different names or shapes.
    """
    joined = {}
    for name in batches[0] if batches else ():
        try:
            joined[name] = np.concatenate([np.atleast_1d(batch[name]) for batch in batches])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"PredictionWriter cannot join {name!r} of {len(batches)} batches ({error}): "
                "use interval: batch, or subclass BasePredictionWriter"
            ) from error
    return joined
