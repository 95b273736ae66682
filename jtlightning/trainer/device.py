"""Bring a batch to the device."""

from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np

from jtlightning.data.batch import map_arrays


def to_device(batch: Any) -> Any:
    """The batch with every NumPy array in it as a `jt.Var`; other values stay.

    Raises:
        ValueError: An integer array holds values that Jittor's 32-bit conversion would wrap.
    """
    return map_arrays(_to_var, batch)


def _to_var(array: np.ndarray) -> jt.Var:
    if array.dtype == np.int64 and array.size:
        limit = np.iinfo(np.int32)
        if array.min() < limit.min or array.max() > limit.max:
            raise ValueError(
                f"an int64 array of the batch holds {int(abs(array).max())}, which does not fit "
                "Jittor's int32; keep such values (image ids, say) as Python numbers or strings"
            )
    return jt.array(array)
