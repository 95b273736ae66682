"""The files that a prediction writes: planned and checked first, never replaced by surprise."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jtlightning import runtime
from jtlightning.checkpoint.atomic import atomic_file
from jtlightning.cli.interrupt import leave_at_ctrl_c
from segtasks.predictors.inputs import PredictionError
from segtasks.visualize import save_picture

SUMMARY = "predictions.json"
_SHOWN = 3


class Files:
    """`DIR/<kind>/<name>.png` for each image, and `DIR/predictions.json`.

    Args:
        folder: DIR.
        kinds: folders in it.
        names: of the images; a name may contain further folders.

    Raises:
        PredictionError: Two images have one name.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], names: Sequence[str]) -> None:
        doubled = [name for name, count in Counter(names).items() if count > 1]
        if doubled:
            raise PredictionError(f"several images are named {doubled[0]!r}; rename one")
        self.folder, self.kinds, self.names = folder, kinds, names

    def path(self, kind: str, index: int) -> Path:
        """Where a picture goes."""
        return self.folder / kind / f"{self.names[index]}.png"

    def check(self, *, overwrite: bool, others: Sequence[Path] = ()) -> None:
        """Refuse what would fail later, or replace files.

        Args:
            overwrite: Files may be replaced.
            others: Further files that will be written.

        Raises:
            PredictionError: A file is there already, or the folder cannot be written.
        """
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise PredictionError(f"--out {self.folder}: {place} is a file; name another folder")
        if not os.access(place, os.W_OK):
            raise PredictionError(f"--out {self.folder}: {place} cannot be written")
        if overwrite:
            return
        planned = [self.path(kind, i) for kind in self.kinds for i in range(len(self.names))]
        there = [str(path) for path in (self.folder / SUMMARY, *others, *planned) if path.exists()]
        if there:
            more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
            raise PredictionError(
                f"{', '.join(there[:_SHOWN])}{more} would be replaced; name another folder by"
                " --out, or give --overwrite"
            )

    def write(self, index: int, pictures: Mapping[str, npt.NDArray[np.uint8]]) -> dict[str, str]:
        """Write the pictures of an image by kind; returns their paths in the folder."""
        written = {}
        for kind, picture in pictures.items():
            path = self.path(kind, index)
            save_picture(path, picture)
            written[kind] = path.relative_to(self.folder).as_posix()
        return written

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write predictions.json, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / SUMMARY) as write:
            write((json.dumps(summary, indent=2) + "\n").encode())


def import_jittor(folder: Path) -> None:
    """Import Jittor, all else having been checked; what it prints goes to jittor.log in `folder`.

    Raises:
        PredictionError: The folder cannot be written.
    """
    if "jittor" in sys.modules:
        return
    try:
        runtime.capture_chatter(folder / "jittor.log")
    except OSError as error:
        raise PredictionError(f"--out {folder}: cannot be written ({error.strerror})") from error
    with leave_at_ctrl_c():
        import_module("jittor")
        # Jittor would quit at Ctrl-C, with whatever file is being written.
        import_module("jtlightning.signals").reclaim()


@contextmanager
def progress(console: Console, text: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A bar that is gone at the end; yields what moves it on by one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
