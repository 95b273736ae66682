"""`segtasks cache`: move compiled kernels to an equal machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from segtasks import __version__
from segtasks.commands.mistakes import tell_mistake


def main(argv: Sequence[str] | None = None) -> int:
    """Run `segtasks cache ARGV`.

    Returns:
        0 when done, 2 where the archive cannot be used or written.
    """
    arguments = _parser().parse_args(argv)
    work = _pack if arguments.command == "pack" else _unpack
    try:
        if arguments.command == "unpack" and not arguments.file.is_file():
            raise ValueError(f"there is no file {arguments.file}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            said = work(arguments.file, bar)
    except (ValueError, OSError) as error:
        if not tell_mistake(error):
            raise
        return 2
    Console(soft_wrap=True, highlight=False).print(said)
    return 0


def _pack(file: Path, bar: Progress) -> str:
    from jtlightning.runtime.cache_archive import pack

    task = bar.add_task("packing", total=None)
    packed = pack(
        file, __version__, lambda done, total: bar.update(task, completed=done, total=total)
    )
    return (
        f"{file}: {packed.kernels:,} kernels and {packed.core} files of Jittor itself, "
        f"{packed.size / 1e6:.1f} MB"
    )


def _unpack(file: Path, bar: Progress) -> str:
    from jtlightning.runtime.cache_archive import unpack

    task = bar.add_task("unpacking", total=None)
    done = unpack(file, lambda done, total: bar.update(task, completed=done, total=total))
    core = f"{done.core} files of Jittor itself" if done.core else "Jittor itself was there"
    return f"{file}: {done.added:,} kernels added, {done.kept:,} were there; {core}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segtasks cache",
        description=(
            "Pack the compiled kernels, and Jittor's own compiled part, into one file; unpack it"
            " on a machine with the same processor, compiler, Python and Jittor. Exit code 2:"
            " the file cannot be used here; nothing was changed."
        ),
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("pack", "write the kernels of this machine into a file"),
        ("unpack", "add a file's kernels to this machine's"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("file", type=Path, metavar="FILE", help="such as kernels.tar.gz")
    return parser
