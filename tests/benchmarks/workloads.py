"""What is trained: five shapes of network and data, synthetic, seeded, the same in every process.

X is standard normal, kept as C-ordered rows ``(m, n_x)``, one an example; labels come from a random teacher. Nothing is
imported from xpnet, so that no contender carries it along.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

RATES = {"gd": 0.1, "adam": 0.001}
"""The learning rate of each optimizer."""

TEACHER = 16
"""Hidden units of the network that the labels come from."""

READ = 2**12
"""Examples labelled at a time, so that making the data takes no more memory than the data."""


@dataclass(frozen=True)
class Workload:
    """A network with one tanh layer, and the data to train it on.

    Attributes
    ----------
    name : str
    n_x, n_h, n_y : int
        Units: features, hidden, outputs. One output is a sigmoid, more are a softmax.
    m : int
        Examples; a multiple of `batch`.
    batch : int
        Examples a step; m is full batch.
    dtype : str
        Of data, parameters and arithmetic.
    epochs : int
        Passes over the data in one measured run: half a second to a second for xpnet on two cores.
    """

    name: str
    n_x: int
    n_h: int
    n_y: int
    m: int
    batch: int
    dtype: str
    epochs: int

    @property
    def full(self) -> bool:
        """Whether a step sees all examples."""
        return self.batch == self.m

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return -(-self.m // self.batch)

    @property
    def title(self) -> str:
        """What tables call it."""
        batch = f"m = batch = {self.m:,}" if self.full else f"m = {self.m:,}, batch {self.batch:,}"
        return f"{self.name}: {self.n_x}-{self.n_h}-{self.n_y}, {batch}, {self.dtype}"

    def small(self) -> "Workload":
        """Return the same shape of work in a size for tests of the suite itself."""
        batch = min(self.batch, 64)
        return replace(
            self,
            n_x=min(self.n_x, 16),
            n_h=min(self.n_h, 8),
            m=batch if self.full else 4 * batch,
            batch=batch,
            epochs=min(self.epochs, 5),
        )


_WORKLOADS = (
    Workload("planar", 2, 4, 1, 400, 400, "float64", 6_000),
    Workload("digits", 784, 128, 10, 12_800, 128, "float32", 12),
    Workload("tabular", 28, 256, 1, 102_400, 4_096, "float32", 10),
    Workload("wide", 784, 1024, 10, 12_288, 1_024, "float32", 3),
    Workload("full", 100, 64, 1, 400_000, 400_000, "float32", 6),
)
WORKLOADS = {workload.name: workload for workload in _WORKLOADS}

ROW = Workload("one row", 30, 100, 1, 512, 512, "float32", 1)
TABLE = Workload("a million rows", 28, 256, 1, 1_000_000, 1_000_000, "float32", 1)
"""What `predict` is measured with: the time of one row, and of many."""


@lru_cache(maxsize=1)
def data(workload: Workload) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return the rows ``(m, n_x)`` and the labels ``(m,)``, which are 0 and 1, or 0 to n_y − 1."""
    it = workload
    rng = np.random.default_rng([it.n_x, it.n_h, it.n_y, it.m])
    rows = rng.standard_normal((it.m, it.n_x), dtype=it.dtype)
    inner = rng.standard_normal((it.n_x, TEACHER)).astype(it.dtype) / math.sqrt(it.n_x)
    outer = rng.standard_normal((TEACHER, it.n_y)).astype(it.dtype)
    labels = np.empty(it.m, np.int64)
    for start in range(0, it.m, READ):
        scores = np.tanh(rows[start : start + READ] @ inner) @ outer
        labels[start : start + READ] = scores.argmax(axis=1) if it.n_y > 1 else scores[:, 0] > 0
    return rows, labels


def targets(workload: Workload) -> Array:
    """Return the labels as the rows ``(m, n_y)`` that a sigmoid or a softmax is trained towards."""
    _, labels = data(workload)
    if workload.n_y == 1:
        return labels[:, None].astype(workload.dtype)
    return np.eye(workload.n_y, dtype=workload.dtype)[labels]


def start(workload: Workload) -> tuple[Array, Array, Array, Array]:
    """Return new ``W1, b1, W2, b2`` from which every contender starts, in the course's shapes."""
    it = workload
    rng = np.random.default_rng([0, it.n_x, it.n_h, it.n_y])
    W1 = rng.standard_normal((it.n_h, it.n_x)) * math.sqrt(2 / (it.n_x + it.n_h))
    W2 = rng.standard_normal((it.n_y, it.n_h)) * math.sqrt(2 / (it.n_h + it.n_y))
    biases = np.zeros((it.n_h, 1), it.dtype), np.zeros((it.n_y, 1), it.dtype)
    return W1.astype(it.dtype), biases[0], W2.astype(it.dtype), biases[1]
