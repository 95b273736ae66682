"""Turn the rows that the torture tests have measured into the table of docs/reliability.md.

    TORTURE=full TORTURE_REPORT=build/torture.jsonl make test-torture
    python benchmarks/reliability_table.py build/torture.jsonl --write docs/reliability.md

Without `--write` the table goes to stdout. A row with one result several times tells how often; one
with several results tells their number, and they are listed below the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- measured rows: begin -->", "<!-- measured rows: end -->"


@dataclass
class Row:
    """What was asked, and every result in the order of their measurement."""

    asked: str
    measured: list[str] = field(default_factory=list)

    @property
    def cell(self) -> str:
        """The results in one cell of the table."""
        different = len(set(self.measured))
        if different > 1:
            return f"{len(self.measured)} cases, listed below"
        times = f", {len(self.measured)} times" if len(self.measured) > 1 else ""
        return f"{self.measured[0]}{times}"


def read(path: Path) -> dict[str, Row]:
    """The rows by name, in the order of their first appearance."""
    rows: dict[str, Row] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            row = rows.setdefault(entry["row"], Row(entry["asked"]))
            row.measured.append(entry["measured"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a row of the torture tests ({error})"
            ) from error
    return rows


def table(rows: dict[str, Row]) -> str:
    """The rows in Markdown, and below them the results of those with several."""
    lines = ["| test | asked | measured |", "|---|---|---|"]
    for name, row in rows.items():
        cells = (text.replace("|", "\\|") for text in (name, row.asked, row.cell))
        lines.append(f"| {' | '.join(cells)} |")
    for name, row in rows.items():
        if len(set(row.measured)) > 1:
            lines += ["", f"**{name}**: {'; '.join(row.measured)}."]
    return "\n".join(lines)


def replace(page: str, new: str) -> str:
    """The page with `new` between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN} and {END} to put the table between")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main() -> None:
    """Read the report, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="what TORTURE_REPORT named")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    rows = table(read(options.report))
    if options.write is None:
        sys.stdout.write(f"{rows}\n")
    else:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(replace(page, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
