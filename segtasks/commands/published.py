"""What the papers print for their models, beside which ours are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_DFORMER = "result table of DFormer (ICLR 2024)"
_RTDETR = "result table of RT-DETR (CVPR 2024), score of the weights released for PyTorch"
_DFORMERV2 = "result table of DFormerv2 (CVPR 2025)"


@dataclass(frozen=True)
class Published:
    """One row of a paper's result table.

    Attributes:
        dataset: Its name.
        num_classes: Of that data set.
        images: In its evaluation split.
        metric: What is measured, under the name that a test logs.
        score: Its value, 0 to 1.
        parameters_m: Millions of parameters; None where the paper tells them of another network.
        flops_g: Thousand millions of operations at `size`.
        size: (height, width) that the operations are counted at.
        source: Where all this is printed.
        operations_per_mac: 1 where a multiply-accumulate is one operation, 2 where it is two; those
            of convolutions and linear layers are counted.
        multi_scale: Whether the score is that of five scales and flip.
    """

    dataset: str
    num_classes: int
    images: int
    metric: str
    score: float
    parameters_m: float | None
    flops_g: float
    size: tuple[int, int]
    source: str
    operations_per_mac: int = 1
    multi_scale: bool = False


def find_published(model: str, num_classes: int, decoder: str | None = None) -> Published | None:
    """The row of a model, or None where nothing is published.

    Args:
        model: Name of the function that makes it, such as `dformer_tiny`.
        num_classes: Of the data set.
        decoder: Of a DFormer; None for its default, the only one with published numbers.
    """
    if decoder not in (None, "ham"):
        return None
    return next((row for row in PUBLISHED.get(model, ()) if row.num_classes == num_classes), None)


def _rgbd(
    source: str, parameters_m: float, nyu: tuple[float, float], sun: tuple[float, float]
) -> tuple[Published, Published]:
    """The rows of a DFormer: FLOPs in G and mIoU in per cent, of NYUDepthv2 and of SUNRGBD."""
    return (
        Published(
            dataset="NYUDepthv2",
            num_classes=40,
            images=654,
            metric="test/miou",
            score=nyu[1] / 100,
            parameters_m=parameters_m,
            flops_g=nyu[0],
            size=(480, 640),
            source=source,
            multi_scale=True,
        ),
        Published(
            dataset="SUNRGBD",
            num_classes=37,
            images=5050,
            metric="test/miou",
            score=sun[1] / 100,
            parameters_m=None,  # the table gives those of the networks for NYUDepthv2
            flops_g=sun[0],
            size=(530, 730),
            source=source,
            multi_scale=True,
        ),
    )


def _rtdetr(parameters_m: float, flops_g: float, ap: float) -> tuple[Published]:
    """The row of an RT-DETR: AP in per cent of the released weights on COCO val2017."""
    return (
        Published(
            dataset="COCO val2017",
            num_classes=80,
            images=5000,
            metric="test/ap",
            score=ap / 100,
            parameters_m=parameters_m,
            flops_g=flops_g,
            size=(640, 640),
            source=_RTDETR,
            # Not said there; counted so, all five agree within 2 %.
            operations_per_mac=2,
        ),
    )


#: Function that makes the model -> its rows.
PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "dformer_tiny": _rgbd(_DFORMER, 6.0, (11.8, 51.8), (15.1, 48.8)),
    "dformer_small": _rgbd(_DFORMER, 18.7, (25.6, 53.6), (33.0, 50.0)),
    "dformer_base": _rgbd(_DFORMER, 29.5, (41.9, 55.6), (54.1, 51.2)),
    "dformer_large": _rgbd(_DFORMER, 39.0, (65.7, 57.2), (83.3, 52.5)),
    "dformerv2_s": _rgbd(_DFORMERV2, 26.7, (33.9, 56.0), (43.7, 51.5)),
    "dformerv2_b": _rgbd(_DFORMERV2, 53.9, (67.2, 57.7), (86.9, 52.8)),
    "dformerv2_l": _rgbd(_DFORMERV2, 95.5, (124.1, 58.4), (160.5, 53.3)),
    "rtdetr_r18": _rtdetr(20, 60, 46.4),
    "rtdetr_r34": _rtdetr(31, 92, 48.9),
    "rtdetr_r50_m": _rtdetr(36, 100, 51.3),
    "rtdetr_r50": _rtdetr(42, 136, 53.1),
    "rtdetr_r101": _rtdetr(76, 259, 54.3),
}
