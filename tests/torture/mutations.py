"""Files of every kind, and random changes to them that keep their checksums right."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from jtlightning.checkpoint.container import Checkpoint, write_checkpoint
from tests.jtlightning.checkpoint import forge

REFERENCE = Path(__file__).parents[1] / "reference" / "checkpoints"
Write = Callable[[Path, bytes], object]
#: Makes the bytes to change, and what turns them into a file.
Seed = Callable[[Path], tuple[bytes, Write]]

_TREE = {
    "model": {"a": np.ones((2, 3), np.float32), "b": np.arange(4).reshape(2, 2).T},
    "more": [1, (2.5, "text"), {4: None}, np.float64(2)],
}
_PIECES = [
    *(bytes([code]) for code in b"(])}RbtuseaQN2.\x81\x85\x86\x8f\x90\x91\x92\x93\x94"),
    b"h\x00",
    b"j\x00\x00\x00\x00",
    b"q\x00",
    b"K\x00",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x8a\x08" + b"\x7f" * 8,
    b"cos\nsystem\n",
]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes: flip, replace, delete, repeat, insert instructions, copy."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at, other = rng.randrange(len(data)), rng.randrange(len(data))
        piece = rng.choice(_PIECES)
        change = rng.randrange(7)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at : at + len(piece)] = piece
        elif change == 2:
            del data[at : at + rng.choice([1, 2, 4, 16])]
        elif change == 3:
            data[at:at] = data[at : at + rng.choice([1, 2, 8, 64])]
        elif change == 4:
            data[at:at] = piece
        elif change == 5:
            data[at : at + 8] = data[other : other + 8]
        else:
            del data[at + rng.randrange(1, 1 + len(data)) :]
        data = data or bytearray(b"\x80")
    return bytes(data)


def _as_it_is(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _whole(name: str, folder: Path) -> tuple[bytes, Write]:
    return (REFERENCE / name).read_bytes(), _as_it_is


def _inside(name: str, folder: Path) -> tuple[bytes, Write]:
    """The pickle of a zip file, put back with a right checksum."""
    with zipfile.ZipFile(REFERENCE / name) as file:
        root = file.namelist()[0].partition("/")[0]
        storages = {
            entry.rpartition("/")[2]: file.read(entry)
            for entry in file.namelist()
            if entry.startswith(f"{root}/data/")
        }
        body = file.read(f"{root}/data.pkl")
    return body, lambda path, data: forge.write_zip(path, data, storages)


def _jittor(protocol: int, folder: Path) -> tuple[bytes, Write]:
    return pickle.dumps(_TREE, protocol), forge.write_jittor


def _safetensors(folder: Path) -> tuple[bytes, Write]:
    return save({"model/a": np.ones((2, 3), np.float32), "b": np.arange(4)}), _as_it_is


def _own(folder: Path) -> tuple[bytes, Write]:
    tensors = {"model/model.a": np.ones(3), "callback/EMA/average/model.a": np.zeros(3)}
    write_checkpoint(folder / "own.ckpt", Checkpoint(tensors, {"loop": {"global_step": 3}}))
    return (folder / "own.ckpt").read_bytes(), _as_it_is


SEEDS: dict[str, Seed] = {
    **{
        f"pickle of {name}": partial(_inside, name)
        for name in ("model_only.pth", "exotic.pth", "objects.pth", "objects_protocol5.pth")
    },
    **{
        name: partial(_whole, name)
        for name in ("model_only.pth", "pretrain_ema.pth.tar", "exotic_legacy.pth", "objects.pth")
    },
    **{f"jittor, protocol {protocol}": partial(_jittor, protocol) for protocol in (2, 4, 5)},
    "safetensors": _safetensors,
    "checkpoint": _own,
}
