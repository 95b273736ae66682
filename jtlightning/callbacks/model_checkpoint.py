"""Decide when to save a checkpoint and which of the saved ones to keep."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jtlightning.callbacks.base import Callback, check_monitored
from jtlightning.checkpoint.atomic import publish_file, remove_file, sweep
from jtlightning.checkpoint.background import BackgroundJob
from jtlightning.checkpoint.container import encode_checkpoint

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)
_FIELD = re.compile(r"\{([^{}:]+)(:[^{}]*)?\}")
_LAST = "last.ckpt"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A kept file: its name in the folder, the step it holds, and its rank value if it has one."""

    name: str
    step: int
    score: float | None


#: Ranked files, names to be removed, step of the newest file.
_Kept = tuple[list[SavedCheckpoint], list[str], int]


class ModelCheckpoint(Callback):
    """Save the run, keep the best or newest files, and let `last.ckpt` be the newest save.

    With a `monitor`, a file is ranked after each validation (without validation data: after each
    epoch), and the best `save_top_k` are kept; between equals the older stays, and a value that is
    not finite never ranks. Without one, the newest `save_top_k` are kept. Every other save,
    including the one at the end of a run and after a stop signal, goes to `last.ckpt`. The
    triggers by steps, epochs and seconds add up. A file is removed only after its successor has
    been written completely.

    With `asynchronous`, training goes on while a thread writes a copy of the state, which takes
    the memory of one checkpoint. A file counts once it is on the disk: until then it is not
    ranked, not `last`, and nothing is removed for it. A save that is due earlier waits; so do the
    end of the run, a stop signal and an error. A failed write is raised at the next step.

    Args:
        monitor: Name of the metric that ranks, such as `val/miou`.
        mode: Whether the monitored metric should be small (`min`) or large (`max`).
        save_top_k: Number of files to keep; 0 keeps only `last.ckpt`, -1 keeps every save.
        save_last: Keep `last.ckpt`, a hard link to the newest save (a copy where links fail).
        filename: Template of a file name without its suffix. Fields are `{epoch}`, `{step}` and
            any logged metric, with a format: `"step={step:06d}-miou={val/miou:.4f}"`. A slash in
            the result becomes `_`. A metric that has no value yet is written as `nan`.
        dirpath: Folder to save in; by default `checkpoints` in the run's folder.
        every_n_train_steps: Also save after every so many optimizer steps.
        every_n_epochs: Save at every n-th epoch; default 1, or never where one of the other two
            triggers is given and nothing is monitored.
        train_time_interval: Also save when so many seconds have passed since the last save.
        asynchronous: Write on a thread.
        name: Tells two checkpoints with the same `monitor` apart in the saved state.
    """

    runs_after_task = True

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        *,
        save_top_k: int = 1,
        save_last: bool = True,
        filename: str | None = None,
        dirpath: str | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: float | None = None,
        asynchronous: bool = False,
        name: str | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"ModelCheckpoint.mode must be min or max, got {mode!r}")
        if save_top_k < -1:
            raise ValueError(f"ModelCheckpoint.save_top_k must be -1 or more, got {save_top_k}")
        triggers = {
            "every_n_train_steps": every_n_train_steps,
            "every_n_epochs": every_n_epochs,
            "train_time_interval": train_time_interval,
        }
        for argument, value in triggers.items():
            if value is not None and value <= 0:
                raise ValueError(f"ModelCheckpoint.{argument} must be positive, got {value}")
        self.monitor, self.save_top_k, self.save_last = monitor, save_top_k, save_last
        self.sign = 1.0 if mode == "max" else -1.0
        self.filename = _default_name(monitor) if filename is None else filename
        _check_template(self.filename, save_top_k)
        self.dirpath, self.name, self.asynchronous = dirpath, name, asynchronous
        self.every_n_train_steps, self.train_time_interval = (
            every_n_train_steps,
            train_time_interval,
        )
        self.every_n_epochs = every_n_epochs
        if every_n_epochs is None and (
            monitor is not None or (every_n_train_steps is None and train_time_interval is None)
        ):
            self.every_n_epochs = 1
        self._ranked: list[SavedCheckpoint] = []
        self._retired: list[str] = []
        self._saved_step = -1
        self._job: BackgroundJob | None = None
        self._after_job: _Kept = ([], [], -1)
        self._error: BaseException | None = None
        self._seen_step = 0
        self._saved_at_s = time.monotonic()
        self._folder: Path | None = None

    @property
    def state_key(self) -> str:
        if self.name is not None:
            return f"ModelCheckpoint({self.name})"
        return "ModelCheckpoint" if self.monitor is None else f"ModelCheckpoint({self.monitor})"

    @property
    def best_model_path(self) -> Path | None:
        """The best file by `monitor`, without one the newest; None before the first."""
        best = self._best()
        return None if best is None else self.folder / best.name

    @property
    def best_model_score(self) -> float | None:
        """The monitored value of `best_model_path`."""
        best = self._best()
        return None if best is None else best.score

    @property
    def last_model_path(self) -> Path | None:
        """`last.ckpt`, once it has been written."""
        return self.folder / _LAST if self.save_last and self._saved_step >= 0 else None

    @property
    def folder(self) -> Path:
        """Where the files lie; known from `setup` on."""
        if self._folder is None:
            raise RuntimeError("ModelCheckpoint has no folder yet: Trainer.fit sets it")
        return self._folder

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        if self.dirpath is not None:
            self._folder = Path(self.dirpath)
        elif trainer.run is not None:
            self._folder = trainer.run.checkpoints
        elif stage == "fit":
            raise ValueError("ModelCheckpoint needs `dirpath`: this run has no folder of its own")

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        if self.folder.is_dir():
            sweep(self.folder)
        # A run that was killed between writing a checkpoint and removing its predecessors.
        self._remove_retired()
        missing = [saved.name for saved in self._ranked if not (self.folder / saved.name).exists()]
        if missing:
            _log.warning("%s lacks %s: ranked without it", self.folder, ", ".join(missing))
            self._ranked = [saved for saved in self._ranked if saved.name not in missing]

    def on_sanity_check_end(self, trainer: Trainer, task: Task) -> None:
        for name in self._names():
            check_monitored(trainer.metrics, name)

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        self._seen_step, self._saved_at_s = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:
            return  # inside an accumulation window
        self._seen_step = trainer.global_step
        self._raise_failure()
        every, interval_s = self.every_n_train_steps, self.train_time_interval
        by_steps = every is not None and trainer.global_step % every == 0
        by_time = interval_s is not None and time.monotonic() - self._saved_at_s >= interval_s
        if by_steps or by_time:
            self._save(trainer, fresh=False)

    def on_validation_end(self, trainer: Trainer, task: Task) -> None:
        if trainer.sanity_checking or trainer.stage != "fit":
            return
        self._check_names(trainer)
        if self.monitor is not None and self._epoch_is_due(trainer):
            self._save(trainer, fresh=True)

    def on_train_epoch_end(self, trainer: Trainer, task: Task) -> None:
        without_validation = trainer.num_val_batches == 0
        if without_validation:
            self._check_names(trainer)
        if self._epoch_is_due(trainer) and (self.monitor is None or without_validation):
            self._save(trainer, fresh=True)

    def on_train_end(self, trainer: Trainer, task: Task) -> None:
        self._finish()
        if trainer.global_step != self._saved_step:
            self._save(trainer, fresh=False)
            self._finish()

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        self._settle()
        if self._error is not None:  # not raised: it would hide the exception
            _log.error("%s", self._error)
            self._error = None

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        self._settle()  # another saver's file must not name what is about to be removed
        best = self._best()
        return {
            "best_model_path": None if best is None else best.name,
            "best_model_score": None if best is None else best.score,
            "ranked": [[saved.name, saved.step, saved.score] for saved in self._ranked],
            "retired": list(self._retired),
            "step": self._saved_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ranked = [SavedCheckpoint(*saved) for saved in state["ranked"]]
        for name in [*state["retired"], *(saved.name for saved in ranked)]:
            # Files are removed by these names: a checkpoint from elsewhere must not choose others.
            if _safe(name) != name or not name.endswith(".ckpt"):
                raise ValueError(f"the checkpoint's state of {self.state_key} names {name!r}")
        self._ranked, self._retired = ranked, list(state["retired"])
        self._saved_step = state["step"]

    def _epoch_is_due(self, trainer: Trainer) -> bool:
        every = self.every_n_epochs
        return every is not None and (trainer.current_epoch + 1) % every == 0

    def _check_names(self, trainer: Trainer) -> None:
        """Let the metric log complain of a name that nobody has logged."""
        for name in self._names():
            trainer.metrics[name]

    def _names(self) -> set[str]:
        """The metrics that rank, or stand in file names."""
        names = {self.monitor, *(field for field, _ in _FIELD.findall(self.filename))}
        return {name for name in names if name not in (None, "epoch", "step")}

    def _save(self, trainer: Trainer, *, fresh: bool) -> None:
        """Write one file; `fresh` says that the monitored value belongs to this very step."""
        self._finish()
        before = self._ranked, self._retired, self._saved_step
        new = self._candidate(trainer, fresh=fresh)
        if new is not None:
            new = self._admit(new)
        if new is None and not self.save_last:
            return
        # The file records the state in which it is itself ranked and its predecessor is gone,
        # so that a resumed run goes on from there whatever happens after the write.
        self._saved_step = trainer.global_step
        path = self.folder / (_LAST if new is None else new.name)
        link = self.folder / _LAST if new is not None and self.save_last else None
        publish = partial(publish_file, path, link, [self.folder / name for name in self._retired])
        after = self._ranked, list[str](), self._saved_step
        try:
            if self.asynchronous:
                write = encode_checkpoint(trainer.capture_checkpoint()).write
                self._job = BackgroundJob(partial(publish, write), f"writes {path.name}")
            else:
                publish(trainer.save_checkpoint)
        except BaseException:
            self._ranked, self._retired, self._saved_step = before
            raise
        self._after_job = after
        now = before if self.asynchronous else after
        self._ranked, self._retired, self._saved_step = now
        self._saved_at_s = time.monotonic()

    def _settle(self) -> None:
        """Wait for the file that is being written: now it counts, or there is an error."""
        if self._job is not None:
            self._error = self._job.wait()
            self._job = None
            if self._error is None:
                self._ranked, self._retired, self._saved_step = self._after_job

    def _finish(self) -> None:
        """Wait for the file that is being written, and raise what went wrong with it."""
        self._settle()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _raise_failure(self) -> None:
        """Raise what went wrong in the meantime, without waiting."""
        if self._error is not None or (self._job is not None and self._job.done):
            self._finish()

    def _candidate(self, trainer: Trainer, *, fresh: bool) -> SavedCheckpoint | None:
        if self.save_top_k == 0:
            return None
        score = trainer.metrics[self.monitor] if self.monitor is not None and fresh else None
        if score is not None and not math.isfinite(score):
            _log.warning(
                "%s is %s at step %d: not ranked", self.monitor, score, trainer.global_step
            )
            score = None
        if self.monitor is not None and score is None and self.save_top_k != -1:
            return None
        return SavedCheckpoint(self._render(trainer), trainer.global_step, score)

    def _admit(self, new: SavedCheckpoint) -> SavedCheckpoint | None:
        """Rank `new`; None if it is not among the best, else itself under its final name."""
        others = [old for old in self._ranked if not self._same_save(old, new)]
        kept = sorted([*others, new], key=self._rank)
        if self.save_top_k != -1:
            kept = kept[: self.save_top_k]
        if new not in kept:
            return None
        taken = {saved.name for saved in kept if saved is not new}
        final, version = new.name, 0
        while final in taken:
            version += 1
            final = f"{new.name.removesuffix('.ckpt')}-v{version}.ckpt"
        admitted = SavedCheckpoint(final, new.step, new.score)
        dropped = [old.name for old in self._ranked if old not in kept and old.name != final]
        self._ranked = [admitted if saved is new else saved for saved in kept]
        self._retired = [*self._retired, *dropped]
        return admitted

    def _same_save(self, old: SavedCheckpoint, new: SavedCheckpoint) -> bool:
        """Whether `new` is a later save of the step of `old`, and takes its place."""
        return old.step == new.step and (self.monitor is None or old.name == new.name)

    def _rank(self, saved: SavedCheckpoint) -> tuple[float, int]:
        """Sort key, best first; between equals the older."""
        if self.monitor is None:
            return (0.0, -saved.step)
        if saved.score is None:
            return (math.inf, saved.step)
        return (-self.sign * saved.score, saved.step)

    def _best(self) -> SavedCheckpoint | None:
        if not self._ranked or (self.monitor is not None and self._ranked[0].score is None):
            return None
        return self._ranked[0]

    def _remove_retired(self) -> None:
        for name in self._retired:
            remove_file(self.folder / name)
        self._retired = []

    def _render(self, trainer: Trainer) -> str:
        values: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}

        def render(field: re.Match[str]) -> str:
            name, spec = field[1], (field[2] or ":")[1:]
            if name in values:
                return format(values[name], spec)
            return format(trainer.metrics.get(name, math.nan), spec)

        return _safe(_FIELD.sub(render, self.filename)) + ".ckpt"


def _default_name(monitor: str | None) -> str:
    base = "epoch={epoch:03d}-step={step:06d}"
    return base if monitor is None else f"{base}-{_safe(monitor)}={{{monitor}:.4f}}"


def _safe(name: str) -> str:
    return name.replace("/", "_").replace(os.sep, "_")


def _check_template(template: str, save_top_k: int) -> None:
    fields = _FIELD.findall(template)
    rest = _FIELD.sub("", template)
    where = f"ModelCheckpoint.filename {template!r}"
    if "{" in rest or "}" in rest:
        raise ValueError(f"{where}: braces do not match; write {{epoch:03d}} or {{val/miou:.4f}}")
    if not fields and (save_top_k not in (0, 1) or _safe(template) in ("", "last")):
        raise ValueError(f"{where}: needs a field such as {{step}}, so that names differ")
    for name, spec in fields:
        example = 0 if name in ("epoch", "step") else 0.0
        try:
            format(example, spec[1:])
        except ValueError as error:
            raise ValueError(f"{where}: {name!r} cannot be written with {spec[1:]!r}") from error
