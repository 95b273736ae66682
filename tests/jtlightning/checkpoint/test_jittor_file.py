from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from jtlightning.checkpoint.foreign import ForeignFileError, open_foreign
from tests.jtlightning.checkpoint.forge import array, name, ops, pickled, write_jittor

NUMBERS = {
    "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(2.5, np.float16),
    "empty": np.zeros((0, 3), np.int8),
    "flags": np.array([True, False]),
    "u2": np.array([1, 65535], np.uint16),
}


def read(path: Path) -> dict[str, np.ndarray]:
    with open_foreign(path) as foreign:
        return {".".join(place): foreign.read(place) for place in foreign.tensors}


def refusal(path: Path) -> str:
    with pytest.raises(ForeignFileError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_every_layout_are_read(tmp_path, protocol):
    path = write_jittor(tmp_path / "a.pkl", pickle.dumps(NUMBERS, protocol))
    found = read(path)
    assert found.keys() == NUMBERS.keys()
    for key, value in NUMBERS.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value, strict=True)


def test_file_without_jittor_s_checksum_is_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"a": np.ones(2)}, "epoch": 3}))
    with open_foreign(tmp_path / "a.pkl") as foreign:
        assert foreign.kind == "Jittor"
        assert foreign.values == {("epoch",): 3}
        assert list(foreign.tensors) == [("model", "a")]


def test_file_of_jittor_itself_is_read(tmp_path):
    import jittor as jt

    tree = {"var": jt.array([1.0, 2.0]), "list": [np.arange(3), 7], "text": "ä"}
    jt.save(tree, str(tmp_path / "a.pkl"))
    with open_foreign(tmp_path / "a.pkl") as foreign:
        assert foreign.values == {("list", "1"): 7, ("text",): "ä"}
        assert foreign.read(("var",)).tolist() == [1.0, 2.0]
        assert foreign.read(("list", "0")).tolist() == [0, 1, 2]


def test_every_damage_is_noticed(tmp_path):
    path = write_jittor(tmp_path / "a.pkl", pickle.dumps(NUMBERS, 4))
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert refusal(path)
        path.write_bytes(data[:at])
        assert refusal(path)
    path.write_bytes(data + b"x")
    assert "bytes follow its pickle" in refusal(path)


def test_what_is_no_array_of_numbers_becomes_a_placeholder(tmp_path):
    tree = {
        "objects": np.array([None]),
        "complex": np.ones(2, np.complex64),
        "swapped": np.ones(2, ">f4"),
        "scalar": np.float32(1),
        "dtype": np.dtype("f4"),
        "path": Path("x"),
    }
    path = write_jittor(tmp_path / "a.pkl", pickle.dumps(tree, 4))
    with open_foreign(path) as foreign:
        found = {place[0]: kind for place, kind in foreign.placeholders.items()}
        assert not foreign.tensors
    assert found == {
        "objects": "numpy.ndarray[O8]",
        "complex": "numpy.ndarray[c8]",
        "swapped": "numpy.ndarray[>f4]",
        "scalar": "numpy.core.multiarray.scalar",
        "dtype": "numpy.dtype",
        "path": "pathlib.PosixPath",
    }


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((5,), "of 16 bytes that its shape contradicts"),
        ((2**40, 2**40), "contradicts"),
        ((0, 2**47, 2**47), "contradicts"),
        ((-4,), "without a shape"),
        ((2**80,), "without a shape"),
        ((1,) * 40, "without a shape"),
        ("4", "without a shape"),
    ],
)
def test_shape_that_the_bytes_contradict_is_refused(tmp_path, shape, reason):
    path = write_jittor(tmp_path / "a.pkl", pickled({"a": array(bytes(16), shape)}))
    assert reason in refusal(path)


def test_array_without_content_is_refused(tmp_path):
    empty = ops((name("numpy.core.multiarray", "_reconstruct"),))[1:-1] + ops(()) + b"R"
    path = write_jittor(tmp_path / "a.pkl", b"\x80\x02" + empty + b".")
    assert "array without content" in refusal(path)


def test_empty_array_beyond_all_limits_is_refused(tmp_path):
    path = write_jittor(tmp_path / "a.pkl", pickled({"a": array(b"", (0, 2**47, 2**47))}))
    assert "impossible shape" in refusal(path)
