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
from jtlightning.data.randomness import generator_of, sample_generators

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
        making = _Making(self, [int(index) for index in indices], seed, epoch, note)
        try:
            batch = making.batch()
        except _TooManyError:
            batch = None
        return Loaded(batch, tuple(making.skipped.values()))


class _TooManyError(Exception):
    """More samples of one batch failed than the whole run may leave out."""


class _Making:
    """One batch in the making.

    What replaces a sample depends on (seed, epoch, its index) alone, like all that is random here.
    """

    def __init__(
        self,
        recipe: Recipe,
        indices: list[int],
        seed: int,
        epoch: int,
        note: Callable[[int], None],
    ) -> None:
        self.recipe, self.indices, self.seed, self.epoch = recipe, indices, seed, epoch
        self.note = note
        self.numbers = list(indices)  # with replacements in their places
        self.samples: list[Any] = []
        self.skipped: dict[int, SampleError] = {}
        self._spare: dict[int, Iterator[tuple[int, Any]]] = {}

    def batch(self) -> Any:
        generators: Iterator[Any] = itertools.repeat(None)
        if self.recipe.transform is not None:
            generators = sample_generators(self.seed, self.epoch, self.indices)
        for position, index in enumerate(self.indices):
            try:
                self.samples.append(self._load(index, next(generators)))
            except SampleError as error:
                self._leave_out(error)
                self.samples.append(None)
                self._replace(position)
        while True:
            self.note(NO_SAMPLE)
            try:
                return self.recipe.collate(list(self.samples))
            except Exception as error:  # noqa: BLE001 - raised by _misfits, or a sample's fault
                for position in self._misfits(error):
                    self._replace(position)

    def _load(self, index: int, generator: Any) -> Any:
        self.note(index)
        recipe = self.recipe
        try:
            sample = recipe.dataset[index]
            return sample if recipe.transform is None else recipe.transform(sample, generator)
        except Exception as error:
            what = f"{name_of(recipe.dataset, index)} failed"
            raise SampleError.of(what, (index,), error) from error

    def _replace(self, position: int) -> None:
        spare = self._spare.setdefault(position, self._others(self.indices[position], 0))
        number, sample = next(spare, (None, None))
        if number is None:  # every sample was tried
            raise list(self.skipped.values())[-1]
        self.numbers[position], self.samples[position] = number, sample

    def _others(self, index: int, stream: int) -> Iterator[tuple[int, Any]]:
        """Other samples that load, in an order and with a randomness of their own."""
        key = (self.epoch, index, stream)
        order = generator_of(self.seed, *key).permutation(len(self.recipe.dataset))
        for attempt, other in enumerate(order.tolist()):
            if other in self.skipped or other == index:
                continue
            try:
                yield other, self._load(other, generator_of(self.seed, *key, attempt))
            except SampleError as error:
                self._leave_out(error)

    def _leave_out(self, error: SampleError) -> None:
        # A machine without memory says nothing about the sample.
        if self.recipe.max_skipped == 0 or isinstance(error.__cause__, MemoryError):
            raise error
        self.skipped[error.indices[0]] = error
        if len(self.skipped) > self.recipe.max_skipped:
            raise _TooManyError

    def _misfits(self, error: Exception) -> list[int]:
        """Positions of the samples to replace because they do not collate with the others."""
        recipe, numbers = self.recipe, tuple(self.numbers)
        groups = group_by_fit(self.samples, self._jury(), recipe.collate)
        wrong = groups.outside_majority()
        if not wrong or isinstance(error, MemoryError):
            alone = len(numbers) == 1
            which = name_of(recipe.dataset, numbers[0]) if alone else f"samples {list(numbers)}"
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

    def _jury(self) -> Iterator[Any]:
        """Samples from outside the batch, which decide where it has no majority."""
        if not self.recipe.max_skipped:
            return iter(())
        others = self._others(self.indices[0], 1)
        outside = (sample for number, sample in others if number not in self.numbers)
        return itertools.islice(outside, _JURY)
