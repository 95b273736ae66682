"""`log.txt` in the folder of a run: what was logged, when, and how the run ended."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

_log = logging.getLogger(__name__)
#: Records kept until the folder is known; more than that would be a loop that logs.
_MOST_WAITING = 1000
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class RunLog(logging.Handler):
    """While entered, append what Python's logging reports to `log.txt` in the run's folder.

    The packages' messages arrive from INFO on, those of other libraries from WARNING on, as their
    loggers are set. The folder is known only once the trainer has made it: what comes before
    waits. A continued run appends to the file. An error that passes is written with its whole
    traceback; that the file cannot be written is one warning and never an error.

    Args:
        folder: Gives the run's folder, or None as long as there is none.
        command: The command line, written first.
    """

    def __init__(self, folder: Callable[[], Path | None], command: str) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(_FORMAT))
        self._folder = folder
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)
        self._file: TextIO | None = None
        self._broken = False
        # A forked child (Jittor compiles in some) must not write what waits a second time.
        self._pid = os.getpid()
        self._say(logging.INFO, "started: %s (process %d)", command, self._pid)

    def __enter__(self) -> RunLog:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is None:
            self._say(logging.INFO, "done")
        elif isinstance(error, (SystemExit, KeyboardInterrupt)):
            code = error.code if isinstance(error, SystemExit) else 130
            self._say(logging.INFO, "left with exit code %s", code)
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
            self._say(logging.ERROR, "failed\n%s", text)
        logging.getLogger().removeHandler(self)
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or keep it until the folder is known."""
        if self._broken or os.getpid() != self._pid:
            return
        self._waiting.append(self.format(record))
        try:
            self._write()
        except OSError as error:
            self._broken = True  # first, as the warning comes here too
            where = self._folder()
            _log.warning("%s/log.txt cannot be written (%s); it ends here", where, error.strerror)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk; what is lost was said already
                self._file.close()
            self._file = None
        super().close()

    def _write(self) -> None:
        if self._file is None:
            folder = self._folder()
            if folder is None:
                return
            self._file = (folder / "log.txt").open("a", encoding="utf-8", errors="backslashreplace")
        while self._waiting:
            self._file.write(self._waiting.popleft() + "\n")
        self._file.flush()  # a killed process leaves what it logged

    def _say(self, level: int, text: str, *args: object) -> None:
        # Only into the file: the terminal shows these things in its own way.
        self.emit(_log.makeRecord(_log.name, level, "", 0, text, args, None))
