from __future__ import annotations

import numpy as np
import pytest

from segtasks.data.samples import DataError, SegmentationSample, collate


def make_sample(name, height=2, width=3, dtype=np.float32):
    image = np.arange(height * width * 3).reshape(height, width, 3).astype(dtype)
    label = np.full((height, width), 255, np.uint8)
    return SegmentationSample(image, image + 1, label, name)


def test_batch_is_channels_first_and_keeps_ignored_pixels():
    batch = collate([make_sample("a"), make_sample("b")])
    assert batch.image.shape == (2, 3, 2, 3)
    assert batch.image[1, 2].tolist() == [[2, 5, 8], [11, 14, 17]]
    assert batch.depth[0, 0, 0, 0] == 1
    assert (batch.label == 255).all()
    assert batch.names == ["a", "b"]
    assert (batch.image.dtype, batch.label.dtype) == (np.float32, np.int32)
    assert batch.image.flags.c_contiguous


def test_samples_of_two_sizes_are_named():
    with pytest.raises(DataError, match=r"a \(2x3\), b \(4x3\); set the validation batch size"):
        collate([make_sample("a"), make_sample("b", height=4)])
