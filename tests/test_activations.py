"""The activations: their values, their slopes, their tails, and what is said of a user's own pair that is wrong."""
# ruff: noqa: ARG005  # a pair's dg takes Z and A, and needs one of them

import math
import pickle

import numpy as np
import oracle
import pytest

from xpnet import equations
from xpnet.activations import ACTIVATIONS, Activation, check, resolve, sigmoid, softplus
from xpnet.device import dtype_name, place_of, to_host
from xpnet.errors import ActivationError, ArgumentError
from xpnet.heads import HEADS
from xpnet.typing import Layer

ROUNDING = 20  # times ε and 1 + |value|: the worst formula, gelu's slope, is some ten operations
TAIL = 8  # times ε, relative: one exponential, one logarithm, one quotient

EVERYWHERE = np.asarray([[-9.0, -3.2, -1.0, -0.4, -1e-3], [0.0, 1e-3, 0.3, 1.0, 7.5]])
FAR = 1e4  # e^1e4 has no float, nor has (1e4)¹⁰ in float32
DEEP = 80.0  # e^-80 = 2e-35, a normal float32 still

every_activation = pytest.mark.parametrize("name", oracle.G)


def cube(Z):
    return Z**3


def cube_slope(Z, A):
    return 3 * Z**2


CUBE = Activation(cube, cube_slope)


def there_and_cast_up(backend, dtype, values):
    """Return the values in the backend's namespace, and the same rounded numbers in float64 on the host."""
    return backend.asarray(values, dtype), np.asarray(values, dtype=dtype).astype(np.float64)


def assert_close(actual, reference, dtype):
    tolerance = ROUNDING * np.finfo(dtype).eps
    np.testing.assert_allclose(to_host(actual), reference, rtol=tolerance, atol=tolerance)


# --- the built-in pairs


def test_the_names_are_the_specifications():
    assert set(ACTIVATIONS) == set(oracle.G)


@every_activation
def test_g_is_the_formula(backend, dtype, name):
    Z, exact = there_and_cast_up(backend, dtype, EVERYWHERE)
    assert_close(ACTIVATIONS[name].g(Z, xp=backend.xp), oracle.G[name](exact), dtype)


@every_activation
def test_dg_is_the_formula(backend, dtype, name):
    Z, exact = there_and_cast_up(backend, dtype, EVERYWHERE)
    A = backend.asarray(oracle.G[name](exact), dtype)
    assert_close(ACTIVATIONS[name].dg(Z, A, xp=backend.xp), oracle.DG[name](exact), dtype)


@every_activation
def test_g_and_dg_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    g = {
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "relu": F.relu,
        "leaky_relu": lambda Z: F.leaky_relu(Z, negative_slope=0.01),
        "elu": F.elu,
        "softplus": lambda Z: F.softplus(Z, threshold=100.0),  # its default calls Z > 20 straight, 2e-9 off
        "silu": F.silu,
        "gelu": lambda Z: F.gelu(Z, approximate="tanh"),
        "identity": torch.nn.Identity(),
    }[name]
    Z = torch.tensor(EVERYWHERE, requires_grad=True)
    A = g(Z)
    A.backward(torch.ones_like(A))
    ours = ACTIVATIONS[name].g(EVERYWHERE, xp=np)
    slope = ACTIVATIONS[name].dg(EVERYWHERE, ours, xp=np)
    assert_close(np.stack([ours, slope]), np.stack([A.detach().numpy(), Z.grad.numpy()]), "float64")


@every_activation
def test_every_builtin_pair_passes_the_check(name):
    check(ACTIVATIONS[name])


@every_activation
def test_results_have_the_dtype_of_z(backend, dtype, name):
    Z = backend.asarray(EVERYWHERE, dtype)
    A = ACTIVATIONS[name].g(Z, xp=backend.xp)
    assert [dtype_name(A), dtype_name(ACTIVATIONS[name].dg(Z, A, xp=backend.xp))] == [dtype, dtype]


@every_activation
def test_results_live_where_z_does(backend, name):
    Z = backend.asarray(EVERYWHERE, "float32")
    A = ACTIVATIONS[name].g(Z, xp=backend.xp)
    assert [place_of(A), place_of(ACTIVATIONS[name].dg(Z, A, xp=backend.xp))] == [backend.place, backend.place]


@every_activation
def test_z_and_a_are_not_written_into(backend, name):
    Z = backend.asarray(EVERYWHERE, "float32")
    A = ACTIVATIONS[name].g(Z, xp=backend.xp)
    before = np.stack([to_host(Z), to_host(A)])
    ACTIVATIONS[name].dg(Z, A, xp=backend.xp)
    np.testing.assert_array_equal(np.stack([to_host(Z), to_host(A)]), before)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky_relu", 0.01), ("elu", 1.0)])
def test_a_corner_takes_the_slope_of_its_left(name, slope):
    corner = np.zeros((1, 1))
    assert ACTIVATIONS[name].dg(corner, corner, xp=np) == slope


# --- the tails


# g and g′ at −1e4 and at 1e4, from the limits.
LIMITS = {
    "tanh": ([-1, 1], [0, 0]),
    "sigmoid": ([0, 1], [0, 0]),
    "relu": ([0, FAR], [0, 1]),
    "leaky_relu": ([-0.01 * FAR, FAR], [0.01, 1]),
    "elu": ([-1, FAR], [0, 1]),
    "softplus": ([0, FAR], [0, 1]),
    "silu": ([0, FAR], [0, 1]),
    "gelu": ([0, FAR], [0, 1]),
    "identity": ([-FAR, FAR], [1, 1]),
}


@every_activation
def test_far_out_g_and_dg_are_their_limits(backend, dtype, name):
    Z = backend.asarray([-FAR, FAR], dtype)
    A = ACTIVATIONS[name].g(Z, xp=backend.xp)
    slope = ACTIVATIONS[name].dg(Z, A, xp=backend.xp)
    assert_close(np.stack([to_host(A), to_host(slope)]), np.asarray(LIMITS[name]), dtype)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (sigmoid, 1.0 / (1.0 + math.exp(DEEP))),
        (softplus, math.log1p(math.exp(-DEEP))),
        (ACTIVATIONS["silu"].g, -DEEP / (1.0 + math.exp(DEEP))),
    ],
    ids=["sigmoid", "softplus", "silu"],
)
def test_the_lower_tail_keeps_its_digits(backend, dtype, function, value):
    tail = function(backend.asarray([-DEEP], dtype), xp=backend.xp)
    np.testing.assert_allclose(to_host(tail), [value], rtol=TAIL * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigmoid", math.exp(DEEP) / (1.0 + math.exp(DEEP)) ** 2),
        ("softplus", 1.0 / (1.0 + math.exp(DEEP))),
        ("silu", (1.0 - DEEP) * math.exp(-DEEP)),  # but for terms of e^-160
    ],
)
def test_the_slope_of_the_lower_tail_keeps_its_digits(backend, dtype, name, value):
    Z = backend.asarray([-DEEP], dtype)
    A = ACTIVATIONS[name].g(Z, xp=backend.xp)
    slope = ACTIVATIONS[name].dg(Z, A, xp=backend.xp)
    np.testing.assert_allclose(to_host(slope), [value], rtol=TAIL * np.finfo(dtype).eps)


# --- a user's own pair


RIGHT = {
    "lambdas": Activation(lambda Z: Z**3, lambda Z, A: 3 * Z**2),
    "functions": CUBE,
    "functions that take xp": Activation(lambda Z, *, xp: xp.sin(Z), lambda Z, A, *, xp: xp.cos(Z)),
    "functions that take anything": Activation(
        lambda Z, **options: options["xp"].sin(Z), lambda Z, A, **options: options["xp"].cos(Z)
    ),
    "only g takes xp": Activation(lambda Z, *, xp: xp.tanh(Z), lambda Z, A: 1 - A * A),
    "a ufunc": Activation(np.tanh, lambda Z, A: 1 - A * A),
    "a function of numbers": Activation(np.vectorize(math.tanh), np.vectorize(lambda z, a: 1 - a * a)),
    "g returns Z itself": Activation(lambda Z: Z, lambda Z, A: np.ones_like(Z)),
}

WRONG = {  # the pair, and what the message says of it
    "another slope": (
        Activation(np.tanh, lambda Z, A: 1 - A, name="mine"),
        r"'mine': dg must be the slope of g\. At Z = .* g rises by .* per unit but dg\(Z, A\) is .*\. Correct dg\.",
    ),
    "a slope wrong on one side": (Activation(np.abs, lambda Z, A: np.ones_like(Z)), "At Z = -.* g rises by -1 per"),
    "a slope wrong by a little": (Activation(np.sin, lambda Z, A: 1.0001 * np.cos(Z)), "dg must be the slope of g"),
    "arguments in the wrong order": (Activation(np.sinh, lambda A, Z: np.sqrt(1 + A * A)), "must be the slope of g"),
    "g that is not finite": (Activation(np.log, lambda Z, A: 1 / Z), r"g rises by nan per unit"),
    "dg that is not finite": (Activation(np.tanh, lambda Z, A: A / 0), r"dg\(Z, A\) is -?inf"),
    "g that sums": (Activation(np.sum, lambda Z, A: np.ones_like(Z)), r"g\(Z\) must keep Z's shape, .* returned \(\)"),
    "dg that is a number": (
        Activation(lambda Z: Z, lambda Z, A: 1.0),
        r"dg\(Z, A\) must keep Z's shape, .* elementwise",
    ),
    "g that transposes": (Activation(np.transpose, lambda Z, A: np.ones_like(Z)), r"g\(Z\) must keep .* \(9, 1\)"),
    "g that writes into Z": (Activation(lambda Z: np.tanh(Z, out=Z), lambda Z, A: 1 - A * A), "must leave Z as it is"),
}


@pytest.mark.parametrize("pair", RIGHT.values(), ids=RIGHT)
def test_a_right_pair_is_accepted(pair):
    assert resolve(pair) is pair


@pytest.mark.parametrize(("pair", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_pair_is_refused_with_the_reason(pair, message):
    with pytest.raises(ActivationError, match=message):
        resolve(pair)


def test_a_pair_that_writes_into_z_does_not_spoil_the_next_check():
    with pytest.raises(ActivationError, match="wrote into it"):
        check(Activation(lambda Z: np.multiply(Z, np.nan, out=Z), cube_slope))
    check(CUBE)


def test_a_builtin_name_does_not_spare_a_pair_the_check():
    with pytest.raises(ActivationError, match="'tanh': dg must be the slope"):
        resolve(Activation(np.tanh, lambda Z, A: 1 - A, name="tanh"))


@pytest.mark.parametrize(("g", "dg"), [(None, cube_slope), (cube, 3.0), ("tanh", cube_slope)])
def test_what_cannot_be_called_is_refused(g, dg):
    with pytest.raises(ArgumentError, match=r"takes two functions, g\(Z\) and dg\(Z, A\); .* is not callable"):
        Activation(g, dg)


def test_a_users_pair_computes_what_the_builtin_does(backend, dtype):
    """The same tanh, spelled by a user without ``xp`` where arrays have operators alone."""
    rng = np.random.default_rng(3)
    layers = [
        Layer(backend.asarray(rng.standard_normal((4, 5)), dtype), backend.asarray(np.zeros((4, 1)), dtype)),
        Layer(backend.asarray(rng.standard_normal((3, 4)), dtype), backend.asarray(np.zeros((3, 1)), dtype)),
    ]
    X, Y = backend.asarray(rng.standard_normal((5, 9)), dtype), backend.asarray(np.ones((3, 9)), dtype)
    pair = Activation(lambda Z, *, xp: xp.tanh(Z), lambda Z, A: 1.0 - A * A)
    gradients = [
        equations.gradient(layers, X, Y, activation=activation, head=HEADS["sigmoid"], xp=backend.xp)[1]
        for activation in (pair, ACTIVATIONS["tanh"])
    ]
    ours, builtin = ([to_host(array) for layer in layers for array in layer] for layers in gradients)
    np.testing.assert_equal(ours, builtin)


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        (CUBE, "cube"),
        (Activation(cube, cube_slope, name="third power"), "third power"),
        (Activation(np.tanh, lambda Z, A: 1 - A * A), "tanh"),
    ],
)
def test_a_pair_is_called_after_its_g_unless_it_has_a_name(pair, name):
    assert pair.name == name


def test_a_pair_of_plain_functions_can_be_pickled():
    copy = pickle.loads(pickle.dumps(CUBE))
    np.testing.assert_array_equal(copy.g(EVERYWHERE, xp=np), EVERYWHERE**3)


# --- names


@every_activation
def test_a_name_is_its_activation(name):
    assert resolve(name) is ACTIVATIONS[name]


@pytest.mark.parametrize(("typed", "meant"), [("rleu", "relu"), ("Tanh", "tanh"), ("leakyrelu", "leaky_relu")])
def test_an_unknown_name_is_refused_with_the_nearest(typed, meant):
    with pytest.raises(
        ArgumentError, match=rf"activation must be one of .*; it is '{typed}'\. Did you mean \"{meant}\"\?"
    ):
        resolve(typed)


@pytest.mark.parametrize("value", [None, 3, np.tanh, ["relu"]], ids=str)
def test_what_is_neither_a_name_nor_a_pair_is_refused(value):
    with pytest.raises(ArgumentError, match=r"or an xpnet\.Activation\(g, dg\)"):
        resolve(value)
