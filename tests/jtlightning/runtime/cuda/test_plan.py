from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from jtlightning.runtime import checks, cuda
from jtlightning.runtime.cuda import driver, plan, toolkits
from jtlightning.runtime.cuda.driver import Driver
from jtlightning.runtime.jittor_copy import patch

from .trees import make_packages, make_toolkit

HOPPER = (9, 0)


class Machine:
    """A machine with a device; what is installed on it, a test puts there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = monkeypatch
        self.site = folder / "site"
        self.cache = folder / "home" / ".cache" / "jittor" / "jtlightning"

    def driver(self, cuda_version: tuple[int, int], *cards: tuple[int, int]) -> None:
        self.patch.setattr(driver, "ask", lambda: Driver(cuda_version, list(cards or [HOPPER])))

    def toolkit(self, version: int, cudnn: int | None = None, parts: tuple[str, ...] = ()) -> Path:
        root = self.folder / f"cuda-{version}"
        nvcc = make_toolkit(root, version, cudnn, parts=parts)
        self.patch.setenv("CUDA_HOME", str(root))
        return nvcc


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    built = Machine(tmp_path, monkeypatch)
    real_find = toolkits.find

    def find() -> list[toolkits.Toolkit]:
        # None of this machine's own toolkits.
        return [item for item in real_find() if item.root.is_relative_to(tmp_path)]

    monkeypatch.setattr(cuda, "has_device_file", lambda: True)
    monkeypatch.setattr(toolkits, "find", find)
    monkeypatch.setattr(toolkits, "_system_includes", lambda: [tmp_path / "usr" / "include"])
    monkeypatch.setattr(toolkits, "_system_libraries", lambda: tmp_path / "usr" / "lib")
    monkeypatch.setattr(sys, "path", [str(built.site), *sys.path])
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    built.driver((13, 0))
    return built


def stopped_at(choice: cuda.Choice) -> cuda.Step:
    """The one step that failed, which has to be the last."""
    assert choice.nvcc == ""
    assert [step.ok for step in choice.steps] == [True] * (len(choice.steps) - 1) + [False]
    return choice.steps[-1]


def test_without_a_device_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_device_file", lambda: False)
    monkeypatch.setattr(plan, "choose", None)
    step = stopped_at(cuda.choose())
    assert step.found == "no NVIDIA device on this machine"
    assert "--gpus all" in step.remedy


def test_cuda_12_with_cudnn_8_is_used_as_it_is(machine: Machine) -> None:
    nvcc = machine.toolkit(12020, cudnn=8)
    choice = cuda.choose()
    assert (choice.nvcc, choice.site, choice.variables) == (str(nvcc), "", {})
    assert choice.reason == "1 device(s), CUDA 12.2 with cuDNN 8"
    assert not machine.cache.exists()


def test_packages_alone_give_cuda_13_and_a_changed_jittor(machine: Machine) -> None:
    make_packages(machine.site)
    choice = cuda.choose()
    assert Path(choice.nvcc).is_relative_to(machine.cache)
    assert Path(choice.site).is_relative_to(machine.cache)
    assert (Path(choice.site) / "jittor" / "compiler.py").is_file()
    assert choice.reason == "1 device(s), CUDA 13.0 with cuDNN 9, Jittor changed"
    assert [step.name for step in choice.steps] == [
        "NVIDIA device", "NVIDIA driver", "CUDA toolkit", "cuDNN", "CUDA folder", "Changed Jittor",
    ]  # fmt: skip
    assert all(step.ok and not step.remedy for step in choice.steps)


def test_cuda_12_with_cudnn_9_needs_a_changed_jittor_too(machine: Machine) -> None:
    machine.toolkit(12040, 9, ("cublas", "cufft", "curand", "cusparse", "nvjitlink", "nvrtc"))
    choice = cuda.choose()
    assert choice.nvcc.startswith(str(machine.cache / "root-12.4-"))
    assert choice.site


def test_nccl_of_the_packages_is_offered_to_jittor(machine: Machine) -> None:
    make_packages(machine.site)
    nccl = machine.site / "nvidia" / "nccl"
    for file in ("include/nccl.h", "lib/libnccl.so.2"):
        (nccl / file).parent.mkdir(parents=True)
        (nccl / file).touch()
    assert cuda.choose().variables == {}  # not those for another CUDA
    (machine.site / "nvidia_nccl_cu13-2.28.9.dist-info").mkdir()
    choice = cuda.choose()
    assert Path(choice.variables["nccl_include_path"], "nccl.h").is_file()
    assert Path(choice.variables["nccl_lib_path"], "libnccl.so").is_file()


def test_the_driver_has_the_first_word(machine: Machine) -> None:
    def ask() -> Driver:
        raise driver.DriverError("the driver sleeps", "wake it")

    machine.patch.setattr(driver, "ask", ask)
    machine.patch.setattr(toolkits, "find", None)
    step = stopped_at(cuda.choose())
    assert (step.name, step.found, step.remedy) == ("NVIDIA driver", "the driver sleeps", "wake it")


def test_without_a_toolkit_one_command_installs_everything(machine: Machine) -> None:
    step = stopped_at(cuda.choose())
    assert step.name == "CUDA toolkit"
    assert step.remedy == f"{sys.executable} -m pip install 'segtasks[cuda13]'"


def test_a_driver_too_old_for_the_toolkit_is_told(machine: Machine) -> None:
    make_packages(machine.site)
    machine.driver((12, 4))
    step = stopped_at(cuda.choose())
    assert "too new for the driver, which runs CUDA 12.4" in step.found
    assert "NVIDIA driver to 580" in step.remedy


def test_an_older_toolkit_is_taken_where_the_driver_needs_it(machine: Machine) -> None:
    make_packages(machine.site)
    nvcc = machine.toolkit(12020, cudnn=8)
    machine.driver((12, 4))
    assert cuda.choose().nvcc == str(nvcc)


def test_a_card_too_old_for_the_toolkit_is_told(machine: Machine) -> None:
    make_packages(machine.site)
    machine.driver((13, 0), HOPPER, (7, 0))
    step = stopped_at(cuda.choose())
    assert "too new for a card of sm_70" in step.found
    assert "CUDA 12 toolkit" in step.remedy


def test_a_card_too_new_for_an_unchanged_jittor_is_told(machine: Machine) -> None:
    machine.toolkit(12080, cudnn=8)
    machine.driver((13, 0), (12, 0))
    step = stopped_at(cuda.choose())
    assert "too old for a card of sm_120" in step.found
    assert "segtasks[cuda13]" in step.remedy


def test_a_missing_cudnn_is_told(machine: Machine) -> None:
    make_packages(machine.site, cudnn=None)
    step = stopped_at(cuda.choose())
    assert step.found.endswith("lacks cuDNN")
    assert step.remedy == plan.INSTALL_13


def test_a_missing_cudnn_of_cuda_12_has_its_own_package(machine: Machine) -> None:
    machine.toolkit(12020, None, ("cublas", "cufft", "curand", "cusparse", "nvjitlink"))
    machine.driver((12, 2))
    step = stopped_at(cuda.choose())
    assert step.remedy == f"{sys.executable} -m pip install nvidia-cudnn-cu12==8.9.7.29"
    make_packages(machine.site, 12, cudnn=8, nvcc=False)
    choice = cuda.choose()
    assert choice.nvcc.startswith(str(machine.cache))
    assert choice.site == ""


def test_an_ancient_cudnn_is_told(machine: Machine) -> None:
    machine.toolkit(11000, 7, ("cublas", "cufft", "curand", "cusparse"))
    machine.driver((12, 2), (7, 0))
    assert "only cuDNN 7" in stopped_at(cuda.choose()).found


def test_another_jittor_stays_as_it_is_on_the_cpu(machine: Machine) -> None:
    make_packages(machine.site)
    machine.patch.setattr(patch, "DIGEST", "another")
    choice = cuda.choose()
    step = stopped_at(choice)
    assert choice.site == ""
    assert step.name == cuda.JITTOR_STEP
    assert "jittor 1.3.11.0" in step.found
    assert "pip install" in step.remedy


def test_a_cache_that_cannot_be_written_is_told(machine: Machine) -> None:
    make_packages(machine.site)
    (machine.folder / "home").touch()
    step = stopped_at(cuda.choose())
    assert str(machine.cache) in step.found
    assert "JITTOR_HOME" in step.remedy


def test_deleting_the_folder_undoes_it_and_the_next_choice_makes_it_again(machine: Machine) -> None:
    make_packages(machine.site)
    first = cuda.choose()
    shutil.rmtree(machine.cache)
    assert cuda.choose() == first
    assert Path(first.nvcc).is_file()


@pytest.mark.parametrize(("required", "level"), [(False, "warning"), (True, "error")])
def test_a_failed_step_is_an_error_only_where_the_gpu_is_required(
    machine: Machine, required: bool, level: str
) -> None:
    findings = checks.check_gpu(cuda.choose(), required=required)
    assert [item.level for item in findings][-2:] == ["ok", level]


def test_without_a_device_there_is_nothing_to_mend_unless_the_gpu_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "has_device_file", lambda: False)
    assert checks.check_gpu(cuda.choose(), required=False) == []
    (finding,) = checks.check_gpu(cuda.choose(), required=True)
    assert finding.level == "error"


def test_the_extra_has_what_the_remedy_promises() -> None:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

    text = (Path(__file__).parents[4] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    if "cuda13" not in extras:
        pytest.skip("the extra is not there yet")
    names = " ".join(extras["cuda13"])
    for part in ("cublas", "cudnn-cu13", "cufft", "cusparse", "curand", "nvjitlink", "nvcc"):
        assert f"nvidia-{part}" in names or f"nvidia-cuda-{part}" in names
