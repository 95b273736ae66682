"""Where batches come from, and how many of them a stage takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class BatchSource(Protocol):
    """What the trainer needs of a loader; `jtlightning.data.Loader` is one."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def batches(self, epoch: int, start: int = 0, *, seed: int = 0) -> Iterator[Any]:
        """The batches of one epoch from number `start` on."""

    def close(self) -> None:
        """End worker processes."""


class IterableSource:
    """A plain iterable of batches as a `BatchSource`: same batches, in its own order."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterable = iterable

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]

    def batches(self, epoch: int, start: int = 0, *, seed: int = 0) -> Iterator[Any]:
        """The iterable from its batch `start` on; the skipped ones are produced and dropped."""
        return itertools.islice(iter(self._iterable), start, None)

    def close(self) -> None:
        """Nothing to end."""


def as_source(loader: Any, name: str) -> BatchSource:
    """`loader` as a `BatchSource`.

    Raises:
        ValueError: It is neither a loader nor an iterable with a length.
    """
    if isinstance(loader, BatchSource):
        return loader
    if not hasattr(loader, "__iter__") or not hasattr(loader, "__len__"):
        raise ValueError(
            f"{name} is a {type(loader).__name__}; pass a jtlightning.data.Loader or an iterable "
            "of batches that has a length"
        )
    return IterableSource(loader)


def count_batches(limit: float | int, available: int, name: str) -> int:
    """Batches that a stage takes of `available`: an int counts them, a float is a fraction.

    Raises:
        ValueError: The limit is negative, or a fraction above 1.
    """
    if isinstance(limit, bool) or limit < 0 or (isinstance(limit, float) and limit > 1):
        raise ValueError(
            f"{name} is {limit!r}; give a number of batches (int >= 0) or a fraction (0.0 to 1.0)"
        )
    if isinstance(limit, int):
        return min(limit, available)
    return max(int(available * limit), 1) if limit and available else 0
