"""Images and objects of one split."""

from __future__ import annotations

import logging
from pathlib import Path

from segtasks.data.detection.listing import ImageRecord, Listing, pack
from segtasks.data.detection.samples import DetectionSample, Objects
from segtasks.data.images import read_colour, verify_picture
from segtasks.data.problems import refuse
from segtasks.data.samples import DataError

log = logging.getLogger(__name__)


class DetectionDataset:
    """Images of a split with their objects.

    Boxes are clipped to their images, and those without an area are dropped; the log tells how
    many. Images without objects stay.

    Attributes:
        images: the images, in the order of the split.

    Args:
        listing: what the annotations say.
        crowd: keep objects that evaluation ignores, flagged as such.

    Raises:
        DataError: an annotation is wrong, or an image has no file.
    """

    def __init__(self, listing: Listing, *, crowd: bool) -> None:
        refuse(listing.problems, str(listing.path))
        self.root = listing.root
        self.images: list[ImageRecord] = listing.images
        self._packed = pack(listing, crowd=crowd)
        repairs = self._packed.repairs
        if repairs:
            hint = "; are boxes in the format that is expected?" if repairs.suspicious else ""
            log.warning("%s: %s%s", listing.path, repairs, hint)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def objects(self) -> Objects:
        """Those of all images."""
        return self._packed.objects

    def __getitem__(self, index: int) -> DetectionSample:
        """Read one sample.

        Raises:
            DataError: the file is damaged, or has another size than the annotations say.
        """
        record = self.images[index]
        image = read_colour(self.path(index), "rgb")
        compare_size(record, image.shape[:2], self.path(index))
        size = (record.width, record.height)
        objects = self._packed.of_image(index)
        return DetectionSample(image, objects, record.id, size, record.file)

    def check(self, index: int) -> None:
        """Find what is wrong with a sample, without decoding its image.

        Raises:
            DataError: as reading it would.
        """
        compare_size(self.images[index], verify_picture(self.path(index)).size, self.path(index))

    def path(self, index: int) -> Path:
        """File of an image."""
        return self.root / self.images[index].file

    def describe(self, index: int) -> str:
        """Name the file of a sample, for error messages."""
        return str(self.path(index))


def compare_size(record: ImageRecord, size: tuple[int, ...], path: Path) -> None:
    """Raise DataError unless an image has the (height, width) that its boxes were drawn for."""
    if tuple(size) != (record.height, record.width):
        raise DataError(
            f"{path}: the picture is {size[0]}x{size[1]} (height x width), but the annotations say "
            f"{record.height}x{record.width}, so the boxes do not fit; put the picture back that "
            "was annotated, or correct the size"
        )
