from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.losses.detection_targets import TargetBatch, TargetError
from segtasks.losses.matcher import DivergedError, HungarianMatcher
from segtasks.losses.rtdetr import RTDETRCriterion
from segtasks.models.rtdetr.outputs import Denoising, Predictions, RTDETROutput

CRITERION = Path(__file__).parents[2] / "reference" / "rtdetr" / "criterion.npz"
CLASSES, QUERIES = 7, 20


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(CRITERION) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def targets(recorded: dict) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(labels=recorded[f"gt_labels.{i}"], boxes=recorded[f"gt_boxes.{i}"])
        for i in range(3)
    ]


def golden_predictions(name: str, queries: int) -> Predictions:
    logits = golden_input(f"rtdetr.crit.A.{name}.logits", (3, queries, CLASSES))
    wide = golden_input(f"rtdetr.crit.A.{name}.boxes", (3, queries, 4)).astype(np.float64)
    unit = 1 / (1 + np.exp(-wide))
    boxes = np.concatenate([unit[..., :2], 0.02 + 0.4 * unit[..., 2:]], -1).astype(np.float32)
    return Predictions(jt.array(logits), jt.array(boxes))


def whole_output(recorded: dict, denoising: bool) -> RTDETROutput:
    output = RTDETROutput(
        jt.array(recorded["logits"]),
        jt.array(recorded["boxes"]),
        [golden_predictions(f"aux{i}", QUERIES) for i in range(2)],
    )
    if denoising:
        # Four groups of six positives and six negatives; images have 4, 0 and 6 boxes.
        starts = 12 * np.arange(4)[:, None]
        positive = [(starts + np.arange(n)).reshape(-1) for n in (4, 0, 6)]
        output.denoising = [golden_predictions(f"dn{i}", 48) for i in range(2)]
        output.denoising_meta = Denoising(positive, 4, (48, QUERIES))
    return output


def total(terms: dict[str, jt.Var]) -> jt.Var:
    return jt.concat(list(terms.values())).sum()


def assert_close(values: jt.Var, expected: np.ndarray) -> None:
    """Equal to within rounding of the largest gradient."""
    values = values.numpy()
    np.testing.assert_allclose(values, expected, atol=2e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["focal", "softmax"])
def test_costs_and_assignments_equal_the_recording(
    recorded: dict, targets: list, kind: str
) -> None:
    logits = recorded["logits" if kind == "focal" else "logits_bg"]
    # A second layer with the queries in reverse: layers are matched each on its own.
    stacked = jt.array(np.stack([logits, logits[:, ::-1]]))
    boxes = jt.array(np.stack([recorded["boxes"], recorded["boxes"][:, ::-1]]))
    batch = TargetBatch(targets, CLASSES)
    matcher = HungarianMatcher(focal=kind == "focal")

    costs = matcher.costs(stacked, boxes, batch).numpy()
    matches = matcher(stacked, boxes, batch, ["first", "second"])

    for image, count in enumerate(batch.counts):
        own = matches.queries // QUERIES == image
        expected = {key: recorded[f"match_{kind}.{key}.{image}"] for key in ("cost", "src", "tgt")}
        np.testing.assert_allclose(costs[0, image, :, :count], expected["cost"], atol=2e-6)
        np.testing.assert_array_equal(matches.queries[0][own[0]] % QUERIES, expected["src"])
        np.testing.assert_array_equal(
            matches.boxes[0][own[0]] - batch.first[image], expected["tgt"]
        )
        mirrored = QUERIES - 1 - expected["src"][::-1]
        np.testing.assert_array_equal(matches.queries[1][own[1]] % QUERIES, mirrored)


@pytest.mark.parametrize(
    ("case", "options", "logits"),
    [
        ("vfl", {"losses": ["vfl"]}, "logits"),
        ("focal_a25", {"losses": ["focal"], "alpha": 0.25}, "logits"),
        ("focal_a75", {"losses": ["focal"], "alpha": 0.75}, "logits"),
        ("bce", {"losses": ["bce"]}, "logits"),
        ("labels_eos0.0001", {"losses": ["labels"]}, "logits_bg"),
        ("labels_eos0.1", {"losses": ["labels"], "no_object_weight": 0.1}, "logits_bg"),
    ],
)
def test_each_classification_loss_and_gradient_equal_the_recording(
    recorded: dict, targets: list, case: str, options: dict, logits: str
) -> None:
    output = RTDETROutput(jt.array(recorded[logits]), jt.array(recorded["boxes"]))

    # The sigmoid matching belongs to the logits without a column for no object.
    matcher = HungarianMatcher(focal=logits == "logits")
    terms = RTDETRCriterion(CLASSES, matcher, **options)(output, targets)
    (name,) = terms
    gradient = jt.grad(terms[name], output.logits)

    assert terms[name].item() == pytest.approx(recorded[f"single.{case}.{name}"].item(), rel=1e-5)
    assert_close(gradient, recorded[f"single.{case}.grad_logits"])


def test_box_losses_and_gradients_equal_the_recording(recorded: dict, targets: list) -> None:
    output = RTDETROutput(jt.array(recorded["logits"]), jt.array(recorded["boxes"]))
    weights = {"loss_bbox": 1, "loss_giou": 1}

    terms = RTDETRCriterion(CLASSES, losses=["boxes"], weights=weights)(output, targets)
    gradient = jt.grad(total(terms), output.boxes)

    for name in weights:
        assert terms[name].item() == pytest.approx(recorded[f"single.boxes.{name}"], rel=1e-5)
    assert_close(gradient, recorded["single.boxes.grad_boxes"])


def test_figures_without_gradient_equal_the_recording(recorded: dict, targets: list) -> None:
    weights = {"class_error": 1, "cardinality_error": 1}
    errors = {}
    for logits in ("logits", "logits_bg"):
        output = RTDETROutput(jt.array(recorded[logits]), jt.array(recorded["boxes"]))
        matcher = HungarianMatcher(focal=logits == "logits")
        criterion = RTDETRCriterion(
            CLASSES, matcher, losses=["labels", "cardinality"], weights=weights
        )
        terms = criterion(output, targets)
        errors[logits] = {name: value.item() for name, value in terms.items()}

    assert errors["logits_bg"]["class_error"] == recorded["single.labels.class_error"]
    assert errors["logits_bg"]["cardinality_error"] == recorded["single.cardinality_error"]


def test_all_layers_equal_the_recording(recorded: dict, targets: list) -> None:
    output = whole_output(recorded, denoising=True)
    last = output.denoising[1]

    terms = RTDETRCriterion(CLASSES)(output, targets)
    gradients = jt.grad(total(terms), [output.logits, output.boxes, last.logits, last.boxes])

    assert sorted(terms) == sorted(recorded["full.names"])
    values = [terms[name].item() for name in recorded["full.names"]]
    np.testing.assert_allclose(values, recorded["full.values"], rtol=1e-5)
    assert total(terms).item() == pytest.approx(recorded["full.total"].item(), rel=1e-6)
    names = ("full.grad_logits", "full.grad_boxes", "full.dn1_grad_logits", "full.dn1_grad_boxes")
    for gradient, name in zip(gradients, names, strict=True):
        assert_close(gradient, recorded[name])


def test_a_batch_without_any_box_equals_the_recording(recorded: dict) -> None:
    none = SimpleNamespace(labels=np.zeros(0, np.int64), boxes=np.zeros((0, 4), np.float32))
    output = whole_output(recorded, denoising=False)

    terms = RTDETRCriterion(CLASSES)(output, [none] * 3)
    gradient = jt.grad(total(terms), output.logits)

    assert sorted(terms) == sorted(recorded["empty.names"])
    values = [terms[name].item() for name in recorded["empty.names"]]
    np.testing.assert_allclose(values, recorded["empty.values"], rtol=1e-5)
    assert_close(gradient, recorded["empty.grad_logits"])


def test_terms_are_divided_by_the_boxes_of_an_average_rank(recorded: dict, targets: list) -> None:
    output = whole_output(recorded, denoising=True)

    alone = RTDETRCriterion(CLASSES)(output, targets)
    # The other rank has three times as many boxes: 20 on average where this one has 10.
    among = RTDETRCriterion(CLASSES, reduce_mean=lambda count: 2 * count)(output, targets)

    for name, value in alone.items():
        assert among[name].item() == pytest.approx(value.item() / 2, rel=1e-6)


def test_a_nan_names_the_layer_and_the_image(recorded: dict, targets: list) -> None:
    output = whole_output(recorded, denoising=False)
    boxes = output.auxiliary[1].boxes.numpy()
    boxes[2, 5, 0] = np.nan
    output.auxiliary[1].boxes = jt.array(boxes)

    with pytest.raises(DivergedError, match=r"auxiliary output 1 for image 2 .* query 5 .* nan"):
        RTDETRCriterion(CLASSES)(output, targets)


@pytest.mark.parametrize(
    ("label", "box", "message"),
    [
        (7, [0.5, 0.5, 0.1, 0.1], "image 1 .*label 7 of box 0"),
        (-1, [0.5, 0.5, 0.1, 0.1], "image 1 .*label -1 of box 0"),
        (0, [0.5, 1.5, 0.1, 0.1], r"image 1 .*box 0 is \[0.5, 1.5"),
        (0, [0.5, 0.5, 0.0, 0.1], "image 1 .*width and height above 0"),
        (0, [0.5, np.nan, 0.1, 0.1], r"image 1 .*\[0.5, nan"),
        (0, [0.5, 0.5], r"image 1 .*\(1, 2\)"),
    ],
)
def test_an_impossible_target_names_its_image_and_value(
    targets: list, label: int, box: list[float], message: str
) -> None:
    bad = SimpleNamespace(labels=np.array([label]), boxes=np.float32([box]))

    with pytest.raises(TargetError, match=message):
        TargetBatch([targets[0], bad], CLASSES)


def test_targets_of_another_number_of_images_are_refused(recorded: dict, targets: list) -> None:
    output = whole_output(recorded, denoising=False)

    with pytest.raises(ValueError, match="2 targets for predictions of 3 images"):
        RTDETRCriterion(CLASSES)(output, targets[:2])


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown losses vlf; known are vfl"):
        RTDETRCriterion(CLASSES, losses=["vlf"])
    with pytest.raises(ValueError, match=r"unknown weights loss_box; known are .*loss_bbox"):
        RTDETRCriterion(CLASSES, weights={"loss_box": 1})
