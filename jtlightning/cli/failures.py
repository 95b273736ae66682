"""Which errors are the user's to mend, and how they are shown."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from jtlightning.data.recipe import SampleError

#: What a full disk answers.
_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def show(
    error: BaseException, prog: str, *, packages: Sequence[str] = (), with_traceback: bool
) -> None:
    """Print one message to stderr; `packages` as for `is_mistake`."""
    if with_traceback:
        sys.stderr.write("".join(traceback.format_exception(error)))
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble((f"{prog}: error: ", "bold red"), _message(error, packages)))


def unwrap(error: Exception) -> Exception:
    """The error that a constructor raised, out of those that jsonargparse wraps around it."""
    inner: BaseException | None = error
    while isinstance(inner, Exception):
        error = inner
        if not _belongs(_raised_in(error), ("jsonargparse",)):
            break
        inner = error.__cause__ or error.__context__
    return error


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
