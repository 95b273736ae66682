from __future__ import annotations

import struct
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record

from jtlightning.loggers.wandb_file import logged_steps

BLOCK = 32768


def row(step: int, padding: int = 0) -> bytes:
    items = [
        HistoryItem(key="_step", value_json=str(step)),
        HistoryItem(key="loss", value_json="1" * (padding + 1)),
        HistoryItem(nested_key=["room", "path"], value_json='"x"'),
    ]
    return Record(history=HistoryRecord(item=items)).SerializeToString()


def of_size(step: int, size: int) -> bytes:
    """A row that takes exactly so many bytes."""
    for padding in range(size - 100, size):
        if len(message := row(step, padding)) == size:
            return message
    raise AssertionError(f"no row of {size} bytes")


def log_of(messages: list[bytes]) -> bytes:
    """The messages as a LevelDB log behind the header of a .wandb file, as LevelDB describes it."""
    data = b":W&B" + bytes(3)
    for message in messages:
        first = True
        while first or message:
            rest = BLOCK - len(data) % BLOCK
            if rest < 7:
                data += bytes(rest)
                continue
            part, message = message[: rest - 7], message[rest - 7 :]
            kind = (1 if not message else 2) if first else (4 if not message else 3)
            data += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    return data


def steps_of(folder: Path, data: bytes) -> dict[str, int]:
    path = folder / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return logged_steps(folder, "abc")


@pytest.mark.parametrize("left", range(9))
def test_a_row_at_the_end_of_a_block_is_followed_by_the_next(tmp_path: Path, left: int) -> None:
    first = of_size(1, BLOCK - 7 - 7 - left)  # the header of the file, then that of the record
    assert steps_of(tmp_path, log_of([first, row(2)])) == {"loss": 2, "room": 2}


def test_a_row_longer_than_blocks_is_one(tmp_path: Path) -> None:
    assert steps_of(tmp_path, log_of([row(1), row(2, 3 * BLOCK), row(3)]))["loss"] == 3


def test_what_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    one, both = log_of([row(1)]), log_of([row(1), row(2)])
    for length in range(len(one), len(both)):
        assert steps_of(tmp_path, both[:length])["loss"] == 1
    assert steps_of(tmp_path, both + bytes(100))["loss"] == 2
    assert steps_of(tmp_path, b":W&B") == {}


def test_other_runs_in_the_folder_do_not_count(tmp_path: Path) -> None:
    steps_of(tmp_path, log_of([row(7)]))
    assert logged_steps(tmp_path, "other") == {}
