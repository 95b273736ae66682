"""`segtasks predict` for files: pictures of what a trained network sees in them.

With neither `--rgb` nor `--split` the command is the trainer's; `segtasks.__main__` asks
`names_inputs`. Jittor is imported last, so that a wrong path or option is reported at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segtasks.commands.options import number_within, positive_count, positive_number

if TYPE_CHECKING:
    from jtlightning.cli.arguments import Arguments

INPUTS = ("--rgb", "--split")
#: How `task.class_path` may name the tasks that are known; any other one is imported to see.
KNOWN_TASKS = {
    "segtasks.tasks.SegmentationTask": "segmentation",
    "segtasks.tasks.segmentation.SegmentationTask": "segmentation",
    "segtasks.tasks.RTDETRTask": "detection",
    "segtasks.tasks.detection.RTDETRTask": "detection",
}
#: Options that only one kind of task understands.
OF_SEGMENTATION = ("depth", "protocol", "crop", "stride", "scales", "no_flip", "write")
OF_DETECTION = ("score_threshold", "max_detections")


def names_inputs(argv: Sequence[str]) -> bool:
    """Whether options are for this command, and not for the trainer's of the same name."""
    return any(option.partition("=")[0] in INPUTS for option in argv)


def help_text() -> str:
    """The help of this command."""
    return _parser().format_help()


def main(argv: Sequence[str]) -> int:
    """Run `segtasks predict ARGV`.

    Returns:
        0 done, 1 where a file cannot be read or written, 2 for a request that cannot be; 130 after
        Ctrl-C.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    _check_options(parser, arguments)

    from jtlightning.cli import failures

    packages = ("jtlightning", "segtasks")
    try:
        return _predict(arguments, rest)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was written before is whole\n")
        return 130
    except ValueError as error:
        if not failures.is_mistake(error, packages):
            raise
        shown = "--traceback" in rest or os.environ.get("SEGTASKS_TRACEBACK") == "1"
        failures.show(error, "segtasks", packages=packages, with_traceback=shown)
        return 2


def _predict(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jtlightning.cli.config import ConfigError, dump
    from segtasks.predictors.configuration import check_checkpoint, read_recipe
    from segtasks.predictors.sources import offer_working_folder

    offer_working_folder()
    overrides = _overrides(arguments, rest)
    if not (overrides.print_config and arguments.config):
        check_checkpoint(arguments.ckpt_path)
    recipe = read_recipe(arguments.ckpt_path, arguments.config, overrides, os.environ)
    if overrides.print_config:
        sys.stdout.write(dump(recipe.config.values))
        return 0
    kind = _kind(recipe.class_path)
    _refuse_other_options(arguments, kind)
    if kind == "segmentation":
        from segtasks.commands.predict_segmentation import run
    elif kind == "detection":
        from segtasks.commands.predict_detection import run
    else:
        raise ConfigError(
            f"task.class_path is {recipe.class_path} ({recipe.source}); predict --rgb draws what"
            " tasks for segmentation and detection see; without --rgb and --split the task's own"
            " predict_step is run"
        )
    return run(arguments, recipe)


def _overrides(arguments: argparse.Namespace, rest: Sequence[str]) -> Arguments:
    """Options that set keys of the configuration.

    Raises:
        ConfigError: One is none.
    """
    from jtlightning.cli.arguments import parse
    from jtlightning.cli.config import ConfigError

    overrides = parse(rest)
    keys = [key for key, _, _ in overrides.overrides]
    if overrides.class_help is not None:
        keys.append(f"{overrides.class_help[0]}.help")
    for key in keys:
        if key.partition(".")[0] not in ("data", "task") or key.endswith(".help"):
            raise ConfigError(
                f"unknown option --{key}; besides those that `segtasks predict --help` lists, "
                "options set keys of the configuration's data and task, such as --data.depth_max"
            )
    if arguments.root is not None:
        overrides.overrides.append(("data.root", str(arguments.root), False))
    return overrides


def _kind(class_path: str) -> str:
    """What a task does: segmentation, detection, or another."""
    if class_path in KNOWN_TASKS:
        return KNOWN_TASKS[class_path]
    from jtlightning.cli.schema import import_object
    from segtasks.tasks import RTDETRTask, SegmentationTask

    found = import_object(class_path, "task.class_path", "the configuration")
    for base, kind in ((SegmentationTask, "segmentation"), (RTDETRTask, "detection")):
        if isinstance(found, type) and issubclass(found, base):
            return kind
    return "another"


def _refuse_other_options(arguments: argparse.Namespace, kind: str) -> None:
    """Refuse options that have no meaning for a kind of task.

    Raises:
        ConfigError: One is given.
    """
    from jtlightning.cli.config import ConfigError

    foreign = {"segmentation": OF_DETECTION, "detection": OF_SEGMENTATION}.get(kind, ())
    for name in foreign:
        if getattr(arguments, name) not in (None, False, "config"):
            raise ConfigError(f"--{name} has no meaning for {kind}; leave it out")


def _check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other, with 2."""
    if (arguments.rgb is None) == (arguments.split is None):
        parser.error("give --rgb PATH, or --split train, test or FILE")
    if arguments.split is not None and arguments.depth is not None:
        parser.error("--depth goes with --rgb; a split knows the depth of its images")
    if arguments.split is None and arguments.root is not None:
        parser.error("--root goes with --split: where the configuration's data set lies")
    windowed = arguments.protocol in ("sliding", "msf_sliding")
    for name, allowed in (
        ("crop", windowed),
        ("stride", windowed),
        ("scales", arguments.protocol.startswith("msf")),
        ("no_flip", arguments.protocol.startswith("msf")),
    ):
        if getattr(arguments, name) and not allowed:
            other = "sliding or msf_sliding" if name in ("crop", "stride") else "msf or msf_sliding"
            parser.error(f"--{name} needs --protocol {other}, got {arguments.protocol}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segtasks predict",
        usage="segtasks predict --ckpt_path FILE (--rgb PATH [--depth PATH] | --split SPLIT)"
        " [OPTIONS]",
        description="Write pictures of what a trained network sees: classes of pixels in an image"
        " with its depth, boxes of objects in an image or video, in folders of images, or in a"
        " split of its data set. The task in the configuration says which. Further options set"
        " keys of the configuration, such as --data.depth_max 65535; --print_config prints it and"
        " stops, --traceback shows where an error comes from. Exit code 0: done, 1: a file"
        " cannot be read or written, 2: a request that cannot be.",
        allow_abbrev=False,
    )
    _add_inputs(parser)
    _add_protocol(parser)
    _add_outputs(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is predicted, by which network")
    group.add_argument(
        "--ckpt_path",
        type=Path,
        required=True,
        metavar="FILE",
        help="a .ckpt, which knows its network, or with --config a .safetensors, .pth or .pkl",
    )
    group.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="the network's configuration, by path or name (dformer_l.yaml), instead of what the"
        " checkpoint holds; may be repeated",
    )
    group.add_argument(
        "--weights",
        choices=("auto", "ema", "raw"),
        default="auto",
        help="as trained (raw), their average (ema), or the average where there is one (default)",
    )
    group.add_argument(
        "--rgb",
        metavar="PATH",
        help="a colour image, .png or .jpg, or a folder of them; or a pattern with one *, such as"
        " 'images/*_rgb', where * is the name of an image without its ending; for a detector also"
        " a video",
    )
    group.add_argument(
        "--depth",
        metavar="PATH",
        help="segmentation: its depth, or a folder or pattern with the same names",
    )
    group.add_argument(
        "--class_names",
        nargs="+",
        metavar="NAME",
        help="names of the classes (default: those of the configuration's data)",
    )
    group.add_argument(
        "--split",
        help="instead: train or test of the configuration's data, or another split file of it",
    )
    group.add_argument("--root", type=Path, metavar="DIR", help="where the data of --split lie")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the network is asked")
    group.add_argument(
        "--protocol",
        choices=("config", "single", "sliding", "msf", "msf_sliding"),
        default="config",
        help="as the configuration says (default), once for the whole image, by windows, at several"
        " sizes mirrored and not, or by windows at these sizes",
    )
    group.add_argument(
        "--crop",
        type=positive_count,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="window in pixels (default: crop_size of the configuration's data)",
    )
    group.add_argument(
        "--stride",
        type=positive_count,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="between windows, in pixels (default: two thirds of the window)",
    )
    group.add_argument(
        "--scales",
        type=positive_number,
        nargs="+",
        metavar="FACTOR",
        help="sizes (default: 0.5 0.75 1 1.25 1.5)",
    )
    group.add_argument("--no_flip", action="store_true", help="do not ask for mirrored images")
    group.add_argument(
        "--batch_size",
        type=positive_count,
        metavar="N",
        help="images of one size asked about at once (default: 1; with --split, val_batch_size of"
        " the configuration)",
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="folder, made if need be (default: predictions)",
    )
    group.add_argument(
        "--write",
        nargs="+",
        choices=("labels", "colours", "overlays", "sheets"),
        help="segmentation: label maps (8-bit, classes from 0), classes in colours, these over the"
        " image, all beside each other (default: all four); predictions.json is always written",
    )
    group.add_argument(
        "--score_threshold",
        type=number_within(0, 1),
        metavar="SCORE",
        help="detection: least score of what is drawn and listed, 0 to 1 (default: the task's)",
    )
    group.add_argument(
        "--max_detections",
        type=positive_count,
        metavar="N",
        help="detection: the best so many of each image (default: 300)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace files that are there")
