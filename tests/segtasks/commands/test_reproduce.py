"""`segtasks reproduce` on a network of one convolution, whose published score is made up here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from jtlightning.checkpoint.torch_export import write_torch
from segtasks.commands import reproduce
from segtasks.commands.published import Published

NETWORK = """
import jittor as jt
from jittor import nn

class ByDepth(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.offset = num_classes, jt.zeros(num_classes)

    def execute(self, image, depth):
        levels = jt.array([-1.0, 0.0, 1.0]).reshape((1, -1, 1, 1))
        distance = depth[:, :1] - levels
        return self.offset.reshape((1, -1, 1, 1)) - distance * distance
"""
CONFIG = """
trainer: {accelerator: cpu, enable_progress_bar: false}
data:
  class_path: segtasks.data.RGBDDataModule
  init_args: {root: data, num_classes: 3, crop_size: [24, 32], num_workers: 0}
task:
  class_path: segtasks.tasks.SegmentationTask
  init_args: {model: {class_path: network_to_reproduce.ByDepth}, pictures: 0}
"""
ROW = Published(
    dataset="Made up",
    num_classes=3,
    images=2,
    metric="test/miou",
    score=1.0,
    parameters_m=None,
    flops_g=1.0,
    size=(24, 32),
    source="a table",
    multi_scale=True,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two samples whose halves differ in depth, a network and its file."""
    monkeypatch.chdir(tmp_path)
    label = np.tile(np.repeat([1, 2, 3], 32), (64, 1)).astype(np.uint8)
    for index in range(2):
        grey = np.round(255 * (0.48 + 0.28 * (label - 2.0))).astype(np.uint8)
        image = np.zeros((*label.shape, 3), np.uint8)
        for name, pixels in (("RGB", image), ("Depth", grey), ("Label", label)):
            Path("data", name).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(f"data/{name}/{index}.png", pixels)
    for split in ("train", "test"):
        Path("data", f"{split}.txt").write_text("RGB/0.png\nRGB/1.png\n")
    Path("network_to_reproduce.py").write_text(NETWORK)
    Path("own.yaml").write_text(CONFIG)
    official("official.pth", np.zeros(3, np.float32))
    return tmp_path


def official(file: str, offset: np.ndarray) -> None:
    """A training state as official programs save it, its names with the prefix `module.`."""
    network = {"module.offset": offset}
    write_torch(Path(file), {"model": network, "optimizer": {"lr": 6e-5}, "epoch": 499})


def publish(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    row = Published(**{**vars(ROW), **changes})
    monkeypatch.setattr(reproduce, "find_published", lambda *_: row)


def run(*options: str) -> int:
    return reproduce.main(["--config", "own.yaml", "--weights", "official.pth", *options])


def record() -> dict[str, Any]:
    (file,) = Path("runs/reproduce_own").rglob("reproduce.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_a_number_that_comes_out_gives_0(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch, score=0.999)

    assert run("--json", "mine.json", "--tolerance", "0.5") == 0

    assert Path("mine.json").read_text() == json.dumps(record(), indent=2) + "\n"
    found = record()
    assert found["expected"] == 0.999
    assert found["measured"] == pytest.approx(1)
    assert found["tolerance"] == 0.005
    assert found["within"] is True
    assert found["images"] == 2
    assert found["unit"] == "0 to 1"
    assert found["weights_sha256"] == hashlib.sha256(Path("official.pth").read_bytes()).hexdigest()
    assert found["protocol"] == {
        "protocol": "multi_scale",
        "scales": [0.5, 0.75, 1.0, 1.25, 1.5],
        "flip": True,
        "window": None,
    }
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "99.9" in line).split()
    assert row[0] == "miou"
    assert row[1] == "99.9"
    assert row[2] == f"{100 * found['measured']:.2f}"
    assert row[3:] == ["+0.10", "0.50", "2", "of", "2", "ok"]
    assert "a table" in printed


def test_a_number_that_does_not_gives_1_and_windows_are_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch)
    # One class everywhere.
    official("official.pth", np.array([0, 100, 0], np.float32))

    assert run("--protocol", "script") == 1

    found = record()
    assert found["within"] is False
    assert found["measured"] == pytest.approx(1 / 9)
    assert found["protocol"]["window"] == {
        "protocol": "sliding",
        "crop": [24, 32],
        "stride": [16, 21],
    }
    assert "MISS" in capsys.readouterr().out


def test_other_data_is_evaluated_without_a_verdict(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch, images=654, score=0.1)

    assert run("--other-data") == 0

    assert record()["within"] is None
    assert "other data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        ({"images": 654}, [], "data has 2 images to evaluate, that of the paper (Made up) 654"),
        ({}, ["--data.root", "absent"], "absent"),
        ({}, ["--weights", "absent.pth"], "there is no file absent.pth"),
        ({}, ["--json", "absent/x.json"], "there is no folder absent"),
        ({}, ["--config", "absent.yaml"], "there is no configuration file absent.yaml"),
        ({}, ["--task.modle", "x"], "did you mean"),
        ({"multi_scale": False}, ["--protocol", "script"], "is for RGB-D segmentation"),
    ],
)
def test_a_wrong_request_gives_2_before_any_work(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    options: list[str],
    complaint: str,
) -> None:
    publish(monkeypatch, **change)

    assert run(*options) == 2

    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()


def test_weights_that_do_not_fit_are_refused_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch)
    official("official.pth", np.zeros(5, np.float32))

    assert run() == 2

    assert "offset" in capsys.readouterr().err
    assert not list(Path("runs").rglob("reproduce.json"))


def test_a_file_that_is_no_checkpoint_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch)
    Path("official.pth").write_text("<html>")

    assert run() == 2

    assert "official.pth" in capsys.readouterr().err


def test_nothing_published_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2

    message = " ".join(capsys.readouterr().err.split())
    assert "nothing is published for ByDepth and 3 classes" in message
    assert "dformer_tiny" in message


def test_the_paper_s_protocol_takes_the_place_of_the_file_s(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch)
    window = "{class_path: segtasks.inference.Sliding, init_args: {crop: [8, 8]}}"

    assert run("--task.protocol", window, "--tolerance", "100") == 0

    assert record()["protocol"]["protocol"] == "multi_scale"


def test_a_variant_is_a_shipped_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", "official.pth", "--data.root", "data"]

    assert reproduce.main(["--variant", "dformer_t", *options]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "data has 2 images to evaluate, that of the paper (NYUDepthv2) 654" in message

    assert reproduce.main(["--variant", "dformer_t_mlp", *options]) == 2
    assert "with the decoder mlp" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("tolerance", ["-1", "nan", "much"])
def test_a_senseless_tolerance_is_refused(tolerance: str) -> None:
    with pytest.raises(SystemExit) as raised:
        run("--tolerance", tolerance)
    assert raised.value.code == 2
