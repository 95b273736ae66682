from __future__ import annotations

import json
from pathlib import Path

import jittor as jt
import numpy as np

from segtasks.golden import golden_input
from segtasks.inference import SingleScale
from segtasks.metrics.segmentation import ConfusionMatrix

REFERENCE = Path(__file__).parents[1] / "reference" / "protocol" / "protocol.npz"


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


def test_single_scale_scores_equal_the_recorded_reference():
    with np.load(REFERENCE) as recorded:
        meta = json.loads(recorded["meta"].tobytes())["eval"]
        expected = {k: recorded[f"eval/single/{k}"] for k in ("scores", "argmax", "hist")}
    classes, size = meta["num_classes"], (meta["height"], meta["width"])
    matrix, scores = ConfusionMatrix(classes), []
    for k in range(meta["batches"]):
        shape = (meta["batch_size"], 3, *size)
        image = jt.array(golden_input(f"protocol/eval{k}/rgb", shape, "smooth"))
        depth = jt.array(golden_input(f"protocol/eval{k}/depth", shape, "smooth"))
        label = golden_input(
            f"protocol/eval{k}/label", (shape[0], *size), "label", high=classes, ignore=255, every=5
        )
        scores.append(SingleScale()(recorded_model(classes), image, depth).numpy())
        matrix.update(scores[-1].argmax(1), label)
    all_scores = np.concatenate(scores)
    samples = all_scores.reshape(-1)[np.arange(512) * all_scores.size // 512]
    # Softmax in float32, of logits that were computed in another order.
    assert np.abs(samples - expected["scores"]).max() < 1e-5
    assert (all_scores.argmax(1) == expected["argmax"]).all()
    assert (matrix.counts == expected["hist"]).all()
    mode = meta["modes"]["single"]
    assert round(100 * matrix.scores().miou, 2) == mode["miou"]
    assert np.allclose(100 * matrix.scores().f1, mode["f1"], atol=0.0051)


def test_protocol_describes_itself_for_the_result_file():
    assert json.loads(json.dumps(SingleScale().describe())) == {"protocol": "single_scale"}
