"""Kernels that one test alone has compiled: their sources hold a token of its own."""

from __future__ import annotations

from pathlib import Path

import jittor as jt

#: For a program with `jt`, `x` (ones, 4 of them) and `token`: three such kernels; 24.0 in `total`.
COMPUTE = """
total = 0.0
for number in range(3):
    name = f"t{token}_{number}"
    source = f"int {name} = 1; for (int i = 0; i < in0_shape0; i++) @out(i) = @in0(i) + {name};"
    total += jt.code([4], "float32", [x], cpu_src=source).sum().item()
"""


def libraries(token: str) -> list[Path]:
    """Where the kernels of a token are, whether compiled or not."""
    folder = Path(jt.flags.cache_path, "jit")
    sources = [file for file in folder.glob("*code*.cc") if token in file.read_text()]
    return sorted(source.with_suffix(".so") for source in sources)


def forget(token: str) -> int:
    """Delete the kernels of a token; returns how many there were."""
    found = libraries(token)
    count = sum(library.exists() for library in found)
    for library in found:
        for file in library.parent.glob(f"{library.stem}.*"):
            file.unlink()
    return count
