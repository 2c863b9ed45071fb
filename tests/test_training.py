"""The loop, through `xpnet.fit`: what it computes, where it stops, and that nothing is lost when it is interrupted.

Networks are compared bit for bit where nothing but bookkeeping differs, and within rounding where sums are made in
another order. Costs that must be exact come from an optimizer that reads them off a list.
"""

import dataclasses
import hashlib
import io
import math
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest

import xpnet
from xpnet import data, files
from xpnet.checkpoint import Kept
from xpnet.device import to_host
from xpnet.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    DivergedError,
    FileFormatError,
    ScaleWarning,
    ShapeError,
)

ROOT = Path(__file__).parents[1]

EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
ROUNDING = 100  # times ε: sums of some hundred terms, made in another order
NAMESPACES = 1e-5  # the design's promise for one epoch in float32: a few steps of some hundred roundings each
LECTURE = 1e-9  # 7,000 steps: one unit in the last place of the weights moves these costs by 3e-15 at most

HEADS = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multilabel": "sigmoid",
    "regression": "identity",
    "count": "exp",
}
TASKS = list(HEADS)
DESCENTS = {
    "gd, auto": {"optimizer": "gd"},
    "gd, full": {"optimizer": "gd", "batch_size": "full"},
    "momentum, 50": {"optimizer": "momentum", "batch_size": 50},
    "momentum, full": {"optimizer": "momentum", "batch_size": "full"},
    "adam, auto": {"optimizer": "adam"},
    "adam, 7": {"optimizer": "adam", "batch_size": 7},
    "adam, full": {"optimizer": "adam", "batch_size": "full"},
    "lbfgs": {"optimizer": "lbfgs"},
}

every_task = pytest.mark.parametrize("task", TASKS)
every_descent = pytest.mark.parametrize("descent", DESCENTS.values(), ids=DESCENTS)
posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


def problem(task="binary", m=90, n_x=3, seed=0):
    """Return X (n_x, m), float32 numbers in float64, and a Y of the task."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_x, m)).astype(np.float32).astype(np.float64)
    score = X[0] * X[-1] + X[1]
    Y = {
        "binary": (score > 0).astype(int),
        "multiclass": np.digitize(score, [-0.5, 0.5]),
        "multilabel": np.stack([score > 0, X[0] > 0, X[1] > 0.5]).astype(int),
        "regression": np.stack([score, X[0] - X[1]]),
        "count": rng.poisson(np.exp(0.5 * score)),
    }[task]
    return X, Y


def encoded(task, Y):
    return np.eye(3)[:, Y] if task == "multiclass" else np.atleast_2d(Y).astype(np.float64)


def start(sizes, seed=1):
    """Return weights to start from, as a user would bring them."""
    rng = np.random.default_rng(seed)
    return [
        (0.5 * rng.standard_normal((n_out, n_in)), 0.1 * rng.standard_normal((n_out, 1)))
        for n_in, n_out in pairwise(sizes)
    ]


def fit(X, Y=None, **options):
    """Call `xpnet.fit` for a few epochs of a small network, unless the options say otherwise."""
    return xpnet.fit(X, Y, **{"hidden": 6, "epochs": 3, "random_state": 0, "patience": None, **options})


def theta(net):
    """Return the parameters as one float64 vector on the host."""
    return np.concatenate([to_host(array).ravel() for layer in net.layers for array in layer]).astype(np.float64)


def bits(net):
    """Return all that training made, bit for bit; the clock's readings are left out."""
    history = {key: values for key, values in net.history.items() if key != "seconds"}
    return hashlib.sha256(theta(net).tobytes()).hexdigest(), history, net.epochs_run, net.best_epoch, net.random_state


def distance(net, other):
    """Return the relative distance between two networks' parameters."""
    ours, theirs = (part if isinstance(part, np.ndarray) else theta(part) for part in (net, other))
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


# The lecture ----------------------------------------------------------------------------------------------------------


class Lecture(NamedTuple):
    """The exercise of the course: the net that xpnet trains, and the costs that the ten literal lines give."""

    net: Any
    costs: dict[int, float]


@pytest.fixture(scope="module", params=[3, 1, 6])
def lecture(request):
    X, Y = xpnet.datasets.flower()
    initial = xpnet.initializers.small_normal((2, 4, 1), random_state=request.param)
    net = xpnet.fit(
        X,
        Y,
        hidden=4,
        activation="tanh",
        optimizer="gd",
        learning_rate=1.2,
        batch_size="full",
        epochs=10_000,
        patience=None,
        dtype="float64",
        initial=initial,
    )
    (W1, b1), (W2, b2) = initial
    costs, _ = oracle.descend(W1, b1, W2, b2, X, Y[None, :], learning_rate=1.2, iterations=7_001, every=1_000)
    return Lecture(net, costs)


def test_the_lectures_costs_are_those_of_the_ten_lines(lecture):
    ours = [lecture.net.history["cost"][i] for i in lecture.costs]
    np.testing.assert_allclose(ours, list(lecture.costs.values()), rtol=0, atol=LECTURE)


def test_the_lectures_network_tells_the_petals_apart(lecture):
    assert lecture.net.score(*xpnet.datasets.flower()) >= 0.90


def test_logistic_regression_cannot_tell_the_petals_apart():
    X, Y = xpnet.datasets.flower()
    net = xpnet.fit(X, Y, hidden=(), optimizer="gd", learning_rate=1.2, batch_size="full", epochs=1_000, random_state=0)
    assert round(net.score(X, Y), 2) == 0.47


@pytest.mark.parametrize("hidden", [(), (6,), (5, 4)], ids=str)
@every_task
def test_the_first_cost_is_that_of_the_initial_parameters(task, hidden):
    X, Y = problem(task)
    targets = encoded(task, Y)
    initial = start((3, *hidden, targets.shape[0]))
    expected, _ = oracle.gradients(initial, X, targets, "tanh", HEADS[task], l2=0.7)
    net = fit(X, Y, task=task, hidden=hidden, activation="tanh", batch_size="full", l2=0.7, initial=initial)
    assert net.history["cost"][0] == pytest.approx(expected, rel=ROUNDING * EPS["float32"])


# One step -------------------------------------------------------------------------------------------------------------


def stepped(initial, X, targets, *, alpha, weight_sum=None, **options):
    """Return the parameters after one step of the course's update, with weights' sum in m's place."""
    share = 1.0 if weight_sum is None else X.shape[1] / weight_sum
    _, gradients = oracle.gradients(initial, X, targets, **options)
    parts = [
        part - alpha * share * slope
        for layer, slopes in zip(initial, gradients, strict=True)
        for part, slope in zip(layer, slopes, strict=True)
    ]
    return np.concatenate([part.ravel() for part in parts])


@pytest.mark.parametrize("hidden", [(), (6,), (5, 4)], ids=str)
@every_task
def test_a_full_batch_step_with_l2_is_the_courses(task, hidden):
    X, Y = problem(task)
    targets = encoded(task, Y)
    initial = start((3, *hidden, targets.shape[0]))
    net = fit(
        X,
        Y,
        task=task,
        hidden=hidden,
        activation="tanh",
        optimizer="gd",
        learning_rate=0.3,
        batch_size="full",
        l2=2.0,
        initial=initial,
        epochs=1,
        dtype="float64",
    )
    expected = stepped(initial, X, targets, alpha=0.3, activation="tanh", head=HEADS[task], l2=2.0)
    assert distance(net, expected) <= ROUNDING * EPS["float64"]


def test_a_weighted_step_is_the_courses_with_the_weights_sum_for_m(rng):
    X, Y = problem()
    weight = rng.uniform(0, 3, Y.size)
    initial = start((3, 6, 1))
    net = fit(
        X,
        Y,
        activation="tanh",
        optimizer="gd",
        learning_rate=0.3,
        batch_size="full",
        l2=2.0,
        initial=initial,
        epochs=1,
        dtype="float64",
        sample_weight=weight,
    )
    expected = stepped(
        initial, X, Y[None, :], alpha=0.3, weight_sum=weight.sum(), activation="tanh", sample_weight=weight, l2=2.0
    )
    assert distance(net, expected) <= ROUNDING * EPS["float64"]


def test_a_penalty_on_batches_adds_up_to_that_of_the_whole():
    # In one epoch of a step so small that θ hardly moves, the batches' mean cost is the full batch's.
    X, Y = problem(m=96)
    options = {"optimizer": "gd", "learning_rate": 1e-12, "l2": 5.0, "epochs": 1, "dtype": "float64"}
    parts, whole = (fit(X, Y, batch_size=size, **options) for size in (32, "full"))
    assert parts.history["cost"][0] == pytest.approx(whole.history["cost"][0], rel=1e-10)  # 100 times the step


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "count"])
def test_an_integer_weight_is_a_repetition(task, rng):
    X, Y = problem(task)
    times = rng.integers(0, 4, X.shape[1])
    options = {"task": task, "batch_size": "full", "l2": 1.5, "dtype": "float64", "optimizer": "gd"}
    weighted = fit(X, Y, sample_weight=times, **options)
    repeated = fit(np.repeat(X, times, axis=1), np.repeat(Y, times, axis=-1), **options)
    assert distance(weighted, repeated) <= ROUNDING * EPS["float64"]


def test_an_integer_weight_costs_what_a_repetition_costs(rng):
    X, Y = problem()
    times = rng.integers(0, 4, X.shape[1])
    weighted = fit(X, Y, sample_weight=times, batch_size="full", l2=1.5)
    repeated = fit(np.repeat(X, times, axis=1), np.repeat(Y, times), batch_size="full", l2=1.5)
    assert weighted.history["cost"] == pytest.approx(repeated.history["cost"], rel=ROUNDING * EPS["float32"])


@pytest.mark.parametrize("scale", [0.5, 3.0, 1e9])
def test_only_the_proportions_of_weights_matter_without_a_penalty(scale, rng):
    X, Y = problem()
    weight = rng.uniform(0, 3, Y.size)
    nets = (fit(X, Y, sample_weight=factor * weight, dtype="float64") for factor in (1.0, scale))
    assert distance(*nets) <= ROUNDING * EPS["float64"]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_balanced_classes_are_the_sample_weights_they_stand_for(task):
    X, Y = problem(task)
    labels, counts = np.unique(Y, return_counts=True)
    weight = (Y.size / (labels.size * counts))[np.searchsorted(labels, Y)]
    balanced = fit(X, Y, task=task, class_weight="balanced")
    assert bits(balanced) == bits(fit(X, Y, task=task, sample_weight=weight))


def test_class_weights_multiply_sample_weights(rng):
    X, Y = problem()
    words, weight = np.where(Y == 1, "yes", "no"), rng.uniform(0.5, 2, Y.size)
    both = fit(X, words, class_weight={"yes": 3.0}, sample_weight=weight)
    assert bits(both) == bits(fit(X, words, sample_weight=weight * np.where(Y == 1, 3.0, 1.0)))


# Standardizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("descent", [DESCENTS["adam, auto"], DESCENTS["gd, full"]], ids=["adam, auto", "gd, full"])
def test_powers_of_two_do_not_change_a_standardized_network(descent):
    X, Y = problem()
    scales = np.array([[2.0**-20], [1.0], [2.0**30]])
    net, scaled = (fit(given, Y, standardize=True, **descent) for given in (X, scales * X))
    assert theta(net).tobytes() == theta(scaled).tobytes()


def test_a_shift_changes_a_standardized_networks_output_by_rounding_alone(rng):
    X, Y = rng.integers(-50, 50, (3, 90)).astype(np.float64), problem()[1]
    shift = np.array([[2.0**20], [-7.0], [1000.0]])
    nets = [fit(given, Y, standardize=True, dtype="float64") for given in (X, X + shift)]
    # The shift is 2e4 deviations, and a deviation is known to that many ε.
    outputs = nets[1].predict_proba(X + shift), nets[0].predict_proba(X)
    np.testing.assert_allclose(*outputs, rtol=0, atol=2e4 * ROUNDING * EPS["float64"])


def test_a_standardized_network_takes_raw_examples():
    X, Y = problem()
    X = X * np.array([[1e3], [1e-3], [1.0]]) + np.array([[-5e3], [2.0], [0.0]])
    net = fit(X, Y, standardize=True, activation="tanh", dtype="float64")
    Z = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    expected = 1 / (1 + np.exp(-(net.W2 @ np.tanh(net.W1 @ Z + net.b1) + net.b2)))
    np.testing.assert_allclose(net.predict_proba(X), expected, rtol=1e4 * ROUNDING * EPS["float64"])  # means of 5 σ


def test_a_constant_feature_can_be_standardized():
    X, Y = problem()
    X[1] = 7.0
    assert np.isfinite(fit(X, Y, standardize=True).predict_proba(X)).all()


def test_badly_scaled_features_are_named_once():
    X, Y = problem()
    X[1] *= 1e4
    with pytest.warns(ScaleWarning, match=r"feature 1 \(size .*standardize=True") as caught:
        fit(X, Y)
    assert len(caught) == 1


# One seed, one network ------------------------------------------------------------------------------------------------


@every_descent
def test_one_seed_gives_one_network_bit_for_bit(descent):
    X, Y = problem()
    assert bits(fit(X, Y, **descent)) == bits(fit(X, Y, **descent))


@every_descent
def test_one_seed_gives_one_network_bit_for_bit_on_two_threads(descent):
    # 2²¹ multiply-adds a step and more make blocks worth handing to threads; the small batches have fewer.
    X, Y = problem(m=3_000, n_x=20)
    options = {"hidden": 40, "threads": 2, "epochs": 2, **descent}
    assert bits(fit(X, Y, **options)) == bits(fit(X, Y, **options))


@every_descent
def test_different_seeds_give_different_networks(descent):
    X, Y = problem()
    assert bits(fit(X, Y, **descent)) != bits(fit(X, Y, **descent, random_state=1))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_the_network_by_rounding_alone(threads):
    X, Y = problem(m=3_000, n_x=20)
    options = {"hidden": 40, "dtype": "float64", "batch_size": "full", "optimizer": "gd"}
    assert distance(fit(X, Y, threads=threads, **options), fit(X, Y, **options)) <= ROUNDING * EPS["float64"]


def test_a_seed_is_drawn_when_none_is_given():
    X, Y = problem()
    assert fit(X, Y, random_state=None).random_state != fit(X, Y, random_state=None).random_state


@every_descent
def test_the_seed_that_was_drawn_repeats_the_network(descent):
    X, Y = problem()
    net = fit(X, Y, random_state=None, **descent)
    assert bits(fit(X, Y, random_state=net.random_state, **descent)) == bits(net)


ACROSS = [
    (optimizer, task, list(oracle.G)[(4 * i + j) % len(oracle.G)])
    for i, optimizer in enumerate(("gd", "momentum", "adam", "lbfgs"))
    for j, task in enumerate(TASKS)
]


@pytest.mark.parametrize(("optimizer", "task", "activation"), ACROSS)
def test_one_seed_gives_one_network_in_every_namespace(optimizer, task, activation, backend):
    X, Y = problem(task, m=96)
    options = {"task": task, "optimizer": optimizer, "activation": activation, "epochs": 1}
    reference = fit(X.astype(np.float32), Y, **options)
    net = fit(backend.asarray(X, "float32"), Y, **options)
    assert distance(net, reference) <= NAMESPACES


@pytest.mark.parametrize("options", [{"standardize": True}, {"validation_fraction": 0.25}, {"l2": 3.0}], ids=str)
def test_options_mean_the_same_in_every_namespace(options, backend):
    X, Y = problem(m=96)
    reference = fit(X.astype(np.float32), Y, epochs=1, **options)
    assert distance(fit(backend.asarray(X, "float32"), Y, epochs=1, **options), reference) <= NAMESPACES


def test_weights_mean_the_same_in_every_namespace(backend, rng):
    X, Y = problem(m=96)
    weight = rng.uniform(0, 2, 96)
    reference = fit(X.astype(np.float32), Y, epochs=1, sample_weight=weight, class_weight="balanced")
    arrays = (backend.asarray(X, "float32"), backend.asarray(Y))
    net = fit(*arrays, epochs=1, sample_weight=backend.asarray(weight, "float32"), class_weight="balanced")
    assert distance(net, reference) <= NAMESPACES


def test_the_network_lives_where_x_lives(backend):
    X, Y = problem()
    net = fit(backend.asarray(X, "float32"), Y)
    assert (type(net.W1), net.device) == (type(backend.asarray(X, "float32")), backend.place.name)


# Stopping -------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    t: int


def scripted(costs):
    """Return an optimizer that stays where it is and finds these costs, one a step, whatever the data."""

    def init(theta, *, xp):
        return Step(0)

    def update(theta, state, evaluate, *, learning_rate, xp):
        return theta, Step(state.t + 1), xp.asarray(costs[state.t], dtype=theta.dtype)

    return xpnet.optimizers.Optimizer("scripted", init, update, 1.0)


SCRIPTS = {
    # name: costs, tol, patience, epochs run
    "flat": ([1.0] * 9, 0.25, 3, 4),
    "a patience of one": ([1.0] * 9, 0.25, 1, 2),
    "a fall of tol exactly is none": ([1.0] + [0.75] * 9, 0.25, 3, 4),
    "a fall of more than tol": ([1.0] + [0.5] * 9, 0.25, 3, 5),
    "small falls add up": ([1.0, 0.875, 0.8125, 0.625] + [0.625] * 9, 0.25, 3, 7),
    "small falls that add up too late": ([1.0, 0.9375, 0.875, 0.8125, 0.5, 0.25], 0.25, 3, 4),
    "a rise is no fall": ([1.0, 2.0, 4.0, 0.5] + [8.0] * 9, 0.25, 3, 7),
    "a fall from a rise is none": ([1.0, 8.0, 1.0, 8.0, 1.0, 0.1], 0.25, 3, 4),
    "without tol any fall counts": ([1.0, 1.0 - 2.0**-40, 1.0 - 2.0**-39] + [1.0] * 9, 0.0, 3, 6),
    "the last epoch is soon enough": ([1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25], 0.2, 3, 10),
}
every_script = pytest.mark.parametrize(("costs", "tol", "patience", "epochs_run"), SCRIPTS.values(), ids=SCRIPTS)


@every_script
def test_training_stops_when_patience_has_run_out(costs, tol, patience, epochs_run):
    options = {"optimizer": scripted(costs), "batch_size": "full", "epochs": len(costs), "dtype": "float64"}
    net = fit(*problem(), tol=tol, patience=patience, **options)
    assert (net.epochs_run, net.stop_reason) == (epochs_run, "patience")


@every_script
def test_without_patience_training_never_stops_early(costs, tol, patience, epochs_run):
    options = {"optimizer": scripted(costs), "batch_size": "full", "epochs": len(costs), "dtype": "float64"}
    net = fit(*problem(), tol=tol, patience=None, **options)
    assert (net.epochs_run, net.stop_reason) == (len(costs), "epochs")


def test_history_holds_the_costs_as_they_were():
    costs = [1.0, 0.5, 2.0]
    net = fit(*problem(), optimizer=scripted(costs), batch_size="full", dtype="float64")
    assert net.history["cost"] == costs


def test_a_cost_of_batches_is_their_mean_by_columns():
    # 90 columns in batches of 60 and 30.
    net = fit(*problem(m=90), optimizer=scripted([1.0, 4.0]), batch_size=60, epochs=1, dtype="float64")
    assert net.history["cost"] == [2.0]


def test_the_best_epoch_is_the_first_of_the_lowest_cost():
    costs = [3.0, 1.0, 2.0, 1.0, 5.0]
    net = fit(*problem(), optimizer=scripted(costs), batch_size="full", epochs=5)
    assert net.best_epoch == 1


def test_the_validation_cost_is_what_is_monitored():
    # The training costs fall all the way; the parameters, and so the validation cost, stay as they are.
    falling = [float(cost) for cost in range(20, 0, -1)]
    options = {"optimizer": scripted(falling), "batch_size": "full", "epochs": 20}
    net = fit(*problem(), validation_data=problem(seed=1), patience=4, **options)
    assert (net.epochs_run, net.stop_reason) == (5, "patience")


STORM = {"optimizer": "gd", "learning_rate": lambda epoch: 0.5 if epoch < 6 else 10.0, "epochs": 12}
"""Descent for six epochs, then steps so long that the cost rises."""


def test_with_validation_data_the_best_parameters_come_back():
    held = problem(seed=1)
    net = fit(*problem(), validation_data=held, **STORM)
    assert net.cost(*held) == pytest.approx(min(net.history["validation_cost"]), rel=ROUNDING * EPS["float32"])


def test_the_last_parameters_were_worse_than_the_best_that_came_back():
    net = fit(*problem(), validation_data=problem(seed=1), **STORM)
    assert net.history["validation_cost"][-1] > 1.2 * min(net.history["validation_cost"])


def test_the_best_epoch_is_that_of_the_lowest_validation_cost():
    net = fit(*problem(), validation_data=problem(seed=1), **STORM)
    assert net.best_epoch == int(np.argmin(net.history["validation_cost"]))


def test_weighted_validation_data_are_monitored_with_their_weights(rng):
    (X, Y), weight = problem(seed=1), rng.uniform(0, 2, 90)
    net = fit(*problem(), validation_data=(X, Y, weight), epochs=1)
    assert net.history["validation_cost"] == [
        pytest.approx(net.cost(X, Y, sample_weight=weight), rel=ROUNDING * EPS["float32"])
    ]


def test_without_validation_data_the_last_parameters_come_back():
    X, Y = problem()
    initial = start((3, 6, 1))
    net = fit(X, Y, activation="tanh", batch_size="full", initial=initial, dtype="float64", **STORM)
    layers = initial
    for epoch in range(STORM["epochs"]):
        _, slopes = oracle.gradients(layers, X, Y[None, :])
        rate = STORM["learning_rate"](epoch)
        layers = [(W - rate * dW, b - rate * db) for (W, b), (dW, db) in zip(layers, slopes, strict=True)]
    expected = np.concatenate([part.ravel() for layer in layers for part in layer])
    assert distance(net, expected) <= 10 * ROUNDING * EPS["float64"]  # six steps of 10 times the gradient


def test_without_validation_data_there_are_no_validation_costs():
    assert fit(*problem()).history["validation_cost"] == []


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_validation_fraction_is_that_share_of_the_examples(fraction):
    X, Y = problem(m=80)
    _, held = data.split(80, fraction, 0)
    net = fit(X, Y, validation_fraction=fraction, epochs=1, dtype="float64")
    shares = (round(held.size / 80, 9), net.history["validation_cost"][0])
    expected = net.cost(X[:, held], Y[held])
    assert shares == (fraction, pytest.approx(expected, rel=ROUNDING * EPS["float64"]))


@pytest.mark.parametrize("standardize", [False, True])
@every_descent
def test_the_examples_held_out_are_never_trained_on(descent, standardize):
    X, Y = problem()
    _, held = data.split(90, 0.3, 0)
    other_X, other_Y = X.copy(), Y.copy()
    other_X[:, held], other_Y[held] = 3.0 - X[:, held], 1 - Y[held]
    options = {"validation_fraction": 0.3, "standardize": standardize, **descent}
    nets = [fit(*given, **options) for given in ((X, Y), (other_X, other_Y))]
    assert nets[0].history["cost"] == nets[1].history["cost"]


def test_a_split_that_leaves_no_weight_is_refused():
    X, Y = problem()
    weight = np.zeros(90)
    weight[17] = 1.0
    with pytest.raises(DataError, match="each side of validation_fraction"):
        fit(X, Y, sample_weight=weight, validation_fraction=0.5)


def test_validation_columns_in_another_order_are_refused():
    pandas = pytest.importorskip("pandas")
    X, Y = problem()
    table = pandas.DataFrame(X.T, columns=["a", "b", "c"])
    with pytest.raises(ShapeError, match="'b', 'a' are out of place"):
        fit(table, Y, examples="rows", validation_data=(table[["b", "a", "c"]], Y))


@pytest.mark.parametrize("epochs", [1, 4])
def test_the_epochs_that_were_asked_for_are_run(epochs):
    net = fit(*problem(), epochs=epochs)
    assert (net.epochs_run, net.stop_reason, len(net.history["seconds"])) == (epochs, "epochs", epochs)


def test_a_schedule_sets_the_learning_rate_of_each_epoch():
    X, Y = problem()
    changing = fit(X, Y, optimizer="gd", learning_rate=lambda epoch: 0.5 / (1 + epoch), batch_size="full")
    initial = None
    for epoch in range(3):
        options = {"initial": initial, "epochs": 1, "optimizer": "gd", "batch_size": "full"}
        initial = fit(X, Y, learning_rate=0.5 / (1 + epoch), **options)
    assert distance(changing, initial) <= ROUNDING * EPS["float32"]


def test_the_learning_rates_are_kept_in_the_history():
    net = fit(*problem(), learning_rate=lambda epoch: 2.0**-epoch)
    assert net.history["learning_rate"] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, None])
def test_a_schedule_that_leaves_the_positive_numbers_is_named_with_its_epoch(wrong):
    with pytest.raises(ArgumentError, match=r"learning_rate\(2\)"):
        fit(*problem(), learning_rate=lambda epoch: 0.1 if epoch < 2 else wrong)


# Callbacks ------------------------------------------------------------------------------------------------------------


def test_a_callback_is_called_once_an_epoch():
    seen = []
    fit(*problem(), callbacks=lambda view: seen.append(view.epoch))
    assert seen == [0, 1, 2]


def test_a_callback_sees_what_the_history_keeps():
    seen = []
    net = fit(*problem(), callbacks=seen.append, validation_data=problem(seed=1), learning_rate=lambda e: 0.1 / (e + 1))
    columns = {key: [getattr(view, key) for view in seen] for key in ("cost", "validation_cost", "learning_rate")}
    assert columns == {key: net.history[key] for key in columns}


def test_without_validation_data_a_callback_sees_none():
    seen = []
    fit(*problem(), callbacks=seen.append)
    assert [view.validation_cost for view in seen] == [None] * 3


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(xpnet.training.EpochView)])
def test_an_epoch_view_cannot_be_changed(name):
    def change(view):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(view, name, 0)

    assert fit(*problem(), callbacks=change).epochs_run == 3


def test_a_callback_that_returns_true_stops_after_its_epoch():
    net = fit(*problem(), callbacks=lambda view: view.epoch == 1)
    assert (net.epochs_run, net.stop_reason) == (2, "callback")


@pytest.mark.parametrize("answer", [1, "stop", [True], None, False], ids=repr)
def test_a_callback_that_returns_anything_else_does_not_stop(answer):
    assert fit(*problem(), callbacks=lambda _: answer).stop_reason == "epochs"


def test_every_callback_is_called_also_after_one_that_stops():
    seen = []
    fit(*problem(), callbacks=(lambda _: True, lambda view: seen.append(view.epoch)))
    assert seen == [0]


def test_a_callbacks_network_predicts():
    X, Y = problem()
    shapes = []
    fit(X, Y, callbacks=lambda view: shapes.append(view.network().predict(X).shape))
    assert shapes == [(90,)] * 3


@every_descent
def test_a_callbacks_network_stays_as_it_was_then(descent):
    X, Y = problem()
    nets = []
    fit(X, Y, callbacks=lambda view: nets.append(view.network()), **descent)
    assert theta(nets[0]).tobytes() == theta(fit(X, Y, epochs=1, **descent)).tobytes()


def test_what_a_callback_raises_comes_through():
    def fail(view):
        raise RuntimeError("disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        fit(*problem(), callbacks=fail)


# Ctrl-C and divergence ------------------------------------------------------------------------------------------------


def interrupting(at):
    """Return a callback that is Ctrl-C after the given epoch."""

    def callback(view):
        if view.epoch == at:
            raise KeyboardInterrupt

    return callback


@every_descent
def test_ctrl_c_after_an_epoch_returns_the_network_so_far(descent):
    X, Y = problem()
    net = fit(X, Y, callbacks=interrupting(1), epochs=5, **descent)
    assert (net.stop_reason, bits(net)) == ("interrupted", bits(fit(X, Y, epochs=2, **descent)))


def test_ctrl_c_within_an_epoch_leaves_the_history_of_whole_epochs():
    net = fit(*problem(), activation=fused(calls=8), batch_size=30, validation_data=problem(seed=1))
    assert {key: len(values) for key, values in net.history.items()} == dict.fromkeys(net.history, net.epochs_run)


@posix
def test_ctrl_c_from_a_terminal_returns_the_network_so_far():
    code = """
import xpnet
X, Y = xpnet.datasets.flower()
tell = lambda view: print(view.epoch, flush=True)
net = xpnet.fit(X, Y, epochs=10**6, patience=None, callbacks=tell, random_state=0)
print("\\n" + net.stop_reason, len(net.history["cost"]) == net.epochs_run >= 3, net.score(X, Y) > 0)
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.strip() == "3":
            break
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out.splitlines()[-1]) == (0, "interrupted True True")


def test_divergence_names_the_epoch_the_learning_rate_and_the_largest_feature():
    X, Y = problem("regression")
    X[2] *= 50
    with pytest.raises(
        DivergedError, match=r"epoch \d+, at learning rate 1e\+30; the largest feature is feature 2, of s"
    ):
        fit(X, Y, task="regression", optimizer="gd", learning_rate=1e30)


def test_divergence_of_standardized_features_advises_the_learning_rate_alone():
    with pytest.raises(DivergedError, match=r"features are standardized\. Lower learning_rate\.$"):
        fit(*problem("regression"), task="regression", optimizer="gd", learning_rate=1e30, standardize=True)


def test_divergence_in_the_last_step_is_not_returned():
    # The cost of the only epoch is that of the initial parameters, which are fine.
    with pytest.raises(DivergedError, match="the parameters are not finite in epoch 0"):
        fit(*problem("regression"), optimizer="gd", learning_rate=1e39, epochs=1, batch_size="full")


def test_a_validation_cost_that_is_not_finite_is_divergence():
    X, Y = problem("regression")
    with pytest.raises(DivergedError, match="the validation cost is inf in epoch 0"):
        fit(X, Y, validation_data=(1e25 * X, Y))


# The progress bar -----------------------------------------------------------------------------------------------------


def test_a_progress_bar_is_shown_when_asked_for(capsys):
    fit(*problem(), verbose=True)
    assert re.search(r"100%.*3/3 .*cost=", capsys.readouterr().err)


def test_a_progress_bar_shows_the_validation_cost(capsys):
    fit(*problem(), verbose=True, validation_data=problem(seed=1))
    assert "validation=" in capsys.readouterr().err


@pytest.mark.parametrize("verbose", ["auto", False])
def test_nothing_is_printed_into_a_pipe(verbose, capsys):
    fit(*problem(), verbose=verbose)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("verbose", "shown"), [("auto", True), (True, True), (False, False)])
def test_auto_is_a_bar_on_a_terminal(verbose, shown, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(*problem(), verbose=verbose)
    assert ("3/3" in terminal.getvalue()) == shown


def test_nothing_is_printed_where_there_is_no_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert fit(*problem()).epochs_run == 3


# Checkpoints ----------------------------------------------------------------------------------------------------------


def fused(calls):
    """Return tanh, which is Ctrl-C when it has been called so often in training; its check is not counted."""
    left = [calls]

    def g(Z):
        if Z.shape[-1] > 9:  # the check is of nine points
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return np.tanh(Z)

    return xpnet.Activation(g, lambda _, A: 1 - A * A, name="fused")


RESUMED = {
    **DESCENTS,
    "validation data": {"validation_data": problem(seed=1)},
    "validation fraction": {"validation_fraction": 0.2, "batch_size": 16},
    "a storm": {"validation_data": problem(seed=1), **STORM},
    "patience": {"optimizer": "gd", "learning_rate": 1e-3, "tol": 0.01, "patience": 5, "batch_size": "full"},
    "weights": {"sample_weight": np.linspace(0.1, 2, 90), "class_weight": "balanced"},
    "standardize": {"standardize": True},
    "float64": {"dtype": "float64", "l2": 0.5},
    "logistic": {"hidden": ()},
}
every_run = pytest.mark.parametrize("run", RESUMED.values(), ids=RESUMED)


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "run.checkpoint"


@pytest.mark.parametrize("at", [0, 3])
@every_run
def test_an_interrupted_fit_goes_on_as_if_never_interrupted(run, at, checkpoint):
    options = {"epochs": 8, **run}
    fit(*problem(), checkpoint=checkpoint, **options, callbacks=interrupting(at))
    assert bits(fit(*problem(), checkpoint=checkpoint, **options)) == bits(fit(*problem(), **options))


@every_run
def test_an_interrupted_fit_without_a_seed_goes_on_with_the_one_it_drew(run, checkpoint):
    options = {"epochs": 5, **run}
    first = fit(*problem(), checkpoint=checkpoint, random_state=None, **options, callbacks=interrupting(2))
    resumed = fit(*problem(), checkpoint=checkpoint, random_state=None, **options)
    assert bits(resumed) == bits(fit(*problem(), random_state=first.random_state, **options))


@pytest.mark.parametrize("calls", [1, 2, 7, 11])
@pytest.mark.parametrize("descent", [DESCENTS["adam, auto"], DESCENTS["lbfgs"]], ids=["adam", "lbfgs"])
def test_an_epoch_cut_short_is_done_again(descent, calls, checkpoint):
    fit(*problem(), checkpoint=checkpoint, activation=fused(calls), epochs=6, **descent)
    resumed, straight = (
        fit(*problem(), activation=fused(10**9), epochs=6, checkpoint=path, **descent) for path in (checkpoint, None)
    )
    assert bits(resumed) == bits(straight)


def test_an_interruption_after_the_best_epoch_keeps_the_best_parameters(checkpoint):
    options = {"validation_data": problem(seed=1), **STORM}
    fit(*problem(), checkpoint=checkpoint, callbacks=interrupting(9), **options)
    assert bits(fit(*problem(), checkpoint=checkpoint, **options)) == bits(fit(*problem(), **options))


@pytest.fixture
def ctrl_c_while_noting(monkeypatch):
    """Ctrl-C in the microseconds when the fourth epoch is in the history and nothing else is done with it."""
    note = xpnet.training._Training._note

    def noted(self, *values):
        note(self, *values)
        if self.epoch == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(xpnet.training._Training, "_note", noted)
        yield patch


def test_ctrl_c_while_an_epoch_is_noted_leaves_it_out_of_the_history(ctrl_c_while_noting):
    net = fit(*problem(), epochs=6, validation_data=problem(seed=1))
    assert {key: len(values) for key, values in net.history.items()} == dict.fromkeys(net.history, 3)


def test_ctrl_c_while_an_epoch_is_noted_loses_nothing(ctrl_c_while_noting, checkpoint):
    options = {"epochs": 6, "validation_data": problem(seed=1)}
    fit(*problem(), checkpoint=checkpoint, **options)
    ctrl_c_while_noting.undo()
    assert bits(fit(*problem(), checkpoint=checkpoint, **options)) == bits(fit(*problem(), **options))


def test_a_fit_can_be_interrupted_again_and_again(checkpoint):
    for at in range(5):
        fit(*problem(), epochs=6, checkpoint=checkpoint, callbacks=interrupting(at))
    assert bits(fit(*problem(), epochs=6, checkpoint=checkpoint)) == bits(fit(*problem(), epochs=6))


def test_an_interruption_in_the_epoch_where_patience_ran_out_changes_nothing(checkpoint):
    options = {**RESUMED["patience"], "epochs": 20}
    straight = fit(*problem(), **options)
    fit(*problem(), checkpoint=checkpoint, callbacks=interrupting(straight.epochs_run - 1), **options)
    resumed = fit(*problem(), checkpoint=checkpoint, **options)
    assert (bits(resumed), resumed.stop_reason) == (bits(straight), "patience")


def test_a_fit_that_a_callback_stopped_goes_on(checkpoint):
    fit(*problem(), checkpoint=checkpoint, callbacks=lambda view: view.epoch == 1, epochs=5)
    assert bits(fit(*problem(), checkpoint=checkpoint, epochs=5)) == bits(fit(*problem(), epochs=5))


@every_run
def test_a_finished_fit_can_be_given_more_epochs(run, checkpoint):
    options = {key: value for key, value in run.items() if key != "epochs"}
    fit(*problem(), checkpoint=checkpoint, epochs=3, **options)
    assert bits(fit(*problem(), checkpoint=checkpoint, epochs=7, **options)) == bits(
        fit(*problem(), epochs=7, **options)
    )


@every_run
def test_a_finished_fit_returns_its_network_again(run, checkpoint):
    first = fit(*problem(), checkpoint=checkpoint, **run)
    assert bits(fit(*problem(), checkpoint=checkpoint, **run)) == bits(first)


def test_a_finished_fit_is_not_trained_again(checkpoint):
    seen = []
    fit(*problem(), checkpoint=checkpoint)
    fit(*problem(), checkpoint=checkpoint, callbacks=seen.append)
    assert seen == []


def test_checkpoints_are_as_far_apart_as_asked(checkpoint):
    kept = []
    fit(
        *problem(),
        checkpoint=checkpoint,
        checkpoint_every=3_600,
        callbacks=lambda _: kept.append(checkpoint.exists()),
    )
    assert (kept, checkpoint.exists()) == ([False] * 3, True)


def test_checkpoints_can_be_written_after_every_epoch(checkpoint):
    kept = []

    def count(view):
        kept.append(files.read(checkpoint, kind="checkpoint")[0]["history.cost"].size if checkpoint.exists() else 0)

    fit(*problem(), checkpoint=checkpoint, checkpoint_every=0, callbacks=count)
    assert kept == [0, 1, 2]


@pytest.fixture
def memmaps(tmp_path, monkeypatch):
    """Return X and Y on the disk, with limits so low that they are read in many windows."""
    monkeypatch.setattr(data, "PERMUTED", 0)
    monkeypatch.setattr(data, "RUN", 32)
    monkeypatch.setattr(data, "WINDOW", 200)
    monkeypatch.setattr(data, "READ", 100)
    X, Y = problem(m=300)
    np.save(tmp_path / "X.npy", X.T)
    return np.load(tmp_path / "X.npy", mmap_mode="r"), Y


@pytest.mark.parametrize("descent", [DESCENTS["adam, 7"], DESCENTS["lbfgs"]], ids=["adam, 7", "lbfgs"])
def test_an_interrupted_fit_of_a_file_goes_on_as_if_never_interrupted(descent, memmaps, checkpoint):
    options = {"examples": "rows", "standardize": True, "epochs": 5, **descent}
    fit(*memmaps, checkpoint=checkpoint, callbacks=interrupting(2), **options)
    assert bits(fit(*memmaps, checkpoint=checkpoint, **options)) == bits(fit(*memmaps, **options))


@every_descent
def test_a_file_gives_the_network_that_memory_gives(descent, memmaps):
    X, Y = memmaps
    streamed = fit(X, Y, examples="rows", dtype="float64", **descent)
    kept = fit(np.array(X), Y, examples="rows", dtype="float64", **descent)
    assert distance(streamed, kept) <= ROUNDING * EPS["float64"]


OTHER_DATA = {
    "another X": (lambda X, Y: (X + 1e-3, Y), "another fit: X differs. Repeat"),
    "another Y": (lambda X, Y: (X, 1 - Y), "another fit: Y differs. Repeat"),
    "fewer examples": (lambda X, Y: (X[:, :80], Y[:80]), "examples was 90, is 80"),
}
OTHER_ARGUMENTS = {
    "activation": ({"activation": "tanh"}, "activation was relu, is tanh"),
    "batch_size": ({"batch_size": 16}, "batch_size was 32, is 16"),
    "class_weight": ({"class_weight": "balanced"}, "weighting differs"),
    "dtype": ({"dtype": "float64"}, "dtype was float32, is float64"),
    "hidden": ({"hidden": 7}, r"sizes was \[3, 6, 1\], is \[3, 7, 1\]"),
    "initial": ({"initial": start((3, 6, 1))}, "initial differs"),
    "l2": ({"l2": 0.5}, r"l2 was 0\.0, is 0\.5"),
    "learning_rate": ({"learning_rate": 0.5}, r"learning_rate was 0\.001, is 0\.5"),
    "optimizer": ({"optimizer": "momentum", "learning_rate": 1e-3}, "optimizer was adam, is momentum"),
    "patience": ({"patience": 3}, "patience was None, is 3"),
    "random_state": ({"random_state": 5}, "random_state was 0, is 5"),
    "sample_weight": ({"sample_weight": np.arange(90)}, "weighting differs"),
    "standardize": ({"standardize": True}, "standardize was False, is True"),
    "task": ({"task": "regression"}, "task was binary, is regression"),
    "tol": ({"tol": 0.5}, r"tol was 0\.0001, is 0\.5"),
    "validation_data": ({"validation_data": problem(seed=1)}, "validation examples was None, is 90"),
}


@pytest.mark.parametrize(("change", "named"), OTHER_DATA.values(), ids=OTHER_DATA)
def test_a_checkpoint_of_other_data_is_refused(change, named, checkpoint):
    fit(*problem(), checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=named):
        fit(*change(*problem()), checkpoint=checkpoint)


@pytest.mark.parametrize(("change", "named"), OTHER_ARGUMENTS.values(), ids=OTHER_ARGUMENTS)
def test_a_checkpoint_of_other_arguments_is_refused_by_their_names(change, named, checkpoint):
    fit(*problem(), checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=named):
        fit(*problem(), checkpoint=checkpoint, **change)


def test_a_checkpoint_of_other_validation_data_of_the_same_size_is_refused(checkpoint):
    fit(*problem(), checkpoint=checkpoint, validation_data=problem(seed=1))
    with pytest.raises(CheckpointError, match="validation X differs; validation Y differs"):
        fit(*problem(), checkpoint=checkpoint, validation_data=problem(seed=2))


def test_a_refused_checkpoint_is_left_as_it_was(checkpoint):
    fit(*problem(), checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(CheckpointError):
        fit(*problem(), checkpoint=checkpoint, l2=1.0)
    assert checkpoint.read_bytes() == before


def test_a_network_is_not_taken_for_a_checkpoint(checkpoint):
    fit(*problem()).save(checkpoint)
    with pytest.raises(FileFormatError, match="is a network, not a checkpoint"):
        fit(*problem(), checkpoint=checkpoint)


class Saved(NamedTuple):
    """What a file holds, to be damaged."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


DAMAGE = {
    "no theta": lambda saved: saved.tensors.pop("theta"),
    "no best theta": lambda saved: saved.tensors.pop("best_theta"),
    "no optimizer's memory": lambda saved: saved.tensors.pop("optimizer.v"),
    "no steps of the optimizer": lambda saved: saved.tensors.pop("optimizer.t"),
    "a word for a number": lambda saved: (
        saved.metadata["numbers"].update({"optimizer.t": "two"}) or saved.tensors.pop("optimizer.t")
    ),
    "a short theta": lambda saved: saved.tensors.update(theta=saved.tensors["theta"][1:]),
    "a short memory": lambda saved: saved.tensors.update({"optimizer.s": saved.tensors["optimizer.s"][:1]}),
    "nan": lambda saved: saved.tensors.update(theta=np.full_like(saved.tensors["theta"], np.nan)),
    "no numbers": lambda saved: saved.metadata.update(numbers=[1]),
    "no history": lambda saved: [saved.tensors.pop(key) for key in list(saved.tensors) if key.startswith("history")],
    "a history without costs": lambda saved: saved.tensors.pop("history.cost"),
    "a history of nan": lambda saved: saved.tensors.update({"history.cost": np.full(3, np.nan)}),
    "uneven histories": lambda saved: saved.tensors.update({"history.cost": np.ones(2)}),
    "validation costs from nowhere": lambda saved: saved.tensors.update({"history.validation_cost": np.ones(3)}),
    "no fingerprint": lambda saved: saved.metadata.pop("fingerprint"),
    "a fingerprint that is a list": lambda saved: saved.metadata.update(fingerprint=[]),
    **{
        f"{key} {what}": lambda saved, key=key, value=value: saved.metadata.update({key: value})
        for key in ("best_epoch", "waited", "steps")
        for what, value in {"missing": None, "a word": "one", "a fraction": 1.5, "below its range": -2}.items()
    },
    "best_cost a word": lambda saved: saved.metadata.update(best_cost="low"),
    "reference a list": lambda saved: saved.metadata.update(reference=[]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused(damage, checkpoint):
    fit(*problem(), checkpoint=checkpoint)
    saved = Saved(*files.read(checkpoint, kind="checkpoint"))
    damage(saved)
    files.write(checkpoint, *saved, kind="checkpoint")
    with pytest.raises(FileFormatError, match="not a whole checkpoint"):
        fit(*problem(), checkpoint=checkpoint, epochs=5)


KILLED = {
    "hidden": 32,
    "epochs": 25,
    "batch_size": 64,
    "validation_fraction": 0.2,
    "patience": None,
    "random_state": 3,
    "checkpoint_every": 0,
}


@posix
@pytest.mark.parametrize(("epoch", "milliseconds"), [(0, 0), (4, 1), (9, 3), (15, 7)])
def test_a_killed_fit_goes_on_as_if_never_killed(epoch, milliseconds, checkpoint):
    code = f"""
import os, signal, threading, xpnet
def kill(view):
    if view.epoch == {epoch}:
        threading.Timer({milliseconds} / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
xpnet.fit(*xpnet.datasets.flower(2_000), **{KILLED!r}, checkpoint={str(checkpoint)!r}, callbacks=kill)
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=120)
    resumed = fit(*xpnet.datasets.flower(2_000), **KILLED, checkpoint=checkpoint)
    straight = fit(*xpnet.datasets.flower(2_000), **KILLED)
    assert (child.returncode, bits(resumed)) == (-signal.SIGKILL, bits(straight))


# One fit after another ------------------------------------------------------------------------------------------------


@every_run
def test_fits_that_go_on_from_each_other_are_one(run):
    options, kept = {key: value for key, value in run.items() if key != "epochs"}, Kept()
    for epochs in (1, 3, 7):
        net = fit(*problem(), epochs=epochs, checkpoint=kept, **options)
    assert bits(net) == bits(fit(*problem(), epochs=7, **options))


def test_fits_go_on_wherever_they_are(backend):
    X, Y, kept = *problem(), Kept()
    for epochs in (2, 5):
        net = fit(backend.asarray(X, "float32"), Y, epochs=epochs, checkpoint=kept)
    assert bits(net) == bits(fit(backend.asarray(X, "float32"), Y, epochs=5))


def test_a_fit_goes_on_from_the_last_whole_epoch_of_one_that_was_interrupted():
    kept = Kept()
    fit(*problem(), epochs=6, checkpoint=kept, activation=fused(7))
    net = fit(*problem(), epochs=6, checkpoint=kept, activation=fused(10**9))
    assert bits(net) == bits(fit(*problem(), epochs=6, activation=fused(10**9)))


def test_a_fit_that_fails_leaves_what_is_kept_as_it_was():
    kept = Kept()
    net = fit(*problem("regression"), optimizer="gd", epochs=3, checkpoint=kept)
    with pytest.raises(DivergedError):
        fit(*problem("regression"), optimizer="gd", epochs=90, learning_rate=1e9, checkpoint=kept)
    assert bits(fit(*problem("regression"), optimizer="gd", epochs=3, checkpoint=kept)) == bits(net)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_fit_goes_on_with_other_data(optimizer):
    (X, Y), kept = problem(), Kept()
    options = {"optimizer": optimizer, "batch_size": "full", "dtype": "float64", "checkpoint": kept}
    first = fit(X, Y, epochs=20, **options)
    net = fit(X, 1 - Y, epochs=30, **options)
    # The first cost of the other data is that of the parameters as they stood.
    np.testing.assert_allclose(net.history["cost"][20], first.cost(X, 1 - Y), rtol=ROUNDING * EPS["float64"])
    assert net.best_epoch >= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 5}, r"sizes was \[3, 6, 1\], is \[3, 5, 1\]"),
        ({"optimizer": "gd"}, "optimizer was adam, is gd"),
        ({"optimizer": xpnet.optimizers.adam(beta1=0.5)}, r"optimizer settings was .*, is \[0.5,"),
        ({"activation": "tanh"}, "activation was relu, is tanh"),
        ({"validation_fraction": 0.2}, "Validation must be there from the first epoch on"),
    ],
)
def test_a_fit_of_another_kind_does_not_go_on(options, message):
    kept = Kept()
    fit(*problem(), checkpoint=kept)
    with pytest.raises(CheckpointError, match=message):
        fit(*problem(), epochs=5, checkpoint=kept, **options)


# What fit takes -------------------------------------------------------------------------------------------------------


HIDDEN = {
    "none": ((), (3, 1)),
    "an int": (4, (3, 4, 1)),
    "a NumPy int": (np.int64(4), (3, 4, 1)),
    "a tuple": ((5, 4), (3, 5, 4, 1)),
    "a list": ([5, 4, 2], (3, 5, 4, 2, 1)),
    "an array": (np.array([5, 4]), (3, 5, 4, 1)),
    "a range": (range(2, 4), (3, 2, 3, 1)),
}


@pytest.mark.parametrize(("hidden", "sizes"), HIDDEN.values(), ids=HIDDEN)
def test_hidden_is_a_number_of_units_or_a_sequence(hidden, sizes):
    assert fit(*problem(), hidden=hidden).sizes == sizes


@pytest.mark.parametrize("hidden", [0, -1, 2.5, "4", None, True, (4, 0), (4, "4"), [[4]]], ids=repr)
def test_hidden_is_nothing_else(hidden):
    with pytest.raises(ArgumentError, match="hidden"):
        fit(*problem(), hidden=hidden)


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "columns of a larger array": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "rows of a larger array": lambda X: np.repeat(np.asfortranarray(X), 2, axis=0)[::2],
    "columns backwards": lambda X: X[:, ::-1].copy()[:, ::-1],
    "rows backwards": lambda X: X[::-1].copy()[::-1],
    "read-only": lambda X: np.frombuffer(X.tobytes()).reshape(X.shape),
    "foreign byte order": lambda X: X.astype(X.dtype.newbyteorder()),
    "nested lists": lambda X: X.tolist(),
    "rows": None,
}


def laid_out(layout, **options):
    """The network of X in some layout, and the one of X as it is, wide enough that BLAS has kernels for each order."""
    X, Y = problem(m=300, n_x=5)
    options |= {"hidden": 64}
    plain = fit(X, Y, **options)
    if layout is None:
        return fit(np.ascontiguousarray(X.T), Y, examples="rows", **options), plain
    return fit(layout(X), Y, **options), plain


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": "auto"},
        {"batch_size": "auto", "standardize": True},
        {"batch_size": "full", "standardize": True},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_of_x_does_not_change_a_bit(layout, dtype, options):
    turned, plain = laid_out(layout, dtype=dtype, **options)
    assert bits(turned) == bits(plain)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_without_a_copy_of_x_its_layout_changes_roundings_alone(layout):
    # A full batch is computed with where it lies, and BLAS adds up other layouts in another order.
    turned, plain = laid_out(layout, dtype="float64", batch_size="full")
    for found, true in zip(turned.layers, plain.layers, strict=True):
        np.testing.assert_allclose(found.W, true.W, rtol=0, atol=ROUNDING * EPS["float64"])


def test_float64_examples_are_cast_to_the_dtype_once():
    X, Y = problem()
    X = X + 1e-12
    assert bits(fit(X, Y)) == bits(fit(X.astype(np.float32), Y))


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, bool, np.float16])
def test_examples_of_any_kind_of_number_are_taken(kind, rng):
    X, Y = rng.integers(0, 2, (3, 90)), problem()[1]
    assert bits(fit(X.astype(kind), Y)) == bits(fit(X.astype(np.float32), Y))


@every_descent
@pytest.mark.parametrize("examples", ["columns", "rows"])
def test_a_list_of_parts_is_their_concatenation(examples, descent):
    X, Y = problem()
    parts = [X[:, :17], X[:, 17:18], X[:, 18:]]
    given = [part.T for part in parts] if examples == "rows" else parts
    assert bits(fit(given, Y, examples=examples, **descent)) == bits(fit(X, Y, **descent))


def test_a_loader_brings_x_y_its_seed_and_its_batch_size():
    X, Y = problem()
    loaded = fit(xpnet.Loader(X, Y, batch_size=16, random_state=7), random_state=None)
    assert bits(loaded) == bits(fit(X, Y, batch_size=16, random_state=7))


def test_a_loader_of_rows_is_read_as_rows():
    X, Y = problem()
    loaded = fit(xpnet.Loader(X.T, Y, batch_size=16, examples="rows"))
    assert bits(loaded) == bits(fit(X, Y, batch_size=16))


def test_arguments_go_before_a_loaders():
    X, Y = problem()
    loaded = fit(xpnet.Loader(X, Y, batch_size=16, random_state=7), batch_size=45, random_state=8)
    assert bits(loaded) == bits(fit(X, Y, batch_size=45, random_state=8))


@every_descent
def test_one_example_is_enough_for_a_regression(descent):
    X, Y = problem("regression", m=1)
    assert fit(X, Y, task="regression", **descent).predict(X).shape == (2, 1)


@every_task
def test_one_feature_is_enough(task):
    X, Y = problem(task)
    assert fit(X[:1], Y, task=task).sizes[0] == 1


def test_more_features_than_examples_are_taken(rng):
    assert fit(rng.standard_normal((40, 6)), [0, 1, 0, 1, 1, 0]).sizes[0] == 40


@every_task
def test_y_can_be_an_array_of_one_row_or_nested_lists(task):
    X, Y = problem(task)
    listed = np.atleast_2d(Y).tolist()
    assert bits(fit(X, listed, task=task)) == bits(fit(X, Y, task=task))


@every_task
def test_y_lies_as_examples_says(task):
    X, Y = problem(task)
    assert bits(fit(X.T, Y.T, task=task, examples="rows")) == bits(fit(X, Y, task=task))


def test_one_hot_columns_are_the_labels_they_stand_for():
    X, Y = problem("multiclass")
    assert bits(fit(X, np.eye(3, dtype=int)[:, Y])) == bits(fit(X, Y))


@pytest.mark.parametrize("kind", ["list", "tuple", "float32", "Layers", "Network"])
def test_initial_weights_are_taken_as_given(kind):
    X, Y = problem()
    layers = [(W.astype(np.float32), b.astype(np.float32)) for W, b in start((3, 6, 1))]
    given = {
        "list": layers,
        "tuple": tuple(layers),
        "float32": [(W.astype(np.float64), b.ravel()) for W, b in layers],
        "Layers": [xpnet.typing.Layer(*layer) for layer in layers],
        "Network": fit(X, Y, initial=layers, epochs=1, learning_rate=1e-30),
    }[kind]
    net = fit(X, Y, initial=given, epochs=1, optimizer="gd", learning_rate=1e-30)
    np.testing.assert_array_equal(theta(net), np.concatenate([part.ravel() for layer in layers for part in layer]))


def test_a_network_goes_on_from_where_it_ended():
    X, Y = problem()
    options = {"optimizer": "gd", "batch_size": "full", "standardize": True}
    halfway = fit(X, Y, epochs=2, **options)
    assert (
        theta(fit(X, Y, epochs=3, initial=halfway, **options)).tobytes()
        == theta(fit(X, Y, epochs=5, **options)).tobytes()
    )


def test_a_network_brings_its_scaling_along():
    X, Y = problem()
    halfway = fit(1e3 * X, Y, standardize=True)
    gone_on = fit(1e3 * X[:, :50], Y[:50], initial=halfway)
    np.testing.assert_array_equal(gone_on.scaling, halfway.scaling)


def test_initial_weights_of_other_sizes_are_refused():
    with pytest.raises(ShapeError, match="3-6-1 network"):
        fit(*problem(), initial=start((3, 5, 1)))


GIVEN = {
    "initial": lambda given: given["initial"],
    "X": lambda given: given["X"],
    "Y": lambda given: given["Y"],
    "sample_weight": lambda given: given["sample_weight"],
    "validation_data": lambda given: given["validation_data"],
}


def _arrays(thing):
    return [thing] if isinstance(thing, np.ndarray) else [array for part in thing for array in _arrays(part)]


@pytest.fixture
def given():
    """Return what a fit is given, all of it of the very dtype that it computes in."""
    X, Y = problem("regression")
    X, Y = X.astype(np.float32), Y.astype(np.float32)
    initial = [(W.astype(np.float32), b.astype(np.float32)) for W, b in start((3, 6, 2))]
    weight = np.linspace(0.5, 2, 90, dtype=np.float32)
    held_X, held_Y = problem("regression", seed=1)
    held = (held_X.astype(np.float32), held_Y.astype(np.float32), weight.copy())
    return {"X": X, "Y": Y, "initial": initial, "sample_weight": weight, "validation_data": held}


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", GIVEN)
@every_descent
def test_nothing_that_was_given_is_changed(descent, name, standardize, given):
    before = [array.tobytes() for array in _arrays(given[name])]
    fit(**given, activation="identity", l2=0.1, standardize=standardize, **descent)
    assert [array.tobytes() for array in _arrays(given[name])] == before


@pytest.mark.parametrize("name", GIVEN)
@every_descent
def test_a_network_shares_no_memory_with_what_was_given(descent, name, given):
    net = fit(**given, **descent)
    ours = [array for layer in net.layers for array in layer]
    assert not any(np.shares_memory(array, own) for array in _arrays(given[name]) for own in ours)


def test_the_timing_counts_steps_and_examples():
    net = fit(*problem(m=90), batch_size=30, epochs=4)
    assert (net.timing["steps"], net.timing["examples_per_second"] > 0) == (12, True)
