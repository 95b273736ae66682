"""Decide whether Jittor is built for CUDA: only with a device, a toolkit and a cuDNN that fit.

Any `nvcc` on the PATH switches Jittor's CUDA build on, which then dies without a driver, or with
a wrapper script that stands beside no libraries. So the choice is made here.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

# namedtuple: typing and dataclasses would take longer to import than `prepare` may run.
Toolkit = namedtuple("Toolkit", "nvcc root include version cudnn")
Toolkit.__doc__ = """A CUDA toolkit in the layout that Jittor expects.

`nvcc` and `root` are paths; `include` is the folder of `cuda.h`; `version` is (major, minor) and
`cudnn` the major version of the cuDNN that Jittor would find with it, or None.
"""
Choice = namedtuple("Choice", "nvcc reason")
Choice.__doc__ = (
    """`nvcc`: value for `nvcc_path`, empty for a CPU build; `reason`: why, in a sentence."""
)

NEWEST_TOOLKIT = 12
CUDNN = 8

# Run apart: cuInit fixes CUDA_VISIBLE_DEVICES for good and spoils CUDA in forked children.
_COUNT_DEVICES = """
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int(0)
code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
print(-code if code else count.value)
"""


def choose() -> Choice:
    """Choose between a CUDA and a CPU build; without an NVIDIA device this only lists a folder."""
    if not has_device_file():
        return Choice("", "no NVIDIA device on this machine")
    toolkits = find_toolkits()
    if not toolkits:
        return Choice("", "an NVIDIA device, but no CUDA toolkit with nvcc, headers and libcudart")
    reasons = [unusable(toolkit) for toolkit in toolkits]
    if None not in reasons:
        return Choice("", reasons[0])
    toolkit = toolkits[reasons.index(None)]
    devices, problem = count_devices()
    if devices < 1:
        return Choice("", problem)
    version = ".".join(map(str, toolkit.version))
    return Choice(
        str(toolkit.nvcc), f"{devices} device(s), CUDA {version} with cuDNN {toolkit.cudnn}"
    )


def has_device_file(devices: Path = Path("/dev")) -> bool:
    """Whether the kernel shows an NVIDIA device (`/dev/nvidia0`, or `/dev/dxg` under WSL)."""
    return (devices / "dxg").exists() or any(
        re.fullmatch(r"nvidia\d+", path.name) for path in devices.iterdir()
    )


def unusable(toolkit: Toolkit) -> str | None:
    """Why Jittor 1.3.11 cannot be built with this toolkit, or None.

    Patches that make newer versions work would be asked here.
    """
    major = toolkit.version[0]
    if major > NEWEST_TOOLKIT:
        return (
            f"CUDA {major} at {toolkit.root} is newer than Jittor 1.3.11 can use "
            f"(up to {NEWEST_TOOLKIT})"
        )
    if toolkit.cudnn is None:
        return f"no cuDNN {CUDNN} with headers for the CUDA {major} toolkit at {toolkit.root}"
    if toolkit.cudnn != CUDNN:
        return f"Jittor 1.3.11 needs cuDNN {CUDNN}, found version {toolkit.cudnn}"
    return None


def find_toolkits() -> list[Toolkit]:
    """Every toolkit with compiler, headers and runtime library where Jittor searches for them."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    homes += ["/usr/local/cuda", "/usr", "/opt/cuda"]
    candidates = [shutil.which("nvcc"), *(f"{home}/bin/nvcc" for home in homes if home)]
    found: dict[Path, Toolkit] = {}
    for candidate in candidates:
        toolkit = read_toolkit(Path(candidate)) if candidate else None
        if toolkit is not None:
            found.setdefault(toolkit.root, toolkit)
    return list(found.values())


def read_toolkit(nvcc: Path) -> Toolkit | None:
    """Describe the toolkit that belongs to a compiler, or None where something is missing.

    Jittor follows links from `nvcc`, but not a script that calls another one: `../include` and
    `../lib64` must be the toolkit's.
    """
    if not os.access(nvcc, os.X_OK):
        return None
    root = Path(os.path.realpath(nvcc)).parent.parent
    machine = os.uname().machine
    headers = [root / "include", root / "targets" / f"{machine}-linux" / "include"]
    libraries = [root / "lib64", root / "targets" / f"{machine}-linux" / "lib"]
    if str(nvcc) == "/usr/bin/nvcc":
        libraries.append(Path("/usr/lib", f"{machine}-linux-gnu"))
    include = next((folder for folder in headers if (folder / "cuda.h").is_file()), None)
    if include is None or not any((folder / "libcudart.so").exists() for folder in libraries):
        return None
    number = _define(include / "cuda.h", "CUDA_VERSION")
    if number is None:
        return None
    system = Path("/usr/lib", f"{machine}-linux-gnu")
    has_cudnn = any((folder / "libcudnn.so").exists() for folder in (*libraries, system))
    cudnn = _cudnn_major([*headers, Path("/usr/include")]) if has_cudnn else None
    return Toolkit(nvcc, root, include, (number // 1000, number % 1000 // 10), cudnn)


def count_devices(timeout_s: float = 20.0) -> tuple[int, str]:
    """Ask the driver, in another process, for the number of devices; 0 comes with the reason."""
    import subprocess  # rarely needed, and slow to import for `prepare`

    try:
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _COUNT_DEVICES],
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 0, f"the NVIDIA driver did not answer within {timeout_s:.0f} s"
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return 0, f"the NVIDIA driver cannot be used: {last}"
    count = int(result.stdout)
    if count < 0:
        return 0, f"the NVIDIA driver answers with CUDA error {-count}"
    return count, "" if count else "the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES?)"


def _cudnn_major(folders: list[Path]) -> int | None:
    for folder in folders:
        for name in ("cudnn_version.h", "cudnn.h"):
            major = _define(folder / name, "CUDNN_MAJOR")
            if major is not None:
                return major
    return None


def _define(header: Path, name: str) -> int | None:
    """The number that a header gives to a macro, or None."""
    try:
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(rf"^\s*#\s*define\s+{name}\s+(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else None
