"""Set the variables that Jittor reads at its import, and link oneDNN where it looks for it.

A variable that the user has set is never changed, but for `PYTHONPATH`, which a changed Jittor is
put in front of. The names of those set here are kept in `JTLIGHTNING_PREPARED`, so that child
processes and `segtasks doctor` can tell both apart.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.machinery import ModuleSpec

from jtlightning.runtime import cuda, onednn, toolchain
from jtlightning.runtime.jittor_copy import handover

TYPE_CHECKING = False  # as in __init__: typing is not imported for this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

PREPARED = "JTLIGHTNING_PREPARED"
_JUPYTER = "JPY_PARENT_PID"
VERBOSE = "SEGTASKS_VERBOSE"
#: What Jittor, too, takes for the sign that it is one of several processes.
STARTED_BY_MPIRUN = "OMPI_COMM_WORLD_SIZE"


class JittorNotReadyError(ImportError):
    """Jittor would fail while it is imported; the message says what is missing and the remedy."""


def prepare() -> None:
    """Make `import jittor` work: offline, with oneDNN, and with no CUDA where CUDA cannot run.

    Repeated calls change nothing. When Jittor is imported already it is too late to help: then
    this only warns, if Jittor runs without oneDNN.
    """
    if "jittor" in sys.modules:
        _warn_if_slow()
        return
    mine = set(os.environ.get(PREPARED, "").split())
    if mine & {"nvcc_path", handover.VARIABLE} and handover.is_stale():
        _forget_folders(mine)
    if STARTED_BY_MPIRUN in os.environ and "use_mpi" in mine:
        # Set by the process that started mpirun, unless mpirun was given another environment.
        os.environ.pop("use_mpi", None)
        mine.discard("use_mpi")
    for name, value in _values().items():
        if name not in os.environ:
            os.environ[name] = value
            mine.add(name)
    os.environ[PREPARED] = " ".join(sorted(mine))
    if os.environ.get(handover.VARIABLE):
        handover.put_first(os.environ[handover.VARIABLE])
    if not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


def set_by_us(name: str) -> bool:
    """Whether `prepare` chose the value of this variable, in this process or a parent."""
    return name in os.environ.get(PREPARED, "").split()


def wants_verbose() -> bool:
    """Whether the user asked for Jittor's own output."""
    return bool(os.environ.get(VERBOSE)) or os.environ.get("log_v", "0") not in ("", "0")


def _values() -> dict[str, str]:
    """Our value for every variable, whether the user has set it or not."""
    values = _defaults()
    if "nvcc_path" not in os.environ:
        values |= _cuda()
    if handover.VARIABLE not in {*values, *os.environ}:
        values |= _changed_jittor()
    if not {"nccl_include_path", "nccl_lib_path"} <= {*values, *os.environ}:
        values["use_nccl"] = "0"  # downloads NCCL 2.8.4, as the others do
    return values


def _cuda() -> dict[str, str]:
    """Our values for what decides between CUDA and the CPU."""
    choice = cuda.choose()
    failed = [step for step in choice.steps if not step.ok and step.name == cuda.JITTOR_STEP]
    for step in failed:
        # Everything else is there, so CUDA is wanted.
        warnings.warn(
            f"Jittor will use the CPU only: {step.found}; run: {step.remedy}",
            RuntimeWarning,
            stacklevel=4,
        )
    values = {"nvcc_path": choice.nvcc, **choice.variables}
    return {**values, handover.VARIABLE: choice.site} if choice.site else values


def _changed_jittor() -> dict[str, str]:
    """The folder of the changed Jittor, or nothing where the installed one is used as it is."""
    from jtlightning.runtime import store
    from jtlightning.runtime.jittor_copy import patch

    try:
        return {handover.VARIABLE: str(patch.make(store.cache(toolchain.jittor_home())))}
    except (patch.OtherJittorError, OSError):
        return {}  # `segtasks doctor` tells which, and the guard if nothing can be written


def _forget_folders(mine: set[str]) -> None:
    """Have them made again: what a parent process made has been deleted."""
    for name in mine & {"nvcc_path", "nccl_include_path", "nccl_lib_path"}:
        del os.environ[name]
        mine.discard(name)
    if handover.VARIABLE in mine:
        mine.discard(handover.VARIABLE)
        handover.take_back()


def _defaults() -> dict[str, str]:
    """Our value for every other variable, as Jittor 1.3.11 reads them."""
    values = {
        # Otherwise `import jittor` imports torch wherever it is installed.
        "FIX_TORCH_ERROR": "0",
        # Otherwise the cache is named after the git branch that the virtual environment lies in,
        # and everything is compiled again on every branch.
        "cache_name": "default",
        # At a crash Jittor would print gdb's answer to stdout; without, its own trace to stderr.
        "gdb_path": "",
        # Threads that compile kernels. Jittor would start one per 3 GB of memory, up to 16; more
        # than cores do not compile faster.
        "use_parallel_op_compiler": str(min(os.cpu_count() or 1, 16)),
        # Each of these downloads an archive at the import of a CUDA build.
        "use_cutlass": "0",
        "use_cutt": "0",
    }
    if STARTED_BY_MPIRUN not in os.environ:
        # Otherwise MPI's wrapper is compiled and loaded wherever mpicc is found.
        values["use_mpi"] = "0"
    if not wants_verbose() and "log_v" not in os.environ:
        values["log_silent"] = "1"
    config = toolchain.missing_python_config(toolchain.jittor_home())
    if config:
        values["python_config_path"] = config
    if os.environ.get("use_mkl", "1") == "1" and not _link_onednn():
        values["use_mkl"] = "0"
    return values


def _link_onednn() -> bool:
    """Link oneDNN; without it Jittor must not try, because it would download an archive."""
    try:
        onednn.link(toolchain.jittor_home())
    except onednn.OneDNNMissingError as error:
        if "use_mkl" not in os.environ:
            warnings.warn(str(error), RuntimeWarning, stacklevel=4)
        return False
    except OSError:
        # Nothing can be written there: the guard says so when Jittor is imported.
        return True
    return True


def _warn_if_slow() -> None:
    extern = sys.modules.get("jittor.compile_extern")
    if extern is not None and not getattr(extern, "use_mkl", True):
        warnings.warn(
            "jittor was imported before jtlightning and runs without oneDNN, so convolutions on "
            "the CPU are about 58 times slower; import jtlightning first",
            RuntimeWarning,
            stacklevel=3,
        )


class _Guard:
    """Stands first in `sys.meta_path`: lets Jittor in only if it can work."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise what hinders Jittor, or leave the search to the finders that follow."""
        if name != "jittor":
            return None
        from jtlightning.runtime import checks

        problems = [finding for finding in checks.check_toolchain() if finding.level == "error"]
        if problems:
            lines = [f"  {item.name}: {item.found}\n    {item.remedy}" for item in problems]
            raise JittorNotReadyError(
                "Jittor cannot be imported on this machine yet:\n" + "\n".join(lines), name=name
            )
        toolchain.note_home()
        _examine_floats()
        spec = next(filter(None, (f.find_spec(name, path, target) for f in _others(self))), None)
        if spec is not None and spec.loader is not None:
            _have_it_imported_our_way(spec.loader)
        return spec


def _others(guard: _Guard) -> list[Any]:
    return [f for f in sys.meta_path if f is not guard and hasattr(f, "find_spec")]


def _have_it_imported_our_way(loader: Any) -> None:
    """Have Jittor think, while it is imported, that it runs in Jupyter; then name Python for it.

    In Jupyter it leaves SIGINT to Python; elsewhere it installs a handler that quits with code 1.
    """
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        ours = _JUPYTER not in os.environ
        os.environ.setdefault(_JUPYTER, "0")
        try:
            execute(module)
        finally:
            if ours:
                del os.environ[_JUPYTER]
        if hasattr(module, "flags"):  # an import that another package cut short has none
            module.flags.python_path = toolchain.python_path()

    loader.exec_module = exec_module


def _examine_floats() -> None:
    """Let NumPy look at its floats before Jittor is there, and keep what it sees.

    Jittor's libraries are built with fast-math, and loading them flushes subnormal numbers to
    zero in the whole process: NumPy would warn of that at the first call that asks for limits.
    """
    import numpy  # Jittor imports it as well, a moment later

    for kind in (numpy.float16, numpy.float32, numpy.float64):
        numpy.finfo(kind)
