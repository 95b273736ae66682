"""Ask the NVIDIA driver what it can run, before Jittor does and aborts."""

from __future__ import annotations

import os
import sys
from collections import namedtuple

Driver = namedtuple("Driver", "cuda cards")
Driver.__doc__ = """What the driver offers.

`cuda`: the newest CUDA that it runs, (major, minor); `cards`: compute capability of each visible
device, (major, minor).
"""

# Run apart: cuInit fixes CUDA_VISIBLE_DEVICES for good and spoils CUDA in forked children.
# 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_PROBE = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def ask(name, *arguments):
    value = ctypes.c_int(0)
    code = getattr(cuda, name)(ctypes.byref(value), *arguments)
    if code:
        sys.exit(f"{name} answers with error {code}")
    return value.value
code = cuda.cuInit(0)
if code:
    sys.exit(f"cuInit answers with error {code}")
print(ask("cuDriverGetVersion"))
for ordinal in range(ask("cuDeviceGetCount")):
    device = ask("cuDeviceGet", ordinal)
    print(*(ask("cuDeviceGetAttribute", attribute, device) for attribute in (75, 76)))
"""
_REMEDIES = {
    "libcuda": "install the NVIDIA driver; start a container with: --gpus all",
    "error 100": "look at nvidia-smi: does it list the device?",
    "error 803": "restart the machine: the driver was updated while it ran",
}


class DriverError(RuntimeError):
    """The driver is missing or has no device; `remedy` says what mends it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def ask(timeout_s: float = 20.0) -> Driver:
    """Ask, in another process, for the driver's version and devices.

    Raises:
        DriverError: There is no driver, it does not answer, or it shows no device.
    """
    import subprocess  # rarely needed, and slow to import for `prepare`

    try:
        result = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROBE],
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        message = f"the NVIDIA driver did not answer within {timeout_s:.0f} s"
        raise DriverError(message, "restart the machine, or look at nvidia-smi") from None
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = next((text for key, text in _REMEDIES.items() if key in last), "")
        raise DriverError(
            f"the NVIDIA driver cannot be used: {last}", remedy or "look at nvidia-smi"
        )
    version, *cards = (tuple(map(int, line.split())) for line in result.stdout.splitlines())
    if not cards:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            message = f"CUDA_VISIBLE_DEVICES={visible!r} leaves no device"
            raise DriverError(message, "unset CUDA_VISIBLE_DEVICES")
        raise DriverError("the NVIDIA driver shows no device", "look at nvidia-smi")
    number = version[0]
    return Driver((number // 1000, number % 1000 // 10), cards)
