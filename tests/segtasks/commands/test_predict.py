"""`segtasks predict` for files: what it writes is what the network says, and nothing is lost."""

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
import yaml

from segtasks import load_segmenter
from segtasks.__main__ import main
from segtasks.data import RoomsDataModule
from segtasks.inference import MultiScaleFlip, Sliding
from segtasks.visualize import colour_map

ROOT = Path(__file__).parents[3]
KINDS = ("colours", "labels", "overlays", "sheets")


@pytest.fixture(scope="module")
def rooms(rooms_arguments: dict[str, Any]) -> RoomsDataModule:
    data = RoomsDataModule(**rooms_arguments)
    data.prepare_data()
    return data


@pytest.fixture
def predict(dformer_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command in a folder of its own, with this network unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str | Path, ckpt_path: Path = dformer_checkpoint) -> int:
        return main(["predict", "--ckpt_path", str(ckpt_path), *map(str, options)])

    return run


def read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return picture if picture.ndim == 2 else picture[..., ::-1]


def test_a_split_gives_what_the_segmenter_says(
    predict: Any, tmp_path: Path, rooms: RoomsDataModule, dformer_checkpoint: Path, capsys: Any
) -> None:
    assert predict("--split", "test") == 0
    out = tmp_path / "predictions"
    assert "3 predicted" in capsys.readouterr().out
    names = ["0003", "0004", "0005"]
    expected = load_segmenter(dformer_checkpoint).predict(
        [rooms.root / f"RGB/{n}.png" for n in names],
        [rooms.root / f"Depth/{n}.png" for n in names],
        batch_size=2,
    )
    for result in expected:
        written = {kind: read(out / kind / f"{result.name}.png") for kind in KINDS}
        np.testing.assert_array_equal(written["labels"], result.label)
        assert written["labels"].dtype == np.uint8
        np.testing.assert_array_equal(written["colours"], colour_map(8)[result.label])
        np.testing.assert_array_equal(written["overlays"], result.overlay())
        truth = read(rooms.root / f"Label/{result.name}.png") - np.uint8(1)
        np.testing.assert_array_equal(written["sheets"], result.sheet(truth))
    summary = json.loads((out / "predictions.json").read_text())
    assert summary["protocol"] == {"protocol": "single_scale"}
    assert summary["batch_size"] == 2  # of the configuration's validation
    assert summary["classes"] == list(rooms.class_names)
    assert [row["name"] for row in summary["images"]] == names
    assert summary["images"][0] == {
        "name": "0003",
        "rgb": str(rooms.root / "RGB/0003.png"),
        "depth": str(rooms.root / "Depth/0003.png"),
        "size": [64, 96],
        "pixels": expected[0].pixels(),
        "files": {kind: f"{kind}/0003.png" for kind in ("labels", "colours", "overlays", "sheets")},
    }


def test_folders_are_matched_by_stem_and_asked_by_any_protocol(
    predict: Any, tmp_path: Path, rooms: RoomsDataModule, dformer_checkpoint: Path, capsys: Any
) -> None:
    for name in ("0003", "0004"):
        cv2.imwrite(str(tmp_path / f"{name}_rgb.png"), read(rooms.root / f"RGB/{name}.png"))
    (tmp_path / "notes.txt").write_text("no image")
    options = ("--rgb", tmp_path / "*_rgb", "--depth", rooms.root / "Depth", "--write", "labels")
    sliding = ("--protocol", "sliding", "--crop", 48, 64, "--stride", 16, 32, "--batch_size", 2)
    assert predict(*options, *sliding, "--out", "a") == 0
    assert "note: depth without an image, left out" in capsys.readouterr().err.replace("\n", " ")
    msf = ("--protocol", "msf_sliding", "--scales", 1.0, "--no_flip")
    assert predict(*options, *msf, "--out", "b") == 0
    segmenter = load_segmenter(dformer_checkpoint)
    for folder, protocol, batch_size in (
        ("a", Sliding((48, 64), (16, 32)), 2),
        ("b", MultiScaleFlip([1.0], flip=False, window=Sliding((64, 96))), 1),
    ):
        results = segmenter.predict(
            [tmp_path / "0003_rgb.png", tmp_path / "0004_rgb.png"],
            [rooms.root / "Depth/0003.png", rooms.root / "Depth/0004.png"],
            protocol=protocol,
            batch_size=batch_size,
        )
        files = sorted((tmp_path / folder).rglob("*.png"))
        assert [file.relative_to(tmp_path / folder).as_posix() for file in files] == [
            "labels/0003.png",
            "labels/0004.png",
        ]
        for file, result in zip(files, results, strict=True):
            np.testing.assert_array_equal(read(file), result.label)
        summary = json.loads((tmp_path / folder / "predictions.json").read_text())
        assert summary["protocol"] == protocol.describe()


def test_files_that_are_there_are_replaced_only_when_told(
    predict: Any, tmp_path: Path, rooms: RoomsDataModule, capsys: Any
) -> None:
    pair = ("--rgb", rooms.root / "RGB/0003.png", "--depth", rooms.root / "Depth/0003.png")
    there = tmp_path / "predictions/labels/0003.png"
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    assert predict(*pair, "--write", "labels") == 2
    assert "predictions/labels/0003.png would be replaced" in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert predict(*pair, "--write", "colours") == 0
    assert there.read_text() == "mine"
    assert predict(*pair, "--write", "labels") == 2  # predictions.json is there, too
    assert predict(*pair, "--write", "labels", "--overwrite") == 0
    assert read(there).shape == (64, 96)


def test_options_set_keys_of_the_configuration(
    predict: Any, tmp_path: Path, rooms: RoomsDataModule, dformer_checkpoint: Path
) -> None:
    image, grey = rooms.root / "RGB/0003.png", read(rooms.root / "Depth/0003.png")
    config = tmp_path / "rgbd.yaml"
    config.write_text(
        """
data:
  class_path: segtasks.data.RGBDDataModule
  init_args: {root: nowhere, num_classes: 8, crop_size: [64, 96]}
task:
  class_path: segtasks.tasks.SegmentationTask
  init_args: {model: {class_path: segtasks.models.dformer.dformer_tiny}}
trainer: {seed: 3}
"""
    )
    cv2.imwrite(str(tmp_path / "wide.png"), grey.astype(np.uint16) * 257)
    base = ("--config", config, "--write", "labels", "--rgb", image)
    assert predict(*base, "--depth", tmp_path / "wide.png", "--data.depth_max", 65535) == 0
    label = read(tmp_path / "predictions/labels/0003.png")
    segmenter = load_segmenter(dformer_checkpoint)
    np.testing.assert_array_equal(
        label, segmenter.predict(image, rooms.root / "Depth/0003.png").label
    )
    split = ("--config", config, "--write", "labels", "--split", "train", "--out", "train")
    assert predict(*split, "--root", rooms.root) == 0
    names = sorted(file.stem for file in (tmp_path / "train/labels").iterdir())
    assert names == ["0001", "0002"]
    (tmp_path / "one.txt").write_text("RGB/0004.png\n")
    split = ("--config", config, "--write", "labels", "--split", tmp_path / "one.txt")
    assert predict(*split, "--data.root", rooms.root, "--out", "one") == 0
    assert [file.name for file in (tmp_path / "one/labels").iterdir()] == ["0004.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rgb", "RGB"), "the network needs the depth of its images; give --depth PATH"),
        (("--rgb", "nowhere", "--depth", "Depth"), "--rgb nowhere: there is no such file or"),
        (("--rgb", "RGB", "--depth", "empty"), "--depth empty: no file there ends with .png"),
        (("--rgb", "RGB/0003.png", "--depth", "Depth"), "Depth is a folder; name the file"),
        (("--rgb", "RGB", "--depth", "some"), "5 images have no depth of that name in some: RGB/0"),
        (("--rgb", "twice", "--depth", "Depth"), "twice/a.jpg and twice/a.png have one name"),
        (("--rgb", "Depth", "--depth", "Depth"), "0001.png is a grey picture"),
        (("--split", "val.txt"), "val.txt: the split file is missing"),
        (("--split", "test", "--root", "x"), "unknown key data.init_args.root"),
        (("--split", "test", "--data.rot", "x"), "unknown key data.init_args.rot"),
        (("--split", "test", "--trainer.seed", "1"), "unknown option --trainer.seed"),
        (("--split", "test", "--ovrwrite", "1"), "unknown option --ovrwrite"),
        (("--split", "test", "--task.help", "x.Y"), "unknown option --task.help"),
        (("--split", "test", "--out", "file"), "file is a file; name another folder"),
        (
            ("--split", "test", "--protocol", "sliding", "--stride", "65", "9"),
            "--stride 65 9 is larger than the window, 64 96",
        ),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_any_work(
    predict: Any,
    tmp_path: Path,
    rooms: RoomsDataModule,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was made")

    monkeypatch.setattr("segtasks.predictors.loading.build_segmenter", no_work)
    for name in ("RGB", "Depth"):
        (tmp_path / name).symlink_to(rooms.root / name)
    for name in ("empty", "some", "twice"):
        (tmp_path / name).mkdir()
    (tmp_path / "some/0009.png").write_bytes(b"")
    for name in ("a.jpg", "a.png"):
        (tmp_path / "twice" / name).write_bytes(b"")
    (tmp_path / "file").write_text("")
    assert predict(*options) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rgb", "a", "--split", "test"), "give --rgb PATH, or --split"),
        (("--split", "test", "--depth", "d"), "--depth goes with --rgb"),
        (("--rgb", "a", "--root", "d"), "--root goes with --split"),
        (("--rgb", "a", "--crop", "3", "4"), "--crop needs --protocol sliding or msf_sliding"),
        (("--rgb", "a", "--protocol", "sliding", "--no_flip"), "--no_flip needs --protocol msf"),
        (("--rgb", "a", "--batch_size", "0"), "must be a whole number above 0, got '0'"),
        (("--rgb", "a", "--protocol", "msf", "--scales", "-1"), "must be a number above 0"),
        (("--rgb", "a", "--write", "films"), "invalid choice: 'films'"),
    ],
)
def test_options_that_contradict_each_other_are_a_usage_error(
    predict: Any, capsys: Any, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict(*options)
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_is_reported_without_jittor(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom segtasks.__main__ import main\n"
        "assert main(['predict', '--ckpt_path', 'nowhere.ckpt', '--split', 'test']) == 2\n"
        "assert main(['predict', '--ckpt_path', 'nowhere.ckpt', '--rgb=x', '--depth=y']) == 2\n"
        "assert 'jittor' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("nowhere.ckpt does not exist") == 2


def test_without_files_the_command_is_the_trainer_s(
    predict: Any, tmp_path: Path, rooms: RoomsDataModule, dformer_checkpoint: Path
) -> None:
    """Its label maps are those of the split, pixel by pixel."""
    assert predict("--split", "test", "--write", "labels") == 0
    options = (
        "--trainer.enable_progress_bar=false",
        "--trainer.default_root_dir=runs",
        "--trainer.callbacks+=jtlightning.callbacks.EMA",
        "--task.weights=null",
    )
    # In a process of its own, as the trainer keeps what Jittor prints.
    command = [sys.executable, "-m", "segtasks", "predict", "--ckpt_path", str(dformer_checkpoint)]
    subprocess.run([*command, *options], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    (folder,) = (tmp_path / "runs").glob("*/predictions")
    for name in ("0003", "0004", "0005"):
        np.testing.assert_array_equal(
            read(folder / f"{name}.png"), read(tmp_path / f"predictions/labels/{name}.png")
        )


def test_the_configuration_is_printed_as_it_would_be_used(predict: Any, capsys: Any) -> None:
    options = ("--rgb", "x", "--config", "pothole.yaml", "--data.depth_max", 999, "--print_config")
    assert predict(*options, ckpt_path=Path("nowhere.pth")) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["data"]["init_args"]["depth_max"] == "999"
    assert printed["task"]["class_path"] == "segtasks.tasks.SegmentationTask"


def test_help_is_for_both_ways(capsys: Any) -> None:
    assert main(["predict", "--help"]) == 0
    printed = capsys.readouterr().out
    for text in ("--rgb PATH", "--split SPLIT", "without --rgb and --split:", "--print_config"):
        assert text in printed
