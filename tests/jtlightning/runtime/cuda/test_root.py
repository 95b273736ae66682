from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jtlightning.runtime.cuda import root, toolkits
from jtlightning.runtime.cuda.toolkits import Parts, Toolkit

from .trees import make_cudnn, make_packages, make_toolkit


@pytest.fixture(autouse=True)
def no_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither packages nor a cuDNN of this machine."""
    monkeypatch.setattr(toolkits, "_system_includes", lambda: [tmp_path / "usr" / "include"])
    monkeypatch.setattr(toolkits, "_system_libraries", lambda: tmp_path / "usr" / "lib")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])


def read(nvcc: Path) -> Toolkit:
    toolkit = toolkits.read(nvcc)
    assert toolkit is not None
    return toolkit


def joined(toolkit: Toolkit) -> tuple[dict[str, Path], int | None]:
    sources = toolkits.parts(toolkit)
    source, major = root.cudnn_source(sources) or (None, None)
    return root.links(sources, source), major


@pytest.fixture
def packaged(tmp_path: Path) -> Toolkit:
    """CUDA 13 and cuDNN 9, all of them packages of pip."""
    site = make_packages(tmp_path / "site")
    return read(site / "nvidia" / "cu13" / "bin" / "nvcc")


def test_packages_alone_make_a_whole_root(tmp_path: Path, packaged: Toolkit) -> None:
    links, cudnn = joined(packaged)
    assert cudnn == 9
    assert root.missing(links, 13, cudnn) == []
    folder = root.assemble(tmp_path / "cache", packaged, links)
    # Jittor and the linker ask for names without a version.
    assert (folder / "lib64" / "libcublasLt.so").read_text() == "cublasLt"
    assert (folder / "lib64" / "libcudnn_graph.so").read_text() == "cudnn 9"
    assert (folder / "include" / "cudnn.h").is_file()
    assert (folder / "include" / "cccl" / "cub").is_dir()
    assert "NPP_MAX_64S" in (folder / "include" / "npp.h").read_text()


def test_a_bare_toolkit_is_completed_by_packages_and_comes_first(tmp_path: Path) -> None:
    make_packages(tmp_path / "site")
    toolkit = read(make_toolkit(tmp_path / "cuda", 13000))
    links, cudnn = joined(toolkit)
    assert root.missing(links, 13, cudnn) == []
    assert links["include/cuda.h"] == tmp_path / "cuda" / "include" / "cuda.h"
    assert links["lib64/libcudart.so"].read_text() == "runtime"
    # A folder that both have holds the files of both.
    folder = root.assemble(tmp_path / "cache", toolkit, links)
    names = sorted(path.name for path in (folder / "include" / "crt").iterdir())
    assert names == ["common_functions.h", "host_config.h"]


def test_nvcc_is_a_file_that_calls_the_real_one_with_the_libraries(tmp_path: Path) -> None:
    site = make_packages(tmp_path / "a site's")
    packaged = read(site / "nvidia" / "cu13" / "bin" / "nvcc")
    folder = root.assemble(tmp_path / "a cache's", packaged, joined(packaged)[0])
    nvcc = folder / "bin" / "nvcc"
    assert not nvcc.is_symlink()
    output = subprocess.check_output([nvcc, "-c", "a file.cu"], text=True)
    assert output == f"packaged nvcc -c a file.cu -L{folder}/lib64\n"


@pytest.mark.parametrize(
    ("gone", "name"),
    [
        ("cu13/lib/libcublasLt.so.13", "cuBLAS"),
        ("cu13/lib/libnvJitLink.so.13", "nvJitLink"),
        ("cu13/lib/libnvrtc.so.13", "NVRTC"),
        ("cu13/include/cufft.h", "cuFFT"),
        ("cudnn/lib/libcudnn_graph.so.9", "cuDNN"),
        ("cudnn/include/cudnn.h", "cuDNN"),
        ("cudnn/include/cudnn_version.h", "cuDNN"),
        ("cudnn/lib/libcudnn.so.9", "cuDNN"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, packaged: Toolkit, gone: str, name: str) -> None:
    (tmp_path / "site" / "nvidia" / gone).unlink()
    links, cudnn = joined(packaged)
    assert name in root.missing(links, 13, cudnn)


def test_headers_and_libraries_of_cudnn_come_from_one_place(tmp_path: Path) -> None:
    make_packages(tmp_path / "site", cudnn=9)
    system = tmp_path / "usr"
    make_cudnn(system / "include", system / "lib", 8, plain=True)
    (system / "include" / "stdlib.h").touch()
    toolkit = read(make_toolkit(tmp_path / "cuda", 13000))
    links, cudnn = joined(toolkit)
    assert cudnn == 9
    assert not [path for path in links.values() if path.is_relative_to(system)]


def test_only_cudnn_is_taken_from_the_system(tmp_path: Path) -> None:
    make_packages(tmp_path / "site", cudnn=None)
    system = tmp_path / "usr"
    make_cudnn(system / "include", system / "lib", 9, plain=True)
    (system / "include" / "stdlib.h").touch()
    (system / "lib" / "libc.so").touch()
    links, cudnn = joined(read(make_toolkit(tmp_path / "cuda", 13000)))
    assert (cudnn, root.missing(links, 13, cudnn)) == (9, [])
    assert links["include/cudnn.h"] == system / "include" / "cudnn.h"
    assert "include/stdlib.h" not in links
    assert "lib64/libc.so" not in links


def test_headers_without_libraries_are_no_cudnn(tmp_path: Path) -> None:
    make_cudnn(tmp_path / "include", tmp_path / "lib", 9)
    assert root.cudnn_source([Parts(tmp_path / "include", tmp_path / "none", False)]) is None
    source = Parts(tmp_path / "include", tmp_path / "lib", False)
    assert root.cudnn_source([source]) == (source, 9)


def test_the_same_content_is_the_same_folder_and_other_content_another(
    tmp_path: Path, packaged: Toolkit
) -> None:
    first = root.assemble(tmp_path / "cache", packaged, joined(packaged)[0])
    again = root.assemble(tmp_path / "cache", packaged, joined(packaged)[0])
    assert again == first
    library = tmp_path / "site" / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    library.write_text("a newer one")
    other = root.assemble(tmp_path / "cache", packaged, joined(packaged)[0])
    assert other != first
    assert root.assemble(tmp_path / "cache", packaged, joined(packaged)[0]) == other


def test_the_toolkit_s_own_npp_header_stays(tmp_path: Path, packaged: Toolkit) -> None:
    (packaged.include / "npp.h").write_text("the real one")
    folder = root.assemble(tmp_path / "cache", packaged, joined(packaged)[0])
    assert (folder / "include" / "npp.h").read_text() == "the real one"


def test_jittor_s_way_to_the_folders_stays_inside(tmp_path: Path, packaged: Toolkit) -> None:
    folder = root.assemble(tmp_path / "cache", packaged, joined(packaged)[0])
    beside = Path(os.path.realpath(folder / "bin" / "nvcc")).parent.parent
    assert beside == folder
