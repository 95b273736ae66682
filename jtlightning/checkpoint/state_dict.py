"""Where in a file a network's weights are, and what was done to their names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from jtlightning.checkpoint.foreign import EntryPath, ForeignFileError, join_path

Which: TypeAlias = Literal["raw", "ema", "auto"]

#: Data parallelism and tasks put these before every name.
PREFIXES = ("module.", "model.")
_RAW = ("model", "state_dict", "model_state_dict", "module", "network", "net", "weights", "params")
_EMA = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
_SHOWN = 4
_MAX_STRIPPED = 8


@dataclass(frozen=True, eq=False)
class Weights(Mapping[str, np.ndarray]):
    """A network's arrays by name, and how they were found.

    Arrays of foreign files may share memory, as the tensors in the file do: copy one before
    changing it.

    Args:
        arrays: By name.
        source: The file.
        kind: Of the file, in words.
        entry: Where they lie in it, joined by `/`; empty at its top.
        stripped: What was taken off the start of every name.
        skipped: Full names of foreign objects in the file by their place; nothing of them was
            imported or executed.
        others: Further places with tensors, which were left alone.
    """

    arrays: dict[str, np.ndarray]
    source: Path
    kind: str
    entry: str = ""
    stripped: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def describe(self) -> str:
        """All of that on one line."""
        parts = [f"{self.source} ({self.kind}): {len(self)} tensors"]
        if self.entry:
            parts[0] += f" of {self.entry!r}"
        if self.stripped:
            parts.append(f"without the leading {self.stripped!r}")
        if self.others:
            parts.append(f"left alone: {_shortened(self.others)}")
        if self.skipped:
            parts.append(f"skipped: {_places(self.skipped)}")
        return "; ".join(parts)


def find_entry(
    path: Path,
    tensors: Collection[EntryPath],
    which: Which,
    entry: str | None,
    skipped: Mapping[str, str] | None = None,
) -> EntryPath:
    """Where the state dict lies: the folder of its tensors; `skipped` is for the message.

    Raises:
        ForeignFileError: There is none, or the file does not tell which of several.
    """
    folders = list(dict.fromkeys(place[:-1] for place in tensors))
    if not folders:
        only = f", only {_places(skipped)}" if skipped else ""
        raise ForeignFileError(path, f"holds no tensors{only}", "save `model.state_dict()`")
    if entry is not None:
        for folder in folders:
            if join_path(folder) == entry:
                return folder
        raise ForeignFileError(path, f"has no tensors at {entry!r}", _choose(folders))
    averaged = [f for f in folders if is_wrapper(f) and any(part in _EMA for part in f)]
    if which == "ema" and not averaged:
        raise ForeignFileError(path, "has no averaged weights", "ask for the raw weights")
    plain = [f for f in folders if is_wrapper(f) and f not in averaged]
    found = averaged if which == "ema" or (which == "auto" and averaged) else plain
    if not found:
        # A wrapper of an unknown name is no question where it is the only one.
        found = [f for f in folders if not f] or folders
    if len(found) > 1:
        raise ForeignFileError(path, "holds several sets of tensors", _choose(found))
    return found[0]


def strip_prefixes(names: Collection[str], prefixes: Sequence[str]) -> str:
    """What to take off the start of all names: the `prefixes` that every one of them has."""
    stripped = ""
    for _ in range(_MAX_STRIPPED if names else 0):
        for prefix in prefixes:
            start = stripped + prefix
            if prefix and all(name.startswith(start) and name != start for name in names):
                stripped = start
                break
        else:
            break
    return stripped


def is_wrapper(folder: EntryPath) -> bool:
    """Whether a state dict usually lies there."""
    return bool(folder) and all(part in _RAW or part in _EMA for part in folder)


def _places(skipped: Mapping[str, str]) -> str:
    return _shortened(
        [f"{name} at {place!r}" if place else name for place, name in skipped.items()]
    )


def _choose(folders: Sequence[EntryPath]) -> str:
    names = [repr(join_path(folder)) for folder in folders]
    return f"choose one of them as `entry`: {_shortened(names)}"


def _shortened(items: Sequence[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
