"""Videos, frame by frame: read, and written beside."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from segtasks.predictors.inputs import PredictionError

#: Endings of files that are taken for videos.
ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
#: Ending of a file that is written -> its codec, of those that every build of OpenCV has.
_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
_USUAL_RATE = 25.0

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """A video that can be read.

    Attributes:
        path: its file.
        size: (height, width) in pixels.
        rate: frames per second.
        frames: how many the file says it has; None where it does not.
        has_rate: whether the rate is the file's; if not, the usual 25 stand in.
    """

    path: Path
    size: tuple[int, int]
    rate: float
    frames: int | None
    has_rate: bool

    def read(self) -> Iterator[Frame]:
        """The frames in order, (H, W, 3) uint8 BGR."""
        capture = cv2.VideoCapture(str(self.path))
        try:
            while True:
                whole, frame = capture.read()
                if not whole or frame is None:
                    return
                yield np.asarray(frame, np.uint8)
        finally:
            capture.release()


def open_video(path: Path) -> Video:
    """Look at a video and its first frame.

    Raises:
        PredictionError: it is missing, or no frame of it can be read.
    """
    if not path.is_file():
        raise PredictionError(f"video {path} does not exist; check the path")
    capture = cv2.VideoCapture(str(path))
    try:
        whole, frame = capture.read() if capture.isOpened() else (False, None)
        if not whole or frame is None:
            raise PredictionError(
                f"video {path} cannot be read ({path.stat().st_size} bytes); play it to see whether"
                " it is whole, or turn it into an .mp4"
            )
        rate, frames = (
            float(capture.get(key)) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
        )
    finally:
        capture.release()
    has_rate = math.isfinite(rate) and rate > 0
    count = int(frames) if math.isfinite(frames) and frames > 0 else None
    size = (int(frame.shape[0]), int(frame.shape[1]))
    return Video(path, size, rate if has_rate else _USUAL_RATE, count, has_rate)


def written_name(path: Path) -> str:
    """The name of the file that is written for a video: an .avi for an .avi, else an .mp4."""
    return f"{path.stem}{'.avi' if path.suffix.lower() == '.avi' else '.mp4'}"


class VideoFile:
    """A video being written; see `write_video`."""

    def __init__(self, writer: cv2.VideoWriter) -> None:
        self._writer = writer

    def add(self, picture: Frame) -> None:
        """Append an RGB picture of the video's size."""
        self._writer.write(np.ascontiguousarray(picture[..., ::-1]))


@contextmanager
def write_video(path: Path, size: tuple[int, int], rate: float) -> Iterator[VideoFile]:
    """Write a video under another name and give it its own when it is whole.

    Args:
        path: an .mp4 or .avi.
        size: (height, width) in pixels.
        rate: frames per second.

    Raises:
        PredictionError: OpenCV cannot write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # OpenCV chooses the container by the ending.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    codec = cv2.VideoWriter_fourcc(*_CODECS[path.suffix])  # type: ignore[attr-defined]
    writer = cv2.VideoWriter(str(temporary), codec, rate, (size[1], size[0]))
    try:
        if not writer.isOpened():
            raise PredictionError(
                f"{path}: OpenCV cannot write a video of {size[0]}x{size[1]} pixels with"
                f" {_CODECS[path.suffix]}; predict the frames as images instead"
            )
        yield VideoFile(writer)
        writer.release()
        temporary.replace(path)
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)
