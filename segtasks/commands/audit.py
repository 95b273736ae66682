"""`segtasks audit`: prove a model against a recorded run of the official code."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from segtasks.commands.golden_file import GoldenFileError, array_names, read_golden_file
from segtasks.commands.mistakes import tell_mistake

if TYPE_CHECKING:
    from segtasks.commands.checks import Check


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 if everything is within its limit, 1 on a miss, 2 for a file that cannot be audited.
    """
    arguments = _parser().parse_args(argv)
    # A pipe has no width, and the default of 80 columns would fold every line.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        return audit(arguments.golden, arguments.tolerance, console)
    except GoldenFileError as error:
        if not tell_mistake(error):
            raise
        return 2


def audit(path: Path, tolerance: float, console: Console) -> int:
    """Compare, print a table and return the exit code.

    Raises:
        GoldenFileError: The file is of none of the kinds that can be audited, or damaged.
    """
    title, run = _audit_of(path, tolerance)
    with console.status(f"running {title} as {path.name} recorded it"):
        checks = list(run())
    console.print(_table(title, checks))
    missed = [check.name for check in checks if not check.passed]
    if missed:
        console.print(f"[red]first to diverge:[/] {missed[0]}")
        console.print(f"[red]{len(missed)} of {len(checks)} missed:[/] {', '.join(missed)}")
        return 1
    console.print(f"[green]all {len(checks)} within their limits[/]")
    return 0


def _audit_of(path: Path, tolerance: float) -> tuple[str, Callable[[], Iterator[Check]]]:
    """What a file recorded, and how to compare it."""
    # Imports are here, so that most wrong files are reported without waiting for Jittor.
    if "meta" not in array_names(path):
        from segtasks.commands.audit_rtdetr import audit_rtdetr, is_rtdetr

        if is_rtdetr(path):
            return "RT-DETR", lambda: audit_rtdetr(path, tolerance)
    golden = read_golden_file(path)
    from segtasks.commands.audit_dformer import audit_forward
    from segtasks.commands.audit_training import audit_training

    run = audit_training if golden.is_training else audit_forward
    kind = "training" if golden.is_training else "forward"
    title = f"{golden.meta['variant']}, {golden.meta['decoder']}, {kind}"
    return title, lambda: run(golden, tolerance)


def _table(title: str, checks: Iterable[Check]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title)
    table.add_column("stage", overflow="fold")
    for column in ("max abs error", "relative", "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("mean / std / samples, or what", overflow="fold")
    table.add_column("")
    for check in checks:
        verdict = "[green]ok[/]" if check.passed else "[red]MISS[/]"
        numbers = (f"{value:.2e}" for value in (check.error, check.relative, check.limit))
        table.add_row(check.name, *numbers, check.note, verdict)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segtasks audit",
        description="Build the model that a golden file names, fill it by the golden rule, run it "
        "and compare every recorded stage. Exit code 0: all within limits, 1: a miss, 2: the file "
        "cannot be audited.",
    )
    parser.add_argument("--golden", type=Path, required=True, help="a recorded run, .npz")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=10.0,
        help="factor on the recorded limits (default: 10)",
    )
    return parser


def _tolerance(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text}")
    return value
