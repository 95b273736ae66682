"""The table of `segtasks benchmark`, for the terminal and for documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from segtasks.commands.published import Published

if TYPE_CHECKING:
    from segtasks.commands.benchmark_measure import Counts, Shape, Speed


@dataclass
class Row:
    """What is known of one configuration's network.

    Attributes:
        name: Of the configuration.
        model: Name of the function or class that makes the network.
        shapes: Of its inputs for one image, (1, C, H, W) each.
        counts: Elements and operations.
        published: What a paper prints for it.
        speeds: One for each size of a batch.
    """

    name: str
    model: str
    shapes: tuple[Shape, ...]
    counts: Counts
    published: Published | None = None
    speeds: list[Speed] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.shapes[0][-2], self.shapes[0][-1]

    @property
    def flops(self) -> int:
        """Operations by the rule of the paper, else multiply-accumulates of layers."""
        factor = 1 if self.published is None else self.published.operations_per_mac
        return self.counts.macs_layers * factor


_Column = tuple[str, Callable[[Row], str]]


def rich_table(rows: Sequence[Row]) -> Table:
    """For a terminal; columns that are empty everywhere are left out."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = _used(rows)
    for index, (title, _) in enumerate(columns):
        table.add_column(title, justify="right" if index > 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns))
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as Markdown."""
    columns = _used(rows)
    lines = [
        [title for title, _ in columns],
        ["---" if index < 2 else "---:" for index in range(len(columns))],
        *([cell(row) for _, cell in columns] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _used(rows: Sequence[Row]) -> list[_Column]:
    batches = dict.fromkeys(speed.batch for row in rows for speed in row.speeds)
    columns: list[_Column] = [
        ("configuration", lambda row: row.name),
        ("input", lambda row: "{}x{}".format(*row.size)),
        ("parameters", lambda row: f"{row.counts.trainable:,}"),
        ("frozen", lambda row: f"{row.counts.frozen:,}" if row.counts.frozen else ""),
        ("statistics", lambda row: f"{row.counts.statistics:,}"),
        ("published", _published_parameters),
        ("GFLOPs", lambda row: f"{row.flops / 1e9:.2f}"),
        ("published", _published_flops),
        ("products, GMACs", lambda row: f"{row.counts.macs_products / 1e9:.2f}"),
        ("median ms", lambda row: _speed(row, 1, lambda s: f"{s.percentile(50):.1f}")),
        ("5 to 95 %, ms", lambda row: _speed(row, 1, _spread)),
    ]
    for batch in batches:
        columns += [
            (f"images/s, batch {batch}", _of_batch(batch, lambda s: f"{s.images_per_s:.2f}")),
            (f"peak MiB, batch {batch}", _of_batch(batch, _memory)),
        ]
    return [column for column in columns if any(column[1](row) for row in rows)]


def _published_parameters(row: Row) -> str:
    rule = row.published
    if rule is None or rule.parameters_m is None:
        return ""
    return _beside(row.counts.trainable + row.counts.frozen, rule.parameters_m * 1e6, "M", 1e6)


def _published_flops(row: Row) -> str:
    """Only at the size that the paper counts at."""
    rule = row.published
    if rule is None or rule.size != row.size:
        return ""
    return _beside(row.flops, rule.flops_g * 1e9, "G", 1e9)


def _beside(value: float, published: float, unit: str, factor: float) -> str:
    return f"{published / factor:g} {unit} ({(value / published - 1) * 100:+.1f} %)"


def _of_batch(batch: int, text: Callable[[Speed], str]) -> Callable[[Row], str]:
    return lambda row: _speed(row, batch, text)


def _speed(row: Row, batch: int, text: Callable[[Speed], str]) -> str:
    return next((text(speed) for speed in row.speeds if speed.batch == batch), "")


def _spread(speed: Speed) -> str:
    return f"{speed.percentile(5):.1f} to {speed.percentile(95):.1f}"


def _memory(speed: Speed) -> str:
    return "" if speed.peak_mib is None else f"{speed.peak_mib:,.0f}"
