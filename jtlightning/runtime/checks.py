"""What must be there for Jittor to start and to run well, each with the command that mends it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from jtlightning.runtime import cuda, onednn, toolchain
from jtlightning.runtime.jittor_copy import handover, patch

Level = Literal["ok", "note", "warning", "error"]
OLDEST, NEWEST = (3, 10), (3, 12)
SPACE_NEEDED_GB = 2


class Finding(NamedTuple):
    """One thing that was looked at.

    `found` says what is there, `remedy` the command or step that mends it (empty if all is well).
    Level `error`: Jittor cannot start. `warning`: it runs, but slowly or not for long.
    """

    name: str
    level: Level
    found: str
    remedy: str = ""


def check() -> list[Finding]:
    """Look at everything: what `check_toolchain` does, then what costs speed or comfort."""
    return [*check_toolchain(), _jittor(), _onednn(), _variables(), _space()]


def check_gpu(choice: cuda.Choice, *, required: bool) -> list[Finding]:
    """The steps to a CUDA build as findings.

    Without a device there is nothing to mend, unless the GPU is `required`: then a step that
    failed is an error.
    """
    if not required:
        failed: Level = "warning"
        steps = [step for step in choice.steps if step.ok or step.name != cuda.DEVICE_STEP]
    else:
        failed, steps = "error", choice.steps
    return [
        Finding(step.name, "ok" if step.ok else failed, step.found, step.remedy) for step in steps
    ]


def check_toolchain() -> list[Finding]:
    """Look only at what Jittor dies without, in a few milliseconds."""
    return [_python(), _numpy(), _compiler(), _headers(), _folders()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    found = f"{version} at {sys.executable}"
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Finding("Python", "ok", found)
    return Finding(
        "Python", "error", found, "use Python 3.10, 3.11 or 3.12 (Jittor 1.3.11 needs numpy 1)"
    )


def _numpy() -> Finding:
    import numpy  # Jittor imports it as well

    if numpy.__version__.startswith("1."):
        return Finding("NumPy", "ok", numpy.__version__)
    # Jittor reads NumPy 1's structures: with NumPy 2 every array arrives as garbage.
    found = f"{numpy.__version__}, but Jittor 1.3.11 copies arrays wrongly with NumPy 2"
    return Finding("NumPy", "error", found, f"{sys.executable} -m pip install 'numpy<2'")


def _compiler() -> Finding:
    path = toolchain.compiler()
    if path:
        return Finding("C++ compiler", "ok", path)
    if "cc_path" in os.environ:
        found = f"cc_path is set to {os.environ['cc_path']}, which cannot be run"
        return Finding("C++ compiler", "error", found, "unset cc_path, or set it to a g++")
    return Finding("C++ compiler", "error", "no g++ on the PATH", _install("g++", "gcc-c++"))


def _headers() -> Finding:
    header = toolchain.python_header()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    remedy = _install(f"python{version}-dev", f"python{version}-devel")
    if header is None:
        return Finding("Python headers", "error", "no Python.h for this interpreter", remedy)
    if "python_config_path" in os.environ and not Path(os.environ["python_config_path"]).is_file():
        found = f"python_config_path is set to {os.environ['python_config_path']}, not a file"
        return Finding("Python headers", "error", found, "unset python_config_path")
    if toolchain.python_config() is None:
        found = f"{header}, but no python{version}-config that Jittor would find"
        return Finding("Python headers", "error", found, remedy)
    return Finding("Python headers", "ok", str(header))


def _folders() -> Finding:
    folder = toolchain.unwritable_folder()
    if folder is None:
        return Finding("Jittor's folder", "ok", str(toolchain.jittor_home()))
    if folder.is_relative_to(Path.home()) and "JITTOR_HOME" in os.environ:
        remedy = "set HOME to a folder that can be written (Jittor keeps a note there)"
    else:
        remedy = "set JITTOR_HOME (and HOME, if it is read-only) to a folder that can be written"
    return Finding("Jittor's folder", "error", f"{folder} cannot be written", remedy)


def _jittor() -> Finding:
    from importlib import metadata

    try:
        version = metadata.version("jittor")
    except metadata.PackageNotFoundError:
        return Finding(
            "Jittor",
            "error",
            "not installed",
            f"{sys.executable} -m pip install 'jittor==1.3.11.0'",
        )
    site = os.environ.get(handover.VARIABLE)
    if site:
        return Finding("Jittor", "ok", f"{version}, changed in {site}")
    if site == "":
        found = f"{version} as it is, as {handover.VARIABLE} is set to nothing"
        return Finding("Jittor", "note", found, f"unset {handover.VARIABLE}")
    return _why_unchanged(version)


def _why_unchanged(version: str) -> Finding:
    try:
        patch.recorded(patch.find())
    except patch.OtherJittorError as error:
        found = f"{error}: it is used as it is, untested, and may crash while it compiles"
        return Finding("Jittor", "warning", found, error.remedy)
    return Finding(
        "Jittor", "warning", f"{version} as it is: no copy could be made", "see the folder"
    )


def _onednn() -> Finding:
    home = toolchain.jittor_home()
    install = f"{sys.executable} -m pip install {onednn.WHEEL}=={onednn.VERSION}"
    if os.environ.get("mkl_include_path") and os.environ.get("mkl_lib_path"):
        found = "mkl_include_path and mkl_lib_path are set: Jittor 1.3.11 fails on them"
        return Finding("oneDNN", "error", found, "unset mkl_include_path mkl_lib_path")
    if onednn.is_linked(home):
        if os.environ.get("use_mkl", "1") == "1":
            return Finding("oneDNN", "ok", str(onednn.target(home)))
        found = "there, but use_mkl=0: convolutions on the CPU are about 58 times slower"
        return Finding("oneDNN", "warning", found, "unset use_mkl")
    if onednn.find() and toolchain.unwritable_folder():
        return Finding("oneDNN", "warning", "installed, but it cannot be linked", "see the folder")
    slow = "missing: convolutions on the CPU are about 58 times slower"
    return Finding("oneDNN", "warning", slow, install)


def _variables() -> Finding:
    libraries = os.environ.get("LD_LIBRARY_PATH", "")
    if os.environ.get("nvcc_path") and "cuda" in libraries.lower():
        return Finding(
            "LD_LIBRARY_PATH", "warning", f"{libraries} may give Jittor the wrong CUDA libraries",
            "unset LD_LIBRARY_PATH",
        )  # fmt: skip
    if os.environ.get("use_mkl") == "1" and not onednn.is_linked(toolchain.jittor_home()):
        return Finding("use_mkl", "warning", "set to 1: Jittor downloads oneDNN", "unset use_mkl")
    return Finding("Variables", "ok", "no setting that is known to hurt")


def _space() -> Finding:
    folder = toolchain.jittor_home()
    while not folder.exists():
        folder = folder.parent
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < SPACE_NEEDED_GB:
        return Finding(
            "Disk space", "warning", f"{free_gb:.1f} GB free at {folder} for compiled kernels",
            "free some space, or set JITTOR_HOME to a folder on a larger disk",
        )  # fmt: skip
    return Finding("Disk space", "ok", f"{free_gb:.0f} GB free at {folder}")


def _install(debian: str, fedora: str) -> str:
    """The command that installs a system package, for the package manager that is there."""
    root = "" if os.geteuid() == 0 else "sudo "
    if shutil.which("dnf"):
        return f"{root}dnf install {fedora}"
    return f"{root}apt-get install {debian}"
