"""Two runs in one folder, and folders that were copied, moved or have wrong times."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jtlightning import signals
from jtlightning.checkpoint.container import Checkpoint, verify_checkpoint, write_checkpoint
from jtlightning.run_directory import RunDirectory, RunLockedError, find_checkpoint
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

EPOCHS, PAIRS = 3, count(1, 10)
STEPS = EPOCHS * STEPS_PER_EPOCH
DAY_S = 86_400


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> RunProcess:
    return undisturbed(tmp_path_factory.mktemp("runs") / "left_alone", EPOCHS)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, left_alone: RunProcess) -> Path:
    """An experiment whose only run was killed after a save, before its predecessor was removed."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    # The first removal of a save is that of the link's temporary name.
    with RunProcess(folder, EPOCHS, "--pause", "save:1:remove:2") as run:
        assert run.wait_for("paused"), run.errors()
        run.process.kill()
        run.finish()
        compare(run, hashes(left_alone))
    return folder


@pytest.fixture
def stopped(tmp_path: Path, killed: Path) -> Path:
    """A copy of it for each test."""
    return Path(shutil.copytree(killed, tmp_path / "experiment"))


@contextmanager
def both(folder: Path, *options: str) -> Iterator[list[RunProcess]]:
    """Two processes of one experiment, started at the same time, each with its own stderr."""
    with ExitStack() as stack:
        yield [stack.enter_context(RunProcess(folder, EPOCHS, *options)) for _ in range(2)]


def steps_logged(run_folder: Path) -> list[int]:
    with (run_folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def step_of(path: Path) -> int:
    return verify_checkpoint(path)["loop"]["global_step"]


def check_whole(folder: Path, run: Path, *, resumed: int = 0) -> None:
    """One process alone has written this run, to its end."""
    assert step_of(run / "checkpoints" / "last.ckpt") == STEPS
    assert not list(run.glob("checkpoints/.*"))
    logged = steps_logged(run)
    assert logged == sorted(logged), "rows of two processes are mixed"
    assert sorted(set(logged)) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("pair", range(PAIRS))
def test_two_runs_started_at_once_take_a_folder_each(
    tmp_path: Path, left_alone: RunProcess, pair: int
) -> None:
    folder = tmp_path / "experiment"
    with both(folder) as runs:
        codes = [run.finish() for run in runs]
        assert codes == [0, 0], runs[0].errors()
        for run in runs:
            compare(run, hashes(left_alone))
            assert run.events[0]["step"] == 0
    folders = sorted(path.parent for path in folder.glob("*/run.lock"))
    assert len(folders) == 2
    for path in folders:
        check_whole(folder, path)
    report("two runs started at once", "the second takes its own folder", "held")


@pytest.mark.parametrize("pair", range(PAIRS))
def test_of_two_that_continue_one_run_the_second_refuses_or_takes_its_own(
    stopped: Path, left_alone: RunProcess, pair: int
) -> None:
    with both(stopped) as runs:
        codes = [run.finish() for run in runs]
        for run in runs:
            compare(run, hashes(left_alone))
        starts = [run.events[0]["step"] if run.events else None for run in runs]
        errors = runs[0].errors()
    assert 0 in codes, errors
    # Whoever came too late found the folder locked: at the search (own folder, from scratch, a
    # warning), at its lock (code 1), or found the finished run.
    folders = sorted(path.parent for path in stopped.glob("*/run.lock"))
    if 1 in codes:
        assert "is running in this folder" in errors
        assert len(folders) == 1
    for path in folders:
        check_whole(stopped, path)
    assert sum(start is not None and 0 < start < STEPS for start in starts) == 1, (starts, codes)
    report("two processes continue one run", "the second refuses or takes its own", "held")


def test_a_run_beside_a_live_one_takes_its_own_folder_and_says_so(
    stopped: Path, left_alone: RunProcess
) -> None:
    (locked,) = (path.parent for path in stopped.glob("*/run.lock"))
    with RunProcess(stopped, EPOCHS, "--pause", "on_train_start:1") as live:
        assert live.wait_for("paused"), live.errors()
        with pytest.raises(RunLockedError, match=f"process {live.process.pid} on"):
            RunDirectory.reopen(locked)
        before = {path: path.read_bytes() for path in locked.glob("checkpoints/*")}
        with RunProcess(stopped, EPOCHS) as second:
            assert second.finish() == 0, second.errors()
            assert second.events[0]["step"] == 0
            assert f"left out: {locked}, as another process is running there" in second.errors()
        assert {path: path.read_bytes() for path in locked.glob("checkpoints/*")} == before
        live.release()
        assert live.finish() == 0, live.errors()
        compare(live, hashes(left_alone))
    for run in (path.parent for path in stopped.glob("*/run.lock")):
        check_whole(stopped, run)


def test_what_a_kill_between_write_and_removal_left_goes_on_resume(stopped: Path) -> None:
    (folder,) = stopped.glob("*/checkpoints")
    newest = find_checkpoint(stopped, "last")
    assert newest is not None
    states = verify_checkpoint(newest)["callbacks"]
    left = [
        name
        for key, state in states.items()
        if key.startswith("ModelCheckpoint")
        for name in state["retired"]
    ]
    assert left
    assert (folder / left[0]).exists()
    with RunProcess(stopped, EPOCHS) as run:
        assert run.finish() == 0, run.errors()
    assert checkpoint_folder(stopped) == folder
    assert not (folder / left[0]).exists()
    ranked = {
        name
        for key, state in verify_checkpoint(folder / "last.ckpt")["callbacks"].items()
        if key.startswith("ModelCheckpoint")
        for name, *_ in state["ranked"]
    }
    assert {path.name for path in folder.iterdir()} == {*ranked, "last.ckpt"}


@pytest.mark.parametrize("way", ["copied", "moved", "renamed"])
def test_a_copied_or_moved_run_continues_there(
    stopped: Path, tmp_path: Path, left_alone: RunProcess, way: str
) -> None:
    (original,) = (path.parent for path in stopped.glob("*/run.lock"))
    before = {path.name: path.read_bytes() for path in original.glob("checkpoints/*")}
    if way == "renamed":
        target, name = stopped, "my-best-run"
        original.rename(stopped / name)
    else:
        target, name = tmp_path / "elsewhere", original.name
        target.mkdir()
        (shutil.copytree if way == "copied" else shutil.move)(original, target / name)
    with RunProcess(target, EPOCHS) as run:
        assert run.finish() == 0, run.errors()
        compare(run, hashes(left_alone))
        assert run.events[0]["step"] > 0
    check_whole(target, target / name)
    if way == "copied":
        after = {path.name: path.read_bytes() for path in original.glob("checkpoints/*")}
        assert after == before, "the original was touched"
    report(f"{way} run folder", "continues there, bit-equal", "held")


def test_a_copy_beside_the_original_is_a_run_of_its_own(
    stopped: Path, left_alone: RunProcess
) -> None:
    """The further one is continued, whichever is the copy."""
    (original,) = (path.parent for path in stopped.glob("*/run.lock"))
    copy = stopped / "a-copy"
    shutil.copytree(original, copy)
    newest = find_checkpoint(stopped, "last")
    assert newest is not None
    for path in original.glob("checkpoints/*.ckpt"):
        if step_of(path) == step_of(newest):
            path.unlink()
    with RunProcess(stopped, EPOCHS) as run:
        assert run.finish() == 0, run.errors()
        compare(run, hashes(left_alone))
    assert step_of(copy / "checkpoints" / "last.ckpt") == STEPS
    assert max(map(step_of, original.glob("checkpoints/*.ckpt"))) < STEPS


@pytest.mark.parametrize("days", [-1, 1, -10_000])
def test_last_goes_by_the_recorded_step_whatever_the_files_times_say(
    tmp_path: Path, days: int
) -> None:
    now = time.time()
    paths = {}
    for step, run in ((5, "b"), (40, "a"), (12, "c")):
        paths[step] = tmp_path / run / "checkpoints" / "last.ckpt"
        content = {"loop": {"global_step": step}, "optimizer": {}}
        write_checkpoint(paths[step], Checkpoint({}, content))
        shifted = now + (days if step == 40 else -days) * DAY_S
        for path in (paths[step], paths[step].parent, paths[step].parent.parent):
            os.utime(path, (shifted, shifted))
    assert find_checkpoint(tmp_path, "last") == paths[40]
    report(f"file times off by {days} days", "last is chosen by recorded step", "held")


def test_weights_only_and_foreign_files_are_never_continued_from(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    good = folder / "good.ckpt"
    write_checkpoint(good, Checkpoint({}, {"loop": {"global_step": 1}, "optimizer": {}}))
    others = {
        "weights": {"loop": {"global_step": 9}},
        "no loop": {"optimizer": {}},
        "no step": {"optimizer": {}, "loop": {}},
        "odd step": {"optimizer": {}, "loop": {"global_step": "9"}},
        "odd loop": {"optimizer": {}, "loop": [9]},
    }
    for name, metadata in others.items():
        write_checkpoint(folder / f"{name}.ckpt", Checkpoint({}, metadata))
    (folder / "folder.ckpt").mkdir()
    (folder / "text.ckpt").write_text("not a checkpoint")
    (folder / "gone.ckpt").symlink_to(folder / "nowhere.ckpt")
    assert find_checkpoint(tmp_path, "last") == good


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    """Copied lock files and reused pids say nothing: the kernel knows."""
    with RunProcess(tmp_path / "experiment", EPOCHS, "--pause", "on_train_start:1") as live:
        assert live.wait_for("paused"), live.errors()
        (lock,) = (tmp_path / "experiment").glob("*/run.lock")
        live.send(signal.SIGSTOP)
        with pytest.raises(RunLockedError):
            RunDirectory.reopen(lock.parent)
        live.send(signal.SIGKILL)
        live.finish()
    owner = json.loads(lock.read_text())
    assert owner["pid"] == live.process.pid
    lock.write_text(json.dumps({**owner, "pid": 1, "started": 0}))
    RunDirectory.reopen(lock.parent).release()


def test_of_many_that_want_one_folder_only_one_gets_it(tmp_path: Path) -> None:
    signals.reclaim()
    run = RunDirectory.create(tmp_path)
    run.release()

    def attempt(_: int) -> RunDirectory | None:
        try:
            return RunDirectory.reopen(run.path)
        except RunLockedError:
            return None

    with ThreadPoolExecutor(8) as pool:
        got = [x for x in pool.map(attempt, range(32)) if x is not None]
    assert len(got) == 1
    got[0].release()
