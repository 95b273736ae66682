from __future__ import annotations

import logging

import numpy as np
import pytest

from jtlightning.data.loader import Loader, SampleError
from tests.jtlightning.data.loader_cases import (
    Images,
    add_noise,
    collate,
    collate_few,
    collate_never,
)

BAD = {2: "raise", 7: "shape", 11: "raise"}
OPTIONS = {"collate": collate, "on_bad_sample": "skip", "max_skipped": 3}


def make(dataset, batch_size=3, **options) -> Loader:
    return Loader(dataset, batch_size, **{**OPTIONS, **options})


def as_bytes(batches) -> list:
    return [(batch.names, batch.image.tobytes()) for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_replacements_do_not_depend_on_workers_or_start(num_workers):
    options = {"transform": add_noise, "shuffle": True}
    here = make(Images(20, BAD), **options)
    there = make(Images(20, BAD), num_workers=num_workers, **options)
    for epoch in (0, 1):
        expected = as_bytes(here.batches(epoch, seed=5))
        assert as_bytes(there.batches(epoch, seed=5)) == expected
        assert as_bytes(there.batches(epoch, 3, seed=5)) == expected[3:]
        names = [name for batch in expected for name in batch[0]]
        assert len(names) == 20, "batches keep their size"
        assert not {"2", "7", "11"} & set(names)
    there.close()
    assert sorted(there.skipped) == [2, 7, 11]
    assert "sample 2 (folder/2.png) failed: broken image" in there.skipped[2]
    assert "image is (3, 4, 5) float32 in sample 7" in there.skipped[7]


def test_replacement_is_drawn_anew_each_epoch_with_randomness_of_its_own():
    loader = make(Images(20, {0: "raise"}), transform=add_noise)
    drawn = [next(loader.batches(epoch)) for epoch in range(8)]
    assert len({batch.names[0] for batch in drawn}) > 3
    whole = make(Images(20), transform=add_noise)
    for epoch, batch in enumerate(drawn):
        index = int(batch.names[0])
        originals = {
            n: im for b in whole.batches(epoch) for n, im in zip(b.names, b.image, strict=True)
        }
        assert np.round(batch.image[0]).mean() == pytest.approx(index, abs=1)
        assert (batch.image[0] != originals[str(index)]).all()


def test_each_is_reported_once_and_only_with_a_delivered_batch(caplog):
    caplog.set_level(logging.WARNING)
    loader = make(Images(20, BAD), num_workers=2)
    batches = loader.batches(0)
    next(batches)
    assert list(loader.skipped) == [2]
    batches.close()
    assert list(loader.skipped) == [2]
    for epoch in range(3):
        list(loader.batches(epoch))
    loader.close()
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 3
    assert told[0] == "left out and replaced: sample 2 (folder/2.png) failed: broken image"


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", ["shape", "nothing"])
def test_batch_without_a_majority_asks_other_samples(batch_size, kind):
    loader = make(Images(20, {3: kind}), batch_size)
    if (batch_size, kind) == (1, "shape"):
        assert len(list(loader.batches(0))) == 20  # nothing to differ from
        assert not loader.skipped
    else:
        names = [name for batch in loader.batches(0) for name in batch.names]
        assert len(names) == 20
        assert list(loader.skipped) == [3]


def test_the_batch_itself_has_no_second_vote():
    loader = make(Images(4, {1: "shape"}), 2)
    for epoch in range(10):
        list(loader.batches(epoch))
    assert list(loader.skipped) == [1]


@pytest.mark.parametrize("num_workers", [0, 1, 4])
@pytest.mark.parametrize(("cap", "allowed"), [(2, 2), (0.1, 2), (0.01, 1)])
def test_more_than_the_cap_is_an_error_with_count_cap_and_last_samples(num_workers, cap, allowed):
    bad = dict.fromkeys((2, 5, 8), "raise")
    loader = make(Images(20, bad), 4, max_skipped=cap, num_workers=num_workers)
    batches = loader.batches(0)
    for _ in range(allowed):
        next(batches)
    with pytest.raises(SampleError) as caught:
        next(batches)
    loader.close()
    failed = (2, 5, 8)[: allowed + 1]
    text = str(caught.value)
    assert f"{allowed + 1} samples were left out, and max_skipped allows {allowed} of 20" in text
    assert f"sample {failed[-1]} (folder/{failed[-1]}.png) failed: broken image" in text
    assert "OSError: broken image" in caught.value.original
    assert caught.value.indices == failed == tuple(loader.skipped)
    with pytest.raises(SampleError, match="max_skipped allows"):
        list(loader.batches(1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_dataset_ends_after_a_few_samples(num_workers):
    loader = make(Images(50, dict.fromkeys(range(50), "raise")), num_workers=num_workers)
    with pytest.raises(SampleError, match="4 samples were left out, and max_skipped allows 3"):
        list(loader.batches(0))
    loader.close()
    loader = make(Images(50, dict.fromkeys(range(50), "raise")), max_skipped=1.0)
    with pytest.raises(SampleError, match=r"50 samples .* allows 49"):
        list(loader.batches(0))


@pytest.mark.parametrize(
    ("slip", "message"), [(collate_never, "a slip that 3"), (collate_few, "too many")]
)
def test_collate_that_no_sample_is_to_blame_for_is_an_error(slip, message):
    loader = make(Images(20), collate=slip)
    told = r"samples \[0, 1, 2\] cannot be collated into one batch; "
    with pytest.raises(SampleError, match=told) as caught:
        list(loader.batches(0))
    assert message in caught.value.original
    assert caught.value.indices == (0, 1, 2)
    assert not loader.skipped


def test_tie_is_told_with_both_kinds():
    loader = make(Images(20, {3: "shape"}), 2, on_bad_sample="raise")
    told = r"samples \[2, 3\] cannot .*: image is \(3, 4, 4\) float32 in sample 2, \(3, 4, 5\)"
    with pytest.raises(SampleError, match=told) as caught:
        list(loader.batches(0))
    assert caught.value.indices == (2, 3)


def test_lack_of_memory_is_no_fault_of_the_sample():
    loader = make(Images(20, {3: "memory"}))
    with pytest.raises(SampleError, match=r"sample 3 .* failed") as caught:
        list(loader.batches(0))
    assert caught.value.indices == (3,)
    assert not loader.skipped


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on_bad_sample": "ignore"}, "on_bad_sample is 'ignore'; use raise or skip"),
        ({"max_skipped": 0}, "max_skipped is 0; give a number"),
        ({"max_skipped": 1.5}, "max_skipped is 1.5"),
        ({"max_skipped": True}, "max_skipped is True"),
    ],
)
def test_impossible_policies_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        make(Images(8), **options)
