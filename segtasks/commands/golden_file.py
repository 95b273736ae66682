"""Reading the golden files that `segtasks audit` accepts, with every check before any work."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

VARIANTS = (
    "DFormer-Tiny",
    "DFormer-Small",
    "DFormer-Base",
    "DFormer-Large",
    "DFormerv2_S",
    "DFormerv2_B",
    "DFormerv2_L",
)
DECODERS = ("ham", "MLPDecoder")
ACCEPTED = (
    "accepted are .npz files whose `meta` holds a variant of "
    f"{', '.join(VARIANTS)} with a decoder of {', '.join(DECODERS)}, and either `cases` "
    "(recorded forward passes) or `losses` (recorded training steps), and recordings of RT-DETR"
)
#: What NumPy and zipfile raise for files that are damaged or of another kind.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


T = TypeVar("T")


class GoldenFileError(ValueError):
    """A file is not one that the audit accepts, or it is damaged."""


@dataclass(frozen=True)
class GoldenFile:
    """A recorded run of the official code.

    Attributes:
        path: where it was read from, for messages.
        meta: the file's description.
        arrays: everything else.
    """

    path: Path
    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def is_training(self) -> bool:
        """Whether training steps were recorded, instead of forward passes."""
        return "losses" in self.meta

    def array(self, key: str) -> np.ndarray:
        """A recorded array; GoldenFileError if it is missing."""
        if key not in self.arrays:
            raise GoldenFileError(f"{self.path}: the array {key!r} is missing; copy the file again")
        return self.arrays[key]


def array_names(path: Path) -> set[str]:
    """Names of the arrays in an .npz file.

    Raises:
        GoldenFileError: There is no such file, or it is damaged or of another kind.
    """
    return set(_read(path, lambda archive: archive.files))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays in an .npz file; raises as `array_names`."""
    return _read(path, lambda archive: {name: archive[name] for name in archive.files})


def read_golden_file(path: Path) -> GoldenFile:
    """Read and check a file.

    Raises:
        GoldenFileError: the file cannot be read, is damaged, or is of a kind not accepted.
    """
    arrays = read_arrays(path)
    if "meta" not in arrays:
        raise GoldenFileError(f"{path}: no `meta` inside; {ACCEPTED}")
    try:
        meta = json.loads(arrays.pop("meta").tobytes())
    except ValueError as error:
        raise GoldenFileError(f"{path}: `meta` is not JSON ({error}); {ACCEPTED}") from error
    if not isinstance(meta, dict):
        raise GoldenFileError(f"{path}: `meta` is a {type(meta).__name__}; {ACCEPTED}")
    golden = GoldenFile(path, meta, arrays)
    _check_meta(golden)
    return golden


def _read(path: Path, read: Callable[[Any], T]) -> T:
    """What `read` takes from the archive."""
    if not path.is_file():
        raise GoldenFileError(f"{path}: no such file")
    try:
        # Opened here: NumPy leaves the file of a damaged archive open.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise GoldenFileError(f"{path}: a single array, not an .npz archive; {ACCEPTED}")
            return read(archive)
    except GoldenFileError:
        raise
    except UNREADABLE as error:
        raise GoldenFileError(f"{path}: not a readable .npz file ({error}); {ACCEPTED}") from error


def _check_meta(golden: GoldenFile) -> None:
    path, meta = golden.path, golden.meta
    for key, allowed in (("variant", VARIANTS), ("decoder", DECODERS)):
        if meta.get(key) not in allowed:
            raise GoldenFileError(f"{path}: meta[{key!r}] is {meta.get(key)!r}; {ACCEPTED}")
    if ("losses" in meta) == ("cases" in meta):
        raise GoldenFileError(f"{path}: meta needs either `cases` or `losses`; {ACCEPTED}")
    if not golden.is_training and not (isinstance(meta["cases"], dict) and meta["cases"]):
        raise GoldenFileError(f"{path}: meta['cases'] holds no case; {ACCEPTED}")
    for key, kind in _required(golden):
        value = _lookup(meta, key)
        if value is None:
            raise GoldenFileError(f"{path}: meta lacks {key}; {ACCEPTED}")
        if not isinstance(value, kind) or (kind is int and value < 1):
            raise GoldenFileError(f"{path}: meta {key} is {value!r}; {ACCEPTED}")
    for key in _required_arrays(golden):
        golden.array(key)
    if golden.is_training:
        _check_lengths(golden)


def _check_lengths(golden: GoldenFile) -> None:
    meta = golden.meta
    counts = {
        "losses": (len(meta["losses"]), meta["steps"]),
        "grad_norm": (len(meta["grad_norm"]), meta["steps"]),
        "grad_norms": (len(golden.array("grad_norms")), len(meta["names"])),
    }
    for key, (count, expected) in counts.items():
        if count != expected:
            raise GoldenFileError(f"{golden.path}: {key} has {count} values instead of {expected}")


def _required(golden: GoldenFile) -> Iterator[tuple[str, Any]]:
    """Paths into the description, and the type of what they lead to."""
    number = (int, float)
    yield "num_classes", int
    if "decoder_embed_dim" in golden.meta:
        yield "decoder_embed_dim", int
    if golden.is_training:
        yield from ((key, int) for key in ("batch", "height", "width", "steps"))
        yield from ((key, number) for key in ("lr", "eps", "weight_decay", "eval_loss_after"))
        for key in ("betas", "losses", "grad_norm", "names", "picked", "bn", "unchanged"):
            yield key, list
        return
    yield from (("manifest", list), ("params", int))
    yield from (("groups/decay", list), ("groups/no_decay", list))
    for case, description in golden.meta["cases"].items():
        yield from ((f"cases/{case}/{key}", int) for key in ("batch", "height", "width"))
        yield f"cases/{case}/loss", number
        yield f"cases/{case}/tensors/logits", dict
        for name in _lookup(description, "tensors") or ():
            # Names of stages hold no slash, so they are one part of a path.
            yield f"cases/{case}/tensors/{name}/shape", list
            for key in ("mean", "std", "max_abs_diff_f64"):
                yield f"cases/{case}/tensors/{name}/{key}", number


def _required_arrays(golden: GoldenFile) -> Iterator[str]:
    if golden.is_training:
        yield "grad_norms"
        for kind in ("grad", "delta", "delta_f64"):
            yield from (f"{kind}/{name}" for name in golden.meta["picked"])
        for kind in ("bn", "bn_f64"):
            yield from (f"{kind}/{name}" for name in golden.meta["bn"])
        return
    for case, description in golden.meta["cases"].items():
        yield from (f"{case}/{name}" for name in ("argmax", "margin", *description["tensors"]))


def _lookup(tree: Any, path: str) -> Any:
    """The value under a path such as "cases/a/loss"; None where it ends early."""
    for part in path.split("/"):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree
