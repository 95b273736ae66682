"""From a file of weights to a segmenter or a detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from segtasks.data.images import ChannelOrder
from segtasks.predictors.configuration import (
    Recipe,
    check_checkpoint,
    has_configuration,
    read_recipe,
)
from segtasks.predictors.detection import Detector
from segtasks.predictors.inputs import PredictionError, Preparation
from segtasks.predictors.segmentation import Segmenter, count_classes

if TYPE_CHECKING:
    from jittor import nn

    from jtlightning.accelerator import Accelerator
    from jtlightning.checkpoint.state_dict import Which
    from segtasks.inference import Protocol

_Task = TypeVar("_Task")


def load_segmenter(
    ckpt_path: str | Path,
    *,
    config: str | Path | Sequence[str | Path] | None = None,
    model: nn.Module | None = None,
    weights: Which = "auto",
    protocol: Protocol | None = None,
    class_names: Sequence[str] | None = None,
    channel_order: ChannelOrder | None = None,
    depth_max: float | None = None,
    pad_to: tuple[int, int] | Literal["config"] | None = "config",
    device: Accelerator = "auto",
) -> Segmenter:
    """Make a segmenter from a file of weights.

    Args:
        ckpt_path: A `.ckpt`, which knows its network if the command line has trained it; or
            weights of another origin, together with `config` or `model`: `.safetensors`, `.pth`
            of PyTorch, `.pkl` of Jittor, for DFormer also with the earlier Jittor port's names.
        config: Configuration files that describe the network and its data, by path or by the
            name of a shipped one (`dformer_l.yaml`), instead of what the checkpoint holds.
        model: The network itself, instead; see `Segmenter`.
        weights: `raw` as they were trained, `ema` their average, `auto` the average where
            there is one.
        protocol: How the network is asked; that of the configuration unless given, and once for
            the whole image without any.
        class_names: Their names; those of the configuration's data unless given.
        channel_order: Order of colours that the network was trained with, `bgr` or `rgb`;
            the configuration's unless given.
        depth_max: Raw value of 16-bit depth that becomes 255; likewise.
        pad_to: (height, width) to pad images to at the bottom and right before normalising, as
            official DFormerv2 for SUNRGBD has it; None to pad nothing; `config` for what the
            configuration says. The result always has the image's size.
        device: `auto`, `cpu` or `cuda`; set for the whole process, as Jittor has it.

    Raises:
        PredictionError: There is no such file, or the arguments contradict each other.
        ConfigError: There is no configuration, it is wrong, or describes another kind of task.
        CheckpointError: The file is damaged.
        WeightsError: The weights do not fit the network; the message lists them.
    """
    path = Path(ckpt_path)
    recipe = _read(path, config, model, weights)
    preparation = _preparation(recipe, channel_order, depth_max, pad_to)
    return build_segmenter(
        path,
        recipe,
        model=model,
        weights=weights,
        protocol=protocol,
        class_names=class_names,
        preparation=preparation,
        device=device,
    )


def build_segmenter(
    path: Path,
    recipe: Recipe | None,
    *,
    model: nn.Module | None = None,
    weights: Which = "auto",
    protocol: Protocol | None = None,
    class_names: Sequence[str] | None = None,
    preparation: Preparation | None = None,
    device: Accelerator = "auto",
) -> Segmenter:
    """Make a segmenter of what has been read and checked; imports Jittor.

    Args:
        path: The file of weights.
        recipe: The configuration; needed unless `model` is given.
        model: As in `load_segmenter`, and so are the others.
        weights: See there.
        protocol: See there.
        class_names: See there.
        preparation: Instead of the recipe's.
        device: See there.

    Raises:
        ConfigError: As `load_segmenter`.
        CheckpointError: As `load_segmenter`.
        WeightsError: As `load_segmenter`.
    """
    from jtlightning.accelerator import select_device
    from segtasks.predictors.weights import load_network
    from segtasks.tasks import SegmentationTask

    select_device(device)
    if model is None:
        task = _build_task(recipe, SegmentationTask, "segmentation", "load_segmenter")
        model, protocol = task.model, protocol or task.protocol
    if class_names is None:
        class_names = _fitting_names(recipe, count_classes(model))
    source = load_network(model, path, weights)
    return Segmenter(
        model,
        protocol=protocol,
        class_names=class_names,
        preparation=preparation or (recipe.preparation if recipe else None),
        seed=recipe.seed if recipe else 0,
        source=source,
    )


def load_detector(
    ckpt_path: str | Path,
    *,
    config: str | Path | Sequence[str | Path] | None = None,
    model: nn.Module | None = None,
    weights: Which = "auto",
    size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    device: Accelerator = "auto",
) -> Detector:
    """Make a detector from a file of weights.

    Args:
        ckpt_path: A `.ckpt`, which knows its network if the command line has trained it; or
            weights of another origin, together with `config` or `model`: `.safetensors`, `.pth`
            of PyTorch (official files of both versions of RT-DETR), `.pkl` of Jittor.
        config: Configuration files that describe the network and its data, by path or by the
            name of a shipped one (`rtdetr_r50.yaml`), instead of what the checkpoint holds.
        model: The network itself, instead; see `Detector`.
        weights: `raw` as they were trained, `ema` their average, `auto` the average where
            there is one.
        size: (height, width) that images are resized to; that of the configuration's data unless
            given, and 640x640 without any.
        class_names: Their names; those of the configuration's data unless given. They also say
            how many classes there are where data that would know it are not there.
        device: `auto`, `cpu` or `cuda`; set for the whole process, as Jittor has it.

    Raises:
        PredictionError: There is no such file, or the arguments contradict each other.
        ConfigError: There is no configuration, it is wrong, or describes another kind of task.
        CheckpointError: The file is damaged.
        DataError: Nothing says how many classes there are.
        WeightsError: The weights do not fit the network; the message lists them.
    """
    path = Path(ckpt_path)
    recipe = _read(path, config, model, weights)
    return build_detector(
        path,
        recipe,
        model=model,
        weights=weights,
        size=size,
        class_names=class_names,
        device=device,
    )


def build_detector(
    path: Path,
    recipe: Recipe | None,
    *,
    model: nn.Module | None = None,
    weights: Which = "auto",
    size: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    device: Accelerator = "auto",
) -> Detector:
    """Make a detector of what has been read and checked; imports Jittor.

    Args:
        path: The file of weights.
        recipe: The configuration; needed unless `model` is given.
        model: As in `load_detector`, and so are the others.
        weights: See there.
        size: See there.
        class_names: See there.
        device: See there.

    Raises:
        ConfigError: As `load_detector`.
        CheckpointError: As `load_detector`.
        DataError: As `load_detector`.
        WeightsError: As `load_detector`.
    """
    from jtlightning.accelerator import select_device
    from segtasks.predictors.weights import load_network
    from segtasks.tasks import RTDETRTask

    select_device(device)
    if model is None:
        classes = None if class_names is None else len(class_names)
        model = _build_task(recipe, RTDETRTask, "detection", "load_detector", classes).model
    if class_names is None:
        class_names = _fitting_names(recipe, model.num_classes)
    if size is None:
        size = getattr(recipe.data, "size", None) if recipe else None
    source = load_network(model, path, weights)
    return Detector(model, size=size or (640, 640), class_names=class_names, source=source)


def _read(
    path: Path,
    config: str | Path | Sequence[str | Path] | None,
    model: nn.Module | None,
    weights: str,
) -> Recipe | None:
    """The configuration; None where only the network that is given says what it is."""
    if config is not None and model is not None:
        raise PredictionError("give config= or model=, not both")
    if weights not in ("auto", "ema", "raw"):
        raise PredictionError(f"weights must be 'auto', 'ema' or 'raw', got {weights!r}")
    check_checkpoint(path)
    if model is not None and not has_configuration(path):
        return None
    files = [config] if isinstance(config, (str, Path)) else config or []
    return read_recipe(path, [str(file) for file in files])


def _build_task(
    recipe: Recipe | None, wanted: type[_Task], kind: str, function: str, classes: int | None = None
) -> _Task:
    assert recipe is not None
    task = recipe.build_task(classes)
    if not isinstance(task, wanted):
        raise PredictionError(
            f"{recipe.class_path} ({recipe.source}) is no {kind} task; {function} needs a "
            f"segtasks.tasks.{wanted.__name__}, or the network itself as model="
        )
    return task


def _fitting_names(recipe: Recipe | None, classes: int) -> Sequence[str] | None:
    names = None if recipe is None else recipe.class_names
    # A network that is given may tell other classes apart than the data beside it.
    return names if names and len(names) == classes else None


def _preparation(
    recipe: Recipe | None,
    channel_order: ChannelOrder | None,
    depth_max: float | None,
    pad_to: tuple[int, int] | Literal["config"] | None,
) -> Preparation:
    """What the configuration says, and stronger what the caller says."""
    known = recipe.preparation if recipe else Preparation()
    return Preparation(
        channel_order or known.channel_order,
        known.depth_max if depth_max is None else depth_max,
        known.pad_to if pad_to == "config" else pad_to,
    )
