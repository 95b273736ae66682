"""The detection task on a network of two parameters, so that nothing large is compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import jittor as jt
import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.image_logger import ImageLogger
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.data.datamodule import DataModule
from jtlightning.optim import SGD
from jtlightning.trainer import Trainer
from jtlightning.trainer.step import NonFiniteLossError
from segtasks.data import CocoDataModule
from segtasks.losses.matcher import HungarianMatcher
from segtasks.models.rtdetr.outputs import RTDETROutput
from segtasks.tasks import RTDETRTask
from segtasks.tasks.parameter_patterns import ParameterPattern
from segtasks.visualize_boxes import Boxes, detection_sheet
from tests.segtasks.tasks.constant_detector import OBJECTS, Constant, make_data, make_trainer

CATEGORIES = (3, 8)
SIZE = (48, 64)


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> CocoDataModule:
    """Four images with the same two objects, for training and validation alike."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(4):
        name = f"{number}.png"
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / name), pixels)
        images.append({"id": 10 + number, "file_name": name, "height": 48, "width": 64})
        annotations += [
            {"id": 0, "image_id": 10 + number, "category_id": CATEGORIES[label], "bbox": box}
            for label, box in OBJECTS
        ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
    categories = [
        {"id": i, "name": name} for i, name in zip(CATEGORIES, ("cat", "dog"), strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return make_data(root, content, images="images", batch_size=2, val_batch_size=3)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_validation_logs_what_is_defined(tmp_path: Path, data: CocoDataModule) -> None:
    network = Constant()
    metrics = make_trainer(tmp_path).validate(RTDETRTask(network, voc=True), datamodule=data)
    assert metrics["val/ap"] == metrics["val/ap50"] == pytest.approx(1)
    assert metrics["val/ar1"] == pytest.approx(1)
    assert metrics["val/voc_map_2007"] == metrics["val/voc_map_2010"] == pytest.approx(1)
    assert metrics["val/ap_small"] == pytest.approx(1)
    assert "val/ap_large" not in metrics
    assert network.sizes == [((3, 3, 32, 64), None), ((1, 3, 32, 64), None)]


def test_images_are_divided_by_255_alone(tmp_path: Path, data: CocoDataModule) -> None:
    class Watching(Constant):
        def execute(self, image: jt.Var, targets: Any = None, size: Any = None) -> RTDETROutput:
            self.seen = image.numpy()
            return super().execute(image, targets, size)

    network = Watching()
    make_trainer(tmp_path, limit_val_batches=1).validate(RTDETRTask(network), datamodule=data)
    data.setup("validate")
    expected = next(data.val_dataloader().batches(0)).image
    np.testing.assert_allclose(network.seen, expected / 255, atol=1e-7)


def test_a_test_writes_results_detections_and_pictures(
    tmp_path: Path, data: CocoDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Constant()
    network.box.update(jt.array([[0.25, 1 / 3, 0.25, 1 / 3], [0.1, 0.8, 0.1, 0.1]]))  # no dog
    trainer = make_trainer(tmp_path)
    metrics = trainer.test(RTDETRTask(network, voc=True, pictures=3), datamodule=data)
    assert metrics["test/ap50"] == pytest.approx(0.5)
    assert trainer.run is not None
    results = read(trainer.run.path / "results.json")
    assert (results["unit"], results["images"]) == ("0 to 1", 4)
    assert results["protocol"]["ious"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    assert results["scores"]["ap"] == pytest.approx(0.5)
    assert results["scores"]["ap_large"] is None
    found = {"objects": 4, "ap": 1, "ap50": 1, "voc_2007": 1, "voc_2010": 1}
    missed = {"objects": 4, "ap": 0, "ap50": 0, "voc_2007": 0, "voc_2010": 0}
    assert results["classes"] == {"cat": pytest.approx(found), "dog": missed}
    detections = read(trainer.run.path / "detections.json")
    best = [d for d in detections if d["image_id"] == 12 and d["category_id"] == 3]
    assert best[0]["bbox"] == pytest.approx([8, 8, 16, 16], abs=1e-3)
    assert best[0]["score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    sheet = cv2.imread(str(trainer.run.pictures / "detections.png"))
    assert sheet.shape == (32 + 3 * (300 + 8), 824, 3)
    printed = capsys.readouterr().out
    assert "cat" in printed
    assert "AP medium" in printed


def test_predictions_are_drawn_and_written(tmp_path: Path, data: CocoDataModule) -> None:
    trainer = make_trainer(tmp_path)
    outputs = trainer.predict(RTDETRTask(Constant(), score_threshold=0.5), datamodule=data)
    found = {name: image for batch in outputs for name, image in batch.items()}
    assert list(found) == [f"images/{i}.png" for i in range(4)]
    assert found["images/1.png"].labels[:2].tolist() == [0, 1]
    assert found["images/1.png"].scores[2] < 0.5
    assert trainer.run is not None
    records = read(trainer.run.path / "detections.json")
    assert [r["image_id"] for r in records] == [i for i in (10, 11, 12, 13) for _ in range(4)]
    drawn = cv2.imread(str(trainer.run.path / "predictions" / "images_1.png"))
    plain = cv2.imread(str(data.root / "images" / "1.png"))
    assert drawn.shape == plain.shape


def test_training_logs_the_total_and_each_term(tmp_path: Path, data: CocoDataModule) -> None:
    network = Constant(score=0.0)
    right = network.box.numpy()
    network.box.update(network.box + 0.05)
    task = RTDETRTask(
        network,
        optimizer=SGD(lr=1e-4),
        param_groups=[ParameterPattern("^box$", lr=1e-3, name="boxes")],
    )
    trainer = make_trainer(tmp_path, max_epochs=20, limit_train_batches=1, log_every_n_steps=1)
    trainer.fit(task, datamodule=data)
    metrics = trainer.metrics
    terms = ["train/loss_vfl", "train/loss_bbox", "train/loss_giou"]
    assert metrics["train/loss"] == pytest.approx(sum(metrics[name] for name in terms), rel=1e-5)
    assert np.abs(network.box.numpy() - right).mean() < 0.02
    assert trainer.learning_rates() == {"lr/boxes": 1e-3, "lr/rest": 1e-4}


def test_a_batch_that_cannot_be_learnt_from_is_named(tmp_path: Path, data: CocoDataModule) -> None:
    class Infinite(RTDETRTask):
        def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
            return super().training_step(batch, batch_idx) * float("inf")

    trainer = make_trainer(tmp_path, max_epochs=1, logger=False, num_sanity_val_steps=0)
    with pytest.raises(NonFiniteLossError, match=r"batch 0, at step 0.*\.png"):
        trainer.fit(Infinite(Constant()), datamodule=data)


def test_the_criterion_is_the_one_asked_for(tmp_path: Path, data: CocoDataModule) -> None:
    matcher = HungarianMatcher(class_weight=1.0)
    task = RTDETRTask(
        Constant(),
        losses=("focal",),
        loss_weights={"loss_focal": 3.0},
        loss_alpha=0.5,
        loss_gamma=1.0,
        matcher=matcher,
    )
    used = task.criterion
    assert (used.weights, used.alpha, used.gamma) == ({"loss_focal": 3.0}, 0.5, 1.0)
    assert used.matcher is matcher
    trainer = make_trainer(tmp_path, max_steps=1, log_every_n_steps=1)
    trainer.fit(task, datamodule=data)
    assert "train/loss_focal" in trainer.metrics
    assert "train/loss_vfl" not in trainer.metrics


class Sizes(Callback):
    """Remembers which size each step was trained at."""

    def __init__(self) -> None:
        self.drawn: dict[int, Any] = {}

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.drawn[trainer.global_step] = task.model.sizes[-1][1]


def test_sizes_are_those_of_an_uninterrupted_run(tmp_path: Path, data: CocoDataModule) -> None:
    def fit(folder: Path, steps: int, **options: Any) -> tuple[dict[int, Any], list[Any]]:
        network, sizes = Constant(), Sizes()
        task = RTDETRTask(network, multi_scale=[32, 64, 96], optimizer=SGD(lr=1e-4))
        trainer = make_trainer(folder, max_steps=steps, callbacks=[sizes])
        trainer.fit(task, datamodule=data, **options)
        return sizes.drawn, network.sizes

    whole, called = fit(tmp_path / "whole", 8)
    # The first batches of the four epochs.
    assert len({whole[step] for step in (1, 3, 5, 7)}) > 1
    assert set(whole.values()) <= {(32, 32), (64, 64), (96, 96)}
    validated = [size for shape, size in called if shape[0] in (3, 1)]
    assert validated
    assert set(validated) == {None}
    parts, _ = fit(tmp_path / "parts", 3)
    resumed, _ = fit(tmp_path / "parts", 8, ckpt_path="last")
    assert sorted(resumed) == [4, 5, 6, 7, 8]
    assert parts | resumed == whole


def test_validation_pictures_show_what_was_annotated(tmp_path: Path, data: CocoDataModule) -> None:
    network = Constant()
    network.logits.update(jt.array([[2.0, -4.0], [-4.0, -4.0]]))
    trainer = make_trainer(tmp_path, callbacks=[ImageLogger(limit=2)])
    trainer.validate(RTDETRTask(network), datamodule=data)
    assert trainer.run is not None
    drawn = sorted((trainer.run.pictures / "predictions" / "images").iterdir())
    assert [path.name for path in drawn] == ["0.png-step0000000.png", "1.png-step0000000.png"]
    corners = np.array([[8, 8, 24, 24], [32, 16, 56, 40]], np.float64)
    annotated = Boxes(np.array([0, 1]), corners)
    score = np.array([1 / (1 + np.exp(-2))])
    detected = Boxes(np.array([0]), corners[:1], score)
    pixels = next(data.val_dataloader().batches(0)).image[0].transpose(1, 2, 0)
    picture = cv2.resize(np.ascontiguousarray(pixels), (64, 48), interpolation=cv2.INTER_LINEAR)
    expected = detection_sheet([picture], [annotated], [detected], ["cat", "dog"])
    np.testing.assert_array_equal(cv2.imread(str(drawn[0]))[..., ::-1], expected)


def test_weights_of_a_file_start_the_network(tmp_path: Path) -> None:
    arrays = {"logits": np.ones((2, 2), np.float32), "box": np.full((2, 4), 0.5, np.float32)}
    write_torch(tmp_path / "start.pth", {"ema": {"module": arrays}})
    task = RTDETRTask(Constant(), weights=str(tmp_path / "start.pth"), skip_weights=["box"])
    np.testing.assert_array_equal(task.model.logits.numpy(), arrays["logits"])
    np.testing.assert_array_equal(task.model.box.numpy(), Constant().box.numpy())


def test_mistakes_are_told_before_any_work(tmp_path: Path, data: CocoDataModule) -> None:
    with pytest.raises(ValueError, match="multi_scale takes multiples of 32, got 100"):
        RTDETRTask(Constant(), multi_scale=[96, 100])
    with pytest.raises(ValueError, match=r"score_threshold must lie between 0 and 1, got 40"):
        RTDETRTask(Constant(), score_threshold=40)
    with pytest.raises(ValueError, match="5 classes apart, CocoDataModule has 2"):
        make_trainer(tmp_path).fit(RTDETRTask(Constant(5)), datamodule=data)
    with pytest.raises(ValueError, match=r"val_annotations\), got DataModule"):
        make_trainer(tmp_path).validate(RTDETRTask(Constant()), datamodule=DataModule())


def test_the_summary_sees_one_image_of_the_training_size(
    tmp_path: Path, data: CocoDataModule
) -> None:
    task = RTDETRTask(Constant())
    make_trainer(tmp_path, max_steps=1, enable_model_summary=True).fit(task, datamodule=data)
    assert ((1, 3, 32, 64), None) in task.model.sizes
