"""A network as one Python file: it runs where xpnet cannot be imported, and predicts the same bits."""

import ast
import csv
import dataclasses
import functools
import inspect
import math
import os
import pickle
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

import xpnet
from xpnet import cli, equations, export
from xpnet.errors import ActivationError, ArgumentError

TASKS = ["binary", "multiclass", "multilabel", "regression", "count"]
DEPTHS = [(), (6,), (6, 5, 4)]
DTYPES = ["float32", "float64"]
CASES = [
    (activation, task, hidden, dtype)
    for activation in xpnet.activations.ACTIVATIONS
    for task in TASKS
    for hidden in DEPTHS
    for dtype in DTYPES
]

ALONE = """
import pickle, runpy, sys
import numpy
sys.modules["xpnet"] = None                     # importing it is an error
with open(sys.argv[1], "rb") as examples:
    X = pickle.load(examples)
before, found = set(sys.modules), {}
for path in sys.argv[2:]:
    file = runpy.run_path(path)
    found[path] = [(file["predict_proba"](x), file["predict"](x)) for x in X]
pickle.dump((found, {name.partition(".")[0] for name in set(sys.modules) - before}), sys.stdout.buffer)
"""


def problem(task="binary", m=60):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3, m))
    score = X[0] * X[-1] + X[1]
    Y = {
        "binary": np.where(score > 0, "yes", "no"),
        "multiclass": np.digitize(score, [-0.5, 0.5]),
        "multilabel": np.stack([score > 0, X[0] > 0]).astype(int),
        "regression": np.stack([score, X[0] - X[1]]),
        "count": rng.poisson(np.exp(0.5 * score)),
    }[task]
    return X, Y


def trained(task="binary", **options):
    options = {"hidden": 6, "epochs": 5, "random_state": 0, "learning_rate": 0.02, "task": task, **options}
    return xpnet.fit(*problem(task), **options)


def examples():
    """Return X of one, of few and of more columns, in both orders."""
    X = problem(m=300)[0]
    return [X[:, :1], X[:, :7], X, np.asfortranarray(X), X.astype(np.float32)]


def alone(paths, X, folder):
    """Return what the files predict without xpnet, and the packages that they import beside NumPy."""
    with open(folder / "X.pickle", "wb") as file:
        pickle.dump(X, file)
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "X.pickle")]
    run = subprocess.run([*command, *map(str, paths)], capture_output=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr.decode()
    return pickle.loads(run.stdout)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """What the file of every network predicts in a process where xpnet cannot be imported, and the network."""
    folder = tmp_path_factory.mktemp("export")
    nets = {}
    for number, (activation, task, hidden, dtype) in enumerate(CASES):
        net = trained(task, activation=activation, hidden=hidden, dtype=dtype)
        nets[folder / f"predict_{number}.py"] = net
        net.export(folder / f"predict_{number}.py")
    found, packages = alone(nets, examples(), folder)
    return [(found[str(path)], net) for path, net in nets.items()], packages


def same(found, expected):
    """Return whether two arrays are the same bits."""
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


# Bits -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_the_file_predicts_the_same_bits_without_xpnet(number, predicted):
    found, net = predicted[0][number]
    for (A, labels), X in zip(found, examples(), strict=True):
        assert same(A, net.predict_proba(X))
        assert same(labels, net.predict(X))


def test_the_file_needs_numpy_and_python_alone(predicted):
    _, packages = predicted
    assert packages - sys.stdlib_module_names - {"numpy"} == set()


def in_process(net, folder):
    net.export(folder / "predict.py")
    return runpy.run_path(str(folder / "predict.py"))


def assert_same_bits(net, X, folder):
    file = in_process(net, folder)
    assert same(file["predict_proba"](X), net.predict_proba(X))
    assert same(file["predict"](X), net.predict(X))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("task", TASKS)
def test_features_are_standardized_in_the_file(task, dtype, tmp_path):
    X, Y = problem(task)
    X = 1.7e9 + X * [[1e3], [1.0], [1e-3]]
    net = xpnet.fit(X, Y, task=task, hidden=6, epochs=5, random_state=0, standardize=True, dtype=dtype)
    assert_same_bits(net, X, tmp_path)


@pytest.mark.parametrize("sizes", [(784, (128,)), (28, (256,)), (100, (64, 32))], ids=str)
def test_a_thousand_examples_at_a_time_are_the_same_bits(sizes, tmp_path):
    n_x, hidden = sizes
    X = np.random.default_rng(0).standard_normal((n_x, 1000))
    net = xpnet.fit(X, X[0] > 0, hidden=hidden, epochs=1, random_state=0)
    assert_same_bits(net, X, tmp_path)


def test_more_examples_than_a_block_are_the_same_up_to_rounding(tmp_path):
    X = np.random.default_rng(0).standard_normal((30, 20_001))
    net = xpnet.fit(X[:, :500], X[0, :500] > 0, hidden=(100, 50), epochs=1, random_state=0)
    found = in_process(net, tmp_path)["predict_proba"](X)
    np.testing.assert_allclose(found, net.predict_proba(X), rtol=1e-5)  # some ten roundings of float32


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint64, np.float64, str], ids=lambda kind: kind.__name__)
def test_labels_keep_their_dtype(kind, tmp_path):
    X, Y = problem("multiclass")
    net = xpnet.fit(X, (Y > 1).astype(int).astype(kind), hidden=3, epochs=1, random_state=0)
    assert_same_bits(net, X, tmp_path)


@pytest.mark.parametrize("kind", [np.int64, np.float32, bool], ids=lambda kind: kind.__name__)
def test_examples_of_other_dtypes_are_cast_as_the_network_casts_them(kind, tmp_path):
    assert_same_bits(trained(), problem()[0].astype(kind), tmp_path)


def test_a_network_of_any_namespace_is_written(backend, tmp_path):
    X, Y = problem()
    net = xpnet.fit(backend.asarray(X, "float32"), Y, hidden=4, epochs=1, batch_size="full", random_state=0)
    assert same(in_process(net, tmp_path)["predict_proba"](X), net.to("cpu").predict_proba(X))


# The text -------------------------------------------------------------------------------------------------------------


def test_the_file_has_the_lines_of_the_equations():
    lines = {line.strip() for line in export.source(trained()).splitlines()}
    body = [line.strip() for line in inspect.getsource(equations.forward).splitlines() if "# (" in line]
    assert len(body) == 2
    assert set(body) <= lines


def test_the_file_imports_no_xpnet():
    imported = [
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(export.source(trained(activation="gelu"))))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(set(imported)) == ["argparse", "base64", "csv", "numpy", "sys", "types"]


def test_the_file_is_python_of_older_versions_too():
    ast.parse(export.source(trained()), feature_version=(3, 9))


def test_the_file_names_only_what_it_has():
    tree = ast.parse(export.source(trained(activation="gelu", standardize=True)))
    found = [node.annotation for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation]
    assert not found
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]


HOSTILE = ['"""', "'''", "\\", "a\nb", "$title", "{x}", "é ✓", "#", "'); raise SystemExit #"]


def test_no_label_is_run_as_code(tmp_path):
    X = np.random.default_rng(0).standard_normal((2, 90))
    Y = np.array(HOSTILE)[np.arange(90) % len(HOSTILE)]
    assert_same_bits(xpnet.fit(X, Y, hidden=3, epochs=1, random_state=0), X, tmp_path)


def test_no_name_of_a_feature_is_run_as_code(tmp_path):
    net = dataclasses.replace(trained(), feature_names=tuple(HOSTILE[:3]))
    assert list(in_process(net, tmp_path)["FEATURES"]) == HOSTILE[:3]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_of_an_activation_is_run_as_code(name, tmp_path):
    own = xpnet.Activation(_cube, _cube_slope, name=name)
    assert_same_bits(dataclasses.replace(trained(), activation=own), problem()[0], tmp_path)


# A user's own activation ----------------------------------------------------------------------------------------------

SCALE, SHIFT, WEAK = 1.5, 2, np.float64(0.25)


def _cube(Z):
    return Z**3


def _cube_slope(Z, A):
    return 3 * Z**2


def _helped(Z: np.ndarray, *, scale: float = 0.5) -> "np.ndarray":
    """Return something that needs other functions, constants and modules."""
    return _helper(Z, SCALE) * scale + math.pi * sqrt(SHIFT) * WEAK


def _helper(Z, factor):
    kept: np.ndarray = Z * factor  # the annotation goes, the comment stays
    return np.where(kept > 0, kept, sum(part * 0.0 for part in (1.0, SHIFT)))


def _with_namespace(Z, *, xp):
    return xp.tanh(Z)


sqrt = math.sqrt
# fmt: off
first, second = (lambda Z: Z + Z), (lambda Z: Z * Z)
two_lines = (lambda Z: Z  # noqa: E731
             + 2.0)
# fmt: on


def _made(factor):
    def scaled(Z):
        return factor * Z

    return scaled


OWN = {
    "a function": _cube,
    "a function with all that it needs": _helped,
    "one that takes xp": _with_namespace,
    "NumPy's own": np.tanh,
    "a lambda": lambda Z: Z + 1.0,
    "the first of two lambdas": first,
    "the second of two lambdas": second,
    "a lambda of two lines": two_lines,
    "a closure": _made(2.5),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OWN)
def test_an_activation_of_ones_own_is_in_the_file(name, dtype, tmp_path):
    net = dataclasses.replace(trained(dtype=dtype), activation=xpnet.Activation(OWN[name], np.ones_like, name=name))
    net.export(tmp_path / "predict.py")
    X = problem()[0]
    found, _ = alone([tmp_path / "predict.py"], [X], tmp_path)
    assert same(found[str(tmp_path / "predict.py")][0][0], net.predict_proba(X))


TABLE = np.ones(3)


def _needs_an_array(Z):
    return Z * TABLE[0]


def _needs_scipy(Z):
    return special.erf(Z)


def predict(Z):
    return Z


def sigmoid_of_its_own(Z):
    return _sigmoid(Z)


def _sigmoid(Z):
    return 2.0 * Z


def _calls_scipys(Z):
    return erf(Z)


special = pytest.importorskip("scipy.special")
erf = special.erf
exec("def _unseen(Z):\n    return Z")

UNWRITABLE = {
    "an array": (_needs_an_array, "it needs TABLE, a ndarray"),
    "another package": (_needs_scipy, "it needs scipy"),
    "another package's function": (special.erf, "erf is not NumPy's"),
    "one that calls it": (_calls_scipys, "erf is not NumPy's"),
    "a function without source": (globals()["_unseen"], "its source cannot be read"),
    "a partial function": (functools.partial(_helper, factor=2.0), "is no function written in Python"),
    "a vectorized one": (np.vectorize(math.erf), "is no function written in Python"),
    "a name of the file's": (predict, "its predict would meet another predict"),
    "the head's name": (sigmoid_of_its_own, "its _sigmoid would meet another _sigmoid"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_an_activation_that_does_not_stand_alone_is_refused(name, tmp_path):
    function, why = UNWRITABLE[name]
    net = dataclasses.replace(trained(), activation=xpnet.Activation(function, np.ones_like, name="own"))
    with pytest.raises(ActivationError, match=f"^The activation 'own' must .*{why}"):
        net.export(tmp_path / "predict.py")


def test_an_activation_whose_defaults_need_more_is_refused(tmp_path):
    def g(Z, factor=SCALE):
        return factor * Z

    net = dataclasses.replace(trained(), activation=xpnet.Activation(g, np.ones_like))
    with pytest.raises(ActivationError, match="alone it raises NameError: name 'SCALE'"):
        net.export(tmp_path / "predict.py")


# Wrong examples -------------------------------------------------------------------------------------------------------

WRONG = {
    "rows": (np.zeros((5, 3)), r"X must be \(3, m\).*X\.T"),
    "one axis": (np.zeros(3), r"X must be \(3, m\)"),
    "none": (np.zeros((3, 0)), r"X must be \(3, m\)"),
    "nan": (np.full((3, 2), np.nan), "X must be finite"),
    "too large": (np.full((3, 2), 1e300), "fit in float32"),
    "words": (np.full((3, 2), "a"), "X must be real numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_examples_that_cannot_be_used_are_refused(name, tmp_path):
    X, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        in_process(trained(), tmp_path)["predict"](X)


# The command ----------------------------------------------------------------------------------------------------------


def command(folder, *arguments):
    run = [sys.executable, "-I", "-c", "import sys; sys.modules['xpnet'] = None; import runpy; del sys.argv[0]\n"]
    run[-1] += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run([*run, "predict.py", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def named(net):
    return dataclasses.replace(net, feature_names=("a", "b", "c"))


def write_table(path, X, names=("b", "note", "a", "c")):
    rows = [[X[1, i], "x", X[0, i], X[2, i]] for i in range(X.shape[1])]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


@pytest.mark.parametrize("proba", [[], ["--proba"]], ids=["labels", "probabilities"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_the_command_writes_what_xpnet_predict_writes(task, proba, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    net = named(trained(task))
    net.export(tmp_path / "predict.py")
    net.save(tmp_path / "net.safetensors")
    write_table(tmp_path / "new.csv", problem(m=20)[0])
    run = command(tmp_path, "new.csv", *proba)
    assert cli.main(["predict", str(tmp_path / "net.safetensors"), str(tmp_path / "new.csv"), *proba]) == 0
    assert (run.returncode, run.stderr, run.stdout) == (0, "", capsys.readouterr().out)


@pytest.mark.parametrize("task", TASKS)
def test_the_command_writes_a_file_of_rows(task, tmp_path):
    net = trained(task)
    net.export(tmp_path / "predict.py")
    X = problem(m=20)[0]
    np.save(tmp_path / "new.npy", X.T)
    assert command(tmp_path, "new.npy", "out.npy").returncode == 0
    assert same(np.load(tmp_path / "out.npy"), np.ascontiguousarray(net.predict(X).T))


def test_the_command_writes_a_csv_file(tmp_path):
    net = trained()
    net.export(tmp_path / "predict.py")
    X = problem(m=20)[0]
    np.save(tmp_path / "new.npy", X.T)
    assert command(tmp_path, "new.npy", "out.csv").stdout == ""
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == net.predict(X).tolist()


def test_a_table_of_unnamed_features_is_read_in_its_order(tmp_path):
    net = trained()
    net.export(tmp_path / "predict.py")
    X = problem(m=20)[0]
    (tmp_path / "new.csv").write_text("u,v,w\n" + "".join(f"{a!r},{b!r},{c!r}\n" for a, b, c in X.T.tolist()))
    assert command(tmp_path, "new.csv").stdout.split() == ["prediction", *net.predict(X).tolist()]


BAD = {
    "nowhere.csv": (None, "nowhere.csv"),
    "empty.csv": ("", "must have a line of names"),
    "names.csv": ("a,b,c\n", "must have a line of names"),
    "lacking.csv": ("a,b\n1,2\n", r"must have the columns \['c'\]"),
    "words.csv": ("a,b,c\n1,2,x\n", "could not convert"),
    "ragged.csv": ("a,b,c\n1,2\n", "must have 3 values on every line"),
    "missing.csv": ("a,b,c\n1,2,nan\n", "X must be finite"),
    "wrong.npy": ("not an array", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_one_line_and_exit_code_2(name, tmp_path):
    text, message = BAD[name]
    named(trained()).export(tmp_path / "predict.py")
    if text is not None:
        (tmp_path / name).write_text(text)
    run = command(tmp_path, name)
    assert (run.returncode, run.stdout) == (2, "")
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("predict.py: ")
    assert re.search(message, run.stderr)


# The file -------------------------------------------------------------------------------------------------------------


def test_a_file_that_was_there_stays_when_the_network_cannot_be_written(tmp_path):
    path = tmp_path / "predict.py"
    path.write_text("before")
    net = dataclasses.replace(trained(), activation=xpnet.Activation(_needs_scipy, np.ones_like))
    with pytest.raises(ActivationError):
        net.export(path)
    assert path.read_text() == "before"


def test_nothing_is_left_beside_the_file(tmp_path):
    trained().export(str(tmp_path / "predict.py"))
    assert os.listdir(tmp_path) == ["predict.py"]


def test_a_device_is_not_replaced():
    with pytest.raises(ArgumentError, match="is a pipe, a socket or a device"):
        trained().export(os.devnull)


def test_more_parameters_than_a_file_should_hold_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "LARGEST", 100)
    with pytest.raises(ArgumentError, match=r"this network has .* MiB\. Use net\.save"):
        trained().export(tmp_path / "predict.py")
