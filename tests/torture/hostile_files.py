"""Files that attack the memory of their reader, each with what must become of it."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.jtlightning.checkpoint.forge import (
    array,
    call,
    name,
    ops,
    pickled,
    tensor,
    write_jittor,
    write_legacy,
    write_zip,
)

MIB = 2**20
SIZE = 32 * MIB
REFUSED = "objects than a file of its size"

Make = Callable[[Path], object]


def in_zip(body: bytes) -> Make:
    return lambda path: write_zip(path, body)


def in_legacy(body: bytes) -> Make:
    return lambda path: write_legacy(path, body)


def in_jittor(body: bytes) -> Make:
    return lambda path: write_jittor(path, body)


def repeated(item: bytes, start: bytes = b"(", end: bytes = b"l.") -> bytes:
    return b"\x80\x04" + start + item * (SIZE // len(item)) + end


def safetensors(header: bytes, data: bytes = b"") -> Make:
    return lambda path: path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(dtype: str, shape: list[int], size: int) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()


def laughs(levels: int) -> bytes:
    """Lists of ten references to the list before."""
    body = b"\x80\x04(]\x94"
    for level in range(levels):
        body += b"](" + (b"h" + bytes([level])) * 10 + b"e\x94"
    return body + b"l."


def colliding_keys() -> bytes:
    """Integers that all have the same hash."""
    modulus = 2**61 - 1
    items = b"".join(
        b"\x8a\x10" + (modulus * i).to_bytes(16, "little", signed=True) + b"N"
        for i in range(50_000)
    )
    return b"\x80\x04}(" + items + b"u."


def entries(count: int) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", pickled({}))
            for index in range(count):
                file.writestr(zipfile.ZipInfo(f"a/{index}"), b"")

    return make


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled({"a": tensor(numel=2**28, shape=(2**28,))}))
        file.writestr("archive/data/0", bytes(2**30))


def views(count: int, **view: object) -> Make:
    """Many views of one storage of 1 MiB."""
    body = pickled({f"t{i}": tensor(numel=MIB // 4, **view) for i in range(count)})
    return lambda path: write_zip(path, body, {"0": bytes(MIB)})


def bfloat16(path: Path) -> None:
    count = SIZE // 2
    view = tensor(kind="BFloat16Storage", numel=count, shape=(count,))
    write_zip(path, pickled({"a": view}), {"0": bytes(SIZE)})


def bfloat16_beside_text(path: Path) -> None:
    """Both grow when read: numbers to twice their bytes, text with one emoji to four times."""
    count = SIZE // 2
    view = tensor(kind="BFloat16Storage", numel=count, shape=(count,))
    text = "\U0001f600" + "a" * (7 * MIB)
    write_zip(path, pickled({"a": view, "b": text}), {"0": bytes(SIZE)})


def legacy_lie(path: Path) -> None:
    write_legacy(path, pickled({"a": tensor(numel=2**40, shape=(2**40,))}), {"0": (2**40, b"")})


WHOLE = (SIZE // 4,)
#: File by name: how it is made, and a part of the outcome.
FILES: dict[str, tuple[Make, str]] = {
    # Honest files, as large
    "bfloat16 tensor (zip)": (bfloat16, "1 tensors"),
    "float32 tensor (legacy)": (
        lambda path: write_legacy(
            path,
            pickled({"a": tensor(numel=WHOLE[0], shape=WHOLE)}),
            {"0": (WHOLE[0], bytes(SIZE))},
        ),
        "1 tensors",
    ),
    "float32 array (jittor)": (in_jittor(pickled({"a": array(bytes(SIZE), WHOLE)})), "1 tensors"),
    "bfloat16 tensor (safetensors)": (
        safetensors(entry("BF16", [SIZE // 2], SIZE), bytes(SIZE)),
        "1 tensors",
    ),
    "many views of one storage": (views(60, shape=(MIB // 4,)), "declares tensors of"),
    "sixteen views of one storage": (views(16, shape=(MIB // 4,)), "16 tensors"),
    # Shapes
    "expanded to 4 GiB": (views(1, shape=(2**30,), strides=(0,)), "declares tensors of"),
    "expanded to 2**94": (views(1, shape=(2**47,) * 2, strides=(0, 0)), "impossible shape"),
    "empty, with a size of 2**94": (
        views(1, shape=(0, 2**47, 2**47), strides=(0, 0, 0)),
        "impossible shape",
    ),
    "storage of 4 TiB (legacy)": (legacy_lie, "truncated"),
    "array of 4 TiB (jittor)": (in_jittor(pickled({"a": array(b"", (2**40,))})), "contradicts"),
    "tensor of 4 TiB (safetensors)": (
        safetensors(entry("F32", [2**40], 2**42)),
        "truncated or has bytes added",
    ),
    "empty, with a size of 2**94 (safetensors)": (
        safetensors(entry("F32", [0, 2**47, 2**47], 0)),
        "impossible",
    ),
    # Many small objects, at several times their bytes
    "empty lists (zip)": (in_zip(repeated(b"]")), REFUSED),
    "empty lists (legacy)": (in_legacy(repeated(b"]")), REFUSED),
    "empty lists (jittor)": (in_jittor(repeated(b"]")), REFUSED),
    "wide text beside bfloat16": (bfloat16_beside_text, REFUSED),
    "empty sets": (in_jittor(repeated(b"\x8f")), REFUSED),
    "marks": (in_jittor(repeated(b"(")), REFUSED),
    "integers": (in_jittor(repeated(b"M\x00\x10")), REFUSED),
    "names": (in_jittor(repeated(b"ca\nb\n")), REFUSED),
    "memo": (in_jittor(repeated(b"\x94", b"N", b".")), REFUSED),
    "memo far apart": (
        in_jittor(
            b"\x80\x04N" + b"".join(b"r" + struct.pack("<I", i << 12) for i in range(2**20)) + b"."
        ),
        REFUSED,
    ),
    "references": (in_jittor(repeated(b"h\x00", b"]\x94(", b"e.")), REFUSED),
    "keys of one hash": (in_jittor(colliding_keys()), "as a key that no checkpoint has"),
    "sets made of a set": (
        in_jittor(
            b"\x80\x04]("
            + b"".join(ops(i) for i in range(50_000))
            + b"e\x94("
            + b"".join([b"cbuiltins\nset\nh\x00\x85R"] * 10_000)
            + b"l."
        ),
        REFUSED,
    ),
    "wide strings": (in_jittor(repeated(ops("\U0001f600" + "a" * 2**16))), REFUSED),
    # Declared lengths
    "string of 4 EiB": (in_jittor(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"."), REFUSED),
    "bytes of 4 EiB": (in_jittor(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"."), "truncated"),
    "bytearray of 4 EiB": (
        in_jittor(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"."),
        "truncated",
    ),
    "integer of 2 GiB": (
        in_jittor(b"\x80\x04\x8b" + struct.pack("<I", 2**31) + b"."),
        "integer of",
    ),
    # Depth
    "lists in lists": (in_jittor(b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b"."), "deep"),
    "tuples in tuples": (in_jittor(b"\x80\x04N" + b"\x85" * 300_000 + b"."), "deep"),
    "tuples in tuples as a key": (
        in_jittor(b"\x80\x04}N" + b"\x85" * 300_000 + b"Ns."),
        "as a key that no checkpoint has",
    ),
    "list in itself": (in_jittor(b"\x80\x04]\x94h\x00a."), "contains itself"),
    "ten to the twenty references": (in_jittor(laughs(20)), REFUSED),
    "JSON in JSON (safetensors)": (safetensors(b'{"a":' * 2**18), "header"),
    # Archives
    "90,000 entries": (entries(90_000), "holds no tensors"),
    "200,000 entries": (entries(200_000), "archive directory of 200001 entries"),
    "archive of 1 GiB, compressed": (bomb, "compressed entry"),
}

#: Calls of what is not there, or not callable.
NONSENSE = {
    "call of a string": b"\x80\x04" + ops("os.system") + ops(("true",)) + b"R.",
    "call of a tensor": pickled({"a": call(tensor(), "true")}),
    "name made of numbers": b"\x80\x04K\x01K\x02\x93.",
    "extension": b"\x80\x02\x82\x01.",
    "instruction of protocol 0": b"(S'true'\nios\nsystem\n.",
    "keyword call": b"\x80\x04" + name("os", "system") + b"N}\x92.",
}
