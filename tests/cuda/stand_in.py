"""A CUDA folder whose libraries are stand-ins: one sm_90 device, on a machine without any.

Every function that a real library exports is there, under its version, and returns 0; some are
written by hand (`cudart.c`, `cudnn.c`). So Jittor builds and loads what it would on a GPU, with the
real compiler and the real headers, and runs graphs whose kernels are never launched. Their values
mean nothing: only that something does not compile or load is to be learnt.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
#: Libraries that Jittor loads; what is not in the root (NCCL) is left out.
LIBRARIES = (
    "cudart", "cublas", "cublasLt", "cudnn", "cudnn_graph", "cudnn_ops", "cudnn_cnn",
    "cufft", "curand", "cusparse", "nccl",
)  # fmt: skip
BY_HAND = ("cudart", "cudnn")


def build(folder: Path, root: Path) -> None:
    """Fill `folder` like `root`, with stand-ins for its libraries.

    Args:
        folder: Empty.
        root: A root of `jtlightning.runtime.cuda.root`.
    """
    shutil.copytree(root / "include", folder / "include", symlinks=True)
    library = folder / "lib64"
    library.mkdir()
    for name in LIBRARIES:
        real = root / "lib64" / f"lib{name}.so"
        if real.exists():
            stand_in(real, library, folder / "include")
    # nvcc itself links the device's runtime, which is empty where nothing is launched.
    (library / "libcudadevrt.a").symlink_to(root / "lib64" / "libcudadevrt.a")
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    # The root's own script names the root's libraries; the real compiler is in it.
    script = (root / "bin" / "nvcc").read_text(encoding="utf-8")
    nvcc.write_text(script.replace(str(root / "lib64"), f"{folder}/lib64"), encoding="utf-8")
    nvcc.chmod(0o755)


def stand_in(real: Path, library: Path, include: Path) -> Path:
    """Build the stand-in of one library into the folder `library`, with the link to it."""
    name = real.name.removeprefix("lib").removesuffix(".so")
    soname = _output("readelf", "-d", real).partition("SONAME")[2].partition("[")[2].split("]")[0]
    work = library / f".{name}"
    work.mkdir()
    objects, by_hand = _compile_by_hand(name, work, include) if name in BY_HAND else ([], set())
    functions = exported(real)
    lines = [".text"]
    for function in sorted(set(functions) - by_hand):
        lines += [f".globl {function}", f".type {function},@function", f"{function}:"]
        lines += ["xorl %eax, %eax", "ret"]
    lines += ['.section .note.GNU-stack,"",@progbits']
    (work / "zero.s").write_text("\n".join(lines) + "\n")
    by_version: dict[str, list[str]] = {}
    for function, version in functions.items():
        by_version.setdefault(version, []).append(function)
    versions = [
        f"{version} {{ global: {'; '.join(names)}; }};"
        for version, names in by_version.items()
        if version
    ]
    (work / "versions").write_text("\n".join(versions))
    script = [f"-Wl,--version-script={work / 'versions'}"] if versions else []
    built = library / soname
    _run("g++", "-shared", "-o", built, work / "zero.s", *objects, f"-Wl,-soname,{soname}", *script)
    shutil.rmtree(work)
    if real.name != soname:
        (library / real.name).symlink_to(soname)
    return built


def exported(library: Path) -> dict[str, str]:
    """C function that a library exports -> its version, empty where it has none."""
    functions = {}
    for line in _output("nm", "-D", "--defined-only", library.resolve()).splitlines():
        match = re.fullmatch(r"\S+ [TWi] ([A-Za-z_]\w*)(?:@@?(\S+))?", line)
        if match and not match[1].startswith("_Z") and match[1] not in ("_init", "_fini"):
            functions[match[1]] = match[2] or ""
    return functions


def _compile_by_hand(name: str, work: Path, include: Path) -> tuple[list[Path], set[str]]:
    built = work / "by_hand.o"
    source = HERE / f"{name}.c"
    _run("gcc", "-O1", "-fPIC", "-w", "-I", include, "-c", source, "-o", built)
    names = re.findall(r" T (\w+)", _output("nm", built))
    return [built], set(names)


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True)


def _output(*command: object) -> str:
    return subprocess.check_output(list(map(str, command)), text=True)
