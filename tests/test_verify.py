"""The checks that users run: they pass where the gradients are right, and fail, by name, where they are not."""

import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
from conftest import Backend

import xpnet
from xpnet.activations import ACTIVATIONS, Activation
from xpnet.device import HOST, place_of
from xpnet.errors import (
    ArgumentError,
    DataError,
    DeviceFallbackWarning,
    DeviceUnavailableError,
    ShapeError,
    TargetError,
)
from xpnet.heads import HEADS, TASK_HEADS
from xpnet.network import Network
from xpnet.targets import Task
from xpnet.typing import Layer
from xpnet.verify import GradientCheck, _verify, gradient_check, verify

SAME_ERROR = 1e-6  # two errors of 1e-3 from differences that are right to 1e-10
OFF = 1.01  # a slope that is wrong by one percent
TERMINAL = 80  # columns
NO_SUCH_GPU = "cuda:9999"  # on a machine with CUDA too

PAIRS = dict(ACTIVATIONS)  # as they are, also where a test has changed them

M = 60
LABELS = {
    "binary": lambda rng: rng.integers(0, 2, M),
    "multiclass": lambda rng: rng.integers(0, 3, M),
    "multilabel": lambda rng: rng.integers(0, 2, (3, M)),
    "regression": lambda rng: rng.standard_normal((3, M)),
    "count": lambda rng: rng.poisson(2.0, (3, M)),
}


def made(rng, task="multiclass", **options):
    """Return X, Y and a network of a few steps' training."""
    X, Y = rng.standard_normal((5, M)), LABELS[task](rng)
    settings = {"hidden": (4, 3), "activation": "tanh", "epochs": 2, "random_state": 0, "verbose": False} | options
    return X, Y, xpnet.fit(X, Y, task=task, **settings)


def spoiled(activation, factor=OFF):
    """Return an activation whose slope is wrong, past the check that a user's own goes through."""
    return replace(activation, dg=lambda Z, A, xp: factor * activation.dg(Z, A, xp=xp))


def one_column(W1, b1, activation, x):
    """Return a regression network with this hidden layer, untrained, and one example."""
    W1, b1 = np.array(W1), np.array(b1)[:, None]
    layers = (Layer(W1, b1), Layer(np.ones((1, W1.shape[0])), np.zeros((1, 1))))
    net = Network(layers, ACTIVATIONS[activation], Task("regression", None, 1))
    return net, np.array(x, dtype=float)[:, None], [0.5]


@pytest.fixture(autouse=True)
def _as_they_were():
    """Put the functions back in their order, in which messages list them."""
    mappings = [(mapping, dict(mapping)) for mapping in (ACTIVATIONS, HEADS, TASK_HEADS)]
    yield
    for mapping, original in mappings:
        mapping.clear()
        mapping.update(original)


@pytest.fixture
def few(_as_they_were):
    """Leave the smallest set of functions that `verify` can do with, for JAX takes 20 ms to compile each operation."""
    for mapping, kept in ((ACTIVATIONS, ("relu", "tanh")), (HEADS, ("softmax",)), (TASK_HEADS, ("multiclass",))):
        for name in set(mapping) - set(kept):
            del mapping[name]


# gradient_check -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_of_every_activation_passes(rng, activation):
    X, Y, net = made(rng, activation=activation)
    found = gradient_check(net, X, Y)
    assert found.passed
    assert found.parameters_checked == 4 * 6 + 3 * 5 + 3 * 4


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("hidden", [(), 4, (4, 3)])
def test_the_gradient_of_every_task_passes_with_weights_and_a_penalty(rng, task, hidden):
    X, Y, net = made(rng, task, hidden=hidden)
    assert gradient_check(net, X, Y, sample_weight=rng.random(M), l2=3.0).passed


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_slope_wrong_by_a_percent_fails_in_a_hidden_layer(rng, activation):
    X, Y, net = made(rng, activation=activation)
    found = gradient_check(replace(net, activation=spoiled(net.activation)), X, Y)
    assert not found.passed
    assert found.worst[:2] in ("W1", "b1", "W2", "b2")


def test_the_error_is_the_courses_formula(rng, monkeypatch):
    X, Y, net = made(rng, dtype="float64")
    weight = rng.random(M)
    given = net.layers, X, np.eye(3)[:, Y], "tanh", "softmax", weight / weight.mean(), 3.0 * M / weight.sum()
    right = np.concatenate([part.ravel() for layer in oracle.gradients(*given)[1] for part in layer])
    true_slope = oracle.DG["tanh"]
    monkeypatch.setitem(oracle.DG, "tanh", lambda Z: OFF * true_slope(Z))
    wrong = np.concatenate([part.ravel() for layer in oracle.gradients(*given)[1] for part in layer])
    expected = np.linalg.norm(wrong - right) / (np.linalg.norm(wrong) + np.linalg.norm(right))
    found = gradient_check(replace(net, activation=spoiled(net.activation)), X, Y, sample_weight=weight, l2=3.0)
    assert found.error == pytest.approx(expected, rel=SAME_ERROR)


def test_the_worst_parameter_is_named_by_layer_row_and_column():
    # One feature and one unit carry the gradient; the feature is above 1, so the weight's is larger than the bias's.
    net, X, Y = one_column([[0.1] * 9] * 4, [0.2] * 4, "tanh", [0, 0, 0, 0, 0, 0, 0, 3.0, 0])
    W2 = np.array([[0.0, 0.0, 0.0, 1.0]])
    net = replace(net, layers=(net.layers[0], Layer(W2, net.b2)), activation=spoiled(net.activation))
    assert gradient_check(net, X, Y).worst == "W1[3, 7]"
    assert "worst W1[3, 7]" in str(gradient_check(net, X, Y))


def test_a_z_at_the_corner_of_relu_is_skipped_and_counted():
    net, X, Y = one_column([[1.0], [-1.0]], [0.0, 0.0], "relu", [0.0])
    found = gradient_check(net, X, Y)
    assert (found.skipped, found.parameters_checked) == (2, 5)  # both of b1; x = 0 leaves Z where it is
    assert found.passed
    assert "2 skipped at corners" in repr(found)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "silu", "gelu", "identity"])
def test_a_smooth_activation_has_nothing_to_skip_at_zero(activation):
    found = gradient_check(*one_column([[1.0], [-1.0]], [0.0, 0.0], activation, [0.0]))
    assert found.skipped == 0
    assert found.passed


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("near", [1e-4, -1e-4, 2.5e-6])
def test_a_z_near_a_corner_is_checked_with_a_shorter_step(activation, near):
    found = gradient_check(*one_column([[1.0], [-1.0]], [near, near], activation, [0.0]))
    assert found.skipped == 0
    assert found.passed


def test_nothing_checked_is_not_passed():
    assert not GradientCheck(math.nan, 0, 7, "").passed


def test_no_more_than_count_parameters_are_checked_and_the_seed_draws_them(rng):
    X, Y, net = made(rng, hidden=50)
    wrong = replace(net, activation=spoiled(net.activation))
    first, again, other = (gradient_check(wrong, X, Y, count=20, random_state=seed) for seed in (0, 0, 1))
    assert first.parameters_checked == 20
    assert first == again
    assert first.error != other.error


def test_the_networks_scaling_is_used(rng):
    X, Y = 50.0 + 300.0 * rng.standard_normal((5, M)), rng.integers(0, 2, M)
    net = xpnet.fit(X, Y, hidden=4, activation="tanh", standardize=True, epochs=1, random_state=0, verbose=False)
    wrong = replace(net, activation=spoiled(net.activation))
    mean, deviation = net.scaling
    scaled = (X - mean[:, None]) / deviation[:, None]
    expected = gradient_check(replace(wrong, scaling=None), scaled, Y).error
    assert gradient_check(wrong, X, Y).error == pytest.approx(expected, rel=SAME_ERROR)
    assert gradient_check(net, X, Y).passed


def test_a_weight_of_two_counts_an_example_twice(rng):
    X, Y, net = made(rng)
    wrong = replace(net, activation=spoiled(net.activation))
    twice = np.r_[0, np.arange(M)]
    weight = np.ones(M)
    weight[0] = 2.0
    expected = gradient_check(wrong, X[:, twice], Y[twice], l2=1.0).error
    assert gradient_check(wrong, X, Y, sample_weight=weight, l2=1.0).error == pytest.approx(expected, rel=SAME_ERROR)


def test_rows_are_columns_turned(rng):
    X, Y, net = made(rng)
    assert gradient_check(net, X.T, Y, examples="rows") == gradient_check(net, X, Y)


def test_a_users_own_activation_is_checked(rng):
    cube = Activation(lambda Z: Z**3, lambda Z, _: 3.0 * Z**2, name="cube")
    X, Y, net = made(rng, activation=cube)
    assert gradient_check(net, X, Y).passed
    assert not gradient_check(replace(net, activation=spoiled(cube)), X, Y).passed


def test_large_features_do_not_blur_the_differences(rng):
    X, Y, net = made(rng)
    assert gradient_check(net, 1e3 * X, Y).passed


def test_networks_and_data_of_every_namespace_are_checked_in_float64(backend: Backend, rng):
    X, Y = backend.asarray(rng.standard_normal((3, 20)), "float32"), np.arange(20) % 2
    net = xpnet.fit(X, Y, hidden=2, standardize=True, epochs=1, batch_size="full", random_state=0, verbose=False)
    assert gradient_check(net, X, Y).passed


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda X, Y: {"X": X.T, "Y": Y}, ShapeError),
        (lambda X, Y: {"X": X[:-1], "Y": Y}, ShapeError),
        (lambda X, Y: {"X": X, "Y": Y + 7}, TargetError),
        (lambda X, Y: {"X": np.where(X > 2.0, np.nan, X), "Y": Y}, DataError),
        (lambda X, Y: {"X": X, "Y": Y, "sample_weight": -np.ones(M)}, DataError),
        (lambda X, Y: {"X": X, "Y": Y, "sample_weight": np.ones(M - 1)}, ShapeError),
        (lambda X, Y: {"X": X, "Y": Y, "examples": "lines"}, ArgumentError),
    ],
)
def test_what_cost_refuses_is_refused_in_the_same_words(rng, spoil, error):
    X, Y, net = made(rng)
    given = spoil(X, Y)
    with pytest.raises(error) as of_cost:
        net.cost(**given)
    with pytest.raises(error) as of_check:
        gradient_check(net, **given)
    assert str(of_check.value) == str(of_cost.value)


@pytest.mark.parametrize("wrong", [{"l2": -1.0}, {"count": 0}, {"count": 1.5}, {"random_state": -1}])
def test_a_number_out_of_range_is_refused_by_name(rng, wrong):
    X, Y, net = made(rng)
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        gradient_check(net, X, Y, **wrong)


def test_what_is_no_network_is_refused(rng):
    X, Y, net = made(rng)
    with pytest.raises(ArgumentError, match=r"takes a Network.*it is a tuple"):
        gradient_check(net.layers, X, Y)


# verify ---------------------------------------------------------------------------------------------------------------


def test_verify_passes_on_the_cpu_in_every_kind_and_dtype():
    found = verify()
    kinds = ["forward", "cost", "gradient", "one epoch"]
    assert [(check.kind, check.dtype) for check in found.checks] == [
        *((kind, dtype) for dtype in ("float32", "float64") for kind in kinds),
        ("differences", "float64"),
    ]
    assert found.passed
    assert found.device == "cpu"
    assert {check.cases for check in found.checks} == {9 * 4 * 3, 5}
    assert "all 9 checks passed" in repr(found)


def test_the_table_fits_a_terminal_and_has_a_row_for_each_check(monkeypatch):
    for name in set(ACTIVATIONS) - {"leaky_relu", "tanh"}:
        del ACTIVATIONS[name]
    ACTIVATIONS["leaky_relu"] = spoiled(ACTIVATIONS["leaky_relu"])  # the longest name, failing
    for name in set(HEADS) - {"identity"}:
        del HEADS[name]
    monkeypatch.setattr("xpnet.heads.TASK_HEADS", {"regression": "identity"})
    found = verify(dtype="float32")
    title, header, *rows = str(found).splitlines()
    assert title.startswith("Verification of cpu: 1 of 5 checks FAILED")
    assert [row.split()[0] for row in rows] == ["forward", "cost", "gradient", "one", "differences"]
    assert "FAILED leaky_relu × identity, " in rows[-1]
    assert max(map(len, (title, header, *rows))) <= TERMINAL


def test_every_namespace_passes(backend: Backend, request):
    if backend.name == "jax":
        request.getfixturevalue("few")
    found = _verify(backend.place)
    assert found.passed, str(found)
    assert ("float64" in {check.dtype for check in found.checks[:-1]}) == (backend.has("float64"))


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"tanh"}))
def test_a_wrong_slope_is_found_by_differences_and_named(monkeypatch, few, name):
    monkeypatch.setitem(ACTIVATIONS, name, spoiled(PAIRS[name]))
    (failure,) = _verify(HOST, ("float64",)).failures
    assert failure.kind == "differences"
    assert failure.worst.startswith(f"{name} × softmax, ")
    assert not failure.worst.endswith("0 hidden")


def elsewhere(function, factor):
    """Return a function that is wrong by this factor outside NumPy, as a device's kernel could be."""
    return lambda *arrays, xp: function(*arrays, xp=xp) * (1.0 if xp is np else factor)


@pytest.fixture
def strict(few):
    """A device that is not NumPy's, where its functions can be made wrong."""
    namespace = pytest.importorskip("array_api_strict")
    return place_of(namespace.zeros(1, device=namespace.Device("device1")))


def test_a_device_that_computes_the_activation_wrongly_fails_in_all_it_computes(monkeypatch, strict):
    tanh = ACTIVATIONS["tanh"]
    monkeypatch.setitem(ACTIVATIONS, "tanh", replace(tanh, g=elsewhere(tanh.g, OFF)))
    found = _verify(strict, ("float32",))
    assert [check.kind for check in found.failures] == ["forward", "cost", "gradient", "one epoch"]
    assert all(check.worst.startswith("tanh × softmax, ") for check in found.failures[:3])


def test_a_device_that_computes_the_slope_wrongly_fails_where_it_is_used(monkeypatch, strict):
    tanh = ACTIVATIONS["tanh"]
    monkeypatch.setitem(ACTIVATIONS, "tanh", replace(tanh, dg=elsewhere(tanh.dg, OFF)))
    found = _verify(strict, ("float32",))
    assert [check.kind for check in found.failures] == ["gradient", "one epoch"]


def test_a_device_that_gives_nan_is_a_failure_and_no_exception(monkeypatch, strict):
    tanh = ACTIVATIONS["tanh"]
    monkeypatch.setitem(ACTIVATIONS, "tanh", replace(tanh, g=elsewhere(tanh.g, math.nan)))
    found = _verify(strict, ("float32",))
    assert [check.kind for check in found.failures] == ["forward", "cost", "gradient", "one epoch"]
    assert math.isnan(found.failures[0].error)
    assert found.failures[-1].error == math.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_limits_what_the_device_computes_in(few, dtype):
    assert {check.dtype for check in verify(dtype=dtype).checks[:-1]} == {dtype}


@pytest.mark.parametrize("wrong", [{"device": "gpu"}, {"dtype": "float16"}])
def test_what_is_no_device_or_dtype_is_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        verify(**wrong)


def test_a_device_that_cannot_be_used_is_an_error(monkeypatch):
    monkeypatch.delenv("XPNET_CPU_FALLBACK", raising=False)
    with pytest.raises(DeviceUnavailableError, match=NO_SUCH_GPU):
        verify(NO_SUCH_GPU)


def test_the_fallback_verifies_the_cpu_and_says_so(monkeypatch, few):
    monkeypatch.setenv("XPNET_CPU_FALLBACK", "1")
    with pytest.warns(DeviceFallbackWarning) as warned:
        found = verify(NO_SUCH_GPU)
    assert found.device == "cpu"
    assert warned[0].filename == __file__


@pytest.mark.cuda
def test_verify_passes_on_cuda(cuda):
    found = verify("cuda")
    assert found.passed, str(found)
    assert found.device == cuda.name
