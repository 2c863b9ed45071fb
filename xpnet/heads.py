"""The output heads: ``g2`` with the cost for which ``dZ2 = A2 − Y`` is exact, so that a wrong pair cannot be made.

Each cost is computed from Z2, not from A2: ``log(A2)`` of a probability that rounded to 0 would be infinite. Costs
are in nats, for each column the sum over the outputs, without the terms that hold Y alone.

References
----------
.. [1] P. McCullagh, J. Nelder, Generalized Linear Models, 1989, section 2.2: the canonical links and likelihoods.
.. [2] A. Ng, Deep Learning Specialization, course 1, week 3 (sigmoid); course 2, week 3 (softmax).
"""

from collections.abc import Callable
from dataclasses import dataclass

from xpnet.typing import Array, Namespace

EXP_LIMIT = 30.0
"""The exp head goes on as a straight line above this Z: e³⁰ = 10¹³, more than any count. See `_poisson`."""


@dataclass(frozen=True)
class Head:
    """An output activation with its cost.

    Attributes
    ----------
    g : callable
        ``g(Z2, xp=)``, the output ``A2 (..., n_y, m)``.
    cost : callable
        ``cost(Z2, Y, xp=)``, ``(..., 1, m)``, each column's cost in nats.
    name : str
        ``"sigmoid"``, ``"softmax"``, ``"identity"`` or ``"exp"``.
    """

    g: Callable[..., Array]
    cost: Callable[..., Array]
    name: str


def _over_outputs(costs: Array, *, xp: Namespace) -> Array:
    return xp.sum(costs, axis=-2, keepdims=True)


def _sigmoid(Z: Array, *, xp: Namespace) -> Array:
    """Return ``1 / (1 + e^−Z)`` as ``e^(min(Z, 0) − log1p(e^−|Z|))``, whose logarithm the cost needs too."""
    return xp.exp(xp.minimum(Z, 0.0) - xp.log1p(xp.exp(-xp.abs(Z))))


def _binary_cross_entropy(Z: Array, Y: Array, *, xp: Namespace) -> Array:
    """``−Y log A − (1 − Y) log(1 − A)`` with ``A = sigmoid(Z)`` is ``softplus(Z) − Y Z``.

    The large terms of softplus and ``Y Z`` cancel before the small one is added: a sure right answer's cost keeps its
    digits for Y = 1 as for Y = 0.
    """
    return _over_outputs(xp.maximum(Z, 0.0) - Y * Z + xp.log1p(xp.exp(-xp.abs(Z))), xp=xp)


def _softmax(Z: Array, *, xp: Namespace) -> Array:
    E = xp.exp(Z - xp.max(Z, axis=-2, keepdims=True))
    return E / _over_outputs(E, xp=xp)


def _cross_entropy(Z: Array, Y: Array, *, xp: Namespace) -> Array:
    """``−Σ Y log A`` with ``A = softmax(Z)``: with ``S = Z − max Z`` it is ``log Σ e^S − Σ Y S``."""
    S = Z - xp.max(Z, axis=-2, keepdims=True)
    return xp.log(_over_outputs(xp.exp(S), xp=xp)) - _over_outputs(Y * S, xp=xp)


def _identity(Z: Array, *, xp: Namespace) -> Array:
    return Z


def _half_squares(Z: Array, Y: Array, *, xp: Namespace) -> Array:
    D = Z - Y
    return 0.5 * _over_outputs(D * D, xp=xp)


def _exp(Z: Array, *, xp: Namespace) -> Array:
    return xp.exp(xp.minimum(Z, EXP_LIMIT))


def _poisson(Z: Array, Y: Array, *, xp: Namespace) -> Array:
    """``e^Z − Y Z``, up to ``log Y!``; above `EXP_LIMIT` its tangent, so ``dZ2 = A2 − Y`` stays exact and finite."""
    A = _exp(Z, xp=xp)
    return _over_outputs(A * (1.0 + xp.maximum(Z - EXP_LIMIT, 0.0)) - Y * Z, xp=xp)


HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head(_sigmoid, _binary_cross_entropy, "sigmoid"),
        Head(_softmax, _cross_entropy, "softmax"),
        Head(_identity, _half_squares, "identity"),
        Head(_exp, _poisson, "exp"),
    )
}
"""The output heads, by name."""

TASK_HEADS: dict[str, str] = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "multilabel": "sigmoid",
    "regression": "identity",
    "count": "exp",
}
"""The head of each task."""
