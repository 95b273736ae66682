"""A trained RGB-D segmenter asked about images: arrays or files, one or many, by any protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from segtasks.data.images import ChannelOrder
from segtasks.predictors.inputs import (
    ImageInput,
    Many,
    PredictionError,
    Preparation,
    RGBDInput,
    check_inputs,
    make_batch,
    name_classes,
)
from segtasks.predictors.result import SegmentationResult

if TYPE_CHECKING:
    from jittor import nn

    from segtasks.inference import Protocol

#: 8-bit labels, of which 255 means none.
_MOST_CLASSES = 255


class Segmenter:
    """A network with all that its predictions depend on; `load_segmenter` makes it from a file.

    The same images in the same batches give the same labels in every call: what is random in
    the network (LightHam's start) is drawn from the seed and the number of the batch in the call,
    as in the trainer's `predict`. Jittor's generator is set for that.

    Args:
        model: (B, 3, H, W) image and depth, normalised -> (B, K, H, W) logits, with `num_classes`.
        protocol: How it is asked; once for the whole image unless given.
        class_names: K names; class 0, class 1, ... unless given.
        preparation: What becomes of an image before; DFormer's official way for NYUDepthv2
            unless given.
        seed: Of what is random.
        source: Where the weights are from, for people.

    Raises:
        PredictionError: There are more classes than 8-bit labels hold, or not as many names.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        protocol: Protocol | None = None,
        class_names: Sequence[str] | None = None,
        preparation: Preparation | None = None,
        seed: int = 0,
        source: str = "",
    ) -> None:
        self.model = model
        self.num_classes = count_classes(model)
        self.class_names = name_classes(class_names, self.num_classes)
        self.protocol: Protocol = protocol or import_module("segtasks.inference").SingleScale()
        self.preparation = preparation or Preparation()
        self.seed, self.source = seed, source

    @overload
    def predict(
        self,
        rgb: ImageInput,
        depth: ImageInput,
        *,
        protocol: Protocol | None = ...,
        batch_size: int = ...,
        input_order: ChannelOrder = ...,
        with_scores: bool = ...,
    ) -> SegmentationResult: ...

    @overload
    def predict(
        self,
        rgb: Many,
        depth: Many,
        *,
        protocol: Protocol | None = ...,
        batch_size: int = ...,
        input_order: ChannelOrder = ...,
        with_scores: bool = ...,
    ) -> list[SegmentationResult]: ...

    def predict(
        self,
        rgb: ImageInput | Many,
        depth: ImageInput | Many,
        *,
        protocol: Protocol | None = None,
        batch_size: int = 1,
        input_order: ChannelOrder = "rgb",
        with_scores: bool = False,
    ) -> SegmentationResult | list[SegmentationResult]:
        """Say the class of every pixel of an image, or of several.

        Args:
            rgb: (H, W, 3) uint8, or the path of a .png or .jpg; a list for several. Any size.
            depth: Its depth: (H, W) or (H, W, 3), uint8 as in the data that the network was
                trained on, or uint16, which `depth_max` turns into that; or a path; a list for
                several.
            protocol: Instead of the segmenter's own.
            batch_size: Images asked about at once; those of one size share a batch.
            input_order: Order of the colours in arrays; `bgr` for what OpenCV has read.
            with_scores: Return the scores of all classes, too.

        Returns:
            One result, or for a list one per image, in its order.

        Raises:
            PredictionError: Something is wrong with an input; nothing was predicted.
            DataError: A file is missing or damaged.
        """
        several = isinstance(rgb, list)
        if several != isinstance(depth, list):
            raise PredictionError("give a list for both rgb and depth, or for neither")
        found = dict(
            self.stream(
                rgb if isinstance(rgb, list) else [rgb],
                depth if isinstance(depth, list) else [depth],
                protocol=protocol,
                batch_size=batch_size,
                input_order=input_order,
                with_scores=with_scores,
            )
        )
        results = [found[index] for index in range(len(found))]
        return results if several else results[0]

    def stream(
        self,
        rgb: Sequence[ImageInput],
        depth: Sequence[ImageInput],
        *,
        protocol: Protocol | None = None,
        batch_size: int = 1,
        input_order: ChannelOrder = "rgb",
        with_scores: bool = False,
    ) -> Iterator[tuple[int, SegmentationResult]]:
        """Predict as `predict` does, one batch after the other, for more than memory holds.

        All inputs are checked in this call; files are read when their batch comes.

        Returns:
            Pairs of the image's index and its result, as they are done.

        Raises:
            PredictionError: As in `predict`.
            DataError: As in `predict`.
        """
        inputs = check_inputs(rgb, depth, self.preparation, input_order)
        return self.stream_inputs(
            inputs, protocol=protocol, batch_size=batch_size, with_scores=with_scores
        )

    def stream_inputs(
        self,
        inputs: Sequence[RGBDInput],
        *,
        protocol: Protocol | None = None,
        batch_size: int = 1,
        with_scores: bool = False,
    ) -> Iterator[tuple[int, SegmentationResult]]:
        """As `stream`, for what `check_inputs` has checked already.

        Raises:
            PredictionError: The batch size is below 1.
        """
        if batch_size < 1:
            raise PredictionError(f"batch_size must be 1 or more, got {batch_size}")
        batches = _batches(inputs, self.preparation.pad_to, batch_size)
        return self._stream(inputs, batches, protocol or self.protocol, with_scores)

    def _stream(
        self,
        inputs: Sequence[RGBDInput],
        batches: Sequence[Sequence[int]],
        protocol: Protocol,
        with_scores: bool,
    ) -> Iterator[tuple[int, SegmentationResult]]:
        for number, indices in enumerate(batches):
            chosen = [inputs[index] for index in indices]
            yield from zip(
                indices, self._predict(chosen, number, protocol, with_scores), strict=True
            )

    def _predict(
        self, inputs: Sequence[RGBDInput], number: int, protocol: Protocol, with_scores: bool
    ) -> list[SegmentationResult]:
        """One batch, the `number`-th of a call."""
        samples = [item.read(self.preparation) for item in inputs]
        batch = make_batch(samples, self.preparation)
        labels, scores = self._ask(batch.image, batch.depth, number, protocol, with_scores)
        results = []
        for index, sample in enumerate(samples):
            H, W = sample.size  # without what was padded
            image = sample.image
            if self.preparation.channel_order == "bgr":
                image = np.ascontiguousarray(image[..., ::-1])
            results.append(
                SegmentationResult(
                    name=sample.name,
                    label=labels[index, :H, :W].astype(np.uint8),
                    scores=None if scores is None else scores[index, :, :H, :W].copy(),
                    image=image,
                    depth=sample.depth[..., 0],
                    class_names=self.class_names,
                )
            )
        return results

    def _ask(
        self,
        image: npt.NDArray[np.float32],
        depth: npt.NDArray[np.float32],
        number: int,
        protocol: Protocol,
        with_scores: bool,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32] | None]:
        """Labels (B, H, W) and scores (B, K, H, W) of a normalised batch, channels first."""
        import jittor as jt

        from jtlightning.seed import reseed
        from jtlightning.trainer.evaluate import evaluation_mode

        # As the trainer's `predict` does it, so that the numbers are the same.
        reseed(self.seed, "predict", number)
        with evaluation_mode(self.model), jt.no_grad():
            scores = protocol(self.model, jt.array(image), jt.array(depth))
            if scores.shape[1] != self.num_classes:
                raise PredictionError(
                    f"the network gave scores of {scores.shape[1]} classes, and its num_classes is"
                    f" {self.num_classes}"
                )
            index, _ = jt.argmax(scores, dim=1)
            found = index.numpy(), scores.numpy() if with_scores else None
            jt.sync_all()
        return found


def count_classes(model: nn.Module) -> int:
    """The number of classes that a network says it tells apart.

    Raises:
        PredictionError: it does not say, or there are more than 8-bit labels hold.
    """
    number = getattr(model, "num_classes", None)
    if not isinstance(number, int) or not 1 <= number <= _MOST_CLASSES:
        raise PredictionError(
            f"num_classes of {type(model).__name__} is {number!r}; a segmenter needs an attribute"
            f" with 1 to {_MOST_CLASSES}, as labels are 8-bit"
        )
    return number


def _batches(
    inputs: Sequence[RGBDInput], pad_to: tuple[int, int] | None, batch_size: int
) -> list[list[int]]:
    """Indices of one size together, in the order of their first ones."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, item in enumerate(inputs):
        groups.setdefault(pad_to or item.size, []).append(index)
    return [
        group[first : first + batch_size]
        for group in groups.values()
        for first in range(0, len(group), batch_size)
    ]
