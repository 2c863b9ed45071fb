"""The estimators, in scikit-learn's hands: its own checks, its own networks beside ours, and its tools around them."""

import copy
import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn import clone, config_context, neural_network
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import xpnet
from xpnet import data
from xpnet import sklearn as ours
from xpnet.device import cuda_problem, place_of, to_host
from xpnet.errors import ArgumentError, CheckpointError, ScaleWarning, TargetError
from xpnet.sklearn import MLPClassifier, MLPRegressor

# Most fits here are short, and scikit-learn's checks have features of any size.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::xpnet.errors.ScaleWarning"),
]

ROUNDING = 1e-12  # float64: 20 steps of sums over 60 rows, made in another order
SCIKIT_LEARNS = {"MLPClassifier": neural_network.MLPClassifier, "MLPRegressor": neural_network.MLPRegressor}

INDICATOR = "indicator"
Y_OF = {
    "binary": lambda X: np.where(X[:, 0] * X[:, 1] > 0, "same", "other"),
    "multiclass": lambda X: np.digitize(X[:, 0] * X[:, 1], [-0.5, 0.5]) + 3,
    INDICATOR: lambda X: (X[:, :2] > 0.3).astype(int),
    "one number": lambda X: X[:, 0] * X[:, 1],
    "two numbers": lambda X: np.stack([X[:, 0] * X[:, 1], X[:, 2]], axis=1),
}
CLASSIFIED = ("binary", "multiclass", INDICATOR)


def problem(kind="binary", m=60, seed=0):
    """Return X (m, 3) and a y of the kind."""
    X = np.random.default_rng(seed).normal(size=(m, 3))
    return X, Y_OF[kind](X)


def estimator(kind="binary", **parameters):
    """Return a small one for a y of the kind."""
    make = MLPClassifier if kind in CLASSIFIED else MLPRegressor
    return make(**{"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 10, **parameters})


def bits(model):
    """Return all that training made, bit for bit; the clock's readings are left out."""
    net = model.network_
    parameters = [to_host(array).tobytes() for layer in net.layers for array in layer]
    return parameters, net.history["cost"], net.history["validation_cost"], net.epochs_run, net.best_epoch


# scikit-learn's own checks --------------------------------------------------------------------------------------------


def checks_of(estimator):
    """Return the checks that scikit-learn's `parametrize_with_checks` makes of an estimator, by name."""
    return [(check.func.__name__, check) for _, check in estimator_checks_generator(estimator)]


DEFAULTS = [MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)]
OTHERS = [
    MLPClassifier(8, "tanh", solver="lbfgs", max_iter=30),
    MLPRegressor(8, "tanh", solver="sgd", learning_rate_init=0.05, max_iter=100),
]
CHECKS = [
    pytest.param(estimator, check, id=f"{estimator}-{name}")
    for estimator in DEFAULTS + OTHERS
    for name, check in checks_of(estimator)
    if estimator in DEFAULTS or "array_api" not in name
]


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_a_check_of_scikit_learn_passes(estimator, check, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # without which Array API dispatch cannot be turned on
    if check.keywords.get("array_namespace") == "cupy" and (problem := cuda_problem()):
        pytest.skip(f'device="cuda" {problem}')
    check(clone(estimator))


@pytest.mark.parametrize("name", SCIKIT_LEARNS)
def test_every_check_that_is_made_of_scikit_learns_is_made_of_ours(name):
    theirs, made = (dict(checks_of(make())) for make in (SCIKIT_LEARNS[name], getattr(ours, name)))
    assert theirs.keys() <= made.keys()


# The same names, the same meanings ------------------------------------------------------------------------------------


def differences(name, X, y, sample_weight=None, **parameters):
    """Return the largest difference of a parameter from scikit-learn's, from the same start, and how far both went."""
    # Adam's ε, which scikit-learn adds before the bias is corrected, is left out of both.
    parameters = {
        "hidden_layer_sizes": (7, 4),
        "activation": "tanh",
        "alpha": 0.5,
        "learning_rate_init": 0.05,
        "epsilon": 1e-30,
        "max_iter": 20,
        "random_state": 3,
        "n_iter_no_change": math.inf,
    } | parameters
    make, theirs = getattr(ours, name), SCIKIT_LEARNS[name](**parameters | {"max_iter": 1, "warm_start": True})
    nowhere = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 1e-300, "max_iter": 1}
    start = make(**parameters | nowhere).fit(X, y)
    model = make(**parameters).fit(X, y, sample_weight)
    theirs.fit(X, y)
    for part, first in zip(theirs.coefs_ + theirs.intercepts_, start.coefs_ + start.intercepts_, strict=True):
        part[...] = first
    theirs.set_params(max_iter=parameters["max_iter"]).fit(X, y, sample_weight)
    pairs = zip(model.coefs_ + model.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True)
    return max(np.abs(left - right).max() for left, right in pairs), np.abs(model.coefs_[0] - start.coefs_[0]).max()


@pytest.mark.parametrize(
    "solver",
    [
        {"solver": "adam"},
        {"solver": "adam", "beta_1": 0.8, "beta_2": 0.9},
        {"solver": "sgd"},
        {"solver": "sgd", "nesterovs_momentum": False, "momentum": 0.7},
        {"solver": "sgd", "momentum": 0.0},
    ],
    ids=["adam", "adam with other βs", "sgd", "sgd without Nesterov", "sgd without momentum"],
)
@pytest.mark.parametrize("kind", Y_OF)
def test_twenty_steps_are_scikit_learns(kind, solver):
    name = "MLPClassifier" if kind in CLASSIFIED else "MLPRegressor"
    apart, moved = differences(name, *problem(kind), **solver)
    assert apart <= ROUNDING < 1e-3 < moved


@pytest.mark.parametrize("weight", [None, 3.0], ids=["alone", "with weights"])
def test_alpha_is_scikit_learns_in_batches_too(weight):
    # Where all rows are the same, so are all batches, whatever the order in which their rows come.
    X, y = np.tile(problem()[0][:1], (60, 1)), np.full(60, 1.5)
    weight = None if weight is None else np.full(60, weight)
    apart, moved = differences("MLPRegressor", X, y, weight, batch_size=15, solver="sgd")
    assert apart <= ROUNDING < 1e-3 < moved


def test_weights_are_scikit_learns():
    X, y = problem()
    apart, moved = differences("MLPClassifier", X, y, np.random.default_rng(1).random(60), solver="sgd")
    assert apart <= ROUNDING < 1e-3 < moved


def test_training_stops_after_as_many_epochs_as_scikit_learns():
    X, y = problem()
    parameters = {"hidden_layer_sizes": 4, "tol": 1e9, "n_iter_no_change": 7, "random_state": 0}
    theirs = neural_network.MLPClassifier(**parameters).fit(X, y)
    assert MLPClassifier(**parameters).fit(X, y).n_iter_ == theirs.n_iter_ == 9


@pytest.mark.parametrize("kind", Y_OF)
def test_attributes_have_scikit_learns_shapes(kind):
    X, y = problem(kind)
    model = estimator(kind).fit(X, y)
    theirs = SCIKIT_LEARNS[type(model).__name__](hidden_layer_sizes=(6,), max_iter=10).fit(X, y)
    for name in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_", "n_iter_"):
        assert getattr(model, name) == getattr(theirs, name)
    for name in ("coefs_", "intercepts_"):
        assert [part.shape for part in getattr(model, name)] == [part.shape for part in getattr(theirs, name)]
    assert len(model.loss_curve_) == len(theirs.loss_curve_)
    assert model.loss_ == model.loss_curve_[-1] >= model.best_loss_ == min(model.loss_curve_)
    assert model.predict(X).shape == theirs.predict(X).shape
    if kind in CLASSIFIED:
        np.testing.assert_array_equal(model.classes_, theirs.classes_)
        assert model.predict_proba(X).shape == theirs.predict_proba(X).shape


def test_it_is_the_network_that_fit_makes():
    X, y = problem()
    model = MLPClassifier(6, batch_size=16, alpha=0.0, max_iter=5, dtype="float32", random_state=4).fit(X, y)
    options = {"hidden": 6, "batch_size": 16, "epochs": 5, "random_state": 4, "examples": "rows"}
    net = xpnet.fit(X, y, **options)
    for layer, other in zip(model.network_.layers, net.layers, strict=True):
        np.testing.assert_array_equal(layer.W, other.W)
    assert model.network_.predict(X.T).tolist() == model.predict(X).tolist()


@pytest.mark.parametrize(("given", "kept"), [("float32", "float32"), ("float64", "float64"), ("int64", "float64")])
def test_arithmetic_is_in_the_dtype_of_X(given, kept):
    X, y = problem()
    assert estimator().fit((4 * X).astype(given), y).network_.dtype == kept
    assert estimator(dtype="float32").fit((4 * X).astype(given), y).network_.dtype == "float32"


def test_a_class_weight_is_the_sample_weight_of_its_examples():
    X, y = problem()
    model = estimator(class_weight={"same": 3.0, "other": 1.0}).fit(X, y)
    assert bits(model) == bits(estimator().fit(X, y, np.where(y == "same", 3.0, 1.0)))


def test_the_learning_rate_may_be_a_function_of_the_epoch():
    X, y = problem()
    model = estimator(solver="sgd", momentum=0.5, learning_rate_init=lambda epoch: 0.1 / (1 + epoch)).fit(X, y)
    assert model.network_.history["learning_rate"] == [0.1 / (1 + epoch) / 0.5 for epoch in range(10)]


def test_early_stopping_keeps_the_parameters_of_the_lowest_validation_cost():
    X, y = problem(m=200)
    model = estimator(early_stopping=True, max_iter=200, n_iter_no_change=5, learning_rate_init=0.05).fit(X, y)
    costs = model.network_.history["validation_cost"]
    assert model.best_loss_ is None
    assert len(costs) == model.n_iter_ < 200
    assert model.network_.best_epoch == int(np.argmin(costs))


# Going on -------------------------------------------------------------------------------------------------------------

DESCENTS = {
    "adam, 16": {"batch_size": 16},
    "adam, all": {},
    "sgd, 16": {"solver": "sgd", "batch_size": 16},
    "lbfgs": {"solver": "lbfgs"},
    "early stopping": {"batch_size": 16, "early_stopping": True},
    "standardized": {"batch_size": 16, "standardize": True},
    "float32": {"batch_size": 16, "dtype": "float32"},
}
every_descent = pytest.mark.parametrize("descent", DESCENTS.values(), ids=DESCENTS)


@every_descent
@pytest.mark.parametrize("kind", ["multiclass", "two numbers"])
def test_ten_epochs_and_ten_more_are_twenty(kind, descent):
    X, y = problem(kind)
    twice = estimator(kind, warm_start=True, **descent).fit(X, y).fit(X, y)
    assert bits(twice) == bits(estimator(kind, max_iter=20, **descent).fit(X, y))


@every_descent
def test_a_pickle_goes_on_as_the_estimator_would_have(descent):
    X, y = problem()
    model = estimator(warm_start=True, **descent).fit(X, y)
    thawed = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(thawed.predict_proba(X), model.predict_proba(X))
    assert bits(thawed.fit(X, y)) == bits(estimator(max_iter=20, **descent).fit(X, y))


def test_a_copy_goes_on_and_leaves_the_estimator_as_it_was():
    X, y = problem()
    model = estimator(warm_start=True).fit(X, y)
    before = bits(model)
    copy.copy(model).fit(X, y)
    assert bits(model) == before
    assert bits(model.fit(X, y)) == bits(estimator(max_iter=20).fit(X, y))


def test_without_warm_start_fit_starts_anew():
    X, y = problem()
    assert bits(estimator().fit(X, y).fit(X, y)) == bits(estimator().fit(X, y))


@pytest.mark.parametrize("descent", [DESCENTS["adam, 16"], DESCENTS["sgd, 16"]], ids=["adam", "sgd"])
@pytest.mark.parametrize("kind", ["binary", INDICATOR, "one number"])
def test_passes_over_the_same_data_are_the_epochs_of_fit(kind, descent):
    X, y = problem(kind)
    model = estimator(kind, **descent)
    classes = {"classes": np.unique(y)} if kind == "binary" else {"classes": [0, 1]} if kind == INDICATOR else {}
    for _ in range(10):
        model.partial_fit(X, y, **classes)
    whole = estimator(kind, n_iter_no_change=math.inf, **descent).fit(X, y)
    assert bits(model)[:4] == bits(whole)[:4]  # the best epoch is that of a call here
    assert model.partial_fit(X, y).n_iter_ == 11


def test_a_fit_can_be_gone_on_from_by_passes():
    X, y = problem()
    model = estimator().fit(X, y).partial_fit(X, y)
    assert bits(model)[:4] == bits(estimator(max_iter=11, n_iter_no_change=math.inf).fit(X, y))[:4]


def test_passes_need_not_see_every_class():
    X, y = problem("multiclass", m=200)
    model = estimator(learning_rate_init=0.01)
    for _ in range(60):
        for label in np.unique(y):
            model.partial_fit(X[y == label], y[y == label], classes=[3, 4, 5])
    assert model.classes_.tolist() == [3, 4, 5]
    assert model.predict_proba(X).shape == (200, 3)
    assert model.n_iter_ == 180


def test_training_that_had_stopped_goes_on_when_it_is_asked_to():
    X, y = problem()
    model = estimator(warm_start=True, tol=1e9, n_iter_no_change=2, max_iter=50).fit(X, y)
    stopped = model.n_iter_
    assert model.network_.stop_reason == "patience"
    assert model.fit(X, y).n_iter_ == stopped + 3


def test_validation_on_other_data_is_begun_anew():
    X, y = problem(m=100)
    model = estimator(warm_start=True, early_stopping=True).fit(X, y)
    model.fit(X, np.where(y == "same", "other", "same"))  # whose costs are all higher at first
    assert model.network_.best_epoch >= 10


def test_alpha_may_change_between_fits_with_lbfgs():
    X, y = problem()
    model = estimator(solver="lbfgs", warm_start=True, max_iter=30, n_iter_no_change=math.inf).fit(X, y)
    free = model.loss_
    held = model.set_params(alpha=30.0).fit(X, y).loss_curve_[30:]
    assert held[0] > free  # the cost where it stands has the new penalty in it
    assert held[-1] < held[0]


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_bring_their_columns_names(library):
    module = pytest.importorskip(library)
    X, y = problem()
    names = ["a", "b", "c"]
    table, labels = module.DataFrame(dict(zip(names, X.T, strict=True))), module.Series(y.tolist())
    model = estimator().fit(table, labels)
    assert model.feature_names_in_.tolist() == list(model.network_.feature_names) == names
    np.testing.assert_array_equal(model.predict_proba(table), estimator().fit(X, y).predict_proba(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(table[["b", "a", "c"]])


def test_a_pipeline_may_hand_tables_on():
    pandas = pytest.importorskip("pandas")
    X, y = problem()
    table = pandas.DataFrame(X, columns=["a", "b", "c"])
    pipeline = make_pipeline(StandardScaler(), estimator()).set_output(transform="pandas").fit(table, y)
    assert pipeline[-1].feature_names_in_.tolist() == ["a", "b", "c"]
    assert pipeline.predict(table).shape == (60,)


@pytest.mark.parametrize("window", [data.WINDOW, 30], ids=["small", "large"])
@pytest.mark.parametrize("form", ["csr_matrix", "csc_array"])
def test_sparse_rows_are_learned_like_dense_ones(form, window, monkeypatch):
    sparse = pytest.importorskip("scipy.sparse")
    monkeypatch.setattr(data, "WINDOW", window)
    X, y = problem()
    X[X < 0] = 0
    given = getattr(sparse, form)(X)
    model = estimator(batch_size=16).fit(given, y)
    assert bits(model) == bits(estimator(batch_size=16).fit(X, y))
    np.testing.assert_array_equal(model.predict_proba(given), model.predict_proba(X))


NAMESPACES = ["torch", "array_api_strict"]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("kind", ["multiclass", INDICATOR, "one number", "two numbers"])
def test_with_dispatch_arrays_come_out_where_they_went_in(kind, namespace, monkeypatch):
    xp = pytest.importorskip(namespace)
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    X, y = problem(kind)
    model = estimator(kind, batch_size=16).fit(X, y)
    there, targets = xp.asarray(X), xp.asarray(y)
    with config_context(array_api_dispatch=True):
        moved = estimator(kind, batch_size=16, warm_start=True).fit(there, targets)
        found = [getattr(moved, name)(there) for name in ("predict", "predict_proba") if hasattr(moved, name)]
        score = moved.score(there, targets)
        again = moved.fit(there, targets).n_iter_
    assert {place_of(array) for array in found + moved.coefs_} == {place_of(there)}
    np.testing.assert_allclose(to_host(found[-1]), model.predict_proba(X) if len(found) > 1 else model.predict(X))
    assert isinstance(score, float)
    assert again == 20


def test_without_dispatch_tensors_are_read_as_arrays():
    torch = pytest.importorskip("torch")
    X, y = problem("one number")
    model = estimator("one number").fit(torch.asarray(X), torch.asarray(y))
    assert bits(model) == bits(estimator("one number").fit(X, y))
    assert isinstance(model.predict(torch.asarray(X)), np.ndarray)


# scikit-learn's tools -------------------------------------------------------------------------------------------------


def test_scikit_learns_tools_work_around_it():
    X, y = make_classification(200, random_state=0)
    model = make_pipeline(StandardScaler(), MLPClassifier(16, max_iter=60, learning_rate_init=0.01, random_state=0))
    assert cross_val_score(model, X, y, cv=3).mean() > 0.8
    calibrated = CalibratedClassifierCV(model, cv=3).fit(X, y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1.0)


def test_a_search_works_in_two_processes():
    X, y = make_classification(100, random_state=0)
    grid = {"mlpclassifier__alpha": [1e-4, 1e4], "mlpclassifier__hidden_layer_sizes": [(8,)]}
    model = make_pipeline(StandardScaler(), estimator(max_iter=60, learning_rate_init=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of joblib's, when it ends its processes
        search = GridSearchCV(model, grid, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_["mlpclassifier__alpha"] == 1e-4
    assert search.score(X, y) > 0.8


def test_weights_are_routed_to_it():
    X, y = problem()
    weight = np.random.default_rng(1).random(60)
    with config_context(enable_metadata_routing=True):
        step = estimator().set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, step).fit(X, y, sample_weight=weight)
    assert bits(pipeline[-1]) == bits(estimator().fit(StandardScaler().fit_transform(X), y, weight))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden_layer_sizes": (3, 0)}, "each of hidden_layer_sizes must be 1 or more; it is 0."),
        ({"solver": "adm"}, "solver must be one of 'adam', 'sgd', 'lbfgs', or made by xpnet.optimizers; it is 'adm'."),
        ({"alpha": -1}, "alpha must be a finite number at least 0; it is -1."),
        ({"learning_rate_init": 0}, "learning_rate_init must be a finite number more than 0; it is 0."),
        ({"max_iter": 0}, "max_iter must be 1 or more; it is 0."),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be 1 or more; it is 0."),
        ({"solver": "sgd", "momentum": 1.0}, "momentum must be a finite number at least 0 and less than 1; it is 1.0."),
        ({"beta_2": 1.0}, "beta_2 must be a finite number at least 0 and less than 1; it is 1.0."),
        ({"early_stopping": 1}, "early_stopping must be True or False; it is 1."),
        ({"activation": "reul"}, "activation must be one of"),
        ({"class_weight": {"neither": 1}}, "class_weight names the class 'neither'"),
    ],
)
def test_a_parameter_is_refused_by_its_own_name(parameters, message):
    with pytest.raises(ArgumentError) as caught:
        estimator(**parameters).fit(*problem())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda X, y: estimator().partial_fit(X, y), ArgumentError, "classes must be passed on the first call"),
        (
            lambda X, y: estimator().fit(X, y).partial_fit(X, y, classes=["a", "b"]),
            ArgumentError,
            "classes must be those of the first call",
        ),
        (
            lambda X, y: estimator(early_stopping=True).partial_fit(X, y, classes=np.unique(y)),
            ArgumentError,
            "early_stopping must be False for partial_fit",
        ),
        (
            lambda X, y: estimator(class_weight="balanced").partial_fit(X, y, classes=np.unique(y)),
            ArgumentError,
            "class_weight must be a dict for partial_fit",
        ),
        (
            lambda X, y: estimator().partial_fit(X, y, classes=["other"]),
            TargetError,
            "Y has one class, 'other'",
        ),
        (
            lambda X, y: estimator().fit(X, y).partial_fit(X, np.where(y == "same", "third", y)),
            TargetError,
            "labels that were not trained on: 'third'",
        ),
        (
            lambda X, y: estimator(warm_start=True).fit(X, y).set_params(hidden_layer_sizes=7).fit(X, y),
            ArgumentError,
            r"hidden_layer_sizes must be \(6,\) to go on",
        ),
        (
            lambda X, y: estimator(warm_start=True).fit(X, y).set_params(solver="sgd").fit(X, y),
            CheckpointError,
            "optimizer was adam, is momentum",
        ),
        (
            lambda X, y: estimator(warm_start=True).fit(X, y).set_params(early_stopping=True).fit(X, y),
            CheckpointError,
            "Validation must be there from the first epoch on",
        ),
        (
            lambda X, _: estimator().fit(X, np.stack([X[:, 0] > 0, 2 * (X[:, 1] > 0)], axis=1) + 1),
            TargetError,
            "y must be one label an example.*multiclass-multioutput",
        ),
        (lambda X, _: estimator().predict(X), NotFittedError, "not fitted"),
    ],
)
def test_what_cannot_be_done_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call(*problem())


def test_full_batch_solvers_have_no_partial_fit():
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    assert hasattr(MLPRegressor(solver="sgd"), "partial_fit")


def test_max_iter_that_is_reached_is_warned_of():
    with pytest.warns(ConvergenceWarning, match="max_iter was reached after 10 epochs"):
        estimator().fit(*problem())


def test_features_of_bad_sizes_are_warned_of():
    X, y = problem()
    with pytest.warns(ScaleWarning, match="Pass standardize=True"):
        estimator().fit(1e6 * X, y)


def test_ctrl_c_keeps_the_epochs_that_had_ended_and_is_warned_of():
    def interrupted(epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return 0.01

    X, y = problem()
    model = estimator(learning_rate_init=interrupted, warm_start=True, max_iter=5)
    with pytest.warns(ConvergenceWarning, match="Training was interrupted after 3 epochs"):
        model.fit(X, y)
    model.set_params(learning_rate_init=0.01).fit(X, y)
    assert bits(model) == bits(estimator(learning_rate_init=0.01, max_iter=8).fit(X, y))


def test_training_that_stops_by_itself_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator(tol=1e9, max_iter=50).fit(*problem())
        estimator(n_iter_no_change=math.inf).fit(*problem())


def test_without_scikit_learn_the_extra_is_named():
    code = "import sys; sys.modules['sklearn'] = None; import xpnet; import xpnet.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.rstrip().endswith('Run: pip install "xpnet[sklearn]"')
    assert "MissingPackageError: xpnet.sklearn needs scikit-learn" in run.stderr
