"""Turn the rows that the torture tests have measured into the table of docs/reliability.md.

    TORTURE=full TORTURE_REPORT=build/torture.jsonl make test-torture
    python benchmarks/reliability_table.py build/torture.jsonl --write docs/reliability.md

Without `--write` the table goes to stdout. A row that was measured several times counts once, with
its newest measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- measured rows: begin -->", "<!-- measured rows: end -->"


def read(path: Path) -> dict[str, tuple[str, str]]:
    """Row -> what was asked and what was measured, in the order of their first appearance."""
    rows: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[row["row"]] = row["asked"], row["measured"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a row of the torture tests ({error})"
            ) from error
    return rows


def table(rows: dict[str, tuple[str, str]]) -> str:
    """The rows in Markdown."""
    lines = ["| test | asked | measured |", "|---|---|---|"]
    for name, (asked, measured) in rows.items():
        lines.append(
            "| " + " | ".join(text.replace("|", "\\|") for text in (name, asked, measured)) + " |"
        )
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
