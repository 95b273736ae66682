"""Damaged checkpoints: each is noticed, said why, and the previous good one is taken."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jtlightning.callbacks.ema import EMA
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.checkpoint.container import CheckpointError, read_checkpoint, verify_checkpoint
from jtlightning.run_directory import find_checkpoint
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask
from tests.torture.scale import count, report

pytestmark = [pytest.mark.slow, pytest.mark.torture]

FLIPS, CUTS, ADDITIONS = count(60, 200), count(20, 50), count(10, 30)


@dataclass(frozen=True)
class Run:
    """A run's folder with the files of steps 3 and 6; `newest` is the only one of step 6."""

    folder: Path
    newest: Path
    previous: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "experiment"
    saver = ModelCheckpoint(
        save_top_k=-1, save_last=False, filename="{step}", every_n_train_steps=3, every_n_epochs=9
    )
    trainer = make_trainer(folder, max_steps=6, callbacks=[EMA(decay=0.9), saver])
    trainer.fit(TinyTask(), datamodule=TinyData())
    return folder


@pytest.fixture
def run(tmp_path: Path, original: Path) -> Run:
    folder = tmp_path / "experiment"
    shutil.copytree(original, folder)
    (newest,) = folder.glob("*/checkpoints/6.ckpt")
    return Run(folder, newest, newest.with_name("3.ckpt"))


def places(data: bytes) -> list[int]:
    """Where to flip: the length, all over the header, and every tensor; then anywhere."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    checksums = data.index(b"crc32:")
    seal = data.index(b'"header_sha256"')
    entries = [entry["data_offsets"] for name, entry in header.items() if name[0] != "_"]
    tensors = [8 + length + begin for begin, _ in entries]
    fixed = [0, 3, 7, 8, checksums, checksums + 8, seal + 2, seal + 20, 7 + length, *tensors]
    rng = random.Random(0)
    spread = rng.sample(tensors, len(tensors))
    anywhere = [rng.randrange(len(data)) for _ in range(FLIPS)]
    in_header = [rng.randrange(8, 8 + length) for _ in range(FLIPS // 4)]
    return list(dict.fromkeys([*fixed[:9], *spread[: FLIPS // 2], *in_header, *anywhere]))[:FLIPS]


def flipped(data: bytes) -> Iterator[tuple[str, bytes]]:
    for position in places(data):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        yield f"bit of byte {position} flipped", bytes(damaged)


def shortened(data: bytes) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(1)
    lengths = [1, 7, 8, 9, len(data) - 1, len(data) // 2]
    for length in [*lengths, *(rng.randrange(1, len(data)) for _ in range(CUTS - len(lengths)))]:
        yield f"cut to {length} bytes", data[:length]


def lengthened(data: bytes) -> Iterator[tuple[str, bytes]]:
    for number in range(ADDITIONS):
        more = bytes(number % 3) + b"\1" * (1 + number**2)
        yield f"{len(more)} bytes added", data + more


def emptied(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "emptied", b""
    yield "zeroed", bytes(len(data))


KINDS = {
    "flipped bytes": flipped,
    "truncations": shortened,
    "appended bytes": lengthened,
    "empty and zeroed file": emptied,
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_and_the_previous_file_is_taken(
    run: Run, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = run.newest.read_bytes()
    assert find_checkpoint(run.folder, "last") == run.newest
    reasons, cases = set(), list(KINDS[kind](good))
    for what, data in cases:
        run.newest.write_bytes(data)
        for read in (read_checkpoint, verify_checkpoint):
            with pytest.raises(CheckpointError, match=r"6\.ckpt: \S+ \S+") as caught:
                read(run.newest)
        reasons.add(caught.value.reason)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert find_checkpoint(run.folder, "last") == run.previous, what
        assert f"left out: {run.newest}: {caught.value.reason}" in caplog.text, what
    assert len(reasons) > (kind != "appended bytes"), reasons
    wanted = {"flipped bytes": FLIPS, "truncations": CUTS, "appended bytes": ADDITIONS}
    done = len(cases)
    assert done == wanted.get(kind, 2)
    asked = "all detected, file and reason named"
    report(f"corruption: {kind}", asked, f"{done} of {done} detected")


CASES = {
    "tensor": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "header": lambda data: data[:200] + bytes([data[200] ^ 4]) + data[201:],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("case", CASES)
def test_auto_continues_from_the_previous_file_and_a_path_is_an_error(
    run: Run, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = CASES[case](run.newest.read_bytes())
    run.newest.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"6\.ckpt: .*; take an earlier checkpoint"):
        make_trainer(run.folder, max_steps=4).fit(
            TinyTask(), datamodule=TinyData(), ckpt_path=run.newest
        )
    assert run.newest.read_bytes() == damaged
    caplog.set_level(logging.INFO)
    trainer = make_trainer(run.folder, max_steps=5)
    trainer.fit(TinyTask(), datamodule=TinyData(), ckpt_path="auto")
    assert f"left out: {run.newest}" in caplog.text
    assert "3.ckpt, saved after step 3" in caplog.text
    assert trainer.global_step == 5


def test_with_every_file_damaged_auto_starts_from_scratch_and_last_is_an_error(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (run.newest, run.previous):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no intact checkpoint"):
        make_trainer(run.folder, max_steps=1).fit(
            TinyTask(), datamodule=TinyData(), ckpt_path="last"
        )
    caplog.set_level(logging.INFO)
    trainer = make_trainer(run.folder, max_steps=1)
    trainer.fit(TinyTask(), datamodule=TinyData(), ckpt_path="auto")
    assert "starting from scratch" in caplog.text
    assert trainer.global_step == 1
