from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jtlightning.checkpoint import zip_records
from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.foreign import open_foreign
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.zip_records import archive, read_directory

TREE = {
    "state_dict": {
        "columns": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.int32),
        "half": np.ones(3, np.float16),
        "bits": np.array([0x3F80, 0xC000], np.uint16),
        "uint16": np.arange(3, dtype=np.uint16),
        "uint64": np.array([2**63], np.uint64),
        "bool": np.array([True, False]),
        "int8": np.array([-1], np.int8),
        "swapped": np.arange(3, dtype=">i8"),
    },
    "epoch": 7,
    "numbers": [-1, 2**40, 0.1, np.float32(0.5), (None, True)],
    "text": "ä",
    3: "three",
}
BITS = ("state_dict/bits",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_torch(tmp_path / "a.pth", TREE, bfloat16=BITS)
    return tmp_path / "a.pth"


def test_exported_file_reads_back(path):
    with open_foreign(path) as foreign:
        found = {place[1]: foreign.read(place) for place in foreign.tensors}
        assert foreign.tensors["state_dict", "bits"].dtype == "BF16"
        values = foreign.values
        assert not foreign.placeholders
    for name, array in TREE["state_dict"].items():
        assert found[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(found[name], array, strict=False)
        assert found[name].shape == array.shape
    assert list(values.values()) == [7, -1, 2**40, 0.1, 0.5, None, True, "ä", "three"]


def test_pickle_names_only_what_the_safe_reader_of_pytorch_allows(path):
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        names = file.namelist()
        body = file.read("archive/data.pkl")
    assert names[:2] == ["archive/data.pkl", "archive/byteorder"]
    assert names[-1] == "archive/version"
    named = {argument for code, argument, _ in pickletools.genops(body) if code.name == "GLOBAL"}
    storages = {
        f"torch {kind}Storage"
        for kind in ["Float", "Double", "Int", "Half", "BFloat16", "Bool", "Char", "Long"]
    }
    assert named == storages | {
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_tensor_v3",
        "torch.storage UntypedStorage",
        "torch uint16",
        "torch uint64",
        "collections OrderedDict",
    }


def test_records_are_aligned_for_mapping(path):
    with path.open("rb") as file:
        records = read_directory(file, path.stat().st_size)
    assert all(record.begin % 64 == 0 for record in records.values())


def test_pytorch_reads_it_with_weights_only(path):
    torch = pytest.importorskip("torch")
    loaded = torch.load(path, weights_only=True)
    for name, array in TREE["state_dict"].items():
        tensor = loaded["state_dict"][name]
        if name == "bits":
            assert tensor.tolist() == [1.0, -2.0]
            assert tensor.dtype == torch.bfloat16
        else:
            np.testing.assert_array_equal(tensor.numpy(), array)
    assert loaded["numbers"] == [-1, 2**40, 0.1, 0.5, (None, True)]
    assert loaded[3] == "three"


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"a": {"b": object()}}, r"'a/b' is a object"),
        ({"a": [2**70]}, r"'a/0' is 1180591620717411303424"),
        ({"a": np.ones(1, np.complex64)}, r"'a' has dtype complex64"),
        ({"bits": np.ones(1)}, r"'bits' is listed as bfloat16 but is float64"),
        ({(1, 2): 0}, r"is a tuple"),
    ],
)
def test_value_without_a_place_is_named_and_nothing_written(tmp_path, tree, reason):
    (tmp_path / "a.pth").write_bytes(b"old")
    with pytest.raises(ValueError, match=reason):
        write_torch(tmp_path / "a.pth", tree, bfloat16=["bits"])
    assert (tmp_path / "a.pth").read_bytes() == b"old"


def test_folder_that_cannot_be_written_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_torch(tmp_path / "file" / "a.pth", {})


def test_archive_beyond_32_bits_is_read_by_others_and_by_us(monkeypatch):
    # As if four gigabytes began at 50 bytes, and 65535 records at 2.
    monkeypatch.setattr(zip_records, "_WIDE_FROM", 50)
    monkeypatch.setattr(zip_records, "_MANY_FROM", 2)
    records = {"a/x": b"hello", "a/y": b"", "a/z": b"q" * 100}
    data = b"".join(archive(records.items()))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert {name: file.read(name) for name in file.namelist()} == records
    found = read_directory(io.BytesIO(data), len(data))
    assert {n: data[r.begin : r.begin + r.size] for n, r in found.items()} == records
