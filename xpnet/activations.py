"""The hidden layers' activations: pairs of ``A = g(Z)`` and the lecture's ``g′(Z)``.

``dg(Z, A)`` is given ``A = g(Z)`` because most derivatives are cheaper from it: tanh′ is ``1 − A²`` and costs no
second tanh. Every function is elementwise, takes the namespace as ``xp``, and returns a new array of Z's dtype.

References
----------
.. [1] A. Ng, Deep Learning Specialization, course 1, week 3: tanh, sigmoid, relu, leaky relu and their slopes.
.. [2] D.-A. Clevert et al., Fast and accurate deep network learning by exponential linear units, 2016.
.. [3] D. Hendrycks, K. Gimpel, Gaussian error linear units, 2016, eq. (2): the tanh form, for the standard has no erf.
.. [4] S. Elfwing et al., Sigmoid-weighted linear units, 2018.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet.arguments import choice
from xpnet.errors import ActivationError, ArgumentError
from xpnet.typing import Array, Namespace

__all__ = ["ACTIVATIONS", "Activation", "check"]

LEAK = 0.01
"""Slope of leaky_relu below zero, as in the course."""


@dataclass(frozen=True)
class Activation:
    """A hidden layer's ``g`` and its slope ``dg``.

    Parameters
    ----------
    g : callable
        ``g(Z)`` or ``g(Z, xp=...)``: the activation, elementwise; Z is a float array of any shape.
    dg : callable
        ``dg(Z, A)`` or ``dg(Z, A, xp=...)``: ``g′(Z)``, given also ``A = g(Z)``.
    name : str, optional
        What to call it; the name of ``g`` by default.
    gain : {"he", "xavier"}
        The initial weights that suit it: `he` where half of the line is cut off, `xavier` elsewhere.

    Examples
    --------
    >>> import xpnet
    >>> cube = xpnet.Activation(lambda Z: Z**3, lambda Z, A: 3 * Z**2, name="cube")
    """

    g: Callable[..., Array]
    dg: Callable[..., Array]
    name: str = ""
    gain: str = "xavier"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.g, "__name__", "custom"))
        object.__setattr__(self, "g", _taking_xp(self.g))
        object.__setattr__(self, "dg", _taking_xp(self.dg))


def _taking_xp(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return `function` so that it can be called with ``xp=``, which one of a user's own need not know."""
    if not callable(function):
        raise ArgumentError(f"An Activation takes two functions, g(Z) and dg(Z, A); {function!r} is not callable.")
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # NumPy's ufuncs had no signature before 2.4, and know no xp
        parameters = {}  # type: ignore[assignment]  # an empty mapping serves as one
    kinds = {parameter.kind for parameter in parameters.values()}
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds and not isinstance(function, np.vectorize)  # (*args, **kwargs)
    if "xp" in parameters or takes_any:
        return function

    return functools.partial(_without_xp, function)  # a function made here could not be pickled


def _without_xp(function: Callable[..., Array], *arrays: Array, xp: Namespace) -> Array:
    return function(*arrays)


def sigmoid(Z: Array, *, xp: Namespace) -> Array:
    """Return ``1 / (1 + e^−Z)``, exact in both tails: only ``e^−|Z|`` is ever formed, which cannot overflow."""
    E = xp.exp(-xp.abs(Z))
    return xp.where(Z >= 0.0, 1.0, E) / (1.0 + E)


def softplus(Z: Array, *, xp: Namespace) -> Array:
    """Return ``log(1 + e^Z)`` as ``max(Z, 0) + log1p(e^−|Z|)``, which cannot overflow."""
    return xp.maximum(Z, 0.0) + xp.log1p(xp.exp(-xp.abs(Z)))


def _dsigmoid(Z: Array, A: Array, *, xp: Namespace) -> Array:
    return A * (1.0 - A)


def _tanh(Z: Array, *, xp: Namespace) -> Array:
    return xp.tanh(Z)


def _dtanh(Z: Array, A: Array, *, xp: Namespace) -> Array:
    return 1.0 - A * A


def _relu(Z: Array, *, xp: Namespace) -> Array:
    return xp.maximum(Z, 0.0)


def _drelu(Z: Array, A: Array, *, xp: Namespace) -> Array:
    return xp.astype(Z > 0.0, Z.dtype)


def _leaky_relu(Z: Array, *, xp: Namespace) -> Array:
    return xp.maximum(Z, LEAK * Z)


def _dleaky_relu(Z: Array, A: Array, *, xp: Namespace) -> Array:
    return xp.maximum(xp.astype(Z > 0.0, Z.dtype), LEAK)


def _elu(Z: Array, *, xp: Namespace) -> Array:
    return xp.where(Z > 0.0, Z, xp.expm1(xp.minimum(Z, 0.0)))


def _delu(Z: Array, A: Array, *, xp: Namespace) -> Array:
    return xp.minimum(A, 0.0) + 1.0


def _dsoftplus(Z: Array, A: Array, *, xp: Namespace) -> Array:
    return sigmoid(Z, xp=xp)


def _silu(Z: Array, *, xp: Namespace) -> Array:
    return Z * sigmoid(Z, xp=xp)


def _dsilu(Z: Array, A: Array, *, xp: Namespace) -> Array:
    S = sigmoid(Z, xp=xp)
    return S + A * (1.0 - S)


_GELU_SLOPE = math.sqrt(2.0 / math.pi)
_GELU_CUBE = 0.044715


def _gelu_tanh(Z: Array, *, xp: Namespace) -> Array:
    return xp.tanh(_GELU_SLOPE * (Z + _GELU_CUBE * Z * Z * Z))


def _gelu(Z: Array, *, xp: Namespace) -> Array:
    return 0.5 * Z * (1.0 + _gelu_tanh(Z, xp=xp))


def _dgelu(Z: Array, A: Array, *, xp: Namespace) -> Array:
    T = _gelu_tanh(Z, xp=xp)
    return 0.5 * (1.0 + T) + 0.5 * _GELU_SLOPE * Z * (1.0 - T * T) * (1.0 + 3.0 * _GELU_CUBE * Z * Z)


def _identity(Z: Array, *, xp: Namespace) -> Array:
    return Z


def _didentity(Z: Array, A: Array, *, xp: Namespace) -> Array:
    return xp.ones_like(Z)


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation(_tanh, _dtanh, "tanh"),
        Activation(sigmoid, _dsigmoid, "sigmoid"),
        Activation(_relu, _drelu, "relu", "he"),
        Activation(_leaky_relu, _dleaky_relu, "leaky_relu", "he"),
        Activation(_elu, _delu, "elu", "he"),
        Activation(softplus, _dsoftplus, "softplus", "he"),
        Activation(_silu, _dsilu, "silu", "he"),
        Activation(_gelu, _dgelu, "gelu", "he"),
        Activation(_identity, _didentity, "identity"),
    )
}
"""The activations that come with xpnet, by name."""


def resolve(activation: str | Activation) -> Activation:
    """Return the activation of that name; a user's own is gradient-checked first.

    Parameters
    ----------
    activation : str or Activation
        A name of `ACTIVATIONS`, or a pair.

    Raises
    ------
    ArgumentError
        There is no activation of that name, or it is neither a name nor an `Activation`.
    ActivationError
        A user's ``dg`` is not the slope of its ``g``.
    """
    if not isinstance(activation, Activation):
        what_else = "an xpnet.Activation(g, dg)"
        return ACTIVATIONS[choice("activation", activation, tuple(ACTIVATIONS), or_else=what_else)]
    if activation.name not in ACTIVATIONS or ACTIVATIONS[activation.name] != activation:
        check(activation)
    return activation


def _called(activation: Activation, what: str, function: Callable[..., Array], *arrays: Array) -> Array:
    try:
        return function(*arrays, xp=np)
    except TypeError as error:
        raise ActivationError(
            f"Activation {activation.name!r}: {what} must take arrays and return one; it raised TypeError: {error}. "
            "Write g(Z) and dg(Z, A)."
        ) from error


_CHECKED_AT = np.asarray([[-6.1, -2.3, -0.97, -0.31, 0.013, 0.41, 1.09, 2.7, 6.3]])
_STEP = 1e-6
# Central differences in float64 err by about ε|g|/h + h²|g‴|, 1e-9 here; a wrong formula errs by far more than this.
_TOLERANCE = 1e-5


def check(activation: Activation) -> None:
    """Compare ``dg`` with central differences of ``g``, in float64 on NumPy, at nine points.

    Parameters
    ----------
    activation : Activation
        The pair to check. The points avoid 0, where relu and its kin have a corner.

    Raises
    ------
    ActivationError
        They differ by more than 1e-5, relative to ``1 + |g′|``, are not finite, change the shape, or write into Z.

    Examples
    --------
    >>> check(Activation(lambda Z: Z**3, lambda Z, A: 3 * Z**2, name="cube"))
    >>> check(Activation(lambda Z: Z**3, lambda Z, A: 3 * Z, name="cube"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    xpnet.errors.ActivationError: Activation 'cube': dg must be the slope of g. ...
    """
    xp: Any = np
    Z = _CHECKED_AT.copy()
    with np.errstate(all="ignore"):
        A = _called(activation, "g(Z)", activation.g, Z)
        slope = _called(activation, "dg(Z, A)", activation.dg, Z, A)
        difference = (activation.g(Z + _STEP, xp=xp) - activation.g(Z - _STEP, xp=xp)) / (2.0 * _STEP)
    for name, array in (("g(Z)", A), ("dg(Z, A)", slope)):
        if np.shape(array) != Z.shape:
            raise ActivationError(
                f"Activation {activation.name!r}: {name} must keep Z's shape, {Z.shape}; it returned "
                f"{np.shape(array)}. Write it elementwise."
            )
    if not np.array_equal(Z, _CHECKED_AT):
        raise ActivationError(
            f"Activation {activation.name!r}: g and dg must leave Z as it is; one of them wrote into it. Return a new "
            f"array."
        )
    error = np.abs(slope - difference) / (1.0 + np.abs(difference))
    worst = np.unravel_index(np.argmax(np.where(np.isfinite(error), error, np.inf)), Z.shape)
    if not error[worst] <= _TOLERANCE:
        raise ActivationError(
            f"Activation {activation.name!r}: dg must be the slope of g. At Z = {Z[worst]:g} g rises by "
            f"{difference[worst]:.6g} per unit but dg(Z, A) is {slope[worst]:.6g}. Correct dg."
        )
