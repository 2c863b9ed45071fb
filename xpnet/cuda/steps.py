"""An optimizer's steps on a GPU: the equations and the update as recorded, in buffers that stay, many steps a launch.

The engine says what a step does, as functions that are recorded; `xpnet.cuda.plan` makes launches of them, and
`xpnet.cuda.launch` does these. What is here is when: steps on batches that are picked out of resident examples wait
until there are `TOGETHER` of them, or until somebody looks at what they lead to, and are launched as one graph.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xpnet import parameters
from xpnet.cuda.kernels import gather
from xpnet.cuda.launch import Call, Launcher
from xpnet.cuda.plan import Plan
from xpnet.record import UnrecordableError, record
from xpnet.typing import Array

TOGETHER = 16
"""Steps that are launched as one graph: what a launch costs the host is divided by this."""

KEPT = 8
"""Programs, for batches of so many sizes, that are kept ready at the same time."""


class Inputs(NamedTuple):
    """The examples of a step, as `xpnet.data.Piece` has them: ``rows (k, n_x)``, and of them ``numbers (b,)``."""

    rows: Array
    Y: Array
    weight: Array | None
    numbers: Array | None
    lent: bool

    @property
    def columns(self) -> int:
        """The examples that are meant."""
        return int((self.rows if self.numbers is None else self.numbers).shape[0])

    def stored(self) -> tuple[list[Array | None], tuple[bool, ...]]:
        """Return rows, Y and weight as they lie row after row in memory, and which of them are transposed for it.

        Raises
        ------
        UnrecordableError
            One of them has gaps.
        """
        arrays: list[Any] = list(self[:3])
        turned = tuple(array is not None and not array.flags.c_contiguous for array in arrays)
        for array, is_turned in zip(arrays, turned, strict=True):
            if is_turned and (not array.flags.f_contiguous or self.numbers is not None):
                raise UnrecordableError
        return [array.T if is_turned else array for array, is_turned in zip(arrays, turned, strict=True)], turned


class Steps:
    """Steps of one optimizer on a device.

    Parameters
    ----------
    launcher : Launcher
        The device.
    sizes : sequence of int
        ``(n[0], …, n[L])``.
    gradient : callable
        ``gradient(l2) -> f`` with ``f(rows, Y, weight, W1, b1, …) -> [cost, dW1, db1, …]``, sums over the examples, to
        be recorded.
    update : callable
        ``update(scale, theta, rate, gradient, *memory) -> [theta, *memory]``, to be recorded; the mean gradient is
        `scale` times `gradient`.
    theta, memory : array and named tuple of arrays
        The parameters and the optimizer's state, which are copied.
    """

    def __init__(
        self,
        launcher: Launcher,
        sizes: Sequence[int],
        gradient: Callable[[float], Callable[..., Sequence[Any]]],
        update: Callable[..., Sequence[Any]],
        theta: Array,
        memory: Any,
    ) -> None:
        self.launcher, self.sizes = launcher, tuple(sizes)
        self._of_gradient, self._of_update = gradient, update
        self.theta = self._copied(theta)
        self.memory = type(memory)(*map(self._copied, memory))
        self.gradient, self.rate = launcher.empty(theta.shape, theta.dtype), launcher.empty((), theta.dtype)
        self._rate: float | None = None
        self._plans: dict[Any, list[tuple[Plan, list[Array]]]] = {}
        self._programs: dict[Any, _Program] = {}
        self._waiting: list[Array] = []
        self._at: _Program | None = None
        self._costs: list[Array] = []

    def _copied(self, array: Array) -> Array:
        made = self.launcher.empty(array.shape, array.dtype)
        made[...] = array
        return made

    def step(self, theta: Array, memory: Any, inputs: Inputs, *, rate: float, l2: float) -> tuple[Array, Any]:
        """Take a step, or put it among those that wait; return the parameters and the state as they will be.

        Raises
        ------
        UnrecordableError
            The functions do what no kernel here can; nothing has been done.
        """
        program = self._program(inputs, l2)
        if program is not self._at or rate != self._rate or theta is not self.theta or memory is not self.memory:
            self.flush()
            self._take(theta, memory, rate)
            self._at = program
        elif len(self._waiting) == program.together:
            self.flush()
        if inputs.numbers is None:
            self._costs.append(program.run_on(inputs))
        else:
            self._waiting.append(inputs.numbers)
        return self.theta, self.memory

    def _take(self, theta: Array, memory: Any, rate: float) -> None:
        """Put parameters, state and learning rate where the launches read them."""
        if theta is not self.theta:
            self.theta[...] = theta
        if memory is not self.memory:
            for ours, theirs in zip(self.memory, memory, strict=True):
                ours[...] = theirs
        if rate != self._rate:
            self.rate[...] = self._rate = rate

    def flush(self) -> None:
        """Launch the steps that wait; where memory runs out, those that were not launched wait on."""
        while self._waiting:
            assert self._at is not None, "what waits, waits for a program"
            count = self._at.together if len(self._waiting) >= self._at.together else 1
            self._costs.append(self._at.run(self._waiting[:count]))
            del self._waiting[:count]

    def take_costs(self) -> list[Array]:
        """Return the mean costs of the steps since they were last taken, ``(k,)`` arrays, once all are launched."""
        self.flush()
        costs, self._costs = self._costs, []
        return costs

    def _program(self, inputs: Inputs, l2: float) -> "_Program":
        arrays = [] if inputs.lent else [array for array in inputs[:3] if array is not None]
        key = (*map(self.launcher.address, arrays), inputs.columns, inputs.numbers is None, l2)
        if key not in self._programs:
            if len(self._programs) >= KEPT:
                self.flush()
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = _Program(self, inputs, l2)
        return self._programs[key]

    def plans(self, inputs: Inputs, l2: float) -> list[tuple[Plan, list[Array]]]:
        """Return the launches of the gradient and of the update for so many examples, with their buffers.

        These are the same for all programs of such a batch: the device does one after another.
        """
        lying, turned = inputs.stored()
        key = (inputs.columns, inputs.weight is None, turned, l2)
        if key not in self._plans:
            if inputs.numbers is not None:
                lying = [None if array is None else array[: inputs.columns] for array in lying]
            examples = [None if array is None else _blank(array) for array in lying]
            leaves = [_blank(array) for array in self.views(self.theta)]
            state = [_blank(array) for array in (self.theta, self.rate, self.gradient, *self.memory)]
            plans = (
                Plan(record(partial(self._means, turned, self._of_gradient(l2), inputs.columns), [*examples, *leaves])),
                Plan(record(partial(self._of_update, 1.0 / inputs.columns), state)),
            )
            self._plans[key] = [(plan, plan.buffers(self.launcher.empty)) for plan in plans]
        return self._plans[key]

    @staticmethod
    def _means(
        turned: Sequence[bool], function: Callable[..., Sequence[Any]], columns: int, *arrays: Any
    ) -> Sequence[Any]:
        """Return the gradient's function of examples as they lie, with the mean cost."""
        examples = (np.matrix_transpose(a) if t else a for a, t in zip(arrays, turned, strict=False))
        cost, *gradients = function(*examples, *arrays[len(turned) :])
        return [cost / columns, *gradients]

    def views(self, vector: Array) -> list[Array]:
        """Return the layers' arrays that lie in a vector: W1, b1, W2 and so on."""
        return [array for layer in parameters.unflatten(vector, self.sizes, xp=self.launcher.xp) for array in layer]


class _Program:
    """Steps on batches of one size from the same arrays: their launches, bound, and graphs of one and of many."""

    def __init__(self, steps: Steps, inputs: Inputs, l2: float) -> None:
        self.steps, self.launcher, self.columns = steps, steps.launcher, inputs.columns
        picked = inputs.numbers is not None
        self.together = TOGETHER if picked and self.launcher.captures else 1
        self._plans = steps.plans(inputs, l2)
        empty = self.launcher.empty
        self.costs = empty((self.together,), steps.theta.dtype)
        self.numbers = empty((self.together, self.columns), np.int64) if picked else None
        # Where examples are picked out of, and where the batch is.
        self._whole = inputs[:3] if picked else ()
        self._examples, _ = inputs.stored()
        if picked or inputs.lent:
            self._examples = [
                None if array is None else empty((self.columns, array.shape[1]), array.dtype) for array in inputs[:3]
            ]
        self._products: dict[tuple[int, int], Call] = {}  # the same in every one of the steps taken together
        self._one = self.launcher.graph(self._calls(0))
        self._many: Call | None = None

    def _calls(self, n: int) -> list[Call]:
        """Return the calls of the n-th of the steps that are taken together."""
        it, calls = self.steps, self._picking(n)
        arguments = ([*self._examples, *it.views(it.theta)], [it.theta, it.rate, it.gradient, *it.memory])
        results = ([self.costs[n, ...], *it.views(it.gradient)], [it.theta, *it.memory])
        for i, (plan, buffers) in enumerate(self._plans):
            for j, bound in enumerate(plan.bind(arguments[i], results[i], buffers)):
                if bound.kernel is not None:
                    calls.append(self.launcher.kernel(bound.kernel, bound.inputs, bound.outputs))
                    continue
                if (i, j) not in self._products:
                    self._products[i, j] = self.launcher.product(*bound.inputs, *bound.outputs)
                calls.append(self._products[i, j])
        return calls

    def _picking(self, n: int) -> list[Call]:
        """Return the calls that pick the n-th step's examples out."""
        return [
            self.launcher.kernel(gather(array, self.columns), [array, self.numbers[n]], [batch])
            for array, batch in zip(self._whole, self._examples, strict=False)
            if array is not None and self.numbers is not None
        ]

    def run_on(self, inputs: Inputs) -> Array:
        """Take a step on all of these examples, and return its mean cost, ``(1,)``."""
        costs = self._costs_of(1)
        if inputs.lent:
            for array, batch in zip(inputs[:3], self._examples, strict=True):
                if array is not None:
                    self.launcher.copy([array], batch)
        self._one()
        self.launcher.copy([self.costs[:1]], costs)
        return costs

    def run(self, numbers: Sequence[Array]) -> Array:
        """Take a step, or as many as go together, on examples of these numbers; return the mean costs, ``(k,)``."""
        assert self.numbers is not None, "a program that picks examples out is told which"
        costs, launch = self._costs_of(len(numbers)), self._one
        if len(numbers) > 1:
            if self._many is None:
                self._many = self.launcher.graph([call for n in range(self.together) for call in self._calls(n)])
            launch = self._many
        self.launcher.copy(numbers, self.numbers)
        launch()
        self.launcher.copy([self.costs[: len(numbers)]], costs)
        return costs

    def _costs_of(self, count: int) -> Array:
        """Return where the costs of steps will be kept: made first, for after a launch nothing may fail any more."""
        return self.launcher.empty((count,), self.costs.dtype)


def _blank(array: Array) -> Any:
    """Return an array of NumPy's like this one, which takes no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)
