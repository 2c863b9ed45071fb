"""The front door: the public names, what importing costs, and the rows of the house."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

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
    "dask",
    "distributed",
}
MODULES = sorted(module.name for module in pkgutil.iter_modules(xpnet.__path__) if module.name != "__main__")


def test_the_public_names_are_these():
    assert sorted(xpnet.__all__) == [
        "Activation",
        "Loader",
        "Network",
        "Parquet",
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


def test_every_dependency_has_a_lowest_and_a_highest_version():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *(word for words in project["optional-dependencies"].values() for word in words),
    ]
    unbounded = [word for word in needed if not re.search(r">=.*,<\d", word) and not word.startswith("xpnet[")]
    assert unbounded == []


# What is documented ---------------------------------------------------------------------------------------------------


def public():
    """Yield every public function, class and method by its name; properties say all in a sentence."""
    modules = [
        xpnet,
        xpnet.diagnosis,
        *(part for part in map(vars(xpnet).get, xpnet.__all__) if inspect.ismodule(part)),
    ]
    for module in modules:
        names = vars(module).get("__all__") or [name for name, value in vars(module).items() if inspect.isclass(value)]
        for name in names:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                yield from (
                    (f"{module.__name__}.{name}.{key}", method)
                    for key, method in vars(value).items()
                    if inspect.isfunction(method) and not key.startswith(("_", "on_"))  # a callback's are its module's
                )


PUBLIC = dict(public())
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
ERRORS = {name: value for name, value in CLASSES.items() if issubclass(value, Exception)}


def sections(value):
    """Return the sections of a numpydoc docstring."""
    return re.findall(r"^(\w[\w ]*)\n-+$", inspect.getdoc(value) or "", re.MULTILINE)


def test_all_that_is_public_is_looked_at():
    assert len(FUNCTIONS) > 35
    assert {"xpnet.fit", "xpnet.Network.predict", "xpnet.optimizers.adam", "xpnet.schedules.cosine"} <= set(FUNCTIONS)
    assert {"xpnet.Network", "xpnet.callbacks.EarlyStopping", "xpnet.errors.ShapeError"} <= set(CLASSES)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_first_line_is_a_sentence(name):
    first = inspect.getdoc(PUBLIC[name]).split("\n\n")[0]
    assert re.match(r"[A-Z]", first)
    assert re.search(r"([.:]|``)$", first)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_functions_docstring_has_its_sections(name):
    signature, found = inspect.signature(FUNCTIONS[name]), sections(FUNCTIONS[name])
    wanted = ["Parameters"] if set(signature.parameters) - {"self"} else []
    wanted += ["Returns"] if signature.return_annotation not in (None, inspect.Signature.empty) else []
    assert [section for section in found if section in wanted] == wanted
    assert "Examples" in found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_described(name):
    described = re.split(r"^Parameters\n-+$", inspect.getdoc(FUNCTIONS[name]), flags=re.MULTILINE)[-1]
    given = {key for key, it in inspect.signature(FUNCTIONS[name]).parameters.items() if it.kind is not it.VAR_KEYWORD}
    words = re.findall(r"^([\w, ]+?)(?: :.*)?$", described.split("\n\n")[0], re.MULTILINE)
    assert given - {"self"} <= {word.strip() for line in words for word in line.split(",")}


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - ERRORS.keys()))
def test_a_classs_docstring_has_its_sections(name):
    found = sections(CLASSES[name])
    assert {"Parameters", "Attributes"} & set(found) or issubclass(CLASSES[name], tuple)
    assert "Examples" in found


def test_the_errors_share_an_example():
    assert ">>>" in xpnet.errors.__doc__
    assert {name.removeprefix("xpnet.errors.") for name in ERRORS} <= set(re.findall(r"\w+", xpnet.errors.__doc__))


def test_the_examples_of_all_that_is_public_are_run():
    run = {test.name for name in MODULES for test in doctest.DocTestFinder().find(_module(name)) if test.examples}
    shown = {name for name, value in PUBLIC.items() if ">>>" in inspect.getdoc(value)}
    assert {f"{PUBLIC[name].__module__}.{PUBLIC[name].__qualname__}" for name in shown} <= run


def _module(name):
    return importlib.import_module(f"xpnet.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    failed, _ = doctest.testmod(_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
