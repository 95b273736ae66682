from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from jtlightning.data.loader import SampleError
from segtasks.data.classes import NYU13, NYU40, SUN37
from segtasks.data.modules import RGBDDataModule, RoomsDataModule
from segtasks.data.rooms import CLASS_NAMES
from segtasks.data.samples import DataError


def write_data(root, sizes, train):
    """A data set whose image k has the grey value k everywhere."""
    for folder in ("RGB", "Depth", "Label"):
        (root / folder).mkdir()
    for number, size in enumerate(sizes):
        grey = np.full(size, number, np.uint8)
        assert cv2.imwrite(str(root / f"RGB/{number}.png"), np.dstack([grey] * 3))
        assert cv2.imwrite(str(root / f"Depth/{number}.png"), grey)
        assert cv2.imwrite(str(root / f"Label/{number}.png"), grey % 4)
    lines = [f"RGB/{number}.png\n" for number in range(len(sizes))]
    (root / "train.txt").write_text("".join(lines[:train]))
    (root / "test.txt").write_text("".join(lines[train:]))


@pytest.fixture
def root(tmp_path):
    write_data(tmp_path, [(8, 10)] * 9, train=7)
    return str(tmp_path)


def make_module(root, **changes):
    arguments = {"crop_size": (6, 6), "batch_size": 2, "num_workers": 0, "scales": [1.0]}
    return RGBDDataModule(root, 3, **{**arguments, **changes})


def test_training_epoch_is_shuffled_cropped_and_complete(root):
    module = make_module(root)
    module.setup("fit")
    loader = module.train_dataloader()
    batches = list(loader.batches(0, seed=1))
    names = [name for batch in batches for name in batch.names]
    assert len(loader) == len(batches) == 3
    assert len(set(names)) == 6
    assert names != sorted(names)
    assert names != [name for batch in loader.batches(1, seed=1) for name in batch.names]
    shape = module.input_shapes[0]
    assert all(batch.image.shape == batch.depth.shape == shape == (2, 3, 6, 6) for batch in batches)


def test_validation_reads_the_test_split_in_order_at_native_size(root):
    module = make_module(root, val_batch_size=2)
    module.setup("validate")
    for loader in (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader()):
        (batch,) = loader.batches(0)
        assert batch.names == ["7", "8"]
        assert batch.image.shape == (2, 3, 8, 10)
        # Raw labels 3 and 0: class 2, and unlabelled.
        assert batch.label[:, 0, 0].tolist() == [2, 255]


def test_reading_options_reach_the_files(tmp_path):
    generator = np.random.default_rng(0)
    for folder in ("image", "range", "class"):
        (tmp_path / folder).mkdir()
    image = generator.integers(0, 256, (4, 5, 3), np.uint8)
    label = generator.integers(0, 3, (4, 5), np.uint8)
    cv2.imwrite(str(tmp_path / "image/a.png"), image)
    cv2.imwrite(str(tmp_path / "range/a.png"), np.full((4, 5), 300, np.uint16))
    cv2.imwrite(str(tmp_path / "class/a.png"), label)
    (tmp_path / "val.txt").write_text("image/a.png\n")
    module = make_module(
        tmp_path,
        rgb_folder="image",
        depth_folder="range",
        label_folder="class",
        label_shift=False,
        depth_max=600,
        channel_order="rgb",
        train_split="val.txt",
        test_split="val.txt",
        mirror_probability=1.0,
        batch_size=1,
        crop_size=(4, 5),
    )
    module.setup("fit")
    (validation,) = module.val_dataloader().batches(0)
    assert (validation.label[0] == label).all()
    # 300 of 600 is grey value 127.5, rounded to the even 128.
    assert np.allclose(validation.depth, (128 / 255 - 0.48) / 0.28)
    assert np.allclose(validation.image[0, 0], (image[..., 2] / 255 - 0.485) / 0.229)
    names = [(b.names, b.label) for b in module.train_dataloader().batches(0)]
    assert (names[0][1][0] == label[:, ::-1]).all()


def test_official_epoch_adds_one_batch_of_images_drawn_anew(root):
    module = make_module(root, epoch_length="official")
    module.setup("fit")
    loader = module.train_dataloader()
    extras = set()
    for epoch in range(12):
        names = [name for batch in loader.batches(epoch) for name in batch.names]
        assert len(names) == 8
        assert set(names) == {str(k) for k in range(7)}
        assert all(batch.image.shape[2:] == (6, 6) for batch in loader.batches(epoch))
        extras |= {name for name in names if names.count(name) == 2}
    assert len(extras) > 3


def test_official_epoch_is_one_batch_longer_where_images_fill_the_batches(root):
    module = make_module(root, epoch_length="official", batch_size=7)
    module.setup("fit")
    assert len(module.train_dataloader()) == 2


@pytest.mark.parametrize(("batch_size", "drawn"), [(8, 1), (5, 3), (4, 1), (12, 5), (15, 8)])
def test_official_epoch_draws_no_image_twice_while_there_are_enough(root, batch_size, drawn):
    module = make_module(root, epoch_length="official", batch_size=batch_size)
    module.setup("fit")
    loader = module.train_dataloader()
    seen = set()
    for epoch in range(30):
        names = [name for batch in loader.batches(epoch) for name in batch.names]
        counts = Counter(names)
        assert len(names) == 7 + drawn
        assert max(counts.values()) == (2 if drawn <= 7 else 3)
        assert sum(counts.values()) - len(counts) == drawn
        seen |= {name for name, count in counts.items() if count > 1}
    assert len(seen) == 7


def test_a_training_sample_depends_on_seed_epoch_and_place_alone(root):
    """Not on the batch that it comes in, nor on what was read before."""

    def samples(batch_size):
        module = make_module(root, batch_size=batch_size, scales=[0.5, 1.0, 1.75])
        module.setup("fit")
        batches = module.train_dataloader().batches(3, seed=5)
        return {
            name: (batch.image[i].tobytes(), batch.label[i].tobytes())
            for batch in batches
            for i, name in enumerate(batch.names)
        }

    one_by_one = samples(1)
    assert len(one_by_one) == 7
    for others in (samples(3), samples(7)):
        assert {name: one_by_one[name] for name in others} == others


def test_error_in_a_drawn_image_names_the_file(root, tmp_path):
    module = make_module(root, epoch_length="official", batch_size=8)
    module.setup("fit")
    for number in range(7):
        (tmp_path / f"Depth/{number}.png").write_bytes(b"")
    loader = module.train_dataloader()
    epoch = loader.dataset
    with pytest.raises(DataError, match=r"Depth/\d\.png: the file is empty"):
        epoch(epoch[7], np.random.default_rng(0))
    assert "fill the last batch" in epoch.describe(7)
    assert "RGB/6.png" in epoch.describe(6)


def test_missing_files_are_found_at_setup(root, tmp_path):
    (tmp_path / "Depth/3.png").unlink()
    make_module(root).setup("test")
    with pytest.raises(DataError, match="Depth/3"):
        make_module(root).setup("fit")


def test_fewer_images_than_a_batch_are_refused_before_training(root):
    with pytest.raises(DataError, match=r"train\.txt lists 7 samples.*set batch_size to 7"):
        make_module(root, batch_size=8).setup("fit")
    make_module(root, batch_size=8, epoch_length="official").setup("fit")


@pytest.fixture
def mixed(tmp_path):
    write_data(tmp_path, [(8, 10), (8, 10), (8, 10), (6, 12)], train=2)
    return str(tmp_path)


def test_validation_images_of_several_sizes_need_batches_of_one(mixed):
    with pytest.raises(
        DataError, match=r"2 sizes.*8x10 .*RGB/2.png.*6x12 .*RGB/3.png.*to 1, or pad"
    ):
        make_module(mixed, val_batch_size=2).setup("fit")
    module = make_module(mixed)
    module.setup("fit")
    assert [batch.label.shape for batch in module.val_dataloader().batches(0)] == [
        (1, 8, 10),
        (1, 6, 12),
    ]


def test_padding_gives_validation_images_one_size(mixed):
    module = make_module(mixed, val_batch_size=2, pad_validation=(9, 12))
    module.setup("fit")
    (batch,) = module.val_dataloader().batches(0)
    assert batch.label.shape == (2, 9, 12)
    with pytest.raises(
        DataError, match=r"RGB/3\.png.*6x12 is larger than pad_validation \(9, 11\)"
    ):
        make_module(mixed, pad_validation=(9, 11)).setup("fit")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0", b"GIF89a" + bytes(30)])
def test_label_without_a_size_is_named_at_setup(mixed, tmp_path, content):
    (tmp_path / "Label/3.png").write_bytes(content)
    with pytest.raises(DataError, match=r"Label/3\.png: the file is no PNG"):
        make_module(mixed, val_batch_size=2).setup("fit")


def test_majority_label_is_that_of_the_training_split(root):
    module = make_module(root)
    # Training labels are 255, 0, 1, 2, 255, 0, 1: classes 0 and 1 tie, the first counts.
    assert (module.majority_label((4, 5)) == 0).all()


def test_class_names_are_preset_listed_or_numbered(root):
    assert make_module(root).class_names == ("class 0", "class 1", "class 2")
    assert make_module(root, class_names=["a", "b", "c"]).class_names == ("a", "b", "c")
    assert RGBDDataModule(root, 37, class_names="sun37").class_names == SUN37
    assert RGBDDataModule(root, 40, class_names="nyu40").class_names == NYU40
    assert RGBDDataModule(root, 13, class_names="nyu13").class_names == NYU13
    assert (NYU40[19], SUN37[19], NYU40[23], SUN37[23], SUN37[36]) == (
        "floor mat",
        "floor_mat",
        "refridgerator",
        "fridge",
        "bag",
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"class_names": ["a"]}, "has 1 names but num_classes is 3"),
        ({"class_names": "nyu40"}, r"\(nyu40\) has 40 names but num_classes is 3"),
        ({"class_names": "ade20k"}, "one of nyu40, nyu13, sun37, mfnet9, got 'ade20k'"),
        ({"epoch_length": "long"}, "epoch_length must be 'plain' or 'official', got 'long'"),
        ({"batch_size": 0}, "1 or more"),
        ({"num_workers": -1}, "0 or more"),
        ({"channel_order": "xyz"}, "channel_order"),
        ({"crop_size": (0, 5)}, "crop size"),
    ],
)
def test_impossible_arguments_are_refused(root, changes, text):
    with pytest.raises(ValueError, match=text):
        make_module(root, **changes).setup("fit")


def test_datasets_and_transforms_travel_to_workers(root):
    module = make_module(root, epoch_length="official")
    module.setup("fit")
    epoch = module.train_dataloader().dataset
    copy = pickle.loads(pickle.dumps(epoch))
    sample = copy(copy[0], np.random.default_rng(0))
    assert (sample.image == epoch(epoch[0], np.random.default_rng(0)).image).all()


def test_teardown_closes_every_loader(root, monkeypatch):
    module = make_module(root)
    module.setup("fit")
    closed = []
    for loader in (module.train_dataloader(), module.val_dataloader()):
        monkeypatch.setattr(loader, "close", lambda loader=loader: closed.append(loader))
    module.teardown("fit")
    module.teardown("fit")
    assert len(closed) == 2


def test_data_layer_reaches_no_jittor():
    code = "import sys, segtasks.data.modules; sys.exit('jittor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ROOMS = {"train": 3, "val": 2, "size": (64, 64), "batch_size": 2, "num_workers": 0}


def test_rooms_are_rendered_once_and_give_batches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = RoomsDataModule(**ROOMS, crop_size=(48, 48), val_batch_size=2)
    module.prepare_data()
    module.setup("fit")
    assert module.root.parent == tmp_path / "segtasks"
    assert module.root.name.startswith("rooms-")
    batch = next(iter(module.train_dataloader().batches(0)))
    assert batch.image.shape == (2, 3, 48, 48)
    assert module.class_names == CLASS_NAMES
    assert module.num_classes == len(CLASS_NAMES)
    (validation,) = module.val_dataloader().batches(0)
    assert validation.label.shape == (2, 64, 64)
    written = (module.root / "train.txt").stat().st_mtime_ns
    RoomsDataModule(**ROOMS).prepare_data()
    assert (module.root / "train.txt").stat().st_mtime_ns == written


@pytest.mark.parametrize("change", [{"scales": [-1.0]}, {"mirror_probability": 2.0}])
def test_rooms_check_the_settings_of_the_transform(tmp_path, change):
    with pytest.raises(ValueError, match=r"-1\.0|2\.0"):
        RoomsDataModule(**ROOMS, **change, cache_dir=str(tmp_path))


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 4}, {"val": 3}, {"size": (64, 72)}])
def test_other_rooms_have_another_folder(tmp_path, change):
    first = RoomsDataModule(**ROOMS, cache_dir=str(tmp_path))
    assert RoomsDataModule(**{**ROOMS, **change}, cache_dir=str(tmp_path)).root != first.root
    assert RoomsDataModule(**{**ROOMS, "batch_size": 1}, cache_dir=str(tmp_path)).root == first.root


def test_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    module = RoomsDataModule(**ROOMS, cache_dir=str(tmp_path))

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("segtasks.data.rooms.folder._add_to_coco", interrupt)
    with pytest.raises(KeyboardInterrupt):
        module.prepare_data()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["0", "8"])  # of the training and of the test split
def test_damaged_files_are_found_before_training_unless_that_is_switched_off(
    root, tmp_path, name, capsys
):
    make_module(root).setup("fit")
    assert (
        capsys.readouterr().err == ""
    )  # no bar, not even an empty line, where there is no terminal
    (tmp_path / f"Depth/{name}.png").write_bytes(b"")
    make_module(root).setup("validate")
    make_module(root, check_files=False).setup("fit")
    with pytest.raises(DataError, match=rf"Depth/{name}\.png: the file is empty"):
        make_module(root).setup("fit")


def test_bad_training_samples_are_replaced_up_to_a_cap(root, tmp_path):
    for name in ("0", "1"):
        (tmp_path / f"Depth/{name}.png").write_bytes(b"")
    module = make_module(root, max_skipped=2)
    module.setup("fit")
    loader = module.train_dataloader()
    names = [name for batch in loader.batches(0, seed=1) for name in batch.names]
    assert len(names) == 6
    assert not {"0", "1"} & set(names)
    assert loader.skipped
    capped = make_module(root, max_skipped=1)
    capped.setup("fit")
    with pytest.raises(SampleError, match="2 samples were left out, and max_skipped allows 1"):
        list(capped.train_dataloader().batches(0, seed=1))


def test_bad_samples_of_the_test_split_are_never_left_out(root, tmp_path):
    (tmp_path / "Depth/8.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"Depth/8\.png: the file is empty"):
        make_module(root, max_skipped=5).setup("fit")
    module = make_module(root, max_skipped=5, check_files=False)
    module.setup("fit")
    with pytest.raises(SampleError, match=r"Depth/8\.png"):
        list(module.val_dataloader().batches(0))
