"""Makes the files of this folder that PyTorch writes; run once with PyTorch 2.13 (CPU).

python tests/reference/checkpoints/make.py
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent


def objects() -> dict:
    tagged = nn.Parameter(torch.tensor([1.0, 2.0]))
    tagged.tag = "kept by PyTorch"
    return {
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "uint64": torch.tensor([2**63], dtype=torch.uint64),
        "tagged": tagged,
        "buffer": nn.Buffer(torch.tensor([3.0])),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "complex": torch.ones(2, dtype=torch.complex64),
        "meta": torch.ones(2, device="meta"),
        "sparse": torch.eye(2).to_sparse(),
        "storage": torch.tensor([4.0]).untyped_storage(),
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "args": argparse.Namespace(lr=0.1),
        "numpy_scalar": np.float64(0.5),
        "numpy_array": np.ones(2),
        "function": math.sqrt,
        "class": nn.Linear,
        "instance": nn.Linear(1, 1),
        "defaultdict": defaultdict(list, {"a": [1]}),
        "counter": Counter("aab"),
        "set": {1, 2},
        "frozenset": frozenset({"x"}),
        "bytes": b"\x00\xff",
        "nested": [1, (2.5, None, True), {"k/ey": "text", 3: -(2**40)}],
    }


def main() -> None:
    torch.manual_seed(0)
    torch.save(objects(), FOLDER / "objects.pth")
    torch.save(objects(), FOLDER / "objects_protocol5.pth", pickle_protocol=5)
    torch.save(nn.Linear(2, 1), FOLDER / "whole_module.pth")
    torch.jit.script(nn.Linear(2, 1)).save(str(FOLDER / "torchscript.pt"))
    state = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([0.5, -1.0]))
    torch.serialization.location_tag = lambda storage: "cuda:3"
    torch.save(state, FOLDER / "absent_gpu.pth")
    torch.save(state, FOLDER / "absent_gpu_legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
