"""A network as an ONNX model: another runtime, which shares nothing with xpnet, gives its probabilities."""

# ruff: noqa: ARG005, PLW0108, PLR0124, RUF034, C416  # activations as people write them, and worse

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

import xpnet
from xpnet.errors import ActivationError, ArgumentError, MissingPackageError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from xpnet import onnx as exported  # noqa: E402  # the module, beside the package of its name

TASKS = ["binary", "multiclass", "multilabel", "regression", "count"]
DEPTHS = [(), (6,), (6, 5), (6, 5, 4)]

# Promised: of outputs above 1, relative. Two libraries' exp and tanh differ by a few ε, which four layers carry on.
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}


def problem(task="binary", m=60):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3, m))
    score = X[0] * X[-1] + X[1]
    Y = {
        "binary": np.where(score > 0, "yes", "no"),
        "multiclass": np.digitize(score, [-0.5, 0.5]),
        "multilabel": np.stack([score > 0, X[0] > 0]).astype(int),
        "regression": np.stack([score, X[0] - X[1]]),
        "count": rng.poisson(np.exp(0.5 * score)),
    }[task]
    return X, Y


def trained(task="binary", **options):
    options = {"hidden": 6, "epochs": 5, "random_state": 0, "learning_rate": 0.02, "task": task, **options}
    return xpnet.fit(*problem(task), **options)


def session(net, folder):
    net.to_onnx(folder / "net.onnx")
    return onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])


def output(net, X, folder):
    """Return what ONNX Runtime makes of the examples X, (n_x, m), as (n_y, m)."""
    run = session(net, folder)
    wanted = {"tensor(float)": np.float32, "tensor(double)": np.float64}[run.get_inputs()[0].type]
    return run.run(None, {"X": X.T.astype(wanted)})[0].T


def assert_same(found, net, X):
    expected = net.predict_proba(X)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[net.dtype], atol=TOLERANCE[net.dtype])


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", DEPTHS, ids=str)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("activation", xpnet.activations.ACTIVATIONS)
def test_another_runtime_gives_the_same_probabilities(activation, task, hidden, dtype, tmp_path):
    net = trained(task, activation=activation, hidden=hidden, dtype=dtype)
    X = problem(m=100)[0]
    assert_same(output(net, X, tmp_path), net, X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", TASKS)
def test_features_are_standardized_in_the_model(task, dtype, tmp_path):
    X, Y = problem(task)
    X = X * [[1e3], [1e-3], [1.0]] + [[5e4], [0.0], [-3.0]]
    net = xpnet.fit(X, Y, task=task, hidden=6, epochs=5, random_state=0, standardize=True, dtype=dtype)
    assert_same(output(net, X, tmp_path), net, X)


def test_time_stamps_keep_their_digits(tmp_path):
    X, Y = problem()
    X = 1.7e9 + X  # seconds, which float32 knows to 128
    net = xpnet.fit(X, Y, hidden=6, epochs=5, random_state=0, standardize=True)
    assert_same(output(net, X, tmp_path), net, X)


@pytest.mark.parametrize("m", [1, 2, 100])
def test_a_batch_has_any_number_of_rows(m, tmp_path):
    net = trained()
    X = problem(m=100)[0][:, :m]
    assert_same(output(net, X, tmp_path), net, X)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("activation", xpnet.activations.ACTIVATIONS)
def test_extreme_examples_give_no_nan_where_the_network_gives_none(activation, task, tmp_path):
    net = trained(task, activation=activation)
    X = np.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    assert_same(output(net, X, tmp_path), net, X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["softplus", "elu"])
def test_small_numbers_keep_their_digits(activation, dtype, tmp_path):
    # log(1 + e^Z) of Z = −30 is 1e-13, which is 0 by the plain formula, and e^Z − 1 of Z = −1e-5 has half its digits.
    net = trained("regression", activation=activation, dtype=dtype)
    n_y, n_h = net.layers[-1].W.shape
    first = type(net.layers[0])(np.eye(n_h, 3, dtype=dtype), np.zeros((n_h, 1), dtype))
    last = type(net.layers[0])(np.ones((n_y, n_h), dtype), np.full((n_y, 1), -(n_h - 3) * np.log(2), dtype))
    if activation == "elu":
        last = last._replace(b=np.zeros((n_y, 1), dtype))
    net = dataclasses.replace(net, layers=(first, last))
    A = output(net, np.full((3, 1), -1e-5), tmp_path)
    np.testing.assert_allclose(A, net.predict_proba(np.full((3, 1), -1e-5)), rtol=2e-6 if dtype == "float32" else 1e-11)


def test_a_network_of_any_namespace_is_written(backend, tmp_path):
    X, Y = problem()
    net = xpnet.fit(backend.asarray(X, "float32"), Y, hidden=4, epochs=1, batch_size="full", random_state=0)
    assert net.device == backend.place.name
    assert_same(output(net, X, tmp_path), net.to("cpu"), X)


# The model ------------------------------------------------------------------------------------------------------------


def model(net, folder):
    net.to_onnx(folder / "net.onnx")
    return onnx.load(folder / "net.onnx")


@pytest.mark.parametrize("task", TASKS)
def test_the_checker_passes_the_model(task, tmp_path):
    onnx.checker.check_model(model(trained(task), tmp_path), full_check=True)


def test_the_model_says_its_operator_set_and_its_maker(tmp_path):
    made = model(trained(), tmp_path)
    assert [(opset.domain, opset.version) for opset in made.opset_import] == [("", 18)]
    assert (made.ir_version, made.producer_name, made.producer_version) == (8, "xpnet", xpnet.__version__)


@pytest.mark.parametrize(("task", "name"), [("binary", "probabilities"), ("count", "prediction")])
def test_the_input_is_rows_of_any_number_and_the_output_is_named(task, name, tmp_path):
    run = session(trained(task), tmp_path)
    (given,), (made,) = run.get_inputs(), run.get_outputs()
    assert (given.name, given.shape, given.type) == ("X", ["batch", 3], "tensor(float)")
    assert (made.name, made.shape) == (name, ["batch", 1])


def metadata(net, folder):
    return session(net, folder).get_modelmeta().custom_metadata_map


def test_the_metadata_holds_the_task_and_the_classes(tmp_path):
    found = metadata(trained(), tmp_path)
    assert (found["task"], json.loads(found["classes"]), found["activation"]) == ("binary", ["no", "yes"], "relu")


def test_the_metadata_holds_the_features_names(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame(problem()[0].T, columns=["a", "b", 'c "é"'])
    net = xpnet.fit(frame, problem()[1], examples="rows", epochs=1, random_state=0, verbose=False)
    assert json.loads(metadata(net, tmp_path)["feature_names"]) == ["a", "b", 'c "é"']


def test_numbers_have_no_classes_in_the_metadata(tmp_path):
    assert set(metadata(trained("regression"), tmp_path)) == {"task", "activation"}


def test_the_graph_has_the_names_of_the_equations_and_no_transpose(tmp_path):
    graph = model(trained(hidden=(5, 4), activation="tanh"), tmp_path).graph
    made = {name for node in graph.node for name in node.output}
    assert {"Z1", "A1", "Z2", "A2", "Z3", "A3"} <= made
    assert {constant.name for constant in graph.initializer} >= {"W1", "b1", "W2", "b2", "W3", "b3"}
    assert "Transpose" not in {node.op_type for node in graph.node}


# A user's own activation ----------------------------------------------------------------------------------------------

OWN = {
    "cube": (lambda Z: Z**3, lambda Z, A: 3 * Z**2),
    "bent": (lambda Z: np.sqrt(1.0 + Z * Z), lambda Z, A: Z / A),
    "softplus by logaddexp": (lambda Z: np.logaddexp(0.0, Z), lambda Z, A: 1 / (1 + np.exp(-Z))),
    "hard tanh": (lambda Z: np.clip(Z, -1.0, 1.0), lambda Z, A: np.where(np.abs(Z) < 1.0, 1.0, 0.0)),
    "masked": (lambda Z: (Z > 0) * Z, lambda Z, A: (Z > 0).astype(Z.dtype)),
    "both masks": (
        lambda Z: np.where((Z > -2.0) & ~(Z > 2.0), Z, 0.0),
        lambda Z, A: np.where(np.abs(Z) < 2.0, 1.0, 0.0),
    ),
    "sinh and its kin": (
        lambda Z: np.sinh(Z / 4) - np.square(Z) / np.cosh(Z),
        lambda Z, A: np.cosh(Z / 4) / 4 - 2 * Z / np.cosh(Z) + np.square(Z) * np.tanh(Z) / np.cosh(Z),
    ),
    "NumPy's own function": (np.tanh, lambda Z, A: 1 - A * A),
    "a float64 number": (lambda Z: np.float64(0.5) * Z, lambda Z, A: np.full_like(Z, 0.5)),
    "written in place": (lambda Z: _in_place(Z), lambda Z, A: np.full_like(Z, 2.0)),
}


def _in_place(Z):
    A = Z + Z
    A += 1.0
    return A


@pytest.mark.parametrize("name", OWN)
def test_an_activation_of_ones_own_is_written_from_numpys_functions(name, tmp_path):
    net = trained(activation=xpnet.Activation(*OWN[name], name=name))
    X = problem(m=100)[0]
    np.testing.assert_allclose(output(net, X, tmp_path), net.predict_proba(X), atol=TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["erf", "expit"])
def test_scipys_special_functions_are_written(name, tmp_path):
    function = getattr(pytest.importorskip("scipy.special"), name)
    slopes = {"erf": lambda Z, A: 2 / np.sqrt(np.pi) * np.exp(-Z * Z), "expit": lambda Z, A: A * (1 - A)}
    net = trained(activation=xpnet.Activation(function, slopes[name]))
    X = problem(m=100)[0]
    np.testing.assert_allclose(output(net, X, tmp_path), net.predict_proba(X), atol=TOLERANCE["float32"])


UNWRITABLE = {
    "sinc": lambda Z: np.sinc(Z),
    "looks": lambda Z: Z if Z.max() > 1e30 else 1.0 * Z,
    "cumulative": lambda Z: np.cumsum(Z, axis=-1) * 0.0 + Z,
    "list": lambda Z: np.array([[value for value in row] for row in Z]),
    "mixing": lambda Z: Z + 0.0 * np.sum(Z, axis=-1, keepdims=True),
    "array": lambda Z: Z * np.ones((1, 1)),
    "logic": lambda Z: Z if (Z == Z) else Z,
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_an_activation_that_onnx_cannot_compute_is_refused_by_name(name, tmp_path):
    net = dataclasses.replace(trained(), activation=xpnet.Activation(UNWRITABLE[name], np.ones_like, name=name))
    with pytest.raises(ActivationError, match=f"^The activation '{name}' must be one that ONNX can compute, but "):
        net.to_onnx(tmp_path / "net.onnx")


# The file -------------------------------------------------------------------------------------------------------------


def test_a_file_that_was_there_stays_when_the_network_cannot_be_written(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    net = dataclasses.replace(trained(), activation=xpnet.Activation(np.sinc, np.ones_like))
    with pytest.raises(ActivationError):
        net.to_onnx(path)
    assert path.read_bytes() == b"before"


def test_nothing_is_left_beside_the_file(tmp_path):
    trained().to_onnx(str(tmp_path / "net.onnx"))
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nothing was changed"):
        trained().to_onnx(tmp_path / "nowhere" / "net.onnx")


def test_a_device_is_not_replaced():
    with pytest.raises(ArgumentError, match="is a pipe, a socket or a device"):
        trained().to_onnx(os.devnull)


def test_a_path_that_is_none_is_refused():
    with pytest.raises(ArgumentError, match="path must be the path of a file"):
        trained().to_onnx(None)


def test_more_than_a_model_holds_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(exported, "LARGEST", 100)
    with pytest.raises(ArgumentError, match=r"2 GiB at most.*net\.save"):
        trained().to_onnx(tmp_path / "net.onnx")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r'needs onnx.*pip install "xpnet\[onnx\]"'):
        trained().to_onnx(tmp_path / "net.onnx")
