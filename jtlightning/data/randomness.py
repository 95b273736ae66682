"""Random generators as functions of (seed, epoch, index), many at a time.

`np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, index)))` takes 11 to 14 µs,
more than a cheap sample; the same bits for a whole batch at once take about 2 µs a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence, SeedSequence

# NumPy's SeedSequence: four words of 32 bits, mixed with each other and with further words.
_POOL = 4
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_L, _MIX_R = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_BITS = 2**32


def _steps(start: int, factor: int, skipped: int, rows: int) -> np.ndarray:
    """The hash's constants: each call multiplies the one before, whatever the data."""
    powers = range(skipped, skipped + rows + 1)
    return np.array([start * pow(factor, k, _BITS) % _BITS for k in powers], np.uint32)[:, None]


# Before the index come the pool's words, each mixed with each other, and the epoch.
_INDEX_STEPS = _steps(_INIT_A, _MULT_A, _POOL + _POOL * (_POOL - 1) + _POOL, _POOL)
_OUTPUT_STEPS = _steps(_INIT_B, _MULT_B, 0, 2 * _POOL)


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The shuffled order of an epoch: a permutation of `range(length)`."""
    return generator_of(seed, epoch).permutation(length)


def generator_of(seed: int, *key: int) -> np.random.Generator:
    """A generator with a stream of its own for each key; each sample's key is (epoch, index)."""
    # Not default_rng([seed, ...]): a list is padded with zeros, so that the order of an epoch,
    # [1, 2], and its first sample, [1, 2, 0], would share their stream.
    return np.random.default_rng(SeedSequence(seed, spawn_key=key))


def sample_generators(
    seed: int, epoch: int, indices: Sequence[int]
) -> Iterator[np.random.Generator]:
    """The generators with keys (epoch, index), in order."""
    if max(seed, epoch, *indices) >= _BITS:  # would be several words
        yield from (generator_of(seed, epoch, index) for index in indices)
        return
    states = _states(seed, epoch, np.array(indices, np.uint32))
    for index, state in zip(indices, states, strict=True):
        words = _Words(state, seed, (epoch, index))
        yield np.random.Generator(np.random.PCG64(words))  # type: ignore[arg-type]


class _Words(ISpawnableSeedSequence):
    """A seed sequence whose words are known already."""

    def __init__(self, state: np.ndarray, seed: int, key: tuple[int, ...]) -> None:
        self._state, self._seed, self._key = state, seed, key

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        """The four words of 64 bits that PCG64 asks for."""
        assert (n_words, np.dtype(dtype)) == (len(self._state), self._state.dtype)  # type: ignore[call-overload]
        return self._state

    def spawn(self, n_children: int) -> list[SeedSequence]:  # type: ignore[override]
        """What the ordinary sequence would spawn."""
        return SeedSequence(self._seed, spawn_key=self._key).spawn(n_children)


def _states(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """`SeedSequence(seed, spawn_key=(epoch, index)).generate_state(4, uint64)` of each index."""
    # Of the words [seed, 0, 0, 0, epoch, index] only the last differs: NumPy mixes the others.
    pool = SeedSequence(seed, spawn_key=(epoch,)).pool[:, None]
    words = np.broadcast_to(indices, (_POOL, len(indices)))
    mixed = _MIX_L * pool - _MIX_R * _hash(words, _INDEX_STEPS)
    mixed ^= mixed >> _SHIFT
    return np.ascontiguousarray(_hash(np.tile(mixed, (2, 1)), _OUTPUT_STEPS).T).view(np.uint64)


def _hash(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Hash each row of (rows, N) with its own two of the constants (rows + 1, 1)."""
    hashed = (values ^ steps[:-1]) * steps[1:]
    hashed ^= hashed >> _SHIFT
    return hashed
