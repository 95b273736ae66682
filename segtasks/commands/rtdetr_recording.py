"""Reading and comparing recorded runs of the official RT-DETR code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.commands.checks import Check, exact
from segtasks.commands.golden_file import GoldenFileError, read_arrays
from segtasks.golden import golden_tensor, summary

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Recording:
    """A recorded run, or the part of it under a prefix.

    Attributes:
        path: where it was read from, for messages.
        arrays: everything in it, under its full name.
        prefix: of the part, such as "a."; empty for all.
    """

    path: Path
    arrays: dict[str, np.ndarray] = field(repr=False)
    prefix: str = ""

    def part(self, name: str) -> Recording:
        """The entries under `name`."""
        return Recording(self.path, self.arrays, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        """Whether there is an entry, in full or as a sample."""
        return any(f"{self.prefix}{name}{end}" in self.arrays for end in ("", ".sample"))

    def array(self, name: str) -> np.ndarray:
        """An entry; GoldenFileError if it is missing."""
        name = self.prefix + name
        if name not in self.arrays:
            raise GoldenFileError(
                f"{self.path}: the array {name!r} is missing; copy the file again"
            )
        return self.arrays[name]

    def text(self, name: str) -> str:
        """An entry that is text."""
        array = self.array(name)
        if array.dtype.kind != "U" or array.size != 1:
            raise GoldenFileError(f"{self.path}: {self.prefix}{name} is no text")
        return str(array.reshape(()))

    def names(self, name: str) -> list[str]:
        """An entry that lists names."""
        array = self.array(name)
        if array.dtype.kind != "U" or array.ndim != 1:
            raise GoldenFileError(f"{self.path}: {self.prefix}{name} is no list of names")
        return array.tolist()

    def json(self, name: str) -> Any:
        """An entry that is text in JSON."""
        try:
            return json.loads(self.text(name))
        except ValueError as error:
            raise GoldenFileError(f"{self.path}: {name} is not JSON ({error})") from error

    def manifest(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state dict, counters left out."""
        try:
            shapes = [tuple(json.loads(text)) for text in self.names("sd_shapes")]
            pairs = list(zip(self.names("sd_keys"), shapes, strict=True))
        except (ValueError, TypeError) as error:
            if isinstance(error, GoldenFileError):
                raise
            raise GoldenFileError(f"{self.path}: {self.prefix}sd_shapes: {error}") from error
        return {name: shape for name, shape in pairs if not name.endswith(COUNTER)}


def read_recording(path: Path) -> Recording:
    """Read a file.

    Raises:
        GoldenFileError: it cannot be read, is damaged or no archive.
    """
    return Recording(path, read_arrays(path))


def fill_golden(module: nn.Module, prefix: str = "") -> None:
    """Give every tensor of `module` the golden value of `prefix` and its name."""
    for name, tensor in module.named_parameters():
        value = golden_tensor(prefix + name, tensor.shape)
        if value is not None:
            tensor.update(jt.array(value))


def check_structure(module: nn.Module, recording: Recording, name: str = "") -> list[Check]:
    """Names and shapes, and which tensors are trained."""
    tensors = dict(module.named_parameters())
    recorded = recording.manifest()
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = len(set(recorded.items()) ^ set(ours.items()))
    checks = [exact(f"{name}names and shapes", differing, f"{len(recorded)} tensors")]
    if not recording.has("sd_requires_grad"):
        return checks
    flags = recording.array("sd_requires_grad")
    names = recording.names("sd_keys")
    if len(flags) != len(names):
        raise GoldenFileError(f"{recording.path}: sd_requires_grad and sd_keys differ in length")
    trained = {key for key, flag in zip(names, flags.tolist(), strict=True) if flag}
    own = {key for key, tensor in tensors.items() if not tensor.is_stop_grad()}
    elements = sum(tensors[key].numel() for key in own)
    checks.append(exact(f"{name}trained tensors", len(trained ^ own), f"{elements:,} numbers"))
    missing = abs(elements - int(recording.array("n_trainable")))
    return [*checks, exact(f"{name}trained parameters", missing, f"{elements:,}")]


def check_stage(
    name: str, array: jt.Var | np.ndarray, recording: Recording, limit: float, stage: str = ""
) -> Check:
    """Compare with what is recorded in full or as samples.

    Args:
        name: of the check.
        array: what was computed.
        recording: holds the stage.
        limit: largest error, relative to the recording's largest absolute value.
        stage: name in the recording, if it is not `name`.
    """
    ours = array.numpy() if isinstance(array, jt.Var) else array
    stage = stage or name
    full = f"{recording.prefix}{stage}.sample" not in recording.arrays
    recorded = recording.array(stage if full else f"{stage}.sample")
    shape = recorded.shape if full else tuple(recording.array(f"{stage}.shape").tolist())
    if ours.shape != shape:
        note = f"shape {list(ours.shape)}, recorded {list(shape)}"
        return Check(name, float("inf"), float("inf"), 0.0, note)
    if full:
        errors, largest = [distance(ours, recorded)], float(np.abs(recorded).max(initial=0))
    else:
        mean, std, largest = recording.array(f"{stage}.mean_std_absmax").tolist()
        our_mean, our_std, samples = summary(ours, recorded.size)
        errors = [abs(our_mean - mean), abs(our_std - std), distance(samples, recorded)]
    error = float(np.max(errors))
    note = " / ".join(f"{part:.1e}" for part in errors)
    return Check(name, error, error / max(largest, 1e-12), limit * max(largest, 1e-12), note)


def distance(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Largest absolute difference; NaN if there is one on either side, infinite shapes apart."""
    if ours.shape != recorded.shape:
        return float("inf")
    difference = np.abs(ours.astype(np.float64) - recorded)
    # Equal infinities, as of invalid anchors, do not differ.
    return float(np.where(ours == recorded, 0, difference).max(initial=0))


def place_of(ours: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Where each recorded token stands among ours, (B, Q) each.

    Queries are sorted by score, so rounding swaps near-ties. Tokens with invalid anchors are all
    alike: one that only the recording picked is compared with one that only we picked.
    """
    places = []
    for mine, theirs in zip(ours.tolist(), recorded.tolist(), strict=True):
        place = {token: i for i, token in enumerate(mine)}
        spare = [i for i, token in enumerate(mine) if token not in set(theirs)]
        places.append([place[t] if t in place else spare.pop() for t in theirs])
    return np.array(places)


def reorder(array: jt.Var | np.ndarray, place: np.ndarray) -> np.ndarray:
    """Rows (B, Q, ...) in the recording's order."""
    values = array.numpy() if isinstance(array, jt.Var) else array
    return np.stack([image[rows] for image, rows in zip(values, place, strict=True)])
