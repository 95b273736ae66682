"""Let Jittor use an NVIDIA GPU, where there is one and everything that it takes.

Any `nvcc` on the PATH switches Jittor's CUDA build on, which then aborts without a driver, or with
a wrapper script that stands beside no libraries. And Jittor 1.3.11 cannot be built with CUDA 13 or
cuDNN 9. So the choice is made here, before Jittor is imported: the driver is asked (`driver`), a
compiler found (`toolkits`), its folders, those of pip's packages and of the system joined into one
(`root`). `plan` does them in turn, and makes sure that Jittor can be changed where it has to be
(`jtlightning.runtime.jittor_copy`).

All that is written lies in the folder `jtlightning` of Jittor's cache. Deleting it undoes
everything.

Without a device this module lists one folder, and nothing else is imported.
"""

from __future__ import annotations

import os
from collections import namedtuple

Step = namedtuple("Step", "name ok found remedy")
Step.__doc__ = """One step on the way to the GPU.

`found` says what was there; `remedy`, empty where `ok`, is the command or act that mends it.
"""
Choice = namedtuple("Choice", "nvcc reason site variables steps")
Choice.__doc__ = """How Jittor is to be built.

`nvcc`: value for `nvcc_path`, empty for a CPU build; `reason`: why, in a sentence; `site`: folder
of the changed Jittor, to stand first on the path, or empty; `variables`: further variables that
Jittor reads; `steps`: what was looked at, up to the first step that failed.
"""

DEVICE_STEP = "NVIDIA device"
JITTOR_STEP = "Changed Jittor"


def choose() -> Choice:
    """Choose between a CUDA and a CPU build, and write what a CUDA build needs."""
    if not has_device_file():
        reason = "no NVIDIA device on this machine"
        remedy = "use a machine with an NVIDIA GPU; start a container with: --gpus all"
        return Choice("", reason, "", {}, [Step(DEVICE_STEP, False, reason, remedy)])
    from jtlightning.runtime.cuda.plan import choose as take_the_steps

    return take_the_steps()


def has_device_file(devices: str = "/dev") -> bool:
    """Whether the kernel shows an NVIDIA device (`/dev/nvidia0`, or `/dev/dxg` under WSL)."""
    return any(
        name == "dxg" or (name.startswith("nvidia") and name[6:].isdecimal())
        for name in os.listdir(devices)  # noqa: PTH208 - the first thing done, in every process
    )
