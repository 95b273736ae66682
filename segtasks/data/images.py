"""Read the pictures of a data set; a file that is missing, cut short or damaged is an error.

OpenCV's readers return a partly grey picture for a truncated file and only print a warning, so
files are checked to be whole before they are decoded.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
import numpy.typing as npt

from segtasks.data.samples import DataError

ChannelOrder = Literal["bgr", "rgb"]
"""Order of the colour channels of an image in memory."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def read_colour(path: Path, channel_order: ChannelOrder = "bgr") -> npt.NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8; an EXIF orientation is ignored."""
    image = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return image if channel_order == "bgr" else np.ascontiguousarray(image[..., ::-1])


def read_grey(path: Path) -> npt.NDArray[Any]:
    """Read a one-channel picture as (H, W), uint8 or uint16 as stored; colours become grey."""
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def read_classes(path: Path) -> npt.NDArray[np.uint8]:
    """Read a label picture as (H, W) uint8.

    Raises:
        DataError: also for 16-bit and for coloured labels, whose values are no class indices.
    """
    label = _decode(path, cv2.IMREAD_UNCHANGED)
    if label.ndim == 3:
        if (label[..., :3] != label[..., :1]).any():
            raise DataError(
                f"{path}: the label is coloured; store class indices as an 8-bit grey PNG"
            )
        label = np.ascontiguousarray(label[..., 0])
    if label.dtype != np.uint8:
        raise DataError(
            f"{path}: the label has {label.dtype} values; store class indices as an 8-bit grey PNG"
        )
    return label


def read_png_size(path: Path) -> tuple[int, int]:
    """Height and width of a PNG file, from its first bytes."""
    with _opened(path) as stream:
        header = stream.read(24)
    if len(header) < 24 or not header.startswith(_PNG_SIGNATURE):
        raise DataError(f"{path}: the file is no PNG file; copy or create the file again")
    return int.from_bytes(header[20:24], "big"), int.from_bytes(header[16:20], "big")


@dataclass(frozen=True)
class PictureFormat:
    """What the header of a picture tells: (height, width) in pixels, and bits per channel."""

    size: tuple[int, int]
    bits: int


def verify_picture(path: Path) -> PictureFormat:
    """Check that a picture is whole, without decoding it.

    Raises:
        DataError: it is missing, cut short or damaged.
    """
    with _opened(path) as stream:
        data = stream.read()
    problem = _damage(data)
    if problem is None:
        header = _png_header(data) if data.startswith(_PNG_SIGNATURE) else _jpeg_header(data)
        if header is not None:
            return header
        problem = "the picture has no size"
    raise _damaged(path, problem, data)


def _png_header(data: bytes) -> PictureFormat | None:
    height, width = (int.from_bytes(data[i : i + 4], "big") for i in (20, 16))
    return PictureFormat((height, width), data[24])


def _jpeg_header(data: bytes) -> PictureFormat | None:
    """From the first frame; its marker is one of C0 to CF except three."""
    position = len(_JPEG_START)
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (
                int.from_bytes(data[position + i : position + i + 2], "big") for i in (5, 7)
            )
            return PictureFormat((height, width), data[position + 4])
        fill = marker == 0xFF  # any number of these may come before a marker
        position += 1 if fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _decode(path: Path, flags: int) -> npt.NDArray[Any]:
    with _opened(path) as stream:
        data = stream.read()
    problem = _damage(data)
    if problem is None:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise DataError(f"{path}: cannot be decoded ({error}); replace the file") from error
        if image is not None:
            return image
        problem = "the picture cannot be decoded"
    raise _damaged(path, problem, data)


def _damaged(path: Path, problem: str, data: bytes) -> DataError:
    return DataError(f"{path}: {problem} ({len(data)} bytes); copy or create the file again")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing; restore it or check the split") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error


def _damage(data: bytes) -> str | None:
    """Say what is wrong with the bytes of a picture, or None if they are whole."""
    if data.startswith(_PNG_SIGNATURE):
        return _png_damage(data)
    if data.startswith(_JPEG_START):
        # 0xFF inside a scan is always followed by 0, so an end mark behind the last scan's start
        # is the real one and not that of an embedded preview.
        whole = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN) > 0
        return None if whole else "the JPEG file is cut short"
    return "the file is empty" if not data else "the file is neither PNG nor JPEG"


def _png_damage(data: bytes) -> str | None:
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"the PNG file is damaged at byte {position}"
        if kind == b"IEND":
            return None
        position = end + 4
    return "the PNG file is cut short"
