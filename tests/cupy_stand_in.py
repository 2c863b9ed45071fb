"""A stand-in for CuPy, on devices that are simulated: NumPy computes, behind as much of CuPy's interface as xpnet uses.

It is as strict as CuPy where code that was never run on a GPU may be wrong: an array is computed with only while its
device is the thread's current one, never becomes NumPy's unasked, mixes with no NumPy array, and has memory that runs
out. Copies run on threads of their own, as in `simulated`. Each call that would reach the device is counted, and any of
them fails when it is told to.

Exceptions are CuPy's own where it is installed and can make them without a driver; else they look like them.
"""

import importlib.util
import operator
import sys
import threading
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import array_api_compat
import numpy as np
from host_cuda import HostLauncher
from simulated import OnDevice, Pinned, SimulatedDevice, SimulatedEvent, SimulatedStream, unowned

from xpnet import device, engine

# --- CuPy's exceptions

_TEXTS = {
    2: "cudaErrorMemoryAllocation: out of memory",
    3: "cudaErrorInitializationError: initialization error",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    46: "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    214: "cudaErrorECCUncorrectable: uncorrectable ECC error encountered",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    702: "cudaErrorLaunchTimeout: the launch timed out and was terminated",
    719: "cudaErrorLaunchFailure: unspecified launch failure",
    999: "cudaErrorUnknown: unknown error",
}


class StatusError(RuntimeError):
    """What CUDA and its libraries report by way of CuPy: a message, and the status returned."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class LooksLikeCUDARuntimeError(StatusError):
    __module__ = "cupy_backends.cuda.api.runtime"


class LooksLikeCUDADriverError(StatusError):
    __module__ = "cupy_backends.cuda.api.driver"


class LooksLikeCUBLASError(StatusError):
    __module__ = "cupy_backends.cuda.libs.cublas"


class LooksLikeOutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"

    def __init__(self, size, total):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


def _cupys():
    """Return CuPy's own exceptions, where it is installed: of the run-time, and of its memory pool."""
    if importlib.util.find_spec("cupy") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cupy.cuda.memory import OutOfMemoryError
        from cupy_backends.cuda.api.runtime import CUDARuntimeError
    return CUDARuntimeError, OutOfMemoryError


_OWN = _cupys()
GENUINE = _OWN is not None
"""Whether the exceptions of the run-time and of the pool are CuPy's own; the driver's and cuBLAS's need a driver."""


def cuda_error(status):
    """Return what CuPy raises when CUDA's run-time returns that status."""
    return _OWN[0](status) if _OWN else LooksLikeCUDARuntimeError(status, _TEXTS[status])


def driver_error(status, text):
    """Return what CuPy raises when CUDA's driver returns that status."""
    return LooksLikeCUDADriverError(status, text)


def cublas_error(status, text):
    """Return what CuPy raises when cuBLAS returns that status."""
    return LooksLikeCUBLASError(status, text)


def out_of_memory(size=1_024, total=0):
    """Return what CuPy's pool raises, after its own attempts to find room."""
    return _OWN[1](size, total) if _OWN else LooksLikeOutOfMemoryError(size, total)


# --- failures


class Fault(NamedTuple):
    """A failure that is asked for.

    Attributes
    ----------
    error : callable
        Returns the exception.
    at : int
        Which call fails, counted from 1.
    kind : str or None
        The calls that are counted: ``"launch"``, ``"memory"``, ``"pinned"``, or the name of one; None is all.
    lasting : bool
        Whether every later call of that kind fails too: all of them, where a context is lost.
    """

    error: Callable[[], BaseException]
    at: int
    kind: str | None = None
    lasting: bool = False


# --- devices


class Machine(SimulatedDevice):
    """So many devices, each with so many bytes, that are CuPy's within a ``with``.

    Attributes
    ----------
    counts : Counter
        The calls so far, by name and by kind.
    failed : list of str
        The calls that have failed.
    largest : int
        Bytes of the largest upload by `asarray`, for which CuPy takes as much page-locked memory and keeps it.
    """

    def __init__(self, *, count=1, room=2**24, pinned_room=2**24, fault=None, seed=0):
        self.counts, self.failed, self.fault, self.largest = Counter(), [], fault, 0
        self.sizes, self.limits, self.current = {}, Counter(), threading.local()
        self.devices, self.memory = count, {"memory": room, "pinned": pinned_room}
        self.namespace = _namespace(self)
        super().__init__(seed)

    # Calls.

    def called(self, operation, kind="launch"):
        """Count a call, and fail if it is the one that is to fail."""
        with self.lock:
            self.counts.update((operation, kind, None))
            fault, lost = self.fault, self.failed
            if fault is None:
                return
            if fault.kind not in (operation, kind, None) or (lost and not fault.lasting):
                return
            if self.counts[fault.kind] < fault.at:
                return
            self.failed.append(operation)
        raise fault.error()

    # Memory.

    @property
    def live(self):
        """The bytes of all arrays and pinned buffers that somebody still holds."""
        return sum(size for _, _, size in list(self.sizes.values()))

    def taken(self, kind, index):
        """Return the bytes of one kind that are held on one device."""
        return sum(size for k, i, size in list(self.sizes.values()) if (k, i) == (kind, index))

    def buffer(self, kind, size, operation, error):
        """Return new memory, as bytes."""
        self.called(operation, kind)
        index = self.index if kind == "memory" else None
        room, taken = self.memory[kind], self.taken(kind, index)
        room = min(room, self.limits[index] or room) if kind == "memory" else room
        if taken + size > room:
            raise error(size, taken)
        made = (OnDevice if kind == "memory" else Pinned)((size,), np.uint8)
        key = id(made)
        self.sizes[key] = kind, index, size
        weakref.finalize(made, self.sizes.pop, key, None)
        return made

    def array(self, values, operation):
        """Return what an operation made, in memory of the current device."""
        values = np.asarray(values)
        bytes_of = self.buffer("memory", values.nbytes, operation, out_of_memory)
        across = values.flags.f_contiguous and not values.flags.c_contiguous
        flat = bytes_of.view(values.dtype)
        held = flat.reshape(values.shape[::-1]).T if across else flat.reshape(values.shape)
        held[...] = values
        return ndarray(held, self, self.index)

    def pinned(self, size):
        return self.buffer("pinned", size, "empty_pinned", lambda *_: cuda_error(2))

    def _copy(self, host, into, size, stream):
        try:
            super()._copy(host, into, size, stream)
        except RuntimeError:
            if not (self.failed and self.fault.lasting):  # a context that is lost copies nothing, and keeps nothing
                raise

    def is_pinned(self, address):
        self.called("is_memory_pinned")
        return address > 0  # of what memory it is, the copy sees

    # The current device, a thread's own.

    @property
    def index(self):
        """The number of the calling thread's current device."""
        return self.entered[-1]

    @property
    def entered(self):
        if not hasattr(self.current, "entered"):
            self.current.entered = [0]
        return self.current.entered

    # As CuPy, for the duration of a ``with``.

    @contextmanager
    def as_cupy(self, monkeypatch):
        """Be CuPy, in a process that has not yet asked for CUDA."""
        with monkeypatch.context() as patch, self:
            patch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=ndarray))
            patch.setitem(sys.modules, "cupyx", SimpleNamespace(empty_pinned=_empty_pinned(self)))
            patch.setitem(sys.modules, "array_api_compat.cupy", self.namespace)
            rounding = SimpleNamespace(get_compute_type=lambda _: 0, set_compute_type=lambda *_: None)
            patch.setitem(sys.modules, "cupy._core", rounding)
            types_of = SimpleNamespace(COMPUTE_TYPE_TF32=1, COMPUTE_TYPE_DEFAULT=0)
            patch.setitem(sys.modules, "cupy._core._routines_linalg", types_of)
            patch.setattr(engine, "CudaLauncher", StandInLauncher)
            patch.setattr(array_api_compat, "cupy", self.namespace, raising=False)
            patch.setattr(device, "_cuda_process", None)
            device._probe.cache_clear()
            try:
                yield self
            finally:
                device._probe.cache_clear()


class CallersStream:
    """CuPy's current stream: what is queued in it is done at once, by the calling thread."""

    clock = 0.0

    def __init__(self, machine):
        self.machine, self.queue = machine, SimpleNamespace(put=lambda task: task())

    def wait_event(self, event):
        self.machine.called("streamWaitEvent")
        if event.ticket is not None:
            event.ticket.wait()

    def synchronize(self):
        self.machine.called("streamSynchronize")


def _empty_pinned(machine):
    def empty_pinned(shape, dtype):
        return machine.pinned(int(np.prod(shape)) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)

    return empty_pinned


# --- arrays


def _values(machine, operation, operand):
    """Return what NumPy is to compute with; whatever CuPy would refuse is refused."""
    if isinstance(operand, tuple | list):
        return type(operand)(_values(machine, operation, each) for each in operand)
    if isinstance(operand, np.ndarray):
        raise TypeError(f"Unsupported type {type(operand)}")
    if not isinstance(operand, ndarray):
        return operand
    if operand.index != machine.index:
        raise ValueError(
            f"{operation}: Array device must be same as the current device: array device = {operand.index} while "
            f"current = {machine.index}"
        )
    return np.asarray(operand.values)


class ndarray:  # noqa: N801  # CuPy's name
    """An array on a device."""

    __module__ = "cupy"
    __hash__ = None

    def __init__(self, values, machine, index):
        self.values, self.machine, self.index = values, machine, index

    def __array_namespace__(self, *, api_version=None):
        return self.machine.namespace

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, *_, **__):
        return NotImplemented

    def _view(self, values):
        return ndarray(values, self.machine, self.index)

    dtype = property(lambda self: self.values.dtype)
    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    nbytes = property(lambda self: self.values.nbytes)
    strides = property(lambda self: self.values.strides)
    flags = property(lambda self: self.values.flags)
    device = property(lambda self: self.machine.namespace.cuda.Device(self.index))
    T = property(lambda self: self._view(self.values.T))
    mT = property(lambda self: self._view(self.values.mT))  # noqa: N815

    def view(self, dtype):
        return self._view(self.values.view(dtype))

    def reshape(self, *shape):
        return self._view(self.values.reshape(*shape))

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        values = self.values[key]
        if not isinstance(values, np.ndarray):  # a number of NumPy's, where CuPy has a 0-d array
            values = self.values[(*key, ...) if isinstance(key, tuple) else (key, ...)]
        return self._view(values)

    def __setitem__(self, key, other):
        self.machine.called("memcpyDtoD")
        target, source = _values(self.machine, "memcpyDtoD", (self, other))
        target[key] = source

    def get(self, order="C"):
        with self.machine.namespace.cuda.Device(self.index):
            self.machine.called("memcpyDtoH")
            return np.array(self.values, order=order, copy=True, subok=False)

    def set(self, host, stream):
        """Queue a copy from page-locked memory, which neither side is kept for."""
        machine = self.machine
        machine.called("memcpyAsync")
        right = isinstance(host, Pinned) and host.shape == self.shape and host.dtype == self.dtype
        if not (right and host.flags.c_contiguous and self.flags.c_contiguous):
            machine.faults.append(f"{type(host)} {host.strides} copied to {self.strides}")
        stream.queue.put(partial(machine._copy, unowned(host), unowned(self.values), host.size, stream))

    def _scalar(self, kind):
        with self.machine.namespace.cuda.Device(self.index):
            self.machine.called("memcpyDtoH")
        return kind(self.values.item())


for _kind in (int, float, bool):
    setattr(ndarray, f"__{_kind.__name__}__", lambda self, kind=_kind: self._scalar(kind))


def _operator(name, ufunc, *, swapped=False):
    def operate(self, other):
        if not isinstance(other, ndarray | int | float | np.generic):
            return NotImplemented
        pair = (other, self) if swapped else (self, other)
        return self.machine.array(ufunc(*_values(self.machine, name, pair)), name)

    return operate


def _in_place(name, ufunc):
    def operate(self, other):
        machine = self.machine
        machine.called(name)
        target, operand = _values(machine, name, (self, other))
        ufunc(target, operand, out=target)
        return self

    return operate


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow", "eq", "ne", "lt", "le", "gt", "ge"):
    _function = getattr(operator, _name)
    setattr(ndarray, f"__{_name}__", _operator(_name, _function))
    setattr(ndarray, f"__r{_name}__", _operator(_name, _function, swapped=True))
for _name, _ufunc in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply), ("truediv", np.divide)):
    setattr(ndarray, f"__i{_name}__", _in_place(_name, _ufunc))
ndarray.__neg__ = lambda self: self.machine.array(-_values(self.machine, "negative", self), "negative")
ndarray.__invert__ = lambda self: self.machine.array(~_values(self.machine, "invert", self), "invert")


# --- the namespace


class _Namespace(types.ModuleType):
    """`array_api_compat.cupy`, on a machine's devices; what is not written out below is NumPy's."""

    def __getattr__(self, name):
        function = getattr(np, name)
        if isinstance(function, type) or not callable(function):
            return function

        def call(*operands, **options):
            machine = self.machine
            operands = _values(machine, name, operands)
            with np.errstate(all="ignore"):
                return machine.array(function(*operands, **options), name)

        setattr(self, name, call)
        return call


def _namespace(machine):
    xp = _Namespace("array_api_compat.cupy")
    xp.machine, xp.ndarray = machine, ndarray

    def asarray(array, dtype=None, device=None, copy=None):
        with nullcontext() if device is None else xp.cuda.Device(device.id):
            if not isinstance(array, ndarray):
                array = np.asarray(array, dtype=dtype)
                machine.largest = max(machine.largest, array.nbytes)
                return machine.array(array, "memcpyHtoD")
            here, cast = array.index == machine.index, dtype is not None and np.dtype(dtype) != array.dtype
            if here and not cast and not copy:
                return array
            return machine.array(array.values.astype(dtype or array.dtype), "astype" if here else "memcpyPeer")

    xp.asarray = asarray
    xp.empty = lambda shape, dtype=float: machine.array(np.empty(shape, dtype), "malloc")
    xp.ones = lambda shape, dtype=float: machine.array(np.ones(shape, dtype), "ones")
    xp.zeros = lambda shape, dtype=float: machine.array(np.zeros(shape, dtype), "zeros")
    xp.matrix_transpose = lambda array: array._view(array.values.mT)
    xp.reshape = lambda array, shape: array._view(array.values.reshape(shape))
    dtypes = {name: getattr(np, name) for name in ("bool", "int32", "int64", "uint8", "float32", "float64")}
    xp.__array_namespace_info__ = lambda: SimpleNamespace(dtypes=lambda **_: dtypes)
    pool = SimpleNamespace(
        free_bytes=lambda: 0,
        used_bytes=lambda: machine.taken("memory", machine.index),
        total_bytes=lambda: machine.taken("memory", machine.index),
        get_limit=lambda: machine.limits[machine.index],
        set_limit=lambda size: machine.limits.update({machine.index: size - machine.limits[machine.index]}),
        free_all_blocks=lambda: machine.called("free"),
    )
    xp.get_default_memory_pool = lambda: pool
    xp.get_default_pinned_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: machine.called("freeHost"))
    xp.cuda = _cuda(machine)
    return xp


def _cuda(machine):
    class Device:
        __hash__ = None

        def __init__(self, index=None):
            self.id = machine.index if index is None else index

        def __eq__(self, other):
            return self.id == other.id

        def __enter__(self):
            machine.called("setDevice")
            machine.entered.append(self.id)
            return self

        def __exit__(self, *_):
            machine.entered.pop()

    def counted():
        machine.called("getDeviceCount")
        return machine.devices

    def free():
        machine.called("memGetInfo")
        room = machine.memory["memory"]
        return room - machine.taken("memory", machine.index), room

    def stream(*, non_blocking):
        assert non_blocking, "a plain stream waits for the default one"
        machine.called("streamCreate")
        machine.streams.append(SimulatedStream(machine, "copy"))
        return machine.streams[-1]

    def event(*, block, disable_timing):
        machine.called("eventCreate")
        return SimulatedEvent(machine, not disable_timing)

    return SimpleNamespace(
        Device=Device,
        Stream=stream,
        Event=event,
        get_current_stream=lambda _: CallersStream(machine),
        get_elapsed_time=lambda start, end: 1e3 * machine.elapsed(start, end),
        pinned_memory=SimpleNamespace(is_memory_pinned=machine.is_pinned),
        runtime=SimpleNamespace(
            getDeviceCount=counted,
            memGetInfo=free,
            driverGetVersion=lambda: 13_000,
            runtimeGetVersion=lambda: 13_000,
            getDeviceProperties=lambda index: {"name": b"Simulated %d" % index, "totalGlobalMem": 2**30},
        ),
    )


# --- launches


_ONE_AT_A_TIME = threading.Lock()
"""For kernels that are compiled here count through their threads in global variables."""


class StandInLauncher(HostLauncher):
    """The launches of `xpnet.cuda` on a machine: kernels compiled here, products NumPy's, a graph one call."""

    def __init__(self, place, *, tf32=False):
        super().__init__(place, tf32=tf32)
        self.xp, self.machine = place.xp, place.xp.machine
        self.capturing = False

    def empty(self, shape, dtype):
        return self.xp.empty(shape, dtype=dtype)

    def _launched(self, function, *arguments):
        self.machine.called("launch")
        values = [each if hasattr(each, "source") else _values(self.machine, "launch", each) for each in arguments]
        with _ONE_AT_A_TIME:
            function(*values)

    def kernel(self, kernel, inputs, outputs):
        self.machine.called("compile")
        return super().kernel(kernel, inputs, outputs)

    def product(self, left, right, out):
        self.machine.called("matmul")
        call = partial(self._launched, np.matmul, left, right, out)
        call()
        return call

    def address(self, array):
        return array.values.ctypes.data

    def copy(self, arrays, into):
        self.machine.called("memcpyDtoD")
        super().copy([array.values for array in arrays], into.values)

    def graph(self, calls):
        self.machine.called("graphInstantiate")
        return super().graph(calls)
