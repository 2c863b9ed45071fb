"""Where arrays live: the device selector, and the only door to CuPy besides ``xpnet.cuda``.

A `Place` is a namespace and one of its devices. `resolve` turns ``device=`` into one, `place_of` reads it off an
array, and `Place.asarray` brings any array there. Nothing here imports CuPy until somebody asks for CUDA, and
nothing imports PyTorch or JAX at all: they are recognized by the arrays that a caller brings.
"""

import functools
import importlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import (
    array_namespace,
    is_array_api_obj,
    is_cupy_array,
    is_dask_array,
    is_jax_array,
    is_numpy_array,
    is_torch_array,
)
from array_api_compat import device as device_of

from xpnet.arguments import nearest
from xpnet.errors import (
    ArgumentError,
    DeviceFailedError,
    DeviceFallbackWarning,
    DeviceFullError,
    DeviceMismatchError,
    DeviceUnavailableError,
)
from xpnet.typing import Array, Namespace

_NUMPY = "numpy"
_CUPY = "array_api_compat.cupy"

_INSTALL = 'pip install "xpnet[cuda13]"'

_NO_GPU = "needs a GPU, and the NVIDIA driver finds none. Look at: nvidia-smi; echo $CUDA_VISIBLE_DEVICES"

# cudaError_t, from CUDA's driver_types.h.
_INSUFFICIENT_DRIVER = 35
_DEVICES_UNAVAILABLE = 46
_NO_DEVICE = 100

_NO_ROOM = (
    *("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED"),
)
"""What CUDA's run-time, its driver and cuBLAS call a lack of memory that CuPy does not tell as a `MemoryError`. cuBLAS
gets its workspace past CuPy's pool, and "is not initialized" where the pool has left too little for it."""

_BUSY = "is in use by another process, which has it for itself"

_FORKED = (
    "cannot be used in a forked process, and process {parent} had started CUDA before it forked this one. Start "
    'processes with multiprocessing.get_context("spawn"), or start CUDA only after the fork'
)


@dataclass(frozen=True)
class Place:
    """Where arrays live: a namespace and one of its devices.

    Attributes
    ----------
    namespace : str
        The module's name, ``"numpy"``, ``"array_api_compat.cupy"`` or ``"jax.numpy"``. NumPy 2 is an Array API
        namespace itself; ``array_api_compat.numpy`` would cost 0.1 s to import and a wrapper around each call.
    device : object
        The namespace's own device; ``"cpu"`` for NumPy.
    name : str
        The device for people: ``"cpu"``, ``"cuda:0"``, ``"device1"``.
    """

    namespace: str
    device: Any = field(hash=False)  # CuPy's cannot be hashed; equal places have equal names all the same
    name: str

    @property
    def xp(self) -> Namespace:
        """The Array API namespace, a module."""
        return importlib.import_module(self.namespace)

    @property
    def is_numpy(self) -> bool:
        """Whether arrays here are plain NumPy arrays."""
        return self.namespace == _NUMPY

    def __str__(self) -> str:
        return f"{self.namespace.removeprefix('array_api_compat.')} on {self.name}"

    def asarray(self, array: Array, *, dtype: Any = None) -> Array:
        """Bring any array here, casting on the way; memory is shared where that is possible.

        Parameters
        ----------
        array : array of any shape
            From any namespace and device, or anything that NumPy can read.
        dtype : str or dtype of this namespace, optional
            Such as ``"float32"``; None keeps the array's own.

        Returns
        -------
        array of the same shape
            Not a copy when `array` is here already with that dtype. Outside PyTorch's graph: never requires grad.
        """
        theirs = place_of(array)
        if isinstance(dtype, str):
            dtype = getattr(self.xp, dtype)
        if self.is_numpy:
            array = to_host(array)
        elif theirs.namespace == self.namespace:
            array = _detached(array)
        elif self.namespace == _CUPY and theirs.name.startswith("cuda"):
            array = self.xp.from_dlpack(_detached(array))  # shares the GPU's memory
        else:
            array = _readable(to_host(array), self.namespace)
        return self.xp.asarray(array, dtype=dtype, device=self.device)

    @property
    def is_cuda(self) -> bool:
        """Whether arrays here are in a GPU's memory, which is fed through pinned memory and knows what is free."""
        return self.namespace == _CUPY

    def room(self) -> int | None:
        """Return the bytes free on this device; None where memory is the host's, which has its own ways to say no.

        What CuPy's pool holds in reserve counts as free, and what its limit forbids does not.
        """
        if not self.is_cuda:
            return None
        with self.active():
            pool = self.xp.get_default_memory_pool()
            free = int(self.xp.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
            limit = int(pool.get_limit())
            return min(free, limit - int(pool.used_bytes())) if limit else free

    def release(self) -> None:
        """Give the memory that CuPy's pools hold in reserve back to the device and the host."""
        if self.is_cuda:
            with self.active():
                self.xp.get_default_memory_pool().free_all_blocks()
                self.xp.get_default_pinned_memory_pool().free_all_blocks()

    def active(self) -> AbstractContextManager[object]:
        """Return a context in which new arrays and kernels go to this device; CuPy alone needs one.

        Raises
        ------
        DeviceUnavailableError
            CUDA was started before this process was forked, where it would hang or fail at random.
        DeviceFullError
            Memory ran out within the ``with``, where taking fewer columns does not help.
        DeviceFailedError
            CUDA failed within the ``with``, for another reason than a lack of memory.
        """
        return self._cuda_active() if self.is_cuda else nullcontext()

    @contextmanager
    def multiplying(self, *, tf32: bool) -> Iterator[None]:
        """Have CuPy round the factors of float32 products to TF32's 11 bits, or not, for the duration of a ``with``.

        CuPy's setting, also that of ``CUPY_TF32`` in the environment, is the process's: of several that overlap, the
        first has its way.
        """
        if not self.is_cuda:
            yield
            return
        with _TF32.held(tf32):
            yield

    @contextmanager
    def _cuda_active(self) -> Iterator[None]:
        _start_cuda()
        if (problem := _forked()) is not None:
            raise DeviceUnavailableError(f'device="{self.name}" {problem}, or use device="cpu".')
        try:
            with self.xp.cuda.Device(self.device.id):
                yield
        except Exception as error:
            if not _is_cudas(error):
                raise
            if is_full(error):
                raise DeviceFullError(
                    f"{self} must have room for what is computed there; it has not ({reason(error)}). End what else "
                    "uses that memory, which nvidia-smi shows, or take fewer hidden units."
                ) from error
            raise DeviceFailedError(
                f"{self} must work until the end; CUDA failed ({reason(error)}). What was computed there is lost. "
                "Look at nvidia-smi and dmesg, and start a new process: a fit with checkpoint= goes on from its last."
            ) from error


HOST = Place(_NUMPY, "cpu", "cpu")
"""NumPy on the CPU."""


class Setting:
    """A setting of the whole process, for all who need it at the same time.

    The first to come sets it and the last to go puts back what was there, whichever threads they are in; so does a
    process that is forked meanwhile, of which they are no part. Ctrl-C changes none of it.

    Parameters
    ----------
    change : callable
        ``change(value)`` sets it, and returns what puts it back, once or again.
    """

    def __init__(self, change: Callable[[Any], Callable[[], object]]) -> None:
        self._change, self._lock, self._users = change, threading.Lock(), 0
        self._put_back: Callable[[], object] | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def held(self, value: Any) -> Iterator[None]:
        """Hold the setting at a value, or at the one that somebody holds it at already."""
        counted = [0]  # emptied by whoever takes it off the users, so that it is done once
        try:
            with self._lock:
                if self._put_back is None:
                    self._put_back = self._change(value)
                self._users, counted[0] = self._users + 1, 1
            yield
        finally:
            to_the_end(functools.partial(self._leave, counted))

    def _leave(self, counted: list[int]) -> None:
        with self._lock:
            self._users, counted[0] = self._users - counted[0], 0
            if self._users == 0 and self._put_back is not None:
                self._put_back()
                self._put_back = None

    def _forget(self) -> None:
        """Put back what the threads hold that a fork has left behind."""
        self._lock, self._users = threading.Lock(), 0
        if self._put_back is not None:
            self._put_back()
            self._put_back = None


def to_the_end(function: Callable[[], object]) -> None:
    """Call what may be called again until it has come to its end; Ctrl-C on the way is raised afterwards."""
    late, done = None, False
    while not done:
        try:
            function()
            done = True
        except KeyboardInterrupt as error:
            late = error
    if late is not None:
        raise late


def _let_round(tf32: bool) -> Callable[[], object]:
    core, types = (importlib.import_module(name) for name in ("cupy._core", "cupy._core._routines_linalg"))
    before = core.get_compute_type(np.float32)
    core.set_compute_type(np.float32, types.COMPUTE_TYPE_TF32 if tf32 else types.COMPUTE_TYPE_DEFAULT)
    return functools.partial(core.set_compute_type, np.float32, before)


_TF32 = Setting(_let_round)
"""Whether CuPy's float32 products may round to TF32."""


def place_of(array: Array) -> Place:
    """Return where an array lives; what is not an Array API array lives on the host.

    Parameters
    ----------
    array : array of any shape, or any object
        Lists, data frames, HDF5 data sets and Dask's lazy arrays are read through NumPy, so they are at `HOST`.
    """
    if not is_array_api_obj(array) or is_numpy_array(array) or is_dask_array(array):
        return HOST
    namespace, device = array_namespace(array).__name__, device_of(array)
    return Place(namespace, device, f"cuda:{device.id}" if namespace == _CUPY else _foreign_name(device))


def resolve(device: str | None, array: Array = None) -> Place:
    """Return the place that ``device=`` asks for: the selector.

    Parameters
    ----------
    device : {None, "cpu", "cuda", "cuda:N", "auto"}
        None is where `array` lives; ``"cuda"`` is ``"cuda:0"``; ``"auto"`` is CUDA when it works and the CPU when not.
    array : array of any shape, optional
        Looked at only when `device` is None.

    Returns
    -------
    Place

    Raises
    ------
    ArgumentError
        If `device` is anything else.
    DeviceUnavailableError
        If CUDA is asked for by name and cannot be used. With ``XPNET_CPU_FALLBACK=1`` in the environment this is a
        `DeviceFallbackWarning` and the CPU instead.
    """
    if device is None:
        return place_of(array)
    if device == "cpu":
        return HOST
    if device == "auto":
        return HOST if cuda_problem() else _cuda_place(0)
    index = _cuda_index(device)
    if index is None:
        allowed = 'device must be "cpu", "cuda", "cuda:N" or "auto", or None for where X lives'
        raise ArgumentError(f"{allowed}; got {device!r}.{_nearest_device(device)}")
    problem = cuda_problem(index)
    if problem is None:
        return _cuda_place(index)
    if os.environ.get("XPNET_CPU_FALLBACK") != "1":
        raise DeviceUnavailableError(f'device="{device}" {problem}, or use device="cpu".')
    message = f'device="{device}" {problem}. XPNET_CPU_FALLBACK=1 is set, so the CPU is used.'
    warnings.warn(message, DeviceFallbackWarning, stacklevel=3)  # the line that called fit, which called this
    return HOST


def is_full(error: BaseException) -> bool:
    """Return whether an exception says that there is no memory left, which work on fewer columns may need less of."""
    return isinstance(error, MemoryError) or (_is_cudas(error) and str(error).startswith(_NO_ROOM))


def has_failed(error: BaseException) -> bool:
    """Return whether an exception says that CUDA failed, for another reason than a lack of memory."""
    return _is_cudas(error) and not is_full(error)


def reason(error: BaseException) -> str:
    """Return an exception on one line; its cause when it has one, since CuPy wraps the real one in a banner."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split()).removesuffix('.')}"


def to_host(array: Array) -> npt.NDArray[Any]:
    """Return any array as a NumPy array, without a copy where its memory is the host's.

    Parameters
    ----------
    array : array of any shape
        From any namespace and device, or anything that NumPy can read.

    Returns
    -------
    NumPy array of the same shape
        To be read only: it may share the memory of `array`. PyTorch's bfloat16, which NumPy lacks, becomes float32.
    """
    if is_torch_array(array):
        exact = array.float() if dtype_name(array) == "bfloat16" else array
        return np.asarray(exact.numpy(force=True))
    if is_cupy_array(array):
        with place_of(array).active():
            return np.asarray(array.get(order="A"))  # keeps the layout, which its default "C" pays a transpose to lose
    if is_numpy_array(array) or is_jax_array(array) or not hasattr(array, "__array_namespace__"):
        return np.asarray(array)
    return np.from_dlpack(array)  # array-api-strict refuses np.asarray outside its CPU device


def dtype_name(array: Array) -> str:
    """Return the name of an array's dtype, ``"float32"`` or ``"bool"``, the same in every namespace."""
    name: str = getattr(array.dtype, "name", str(array.dtype))
    return name.rpartition(".")[2]


def check_dtype(place: Place, dtype: str) -> Any:
    """Return the namespace's dtype of that name, when parameters can have it there.

    Parameters
    ----------
    place : Place
        Where the parameters will live.
    dtype : {"float32", "float64"}
        Half precisions are refused: the cost's sum over columns would lose the small gradients.

    Raises
    ------
    ArgumentError
        If `dtype` is anything else, or is float64 where the device has none.
    """
    names = ("float32", "float64")
    if not isinstance(dtype, str) or dtype not in names:
        near = nearest(getattr(dtype, "__name__", str(dtype)), names)
        raise ArgumentError(f'dtype must be "float32" or "float64"; got {dtype!r}.{near}')
    xp = place.xp
    if (
        dtype == "float64"
        and not place.is_numpy
        and dtype not in xp.__array_namespace_info__().dtypes(device=place.device)
    ):
        enable = 'Run jax.config.update("jax_enable_x64", True) before making X, or use'
        mend = enable if place.namespace.startswith("jax") else "Use"
        raise ArgumentError(f'dtype="float64" needs 64-bit floats, and {place} has none. {mend} dtype="float32".')
    return getattr(xp, dtype)


def same_place(*named: tuple[str, Array]) -> None:
    """Check that arrays live together; those on the host may be anywhere, since they are moved.

    Parameters
    ----------
    *named : tuple of str and array
        What a message calls the array, and the array; None and lists count as the host's.

    Raises
    ------
    DeviceMismatchError
        If two of them live in different namespaces or on different devices.
    """
    placed = [(name, place) for name, array in named if (place := place_of(array)) != HOST]
    for name, place in placed[1:]:
        first_name, first = placed[0]
        if place != first:
            raise DeviceMismatchError(
                f"{first_name} and {name} must live together: {first_name} is in {first}, {name} in {place}. "
                f"Move {name} to {first}, or pass it as a NumPy array, which is moved for you."
            )


@dataclass(frozen=True)
class DeviceInfo:
    """One device of this machine, for people.

    Attributes
    ----------
    name : str
        What ``device=`` takes: ``"cpu"``, ``"cuda:0"``; ``"cuda"`` when there is none that works.
    description : str
        What computes there.
    available : bool
        Whether it can be used now.
    problem : str or None
        Why not, and the command that mends it.
    """

    name: str
    description: str
    available: bool
    problem: str | None

    def __repr__(self) -> str:
        return f"<{self.name}: {self.description if self.available else f'unavailable, {self.problem}'}>"


def devices() -> list[DeviceInfo]:
    """Return this machine's devices: the CPU, then every CUDA device or the reason why there is none.

    Returns
    -------
    list of DeviceInfo

    Examples
    --------
    >>> import xpnet
    >>> xpnet.devices()[0].name
    'cpu'
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpu = DeviceInfo("cpu", f"NumPy {np.__version__}, {cores} cores", available=True, problem=None)
    problem = cuda_problem()
    if problem:
        return [cpu, DeviceInfo("cuda", "CuPy", available=False, problem=problem)]
    return [cpu, *map(_cuda_info, range(_cupy().cuda.runtime.getDeviceCount()))]


def cuda_problem(index: int = 0) -> str | None:
    """Return why a CUDA device cannot be used and the command that mends it, or None when it works.

    Parameters
    ----------
    index : int
        The device's number, counted from 0.

    Returns
    -------
    str or None
        A sentence without its subject and full stop: it follows ``device="cuda"`` in an error. Probed once per
        process and kept, so a mend needs a new process; only a device in use by another process is probed anew.
    """
    problem = _forked() or _probe(index)
    if problem is not None and problem.startswith(_BUSY):
        _probe.cache_clear()
    return problem


_cuda_process: int | None = None
"""The process in which CUDA was started; one that it forks cannot use CUDA."""


def _start_cuda() -> None:
    """Note in which process CUDA is used first."""
    global _cuda_process  # noqa: PLW0603  # CUDA's own state is the process's too
    if _cuda_process is None:
        _cuda_process = os.getpid()


def _forked() -> str | None:
    """Return why CUDA cannot be used here when it was started in a process that this one was forked from.

    CUDA itself fails there with an error of its own at best; at worst it waits for a thread that the fork left behind.
    """
    return None if _cuda_process in (None, os.getpid()) else _FORKED.format(parent=_cuda_process)


def _is_cudas(error: BaseException) -> bool:
    """Return whether an exception comes from CUDA or one of its libraries, by way of CuPy or of NVIDIA's own bindings.

    Such an exception has the status that was returned; but for that of CuPy's pool, which has found no memory.
    """
    from_cuda = type(error).__module__.startswith(("cupy", "nvmath"))
    return from_cuda and (hasattr(error, "status") or isinstance(error, MemoryError))


@functools.cache
def _probe(index: int) -> str | None:
    # CuPy warns on import, of two wheels or an optional library, about what the probe settles by trying.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cupy = _cupy()
        except Exception as error:  # a broken install can raise anything
            return _import_problem(error)
        try:
            count = cupy.cuda.runtime.getDeviceCount()
            _start_cuda()
            if index < count:
                _exercise(cupy, index)
                return None
        except Exception as error:  # each of CUDA's libraries has exceptions of its own
            return _runtime_problem(error, cupy.cuda.runtime)
    if count == 0:
        return _NO_GPU
    found = "1 CUDA device" if count == 1 else f"{count} CUDA devices"
    return f'does not exist: this machine has {found}, counted from 0. Use device="cuda:{count - 1}"'


def _exercise(cupy: Namespace, index: int) -> None:
    """Run one kernel compiled here and one of cuBLAS's: `is_available` proves neither library."""
    with cupy.cuda.Device(index):
        square = cupy.tanh(cupy.ones((2, 2), dtype=cupy.float32))
        float((square @ square)[0, 0])  # waits for the GPU, so that a failure is raised here


def _import_problem(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
        return f"needs CuPy, which is not installed. Run: {_INSTALL}"
    return (
        f"needs CuPy, which is installed but cannot be imported ({reason(error)}). "
        f"Run: pip uninstall -y cupy cupy-cuda12x cupy-cuda13x && {_INSTALL}"
    )


def _runtime_problem(error: Exception, runtime: Any) -> str:
    status = getattr(error, "status", None)  # every exception that reports a CUDA status has it, no other has
    if status == _INSUFFICIENT_DRIVER:
        return _driver_problem(runtime.driverGetVersion(), runtime.runtimeGetVersion())
    if status == _NO_DEVICE:
        return _NO_GPU
    if status == _DEVICES_UNAVAILABLE:
        return (
            f"{_BUSY} ({reason(error)}). Wait until nvidia-smi shows none there, take another GPU, or have it shared: "
            "nvidia-smi --compute-mode=DEFAULT"
        )
    if status is None and not isinstance(error, MemoryError):
        major = runtime.runtimeGetVersion() // 1000
        extra = f'pip install "cupy-cuda{major}x[ctk]"'
        return f"needs CUDA's libraries, and CuPy cannot use them here ({reason(error)}). Run: {extra}"
    return f'failed its test ({reason(error)}). Look at: nvidia-smi; python -c "import cupy; cupy.show_config()"'


def _driver_problem(driver: int, runtime: int) -> str:
    """Tell no driver, whose version is 0, from one too old for the runtime; both are ``1000 major + 10 minor``."""
    if driver == 0:
        return (
            "needs an NVIDIA driver, and there is none. "
            "Install one from https://www.nvidia.com/drivers (in a container, start it with --gpus all)"
        )
    has, needs = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, runtime))
    mend = "Update the driver"
    if driver // 1000 == 12 and runtime // 1000 == 13:
        mend += ', or run: pip uninstall -y cupy-cuda13x && pip install "xpnet[cuda12]"'
    return f"needs a newer NVIDIA driver: this one is for CUDA {has} and CuPy for CUDA {needs}. {mend}"


def _cupy() -> Namespace:
    return importlib.import_module(_CUPY)


def _cuda_index(device: object) -> int | None:
    """Return 0 for ``"cuda"``, N for ``"cuda:N"`` and None for anything else."""
    named = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", device) if isinstance(device, str) else None
    return int(named[1] or 0) if named else None


def _cuda_place(index: int) -> Place:
    return Place(_CUPY, _cupy().cuda.Device(index), f"cuda:{index}")


def _cuda_info(index: int) -> DeviceInfo:
    cupy, problem = _cupy(), cuda_problem(index)
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    gibibytes = properties["totalGlobalMem"] / 2**30
    description = f"{properties['name'].decode()}, {gibibytes:.0f} GiB"
    return DeviceInfo(f"cuda:{index}", description, available=problem is None, problem=problem)


def _foreign_name(device: object) -> str:
    text = str(device)
    strict = re.fullmatch(r"array_api_strict\.Device\('(\w+)'\)", text)
    if strict:
        return strict[1]
    return "cpu" if text in ("cpu:0", "TFRT_CPU_0") else text  # JAX's only CPU, by its names of today and before


def _nearest_device(device: object) -> str:
    spelled = str(device).strip().lower().replace("gpu", "cuda")
    return nearest(spelled, (spelled,) if _cuda_index(spelled) is not None else ("cpu", "cuda", "cuda:0", "auto"))


def _detached(array: Array) -> Array:
    return array.detach() if is_torch_array(array) and array.requires_grad else array


def _readable(host: npt.NDArray[Any], namespace: str) -> npt.NDArray[Any]:
    """Return a NumPy array that `namespace` can read, a copy only where it could not read this one.

    Only NumPy knows foreign byte orders. PyTorch refuses negative strides and warns of read-only memory, which DLPack
    could not hand on before NumPy 2.1; CuPy copies to the GPU anyway.
    """
    awkward = not host.flags.writeable or any(stride < 0 for stride in host.strides)
    if host.dtype.isnative and (namespace == _CUPY or not awkward):
        return host
    return host.astype(host.dtype.newbyteorder("="))
