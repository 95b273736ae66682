"""Class names of the public RGB-D and RGB-thermal data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from segtasks.data.samples import DataError

ClassNames = Literal["nyu40", "nyu13", "sun37", "mfnet9"]
"""Data sets whose class names are known here."""

NYU40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip

NYU13 = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa",
    "table", "tv", "wall", "window",
)  # fmt: skip

_SUN_SPELLING = {
    "floor mat": "floor_mat",
    "refridgerator": "fridge",
    "television": "tv",
    "shower curtain": "shower_curtain",
    "night stand": "night_stand",
}
SUN37 = tuple(_SUN_SPELLING.get(name, name) for name in NYU40[:37])

MFNET9 = (
    "unlabelled", "car", "person", "bike", "curve", "car stop", "guardrail", "color cone", "bump",
)  # fmt: skip


def resolve_class_names(
    names: ClassNames | Sequence[str] | None, num_classes: int
) -> tuple[str, ...]:
    """Turn the name of a data set, a list of names or None ("class 0", ...) into the names.

    Raises:
        DataError: there are not `num_classes` names, or the data set is unknown.
    """
    if names is None:
        return tuple(f"class {index}" for index in range(num_classes))
    known = {"nyu40": NYU40, "nyu13": NYU13, "sun37": SUN37, "mfnet9": MFNET9}
    if isinstance(names, str) and names not in known:
        raise DataError(
            f"class_names must be a list or one of {', '.join(get_args(ClassNames))}, got {names!r}"
        )
    resolved = tuple(known[names] if isinstance(names, str) else names)
    if len(resolved) != num_classes:
        source = f" ({names})" if isinstance(names, str) else ""
        raise DataError(
            f"class_names{source} has {len(resolved)} names but num_classes is {num_classes}; "
            "make them agree"
        )
    return resolved
