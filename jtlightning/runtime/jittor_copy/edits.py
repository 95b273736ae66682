"""What is changed in Jittor 1.3.11.0: for CUDA 13 and cuDNN 9, and faults on every machine.

All of it works with CUDA 12 and on a CPU too.

An edit replaces a text that stands exactly once in a file. The folder `jittor` is left out of
`file`.
"""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

Edit = namedtuple("Edit", "file old new")
Edit.__doc__ = """Replace `old` by `new` in `file`."""

_CUDNN_OPS = "extern/cuda/cudnn/ops/cudnn_{}_op.cc"

EDITS: tuple[Edit, ...] = (
    # CUDA 13's C++ libraries (CCCL 3) need C++17.
    Edit(
        "compiler.py",
        'cc_flags += " -Wall -Wno-unknown-pragmas -std=c++14 -fPIC "\n# 1. ',
        'cc_flags += " -Wall -Wno-unknown-pragmas -std=c++%s -fPIC " % ('
        '17 if nvcc_path and nvcc_version[0] >= 13 else 14)\n# 1. ',
    ),
    # This would turn it into C++14 again, and adds an option of Microsoft's compiler.
    Edit(
        "compiler.py",
        "        if nvcc_version >= [11,4]:\n            nvcc_flags = nvcc_flags.replace(",
        "        if nvcc_version[0] >= 13:\n            pass\n"
        "        elif nvcc_version >= [11,4]:\n            nvcc_flags = nvcc_flags.replace(",
    ),
    # Later cards were given machine code for sm_90, which they cannot run.
    Edit(
        "compiler.py",
        "    max_arch = 90\n",
        "    max_arch = 121 if nvcc_version[0] >= 13 else 90\n",
    ),
    # Helpers that nobody calls read fields of cudaDeviceProp that are gone.
    Edit(
        "extern/cuda/inc/helper_cuda.h",
        "#ifdef __CUDA_RUNTIME_H__\n// General GPU Device CUDA Initialization",
        "#if defined(__CUDA_RUNTIME_H__) && CUDART_VERSION < 13000\n"
        "// General GPU Device CUDA Initialization",
    ),
    # cuDNN 9 is split into other libraries, and has none of the old functions for RNNs.
    Edit(
        "compile_extern.py",
        'def setup_cuda_lib(lib_name, link=True, extra_flags=""):\n',
        'def setup_cuda_lib(lib_name, link=True, extra_flags=""):\n'
        '    cudnn9 = os.path.isfile(os.path.join(cuda_lib, "libcudnn_graph.so"))\n',
    ),
    Edit(
        "compile_extern.py",
        "                for l in libs:\n                    ex_cudnn_path = ",
        "                if cudnn9:\n"
        '                    libs = ["libcudnn_graph.so", "libcudnn_ops.so", "libcudnn_cnn.so"]\n'
        "                for l in libs:\n                    ex_cudnn_path = ",
    ),
    Edit(
        "compile_extern.py",
        '    culib_src_dir = os.path.join(jittor_path, "extern", "cuda", lib_name)\n'
        "    culib_src_files = []\n"
        "    for r, _, f in os.walk(culib_src_dir):\n"
        "        for fname in f:\n",
        '    culib_src_dir = os.path.join(jittor_path, "extern", "cuda", lib_name)\n'
        "    culib_src_files = []\n"
        "    for r, _, f in os.walk(culib_src_dir):\n"
        "        for fname in f:\n"
        '            if cudnn9 and "cudnn_rnn" in fname:\n'
        "                continue\n",
    ),
    # Without those functions RNNs are computed like any other layer.
    Edit(
        "nn.py",
        "if jt.flags.use_cuda and jt.cudnn and self.proj_size == 0 and jt.compiler.is_cuda:",
        'if jt.flags.use_cuda and hasattr(jt.cudnn, "cudnn_rnn_weight_offset") '
        "and self.proj_size == 0 and jt.compiler.is_cuda:",
    ),
    # CUB's iterators and small functions are gone from CCCL 3; Thrust's iterators are older.
    Edit(
        "extern/cuda/cub/ops/cub_where_op.cc",
        "#include <thrust/transform.h>\n",
        "#include <thrust/transform.h>\n"
        "#include <thrust/iterator/counting_iterator.h>\n"
        "#include <thrust/iterator/transform_iterator.h>\n",
    ),
    Edit(
        "extern/cuda/cub/ops/cub_where_op.cc",
        "cub::CountingInputIterator<To> counting_itr(0);",
        "thrust::counting_iterator<To> counting_itr(0);",
    ),
    Edit(
        "extern/cuda/cub/ops/cub_where_op.cc",
        "cub::TransformInputIterator<bool, NonZeroOp<Ti>, Ti*> itr(",
        "thrust::transform_iterator<NonZeroOp<Ti>, Ti*, bool> itr(",
    ),
    Edit(
        "other/code_softmax.py",
        "Reduce(v1, cub::Max());",
        "Reduce(v1, [](float a, float b) {{ return a > b ? a : b; }});",  # part of an f-string
    ),
    Edit(
        "depthwise_conv.py",
        "    if (cub::LaneId() == 0) \n",
        '    unsigned lane; asm("mov.u32 %0, %%laneid;" : "=r"(lane));\n    if (lane == 0)\n',
    ),
    # The overloads for 16 bits hide max and min of integers: pooling in float16 did not compile.
    Edit(
        "src/type/fp16_compute.h",
        "typedef __half float16;\n#ifndef IS_ROCM\ntypedef __nv_bfloat16",
        "using ::max;\nusing ::min;\ntypedef __half float16;\n"
        "#ifndef IS_ROCM\ntypedef __nv_bfloat16",
    ),
    # CUDA 13 leaves the count as it was where there is no driver: -1 devices, and Jittor aborts.
    Edit(
        "src/misc/cuda_flags.cc",
        "    if (count==-1)\n        cudaGetDeviceCount(&count);\n",
        "    if (count==-1 && cudaGetDeviceCount(&count) != cudaSuccess)\n        count = 0;\n",
    ),
    # Convolutions of 16-bit values add up in float32; cuDNN has none that add up in bfloat16.
    *(
        Edit(
            _CUDNN_OPS.format(name),
            "CUDNN_CROSS_CORRELATION, getDataType<Ty>()\n",
            "CUDNN_CROSS_CORRELATION, sizeof(Ty) < 4 ? CUDNN_DATA_FLOAT : getDataType<Ty>()\n",
        )
        for name in (
            "conv", "conv_backward_w", "conv_backward_x",
            "conv3d", "conv3d_backward_w", "conv3d_backward_x",
        )
    ),
    # The table of host names was as long as the rank, not as the number of processes.
    Edit(
        "extern/mpi/src/mpi_wrapper.cc",
        "uint64_t hostHashs[mpi_world_rank];",
        "uint64_t hostHashs[mpi_world_size];",
    ),
    Edit(
        "extern/cuda/nccl/ops/nccl_all_reduce_op.cc",
        "        @if(@strcmp(@Tx,float16)==0, ncclHalf)\n",
        "        @if(@strcmp(@Tx,float16)==0, ncclHalf)\n"
        "        @if(@strcmp(@Tx,bfloat16)==0, ncclBfloat16)\n",
    ),
    # Threads that compile share the graph, and change the edges of variables in it while they lay
    # out kernels: two at once crashed now and then. One has the graph at a time, but for the time
    # in which it waits for the compiler, which is nearly all of it.
    Edit(
        "src/parallel_compiler.h",
        '#include "common.h"\n\nnamespace jittor {\n',
        '#include <mutex>\n#include "common.h"\n\nnamespace jittor {\n\n'
        "EXTERN_LIB std::mutex graph_mutex;\n"
        "EXTERN_LIB thread_local bool has_graph;\n\n"
        "struct HasGraph {\n"
        "    HasGraph() { graph_mutex.lock(); has_graph = true; }\n"
        "    ~HasGraph() { has_graph = false; graph_mutex.unlock(); }\n"
        "};\n\n"
        "struct LeavesGraph {\n"
        "    bool had = has_graph;\n"
        "    LeavesGraph() { if (had) { has_graph = false; graph_mutex.unlock(); } }\n"
        "    ~LeavesGraph() { if (had) { graph_mutex.lock(); has_graph = true; } }\n"
        "};\n",
    ),
    Edit(
        "src/parallel_compiler.cc",
        "// from log.cc\nEXTERN_LIB int segfault_happen;\n",
        "// from log.cc\nEXTERN_LIB int segfault_happen;\n\n"
        "std::mutex graph_mutex;\nthread_local bool has_graph = false;\n",
    ),
    Edit(
        "src/parallel_compiler.cc",
        "            bool is_fused_op = rid<0;\n            try {\n",
        "            bool is_fused_op = rid<0;\n            HasGraph graph;\n            try {\n",
    ),
    Edit(
        "src/jit_compiler.cc",
        '#include "fused_op.h"\n',
        '#include "fused_op.h"\n#include "parallel_compiler.h"\n',
    ),
    Edit(
        "src/jit_compiler.cc",
        "    cache_compile(cmd, cache_path, jittor_path);\n",
        "    {\n        LeavesGraph others;\n"
        "        cache_compile(cmd, cache_path, jittor_path);\n    }\n",
    ),
    # What a crash of the machine has left of a library beside its whole key was taken for compiled;
    # loading it ended or hung the process. An ELF file ends with a table that its header names.
    Edit(
        "src/utils/cache_compile.cc",
        "bool cache_compile(string cmd, const string& cache_path_",
        "#ifdef __linux__\n"
        "static bool is_whole(const string& name) {\n"
        "    string type = name.substr(name.rfind('.')+1);\n"
        '    if (type != "so" && type != "o") return true;\n'
        "    std::ifstream file(name, std::ios::binary);\n"
        "    char head[64];\n"
        '    if (!file.read(head, 64) || string(head, 4) != "\\177ELF") return false;\n'
        "    uint64_t table = *(uint64_t*)(head+40);\n"
        "    uint64_t rows = *(uint16_t*)(head+58) * *(uint16_t*)(head+60);\n"
        "    file.seekg(0, std::ios::end);\n"
        "    return (uint64_t)file.tellg() >= table + rows;\n"
        "}\n"
        "#else\n"
        "static bool is_whole(const string& name) { return true; }\n"
        "#endif\n\n"
        "bool cache_compile(string cmd, const string& cache_path_",
    ),
    Edit(
        "src/utils/cache_compile.cc",
        "    if (file_exist(output_name))\n        output_cache_key",
        "    if (file_exist(output_name) && is_whole(output_name))\n        output_cache_key",
    ),
)  # fmt: skip


class EditError(RuntimeError):
    """A text that should be replaced does not stand exactly once in its file."""


def apply(package: Path, edits: tuple[Edit, ...] = EDITS) -> None:
    """Make all edits in the folder `package`.

    Raises:
        EditError: A text is missing or not unique; files edited before stay changed.
    """
    for edit in edits:
        path = package / edit.file
        # Bytes, so that line ends stay what they are.
        text = path.read_bytes() if path.is_file() else b""
        count = text.count(edit.old.encode())
        if count != 1:
            raise EditError(
                f"{path} holds the text {edit.old!r} {count} times instead of once; "
                "Jittor was not changed"
            )
        path.write_bytes(text.replace(edit.old.encode(), edit.new.encode()))
