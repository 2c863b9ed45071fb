"""Data larger than the device, a device that runs out of memory, and one that fails: with none of it at hand.

The device is NumPy dressed as one: a namespace of its own, whose examples come through a real ring from a simulated
copy engine, and which runs out of memory, or fails as CUDA does, when it is told to. What needs a GPU has not yet been
run on one.
"""

import gc
import math
import shutil
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from host_cuda import HostLauncher
from simulated import SimulatedDevice

import xpnet
from xpnet import data, device, engine, files, optimizers
from xpnet.device import Place
from xpnet.errors import (
    DeviceError,
    DeviceMemoryWarning,
)

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(7)

M, N_X = 611, 5
X = RNG.standard_normal((N_X, M)).astype(np.float32)
Y = (X[0] * X[1] + 0.5 * RNG.standard_normal(M) > 0).astype(int)
WEIGHT = RNG.uniform(0.5, 2.0, M)

SUMS = 100
"""Epsilons by which parameters may differ after a few steps on sums taken in another order, relative to their norm."""


# --- NumPy, dressed as a device


class AtOnce:
    """The queue of a stream in which everything is done when it is queued."""

    def put(self, task):
        task()


class CallersStream:
    """The calling thread as a stream: NumPy computes in it, and waits in it."""

    def __init__(self, device):
        self.device, self.queue, self.clock = device, AtOnce(), 0.0

    def wait_event(self, event):
        if event.ticket is not None:
            event.ticket.wait()
            self.clock = max(self.clock, event.ticket.at)

    def synchronize(self):
        self.device.called("synchronize by the caller")


class Simulated(SimulatedDevice):
    """A device that computes in the calling thread and copies in threads of its own."""

    def current_stream(self):
        self.called("current_stream")
        return CallersStream(self)


class Dressed(Place):
    """A place as CUDA's are: apart from the host, with so many bytes free."""

    free, released = 2**40, 0

    @property
    def is_cuda(self):
        return True

    def room(self):
        return type(self).free

    def release(self):
        type(self).released += 1

    def active(self):
        return nullcontext()

    def multiplying(self, *, tf32):
        return nullcontext()


@pytest.fixture
def dressed(monkeypatch):
    """Return the place that ``device="cuda"`` is for the duration of a test; its simulated device is `.simulated`."""
    namespace = types.ModuleType("dressed_numpy")
    namespace.__dict__.update({name: getattr(np, name) for name in dir(np) if not name.startswith("__")})
    namespace.__array_namespace_info__ = np.__array_namespace_info__
    monkeypatch.setitem(sys.modules, "dressed_numpy", namespace)
    monkeypatch.setattr(Dressed, "free", 2**40)
    monkeypatch.setattr(Dressed, "released", 0)
    place = Dressed("dressed_numpy", "cpu", "cuda:0")
    monkeypatch.setattr(device, "_probe", lambda _: None)
    monkeypatch.setattr(device, "_cuda_place", lambda _: place)
    with Simulated(device_room=2**24, pinned_room=2**24) as simulated:
        Dressed.simulated = simulated
        monkeypatch.setattr(data, "CudaDevice", lambda _: simulated)
        monkeypatch.setattr(engine, "CudaLauncher", HostLauncher)
        yield place
    gc.collect()  # of an exception that a test kept, whose traceback holds what was lent
    assert simulated.faults == []
    assert simulated.live == 0


@pytest.fixture
def too_small(dressed, monkeypatch):
    """Return the place with room for a batch and none for X."""
    monkeypatch.setattr(Dressed, "free", 4 * X.size)
    return dressed


@pytest.fixture(autouse=True)
def nothing_runs_afterwards():
    before = set(threading.enumerate())
    yield
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("xpnet") and thread not in before]
    assert ours == []


@pytest.fixture(params=["one permutation", "windows", "windows, picked out of maps"])
def order(request, monkeypatch):
    """Both ways to order examples: the data is small enough for one permutation, and it is not."""
    if request.param != "one permutation":
        for name, value in (("RUN", 16), ("WINDOW", 160), ("PERMUTED", 64)):
            monkeypatch.setattr(data, name, value)
    if "picked" in request.param:
        monkeypatch.setattr(data, "MAPPED", 64)


def memmap(array, folder):
    np.ascontiguousarray(array).tofile(folder / "array.bin")
    return np.memmap(folder / "array.bin", dtype=array.dtype, mode="r", shape=array.shape)


KEEPING = {
    "columns": lambda X, _: (X, "columns"),
    "rows": lambda X, _: (np.ascontiguousarray(X.T), "rows"),
    "float64": lambda X, _: (X.astype(np.float64), "columns"),
    "file of columns": lambda X, folder: (memmap(X, folder), "columns"),
    "file of rows": lambda X, folder: (memmap(X.T, folder), "rows"),
}

TRAINING = {
    "minibatches": {},
    "held out": {"validation_fraction": 0.2},
    "weighted": {"sample_weight": WEIGHT, "class_weight": "balanced"},
    "standardized": {"standardize": True},
    "all of these": {"validation_fraction": 0.2, "sample_weight": WEIGHT, "standardize": True},
}

everywhere = pytest.mark.parametrize("keeping", KEEPING)
every_training = pytest.mark.parametrize("training", TRAINING)


def fit(X=X, **arguments):
    settings = {"hidden": 6, "epochs": 3, "batch_size": 32, "random_state": 2, "device": "cuda", "patience": None}
    return xpnet.fit(X, Y, **settings | arguments)


def bits(net):
    """Return all that training gives but the times: parameters and costs."""
    parameters = [np.asarray(array).tobytes() for layer in net.layers for array in layer]
    return parameters, net.history["cost"], net.history["validation_cost"]


def theta(net):
    return np.concatenate([np.asarray(array).ravel() for layer in net.layers for array in layer]).astype(float)


def apart(left, right):
    """Return how far two vectors are apart, relative to the second's norm."""
    left, right = (np.asarray(vector, dtype=float) for vector in (left, right))
    return np.linalg.norm(left - right) / np.linalg.norm(right)


# --- data larger than the device


@everywhere
@every_training
def test_through_the_ring_one_seed_gives_the_network_of_resident_data(
    dressed, order, monkeypatch, tmp_path, keeping, training
):
    given, examples = KEEPING[keeping](X, tmp_path)
    arguments = TRAINING[training] | {"examples": examples}
    resident = fit(given, **arguments)
    assert "bytes_moved" not in resident.timing
    monkeypatch.setattr(Dressed, "free", 4 * X.size)
    streamed = fit(given, **arguments)
    assert streamed.timing["bytes_moved"] > 0
    assert bits(streamed)[:2] == bits(resident)[:2]
    tolerance = SUMS * float(np.finfo("float32").eps)
    assert np.allclose(streamed.history["validation_cost"], resident.history["validation_cost"], rtol=tolerance)


@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
def test_through_the_ring_every_optimizer_steps_as_on_resident_data(dressed, order, monkeypatch, optimizer):
    resident = fit(optimizer=optimizer)
    monkeypatch.setattr(Dressed, "free", 4 * X.size)
    assert bits(fit(optimizer=optimizer)) == bits(resident)


@pytest.mark.parametrize("arguments", [{"batch_size": "full", "optimizer": "gd"}, {"optimizer": "lbfgs"}])
@everywhere
def test_full_batches_through_the_ring_differ_by_rounding_alone(dressed, monkeypatch, tmp_path, keeping, arguments):
    given, examples = KEEPING[keeping](X, tmp_path)
    arguments = {"batch_size": "auto", "dtype": "float64", "examples": examples, **arguments}
    resident = fit(given, **arguments)
    monkeypatch.setattr(Dressed, "free", 8 * X.size)
    monkeypatch.setattr(data, "READ", 100)  # 20 examples at a time
    streamed = fit(given, **arguments)
    assert streamed.timing["bytes_moved"] > 0
    assert apart(theta(streamed), theta(resident)) <= SUMS * np.finfo("float64").eps


def test_a_cost_over_data_larger_than_the_device_is_the_whole_cost(dressed, monkeypatch):
    net = fit(dtype="float64")
    whole = net.cost(X, Y)
    monkeypatch.setattr(Dressed, "free", 8 * X.size)
    monkeypatch.setattr(data, "READ", 100)
    assert net.cost(X, Y) == pytest.approx(whole, rel=SUMS * np.finfo("float64").eps)
    assert dressed.simulated.calls["copy"] > 20


@everywhere
def test_files_and_arrays_that_fit_the_device_are_brought_there_once(dressed, monkeypatch, tmp_path, keeping):
    given, examples = KEEPING[keeping](X, tmp_path)
    fit(given, examples=examples)
    assert "copy" not in dressed.simulated.calls


@pytest.mark.parametrize(
    ("arguments", "item"), [({}, 4), ({"dtype": "float64"}, 8), ({"standardize": True}, 4), ({"hidden": 600}, 4)]
)
def test_examples_are_resident_within_their_share_of_free_memory(dressed, monkeypatch, arguments, item):
    sizes = (N_X, arguments.get("hidden", 6), 1)
    bytes_of_step = np.dtype(arguments.get("dtype", "float32")).itemsize * engine.peak(sizes, 32)
    needed = (item * X.size + min(bytes_of_step, item * X.size)) / data.RESIDENT
    for free, streamed in ((math.ceil(needed), False), (math.floor(needed) - 1, True)):
        monkeypatch.setattr(Dressed, "free", free)
        assert ("bytes_moved" in fit(epochs=1, **arguments).timing) == streamed


def test_the_timing_tells_the_bytes_and_the_seconds(too_small):
    timing = fit().timing
    data_bytes = 3 * M * (N_X + 1) * 4
    assert data_bytes <= timing["bytes_moved"] < 2 * data_bytes  # Y begins at a multiple of 256 bytes
    assert {"hidden_copy_seconds", "exposed_copy_seconds", "compute_seconds"} <= set(timing)


def test_the_timing_survives_a_file(too_small, tmp_path):
    net = fit()
    net.save(tmp_path / "net.safetensors")
    assert dict(xpnet.load(tmp_path / "net.safetensors").timing) == dict(net.timing)


@pytest.mark.parametrize("keeping", ["columns", "file of columns"])
def test_the_host_waits_for_the_device_as_often_whatever_the_number_of_batches(too_small, tmp_path, keeping):
    given, examples = KEEPING[keeping](X, tmp_path)
    waits = []
    for batch_size in (300, 4):
        too_small.simulated.calls.clear()
        fit(given, examples=examples, batch_size=batch_size)
        waits.append(too_small.simulated.calls["synchronize by the caller"])
    assert waits[0] == waits[1]


@pytest.mark.parametrize("batch_size", [32, "full"])
def test_an_error_of_the_disk_comes_out_of_the_ring(too_small, monkeypatch, batch_size):
    for name, value in (("RUN", 16), ("WINDOW", 160), ("PERMUTED", 64)):
        monkeypatch.setattr(data, name, value)  # what is smaller is read once, and kept

    class Failing:
        shape, dtype = X.T.shape, X.dtype
        failing = False

        def __getitem__(self, index):
            if self.failing and index[0].stop > 300:
                raise OSError("the disk is gone")
            return X.T[index]

    monkeypatch.setattr(data, "READ", 100)
    file = Failing()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(file, examples="rows", batch_size=batch_size, callbacks=lambda _: setattr(file, "failing", True))


def test_bad_numbers_are_named_though_a_ring_reads_them(too_small, tmp_path):
    wrong = X.astype(np.float64)
    wrong[3, 70] = np.nan
    with pytest.raises(xpnet.errors.DataError, match="feature 3 of example 70 is nan"):
        fit(memmap(wrong, tmp_path))


def test_a_fit_through_the_ring_goes_on_from_its_checkpoint_as_if_never_interrupted(too_small, tmp_path):
    def interrupt(view):
        if view.epoch == 1:
            raise KeyboardInterrupt

    uninterrupted = fit(epochs=5)
    assert fit(epochs=5, checkpoint=tmp_path / "run", callbacks=interrupt).epochs_run < 5
    assert bits(fit(epochs=5, checkpoint=tmp_path / "run")) == bits(uninterrupted)


@pytest.mark.parametrize("room", ["dressed", "too_small"])
def test_an_epoch_is_gone_on_with_from_its_middle(room, order, request, tmp_path):
    request.getfixturevalue(room)
    path, middle = tmp_path / "run", tmp_path / "middle"

    def keep(view):
        if view.epoch == 1:
            shutil.copyfile(path, middle)

    options = {"epochs": 4, **TRAINING["all of these"]}
    straight = fit(**options)
    watched = fit(**options, checkpoint=path, checkpoint_every="7 steps", callbacks=keep)
    assert files.read(middle, kind="checkpoint")[0]["epoch.costs"].size > 0
    assert bits(watched) == bits(fit(**options, checkpoint=middle)) == bits(straight)


def test_an_exception_of_a_callbacks_leaves_no_ring_behind(too_small):
    def stop(view):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        fit(callbacks=stop)
    assert too_small.simulated.live == 0


def test_an_exception_within_an_epoch_leaves_no_ring_behind(too_small):
    calls = []

    def update(theta, state, evaluate, *, learning_rate, xp):
        calls.append(evaluate(theta))
        if len(calls) == 4:
            raise ValueError("enough")
        return theta, state, calls[-1][0]

    with pytest.raises(ValueError, match="enough") as raised:
        fit(optimizer=optimizers.Optimizer("mine", optimizers.gd().init, update, 0.1))
    # Also while the exception is held, whose traceback goes through the epoch.
    assert raised.traceback
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("xpnet")] == []


def test_fits_on_several_threads_share_a_device(too_small):
    def one(seed):
        return bits(fit(random_state=seed))

    alone = [one(seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(4))) == alone


# --- a Loader on the device


def passed(loader):
    """Return the batches of one pass, all kept until its end."""
    return [tuple(np.asarray(array).tolist() for array in batch) for batch in list(loader)]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("batch_size", [16, 10**9])
@everywhere
def test_a_loader_gives_through_the_ring_what_it_gives_from_memory(
    dressed, order, monkeypatch, tmp_path, keeping, prefetch, batch_size
):
    given, examples = KEEPING[keeping](X, tmp_path)
    arguments = {"batch_size": batch_size, "prefetch": prefetch, "examples": examples}
    on_the_host = passed(xpnet.Loader(given, Y, device="cpu", **arguments))
    monkeypatch.setattr(Dressed, "free", 4 * X.size)
    loader = xpnet.Loader(given, Y, device="cuda", **arguments)
    assert len(loader) == len(on_the_host)
    assert passed(loader) == on_the_host
    assert dressed.simulated.calls["copy"] == len(on_the_host)


def test_a_loader_without_y_gives_x_alone_through_the_ring(too_small):
    batches = list(xpnet.Loader(X, batch_size=100, shuffle=False, device="cuda"))
    assert np.array_equal(np.concatenate(batches, axis=1), X)


def test_a_loaders_pass_that_is_left_leaves_no_ring_behind(too_small):
    for _ in xpnet.Loader(X, Y, batch_size=16, device="cuda"):
        break
    assert too_small.simulated.live == 0


def test_a_loader_whose_slots_do_not_fit_gives_the_same_batches(too_small):
    on_the_host = passed(xpnet.Loader(X, Y, batch_size=64, device="cpu"))
    too_small.simulated.room = dict.fromkeys(too_small.simulated.room, 3_000)
    with pytest.warns(DeviceMemoryWarning, match="3 slots of 64 columns"):
        assert passed(xpnet.Loader(X, Y, batch_size=64, device="cuda")) == on_the_host


# --- slots that do not fit


@pytest.mark.parametrize("scarce", ["pinned", "device"])
@pytest.mark.parametrize("arguments", [{}, {"batch_size": "full", "optimizer": "gd"}, {"optimizer": "lbfgs"}])
def test_slots_that_do_not_fit_are_halved_with_the_same_mathematics(too_small, scarce, arguments):
    arguments = {"batch_size": "auto", "dtype": "float64", "sample_weight": WEIGHT, "patience": None, **arguments}
    resident = fit(**{**arguments, "device": "cpu"})
    kind = next(
        kind for kind in too_small.simulated.room if kind.__name__ == {"pinned": "Pinned"}.get(scarce, "OnDevice")
    )
    too_small.simulated.room[kind] = 4_000
    with pytest.warns(DeviceMemoryWarning, match="columns each, page-locked") as warned:
        streamed = fit(**arguments)
    assert len(warned) == 1
    assert type(too_small).released > 0
    assert apart(theta(streamed), theta(resident)) <= SUMS * np.finfo("float64").eps


def test_an_optimizer_may_go_through_a_batch_twice_though_it_comes_in_pieces(too_small):
    def update(theta, state, evaluate, *, learning_rate, xp):
        first, second = evaluate(theta), evaluate(theta)
        assert np.array_equal(first[1], second[1])
        return theta - learning_rate * second[1], state, first[0]

    too_small.simulated.room = dict.fromkeys(too_small.simulated.room, 3_000)
    mine = optimizers.Optimizer("mine", optimizers.gd().init, update, 0.1)
    with pytest.warns(DeviceMemoryWarning):
        twice = fit(optimizer=mine, batch_size=64, dtype="float64")
    once = fit(optimizer="gd", batch_size=64, dtype="float64", device="cpu")
    assert apart(theta(twice), theta(once)) <= SUMS * np.finfo("float64").eps


def test_when_a_slot_of_one_column_does_not_fit_the_error_has_the_numbers(too_small):
    too_small.simulated.room = dict.fromkeys(too_small.simulated.room, 100)
    with pytest.raises(DeviceError, match="3 slots of 1 columns; CUDA refused") as raised:
        fit()
    assert isinstance(raised.value, MemoryError)
