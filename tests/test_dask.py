"""`xpnet.dask`: the network of a cluster is that of one machine, whatever becomes of the workers."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import xpnet
from xpnet import parts
from xpnet.cli import main
from xpnet.errors import (
    ArgumentError,
    CheckpointError,
    ClusterError,
    DataError,
    DivergedError,
    ShapeError,
    TargetError,
    UnknownArgumentError,
)

distributed = pytest.importorskip("distributed", reason="Dask's scheduler is not installed")
dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
cloudpickle = pytest.importorskip("cloudpickle")
import xpnet.dask  # noqa: E402  # it needs nothing, but is of no use without

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:distributed")

SUMS = 1e-5
"""Relative difference of parameters that the order of float32's sums may make."""

SMALL = {"PERMUTED": 100, "WINDOW": 2_000, "RUN": 128}
"""Sizes of `xpnet.data` with which little data is large."""

FIT = {"hidden": 8, "activation": "tanh", "epochs": 6, "patience": None, "random_state": 0, "verbose": False}

WAYS = {
    "gd": {"optimizer": "gd", "batch_size": "full"},
    "adam": {"batch_size": "full"},
    "lbfgs": {"optimizer": "lbfgs"},
    "batches": {"batch_size": 100},
    "momentum": {"optimizer": "momentum", "batch_size": 64, "l2": 0.3},
    "weights": {"batch_size": 128, "sample_weight": True, "class_weight": "balanced"},
    "weights, full": {"batch_size": "full", "optimizer": "gd", "sample_weight": True, "class_weight": {0: 2.0}},
    "validation": {"batch_size": 128, "validation_fraction": 0.2, "standardize": True, "patience": 3},
    "one example held out": {"batch_size": "full", "validation_fraction": 0.001},
    "float64": {"dtype": "float64", "batch_size": 200},
}
"""Ways to train, by name."""


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each with one thread, that are given up when they hang for some seconds."""
    with (
        dask.config.set(
            {
                "distributed.scheduler.worker-ttl": "1s",
                # Or a LocalCluster ends a nanny whose worker died twice within that time.
                "distributed.deploy.lost-worker-timeout": "1d",
                # Of a client that dies with the lock.
                "distributed.scheduler.locks.lease-timeout": "2s",
                "distributed.scheduler.locks.lease-validation-interval": "500ms",
            }
        ),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50, memory_limit=0
        ) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def client(cluster):
    with distributed.Client(cluster) as made:
        yield made


@pytest.fixture
def both(client):
    """A client of a cluster that has both of its workers."""
    pids: dict[str, int] = {}
    while len(pids) < 2:
        client.wait_for_workers(2)
        pids = client.run(os.getpid, on_error="ignore")
    return client


@pytest.fixture(scope="module")
def alone():
    """A client of one worker, a thread of this process."""
    with distributed.Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50
    ) as made:
        yield made


@pytest.fixture(scope="module")
def examples():
    """X (5, 1200), Y (1200,) and weights."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(5, 1200)).astype(np.float32)
    return X, (X[0] * X[1] + 0.3 * X[2] > 0).astype(int), rng.random(1200)


def fit_both(client, X, Y, weight, *, chunks, **options):
    """Return the cluster's network and that of one machine with a thread."""
    theirs = dict(options)
    if options.pop("sample_weight", None) is not None:
        theirs["sample_weight"] = da.from_array(weight, chunks=chunks)
        options["sample_weight"] = weight
    net = xpnet.dask.fit(
        da.from_array(X, chunks=(5, chunks)), da.from_array(Y, chunks=chunks), client=client, **FIT | theirs
    )
    return net, xpnet.fit(X, Y, threads=1, **FIT | options)


def differ(net, other):
    """Return the largest relative difference of two networks' parameters."""
    pairs = [
        pair for ours, theirs in zip(net.layers, other.layers, strict=True) for pair in zip(ours, theirs, strict=True)
    ]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def same(net, other):
    """Whether two networks came about by the same bits."""
    kept = ("cost", "validation_cost", "learning_rate")
    return differ(net, other) == 0.0 and all(net.history[key] == other.history[key] for key in kept)


@pytest.mark.parametrize("way", WAYS)
def test_one_worker_trains_the_network_of_one_machine_bit_for_bit(alone, examples, way):
    net, one = fit_both(alone, *examples, chunks=500, **WAYS[way])
    assert same(net, one)
    assert (net.stop_reason, net.best_epoch, net.task) == (one.stop_reason, one.best_epoch, one.task)


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_train_it_up_to_the_rounding_of_sums(both, examples, way):
    net, one = fit_both(both, *examples, chunks=250, **WAYS[way])
    assert differ(net, one) <= SUMS
    np.testing.assert_allclose(net.history["cost"], one.history["cost"], rtol=SUMS)
    np.testing.assert_allclose(net.history["validation_cost"], one.history["validation_cost"], rtol=SUMS)
    assert (net.stop_reason, net.best_epoch, net.task) == (one.stop_reason, one.best_epoch, one.task)


# What is lost ---------------------------------------------------------------------------------------------------------


LONG = FIT | {"epochs": 60, "batch_size": 100}
"""Some seconds of training in several segments."""


@pytest.fixture(scope="module")
def long(examples):
    """Arguments of a fit, lazily read, that lasts for several segments."""
    X, Y, _ = examples
    return da.from_array(X, chunks=(5, 200)), da.from_array(Y, chunks=200)


def struck(client, number, long, rng, **options):
    """Return the network of a fit in whose middle one of two workers gets a signal, and whether it came in time."""
    pids, hit = list(client.run(os.getpid).values()), []

    def strike(view):
        if view.epoch == wait and not hit:
            os.kill(pids[int(rng.integers(2))], number)
            hit.append(view.epoch)

    wait = int(rng.integers(1, 9))
    net = xpnet.dask.fit(*long, client=client, **LONG | {"epochs": 10, "callbacks": strike} | options)
    return net, bool(hit)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 20), (signal.SIGSTOP, 5)])
def test_a_worker_that_dies_or_hangs_leaves_the_network_that_would_have_been(both, long, rng, soak, number, times):
    undisturbed = xpnet.dask.fit(*long, client=both, **LONG | {"epochs": 10})
    for _ in range(times if soak else 1):
        while len(both.run(os.getpid, on_error="ignore")) < 2:
            time.sleep(0.1)
        net, hit = struck(both, number, long, rng)
        assert hit
        assert same(net, undisturbed)


def test_a_worker_that_dies_within_a_segment_costs_no_bits(both, long, rng):
    undisturbed = xpnet.dask.fit(*long, client=both, **LONG)
    pid = list(both.run(os.getpid).values())[1]
    timer = threading.Timer(0.3 + float(rng.random()), os.kill, (pid, signal.SIGKILL))
    timer.start()
    net = xpnet.dask.fit(*long, client=both, **LONG)
    timer.join()
    assert same(net, undisturbed)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_worker_that_dies_with_its_result_costs_no_bits(both, long, monkeypatch, step):
    waited, times = xpnet.dask._Fit._waited, itertools.count()

    def struck(fit, futures, used):
        error = waited(fit, futures, used)
        if next(times) == step:  # of six: looking, weighing, getting ready, means to sum, and two segments
            os.kill(both.run(os.getpid, workers=[used[-1]])[used[-1]], signal.SIGKILL)
        return error

    options = LONG | {"epochs": 6}
    undisturbed = xpnet.dask.fit(*long, client=both, **options)
    while len(both.run(os.getpid, on_error="ignore")) < 2:
        time.sleep(0.1)
    monkeypatch.setattr(xpnet.dask._Fit, "_waited", struck)
    net = xpnet.dask.fit(*long, client=both, **options)
    assert next(times) > step
    assert same(net, undisturbed)


def test_work_that_workers_die_of_is_an_error_and_not_begun_for_ever(both, long, monkeypatch):
    monkeypatch.setattr(xpnet.dask, "LOSSES", 1)
    ours = os.getpid()

    def fatal(Z):
        return Z if os.getpid() == ours else os._exit(1)

    activation = xpnet.Activation(fatal, lambda Z, _: np.ones_like(Z), name="fatal")
    with pytest.raises(ClusterError, match="2 times in a row some were lost at it"):
        xpnet.dask.fit(*long, client=both, **FIT | {"activation": activation})


def test_workers_that_join_and_leave_change_no_bit(long):
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        undisturbed = xpnet.dask.fit(*long, client=client, **LONG | {"epochs": 6})

        def scale(view):
            if view.epoch in (1, 3):
                cluster.scale({1: 3, 3: 1}[view.epoch])

        net = xpnet.dask.fit(*long, client=client, **LONG | {"epochs": 6, "callbacks": scale})
    assert same(net, undisturbed)


def test_two_fits_at_a_time_take_turns(both, long):
    options = [LONG | {"epochs": 5, "random_state": seed, "client": both} for seed in (1, 2)]
    alone = [xpnet.dask.fit(*long, **each) for each in options]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda each: xpnet.dask.fit(*long, **each), options))
    assert all(map(same, together, alone))


KILLED = """
import os, signal, sys
import dask.array as da, distributed, numpy as np
import xpnet.dask

given, address, checkpoint = sys.argv[1:]
X, Y = (np.load(f"{given}/{name}.npy") for name in "XY")

def kill(view):
    if view.epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)

xpnet.dask.fit(
    da.from_array(X, chunks=(5, 200)), da.from_array(Y, chunks=200), client=distributed.Client(address),
    checkpoint=checkpoint, checkpoint_every=0, callbacks=kill, OPTIONS
)
"""
"""A client that dies in the middle of a fit."""


def test_a_client_that_dies_is_followed_by_one_that_goes_on_from_its_checkpoint(both, examples, long, tmp_path):
    X, Y, _ = examples
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "Y.npy", Y)
    options = LONG | {"epochs": 8}
    undisturbed = xpnet.dask.fit(*long, client=both, **options)
    script = KILLED.replace("OPTIONS", f"**{options!r}")
    arguments = [str(tmp_path), both.scheduler.address, str(tmp_path / "run.ckpt")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    net = xpnet.dask.fit(*long, client=both, checkpoint=tmp_path / "run.ckpt", **options)
    assert same(net, undisturbed)


def test_a_client_that_dies_while_it_waits_for_another_fit_keeps_nobody_waiting(both, files):
    def waiting(dask_scheduler):
        return dask_scheduler.extensions["semaphores"].metrics["pending"]["xpnet"]

    with both.as_current():
        lock = distributed.Lock("xpnet")
    with lock:
        arguments = ["fit", *map(str, files["parquet"]), "--target", "kind", "--drop", "e"]
        command = [sys.executable, "-m", "xpnet", *arguments, "--cluster", both.scheduler.address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
            while not both.run_on_scheduler(waiting):
                time.sleep(0.05)
            client.kill()
        time.sleep(2 * xpnet.dask.LOOK)
    assert not lock.locked()


def test_data_that_cannot_be_made_again_is_an_error_that_says_so(both, examples):
    X, Y, _ = examples
    parts = both.scatter([X[:, :600], X[:, 600:]], broadcast=False, hash=False)
    blocks = [da.from_delayed(dask.delayed(part), (5, 600), np.float32) for part in parts]
    (address, *_), *_ = both.who_has(parts[:1]).values()
    pid = both.run(os.getpid, workers=[address])[address]

    def strike(view):
        if view.epoch == 1:
            del parts[:]
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ClusterError, match=r"client\.scatter"):
        xpnet.dask.fit(
            da.concatenate(blocks, axis=1), da.from_array(Y, chunks=600), client=both, **FIT | {"callbacks": strike}
        )


# The client's side ----------------------------------------------------------------------------------------------------


def test_a_fit_cut_short_goes_on_from_its_checkpoint_bit_for_bit(alone, examples, tmp_path):
    X, Y, _ = examples
    given = da.from_array(X, chunks=(5, 400)), da.from_array(Y, chunks=400)
    options = FIT | {"epochs": 9, "batch_size": 100, "validation_fraction": 0.2, "client": alone}
    whole = xpnet.dask.fit(*given, **options)
    path = tmp_path / "run.ckpt"

    def interrupt(view):
        if view.epoch == 4:
            raise KeyboardInterrupt

    half = xpnet.dask.fit(*given, **options, checkpoint=path, callbacks=interrupt)
    assert (half.stop_reason, half.epochs_run) == ("interrupted", 5)
    assert same(xpnet.dask.fit(*given, **options, checkpoint=path), whole)


def test_a_checkpoint_of_other_data_is_refused(alone, examples, tmp_path):
    X, Y, _ = examples
    options = FIT | {"epochs": 1, "client": alone, "checkpoint": tmp_path / "run.ckpt"}
    xpnet.dask.fit(da.from_array(X, chunks=(5, 400)), da.from_array(Y, chunks=400), **options)
    with pytest.raises(CheckpointError, match="Y differs"):
        xpnet.dask.fit(da.from_array(X, chunks=(5, 400)), da.from_array(1 - Y, chunks=400), **options)


def test_callbacks_see_every_epoch_and_can_stop(alone, examples):
    X, Y, _ = examples
    seen = []

    def watch(view):
        seen.append((view.epoch, view.cost, view.network().epochs_run))
        return view.epoch == 3

    net = xpnet.dask.fit(
        da.from_array(X, chunks=(5, 400)), da.from_array(Y, chunks=400), client=alone, **FIT | {"callbacks": watch}
    )
    assert net.stop_reason == "callback"
    assert seen == [(epoch, net.history["cost"][epoch], epoch + 1) for epoch in range(4)]


def test_progress_shows_each_epoch_once(alone, examples, capsys):
    X, Y, _ = examples
    given = da.from_array(X, chunks=(5, 400)), da.from_array(Y, chunks=400)
    xpnet.dask.fit(*given, client=alone, **FIT | {"verbose": True})
    assert "6/6" in capsys.readouterr().err


def test_a_user_s_activation_and_schedule_reach_the_workers(both, examples):
    X, Y, weight = examples
    cube = xpnet.Activation(lambda Z: Z**3, lambda Z, _: 3 * Z**2, name="cube")
    options = {"activation": cube, "learning_rate": lambda epoch: 0.01 / (1 + epoch)}
    net, one = fit_both(both, X, Y, weight, chunks=300, **options)
    assert differ(net, one) <= SUMS
    assert net.history["learning_rate"] == one.history["learning_rate"]


def test_workers_threads_and_memory_settings_are_as_they_were(both, long):
    def settings():
        import threadpoolctl

        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()], len(threading.enumerate())

    before = both.run(settings)
    xpnet.dask.fit(*long, client=both, **FIT | {"threads": 2, "batch_size": "full"})
    assert both.run(settings) == before


def faulty(X, Y):
    """Return fits whose faults are put in, by the findings' kinds."""
    rng = np.random.default_rng(0)
    dead = [(rng.normal(size=(8, 5)), np.full((8, 1), -50.0)), (rng.normal(size=(1, 8)), np.zeros((1, 1)))]
    large = [(0.1 * rng.normal(size=(8, 5)), np.full((8, 1), 4.0)), (rng.normal(size=(1, 8)), np.zeros((1, 1)))]
    constant = X.copy()
    constant[4] = 3.0
    return {
        ("dead_units", "constant_prediction"): (X, Y, {"activation": "relu", "initial": dead}),
        ("saturated_units",): (X, Y, {"initial": large}),
        ("learning_rate_too_high",): (X, Y, {"learning_rate": 50.0, "optimizer": "gd", "epochs": 20}),
        ("learning_rate_too_low",): (X, Y, {"learning_rate": 1e-9, "epochs": 30}),
        ("unfinished",): (X, (X[2] > 0).astype(int), {"batch_size": 200, "epochs": 4}),
        ("constant_features",): (constant, (X[2] > 0).astype(int), {"epochs": 40}),
        ("unscaled_features",): (1e4 * X, Y, {"epochs": 1}),
        (): (X, (X[2] > 0).astype(int), {"epochs": 40}),
    }


@pytest.mark.filterwarnings("ignore::xpnet.errors.ScaleWarning")
@pytest.mark.parametrize("kinds", [*faulty(np.zeros((5, 1)), np.zeros(1))], ids=" and ".join)
@pytest.mark.parametrize("count", [1200, 300])
def test_faults_are_named_as_on_one_machine(both, examples, kinds, count):
    X, Y, _ = examples
    X, Y, options = faulty(X[:, :count], Y[:count])[kinds]
    given = da.from_array(X, chunks=(5, count // 3)), da.from_array(Y, chunks=count // 3)
    net = xpnet.dask.fit(*given, client=both, **FIT | options)
    one = xpnet.fit(X, Y, threads=1, **FIT | options)
    found, expected = ({finding.kind: finding.where for finding in each.diagnosis} for each in (net, one))
    assert found == expected
    assert set(kinds) <= set(found)


def test_a_fit_whose_examples_are_gone_says_that_it_could_not_look(alone, rows, tmp_path, monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(xpnet.data, name, value)
    paths = [tmp_path / f"{name}.npy" for name in "XY"]
    for path, array in zip(paths, rows, strict=False):
        np.save(path, array)

    def spoil(view):
        paths[0].unlink()
        return True

    options = FIT | {"examples": "rows", "callbacks": spoil}
    net = xpnet.dask.fit(paths[:1], paths[1:], client=alone, **options)
    assert [finding.kind for finding in net.diagnosis] == ["undiagnosed"]


# What the examples come in --------------------------------------------------------------------------------------------


@pytest.fixture
def rows(examples):
    X, Y, weight = examples
    return np.ascontiguousarray(X.T), Y, weight


def test_dataframes_of_partitions_some_of_which_are_empty(alone, rows):
    pandas = pytest.importorskip("pandas")
    frames = pytest.importorskip("dask.dataframe")
    X, Y, weight = rows
    table = pandas.DataFrame(X, columns=list("abcde")).assign(kind=np.where(Y, "yes", "no"), weight=weight)
    table["quarter"] = np.arange(1200) // 300
    given = frames.from_pandas(table, npartitions=4)
    given, table = given[given["quarter"] != 1], table[table["quarter"] != 1]
    net = xpnet.dask.fit(
        given[list("abcde")], given["kind"], sample_weight=given["weight"], examples="rows", client=alone, **FIT
    )
    one = xpnet.fit(
        table[list("abcde")], table["kind"], sample_weight=table["weight"], examples="rows", threads=1, **FIT
    )
    assert same(net, one)
    assert net.feature_names == tuple("abcde")
    predicted = xpnet.dask.predict(net, given[list("abcde")], examples="rows").compute(scheduler=alone)
    assert predicted.tolist() == net.predict(table[list("abcde")], examples="rows").tolist()


@pytest.fixture
def files(rows, tmp_path):
    """Paths of X, of Y, and of tables of both, in three parts."""
    X, Y, _ = rows
    paths = {"X": [], "Y": [], "both": [], "parquet": []}
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    for i, part in enumerate(np.split(np.arange(1200), [300, 900])):
        for key, array in (("X", X[part]), ("Y", Y[part]), ("both", np.column_stack([Y[part], X[part]]))):
            paths[key].append(tmp_path / f"{key}{i}.npy")
            np.save(paths[key][-1], array)
        table = pyarrow.table({name: X[part, j] for j, name in enumerate("abcde")} | {"kind": Y[part]})
        paths["parquet"].append(tmp_path / f"{i}.parquet")
        parquet.write_table(table, paths["parquet"][-1])
    return paths


@pytest.mark.parametrize(
    ("kind", "target"), [("X", "files"), ("both", 0), ("parquet", "kind")], ids=["files", "column", "parquet"]
)
@pytest.mark.parametrize("batch_size", ["full", 100])
def test_workers_open_paths(both, files, rows, kind, target, batch_size):
    X, Y, _ = rows
    options = FIT | {"examples": "rows", "batch_size": batch_size, "l2": 0.1}
    given = files["Y"] if target == "files" else target
    net = xpnet.dask.fit(files[kind], given, client=both, **options)
    assert differ(net, xpnet.fit(X, Y, threads=1, **options)) <= SUMS


def test_validation_data_of_its_own(both, rows, files):
    X, Y, _ = rows
    options = FIT | {"examples": "rows", "batch_size": 64}
    held = da.from_array(X[:150], chunks=(150, 5)), da.from_array(Y[:150], chunks=150)
    net = xpnet.dask.fit(files["X"], files["Y"], validation_data=held, client=both, **options)
    one = xpnet.fit(X, Y, validation_data=(X[:150], Y[:150]), threads=1, **options)
    assert differ(net, one) <= SUMS
    np.testing.assert_allclose(net.history["validation_cost"], one.history["validation_cost"], rtol=SUMS)


@pytest.fixture
def shrunk(both, monkeypatch):
    """A client of two workers that, as this process, take little data to be large; so do those that follow them."""

    class Shrink(distributed.WorkerPlugin):
        name = "shrink"

        def setup(self, worker):
            import xpnet.data

            self.old = {name: getattr(xpnet.data, name) for name in SMALL}
            vars(xpnet.data).update(SMALL)

        def teardown(self, worker):
            vars(xpnet.data).update(self.old)

    for name, value in SMALL.items():
        monkeypatch.setattr(xpnet.data, name, value)
    both.register_plugin(Shrink())
    yield both
    both.unregister_worker_plugin("shrink")


@pytest.mark.parametrize("kind", ["X", "parquet"])
@pytest.mark.parametrize("how", ["batches", "full", "validation"])
def test_files_larger_than_a_window_are_met_in_the_same_order(shrunk, rows, files, kind, how):
    X, Y, _ = rows
    options = FIT | {"examples": "rows", "batch_size": 100, "epochs": 3, "standardize": True}
    options |= {"full": {"batch_size": "full"}, "validation": {"validation_fraction": 0.3}}.get(how, {})
    net = xpnet.dask.fit(files[kind], files["Y"] if kind == "X" else "kind", client=shrunk, **options)
    one = xpnet.fit(X, Y, threads=1, **options)
    assert differ(net, one) <= SUMS
    np.testing.assert_allclose(net.history["validation_cost"], one.history["validation_cost"], rtol=SUMS)


def test_a_worker_that_dies_takes_its_temporary_file_along_and_another_makes_it_anew(shrunk, files, rng):
    given = files["parquet"], "kind"
    options = LONG | {"epochs": 10, "examples": "rows", "client": shrunk}
    undisturbed = xpnet.dask.fit(*given, **options)
    net, hit = struck(shrunk, signal.SIGKILL, given, rng, examples="rows")
    assert hit
    assert same(net, undisturbed)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("batch_size", ["full", 100])
def test_one_worker_trains_on_parquet_as_one_machine_does_bit_for_bit(
    alone, files, rows, batch_size, large, monkeypatch
):
    for name, value in SMALL.items() if large else ():
        monkeypatch.setattr(xpnet.data, name, value)
    options = FIT | {"examples": "rows", "batch_size": batch_size, "validation_fraction": 0.2}
    net = xpnet.dask.fit(files["parquet"], "kind", client=alone, **options)
    given = xpnet.Parquet(files["parquet"], columns=list("abcde"))
    assert same(net, xpnet.fit(given, rows[1], threads=1, **options))


@pytest.fixture
def table(tmp_path):
    """A function that writes columns as a Parquet file and returns its path."""
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")

    def written(name="table", **columns):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table(columns), path)
        return str(path)

    return written


def test_large_parquet_is_read_from_one_file_that_another_process_makes_anew(rows, files, monkeypatch):
    monkeypatch.setattr(xpnet.data, "PERMUTED", 100)
    stored = [parts.Stored(str(path), without=("kind",)) for path in files["parquet"]]
    held = parts.hold(stored, [rows[1][:300], rows[1][300:900], rows[1][900:]], None, examples="rows", device="cpu")
    assert not held.source.in_memory
    assert [chunk.n_examples for chunk in held.chunks] == [300, 600, 300]
    assert len(cloudpickle.dumps(held.source)) < 20_000 < rows[0].nbytes  # as Dask does with what it moves to the disk
    for it in (held.source, cloudpickle.loads(cloudpickle.dumps(held.source))):
        for start, stop in ((1100, 1200), (0, 1200), (299, 301), (650, 650)):
            assert np.array_equal(it.read(start, stop), rows[0][start:stop])
    assert np.array_equal(held.chunks[1].read(10, 20), rows[0][310:320])


def test_columns_of_parquet_that_are_no_plain_numbers(alone, table, rows):
    pyarrow = pytest.importorskip("pyarrow")
    X, Y, _ = rows
    grades = pyarrow.array((X[:, 0] > 0).astype(int)).dictionary_encode()
    path = table(a=X[:, 1], b=grades, kind=np.where(Y, "yes", "no"))
    net = xpnet.dask.fit([path], "kind", client=alone, **FIT | {"examples": "rows"})
    given = np.column_stack([X[:, 1], X[:, 0] > 0])
    assert same(net, xpnet.fit(given, np.where(Y, "yes", "no"), threads=1, **FIT | {"examples": "rows"}))
    with pytest.raises(DataError, match=r"not numbers: 'kind' \(string\)"):
        xpnet.dask.fit([path], "a", client=alone, **FIT | {"examples": "rows", "task": "regression"})
    fit = lambda *paths: xpnet.dask.fit(list(paths), "kind", client=alone, **FIT | {"examples": "rows"})  # noqa: E731
    broken = table("broken", a=[1.0, None] * 20, kind=[0, 1] * 20)
    with pytest.raises(DataError, match="column 'a' has some"):
        fit(broken)
    one, two = table("one", a=[1.0, 2.0], kind=[0, 1]), table("two", a=[1.0, 2.0], c=[1.0, 2.0], kind=[0, 1])
    with pytest.raises(ShapeError, match=r"same columns in the same order.*it also has 'c'"):
        fit(one, two)
    with pytest.raises(ShapeError, match='Pass examples="rows"'):
        xpnet.dask.fit([path], "kind", client=alone, **FIT)


def test_files_are_predicted_piece_by_piece(alone, files, rows):
    net = xpnet.dask.fit(files["parquet"], "kind", client=alone, **FIT | {"examples": "rows"})
    features = [parts.Stored(str(path), without=("kind",)) for path in files["parquet"]]
    predicted = xpnet.dask.predict(net, features, examples="rows").compute(scheduler=alone)
    assert predicted.tolist() == net.predict(rows[0], examples="rows").tolist()


@pytest.mark.parametrize("task", ["regression", "count", "multilabel", "multiclass"])
def test_every_task(both, examples, task):
    X, _, _ = examples
    Y = {
        "regression": np.stack([X[0] ** 2, X[1]]),
        "count": np.floor(np.abs(X[0] * 30)),
        "multilabel": (X[:3] > 0).astype(int),
        "multiclass": np.array(["low", "middle", "very high"])[np.digitize(X[0], [-0.5, 0.5])],
    }[task]
    chunks = (-1, 300) if Y.ndim == 2 else 300
    given = da.from_array(X, chunks=(5, 300)), da.from_array(Y, chunks=chunks)
    options = FIT | {"task": task, "batch_size": 128}
    net, one = xpnet.dask.fit(*given, client=both, **options), xpnet.fit(X, Y, threads=1, **options)
    assert differ(net, one) <= SUMS
    assert np.array_equal(net.classes, one.classes) if one.classes is not None else net.classes is None
    predicted = xpnet.dask.predict(net, given[0]).compute(scheduler=both)
    expected = net.predict(X)
    assert predicted.shape == expected.shape
    if predicted.dtype.kind == "f":
        np.testing.assert_allclose(predicted, expected, rtol=SUMS)
    else:
        assert predicted.tolist() == expected.tolist()
    proba = xpnet.dask.predict_proba(net, given[0])
    assert proba.shape == net.predict_proba(X).shape


# What is refused ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_said_as_on_one_machine(both, examples):
    X, Y, _ = examples
    given, labels = da.from_array(X, chunks=(5, 600)), da.from_array(Y, chunks=600)
    fit = lambda X, Y, **options: xpnet.dask.fit(X, Y, client=both, **FIT | options)  # noqa: E731
    spoiled = X.copy()
    spoiled[3, 1100] = np.nan
    with pytest.raises(DataError, match="feature 3 of example 1100 is nan"):
        fit(da.from_array(spoiled, chunks=(5, 600)), labels)
    with pytest.raises(TargetError, match="one class, 1, in all 1200"):
        fit(given, da.ones(1200, chunks=600, dtype=int))
    with pytest.raises(ShapeError, match="1200 examples in 2 chunks"):
        fit(given, da.from_array(Y[:1000], chunks=500))
    with pytest.raises(DivergedError, match="in epoch"):
        fit(given, labels, learning_rate=1e20, optimizer="gd", activation="relu")
    with pytest.raises(ArgumentError, match=r"For arrays in memory use xpnet\.fit"):
        fit(X, Y)
    with pytest.raises(UnknownArgumentError, match="it is 'epochs'"):
        fit(given, labels, max_iter=3)
    with pytest.raises(ArgumentError, match="features must be left out"):
        fit(given, labels, features="auto")
    with pytest.raises(ArgumentError, match="client must be"):
        xpnet.dask.fit(given, labels, client="tcp://nowhere:1")
    with pytest.raises(FileNotFoundError):
        fit(["missing.npy"], ["missing.npy"])


def test_a_scheduler_that_is_gone_is_an_error_that_names_the_checkpoint(examples):
    X, Y, _ = examples
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        cluster = distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0", silence_logs=50)
        client = distributed.Client(cluster)

        def strike(view):
            if view.epoch == 1:
                cluster.close()

        with pytest.raises(ClusterError, match="goes on from its last"):
            xpnet.dask.fit(
                da.from_array(X, chunks=(5, 600)),
                da.from_array(Y, chunks=600),
                client=client,
                **FIT | {"callbacks": strike},
            )
        client.close()


def test_a_scheduler_that_is_stopped_is_one_line_of_the_command(files, tmp_path, capfd):
    known, kept = tmp_path / "scheduler.json", tmp_path / "run.ckpt"
    common = ["--scheduler-file", str(known), "--no-dashboard"]
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        running("scheduler", *common, "--port", "0", "--dashboard-address", ":0") as scheduler,
        running("worker", *common, "--nthreads", "1"),
    ):

        def strike():
            while not kept.exists():
                time.sleep(0.05)
            scheduler.terminate()

        striking = threading.Thread(target=strike)
        striking.start()
        address = json.loads(known.read_text())["address"]
        options = ["--target", "kind", "--drop", "e", "--epochs", "100000", "--patience", "none", "--quiet"]
        paths = [*map(str, files["parquet"]), "--checkpoint", str(kept), "--checkpoint-every", "0.1"]
        assert main(["fit", *paths, *options, "--cluster", address]) == 2
        striking.join()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("xpnet: error: The scheduler must be there until the end")
    assert said[0].endswith("a fit with --checkpoint goes on from its last.")


@contextlib.contextmanager
def running(*arguments):
    """A program of Dask's, once a scheduler has written where it is."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "dask", *arguments], **quiet) as program:
        try:
            while program.poll() is None and not Path(arguments[2]).exists():
                time.sleep(0.05)
            yield program
        finally:
            program.terminate()


def test_sums_are_encrypted_where_the_cluster_is(examples, tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", certificate]
    subprocess.run([openssl, *made], check=True, capture_output=True)
    files = {"cert": certificate, "key": key}
    roles = ("client", "scheduler", "worker")
    ours = {f"tls_{role}_{kind}": path for role in roles for kind, path in files.items()}
    security = distributed.Security(tls_ca_file=certificate, require_encryption=True, **ours)
    X, Y, weight = examples
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tls://",
            security=security,
            dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        net, one = fit_both(client, X, Y, weight, chunks=600)
    assert differ(net, one) <= SUMS


def test_the_command_has_files_opened_by_a_cluster(cluster, both, files, tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    common = ["--epochs", "3", "--random-state", "0", "--quiet", "--cluster", cluster.scheduler_address]
    parquet, npy = [str(path) for path in files["parquet"]], [str(path) for path in files["both"]]
    assert main(["fit", *parquet, "--target", "kind", "--drop", "e", "--out", str(out), *common]) == 0
    assert "2 workers" in capsys.readouterr().out
    assert xpnet.load(out).feature_names == tuple("abcd")
    assert main(["fit", parquet[0], "--target", "kind", "--drop", "e", *common]) == 0
    assert "1 worker\n" in capsys.readouterr().out  # one file cannot be shared out
    assert main(["fit", *npy, "--target", "0", *common]) == 0
    assert "5-100-1" in capsys.readouterr().out
    assert main(["fit", *parquet, "--target", "color", *common]) == 2
    assert "has no column 'color'" in capsys.readouterr().err
    assert main(["fit", *npy, "--target", "7", *common]) == 2
    assert "has no column '7'" in capsys.readouterr().err
    assert main(["fit", *parquet, "--target", "kind", "--drop", "color", *common]) == 2
    assert "has no column 'color'" in capsys.readouterr().err
    assert main(["fit", *parquet, "--target", "kind", "--features", "auto", *common]) == 2
    assert "--features must be left out" in capsys.readouterr().err
    assert main(["fit", *parquet, "--target", "kind", "--test-fraction", "0.0001", *common]) == 2
    assert "must leave a row on each side" in capsys.readouterr().err
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(["fit", *parquet, "--target", "kind", "--cluster", "tcp://127.0.0.1:9"]) == 2
    assert "There must be a Dask scheduler" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["classes", "words", "numbers", "counts", "numbers as they are", "npy"])
@pytest.mark.parametrize("large", [False, True])
def test_the_command_says_the_same_with_a_cluster_as_without(
    alone, table, rows, tmp_path, capsys, case, large, monkeypatch
):
    for name, value in SMALL.items() if large else ():
        monkeypatch.setattr(xpnet.data, name, value)
    X, Y, _ = rows
    y = {"words": np.where(Y, "yes", "no"), "counts": np.floor(np.abs(30 * X[:, 0]))}.get(case, Y)
    y = 1e3 + 50 * X[:, 0] ** 2 if "numbers" in case else y
    spans = {"whole": slice(0, 1200), "a": slice(0, 500), "b": slice(500, 501), "c": slice(501, 1200)}
    if case == "npy":
        paths = {name: str(tmp_path / f"{name}.npy") for name in spans}
        for name, span in spans.items():
            np.save(paths[name], np.column_stack([X[span], Y[span]]))
    else:
        columns = dict(zip("abcde", X.T, strict=True)) | {"__index_level_0__": np.arange(1200), "y": y}
        paths = {
            name: table(name, **{key: column[span] for key, column in columns.items()}) for name, span in spans.items()
        }
    options = ["--target", "-1" if case == "npy" else "y", "--random-state", "3", "--epochs", "4", "--threads", "1"]
    options += ["--quiet", "--hidden", "8", "--batch-size", "100", "--validation-fraction", "0.1"]
    options += ["--task", "regression" if "numbers" in case else "count" if case == "counts" else "auto"]
    options += ["--no-standardize"] * (case == "numbers as they are")
    found, nets = [], []
    for name, given in {"one": ["whole"], "cluster": ["a", "b", "c"]}.items():
        cluster = ["--cluster", alone.scheduler.address] * (name == "cluster")
        out = str(tmp_path / f"{name}.safetensors")
        assert main(["fit", *(paths[each] for each in given), *options, "--out", out, *cluster]) == 0
        lines = capsys.readouterr().out.splitlines()
        found.append([line for line in lines if line.split()[0] not in ("time", "written", "cluster")])
        nets.append(xpnet.load(out))
    assert found[0] == found[1]
    assert "960 to train on, 240 held out" in "".join(found[0])
    assert differ(*nets) <= SUMS
    assert nets[0].feature_names == nets[1].feature_names


def test_the_command_refuses_a_class_whose_rows_are_all_held_out(alone, table, capsys):
    Y = np.arange(40) % 2
    Y[xpnet.tables.split(40, 0.2, 0)[1][0]] = 2
    paths = [table(str(i), a=np.arange(20.0), y=half) for i, half in enumerate(np.split(Y, 2))]
    assert main(["fit", *paths, "--target", "y", "--random-state", "0", "--cluster", alone.scheduler.address]) == 2
    assert "Every row of the class 2 is held out" in capsys.readouterr().err
