"""Worker processes as the system sees them: what they hold, how they end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from jtlightning.data import workers
from jtlightning.data.loader import Loader, LoaderError
from jtlightning.signals import reclaim
from tests.jtlightning.data.loader_cases import (
    Environment,
    HangsInWorkers,
    Images,
    collate,
    collate_endlessly,
    first,
    open_files,
)


@pytest.fixture(autouse=True)
def _killed_children_are_no_concern_of_jittor():
    reclaim()


def gone(pid: int, within_s: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ready, _, _ = select.select([descriptor], [], [], within_s)
    os.close(descriptor)
    return bool(ready)


def test_workers_are_light(monkeypatch):
    pytest.importorskip("cv2")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    loader = Loader(Environment(), 1, collate=first, num_workers=2)
    told = list(loader.batches(0))
    assert len({one.pop("pid") for one in told} | {os.getpid()}) == 3
    for one in told:
        assert one == {
            "nvcc": "",
            "threads": "1",
            "cv2_threads": 1,
            "frameworks": [],
            "own_threads": 2,  # one of them watches over the parent
            "system_threads": 2,
            "devices": [],
        }
    status = Path(f"/proc/{loader._pool._workers[0].process.pid}/status").read_text()
    assert "Threads:\t2\n" in status
    loader.close()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_worker_that_does_not_come_up_is_named_after_its_own_time_out():
    loader = Loader(HangsInWorkers(9), 3, collate=collate, num_workers=2, start_timeout_s=1)
    began = monotonic()
    told = r"loader worker 0 \(pid \d+\) did not come up within 1 s.*start_timeout_s"
    with pytest.raises(LoaderError, match=told):
        list(loader.batches(0))
    assert 1 <= monotonic() - began < 3


def test_start_that_fails_half_way_leaves_no_worker(monkeypatch):
    started = []

    def fail(pid: int) -> int:
        started.append(pid)
        raise OSError("no descriptor is left")

    before = len(open_files())
    with monkeypatch.context() as patch:
        patch.setattr(workers.os, "pidfd_open", fail)
        loader = Loader(HangsInWorkers(9), 3, collate=collate, num_workers=2)
        with pytest.raises(OSError, match="no descriptor"):
            next(loader.batches(0))
    assert len(started) == 1
    assert gone(started[0], 2)
    assert len(open_files()) <= before + 1  # the resource tracker's


def test_hang_in_collate_is_told_with_its_place():
    loader = Loader(Images(9), 3, collate=collate_endlessly, num_workers=1, timeout_s=0.5)
    with pytest.raises(LoaderError, match=r"collate hangs(.|\n)*in collate_endlessly"):
        list(loader.batches(0))


class Progress:
    """What a process holds: descriptors, children, mappings of batches."""

    def __init__(self) -> None:
        self.files = len(open_files())
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        self.children = len(children.split())
        self.mappings = Path("/proc/self/maps").read_text().count("memfd:jtlightning-batch")

    def __repr__(self) -> str:
        return f"{self.files} files, {self.children} children, {self.mappings} mappings"


def test_a_hundred_epochs_left_early_leak_nothing():
    loader = Loader(
        Images(40, size=360), 3, collate=collate, num_workers=2, prefetch=2
    )  # 4.4 MiB: mapped
    held = []
    for epoch in range(100):
        batches = loader.batches(epoch, epoch % 9)
        assert next(batches).names[0] == str(3 * (epoch % 9))
        del batches
        held.append(Progress())
    most = max(one.files for one in held[:50])
    for later in held[50:]:
        # At most what the workers keep; a leak would add one for each epoch.
        assert later.files <= most + 4, (most, later)
        assert later.children == held[10].children
        assert later.mappings <= 2 * (loader.prefetch + 2), "what two workers keep"
    loader.close()
    assert not [name for name in open_files() if "jtlightning" in name]


@pytest.mark.parametrize("start", [1, 500, 6_000, 12_499])
def test_any_position_of_a_large_set_is_reached_at_once(start):
    loader = Loader(Images(100_000), 8, collate=collate, shuffle=True, num_workers=2)
    assert list(loader.batches(0, len(loader))) == []  # starts the workers
    for worker in loader._pool._workers:
        select.select([worker.end], [], [], 60)
    began = monotonic()
    batch = next(loader.batches(3, start))
    assert monotonic() - began < 1
    assert len(batch.names) == 8
    loader.close()


SCRIPT = """
import os, sys
import numpy as np
from jtlightning.data.loader import Loader
{top}

class Data:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return np.full(3, index)

def main():
    global loader  # lives until the interpreter ends
    loader = Loader(Data(), 4, collate=np.stack, num_workers=2)
    batches = loader.batches(0)
    print(next(batches).tolist(), flush=True)
    print(*[w.process.pid for w in loader._pool._workers], flush=True)
    {end}

{guard}main()
"""
GUARD = "if __name__ == '__main__': "


def start(tmp_path: Path, end: str = "", guard: str = GUARD, top: str = "") -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(top=top, end=end, guard=guard))
    # In a group of its own, to which the test can send Ctrl-C.
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[2])},
    )


def worker_ids(process: subprocess.Popen) -> list[int]:
    assert process.stdout is not None
    assert process.stdout.readline().startswith("[[0, 0, 0], [1,")
    return [int(pid) for pid in process.stdout.readline().split()]


def test_script_with_its_own_dataset_ends_by_itself(tmp_path):
    process = start(tmp_path)
    ids = worker_ids(process)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
    assert all(gone(pid, 1) for pid in ids)


def test_script_without_the_main_guard_is_told_so(tmp_path):
    _, err = start(tmp_path, guard="").communicate(timeout=60)
    assert 'needs `if __name__ == "__main__":`' in err.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_when_the_trainer_is_killed(tmp_path, number):
    process = start(tmp_path, end="sys.stdin.read() or os.read(os.pipe()[0], 1)")
    ids = worker_ids(process)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert all(gone(pid, 3) for pid in ids)


def test_workers_end_though_a_forked_child_survives_the_trainer(tmp_path):
    end = "os.fork() and print(flush=True); os.read(os.pipe()[0], 1)"
    process = start(tmp_path, end=end)
    ids = worker_ids(process)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait(timeout=20)
    try:
        assert all(gone(pid, 3) for pid in ids)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_group_leaves_the_end_to_the_trainer(tmp_path, number):
    end = "\n    ".join(
        [
            "import signal",
            "signal.signal(signal.SIGTERM, signal.default_int_handler)",
            "try: print(flush=True); os.read(os.pipe()[0], 1)",
            "except KeyboardInterrupt: print(len(list(batches)), flush=True)",
        ]
    )
    process = start(tmp_path, end=end)
    ids = worker_ids(process)
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "9\n", "")  # the rest of the epoch came
    assert all(gone(pid, 1) for pid in ids)


@pytest.mark.parametrize("moment", ["starting", "loading", "loading again", "and again"])
def test_ctrl_c_without_a_handler_shows_one_traceback_and_leaves_nobody(tmp_path, moment):
    top = "import time\nif __name__ != '__main__': time.sleep(60)" if moment == "starting" else ""
    process = start(tmp_path, end="while True: list(loader.batches(1))", top=top)
    # Two workers and the resource tracker.
    ids = children(process.pid, 3) if moment == "starting" else worker_ids(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert all(gone(pid, 2) for pid in ids)


def children(pid: int, count: int) -> list[int]:
    """Wait until a process has that many children."""
    deadline = monotonic() + 20
    file = Path(f"/proc/{pid}/task/{pid}/children")
    while monotonic() < deadline:
        found = [int(child) for child in file.read_text().split()]
        if len(found) >= count:
            return found
    raise TimeoutError(f"{pid} has not got {count} children")
