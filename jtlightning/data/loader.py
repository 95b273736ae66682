"""Batches in an order that depends on (seed, epoch) alone, loaded here or by worker processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, Literal

import numpy as np

from jtlightning.data.randomness import epoch_order
from jtlightning.data.recipe import Loaded, LoaderError, Recipe, SampleError
from jtlightning.data.skips import Skips, skip_limit
from jtlightning.data.workers import WorkerPool

__all__ = ["Loader", "LoaderError", "SampleError"]


class Loader:
    """Load batches of a dataset, reproducibly and from any position.

    Which samples form batch k of an epoch, and the randomness of their transforms, are functions
    of (seed, epoch, index): the number of workers and the starting position change nothing.

    Args:
        dataset: Has `__len__` and `__getitem__(index)`; if it also has `describe(index) -> str`,
            errors name the sample's file. With workers it is copied to them once, so changes made
            to it later do not reach them.
        batch_size: Samples per batch; the last batch of an epoch may be smaller.
        collate: Turns a list of samples into a batch.
        transform: Called as `transform(sample, generator)`; random choices come from `generator`.
        shuffle: Whether each epoch has its own order.
        drop_last: Leave out a last batch that is smaller.
        num_workers: Worker processes (spawned, so a script needs `if __name__ == "__main__":`);
            0 loads in this process. They start with the first epoch and stay until `close`.
        timeout_s: Seconds to wait for a batch of a worker before it counts as hung.
        start_timeout_s: Seconds to wait for a worker to start, which imports the script again.
        prefetch: Batches that each worker may be ahead.
        on_bad_sample: `raise`: a sample that fails ends the run. `skip`: another sample, chosen by
            (seed, epoch, index), takes its place, so that batches keep their size; a warning
            names it once, and `skipped` holds it. Evaluate with `raise`: a metric over other
            samples is another metric.
        max_skipped: With `skip`, different samples that may be left out before that is an error:
            a number, or a fraction of the dataset (of which at least one).

    Raises:
        ValueError: Arguments that cannot work, among them an empty dataset.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        collate: Callable[[list[Any]], Any],
        transform: Callable[[Any, np.random.Generator], Any] | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        num_workers: int = 0,
        timeout_s: float = 120.0,
        start_timeout_s: float = 300.0,
        prefetch: int = 4,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        max_skipped: int | float = 0.01,
    ) -> None:
        if (
            batch_size < 1
            or num_workers < 0
            or prefetch < 1
            or min(timeout_s, start_timeout_s) <= 0
        ):
            raise ValueError(
                "need batch_size >= 1, num_workers >= 0, prefetch >= 1, timeout_s > 0 and "
                f"start_timeout_s > 0, got {batch_size}, {num_workers}, {prefetch}, {timeout_s} "
                f"and {start_timeout_s}"
            )
        if len(dataset) == 0:
            raise ValueError(f"the {type(dataset).__name__} is empty")
        if drop_last and len(dataset) < batch_size:
            raise ValueError(
                f"drop_last leaves no batch of {batch_size} from {len(dataset)} samples: "
                "choose a smaller batch_size"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.prefetch = prefetch
        limit = skip_limit(on_bad_sample, max_skipped, len(dataset))
        self._skips = Skips(limit, len(dataset))
        self._recipe = Recipe(dataset, transform, collate, limit)
        self._pool: WorkerPool | None = None
        self._rank, self._ranks, self._deal_batches = 0, 1, False

    def shard(self, rank: int, ranks: int, *, deal_batches: bool) -> None:
        """Load the part of one of several processes; call it before `batches`.

        Args:
            rank: Which of them, from 0.
            ranks: How many there are.
            deal_batches: True, for evaluation: batches are those of one process, and each rank
                gets every `ranks`-th of them. False, for training: a batch of one process with
                `ranks * batch_size` samples is split among the ranks; a last one with fewer
                samples than ranks is left out.
        """
        self._rank, self._ranks, self._deal_batches = rank, ranks, deal_batches

    def __len__(self) -> int:
        """Batches per epoch, of all ranks where they are dealt among them."""
        whole, rest = divmod(len(self.dataset), self._samples_at_once)
        return whole + (rest >= self._least_samples and not self.drop_last)

    @property
    def _samples_at_once(self) -> int:
        """Samples that all ranks take for one batch each."""
        return self.batch_size * (1 if self._deal_batches else self._ranks)

    @property
    def _least_samples(self) -> int:
        """Samples that a last batch needs: one for every rank that gets a part of it."""
        return 1 if self._deal_batches else self._ranks

    @property
    def skipped(self) -> dict[int, str]:
        """Samples left out of delivered batches since the loader was made: index -> reason."""
        return self._skips.reasons()

    def batches(self, epoch: int, start: int = 0, *, seed: int = 0) -> Generator[Any, None, None]:
        """The batches of an epoch from number `start` on, in order.

        The work that a start in the middle takes does not depend on `start`. Closing the
        iterator, or dropping it, abandons the epoch. With workers one epoch is open at a time:
        opening another abandons it too.

        Args:
            epoch: At least 0.
            start: 0 to `len(self)`, the latter giving no batch.
            seed: At least 0.

        Raises:
            ValueError: An argument is out of range.
            SampleError: From the iterator: a sample failed, or more than may be skipped did.
            LoaderError: From the iterator: a worker died or hung.
        """
        if epoch < 0 or seed < 0 or not 0 <= start <= len(self):
            raise ValueError(
                f"need epoch >= 0, seed >= 0 and 0 <= start <= {len(self)}, "
                f"got {epoch}, {seed} and {start}"
            )
        plan = self._plan(epoch, seed)
        numbers = range(start, len(self))
        if self._deal_batches:
            numbers = range(start + self._rank, len(self), self._ranks)
        if self.num_workers == 0:
            return self._deliver(self._recipe.batch(plan(k), seed, epoch) for k in numbers)
        if self._pool is None or self._pool.closed:
            self._pool = WorkerPool(
                self._recipe,
                self.num_workers,
                self.prefetch,
                timeout_s=self.timeout_s,
                start_timeout_s=self.start_timeout_s,
            )
        return self._deliver(self._pool.run(plan, numbers, seed, epoch))

    def _deliver(self, batches: Generator[Loaded, None, None]) -> Generator[Any, None, None]:
        with contextlib.closing(batches):
            for loaded in batches:
                self._skips.add(loaded.skipped)
                yield loaded.batch
                del loaded  # or its memory would be kept until the next batch is there

    def close(self) -> None:
        """End the workers; a later epoch starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _plan(self, epoch: int, seed: int) -> Callable[[int], np.ndarray]:
        """The dataset indices of each batch number."""
        order = epoch_order(seed, epoch, len(self.dataset)) if self.shuffle else None

        def indices(number: int) -> np.ndarray:
            first = number * self._samples_at_once
            last = min(first + self._samples_at_once, len(self.dataset))
            if not self._deal_batches:
                samples = last - first
                last = first + (self._rank + 1) * samples // self._ranks
                first += self._rank * samples // self._ranks
            return np.arange(first, last) if order is None else order[first:last]

        return indices
