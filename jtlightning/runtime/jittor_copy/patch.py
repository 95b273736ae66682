"""Make a changed copy of Jittor 1.3.11.0, after making sure that it is exactly that."""

from __future__ import annotations

import base64
import compileall
import csv
import hashlib
import shutil
import sys
import warnings
from pathlib import Path

from jtlightning.runtime import store
from jtlightning.runtime.jittor_copy import edits

VERSION = "1.3.11.0"
#: SHA-256 of the lines "file,hash" of RECORD, sorted, for the files that are copied.
DIGEST = "ee1a9980c72d4319fef77d928a359f7c34aaa8c7719e6ae6c14edaeddfc40fb0"
PACKAGES = ("jittor", "jittor_utils")


class OtherJittorError(RuntimeError):
    """The installed Jittor is not the one that the edits are for; `remedy` mends it."""

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.remedy = " ".join([sys.executable, "-m pip install", *options, f"jittor=={VERSION}"])


def make(cache: Path) -> Path:
    """Make the copy in `cache`, unless it is there.

    Returns:
        The folder that holds `jittor` and `jittor_utils`, for the path.

    Raises:
        OtherJittorError: Another version, or its files are not the original ones.
        EditError: An edit does not fit (a mistake in this package).
        OSError: The cache cannot be written.
    """
    site = find()
    hashes = recorded(site)

    def build(folder: Path) -> None:
        changed = altered(site, hashes)
        if changed:
            raise OtherJittorError(
                f"{len(changed)} files of jittor {VERSION} at {site} are not the original ones: "
                + ", ".join(changed[:3]) + ("..." if changed[3:] else ""),
                "--force-reinstall", "--no-deps",
            )  # fmt: skip
        for name in hashes:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(site / name, folder / name)
        edits.apply(folder / PACKAGES[0])
        _compile_quietly(folder)

    key = hashlib.sha256(f"{DIGEST}{edits.EDITS}".encode()).hexdigest()[:16]
    return store.build_once(cache / f"jittor-{VERSION}-{key}", build)


def find() -> Path:
    """The folder on the path that holds Jittor, our copies left out.

    Raises:
        OtherJittorError: There is none.
    """
    for entry in map(Path, sys.path):
        if (entry / "jittor" / "__init__.py").is_file() and not (entry / store.CONTENT).exists():
            return entry.absolute()
    raise OtherJittorError("Jittor is not installed")


def recorded(site: Path) -> dict[str, str]:
    """File -> hash as the package's RECORD has it, for what is copied.

    Raises:
        OtherJittorError: There is no RECORD, or it is not that of the version that is known.
    """
    records = sorted(site.glob("jittor-*.dist-info/RECORD"))
    if len(records) != 1:
        raise OtherJittorError(f"the Jittor at {site} was not installed by pip")
    with records[0].open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    hashes = {name: digest for name, digest, _ in rows if _is_copied(name)}
    lines = "".join(f"{name},{hashes[name]}\n" for name in sorted(hashes))
    if hashlib.sha256(lines.encode()).hexdigest() != DIGEST:
        version = records[0].parent.name.removeprefix("jittor-").removesuffix(".dist-info")
        message = f"the installed jittor {version} is not the jittor {VERSION} that is known"
        raise OtherJittorError(message, "--force-reinstall", "--no-deps")
    return hashes


def altered(site: Path, hashes: dict[str, str]) -> list[str]:
    """Files that are missing or do not have their hash."""
    return [name for name, digest in hashes.items() if _hash(site / name) != digest]


def _compile_quietly(folder: Path) -> None:
    """Compile the Python files, as pip does; at the first import each would warn of its escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compileall.compile_dir(folder, quiet=2)


def _is_copied(name: str) -> bool:
    top = name.partition("/")[0]
    return top in PACKAGES and not name.startswith("jittor/test/") and not name.endswith(".pyc")


def _hash(path: Path) -> str:
    if not path.is_file():
        return ""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
