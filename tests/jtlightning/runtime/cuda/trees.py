"""Folders that look like CUDA toolkits and pip's packages, and a driver that is only a library."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Header and libraries of each part that Jittor needs, as NVIDIA names them.
PARTS = {
    "cublas": ("cublas_v2.h", ("cublas", "cublasLt")),
    "cufft": ("cufft.h", ("cufft",)),
    "curand": ("curand.h", ("curand",)),
    "cusparse": ("cusparse.h", ("cusparse",)),
    "nvjitlink": ("nvJitLink.h", ("nvJitLink",)),
    "nvrtc": ("nvrtc.h", ("nvrtc",)),
}
_DRIVER = """
#include <unistd.h>
int cuInit(unsigned flags) {{ {wait}; return {error}; }}
int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}
int cuDeviceGet(int *device, int ordinal) {{ *device = ordinal; return 0; }}
int cuDeviceGetAttribute(int *value, int attribute, int device) {{
    static int cards[][2] = {{ {cards} {{0, 0}} }};
    *value = cards[device][attribute - 75];
    return 0;
}}
"""


def make_driver(
    folder: Path,
    version: int = 13000,
    cards: Sequence[tuple[int, int]] = ((9, 0),),
    error: int = 0,
    wait: str = "",
) -> Path:
    """Compile `libcuda.so.1` into a folder, for LD_LIBRARY_PATH; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = "".join(f"{{{major}, {minor}}}," for major, minor in cards)
    source = folder / "driver.c"
    source.write_text(
        _DRIVER.format(wait=wait, error=error, version=version, count=len(cards), cards=listed)
    )
    subprocess.run(
        ["g++", "-x", "c", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True
    )
    return folder


def make_toolkit(
    root: Path, version: int = 12020, cudnn: int | None = None, *, parts: Iterable[str] = ()
) -> Path:
    """A folder that looks like a CUDA toolkit; returns its nvcc."""
    nvcc, include, library = root / "bin" / "nvcc", root / "include", root / "lib64"
    for folder in (nvcc.parent, include / "crt", include / "cub", library):
        folder.mkdir(parents=True)
    nvcc.write_text('#!/bin/sh\necho "real nvcc" "$@"\n')
    nvcc.chmod(0o755)
    (include / "cuda.h").write_text(f"#ifndef A\n#define CUDA_VERSION {version}\n")
    (include / "cuda_runtime.h").touch()
    (include / "crt" / "host_config.h").touch()
    (library / "libcudart.so").write_text("runtime")
    for part in parts:
        header, names = PARTS[part]
        (include / header).touch()
        for name in names:
            (library / f"lib{name}.so").touch()
    if cudnn is not None:
        make_cudnn(include, library, cudnn, plain=True)
    return nvcc


def make_packages(site: Path, major: int = 13, cudnn: int | None = 9, *, nvcc: bool = True) -> Path:
    """What pip's packages of CUDA 13 leave in a site folder; returns the folder."""
    home = site / "nvidia" / f"cu{major}"
    (home / "lib").mkdir(parents=True)
    (home / "include" / "cccl" / "cub").mkdir(parents=True)
    (home / "include" / "crt").mkdir()
    (home / "include" / "crt" / "common_functions.h").touch()
    for header, names in PARTS.values():
        (home / "include" / header).touch()
        for name in names:
            (home / "lib" / f"lib{name}.so.{major}").write_text(name)
    if nvcc:
        (home / "bin").mkdir()
        (home / "bin" / "nvcc").write_text('#!/bin/sh\necho "packaged nvcc" "$@"\n')
        (home / "bin" / "nvcc").chmod(0o755)
        (home / "include" / "cuda.h").write_text(f"#define CUDA_VERSION {major}000\n")
        (home / "include" / "cuda_runtime.h").touch()
        (home / "lib" / f"libcudart.so.{major}").touch()
    if cudnn is not None:
        folder = site / "nvidia" / "cudnn"
        make_cudnn(folder / "include", folder / "lib", cudnn)
        (site / f"nvidia_cudnn_cu{major}-{cudnn}.1.0.dist-info").mkdir()
    return site


def make_cudnn(include: Path, library: Path, major: int, *, plain: bool = False) -> None:
    """Headers and libraries of a cuDNN; `plain`: also under the short name."""
    include.mkdir(parents=True, exist_ok=True)
    library.mkdir(parents=True, exist_ok=True)
    (include / "cudnn.h").touch()
    (include / "cudnn_version.h").write_text(f"#define CUDNN_MAJOR {major}\n")
    parts = ("", "_graph", "_ops", "_cnn") if major >= 9 else ("", "_ops_infer", "_cnn_infer")
    for part in parts:
        (library / f"libcudnn{part}.so.{major}").write_text(f"cudnn {major}")
        if plain:
            (library / f"libcudnn{part}.so").write_text(f"cudnn {major}")


def make_jittor(site: Path, files: dict[str, str], version: str = "1.3.11.0") -> str:
    """Packages with a RECORD as pip writes it; returns the digest of what would be copied."""
    rows = []
    for name, text in {"jittor/__init__.py": "", **files}.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
        rows.append(f"{name},sha256={digest.rstrip(b'=').decode()}")
    record = site / f"jittor-{version}.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    record.write_text("".join(f"{row},1\n" for row in rows) + "jittor/__init__.pyc,,\n")
    return hashlib.sha256("".join(f"{row}\n" for row in sorted(rows)).encode()).hexdigest()
