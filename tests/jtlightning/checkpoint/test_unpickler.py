from __future__ import annotations

import argparse
import io
import math
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import pytest

from jtlightning.checkpoint.pickle_parts import Budget, MalformedError, Placeholder, Window
from jtlightning.checkpoint.unpickler import Unpickler
from tests.jtlightning.checkpoint.forge import call, name, ops, pickled

PLAIN = {
    "none": None,
    "flags": [True, False],
    "integers": [0, 255, 65535, -1, 2**31, -(2**63), 2**200],
    "floats": (0.5, -math.inf, 1e300),
    "text": ["", "ä", "\U0001f600", "x" * 300],
    "bytes": [b"", b"\x00\xff", b"y" * 300, bytearray(b"z")],
    "nested": {"a": {1: [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}},
    "sets": [{1, 2}, frozenset({"a"}), set()],
    ("tuple", 1): None,
    2.5: None,
}


def load(data: bytes, size: int | None = None):
    source = Window(io.BytesIO(data), 0, len(data))
    return Unpickler(source, Budget(len(data) if size is None else size)).load()


def refusal(data: bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        load(data)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back(protocol):
    assert load(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", [2, 4])
def test_containers_of_the_standard_library_become_plain_ones(protocol):
    tree = [OrderedDict(a=1), defaultdict(list, a=[1]), Counter("aab")]
    found = load(pickle.dumps(tree, protocol))
    assert found == [{"a": 1}, {"a": [1]}, {"a": 2, "b": 1}]
    assert {type(item) for item in found} == {dict}


def test_shared_and_recursive_containers_stay_so():
    shared: list[object] = [1]
    shared.append(shared)
    found = load(pickle.dumps({"a": shared, "b": shared}, 4))
    assert found["a"] is found["b"]
    assert found["a"][1] is found["a"]


def test_objects_become_placeholders_that_carry_their_names():
    tree = [argparse.Namespace(a=1), math.sqrt, Path, OSError("x")]
    found = load(pickle.dumps(tree, 4))
    assert [type(item) for item in found] == [Placeholder] * 4
    assert [item.name for item in found] == [
        "argparse.Namespace",
        "math.sqrt",
        "pathlib.Path",
        "builtins.OSError",
    ]


def test_instance_of_python_2_is_named_by_its_class():
    made = call(name("copy_reg", "_reconstructor"), name("a", "B"), name("c", "D"), None)
    assert load(pickled(made)).name == "a.B"


def test_nothing_is_imported_or_run(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (tmp_path / "hostile.py").write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    assert load(pickled(call(name("hostile", "run"), 1))).name == "hostile.run"
    assert load(pickled(call(name("posix", "system"), f"touch {canary}"))).name == "posix.system"
    assert "hostile" not in sys.modules
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"\x80\x02N", "truncated"),
        (b"\x80\x01N.", "protocol 1"),
        (b"\x80\x02.", "ends in its middle"),
        (b"\x80\x02NN.", "ends in its middle"),
        (b"\x80\x02(.", "ends in its middle"),
        (b"\x80\x02(e.", "takes more than it made"),
        (b"\x80\x02t.", "unmatched mark"),
        (b"\x80\x02(Nst.", "takes more than it made"),
        (b"\x80\x02}(Nu.", "key without a value"),
        (b"\x80\x02}]Ns.", "uses a list as a key"),
        (b"\x80\x02}}Ns.", "uses a dict as a key"),
        (b"\x80\x02NNa.", "appends to a NoneType"),
        (b"\x80\x02NNNs.", "sets items of a NoneType"),
        (b"\x80\x04](N\x90.", "adds to a list"),
        (b"\x80\x02h\x07.", "refers to object 7 before"),
        (b"\x80\x02cos", "name without an end"),
        (b"\x80\x02NQ.", "outside of its pickle"),
        (b"\x80\x02N)R.", "calls a NoneType"),
        (b"\x80\x02ca\nb\nNR.", "calls a Placeholder"),
        (b"\x80\x02\x82\x01.", "unknown instruction"),
        (pickled(call(name("builtins", "set"), 3)), "makes a container of a int"),
        (pickled(call(name("builtins", "set"), [[1]])), "uses a list as a key"),
        (pickled(call(name("collections", "OrderedDict"), [[1]])), "no pairs"),
        (pickled(call(name("_codecs", "encode"), "a", "rot13")), "unknown encoding"),
        (pickled(call(name("_codecs", "encode"), "\u0100", "latin1")), "bytes that are none"),
        (pickled({2**61: 1}), "uses a int as a key"),
        (pickled({(1,) * 9: 1}), "uses a tuple as a key"),
    ],
)
def test_damage_is_said(data, reason):
    assert reason in refusal(data)


def test_objects_beyond_the_size_of_the_file_are_refused():
    many = b"\x80\x02(" + b"]" * 600_000 + b"l."
    with pytest.raises(MalformedError, match="more objects than a file of its size"):
        load(many)
    assert len(load(many, size=100 * 2**20)) == 600_000


def test_names_of_a_python_2_file_are_text():
    assert load(b"\x80\x02}(U\x01aK\x01T\x01\x00\x00\x00bK\x02u.") == {"a": 1, "b": 2}


def test_text_that_is_not_utf8_is_spelled_out():
    assert load(b"\x80\x02X\x02\x00\x00\x00a\xff.") == "a\\xff"


def test_what_a_placeholder_would_hold_is_dropped():
    made = name("a", "B")
    assert load(b"\x80\x02" + made + b")\x81" + ops({"x": 1}) + b"b" + ops(1) + b"a.").name == "a.B"
