"""The selector, where arrays live, and every reason that CUDA may give for not working.

The reasons are met for real where the machine can: without CuPy in an interpreter that lacks it, and without a driver
in one that has CuPy (name one in ``XPNET_CUPY_PYTHON``). A stand-in that fails as CUDA's run-time does gives the rest.
"""

import importlib.util
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xpnet import device
from xpnet.errors import ArgumentError, DeviceFallbackWarning, DeviceMismatchError, DeviceUnavailableError

ROOT = Path(__file__).parents[1]

VALUES = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=np.float32)


# --- places: (name in the test's id) -> a function from a NumPy array to one there


def torch_array(values):
    return pytest.importorskip("torch").asarray(values.copy())


def jax_array(values):
    jax = pytest.importorskip("jax")
    return jax.numpy.asarray(values, device=jax.devices("cpu")[0])


def strict_array(values, name="CPU_DEVICE"):
    strict = pytest.importorskip("array_api_strict")
    return strict.asarray(values, device=strict.Device(name))


def strict_device1_array(values):
    return strict_array(values, "device1")


MAKERS = {
    "numpy": np.asarray,
    "torch": torch_array,
    "jax": jax_array,
    "strict": strict_array,
    "strict_device1": strict_device1_array,
}

# What each maker's place should be called: the namespace's module and the device's name.
EXPECTED = {
    "numpy": ("numpy", "cpu"),
    "torch": ("array_api_compat.torch", "cpu"),
    "jax": ("jax.numpy", "cpu"),
    "strict": ("array_api_strict", "CPU_DEVICE"),
    "strict_device1": ("array_api_strict", "device1"),
}

everywhere = pytest.mark.parametrize("library", MAKERS)
to_everywhere = pytest.mark.parametrize("target", MAKERS)


# --- a stand-in for CuPy, reached through array_api_compat.cupy as the real one is


class CudaError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError: a message, and the status that CUDA returned."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


def raising(error):
    def raise_it(*_):
        raise error

    return raise_it


class StandInDevice:
    """As cupy.cuda.Device: a number and a context, equal by number and not hashable."""

    __hash__ = None

    def __init__(self, index):
        self.id = index

    def __eq__(self, other):
        return self.id == other.id

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that installs a CuPy whose parts behave as given, and forgets every earlier probe."""

    def install(count=1, driver=13000, runtime=13020, kernel=None):
        def get_device_count():
            calls.append("getDeviceCount")
            if isinstance(count, Exception):
                raise count
            return count

        calls = []
        cuda_runtime = SimpleNamespace(
            getDeviceCount=get_device_count,
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: runtime,
            getDeviceProperties=lambda index: {"name": b"NVIDIA Stand-in %d" % index, "totalGlobalMem": 80 * 2**30},
        )
        cupy = SimpleNamespace(
            __name__="array_api_compat.cupy",
            cuda=SimpleNamespace(runtime=cuda_runtime, Device=StandInDevice),
            float32=np.float32,
            ones=np.ones,
            tanh=raising(kernel) if kernel else np.tanh,
        )
        monkeypatch.setitem(sys.modules, "array_api_compat.cupy", cupy)
        return calls

    monkeypatch.delenv("XPNET_CPU_FALLBACK", raising=False)
    device._probe.cache_clear()
    yield install
    device._probe.cache_clear()


NO_DRIVER = CudaError(35, "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")
NO_DEVICE = CudaError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")


def run_python(code, python=sys.executable, path=()):
    """Run code in a fresh interpreter that raises on every warning, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]), "XPNET_CPU_FALLBACK": "0"}
    command = [python, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- importing


def test_importing_the_module_imports_no_array_library_but_numpy():
    loaded = run_python("import sys, xpnet.device; print(*sys.modules)").split()
    assert not {"cupy", "torch", "jax"} & set(loaded)


def test_importing_the_module_leaves_the_slow_numpy_wrapper_for_later():
    loaded = run_python("import sys, xpnet.device; print(*sys.modules)").split()
    assert "array_api_compat.numpy" not in loaded


# --- place_of, resolve(None) and resolve("cpu")


@everywhere
def test_an_array_lives_in_its_own_namespace_and_device(library):
    place = device.place_of(MAKERS[library](VALUES))
    assert (place.xp.__name__, place.name) == EXPECTED[library]


@everywhere
def test_no_device_is_where_x_lives(library):
    X = MAKERS[library](VALUES)
    assert device.resolve(None, X) == device.place_of(X)


@everywhere
def test_cpu_is_numpy_wherever_x_lives(library):
    assert device.resolve("cpu", MAKERS[library](VALUES)) is device.HOST


@pytest.mark.parametrize("value", [None, [[1.0]], 3.0, np.float32(3.0), "text", object()])
def test_what_is_not_an_array_lives_on_the_host(value):
    assert device.place_of(value) is device.HOST


def test_a_memmap_lives_on_the_host(tmp_path):
    assert device.place_of(np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(2, 3))) is device.HOST


def test_a_data_frame_lives_on_the_host():
    assert device.place_of(pytest.importorskip("pandas").DataFrame({"a": [1.0]})) is device.HOST


def test_an_hdf5_data_set_lives_on_the_host(tmp_path):
    with pytest.importorskip("h5py").File(tmp_path / "x.h5", "w") as file:
        assert device.place_of(file.create_dataset("X", data=VALUES)) is device.HOST


@everywhere
def test_only_numpy_places_are_numpy(library):
    assert device.place_of(MAKERS[library](VALUES)).is_numpy == (library == "numpy")


@everywhere
def test_equal_places_hash_alike(library):
    places = {device.place_of(MAKERS[library](VALUES)) for _ in range(2)}
    assert len(places) == 1


def test_places_of_cupy_can_be_hashed_although_its_devices_cannot(stand_in):
    stand_in(count=2)
    assert len({device.resolve("cuda"), device.resolve("cuda:0"), device.resolve("cuda:1")}) == 2


def test_the_host_survives_pickling():
    assert pickle.loads(pickle.dumps(device.HOST)) == device.HOST


@everywhere
def test_a_place_without_cuda_is_active_in_an_empty_context(library):
    place = device.place_of(MAKERS[library](VALUES))
    with place.active():
        assert device.place_of(place.asarray(VALUES)) == place


# --- moving


@everywhere
@to_everywhere
def test_an_array_goes_anywhere_and_comes_back_the_same(library, target):
    there = device.place_of(MAKERS[target](VALUES))
    moved = there.asarray(MAKERS[library](VALUES))
    assert device.place_of(moved) == there
    np.testing.assert_array_equal(device.to_host(moved), VALUES, strict=True)


@everywhere
@to_everywhere
def test_an_array_is_cast_on_the_way(library, target):
    there = device.place_of(MAKERS[target](VALUES))
    moved = there.asarray(MAKERS[library](VALUES.astype(np.int32)), dtype=device.check_dtype(there, "float32"))
    np.testing.assert_array_equal(device.to_host(moved), VALUES, strict=True)


@to_everywhere
def test_a_list_goes_anywhere(target):
    there = device.place_of(MAKERS[target](VALUES))
    moved = there.asarray(VALUES.tolist(), dtype=device.check_dtype(there, "float32"))
    np.testing.assert_array_equal(device.to_host(moved), VALUES, strict=True)


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


AWKWARD = {
    "read_only": read_only,
    "big_endian": lambda values: values.astype(">f4"),
    "reversed": lambda values: values[::-1].copy()[::-1],
    "columns_together": np.asfortranarray,
}


@to_everywhere
@pytest.mark.parametrize("kind", AWKWARD)
def test_an_awkward_numpy_array_goes_anywhere(target, kind):
    moved = device.place_of(MAKERS[target](VALUES)).asarray(AWKWARD[kind](VALUES))
    np.testing.assert_array_equal(device.to_host(moved), VALUES)


@everywhere
def test_an_array_that_is_here_already_is_not_copied(library):
    here = device.place_of(MAKERS[library](VALUES))
    X = MAKERS[library](VALUES)
    same = here.asarray(X, dtype=device.check_dtype(here, "float32"))
    assert np.shares_memory(device.to_host(same), device.to_host(X))


def test_a_numpy_array_is_its_own_host_array():
    assert device.to_host(VALUES) is VALUES


def test_the_layout_survives_the_move_to_torch():
    torch = pytest.importorskip("torch")
    moved = device.place_of(torch.zeros(1)).asarray(np.asfortranarray(VALUES), dtype=torch.float64)
    assert moved.mT.is_contiguous()


def test_a_tensor_that_requires_grad_is_detached():
    torch = pytest.importorskip("torch")
    X = torch.ones(2, requires_grad=True)
    assert not device.place_of(X).asarray(X).requires_grad
    np.testing.assert_array_equal(device.to_host(X), np.ones(2, dtype=np.float32), strict=True)


def test_bfloat16_reaches_the_host_as_float32():
    torch = pytest.importorskip("torch")
    host = device.to_host(torch.ones(2, dtype=torch.bfloat16))
    np.testing.assert_array_equal(host, np.ones(2, dtype=np.float32), strict=True)


# --- dtypes


@everywhere
@pytest.mark.parametrize("name", ["float32", "int32", "uint8", "bool"])
def test_a_dtype_has_one_name_everywhere(library, name):
    assert device.dtype_name(MAKERS[library](np.ones(2, dtype=name))) == name


def test_a_foreign_byte_order_does_not_change_the_name():
    assert device.dtype_name(np.ones(2, dtype=">f8")) == "float64"


@pytest.mark.parametrize(
    ("library", "name"),
    [(library, name) for library in MAKERS for name in ("float32", "float64") if (library, name) != ("jax", "float64")],
)
def test_check_dtype_returns_the_dtype_of_that_name(library, name):
    place = device.place_of(MAKERS[library](VALUES))
    assert device.dtype_name(place.xp.zeros(1, dtype=device.check_dtype(place, name))) == name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "double", None, np.float32, np.dtype("float64")])
def test_any_other_dtype_is_refused_with_the_two(dtype):
    with pytest.raises(ArgumentError, match=r'^dtype must be "float32" or "float64"; got ') as caught:
        device.check_dtype(device.HOST, dtype)
    assert repr(dtype) in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), "Float64", "float 64"])
def test_a_dtype_spelled_otherwise_is_met_with_the_right_spelling(dtype):
    with pytest.raises(ArgumentError, match=r'Did you mean "float64"\?$'):
        device.check_dtype(device.HOST, dtype)


def test_float64_on_jax_says_how_to_enable_it():
    place = device.place_of(jax_array(VALUES))
    message = (
        r'^dtype="float64" needs 64-bit floats, and jax.numpy on cpu has none. Run jax.config.update\("jax_enable_'
    )
    with pytest.raises(ArgumentError, match=message):
        device.check_dtype(place, "float64")


def test_float64_on_jax_works_once_enabled():
    pytest.importorskip("jax")
    code = """
import jax
jax.config.update("jax_enable_x64", True)
from xpnet import device
place = device.place_of(jax.numpy.zeros(1))
print(place.asarray([1.0], dtype=device.check_dtype(place, "float64")).dtype)
"""
    assert run_python(code) == "float64"


def test_float64_where_the_device_has_none_says_so():
    place = device.place_of(strict_array(VALUES, "no_float64"))
    with pytest.raises(ArgumentError, match=r'array_api_strict on no_float64 has none. Use dtype="float32".$'):
        device.check_dtype(place, "float64")


# --- the selector's errors


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("gpu", "cuda"),
        ("GPU:1", "cuda:1"),
        ("CUDA", "cuda"),
        ("cuda0", "cuda:0"),
        ("cudda", "cuda"),
        ("CPU", "cpu"),
        ("Auto", "auto"),
    ],
)
def test_a_device_spelled_otherwise_is_met_with_the_right_spelling(wrong, right):
    message = f"""device must be "cpu", "cuda", "cuda:N" or "auto", or None for where X lives; got '{wrong}'."""
    with pytest.raises(ArgumentError) as caught:
        device.resolve(wrong)
    assert str(caught.value) == f'{message} Did you mean "{right}"?'


@pytest.mark.parametrize("wrong", ["", "mps", "cuda:", "cuda:-1", "cuda:one", "cuda:1 ", 0, True, ("cuda",)])
def test_an_unknown_device_is_refused_with_what_is_allowed(wrong):
    with pytest.raises(ArgumentError, match=r'^device must be "cpu", "cuda", "cuda:N" or "auto", or None') as caught:
        device.resolve(wrong)
    assert repr(wrong) in str(caught.value)


def test_a_torch_device_is_refused_with_its_spelling():
    with pytest.raises(ArgumentError, match=r'Did you mean "cuda:1"\?$'):
        device.resolve(pytest.importorskip("torch").device("cuda:1"))


# --- the probe: what the machine really lacks

PRINT_ERROR = """
from xpnet import device, errors
try:
    device.resolve("cuda")
except errors.DeviceUnavailableError as error:
    print(error)
"""

NOT_INSTALLED = (
    'device="cuda" needs CuPy, which is not installed. Run: pip install "xpnet[cuda13]", or use device="cpu".'
)
NO_DRIVER_HERE = (
    'device="cuda" needs an NVIDIA driver, and there is none. Install one from https://www.nvidia.com/drivers '
    '(in a container, start it with --gpus all), or use device="cpu".'
)


def cupy_python():
    """Return an interpreter that has CuPy on a machine that has no driver, or skip."""
    named = os.environ.get("XPNET_CUPY_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy: install it, or name an interpreter that has it in XPNET_CUPY_PYTHON")
    return sys.executable


def test_cuda_without_cupy_says_so():
    # Where CuPy is installed, None in sys.modules is Python's own way of making it not so.
    hide = "import sys; sys.modules['cupy'] = None\n" if importlib.util.find_spec("cupy") else ""
    assert run_python(hide + PRINT_ERROR) == NOT_INSTALLED


def test_cuda_without_a_driver_says_so():
    python = cupy_python()
    version = "import cupy; print(cupy.cuda.runtime.driverGetVersion())"
    if run_python(version, python) != "0":
        pytest.skip("this machine has an NVIDIA driver")
    assert run_python(PRINT_ERROR, python) == NO_DRIVER_HERE


def test_a_cupy_that_cannot_be_imported_says_so(tmp_path):
    package = tmp_path / "cupy"
    package.mkdir()
    banner = (
        "raise ImportError('=====\\nFailed to import CuPy.\\n=====') from ImportError('libcudart.so.13: no such file')"
    )
    (package / "__init__.py").write_text(banner)
    assert run_python(PRINT_ERROR, path=[tmp_path]) == (
        'device="cuda" needs CuPy, which is installed but cannot be imported '
        "(ImportError: libcudart.so.13: no such file). "
        'Run: pip uninstall -y cupy cupy-cuda12x cupy-cuda13x && pip install "xpnet[cuda13]", or use device="cpu".'
    )


def test_a_package_that_cupy_lacks_is_not_taken_for_cupy(tmp_path):
    (tmp_path / "cupy.py").write_text("import a_package_that_cupy_needs")
    assert "No module named 'a_package_that_cupy_needs'" in run_python(PRINT_ERROR, path=[tmp_path])


def test_a_warning_from_cupys_import_is_not_an_error(tmp_path):
    # With two CuPy packages installed, importing CuPy warns; run_python makes warnings errors.
    source = (
        "import warnings; warnings.warn('multiple CuPy packages are installed'); raise ImportError('the next line')"
    )
    (tmp_path / "cupy.py").write_text(source)
    assert "(ImportError: the next line)" in run_python(PRINT_ERROR, path=[tmp_path])


# --- the probe: what a stand-in pretends


def test_cuda_with_an_old_driver_gives_both_versions(stand_in):
    stand_in(count=NO_DRIVER, driver=12040, runtime=13020)
    assert device.cuda_problem() == (
        "needs a newer NVIDIA driver: this one is for CUDA 12.4 and CuPy for CUDA 13.2. "
        'Update the driver, or run: pip uninstall -y cupy-cuda13x && pip install "xpnet[cuda12]"'
    )


def test_a_driver_older_than_every_cupy_can_only_be_updated(stand_in):
    stand_in(count=NO_DRIVER, driver=11080, runtime=12090)
    assert device.cuda_problem() == (
        "needs a newer NVIDIA driver: this one is for CUDA 11.8 and CuPy for CUDA 12.9. Update the driver"
    )


def test_no_driver_is_told_from_an_old_one(stand_in):
    stand_in(count=NO_DRIVER, driver=0)
    assert device.cuda_problem().startswith("needs an NVIDIA driver, and there is none. Install one from ")


@pytest.mark.parametrize("count", [NO_DEVICE, 0])
def test_cuda_without_a_gpu_says_so(stand_in, count):
    stand_in(count=count)
    assert device.cuda_problem() == (
        "needs a GPU, and the NVIDIA driver finds none. Look at: nvidia-smi; echo $CUDA_VISIBLE_DEVICES"
    )


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcublas.so.13: cannot open shared object file"),
        RuntimeError("Failure finding libnvrtc.so.13"),
        OSError("libnvrtc.so.13: cannot open shared object file"),
    ],
)
def test_missing_cuda_libraries_give_the_reason_and_the_extra(stand_in, error):
    stand_in(kernel=error, runtime=12090)
    assert device.cuda_problem() == (
        f"needs CUDA's libraries, and CuPy cannot use them here ({type(error).__name__}: {error}). "
        'Run: pip install "cupy-cuda12x[ctk]"'
    )


@pytest.mark.parametrize("error", [CudaError(999, "an error\nthat is unknown"), MemoryError("out of memory")])
def test_any_other_failure_is_told_in_its_own_words_on_one_line(stand_in, error):
    stand_in(kernel=error)
    text = str(error).replace("\n", " ")
    assert device.cuda_problem() == (
        f"failed its test ({type(error).__name__}: {text}). "
        'Look at: nvidia-smi; python -c "import cupy; cupy.show_config()"'
    )


@pytest.mark.parametrize(("count", "found"), [(1, "1 CUDA device"), (2, "2 CUDA devices")])
def test_a_device_that_is_not_there_is_met_with_how_many_are(stand_in, count, found):
    stand_in(count=count)
    with pytest.raises(DeviceUnavailableError) as caught:
        device.resolve("cuda:7")
    assert str(caught.value) == (
        f'device="cuda:7" does not exist: this machine has {found}, counted from 0. '
        f'Use device="cuda:{count - 1}", or use device="cpu".'
    )


def test_cuda_is_probed_once(stand_in):
    calls = stand_in(count=NO_DEVICE)
    assert device.cuda_problem() == device.cuda_problem(0)
    assert len(calls) == 1


# --- what the selector makes of the probe


@pytest.mark.parametrize(
    ("asked", "name"), [("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("auto", "cuda:0")]
)
def test_cuda_that_works_is_cupy_on_that_device(stand_in, asked, name):
    stand_in(count=2)
    place = device.resolve(asked)
    assert (place.xp.__name__, place.name, place.device.id) == ("array_api_compat.cupy", name, int(name[-1]))


def test_auto_without_cuda_is_the_host(stand_in):
    stand_in(count=NO_DEVICE)
    assert device.resolve("auto") is device.HOST


def test_cuda_without_cuda_raises(stand_in):
    stand_in(count=NO_DEVICE)
    with pytest.raises(DeviceUnavailableError, match=r'^device="cuda:1" needs a GPU, .*, or use device="cpu".$'):
        device.resolve("cuda:1")


def test_the_fallback_is_the_host_and_one_warning(stand_in, monkeypatch):
    monkeypatch.setenv("XPNET_CPU_FALLBACK", "1")
    stand_in(count=NO_DEVICE)
    with pytest.warns(DeviceFallbackWarning, match=r'^device="cuda" needs a GPU, .* so the CPU is used.$') as caught:
        assert device.resolve("cuda") is device.HOST
    assert len(caught) == 1


def test_the_fallback_is_not_used_where_cuda_works(stand_in, monkeypatch):
    monkeypatch.setenv("XPNET_CPU_FALLBACK", "1")
    stand_in()
    assert device.resolve("cuda").name == "cuda:0"


def test_auto_falls_back_without_a_warning(stand_in, monkeypatch):
    monkeypatch.setenv("XPNET_CPU_FALLBACK", "1")
    stand_in(count=NO_DEVICE)
    with warnings.catch_warnings(record=True) as caught:
        device.resolve("auto")
    assert caught == []


# --- devices()


def test_the_first_device_is_the_cpu_with_its_usable_cores(stand_in):
    stand_in(count=NO_DEVICE)
    first = device.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert (first.name, first.available, first.problem) == ("cpu", True, None)
    assert repr(first) == f"<cpu: NumPy {np.__version__}, {cores} cores>"


def test_cuda_that_does_not_work_is_one_entry_with_the_reason(stand_in):
    stand_in(count=NO_DEVICE)
    _, cuda = device.devices()
    assert (cuda.name, cuda.available) == ("cuda", False)
    assert repr(cuda).startswith("<cuda: unavailable, needs a GPU, and the NVIDIA driver finds none.")


def test_every_cuda_device_is_an_entry(stand_in):
    stand_in(count=2)
    assert repr(device.devices()[1:]) == "[<cuda:0: NVIDIA Stand-in 0, 80 GiB>, <cuda:1: NVIDIA Stand-in 1, 80 GiB>]"


# --- same_place


@everywhere
def test_host_arrays_go_with_any_others(library):
    X = MAKERS[library](VALUES)
    device.same_place(("X", X), ("Y", VALUES), ("sample_weight", None), ("validation X", [1.0]), ("validation Y", X))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("torch", "jax", "X is in torch on cpu, Y in jax.numpy on cpu. Move Y to torch on cpu"),
        ("jax", "strict", "X is in jax.numpy on cpu, Y in array_api_strict on CPU_DEVICE. Move Y to jax.numpy on cpu"),
        (
            "strict",
            "strict_device1",
            "X is in array_api_strict on CPU_DEVICE, Y in array_api_strict on device1. "
            "Move Y to array_api_strict on CPU_DEVICE",
        ),
    ],
)
def test_arrays_in_two_places_are_refused_with_both(first, second, message):
    X, Y = MAKERS[first](VALUES), MAKERS[second](VALUES)
    with pytest.raises(DeviceMismatchError) as caught:
        device.same_place(("X", X), ("weight", VALUES), ("Y", Y))
    tail = ", or pass it as a NumPy array, which is moved for you."
    assert str(caught.value) == f"X and Y must live together: {message}{tail}"


# --- a real GPU


@pytest.mark.cuda
def test_cuda_is_cupy_on_the_first_gpu(cuda):
    place = device.resolve("cuda")
    X = place.asarray(VALUES)
    assert (place.name, place.is_numpy) == ("cuda:0", False)
    assert device.place_of(X) == place == device.resolve(None, X)


@pytest.mark.cuda
@everywhere
def test_an_array_goes_to_the_gpu_and_comes_back_the_same(cuda, library):
    there = device.resolve("cuda")
    X = there.asarray(MAKERS[library](VALUES.astype(np.int32)), dtype=device.check_dtype(there, "float64"))
    np.testing.assert_array_equal(device.to_host(X), VALUES.astype(np.float64), strict=True)


@pytest.mark.cuda
@to_everywhere
def test_an_array_goes_from_the_gpu_to_anywhere(cuda, target):
    there = device.place_of(MAKERS[target](VALUES))
    moved = there.asarray(device.resolve("cuda").asarray(VALUES))
    assert device.place_of(moved) == there
    np.testing.assert_array_equal(device.to_host(moved), VALUES, strict=True)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", AWKWARD)
def test_an_awkward_numpy_array_goes_to_the_gpu(cuda, kind):
    X = device.resolve("cuda").asarray(AWKWARD[kind](VALUES))
    np.testing.assert_array_equal(device.to_host(X), VALUES)


@pytest.mark.cuda
def test_the_layout_survives_the_gpu_and_the_way_back(cuda):
    X = device.resolve("cuda").asarray(np.asfortranarray(VALUES))
    assert X.flags.f_contiguous
    assert device.to_host(X).flags.f_contiguous


@pytest.mark.cuda
def test_an_array_on_the_gpu_is_not_copied(cuda):
    place = device.resolve("cuda")
    X = place.asarray(VALUES)
    assert place.asarray(X, dtype=place.xp.float32) is X


@pytest.mark.cuda
def test_a_tensor_on_the_gpu_is_shared_with_cupy(cuda):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")
    tensor = torch.ones((2, 3), device="cuda", requires_grad=True)
    assert device.resolve("cuda").asarray(tensor).data.ptr == tensor.data_ptr()


@pytest.mark.cuda
def test_the_gpu_is_current_while_its_place_is_active(cuda):
    place = device.resolve("cuda")
    with place.active(), place.active():
        assert device.place_of(place.xp.zeros(1)) == place


@pytest.mark.cuda
def test_a_cupy_x_with_a_foreign_y_is_refused(cuda):
    X = device.resolve("cuda").asarray(VALUES)
    with pytest.raises(DeviceMismatchError, match=r"X is in cupy on cuda:0, Y in torch on cpu"):
        device.same_place(("X", X), ("Y", torch_array(VALUES)))


@pytest.mark.cuda
def test_a_gpu_past_the_last_does_not_exist(cuda):
    count = device.resolve("cuda").xp.cuda.runtime.getDeviceCount()
    with pytest.raises(
        DeviceUnavailableError, match=rf'^device="cuda:{count}" does not exist: this machine has {count} '
    ):
        device.resolve(f"cuda:{count}")


@pytest.mark.cuda
def test_every_gpu_is_listed(cuda):
    count = device.resolve("cuda").xp.cuda.runtime.getDeviceCount()
    assert [info.name for info in device.devices()] == ["cpu", *(f"cuda:{index}" for index in range(count))]
