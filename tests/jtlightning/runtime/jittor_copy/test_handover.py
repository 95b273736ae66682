"""Which Jittor `prepare` puts first, with a GPU and without, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from jtlightning.runtime.jittor_copy import handover
from tests.jtlightning.runtime.conftest import REPOSITORY, RunPython
from tests.jtlightning.runtime.cuda.trees import make_driver, make_packages

SITE = sysconfig.get_path("purelib")
#: Lets the process see a device; imports nothing before `prepare`.
DEVICE = (
    "import os\nreal = os.listdir\n"
    "os.listdir = lambda path: ['nvidia0'] if path == '/dev' else real(path)\n"
)
SHOW = (
    "import importlib.util, json, os, sys\n"
    "def where(name): return importlib.util.find_spec(name).origin\n"
    "print(json.dumps([dict(os.environ), sys.path, where('jittor_utils')]))\n"
)


class Told:
    """What a process told about itself."""

    def __init__(self, text: str) -> None:
        self.variables, self.path, self.jittor = json.loads(text)


Tell = Callable[..., Told]


@pytest.fixture
def gpu(tmp_path: Path) -> dict[str, str]:
    """Variables of a machine with a driver and the packages of CUDA 13."""
    make_driver(tmp_path / "driver")
    packages = make_packages(tmp_path / "packages")
    return {
        "LD_LIBRARY_PATH": str(tmp_path / "driver"),
        "CUDA_HOME": str(packages / "nvidia" / "cu13"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(packages)]),
    }


@pytest.fixture
def tell(run_python: RunPython, gpu: dict[str, str]) -> Tell:
    def run(code: str = DEVICE + "import jtlightning\n" + SHOW, **variables: str) -> Told:
        result = run_python(code, **{**gpu, **variables})
        assert result.returncode == 0, result.stderr
        return Told(result.stdout)

    return run


def cache(home: Path) -> Path:
    return home / ".cache" / "jittor" / "jtlightning"


def test_the_changed_jittor_comes_first(tell: Tell, home: Path) -> None:
    told = tell()
    site = Path(told.path[0])
    assert site.parent == cache(home)
    assert told.jittor == str(site / "jittor_utils" / "__init__.py")
    assert told.variables["PYTHONPATH"].split(os.pathsep)[0] == str(site)
    assert told.variables["nvcc_path"].startswith(str(cache(home) / "root-13.0-"))
    assert {"nvcc_path", handover.VARIABLE} <= set(told.variables["JTLIGHTNING_PREPARED"].split())


def test_children_have_it_without_being_told(tell: Tell) -> None:
    told = tell(
        DEVICE + "import jtlightning, subprocess, sys\n"
        f"print(subprocess.check_output([sys.executable, '-c', {SHOW!r}], text=True))"
    )
    assert "jtlightning/jittor-" in told.jittor


def test_spawned_processes_have_it(tell: Tell, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        DEVICE + "import jtlightning, multiprocessing\n"
        f"def show():\n    exec({SHOW!r}, {{}})\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=show)\n"
        "    process.start()\n    process.join()\n    raise SystemExit(process.exitcode)\n"
    )
    told = tell(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')")
    assert "jtlightning/jittor-" in told.path[0]
    assert "jtlightning/jittor-" in told.jittor


def test_a_child_that_loses_its_python_path_puts_it_first_again(
    tell: Tell, gpu: dict[str, str]
) -> None:
    parent = tell().variables
    kept = {name: value for name, value in parent.items() if name not in ("PATH", "PYTHONPATH")}
    told = tell("import jtlightning\n" + SHOW, **kept)
    assert told.path[0] == parent[handover.VARIABLE]
    assert told.path.count(told.path[0]) == 1
    assert told.variables["PYTHONPATH"] == f"{told.path[0]}{os.pathsep}{gpu['PYTHONPATH']}"


def test_a_child_does_not_ask_the_driver_again(tell: Tell, tmp_path: Path) -> None:
    parent = tell().variables
    make_driver(tmp_path / "driver", error=999)
    told = tell(**{name: parent[name] for name in parent if name != "PATH"})
    assert told.variables["nvcc_path"] == parent["nvcc_path"]


def test_a_deleted_folder_is_made_again(tell: Tell, home: Path) -> None:
    parent = tell().variables
    shutil.rmtree(cache(home))
    told = tell(**{name: parent[name] for name in parent if name != "PATH"})
    assert Path(told.variables["nvcc_path"]).is_file()
    assert Path(told.jittor).is_relative_to(cache(home))
    assert told.path.count(told.path[0]) == 1


def test_only_jittor_is_made_again_where_the_device_is_gone_too(tell: Tell, home: Path) -> None:
    parent = tell().variables
    shutil.rmtree(cache(home))
    inherited = {name: parent[name] for name in parent if name != "PATH"}
    told = tell("import os\nreal = os.listdir\n"
                "os.listdir = lambda path: [] if path == '/dev' else real(path)\n"
                "import jtlightning\n" + SHOW, **inherited)  # fmt: skip
    assert told.variables["nvcc_path"] == ""
    assert Path(told.jittor).is_relative_to(cache(home))
    assert [path.name.split("-")[0] for path in cache(home).glob("[a-z]*")] == ["jittor"]


@pytest.mark.parametrize("code", [DEVICE, ""])
def test_without_a_gpu_jittor_is_changed_too(tell: Tell, home: Path, code: str) -> None:
    told = tell(code + "import jtlightning\n" + SHOW, nvcc_path="")
    assert told.variables["nvcc_path"] == ""
    assert Path(told.variables[handover.VARIABLE]).parent == cache(home)
    assert Path(told.jittor).is_relative_to(cache(home))


def test_the_user_can_have_jittor_as_it_is(tell: Tell, home: Path) -> None:
    told = tell("import jtlightning\n" + SHOW, **{handover.VARIABLE: ""})
    assert told.variables[handover.VARIABLE] == ""
    assert told.jittor == str(Path(SITE, "jittor_utils", "__init__.py"))
    assert not cache(home).exists()


def test_a_folder_that_cannot_be_written_leaves_jittor_as_it_is(tell: Tell, home: Path) -> None:
    cache(home).parent.mkdir(parents=True)
    cache(home).write_text("a file, where the folder should be")
    told = tell("import jtlightning\n" + SHOW)
    assert handover.VARIABLE not in told.variables
    assert told.jittor == str(Path(SITE, "jittor_utils", "__init__.py"))


def test_another_jittor_is_told_once_and_not_changed(
    run_python: RunPython, gpu: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for name in ("jittor", "jittor_utils"):
        (other / name).mkdir(parents=True)
        (other / name / "__init__.py").touch()
    variables = {**gpu, "PYTHONPATH": f"{gpu['PYTHONPATH']}{os.pathsep}{other}"}
    code = (
        "import warnings\n" + DEVICE + "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n    import jtlightning\n"
        "print([str(item.message) for item in seen], repr(os.environ['nvcc_path']))"
    )
    result = run_python(code, **variables)
    assert result.returncode == 0, result.stderr
    assert "Jittor will use the CPU only" in result.stdout
    assert "pip install jittor==1.3.11.0" in result.stdout
    assert result.stdout.endswith("''\n")


def test_several_processes_prepare_at_once(tell: Tell, home: Path) -> None:
    one = DEVICE + "import jtlightning; print(os.environ['nvcc_path'])"
    tell(
        "import os, subprocess, sys\n"
        f"command = [sys.executable, '-c', {one!r}]\n"
        "processes = [subprocess.Popen(command, stdout=-1, text=True) for _ in range(5)]\n"
        "found = {process.communicate()[0] for process in processes}\n"
        "assert len(found) == 1, found\n" + DEVICE + "import jtlightning\n" + SHOW
    )
    names = sorted(path.name.split("-")[0] for path in cache(home).iterdir())
    assert names == [".lock", "jittor", "root"]
