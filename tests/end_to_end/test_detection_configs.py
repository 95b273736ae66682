"""The shipped detection configurations are the official ones, by the recorded recipes."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning import DataModule, Task, Trainer
from jtlightning.cli.config import Config, ConfigFinder
from jtlightning.cli.program import Program
from segtasks.data import CocoDataModule, DetectionAugmentation, VocDataModule
from segtasks.tasks import RTDETRTask

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "reference" / "rtdetr" / "optim_groups.npz"
#: Configuration -> the official recipe, and its published AP and AP50.
RECIPES = {
    "rtdetr_r18": ("r18vd", 46.5, 63.8),
    "rtdetr_r34": ("r34vd", 48.9, 66.8),
    "rtdetr_r50_m": ("r50vd_m", 51.3, 69.6),
    "rtdetr_r50": ("r50vd", 53.1, 71.3),
    "rtdetr_r101": ("r101vd", 54.3, 72.7),
}
SCALES = [480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800]
PROGRAM = Program("segtasks", Trainer, Task, DataModule)


@cache
def loaded(name: str, num_classes: int = 80) -> Config:
    config = ConfigFinder((ROOT / "configs",)).load([f"{name}.yaml"])
    model = config.values["task"]["init_args"]["model"]
    model.setdefault("init_args", {})["num_classes"] = num_classes
    return config


@cache
def built_task(name: str) -> RTDETRTask:
    task = PROGRAM.build(loaded(name), "task")
    assert isinstance(task, RTDETRTask)
    return task


def recipe(name: str) -> dict[str, Any]:
    with np.load(RECORDED) as arrays:
        return json.loads(str(arrays[RECIPES[name][0]]))


@pytest.fixture(scope="module", autouse=True)
def _forget_networks() -> Iterator[None]:
    """Their weights are drawn when they are first read: kept, they would be thousands of ops."""
    yield
    built_task.cache_clear()
    gc.collect()


@pytest.mark.parametrize("name", RECIPES)
def test_the_optimizer_has_the_recorded_groups(name: str) -> None:
    """Every parameter in its group, whatever the order; rates and decays of each group."""
    task, recorded = built_task(name), recipe(name)
    optimizer, schedule = task.configure_optimizers()
    names = {id(value): key for key, value in task.model.named_parameters()}
    groups = optimizer.param_groups
    assert len(groups) == len(recorded["groups"])
    for group, expected in zip(groups, recorded["groups"], strict=True):
        assert sorted(names[id(value)] for value in group["params"]) == sorted(expected["names"])
        decay = group.get("weight_decay", optimizer.weight_decay)
        assert (group.get("lr", optimizer.lr), decay) == (expected["lr"], expected["weight_decay"])
    assert [schedule(step, 72 * 7393) for step in (0, 1, 72 * 7393 - 1)] == [1, 1, 1]
    assert (task.optimizer.betas, task.optimizer.eps) == (tuple(recorded["betas"]), 1e-8)


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_has_the_recorded_number_of_parameters(name: str) -> None:
    model, recorded = built_task(name).model, recipe(name)
    trained = sum(v.numel() for v in model.parameters() if not v.is_stop_grad())
    assert trained == recorded["n_trainable"]
    assert (model.num_classes, model.decoder.num_queries) == (80, 300)


@pytest.mark.parametrize("name", RECIPES)
def test_the_training_is_the_official_one(name: str) -> None:
    trainer, recorded = PROGRAM.resolve(loaded(name))["trainer"], recipe(name)
    assert trainer["max_epochs"] == recorded["epochs"]
    assert trainer["gradient_clip_val"] == recorded["clip_max_norm"]
    assert trainer["gradient_clip_algorithm"] == "norm"
    arguments = {c["class_path"].rpartition(".")[2]: c["init_args"] for c in trainer["callbacks"]}
    averaged = {"decay": arguments["EMA"]["decay"], "warmups": arguments["EMA"]["warmup_steps"]}
    assert averaged == recorded["ema"]
    assert arguments["EMA"]["average_statistics"]
    assert (arguments["ModelCheckpoint"]["monitor"], arguments["ModelCheckpoint"]["mode"]) == (
        "val/ap",
        "max",
    )
    data = PROGRAM.build(loaded(name), "data")
    assert isinstance(data, CocoDataModule)
    batches = (data.batch_size, data.val_batch_size)
    assert batches == (recorded["batch_size"], recorded["val_batch_size"])
    assert data.batch_size * trainer["accumulate_grad_batches"] == 16
    assert (data.size, data.stop_augmentation_epoch) == ((640, 640), None)
    assert data.augmentation == DetectionAugmentation()


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_the_official_one(name: str) -> None:
    task = built_task(name)
    criterion = task.criterion
    assert criterion.losses == ("vfl", "boxes")
    used = {"loss_vfl": 1, "loss_bbox": 5, "loss_giou": 2}
    assert {key: criterion.weights[key] for key in used} == used
    assert (criterion.alpha, criterion.gamma) == (0.75, 2.0)
    assert task.multi_scale == SCALES


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_tells_the_published_result(name: str) -> None:
    first = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()[0]
    official, ap, ap50 = RECIPES[name]
    assert f"rtdetr_{official}_6x_coco; published: {ap} AP, {ap50} AP50." in first


def test_voc_has_its_classes_and_scores() -> None:
    config = loaded("rtdetr_r18_voc", 20)
    data, task = PROGRAM.build(config, "data"), PROGRAM.build(config, "task")
    assert isinstance(data, VocDataModule)
    assert len(data._given_names or ()) == 20
    assert task.voc
    assert task.multi_scale == SCALES
    assert [pattern.name for pattern in task.param_groups] == [
        "backbone_norm",
        "backbone",
        "no_decay",
    ]
