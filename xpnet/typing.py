"""The three nouns of the package: an array, its namespace, and a layer's parameters."""

from typing import Any, NamedTuple, TypeAlias

# The Array API standard has no static types yet, so these are names for readers, not for the checker.
Array: TypeAlias = Any
"""An array of any namespace that array-api-compat knows."""

Namespace: TypeAlias = Any
"""``xp``: a module with the functions of the Python Array API standard, 2024.12 or later."""


class Layer(NamedTuple):
    """The parameters of one layer, or their gradient.

    Attributes
    ----------
    W : (..., n[l], n[l-1]) float array
        Weights. Leading axes, if there are any, are networks trained side by side.
    b : (..., n[l], 1) float array
        Biases, a column.
    """

    W: Array
    b: Array
