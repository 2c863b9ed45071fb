"""Some of the examples, kept in a byte for each of all: their numbers would take eight."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 4_096
"""Examples of which the chosen ones are counted together."""


class Selection:
    """Some of m examples, in rising order; what is asked of it are int64 arrays of their numbers.

    Parameters
    ----------
    mask : (m,) bool array
        Which they are.

    Attributes
    ----------
    mask : (m,) bool array
        Likewise.
    size : int
        How many they are.
    """

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        self.mask = mask
        counts = np.add.reduceat(mask, np.arange(0, len(mask), BLOCK), dtype=np.int64)
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.size = int(self._before[-1])

    def __len__(self) -> int:
        """Return how many they are."""
        return self.size

    def __getitem__(self, key: Any) -> Any:
        """Return the numbers of those in a slice without steps or in an array of positions, or of one."""
        if isinstance(key, slice):
            start, stop, _ = key.indices(self.size)
            return self._between(start, max(start, stop))
        if not isinstance(key, np.ndarray):
            return self._between(key, key + 1)[0]
        runs = np.split(key, np.flatnonzero(np.diff(key) != 1) + 1)
        return np.concatenate([self[run[0] : run[-1] + 1] for run in runs if run.size] or [np.zeros(0, np.int64)])

    def _between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        first, last = np.searchsorted(self._before, (start, stop), side="right") - 1
        found = np.flatnonzero(self.mask[first * BLOCK : (last + 1) * BLOCK]) + first * BLOCK
        some: npt.NDArray[np.int64] = found[start - self._before[first] : stop - self._before[first]]
        return some

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all of them, for NumPy."""
        numbers = np.flatnonzero(self.mask)
        return numbers if dtype is None else numbers.astype(dtype, copy=False)


class Picked:
    """The labels of a selection, ``(k,)`` or ``(n_y, k)``: slices of them are arrays, the whole need not be.

    Parameters
    ----------
    labels : (m,) or (n_y, m) array
        Those of all examples.
    selection : Selection
        Whose labels these are.
    """

    def __init__(self, labels: npt.NDArray[Any], selection: Selection) -> None:
        self._labels, self._selection = labels, selection
        self.dtype, self.ndim = labels.dtype, labels.ndim
        self.shape = (*labels.shape[:-1], selection.size)
        self.size = math.prod(self.shape)

    def __getitem__(self, key: tuple[Any, Any]) -> npt.NDArray[Any]:
        """Return those of some examples, ``[..., start:stop]``."""
        some: npt.NDArray[Any] = self._labels[..., self._selection[key[1]]]
        return some


def split(m: int, held: int, seed: list[int]) -> tuple[Selection, Selection]:
    """Return the rest of m examples, and `held` of them taken at random by a seed of NumPy's."""
    numbers = np.arange(m, dtype=np.int32 if m < 2**31 else np.int64)  # in either they are shuffled alike
    np.random.default_rng(seed).shuffle(numbers)
    is_held = np.zeros(m, dtype=bool)
    is_held[numbers[:held]] = True
    return Selection(~is_held), Selection(is_held)
