"""Pack Jittor's compiled files into one archive, and unpack it on an equal machine.

Of each kernel only the library and its key travel: Jittor writes the sources anew before it looks
whether they are compiled, and the assembler files are nine tenths of a cache.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jtlightning.runtime import cache_places, machine
from jtlightning.runtime.cache_places import Places

MANIFEST = "manifest.json"
FORMAT = 1
#: Higher levels take several times as long for a few per cent.
_COMPRESSION = 3
#: Folders of Jittor itself; the files beside them are its libraries.
_CORE = ("obj_files", "gen", "custom_ops")
#: Jittor's name for the files of one CUDA and card, such as cu13.0.88_sm_90.
_CUDA_FOLDER = re.compile(r"cu\d")
#: What a library is linked with stands in it as a path, so that it is of use in one folder only.
_LINKED = ("jittor_core", "custom_ops/")

Progress = Callable[[int, int], None]


class CacheArchiveError(ValueError):
    """The archive cannot be used, or there is nothing to pack; the message says what to do."""


class Packed(NamedTuple):
    """What was written: kernels, files of Jittor itself, bytes of the archive."""

    kernels: int
    core: int
    size: int


class Unpacked(NamedTuple):
    """What became of an archive's kernels, and how many files of Jittor itself were added."""

    added: int
    kept: int
    core: int


def pack(file: Path, version: str, progress: Progress = lambda done, total: None) -> Packed:
    """Write all kernels that are valid here, and Jittor's compiled core, into one archive.

    Args:
        file: A gzipped tar archive; replaced, once the new one is complete.
        version: Of the package, for the manifest.
        progress: Called with the number of files done and of all.

    Raises:
        CacheArchiveError: There are no kernels.
        OSError: The archive cannot be written.
    """
    places = cache_places.find()
    cache = Path(places.cache)
    facts = machine.describe()
    manifest = {"format": FORMAT, "segtasks": version, "cache": places.cache, "machine": facts}
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with (
            cache_places.locked(cache),
            tarfile.open(aside, "w:gz", compresslevel=_COMPRESSION) as tar,
        ):
            files = list(_to_pack(cache, places, with_cuda=facts["cuda"] != "none"))
            kernels = sum(_is_kernel(name) for name in files) // 2
            if not kernels:
                raise CacheArchiveError(
                    f"{cache} holds no kernels; compile some with `segtasks compile --config FILE`"
                )
            _add(tar, MANIFEST, json.dumps(manifest, indent=2).encode(), 0)
            for done, name in enumerate(files, 1):
                _add(tar, str(name), _content(cache / name, places), (cache / name).stat().st_mtime)
                progress(done, len(files))
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return Packed(kernels, len(files) - 2 * kernels, file.stat().st_size)


def unpack(file: Path, progress: Progress = lambda done, total: None) -> Unpacked:
    """Add an archive's kernels to this machine's cache; what is there and valid or newer stays.

    Everything is read and checked in a folder beside the cache before anything is moved, each file
    in one step.

    Raises:
        CacheArchiveError: The archive is damaged, none of ours, or of a machine that differs.
        OSError: It cannot be read, or the cache not be written.
    """
    places = cache_places.find()
    cache = Path(places.cache)
    aside = Path(tempfile.mkdtemp(prefix=".unpack-", dir=cache.parent))
    try:
        manifest = _extract(file, aside)
        same_folder = manifest.get("cache") == places.cache
        with cache_places.locked(cache):
            return _merge(aside, cache, places, same_folder, progress)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_manifest(tar: tarfile.TarFile, file: Path) -> dict[str, Any]:
    """The first member.

    Raises:
        CacheArchiveError: It is no manifest of a kind that can be read.
    """
    member = tar.next()
    stream = tar.extractfile(member) if member is not None and member.name == MANIFEST else None
    try:
        manifest = json.loads(stream.read()) if stream is not None else None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("machine"), dict):
        raise CacheArchiveError(
            f"{file} is no archive of kernels; make one with `segtasks cache pack FILE`"
        )
    if manifest.get("format") != FORMAT:
        raise CacheArchiveError(
            f"{file} has format {manifest.get('format')}, and this version reads {FORMAT}; pack "
            "it with this version"
        )
    return manifest


def _extract(file: Path, folder: Path) -> dict[str, Any]:
    """Write all members into `folder`, if they are for this machine."""
    try:
        with tarfile.open(file, "r:gz") as tar:
            manifest = read_manifest(tar, file)
            different = machine.differences(machine.describe(), manifest["machine"])
            if different:
                raise CacheArchiveError(
                    f"{file} is of a machine that differs ({'; '.join(different)}); compile here, "
                    "with `segtasks compile --config FILE`"
                )
            for member in tar:
                if member.name != MANIFEST:
                    _write(tar, member, folder, file)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _damaged(file, error) from error
    except OSError as error:
        if error.filename is not None or error.errno is not None:
            raise
        raise _damaged(file, error) from error  # of gzip, which has no class for some of these
    return manifest


def _damaged(file: Path, error: Exception) -> CacheArchiveError:
    return CacheArchiveError(f"{file} is damaged or incomplete ({error}); copy or pack it again")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, file: Path) -> None:
    name = PurePosixPath(member.name)
    stream = tar.extractfile(member) if member.isreg() else None
    if stream is None or name.is_absolute() or ".." in name.parts:
        raise CacheArchiveError(
            f"{file} holds {member.name!r}, which is no plain file below the cache's folder; "
            "nothing was unpacked"
        )
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as copy:
        shutil.copyfileobj(stream, copy)
    target.chmod(0o755 if name.suffix == ".so" else 0o644)
    os.utime(target, (member.mtime, member.mtime))


def _merge(
    aside: Path, cache: Path, places: Places, same_folder: bool, progress: Progress
) -> Unpacked:
    names = [p.relative_to(aside) for p in sorted(aside.rglob("*")) if p.is_file()]
    for name in names:
        if name.suffix == ".key":
            path = aside / name
            path.write_text(places.local(path.read_text()))
    kernels = [name for name in names if _is_kernel(name) and name.suffix == ".so"]
    # A whole core stays: part of one and part of another would be compiled anew.
    whole = {base for base in map(_base, names) if list((cache / base).glob("jittor_core*.key"))}
    core = [n for n in names if not _is_kernel(n) and _base(n) not in whole]
    core = [n for n in core if same_folder or not _is_linked(n)]
    for name in sorted(core, key=lambda name: name.suffix == ".key"):
        _move(aside / name, cache / name)
    added = 0
    for done, name in enumerate(kernels, 1):
        added += _move_kernel(aside / name, cache / name)
        progress(done, len(kernels))
    return Unpacked(added, len(kernels) - added, len(core))


def _move_kernel(source: Path, target: Path) -> bool:
    """Put a library and its key in place; False where the one that is there stays."""
    source_key, target_key = _key(source), _key(target)
    if target.exists() and target_key.exists():
        if target_key.read_text() == source_key.read_text():
            return False
        if target.stat().st_mtime > source.stat().st_mtime:
            return False
    target_key.unlink(missing_ok=True)  # a library without its key is compiled anew
    _move(source, target)
    _move(source_key, target_key)
    return True


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _to_pack(cache: Path, places: Places, *, with_cuda: bool) -> Iterator[Path]:
    """Names, below the cache's folder, of the files that belong into an archive."""
    bases = [cache, *(sorted(cache.glob("cu[0-9]*")) if with_cuda else [])]
    for base in bases:
        for library in sorted((base / "jit").glob("*.so")):
            key = _key(library)
            if key.is_file() and places.is_current(places.neutral(key.read_text())):
                yield from _relative((library, key), cache)
        core = [file for file in sorted(base.glob("*")) if file.is_file()]
        core += [file for name in _CORE for file in sorted((base / name).glob("*"))]
        yield from _relative(core, cache)


def _relative(files: Iterable[Path], cache: Path) -> Iterator[Path]:
    for file in files:
        if file.is_file():
            yield file.relative_to(cache)


def _content(file: Path, places: Places) -> bytes:
    data = file.read_bytes()
    return places.neutral(data.decode()).encode() if file.suffix == ".key" else data


def _add(tar: tarfile.TarFile, name: str, data: bytes, mtime: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), int(mtime)
    tar.addfile(member, io.BytesIO(data))


def _key(library: Path) -> Path:
    return library.with_name(f"{library.name}.key")


def _is_kernel(name: Path) -> bool:
    return name.parent.name == "jit"


def _is_linked(name: Path) -> bool:
    inner = name.relative_to(_base(name)).as_posix()
    return inner.startswith(_LINKED) and name.name.endswith((".so", ".so.key"))


def _base(name: Path) -> Path:
    """The folder of CUDA that a file belongs to, or the cache's own."""
    first = name.parts[0]
    return Path(first) if _CUDA_FOLDER.match(first) and len(name.parts) > 1 else Path()
