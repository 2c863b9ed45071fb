"""The ten equations, once, for any depth and any array namespace.

==================================  ================================================
forward, l = 1 … L                  backward, l = L … 1
==================================  ================================================
(1) (3)  Z[l] = W[l] A[l-1] + b[l]  (5)       dZ[L] = A[L] − Y
(2) (4)  A[l] = g[l](Z[l])          (6) (9)   dW[l] = dZ[l] A[l-1]ᵀ
..                                  (7) (10)  db[l] = Σ_columns dZ[l]
..                                  (8)       dZ[l-1] = W[l]ᵀ dZ[l] ∘ g′(Z[l-1])
==================================  ================================================

``A[0]`` is X, ``(n[0], m)``: examples are columns. Gradients and costs are *sums over the columns given*, so any
split of the columns, added up, is the whole's; whoever splits divides by m once. Only the last two axes are used, so
``(K, n[l], n[l-1])`` weights are K networks side by side. The lecture's literal lines, with ``1/m`` in place, are
`tests/oracle.py`.

References
----------
.. [1] A. Ng, Deep Learning Specialization, course 1, week 3 (one hidden layer) and week 4 (any depth).
"""

from collections.abc import Sequence

from xpnet.activations import Activation
from xpnet.heads import Head
from xpnet.typing import Array, Layer, Namespace


def forward(
    layers: Sequence[Layer], X: Array, *, activation: Activation, head: Head, xp: Namespace
) -> tuple[list[Array], list[Array]]:
    """Return every layer's Z and A: equations (1)–(4) [1]_.

    Parameters
    ----------
    layers : sequence of Layer
        ``W (..., n[l], n[l-1])`` and ``b (..., n[l], 1)``, float.
    X : (n[0], m) float array
        Examples as columns, of the parameters' dtype.

    Returns
    -------
    Z : list of L arrays
        ``Z[l] (..., n[l], m)``.
    A : list of L + 1 arrays
        ``A[0]`` is X, ``A[L]`` the output.
    """
    Z: list[Array] = []
    A = [X]
    for W, b in layers:
        Z_l = W @ A[-1]
        Z_l += b  # (1) (3)  (n[l], m)
        g = activation.g if len(Z) < len(layers) - 1 else head.g
        Z.append(Z_l)
        A.append(g(Z_l, xp=xp))  # (2) (4)  (n[l], m)
    return Z, A


def backward(
    layers: Sequence[Layer],
    Z: Sequence[Array],
    A: Sequence[Array],
    Y: Array,
    *,
    activation: Activation,
    sample_weight: Array | None = None,
    xp: Namespace,
) -> list[Layer]:
    """Return the gradient of the cost, summed over columns: equations (5)–(10) [1]_.

    Parameters
    ----------
    Z, A : sequences of arrays
        From `forward`.
    Y : (n_y, m) float array
        Targets; columns are examples.
    sample_weight : (m,) or (1, m) float array, optional
        Factors of the columns of ``dZ[L]``.

    Returns
    -------
    list of Layer
        ``dW (..., n[l], n[l-1])`` and ``db (..., n[l], 1)``, in nats.
    """
    dZ = A[-1] - Y  # (5)      (n_y, m)
    if sample_weight is not None:
        dZ *= sample_weight
    gradients = []
    for l in range(len(layers) - 1, -1, -1):
        dW = dZ @ xp.matrix_transpose(A[l])  # (6) (9)  (n[l], n[l-1])
        db = xp.sum(dZ, axis=-1, keepdims=True)  # (7) (10) (n[l], 1)
        gradients.append(Layer(dW, db))
        if l > 0:
            dZ = xp.matrix_transpose(layers[l].W) @ dZ
            dZ *= activation.dg(Z[l - 1], A[l], xp=xp)  # (8)      (n[l-1], m)
    return gradients[::-1]


def cost(Z: Array, Y: Array, *, head: Head, sample_weight: Array | None = None, xp: Namespace) -> Array:
    """Return the cost, summed over columns, from the output's Z: a ``(...)`` array, in nats.

    Parameters
    ----------
    Z, Y : (..., n_y, m) float arrays
        The last of `forward`'s Z, and the targets.
    sample_weight : (m,) or (1, m) float array, optional
        Factors of the columns' costs.
    """
    costs = head.cost(Z, Y, xp=xp)  # (1, m)
    if sample_weight is not None:
        costs *= sample_weight
    return xp.sum(costs, axis=(-2, -1))


def gradient(
    layers: Sequence[Layer],
    X: Array,
    Y: Array,
    *,
    activation: Activation,
    head: Head,
    sample_weight: Array | None = None,
    xp: Namespace,
) -> tuple[Array, list[Layer]]:
    """Return the cost and its gradient, both summed over the columns given: equations (1)–(10).

    The parameters are those of `forward` and `backward`; the results, those of `cost` and `backward`.
    """
    Z, A = forward(layers, X, activation=activation, head=head, xp=xp)
    total = cost(Z[-1], Y, head=head, sample_weight=sample_weight, xp=xp)
    return total, backward(layers, Z, A, Y, activation=activation, sample_weight=sample_weight, xp=xp)


def penalized(
    total: Array, gradients: Sequence[Layer], layers: Sequence[Layer], *, l2: float, xp: Namespace
) -> tuple[Array, list[Layer]]:
    """Add ``λ/2 Σ‖W‖²`` to a summed cost and ``λ W`` to its gradient; biases are free [2]_.

    Divided by m with the rest, this is the course's ``λ/(2m) Σ‖W‖²``.

    References
    ----------
    .. [2] A. Ng, Deep Learning Specialization, course 2, week 1.
    """
    for W, _ in layers:
        total = total + 0.5 * l2 * xp.sum(W * W, axis=(-2, -1))
    return total, [Layer(dW + l2 * W, db) for (dW, db), (W, _) in zip(gradients, layers, strict=True)]
