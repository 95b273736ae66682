"""Configurations of the official DFormer repository, and of mmseg, as YAML files of ours."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jtlightning.checkpoint.atomic import atomic_file
from jtlightning.cli.config import dump
from segtasks.commands.convert_expressions import Section
from segtasks.commands.convert_mmseg import from_mmseg
from segtasks.commands.convert_network import set_decoder, set_optimizer, set_variant
from segtasks.commands.convert_python import Module, read_module
from segtasks.commands.convert_report import Conversion, Keys, shown
from segtasks.data.classes import MFNET9, NYU13, NYU40, SUN37

__all__ = ["Conversion", "convert_config", "from_official"]

_DATA, _TASK = "data.init_args", "task.init_args"
_MODEL, _SCHEDULE = f"{_TASK}.model.init_args", f"{_TASK}.schedule.init_args"
_KNOWN_NAMES = {"nyu40": NYU40, "nyu13": NYU13, "sun37": SUN37, "mfnet9": MFNET9}

#: Keys that become one value each: what they must be, and their place.
PLAIN: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "seed": (int, "trainer.seed"),
    "nepochs": (int, "trainer.max_epochs"),
    "num_classes": (int, f"{_DATA}.num_classes"),
    "batch_size": (int, f"{_DATA}.batch_size"),
    "num_workers": (int, f"{_DATA}.num_workers"),
    "train_scale_array": ((list, tuple), f"{_DATA}.scales"),
    "gt_transform": (bool, f"{_DATA}.label_shift"),
    "drop_path_rate": (float, f"{_MODEL}.drop_path"),
    "bn_eps": (float, f"{_MODEL}.bn_eps"),
    "bn_momentum": (float, f"{_MODEL}.bn_momentum"),
    "lr_power": (float, f"{_SCHEDULE}.power"),
}
#: Keys without a counterpart, and why nothing is lost.
DROPPED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("log_dir", "tb_dir", "log_dir_link", "checkpoint_dir", "log_file", "link_log_file"),
            *("val_log_file", "link_val_log_file", "root_dir", "abs_dir"),
        ),
        "a run has a folder of its own (trainer.default_root_dir)",
    ),
    "fix_bias": "the official programs do not read it",
    "checkpoint_step": "the official programs do not read it",
    "eval_iter": "the official programs do not read it",
    "is_test": "the command says it: fit, validate, test or predict",
}
#: What the official statistics are here too; others cannot be set.
_STATISTICS = {"norm_mean": (0.485, 0.456, 0.406), "norm_std": (0.229, 0.224, 0.225)}


def convert_config(source: Path, target: Path, root: Path | None = None) -> Conversion:
    """Write the YAML file that means what a Python configuration says, atomically.

    Args:
        source: A file of the official `local_configs`, or one of mmseg; only read, never run.
        target: The file to write; an existing one is replaced.
        root: Folder that its bases must be in; the one above its own unless given.

    Raises:
        ValueError: It cannot be read, or says what cannot be done here; nothing was written.
        CheckpointError: The file cannot be written.
    """
    root = source.resolve().parent.parent if root is None else root
    module = read_module(source, root)
    section = _section(module)
    if section is not None:
        conversion = from_official(section, section.lines)
        conversion.unread += module.ignored
    else:
        conversion = from_mmseg(module, source, root)
    text = "".join(f"{line}\n" for line in _comment(source, conversion)) + dump(conversion.values)
    with atomic_file(target) as write:
        write(text.encode())
    return conversion


def from_official(values: Mapping[str, Any], lines: Mapping[str, str]) -> Conversion:
    """The keys of the object `C` of an official file.

    Raises:
        ValueError: A key that is needed is missing, or says what cannot be done here.
    """
    report = Conversion()
    keys = Keys(values, lines, report)
    _set_frame(report)
    iterations = _set_data(keys, report)
    variant = set_variant(keys, report, "backbone")
    _set_validation(values.get("dataset_name"), variant, report)
    set_decoder(keys, report, "decoder", "decoder_embed_dim")
    _set_weights(keys, report)
    set_optimizer(keys, report, "optimizer", {"lr": "lr", "weight_decay": "weight_decay"})
    if "drop_path_rate" in values and values["drop_path_rate"] is None:
        report.set(f"{_MODEL}.drop_path", 0.1)  # what the official programs take None for
    for key, (kind, place) in PLAIN.items():
        value = keys.take(key, kind, place)
        if value is not None:
            report.set(place, value)
    _set_warm_up(keys, report, iterations)
    _set_evaluation(keys, report)
    for key, reason in DROPPED.items():
        keys.drop(key, reason)
    _check_frame(report)
    keys.finish()
    return report


def _section(module: Module) -> Section | None:
    """The object that holds the configuration: of several the largest."""
    sections = [value for value in module.names.values() if isinstance(value, Section)]
    return max(sections, key=len, default=None)


def _comment(source: Path, conversion: Conversion) -> list[str]:
    lines = [f"# Converted from {source.name}."]
    for title, notes in conversion.notes().items():
        lines += [f"# {title}: {' '.join(note.split())}" for note in notes]
    return lines


def _set_frame(report: Conversion) -> None:
    """What no key says, in the order in which our own files have it."""
    report.set("trainer.max_epochs", None)
    report.set("trainer.check_val_every_n_epoch", [[1, 1], [2, 10]])
    monitor = {"monitor": "val/miou", "mode": "max", "save_top_k": 5}
    report.set(
        "trainer.callbacks",
        [
            {"class_path": "jtlightning.callbacks.LearningRateMonitor"},
            {"class_path": "jtlightning.callbacks.Throughput"},
            {"class_path": "jtlightning.callbacks.ModelCheckpoint", "init_args": monitor},
        ],
    )
    report.set("data.class_path", "segtasks.data.RGBDDataModule")
    report.set("task.class_path", "segtasks.tasks.SegmentationTask")
    report.set(f"{_TASK}.param_groups", "official")
    report.set(f"{_TASK}.schedule.class_path", "jtlightning.optim.PolySchedule")
    # The official loop writes a rate after the update that it was computed for.
    report.set(f"{_SCHEDULE}.written_after_update", True)


def _check_frame(report: Conversion) -> None:
    if report.values["trainer"]["max_epochs"] is None:
        del report.values["trainer"]["max_epochs"]
        report.remarks.append("no nepochs: set trainer.max_epochs")
    if "num_classes" not in report.values["data"]["init_args"]:
        raise ValueError("the configuration has no num_classes; add C.num_classes = ... to it")


# ---- data -------------------------------------------------------------------------------------


def _set_data(keys: Keys, report: Conversion) -> int | None:
    """The data module; returns the iterations of an epoch where they are known."""
    name = keys.take("dataset_name", str)
    root = keys.take("dataset_path", str, f"{_DATA}.root")
    if root is None:
        root = f"datasets/{name or 'NYUDepthv2'}"
        report.remarks.append(f"no dataset_path that can be read: data.root is {root}")
    if name is not None:
        keys.told("dataset_name", name, f"{_DATA}.root")
    report.set(f"{_DATA}.root", root)
    for kind, ours in (("rgb", "rgb"), ("x", "depth"), ("gt", "label")):
        _set_folder(keys, report, root, (f"{kind}_root_folder", f"{kind}_format"), ours)
    for key, ours in (("train_source", "train_split"), ("eval_source", "test_split")):
        value = keys.take(key, str, f"{_DATA}.{ours}")
        if value is not None:
            report.set(f"{_DATA}.{ours}", _relative(value, root))
    _set_classes(keys, report)
    height, width = (keys.take(f"image_{side}", int) for side in ("height", "width"))
    if height and width:
        keys.told("image_height, image_width", [height, width], f"{_DATA}.crop_size")
        report.set(f"{_DATA}.crop_size", [height, width])
    _check_statistics(keys, report)
    return _set_epoch(keys, report)


def _set_folder(
    keys: Keys, report: Conversion, root: str, names: tuple[str, str], ours: str
) -> None:
    """Folder and file ending of one kind of picture."""
    folder, ending = keys.take(names[0], str), keys.take(names[1], str)
    place = f"{_DATA}.{ours}_folder"
    suffix, _, extension = (ending or ".png").rpartition(".")
    if folder is not None:
        keys.told(names[0], folder, place)
        folder = _relative(folder, root)
        report.set(place, f"{folder}/*{suffix}" if suffix else folder)
    if ending is None:
        return
    readable = (".png",) if ours == "label" else (".png", ".jpg", ".jpeg")
    if f".{extension}" not in readable:
        report.remarks.append(
            f"{names[1]} is {ending!r}: {ours} files are read from {', '.join(readable)}"
        )
    elif suffix:
        keys.told(names[1], ending, place)
    else:
        report.dropped.append(f"{names[1]}: {ending} is found by itself")


def _relative(path: str, root: str) -> str:
    """A path as it is seen from the folder of the data set; others stay as they are."""
    path, root = os.path.normpath(path), os.path.normpath(root)
    return path[len(root) + 1 :] if path.startswith(f"{root}{os.sep}") else path


def _set_classes(keys: Keys, report: Conversion) -> None:
    names = keys.take("class_names", (list, tuple), f"{_DATA}.class_names")
    if names is not None:
        known = [name for name, listed in _KNOWN_NAMES.items() if listed == tuple(names)]
        report.set(f"{_DATA}.class_names", known[0] if known else list(names))
    background = keys.take("background", int)
    if background == 255:
        report.dropped.append("background: 255 is what is ignored here too")
    elif background is not None:
        report.remarks.append(f"background is {background}: here 255 is ignored, always")
    single = keys.take("x_is_single_channel", bool)
    if single:
        report.dropped.append("x_is_single_channel: the second modality is read as grey")
    elif single is False:
        report.remarks.append(
            "x_is_single_channel is False: the second modality is read as grey all the same, as "
            "both model families use its first channel only"
        )


def _check_statistics(keys: Keys, report: Conversion) -> None:
    for key, ours in _STATISTICS.items():
        value = keys.take(key, (list, tuple))
        if value is not None and tuple(value) == ours:
            report.dropped.append(f"{key}: {list(ours)} is what is used here too")
        elif value is not None:
            report.remarks.append(f"{key} is {list(value)}: here it is {list(ours)}, always")


def _set_epoch(keys: Keys, report: Conversion) -> int | None:
    images = _check_count(keys, report, "num_train_imgs", "train_split")
    _check_count(keys, report, "num_eval_imgs", "test_split")
    iterations = keys.take("niters_per_epoch", int)
    batch = report_batch = keys.take("batch_size", int, PLAIN["batch_size"][1])
    if batch is not None:
        report.set(PLAIN["batch_size"][1], report_batch)
    plain = bool(images and batch and iterations == images // batch)
    if iterations is not None:
        keys.told("niters_per_epoch", iterations, f"{_DATA}.epoch_length")
    expected = images // batch + 1 if images and batch else None
    if iterations is not None and not plain and expected not in (None, iterations):
        report.remarks.append(
            f"niters_per_epoch is {iterations}: here an epoch has {expected} updates (all images)"
        )
    report.set(f"{_DATA}.epoch_length", "plain" if plain else "official")
    return iterations if iterations is not None else expected


def _check_count(keys: Keys, report: Conversion, key: str, split: str) -> int | None:
    """A number of images, compared with the split where that can be read."""
    images = keys.take(key, int)
    if images is None:
        return None
    arguments = report.values["data"]["init_args"]
    file = Path(arguments["root"]) / arguments.get(split, f"{split.removesuffix('_split')}.txt")
    if file.is_file():
        listed = sum(bool(line.strip()) for line in file.read_bytes().splitlines())
        if listed != images:
            report.remarks.append(f"{key} is {images}, but {file} lists {listed}: the file counts")
            return listed
    report.dropped.append(f"{key}: the split says it; {images} expected")
    return images


def _set_validation(name: Any, variant: str, report: Conversion) -> None:
    """What the official programs do by the name of the data set, and no key says."""
    if name == "NYUDepthv2" and "batch_size" in report.values["data"]["init_args"]:
        report.set(f"{_DATA}.val_batch_size", report.values["data"]["init_args"]["batch_size"])
    if name == "SUNRGBD" and variant.startswith("dformerv2"):
        report.set(f"{_DATA}.channel_order", "rgb")
        report.set(f"{_DATA}.pad_validation", [531, 730])
        report.set(f"{_DATA}.val_batch_size", 8)
        report.remarks.append("DFormerv2 on SUNRGBD: images are read as RGB and padded to 531x730")


# ---- task -------------------------------------------------------------------------------------


def _set_weights(keys: Keys, report: Conversion) -> None:
    weights = keys.take("pretrained_model", str, f"{_TASK}.weights")
    if weights is not None:
        report.set(f"{_TASK}.weights", weights)
        report.set(f"{_TASK}.skip_weights", ["decode_head"])
        return
    report.set(f"{_TASK}.param_groups", "all")
    report.remarks.append(
        "no pretrained_model: task.init_args.param_groups is all, as the official groups would "
        "leave layer scales at 1e-6 for ever"
    )


def _set_warm_up(keys: Keys, report: Conversion, iterations: int | None) -> None:
    epochs = keys.take("warm_up_epoch", int)
    if epochs is None:
        return
    place = f"{_SCHEDULE}.warmup_steps"
    if iterations is None:
        report.remarks.append(
            f"warm_up_epoch is {epochs}: set {place} to that many epochs of steps"
        )
        return
    keys.told("warm_up_epoch", epochs, place)
    report.set(place, epochs * iterations)


def _set_evaluation(keys: Keys, report: Conversion) -> None:
    """The official programs ask at five scales, mirrored too, whatever the configuration says."""
    scales, flip = keys.take("eval_scale_array", (list, tuple)), keys.take("eval_flip", bool)
    crop, rate = keys.take("eval_crop_size", (list, tuple)), keys.take("eval_stride_rate", float)
    start = keys.take("checkpoint_start_epoch", int)
    place = f"{_TASK}.protocol"
    report.set(place, {"class_path": "segtasks.inference.MultiScaleFlip"})
    if scales and list(scales) != [1]:
        chosen = {"scales": [float(scale) for scale in scales], "flip": bool(flip)}
        keys.told("eval_scale_array, eval_flip", (scales, flip), place)
        report.set(f"{place}.init_args", chosen)
    elif scales is not None or flip is not None:
        report.remarks.append(
            f"eval_scale_array and eval_flip say {shown(scales)} and {flip}, but the official "
            "programs do not read them and ask at five scales, mirrored too: so it is here; for "
            "one scale, --task.protocol segtasks.inference.SingleScale"
        )
    if crop is not None:
        stride = [int(side * (2 / 3 if rate is None else rate)) for side in crop]
        report.remarks.append(
            f"eval_crop_size and eval_stride_rate: windows of {list(crop)} every {stride} are used "
            "by the official evaluation alone, not in training: test with "
            "--task.protocol.window segtasks.inference.Sliding"
        )
    if start is not None:
        # Validation comes after epoch 1, every tenth, and each one behind the given epoch.
        place = "trainer.check_val_every_n_epoch"
        report.set(place, [[1, 1], [2, 10], [start + 1, 1]] if start > 1 else 1)
        keys.told("checkpoint_start_epoch", start, place)
