"""The output heads: the pairs of g2 and cost for which ``dZ2 = A2 − Y`` is exact, near zero and far out."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xpnet.device import dtype_name, place_of, to_host
from xpnet.heads import EXP_LIMIT, HEADS, TASK_HEADS

ROUNDING = 20  # times ε and 1 + |value|: an exponential, a logarithm and a sum of three
TAIL = 8  # times ε, relative: one exponential and one logarithm
TORCH = 1e-12  # two float64 computations of one formula, some thousand ε
DIFFERENCES = 1e-7  # relative to 1 + the slope: h² truncates at 1e-8 and rounding of the cost by h at 1e-9
STEP = 1e-4  # h

SURE = 20.0  # the cost of an answer so sure is e^-20 = 2e-9, far below float32's ε
LIMIT = math.exp(30.0)  # the exp head's slope above EXP_LIMIT

M = 6
Z_NEAR = np.random.default_rng(8).uniform(-4.0, 4.0, (3, M))
TARGETS = {
    "sigmoid": np.random.default_rng(9).integers(0, 2, (3, M)).astype(float),
    "softmax": np.eye(3)[:, [0, 2, 1, 1, 0, 2]],
    "identity": np.random.default_rng(10).standard_normal((3, M)),
    "exp": np.random.default_rng(11).poisson(2.0, (3, M)).astype(float),
}

every_head = pytest.mark.parametrize("head", oracle.HEAD)
quietly = settings(deadline=None, database=None)
wild = hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e4, 1e4))


def assert_close(actual, reference, dtype):
    tolerance = ROUNDING * np.finfo(dtype).eps
    np.testing.assert_allclose(to_host(actual), reference, rtol=tolerance, atol=tolerance)


# --- values


def test_the_names_are_the_specifications():
    assert set(HEADS) == set(oracle.HEAD)


def test_every_task_has_a_head_and_every_head_a_task():
    assert set(TASK_HEADS.values()) == set(HEADS)


@every_head
def test_g_is_the_formula(backend, dtype, head):
    A = HEADS[head].g(backend.asarray(Z_NEAR, dtype), xp=backend.xp)
    exact = Z_NEAR.astype(dtype).astype(np.float64)
    assert_close(A, oracle.HEAD[head](exact), dtype)


@every_head
def test_a_columns_cost_is_the_formulas_sum_over_the_outputs(backend, dtype, head):
    Z, Y = backend.asarray(Z_NEAR, dtype), backend.asarray(TARGETS[head], dtype)
    exact_Z, exact_Y = (array.astype(dtype).astype(np.float64) for array in (Z_NEAR, TARGETS[head]))
    reference = oracle.COST[head](oracle.HEAD[head](exact_Z), exact_Y).sum(axis=0, keepdims=True)
    assert_close(HEADS[head].cost(Z, Y, xp=backend.xp), reference, dtype)


@every_head
def test_the_cost_is_pytorchs(head):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    cost = {
        "sigmoid": lambda Z, Y: F.binary_cross_entropy_with_logits(Z, Y, reduction="none").sum(0, keepdim=True),
        "softmax": lambda Z, Y: F.cross_entropy(Z.T, Y.T, reduction="none")[None, :],
        "identity": lambda Z, Y: 0.5 * F.mse_loss(Z, Y, reduction="none").sum(0, keepdim=True),
        "exp": lambda Z, Y: F.poisson_nll_loss(Z, Y, log_input=True, full=False, reduction="none").sum(0, keepdim=True),
    }[head]
    theirs = cost(torch.tensor(Z_NEAR), torch.tensor(TARGETS[head])).numpy()
    np.testing.assert_allclose(HEADS[head].cost(Z_NEAR, TARGETS[head], xp=np), theirs, rtol=TORCH)


@every_head
def test_networks_side_by_side_have_their_own_columns_costs(backend, head):
    stacked = np.stack([Z_NEAR, -Z_NEAR])
    Y = backend.asarray(TARGETS[head], "float32")
    together = HEADS[head].cost(backend.asarray(stacked, "float32"), Y, xp=backend.xp)
    separate = [HEADS[head].cost(backend.asarray(Z, "float32"), Y, xp=backend.xp) for Z in stacked]
    assert_close(together, np.stack([to_host(costs) for costs in separate]), "float32")


@quietly
@given(Z=wild)
def test_softmax_is_a_distribution_over_the_outputs(Z):
    A = HEADS["softmax"].g(Z, xp=np)
    assert_close(A.sum(axis=0), np.ones(Z.shape[1]), "float64")


@quietly
@given(Z=wild, shift=st.integers(-1000, 1000))
def test_softmax_does_not_feel_a_shift_of_a_column(Z, shift):
    Z = np.round(Z)  # so that the shift itself is exact
    np.testing.assert_array_equal(HEADS["softmax"].g(Z + shift, xp=np), HEADS["softmax"].g(Z, xp=np))


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
@quietly
@given(Z=wild, labels=st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_a_cross_entropy_is_never_negative(head, Z, labels):
    assert (HEADS[head].cost(Z, np.eye(3)[:, labels], xp=np) >= 0.0).all()


# --- the pair: dZ2 = A2 − Y


def slope_of_the_cost(head, Z, Y):
    """Return the slope of a column's cost along each output, by central differences."""
    slopes = np.empty_like(Z)
    for i in range(Z.shape[0]):
        step = np.zeros_like(Z)
        step[i, :] = STEP
        ends = [HEADS[head].cost(Z + sign * step, Y, xp=np)[0, :] for sign in (1.0, -1.0)]
        slopes[i, :] = (ends[0] - ends[1]) / (2.0 * STEP)
    return slopes


@every_head
def test_the_slope_of_the_cost_is_a_minus_y(head):
    Y = TARGETS[head]
    reference = slope_of_the_cost(head, Z_NEAR, Y)
    np.testing.assert_allclose(HEADS[head].g(Z_NEAR, xp=np) - Y, reference, rtol=DIFFERENCES, atol=DIFFERENCES)


@pytest.mark.parametrize("z", [29.9, 30.1, 40.0, 1e3])
@pytest.mark.parametrize("y", [0.0, 1e12])
def test_the_exp_heads_slope_is_a_minus_y_about_its_limit_and_above(z, y):
    Z, Y = np.full((1, 1), z), np.full((1, 1), y)
    np.testing.assert_allclose(HEADS["exp"].g(Z, xp=np) - Y, slope_of_the_cost("exp", Z, Y), rtol=DIFFERENCES)


def test_the_exp_head_goes_on_as_its_tangent(backend, dtype):
    Z = backend.asarray([[EXP_LIMIT, EXP_LIMIT + 1.0, EXP_LIMIT + 100.0]], dtype)
    costs = HEADS["exp"].cost(Z, backend.asarray(np.zeros((1, 3)), dtype), xp=backend.xp)
    np.testing.assert_allclose(to_host(costs), [[LIMIT, 2 * LIMIT, 101 * LIMIT]], rtol=ROUNDING * np.finfo(dtype).eps)


# --- far out


EXTREMES = {  # Z, Y and A (n_y, m), and the columns' costs, all by hand; the exp head is a tangent above 30
    "sigmoid": ([[1e4, 1e4, -1e4, -1e4]], [[1, 0, 1, 0]], [[1, 1, 0, 0]], [[0, 1e4, 1e4, 0]]),
    "softmax": (
        [[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [0, 0, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 1, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 2e4, 1e4]],
    ),
    "identity": ([[1e4, -1e4]], [[1, 1]], [[1e4, -1e4]], [[9999**2 / 2, 10001**2 / 2]]),
    "exp": ([[1e4, -1e4, -1e4]], [[1e12, 0, 3]], [[LIMIT, 0, 0]], [[LIMIT * (1 + 1e4 - 30) - 1e16, 0, 3e4]]),
}


@every_head
def test_the_output_is_right_at_ten_thousand(backend, dtype, head):
    Z, _, A, _ = EXTREMES[head]
    actual = HEADS[head].g(backend.asarray(Z, dtype), xp=backend.xp)
    np.testing.assert_allclose(to_host(actual), A, rtol=ROUNDING * np.finfo(dtype).eps)


@every_head
def test_each_columns_cost_is_right_at_ten_thousand(backend, dtype, head):
    Z, Y, _, costs = EXTREMES[head]
    actual = HEADS[head].cost(backend.asarray(Z, dtype), backend.asarray(Y, dtype), xp=backend.xp)
    np.testing.assert_allclose(to_host(actual), costs, rtol=ROUNDING * np.finfo(dtype).eps)


@pytest.mark.parametrize(("z", "y"), [(SURE, 1.0), (-SURE, 0.0)])
def test_the_cost_of_a_sure_right_answer_keeps_its_digits(backend, dtype, z, y):
    Z, Y = backend.asarray([[z]], dtype), backend.asarray([[y]], dtype)
    costs = HEADS["sigmoid"].cost(Z, Y, xp=backend.xp)
    np.testing.assert_allclose(to_host(costs), [[math.log1p(math.exp(-SURE))]], rtol=TAIL * np.finfo(dtype).eps)


# --- what goes in and what comes out


@every_head
def test_results_have_the_dtype_of_z(backend, dtype, head):
    Z, Y = backend.asarray(Z_NEAR, dtype), backend.asarray(TARGETS[head], dtype)
    made = [HEADS[head].g(Z, xp=backend.xp), HEADS[head].cost(Z, Y, xp=backend.xp)]
    assert [dtype_name(array) for array in made] == [dtype, dtype]


@every_head
def test_results_live_where_z_does(backend, head):
    Z, Y = backend.asarray(Z_NEAR, "float32"), backend.asarray(TARGETS[head], "float32")
    made = [HEADS[head].g(Z, xp=backend.xp), HEADS[head].cost(Z, Y, xp=backend.xp)]
    assert [place_of(array) for array in made] == [backend.place, backend.place]


@every_head
def test_z_and_y_are_not_written_into(backend, head):
    Z, Y = backend.asarray(Z_NEAR, "float32"), backend.asarray(TARGETS[head], "float32")
    HEADS[head].g(Z, xp=backend.xp)
    HEADS[head].cost(Z, Y, xp=backend.xp)
    before = np.stack([Z_NEAR, TARGETS[head]]).astype(np.float32)
    np.testing.assert_array_equal(np.stack([to_host(Z), to_host(Y)]), before)
