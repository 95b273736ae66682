"""A segmenter says what the trainer says of the same checkpoint, however it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.ema import EMA
from jtlightning.trainer import Trainer
from segtasks import load_segmenter
from segtasks.data import RoomsDataModule
from segtasks.inference import MultiScaleFlip, SingleScale, Sliding
from segtasks.models.dformer import dformer_tiny
from segtasks.predictors import PredictionError, Segmenter
from segtasks.predictors.inputs import Preparation
from segtasks.tasks import SegmentationTask

SIZE = (6, 8)


class ByDepth(nn.Module):
    """Class 0 to 2 by the grey level of the depth, and 3 where the first channel is bright."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.seen: list[tuple[int, ...]] = []

    def execute(self, image: jt.Var, depth: jt.Var) -> jt.Var:
        self.seen.append(tuple(image.shape))
        levels = jt.array(np.array([-1.6, 0.0, 1.6], np.float32)).reshape((1, 3, 1, 1))
        distance = depth[:, :1] - levels
        return jt.concat([-distance * distance, (image[:, :1] - 1.9) * 100], dim=1)


def pixels(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    return rng.integers(0, 200, (*size, 3), dtype=np.uint8)


def grey(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    return rng.choice(np.array([10, 122, 245], np.uint8), size)


def classes_of(depth: np.ndarray) -> np.ndarray:
    return np.searchsorted([60, 180], depth)


@pytest.fixture(scope="module")
def rooms(rooms_arguments: dict[str, Any]) -> RoomsDataModule:
    data = RoomsDataModule(**rooms_arguments)
    data.prepare_data()
    return data


@pytest.fixture(scope="module")
def files(rooms: RoomsDataModule) -> tuple[list[Path], list[Path]]:
    names = ("0003.png", "0004.png", "0005.png")
    return [rooms.root / "RGB" / n for n in names], [rooms.root / "Depth" / n for n in names]


@pytest.fixture(scope="module")
def segmenter(dformer_checkpoint: Path) -> Segmenter:
    return load_segmenter(dformer_checkpoint, device="cpu")


def test_prediction_equals_the_trainer_s_of_the_same_checkpoint(
    tmp_path: Path,
    dformer_checkpoint: Path,
    rooms: RoomsDataModule,
    files: tuple[list[Path], list[Path]],
    segmenter: Segmenter,
) -> None:
    for callbacks, weights in (([EMA()], "auto"), ([], "raw")):
        trainer = Trainer(
            default_root_dir=str(tmp_path),
            accelerator="cpu",
            seed=3,
            callbacks=list(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        task = SegmentationTask(dformer_tiny(8))
        batches = trainer.predict(task, datamodule=rooms, ckpt_path=dformer_checkpoint)
        expected = {name: label for batch in batches for name, label in batch.items()}
        assert min(len(np.unique(label)) for label in expected.values()) > 3
        asked = (
            segmenter if weights == "auto" else load_segmenter(dformer_checkpoint, weights="raw")
        )
        results = asked.predict(*files, batch_size=2)
        assert [result.name for result in results] == list(expected)
        for result in results:
            np.testing.assert_array_equal(result.label, expected[result.name])
            assert result.label.dtype == np.uint8


def test_averaged_and_raw_weights_say_different_things(
    dformer_checkpoint: Path, files: tuple[list[Path], list[Path]], segmenter: Segmenter
) -> None:
    averaged = load_segmenter(dformer_checkpoint, weights="ema")
    raw = load_segmenter(dformer_checkpoint, weights="raw")
    first = (files[0][0], files[1][0])
    np.testing.assert_array_equal(averaged.predict(*first).label, segmenter.predict(*first).label)
    assert (raw.predict(*first).label != averaged.predict(*first).label).mean() > 0.3


def test_arrays_give_what_their_files_give(
    files: tuple[list[Path], list[Path]], segmenter: Segmenter
) -> None:
    rgb, depth = str(files[0][1]), str(files[1][1])
    expected = segmenter.predict(rgb, depth, with_scores=True)
    bgr, raw = cv2.imread(rgb), cv2.imread(depth, cv2.IMREAD_UNCHANGED)
    assert expected.scores is not None
    assert expected.scores.shape == (8, 64, 96)
    np.testing.assert_allclose(expected.scores.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(expected.scores.argmax(0), expected.label)
    np.testing.assert_array_equal(expected.image, bgr[..., ::-1])
    np.testing.assert_array_equal(expected.depth, raw)
    for image, order in ((bgr[..., ::-1], "rgb"), (bgr, "bgr")):
        for its_depth in (raw, raw[..., None], np.dstack([raw] * 3)):
            result = segmenter.predict(image, its_depth, input_order=order, with_scores=True)
            np.testing.assert_array_equal(result.scores, expected.scores)
            np.testing.assert_array_equal(result.image, expected.image)
            assert result.name == "0"


def test_asking_again_gives_the_same_answer(
    files: tuple[list[Path], list[Path]], segmenter: Segmenter
) -> None:
    pair = (files[0][2], files[1][2])
    first = segmenter.predict(*pair, with_scores=True)
    jt.rand(7).sync()
    np.testing.assert_array_equal(segmenter.predict(*pair, with_scores=True).scores, first.scores)


@pytest.mark.parametrize(
    "protocol",
    [Sliding((48, 64)), MultiScaleFlip([1.0, 1.25], window=Sliding((64, 64)))],
    ids=["sliding", "scales_flip_sliding"],
)
def test_any_protocol_can_be_asked_for_in_batches(
    files: tuple[list[Path], list[Path]], segmenter: Segmenter, protocol: Any
) -> None:
    """The protocols themselves are compared with recorded scores in test_inference."""
    results = segmenter.predict(*files, protocol=protocol, batch_size=3, with_scores=True)
    plain = segmenter.predict(*files, batch_size=3, with_scores=True)
    for result, other in zip(results, plain, strict=True):
        assert result.scores is not None
        assert other.scores is not None
        np.testing.assert_allclose(result.scores.sum(0), 1, atol=1e-5)
        assert np.abs(result.scores - other.scores).max() > 1e-3
        assert (result.label == other.label).mean() > 0.4


def test_images_of_several_sizes_keep_their_order(rng: np.random.Generator) -> None:
    sizes = [SIZE, (5, 7), SIZE, (5, 7), SIZE]
    network = ByDepth()
    depths = [grey(rng, size) for size in sizes]
    results = Segmenter(network).predict(
        [pixels(rng, size) for size in sizes], depths, batch_size=2
    )
    for index, (result, depth) in enumerate(zip(results, depths, strict=True)):
        np.testing.assert_array_equal(result.label, classes_of(depth))
        assert result.name == str(index)
    assert network.seen == [(2, 3, 6, 8), (1, 3, 6, 8), (2, 3, 5, 7)]


def test_channel_order_of_the_network_and_of_the_input_are_two_things(
    rng: np.random.Generator,
) -> None:
    red = np.zeros((*SIZE, 3), np.uint8)
    red[..., 0] = 255
    for wanted, given, bright in (
        ("rgb", "rgb", True),
        ("bgr", "rgb", False),
        ("rgb", "bgr", False),
        ("bgr", "bgr", True),
    ):
        segmenter = Segmenter(ByDepth(), preparation=Preparation(channel_order=wanted))
        result = segmenter.predict(red, grey(rng), input_order=given)
        assert (result.label == 3).all() == bright
        shown = red if given == "rgb" else red[..., ::-1]
        np.testing.assert_array_equal(result.image, shown)


def test_padding_is_seen_by_the_network_and_not_in_the_result(rng: np.random.Generator) -> None:
    network, depth = ByDepth(), grey(rng)
    segmenter = Segmenter(network, preparation=Preparation(pad_to=(9, 11)))
    images = [pixels(rng), pixels(rng, (9, 4))]
    results = segmenter.predict(images, [depth, grey(rng, (9, 4))], batch_size=2, with_scores=True)
    assert network.seen == [(2, 3, 9, 11)]
    np.testing.assert_array_equal(results[0].label, classes_of(depth))
    assert results[0].scores is not None
    assert results[0].scores.shape == (4, *SIZE)
    assert results[1].label.shape == (9, 4)
    with pytest.raises(PredictionError, match=r"rgb\[0\] is 10x8, larger than pad_to 9x11"):
        segmenter.predict(pixels(rng, (10, 8)), grey(rng, (10, 8)))


def test_wide_depth_becomes_grey_values_by_depth_max(rng: np.random.Generator) -> None:
    depth = grey(rng)
    segmenter = Segmenter(ByDepth(), preparation=Preparation(depth_max=10_000))
    raw = np.round(depth * (10_000 / 255)).astype(np.uint16)
    result = segmenter.predict(pixels(rng), raw)
    np.testing.assert_array_equal(result.depth, depth)
    np.testing.assert_array_equal(result.label, classes_of(depth))


def test_pictures_of_a_result(rng: np.random.Generator) -> None:
    depth = grey(rng)
    result = Segmenter(ByDepth(), class_names=["a", "b", "c", "d"]).predict(pixels(rng), depth)
    palette = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]], np.uint8)
    np.testing.assert_array_equal(result.colours(palette), palette[classes_of(depth)])
    np.testing.assert_array_equal(result.overlay(1.0, palette), palette[classes_of(depth)])
    np.testing.assert_array_equal(result.overlay(0.0), result.image)
    counted = {n: int((classes_of(depth) == i).sum()) for i, n in enumerate("abc")}
    assert result.pixels() == {name: n for name, n in counted.items() if n}
    with pytest.raises(PredictionError, match="3 colours for 4 classes"):
        result.colours(palette[:3])
    with pytest.raises(PredictionError, match=r"a palette is \(K, 3\) uint8, got \(4, 3\) float64"):
        result.colours(palette / 255)


def test_a_stream_reads_a_file_when_its_batch_comes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels(rng))
        cv2.imwrite(str(tmp_path / f"{name}_depth.png"), grey(rng))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    stream = Segmenter(ByDepth()).stream(paths, [p.with_stem(f"{p.stem}_depth") for p in paths])
    assert next(stream)[1].name == "a"
    paths[1].unlink()
    with pytest.raises(ValueError, match=r"b\.png: the file is missing"):
        next(stream)


def test_a_network_s_mode_and_gradients_stay_as_they_are(rng: np.random.Generator) -> None:
    class Watched(ByDepth):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Module()
            self.part.factor = jt.ones(1)

        def execute(self, image: jt.Var, depth: jt.Var) -> jt.Var:
            assert not self.is_training()
            assert not self.part.is_training()
            result = super().execute(image * self.part.factor, depth)
            assert not result.requires_grad
            return result

    network = Watched()
    network.is_train = network.part.is_train = True
    Segmenter(network, protocol=SingleScale()).predict(pixels(rng), grey(rng))
    assert network.is_training()
    assert network.part.is_training()
    assert network.part.factor.requires_grad


def test_networks_that_cannot_be_labels_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(PredictionError, match=r"num_classes of ByDepth is 256; .* 1 to 255"):
        Segmenter(ByDepth(256))
    with pytest.raises(PredictionError, match="num_classes of Linear is None"):
        Segmenter(nn.Linear(2, 2))
    with pytest.raises(PredictionError, match="tells 4 classes apart, and class_names has 2"):
        Segmenter(ByDepth(), class_names=["a", "b"])
    with pytest.raises(PredictionError, match="scores of 4 classes, and its num_classes is 7"):
        Segmenter(ByDepth(7)).predict(pixels(rng), grey(rng))
