"""One row of benchmarks/gpu.py in PyTorch: prints a line of JSON. Needs PyTorch and NumPy only.

    python benchmarks/dformer_torch.py --model dformer_tiny --batch 8 --size 480x640
    python benchmarks/dformer_torch.py --golden tests/reference/dformer/DFormer-Tiny.npz

The networks are written from segtasks.models, in PyTorch's own operations, and so is the training:
the same loss and optimizer, batches that come from the host, 16 bits in the same layers. Nothing is
read back during the steps. `--golden` compares with a recording of the official code instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from dformer_torch_layers import Segmenter
from dformer_torch_v1 import Encoder
from dformer_torch_v2 import EncoderV2

CLASSES, WARM_UP = 40, 5
V1 = {
    "dformer_tiny": ((32, 64, 128, 256), (3, 3, 5, 2), 0.1),
    "dformer_small": ((64, 128, 256, 512), (2, 2, 4, 2), 0.1),
    "dformer_large": ((96, 192, 288, 576), (3, 3, 12, 2), 0.15),
}
V2 = {
    "dformerv2_s": (
        (64, 128, 256, 512), (3, 4, 18, 4), (4, 4, 8, 16), (4, 4, 6, 6), (4, 4, 3, 3), False, 0.25,
    ),
    "dformerv2_l": (
        (112, 224, 448, 640), (4, 8, 25, 8), (7, 7, 14, 20), (6, 6, 6, 6), (4, 4, 3, 3), True, 0.3,
    ),
}  # fmt: skip
RECORDED = {
    "DFormer-Tiny": "dformer_tiny",
    "DFormer-Small": "dformer_small",
    "DFormerv2_S": "dformerv2_s",
}
HALVES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def network(name: str, classes: int = CLASSES) -> Segmenter:
    if name in V1:
        return Segmenter(Encoder(*V1[name]), classes, 512)
    return Segmenter(EncoderV2(*V2[name]), classes, 1024 if name == "dformerv2_l" else 512)


class Training:
    """The network, its optimizer and two batches on the host."""

    def __init__(self, arguments: argparse.Namespace, device: str) -> None:
        self.device, self.half = device, HALVES.get(arguments.precision)
        self.model = network(arguments.model).to(device).train()
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=6e-5)
        scales = arguments.precision == "16-mixed"
        self.scaler = torch.amp.GradScaler(device, enabled=scales)
        height, width = map(int, arguments.size.split("x"))
        shape = (arguments.batch, 3, height, width)
        self.batches = [
            (torch.randn(shape), torch.randn(shape),
             torch.randint(0, CLASSES, (shape[0], height, width)))
            for _ in range(2)
        ]  # fmt: skip

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=self.half, enabled=self.half is not None)

    def step(self, index: int) -> None:
        image, depth, label = (x.to(self.device) for x in self.batches[index % 2])
        with self.autocast():
            logits = self.model(image, depth)
        loss = F.cross_entropy(logits.float(), label, ignore_index=255)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def steps_s(self, first: int, count: int) -> float:
        """Seconds of these steps, the device waited for."""
        self.wait()
        begun_s = time.perf_counter()
        for index in range(first, first + count):
            self.step(index)
        self.wait()
        return time.perf_counter() - begun_s

    @torch.no_grad()
    def latency_ms(self, warm_up: int, runs: int) -> list[float]:
        self.model.eval()
        image, depth = (x[:1].to(self.device) for x in self.batches[0][:2])
        times = []
        for _ in range(warm_up + runs):
            self.wait()
            begun_s = time.perf_counter()
            with self.autocast():
                self.model(image, depth)
            self.wait()
            times.append(1000 * (time.perf_counter() - begun_s))
        return times[warm_up:]


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tf32 = os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # Jittor tries the algorithms as well
    torch.manual_seed(0)
    training = Training(arguments, device)
    training.steps_s(0, WARM_UP)
    step_s = training.steps_s(WARM_UP, arguments.steps) / arguments.steps
    row: dict[str, object] = {
        "device": device,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "steps": arguments.steps,
        "ms_per_step": 1000 * step_s,
        "samples_per_s": arguments.batch / step_s,
    }
    if device == "cuda":
        row["peak_mib"] = torch.cuda.max_memory_reserved() / 2**20
    if arguments.runs:
        times = training.latency_ms(arguments.warm_up, arguments.runs)
        row["latency_ms"], row["latency_p95_ms"] = map(float, np.percentile(times, (50, 95)))
    return row


def compare(path: Path) -> dict[str, object]:
    """Largest error of the recorded logits over their deviation."""
    golden = load_golden()
    with np.load(path) as archive:
        meta = json.loads(archive["meta"].tobytes())
        logits = {case: archive[f"{case}/logits"] for case in meta["cases"]}
    model = network(RECORDED[meta["variant"]], meta["num_classes"]).eval()
    state = {name: golden.golden_tensor(name, x.shape) for name, x in model.state_dict().items()}
    state = {name: torch.from_numpy(x) for name, x in state.items() if x is not None}
    model.load_state_dict(state, strict=False)
    model.decode_head.hamburger.nmf.draw = lambda shape, device: torch.from_numpy(
        golden.golden_input("nmf/bases", shape, "uniform")
    )
    errors = []
    for case, description in meta["cases"].items():
        shape = (description["batch"], 3, description["height"], description["width"])
        image = torch.from_numpy(golden.golden_input(f"{case}/rgb", shape))
        depth = torch.from_numpy(golden.golden_input(f"{case}/depth", shape, "smooth"))
        with torch.no_grad():
            ours = golden.summary(model(image, depth).numpy(), len(logits[case]))[2]
        deviation = description["tensors"]["logits"]["std"]
        errors.append(float(np.abs(ours - logits[case]).max() / deviation))
    return {"parameters": sum(p.numel() for p in model.parameters()), "error": max(errors)}


def load_golden() -> ModuleType:
    """segtasks/golden.py by itself: the package would look for Jittor."""
    path = Path(__file__).resolve().parents[1] / "segtasks" / "golden.py"
    spec = importlib.util.spec_from_file_location("golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=(*V1, *V2), default="dformer_tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", choices=("32", *HALVES), default="32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--golden", type=Path, help="a recording to compare with")
    arguments = parser.parse_args()
    row = compare(arguments.golden) if arguments.golden else measure(arguments)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
