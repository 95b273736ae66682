"""`segtasks audit`: prove a model against a recorded run of the official code."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segtasks.commands.golden_file import GoldenFile, GoldenFileError, read_golden_file

if TYPE_CHECKING:
    from segtasks.commands.checks import Check


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 if everything is within its limit, 1 on a miss, 2 for a file that cannot be audited.
    """
    arguments = _parser().parse_args(argv)
    try:
        golden = read_golden_file(arguments.golden)
        # A pipe has no width, and the default of 80 columns would fold every line.
        console = Console(width=None if sys.stdout.isatty() else 120)
        return audit(golden, arguments.tolerance, console)
    except GoldenFileError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2


def audit(golden: GoldenFile, tolerance: float, console: Console) -> int:
    """Compare, print a table and return the exit code."""
    # Imported here, so that a wrong file or argument is reported without waiting for Jittor.
    from segtasks.commands.audit_dformer import audit_forward
    from segtasks.commands.audit_training import audit_training

    run = audit_training if golden.is_training else audit_forward
    with console.status(f"running {golden.meta['variant']} as {golden.path.name} recorded it"):
        checks = list(run(golden, tolerance))
    console.print(_table(golden, checks))
    missed = [check.name for check in checks if not check.passed]
    if missed:
        console.print(f"[red]{len(missed)} of {len(checks)} missed:[/] {', '.join(missed)}")
        return 1
    console.print(f"[green]all {len(checks)} within their limits[/]")
    return 0


def _table(golden: GoldenFile, checks: Iterable[Check]) -> Table:
    kind = "training" if golden.is_training else "forward"
    table = Table(
        box=SIMPLE_HEAD, title=f"{golden.meta['variant']}, {golden.meta['decoder']}, {kind}"
    )
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
