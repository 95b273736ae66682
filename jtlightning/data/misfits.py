"""Which samples of a batch do not collate with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jtlightning.data.batch import leaves

_SHOWN = 4  # differing arrays in a message


@dataclass(frozen=True)
class Groups:
    """Samples that collate with each other, by position; the largest group first.

    Positions from `count` on are not of the batch. A sample that does not even collate by itself
    is in no group.
    """

    samples: list[Any]
    count: int
    groups: list[list[int]]

    @property
    def has_majority(self) -> bool:
        """Whether one group is larger than every other."""
        sizes = [len(group) for group in self.groups]
        return bool(sizes) and (len(sizes) == 1 or sizes[0] > sizes[1])

    def outside_majority(self) -> list[int]:
        """Positions of the batch's samples that most others do not fit; none where it is a tie."""
        if not self.has_majority:
            return []
        return [i for i in range(self.count) if i not in self.groups[0]]

    def difference(self, position: int, numbers: Sequence[int]) -> str:
        """What sets a sample's arrays apart from those of the majority, for a message."""
        return self._difference(position, self.groups[0][0], numbers)

    def differences(self, numbers: Sequence[int]) -> str:
        """What sets two groups apart where none has the majority, for a message."""
        first = [group[0] for group in self.groups if group[0] < self.count]
        return self._difference(first[0], first[1], numbers) if len(first) > 1 else ""

    def _difference(self, one: int, two: int, numbers: Sequence[int]) -> str:
        here, there = _arrays(self.samples[one]), _arrays(self.samples[two])
        other = f"sample {numbers[two]}" if two < self.count else "another sample"
        told = [
            f"{path} is {here.get(path, 'missing')} in sample {numbers[one]}, "
            f"{there.get(path, 'missing')} in {other}"
            for path in dict.fromkeys([*here, *there])
            if here.get(path) != there.get(path)
        ]
        return f": {'; '.join(told[:_SHOWN])}" if told else ""


def group_by_fit(
    samples: list[Any], jury: Iterable[Any], collate: Callable[[list[Any]], Any]
) -> Groups:
    """Find out by collating pairs: what fits is for `collate` to say, not for the shapes.

    Args:
        samples: Of the batch that does not collate.
        jury: Further samples, drawn one by one until one group is larger than the others.
        collate: That of the loader.
    """
    result = Groups(list(samples), len(samples), [])
    for position in range(len(samples)):
        _place(position, result, collate)
    for further in jury:
        if result.has_majority:
            break
        result.samples.append(further)
        _place(len(result.samples) - 1, result, collate)
    return result


def _place(position: int, result: Groups, collate: Callable[[list[Any]], Any]) -> None:
    sample = result.samples[position]
    fitting = (g for g in result.groups if _collates([result.samples[g[0]], sample], collate))
    if (home := next(fitting, None)) is not None:
        home.append(position)
    elif _collates([sample], collate):
        result.groups.append([position])
    result.groups.sort(key=len, reverse=True)


def _collates(samples: list[Any], collate: Callable[[list[Any]], Any]) -> bool:
    try:
        collate(samples)
    except Exception:  # noqa: BLE001 - whatever it is, they do not collate
        return False
    return True


def _arrays(sample: Any) -> dict[str, str]:
    return {path or "it": _kind(value) for path, value in leaves(sample)}


def _kind(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return type(value).__name__ if shape is None else f"{tuple(shape)} {dtype}"
