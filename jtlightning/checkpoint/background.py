"""One piece of work on a thread of its own, such as writing a file while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundJob:
    """Runs a function on a new thread; what it raises is raised by `wait`.

    The thread is not a daemon: the interpreter does not leave before it is done. The function
    must not use Jittor, which belongs to the main thread.

    Args:
        job: What to run; released as soon as it is done, with all that it holds.
        name: Of the thread, for debuggers.
    """

    def __init__(self, job: Callable[[], None], name: str) -> None:
        self._error: BaseException | None = None
        self._finished = False
        self._thread = threading.Thread(target=self._run, args=(job,), name=name)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the end and raise what the function raised.

        Raises:
            RuntimeError: In a forked child, which has no thread that could finish the job.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        if not self._finished:
            raise RuntimeError("this process was forked from the one that runs the job")

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it where it can be handled
            self._error = error
        else:
            self._finished = True
