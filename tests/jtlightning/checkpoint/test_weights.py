from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtlightning.checkpoint.container import Checkpoint, CheckpointError, write_checkpoint
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import (
    WeightsError,
    export_weights,
    load_weights,
    match_weights,
    read_weights,
)

REFERENCE = Path(__file__).parents[2] / "reference" / "checkpoints"
TARGETS = {
    "backbone.fc.weight": ((3, 2), "float32"),
    "backbone.fc.bias": ((3,), "float32"),
    "head.weight": ((5, 3), "float32"),
    "head.count": ((), "int32"),
}


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    made = {n: np.ones(shape, dtype) for n, (shape, dtype) in TARGETS.items()}
    for name, array in changes.items():
        made.pop(name, None)
        if array is not None:
            made[name] = array
    return made


def match(weights, **options):
    return match_weights(TARGETS, weights, source="file.pth", model="Net", **options)


def test_fitting_weights_take_the_dtypes_of_the_model():
    weights = {
        n: a.astype(np.float64 if a.dtype.kind == "f" else np.int64) for n, a in arrays().items()
    }
    fitting = match(weights)
    assert {n: (a.shape, str(a.dtype)) for n, a in fitting.items()} == TARGETS


def test_message_lists_every_kind_of_misfit():
    weights = {
        "backbone.fc.weight": np.ones((3, 2), np.int32),
        "backbone.norm0.bias": np.ones(3, np.float32),
        "head.weight": np.ones((7, 3), np.float32),
    }
    with pytest.raises(WeightsError) as caught:
        match(weights)
    assert str(caught.value) == (
        "file.pth does not fit Net; nothing was loaded\n"
        "  missing in the file: backbone.fc.bias, head.count\n"
        "  unknown to the model: backbone.norm0.bias\n"
        "  different shape: head.weight (file (7, 3), model (5, 3))\n"
        "  different kind of number: backbone.fc.weight (file int32, model float32)\n"
        "To keep the model's own values for a part, name it in `skip`."
    )


def test_long_lists_are_shortened():
    with pytest.raises(
        WeightsError, match=r"missing in the file: backbone\.fc\.weight, backbone\.fc\.bias and 2"
    ):
        match({})


def test_misspelt_name_gets_the_nearest_missing_one():
    with pytest.raises(
        WeightsError, match=r"backbone\.fc\.wieght \(nearest: backbone\.fc\.weight\)"
    ):
        match(arrays(**{"backbone.fc.weight": None, "backbone.fc.wieght": np.ones((3, 2))}))


def test_integers_that_do_not_fit_are_refused():
    with pytest.raises(WeightsError, match=r"head\.count \(file int64, model int32\)"):
        match(arrays(**{"head.count": np.array(2**40)}))


def test_skipped_part_may_be_absent_or_of_another_shape():
    without = {n: a for n, a in arrays().items() if not n.startswith("head")}
    assert set(match(without, skip=["head"])) == set(without)
    assert set(match(arrays(**{"head.weight": np.ones(9)}), skip=["head."])) == set(without)


def test_skip_ends_at_a_dot_and_must_name_something():
    with pytest.raises(ValueError, match=r"skip names 'hea', but Net has no such part"):
        match(arrays(), skip=["hea"])
    with pytest.raises(ValueError, match=r"nearest: backbone\.fc"):
        match(arrays(), skip=["backbone.fx"])


def test_rename_by_mapping_replaces_the_longest_leading_part():
    weights = {
        n.replace("backbone.", "encoder.").replace("head", "h"): a for n, a in arrays().items()
    }
    rename = {"encoder": "wrong", "encoder.fc": "backbone.fc", "h": "head"}
    assert set(match(weights, rename=rename)) == set(TARGETS)


def test_rename_by_function_may_drop_tensors():
    weights = {f"module.{n}": a for n, a in arrays().items()} | {"optimizer": np.ones(1)}
    rename = lambda n: n.removeprefix("module.") if n != "optimizer" else None  # noqa: E731
    assert set(match(weights, rename=rename)) == set(TARGETS)


def test_two_tensors_renamed_to_one_are_an_error():
    with pytest.raises(WeightsError, match=r"both renamed to 'head\.weight'"):
        match(arrays(**{"h.weight": np.ones((5, 3))}), rename={"h": "head"})


def test_weights_only_file_drops_the_name_of_the_network(tmp_path):
    tensors = {
        "model/model.a": np.array([1.0]),
        "model/model.b": np.array([0x3F80, 0xC000], np.uint16),
        "model/teacher.a": np.array([5.0]),
        "callback/EMA/average/model.a": np.array([2.0]),
        "optimizer/0/m/model.a": np.array([9.0]),
    }
    write_checkpoint(tmp_path / "a.ckpt", Checkpoint(tensors, {"bfloat16": ["model/model.b"]}))
    raw = read_weights(tmp_path / "a.ckpt")
    assert {n: a.tolist() for n, a in raw.items()} == {"a": [1.0], "b": [1.0, -2.0]}
    assert read_weights(tmp_path / "a.ckpt", weights="ema")["a"].tolist() == [2.0]


def test_checkpoint_without_average_says_so(tmp_path):
    write_checkpoint(tmp_path / "a.ckpt", Checkpoint({"model/a": np.ones(1)}))
    assert set(read_weights(tmp_path / "a.ckpt")) == {"a"}
    with pytest.raises(CheckpointError, match="no averaged weights"):
        read_weights(tmp_path / "a.ckpt", weights="ema")


def test_foreign_safetensors_file_is_read(tmp_path):
    save_file({"a": np.arange(3.0)}, tmp_path / "a.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(read_weights(tmp_path / "a.safetensors")["a"], np.arange(3.0))
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        read_weights(tmp_path / "a.safetensors")


def test_files_are_recognised_by_content_not_by_suffix(tmp_path):
    write_checkpoint(tmp_path / "a.pth", Checkpoint({"model/model.a": np.ones(1)}))
    assert read_weights(tmp_path / "a.pth").kind == "checkpoint"
    shutil.copy(REFERENCE / "model_only.pth", tmp_path / "a.ckpt")
    assert read_weights(tmp_path / "a.ckpt").kind == "PyTorch zip"
    save_file({"a": np.ones(1)}, tmp_path / "a.bin")
    assert read_weights(tmp_path / "a.bin").kind == "safetensors"


def test_header_whose_length_looks_like_a_pickle_is_a_header(tmp_path):
    header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.ljust(0x0480)
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    assert (tmp_path / "a").read_bytes().startswith(b"\x80\x04")
    assert read_weights(tmp_path / "a").kind == "safetensors"


def test_checkpoint_is_verified_whatever_its_name(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", Checkpoint({"model/a": np.ones(1)}))
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(tmp_path / "a.safetensors")


def test_checkpoint_without_its_checksums_is_damaged(tmp_path):
    save_file({"model/a": np.ones(1)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="without this trainer's checksums"):
        read_weights(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        read_weights(tmp_path / "a.ckpt")


def test_missing_file_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="No such file or directory; check the path"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("file", "options", "expected", "entry", "stripped"),
    [
        ("model_only.pth", {}, "model_only", "model", ""),
        ("module_prefix.pth", {}, "model_only", "", "module."),
        ("legacy.pth", {}, "model_only", "state_dict", "module."),
        ("pretrain_ema.pth.tar", {"weights": "ema"}, "pretrain_ema", "state_dict_ema", ""),
        ("pretrain_ema.pth.tar", {"weights": "auto"}, "pretrain_ema", "state_dict_ema", ""),
        ("pretrain_ema.pth.tar", {"entry": "state_dict_ema"}, "pretrain_ema", "state_dict_ema", ""),
        ("exotic.pth", {}, "exotic", "", ""),
    ],
)
def test_state_dict_is_found_and_its_place_told(file, options, expected, entry, stripped):
    weights = read_weights(REFERENCE / file, **options)
    recorded = np.load(REFERENCE / f"{expected}.npz")
    assert set(weights) == set(recorded.files)
    for name in recorded.files:
        np.testing.assert_array_equal(weights[name], recorded[name], strict=True)
    assert (weights.entry, weights.stripped) == (entry, stripped)


def test_description_tells_what_was_left():
    weights = read_weights(REFERENCE / "pretrain_ema.pth.tar")
    assert weights.describe() == (
        f"{REFERENCE / 'pretrain_ema.pth.tar'} (PyTorch zip): 14 tensors of 'state_dict'; left "
        "alone: state_dict_ema, optimizer/state/0, optimizer/state/1, optimizer/state/2 and 8 "
        "more; skipped: argparse.Namespace at 'args'"
    )


def test_whole_module_is_no_state_dict():
    with pytest.raises(
        CheckpointError, match=r"no tensors, only torch\.nn\.modules\.linear\.Linear"
    ):
        read_weights(REFERENCE / "whole_module.pth")


@pytest.mark.parametrize(
    ("tree", "options", "outcome"),
    [
        ({"a": 1.0, "b": 2.0}, {}, ["a", "b"]),
        ({"net": {"a": 1.0}, "loss": 2.0}, {}, ["a"]),
        ({"model": {"state_dict": {"a": 1.0}}}, {}, ["a"]),
        ({"ema": {"module": {"module.a": 1.0}}, "model": {"b": 1.0}}, {"weights": "ema"}, ["a"]),
        ({"ema": {"a": 1.0}, "model": {"b": 1.0}}, {}, ["b"]),
        ({"generator": {"a": 1.0}}, {}, ["a"]),
        ({"generator": {"a": 1.0}, "critic": {"b": 1.0}}, {}, "'generator', 'critic'"),
        ({"generator": {"a": 1.0}, "critic": {"b": 1.0}}, {"entry": "critic"}, ["b"]),
        ({"model": {"a": 1.0}, "state_dict": {"b": 1.0}}, {}, "'model', 'state_dict'"),
        ({"model": {"a": 1.0}}, {"entry": "critic"}, r"no tensors at 'critic'; .*'model'"),
        ({"model": {"a": 1.0}}, {"weights": "ema"}, "no averaged weights"),
        ({"epoch": "3"}, {}, "holds no tensors"),
        ({"module.model.a": 1.0, "module.model.b": 1.0}, {}, ["a", "b"]),
        ({"module.a": 1.0, "b": 1.0}, {}, ["module.a", "b"]),
        ({"backbone.a": 1.0, "backbone.b": 1.0}, {}, ["backbone.a", "backbone.b"]),
        ({"module.backbone.a": 1.0}, {"strip": ("module.", "backbone.")}, ["a"]),
        ({"module.a": 1.0}, {"strip": ()}, ["module.a"]),
        ({"": 1.0, "module.": 1.0}, {}, ["", "module."]),
    ],
)
def test_entry_and_prefixes_are_chosen_by_rule(tmp_path, tree, options, outcome):
    def arrays_in(value):
        if isinstance(value, dict):
            return {name: arrays_in(item) for name, item in value.items()}
        return np.array([value], np.float32) if isinstance(value, float) else value

    write_torch(tmp_path / "a.pth", arrays_in(tree))
    if isinstance(outcome, str):
        with pytest.raises(CheckpointError, match=outcome):
            read_weights(tmp_path / "a.pth", **options)
    else:
        assert list(read_weights(tmp_path / "a.pth", **options)) == outcome


def test_converted_file_keeps_its_folders(tmp_path):
    save_file(
        {"model/module.a": np.ones(1), "ema/module.a": np.zeros(1), "optimizer/0": np.ones(1)},
        tmp_path / "a.safetensors",
    )
    assert read_weights(tmp_path / "a.safetensors")["a"].tolist() == [1.0]
    assert read_weights(tmp_path / "a.safetensors", weights="ema")["a"].tolist() == [0.0]


def test_safetensors_file_with_slashes_of_its_own_is_taken_whole(tmp_path):
    save_file({"block/a": np.ones(1), "head/b": np.ones(1)}, tmp_path / "a.safetensors")
    assert set(read_weights(tmp_path / "a.safetensors")) == {"block/a", "head/b"}


def test_safetensors_bfloat16_becomes_float32(tmp_path):
    header = b'{"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\xc0"
    (tmp_path / "a.safetensors").write_bytes(data)
    array = read_weights(tmp_path / "a.safetensors")["a"]
    np.testing.assert_array_equal(array, np.array([[1.0, -2.0]], np.float32), strict=True)


def test_counters_of_pytorch_s_batch_norms_are_no_misfit():
    assert set(match(arrays(**{"backbone.bn.num_batches_tracked": np.array(3)}))) == set(TARGETS)


def test_weights_of_every_source_train_on(tmp_path):
    # Official and Jittor files, the model alone or a training state: strict, without optimizer.
    import jittor as jt
    from jittor import nn

    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(3))
    state = {n: a + 1 for n, a in export_weights(model).items()}
    official = {f"module.{n}": a for n, a in state.items()} | {
        "module.1.num_batches_tracked": np.array(5)
    }
    training = {"optimizer": {"state": {0: {"exp_avg": np.ones(1)}}}, "epoch": 7}
    write_torch(tmp_path / "model.pth", official)
    write_torch(tmp_path / "training.pth", {"model": official, **training})
    variables = {n: jt.array(a) for n, a in state.items()}
    jt.save(variables, str(tmp_path / "model.pkl"))
    jt.save({"model": variables, **training}, str(tmp_path / "training.pkl"))
    for file in ("model.pth", "training.pth", "model.pkl", "training.pkl"):
        fresh = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(3))
        load_weights(fresh, read_weights(tmp_path / file), source=file)
        for name, array in export_weights(fresh).items():
            np.testing.assert_array_equal(array, state[name], err_msg=f"{file}: {name}")


def test_strided_views_load_as_they_read():
    from jittor import nn

    model = nn.Linear(3, 2)
    row = np.arange(12, dtype=np.float32)[::4]
    weights = {"weight": np.broadcast_to(row, (2, 3)), "bias": row[1:]}
    load_weights(model, weights, source="file")
    for name, array in export_weights(model).items():
        np.testing.assert_array_equal(array, weights[name])


def test_module_keeps_its_variables_and_grad_flags():
    from jittor import nn

    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(3))
    model[0].bias.stop_grad()
    before = {n: (id(v), v.requires_grad) for n, v in model.named_parameters()}
    weights = {n: a.astype(np.float64) + 1 for n, a in export_weights(model).items()}
    load_weights(model, weights, source="file")
    assert {n: (id(v), v.requires_grad) for n, v in model.named_parameters()} == before
    for name, array in export_weights(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, weights[name].astype(np.float32))


def test_bfloat16_model_takes_and_gives_float32():
    from jittor import nn

    model = nn.Linear(2, 2)
    model.bfloat16()
    weights = {"weight": np.array([[1.0, 2.0], [3.0, 4.0]]), "bias": np.array([0.5, -1.0])}
    load_weights(model, weights, source="file")
    assert str(model.weight.dtype) == "bfloat16"
    for name, array in export_weights(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, weights[name])


def test_nothing_is_loaded_unless_all_fits():
    from jittor import nn

    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = export_weights(model)
    weights = {n: a + 1 for n, a in before.items()}
    del weights["1.bias"]
    with pytest.raises(WeightsError, match=r"missing in the file: 1\.bias"):
        load_weights(model, weights, source="file")
    for name, array in export_weights(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_remedy_is_the_caller_s():
    with pytest.raises(WeightsError, match=r"do this instead$"):
        match({}, remedy="do this instead")
