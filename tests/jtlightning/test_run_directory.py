from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning import run_directory
from jtlightning.checkpoint.container import Checkpoint, write_checkpoint
from jtlightning.run_directory import (
    RunDirectory,
    RunDirectoryError,
    RunLockedError,
    find_checkpoint,
)
from jtlightning.signals import reclaim

HOLD = (
    "import sys\n"
    "from jtlightning.run_directory import RunDirectory\n"
    "run = RunDirectory.create(sys.argv[1])\n"
    "print(run.path, flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture(autouse=True)
def _killed_children_are_no_concern_of_jittor():
    reclaim()


class Holder:
    """Another process that runs in a folder until it is told to leave."""

    def __init__(self, experiment: Path, script: str = HOLD) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(experiment)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.path = Path(self.process.stdout.readline().strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def save(run: Path, name: str, step: int, **metadata: Any) -> Path:
    path = run / "checkpoints" / name
    loop = {"global_step": step, **metadata.pop("loop", {})}
    content = {"loop": loop, "optimizer": {}, **metadata}
    write_checkpoint(path, Checkpoint({"model/x": np.full(9, step)}, content))
    return path


def test_runs_of_the_same_second_get_different_folders(tmp_path):
    runs = [RunDirectory.create(tmp_path / "exp") for _ in range(5)]
    assert len({run.path for run in runs}) == 5
    for run in runs:
        date, _, number = run.path.name.rpartition("-")
        assert len(date) == len("20250101-120000")
        assert number.isdigit()
        run.release()


def test_subfolders_are_made_when_asked_for(tmp_path):
    run = RunDirectory.create(tmp_path)
    assert [p.name for p in run.path.iterdir()] == ["run.lock"]
    assert run.checkpoints.is_dir()
    assert run.pictures.is_dir()
    run.release()


def test_live_run_of_another_process_is_refused_by_name(tmp_path):
    holder = Holder(tmp_path)
    try:
        with pytest.raises(RunLockedError, match=f"process {holder.process.pid} on"):
            RunDirectory.reopen(holder.path)
    finally:
        holder.kill()


def test_killed_owner_is_taken_over_and_its_temporary_files_go(tmp_path):
    holder = Holder(tmp_path)
    (holder.path / "checkpoints").mkdir()
    (holder.path / "checkpoints" / ".jtl-1-1-01234567-elsewhere.tmp").touch()
    holder.kill()
    assert holder.process.returncode == -signal.SIGKILL
    run = RunDirectory.reopen(holder.path)
    assert not list(run.checkpoints.iterdir())
    owner = json.loads((run.path / "run.lock").read_text())
    assert owner["pid"] == os.getpid()
    run.release()


def test_forked_child_that_outlives_its_parent_holds_no_lock(tmp_path):
    fork = (
        "import os\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "print(child, end=' ')\n"
    )
    script = HOLD.replace("print(", fork + "print(")
    holder = Holder(tmp_path, script)
    child, path = str(holder.path).split(" ")
    holder.process.kill()
    holder.process.wait()
    assert Path(f"/proc/{child}").exists()
    RunDirectory.reopen(path).release()
    holder.process.communicate()


def test_own_run_cannot_be_opened_twice_and_is_free_after_release(tmp_path):
    run = RunDirectory.create(tmp_path)
    with pytest.raises(RunLockedError):
        RunDirectory.reopen(run.path)
    run.release()
    run.release()
    RunDirectory.reopen(run.path).release()


def test_copied_folder_of_a_live_run_is_free(tmp_path):
    run = RunDirectory.create(tmp_path)
    shutil.copytree(run.path, tmp_path / "copy")
    RunDirectory.reopen(tmp_path / "copy").release()
    run.release()


@pytest.mark.parametrize(("alive", "outcome"), [(True, "locked"), (False, "free")])
def test_without_kernel_locks_the_named_process_decides(tmp_path, monkeypatch, alive, outcome):
    holder = Holder(tmp_path)
    if not alive:
        holder.kill()

    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_directory.fcntl, "flock", unsupported)
    found = "free"
    try:
        RunDirectory.reopen(holder.path).release()
    except RunLockedError:
        found = "locked"
    assert found == outcome
    holder.kill()


def test_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"file/exp.*trainer\.default_root_dir"):
        RunDirectory.create(tmp_path / "file" / "exp")
    with pytest.raises(RunDirectoryError, match="No such file"):
        RunDirectory.reopen(tmp_path / "none")


def test_environment_is_recorded(tmp_path):
    run = RunDirectory.create(tmp_path)
    run.write_environment(["segtasks", "fit"])
    written = json.loads((run.path / "environment.json").read_text())
    assert written["command"] == ["segtasks", "fit"]
    assert written["packages"]["numpy"] == np.__version__
    run.release()


def test_last_goes_by_recorded_step_not_by_file_time_or_name(tmp_path):
    old = save(tmp_path / "b", "z.ckpt", 5)
    new = save(tmp_path / "a", "a.ckpt", 40)
    os.utime(new, (0, 0))
    assert find_checkpoint(tmp_path, "last") == new
    new.unlink()
    assert find_checkpoint(tmp_path, "last") == old
    old.unlink()
    assert find_checkpoint(tmp_path, "last") is None
    assert find_checkpoint(tmp_path / "none", "last") is None


def test_within_a_step_the_later_position_counts(tmp_path):
    save(
        tmp_path / "a",
        "last.ckpt",
        5,
        loop={"epoch": 0, "batch_in_epoch": 5, "validation_due": True},
    )
    after = save(
        tmp_path / "a", "a.ckpt", 5, loop={"epoch": 0, "batch_in_epoch": 5, "validation_due": False}
    )
    assert find_checkpoint(tmp_path, "last") == after
    end = save(
        tmp_path / "a", "0.ckpt", 5, loop={"epoch": 0, "batch_in_epoch": 5, "epoch_finished": True}
    )
    assert find_checkpoint(tmp_path, "last") == end


@pytest.mark.parametrize("damage", [10, 200, -1, None])
def test_damaged_newest_falls_back_with_a_warning(tmp_path, caplog, damage):
    good = save(tmp_path / "a", "good.ckpt", 5)
    bad = save(tmp_path / "a", "bad.ckpt", 6)
    data = bytearray(bad.read_bytes())
    if damage is None:
        del data[-1:]
    else:
        data[damage] ^= 1
    bad.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path, "last") == good
    assert "bad.ckpt: " in caplog.text


def test_weights_only_files_and_temporary_ones_are_left_out(tmp_path):
    good = save(tmp_path / "a", "good.ckpt", 5)
    write_checkpoint(good.with_name("w.ckpt"), Checkpoint({}, {"loop": {"global_step": 9}}))
    good.with_name(".jtl-1-1-01234567-x.tmp").write_bytes(good.read_bytes())
    assert find_checkpoint(tmp_path, "last") == good


def test_runs_of_other_live_processes_are_left_out_but_not_our_own(tmp_path, caplog):
    free = save(tmp_path / "a", "a.ckpt", 1)
    holder = Holder(tmp_path)
    try:
        theirs = save(holder.path, "b.ckpt", 3)
        assert find_checkpoint(tmp_path, "last") == free
        assert f"left out: {holder.path}, as another process is running there" in caplog.text
        run = RunDirectory.create(tmp_path)
        ours = save(run.path, "c.ckpt", 2)
        assert find_checkpoint(tmp_path, "last") == ours
        run.release()
    finally:
        holder.kill()
    assert find_checkpoint(tmp_path, "last") == theirs


def test_best_is_what_the_newest_names_even_in_a_moved_folder(tmp_path):
    state = {"ModelCheckpoint": {"best_model_path": "new.ckpt", "best_model_score": None}}
    ranked = {
        "ModelCheckpoint(val/miou)": {"best_model_path": "/gone/best.ckpt", "best_model_score": 0.5}
    }
    best = save(tmp_path / "a", "best.ckpt", 5)
    save(tmp_path / "a", "new.ckpt", 9, callbacks=state | ranked)
    assert find_checkpoint(tmp_path, "best") == best
    save(tmp_path / "a", "newer.ckpt", 10, callbacks={"EMA": {}})
    assert find_checkpoint(tmp_path, "best") is None


def test_damaged_best_falls_back_to_what_an_older_one_names(tmp_path, caplog):
    first = save(
        tmp_path / "a",
        "first.ckpt",
        1,
        callbacks={"ModelCheckpoint": {"best_model_path": "first.ckpt"}},
    )
    save(
        tmp_path / "a",
        "last.ckpt",
        9,
        callbacks={"ModelCheckpoint": {"best_model_path": "gone.ckpt"}},
    )
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path, "best") == first
    assert "gone.ckpt: cannot be read" in caplog.text
