"""Words become features and gaps are filled as `fit` was told, from the training examples; the network keeps it."""

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet
from xpnet import features, files
from xpnet.errors import ArgumentError, DataError, FileFormatError, ShapeError
from xpnet.features import Features, Number, OneHot, Plan, auto, number, onehot, packed, planned, unpacked

M = 60
ROUNDING = 1e-12
"""Means of 60 numbers near 40, in float64, taken by others in another order."""

quietly = settings(deadline=None, database=None)
BRIEFLY = {"examples": "rows", "hidden": 3, "epochs": 2, "random_state": 0}


def values():
    """Return columns of every kind, as Python's lists."""
    rng = np.random.default_rng(5)
    gaps = rng.random((3, M)) < 0.15
    gaps[:, :3] = False
    cities = [
        None if gap else str(city) for gap, city in zip(gaps[0], rng.choice(["Rome", "Oslo", "Bonn"], M), strict=True)
    ]
    ages = [None if gap else float(age) for gap, age in zip(gaps[1], rng.normal(40, 10, M).round(1), strict=True)]
    cities[:3] = ["Rome", "Oslo", "Bonn"]
    return {
        "city": cities,
        "age": ages,
        "rooms": rng.integers(1, 5, M).tolist(),
        "garden": [None if gap else bool(yes) for gap, yes in zip(gaps[2], rng.random(M) < 0.5, strict=True)],
    }


LIBRARIES = ("pandas", "polars", "pyarrow")
Y = np.where(np.asarray([city == "Rome" for city in values()["city"]]), "yes", "no")
AUTO = {"city": "onehot", "age": "median", "rooms": "median", "garden": "most_frequent"}


def table(library="pandas", given=None):
    module = pytest.importorskip(library)
    given = values() if given is None else given
    return module.table(given) if library == "pyarrow" else module.DataFrame(given)


def learned(treatments, given=None, rows=None, library="pandas"):
    return planned(treatments).learn([table(library, given)], rows)


def encoded(treatments, given, library="pandas"):
    return learned(treatments, given, library=library).encode(table(library, given))


def fit(X=None, Y=Y, **arguments):
    return xpnet.fit(table() if X is None else X, Y, **{**BRIEFLY, "features": "auto", **arguments})


# What a treatment makes of a column -----------------------------------------------------------------------------------

NAN = float("nan")
TREATED = {
    "numbers": ("number", [3, 1, 2], [[3], [1], [2]]),
    "bools": ("number", [True, False], [[1], [0]]),
    "mean": ("mean", [1.0, None, 5.0, 3.0], [[1], [3], [5], [3]]),
    "median": ("median", [1.0, None, 9.0, 2.0], [[1], [2], [9], [2]]),
    "median of an even number": ("median", [1.0, None, 2.0], [[1], [1.5], [2]]),
    "most frequent": ("most_frequent", [5.0, None, 9.0, 5.0], [[5], [5], [9], [5]]),
    "most frequent, the smaller of two": ("most_frequent", [9.0, None, 5.0], [[9], [5], [5]]),
    "most frequent bool": ("most_frequent", [True, None, True, False], [[1], [1], [1], [0]]),
    "a number": (-1, [1.0, None], [[1], [-1]]),
    "a number of NumPy": (np.float32(0.5), [1.0, None], [[1], [0.5]]),
    "a number where nothing is missing": (0, [1, 2], [[1], [2]]),
    "a number where all is missing": (7, [None, None], [[7], [7]]),
    "words": ("onehot", ["b", "a", "b"], [[0, 1], [1, 0], [0, 1]]),
    "words with gaps": ("onehot", ["b", None, "a"], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    "an empty word": ("onehot", ["", None], [[1, 0], [0, 1]]),
    "words, gaps filled": (onehot(missing="most_frequent"), ["b", None, "a", "b"], [[0, 1], [0, 1], [1, 0], [0, 1]]),
    "whole numbers as categories": ("onehot", [30, 4], [[0, 1], [1, 0]]),
    "numbers with gaps as categories": ("onehot", [2.0, None, 1.5], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    "bools as categories": ("onehot", [True, False], [[0, 1], [1, 0]]),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("how", "given", "expected"), TREATED.values(), ids=TREATED)
def test_a_treatment_makes_these_numbers(library, how, given, expected):
    assert encoded({"a": how}, {"a": given}, library).tolist() == expected


def test_columns_without_a_treatment_stay_numbers_where_they_are():
    made = encoded({"b": "onehot"}, {"a": [1.5, 2.5], "b": ["u", "v"], "c": [True, False]})
    assert made.tolist() == [[1.5, 1, 0, 1], [2.5, 0, 1, 0]]


@pytest.mark.parametrize("library", LIBRARIES)
def test_dropped_columns_are_left_out_whatever_they_hold(library):
    kept = learned({"b": "drop"}, {"a": [1, 2], "b": [[1], [2, 3]]}, library=library)
    assert (kept.columns, kept.dropped) == (("a",), ("b",))
    assert kept.encode(table(library, {"a": [3]})).tolist() == [[3]]
    assert kept.encode(table(library, {"b": ["any"], "a": [3]})).tolist() == [[3]]


NAMED = {
    "words": (["Paris", None, "Rome"], ("a=Paris", "a=Rome", "a is missing")),
    "whole numbers": ([30, 4, 5], ("a=4", "a=5", "a=30")),
    "whole numbers that a gap made floats": ([30.0, None, 4.0], ("a=4", "a=30", "a is missing")),
    "numbers": ([0.5, 4.0], ("a=0.5", "a=4")),
    "bools": ([True, False], ("a=False", "a=True")),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("given", "names"), NAMED.values(), ids=NAMED)
def test_features_of_a_category_are_named_by_its_values(library, given, names):
    assert learned({"a": "onehot"}, {"a": given}, library=library).names == names


def test_every_library_gives_the_same_numbers():
    first, *others = (learned("auto", library=library).encode(table(library)) for library in LIBRARIES)
    assert first.shape == (M, 7)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("library", LIBRARIES)
def test_auto_chooses_by_what_a_column_holds(library):
    assert learned("auto", library=library) == learned(AUTO)


CATEGORIES = {
    "pandas": lambda values: pytest.importorskip("pandas").Categorical(values),
    "polars": lambda values: pytest.importorskip("polars").Series(
        list(map(str, values)), dtype=pytest.importorskip("polars").Categorical
    ),
    "pyarrow": lambda values: pytest.importorskip("pyarrow").array(values).dictionary_encode(),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_auto_encodes_categories_of_numbers_too(library):
    assert learned("auto", {"a": CATEGORIES[library]([3, 1, 3])}, library=library).names == ("a=1", "a=3")


def test_categories_of_numbers_are_numbers_where_that_is_said():
    assert encoded({"a": "number"}, {"a": CATEGORIES["pandas"]([3, 1])}).tolist() == [[3], [1]]


def test_a_category_that_no_example_has_is_not_learned():
    pd = pytest.importorskip("pandas")
    assert learned("auto", {"a": pd.Categorical(["u", "v"], ["v", "w", "u"])}).names == ("a=u", "a=v")


def test_auto_takes_exceptions():
    plan = auto({"city": "drop", "rooms": "onehot", "age": 0})
    assert learned(plan).names == ("age", "rooms=1", "rooms=2", "rooms=3", "rooms=4", "garden")


def test_it_is_scikit_learns_encoding_and_imputation():
    pytest.importorskip("sklearn")
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder

    frame = table()
    theirs = OneHotEncoder(sparse_output=False).fit_transform(frame[["city"]])  # None is a category, the last
    assert np.array_equal(encoded({"city": "onehot"}, frame[["city"]]), theirs)
    for how in ("mean", "median", "most_frequent"):
        theirs = SimpleImputer(strategy=how).fit_transform(frame[["age"]])
        np.testing.assert_allclose(encoded({"age": how}, frame[["age"]]), theirs, rtol=ROUNDING)


def test_it_says_on_one_line_what_it_does():
    plan = {"city": onehot(unknown="ignore"), "age": 30.25, "garden": onehot(missing="most_frequent")}
    assert str(learned(plan)) == (
        "city (one-hot of 4, others: 0), age (missing: 30.25), rooms, garden (one-hot of 2, missing: False)"
    )


words = st.text(min_size=1, max_size=4)


@given(st.lists(st.none() | words, min_size=1, max_size=30).filter(any))
@quietly
def test_each_row_has_one_feature_of_a_category(given):
    kept = learned({"a": "onehot"}, {"a": np.asarray(given, dtype=object)})
    made = kept.encode(table(given={"a": np.asarray(given, dtype=object)}))
    names = [kept.names[i] for i in made.argmax(axis=1)]
    assert made.sum(axis=1).tolist() == [1.0] * len(given)
    assert names == ["a is missing" if word is None else f"a={word}" for word in given]


# From the training examples alone -------------------------------------------------------------------------------------


def test_it_is_learned_from_the_rows_that_are_named():
    given = {"a": [1.0, None, 3.0, 100.0], "b": ["u", "v", "u", "w"]}
    kept = learned({"a": "mean", "b": "onehot"}, given, np.asarray([0, 1, 2]))
    assert kept == Features((Number("a", 2.0), OneHot("b", "words", ("u", "v"))))


def test_rows_held_out_by_a_fraction_are_not_learned_from():
    training, _ = xpnet.data.split(M, 0.25, 0)
    ages = np.asarray([NAN if age is None else age for age in values()["age"]])
    net = fit(features={**AUTO, "age": "mean"}, validation_fraction=0.25)
    [filling] = [each.missing for each in net.features.treatments if each.name == "age"]
    assert filling == pytest.approx(np.nanmean(ages[training]), rel=ROUNDING)
    assert filling != pytest.approx(np.nanmean(ages), rel=ROUNDING)


def only_held_out(word):
    """Return a table with a word in one row that is held out."""
    _, held = xpnet.data.split(M, 0.25, 0)
    cities = values()["city"]
    cities[held[0]] = word
    return table(given={**values(), "city": cities})


def test_a_word_of_held_out_rows_alone_is_refused():
    with pytest.raises(DataError, match=r"^The column 'city' of X has 'Lima' \(1 of 60 examples\); the training"):
        fit(only_held_out("Lima"), validation_fraction=0.25)


def test_a_word_of_held_out_rows_alone_may_be_ignored():
    net = fit(only_held_out("Lima"), validation_fraction=0.25, features=auto(unknown="ignore"))
    assert "city=Lima" not in net.feature_names


def test_validation_data_is_encoded_and_not_learned_from():
    validation = table(given={**values(), "age": [1000.0] * M})
    assert fit(validation_data=(validation, Y)).features == fit().features


def test_validation_data_of_other_words_is_refused():
    validation = table(given={**values(), "city": ["Lima"] * M})
    with pytest.raises(DataError, match=r"^The column 'city' of validation X has 'Lima'"):
        fit(validation_data=(validation, Y))


def test_validation_data_of_other_columns_is_refused():
    validation = table()[["age", "city", "rooms", "garden"]]
    with pytest.raises(
        ShapeError, match=r"^validation X must have the columns trained on, in their order; 'age', 'city'"
    ):
        fit(validation_data=(validation, Y))


# In a network ---------------------------------------------------------------------------------------------------------

TRAINING = {
    "plainly": {},
    "standardized": {"standardize": True},
    "held out": {"validation_fraction": 0.25},
    "in float64": {"dtype": "float64", "standardize": True},
    "full batch": {"batch_size": "full", "optimizer": "gd"},
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("arguments", TRAINING.values(), ids=TRAINING)
def test_it_trains_the_network_that_its_numbers_train(library, arguments):
    net = fit(table(library), **arguments)
    X = net.encode(table(library), examples="rows")
    same = xpnet.fit(X, Y, **{**BRIEFLY, **arguments, "examples": "columns"})
    assert [array.tobytes() for layer in net.layers for array in layer] == [
        array.tobytes() for layer in same.layers for array in layer
    ]
    assert net.history["cost"] == same.history["cost"]
    assert net.feature_names == ("city=Bonn", "city=Oslo", "city=Rome", "city is missing", "age", "rooms", "garden")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_network_takes_tables_wherever_it_takes_examples(library):
    X, net = table(library), fit()
    numbers = net.encode(X, examples="rows")
    assert np.array_equal(net.predict(X, examples="rows"), net.predict(numbers))
    assert np.array_equal(net.predict_proba(X, examples="rows"), net.predict_proba(numbers))
    assert net.score(X, Y, examples="rows") == net.score(numbers, Y)
    assert net.cost(X, Y, examples="rows") == net.cost(numbers, Y)
    assert xpnet.gradient_check(net, X, Y, examples="rows").passed


def test_explain_shows_the_encoded_numbers(capsys):
    fit().explain(table()[:2], examples="rows")
    assert capsys.readouterr().out.startswith("X = A0  (7, 2)\n")


def test_a_network_without_a_treatment_encodes_a_table_to_its_numbers():
    given = {"a": [1.0, 2.0], "b": [3, 4]}
    net = xpnet.fit(table(given=given), [0, 1], **BRIEFLY)
    assert net.features is None
    assert net.encode(table(given=given), examples="rows").tolist() == [[1, 2], [3, 4]]


def test_a_list_of_tables_is_encoded_as_one():
    whole, parts = table(), [table()[:7], table()[7:8], table()[8:]]
    net = fit(parts)
    assert net.features == fit(whole).features
    assert np.array_equal(net.predict_proba(parts, examples="rows"), fit(whole).predict_proba(whole, examples="rows"))


def test_a_list_of_tables_may_lack_a_columns_values_in_one():
    given = [{"a": [None, None], "b": [True, None]}, {"a": ["u", "v"], "b": [None, None]}]
    kept = planned("auto").learn([table(given=part) for part in given])
    assert kept.names == ("a=u", "a=v", "a is missing", "b")


def test_tables_of_other_columns_or_kinds_are_not_joined():
    with pytest.raises(ShapeError, match=r"^X\[1\] must have the columns of X\[0\], in their order; it lacks 'b'"):
        fit([table(given={"b": ["u"]}), table(given={"a": ["u"]})])
    with pytest.raises(DataError, match=r"'a' \(numbers and words\) has none"):
        fit([table(given={"a": ["u"]}), table(given={"a": [1]})])


def test_a_callback_is_shown_networks_that_take_tables():
    scores = []
    fit(callbacks=lambda view: scores.append(view.network().score(table(), Y, examples="rows")))
    assert len(scores) == 2


def test_a_checkpoint_is_resumed(tmp_path):
    whole = fit(epochs=4)
    fit(epochs=2, checkpoint=tmp_path / "run.ckpt")
    resumed = fit(epochs=4, checkpoint=tmp_path / "run.ckpt")
    assert np.array_equal(resumed.W1, whole.W1)
    assert resumed.features == whole.features


def test_learned_treatments_can_be_used_again():
    net, few = fit(), table()[:6]
    again = fit(few, Y[:6], features=net.features)
    assert again.features is net.features
    assert again.feature_names == net.feature_names


def test_an_initial_network_brings_its_treatment():
    net, few = fit(), table()[:6]
    again = fit(few, Y[:6], features=None, initial=net)
    assert again.features is net.features


def test_an_initial_network_of_other_columns_is_refused():
    given = {"a": [1.0, 2.0], "b": [3, 4]}
    net = xpnet.fit(table(given=given), [0, 1], **BRIEFLY)
    with pytest.raises(ShapeError, match=r"^initial must have been trained on X's columns.*'b', 'a' are out of place"):
        xpnet.fit(table(given=given)[["b", "a"]], [0, 1], initial=net, **BRIEFLY)
    assert xpnet.fit(table(given=given)[["b", "a"]], [0, 1], initial=net.layers, **BRIEFLY).feature_names == ("b", "a")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_keep_it(copied):
    net = fit()
    assert copied(net).features == net.features
    assert np.array_equal(copied(net).predict(table(), examples="rows"), net.predict(table(), examples="rows"))


def test_nothing_in_it_can_be_changed():
    kept = fit().features
    with pytest.raises(AttributeError):
        kept.treatments = ()
    with pytest.raises(AttributeError):
        kept.treatments[0].categories = ()


def test_a_plan_can_be_copied():
    plan = auto({"city": "drop"}, unknown="ignore")
    assert copy.deepcopy(plan) == plan == pickle.loads(pickle.dumps(plan))


# Tables that do not fit -----------------------------------------------------------------------------------------------


def without(name):
    return {key: column for key, column in values().items() if key != name}


PREDICTED = {
    "an unknown word": (
        {**values(), "city": ["Rome"] * 57 + ["Lima", "Kiev", "Lima"]},
        DataError,
        r"^The column 'city' of X has 'Kiev', 'Lima' \(3 of 60 examples\); the training examples had 'Bonn', 'Oslo', "
        r"'Rome'\. Remove .*features=\{\"city\": xpnet\.features\.onehot\(unknown=\"ignore\"\)\}\), which",
    ),
    "numbers for words": (
        {**values(), "city": [1] * M},
        DataError,
        r"^The column 'city' of X must hold words, as when the network was trained; it holds numbers, such as 1\. Conv",
    ),
    "words for numbers": (
        {**values(), "age": ["old"] * M},
        DataError,
        r"^The column 'age' of X must hold numbers, as when .*; it holds words, such as 'old'\. Convert it\.$",
    ),
    "lists for numbers": (
        {**values(), "age": [[1]] * M},
        DataError,
        r"^The column 'age' of X must hold numbers, as when the network was trained; it holds list\. Convert it\.$",
    ),
    "infinite numbers": (
        {**values(), "age": [float("inf")] * M},
        DataError,
        r"^X must be finite; feature 4 \('age'\) of example 0 is inf\.",
    ),
    "a column less": (without("age"), ShapeError, r"^X must have the columns trained on, .*; it lacks 'age'\. Add or"),
    "a column more": (
        {**values(), "id": list(range(M))},
        ShapeError,
        r"^X must .*; it also has 'id'\. Pass X\[list\(net\.features\.columns\)\]\.$",
    ),
    "columns in another order": (
        {name: values()[name] for name in ("age", "city", "rooms", "garden")},
        ShapeError,
        r"^X must .*; 'age', 'city' are out of place\. Pass X\[list\(net\.features\.columns\)\]\.$",
    ),
}


@pytest.mark.parametrize(("given", "kind", "message"), PREDICTED.values(), ids=PREDICTED)
def test_a_table_that_does_not_fit_is_refused_by_name(given, kind, message):
    with pytest.raises(kind, match=message):
        fit().predict(table(given=given), examples="rows")


def test_unknown_words_that_are_ignored_are_zeros():
    net = fit(features={**AUTO, "city": onehot(unknown="ignore")})
    numbers = net.encode(table(given={**values(), "city": ["Lima"] * M}), examples="rows")
    assert not numbers[:4].any()
    assert np.isfinite(net.predict_proba(numbers)).all()


def test_gaps_in_words_that_had_none_are_unknown():
    given = {"a": ["u", "v"]}
    gap = table(given={"a": ["u", None]})
    with pytest.raises(DataError, match=r"^The column 'a' of X has missing values \(1 of 2 examples\); the training"):
        learned({"a": "onehot"}, given).encode(gap)
    assert learned({"a": onehot(unknown="ignore")}, given).encode(gap).tolist() == [[1, 0], [0, 0]]
    assert learned({"a": onehot(missing="most_frequent")}, given).encode(gap).tolist() == [[1, 0], [1, 0]]


def test_gaps_in_numbers_without_a_filling_are_refused():
    net = fit(features={"city": "onehot", "age": "mean", "garden": 0})
    with pytest.raises(
        DataError, match=r"^X has missing values in 'rooms' \(60\)\. Fill .*\{\"rooms\": \"drop\"\}\)\.$"
    ):
        net.predict(table(given={**values(), "rooms": [None] * M}), examples="rows")


def test_an_array_is_taken_as_encoded_numbers():
    net = fit()
    with pytest.raises(
        ShapeError, match=r"trained on 7\. They are made of a table's columns: pass the table, or net\.enc"
    ):
        net.predict(np.zeros((4, 5)))
    assert net.predict(np.zeros((7, 5))).shape == (5,)


def test_a_table_must_say_that_its_examples_are_rows():
    with pytest.raises(ShapeError, match=r'X is a table, whose examples are rows\. Pass examples="rows"'):
        fit(examples="columns")
    with pytest.raises(ShapeError, match=r'X is a table, whose examples are rows\. Pass examples="rows"'):
        fit().predict(table())


# What cannot be treated so --------------------------------------------------------------------------------------------

FORMS = {
    "a word": (
        "onehot",
        r'^features must be a dict of columns .*, "auto", or from xpnet\.features; it is \'onehot\'\.$',
    ),
    "a list": (["city"], r"^features must be a dict of columns to treatments"),
    "an unknown treatment": (
        {"city": "hot"},
        r"^features\['city'\] must be one of 'number', .*Did you mean \"onehot\"\?$",
    ),
    "true": ({"city": True}, r"^features\['city'\] must be one of 'number', 'onehot'.* a number, or from xpnet"),
    "a list of treatments": ({"city": ["mean"]}, r"^features\['city'\] must be one of .*; it is \['mean'\]\.$"),
    "nan": ({"city": NAN}, r"^features\['city'\] must be a finite number; it is nan\.$"),
    "an unknown column": (
        {"City": "onehot"},
        r"^features names the column 'City', which X has not\. Did you mean \"city\"\? Its columns are 'city', 'age'",
    ),
}


@pytest.mark.parametrize(("given", "message"), FORMS.values(), ids=FORMS)
def test_a_treatment_of_an_unknown_form_is_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        fit(features=given)


OPTIONS = {
    "a filling of numbers": (
        lambda: number("avg"),
        "^missing must be one of 'mean', 'median', 'most_frequent', or a num",
    ),
    "a filling that is true": (lambda: number(True), "^missing must be a finite number; it is True"),
    "a filling of words": (lambda: onehot(missing="mean"), "^missing must be one of 'category', 'most_frequent'; it"),
    "unknown words": (lambda: onehot(unknown="zero"), "^unknown must be one of 'error', 'ignore'; it is 'zero'"),
    "unknown words of auto": (lambda: auto(unknown=None), "^unknown must be one of 'error', 'ignore'; it is None"),
    "exceptions of auto": (lambda: auto("city"), "^features must be a dict of columns to treatments"),
}


@pytest.mark.parametrize(("make", "message"), OPTIONS.values(), ids=OPTIONS)
def test_an_option_of_an_unknown_form_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


HOLDS = {
    "words without a treatment": (
        {"age": "mean", "garden": 0},
        values(),
        r"^The columns of X must be numbers, or have a treatment for what they hold; 'city' \(words\) has none\. Pass "
        r"fit\(\.\.\., features=\{\"city\": \"onehot\"\}\)\.$",
    ),
    "words to be filled in": ({"a": "median"}, {"a": ["u", None]}, r"'a' \(words\) has none"),
    "categories of numbers": (
        {"b": "mean"},
        {"a": CATEGORIES["pandas"]([3, 1]), "b": [1.0, None]},
        r"'a' \(categories that are numbers\) has none.*\{\"a\": \"onehot\"\}",
    ),
    "lists": (
        "auto",
        {"a": [[1], [2]], "b": [1, 2]},
        r"'a' \(list\) has none\. Pass .*auto\(\{\"a\": \"drop\"\}\)\)\.$",
    ),
    "lists as categories": (
        {"a": "onehot"},
        {"a": [[1], [2]]},
        r"'a' \(list\) has none\. Pass .*\{\"a\": \"drop\"\}\)\.$",
    ),
    "gaps without a filling": (
        {"city": "onehot", "age": "mean"},
        values(),
        r"^X has missing values in 'garden' \(\d+\)\. Fill them in, .* features=\{\"garden\": \"median\"\}\)",
    ),
    "nothing but gaps": (
        "auto",
        {"a": [None, None], "b": [1, 2]},
        r"'a' must have a value in some .* all are missing\.",
    ),
    "no categories": (
        {"a": "onehot"},
        {"a": [None, None]},
        r"^X's column 'a' must have a value .*\{\"a\": \"drop\"\}\)",
    ),
    "infinite numbers": ({"a": "mean"}, {"a": [float("inf"), None]}, r"^X must be finite; its column 'a' holds an inf"),
    "nothing kept": ({"a": "drop"}, {"a": [1, 2]}, r"^X has no column that features does not drop"),
    "no rows": ("auto", {"a": []}, r"^X must hold at least one example; it has none\."),
    "no columns": ("auto", {}, r"^X must have columns of different names; it has none\."),
    "features of one name": (
        "auto",
        {"a": ["u", "v"], "a=u": [1, 2]},
        r"^The features made of X's columns must have different names; 'a=u' would be there twice\. Rename a column\.$",
    ),
    "many words": (
        auto({"b": "mean"}),
        {"a": [f"u{i}" for i in range(101)], "b": [1] * 101, "c": [f"v{i}" for i in range(101)]},
        r"^auto makes features of columns with 100 different values or fewer; more are in 'a' \(101\), 'c' \(101\)\. "
        r"Drop them, with fit\(.*=xpnet\.features\.auto\(\{\"a\": \"drop\", \"c\": \"drop\"\}\)\), or say onehot there",
    ),
}


@pytest.mark.parametrize(("plan", "given", "message"), HOLDS.values(), ids=HOLDS)
def test_columns_that_cannot_be_treated_so_are_named(plan, given, message):
    with pytest.raises(DataError, match=message):
        encoded(plan, given)


def test_many_words_are_encoded_where_that_is_said():
    assert encoded(auto({"a": "onehot"}), {"a": [f"u{i}" for i in range(101)]}).shape == (101, 101)


def test_arrays_have_no_columns_to_treat():
    with pytest.raises(
        ArgumentError, match=r"^features needs columns with names; X is of type ndarray\. Pass a pandas"
    ):
        fit(np.zeros((M, 3)))


def test_names_that_people_bring_are_answered():
    with pytest.raises(ArgumentError, match="no argument 'cat_features'; it is 'features'"):
        fit(cat_features=["city"])


# In a file ------------------------------------------------------------------------------------------------------------


def kept_in_files():
    name = st.text(max_size=3)
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    kinds = {
        "words": st.text(max_size=3),
        "numbers": st.integers(-(2**70), 2**70) | numbers.filter(lambda value: value != int(value)),
        "bools": st.booleans(),
    }

    @st.composite
    def onehots(draw, name):
        holds = draw(st.sampled_from(list(kinds)))
        categories = tuple(sorted(draw(st.sets(kinds[holds], min_size=1, max_size=5))))
        missing = draw(st.none() | st.sampled_from(categories))
        has_missing = missing is None and draw(st.booleans())
        return OneHot(name, holds, categories, missing, has_missing, draw(st.sampled_from(["error", "ignore"])))

    @st.composite
    def made(draw):
        columns = draw(st.lists(name, min_size=1, max_size=6, unique=True))
        cut = draw(st.integers(1, len(columns)))
        treatments = [
            draw(onehots(column) | st.builds(Number, st.just(column), st.none() | numbers)) for column in columns[:cut]
        ]
        return Features(tuple(treatments), tuple(columns[cut:]))

    return made().filter(lambda made: len(set(made.names)) == len(made.names))


@given(kept_in_files())
@quietly
def test_what_is_packed_is_unpacked(made):
    again = unpacked(json.loads(json.dumps(packed(made), allow_nan=False)))
    assert again == made
    assert repr(again) == repr(made)  # 1, 1.0 and True are equal


@pytest.fixture
def saved(tmp_path):
    """Return the path, the arrays and the metadata of a network with every kind of treatment."""
    path = tmp_path / "net.safetensors"
    plan = {"city": onehot(unknown="ignore"), "age": "mean", "garden": onehot(missing="most_frequent")}
    fit(features=plan, standardize=True).save(path)
    return path, *files.read(path, kind="network")


def test_a_loaded_network_takes_tables(saved):
    path, *_ = saved
    net = xpnet.load(path)
    assert [type(each) for each in net.features.treatments] == [OneHot, Number, Number, OneHot]
    assert net.score(table(), Y, examples="rows") == net.score(net.encode(table(), examples="rows"), Y)


def test_a_file_of_an_earlier_version_is_a_network_without_treatments(saved):
    path, tensors, metadata = saved
    del metadata["features"]
    files.write(path, tensors, metadata, kind="network")
    assert xpnet.load(path).features is None


def changed(where, value):
    def change(kept):
        *steps, last = where
        for step in steps:
            kept = kept[step]
        if value is KeyError:
            del kept[last]
        else:
            kept[last] = value

    return change


CITY, AGE, GARDEN = ("columns", 0), ("columns", 1), ("columns", 3)
DAMAGE = {
    "no columns": changed(("columns",), KeyError),
    "empty columns": changed(("columns",), []),
    "columns that are a word": changed(("columns",), "city"),
    "a column less": changed(AGE, KeyError),
    "a column that is a word": changed(AGE, "age"),
    "a column twice": changed(AGE, {"name": "rooms", "missing": None}),
    "no dropped": changed(("dropped",), KeyError),
    "dropped that are numbers": changed(("dropped",), [1]),
    "dropped that are kept": changed(("dropped",), ["age"]),
    "no name": changed((*AGE, "name"), KeyError),
    "a name that is a number": changed((*AGE, "name"), 3),
    "another name": changed((*AGE, "name"), "old"),
    "no filling": changed((*AGE, "missing"), KeyError),
    "a filling that is a word": changed((*AGE, "missing"), "mean"),
    "a filling that is true": changed((*AGE, "missing"), True),
    "something more": changed((*AGE, "code"), "import os"),
    "no categories": changed((*CITY, "categories"), []),
    "categories that are a word": changed((*CITY, "categories"), "abc"),
    "categories of another kind": changed((*CITY, "categories"), ["Bonn", "Oslo", 3]),
    "categories that are lists": changed((*CITY, "categories"), [["Bonn"], ["Oslo"], ["Rome"]]),
    "categories out of order": changed((*CITY, "categories"), ["Oslo", "Bonn", "Rome"]),
    "categories twice": changed((*CITY, "categories"), ["Bonn", "Bonn", "Rome"]),
    "other categories": changed((*CITY, "categories"), ["Bonn", "Oslo", "Riga"]),
    "one category more": changed((*CITY, "categories"), ["Bonn", "Oslo", "Riga", "Rome"]),
    "another kind": changed((*CITY, "holds"), "numbers"),
    "an unknown kind": changed((*CITY, "holds"), "dates"),
    "no feature for gaps": changed((*CITY, "has_missing"), False),
    "a feature for gaps that is a number": changed((*CITY, "has_missing"), 1),
    "unknown words that are an unknown word": changed((*CITY, "unknown"), "guess"),
    "a filling beside a feature for gaps": changed((*CITY, "missing"), "Rome"),
    "a filling that is no category": changed((*GARDEN, "missing"), "yes"),
    "a filling of another kind": changed((*GARDEN, "missing"), 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_treatment_is_refused(damage, saved):
    path, tensors, metadata = saved
    damage(metadata["features"])
    files.write(path, tensors, metadata, kind="network")
    with pytest.raises(FileFormatError, match="not a whole xpnet network"):
        xpnet.load(path)


@pytest.mark.parametrize("value", [7, "auto", [], {}], ids=str)
def test_something_else_than_a_treatment_is_refused(value, saved):
    path, tensors, metadata = saved
    metadata["features"] = value
    files.write(path, tensors, metadata, kind="network")
    with pytest.raises(FileFormatError, match="not a whole xpnet network"):
        xpnet.load(path)


# Elsewhere ------------------------------------------------------------------------------------------------------------


def test_an_exported_file_takes_the_encoded_numbers(tmp_path):
    net, file = fit(), {"__name__": "predict"}
    net.export(tmp_path / "predict.py")
    exec((tmp_path / "predict.py").read_text(encoding="utf-8"), file)
    assert "X is the numbers that net.encode(table, " in file["__doc__"]
    numbers = net.encode(table(), examples="rows")
    assert np.array_equal(file["predict_proba"](numbers), net.predict_proba(table(), examples="rows"))


def test_an_onnx_model_takes_the_encoded_numbers(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    net = fit()
    net.to_onnx(tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    numbers = net.encode(table(), examples="rows").T.astype(np.float32)
    np.testing.assert_allclose(
        session.run(None, {"X": numbers})[0].T, net.predict_proba(table(), examples="rows"), atol=1e-6
    )


def test_pictures_take_tables():
    pytest.importorskip("matplotlib")
    given = {"a": ["u", "v", None] * 4}
    net = xpnet.fit(table(given={"a": ["u", "v"] * 6}), [0, 1] * 6, **BRIEFLY, features={"a": onehot(unknown="ignore")})
    ax = xpnet.plot.decision_boundary(net, table(given=given), [0, 1] * 6, examples="rows")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a=u", "a=v")
    xpnet.plot._pyplot().close(ax.figure)


def test_plans_are_what_they_are_made_of():
    assert planned(None) is None
    assert planned("auto") == auto() == Plan(is_auto=True)
    assert planned({"a": "mean", 3: 0}) == Plan({"a": number("mean"), "3": number(0)})
    assert features.MOST == 100
