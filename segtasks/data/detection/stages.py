"""Training batches whose augmentation becomes weaker from some epoch on."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from jtlightning.data.loader import Loader


class StagedLoader:
    """Two loaders of the same samples, one for the epochs before `switch_epoch`, one from it on.

    Both take the same order, from (seed, epoch), and what a resumed run loads is what an
    uninterrupted one would have: the epoch alone decides.

    Args:
        before: for the first epochs.
        after: for the others.
        switch_epoch: first epoch of `after`, counted from 0.
    """

    def __init__(self, before: Loader, after: Loader, switch_epoch: int) -> None:
        self.before, self.after, self.switch_epoch = before, after, switch_epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.before)

    @property
    def skipped(self) -> dict[int, str]:
        """Samples left out of delivered batches: index -> reason."""
        return {**self.before.skipped, **self.after.skipped}

    def shard(self, rank: int, ranks: int, *, deal_batches: bool) -> None:
        """Load the part of one of several processes, as `Loader.shard` does."""
        for loader in (self.before, self.after):
            loader.shard(rank, ranks, deal_batches=deal_batches)

    def batches(self, epoch: int, start: int = 0, *, seed: int = 0) -> Generator[Any, None, None]:
        """The batches of an epoch from number `start` on, as `Loader.batches` gives them."""
        now, other = self.before, self.after
        if epoch >= self.switch_epoch:
            now, other = other, now
        other.close()  # its workers would wait for nothing
        return now.batches(epoch, start, seed=seed)

    def close(self) -> None:
        """End the workers."""
        self.before.close()
        self.after.close()
