"""The C++ compiler, the Python headers and the folders, found the way Jittor 1.3.11 finds them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def jittor_home() -> Path:
    """The folder whose `.cache/jittor` holds everything that Jittor compiles.

    Jittor remembers the last `JITTOR_HOME` in the home folder and uses it when the variable is
    not set any more.
    """
    if "JITTOR_HOME" in os.environ:
        return Path(os.environ["JITTOR_HOME"]).absolute()
    return remembered_home() or Path.home()


def remembered_home() -> Path | None:
    """The `JITTOR_HOME` of an earlier run that Jittor wrote down, or None."""
    home = (_read_note() or {}).get("JITTOR_HOME")
    return Path(home) if home else None


def note_home() -> None:
    """Write down `JITTOR_HOME` before Jittor does, in one step.

    Jittor empties the file and fills it again: a process that starts at that moment dies with a
    JSON error, and after a kill at that moment every later one does.
    """
    present = _read_note()
    wanted = dict(present or {})
    if "JITTOR_HOME" in os.environ:
        wanted["JITTOR_HOME"] = str(jittor_home())
    if wanted == present or not (wanted or _note().exists()):
        return
    note = _note()
    note.parent.mkdir(parents=True, exist_ok=True)
    aside = note.with_name(f"{note.name}.{os.getpid()}")
    aside.write_text(json.dumps(wanted), encoding="utf-8")
    aside.replace(note)


def _note() -> Path:
    return Path.home() / ".cache" / "jittor" / "config.json"


def _read_note() -> dict[str, str] | None:
    """What Jittor has written down; None where there is nothing that it could read again."""
    try:
        content = json.loads(_note().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def unwritable_folder() -> Path | None:
    """The first folder that Jittor has to write to and cannot, or None."""
    # It makes the folder in the home folder even where JITTOR_HOME is another one.
    for folder in (Path.home() / ".cache" / "jittor", jittor_home() / ".cache" / "jittor"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return folder
        if not os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def compiler() -> str | None:
    """Path of the C++ compiler that Jittor would use, or None."""
    if "cc_path" in os.environ:
        return shutil.which(os.environ["cc_path"])
    return shutil.which("g++")


def python_path() -> str:
    """One name of this interpreter, however it was started.

    Jittor writes it into the command that stands for a kernel, and would compile every kernel
    anew where `python` and `python3`, or a script that names either, take turns.
    """
    here = Path(sys.executable)
    for name in ("python", "python3"):
        other = here.with_name(name)
        if other.exists() and other.samefile(here):
            return str(other)
    return sys.executable


def python_header() -> Path | None:
    """`Python.h` of this interpreter, or None."""
    for key in ("include", "platinclude"):
        header = Path(sysconfig.get_path(key), "Python.h")
        if header.is_file():
            return header
    return None


def python_config() -> Path | None:
    """The `python3.X-config` script that Jittor asks for flags, or None where it would give up."""
    version = f"python3.{sys.version_info.minor}-config"
    beside = Path(sys.executable).parent
    candidates = [
        beside / version,
        Path(f"{sys.executable}-config"),
        Path("/usr/bin", version),
        Path("/usr/local/bin", version),
        beside / "python3-config",
    ]
    if "python_config_path" in os.environ:
        candidates.insert(0, Path(os.environ["python_config_path"]))
    return next((path for path in candidates if path.is_file()), None)


def missing_python_config(home: Path) -> str | None:
    """A value for `python_config_path` where Jittor's own search would fail; None: not needed.

    That is the case in most virtual environments whose Python is not the system's. The script of
    the base interpreter is used, or one written into Jittor's cache.
    """
    if python_config() is not None:
        return None
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}-config")
    if base.is_file():
        return str(base)
    header = python_header()
    if header is None:
        return None
    script = home / ".cache" / "jittor" / "python-config" / f"python-{sys.hexversion:x}-config"
    text = _CONFIG_SCRIPT.format(
        include=header.parent, suffix=sysconfig.get_config_var("EXT_SUFFIX")
    )
    try:
        if not script.is_file() or script.read_text(encoding="utf-8") != text:
            script.parent.mkdir(parents=True, exist_ok=True)
            aside = script.with_name(f"{script.name}.{os.getpid()}")
            aside.write_text(text, encoding="utf-8")
            aside.chmod(0o755)
            aside.replace(script)
    except OSError:
        return None  # the folder cannot be written, which is reported by itself
    return str(script)


_CONFIG_SCRIPT = """\
#!/bin/sh
# Answers the two questions that Jittor asks of python3-config.
case "$1" in
  --includes) echo '-I{include}' ;;
  --extension-suffix) echo '{suffix}' ;;
  *) exit 1 ;;
esac
"""
