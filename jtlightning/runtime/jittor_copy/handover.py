"""Put the changed Jittor first on the path, here and in every process that is started from here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TYPE_CHECKING = False  # as in runtime/__init__: typing is not imported for this
if TYPE_CHECKING:
    from collections.abc import MutableMapping

#: Names the folder of the changed Jittor for child processes.
VARIABLE = "JTLIGHTNING_JITTOR"


def put_first(site: str, variables: MutableMapping[str, str] = os.environ) -> None:
    """Put a folder first on `sys.path` and, for child processes, in `PYTHONPATH`."""
    variables[VARIABLE] = site
    inherited = [entry for entry in variables.get("PYTHONPATH", "").split(os.pathsep) if entry]
    variables["PYTHONPATH"] = os.pathsep.join([site, *_without(site, inherited)])
    sys.path[:] = [site, *_without(site, sys.path)]
    # Python remembers that there was no such folder, where a deleted one has been made again.
    sys.path_importer_cache.pop(site, None)


def is_stale(variables: MutableMapping[str, str] = os.environ) -> bool:
    """Whether what a parent process chose has been deleted since."""
    needed = [variables.get(name) for name in ("nvcc_path", VARIABLE)]
    return any(path and not Path(path).exists() for path in needed)


def take_back(variables: MutableMapping[str, str] = os.environ) -> None:
    """Undo `put_first`."""
    site = variables.pop(VARIABLE, "")
    if not site:
        return
    rest = _without(site, variables.get("PYTHONPATH", "").split(os.pathsep))
    if any(rest):
        variables["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        variables.pop("PYTHONPATH", None)
    sys.path[:] = _without(site, sys.path)


def _without(site: str, entries: list[str]) -> list[str]:
    return [entry for entry in entries if entry != site]
