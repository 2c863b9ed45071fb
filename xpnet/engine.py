"""How a step over many columns runs on this device.

The gradient is a sum over columns, so the columns may be split anywhere. On NumPy they are cut into blocks whose
temporaries stay in a core's cache, shared out over threads with BLAS held to one thread each; the equations are
recorded once for a block's shape and replayed into the same buffers (`xpnet.replay`), so that a step makes no arrays.
On a GPU the record becomes a few launches into buffers that stay there (`xpnet.cuda`). Other namespaces get the columns
whole and the equations as they stand; when a device's memory runs out, half as many at a time, as often as it takes.
"""

import gc
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial, reduce
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from xpnet import equations, parameters
from xpnet.activations import Activation
from xpnet.crew import Crew
from xpnet.cuda import CudaLauncher, Inputs, Steps
from xpnet.data import Batch, Piece
from xpnet.device import HOST, Place, Setting, has_failed, is_full, to_host
from xpnet.errors import DeviceFullError, DeviceMemoryWarning, DeviceSpeedWarning
from xpnet.heads import Head
from xpnet.optimizers import Optimizer
from xpnet.record import UnrecordableError
from xpnet.replay import Call, Recording, replay
from xpnet.typing import Array, Layer

CACHE = 2**19
"""Numbers of the widest layer in a block: 2 MiB in float32, twice a core's cache."""

NARROW = 512
"""Columns that a block has at least: below, BLAS packs the weights too often."""

TURNED = 256
"""Units of the widest layer of networks that are computed example after example, with weights unit after unit: BLAS
then does the products of such sizes a tenth to a half faster."""

CHUNK = 2**16
"""Parameters that an optimizer's update takes at a time: 256 KiB in float32."""

WORTH_THREADS = 2**21
"""Multiply-adds in a step below which handing blocks to threads (50 µs) costs more than it brings."""

WORTH_SHARING = 2**18
"""Parameters from which an update is shared out over threads."""

WORTH_BLOCKS = 512
"""Columns for each thread below which products are better split inside BLAS than by columns."""

T = TypeVar("T")
S = TypeVar("S")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """Runs the equations for networks of one shape at one place; made by `running`.

    Parameters
    ----------
    place : Place
        Where the arrays are.
    sizes : tuple of int
        ``(n[0], …, n[L])``.
    activation, head : Activation, Head
        The network's functions.
    crew : Crew or None
        Who does blocks of columns at the same time, when it pays.
    tf32 : bool
        Whether a GPU may round the factors of float32 products.
    """

    def __init__(
        self,
        place: Place,
        sizes: tuple[int, ...],
        activation: Activation,
        head: Head,
        crew: Crew | None = None,
        *,
        tf32: bool = False,
    ) -> None:
        self.place, self.sizes, self.activation, self.head = place, sizes, activation, head
        self.crew, self.threads, self.xp = crew, 1 if crew is None else crew.size, place.xp
        self._gradients: dict[Any, _Gradient] | None = {} if place.is_numpy else None
        # NumPy's buffers for the parameters and every thread's gradient, shared by batches of all sizes and the update,
        # and the order in which weights lie in them.
        self.order = "F" if place.is_numpy and max(sizes[1:]) <= TURNED else "C"
        self._theta: Array | None = None
        self._sums: list[Array] = []
        self._optimizer: Optimizer | None = None
        self._update: _Update | None = None
        # The mean costs of the steps since they were last taken, as arrays that nobody has waited for, and the columns.
        self._costs: list[Array] = []
        self._columns: list[int] = []
        # On a GPU: the steps as launches, while they can be that.
        self._steps: Steps | None = None
        self._launches, self._tf32 = place.is_cuda, tf32
        # Elsewhere than on NumPy: the columns that the device's memory has been enough for, once it was not, and why.
        self._room: int | None = None
        self._refused: tuple[int, str] | None = None
        self._warned = False

    def close(self) -> None:
        """Let go of what is recorded, which refers to the engine and to the last columns that it met.

        It would stay until Python looks for such circles, which it seldom does while arrays alone are made.
        """
        self._gradients, self._optimizer, self._update, self._steps = None, None, None, None

    def gradient(self, theta: Array, pieces: Iterable[Piece]) -> tuple[Array, Array]:
        """Return the cost and its gradient, summed over the columns of all pieces.

        Parameters
        ----------
        theta : (count,) array
            The parameters.
        pieces : iterable of Piece
            The columns.

        Returns
        -------
        cost : () array
        gradient : (count,) array
            On NumPy these are buffers that the next call writes over.
        """
        if isinstance(pieces, list) and len(pieces) == 1:
            return self._of_piece(theta, pieces[0])
        if not self.place.is_numpy:
            total = None
            for piece in pieces:
                total = self._of_piece(theta, piece, total)
            assert total is not None, "a batch has a piece at least"
            return total
        cost, gradient = 0.0, self.xp.zeros_like(theta)
        for piece in pieces:
            part_cost, part = self._of_piece(theta, piece)
            cost, gradient = part_cost + cost, gradient + part
        return cost, gradient

    def _of_piece(self, theta: Array, piece: Piece, total: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
        if (recorded := self._recorded(theta, piece)) is not None:
            recorded.run(theta, piece)
            return recorded.total, self._outward(recorded.summed())

        def of(part: Piece) -> tuple[Array, Array]:
            cost, gradients = self.plain_gradient(self.layers(theta), *part.taken(self.place))
            return cost, parameters.flatten(gradients, xp=self.xp)

        if self.place.is_numpy:
            return reduce(_add, self._map(lambda span: of(piece.cut(span)), self._spans(piece.columns)))
        return self._fitting(piece, of, _add, total)

    def _recorded(self, theta: Array, piece: Piece) -> "_Gradient | None":
        """Return the recorded gradient over so many columns; None where the equations are called plainly."""
        if self._gradients is None:
            return None
        key = (piece.columns, piece.weight is None, piece.numbers is None)
        if key not in self._gradients:
            try:
                self._gradients[key] = _Gradient(self, theta, piece)
            except Exception:  # a user's own activation may do anything with what is not quite an array
                self._gradients = None
                return None
        return self._gradients[key]

    def plain_gradient(
        self, layers: Sequence[Layer], X: Array, Y: Array, weight: Array | None
    ) -> tuple[Array, list[Layer]]:
        """Return `equations.gradient` for this network's functions."""
        return equations.gradient(
            layers, X, Y, activation=self.activation, head=self.head, sample_weight=weight, xp=self.xp
        )

    def step(
        self, optimizer: Optimizer, theta: Array, memory: Any, batch: Batch, *, rate: float, l2: float
    ) -> tuple[Array, Any]:
        """Take one step of the optimizer on a batch; `take_costs` tells its cost.

        Parameters
        ----------
        theta : (count,) array
            The parameters.
        memory : named tuple
            The optimizer's state.
        rate : float
            α.
        l2 : float
            The batch's share of λ: its summed cost has a penalty of ``l2/2 Σ‖W‖²``.

        Returns
        -------
        theta, memory
            On NumPy and on a GPU, buffers that the next step writes over: see `kept`.
        """
        self._columns.append(batch.columns)
        if self._launches:
            launched = self._launched(optimizer, theta, memory, batch, rate=rate, l2=l2)
            if launched is not None:
                return launched
        if (update := self._updating(optimizer, theta, memory)) is not None:
            total, sums = self._sums_of(batch, l2, theta)
            theta, memory = update.run(theta, memory, sums, rate, 1.0 / batch.columns)
            cost = total / batch.columns
        else:
            step = partial(
                optimizer.update, theta, memory, partial(self._mean, batch, l2), learning_rate=rate, xp=self.xp
            )
            if self.place.is_numpy:
                theta, memory, cost = step()
            else:
                # An update returns new arrays, so a step that ran out of memory can be taken anew.
                while (found := self._tried(step, self._room or batch.columns)) is None:
                    pass
                theta, memory, cost = found[0]
        self._costs.append(cost)
        return theta, memory

    def _launched(
        self, optimizer: Optimizer, theta: Array, memory: Any, batch: Batch, *, rate: float, l2: float
    ) -> tuple[Array, Any] | None:
        """Return what a step gives that is recorded as launches on a GPU; None where it is called plainly."""
        if optimizer.full_batch:
            return None
        if self._room is not None or not isinstance(batch.pieces, list) or len(batch.pieces) != 1:
            self._unlaunched()
            return None
        try:
            if self._steps is None or optimizer is not self._optimizer:
                self._unlaunched()
                launcher = CudaLauncher(self.place, tf32=self._tf32)
                update = partial(_launched_update, optimizer, type(memory))
                self._optimizer = optimizer
                gradient = partial(_launched_gradient, self.activation, self.head)
                self._steps = Steps(launcher, self.sizes, gradient, update, theta, memory)
            return self._steps.step(theta, memory, Inputs(*batch.pieces[0][:5]), rate=rate, l2=l2)
        except UnrecordableError:
            pass
        except Exception as error:
            if has_failed(error):
                raise
            if not is_full(error):  # a user's own functions may do anything
                warnings.warn(
                    f"Steps on {self.place} are kernels made of what the equations and the optimizer do; these cannot "
                    f"be ({type(error).__name__}: {error}), and are called one operation at a time, which is slower. "
                    "An activation or optimizer of your own should do nothing but arithmetic.",
                    DeviceSpeedWarning,
                    stacklevel=2,
                )
        self._launches = False
        self.place.release()
        self._unlaunched()
        return None

    def _unlaunched(self) -> None:
        """Launch the steps that wait, and go on without launches."""
        if self._steps is not None:
            self._costs += [costs[n] for costs in self._steps.take_costs() for n in range(costs.shape[0])]
            self._steps = None

    def take_costs(self) -> tuple[npt.NDArray[np.float64], list[int]]:
        """Return what each step since the last call met: its mean cost, with the penalty, and its columns.

        This waits for the device, once for all of them.
        """
        costs, columns, self._costs, self._columns = self._costs, self._columns, [], []
        if self.place.is_numpy:
            return np.array([float(cost) for cost in costs]), columns  # of an epoch of one step a few microseconds
        together = [] if self._steps is None else self._steps.take_costs()
        if costs:
            together.insert(0, self.xp.stack(costs))
        if not together:
            return np.zeros(0), columns
        return to_host(together[0] if len(together) == 1 else self.xp.concat(together)).astype(np.float64), columns

    def _updating(self, optimizer: Optimizer, theta: Array, memory: Any) -> "_Update | None":
        """Return the optimizer's update as recorded; None where it is called plainly."""
        if optimizer is not self._optimizer:
            self._optimizer, self._update = optimizer, None
            if self.place.is_numpy and not optimizer.full_batch:
                with suppress(Exception):  # so may an optimizer of one's own: it is called plainly then
                    self._update = _Update(self, optimizer, theta, memory)
        return self._update

    def buffers(self, theta: Array, count: int) -> tuple[Array, list[Array]]:
        """Return where the parameters are read from, and where so many threads sum the gradient, on NumPy."""
        if self._theta is None:
            self._theta = np.array(self.inward(theta))
        while len(self._sums) < count:
            self._sums.append(np.empty_like(theta))
        return self._theta, self._sums[:count]

    def inward(self, vector: Array) -> Array:
        """Return parameters, or a gradient, in the order of the buffers."""
        if self.order == "C":
            return vector
        return parameters.flatten(parameters.unflatten(vector, self.sizes, xp=np), order=self.order, xp=np)

    def _outward(self, vector: Array) -> Array:
        """Return a buffer's parameters or gradient in everyone's order."""
        if self.order == "C":
            return vector
        return parameters.flatten(parameters.unflatten(vector, self.sizes, order=self.order, xp=np), xp=np)

    def layers(self, theta: Array) -> list[Layer]:
        """Return the layers of parameters, those of a step included.

        They lie in the buffers' order wherever they come from: sums and products over them round as they are gone
        through, and a fit that goes on must not be told apart.
        """
        vector = theta if theta is self._theta else self.inward(theta)
        return parameters.unflatten(vector, self.sizes, order=self.order, xp=self.xp)

    def _sums_of(self, batch: Batch, l2: float, theta: Array) -> tuple[Array, list[Array]]:
        """Return the batch's summed cost, and vectors that add up to its gradient."""
        if not l2 and isinstance(batch.pieces, list) and len(batch.pieces) == 1:
            (piece,) = batch.pieces
            if (recorded := self._recorded(theta, piece)) is not None:
                recorded.run(theta, piece)
                return recorded.total, recorded.sums
        total, gradient = self._summed(batch, l2, theta)
        return total, [gradient]

    def _mean(self, batch: Batch, l2: float, theta: Array) -> tuple[Array, Array]:
        """Return the mean cost over the batch's columns, with the penalty, and its gradient."""
        total, gradient = self._summed(batch, l2, theta)
        return total / batch.columns, gradient / batch.columns

    def _summed(self, batch: Batch, l2: float, theta: Array) -> tuple[Array, Array]:
        total, gradient = self.gradient(theta, batch.pieces)
        if not l2:
            return total, gradient
        layers = self.layers(theta)
        gradients = parameters.unflatten(gradient, self.sizes, xp=self.xp)
        total, penalized = equations.penalized(total, gradients, layers, l2=l2, xp=self.xp)
        return total, parameters.flatten(penalized, xp=self.xp)

    def kept(self, value: Any) -> Any:
        """Return a copy of parameters or of an optimizer's state that later steps leave as it is."""
        if self._steps is not None and (value is self._steps.theta or value is self._steps.memory):
            self._steps.flush()
            copied = partial(self.xp.asarray, copy=True)
            return type(value)(*map(copied, value)) if isinstance(value, tuple) else copied(value)
        if not self.place.is_numpy:
            return value  # made anew by each step
        if not isinstance(value, tuple):
            return np.array(self._outward(value) if value is self._theta else value)
        ours = self._update is not None and value is self._update.memory
        parts = (self._outward(part) if ours and np.ndim(part) else part for part in value)
        numbers = bool, int, float
        copies: Any = (part if type(part) in numbers else np.array(part) for part in parts)
        return type(value)(*copies)

    def cost(self, layers: Sequence[Layer], pieces: Iterable[Piece]) -> Array:
        """Return the cost of `layers`, summed over the columns of all pieces, in the same order each time."""

        def of(piece: Piece) -> Array:
            X, Y, weight = piece.taken(self.place)
            return equations.cost(self._forward(layers, X)[0], Y, head=self.head, sample_weight=weight, xp=self.xp)

        def of_span(span: slice, piece: Piece) -> Array:
            return of(piece.cut(span))

        total = None
        for piece in pieces:
            if self.place.is_numpy:
                for part in self._map(partial(of_span, piece=piece), self._spans(piece.columns)):
                    total = part if total is None else total + part
            else:
                total = self._fitting(piece, of, operator.add, total)
        return total

    def output(self, layers: Sequence[Layer], X: Array) -> Array:
        """Return the output ``A[L] (n_y, b)`` of the columns `X`."""

        def of(span: slice) -> Array:
            return self._forward(layers, X if span == slice(0, X.shape[-1]) else X[:, span])[1]

        if self.place.is_numpy:
            outputs = self._map(of, self._spans(X.shape[-1]))
            return outputs[0] if len(outputs) == 1 else self.xp.concat(outputs, axis=-1)
        return self._fitted(X.shape[-1], of, lambda left, right: self.xp.concat([left, right], axis=-1))

    def _fitting(self, piece: Piece, of: Callable[[Piece], T], add: Callable[[T, T], T], total: T | None) -> T:
        """Return `total` and what `of` makes of a piece's columns, of as many at a time as there is memory for."""
        columns = piece.columns

        def part(span: slice) -> T:
            return of(piece if span.stop - span.start == columns else piece.cut(span))

        return self._fitted(columns, part, add, total)

    def _fitted(self, columns: int, of: Callable[[slice], T], add: Callable[[T, T], T], total: T | None = None) -> T:
        """Return `total` and what `of` makes of so many columns, of as many at a time as there is memory for.

        Raises
        ------
        DeviceFullError
            There is no memory for a single column.
        """
        done = 0
        while done < columns:
            width = columns - done if self._room is None else min(self._room, columns - done)
            found = self._tried(partial(_added, total, of, slice(done, done + width), add), width)
            if found is not None:
                (total,), done = found, done + width
        assert total is not None, "a piece has a column at least"
        return total

    def _tried(self, function: Callable[[], T], columns: int) -> tuple[T] | None:
        """Return what a function of so many columns returns; None when memory ran out, to be tried with fewer.

        Raises
        ------
        DeviceFullError
            It ran out with a single column.
        """
        made = self._unless_full(function, columns)
        if made is None:
            # The exception, whose traceback held every array of the attempt, is gone by now.
            self._halve(columns)
        elif self._refused is not None and not self._warned:
            self._warn()
        return made

    def _unless_full(self, function: Callable[[], T], columns: int) -> tuple[T] | None:
        try:
            return (function(),)
        except Exception as error:
            if not is_full(error) or isinstance(error, DeviceFullError):
                raise
            self._refused = self._refused or (columns, f"{type(error).__name__}: {error}")
        return None

    def _halve(self, columns: int) -> None:
        """Take half as many columns at a time from here on, with all the memory that can be had."""
        assert self._refused is not None, "memory is not said to have run out"
        if columns == 1:
            raise DeviceFullError(
                f"{self.place} must have room for one column of a {'-'.join(map(str, self.sizes))} network, "
                f"{parameters.count(self.sizes)} parameters and their gradient; it has not ({self._refused[1]}). End "
                "what else uses that memory, or take fewer hidden units."
            )
        self._room = columns // 2
        gc.collect()  # some of the attempt's arrays may be in a cycle with the exception
        self.place.release()

    def _warn(self) -> None:
        """Warn, once, that columns are taken fewer at a time."""
        assert self._refused is not None, "memory is not said to have run out"
        self._warned = True
        columns, reason = self._refused
        warnings.warn(
            f"{self.place} has no room for {columns} columns at a time ({reason}). {self._room} are taken at a time "
            "from here on, which changes roundings alone. A smaller batch_size, or network, would be faster.",
            DeviceMemoryWarning,
            stacklevel=2,
        )

    def _forward(self, layers: Sequence[Layer], X: Array) -> tuple[Array, Array]:
        Z, A = equations.forward(layers, X, activation=self.activation, head=self.head, xp=self.xp)
        return Z[-1], A[-1]

    def _spans(self, columns: int) -> list[slice]:
        """Return the blocks into which NumPy's columns are cut."""
        width = max(NARROW, CACHE // max(self.sizes) // 64 * 64)
        if self.crew is None:
            width = max(width, 4_096)
        elif columns * work(self.sizes) >= WORTH_THREADS:
            width = min(width, max(64, -(-columns // self.threads)))
        if columns <= width:
            return [slice(None)]
        return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]

    def _map(self, function: Callable[[S], T], blocks: Sequence[S]) -> list[T]:
        if self.crew is None or len(blocks) == 1:
            return [function(block) for block in blocks]
        return self.crew.map(function, blocks)


def _added(total: T | None, of: Callable[[slice], T], span: slice, add: Callable[[T, T], T]) -> T:
    part = of(span)
    return part if total is None else add(total, part)


def _add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    return left[0] + right[0], left[1] + right[1]


class _Gradient:
    """The gradient over so many columns: their blocks, dealt out to threads, each with a share of buffers."""

    def __init__(self, engine: Engine, theta: Array, piece: Piece) -> None:
        self.engine = engine
        spans = engine._spans(piece.columns)
        spans = [slice(0, piece.columns)] if spans == [slice(None)] else spans
        count = min(len(spans), engine.threads)
        ends = [round(i * len(spans) / count) for i in range(count + 1)]
        self.theta, self.sums = engine.buffers(theta, count)
        self.total = np.zeros((), theta.dtype)
        self.shares = [
            _Share(self, spans[start:stop], piece, vector)
            for (start, stop), vector in zip(pairwise(ends), self.sums, strict=True)
        ]

    def run(self, theta: Array, piece: Piece) -> None:
        """Sum the gradient, a vector for each thread, into buffers that the next run writes over."""
        if theta is not self.theta:
            np.copyto(self.theta, self.engine.inward(theta))
        if len(self.shares) == 1:
            self.shares[0].run(piece)
            self.total = self.shares[0].total
        else:
            self.engine._map(partial(_Share.run, piece=piece), self.shares)
            self.total = reduce(operator.add, [share.total for share in self.shares])

    def summed(self) -> Array:
        """Return the last run's gradient, in a buffer."""
        for vector in self.sums[1:]:
            self.sums[0] += vector
        return self.sums[0]


class _Share:
    """One thread's blocks of columns, and the buffers that they go through."""

    def __init__(self, whole: _Gradient, spans: Sequence[slice], piece: Piece, vector: Array) -> None:
        self.engine, self.spans = whole.engine, spans
        self.piece: Piece | None = None
        self.vector, self.total = vector, np.empty((), vector.dtype)
        self.part, self.part_total = self.vector, self.total
        if len(spans) > 1:
            self.part, self.part_total = np.empty_like(self.vector), np.empty_like(self.total)
        sizes, order = self.engine.sizes, self.engine.order
        layers, into = (parameters.unflatten(v, sizes, order=order, xp=np) for v in (whole.theta, self.part))
        self.leaves = [array for layer in layers for array in layer]
        self.results = [self.part_total, *(array for layer in into for array in layer)]
        self.recordings: dict[int, Recording] = {}
        function = partial(recordable_gradient, self.engine.activation, self.engine.head)
        for span in spans:
            width = span.stop - span.start
            if width not in self.recordings:
                arguments = [*piece.cut(span).taken(self.engine.place), *self.leaves]
                turned = width if order == "F" else None
                self.recordings[width] = Recording(function, arguments, self.results, turned=turned)
        self.calls: list[list[Call]] = []

    def run(self, piece: Piece) -> None:
        """Sum the cost and gradient over this share's columns of `piece`."""
        ours = self.piece
        if ours is None or ours.rows is not piece.rows or ours.Y is not piece.Y or ours.weight is not piece.weight:
            self._bind(piece)
        for i, span in enumerate(self.spans):
            if piece.numbers is not None:
                at = piece.numbers[span]
                labeled = at if piece.labeled is None else piece.labeled[span]
                picks = at, labeled, labeled
                for array, chosen, buffer in zip(piece[:3], picks, self.buffers[span.stop - span.start], strict=True):
                    if array is not None:
                        array.take(chosen, 0, buffer, "clip")
            replay(self.calls[i])
            if len(self.spans) > 1 and i == 0:
                np.copyto(self.vector, self.part)
                np.copyto(self.total, self.part_total)
            elif i > 0:
                np.add(self.vector, self.part, self.vector)
                np.add(self.total, self.part_total, self.total)

    def _bind(self, piece: Piece) -> None:
        """Point the calls at the piece's own columns or, when they are to be picked out, at buffers for them."""
        self.piece, self.buffers, self.calls = piece, {}, []
        known: dict[int, list[Call]] = {}
        for span in self.spans:
            width = span.stop - span.start
            if piece.numbers is None:
                calls = self._calls(width, piece.cut(span))
            elif width in known:
                calls = known[width]
            else:
                made = [None if a is None else np.empty((width, a.shape[1]), a.dtype) for a in piece[:3]]
                self.buffers[width] = made
                calls = known[width] = self._calls(width, Piece(made[0], made[1], made[2]))
            self.calls.append(calls)

    def _calls(self, width: int, piece: Piece) -> list[Call]:
        return self.recordings[width].bind([*piece.taken(self.engine.place), *self.leaves], self.results)


class _Update:
    """An optimizer's update, recorded for a chunk of the parameters and replayed chunk by chunk, in place.

    The parameters, the state and the gradient of a chunk stay in cache from the first operation to the last: one pass
    through memory instead of one for each operation.
    """

    def __init__(self, engine: Engine, optimizer: Optimizer, theta: Array, memory: Any) -> None:
        self.engine, self.optimizer = engine, optimizer
        self.memory = type(memory)(*(np.array(engine.inward(part) if np.ndim(part) else part) for part in memory))
        self.theta, _ = engine.buffers(theta, 1)
        self.rate, self.scale = np.zeros((), theta.dtype), np.zeros((), theta.dtype)
        self.scalars = [np.empty_like(part) if part.ndim == 0 else None for part in self.memory]
        self.calls: dict[int, list[list[Call]]] = {}
        self._bind(1)

    def _bind(self, count: int) -> None:
        """Record the update with a gradient that is the sum of so many vectors."""
        _, sums = self.engine.buffers(self.theta, count)
        chunks = [slice(start, start + CHUNK) for start in range(0, self.theta.size, CHUNK)]
        parts = self.engine.threads if self.theta.size >= WORTH_SHARING else 1
        self.calls[count] = []
        for i in range(parts):
            recordings: dict[int, Recording] = {}  # each thread's own, for its buffers
            calls: list[Call] = []
            for chunk in chunks[len(chunks) * i // parts : len(chunks) * (i + 1) // parts]:
                arguments, results = self._arrays(chunk, sums)
                width = arguments[0].size
                if width not in recordings:
                    function = partial(recordable_update, self.optimizer, type(self.memory), count)
                    recordings[width] = Recording(function, arguments, results)
                calls += recordings[width].bind(arguments, results)
            self.calls[count].append(calls)

    def _arrays(self, span: slice, sums: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        own = [part if part.ndim == 0 else part[span] for part in self.memory]
        results = [part if new is None else new for part, new in zip(own, self.scalars, strict=True)]
        theta = self.theta[span]
        return [theta, self.rate, self.scale, *(vector[span] for vector in sums), *own], [theta, *results]

    def run(self, theta: Array, memory: Any, sums: list[Array], rate: float, scale: float) -> tuple[Array, Any]:
        """Take the step in place, and return the parameters and the state."""
        if theta is not self.theta:
            np.copyto(self.theta, self.engine.inward(theta))
        if memory is not self.memory:
            for part, given in zip(self.memory, memory, strict=True):
                np.copyto(part, self.engine.inward(given) if part.ndim else given)
        _, ours = self.engine.buffers(theta, len(sums))
        if sums[0] is not ours[0]:
            np.copyto(ours[0], self.engine.inward(sums[0]))
        if len(sums) not in self.calls:
            self._bind(len(sums))
        self.rate[...], self.scale[...] = rate, scale
        self.engine._map(replay, self.calls[len(sums)])
        for part, new in zip(self.memory, self.scalars, strict=True):
            if new is not None:
                np.copyto(part, new)
        return self.theta, self.memory


def recordable_gradient(
    activation: Activation, head: Head, X: Array, Y: Array, weight: Array | None, *leaves: Array, l2: float = 0.0
) -> list[Array]:
    """Return the summed cost and its gradient by W1, b1 … of arrays that write down what is done with them."""
    layers = [Layer(*pair) for pair in zip(leaves[::2], leaves[1::2], strict=True)]
    cost, gradients = equations.gradient(layers, X, Y, activation=activation, head=head, sample_weight=weight, xp=np)
    if l2:
        cost, gradients = equations.penalized(cost, gradients, layers, l2=l2, xp=np)
    return [cost, *(array for layer in gradients for array in layer)]


def _launched_gradient(activation: Activation, head: Head, l2: float) -> Callable[..., list[Array]]:
    """Return the function that is recorded for a GPU: of rows of examples, with a penalty of ``l2/2 Σ‖W‖²``."""

    def function(rows: Array, Y: Array, weight: Array | None, *leaves: Array) -> list[Array]:
        return recordable_gradient(activation, head, *Piece(rows, Y, weight).taken(HOST), *leaves, l2=l2)

    return function


_COST = object()
"""A cost that is not known when an update is recorded: to be handed on, and refused in arithmetic."""


def recordable_update(
    optimizer: Optimizer, kind: Any, count: int, theta: Array, rate: Array, scale: Any, *arrays: Array
) -> list[Array]:
    """Return the new parameters and state of arrays that write down what is done with them.

    `arrays` are `count` vectors that add up to the summed gradient, and the state, of that kind; `scale` makes a mean.
    """

    def evaluate(at: Array) -> tuple[Array, Array]:
        if at is not theta:
            raise UnrecordableError
        return _COST, reduce(operator.add, arrays[:count]) * scale

    theta, memory, _ = optimizer.update(theta, kind(*arrays[count:]), evaluate, learning_rate=rate, xp=np)
    return [theta, *memory]


def _launched_update(
    optimizer: Optimizer, kind: Any, scale: float, theta: Array, rate: Array, gradient: Array, *memory: Array
) -> list[Array]:
    return recordable_update(optimizer, kind, 1, theta, rate, scale, gradient, *memory)


def work(sizes: Sequence[int]) -> int:
    """Return the multiply-adds of one column's forward and backward pass."""
    return 3 * sum(n_in * n_out for n_in, n_out in pairwise(sizes))


def peak(sizes: Sequence[int], columns: int) -> int:
    """Return about how many numbers a step on so many columns holds at most, where columns are taken whole.

    X, Y, and of every layer Z and A; of the widest dZ, the slope and their product; and eight vectors of parameters:
    theta, the gradient's layers and the gradient, the optimizer's two or so and those that the update makes.
    """
    held = sizes[0] + sizes[-1] + 2 * sum(sizes[1:]) + 3 * max(sizes)
    return columns * held + 8 * parameters.count(sizes)


@contextmanager
def running(
    place: Place,
    sizes: Sequence[int],
    activation: Activation,
    head: Head,
    *,
    columns: int,
    threads: int | None,
    tf32: bool = False,
    make: Callable[..., Engine] = Engine,
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
    tf32 : bool
        Whether a GPU may round the factors of float32 products to TF32's 11 bits.
    make : callable
        What is called for the engine, with its arguments.
    """
    sizes = tuple(sizes)
    allowed = cores() if threads is None else threads
    worth = columns * work(sizes) >= WORTH_THREADS and columns >= WORTH_BLOCKS * allowed
    pooled = allowed > 1 and worth
    # What NumPy's floating-point warnings would say is checked and said by name where it matters.
    with np.errstate(all="ignore"):
        if not place.is_numpy or (threads is None and not pooled):
            with place.multiplying(tf32=tf32), closing(make(place, sizes, activation, head, tf32=tf32)) as engine:
                yield engine
            return
        with (
            _BLAS.held(1 if pooled else allowed),
            Crew(allowed) if pooled else nullcontext() as crew,
            closing(make(place, sizes, activation, head, crew)) as engine,
        ):
            yield engine


_MOST_THREADS = 2**16  # that BLAS is told of: more than any has, and within a C int


def _limit_blas(threads: int) -> Callable[[], None]:
    import threadpoolctl

    # Since 3.8 it is kept while no module is imported: to look for libraries takes 0.3 ms.
    controller = getattr(threadpoolctl, "get_cached_controller", threadpoolctl.ThreadpoolController)
    blas = controller().select(user_api="blas")
    before = [(library, library.num_threads) for library in blas.lib_controllers]

    # Since 3.8 OpenBLAS is set by one thread alone, the first to do so, until it is told to let go: the next fit may be
    # another thread's.
    let_go: Callable[..., object] = getattr(
        getattr(threadpoolctl, "OpenBLASController", None), "clear_controlling_thread", lambda **_: None
    )

    def put_back() -> None:
        let_go(force=True)
        for library, count in before:
            library.set_num_threads(count)
        let_go(force=True)

    try:
        for library, _ in before:
            library.set_num_threads(min(threads, _MOST_THREADS))
    except BaseException:  # Ctrl-C may come when half of it is done
        put_back()
        raise
    return put_back


_BLAS = Setting(_limit_blas)
"""The threads of this process's BLAS."""
