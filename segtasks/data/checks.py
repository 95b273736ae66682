"""Look at every file of a split before training depends on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from segtasks.data.samples import DataError

T = TypeVar("T")

_SHOWN = 5
_MOST_THREADS = 16


class Checkable(Protocol):
    """Samples that can be looked at one by one; `check` raises DataError for a wrong one."""

    def __len__(self) -> int: ...

    def check(self, index: int) -> None:
        """Find what is wrong with a sample."""


def check_samples(
    dataset: Checkable, split: str, progress: Callable[[int, int], None] | None = None
) -> None:
    """Check all samples of a data set.

    Files are read and verified; labels are decoded, images and depth are not.

    Args:
        dataset: The samples.
        split: What the message calls them.
        progress: Called with the number of samples checked, and of all.

    Raises:
        DataError: Tells the first few of what is wrong, and the number of samples concerned.
    """
    problems = []
    for done, problem in enumerate(find_faults(dataset), 1):
        if problem is not None:
            problems.append(problem)
        if progress is not None:
            progress(done, len(dataset))
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        shown = [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            shown.append(f"  and {len(problems) - _SHOWN} more")
        raise DataError(
            f"{split}: {len(problems)} of {len(dataset)} samples cannot be used\n"
            + "\n".join(shown)
        )


def find_faults(dataset: Checkable) -> Iterator[str | None]:
    """What is wrong with each sample; None for nothing."""

    def problem(index: int) -> str | None:
        try:
            dataset.check(index)
        except DataError as error:
            return str(error)
        return None

    yield from in_threads(problem, len(dataset))


def in_threads(function: Callable[[int], T], count: int) -> Iterator[T]:
    """`function` of 0 to `count - 1`, in order.

    Threads, as files may lie on a slow disk, and decoding leaves the interpreter free.
    """
    with ThreadPoolExecutor(min(2 * (os.cpu_count() or 1), _MOST_THREADS)) as pool:
        yield from pool.map(function, range(count))
