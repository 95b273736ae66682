"""Metadata values as JSON text and back, without loss and without surprises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# JSON has no NaN and no infinity: they travel as {"__float__": "nan"}.
_FLOAT = "__float__"
_MAX_DEPTH = 64


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_json(value: Any, where: str) -> str:
    """Turn a metadata value into canonical JSON.

    Args:
        value: None, bool, int, float (NaN and infinities too), str, NumPy scalars, and lists,
            tuples (which come back as lists) and dicts with string keys of them.
        where: Names the value in errors, e.g. `metadata["callbacks"]`.

    Raises:
        ValueError: Anything else is in there; names the place.
    """
    return canonical_json(_plain(value, where, 0))


def from_json(text: str) -> Any:
    """The inverse of `to_json`.

    Raises:
        ValueError: Not strict JSON.
        RecursionError: Nested too deeply.
    """
    return json.loads(text, object_hook=_restore_float, parse_constant=_refuse_constant)


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: str(float(value))}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {
            _key(key, where): _plain(item, f"{where}[{key!r}]", depth + 1)
            for key, item in value.items()
        }
    raise ValueError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: "
        "convert it to numbers, strings, lists or dicts, and put arrays into the tensors"
    )


def _key(key: object, where: str) -> str:
    if not isinstance(key, str) or key == _FLOAT:
        raise ValueError(f"{where} has the key {key!r}: keys are strings other than {_FLOAT!r}")
    return str(key)


def _restore_float(value: dict[str, Any]) -> Any:
    return float(value[_FLOAT]) if value.keys() == {_FLOAT} else value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
