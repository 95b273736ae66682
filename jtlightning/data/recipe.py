"""From indices to a batch: the part of the loader that runs in this process or in a worker."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class LoaderError(RuntimeError):
    """A batch could not be loaded."""


class SampleError(LoaderError):
    """A sample, or the collation of several, failed.

    Attributes:
        indices: Dataset indices; one for a failed sample, the whole batch for a failed collation.
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
class Recipe:
    """How samples become a batch."""

    dataset: Any
    transform: Callable[[Any, np.random.Generator], Any] | None
    collate: Callable[[list[Any]], Any]

    def batch(self, indices: Sequence[int] | np.ndarray, seed: int, epoch: int) -> Any:
        """Load, transform and collate the samples of a batch.

        Raises:
            SampleError: One of them failed.
        """
        samples = [self._sample(int(index), seed, epoch) for index in indices]
        try:
            return self.collate(samples)
        except Exception as error:
            numbers = tuple(int(index) for index in indices)
            what = f"samples {list(numbers)} cannot be collated into one batch"
            raise SampleError.of(what, numbers, error) from error

    def _sample(self, index: int, seed: int, epoch: int) -> Any:
        try:
            sample = self.dataset[index]
            if self.transform is None:
                return sample
            return self.transform(sample, sample_generator(seed, epoch, index))
        except Exception as error:
            describe = getattr(self.dataset, "describe", None)
            file = f" ({describe(index)})" if describe is not None else ""
            raise SampleError.of(f"sample {index}{file} failed", (index,), error) from error


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
