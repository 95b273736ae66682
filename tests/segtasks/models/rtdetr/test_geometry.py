from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtasks.models.rtdetr.geometry import make_anchors, position_embedding
from tests.segtasks.models.rtdetr.golden import REFERENCE, read_golden


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden(REFERENCE / "geometry.npz")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("w4_h3_d16", (4, 3, 16)),
        ("w10_h8_d256", (10, 8, 256)),
        ("w5_h5_d8_t20", (5, 5, 8, 20)),
    ],
)
def test_position_embeddings_equal_the_recorded_ones(
    golden: dict[str, Any], name: str, arguments: tuple[int, ...]
) -> None:
    embedding = position_embedding(*arguments)

    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, golden[f"pe.{name}"], rtol=0, atol=1e-6)


def test_position_embeddings_are_computed_once_and_cannot_be_changed() -> None:
    embedding = position_embedding(4, 3, 16)

    assert position_embedding(4, 3, 16) is embedding
    with pytest.raises(ValueError, match="read-only"):
        embedding[0] = 1
    with pytest.raises(ValueError, match="multiple of 4 features, got 18"):
        position_embedding(4, 3, 18)


def test_anchors_equal_the_recorded_ones(golden: dict[str, Any]) -> None:
    logits, valid = make_anchors(golden["anchors.small.shapes"].tolist())
    np.testing.assert_array_equal(valid[0, :, 0], golden["anchors.small.valid"])
    np.testing.assert_allclose(logits, golden["anchors.small.unact"], atol=1e-6)

    logits, valid = make_anchors(golden["anchors.ring.shapes"].tolist())
    np.testing.assert_array_equal(valid[0, :, 0], golden["anchors.ring.valid"])
    np.testing.assert_allclose(logits[0, ::7], golden["anchors.ring.unact_sample"], atol=2e-6)


def test_anchors_of_the_usual_size_are_the_recorded_ones(golden: dict[str, Any]) -> None:
    logits, valid = make_anchors([(80, 80), (40, 40), (20, 20)])

    assert (logits.dtype, logits.shape, valid.shape) == (np.float32, (1, 8400, 4), (1, 8400, 1))
    assert valid.sum() == golden["anchors.640.n_valid"]
    assert np.flatnonzero(valid).sum() == golden["anchors.640.valid_idx_sum"]
    np.testing.assert_allclose(logits[0, ::211], golden["anchors.640.sample"], atol=2e-6)


def test_anchors_larger_than_the_image_are_invalid() -> None:
    logits, valid = make_anchors([(2, 2)] * 6)

    assert valid.reshape(6, 4).all(1).tolist() == [True] * 5 + [False]
    assert np.isposinf(logits[0, -4:]).all()


def test_anchors_on_the_limit_are_invalid() -> None:
    _, valid = make_anchors([(1, 50)])  # the outermost centres are 0.01 and 0.99

    assert valid[0, :, 0].tolist() == [False] + [True] * 48 + [False]
