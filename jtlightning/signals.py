"""Signals: taken back from Jittor, and turned into a stop at the next step boundary.

Importing Jittor replaces the C handlers of SIGINT (quits without finally blocks) and SIGCHLD
(quits when any child dies of a signal).
"""

from __future__ import annotations

import atexit
import ctypes
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import jittor_utils

_SA_RESETHAND = 0x80000000


def reclaim() -> None:
    """Give SIGINT and SIGCHLD back to Python; harmless to repeat, does nothing in a thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Python still believes that its own handler is installed, so set it again to reach C.
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, handler if callable(handler) else signal.default_int_handler)


def end_compile_pool() -> None:
    """End the forked processes that Jittor keeps after compiling its core; it makes new ones.

    A signal for the whole process group, as schedulers send it, would kill them while they hold
    a lock that Jittor's clean-up waits for, and the process would never end.
    """
    if jittor_utils.pool_size:
        jittor_utils.pool_cleanup()
        atexit.unregister(jittor_utils.pool_cleanup)
        jittor_utils.pool_size = 0


class _SigAction(ctypes.Structure):
    """`struct sigaction` of Linux's C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_uint),
        ("restorer", ctypes.c_void_p),
    )


def _let_the_next_one_kill(number: signal.Signals) -> None:
    """Have the kernel itself put the system's default in place once the handler has been called.

    Python calls its handlers only between two of its own instructions, so a handler cannot do
    it while Jittor compiles or computes.
    """
    if sys.platform != "linux":
        return
    sigaction = ctypes.CDLL(None).sigaction
    action = _SigAction()
    sigaction(int(number), None, ctypes.byref(action))
    action.flags |= _SA_RESETHAND
    sigaction(int(number), ctypes.byref(action), None)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM only sets `received`; a second SIGINT kills.

    The second one does so at once, on Linux also while C++ code holds the interpreter. Outside the
    main thread signals cannot be handled, and nothing is changed.
    """

    WATCHED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        reclaim()
        if threading.current_thread() is threading.main_thread():
            for number in self.WATCHED:
                self._previous[number] = signal.signal(number, self._on_signal)
            self.arm()
        return self

    def arm(self) -> None:
        """Have a second SIGINT kill also in C++ code; to be repeated once workers have started.

        Their start exchanges the handlers for a moment, and Python gives them back without this.
        """
        if signal.SIGINT in self._previous and self.received is None:
            _let_the_next_one_kill(signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        # A Ctrl-C after SIGTERM, too, asks to leave at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
