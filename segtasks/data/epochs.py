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

    Every image appears once, and the rest of the last batch is filled with images that are drawn
    at random in each epoch, no two of them the same while there are enough. The draws come from
    the sample's generator, the only thing that knows the epoch, so the data set returns the images
    to draw from, and the transform reads one of them. So that no image is drawn twice, each place
    draws from a part of its own; in the official code all draw from one shuffled list.

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

    def __getitem__(self, index: int) -> SegmentationSample | range:
        images = len(self.dataset)
        if index < images:
            return self.dataset[index]
        # Where the rest is more than all images, they come again before any is drawn.
        place, rest = index - images, len(self) - images
        places = images if place < rest - rest % images else rest % images
        return range(place % images, images, places)

    def __call__(self, sample: SegmentationSample | range, generator: np.random.Generator) -> Any:
        if isinstance(sample, range):
            sample = self.dataset[sample[int(generator.integers(len(sample)))]]
        return self.transform(sample, generator)

    def describe(self, index: int) -> str:
        """Name the files of a sample, for error messages."""
        if index < len(self.dataset):
            return self.dataset.describe(index)
        return f"{self.dataset.root}: drawn to fill the last batch"
