"""Fits and predictions at the same time, in threads and in processes, give what they give alone, and leave nothing."""

import json
import os
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

RNG = np.random.default_rng(77)
X = RNG.standard_normal((12, 6_000)).astype(np.float32)
Y = (X[0] * X[1] > 0).astype(int)

FITS = {
    "minibatches": {"hidden": 16, "epochs": 2, "batch_size": 256},
    "pooled": {"hidden": 64, "epochs": 2, "batch_size": "full", "optimizer": "gd"},
    "one thread": {"hidden": 24, "epochs": 2, "batch_size": 500, "threads": 1},
    "validated": {"hidden": 16, "epochs": 2, "batch_size": 512, "validation_fraction": 0.2, "standardize": True},
}
"""Fits that share BLAS: in blocks over threads, inside BLAS, and held to one thread."""

FLAT = 0.02
"""Share by which resident memory may grow after the first fits."""

START = """
import sys
import numpy as np
import xpnet
X, Y = xpnet.datasets.flower()
"""


def fitted(kind, seed=0):
    return xpnet.fit(X, Y, random_state=seed, verbose=False, **FITS[kind])


def bits(net):
    return [array.tobytes() for layer in net.layers for array in layer], net.history["cost"]


def running_threads():
    # One that Ctrl-C met in Thread.start before it was made is listed by Python for good, and has no ident.
    return {thread for thread in threading.enumerate() if thread.ident is not None}


def blas_threads():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    return [(pool["internal_api"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()]


def script(code, *arguments, **options):
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", START + code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def printed(process):
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    return out.split()


@pytest.fixture
def nothing_left():
    """Fail when a test leaves a thread or another number of BLAS threads behind."""
    fitted("pooled")  # what is imported or loaded by a first fit is there before
    threads, blas = running_threads(), blas_threads()
    yield
    assert running_threads() == threads
    assert blas_threads() == blas


def test_eight_threads_fit_and_predict_what_each_does_alone(nothing_left, soak):
    alone = {kind: bits(fitted(kind)) for kind in FITS}
    shared = fitted("pooled")
    few, many = shared.predict_proba(X[:, :5]).tobytes(), shared.predict_proba(X).tobytes()
    until = time.monotonic() + (120 if soak else 2)

    def work(number):
        kinds, rounds = list(FITS), 0
        while time.monotonic() < until or rounds < len(kinds):
            kind = kinds[(number + rounds) % len(kinds)]
            assert bits(fitted(kind)) == alone[kind]
            assert shared.predict_proba(X[:, :5]).tobytes() == few
            assert shared.predict_proba(X).tobytes() == many
            rounds += 1
        return rounds

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) >= 8 * len(FITS)


PROCESS = """
import time
net = xpnet.load(sys.argv[1])
until, rounds = time.monotonic() + float(sys.argv[2]), 0
alone = None
while time.monotonic() < until or rounds < 2:
    made = xpnet.fit(X, Y, hidden=16, epochs=3, random_state=5, verbose=False)
    found = hash((made.W1.tobytes(), net.predict_proba(X).tobytes(), net.predict(X).tobytes()))
    assert alone in (None, found)
    alone, rounds = found, rounds + 1
print(made.W1.tobytes().hex()[:64], net.predict_proba(X).tobytes().hex()[:64])
"""


def test_four_processes_share_a_networks_file_and_agree(tmp_path, soak):
    flower, labels = xpnet.datasets.flower()
    net = xpnet.fit(flower, labels, hidden=8, epochs=3, random_state=1, verbose=False)
    net.save(tmp_path / "net.safetensors")
    made = xpnet.fit(flower, labels, hidden=16, epochs=3, random_state=5, verbose=False)
    here = [array.tobytes().hex()[:64] for array in (made.W1, net.predict_proba(flower))]
    seconds = "120" if soak else "1"
    processes = [script(PROCESS, str(tmp_path / "net.safetensors"), seconds) for _ in range(4)]
    assert [printed(process) for process in processes] == [here] * 4


FORKED = """
import os, threading
import threadpoolctl
def blas():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
rows = np.random.default_rng(0).standard_normal((12, 6000)).astype("float32")
labels = (rows[0] > 0).astype(int)
def fit(callbacks=()):
    return xpnet.fit(rows, labels, hidden=64, batch_size="full", optimizer="gd", epochs=3, random_state=0,
                     verbose=False, callbacks=callbacks)
alone, before = fit().W1.tobytes(), blas()
under_way, go_on = threading.Event(), threading.Event()
def wait(view):
    under_way.set()
    go_on.wait()
thread = threading.Thread(target=fit, args=(wait,))
thread.start()
under_way.wait()
child = os.fork()
if child == 0:
    right = fit().W1.tobytes() == alone and blas() == before
    os._exit(0 if right else 1)
_, status = os.waitpid(child, 0)
go_on.set()
thread.join()
print(os.waitstatus_to_exitcode(status), blas() == before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_a_thread_fits_fits_too_and_has_blas_as_it_was():
    assert printed(script("import warnings; warnings.simplefilter('ignore')\n" + FORKED)) == ["0", "True"]


LEAK = """
fits = int(sys.argv[1])
def resident():
    return int(open("/proc/self/statm").read().split()[1])
rows = np.random.default_rng(0).standard_normal((10, 3000)).astype("float32")
labels = (rows[0] > 0).astype(int)
def one(number):
    batch = {"batch_size": "full", "optimizer": "gd"} if number % 3 == 0 else {"batch_size": 64}
    net = xpnet.fit(rows, labels, hidden=64, epochs=1, random_state=number, verbose=False, **batch)
    net.predict(rows)
    net.score(rows[:, :50], labels[:50])
for number in range(100 + fits // 10):
    one(number)
before = resident()
for number in range(fits):
    one(number)
print(before, resident())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_fits_leave_no_memory_behind(soak):
    before, after = map(int, printed(script(LEAK, "2000" if soak else "200")))
    assert after <= before * (1 + FLAT)


class StopError(Exception):
    pass


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", FITS)
def test_a_fit_that_ends_early_leaves_threads_and_blas_as_they_were(nothing_left, kind, error):
    def stop(view):
        raise error

    arguments = {**FITS[kind], "random_state": 0, "verbose": False, "callbacks": stop}
    if error is KeyboardInterrupt:
        assert xpnet.fit(X, Y, **arguments).stop_reason == "interrupted"
    else:
        with pytest.raises(error):
            xpnet.fit(X, Y, **arguments)


INTERRUPTED = """
import json, signal, threading, time
import threadpoolctl
arguments, count = json.loads(sys.argv[1]), int(sys.argv[2])
rows = np.random.default_rng(0).standard_normal((12, 6000)).astype("float32")
labels = (rows[0] > 0).astype(int)
def left():
    # A thread that Ctrl-C met in Thread.start before it was made is listed by Python for good, and has no ident.
    threads = {thread for thread in threading.enumerate() if thread.ident is not None}
    return threads, [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
def fit():
    xpnet.fit(rows, labels, random_state=0, verbose=False, **arguments | {"epochs": 40})
fit()
before, here = left(), threading.get_ident()
for number in range(count):
    timer = threading.Timer(0.001 * (1 + number % 40), signal.pthread_kill, (here, signal.SIGINT))
    try:
        timer.start()
        fit()
        timer.join()
        time.sleep(0.01)  # a signal that came late is taken here
    except KeyboardInterrupt:  # before or after the loop
        pass
    timer.join()
print(left() == before)
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals as POSIX has them")
@pytest.mark.parametrize("kind", FITS)
def test_an_interrupt_at_any_moment_leaves_threads_and_blas_as_they_were(soak, kind):
    # In a process of its own: what else runs in pytest's may be interrupted too.
    assert printed(script(INTERRUPTED, json.dumps(FITS[kind]), "200" if soak else "10")) == ["True"]


def test_predicting_while_a_loop_reads_files_leaves_no_reader(nothing_left, tmp_path, monkeypatch):
    for name, value in (("RUN", 64), ("WINDOW", 12 * 512), ("PERMUTED", 1_000), ("READ", 12 * 100)):
        monkeypatch.setattr(xpnet.data, name, value)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    alone = bits(xpnet.fit(mapped, Y, hidden=8, epochs=2, random_state=0, verbose=False))
    net = fitted("minibatches")
    wanted = net.predict(X).tobytes()

    def work(number):
        assert bits(xpnet.fit(mapped, Y, hidden=8, epochs=2, random_state=0, verbose=False)) == alone
        assert net.predict(mapped).tobytes() == wanted
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))
