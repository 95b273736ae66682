from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from jtlightning.checkpoint.container import Checkpoint, CheckpointError, write_checkpoint
from jtlightning.checkpoint.weights import (
    WeightsError,
    export_weights,
    load_weights,
    match_weights,
    read_weights,
)

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


def test_unknown_suffix_names_the_accepted_ones(tmp_path):
    with pytest.raises(CheckpointError, match=r"'\.pth'.*\.ckpt or a \.safetensors"):
        read_weights(tmp_path / "a.pth")


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
