from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jtlightning.checkpoint import atomic
from jtlightning.checkpoint.container import (
    Checkpoint,
    CheckpointError,
    read_checkpoint,
    write_checkpoint,
)
from jtlightning.checkpoint.owner import Owner
from jtlightning.signals import reclaim

OLD = Checkpoint({"model/x": np.zeros(1000)}, {"loop": {"global_step": 1}})
NEW = Checkpoint({"model/x": np.ones(1000), "model/y": np.ones(9)}, {"loop": {"global_step": 2}})


def step(path: Path) -> int:
    return read_checkpoint(path).metadata["loop"]["global_step"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "close"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, call, code):
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, OLD)
    real = getattr(os, call)
    calls = []

    def fail(*args):
        calls.append(args)
        if call == "close" and len(calls) == 1:
            real(*args)  # the system frees the descriptor also where close() fails
        elif call != "close" and len(calls) < (2 if call == "write" else 1):
            return real(*args)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(path, NEW)
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert "MiB free" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert step(path) == 1


def test_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"Not a directory|File exists"):
        write_checkpoint(tmp_path / "file" / "a.ckpt", NEW)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:1000]))
    write_checkpoint(tmp_path / "a.ckpt", NEW)
    monkeypatch.undo()
    assert step(tmp_path / "a.ckpt") == 2


def test_interrupt_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, OLD)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, NEW)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert step(path) == 1


class Disk:
    """What a power loss leaves: file contents as of their last fsync, names as of the folder's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.names: dict[str, int] = {p.name: p.stat().st_ino for p in folder.iterdir()}
        self.contents = {p.stat().st_ino: p.read_bytes() for p in folder.iterdir()}
        self.states: list[dict[str, bytes]] = []
        for module, name in ((os, "write"), (os, "fsync"), (Path, "replace"), (os, "open")):
            real = getattr(module, name)
            monkeypatch.setattr(module, name, self._watch(real))

    def _watch(self, real):
        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            if real.__name__ == "fsync":
                self._synced(args[0])
            self.states.append({n: self.contents.get(i, b"") for n, i in self.names.items()})
            return result

        return call

    def _synced(self, descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        if target == self.folder:
            self.names = {p.name: p.stat().st_ino for p in target.iterdir()}
        else:
            self.contents[target.stat().st_ino] = target.read_bytes()


def test_power_loss_after_any_operation_leaves_a_loadable_checkpoint(tmp_path, monkeypatch):
    folder, after = tmp_path / "run", tmp_path / "after"
    folder.mkdir()
    after.mkdir()
    write_checkpoint(folder / "last.ckpt", OLD)
    disk = Disk(folder, monkeypatch)
    write_checkpoint(folder / "last.ckpt", NEW)
    monkeypatch.undo()
    found = []
    for state in disk.states:
        (after / "last.ckpt").write_bytes(state["last.ckpt"])
        found.append(step(after / "last.ckpt"))
    assert sorted(set(found)) == [1, 2]
    assert found == sorted(found)
    assert found[-1] == 2  # what was reported as saved is on the disk


def test_temporary_files_of_killed_writers_are_swept(tmp_path):
    script = (
        "import os, sys\n"
        "import numpy as np\n"
        "from jtlightning.checkpoint.container import Checkpoint, write_checkpoint\n"
        "os.fsync = lambda file: os.kill(os.getpid(), 9)\n"
        "write_checkpoint(sys.argv[1], Checkpoint({'x': np.zeros(9)}))\n"
    )
    reclaim()  # Jittor, where another test has imported it, leaves when a child is killed
    command = [sys.executable, "-c", script, str(tmp_path / "a.ckpt")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [p.suffix for p in tmp_path.iterdir()] == [".tmp"]
    write_checkpoint(tmp_path / "a.ckpt", NEW)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_temporary_files_of_live_and_remote_writers_stay(tmp_path):
    me = Owner.current()
    mine = tmp_path / f".jtl-{me.pid}-{me.started}-01234567-{me.host}.tmp"
    remote = tmp_path / ".jtl-1-1-01234567-elsewhere.tmp"
    mine.touch()
    remote.touch()
    write_checkpoint(tmp_path / "a.ckpt", NEW)
    assert mine.exists()
    assert remote.exists()
    atomic.sweep(tmp_path, all_owners=True)
    assert mine.exists()
    assert not remote.exists()


def test_link_replaces_the_target_and_leaves_no_other(tmp_path):
    a, b, last = tmp_path / "a.ckpt", tmp_path / "b.ckpt", tmp_path / "last.ckpt"
    write_checkpoint(a, OLD)
    write_checkpoint(b, NEW)
    for source, expected in ((a, 1), (b, 2), (b, 2)):
        atomic.link_file(source, last)
        assert step(last) == expected
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt", "last.ckpt"]


def test_missing_parents_are_created_and_synced(tmp_path, monkeypatch):
    synced = []
    real = atomic.sync_folder
    monkeypatch.setattr(atomic, "sync_folder", lambda f: (synced.append(f), real(f)))
    write_checkpoint(tmp_path / "x" / "y" / "a.ckpt", NEW)
    assert synced == [tmp_path, tmp_path / "x", tmp_path / "x" / "y"]


def test_older_files_go_only_after_the_new_one_and_its_link(tmp_path, monkeypatch):
    a, b, last = tmp_path / "a.ckpt", tmp_path / "b.ckpt", tmp_path / "last.ckpt"
    write_checkpoint(a, OLD)

    def refuse(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: could not be written"):
            atomic.publish_file(b, last, [a], lambda path: write_checkpoint(path, NEW))
    assert step(a) == 1
    assert step(b) == 2
    atomic.publish_file(b, last, [a], lambda path: write_checkpoint(path, NEW))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.ckpt", "last.ckpt"]


def test_file_that_cannot_be_removed_is_named(tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    with pytest.raises(CheckpointError, match=r"a\.ckpt: could not be removed: \S+"):
        atomic.remove_file(tmp_path / "a.ckpt")
    atomic.remove_file(tmp_path / "none.ckpt")
