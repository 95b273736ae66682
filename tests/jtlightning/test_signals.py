from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys

import jittor  # noqa: F401 - replaces the C handlers, which is what these tests are about
import pytest

from jtlightning.signals import StopSignals, end_compile_pool, reclaim


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_only_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as watched:
        os.kill(os.getpid(), number)
        assert watched.received is number
        # The next Ctrl-C ends the process even while C++ code holds the interpreter.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(number) is before


def test_a_child_that_is_killed_does_not_end_this_process() -> None:
    reclaim()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child.kill()
    assert child.wait() == -signal.SIGKILL


def test_ctrl_c_outside_of_training_is_a_keyboard_interrupt() -> None:
    reclaim()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_no_forked_compilers_are_left_for_a_group_signal_to_kill() -> None:
    end_compile_pool()
    assert not [c for c in multiprocessing.active_children() if "Fork" in c.name]
    end_compile_pool()  # harmless to repeat
