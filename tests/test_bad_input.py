"""Bad input: each case is refused at the border, by xpnet's own exception, in a message a user can act on.

One table. A message says what was expected, what came (with the numbers) and what to do; where the first of these says
the last ("epochs must be 1 or more"), two parts are enough. The patterns hold all of them.
"""

import re
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest

import xpnet
from xpnet.device import cuda_problem
from xpnet.errors import (
    ActivationError,
    ArgumentError,
    CheckpointError,
    DataError,
    DeviceMismatchError,
    DeviceUnavailableError,
    DivergedError,
    FileFormatError,
    ShapeError,
    TargetError,
    UnknownArgumentError,
    XpnetError,
)

RNG = np.random.default_rng(7)
M = 40
X = RNG.standard_normal((3, M))
Y = np.arange(M) % 2
NUMBERS = X[0] * 1.5  # a regression's Y
WORDS = np.array(["no", "yes"])[Y]
THREE = np.arange(M) % 3
ONE_HOT = np.eye(3)[:, THREE]
LABELS = np.stack([Y, THREE == 1])
QUICK = {"hidden": 4, "epochs": 2, "random_state": 0}


def fit(features=X, labels=Y, **arguments):
    return xpnet.fit(features, labels, **{**QUICK, **arguments})


def having(array, index, value):
    """Return a copy of the array with this value in one place."""
    copy = np.array(array)
    copy[index] = value
    return copy


NAN, INF, HUGE = (having(X, (1, 7), value) for value in (np.nan, np.inf, 1e300))


def table(features=X, names=("age", "height", "weight")):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(np.asarray(features).T, columns=list(names))


def torch(array):
    return pytest.importorskip("torch").asarray(np.array(array))


def jax(array):
    return pytest.importorskip("jax").numpy.asarray(np.asarray(array, dtype="float32"))


def strict(array, device):
    library = pytest.importorskip("array_api_strict")
    return library.asarray(array, device=library.Device(device))


def sparse(array):
    return pytest.importorskip("scipy.sparse").csr_array(array)


CUBE = xpnet.Activation(lambda Z: Z**3, lambda Z, _: 3 * Z**2, name="cube")


FILES = ("whole", "truncated", "flipped", "empty", "text", "other", "checkpoint", "cube")


@pytest.fixture(scope="module")
def has(tmp_path_factory):
    """Trained networks, and files whole and broken, for the cases that need one."""
    folder = tmp_path_factory.mktemp("files")
    net = fit()
    paths = {name: folder / name for name in FILES}
    net.save(paths["whole"])
    whole = paths["whole"].read_bytes()
    paths["truncated"].write_bytes(whole[: len(whole) // 2])
    paths["flipped"].write_bytes(whole[:30] + bytes([whole[30] ^ 255]) + whole[31:])
    paths["empty"].write_bytes(b"")
    paths["text"].write_bytes(b"age,height,weight\n")
    paths["other"].write_bytes((2).to_bytes(8, "little") + b"{}")
    fit(checkpoint=paths["checkpoint"])
    fit(activation=CUBE).save(paths["cube"])
    return SimpleNamespace(
        net=net,
        words=fit(labels=WORDS),
        regression=fit(labels=NUMBERS),
        count=fit(labels=Y, task="count"),
        one_hot=fit(labels=ONE_HOT),
        multilabel=fit(labels=LABELS),
        table=fit(table(), examples="rows"),
        **paths,
    )


def case(claim, call, raises, message):
    return pytest.param(call, raises, message, id=claim)


FORM_OF_X = [
    case(
        "X in rows is named, with the transpose",
        lambda _: fit(np.ones((4000, 20)), np.arange(4000) % 2),
        ShapeError,
        r'X is \(4000, 20\) and Y has 4000 examples: examples are columns here\. Pass X\.T or examples="rows"\.$',
    ),
    case(
        "X in columns is named where examples are rows",
        lambda _: fit(X, Y, examples="rows"),
        ShapeError,
        r'X is \(3, 40\) and Y has 40 examples: examples are rows here\. Pass X\.T or examples="columns"\.$',
    ),
    case(
        "X and Y with different m",
        lambda _: fit(X, Y[:30]),
        ShapeError,
        r"X is \(3, 40\) and Y has 30 examples.* X has 40; give it and Y the same examples\.$",
    ),
    case(
        "X of one axis, with both ways to make it two",
        lambda _: fit(X[0], Y),
        ShapeError,
        r"X must be 2-D, \(n_x, m\).* shape is \(40,\)\. One example is X\[:, None\]; one feature is X\[None, :\]\.$",
    ),
    case(
        "X of one axis, with both ways in rows",
        lambda _: fit(X[0], Y, examples="rows"),
        ShapeError,
        r"2-D, \(m, n_x\).* is \(40,\)\. One example is X\[None, :\]; one feature is X\[:, None\]\.$",
    ),
    case(
        "X of images, with the reshape that flattens them",
        lambda _: fit(np.ones((M, 8, 8)), Y),
        ShapeError,
        r"X must be 2-D.* shape is \(40, 8, 8\)\. .*pass X\.reshape\(len\(X\), -1\)\.T\.$",
    ),
    case(
        "X without examples",
        lambda _: fit(X[:, :0], Y),
        DataError,
        r"X must hold at least one example.* shape is \(3, 0\)\. Check the filter",
    ),
    case(
        "X without features",
        lambda _: fit(X[:0], Y),
        DataError,
        r"X must hold at least one .*feature; its shape is \(0, 40\)\. Check the filter",
    ),
    case("X missing", lambda _: fit(None, Y), DataError, r"X must be an array.* it is None\. Pass an array"),
    case("X a file's name", lambda _: fit("data.csv", Y), DataError, r"X must be an array.* of type str\. Pass an"),
    case(
        "X a generator",
        lambda _: fit((column for column in X.T), Y),
        DataError,
        r"X must be an array.* of type generator\. Pass an array",
    ),
    case(
        "X sparse", lambda _: fit(sparse(X), Y), DataError, r"X must be a dense array.* csr_array\. Pass X\.toarray\("
    ),
    case(
        "X ragged",
        lambda _: fit([[1.0, 2.0], [3.0]], [0, 1]),
        ShapeError,
        r"X must be an array.* a list whose rows differ in length\. Give each the same number of values\.$",
    ),
    case(
        "parts of X with different features",
        lambda _: fit([X, X[:2]], np.append(Y, Y)),
        ShapeError,
        r"parts of X must have the same features; X\[0\] has 3, X\[1\] has 2\. Parts are joined along the examples\.$",
    ),
    case(
        "parts of X with columns in another order",
        lambda _: fit([table(), table()[["height", "age", "weight"]]], np.append(Y, Y), examples="rows"),
        ShapeError,
        r"X\[1\] must have the columns of X\[0\], in their order; 'height', 'age' are out of place\. Pass its columns",
    ),
]

VALUES_OF_X = [
    case(
        "nan in X, by feature and example",
        lambda _: fit(NAN),
        DataError,
        r"X must be finite; feature 1 of example 7 is nan\. Remove such examples or fill in the values\.$",
    ),
    case(
        "infinity in X, by feature and example",
        lambda _: fit(INF),
        DataError,
        r"X must be finite; feature 1 of example 7 is inf\. Remove such examples or fill",
    ),
    case(
        "nan in a table, by the column's name",
        lambda _: fit(table(NAN), examples="rows"),
        DataError,
        r"X has missing values in 'height' \(1\)\. Fill them in.*features=\{\"height\": \"median\"\}\)\.$",
    ),
    case(
        "nan in X that is standardized",
        lambda _: fit(NAN, standardize=True),
        DataError,
        r"X must be finite; feature 1 of example 7 is nan\. Remove",
    ),
    case(
        "infinity in X that is standardized",
        lambda _: fit(INF, standardize=True),
        DataError,
        r"X must be finite; feature 1 of example 7 is inf\. Remove",
    ),
    case(
        "nan in another namespace's X",
        lambda _: fit(torch(NAN)),
        DataError,
        r"X must be finite; feature 1 of example 7 is nan\. Remove",
    ),
    case(
        "nan among the examples held out, by their number in X",
        lambda _: fit(NAN, validation_fraction=0.5),
        DataError,
        r"X must be finite; feature 1 of example 7 is nan\. Remove",
    ),
    case(
        "nan in a part of X, by its number in the whole",
        lambda _: fit([X, NAN], np.append(Y, Y)),
        DataError,
        r"X must be finite; feature 1 of example 47 is nan\. Remove",
    ),
    case(
        "numbers beyond float32",
        lambda _: fit(HUGE),
        DataError,
        r"X must fit in float32; feature 1 of example 7 is 1e\+300, beyond its range\. Scale it, or pass dtype=",
    ),
    case(
        "numbers whose squares are beyond float64, standardized",
        lambda _: fit(HUGE, standardize=True),
        DataError,
        r"X must be smaller to be standardized; feature 1 has squares beyond float64\. Scale it first\.$",
    ),
    case("X complex", lambda _: fit(X + 0j), DataError, r"X must be real.* complex128\. Pass its real and imaginary"),
    case(
        "X of objects",
        lambda _: fit(X.astype(object)),
        DataError,
        r"X must be numbers; its dtype is object\. .*cast with astype\.$",
    ),
    case(
        "X of words",
        lambda _: fit(X.astype(str)),
        DataError,
        r"X must be numbers; its dtype is str.* Encode words as numbers",
    ),
    case(
        "X of dates",
        lambda _: fit(np.full((3, M), "2020-01-01", dtype="datetime64[D]")),
        DataError,
        r"X must be numbers; its dtype is datetime64\[D\]\. .*cast with astype\.$",
    ),
    case(
        "None among X's numbers",
        lambda _: fit([[1.0, None], [2.0, 3.0]], [0, 1]),
        DataError,
        r"X must be numbers; its dtype is object\. .*cast with astype\.$",
    ),
    case(
        "masked values in X",
        lambda _: fit(np.ma.masked_array(X, X > 2)),
        DataError,
        rf"X must have no masked values; {(X > 2).sum()} are masked\. Remove such examples, or pass X\.filled\(value\)",
    ),
    case(
        "a table, whose examples are rows",
        lambda _: fit(table()),
        ShapeError,
        r'X is a table, whose examples are rows\. Pass examples="rows"\.$',
    ),
    case(
        "a table with a column of words",
        lambda _: fit(table().assign(city="Rome"), examples="rows"),
        DataError,
        r"The columns of X must be numbers; 'city' \(words\) is not\. Drop.*fit\(.*\{\"city\": \"onehot\"\}\)\.$",
    ),
    case(
        "a table with columns of dates and words",
        lambda _: fit(table().assign(city="Rome", born=datetime(1990, 1, 1)), examples="rows"),
        DataError,
        r"must be numbers; 'city' \(words\), 'born' \(datetime64.*\) are not\. Drop them, or train with fit\(",
    ),
    case(
        "a table with two columns of one name",
        lambda _: fit(table(names=["age", "age", "weight"]), examples="rows"),
        DataError,
        r"X must have columns of different names; 'age' is there twice\. Rename",
    ),
    case(
        "a table without columns",
        lambda _: fit(table()[[]], examples="rows"),
        DataError,
        r"X must have columns.*; it has none\. .*add columns\.$",
    ),
]

FORM_OF_Y = [
    case("Y missing", lambda _: xpnet.fit(X), DataError, r"Y is missing: pass the targets, \(m,\) or \(n_y, m\)\.$"),
    case("Y empty", lambda _: fit(X, []), DataError, r"Y must hold at least one example; its shape is \(0,\)\. Check"),
    case("Y a column's name", lambda _: fit(X, "age"), DataError, r"Y must be an array.* of type str\. Pass one\.$"),
    case(
        "Y of three axes",
        lambda _: fit(X, Y[None, None]),
        ShapeError,
        r"Y must be \(m,\), \(1, m\) or \(n_y, m\); its shape is \(1, 1, 40\)\. Pass Y\.reshape\(-1, 40\)\.$",
    ),
    case(
        "Y a column, with the transpose",
        lambda _: fit(X, Y[:, None]),
        ShapeError,
        r"X is \(3, 40\) and Y has 1 example: examples are columns here\. If Y is \(40, 1\), pass Y\.T\.$",
    ),
    case(
        "Y a row where examples are rows, with the transpose",
        lambda _: fit(X.T, Y[None, :], examples="rows"),
        ShapeError,
        r"X is \(40, 3\) and Y has 1 example: examples are rows here\. If Y is \(1, 40\), pass Y\.T\.$",
    ),
    case("Y ragged", lambda _: fit(X, [[1, 2], [3]]), ShapeError, r"Y must be .*rows differ in length\. Give each the"),
    case("Y nan", lambda _: fit(X, having(NUMBERS, 3, np.nan)), DataError, r"Y must be finite; Y\[3\] is nan\. Remove"),
    case(
        "infinity in Y of several rows",
        lambda _: fit(X, having(X, (1, 3), np.inf)),
        DataError,
        r"Y must be finite; Y\[1, 3\] is inf\. Remove",
    ),
    case(
        "Y complex", lambda _: fit(X, Y + 0j), DataError, r"Y must be real.* complex128\. Pass its real and imaginary"
    ),
    case(
        "Y of dates",
        lambda _: fit(X, np.full(M, "2020-01-01", dtype="datetime64[D]")),
        DataError,
        r"Y must be real numbers or labels.* datetime64\[D\]\. Cast it with astype\.$",
    ),
    case(
        "Y of words and numbers in a list",
        lambda _: fit(X, [0, "yes"] * 20),
        DataError,
        r"Y must hold labels of one kind.* it holds int, str\. .*cast with astype\.$",
    ),
    case(
        "Y of words and numbers in an array",
        lambda _: fit(X, np.array([0, "yes"] * 20, dtype=object)),
        DataError,
        r"Y must hold labels of one kind.* it holds int, str\. .*cast with astype\.$",
    ),
    case(
        "Y with None among the words",
        lambda _: fit(X, ["yes", None] * 20),
        DataError,
        r"Y must hold labels of one kind.* it holds NoneType, str\. Fill in what is missing",
    ),
    case(
        "Y of whole numbers beyond 64 bits",
        lambda _: fit(X, [2**70, 1] * 20),
        DataError,
        r"Y must hold whole numbers of 64 bits or less; the largest is 1180591620717411303424\. Pass such labels as",
    ),
    case(
        "Y with masked values",
        lambda _: fit(X, np.ma.masked_array(Y, Y == 1)),
        DataError,
        r"Y must have no masked values; 20 are masked\. Remove such examples, or pass Y\.filled",
    ),
    case(
        "Y beyond the range of float32",
        lambda _: fit(X, having(NUMBERS, 3, 1e300)),
        DataError,
        r"Y must fit in float32; .*1e\+300.*(Scale|dtype=\"float64\")",
    ),
]

TASKS = [
    case(
        "one class",
        lambda _: fit(X, Y * 0),
        TargetError,
        r"Y has one class, 0, in all 40 examples; .*Pass examples of at least two classes\.$",
    ),
    case(
        "one class in one-hot columns",
        lambda _: fit(X, ONE_HOT[:, [1] * M]),
        TargetError,
        r"Y has one class, 1, in all 40 examples; .*Pass examples of at least two",
    ),
    case(
        "many whole numbers, with the choices",
        lambda _: fit(X, np.arange(M)),
        TargetError,
        r'Y has 40 distinct whole numbers.* Pass task="multiclass", task="count" or task="regression"\.$',
    ),
    case(
        "several rows of whole numbers, with the choices",
        lambda _: fit(X, np.arange(2 * M).reshape(2, M)),
        TargetError,
        r'Y has 2 rows of whole numbers other than 0 and 1.* Pass task="count" or task="regression"\.$',
    ),
    case(
        "several rows of words",
        lambda _: fit(X, np.stack([WORDS, WORDS])),
        TargetError,
        r"Y of words must be \(m,\).* it is \(2, 40\)\. .*pass rows of 0 and 1\.$",
    ),
    case(
        "fractions for a binary task",
        lambda _: fit(X, NUMBERS, task="binary"),
        TargetError,
        rf'task="binary" needs labels; .*fractions, such as {NUMBERS[0]:g}\. Pass task="regression", or labels\.$',
    ),
    case(
        "fractions for a multiclass task",
        lambda _: fit(X, NUMBERS, task="multiclass"),
        TargetError,
        r'task="multiclass" needs labels; .*fractions, such as .* Pass task="regression", or labels\.$',
    ),
    case(
        "three classes for a binary task",
        lambda _: fit(X, THREE, task="binary"),
        TargetError,
        r'task="binary" needs two classes; Y has 3\. Pass task="multiclass"\.$',
    ),
    case(
        "several rows for a binary task",
        lambda _: fit(X, np.stack([Y, 1 - Y]), task="binary"),
        TargetError,
        r'task="binary" needs Y of m labels.* Y is \(2, 40\)\. .*task="multilabel"\.$',
    ),
    case(
        "negative counts",
        lambda _: fit(X, np.arange(M) - 3, task="count"),
        TargetError,
        r'task="count" needs counts of 0 or more; the smallest Y is -3\. Pass task="regression"\.$',
    ),
    case(
        "no counts above 0",
        lambda _: fit(X, Y * 0, task="count"),
        TargetError,
        r'task="count" needs at least one count above 0; every Y is 0\. Check how Y was counted\.$',
    ),
    case(
        "words for a regression",
        lambda _: fit(X, WORDS, task="regression"),
        TargetError,
        r"task=\"regression\" needs numbers; Y holds words, such as 'no'\. Pass numbers, or task=\"multiclass\"\.$",
    ),
    case(
        "a 2 among several labels",
        lambda _: fit(X, np.stack([Y, THREE]), task="multilabel"),
        TargetError,
        r'task="multilabel" needs Y of 0 and 1, \(n_y, m\).* Y is \(2, 40\) and holds other values\.$',
    ),
    case(
        "one row of labels for a multilabel task",
        lambda _: fit(X, Y, task="multilabel"),
        TargetError,
        r'task="multilabel" needs Y of 0 and 1, \(n_y, m\), one row a label; Y is \(40,\)\.$',
    ),
]

VALIDATION = [
    case(
        "validation labels that were not trained on",
        lambda _: fit(validation_data=(X, Y + 1)),
        TargetError,
        r"validation Y has labels that were not trained on: 2\. The classes are 0, 1\.$",
    ),
    case(
        "validation words for numbers",
        lambda _: fit(validation_data=(X, WORDS)),
        TargetError,
        r"validation Y must hold labels like those trained on, such as 0; it holds 'no'\.$",
    ),
    case(
        "negative validation counts",
        lambda _: fit(task="count", validation_data=(X, Y - 1)),
        TargetError,
        r"counts of 0 or more; the smallest validation Y is -1\. Pass",
    ),
    case(
        "a 2 among several validation labels",
        lambda _: fit(X, LABELS, validation_data=(X, np.stack([Y, THREE]))),
        TargetError,
        r"validation Y must be 0 and 1 for this multilabel network; it holds others\. Pass 0/1 rows\.$",
    ),
    case(
        "validation rows that are not one-hot",
        lambda _: fit(X, ONE_HOT, validation_data=(X, X)),
        TargetError,
        r"validation Y must be one-hot columns for this multiclass network; it holds others\. Pass 0/1 rows\.$",
    ),
    case(
        "validation X without its Y",
        lambda _: fit(validation_data=X),
        ArgumentError,
        r"validation_data must be \(X, Y\) or \(X, Y, sample_weight\); it is .*ndarray",
    ),
    case(
        "validation data of other features",
        lambda _: fit(validation_data=(X[:2], Y)),
        ShapeError,
        r"validation X must have X's 3 features; it has 2\.",
    ),
    case(
        "validation columns in another order",
        lambda _: fit(table(), examples="rows", validation_data=(table()[["height", "age", "weight"]], Y)),
        ShapeError,
        r"validation X must have the columns trained on, in their order; 'height', 'age' are out of place\. Pass those",
    ),
    case(
        "validation X and Y with different m",
        lambda _: fit(validation_data=(X, Y[:5])),
        ShapeError,
        r"validation X is \(3, 40\) and .*Y has 5 examples.* give it and .*Y the same examples\.$",
    ),
    case(
        "nan in validation X",
        lambda _: fit(validation_data=(NAN, Y)),
        DataError,
        r"validation X must be finite; feature 1 of example 7 is nan\. Remove",
    ),
    case(
        "a fraction that holds nothing out",
        lambda _: fit(validation_fraction=0.0001),
        ArgumentError,
        r"validation_fraction must leave at least one example on each side; 0\.0001 of 40 examples is 0\.$",
    ),
    case(
        "a fraction above 1",
        lambda _: fit(validation_fraction=1.5),
        ArgumentError,
        r"validation_fraction must be .*at least 0 and less than 1; it is 1\.5\.$",
    ),
    case(
        "a fraction below 0",
        lambda _: fit(validation_fraction=-0.1),
        ArgumentError,
        r"validation_fraction must be .*at least 0 and less than 1; it is -0\.1\.$",
    ),
    case(
        "a fraction and data to validate on",
        lambda _: fit(validation_fraction=0.2, validation_data=(X, Y)),
        ArgumentError,
        r"Pass validation_data or validation_fraction, not both\.$",
    ),
]


def misspelled(argument, given, meant):
    message = rf"{argument} must be .*{re.escape(repr(given))}\. Did you mean \"{meant}\"\?$"
    return case(f"{argument}={given!r}, with the nearest", lambda _: fit(**{argument: given}), ArgumentError, message)


def foreign(name, advice):
    message = rf"fit\(\) has no argument '{name}'.*{advice}"
    return case(f"{name}, with the name here", lambda _: fit(**{name: 3}), UnknownArgumentError, message)


NAMES = [
    misspelled("activation", "rellu", "relu"),
    misspelled("optimizer", "adm", "adam"),
    misspelled("task", "regresion", "regression"),
    misspelled("device", "gpu", "cuda"),
    misspelled("dtype", "float16", "float64"),
    misspelled("examples", "row", "rows"),
    foreign("max_iter", "it is 'epochs'"),
    foreign("hidden_layer_sizes", "it is 'hidden'"),
    foreign("lr", "it is 'learning_rate'"),
    foreign("alpha", "scikit-learn's alpha is 'l2', the course's α is 'learning_rate'"),
    foreign("solver", "it is 'optimizer'"),
    foreign("n_epochs", "it is 'epochs'"),
    foreign("early_stopping_rounds", "it is 'patience'"),
    foreign("seed", "it is 'random_state'"),
    foreign("momentum", r"pass optimizer=xpnet\.optimizers\.momentum"),
    foreign("epoch", r'Did you mean "epochs"\?'),
]


def refused(argument, given, message):
    claim = f"{argument}={given!r}"
    return case(claim, lambda _: fit(**{argument: given}), ArgumentError, rf"{argument}.* must be {message}\.$")


def own(Z):
    return Z


SETTINGS = [
    refused("hidden", 0, "1 or more; it is 0"),
    refused("hidden", -1, "1 or more; it is -1"),
    refused("hidden", 2.5, r"a whole number or a sequence of them, such as \(256, 64\); it is 2\.5"),
    refused("hidden", "10", r"a whole number or a sequence of them, such as \(256, 64\); it is '10'"),
    refused("hidden", True, "a whole number, 1 or more; it is True"),
    case(
        "hidden=(4, 0)",
        lambda _: fit(hidden=(4, 0)),
        ArgumentError,
        r"each of hidden must be 1 or more; it is 0\.$",
    ),
    refused("epochs", 0, "1 or more; it is 0"),
    refused("epochs", 2.5, r"a whole number, 1 or more; it is 2\.5"),
    refused("batch_size", 0, "1 or more; it is 0"),
    refused("batch_size", "huge", "one of 'auto', 'full', or a whole number; it is 'huge'"),
    refused("learning_rate", 0, "a finite number more than 0; it is 0"),
    refused("learning_rate", -0.1, r"a finite number more than 0; it is -0\.1"),
    refused("learning_rate", np.nan, "a finite number more than 0; it is nan"),
    refused("learning_rate", "fast", "a finite number more than 0; it is 'fast'"),
    case(
        "a schedule that returns 0",
        lambda _: fit(learning_rate=lambda epoch: 1.0 - epoch),
        ArgumentError,
        r"learning_rate\(1\) must be a finite number more than 0; it is 0\.0\.$",
    ),
    refused("learning_rate", 10**400, "a finite number more than 0; it is inf"),
    *(
        case(
            f"hidden=10**{power}",
            lambda _, power=power: fit(hidden=10**power),
            ArgumentError,
            rf"^hidden must make a network of fewer than 6e\+17 parameters; this one has about 1e{power + 1}\. Pass",
        )
        for power in (30, 400, 5_000)
    ),
    refused("l2", -1, "a finite number at least 0; it is -1"),
    refused("tol", -1e-3, r"a finite number at least 0; it is -0\.001"),
    refused("patience", 0, "1 or more; it is 0"),
    refused("random_state", -1, "0 or more; it is -1"),
    refused("random_state", 1.5, r"a whole number, 0 or more; it is 1\.5"),
    refused("threads", 0, "1 or more; it is 0"),
    refused("verbose", "yes", "True, False or \"auto\"; it is 'yes'"),
    refused(
        "callbacks",
        3,
        "functions of one argument, an EpochView, or objects with any of the methods on_fit_begin, on_epoch_end, "
        "on_fit_end; 3 is neither",
    ),
    refused("standardize", "yes", "True or False; it is 'yes'"),
    case(
        "lbfgs with a batch size",
        lambda _: fit(optimizer="lbfgs", batch_size=8),
        ArgumentError,
        r'optimizer="lbfgs" is full batch: batch_size must be left out or "full"; it is 8\.$',
    ),
    case(
        "a function as the activation",
        lambda _: fit(activation=own),
        ArgumentError,
        r"activation must be one of .* or an xpnet\.Activation\(g, dg\); it is <function own",
    ),
    case(
        "an activation whose slope is wrong",
        lambda _: fit(activation=xpnet.Activation(own, lambda Z, _: Z)),
        ActivationError,
        r"'own': dg must be the slope of g\. At Z = .* Correct dg\.$",
    ),
    case(
        "a learning rate that diverges",
        lambda _: fit(X, NUMBERS, optimizer="gd", learning_rate=1e10, epochs=50),
        DivergedError,
        r"diverged: the cost is (inf|nan) in epoch \d+, at learning rate 1e\+10; the largest feature is feature \d, "
        r"of size \d\.\d+\. Lower learning_rate, or pass standardize=True\.$",
    ),
]

WEIGHTS = [
    case(
        "weights of another length",
        lambda _: fit(sample_weight=[1, 2]),
        ShapeError,
        r"sample_weight must have one weight for each of 40 examples; its shape is \(2,\)\. Pass an array",
    ),
    case(
        "weights in a column",
        lambda _: fit(sample_weight=np.ones((M, 1))),
        ShapeError,
        r"one weight for each of 40 examples; its shape is \(40, 1\)\. Pass an array of shape \(40,\)\.$",
    ),
    case(
        "a negative weight, by its place",
        lambda _: fit(sample_weight=having(np.ones(M), 3, -1)),
        DataError,
        r"sample_weight must be finite numbers of 0 or more; sample_weight\[3\] is -1\.0\. Give examples",
    ),
    case(
        "a weight that is nan, by its place",
        lambda _: fit(sample_weight=having(np.ones(M), 3, np.nan)),
        DataError,
        r"finite numbers of 0 or more; sample_weight\[3\] is nan\. Give",
    ),
    case(
        "weights that are words",
        lambda _: fit(sample_weight=WORDS),
        DataError,
        r"sample_weight must be real numbers; its dtype is str\d+\. Cast",
    ),
    case(
        "no weight above 0",
        lambda _: fit(sample_weight=np.zeros(M)),
        DataError,
        r"sample_weight must leave some example a weight above 0; all are zero\. Leave it out to weigh all alike\.$",
    ),
    case(
        "no weight above 0 with the classes' weights",
        lambda _: fit(sample_weight=Y, class_weight={1: 0}),
        DataError,
        r"weight above 0; all are zero once class_weight is in them\. Leave",
    ),
    case(
        "a weight for a label that Y has not",
        lambda _: fit(class_weight={0: 1, 5: 2}),
        ArgumentError,
        r"class_weight names the class 5, which Y does not have; it has \[0, 1\]\.$",
    ),
    case(
        "a class weight below 0",
        lambda _: fit(class_weight={0: -1}),
        ArgumentError,
        r"class_weight\[0\] must be a finite number at least 0; it is -1\.$",
    ),
    case(
        "class weights for a regression",
        lambda _: fit(labels=NUMBERS, class_weight="balanced"),
        ArgumentError,
        r"class_weight needs a binary or multiclass task; this one is regression\. Use sample_weight\.$",
    ),
    case(
        "class weights of another kind",
        lambda _: fit(class_weight="even"),
        ArgumentError,
        r"class_weight must be \"balanced\" or a dict of label to weight; it is 'even'\.$",
    ),
    case(
        "initial parameters of other sizes",
        lambda has: fit(initial=has.net, hidden=5),
        ShapeError,
        r"initial must fit a 3-5-1 network.* it has .*\(4, 3\).* Pass the `hidden` that it was made for\.$",
    ),
    case(
        "initial parameters that are not finite",
        lambda _: fit(initial=[(np.full((4, 3), np.nan), np.zeros(4)), (np.ones((1, 4)), np.zeros(1))]),
        DataError,
        r"initial must be finite; it holds nan or inf\.$",
    ),
    case(
        "initial parameters that are complex",
        lambda _: fit(initial=[(np.ones((4, 3)) * 1j, np.zeros(4)), (np.ones((1, 4)), np.zeros(1))]),
        ArgumentError,
        r"initial must be a Network or a list of \(W, b\) arrays",
    ),
    case(
        "initial parameters that are a word",
        lambda _: fit(initial="xavier"),
        ArgumentError,
        r"initial must be a Network or a list of \(W, b\) arrays.* it is a str that cannot be read as one\.$",
    ),
]

DEVICES = [
    case(
        "X and Y of two namespaces",
        lambda _: fit(torch(X), jax(Y)),
        DeviceMismatchError,
        r"X and Y must live together: X is in torch on cpu, Y in jax\.numpy on cpu\. Move Y to torch on cpu, or pass",
    ),
    case(
        "X and Y on two devices",
        lambda _: fit(strict(X, "CPU_DEVICE"), strict(Y, "device1")),
        DeviceMismatchError,
        r"X is in array_api_strict on CPU_DEVICE, Y in array_api_strict on device1\. Move Y to",
    ),
    case(
        "parts of X of two namespaces",
        lambda _: fit([torch(X), jax(X)], np.append(Y, Y)),
        DeviceMismatchError,
        r"X\[0\] and X\[1\] must live together: .* Move X\[1\] to torch",
    ),
    pytest.param(
        lambda _: fit(device="cuda"),
        DeviceUnavailableError,
        r'^device="cuda" .*use device="cpu"\.$',
        marks=pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here"),
        id="cuda where there is none",
    ),
]

PREDICTING = [
    case(
        "other features to predict from",
        lambda has: has.net.predict(X[:2]),
        ShapeError,
        r"X has 2 features but the network was trained on 3\. Pass the features that it was trained on",
    ),
    case(
        "X turned to predict from",
        lambda has: has.net.predict(X.T),
        ShapeError,
        r'X has 40 features but .*trained on 3\. Examples are columns: did you mean X\.T or examples="rows"\?$',
    ),
    case(
        "columns of other names to predict from",
        lambda has: has.table.predict(table(names=["Age", "height", "weight"]), examples="rows"),
        ShapeError,
        r"columns trained on, in their order; it lacks 'age' and it also has 'Age'\. Add or rename columns\.$",
    ),
    case(
        "columns in another order to predict from",
        lambda has: has.table.predict(table()[["height", "age", "weight"]], examples="rows"),
        ShapeError,
        r"columns trained on, in their order; 'height', 'age' are out of place\. Pass X\[list\(net\.feature_names\)\]",
    ),
    case(
        "nothing to predict from",
        lambda has: has.net.predict(X[:, :0]),
        DataError,
        r"X must hold at least one example.* \(3, 0\)\. Check",
    ),
    case(
        "nan to predict from",
        lambda has: has.net.predict(NAN),
        DataError,
        r"X must be finite; feature 1 of example 7 is nan\. Remove",
    ),
    case(
        "words to predict from",
        lambda has: has.net.predict_proba(X.astype(str)),
        DataError,
        r"X must be numbers; its dtype is str.* Encode words",
    ),
    case(
        "labels to score that were not trained on",
        lambda has: has.net.score(X, Y + 1),
        TargetError,
        r"Y has labels that were not trained on: 2\. The classes are 0, 1\.$",
    ),
    case(
        "words to score for whole numbers",
        lambda has: has.net.score(X, WORDS),
        TargetError,
        r"Y must hold labels like those trained on, such as 0; it holds 'no'\.$",
    ),
    case(
        "whole numbers to score for words",
        lambda has: has.words.score(X, Y),
        TargetError,
        r"Y must hold labels like those trained on, such as 'no'; it holds 0\.$",
    ),
    case(
        "words to score a regression by",
        lambda has: has.regression.score(X, WORDS),
        TargetError,
        r"Y must hold 1 number an example for this regression network; it is \(40,\), str\d+\. Pass Y like the one",
    ),
    case(
        "several rows to score one output by",
        lambda has: has.regression.cost(X, X),
        TargetError,
        r"Y must hold 1 number an example for this regression network; it is \(3, 40\), float64\. Pass",
    ),
    case(
        "negative counts to score",
        lambda has: has.count.score(X, Y - 1),
        TargetError,
        r"counts of 0 or more; the smallest Y is -1\. Pass",
    ),
    case(
        "rows to score that are not one-hot",
        lambda has: has.one_hot.score(X, X),
        TargetError,
        r"Y must be one-hot columns for this multiclass network; it holds others\. Pass 0/1 rows",
    ),
    case(
        "fractions to score several labels by",
        lambda has: has.multilabel.cost(X, X[:2]),
        TargetError,
        r"Y must be 0 and 1 for this multilabel network; it holds others\. Pass 0/1 rows",
    ),
    case(
        "X and Y to score with different m",
        lambda has: has.net.score(X, Y[:30]),
        ShapeError,
        r"X is \(3, 40\) and Y has 30 examples.* give it and Y the same examples\.$",
    ),
    case(
        "weights to score of another length",
        lambda has: has.net.score(X, Y, sample_weight=[1.0]),
        ShapeError,
        r"one weight for each of 40 examples; its shape is \(1,\)\. Pass",
    ),
    case("nothing to score by", lambda has: has.net.score(X, None), DataError, r"Y is missing: pass the targets"),
    case(
        "too many examples to explain",
        lambda has: has.net.explain(np.ones((3, 200))),
        ArgumentError,
        r"explain is for a few examples, 100 at most; X has 200: pass X\[:, :3\]\.$",
    ),
    case(
        "nan to explain",
        lambda has: has.net.explain(NAN),
        DataError,
        r"X must be finite; feature 1 of example 7 is nan\. Remove",
    ),
    case(
        "a device that is none for a trained network",
        lambda has: has.net.to("gpu"),
        ArgumentError,
        r"device must be .* got 'gpu'\. Did you mean \"cuda\"\?$",
    ),
]

LOADING = [
    case(
        "a file cut short",
        lambda has: xpnet.load(has.truncated),
        FileFormatError,
        r"truncated' is damaged.*: it announces .* bytes in all\. Expected a file that xpnet wrote; pass another",
    ),
    case(
        "a file with a flipped byte",
        lambda has: xpnet.load(has.flipped),
        FileFormatError,
        r"flipped' is damaged.* Expected a file that xpnet wrote; pass another",
    ),
    case(
        "a file with nothing in it",
        lambda has: xpnet.load(has.empty),
        FileFormatError,
        r"empty' is damaged.* 0 bytes in all\. Expected a file that xpnet wrote; pass another",
    ),
    case(
        "a text file",
        lambda has: xpnet.load(has.text),
        FileFormatError,
        r"text' is damaged or not a safetensors file: .*18 bytes in all\. Expected a file that xpnet wrote; pass",
    ),
    case(
        "another library's file",
        lambda has: xpnet.load(has.other),
        FileFormatError,
        r"other' is a safetensors file but not one of xpnet's: expected a network\. Open it with the library that",
    ),
    case(
        "a path that no file can have",
        lambda _: xpnet.load("net\0.safetensors"),
        ArgumentError,
        r"^path must be a path that the file system can hold; it is 'net\\x00\.safetensors'\. Pass another\.$",
    ),
    case(
        "a path of half a letter",
        lambda _: fit(checkpoint="\ud800.ckpt"),
        ArgumentError,
        r"^checkpoint must be a path that the file system can hold; it is '\\ud800\.ckpt'\. Pass another\.$",
    ),
    case(
        "a checkpoint for a network",
        lambda has: xpnet.load(has.checkpoint),
        FileFormatError,
        r"checkpoint' is a checkpoint, not a network: pass it as fit\(\.\.\., checkpoint=\.\.\.\)",
    ),
    case(
        "a network for a checkpoint",
        lambda has: fit(checkpoint=has.whole),
        FileFormatError,
        r"whole' is a network, not a checkpoint: open it with xpnet\.load\(\.\.\.\), and go on from it with fit\(",
    ),
    case(
        "a checkpoint of other data",
        lambda has: fit(X + 1, checkpoint=has.checkpoint),
        CheckpointError,
        r"belongs to another fit: X differs\. Repeat that call, or name another file\.$",
    ),
    case(
        "a checkpoint of other arguments",
        lambda has: fit(l2=0.5, checkpoint=has.checkpoint),
        CheckpointError,
        r"belongs to another fit: .*l2 was 0\.0, is 0\.5.* Repeat that call, or name another file\.$",
    ),
    case(
        "a checkpoint cut short",
        lambda has: fit(checkpoint=has.truncated),
        FileFormatError,
        r"truncated' is damaged.* Expected a file that xpnet wrote; pass another",
    ),
    case(
        "a network of one's own activation, without it",
        lambda has: xpnet.load(has.cube),
        ArgumentError,
        r"activation, 'cube', is not one of xpnet's.* Pass load\(path, activation=xpnet\.Activation\(g, dg\)\)\.$",
    ),
    case(
        "a network of one's own activation, with another",
        lambda has: xpnet.load(has.cube, activation=xpnet.Activation(own, lambda Z, _: np.ones_like(Z))),
        ArgumentError,
        r"was trained with the activation 'cube'; the one passed is 'own'",
    ),
    case(
        "a network of one's own activation, with a name",
        lambda has: xpnet.load(has.cube, activation="relu"),
        ArgumentError,
        r"activation.*'?relu'?",
    ),
]

LOADER = [
    case(
        "a loader of X in rows",
        lambda _: xpnet.Loader(X.T, Y),
        ShapeError,
        r'X is \(40, 3\) and Y has 40 examples: examples are columns here\. Pass X\.T or examples="rows"\.$',
    ),
    case(
        "a loader of words",
        lambda _: xpnet.Loader(X, WORDS),
        DataError,
        r"A Loader's Y must be numbers; it holds words, such as no\. Pass words to fit\.$",
    ),
    case("a loader of ragged Y", lambda _: xpnet.Loader(X, [[1], [1, 2]]), ShapeError, r"Y must be .*differ in length"),
    case("a loader of nan", lambda _: xpnet.Loader(NAN, Y), DataError, r"feature 1 of example 7 is nan\. Remove"),
    case(
        "a loader of nan in Y",
        lambda _: xpnet.Loader(X, having(NUMBERS, 3, np.nan)),
        DataError,
        r"Y must be finite; Y\[3\] is nan\. Remove",
    ),
    case(
        "a loader of numbers beyond float32",
        lambda _: xpnet.Loader(HUGE, Y),
        DataError,
        r"X must fit in float32; feature 1 of example 7 is 1e\+300",
    ),
    case(
        "a loader of X and Y of two namespaces",
        lambda _: xpnet.Loader(torch(X), jax(Y)),
        DeviceMismatchError,
        r"X and Y must live together: .* Move Y to torch on cpu",
    ),
    case(
        "a loader of no columns at a time",
        lambda _: xpnet.Loader(X, Y, batch_size=0),
        ArgumentError,
        r"batch_size must be 1 or more; it is 0\.$",
    ),
    case(
        "a loader that prefetches less than nothing",
        lambda _: xpnet.Loader(X, Y, prefetch=-1),
        ArgumentError,
        r"prefetch must be 0 or more; it is -1\.$",
    ),
    case(
        "a loader that shuffles 'yes'",
        lambda _: xpnet.Loader(X, Y, shuffle="yes"),
        ArgumentError,
        r"shuffle must be True or False; it is 'yes'\.$",
    ),
    case(
        "fit with a loader and Y",
        lambda _: fit(xpnet.Loader(X, Y), Y),
        ArgumentError,
        r"fit takes Y from the Loader; pass fit\(loader\) alone, or arrays X and Y\.$",
    ),
    case(
        "fit with a loader without Y",
        lambda _: fit(xpnet.Loader(X), None),
        DataError,
        r"fit needs targets and this Loader has no Y\. Make it with Loader\(X, Y\)\.$",
    ),
]

CASES = [
    *(FORM_OF_X + VALUES_OF_X + FORM_OF_Y + TASKS + VALIDATION + NAMES),
    *(SETTINGS + WEIGHTS + DEVICES + PREDICTING + LOADING + LOADER),
]

PROMISED = {
    ActivationError: ValueError,
    ArgumentError: ValueError,
    CheckpointError: ValueError,
    DataError: ValueError,
    DeviceMismatchError: ValueError,
    DeviceUnavailableError: RuntimeError,
    DivergedError: ArithmeticError,
    FileFormatError: ValueError,
    ShapeError: ValueError,
    TargetError: ValueError,
    UnknownArgumentError: TypeError,
}


@pytest.fixture(autouse=True)
def no_fallback(monkeypatch):
    monkeypatch.delenv("XPNET_CPU_FALLBACK", raising=False)


@pytest.mark.parametrize(("call", "raises", "message"), CASES)
def test_bad_input_is_refused_in_a_message_to_act_on(call, raises, message, has, capsys):
    with pytest.raises(Exception, match=message) as caught:
        call(has)
    assert type(caught.value) is raises
    assert isinstance(caught.value, XpnetError)
    assert isinstance(caught.value, PROMISED[raises])
    assert caught.traceback[-1].path.parent.name == "xpnet"  # raised there, and nothing else came through
    assert "\n" not in str(caught.value)


# --- what is not bad, or is the operating system's to refuse


def test_a_batch_larger_than_the_data_is_the_full_batch():
    vast, full = fit(batch_size=10**9), fit(batch_size="full")
    assert np.array_equal(vast.W1, full.W1)
    assert np.array_equal(vast.b2, full.b2)


def test_more_threads_than_there_can_be_are_as_many_as_there_are():
    assert np.array_equal(fit(threads=10**30).W1, fit(threads=1).W1)


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        xpnet.load(tmp_path / "nowhere.safetensors")


def test_a_checkpoint_that_cannot_be_written_is_refused_before_training(tmp_path):
    epochs = []
    with pytest.raises((OSError, XpnetError), match="nowhere"):
        fit(checkpoint=tmp_path / "nowhere" / "run.ckpt", callbacks=epochs.append)
    assert epochs == []


@pytest.mark.parametrize(
    "keep", ["big-endian", "Fortran", "read-only", "integers", "float16", "unmasked", "long double"]
)
def test_numbers_of_another_kind_are_taken(keep):
    given = {
        "big-endian": X.astype(">f8"),
        "Fortran": np.asfortranarray(X),
        "read-only": np.frombuffer(X.tobytes()).reshape(X.shape),
        "integers": np.round(10 * X).astype(np.int16),
        "float16": X.astype(np.float16),
        "unmasked": np.ma.masked_array(X),
        "long double": X.astype(np.longdouble),
    }[keep]
    net, same = fit(given), fit(np.array(given, dtype=np.float64))
    assert np.array_equal(net.W1, same.W1)
