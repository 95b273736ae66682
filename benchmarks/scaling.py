"""What several processes gain: measured from 1 to 2 on this CPU, computed for 8 GPUs.

    python benchmarks/scaling.py [--steps 10] [--batch 2] [--size 128x128]
    python benchmarks/scaling.py --gpu-step-ms 120 --link-gb-s 450      adds the computed figure

Each process has one thread (OMP_NUM_THREADS=1) and a batch of its own, so that two processes do
twice the work: efficiency is the time of a step with one process over that with two.

Computed: gradients are averaged after the backward pass, none of it hidden behind computing, by a
ring over N GPUs, in which each sends and receives 2 (N - 1) / N of the gradients' bytes:

    efficiency = step / (step + 2 (N - 1) / N * bytes / bandwidth)

with the step of one GPU and the bandwidth of one GPU's links in one direction (H100: 450 GB/s).
Latencies, and what NCCL does not reach of that bandwidth, are left out: give a lower one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys

GPUS = 8


def main() -> int:
    """Measure with 1 and 2 processes, print, and compute; 1 where a run fails."""
    arguments = parse()
    if arguments.child:
        child(arguments)
        return 0
    if shutil.which("mpirun") is None:
        sys.exit("mpirun is missing: apt-get install openmpi-bin libopenmpi-dev")
    alone, both = (run(processes) for processes in (1, 2))
    print(f"1 process:   {alone['ms_per_step']:9.1f} ms a step")
    print(f"2 processes: {both['ms_per_step']:9.1f} ms a step, each with a batch of its own")
    print(f"efficiency:  {alone['ms_per_step'] / both['ms_per_step']:9.2f}")
    megabytes = alone["gradient_bytes"] / 1e6
    print(f"gradients:   {megabytes:9.1f} MB of {arguments.model}")
    if arguments.gpu_step_ms is not None:
        share = expected(arguments.gpu_step_ms / 1e3, megabytes / 1e3, arguments.link_gb_s, GPUS)
        print(f"computed for {GPUS} GPUs: {share:.3f} at {arguments.gpu_step_ms:g} ms a step")
    return 0


def expected(step_s: float, gigabytes: float, link_gb_s: float, gpus: int) -> float:
    """Efficiency by the formula above, 0 to 1."""
    return step_s / (step_s + 2 * (gpus - 1) / gpus * gigabytes / link_gb_s)


def run(processes: int) -> dict[str, float]:
    """What the first of so many processes reports."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "nvcc_path": "",
    }
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    if processes > 1:
        command = [
            "mpirun",
            "-np",
            str(processes),
            "--bind-to",
            "none",
            "--oversubscribe",
            *command,
        ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    found: dict[str, float] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def child(arguments: argparse.Namespace) -> None:
    """One process: train, and if it is the first say how long a step took."""
    import gpu_step  # beside this file; brings Jittor
    import numpy as np

    from jtlightning.data.loader import Loader
    from segtasks.data.samples import SegmentationSample, collate
    from segtasks.models import dformer

    rng = np.random.default_rng(0)
    height, width = map(int, arguments.size.split("x"))

    def picture() -> np.ndarray:
        return rng.standard_normal((height, width, 3), dtype=np.float32)

    samples = [
        SegmentationSample(
            picture(),
            picture(),
            rng.integers(0, gpu_step.CLASSES, (height, width), np.uint8),
            str(i),
        )
        for i in range(4 * arguments.batch)
    ]
    network = getattr(dformer, arguments.model)(num_classes=gpu_step.CLASSES)
    loader = Loader(samples, arguments.batch, collate=collate, drop_last=True)
    clock = gpu_step.train(network, loader, arguments)
    if os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0":
        trained = [p for p in network.parameters() if not p.is_stop_grad()]
        found = {
            "ms_per_step": 1e3 * clock.seconds / arguments.steps,
            "gradient_bytes": 4 * sum(p.numel() for p in trained),
        }
        print(json.dumps(found), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dformer_tiny")
    parser.add_argument("--batch", type=int, default=2, help="of each process")
    parser.add_argument("--size", default="128x128", help="HEIGHTxWIDTH")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--gpu-step-ms", type=float, help="of one GPU, as benchmarks/gpu.py measures"
    )
    parser.add_argument("--link-gb-s", type=float, default=450.0, help="of one GPU, one direction")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu", precision="32")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
