"""Scalars as a table in `metrics.csv`."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jtlightning.loggers.base import Logger

if TYPE_CHECKING:
    from jtlightning.run_directory import RunDirectory

_log = logging.getLogger(__name__)
_FIXED = ["step", "epoch"]


class CSVLogger(Logger):
    """One row per step, one column per metric; a cell without a value is empty.

    What is logged in several calls at one step ends up in one row, and is on disk after each
    call. A new metric adds a column: the table is written anew beside the old one and takes its
    place. Rows beyond the step that a run is resumed from, or beyond any step logged later, are
    removed: they are about to be written again.

    Args:
        name: File name in the run's folder.
    """

    def __init__(self, name: str = "metrics.csv") -> None:
        self.name = name
        self.path: Path | None = None
        self._active = False
        self._columns: list[str] = []
        self._newest: dict[str, str] = {}  # the last row, and where it begins in the file
        self._newest_at = 0

    def start(self, run: RunDirectory, *, resumed_step: int | None) -> None:
        self.path = run.path / self.name
        try:
            if resumed_step is not None and self.path.exists():
                self._rewrite(*_read(self.path, up_to_step=resumed_step))
            else:
                self._rewrite(list(_FIXED), [])
            self._active = True
        except (OSError, csv.Error) as error:
            self._give_up(error)

    def log_metrics(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        if not self._active:
            return
        values = {name: repr(float(value)) for name, value in metrics.items()}
        try:
            self._add({"step": str(step), "epoch": str(epoch), **values})
        except (OSError, csv.Error) as error:
            self._give_up(error)

    def finish(self, status: str) -> None:
        self._active = False

    def _add(self, row: dict[str, str]) -> None:
        assert self.path is not None
        columns = [*self._columns, *(name for name in row if name not in self._columns)]
        newest = self._newest
        if columns != self._columns or (newest and int(row["step"]) < int(newest["step"])):
            self._rewrite(columns, _read(self.path, up_to_step=int(row["step"]))[1])
            newest = self._newest
        with self.path.open("r+b", buffering=0) as file:
            if newest and newest["step"] == row["step"]:
                row = {**newest, **row}
                file.seek(self._newest_at)
            else:
                self._newest_at = file.seek(0, io.SEEK_END)
            file.write(_encode(self._columns, row))
            file.truncate()
        self._newest = row

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Replace the file by this table, in one step."""
        assert self.path is not None
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("wb") as file:
            file.write(_encode(columns, dict(zip(columns, columns, strict=True))))
            for row in rows:
                self._newest_at = file.tell()
                file.write(_encode(columns, row))
        temporary.replace(self.path)
        self._columns, self._newest = columns, (rows[-1] if rows else {})

    def _give_up(self, error: Exception) -> None:
        _log.warning("CSVLogger stops, training goes on: %s: %s", self.path, error)
        self._active = False


def _encode(columns: list[str], row: dict[str, str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in columns])
    return text.getvalue().encode()


def _read(path: Path, *, up_to_step: int) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table; lines that a kill or a power loss has spoilt are left out."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        text = file.read().replace("\0", "")  # an error of Python 3.10's reader
    table = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not table or table[0][: len(_FIXED)] != _FIXED:
        return list(_FIXED), []
    columns: list[str] = table[0]
    rows: list[dict[str, Any]] = [
        {name: cell for name, cell in zip(columns, cells, strict=True) if cell != ""}
        for cells in table[1:]
        if len(cells) == len(columns) and cells[0].isdigit()
    ]
    return columns, [row for row in rows if int(row["step"]) <= up_to_step]
