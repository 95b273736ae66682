"""Find oneDNN 2.2 in its PyPI wheel and link it where Jittor would unpack its own download."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TYPE_CHECKING = False  # typing itself would cost a third of the time that prepare may take
if TYPE_CHECKING:
    from collections.abc import Iterable

WHEEL = "onednn-devel-cpu-gomp"
VERSION = "2021.2.0"
FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
LIBRARY = "libmkldnn.so"
HEADER = "mkldnn.h"


class OneDNNMissingError(RuntimeError):
    """Neither the wheel nor an earlier link is there."""


def target(jittor_home: Path) -> Path:
    """Where Jittor looks for oneDNN."""
    name = FOLDER if os.uname().machine == "x86_64" else f"{FOLDER}_{os.uname().machine}"
    return jittor_home / ".cache" / "jittor" / "mkl" / name


def is_linked(jittor_home: Path) -> bool:
    """Whether library and header can be read there; a link into a deleted folder does not count."""
    folder = target(jittor_home)
    return (folder / "lib" / LIBRARY).is_file() and (folder / "include" / HEADER).is_file()


def link(jittor_home: Path) -> None:
    """Link the wheel's library and headers for Jittor, unless they are there.

    Only oneDNN's own files are linked, not the folders that hold them: Jittor puts the folder on
    the run path of every kernel, where the other libraries of a Conda prefix do not belong.

    Raises:
        OneDNNMissingError: There is nothing to link.
        OSError: Jittor's home cannot be written.
    """
    if is_linked(jittor_home):
        return
    found = find()
    if found is None:
        raise OneDNNMissingError(_advice())
    library, header = found
    folder = target(jittor_home)
    for pattern in ("libmkldnn.so*", "libdnnl.so*"):
        _link_all(library.parent.glob(pattern), folder / "lib")
    for pattern in ("mkldnn*", "dnnl*", "oneapi"):
        _link_all(header.parent.glob(pattern), folder / "include")


def find() -> tuple[Path, Path] | None:
    """The library and the header `mkldnn.h` of the installed wheel, or None."""
    # The usual place first: reading the metadata of a distribution takes longer than all the rest.
    library = Path(sys.prefix, "lib", LIBRARY)
    header = Path(sys.prefix, "include", HEADER)
    if library.is_file() and header.is_file():
        return library, header
    files = [*_wheel_files(WHEEL), *_wheel_files(WHEEL.replace("-devel", ""))]
    libraries = [file for file in files if file.name == LIBRARY and file.is_file()]
    headers = [file for file in files if file.name == HEADER and file.is_file()]
    return (libraries[0], headers[0]) if libraries and headers else None


def _wheel_files(name: str) -> list[Path]:
    from importlib import metadata

    try:
        files = metadata.files(name)
    except metadata.PackageNotFoundError:
        return []
    return [Path(os.path.realpath(str(file.locate()))) for file in files or []]


def _link_all(sources: Iterable[Path], folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()  # somebody linked the whole folder, and what it pointed to is gone
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        # Another process may be doing the same: make the link aside and move it into place.
        aside = folder / f".{source.name}.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(source)
        aside.replace(folder / source.name)


def _advice() -> str:
    if os.uname().machine != "x86_64":
        return (
            f"there is no oneDNN wheel for {os.uname().machine}, so convolutions on the CPU are "
            "about 58 times slower; set use_mkl=1 to let Jittor download its own build"
        )
    return (
        "oneDNN is missing, so convolutions on the CPU are about 58 times slower; "
        f"run: {sys.executable} -m pip install {WHEEL}=={VERSION}"
    )
