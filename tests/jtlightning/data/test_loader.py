from __future__ import annotations

import os
import select
import signal
import weakref
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from jtlightning.data.channel import Receiver
from jtlightning.data.loader import Loader, LoaderError, SampleError
from jtlightning.data.randomness import epoch_order
from jtlightning.signals import reclaim
from tests.jtlightning.data.loader_cases import Images, add_noise, collate


@pytest.fixture(autouse=True)
def _killed_children_are_no_concern_of_jittor():
    reclaim()


@pytest.fixture
def make() -> Iterator:
    loaders = []

    def build(dataset, batch_size=3, **options):
        loaders.append(Loader(dataset, batch_size, **{"collate": collate, **options}))
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


def as_bytes(batches) -> list:
    return [(batch.names, batch.image.tobytes()) for batch in batches]


def pids(loader: Loader) -> list[int]:
    return [worker.process.pid for worker in loader._pool._workers]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def gone(pid: int, within_s: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ready, _, _ = select.select([descriptor], [], [], within_s)
    os.close(descriptor)
    return bool(ready)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_do_not_depend_on_workers_or_start(make, num_workers):
    options = {"transform": add_noise, "shuffle": True}
    here, there = make(Images(20), **options), make(Images(20), num_workers=num_workers, **options)
    for epoch in (0, 1):
        expected = as_bytes(here.batches(epoch, seed=5))
        assert as_bytes(there.batches(epoch, seed=5)) == expected
        assert as_bytes(there.batches(epoch, 4, seed=5)) == expected[4:]
        assert as_bytes(here.batches(epoch, 4, seed=5)) == expected[4:]
    assert list(there.batches(0, len(there))) == []


def test_epochs_and_seeds_differ_in_order_and_randomness(make):
    loader = make(Images(20), transform=add_noise, shuffle=True)
    runs = [as_bytes(loader.batches(e, seed=s)) for e, s in ((0, 0), (1, 0), (0, 1))]
    names = [[name for batch in run for name in batch[0]] for run in runs]
    assert all(sorted(n, key=int) == [str(i) for i in range(20)] for n in names)
    assert len({tuple(n) for n in names}) == 3
    ordered = make(Images(6), transform=add_noise)
    first_epoch, second_epoch = as_bytes(ordered.batches(0)), as_bytes(ordered.batches(1))
    assert [b[0] for b in first_epoch] == [["0", "1", "2"], ["3", "4", "5"]]
    assert first_epoch[0][1] != second_epoch[0][1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_last_batch_is_smaller_or_dropped(make, num_workers):
    loader = make(Images(7), num_workers=num_workers)
    assert [len(b.names) for b in loader.batches(0)] == [3, 3, 1]
    loader = make(Images(7), num_workers=num_workers, drop_last=True)
    assert [len(b.names) for b in loader.batches(0)] == [3, 3]
    assert len(loader) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"num_workers": -1}, "num_workers >= 0"),
        ({"timeout_s": 0}, "timeout_s > 0"),
        ({"batch_size": 9, "drop_last": True}, "leaves no batch of 9 from 8"),
        ({"dataset": Images(0)}, "Images is empty"),
    ],
)
def test_impossible_arguments_are_refused(make, options, reason):
    with pytest.raises(ValueError, match=reason):
        make(**{"dataset": Images(8), **options})


def test_position_outside_the_epoch_is_refused(make):
    for arguments in ((0, 4), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match="0 <= start <= 3"):
            make(Images(8)).batches(*arguments)


def test_start_in_the_middle_loads_nothing_before_it(make, tmp_path):
    mischief = dict.fromkeys(range(100), str(tmp_path))
    next(make(Images(100, mischief), shuffle=True).batches(0, 20))
    loaded = {int(path.name) for path in tmp_path.iterdir()}
    assert loaded == set(epoch_order(0, 0, 100)[60:63].tolist())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_failing_sample_is_named_with_file_and_original_traceback(make, num_workers):
    loader = make(Images(20, {10: "raise"}), num_workers=num_workers)
    started = monotonic()
    with pytest.raises(SampleError, match=r"sample 10 \(folder/10\.png\) failed") as caught:
        list(loader.batches(0))
    assert caught.value.indices == (10,)
    assert "loader_cases.py" in str(caught.value)
    assert "OSError: broken image" in caught.value.original
    assert monotonic() - started < 30
    assert len(list(loader.batches(1, 4))) == 3  # behind the failing sample all is well


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sample_that_does_not_collate_is_named_with_what_differs(make, num_workers):
    loader = make(Images(20, {10: "shape"}), num_workers=num_workers)
    told = r"sample 10 \(folder/10\.png\) does not collate with the others .* \[9, 10, 11\]: image "
    told += r"is \(3, 4, 5\) float32 in sample 10, \(3, 4, 4\) float32 in sample 9"
    with pytest.raises(SampleError, match=told) as caught:
        list(loader.batches(0))
    assert caught.value.indices == (10,)
    assert "same shape" in caught.value.original


@pytest.mark.parametrize(
    ("kind", "reason"), [("die", "was killed by SIGKILL"), ("leave", "left with 3")]
)
def test_dead_worker_is_named_and_replaced_in_the_next_epoch(make, kind, reason):
    loader = make(Images(20, {10: kind}), num_workers=2)
    started = monotonic()
    with pytest.raises(LoaderError, match=rf"loader worker 1 \(pid \d+\) {reason}"):
        list(loader.batches(0))
    assert monotonic() - started < 30
    assert len(list(loader.batches(0, 4))) == 3


@pytest.mark.parametrize("mischief", [{}, {4: "fork"}])
def test_worker_killed_from_outside_is_noticed(make, mischief):
    loader = make(Images(20, mischief), num_workers=2, prefetch=1)
    batches = loader.batches(0)
    for _ in range(2):
        next(batches)
    os.kill(pids(loader)[1], signal.SIGKILL)
    started = monotonic()
    with pytest.raises(LoaderError, match=r"loader worker 1 .* SIGKILL"):
        list(batches)
    assert monotonic() - started < 2


@pytest.mark.parametrize("stopped", [False, True])
def test_hung_worker_is_named_after_the_time_out_and_ended(make, stopped):
    loader = make(
        Images(20, {} if stopped else {10: "hang"}), num_workers=2, timeout_s=0.3, prefetch=1
    )
    batches = loader.batches(0)
    for _ in range(2):  # both workers are up, so that the time-out counts
        next(batches)
    ids = pids(loader)
    if stopped:
        os.kill(ids[1], signal.SIGSTOP)
    with pytest.raises(
        LoaderError,
        match=r"loader worker 1 .* within 0\.3 s"
        if stopped
        else r"\(folder/10\.png\) hangs(.|\n)*in wait",
    ):
        list(batches)
    assert all(gone(pid, 1) for pid in ids)


def test_leaving_an_epoch_early_leaks_nothing_and_the_next_is_right(make):
    loader = make(Images(60, size=400), num_workers=2)  # large enough to be mapped
    expected = [["0", "1", "2"], ["3", "4", "5"]]
    files = []
    for epoch in range(6):
        batches = loader.batches(epoch)
        assert [next(batches).names for _ in range(2)] == expected
        batches.close()
        if epoch == 0:
            ids = pids(loader)
        # Two workers may each have had one batch in hand.
        next(loader.batches(epoch, len(loader) - 1))
        files.append(open_files())
    assert max(files[1:]) <= files[0] + 2
    assert pids(loader) == ids  # the workers stay
    loader.close()
    assert all(gone(pid, 1) for pid in ids)


@pytest.mark.parametrize("closed", [True, False])
def test_abandoned_work_is_not_done(make, tmp_path, closed):
    mischief = dict.fromkeys(range(300), str(tmp_path))
    loader = make(Images(300, mischief, size=150), batch_size=30, num_workers=1, prefetch=8)
    batches = loader.batches(0)
    next(batches)
    if closed:
        batches.close()
    assert len(list(loader.batches(1, 9))) == 1
    assert len(list(tmp_path.iterdir())) <= 30 * 4


def test_opening_another_epoch_abandons_the_first(make):
    loader = make(Images(20), num_workers=2)
    one = loader.batches(0)
    next(one)
    two = loader.batches(1)
    assert next(two).names == ["0", "1", "2"]
    with pytest.raises(LoaderError, match="another was opened"):
        next(one)
    assert next(two).names == ["3", "4", "5"]


def test_workers_are_at_most_prefetch_batches_ahead(make, tmp_path):
    loader = make(
        Images(60, dict.fromkeys(range(60), str(tmp_path))), num_workers=2, prefetch=2, batch_size=2
    )
    batches = loader.batches(0)
    for _ in range(3):
        next(batches)
    loader._pool._await(loader._pool._workers[1], loader._pool._run, 3)  # batch 3 is there
    assert len(list(tmp_path.iterdir())) <= 2 * (2 + 2 * 2)


def test_batch_is_not_kept_while_the_next_is_awaited(make, monkeypatch):
    loader = make(Images(20), num_workers=1)
    batches = loader.batches(0)
    kept = weakref.ref(next(batches).image)
    seen = []
    receive = Receiver.receive
    monkeypatch.setattr(Receiver, "receive", lambda it: (seen.append(kept()), receive(it))[1])
    next(batches)
    assert seen == [None]


def test_dropping_the_loader_ends_its_workers():
    loader = Loader(Images(9), 3, collate=collate, num_workers=1)
    next(loader.batches(0))
    ids = pids(loader)
    del loader
    assert all(gone(pid, 2) for pid in ids)


@pytest.mark.parametrize("size", [30, 360])  # 32 KiB and 4.4 MiB: copied and mapped
def test_batches_are_writable_and_never_overwritten_while_they_are_held(make, size):
    loader = make(Images(36, size=size), num_workers=1, prefetch=1)
    before = None
    for _ in range(3):
        held = list(loader.batches(0))
        for number, batch in enumerate(held):
            batch.image[0] += 1  # would show in a batch that shared its memory
            first = 3 * number
            for image, value in zip(batch.image, (first + 1, first + 1, first + 2), strict=True):
                np.testing.assert_array_equal(image, np.full((3, size, size), value, np.float32))
        del held, batch, image
        before = before or open_files()
        assert open_files() <= before


def test_batches_of_growing_size_use_no_more_files(make):
    loader = make(
        Images(60, dict.fromkeys(range(60), "grow")), batch_size=2, num_workers=1, prefetch=2
    )
    before = None
    for epoch in range(3):
        for number, batch in enumerate(loader.batches(epoch)):
            assert batch.image.shape[-1] == 40 + 64 * number
            assert batch.image[1, 0, 0, 0] == 2 * number + 1
            before = before or open_files()
            assert open_files() <= before + 4  # the files that a worker keeps


def test_unpicklable_attribute_is_named(make):
    dataset = Images(9)
    dataset.mischief[0] = lambda: None
    loader = make(dataset, num_workers=1)
    with pytest.raises(ValueError, match=r"dataset\.mischief cannot be sent to loader workers"):
        list(loader.batches(0))
    loader = make(Images(9), num_workers=1, transform=lambda sample, generator: sample)
    with pytest.raises(ValueError, match="transform cannot be sent"):
        list(loader.batches(0))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("samples", [12, 13, 17])
def test_ranks_share_a_training_epoch(samples: int, ranks: int) -> None:
    def parts(batch_size: int, ranks: int) -> list[list[list[int]]]:
        made = []
        for rank in range(ranks):
            loader = Loader(list(range(samples)), batch_size, collate=list, shuffle=True)
            loader.shard(rank, ranks, deal_batches=False)
            made.append([list(map(int, batch)) for batch in loader.batches(1, seed=3)])
            assert len(loader) == len(made[-1])
        return made

    shares = parts(2, ranks)
    (alone,) = parts(2 * ranks, 1)
    together = [list(chain(*batches)) for batches in zip(*shares, strict=True)]
    left_out = samples % (2 * ranks) if samples % (2 * ranks) < ranks else 0
    assert together == (alone[:-1] if left_out else alone)
    assert len(list(chain(*together))) == samples - left_out
    sizes = {len(batch) for share in shares for batch in share[:-1]}
    assert sizes == {2}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_are_dealt_the_batches_of_an_evaluation(ranks: int) -> None:
    def batches(rank: int, ranks: int) -> list[list[int]]:
        loader = Loader(list(range(7)), 2, collate=list)
        loader.shard(rank, ranks, deal_batches=True)
        assert len(loader) == 4
        return list(loader.batches(0))

    alone = batches(0, 1)
    shares = [batches(rank, ranks) for rank in range(ranks)]
    assert [shares[k % ranks][k // ranks] for k in range(4)] == alone
