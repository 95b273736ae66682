"""`segtasks reproduce`: what an official checkpoint should give against what it gives here."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.cli.config import ConfigError
from segtasks.commands.mistakes import tell_mistake
from segtasks.commands.options import number_within
from segtasks.commands.published import PUBLISHED, Published, find_published

if TYPE_CHECKING:
    from segtasks.commands.assembly import Assembly

#: Five scales and flip; the official evaluation program asks by windows at each scale besides.
_MULTI_SCALE = "segtasks.inference.MultiScaleFlip"
_WINDOW = "segtasks.inference.Sliding"


@dataclass(frozen=True)
class Outcome:
    """Expected against measured.

    Attributes:
        published: What the paper prints.
        measured: 0 to 1.
        tolerance: Largest difference, 0 to 1.
        images: That were evaluated.
        protocol: How the network was asked.
    """

    published: Published
    measured: float
    tolerance: float
    images: int
    protocol: Any

    @property
    def comparable(self) -> bool:
        """Whether as many images were evaluated as in the paper."""
        return self.images == self.published.images

    @property
    def within(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return abs(self.measured - self.published.score) <= self.tolerance


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 where the number comes out (or other data was asked for), 1 where it does not, 2 for a
        request that cannot be.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        return reproduce(arguments, overrides, console)
    except (ValueError, CheckpointError, OSError) as error:
        if not tell_mistake(error):
            raise
        return 2


def reproduce(arguments: argparse.Namespace, overrides: Sequence[str], console: Console) -> int:
    """Check everything that can be checked, evaluate, print and write."""
    if not arguments.weights.is_file():
        raise ConfigError(
            f"--weights: there is no file {arguments.weights}; give the official checkpoint, which "
            "is downloaded from the authors' page"
        )
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {arguments.json.parent}; make it first")
    from segtasks.commands.assembly import Assembly

    name = arguments.config or f"{arguments.variant}.yaml"
    ours = ["--task.weights", str(arguments.weights)]
    ours += ["--trainer.default_root_dir", f"runs/reproduce_{Path(name).stem}"]
    assembly = Assembly([name], [*ours, *overrides])
    trainer = assembly.trainer()
    data = assembly.data()
    published = _expected(assembly, data, name)
    _set_protocol(assembly, data, published, arguments.protocol)
    images = _images(data, published, arguments.other_data)
    task = assembly.task(data)
    metrics = trainer.test(task, datamodule=data)
    asked = getattr(task, "protocol", None)
    outcome = Outcome(
        published,
        metrics[published.metric],
        arguments.tolerance / 100,
        images,
        None if asked is None else asked.describe(),
    )
    console.print(_table(name, outcome))
    record = _record(name, arguments.weights, outcome)
    assert trainer.run is not None
    for file in filter(None, (trainer.run.path / "reproduce.json", arguments.json)):
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        console.print(f"written: {file}", soft_wrap=True)
    return 0 if outcome.within or not outcome.comparable else 1


def _expected(assembly: Assembly, data: Any, name: str) -> Published:
    decoder = assembly.config.get("task.init_args.model.init_args.decoder")
    found = find_published(assembly.model_class, data.num_classes, decoder)
    if found is None:
        with_ham = "" if decoder is None else f" with the decoder {decoder}"
        raise ConfigError(
            f"{name}: nothing is published for {assembly.model_class}{with_ham} and "
            f"{data.num_classes} classes; `segtasks test --task.weights FILE` evaluates anything. "
            f"Published: {', '.join(sorted(PUBLISHED))}"
        )
    return found


def _set_protocol(assembly: Assembly, data: Any, published: Published, wanted: str) -> None:
    """Five scales and flip, `script` by windows of the training crop, whatever the file says."""
    if not published.multi_scale:
        if wanted == "script":
            raise ConfigError("--protocol script is for RGB-D segmentation; leave it out")
        return
    window = None
    if wanted == "script":
        window = {"class_path": _WINDOW, "init_args": {"crop": list(data.crop_size)}}
    # The weights are among them, so there is this section.
    given = assembly.config.get("task.init_args")
    given["protocol"] = {"class_path": _MULTI_SCALE, "init_args": {"window": window}}


def _images(data: Any, published: Published, any_number: bool) -> int:
    """Number of images to evaluate.

    Raises:
        ConfigError: It is another than the paper's.
        DataError: There is no such data set.
    """
    data.prepare_data()
    data.setup("test")
    images = len(data.test_dataloader().dataset)
    if images != published.images and not any_number:
        raise ConfigError(
            f"the data set at {getattr(data, 'root', 'data.root')} has {images:,} images to "
            f"evaluate, that of the paper ({published.dataset}) {published.images:,}; name the "
            "right folder by --data.root DIR, or give --other-data to evaluate this one without a "
            "verdict"
        )
    return images


def _table(name: str, outcome: Outcome) -> Table:
    published = outcome.published
    title = f"{name} on {published.dataset}, per cent; published: {published.source}"
    table = Table(box=SIMPLE_HEAD, title=title)
    for column in ("metric", "expected", "measured", "difference", "tolerance", "images", ""):
        table.add_column(column, justify="left" if column in ("metric", "") else "right")
    if not outcome.comparable:
        verdict = "[yellow]other data[/]"
    else:
        verdict = "[green]ok[/]" if outcome.within else "[red]MISS[/]"
    table.add_row(
        published.metric.removeprefix("test/"),
        f"{100 * published.score:.1f}",
        f"{100 * outcome.measured:.2f}",
        f"{100 * (outcome.measured - published.score):+.2f}",
        f"{100 * outcome.tolerance:.2f}",
        f"{outcome.images:,} of {published.images:,}",
        verdict,
    )
    return table


def _record(name: str, weights: Path, outcome: Outcome) -> dict[str, Any]:
    digest = hashlib.sha256()
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "unit": "0 to 1",
        "config": name,
        "weights": str(weights),
        "weights_sha256": digest.hexdigest(),
        "metric": outcome.published.metric,
        "expected": outcome.published.score,
        "measured": outcome.measured,
        "tolerance": outcome.tolerance,
        "within": outcome.within if outcome.comparable else None,
        "images": outcome.images,
        "protocol": outcome.protocol,
        "published": asdict(outcome.published),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segtasks reproduce",
        description=(
            "Evaluate an official checkpoint by the protocol of its paper and print expected"
            " against measured. RGB-D segmentation is evaluated at five scales, mirrored too."
            " Further options are those of test, such as --data.root DIR. Exit code 0: the"
            " number comes out, 1: it does not, 2: nothing can be evaluated."
        ),
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--variant",
        metavar="NAME",
        help="a shipped configuration, such as dformer_t (NYUDepthv2) or dformer_t_sunrgbd",
    )
    what.add_argument("--config", metavar="FILE", help="a configuration of your own")
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="the official checkpoint")
    add(
        "--protocol",
        choices=("paper", "script"),
        default="paper",
        help="script: by windows besides, as the official evaluation program (default: paper)",
    )
    add(
        "--tolerance",
        type=number_within(0, 100),
        default=0.2,
        metavar="POINTS",
        help="largest difference in percentage points (default: 0.2)",
    )
    add("--other-data", action="store_true", help="evaluate another data set, without a verdict")
    add("--json", type=Path, metavar="FILE", help="write the result here too")
    return parser
