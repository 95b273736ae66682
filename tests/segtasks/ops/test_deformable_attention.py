from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from segtasks.ops import deformable_attention
from segtasks.ops.deformable_attention import deformable_sampling

RECORDED = Path(__file__).parents[2] / "reference" / "rtdetr" / "deform_attn.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED) as archive:
        return {key: archive[key] for key in archive.files}


def _shapes(recorded: dict, key: str) -> list[tuple[int, int]]:
    return [(int(h), int(w)) for h, w in recorded[key]]


def _sample_exactly(
    value: np.ndarray,
    shapes: list[tuple[int, int]],
    locations: np.ndarray,
    weights: np.ndarray,
    points: list[int],
) -> np.ndarray:
    """The definition in float64, one sample after the other; (B, Q, M, S) samples."""
    B, _, M, C = value.shape
    output = np.zeros((B, weights.shape[1], M, C))
    levels = np.repeat(np.arange(len(shapes)), points)
    starts = np.cumsum([0] + [h * w for h, w in shapes])
    for b, q, m, s in np.ndindex(*weights.shape):
        h, w = shapes[levels[s]]
        x, y = locations[b, q, m, s] * (w, h) - 0.5
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                if 0 <= column < w and 0 <= row < h:
                    part = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, m, s]
                    token = starts[levels[s]] + row * w + column
                    output[b, q, m] += part * value[b, token, m]
    return output.reshape(B, -1, M * C)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_output_and_gradients_equal_the_recording(
    recorded: dict, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not jt.has_cuda:
        pytest.skip("no CUDA device")
    monkeypatch.setattr(jt.flags, "use_cuda", int(device == "cuda"))
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [jt.array(recorded[name]) for name in names]
    up = _upstream(recorded["output"].shape)

    output = deformable_sampling(inputs[0], _shapes(recorded, "spatial_shapes"), *inputs[1:])
    gradients = jt.grad((output * jt.array(up)).sum(), inputs)

    np.testing.assert_allclose(output.numpy(), recorded["output"], atol=1e-5)
    for gradient, name in zip(gradients, ("value", "loc", "weights"), strict=True):
        expected = recorded[f"grad_{name}"]
        # Single precision on both sides; the gradient of locations reaches 40.
        np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-5 * np.abs(expected).max())


def _upstream(shape: tuple[int, ...]) -> np.ndarray:
    from segtasks.golden import golden_input

    return golden_input("rtdetr.msda.up", shape)


def test_levels_may_have_different_numbers_of_points(recorded: dict) -> None:
    inputs = [jt.array(recorded[f"v2.{name}"]) for name in ("value", "loc", "weights")]
    points = recorded["v2.num_points"].tolist()

    output = deformable_sampling(
        inputs[0], _shapes(recorded, "v2.spatial_shapes"), *inputs[1:], points=points
    )

    np.testing.assert_allclose(output.numpy(), recorded["v2.out_bilinear"], atol=1e-5)


def test_discrete_sampling_takes_one_pixel_and_gives_locations_no_gradient(recorded: dict) -> None:
    inputs = [jt.array(recorded[f"v2.{name}"]) for name in ("value", "loc", "weights")]
    points = recorded["v2.num_points"].tolist()
    shapes = _shapes(recorded, "v2.spatial_shapes")

    output = deformable_sampling(inputs[0], shapes, *inputs[1:], points=points, discrete=True)
    gradients = [g.numpy() for g in jt.grad((output * output).sum(), inputs)]

    np.testing.assert_allclose(output.numpy(), recorded["v2.out_discrete"], atol=1e-5)
    assert np.abs(gradients[1]).max() == 0
    # The output is linear in the values and in the weights: <x, d(out^2)/dx> = 2 <out, out>.
    squared = 2 * np.square(output.numpy(), dtype=np.float64).sum()
    for which in (0, 2):
        product = (gradients[which].astype(np.float64) * inputs[which].numpy()).sum()
        assert product == pytest.approx(squared, rel=1e-4)


@pytest.mark.parametrize("shapes", [[(3, 7), (5, 2)], [(1, 1), (6, 4), (2, 9)]])
def test_any_level_sizes_agree_with_the_definition_and_its_finite_differences(
    rng: np.random.Generator, shapes: list[tuple[int, int]]
) -> None:
    points = [2, 3, 1][: len(shapes)]
    B, Q, M, C, S, N = 2, 3, 2, 5, sum(points), sum(h * w for h, w in shapes)
    exact = [
        rng.standard_normal((B, N, M, C)),
        rng.uniform(-0.3, 1.3, (B, Q, M, S, 2)),
        rng.uniform(0, 1, (B, Q, M, S)),
    ]
    up = rng.standard_normal((B, Q, M * C))
    value, locations, weights = inputs = [jt.array(x.astype(np.float32)) for x in exact]

    output = deformable_sampling(value, shapes, locations, weights, points=points)
    gradients = jt.grad((output * jt.array(up.astype(np.float32))).sum(), inputs)

    def definition(value: np.ndarray, locations: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return _sample_exactly(value, shapes, locations, weights, points)

    np.testing.assert_allclose(output.numpy(), definition(*exact), atol=1e-5)
    step = 1e-6
    for which, gradient in enumerate(gradients):
        ours = gradient.numpy()
        for index in map(tuple, rng.integers(0, ours.shape, (40, ours.ndim))):
            ends = []
            for sign in (1, -1):
                moved = [x.copy() for x in exact]
                moved[which][index] += sign * step
                ends.append((definition(*moved) * up).sum())
            assert ours[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-3)


def test_locations_far_outside_or_not_numbers_read_no_memory() -> None:
    value = jt.ones((1, 6, 1, 4))
    wild = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -1.0, 2.0], np.float32)
    locations = jt.array(np.stack(np.meshgrid(wild, wild), -1).reshape(1, 64, 1, 1, 1, 2))
    weights = jt.ones((1, 64, 1, 1, 1))

    for discrete in (False, True):
        output = deformable_sampling(value, [(2, 3)], locations, weights, discrete=discrete)
        gradients = jt.grad(output.sum(), [value, weights])
        assert gradients[0].numpy().shape == (1, 6, 1, 4)
        if not discrete:
            assert np.abs(output.numpy()).max() == 0


def test_another_precision_is_computed_in_single_and_returned_as_it_came(recorded: dict) -> None:
    inputs = [
        jt.array(recorded[name]) for name in ("value", "sampling_locations", "attention_weights")
    ]

    output = deformable_sampling(
        inputs[0].float16(), _shapes(recorded, "spatial_shapes"), *inputs[1:]
    )

    assert output.dtype == "float16"
    # Eleven bits of the values and of the result, which reaches 2.
    np.testing.assert_allclose(output.numpy(), recorded["output"], atol=4e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": [(2, 3), (1, 2)]}, "have 8 tokens, value has 7"),
        ({"weights": (1, 2, 2, 2, 3)}, r"must be the weights' \(1, 2, 2, 2, 3\) and 2"),
        ({"locations": (1, 2, 2, 8, 2)}, r"must be \(B, Q, M, L, P, 2\), got \(1, 2, 2, 8, 2\)"),
        ({"value": (1, 7, 3, 4)}, r"do not fit batch and heads \(1, 3\)"),
        ({"points": [4]}, "1 point counts for 2 levels"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict, message: str) -> None:
    given = {
        "value": (1, 7, 2, 4),
        "locations": (1, 2, 2, 2, 4, 2),
        "weights": (1, 2, 2, 2, 4),
        **change,
    }
    value, locations, weights = (jt.zeros(given[k]) for k in ("value", "locations", "weights"))
    shapes = change.get("shapes", [(2, 3), (1, 1)])

    with pytest.raises(ValueError, match=message):
        deformable_sampling(value, shapes, locations, weights, points=change.get("points"))


def test_the_cuda_source_compiles(tmp_path: Path) -> None:
    """Only the syntax: the kernels are the ones that Jittor would hand to nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    module = deformable_attention
    sizes = "\n".join(f"int64_t in{i}_shape{k} = 1;" for i in (0, 1) for k in range(4))
    pointers = "const float *in0_p = 0, *in1_p = 0, *in2_p = 0, *in4_p = 0; const int* in3_p = 0;"
    outputs = "float *out0_p = 0, *out1_p = 0, *out2_p = 0; struct { size_t size; } *out0 = 0;"
    source = ["#define FUNCTION __device__ static inline"]
    for discrete in (0, 1):
        names = f"namespace discrete{discrete} {{"
        body = module._COMMON.replace("#include <cmath>", "").replace("#include <cstdint>", "")
        source += ["#include <cmath>", "#include <cstdint>", "#undef DISCRETE"]
        source += [f"#define DISCRETE {discrete}", names, body]
        for kernel, call in (
            (module._CUDA_FORWARD_KERNEL, module._CUDA_FORWARD),
            (module._CUDA_BACKWARD_KERNEL, module._CUDA_BACKWARD),
        ):
            name = "forward" if kernel is module._CUDA_FORWARD_KERNEL else "backward"
            source += [kernel, f"void {name}() {{", sizes, pointers, outputs]
            source += [module._SIZES, call, "}"]
        source.append("}")
    file = tmp_path / "kernels.cu"
    file.write_text("\n".join(source))

    done = subprocess.run(
        [nvcc, "-std=c++17", "-arch=compute_80", "-code=sm_80", "-c", file, "-o", tmp_path / "k.o"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
