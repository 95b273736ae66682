"""`segtasks predict` with a detector: boxes on images, folders and videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segtasks import load_detector
from segtasks.__main__ import main
from segtasks.commands.video import open_video

ROOT = Path(__file__).parents[3]
NAMES = ("--class_names", "red", "green")


def square(left: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """A BGR picture with a red box of 32x32 pixels, 16 from the top."""
    picture = np.full((*size, 3), 20, np.uint8)
    picture[16:48, left : left + 32] = (0, 0, 255)
    return picture


@pytest.fixture
def predict(bright_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*options: str | Path) -> int:
        return main(["predict", "--ckpt_path", str(bright_checkpoint), *map(str, options)])

    return run


def write_video(path: Path, codec: str, lefts: range, rate: float = 12.5) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, (96, 64))
    for left in lefts:
        writer.write(square(left))
    writer.release()


def test_a_folder_gives_pictures_and_a_list_of_detections(
    predict: Any, tmp_path: Path, bright_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    paths = [tmp_path / f"images/{name}.png" for name in ("a", "b", "c")]
    for path, left in zip(paths, (0, 16, 48), strict=True):
        cv2.imwrite(str(path), square(left))
    assert predict("--rgb", "images", *NAMES, "--batch_size", 2) == 0
    assert "3 objects in 3 images" in capsys.readouterr().out
    summary = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert summary["score_threshold"] == 0.4
    assert summary["network_input"] == [64, 64]
    assert summary["classes"] == ["red", "green"]
    results = load_detector(bright_checkpoint, class_names=["red", "green"]).predict(paths)
    for row, path, result, left in zip(summary["images"], paths, results, (0, 16, 48), strict=True):
        best = result.above(0.4)
        assert row["name"] == path.stem
        assert row["size"] == [64, 96]
        assert row["detections"] == best.records()
        np.testing.assert_allclose(
            row["detections"][0]["box_xyxy"], [left, 16, left + 32, 48], atol=1.6
        )
        drawn = cv2.imread(str(tmp_path / "predictions" / row["files"]["boxes"]))[..., ::-1]
        np.testing.assert_array_equal(drawn, best.draw())
    again = ("--rgb", paths[1], *NAMES)
    assert predict(*again) == 2
    assert "predictions.json, predictions/boxes/b.png would be" in capsys.readouterr().err
    assert predict(*again, "--overwrite", "--score_threshold", "0", "--max_detections", 1) == 0
    (row,) = json.loads((tmp_path / "predictions/predictions.json").read_text())["images"]
    assert len(row["detections"]) == 1
    assert predict(*again, "--overwrite", "--score_threshold", "0") == 0
    (row,) = json.loads((tmp_path / "predictions/predictions.json").read_text())["images"]
    assert len(row["detections"]) == 2  # both classes


@pytest.mark.parametrize(("ending", "codec"), [(".mp4", "mp4v"), (".avi", "MJPG")])
def test_a_video_is_drawn_frame_by_frame(
    predict: Any,
    tmp_path: Path,
    bright_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    ending: str,
    codec: str,
) -> None:
    source = tmp_path / f"clip{ending}"
    write_video(source, codec, range(0, 56, 8))
    assert predict("--rgb", source, *NAMES, "--batch_size", 3, "--out", "out") == 0
    assert f"7 objects in 7 frames, clip{ending}" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/predictions.json").read_text())
    assert summary["video"] == {
        "file": str(source),
        "size": [64, 96],
        "frames_per_second": 12.5,
        "written": f"clip{ending}",
    }
    for number, frame in enumerate(summary["frames"]):
        assert frame["frame"] == number
        assert frame["seconds"] == number / 12.5
        (found,) = frame["detections"]
        # Compression blurs the border of the square.
        left = 8 * number
        np.testing.assert_allclose(found["box_xyxy"], [left, 16, left + 32, 48], atol=3)
    written = open_video(tmp_path / f"out/clip{ending}")
    assert (written.size, written.rate, written.frames) == ((64, 96), 12.5, 7)
    detector = load_detector(bright_checkpoint, class_names=["red", "green"])
    for before, after in zip(open_video(source).read(), written.read(), strict=True):
        drawn = detector.predict(before, input_order="bgr", score_threshold=0.4).draw()[..., ::-1]
        # Compression changes what is drawn, but less than drawing changed the frame.
        distances = [np.abs(after.astype(int) - other).mean() for other in (drawn, before)]
        assert distances[0] < 0.5 * distances[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"clip{ending}",
        "predictions.json",
    ]


def test_a_video_is_never_replaced_by_itself(
    predict: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "clip.mp4"
    write_video(source, "mp4v", range(2))
    content = source.read_bytes()
    assert predict("--rgb", source, *NAMES, "--out", tmp_path, "--overwrite") == 2
    assert "would replace the video" in capsys.readouterr().err
    assert source.read_bytes() == content


def test_an_error_within_a_video_leaves_no_part_of_it(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "clip.mp4"
    write_video(source, "mp4v", range(4))

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segtasks.predictors.detection.DetectionResult.records", fail)
    assert predict("--rgb", source, *NAMES, "--out", "out") == 130
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("bright_checkpoint")
def test_ctrl_c_ends_the_command_with_130(tmp_path: Path) -> None:
    """In a process of its own, where Jittor takes the signal when it is imported."""
    module = tmp_path / "bright_detector.py"
    interrupt = "import os, signal\n        os.kill(os.getpid(), signal.SIGINT)\n        "
    module.write_text(module.read_text().replace("pixels = image", f"{interrupt}pixels = image"))
    cv2.imwrite(str(tmp_path / "a.png"), square(0))
    options = ("--ckpt_path", "bright.ckpt", "--rgb", "a.png", "--out", "out")
    done = subprocess.run(
        [sys.executable, "-m", "segtasks", "predict", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted; what was written before is whole" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["jittor.log"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rgb", "nowhere.mp4"), "video nowhere.mp4 does not exist"),
        (("--rgb", "broken.mp4"), "video broken.mp4 cannot be read (4 bytes)"),
        (("--rgb", "nowhere.png"), "--rgb nowhere.png: there is no such file or folder"),
        (("--rgb", "empty"), "--rgb empty: no file there ends with .png"),
        (("--rgb", "broken.png"), "broken.png: the file is neither PNG nor JPEG"),
        (("--rgb", "empty", "--depth", "empty"), "--depth has no meaning for detection"),
        (("--rgb", "empty", "--protocol", "single"), "--protocol has no meaning for detection"),
        (("--rgb", "empty", "--write", "labels"), "--write has no meaning for detection"),
        (("--split", "train"), "for detection the split is test"),
        (("--split", "test"), "gone"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_any_work(
    predict: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was made")

    monkeypatch.setattr("segtasks.predictors.loading.build_detector", no_work)
    for name in ("broken.mp4", "broken.png"):
        (tmp_path / name).write_bytes(b"none")
    (tmp_path / "empty").mkdir()
    assert predict(*options) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_options_of_detection_are_refused_for_segmentation(
    dformer_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "--ckpt_path", str(dformer_checkpoint), "--split", "test"]
    assert main([*command, "--score_threshold", "0.5"]) == 2
    assert "--score_threshold has no meaning for segmentation" in capsys.readouterr().err


def test_a_split_is_the_validation_s(
    predict: Any, tmp_path: Path, rooms_arguments: dict[str, Any]
) -> None:
    options = ("--data=segtasks.data.RoomsDetectionDataModule", "--data.size=[64, 64]")
    rooms = ("--data.train=2", "--data.val=3", "--data.scene_size=[64, 96]")
    cache = f"--data.cache_dir={rooms_arguments['cache_dir']}"
    assert predict("--split", "test", *options, *rooms, cache) == 2  # the network knows two
    assert predict("--split", "test", "--task.model.num_classes=5", *options, *rooms, cache) == 0
    summary = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert [Path(row["file"]).stem for row in summary["images"]] == ["0003", "0004", "0005"]
    assert summary["batch_size"] == 8
    assert summary["classes"] == ["picture", "rug", "cabinet", "column", "ball"]
    for row in summary["images"]:
        assert (tmp_path / "predictions" / row["files"]["boxes"]).is_file()
