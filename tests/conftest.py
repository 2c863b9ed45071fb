"""Fixtures: every namespace that is installed, each on a device of its own, and the GPU."""

import importlib
import importlib.util
import os
import signal
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from xpnet.device import HOST, Place, cuda_problem, place_of

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it runs in the background so, and the commands that tests start and interrupt inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--soak``, which runs the long versions of what is short by default: all the kills, the whole minutes."""
    parser.addoption("--soak", action="store_true", help="the long versions of tests, hours in all")


def pytest_configure(config: pytest.Config) -> None:
    """Have Hypothesis make up the same examples in every run, and twenty times as many, new ones, in a long one."""
    soak = bool(config.getoption("--soak"))
    settings.register_profile(
        "xpnet", deadline=None, database=None, derandomize=not soak, max_examples=2_000 if soak else 100
    )
    settings.load_profile("xpnet")


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether a test is to be run at its full length."""
    return bool(request.config.getoption("--soak"))


@dataclass(frozen=True)
class Backend:
    """A namespace and a device, with a way to bring arrays there."""

    name: str
    place: Place
    read_only: bool = False

    @property
    def xp(self) -> Any:
        return self.place.xp

    def has(self, dtype: str) -> bool:
        """Whether arrays here can be of that dtype; NumPy 2.0 has no inspection and has them all."""
        if self.place.is_numpy:
            return True
        return dtype in self.xp.__array_namespace_info__().dtypes(device=self.place.device)

    def asarray(self, array: Any, dtype: str | None = None) -> Any:
        host = np.array(array, dtype=dtype)
        if self.read_only:
            host.flags.writeable = False
            return host
        return self.place.asarray(host)


def _strict(device: str) -> Place:
    strict = importlib.import_module("array_api_strict")
    return place_of(strict.zeros(1, dtype=strict.float32, device=strict.Device(device)))


def _cuda() -> Place:
    problem = cuda_problem()
    if problem is not None:
        message = f'device="cuda" {problem}'
        if os.environ.get("XPNET_REQUIRE_CUDA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    cupy = importlib.import_module("cupy")
    return place_of(cupy.zeros(1))


def _installed(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


def _jax() -> Place:
    jax = _installed("jax")
    return place_of(jax.numpy.zeros(1))


BACKENDS = {
    "numpy": lambda: Backend("numpy", HOST),
    "numpy-read-only": lambda: Backend("numpy-read-only", HOST, read_only=True),
    "strict": lambda: Backend("strict", _strict("CPU_DEVICE")),
    "strict-device1": lambda: Backend("strict-device1", _strict("device1")),
    "strict-no-float64": lambda: Backend("strict-no-float64", _strict("no_float64")),
    "torch": lambda: Backend("torch", place_of(_installed("torch").zeros(1))),
    "jax": lambda: Backend("jax", _jax()),
    "cupy": lambda: Backend("cupy", _cuda()),
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.cuda) if name == "cupy" else name for name in BACKENDS])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every namespace, each with a device."""
    return BACKENDS[request.param]()


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest, backend: Backend) -> str:
    """Every float dtype that the backend's device has."""
    if not backend.has(request.param):
        pytest.skip(f"{backend.name} has no {request.param}")
    return request.param


@pytest.fixture
def cuda() -> Place:
    """The first CUDA device; without one the test is skipped, or fails where ``XPNET_REQUIRE_CUDA=1``."""
    return _cuda()


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that is the same in every run."""
    return np.random.default_rng(2024)
