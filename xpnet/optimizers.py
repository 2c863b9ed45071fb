"""Optimizers: pairs of pure functions over one flat parameter vector.

``init(theta, xp=)`` makes the state and ``update(theta, state, evaluate, learning_rate=, xp=)`` takes one step. An
update *asks* for the mean cost and its gradient, ``evaluate(theta) -> (cost, gradient)``, where it wants them: gradient
descent once, a line search as often as it must. It returns ``(theta, state, cost)``, the cost being the one before the
step. States are named tuples of arrays and numbers, which is what a checkpoint writes.

References
----------
.. [1] A. Ng, Deep Learning Specialization, course 1, week 3 (gd) and course 2, week 2 (momentum, adam).
.. [2] D. Kingma, J. Ba, Adam: a method for stochastic optimization, 2015, algorithm 1.
.. [3] J. Nocedal, S. Wright, Numerical Optimization, 2006, algorithm 7.4 (two loops).
.. [4] A. Lewis, M. Overton, Nonsmooth optimization via quasi-Newton methods, 2013, algorithm 2.6 (the line search).
.. [5] Y. Bengio, N. Boulanger-Lewandowski, R. Pascanu, Advances in optimizing recurrent networks, 2013, section 3.5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from xpnet.arguments import choice, real, true_or_false, whole
from xpnet.errors import ArgumentError
from xpnet.schedules import Plateau, Schedule, Waiting
from xpnet.typing import Array, Namespace

__all__ = ["OPTIMIZERS", "Optimizer", "adam", "gd", "lbfgs", "momentum"]

Evaluate: TypeAlias = Callable[[Array], tuple[Array, Array]]
"""``theta -> (cost, gradient)``: means over the columns of a batch, with the penalty."""


@dataclass(frozen=True)
class Optimizer:
    """A way to step downhill.

    Attributes
    ----------
    name : str
        ``"gd"``, ``"momentum"``, ``"adam"``, ``"lbfgs"`` or one's own.
    init, update : callable
        The pair described in `xpnet.optimizers`.
    learning_rate : float or callable
        α, or ``epoch -> α``.
    full_batch : bool
        Whether each step must see all examples.
    settings : tuple of float
        What else the pair was made with; a checkpoint is resumed with the same only.

    Examples
    --------
    >>> descent = gd(0.5)
    >>> descent.name, descent.rate(0)
    ('gd', 0.5)
    """

    name: str
    init: Callable[..., Any]
    update: Callable[..., tuple[Array, Any, Array]]
    learning_rate: Schedule
    full_batch: bool = False
    settings: tuple[float, ...] = ()

    def rate(self, epoch: int, waiting: Waiting = Waiting()) -> float:  # noqa: B008  # immutable
        """Return α of this epoch, after the costs that `waiting` knows of.

        Parameters
        ----------
        epoch : int
            The first is 0.
        waiting : Waiting
            What a `xpnet.schedules.plateau` has to know; nothing else looks at it.

        Returns
        -------
        float

        Raises
        ------
        ArgumentError
            The schedule returned something that is not a positive, finite number.

        Examples
        --------
        >>> adam(lambda epoch: 0.1 / (epoch + 1)).rate(1)
        0.05
        """
        if not callable(self.learning_rate):
            return self.learning_rate
        schedule = self.learning_rate
        rate = schedule(epoch, waiting) if isinstance(schedule, Plateau) else schedule(epoch)
        return real(f"learning_rate({epoch})", rate, above=0.0)

    def after(self, waiting: Waiting, cost: float) -> Waiting:
        """Return what the learning rate has to know after an epoch of this monitored cost.

        Parameters
        ----------
        waiting : Waiting
            What it had to know before.
        cost : float
            In nats.

        Returns
        -------
        Waiting

        Examples
        --------
        >>> adam().after(Waiting(), 0.7) == Waiting()      # a number has to know nothing
        True
        """
        return self.learning_rate.after(waiting, cost) if isinstance(self.learning_rate, Plateau) else waiting


def _rate(learning_rate: Schedule) -> Schedule:
    return learning_rate if callable(learning_rate) else real("learning_rate", learning_rate, above=0.0)


class Stateless(NamedTuple):
    """Plain gradient descent remembers nothing."""


def gd(learning_rate: Schedule = 0.1) -> Optimizer:
    """Return gradient descent, the lecture's update ``θ := θ − α dθ`` [1]_.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.

    Returns
    -------
    Optimizer

    Raises
    ------
    ArgumentError
        A number is out of its range.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, optimizer=xpnet.optimizers.gd(0.5), epochs=1)
    """

    def init(theta: Array, *, xp: Namespace) -> Stateless:
        return Stateless()

    def update(theta: Array, state: Stateless, evaluate: Evaluate, *, learning_rate: float, xp: Namespace) -> Any:
        cost, gradient = evaluate(theta)
        return theta - learning_rate * gradient, state, cost

    return Optimizer("gd", init, update, _rate(learning_rate))


class Velocity(NamedTuple):
    """Momentum's memory: v, the average of past gradients, ``(count,)``."""

    v: Array


def momentum(learning_rate: Schedule = 0.1, beta: float = 0.9, *, nesterov: bool = False) -> Optimizer:
    """Return gradient descent with momentum: ``v := β v + (1 − β) dθ``, ``θ := θ − α v`` [1]_.

    With `nesterov` it looks one step ahead, ``θ := θ − α (β v + (1 − β) dθ)`` [5]_. PyTorch's form has no ``1 − β``:
    its learning rate is this one times ``1 − β``.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.
    beta : float
        How much of the past is kept, 0 to 1.
    nesterov : bool
        Whether to look one step ahead.

    Returns
    -------
    Optimizer

    Raises
    ------
    ArgumentError
        A number is out of its range.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, optimizer=xpnet.optimizers.momentum(0.5, beta=0.8), epochs=1)
    """
    beta, nesterov = real("beta", beta, low=0.0, below=1.0), true_or_false("nesterov", nesterov)

    def init(theta: Array, *, xp: Namespace) -> Velocity:
        return Velocity(xp.zeros_like(theta))

    def update(theta: Array, state: Velocity, evaluate: Evaluate, *, learning_rate: float, xp: Namespace) -> Any:
        cost, gradient = evaluate(theta)
        v = beta * state.v + (1.0 - beta) * gradient
        ahead = beta * v + (1.0 - beta) * gradient if nesterov else v
        return theta - learning_rate * ahead, Velocity(v), cost

    return Optimizer("momentum", init, update, _rate(learning_rate), settings=(beta, nesterov))


class Moments(NamedTuple):
    """Adam's memory: the averages of gradients and of their squares, ``(count,)`` each, and the steps taken."""

    v: Array
    s: Array
    t: Array


def adam(learning_rate: Schedule = 1e-3, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Optimizer:
    """Return Adam with bias correction: ``θ := θ − α v̂ / (√ŝ + ε)`` [2]_, in the course's letters v and s [1]_.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.
    beta1, beta2 : float
        How much is kept of past gradients and of their squares, 0 to 1.
    epsilon : float
        ε, above 0.

    Returns
    -------
    Optimizer

    Raises
    ------
    ArgumentError
        A number is out of its range.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, optimizer=xpnet.optimizers.adam(0.01, beta1=0.95), epochs=1)
    """
    beta1, beta2 = real("beta1", beta1, low=0.0, below=1.0), real("beta2", beta2, low=0.0, below=1.0)
    epsilon = real("epsilon", epsilon, above=0.0)
    log_beta1, log_beta2 = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))

    def init(theta: Array, *, xp: Namespace) -> Moments:
        nowhere = xp.zeros_like(theta)
        return Moments(nowhere, nowhere, xp.sum(nowhere))

    def update(theta: Array, state: Moments, evaluate: Evaluate, *, learning_rate: float, xp: Namespace) -> Any:
        cost, gradient = evaluate(theta)
        t = state.t + 1.0
        v = beta1 * state.v + (1.0 - beta1) * gradient
        s = beta2 * state.s + (1.0 - beta2) * (gradient * gradient)
        # 1 − βᵗ, which float32 would lose as a difference; in scalars alone, which spares the arrays a pass each.
        spread = xp.sqrt(-xp.expm1(t * log_beta2))
        step = learning_rate * spread / -xp.expm1(t * log_beta1)
        root = xp.sqrt(s) + epsilon * spread
        return theta - step * v / root, Moments(v, s, t), cost

    return Optimizer("adam", init, update, _rate(learning_rate), settings=(beta1, beta2, epsilon))


class Curvature(NamedTuple):
    """L-BFGS's memory: the last steps and the changes of gradient that they made, and where the search stands."""

    steps: Array
    changes: Array
    cost: Array
    gradient: Array
    known: int


def lbfgs(learning_rate: Schedule = 1.0, memory: int = 10) -> Optimizer:
    """Return limited-memory BFGS [3]_ with a line search for the weak Wolfe conditions [4]_; full batch.

    The weak conditions and bisection, rather than the strong ones and cubics: they hold on relu's corners too, in ten
    lines.

    Parameters
    ----------
    learning_rate : float or callable
        The first step length tried, 1 being Newton's.
    memory : int
        Past steps that the curvature is estimated from.

    Returns
    -------
    Optimizer

    Raises
    ------
    ArgumentError
        A number is out of its range.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, optimizer=xpnet.optimizers.lbfgs(memory=20), epochs=1)
    """
    memory = whole("memory", memory, low=1)

    def init(theta: Array, *, xp: Namespace) -> Curvature:
        nothing = xp.reshape(theta, (1, -1))[:0, :]
        nowhere = xp.zeros_like(theta)
        return Curvature(nothing, nothing, xp.sum(nowhere), nowhere, 0)

    def update(theta: Array, state: Curvature, evaluate: Evaluate, *, learning_rate: float, xp: Namespace) -> Any:
        cost, gradient, steps, changes = state.cost, state.gradient, state.steps, state.changes
        if not state.known:
            cost, gradient = evaluate(theta)
        direction = -_two_loops(gradient, steps, changes, xp=xp)
        slope = _dot(gradient, direction, xp=xp)
        if not slope < 0.0:  # rounding has spoiled the memory: start again from steepest descent
            steps, changes = steps[:0, :], changes[:0, :]
            direction, slope = -gradient, -_dot(gradient, gradient, xp=xp)
        length = learning_rate
        if steps.shape[0] == 0:  # no curvature known yet: a step of length one at most
            length = learning_rate / max(1.0, math.sqrt(-slope))
        found = _search(evaluate, theta, direction, float(cost), slope, length, xp=xp)
        if found is None:
            return theta, Curvature(steps[:0, :], changes[:0, :], cost, gradient, 1), cost
        new_theta, new_cost, new_gradient = found
        step, change = new_theta - theta, new_gradient - gradient
        # Both, for a change of gradient below 1e-23 has a square that rounds to zero in float32.
        if _dot(step, change, xp=xp) > 0.0 and _dot(change, change, xp=xp) > 0.0:
            oldest = max(0, int(steps.shape[0]) + 1 - memory)
            steps = xp.concat([steps, xp.reshape(step, (1, -1))])[oldest:, :]
            changes = xp.concat([changes, xp.reshape(change, (1, -1))])[oldest:, :]
        return new_theta, Curvature(steps, changes, new_cost, new_gradient, 1), cost

    return Optimizer("lbfgs", init, update, _rate(learning_rate), full_batch=True, settings=(memory,))


def _dot(left: Array, right: Array, *, xp: Namespace) -> float:
    return float(xp.sum(left * right))


def _two_loops(gradient: Array, steps: Array, changes: Array, *, xp: Namespace) -> Array:
    """Return the inverse Hessian's estimate times the gradient: algorithm 7.4 of [3]_."""
    q, kept = gradient, []
    for i in range(steps.shape[0] - 1, -1, -1):
        s, y = steps[i, :], changes[i, :]
        rho = 1.0 / _dot(s, y, xp=xp)
        a = rho * _dot(s, q, xp=xp)
        q = q - a * y
        kept.append((s, y, rho, a))
    if kept:
        s, y, rho, _ = kept[0]
        q = q * (1.0 / (rho * _dot(y, y, xp=xp)))
    for s, y, rho, a in reversed(kept):
        q = q + (a - rho * _dot(y, q, xp=xp)) * s
    return q


_SUFFICIENT, _CURVATURE, _TRIALS = 1e-4, 0.9, 30


def _search(
    evaluate: Evaluate, theta: Array, direction: Array, cost: float, slope: float, length: float, *, xp: Namespace
) -> tuple[Array, Array, Array] | None:
    """Return the next point, its cost and gradient, by bisection [4]_; None when no point tried is lower."""
    low, high, lowest = 0.0, math.inf, None
    for _ in range(_TRIALS):
        trial = theta + length * direction
        trial_cost, trial_gradient = evaluate(trial)
        if not float(trial_cost) <= cost + _SUFFICIENT * length * slope:  # too far, or not finite
            high = length
        else:
            if float(trial_cost) < cost:
                lowest = (trial, trial_cost, trial_gradient)
            if _dot(trial_gradient, direction, xp=xp) >= _CURVATURE * slope:
                return lowest
            low = length
        length = 2.0 * low if high == math.inf else 0.5 * (low + high)
    return lowest


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"gd": gd, "momentum": momentum, "adam": adam, "lbfgs": lbfgs}
"""The optimizers that come with xpnet, by name."""


def resolve(optimizer: str | Optimizer, learning_rate: Schedule | None = None) -> Optimizer:
    """Return the optimizer of that name, with `learning_rate` in place of its own when one is given.

    Raises
    ------
    ArgumentError
        There is no optimizer of that name, or the learning rate is not a positive number or a function.
    """
    if not isinstance(optimizer, Optimizer):
        if not isinstance(optimizer, str):
            raise ArgumentError(
                f"optimizer must be a name or made by xpnet.optimizers, such as xpnet.optimizers.adam(); it is "
                f"{optimizer!r}."
            )
        name = choice("optimizer", optimizer, tuple(OPTIMIZERS), or_else="made by xpnet.optimizers")
        optimizer = OPTIMIZERS[name]()
    return optimizer if learning_rate is None else replace(optimizer, learning_rate=_rate(learning_rate))
