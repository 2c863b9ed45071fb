"""What is replayed is what the function says, in fewer arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet import equations, initializers
from xpnet.activations import ACTIVATIONS
from xpnet.heads import HEADS
from xpnet.record import UnrecordableError
from xpnet.replay import Recording, replay
from xpnet.typing import Layer

# Sums are put as products, whose order of adding differs: a few roundings of float64.
ROUNDING = 100 * float(np.finfo(np.float64).eps)


def replayed(function, *arguments, turned=None):
    """What recording, binding and replaying a function gives."""
    results = [np.full_like(np.asarray(value), np.nan) for value in function(*arguments)]
    calls = Recording(function, arguments, results, turned=turned).bind(arguments, results)
    replay(calls)
    return results


def network(hidden, seed=0):
    return initializers.xavier((5, *hidden, 3), random_state=seed)


def gradient(activation, head):
    def function(X, Y, weight, *leaves):
        layers = [Layer(*pair) for pair in zip(leaves[::2], leaves[1::2], strict=True)]
        total, gradients = equations.gradient(
            layers, X, Y, activation=ACTIVATIONS[activation], head=HEADS[head], sample_weight=weight, xp=np
        )
        return [total, *(array for layer in gradients for array in layer)]

    return function


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hidden", [(), (4,), (4, 6)])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_equations_replayed_give_what_they_give(activation, head, hidden, weighted, rng):
    X, Y = rng.normal(size=(11, 5)).T, np.eye(3)[rng.integers(0, 3, 11)].T
    leaves = [array for layer in network(hidden) for array in layer]
    weight = rng.random((11, 1)).T if weighted else None
    function = gradient(activation, head)
    for found, true in zip(replayed(function, X, Y, weight, *leaves), function(X, Y, weight, *leaves), strict=True):
        np.testing.assert_allclose(found, true, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("turned", [None, 11])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hidden", [(4,), (16,), (4, 6), (16, 4)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_single_outputs_error_goes_back_as_the_equations_say(monkeypatch, activation, hidden, weighted, turned, rng):
    monkeypatch.setattr("xpnet.replay.LARGE", 1)
    monkeypatch.setattr("xpnet.replay.TALL", 1)
    X, Y = rng.normal(size=(11, 5)).T, rng.integers(0, 2, (11, 1)).astype(float).T
    leaves = [array for layer in initializers.xavier((5, *hidden, 1), random_state=0) for array in layer]
    weight = rng.random((11, 1)).T if weighted else None
    function = gradient(activation, "sigmoid")
    found = replayed(function, X, Y, weight, *leaves, turned=turned)
    for ours, true in zip(found, function(X, Y, weight, *leaves), strict=True):
        np.testing.assert_allclose(ours, true, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(("others", "passes"), [(3, 0), (64, 1)])
def test_a_column_times_a_row_is_not_made_where_a_product_follows(monkeypatch, others, passes, rng):
    """Nothing of D's size is multiplied when the other factor is smaller, and D alone when it is not."""
    monkeypatch.setattr("xpnet.replay.LARGE", 1)
    a, r, D, B = (rng.normal(size=size) for size in ((8, 1), (1, 11), (8, 11), (11, others)))
    arguments, results = [a, r, D, B], [np.empty((8, others))]
    calls = Recording(lambda a, r, D, B: [((a @ r) * D) @ B], arguments, results).bind(arguments, results)
    assert sum(function is np.multiply and arguments[-1].shape == D.shape for function, arguments in calls) == passes
    replay(calls)
    np.testing.assert_allclose(results[0], (a * r * D) @ B, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(("features", "units", "columns", "adds"), [(2, 8, 11, 0), (3, 8, 11, 1), (2, 8, 7, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_bias_is_a_part_of_the_product_where_features_are_few(
    monkeypatch, features, units, columns, adds, turned, rng
):
    monkeypatch.setattr("xpnet.replay.LARGE", 1)
    W, X, b = (rng.normal(size=size) for size in ((units, features), (features, columns), (units, 1)))
    results = [np.empty((units, columns))]
    recording = Recording(lambda W, X, b: [W @ X + b], [W, X, b], results, turned=columns if turned else None)
    calls = recording.bind([W, X, b], results)
    assert sum(function is np.add for function, _ in calls) == adds
    replay(calls)
    np.testing.assert_allclose(results[0], W @ X + b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, r, D, B: [((a @ r) * D) @ B, (a @ r) * D],
        lambda a, r, D, B: [((a @ r) * D) @ B, np.exp((a @ r) * D)],
        lambda a, r, D, B: [((a @ r) * D) @ B, np.exp(a @ r)],
        lambda a, r, D, B: [((a @ r) * D) @ B, np.sum((a @ r) * D, axis=-2, keepdims=True)],
        lambda a, r, D, B: [((a @ r) * D) @ np.matrix_transpose((a @ r) * D), B + 1.0],
        lambda a, r, D, B: [((a @ r) * (a @ r)) @ B, D + 1.0],
        lambda a, r, D, B: [((a @ r) * 2.0) @ B, D + 1.0],
        lambda a, r, D, B: [((a @ r) * a) @ B, D + 1.0],
        lambda a, r, D, B: [((a @ r) * r) @ B, D + 1.0],
    ],
    ids=[
        "a result",
        "used otherwise",
        "the product used again",
        "summed over rows",
        "times itself",
        "squared",
        "times a number",
        "times a column",
        "times a row",
    ],
)
def test_a_column_times_a_row_is_made_where_it_is_needed(monkeypatch, function, rng):
    monkeypatch.setattr("xpnet.replay.LARGE", 1)
    arguments = [rng.normal(size=size) for size in ((8, 1), (1, 11), (8, 11), (11, 3))]
    for found, true in zip(replayed(function, *arguments), function(*arguments), strict=True):
        np.testing.assert_allclose(found, true, rtol=ROUNDING, atol=ROUNDING)


def test_new_numbers_in_the_same_arrays_are_read_at_each_replay(rng):
    X, Y = rng.normal(size=(5, 11)), np.eye(3)[:, rng.integers(0, 3, 11)]
    leaves = [array for layer in network((4,)) for array in layer]
    function = gradient("tanh", "softmax")
    results = [np.asarray(value).copy() for value in function(X, Y, None, *leaves)]
    calls = Recording(function, [X, Y, None, *leaves], results).bind([X, Y, None, *leaves], results)
    X[...] = rng.normal(size=X.shape)
    leaves[0][...] = rng.normal(size=leaves[0].shape)
    replay(calls)
    for found, true in zip(results, function(X, Y, None, *leaves), strict=True):
        np.testing.assert_allclose(found, true, rtol=ROUNDING, atol=ROUNDING)


def test_other_arrays_of_the_shape_recorded_can_be_bound(rng):
    first, second = rng.normal(size=(2, 3, 4))
    out = np.empty((3, 4))
    recording = Recording(lambda x: [np.exp(x) * x], [first], [out])
    replay(recording.bind([second], [out]))
    np.testing.assert_allclose(out, np.exp(second) * second, rtol=ROUNDING)


def test_no_argument_is_written_into(rng):
    arguments = [rng.normal(size=(5, 11)), np.eye(3)[:, rng.integers(0, 3, 11)], rng.random((1, 11))]
    arguments += [array for layer in network((4,)) for array in layer]
    for array in arguments:
        array.flags.writeable = False
    replayed(gradient("gelu", "sigmoid"), *arguments)


def test_the_same_operation_is_done_once():
    x, out = np.linspace(-1, 1, 7), np.empty(7)
    calls = Recording(lambda x: [np.exp(x) + np.exp(x)], [x], [out]).bind([x], [out])
    assert [function for function, _ in calls] == [np.exp, np.add]


def test_buffers_are_used_again():
    x, out = np.linspace(-1, 1, 7), np.empty(7)
    calls = Recording(lambda x: [np.tanh(np.exp(np.sin(np.cos(x)))) + 1.0], [x], [out]).bind([x], [out])
    assert len({id(arguments[-1]) for _, arguments in calls}) == 2  # one for the chain, and the result's


def test_an_argument_that_is_still_needed_is_not_written_over(rng):
    x = rng.normal(size=7)
    (found,) = replayed(lambda x: [(y := np.exp(x)) * np.tanh(y) + y], x)
    np.testing.assert_allclose(found, np.exp(x) * np.tanh(np.exp(x)) + np.exp(x), rtol=ROUNDING)


def test_a_transpose_is_not_written_over_while_it_is_read(rng):
    x = rng.normal(size=(5, 5))
    (found,) = replayed(lambda x: [(y := np.exp(x)) + np.matrix_transpose(y)], x)
    np.testing.assert_allclose(found, np.exp(x) + np.exp(x).T, rtol=ROUNDING)


def test_a_result_may_replace_the_argument_it_is_made_of(rng):
    x, g = rng.normal(size=(2, 7))
    expected = x - 0.1 * g
    recording = Recording(lambda x, g: [x - 0.1 * g], [x, g], [x])
    replay(recording.bind([x, g], [x]))
    np.testing.assert_allclose(x, expected, rtol=ROUNDING)


def test_a_result_may_not_replace_an_argument_that_is_read_later(rng):
    x, g, out = rng.normal(size=(3, 7))
    with pytest.raises(UnrecordableError):
        Recording(lambda x, g: [y := x - 0.1 * g, x * y], [x, g], [x, out])


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: [x if x > 0 else -x], id="branches on a value"),
        pytest.param(lambda x: [x * float(x)], id="reads a value"),
        pytest.param(
            lambda x: [np.cumulative_sum(x)] if hasattr(np, "cumulative_sum") else [np.cumsum(x)], id="unknown"
        ),
        pytest.param(lambda x: [x * np.arange(7.0)], id="an array of its own"),
        pytest.param(lambda x: [np.add.reduce(x)], id="a ufunc's method"),
        pytest.param(lambda x: [x], id="returns its argument"),
        pytest.param(lambda x: [np.zeros(x.shape)], id="returns a plain array"),
        pytest.param(list, id="iterates"),
    ],
)
def test_what_a_record_cannot_hold_is_refused(function):
    with pytest.raises((UnrecordableError, TypeError)):
        Recording(function, [np.ones(7)], [np.empty(7)])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_chain_of_operations_replays_to_what_it_computes(data):
    unary = [np.tanh, np.negative, np.abs, np.exp, lambda x: np.maximum(x, 0.0), lambda x: np.where(x > 0.0, x, 0.5)]
    binary = [np.add, np.multiply, np.subtract, np.minimum]
    plan = data.draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12)
    )

    def function(x, y):
        known = [x, y]
        for kind, i, j in plan:
            a, b = known[i % len(known)], known[j % len(known)]
            known.append(np.tanh(unary[kind](a)) if kind < len(unary) else binary[kind - len(unary)](a, b))
        return [known[-1] + 0.0]

    x, y = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(2, 4, 5))
    (found,) = replayed(function, x, y)
    np.testing.assert_array_equal(found, function(x, y)[0])
