from __future__ import annotations

import json
from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.losses.segmentation import cross_entropy

PROTOCOL = Path(__file__).parents[2] / "reference" / "protocol" / "protocol.npz"


def test_loss_and_gradient_equal_the_recording() -> None:
    label = golden_input("protocol/ce/label", (2, 9, 11), "label", high=5, ignore=255, every=4)
    logits = jt.array(golden_input("protocol/ce/logits", (2, 5, 9, 11)))
    with np.load(PROTOCOL) as archive:
        expected, meta = archive["ce/grad"], json.loads(archive["meta"].tobytes())

    loss = cross_entropy(logits, jt.array(label.astype(np.int32)))
    gradient = jt.grad(loss, logits)

    assert loss.item() == pytest.approx(meta["ce"]["loss"], rel=1e-6)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-8)


def test_large_logits_do_not_overflow() -> None:
    logits = jt.array(np.float32([1000, -1000, 0]).reshape(1, 3, 1, 1))

    assert cross_entropy(logits, jt.array(np.int32([[[2]]]))).item() == pytest.approx(1000)


def test_a_batch_without_labels_gives_zero_and_no_gradient() -> None:
    logits = jt.array(golden_input("logits", (1, 3, 4, 4)))

    loss = cross_entropy(logits, jt.full((1, 4, 4), 255).int32())

    assert loss.item() == 0
    assert (jt.grad(loss, logits).numpy() == 0).all()


def test_another_ignore_index_is_respected() -> None:
    logits = jt.array(golden_input("logits", (1, 3, 1, 2)))
    label = jt.array(np.int32([[[1, 7]]]))

    wide = logits.numpy().astype(np.float64)[0, :, 0, 0]
    expected = np.log(np.exp(wide).sum()) - wide[1]
    assert cross_entropy(logits, label, ignore_index=7).item() == pytest.approx(expected, rel=1e-6)
