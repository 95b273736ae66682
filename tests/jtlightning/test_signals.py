from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jittor  # noqa: F401 - replaces the C handlers, which is what these tests are about
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.data.loader import Loader
from jtlightning.signals import (
    _SA_RESETHAND,
    StopSignals,
    _SigAction,
    end_compile_pool,
    reclaim,
)
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask, collate, jitter


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_only_noted_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as watched:
        os.kill(os.getpid(), number)
        assert watched.received is number
        # The next Ctrl-C ends the process even while C++ code holds the interpreter.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(number) is before


#: Waits in C code for ever, with the interpreter locked, as a long kernel has it.
IN_C = """
import ctypes, sys
from jtlightning.signals import StopSignals
lock, library = ctypes.create_string_buffer(128), ctypes.PyDLL(None)
with StopSignals():
    library.pthread_mutex_lock(lock)
    sys.stdout.write("ready")
    sys.stdout.flush()
    library.pthread_mutex_lock(lock)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python's handler must run first")
def test_a_second_ctrl_c_ends_the_process_while_c_code_runs() -> None:
    command = [sys.executable, "-c", IN_C]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(5) == b"ready"
        wait_until_it_sleeps(child.pid)
        child.send_signal(signal.SIGINT)
        wait_until_it_sleeps(child.pid)
        assert child.poll() is None, "the first one is only noted"
        child.send_signal(signal.SIGINT)
        try:
            assert child.wait(10) == -signal.SIGINT
        finally:
            child.kill()


def wait_until_it_sleeps(pid: int) -> None:
    """Until its main thread waits in the kernel, and no signal waits for it."""
    deadline = time.monotonic() + 10
    status = ""
    while "\nState:\tS" not in status or "\nShdPnd:\t0000000000000000" not in status:
        assert time.monotonic() < deadline, status
        status = Path(f"/proc/{pid}/status").read_text()


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python's handler must run first")
def test_it_stays_so_once_loader_workers_have_started(tmp_path: Path) -> None:
    """Their start exchanges the handlers for a moment."""

    class WithWorkers(TinyData):
        def train_dataloader(self) -> Loader:
            return Loader(self.train, 4, collate=collate, transform=jitter, num_workers=1)

    class Looks(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            action = _SigAction()
            ctypes.CDLL(None).sigaction(int(signal.SIGINT), None, ctypes.byref(action))
            self.resets = bool(action.flags & _SA_RESETHAND)

    looks = Looks()
    trainer = make_trainer(tmp_path, max_steps=1, num_sanity_val_steps=0, callbacks=[looks])
    trainer.fit(TinyTask(), datamodule=WithWorkers())
    assert looks.resets
