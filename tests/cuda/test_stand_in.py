"""The stand-in for the CUDA runtime, on any machine with a CUDA compiler."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from jtlightning.runtime.cuda import root, toolkits
from tests.cuda import stand_in

PROGRAM = """
#include <cstdio>
#include <cuda_runtime.h>
__global__ void fill(float *out) { out[threadIdx.x] = 1.0f; }
int main() {
    int count = -1, major = 0;
    float *memory, value = 7.0f;
    cudaGetDeviceCount(&count);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaMalloc(&memory, 128);
    fill<<<1, 32>>>(memory);
    cudaMemcpy(&value, memory, 4, cudaMemcpyDeviceToHost);
    printf("%d %d %g %d\\n", count, major, value, cudaDeviceSynchronize());
}
"""


@pytest.mark.slow
def test_a_program_sees_a_device_and_launches_nothing(tmp_path: Path) -> None:
    found = toolkits.find()
    if not found or os.uname().machine != "x86_64":
        pytest.skip("no CUDA compiler, or not x86-64")
    sources = toolkits.parts(found[0])
    real = root.assemble(tmp_path / "cache", found[0], root.links(sources, None))
    folder = tmp_path / "stand-in"
    folder.mkdir()
    stand_in.build(folder, real)
    (tmp_path / "program.cu").write_text(PROGRAM)
    nvcc, program = folder / "bin" / "nvcc", tmp_path / "program"
    subprocess.run(
        [nvcc, "--cudart=shared", "-arch=sm_90", tmp_path / "program.cu", "-o", program], check=True
    )
    environment = {"LD_LIBRARY_PATH": str(folder / "lib64")}
    assert subprocess.check_output([program], env=environment, text=True) == "1 9 0 0\n"
    real_functions = stand_in.exported(real / "lib64" / "libcudart.so")
    ours = stand_in.exported(folder / "lib64" / "libcudart.so")
    assert set(real_functions) <= set(ours)
    assert {ours[name] for name in real_functions} == set(real_functions.values())
