from __future__ import annotations

import json
from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.inference import MultiScaleFlip, Protocol, SingleScale, Sliding
from segtasks.metrics.segmentation import ConfusionMatrix

REFERENCE = Path(__file__).parents[1] / "reference" / "protocol" / "protocol.npz"
WINDOW = Sliding((48, 64))
PROTOCOLS = {
    "single": SingleScale(),
    "msf": MultiScaleFlip(),
    "ms_noflip": MultiScaleFlip(flip=False),
    "msf_sliding": MultiScaleFlip(window=WINDOW),
}


@pytest.fixture(scope="module")
def recorded():
    with np.load(REFERENCE) as arrays:
        return {**arrays, "meta": json.loads(arrays["meta"].tobytes())}


def recorded_model(num_classes):
    """The position-dependent linear model that the recording was made with."""
    of_image = golden_input("protocol/fake/A", (num_classes, 3))
    of_depth = golden_input("protocol/fake/b", (num_classes,))[:, None, None]
    number = np.arange(1, num_classes + 1)[:, None, None]

    def model(image, depth):
        height, width = image.shape[2:]
        waves = 0.5 * np.sin(0.1 * number * np.arange(width)[None, None, :])
        waves = waves + 0.4 * np.cos(0.13 * number * np.arange(height)[None, :, None])
        logits = [
            np.tensordot(of_image, image[k].numpy(), 1) + of_depth * depth[k, 0].numpy() + waves
            for k in range(image.shape[0])
        ]
        return jt.array(np.stack(logits).astype(np.float32))

    return model


@pytest.mark.parametrize("mode", PROTOCOLS)
def test_scores_equal_the_recorded_reference(recorded, mode):
    meta = recorded["meta"]["eval"]
    expected = {k: recorded[f"eval/{mode}/{k}"] for k in ("scores", "argmax", "hist", "margin_min")}
    classes, size = meta["num_classes"], (meta["height"], meta["width"])
    matrix, scores = ConfusionMatrix(classes), []
    for k in range(meta["batches"]):
        shape = (meta["batch_size"], 3, *size)
        image = jt.array(golden_input(f"protocol/eval{k}/rgb", shape, "smooth"))
        depth = jt.array(golden_input(f"protocol/eval{k}/depth", shape, "smooth"))
        label = golden_input(
            f"protocol/eval{k}/label", (shape[0], *size), "label", high=classes, ignore=255, every=5
        )
        scores.append(PROTOCOLS[mode](recorded_model(classes), image, depth).numpy())
        matrix.update(scores[-1].argmax(1), label)
    all_scores = np.concatenate(scores)
    np.testing.assert_allclose(all_scores.sum(1), 1, atol=1e-5)
    samples = all_scores.reshape(-1)[np.arange(512) * all_scores.size // 512]
    # The recorded scores are sums over scales and mirrored images, `mean` over five classes.
    times = round(meta["modes"][mode]["mean"] * classes)
    # Float32 throughout, in another order: limit 1e-4 for sums, 1e-5 for one softmax.
    assert np.abs(times * samples - expected["scores"]).max() < 1e-5 * times
    assert (all_scores.argmax(1) == expected["argmax"]).all()
    assert (matrix.counts == expected["hist"]).all()
    assert round(100 * matrix.scores().miou, 2) == meta["modes"][mode]["miou"]
    assert np.allclose(100 * matrix.scores().f1, meta["modes"][mode]["f1"], atol=0.0051)


@pytest.mark.parametrize("case", ["larger", "exact", "short", "tiny"])
def test_windows_equal_the_recorded_reference(recorded, case):
    meta = recorded["meta"]["sliding"][case]
    shape = (1, 3, meta["height"], meta["width"])
    image, depth = (
        jt.array(golden_input(f"protocol/slide/{case}/{name}", shape, "smooth"))
        for name in ("rgb", "depth")
    )
    logits = WINDOW.logits(recorded_model(5), image, depth).numpy()
    assert list(logits.shape) == meta["out_shape"]
    samples = logits.reshape(-1)[np.arange(256) * logits.size // 256]
    np.testing.assert_allclose(samples, recorded[f"sliding/{case}"], atol=1e-4)
    assert logits.mean(dtype=np.float64) == pytest.approx(meta["mean"], abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (61, 83)])
def test_scores_have_the_size_of_the_image_whatever_it_is(rng, height, width):
    image, depth = (
        jt.array(rng.normal(size=(2, 3, height, width)).astype(np.float32)) for _ in range(2)
    )
    for protocol in (WINDOW, MultiScaleFlip(scales=[0.7, 1.0]), PROTOCOLS["msf_sliding"]):
        scores = protocol(recorded_model(5), image, depth).numpy()
        assert scores.shape == (2, 5, height, width)
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)


def test_one_window_over_the_whole_image_is_single_scale(rng):
    image, depth = (jt.array(rng.normal(size=(1, 3, 48, 64)).astype(np.float32)) for _ in range(2))
    model = recorded_model(5)
    np.testing.assert_allclose(  # a division by 1, fused into the softmax
        WINDOW(model, image, depth).numpy(), SingleScale()(model, image, depth).numpy(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (SingleScale(), {"protocol": "single_scale"}),
        (WINDOW, {"protocol": "sliding", "crop": [48, 64], "stride": [32, 42]}),
        (
            MultiScaleFlip([1.0], window=WINDOW),
            {"protocol": "multi_scale", "scales": [1.0], "flip": True, "window": WINDOW.describe()},
        ),
    ],
)
def test_a_protocol_describes_itself_for_the_result_file(protocol: Protocol, expected):
    assert json.loads(json.dumps(protocol.describe())) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sliding((0, 5)), r"a crop of at least 1x1.*got crop \(0, 5\)"),
        (lambda: Sliding((4, 4), (5, 1)), r"strides from 1 to the crop's size.*\(5, 1\)"),
        (lambda: MultiScaleFlip([]), r"scales above 0, got \[\]"),
        (lambda: MultiScaleFlip([1.0, -1.0]), r"scales above 0, got \[1.0, -1.0\]"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
