"""`segtasks convert`: weights from one file format into another, configurations into ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jtlightning.checkpoint.errors import CheckpointError
from segtasks.commands.convert_config import Conversion, convert_config
from segtasks.commands.convert_weights import FORMATS, Summary, convert_weights
from segtasks.commands.mistakes import tell_mistake

_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Run `segtasks convert ARGV`.

    Returns:
        The exit code: 0 done, 1 for a file that cannot be read or written, 2 for a request that
        cannot be.
    """
    arguments = _parser().parse_args(argv)
    source, target = arguments.source, arguments.target
    try:
        _check(source, target, arguments.overwrite)
        if source.suffix == ".py":
            _show_config(convert_config(source, target, arguments.root), target, Console())
        else:
            summary = convert_weights(
                source, target, which=arguments.weights, entry=arguments.entry
            )
            _show_weights(summary, source, target, Console())
    except (CheckpointError, ValueError) as error:
        if not tell_mistake(error):
            raise
        return 1 if isinstance(error, CheckpointError) else 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segtasks convert",
        description="Turn a file of weights into another format, or a configuration of the"
        " official DFormer repository or of mmseg into a YAML file. Neither PyTorch nor Jittor is"
        " needed, and nothing in a file is executed. Ends with 1 where a file cannot be read or"
        " written, with 2 where the request cannot be.",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="weights of PyTorch, Jittor, safetensors or a .ckpt, recognised by content; or a"
        " configuration, a .py",
    )
    parser.add_argument(
        "target",
        type=Path,
        metavar="OUT",
        help=f"its ending decides what is written: {', '.join(FORMATS)}; .yaml for a .py",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--weights",
        choices=("raw", "ema", "auto"),
        default="raw",
        help="for a .ckpt: the weights, their average, or the average where there is one",
    )
    parser.add_argument(
        "--entry", help="for a .ckpt: where in IN the state dict lies, joined by / (ema/module)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="for a .py: the folder that its bases must be in (default: the one above its own)",
    )
    return parser


def _check(source: Path, target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name the file to write")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there already; pass --overwrite to replace it")
    if (source.suffix == ".py") != (target.suffix in (".yaml", ".yml")):
        raise ValueError(
            f"{source} cannot become {target}: a configuration (.py) becomes a .yaml, weights "
            f"become one of {', '.join(FORMATS)}"
        )


def _show_weights(summary: Summary, source: Path, target: Path, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("read", escape(f"{source} ({summary.kind})"))
    dtypes = ", ".join(f"{count} {name}" for name, count in sorted(summary.dtypes.items()))
    size = f"{summary.nbytes / 1e6:,.1f} MB"
    table.add_row("tensors", f"{summary.dtypes.total()} ({dtypes}), {size}")
    table.add_row("numbers and strings", str(summary.values))
    table.add_row("left out", str(len(summary.left_out)))
    table.add_row("written", escape(str(target)))
    console.print(table)
    for remark in summary.remarks:
        console.print(f"[yellow]note:[/yellow] {escape(remark)}", soft_wrap=True)
    left_out = [f"{name} at {place!r}" for place, name in summary.left_out.items()]
    for line in left_out[:_SHOWN]:
        console.print(f"[yellow]left out:[/yellow] {escape(line)}", soft_wrap=True)
    if len(left_out) > _SHOWN:
        console.print(f"and {len(left_out) - _SHOWN} more")


def _show_config(conversion: Conversion, target: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "value", "became"):
        table.add_column(heading, overflow="fold")
    for taken in conversion.taken:
        table.add_row(escape(taken.key), escape(taken.value), escape(taken.place))
    console.print(table)
    for title, notes in conversion.notes().items():
        for note in notes:
            console.print(f"[yellow]{title}:[/yellow] {escape(note)}", soft_wrap=True)
    console.print(f"written: {escape(str(target))}", soft_wrap=True)
