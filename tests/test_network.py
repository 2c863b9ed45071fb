"""The trained network: what it predicts, that nothing changes it, and that a file or a copy of it is the same one."""

import contextlib
import copy
import dataclasses
import io
import pickle
import re
import tracemalloc
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xpnet
from xpnet import files, network
from xpnet.device import place_of, to_host
from xpnet.diagnosis import Diagnosis
from xpnet.errors import ArgumentError, DataError, DeviceUnavailableError, FileFormatError, ShapeError, TargetError

EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
ROUNDING = 100  # times ε: a forward pass of some ten terms a unit, and sums of some hundred costs
PRINTED = 0.5e-4  # explain prints four decimals, rounded

HEADS = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multilabel": "sigmoid",
    "regression": "identity",
    "count": "exp",
}
TASKS = list(HEADS)
CLASSIFICATION = ["binary", "multiclass", "multilabel"]

BRIEFLY = {"epochs": 1, "batch_size": "full"}
"""One step: JAX compiles every operation anew for every shape."""

every_task = pytest.mark.parametrize("task", TASKS)
quietly = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def problem(task="binary", m=60, n_x=3, seed=0):
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


def fit(X, Y, **options):
    """Call `xpnet.fit` for a few epochs of a small network, unless the options say otherwise."""
    return xpnet.fit(X, Y, **{"hidden": 6, "epochs": 5, "random_state": 0, "learning_rate": 0.02, **options})


def trained(task="binary", **options):
    return fit(*problem(task), task=task, **options)


def output(net, X):
    """Return A of the last layer by the oracle's functions, in float64."""
    A = X
    for layer in net.layers[:-1]:
        A = oracle.G[net.activation.name](layer.W @ A + layer.b)
    return oracle.HEAD[HEADS[net.task]](net.layers[-1].W @ A + net.layers[-1].b)


def everything(net):
    """Return all that a network is, for a comparison bit for bit."""
    arrays = [array for layer in net.layers for array in layer] + list(net.scaling or ())
    return (
        [(array.dtype, array.shape, array.tobytes()) for array in map(to_host, arrays)],
        (net.task, net.activation.name, net.feature_names, net.sizes, net.dtype, net.device),
        (None if net.classes is None else net.classes.tolist(), net.classes is None or net.classes.dtype.kind),
        (dict(net.history), net.epochs_run, net.best_epoch, net.stop_reason, net.random_state, dict(net.timing)),
    )


# Predictions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (6,), (5, 4)], ids=str)
@every_task
def test_predict_proba_is_the_equations_output(task, hidden):
    X, _ = problem(task, seed=1)
    net = trained(task, hidden=hidden, activation="tanh", dtype="float64")
    np.testing.assert_allclose(net.predict_proba(X), output(net, X), rtol=ROUNDING * EPS["float64"])


SHAPES = {"binary": (1, 60), "multiclass": (3, 60), "multilabel": (3, 60), "regression": (2, 60), "count": (1, 60)}


@pytest.mark.parametrize(("task", "shape"), SHAPES.items())
def test_predict_proba_has_a_row_an_output(task, shape):
    assert trained(task).predict_proba(problem(task)[0]).shape == shape


@pytest.mark.parametrize(("task", "shape"), {**SHAPES, "binary": (60,), "multiclass": (60,)}.items(), ids=str)
def test_predict_has_a_label_an_example_or_a_row_an_output(task, shape):
    assert trained(task).predict(problem(task)[0]).shape == shape


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_read_as_rows(task):
    X, _ = problem(task)
    net = trained(task)
    np.testing.assert_allclose(
        net.predict_proba(X.T, examples="rows"), net.predict_proba(X), rtol=ROUNDING * EPS["float32"]
    )


def test_a_binary_label_is_the_second_class_above_one_half():
    X, _ = problem(seed=1)
    net = fit(problem()[0], np.where(problem()[1] == 1, "yes", "no"))
    expected = np.where(output(net, X)[0] > 0.5, "yes", "no")
    np.testing.assert_array_equal(net.predict(X), expected)


def test_a_multiclass_label_is_the_most_probable_class():
    (X, Y), names = problem("multiclass"), np.array(["large", "medium", "small"])
    net = fit(X, names[Y])
    np.testing.assert_array_equal(net.predict(X), names[np.argmax(output(net, X), axis=0)])


def test_multilabel_is_each_label_above_one_half():
    X, _ = problem()
    net = trained("multilabel")
    np.testing.assert_array_equal(net.predict(X), output(net, X) > 0.5)


@pytest.mark.parametrize("task", ["regression", "count"])
def test_numbers_are_predicted_as_they_come_out(task):
    X, _ = problem(task)
    net = trained(task)
    np.testing.assert_array_equal(net.predict(X), net.predict_proba(X))


def test_the_probabilities_of_classes_sum_to_one():
    X, _ = problem()
    sums = trained("multiclass", dtype="float64").predict_proba(1e3 * X).sum(axis=0)
    np.testing.assert_allclose(sums, 1.0, rtol=ROUNDING * EPS["float64"])


@pytest.mark.parametrize("task", CLASSIFICATION)
def test_probabilities_of_absurd_examples_are_probabilities(task):
    X, _ = problem(task)
    probabilities = trained(task).predict_proba(1e20 * X)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


LABELS = {
    "words": np.array(["no", "yes"]),
    "words of a table": np.array(["spam", "a longer ham"], dtype=object),
    "bools": np.array([False, True]),
    "ints": np.array([0, 1]),
    "negative ints": np.array([-5, 3]),
    "large ints": np.array([2**60, 2**60 + 1]),
    "small ints": np.array([3, 200], dtype=np.uint8),
    "floats": np.array([-1.0, 1.0]),
    "floats of half the width": np.array([2.0, 4.0], dtype=np.float32),
    "three words": np.array(["b", "a", "c"]),
    "three ints": np.array([7, -7, 100]),
    "three floats": np.array([1.0, 2.0, 30.0]),
}
every_label = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)


@every_label
def test_the_labels_that_came_in_come_back(labels):
    # As many examples as numbers: a network this wide can learn them by heart.
    X = np.random.default_rng(0).standard_normal((20, 12))
    Y = labels[np.arange(12) % labels.size]
    net = fit(X, Y, hidden=40, epochs=100, learning_rate=0.05)
    assert net.predict(X).tolist() == Y.tolist()


@every_label
def test_labels_come_back_in_their_dtype(labels):
    X, _ = problem()
    predicted = fit(X, labels[np.arange(60) % labels.size]).predict(X)
    assert predicted.dtype.kind == ("U" if labels.dtype == object else labels.dtype.kind)


@every_label
def test_classes_are_the_labels_in_order(labels):
    net = fit(problem()[0], labels[np.arange(60) % labels.size])
    assert net.classes.tolist() == sorted(labels.tolist())


def test_one_hot_classes_are_counted_from_zero():
    X, Y = problem("multiclass")
    net = fit(X, np.eye(3, dtype=int)[:, Y])
    assert net.classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("task", ["regression", "count"])
def test_numbers_have_no_classes(task):
    assert trained(task).classes is None


@every_task
def test_predictions_are_arrays_like_x_where_x_is(task, backend):
    X = backend.asarray(problem(task)[0], "float32")
    net = fit(X, problem(task)[1], task=task, **BRIEFLY)
    assert [place_of(found) for found in (net.predict(X), net.predict_proba(X))] == [backend.place] * 2


@every_task
def test_a_network_trained_on_numpy_predicts_where_x_is(task, backend):
    net, (X, _) = trained(task), problem(task)
    assert place_of(net.predict(backend.asarray(X, "float32"))) == backend.place


@every_task
def test_a_network_trained_elsewhere_predicts_numpy_arrays(task, backend):
    X, Y = problem(task)
    net = fit(backend.asarray(X, "float32"), Y, task=task, **BRIEFLY)
    here = net.predict_proba(X)
    assert (type(here), here.shape) == (np.ndarray, SHAPES[task])


@every_task
def test_the_output_is_the_same_in_every_namespace(task, backend):
    net, (X, _) = trained(task), problem(task)
    there = to_host(net.predict_proba(backend.asarray(X, "float32")))
    np.testing.assert_allclose(there, net.predict_proba(X), rtol=0, atol=ROUNDING * EPS["float32"])


@pytest.mark.parametrize("kind", ["int", "bool"])
@pytest.mark.parametrize("labels", [np.array(["no", "yes"]), np.array([-2, 7]), np.array([False, True])], ids=str)
def test_labels_come_back_in_every_namespace(labels, kind, backend, rng):
    X = rng.integers(0, 2, (3, 60)).astype(kind)
    net = fit(X, labels[X[0].astype(int)], **BRIEFLY)
    there = net.predict(backend.asarray(X))
    assert to_host(there).tolist() == net.predict(X).tolist()


@pytest.mark.parametrize("step", [1, 7, 59, 60, 61])
@every_task
def test_blocks_predict_what_the_whole_predicts(task, step, monkeypatch):
    (X, _), net = problem(task), trained(task, dtype="float64")
    whole = net.predict_proba(X)
    monkeypatch.setattr(network, "PREDICTED", step * max(net.sizes))
    np.testing.assert_allclose(net.predict_proba(X), whole, rtol=0, atol=ROUNDING * EPS["float64"])


def test_a_file_is_predicted_a_block_at_a_time(tmp_path, monkeypatch):
    (X, _), net = problem(m=500), trained()
    np.save(tmp_path / "X.npy", X.T)
    whole = net.predict_proba(X)
    monkeypatch.setattr(network, "PREDICTED", 64 * max(net.sizes))
    read = net.predict_proba(np.load(tmp_path / "X.npy", mmap_mode="r"), examples="rows")
    np.testing.assert_allclose(read, whole, rtol=ROUNDING * EPS["float32"])


@every_task
def test_predicting_changes_nothing(task):
    X, Y = problem(task)
    net, X = trained(task, activation="identity", hidden=()), X.astype(np.float32)
    before = X.tobytes()
    net.predict(X), net.score(X, Y), net.cost(X, Y)
    assert X.tobytes() == before


@pytest.mark.parametrize("columns", [1, 5, 300])
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_an_output_that_leaves_the_finite_numbers_is_refused(task, columns):
    X = np.full((3, columns), np.finfo(np.float32).max, np.float32)
    asks = [lambda net: net.predict(X), lambda net: net.predict_proba(X)]
    for ask in asks:
        with pytest.raises(
            DataError, match=r"its output for example 0 is (nan|-?inf), beyond float32\. Scale X as it was"
        ):
            ask(trained(task))


def test_a_cost_that_leaves_the_finite_numbers_is_refused():
    X, Y = problem("regression")
    with pytest.raises(DataError, match=r"their cost is inf, beyond float32\. Scale them as they were then"):
        trained("regression").cost(X, 1e30 + Y)


def test_a_prediction_shares_no_memory_with_the_examples():
    X = problem("regression")[0].astype(np.float32)
    net = trained("regression", activation="identity", hidden=())
    assert not np.shares_memory(net.predict(X), X)


# Score and cost -------------------------------------------------------------------------------------------------------


def scored(task, Y, A, weight):
    """Return what scikit-learn calls this task's score."""
    metrics = pytest.importorskip("sklearn.metrics")
    if task == "multilabel":
        return metrics.accuracy_score(Y.T, A.T > 0.5, sample_weight=weight)
    if task == "multiclass":
        return metrics.accuracy_score(Y, A.argmax(axis=0), sample_weight=weight)
    if task == "binary":
        return metrics.accuracy_score(Y, A[0] > 0.5, sample_weight=weight)
    if task == "regression":
        return metrics.r2_score(Y.T, A.T, sample_weight=weight)
    return metrics.d2_tweedie_score(Y, A[0], power=1, sample_weight=weight)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@every_task
def test_the_score_is_scikit_learns(task, weighted, rng):
    X, Y = problem(task, seed=1)
    net = trained(task, dtype="float64")
    weight = rng.uniform(0, 3, 60) if weighted else None
    expected = scored(task, Y, output(net, X), weight)
    assert net.score(X, Y, sample_weight=weight) == pytest.approx(expected, rel=ROUNDING * EPS["float64"])


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@every_task
def test_the_cost_is_the_equations(task, weighted, rng):
    X, Y = problem(task, seed=1)
    net = trained(task, dtype="float64", l2=3.0)  # the penalty is not part of it
    weight = rng.uniform(0, 3, 60) if weighted else np.ones(60)
    targets = np.eye(3)[:, Y] if task == "multiclass" else np.atleast_2d(Y)
    costs = oracle.COST[HEADS[task]](output(net, X), targets).sum(axis=0)
    found = net.cost(X, Y, sample_weight=weight if weighted else None)
    assert found == pytest.approx(np.average(costs, weights=weight), rel=ROUNDING * EPS["float64"])


@every_task
def test_scores_are_python_floats_wherever_x_is(task, backend):
    X, Y = problem(task)
    net = trained(task)
    Y = backend.asarray(Y, "float32" if task == "regression" else None)
    assert type(net.score(backend.asarray(X, "float32"), Y)) is float


@every_task
def test_scores_of_rows_are_those_of_columns(task):
    X, Y = problem(task)
    net = trained(task)
    assert net.score(X.T, Y.T, examples="rows") == pytest.approx(net.score(X, Y), rel=ROUNDING * EPS["float32"])


def test_labels_that_were_not_trained_on_cannot_be_scored():
    X, Y = problem()
    with pytest.raises(TargetError, match="not trained on: 9"):
        trained().score(X, np.where(Y == 1, 9, 0))


def test_x_of_another_width_is_refused():
    with pytest.raises(ShapeError, match="X has 4 features but the network was trained on 3"):
        trained().predict(np.zeros((4, 9)))


def test_x_that_lies_the_other_way_is_recognized():
    with pytest.raises(ShapeError, match=r"did you mean X\.T"):
        trained().predict(problem()[0].T)


def table(names="abc"):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(problem()[0].T, columns=list(names))


def test_an_array_is_encoded_as_it_is(backend):
    X = backend.asarray(problem()[0], "float32")
    assert place_of(trained().encode(X)) == backend.place
    assert np.array_equal(to_host(trained().encode(X)), to_host(X))


def test_a_table_for_a_network_without_names_is_taken_by_position():
    net, X = trained(), problem()[0]
    assert np.array_equal(net.predict(table("cab"), examples="rows"), net.predict(X))
    with pytest.raises(ShapeError, match=r"X has 2 features \('a', 'b'\) but the network was trained on 3\. Pass the"):
        net.predict(table()[["a", "b"]], examples="rows")


def test_an_array_for_a_network_with_names_is_taken_by_position():
    net, X = fit(table(), problem()[1], examples="rows"), problem()[0]
    assert np.array_equal(net.predict(X), net.predict(table(), examples="rows"))


def test_a_tables_columns_are_kept_as_feature_names():
    assert fit(table(), problem()[1], examples="rows").feature_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("names", "named"), {"abz": "lacks 'c'; .*|lacks 'c' and .*has 'z'", "bac": "'b', 'a' are out of place"}.items()
)
def test_a_table_of_other_columns_is_refused(names, named):
    net = fit(table(), problem()[1], examples="rows")
    with pytest.raises(ShapeError, match=named):
        net.predict(table(names), examples="rows")


# What it is -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (6,), (5, 4, 3)], ids=str)
def test_the_layers_fit_each_other(hidden):
    sizes = (3, *hidden, 2)
    shapes = [(W.shape, b.shape) for W, b in trained("regression", hidden=hidden).layers]
    assert shapes == [((n_out, n_in), (n_out, 1)) for n_in, n_out in pairwise(sizes)]


@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2", "W3", "b3"])
def test_the_parameters_have_the_courses_names(name):
    net = trained(hidden=(5, 4))
    assert getattr(net, name) is getattr(net.layers[int(name[1]) - 1], name[0])


@pytest.mark.parametrize("name", ["W1", "b3", "layers", "predict", "history", "classes"])
def test_dir_lists_the_parameters_and_the_rest(name):
    assert name in dir(trained(hidden=(5, 4)))


@pytest.mark.parametrize("name", ["W0", "W4", "b01", "W", "w1", "weights"])
def test_there_are_no_other_parameters(name):
    assert not hasattr(trained(hidden=(5, 4)), name)


def test_a_misspelt_attribute_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match='Did you mean "predict"'):
        _ = trained().predct


REPRS = {
    "binary": "<Network 3-6-1 relu, binary, 5 epochs, cost 0.",
    "multilabel": "<Network 3-6-3 relu, multilabel, 5 epochs, cost ",
    "regression": "<Network 3-6-2 relu, regression, 5 epochs, cost ",
}


@pytest.mark.parametrize(("task", "beginning"), REPRS.items())
def test_a_repr_is_one_line_that_says_what_it_is(task, beginning):
    text = repr(dataclasses.replace(trained(task), diagnosis=Diagnosis()))
    assert (text.startswith(beginning), text.endswith(", float32 on cpu>"), "\n" in text) == (True, True, False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_parameters_have_the_dtype_that_was_asked_for(dtype):
    net = trained(dtype=dtype)
    assert {net.dtype, *(array.dtype.name for layer in net.layers for array in layer)} == {dtype}


# Nothing changes it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(xpnet.Network)])
def test_no_attribute_can_be_set(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(trained(), name, None)


def remade(net, how, path):
    """Return the network by one of the ways that it can come about."""
    if how == "loaded":
        net.save(path / "net.safetensors")
        return xpnet.load(path / "net.safetensors")
    return {
        "fitted": lambda: net,
        "moved": lambda: net.to("cpu"),
        "pickled": lambda: pickle.loads(pickle.dumps(net)),
        "copied": lambda: copy.deepcopy(net),
        "shallow": lambda: copy.copy(net),
    }[how]()


every_way = pytest.mark.parametrize("how", ["fitted", "loaded", "moved", "pickled", "copied", "shallow"])


@pytest.mark.parametrize("part", ["W1", "b1", "W2", "b2", "mean", "deviation"])
@every_way
def test_no_number_in_it_can_be_written(how, part, tmp_path):
    net = remade(trained(standardize=True), how, tmp_path)
    array = {"mean": net.scaling[0], "deviation": net.scaling[1]}.get(part)
    with pytest.raises(ValueError, match="read-only"):
        (getattr(net, part) if array is None else array)[...] = 0


@every_way
def test_neither_history_nor_timing_takes_new_entries(how, tmp_path):
    net = remade(trained(), how, tmp_path)
    assert {type(net.history), type(net.timing)} == {MappingProxyType}


def test_the_classes_that_it_gives_are_a_copy():
    net = trained()
    net.classes[:] = 7
    assert net.classes.tolist() == [0, 1]


@every_way
def test_a_copy_is_the_same_network(how, tmp_path):
    net = trained("multiclass", standardize=True, validation_fraction=0.2)
    assert everything(remade(net, how, tmp_path)) == everything(net)


def test_a_network_of_ones_own_activation_can_be_copied():
    own = xpnet.Activation(np.tanh, lambda _, A: 1 - A * A, name="own")
    net = trained(activation=own)
    assert everything(copy.deepcopy(net)) == everything(net)


def test_a_network_of_torch_tensors_can_be_pickled():
    torch = pytest.importorskip("torch")
    net = fit(torch.asarray(problem()[0]), problem()[1])
    assert everything(pickle.loads(pickle.dumps(net))) == everything(net)


# Devices --------------------------------------------------------------------------------------------------------------


def test_a_network_can_be_brought_to_the_host(backend):
    X, Y = problem()
    net = fit(backend.asarray(X, "float32"), Y, **BRIEFLY)
    home = net.to("cpu")
    assert (home.device, type(home.W1), home.W1.tolist()) == ("cpu", np.ndarray, to_host(net.W1).tolist())


def test_moving_leaves_everything_else_as_it_was(backend):
    X, Y = problem("multiclass")
    net = fit(backend.asarray(X, "float32"), Y, standardize=True, **BRIEFLY)
    home = net.to("cpu")
    assert everything(home)[2:] == everything(net)[2:]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_file_is_loaded_onto_a_device_that_is_there(device, tmp_path):
    trained().save(tmp_path / "net.safetensors")
    net = xpnet.load(tmp_path / "net.safetensors", device=device)
    assert net.device == str(xpnet.device.resolve(device).name)


def test_a_file_is_loaded_on_cuda(cuda, tmp_path):
    net = trained(standardize=True)
    net.save(tmp_path / "net.safetensors")
    assert everything(xpnet.load(tmp_path / "net.safetensors", device="cuda").to("cpu")) == everything(net)


def test_a_file_is_not_loaded_onto_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("XPNET_CPU_FALLBACK", raising=False)
    trained().save(tmp_path / "net.safetensors")
    with pytest.raises(DeviceUnavailableError, match='device="cuda:999"'):
        xpnet.load(tmp_path / "net.safetensors", device="cuda:999")


def test_a_device_of_another_name_is_refused(tmp_path):
    trained().save(tmp_path / "net.safetensors")
    with pytest.raises(ArgumentError, match='Did you mean "cuda"'):
        xpnet.load(tmp_path / "net.safetensors", device="gpu")


# Files ----------------------------------------------------------------------------------------------------------------


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=5)
classes = st.one_of(
    st.lists(words, min_size=2, max_size=4, unique=True),
    st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=4, unique=True),
    st.lists(st.integers(-1_000, 1_000).map(float), min_size=2, max_size=4, unique=True),
    st.just([False, True]),
)


@st.composite
def networks(draw):
    """Return a network of any shape and task, trained for an epoch, with X and Y."""
    n_x, m = draw(st.integers(1, 4)), draw(st.integers(4, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    X, task = rng.standard_normal((n_x, m)), draw(st.sampled_from(["labels", "multilabel", "regression", "count"]))
    options: dict[str, Any] = {"task": "auto" if task == "labels" else task}
    if task == "labels":
        labels = draw(classes)
        Y = np.asarray(labels)[np.arange(m) % len(labels)]
        if draw(st.booleans()) and isinstance(labels[0], float):
            Y = Y.astype(np.float32)
    else:
        n_y = draw(st.integers(1 + (task == "multilabel"), 3))
        Y = rng.integers(0, 2, (n_y, m)) if task == "multilabel" else rng.uniform(0, 5, (n_y, m))
        Y[:, 0] = 1
    if draw(st.booleans()):
        options["validation_fraction"] = 0.3
    net = fit(
        X,
        Y,
        hidden=draw(st.lists(st.integers(1, 5), max_size=3)),
        activation=draw(st.sampled_from(list(oracle.G))),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        standardize=draw(st.booleans()),
        random_state=draw(st.integers(0, 2**70)),
        epochs=draw(st.integers(1, 2)),
        **options,
    )
    if draw(st.booleans()):
        net = dataclasses.replace(net, feature_names=tuple(draw(st.lists(words, min_size=n_x, max_size=n_x))))
    return net, X


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@given(networks())
@quietly
def test_saving_and_loading_is_the_identity(folder, made):
    net, _ = made
    net.save(folder / "net.safetensors")
    assert everything(xpnet.load(folder / "net.safetensors")) == everything(net)


@given(networks())
@quietly
def test_a_loaded_network_predicts_the_same_bits(folder, made):
    net, X = made
    net.save(folder / "net.safetensors")
    found, expected = xpnet.load(folder / "net.safetensors").predict(X), net.predict(X)
    assert (found.dtype.kind, found.tolist()) == (expected.dtype.kind, expected.tolist())


@every_label
def test_a_loaded_network_predicts_the_same_dtype(labels, tmp_path):
    X, _ = problem()
    net = fit(X, labels[np.arange(60) % labels.size])
    net.save(tmp_path / "net.safetensors")
    kinds = [found.dtype if found.dtype.kind != "U" else "words" for found in (net.classes, net.predict(X))]
    again = xpnet.load(tmp_path / "net.safetensors")
    assert [found.dtype if found.dtype.kind != "U" else "words" for found in (again.classes, again.predict(X))] == kinds


def test_saving_from_any_namespace_writes_the_same_file(backend, tmp_path):
    X, Y = problem()
    there = fit(backend.asarray(X, "float32"), Y, standardize=True, **BRIEFLY)
    there.save(tmp_path / "there.safetensors")
    assert everything(xpnet.load(tmp_path / "there.safetensors")) == everything(there.to("cpu"))


def own(name="swish"):
    return xpnet.Activation(
        lambda Z: Z / (1 + np.exp(-Z)), lambda Z, _: (1 + np.exp(-Z) * (1 + Z)) / (1 + np.exp(-Z)) ** 2, name=name
    )


def test_a_network_of_ones_own_activation_is_loaded_with_it(tmp_path):
    X, _ = problem()
    net = trained(activation=own())
    net.save(tmp_path / "net.safetensors")
    again = xpnet.load(tmp_path / "net.safetensors", activation=own())
    np.testing.assert_array_equal(again.predict_proba(X), net.predict_proba(X))


def test_a_network_of_ones_own_activation_is_not_loaded_without_it(tmp_path):
    trained(activation=own()).save(tmp_path / "net.safetensors")
    with pytest.raises(ArgumentError, match=r"'swish', is not one of xpnet's.*activation="):
        xpnet.load(tmp_path / "net.safetensors")


@pytest.mark.parametrize("activation", ["relu", own()], ids=["relu", "own"])
def test_another_activation_than_the_one_trained_with_is_refused(activation, tmp_path):
    trained(activation=activation).save(tmp_path / "net.safetensors")
    with pytest.raises(ArgumentError, match="the one passed is 'other'"):
        xpnet.load(tmp_path / "net.safetensors", activation=own("other"))


def test_a_checkpoint_is_not_taken_for_a_network(tmp_path):
    trained(checkpoint=tmp_path / "run.checkpoint")
    with pytest.raises(FileFormatError, match="is a checkpoint, not a network"):
        xpnet.load(tmp_path / "run.checkpoint")


def test_a_file_that_is_not_there_is_a_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        xpnet.load(tmp_path / "nothing.safetensors")


class Saved(NamedTuple):
    """What a file holds, to be damaged."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


METADATA = {
    "task": [None, 7, "guess", ["multiclass"]],
    "classes": [None, 7, "abc", [], [0, 0, 1], [2, 1, 0], [0, 1], [0, 1, 2, 3], [0, 1, "2"], [0.5, 1.0, 2.0]],
    "classes_dtype": [
        *(None, 7, "int65", "object", "str", "float32,float32", "complex64", ["int64"], "S1", "a1", "longdouble"),
        *("U99999999", "9999999i8", {"names": ["a"], "formats": ["i8"], "offsets": [10**8]}, "i8," * 100_000),
    ],
    "activation": [None, 7, ["relu"]],
    "feature_names": [7, "abc", ["a", "b"], ["a", "b", 3]],
    "epochs_run": [None, "5", 1.5, -1, True, []],
    "best_epoch": ["5", 1.5, -1, []],
    "stop_reason": [None, 7, ["epochs"]],
    "random_state": [None, "5", 1.5, -1],
    "timing": [None, 7, {"steps": "many"}, {"steps": None}],
}


def refused(saved, path):
    """Write what is left of a network, and try to load it."""
    files.write(path, saved.tensors, saved.metadata, kind="network")
    with pytest.raises(FileFormatError, match="not a whole xpnet network"):
        xpnet.load(path)


@pytest.fixture
def saved(tmp_path):
    """Return what the file of a 3-6-3 network holds."""
    trained("multiclass", standardize=True).save(tmp_path / "net.safetensors")
    return Saved(*files.read(tmp_path / "net.safetensors", kind="network"))


@pytest.mark.parametrize("key", METADATA)
def test_a_network_without_one_of_its_entries_is_refused(key, saved, tmp_path):
    del saved.metadata[key]
    refused(saved, tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in METADATA.items() for value in values])
def test_a_network_with_a_wrong_entry_is_refused(key, value, saved, tmp_path):
    saved.metadata[key] = value
    refused(saved, tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2", "feature_mean", "feature_deviation", "history.cost"])
def test_a_network_without_one_of_its_arrays_is_refused(name, saved, tmp_path):
    del saved.tensors[name]
    refused(saved, tmp_path / "damaged.safetensors")


ARRAYS = {
    "a history of whole numbers": {"history.cost": np.zeros(3, np.int64)},
    "a history of nan": {"history.cost": np.full(3, np.nan)},
    "a history of two axes": {"history.cost": np.zeros((3, 1))},
    "a history of more costs than rates": {"history.cost": np.zeros(1_000)},
    "a history of fewer validation costs": {"history.validation_cost": np.zeros(1)},
    "a history of something else": {"history.accuracy": np.zeros(3)},
    "one array more": {"W3": np.zeros((3, 3), np.float32)},
    "two arrays of other names": {"W9": np.zeros((3, 3), np.float32), "b9": np.zeros((3, 1), np.float32)},
    "another layer that does not fit": {"W3": np.zeros((3, 4), np.float32), "b3": np.zeros((3, 1), np.float32)},
    "W of other features": {"W1": np.zeros((6, 4), np.float32)},
    "W of other units": {"W1": np.zeros((5, 3), np.float32)},
    "W turned": {"W1": np.zeros((3, 6), np.float32)},
    "W without columns": {"W1": np.zeros((6, 0), np.float32)},
    "W of one axis": {"W2": np.zeros(18, np.float32)},
    "b of one axis": {"b1": np.zeros(6, np.float32)},
    "b of other units": {"b1": np.zeros((5, 1), np.float32)},
    "outputs of fewer classes": {"W2": np.zeros((2, 6), np.float32), "b2": np.zeros((2, 1), np.float32)},
    "W of another dtype": {"W1": np.zeros((6, 3))},
    "W of whole numbers": {"W1": np.zeros((6, 3), np.int32)},
    "nan": {"W1": np.full((6, 3), np.nan, np.float32)},
    "infinity": {"b2": np.full((3, 1), np.inf, np.float32)},
    "a mean of other features": {"feature_mean": np.zeros(4)},
    "a deviation of other features": {"feature_deviation": np.ones(2)},
    "a deviation of zero": {"feature_deviation": np.zeros(3)},
    "a mean that is not finite": {"feature_mean": np.full(3, np.nan)},
    "a mean of another dtype": {"feature_mean": np.zeros(3, np.float32)},
    "a deviation of signaling nan": {"feature_deviation": np.full(3, 0x7FA00000, np.uint32).view(np.float32)},
    "a deviation of whole numbers": {"feature_deviation": np.ones(3, np.uint64)},
}


@pytest.mark.parametrize("arrays", ARRAYS.values(), ids=ARRAYS)
def test_a_network_whose_arrays_do_not_fit_is_refused(arrays, saved, tmp_path):
    saved.tensors.update(arrays)
    refused(saved, tmp_path / "damaged.safetensors")


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_classes_beyond_their_dtype_are_refused(dtype, saved, tmp_path):
    classes = [0.0, 1.0, 1e300] if dtype.startswith("float") else [0, 1, 300]
    saved.metadata.update(classes=classes, classes_dtype=dtype)
    refused(saved, tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(
    "key", ["task", "classes", "classes_dtype", "feature_names", "epochs_run", "stop_reason", "timing"]
)
@pytest.mark.parametrize(
    "value", ["a" * 10**6, ["a"] * 10**5, {"a" * 10**6: "a"}], ids=lambda value: type(value).__name__
)
def test_no_refusal_quotes_more_than_a_line_of_the_file(key, value, saved, tmp_path):
    saved.metadata[key] = value
    files.write(tmp_path / "damaged.safetensors", *saved, kind="network")
    if key == "stop_reason" and isinstance(value, str):
        return  # as long as it likes
    with pytest.raises(FileFormatError) as raised:
        xpnet.load(tmp_path / "damaged.safetensors")
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("given_one", [False, True])
def test_no_activation_is_quoted_at_length(given_one, saved, tmp_path):
    saved.metadata["activation"] = "a" * 10**6
    files.write(tmp_path / "damaged.safetensors", *saved, kind="network")
    with pytest.raises(ArgumentError) as raised:
        xpnet.load(tmp_path / "damaged.safetensors", activation=own() if given_one else None)
    assert len(str(raised.value)) < 400


def test_a_file_does_not_say_how_much_its_classes_take(saved, tmp_path):
    saved.metadata.update(classes=["a", "b", "c"], classes_dtype="U30000000")
    tracemalloc.start()
    try:
        refused(saved, tmp_path / "damaged.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # bytes; by that dtype it would be 360 million


@pytest.mark.parametrize("task", ["regression", "count", "binary"])
def test_classes_of_another_task_are_refused(task, saved, tmp_path):
    saved.metadata["task"] = task
    refused(saved, tmp_path / "damaged.safetensors")


# Explain --------------------------------------------------------------------------------------------------------------


def explained(net, *examples, **options):
    """Return what is printed: {the left side: (its number, its shape, its values)}."""
    out = io.StringIO()
    net.explain(*examples, file=out, **options)
    found = {}
    for block in re.split(r"\n(?=\S)", out.getvalue().strip()):
        head, values = block.split("\n", 1)
        number, name, shape = re.fullmatch(r"(?:\((\d+)\) )?(\S+)(?: = .*?)?  \((\d+, \d+)\)", head).groups()
        shape = tuple(map(int, shape.split(", ")))
        numbers = (
            np.array([float(value) for value in re.findall(r"-?\d+\.\d*", values)]) if "..." not in values else None
        )
        found[name] = (number and int(number), shape, numbers)
    return found


@pytest.fixture
def lesson():
    """Return a 3-6-1 tanh network in float64 with four examples, as in the lecture."""
    X, Y = problem(m=4)
    return trained(activation="tanh", dtype="float64"), X, Y


EQUATIONS = {
    "Z1": (1, (6, 4)),
    "A1": (2, (6, 4)),
    "Z2": (3, (1, 4)),
    "A2": (4, (1, 4)),
    "dZ2": (5, (1, 4)),
    "dW2": (6, (1, 6)),
    "db2": (7, (1, 1)),
    "dZ1": (8, (6, 4)),
    "dW1": (9, (6, 3)),
    "db1": (10, (6, 1)),
}


@pytest.mark.parametrize(("name", "expected"), EQUATIONS.items())
def test_explain_prints_each_equation_with_its_number_and_shape(name, expected, lesson):
    assert explained(*lesson)[name][:2] == expected


def test_explain_prints_nothing_but_x_y_and_the_ten_equations(lesson):
    assert list(explained(*lesson)) == ["X", "Z1", "A1", "Z2", "A2", "Y", *list(EQUATIONS)[4:]]


@pytest.mark.parametrize("name", EQUATIONS)
def test_explain_prints_the_lectures_numbers(name, lesson):
    net, X, Y = lesson
    _, dW1, db1, dW2, db2 = oracle.one_hidden_layer(net.W1, net.b1, net.W2, net.b2, X, Y[None, :])
    Z1 = net.W1 @ X + net.b1
    Z2 = net.W2 @ np.tanh(Z1) + net.b2
    A2 = 1 / (1 + np.exp(-Z2))
    dZ1 = net.W2.T @ (A2 - Y) * (1 - np.tanh(Z1) ** 2)
    expected = {"Z1": Z1, "A1": np.tanh(Z1), "Z2": Z2, "A2": A2, "dZ2": A2 - Y, "dZ1": dZ1}
    expected |= {"dW1": dW1, "db1": db1, "dW2": dW2, "db2": db2}
    np.testing.assert_allclose(explained(*lesson)[name][2], expected[name].ravel(), rtol=0, atol=1.01 * PRINTED)


def test_explain_numbers_a_deeper_networks_equations_through():
    X, Y = problem(m=4)
    numbers = [number for number, *_ in explained(trained(hidden=(5, 4)), X, Y).values() if number]
    assert numbers == list(range(1, 16))


def test_explain_without_y_goes_forward_only(lesson):
    net, X, _ = lesson
    assert list(explained(net, X)) == ["X", "Z1", "A1", "Z2", "A2"]


@every_task
def test_explain_explains_every_task(task):
    X, Y = problem(task, m=4)
    n_y = SHAPES[task][0]
    assert explained(trained(task), X, Y)["dW2"][:2] == (6, (n_y, 6))


def test_explain_shows_standardized_examples():
    X, Y = problem()
    net = fit(X, Y, standardize=True, dtype="float64")
    expected = (X[:, :4] - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    np.testing.assert_allclose(explained(net, X[:, :4])["X"][2], expected.ravel(), rtol=0, atol=1.01 * PRINTED)


def test_explain_speaks_every_namespace(backend):
    X, Y = problem(m=4)
    net = fit(backend.asarray(problem()[0], "float32"), problem()[1], **BRIEFLY)
    assert list(explained(net, backend.asarray(X, "float32"), Y))[-1] == "db1"


def test_explain_prints_to_standard_output(lesson):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        lesson[0].explain(*lesson[1:])
    assert "(10) db1" in out.getvalue()


def test_explain_reads_rows_as_rows(lesson):
    net, X, Y = lesson
    assert explained(net, X.T, Y, examples="rows")["db1"][2].tolist() == explained(*lesson)["db1"][2].tolist()


def test_explain_takes_a_hundred_examples_and_no_more():
    net = trained()
    explained(net, *problem(m=100))
    with pytest.raises(ArgumentError, match=r"100 at most; X has 101: pass X\[:, :3\]"):
        net.explain(*problem(m=101))
