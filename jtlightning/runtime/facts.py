"""The facts that `segtasks doctor` shows."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from jtlightning.runtime import checks, cuda, environment, toolchain
from jtlightning.runtime.cuda import toolkits
from jtlightning.runtime.jittor_copy import handover

# Every variable that Jittor 1.3.11 reads when it is imported and that changes what it builds.
VARIABLES = (
    "JITTOR_HOME", "cache_name", "cc_path", "cc_flags", "kernel_flags", "debug", "enable_lto",
    "python_config_path", "use_mkl", "mkl_include_path", "mkl_lib_path", "conv_opt",
    "nvcc_path", "nvcc_flags", "cuda_arch", "CUDA_VISIBLE_DEVICES", "JTCUDA_VERSION",
    "use_cutt", "use_cutlass", "use_nccl", "nccl_include_path", "nccl_lib_path",
    "use_mpi", "mpicc_path", "FIX_TORCH_ERROR", "DISABLE_MULTIPROCESSING",
    "use_parallel_op_compiler", "gdb_path", "log_silent", "log_v", environment.VERBOSE,
    handover.VARIABLE,
)  # fmt: skip
PACKAGES = ("jittor", "numpy", "opencv-python-headless", "safetensors", "tensorboardX", "wandb")


class Variable(NamedTuple):
    """An environment variable that Jittor reads, and whether the user or `prepare` set it."""

    name: str
    value: str
    set_by: str


class Device(NamedTuple):
    """What Jittor will run on (`cpu` or `cuda`), why, and the parts that decided it."""

    name: str
    reason: str
    driver: str | None
    toolkits: list[str]


class Cache(NamedTuple):
    """Jittor's folder of compiled code: where, how many bytes and how many kernels."""

    folder: str
    size: int
    kernels: int
    remembered_home: str | None


class Report(NamedTuple):
    """Everything that `doctor` prints; `packages` maps a name to its version or None."""

    findings: list[checks.Finding]
    device: Device
    cache: Cache
    variables: list[Variable]
    packages: dict[str, str | None]

    @property
    def can_train(self) -> bool:
        """Whether nothing is missing that training needs."""
        return all(finding.level != "error" for finding in self.findings)


def report(*, gpu: bool = False) -> Report:
    """Look at the machine; takes a fraction of a second, more with a large kernel cache.

    Args:
        gpu: Count it as an error that a GPU cannot be used.
    """
    choice = _choice()
    return Report(
        findings=[*checks.check(), *checks.check_gpu(choice, required=gpu)],
        device=_device(choice),
        cache=_cache(),
        variables=[
            Variable(name, os.environ[name], _setter(name))
            for name in VARIABLES
            if name in os.environ
        ],
        packages={name: _version(name) for name in PACKAGES},
    )


def _choice() -> cuda.Choice:
    if "nvcc_path" not in os.environ or environment.set_by_us("nvcc_path"):
        return cuda.choose()
    nvcc = os.environ["nvcc_path"]
    found = f"nvcc_path was set by you to {nvcc!r}, so no other is looked for"
    if nvcc:
        return cuda.Choice(nvcc, found, "", {}, [cuda.Step("CUDA toolkit", True, found, "")])
    step = cuda.Step(cuda.DEVICE_STEP, False, found, "unset nvcc_path")
    return cuda.Choice("", found, "", {}, [step])


def _device(choice: cuda.Choice) -> Device:
    found = [_describe(toolkit) for toolkit in toolkits.find()]
    return Device("cuda" if choice.nvcc else "cpu", choice.reason, _driver(), found)


def _describe(toolkit: toolkits.Toolkit) -> str:
    version = ".".join(map(str, toolkit.version))
    return f"CUDA {version} at {toolkit.root}"


def _driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    return match[1] if match else "unknown version"


def _cache() -> Cache:
    folder = toolchain.jittor_home() / ".cache" / "jittor"
    size = kernels = 0
    for place, _, names in os.walk(folder):
        compiled_here = Path(place).name == "jit"
        for name in names:
            try:
                size += os.lstat(f"{place}/{name}").st_size
            except FileNotFoundError:
                continue  # a compilation is under way and this was one of its temporary files
            kernels += compiled_here and name.endswith(".so")
    remembered = toolchain.remembered_home()
    return Cache(str(folder), size, kernels, str(remembered) if remembered else None)


def _setter(name: str) -> str:
    return "jtlightning" if environment.set_by_us(name) else "you"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
