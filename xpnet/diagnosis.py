"""What is wrong with a fit: which fault, where, and what mends it.

`fit` calls `diagnose` when it ends, with the costs of all epochs and a few hundred examples, evenly taken, which the
network sees once more: one forward pass, on the host. `Network.diagnosis` keeps the findings alone, no examples.

A fault is named only where the numbers leave no doubt, so that silence means little and a finding much. Costs are
measured by what there is to learn: the cost of the best constant prediction less that of a perfect one, which is the
entropy of classes, half the variance of numbers and half the deviance of counts.

References
----------
.. [1] T. Hastie, R. Tibshirani, M. Wainwright, Statistical Learning with Sparsity, 2015, eq. (3.11): the deviance.
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xpnet import data, equations, heads, parameters, targets
from xpnet import device as devices
from xpnet.activations import Activation
from xpnet.data import Examples, Source
from xpnet.selection import Picked
from xpnet.targets import Task
from xpnet.typing import Array, Layer

__all__ = ["Diagnosis", "Finding"]

LARGE, SMALL = 100.0, 1e-3
"""A feature whose root mean square is outside these is called badly scaled."""

DEAD, FLAT = 1e-6, 1e-2
"""A unit passes nothing on where its slope, as a share of the activation's steepest, is below the first; below the
second, next to nothing."""

STUCK = 0.95
"""The share of the examples for which a saturated unit is so flat."""

MANY = 0.5
"""The share of a layer's units that are dead, or saturated, when that may be a fault."""

BADLY, WELL = 0.5, 0.9
"""It is one of a fit that has learned less than the first of what there is to learn, or began so and has learned less
than the second. A fit that has learned more has made steps of such units, or does without them."""

LOOKED_AT = 512
"""The most examples that are looked at."""

COST = 0.005
"""The most that looking at them may take, as a share of the fit's own forward and backward passes."""

SWING, RISES = 0.05, 0.25
"""A learning rate is too high when from epoch to epoch the cost moves by the first, as a share of what there is to
learn, and rises in so many epochs of the fit's second half."""

HARDLY, STEADY = 0.1, 0.2
"""It is too low when the cost has fallen by less than the first in all, a fifth of that in the last third, and one step
along the gradient would bring half as much as the first at once."""

ROUNDING = 1e-3
"""Of what there is to learn: costs that differ by less are alike."""

FEW = 20
"""Epochs below which it may as well be they that were too few."""

FAST = 0.05
"""A fit was ended too early when the cost fell so much in the last tenth of its epochs."""

RARE = 0.1
"""A class is rare whose share is less than this of what it would be if all were alike."""

OF_CLASS = 64
"""The most examples of a rare class that are looked at."""

ALL = 0.95
"""The largest share of one class with which it is a fault to predict nothing else."""

ALIKE = 0.01
"""The spread of predicted numbers, as a share of Y's, below which they are all alike."""


@dataclass(frozen=True)
class Finding:
    """A fault of a fit.

    Attributes
    ----------
    kind : str
        ``"dead_units" "saturated_units" "unscaled_features" "unscaled_target" "constant_features" "constant_target"
        "learning_rate_too_high" "learning_rate_too_low" "unfinished" "unbalanced_classes" "constant_prediction"``; and
        ``"undiagnosed"`` where the examples could not be looked at.
    where : str
        A layer, features, a class, the cost, the output.
    message : str
        The numbers, and what to do.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> net = xpnet.fit(X, Y, learning_rate=1e-9, random_state=0)
    >>> [finding.kind for finding in net.diagnosis]
    ['learning_rate_too_low']
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind.replace('_', ' ')}: {self.where}. {self.message}"


class Diagnosis(tuple[Finding, ...]):
    """The findings about a fit, a tuple that shows itself as text or, in a notebook, as a table; empty when it is well.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> xpnet.fit(X, Y, hidden=16, activation="tanh", optimizer="lbfgs", random_state=0).diagnosis
    nothing found
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "nothing found"

    def _repr_html_(self) -> str:
        """Return the table that notebooks show; all text from data is escaped."""
        if not self:
            return "<p>nothing found</p>"
        cells = ((each.kind.replace("_", " "), each.where, each.message) for each in self)
        rows = ("".join(f'<td style="text-align: left">{html.escape(text)}</td>' for text in texts) for texts in cells)
        return f"<table><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


# Scale ----------------------------------------------------------------------------------------------------------------


def sizes_of_features(source: Source) -> npt.NDArray[np.float64]:
    """Return the root mean square of every feature over a sample of the examples, ``(n_x,)``."""
    squares, count = np.zeros(source.n_features), 0
    for rows in data.sample(source):
        host = devices.to_host(rows).astype(np.float64)
        squares += (host * host).sum(axis=0)
        count += host.shape[0]
    return np.sqrt(squares / count)


def of_scale(source: Source, labels: npt.NDArray[Any] | Picked, kind: Task, *, standardized: bool) -> list[Finding]:
    """Return what is to be said of the sizes of X and of numbers to predict, which `fit` warns of before it begins.

    Parameters
    ----------
    source : Source
        X.
    labels : (m,) or (n_y, m) array, or Picked
        Y.
    kind : Task
        What Y is.
    standardized : bool
        Whether features are brought to one size anyway.

    Returns
    -------
    list of Finding
    """
    with np.errstate(all="ignore"):
        sizes = np.ones(1) if standardized else sizes_of_features(source)
        size = targets.size(labels) if kind.name == "regression" else 0.0
    found = []
    # What is not finite is refused when X is read, with its place.
    wrong = np.flatnonzero(np.isfinite(sizes) & ((sizes > LARGE) | ((sizes < SMALL) & (sizes > 0))))
    if wrong.size:
        some = _listed([f"{source.feature(int(i))} (size {sizes[i]:.2g})" for i in wrong])
        message = f"X has badly scaled features, on which gradient descent is slow: {some}. Pass standardize=True."
        found.append(Finding("unscaled_features", _listed([source.feature(int(i)) for i in wrong]), message))
    if LARGE < size < math.inf:
        message = (
            f"Y is large (size {size:.2g}), and weights that start near 1 are slow to reach it. Train on "
            "(Y - Y.mean()) / Y.std()."
        )
        found.append(Finding("unscaled_target", "Y", message))
    return found


def _listed(texts: Sequence[str]) -> str:
    """Return the first five texts, and how many there are more."""
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


# Units ----------------------------------------------------------------------------------------------------------------


def steepest(activation: Activation) -> float:
    """Return an activation's largest slope between −8 and 8, or 1 if that is less."""
    Z = np.linspace(-8.0, 8.0, 1601)[None, :]
    with np.errstate(all="ignore"):
        return min(1.0, float(np.max(np.abs(activation.dg(Z, activation.g(Z, xp=np), xp=np)))))


def flatness(
    activation: Activation, Z: npt.NDArray[Any], A: npt.NDArray[Any], *, steep: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return for how many of the examples each unit passes next to nothing on, and for how many nothing, ``(n[l],)``.

    Parameters
    ----------
    activation : Activation
        The layer's.
    Z, A : (n[l], m) float arrays
        Of the layer, on the host.
    steep : float
        From `steepest`.
    """
    slope = np.abs(activation.dg(Z, A, xp=np))
    return np.sum(slope < FLAT * steep, axis=-1), np.sum(slope < DEAD * steep, axis=-1)


# Examples to look at --------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """Some examples and what the network makes of them, on the host.

    Attributes
    ----------
    X : (n_x, k) float array
        Standardized as in training.
    Y : (n_y, k) float array
    weight : (1, k) float array
        Of the examples, as in training; 1 where there are none.
    Z, A : lists of arrays
        As `equations.forward` returns them.
    """

    X: Array
    Y: Array
    weight: Array
    Z: list[Array]
    A: list[Array]


class _Looking(NamedTuple):
    """A network on the host that is shown examples."""

    layers: Sequence[Layer]
    activation: Activation
    kind: Task
    examples: Examples

    @property
    def head(self) -> heads.Head:
        return heads.HEADS[self.kind.head]

    def at(self, numbers: npt.NDArray[np.int64]) -> Seen:
        """Return the examples of these numbers, in rising order, as the network sees them."""
        X = _rows(self.examples, numbers).T
        Y = devices.to_host(_taken(self.examples.Y, numbers)).T
        weight = np.ones((1, numbers.size), Y.dtype)
        if self.examples.weight is not None:
            given = devices.to_host(_taken(self.examples.weight, numbers)).T
            weight = given if given.any() else weight
        return self.through(self.layers, X, Y, weight)

    def through(self, layers: Sequence[Layer], X: Array, Y: Array, weight: Array) -> Seen:
        """Return examples as a network of these layers sees them."""
        return Seen(X, Y, weight, *equations.forward(layers, X, activation=self.activation, head=self.head, xp=np))

    def cost(self, seen: Seen) -> float:
        """Return the mean cost of examples, without the penalty."""
        total = equations.cost(seen.Z[-1], seen.Y, head=self.head, sample_weight=seen.weight, xp=np)
        return float(total) / float(np.sum(seen.weight))


def _taken(array: Array, numbers: npt.NDArray[np.int64]) -> Array:
    if isinstance(array, data.Encoded):
        return array[numbers, ...]
    place = devices.place_of(array)
    return place.xp.take(array, place.asarray(numbers), axis=0)


def _rows(examples: Examples, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the rows of some examples on the host, ``(k, n_x)``, read in as few slices as can be."""
    it = examples if examples.feed is None else examples.feed.host
    if it.rows is not None:
        return devices.to_host(_taken(it.rows, numbers))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    it = replace(it, source=replace(it.source, read=it.source.copied))
    return np.concatenate([devices.to_host(it.converted(int(run[0]), int(run[-1]) + 1)) for run in runs])


def _evenly(examples: Examples, count: int) -> npt.NDArray[np.int64]:
    """Return the numbers of so many examples, taken evenly; of a file in 16 slices, as it is slow to find each."""
    m = examples.source.n_examples
    it = examples if examples.feed is None else examples.feed.host
    if m <= count or it.rows is not None:
        return np.unique(np.linspace(0, m - 1, min(m, count)).astype(np.int64))
    width = max(1, count // 16)
    starts = np.linspace(0, m - width, 16).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(width)).ravel())


class Sample(NamedTuple):
    """A few of the examples, which may be a part of all, on the host.

    Attributes
    ----------
    X : (k, n_x) float array
        Standardized as in training.
    Y : (k, n_y) float array
    weight : (k, 1) float array or None
    total : (n_y,) float64 array
        The weighted sum of Y over all the examples, not these few.
    """

    X: Array
    Y: Array
    weight: Array | None
    total: npt.NDArray[np.float64]


def sample(examples: Examples, count: int) -> Sample:
    """Return so many of the examples, evenly taken."""
    numbers = _evenly(examples, count)
    Y = devices.to_host(_taken(examples.Y, numbers))
    weight = None if examples.weight is None else devices.to_host(_taken(examples.weight, numbers))
    return Sample(_rows(examples, numbers), Y, weight, _means(examples) * examples.Y.shape[0])


def joined(samples: Sequence[Sample], examples: Examples) -> tuple[Examples, npt.NDArray[np.float64]]:
    """Return the samples of all parts as `diagnose` takes them, and the mean of Y over all examples.

    Parameters
    ----------
    samples : sequence of Sample
        Of every part.
    examples : Examples
        What tells how many there are of them in all, and the features' names.
    """
    X, Y = np.concatenate([each.X for each in samples]), np.concatenate([each.Y for each in samples])
    weights = [each.weight for each in samples if each.weight is not None]
    means = np.sum([each.total for each in samples], axis=0) / examples.source.n_examples
    source = examples.source.reading(lambda start, stop: X[start:stop], n_examples=X.shape[0])
    return replace(examples, source=source, rows=X, Y=Y, weight=np.concatenate(weights) if weights else None), means


# The findings ---------------------------------------------------------------------------------------------------------


def diagnose(
    layers: Sequence[Layer],
    start: Sequence[Layer],
    examples: Examples,
    history: Mapping[str, Sequence[float]],
    *,
    activation: Activation,
    kind: Task,
    l2: float,
    stop_reason: str,
    of_scale: Sequence[Finding],
    means: npt.NDArray[np.float64] | None = None,
) -> Diagnosis:
    """Return what is wrong with a fit that has ended.

    Parameters
    ----------
    layers : sequence of Layer
        The network's, wherever they are.
    start : sequence of Layer
        Where it began, on the host.
    examples : Examples
        Those trained on.
    history : mapping of str to list of float
        As `Network.history`.
    activation, kind : Activation, Task
        The network's.
    l2 : float
        λ.
    stop_reason : str
        Why the fit ended.
    of_scale : sequence of Finding
        From the function of that name, which come first.
    means : (n_y,) float64 array, optional
        The weighted mean of Y over all examples, when `examples` are a sample of them: then nothing is said of rare
        classes and constant targets, for which all would have to be gone through.

    Returns
    -------
    Diagnosis
    """
    layers = [Layer(*(devices.to_host(array) for array in layer)) for layer in layers]
    looking = _Looking(layers, activation, kind, examples)
    m, sizes = examples.source.n_examples, parameters.sizes_of(layers)
    count = looked_at(m, len(history["cost"])) if means is None else m
    with np.errstate(all="ignore"):
        seen = looking.at(_evenly(examples, min(count, max(1, data.READ // max(sizes)))))
        at = _Costs(*_bounds(seen, examples, kind, means), looking.cost(seen))
        found = [
            *of_scale,
            *_of_features(seen, examples),
            *(_of_targets(seen, kind, examples) if means is None else ()),
            *_of_units(looking, seen, start, at.learned),
            *_of_costs(looking, seen, history, at, stop_reason=stop_reason, scaled=not of_scale),
            *(_of_classes(looking) if means is None else ()),
            *_of_output(seen, kind, l2),
        ]
    return Diagnosis(found)


def looked_at(m: int, epochs: int) -> int:
    """Return how many of m examples are looked at after so many epochs."""
    return min(LOOKED_AT, max(OF_CLASS, int(3 * COST * m * epochs)))


def undone(of_scale: Sequence[Finding], error: Exception) -> Diagnosis:
    """Return what is known of a fit whose examples could not be looked at, and why they could not."""
    message = f"The examples could not be looked at once more: {type(error).__name__}: {error!s:.200}."
    return Diagnosis([*of_scale, Finding("undiagnosed", "X", message)])


def _bounds(seen: Seen, examples: Examples, kind: Task, means: npt.NDArray[np.float64] | None) -> tuple[float, float]:
    """Return the mean cost of a perfect prediction and that of the best constant one, in nats."""
    if kind.classes is not None:
        shares = _means(examples) if means is None else means
        parts = _x_log_x(shares) if kind.name == "multiclass" else _x_log_x(shares) + _x_log_x(1.0 - shares)
        return 0.0, float(-np.sum(parts))
    Y, weight = seen.Y.astype(np.float64), seen.weight.astype(np.float64)
    mean = np.average(Y, axis=1, weights=weight[0])
    if kind.name == "count":  # without the terms that hold Y alone, as the cost
        perfect = float(np.sum(np.average(Y - _x_log_x(Y), axis=1, weights=weight[0])))
        return perfect, float(np.sum(mean - _x_log_x(mean)))
    return 0.0, 0.5 * float(np.sum(np.average((Y - mean[:, None]) ** 2, axis=1, weights=weight[0])))


def _means(examples: Examples) -> npt.NDArray[np.float64]:
    """Return the weighted mean of Y over all examples, ``(n_y,)``."""
    Y, weight = examples.Y, examples.weight
    if isinstance(Y, data.Encoded):
        done, total = 0, np.zeros(Y.shape[1])
        for part in Y.parts():
            factors = 1.0 if weight is None else weight[done : done + len(part), ...]
            total += np.sum(part * factors, axis=0, dtype=np.float64)
            done += len(part)
        return total / done
    xp = devices.place_of(Y).xp
    # A product rather than a sum of products, which would make an array as long as the examples.
    sums = xp.sum(Y, axis=0) if weight is None else xp.matmul(xp.matrix_transpose(weight), Y)[0, :]
    return devices.to_host(sums).astype(np.float64) / int(Y.shape[0])  # the mean weight is 1


def _x_log_x(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(x * np.log(np.where(x > 0.0, x, 1.0)))


def _of_features(seen: Seen, examples: Examples) -> Iterator[Finding]:
    X, it = seen.X, examples.source
    values = X[:, 0].astype(np.float64)
    if examples.scaling is not None:
        mean, deviation = examples.scaling
        values = mean + deviation * values
    # One that is 0 throughout, as at the border of images, is in nobody's way.
    constant = [i for i in _constant(X, examples.rows) if values[i] != 0.0]
    if constant:
        names = [it.feature(i) for i in constant]
        some = _listed([f"{name} is {values[i]:g}" for name, i in zip(names, constant, strict=True)])
        looked_at = X.shape[1] if examples.rows is None else it.n_examples
        message = f"In all of {looked_at:,} examples {some}, which tells nothing that b does not. Leave it out."
        yield Finding("constant_features", _listed(names), message)


def _constant(seen: npt.NDArray[Any], rows: Array | None) -> list[int]:
    """Return which rows of what was seen, ``(n, k)``, are constant, in all examples ``(m, n)`` too if given."""
    if seen.shape[1] < 2:
        return []
    found = [int(i) for i in np.flatnonzero(np.ptp(seen, axis=1) == 0.0)]
    if rows is None or rows.shape[0] == seen.shape[1]:
        return found
    xp = devices.place_of(rows).xp
    return [i for i in found if float(xp.min(rows[:, i])) == float(xp.max(rows[:, i]))]


def _of_targets(seen: Seen, kind: Task, examples: Examples) -> Iterator[Finding]:
    if kind.name in ("binary", "multiclass"):
        return
    Y, rows = seen.Y, _constant(seen.Y, examples.Y)
    if rows:
        where = "Y" if Y.shape[0] == 1 else _listed([f"row {i} of Y" for i in rows])
        some, m = _listed([f"{Y[i, 0]:g}" for i in rows]), examples.source.n_examples
        message = f"It is {some} in all of {m:,} examples: there is nothing to learn. Leave it out."
        yield Finding("constant_target", where, message)


def _of_units(looking: _Looking, seen: Seen, start: Sequence[Layer], learned: float) -> Iterator[Finding]:
    k, name = seen.X.shape[1], looking.activation.name
    idle = _idle(looking.activation, seen)
    if not any(number >= MANY * Z.shape[0] for layer, Z in zip(idle, seen.Z[:-1], strict=True) for number in layer):
        return
    begun = _idle(looking.activation, looking.through(start, *seen[:3]))
    for l, ((stuck, dead), (stuck_then, dead_then)) in enumerate(zip(idle, begun, strict=True), 1):
        many = MANY * seen.Z[l - 1].shape[0]
        units = f"of {seen.Z[l - 1].shape[0]:,} units are"
        if dead >= many and learned < (WELL if dead_then >= many else BADLY):
            message = (
                f"{dead:,} {units} dead: the slope of {name} is 0 for each of {k:,} examples looked at, and nothing "
                f"can change their weights. {_mend_of_units(looking, at_start=dead_then >= many)}"
            )
            yield Finding("dead_units", f"layer {l}", message)
        if stuck >= many and learned < (WELL if stuck_then >= many else BADLY):
            message = (
                f"{stuck:,} {units} saturated: the slope of {name} is below {FLAT:.0%} of its steepest for "
                f"{STUCK:.0%} of {k:,} examples looked at. {_mend_of_units(looking, at_start=stuck_then >= many)}"
            )
            yield Finding("saturated_units", f"layer {l}", message)


def _idle(activation: Activation, seen: Seen) -> list[tuple[int, int]]:
    """Return how many units of each hidden layer are saturated but not dead, and how many are dead."""
    k, steep, found = seen.X.shape[1], steepest(activation), []
    for Z, A in zip(seen.Z[:-1], seen.A[1:-1], strict=True):
        flat, dead = (counts / k for counts in flatness(activation, Z, A, steep=steep))
        # Where half of the line is cut off, a unit that is off for most examples is one that is choosy.
        stuck = 0 if activation.gain == "he" else int(np.sum((flat >= STUCK) & (dead < 1.0)))
        found.append((stuck, int(np.sum(dead == 1.0))))
    return found


def _mend_of_units(looking: _Looking, *, at_start: bool) -> str:
    mends = ["smaller weights to start from" if at_start else "a lower learning_rate"]
    mends += ["standardize=True"] if looking.examples.scaling is None else []
    mends += ['activation="leaky_relu"'] if looking.activation.name == "relu" else []
    return f"{'They were so at the start: pass' if at_start else 'Pass'} {', or '.join(mends)}."


class _Costs(NamedTuple):
    """Mean costs of examples, in nats: of a perfect prediction, the best constant one, and the network's."""

    perfect: float
    constant: float
    now: float

    @property
    def learnable(self) -> float:
        return self.constant - self.perfect

    @property
    def learned(self) -> float:
        """The share of what there is to learn that is learned; 1 of nothing."""
        return (self.constant - self.now) / self.learnable if self.learnable > 0.0 else 1.0


def _of_costs(
    looking: _Looking,
    seen: Seen,
    history: Mapping[str, Sequence[float]],
    at: _Costs,
    *,
    stop_reason: str,
    scaled: bool,
) -> Iterator[Finding]:
    learnable, n = at.learnable, len(history["cost"])
    if n < 2 or not learnable > 0.0:
        return
    costs, rates = np.asarray(history["cost"]) / learnable, history["learning_rate"]
    rate = f"{max(rates):g}" + ("" if min(rates) == max(rates) else " at most")
    steps = np.diff(costs[n // 2 :])
    if n >= 8 and np.mean(steps > 0.0) >= RISES and np.mean(np.abs(steps)) >= SWING:
        if scaled:  # else it is too high for the large features alone
            message = (
                f"From epoch to epoch it moves by {_times(np.mean(np.abs(steps)))} what there is to learn, and it rose "
                f"in {np.sum(steps > 0.0)} of the last {steps.size} epochs. Lower learning_rate, which was {rate}, "
                "tenfold."
            )
            yield Finding("learning_rate_too_high", "cost", message)
        return
    fallen, slowly = costs[0] - costs[-1], costs[-max(2, n // 3)] - costs[-1]
    hardly = fallen < HARDLY or at.learned < HARDLY
    if hardly and slowly >= STEADY * fallen - ROUNDING and _downhill(looking, seen, at):
        message = (
            f"In {n:,} epochs it fell from {history['cost'][0]:.4g} to {history['cost'][-1]:.4g}, where the best "
            f"constant prediction costs {at.constant:.4g}, and one long step would have brought more. Raise "
        )
        if n < FEW and stop_reason == "epochs":
            yield Finding("unfinished", "cost", f"{message}epochs, or learning_rate, which was {rate}.")
        else:
            message += f"learning_rate, which was {rate}, tenfold or more."
            yield Finding("learning_rate_too_low", "cost", message)
        return
    tenth = max(1, n // 10)
    validation = history["validation_cost"] or history["cost"]
    lately = costs[-1 - tenth] - costs[-1]
    if stop_reason == "epochs" and min(lately, (validation[-1 - tenth] - validation[-1]) / learnable) >= FAST:
        message = (
            f"In the last {f'{tenth:,} epochs' if tenth > 1 else 'epoch'} of {n:,} it still fell by {_times(lately)} "
            "what there is to learn. Raise epochs."
        )
        yield Finding("unfinished", "cost", message)


def _times(share: Any) -> str:
    return f"{share:.0%} of" if share < 10.0 else f"{share:,.0f} times"


def _downhill(looking: _Looking, seen: Seen, at: _Costs) -> bool:
    """Return whether one step along the gradient, as long as promises `HARDLY`, brings half of that."""
    X, Y, weight, Z, A = seen
    total = float(np.sum(weight))
    gradients = equations.backward(looking.layers, Z, A, Y, activation=looking.activation, sample_weight=weight, xp=np)
    slope = float(sum(np.sum((array / total) ** 2) for layer in gradients for array in layer))
    if not slope > 0.0:
        return False
    length = HARDLY * at.learnable / slope / total
    layers = [
        Layer(W - length * dW, b - length * db) for (W, b), (dW, db) in zip(looking.layers, gradients, strict=True)
    ]
    return at.now - looking.cost(looking.through(layers, X, Y, weight)) >= 0.5 * HARDLY * at.learnable


def _of_classes(looking: _Looking) -> Iterator[Finding]:
    """Yield the rare classes of which less than half is told."""
    kind, it = looking.kind, looking.examples
    if kind.classes is None or kind.name == "multilabel":
        return
    means = _means(it)
    shares = np.asarray([1.0 - means[0], means[0]]) if kind.name == "binary" else means
    found = []
    for i in np.flatnonzero(shares < RARE / shares.size)[np.argsort(shares[shares < RARE / shares.size])][:5]:
        column = devices.to_host(it.Y[:, 0] if kind.name == "binary" else it.Y[:, int(i)])
        numbers = np.flatnonzero(column == (0.0 if kind.name == "binary" and i == 0 else 1.0))
        if numbers.size == 0:  # a row of one-hot columns that is never there
            continue
        some = numbers[np.unique(np.linspace(0, numbers.size - 1, OF_CLASS).astype(np.int64))]
        told = int(np.sum(_classes_of(looking.at(some).A[-1], kind) == i))
        if 2 * told < some.size:
            label = repr(kind.classes[i].item())
            text = (
                f"{label} is {numbers.size:,} of {column.size:,} examples, and of {some.size} looked at {told} are told"
            )
            found.append((label, text))
    if found:
        labels, texts = zip(*found, strict=True)
        message = f'The class {"; ".join(texts)}. Pass class_weight="balanced", or more examples of it.'
        yield Finding("unbalanced_classes", f"class {', '.join(labels)}", message)


def _classes_of(A: npt.NDArray[Any], kind: Task) -> npt.NDArray[np.int64]:
    """Return which class is predicted, by number."""
    return np.asarray(A[0] > 0.5 if kind.name == "binary" else np.argmax(A, axis=0)).astype(np.int64)


def _of_output(seen: Seen, kind: Task, l2: float) -> Iterator[Finding]:
    A, Y, k = seen.A[-1], seen.Y, seen.Y.shape[1]
    mend = f"Lower l2, which was {l2:g}, or see" if l2 else "See"
    mend += " the other findings; with none, try another learning_rate or more epochs, or X may not tell."
    if kind.classes is None:
        spread, wanted = A.std(axis=1), Y.std(axis=1)
        if k > 1 and np.all(spread < ALIKE * wanted):
            message = (
                f"For {k:,} examples looked at it is {A[0].mean():.4g} with a deviation of {spread[0]:.2g}, where Y's "
                f"is {wanted[0]:.2g}: all alike. {mend}"
            )
            yield Finding("constant_prediction", "output", message)
        return
    if kind.name == "multilabel":
        return
    predicted, true = (_classes_of(array, kind) for array in (A, Y))
    counts = np.bincount(true, minlength=kind.classes.size)
    if np.all(predicted == predicted[0]) and counts.max() <= ALL * k:
        label, own = repr(kind.classes[predicted[0]].item()), counts[predicted[0]]
        message = f"Of {k:,} examples looked at all are told to be {label}, and {own:,} are. {mend}"
        yield Finding("constant_prediction", "output", message)
