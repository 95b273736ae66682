"""What two machines must have in common for the kernels of one to be of use on the other."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sysconfig
from importlib import metadata

from jtlightning.runtime import toolchain
from jtlightning.runtime.cuda import driver

_TARGET = re.compile(r"^\s*(-m\S+?)(?:=\s*(\S*)|\s+\[(enabled|disabled)\])\s*$")


def describe() -> dict[str, str]:
    """The facts by name, as short texts.

    The processor's are those that `-march=native` stands for: Jittor compiles with it. Starts the
    compiler, and asks the NVIDIA driver where CUDA is in use.

    Raises:
        OSError: There is no C++ compiler.
    """
    compiler = toolchain.compiler() or "g++"
    return {
        "jittor": metadata.version("jittor"),
        "python": str(sysconfig.get_config_var("SOABI")),
        "compiler": _run(compiler, "--version").partition("\n")[0],
        "libc": " ".join(platform.libc_ver()),
        "processor": processor(_run(compiler, "-march=native", "-Q", "--help=target")),
        "cuda": _cuda(),
    }


def processor(answer: str) -> str:
    """The architecture and instruction sets in the compiler's answer about `-march=native`."""
    found = [match.groups() for line in answer.splitlines() if (match := _TARGET.match(line))]
    architecture = next((value for name, value, _ in found if name == "-march"), "unknown")
    return " ".join([architecture or "unknown", *sorted(n for n, _, s in found if s == "enabled")])


def differences(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """One phrase for each fact that differs; of long ones only the words that differ."""
    found = []
    for name in here:
        mine, other = here[name], there.get(name, "unknown")
        if mine == other:
            continue
        if name == "processor":
            mine, other = _only(mine, other), _only(other, mine)
        found.append(f"{name}: {mine or 'less'} here, {other or 'less'} there")
    return found


def _only(text: str, other: str) -> str:
    known = set(other.split())
    return " ".join(word for word in text.split() if word not in known)


def _cuda() -> str:
    nvcc = os.environ.get("nvcc_path")
    if not nvcc:
        return "none"
    versions = re.findall(r"\d+\.\d+\.\d+", _run(nvcc, "--version")) or ["unknown"]
    try:
        cards = sorted({f"sm_{major}{minor}" for major, minor in driver.ask().cards})
    except driver.DriverError as error:
        return f"{versions[-1]}, no card ({error})"
    return " ".join([versions[-1], *cards])


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout
