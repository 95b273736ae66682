"""Scalars, pictures and the configuration as TensorBoard event files."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jtlightning.loggers.base import Logger

if TYPE_CHECKING:
    import numpy as np

    from jtlightning.run_directory import RunDirectory

_log = logging.getLogger(__name__)


class TensorBoardLogger(Logger):
    """Write an event file into `tensorboard` in the run's folder, one per process of the run.

    A resumed run makes TensorBoard hide what the former process logged after the checkpoint.
    Events are written in the calling thread: tensorboardX's own writer thread dies silently on a
    full disk, and training then waits for its queue for ever.

    Args:
        flush_s: Seconds for which what has been logged may stay in memory, where a kill takes it
            along; by default it is in the file at once.
    """

    def __init__(self, flush_s: float = 0.0) -> None:
        if flush_s < 0:
            raise ValueError(f"TensorBoardLogger.flush_s must be 0 or more, got {flush_s}")
        self.flush_s = flush_s
        self._writer: Any = None
        self._flushed_at_s = 0.0
        self._config: dict[str, Any] = {}
        self._resumed_step: int | None = None
        self._logged: set[str] = set()  # under the resumed step, by the former process

    @property
    def shows_pictures(self) -> bool:
        return self._writer is not None

    def start(self, run: RunDirectory, *, resumed_step: int | None) -> None:
        folder = run.path / "tensorboard"
        try:
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import RecordWriter

            folder.mkdir(parents=True, exist_ok=True)
            self._resumed_step, self._logged = resumed_step, set(_tags(folder, resumed_step))
            # TensorBoard reads files in the order of their names; two may start within a second.
            number = len(list(folder.glob("events.*")))
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{number}"
            self._writer = RecordWriter(str(folder / name))
            self._write(Event(file_version="brain.Event:2"))
            if resumed_step is not None:
                start = SessionLog(status=SessionLog.START)
                # TensorBoard drops events of this step and later; those of the resumed step stay.
                self._write(Event(step=resumed_step + 1, session_log=start))
        except (ImportError, OSError) as error:
            self._give_up(error)
        if self._config:
            self.log_config(self._config)

    def log_config(self, config: dict[str, Any]) -> None:
        self._config = config
        if self._writer is not None:
            from tensorboardX import summary

            text = json.dumps(config, indent=2, default=str)
            self._add(summary.text("config", "```json\n" + text + "\n```"), step=0)

    def log_metrics(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        if self._writer is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in {**metrics, "epoch": epoch}.items()
            if self._is_new(name, step)
        ]
        self._add(Summary(value=values), step)

    def log_image(self, name: str, image: np.ndarray, *, step: int) -> None:
        if self._writer is not None and self._is_new(name, step):
            from tensorboardX import summary

            self._add(summary.image(name, image, dataformats="HWC"), step)

    def finish(self, status: str) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)
        self._writer = None

    def _is_new(self, name: str, step: int) -> bool:
        return step != self._resumed_step or name not in self._logged

    def _add(self, content: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            self._write(Event(summary=content, step=step))
        except OSError as error:
            self._give_up(error)

    def _write(self, event: Any) -> None:
        event.wall_time = now_s = time.time()
        self._writer.write(event.SerializeToString())
        if now_s - self._flushed_at_s >= self.flush_s:
            self._flushed_at_s = now_s
            self._writer.flush()

    def _give_up(self, error: Exception) -> None:
        _log.warning("TensorBoardLogger stops, training goes on: %s", error)
        if self._writer is not None:
            with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
                self._writer.close()
        self._writer = None


def _tags(folder: Path, step: int | None) -> Iterator[str]:
    """What stands in the event files under a step."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    for path in folder.glob("events.*") if step is not None else ():
        for message in _messages(path):
            try:
                event = Event.FromString(message)
            except DecodeError:
                break
            if event.step == step:
                yield from (value.tag for value in event.summary.value)


def _messages(path: Path) -> Iterator[bytes]:
    """The records of an event file up to where a kill has cut it: length, checksum, bytes, same."""
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack_from("<Q", head)
            message = file.read(length)
            if len(message) < length or len(file.read(4)) < 4:
                return
            yield message
