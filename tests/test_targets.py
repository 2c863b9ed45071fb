"""What Y is taken for, that labels come back as they went in, and that scores and weights are scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet
from xpnet import targets
from xpnet.errors import DataError, TargetError

RNG = np.random.default_rng(17)
M = 60
TWO, THREE, TWENTY = (np.arange(M) % k for k in (2, 3, 20))
FRACTIONS = RNG.standard_normal(M)
ONE_HOT = np.eye(3)[:, THREE]
LABELS = np.stack([TWO, THREE == 1, THREE > 0]).astype(int)
WEIGHT = RNG.uniform(0.1, 3.0, M)

SCORE_TOLERANCE = 1e-12
"""A few hundred epsilons of float64: means over 60 examples, taken in another order than scikit-learn's."""

quietly = settings(deadline=None, database=None)


def pandas():
    return pytest.importorskip("pandas")


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


# --- infer

INFERRED = [
    pytest.param(TWO.astype(bool), "binary", [False, True], id="bools"),
    pytest.param(TWO, "binary", [0, 1], id="two whole numbers"),
    pytest.param(3 * TWO - 1, "binary", [-1, 2], id="two other whole numbers"),
    pytest.param(TWO.astype(np.uint8), "binary", [0, 1], id="small unsigned numbers"),
    pytest.param(TWO.astype(np.float32), "binary", [0.0, 1.0], id="two floats with whole values"),
    pytest.param(np.array(["no", "yes"])[TWO], "binary", ["no", "yes"], id="two words"),
    pytest.param(THREE, "multiclass", [0, 1, 2], id="three whole numbers"),
    pytest.param(THREE + 1.0, "multiclass", [1.0, 2.0, 3.0], id="three floats with whole values"),
    pytest.param(TWENTY, "multiclass", list(range(20)), id="twenty whole numbers"),
    pytest.param(np.array(["a", "bb", "ccc"])[THREE], "multiclass", ["a", "bb", "ccc"], id="three words"),
    pytest.param([f"word {i:02}" for i in range(M)], "multiclass", [f"word {i:02}" for i in range(M)], id="60 words"),
    pytest.param(FRACTIONS, "regression", None, id="fractions"),
    pytest.param(np.append(FRACTIONS[:1], THREE[1:]), "regression", None, id="one fraction among whole numbers"),
    pytest.param(ONE_HOT, "multiclass", [0, 1, 2], id="one-hot columns"),
    pytest.param(ONE_HOT.astype(bool), "multiclass", [0, 1, 2], id="one-hot bools"),
    pytest.param(LABELS, "multilabel", [0, 1, 2], id="several labels an example"),
    pytest.param(np.stack([FRACTIONS, -FRACTIONS]), "regression", None, id="two rows of fractions"),
    pytest.param(TWO.tolist(), "binary", [0, 1], id="a list of whole numbers"),
    pytest.param([bool(label) for label in TWO], "binary", [False, True], id="a list of bools"),
    pytest.param(["no", "yes"] * 30, "binary", ["no", "yes"], id="a list of words"),
    pytest.param(("no", "yes") * 30, "binary", ["no", "yes"], id="a tuple of words"),
    pytest.param(FRACTIONS.tolist(), "regression", None, id="a list of fractions"),
    pytest.param(LABELS.tolist(), "multilabel", [0, 1, 2], id="a list of rows"),
    pytest.param(TWO[None, :], "binary", [0, 1], id="one row"),
    pytest.param(objects(["no", "yes"] * 30), "binary", ["no", "yes"], id="objects that are words"),
    pytest.param(objects(TWO.tolist()), "binary", [0, 1], id="objects that are whole numbers"),
    pytest.param(objects([np.int32(label) for label in TWO]), "binary", [0, 1], id="objects of NumPy's whole numbers"),
    pytest.param(objects([True, False] * 30), "binary", [False, True], id="objects that are bools"),
    pytest.param(objects(FRACTIONS.tolist()), "regression", None, id="objects that are fractions"),
    pytest.param(np.array(["no", "yes"], dtype=np.dtypes.StringDType())[TWO], "binary", ["no", "yes"], id="strings"),
]


@pytest.mark.parametrize(("Y", "task", "classes"), INFERRED)
def test_y_is_taken_for(Y, task, classes):
    found = targets.infer(targets.read(Y))
    assert found.name == task
    assert (None if found.classes is None else found.classes.tolist()) == classes


@pytest.mark.parametrize(
    ("make", "task"),
    [
        pytest.param(lambda: pandas().Series(TWO), "binary", id="whole numbers"),
        pytest.param(lambda: pandas().Series(TWO, dtype="Int64"), "binary", id="whole numbers that may be missing"),
        pytest.param(lambda: pandas().Series(TWO == 1), "binary", id="bools"),
        pytest.param(lambda: pandas().Series(["no", "yes"] * 30), "binary", id="words"),
        pytest.param(lambda: pandas().Series(["a", "b", "c"] * 20, dtype="category"), "multiclass", id="categories"),
        pytest.param(lambda: pandas().Series(FRACTIONS), "regression", id="fractions"),
    ],
)
def test_a_pandas_series_is_taken_for(make, task):
    assert targets.infer(targets.read(make())).name == task


def test_a_table_of_one_column_is_one_label_an_example():
    Y = targets.read(pandas().DataFrame({"y": ["no", "yes"] * 30}), examples="rows")
    assert Y.shape == (M,)
    assert targets.infer(Y).classes.tolist() == ["no", "yes"]


@pytest.mark.parametrize("rows", [LABELS, ONE_HOT, np.stack([FRACTIONS, -FRACTIONS])], ids=["labels", "1-hot", "reals"])
def test_y_in_rows_is_y_in_columns_turned(rows):
    assert np.array_equal(targets.read(rows.T, examples="rows"), targets.read(rows))


@pytest.mark.parametrize("values", [TWO, FRACTIONS.astype(np.float32), LABELS], ids=["labels", "reals", "rows"])
def test_y_of_every_namespace_is_read_on_the_host(backend, values):
    if not backend.has(values.dtype.name):
        values = values.astype(np.int32)
    Y = targets.read(backend.asarray(values))
    assert isinstance(Y, np.ndarray)
    assert np.array_equal(Y, values)


def test_21_whole_numbers_are_not_taken_for_classes():
    with pytest.raises(TargetError, match="21 distinct whole numbers"):
        targets.infer(np.arange(M) % 21)


@pytest.mark.parametrize("task", ["multiclass", "count", "regression"])
def test_a_task_that_is_named_is_taken(task):
    assert targets.infer(np.arange(M), task).name == task


@pytest.mark.parametrize(
    ("Y", "task", "outputs"),
    [
        (TWO, "binary", 1),
        (THREE, "multiclass", 3),
        (ONE_HOT, "multiclass", 3),
        (LABELS, "multilabel", 3),
        (FRACTIONS, "regression", 1),
        (np.stack([FRACTIONS] * 4), "regression", 4),
        (TWENTY, "count", 1),
        (np.stack([TWENTY, TWO]), "count", 2),
    ],
)
def test_the_outputs_are_as_many_as_the_task_needs(Y, task, outputs):
    found = targets.infer(Y, task)
    assert found.n_outputs == outputs
    assert targets.encode(Y, found).shape == (outputs, M)


# --- encode and decode


def test_a_binary_y_is_encoded_as_0_and_1_in_the_classes_order():
    Y = np.array(["yes", "no", "yes"])
    assert targets.encode(Y, targets.infer(Y)).tolist() == [[1.0, 0.0, 1.0]]


def test_classes_are_encoded_as_one_hot_columns():
    Y = np.array([7, -1, 3, 7])
    assert targets.encode(Y, targets.infer(Y)).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize("rows", [ONE_HOT, LABELS], ids=["one-hot", "labels"])
def test_rows_of_0_and_1_are_encoded_as_they_are(rows):
    assert np.array_equal(targets.encode(rows, targets.infer(rows)), rows)


labels_of = {
    "words": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8),
    "whole numbers": st.integers(-(2**63), 2**63 - 1),
    "bools": st.booleans(),
    "floats with whole values": st.integers(-(2**53), 2**53).map(float),
}


@pytest.mark.parametrize("kind", labels_of)
@given(draw=st.data())
@quietly
def test_labels_come_back_as_they_went_in(kind, draw):
    classes = draw.draw(st.lists(labels_of[kind], min_size=2, max_size=6, unique=True))
    Y = classes + draw.draw(st.lists(st.sampled_from(classes), max_size=20))
    read = targets.read(Y)
    task = targets.infer(read, "binary" if len(classes) == 2 else "multiclass")
    back = targets.decode(targets.encode(read, task), task)
    assert back.tolist() == Y
    assert type(back.tolist()[0]) is type(Y[0])


@given(draw=st.data(), n_y=st.integers(2, 4), m=st.integers(1, 9))
@quietly
def test_several_labels_come_back_as_they_went_in(draw, n_y, m):
    Y = np.array(draw.draw(st.lists(st.lists(st.integers(0, 1), min_size=m, max_size=m), min_size=n_y, max_size=n_y)))
    task = targets.infer(Y, "multilabel")
    assert np.array_equal(targets.decode(targets.encode(Y, task), task), Y)


@pytest.mark.parametrize("task", ["regression", "count"])
def test_numbers_come_back_as_they_went_in(task):
    Y = np.stack([TWENTY, TWO]).astype(float)
    found = targets.infer(Y, task)
    assert np.array_equal(targets.decode(targets.encode(Y, found), found), Y)


@pytest.mark.parametrize("Y", [np.array(["no", "yes"])[TWO], TWO == 1, 3 * TWO - 1, TWO + 0.0])
def test_a_network_predicts_labels_of_the_kind_trained_on(Y):
    X = np.stack([TWO - 0.5, RNG.standard_normal(M)])
    net = xpnet.fit(X, Y, hidden=(), optimizer="lbfgs", random_state=0)
    predicted = net.predict(X)
    assert predicted.dtype == np.asarray(Y).dtype
    assert np.array_equal(predicted, Y)


@pytest.mark.parametrize(("trained", "asked"), [(TWO, TWO == 1), (TWO == 1, TWO), (TWO, TWO + 0.0), (TWO + 0.0, TWO)])
def test_labels_of_equal_value_are_the_same_labels(trained, asked):
    task = targets.infer(trained)
    assert np.array_equal(targets.encode(asked, task), targets.encode(trained, task))


# --- score: scikit-learn's

weighted = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])


def metrics():
    return pytest.importorskip("sklearn.metrics")


@weighted
def test_the_score_of_two_classes_is_the_accuracy(weight):
    task, A = targets.infer(TWO), RNG.uniform(size=(1, M))
    wanted = metrics().accuracy_score(TWO, A[0] > 0.5, sample_weight=weight)
    assert targets.score(TWO, [A], task, weight) == pytest.approx(wanted, rel=SCORE_TOLERANCE)


@weighted
@pytest.mark.parametrize("Y", [THREE, ONE_HOT], ids=["labels", "one-hot"])
def test_the_score_of_classes_is_the_accuracy(weight, Y):
    task, A = targets.infer(Y), RNG.uniform(size=(3, M))
    wanted = metrics().accuracy_score(THREE, A.argmax(axis=0), sample_weight=weight)
    assert targets.score(Y, [A], task, weight) == pytest.approx(wanted, rel=SCORE_TOLERANCE)


@weighted
def test_the_score_of_several_labels_asks_for_each_of_an_example(weight):
    task, A = targets.infer(LABELS), np.where(RNG.uniform(size=(3, M)) > 0.2, LABELS, 1 - LABELS)
    wanted = metrics().accuracy_score(LABELS.T, A.T, sample_weight=weight)
    assert 0.2 < wanted < 0.8
    assert targets.score(LABELS, [A], task, weight) == pytest.approx(wanted, rel=SCORE_TOLERANCE)


@weighted
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_score_of_numbers_is_r2(weight, outputs):
    Y = RNG.normal(5.0, 2.0, size=(outputs, M))
    A = Y + RNG.standard_normal((outputs, M)) * np.arange(1, outputs + 1)[:, None]
    wanted = metrics().r2_score(Y.T, A.T, sample_weight=weight)
    assert targets.score(Y, [A], targets.infer(Y), weight) == pytest.approx(wanted, rel=SCORE_TOLERANCE)


@weighted
def test_the_score_of_counts_is_the_poisson_d2(weight):
    A = RNG.uniform(0.5, 6.0, size=(1, M))
    Y = RNG.poisson(A[0])
    assert (Y == 0).any()
    wanted = metrics().d2_tweedie_score(Y, A[0], power=1, sample_weight=weight)
    assert targets.score(Y, [A], targets.infer(Y, "count"), weight) == pytest.approx(wanted, rel=SCORE_TOLERANCE)


@pytest.mark.parametrize(("output", "score"), [(2.0, 1.0), (2.5, 0.0)])
def test_constant_numbers_are_explained_when_they_are_met(output, score):
    Y, A = np.full(M, 2.0), np.full((1, M), output)
    assert metrics().r2_score(Y, A[0]) == score
    assert targets.score(Y, [A], targets.infer(Y, "regression")) == score


@pytest.mark.parametrize("task", ["regression", "count"])
def test_the_mean_scores_0(task):
    Y = TWENTY.astype(float)
    A = np.full((1, M), Y.mean())
    assert targets.score(Y, [A], targets.infer(Y, task)) == pytest.approx(0.0, abs=SCORE_TOLERANCE)


HUGE = [1e-300, 1e-30, 1e30, 1e200, 1e300]


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("task", ["regression", "count"])
def test_the_score_of_numbers_is_the_same_in_any_unit(task, size, rng):
    Y, A = rng.uniform(1, 9, 40), rng.uniform(1, 9, (1, 40))
    kind = targets.infer(Y, task)
    plain, scaled = (targets.score(unit * Y, [unit * A], kind) for unit in (1.0, size))
    assert scaled == pytest.approx(plain, rel=1e-12)  # the products with the unit are rounded


@pytest.mark.parametrize("task", ["regression", "count"])
@pytest.mark.parametrize("wrong", [1e300, 0.0])
def test_a_score_of_outputs_however_wrong_is_a_number(task, wrong):
    Y = np.array([1e-300, 2e-300, 3e-300])
    assert -math.inf < targets.score(Y, [np.full((1, 3), wrong)], targets.infer(Y, task)) <= 0.0


@pytest.mark.parametrize("task", ["regression", "count"])
def test_the_size_of_an_example_without_weight_does_not_matter(task):
    Y, A, weight = np.array([1e300, 1.0, 2.0, 4.0]), np.array([[0.0, 1.5, 2.5, 3.0]]), np.array([0.0, 1.0, 1.0, 1.0])
    kind = targets.infer(Y, task)
    assert targets.score(Y, [A], kind, weight) == pytest.approx(targets.score(Y[1:], [A[:, 1:]], kind), rel=1e-12)


@pytest.mark.parametrize("task", ["regression", "count"])
def test_a_score_of_what_weighs_next_to_nothing_beside_one_example_is_a_number(task):
    Y, weight = np.array([0.0, 0.0, 0.0, 0.1]), np.array([0.0, 0.0, 1.0, 1.79769313e308])
    assert -math.inf < targets.score(Y, [np.full((1, 4), 0.7)], targets.infer(Y, task), weight) <= 0.0


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1.7e308])
@pytest.mark.parametrize(("Y", "task"), [(TWO, "binary"), (LABELS, "multilabel"), (TWO + 0.5, "regression")])
def test_a_score_goes_by_the_shares_of_the_weights(Y, task, size, rng):
    kind = targets.infer(Y, task)
    A = rng.uniform(0, 1, (kind.n_outputs, TWO.size))
    found = targets.score(Y, [A], kind, np.full(TWO.size, size))
    assert found == pytest.approx(targets.score(Y, [A], kind), rel=1e-12)


@weighted
def test_a_networks_score_is_that_of_its_predictions(weight):
    X = np.stack([TWO + RNG.standard_normal(M), RNG.standard_normal(M)])
    words = np.array(["no", "yes"])[TWO]
    net = xpnet.fit(X, words, hidden=3, epochs=20, random_state=0)
    wanted = metrics().accuracy_score(words, net.predict(X), sample_weight=weight)
    assert net.score(X, words, sample_weight=weight) == pytest.approx(wanted, rel=SCORE_TOLERANCE)


# --- weights


def weights(Y, sample_weight=None, class_weight=None, task="auto"):
    Y = targets.read(Y)
    return targets.weights(sample_weight, class_weight, Y, targets.infer(Y, task), Y.shape[-1])


def test_without_weights_there_are_none():
    assert weights(TWO) is None


UNEQUAL = np.array(["a", "b", "b", "c", "c", "c", "c"] * 5)


@pytest.mark.parametrize("form", ["labels", "one-hot"])
def test_balanced_weights_are_scikit_learns(form):
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_sample_weight
    Y = UNEQUAL if form == "labels" else (np.unique(UNEQUAL)[:, None] == UNEQUAL).astype(int)
    assert np.allclose(weights(Y, class_weight="balanced"), compute("balanced", UNEQUAL), rtol=SCORE_TOLERANCE)


def test_a_dict_gives_the_labels_weights_and_1_to_the_rest():
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_sample_weight
    given = {"a": 2.5, "c": 0.0}
    assert np.array_equal(weights(UNEQUAL, class_weight=given), compute(given, UNEQUAL))


def test_weights_of_examples_and_of_classes_multiply():
    sample_weight = RNG.uniform(size=UNEQUAL.size)
    both = weights(UNEQUAL, sample_weight, {"b": 3.0})
    assert np.allclose(both, sample_weight * np.where(UNEQUAL == "b", 3.0, 1.0), rtol=SCORE_TOLERANCE)


@pytest.mark.parametrize("form", [list, np.array, lambda w: pandas().Series(w)], ids=["list", "array", "series"])
def test_weights_may_come_in_any_form(form):
    assert np.array_equal(weights(TWO, form([2, 3] * 30)), [2.0, 3.0] * 30)


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1.7e308])
def test_a_fit_goes_by_the_shares_of_the_weights(size, rng):
    X = rng.standard_normal((2, TWO.size))
    even, plain = (
        xpnet.fit(X, TWO, sample_weight=weight, epochs=3, random_state=0) for weight in (np.full(TWO.size, size), None)
    )
    np.testing.assert_allclose(even.W1, plain.W1, rtol=1e-5)  # float32's rounding, over a few steps
    assert even.history["cost"] == pytest.approx(plain.history["cost"], rel=1e-5)


def test_weights_beyond_float64_with_those_of_the_classes_are_refused():
    weight = np.full(TWO.size, 1.7e308)
    with pytest.raises(DataError, match=r"sample_weight\[\d+\] is 1\.7e\+308, inf with class_weight in it\. Give"):
        targets.weights(weight, {0: 9.0}, TWO, targets.infer(TWO), TWO.size)


def test_weights_of_every_namespace_are_read_on_the_host(backend):
    given = backend.asarray(WEIGHT.astype(np.float32))
    assert np.array_equal(weights(TWO, given), WEIGHT.astype(np.float32))


def test_a_weight_of_2_counts_an_example_twice():
    X, twice = RNG.standard_normal((3, M)), np.append(np.arange(M), np.arange(9))
    steps = {"hidden": 4, "epochs": 5, "optimizer": "gd", "batch_size": "full", "random_state": 0, "dtype": "float64"}
    weighted = xpnet.fit(X, TWO, sample_weight=np.where(np.arange(M) < 9, 2, 1), **steps)
    doubled = xpnet.fit(X[:, twice], TWO[twice], **steps)
    assert np.allclose(weighted.W1, doubled.W1, rtol=SCORE_TOLERANCE, atol=SCORE_TOLERANCE)
    assert np.allclose(weighted.history["cost"], doubled.history["cost"], rtol=SCORE_TOLERANCE)


def test_labels_beyond_the_whole_numbers_of_float64_are_told_apart():
    classes, Y = np.array([2**62, 2**62 + 1]), np.array([2**62 + 1, 2**62], np.uint64)
    assert targets.indices(Y, classes).tolist() == [1, 0]
    with pytest.raises(TargetError, match="not trained on: 4611686018427387906"):
        targets.indices(Y + np.uint64(1), classes)


@pytest.mark.parametrize("kind", [np.float16, np.int8, bool])
def test_labels_beyond_the_classes_dtype_were_not_trained_on(kind):
    with pytest.raises(TargetError, match=r"not trained on: 1e\+300"):
        targets.indices(np.array([1.0, 1e300]), np.array([0, 1], dtype=kind))


@pytest.mark.parametrize("kind", [">i4", ">f8", ">U2", np.longdouble])
def test_labels_are_kept_as_this_computer_has_them(kind):
    labels = targets.read(TWO.astype(kind))
    assert labels.dtype.isnative
    assert labels.dtype.char != "g"
    assert labels.tolist() == TWO.astype(kind).astype(np.dtype(kind).newbyteorder("=")).tolist()


def test_numbers_beyond_float64_are_refused():
    with pytest.raises(DataError, match=r"Y must be finite; Y\[1\] is inf\."):
        targets.read(np.array([0, 1]) * np.longdouble("1e4000"))
