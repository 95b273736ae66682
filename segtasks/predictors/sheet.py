"""Pictures of one image beside each other, with captions and a legend of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

#: Narrower pictures are enlarged, so that captions fit, and wider ones reduced.
_WIDTHS = (256, 640)
_GAP = 8
_LINE = 26
_SWATCH = 14
_PAPER, _INK = 255, (40, 40, 46)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5


def sheet(
    pictures: Mapping[str, Picture], legend: Sequence[tuple[str, Sequence[int]]] = ()
) -> Picture:
    """Put pictures in a row.

    Args:
        pictures: caption -> (H, W, 3) uint8 RGB; all of one size.
        legend: names with their colours, (3,) each, below the pictures.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    tiles = [_tile(picture) for picture in pictures.values()]
    height, width = tiles[0].shape[:2]
    canvas = _paper(height + _LINE, _GAP + len(tiles) * (width + _GAP))
    for column, (caption, tile) in enumerate(zip(pictures, tiles, strict=True)):
        left = _GAP + column * (width + _GAP)
        canvas[_LINE:, left : left + width] = tile
        _write(canvas, caption, left + (width - _text_width(caption)) // 2, _LINE - 8)
    return np.vstack([canvas, *_legend(legend, canvas.shape[1]), _paper(_GAP, canvas.shape[1])])


def _legend(entries: Sequence[tuple[str, Sequence[int]]], width: int) -> list[Picture]:
    """Lines of swatches with names, as many as fit beside each other."""
    lines: list[Picture] = []
    left = width
    for name, colour in entries:
        needed = _SWATCH + _GAP + _text_width(name) + 2 * _GAP
        if left + needed > width:
            lines.append(_paper(_LINE, width))
            left = _GAP
        top = (_LINE - _SWATCH) // 2
        lines[-1][top : top + _SWATCH, left : left + _SWATCH] = colour
        _write(lines[-1], name, left + _SWATCH + _GAP, top + _SWATCH - 2)
        left += needed
    return lines


def _tile(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    wanted = min(max(width, _WIDTHS[0]), _WIDTHS[1])
    if wanted == width:
        return picture
    method = cv2.INTER_AREA if wanted < width else cv2.INTER_NEAREST
    size = (wanted, max(1, round(height * wanted / width)))
    resized = cv2.resize(np.ascontiguousarray(picture), size, interpolation=method)
    return resized.astype(np.uint8, copy=False)


def _paper(height: int, width: int) -> Picture:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _write(canvas: Picture, text: str, left: int, baseline: int) -> None:
    cv2.putText(canvas, text, (left, baseline), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0])
