from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtasks.commands.audit import main
from segtasks.commands.audit_dformer import audit_forward
from segtasks.commands.golden_file import VARIANTS, read_golden_file

REFERENCE = Path(__file__).parents[2] / "reference" / "dformer"


def _changed(
    tmp_path: Path, name: str, change: Callable[[dict[str, np.ndarray], dict[str, Any]], None]
) -> Path:
    """A copy of a reference file after `change(arrays, meta)`."""
    with np.load(REFERENCE / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(arrays["meta"].tobytes())
    change(arrays, meta)
    if "meta" in arrays:
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    path = tmp_path / "changed.npz"
    np.savez(path, **arrays)
    return path


def test_an_intact_recording_passes_and_every_stage_is_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--golden", str(REFERENCE / "DFormer-Tiny.npz")]) == 0

    output = capsys.readouterr().out
    recorded = read_golden_file(REFERENCE / "DFormer-Tiny.npz").meta["cases"]["b"]["tensors"]
    assert all(f"b/{stage}" in output for stage in recorded)
    assert "all 114 within their limits" in output


def test_each_tampered_value_is_a_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tamper(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        arrays["a/stage2.block0.attn.1"][5] += 0.01
        arrays["a/feat3"][0] = np.nan
        arrays["b/argmax"][0, np.unravel_index(arrays["b/margin"][0].argmax(), (75, 101))[0]] += 1
        meta["cases"]["a"]["loss"] += 0.1
        meta["cases"]["a"]["tensors"]["head.nmf"]["mean"] += 0.1
        meta["cases"]["b"]["tensors"]["head.squeeze"]["shape"][1] = 7
        meta["params"] += 1
        meta["groups"]["decay"].pop()
        meta["manifest"][0][1] = [1, 2, 3]

    path = _changed(tmp_path, "DFormer-Tiny", tamper)

    missed = {c.name for c in audit_forward(read_golden_file(path), 10) if not c.passed}

    assert missed == {
        "a/stage2.block0.attn.1",
        "a/feat3",
        "b/argmax",
        "a/loss",
        "a/head.nmf",
        "b/head.squeeze",
        "parameters",
        "group decay",
        "names and shapes",
    }
    assert main(["--golden", str(path)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "9 of 114 missed" in printed
    assert "first to diverge: names and shapes" in printed


@pytest.mark.slow
def test_the_tolerance_scales_the_limits() -> None:
    golden = read_golden_file(REFERENCE / "DFormer-Tiny.npz")

    missed = [c.name for c in audit_forward(golden, 1e-4) if not c.passed]

    assert "a/logits" in missed
    assert "parameters" not in missed


@pytest.mark.parametrize("name", ["NanoDet", "RTDETR_r50", None, "DFormer-Huge"])
def test_other_models_are_refused_with_what_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str | None
) -> None:
    path = _changed(tmp_path, "DFormer-Tiny", lambda arrays, meta: meta.update(variant=name))

    assert main(["--golden", str(path)]) == 2

    message = " ".join(capsys.readouterr().err.split())
    assert f"meta['variant'] is {name!r}" in message
    assert all(variant in message for variant in VARIANTS)
    assert "changed.npz" in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda arrays, meta: meta.update(decoder="UPernet"), "meta['decoder'] is 'UPernet'"),
        (lambda arrays, meta: meta.pop("num_classes"), "meta lacks num_classes"),
        (lambda arrays, meta: meta["cases"]["a"].pop("height"), "meta lacks cases/a/height"),
        (lambda arrays, meta: meta.pop("cases"), "either `cases` or `losses`"),
        (lambda arrays, meta: meta.update(cases={}), "meta['cases'] holds no case"),
        (lambda arrays, meta: meta.update(num_classes="40"), "meta num_classes is '40'"),
        (lambda arrays, meta: meta["cases"]["b"].update(width=0), "meta cases/b/width is 0"),
        (lambda arrays, meta: arrays.pop("meta"), "no `meta` inside"),
        (lambda arrays, meta: arrays.pop("b/feat2"), "the array 'b/feat2' is missing"),
        (lambda arrays, meta: arrays.pop("a/argmax"), "the array 'a/argmax' is missing"),
    ],
)
def test_incomplete_files_name_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable, complaint: str
) -> None:
    path = _changed(tmp_path, "DFormer-Tiny", change)

    assert main(["--golden", str(path)]) == 2

    assert complaint in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda arrays, meta: meta.pop("lr"), "meta lacks lr"),
        (lambda arrays, meta: meta["losses"].pop(), "losses has 2 values instead of 3"),
        (lambda arrays, meta: meta["bn"].append("x.weight"), "'bn/x.weight' is missing"),
        (lambda arrays, meta: meta["unchanged"].append("x.weight"), "x.weight is unknown"),
    ],
)
def test_incomplete_training_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable, complaint: str
) -> None:
    path = _changed(tmp_path, "DFormer-Tiny_train", change)

    assert main(["--golden", str(path)]) == 2

    assert complaint in " ".join(capsys.readouterr().err.split())


def test_an_unknown_stage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rename(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        tensors = meta["cases"]["a"]["tensors"]
        tensors["stage7.block0.attn.0"] = tensors.pop("feat0")
        arrays["a/stage7.block0.attn.0"] = arrays.pop("a/feat0")

    path = _changed(tmp_path, "DFormer-Tiny", rename)

    assert main(["--golden", str(path)]) == 2

    assert "has no stage 'stage7.block0.attn.0'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "single array"])
def test_unreadable_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "golden.npz"
    whole = (REFERENCE / "DFormer-Tiny.npz").read_bytes()
    if kind == "single array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind != "missing":
        contents = {"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2]}
        path.write_bytes(contents[kind])

    assert main(["--golden", str(path)]) == 2

    message = capsys.readouterr().err
    assert "golden.npz" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("tolerance", ["0", "-1", "nan", "much"])
def test_a_senseless_tolerance_is_refused(
    capsys: pytest.CaptureFixture[str], tolerance: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--golden", "x.npz", "--tolerance", tolerance])

    assert raised.value.code == 2
    assert tolerance in capsys.readouterr().err
