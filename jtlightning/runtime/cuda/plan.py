"""The steps to a CUDA build in turn, each with what was found and what mends it."""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path

from jtlightning.runtime import store, toolchain
from jtlightning.runtime.cuda import (
    DEVICE_STEP,
    JITTOR_STEP,
    Choice,
    Step,
    driver,
    root,
    toolkits,
)
from jtlightning.runtime.jittor_copy import patch

TYPE_CHECKING = False  # as in runtime/__init__: typing is not imported for this
if TYPE_CHECKING:
    from jtlightning.runtime.cuda.driver import Driver
    from jtlightning.runtime.cuda.toolkits import Toolkit

#: From this version of CUDA or cuDNN on Jittor has to be changed.
CHANGED_FROM_CUDA, CHANGED_FROM_CUDNN = 13, 9
OLDEST_CUDNN = 8
#: Oldest card (compute capability) that a version of CUDA still compiles for.
OLDEST_CARD = {11: (3, 5), 12: (5, 0), 13: (7, 5)}
#: Newest card that Jittor compiles for where it is not changed.
NEWEST_CARD = (9, 0)
INSTALL_13 = f"{sys.executable} -m pip install 'segtasks[cuda13]'"
INSTALL_CUDNN_12 = f"{sys.executable} -m pip install nvidia-cudnn-cu12==8.9.7.29"
DRIVER_13 = "580"

Fit = namedtuple("Fit", "toolkit cudnn links changed")
Fit.__doc__ = """A compiler that can be used.

`cudnn`: its major version; `links`: those of the root, or None where the toolkit is used as it
is; `changed`: whether Jittor has to be changed.
"""


class StepError(Exception):
    """A step failed; carries it."""

    def __init__(self, name: str, found: str, remedy: str) -> None:
        super().__init__(found)
        self.step = Step(name, False, found, remedy)


def choose() -> Choice:
    """Take the steps, up to the first that fails."""
    steps = [Step(DEVICE_STEP, True, "there is one", "")]
    try:
        return _take(steps)
    except StepError as stop:
        return Choice("", stop.step.found, "", {}, [*steps, stop.step])


def _take(steps: list[Step]) -> Choice:
    offered = _ask_driver()
    cards = ", ".join(f"sm_{major}{minor}" for major, minor in offered.cards)
    found = f"up to CUDA {_dotted(offered.cuda)}, {len(offered.cards)} device(s): {cards}"
    steps.append(Step("NVIDIA driver", True, found, ""))
    usable = _first_that_fits(offered)
    version = _dotted(usable.toolkit.version)
    steps.append(Step("CUDA toolkit", True, f"CUDA {version} at {usable.toolkit.root}", ""))
    steps.append(Step("cuDNN", True, f"cuDNN {usable.cudnn}", ""))
    nvcc, site, variables = str(usable.toolkit.nvcc), "", {}
    try:
        if usable.links is not None:
            folder = root.assemble(_cache(), usable.toolkit, usable.links)
            steps.append(Step("CUDA folder", True, str(folder), ""))
            nvcc, variables = str(folder / "bin" / "nvcc"), _nccl(folder, usable.links)
        if usable.changed:
            site = str(_change_jittor())
            steps.append(Step(JITTOR_STEP, True, site, ""))
    except OSError as error:
        raise StepError(
            "CUDA folder", f"{_cache()} cannot be written: {error}",
            "free some space there, or set JITTOR_HOME to a folder that can be written",
        ) from error  # fmt: skip
    reason = f"{len(offered.cards)} device(s), CUDA {version} with cuDNN {usable.cudnn}"
    return Choice(nvcc, reason + (", Jittor changed" if site else ""), site, variables, steps)


def fit(toolkit: Toolkit, offered: Driver) -> Fit | str:
    """How a compiler can be used, or why it cannot."""
    major = toolkit.version[0]
    name = f"CUDA {_dotted(toolkit.version)} at {toolkit.root}"
    if major > offered.cuda[0]:
        return f"{name} is too new for the driver, which runs CUDA {_dotted(offered.cuda)}"
    oldest = OLDEST_CARD.get(major, OLDEST_CARD[max(OLDEST_CARD)])
    if min(offered.cards) < oldest:
        return f"{name} is too new for a card of sm_{_joined(min(offered.cards))}"
    if major < CHANGED_FROM_CUDA and max(offered.cards) > NEWEST_CARD:
        return f"{name} is too old for a card of sm_{_joined(max(offered.cards))}"
    plain = toolkits.plain_cudnn(toolkit)
    if major < CHANGED_FROM_CUDA and plain == OLDEST_CUDNN:
        return Fit(toolkit, plain, None, False)
    sources = toolkits.parts(toolkit)
    source, cudnn = root.cudnn_source(sources) or (None, None)
    links = root.links(sources, source)
    missing = root.missing(links, major, cudnn)
    if missing or cudnn is None:
        return f"{name} lacks {', '.join(missing)}"
    if cudnn < OLDEST_CUDNN:
        return f"{name} has only cuDNN {cudnn}, which is older than {OLDEST_CUDNN}"
    changed = major >= CHANGED_FROM_CUDA or cudnn >= CHANGED_FROM_CUDNN
    return Fit(toolkit, cudnn, links, changed)


def _ask_driver() -> Driver:
    try:
        return driver.ask()
    except driver.DriverError as error:
        raise StepError("NVIDIA driver", str(error), error.remedy) from error


def _first_that_fits(offered: Driver) -> Fit:
    tried = [(toolkit, fit(toolkit, offered)) for toolkit in toolkits.find()]
    for _, result in tried:
        if isinstance(result, Fit):
            return result
    reasons = [str(result) for _, result in tried]
    found = "; ".join(reasons) or "no nvcc with its headers and libcudart"
    only_cudnn_12 = any(
        toolkit.version[0] == 12 and reason.endswith("lacks cuDNN")
        for (toolkit, _), reason in zip(tried, reasons, strict=True)
    )
    raise StepError("CUDA toolkit", found, _remedy(offered, only_cudnn_12=only_cudnn_12))


def _remedy(offered: Driver, *, only_cudnn_12: bool) -> str:
    if offered.cuda[0] >= 13 and min(offered.cards) >= OLDEST_CARD[13]:
        return INSTALL_13
    if only_cudnn_12:
        return INSTALL_CUDNN_12
    if min(offered.cards) < OLDEST_CARD[13]:
        return f"install NVIDIA's CUDA 12 toolkit, then: {INSTALL_CUDNN_12}"
    return f"update the NVIDIA driver to {DRIVER_13} or later, then: {INSTALL_13}"


def _change_jittor() -> Path:
    try:
        return patch.make(_cache())
    except patch.OtherJittorError as error:
        found = f"{error}; with this CUDA Jittor works only changed"
        raise StepError(JITTOR_STEP, found, error.remedy) from error


def _nccl(folder: Path, links: dict[str, Path]) -> dict[str, str]:
    """Without these Jittor downloads a NCCL that is too old for current cards."""
    if "include/nccl.h" not in links or "lib64/libnccl.so" not in links:
        return {}
    return {
        "nccl_include_path": str(folder / "include"),
        "nccl_lib_path": str(folder / "lib64"),
    }


def _cache() -> Path:
    return store.cache(toolchain.jittor_home())


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _joined(version: tuple[int, ...]) -> str:
    return "".join(map(str, version))
