"""The turns that the changed Jittor's compile threads take, in a program of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jtlightning.runtime.jittor_copy import patch

#: Four threads, each with the graph, then compiling (once with an error), then with the graph.
#: Prints how many had it at once, whether several compiled at once, and whether it is free again.
#: Compiling takes long beside the rest, so that it must overlap.
PROGRAM = """
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>
#include "parallel_compiler.h"
namespace jittor { std::mutex graph_mutex; thread_local bool has_graph = false; }
using namespace jittor;
int main() {
    std::atomic<int> inside{0}, most_inside{0}, compiling{0}, most_compiling{0};
    auto raise = [](std::atomic<int>& most, int value) {
        for (int old = most; old < value && !most.compare_exchange_weak(old, value);) {}
    };
    auto pause = [](int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
    auto work = [&] {
        for (int i = 0; i < 5; i++) {
            HasGraph graph;
            raise(most_inside, ++inside); pause(1); inside--;
            try {
                LeavesGraph others;
                raise(most_compiling, ++compiling); pause(100); compiling--;
                if (i == 2) throw 1;
            } catch (int) {}
            raise(most_inside, ++inside); pause(1); inside--;
        }
    };
    std::vector<std::thread> all;
    for (int i = 0; i < 4; i++) all.emplace_back(work);
    for (auto& thread : all) thread.join();
    { LeavesGraph nothing; }
    bool several = most_compiling > 1, free = graph_mutex.try_lock();
    std::printf("%d %d %d\\n", most_inside.load(), several, free);
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of the changed Jittor's C++ files."""
    return patch.make(tmp_path / "cache") / "jittor" / "src"


def test_one_thread_has_the_graph_and_several_compile(source: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    (tmp_path / "program.cc").write_text(PROGRAM)
    command = ["g++", "-std=c++14", f"-I{source}", tmp_path / "program.cc", "-o", program]
    subprocess.run([*command, "-pthread"], check=True)
    assert subprocess.check_output([program], text=True, timeout=60) == "1 1 1\n"


def test_threads_have_the_graph_from_the_first_to_the_last_line(source: Path) -> None:
    threads = (source / "parallel_compiler.cc").read_text()
    before = threads.index("HasGraph graph;")
    assert (
        threads.index("auto func = [&](int tid)")
        < before
        < threads.index("op->do_prepare(jkl);\n                auto op_entry")
    )
    kernel = (source / "jit_compiler.cc").read_text()
    assert kernel.count("LeavesGraph") == 1
    block = kernel[kernel.index("LeavesGraph others;") :]
    assert block.index("cache_compile(cmd") < block.index("}") < block.index("load_jit_lib")
