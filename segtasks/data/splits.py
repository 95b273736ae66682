"""Find the files of a split: which samples it lists, and where their pictures lie."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from segtasks.data.samples import DataError

_STEM_END = re.compile(r"\.(jpg|jpeg|png)", re.IGNORECASE)
_SHOWN = 5


@dataclass(frozen=True)
class NamePattern:
    """Where the files of one kind lie, and how the names of samples appear in theirs.

    Attributes:
        folder: folder in the data set's.
        prefix: what stands before a sample's name, which may contain further folders.
        suffix: what stands behind it, before the ending.
    """

    folder: str
    prefix: str = ""
    suffix: str = ""

    @classmethod
    def of(cls, text: str) -> NamePattern:
        """Read `Depth`, or `Depth/*_depth`, where `*` is the sample's name.

        Raises:
            DataError: there are several `*`, or one outside the file's name.
        """
        if "*" not in text:
            return cls(text)
        folder, _, name = text.rpartition("/")
        if "*" in folder or name.count("*") != 1:
            raise DataError(f"{text!r}: write a folder, or one * in the file's name: Depth/*_depth")
        prefix, suffix = name.split("*")
        return cls(folder or ".", prefix, suffix)

    def name(self, sample: str) -> str:
        """The file's name in the folder, without its ending."""
        parent, slash, last = sample.rpartition("/")
        return f"{parent}{slash}{self.prefix}{last}{self.suffix}"

    def sample(self, name: str) -> str:
        """The sample's name, of a file's name or of its own."""
        parent, slash, last = name.rpartition("/")
        if last.startswith(self.prefix) and last.endswith(self.suffix):
            last = last.removeprefix(self.prefix).removesuffix(self.suffix)
        return f"{parent}{slash}{last}"


def read_stems(split_file: Path) -> list[str]:
    """List the samples of a split file.

    A line looks like `RGB/0.jpg`, or `RGB/0.jpg Label/0.png`: the name is what stands between the
    first slash and the first `.jpg` or `.png`, here `0`.

    Raises:
        DataError: the file is missing, unreadable or lists nothing.
    """
    try:
        lines = split_file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(missing_file(split_file, "split", ".txt")) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{split_file}: cannot be read as a text file ({error})") from error
    stems = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        stem = _STEM_END.split(text.partition("/")[2] or text)[0]
        if not stem:
            raise DataError(f"{split_file}, line {number}: no file name in {text!r}")
        stems.append(stem)
    if not stems:
        raise DataError(f"{split_file}: the split is empty; write one line per sample: RGB/0.jpg")
    return stems


def find_pictures(
    root: Path, folder: str, names: list[str], endings: tuple[str, ...]
) -> list[str | None]:
    """Find the file of every sample in a folder, with the ending that it has there.

    Args:
        root: folder of the data set.
        folder: folder in `root` to search.
        names: file names without ending; a name may contain further folders.
        endings: endings to look for, such as `.png`; where a sample has several, the first counts.

    Returns:
        One path per name, relative to `root`; None where there is no file.

    Raises:
        DataError: the folder is missing.
    """
    if not (root / folder).is_dir():
        remedy = "set rgb_folder, depth_folder and label_folder to the names used there"
        raise DataError(missing_folder(root, folder, remedy))
    listings: dict[str, dict[str, str]] = {}
    found: list[str | None] = []
    for path in names:
        parent, _, name = path.rpartition("/")
        place = f"{folder}/{parent}" if parent else folder
        if place not in listings:
            listings[place] = _list_pictures(root / place, endings)
        file_name = listings[place].get(name)
        found.append(None if file_name is None else f"{place}/{file_name}")
    return found


def refuse_missing(
    root: Path, folder: str, missing: list[str], endings: tuple[str, ...], samples: int
) -> None:
    """Raise DataError if anything is missing; all of it is counted, and the first few named.

    Args:
        root: folder of the data set.
        folder: folder in `root` that was searched.
        missing: names without a file there.
        endings: endings that were looked for.
        samples: number of names that were looked for.
    """
    if missing:
        places = [f"{folder}/{name}" for name in missing[:_SHOWN]]
        shown = ", ".join(places) + (", ..." if len(missing) > _SHOWN else "")
        raise DataError(
            f"{root}: {len(missing)} of {samples} samples have no file in {folder!r} "
            f"({' or '.join(endings)}): {shown}; add the files or take the lines out of the split"
        )


def check_root(root: Path) -> None:
    """Raise DataError unless `root` is a folder."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{root}: the folder of the data set {what}; set `root` to where it lies")


def missing_file(path: Path, kind: str, ending: str) -> str:
    """Say that the file of a split is missing, and which of the same ending are beside it."""
    parent = path.parent
    files = sorted(p.name for p in parent.glob(f"*{ending}")) if parent.is_dir() else []
    there = f"{parent} has {', '.join(files[:8])}" if files else f"{parent} has no {ending} file"
    return f"{path}: the {kind} file is missing; {there}"


def missing_folder(root: Path, folder: str, remedy: str) -> str:
    """Say that there is no such folder in a data set, which there are, and what to do."""
    folders = sorted(p.name for p in root.iterdir() if p.is_dir())
    near = difflib.get_close_matches(folder.lower(), [name.lower() for name in folders], 1)
    hint = "".join(f" (did you mean {n!r}?)" for n in folders if n.lower() in near)
    there = ", ".join(folders) or "no folders"
    return f"{root}: no folder {folder!r}{hint}; there are {there}; {remedy}"


def _list_pictures(folder: Path, endings: tuple[str, ...]) -> dict[str, str]:
    """File names by stem. One listing is far faster than a look-up per file on network disks."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = [Path(entry.name) for entry in entries]
    ranked = [(endings.index(n.suffix.lower()), n) for n in names if n.suffix.lower() in endings]
    # The best ending comes last and overwrites the others.
    return {name.stem: name.name for _, name in sorted(ranked, reverse=True)}
