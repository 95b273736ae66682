"""Compare a DFormer with a recorded run of the official code, stage by stage.

The limits are those of the recordings' own description, times a tolerance: 1e-4 of a stage's
standard deviation plus ten times the rounding that float32 showed against double precision there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.commands.checks import Check, exact, relative
from segtasks.commands.golden_file import GoldenFile, GoldenFileError
from segtasks.golden import golden_input, golden_tensor, summary
from segtasks.losses.segmentation import cross_entropy
from segtasks.models import dformer

BUILDERS: dict[str, Callable[..., dformer.DFormerSegmenter]] = {
    "DFormer-Tiny": dformer.dformer_tiny,
    "DFormer-Small": dformer.dformer_small,
    "DFormer-Base": dformer.dformer_base,
    "DFormer-Large": dformer.dformer_large,
    "DFormerv2_S": dformer.dformerv2_s,
    "DFormerv2_B": dformer.dformerv2_b,
    "DFormerv2_L": dformer.dformerv2_l,
}
DECODERS = {"ham": "ham", "MLPDecoder": "mlp"}
#: The arg-max is compared where the two best logits are farther apart than this.
DECIDED_MARGIN = 1e-3
#: Stages recorded channels last; ours are channels first throughout.
CHANNELS_LAST = re.compile(r"patch_embed|stage\d|layer\d(?!.*geo\.mask)")
STAGE_MODULES = (
    (r"downsample(\d)", r"backbone.downsample_layers.\1"),
    (r"downsample_e(\d)", r"backbone.downsample_layers_e.\1"),
    (r"patch_embed", r"backbone.patch_embed"),
    (r"stage(\d)\.(block0|last)(\.attn|\.mlp)?(?:\.(?P<item>[01]))?", r"backbone.stages.\1.\2\3"),
    (r"layer(\d)\.(block0|last)(\.Attention|\.ffn)?", r"backbone.layers.\1.blocks.\2\3"),
    (r"layer(\d)\.(block0)\.geo\.(?P<item>\w+)", r"backbone.layers.\1.blocks.\2.Geo"),
    (r"layer(\d)\.downsample", r"backbone.layers.\1.downsample"),
    (r"feat(?P<item>\d)", r"backbone"),
    (r"head\.(squeeze|align|hamburger)", r"decode_head.\1"),
    (r"head\.nmf", r"decode_head.hamburger.nmf"),
    (r"head\.logits", r"decode_head"),
    (r"logits", r""),
)
GEOMETRY_FIELDS = {"mask_h": "columns", "mask_w": "rows", "mask": "full"}


def build(golden: GoldenFile) -> dformer.DFormerSegmenter:
    """The variant that a file names, filled by the golden rule, without any random part."""
    meta = golden.meta
    # Training recordings leave the width out: it is the variant's own.
    has_width = "decoder_embed_dim" in meta
    sizes = {"decoder_embed_dim": meta["decoder_embed_dim"]} if has_width else {}
    model = BUILDERS[meta["variant"]](
        meta["num_classes"],
        decoder=DECODERS[meta["decoder"]],
        drop_path=0.0,
        head_dropout=0.0,
        **sizes,
    )
    fill_golden(model)
    return model


def fill_golden(model: dformer.DFormerSegmenter) -> None:
    """Give every tensor its golden value, and the factorisation its golden start."""
    for name, parameter in model.named_parameters():
        value = golden_tensor(name, parameter.shape)
        if value is not None:  # None: computed by the model itself
            parameter.assign(_like(parameter, value))
    if isinstance(model.decode_head, dformer.HamDecoder):
        model.decode_head.hamburger.nmf.draw_bases = _golden_bases


def audit_forward(golden: GoldenFile, tolerance: float) -> Iterator[Check]:
    """Compare the recorded forward passes in evaluation mode, case by case."""
    model = build(golden)
    yield from _check_structure(model, golden)
    model.eval()
    for case, description in golden.meta["cases"].items():
        yield from _check_case(model, golden, case, description, tolerance)


def golden_batch(prefix: str, meta: Any, num_classes: int) -> tuple[jt.Var, jt.Var, jt.Var]:
    """Image, depth and label of a recorded case or step."""
    size = (meta["batch"], meta["height"], meta["width"])
    maps = (size[0], 3, size[1], size[2])
    label = golden_input(f"{prefix}/label", size, "label", high=num_classes, ignore=255, every=7)
    image = golden_input(f"{prefix}/rgb", maps)
    depth = golden_input(f"{prefix}/depth", maps, "smooth")
    return jt.array(image), jt.array(depth), jt.array(label.astype(np.int32))


def _check_structure(model: dformer.DFormerSegmenter, golden: GoldenFile) -> Iterator[Check]:
    """Names, shapes, parameter count, optimiser groups and computed buffers."""
    tensors = dict(model.named_parameters())
    recorded = {
        (name, tuple(shape))
        for name, shape, *_ in golden.meta["manifest"]
        if not name.endswith("num_batches_tracked")
    }
    ours = {(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    yield exact("names and shapes", len(recorded ^ ours), f"{len(recorded)} tensors")
    params = sum(tensor.numel() for tensor in tensors.values() if not tensor.is_stop_grad())
    yield exact("parameters", abs(params - golden.meta["params"]), f"{params:,}")
    names = {id(tensor): name for name, tensor in tensors.items()}
    for group in dformer.parameter_groups(model, "official"):
        found = {names[id(parameter)] for parameter in group["params"]}
        expected = set(golden.meta["groups"][group["name"]])
        yield exact(f"group {group['name']}", len(found ^ expected), f"{len(expected)} tensors")
    for key in golden.arrays:
        if key.startswith("computed/"):
            yield _check_buffer(tensors, golden, key)


def _check_buffer(tensors: dict[str, jt.Var], golden: GoldenFile, key: str) -> Check:
    name = key.removeprefix("computed/")
    expected = golden.array(key)
    if name not in tensors or tuple(tensors[name].shape) != expected.shape:
        raise GoldenFileError(f"{golden.path}: {key} {expected.shape} is no buffer of the model")
    error = float(np.abs(tensors[name].numpy() - expected).max())
    # Logarithms of two math libraries may round apart by one unit in the last place.
    limit = float(np.spacing(np.abs(expected).max())) if name.endswith(".decay") else 0.0
    return Check(name.removeprefix("backbone."), error, error, limit, "computed buffer")


def _check_case(
    model: dformer.DFormerSegmenter,
    golden: GoldenFile,
    case: str,
    description: Any,
    tolerance: float,
) -> Iterator[Check]:
    image, depth, label = golden_batch(case, description, golden.meta["num_classes"])
    with jt.no_grad():
        stages = capture(model, list(description["tensors"]), image, depth, golden)
        loss = cross_entropy(jt.array(stages["logits"]), label).item()
    for name, recorded in description["tensors"].items():
        samples = golden.array(f"{case}/{name}")
        yield _check_stage(f"{case}/{name}", stages[name], samples, recorded, tolerance)
    yield _check_argmax(golden, case, stages["logits"])
    yield relative(f"{case}/loss", loss, description["loss"], 1e-4 * tolerance)


def capture(
    model: dformer.DFormerSegmenter,
    names: list[str],
    image: jt.Var,
    depth: jt.Var,
    golden: GoldenFile,
) -> dict[str, np.ndarray]:
    """Run the model and return the recorded stages, in the layout of the recording."""
    modules = {name.strip("."): module for name, module in model.named_modules()}
    located = {name: _locate(name, model, modules, golden) for name in names}
    outputs: dict[str, Any] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: outputs.__setitem__(path, output)

    paths = {path for path, _ in located.values()}
    for path in paths:
        modules[path].register_forward_hook(keep(path))
    try:
        model(image, depth)
    finally:
        for path in paths:
            modules[path].remove_forward_hook()
    stages = {name: _pick(outputs[path], item).numpy() for name, (path, item) in located.items()}
    return {
        name: np.moveaxis(array, -3, -1) if CHANNELS_LAST.match(name) else array
        for name, array in stages.items()
    }


def _locate(
    name: str, model: nn.Module, modules: dict[str, nn.Module], golden: GoldenFile
) -> tuple[str, str | None]:
    """Path of the module whose output is stage `name`, and which item of that output."""
    for pattern, template in STAGE_MODULES:
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        path = match.expand(template).replace("block0", "0")
        if ".last" in path:
            blocks = path[: path.index(".last")]
            path = path.replace("last", str(len(modules[blocks]) - 1) if blocks in modules else "")
        if path in modules:
            return path, match.groupdict().get("item")
    raise GoldenFileError(f"{golden.path}: {type(model).__name__} has no stage {name!r}")


def _pick(output: Any, item: str | None) -> jt.Var:
    if item is None:
        return output
    if item.isdigit():
        return output[int(item)]
    return getattr(output, GEOMETRY_FIELDS.get(item, item))


def _check_stage(
    name: str, array: np.ndarray, samples: np.ndarray, recorded: Any, tolerance: float
) -> Check:
    limit = tolerance * (1e-4 * recorded["std"] + 10 * recorded["max_abs_diff_f64"])
    if list(array.shape) != list(recorded["shape"]):
        note = f"shape {list(array.shape)}, recorded {recorded['shape']}"
        return Check(name, float("inf"), float("inf"), limit, note)
    mean, std, ours = summary(array, len(samples))
    if ours.shape != samples.shape:
        note = f"{ours.size} samples, recorded {samples.size}"
        return Check(name, float("inf"), float("inf"), limit, note)
    errors = (abs(mean - recorded["mean"]), abs(std - recorded["std"]), _distance(ours, samples))
    note = " / ".join(f"{error:.1e}" for error in errors)
    error = float(np.max(errors))
    return Check(name, error, error / max(recorded["std"], 1e-12), limit, note)


def _check_argmax(golden: GoldenFile, case: str, logits: np.ndarray) -> Check:
    expected, margin = golden.array(f"{case}/argmax"), golden.array(f"{case}/margin")
    prediction = logits.argmax(1)
    if prediction.shape != expected.shape:
        return Check(f"{case}/argmax", float("inf"), float("inf"), 0.0, f"shape {expected.shape}")
    differs = prediction != expected
    # Written so that a margin of NaN counts as decided.
    wrong = int((differs & ~(margin <= DECIDED_MARGIN)).sum())
    return exact(f"{case}/argmax", wrong, f"{1 - differs.mean():.4%} of all pixels equal")


def _distance(ours: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(ours.astype(np.float64) - expected).max())


def _golden_bases(shape: tuple[int, int, int]) -> jt.Var:
    return jt.array(golden_input("nmf/bases", shape, "uniform"))


def _like(parameter: jt.Var, value: np.ndarray) -> jt.Var:
    new = jt.array(value)
    return new.stop_grad() if parameter.is_stop_grad() else new
