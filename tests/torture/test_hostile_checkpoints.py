"""Files made to harm their reader: nothing runs or is written, memory and time have bounds."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.checkpoint.container import Checkpoint, CheckpointError, write_checkpoint
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import read_weights
from tests.jtlightning.checkpoint import forge
from tests.jtlightning.checkpoint.forge import Raw, call, name, ops, pickled, tensor
from tests.torture.hostile_files import FILES, MIB, NONSENSE
from tests.torture.mutations import SEEDS, mutate
from tests.torture.scale import count, report

pytestmark = [pytest.mark.slow, pytest.mark.torture]

MUTATIONS = count(100, 3000)  # of each of the seeds
SECONDS_PER_FILE = 20
#: What reading may take beyond twice the file: objects, buffers, allocator.
FREE_BYTES = 48 * MIB
WRITERS: dict[str, Callable[[Path, bytes], Path]] = {
    "zip": forge.write_zip,
    "legacy": forge.write_legacy,
    "jittor": forge.write_jittor,
}


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


def payloads(canary: str) -> dict[str, bytes]:
    """Pickles that create the file `canary` when `pickle` loads them."""
    touch = f"touch {canary}"
    code = f"open({canary!r}, 'w').close()"
    system = name("posix", "system")
    return {
        "posix.system": pickled(call(system, touch)),
        "builtins.eval": pickled(call(name("builtins", "eval"), code)),
        "builtins.exec": pickled(call(name("builtins", "exec"), code)),
        "subprocess": pickle.dumps(Call(subprocess.check_call, touch.split()), 4),
        "numpy": pickle.dumps(Call(np.ndarray.tofile, np.ones(1), canary), 2),
        "getattr": pickled(
            call(
                call(
                    name("builtins", "getattr"),
                    call(name("builtins", "__import__"), "os"),
                    "system",
                ),
                touch,
            )
        ),
        "dotted name": b"\x80\x04"
        + ops("shutil")
        + ops("os.system")
        + b"\x93"
        + ops((touch,))
        + b"R.",
        "memo": b"\x80\x02](cposix\nsystem\nq\x05h\x05" + ops((touch,)) + b"Re.",
        "inside a state dict": pickled({"model": {"a": 1.0, "b": call(system, touch)}}),
        "as a key": pickled({call(system, touch): 1}),
        "new object": b"\x80\x02" + name("hostile_module", "Made") + ops((canary,)) + b"\x81.",
        "new object by keyword": (
            b"\x80\x04" + name("hostile_module", "Made") + b")" + ops({"path": canary}) + b"\x92."
        ),
        "state": (
            b"\x80\x02" + name("hostile_module", "Stateful") + b")\x81" + ops(canary) + b"b."
        ),
        "items": (
            b"\x80\x02" + name("hostile_module", "Items") + b")\x81" + ops(canary) + ops(1) + b"s."
        ),
        "appended": (
            b"\x80\x02" + name("hostile_module", "Items") + b")\x81" + ops(canary) + b"a."
        ),
        "import alone": b"\x80\x02" + name("hostile_module", "Made") + b".",
        "old instance": b"(ihostile_module\nMade\n.".replace(
            b"(i", b"(V" + canary.encode() + b"\ni"
        ),
    }


HOSTILE_MODULE = """
import os, pathlib
pathlib.Path(os.environ["CANARY"]).touch()
class Made:
    def __new__(cls, path=None):
        pathlib.Path(path).touch()
        return object.__new__(cls)
    def __init__(self, path=None):
        pathlib.Path(path).touch()
class Stateful:
    def __setstate__(self, path):
        pathlib.Path(path).touch()
class Items:
    def __setitem__(self, path, value):
        pathlib.Path(path).touch()
    def append(self, path):
        pathlib.Path(path).touch()
    def extend(self, paths):
        pathlib.Path(paths[0]).touch()
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that hostile code creates, and a module that does so when it is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile_module.py").write_text(HOSTILE_MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    path = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(path))
    yield path
    sys.modules.pop("hostile_module", None)


@pytest.mark.parametrize("payload", list(payloads("")))
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, canary: Path, payload: str) -> None:
    body = payloads(str(canary))[payload]
    pickle.loads(body)
    assert canary.exists()  # so the payload is live
    sys.modules.pop("hostile_module", None)
    canary.unlink()
    for kind, write in WRITERS.items():
        path = write(tmp_path / f"{kind}.pth", body)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        assert str(path) in str(caught.value)
        assert not canary.exists()
        assert "hostile_module" not in sys.modules
        assert sorted(tmp_path.rglob("*")) == before
    report("hostile: pickles that run code", "nothing executed", f"{payload}: refused by 3 readers")


def test_what_would_have_run_is_named(tmp_path: Path) -> None:
    tree = {
        "weight": tensor(),
        "call": call(name("posix", "system"), "true"),
        "chained": call(call(name("builtins", "getattr"), name("os", "path"), "x"), 1),
        "rebuilt": call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("posix", "system"),
            name("torch", "Tensor"),
            ("true",),
            {},
        ),
        "wrapped": call(
            name("torch._utils", "_rebuild_parameter"), call(name("os", "system"), "true"), True, {}
        ),
        "storage": Raw(ops(("module", name("posix", "system"), "file", "source")) + b"Q"),
    }
    path = forge.write_zip(tmp_path / "a.pth", pickled(tree), {"0": bytes(16)})
    weights = read_weights(path)
    assert list(weights) == ["weight"]
    assert weights.skipped == {
        "call": "posix.system",
        "rebuilt": "posix.system",
        "wrapped": "os.system",
        "storage": "posix.system",
        "chained": "builtins.getattr",
    }


@pytest.mark.parametrize("nonsense", list(NONSENSE))
def test_nonsense_is_refused(tmp_path: Path, nonsense: str) -> None:
    for kind, write in WRITERS.items():
        with pytest.raises(CheckpointError):
            read_weights(write(tmp_path / kind, NONSENSE[nonsense]))


NAMES = [
    "../../escape",
    "/tmp/escape",
    "..",
    "",
    "a\0b",
    "C:\\escape",
    "con",
    "a" * 900,
    "%2F..%2F",
]


def test_names_that_look_like_paths_stay_names(tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    state = {key: np.ones(1, np.float32) for key in NAMES}
    write_torch(folder / "a.pth", state)
    forge.write_jittor(folder / "a.pkl", pickle.dumps(state, 4))
    save_file({key: array for key, array in state.items() if key}, folder / "a.safetensors")
    own = {f"model/{key}": array for key, array in state.items()}
    write_checkpoint(folder / "a.ckpt", Checkpoint(own))
    before = sorted(tmp_path.rglob("*"))
    assert len(before) == 6
    for file in ("a.pth", "a.pkl", "a.safetensors", "a.ckpt"):
        assert set(read_weights(folder / file)) >= set(NAMES) - {""}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("hostile", ["../x.ckpt", "/tmp/x.ckpt", "a/../../x.ckpt", "x"])
def test_saver_removes_no_file_that_a_checkpoint_names_elsewhere(hostile: str) -> None:
    for ranked, retired in (([[hostile, 1, 0.5]], []), ([], [hostile])):
        saver = ModelCheckpoint()
        with pytest.raises(ValueError, match="the checkpoint's state of ModelCheckpoint names"):
            saver.load_state_dict({"ranked": ranked, "retired": retired, "step": 1})


@pytest.mark.parametrize("file", list(FILES))
def test_memory_stays_under_twice_the_file(tmp_path: Path, file: str) -> None:
    make, outcome = FILES[file]
    path = tmp_path / "hostile"
    make(path)
    size = path.stat().st_size
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.read_hostile", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert outcome in found["outcome"]
    assert found["peak"] <= 2 * size + FREE_BYTES
    assert found["seconds"] < SECONDS_PER_FILE
    report(
        "hostile: memory",
        f"under 2 x the file + {FREE_BYTES // MIB} MiB",
        f"{file}: {found['peak'] / MIB:.0f} MiB for {size / MIB:.0f} MiB, {found['seconds']:.1f} s",
    )


class TooSlowError(Exception):
    """A file was not read in time."""


@pytest.fixture
def deadline() -> Iterator[Callable[[float], None]]:
    """Sets the time after which reading is too slow."""

    def expired(number: int, frame: FrameType | None) -> None:
        raise TooSlowError

    previous = signal.signal(signal.SIGALRM, expired)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("seed", list(SEEDS))
def test_mutated_file_is_read_or_refused(
    tmp_path: Path, seed: str, deadline: Callable[[float], None]
) -> None:
    rng = random.Random(seed)
    path = tmp_path / "mutated"
    content, write = SEEDS[seed](tmp_path)
    read = 0
    for _ in range(MUTATIONS):
        write(path, mutate(content, rng))
        deadline(SECONDS_PER_FILE)
        with contextlib.suppress(CheckpointError):
            read_weights(path, weights=rng.choice(["raw", "auto"]))
            read += 1
    deadline(0)
    assert read < MUTATIONS // 2  # else hardly anything was changed
    report(
        "hostile: mutated files",
        "read, or refused by the reader's own error",
        f"{seed}: {MUTATIONS} mutations, {MUTATIONS - read} refused, {read} read",
    )
