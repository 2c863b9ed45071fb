"""The front door: the public names, what importing costs, and the rows of the house."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import xpnet

OPTIONAL = {
    "cupy",
    "cupyx",
    "torch",
    "jax",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "polars",
    "h5py",
    "zarr",
    "matplotlib",
    "onnx",
}
MODULES = sorted(module.name for module in pkgutil.iter_modules(xpnet.__path__) if module.name != "__main__")


def test_the_public_names_are_these():
    assert sorted(xpnet.__all__) == [
        "Activation",
        "Loader",
        "Network",
        "activations",
        "callbacks",
        "datasets",
        "devices",
        "errors",
        "features",
        "fit",
        "gradient_check",
        "initializers",
        "load",
        "optimizers",
        "plot",
        "schedules",
        "verify",
    ]


@pytest.mark.parametrize("name", xpnet.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(xpnet, name).__doc__


def _modules_after(statement):
    code = f"{statement}\nimport sys; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_xpnet_imports_no_optional_package():
    assert not _modules_after("import xpnet") & OPTIONAL


def test_training_on_numpy_imports_no_optional_package():
    assert not _modules_after("import xpnet; xpnet.fit(*xpnet.datasets.flower(40), epochs=1, verbose=False)") & OPTIONAL


def test_importing_xpnet_leaves_out_what_only_some_fits_need():
    # tqdm and threadpoolctl cost 20 ms, NumPy's random 15 ms: each is imported where it is used.
    assert not _modules_after("import xpnet") & {"tqdm", "threadpoolctl", "array_api_compat.numpy"}


def test_every_error_is_an_xpnet_error_and_a_built_in_one():
    found = [value for value in vars(xpnet.errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    errors = [error for error in found if not issubclass(error, Warning) and error is not xpnet.errors.XpnetError]
    assert len(errors) > 10
    assert all(issubclass(error, xpnet.errors.XpnetError) and len(error.__mro__) > 4 for error in errors)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    module = importlib.import_module(f"xpnet.{name}")
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0
