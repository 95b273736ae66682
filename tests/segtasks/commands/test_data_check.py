from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from segtasks.commands.data import main

CONFIG = """
trainer: {max_epochs: 3}
data:
  class_path: segtasks.data.RGBDDataModule
  init_args: {root: ROOT, num_classes: 2, class_names: [floor, wall], batch_size: 2}
task: {class_path: nowhere.Task}
"""


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training samples and two for tests, 4x6 pixels, raw labels 1 and 2; and a.yaml."""
    for number in range(5):
        write(tmp_path / f"RGB/{number}.png", np.zeros((4, 6, 3), np.uint8))
        write(tmp_path / f"Depth/{number}.png", np.zeros((4, 6), np.uint8))
        write(tmp_path / f"Label/{number}.png", np.repeat([[1, 2], [2, 2]], [3, 1], 0).repeat(3, 1))
    (tmp_path / "train.txt").write_text("RGB/0.png\nRGB/1.png\nRGB/2.png\n")
    (tmp_path / "test.txt").write_text("RGB/3.png\nRGB/4.png\n")
    (tmp_path / "a.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    return tmp_path


def check(root: Path, *options: str) -> int:
    return main(["check", "--config", str(root / "a.yaml"), *options])


def test_a_whole_data_set_gives_0_and_its_labels(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(root) == 0
    printed = capsys.readouterr().out
    assert "nothing is wrong with 5 samples" in printed
    cells = [line.split() for line in printed.splitlines()]
    # Nine of 24 pixels are raw 1 in each image.
    assert ["0", "floor", "27", "37.50%", "3", "18", "37.50%", "2"] in cells
    assert ["1", "wall", "45", "62.50%", "3", "30", "62.50%", "2"] in cells
    assert ["samples", "3", "2"] in cells


def test_problems_of_all_kinds_give_1_and_are_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train.txt").write_text("".join(f"RGB/{n}.png\n" for n in (0, 1, 1, 2, 9, 4)))
    (root / "RGB/0.png").write_bytes(b"")
    write(root / "Depth/1.png", np.zeros((4, 7), np.uint8))
    write(root / "Depth/2.png", np.full((4, 6), 900, np.uint16))
    write(root / "Label/3.png", np.full((4, 6), 3, np.uint8))
    assert check(root) == 1
    printed = capsys.readouterr().out
    for heading in (
        "missing: 1",
        "unreadable: 1",
        "size: 2",
        "label: 1",
        "16-bit depth: 1",
        "duplicate: 1",
        "overlap: 1",
    ):
        assert f"{heading}\n" in printed
    assert "lists '9': no file RGB/9 and Depth/9 and Label/9" in printed
    assert "no class" in printed
    assert "8 problems in 8 samples" in printed


def test_more_problems_of_a_kind_than_fit_are_counted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train.txt").write_text("".join(f"RGB/{n}.png\n" for n in range(20)))
    assert check(root, "--split", "train") == 1
    printed = capsys.readouterr().out
    assert "missing: 15\n" in printed
    assert "lists '9'" in printed
    assert "lists '10'" not in printed
    assert "  and 10 more\n" in printed


@pytest.mark.parametrize(("split", "code"), [("train", 0), ("test", 1), ("all", 1)])
def test_only_the_splits_asked_for_are_read(root: Path, split: str, code: int) -> None:
    (root / "Label/4.png").write_bytes(b"")
    assert check(root, "--split", split) == code


def test_options_are_those_of_fit(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(root, "--data.num_classes", "3", "--data.class_names=[a, b, c]") == 0
    assert "note: 1 of 3 classes without a pixel: c" in capsys.readouterr().out


def test_variables_are_those_of_fit(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGTASKS_DATA__DEPTH_FOLDER", "nowhere")
    assert check(root) == 2
    assert "no folder 'nowhere'" in capsys.readouterr().err


def test_what_would_stop_a_training_is_a_problem_too(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(root, "--data.batch_size", "4") == 1
    assert "3 samples, fewer than one batch of 4" in capsys.readouterr().out
    assert check(root, "--data.batch_size", "4", "--split", "test") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.root", "nowhere"), "nowhere: the folder of the data set does not exist"),
        (("--data.label_folder", "labels"), "no folder 'labels' (did you mean 'Label'?)"),
        (("--data.test_split", "val.txt"), "val.txt: the split file is missing"),
        (("--data.num_clases", "2"), "did you mean data.init_args.num_classes?"),
        (("--data.num_classes", "two"), "data.init_args.num_classes"),
        (("--data.crop_size", "[0, 5]"), "crop size"),
        (("--dat.root", "x"), "did you mean data?"),
        (("--config", "nothing.yaml"), "there is no configuration file nothing.yaml"),
        (("--data", "jtlightning.DataModule"), "data is a DataModule"),
        (("--print_config",), "prints no configuration"),
        (("rubbish",), "unexpected argument 'rubbish'"),
    ],
)
def test_a_request_that_cannot_be_is_one_clear_error(
    root: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert check(root, *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_no_data_at_all_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert "no data is named" in capsys.readouterr().err


def test_a_split_of_another_name_is_refused(root: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        check(root, "--split", "val")
    with pytest.raises(SystemExit, match="2"):
        main(["rooms", "--out", str(root), "--data.root", "x"])


def test_a_check_needs_no_jittor(root: Path) -> None:
    code = (
        "import sys\nfrom segtasks.commands.data import main\n"
        f"assert main(['check', '--config', {str(root / 'a.yaml')!r}]) == 0\n"
        "assert 'jittor' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rooms_are_rendered_and_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = ("--data.train=2", "--data.val=1", "--data.size=[64, 64]", "--data.batch_size=2")
    assert main(["check", "--config", "debug/dformer_tiny.yaml", *options]) == 0
    assert "nothing is wrong with 3 samples" in capsys.readouterr().out


@pytest.mark.parametrize(("depth_max", "code"), [("null", 1), ("65535", 0)])
def test_real_16bit_depth_needs_depth_max(
    test_data: Path,
    capsys: pytest.CaptureFixture[str],
    depth_max: str,
    code: int,
) -> None:
    root = str(test_data / "pothole_rgbd")
    options = ("--data.root", root, "--data.depth_max", depth_max)
    assert main(["check", "--config", "pothole.yaml", *options]) == code
    printed = capsys.readouterr().out
    assert "16-bit (34), largest 65" in printed
    assert ("16-bit depth: 45\n" in printed) == bool(code)
