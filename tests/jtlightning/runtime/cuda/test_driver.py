from __future__ import annotations

from pathlib import Path

import pytest

from jtlightning.runtime import cuda
from jtlightning.runtime.cuda import driver

from .trees import make_driver


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the probe finds the driver's library before any other."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nvidia0", True), ("nvidia12", True), ("dxg", True), ("nvidiactl", False), ("null", False)],
)
def test_devices_are_recognised_by_their_files(tmp_path: Path, name: str, expected: bool) -> None:
    (tmp_path / name).touch()
    assert cuda.has_device_file(str(tmp_path)) is expected


def test_version_and_cards_are_told(installed: Path) -> None:
    make_driver(installed, version=12040, cards=[(9, 0), (7, 5)])
    assert driver.ask() == ((12, 4), [(9, 0), (7, 5)])


def test_a_missing_driver_is_an_answer_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_PROBE", driver._PROBE.replace("libcuda.so", "libcuda-none.so"))
    with pytest.raises(driver.DriverError, match=r"libcuda-none\.so\.1") as caught:
        driver.ask()
    assert caught.value.remedy.startswith("install the NVIDIA driver")


@pytest.mark.parametrize(
    ("error", "remedy"), [(803, "restart"), (100, "nvidia-smi"), (999, "nvidia-smi")]
)
def test_an_error_of_the_driver_has_its_remedy(installed: Path, error: int, remedy: str) -> None:
    make_driver(installed, error=error)
    with pytest.raises(driver.DriverError, match=f"cuInit answers with error {error}") as caught:
        driver.ask()
    assert remedy in caught.value.remedy


def test_devices_hidden_by_a_variable_are_no_fault_of_the_driver(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_driver(installed, cards=[])
    with pytest.raises(driver.DriverError, match="shows no device"):
        driver.ask()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(driver.DriverError, match="CUDA_VISIBLE_DEVICES='-1'") as caught:
        driver.ask()
    assert caught.value.remedy == "unset CUDA_VISIBLE_DEVICES"


def test_a_driver_that_hangs_is_given_up(installed: Path) -> None:
    make_driver(installed, wait="sleep(30)")
    with pytest.raises(driver.DriverError, match="did not answer"):
        driver.ask(timeout_s=0.5)


def test_a_driver_that_crashes_is_an_answer(installed: Path) -> None:
    make_driver(installed, wait="*(volatile int *)0 = 1")
    with pytest.raises(driver.DriverError, match="cannot be used"):
        driver.ask()
