"""`segtasks benchmark`: what networks cost, beside what the papers print."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from segtasks.commands.benchmark_table import Row, markdown_table, rich_table
from segtasks.commands.mistakes import tell_mistake
from segtasks.commands.options import positive_count
from segtasks.commands.published import PUBLISHED, find_published
from segtasks.data.samples import DataError

if TYPE_CHECKING:
    from segtasks.commands.assembly import Assembly
    from segtasks.commands.benchmark_measure import Speed

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when done, 2 for a request that cannot be, 130 after Ctrl-C.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        for file in (arguments.json, arguments.markdown):
            _check_output(file)
        rows = benchmark(arguments, overrides)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        if not tell_mistake(error):
            raise
        return 2
    console.print(rich_table(rows))
    if arguments.markdown is not None:
        arguments.markdown.write_text(markdown_table(rows), encoding="utf-8")
    if arguments.json is not None:
        found = {"protocol": _protocol(arguments), "results": [_values(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def benchmark(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Row]:
    """Count every network, which computes nothing, and then time one after the other."""
    from jtlightning.accelerator import select_device
    from jtlightning.seed import seed_everything
    from segtasks.commands.assembly import Assembly

    assemblies = [(Path(name).stem, Assembly([name], overrides)) for name in arguments.config]
    rows = [_count(name, assembly, arguments.size) for name, assembly in assemblies]
    if arguments.latency:
        arguments.device = select_device(arguments.device)
        seed_everything(0)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            for row, (_, assembly) in zip(rows, assemblies, strict=True):
                row.speeds += _time(row, assembly, arguments, bar)
    return rows


def _count(name: str, assembly: Assembly, size: tuple[int, int] | None) -> Row:
    from segtasks.commands.benchmark_measure import count, input_shapes, network_of

    data = _described(assembly)
    task = assembly.task(data)
    shapes = input_shapes(data, size)
    decoder = assembly.config.get("task.init_args.model.init_args.decoder")
    classes = getattr(data, "num_classes", 0)
    published = find_published(assembly.model_class, classes, decoder)
    return Row(
        name, assembly.model_class, tuple(shapes), count(network_of(task), shapes), published
    )


def _described(assembly: Assembly) -> Any:
    """The data module, or what the network has to know of it where its files are not there."""
    data = assembly.data()
    try:
        getattr(data, "num_classes", None)
    except DataError as error:
        named = assembly.config.get("data.init_args.class_names")
        rows = PUBLISHED.get(assembly.model_class, ())
        if not (isinstance(named, list) or rows):
            raise
        classes = len(named) if isinstance(named, list) else rows[0].num_classes
        _log.warning("%s; counting with %d classes", error, classes)
        return SimpleNamespace(num_classes=classes, input_shapes=data.input_shapes)
    return data


def _time(
    row: Row, assembly: Assembly, arguments: argparse.Namespace, bar: Progress
) -> list[Speed]:
    from segtasks.commands.benchmark_measure import measure, network_of, passes

    network = network_of(assembly.task(_described(assembly)))
    speeds = []
    for batch in dict.fromkeys((1, arguments.batch)):
        warm_up, runs = (passes(n, batch) for n in (arguments.warm_up, arguments.runs))
        shown = bar.add_task(f"{row.name}, batch {batch}", total=warm_up + runs)
        advance = partial(bar.advance, shown)
        speeds.append(
            measure(network, row.shapes, batch=batch, warm_up=warm_up, runs=runs, progress=advance)
        )
    return speeds


def _protocol(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the numbers came about, for the file with them."""
    counted = {
        "macs_layers": "multiply-accumulates of convolutions and linear layers",
        "macs_products": "multiply-accumulates of other products of matrices",
    }
    if not arguments.latency:
        return {"counted": counted}
    return {
        "counted": counted,
        "device": arguments.device,
        "cpus": len(os.sched_getaffinity(0)),
        "jittor": version("jittor"),
        "mode": "evaluation",
        "warm_up_images": arguments.warm_up,
        "timed_images": arguments.runs,
    }


def _values(row: Row) -> dict[str, Any]:
    speeds = {
        f"batch_{speed.batch}": {
            "median_ms": speed.percentile(50),
            "p5_ms": speed.percentile(5),
            "p95_ms": speed.percentile(95),
            "images_per_s": speed.images_per_s,
            "peak_mib": speed.peak_mib,
            "passes": len(speed.milliseconds),
        }
        for speed in row.speeds
    }
    return {
        "config": row.name,
        "model": row.model,
        "inputs": [list(shape) for shape in row.shapes],
        **asdict(row.counts),
        "flops": row.flops,
        "published": None if row.published is None else asdict(row.published),
        **speeds,
    }


def _check_output(file: Path | None) -> None:
    """Refuse before minutes of measuring what could not be written after them."""
    if file is not None and not file.absolute().parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.parent}; make it first")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segtasks benchmark",
        description=(
            "Parameters, operations, latency, throughput and memory of the networks of"
            " configurations, in evaluation mode, without their data. Times are those of"
            " DFormer's protocol: batch 1, 100 passes to warm up, 300 timed, each waited for."
            " Further options are those of fit, for all configurations alike, such as"
            " --task.model.decoder mlp."
        ),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "-c", "--config", nargs="+", required=True, metavar="FILE", help="one row of the table each"
    )
    add(
        "--size",
        nargs=2,
        type=positive_count,
        metavar=("HEIGHT", "WIDTH"),
        help="default: the crop's",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    add("--no-latency", dest="latency", action="store_false", help="only count: no time, no memory")
    add(
        "--warm-up",
        type=positive_count,
        default=100,
        metavar="N",
        help="images first (default: 100)",
    )
    add("--runs", type=positive_count, default=300, metavar="N", help="images timed (default: 300)")
    add("--batch", type=positive_count, default=8, metavar="N", help="for throughput (default: 8)")
    add("--json", type=Path, metavar="FILE", help="write all numbers, with the protocol")
    add("--markdown", type=Path, metavar="FILE", help="write the table")
    return parser
