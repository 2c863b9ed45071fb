"""How a gradient over many columns runs on this device.

The gradient is a sum over columns, so the columns may be split anywhere. On NumPy they are cut into blocks whose
temporaries stay in a core's cache, shared out over threads with BLAS held to one thread each: 2.2 times faster than
whole columns on 100-64-1 with 400,000 examples and two cores. Other namespaces get the columns whole.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from xpnet import equations
from xpnet.activations import Activation
from xpnet.data import Piece
from xpnet.device import Place
from xpnet.heads import Head
from xpnet.typing import Array, Layer

CACHE = 2**18
"""Numbers of the widest layer in a block: 1 MiB in float32, an L2 cache."""

WORTH_THREADS = 2**21
"""Multiply-adds in a step below which handing blocks to threads (100 µs) costs more than it brings."""

WORTH_BLOCKS = 200
"""Multiply-adds per unit and column above which a product is better split inside BLAS than by columns."""

T = TypeVar("T")
S = TypeVar("S")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Engine:
    """Runs the equations for networks of one shape at one place.

    Attributes
    ----------
    place : Place
        Where the arrays are.
    sizes : tuple of int
        ``(n[0], …, n[L])``.
    activation, head : Activation, Head
        The network's functions.
    pool : ThreadPoolExecutor or None
        Where blocks of columns run, when it pays.
    threads : int
        Threads of the pool, including the calling one's share.
    """

    place: Place
    sizes: tuple[int, ...]
    activation: Activation
    head: Head
    pool: ThreadPoolExecutor | None = None
    threads: int = 1

    def gradient(self, layers: Sequence[Layer], pieces: Iterable[Piece]) -> tuple[Array, list[Layer]]:
        """Return the cost and gradient of `layers`, summed over the columns of all pieces."""

        def over(piece: Piece) -> tuple[Array, list[Layer]]:
            return equations.gradient(
                layers,
                piece.X,
                piece.Y,
                activation=self.activation,
                head=self.head,
                sample_weight=piece.weight,
                xp=self.place.xp,
            )

        return self._sum(over, pieces, _add)

    def cost(self, layers: Sequence[Layer], pieces: Iterable[Piece]) -> Array:
        """Return the cost of `layers`, summed over the columns of all pieces."""

        def over(piece: Piece) -> Array:
            Z, _ = self._forward(layers, piece.X)
            return equations.cost(Z, piece.Y, head=self.head, sample_weight=piece.weight, xp=self.place.xp)

        return self._sum(over, pieces, lambda left, right: left + right)

    def output(self, layers: Sequence[Layer], X: Array) -> Array:
        """Return the output ``A[L] (n_y, b)`` of the columns `X`."""
        outputs = self._map(
            lambda part: self._forward(layers, part)[1], [X[..., span] for span in self._spans(X.shape[-1])]
        )
        return outputs[0] if len(outputs) == 1 else self.place.xp.concat(outputs, axis=-1)

    def _forward(self, layers: Sequence[Layer], X: Array) -> tuple[Array, Array]:
        Z, A = equations.forward(layers, X, activation=self.activation, head=self.head, xp=self.place.xp)
        return Z[-1], A[-1]

    def _sum(self, over: Callable[[Piece], T], pieces: Iterable[Piece], add: Callable[[T, T], T]) -> T:
        """Return the sum of `over` of every block of the pieces, in the same order each time."""
        total: T | None = None
        for piece in pieces:
            cuts = [_cut(piece, span) for span in self._spans(piece.X.shape[-1])]
            for part in self._map(over, cuts):
                total = part if total is None else add(total, part)
        assert total is not None  # data.source refuses empty data
        return total

    def _spans(self, columns: int) -> list[slice]:
        """Return the blocks into which so many columns are cut."""
        if not self.place.is_numpy:
            return [slice(None)]
        width = max(256, CACHE // max(self.sizes) // 64 * 64)
        if self.pool is None:
            width = max(width, 4_096)
        elif columns * work(self.sizes) >= WORTH_THREADS:
            width = min(width, max(64, -(-columns // self.threads)))
        if columns <= width:
            return [slice(None)]
        return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]

    def _map(self, function: Callable[[S], T], blocks: list[S]) -> list[T]:
        if self.pool is None or len(blocks) == 1:
            return [function(block) for block in blocks]
        return list(self.pool.map(_quiet(function), blocks))


def _cut(piece: Piece, span: slice) -> Piece:
    if span == slice(None):
        return piece
    return Piece(*(None if array is None else array[..., span] for array in piece))


def _add(left: tuple[Array, list[Layer]], right: tuple[Array, list[Layer]]) -> tuple[Array, list[Layer]]:
    layers = [Layer(W + dW, b + db) for (W, b), (dW, db) in zip(left[1], right[1], strict=True)]
    return left[0] + right[0], layers


def _quiet(function: Callable[[S], T]) -> Callable[[S], T]:
    """Return `function` with NumPy's floating-point warnings off: the setting does not follow work to other threads."""

    def run(argument: S) -> T:
        with np.errstate(all="ignore"):
            return function(argument)

    return run


def work(sizes: Sequence[int]) -> int:
    """Return the multiply-adds of one column's forward and backward pass."""
    return 3 * sum(n_in * n_out for n_in, n_out in pairwise(sizes))


@contextmanager
def running(
    place: Place, sizes: Sequence[int], activation: Activation, head: Head, *, columns: int, threads: int | None
) -> Iterator[Engine]:
    """Make an engine for the duration of a ``with``; BLAS has its threads back afterwards, whatever happens.

    Parameters
    ----------
    place : Place
        Where the arrays are.
    sizes : sequence of int
        ``(n[0], …, n[L])``.
    columns : int
        The columns of the largest step.
    threads : int or None
        CPU threads for NumPy; None is every core this process may use. Other namespaces mind their own.
    """
    sizes = tuple(sizes)
    allowed = cores() if threads is None else threads
    intensity = work(sizes) / 3 / sum(sizes[1:])
    pooled = allowed > 1 and columns * work(sizes) >= WORTH_THREADS and intensity < WORTH_BLOCKS
    # What NumPy's floating-point warnings would say is checked and said by name where it matters.
    with np.errstate(all="ignore"):
        if not place.is_numpy or (threads is None and not pooled):
            yield Engine(place, sizes, activation, head)
            return
        pool = ThreadPoolExecutor(allowed, thread_name_prefix="xpnet") if pooled else None
        with _BLAS.limited(1 if pooled else allowed), pool or nullcontext():
            yield Engine(place, sizes, activation, head, pool, allowed if pooled else 1)


class _Blas:
    """The BLAS threads of this process: a number that belongs to all fits that run at the same time.

    The first to come sets it and the last to go puts back what was there, whichever threads they are in.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._limits: Any = None

    @contextmanager
    def limited(self, threads: int) -> Iterator[None]:
        """Hold BLAS to so many threads, or to as many as a fit that already runs asked for."""
        import threadpoolctl

        with self._lock:
            self._users += 1
            if self._users == 1:
                self._limits = threadpoolctl.threadpool_limits(threads, user_api="blas")
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    # Since 3.8 only the thread that set a limit may lift it, unless it has been told to let go.
                    openblas = getattr(threadpoolctl, "OpenBLASController", None)
                    if hasattr(openblas, "clear_controlling_thread"):
                        openblas.clear_controlling_thread(force=True)
                    self._limits.restore_original_limits()
                    self._limits = None


_BLAS = _Blas()
