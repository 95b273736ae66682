from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jtlightning.runtime import store
from tests.jtlightning.runtime.conftest import REPOSITORY

BUILDER = """
import os, sys, time
from pathlib import Path
from jtlightning.runtime import store
def build(folder):
    with open(sys.argv[2], "a") as tally:
        tally.write("built\\n")
    for number in range(20):
        (folder / f"{number}.txt").write_text("x" * 1000)
        time.sleep(0.005)
    if sys.argv[3] == "hang":
        print("half way", flush=True)
        time.sleep(60)
print(store.build_once(Path(sys.argv[1]), build))
"""


def start(target: Path, tally: Path, how: str = "finish") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(target), str(tally), how],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "nvcc_path": ""},
        stdout=subprocess.PIPE,
        text=True,
    )


def write_one(folder: Path) -> None:
    (folder / "one.txt").write_text("one")


def test_processes_at_once_build_once_and_all_see_the_whole(tmp_path: Path) -> None:
    target, tally = tmp_path / "cache" / "made", tmp_path / "tally"
    processes = [start(target, tally) for _ in range(6)]
    assert {process.communicate()[0] for process in processes} == {f"{target}\n"}
    assert tally.read_text() == "built\n"
    assert store.is_whole(target)
    assert len(list(target.glob("*.txt"))) == 20


def test_a_killed_build_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    target, tally = tmp_path / "cache" / "made", tmp_path / "tally"
    process = start(target, tally, "hang")
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    assert len(list(target.parent.glob("made*"))) == 1
    store.build_once(target, write_one)
    assert [path.name for path in target.parent.glob("made*")] == ["made"]
    assert (target / "one.txt").read_text() == "one"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        write_one(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.build_once(tmp_path / "cache" / "made", build)
    assert list((tmp_path / "cache").glob("made*")) == []


def test_what_is_whole_is_left_alone(tmp_path: Path) -> None:
    target = store.build_once(tmp_path / "made", write_one)
    before = target.stat().st_mtime_ns, target.stat().st_ino
    store.build_once(target, lambda folder: pytest.fail("built again"))
    assert (target.stat().st_mtime_ns, target.stat().st_ino) == before


@pytest.mark.parametrize("damage", ["one.txt", "content.json"])
@pytest.mark.parametrize("how", ["emptied", "deleted"])
def test_a_damaged_folder_is_built_anew(tmp_path: Path, damage: str, how: str) -> None:
    target = store.build_once(tmp_path / "made", write_one)
    (target / damage).write_text("") if how == "emptied" else (target / damage).unlink()
    assert not store.is_whole(target)
    store.build_once(target, write_one)
    assert (target / "one.txt").read_text() == "one"


def test_a_link_that_leads_nowhere_is_damage(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    target = store.build_once(tmp_path / "made", lambda folder: (folder / "a").symlink_to(real))
    assert store.is_whole(target)
    real.rmdir()
    assert not store.is_whole(target)


def test_deleting_the_cache_undoes_everything(tmp_path: Path) -> None:
    target = store.build_once(store.cache(tmp_path) / "made", write_one)
    shutil.rmtree(store.cache(tmp_path))
    assert not store.is_whole(target)
    assert store.is_whole(store.build_once(target, write_one))
