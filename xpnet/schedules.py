"""Learning rates that change: ``epoch -> α``, for ``learning_rate=``, each made from a number or another schedule.

>>> from xpnet import schedules
>>> rate = schedules.warm_up(schedules.cosine(0.1, epochs=4), epochs=2)
>>> rate
warm_up(cosine(0.1, epochs=4), epochs=2)
>>> [round(rate(epoch), 3) for epoch in range(6)]
[0.033, 0.067, 0.1, 0.085, 0.05, 0.015]

All are functions of the epoch alone, but for `plateau`, which looks at the costs so far. These are in a checkpoint, so
that a fit which is resumed goes on with the very rates that it would have had.

References
----------
.. [1] I. Loshchilov, F. Hutter, SGDR: stochastic gradient descent with warm restarts, 2017, eq. (5): cosine.
.. [2] P. Goyal et al., Accurate, large minibatch SGD: training ImageNet in 1 hour, 2017, section 2.2: gradual warm-up.
.. [3] A. Ng, Deep Learning Specialization, course 2, week 2: exponential and stepwise decay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from xpnet.arguments import real, whole
from xpnet.errors import ArgumentError

__all__ = ["Plateau", "Scheduled", "cosine", "exponential", "plateau", "step", "warm_up"]

Schedule: TypeAlias = float | Callable[[int], float]
"""A learning rate, or ``epoch -> learning rate``; the first epoch is 0."""

LEAST = 1e-6
"""The share of α below which `plateau` does not go, for a learning rate must be above 0."""


@dataclass(frozen=True)
class Scheduled:
    """A learning rate that a formula makes of another; made by `step`, `exponential`, `cosine` and `warm_up`.

    Attributes
    ----------
    formula : callable
        ``formula(learning_rate, epoch, **settings)``.
    learning_rate : float or callable
        What it starts from: α, or ``epoch -> α``.
    settings : tuple of (name, number)
        What the formula was given besides.

    Examples
    --------
    >>> rate = step(0.1, every=10)
    >>> rate, rate(0), round(rate(10), 3)
    (step(0.1, every=10, factor=0.1), 0.1, 0.01)
    """

    formula: Callable[..., float]
    learning_rate: Schedule
    settings: tuple[tuple[str, float], ...]

    def __call__(self, epoch: int) -> float:
        """Return α of this epoch."""
        return self.formula(self.learning_rate, epoch, **dict(self.settings))

    def __repr__(self) -> str:
        """Return the call that made it."""
        settings = "".join(f", {name}={value:g}" for name, value in self.settings)
        return f"{self.formula.__name__.strip('_')}({described(self.learning_rate)}{settings})"


def at(learning_rate: Schedule, epoch: int) -> float:
    """Return α of this epoch.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.
    epoch : int
        The first is 0.

    Returns
    -------
    float

    Examples
    --------
    >>> at(0.1, 7), at(lambda epoch: 0.1 / (epoch + 1), 1)
    (0.1, 0.05)
    """
    return learning_rate(epoch) if callable(learning_rate) else learning_rate


def described(learning_rate: Schedule) -> float | str:
    """Return what a file can keep of a learning rate: the number, the call that made it, or ``"a function"``.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.

    Returns
    -------
    float or str

    Examples
    --------
    >>> described(exponential(0.1, factor=0.9)), described(lambda epoch: 0.1)
    ('exponential(0.1, factor=0.9)', 'a function')
    """
    if isinstance(learning_rate, Scheduled | Plateau):
        return repr(learning_rate)
    return "a function" if callable(learning_rate) else learning_rate


def step(learning_rate: Schedule, *, every: int, factor: float = 0.1) -> Scheduled:
    """Return ``α · factor^⌊epoch / every⌋`` [3]_.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.
    every : int
        Epochs from one step to the next.
    factor : float
        Of each step, above 0; 1 is none.

    Returns
    -------
    Scheduled
        ``epoch -> α``.

    Raises
    ------
    ArgumentError
        A number is out of its range, or `learning_rate` is a `plateau`, which has to be outermost.

    Examples
    --------
    >>> rate = step(0.8, every=2, factor=0.5)
    >>> [rate(epoch) for epoch in range(5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """
    settings = ("every", whole("every", every, low=1)), ("factor", real("factor", factor, above=0.0))
    return Scheduled(_step, _checked(learning_rate), settings)


def _step(learning_rate: Schedule, epoch: int, *, every: int, factor: float) -> float:
    return at(learning_rate, epoch) * factor ** (epoch // every)


def exponential(learning_rate: Schedule, *, factor: float) -> Scheduled:
    """Return ``α · factor^epoch`` [3]_.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.
    factor : float
        From one epoch to the next, above 0.

    Returns
    -------
    Scheduled
        ``epoch -> α``.

    Raises
    ------
    ArgumentError
        A number is out of its range, or `learning_rate` is a `plateau`, which has to be outermost.

    Examples
    --------
    >>> rate = exponential(0.8, factor=0.5)
    >>> [rate(epoch) for epoch in range(4)]
    [0.8, 0.4, 0.2, 0.1]
    """
    return Scheduled(_exponential, _checked(learning_rate), (("factor", real("factor", factor, above=0.0)),))


def _exponential(learning_rate: Schedule, epoch: int, *, factor: float) -> float:
    return at(learning_rate, epoch) * factor**epoch


def cosine(learning_rate: Schedule, *, epochs: int) -> Scheduled:
    """Return ``α/2 · (1 + cos(π · epoch / epochs))`` [1]_: half a wave, from α to almost 0.

    From ``epochs - 1`` on it stays as it is there, for a learning rate must be above 0.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``.
    epochs : int
        The half wave's length, usually `fit`'s own `epochs`.

    Returns
    -------
    Scheduled
        ``epoch -> α``.

    Raises
    ------
    ArgumentError
        A number is out of its range, or `learning_rate` is a `plateau`, which has to be outermost.

    Examples
    --------
    >>> rate = cosine(0.8, epochs=4)
    >>> [round(rate(epoch), 3) for epoch in range(5)]
    [0.8, 0.683, 0.4, 0.117, 0.117]
    """
    return Scheduled(_cosine, _checked(learning_rate), (("epochs", whole("epochs", epochs, low=1)),))


def _cosine(learning_rate: Schedule, epoch: int, *, epochs: int) -> float:
    return at(learning_rate, epoch) * 0.5 * (1.0 + math.cos(math.pi * min(epoch, epochs - 1) / epochs))


def warm_up(learning_rate: Schedule, *, epochs: int) -> Scheduled:
    """Return a learning rate that first rises in equal steps to where another one begins [2]_, which then follows.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``; its epoch 0 comes after the warm-up.
    epochs : int
        How long it rises.

    Returns
    -------
    Scheduled
        ``epoch -> α``.

    Raises
    ------
    ArgumentError
        A number is out of its range, or `learning_rate` is a `plateau`, which has to be outermost.

    Examples
    --------
    >>> rate = warm_up(exponential(0.8, factor=0.5), epochs=3)
    >>> [round(rate(epoch), 3) for epoch in range(6)]
    [0.2, 0.4, 0.6, 0.8, 0.4, 0.2]
    """
    return Scheduled(_warm_up, _checked(learning_rate), (("epochs", whole("epochs", epochs, low=1)),))


def _warm_up(learning_rate: Schedule, epoch: int, *, epochs: int) -> float:
    if epoch >= epochs:
        return at(learning_rate, epoch - epochs)
    return at(learning_rate, 0) * (epoch + 1) / (epochs + 1)


class Waiting(NamedTuple):
    """What `plateau` has to know of the costs so far.

    Attributes
    ----------
    reference : float
        The cost from which the next is to fall by `tol`.
    waited : int
        Epochs since it last did, or since α was last lowered.
    reductions : int
        How often α was lowered.
    """

    reference: float = math.inf
    waited: int = 0
    reductions: int = 0


@dataclass(frozen=True)
class Plateau:
    """A learning rate that is lowered when the cost stops falling; made by `plateau`.

    Attributes
    ----------
    learning_rate : float or callable
        What is lowered: α, or ``epoch -> α``.
    factor, patience, tol : float, int, float
        As `plateau` has them.

    Examples
    --------
    >>> rate = plateau(0.1, factor=0.5, patience=1)
    >>> waiting = rate.after(rate.after(Waiting(), 0.7), 0.7)      # the second epoch's cost is no lower
    >>> rate(2, waiting)
    0.05
    """

    learning_rate: Schedule
    factor: float
    patience: int
    tol: float

    def __call__(self, epoch: int, waiting: Waiting = Waiting()) -> float:  # noqa: B008  # immutable
        """Return α of this epoch, after the costs that `waiting` knows of."""
        return at(self.learning_rate, epoch) * max(self.factor**waiting.reductions, LEAST)

    def after(self, waiting: Waiting, cost: float) -> Waiting:
        """Return what is to be known after an epoch of this monitored cost.

        Parameters
        ----------
        waiting : Waiting
            What was known before.
        cost : float
            In nats.

        Returns
        -------
        Waiting

        Examples
        --------
        >>> plateau(0.1, patience=1).after(Waiting(reference=0.7), 0.7).reductions
        1
        """
        if cost < waiting.reference - self.tol:
            return Waiting(cost, 0, waiting.reductions)
        if waiting.waited + 1 < self.patience:
            return waiting._replace(waited=waiting.waited + 1)
        return Waiting(waiting.reference, 0, waiting.reductions + 1)

    def __repr__(self) -> str:
        """Return the call that made it."""
        settings = f"factor={self.factor:g}, patience={self.patience}, tol={self.tol:g}"
        return f"plateau({described(self.learning_rate)}, {settings})"


def plateau(learning_rate: Schedule, *, factor: float = 0.5, patience: int = 5, tol: float = 1e-4) -> Plateau:
    """Return a learning rate that is multiplied by `factor` whenever the cost has not fallen for a while.

    The cost is the one that `fit` monitors: the validation cost when there is one. Have `fit` wait longer than this,
    by its own `patience`, or it ends before the lower rate can show. It goes down to a millionth of α at the least.

    Parameters
    ----------
    learning_rate : float or callable
        α, or ``epoch -> α``, any schedule of this module but another `plateau`.
    factor : float
        Of each reduction, between 0 and 1.
    patience : int
        Epochs in a row in which the cost has not fallen by `tol` below its lowest, until α is lowered.
    tol : float
        In nats.

    Returns
    -------
    Plateau

    Raises
    ------
    ArgumentError
        A number is out of its range, or `learning_rate` is another `plateau`.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> rate = xpnet.schedules.plateau(10.0, factor=0.1, patience=5)
    >>> net = xpnet.fit(X, Y, hidden=8, optimizer="gd", learning_rate=rate, patience=None, random_state=0)
    >>> net.history["learning_rate"][0], net.history["learning_rate"][-1] < 10.0
    (10.0, True)
    """
    factor = real("factor", factor, above=0.0, below=1.0)
    return Plateau(_checked(learning_rate), factor, whole("patience", patience, low=1), real("tol", tol, low=0.0))


def _checked(learning_rate: Schedule) -> Schedule:
    """Return a number above 0 or a function of the epoch."""
    if isinstance(learning_rate, Plateau):
        raise ArgumentError(
            f"learning_rate must be a number or a function of the epoch alone; {learning_rate!r} looks at the costs. "
            "Put plateau outermost, as in plateau(warm_up(0.1, epochs=5))."
        )
    return learning_rate if callable(learning_rate) else real("learning_rate", learning_rate, above=0.0)
