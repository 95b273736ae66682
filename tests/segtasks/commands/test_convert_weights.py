"""`segtasks convert` between formats of weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from jtlightning.checkpoint.container import Checkpoint, read_checkpoint, write_checkpoint
from jtlightning.checkpoint.foreign import open_foreign
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import read_weights
from segtasks.commands.convert import main
from tests.jtlightning.checkpoint.forge import pickled, tensor, write_jittor, write_zip

REFERENCE = Path(__file__).parents[2] / "reference" / "checkpoints"
BF16 = np.array([0x3F80, 0xC000], np.uint16)
TREE = {
    "state_dict": {
        "module.conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "half": np.array([0.1, 2], np.float16),
        "brain": BF16,
        "a/b": np.array([True, False]),
        "scalar": np.array(5),
        "empty": np.zeros((0, 3), np.float64),
    },
    "list": [np.ones(1, np.int8), (np.zeros(2, np.uint8), 3)],
    "epoch": 7,
    "best": float("nan"),
    "name": "ä/b",
    "nothing": None,
    "flag": True,
}
NAMES = [
    "list/0",
    "list/1/0",
    "state_dict/a%2Fb",
    "state_dict/brain",
    "state_dict/empty",
    "state_dict/half",
    "state_dict/module.conv1.weight",
    "state_dict/scalar",
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_torch(tmp_path / "in.pth", TREE, bfloat16=["state_dict/brain"])
    return tmp_path / "in.pth"


def raw_tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of each tensor, read without any library."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: (
            e["dtype"],
            e["shape"],
            data[start + e["data_offsets"][0] : start + e["data_offsets"][1]],
        )
        for name, e in header.items()
    }


def test_every_tensor_keeps_its_bytes_under_its_path(source, tmp_path):
    out = tmp_path / "out.safetensors"
    assert main([str(source), str(out)]) == 0
    found = raw_tensors(out)
    assert sorted(found) == NAMES
    assert found["state_dict/brain"] == ("BF16", [2], BF16.tobytes())
    state = TREE["state_dict"]
    assert found["state_dict/half"] == ("F16", [2], state["half"].tobytes())
    transposed = np.ascontiguousarray(state["module.conv1.weight"])
    assert found["state_dict/module.conv1.weight"] == ("F32", [3, 2], transposed.tobytes())
    assert found["state_dict/empty"] == ("F64", [0, 3], b"")
    assert found["state_dict/scalar"] == ("I64", [], state["scalar"].tobytes())


def test_numbers_and_strings_are_json_in_the_metadata(source, tmp_path):
    out = tmp_path / "out.safetensors"
    main([str(source), str(out)])
    with safe_open(out, "np") as file:
        metadata = file.metadata()
        np.testing.assert_array_equal(file.get_tensor("list/1/0"), np.zeros(2, np.uint8))
    assert {key: json.loads(text) for key, text in metadata.items()} == {
        "epoch": 7,
        "best": {"__float__": "nan"},
        "name": "ä/b",
        "nothing": None,
        "flag": True,
        "list/1/1": 3,
    }


def test_weights_are_found_again_in_what_was_written(source, tmp_path):
    for name in ("out.safetensors", "again.pth", "again.pkl"):
        assert main([str(source), str(tmp_path / name)]) == 0
        weights = read_weights(tmp_path / name, entry="state_dict")
        assert weights.keys() == TREE["state_dict"].keys()
        np.testing.assert_array_equal(
            weights["module.conv1.weight"], TREE["state_dict"]["module.conv1.weight"]
        )
        assert weights["brain"].tolist() == [1.0, -2.0]
        assert weights["half"].dtype == np.float16


@pytest.mark.parametrize("file", ["exotic.pth", "exotic_legacy.pth", "absent_gpu.pth"])
def test_recorded_files_of_pytorch_keep_every_tensor(tmp_path, file):
    out = tmp_path / "out.safetensors"
    assert main([str(REFERENCE / file), str(out)]) == 0
    found = raw_tensors(out)
    with open_foreign(REFERENCE / file) as foreign:
        assert len(found) == len(foreign.tensors)
        for place, tensor in foreign.tensors.items():
            bits = np.ascontiguousarray(foreign.read(place)).tobytes()
            assert found["/".join(place)] == (tensor.dtype, list(tensor.shape), bits)


def test_lists_and_numbers_as_keys_survive_between_pytorch_and_jittor(tmp_path):
    pkl, pth = tmp_path / "a.pkl", tmp_path / "a.pth"
    assert main([str(REFERENCE / "training_state.pth"), str(pkl)]) == 0
    assert main([str(pkl), str(pth)]) == 0
    loaded = pickle.loads(pkl.read_bytes())  # our own file; the checksum follows the pickle
    assert loaded["epoch"] == 7
    assert isinstance(loaded["optimizer"]["param_groups"], list)
    assert set(loaded["optimizer"]["state"]) == set(range(len(loaded["optimizer"]["state"])))
    expected = np.load(REFERENCE / "model_only.npz")
    again = read_weights(pth)
    for name in expected.files:
        np.testing.assert_array_equal(again[name], read_weights(pkl)[name])


def test_pytorch_reads_the_pth_with_weights_only(source, tmp_path):
    torch = pytest.importorskip("torch")
    main([str(source), str(tmp_path / "out.pth")])
    loaded = torch.load(tmp_path / "out.pth", weights_only=True)
    assert loaded["state_dict"]["brain"].dtype == torch.bfloat16
    assert loaded["list"][1][1] == 3
    assert loaded["epoch"] == 7


def test_jittor_reads_the_pkl(source, tmp_path):
    import jittor as jt

    main([str(source), str(tmp_path / "out.pkl")])
    loaded = jt.load(str(tmp_path / "out.pkl"))
    np.testing.assert_array_equal(loaded["state_dict"]["half"], TREE["state_dict"]["half"])
    assert loaded["list"][1][1] == 3


def test_checkpoint_holds_one_network_under_official_names(tmp_path):
    head = "decode_head.squeeze."
    state = {
        "backbone.layers.2.blocks.0.gamma1": np.ones(3, np.float32),
        "backbone.norm0.bias": np.ones(3, np.float32),
        f"{head}conv.bias": np.full(3, 2, np.float32),
        f"{head}norm.running_mean": np.full(3, 5, np.float32),
    }
    write_torch(tmp_path / "a.pth", {"model": state, "optimizer": {"m": np.ones(2)}})
    assert main([str(tmp_path / "a.pth"), str(tmp_path / "a.ckpt")]) == 0
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    assert sorted(checkpoint.tensors) == [
        "model/model.backbone.layers.2.blocks.0.gamma_1",
        f"model/model.{head}bn.running_mean",
    ]
    assert checkpoint.tensors[f"model/model.{head}bn.running_mean"].tolist() == [3, 3, 3]
    assert read_weights(tmp_path / "a.ckpt").keys() == {
        "backbone.layers.2.blocks.0.gamma_1",
        f"{head}bn.running_mean",
    }
    # A test reads the position too; a training refuses a checkpoint of no optimizer by name.
    assert checkpoint.metadata["loop"]["global_step"] == 0
    assert checkpoint.metadata["optimizer"] == []


def test_checkpoint_of_ours_becomes_what_other_programs_read(tmp_path):
    tensors = {"model/model.a": np.ones(2, np.float32), "optimizer/0/m/a": np.zeros(2, np.float32)}
    write_checkpoint(tmp_path / "a.ckpt", Checkpoint(tensors, {"loop": {"epoch": 3}}))
    assert main([str(tmp_path / "a.ckpt"), str(tmp_path / "a.pth")]) == 0
    with open_foreign(tmp_path / "a.pth") as foreign:
        assert foreign.values == {("loop", "epoch"): 3}
        assert set(foreign.tensors) == {("model", "model.a"), ("optimizer", "0", "m", "a")}


def test_damaged_checkpoint_of_ours_is_not_converted(tmp_path, capsys):
    tensors = {"model/model.a": np.ones(99, np.float32)}
    write_checkpoint(tmp_path / "a.ckpt", Checkpoint(tensors))
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.ckpt").write_bytes(data)
    code, error = refusal(capsys, tmp_path / "a.ckpt", tmp_path / "a.pth")
    assert code == 1
    assert "the checksum of 'model/model.a' is wrong" in error
    assert not (tmp_path / "a.pth").exists()


def test_what_is_left_out_of_a_list_leaves_its_place(tmp_path, capsys):
    tree = {"a": np.ones(1), "list": [1, b"x", 3], "tuple": (Path(), 2), "b": b"y"}
    write_jittor(tmp_path / "a.pkl", pickle.dumps(tree, 4))
    assert main([str(tmp_path / "a.pkl"), str(tmp_path / "a.pth")]) == 0
    shown = capsys.readouterr().out
    assert all(f"left out: bytes at '{place}'" in shown for place in ("list/1", "b"))
    assert "left out: pathlib.PosixPath at 'tuple/0'" in shown
    with open_foreign(tmp_path / "a.pth") as foreign:
        assert foreign.values == {
            ("list", "0"): 1,
            ("list", "1"): None,
            ("list", "2"): 3,
            ("tuple", "0"): None,
            ("tuple", "1"): 2,
        }


def test_strided_view_of_one_axis_is_written_densely(tmp_path):
    numbers = np.arange(4, dtype=np.float32)
    body = pickled({"a": tensor(shape=(2,), strides=(2,), offset=1)})
    write_zip(tmp_path / "a.pth", body, {"0": numbers.tobytes()})
    assert main([str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    expected = ("F32", [2], numbers[1::2].tobytes())
    assert raw_tensors(tmp_path / "a.safetensors") == {"a": expected}


def test_what_is_foreign_is_named_and_left_out(tmp_path, capsys):
    assert main([str(REFERENCE / "pretrain_ema.pth.tar"), str(tmp_path / "a.safetensors")]) == 0
    assert "left out: argparse.Namespace at 'args'" in capsys.readouterr().out
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert not any(key.startswith("args") for key in file.metadata())


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    code = main([str(argument) for argument in argv])
    return code, capsys.readouterr().err


def test_existing_output_is_kept_unless_told_otherwise(source, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    code, error = refusal(capsys, source, out)
    assert code == 2
    assert "is there already; pass --overwrite" in error
    assert out.read_bytes() == b"precious"
    assert main([str(source), str(out), "--overwrite"]) == 0
    assert sorted(raw_tensors(out)) == NAMES


@pytest.mark.parametrize("ending", ["safetensors", "pth", "pkl", "ckpt"])
def test_damage_found_half_way_leaves_no_output(tmp_path, capsys, ending):
    write_torch(tmp_path / "in.pth", {"a": np.ones(99, np.float32), "b": np.ones(99, np.float32)})
    data = bytearray((tmp_path / "in.pth").read_bytes())
    at = data.rindex(np.ones(99, np.float32).tobytes())
    data[at + 50] ^= 1
    (tmp_path / "in.pth").write_bytes(data)
    code, error = refusal(capsys, tmp_path / "in.pth", tmp_path / f"out.{ending}")
    assert code == 1
    assert "the checksum of a storage is wrong" in error
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


@pytest.mark.parametrize(
    ("tree", "name", "reason"),
    [
        ({"a%2Fb": np.ones(1), "a/b": np.ones(1)}, "o.safetensors", "would both be called"),
        ({"__metadata__": np.ones(1)}, "o.safetensors", "which safetensors reserves"),
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, "o.pth", "would both be called 'a/b'"),
        ({"epoch": 3}, "o.safetensors", "holds no named tensors"),
        ({"a": np.ones(1)}, "o.npz", "its ending names no format"),
        ({"a": np.ones(1)}, "o.yaml", "a configuration (.py) becomes a .yaml"),
    ],
)
def test_what_an_output_cannot_hold_is_refused(tmp_path, capsys, tree, name, reason):
    write_torch(tmp_path / "in.pth", tree)
    code, error = refusal(capsys, tmp_path / "in.pth", tmp_path / name)
    assert code == 2
    assert reason in error
    assert not (tmp_path / name).exists()


def test_parts_are_chosen_for_a_checkpoint_only(source, tmp_path, capsys):
    code, error = refusal(capsys, source, tmp_path / "o.pth", "--entry", "state_dict")
    assert code == 2
    assert "for a .ckpt only" in error
    average = tmp_path / "o.ckpt"
    assert main([str(REFERENCE / "pretrain_ema.pth.tar"), str(average), "--weights", "ema"]) == 0
    expected = np.load(REFERENCE / "pretrain_ema.npz")
    found = read_weights(average)
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("file", ["torchscript.pt", "no_such.pth"])
def test_unreadable_input_ends_with_1(tmp_path, capsys, file):
    code, error = refusal(capsys, REFERENCE / file, tmp_path / "o.safetensors")
    assert code == 1
    assert file in error
    assert not list(tmp_path.iterdir())
