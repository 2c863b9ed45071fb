"""A device in threads: what the ring asks of CUDA, simulated, with random pauses and with failures that are asked for.

Each of its streams is a thread that does what is queued when it gets round to it, and copies and reads in two halves,
so that what is overwritten meanwhile is seen. Like CUDA it keeps no buffer alive. It has a clock of its own, on which
work takes the time it is told to.
"""

import queue
import random
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial

import numpy as np


class Pinned(np.ndarray):
    """Host memory that the copy engine can read."""


class OnDevice(np.ndarray):
    """Device memory."""


class RefusedError(RuntimeError):
    """What CuPy raises for pinned memory: an error of CUDA's run-time, with its status."""

    status = 2


class FullError(MemoryError):
    """What CuPy raises for device memory."""


class InjectedError(Exception):
    """A failure of the device that was asked for."""


class Ticket:
    """One recording of an event: a lock that is opened when it happens, which an interrupt leaves as it is."""

    def __init__(self):
        self.lock, self.at = threading.Lock(), None
        self.lock.acquire()

    def happen(self, at):
        self.at = at
        self.lock.release()

    def wait(self):
        with self.lock:
            pass


class SimulatedEvent:
    def __init__(self, device, timed):
        self.device, self.timed, self.ticket = device, timed, None

    def record(self, stream):
        self.device.called("record")
        self.ticket = ticket = Ticket()
        stream.queue.put(lambda: ticket.happen(stream.clock))

    def synchronize(self):
        self.device.called("event.synchronize")
        if self.ticket is not None and self.device.skip != "host waits for copied":
            self.ticket.wait()


class SimulatedStream:
    """A thread that does one thing after the other."""

    def __init__(self, device, name):
        self.device, self.name, self.clock, self.queue = device, name, 0.0, queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, args=(device, self.queue), daemon=True)
        self.thread.start()

    @staticmethod
    def _run(device, tasks):
        while (task := tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # an engine that stops would make whoever waits for it wait for ever
                device.faults.append(repr(error))

    def take(self, seconds):
        self.clock += seconds

    def wait_event(self, event):
        self.device.called("wait_event")
        ticket = event.ticket
        if ticket is None or self.device.skip == f"{self.name} waits":
            return

        def wait():
            ticket.wait()
            self.clock = max(self.clock, ticket.at)

        self.queue.put(wait)

    def synchronize(self):
        self.device.called("stream.synchronize")
        if self.device.skip == "final wait" or sys.is_finalizing():  # the engines are stopped then
            return
        done = Ticket()
        self.queue.put(lambda: done.happen(self.clock))
        done.wait()


class SimulatedDevice:
    """A device in threads.

    `skip` names a wait that is left out, `slow` the stream, or the caller, that pauses long, `fail` an operation and
    which call of it fails, `pinned_room` and `device_room` the bytes that there are.
    """

    def __init__(self, seed=0, *, skip=None, slow=None, fail=None, pinned_room=2**20, device_room=2**20):
        self.random, self.skip, self.slow, self.fail = random.Random(seed), skip, slow, fail
        self.room = {Pinned: pinned_room, OnDevice: device_room}
        self.buffers, self.faults, self.calls, self.lock = [], [], {}, threading.Lock()
        self.seconds_per_byte = 0.0
        self.computes = SimulatedStream(self, "compute")
        self.streams = [self.computes]

    def __str__(self):
        return "simulated:0"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in self.streams:
            stream.queue.put(None)
        for stream in self.streams:
            stream.thread.join()

    def called(self, operation):
        with self.lock:
            self.calls[operation] = count = self.calls.get(operation, 0) + 1
        if (operation, count) == self.fail:
            raise InjectedError(f"call {count} of {operation}")

    def pause(self, stream=None):
        time.sleep(1e-3 if stream is not None and stream == self.slow else self.random.choice((0.0, 0.0, 1e-6, 5e-5)))

    @property
    def live(self):
        """The bytes of all buffers that somebody still holds."""
        return sum(0 if (buffer := reference()) is None else buffer.size for reference in self.buffers)

    def held(self, kind):
        return sum(buffer.size for reference in self.buffers if isinstance(buffer := reference(), kind))

    def make(self, kind, size, error):
        if self.held(kind) + size > self.room[kind]:
            raise error(f"{size} bytes")
        buffer = kind((size,), np.uint8)
        self.buffers.append(weakref.ref(buffer))
        return buffer

    # What the ring asks for.

    @contextmanager
    def active(self):
        self.called("active")
        yield

    def pinned(self, size):
        self.called("pinned")
        return self.make(Pinned, size, RefusedError)

    def is_pinned(self, array):
        self.called("is_pinned")
        return isinstance(array, Pinned)

    def empty(self, size):
        self.called("empty")
        return self.make(OnDevice, size, FullError)

    def stream(self):
        self.called("stream")
        self.streams.append(SimulatedStream(self, "copy"))
        return self.streams[-1]

    def current_stream(self):
        self.called("current_stream")
        return self.computes

    def event(self, *, timed):
        self.called("event")
        return SimulatedEvent(self, timed)

    def copy(self, host, into, stream):
        self.called("copy")
        right = isinstance(host, Pinned) and isinstance(into, OnDevice) and host.shape == into.shape
        if not (right and host.flags.c_contiguous and into.flags.c_contiguous):
            self.faults.append(f"{type(host)} {host.strides} copied to {type(into)} {into.strides}")
        stream.queue.put(partial(self._copy, unowned(host), unowned(into), host.size, stream))

    def _copy(self, host, into, size, stream):
        stream.take(size * self.seconds_per_byte)
        for half in (slice(0, size // 2), slice(size // 2, size)):
            self.pause("copy")
            into()[half] = host()[half]

    def elapsed(self, start, end):
        self.called("elapsed")
        assert start.timed
        assert end.timed
        if start.ticket.at is None or end.ticket.at is None:
            if self.skip is None:
                self.faults.append("a time was read before it was there")
            return 0.0
        return end.ticket.at - start.ticket.at

    # What the one who computes asks for.

    def compute(self, look, *lent, seconds=0.0):
        """Queue a computation, which looks at the arrays' numbers when its turn comes."""
        self.computes.queue.put(partial(self._compute, look, [unowned(array) for array in lent], seconds))

    def _compute(self, look, lent, seconds):
        self.computes.take(seconds)
        seen = [np.empty_like(array()) for array in lent]
        for array, copy in zip(lent, seen, strict=True):
            self.pause("compute")
            half = len(copy) // 2
            copy[:half] = array()[:half]
            self.pause()
            copy[half:] = array()[half:]
        look(*seen)


def unowned(view):
    """Return what gives a view of a buffer for as long as others keep the buffer."""
    owner = view if view.base is None else view.base
    reference, shape, dtype = weakref.ref(owner), view.shape, view.dtype
    offset = view.__array_interface__["data"][0] - owner.__array_interface__["data"][0]

    def resolved():
        buffer = reference()
        if buffer is None:
            raise RuntimeError("a buffer was used after its release")
        return np.ndarray(shape, dtype, buffer, offset)

    return resolved
