from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jtlightning.checkpoint.foreign import ForeignFileError, open_foreign
from tests.jtlightning.checkpoint.forge import (
    Raw,
    call,
    name,
    ops,
    pickled,
    tensor,
    write_legacy,
    write_zip,
)

REFERENCE = Path(__file__).parents[2] / "reference" / "checkpoints"
FOUR = np.arange(4, dtype="<f4")


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors, bfloat16 widened, by the joined path."""
    with open_foreign(path) as foreign:
        return {".".join(place): foreign.read(place, widen=True) for place in foreign.tensors}


def refusal(path: Path) -> str:
    with pytest.raises(ForeignFileError) as caught:
        arrays(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        np.testing.assert_array_equal(found[key], value, err_msg=key, strict=True)


@pytest.mark.parametrize("file", ["exotic.pth", "exotic_legacy.pth"])
def test_every_dtype_and_view_is_read_as_pytorch_has_it(file):
    # float64/16, bfloat16, integers, bool; transposed, strided, expanded, shared, 0-d, empty
    assert_same(arrays(REFERENCE / file), dict(np.load(REFERENCE / "exotic.npz")))


@pytest.mark.parametrize(
    ("file", "prefix"),
    [
        ("model_only.pth", "model."),
        ("module_prefix.pth", "module."),
        ("legacy.pth", "state_dict.module."),
    ],
)
def test_recorded_files_hold_the_recorded_numbers(file, prefix):
    expected = np.load(REFERENCE / "model_only.npz")
    assert_same(arrays(REFERENCE / file), {prefix + n: expected[n] for n in expected.files})


def leaves(value, place=()):
    """Numbers in nested JSON by their path."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from leaves(item, (*place, str(key)))
        else:
            yield (*place, str(key)), item


def test_optimizer_and_position_of_a_training_state_are_read():
    expected = dict(np.load(REFERENCE / "training_state_optimizer.npz"))
    meta = json.loads(expected.pop("meta").tobytes())
    groups = meta.pop("param_groups")
    with open_foreign(REFERENCE / "training_state.pth") as foreign:
        state = {
            ".".join(place[1:]): foreign.read(place)
            for place in foreign.tensors
            if place[0] == "optimizer"
        }
        values = foreign.values
    assert_same(state, expected)
    assert values == dict([*leaves(meta), *leaves(groups, ("optimizer", "param_groups"))])
    assert values["iteration",] == 123


def test_what_is_no_tensor_becomes_a_named_placeholder():
    expected = {
        "float8": "torch.float8_e4m3fn",
        "complex": "torch.ComplexFloatStorage",
        "meta": "torch._utils._rebuild_meta_tensor_no_storage",
        "sparse": "torch._utils._rebuild_sparse_tensor",
        "storage": "torch.storage",
        "dtype": "torch.float32",
        "device": "torch.device",
        "args": "argparse.Namespace",
        "numpy_scalar": "numpy.core.multiarray.scalar",
        "numpy_array": "numpy.core.multiarray._reconstruct",
        "function": "math.sqrt",
        "class": "torch.nn.modules.linear.Linear",
        "instance": "torch.nn.modules.linear.Linear",
    }
    with open_foreign(REFERENCE / "objects.pth") as foreign:
        assert {".".join(place): kind for place, kind in foreign.placeholders.items()} == expected
    with open_foreign(REFERENCE / "objects_protocol5.pth") as foreign:
        found = {".".join(place): kind for place, kind in foreign.placeholders.items()}
    assert found == expected | {"numpy_array": "numpy.core.numeric._frombuffer"}


@pytest.mark.parametrize("file", ["objects.pth", "objects_protocol5.pth"])
def test_containers_numbers_and_strings_come_through(file):
    with open_foreign(REFERENCE / file) as foreign:
        values = foreign.values
        assert values["nested", "0"] == 1
        assert values["nested", "1", "0"] == 2.5
        assert values["nested", "1", "1"] is None
        assert values["nested", "1", "2"] is True
        assert values["nested", "2", "k/ey"] == "text"
        assert values["nested", "2", "3"] == -(2**40)
        assert values["bytes",] == b"\x00\xff"
        assert [values["set", str(i)] for i in (0, 1)] == [1, 2]
        assert values["frozenset", "0"] == "x"
        assert values["defaultdict", "a", "0"] == 1
        assert values["counter", "a"] == 2
        assert values["size", "1"] == 2
        read = {place[0]: foreign.read(place).tolist() for place in foreign.tensors}
    assert read == {
        "uint16": [1, 65535],
        "uint64": [2**63],
        "tagged": [1.0, 2.0],
        "buffer": [3.0],
    }


@pytest.mark.parametrize("file", ["absent_gpu.pth", "absent_gpu_legacy.pth"])
def test_tensors_of_an_absent_gpu_are_read(file):
    assert b"cuda:3" in (REFERENCE / file).read_bytes()
    expected = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": [0.5, -1.0]}
    assert_same(arrays(REFERENCE / file), {n: np.array(v, np.float32) for n, v in expected.items()})


def test_bfloat16_is_given_as_bits_or_widened():
    with open_foreign(REFERENCE / "exotic.pth") as foreign:
        bits = foreign.read(("bf16",))
        wide = foreign.read(("bf16",), widen=True)
        assert foreign.tensors["bf16",].dtype == "BF16"
    assert bits.dtype == np.uint16
    assert wide.dtype == np.float32
    np.testing.assert_array_equal((wide.view(np.uint32) >> 16).astype(np.uint16), bits)


def test_views_of_one_storage_share_its_memory(tmp_path):
    pickle = pickled({"a": tensor(), "b": tensor(offset=2, shape=(2,))})
    with open_foreign(write_zip(tmp_path / "a.pth", pickle, {"0": FOUR.tobytes()})) as foreign:
        assert np.shares_memory(foreign.read(("a",)), foreign.read(("b",)))


def test_oldest_spellings_are_read(tmp_path):
    storage = Raw(
        ops(("storage", name("torch.cuda", "FloatStorage"), "7", "cuda:0", 4, None)) + b"Q"
    )
    part = Raw(ops(("storage", name("torch", "FloatStorage"), "7", "cpu", 4, ("8", 2, 2))) + b"Q")
    old = name("torch._utils", "_rebuild_tensor")
    pairs = [
        ["plain", call(old, storage, 0, (2, 2), (2, 1))],
        ["part", call(old, part, 1, (1,), (1,))],
    ]
    python2 = Raw(b"U\x05bytes" + b"U\x02\xff\x00")
    tree = call(name("collections", "OrderedDict"), [*pairs, Raw(b"(" + python2 + b"t")])
    path = write_legacy(tmp_path / "a.pth", pickled(tree), {"7": (4, FOUR.tobytes())})
    assert_same(arrays(path), {"plain": FOUR.reshape(2, 2), "part": FOUR[3:]})
    with open_foreign(path) as foreign:
        assert foreign.values["bytes",] == b"\xff\x00"


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ({"offset": 1}, r"shape \(4,\) that reaches item 4 of 4"),
        ({"shape": (2, 2), "strides": (3, 1)}, "reaches item 4 of 4"),
        ({"shape": (2**47, 2**47), "strides": (0, 0)}, "impossible shape"),
        ({"shape": (0, 2**47, 2**47), "strides": (0, 0, 0)}, "impossible shape"),
        ({"shape": (2**30,), "strides": (0,)}, r"declares tensors of 4294967296 bytes"),
        ({"shape": (-1,)}, "impossible shape"),
        ({"strides": (-1,)}, "impossible strides"),
        ({"offset": -1}, "impossible strides"),
        ({"shape": (True,)}, "impossible shape"),
        ({"shape": (2, 2)}, "impossible strides"),
        ({"shape": (1,) * 33, "strides": (1,) * 33}, "impossible shape"),
        ({"shape": "four"}, "impossible shape"),
        ({"numel": 5, "shape": (5,)}, r"storage '0' of 16 bytes where 5 items of 4 bytes"),
        ({"numel": 3, "shape": (3,)}, r"storage '0' of 16 bytes where 3 items of 4 bytes"),
        ({"numel": 2**60}, "storage without a key or a size"),
        ({"key": "1"}, r"lacks the entry 'archive/data/1'"),
        ({"key": "../0"}, r"lacks the entry 'archive/data/\.\./0'"),
    ],
)
def test_tensor_that_its_storage_contradicts_is_refused(tmp_path, view, reason):
    path = write_zip(tmp_path / "a.pth", pickled({"a": tensor(**view)}), {"0": FOUR.tobytes()})
    with pytest.raises(ForeignFileError, match=reason):
        arrays(path)


def test_storage_described_in_two_ways_is_refused(tmp_path):
    pickle = pickled([tensor(), tensor(kind="IntStorage")])
    assert "in two ways" in refusal(write_zip(tmp_path / "a.pth", pickle, {"0": bytes(16)}))


def test_legacy_file_must_hold_what_it_declares(tmp_path):
    pickle, data = pickled({"a": tensor()}), FOUR.tobytes()
    path = tmp_path / "a.pth"
    assert "of 3 items where 4 are declared" in refusal(
        write_legacy(path, pickle, {"0": (3, data)})
    )
    assert "truncated" in refusal(write_legacy(path, pickle, {"0": (4, data[:-1])}))
    assert "1 bytes added" in refusal(write_legacy(path, pickle, {"0": (4, data + b"x")}))
    assert "other storages" in refusal(write_legacy(path, pickle, {"1": (4, data)}))


def test_big_endian_files_are_refused(tmp_path):
    path = write_legacy(tmp_path / "a.pth", pickled({}))
    path.write_bytes(path.read_bytes().replace(b"little_endian\x88", b"little_endian\x89"))
    assert "big-endian" in refusal(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled({}))
        file.writestr("a/byteorder", "big")
    assert "big-endian" in refusal(path)


def test_file_that_is_no_state_dict_says_what_it_is(tmp_path):
    assert "is a TorchScript program" in refusal(REFERENCE / "torchscript.pt")
    path = tmp_path / "a.pth"
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    (tmp_path / "a.npz").rename(path)
    assert "not a checkpoint of PyTorch" in refusal(path)
    for content, reason in {
        b"": "is empty",
        b"<!DOCTYPE html>": "web page",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        bytes(257) + b"ustar": "tar archive",
        b"hello": "no file of safetensors, PyTorch or Jittor",
    }.items():
        path.write_bytes(content)
        assert reason in refusal(path)


def test_damaged_numbers_and_pickles_are_noticed(tmp_path):
    path = write_zip(tmp_path / "a.pth", pickled({"a": tensor()}), {"0": FOUR.tobytes()})
    data = path.read_bytes()
    at = data.index(FOUR.tobytes())
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    assert "checksum of a storage" in refusal(path)
    at = data.index(b"_rebuild_tensor_v2")
    path.write_bytes(data[:at] + b"^" + data[at + 1 :])
    assert "checksum of its pickle" in refusal(path)
    path.write_bytes(data[:-30])
    assert "truncated" in refusal(path)


def test_archive_tricks_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", pickled({"a": tensor()}), {"0": FOUR.tobytes()})
    data = path.read_bytes()
    for old, new, reason in (
        (b"archive/version", b"../../../verson", "leaves the archive"),
        (b"archive/version", b"/etc/ab/version", "leaves the archive"),
        (b"archive/version", b"archive\\version", "leaves the archive"),
        (b"archive/version", b"archive/\x00ersion", "leaves the archive"),
        (b"archive/version", b"archive/\xffersion", "not UTF-8"),
        (b"archive/byteorder", b"archive/data.pkl\x00", "leaves the archive"),
    ):
        path.write_bytes(data.replace(old, new))
        assert reason in refusal(path)
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/version", "4\n")
    assert "'archive/version' twice" in refusal(path)


def test_compressed_and_encrypted_entries_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled({"bomb": "0" * 10**7}))
    assert "compressed entry" in refusal(path)
    data = bytearray(write_zip(path, pickled({})).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted entry" in refusal(path)


def test_entry_inside_another_is_refused(tmp_path):
    inner = write_zip(tmp_path / "inner.pth", pickled({}), {"1": b"56"}).read_bytes()
    begin = inner.rindex(b"PK\x03\x04", 0, inner.index(b"archive/data/1"))
    header = inner[begin : inner.index(b"PK\x03\x04", begin + 4)]
    storages = {"0": header, "1": b"56"}
    data = write_zip(tmp_path / "a.pth", pickled({}), storages).read_bytes()
    assert data.count(header) == 2
    at = data.index(b"archive/data/1", data.index(b"PK\x01\x02"))
    offset = struct.pack("<I", data.index(header))
    (tmp_path / "a.pth").write_bytes(data[: at - 4] + offset + data[at:])
    assert "'archive/data/1' that overlaps another" in refusal(tmp_path / "a.pth")


def test_tensors_that_cannot_be_told_apart_or_named_are_refused(tmp_path):
    one = {"0": FOUR.tobytes()}
    path = write_zip(tmp_path / "a.pth", pickled({"a": {1: tensor(), "1": tensor()}}), one)
    assert "two entries at 'a/1'" in refusal(path)
    assert "name of 2000" in refusal(write_zip(path, pickled({"a" * 2000: tensor()}), one))


def test_directory_that_claims_more_than_there_is_is_refused(tmp_path):
    data = write_zip(tmp_path / "a.pth", pickled({}), {"0": b"1234"}).read_bytes()
    end = data.index(b"PK\x05\x06")
    path = tmp_path / "b.pth"
    path.write_bytes(data[: end + 10] + struct.pack("<H", 60000) + data[end + 12 :])
    assert "directory" in refusal(path)
    at = data.index(b"archive/data/0", data.index(b"PK\x01\x02"))
    size = struct.pack("<2I", 2**30, 2**30)
    path.write_bytes(data[: at - 26] + size + data[at - 18 :])
    assert "'archive/data/0' of 1073741824 bytes where fewer are left" in refusal(path)
