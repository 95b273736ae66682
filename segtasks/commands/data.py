"""`segtasks data`: make data sets on disk, and check them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from segtasks.commands.data_check import check
from segtasks.commands.mistakes import tell_mistake
from segtasks.data.base import SplitName
from segtasks.data.rooms import CLASS_NAMES, RoomsFolder, write_rooms


def main(argv: Sequence[str]) -> int:
    """Run `segtasks data ARGV` and return the exit code.

    Returns:
        0 done, 1 where a check found problems, 2 for a request that cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="segtasks data", description="Make data sets on disk, and check them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_rooms(commands)
    _add_check(commands)
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and arguments.command != "check":
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments.overrides = overrides
    try:
        return int(arguments.run(arguments))
    except ValueError as error:
        if not tell_mistake(error):
            raise
        return 2


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check",
        help="read a data set and report what is wrong with it",
        description=(
            "Read every file of a configuration's data set: missing, damaged and duplicated"
            " samples, sizes that differ, labels that are no class, 16-bit depth without"
            " depth_max, samples in both splits; with the pixels and images of every class."
            " Further options are those of fit, such as --data.root DIR. Exit code 0: nothing is"
            " wrong, 1: problems, 2: nothing can be read."
        ),
        allow_abbrev=False,
    )
    check.add_argument(
        "-c", "--config", action="append", default=[], help="a configuration; may be repeated"
    )
    check.add_argument(
        "--split", choices=("train", "test", "all"), default="all", help="(default: all)"
    )
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    splits: tuple[SplitName, ...] = ("train", "test")
    if arguments.split != "all":
        splits = (arguments.split,)
    return check(arguments.config, splits, arguments.overrides)


def _add_rooms(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rooms = commands.add_parser(
        "rooms",
        help="render indoor RGB-D scenes with labels and boxes",
        description=(
            "Render indoor RGB-D scenes in the NYUDepthv2 layout (RGB, Depth, Label, train.txt,"
            " test.txt) with the boxes of the visible objects as COCO json. The same arguments"
            f" give the same scenes. Classes: {', '.join(CLASS_NAMES)}."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    rooms.add_argument(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="a new or empty folder",
    )
    rooms.add_argument("--train", type=int, default=96, help="number of training scenes")
    rooms.add_argument("--val", type=int, default=24, help="number of validation scenes")
    rooms.add_argument(
        "--size", type=int, nargs=2, default=(192, 256), metavar=("HEIGHT", "WIDTH"), help="pixels"
    )
    rooms.add_argument("--seed", type=int, default=0, help="which series of scenes")
    rooms.set_defaults(run=_rooms)


def _rooms(arguments: argparse.Namespace) -> int:
    height, width = arguments.size
    columns = (
        TextColumn("rendering scenes"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scenes", total=arguments.train + arguments.val)
        folder = write_rooms(
            arguments.out,
            arguments.train,
            arguments.val,
            (height, width),
            arguments.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _report(folder, arguments.train, arguments.val, Console())
    return 0


def _report(folder: RoomsFolder, train: int, val: int, console: Console) -> None:
    state = "rendered" if folder.rendered else "already there, nothing rendered:"
    path = escape(str(folder.path))
    console.print(f"{state} {train} training and {val} validation scenes in {path}", soft_wrap=True)
    table = Table("label", "class", "train", "val", title="share of the labelled pixels")
    for number, name in enumerate(CLASS_NAMES):
        shares = (folder.class_shares[split][number] for split in ("train", "val"))
        table.add_row(str(number + 1), name, *(f"{share:.1%}" for share in shares))
    console.print(table)
    console.print("RGB/ Depth/ Label/    pictures; raw labels as above, 0 is unlabelled")
    console.print("train.txt test.txt    the splits, in the NYUDepthv2 layout")
    console.print("annotations/          boxes of the visible objects, COCO json")
