"""The optimizers: each step against the course's formulas, number by number, and L-BFGS where the minimum is known."""
# ruff: noqa: ARG005  # an evaluate takes θ, and one that gives what it was told has no use for it

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet.device import dtype_name, place_of, to_host
from xpnet.errors import ArgumentError
from xpnet.optimizers import OPTIMIZERS, Curvature, Optimizer, adam, gd, lbfgs, momentum, resolve

ROUNDING = 20  # times ε: five steps of some ten operations, on numbers about 1
TORCH = 1e-12  # twenty steps of one formula in float64, some thousand ε
DENSE = 1e-9  # two orders of the same float64 sums, with Hessians of condition 1e2
MINIMUM = 1e-6  # distance in θ: the cost of a float64 quadratic is flat within √ε = 1.5e-8 of it, times its condition
MINIMUM_FLOAT32 = 1e-3  # √ε of float32 is 3.5e-4

ALPHA, BETA, BETA1, BETA2, EPSILON = 0.3, 0.8, 0.7, 0.95, 1e-3  # none of them a default, all of them felt
THETA = [1.0, -2.0, 0.5, 0.0]
GRADIENTS = [[0.4, -1.5, 0.0, 2.0], [-0.3, -0.5, 0.1, 1.0], [0.9, 0.2, -0.1, 1e-4], [0.1, 0.0, 0.0, 0.0], [2, 2, 2, 2]]
SETTINGS = {
    "gd": lambda: gd(ALPHA),
    "momentum": lambda: momentum(ALPHA, BETA),
    "adam": lambda: adam(ALPHA, BETA1, BETA2, EPSILON),
}

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_fixed_step = pytest.mark.parametrize("name", SETTINGS)
quietly = settings(deadline=None, database=None)


class Path(NamedTuple):
    """Where steps led: each θ, the cost before each step, and the last state."""

    thetas: list[Any]
    costs: list[float]
    state: Any


def follow(optimizer, theta, evaluate, steps, *, xp=np):
    """Take steps downhill from theta at the optimizer's own rate."""
    state, thetas, costs = optimizer.init(theta, xp=xp), [theta], []
    for epoch in range(steps):
        theta, state, cost = optimizer.update(theta, state, evaluate, learning_rate=optimizer.rate(epoch), xp=xp)
        thetas.append(theta)
        costs.append(float(cost))
    return Path(thetas, costs, state)


def listed(gradients):
    """Return an `evaluate` that gives these gradients one after the other, wherever it is asked."""
    remaining = iter(gradients)
    return lambda theta: (theta[0], next(remaining))


# --- the course's formulas, for one number at a time


def gd_by_hand(theta, gradients):
    for d in gradients:
        theta = theta - ALPHA * d
    return theta


def momentum_by_hand(theta, gradients):
    v = 0.0
    for d in gradients:
        v = BETA * v + (1 - BETA) * d
        theta = theta - ALPHA * v
    return theta


def adam_by_hand(theta, gradients):
    v, s = 0.0, 0.0
    for t, d in enumerate(gradients, start=1):
        v = BETA1 * v + (1 - BETA1) * d
        s = BETA2 * s + (1 - BETA2) * d**2
        v_corrected = v / (1 - BETA1**t)
        s_corrected = s / (1 - BETA2**t)
        theta = theta - ALPHA * v_corrected / (math.sqrt(s_corrected) + EPSILON)
    return theta


BY_HAND = {"gd": gd_by_hand, "momentum": momentum_by_hand, "adam": adam_by_hand}


@every_fixed_step
def test_five_steps_are_the_courses_formula_number_by_number(backend, dtype, name):
    there = [backend.asarray(gradient, dtype) for gradient in GRADIENTS]
    path = follow(SETTINGS[name](), backend.asarray(THETA, dtype), listed(there), len(there), xp=backend.xp)
    reference = [BY_HAND[name](*column) for column in zip(THETA, zip(*GRADIENTS, strict=True), strict=True)]
    tolerance = ROUNDING * np.finfo(dtype).eps
    np.testing.assert_allclose(to_host(path.thetas[-1]), reference, rtol=tolerance, atol=tolerance)


def bowl(size, *, seed=6, condition=30.0):
    """Return H and the minimum of a convex quadratic ``½ (θ − c)ᵀ H (θ − c)``."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return Q @ np.diag(np.geomspace(1.0, condition, size)) @ Q.T, rng.standard_normal(size)


def quadratic(H, c, xp=np):
    def evaluate(theta):
        slope = H @ (theta - c)
        return 0.5 * xp.sum((theta - c) * slope), slope

    return evaluate


def pytorchs_path(make, H, c, steps):
    torch = pytest.importorskip("torch")
    theta = torch.zeros(c.size, dtype=torch.float64, requires_grad=True)
    H, c = torch.tensor(H), torch.tensor(c)
    optimizer = make(torch, [theta])
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (theta - c) @ H @ (theta - c)).backward()
        optimizer.step()
    return theta.detach().numpy()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (gd(0.02), lambda torch, theta: torch.optim.SGD(theta, lr=0.02)),
        (adam(0.1), lambda torch, theta: torch.optim.Adam(theta, lr=0.1)),
        (adam(0.1, 0.8, 0.9, 1e-4), lambda torch, theta: torch.optim.Adam(theta, lr=0.1, betas=(0.8, 0.9), eps=1e-4)),
        # PyTorch's velocity lacks the factor 1 − β, here 0.1; so does its learning rate have it.
        (momentum(0.1, 0.9), lambda torch, theta: torch.optim.SGD(theta, lr=0.1 * (1 - 0.9), momentum=0.9)),
        (
            momentum(0.1, 0.9, nesterov=True),
            lambda torch, theta: torch.optim.SGD(theta, lr=0.1 * (1 - 0.9), momentum=0.9, nesterov=True),
        ),
    ],
    ids=["gd", "adam", "adam with its own βs", "momentum", "nesterov"],
)
def test_twenty_steps_are_pytorchs(ours, theirs):
    H, c = bowl(6)
    path = follow(ours, np.zeros(6), quadratic(H, c), 20)
    np.testing.assert_allclose(path.thetas[-1], pytorchs_path(theirs, H, c, 20), rtol=TORCH, atol=TORCH)


def test_adams_first_step_is_alpha_whatever_the_gradients_size():
    path = follow(adam(0.25), np.zeros(3), listed([np.asarray([1e-2, -3.0, 1e6])]), 1)
    np.testing.assert_allclose(path.thetas[-1], [-0.25, 0.25, -0.25], rtol=1e-6)  # ε = 1e-8 is 1e-6 of 1e-2


# --- L-BFGS


def inverse_hessian(steps, changes):
    """Return BFGS's dense estimate: Nocedal and Wright's (6.17) from ``(sᵀy / yᵀy) I``, pair by pair."""
    s, y = steps[-1], changes[-1]
    identity = np.eye(s.size)
    estimate = (s @ y) / (y @ y) * identity
    for s, y in zip(steps, changes, strict=True):
        rho = 1.0 / (y @ s)
        V = identity - rho * np.outer(y, s)
        estimate = V.T @ estimate @ V + rho * np.outer(s, s)
    return estimate


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_lbfgs_steps_along_the_dense_bfgs_direction(pairs, rng):
    H, _ = bowl(7)
    steps = rng.standard_normal((pairs, 7))
    changes = steps @ H
    theta, gradient = rng.standard_normal(7), rng.standard_normal(7)
    state = Curvature(steps, changes, np.asarray(1.0), gradient, 1)
    accepted = (np.asarray(-1e9), np.zeros(7))  # so low and flat that the first trial will do
    new_theta, *_ = lbfgs().update(theta, state, lambda trial: accepted, learning_rate=1.0, xp=np)
    np.testing.assert_allclose(new_theta - theta, -inverse_hessian(steps, changes) @ gradient, rtol=DENSE, atol=DENSE)


def test_lbfgs_finds_a_quadratics_minimum_on_every_backend(backend, dtype):
    H, c = bowl(4)
    there = quadratic(backend.asarray(H, dtype), backend.asarray(c, dtype), backend.xp)
    path = follow(lbfgs(), backend.asarray(np.zeros(4), dtype), there, 25, xp=backend.xp)
    tolerance = {"float32": MINIMUM_FLOAT32, "float64": MINIMUM}[dtype]
    np.testing.assert_allclose(to_host(path.thetas[-1]), c, atol=tolerance)


def rosenbrock(theta):
    x, y = theta
    cost = (1 - x) ** 2 + 100 * (y - x**2) ** 2
    return cost, np.asarray([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])


def test_lbfgs_finds_rosenbrocks_minimum():
    path = follow(lbfgs(), np.asarray([-1.2, 1.0]), rosenbrock, 60)
    np.testing.assert_allclose(path.thetas[-1], [1.0, 1.0], atol=MINIMUM)


@quietly
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 6),
    condition=st.floats(1.0, 1e6),
    memory=st.integers(1, 4),
    learning_rate=st.floats(1e-3, 1e3),
)
def test_lbfgs_never_increases_the_cost(seed, size, condition, memory, learning_rate):
    H, c = bowl(size, seed=seed, condition=condition)
    path = follow(lbfgs(learning_rate, memory), np.zeros(size), quadratic(H, c), 12)
    assert path.costs == sorted(path.costs, reverse=True)


def ridge(theta):
    """Return ``|x| + |y| + 3 |x − y|`` and a slope of it: corners along three lines, the lowest at 0."""
    across = np.sign(theta[0] - theta[1])
    return np.abs(theta).sum() + 3 * np.abs(theta[0] - theta[1]), np.sign(theta) + across * np.asarray([3.0, -3.0])


@quietly
@given(start=st.lists(st.floats(-5, 5), min_size=2, max_size=2), learning_rate=st.floats(1e-3, 1e3))
def test_lbfgs_never_increases_the_cost_across_corners(start, learning_rate):
    path = follow(lbfgs(learning_rate), np.asarray(start), ridge, 12)
    assert path.costs == sorted(path.costs, reverse=True)


@pytest.mark.parametrize("learning_rate", [1e-3, 1.0, 1e3])
def test_every_step_of_lbfgs_meets_the_weak_wolfe_conditions(learning_rate):
    thetas = follow(lbfgs(learning_rate), np.asarray([-1.2, 1.0]), rosenbrock, 20).thetas
    ends = [(*rosenbrock(old), *rosenbrock(new), new - old) for old, new in pairwise(thetas)]
    assert all(
        cost <= old_cost + 1e-4 * (old_slope @ step) and slope @ step >= 0.9 * (old_slope @ step)
        for old_cost, old_slope, cost, slope, step in ends
    )


def test_lbfgs_refuses_a_step_that_hardly_lowers_the_cost():
    """From 1 in ``½ x²`` a step of 1.99999 ends at −0.99999: lower by 1e-5, where the search asks for 2e-4."""
    path = follow(lbfgs(learning_rate=1.99999), np.asarray([1.0]), quadratic(np.eye(1), np.zeros(1)), 1)
    assert abs(path.thetas[-1][0]) < 0.9


def test_lbfgs_first_goes_no_further_than_the_learning_rate():
    H, c = bowl(3)
    asked = []

    def steep(theta):
        asked.append(theta)
        cost, slope = quadratic(H, c)(theta)
        return 1e6 * cost, 1e6 * slope

    follow(lbfgs(learning_rate=0.5), np.zeros(3), steep, 1)
    assert np.linalg.norm(asked[1] - asked[0]) <= 0.5 * (1 + ROUNDING * np.finfo(float).eps)


def test_lbfgs_goes_downhill_where_its_memory_points_uphill():
    uphill = Curvature(np.asarray([[1.0, 0.0]]), np.asarray([[-1.0, 0.0]]), np.asarray(0.5), np.asarray([1.0, 0.0]), 1)
    evaluate = quadratic(np.eye(2), np.zeros(2))
    theta, *_ = lbfgs().update(np.asarray([1.0, 0.0]), uphill, evaluate, learning_rate=1.0, xp=np)
    assert evaluate(theta)[0] < 0.5


@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_lbfgs_comes_back_from_where_the_cost_is_not_finite(hole):
    asked_in_the_hole = []

    def barrier(theta):
        """Return ``10 (x − log x)``, lowest at 1, and its slope; below 0.9 neither is a number."""
        if theta[0] < 0.9:
            asked_in_the_hole.append(theta)
            return np.asarray(hole), np.full(1, np.nan)
        return 10.0 * (theta[0] - np.log(theta[0])), 10.0 - 10.0 / theta

    path = follow(lbfgs(), np.asarray([1.5]), barrier, 10)
    assert asked_in_the_hole, "the first step of 1 ends at 0.5, in the hole"
    np.testing.assert_allclose(path.thetas[-1], [1.0], atol=MINIMUM)


def test_lbfgs_stays_where_nothing_near_is_lower():
    H, c = bowl(3)
    path = follow(lbfgs(), c, quadratic(H, c), 3)
    np.testing.assert_array_equal(path.thetas[-1], c)


def test_lbfgs_stays_where_the_cost_no_longer_tells_one_point_from_another():
    slope = np.full(1, 1e-20)  # so gentle that thirty doublings of a step leave a cost of 1 as it is
    path = follow(lbfgs(), np.asarray([1.0]), lambda theta: (np.asarray(1.0), slope), 1)
    np.testing.assert_array_equal(path.thetas[-1], [1.0])


def test_lbfgs_stays_where_the_slope_is_not_finite():
    path = follow(lbfgs(), np.asarray([1.0]), lambda theta: (np.asarray(np.nan), np.full(1, np.nan)), 3)
    np.testing.assert_array_equal(path.thetas[-1], [1.0])


def test_lbfgs_goes_on_where_the_square_of_a_gradient_is_zero():
    """A cost without a minimum, as a logistic regression's of classes that a line tells apart: e^-θ on and on."""

    def fading(theta):
        return np.sum(np.exp(-theta)), -np.exp(-theta)

    path = follow(lbfgs(), np.zeros(2, dtype=np.float32), fading, 100)
    assert path.costs[-1] ** 2 < np.finfo(np.float32).smallest_subnormal


@pytest.mark.parametrize("memory", [1, 3])
def test_lbfgs_remembers_no_more_steps_than_it_was_told(memory):
    H, c = bowl(6)
    state = follow(lbfgs(memory=memory), np.zeros(6), quadratic(H, c), 6).state
    assert (state.steps.shape, state.changes.shape) == ((memory, 6), (memory, 6))


def test_lbfgs_never_asks_twice_at_one_point():
    H, c = bowl(6)
    evaluate, asked = quadratic(H, c), []

    def recorded(theta):
        asked.append(theta.tobytes())
        return evaluate(theta)

    follow(lbfgs(), np.zeros(6), recorded, 8)
    assert len(asked) == len(set(asked))


def test_only_lbfgs_must_see_all_examples_at_once():
    assert [name for name, make in OPTIMIZERS.items() if make().full_batch] == ["lbfgs"]


# --- what every optimizer promises


@every_optimizer
def test_the_cost_is_the_one_before_the_step(name):
    H, c = bowl(4)
    evaluate = quadratic(H, c)
    path = follow(OPTIMIZERS[name](), np.zeros(4), evaluate, 5)
    assert path.costs == [float(evaluate(theta)[0]) for theta in path.thetas[:-1]]


@every_optimizer
def test_the_cost_falls_in_a_bowl(name):
    H, c = bowl(4, condition=5.0)
    path = follow(OPTIMIZERS[name](), np.zeros(4), quadratic(H, c), 10)
    assert path.costs[-1] < path.costs[0]


@every_optimizer
def test_a_state_is_a_named_tuple_of_arrays_and_whole_numbers(backend, name):
    state = OPTIMIZERS[name]().init(backend.asarray(THETA, "float32"), xp=backend.xp)
    fields = state._asdict().values()
    assert all(isinstance(field, int) or dtype_name(field) == "float32" for field in fields)


def arrays_of(theta, state):
    return [theta, *(field for field in state if not isinstance(field, int))]


def two_states(backend, dtype, name):
    """Return a step's θ and state as they were then and as they are a step later, and those of the later step."""
    optimizer, xp = OPTIMIZERS[name](), backend.xp
    H, c = bowl(4)
    evaluate = quadratic(backend.asarray(H, dtype), backend.asarray(c, dtype), xp)
    theta = backend.asarray(THETA, dtype)
    theta, state, _ = optimizer.update(theta, optimizer.init(theta, xp=xp), evaluate, learning_rate=0.1, xp=xp)
    then = [to_host(array).copy() for array in arrays_of(theta, state)]
    new_theta, new_state, _ = optimizer.update(theta, state, evaluate, learning_rate=0.1, xp=xp)
    return then, [to_host(array) for array in arrays_of(theta, state)], arrays_of(new_theta, new_state)


@every_optimizer
def test_an_update_writes_into_neither_theta_nor_the_state(backend, name):
    then, a_step_later, _ = two_states(backend, "float32", name)
    np.testing.assert_equal(a_step_later, then)


@every_optimizer
def test_an_update_does_not_write_into_the_gradient(name):
    gradient = np.asarray(THETA)
    gradient.flags.writeable = False
    follow(OPTIMIZERS[name](), np.zeros(4), lambda theta: (theta @ gradient, gradient), 3)
    assert gradient.tolist() == THETA


@every_optimizer
def test_an_update_keeps_the_dtype(backend, dtype, name):
    *_, made = two_states(backend, dtype, name)
    assert {dtype_name(array) for array in made} == {dtype}


@every_optimizer
def test_an_update_stays_on_the_device(backend, name):
    *_, made = two_states(backend, "float32", name)
    assert [place_of(array) for array in made] == [backend.place] * len(made)


# --- learning rates


BAD_RATES = ["0", "0.1", 0, 0.0, -1, math.nan, math.inf, None, True, [0.1]]


@every_optimizer
@pytest.mark.parametrize("rate", BAD_RATES, ids=repr)
def test_a_bad_learning_rate_is_refused(name, rate):
    with pytest.raises(ArgumentError) as caught:
        OPTIMIZERS[name](rate)
    assert str(caught.value) == f"learning_rate must be a finite number more than 0; it is {rate!r}."


@every_optimizer
@pytest.mark.parametrize("rate", BAD_RATES, ids=repr)
def test_a_schedule_that_returns_a_bad_learning_rate_is_refused_with_its_epoch(name, rate):
    with pytest.raises(ArgumentError) as caught:
        OPTIMIZERS[name](lambda epoch: rate if epoch == 7 else 0.1).rate(7)
    assert str(caught.value) == f"learning_rate(7) must be a finite number more than 0; it is {rate!r}."


@every_optimizer
def test_a_schedule_is_asked_for_its_epoch(name):
    optimizer = OPTIMIZERS[name](lambda epoch: 0.5**epoch)
    assert [optimizer.rate(epoch) for epoch in range(3)] == [1.0, 0.5, 0.25]


@every_optimizer
@pytest.mark.parametrize("rate", [0.25, np.float32(0.25), np.asarray(0.25)], ids=["float", "float32", "array"])
def test_a_number_is_the_rate_of_every_epoch(name, rate):
    optimizer = OPTIMIZERS[name](rate)
    assert [optimizer.rate(epoch) for epoch in (0, 9)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: momentum(beta=1.0), "beta must be a finite number at least 0 and less than 1; it is 1.0."),
        (lambda: momentum(nesterov=1), "nesterov must be True or False; it is 1."),
        (lambda: momentum(beta=-0.1), "beta must be a finite number at least 0 and less than 1; it is -0.1."),
        (lambda: adam(beta1=1), "beta1 must be a finite number at least 0 and less than 1; it is 1."),
        (lambda: adam(beta2="0.9"), "beta2 must be a finite number at least 0 and less than 1; it is '0.9'."),
        (lambda: adam(epsilon=0.0), "epsilon must be a finite number more than 0; it is 0.0."),
        (lambda: lbfgs(memory=0), "memory must be 1 or more; it is 0."),
        (lambda: lbfgs(memory=2.5), "memory must be a whole number, 1 or more; it is 2.5."),
    ],
)
def test_a_bad_setting_is_refused(make, message):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert str(caught.value) == message


# --- names


@every_optimizer
def test_a_name_is_its_optimizer(name):
    assert resolve(name).name == name


@every_optimizer
def test_a_given_learning_rate_takes_the_place_of_the_optimizers_own(name):
    assert resolve(OPTIMIZERS[name](0.5), 0.125).rate(0) == 0.125


@every_optimizer
def test_without_a_learning_rate_an_optimizer_is_taken_as_it_is(name):
    optimizer = OPTIMIZERS[name](0.5)
    assert resolve(optimizer) is optimizer


def test_an_optimizer_of_ones_own_is_taken():
    own = Optimizer("own", lambda theta, *, xp: (), lambda *given, **options: given, 0.1)
    assert resolve(own, lambda epoch: 1.0 + epoch).rate(2) == 3.0


@pytest.mark.parametrize("rate", [rate for rate in BAD_RATES if rate is not None], ids=repr)
def test_a_bad_learning_rate_given_beside_a_name_is_refused(rate):
    with pytest.raises(ArgumentError, match="learning_rate must be a finite number more than 0"):
        resolve("adam", rate)


@pytest.mark.parametrize(("typed", "meant"), [("adm", "adam"), ("LBFGS", "lbfgs"), ("momentun", "momentum")])
def test_an_unknown_name_is_refused_with_the_nearest(typed, meant):
    listed = "'gd', 'momentum', 'adam', 'lbfgs', or made by xpnet.optimizers"
    with pytest.raises(ArgumentError) as caught:
        resolve(typed)
    assert str(caught.value) == f'optimizer must be one of {listed}; it is {typed!r}. Did you mean "{meant}"?'


@pytest.mark.parametrize("value", [None, 3, adam, ["adam"]], ids=["None", "3", "adam uncalled", "list"])
def test_what_is_neither_a_name_nor_an_optimizer_is_refused(value):
    with pytest.raises(ArgumentError, match=r"made by xpnet\.optimizers, such as xpnet\.optimizers\.adam\(\); it is "):
        resolve(value)
