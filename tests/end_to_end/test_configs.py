"""Every shipped configuration builds, and the fine-tunings are the official ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jtlightning import DataModule, Task, Trainer
from jtlightning.cli.config import Config, ConfigFinder
from jtlightning.cli.program import Program
from jtlightning.trainer.arguments import validates
from segtasks.__main__ import main
from segtasks.data import RGBDDataModule
from segtasks.data.classes import NYU40, SUN37
from segtasks.data.epochs import OfficialEpoch
from segtasks.inference import MultiScaleFlip
from segtasks.tasks import SegmentationTask

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs"
CONFIGS = [p for p in sorted(FOLDER.rglob("*.yaml")) if p.parent.name != "base"]
PROTOCOL = ROOT / "tests" / "reference" / "protocol"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_resolves(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(config.relative_to(FOLDER))
    assert main(["fit", "--config", name, "--print_config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["task"]["init_args"]["model"]["class_path"].startswith("segtasks.models.")
    assert resolved["trainer"]["callbacks"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_says_what_it_reproduces(config: Path) -> None:
    first = config.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 40


@dataclass(frozen=True)
class Official:
    """One row of the tables of the official training, typed from them and not from the files."""

    function: str
    dataset: str
    lr: float
    batch: int
    epochs: int
    updates: int
    drop_path: float
    width: int
    miou: float


def _row(function: str, nyu: tuple[Any, ...], sun: tuple[Any, ...]) -> list[Official]:
    batch, updates, drop_path, width, miou = nyu
    return [
        Official(function, "NYUDepthv2", 6e-5, batch, 500, updates, drop_path, width, miou),
        Official(function, "SUNRGBD", 8e-5, 16, 300, 331, *sun),
    ]


# NYUDepthv2: batch, updates per epoch, drop path, head width, mIoU; SUNRGBD: the last three.
TABLE: dict[str, list[Official]] = {
    "dformer_t": _row("dformer_tiny", (8, 100, 0.1, 512, 51.8), (0.1, 512, 48.8)),
    "dformer_s": _row("dformer_small", (8, 100, 0.1, 512, 53.6), (0.1, 512, 50.0)),
    "dformer_b": _row("dformer_base", (8, 100, 0.1, 512, 55.6), (0.1, 512, 51.2)),
    "dformer_l": _row("dformer_large", (8, 100, 0.15, 512, 57.2), (0.2, 512, 52.5)),
    "dformerv2_s": _row("dformerv2_s", (16, 50, 0.25, 512, 56.0), (0.1, 1024, 51.5)),
    "dformerv2_b": _row("dformerv2_b", (8, 100, 0.2, 512, 57.7), (0.1, 1024, 52.8)),
    "dformerv2_l": _row("dformerv2_l", (12, 67, 0.3, 1024, 58.4), (0.27, 1024, 53.3)),
}
CASES = {
    f"{name}{decoder}{ending}": (row, "mlp" if decoder else "ham")
    for name, rows in TABLE.items()
    for row, ending in zip(rows, ("", "_sunrgbd"), strict=True)
    for decoder in ("", "_mlp")
}
PROGRAM = Program("segtasks", Trainer, Task, DataModule)


@cache
def loaded(name: str) -> Config:
    config = ConfigFinder((FOLDER,)).load([f"{name}.yaml"])
    arguments = config.values["task"]["init_args"]
    arguments["model"]["init_args"]["num_classes"] = config.get("data.init_args.num_classes")
    return config


def recorded_rates(row: Official) -> dict[str, float]:
    """Rates in force during single updates, as the official code recorded them in `lr`."""
    with np.load(PROTOCOL / "protocol.npz") as arrays:
        runs = json.loads(arrays["meta"].tobytes())["lr"]
    settings = (row.lr, row.epochs, row.updates)
    (rates,) = (
        run["in_force"]
        for run in runs
        if (run["base"], run["epochs"], run["iters_per_epoch"]) == settings
    )
    return {str(update): float(rate) for update, rate in rates.items()}


@pytest.mark.parametrize("name", CASES)
def test_an_official_configuration_has_the_official_data(name: str) -> None:
    row, _ = CASES[name]
    data = PROGRAM.build(loaded(name), "data")
    nyu = row.dataset == "NYUDepthv2"
    assert isinstance(data, RGBDDataModule)
    assert data.root == Path("datasets", row.dataset)
    assert data.class_names == (NYU40 if nyu else SUN37)
    assert (data.crop_size, data.batch_size) == ((480, 640) if nyu else (480, 480), row.batch)
    v2_on_sun = not nyu and "v2" in name
    assert data.channel_order == ("rgb" if v2_on_sun else "bgr")
    assert data.pad_validation == ((531, 730) if v2_on_sun else None)
    assert data.val_batch_size == (row.batch if nyu else 8 if v2_on_sun else 1)
    options = data._open_split.keywords
    assert options["label_folder"] == ("Label" if nyu else "labels")
    assert options["label_shift"]
    assert data.epoch_length == "official"
    epoch = OfficialEpoch([None] * (795 if nyu else 5285), None, data.batch_size)  # type: ignore[arg-type]
    assert len(epoch) == row.updates * row.batch
    mirror, scale, *_ = data._train_transform.transforms
    assert mirror.probability == 0.5
    assert scale.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.mark.parametrize("name", CASES)
def test_an_official_configuration_builds_the_official_task(name: str) -> None:
    row, decoder = CASES[name]
    task = PROGRAM.build(loaded(name), "task")
    assert isinstance(task, SegmentationTask)
    head = task.model.decode_head
    assert type(head).__name__ == {"ham": "HamDecoder", "mlp": "MLPDecoder"}[decoder]
    classifier = head.conv_seg if decoder == "ham" else head.linear_pred
    assert classifier.weight.shape == [40 if row.dataset == "NYUDepthv2" else 37, row.width, 1, 1]
    norm = head.align.bn if decoder == "ham" else head.linear_fuse[1]
    assert (norm.eps, norm.momentum) == (1e-3, 0.1)
    arguments = loaded(name).get("task.init_args.model")
    assert arguments["class_path"] == f"segtasks.models.dformer.{row.function}"
    assert arguments["init_args"]["drop_path"] == row.drop_path
    assert task.param_groups == "official"
    optimizer = task.optimizer
    assert (type(optimizer).__name__, optimizer.lr) == ("AdamW", row.lr)
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-8, 0.01)
    assert task.schedule.warmup_steps == 10 * row.updates
    for update, rate in recorded_rates(row).items():
        factor = task.schedule(int(update), row.epochs * row.updates)
        # Both sides are float64; the official code multiplies in another order.
        assert optimizer.lr * factor == pytest.approx(rate, rel=1e-9, abs=0)
    assert isinstance(task.protocol, MultiScaleFlip)
    assert task.protocol.scales == (0.5, 0.75, 1.0, 1.25, 1.5)
    assert (task.protocol.flip, task.protocol.window) == (True, None)


@pytest.mark.parametrize("name", CASES)
def test_an_official_configuration_trains_as_long_and_keeps_the_best_five(name: str) -> None:
    row, decoder = CASES[name]
    trainer = PROGRAM.resolve(loaded(name))["trainer"]
    assert trainer["max_epochs"] == row.epochs
    start = {"NYUDepthv2": 250, "SUNRGBD": 200}[row.dataset]
    expected = [e for e in range(1, row.epochs + 1) if e == 1 or e % 10 == 0 or e > start]
    cadence = trainer["check_val_every_n_epoch"]
    assert [e for e in range(1, row.epochs + 1) if validates(cadence, e)] == expected
    assert (trainer["gradient_clip_val"], trainer["accumulate_grad_batches"]) == (None, 1)
    (checkpoint,) = (c for c in trainer["callbacks"] if c["class_path"].endswith("ModelCheckpoint"))
    assert checkpoint["init_args"]["monitor"] == "val/miou"
    assert (checkpoint["init_args"]["mode"], checkpoint["init_args"]["save_top_k"]) == ("max", 5)
    head = " ".join((FOLDER / f"{name}.yaml").read_text().partition("\nbase:")[0].split("\n# "))
    assert (f"published: {row.miou} mIoU" in head) == (decoder == "ham")
    assert row.dataset in head


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dformer_t", "NYUDepthv2/DFormer-Tiny"),
        ("dformerv2_s", "NYUDepthv2/DFormerv2_S"),
        ("dformer_t_sunrgbd", "SUNRGBD/DFormer-Tiny"),
        ("dformerv2_s_sunrgbd", "SUNRGBD/DFormerv2_S"),
    ],
)
def test_data_of_a_configuration_read_as_the_official_code_recorded_it(name: str, key: str) -> None:
    """All 36 arrays `val/*`: the files decide channel order, padding, shift and normalisation."""
    config = ConfigFinder((FOLDER,)).load([f"{name}.yaml"])
    # The recorded set has 13 classes, images of several sizes, and NYUDepthv2's folders.
    here = {"root": str(PROTOCOL / "mini"), "num_classes": 13, "class_names": None}
    here |= {"label_folder": "Label", "val_batch_size": 1, "num_workers": 0}
    config.values["data"]["init_args"].update(here)
    data = PROGRAM.build(config, "data")
    data.setup("validate")
    with np.load(PROTOCOL / "protocol.npz") as arrays:
        for index, batch in enumerate(data.val_dataloader().batches(0)):
            read = {"rgb": batch.image, "modal": batch.depth, "label": batch.label}
            for part, array in read.items():
                spread = array.reshape(-1)[np.arange(256) * array.size // 256]
                # One rounding of a float64 to float32, at values up to 2.6; labels exactly.
                expected = arrays[f"val/{key}/{index}/{part}"]
                assert np.abs(spread - expected).max() <= (0 if part == "label" else 1e-6)
    assert index == 2
