"""What holds for every network, whatever its sizes, heads, numbers and the way that they lie in memory.

Each test is one law, tried on examples that Hypothesis makes up: the same in every run, and new ones under ``--soak``.
"""

import contextlib
import io
import warnings
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import xpnet
from xpnet import equations, heads, initializers, targets
from xpnet.activations import ACTIVATIONS
from xpnet.errors import ScaleWarning, XpnetError
from xpnet.typing import Layer

EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
ROUNDING = 1_000  # times ε: sums of some ten terms, in another order, through three layers and a few steps
CLASSIFICATION = ["binary", "multiclass"]
TASKS = [*CLASSIFICATION, "multilabel", "regression", "count"]

lightly = settings(max_examples=settings.default.max_examples // 5)


class Problem(NamedTuple):
    """Examples, and a task that they are of."""

    X: np.ndarray
    Y: np.ndarray
    task: str

    def fit(self, **options):
        return fit(self.X, self.Y, task=self.task, **options)

    def columns(self, numbers):
        return Problem(self.X[:, numbers], self.Y[..., numbers], self.task)


def fit(X, Y, **options):
    """Take two steps of full batches in float64, unless the options say otherwise."""
    usual = {"hidden": 3, "epochs": 2, "dtype": "float64", "random_state": 0, "batch_size": "full", "verbose": False}
    return xpnet.fit(X, Y, **usual | options)


@st.composite
def problems(draw, tasks=TASKS, least=4):
    """Make up to 24 examples of up to four features; every class has a member."""
    task, n_x, m = draw(st.sampled_from(tasks)), draw(st.integers(1, 4)), draw(st.integers(least, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    labels = rng.permutation(m)
    Y = {
        "binary": labels % 2,
        "multiclass": labels % 3,
        "multilabel": np.stack([labels % 2, labels % 3 == 0]).astype(int),
        "regression": rng.standard_normal((2, m)),
        "count": labels % 4,
    }[task]
    return Problem(rng.standard_normal((n_x, m)), Y, task)


networks = st.fixed_dictionaries(
    {"hidden": st.sampled_from([(), (3,), (4, 2)]), "activation": st.sampled_from(sorted(ACTIVATIONS))},
    optional={"l2": st.sampled_from([0.1, 3.0]), "optimizer": st.sampled_from(["gd", "momentum", "adam", "lbfgs"])},
)
descents = st.fixed_dictionaries(
    {"hidden": st.sampled_from([(), (3,), (4, 2)]), "activation": st.sampled_from(["tanh", "softplus", "gelu"])},
    optional={"l2": st.sampled_from([0.1, 3.0])},
).map(lambda options: {"optimizer": "gd", "learning_rate": 0.1} | options)
"""Of smooth networks, by steps that are as large as the gradient: no rounding is made larger."""


def bits(net):
    """Return the parameters and the costs, for a comparison bit for bit."""
    return [array.tobytes() for layer in net.layers for array in layer], net.history["cost"]


def assert_same(found, true, dtype="float64", of=lambda net: [array for layer in net.layers for array in layer]):
    """Compare two networks' parameters and costs but for rounding."""
    for a, b in zip(of(found), of(true), strict=True):
        np.testing.assert_allclose(a, b, rtol=ROUNDING * EPS[dtype], atol=ROUNDING * EPS[dtype])
    np.testing.assert_allclose(found.history["cost"], true.history["cost"], rtol=ROUNDING * EPS[dtype], atol=1e-12)


def halves(draw, m):
    """Return the numbers of the examples in two parts, neither empty."""
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(m)
    cut = draw(st.integers(1, m - 1))
    return order[:cut], order[cut:]


# The gradient is a sum over columns -----------------------------------------------------------------------------------


@st.composite
def passes(draw):
    """Make what `equations.gradient` takes."""
    problem = draw(problems())
    kind = targets.infer(problem.Y, problem.task)
    sizes = (problem.X.shape[0], *draw(st.sampled_from([(), (3,), (4, 2)])), kind.n_outputs)
    layers = [Layer(W, b + 0.1) for W, b in initializers.he(sizes, random_state=np.random.default_rng(0))]
    weight = np.random.default_rng(1).uniform(0, 3, problem.X.shape[1])
    functions = {"activation": ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))], "head": heads.HEADS[kind.head]}
    return layers, problem.X, targets.encode(problem.Y, kind), weight, functions


def gradient(layers, X, Y, weight, functions):
    """Return the cost and the gradient as one vector."""
    cost, layers = equations.gradient(layers, X, Y, sample_weight=weight, **functions, xp=np)
    return np.concatenate([np.ravel(cost), *(np.ravel(array) for layer in layers for array in layer)])


def assert_close(found, true):
    np.testing.assert_allclose(found, true, rtol=0, atol=ROUNDING * EPS["float64"] * (1 + np.abs(true).max()))


@lightly
@given(given_=passes(), data=st.data())
def test_the_gradient_of_any_split_adds_up_to_the_wholes(given_, data):
    layers, X, Y, weight, functions = given_
    parts = halves(data.draw, X.shape[1])
    found = sum(gradient(layers, X[:, part], Y[:, part], weight[part], functions) for part in parts)
    assert_close(found, gradient(layers, X, Y, weight, functions))


@lightly
@given(given_=passes(), data=st.data())
def test_the_order_of_the_examples_does_not_change_the_gradient(given_, data):
    layers, X, Y, weight, functions = given_
    order = np.concatenate(halves(data.draw, X.shape[1]))
    found = gradient(layers, X[:, order], Y[:, order], weight[order], functions)
    assert_close(found, gradient(layers, X, Y, weight, functions))


@lightly
@given(given_=passes(), factor=st.floats(0, 1e3))
def test_the_gradient_is_in_proportion_to_the_weights(given_, factor):
    layers, X, Y, weight, functions = given_
    whole = gradient(layers, X, Y, weight, functions)
    assert_close(gradient(layers, X, Y, factor * weight, functions), factor * whole)


@lightly
@given(given_=passes(), times=st.lists(st.integers(0, 3), min_size=24, max_size=24))
def test_a_whole_weight_is_a_repetition_in_the_gradient(given_, times):
    layers, X, Y, _, functions = given_
    times = np.array(times[: X.shape[1]])
    again = np.repeat(np.arange(X.shape[1]), times)
    whole = gradient(layers, X, Y, times.astype(float), functions)
    assert_close(gradient(layers, X[:, again], Y[:, again], np.ones(again.size), functions), whole)


# A fit does not depend on how the same data is put --------------------------------------------------------------------


@lightly
@given(problem=problems(), options=descents, data=st.data())
def test_a_full_batch_has_no_order(problem, options, data):
    order = np.concatenate(halves(data.draw, problem.X.shape[1]))
    assert_same(problem.columns(order).fit(**options), problem.fit(**options))


@lightly
@given(problem=problems(), options=descents, times=st.lists(st.integers(1, 3), min_size=24, max_size=24))
def test_a_whole_weight_is_a_repetition(problem, options, times):
    times = np.array(times[: problem.X.shape[1]])
    again = np.repeat(np.arange(times.size), times)
    assert_same(problem.fit(sample_weight=times, **options), problem.columns(again).fit(**options))


@lightly
@given(problem=problems(), options=descents, size=st.sampled_from([1e-300, 1e-3, 7.0, 1e300]))
def test_weights_count_by_their_shares(problem, options, size):
    weight = np.random.default_rng(1).uniform(1, 3, problem.X.shape[1])
    options["l2"] = 0.0  # its share is by their sum
    scaled = problem.fit(sample_weight=size * weight, **options)
    assert_same(scaled, problem.fit(sample_weight=weight, **options))


@lightly
@given(problem=problems(), options=descents, data=st.data())
def test_an_example_of_weight_0_changes_nothing(problem, options, data):
    m = problem.X.shape[1]
    added = Problem(np.c_[problem.X, np.full(len(problem.X), 9.0)], problem.Y[..., [*range(m), 0]], problem.task)
    weight = np.append(np.random.default_rng(1).uniform(1, 3, m), 0.0)
    found, true = added.fit(sample_weight=weight, **options), problem.fit(sample_weight=weight[:-1], **options)
    assert_same(found, true)
    score = found.score(added.X, added.Y, sample_weight=weight)
    assert score == pytest.approx(true.score(problem.X, problem.Y, sample_weight=weight[:-1]), abs=1e-9)


@lightly
@given(problem=problems(CLASSIFICATION), options=descents)
def test_balanced_classes_weigh_what_they_say(problem, options):
    classes, members, counts = np.unique(problem.Y, return_inverse=True, return_counts=True)
    weight = problem.Y.size / (classes.size * counts[members])
    assert_same(problem.fit(class_weight="balanced", **options), problem.fit(sample_weight=weight, **options))


@lightly
@given(problem=problems(), options=networks)
def test_rows_are_columns_turned(problem, options):
    turned = fit(problem.X.T, problem.Y.T, task=problem.task, examples="rows", **options)
    assert_same(turned, problem.fit(**options))


@lightly
@given(problem=problems(), options=networks, data=st.data())
def test_parts_are_what_they_join_to(problem, options, data):
    options["batch_size"] = 3
    assume(options.get("optimizer") != "lbfgs")
    cut = data.draw(st.integers(1, problem.X.shape[1] - 1))
    parts = [problem.X[:, :cut], problem.X[:, cut:]]
    assert bits(fit(parts, problem.Y, task=problem.task, **options)) == bits(problem.fit(**options))


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "reversed": lambda X: np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1],
    "read-only": lambda X: np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape),
    "a view": lambda X: np.pad(X, 2)[2:-2, 2:-2],
    "the other byte order": lambda X: X.astype(X.dtype.newbyteorder()),
    "nested lists": lambda X: X.tolist(),
}
NUMBERS = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@lightly
@given(problem=problems(), options=networks, layout=st.sampled_from(sorted(LAYOUTS)), standardize=st.booleans())
def test_it_does_not_matter_how_x_lies_in_memory(problem, options, layout, standardize):
    options |= {"batch_size": 3, "standardize": standardize}  # a full batch is computed with where it lies
    assume(options.get("optimizer") != "lbfgs")
    X = LAYOUTS[layout](problem.X)
    assert bits(fit(X, problem.Y, task=problem.task, **options)) == bits(problem.fit(**options))


@lightly
@given(problem=problems(), kind=st.sampled_from(NUMBERS), layout=st.sampled_from(sorted(LAYOUTS)), rows=st.booleans())
def test_numbers_of_any_kind_are_those_numbers(problem, kind, layout, rows):
    X = np.abs(5 * problem.X).astype(kind)
    given_ = LAYOUTS[layout](X.T if rows else X)
    Y, examples = (problem.Y.T, "rows") if rows else (problem.Y, "columns")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScaleWarning)
        found = fit(given_, Y, task=problem.task, examples=examples)
        true = fit(X.astype(np.float64), problem.Y, task=problem.task)
    assert_same(found, true)


@lightly
@given(
    problem=problems(["regression"]),
    exponents=st.lists(st.integers(-60, 60), min_size=4, max_size=4),
    options=descents,
)
def test_the_unit_of_a_standardized_feature_does_not_matter(problem, exponents, options):
    units = 2.0 ** np.array(exponents[: len(problem.X)])[:, None]
    scaled = fit(units * problem.X, problem.Y, task=problem.task, standardize=True, **options)
    assert_same(scaled, problem.fit(standardize=True, **options))
    np.testing.assert_allclose(scaled.scaling[1], units[:, 0] * problem.fit(standardize=True).scaling[1], rtol=1e-12)


@lightly
@given(problem=problems(), options=descents, order=st.permutations(range(4)))
def test_the_order_of_the_features_is_that_of_the_weights(problem, options, order):
    order = [i for i in order if i < len(problem.X)]
    start = problem.fit(**options)
    first, *rest = [(W, b) for W, b in start.layers]
    moved = fit(
        problem.X[order], problem.Y, task=problem.task, initial=[(first[0][:, order], first[1]), *rest], **options
    )
    true = problem.fit(initial=start, **options)
    np.testing.assert_allclose(moved.W1, true.W1[:, order], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moved.history["cost"], true.history["cost"], rtol=1e-10)


@lightly
@given(problem=problems(), options=descents)
def test_a_feature_that_is_0_is_not_learned_from(problem, options):
    options["l2"] = 0.0
    with_it = fit(
        np.vstack([problem.X, np.zeros(problem.X.shape[1])]), problem.Y, task=problem.task, epochs=1, **options
    )
    start = [(W, b) for W, b in with_it.layers]
    later = fit(
        np.vstack([problem.X, np.zeros(problem.X.shape[1])]), problem.Y, task=problem.task, initial=start, **options
    )
    assert np.array_equal(later.W1[:, -1], with_it.W1[:, -1])


@lightly
@given(problem=problems(), options=networks)
def test_a_batch_of_more_than_all_is_the_full_batch(problem, options):
    m = problem.X.shape[1]
    for batch_size in (m, m + 1, 10**30):
        assert bits(problem.fit(**options | {"batch_size": batch_size})) == bits(problem.fit(**options))


@lightly
@given(problem=problems(), options=networks, batch_size=st.sampled_from([1, 3, 7, "auto", "full"]))
def test_one_seed_gives_one_network(problem, options, batch_size):
    assume(options.get("optimizer") != "lbfgs" or batch_size in ("auto", "full"))
    options["batch_size"] = batch_size
    assert bits(problem.fit(**options)) == bits(problem.fit(**options))


@lightly
@given(problem=problems(), options=networks)
def test_the_epochs_to_come_do_not_change_those_that_were(problem, options):
    short, long = (problem.fit(epochs=epochs, **options) for epochs in (2, 4))
    assert long.history["cost"][:2] == short.history["cost"]


# Labels ---------------------------------------------------------------------------------------------------------------

NAMES = {
    "words": np.array(["Ada", "Bo", "Cy"]),
    "bools": np.array([False, True]),
    "negative": np.array([-5, 0, 3], dtype=np.int16),
    "large": np.array([2**64 - 3, 2**64 - 2, 2**64 - 1], dtype=np.uint64),
    "floats": np.array([-1e300, 0.0, 1e300]),
    "empty words": np.array(["", "a", "aa"]),
}


@lightly
@given(problem=problems(CLASSIFICATION), options=networks, names=st.sampled_from(sorted(NAMES)))
def test_labels_of_other_names_are_predicted_by_those(problem, options, names):
    assume(names != "bools" or problem.task == "binary")
    named = fit(problem.X, NAMES[names][problem.Y], task=problem.task, **options)
    plain = problem.fit(**options)
    assert bits(named) == bits(plain)
    assert np.array_equal(named.predict(problem.X), NAMES[names][plain.predict(problem.X)])
    assert named.score(problem.X, NAMES[names][problem.Y]) == plain.score(problem.X, problem.Y)


@lightly
@given(problem=problems(["multiclass"]), options=networks)
def test_one_hot_columns_are_labels(problem, options):
    one_hot = np.eye(3)[:, problem.Y]
    assert bits(fit(problem.X, one_hot, **options)) == bits(problem.fit(**options))


@lightly
@given(m=st.integers(2, 30), member=st.integers(0, 29), options=networks, weight=st.sampled_from([None, "balanced"]))
def test_a_class_may_have_one_member(m, member, options, weight):
    Y = (np.arange(m) == member % m).astype(int)
    net = fit(np.random.default_rng(m).standard_normal((2, m)), Y, class_weight=weight, **options)
    assert net.classes.tolist() == [0, 1]
    assert np.isfinite(net.history["cost"]).all()


# Predictions, scores and costs ----------------------------------------------------------------------------------------


@lightly
@given(problem=problems(), options=networks)
def test_probabilities_are_probabilities_and_labels_are_their_largest(problem, options):
    net = problem.fit(**options)
    A, labels = net.predict_proba(problem.X), net.predict(problem.X)
    if problem.task in (*CLASSIFICATION, "multilabel"):
        assert ((A >= 0) & (A <= 1)).all()
    if problem.task == "count":
        assert (A > 0).all()
    if problem.task == "multiclass":
        np.testing.assert_allclose(A.sum(axis=0), 1.0, rtol=0, atol=ROUNDING * EPS["float64"])
    told = {"binary": A[0] > 0.5, "multiclass": A.argmax(axis=0), "multilabel": A > 0.5}.get(problem.task, A)
    assert np.array_equal(labels, told)


@lightly
@given(problem=problems(), options=networks, data=st.data(), layout=st.sampled_from(sorted(LAYOUTS)))
def test_what_is_predicted_for_some_is_predicted_for_all(problem, options, data, layout):
    net = problem.fit(**options)
    cut = data.draw(st.integers(1, problem.X.shape[1] - 1))
    parts = [net.predict_proba(LAYOUTS[layout](X)) for X in (problem.X[:, :cut], problem.X[:, cut:])]
    whole = net.predict_proba(problem.X)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=ROUNDING * EPS["float64"])


@lightly
@given(problem=problems(), options=networks, data=st.data())
def test_the_cost_of_the_whole_is_the_mean_of_the_parts(problem, options, data):
    net = problem.fit(**options)
    parts = [problem.columns(part) for part in halves(data.draw, problem.X.shape[1])]
    found = sum(part.X.shape[1] * net.cost(part.X, part.Y) for part in parts) / problem.X.shape[1]
    assert found == pytest.approx(net.cost(problem.X, problem.Y), rel=1e-10)


@lightly
@given(problem=problems(), options=networks)
def test_the_first_cost_of_the_history_is_the_beginnings(problem, options):
    start = problem.fit(**options)
    later = problem.fit(initial=start, **options)
    penalty = options.get("l2", 0.0) / 2 / problem.X.shape[1] * sum(float((W * W).sum()) for W, _ in start.layers)
    assert later.history["cost"][0] == pytest.approx(start.cost(problem.X, problem.Y) + penalty, rel=1e-10)


@lightly
@given(problem=problems(), options=networks)
def test_the_validation_cost_of_the_same_data_is_the_next_epochs_cost(problem, options):
    options["l2"] = 0.0
    net = problem.fit(validation_data=(problem.X, problem.Y), epochs=4, **options)
    np.testing.assert_allclose(net.history["validation_cost"][:-1], net.history["cost"][1:], rtol=1e-10)


@lightly
@given(problem=problems(), options=networks, times=st.lists(st.integers(1, 3), min_size=24, max_size=24))
def test_a_score_is_in_its_range_and_weighs_by_repetition(problem, options, times):
    net = problem.fit(**options)
    times = np.array(times[: problem.X.shape[1]])
    again = problem.columns(np.repeat(np.arange(times.size), times))
    score = net.score(problem.X, problem.Y, sample_weight=times)
    assert score == pytest.approx(net.score(again.X, again.Y), rel=1e-9, abs=1e-9)
    assert score <= 1
    assert score >= 0 or problem.task in ("regression", "count")


# The network itself ---------------------------------------------------------------------------------------------------


@lightly
@given(problem=problems(), options=networks, standardize=st.booleans(), names=st.sampled_from(sorted(NAMES)))
def test_a_file_gives_back_the_network(tmp_path_factory, problem, options, standardize, names):
    Y = problem.Y
    if problem.task in CLASSIFICATION and names != "bools":
        Y = NAMES[names][Y]
    net = fit(problem.X, Y, task=problem.task, standardize=standardize, **options)
    path = tmp_path_factory.getbasetemp() / "property.safetensors"
    net.save(path)
    again = xpnet.load(path)
    assert bits(again) == bits(net)
    assert repr(again) == repr(net)
    assert np.array_equal(again.predict(problem.X), net.predict(problem.X))
    assert again.predict(problem.X).dtype.kind == net.predict(problem.X).dtype.kind


@lightly
@given(problem=problems(), exponent=st.integers(-20, 20), depth=st.integers(1, 2))
def test_relu_is_positively_homogeneous(problem, exponent, depth):
    net = problem.fit(hidden=(3,) * depth, activation="relu")
    c = 2.0**exponent
    *hidden, last = [(W, b) for W, b in net.layers]
    # c times a hidden layer's W and b, and those of the next over c: the powers of 2 lose nothing.
    first = (c * hidden[0][0], c * hidden[0][1])
    moved = [first, *((W, c * b) for W, b in hidden[1:]), (last[0] / c, last[1])]
    scaled = [Layer(np.asarray(W), np.asarray(b)) for W, b in moved]
    functions = {"activation": net.activation, "head": heads.HEADS[net.kind.head]}
    outputs = [equations.forward(layers, problem.X, **functions, xp=np)[1][-1] for layers in (scaled, net.layers)]
    np.testing.assert_allclose(*outputs, rtol=ROUNDING * EPS["float64"])


@lightly
@given(problem=problems(), options=descents)
def test_float32_is_float64_but_for_rounding(problem, options):
    start = problem.fit(**options, dtype="float32")
    found, true = (problem.fit(initial=start, **options, dtype=dtype) for dtype in ("float32", "float64"))
    assert_same(found, true, dtype="float32")
    np.testing.assert_allclose(
        found.predict_proba(problem.X), true.predict_proba(problem.X), rtol=ROUNDING * EPS["float32"], atol=1e-5
    )


@lightly
@given(problem=problems(), options=networks)
def test_what_was_given_is_left_as_it_was(problem, options):
    weight = np.ones(problem.X.shape[1])
    before = [array.tobytes() for array in (problem.X, problem.Y, weight)]
    net = problem.fit(sample_weight=weight, standardize=True, **options)
    net.score(problem.X, problem.Y, sample_weight=weight)
    net.explain(problem.X[:, :2], problem.Y[..., :2], file=io.StringIO())
    assert [array.tobytes() for array in (problem.X, problem.Y, weight)] == before


# Numbers at the edges: a right result, or the promised error ----------------------------------------------------------

F32, F64 = np.finfo(np.float32), np.finfo(np.float64)
EDGES = [0.0, -0.0, 1.0, -1.0, 0.1, 1e-3, 1e4, 1e10, 1e19, -1e20, 1e30]
EDGES += [float(x) for x in (F32.max, -F32.max, F32.tiny, F32.smallest_subnormal, F32.eps, 2**24 + 1)]
EDGES += [float(x) for x in (F64.max, -F64.max, F64.tiny, F64.smallest_subnormal, 2.0**53 + 2)]
edges = st.sampled_from(EDGES) | st.floats(-10, 10, width=32)
RATES = [1e-300, 1e-45, 1e-3, 1.0, 1e10, 1e38, 1e300]


@st.composite
def extremes(draw):
    """Make a call of `fit` with numbers that nobody would pass on purpose."""
    n_x, m = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    X = np.array(draw(st.lists(edges, min_size=n_x * m, max_size=n_x * m))).reshape(n_x, m)
    match draw(st.integers(0, 3)):
        case 0:
            X[0] = X[0, 0]  # a constant
        case 1:
            X[-1] = X[0]  # twice the same
    task = draw(st.sampled_from(TASKS))
    Y = np.arange(m) % {"binary": 2, "multiclass": 3}.get(task, 7)
    if task == "multilabel":
        Y = np.stack([np.arange(m) % 2, np.arange(m) == 0]).astype(int)
    if task in ("regression", "count"):
        Y = np.array(draw(st.lists(edges, min_size=m, max_size=m)))
        Y = np.abs(Y) if task == "count" else Y
    options = {
        "task": task,
        "hidden": draw(st.sampled_from([(), (3,), (2, 2)])),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "optimizer": draw(st.sampled_from(["gd", "momentum", "adam", "lbfgs"])),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "standardize": draw(st.booleans()),
        "l2": draw(st.sampled_from([0.0, 0.0, 1.0, 1e-300, 1e30, 1e300])),
        "learning_rate": draw(st.sampled_from([None, None, *RATES])),
        "batch_size": draw(st.sampled_from(["full", "auto"])),
        "validation_fraction": draw(st.sampled_from([0.0, 0.0, 0.3])),
    }
    if draw(st.booleans()):
        options["sample_weight"] = np.array(draw(st.lists(edges.map(abs), min_size=m, max_size=m)))
    return X, Y, options


@settings(max_examples=2 * settings.default.max_examples)
@given(call=extremes())
def test_numbers_at_the_edges_give_numbers_or_the_promised_error(tmp_path_factory, call):
    X, Y, options = call
    weight = options.get("sample_weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScaleWarning)
        try:
            net = fit(X, Y, epochs=3, **{key: value for key, value in options.items() if value is not None})
        except XpnetError:
            return
    assert all(np.isfinite(array).all() for layer in net.layers for array in layer)
    assert all(np.isfinite(values).all() for values in net.history.values())
    for ask in (
        lambda: net.predict_proba(X),
        lambda: net.predict(X),
        lambda: net.score(X, Y, sample_weight=weight),
        lambda: net.cost(X, Y, sample_weight=weight),
    ):
        with contextlib.suppress(XpnetError):
            assert np.isfinite(ask()).all()
    path = tmp_path_factory.getbasetemp() / "edges.safetensors"
    net.save(path)
    assert bits(xpnet.load(path)) == bits(net)


@pytest.mark.parametrize("standardize", [False, True])
def test_a_hundred_thousand_features_are_learned_from(standardize):
    X = np.random.default_rng(0).standard_normal((100_000, 6))
    net = fit(X, np.arange(6) % 2, standardize=standardize, dtype="float32", hidden=(), optimizer="lbfgs")
    assert net.score(X, np.arange(6) % 2) == 1.0
