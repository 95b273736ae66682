from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from jtlightning.data.batch import batch_size_of, map_arrays


@dataclass(frozen=True)
class Frozen:
    image: np.ndarray
    names: list[str]
    extra: object = None

    def __post_init__(self) -> None:
        assert isinstance(self.image, np.ndarray)


class Pair(NamedTuple):
    first: object
    second: object


def test_arrays_are_mapped_wherever_they_are_and_nothing_else():
    image = np.ones((2, 3))
    batch = {
        "data": Frozen(image, ["a", "b"], extra=(image, 5)),
        "pair": Pair(image, [image, "x", None]),
    }
    mapped = map_arrays(lambda array: array.shape, batch)
    shape = (2, 3)
    data = mapped["data"]
    assert (data.image, data.names, data.extra) == (shape, ["a", "b"], (shape, 5))
    assert mapped["pair"] == Pair(shape, [shape, "x", None])
    assert isinstance(mapped["pair"], Pair)
    assert batch["data"].image is image  # the original is unchanged


def test_batch_size_is_that_of_the_first_array_with_an_axis():
    assert batch_size_of({"names": ["a"] * 7, "scale": np.float32(2), "x": np.ones((3, 9))}) == 3
    assert batch_size_of(Frozen(np.ones((4, 1)), [])) == 4
    assert batch_size_of([[Pair(None, np.ones(5))]]) == 5


def test_batch_without_an_array_asks_for_its_size():
    with pytest.raises(ValueError, match="pass batch_size"):
        batch_size_of({"names": ["a"], "scale": np.float32(1)})
