"""Launches by CuPy and cuBLASLt, both played: what they would be told is read back, as the libraries define it."""

import ctypes
import gc
import sys
import types
from enum import IntEnum
from functools import partial

import numpy as np
import pytest

from xpnet.cuda.kernels import Grid, Kernel
from xpnet.cuda.launch import CudaLauncher, LtProducts
from xpnet.device import Place
from xpnet.errors import DeviceSpeedWarning

ROUNDINGS = 50
"""Epsilons: sums of up to 9 products in another order."""

_FLOATS = {0: np.float32, 1: np.float64}  # cudaDataType_t
_TYPES = {68: 0, 77: 0, 70: 1}  # cublasComputeType_t: 32F, 32F_FAST_TF32, 64F


class OnDevice(np.ndarray):
    """NumPy's memory with the attributes by which CuPy's arrays are reached."""

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)


def on_device(array):
    return np.array(array, order="K").view(OnDevice)


class PlayedLt(types.ModuleType):
    """cuBLASLt's functions by its documentation: matrices of columns, descriptions by handle, numbers by pointer."""

    class MatmulDescAttribute(IntEnum):
        TRANSA = 3
        TRANSB = 4

    class MatmulPreferenceAttribute(IntEnum):
        MAX_WORKSPACE_BYTES = 1
        MIN_ALIGNMENT_A_BYTES = 5
        MIN_ALIGNMENT_B_BYTES = 6
        MIN_ALIGNMENT_C_BYTES = 7
        MIN_ALIGNMENT_D_BYTES = 8

    matmul_heuristic_result_dtype = np.dtype(
        [
            ("algo", [("data_", "<u8", (8,))]),
            ("workspace_size", "<u8"),
            ("state", "<i4"),
            ("waves", "<f4"),
            ("reserved", "<i4", (4,)),
        ]
    )

    def __init__(self, algorithms=1):
        super().__init__("nvmath.bindings.cublasLt")
        self.things, self.algorithms, self.preferences, self.streams = {}, algorithms, [], []
        self.destroyed = []
        self.destroy = self.matmul_desc_destroy = self.matrix_layout_destroy = self.destroyed.append

    def _made(self, thing):
        self.things[len(self.things) + 1] = thing
        return len(self.things)

    def create(self):
        return self._made("handle")

    def matmul_desc_create(self, compute, scale):
        assert _TYPES[compute] == scale
        return self._made({"compute": compute, 3: 0, 4: 0})

    def matrix_layout_create(self, kind, rows, columns, leading):
        assert leading >= rows > 0
        assert columns > 0
        return self._made((kind, rows, columns, leading))

    def matmul_preference_create(self):
        return self._made({})

    def matmul_preference_destroy(self, preference):
        self.destroyed.append(preference)
        self.preferences.append(self.things[preference])

    @staticmethod
    def _read(pointer, size, sizes):
        assert size == sizes
        return {4: ctypes.c_int32, 8: ctypes.c_uint64}[size].from_address(pointer).value

    def matmul_desc_set_attribute(self, descriptor, attribute, pointer, size):
        self.things[descriptor][attribute] = self._read(pointer, size, 4)

    def matmul_preference_set_attribute(self, preference, attribute, pointer, size):
        self.things[preference][attribute] = self._read(pointer, size, 8 if attribute == 1 else 4)

    def matmul_algo_get_heuristic(self, handle, descriptor, a, b, c, d, preference, requested, results, count):
        assert self.things[handle] == "handle"
        assert requested == 1
        assert self.things[c] == self.things[d]
        ctypes.c_uint64.from_address(results).value = 4_711
        ctypes.c_int32.from_address(count).value = self.algorithms

    def _matrix(self, pointer, layout):
        kind, rows, columns, leading = self.things[layout]
        dtype = np.dtype(_FLOATS[kind])
        memory = (ctypes.c_char * (leading * columns * dtype.itemsize)).from_address(pointer)
        return np.frombuffer(memory, dtype).reshape((columns, leading)).T[:rows]

    def matmul(self, handle, descriptor, alpha, a, a_at, b, b_at, beta, c, c_at, d, d_at, algorithm, *rest):
        workspace, size, stream = rest
        assert ctypes.c_uint64.from_address(algorithm).value == 4_711
        assert workspace
        assert size > 0
        self.streams.append(stream)
        it = self.things[descriptor]
        number = np.ctypeslib.as_ctypes_type(_FLOATS[_TYPES[it["compute"]]])
        assert number.from_address(alpha).value == 1
        assert number.from_address(beta).value == 0
        A, B, D = self._matrix(a, a_at), self._matrix(b, b_at), self._matrix(d, d_at)
        assert (c, c_at) == (d, d_at)
        product = (A.T if it[3] else A) @ (B.T if it[4] else B)
        assert product.shape == D.shape
        D[...] = product


def products(library, tf32=False):
    return LtProducts(library, on_device(np.zeros(64, np.uint8)), tf32=tf32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(4, 9, 5), (1, 9, 5), (4, 1, 5), (4, 9, 1), (1, 9, 1)])
def test_a_product_is_described_as_cublaslt_reads_it(rng, dtype, turned, rows, inner, columns):
    left, right = (
        on_device(rng.standard_normal(shape[::-1] if t else shape).astype(dtype))
        for shape, t in zip(((rows, inner), (inner, columns)), turned, strict=True)
    )
    left, right = (array.T if t else array for array, t in zip((left, right), turned, strict=True))
    out, library = on_device(np.full((rows, columns), np.nan, dtype)), PlayedLt()
    products(library).bind(left, right, out)(lambda: 7)
    expected = np.asarray(left) @ np.asarray(right)
    assert np.abs(np.asarray(out) - expected).max() <= ROUNDINGS * np.finfo(dtype).eps * np.abs(expected).max()
    assert library.streams == [7]


@pytest.mark.parametrize(("tf32", "dtype", "compute"), [(False, "f4", 68), (True, "f4", 77), (True, "f8", 70)])
def test_float32_is_rounded_to_tf32_only_when_that_is_asked_for(rng, tf32, dtype, compute):
    library, array = PlayedLt(), on_device(np.ones((2, 2), dtype))
    products(library, tf32).bind(array, array, on_device(np.ones((2, 2), dtype)))
    (descriptor,) = [thing for thing in library.things.values() if isinstance(thing, dict) and "compute" in thing]
    assert descriptor["compute"] == compute


def test_an_algorithm_may_count_on_no_more_alignment_than_there_is():
    memory = on_device(np.zeros(4_096, "float32"))
    start = -(memory.ctypes.data // 4) % 64  # numbers up to the next multiple of 256 bytes
    arrays = [memory[start + offset :][:4].reshape(2, 2) for offset in (0, 65, 130)]
    library = PlayedLt()
    products(library).bind(arrays[1], arrays[0], arrays[2])
    (told,) = library.preferences
    assert [told[attribute] for attribute in (5, 6, 7, 8)] == [256, 4, 8, 8]
    assert told[1] == 64


def test_what_cublaslt_made_is_destroyed_with_the_products_its_handle_last():
    library, array = PlayedLt(), on_device(np.ones((2, 2)))
    made = products(library)
    made.bind(array, array, on_device(np.ones((2, 2))))
    del made
    gc.collect()
    assert sorted(library.destroyed) == sorted(library.things)
    assert library.things[library.destroyed[-1]] == "handle"


def test_a_product_without_an_algorithm_is_an_error():
    array = on_device(np.ones((2, 2)))
    with pytest.raises(RuntimeError, match="no algorithm"):
        products(PlayedLt(algorithms=0)).bind(array, array, array)


# --- a launcher, of a CuPy that is played


class Stream:
    def __init__(self, cupy, *, non_blocking):
        assert non_blocking, "the legacy stream cannot be captured"
        self.cupy, self.ptr, self.before = cupy, 99, None

    def __enter__(self):
        self.before, self.cupy.stream = self.cupy.stream, self

    def __exit__(self, *_):
        self.cupy.stream = self.before

    def begin_capture(self):
        if self.cupy.refuse == "begin":
            raise RuntimeError("no capture here")
        self.cupy.captured = []

    def end_capture(self):
        done, self.cupy.captured = self.cupy.captured, None
        if self.cupy.refuse == "end":
            raise RuntimeError("the capture is invalid")
        return types.SimpleNamespace(launch=lambda: [call() for call in done])


class PlayedCupy(types.ModuleType):
    """As much of CuPy as a launcher uses; what is launched while a stream is captured is done by its graph alone."""

    def __init__(self, refuse=None):
        super().__init__("played_cupy")
        self.stream, self.captured, self.refuse = types.SimpleNamespace(ptr=7), None, refuse
        self.compiled, self.log = [], []
        self.cuda = types.SimpleNamespace(
            get_current_stream=lambda: self.stream, Stream=lambda **options: Stream(self, **options)
        )

    def empty(self, shape, dtype):
        return on_device(np.zeros(shape, dtype))

    def queue(self, call):
        (self.captured.append if self.captured is not None else lambda call: call())(call)

    def matmul(self, left, right, out):
        if self.captured is not None:
            raise RuntimeError("cuBLAS is refused while a stream is captured")
        np.matmul(left, right, out)

    def RawKernel(self, source, name):
        assert name == "launch"

        def launch(grid, block, arguments):
            self.queue(lambda: self.log.append((grid, block, arguments)))

        launch.compile = lambda: self.compiled.append(source)
        return launch


@pytest.fixture
def cupy(monkeypatch):
    played = PlayedCupy()
    monkeypatch.setitem(sys.modules, "played_cupy", played)
    return played


@pytest.fixture
def lt(monkeypatch, cupy):
    """cuBLASLt, whose products are part of what is captured."""
    played = PlayedLt()
    monkeypatch.setitem(sys.modules, "nvmath.bindings.cublasLt", played)
    matmul = played.matmul
    played.matmul = lambda *arguments: cupy.queue(partial(matmul, *arguments))
    return played


PLACE = Place("played_cupy", None, "cuda:0")
KERNEL = Kernel("the source", (3, 5), Grid((1, 2), (32, 8)))


def test_a_graph_does_what_was_captured_each_time_it_is_launched(cupy, lt, rng):
    launcher = CudaLauncher(PLACE)
    A, out = on_device(rng.standard_normal((3, 3))), on_device(np.zeros((3, 3)))
    calls = [launcher.product(A, A, out), launcher.kernel(KERNEL, [A], [out])]
    assert np.allclose(out, A @ A)  # once, so that all is loaded
    out[...] = 0
    launch = launcher.graph(calls)
    assert not out.any()
    assert not cupy.log
    launch()
    launch()
    assert np.allclose(out, A @ A)
    assert len(cupy.log) == 2
    assert lt.streams == [7, 99, 99]  # bound to the stream that was captured


def test_a_kernel_is_given_its_arrays_and_its_sizes_as_ints_of_c(cupy, lt):
    launcher, A, B = CudaLauncher(PLACE), on_device(np.zeros(15)), on_device(np.zeros(15))
    launcher.kernel(KERNEL, [A], [B])()
    ((grid, block, arguments),) = cupy.log
    assert (grid, block) == ((1, 2), (32, 8))
    assert arguments[0] is A
    assert arguments[1] is B
    assert [(number.dtype, int(number)) for number in arguments[2:]] == [(np.int32, 3), (np.int32, 5)]


def test_equal_sources_are_compiled_once_and_before_they_are_launched(cupy, lt):
    launcher = CudaLauncher(PLACE)
    for _ in range(3):
        launcher.kernel(KERNEL, [], [])
    assert cupy.compiled == ["the source"]
    assert not cupy.log


@pytest.mark.parametrize("refuse", ["begin", "end"])
def test_where_nothing_can_be_captured_the_calls_are_made_and_that_is_said_once(cupy, lt, refuse):
    cupy.refuse = refuse
    launcher = CudaLauncher(PLACE)
    calls = [launcher.kernel(KERNEL, [], [])]
    with pytest.warns(DeviceSpeedWarning, match=r"call by call.*RuntimeError") as warned:
        launch = launcher.graph(calls)
    launcher.graph(calls)
    assert len(warned) == 1
    assert not launcher.captures
    assert not cupy.log
    launch()
    assert len(cupy.log) == 1


def test_without_nvmath_products_are_cupys_and_the_package_is_named(cupy, monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "nvmath.bindings.cublasLt", None)
    with pytest.warns(DeviceSpeedWarning, match=r'pip install "nvmath-python'):
        launcher = CudaLauncher(PLACE)
    A, out = on_device(rng.standard_normal((3, 3))), on_device(np.zeros((3, 3)))
    launch = launcher.graph([launcher.product(A, A, out)])
    out[...] = 0
    launch()
    assert np.allclose(out, A @ A)


def test_what_lies_one_behind_the_other_is_copied_at_once():
    copies = []

    class Memory:
        def __init__(self, ptr):
            self.ptr = ptr

        def __add__(self, offset):
            return Memory(self.ptr + offset)

        def copy_from_device_async(self, source, size, stream):
            copies.append((self.ptr, source.ptr, size))

    def at(ptr):
        return types.SimpleNamespace(data=Memory(ptr), nbytes=8)

    launcher = object.__new__(CudaLauncher)
    launcher.xp = PlayedCupy()
    launcher.copy([at(100), at(108), at(116)], at(500))
    launcher.copy([at(100), at(200)], at(500))
    assert copies == [(500, 100, 24), (500, 100, 8), (508, 200, 8)]
