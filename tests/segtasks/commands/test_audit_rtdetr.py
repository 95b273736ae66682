from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtasks.commands.audit_rtdetr import audit_rtdetr, build, is_rtdetr
from segtasks.commands.golden_file import GoldenFileError
from segtasks.commands.rtdetr_recording import place_of, read_recording

REFERENCE = Path(__file__).parents[2] / "reference"
RTDETR = REFERENCE / "rtdetr"
Arrays = dict[str, Any]


def _changed(
    tmp_path: Path, name: str, change: Callable[[Arrays], Any], cases: str | None = None
) -> Path:
    """A copy of a recording after `change(arrays)`, with the cases of those keys only."""
    with np.load(RTDETR / f"{name}.npz") as archive:
        arrays: Arrays = dict(archive)
    if "cases" in arrays:
        listed = json.loads(str(arrays["cases"]))
        arrays["cases"] = [case for case in listed if cases is None or case["key"] in cases]
    change(arrays)
    if isinstance(arrays.get("cases"), list):
        arrays["cases"] = np.array(json.dumps(arrays["cases"]))
    path = tmp_path / "changed.npz"
    np.savez(path, **arrays)
    return path


def _missed(path: Path, tolerance: float = 10) -> list[str]:
    return [check.name for check in audit_rtdetr(path, tolerance) if not check.passed]


def test_intact_encoders_pass_and_are_listed_case_by_case() -> None:
    checks = list(audit_rtdetr(RTDETR / "hybrid_encoder.npz", 10))

    assert [check for check in checks if not check.passed] == []
    assert [check.name for check in checks if "out" in check.name] == [
        f"{key}.out.{i}" for key in "abc" for i in range(3)
    ]


@pytest.mark.slow
def test_intact_backbones_pass() -> None:
    checks = list(audit_rtdetr(RTDETR / "backbone_variants.npz", 10))

    assert [check for check in checks if not check.passed] == []
    assert sum(".out." in check.name for check in checks) == 18


def test_each_tampered_value_of_a_decoder_is_a_miss_in_forward_order(tmp_path: Path) -> None:
    def tamper(arrays: Arrays) -> None:
        arrays["d.sd_shapes"][0] = "[1, 2]"
        arrays["d.sd_requires_grad"][0] = False
        arrays["d.valid"][7] = False
        arrays["d.topk_scores"][1, 3] += 0.01
        arrays["d.topk_ind"][0, 2] = 105
        arrays["d.enc_topk_boxes"][0, 5, 1] = np.nan
        arrays["d.pred_logits"] = arrays["d.pred_logits"][:, :, :4]
        arrays["d.pred_boxes"][1, 4, 0] += 1e-3

    path = _changed(tmp_path, "decoder_small", tamper, cases="d")

    missed = _missed(path)

    assert missed == [
        "d.names and shapes",
        "d.trained tensors",
        "d.valid anchors",
        "d.topk_scores",
        "d.topk tokens",
        "d.enc_topk_boxes",
        "d.pred_logits",
        "d.pred_boxes",
    ]


def test_a_map_that_the_file_lacks_is_one_too_many_of_ours(tmp_path: Path) -> None:
    path = _changed(tmp_path, "hybrid_encoder", lambda arrays: arrays.pop("c.out.2"), cases="c")

    assert _missed(path) == ["c.maps"]


def test_the_tolerance_scales_the_limits(tmp_path: Path) -> None:
    def shift(arrays: Arrays) -> None:
        arrays["c.out.2"] = arrays["c.out.2"] * (1 + 5e-5)

    path = _changed(tmp_path, "hybrid_encoder", shift, cases="c")

    assert _missed(path, 10) == ["c.out.2"]
    assert _missed(path, 100) == []


def test_rows_are_compared_by_token_and_alike_tokens_stand_for_each_other() -> None:
    ours, recorded = np.array([[4, 9, 2, 7], [1, 2, 3, 4]]), np.array([[9, 4, 2, 8], [4, 3, 2, 1]])

    assert place_of(ours, recorded).tolist() == [[1, 0, 2, 3], [3, 2, 1, 0]]


def test_classes_queries_and_denoising_of_a_model_follow_from_the_file(tmp_path: Path) -> None:
    def shrink(arrays: Arrays) -> None:
        arrays["config"] = np.array("rtdetr_r34vd_6x_coco")
        arrays["pred_logits"] = arrays["pred_logits"][:, :20, :7]
        arrays["topk_ind"] = arrays["topk_ind"][:, :20]
        keep = arrays["sd_keys"] != "decoder.denoising_class_embed.weight"
        arrays["sd_keys"] = arrays["sd_keys"][keep]

    path = _changed(tmp_path, "model_r18vd_256x320", shrink)

    model = build(read_recording(path))

    assert (model.num_classes, model.decoder.num_queries) == (7, 20)
    assert model.decoder.denoising_class_embed is None
    assert len(model.decoder.decoder.layers) == 4


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("rtdetr/model_r50vd_256x320", True),
        ("rtdetr/backbone_variants", True),
        ("rtdetr/postprocess", False),
        ("dformer/DFormer-Tiny", False),
        ("dformer/missing", False),
    ],
)
def test_recordings_are_told_apart(folder: str, expected: bool) -> None:
    assert is_rtdetr(REFERENCE / f"{folder}.npz") is expected


def test_a_single_array_is_none(tmp_path: Path) -> None:
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))

    assert not is_rtdetr(tmp_path / "array.npz")
    with pytest.raises(GoldenFileError, match=r"array\.npz"):
        list(audit_rtdetr(tmp_path / "array.npz", 10))


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("model_r18vd_256x320", lambda a: a.update(config=np.array("rtdetr_r7")), "'rtdetr_r7'"),
        ("model_r18vd_256x320", lambda a: a.update(config=np.zeros(3)), "config is no text"),
        ("model_r18vd_256x320", lambda a: a.pop("topk_ind"), "'topk_ind' is missing"),
        ("model_r18vd_256x320", lambda a: a.update(sd_keys=np.zeros(2)), "sd_keys is no list"),
        ("model_r18vd_256x320", lambda a: a["sd_shapes"].fill("x"), "sd_shapes: "),
        ("denoising", lambda a: None, "describes another part; accepted"),
        ("hybrid_encoder", lambda a: a.update(cases=np.array("{")), "cases is not JSON"),
        ("hybrid_encoder", lambda a: a.update(cases=np.array("3")), "no list of objects"),
        ("hybrid_encoder", lambda a: a.update(cases=[]), "describes another part"),
        ("hybrid_encoder", lambda a: a["cases"][0].pop("batch"), "a case lacks batch"),
        (
            "hybrid_encoder",
            lambda a: a["cases"][0]["kwargs"].update(window=7),
            "HybridEncoder has no option 'window'",
        ),
        (
            "hybrid_encoder",
            lambda a: a["cases"][0]["kwargs"].update(hidden_dim=18),
            "HybridEncoder: hidden_dim must be a multiple of 4, got 18",
        ),
        ("hybrid_encoder", lambda a: a["cases"][0]["feat_hw"].pop(), "2 sizes for"),
        ("hybrid_encoder", lambda a: a.pop("c.out.1"), "the array 'c.out.1' is missing"),
    ],
)
def test_incomplete_files_name_what_is_wrong(
    tmp_path: Path, name: str, change: Callable[[Arrays], Any], complaint: str
) -> None:
    path = _changed(tmp_path, name, change, "c")

    with pytest.raises(GoldenFileError, match=complaint) as raised:
        list(audit_rtdetr(path, 10))
    assert "changed.npz" in str(raised.value)
