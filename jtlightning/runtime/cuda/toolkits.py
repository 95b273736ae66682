"""Find CUDA compilers with their headers, of the system and of pip's packages."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

Toolkit = namedtuple("Toolkit", "nvcc root include library version")
Toolkit.__doc__ = """A CUDA compiler and what belongs to it.

`nvcc` and `root` are paths; `include` is the folder of `cuda.h` and `library` that of `libcudart`;
`version` is (major, minor).
"""
Parts = namedtuple("Parts", "include library only_cudnn")
Parts.__doc__ = """Two folders, of headers and of libraries, that belong together.

`only_cudnn`: they are the system's, so nothing but cuDNN is to be taken from them.
"""


def find() -> list[Toolkit]:
    """Every complete compiler: on the PATH, in the usual folders, then pip's."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    homes += ["/usr/local/cuda", "/usr", "/opt/cuda"]
    candidates = [shutil.which("nvcc"), *(f"{home}/bin/nvcc" for home in homes if home)]
    # Packages of CUDA 12 and before hold no nvcc.
    candidates += [str(folder / "bin" / "nvcc") for folder in _in_packages("cu1[3-9]")]
    found: dict[Path, Toolkit] = {}
    for candidate in candidates:
        toolkit = read(Path(candidate)) if candidate else None
        if toolkit is not None:
            found.setdefault(toolkit.root, toolkit)
    return list(found.values())


def read(nvcc: Path) -> Toolkit | None:
    """Describe the toolkit that belongs to a compiler, or None where something is missing.

    Links are followed, but not a script that calls another compiler: `../include` and `../lib64`
    (`../lib` in pip's packages) must be the toolkit's.
    """
    if not os.access(nvcc, os.X_OK):
        return None
    root = Path(os.path.realpath(nvcc)).parent.parent
    target = root / "targets" / f"{os.uname().machine}-linux"
    includes = [root / "include", target / "include"]
    libraries = [root / "lib64", target / "lib", root / "lib"]
    if str(nvcc) == "/usr/bin/nvcc":
        libraries.append(_system_libraries())
    include = next((folder for folder in includes if (folder / "cuda.h").is_file()), None)
    library = next((folder for folder in libraries if any(folder.glob("libcudart.so*"))), None)
    number = define(include / "cuda.h", "CUDA_VERSION") if include else None
    if number is None or library is None:
        return None
    return Toolkit(nvcc, root, include, library, (number // 1000, number % 1000 // 10))


def plain_cudnn(toolkit: Toolkit) -> int | None:
    """Major version of the cuDNN that Jittor itself would find with this compiler, or None."""
    # What pip installs has no `libcudart.so`, only one with a version at its end.
    library = toolkit.library
    if not (library / "libcudart.so").exists() or library == toolkit.root / "lib":
        return None
    folders = [toolkit.include, _system_includes()[0]]
    if not any((f / "libcudnn.so").exists() for f in (library, _system_libraries())):
        return None
    return next(filter(None, map(cudnn_major, folders)), None)


def parts(toolkit: Toolkit) -> list[Parts]:
    """Folders that may be joined with a compiler: its own, then pip's, then the system's cuDNN.

    Of pip's packages only those for the compiler's major version: `nvidia-cudnn-cu12` and
    `nvidia-cudnn-cu13` install into the same folder.
    """
    major = toolkit.version[0]
    among_system = toolkit.include == Path("/usr/include")
    found = [Parts(toolkit.include, toolkit.library, among_system)]
    for folder in _in_packages("*"):
        site = folder.parent.parent
        if folder.name == f"cu{major}" or any(
            site.glob(f"nvidia_{folder.name}_cu{major}-*.dist-info")
        ):
            found.append(Parts(folder / "include", folder / "lib", False))
    return [*found, *(Parts(folder, _system_libraries(), True) for folder in _system_includes())]


def cudnn_major(include: Path) -> int | None:
    """Major version of the cuDNN whose headers lie in a folder, or None."""
    names = ("cudnn_version.h", "cudnn.h")
    return next(filter(None, (define(include / name, "CUDNN_MAJOR") for name in names)), None)


def define(header: Path, name: str) -> int | None:
    """The number that a header gives to a macro, or None."""
    try:
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^\s*#\s*define\s+{name}\s+(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def _in_packages(pattern: str) -> list[Path]:
    """Folders `nvidia/...` of installed packages, in the order of the path."""
    sites = dict.fromkeys(Path(entry, "nvidia") for entry in sys.path if entry)
    return [
        folder
        for site in sites
        for folder in sorted(site.glob(pattern))
        if (folder / "include").is_dir() or (folder / "lib").is_dir()
    ]


def _system_includes() -> list[Path]:
    return [Path("/usr/include"), Path("/usr/include", f"{os.uname().machine}-linux-gnu")]


def _system_libraries() -> Path:
    folder = Path("/usr/lib", f"{os.uname().machine}-linux-gnu")
    return folder if folder.is_dir() else Path("/usr/lib64")
