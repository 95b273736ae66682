"""Configurations in the manner of mmseg: dicts by name, and files named under `_base_`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtasks.commands.convert_expressions import Unknown
from segtasks.commands.convert_network import set_decoder, set_optimizer, set_variant
from segtasks.commands.convert_python import Module, SourceError, inside, read_module
from segtasks.commands.convert_report import Conversion, Keys, plain_values

_BASE, _DELETE = "_base_", "_delete_"
_DATA, _TASK, _TRAINER = "data.init_args", "task.init_args", "trainer"
_OPTIMIZER = "optim_wrapper.optimizer"


def from_mmseg(module: Module, source: Path, root: Path) -> Conversion:
    """The dicts of a file and of its bases.

    Args:
        module: What the file assigns.
        source: The file.
        root: Folder that its bases must be in.

    Raises:
        ValueError: A base cannot be read, or the configuration says what cannot be done here.
    """
    report = Conversion()
    values, lines = _with_bases(module, source, root, (), report)
    if "model" not in values:
        raise SourceError(
            f"{source} has neither an object with attributes, as the official local_configs do, "
            "nor a `model`, as mmseg's configurations do"
        )
    keys = Keys(plain_values(values), lines, report)
    _set_trainer(keys, report)
    _set_data(keys, report)
    report.set("task.class_path", "segtasks.tasks.SegmentationTask")
    set_variant(keys, report, "model.backbone.type")
    set_decoder(keys, report, "model.decode_head.type", "model.decode_head.channels")
    _set_weights(keys, report)
    options = {f"{_OPTIMIZER}.{name}": name for name in ("lr", "weight_decay")}
    set_optimizer(keys, report, f"{_OPTIMIZER}.type", options)
    _set_rest_of_optimizer(keys, report)
    _check_schedule(keys, report)
    keys.finish()
    return report


def _with_bases(
    module: Module, path: Path, root: Path, users: tuple[Path, ...], report: Conversion
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and lines of a file on top of those of its bases."""
    if path.resolve() in users:
        raise SourceError(f"configurations name each other as _base_: {path} does so again")
    report.unread += module.ignored
    own = {name: value for name, value in module.names.items() if name != _BASE}
    bases = module.names.get(_BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    where = module.lines.get(_BASE, str(path))
    if not isinstance(bases, list | tuple) or not all(isinstance(base, str) for base in bases):
        raise SourceError(f"{where}: _base_ must be a list of files")
    values: dict[str, Any] = {}
    lines: dict[str, str] = {}
    for base in bases:
        file = inside(path.parent / base, root, where)
        if file.suffix != ".py":
            raise SourceError(f"{where}: the base {base} is no Python file")
        below = _with_bases(read_module(file, root), file, root, (*users, path.resolve()), report)
        values = _merged(values, below[0])
        lines.update(below[1])
    lines.update(module.lines)
    return _merged(values, own), lines


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Dicts merge key by key unless the upper one says `_delete_`; all else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, str) and "{{" in value:
            merged[key] = Unknown("?", f"{value} refers into a base")
        elif isinstance(value, dict):
            own = {name: item for name, item in value.items() if name != _DELETE}
            kept = old if isinstance(old, dict) and not value.get(_DELETE) else {}
            merged[key] = _merged(kept, own)
        else:
            merged[key] = value
    return merged


# ---- trainer ----------------------------------------------------------------------------------


def _set_trainer(keys: Keys, report: Conversion) -> None:
    seed = keys.take("randomness.seed", int, f"{_TRAINER}.seed")
    if seed is not None:
        report.set(f"{_TRAINER}.seed", seed)
    steps = keys.take("train_cfg.max_iters", int, f"{_TRAINER}.max_steps")
    epochs = keys.take("train_cfg.max_epochs", int, f"{_TRAINER}.max_epochs")
    if steps is not None:
        report.set(f"{_TRAINER}.max_steps", steps)
    if epochs is not None:
        report.set(f"{_TRAINER}.max_epochs", epochs)
    kind = keys.take("train_cfg.type", str)
    by_steps = steps is not None or kind == "IterBasedTrainLoop"
    if kind is not None:
        keys.told("train_cfg.type", kind, "updates" if by_steps else "epochs")
    by_epoch = keys.take("train_cfg.by_epoch", bool)
    by_steps = not by_epoch if by_epoch is not None else by_steps
    _set_intervals(keys, report, by_steps)


def _set_intervals(keys: Keys, report: Conversion, by_steps: bool) -> None:
    interval = keys.take("train_cfg.val_interval", int)
    if interval is not None and by_steps:
        report.remarks.append(
            f"train_cfg.val_interval is {interval} updates: here validation comes after epochs, "
            "every one unless trainer.check_val_every_n_epoch says otherwise"
        )
    elif interval is not None:
        place = f"{_TRAINER}.check_val_every_n_epoch"
        keys.told("train_cfg.val_interval", interval, place)
        report.set(place, interval)
    saving: dict[str, Any] = {"monitor": "val/miou", "mode": "max"}
    every = keys.take("default_hooks.checkpoint.interval", int)
    saved_by_epoch = keys.take("default_hooks.checkpoint.by_epoch", bool)
    if every is not None:
        by_epoch = not by_steps if saved_by_epoch is None else saved_by_epoch
        option = "every_n_epochs" if by_epoch else "every_n_train_steps"
        saving[option] = every
        keys.told("default_hooks.checkpoint.interval", every, f"ModelCheckpoint.{option}")
    kept = keys.take("default_hooks.checkpoint.max_keep_ckpts", int, "ModelCheckpoint.save_top_k")
    if kept is not None:
        saving["save_top_k"] = kept
    keys.drop("default_hooks.checkpoint.type", "ModelCheckpoint")
    keys.drop("default_hooks.checkpoint.save_best", "the best by val/miou are kept")
    every_n = keys.take("default_hooks.logger.interval", int, f"{_TRAINER}.log_every_n_steps")
    if every_n is not None:
        report.set(f"{_TRAINER}.log_every_n_steps", every_n)
    callback = {"class_path": "jtlightning.callbacks.ModelCheckpoint", "init_args": saving}
    report.set(f"{_TRAINER}.callbacks", [callback])


# ---- data -------------------------------------------------------------------------------------


def _set_data(keys: Keys, report: Conversion) -> None:
    report.set("data.class_path", "segtasks.data.RGBDDataModule")
    root = keys.take("train_dataloader.dataset.data_root", str, f"{_DATA}.root")
    top = keys.take("data_root", str, f"{_DATA}.root")
    root = root or top
    if root is None:
        root = "datasets/NYUDepthv2"
        report.remarks.append(f"no data_root: data.root is {root}; give your own")
    report.set(f"{_DATA}.root", root)
    place = f"{_DATA}.num_classes"
    classes = keys.take("model.decode_head.num_classes", int, place)
    classes = classes if classes is not None else keys.take("num_classes", int, place)
    if classes is None:
        raise SourceError("the configuration has no model.decode_head.num_classes")
    report.set(place, classes)
    crop = keys.take("crop_size", (list, tuple), f"{_DATA}.crop_size")
    if crop is not None:
        report.set(f"{_DATA}.crop_size", list(crop))
    for key, ours in (("batch_size", "batch_size"), ("num_workers", "num_workers")):
        value = keys.take(f"train_dataloader.{key}", int, f"{_DATA}.{ours}")
        if value is not None:
            report.set(f"{_DATA}.{ours}", value)
    batch = keys.take("val_dataloader.batch_size", int, f"{_DATA}.val_batch_size")
    if batch is not None:
        report.set(f"{_DATA}.val_batch_size", batch)


# ---- task -------------------------------------------------------------------------------------


def _set_weights(keys: Keys, report: Conversion) -> None:
    whole = keys.take("load_from", str, f"{_TASK}.weights")
    checkpoint = keys.take("model.backbone.init_cfg.checkpoint", str, f"{_TASK}.weights")
    keys.drop("model.backbone.init_cfg.type", "weights are given by task.init_args.weights")
    backbone = keys.take("model.backbone.pretrained", str, f"{_TASK}.weights") or checkpoint
    weights = whole or backbone
    if weights is None:
        report.set(f"{_TASK}.param_groups", "all")
        return
    report.set(f"{_TASK}.weights", weights)
    if whole is None:
        report.set(f"{_TASK}.skip_weights", ["decode_head"])
    elif backbone is not None:
        report.remarks.append(f"{backbone} is not read, as {whole} holds the backbone too")
    report.set(f"{_TASK}.param_groups", "official")


def _set_rest_of_optimizer(keys: Keys, report: Conversion) -> None:
    place = f"{_TASK}.optimizer.init_args"
    for option, kind in (("betas", (list, tuple)), ("eps", float), ("momentum", float)):
        value = keys.take(f"{_OPTIMIZER}.{option}", kind, f"{place}.{option}")
        if value is not None:
            report.set(f"{place}.{option}", value)


def _check_schedule(keys: Keys, report: Conversion) -> None:
    if "param_scheduler" in keys:
        report.remarks.append(
            "param_scheduler is not taken over: set task.init_args.schedule (PolySchedule, "
            "CosineSchedule or ConstantSchedule, with warmup_steps)"
        )
        keys.drop("param_scheduler", "see the note")
