"""Diagnosis: faults that are put in are named, and healthy fits are left in peace."""

import json
import pickle
import re
import warnings
from itertools import pairwise

import numpy as np
import pytest

import xpnet
from xpnet import data, diagnosis, files
from xpnet.device import to_host
from xpnet.diagnosis import Diagnosis, Finding
from xpnet.errors import FileFormatError, ScaleWarning

datasets = pytest.importorskip("sklearn.datasets")

FLOWER = xpnet.datasets.flower()


def table(name):
    """Return a table of scikit-learn's, examples as columns; numbers to predict are standardized."""
    X, Y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return X.T, (Y - Y.mean()) / Y.std() if name == "diabetes" else Y


CANCER, DIGITS, WINE, IRIS, DIABETES = map(table, ["breast_cancer", "digits", "wine", "iris", "diabetes"])


def fit(X, Y, **options):
    """Call `xpnet.fit` without its warnings of scale, which say at the start what a diagnosis says at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScaleWarning)
        return xpnet.fit(X, Y, **{"random_state": 0, **options})


def weights(sizes, *, bias=0.0, scale=1.0):
    """Return weights to start from, with such a bias in the first layer."""
    rng = np.random.default_rng(0)
    return [
        (scale * rng.standard_normal((n_out, n_in)), np.full((n_out, 1), 0.0 if l else bias))
        for l, (n_in, n_out) in enumerate(pairwise(sizes))
    ]


def rare(members):
    """Return noise, and a Y with so many of the class "b" that hardly differ from the others."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((5, 3_000)), np.full(3_000, "a")
    Y[rng.permutation(3_000)[:members]] = "b"
    X[0, Y == "b"] += 0.5
    return X, Y


def counts():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (3, 1_500))
    return X, rng.poisson(np.exp(0.5 + 1.5 * np.sin(2 * X[0]) + 0.6 * X[1] * X[2]))


# Faults ---------------------------------------------------------------------------------------------------------------

BLIND = weights((30, 100, 1), bias=-50.0)
STEEP = weights((64, 100, 10), scale=3.0)
TWO = np.stack([np.zeros(569), CANCER[0][0] / 14])

FAULTS = {
    "a bias that kills relu": (
        CANCER,
        {"standardize": True, "initial": BLIND},
        (
            "dead_units",
            "layer 1",
            r"^100 of 100 units are dead: .* for each of 512 .* at the start: pass smaller weights",
        ),
    ),
    "a learning rate that kills the second layer": (
        DIGITS,
        {"standardize": True, "hidden": (50, 50), "learning_rate": 3.0},
        ("dead_units", "layer 2", r"^50 of 50 units are dead: .* Pass a lower learning_rate, or activation="),
    ),
    "weights that saturate tanh": (
        DIGITS,
        {"activation": "tanh", "initial": STEEP, "epochs": 20},
        ("saturated_units", "layer 1", r"^\d\d of 100 units are saturated: the slope of tanh is below 1% .* start"),
    ),
    "features as they were measured": (
        CANCER,
        {"epochs": 10},
        ("unscaled_features", "feature 3, feature 22, feature 23", r"feature 23 \(size 1e\+03\)\. Pass standardize"),
    ),
    "features that are far too small": (
        (CANCER[0] * 1e-6, CANCER[1]),
        {"epochs": 10},
        ("unscaled_features", r"feature 0, .* and 24 more", "Pass standardize=True"),
    ),
    "a number to predict that is large": (
        (DIABETES[0], 1_000 + 100 * DIABETES[1]),
        {"epochs": 10},
        ("unscaled_target", "Y", r"Y is large \(size 1e\+03\).* \(Y - Y\.mean\(\)\) / Y\.std\(\)"),
    ),
    "a feature that never changes": (
        (np.vstack([CANCER[0], np.full((1, 569), 7.0)]), CANCER[1]),
        {"standardize": True, "epochs": 60},
        ("constant_features", "feature 30", "^In all of 569 examples feature 30 is 7, .* Leave it out"),
    ),
    "a number to predict that never changes": (
        (CANCER[0], TWO),
        {"standardize": True, "task": "regression", "epochs": 60},
        ("constant_target", "row 0 of Y", "^It is 0 in all of 569 examples"),
    ),
    "too high a learning rate, Adam": (
        DIGITS,
        {"standardize": True, "learning_rate": 1.0},
        ("learning_rate_too_high", "cost", r"moves by \d+ times what .* Lower learning_rate, which was 1, tenfold"),
    ),
    "too high a learning rate, gradient descent": (
        FLOWER,
        {"hidden": 4, "activation": "tanh", "optimizer": "gd", "learning_rate": 50.0, "batch_size": "full"},
        ("learning_rate_too_high", "cost", r"and it rose in \d of the last \d epochs"),
    ),
    "too low a learning rate, Adam": (
        DIGITS,
        {"standardize": True, "learning_rate": 1e-7, "epochs": 20},
        ("learning_rate_too_low", "cost", r"^In 20 epochs .* costs 2\.30.* Raise learning_rate, which was 1e-07"),
    ),
    "too low a learning rate, ended by patience": (
        DIGITS,
        {"standardize": True, "learning_rate": 1e-12},
        ("learning_rate_too_low", "cost", r"^In 11 epochs"),
    ),
    "too low a learning rate, gradient descent": (
        CANCER,
        {"standardize": True, "optimizer": "gd", "learning_rate": 1e-5},
        ("learning_rate_too_low", "cost", "Raise learning_rate, which was 1e-05"),
    ),
    "too low a learning rate, numbers": (
        DIABETES,
        {"standardize": True, "learning_rate": 1e-7},
        ("learning_rate_too_low", "cost", r"constant prediction costs 0\.5"),
    ),
    "too low a learning rate, counts": (
        counts(),
        {"task": "count", "learning_rate": 1e-6, "epochs": 30},
        ("learning_rate_too_low", "cost", "Raise learning_rate"),
    ),
    "a class that is rare": (
        rare(12),
        {"hidden": ()},
        (
            "unbalanced_classes",
            "class 'b'",
            r"^The class 'b' is 12 of 3,000 .* 12 looked at 0 are told\. Pass class_weight=\"balanced\"",
        ),
    ),
    "a penalty that leaves nothing": (
        CANCER,
        {"standardize": True, "l2": 1e6, "epochs": 80},
        ("constant_prediction", "output", r"^Of 512 .* all are told to be 1, and 317 are\. Lower l2, which was 1e\+06"),
    ),
    "a penalty that leaves nothing, numbers": (
        DIABETES,
        {"standardize": True, "l2": 1e6, "epochs": 80},
        ("constant_prediction", "output", r"with a deviation of \S+, where Y's is 1: all alike"),
    ),
    "too few epochs to tell": (
        FLOWER,
        {"epochs": 5, "learning_rate": 1e-5},
        ("unfinished", "cost", r"^In 5 epochs it fell .* Raise epochs, or learning_rate, which was 1e-05\.$"),
    ),
    "too few epochs": (
        DIGITS,
        {"standardize": True, "epochs": 3},
        ("unfinished", "cost", r"^In the last epoch of 3 it still fell by 1\d% of .* Raise epochs"),
    ),
}


@pytest.mark.parametrize(("given", "options", "named"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_its_place_and_its_mend(given, options, named):
    kind, where, message = named
    found = {finding.kind: finding for finding in fit(*given, **options).diagnosis}
    assert kind in found, found
    assert re.fullmatch(where, found[kind].where)
    assert re.search(message, found[kind].message)


@pytest.mark.parametrize("kind", sorted({named[0] for *_, named in FAULTS.values()}))
def test_every_kind_is_documented(kind):
    assert f'"{kind}"' in Finding.__doc__


# Health ---------------------------------------------------------------------------------------------------------------

HEALTHY = {
    "cancer": (CANCER, {"standardize": True}),
    "cancer with a penalty": (CANCER, {"standardize": True, "l2": 3.0, "validation_fraction": 0.2}),
    "digits": (DIGITS, {"epochs": 60}),
    "digits, deep": (DIGITS, {"standardize": True, "hidden": (64, 64), "epochs": 40}),
    "digits, tanh": (DIGITS, {"standardize": True, "activation": "tanh", "validation_fraction": 0.1}),
    "wine": (WINE, {"standardize": True, "l2": 3.0}),
    "wine by gradient descent": (
        WINE,
        {
            "standardize": True,
            "optimizer": "gd",
            "activation": "sigmoid",
            "hidden": 10,
            "learning_rate": 0.5,
            "epochs": 500,
        },
    ),
    "iris": (IRIS, {}),
    "iris by L-BFGS": (IRIS, {"hidden": 5, "activation": "tanh", "optimizer": "lbfgs"}),
    "diabetes": (DIABETES, {"standardize": True, "l2": 30.0}),
    "flower": (FLOWER, {"hidden": 32, "learning_rate": 0.01, "epochs": 1_000}),
    "flower by L-BFGS": (FLOWER, {"hidden": 16, "activation": "tanh", "optimizer": "lbfgs"}),
    "counts": (counts(), {"task": "count", "hidden": 30, "l2": 3.0}),
    "a rare class that is told": (rare(12), {"hidden": (), "class_weight": "balanced"}),
    "noise, where nothing can be learned": (rare(1_500), {"hidden": ()}),
}


@pytest.mark.parametrize(("given", "options"), HEALTHY.values(), ids=HEALTHY)
def test_nothing_is_said_of_a_healthy_fit(given, options, soak):
    for seed in range(10 if soak else 1):
        net = fit(*given, **options | {"random_state": seed})
        assert net.diagnosis == (), net.diagnosis


# What is kept of it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ill():
    """A network of whose fit two things are said."""
    X = np.vstack([FLOWER[0], np.full((1, 400), 500.0)])
    return fit(X, FLOWER[1], hidden=4, epochs=20)


def test_findings_keep_the_order_of_cause_and_effect(ill):
    assert [finding.kind for finding in ill.diagnosis][:2] == ["unscaled_features", "constant_features"]


def test_a_finding_cannot_be_changed(ill):
    with pytest.raises(AttributeError):
        ill.diagnosis[0].kind = "none"


def test_it_is_saved_and_loaded(ill, tmp_path):
    ill.save(tmp_path / "net")
    assert xpnet.load(tmp_path / "net").diagnosis == ill.diagnosis


@pytest.mark.parametrize("copied", [lambda net: pickle.loads(pickle.dumps(net)), lambda net: net.to("cpu")])
def test_copies_have_it(copied, ill):
    assert copied(ill).diagnosis == ill.diagnosis
    assert type(copied(ill).diagnosis) is Diagnosis


def test_no_examples_are_kept(ill):
    assert len(json.dumps([str(finding) for finding in ill.diagnosis])) < 2_000
    assert not {type(value).__name__ for finding in ill.diagnosis for value in vars(finding).values()} - {"str"}


def test_a_file_without_one_is_read(ill, tmp_path):
    ill.save(tmp_path / "net")
    tensors, metadata = files.read(tmp_path / "net", kind="network")
    del metadata["diagnosis"]
    files.write(tmp_path / "old", tensors, metadata, kind="network")
    assert xpnet.load(tmp_path / "old").diagnosis == ()


@pytest.mark.parametrize("wrong", [3, [3], [["dead_units", "layer 1"]], [["dead_units", "layer 1", 3]]], ids=repr)
def test_a_damaged_one_is_refused(wrong, ill, tmp_path):
    ill.save(tmp_path / "net")
    tensors, metadata = files.read(tmp_path / "net", kind="network")
    files.write(tmp_path / "net", tensors, metadata | {"diagnosis": wrong}, kind="network")
    with pytest.raises(FileFormatError, match="is not a whole xpnet network"):
        xpnet.load(tmp_path / "net")


# How it is shown ------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_line_for_each_finding(ill):
    lines = repr(ill.diagnosis).splitlines()
    assert len(lines) == len(ill.diagnosis)
    assert lines[1].startswith("constant features: feature 2. In all of 400 examples feature 2 is 500, ")


def test_a_notebook_shows_a_table_in_which_text_from_data_is_escaped():
    shown = Diagnosis([Finding("constant_features", "<b>", "a & b")])._repr_html_()
    assert "<td" in shown
    assert "&lt;b&gt;" in shown
    assert "a &amp; b" in shown


def test_health_is_shown_in_two_words():
    assert (repr(Diagnosis()), Diagnosis()._repr_html_()) == ("nothing found", "<p>nothing found</p>")


def test_a_network_mentions_what_was_found_and_nothing_else(ill):
    assert "; diagnosis: unscaled_features, constant_features" in repr(ill)
    assert "constant features: feature 2" in ill._repr_html_()
    well = fit(*FLOWER, hidden=16, activation="tanh", optimizer="lbfgs")
    assert "diagnosis" not in repr(well) + well._repr_html_()


def test_a_tables_columns_are_named():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": FLOWER[0][0], "year": np.full(400, 3.0), "size": FLOWER[0][1]})
    net = fit(frame, FLOWER[1], examples="rows", standardize=True, hidden=4, epochs=60)
    found = {finding.kind: finding.where for finding in net.diagnosis}
    assert found["constant_features"] == "feature 1 ('year')"


# Wherever and however data is kept ------------------------------------------------------------------------------------


def test_every_namespace_is_diagnosed(backend):
    if not backend.has("float32"):
        pytest.skip("no float32")
    X = np.vstack([FLOWER[0], np.full((1, 400), 2.0)]).astype(np.float32)
    net = fit(backend.asarray(X), backend.asarray(FLOWER[1]), hidden=4, epochs=2, batch_size=200, learning_rate=1e-9)
    found = {finding.kind: finding.where for finding in net.diagnosis}
    assert found["constant_features"] == "feature 2"
    assert "unfinished" in found
    assert not np.isnan(to_host(net.W1)).any()


def test_examples_in_a_file_are_diagnosed(tmp_path):
    np.save(tmp_path / "X.npy", np.ascontiguousarray(rare(12)[0].T))
    file = np.load(tmp_path / "X.npy", mmap_mode="r")
    net = fit(file, rare(12)[1], examples="rows", hidden=())
    assert [finding.where for finding in net.diagnosis if finding.kind == "unbalanced_classes"] == ["class 'b'"]


def test_few_examples_are_looked_at_of_many(monkeypatch):
    seen = []
    monkeypatch.setattr(
        diagnosis, "_rows", lambda it, numbers, rows=diagnosis._rows: seen.append(numbers) or rows(it, numbers)
    )
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3, 50_000))
    fit(X, (X[0] > 0).astype(int), epochs=5, hidden=4)
    fit(X[:, :400], (X[0, :400] > 0).astype(int), epochs=1, hidden=4)
    assert [numbers.size for numbers in seen] == [diagnosis.LOOKED_AT, diagnosis.OF_CLASS]
    assert seen[0][-1] == 49_999


def test_a_resumed_fit_is_diagnosed_like_one_that_was_not(tmp_path):
    options = {"hidden": 4, "learning_rate": 1e-9, "patience": None}
    fit(*FLOWER, **options, epochs=10, checkpoint=tmp_path / "run")
    resumed = fit(*FLOWER, **options, epochs=20, checkpoint=tmp_path / "run")
    straight = fit(*FLOWER, **options, epochs=20)
    assert resumed.diagnosis == straight.diagnosis
    assert straight.diagnosis


@pytest.mark.parametrize("hidden", [(), 3, (4, 3)])
@pytest.mark.parametrize("m", [2, 3])
def test_the_fewest_examples_are_diagnosed(hidden, m):
    assert isinstance(fit([[0.0, 1.0, 2.0][:m]], [0, 1, 1][:m], hidden=hidden, epochs=2).diagnosis, Diagnosis)


def test_multilabel_targets_that_are_never_there_are_named():
    Y = np.stack([FLOWER[1], np.zeros(400, dtype=int)])
    found = {finding.kind: finding.where for finding in fit(FLOWER[0], Y, task="multilabel", epochs=2).diagnosis}
    assert found["constant_target"] == "row 1 of Y"


class Failing:
    """A file that cannot be read any more when the fit has ended, or is slow enough for a Ctrl-C."""

    shape, dtype = (2, 400), np.dtype(np.float32)

    def __init__(self, error):
        self.error, self.failing = error, False

    def __getitem__(self, key):
        if self.failing:
            raise self.error
        return FLOWER[0].astype(np.float32)[key]

    def on_fit_end(self, _):
        self.failing = True


@pytest.mark.parametrize(("error", "kinds"), [(OSError("gone"), ["undiagnosed"]), (KeyboardInterrupt(), [])], ids=repr)
def test_no_fit_is_lost_by_its_diagnosis(monkeypatch, error, kinds):
    monkeypatch.setattr(data, "PERMUTED", 100)  # else so small a file is read once, and kept
    file = Failing(error)
    net = fit(file, FLOWER[1], hidden=4, epochs=1, callbacks=file)
    assert [finding.kind for finding in net.diagnosis] == kinds
    assert all("OSError: gone" in finding.message for finding in net.diagnosis)
    assert net.epochs_run == 1


def test_a_fit_that_a_callback_stopped_at_once_is_diagnosed():
    class Stop:
        def on_fit_begin(self, _):
            return True

    assert fit(*FLOWER, callbacks=Stop()).diagnosis == ()
