"""Every CUDA kernel of a training step and an evaluation compiles and loads, without any GPU.

Needs nvcc 13 and NVIDIA's libraries: `pip install '.[cuda13]'`, or CUDA_CHECK=1, which fetches
them (1.6 GB) into build/cuda-check. The first run builds Jittor and some hundred kernels: an hour
on two cores. What it builds stays in build/cuda-check, so that a second run takes minutes.

    CUDA_CHECK=1 python -m pytest -m slow tests/cuda
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jtlightning.runtime import store
from jtlightning.runtime.cuda import root, toolkits
from jtlightning.runtime.jittor_copy import handover, patch
from tests.cuda import stand_in

REPOSITORY = Path(__file__).parents[2]
WORK = REPOSITORY / "build" / "cuda-check"
PACKAGES = WORK / "packages"
MODELS = ("dformer_tiny", "dformerv2_s", "rtdetr_r18")
LIMIT_S = 3 * 3600
#: The sum over the processes of a run, as gradients are averaged.
SUM = """
import jtlightning, jittor as jt
jt.flags.use_cuda = 1
assert "nccl_all_reduce" in dir(jt.compile_extern.nccl_ops)
mean = jt.ones(4).mpi_all_reduce("mean")
total = mean._input(0)
jt.sync([mean, total])
assert total.shape == [4]
print("summed")
"""

pytestmark = pytest.mark.slow


def find_root() -> Path | str:
    """A root that is made of what is installed, or what is missing."""
    reasons = ["no CUDA compiler"]
    for toolkit in toolkits.find():
        sources = toolkits.parts(toolkit)
        source, cudnn = root.cudnn_source(sources) or (None, None)
        links = root.links(sources, source)
        missing = root.missing(links, toolkit.version[0], cudnn)
        if toolkit.version[0] >= 13 and not missing:
            return root.assemble(store.cache(WORK), toolkit, links)
        version = ".".join(map(str, toolkit.version))
        reasons.append(f"CUDA {version} at {toolkit.root} lacks {', '.join(missing) or 'nothing'}")
    return "; ".join(reasons[1:] or reasons)


def fetch() -> None:
    """Install the packages of the extras `cuda13` and `nccl` into a folder of their own."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    names = [*extras["cuda13"], *extras["nccl"]]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(PACKAGES), *names], check=True)


@pytest.fixture(scope="module")
def cuda() -> Path:
    """A root with real headers, the real compiler and libraries that only stand in."""
    if os.uname().machine != "x86_64":
        pytest.skip("the stand-ins are written for x86-64")
    paths = sys.path.copy()
    sys.path.append(str(PACKAGES))
    real = find_root()
    if isinstance(real, str) and os.environ.get("CUDA_CHECK") == "1":
        fetch()
        real = find_root()
    sys.path[:] = paths
    if isinstance(real, str):
        pytest.skip(f"{real}; pip install '.[cuda13]' or CUDA_CHECK=1 (1.6 GB)")
    folder = WORK / f"stand-in-{real.name}"
    if not (folder / "bin" / "nvcc").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stand_in.build(folder, real)
    return folder


@pytest.fixture(scope="module")
def variables(cuda: Path) -> dict[str, str]:
    """The environment in which Jittor believes in a GPU; its kernels are kept for the next run."""
    site = patch.make(store.cache(WORK))
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(WORK / "home"),
        "JITTOR_HOME": str(WORK / "home"),
        "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)]),
        handover.VARIABLE: str(site),
        "nvcc_path": str(cuda / "bin" / "nvcc"),
        "use_mpi": "0",
        "cuda_archs": "90",
        "OMP_WAIT_POLICY": "passive",
    }


@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_of_a_step_and_an_evaluation_compiles(
    model: str, variables: dict[str, str], tmp_path: Path
) -> None:
    Path(variables["HOME"]).mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "tests.cuda.one_step", model, "cuda", str(tmp_path / "run")]
    result = subprocess.run(
        program, env=variables, cwd=REPOSITORY, capture_output=True, text=True, check=False,
        timeout=LIMIT_S,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]
    # That it was CUDA that was compiled, and not the CPU's kernels.
    sources = Path(variables["JITTOR_HOME"]).rglob("jit/*.cc")
    assert sum("__global__" in path.read_text(errors="replace") for path in sources) > 50


def test_nccl_compiles_and_is_what_gradients_are_averaged_with(
    cuda: Path, variables: dict[str, str]
) -> None:
    mpirun = shutil.which("mpirun")
    if mpirun is None or not (cuda / "lib64" / "libnccl.so").exists():
        pytest.skip("no mpirun, or no NCCL: pip install '.[nccl]'")
    environment = {
        **{name: value for name, value in variables.items() if name != "use_mpi"},
        "nccl_include_path": str(cuda / "include"),
        "nccl_lib_path": str(cuda / "lib64"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    program = [mpirun, "-np", "1", sys.executable, "-c", SUM]
    result = subprocess.run(
        program, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False,
        timeout=LIMIT_S,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]
    assert "summed" in result.stdout
