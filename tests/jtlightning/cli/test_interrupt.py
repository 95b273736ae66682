"""Ctrl-C while Jittor is imported, which takes SIGINT away from Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

from jtlightning.cli.interrupt import leave_at_ctrl_c

ROOT = Path(__file__).resolve().parents[3]


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, in a process group of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        start_new_session=True,
    )


def test_ctrl_c_during_the_import_of_jittor_leaves_with_130(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {class_path: a.B}\ntask: {class_path: a.C}\n")
    done = run(
        """
        import os, signal, sys
        from segtasks.__main__ import main

        class Interrupt:
            # jittor.nn is imported once Jittor's core has put its handlers in place.
            def find_spec(self, name, path=None, target=None):
                if name == "jittor.nn":
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupt())
        main(["fit", "--config", "mine.yaml"])
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_compilers_that_run_meanwhile_are_ended(tmp_path: Path) -> None:
    done = run(
        """
        import os, signal, subprocess, sys

        from jtlightning.cli.interrupt import leave_at_ctrl_c

        with leave_at_ctrl_c(before=lambda: print("before", flush=True)):
            # The shell and what it started both ignore the blocked signal.
            child = subprocess.Popen(["sh", "-c", "sleep 20; true"], stdout=subprocess.PIPE)
            os.kill(0, signal.SIGINT)
            child.wait()
            signal.pause()
        """,
        tmp_path,
    )
    # `run` returns once nobody holds the pipes any more.
    assert (done.returncode, done.stdout, done.stderr) == (130, "before\n", "interrupted\n")


def test_handler_and_threads_are_the_old_ones_afterwards() -> None:
    threads, handler = threading.enumerate(), signal.getsignal(signal.SIGINT)
    with leave_at_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.enumerate() == threads


def test_another_thread_changes_nothing() -> None:
    seen = []

    def enter() -> None:
        with leave_at_ctrl_c():
            seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [set()]
