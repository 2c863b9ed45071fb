"""The command: what it prints, what it writes, and the one line that it says when something is wrong."""

import contextlib
import gzip
import io
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

import xpnet
from xpnet import activations, data, files, network, tables
from xpnet.activations import Activation
from xpnet.cli import main
from xpnet.device import cuda_problem

FLOAT32 = 1e-4  # predictions of hundreds that float32 rounds at 1e-7, summed over 64 units
no_cuda = pytest.mark.skipif(cuda_problem() is None, reason="CUDA works here, so nothing is refused")
posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as POSIX has them")


@pytest.fixture
def run(capsys):
    """Run the command here; the code it returns, its lines on stdout, and stderr."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


@pytest.fixture
def refusal(run, tmp_path):
    """Run the command here, which must refuse: code 2, nothing on stdout, nothing written; the one line on stderr."""

    def refusal(*arguments):
        before = everything(tmp_path)
        code, out, err = run(*arguments)
        assert (code, out) == (2, [])
        assert err.startswith("xpnet: error: ")
        assert err.endswith("\n")
        assert err[:-1].isprintable()  # one line, and nothing that a terminal would obey
        assert everything(tmp_path) == before
        return err.removeprefix("xpnet: error: ").rstrip("\n")

    return refusal


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(xpnet.__file__))}


def command(*arguments):
    return [sys.executable, "-m", "xpnet", *map(str, arguments)]


def finished(arguments, *, environment=None, **options):
    """Run a process of its own to its end."""
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=ENVIRONMENT | (environment or {}),
        **options,
    )


def started(*arguments, **options):
    """Start the command in a process of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT} | options
    return subprocess.Popen(command(*arguments), **options)


def shown(lines):
    """Return the results by their labels."""
    return {line[:12].strip(): line[12:] for line in lines if line[:12].strip()}


@pytest.fixture
def flower(tmp_path):
    """The flower as .csv, whose colors are words."""
    pytest.importorskip("pyarrow")
    X, Y = xpnet.datasets.flower()
    path = tmp_path / "flower.csv"
    rows = [f"{x!r},{y!r},{('blue', 'red')[color]}\n" for (x, y), color in zip(X.T.tolist(), Y, strict=True)]
    path.write_text("x,y,color\n" + "".join(rows))
    return path


@pytest.fixture
def line_of_numbers(tmp_path):
    """y = 1000 + 50 a − 20 b + noise, as .npy."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((300, 2))
    y = 1000.0 + X @ [50.0, -20.0] + generator.standard_normal(300)
    path = tmp_path / "line.npy"
    np.save(path, np.column_stack([X, y]))
    return path


@pytest.fixture
def net(flower, run):
    path = flower.parent / "net.safetensors"
    code, *_ = run("fit", flower, "--target", "color", "--epochs", 3, "--random-state", 0, "--out", path)
    assert code == 0
    return path


# demo


def test_the_demo_prints_the_lectures_costs():
    done = finished(command("demo"))
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"^Cost after iteration (\d+): (\d\.\d{6})$", done.stdout, re.MULTILINE)
    assert [int(iteration) for iteration, _ in found] == list(range(0, 10_000, 1_000))
    costs = [float(cost) for _, cost in found]
    assert costs[0] == pytest.approx(math.log(2), abs=1e-4)  # weights near 0 say ½ of every point
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.3
    network, line = (float(number) for number in re.findall(r" (\d\d\.\d)%", done.stdout))
    assert network >= 90.0  # the course's: 90 %
    assert line <= 60.0  # the course's: 47 %
    assert all(len(text) < 80 for text in done.stdout.splitlines())


def test_the_demo_needs_the_core_alone():
    code = """
import sys
from xpnet.cli import main
assert main(["demo", "--iterations", "10"]) == 0
loaded = {"pyarrow", "pandas", "sklearn", "scipy", "torch", "jax", "cupy", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
"""
    done = finished([sys.executable, "-c", code])
    assert done.stderr == ""


def test_one_seed_gives_one_demo(run):
    def costs(*options):
        return [line for line in run("demo", "--iterations", 1001, *options)[1] if line.startswith("Cost")]

    assert costs() == costs("--random-state", 3) != costs("--random-state", 4)


@posix
def test_ctrl_c_ends_the_demo_without_a_traceback():
    with started("demo", "--iterations", 10**9) as demo:
        while not demo.stdout.readline().startswith("Cost after iteration 1000:"):
            assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (130, "")


# demo: the picture


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_the_demo_draws_its_network(run, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"flower{suffix}"
    code, lines, err = run("demo", "--iterations", 10, "--plot", path)
    assert (code, err) == (0, "")
    assert lines[-1] == f"The points and the regions of this network are drawn in {path}."
    beginning = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]
    assert path.read_bytes().startswith(beginning)
    assert list(tmp_path.iterdir()) == [path]


def test_the_demos_picture_has_points_of_both_colors_and_both_regions(run, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    run("demo", "--iterations", 2000, "--plot", tmp_path / "flower.png")
    pixels = image.imread(tmp_path / "flower.png")
    shades = {"blue": (0, 114, 178), "vermillion": (213, 94, 0), "0": (121, 180, 214), "1": (237, 162, 103)}
    for name, shade in shades.items():
        near = np.abs(pixels[..., :3] * 255 - shade).max(axis=-1) < 16  # regions are shaded by their probability
        assert near.sum() > 400, name


def test_the_demo_shows_no_window_and_leaves_no_figure(run, tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_fignums()
    run("demo", "--iterations", 10, "--plot", tmp_path / "flower.png")
    assert plt.get_fignums() == before


PICTURES = {
    "another format": ("flower.bmp", "--plot must end in .png, .svg or .pdf; it is 'HERE/flower.bmp'."),
    "no folder": ("no/flower.png", "--plot must be in a folder that is there; 'HERE/no' is not. Make it first."),
}


@pytest.mark.parametrize(("name", "message"), PICTURES.values(), ids=PICTURES)
def test_where_the_demo_cannot_draw_is_said_before_the_work(refusal, tmp_path, name, message):
    assert refusal("demo", "--plot", tmp_path / name) == message.replace("HERE", str(tmp_path))


def test_without_matplotlib_the_extra_is_named(refusal, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refusal("demo", "--plot", tmp_path / "flower.png")
    assert re.fullmatch(r'A plot needs matplotlib, which .*\. Run: pip install "xpnet\[plot\]"', said)


# fit: what it says and writes


def test_fit_says_what_it_did(run, flower):
    out = flower.parent / "net.safetensors"
    code, lines, err = run(
        *("fit", flower, "--target", "color", "--hidden", "16,8", "--activation", "tanh", "--epochs", 20),
        *("--random-state", 5, "--dtype", "float64", "--device", "cpu", "--out", out),
    )
    assert (code, err) == (0, "")
    said = shown(lines)
    assert list(said) == ["task", "network", "rows", "epochs", "time", "seed", "accuracy", "written"]
    assert said["task"] == "binary, 2 classes: blue, red"
    assert said["network"] == "2-16-8-1, tanh"
    assert said["rows"] == "320 to train on, 80 held out"
    assert said["epochs"] == "20, stopped by --epochs 20"
    assert re.fullmatch(r"\d+\.\d\d s on cpu, float64", said["time"])
    assert said["seed"] == "5 (the same again with --random-state 5)"
    assert re.fullmatch(r"[01]\.\d{4} on the rows held out", said["accuracy"])
    assert said["written"] == str(out)
    saved = xpnet.load(out)
    assert (saved.sizes, saved.feature_names, saved.random_state) == ((2, 16, 8, 1), ("x", "y"), 5)
    assert saved.classes.tolist() == ["blue", "red"]


def test_fit_says_that_nothing_was_written(run, flower):
    said = shown(run("fit", flower, "--target", "color", "--epochs", 1)[1])
    assert said["written"] == "nothing; to keep the network: --out net.safetensors"
    assert list(flower.parent.iterdir()) == [flower]


def test_fit_says_that_patience_stopped_it(run, flower):
    said = shown(run("fit", flower, "--target", "color", "--hidden", "none", "--patience", 2, "--epochs", 1000)[1])
    assert re.fullmatch(r"\d+, stopped by --patience 2: the cost fell no further", said["epochs"])
    assert said["network"] == "2-1"


def test_patience_none_never_stops(run, flower):
    said = shown(run("fit", flower, "--target", "color", "--hidden", "", "--patience", "none", "--epochs", 500)[1])
    assert said["epochs"] == "500, stopped by --epochs 500"


def test_fit_is_the_librarys_fit(run, tmp_path):
    X, Y = xpnet.datasets.flower()
    np.savez(tmp_path / "flower.npz", X=X.T, Y=Y)
    out = tmp_path / "net.safetensors"
    code, lines, err = run(
        *("fit", tmp_path / "flower.npz", "--target", "Y", "--test-fraction", 0, "--random-state", 1, "--epochs", 5),
        *("--optimizer", "momentum", "--learning-rate", 0.05, "--l2", 0.1, "--batch-size", 50, "--hidden", 8),
        *("--validation-fraction", 0.25, "--class-weight", "balanced", "--threads", 1, "--out", out, "--quiet"),
    )
    assert (code, err) == (0, "")
    assert "accuracy" not in shown(lines)
    ours = xpnet.fit(
        X,
        Y,
        random_state=1,
        epochs=5,
        optimizer="momentum",
        learning_rate=0.05,
        l2=0.1,
        batch_size=50,
        hidden=8,
        validation_fraction=0.25,
        class_weight="balanced",
        standardize=True,
    )
    theirs = xpnet.load(out)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        np.testing.assert_array_equal(mine.W, other.W)
        np.testing.assert_array_equal(mine.b, other.b)


@pytest.mark.parametrize(("numbers", "standardized"), [((), True), (("--no-standardize",), False)])
def test_features_are_standardized_unless_told_otherwise(run, flower, numbers, standardized):
    out = flower.parent / "net.safetensors"
    assert run("fit", flower, "--target", "color", "--epochs", 1, "--out", out, *numbers)[0] == 0
    assert (xpnet.load(out).scaling is not None) == standardized


def test_every_format_gives_the_same_network(run, flower):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    given = tables.read_labeled(str(flower), "color")
    X = np.column_stack([np.asarray(given.X[name]) for name in ("x", "y")])
    labels = (given.Y == "red").astype(np.int64)
    folder = flower.parent
    pq.write_table(pa.table({"x": X[:, 0], "y": X[:, 1], "color": labels}), folder / "flower.parquet")
    np.save(folder / "flower.npy", np.column_stack([X, labels]))
    np.savez(folder / "flower.npz", X=X, color=labels)
    weights = []
    for name, target in (("csv", "color"), ("parquet", "color"), ("npy", "-1"), ("npz", "color")):
        out = folder / f"{name}.safetensors"
        arguments = ("--target", target, "--epochs", 2, "--random-state", 0, "--out", out)
        assert run("fit", folder / f"flower.{name}", *arguments)[0] == 0
        weights.append(xpnet.load(out).W1)
    for others in weights[1:]:
        np.testing.assert_array_equal(others, weights[0])


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_a_large_file_is_trained_on_and_predicted_as_a_small_one(run, tmp_path, monkeypatch, kind):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, generator = tmp_path / f"rows.{kind}", np.random.default_rng(5)
    rows = generator.standard_normal((900, 4))
    rows[:, 2] = rows[:, 0] > rows[:, 1]
    if kind == "npy":
        np.save(path, rows)
    else:
        columns = dict(zip("abyd", rows.T, strict=True)) | {"__index_level_0__": np.arange(900)}
        pq.write_table(pa.table(columns), path, row_group_size=77)
    for name, value in (("RUN", 16), ("WINDOW", 160), ("PERMUTED", 64), ("READ", 100)):
        monkeypatch.setattr(data, name, value)
    monkeypatch.setattr(network, "PREDICTED", 3_000)
    found = []
    for size in ("small", "large"):
        monkeypatch.setattr(tables, "LARGE", 100 if size == "large" else 10**9)
        out, predictions = tmp_path / f"{size}.safetensors", tmp_path / f"{size}.csv"
        target, drop = ("2", "3") if kind == "npy" else ("y", "d")
        fitted = ("--target", target, "--drop", drop, "--epochs", 3, "--random-state", 0, "--out", out)
        code, lines, err = run("fit", path, *fitted)
        assert code == 0
        source = path
        if kind == "npy":
            source = tmp_path / "features.npy"
            np.save(source, rows[:, :2])
        assert run("predict", out, source, "--proba", "--out", predictions)[0] == 0
        kept = {label: text for label, text in shown(lines).items() if label not in ("time", "written")}
        found.append((kept, err, predictions.read_text(), xpnet.load(out).W1.tobytes()))
    assert found[0] == found[1]


def test_a_hole_in_a_large_file_is_named(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LARGE", 100)
    rows = np.random.default_rng(5).standard_normal((900, 4))
    rows[700, 1] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    message = refusal("fit", tmp_path / "rows.npy", "--target", "3", "--task", "regression", "--random-state", 0)
    assert message.startswith(f"{tmp_path / 'rows.npy'} must be finite; feature 1 of example 700 is nan.")


def test_the_seed_that_is_printed_repeats_the_run(run, flower):
    def results(*options):
        code, lines, _ = run("fit", flower, "--target", "color", "--epochs", 5, *options)
        assert code == 0
        return {key: value for key, value in shown(lines).items() if key != "time"}

    first = results()
    assert results("--random-state", first["seed"].split()[0]) == first


def test_the_held_out_rows_are_never_trained_on(run, line_of_numbers):
    out = line_of_numbers.parent / "net.safetensors"
    run("fit", line_of_numbers, "--target", -1, "--epochs", 1, "--random-state", 3, "--out", out)
    data = np.load(line_of_numbers)
    held_out = np.random.default_rng([3, 3]).permutation(300)[:60]
    training = np.delete(data, held_out, axis=0)
    np.testing.assert_allclose(xpnet.load(out).scaling[0], training[:, :2].mean(axis=0), rtol=1e-12)


def test_numbers_to_predict_are_scaled_back(run, line_of_numbers):
    out = line_of_numbers.parent / "net.safetensors"
    code, lines, err = run(
        *("fit", line_of_numbers, "--target", -1, "--hidden", "none", "--optimizer", "lbfgs", "--random-state", 0),
        *("--out", out),
    )
    assert (code, err) == (0, "")
    said, data = shown(lines), np.load(line_of_numbers)
    assert said["task"] == "regression"
    assert float(said["R²"].split()[0]) > 0.99  # noise of 1 in a spread of 54
    predicted = xpnet.load(out).predict(data[:, :2], examples="rows")[0]
    # Least squares on all rows, in place of those trained on, moves a coefficient by its standard error: 1/√300.
    design = np.column_stack([data[:, :2], np.ones(300)])
    best = design @ np.linalg.lstsq(design, data[:, 2], rcond=None)[0]
    np.testing.assert_allclose(predicted, best, atol=0.5)


def test_a_target_too_large_for_its_dtype_is_refused(refusal, tmp_path):
    np.save(tmp_path / "large.npy", np.asarray([[0.5, 1e20], [1.5, 0.25], [2.0, 1.0]]))
    assert refusal("fit", tmp_path / "large.npy", "--target", 1, "--test-fraction", 0) == (
        "The target must be within ±1.8e+19 to be standardized in float32; the largest is 1e+20. Scale it first."
    )


def test_a_constant_target_is_predicted(run, tmp_path):
    np.save(tmp_path / "constant.npy", np.column_stack([np.arange(20.0), np.full(20, 7.5)]))
    out = tmp_path / "net.safetensors"
    assert (
        run("fit", tmp_path / "constant.npy", "--target", 1, "--hidden", "", "--optimizer", "lbfgs", "--out", out)[0]
        == 0
    )
    np.testing.assert_allclose(xpnet.load(out).predict([[3.0, 4.0]]), 7.5, atol=1e-2)


def test_counts_are_told_better_by_poisson_than_by_squares(run, tmp_path):
    generator = np.random.default_rng(0)
    X = generator.uniform(-1, 1, (1_200, 2))
    Y = generator.poisson(np.exp(1.5 * np.sin(3 * X[:, 0]) + X[:, 1]))
    np.save(tmp_path / "counts.npy", np.column_stack([X, Y])[:800])
    np.save(tmp_path / "held.npy", X[800:])

    def deviance(task):
        net = tmp_path / f"{task}.safetensors"
        options = ("--target", -1, "--task", task, "--hidden", 30, "--random-state", 0, "--quiet")
        assert run("fit", tmp_path / "counts.npy", *options, "--out", net)[0] == 0
        code, (_, *lines), _ = run("predict", net, tmp_path / "held.npy")
        assert code == 0
        rates = np.maximum([float(line) for line in lines], 1e-3)  # squares predict rates below 0
        return np.mean(np.where(Y[800:] > 0, Y[800:] * np.log(np.maximum(Y[800:], 1) / rates), 0) - Y[800:] + rates)

    assert deviance("count") < deviance("regression")


def test_counts_are_scored_by_d2(run, tmp_path):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((400, 1))
    np.save(tmp_path / "counts.npy", np.column_stack([X, generator.poisson(np.exp(1.0 + X[:, 0]))]))
    options = ("--target", 1, "--task", "count", "--hidden", "none", "--optimizer", "lbfgs", "--random-state", 0)
    code, lines, err = run("fit", tmp_path / "counts.npy", *options)
    assert (code, err) == (0, "")
    assert float(shown(lines)["D²"].split()[0]) > 0.4


def test_several_targets_are_predicted_in_columns_of_their_own(run, tmp_path):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((200, 3))
    np.savez(tmp_path / "two.npz", X=X, Y=X @ generator.standard_normal((3, 2)) + [100.0, -5.0])
    out = tmp_path / "net.safetensors"
    options = ("--hidden", "none", "--optimizer", "lbfgs", "--random-state", 0, "--out", out)
    code, lines, _ = run("fit", tmp_path / "two.npz", "--target", "Y", *options)
    assert code == 0
    assert shown(lines)["task"] == "regression, 2 outputs"
    assert float(shown(lines)["R²"].split()[0]) > 0.999
    code, lines, _ = run("predict", out, tmp_path / "two.npz")
    assert (code, lines[0], len(lines)) == (0, "prediction_0,prediction_1", 201)


def test_long_lists_are_cut_and_wrapped(run, tmp_path):
    labels = np.asarray([f"a class with a long name {i % 15:02}" for i in range(150)])
    np.savez(tmp_path / "many.npz", X=np.arange(150.0)[:, None], y=labels)
    code, lines, _ = run("fit", tmp_path / "many.npz", "--target", "y", "--epochs", 1, "--random-state", 0)
    assert code == 0
    assert all(len(line) < 80 for line in lines)
    assert "and 5 more" in "\n".join(lines)


def test_warnings_are_one_line_on_stderr(run, line_of_numbers):
    code, lines, err = run(
        "fit", line_of_numbers, "--target", -1, "--no-standardize", "--epochs", 1, "--random-state", 0
    )
    assert code == 0
    assert shown(lines)["task"] == "regression"
    assert err == (
        "xpnet: warning: The target is large (size 1e+03), and weights that start near 1 are slow to reach it. Leave "
        "out --no-standardize.\n"
    )


def test_warnings_of_features_name_the_option(run, tmp_path):
    np.save(tmp_path / "large.npy", np.column_stack([1e6 * np.arange(1.0, 41), np.arange(40) % 2]))
    _, _, err = run(
        "fit", tmp_path / "large.npy", "--target", 1, "--no-standardize", "--epochs", 1, "--random-state", 0
    )
    assert err.startswith("xpnet: warning: X has badly scaled features, on which gradient descent is slow: feature 0 ")
    assert err.endswith(". Leave out --no-standardize.\n")
    assert err.count("\n") == 1


def test_row_numbers_of_pandas_are_named_in_a_warning(run, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.csv"
    path.write_text(",a,y\n" + "".join(f"{i},{i * i % 7},{i % 2}\n" for i in range(40)))
    code, _, err = run("fit", path, "--target", "y", "--epochs", 1)
    assert (code, err) == (
        0,
        f"xpnet: warning: {path} has the column '', in which pandas keeps row numbers; it is left out.\n",
    )


def test_progress_is_shown_on_a_terminal_alone(flower, monkeypatch, capsys):
    arguments = ["fit", str(flower), "--target", "color", "--epochs", "3"]

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for quiet, expected in (([], True), (["--quiet"], False)):
        terminal = Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", terminal)
            assert main([*arguments, *quiet]) == 0
        assert ("3/3" in terminal.getvalue()) == expected
        assert "/3 [" not in capsys.readouterr().out


# fit: real data, held out

LBFGS = ("--optimizer", "lbfgs", "--hidden", 64)
REAL = {
    # Over 20 seeds: 0.947 to 0.991, 18 of them 0.96 or more, as 114 rows make it.
    "breast_cancer": ("csv", 0.96, (*LBFGS, "--l2", 10)),
    # Over 20 seeds: 0.944 to 1.0 of 36 rows, 19 of them 0.95 or more.
    "wine": ("parquet", 0.95, (*LBFGS, "--l2", 10)),
    # Over 20 seeds: 0.97 to 0.99.
    "digits": ("csv", 0.96, (*LBFGS, "--l2", 1)),
    # Over 20 seeds: 0.43 to 0.56, of 177 rows held out.
    "diabetes": ("parquet", 0.40, (*LBFGS, "--l2", 20, "--task", "regression", "--test-fraction", 0.4)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_is_learned(run, tmp_path, name):
    datasets, pa = pytest.importorskip("sklearn.datasets"), pytest.importorskip("pyarrow")
    suffix, least, options = REAL[name]
    bunch = getattr(datasets, f"load_{name}")()
    columns = {str(key): bunch.data[:, i] for i, key in enumerate(bunch.feature_names)}
    words = name in ("breast_cancer", "wine")
    target = np.asarray(bunch.target_names)[bunch.target].tolist() if words else bunch.target
    path = tmp_path / f"{name}.{suffix}"
    tables.write(str(path), [{**columns, "what it is": np.asarray(target)}])
    assert pa.__name__ == "pyarrow"
    scores = []
    for seed in range(5):
        code, lines, err = run("fit", path, "--target", "what it is", "--random-state", seed, *options)
        assert (code, err) == (0, "")
        scores.append(float(next(line for line in lines if "on the rows held out" in line).split()[1]))
    assert min(scores) >= least


# fit: checkpoints and interruptions


def test_a_checkpoint_is_resumed_without_its_seed(run, flower):
    checkpoint, out = flower.parent / "run.ckpt", flower.parent / "net.safetensors"
    arguments = ("fit", flower, "--target", "color", "--checkpoint", checkpoint)
    first = shown(run(*arguments, "--epochs", 4)[1])
    second = shown(run(*arguments, "--epochs", 9, "--out", out)[1])
    assert second["seed"] == first["seed"]
    assert second["epochs"] == "9, stopped by --epochs 9"
    seed = first["seed"].split()[0]
    whole = flower.parent / "whole.safetensors"
    run("fit", flower, "--target", "color", "--epochs", 9, "--random-state", seed, "--out", whole)
    np.testing.assert_array_equal(xpnet.load(out).W1, xpnet.load(whole).W1)


def test_a_checkpoint_of_another_fit_is_refused(run, refusal, flower):
    checkpoint = flower.parent / "run.ckpt"
    arguments = ("fit", flower, "--target", "color", "--checkpoint", checkpoint, "--epochs", 2)
    run(*arguments)
    assert refusal(*arguments, "--learning-rate", 0.5) == (
        f"The checkpoint {checkpoint} belongs to another fit: --learning-rate was 0.001, is 0.5. Repeat that call, or "
        "name another file."
    )


def test_a_network_is_no_checkpoint(refusal, flower, net):
    assert refusal("fit", flower, "--target", "color", "--checkpoint", net) == (
        f"'{net}' is a network, not a checkpoint: open it with xpnet.load(...), and go on from it with "
        "fit(..., initial=...)"
    )


@posix
def test_ctrl_c_keeps_the_network_so_far(flower):
    import termios  # POSIX has it

    out, checkpoint = flower.parent / "net.safetensors", flower.parent / "run.ckpt"
    arguments = ("--epochs", 10**7, "--patience", "none", "--out", out, "--checkpoint", checkpoint)
    terminal, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with started("fit", flower, "--target", "color", *arguments, stderr=theirs) as fit:
        os.close(theirs)
        said = b""
        while not re.search(rb"[1-9]\d*/10000000", said):  # the bar: training has begun
            said += os.read(terminal, 4096)
        fit.send_signal(signal.SIGINT)
        out_text = fit.stdout.read()
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while more := os.read(terminal, 4096):
                said += more
    os.close(terminal)
    saved = xpnet.load(out)
    assert fit.returncode == 0
    assert said.decode().splitlines()[-1] == f"xpnet: interrupted: this is the network after {saved.epochs_run} epochs."
    assert b"Traceback" not in said
    results = shown(out_text.splitlines())
    assert results["epochs"] == f"{saved.epochs_run}, stopped by Ctrl-C"
    assert results["written"] == str(out)
    assert checkpoint.exists()


@posix
def test_sigterm_writes_the_checkpoint_and_the_same_command_goes_on(run, flower):
    checkpoint, out, straight = (
        flower.parent / name for name in ("run.ckpt", "net.safetensors", "straight.safetensors")
    )
    arguments = ("fit", flower, "--target", "color", "--patience", "none", "--random-state", 5, "--hidden", 8)
    resumed = (*arguments, "--checkpoint", checkpoint)
    with started(*resumed, "--epochs", 10**7, "--checkpoint-every", "epoch") as fit:
        while not checkpoint.exists():
            time.sleep(0.001)
        fit.terminate()
        said = fit.communicate()
    assert (fit.returncode, said) == (143, ("", f"xpnet: terminated: the same command goes on from {checkpoint}.\n"))
    tensors, _ = files.read(checkpoint, kind="checkpoint")
    epochs = tensors["history.cost"].size + 2
    run(*resumed, "--epochs", epochs, "--out", out)
    run(*arguments, "--epochs", epochs, "--out", straight)
    assert xpnet.load(out).history["cost"] == xpnet.load(straight).history["cost"]
    np.testing.assert_array_equal(xpnet.load(out).W2, xpnet.load(straight).W2)


@pytest.mark.parametrize("every", ["epoch", "3 steps", "0.01", "60"])
def test_checkpoints_are_as_far_apart_as_asked(run, flower, every):
    checkpoint = flower.parent / "run.ckpt"
    arguments = ("--epochs", 2, "--checkpoint", checkpoint, "--checkpoint-every", every)
    code, _, err = run("fit", flower, "--target", "color", *arguments)
    assert (code, err, checkpoint.exists()) == (0, "", True)


# features


@pytest.fixture
def people(tmp_path):
    """A table with words, gaps and bools, as .csv; whether they are there depends on the city and the age."""
    pytest.importorskip("pyarrow")
    generator = np.random.default_rng(0)
    lines = ["city,zone,age,member,there"]
    for i in range(200):
        city, age = generator.choice(["Rome", "Oslo", ""]), generator.integers(20, 60)
        there = "yes" if city == "Rome" or age > 50 else "no"
        lines.append(f"{city},{i % 3 + 1}{'A' * (i % 3 == 2)},{'' if i % 7 == 0 else age},{bool(i % 2)},{there}")
    path = tmp_path / "people.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def fit_people(run, people):
    """Fit a network to the table, and return what is said and where the network is."""

    def fitted(*options):
        out = people.parent / "people.safetensors"
        arguments = ("--target", "there", "--random-state", 0, "--epochs", 60, "--out", out)
        code, lines, err = run("fit", people, *arguments, *options)
        assert (code, err) == (0, "")
        return shown(lines), out

    return fitted


def test_words_and_gaps_are_treated_as_asked(fit_people):
    said, out = fit_people("--features", "city=onehot,zone=onehot,age=median")
    assert list(said) == ["task", "network", "features", "rows", "epochs", "time", "seed", "accuracy", "written"]
    assert said["network"] == "8-100-1, relu"
    assert said["features"] == "city (one-hot of 3), zone (one-hot of 3), age (missing: 41), member"
    assert float(said["accuracy"][:6]) >= 0.8
    assert xpnet.load(out).features.words == ("city", "zone")


SPELLED = {
    "auto": (["--features", "auto"], ("city", "zone", "age", "member")),
    "auto but for some": (["--features", "auto,zone=drop"], ("city", "age", "member")),
    "auto last": (["--features", "zone=drop,auto"], ("city", "age", "member")),
    "several times": (["--features", "auto", "--features", "zone=drop", "--features", "member=drop"], ("city", "age")),
    "all": (["--features", "city=onehot,zone=drop,age=-1.5,member=onehot"], ("city", "age", "member")),
    "dropped otherwise": (["--features", "auto", "--drop", "zone"], ("city", "age", "member")),
}


@pytest.mark.parametrize(("options", "columns"), SPELLED.values(), ids=SPELLED)
def test_treatments_are_spelled_in_several_ways(fit_people, options, columns):
    _, out = fit_people(*options)
    assert xpnet.load(out).features.columns == columns


def test_a_column_with_a_comma_or_a_sign_in_its_name_is_treated(run, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_text('"home, town",a=b,y\n' + "u,1,0\nv,,1\n" * 20)
    out = tmp_path / "net.safetensors"
    option = ("--features", '"home, town=onehot",a=b=mean')
    assert run("fit", tmp_path / "t.csv", "--target", "y", "--epochs", 1, "--out", out, *option)[0] == 0
    assert xpnet.load(out).feature_names == ("home, town=u", "home, town=v", "a=b")


def test_the_treatments_that_a_message_advises_work(run, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_text('"home, town",b,y\n' + "u,1,0\nv,2,1\n" * 20)
    arguments = ("fit", tmp_path / "t.csv", "--target", "y", "--epochs", 1)
    _, _, err = run(*arguments)
    advised = shlex.split(err.rpartition("pass ")[2].strip().rstrip("."))
    assert advised == ["--features", '"home, town=onehot"']
    assert run(*arguments, *advised)[0] == 0


def test_predictions_treat_what_training_treated(run, fit_people, people):
    _, out = fit_people("--features", "auto")
    lines = people.read_text().splitlines()
    few = people.parent / "few.csv"  # in another order, without the target, and zones that look like numbers
    cells = [line.split(",") for line in lines[:3]]
    few.write_text("".join(f"{member},{age},{zone},{city}\n" for city, zone, age, member, _ in cells))
    code, printed, err = run("predict", out, few, "--proba")
    assert (code, err) == (0, "")
    expected = run("predict", out, people, "--proba")[1][:3]
    assert [line.partition(",")[0] for line in printed] == [line.partition(",")[0] for line in expected]
    numbers = [[float(cell) for line in lines[1:] for cell in line.split(",")[1:]] for lines in (printed, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=FLOAT32)


def test_words_that_were_not_trained_on_are_refused_or_ignored(run, refusal, fit_people, people):
    new = people.parent / "new.csv"
    new.write_text("city,zone,age,member\nLima,1,30,True\n")
    _, out = fit_people("--features", "auto")
    assert refusal("predict", out, new) == (
        "The column 'city' of X has 'Lima' (1 of 1 examples); the training examples had 'Oslo', 'Rome'. Remove such "
        "examples, or train with --ignore-unknown, which makes zeros of them."
    )
    _, out = fit_people("--features", "auto", "--ignore-unknown")
    assert run("predict", out, new)[0] == 0


HELD = [seed for seed in range(20) if tables.split(100, 0.2, seed)[1].mask[99]][:2]
"""Seeds by which the last of 100 rows is held out."""


def test_words_that_are_held_out_alone_are_refused_before_the_work(refusal, run, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{'uv'[i % 2]},{i % 2}\n" for i in range(99)) + "w,1\n")
    arguments = ("fit", path, "--target", "y", "--features", "auto", "--epochs", 10**9, "--patience", "none")
    held_out = [refusal(*arguments, "--random-state", seed) for seed in HELD]
    assert held_out == [
        "The column 'a' of the rows held out has 'w' (1 of 20 examples); the training examples had 'u', 'v'. Remove "
        "such examples, or train with --ignore-unknown, which makes zeros of them."
    ] * len(HELD)


# predict


def test_predict_prints_csv(run, flower, net):
    code, lines, err = run("predict", net, flower)
    assert (code, err) == (0, "")
    X, _ = xpnet.datasets.flower()
    assert lines == ["prediction", *xpnet.load(net).predict(X)]


def test_predictions_of_numbers_come_back_bit_for_bit(run, line_of_numbers):
    folder = line_of_numbers.parent
    run("fit", line_of_numbers, "--target", -1, "--epochs", 2, "--out", folder / "net.safetensors")
    X = np.load(line_of_numbers)[:, :2]
    np.save(folder / "new.npy", X)
    code, lines, err = run("predict", folder / "net.safetensors", folder / "new.npy")
    assert (code, err, lines[0]) == (0, "", "prediction")
    predicted = xpnet.load(folder / "net.safetensors").predict(X, examples="rows")[0]
    np.testing.assert_array_equal(np.asarray(lines[1:], dtype=np.float32), predicted)


def test_probabilities_are_of_both_classes(run, flower, net):
    code, lines, _ = run("predict", net, flower, "--proba")
    assert (code, lines[0]) == (0, "prediction,probability_blue,probability_red")
    rows = [line.split(",") for line in lines[1:]]
    blue, red = np.asarray([row[1:] for row in rows], dtype=np.float64).T
    X, _ = xpnet.datasets.flower()
    np.testing.assert_allclose(red, xpnet.load(net).predict_proba(X)[0], rtol=1e-7)
    np.testing.assert_allclose(blue + red, 1.0, rtol=1e-6)
    assert [row[0] for row in rows] == np.where(red > 0.5, "red", "blue").tolist()


def test_probabilities_are_of_every_class(run, tmp_path):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((90, 2))
    np.savez(tmp_path / "three.npz", X=X, y=np.arange(90) % 3)
    out = tmp_path / "net.safetensors"
    run("fit", tmp_path / "three.npz", "--target", "y", "--epochs", 1, "--random-state", 0, "--out", out)
    code, lines, _ = run("predict", out, tmp_path / "three.npz", "--proba")
    assert (code, lines[0]) == (0, "prediction,probability_0,probability_1,probability_2")
    probabilities = np.asarray([line.split(",")[1:] for line in lines[1:]], dtype=np.float32)
    np.testing.assert_array_equal(probabilities, xpnet.load(out).predict_proba(X, examples="rows").T)


def test_columns_are_found_by_name(run, flower, net):
    _, expected, _ = run("predict", net, flower)
    rows = [line.split(",") for line in flower.read_text().splitlines()[1:]]
    other = flower.parent / "other.csv"
    other.write_text("name,y,x\n" + "".join(f"point {i},{y},{x}\n" for i, (x, y, _) in enumerate(rows)))
    assert run("predict", net, other) == (0, expected, "")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written(run, flower, net, suffix):
    pa_csv, pq = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")
    _, expected, _ = run("predict", net, flower)
    out = flower.parent / f"predictions.{suffix}"
    assert run("predict", net, flower, "--proba", "--out", out) == (0, [], "")
    table = pa_csv.read_csv(out) if suffix == "csv" else pq.read_table(out)
    assert table.column_names == ["prediction", "probability_blue", "probability_red"]
    assert table["prediction"].to_pylist() == expected[1:]


def test_labels_keep_their_kind(run, tmp_path):
    for labels in (np.arange(40) % 2 == 0, np.arange(40) % 3, np.arange(40) % 2 * 1.0):
        np.savez(tmp_path / "t.npz", X=np.arange(80.0).reshape(40, 2), y=labels)
        out = tmp_path / "net.safetensors"
        run("fit", tmp_path / "t.npz", "--target", "y", "--epochs", 1, "--random-state", 0, "--out", out)
        _, lines, _ = run("predict", out, tmp_path / "t.npz")
        assert set(lines[1:]) <= set(map(str, labels.tolist()))


@posix
def test_a_closed_pipe_is_silent(flower, net):
    many = flower.parent / "many.csv"
    header, *rows = flower.read_text().splitlines(keepends=True)
    many.write_text(header + "".join(rows * 200))
    with started("predict", net, many) as predict:
        assert predict.stdout.readline() == "prediction\n"
        predict.stdout.close()
        assert predict.stderr.read() == ""
    assert predict.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_is_one_line(flower, net):
    with open("/dev/full", "w") as full, started("predict", net, flower, stdout=full) as predict:
        _, err = predict.communicate(timeout=60)
    assert (predict.returncode, err) == (2, "xpnet: error: No space left on device\n")


def test_words_that_stdout_cannot_hold_are_escaped():
    done = finished(command("fit", "--help"), environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u03bb" in done.stdout


# doctor


def test_the_doctor_shows_versions_and_verifies(run):
    code, lines, err = run("doctor")
    assert (code, err) == (0, "")
    assert lines[0].startswith(f"xpnet {xpnet.__version__} on Python {sys.version.split()[0]}, ")
    versions = {line.split()[0]: line[18:] for line in lines[2:11]}
    assert list(versions) == [
        "numpy",
        "array-api-compat",
        "safetensors",
        "cupy",
        "nvmath-python",
        "torch",
        "jax",
        "pyarrow",
        "scikit-learn",
    ]
    assert versions["numpy"] == np.__version__
    assert f"cpu         {xpnet.devices()[0].description}" in lines
    assert any(line.startswith("Verification of cpu: all ") for line in lines)
    assert all(len(line) <= 80 or line.strip().startswith("Run: ") for line in lines)


def test_the_doctor_imports_no_package_to_tell_its_version():
    code = """
import sys
from xpnet.cli import main
main(["doctor"])
loaded = {"pyarrow", "sklearn", "torch", "jax"} & set(sys.modules)
assert not loaded, loaded
"""
    done = finished([sys.executable, "-c", code])
    assert done.stderr == ""


@no_cuda
def test_the_doctor_says_why_cuda_is_missing(run):
    _, lines, _ = run("doctor")
    text = " ".join("\n".join(lines).split())
    problem = cuda_problem().replace(". Run: ", " Run: ")
    assert f"cuda not available: {problem}" in text


def test_a_failed_verification_is_code_1(run, monkeypatch):
    honest = activations.ACTIVATIONS["tanh"]

    def wrong(Z, A, *, xp):
        return 1.01 * honest.dg(Z, A, xp=xp)

    monkeypatch.setitem(activations.ACTIVATIONS, "tanh", Activation(honest.g, wrong, name="tanh", gain=honest.gain))
    code, lines, err = run("doctor")
    assert (code, err) == (1, "")
    assert any("FAILED tanh × " in line for line in lines)


def test_a_verification_that_breaks_is_code_1(run, monkeypatch):
    def broken(Z, *, xp):
        raise RuntimeError("the device\nis broken")

    honest = activations.ACTIVATIONS["tanh"]
    monkeypatch.setitem(activations.ACTIVATIONS, "tanh", Activation(broken, honest.dg, name="tanh", gain=honest.gain))
    code, lines, err = run("doctor")
    assert (code, err) == (1, "")
    assert lines[-1] == "Verification of cpu FAILED: RuntimeError: the device is broken"


# Help


def test_the_version_is_told(run):
    assert run("--version") == (0, [f"xpnet {xpnet.__version__}"], "")


@pytest.mark.parametrize("name", [(), ("demo",), ("fit",), ("predict",)], ids=lambda name: " ".join(name) or "xpnet")
def test_help_has_examples_and_fits_a_terminal(run, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, lines, err = run(*name, "--help")
    assert (code, err) == (0, "")
    assert "examples:" in lines
    assert any(line.startswith("  xpnet ") for line in lines)
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("name", ["fit", "demo", "predict", "doctor"])
def test_every_command_is_in_the_help(run, name):
    assert any(line.startswith(f"    {name} ") for line in run("--help")[1])


def test_importing_the_command_is_light():
    code = """
import sys, xpnet.cli
heavy = {"pyarrow", "pandas", "sklearn", "scipy", "torch", "jax", "cupy", "tqdm"} & set(sys.modules)
assert not heavy, heavy
"""
    done = finished([sys.executable, "-c", code])
    assert done.stderr == ""


# What is refused

WRONG = {
    "no command": ([], "the following arguments are required: COMMAND. See: xpnet --help"),
    "no target": (["fit", "DATA"], "the following arguments are required: --target. See: xpnet fit --help"),
    "no such option": (
        ["fit", "DATA", "--target", "color", "--epoch", "3"],
        "fit has no option '--epoch'. Did you mean \"--epochs\"? See: xpnet fit --help",
    ),
    "an option by scikit-learn's name": (
        ["fit", "DATA", "--target", "color", "--max-iter", "3"],
        "fit has no option '--max-iter'; it is --epochs. See: xpnet fit --help",
    ),
    "an option by PyTorch's name": (
        ["fit", "DATA", "--target", "color", "--lr=3"],
        "fit has no option '--lr=3'; it is --learning-rate. See: xpnet fit --help",
    ),
    "one file too many": (
        ["fit", "DATA", "more.csv", "--target", "color"],
        "fit has no place for 'more.csv' without --cluster. See: xpnet fit --help",
    ),
    "no number": (
        ["fit", "DATA", "--target", "color", "--epochs", "many"],
        "argument --epochs: invalid int value: 'many'. See: xpnet fit --help",
    ),
    "no patience": (
        ["fit", "DATA", "--target", "color", "--patience", "some"],
        "argument --patience: invalid whole number value: 'some'. See: xpnet fit --help",
    ),
    "epochs": (["fit", "DATA", "--target", "color", "--epochs", "0"], "--epochs must be 1 or more; it is 0."),
    "learning rate": (
        ["fit", "DATA", "--target", "color", "--learning-rate", "-1"],
        "--learning-rate must be a finite number more than 0; it is -1.0.",
    ),
    "l2": (
        ["fit", "DATA", "--target", "color", "--l2", "nan"],
        "--l2 must be a finite number at least 0; it is nan.",
    ),
    "batch size": (
        ["fit", "DATA", "--target", "color", "--batch-size", "some"],
        "--batch-size must be one of 'auto', 'full', or a whole number; it is 'some'.",
    ),
    "batch size of lbfgs": (
        ["fit", "DATA", "--target", "color", "--batch-size", "32", "--optimizer", "lbfgs"],
        "--optimizer lbfgs is full batch…",
    ),
    "threads": (["fit", "DATA", "--target", "color", "--threads", "0"], "--threads must be 1 or more; it is 0."),
    "seed": (
        ["fit", "DATA", "--target", "color", "--random-state", "-1"],
        "--random-state must be 0 or more; it is -1.",
    ),
    "test fraction": (
        ["fit", "DATA", "--target", "color", "--test-fraction", "1"],
        "--test-fraction must be a finite number at least 0 and less than 1; it is 1.0.",
    ),
    "a test fraction of no row": (
        ["fit", "DATA", "--target", "color", "--test-fraction", "0.001"],
        "--test-fraction must leave a row on each side; 0.001 of 400 rows is 0.",
    ),
    "activation": (
        ["fit", "DATA", "--target", "color", "--activation", "rleu"],
        "--activation must be one of 'tanh', 'sigmoid', 'relu', 'leaky_relu', 'elu', 'softplus', 'silu', 'gelu', "
        "'identity'; it is 'rleu'. Did you mean \"relu\"?",
    ),
    "optimizer": (
        ["fit", "DATA", "--target", "color", "--optimizer", "adma"],
        "--optimizer must be one of 'gd', 'momentum', 'adam', 'lbfgs'; it is 'adma'. Did you mean \"adam\"?",
    ),
    "task": (
        ["fit", "DATA", "--target", "color", "--task", "classification"],
        "--task must be one of 'auto', 'binary', 'multiclass', 'multilabel', 'regression', 'count'; it is "
        "'classification'.",
    ),
    "a task that the target does not fit": (
        ["fit", "DATA", "--target", "color", "--task", "regression"],
        "--task regression needs numbers; Y holds …",
    ),
    "class weights of numbers": (
        ["fit", "DATA", "--target", "x", "--drop", "color", "--class-weight", "balanced"],
        "--class-weight needs a binary or multiclass task; this one is regression. Leave it out.",
    ),
    "dtype": (
        ["fit", "DATA", "--target", "color", "--dtype", "float16"],
        '--dtype must be "float32" or "float64"; got \'float16\'. Did you mean "float64"?',
    ),
    "hidden": (
        ["fit", "DATA", "--target", "color", "--hidden", "64,x"],
        "--hidden must be units of each hidden layer, 1 to 1,000,000, such as 64 or 256,64, or none; it is '64,x'.",
    ),
    "too many units": (
        ["fit", "DATA", "--target", "color", "--hidden", "100000000"],
        "--hidden must be units of each hidden layer, 1 to 1,000,000, such as 64 or 256,64, or none; it is "
        "'100000000'.",
    ),
    "device": (
        ["fit", "DATA", "--target", "color", "--device", "gpu"],
        '--device must be "cpu", "cuda", "cuda:N" or "auto"; got \'gpu\'. Did you mean "cuda"?',
    ),
    "diverged": (
        ["fit", "DATA", "--target", "color", "--optimizer", "gd", "--learning-rate", "1e30", "--random-state", "0"],
        "Training diverged: the cost is nan in epoch 0, at learning rate 1e+30; features are standardized. Lower "
        "--learning-rate.",
    ),
    "unknown target": (
        ["fit", "DATA", "--target", "colour"],
        "DATA has no column 'colour'. Did you mean 'color'? Its columns are 'x', 'y', 'color'.",
    ),
    "unknown column to drop": (
        ["fit", "DATA", "--target", "color", "--drop", "z"],
        "DATA has no column 'z'. Its columns are 'x', 'y', 'color'.",
    ),
    "words among the features": (
        ["fit", "DATA", "--target", "x"],
        "DATA has columns that are not numbers: 'color' (string). Leave them out with --drop, or pass "
        "--features color=onehot.",
    ),
    "a treatment without a column": (
        ["fit", "DATA", "--target", "color", "--features", "onehot"],
        "--features must be auto, or COLUMN=HOW such as city=onehot,age=median; it is 'onehot'.",
    ),
    "an unknown treatment": (
        ["fit", "DATA", "--target", "color", "--features", "x=averge"],
        "--features 'x' must be one of 'number', 'onehot', 'drop', 'mean', 'median', 'most_frequent', or a number; it "
        "is 'averge'.",
    ),
    "a filling that is no number": (
        ["fit", "DATA", "--target", "color", "--features", "x=nan"],
        "--features 'x' must be a finite number; it is nan.",
    ),
    "a treatment of an unknown column": (
        ["fit", "DATA", "--target", "color", "--features", "z=mean"],
        "--features names the column 'z', which X has not. Its columns are 'x', 'y'.",
    ),
    "a treatment of the target": (
        ["fit", "DATA", "--target", "x", "--features", "x=mean,color=onehot"],
        "--features names the column 'x', which X has not. Its columns are 'y', 'color'.",
    ),
    "words without a treatment": (
        ["fit", "DATA", "--target", "x", "--features", "y=mean"],
        "The columns of X must be numbers, or have a treatment for what they hold; 'color' (words) has none. Pass "
        "--features color=onehot.",
    ),
    "treatments of arrays": (
        ["fit", "HERE/other.npy", "--target", "0", "--features", "auto"],
        "--features needs columns with names, which a .npy file has not; HERE/other.npy is one. Leave it out.",
    ),
    "unknown words of no treatment": (
        ["fit", "DATA", "--target", "color", "--ignore-unknown"],
        "--ignore-unknown needs --features, of which it says more. Pass both or neither.",
    ),
    "no such file": (["fit", "HERE/no.csv", "--target", "y"], "HERE/no.csv: No such file or directory"),
    "a folder": (
        ["fit", "HERE", "--target", "y"],
        "HERE is a folder; expected one that ends in .csv, .parquet, .npy or .npz.",
    ),
    "another format": (
        ["fit", "HERE/notes.txt", "--target", "y"],
        "HERE/notes.txt is not a file of a known format; expected one that ends in .csv, .parquet, .npy or .npz.",
    ),
    "out in no folder": (
        ["fit", "DATA", "--target", "color", "--out", "HERE/no/net.safetensors"],
        "--out must be in a folder that is there; 'HERE/no' is not. Make it first.",
    ),
    "out over the data": (
        ["fit", "DATA", "--target", "color", "--out", "DATA"],
        "--out must be another file than the ones read; 'DATA' would be overwritten.",
    ),
    "checkpoints some time": (
        ["fit", "DATA", "--target", "color", "--checkpoint", "HERE/run", "--checkpoint-every", "soon"],
        '--checkpoint-every must be seconds, such as 60, "epoch" or a number of steps, such as "500 steps"; it is '
        "'soon'.",
    ),
    "checkpoint in no folder": (
        ["fit", "DATA", "--target", "color", "--checkpoint", "HERE/no/run.ckpt"],
        "--checkpoint must be in a folder that is there; 'HERE/no' is not. Make it first.",
    ),
    "out over the checkpoint": (
        ["fit", "DATA", "--target", "color", "--checkpoint", "HERE/run", "--out", "HERE/run"],
        "--out and --checkpoint must name two files; both are 'HERE/run'.",
    ),
    "demo of nothing": (["demo", "--iterations", "0"], "--iterations must be 1 or more; it is 0."),
    "predict with no such network": (["predict", "HERE/no", "DATA"], "HERE/no: No such file or directory"),
    "predict with no such data": (["predict", "NET", "HERE/no.csv"], "HERE/no.csv: No such file or directory"),
    "predict with a table for a network": (
        ["predict", "HERE/notes.txt", "DATA"],
        "'HERE/notes.txt' is damaged or not a safetensors file: …",
    ),
    "predict of columns that are not there": (
        ["predict", "NET", "HERE/other.csv"],
        "HERE/other.csv lacks columns that the network was trained on: 'y'.",
    ),
    "predict of another number of features": (
        ["predict", "NET", "HERE/other.npy"],
        "HERE/other.npy has 3 columns and the network was trained on 2 features. Leave out the target and whatever "
        "else is not a feature.",
    ),
    "predict to another format": (
        ["predict", "NET", "DATA", "--out", "HERE/p.json"],
        "--out must end in .csv or .parquet; it is 'HERE/p.json'.",
    ),
    "predict into no folder": (
        ["predict", "NET", "DATA", "--out", "HERE/no/p.csv"],
        "--out must be in a folder that is there; 'HERE/no' is not. Make it first.",
    ),
    "predict over the data": (
        ["predict", "NET", "DATA", "--out", "DATA"],
        "--out must be another file than the ones read; 'DATA' would be overwritten.",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_one_line(refusal, flower, net, arguments, message):
    here = flower.parent
    (here / "notes.txt").write_bytes(bytes(8) + b"notes")
    (here / "other.csv").write_text("x,z\n1,2\n")
    np.save(here / "other.npy", np.ones((4, 3)))
    paths = {"HERE": str(here), "DATA": str(flower), "NET": str(net)}

    def filled(text):
        return re.sub("|".join(paths), lambda found: paths[found[0]], text)

    said, (expected, cut, _) = refusal(*map(filled, arguments)), filled(message).partition("…")
    assert (said[: len(expected)] if cut else said) == expected  # what follows … is in the library's own words


TABLE = "a,b,y\n" + "".join(f"{i / 8},{i % 7},{i % 2}\n" for i in range(40))
READ = {
    "a byte order mark": b"\xef\xbb\xbf" + TABLE.encode(),
    "lines that end in CRLF": TABLE.replace("\n", "\r\n").encode(),
    "lines that end in CR": TABLE.replace("\n", "\r").encode(),
    "no end of the last line": TABLE[:-1].encode(),
    "quotes": TABLE.replace("a,b,y", '"a","b","y"').replace("\n1.0,", '\n"1.0",').encode(),
    "whole numbers beyond 64 bits": TABLE.encode() + b"99999999999999999999999,1,1\n",
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_a_csv_may_come_from_anywhere(run, tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_bytes(content)
    code, lines, err = run("fit", tmp_path / "t.csv", "--target", "y", "--epochs", 1, "--quiet")
    assert (code, err) == (0, "")
    assert shown(lines)["network"].startswith("2-100-1")


NOISE = np.random.default_rng(0).bytes(20_000)
UNREADABLE = {
    "a quote that is not closed": (TABLE.encode() + b'"1,2,3\n', "cannot be read as CSV"),
    "NUL in a number": (TABLE.replace("0.5", "0.\0", 1).encode(), "has columns that are not numbers: 'a' (string)"),
    "nothing but NUL": (bytes(1_000), "cannot be read as CSV"),
    "nothing but line ends": (b"\n\n\n", "cannot be read as CSV"),
    "a header alone": (b"a,b,y", "cannot be read as CSV"),
    "too few values": (TABLE.encode() + b"1,2\n", "cannot be read as CSV"),
    "too many values": (TABLE.encode() + b"1,2,3,4\n", "cannot be read as CSV"),
    "what a terminal obeys": (TABLE.encode() + b"\x1b[31mred\x07,1\n", r"\x1b[31mred\x07,1"),
    "what ends lines elsewhere": (TABLE.encode() + "x\vy\u2028z\x85\n".encode(), r"x\x0by\u2028z"),
    "a word of 5 MB": (TABLE.encode() + b"1," + b"x" * 5_000_000 + b",1\n", "are not numbers: 'b' (string)"),
    "a number of 5 MB": (TABLE.encode() + b"1," + b"9" * 5_000_000 + b",1\n", "has infinite values in 'b' (1)"),
    "a line of 3 MB": (TABLE.encode() + b"x" * 3_000_000 + b"\n", "cannot be read as CSV"),
    "UTF-16": (TABLE.encode("utf-16"), "cannot be read as CSV in UTF-8"),
    "gzip": (gzip.compress(TABLE.encode()), "cannot be read as CSV in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + NOISE, "t.csv "),
    "noise": (NOISE, "t.csv "),
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_csv_that_is_none_is_one_line_of_a_few_words(refusal, tmp_path, content, message):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_bytes(content)
    said = refusal("fit", tmp_path / "t.csv", "--target", "y", "--epochs", 1, "--quiet")
    assert message in said
    assert len(said) < 600 + len(str(tmp_path))


def test_thousands_of_columns_take_as_long_as_their_numbers(run, tmp_path, soak):
    pytest.importorskip("pyarrow")
    names = [f"c{i}" for i in range(10_000 if soak else 3_000)]
    rows = [",".join(["1.5"] * len(names)) + f",{i % 2}\n" for i in range(12)]
    (tmp_path / "t.csv").write_text(",".join([*names, "y\n"]) + "".join(rows))
    net = tmp_path / "net.safetensors"
    code, *_ = run("fit", tmp_path / "t.csv", "--target", "y", "--hidden", 2, "--epochs", 1, "--out", net)
    assert code == 0
    code, lines, _ = run("predict", net, tmp_path / "t.csv")
    assert (code, len(lines)) == (0, 13)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Work in a folder of the test's own, as names that begin with a dash or a tilde are relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@posix
@pytest.mark.parametrize(
    "name", [b"\xff", b" ", b"a b", b"new\nline", b"~", b"'", b"$(touch x)", "é".encode()], ids=repr
)
def test_a_file_may_have_any_name(run, there, name):
    pytest.importorskip("pyarrow")
    folder = os.fsdecode(name)
    try:
        os.mkdir(folder)
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error.strerror}")
    path = os.path.join(folder, os.fsdecode(name))
    with open(f"{path}.csv", "w") as file:
        file.write(TABLE)
    assert run("fit", f"{path}.csv", "--target", "y", "--epochs", 1, "--quiet", "--out", path)[0] == 0
    for ending in (".out.csv", ".out.parquet"):
        assert run("predict", path, f"{path}.csv", "--out", path + ending)[0] == 0
        assert run("fit", path + ending, "--target", "prediction", "--quiet")[2].count("\n") == 1  # it is read, too
    assert len(os.listdir(folder)) == 4


@pytest.mark.parametrize("arguments", [["--", "-t.csv"], ["./-t.csv"]], ids=" ".join)
def test_a_name_may_begin_with_a_dash(run, there, arguments):
    pytest.importorskip("pyarrow")
    (there / "-t.csv").write_text(TABLE)
    assert run("fit", "--target", "y", "--epochs", 1, "--quiet", *arguments)[0] == 0


@posix
@pytest.mark.parametrize("option", ["DATA", "NET", "--out", "--checkpoint"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "loop", "folder", "device", "too long", "no name"])
def test_what_is_no_file_is_neither_read_nor_written(refusal, flower, net, there, kind, option):
    path = {"device": "/dev/null", "too long": "x" * 300 + ".csv", "no name": ""}.get(kind, "t.csv")
    with socket.socket(socket.AF_UNIX) as listener:
        make = {"pipe": os.mkfifo, "socket": listener.bind, "loop": partial(os.symlink, "t.csv"), "folder": os.mkdir}
        make.get(kind, str)(path)
        asked = {
            "DATA": ["fit", path, "--target", "color"],
            "NET": ["predict", path, flower],
            "--out": ["predict", net, flower, "--out", path],
            "--checkpoint": ["fit", flower, "--target", "color", "--epochs", "1", "--checkpoint", path],
        }
        said = refusal(*asked[option])
    assert "Traceback" not in said
    assert kind in ("device", "no name") or os.path.islink(path) == (kind == "loop")


@posix
@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may read everything")
@pytest.mark.parametrize("mode", [0o000, 0o200])
def test_a_file_that_may_not_be_read_is_named(run, flower, net, mode):
    closed = flower.parent / "closed.csv"
    closed.touch()
    closed.chmod(mode)
    said = f"xpnet: error: {closed}: Permission denied\n"
    assert run("fit", closed, "--target", "color") == (2, [], said)
    assert run("predict", closed, flower) == (2, [], said)


def test_labels_are_printed_and_not_obeyed(run, tmp_path):
    pytest.importorskip("pyarrow")
    rows = "".join(f"{i},\x1b[3{i % 2}m\n" for i in range(40))
    (tmp_path / "t.csv").write_text("a,y\n" + rows)
    code, lines, _ = run("fit", tmp_path / "t.csv", "--target", "y", "--epochs", 1, "--quiet")
    assert (code, shown(lines)["task"]) == (0, r"binary, 2 classes: \x1b[30m, \x1b[31m")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels_that_utf_8_cannot_hold_are_written_as_their_numbers(run, tmp_path, suffix):
    pytest.importorskip("pyarrow")
    X = np.random.default_rng(0).standard_normal((2, 20))
    words = np.array(["\ud800", "\udfff"])[(X[0] > 0).astype(int)]
    xpnet.fit(X, words, hidden=(), optimizer="lbfgs").save(tmp_path / "net")
    np.save(tmp_path / "t.npy", X.T)
    out = tmp_path / f"p.{suffix}"
    assert run("predict", tmp_path / "net", tmp_path / "t.npy", "--out", out)[0] == 0
    assert tables._table(str(out))["prediction"].to_pylist() == [
        word.encode(errors="backslashreplace").decode() for word in words
    ]


@pytest.mark.parametrize("digits", [30, 5_000])
@pytest.mark.parametrize("option", ["epochs", "batch-size", "threads", "l2", "learning-rate", "hidden", "random-state"])
def test_numbers_of_any_length_are_taken_or_refused(run, flower, option, digits):
    code, out, err = run("fit", flower, "--target", "color", "--patience", 1, "--quiet", f"--{option}", "9" * digits)
    assert code == (2 if err else 0)
    assert err.count("\n") == bool(err)
    assert bool(out) == (code == 0)


@pytest.fixture
def full(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no disk can be made: {error}")
    if done.returncode:
        pytest.skip(f"no disk can be made: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("arguments", [["fit", "--out", "net"], ["predict", "--out", "p.csv"]])
def test_a_disk_that_is_full_keeps_what_was_there(run, flower, net, full, arguments):
    command, option, name = arguments
    (full / name).write_bytes(b"old")
    (full / "ballast").write_bytes(bytes(60 * 1024 - 4_096))
    before = everything(full)
    asked = ["fit", flower, "--target", "color", "--hidden", "999", "--epochs", "1", "--quiet"]
    asked = asked if command == "fit" else ["predict", net, flower, "--proba"]
    code, _, err = run(*asked, option, full / name)
    assert code == 2
    assert err.count("\n") == 1
    assert "No space left on device; nothing was changed" in err
    assert everything(full) == before


def test_a_disk_that_is_full_for_checkpoints_is_a_warning_and_training_goes_on(run, flower, full):
    (full / "ballast").write_bytes(bytes(60 * 1024 - 4_096))
    before = everything(full)
    asked = ["fit", flower, "--target", "color", "--hidden", "999", "--epochs", "1", "--quiet"]
    code, _, err = run(*asked, "--checkpoint", full / "run.ckpt")
    assert code == 0
    assert all(line.startswith("xpnet: warning: ") for line in err.splitlines())
    assert "No space left on device" in err
    assert everything(full) == before


def test_an_unknown_command_is_one_line(refusal):
    assert refusal("fti").startswith("argument COMMAND: invalid choice: 'fti' (choose from ")


def test_a_checkpoint_is_no_network(run, refusal, flower):
    checkpoint = flower.parent / "run.ckpt"
    run("fit", flower, "--target", "color", "--epochs", 1, "--checkpoint", checkpoint)
    assert refusal("predict", checkpoint, flower) == (
        f"'{checkpoint}' is a checkpoint, not a network: pass it as xpnet fit --checkpoint"
    )


def test_probabilities_of_numbers_are_refused(run, refusal, line_of_numbers):
    out = line_of_numbers.parent / "net.safetensors"
    run("fit", line_of_numbers, "--target", -1, "--epochs", 1, "--out", out)
    assert refusal("predict", out, line_of_numbers, "--proba") == (
        "--proba needs a network that tells classes; this one is for regression. Leave it out."
    )


def test_an_ambiguous_target_names_the_options(refusal, tmp_path):
    np.save(tmp_path / "t.npy", np.column_stack([np.ones(50), np.arange(50)]))
    assert refusal("fit", tmp_path / "t.npy", "--target", 1) == (
        "The target has 50 distinct whole numbers, which may be classes, counts or measurements. Pass --task "
        "multiclass, --task count or --task regression."
    )


def test_a_class_that_is_held_out_whole_is_named(refusal, tmp_path):
    labels = np.arange(40) % 2
    labels[np.random.default_rng([0, 3]).permutation(40)[0]] = 7
    np.savez(tmp_path / "t.npz", X=np.ones((40, 2)), y=labels)
    assert refusal("fit", tmp_path / "t.npz", "--target", "y", "--random-state", 0) == (
        "Every row of the class 7 is held out (1 in all). Remove them, or choose another --random-state or "
        "--test-fraction."
    )


def test_too_little_memory_is_one_line(refusal, flower):
    message = refusal("fit", flower, "--target", "color", "--hidden", "1000000,1000000")
    assert message.startswith("There is not enough memory. Unable to allocate 7.28 TiB ")


def test_names_of_columns_and_files_are_not_translated(refusal, tmp_path):
    pytest.importorskip("pyarrow")
    folder = tmp_path / "task=1"
    folder.mkdir()
    path = folder / "learning_rate.csv"
    path.write_text("batch_size,learning_rate\n,1\n2,0\n")
    assert refusal("fit", path, "--target", "learning_rate") == (
        f"{path} has missing values in 'batch_size' (1). Fill them in or remove those rows, or pass --features "
        "batch_size=median."
    )


@no_cuda
@pytest.mark.parametrize("arguments", [("demo",), ("fit", "DATA", "--target", "color"), ("predict", "NET", "DATA")])
def test_cuda_that_does_not_work_says_so(refusal, monkeypatch, flower, net, arguments):
    monkeypatch.delenv("XPNET_CPU_FALLBACK", raising=False)
    paths = {"DATA": flower, "NET": net}
    message = refusal(*(paths.get(argument, argument) for argument in arguments), "--device", "cuda")
    assert message == f"--device cuda {cuda_problem()}, or use --device cpu."


@no_cuda
def test_a_fallback_is_told_once(run, monkeypatch, flower):
    monkeypatch.setenv("XPNET_CPU_FALLBACK", "1")
    code, lines, err = run("fit", flower, "--target", "color", "--epochs", 1, "--device", "cuda")
    assert code == 0
    assert shown(lines)["time"].endswith("on cpu, float32")
    assert err == f"xpnet: warning: --device cuda {cuda_problem()}. XPNET_CPU_FALLBACK=1 is set, so the CPU is used.\n"


def test_without_pyarrow_the_extra_is_named(refusal, monkeypatch, flower, net):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    needs = 'needs pyarrow, which is not installed. Run: pip install "xpnet[data]"'
    assert refusal("fit", flower, "--target", "color") == f"{flower} {needs}"
    assert refusal("predict", net, flower) == f"{flower} {needs}"
    out = flower.parent / "p.parquet"
    assert refusal("predict", net, flower, "--out", out) == f"{out} {needs}"


def test_python_m_xpnet_is_the_command(tmp_path):
    done = finished(command("predict", "no", "no.csv"), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "xpnet: error: no: No such file or directory\n"
