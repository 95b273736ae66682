"""The audit of variants, decoders and sizes that no recording exists of.

Recordings are made of our own model here, so they prove the audit, not the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from segtasks.commands.audit import main
from segtasks.commands.audit_dformer import build, capture, golden_batch
from segtasks.commands.golden_file import GoldenFile
from segtasks.golden import summary
from segtasks.losses.segmentation import cross_entropy
from segtasks.models.dformer import parameter_groups

SAMPLES = 64
V1 = [
    *(f"downsample{depth}{stage}" for stage in range(4) for depth in ("", "_e")),
    *(
        f"stage{stage}.{block}.attn.{item}"
        for stage in range(4)
        for block in ("block0", "last")
        for item in (0, 1)
    ),
]
V2 = [
    "patch_embed",
    *(
        f"layer{stage}.{part}"
        for stage in range(4)
        for part in ("block0.geo.sin", "block0.Attention", "block0.ffn", "last.Attention", "last")
    ),
    *(f"layer{stage}.downsample" for stage in range(3)),
]
HEADS = {
    "ham": ["head.squeeze", "head.nmf", "head.hamburger", "head.align", "logits"],
    "MLPDecoder": ["head.logits", "logits"],
}


def record(path: Path, variant: str, decoder: str, classes: int, size: Sequence[int]) -> list[str]:
    """Write what the model of a variant gives; returns the stages."""
    meta: dict[str, Any] = {
        "variant": variant,
        "decoder": decoder,
        "num_classes": classes,
        "decoder_embed_dim": 64,
    }
    golden = GoldenFile(path, meta, {})
    model = build(golden)
    tensors = dict(model.named_parameters())
    meta["manifest"] = [[name, list(tensor.shape)] for name, tensor in tensors.items()]
    trainable = [tensor for tensor in tensors.values() if not tensor.is_stop_grad()]
    meta["params"] = sum(tensor.numel() for tensor in trainable)
    names = {id(tensor): name for name, tensor in tensors.items()}
    meta["groups"] = {
        group["name"]: [names[id(parameter)] for parameter in group["params"]]
        for group in parameter_groups(model, "official")
    }
    batch, height, width = size
    case: dict[str, Any] = {"batch": batch, "height": height, "width": width}
    image, depth, label = golden_batch("a", case, classes)
    stages = [*(V2 if "v2" in variant else V1), *(f"feat{i}" for i in range(4)), *HEADS[decoder]]
    model.eval()
    with jt.no_grad():
        outputs = capture(model, stages, image, depth, golden)
        case["loss"] = cross_entropy(jt.array(outputs["logits"]), label).item()
    arrays, case["tensors"] = {}, {}
    for name, output in outputs.items():
        mean, std, arrays[f"a/{name}"] = summary(output, SAMPLES)
        case["tensors"][name] = {
            "shape": list(output.shape),
            "mean": mean,
            "std": std,
            "max_abs_diff_f64": 1e-6,
        }
    best = np.sort(outputs["logits"], axis=1)
    arrays["a/argmax"] = outputs["logits"].argmax(1)
    arrays["a/margin"] = best[:, -1] - best[:, -2]
    meta["cases"] = {"a": case}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path, **arrays)
    return stages


def alter(path: Path, stage: str) -> None:
    """Change one recorded value of a stage."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays[f"a/{stage}"] = arrays[f"a/{stage}"].copy()
    arrays[f"a/{stage}"][3] += 1
    np.savez(path, **arrays)


#: The first has the kernels of DFormer-Tiny, which other tests run.
CASES = [
    ("DFormer-Base", "ham", "head.nmf"),
    ("DFormer-Tiny", "MLPDecoder", "stage0.block0.attn.0"),
    ("DFormer-Small", "MLPDecoder", "downsample_e3"),
    ("DFormer-Base", "MLPDecoder", "stage2.last.attn.1"),
    ("DFormer-Large", "ham", "feat0"),
    ("DFormer-Large", "MLPDecoder", "head.logits"),
    ("DFormerv2_S", "MLPDecoder", "layer3.block0.ffn"),
    ("DFormerv2_B", "ham", "patch_embed"),
    ("DFormerv2_B", "MLPDecoder", "layer1.block0.geo.sin"),
    ("DFormerv2_L", "ham", "head.align"),
    ("DFormerv2_L", "MLPDecoder", "layer0.downsample"),
]


@pytest.mark.parametrize(
    ("variant", "decoder", "stage"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])],
)
def test_any_variant_decoder_and_size_is_audited(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variant: str,
    decoder: str,
    stage: str,
) -> None:
    path = tmp_path / "own.npz"
    stages = record(path, variant, decoder, classes=5, size=(2, 40, 72))

    assert main(["--golden", str(path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"a/{name}" in printed for name in stages)
    assert variant in printed

    alter(path, stage)
    assert main(["--golden", str(path)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"first to diverge: a/{stage}" in printed
    assert "1 of" in printed
