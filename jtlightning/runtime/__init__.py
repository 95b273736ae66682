"""What has to be right before Jittor is imported: compilers, oneDNN, CUDA, variables.

Nothing here imports Jittor, and only the standard library and rich are used. `prepare` runs on
`import jtlightning`; the rest is imported when it is called, so that `prepare` stays quick.
"""

from __future__ import annotations

from pathlib import Path

from jtlightning.runtime.environment import JittorNotReadyError, prepare

TYPE_CHECKING = False  # typing itself would cost a third of the time that prepare may take
if TYPE_CHECKING:
    from jtlightning.runtime.chatter import Chatter
    from jtlightning.runtime.checks import Finding
    from jtlightning.runtime.facts import Report

__all__ = [
    "JittorNotReadyError",
    "capture_chatter",
    "check",
    "compile_seconds",
    "prepare",
    "report",
]


def check() -> list[Finding]:
    """Look at what Jittor needs on a CPU; findings of level `error`: it cannot start."""
    from jtlightning.runtime import checks

    return checks.check()


def report(*, gpu: bool = False) -> Report:
    """Gather what `segtasks doctor` shows: the findings, the variables and the kernel cache.

    Args:
        gpu: Count it as an error that a GPU cannot be used.
    """
    from jtlightning.runtime import facts

    return facts.report(gpu=gpu)


def capture_chatter(log_file: Path) -> Chatter | None:
    """Send what Jittor writes to stderr into `log_file` and show its compiling as one line.

    For the command line, before Jittor is imported. See `jtlightning.runtime.chatter`.

    Returns:
        A handle whose `close` puts stderr back, or None where the user asked for Jittor's own
        output (`SEGTASKS_VERBOSE` or `log_v` is set).
    """
    from jtlightning.runtime import chatter

    return chatter.capture(log_file)


def compile_seconds() -> float:
    """Seconds that compilers have run for this process; 0.0 where nothing is being captured."""
    from jtlightning.runtime import chatter

    return chatter.compile_seconds()
