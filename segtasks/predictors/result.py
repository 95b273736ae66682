"""What a segmenter says about an image, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segtasks.predictors.inputs import PredictionError
from segtasks.predictors.sheet import sheet
from segtasks.visualize import colour_map, overlay, paint_depth, paint_labels


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """What a segmenter says about one image.

    Attributes:
        name: stem of the image's file, or the index of an array.
        label: (H, W) uint8, the most probable class of each pixel, from 0.
        scores: (K, H, W) float32, 0 to 1 with sum 1 over K; None unless asked for.
        image: (H, W, 3) uint8 RGB, as it was given.
        depth: (H, W) uint8, the grey values that the network saw before normalising.
        class_names: K names.
    """

    name: str
    label: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32] | None
    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]

    def colours(self, palette: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """The label in colours, (H, W, 3) uint8 RGB.

        Args:
            palette: (K, 3) uint8 RGB; that of `segtasks.visualize.colour_map` unless given.

        Raises:
            PredictionError: the palette has fewer colours than there are classes.
        """
        return paint_labels(self.label, self._palette(palette))

    def overlay(
        self, opacity: float = 0.55, palette: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """The label's colours laid over the image, (H, W, 3) uint8 RGB.

        Args:
            opacity: 0 shows the image alone, 1 the colours alone.
            palette: as in `colours`.

        Raises:
            PredictionError: as in `colours`.
            ValueError: `opacity` lies outside 0 to 1.
        """
        return overlay(self.image, self.label, self._palette(palette), opacity)

    def sheet(self, truth: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Image, depth and prediction beside each other with a legend, (height, width, 3) RGB.

        Args:
            truth: (H, W) labelled classes to show as well; 255 for pixels without a label.

        Raises:
            PredictionError: the truth has another size.
        """
        palette = self._palette(None)
        shown = {"RGB": self.image, "depth": paint_depth(self.depth)}
        if truth is not None:
            if truth.shape != self.label.shape:
                raise PredictionError(
                    f"{self.name}: the truth is {truth.shape}, the image {self.label.shape}"
                )
            shown["ground truth"] = paint_labels(truth, palette)
        shown["prediction"] = paint_labels(self.label, palette)
        occurring = np.unique(self.label if truth is None else np.stack([self.label, truth]))
        legend = [
            (self.class_names[number], palette[number].tolist())
            for number in occurring.tolist()
            if number < len(self.class_names)
        ]
        return sheet(shown, legend)

    def pixels(self) -> dict[str, int]:
        """How many pixels each class has, by its name; classes without any are left out."""
        counts = np.bincount(self.label.ravel(), minlength=len(self.class_names))
        return {name: int(n) for name, n in zip(self.class_names, counts, strict=True) if n}

    def _palette(self, palette: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
        if palette is None:
            return colour_map(len(self.class_names))
        if palette.ndim != 2 or palette.shape[1] != 3 or palette.dtype != np.uint8:
            raise PredictionError(f"a palette is (K, 3) uint8, got {palette.shape} {palette.dtype}")
        if len(palette) < len(self.class_names):
            raise PredictionError(
                f"the palette has {len(palette)} colours for {len(self.class_names)} classes; give"
                " one colour per class"
            )
        return palette
