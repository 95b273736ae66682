"""`segtasks convert` from Python configurations to YAML, without executing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from segtasks.__main__ import main as segtasks
from segtasks.commands.convert import main
from segtasks.data.classes import NYU40

BASE = """
import os
import os.path as osp
import numpy as np
from easydict import EasyDict as edict

C = edict()
config = C
C.seed = 12345
C.root_dir = os.path.abspath("datasets")
C.where = os.popen("touch executed").read()
"""
DATASET = f"""
from .. import *

C.dataset_name = "NYUDepthv2"
C.dataset_path = osp.join(C.root_dir, "NYUDepthv2")
C.rgb_root_folder = osp.join(C.dataset_path, "RGB")
C.rgb_format = ".jpg"
C.gt_root_folder = osp.join(C.dataset_path, "Label")
C.gt_format = ".png"
C.gt_transform = True
C.x_root_folder = osp.join(C.dataset_path, "Thermal")
C.x_format = "_th.png"
C.x_is_single_channel = True
C.train_source = osp.join(C.dataset_path, "train.txt")
C.eval_source = osp.join(C.dataset_path, "test.txt")
C.is_test = True
C.num_train_imgs = 795
C.num_eval_imgs = 654
C.num_classes = 40
C.class_names = {list(NYU40)}
"""
MODEL = """
from .._base_.datasets.NYUDepthv2 import *
import time

C.backbone = "DFormer-Large"
C.pretrained_model = "checkpoints/%s.pth.tar" % C.backbone
C.decoder = "ham"
C.decoder_embed_dim = 2 ** 9
C.optimizer = "AdamW"
C.lr = 6e-5
C.lr_power = 0.9
C.momentum = 0.9
C.weight_decay = 0.01
C.batch_size = 8
C.nepochs = 500
C.niters_per_epoch = C.num_train_imgs // C.batch_size + 1
C.num_workers = 16
C.train_scale_array = [0.5, 0.75, 1, 1.25, 1.5, 1.75]
C.warm_up_epoch = 10
C.image_height = 480
C.image_width = 640
C.background = 255
C.norm_mean = np.array([0.485, 0.456, 0.406])
C.norm_std = np.array([0.229, 0.224, 0.225])
C.fix_bias = True
C.bn_eps = 1e-3
C.bn_momentum = 0.1
C.drop_path_rate = 0.15
C.aux_rate = 0.0
C.eval_iter = 25
C.eval_stride_rate = 2 / 3
C.eval_scale_array = [1]
C.eval_flip = True
C.eval_crop_size = [480, 640]
C.checkpoint_start_epoch = 250
C.checkpoint_step = 25
C.log_dir = osp.abspath("checkpoints/" + C.dataset_name)
C.tb_dir = C.log_dir_link = C.checkpoint_dir = osp.join(C.log_dir, "x")
exp_time = time.strftime("%Y")
C.log_file = C.link_log_file = C.log_dir + f"/log_{exp_time}.log"
C.val_log_file = C.link_val_log_file = C.log_dir + "/val_{}.log".format(exp_time)
"""


def write(folder: Path, **changes: str) -> Path:
    """An official layout; `changes` replaces values of keys of the model's file."""
    root = folder / "local_configs"
    text = MODEL
    for key, value in changes.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"C.{key} =")]
        text = "\n".join([*lines, f"C.{key} = {value}"])
    for name, content in (
        ("_base_/__init__.py", BASE),
        ("_base_/datasets/NYUDepthv2.py", DATASET),
        ("NYUDepthv2/DFormer_Large.py", text),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root / "NYUDepthv2" / "DFormer_Large.py"


def convert(source: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Values of the YAML file, and its comments."""
    out = source.parent / "out.yaml"
    assert main([str(source), str(out), *options]) == 0
    text = out.read_text()
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    return yaml.safe_load(text), comments


def refusal(source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    out = source.parent / "out.yaml"
    assert main([str(source), str(out)]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def test_official_configuration_says_the_same_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values, _ = convert(write(tmp_path))
    assert values["trainer"]["max_epochs"] == 500
    assert values["trainer"]["seed"] == 12345
    assert values["trainer"]["check_val_every_n_epoch"] == [[1, 1], [2, 10], [251, 1]]
    assert values["data"] == {
        "class_path": "segtasks.data.RGBDDataModule",
        "init_args": {
            "root": "datasets/NYUDepthv2",
            "rgb_folder": "RGB",
            "depth_folder": "Thermal/*_th",
            "label_folder": "Label",
            "train_split": "train.txt",
            "test_split": "test.txt",
            "class_names": "nyu40",
            "crop_size": [480, 640],
            "batch_size": 8,
            "epoch_length": "official",
            "val_batch_size": 8,
            "num_classes": 40,
            "num_workers": 16,
            "scales": [0.5, 0.75, 1, 1.25, 1.5, 1.75],
            "label_shift": True,
        },
    }
    assert values["task"]["init_args"] == {
        "param_groups": "official",
        "model": {
            "class_path": "segtasks.models.dformer.dformer_large",
            "init_args": {
                "decoder": "ham",
                "decoder_embed_dim": 512,
                "drop_path": 0.15,
                "bn_eps": 0.001,
                "bn_momentum": 0.1,
            },
        },
        "weights": "checkpoints/DFormer-Large.pth.tar",
        "skip_weights": ["decode_head"],
        "optimizer": {
            "class_path": "jtlightning.optim.AdamW",
            "init_args": {"lr": 6e-05, "weight_decay": 0.01},
        },
        "schedule": {
            "class_path": "jtlightning.optim.PolySchedule",
            # 10 epochs of 795 // 8 + 1 updates
            "init_args": {"written_after_update": True, "power": 0.9, "warmup_steps": 1000},
        },
        # What the official programs do, whatever eval_scale_array says.
        "protocol": {"class_path": "segtasks.inference.MultiScaleFlip"},
    }


def test_nothing_is_executed_and_no_key_is_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, comments = convert(write(tmp_path, my_key="3\nprint(C)"))
    assert "print(C)" in comments
    assert not (tmp_path / "executed").exists()
    assert "# unknown key: my_key = 3 (DFormer_Large.py, line " in comments
    # Line 11 of the base; popen is not called, so that its value is unknown.
    assert "# not understood: where (__init__.py, line 11)" in comments
    assert "popen" in comments
    for key in ("fix_bias", "checkpoint_step", "eval_iter", "tb_dir", "val_log_file", "norm_mean"):
        assert f"# not needed: {key}: " in comments
    assert "windows of [480, 640] every [320, 426]" in comments


@pytest.mark.parametrize("kind", ["official", "mmseg"])
def test_result_is_a_configuration_of_ours(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path) if kind == "official" else write_mmseg(tmp_path)
    convert(source)
    capsys.readouterr()
    assert segtasks(["fit", "--config", str(source.parent / "out.yaml"), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["task"]["init_args"]["optimizer"]["init_args"]["lr"] == 6e-5
    assert printed["data"]["init_args"]["num_classes"] == 40


OWN = {
    "trainer": ("seed",),
    "data": ("depth_folder", "num_workers"),
    "task": ("weights", "skip_weights"),
}


def test_result_trains_as_the_shipped_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path)
    convert(source)
    printed = []
    for name in (str(source.parent / "out.yaml"), "dformer_l.yaml"):
        capsys.readouterr()
        assert segtasks(["fit", "--config", name, "--print_config"]) == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
    converted, shipped = printed
    # What the shipped one leaves to the user, and what this file says otherwise.
    for section, keys in OWN.items():
        for values in (converted, shipped):
            arguments = values[section].get("init_args", values[section])
            for key in keys:
                del arguments[key]
    assert converted == shipped


@pytest.mark.parametrize(
    ("changes", "place", "expected"),
    [
        ({"optimizer": '"SGDM"'}, ("optimizer", "init_args", "momentum"), 0.9),
        ({"pretrained_model": "None"}, ("param_groups",), "all"),
        ({"drop_path_rate": "None"}, ("model", "init_args", "drop_path"), 0.1),
        ({"decoder": '"MLPDecoder"'}, ("model", "init_args", "decoder"), "mlp"),
        (
            {"eval_scale_array": "[0.5, 1]"},
            ("protocol", "init_args"),
            {"scales": [0.5, 1.0], "flip": True},
        ),
        ({"niters_per_epoch": "99"}, ("schedule", "init_args", "warmup_steps"), 990),
        (
            {"backbone": '"DFormerv2_S"'},
            ("model", "class_path"),
            "segtasks.models.dformer.dformerv2_s",
        ),
    ],
)
def test_value_of_a_key_decides(tmp_path, changes, place, expected):
    node: Any = convert(write(tmp_path, **changes))[0]["task"]["init_args"]
    for step in place:
        node = node[step]
    assert node == expected


def test_validation_after_every_epoch_is_said_shortly(tmp_path):
    values, _ = convert(write(tmp_path, checkpoint_start_epoch="1"))
    assert values["trainer"]["check_val_every_n_epoch"] == 1


def test_number_of_images_is_compared_with_the_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path, niters_per_epoch="C.num_train_imgs // C.batch_size")
    folder = tmp_path / "datasets" / "NYUDepthv2"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("RGB/0.jpg\n" * 80 + "\n")
    (folder / "test.txt").write_text("RGB/0.jpg\n" * 654)
    values, comments = convert(source)
    assert "num_train_imgs is 795, but datasets/NYUDepthv2/train.txt lists 80" in comments
    assert "num_eval_imgs: the split says it; 654 expected" in comments
    assert "niters_per_epoch is 99: here an epoch has 11 updates" in comments
    assert values["data"]["init_args"]["epoch_length"] == "official"


def test_second_family_reads_sunrgbd_as_its_weights_saw_it(tmp_path):
    changes = {"dataset_name": '"SUNRGBD"', "backbone": '"DFormerv2_B"'}
    values, _ = convert(write(tmp_path, **changes))
    assert values["data"]["init_args"]["channel_order"] == "rgb"
    assert values["data"]["init_args"]["pad_validation"] == [531, 730]


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"norm_mean": "[0.5, 0.5, 0.5]"}, "norm_mean is [0.5, 0.5, 0.5]: here it is [0.485"),
        ({"background": "0"}, "background is 0: here 255 is ignored"),
        ({"aux_rate": "0.4"}, "aux_rate is 0.4: there is no auxiliary head"),
        ({"niters_per_epoch": "7"}, "niters_per_epoch is 7: here an epoch has 100 updates"),
        ({"gt_format": '".tif"'}, "gt_format is '.tif': label files are read from .png"),
    ],
)
def test_what_cannot_be_the_same_is_said(tmp_path, changes, remark):
    assert f"# note: {remark}" in convert(write(tmp_path, **changes))[1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backbone": '"ResNet-50"'}, "backbone is 'ResNet-50', which does not exist here; known"),
        ({"decoder": '"UPernet"'}, "decoder is 'UPernet'"),
        ({"optimizer": '"Lion"'}, "optimizer is 'Lion'"),
        ({"batch_size": '"8"'}, "batch_size is '8', which is no int"),
        ({"lr": "True"}, "lr is True, which is no float"),
        ({"class_names": "[open]"}, "class_names must be a list"),
        ({"backbone": "undefined"}, "no backbone that can be read"),
        ({"num_classes": "None"}, "no num_classes"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, capsys, changes, reason):
    error = refusal(write(tmp_path, **changes), capsys)
    assert reason in error


def test_names_of_files_say_what_is_meant(tmp_path, capsys):
    source = write(tmp_path)
    assert main([str(source), str(tmp_path / "out.pth")]) == 2
    assert "a configuration (.py) becomes a .yaml" in capsys.readouterr().err
    (tmp_path / "out.yaml").write_text("mine")
    assert main([str(source), str(tmp_path / "out.yaml")]) == 2
    assert (tmp_path / "out.yaml").read_text() == "mine"


# ---- mmseg ------------------------------------------------------------------------------------

MMSEG = """
_base_ = ["../_base_/model.py"]
crop_size = (480, 640)
data_root = "data/NYU"
model = dict(
    backbone=dict(pretrained="x.pth"),
    decode_head=dict(channels=512, num_classes=40, norm_cfg={"type": "BN"}),
    neck=dict(_delete_=True, type="Other"),
)
load_from = None
train_dataloader = dict(batch_size=4, num_workers=2, dataset=dict(pipeline=[make()]))
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.99), weight_decay=0.02))
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=30, val_interval=5)
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=3))
"""
MMSEG_BASE = """
model = dict(
    type="EncoderDecoder",
    backbone=dict(type="DFormerv2_S"),
    neck=dict(depth=3),
    decode_head=dict(type="LightHamHead", num_classes=150),
)
optim_wrapper = dict(optimizer=dict(type="SGD"))
"""


def write_mmseg(folder: Path, text: str = MMSEG, base: str = MMSEG_BASE) -> Path:
    for name, content in (("dformer/own.py", text), ("_base_/model.py", base)):
        path = folder / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "configs" / "dformer" / "own.py"


def test_mmseg_configuration_lies_on_its_bases(tmp_path):
    values, comments = convert(write_mmseg(tmp_path))
    assert values["trainer"]["max_epochs"] == 30
    assert values["trainer"]["check_val_every_n_epoch"] == 5
    (checkpoints,) = values["trainer"]["callbacks"]
    assert checkpoints["init_args"]["every_n_epochs"] == 3
    assert values["data"]["init_args"] == {
        "root": "data/NYU",
        "num_classes": 40,
        "crop_size": [480, 640],
        "batch_size": 4,
        "num_workers": 2,
    }
    task = values["task"]["init_args"]
    assert task["model"]["class_path"] == "segtasks.models.dformer.dformerv2_s"
    assert task["model"]["init_args"] == {"decoder": "ham", "decoder_embed_dim": 512}
    assert task["weights"] == "x.pth"
    assert task["skip_weights"] == ["decode_head"]
    assert task["optimizer"]["init_args"] == {
        "lr": 6e-5,
        "weight_decay": 0.02,
        "betas": [0.9, 0.99],
    }
    assert "# unknown key: model.type = 'EncoderDecoder'" in comments
    assert "# unknown key: model.decode_head.norm_cfg.type = 'BN'" in comments
    assert "# unknown key: model.neck.type = 'Other'" in comments
    assert "neck.depth" not in comments
    assert "# unknown key: train_dataloader.dataset.pipeline" in comments


def test_whole_segmentor_is_loaded_whole(tmp_path):
    text = MMSEG.replace("load_from = None", 'load_from = "all.pth"')
    task = convert(write_mmseg(tmp_path, text))[0]["task"]["init_args"]
    assert task["weights"] == "all.pth"
    assert "skip_weights" not in task


def test_interval_in_updates_saves_by_updates(tmp_path):
    text = MMSEG.replace(
        '"EpochBasedTrainLoop", max_epochs=30', '"IterBasedTrainLoop", max_iters=9'
    )
    values, comments = convert(write_mmseg(tmp_path, text))
    assert values["trainer"]["max_steps"] == 9
    assert values["trainer"]["callbacks"][0]["init_args"]["every_n_train_steps"] == 3
    assert "# note: train_cfg.val_interval is 5 updates" in comments


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('_base_ = "../../../etc/passwd.py"', "lies outside of"),
        ('_base_ = "/etc/hosts"', "lies outside of"),
        ('_base_ = "../_base_/none.py"', "there is no file"),
        ('_base_ = "own.py"', "name each other"),
        ("_base_ = [3]", "_base_ must be a list of files"),
        ("x = 1", "nor a `model`"),
        ("from ..... import *", "lies outside of"),
        ("x = (", "this is no Python"),
        ("\nx = " + "[" * 180 + "]" * 180, "line 2: this is nested too deeply"),
    ],
)
def test_bases_and_syntax_are_checked(tmp_path, capsys, text, reason):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert reason in refusal(write_mmseg(tmp_path / "a" / "b", text), capsys)


def test_wider_tree_of_bases_is_asked_for_by_name(tmp_path):
    text = MMSEG.replace("../_base_", "../../shared")
    source = write_mmseg(tmp_path, text)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "model.py").write_text(MMSEG_BASE)
    assert main([str(source), str(tmp_path / "o.yaml")]) == 2
    assert main([str(source), str(tmp_path / "o.yaml"), "--root", str(tmp_path)]) == 0
