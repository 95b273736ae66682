"""Runs of `tests.torture.program` as processes: started, followed line by line, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jtlightning import signals

ROOT = Path(__file__).parents[2]
#: Far above what a run takes; a torture test fails rather than hangs.
PATIENCE_S = 120.0
#: Of `program.py`: 7 micro-batches in windows of 2, 2, 2 and 1.
STEPS_PER_EPOCH = 4


class RunProcess:
    """One process of a run. Its own session, so that a group can be signalled.

    Attributes:
        events: What it has told so far.
        folder: Of the experiment.
        code: Its exit code as a shell shows it (128 + signal), once it has ended.
    """

    def __init__(self, folder: Path, epochs: int, *options: str) -> None:
        # Where another test has imported Jittor, a killed child would end this process too.
        signals.reclaim()
        folder.mkdir(exist_ok=True)
        self.folder = folder
        command = [sys.executable, "-m", "tests.torture.program", str(folder)]
        # Waiting threads of one process must not take the cores of the next.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        self._errors = folder / "stderr.txt"
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [*command, "--epochs", str(epochs), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        self.events: list[dict[str, Any]] = []
        self._rest = b""
        self.code: int | None = None

    def __enter__(self) -> RunProcess:
        return self

    def __exit__(self, *_: object) -> None:
        # The group: compilers that Jittor has forked outlive a process that is killed meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def wait_for(self, event: str, step: int = 0, seconds: float = PATIENCE_S) -> bool:
        """Whether the event (at that step or later) was told before the process ended."""
        deadline = time.monotonic() + seconds
        seen = 0
        while True:
            for line in self.events[seen:]:
                if line["event"] == event and line.get("step", step) >= step:
                    return True
            seen = len(self.events)
            if not self._read(deadline - time.monotonic()):
                return False

    def send(self, number: signal.Signals, *, group: bool = False) -> float:
        """Send a signal; returns the time right after it, once the process has taken it."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        sent = time.monotonic()
        # A second one of its kind is lost while the first has not been taken.
        while self._pending() and time.monotonic() < sent + PATIENCE_S:
            time.sleep(0.0005)
        return sent

    def _pending(self) -> bool:
        """Whether a signal has been sent and not been taken by the process yet."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        return "ShdPnd:\t0000000000000000" not in status and "State:\tZ" not in status

    def release(self) -> None:
        """End the pause that the process is in."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def finish(self, seconds: float = PATIENCE_S) -> int:
        """Wait for the end; returns the exit code as a shell shows it.

        Raises:
            TimeoutError: It did not end.
        """
        deadline = time.monotonic() + seconds
        # Read all the while: a full pipe would stop the process. Not until its end, which comes
        # only when nobody has inherited the other side.
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                last = f"last told: {self.events[-1:]}\n{self.errors()}"
                raise TimeoutError(f"still running after {seconds} s, {last}")
            self._read(0.002)
        while self._read(0.0):
            pass
        code = self.process.returncode
        self.code = 128 - code if code < 0 else code
        return self.code

    def last(self, event: str) -> dict[str, Any] | None:
        """The newest event of that name."""
        return next((line for line in reversed(self.events) if line["event"] == event), None)

    def told(self, event: str) -> list[dict[str, Any]]:
        """All events of that name."""
        return [line for line in self.events if line["event"] == event]

    def errors(self) -> str:
        """The end of what all processes of the folder wrote to stderr, for messages."""
        return self._errors.read_text(errors="replace")[-3000:]

    def _read(self, seconds: float) -> bool:
        """Take what has been told; False at the end of the file or of the time."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, seconds))
        data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.events += [json.loads(line) for line in lines]
        return bool(data)


def undisturbed(folder: Path, epochs: int) -> RunProcess:
    """A whole run in one process, ended."""
    with RunProcess(folder, epochs) as run:
        code = run.finish(5 * PATIENCE_S)  # the first run ever compiles
        assert code == 0, run.errors()
        return run


def hashes(run: RunProcess) -> dict[int, dict[str, str]]:
    """Step -> hashes of the state there, those of the start included."""
    return {line["step"]: line["hashes"] for line in run.events if "hashes" in line}


def compare(run: RunProcess, expected: dict[int, dict[str, str]]) -> int:
    """Check every state that a process told against the undisturbed run's; returns how many."""
    told = [line for line in run.events if "hashes" in line]
    for line in told:
        where = f"{line['event']} {line['step']}"
        assert line["hashes"] == expected[line["step"]], f"{where} differs\n{run.errors()}"
    return len(told)


def checkpoint_folder(folder: Path) -> Path:
    """The folder that the finished run has saved in."""
    (last,) = folder.glob("*/checkpoints/last.ckpt")
    return last.parent
