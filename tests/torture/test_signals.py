"""Stop signals at random phases of a real run, chained, against the same run left alone."""

from __future__ import annotations

import itertools
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jtlightning.checkpoint.container import read_checkpoint
from tests.torture.run_process import (
    STEPS_PER_EPOCH,
    RunProcess,
    checkpoint_folder,
    compare,
    hashes,
    undisturbed,
)
from tests.torture.scale import count, report

pytestmark = [pytest.mark.slow, pytest.mark.torture]

EACH = count(5, 20)  # of SIGTERM, of SIGINT, of two SIGINTs
STEPS_A_LEG = 4
EPOCHS = -(-(3 * EACH + 17) * STEPS_A_LEG // STEPS_PER_EPOCH)
STEPS = EPOCHS * STEPS_PER_EPOCH
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
LEAVES_WITHIN_S = 0.5

#: Where the signal comes: between two lines of the loop, or in the middle of one of its parts.
PHASES = ("loop", "on_validation_batch_end", "save", "loop", "on_after_backward", "set-up")


@dataclass
class Chain:
    """The run that is stopped again and again, and what was measured on the way."""

    folder: Path
    expected: dict[int, dict[str, str]]
    rng: random.Random
    step: int = 0
    compared: int = 0
    late_steps: list[int] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)

    def pause(self, phase: str) -> tuple[str, ...]:
        """The program's options for a phase; `loop` needs none."""
        number = self.rng.randint(1, 3)
        places = {
            "loop": (),
            "set-up": ("--pause", self.rng.choice(["on_fit_start:1", "on_sanity_check_start:1"])),
            "save": ("--pause", f"save:{number}:{self.rng.choice(['write', 'fsync'])}:1"),
            # The sanity check has two batches of validation.
            "on_validation_batch_end": ("--pause", f"on_validation_batch_end:{2 + number}"),
            "on_after_backward": ("--pause", f"on_after_backward:{number}"),
        }
        return places[phase]

    def reach(self, run: RunProcess, phase: str) -> None:
        """Wait until the process is where the signal is to come."""
        if phase != "loop":
            assert run.wait_for("paused"), run.errors()
            return
        assert run.wait_for("resumed"), run.errors()
        target = run.events[0]["step"] + self.rng.randint(0, 2 * STEPS_A_LEG - 2)
        assert run.wait_for("step", step=max(1, target)), run.errors()
        time.sleep(self.rng.uniform(0.0, 0.003))

    def stop(self, number: signal.Signals, phase: str, *options: str, group: bool = False) -> None:
        """One signal: a step later at most all is saved, and the exit code names the signal."""
        with RunProcess(self.folder, EPOCHS, *self.pause(phase), *options) as run:
            self.reach(run, phase)
            sent = run.send(number, group=group)
            if phase != "loop":
                run.release()
            assert run.finish() == CODES[number], f"{number!r} {phase} {run.errors()}"
            late = [line for line in run.told("step") if line["time"] > sent]
            self.late_steps.append(len(late))
            assert len(late) <= 1, f"{number!r} {phase}"
            self.check(run)
            last = checkpoint_folder(self.folder) / "last.ckpt"
            assert read_checkpoint(last).metadata["loop"]["global_step"] == self.step
            check_nobody_is_left(run)

    def stop_twice(self, phase: str, *options: str, group: bool = False) -> None:
        """Two signals: the process is gone within half a second, whatever it was doing."""
        with RunProcess(self.folder, EPOCHS, *self.pause(phase), *options) as run:
            self.reach(run, phase)
            run.send(signal.SIGINT, group=group)
            time.sleep(self.rng.uniform(0.0, 0.1))
            sent = run.send(signal.SIGINT, group=group)
            assert run.finish() == 130, f"{phase} {run.errors()}"
            self.left_s.append(time.monotonic() - sent)
            assert self.left_s[-1] < LEAVES_WITHIN_S, phase
            self.check(run)
            check_nobody_is_left(run)

    def check(self, run: RunProcess) -> None:
        """Compare every state that the process told."""
        self.compared += compare(run, self.expected)
        told = [line["step"] for line in run.events if "hashes" in line]
        self.step = max(told, default=self.step)


def check_nobody_is_left(run: RunProcess) -> None:
    """No process of the run's session outlives it for long."""
    deadline = time.monotonic() + 5.0
    while members := _session(run.process.pid):
        assert time.monotonic() < deadline, f"still there: {members}"
        time.sleep(0.05)


def _session(leader: int) -> list[str]:
    """Names of the processes of a session, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue  # gone meanwhile
        state, _, _, session = rest.split()[:4]
        if int(session) == leader and state != "Z":
            found.append(name)
    return found


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> RunProcess:
    return undisturbed(tmp_path_factory.mktemp("runs") / "left_alone", EPOCHS)


def test_every_stop_signal_saves_within_a_step_and_the_run_ends_with_the_same_bits(
    tmp_path: Path, left_alone: RunProcess
) -> None:
    rng = random.Random(1)
    chain = Chain(tmp_path / "stopped", hashes(left_alone), rng)
    phases = [list(itertools.islice(itertools.cycle(PHASES), EACH)) for _ in range(3)]
    legs = [
        *((chain.stop, signal.SIGTERM, phase) for phase in phases[0]),
        *((chain.stop, signal.SIGINT, phase) for phase in phases[1]),
        *((chain.stop_twice, phase) for phase in phases[2]),
    ]
    rng.shuffle(legs)
    # A save first, so that the run continues in one folder.
    for do, *arguments in [(chain.stop, signal.SIGTERM, "loop"), *legs]:
        do(*arguments)
    in_start_up(chain)
    with_workers(chain)
    while_a_thread_writes(chain)
    in_a_kernel(chain)
    with RunProcess(chain.folder, EPOCHS) as run:
        assert run.finish() == 0, run.errors()
        chain.check(run)
    assert chain.step == STEPS
    ended = [checkpoint_folder(f).parent / "metrics.csv" for f in (chain.folder, left_alone.folder)]
    assert ended[0].read_text() == ended[1].read_text()
    report(
        "SIGTERM, SIGINT, double SIGINT at random phases",
        "20 of each; saved within one step; 143 and 130; second Ctrl-C within 0.5 s; bit-equal",
        f"{EACH} of each, at most {max(chain.late_steps)} step after the signal; codes 143 and "
        f"130 every time; the second Ctrl-C took at most {max(chain.left_s):.2f} s (also in a "
        f"kernel, and with 2 workers); {chain.compared} states compared, all bit-equal",
    )


def in_start_up(chain: Chain) -> None:
    """From the start of Python on, the import of Jittor included, there is nothing to lose."""
    for number in [*CODES] * count(2, 8):
        with RunProcess(chain.folder, EPOCHS) as run:
            run.wait_for("step", seconds=chain.rng.uniform(0.0, 2.0))
            run.send(number)
            assert run.finish() == CODES[number], f"{number!r} {run.errors()}"
            chain.check(run)


def with_workers(chain: Chain) -> None:
    """Ctrl-C in a terminal and a scheduler's signal reach the workers too."""
    for number in CODES:
        chain.stop(number, "loop", "--workers", "2", group=True)
    chain.stop(signal.SIGTERM, "loop", "--workers", "2")
    chain.stop_twice("loop", "--workers", "2", group=True)


def while_a_thread_writes(chain: Chain) -> None:
    """The process waits for a file that is being written, and then writes the last one."""
    chain.stop(signal.SIGTERM, "save", "--asynchronous")
    chain.stop(signal.SIGINT, "loop", "--asynchronous")
    chain.stop_twice("save", "--asynchronous")


def in_a_kernel(chain: Chain) -> None:
    """While C++ code holds the interpreter, which calls no handler of Python."""
    with RunProcess(chain.folder, EPOCHS, "--pause", "busy:2:1.0") as run:
        assert run.wait_for("busy"), run.errors()
        sent = run.send(signal.SIGINT)
        assert run.finish() == 130, run.errors()
        # The step that the kernel belongs to is told behind it.
        assert len([line for line in run.told("step") if line["time"] > sent]) <= 1
        chain.check(run)
    with RunProcess(chain.folder, EPOCHS, "--pause", "busy:2:60") as run:
        assert run.wait_for("busy"), run.errors()
        time.sleep(0.1)  # from the line into the kernel
        run.send(signal.SIGINT)
        time.sleep(0.1)
        assert run.process.poll() is None
        sent = run.send(signal.SIGINT)
        assert run.finish() == 130, run.errors()
        chain.left_s.append(time.monotonic() - sent)
        assert chain.left_s[-1] < LEAVES_WITHIN_S
        chain.check(run)


def test_unrelated_children_may_be_killed_stopped_or_crash(
    tmp_path: Path, left_alone: RunProcess
) -> None:
    with RunProcess(tmp_path / "run", EPOCHS, "--other-children") as run:
        assert run.finish() == 0, run.errors()
        compared = compare(run, hashes(left_alone))
    ended = run.last("children")
    assert ended is not None
    ways = [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM]
    assert ended["codes"] == [-way for way in ways]
    assert compared == STEPS + 1
    report(
        "unrelated child processes killed, stopped, crashed during a run",
        "changes nothing",
        f"exit code 0, {compared} of {compared} states bit-equal",
    )
