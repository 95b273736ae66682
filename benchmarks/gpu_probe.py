"""One row of benchmarks/gpu.py: an operation against NumPy in float64, on the device.

    python benchmarks/gpu_probe.py --probe "convolution, bf16-mixed" --device cuda

Values are compared element by element. A gradient is asked for by what it promises: along random
directions v, its product with v must be the slope of NumPy's values, by central differences. The
mean square of those errors over the gradient's norm is its relative error squared. 16-bit layers
are those of `mixed_precision`, as training uses them, on operands that 16 bits hold exactly.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jtlightning import runtime

runtime.prepare()

import gpu_exact as exact  # noqa: E402 - beside this file
import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402
from gpu_operations import PROBES, Operation, normal  # noqa: E402
from jittor import nn  # noqa: E402

from jtlightning.accelerator import select_device  # noqa: E402
from jtlightning.precision import mixed_precision  # noqa: E402

#: Relative errors that are accepted; ours. Of 16 bits: some units in the last place.
LIMITS = {"32": 1e-4, "TF32": 5e-3, "16-mixed": 5e-3, "bf16-mixed": 4e-2}
DIRECTIONS = 8
STEP = 1e-5


def check(operation: Operation, gradients: bool) -> dict[str, Any]:
    """Errors of values and, if wanted, of gradients."""
    precision = operation.precision
    inputs = [exact.rounded(x, precision) for x in operation.inputs]
    wide = [x.astype(np.float64) for x in inputs]
    expected = np.asarray(operation.exact(*wide))
    # Other values than the inputs': along those, the gradient of a norm vanishes.
    upstream = exact.rounded(normal(*expected.shape, seed=1), precision)
    layer = getattr(operation.ours, "layer", nn.Module())
    with mixed_precision(layer, precision if precision.endswith("mixed") else 32):
        leaves = [jt.array(x) for x in inputs]
        output = operation.ours(*leaves)
        found = jt.grad((output * jt.array(upstream)).sum(), leaves) if gradients else []
        jt.sync_all(True)
    errors = [np.abs(output.numpy() - expected).max() / np.abs(expected).max()]
    for index, gradient in enumerate(found):
        slopes = Slopes(operation.exact, wide, upstream, index)
        errors.append(slopes.error(gradient.numpy()))
    error, limit = float(np.max(errors)), LIMITS[precision]  # NaN stays, and is not within
    return {"error": error, "limit": limit, "passed": error <= limit}


@dataclass
class Slopes:
    """How NumPy's values, weighed by `upstream`, change with one of the inputs."""

    exact: Callable[..., np.ndarray]
    inputs: Sequence[np.ndarray]
    upstream: np.ndarray
    index: int

    def error(self, gradient: np.ndarray) -> float:
        """Relative error of a gradient in its norm, estimated."""
        rng = np.random.default_rng(self.index)
        squares = []
        for _ in range(DIRECTIONS):
            direction = rng.standard_normal(gradient.shape)
            squares.append((float((gradient * direction).sum()) - self.along(direction)) ** 2)
        return float(np.sqrt(np.mean(squares)) / np.linalg.norm(gradient.astype(np.float64)))

    def along(self, direction: np.ndarray) -> float:
        ends = []
        for sign in (1, -1):
            moved = list(self.inputs)
            moved[self.index] = moved[self.index] + sign * STEP * direction
            ends.append(float((self.exact(*moved) * self.upstream).sum()))
        return (ends[0] - ends[1]) / (2 * STEP)


def versions() -> dict[str, str]:
    found = {"Python": sys.version.split()[0]}
    found |= {name: metadata.version(name) for name in ("jittor", "numpy")}
    if jt.flags.use_cuda:
        text = subprocess.run([jt.flags.nvcc_path, "--version"], capture_output=True, text=True)
        version = re.search(r" V(\d[\d.]*)", text.stdout)
        found["CUDA"] = version[1] if version else "unknown"
        # The library that Jittor has loaded, wherever it came from; 91900 is 9.19.0.
        library = re.search(r"/\S*/libcudnn\.so\S*", Path("/proc/self/maps").read_text())
        found["cuDNN"] = str(ctypes.CDLL(library[0]).cudnnGetVersion()) if library else "unknown"
    return found


def main() -> None:
    """Run one probe, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probe", choices=("import", *PROBES), required=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    if arguments.probe == "import":
        skipped = "TF32" if device == "cpu" else "nothing"
        names = [name for name in PROBES if skipped not in name]
        row: dict[str, Any] = {"device": device, "probes": names, "versions": versions()}
    else:
        make, gradients = PROBES[arguments.probe]
        row = check(make(), gradients)
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
