"""Whatever CUDA refuses, and wherever: one error that says what to do, or the same network; and nothing is left behind.

The device is the stand-in of `cupy_stand_in`: every call that would reach a GPU is counted in a clean run, and then
fails in turn, by default a dozen of them spread over the run and all of them with ``--soak``.
"""

import gc
import importlib.util
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cupy_stand_in
import host_cuda
import numpy as np
import pytest
from cupy_stand_in import Fault, Machine, cublas_error, cuda_error, driver_error, out_of_memory

import xpnet
from xpnet import data, device, training
from xpnet.errors import (
    DeviceError,
    DeviceFailedError,
    DeviceFullError,
    DeviceMemoryWarning,
    DeviceUnavailableError,
)

TESTS = Path(__file__).parent
RNG = np.random.default_rng(11)

N_X, M = 3, 44
X = RNG.standard_normal((N_X, M)).astype(np.float32)
Y = (X[0] * X[1] > 0).astype(int)

SUMS = 100 * float(np.finfo("float32").eps)
"""How far results may be apart, relative to their norm, on sums taken in another order."""

SOME = 12
"""Calls of a run that are made to fail where not all are."""


def fit(X=X, Y=Y, **arguments):
    settings = {"hidden": 3, "epochs": 2, "batch_size": 16, "random_state": 1, "device": "cuda", "patience": None}
    return xpnet.fit(X, Y, **settings | arguments)


def flat(*arrays):
    return np.concatenate([device.to_host(array).ravel().astype(float) for array in arrays])


def trained(net):
    return flat(*(array for layer in net.layers for array in layer), np.asarray(net.history["cost"]))


NET = fit(device="cpu")


def used(at):
    net = NET.to(at)
    return flat(net.predict_proba(X), net.predict(X), np.asarray([net.cost(X, Y), net.score(X, Y)]))


def passed(at):
    return flat(*(array for batch in xpnet.Loader(X, Y, batch_size=16, device=at) for array in batch))


# What is done with a device: name -> a function from the device's name to numbers. What begins with "streamed" finds no
# room for X there.
WORK = {
    "fit": lambda at: trained(fit(device=at)),
    "fit to held-out data": lambda at: trained(fit(device=at, validation_fraction=0.3, standardize=True, l2=0.1)),
    "fit by lbfgs": lambda at: trained(fit(device=at, optimizer="lbfgs", batch_size="auto")),
    "streamed fit": lambda at: trained(fit(device=at)),
    "streamed fit of whole batches": lambda at: trained(fit(device=at, batch_size="full", validation_fraction=0.3)),
    "use": used,
    "pass of a loader": passed,
    "streamed pass of a loader": passed,
}
work = pytest.mark.parametrize("name", WORK)


@pytest.fixture
def doing(monkeypatch):
    """Return a function that does some work on a machine and says what came of it."""

    def do(name, machine, at="cuda"):
        with monkeypatch.context() as patch, machine.as_cupy(monkeypatch), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            patch.setattr(data, "RESIDENT", 0.0 if name.startswith("streamed") else data.RESIDENT)
            try:
                found = WORK[name](at)
            except Exception as error:
                found = error.with_traceback(None)
                found.__cause__ = found.__context__ = None
        assert [str(each.message) for each in told if each.category is not DeviceMemoryWarning] == []
        nothing_is_left(machine)
        return found, [str(each.message) for each in told]

    return do


@pytest.fixture(autouse=True)
def no_fallback(monkeypatch):
    monkeypatch.delenv("XPNET_CPU_FALLBACK", raising=False)  # which the CPU image sets


@pytest.fixture(autouse=True, scope="module")
def only_what_is_new_is_collected():
    """Let the collector pass over what there was before, all of PyTorch and JAX: memory that runs out calls for it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def nothing_is_left(machine):
    if machine.live:
        gc.collect()  # of what is in a cycle with an exception
    assert (machine.live, machine.faults) == (0, [])
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("xpnet")] == []


def same(left, right):
    return np.linalg.norm(left - right) <= SUMS * np.linalg.norm(right)


def calls(total, soak):
    """Return which of so many calls are to fail, counted from 1."""
    return range(1, total + 1) if soak else sorted({int(n) for n in np.linspace(1, total, SOME)})


PROBED = 7
"""Calls by which it is found out whether CUDA works."""


# --- CUDA fails

FATAL = {
    "illegal address": lambda: cuda_error(700),
    "ECC": lambda: cuda_error(214),
    "launch timeout": lambda: cuda_error(702),
    "launch failure": lambda: cuda_error(719),
    "unknown": lambda: cuda_error(999),
    "driver": lambda: driver_error(700, "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"),
    "cuBLAS": lambda: cublas_error(13, "CUBLAS_STATUS_EXECUTION_FAILED"),
}


def check_failed(error, cause):
    words = f"CUDA failed ({type(cause).__name__}: {cause})"
    assert type(error) is DeviceFailedError
    assert str(error).startswith(f"cupy on cuda:0 must work until the end; {words}. What was computed there is lost.")
    assert str(error).endswith("start a new process: a fit with checkpoint= goes on from its last.")


@work
@pytest.mark.parametrize("kind", FATAL)
def test_wherever_a_device_is_lost_the_error_has_cudas_words(doing, soak, name, kind):
    clean = Machine()
    undisturbed, _ = doing(name, clean)
    at_all = calls(clean.counts[None], soak)
    for at in at_all if soak or kind in ("illegal address", "unknown") else at_all[1::4]:
        machine = Machine(fault=Fault(FATAL[kind], at, lasting=True), seed=at)
        found, _ = doing(name, machine)
        if at <= PROBED:
            assert type(found) is DeviceUnavailableError, at
            assert str(found).startswith('device="cuda" failed its test ('), at
        elif machine.failed and not isinstance(found, np.ndarray):
            check_failed(found, FATAL[kind]())
        else:  # the last calls may come to be fewer, when fewer batches were asked for ahead
            assert same(found, undisturbed), at


@pytest.fixture
def undiagnosed(monkeypatch):
    """Have fits not looked at again when they have ended: what fails then is part of the diagnosis."""
    monkeypatch.setattr(training.diagnosis, "diagnose", lambda *_, **__: training.Diagnosis(()))


@pytest.mark.usefixtures("undiagnosed")
@work
def test_a_call_that_fails_once_is_told_or_had_nothing_to_do_with_the_result(doing, soak, name):
    clean = Machine()
    undisturbed, _ = doing(name, clean)
    for at in (at for at in calls(clean.counts[None], soak) if at > PROBED):
        machine = Machine(fault=Fault(FATAL["unknown"], at), seed=at)
        found, _ = doing(name, machine)
        if isinstance(found, np.ndarray):
            # What is done ahead for batches that are not there may fail unseen.
            assert same(found, undisturbed), at
            assert not machine.failed or name.startswith("streamed"), at
        else:
            check_failed(found, cuda_error(999))


# --- memory runs out

MEMORY = {
    "pool": (out_of_memory, "memory"),
    "run-time": (lambda: cuda_error(2), "memory"),
    "driver": (lambda: driver_error(2, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"), "memory"),
    "cuBLAS": (lambda: cublas_error(3, "CUBLAS_STATUS_ALLOC_FAILED"), "matmul"),
    "cuBLAS's beginning": (lambda: cublas_error(1, "CUBLAS_STATUS_NOT_INITIALIZED"), "matmul"),
    "pinned": (lambda: cuda_error(2), "pinned"),
}
ASKING = [
    (name, kind)
    for name in WORK
    for kind, (_, counted) in MEMORY.items()
    if counted == "memory" or name.startswith("streamed" if counted == "pinned" else ("fit", "streamed fit", "use"))
]
asking = pytest.mark.parametrize(("name", "kind"), ASKING)


def after_the_probe(counted, total, soak):
    """Return which calls of a kind are to fail, those left out by which it is found out whether CUDA works."""
    return [at for at in calls(total, soak) if at > {"memory": 3, "matmul": 1}.get(counted, 0)]


def check_full(error, cause):
    assert isinstance(error, DeviceError)
    assert isinstance(error, MemoryError)
    assert f"{type(cause).__name__}: {str(cause).removesuffix('.')}" in str(error)
    assert any(words in str(error) for words in ("must have room for", "The ring needs"))
    assert "End what else uses that memory" in str(error)


@asking
def test_where_memory_runs_out_once_the_work_goes_on_or_the_error_says_what_to_do(doing, soak, name, kind):
    make, counted = MEMORY[kind]
    clean = Machine()
    undisturbed, _ = doing(name, clean)
    recovered = 0
    at_all = after_the_probe(counted, clean.counts[counted], soak)
    for at in at_all:
        found, told = doing(name, Machine(fault=Fault(make, at, counted), seed=at))
        assert len(told) <= 1, at
        if isinstance(found, np.ndarray):
            recovered += 1
            assert same(found, undisturbed), at
            assert all(any(character.isdigit() for character in words) for words in told), at
        else:
            check_full(found, make())
    if name.startswith(("fit", "streamed fit")):
        assert 2 * recovered > len(at_all)
    if counted == "pinned":
        assert recovered == len(at_all)


@asking
def test_where_memory_stays_away_the_error_says_what_to_do(doing, soak, name, kind):
    make, counted = MEMORY[kind]
    clean = Machine()
    undisturbed, _ = doing(name, clean)
    at_all = after_the_probe(counted, clean.counts[counted], soak)
    for at in at_all if soak else at_all[::4]:
        found, _ = doing(name, Machine(fault=Fault(make, at, counted, lasting=True), seed=at))
        if isinstance(found, np.ndarray):  # a Loader's last batch, or X, for which there was another way
            assert same(found, undisturbed), at
        else:
            check_full(found, make())


@pytest.mark.parametrize("name", ["fit", "fit to held-out data", "streamed fit"])
def test_with_ever_less_memory_the_same_network_comes_out_until_the_error_has_the_numbers(doing, name):
    undisturbed, _ = doing(name, Machine())
    came = []
    for room in (8_192, 4_096, 2_048, 1_024, 256):
        found, told = doing(name, Machine(room=room))
        came.append(type(found))
        if isinstance(found, np.ndarray):
            assert same(found, undisturbed), room
            assert len(told) <= 2, room  # of the ring's slots, and of the steps
        else:
            assert isinstance(found, DeviceError | MemoryError), room
    assert came[0] is np.ndarray
    assert came[-1] is not np.ndarray


def test_cupys_limit_on_its_pool_sends_data_through_the_ring(monkeypatch):
    many = np.tile(X, 50)
    with Machine().as_cupy(monkeypatch) as machine:
        machine.namespace.get_default_memory_pool().set_limit(size=many.nbytes)
        streamed = fit(many, np.tile(Y, 50))
        machine.namespace.get_default_memory_pool().set_limit(size=0)
        resident = fit(many, np.tile(Y, 50))
        assert "bytes_moved" in streamed.timing
        assert "bytes_moved" not in resident.timing
        assert same(trained(streamed), trained(resident))
        del streamed, resident
    nothing_is_left(machine)


@pytest.mark.parametrize("order", "CF")
def test_what_is_kept_on_the_device_is_uploaded_in_blocks(monkeypatch, order):
    monkeypatch.setattr(data, "READ", 10 * N_X)
    with Machine().as_cupy(monkeypatch) as machine:
        found = trained(fit(np.asarray(X, order=order)))
        assert machine.largest < X.nbytes
    nothing_is_left(machine)
    assert same(found, trained(fit(device="cpu")))


# --- a checkpoint


@pytest.mark.usefixtures("undiagnosed")
@pytest.mark.parametrize("kind", ["fit", "streamed fit"])
@pytest.mark.parametrize("error", ["illegal address", "pool"])
def test_whatever_fails_the_checkpoint_is_whole_and_goes_on_to_the_same_bits(monkeypatch, tmp_path, soak, kind, error):
    monkeypatch.setattr(data, "RESIDENT", 0.0 if kind == "streamed fit" else data.RESIDENT)
    make, counted = MEMORY[error] if error in MEMORY else (FATAL[error], None)

    def run(path, **how):
        with Machine(**how).as_cupy(monkeypatch) as machine:
            try:
                return machine, trained(
                    fit(epochs=3, checkpoint=path, checkpoint_every=0, learning_rate=lambda _: 0.01)
                )
            finally:
                machine.written = path.exists()

    clean, uninterrupted = run(tmp_path / "clean")
    written = []
    for at in calls(clean.counts[counted], soak)[1:]:
        path = tmp_path / f"{at}"
        fault = Fault(make, at, counted, lasting=True)
        try:
            machine, _ = run(path, fault=fault, seed=at)
        except DeviceError:
            pass
        else:  # the last calls may come to be fewer, when fewer batches were asked for ahead
            assert machine.failed == [], at
        written.append(path.exists())
        assert np.array_equal(run(path)[1], uninterrupted), at
    assert any(written)
    gc.collect()


# --- CUDA cannot be had


def message(monkeypatch, machine):
    with machine.as_cupy(monkeypatch), pytest.raises(DeviceUnavailableError) as raised:
        fit()
    return str(raised.value)


def test_a_device_that_is_busy_says_so_and_what_to_do(monkeypatch):
    busy = Machine(fault=Fault(lambda: cuda_error(46), 1, "ones"))
    assert message(monkeypatch, busy) == (
        'device="cuda" is in use by another process, which has it for itself '
        f"({type(cuda_error(46)).__name__}: {cuda_error(46)}). Wait until nvidia-smi shows none there, take another "
        'GPU, or have it shared: nvidia-smi --compute-mode=DEFAULT, or use device="cpu".'
    )


def test_a_device_that_was_busy_may_be_asked_for_again(monkeypatch):
    with Machine(fault=Fault(lambda: cuda_error(46), 1, "ones")).as_cupy(monkeypatch):
        with pytest.raises(DeviceUnavailableError, match="in use by another process"):
            fit()
        assert fit().device == "cuda:0"


@pytest.mark.parametrize(
    ("status", "words"), [(35, "needs a newer NVIDIA driver"), (100, "needs a GPU, and the NVIDIA driver finds none")]
)
def test_no_driver_and_no_device_say_so(monkeypatch, status, words):
    machine = Machine(fault=Fault(lambda: cuda_error(status), 1, "getDeviceCount"))
    assert message(monkeypatch, machine).startswith(f'device="cuda" {words}')


FORKED = """
import os, sys
import numpy as np
import pytest
import xpnet
from cupy_stand_in import Machine

X = np.random.default_rng(0).standard_normal((3, 40))
with Machine().as_cupy(pytest.MonkeyPatch()):
    here = xpnet.fit(X, X[0] > 0, hidden=2, epochs=1, device="cuda").device
    child = os.fork()
    if not child:
        for use in (lambda: xpnet.fit(X, X[0] > 0, device="cuda"), lambda: xpnet.Loader(X, device="cuda")):
            try:
                use()
            except xpnet.errors.DeviceUnavailableError as error:
                print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(host_cuda.COMPILER is None, reason="there is no C++ compiler")
def test_a_process_that_is_forked_after_cuda_was_started_is_told_so():
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path, "XPNET_CPU_FALLBACK": "0"},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("cannot be used in a forked process, and process" in line for line in lines)


# --- several devices, several threads


@work
def test_on_the_second_device_everything_is_done_there(doing, name):
    """CuPy computes with an array only while its device is the thread's current one, and so does the stand-in."""
    machine = Machine(count=2)
    found, _ = doing(name, machine, at="cuda:1")
    assert same(found, WORK[name]("cpu"))


X_ELSEWHERE = {
    "plain": {},
    "standardized": {"standardize": True},
    "held out": {"validation_fraction": 0.3, "standardize": True},
    "weighted": {"class_weight": "balanced"},
    "whole": {"batch_size": "full"},
}


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("arguments", X_ELSEWHERE)
@pytest.mark.parametrize("asked", [None, "cpu", "cuda:0", "cuda:1"])
def test_x_on_the_second_device_goes_to_any(monkeypatch, resident, arguments, asked):
    monkeypatch.setattr(data, "RESIDENT", data.RESIDENT if resident else 0.0)
    arguments = X_ELSEWHERE[arguments]
    with Machine(count=2).as_cupy(monkeypatch) as machine:
        there = device.resolve("cuda:1")
        net = fit(there.asarray(X), there.asarray(Y), device=asked, **arguments)
        assert net.device == (asked or "cuda:1")
        assert device.place_of(net.predict(there.asarray(X))).name == "cuda:1"
        found = trained(net)
        del net
    nothing_is_left(machine)
    assert same(found, trained(fit(device="cpu", **arguments)))


def test_a_list_of_arrays_on_the_second_device_is_joined_there(monkeypatch):
    with Machine(count=2).as_cupy(monkeypatch) as machine:
        there = device.resolve("cuda:1")
        parts = [there.asarray(X[:, i:j]) for i, j in pairwise((0, 10, M))]
        found = [trained(fit(parts, device=asked, validation_fraction=0.3)) for asked in (None, "cuda:0", "cpu")]
        del parts
    nothing_is_left(machine)
    assert all(same(each, trained(fit(device="cpu", validation_fraction=0.3))) for each in found)


@pytest.mark.parametrize("name", ["fit", "streamed fit", "streamed pass of a loader"])
def test_threads_with_a_device_each_or_one_for_both_do_not_disturb_each_other(monkeypatch, name):
    monkeypatch.setattr(data, "RESIDENT", 0.0 if name.startswith("streamed") else data.RESIDENT)
    alone = WORK[name]("cpu")
    with Machine(count=2).as_cupy(monkeypatch) as machine:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(WORK[name], ["cuda:0", "cuda:1", "cuda:1"] * 4))
        assert machine.entered == [0]
    nothing_is_left(machine)
    assert all(same(each, alone) for each in found)


def test_a_loader_that_is_left_leaves_the_current_device_as_it_was(monkeypatch):
    with Machine(count=2).as_cupy(monkeypatch) as machine:
        for batch in xpnet.Loader(X, Y, batch_size=16, device="cuda:1"):
            assert device.place_of(batch[0]).name == "cuda:1"
            break
        assert machine.entered == [0]
        del batch
    nothing_is_left(machine)


# --- the stand-in's exceptions


@pytest.mark.skipif(not cupy_stand_in.GENUINE, reason="CuPy is not installed: its exceptions here are look-alikes")
@pytest.mark.parametrize("status", cupy_stand_in._TEXTS)
def test_exceptions_that_look_like_cupys_are_like_them(status):
    looks, real = cupy_stand_in.LooksLikeCUDARuntimeError(status, cupy_stand_in._TEXTS[status]), cuda_error(status)
    assert importlib.util.find_spec("cupy")
    for of in (str, lambda error: error.status, lambda error: type(error).__module__, lambda error: error.args):
        assert of(looks) == of(real)
    assert isinstance(real, RuntimeError)


@pytest.mark.skipif(not cupy_stand_in.GENUINE, reason="CuPy is not installed: its exceptions here are look-alikes")
def test_the_exception_that_looks_like_the_pools_is_like_it():
    looks, real = cupy_stand_in.LooksLikeOutOfMemoryError(1_024, 10), out_of_memory(1_024, 10)
    assert (str(looks), type(looks).__module__) == (str(real), type(real).__module__)
    assert isinstance(real, MemoryError)


def test_a_device_that_is_full_is_a_device_error():
    assert issubclass(DeviceFullError, DeviceError)
