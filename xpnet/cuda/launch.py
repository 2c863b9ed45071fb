"""What `xpnet.cuda.plan` calls a launch, done by CuPy and cuBLASLt, and many of them captured as one CUDA graph.

CuPy refuses its own products while a stream is captured, so they come from cuBLASLt by way of nvmath-python. Without
that package, or where the driver will not capture, the same launches are made one by one, which is said once.

Not yet run on a GPU.
"""

import importlib
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from xpnet.cuda.kernels import Kernel
from xpnet.device import Place
from xpnet.errors import DeviceSpeedWarning
from xpnet.typing import Array, Namespace

WORKSPACE = 2**25
"""Bytes that cuBLASLt may use for a product: what NVIDIA advises for an H100."""

ALIGNED = 256
"""Bytes to whose multiples CUDA's allocations are aligned, which is as far as cuBLASLt asks."""

Call = Callable[[], object]

# cublasComputeType_t and cudaDataType_t, from CUDA's cublas_api.h and library_types.h.
_COMPUTE = {("float32", False): 68, ("float32", True): 77, ("float64", False): 70, ("float64", True): 70}
_DATA = {"float32": 0, "float64": 1}


class Launcher(Protocol):
    """What is asked of a device, so that plans can be tested without one."""

    xp: Namespace
    """The namespace of its arrays."""

    captures: bool
    """Whether `graph` makes one launch of many."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a new array that lies row after row."""

    def kernel(self, kernel: Kernel, inputs: Sequence[Array], outputs: Sequence[Array]) -> Call:
        """Return the call that launches a kernel, compiled."""

    def product(self, left: Array, right: Array, out: Array) -> Call:
        """Return the call that puts a product into `out`, which lies row after row; the factors or their ``.T`` do."""

    def address(self, array: Array) -> int:
        """Return where an array's memory begins."""

    def copy(self, arrays: Sequence[Array], into: Array) -> None:
        """Queue the copy of contiguous arrays into another, one behind the other."""

    def graph(self, calls: Sequence[Call]) -> Call:
        """Return the call that does all these in order; they are not done now."""


class CudaLauncher:
    """Launches on a CUDA device.

    Parameters
    ----------
    place : Place
        The device, which is active whenever anything is called here.
    tf32 : bool
        Whether products may round float32 factors to TF32's 11 bits.
    """

    def __init__(self, place: Place, *, tf32: bool = False) -> None:
        self.xp = place.xp
        self._kernels: dict[str, Any] = {}
        self._products: LtProducts | None = None
        self.captures = True
        try:
            library = importlib.import_module("nvmath.bindings.cublasLt")
            self._products = LtProducts(library, self.empty((WORKSPACE,), np.uint8), tf32=tf32)
        except MemoryError:
            raise
        except Exception as error:  # an import, a library or a driver, each with exceptions of its own
            self._launch_one_by_one(error, 'pip install "nvmath-python>=1.0"')

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a new array from CuPy's pool."""
        return self.xp.empty(shape, dtype=dtype)

    def kernel(self, kernel: Kernel, inputs: Sequence[Array], outputs: Sequence[Array]) -> Call:
        """Return the call that launches a kernel; equal sources are compiled once, and kept on disk by CuPy."""
        if kernel.source not in self._kernels:
            compiled = self.xp.RawKernel(kernel.source, "launch")
            compiled.compile()
            self._kernels[kernel.source] = compiled
        arguments = (*inputs, *outputs, *map(np.int32, kernel.shape))
        return partial(self._kernels[kernel.source], *kernel.grid, arguments)

    def product(self, left: Array, right: Array, out: Array) -> Call:
        """Return the call that puts a product into `out`, which has been done once: what is loaded then may not be
        while a stream is captured.
        """
        call: Call
        if self._products is None:
            call = partial(self.xp.matmul, left, right, out=out)
        else:
            call = partial(self._products.bind(left, right, out), self._stream)
        call()
        return call

    def _stream(self) -> int:
        return int(self.xp.cuda.get_current_stream().ptr)

    def address(self, array: Array) -> int:
        """Return where an array's memory begins on the device."""
        return int(array.data.ptr)

    def copy(self, arrays: Sequence[Array], into: Array) -> None:
        """Queue the copy in the current stream; what lies one behind the other already is copied at once."""
        stream, start = self.xp.cuda.get_current_stream(), 0
        if all(before.data.ptr + before.nbytes == after.data.ptr for before, after in pairwise(arrays)):
            into.data.copy_from_device_async(arrays[0].data, sum(array.nbytes for array in arrays), stream)
            return
        for array in arrays:
            (into.data + start).copy_from_device_async(array.data, array.nbytes, stream)
            start += array.nbytes

    def graph(self, calls: Sequence[Call]) -> Call:
        """Return a graph's launch, in the stream that is current then; or what makes the calls one by one."""
        if self.captures:
            stream = self.xp.cuda.Stream(non_blocking=True)
            try:
                with stream:
                    stream.begin_capture()
                    try:
                        _each(calls)
                    finally:
                        graph = stream.end_capture()
            except Exception as error:  # whatever the driver or a library will not have captured
                self._launch_one_by_one(error, "update the driver")
            else:
                launch: Call = graph.launch
                return launch
        return partial(_each, calls)

    def _launch_one_by_one(self, error: Exception, mend: str) -> None:
        self.captures = False
        warnings.warn(
            f"Steps on a GPU are launched as one CUDA graph where nvmath-python and the driver allow it; here they are "
            f"launched call by call, which is slower for small networks ({type(error).__name__}: {error}). To mend it: "
            f"{mend}.",
            DeviceSpeedWarning,
            stacklevel=2,
        )


def _each(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


class LtProducts:
    """Products by cuBLASLt, which has columns where arrays here have rows: ``(A B)ᵀ = Bᵀ Aᵀ`` is what it computes.

    Parameters
    ----------
    library : module
        `nvmath.bindings.cublasLt`.
    workspace : (n,) uint8 array
        Memory on the device that products may use, one after another.
    tf32 : bool
        Whether float32 factors may be rounded.
    """

    def __init__(self, library: Any, workspace: Array, *, tf32: bool) -> None:
        self._lt, self._workspace, self._tf32 = library, workspace, tf32
        self._held = [workspace]
        self._made: list[Callable[[], object]] = []
        # When the interpreter ends, the driver may be gone before these.
        weakref.finalize(self, _each, self._made).atexit = False
        self._handle = self._kept(library.destroy, library.create())

    def _kept(self, destroy: Callable[[int], object], thing: int) -> int:
        """Return a thing of cuBLASLt's that is destroyed with these products."""
        self._made.insert(0, partial(destroy, thing))
        return thing

    def bind(self, left: Array, right: Array, out: Array) -> Callable[[Callable[[], int]], None]:
        """Return the product of two arrays into a third, as a function of what returns the stream."""
        lt, dtype = self._lt, out.dtype.name
        (first, first_turned), (second, second_turned) = _stored(right), _stored(left)
        descriptor = lt.matmul_desc_create(_COMPUTE[dtype, self._tf32], _DATA[dtype])
        self._kept(lt.matmul_desc_destroy, descriptor)
        for name, turned in (("TRANSA", first_turned), ("TRANSB", second_turned)):
            self._set(lt.matmul_desc_set_attribute, descriptor, lt.MatmulDescAttribute[name], turned, np.int32)
        # The third is C, which is not read, and D, which is written.
        shapes = [first, second, _stored(out)[0]]
        layouts = [
            self._kept(lt.matrix_layout_destroy, lt.matrix_layout_create(_DATA[dtype], *shape, shape[0]))
            for shape in shapes
        ]
        factors = [(int(array.data.ptr), layout) for array, layout in zip((right, left, out), layouts, strict=True)]
        algorithm = self._algorithm(descriptor, [*factors, factors[2]])
        self._held += [left, right, out]  # lest the memory that pointers lead to is given to others
        return partial(self._multiply, descriptor, factors, algorithm, np.eye(1, 2, dtype=dtype)[0])

    def _multiply(
        self,
        descriptor: int,
        factors: Sequence[tuple[int, int]],
        algorithm: Any,
        one_and_nothing: Any,
        stream: Callable[[], int],
    ) -> None:
        a, b, d = factors
        one, workspace = one_and_nothing.ctypes.data, self._workspace
        nothing = one + one_and_nothing.itemsize
        ends = (algorithm.ctypes.data, int(workspace.data.ptr), int(workspace.nbytes), stream())
        self._lt.matmul(self._handle, descriptor, one, *a, *b, nothing, *d, *d, *ends)

    def _algorithm(self, descriptor: int, factors: Sequence[tuple[int, int]]) -> Any:
        """Return the algorithm that cuBLASLt thinks best of, whose first field is what `matmul` reads."""
        lt, layouts = self._lt, [layout for _, layout in factors]
        preference = lt.matmul_preference_create()
        names = lt.MatmulPreferenceAttribute
        size = int(self._workspace.nbytes)
        self._set(lt.matmul_preference_set_attribute, preference, names.MAX_WORKSPACE_BYTES, size, np.uint64)
        for letter, (pointer, _) in zip("ABCD", factors, strict=True):
            # Parameters lie anywhere in one vector; an algorithm may count on no more than there is.
            alignment = min(ALIGNED, pointer & -pointer)
            attribute = names[f"MIN_ALIGNMENT_{letter}_BYTES"]
            self._set(lt.matmul_preference_set_attribute, preference, attribute, alignment, np.uint32)
        found, count = np.zeros(1, lt.matmul_heuristic_result_dtype), np.zeros(1, np.int32)
        lt.matmul_algo_get_heuristic(
            self._handle, descriptor, *layouts, preference, 1, found.ctypes.data, count.ctypes.data
        )
        lt.matmul_preference_destroy(preference)
        if count[0] < 1:
            raise RuntimeError("cuBLASLt has no algorithm for a product")
        return found

    @staticmethod
    def _set(setter: Callable[..., Any], of: int, attribute: Any, value: Any, dtype: Any) -> None:
        held = np.asarray([value], dtype)
        setter(of, int(attribute), held.ctypes.data, held.nbytes)


def _stored(array: Array) -> tuple[tuple[int, int], bool]:
    """Return the rows and columns that cuBLASLt sees where a factor is stored, and whether to transpose them."""
    rows, columns = (int(size) for size in array.shape)
    return ((columns, rows), False) if array.flags.c_contiguous else ((rows, columns), True)
