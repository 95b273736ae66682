from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jtlightning.runtime.cuda import toolkits

from .trees import make_cudnn, make_packages, make_toolkit


@pytest.fixture(autouse=True)
def no_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither packages nor a cuDNN of this machine."""
    monkeypatch.setattr(toolkits, "_system_includes", lambda: [tmp_path / "usr" / "include"])
    monkeypatch.setattr(toolkits, "_system_libraries", lambda: tmp_path / "usr" / "lib")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])


def test_a_complete_toolkit_is_described(tmp_path: Path) -> None:
    toolkit = toolkits.read(make_toolkit(tmp_path / "cuda", 12020, cudnn=8))
    assert toolkit is not None
    assert (toolkit.version, toolkit.root) == ((12, 2), tmp_path / "cuda")
    assert toolkits.plain_cudnn(toolkit) == 8


def test_a_wrapper_script_is_not_a_toolkit(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    assert toolkits.read(nvcc) is None


def test_a_toolkit_without_runtime_library_is_not_usable(tmp_path: Path) -> None:
    nvcc = make_toolkit(tmp_path, cudnn=8)
    (tmp_path / "lib64" / "libcudart.so").unlink()
    assert toolkits.read(nvcc) is None


def test_links_to_nvcc_are_followed(tmp_path: Path) -> None:
    link = tmp_path / "nvcc"
    link.symlink_to(make_toolkit(tmp_path / "cuda"))
    toolkit = toolkits.read(link)
    assert toolkit is not None
    assert toolkit.root == tmp_path / "cuda"


def test_the_system_s_cudnn_counts_for_a_toolkit(tmp_path: Path) -> None:
    toolkit = toolkits.read(make_toolkit(tmp_path / "cuda"))
    assert toolkit is not None
    assert toolkits.plain_cudnn(toolkit) is None
    make_cudnn(tmp_path / "usr" / "include", tmp_path / "usr" / "lib", 8, plain=True)
    assert toolkits.plain_cudnn(toolkit) == 8


def test_the_compiler_of_pip_s_packages_is_found_after_the_system_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_packages(tmp_path / "site")
    make_toolkit(tmp_path / "cuda")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    roots = [toolkit.root for toolkit in toolkits.find()]
    assert roots[0] == tmp_path / "cuda"
    assert roots[-1] == site / "nvidia" / "cu13"


@pytest.mark.parametrize("short_name", [False, True])
def test_libraries_where_jittor_does_not_look_are_never_used_as_they_are(
    tmp_path: Path, short_name: bool
) -> None:
    home = make_packages(tmp_path / "site") / "nvidia" / "cu13"
    if short_name:  # as in a Conda environment
        (home / "lib" / "libcudart.so").touch()
    make_cudnn(home / "include", home / "lib", 8, plain=True)
    toolkit = toolkits.read(home / "bin" / "nvcc")
    assert toolkit is not None
    assert toolkit.version == (13, 0)
    assert toolkits.plain_cudnn(toolkit) is None


@pytest.mark.parametrize(("version", "names"), [(13000, ["cu13", "cudnn"]), (12020, [])])
def test_only_packages_for_the_same_cuda_are_joined(
    tmp_path: Path, version: int, names: list[str]
) -> None:
    make_packages(tmp_path / "site")
    toolkit = toolkits.read(make_toolkit(tmp_path / "cuda", version))
    assert toolkit is not None
    own, *packages, system = toolkits.parts(toolkit)
    assert own == (tmp_path / "cuda" / "include", tmp_path / "cuda" / "lib64", False)
    assert [part.include.parent.name for part in packages] == names
    assert system.only_cudnn
