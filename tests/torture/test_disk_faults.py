"""Disks that are full, read-only, over quota or broken while a checkpoint is saved."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning import signals
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.checkpoint.container import (
    Checkpoint,
    CheckpointError,
    verify_checkpoint,
    write_checkpoint,
)
from jtlightning.run_directory import find_checkpoint
from tests.jtlightning.fake_trainer import FakeTrainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask
from tests.torture.scale import report
from tests.torture.small_disk import SmallDisk, mounted

pytestmark = [pytest.mark.slow, pytest.mark.torture]

ROOT = Path(__file__).parents[2]


class Saves(FakeTrainer):
    """Real checkpoints of 256 KiB without a training."""

    def capture_checkpoint(self, weights_only: bool = False) -> Checkpoint:
        checkpoint = super().capture_checkpoint()
        checkpoint.tensors["model/w"] = np.full(2**16, self.global_step, np.float32)
        return checkpoint

    def save_checkpoint(self, path: Path, weights_only: bool = False) -> None:
        write_checkpoint(path, self.capture_checkpoint())


class Run:
    """Saves after each step; keeps the newest file and `last.ckpt`."""

    def __init__(self, folder: Path, *, asynchronous: bool) -> None:
        self.trainer = Saves(folder)
        self.saver = ModelCheckpoint(filename="{step}", every_n_epochs=1, asynchronous=asynchronous)
        self.trainer.callbacks = [self.saver]
        self.saver.setup(self.trainer, None, "fit")
        self.saver.on_fit_start(self.trainer, None)

    def step(self) -> None:
        self.trainer.global_step += 1
        self.saver.on_train_epoch_end(self.trainer, None)
        self.saver._finish()  # as the next save would

    @property
    def files(self) -> dict[str, int]:
        """Name -> step of all there is, temporary files too; each file is read and verified."""
        paths = sorted(self.trainer.run.checkpoints.iterdir())
        return {path.name: verify_checkpoint(path)["loop"]["global_step"] for path in paths}


def check_failure(run: Run, reason: str) -> None:
    """A save that fails tells so, and all is as before."""
    before, state = run.files, run.saver.state_dict()
    with pytest.raises(CheckpointError, match=reason) as caught:
        run.step()
    folder = run.trainer.run.checkpoints
    message = str(caught.value)
    assert str(folder) in message
    assert "MiB free in" in message
    assert "what was saved before is intact" in message
    after = run.files
    # A file that is complete but of which it is not certain that it will stay may be there.
    assert {name: step for name, step in after.items() if name in before} == before
    assert all(name.endswith(".ckpt") for name in after)
    assert run.saver.state_dict() == state
    assert run.saver.best_model_path == folder / f"{before['last.ckpt']}.ckpt"


def check_recovery(run: Run) -> None:
    """Once the disk is well again, saving goes on and nothing is left behind."""
    run.step()
    step = run.trainer.global_step
    assert run.files.keys() >= {f"{step}.ckpt", "last.ckpt"}
    assert run.files["last.ckpt"] == step


@pytest.fixture(params=[False, True], ids=["at once", "by a thread"])
def asynchronous(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted(tmp_path / "disk", 1024) as disk:
        yield disk


@pytest.mark.parametrize("leave", [0, 8192, 131_072])
def test_a_full_disk_keeps_the_old_file(disk: SmallDisk, asynchronous: bool, leave: int) -> None:
    run = Run(disk.path, asynchronous=asynchronous)
    run.step()
    ballast = disk.fill(leave=leave)
    for _ in range(3):
        check_failure(run, "No space left on device")
    ballast.unlink()
    check_recovery(run)
    report("disk full (a real file system)", "old file intact, path and free space named", "held")


def test_a_read_only_disk_keeps_the_old_file(disk: SmallDisk, asynchronous: bool) -> None:
    run = Run(disk.path, asynchronous=asynchronous)
    run.step()
    disk.remount("ro")
    check_failure(run, "Read-only file system")
    disk.remount("rw")
    check_recovery(run)
    report("read-only (a real file system)", "old file intact, path and free space named", "held")


def fails(patch: pytest.MonkeyPatch, where: str, code: int) -> None:
    """Let a call of the system fail from now on; `write` after half of the file."""
    module, name = (Path, "replace") if where.startswith("replace") else (os, where.split()[0])
    real = getattr(module, name)

    def is_meant(first: Any, second: Any) -> bool:
        if name == "write":
            return len(second) > 2**17  # not the header, which comes first
        if name == "fsync":
            return Path(f"/proc/self/fd/{first}").is_dir() == ("folder" in where)
        if where == "replace of last":
            return second.name == "last.ckpt"
        return name != "open" or bool(second & os.O_CREAT)

    def call(first: Any, *rest: Any) -> Any:
        if not is_meant(first, rest[0] if rest else None):
            return real(first, *rest)
        if name == "write":
            real(first, rest[0][: len(rest[0]) // 2])
        raise OSError(code, os.strerror(code))

    patch.setattr(module, name, call)


FAULTS = [
    ("write", errno.EDQUOT),
    ("write", errno.EIO),
    ("write", errno.ENOSPC),
    ("fsync", errno.EIO),
    ("fsync", errno.EDQUOT),  # file systems that allocate late tell only now
    ("fsync of the folder", errno.EIO),
    ("replace", errno.EIO),
    ("replace", errno.EDQUOT),
    ("replace of last", errno.EIO),
    ("link", errno.EIO),
    ("open", errno.EACCES),
]


@pytest.mark.parametrize(("where", "code"), FAULTS)
def test_a_failing_call_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool, where: str, code: int
) -> None:
    run = Run(tmp_path, asynchronous=asynchronous)
    run.step()
    with monkeypatch.context() as patch:
        fails(patch, where, code)
        check_failure(run, os.strerror(code))
    check_recovery(run)
    row = f"{errno.errorcode[code]} at {where}"
    report(row, "old file intact, path and free space named", "held")


def test_a_training_ends_with_the_error_of_its_checkpoint(
    tmp_path: Path, disk: SmallDisk, asynchronous: bool
) -> None:
    saver = ModelCheckpoint(
        dirpath=str(disk.path / "saved"), every_n_train_steps=1, asynchronous=asynchronous
    )
    make_trainer(tmp_path / "a", max_steps=2, callbacks=[saver]).fit(
        TinyTask(), datamodule=TinyData()
    )
    disk.fill()
    trainer = make_trainer(tmp_path / "a", max_steps=6, callbacks=[saver])
    with pytest.raises(CheckpointError, match=r"saved/\S+3\.ckpt: .*No space left.*\(0 MiB free"):
        trainer.fit(TinyTask(), datamodule=TinyData(), ckpt_path=disk.path / "saved/last.ckpt")
    # The file that fails is that of step 3; its error comes out at the next step at the latest.
    assert trainer.global_step <= 3 + asynchronous
    assert verify_checkpoint(disk.path / "saved/last.ckpt")["loop"]["global_step"] == 2
    assert not list(disk.path.glob("saved/.*"))


def program(folder: Path, *options: str) -> subprocess.Popen[str]:
    signals.reclaim()
    return subprocess.Popen(
        [sys.executable, "-m", "tests.torture.program", str(folder), "--epochs", "4", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
    )


def test_a_process_on_a_full_disk_leaves_with_code_1_and_continues_once_there_is_room(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path / "disk", 512) as disk:
        folder = disk.path / "experiment"
        with program(folder, "--pause", "save:3:create:1") as process:
            assert process.stdout is not None
            assert any('"paused"' in line for line in process.stdout)
            found = newest_of(folder)
            ballast = disk.fill()
            output, errors = process.communicate("\n", timeout=120)
        assert process.returncode == 1, errors
        assert '"saved"' not in output
        assert '"done"' not in output
        last_line = errors.strip().splitlines()[-1]
        assert "CheckpointError" in last_line
        assert str(folder) in last_line
        assert "No space left on device (0 MiB free in" in last_line
        assert not list(folder.glob("*/checkpoints/.*"))
        assert find_checkpoint(folder, "last") == found
        ballast.unlink()
        with program(folder) as process:
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert '"resumed", ' in output.splitlines()[0]
        assert '"done"' in output
    report("disk full in a real run", "code 1, continues once there is room", "held")


def newest_of(folder: Path) -> Path:
    """The newest file of a process that waits, read as if it were gone."""
    steps = {
        path: verify_checkpoint(path)["loop"]["global_step"]
        for path in sorted(folder.glob("*/checkpoints/*.ckpt"))
    }
    return max(steps, key=lambda path: (steps[path], path.name == "last.ckpt"))
