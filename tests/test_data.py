"""Sources give the right rows wherever they are kept, the order is the shape's, the seed's and the epoch's alone, and
a `Loader` gives each example once."""

import mmap
import threading
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet
from xpnet import data
from xpnet.device import HOST, place_of, to_host
from xpnet.errors import ArgumentError

RNG = np.random.default_rng(31)
M, N_X = 23, 4
ROWS = RNG.standard_normal((M, N_X)).astype(np.float32)

EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in ("float32", "float64")}
SUMS = 100
"""Epsilons by which parameters may differ after a few steps on sums taken in another order."""

quietly = settings(deadline=None, database=None)


class Kept:
    """The least that a file must have: a shape, a dtype and slices. It notes what is read, in all and at once."""

    def __init__(self, array, fails_from=None):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.fails_from, self.most, self.all = fails_from, 0, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.most, self.all = max(self.most, part.shape[0]), self.all + part.shape[0]
        if self.fails_from is not None and index[0].stop > self.fails_from:
            raise OSError("the disk is gone")
        return part


def memmap(array, folder, stack):
    path = folder / "array.bin"
    np.ascontiguousarray(array).tofile(path)
    return np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape)


def h5py(array, folder, stack):
    file = stack.enter_context(pytest.importorskip("h5py").File(folder / "array.h5", "w"))
    return file.create_dataset("array", data=array)


def zarr(array, folder, stack):
    made = pytest.importorskip("zarr").create_array(
        str(folder / "array.zarr"), shape=array.shape, dtype=array.dtype, chunks=(7, 7)
    )
    made[...] = array
    return made


def read_only(array, folder, stack):
    array = array.copy()
    array.flags.writeable = False
    return array


KEEPING = {
    "C order": lambda array, *_: np.array(array, order="C"),
    "Fortran order": lambda array, *_: np.array(array, order="F"),
    "every other": lambda array, *_: np.repeat(np.repeat(array, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda array, *_: np.array(array[::-1, ::-1])[::-1, ::-1],
    "read-only": read_only,
    "big-endian": lambda array, *_: array.astype(">f4"),
    "memmap": memmap,
    "h5py": h5py,
    "zarr": zarr,
    "slices": lambda array, *_: Kept(array),
    "nested list": lambda array, *_: array.tolist(),
}

TABLES = {
    "pandas": lambda rows: pytest.importorskip("pandas").DataFrame(rows, columns=list("abcd")),
    "polars": lambda rows: pytest.importorskip("polars").DataFrame(rows, schema=list("abcd")),
    "pyarrow": lambda rows: pytest.importorskip("pyarrow").table(list(rows.T), names=list("abcd")),
}

both_ways = pytest.mark.parametrize("examples", ["columns", "rows"])
everywhere = pytest.mark.parametrize("keeping", KEEPING)


def turned(rows, examples):
    return rows if examples == "rows" else rows.T


@pytest.fixture
def keep(tmp_path):
    """Return a function that keeps an array in one of the ways, for as long as the test lasts."""
    with ExitStack() as stack:

        def keeper(array, keeping):
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            folder.mkdir()
            return KEEPING[keeping](array, folder, stack)

        yield keeper


# --- sources


@everywhere
@both_ways
def test_a_source_reads_the_examples_as_rows(keep, keeping, examples):
    source = data.source(keep(turned(ROWS, examples), keeping), examples=examples)
    assert (source.n_examples, source.n_features) == (M, N_X)
    assert np.array_equal(source.read(0, M), ROWS)
    assert np.array_equal(source.read(5, 9), ROWS[5:9])
    assert source.read(7, 7).shape == (0, N_X)


@both_ways
def test_a_source_reads_every_namespace_in_place(backend, examples):
    source = data.source(backend.asarray(turned(ROWS, examples)), examples=examples)
    part = source.read(5, 9)
    assert place_of(part) == backend.place
    assert np.array_equal(to_host(part), ROWS[5:9])


@everywhere
@both_ways
def test_parts_are_joined_along_the_examples(keep, keeping, examples):
    parts = [turned(ROWS[start:stop], examples) for start, stop in pairwise([0, 4, 5, M])]
    if keeping == "nested list":
        pytest.skip("a list of nested lists is one nested list of three axes")
    source = data.source([keep(part, keeping) for part in parts], examples=examples)
    assert source.n_examples == M
    assert np.array_equal(source.read(0, M), ROWS)
    assert np.array_equal(source.read(2, 11), ROWS[2:11])
    assert np.array_equal(source.read(4, 5), ROWS[4:5])
    assert source.read(M, M).shape == (0, N_X)


def test_parts_in_a_namespace_stay_there(backend):
    source = data.source([backend.asarray(ROWS[:9].T), backend.asarray(ROWS[9:].T)])
    part = source.read(5, 13)
    assert place_of(part) == backend.place
    assert np.array_equal(to_host(part), ROWS[5:13])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parts_on_the_host_are_brought_to_the_first_ones_place(backend, order):
    parts = [backend.asarray(ROWS.T), ROWS.T]
    source = data.source([parts[i] for i in order])
    assert np.array_equal(to_host(source.read(0, 2 * M)), np.concatenate([ROWS, ROWS]))


@pytest.mark.parametrize("library", TABLES)
def test_a_table_is_read_with_its_columns_names(library):
    source = data.source(TABLES[library](ROWS), examples="rows")
    assert source.names == ("a", "b", "c", "d")
    assert np.array_equal(source.read(5, 9), ROWS[5:9])


@pytest.mark.parametrize("library", TABLES)
def test_tables_are_joined_along_the_examples(library):
    source = data.source([TABLES[library](ROWS[:9]), TABLES[library](ROWS[9:])], examples="rows")
    assert source.names == ("a", "b", "c", "d")
    assert np.array_equal(source.read(0, M), ROWS)


@pytest.mark.parametrize("library", TABLES)
def test_a_network_keeps_the_names_of_a_table(library):
    table, Y = TABLES[library](ROWS), np.arange(M) % 2
    net = xpnet.fit(table, Y, examples="rows", hidden=3, epochs=1, random_state=0)
    same = xpnet.fit(ROWS.T, Y, hidden=3, epochs=1, random_state=0)
    assert net.feature_names == ("a", "b", "c", "d")
    assert np.array_equal(net.W1, same.W1)
    assert np.array_equal(net.predict(table, examples="rows"), same.predict(ROWS.T))


def test_a_table_of_several_number_types_is_read_as_numbers():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"whole": [1, 2], "yes": [True, False], "part": [0.5, 1.5]})
    assert data.source(table, examples="rows").read(0, 2).tolist() == [[1.0, 1.0, 0.5], [2.0, 0.0, 1.5]]


SUBSET = np.array([0, 3, 4, 5, 11, 21])


@everywhere
@both_ways
def test_a_subset_reads_the_selected_examples_alone(keep, keeping, examples):
    subset = data.source(keep(turned(ROWS, examples), keeping), examples=examples).subset(SUBSET)
    assert subset.n_examples == SUBSET.size
    assert np.array_equal(subset.read(0, SUBSET.size), ROWS[SUBSET])
    assert np.array_equal(subset.read(2, 5), ROWS[SUBSET[2:5]])
    assert subset.read(3, 3).shape == (0, N_X)


def test_a_subset_stays_in_its_namespace(backend):
    part = data.source(backend.asarray(ROWS.T)).subset(SUBSET).read(2, 5)
    assert place_of(part) == backend.place
    assert np.array_equal(to_host(part), ROWS[SUBSET[2:5]])


@given(st.integers(2, 500), st.floats(0.01, 0.99), st.integers(0, 9))
@quietly
def test_a_split_gives_each_example_to_one_side(m, fraction, seed):
    if not 0 < round(m * fraction) < m:
        with pytest.raises(ArgumentError, match="at least one example on each side"):
            data.split(m, fraction, seed)
        return
    training, held = data.split(m, fraction, seed)
    assert held.size == round(m * fraction)
    assert sorted([*training, *held]) == list(range(m))
    assert (np.diff(training) > 0).all()
    assert (np.diff(held) > 0).all()


@pytest.mark.parametrize("m", [1, 4_096, 4_097, 100_003])
def test_a_sample_is_some_examples_from_all_over(m):
    source = data.source(np.arange(m, dtype=np.float32)[None, :])
    sampled = np.concatenate(data.sample(source))[:, 0]
    assert np.unique(sampled).size == sampled.size
    assert sampled.size == m if m <= 4_096 else 4_096 <= sampled.size <= 4_096 * 17 // 16
    assert sampled[-1] - sampled[0] >= 0.9 * (m - 1)


# --- order


@pytest.fixture(params=["one permutation", "windows", "windows, picked out of maps"])
def order(request, monkeypatch):
    """Both ways to order examples: the data is small enough for one permutation, and it is not."""
    if request.param != "one permutation":
        small_windows(monkeypatch)
    if "picked" in request.param:
        monkeypatch.setattr(data, "MAPPED", 64)


def small_windows(monkeypatch, run=16, window=160, permuted=64):
    for name, value in (("RUN", run), ("WINDOW", window), ("PERMUTED", permuted)):
        monkeypatch.setattr(data, name, value)


def met(m, n_x, batch_size, *, seed=0, epoch=0, shuffle=True):
    """Return the examples of one epoch in the order in which they are met."""
    windows = data.windows(m, n_x, batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    return np.concatenate([np.concatenate([np.arange(*run) for run in runs])[order] for runs, order in windows])


shapes = st.tuples(st.integers(1, 300), st.integers(1, 9), st.integers(1, 400))
limits = st.tuples(st.integers(1, 20), st.integers(1, 300), st.integers(0, 500))


@given(shapes, limits, st.integers(0, 5), st.integers(0, 5))
@quietly
def test_an_epoch_meets_each_example_once(shape, limit, seed, epoch):
    with pytest.MonkeyPatch.context() as patch:
        small_windows(patch, *limit)
        assert sorted(met(*shape, seed=seed, epoch=epoch)) == list(range(shape[0]))


@given(shapes, limits)
@quietly
def test_without_shuffling_the_examples_come_as_they_lie(shape, limit):
    with pytest.MonkeyPatch.context() as patch:
        small_windows(patch, *limit)
        assert met(*shape, shuffle=False).tolist() == list(range(shape[0]))


@given(shapes, limits)
@quietly
def test_every_epoch_has_windows_of_the_same_sizes(shape, limit):
    with pytest.MonkeyPatch.context() as patch:
        small_windows(patch, *limit)
        sizes = [
            [window.order.size for window in data.windows(*shape, seed=3, epoch=epoch, shuffle=shuffle)]
            for epoch, shuffle in ((0, True), (1, True), (0, False))
        ]
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0)])
def test_the_order_differs_by_epoch_and_by_seed(order, seed, epoch):
    assert not np.array_equal(met(200, 5, 32), met(200, 5, 32, seed=seed, epoch=epoch))


def test_the_order_is_the_same_for_the_same_seed_and_epoch(order):
    assert np.array_equal(met(200, 5, 32, seed=4, epoch=7), met(200, 5, 32, seed=4, epoch=7))


def test_a_window_holds_examples_from_all_over(monkeypatch):
    small_windows(monkeypatch, run=16, window=16 * 4 * 5)
    first = next(data.windows(4_000, 5, 32, seed=0, epoch=0, shuffle=True))
    assert len(first.runs) == 4
    assert np.ptp([start for start, _ in first.runs]) > 1_000


def test_the_examples_of_a_window_are_mixed(monkeypatch):
    small_windows(monkeypatch, run=16, window=16 * 4 * 5)
    batch = met(4_000, 5, 32)[:32]
    assert np.unique(batch // 16).size == 4
    assert (np.diff(batch) != 1).sum() > 20


@pytest.mark.parametrize(
    ("m", "columns"), [(1, 1), (31, 31), (32, 32), (1_000, 32), (2_048, 64), (60_000, 1_024), (10**7, 4_096)]
)
def test_the_automatic_batch_is_a_power_of_two_near_a_32nd(m, columns):
    assert data.batch_columns("auto", m) == columns


@pytest.mark.parametrize(("given", "columns"), [("full", 1_000), (10**9, 1_000), (64, 64), (np.int64(7), 7)])
def test_a_batch_has_the_columns_asked_for(given, columns):
    assert data.batch_columns(given, 1_000) == columns


@pytest.mark.parametrize(("batch_size", "steps"), [(32, 4), (50, 2), (100, 1), (10**9, 1), ("full", 1)])
def test_an_epoch_takes_a_step_for_each_batch(order, batch_size, steps):
    X, Y = np.arange(100.0)[None, :] / 100, np.arange(100) % 2
    net = xpnet.fit(X, Y, hidden=2, epochs=3, batch_size=batch_size, random_state=0)
    assert net.timing["steps"] == 3 * steps


# --- training does not depend on where the data is kept

LONG = RNG.standard_normal((611, 5)).astype(np.float32)
LABELS = (LONG @ RNG.standard_normal(5) + 0.5 * RNG.standard_normal(611) > 0).astype(int)
WEIGHT = RNG.uniform(0.5, 2.0, 611)

TRAINING = {
    "minibatches": {},
    "held out": {"validation_fraction": 0.2},
    "weighted": {"sample_weight": WEIGHT, "class_weight": "balanced"},
    "standardized": {"standardize": True},
    "all of these": {"validation_fraction": 0.2, "sample_weight": WEIGHT, "standardize": True},
}


def train(X, **arguments):
    return xpnet.fit(X, LABELS, **{"hidden": 6, "epochs": 3, "batch_size": 32, "random_state": 2, **arguments})


def bits(net):
    """Return all that training gives but the times: parameters and costs."""
    parameters = [array.tobytes() for layer in net.layers for array in layer]
    return parameters, net.history["cost"], net.history["validation_cost"]


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("keeping", ["memmap", "h5py", "zarr", "slices"])
@both_ways
def test_files_train_to_the_same_bits_as_memory(keep, order, keeping, training, examples):
    X, arguments = turned(LONG, examples), TRAINING[training] | {"examples": examples}
    assert bits(train(keep(X, keeping), **arguments)) == bits(train(np.array(X), **arguments))


@pytest.mark.parametrize("training", ["minibatches", "held out", "weighted"])
@pytest.mark.parametrize("keeping", ["Fortran order", "reversed", "big-endian", "nested list"])
def test_layouts_train_to_the_same_bits(keep, order, keeping, training):
    arguments = TRAINING[training]
    assert bits(train(keep(LONG.T, keeping), **arguments)) == bits(train(LONG.T, **arguments))


def test_parts_in_memory_and_on_disk_train_to_the_same_bits_as_one(keep, order):
    parts = [LONG[:100].T, keep(LONG[100:350].T, "memmap"), keep(LONG[350:].T, "h5py")]
    assert bits(train(parts)) == bits(train(LONG.T))


FULL = {
    "gd": {"batch_size": "full", "optimizer": "gd"},
    "lbfgs": {"batch_size": "auto", "optimizer": "lbfgs"},
    "standardized": {"batch_size": "full", "standardize": True},
    "held out": {"batch_size": "full", "validation_fraction": 0.2, "sample_weight": WEIGHT},
}


@pytest.mark.parametrize("training", FULL)
@pytest.mark.parametrize("keeping", ["memmap", "h5py", "zarr"])
@both_ways
def test_full_batches_of_files_train_to_the_same_bits_as_memory(keep, order, monkeypatch, keeping, training, examples):
    monkeypatch.setattr(data, "READ", 100)  # 20 examples at a time
    X, arguments = np.ascontiguousarray(turned(LONG, examples)), FULL[training] | {"examples": examples}
    assert bits(train(keep(X, keeping), **arguments)) == bits(train(X, **arguments))


@pytest.mark.parametrize("keeping", ["memmap", "h5py", "zarr"])
@pytest.mark.parametrize("standardize", [False, True])
@both_ways
def test_predictions_scores_and_costs_of_files_are_those_of_memory(
    keep, order, monkeypatch, keeping, standardize, examples
):
    monkeypatch.setattr(data, "READ", 100)
    monkeypatch.setattr(xpnet.network, "PREDICTED", 700)
    memory = np.ascontiguousarray(turned(LONG, examples))
    file, net = keep(memory, keeping), train(memory, standardize=standardize, examples=examples)
    for method, Y in (("predict", ()), ("predict_proba", ()), ("score", (LABELS,)), ("cost", (LABELS,))):
        ours, known = (getattr(net, method)(X, *Y, examples=examples) for X in (file, memory))
        assert np.array_equal(ours, known), method
    joined = np.concatenate(list(net.outputs(file, examples=examples)), axis=1)
    assert np.array_equal(joined, net.predict_proba(memory, examples=examples))
    assert_no_reader_is_left()


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "count"])
def test_targets_that_are_encoded_as_needed_train_and_score_as_in_memory(keep, monkeypatch, task):
    small_windows(monkeypatch)
    monkeypatch.setattr(data, "READ", 100)
    monkeypatch.setattr(xpnet.targets, "COLUMNS", 50)
    Y = {
        "multiclass": np.array(["one", "two", "three"])[RNG.integers(0, 3, 611)],
        "multilabel": RNG.integers(0, 2, (3, 611)),
        "regression": RNG.standard_normal((2, 611)),
        "count": RNG.poisson(2.0, 611),
    }[task]
    file, memory = keep(LONG.T, "memmap"), np.ascontiguousarray(LONG.T)
    common = {"task": task, "hidden": 6, "epochs": 3, "batch_size": 32, "random_state": 2, "verbose": False}
    ours, known = (xpnet.fit(X, Y, sample_weight=WEIGHT, **common) for X in (file, memory))
    assert bits(ours) == bits(known)
    assert {finding.kind for finding in ours.diagnosis} == {finding.kind for finding in known.diagnosis}
    assert ours.score(file, Y, sample_weight=WEIGHT) == known.score(memory, Y, sample_weight=WEIGHT)
    assert ours.cost(file, Y, sample_weight=WEIGHT) == known.cost(memory, Y, sample_weight=WEIGHT)


def test_few_examples_that_lie_far_apart_are_read_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(data, "READ", 16 * LONG.shape[1])
    file = Kept(LONG)
    some = data.source(file, examples="rows").subset(np.array([0, 3, 300, 610]))
    assert np.array_equal(some.read(0, 4), LONG[[0, 3, 300, 610]])
    assert file.most <= 16


def test_what_was_changed_in_a_private_map_alone_is_kept(tmp_path, monkeypatch):
    small_windows(monkeypatch)
    np.save(tmp_path / "X.npy", np.zeros_like(LONG))
    private = np.load(tmp_path / "X.npy", mmap_mode="c")
    private[...] = LONG
    assert bits(train(private, examples="rows")) == bits(train(LONG.T))
    assert np.array_equal(private, LONG)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_pages_that_were_read_are_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PERMUTED", 2**18)
    np.save(tmp_path / "X.npy", np.ones((2**16, 100), np.float32))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    shared = [int(Path("/proc/self/statm").read_text().split()[2])]
    net = xpnet.fit(mapped, np.arange(2**16) % 2, hidden=2, epochs=1, examples="rows", random_state=0)
    net.predict(mapped, examples="rows")
    shared.append(int(Path("/proc/self/statm").read_text().split()[2]))
    assert shared[1] - shared[0] < mapped.nbytes / mmap.PAGESIZE / 2


@pytest.mark.parametrize("batch_size", [32, "full"])
def test_files_are_read_a_few_blocks_at_a_time(monkeypatch, batch_size):
    small_windows(monkeypatch)
    monkeypatch.setattr(data, "READ", 16 * LONG.shape[1])
    file = Kept(LONG)
    train(file, examples="rows", batch_size=batch_size, standardize=True)
    assert file.most == data.RUN


def batches(X, batch_size, **arguments):
    """Return the columns of a pass's batches."""
    source = data.source(X, examples="rows")
    given = data.Examples(source, HOST, "float32", None, LABELS[:, None].astype("float32")).kept(gathered=True)
    passed = given.batches(batch_size, seed=1, epoch=2, **arguments)
    return [[array.tolist() for array in piece.taken(HOST)[:2]] for batch in passed for piece in batch.pieces]


@pytest.mark.parametrize("keeping", ["C order", "memmap"])
@pytest.mark.parametrize("batch_size", [32, 50, 500, 611])
def test_a_pass_that_goes_on_gives_the_batches_that_are_left(keep, order, keeping, batch_size):
    whole = batches(keep(LONG, keeping), batch_size)
    for done in range(len(whole) + 2):
        assert batches(keep(LONG, keeping), batch_size, done=done) == whole[done:]


def test_a_pass_that_goes_on_reads_no_window_that_is_done(monkeypatch):
    small_windows(monkeypatch)  # windows of 32 examples, the last of 35
    read = []
    for done in (0, 1, 2, 16, 37, 38, 39):
        batches(file := Kept(LONG), 16, done=done)
        read.append(file.all)
    assert read == [611, 611, 611 - 32, 611 - 8 * 32, 35, 35, 0]


@pytest.mark.parametrize("batch_size", [32, "full"])
def test_an_error_of_the_disk_comes_out_of_fit(monkeypatch, batch_size):
    monkeypatch.setattr(data, "READ", 16 * LONG.shape[1])
    with pytest.raises(OSError, match="the disk is gone"):
        train(Kept(LONG, fails_from=300), examples="rows", batch_size=batch_size)
    assert_no_reader_is_left()


# --- standardizing


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Data that is read at once, and a few examples at a time."""
    if request.param == "many blocks":
        monkeypatch.setattr(data, "READ", 10 * N_X)


def scaling_of(rows, dtype="float64"):
    return data.scaling_of(data.source(rows, examples="rows"), dtype)


def test_means_and_deviations_are_numpys(blocks):
    rows = RNG.normal(3.0, [1e-3, 1.0, 10.0, 1e6], size=(1_001, 4))
    mean, deviation = scaling_of(rows)
    tolerance = SUMS * EPSILON["float64"]
    assert np.allclose(mean, rows.mean(axis=0), rtol=tolerance, atol=tolerance * 1e6)
    assert np.allclose(deviation, rows.std(axis=0), rtol=tolerance)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_large_mean_costs_the_deviation_no_digits(blocks, kind):
    # Multiples of 2⁻²⁰ between −1 and 1: their sum with 10⁹ is exact in float64, so the answer is known.
    noise = RNG.integers(-(2**20), 2**20, size=(1_001, N_X)) / 2**20
    rows = 1e9 + noise
    given = rows if kind == "numpy" else pytest.importorskip("torch").asarray(rows)
    mean, deviation = scaling_of(given, dtype="float32")
    assert np.allclose(mean - 1e9, noise.mean(axis=0), rtol=0, atol=1e9 * SUMS * EPSILON["float64"])
    assert np.allclose(deviation, noise.std(axis=0), rtol=SUMS * EPSILON["float64"])


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_network_sees_the_digits_behind_a_large_mean(kind):
    noise = RNG.integers(-(2**20), 2**20, size=(2, 400)) / 2**20
    Y, X = (noise[0] > 0).astype(int), 1e9 + noise
    X = X if kind == "numpy" else pytest.importorskip("torch").asarray(X)
    net = xpnet.fit(X, Y, hidden=(), standardize=True, optimizer="lbfgs", random_state=0)
    assert net.score(X, Y) > 0.95


def test_deviations_of_every_namespace(blocks, backend, dtype):
    rows = RNG.normal(1.0, [0.5, 1.0, 2.0, 4.0], size=(301, 4)).astype(dtype)
    mean, deviation = scaling_of(backend.asarray(rows), dtype=dtype)
    tolerance = SUMS * EPSILON[dtype]
    assert np.allclose(mean, rows.astype(float).mean(axis=0), rtol=tolerance, atol=tolerance)
    assert np.allclose(deviation, rows.astype(float).std(axis=0), rtol=tolerance)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.0, 1e9, 1e-20])
def test_a_constant_feature_has_deviation_1(blocks, backend, dtype, constant):
    mean, deviation = scaling_of(backend.asarray(np.full((301, 4), constant, dtype=dtype)), dtype=dtype)
    assert deviation.tolist() == [1.0] * 4
    assert np.allclose(mean, np.full(4, constant, dtype=dtype), rtol=EPSILON[dtype])


def test_a_feature_that_is_constant_up_to_rounding_has_deviation_1(blocks):
    rows = np.where(np.arange(300)[:, None] % 2, 0.3, 0.1 + 0.2) * np.ones(N_X)
    assert np.ptp(rows) > 0
    assert scaling_of(rows)[1].tolist() == [1.0] * N_X


# --- Loader

COUNTED = np.stack([np.arange(101), RNG.integers(0, 9, 101)]).astype(np.float32)  # X[0] tells which example it is
TWICE = 2 * COUNTED[0]


def passed(loader):
    """Return the X and Y of one pass, batch after batch, on the host."""
    batches = [tuple(to_host(array) for array in batch) for batch in loader]
    return tuple(np.concatenate(arrays, axis=-1) for arrays in zip(*batches, strict=True))


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xpnet-read")]


def assert_no_reader_is_left():
    assert readers() == []


prefetching = pytest.mark.parametrize("prefetch", [0, 1, 2, 50])


@prefetching
@both_ways
def test_a_pass_gives_each_example_once_with_its_own_y(order, backend, prefetch, examples):
    X, Y = backend.asarray(turned(COUNTED.T, examples)), backend.asarray(TWICE)
    X_met, Y_met = passed(xpnet.Loader(X, Y, batch_size=16, prefetch=prefetch, examples=examples))
    numbers = X_met[0].astype(int)
    assert sorted(numbers) == list(range(101))
    assert np.array_equal(X_met, COUNTED[:, numbers])
    assert np.array_equal(Y_met, TWICE[numbers])


def test_batches_have_the_columns_asked_for():
    shapes = [(X.shape, Y.shape) for X, Y in xpnet.Loader(COUNTED, TWICE, batch_size=25)]
    assert shapes == [((2, 25), (25,))] * 4 + [((2, 1), (1,))]


@pytest.mark.parametrize("batch_size", [101, 10**9])
def test_one_batch_may_hold_all_and_is_shuffled_too(order, keep, batch_size):
    for X in (COUNTED, keep(COUNTED, "memmap")):
        batches = list(xpnet.Loader(X, TWICE, batch_size=batch_size))
        assert len(batches) == 1
        assert batches[0][0][0].tolist() != list(range(101))
        assert sorted(batches[0][0][0]) == list(range(101))


def test_each_pass_has_an_order_of_its_own(order):
    loader = xpnet.Loader(COUNTED, TWICE, batch_size=16)
    first, second = passed(loader)[0], passed(loader)[0]
    assert not np.array_equal(first, second)
    assert loader.epoch == 2


def test_the_same_random_state_gives_the_same_orders(order):
    left, right = (xpnet.Loader(COUNTED, TWICE, batch_size=16, random_state=5) for _ in range(2))
    assert [passed(left)[0].tolist() for _ in range(3)] == [passed(right)[0].tolist() for _ in range(3)]


def test_another_random_state_gives_another_order(order):
    left, right = (xpnet.Loader(COUNTED, TWICE, batch_size=16, random_state=seed) for seed in (5, 6))
    assert not np.array_equal(passed(left)[0], passed(right)[0])


def test_without_shuffling_a_pass_goes_as_the_data_lies(order):
    X, Y = passed(xpnet.Loader(COUNTED, TWICE, batch_size=16, shuffle=False))
    assert np.array_equal(X, COUNTED)
    assert np.array_equal(Y, TWICE)


@given(st.integers(1, 120), st.integers(1, 150), limits, st.booleans())
@quietly
def test_the_length_is_the_number_of_batches(m, batch_size, limit, shuffle):
    with pytest.MonkeyPatch.context() as patch:
        small_windows(patch, *limit)
        loader = xpnet.Loader(np.ones((3, m)), batch_size=batch_size, shuffle=shuffle, prefetch=0)
        assert [sum(1 for _ in loader) for _ in range(3)] == [len(loader)] * 3


TWO = np.stack([TWICE, -TWICE])


@pytest.mark.parametrize(
    ("examples", "Y", "shape"),
    [
        pytest.param("columns", TWICE, (16,), id="one number"),
        pytest.param("columns", TWICE.tolist(), (16,), id="a list"),
        pytest.param("columns", TWICE[None, :], (1, 16), id="a row"),
        pytest.param("columns", TWO, (2, 16), id="two rows"),
        pytest.param("rows", TWICE, (16,), id="one number, in rows"),
        pytest.param("rows", TWICE[:, None], (1, 16), id="a column, in rows"),
        pytest.param("rows", TWO.T, (2, 16), id="two columns, in rows"),
    ],
)
def test_batches_of_y_have_the_form_of_y_with_examples_as_columns(examples, Y, shape):
    loader = xpnet.Loader(turned(COUNTED.T, examples), Y, batch_size=16, examples=examples)
    X_batch, Y_batch = next(iter(loader))
    assert Y_batch.shape == shape
    wanted = 2 * X_batch[0] if Y_batch.ndim == 1 else np.stack([2 * X_batch[0], -2 * X_batch[0]])[: shape[0]]
    assert np.array_equal(Y_batch, wanted)


def test_without_y_batches_are_x_alone():
    batches = list(xpnet.Loader(COUNTED, batch_size=16))
    assert sorted(np.concatenate(batches, axis=1)[0]) == list(range(101))


def test_batches_come_out_where_x_lives(backend, dtype):
    X_batch, Y_batch = next(iter(xpnet.Loader(backend.asarray(COUNTED), TWICE, batch_size=16, dtype=dtype)))
    assert place_of(X_batch) == place_of(Y_batch) == backend.place
    assert X_batch.dtype == Y_batch.dtype == getattr(backend.xp, dtype)


def test_batches_of_parts_come_out_where_the_first_part_lives(backend):
    parts = [backend.asarray(COUNTED[:, :50]), backend.asarray(COUNTED[:, 50:])]
    X_batch, _ = next(iter(xpnet.Loader(parts, TWICE, batch_size=16)))
    assert place_of(X_batch) == backend.place


def test_batches_come_out_on_the_device_asked_for(backend):
    X_batch, Y_batch = next(iter(xpnet.Loader(backend.asarray(COUNTED), TWICE, batch_size=16, device="cpu")))
    assert isinstance(X_batch, np.ndarray)
    assert isinstance(Y_batch, np.ndarray)


@pytest.mark.parametrize("keeping", ["memmap", "h5py", "zarr"])
def test_a_loader_gives_files_as_it_gives_memory(keep, order, keeping):
    on_disk = passed(xpnet.Loader(keep(COUNTED, keeping), TWICE, batch_size=16))
    in_memory = passed(xpnet.Loader(COUNTED, TWICE, batch_size=16))
    assert np.array_equal(on_disk[0], in_memory[0])
    assert np.array_equal(on_disk[1], in_memory[1])


@pytest.mark.parametrize("keeping", ["C order", "memmap"])
@pytest.mark.parametrize("passes", ["whole", "closed", "left"])
@prefetching
def test_a_pass_leaves_no_thread_behind(keep, order, keeping, passes, prefetch):
    loader = xpnet.Loader(keep(COUNTED, keeping), TWICE, batch_size=16, prefetch=prefetch)
    if passes == "whole":
        list(loader)
    elif passes == "closed":
        batches = iter(loader)
        next(batches)
        batches.close()
    else:
        for _ in loader:
            break
    assert_no_reader_is_left()


@prefetching
def test_an_error_of_the_disk_comes_out_of_the_loader(monkeypatch, prefetch):
    small_windows(monkeypatch)
    loader = xpnet.Loader(Kept(COUNTED.T, fails_from=80), TWICE, batch_size=16, prefetch=prefetch, examples="rows")
    with pytest.raises(OSError, match="the disk is gone"):
        list(loader)
    assert_no_reader_is_left()


@prefetching
def test_bad_numbers_in_a_file_are_named_by_the_loader(monkeypatch, prefetch):
    small_windows(monkeypatch)
    rows = COUNTED.T.astype(np.float64)
    rows[70, 1] = 1e300
    loader = xpnet.Loader(Kept(rows), TWICE, batch_size=16, prefetch=prefetch, examples="rows")
    with pytest.raises(xpnet.errors.DataError, match=r"fit in float32; feature 1 of example 70 is 1e\+300"):
        list(loader)


@pytest.mark.parametrize("keeping", ["C order", "memmap"])
def test_a_fit_on_a_loader_is_the_fit_on_its_arrays(keep, order, keeping):
    X = keep(LONG.T, keeping)
    loader = xpnet.Loader(X, LABELS, batch_size=32, random_state=9)
    net = xpnet.fit(loader, hidden=6, epochs=3)
    assert net.random_state == 9
    assert bits(net) == bits(train(X, random_state=9))


def test_a_fit_on_a_loader_in_rows_is_the_fit_on_its_arrays():
    loader = xpnet.Loader(LONG, LABELS, batch_size=32, random_state=9, examples="rows")
    assert bits(xpnet.fit(loader, hidden=6, epochs=3)) == bits(train(LONG.T, random_state=9))


def test_settings_of_fit_come_before_a_loaders():
    loader = xpnet.Loader(LONG.T, LABELS, batch_size=64, random_state=9)
    assert bits(xpnet.fit(loader, hidden=6, epochs=3, batch_size=32, random_state=2)) == bits(train(LONG.T))
