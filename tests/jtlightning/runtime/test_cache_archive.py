"""Archives of a small cache that looks like Jittor's; nothing is compiled."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from jtlightning.runtime import cache_archive, cache_places, machine
from jtlightning.runtime.cache_archive import CacheArchiveError, pack, unpack
from jtlightning.runtime.cache_places import Places

FACTS = {
    "jittor": "1.3.11.0",
    "python": "cpython-311-x86_64-linux-gnu",
    "compiler": "g++ 12",
    "libc": "glibc 2.36",
    "processor": "sapphirerapids -mavx2 -mavx512f",
    "cuda": "none",
}


def places(root: Path) -> Places:
    home = root / ".cache" / "jittor"
    cache = home / "jt1.3.11" / "default"
    (cache / "jit").mkdir(parents=True, exist_ok=True)
    return Places(
        cache=str(cache),
        home=str(home),
        package=str(root / "site"),
        python=str(root / "bin" / "python"),
        includes=f"-I{root}/include",
        compiler="/usr/bin/g++",
        nvcc="",
    )


def key_of(here: Places, name: str, python: str | None = None) -> str:
    return (
        f'{python or here.python} {here.package}/jittor/asm.py --cc_path="{here.compiler}" '
        f'"{here.cache}/jit/{name}.cc" {here.includes} -o "{here.cache}/jit/{name}.so"\n'
        f"# {here.cache}/jit/{name}.cc: 123\n"
    )


def add_kernel(here: Places, name: str, content: str, key: str | None = None) -> Path:
    library = Path(here.cache, "jit", f"{name}.so")
    library.write_text(content)
    library.with_name(f"{name}.so.key").write_text(key or key_of(here, name))
    for suffix in (".cc", ".s", ".post.s"):
        library.with_name(name + suffix).write_text("long")
    return library


def add_core(here: Places) -> None:
    for name in ("obj_files/op.cc.o", "jittor_core.so", "jit_utils_core.so", "custom_ops/mkl.so"):
        file = Path(here.cache, name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
        file.with_name(f"{file.name}.key").write_text(f'"{here.compiler}" -o "{file}"\n')
    Path(here.cache, "data.md5").write_text("abc")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A machine with two kernels and Jittor's core."""
    here = places(tmp_path / "source")
    add_kernel(here, "one", "library one")
    add_kernel(here, "two", "library two")
    add_core(here)
    monkeypatch.setattr(machine, "describe", lambda: dict(FACTS))
    stand_on(monkeypatch, here)
    return here


def stand_on(monkeypatch: pytest.MonkeyPatch, here: Places) -> None:
    monkeypatch.setattr(cache_places, "find", lambda: here)


def files(here: Places) -> dict[str, str]:
    root = Path(here.cache)
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_kernels_arrive_with_the_keys_that_jittor_expects_there(
    source: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "k.tar.gz"
    packed = pack(archive, "0.1.0")
    assert (packed.kernels, packed.size) == (2, archive.stat().st_size)

    there = places(tmp_path / "elsewhere")
    stand_on(monkeypatch, there)
    assert unpack(archive)[:2] == (2, 0)

    found = files(there)
    assert found["jit/one.so"] == "library one"
    assert found["jit/one.so.key"] == key_of(there, "one")
    assert os.access(Path(there.cache, "jit", "one.so"), os.X_OK)
    assert not [name for name in found if name.endswith((".cc", ".s"))]
    assert not list(Path(there.cache).parent.glob(".unpack-*"))


def test_what_is_linked_to_a_folder_is_left_to_jittor_in_another_one(
    source: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tmp_path / "k.tar.gz", "0.1.0")
    there = places(tmp_path / "elsewhere")
    stand_on(monkeypatch, there)
    unpack(tmp_path / "k.tar.gz")
    core = {name for name in files(there) if not name.startswith("jit/")}
    expected = {"obj_files/op.cc.o", "jit_utils_core.so"}
    assert core == {*expected, *(f"{name}.key" for name in expected), "data.md5"}


def test_in_the_same_folder_the_whole_core_comes_back(source: Places, tmp_path: Path) -> None:
    before = files(source)
    pack(tmp_path / "k.tar.gz", "0.1.0")
    for file in Path(source.cache).rglob("*"):
        if file.is_file():
            file.unlink()
    unpack(tmp_path / "k.tar.gz")
    wanted = {n: text for n, text in before.items() if not n.endswith((".cc", ".s"))}
    assert files(source) == wanted


def test_a_core_that_is_there_stays(source: Places, tmp_path: Path) -> None:
    pack(tmp_path / "k.tar.gz", "0.1.0")
    Path(source.cache, "obj_files", "op.cc.o").unlink()
    assert unpack(tmp_path / "k.tar.gz").core == 0
    assert not Path(source.cache, "obj_files", "op.cc.o").exists()


def test_valid_and_newer_kernels_stay_and_older_ones_are_replaced(
    source: Places, tmp_path: Path
) -> None:
    pack(tmp_path / "k.tar.gz", "0.1.0")
    add_kernel(source, "one", "newer", key="another command")
    os.utime(Path(source.cache, "jit", "one.so"), (4e9, 4e9))
    add_kernel(source, "two", "older", key="another command")
    os.utime(Path(source.cache, "jit", "two.so"), (1, 1))
    assert unpack(tmp_path / "k.tar.gz")[:2] == (1, 1)
    found = files(source)
    assert (found["jit/one.so"], found["jit/one.so.key"]) == ("newer", "another command")
    assert (found["jit/two.so"], found["jit/two.so.key"]) == ("library two", key_of(source, "two"))


def test_kernels_that_jittor_would_compile_anew_are_not_packed(
    source: Places, tmp_path: Path
) -> None:
    moved = key_of(source, "moved").replace(source.cache, "/old/cache")
    add_kernel(source, "moved", "x", key=moved)
    add_kernel(source, "python", "x", key=key_of(source, "python", python="/other/python3"))
    add_kernel(source, "half", "x").with_name("half.so.key").unlink()
    assert pack(tmp_path / "k.tar.gz", "0.1.0").kernels == 2


def test_an_empty_cache_is_not_packed(
    source: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_on(monkeypatch, places(tmp_path / "empty"))
    with pytest.raises(CacheArchiveError, match="holds no kernels; compile some"):
        pack(tmp_path / "k.tar.gz", "0.1.0")
    assert not list(tmp_path.glob("*k.tar.gz*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"jittor": "1.3.10.0"}, "jittor: 1.3.10.0 here, 1.3.11.0 there"),
        ({"cuda": "13.0.88 sm_90"}, "cuda: 13.0.88 sm_90 here, none there"),
        (
            {"processor": "haswell -mavx2"},
            "processor: haswell here, sapphirerapids -mavx512f there",
        ),
        (
            {"libc": "glibc 2.31", "compiler": "g++ 10"},
            r"compiler: g\+\+ 10 here, g\+\+ 12 there; libc: glibc 2.31 here, glibc 2.36 there",
        ),
    ],
)
def test_an_archive_of_another_machine_is_refused(
    source: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    said: str,
) -> None:
    pack(tmp_path / "k.tar.gz", "0.1.0")
    there = places(tmp_path / "elsewhere")
    stand_on(monkeypatch, there)
    monkeypatch.setattr(machine, "describe", lambda: {**FACTS, **change})
    with pytest.raises(CacheArchiveError, match=said):
        unpack(tmp_path / "k.tar.gz")
    assert files(there) == {}


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_half_written_archive_changes_nothing(
    source: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    archive = tmp_path / "k.tar.gz"
    for number in range(40):
        add_kernel(source, f"kernel{number}", os.urandom(200).hex())
    pack(archive, "0.1.0")
    os.truncate(archive, int(share * archive.stat().st_size))
    there = places(tmp_path / "elsewhere")
    stand_on(monkeypatch, there)
    with pytest.raises(CacheArchiveError, match="is damaged or incomplete"):
        unpack(archive)
    assert files(there) == {}
    assert not list(Path(there.cache).parent.glob(".unpack-*"))


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_another_file_is_refused(source: Places, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k.tar.gz").write_bytes(content)
    with pytest.raises(CacheArchiveError, match="damaged or incomplete"):
        unpack(tmp_path / "k.tar.gz")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../outside.so", tarfile.REGTYPE),
        ("/tmp/outside.so", tarfile.REGTYPE),
        ("jit/link.so", tarfile.SYMTYPE),
        ("jit/device.so", tarfile.CHRTYPE),
    ],
)
def test_members_that_could_write_elsewhere_are_refused(
    source: Places, tmp_path: Path, name: str, kind: bytes
) -> None:
    archive = tmp_path / "k.tar.gz"
    manifest = {"format": 1, "cache": source.cache, "machine": FACTS}
    with tarfile.open(archive, "w:gz") as tar:
        text = json.dumps(manifest).encode()
        member = tarfile.TarInfo("manifest.json")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    before = files(source)
    with pytest.raises(CacheArchiveError, match="is no plain file below the cache's folder"):
        unpack(archive)
    assert files(source) == before


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "is no archive of kernels"),
        ({"format": 1}, "is no archive of kernels"),
        ({"format": 2, "machine": FACTS}, "has format 2, and this version reads 1"),
    ],
)
def test_an_archive_without_our_manifest_is_refused(
    source: Places, tmp_path: Path, manifest: object, said: str
) -> None:
    archive = tmp_path / "k.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        text = json.dumps(manifest).encode()
        member = tarfile.TarInfo("manifest.json")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    with pytest.raises(CacheArchiveError, match=said):
        unpack(archive)


def test_a_failed_packing_leaves_the_older_archive(
    source: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "k.tar.gz"
    archive.write_text("older")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_archive, "_add", full)
    with pytest.raises(OSError, match="No space left"):
        pack(archive, "0.1.0")
    assert archive.read_text() == "older"
    assert [path.name for path in tmp_path.glob("*k.tar.gz*")] == ["k.tar.gz"]


def test_only_the_files_of_a_card_in_use_are_packed(
    source: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(source.cache, "cu13.0.88_sm_90", "jit")
    folder.mkdir(parents=True)
    (folder / "three.so").write_text("cuda")
    (folder / "three.so.key").write_text(
        key_of(source, "three").replace(source.python, '"/cuda/bin/nvcc"')
    )
    stand_on(monkeypatch, source._replace(nvcc="/cuda/bin/nvcc"))
    assert pack(tmp_path / "cpu.tar.gz", "0.1.0").kernels == 2
    monkeypatch.setattr(machine, "describe", lambda: {**FACTS, "cuda": "13.0.88 sm_90"})
    assert pack(tmp_path / "gpu.tar.gz", "0.1.0").kernels == 3
