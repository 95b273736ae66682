from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jtlightning.runtime import environment, onednn

from .conftest import RunPython

SHOW = "import json, os, jtlightning; print(json.dumps(dict(os.environ)))"


def prepared(run_python: RunPython, **variables: str) -> dict[str, str]:
    result = run_python(SHOW, **variables)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_nothing_is_left_to_download(run_python: RunPython, home: Path) -> None:
    variables = prepared(run_python)
    switches = ("use_cutlass", "use_cutt", "use_nccl")
    assert [variables[name] for name in switches] == ["0"] * 3
    assert variables["nvcc_path"] == "" or Path(variables["nvcc_path"]).is_file()
    assert "use_mkl" not in variables
    folder = home / ".cache" / "jittor" / "mkl" / "dnnl_lnx_2.2.0_cpu_gomp"
    assert (folder / "lib" / "libmkldnn.so").stat().st_size > 1_000_000
    assert "dnnl.h" in (folder / "include" / "mkldnn.h").read_text()
    assert (folder / "include" / "oneapi" / "dnnl" / "dnnl.h").is_file()


def test_broken_nvcc_on_the_path_is_not_used(run_python: RunPython, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\nexec /nowhere/nvcc "$@"\n')
    nvcc.chmod(0o755)
    variables = prepared(run_python, PATH=f"{nvcc.parent}:/usr/bin:/bin")
    assert variables["nvcc_path"] != str(nvcc)


def test_mpi_is_for_processes_that_mpirun_has_started(run_python: RunPython) -> None:
    parent = prepared(run_python)
    assert parent["use_mpi"] == "0"
    inherited = {name: parent[name] for name in parent if name != "PATH"}
    assert "use_mpi" not in prepared(run_python, OMPI_COMM_WORLD_SIZE="2", **inherited)
    inherited.pop("use_mpi")  # a launcher may pass on what it likes
    assert "use_mpi" not in prepared(run_python, OMPI_COMM_WORLD_SIZE="2", **inherited)
    mine = {"use_mpi": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    assert prepared(run_python, **mine)["use_mpi"] == "0"


def test_variables_of_the_user_stay(run_python: RunPython) -> None:
    mine = {"use_cutt": "1", "nvcc_path": "/mine/nvcc", "FIX_TORCH_ERROR": "1", "log_silent": "0"}
    variables = prepared(run_python, **mine)
    assert {name: variables[name] for name in mine} == mine
    ours = variables["JTLIGHTNING_PREPARED"].split()
    assert "use_cutlass" in ours
    assert not set(ours) & set(mine)


def test_a_child_process_knows_what_its_parent_set(run_python: RunPython) -> None:
    parent = prepared(run_python)
    child = prepared(run_python, **{name: parent[name] for name in parent if name != "PATH"})
    assert child["JTLIGHTNING_PREPARED"] == parent["JTLIGHTNING_PREPARED"]


@pytest.mark.parametrize("name", ["log_v", "SEGTASKS_VERBOSE"])
def test_jittor_is_quiet_unless_asked(run_python: RunPython, name: str) -> None:
    assert prepared(run_python)["log_silent"] == "1"
    assert "log_silent" not in prepared(run_python, **{name: "1"})


def test_jittor_home_is_where_onednn_goes(run_python: RunPython, tmp_path: Path) -> None:
    prepared(run_python, JITTOR_HOME=str(tmp_path / "elsewhere"))
    assert onednn.is_linked(tmp_path / "elsewhere")


def test_links_into_a_deleted_environment_are_renewed(tmp_path: Path) -> None:
    folder = onednn.target(tmp_path)
    folder.mkdir(parents=True)
    (folder / "lib").symlink_to(tmp_path / "gone")
    (folder / "include").mkdir()
    (folder / "include" / "mkldnn.h").symlink_to(tmp_path / "gone.h")
    assert not onednn.is_linked(tmp_path)
    onednn.link(tmp_path)
    assert onednn.is_linked(tmp_path)


def test_a_good_link_is_left_alone(tmp_path: Path) -> None:
    onednn.link(tmp_path)
    library = onednn.target(tmp_path) / "lib" / "libmkldnn.so"
    before = library.lstat()
    onednn.link(tmp_path)
    assert library.lstat() == before


def test_the_wheel_is_found_through_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = onednn.find()
    monkeypatch.setattr(sys, "prefix", "/somewhere/else")
    found = onednn.find()
    assert usual is not None
    assert found is not None
    assert [path.samefile(other) for path, other in zip(found, usual, strict=True)] == [True, True]


def test_without_the_wheel_jittor_is_slow_but_does_not_download(run_python: RunPython) -> None:
    # jtlightning prepares at its import, so the wheel has to be hidden before.
    hide = (
        "import sys, warnings, os\n"
        "from importlib import metadata\n"
        "sys.prefix = '/nowhere'\n"
        "def files(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.files = files\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import jtlightning\n"
        "print(os.environ['use_mkl'], [str(item.message) for item in seen])\n"
    )
    result = run_python(hide)
    assert result.stdout.startswith("0 "), result.stderr
    assert "pip install onednn-devel-cpu-gomp==2021.2.0" in result.stdout


def test_import_of_jittor_names_the_missing_compiler(run_python: RunPython) -> None:
    result = run_python("import jtlightning, jittor", PATH="/nowhere")
    assert result.returncode == 1
    assert "JittorNotReadyError" in result.stderr
    assert "no g++ on the PATH" in result.stderr
    assert "install g++" in result.stderr


def test_import_of_jittor_names_the_folder_that_cannot_be_written(
    run_python: RunPython, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    result = run_python("import jtlightning, jittor", JITTOR_HOME=str(blocked))
    assert result.returncode == 1
    assert f"{blocked}/.cache/jittor cannot be written" in result.stderr


def test_warns_when_jittor_came_first_and_has_no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jittor", SimpleNamespace())  # type: ignore[arg-type]
    extern = SimpleNamespace(use_mkl=True)
    monkeypatch.setitem(sys.modules, "jittor.compile_extern", extern)  # type: ignore[arg-type]
    environment.prepare()
    extern.use_mkl = False
    with pytest.warns(RuntimeWarning, match="import jtlightning first"):
        environment.prepare()


def test_packages_are_imported_without_jittor(run_python: RunPython) -> None:
    result = run_python(
        "import sys, jtlightning, segtasks, jtlightning.runtime\n"
        "print(sorted({'jittor', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert result.stdout == "[]\n", result.stderr


def test_an_unknown_name_is_an_attribute_error(run_python: RunPython) -> None:
    result = run_python("import jtlightning; jtlightning.Trianer")
    assert "AttributeError: module 'jtlightning' has no attribute 'Trianer'" in result.stderr


def test_no_more_kernel_compilers_than_cores(run_python: RunPython) -> None:
    assert int(prepared(run_python)["use_parallel_op_compiler"]) == min(os.cpu_count() or 1, 16)


def test_numpy_s_float_limits_come_from_before_jittor(run_python: RunPython) -> None:
    code = (
        "import jtlightning, numpy as np\n"
        "from numpy.core.getlimits import finfo\n"
        "assert not finfo._finfo_cache\n"
        "import sys; next(f for f in sys.meta_path if type(f).__name__ == '_Guard')"
        ".find_spec('jittor')\n"
        "print(len(finfo._finfo_cache))"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0
