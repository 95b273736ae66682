from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.models.dformer.decoder import NMF2d

PROTOCOL = Path(__file__).parents[2] / "reference" / "protocol" / "protocol.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(PROTOCOL) as archive:
        return {key: archive[key] for key in archive.files if key.startswith("nmf/")}


@pytest.fixture
def factorisation() -> NMF2d:
    return NMF2d(draw_bases=lambda shape: jt.array(golden_input("nmf/bases", shape, "uniform")))


def _map() -> jt.Var:
    return jt.array(np.maximum(golden_input("protocol/nmf/x", (2, 24, 5, 6)), 0))


def test_evaluation_equals_the_recording(recorded: dict, factorisation: NMF2d) -> None:
    factorisation.eval()

    np.testing.assert_allclose(factorisation(_map()).numpy(), recorded["nmf/eval"], atol=1e-5)


def test_training_and_its_gradient_equal_the_recording(
    recorded: dict, factorisation: NMF2d
) -> None:
    x = _map()

    low_rank = factorisation(x)
    upstream = jt.array(golden_input("protocol/nmf/w", (2, 24, 5, 6)))
    gradient = jt.grad((low_rank * upstream).sum(), x)

    np.testing.assert_allclose(low_rank.numpy(), recorded["nmf/train"], atol=1e-5)
    np.testing.assert_allclose(gradient.numpy(), recorded["nmf/grad"], atol=1e-4)


def test_the_start_is_random_unless_seeded() -> None:
    x = _map()
    free, seeded = NMF2d(), NMF2d(seed=1)
    free.eval()
    seeded.eval()

    assert np.abs(free(x).numpy() - free(x).numpy()).max() > 1e-6
    both = seeded(x).numpy()
    np.testing.assert_array_equal(both, seeded(x).numpy())
    # The prediction of an image must not depend on what else is in its batch.
    np.testing.assert_allclose(seeded(x[1:]).numpy(), both[1:], atol=1e-5)
