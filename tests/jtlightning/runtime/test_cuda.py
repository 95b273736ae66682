from __future__ import annotations

import re
from pathlib import Path

import pytest

from jtlightning.runtime import cuda


def make_toolkit(root: Path, version: int, cudnn: int | None = None) -> Path:
    """A folder that looks like a CUDA toolkit; returns its nvcc."""
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True)
    nvcc = root / "bin" / "nvcc"
    nvcc.touch(mode=0o755)
    (root / "include" / "cuda.h").write_text(f"#ifndef A\n#define CUDA_VERSION {version}\n")
    (root / "lib64" / "libcudart.so").touch()
    if cudnn is not None:
        (root / "lib64" / "libcudnn.so").touch()
        (root / "include" / "cudnn_version.h").write_text(f"#define CUDNN_MAJOR {cudnn}\n")
    return nvcc


def test_a_complete_toolkit_is_described(tmp_path: Path) -> None:
    toolkit = cuda.read_toolkit(make_toolkit(tmp_path / "cuda", 12020, cudnn=8))
    assert toolkit is not None
    assert (toolkit.version, toolkit.cudnn, toolkit.root) == ((12, 2), 8, tmp_path / "cuda")
    assert cuda.unusable(toolkit) is None


def test_a_wrapper_script_is_not_a_toolkit(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    assert cuda.read_toolkit(nvcc) is None


def test_a_toolkit_without_runtime_library_is_not_usable(tmp_path: Path) -> None:
    nvcc = make_toolkit(tmp_path, 12020, cudnn=8)
    (tmp_path / "lib64" / "libcudart.so").unlink()
    assert cuda.read_toolkit(nvcc) is None


def test_links_to_nvcc_are_followed(tmp_path: Path) -> None:
    link = tmp_path / "nvcc"
    link.symlink_to(make_toolkit(tmp_path / "cuda", 11080))
    toolkit = cuda.read_toolkit(link)
    assert toolkit is not None
    assert toolkit.root == tmp_path / "cuda"


@pytest.mark.parametrize(
    ("version", "cudnn", "reason"),
    [
        (13000, 8, "CUDA 13 .* newer"),
        (12020, 9, "needs cuDNN 8, found version 9"),
    ],
)
def test_what_jittor_cannot_be_built_with_has_a_reason(
    tmp_path: Path, version: int, cudnn: int, reason: str
) -> None:
    toolkit = cuda.read_toolkit(make_toolkit(tmp_path, version, cudnn))
    assert toolkit is not None
    assert re.search(reason, cuda.unusable(toolkit) or "")


def test_a_toolkit_without_cudnn_has_a_reason() -> None:
    toolkit = cuda.Toolkit(Path("nvcc"), Path("/cuda"), Path("/cuda/include"), (12, 2), None)
    assert cuda.unusable(toolkit) == "no cuDNN 8 with headers for the CUDA 12 toolkit at /cuda"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nvidia0", True), ("nvidia12", True), ("dxg", True), ("nvidiactl", False), ("null", False)],
)
def test_devices_are_recognised_by_their_files(tmp_path: Path, name: str, expected: bool) -> None:
    (tmp_path / name).touch()
    assert cuda.has_device_file(tmp_path) is expected


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine with a device and one good toolkit."""
    toolkit = cuda.read_toolkit(make_toolkit(tmp_path, 12020, cudnn=8))
    monkeypatch.setattr(cuda, "has_device_file", lambda: True)
    monkeypatch.setattr(cuda, "find_toolkits", lambda: [toolkit])
    monkeypatch.setattr(cuda, "count_devices", lambda: (2, ""))
    return monkeypatch


def test_cuda_is_chosen_where_everything_is_there(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choice = cuda.choose()
    assert choice.nvcc == str(tmp_path / "bin" / "nvcc")
    assert choice.reason == "2 device(s), CUDA 12.2 with cuDNN 8"


def test_the_driver_has_the_last_word(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(cuda, "count_devices", lambda: (0, "the driver sleeps"))
    assert cuda.choose() == ("", "the driver sleeps")


def test_without_a_device_nothing_else_is_asked(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(cuda, "has_device_file", lambda: False)
    machine.setattr(cuda, "find_toolkits", None)
    assert cuda.choose() == ("", "no NVIDIA device on this machine")


def test_a_missing_driver_is_an_answer_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_COUNT_DEVICES", cuda._COUNT_DEVICES.replace("libcuda", "libnone"))
    devices, reason = cuda.count_devices()
    assert devices == 0
    assert "libnone.so.1" in reason
