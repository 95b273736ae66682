"""Which errors are the user's to mend, and how they are shown."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType, TracebackType

from rich.console import Console
from rich.text import Text

from jtlightning.data.recipe import SampleError

#: What a full disk answers.
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRAPPER = ("jsonargparse",)


def is_mistake(error: BaseException, packages: Sequence[str]) -> bool:
    """Whether the message alone says what to do: no traceback is needed.

    So it is for errors whose class one of `packages` defines, for a ValueError or a missing
    method that one of them reports itself, for a file that the system refuses, and for a full
    disk. Anything else is a bug, most likely in the user's own code, and needs its traceback.
    """
    if _belongs(type(error).__module__, packages):
        return True
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in _FULL
    reported = isinstance(error, (ValueError, NotImplementedError))
    return reported and _belongs(_raised_in(error), packages)


def _belongs(module: str, packages: Sequence[str]) -> bool:
    return module.partition(".")[0] in packages


def _raised_in(error: BaseException) -> str:
    found = _tracebacks(error)
    return _module(found[-1].tb_frame) if found else ""


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _tracebacks(error: BaseException) -> list[TracebackType]:
    """From the frame that caught the error to the one that raised it."""
    found, tb = [], error.__traceback__
    while tb is not None:
        found.append(tb)
        tb = tb.tb_next
    return found


def show(
    error: BaseException, prog: str, *, packages: Sequence[str] = (), with_traceback: bool
) -> None:
    """Print one message to stderr; `packages` as for `is_mistake`."""
    if with_traceback:
        sys.stderr.write("".join(traceback.format_exception(error)))
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble((f"{prog}: error: ", "bold red"), _message(error, packages)))


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Let errors of constructors out as they are, which jsonargparse wraps in errors of its own."""
    problem: BaseException
    try:
        yield
        return
    except Exception as error:  # noqa: BLE001 (raised below, where it is not chained to itself)
        problem = error
    while _belongs(_raised_in(problem), _WRAPPER) and (inner := problem.__cause__) is not None:
        problem = inner
    frames = [tb for tb in _tracebacks(problem) if _belongs(_module(tb.tb_frame), _WRAPPER)]
    raise problem.with_traceback(frames[-1].tb_next if frames else problem.__traceback__)


def _message(error: BaseException, packages: Sequence[str]) -> str:
    if isinstance(error, OSError) and error.strerror:
        if error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        return (
            f"{error.strerror} where the run directory lies; free space there, or choose another "
            "with trainer.default_root_dir; what was saved before is intact"
        )
    if isinstance(error, SampleError) and _belongs(error.module, packages):
        return error.summary
    # str() of a KeyError puts quotes around the message
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text or type(error).__name__
