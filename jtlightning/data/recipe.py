"""From indices to a batch: the part of the loader that runs in this process or in a worker."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jtlightning.data.diary import NO_SAMPLE
from jtlightning.data.misfits import group_by_fit

# Samples that are loaded besides a batch that does not collate, until most agree on what fits.
_JURY = 8


class LoaderError(RuntimeError):
    """A batch could not be loaded."""


class SampleError(LoaderError):
    """A sample, or the collation of several, failed.

    Attributes:
        indices: Dataset indices of the samples concerned; the whole batch where a failed collation
            cannot be pinned on some of them.
        original: The original traceback as text.
        module: Where the class of the original error is defined.
        summary: What failed, and the original error's message, without the traceback.
    """

    def __init__(
        self, what: str, indices: tuple[int, ...], original: str, module: str, message: str
    ) -> None:
        super().__init__(f"{what}; the original error was\n\n{original}")
        self._arguments = (what, indices, original, module, message)
        self.indices = indices
        self.original = original
        self.module = module
        self.summary = f"{what}: {message}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by constructor arguments, which are not `args`."""
        return type(self), self._arguments

    @classmethod
    def of(cls, what: str, indices: tuple[int, ...], error: Exception) -> SampleError:
        """From the error that is being handled."""
        return cls(what, indices, traceback.format_exc(), type(error).__module__, str(error))


@dataclass(frozen=True)
class Loaded:
    """A batch, and the samples that were left out of it; no batch where they are too many."""

    batch: Any
    skipped: tuple[SampleError, ...] = ()


def name_of(dataset: Any, index: int) -> str:
    """`sample 7 (its file)`; without the file where the dataset has no `describe`."""
    describe = getattr(dataset, "describe", None)
    return f"sample {index}" + (f" ({describe(index)})" if describe is not None else "")


def _nothing(index: int) -> None:
    pass


@dataclass(frozen=True)
class Recipe:
    """How samples become a batch.

    Args:
        dataset: What the indices count.
        transform: Called with each sample and its generator, or None.
        collate: Makes a batch of a list of samples.
        max_skipped: Failing samples that may be replaced; 0: the first one is an error.
    """

    dataset: Any
    transform: Callable[[Any, np.random.Generator], Any] | None
    collate: Callable[[list[Any]], Any]
    max_skipped: int = 0

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        seed: int,
        epoch: int,
        note: Callable[[int], None] = _nothing,
    ) -> Loaded:
        """Load, transform and collate the samples of a batch; `note` hears of each beforehand.

        Raises:
            SampleError: One of them failed, or all together, and may not be replaced.
        """
        making = _Making(self, seed, epoch, note)
        try:
            batch = making.batch([int(index) for index in indices])
        except _TooManyError:
            batch = None
        return Loaded(batch, tuple(making.skipped.values()))


class _TooManyError(Exception):
    """More samples of one batch failed than the whole run may leave out."""


@dataclass
class _Sample:
    index: int
    value: Any


class _Making:
    """One batch in the making.

    What replaces a sample depends on (seed, epoch, its index) alone, like all that is random here.
    """

    def __init__(self, recipe: Recipe, seed: int, epoch: int, note: Callable[[int], None]) -> None:
        self.recipe, self.seed, self.epoch, self.note = recipe, seed, epoch, note
        self.skipped: dict[int, SampleError] = {}

    def batch(self, indices: list[int]) -> Any:
        spare = [self._others(index, 0) for index in indices]
        samples = [self._first(index, spare[i]) for i, index in enumerate(indices)]
        while True:
            self.note(NO_SAMPLE)
            try:
                return self.recipe.collate([sample.value for sample in samples])
            except Exception as error:  # noqa: BLE001 - raised by _misfits, or a sample's fault
                for position in self._misfits(samples, error):
                    samples[position] = self._next(spare[position])

    def _first(self, index: int, others: Iterator[_Sample]) -> _Sample:
        try:
            return self._load(index, sample_generator(self.seed, self.epoch, index))
        except SampleError as error:
            self._leave_out(error)
        return self._next(others)

    def _others(self, index: int, stream: int) -> Iterator[_Sample]:
        """Other samples that load, in an order and with a randomness of their own."""
        key = (self.epoch, index, stream)
        order = _generator(self.seed, *key).permutation(len(self.recipe.dataset))
        for attempt, other in enumerate(order.tolist()):
            if other in self.skipped or other == index:
                continue
            try:
                yield self._load(other, _generator(self.seed, *key, attempt))
            except SampleError as error:
                self._leave_out(error)

    def _next(self, others: Iterator[_Sample]) -> _Sample:
        sample = next(others, None)
        if sample is None:  # every sample was tried
            raise list(self.skipped.values())[-1]
        return sample

    def _load(self, index: int, generator: np.random.Generator) -> _Sample:
        recipe = self.recipe
        self.note(index)
        try:
            value = recipe.dataset[index]
            if recipe.transform is not None:
                value = recipe.transform(value, generator)
        except Exception as error:
            what = f"{name_of(recipe.dataset, index)} failed"
            raise SampleError.of(what, (index,), error) from error
        return _Sample(index, value)

    def _leave_out(self, error: SampleError) -> None:
        # A machine without memory says nothing about the sample.
        if self.recipe.max_skipped == 0 or isinstance(error.__cause__, MemoryError):
            raise error
        self.skipped[error.indices[0]] = error
        if len(self.skipped) > self.recipe.max_skipped:
            raise _TooManyError

    def _misfits(self, samples: list[_Sample], error: Exception) -> list[int]:
        """Positions of the samples to replace because they do not collate with the others."""
        recipe, numbers = self.recipe, tuple(sample.index for sample in samples)
        groups = group_by_fit([s.value for s in samples], self._jury(numbers), recipe.collate)
        wrong = groups.outside_majority()
        if not wrong or isinstance(error, MemoryError):
            which = (
                f"samples {list(numbers)}" if numbers[1:] else name_of(recipe.dataset, numbers[0])
            )
            what = f"{which} cannot be collated into one batch"
            raise SampleError.of(what + groups.differences(numbers), numbers, error) from error
        whats = [
            f"{name_of(recipe.dataset, numbers[i])} does not collate with the others of its batch "
            f"{list(numbers)}{groups.difference(i, numbers)}"
            for i in wrong
        ]
        if not recipe.max_skipped:
            culprits = tuple(numbers[i] for i in wrong)
            raise SampleError.of("; ".join(whats), culprits, error) from error
        for i, what in zip(wrong, whats, strict=True):
            self._leave_out(SampleError.of(what, (numbers[i],), error))
        return wrong

    def _jury(self, numbers: tuple[int, ...]) -> Iterator[Any]:
        """Samples from outside the batch, which decide where it has no majority."""
        if not self.recipe.max_skipped:
            return iter(())
        others = self._others(numbers[0], 1)
        outside = (sample.value for sample in others if sample.index not in numbers)
        return itertools.islice(outside, _JURY)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The shuffled order of an epoch: a permutation of `range(length)`."""
    return _generator(seed, epoch).permutation(length)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The randomness of one sample in one epoch, whichever process loads it."""
    return _generator(seed, epoch, index)


def _generator(seed: int, *key: int) -> np.random.Generator:
    # Not default_rng([seed, ...]): a list is padded with zeros, so that the order of an epoch,
    # [1, 2], and its first sample, [1, 2, 0], would share their stream.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
