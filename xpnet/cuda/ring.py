"""The ring that feeds a CUDA device from host memory.

While the device computes with one batch, the next is on its way to it and the one after is being filled into pinned
memory by a thread of the ring's own. Each of the ring's slots is a pinned buffer on the host, a buffer on the device
and an event for each direction, and goes through this, over and over:

===========  ==================================================  ==================================================
who          does                                                because
===========  ==================================================  ==================================================
the thread   waits for ``copied``                                the pinned buffer's last copy may still be read
             fills the pinned buffer
             lets the copy stream wait for ``free``              the device may still compute with the last batch
             copies, on the copy stream
             records ``copied`` on the copy stream
the caller   lets its own stream wait for ``copied``             the batch may not have arrived
             computes with the batch
             records ``free`` on its own stream                  when it asks for the next batch
===========  ==================================================  ==================================================

A wait for an event means the event as it was last recorded, so a slot goes back to the thread only after its ``free``
is recorded. The buffers stay where they are: an array made for each batch would be given out again by CuPy's pool,
which knows of one stream only, while the other still reads it.
"""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from xpnet.device import Place, reason
from xpnet.errors import DeviceError, ShapeError
from xpnet.typing import Array

ALIGNED = 256
"""Bytes to whose multiples the arrays of a slot are moved, as CUDA's own allocations are: vector loads need 16."""

# cudaErrorMemoryAllocation, from CUDA's driver_types.h: what pinned memory is refused with.
_MEMORY_ALLOCATION = 2


class DeviceMemoryError(DeviceError, MemoryError):
    """There is no room for the ring's slots. Everything that it had got is released when this is raised.

    Attributes
    ----------
    pinned_bytes : int
        Page-locked host memory that all slots together asked for.
    device_bytes : int
        Device memory that all slots together asked for.
    """

    def __init__(self, message: str, *, pinned_bytes: int, device_bytes: int) -> None:
        super().__init__(message)
        self.pinned_bytes, self.device_bytes = pinned_bytes, device_bytes


# What the ring needs of a device --------------------------------------------------------------------------------------


class Stream(Protocol):
    """A queue of work that the device does in order."""

    def wait_event(self, event: Any, /) -> None:
        """Hold up what is queued from now on until the event, as it was last recorded, has happened."""

    def synchronize(self) -> None:
        """Return when everything queued is done."""


class Event(Protocol):
    """A place in a stream; one that was never recorded has happened."""

    def record(self, stream: Any, /) -> None:
        """Move the event behind what is queued in the stream."""

    def synchronize(self) -> None:
        """Return when the event, as it was last recorded, has happened."""


class Device(Protocol):
    """What the ring asks of a device, so that it can be tested on one that is simulated."""

    def active(self) -> AbstractContextManager[object]:
        """Return a context in which this is the calling thread's device."""

    def pinned(self, size: int) -> Array:
        """Return a new page-locked ``(size,)`` uint8 NumPy array."""

    def is_pinned(self, array: Array) -> bool:
        """Return whether the device's copy engine can read a NumPy array in place."""

    def empty(self, size: int) -> Array:
        """Return a new ``(size,)`` uint8 array on the device."""

    def stream(self) -> Stream:
        """Return a new stream, which waits for no other unless it is told to."""

    def current_stream(self) -> Stream:
        """Return the stream in which the calling thread computes."""

    def event(self, *, timed: bool) -> Event:
        """Return a new event, for `elapsed` or, cheaper, only for waiting."""

    def copy(self, host: Array, into: Array, stream: Any) -> None:
        """Queue the copy of a pinned array to the device, and return at once. Both must be kept until it is done."""

    def elapsed(self, start: Any, end: Any) -> float:
        """Return the seconds between two timed events that have happened."""


class CudaDevice:
    """A CUDA device by way of CuPy.

    Parameters
    ----------
    place : Place
        The device, from `xpnet.device.resolve`.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def __str__(self) -> str:
        return self.place.name

    def active(self) -> AbstractContextManager[object]:
        """Return a context in which this is the calling thread's device; CuPy keeps one for each thread."""
        return self.place.active()

    def pinned(self, size: int) -> Array:
        """Return a new page-locked ``(size,)`` uint8 NumPy array, from CuPy's pool."""
        return importlib.import_module("cupyx").empty_pinned(size, dtype=np.uint8)

    def is_pinned(self, array: Array) -> bool:
        """Return whether the driver knows the array's memory as page-locked."""
        return bool(self.place.xp.cuda.pinned_memory.is_memory_pinned(array.ctypes.data))

    def empty(self, size: int) -> Array:
        """Return a new ``(size,)`` uint8 array on the device, from CuPy's pool."""
        return self.place.xp.empty((size,), dtype=np.uint8)

    def stream(self) -> Stream:
        """Return a new stream that does not wait for the default one, as plain new streams do."""
        stream: Stream = self.place.xp.cuda.Stream(non_blocking=True)
        return stream

    def current_stream(self) -> Stream:
        """Return the stream in which the calling thread computes on this device."""
        stream: Stream = self.place.xp.cuda.get_current_stream(self.place.device.id)
        return stream

    def event(self, *, timed: bool) -> Event:
        """Return a new event, at which the host sleeps rather than spins: there is filling to do on its cores."""
        event: Event = self.place.xp.cuda.Event(block=True, disable_timing=not timed)
        return event

    def copy(self, host: Array, into: Array, stream: Any) -> None:
        """Queue the copy of a pinned array to the device."""
        into.set(host, stream=stream)

    def elapsed(self, start: Any, end: Any) -> float:
        """Return the seconds between two timed events; CUDA counts half microseconds."""
        return float(self.place.xp.cuda.get_elapsed_time(start, end)) / 1e3


# Batches --------------------------------------------------------------------------------------------------------------


Picks = npt.NDArray[np.int64]


class Filling(NamedTuple):
    """How a batch gets into the pinned buffers.

    Attributes
    ----------
    columns : int
        The examples in it, 1 or more.
    write : callable
        ``write(*slots)``; each slot is a ``(columns, width)`` NumPy array of numbers left from an earlier batch, to be
        written over. Called once, on the ring's thread.
    """

    columns: int
    write: Callable[..., object]


def gathered(arrays: Sequence[Array], numbers: Picks | Sequence[Picks] | None = None) -> Filling:
    """Return the filling that picks examples out of arrays in host memory.

    Parameters
    ----------
    arrays : sequence of (k, width) NumPy arrays
        X, Y and weights by rows, each of its slot's dtype; C-contiguous when there are `numbers`.
    numbers : (b,) int64 array, or one for each array, optional
        Which of the k examples, in order, each below k: what is not is not noticed. None is all of them.
    """
    picks = [numbers] * len(arrays) if numbers is None or isinstance(numbers, np.ndarray) else numbers

    def write(*slots: npt.NDArray[Any]) -> None:
        for rows, chosen, slot in zip(arrays, picks, slots, strict=True):
            assert rows.dtype == slot.dtype, f"a slot of {slot.dtype} cannot be filled from {rows.dtype}"
            if chosen is None:
                np.copyto(slot, rows)
            else:
                assert rows.flags.c_contiguous, "take would copy all of it, for each batch"
                # Any mode but the default, which gathers into a buffer first so that an error leaves `out` as it was.
                np.take(rows, chosen, axis=0, out=slot, mode="clip")

    return Filling(len(arrays[0]) if picks[0] is None else int(picks[0].size), write)


class Timing(NamedTuple):
    """Where the time of the batches that went through a ring is.

    Attributes
    ----------
    batches : int
        Batches copied.
    bytes : int
        Bytes copied.
    copying : float
        Seconds for which the copy engine copied.
    computing : float
        Seconds from a batch's arrival in the caller's stream until the caller asked for the next and the stream had
        come so far. When the caller queues work more slowly than the device does it, that is in here.
    exposed : float
        Seconds for which the caller's stream had nothing to do but to wait for a copy.
    filling : float
        Seconds for which the ring's thread made batches and filled pinned buffers.
    starved : float
        Seconds for which the caller waited for the ring's thread.
    """

    batches: int = 0
    bytes: int = 0
    copying: float = 0.0
    computing: float = 0.0
    exposed: float = 0.0
    filling: float = 0.0
    starved: float = 0.0

    @property
    def hidden(self) -> float:
        """Seconds for which the copy engine copied while the caller's stream computed."""
        return max(0.0, self.copying - self.exposed)


# The ring -------------------------------------------------------------------------------------------------------------


class Ring:
    """A ring of slots through which batches go from host memory to a device, copied while it computes.

    Parameters
    ----------
    columns : int
        Examples of the largest batch.
    arrays : sequence of (int, dtype)
        The arrays of a batch, X and Y for example: the numbers that each has for one example, and their dtype.
    device : Device
        Where they go: a `CudaDevice`.
    slots : int
        Batches under way at once. With 1 nothing is copied while the device computes; with 2 it is, when computing
        and copying take turns evenly; a third evens out what is uneven.

    Attributes
    ----------
    timing : Timing
        Of the passes so far. Up to two rounds of the ring late while a pass runs, exact after it.
    pinned_bytes, device_bytes : int
        The memory of all slots. A pinned slot is a power of two, to which CuPy's pool would round it up unseen.

    Raises
    ------
    DeviceMemoryError
        There is not so much pinned or device memory.

    Notes
    -----
    Left by an exception, a ``with`` waits for the thread and the device before anything is released. Memory goes back
    to CuPy's pools, which keep it: `free_all_blocks` of each gives it back to the system.

    Examples
    --------
    ::

        place = xpnet.device.resolve("cuda")
        with place.active(), Ring(4096, [(28, "float32"), (1, "float32")], device=CudaDevice(place)) as ring:
            for X_rows, Y_rows in ring.through(gathered([X, Y], numbers) for numbers in order):
                step(X_rows.T, Y_rows.T)
    """

    def __init__(self, columns: int, arrays: Sequence[tuple[int, Any]], *, device: Device, slots: int = 3) -> None:
        assert columns > 0, "a ring is for batches of at least one column"
        assert slots > 0, "a ring needs a slot"
        self.columns, self.device, self.slots = columns, device, slots
        self.timing = Timing()
        self._arrays = [(width, np.dtype(dtype)) for width, dtype in arrays]
        size = _spans(columns, self._arrays)[-1].stop
        self.pinned_bytes, self.device_bytes = slots * _power_of_two(size), slots * size
        self._slots: list[_Slot] = []
        self._laps: list[_Lap] = []
        self._pass: _Pass | None = None
        refused = None
        try:
            with device.active():
                self._make()
        except BaseException as error:
            self._release()
            if not (isinstance(error, MemoryError) or getattr(error, "status", None) == _MEMORY_ALLOCATION):
                raise
            refused = reason(error)
        # Raised here, where that error and its traceback, which hold on to buffers, are gone.
        if refused is not None:
            raise DeviceMemoryError(
                f"The ring needs {self.pinned_bytes} bytes of pinned host memory and {self.device_bytes} bytes on "
                f"{device}, in {slots} slots of {columns} columns; CUDA refused ({refused}). "
                f"{'Take fewer columns at once' if columns > 1 else 'End what else uses that memory'}.",
                pinned_bytes=self.pinned_bytes,
                device_bytes=self.device_bytes,
            )

    def _make(self) -> None:
        self._copies, self._computes = self.device.stream(), self.device.current_stream()
        for _ in range(self.slots):
            self._slots.append(_Slot(self.device, self.columns, self._arrays))
        # A batch's times are read when the next but one in its slot is filled: its computing is known to be over then.
        self._laps += [_Lap(self.device) for _ in range(2 * self.slots)]
        # The pool hands out memory that earlier work in this stream may still use; the copy stream knows nothing of it.
        self._computes.synchronize()
        self._worker = _Worker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.close()
        else:
            # A device that is lost fails again at each wait; what is on its way says more than what comes of it.
            with suppress(Exception):
                self.close()

    def close(self) -> None:
        """End the pass, wait until thread and device have done what they were told, and release everything."""
        self._pass = None
        if self._worker.is_current():
            # The garbage collector may close a forgotten ring anywhere, here amid a filling that is to be waited for.
            threading.Thread(target=self.close, name="xpnet-ring-close").start()
        elif self._slots:
            with ExitStack() as afterwards:  # each of these, whatever becomes of the others; the last one first
                afterwards.callback(self._release)
                afterwards.callback(self._synchronize)
                afterwards.callback(self._worker.end)
                afterwards.callback(self._settle)

    def __del__(self) -> None:
        # One that was not closed, or whose closing was broken off: its memory is not to be given to others yet.
        if getattr(self, "_worker", None) is not None:
            with suppress(Exception):
                self.close()

    def _release(self) -> None:
        self._slots.clear()
        self._laps.clear()

    def through(self, batches: Iterable[Filling]) -> Iterator[tuple[Array, ...]]:
        """Yield the batches on the device, in order.

        Parameters
        ----------
        batches : iterable of Filling
            Gone through on the ring's thread, up to `slots` batches ahead. What it or a filling raises, is raised here
            in place of its batch.

        Yields
        ------
        tuple of (b, width) arrays
            On the device, valid in the stream that is current when the pass begins, and until the next batch is asked
            for. All batches of `columns` columns that go through one slot are the same array objects.

        Raises
        ------
        ShapeError
            A batch has no columns, or more than a slot.
        DeviceError
            The ring is closed, or another pass through it has begun.
        """
        if not self._slots:
            raise DeviceError("A ring must be open for batches to go through; this one is closed. Make another.")
        self._settle()
        this = self._pass = _Pass(iter(batches), SimpleQueue())
        try:
            self._computes = self.device.current_stream()
            for turn in range(self.slots):
                self._send(this, turn)
            turn = 0
            while columns := self._receive(this, turn):
                yield self._slots[turn % len(self._slots)].cut(columns).lent
                self._check(this)
                self._give_back(turn)
                self._send(this, turn + self.slots)
                turn += 1
        except GeneratorExit:
            # Whatever is raised while a pass is dropped is but printed; a device that is lost will say so again.
            with suppress(Exception):
                self._leave(this)
            raise
        finally:
            self._leave(this)

    def _leave(self, this: "_Pass") -> None:
        if self._pass is this:
            self._settle()

    def _check(self, this: "_Pass") -> None:
        if self._pass is not this:
            raise DeviceError(
                "One pass at a time can go through a ring; another was begun, or the ring closed, before this one had "
                "ended. Make a ring for each."
            )

    def _send(self, this: "_Pass", turn: int) -> None:
        """Let the thread fill and copy the next batch."""
        self._worker.send(partial(this.answer, partial(self._fill_and_copy, this, turn)))

    def _fill_and_copy(self, this: "_Pass", turn: int) -> int:
        """Bring the next batch under way to the device, on the ring's thread; return its columns, 0 when none is left.

        This never waits for the caller, so that whoever waits for it waits for the filling and the device only.
        """
        if self._pass is not this:
            return 0
        slot, lap = self._slots[turn % len(self._slots)], self._laps[turn % len(self._laps)]
        with self.device.active():
            slot.copied.synchronize()
            self._note(lap)
            begun = time.perf_counter()
            filling = next(this.fillings, None)
            if filling is None:
                return 0
            cut = slot.cut(filling.columns)
            filling.write(*cut.pinned)
            lap.filling = time.perf_counter() - begun
            if self._pass is not this:
                return 0  # it was ended meanwhile: the device is not to be told anything more
            self._copies.wait_event(slot.free)
            lap.sent.record(self._copies)
            self.device.copy(cut.host, cut.device, self._copies)
            lap.arrived.record(self._copies)
            slot.copied.record(self._copies)
            lap.bytes = cut.host.size
        return filling.columns

    def _receive(self, this: "_Pass", turn: int) -> int:
        """Let the caller's stream wait for the next batch; return its columns, 0 when none is left."""
        slot, lap = self._slots[turn % len(self._slots)], self._laps[turn % len(self._laps)]
        begun = time.perf_counter()
        columns = this.next_answer()
        self._check(this)
        if columns:
            lap.starved = time.perf_counter() - begun
            lap.asked.record(self._computes)
            self._computes.wait_event(slot.copied)
            lap.begun.record(self._computes)
        return columns

    def _give_back(self, turn: int) -> None:
        """Let the slot be written over once the caller's stream has come to here."""
        slot, lap = self._slots[turn % len(self._slots)], self._laps[turn % len(self._laps)]
        lap.ended.record(self._computes)
        slot.free.record(self._computes)
        lap.computed = True

    def _settle(self) -> None:
        """Wait until thread and device have done what they were told to in the last pass, and note its times."""
        self._pass = None
        if self._worker.is_current():
            return  # the ring will be closed yet
        with ExitStack() as afterwards:
            afterwards.callback(self._synchronize)
            self._worker.wait()
        for lap in self._laps:
            self._note(lap)

    def _synchronize(self) -> None:
        with ExitStack() as afterwards:
            afterwards.callback(self._computes.synchronize)
            self._copies.synchronize()

    def _note(self, lap: "_Lap") -> None:
        """Add the times of a batch with which everything is over."""
        if lap.bytes:
            now = self.timing
            copying = self.device.elapsed(lap.sent, lap.arrived)
            computing = self.device.elapsed(lap.begun, lap.ended) if lap.computed else 0.0
            exposed = self.device.elapsed(lap.asked, lap.begun) if lap.computed else 0.0
            self.timing = Timing(
                now.batches + 1,
                now.bytes + lap.bytes,
                now.copying + copying,
                now.computing + computing,
                now.exposed + exposed,
                now.filling + lap.filling,
                now.starved + lap.starved,
            )
        lap.bytes, lap.filling, lap.starved, lap.computed = 0, 0.0, 0.0, False


class _Worker:
    """A thread that does one thing after the other.

    It is made of what C does in one go: Ctrl-C amid one of Python's own locks, as events, conditions and executors have
    them, can leave it closed for good, and whoever waits for it waits for ever.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._ending = False
        # A daemon, for a ring that is never closed must not keep the interpreter from ending.
        self._thread = threading.Thread(target=_work, args=(self._tasks,), name="xpnet-ring", daemon=True)
        self._thread.start()

    def send(self, task: Callable[[], object]) -> None:
        """Have something done."""
        self._tasks.put(task)

    def wait(self) -> None:
        """Return when everything sent is done."""
        if self._ending:
            self.end()
        elif not sys.is_finalizing():  # when the interpreter ends, it has stopped the thread wherever that was
            over = threading.Lock()
            over.acquire()
            self._tasks.put(over.release)
            over.acquire()

    def end(self) -> None:
        """Return when everything sent is done and the thread is over; again and again, should that be broken off."""
        self._ending = True
        if not sys.is_finalizing():
            self._tasks.put(None)
            self._thread.join()

    def __del__(self) -> None:
        # For when the making of the ring was broken off after its thread began; or even before there was a queue.
        if hasattr(self, "_tasks"):
            self._tasks.put(None)

    def is_current(self) -> bool:
        """Return whether the caller runs in the thread, and would wait for itself."""
        return threading.current_thread() is self._thread


def _work(tasks: "SimpleQueue[Callable[[], object] | None]") -> None:
    """Do what is in the queue. No method, lest the thread keep a forgotten ring alive."""
    while (task := tasks.get()) is not None:
        task()


class _Pass(NamedTuple):
    """One pass over batches: where they come from, and what became of those that the thread was sent for."""

    fillings: Iterator[Filling]
    answers: "SimpleQueue[int | BaseException]"

    def answer(self, task: Callable[[], int]) -> None:
        """Do it, and put what it returns or raises where `next_answer` looks for it."""
        try:
            self.answers.put(task())
        except BaseException as error:
            self.answers.put(error)

    def next_answer(self) -> int:
        """Return or raise what became of the next batch, when it is known."""
        answer = self.answers.get()
        if not isinstance(answer, BaseException):
            return answer
        try:
            raise answer
        finally:
            del answer  # it refers to this frame, and the frame must not refer to it


class _Cut(NamedTuple):
    """A slot's buffers, cut to a batch's size: as bytes to be copied, and as the batch's arrays on either side."""

    host: Array
    device: Array
    pinned: tuple[Array, ...]
    lent: tuple[Array, ...]


class _Slot:
    """A pinned buffer, a device buffer and an event for each direction."""

    def __init__(self, device: Device, columns: int, arrays: Sequence[tuple[int, np.dtype[Any]]]) -> None:
        self.columns, self.arrays = columns, arrays
        size = _spans(columns, arrays)[-1].stop
        self.host, self.device = device.pinned(_power_of_two(size)), device.empty(size)
        # From any other memory or layout the copy would go by way of a pageable buffer, and hold up the host.
        assert device.is_pinned(self.host), "a slot must be in pinned memory"
        assert self.host.flags.c_contiguous, "a pinned slot must be contiguous"
        assert self.device.flags.c_contiguous, "a device slot must be contiguous"
        self.copied, self.free = device.event(timed=False), device.event(timed=False)
        self.whole = self._cut(columns)

    def cut(self, columns: int) -> _Cut:
        """Return the slot for a batch of so many columns."""
        if not 0 < columns <= self.columns:
            raise ShapeError(
                f"A batch must have 1 to {self.columns} columns to go through this ring; it has {columns}. "
                "Make the ring for the largest batch."
            )
        return self.whole if columns == self.columns else self._cut(columns)

    def _cut(self, columns: int) -> _Cut:
        # A batch's arrays lie close to each other whatever its size, so that one copy takes them all.
        spans = _spans(columns, self.arrays)
        pinned, lent = (
            tuple(
                flat[span].view(dtype).reshape((columns, width))
                for span, (width, dtype) in zip(spans, self.arrays, strict=True)
            )
            for flat in (self.host, self.device)
        )
        size = spans[-1].stop
        return _Cut(self.host[:size], self.device[:size], pinned, lent)


class _Lap:
    """One batch's way through its slot: events for its times alone, and what the host has to say."""

    def __init__(self, device: Device) -> None:
        self.sent, self.arrived = device.event(timed=True), device.event(timed=True)
        self.asked, self.begun, self.ended = (device.event(timed=True) for _ in range(3))
        self.bytes, self.filling, self.starved, self.computed = 0, 0.0, 0.0, False


def _spans(columns: int, arrays: Sequence[tuple[int, np.dtype[Any]]]) -> list[slice]:
    """Return where in a slot each array of a batch lies, in bytes."""
    spans: list[slice] = []
    for width, dtype in arrays:
        start = -(-spans[-1].stop // ALIGNED) * ALIGNED if spans else 0
        spans.append(slice(start, start + columns * width * dtype.itemsize))
    return spans


def _power_of_two(size: int) -> int:
    """Return the least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
