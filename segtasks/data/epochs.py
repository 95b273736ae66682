"""The official length of an epoch: one batch more than the images fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from segtasks.data.rgbd import RGBDDataset
from segtasks.data.samples import SegmentationSample
from segtasks.data.transforms.segmentation import SampleTransform


@dataclass(frozen=True)
class OfficialEpoch:
    """A data set lengthened to batch * (images // batch + 1); it is its own transform.

    Every image appears once, and the rest of the last batch is drawn at random in each epoch. The
    draws come from the sample's generator, the only thing that knows the epoch, so the data set
    returns None for them and the transform reads them. Unlike in the official code two of the
    drawn images may be the same one.

    Attributes:
        dataset: the images.
        transform: training transform.
        batch_size: samples per batch.
    """

    dataset: RGBDDataset
    transform: SampleTransform
    batch_size: int

    def __len__(self) -> int:
        return self.batch_size * (len(self.dataset) // self.batch_size + 1)

    def __getitem__(self, index: int) -> SegmentationSample | None:
        return self.dataset[index] if index < len(self.dataset) else None

    def __call__(self, sample: SegmentationSample | None, generator: np.random.Generator) -> Any:
        if sample is None:
            sample = self.dataset[int(generator.integers(len(self.dataset)))]
        return self.transform(sample, generator)

    def describe(self, index: int) -> str:
        """Name the files of a sample, for error messages."""
        if index < len(self.dataset):
            return self.dataset.describe(index)
        return f"{self.dataset.root}: drawn to fill the last batch"
