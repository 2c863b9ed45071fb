"""A gradient over blocks and threads is the whole's; BLAS, threads and warnings are as they were afterwards."""

import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

import xpnet
from xpnet import engine, equations, optimizers, parameters, replay
from xpnet.activations import ACTIVATIONS, Activation
from xpnet.data import Batch, Piece
from xpnet.device import HOST, to_host
from xpnet.errors import DivergedError
from xpnet.heads import HEADS
from xpnet.typing import Layer

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(11)
SIZES = (5, 7, 3)
COLUMNS = 3_000

SUMS = 100
"""Epsilons by which a sum over blocks may differ from one over all columns, relative to the whole's norm."""

threaded = pytest.mark.parametrize("threads", [1, 2, 3, 8])


@pytest.fixture
def eager(monkeypatch):
    """Blocks as small as they get, on threads however little the work."""
    for name in ("CACHE", "WORTH_THREADS", "WORTH_BLOCKS", "WORTH_SHARING"):
        monkeypatch.setattr(engine, name, 1)
    monkeypatch.setattr(engine, "NARROW", 256)
    monkeypatch.setattr(engine, "CHUNK", 7)
    monkeypatch.setattr(replay, "TALL", 1)


def layers(dtype="float64"):
    return [
        Layer(RNG.standard_normal((n_out, n_in)).astype(dtype), RNG.standard_normal((n_out, 1)).astype(dtype))
        for n_in, n_out in pairwise(SIZES)
    ]


def piece(columns=COLUMNS, dtype="float64", weighted=False):
    Y = np.eye(SIZES[-1])[:, RNG.integers(0, SIZES[-1], columns)]
    weight = RNG.uniform(0.5, 2.0, (columns, 1)).astype(dtype) if weighted else None
    return Piece(RNG.standard_normal((columns, SIZES[0])).astype(dtype), Y.T.astype(dtype), weight)


def running(threads, activation=ACTIVATIONS["tanh"], columns=COLUMNS, place=HOST):
    return engine.running(place, SIZES, activation, HEADS["softmax"], columns=columns, threads=threads)


def seeing(columns):
    """Return tanh that notes how many columns it is given at a time, and that only plain arrays can be given."""

    def g(Z):
        A = np.tanh(np.asarray(Z))
        columns.append(Z.shape[-1])
        return A

    return Activation(g, lambda _, A: 1 - A**2, "seeing")


def flat(layers):
    """Return the parameters as the engine takes them."""
    return parameters.flatten(layers, xp=np)


def apart(left, right):
    """Return how far two gradients are apart, relative to the second's norm."""
    left, right = (to_host(array).astype(float) for array in (left, right))
    return np.linalg.norm(left - right) / np.linalg.norm(right)


# --- blocks


@threaded
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_over_threads_give_the_wholes_gradient(eager, threads, dtype, weighted, recorded):
    network, given = layers(dtype), piece(dtype=dtype, weighted=weighted)
    X, Y, weight = given.taken(HOST)
    functions = {"activation": ACTIVATIONS["tanh"], "head": HEADS["softmax"], "xp": np}
    cost, whole = equations.gradient(network, X, Y, sample_weight=weight, **functions)
    with running(threads, ACTIVATIONS["tanh"] if recorded else seeing([])) as run:
        blocks_cost, blocks = run.gradient(flat(network), [given])
    tolerance = SUMS * float(np.finfo(dtype).eps)
    assert apart(blocks, flat(whole)) <= tolerance
    assert blocks_cost == pytest.approx(cost, rel=tolerance)
    assert blocks.dtype == dtype


@pytest.mark.parametrize("l2", [0.0, 3.0])
def test_steps_that_go_on_from_kept_parameters_cost_the_same_bits(l2):
    """The penalty sums squares and a cost sums products as the parameters lie, in buffers or not."""
    sizes = (40, 30, 3)
    optimizer = optimizers.resolve("adam", None)

    def steps(run, theta, memory, count):
        for _ in range(count):
            theta, memory = run.step(optimizer, theta, memory, Batch([given], 8), rate=0.01, l2=l2)
        return theta, memory, run.take_costs()[0]

    given = piece(columns=8, dtype="float32")
    given = given._replace(rows=RNG.standard_normal((8, sizes[0])).astype("float32"))
    theta = RNG.standard_normal(parameters.count(sizes)).astype("float32")
    arguments = (HOST, sizes, ACTIVATIONS["relu"], HEADS["softmax"])
    with engine.running(*arguments, columns=8, threads=1) as run:
        *at, _ = steps(run, theta, optimizer.init(theta, xp=np), 1)
        for _ in range(30):
            begun = [run.kept(part) for part in at]
            with engine.running(*arguments, columns=8, threads=1) as other:
                assert other.cost(other.layers(begun[0]), [given]) == other.cost(run.layers(at[0]), [given])
                *_, ours = steps(other, *begun, 1)
            *at, known = steps(run, *at, 1)
            assert ours.tobytes() == known.tobytes()


@threaded
def test_pieces_add_up_to_the_wholes_gradient(eager, threads):
    theta, given = flat(layers()), piece(weighted=True)
    cuts = [slice(0, 1), slice(1, 700), slice(700, 1_399), slice(1_399, COLUMNS)]
    with running(threads) as run:
        whole_cost, whole = (np.array(part) for part in run.gradient(theta, [given]))
        cost, pieces = run.gradient(theta, (given.cut(cut) for cut in cuts))
    tolerance = SUMS * np.finfo("float64").eps
    assert apart(pieces, whole) <= tolerance
    assert cost == pytest.approx(whole_cost, rel=tolerance)


@threaded
def test_columns_picked_out_give_the_gradient_of_those_columns(eager, threads):
    theta, given, numbers = flat(layers()), piece(weighted=True), RNG.permutation(COLUMNS)[: COLUMNS // 2]
    picked = Piece(*(array[numbers] for array in given[:3]))
    with running(threads) as run:
        whole_cost, whole = (np.array(part) for part in run.gradient(theta, [picked]))
        cost, found = run.gradient(theta, [given._replace(numbers=numbers)])
    tolerance = SUMS * np.finfo("float64").eps
    assert apart(found, whole) <= tolerance
    assert cost == pytest.approx(whole_cost, rel=tolerance)


@threaded
def test_blocks_give_the_wholes_cost_and_output(eager, threads):
    network, given = layers(), piece(weighted=True)
    X, Y, weight = given.taken(HOST)
    Z, A = equations.forward(network, X, activation=ACTIVATIONS["tanh"], head=HEADS["softmax"], xp=np)
    whole = equations.cost(Z[-1], Y, head=HEADS["softmax"], sample_weight=weight, xp=np)
    tolerance = SUMS * np.finfo("float64").eps
    with running(threads) as run:
        assert run.cost(network, [given]) == pytest.approx(whole, rel=tolerance)
        assert np.allclose(run.output(network, X), A[-1], rtol=tolerance)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_columns_are_cut_so_that_every_thread_has_some(monkeypatch, threads):
    monkeypatch.setattr(engine, "WORTH_THREADS", 1)
    monkeypatch.setattr(engine, "WORTH_BLOCKS", 1)
    columns = []
    with running(threads, seeing(columns)) as run:
        run.gradient(flat(layers()), [piece()])
    assert sum(columns) == COLUMNS
    assert len(columns) >= threads


def test_blocks_fit_the_cache(monkeypatch):
    monkeypatch.setattr(engine, "CACHE", 7 * 512)
    monkeypatch.setattr(engine, "WORTH_THREADS", 1)
    monkeypatch.setattr(engine, "WORTH_BLOCKS", 1)
    columns = []
    with running(2, seeing(columns)) as run:
        run.gradient(flat(layers()), [piece()])
    assert max(columns) == 512


def test_little_work_is_done_in_one_block():
    columns = []
    with running(2, seeing(columns)) as run:
        run.gradient(flat(layers()), [piece()])
    assert columns == [COLUMNS]


def test_other_namespaces_get_the_columns_whole(eager, backend):
    if backend.place.is_numpy:
        pytest.skip("NumPy's columns are cut")
    columns = []

    def g(Z, xp):
        columns.append(Z.shape[-1])
        return xp.tanh(Z)

    def dg(Z, A, xp):
        return 1.0 - A * A

    given = Piece(*(backend.asarray(array, "float32") for array in piece(dtype="float32")[:2]), None)
    with running(4, Activation(g, dg, "seeing"), place=backend.place) as run:
        run.gradient(backend.asarray(flat(layers("float32"))), [given])
    assert columns == [COLUMNS]


# --- training over threads

X = RNG.standard_normal((6, 4_000)).astype(np.float32)
Y = (X[0] * X[1] + 0.3 * RNG.standard_normal(4_000) > 0).astype(int)
STEPS = {"hidden": 8, "epochs": 3, "batch_size": "full", "optimizer": "gd", "random_state": 3}


def fit(features=X, labels=Y, **arguments):
    return xpnet.fit(features, labels, **{**STEPS, **arguments})


def parameters_of(net):
    return [array.tobytes() for layer in net.layers for array in layer]


@threaded
@pytest.mark.parametrize("batch_size", [1_024, "full"])
@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
def test_the_same_threads_give_the_same_bits(eager, threads, batch_size, optimizer):
    left, right = (fit(threads=threads, batch_size=batch_size, optimizer=optimizer) for _ in range(2))
    assert parameters_of(left) == parameters_of(right)
    assert left.history["cost"] == right.history["cost"]


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
def test_other_threads_differ_by_rounding_alone(eager, threads, optimizer):
    one, several = (fit(threads=count, dtype="float64", optimizer=optimizer) for count in (1, threads))
    assert apart(flat(several.layers), flat(one.layers)) <= SUMS * np.finfo("float64").eps


def test_blocks_predict_what_the_whole_predicts(monkeypatch):
    net = fit(dtype="float64")
    whole = net.predict_proba(X)
    for name in ("CACHE", "WORTH_THREADS", "WORTH_BLOCKS", "WORTH_SHARING"):
        monkeypatch.setattr(engine, name, 1)
    monkeypatch.setattr(engine, "NARROW", 256)
    monkeypatch.setattr(engine, "CHUNK", 7)
    monkeypatch.setattr(replay, "TALL", 1)
    monkeypatch.setattr("xpnet.network.PREDICTED", 8 * 1_000)
    assert np.allclose(net.predict_proba(X), whole, rtol=SUMS * np.finfo("float64").eps)


# --- what is left behind: nothing


def blas_threads():
    """Return the threads of NumPy's BLAS, and of any other that is loaded."""
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("xpnet")]


@pytest.fixture
def two_blas_threads():
    """BLAS with two threads: neither the one that blocks get nor what most machines start with."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if set(blas_threads()) != {2}:
            pytest.skip("this BLAS cannot have two threads here")
        yield


def stop(view):
    raise RuntimeError("the callback has had enough")


@threaded
def test_blas_has_its_threads_back_after_a_fit(eager, two_blas_threads, threads):
    fit(threads=threads)
    assert set(blas_threads()) == {2}


@threaded
def test_blas_has_its_threads_back_after_an_exception(eager, two_blas_threads, threads):
    with pytest.raises(RuntimeError, match="had enough"):
        fit(threads=threads, callbacks=stop)
    assert set(blas_threads()) == {2}


def test_blas_has_its_threads_back_after_a_prediction(eager, two_blas_threads):
    fit().score(X, Y)
    assert set(blas_threads()) == {2}


def test_blas_is_held_to_one_thread_while_blocks_run_on_several(eager, two_blas_threads):
    during = []
    fit(threads=2, epochs=1, callbacks=lambda _: during.extend(blas_threads()))
    assert set(during) == {1}


def test_blas_is_held_for_whichever_thread_fits_next(eager, two_blas_threads):
    during = []

    def one():
        fit(threads=2, epochs=1, callbacks=lambda _: during.extend(blas_threads()))

    for _ in range(2):
        one()
        other = threading.Thread(target=one)
        other.start()
        other.join()
    assert len(during) >= 4
    assert set(during) == {1}
    assert set(blas_threads()) == {2}


@pytest.mark.parametrize("threads", [1, 2])
def test_blas_has_the_threads_asked_for_where_blocks_do_not_pay(two_blas_threads, threads):
    during = []
    fit(threads=threads, epochs=1, hidden=2, batch_size=32, callbacks=lambda _: during.extend(blas_threads()))
    assert set(during) == {threads}


@threaded
def test_a_fit_leaves_no_thread_behind(eager, threads):
    fit(threads=threads)
    assert ours() == []


@threaded
def test_an_exception_leaves_no_thread_behind(eager, threads):
    with pytest.raises(RuntimeError, match="had enough"):
        fit(threads=threads, callbacks=stop)
    assert ours() == []


def test_a_small_fit_starts_no_thread():
    during = []
    fit(epochs=1, batch_size=32, threads=4, callbacks=lambda _: during.extend(ours()))
    assert during == []


# --- NumPy's warnings, which pytest turns into errors here


def _g(Z):
    return np.where(Z > 50, Z, np.log1p(np.exp(Z)))  # overflows where its value is not taken


def _dg(Z, A):
    return 1 - np.exp(-A)


@threaded
def test_no_numpy_warning_comes_out_of_a_thread(eager, threads):
    large = 90 * X  # e⁹⁰ is beyond float32
    net = fit(features=large, activation=Activation(_g, _dg, "naive"), learning_rate=1e-6, threads=threads)
    assert np.isfinite(net.history["cost"]).all()
    assert np.isfinite(net.predict_proba(large)).all()


@threaded
def test_divergence_on_a_thread_is_named_and_not_warned_of(eager, threads):
    with pytest.raises(DivergedError, match="at learning rate 1e"):
        fit(labels=1.5 * X[0], learning_rate=1e20, threads=threads, epochs=20)
    assert ours() == []


def test_numpys_settings_are_as_they_were_after_a_fit(eager):
    before = np.geterr()
    fit(threads=2)
    assert np.geterr() == before


# --- inside other people's pools


def test_fits_on_several_threads_give_what_each_gives_alone(eager):
    def one(seed):
        return parameters_of(fit(threads=2, random_state=seed))

    alone = [one(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(6))) == alone
    assert ours() == []


def run_python(code):
    """Run code in a fresh interpreter and return what it printed; one that hangs is an error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_blas_has_its_threads_back_after_two_fits_that_overlap():
    # In an interpreter of its own, where BLAS has the threads that it starts with and no test has taken hold of it.
    code = """
        import threading
        import numpy as np
        import threadpoolctl
        import xpnet
        from xpnet import engine

        engine.CACHE = engine.WORTH_THREADS = engine.WORTH_BLOCKS = 1
        X = np.random.default_rng(0).standard_normal((6, 4000))
        Y = (X[0] > 0).astype(int)
        first_runs, second_runs, first_ended = (threading.Event() for _ in range(3))

        def fit(told, awaited):
            def callback(view):
                told.set()
                awaited.wait(30)

            xpnet.fit(X, Y, hidden=8, epochs=1, batch_size="full", threads=2, callbacks=callback)

        def first():
            fit(first_runs, second_runs)
            first_ended.set()

        def second():
            first_runs.wait(30)
            fit(second_runs, first_ended)

        def blas_threads():
            return [library["num_threads"] for library in threadpoolctl.threadpool_info()]

        before = blas_threads()
        threads = [threading.Thread(target=function) for function in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(blas_threads() == before)
    """
    assert run_python(code) == "True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_fits_what_its_parent_fits():
    # In an interpreter of its own: the test's has PyTorch's and JAX's threads, which do not survive a fork.
    code = """
        import multiprocessing
        import numpy as np
        import xpnet
        from xpnet import engine

        engine.CACHE = engine.WORTH_THREADS = engine.WORTH_BLOCKS = 1
        X = np.random.default_rng(0).standard_normal((6, 4000))
        Y = (X[0] > 0).astype(int)

        def fit(seed):
            net = xpnet.fit(X, Y, hidden=8, epochs=3, batch_size="full", random_state=seed, threads=2)
            return [array.tobytes() for layer in net.layers for array in layer]

        here = [fit(seed) for seed in range(2)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            there = pool.map_async(fit, range(2)).get(timeout=60)
        print(here == there)
    """
    assert run_python(code) == "True"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_a_process_held_to_one_core_counts_one():
    code = """
        import os
        from xpnet import engine

        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        print(engine.cores())
    """
    assert run_python(code) == "1"


@pytest.mark.parametrize("hidden", [6, (6, 300), (300, 40)])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam", "lbfgs"])
def test_an_activation_that_cannot_be_recorded_trains_as_one_that_can(optimizer, penalty, hidden):
    X, score = RNG.standard_normal((3, 90)), RNG.standard_normal(90)
    options = {"hidden": hidden, "epochs": 3, "random_state": 0, "dtype": "float64", "l2": penalty}
    options |= {"optimizer": optimizer} | ({} if optimizer == "lbfgs" else {"batch_size": 8})
    own, named = (xpnet.fit(X, score, activation=chosen, **options) for chosen in (seeing([]), "tanh"))
    for ours, theirs in zip(own.layers, named.layers, strict=True):
        assert apart(ours.W, theirs.W) <= SUMS * np.finfo("float64").eps
