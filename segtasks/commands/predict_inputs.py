"""Which images a prediction is for: a pair, folders, patterns, or a split of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segtasks.data.images import verify_picture
from segtasks.data.modules import RGBDDataModule
from segtasks.data.rgbd import RGBDDataset
from segtasks.data.splits import NamePattern
from segtasks.predictors.configuration import Recipe
from segtasks.predictors.inputs import PredictionError, RGBDInput, check_inputs

_ENDINGS = (".png", ".jpg", ".jpeg")
_SHOWN = 5


@dataclass(frozen=True)
class Images:
    """Checked images with their depth.

    Attributes:
        inputs: one per image; its name names the files that are written.
        truth: reads the labelled classes of an image by its index; None where there are none.
        notes: what people may want to know.
    """

    inputs: list[RGBDInput]
    truth: Callable[[int], npt.NDArray[np.uint8]] | None = None
    notes: tuple[str, ...] = ()


def find_pairs(rgb: str, depth: str | None, recipe: Recipe) -> Images:
    """Find the images of a path, and the depth of each by its name.

    Args:
        rgb: a file, a folder, or a pattern with one `*` for the names.
        depth: likewise.
        recipe: says how images are prepared.

    Raises:
        PredictionError: there are none, one lacks its depth, or a pair does not fit.
        DataError: a file is damaged.
    """
    if depth is None:
        raise PredictionError("the network needs the depth of its images; give --depth PATH")
    if Path(rgb).is_file():
        names, images, depths = [Path(rgb).stem], [Path(rgb)], [_depth_file(depth)]
        notes: tuple[str, ...] = ()
    else:
        names, images, depths, notes = _matched(rgb, depth)
    inputs = check_inputs(images, depths, recipe.preparation)
    return Images([replace(i, name=n) for i, n in zip(inputs, names, strict=True)], None, notes)


def find_split(split: str, recipe: Recipe) -> Images:
    """Find the images of a split of the configuration's data.

    Args:
        split: train, test, or a text file, relative to the data's folder or absolute.
        recipe: has the data.

    Raises:
        PredictionError: the data are no RGB-D data set.
        DataError: a file is missing or damaged.
    """
    data = recipe.data
    if not isinstance(data, RGBDDataModule):
        raise PredictionError(
            f"--split reads a segtasks.data.RGBDDataModule, the configuration's data is a "
            f"{type(data).__name__}; name the images by --rgb and --depth"
        )
    data.prepare_data()
    # The loader of a test has the split's own files, not transformed.
    data.test_split = {"train": data.train_split, "test": data.test_split}.get(split, split)
    dataset: RGBDDataset = data.test_dataloader().dataset
    files = [dataset.files(index) for index in range(len(dataset))]
    inputs = check_inputs(
        [image for image, _, _ in files], [depth for _, depth, _ in files], recipe.preparation
    )
    for item, (_, _, label) in zip(inputs, files, strict=True):
        size = verify_picture(label).size
        if size != item.size:
            raise PredictionError(
                f"label {label} is {size[0]}x{size[1]} and its image {item.size[0]}x{item.size[1]}"
            )
    named = [replace(i, name=stem) for i, stem in zip(inputs, dataset.stems, strict=True)]
    return Images(named, dataset.read_label)


def _depth_file(depth: str) -> Path:
    if Path(depth).is_file():
        return Path(depth)
    what = "is a folder" if Path(depth).is_dir() else "does not exist"
    raise PredictionError(
        f"--rgb is a file, and --depth {depth} {what}; name the file of its depth"
    )


def _matched(rgb: str, depth: str) -> tuple[list[str], list[Path], list[Path], tuple[str, ...]]:
    images, depths = list_pictures(rgb, "--rgb"), list_pictures(depth, "--depth")
    lacking = [str(path) for name, path in images.items() if name not in depths]
    if lacking:
        raise PredictionError(
            f"{len(lacking)} of {len(images)} images have no depth of that name in {depth}: "
            f"{_enumerate(lacking)}"
        )
    unused = [str(path) for name, path in depths.items() if name not in images]
    notes = (f"depth without an image, left out: {_enumerate(unused)}",) if unused else ()
    return list(images), list(images.values()), [depths[name] for name in images], notes


def list_pictures(text: str, option: str) -> dict[str, Path]:
    """Pictures of a folder or a pattern, by the name that they share with others, sorted.

    Args:
        text: a folder, or a pattern such as `images/*_rgb`.
        option: names it in errors.

    Raises:
        PredictionError: there are none, or two have one name.
    """
    pattern = NamePattern.of(text)
    folder = Path(pattern.folder)
    if not folder.is_dir():
        raise PredictionError(f"{option} {text}: there is no such file or folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.stem
        fits = stem.startswith(pattern.prefix) and stem.endswith(pattern.suffix)
        if path.suffix.lower() not in _ENDINGS or not fits:
            continue
        name = pattern.sample(stem)
        if name in found:
            raise PredictionError(
                f"{option}: {found[name]} and {path} have one name; move one away"
            )
        found[name] = path
    if not found:
        raise PredictionError(f"{option} {text}: no file there ends with {', '.join(_ENDINGS)}")
    return found


def _enumerate(items: Sequence[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
