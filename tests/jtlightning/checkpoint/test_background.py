from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from jtlightning.checkpoint.background import BackgroundJob


def test_the_job_runs_beside_its_caller_and_is_waited_for():
    go, done = threading.Event(), []
    job = BackgroundJob(lambda: done.append(go.wait(30)), "test")
    assert not job.done
    go.set()
    assert job.wait() is None
    assert job.done
    assert done == [True]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), MemoryError()])
def test_what_the_job_raises_is_handed_over(error):
    def fail():
        raise error

    assert BackgroundJob(fail, "test").wait() is error


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12
def test_a_forked_child_does_not_take_the_job_for_done():
    go = threading.Event()
    job = BackgroundJob(lambda: go.wait(30) and None, "test")
    child = os.fork()
    if not child:
        os._exit(7 if isinstance(job.wait(), RuntimeError) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    go.set()
    assert job.wait() is None


LEAVE = """
import sys, threading
from pathlib import Path
from jtlightning.checkpoint.background import BackgroundJob

main = threading.main_thread()
BackgroundJob(lambda: (main.join(), Path(sys.argv[1]).touch()), "test")
"""


def test_the_interpreter_leaves_after_the_job(tmp_path):
    subprocess.run([sys.executable, "-c", LEAVE, tmp_path / "written"], check=True)
    assert (tmp_path / "written").exists()
