"""One piece of work on a thread of its own, such as writing a file while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundJob:
    """Runs a function on a new thread.

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
        """Whether `wait` would return at once."""
        return not self._thread.is_alive()

    def wait(self) -> BaseException | None:
        """Wait for the end; returns what the function raised, to be raised where it fits."""
        self._thread.join()
        if self._error is None and not self._finished:
            return RuntimeError("this process was forked from the one whose thread does the job")
        return self._error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - nothing could catch it on this thread
            self._error = error
        else:
            self._finished = True
