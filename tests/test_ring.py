"""Batches come through the ring whole, whatever the device's delays, and nothing is left behind.

The device is simulated, so that this runs where there is none.
"""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
from simulated import InjectedError, OnDevice, Pinned, SimulatedDevice

from xpnet.cuda import CudaDevice, DeviceMemoryError, Filling, Ring, gathered
from xpnet.errors import DeviceError, ShapeError

# Sums of some hundred float64 durations, added in another order.
CLOCK = 1e-9

# 8 columns of 3 + 1 numbers: X takes 96 bytes, Y begins at the next 256.
COLUMNS, ARRAYS, SIZE = 8, [(3, "float32"), (1, "float32")], 256 + 32

X = np.arange(3_000, dtype=np.float32).reshape(1_000, 3)
Y = -np.arange(1_000, dtype=np.float32).reshape(1_000, 1)


# --- what runs on it


def orders(count, seed=0, smaller=True):
    """Return the numbers of the examples of so many batches; one in four is smaller than a slot."""
    rng = np.random.default_rng(seed)
    sizes = np.where(rng.random(count) < smaller * 0.25, rng.integers(1, COLUMNS, count), COLUMNS)
    return [rng.integers(0, 1_000, size) for size in sizes]


def fillings(device, order):
    """Yield the fillings, each pausing midway."""

    def write(X_slot, Y_slot, filling):
        filling.write(X_slot, Y_slot)
        Y_slot[...] = 0.0
        device.pause()
        np.negative(X_slot[:, :1], out=Y_slot)
        Y_slot /= 3.0

    for numbers in order:
        filling = gathered([X, Y], numbers)
        yield Filling(filling.columns, partial(write, filling=filling))


def compare(seen, numbers, X_seen, Y_seen):
    seen.append(bool(np.array_equal(X_seen, X[numbers]) and np.array_equal(Y_seen, Y[numbers])))


def join_closing():
    """Wait for the threads of a ring that is closed on another."""
    for thread in threading.enumerate():
        if thread.name.startswith("xpnet-ring"):
            thread.join()


def train(ring, device, order, **how):
    """Compute with each batch; return, a batch, whether it was the right one."""
    seen = []
    for numbers, lent in zip(order, ring.through(fillings(device, order)), strict=True):
        device.pause("caller")
        device.compute(partial(compare, seen, numbers), *lent, **how)
    return seen


@pytest.fixture(autouse=True)
def nothing_runs_afterwards():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def device():
    with SimulatedDevice() as device:
        yield device
    assert device.faults == []


# --- batches


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_every_batch_comes_through_whole(slots, seed, soak):
    order = orders(10_000 if soak else 500, seed)  # 200,000 batches in all, or 10,000
    with SimulatedDevice(seed) as device, Ring(COLUMNS, ARRAYS, device=device, slots=slots) as ring:
        seen = train(ring, device, order)
    assert (seen.count(True), len(seen), device.faults) == (len(order), len(order), [])


@pytest.mark.parametrize("slow", ["copy", "compute", "caller"])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_every_batch_comes_through_whole_when_one_part_lags(slots, slow):
    order = orders(50)
    with SimulatedDevice(slow=slow) as device, Ring(COLUMNS, ARRAYS, device=device, slots=slots) as ring:
        seen = train(ring, device, order)
    assert (seen.count(True), len(seen), device.faults) == (len(order), len(order), [])


@pytest.mark.parametrize(
    ("skip", "slow", "slots"),
    [
        ("host waits for copied", "copy", 1),
        ("host waits for copied", "copy", 2),
        ("host waits for copied", "compute", 3),
        ("copy waits", "compute", 1),
        ("copy waits", "compute", 2),
        ("copy waits", "compute", 3),
        ("compute waits", "copy", 1),
        ("compute waits", "copy", 2),
        ("compute waits", "copy", 3),
    ],
)
def test_without_any_of_its_waits_batches_are_spoiled(skip, slow, slots):
    with SimulatedDevice(skip=skip, slow=slow) as device, Ring(COLUMNS, ARRAYS, device=device, slots=slots) as ring:
        seen = train(ring, device, orders(50))
    assert seen.count(False) > 0


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_with_one_batch_more_under_way_than_slots_batches_are_spoiled(slots):
    with SimulatedDevice(slow="caller") as device, Ring(COLUMNS, ARRAYS, device=device, slots=slots) as ring:
        ring.slots += 1
        seen = train(ring, device, orders(50))
    assert seen.count(False) > 0


def test_without_its_last_wait_buffers_are_released_in_use():
    held = threading.Event()
    with SimulatedDevice(skip="final wait") as device:
        with Ring(COLUMNS, ARRAYS, device=device) as ring:
            device.computes.queue.put(held.wait)
            train(ring, device, orders(2))
        gc.collect()
        held.set()
    assert "a buffer was used after its release" in device.faults[0]


def test_a_ring_serves_one_pass_after_another(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        seen = [*train(ring, device, orders(20)), *train(ring, device, orders(21, seed=1))]
    assert seen == [True] * 41


def test_a_pass_over_no_batches_is_over_at_once(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        assert list(ring.through([])) == []


def test_the_last_batch_may_be_smaller(device):
    order = [np.arange(8), np.arange(8, 16), np.arange(16, 19)]
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        seen = train(ring, device, order)
        shapes = [[array.shape for array in lent] for lent in ring.through(fillings(device, order))]
    assert seen == [True] * 3
    assert shapes == [[(8, 3), (8, 1)], [(8, 3), (8, 1)], [(3, 3), (3, 1)]]


@pytest.mark.parametrize("columns", [0, 9])
def test_a_batch_that_fits_no_slot_is_refused(device, columns):
    with (
        Ring(COLUMNS, ARRAYS, device=device) as ring,
        pytest.raises(ShapeError, match=f"must have 1 to 8 columns .* it has {columns}"),
    ):
        list(ring.through([Filling(columns, lambda *_: None)]))


def test_full_batches_in_one_slot_are_the_same_arrays(device):
    with Ring(COLUMNS, ARRAYS, device=device, slots=2) as ring:
        X_lent = [lent[0] for lent in ring.through(fillings(device, orders(6, smaller=False)))]
    assert [[a is b for a in X_lent].index(True) for b in X_lent] == [0, 1, 0, 1, 0, 1]


def test_arrays_of_several_dtypes_share_a_slot(device):
    seen = []

    def write(first, second, third):
        first[...], second[...], third[...] = 1, 2.5, -3

    with Ring(5, [(3, "uint8"), (2, "float64"), (1, "int32")], device=device) as ring:
        for lent in ring.through([Filling(5, write), Filling(3, write)]):
            device.compute(lambda *arrays: seen.append([(a.dtype.name, a.shape, set(a.flat)) for a in arrays]), *lent)
    assert seen == [[("uint8", (b, 3), {1}), ("float64", (b, 2), {2.5}), ("int32", (b, 1), {-3})] for b in (5, 3)]


@pytest.mark.parametrize("order", "CF")
def test_rows_without_numbers_are_taken_as_they_are(device, order):
    seen, rows = [], np.asarray(X[16:24], order=order)
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        for lent in ring.through([gathered([rows, Y[16:24]])]):
            device.compute(partial(compare, seen, np.arange(16, 24)), *lent)
    assert seen == [True]


def test_what_the_device_was_computing_is_over_before_its_memory_is_written_to(device):
    over = threading.Event()
    device.computes.queue.put(lambda: (time.sleep(0.01), over.set()))
    with Ring(COLUMNS, ARRAYS, device=device):
        assert over.is_set()


# --- layout


def test_pinned_slots_are_powers_of_two(device):
    with Ring(COLUMNS, ARRAYS, device=device, slots=3) as ring:
        sizes = {kind: sorted(b().size for b in device.buffers if isinstance(b(), kind)) for kind in (Pinned, OnDevice)}
        assert (ring.pinned_bytes, ring.device_bytes) == (3 * 512, 3 * SIZE)
    assert sizes == {Pinned: [512] * 3, OnDevice: [SIZE] * 3}


@pytest.mark.parametrize(
    ("method", "array", "message"),
    [
        ("pinned", lambda size: np.empty(size, np.uint8), "a slot must be in pinned memory"),
        ("pinned", lambda size: Pinned((2 * size,), np.uint8)[::2], "a pinned slot must be contiguous"),
        ("empty", lambda size: OnDevice((2 * size,), np.uint8)[::2], "a device slot must be contiguous"),
    ],
)
def test_a_slot_that_could_not_be_copied_asynchronously_is_refused(device, monkeypatch, method, array, message):
    monkeypatch.setattr(device, method, array)
    with pytest.raises(AssertionError, match=message):
        Ring(COLUMNS, ARRAYS, device=device)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.asfortranarray(X), "take would copy all of it"),
        (X.astype(np.float64), "a slot of float32 cannot be filled from float64"),
    ],
)
def test_rows_that_would_be_copied_on_the_way_are_refused(device, rows, message):
    with Ring(COLUMNS, ARRAYS, device=device) as ring, pytest.raises(AssertionError, match=message):
        list(ring.through([gathered([rows, Y], np.arange(8))]))


# --- when something fails


class Boom(BaseException):
    """What no ``except Exception`` catches, as KeyboardInterrupt."""


def failing(order, device, at, error):
    """Yield fillings, of which one fails."""
    for turn, filling in enumerate(fillings(device, order)):
        if turn == at:

            def write(*_):
                raise error

            yield Filling(COLUMNS, write)
        else:
            yield filling


def failing_to_yield(order, device, at, error):
    """Yield fillings, until there is none to be had."""
    for turn, filling in enumerate(fillings(device, order)):
        if turn == at:
            raise error
        yield filling


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize("source", [failing, failing_to_yield])
@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_what_a_filling_raises_reaches_the_caller_in_place_of_its_batch(device, source, at, error):
    order, seen = orders(10), []

    def all_of(ring):
        for numbers, lent in zip(order, ring.through(source(order, device, at, error())), strict=True):
            device.compute(partial(compare, seen, numbers), *lent)

    with pytest.raises(error), Ring(COLUMNS, ARRAYS, device=device) as ring:
        all_of(ring)
    assert seen == [True] * at


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_after_a_failed_filling_everything_is_released(device, at):
    def write(*_):
        raise ValueError

    order = [Filling(COLUMNS, write if turn == at else lambda *_: None) for turn in range(10)]
    gc.disable()  # at once, and not when the collector comes by
    try:
        with suppress(ValueError), Ring(COLUMNS, ARRAYS, device=device) as ring:
            list(ring.through(order))
        assert device.live == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_after_an_error_of_the_callers_everything_is_released(device, at, error):
    order = orders(10)

    def interrupted():
        with Ring(COLUMNS, ARRAYS, device=device) as ring:
            for turn, lent in enumerate(ring.through(fillings(device, order))):
                device.compute(lambda *_: None, *lent)
                if turn == at:
                    raise error

    with suppress(error):
        interrupted()
    gc.collect()
    assert device.live == 0


def test_a_pass_that_is_left_early_leaves_the_ring_usable(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        for lent in ring.through(fillings(device, orders(10))):
            device.compute(lambda *_: None, *lent)
            break
        seen = train(ring, device, orders(10))
    assert seen == [True] * 10


def test_after_a_failed_filling_the_ring_is_usable(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        with suppress(ValueError):
            list(ring.through(failing(orders(10), device, 5, ValueError())))
        seen = train(ring, device, orders(10))
    assert seen == [True] * 10


def test_a_pass_that_is_closed_reads_no_further(device):
    taken = []

    def counted():
        for filling in fillings(device, orders(100)):
            taken.append(filling.columns)
            yield filling

    with Ring(COLUMNS, ARRAYS, device=device, slots=3) as ring:
        batches = ring.through(counted())
        next(batches)
        batches.close()
        assert len(taken) <= 3


def test_a_pass_that_is_closed_is_done_with_its_fillings(device):
    begun, ended = threading.Event(), threading.Event()

    def write(*_):
        begun.set()
        time.sleep(0.01)
        ended.set()

    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        batches = ring.through([Filling(COLUMNS, lambda *_: None), Filling(COLUMNS, write)])
        next(batches)
        begun.wait()
        batches.close()
        assert ended.is_set()


def test_a_pass_that_ends_amid_a_filling_tells_the_device_nothing_more(device):
    taken = []

    def batches():
        for _ in range(3):
            taken.append(device.calls.get("copy", 0))
            yield Filling(COLUMNS, lambda *_: len(taken) == 2 and ring.close())

    ring = Ring(COLUMNS, ARRAYS, device=device, slots=3)
    with suppress(DeviceError):
        list(ring.through(batches()))
    join_closing()
    assert (taken, device.calls["copy"]) == ([0, 1], 1)


def test_closing_the_ring_releases_everything_though_a_pass_is_kept(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        batches = ring.through(fillings(device, orders(10)))
        device.compute(lambda *_: None, *next(batches))
    assert device.live == 0
    assert ring.timing.batches >= 1
    batches.close()


def test_a_pass_whose_ring_is_closed_says_so(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        batches = ring.through(fillings(device, orders(10)))
        next(batches)
    with pytest.raises(DeviceError, match="One pass at a time"):
        next(batches)


def test_a_closed_ring_says_so(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        batches = ring.through(fillings(device, orders(10)))
    with pytest.raises(DeviceError, match="this one is closed"):
        next(batches)


def test_another_pass_spoils_no_batch_of_the_one_that_it_ends():
    order, seen = orders(10, smaller=False), []
    with SimulatedDevice(slow="compute") as device, Ring(COLUMNS, ARRAYS, device=device, slots=1) as ring:
        outer = ring.through(fillings(device, order))
        device.compute(partial(compare, seen, order[0]), *next(outer))
        train(ring, device, orders(10, seed=1))
    assert seen == [True]


def test_two_passes_at_once_are_refused(device):
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        outer = ring.through(fillings(device, orders(10)))
        next(outer)
        seen = train(ring, device, orders(10))
        with pytest.raises(DeviceError, match="One pass at a time"):
            next(outer)
    assert seen == [True] * 10


def test_a_ring_may_be_closed_twice(device):
    ring = Ring(COLUMNS, ARRAYS, device=device)
    train(ring, device, orders(5))
    ring.close()
    ring.close()
    assert device.live == 0


def test_ctrl_c_while_the_caller_waits_for_a_filling_ends_the_pass(device):
    def write(*_):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01)

    def interrupted():
        with Ring(COLUMNS, ARRAYS, device=device) as ring:
            list(ring.through([Filling(COLUMNS, write)]))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()
    assert device.live == 0


def test_a_pass_that_the_collector_closes_amid_a_filling_does_not_wait_for_itself(device):
    forgotten, collected = threading.Event(), threading.Event()

    def write(*_):
        forgotten.wait()
        gc.collect()
        collected.set()

    def batches():
        yield from fillings(device, orders(1))
        yield Filling(COLUMNS, write)

    gc.disable()
    try:
        with Ring(COLUMNS, ARRAYS, device=device) as ring:
            cycle = [ring.through(batches())]
            cycle.append(cycle)
            next(cycle[0])
            del cycle
            forgotten.set()
            collected.wait()
    finally:
        gc.enable()
    gc.collect()
    assert device.live == 0


def test_a_ring_that_is_closed_on_its_own_thread_is_released(device):
    ring = Ring(COLUMNS, ARRAYS, device=device)
    batches = ring.through([Filling(COLUMNS, lambda *_: ring.close())])
    with pytest.raises(DeviceError, match="One pass at a time"):
        next(batches)
    join_closing()
    gc.collect()
    assert device.live == 0


FORGOTTEN = """
import test_ring
device = test_ring.SimulatedDevice()
batches = test_ring.Ring(8, test_ring.ARRAYS, device=device).through(test_ring.fillings(device, test_ring.orders(50)))
next(batches)
print("over")
"""


def test_a_ring_that_is_never_closed_does_not_keep_the_interpreter_from_ending():
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", FORGOTTEN],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert (run.stdout, run.stderr) == ("over\n", "")


def test_a_ring_that_is_forgotten_is_released(device):
    batches = Ring(COLUMNS, ARRAYS, device=device).through(fillings(device, orders(10)))
    device.compute(lambda *_: None, *next(batches))
    del batches
    gc.collect()
    assert device.live == 0


OPERATIONS = [
    "active",
    "pinned",
    "is_pinned",
    "empty",
    "stream",
    "current_stream",
    "event",
    "record",
    "wait_event",
    "event.synchronize",
    "stream.synchronize",
    "copy",
    "elapsed",
]


def attempt(fail, seen):
    """Go through the ring on a device that fails once; return the device and whether the failure was raised."""
    with SimulatedDevice(fail=fail) as device:
        try:
            with Ring(COLUMNS, ARRAYS, device=device, slots=2) as ring:
                seen += train(ring, device, orders(8))
        except InjectedError:
            return device, True
    return device, False


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wherever_the_device_fails_everything_is_released(operation):
    clean, _ = attempt(None, [])
    for call in range(1, clean.calls[operation] + 1):
        seen = []
        device, raised = attempt((operation, call), seen)
        gc.collect()
        # Only what is done ahead for batches that are not there may fail unseen.
        assert raised or seen == [True] * 8, call
        assert (device.live, device.faults) == (0, []), call


@pytest.mark.parametrize(
    ("room", "cause"),
    [({"pinned_room": 1_200}, "RefusedError: 512 bytes"), ({"device_room": 700}, "FullError: 288 bytes")],
)
def test_memory_that_is_refused_is_one_error_with_the_bytes_asked_for(room, cause):
    with SimulatedDevice(**room) as device, pytest.raises(DeviceMemoryError) as caught:
        Ring(COLUMNS, ARRAYS, device=device, slots=3)
    assert (caught.value.pinned_bytes, caught.value.device_bytes) == (1_536, 864)
    assert str(caught.value) == (
        "The ring needs 1536 bytes of pinned host memory and 864 bytes on simulated:0, in 3 slots of 8 columns; "
        f"CUDA refused ({cause}). Take fewer columns at once."
    )


@pytest.mark.parametrize("room", [{"pinned_room": 1_200}, {"device_room": 700}])
def test_memory_is_released_when_its_refusal_is_raised(room):
    with SimulatedDevice(**room) as device, pytest.raises(DeviceMemoryError) as caught:
        Ring(COLUMNS, ARRAYS, device=device, slots=3)
    assert (device.live, caught.value.__context__) == (0, None)  # without collecting, and with the traceback at hand


@pytest.mark.parametrize("kind", [MemoryError, DeviceError, RuntimeError])
def test_refused_memory_is_caught_as(kind):
    assert issubclass(DeviceMemoryError, kind)


def test_another_error_of_the_run_time_is_not_taken_for_refused_memory(device, monkeypatch):
    class OtherError(RuntimeError):
        status = 35

    def refuse(size):
        raise OtherError

    monkeypatch.setattr(device, "pinned", refuse)
    with pytest.raises(OtherError):
        Ring(COLUMNS, ARRAYS, device=device)


# --- times


def pipeline(copies, computes, slots):
    """Return for how long the device waits for copies, from what may begin when."""
    arrived, ended, exposed = [], [], 0.0
    for turn, (copy, compute) in enumerate(zip(copies, computes, strict=True)):
        begin = max(arrived[-1] if arrived else 0.0, ended[turn - slots] if turn >= slots else 0.0)
        arrived.append(begin + copy)
        idle = ended[-1] if ended else 0.0
        exposed += max(0.0, arrived[-1] - idle)
        ended.append(max(idle, arrived[-1]) + compute)
    return exposed


def timed(device, slots, computing, count=40):
    """Return the timing of a pass, and the seconds of each copy, at a second a full batch."""
    device.seconds_per_byte = 1.0 / SIZE
    order = orders(count)
    with Ring(COLUMNS, ARRAYS, device=device, slots=slots) as ring:
        train(ring, device, order, seconds=computing)
    return ring.timing, [(256 + 4 * numbers.size) / SIZE for numbers in order]


@pytest.mark.parametrize("computing", [0.25, 1.0, 1.5])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_exposed_copying_is_what_the_device_waited_for(device, slots, computing):
    timing, copies = timed(device, slots, computing)
    assert timing.exposed == pytest.approx(pipeline(copies, [computing] * len(copies), slots), rel=CLOCK)


@pytest.mark.parametrize("computing", [0.25, 1.0, 1.5])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_copying_and_computing_are_counted_whole(device, slots, computing):
    timing, copies = timed(device, slots, computing)
    assert timing.copying == pytest.approx(sum(copies), rel=CLOCK)
    assert timing.computing == pytest.approx(len(copies) * computing, rel=CLOCK)


def test_with_one_slot_no_copying_is_hidden(device):
    timing, _ = timed(device, 1, 1.0)
    assert timing.hidden == pytest.approx(0.0, abs=CLOCK)


def test_when_computing_takes_longer_only_the_first_copy_is_exposed(device):
    timing, copies = timed(device, 2, 1.5)
    assert timing.exposed == pytest.approx(copies[0], rel=CLOCK)
    assert timing.hidden == pytest.approx(sum(copies[1:]), rel=CLOCK)


def test_bytes_and_batches_are_counted_over_all_passes(device):
    order = orders(30)
    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        for _ in range(2):
            train(ring, device, order)
    assert ring.timing.batches == 2 * len(order)
    assert ring.timing.bytes == 2 * sum(256 + 4 * numbers.size for numbers in order)


def test_the_time_for_filling_is_counted(device):
    def write(*_):
        time.sleep(0.002)

    with Ring(COLUMNS, ARRAYS, device=device) as ring:
        for _ in ring.through([Filling(COLUMNS, write)] * 5):
            pass
    assert ring.timing.filling >= 5 * 0.002
    assert ring.timing.starved >= 0.002


def test_a_batch_that_was_left_counts_as_copied_alone(device):
    device.seconds_per_byte = 1.0 / SIZE
    with Ring(COLUMNS, ARRAYS, device=device, slots=1) as ring:
        for lent in ring.through(fillings(device, orders(10, smaller=False))):
            device.compute(lambda *_: None, *lent, seconds=1.0)
            break
    assert (ring.timing.batches, ring.timing.copying, ring.timing.computing) == (1, 1.0, 0.0)


# --- CuPy


ASKED = """
from types import SimpleNamespace
import numpy as np
from xpnet.cuda import CudaDevice
from xpnet.device import Place
device = CudaDevice(Place("array_api_compat.cupy", SimpleNamespace(id=0), "cuda:0"))
for ask in (
    lambda: device.pinned(16),
    lambda: device.is_pinned(np.zeros(16, np.uint8)),
    lambda: device.empty(16),
    lambda: device.stream(),
    lambda: device.current_stream(),
    lambda: device.event(timed=True),
    lambda: device.active().__enter__(),
):
    try:
        ask()
    except Exception as error:
        error = error if hasattr(error, "status") else error.__cause__  # `Place.active` says it in xpnet's words
        print(type(error).__name__, error.status)
"""


def test_without_a_driver_cupy_refuses_each_request_for_that_alone():
    python = os.environ.get("XPNET_CUPY_PYTHON")
    if python is None:
        if importlib.util.find_spec("cupy") is None:
            pytest.skip("needs CuPy: install it, or name an interpreter that has it in XPNET_CUPY_PYTHON")
        python = sys.executable
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    if run([python, "-c", "import cupy; print(cupy.cuda.runtime.driverGetVersion())"]).stdout.strip() != "0":
        pytest.skip("this machine has an NVIDIA driver")
    # 35 is cudaErrorInsufficientDriver; a wrong name or argument would be another error.
    assert run([python, "-c", ASKED]).stdout.splitlines() == ["CUDARuntimeError 35"] * 7


@pytest.mark.cuda
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_every_batch_comes_through_whole_on_a_gpu(cuda, rng, slots):
    rows = rng.normal(size=(20_000, 64)).astype(np.float32)
    order = [rng.integers(0, 20_000, size) for size in [8_192] * 100 + [77]]
    wrong = []
    with cuda.active(), Ring(8_192, [(64, "float32")], device=CudaDevice(cuda), slots=slots) as ring:
        resident = cuda.asarray(rows)
        for numbers, (lent,) in zip(order, ring.through(gathered([rows], n) for n in order), strict=True):
            wrong.append(cuda.xp.sum(lent != cuda.xp.take(resident, cuda.asarray(numbers), axis=0)))
    assert [int(count) for count in wrong] == [0] * len(order)
    assert ring.timing.bytes == rows.itemsize * 64 * (100 * 8_192 + 77)
