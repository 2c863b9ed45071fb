"""The specification as code: the lecture's ten lines, literally, in plain NumPy float64.

Nothing here is imported from xpnet and nothing is shared with it. The deeper networks of `gradients` are the same lines
with an index, from course 1, week 4.
"""

import math

import numpy as np

G = {
    "tanh": np.tanh,
    "sigmoid": lambda Z: 1 / (1 + np.exp(-Z)),
    "relu": lambda Z: np.where(Z > 0, Z, 0.0),
    "leaky_relu": lambda Z: np.where(Z > 0, Z, 0.01 * Z),
    "elu": lambda Z: np.where(Z > 0, Z, np.exp(np.minimum(Z, 0)) - 1),
    "softplus": lambda Z: np.log(1 + np.exp(Z)),
    "silu": lambda Z: Z / (1 + np.exp(-Z)),
    "gelu": lambda Z: 0.5 * Z * (1 + np.tanh(math.sqrt(2 / math.pi) * (Z + 0.044715 * Z**3))),
    "identity": lambda Z: Z,
}


def _dgelu(Z):
    c = math.sqrt(2 / math.pi)
    inner = c * (Z + 0.044715 * Z**3)
    return 0.5 * (1 + np.tanh(inner)) + 0.5 * Z / np.cosh(inner) ** 2 * c * (1 + 3 * 0.044715 * Z**2)


DG = {
    "tanh": lambda Z: 1 - np.tanh(Z) ** 2,
    "sigmoid": lambda Z: np.exp(-Z) / (1 + np.exp(-Z)) ** 2,
    "relu": lambda Z: np.where(Z > 0, 1.0, 0.0),
    "leaky_relu": lambda Z: np.where(Z > 0, 1.0, 0.01),
    "elu": lambda Z: np.where(Z > 0, 1.0, np.exp(np.minimum(Z, 0))),
    "softplus": lambda Z: 1 / (1 + np.exp(-Z)),
    "silu": lambda Z: (1 + np.exp(-Z) + Z * np.exp(-Z)) / (1 + np.exp(-Z)) ** 2,
    "gelu": _dgelu,
    "identity": np.ones_like,
}

HEAD = {
    "sigmoid": lambda Z: 1 / (1 + np.exp(-Z)),
    "softmax": lambda Z: np.exp(Z) / np.exp(Z).sum(axis=0, keepdims=True),
    "identity": lambda Z: Z,
    "exp": np.exp,
}

COST = {
    "sigmoid": lambda A, Y: -(Y * np.log(A) + (1 - Y) * np.log(1 - A)),
    "softmax": lambda A, Y: -Y * np.log(A),
    "identity": lambda A, Y: 0.5 * (A - Y) ** 2,
    "exp": lambda A, Y: A - Y * np.log(A),
}


def one_hidden_layer(W1, b1, W2, b2, X, Y, activation="tanh", head="sigmoid"):
    """The ten equations, as they stand in the lecture."""
    m = X.shape[1]
    Z1 = W1 @ X + b1  # (1)
    A1 = G[activation](Z1)  # (2)
    Z2 = W2 @ A1 + b2  # (3)
    A2 = HEAD[head](Z2)  # (4)
    dZ2 = A2 - Y  # (5)
    dW2 = (1 / m) * dZ2 @ A1.T  # (6)
    db2 = (1 / m) * np.sum(dZ2, axis=1, keepdims=True)  # (7)
    dZ1 = (W2.T @ dZ2) * DG[activation](Z1)  # (8)
    dW1 = (1 / m) * dZ1 @ X.T  # (9)
    db1 = (1 / m) * np.sum(dZ1, axis=1, keepdims=True)  # (10)
    cost = (1 / m) * np.sum(COST[head](A2, Y))
    return cost, dW1, db1, dW2, db2


def gradients(layers, X, Y, activation="tanh", head="sigmoid", sample_weight=None, l2=0.0):
    """Cost and [(dW, db), …] for any depth, with weights on the columns and the course's penalty."""
    m, L = X.shape[1], len(layers)
    weight = np.ones(m) if sample_weight is None else sample_weight
    A, Z = {0: X}, {}
    for l in range(1, L + 1):
        W, b = layers[l - 1]
        Z[l] = W @ A[l - 1] + b
        A[l] = HEAD[head](Z[l]) if l == L else G[activation](Z[l])
    cost = (1 / m) * np.sum(weight * COST[head](A[L], Y)) + l2 / (2 * m) * sum(np.sum(W**2) for W, _ in layers)
    dZ = (A[L] - Y) * weight
    grads = {}
    for l in range(L, 0, -1):
        W, _ = layers[l - 1]
        grads[l] = ((1 / m) * dZ @ A[l - 1].T + (l2 / m) * W, (1 / m) * np.sum(dZ, axis=1, keepdims=True))
        if l > 1:
            dZ = (W.T @ dZ) * DG[activation](Z[l - 1])
    return cost, [grads[l] for l in range(1, L + 1)]


def descend(W1, b1, W2, b2, X, Y, *, learning_rate, iterations, every, activation="tanh"):
    """Full-batch gradient descent from given weights; the cost every so many iterations, and the last weights."""
    costs = {}
    for i in range(iterations):
        cost, dW1, db1, dW2, db2 = one_hidden_layer(W1, b1, W2, b2, X, Y, activation)
        if i % every == 0:
            costs[i] = cost
        W1 = W1 - learning_rate * dW1
        b1 = b1 - learning_rate * db1
        W2 = W2 - learning_rate * dW2
        b2 = b2 - learning_rate * db2
    return costs, (W1, b1, W2, b2)
