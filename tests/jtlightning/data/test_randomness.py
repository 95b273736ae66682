from __future__ import annotations

import numpy as np
import pytest

from jtlightning.data.randomness import epoch_order, generator_of, sample_generators

KEYS = [(0, 0), (1, 2), (2**32 - 1, 7), (2**40, 3), (5, 2**33), (123_456_789, 1_000)]
INDICES = [0, 1, 17, 2**31, 2**32 - 1, 5]


@pytest.mark.parametrize(("seed", "epoch"), KEYS)
@pytest.mark.parametrize("indices", [INDICES, [*INDICES, 2**35], [3]])
def test_a_batch_of_generators_has_the_streams_of_numpy_s_seed_sequences(seed, epoch, indices):
    together = list(sample_generators(seed, epoch, indices))
    assert len(together) == len(indices)
    for index, one in zip(indices, together, strict=True):
        sequence = np.random.SeedSequence(seed, spawn_key=(epoch, index))
        expected = np.random.default_rng(sequence)
        assert one.bit_generator.state == expected.bit_generator.state
        np.testing.assert_array_equal(one.normal(size=5), expected.normal(size=5))
        (child,), (expected_child,) = one.spawn(1), expected.spawn(1)
        assert child.random() == expected_child.random()


def test_order_and_samples_draw_from_separate_streams():
    order = epoch_order(1, 2, 1000)
    assert (generator_of(1, 2, 0).permutation(1000) != order).any()
    assert (epoch_order(2, 1, 1000) != order).any()
