"""Walking through a batch: dataclasses, dicts, lists and tuples of arrays."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def map_arrays(fn: Callable[[np.ndarray], Any], batch: T) -> T:
    """Replace every NumPy array in a batch by `fn(array)`; everything else stays as it is.

    Dataclasses, mappings, lists, tuples and named tuples are rebuilt, not changed; a dataclass is
    copied without running its `__post_init__`, which may insist on arrays.
    """
    return _map(fn, batch)


def batch_size_of(batch: Any) -> int:
    """Length of the first axis of the first array (or `jt.Var`) in a batch.

    Raises:
        ValueError: There is no array with an axis in it.
    """
    for _, leaf in leaves(batch):
        shape = getattr(leaf, "shape", None)
        if shape:
            return int(shape[0])
    raise ValueError(
        f"a batch of type {type(batch).__name__} holds no array, so its size is unknown: "
        "pass batch_size to log()"
    )


def _map(fn: Callable[[np.ndarray], Any], value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return fn(value)
    if _is_dataclass(value):
        clone = copy.copy(value)
        for field in dataclasses.fields(value):
            # object's: the dataclass may be frozen
            object.__setattr__(clone, field.name, _map(fn, getattr(value, field.name)))
        return clone
    if isinstance(value, dict):
        clone = copy.copy(value)
        clone.update({key: _map(fn, item) for key, item in value.items()})
        return clone
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(fn, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_map(fn, item) for item in value)
    return value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a batch or sample that is no container, with its path, e.g. `boxes[0]`."""
    if _is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from leaves(item, f"{path}[{position}]")
    else:
        yield path, value


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
