"""Calls to a tracking client in a thread of their own, where it may fail or hang alone."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable

_LIMIT = 10_000
_PATIENCE_S = 10.0
_POLL_S = 0.05
_LAST_WORDS_S = 5.0


class Background:
    """Makes calls one after the other without holding up training.

    A call that raises, a client that falls behind and a call that outlasts its time end the
    logging: one warning, and every later call is dropped.

    Args:
        name: Of the logger, for its warning.
        log: Where the warning goes.
        close: Called in the thread once it gives up, to release what the client holds.
        interrupt: Called where a call hangs, to make it return: ends the client's service, say.
        limit: Calls that may wait.
        patience_s: How long the run may, in all, be held up by a queue that is full.
    """

    def __init__(
        self,
        name: str,
        log: logging.Logger,
        *,
        close: Callable[[], None] = lambda: None,
        interrupt: Callable[[], None] = lambda: None,
        limit: int = _LIMIT,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self.name, self._log = name, log
        self._patience_s = patience_s
        self._close, self._interrupt = close, interrupt
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(limit)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        # Daemonic: a client that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether it has given up, or has been closed."""
        return self._stopped.is_set()

    def put(self, call: Callable[[], None]) -> None:
        """Queue a call; returns at once unless the queue is full."""
        self._enqueue(call)

    def run(self, call: Callable[[], None], timeout_s: float) -> bool:
        """Queue a call and wait for its end; False where it failed or its time was up."""
        ended = threading.Event()

        def tell() -> None:
            call()
            ended.set()

        self.put(tell)
        deadline = time.monotonic() + timeout_s
        while not ended.wait(_POLL_S) and not self.stopped:
            if time.monotonic() > deadline:
                self._abandon(f"the client has not answered for {timeout_s:g} s")
        return ended.is_set()

    def close(self) -> None:
        """Let the thread end once it has made the calls that are waiting."""
        self._enqueue(None)
        self._thread.join(_LAST_WORDS_S)
        self._stopped.set()

    def _enqueue(self, call: Callable[[], None] | None) -> None:
        while not self.stopped:
            began = time.monotonic()
            try:
                self._calls.put(call, timeout=_POLL_S)
            except queue.Full:
                self._patience_s -= time.monotonic() - began
                if self._patience_s <= 0:
                    self._abandon(
                        f"{self._calls.maxsize} calls are waiting for a client that is too slow "
                        "or hangs; in the first case log less often (log_every_n_steps)"
                    )
            else:
                return

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self.stopped:
            try:
                call()
            # A client may raise anything, SystemExit included, and none of it may end a run: what
            # it says is shown, and the logging is over.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                self._stop(f"{type(error).__name__}: {error}")
            if self.stopped:
                break
        if call is not None:
            with contextlib.suppress(Exception, SystemExit):  # there is nothing left to rescue
                self._close()

    def _stop(self, reason: str) -> None:
        with self._lock:
            if self._stopped.is_set():
                return
            self._stopped.set()
        self._log.warning("%s stops, training goes on: %s", self.name, reason)

    def _abandon(self, reason: str) -> None:
        """Give up from outside, while the thread may hang in a call."""
        self._stop(reason)
        self._interrupt()
        with contextlib.suppress(queue.Full):
            self._calls.put_nowait(None)
