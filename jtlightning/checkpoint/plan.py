"""What would become of weights in a model, found out before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LoadPlan:
    """What becomes of each tensor of a file and of a model; names in the order of the file.

    Strict loading needs `rename` alone, and `load_weights` refuses what does not fit. Otherwise
    hand it `rename=plan.rename, skip=plan.skip`: then what fits is loaded and the rest keeps the
    model's own values.

    Attributes:
        loaded: Names in the model that get the file's values.
        renamed: Name in the file -> name in the model, where they differ.
        skipped: Names in the file that nothing reads, by the table of renames.
        unknown: Names in the file, other than those, that the model does not have.
        missing: Names in the model that the file does not have.
        misshaped: Name in the model -> shape in the file and in the model.
    """

    loaded: tuple[str, ...]
    renamed: Mapping[str, str]
    skipped: tuple[str, ...]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]
    misshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def rename(self, name: str) -> str | None:
        """The model's name of a tensor of the file; None for one that has no place in it."""
        return None if name in {*self.skipped, *self.unknown} else self.renamed.get(name, name)

    @property
    def skip(self) -> tuple[str, ...]:
        """Names in the model that keep their own values."""
        return (*self.missing, *self.misshaped)

    @property
    def exact(self) -> bool:
        """Whether strict loading would succeed."""
        return not (self.unknown or self.missing or self.misshaped)

    def describe(self) -> str:
        """A line per kind: how many, and their names."""
        lines = {
            "loaded": [f"{len(self.loaded)} tensors"],
            "renamed": [f"{old} -> {new}" for old, new in self.renamed.items()],
            "skipped": self.skipped,
            "unknown to the model": self.unknown,
            "missing in the file": self.missing,
            "different shape": [
                f"{name} (file {found}, model {wanted})"
                for name, (found, wanted) in self.misshaped.items()
            ],
        }
        return "\n".join(f"{title}: {_enumerate(names)}" for title, names in lines.items() if names)


def plan_loading(
    targets: Mapping[str, Sequence[int]],
    weights: Mapping[str, np.ndarray],
    rename: Callable[[str], str | None],
) -> LoadPlan:
    """Compare a model with weights, without changing anything.

    Args:
        targets: Shape of each of the model's tensors by name.
        weights: Arrays by name.
        rename: From a name in `weights` to the model's; None for one that nothing reads.

    Raises:
        ValueError: Two tensors get one name.
    """
    renamed: dict[str, str] = {}
    skipped: list[str] = []
    unknown: list[str] = []
    places: dict[str, str] = {}
    for name in weights:
        new = rename(name)
        if new is None:
            skipped.append(name)
        elif new in places:
            raise ValueError(f"{places[new]!r} and {name!r} are both named {new!r} officially")
        else:
            places[new] = name
            if new != name:
                renamed[name] = new
    for new in [new for new in places if new not in targets]:
        # PyTorch counts batches in its batch norms; nothing reads the number.
        counter = new.endswith("num_batches_tracked")
        (skipped if counter else unknown).append(places.pop(new))
    shapes = {new: tuple(weights[old].shape) for new, old in places.items()}
    misshaped = {
        new: (shape, tuple(targets[new]))
        for new, shape in shapes.items()
        if shape != tuple(targets[new])
    }
    return LoadPlan(
        loaded=tuple(new for new in places if new not in misshaped),
        renamed={old: new for old, new in renamed.items() if new in places},
        skipped=tuple(skipped),
        unknown=tuple(unknown),
        missing=tuple(name for name in targets if name not in places),
        misshaped=misshaped,
    )


def _enumerate(items: Sequence[str]) -> str:
    shown = ", ".join(items[:4])
    return f"{shown} and {len(items) - 4} more" if len(items) > 4 else shown
