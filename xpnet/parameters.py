"""A network's parameters as one flat vector: W1, b1, W2, b2 …, each row after row.

Optimizers work on the vector; the equations work on the layers, which are views of it wherever the namespace has views.
"""

from collections.abc import Sequence
from itertools import pairwise

from xpnet.typing import Array, Layer, Namespace


def sizes_of(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Return ``(n[0], …, n[L])``."""
    return (int(layers[0].W.shape[-1]), *(int(W.shape[-2]) for W, _ in layers))


def count(sizes: Sequence[int]) -> int:
    """Return the number of parameters of a network of these sizes."""
    return sum(n_out * (n_in + 1) for n_in, n_out in pairwise(sizes))


def flatten(layers: Sequence[Layer], *, order: str = "C", xp: Namespace) -> Array:
    """Return the parameters, or a gradient, as a new vector ``(count,)``; with order ``"F"``, W column after column."""
    turned = ((W if order == "C" else xp.matrix_transpose(W), b) for W, b in layers)
    return xp.concat([xp.reshape(array, (-1,)) for pair in turned for array in pair])


def unflatten(vector: Array, sizes: Sequence[int], *, order: str = "C", xp: Namespace) -> list[Layer]:
    """Return the layers that `vector`, ``(count,)``, holds in that order."""
    layers, start = [], 0
    for n_in, n_out in pairwise(sizes):
        middle, stop = start + n_out * n_in, start + n_out * (n_in + 1)
        if order == "C":
            W = xp.reshape(vector[start:middle], (n_out, n_in))
        else:
            W = xp.matrix_transpose(xp.reshape(vector[start:middle], (n_in, n_out)))
        b = xp.reshape(vector[middle:stop], (n_out, 1))
        layers.append(Layer(W, b))
        start = stop
    return layers
