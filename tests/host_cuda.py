"""The launches of `xpnet.cuda`, done on the host: each kernel's own source, compiled by the C++ compiler that is here.

What a GPU does with a block's threads at once is done here by one thread after another, or, where they wait for each
other, by a block of one thread or by real threads at a real barrier. Products are NumPy's, or those of a cuBLASLt that
is played by `PlayedLt`, which reads the descriptions that the real one would get.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")

# The functions that kernels call, of both types, without the headers that take most of the time to compile.
_MATHS = "".join(
    f"static inline float {name}(float x) {{ return __builtin_{name}f(x); }}\n"
    f"static inline double {name}(double x) {{ return __builtin_{name}(x); }}\n"
    for name in ("fabs", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "atan")
) + (
    "static inline float pow(float x, float y) { return __builtin_powf(x, y); }\n"
    "static inline double pow(double x, double y) { return __builtin_pow(x, y); }\n"
)

_ONE_BY_ONE = """
struct Three { int x, y, z; };
static thread_local Three blockIdx, threadIdx, blockDim, gridDim;  // fits on several threads share what is compiled
#define __global__
#define __shared__ static thread_local
#define __syncthreads()
"""

_AT_A_BARRIER = """
#include <barrier>
#include <thread>
#include <vector>
struct Three { int x, y, z; };
static Three blockIdx, blockDim, gridDim;
static thread_local Three threadIdx;
static std::barrier<>* wall;
#define __global__
#define __shared__ static
#define __syncthreads() wall->arrive_and_wait()
"""


@functools.cache
def _folder():
    folder = tempfile.mkdtemp(prefix="xpnet-kernels-")
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def compiled(source, arguments, *, barrier=False):
    """Return a kernel's function ``run(blocks, threads, pointers, rows, columns)``."""
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    call = ", ".join(f"p[{n}]" for n in range(arguments))
    casts = ", ".join(f"({kind}) p[{n}]" for n, kind in enumerate(_kinds(source)))
    assert casts.count("p[") == call.count("p[")
    if barrier:
        driver = f"""
extern "C" void run(int bx, int by, int tx, int ty, void** p, int rows, int columns) {{
    gridDim = {{bx, by, 1}}; blockDim = {{tx, ty, 1}};
    for (int j = 0; j < by; j++) for (int i = 0; i < bx; i++) {{
        blockIdx = {{i, j, 0}};
        std::barrier<> here(tx * ty); wall = &here;
        std::vector<std::thread> threads;
        for (int t = 0; t < tx * ty; t++)
            threads.emplace_back([=] {{ threadIdx = {{t % tx, t / tx, 0}}; launch({casts}, rows, columns); }});
        for (auto& thread : threads) thread.join();
    }}
}}"""
        text = _AT_A_BARRIER + source + driver
    else:
        driver = f"""
extern "C" void run(int bx, int by, int tx, int ty, void** p, int rows, int columns) {{
    gridDim = {{bx, by, 1}}; blockDim = {{tx, ty, 1}};
    for (int j = 0; j < by; j++) for (int i = 0; i < bx; i++) {{
        blockIdx = {{i, j, 0}};
        for (int v = 0; v < ty; v++) for (int u = 0; u < tx; u++) {{
            threadIdx = {{u, v, 0}}; launch({casts}, rows, columns);
        }}
    }}
}}"""
        text = _MATHS + _ONE_BY_ONE + source + driver
    name = _folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{os.getpid()}"
    name.with_suffix(".cpp").write_text(text)
    command = [COMPILER, "-std=c++20", "-O1", "-ffp-contract=off", "-fno-builtin", "-w", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, "-o", name.with_suffix(".so"), name.with_suffix(".cpp")], check=True)
    return ctypes.CDLL(str(name.with_suffix(".so"))).run


def _kinds(source):
    """Return the types of a kernel's pointers."""
    parameters = source.partition("launch(")[2].partition(", int rows")[0].split(", ")
    return [parameter.rpartition(" ")[0] for parameter in parameters]


def launched(kernel, inputs, outputs, *, threads=None):
    """Run a kernel over arrays that lie row after row."""
    arrays = [*inputs, *outputs]
    assert all(array.flags.c_contiguous for array in arrays)
    waits = "__syncthreads" in kernel.source
    run = compiled(kernel.source, len(arrays), barrier=waits and threads is not None)
    bx, by = kernel.grid.blocks
    tx, ty = kernel.grid.threads[:2] if not waits else (threads or 1, 1)
    pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    run(bx, by, tx, ty, pointers, *kernel.shape)


class HostLauncher:
    """Launches done on the host; what is made into a graph is checked as a capture checks it."""

    captures = True

    def __init__(self, place, *, tf32=False):
        self.xp, self.tf32 = np, tf32
        self.made, self.launches = [], 0

    def empty(self, shape, dtype):
        self.made.append((shape, np.dtype(dtype)))
        return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0, dtype)

    def kernel(self, kernel, inputs, outputs):
        compiled(kernel.source, len(inputs) + len(outputs))
        return functools.partial(self._launched, launched, kernel, inputs, outputs)

    def product(self, left, right, out):
        assert out.flags.c_contiguous
        assert not any(np.shares_memory(array, out) for array in (left, right))
        assert all(array.flags.c_contiguous or array.flags.f_contiguous for array in (left, right))
        call = functools.partial(self._launched, np.matmul, left, right, out)
        call()
        return call

    def _launched(self, function, *arguments):
        self.launches += 1
        function(*arguments)

    def address(self, array):
        return array.ctypes.data

    def copy(self, arrays, into):
        flat = np.concatenate([array.ravel() for array in arrays])
        into.reshape(-1)[: flat.size] = flat

    def graph(self, calls):
        held = list(calls)

        def launch():
            for call in held:
                call()

        return launch
