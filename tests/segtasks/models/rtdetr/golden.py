"""Reading recorded runs of the official RT-DETR code, for the tests of all its parts.

Weights are not stored: `load_golden_weights` makes them from the official names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np

from segtasks.golden import golden_tensor, summary

REFERENCE = Path(__file__).parents[3] / "reference" / "rtdetr"
COUNTER = "num_batches_tracked"


def read_golden(path: Path | str) -> dict[str, Any]:
    """All entries of a recording; text is decoded, where it is JSON, arrays stay arrays."""
    with np.load(path, allow_pickle=False) as file:
        return {name: _decoded(file[name]) for name in file.files}


def golden_manifest(golden: dict[str, Any], key: str = "") -> dict[str, tuple[int, ...]]:
    """Official names and shapes of the case `key` ("" for a whole model), counters left out."""
    prefix = f"{key}." if key else ""
    names, shapes = golden[f"{prefix}sd_keys"], golden[f"{prefix}sd_shapes"]
    pairs = zip(names, shapes, strict=True)
    return {name: tuple(shape) for name, shape in pairs if not name.endswith(COUNTER)}


def load_golden_weights(module: jt.nn.Module, prefix: str = "") -> None:
    """Set every parameter and buffer of `module` to the golden tensor of `prefix` + its name."""
    for name, tensor in module.named_parameters():
        value = golden_tensor(prefix + name, tensor.shape)
        assert value is not None, name
        trained = not tensor.is_stop_grad()
        tensor.update(jt.array(value))
        assert trained != tensor.is_stop_grad(), name


def assert_names_and_shapes(module: jt.nn.Module, manifest: dict[str, tuple[int, ...]]) -> None:
    """All tensors of `module` have the official names and shapes, and none is missing."""
    assert {name: tuple(t.shape) for name, t in module.named_parameters()} == manifest


def check_sample(
    array: jt.Var | np.ndarray, golden: dict[str, Any], name: str, limit: float
) -> None:
    """Compare with `<name>.sample` and its companions, or with `<name>` stored in full.

    Args:
        array: what was computed.
        golden: the recording.
        name: of the array in it.
        limit: largest difference, relative to the recording's largest absolute value.
    """
    ours = array.numpy() if isinstance(array, jt.Var) else array
    if name in golden:
        recorded = golden[name]
        assert ours.shape == recorded.shape, name
        largest = float(np.abs(recorded).max())
    else:
        assert list(ours.shape) == list(golden[f"{name}.shape"]), name
        recorded = golden[f"{name}.sample"]
        mean, std, largest = golden[f"{name}.mean_std_absmax"]
        our_mean, our_std, ours = summary(ours, len(recorded))
        assert abs(our_mean - mean) <= limit * largest, name
        assert abs(our_std - std) <= limit * largest, name
    error = float(np.abs(ours.astype(np.float64) - recorded).max()) / max(largest, 1e-12)
    assert error <= limit, f"{name}: differs by {error:.2e} of the largest value, limit {limit:.0e}"


def count_learnable(module: jt.nn.Module) -> int:
    """Elements of all parameters, frozen ones included, buffers and statistics not."""
    return sum(
        tensor.numel()
        for name, tensor in module.named_parameters()
        if not name.endswith(("running_mean", "running_var"))
        and getattr(tensor, "persistent", None) is None  # what registered buffers have
    )


def count_trained(module: jt.nn.Module) -> int:
    """Elements of all tensors that take gradients."""
    return sum(tensor.numel() for tensor in module.parameters() if not tensor.is_stop_grad())


def _decoded(entry: np.ndarray) -> Any:
    if entry.dtype.kind != "U":
        return entry
    texts = [json.loads(text) if text[:1] in ("[", "{") else text for text in entry.flat]
    return texts if entry.ndim else texts[0]
