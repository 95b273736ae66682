"""Weights into a model, all or nothing, and out of one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from jtlightning.checkpoint.container import open_tensors, verify_checkpoint
from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.foreign import (
    EntryPath,
    file_kind,
    join_path,
    open_foreign,
    split_path,
)
from jtlightning.checkpoint.layout import CHECKSUMS, SEAL, Entry, Header
from jtlightning.checkpoint.pickle_parts import MalformedError
from jtlightning.checkpoint.state_dict import (
    PREFIXES,
    Weights,
    Which,
    find_entry,
    is_wrapper,
    strip_prefixes,
)
from jtlightning.checkpoint.stored import check_shape, read_numbers

if TYPE_CHECKING:
    import jittor as jt

_Value = TypeVar("_Value")
Rename = Callable[[str], "str | None"] | Mapping[str, str]

SKIP = "To keep the model's own values for a part, name it in `skip`."

_MODEL = "model/"
_NETWORK = "model."
_LISTED = 2
_SUGGESTED = 10
#: A number in PyTorch's batch norms that Jittor's do not have and nothing reads.
_COUNTER = "num_batches_tracked"


class WeightsError(ValueError):
    """Weights do not fit a model; nothing was loaded."""


@dataclass
class Misfit:
    """What keeps weights from fitting a model; each list holds one text per tensor."""

    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shape: list[str] = field(default_factory=list)
    dtype: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shape or self.dtype)

    def describe(self) -> str:
        """One indented line per kind of misfit."""
        titles = {
            "missing in the file": self.missing,
            "unknown to the model": self.unknown,
            "different shape": self.shape,
            "different kind of number": self.dtype,
        }
        lines = (f"  {title}: {_enumerate(items)}" for title, items in titles.items() if items)
        return "\n".join(lines)


def load_weights(
    model: jt.nn.Module,
    weights: Mapping[str, np.ndarray],
    *,
    source: str,
    rename: Rename | None = None,
    skip: Sequence[str] = (),
    remedy: str = SKIP,
) -> None:
    """Set all parameters and buffers of a model, or none.

    The model keeps its `Var` objects, their dtypes and whether they are trained.

    Args:
        model: A Jittor module.
        weights: Arrays by name.
        source: Where they come from, for errors.
        rename: From names in `weights` to the model's: a function (None drops the tensor), or a
            mapping of names or leading parts of names (`{"encoder": "backbone.encoder"}`).
        skip: Names, or leading parts, of what keeps the model's own values: `("decode_head",)`.
        remedy: What to do about weights that do not fit, for errors.

    Raises:
        WeightsError: Something is missing, unknown, of another shape or kind of number.
        ValueError: `skip` names no part of the model.
    """
    targets: dict[str, jt.Var] = dict(model.named_parameters())
    described = {name: (tuple(var.shape), _numpy_dtype(var)) for name, var in targets.items()}
    fitting = match_weights(
        described,
        weights,
        source=source,
        model=type(model).__name__,
        rename=rename,
        skip=skip,
        remedy=remedy,
    )
    _assign({name: (targets[name], array) for name, array in fitting.items()})


def export_weights(model: jt.nn.Module) -> dict[str, np.ndarray]:
    """All parameters and buffers of a model by name, copied; bfloat16 becomes float32."""
    exported = {}
    for name, var in model.named_parameters():
        value = var.float32() if str(var.dtype) == "bfloat16" else var
        exported[name] = np.array(value.numpy())
    return exported


def read_weights(
    path: Path | str,
    *,
    weights: Which = "raw",
    entry: str | None = None,
    strip: Sequence[str] = PREFIXES,
) -> Weights:
    """Read a network's weights from a file, recognised by its content, and verify them.

    Of a `.ckpt` of a task that holds its network as `model`, these are the network's, without
    that `model.`; of another task, all of it. In a file of PyTorch or Jittor, the state dict is
    looked for under the usual names (`state_dict`, `model`, `state_dict_ema` ...). bfloat16
    becomes float32. What was chosen stands in the result.

    Args:
        path: A `.ckpt` of this trainer, a safetensors file of any origin, a `.pth` (`.pt`,
            `.pth.tar`, `.bin`) of PyTorch, or a `.pkl` of Jittor.
        weights: `raw` as they are trained, `ema` the average (of the EMA callback, or what a
            foreign file names so), or `auto`: the average where there is one.
        entry: Where the state dict lies in a foreign file, joined by `/`, instead of looking.
        strip: Taken off the start of all names if all have it, one after the other; of a
            pre-trained backbone `("module.", "backbone.")`. Not for a `.ckpt`.

    Raises:
        CheckpointError: Missing or damaged, of another format, without an average, or with
            several state dicts.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind == "safetensors" or (kind == "unknown" and path.suffix in (".ckpt", ".safetensors")):
        with open_tensors(path, sealed=False) as (file, header):
            # Without its checksums, a file of this name is damaged.
            if path.suffix == ".ckpt" or not {SEAL, CHECKSUMS}.isdisjoint(header.metadata):
                return _read_own(path, weights)
            return _read_safetensors(path, file, header, weights, entry, strip)
    with open_foreign(path) as foreign:
        skipped = {join_path(place): name for place, name in foreign.placeholders.items()}
        folder = find_entry(path, foreign.tensors, weights, entry, skipped)
        arrays = {
            place[-1]: foreign.read(place, widen=True)
            for place in foreign.tensors
            if place[:-1] == folder
        }
        places = foreign.tensors.keys()
        skipped = {join_path(place): name for place, name in foreign.placeholders.items()}
        return _stripped(
            Weights(arrays, path, foreign.kind, skipped=skipped), folder, places, strip
        )


def match_weights(
    targets: Mapping[str, tuple[tuple[int, ...], str]],
    weights: Mapping[str, np.ndarray],
    *,
    source: str,
    model: str,
    rename: Rename | None = None,
    skip: Sequence[str] = (),
    remedy: str = SKIP,
) -> dict[str, np.ndarray]:
    """The arrays for a model's tensors, by the model's names, in the model's dtypes.

    Args:
        targets: Shape and dtype of each of the model's tensors.
        weights: Arrays by name.
        source: Where they come from, for errors.
        model: The model's class, for errors.
        rename: As in `load_weights`.
        skip: As in `load_weights`.
        remedy: As in `load_weights`.

    Raises:
        WeightsError: They do not fit.
        ValueError: `skip` names no part of the model.
    """
    for part in skip:
        if not any(_is_part(name, part) for name in targets):
            near = _nearest(part, {p for name in targets for p in _parts(name)}, 0.7)
            raise ValueError(f"skip names {part!r}, but {model} has no such part{near}")
    renamed = _rename(weights, rename, source)
    skipped = {n for n in {*targets, *renamed} if any(_is_part(n, part) for part in skip)}
    wanted = {name: target for name, target in targets.items() if name not in skipped}
    given = {name: array for name, array in renamed.items() if name not in skipped}
    misfit = _compare(wanted, given)
    if misfit:
        raise WeightsError(
            f"{source} does not fit {model}; nothing was loaded\n{misfit.describe()}\n{remedy}"
        )
    return {name: given[name].astype(dtype, copy=False) for name, (_, dtype) in wanted.items()}


def _compare(
    wanted: Mapping[str, tuple[tuple[int, ...], str]], given: Mapping[str, np.ndarray]
) -> Misfit:
    missing = [name for name in wanted if name not in given]
    misfit = Misfit(missing=missing)
    # Suggesting takes time per pair: for the first few, which are all that a message shows.
    for name in given:
        if name not in wanted:
            if name.endswith(_COUNTER):
                continue
            near = _nearest(name, missing, 0.9) if len(misfit.unknown) < _SUGGESTED else ""
            misfit.unknown.append(name + near)
            continue
        shape, dtype = wanted[name]
        array = given[name]
        if array.shape != shape:
            misfit.shape.append(f"{name} (file {array.shape}, model {shape})")
        elif not _convertible(array, np.dtype(dtype)):
            misfit.dtype.append(f"{name} (file {array.dtype}, model {dtype})")
    return misfit


def _convertible(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether the values keep their meaning: floats become floats, integers ones that fit."""
    if array.dtype == dtype or (array.dtype.kind == dtype.kind == "f"):
        return True
    if array.dtype.kind not in "iu" or dtype.kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)


def _rename(
    weights: Mapping[str, np.ndarray], rename: Rename | None, source: str
) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, array in weights.items():
        new = _new_name(name, rename)
        if new is None:
            continue
        if new in renamed:
            raise WeightsError(
                f"{source}: {origin[new]!r} and {name!r} are both renamed to {new!r}; "
                "nothing was loaded"
            )
        renamed[new], origin[new] = array, name
    return renamed


def _new_name(name: str, rename: Rename | None) -> str | None:
    if rename is None:
        return name
    if not isinstance(rename, Mapping):
        return rename(name)
    parts = [part for part in rename if _is_part(name, part)]
    if not parts:
        return name
    longest = max(parts, key=len)
    return (rename[longest] + name[len(longest) :]).removeprefix(".")


def _is_part(name: str, part: str) -> bool:
    return name == part or name.startswith(part.removesuffix(".") + ".")


def _parts(name: str) -> list[str]:
    """All leading parts of a dotted name, itself included."""
    words = name.split(".")
    return [".".join(words[: i + 1]) for i in range(len(words))]


def _nearest(name: str, others: Iterable[str], cutoff: float) -> str:
    near = difflib.get_close_matches(name, list(others), n=1, cutoff=cutoff)
    return f" (nearest: {near[0]})" if near else ""


def _enumerate(items: list[str]) -> str:
    rest = len(items) - _LISTED
    # "and 1 more" would take the room of the one it hides.
    if rest <= 1:
        return ", ".join(items)
    return f"{', '.join(items[:_LISTED])} and {rest} more"


def _assign(pairs: Mapping[str, tuple[jt.Var, np.ndarray]]) -> None:
    import jittor as jt  # here, so that reading and comparing weights needs no Jittor

    for var, array in pairs.values():
        value = jt.array(array, dtype=str(array.dtype))  # else it narrows float64 and int64
        var.update(value.bfloat16() if var.dtype == "bfloat16" else value)


def _numpy_dtype(var: jt.Var) -> str:
    dtype = str(var.dtype)
    return "float32" if dtype == "bfloat16" else dtype  # NumPy has none; it is narrowed at the end


def _read_own(path: Path, weights: Which) -> Weights:
    """The weights in a checkpoint of this trainer; the whole file is verified."""
    verify_checkpoint(path)
    average = "callback/EMA/average/"
    with open_tensors(path, sealed=True) as (file, header):
        averaged = any(entry.name.startswith(average) for entry in header.entries)
        if weights == "ema" and not averaged:
            raise CheckpointError(path, "has no averaged weights", "ask for the raw weights")
        # The average has no running statistics: those are the raw ones'.
        sources = (_MODEL,) if weights == "raw" or not averaged else (_MODEL, average)
        found = {}
        for prefix in sources:
            chosen = {e.name: e for e in header.entries if e.name.startswith(prefix)}
            found.update({name.removeprefix(prefix): entry for name, entry in chosen.items()})
        network = _below(_NETWORK, found)
        arrays = {n: _array(path, file, header, e) for n, e in (network or found).items()}
    stripped = _NETWORK if network else ""
    return Weights(arrays, path, "checkpoint", sources[-1].rstrip("/"), stripped)


def _read_safetensors(
    path: Path,
    file: BinaryIO,
    header: Header,
    weights: Which,
    entry: str | None,
    strip: Sequence[str],
) -> Weights:
    """The weights in a file of any origin; one that `segtasks convert` made keeps its folders."""
    places = {split_path(e.name): e for e in header.entries}
    if entry is None and weights == "raw" and not any(is_wrapper(p[:-1]) for p in places):
        places = {(e.name,): e for e in header.entries}
    folder = find_entry(path, places, weights, entry)
    arrays = {
        place[-1]: _array(path, file, header, e)
        for place, e in places.items()
        if place[:-1] == folder
    }
    return _stripped(Weights(arrays, path, "safetensors"), folder, places, strip)


def _array(path: Path, file: BinaryIO, header: Header, entry: Entry) -> np.ndarray:
    try:
        check_shape(entry.shape, entry.dtype)
        begin, size = header.start + entry.begin, entry.end - entry.begin
        numbers = read_numbers(file, begin, size, entry.dtype, None, widen=True)
    except MalformedError as error:
        raise CheckpointError(path, str(error)) from None
    return numbers.reshape(entry.shape)


def _stripped(
    weights: Weights, folder: EntryPath, places: Iterable[EntryPath], strip: Sequence[str]
) -> Weights:
    """The weights under shorter names, and what was done told."""
    start = strip_prefixes(weights.arrays, strip)
    folders = dict.fromkeys(place[:-1] for place in places if place[:-1] != folder)
    return replace(
        weights,
        arrays={name.removeprefix(start): array for name, array in weights.items()},
        entry=join_path(folder),
        stripped=start,
        others=tuple(join_path(other) for other in folders),
    )


def _below(prefix: str, items: Mapping[str, _Value]) -> dict[str, _Value]:
    return {n.removeprefix(prefix): item for n, item in items.items() if n.startswith(prefix)}
