"""Join a compiler, headers and libraries from several places into one CUDA folder of links.

Jittor looks for `../include` and `../lib64` beside `nvcc`, and there for libraries without a
version at their end; pip's packages have their headers and libraries elsewhere and only under
their full names.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path

from jtlightning.runtime import store
from jtlightning.runtime.cuda import toolkits

TYPE_CHECKING = False  # as in runtime/__init__: typing is not imported for this
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jtlightning.runtime.cuda.toolkits import Parts, Toolkit

#: What Jittor includes and links of each part, relative to the root; one of several, where some.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "CUDA runtime": (("include/cuda_runtime.h",), ("lib64/libcudart.so",)),
    "CCCL (cub, thrust)": (("include/cccl", "include/cub"),),
    "cuBLAS": (("include/cublas_v2.h",), ("lib64/libcublas.so",), ("lib64/libcublasLt.so",)),
    "cuDNN": (("include/cudnn.h",), ("lib64/libcudnn.so",)),
    "cuFFT": (("include/cufft.h",), ("lib64/libcufft.so",)),
    "cuRAND": (("include/curand.h",), ("lib64/libcurand.so",)),
    "cuSPARSE": (("include/cusparse.h",), ("lib64/libcusparse.so",)),
}
#: Needed by cuSPARSE and cuFFT of CUDA 12 and later.
NVJITLINK = {"nvJitLink": (("lib64/libnvJitLink.so",),)}
#: Needed by cuDNN 9: Jittor loads the parts itself, and cuDNN compiles some kernels with NVRTC.
CUDNN_9 = {
    "cuDNN": tuple((f"lib64/libcudnn_{name}.so",) for name in ("graph", "ops", "cnn")),
    "NVRTC": (("lib64/libnvrtc.so",),),
}

NPP_HEADER = "include/npp.h"
# Jittor includes NPP's header in every kernel with a minimum or maximum, for eight limits only.
_NPP = """\
// Stands in for the header of NVIDIA's NPP, of which Jittor reads only these limits.
#pragma once
#define NPP_MIN_32U 0U
#define NPP_MAX_32U 4294967295U
#define NPP_MIN_32S (-2147483647 - 1)
#define NPP_MAX_32S 2147483647
#define NPP_MIN_64U 0ULL
#define NPP_MAX_64U 18446744073709551615ULL
#define NPP_MIN_64S (-9223372036854775807LL - 1)
#define NPP_MAX_64S 9223372036854775807LL
"""
# A file, not a link: Jittor follows links from nvcc, which would lead it out of the root. In pip's
# package the compiler's own search path for libraries is a folder that does not exist.
_NVCC = """\
#!/bin/sh
exec {nvcc} "$@" -L{library}
"""


def cudnn_source(sources: Sequence[Parts]) -> tuple[Parts, int] | None:
    """The first of the folders that holds headers and libraries of one cuDNN, and its version."""
    for source in sources:
        major = toolkits.cudnn_major(source.include)
        if major is not None and any(source.library.glob("libcudnn.so*")):
            return source, major
    return None


def links(sources: Sequence[Parts], cudnn: Parts | None) -> dict[str, Path]:
    """Link (path in the root) -> what it points to. What comes first stands before the rest.

    Of the system's own folders only cuDNN is taken, and cuDNN only from `cudnn`, so that headers
    of one version never meet libraries of another.
    """
    headers: list[dict[str, Path]] = []
    libraries: list[dict[str, Path]] = []
    for source in sources:
        for folder, layers in ((source.include, headers), (source.library, libraries)):
            layers.append(
                {
                    path.name: path
                    for path in _entries(folder)
                    if (source is cudnn if _is_cudnn(path.name) else not source.only_cudnn)
                }
            )
    files = {
        name: path
        for name, path in _merged(libraries).items()
        if ".so" in name or name.endswith(".a")
    }
    for name in sorted(files):
        short = re.match(r"(lib\w+\.so)\.[\d.]+$", name)
        if short:
            files.setdefault(short[1], files[name])
    return {
        **{f"include/{name}": path for name, path in _merged(headers).items()},
        **{f"lib64/{name}": path for name, path in files.items()},
    }


def missing(found: Mapping[str, Path], cuda_major: int, cudnn_major: int | None) -> list[str]:
    """Names of the parts that are not, or not all, among the links."""
    needed = dict(NEEDED)
    if cuda_major >= 12:
        needed.update(NVJITLINK)
    if cudnn_major is not None and cudnn_major >= 9:
        needed.update(CUDNN_9)
        needed["cuDNN"] += NEEDED["cuDNN"]
    return [
        name
        for name, files in needed.items()
        if not all(any(one in found for one in names) for names in files)
    ]


def assemble(cache: Path, toolkit: Toolkit, found: Mapping[str, Path]) -> Path:
    """Make the root in `cache`, unless it is there; returns it.

    Its name tells its content: where every link leads, and how large what is there is.

    Raises:
        OSError: The cache cannot be written.
    """
    nvcc = os.path.realpath(toolkit.nvcc)
    content = [nvcc, _NPP, _NVCC, *(f"{name} {_state(path)}" for name, path in found.items())]
    key = hashlib.sha256("\n".join(sorted(content)).encode()).hexdigest()[:16]
    target = cache / f"root-{'.'.join(map(str, toolkit.version))}-{key}"

    def build(folder: Path) -> None:
        for name, path in found.items():
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        if NPP_HEADER not in found:
            (folder / NPP_HEADER).write_text(_NPP, encoding="utf-8")
        wrapper = folder / "bin" / "nvcc"
        wrapper.parent.mkdir()
        library = shlex.quote(str(target / "lib64"))
        wrapper.write_text(_NVCC.format(nvcc=shlex.quote(nvcc), library=library), encoding="utf-8")
        wrapper.chmod(0o755)

    return store.build_once(target, build)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_cudnn(name: str) -> bool:
    return name.startswith(("cudnn", "libcudnn"))


def _merged(layers: Sequence[Mapping[str, Path]]) -> dict[str, Path]:
    """The first path of each name; folders of one name in several places are joined."""
    merged: dict[str, Path] = {}
    for name in dict.fromkeys(name for layer in layers for name in layer):
        places = [layer[name] for layer in layers if name in layer]
        paths = list({os.path.realpath(path): path for path in reversed(places)}.values())[::-1]
        if len(paths) == 1 or not all(path.is_dir() for path in paths):
            merged[name] = paths[0]
        else:
            inner = _merged([{path.name: path for path in _entries(folder)} for folder in paths])
            merged.update({f"{name}/{key}": path for key, path in inner.items()})
    return merged


def _state(path: Path) -> str:
    return f"{path} {path.stat().st_size if path.is_file() else 'folder'}"
