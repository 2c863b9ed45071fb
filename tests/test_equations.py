"""The equations against three witnesses that share no line with them: the lecture's ten lines, differences, autograd.

Arrays are drawn in float32 and cast up for every float64 computation, so that all sides see the same numbers.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet import equations
from xpnet.activations import ACTIVATIONS
from xpnet.device import dtype_name, place_of, to_host
from xpnet.heads import HEADS
from xpnet.typing import Layer

ROUNDING = 100  # times the dtype's ε: the promise of the design, some ten roundings for each of some ten operations
DIFFERENCES = 1e-7  # h² truncates at 1e-10 and ε / h rounds at 1e-11, times some hundred for the terms of a cost
STEP = 1e-5  # h
KINK = 1e-3  # a weight's step of h moves no Z by more than some 10 h, so relu's corner at 0 is not crossed
AUTOGRAD = 1e-12  # two float64 computations of one formula, some thousand ε

COLUMNS = 9
NETWORKS = 3  # side by side
DEPTHS = {"logistic": (5, 3), "one hidden layer": (5, 4, 3), "two hidden layers": (5, 4, 4, 3)}

every_activation = pytest.mark.parametrize("activation", oracle.G)
every_head = pytest.mark.parametrize("head", oracle.HEAD)
every_depth = pytest.mark.parametrize("sizes", DEPTHS.values(), ids=DEPTHS)
quietly = settings(deadline=None, database=None)


class Problem(NamedTuple):
    """A network and examples, float32 NumPy arrays until `on` brings them elsewhere."""

    layers: list[Layer]
    X: Any
    Y: Any
    sample_weight: Any

    def mapped(self, function):
        layers = [Layer(function(W), function(b)) for W, b in self.layers]
        return Problem(layers, function(self.X), function(self.Y), function(self.sample_weight))

    def on(self, backend, dtype):
        return self.mapped(lambda array: backend.asarray(array, dtype))

    def doubled(self):
        """Return the same numbers in float64."""
        return self.mapped(lambda array: array.astype(np.float64))


def draw(sizes, head, *, seed=5, networks=()):
    rng = np.random.default_rng(seed)
    layers = [
        Layer(0.6 * rng.standard_normal((*networks, n_out, n_in)), 0.3 * rng.standard_normal((*networks, n_out, 1)))
        for n_in, n_out in pairwise(sizes)
    ]
    X, n_y = rng.standard_normal((sizes[0], COLUMNS)), sizes[-1]
    Y = {
        "sigmoid": rng.integers(0, 2, (n_y, COLUMNS)),
        "softmax": np.eye(n_y)[:, rng.integers(0, n_y, COLUMNS)],
        "identity": rng.standard_normal((n_y, COLUMNS)),
        "exp": rng.poisson(2.0, (n_y, COLUMNS)),
    }[head]
    return Problem(layers, X, Y, rng.uniform(0.5, 2.0, COLUMNS)).mapped(lambda array: array.astype(np.float32))


def gradient(problem, activation, head, *, weighted=False, xp=np):
    return equations.gradient(
        problem.layers,
        problem.X,
        problem.Y,
        activation=ACTIVATIONS[activation],
        head=HEADS[head],
        sample_weight=problem.sample_weight if weighted else None,
        xp=xp,
    )


def expected(problem, activation, head, **options):
    """Return the oracle's cost and gradient, summed over the columns as xpnet's are."""
    layers, X, Y, _ = problem.doubled()
    cost, gradients = oracle.gradients(layers, X, Y, activation, head, **options)
    return np.asarray(COLUMNS * cost), [Layer(COLUMNS * dW, COLUMNS * db) for dW, db in gradients]


def flat(*arrays):
    """Return every number of arrays and layers, one after the other, as a float64 vector."""
    pieces = [flat(*array) if isinstance(array, (tuple, list)) else to_host(array).ravel() for array in arrays]
    return np.concatenate(pieces).astype(np.float64)


def distance(actual, reference):
    """Return ``‖g − ĝ‖ / ‖ĝ‖``."""
    return np.linalg.norm(flat(actual) - flat(reference)) / np.linalg.norm(flat(reference))


def rounding(dtype):
    return ROUNDING * np.finfo(dtype).eps


# --- the first witness: the lecture's lines


@every_depth
@every_head
@every_activation
def test_the_gradient_is_the_oracles(backend, dtype, activation, head, sizes):
    problem = draw(sizes, head)
    _, gradients = gradient(problem.on(backend, dtype), activation, head, xp=backend.xp)
    assert distance(gradients, expected(problem, activation, head)[1]) <= rounding(dtype)


@every_depth
@every_head
def test_the_cost_is_the_oracles(backend, dtype, head, sizes):
    problem = draw(sizes, head)
    total, _ = gradient(problem.on(backend, dtype), "tanh", head, xp=backend.xp)
    assert distance([total], [expected(problem, "tanh", head)[0]]) <= rounding(dtype)


@every_depth
@every_head
def test_the_weighted_gradient_is_the_oracles(backend, dtype, head, sizes):
    problem = draw(sizes, head)
    _, gradients = gradient(problem.on(backend, dtype), "gelu", head, weighted=True, xp=backend.xp)
    reference = expected(problem, "gelu", head, sample_weight=problem.sample_weight.astype(np.float64))
    assert distance(gradients, reference[1]) <= rounding(dtype)


@every_depth
@every_head
def test_the_weighted_cost_is_the_oracles(backend, dtype, head, sizes):
    problem = draw(sizes, head)
    total, _ = gradient(problem.on(backend, dtype), "gelu", head, weighted=True, xp=backend.xp)
    reference = expected(problem, "gelu", head, sample_weight=problem.sample_weight.astype(np.float64))
    assert distance([total], [reference[0]]) <= rounding(dtype)


@every_depth
@every_head
def test_the_penalized_gradient_is_the_oracles(backend, dtype, head, sizes):
    problem = draw(sizes, head)
    there = problem.on(backend, dtype)
    sums = gradient(there, "tanh", head, xp=backend.xp)
    _, gradients = equations.penalized(*sums, there.layers, l2=3.0, xp=backend.xp)
    assert distance(gradients, expected(problem, "tanh", head, l2=3.0)[1]) <= rounding(dtype)


@every_depth
@every_head
def test_the_penalized_cost_is_the_oracles(backend, dtype, head, sizes):
    problem = draw(sizes, head)
    there = problem.on(backend, dtype)
    sums = gradient(there, "tanh", head, xp=backend.xp)
    total, _ = equations.penalized(*sums, there.layers, l2=3.0, xp=backend.xp)
    assert distance([total], [expected(problem, "tanh", head, l2=3.0)[0]]) <= rounding(dtype)


@pytest.mark.parametrize(("head", "n_y"), [("sigmoid", 1), ("softmax", 3), ("identity", 1), ("exp", 1)])
@every_activation
def test_backward_matches_the_ten_equations(activation, head, n_y):
    """One hidden layer against the ten lines as they stand, without an index or a loop."""
    problem = draw((5, 4, n_y), head).doubled()
    (W1, b1), (W2, b2) = problem.layers
    _, dW1, db1, dW2, db2 = oracle.one_hidden_layer(W1, b1, W2, b2, problem.X, problem.Y, activation, head)
    _, gradients = gradient(problem, activation, head)
    assert distance(gradients, [COLUMNS * array for array in (dW1, db1, dW2, db2)]) <= rounding("float64")


# --- the second witness: differences of the cost


def slopes_of_the_cost(problem, activation, head):
    """Return the gradient by central differences, one number of one W or b at a time."""

    def summed_cost(layers):
        Z, _ = equations.forward(layers, problem.X, activation=ACTIVATIONS[activation], head=HEADS[head], xp=np)
        return equations.cost(Z[-1], problem.Y, head=HEADS[head], sample_weight=problem.sample_weight, xp=np)

    slopes = []
    for array in (array for layer in problem.layers for array in layer):
        for index in np.ndindex(array.shape):
            value, ends = array[index], []
            for end in (value + STEP, value - STEP):
                array[index] = end
                ends.append(summed_cost(problem.layers))
            array[index] = value
            slopes.append((ends[0] - ends[1]) / (2 * STEP))
    return np.asarray(slopes)


@every_depth
@every_head
@every_activation
def test_the_gradient_is_the_slope_of_the_cost(activation, head, sizes):
    problem = draw(sizes, head).doubled()
    Z, _ = equations.forward(problem.layers, problem.X, activation=ACTIVATIONS[activation], head=HEADS[head], xp=np)
    assert all(np.abs(Z_l).min() > KINK for Z_l in Z[:-1]), "a corner of relu is too near: choose another seed"
    _, gradients = gradient(problem, activation, head, weighted=True)
    assert distance(gradients, [slopes_of_the_cost(problem, activation, head)]) <= DIFFERENCES


# --- the third witness: PyTorch's own layers, costs and derivatives


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def gradient_by_autograd(torch, problem, activation, head):
    F = torch.nn.functional
    g = {
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "relu": F.relu,
        "leaky_relu": lambda Z: F.leaky_relu(Z, negative_slope=0.01),
        "elu": F.elu,
        "softplus": F.softplus,
        "silu": F.silu,
        "gelu": lambda Z: F.gelu(Z, approximate="tanh"),
        "identity": torch.nn.Identity(),
    }[activation]
    cost = {
        "sigmoid": lambda Z, Y: F.binary_cross_entropy_with_logits(Z, Y, reduction="sum"),
        "softmax": lambda Z, Y: F.cross_entropy(Z.T, Y.T, reduction="sum"),
        "identity": lambda Z, Y: 0.5 * F.mse_loss(Z, Y, reduction="sum"),
        "exp": lambda Z, Y: F.poisson_nll_loss(Z, Y, log_input=True, full=False, reduction="sum"),
    }[head]
    layers = [tuple(torch.tensor(array, requires_grad=True) for array in layer) for layer in problem.layers]
    A = torch.tensor(problem.X)
    for W, b in layers[:-1]:
        A = g(F.linear(A.T, W, b[:, 0]).T)
    W, b = layers[-1]
    cost(F.linear(A.T, W, b[:, 0]).T, torch.tensor(problem.Y)).backward()
    return [array.grad.numpy() for layer in layers for array in layer]


@every_depth
@every_head
@every_activation
def test_the_gradient_is_pytorchs(torch, activation, head, sizes):
    problem = draw(sizes, head).doubled()
    _, gradients = gradient(problem, activation, head)
    assert distance(gradients, gradient_by_autograd(torch, problem, activation, head)) <= AUTOGRAD


# --- far out, where e^Z has no float


EXTREMES = {  # Z, Y and A (n_y, m), and the columns' costs, all by hand; the exp head is a tangent above 30
    "sigmoid": ([[1e4, 1e4, -1e4, -1e4]], [[1, 0, 1, 0]], [[1, 1, 0, 0]], [0, 1e4, 1e4, 0]),
    "softmax": (
        [[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [0, 0, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 1, 1], [0, 0, 0], [0, 0, 0]],
        [0, 2e4, 1e4],
    ),
    "identity": ([[1e4, -1e4]], [[1, 1]], [[1e4, -1e4]], [9999**2 / 2, 10001**2 / 2]),
    "exp": (
        [[1e4, -1e4, -1e4]],
        [[1e12, 0, 3]],
        [[np.exp(30.0), 0, 0]],
        [np.exp(30.0) * (1 + 1e4 - 30) - 1e16, 0, 3e4],
    ),
}


def extreme(backend, dtype, head):
    """Return the sums of a network without hidden layers whose ``Z = W I + 0`` is the table's, and the table's."""
    Z, Y, A, costs = (np.asarray(entry, dtype=np.float64) for entry in EXTREMES[head])
    layers = [Layer(Z, np.zeros((Z.shape[0], 1)))]
    there = Problem(layers, np.eye(Z.shape[1]), Y, np.ones(Z.shape[1])).on(backend, dtype)
    return gradient(there, "tanh", head, xp=backend.xp), (np.sum(costs), A - Y)


@every_head
def test_the_cost_is_right_at_ten_thousand(backend, dtype, head):
    (total, _), (reference, _) = extreme(backend, dtype, head)
    np.testing.assert_allclose(to_host(total), reference, rtol=rounding(dtype))


@every_head
def test_the_gradient_is_right_at_ten_thousand(backend, dtype, head):
    (_, [(dW, _)]), (_, reference) = extreme(backend, dtype, head)
    np.testing.assert_allclose(to_host(dW), reference, rtol=rounding(dtype))


# --- columns: any split, any order, any weights


def taken(problem, chosen):
    chosen = np.asarray(chosen, dtype=np.intp)
    return Problem(problem.layers, problem.X[:, chosen], problem.Y[:, chosen], problem.sample_weight[chosen])


@every_head
@quietly
@given(cuts=st.lists(st.integers(0, COLUMNS), max_size=6).map(sorted))
def test_any_split_of_the_columns_adds_up_to_the_whole(head, cuts):
    problem = draw((5, 4, 4, 3), head).doubled()
    blocks = [taken(problem, block) for block in np.split(np.arange(COLUMNS), cuts)]
    added = sum(flat(*gradient(block, "silu", head, weighted=True)) for block in blocks)
    whole = gradient(problem, "silu", head, weighted=True)
    assert distance([added], whole) <= rounding("float64")


@every_head
@quietly
@given(order=st.permutations(range(COLUMNS)))
def test_the_order_of_the_columns_does_not_matter(head, order):
    problem = draw((5, 4, 4, 3), head).doubled()
    permuted = gradient(taken(problem, order), "silu", head, weighted=True)
    assert distance(permuted, gradient(problem, "silu", head, weighted=True)) <= rounding("float64")


@every_head
@quietly
@given(times=st.lists(st.integers(0, 3), min_size=COLUMNS, max_size=COLUMNS).filter(any))
def test_a_whole_weight_is_as_many_copies_of_the_column(head, times):
    problem = draw((5, 4, 4, 3), head).doubled()
    weighted = problem._replace(sample_weight=np.asarray(times, dtype=np.float64))
    copied = taken(problem, np.repeat(np.arange(COLUMNS), times))
    actual, reference = gradient(weighted, "silu", head, weighted=True), gradient(copied, "silu", head)
    assert distance(actual, reference) <= rounding("float64")


@every_head
def test_no_weights_are_ones(backend, dtype, head):
    problem = draw((5, 4, 3), head)
    ones = problem._replace(sample_weight=np.ones(COLUMNS)).on(backend, dtype)
    weighted = gradient(ones, "tanh", head, weighted=True, xp=backend.xp)
    np.testing.assert_array_equal(flat(*weighted), flat(*gradient(ones, "tanh", head, xp=backend.xp)))


def test_weights_may_be_a_row(backend, dtype):
    problem = draw((5, 4, 3), "sigmoid")
    row = problem._replace(sample_weight=problem.sample_weight[np.newaxis, :]).on(backend, dtype)
    from_row = gradient(row, "tanh", "sigmoid", weighted=True, xp=backend.xp)
    from_vector = gradient(problem.on(backend, dtype), "tanh", "sigmoid", weighted=True, xp=backend.xp)
    np.testing.assert_array_equal(flat(*from_row), flat(*from_vector))


# --- networks side by side


def stack(*arrays):
    return np.stack([to_host(array) for array in arrays])


@pytest.fixture
def side_by_side(backend, dtype):
    """Return a problem with networks side by side, there, and the same networks one by one."""
    stacked = draw((5, 4, 4, 3), "sigmoid", networks=(NETWORKS,))
    separate = [stacked._replace(layers=[Layer(W[k], b[k]) for W, b in stacked.layers]) for k in range(NETWORKS)]
    return stacked.on(backend, dtype), [problem.on(backend, dtype) for problem in separate]


def outputs(problem, head, xp):
    """Return every Z and A but A[0], which is X."""
    Z, A = equations.forward(problem.layers, problem.X, activation=ACTIVATIONS["tanh"], head=HEADS[head], xp=xp)
    return [*Z, *A[1:]]


@every_head
def test_networks_side_by_side_run_forward_as_each_does_alone(side_by_side, backend, dtype, head):
    together, alone = side_by_side
    separate = [outputs(problem, head, backend.xp) for problem in alone]
    assert distance(outputs(together, head, backend.xp), list(map(stack, *separate))) <= rounding(dtype)


@every_head
def test_networks_side_by_side_have_each_its_own_cost(side_by_side, backend, dtype, head):
    together, alone = side_by_side
    totals, _ = gradient(together, "tanh", head, weighted=True, xp=backend.xp)
    separate = [gradient(problem, "tanh", head, weighted=True, xp=backend.xp)[0] for problem in alone]
    assert distance([totals], [stack(*separate)]) <= rounding(dtype)


@every_head
def test_networks_side_by_side_have_each_its_own_gradient(side_by_side, backend, dtype, head):
    together, alone = side_by_side
    _, gradients = gradient(together, "tanh", head, weighted=True, xp=backend.xp)
    separate = [gradient(problem, "tanh", head, weighted=True, xp=backend.xp)[1] for problem in alone]
    reference = [Layer(*map(stack, *layer)) for layer in zip(*separate, strict=True)]
    assert distance(gradients, reference) <= rounding(dtype)


def test_networks_side_by_side_have_each_its_own_penalty(side_by_side, backend, dtype):
    together, alone = side_by_side
    sums = gradient(together, "tanh", "sigmoid", xp=backend.xp)
    totals, _ = equations.penalized(*sums, together.layers, l2=3.0, xp=backend.xp)
    each_sums = [gradient(problem, "tanh", "sigmoid", xp=backend.xp) for problem in alone]
    separate = [
        equations.penalized(*sums, problem.layers, l2=3.0, xp=backend.xp)[0]
        for sums, problem in zip(each_sums, alone, strict=True)
    ]
    assert distance([totals], [stack(*separate)]) <= rounding(dtype)


# --- what goes in and what comes out


def results(problem, activation, head, xp):
    """Return every array that the functions of the module make, X aside."""
    total, gradients = gradient(problem, activation, head, weighted=True, xp=xp)
    penalized_total, penalized = equations.penalized(total, gradients, problem.layers, l2=0.1, xp=xp)
    made = [array for layer in (*gradients, *penalized) for array in layer]
    return [*outputs(problem, head, xp), total, penalized_total, *made]


@every_head
@every_activation
def test_no_argument_is_written_into(backend, activation, head):
    problem = draw((5, 4, 4, 3), head)
    there = problem.on(backend, "float32")
    results(there, activation, head, backend.xp)
    np.testing.assert_array_equal(flat(*there), flat(*problem))


@every_head
@every_activation
def test_backward_leaves_what_forward_made_as_it_is(backend, activation, head):
    there = draw((5, 4, 4, 3), head).on(backend, "float32")
    Z, A = equations.forward(there.layers, there.X, activation=ACTIVATIONS[activation], head=HEADS[head], xp=backend.xp)
    before = flat(Z, A).copy()
    weight = there.sample_weight
    equations.cost(Z[-1], there.Y, head=HEADS[head], sample_weight=weight, xp=backend.xp)
    equations.backward(
        there.layers, Z, A, there.Y, activation=ACTIVATIONS[activation], sample_weight=weight, xp=backend.xp
    )
    np.testing.assert_array_equal(flat(Z, A), before)


@every_head
@every_activation
def test_results_have_the_dtype_of_the_arguments(backend, dtype, activation, head):
    made = results(draw((5, 4, 4, 3), head).on(backend, dtype), activation, head, backend.xp)
    assert {dtype_name(array) for array in made} == {dtype}


@every_head
@every_activation
def test_results_live_where_the_arguments_do(backend, activation, head):
    made = results(draw((5, 4, 4, 3), head).on(backend, "float32"), activation, head, backend.xp)
    assert [place_of(array) for array in made] == [backend.place] * len(made)


@quietly
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5), m=st.integers(0, 4))
def test_a_gradient_has_the_shapes_of_its_layers(sizes, m):
    problem = taken(draw(sizes, "sigmoid"), range(m))
    _, gradients = gradient(problem, "tanh", "sigmoid")
    shapes = [(dW.shape, db.shape) for dW, db in gradients]
    assert shapes == [((n_out, n_in), (n_out, 1)) for n_in, n_out in pairwise(sizes)]


@quietly
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=5), m=st.integers(0, 4))
def test_forward_makes_one_z_a_layer_and_x_is_the_first_a(sizes, m):
    problem = taken(draw(sizes, "softmax"), range(m))
    Z, A = equations.forward(problem.layers, problem.X, activation=ACTIVATIONS["relu"], head=HEADS["softmax"], xp=np)
    assert ([Z_l.shape for Z_l in Z], [A_l.shape for A_l in A]) == (
        [(n_l, m) for n_l in sizes[1:]],
        [(n_l, m) for n_l in sizes],
    )
