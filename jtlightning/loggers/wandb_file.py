"""Read back what the wandb client has written into a run's folder."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

# A .wandb file is a LevelDB log behind a header of its own: blocks of 32 KiB, in them records of
# checksum, length and kind; a record that does not fit into its block is continued in the next.
_HEADER_BYTES, _BLOCK_BYTES, _RECORD = 7, 32768, struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4


def logged_steps(folder: Path, run_id: str) -> dict[str, int]:
    """The newest step under which each metric stands in the files of a run.

    Args:
        folder: The `wandb` folder; each process of a run has its own below it.
        run_id: Whose files.

    Returns:
        Metric or picture -> step. What a kill cut short is left out.
    """
    newest: dict[str, int] = {}
    for path in sorted(folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb")):
        for names, step in _rows(path):
            for name in names:
                newest[name] = max(step, newest.get(name, -1))
    return newest


def _rows(path: Path) -> Iterator[tuple[set[str], int]]:
    """Names and step of each row of the history."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for message in _messages(path.read_bytes()):
        try:
            record = Record.FromString(message)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            items = {item.nested_key[0] if item.nested_key else item.key: item.value_json
                     for item in record.history.item}  # fmt: skip
            if "_step" in items:
                yield {name for name in items if not name.startswith("_")}, int(items["_step"])


def _messages(data: bytes) -> Iterator[bytes]:
    position, message = _HEADER_BYTES, b""
    while position + _RECORD.size <= len(data):
        rest = _BLOCK_BYTES - position % _BLOCK_BYTES
        if rest < _RECORD.size:
            position += rest
            continue
        _, length, kind = _RECORD.unpack_from(data, position)
        end = position + _RECORD.size + length
        if kind == 0 or end > len(data):
            return
        message += data[position + _RECORD.size : end]
        position = end
        if kind in (_WHOLE, _LAST):
            yield message
            message = b""
