"""Where Jittor keeps its kernels on this machine, and the paths that it notes beside each.

Beside each compiled file Jittor keeps a `.key`: the compiler's command, and the hash of every
source. A file counts as compiled as long as that text stays the same, so that a copy of the cache
in another folder is worth nothing unless the paths in the texts change with it.
"""

from __future__ import annotations

import fcntl
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from jtlightning.runtime import toolchain


class Places(NamedTuple):
    """Paths of this machine that stand in the keys; empty where there is no such thing.

    Attributes:
        cache: Folder of the compiled files, without CUDA's own folders in it.
        home: The `.cache/jittor` above it, where oneDNN lies.
        package: Folder that the packages `jittor` and `jittor_utils` lie in.
        python: The interpreter, as Jittor calls it.
        includes: Flags for the folders of Python's headers.
        compiler: The C++ compiler.
        nvcc: The CUDA compiler.
    """

    cache: str
    home: str
    package: str
    python: str
    includes: str
    compiler: str
    nvcc: str

    def neutral(self, text: str) -> str:
        """A key's text with names in place of this machine's paths."""
        for name, path in self._longest_first():
            text = text.replace(path, _mark(name))
        return text

    def local(self, text: str) -> str:
        """A neutral text with this machine's paths."""
        for name, path in self._asdict().items():
            text = text.replace(_mark(name), path)
        return text

    def is_current(self, neutral: str) -> bool:
        """Whether a kernel's neutral key has the commands that Jittor gives on this machine."""
        command = neutral.partition("\n")[0]
        program = command.partition(" ")[0].strip('"')
        return program in (_mark("python"), _mark("nvcc")) and f'"{_mark("cache")}/' in command

    def _longest_first(self) -> list[tuple[str, str]]:
        named = [(name, path) for name, path in self._asdict().items() if path]
        return sorted(named, key=lambda item: -len(item[1]))


def find() -> Places:
    """Ask Jittor's own search; it makes the folder, and compiles nothing."""
    utils = import_module("jittor_utils")
    return Places(
        cache=str(utils.cache_path),
        home=str(toolchain.jittor_home() / ".cache" / "jittor"),
        package=str(Path(str(utils.__file__)).resolve().parents[1]),
        python=toolchain.python_path(),
        includes=str(utils.get_py3_include_path()) or f"-I{sysconfig.get_path('include')}",
        compiler=str(utils.cc_path),
        nvcc=os.environ.get("nvcc_path", ""),
    )


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Keep every Jittor that uses this cache from compiling; waits for one that does.

    Its Python part takes the one kind of lock while it is imported, its C++ part the other.
    """
    with (cache.parent / "jittor.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _mark(name: str) -> str:
    return f"@{name.upper()}@"
