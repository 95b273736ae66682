"""The record of samples that were left out, and the limit to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jtlightning.data.recipe import SampleError

log = logging.getLogger(__name__)

_SHOWN = 3


def skip_limit(on_bad_sample: str, max_skipped: int | float, length: int) -> int:
    """How many of `length` samples may be left out; 0 for none.

    Raises:
        ValueError: The policy is unknown, or the limit neither a number nor a fraction.
    """
    if on_bad_sample not in ("raise", "skip"):
        raise ValueError(f"on_bad_sample is {on_bad_sample!r}; use raise or skip")
    fraction = isinstance(max_skipped, float)
    if isinstance(max_skipped, bool) or max_skipped <= 0 or (fraction and max_skipped > 1):
        raise ValueError(
            f"max_skipped is {max_skipped!r}; give a number of samples (int >= 1) or a fraction "
            "(float above 0, at most 1.0)"
        )
    if on_bad_sample == "raise":
        return 0
    limit = max(1, int(length * max_skipped)) if fraction else int(max_skipped)
    return min(limit, length - 1)  # one must be left to take the place of the others


class Skips:
    """Samples that were left out, each once.

    Args:
        limit: How many may be.
        length: Samples of the dataset.
    """

    def __init__(self, limit: int, length: int) -> None:
        self.limit, self.length = limit, length
        self._errors: dict[int, SampleError] = {}

    def reasons(self) -> dict[int, str]:
        """Index -> what happened, in the order of their first failure."""
        return {index: error.summary for index, error in self._errors.items()}

    def add(self, errors: Sequence[SampleError]) -> None:
        """Record and report what is new.

        Raises:
            SampleError: There are more than the limit.
        """
        for error in errors:
            if error.indices[0] not in self._errors:
                self._errors[error.indices[0]] = error
                log.warning("left out and replaced: %s", error.summary)
        if errors and len(self._errors) > self.limit:
            raise self._too_many()

    def _too_many(self) -> SampleError:
        errors = list(self._errors.values())
        last = errors[-1]
        named = "; ".join(error.summary for error in errors[-_SHOWN:])
        return SampleError(
            f"{len(errors)} samples were left out, and max_skipped allows {self.limit} of "
            f"{self.length}; the last: {named}",
            tuple(self._errors),
            last.original,
            last.module,
            "repair or remove them, or raise max_skipped",
        )
