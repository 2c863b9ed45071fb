"""Where training starts: random weights, zero biases, drawn on the host in float64 by one seeded generator.

Drawing on the host gives one seed one network on every device. All-zero weights would never break the symmetry between
hidden units; see course 1, week 3.

References
----------
.. [1] K. He et al., Delving deep into rectifiers, 2015, eq. (10).
.. [2] X. Glorot, Y. Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010, eq. (12).
.. [3] A. Ng, Deep Learning Specialization, course 1, week 3: ``randn × 0.01``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from xpnet.arguments import whole
from xpnet.errors import ArgumentError
from xpnet.typing import Layer

__all__ = ["he", "small_normal", "xavier"]

_Deviation = Callable[[int, int], float]


def _he(n_in: int, n_out: int) -> float:
    return math.sqrt(2.0 / n_in)


def _xavier(n_in: int, n_out: int) -> float:
    return math.sqrt(2.0 / (n_in + n_out))


def _small(n_in: int, n_out: int) -> float:
    return 0.01


def _draw(
    sizes: Sequence[int], deviations: Sequence[_Deviation], random_state: "int | np.random.Generator"
) -> list[Layer]:
    if len(sizes) < 2:
        raise ArgumentError(f"sizes must hold n_x and n_y, two numbers or more; it is {sizes!r}.")
    checked = [whole("each of sizes", size, low=1) for size in sizes]
    generator = np.random.default_rng(random_state)
    return [
        Layer(deviation(n_in, n_out) * generator.standard_normal((n_out, n_in)), np.zeros((n_out, 1)))
        for deviation, (n_in, n_out) in zip(deviations, pairwise(checked), strict=True)
    ]


def he(sizes: Sequence[int], *, random_state: "int | np.random.Generator" = 0) -> list[Layer]:
    """Draw hidden weights of variance ``2 / n[l-1]`` [1]_, for relu and its kin; the output's as `xavier`.

    Parameters
    ----------
    sizes : sequence of int
        ``(n_x, n_h, …, n_y)``, units of each layer.
    random_state : int or numpy.random.Generator
        Where the numbers come from.

    Returns
    -------
    list of Layer
        ``W (n[l], n[l-1])`` and ``b (n[l], 1)``, float64 NumPy arrays.

    Examples
    --------
    >>> [(W.shape, b.shape) for W, b in he((2, 4, 1), random_state=0)]
    [((4, 2), (4, 1)), ((1, 4), (1, 1))]
    """
    return _draw(sizes, [_he] * (len(sizes) - 2) + [_xavier], random_state)


def xavier(sizes: Sequence[int], *, random_state: "int | np.random.Generator" = 0) -> list[Layer]:
    """Draw weights of variance ``2 / (n[l-1] + n[l])`` [2]_, for tanh and sigmoid.

    Parameters
    ----------
    sizes, random_state
        As `he` takes them.

    Returns
    -------
    list of Layer
        As `he` returns them.

    Examples
    --------
    >>> float(xavier((300, 500), random_state=0)[0].W.std().round(3))      # √(2/800) is 0.05
    0.05
    """
    return _draw(sizes, [_xavier] * (len(sizes) - 1), random_state)


def small_normal(sizes: Sequence[int], *, random_state: "int | np.random.Generator" = 0) -> list[Layer]:
    """Draw weights of deviation 0.01, as the course does [3]_.

    Parameters
    ----------
    sizes, random_state
        As `he` takes them.

    Returns
    -------
    list of Layer
        As `he` returns them.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> start = xpnet.initializers.small_normal((2, 4, 1), random_state=0)
    >>> net = xpnet.fit(X, Y, hidden=4, activation="tanh", initial=start, epochs=1)
    """
    return _draw(sizes, [_small] * (len(sizes) - 1), random_state)


GAINS: dict[str, Callable[..., list[Layer]]] = {"he": he, "xavier": xavier}
"""The initializers that an `Activation` can ask for by its ``gain``."""
