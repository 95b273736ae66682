"""What is wrong with the files of a data set: gathered, so that one message tells all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from segtasks.data.samples import DataError

Kind = Literal[
    "missing",
    "unreadable",
    "size",
    "label",
    "annotation",
    "16-bit depth",
    "duplicate",
    "overlap",
    "batch",
]
"""What a problem is about."""

_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """Something to mend; the text names the file and the remedy."""

    kind: Kind
    text: str


def refuse(problems: Sequence[Problem], what: str) -> None:
    """Raise a DataError if anything is wrong; all of it is counted, and the first few told.

    Args:
        problems: What is wrong.
        what: What the message calls the whole: a file, or a split.
    """
    if len(problems) == 1:
        raise DataError(problems[0].text)
    if problems:
        shown = [f"  {problem.text}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            shown.append(f"  and {len(problems) - _SHOWN:,} more")
        kinds = Counter(problem.kind for problem in problems)
        counts = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.items())
        raise DataError(f"{what}: {len(problems):,} problems ({counts})\n" + "\n".join(shown))
