"""Data to try things on, made here, so that nothing is downloaded."""

import numpy as np
import numpy.typing as npt

from xpnet.arguments import whole

__all__ = ["flower"]


def flower(m: int = 400, *, random_state: int = 1) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return points on a flower of eight petals in two colours, the planar data of the course.

    Half of the points are of each class; each class winds four times out and back, so that no straight line tells
    the petals apart. Angles and radii are jittered by normal noise of deviation 0.2, as in the course.

    Parameters
    ----------
    m : int
        Number of points, 2 or more; an odd one gives the second class the extra point.
    random_state : int
        The noise's seed.

    Returns
    -------
    X : (2, m) float64 array
        Points as columns, within about ±5.
    Y : (m,) int64 array
        The class, 0 or 1.

    References
    ----------
    .. [1] A. Ng, Deep Learning Specialization, course 1, week 3, the programming exercise.

    Examples
    --------
    >>> import xpnet
    >>> X, Y = xpnet.datasets.flower()
    >>> X.shape, Y.shape
    ((2, 400), (400,))
    """
    m = whole("m", m, low=2)
    # The legacy generator's stream is frozen for good, and with seed 1 it gives the course's very points.
    generator = np.random.RandomState(whole("random_state", random_state, low=0))
    petals: list[npt.NDArray[np.float64]] = []
    for label, size in enumerate((m // 2, m - m // 2)):
        angle = np.linspace(3.12 * label, 3.12 * (label + 1), size) + 0.2 * generator.randn(size)
        radius = 4.0 * np.sin(4.0 * angle) + 0.2 * generator.randn(size)
        petals.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)]))
    Y = np.repeat(np.asarray([0, 1], dtype=np.int64), (m // 2, m - m // 2))
    return np.concatenate(petals, axis=1), Y
