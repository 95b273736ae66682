"""Zip archives as PyTorch writes them: uncompressed records, read strictly and written aligned."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from jtlightning.checkpoint.pickle_parts import MalformedError

MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_MAX_RECORDS = 100_000
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
# What does not fit 32 or 16 bits stands in a zip64 field.
_WIDE_FROM, _MANY_FROM = _FULL32, _FULL16
_ENCRYPTED, _UTF8 = 0x1, 0x800
# PyTorch maps records into memory and wants them aligned.
_ALIGNMENT = 64
_PADDING_ID = 0x4246


@dataclass(frozen=True, slots=True)
class Record:
    """One entry: its bytes are [begin, begin + size) of the file, compressed or not."""

    begin: int
    size: int
    crc: int | None
    compressed: bool = False


def read_directory(file: BinaryIO, size: int) -> dict[str, Record]:
    """Records by name, checked against the file's size and against each other.

    Raises:
        MalformedError: Truncated, encrypted, a name twice or with a path out of the
            archive, records that overlap or lie about their size.
    """
    begin, end, count = _directory_range(file, size)
    if count > _MAX_RECORDS or end - begin > count * 1024:
        raise MalformedError(f"has an archive directory of {count} entries, {end - begin} bytes")
    file.seek(begin)
    data = file.read(end - begin)
    records: dict[str, Record] = {}
    position = 0
    for _ in range(count):
        name, record, position = _central_entry(file, data, position, begin)
        if name in records:
            raise MalformedError(f"has the entry {name!r} twice")
        records[name] = record
    _check_disjoint(records)
    return records


def _directory_range(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Begin and end of the central directory, and its number of entries."""
    # A comment of 64 KiB may follow; PyTorch writes none.
    tail_at = max(0, size - _END.size - _FULL16)
    file.seek(tail_at)
    tail = file.read(size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise MalformedError("is truncated: the archive has no directory")
    _, _, _, _, count, length, begin, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    if count == _FULL16 or _FULL32 in (length, begin):
        locator = _read(file, end - _LOCATOR64.size, _LOCATOR64)
        if locator[0] == b"PK\x06\x07":
            end = locator[2]
            fields = _read(file, end, _END64)
            if fields[0] != b"PK\x06\x06":
                raise MalformedError("has a damaged archive directory")
            count, length, begin = fields[7:]
    if begin + length > end:
        raise MalformedError("has a damaged archive directory")
    return begin, begin + length, count


def _read(file: BinaryIO, position: int, layout: struct.Struct) -> tuple:
    if position >= 0:
        file.seek(position)
        data = file.read(layout.size)
        if len(data) == layout.size:
            return layout.unpack(data)
    raise MalformedError("has a damaged archive directory")


def _central_entry(
    file: BinaryIO, data: bytes, position: int, directory_begin: int
) -> tuple[str, Record, int]:
    if position + _CENTRAL.size > len(data):
        raise MalformedError("has a damaged archive directory")
    fields = _CENTRAL.unpack_from(data, position)
    magic, _, _, flags, method, _, _, crc, packed, size = fields[:10]
    name_length, extra_length, comment_length = fields[10:13]
    position += _CENTRAL.size
    raw = data[position : position + name_length]
    position += name_length
    extra = data[position : position + extra_length]
    position += extra_length + comment_length
    if magic != b"PK\x01\x02" or position > len(data):
        raise MalformedError("has a damaged archive directory")
    name = _name(raw)
    if flags & _ENCRYPTED:
        raise MalformedError(f"has the encrypted entry {name!r}", "decrypt it first")
    size, packed, offset = _wide(extra, size, packed, fields[16], name)
    if method == 0 and packed != size:
        raise MalformedError(f"has the entry {name!r} of {packed} bytes that claims {size}")
    begin = _data_begin(file, offset, raw, (flags, method))
    if begin + packed > directory_begin:
        raise MalformedError(f"has the entry {name!r} of {packed} bytes where fewer are left")
    return name, Record(begin, packed, crc, method != 0), position


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError(f"has an entry named {raw[:80]!r}, which is not UTF-8") from None
    parts = name.split("/")
    if ".." in parts or name.startswith("/") or "\\" in name or "\0" in name or ":" in parts[0]:
        raise MalformedError(f"has the entry {name[:80]!r}, whose name leaves the archive")
    return name


def _wide(extra: bytes, size: int, packed: int, offset: int, name: str) -> tuple[int, int, int]:
    """The values that stand in the zip64 field because 32 bits do not hold them."""
    values = [size, packed, offset]
    if _FULL32 not in values:
        return size, packed, offset
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind != 1:
            continue
        for index, value in enumerate(values):
            if value == _FULL32 and len(field) >= 8:
                values[index], field = int.from_bytes(field[:8], "little"), field[8:]
        return values[0], values[1], values[2]
    raise MalformedError(f"has the entry {name!r} without its size")


def _data_begin(file: BinaryIO, offset: int, raw_name: bytes, kind: tuple[int, int]) -> int:
    fields = _read(file, offset, _LOCAL)
    name_length, extra_length = fields[9:]
    if fields[0] != MAGIC or fields[2:4] != kind or file.read(name_length) != raw_name:
        raise MalformedError(f"has the entry {raw_name[:80]!r} whose two descriptions differ")
    return offset + _LOCAL.size + name_length + extra_length


def _check_disjoint(records: dict[str, Record]) -> None:
    position = 0
    for name, record in sorted(records.items(), key=lambda item: item[1].begin):
        if record.begin < position:
            raise MalformedError(f"has the entry {name!r} that overlaps another")
        position = record.begin + record.size


def archive(records: Iterable[tuple[str, memoryview | bytes]]) -> Iterator[memoryview | bytes]:
    """The bytes of an archive, piece by piece; the inverse of `read_directory`."""
    central, position, count = bytearray(), 0, 0
    for name, data in records:
        raw, crc, size = name.encode(), zlib.crc32(data), len(data)
        wide = struct.pack("<2H2Q", 1, 16, size, size) if size >= _WIDE_FROM else b""
        begin = position + _LOCAL.size + len(raw) + len(wide) + 4
        extra = wide + struct.pack("<2H", _PADDING_ID, -begin % _ALIGNMENT)
        extra += bytes(-begin % _ALIGNMENT)
        shown = _narrow(size)
        common = (45 if wide else 20, _UTF8, 0, 0, 0x21, crc, shown, shown, len(raw))
        yield _LOCAL.pack(MAGIC, *common, len(extra)) + raw + extra
        yield data
        central += _central_record(raw, common, size, position)
        position = begin + (-begin % _ALIGNMENT) + size
        count += 1
    yield bytes(central)
    yield _end(position, len(central), count)


def _central_record(raw: bytes, common: tuple[int, ...], size: int, offset: int) -> bytes:
    wide = [value for value in (size, size, offset) if value >= _WIDE_FROM]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    fields = (b"PK\x01\x02", 45, *common, len(extra), 0, 0, 0, 0, _narrow(offset))
    return _CENTRAL.pack(*fields) + raw + extra


def _end(begin: int, length: int, count: int) -> bytes:
    end = b""
    if begin >= _WIDE_FROM or count >= _MANY_FROM:
        end = _END64.pack(b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, begin)
        end += _LOCATOR64.pack(b"PK\x06\x07", 0, begin + length, 1)
    shown = count if count < _MANY_FROM else _FULL16
    return end + _END.pack(b"PK\x05\x06", 0, 0, shown, shown, length, _narrow(begin), 0)


def _narrow(value: int) -> int:
    return value if value < _WIDE_FROM else _FULL32
