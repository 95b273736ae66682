"""One run, killed again and again with SIGKILL, against the same run left alone."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jtlightning.checkpoint.container import verify_checkpoint
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


@dataclass(frozen=True)
class Kills:
    """How many kills there are, and how many of them in a write and in start-up."""

    all: int
    in_a_write: int
    in_start_up: int


IN_PLACE = Kills(count(10, 50), count(4, 15), count(1, 6))
#: With the files written by a thread while training goes on.
BY_A_THREAD = Kills(count(7, 25), count(4, 12), count(1, 2))
STEPS_A_KILL = 6
EPOCHS = -(-IN_PLACE.all * STEPS_A_KILL // STEPS_PER_EPOCH)
STEPS = EPOCHS * STEPS_PER_EPOCH


@dataclass
class Chain:
    """The killed run: how far it is, and what was found out on the way."""

    folder: Path
    expected: dict[int, dict[str, str]]
    operations: list[str]  # of one save
    rng: random.Random
    options: tuple[str, ...]
    compared: int = 0
    step: int = 0  # the last that a process told
    in_writes: list[str] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)

    def kill_in_start_up(self) -> None:
        """Anywhere between the start of Python and the first step."""
        with RunProcess(self.folder, EPOCHS, *self.options) as run:
            run.wait_for("step", seconds=self.rng.uniform(0.0, 2.5))
            self._kill(run)

    def kill_in_training(self, legs_left: int) -> None:
        """A few milliseconds after one of the next steps: in any part of the loop."""
        ahead = max(1, (STEPS - self.step) // (legs_left + 1))
        with RunProcess(self.folder, EPOCHS, *self.options) as run:
            assert run.wait_for("resumed"), run.errors()
            first = run.events[0]["step"]
            target = min(first + self.rng.randint(1, 2 * ahead), STEPS - 1)
            assert run.wait_for("step", step=target), run.errors()
            time.sleep(self.rng.uniform(0.0, 0.01))
            self._kill(run)

    def kill_in_a_write(self, name: str) -> None:
        """While a save is between two of its file operations, or half through a write."""
        number = self.rng.randint(1, self.operations.count(name))
        place = f"save:{self.rng.randint(1, 2)}:{name}:{number}"
        if self.step == 0:
            place = f"save:1:{name}:1"
        with RunProcess(self.folder, EPOCHS, "--pause", place, *self.options) as run:
            assert run.wait_for("paused"), f"{place} was not reached\n{run.errors()}"
            assert run.process.poll() is None
            self._kill(run)
            self.in_writes.append(name)

    def _kill(self, run: RunProcess) -> None:
        run.process.kill()
        run.finish()
        self.check(run)

    def check(self, run: RunProcess) -> None:
        """Compare every state that the process told: where it resumed, and after each step."""
        self.compared += compare(run, self.expected)
        if run.events:
            self.resumed_at.append(run.events[0]["step"])
            self.step = max(line["step"] for line in run.events if "hashes" in line)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> RunProcess:
    return undisturbed(tmp_path_factory.mktemp("runs") / "left_alone", EPOCHS)


def plan(rng: random.Random, kills: Kills, operations: list[str]) -> list[str]:
    """What each kill is aimed at; every kind of operation of a save comes before one repeats."""
    kinds = list(dict.fromkeys(operations))
    # The last rename first: it leaves a temporary file in a folder without a checkpoint.
    first = ["rename", *rng.sample([k for k in kinds if k != "rename"], len(kinds) - 1)]
    writes = list(itertools.islice(itertools.cycle(first), kills.in_a_write))
    rest = kills.all - 1 - kills.in_a_write - kills.in_start_up
    legs = [*writes[1:], *["start"] * kills.in_start_up, *["training"] * rest]
    rng.shuffle(legs)
    # First while there is no checkpoint yet, last when there is nothing left to train.
    return [writes[0], *legs, "end"]


@pytest.mark.parametrize(
    ("kills", "options"),
    [(IN_PLACE, ()), (BY_A_THREAD, ("--asynchronous",))],
    ids=["in_place", "by_a_thread"],
)
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, left_alone: RunProcess, kills: Kills, options: tuple[str, ...]
) -> None:
    rng = random.Random(kills.all)
    folder = tmp_path / "killed"
    saves = [line["operations"] for line in left_alone.told("saved")]
    # A save that also removes a predecessor has every kind of operation.
    operations = max(saves[4:], key=lambda names: len(set(names)))
    assert set(operations) == {"create", "write", "fsync", "rename", "link", "remove"}
    chain = Chain(folder, hashes(left_alone), operations, rng, options)
    began = time.monotonic()
    for number, leg in enumerate(plan(rng, kills, operations)):
        if leg == "start":
            chain.kill_in_start_up()
        elif leg == "training":
            chain.kill_in_training(kills.all - number)
        elif leg == "end":
            with RunProcess(folder, EPOCHS, *chain.options) as run:
                assert run.wait_for("end"), run.errors()
                time.sleep(rng.uniform(0.0, 0.02))
                chain._kill(run)
        else:
            chain.kill_in_a_write(leg)
        check_files(folder)
    with RunProcess(folder, EPOCHS, *chain.options) as run:
        assert run.finish() == 0, run.errors()
        chain.check(run)
    assert chain.step == STEPS
    check_end(folder, left_alone)
    report(
        "kill -9 at random moments, then `ckpt_path=auto`"
        + (", files written by a thread" if options else ""),
        f"{'' if options else '50 kills, 10 of them inside a checkpoint write; '}"
        "bit-equal; no torn file chosen; no stray files",
        f"{kills.all} of {kills.all} ({len(chain.in_writes)} inside a write: "
        f"{', '.join(sorted(set(chain.in_writes)))}; {kills.in_start_up} during start-up); "
        f"{chain.compared} states compared, all bit-equal; {time.monotonic() - began:.0f} s",
    )


def check_files(folder: Path) -> None:
    """A file under its final name is whole at any moment."""
    for path in folder.glob("*/checkpoints/*.ckpt"):
        verify_checkpoint(path)


def check_end(folder: Path, left_alone: RunProcess) -> None:
    """The files are those of a run that was left alone."""
    strays = [p for p in folder.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    assert not strays
    alone = checkpoint_folder(left_alone.folder)
    killed = checkpoint_folder(folder)
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in alone.iterdir())
    table = (killed.parent / "metrics.csv").read_text()
    steps = [int(line.split(",")[0]) for line in table.splitlines()[1:]]
    assert steps == list(range(1, STEPS + 1))
    assert table == (alone.parent / "metrics.csv").read_text()
