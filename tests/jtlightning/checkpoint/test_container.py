from __future__ import annotations

import functools
import json
import math
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jtlightning.checkpoint import layout
from jtlightning.checkpoint.container import (
    Checkpoint,
    CheckpointError,
    encode_checkpoint,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from jtlightning.checkpoint.owner import Owner


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(
        {
            "model/weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
            "model/scale": np.array(2.5, np.float64),
            "model/empty": np.zeros((0, 3), np.int32),
            "model/half": np.array([1, 2, 3], np.float16),
            "callback/EMA/bits": np.array([0x3F80, 0x4000, 0xC000], np.uint16),
            "model/flags": np.array([True, False]),
            "model/big": np.arange(3, dtype=">i8"),
        },
        {"bfloat16": ["callback/EMA/bits"], "loop": {"global_step": 3}},
    )


def forge(path: Path, entries: dict, data: bytes, metadata: dict[str, str] | None = None) -> None:
    """A file with a right seal, whatever its entries say."""
    document = {
        **entries,
        "__metadata__": {**(metadata or {}), "checksums": "{}", "header_sha256": ""},
    }
    document["__metadata__"]["header_sha256"] = layout._digest(document)
    path.write_bytes(layout._encode(document) + data)


def test_arrays_come_back_equal_in_value_dtype_and_shape(tmp_path, checkpoint):
    write_checkpoint(tmp_path / "a.ckpt", checkpoint)
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert read.tensors.keys() == checkpoint.tensors.keys()
    for name, array in checkpoint.tensors.items():
        assert read.tensors[name].shape == array.shape
        assert read.tensors[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(read.tensors[name], array)
        assert read.tensors[name].flags.writeable
    assert read.metadata == checkpoint.metadata


def test_safetensors_library_reads_the_file(tmp_path, checkpoint):
    write_checkpoint(tmp_path / "a.ckpt", checkpoint)
    with safe_open(tmp_path / "a.ckpt", "np") as file:
        assert set(file.keys()) == set(checkpoint.tensors)
        assert json.loads(file.metadata()["loop"]) == {"global_step": 3}
        for name in set(checkpoint.tensors) - {"callback/EMA/bits"}:  # NumPy has no bfloat16
            np.testing.assert_array_equal(file.get_tensor(name), checkpoint.tensors[name])
        assert file.get_slice("callback/EMA/bits").get_dtype() == "BF16"


def test_metadata_keeps_numbers_nan_and_nesting(tmp_path):
    metadata = {
        "metrics": {"loss": np.float32(0.1), "nan": math.nan, "inf": [-math.inf, np.inf]},
        "loop": {"step": np.int64(2**60), "done": np.bool_(True), "none": None, "pair": (1, "ü")},
    }
    write_checkpoint(tmp_path / "a.ckpt", Checkpoint({}, metadata))
    read = read_checkpoint(tmp_path / "a.ckpt").metadata
    assert math.isnan(read["metrics"].pop("nan"))
    assert read == {
        "metrics": {"loss": float(np.float32(0.1)), "inf": [-math.inf, math.inf]},
        "loop": {"step": 2**60, "done": True, "none": None, "pair": [1, "ü"]},
    }
    assert read["loop"]["done"] is True


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ({"callbacks": {"EMA": [0, np.zeros(2)]}}, r"metadata\['callbacks'\]\['EMA'\]\[1\]"),
        ({"config": {"path": Path("x")}}, r"metadata\['config'\]\['path'\]"),
        ({"config": {1: "x"}}, "key 1"),
        ({"config": {"__float__": "nan"}}, "key '__float__'"),
        ({"config": functools.reduce(lambda inner, _: [inner], range(80), 1)}, "more than 64"),
        ({"checksums": {}}, "checksums"),
    ],
)
def test_value_that_json_cannot_hold_is_named_before_anything_is_written(tmp_path, metadata, place):
    with pytest.raises(ValueError, match=place):
        write_checkpoint(tmp_path / "a.ckpt", Checkpoint({}, metadata))
    assert not list(tmp_path.iterdir())


def test_array_of_an_unsupported_dtype_is_named(tmp_path):
    with pytest.raises(ValueError, match="'model/x' has dtype complex128"):
        write_checkpoint(tmp_path / "a.ckpt", Checkpoint({"model/x": np.zeros(2, complex)}))


def test_every_flipped_bit_truncation_and_addition_is_found(tmp_path, checkpoint):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, checkpoint)
    good = path.read_bytes()
    for position in range(0, len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"a\.ckpt: "):
            read_checkpoint(path)
        with pytest.raises(CheckpointError, match=r"a\.ckpt: "):
            verify_checkpoint(path)
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path, tensors=False)
    path.write_bytes(good + b"\0")
    with pytest.raises(CheckpointError, match="bytes added"):
        read_checkpoint(path, tensors=False)
    path.write_bytes(good)
    assert verify_checkpoint(path) == checkpoint.metadata


@pytest.mark.parametrize(
    ("entries", "data", "reason"),
    [
        ({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"", "truncated"),
        ({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"0000", "contradicts"),
        (
            {"x": {"dtype": "F32", "shape": [0, 2**47, 2**47], "data_offsets": [0, 0]}},
            b"",
            "impossible shape",
        ),
        ({"x": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}}, b"", "shape"),
        ({"x": {"dtype": "F32", "shape": [1] * 33, "data_offsets": [0, 4]}}, b"0000", "shape"),
        ({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b"", "shape"),
        ({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"0000", "shape"),
        ({"x": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"0" * 8, "dtype"),
        ({"x": {"dtype": [], "shape": [1], "data_offsets": [0, 8]}}, b"0" * 8, "dtype"),
        ({"x": [1, 2]}, b"", "entry"),
        (
            {
                "x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
                "y": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
            },
            b"000000",
            "overlaps",
        ),
        ({"x": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, b"0" * 8, "gap"),
        ({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"0", "checksums"),
    ],
)
def test_forged_entries_are_refused(tmp_path, entries, data, reason):
    forge(tmp_path / "a.ckpt", entries, data)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "NaN", "{", '{"__float__":[]}', '{"__float__":"x"}', "1" * 5000]
)
def test_forged_metadata_is_refused(tmp_path, value):
    forge(tmp_path / "a.ckpt", {}, b"", {"loop": value})
    with pytest.raises(CheckpointError, match="metadata"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("change", ["blanks", "order"])
def test_header_in_another_than_its_canonical_form_is_refused(tmp_path, checkpoint, change):
    path = tmp_path / "a.ckpt"
    write_checkpoint(path, checkpoint)
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    document = json.loads(good[8 : 8 + length])
    if change == "blanks":
        text = json.dumps(document).encode()
    else:  # of the same length
        swapped = dict(reversed(document.items()))
        text = json.dumps(swapped, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + length :])
    with pytest.raises(CheckpointError, match="checksum is wrong"):
        read_checkpoint(path)


def test_header_over_the_limit_is_refused_before_it_is_read(tmp_path, checkpoint, monkeypatch):
    write_checkpoint(tmp_path / "a.ckpt", checkpoint)
    monkeypatch.setattr(layout, "MAX_HEADER_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"has a header of \d+ bytes, over 100"):
        read_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="store large state as arrays"):
        write_checkpoint(tmp_path / "a.ckpt", checkpoint)


def test_deeply_nested_header_is_refused(tmp_path):
    text = b'{"x":' + b"[" * 200_000
    (tmp_path / "a.ckpt").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="header"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_declared_sizes_are_not_allocated(tmp_path):
    forge(
        tmp_path / "a.ckpt",
        {"x": {"dtype": "U8", "shape": [2**30], "data_offsets": [0, 2**30]}},
        b"0",
    )
    (tmp_path / "b.ckpt").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    tracemalloc.start()
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_reading_and_writing_take_little_more_than_the_arrays(tmp_path):
    size = 8 * 2**20
    checkpoint = Checkpoint({f"model/{i}": np.ones(size // 4, np.float32) for i in range(4)})
    tracemalloc.start()
    write_checkpoint(tmp_path / "a.ckpt", checkpoint)
    assert tracemalloc.get_traced_memory()[1] < size / 4
    tracemalloc.reset_peak()
    verify_checkpoint(tmp_path / "a.ckpt")
    assert tracemalloc.get_traced_memory()[1] < 1.2 * size
    tracemalloc.reset_peak()
    read_checkpoint(tmp_path / "a.ckpt")
    assert tracemalloc.get_traced_memory()[1] < 4.5 * size
    tracemalloc.stop()


MEASURE = """
import sys
from jtlightning.checkpoint.container import CheckpointError, read_checkpoint

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak()
try:
    read_checkpoint(sys.argv[1])
    outcome = "read"
except CheckpointError as error:
    outcome = error.reason
print(peak() - before, outcome)
"""


def hostile(kind: str, path: Path) -> None:
    """A file with a right seal whose header takes as much memory as it can."""
    texts = {
        "lists": "[" + "[]," * 5_000_000 + "0]",
        "allowed lists": "[" + "[]," * 39_000 + "0]",
        "objects": "[" + ",".join(['{"":{}}'] * 26_000) + "]",
        "members": json.dumps({f"k{i:06d}": f"v{i:06d}" for i in range(79_000)}),
        "text": json.dumps("x" * 2**21),
        "nested": "[" * 70_000,
        "many lists": "[" + "[]," * 650_000 + "0]",
    }
    if kind in texts:
        forge(path, {}, b"", {"loop": texts[kind]})
    elif kind == "keys":
        forge(path, {}, b"", {f"k{i:06d}": "0" for i in range(60_000)})
    elif kind == "tensors":
        entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        forge(path, {f"{i:09d}": entry for i in range(7_000)}, b"")
    else:
        arrays = {f"model/{i}": np.ones(2**20, np.float32) for i in range(12)}
        write_checkpoint(path, Checkpoint(arrays, {"text": "x" * 2**20}))


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("lists", "header of"),
        ("many lists", "values in the header"),
        ("allowed lists", "read"),
        ("objects", "read"),
        ("members", "read"),
        ("text", "read"),
        ("nested", "damaged metadata"),
        ("keys", "read"),
        ("tensors", "checksums"),
        ("arrays", "read"),
    ],
)
def test_reading_takes_no_more_than_twice_the_file_and_16_mib(tmp_path, kind, outcome):
    path = tmp_path / "a.ckpt"
    hostile(kind, path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    )
    kilobytes, _, found = done.stdout.partition(" ")
    assert outcome in found
    assert int(kilobytes) * 1024 < 2 * path.stat().st_size + 16 * 2**20


def test_more_values_than_the_file_s_size_allows_are_refused_unparsed(tmp_path):
    path = tmp_path / "a.ckpt"
    forge(path, {}, b"", {"loop": "[" + "0," * 90_000 + "0]"})
    with pytest.raises(CheckpointError, match=r"90\d\d\d values in the header, over 80\d\d\d"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="store large state as arrays"):
        write_checkpoint(path, Checkpoint({}, {"loop": [0] * 90_000}))


def test_thousands_of_tiny_tensors_are_stored(tmp_path):
    arrays = {
        f"optimizer/0/m/model.backbone.stages.2.{i:04d}": np.ones((1, 4)) for i in range(8000)
    }
    write_checkpoint(tmp_path / "a.ckpt", Checkpoint(arrays))
    assert read_checkpoint(tmp_path / "a.ckpt").tensors.keys() == arrays.keys()


def test_metadata_is_fixed_when_it_is_encoded(tmp_path):
    loop = {"global_step": 1}
    encoded = encode_checkpoint(Checkpoint({}, {"loop": loop}))
    loop["global_step"] = 2
    encoded.write(tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").metadata["loop"] == {"global_step": 1}


def test_foreign_safetensors_file_is_said_to_hold_weights_only(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="weights only"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: .* No such file.*; check the path"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="directory"):
        read_checkpoint(tmp_path)


def test_owner_is_alive_only_as_the_same_process():
    me = Owner.current()
    assert me.alive()
    assert not Owner(me.host, me.pid, me.started + 1).alive()  # the pid was reused
    assert not Owner(me.host, 2**22 + 1, me.started).alive()
    assert Owner("elsewhere", 2**22 + 1, 0).alive()  # cannot be asked


def test_zombie_is_not_alive():
    read, write = os.pipe()
    pid = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)])
    os.set_inheritable(read, False)
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    owner = Owner(Owner.current().host, pid, started)
    assert owner.alive()
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not owner.alive()
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
