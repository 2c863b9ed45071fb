"""The flower: the course's points, the same in every run, and not to be told apart by a straight line."""

import math

import numpy as np
import pytest

from xpnet.datasets import flower
from xpnet.errors import ArgumentError

LINE = 0.6  # a straight line gets 47 % of the course's flower right; a guess, 50 %
PETAL = 0.7  # of a petal's points are its class's; the angles' noise, 0.2 of a petal's 0.8 rad, moves the others
REACH = 4.0 + 5 * 0.2  # the radius and five deviations of its noise


def course_flower():
    """Return X (2, 400) and Y (400,) as the exercise's ``load_planar_dataset`` makes them, line by line."""
    generator = np.random.RandomState(1)
    m, D, a = 400, 2, 4
    N = m // 2
    X, Y = np.zeros((m, D)), np.zeros((m, 1), dtype="uint8")
    for j in range(2):
        ix = range(N * j, N * (j + 1))
        t = np.linspace(j * 3.12, (j + 1) * 3.12, N) + generator.randn(N) * 0.2
        r = a * np.sin(4 * t) + generator.randn(N) * 0.2
        X[ix] = np.c_[r * np.sin(t), r * np.cos(t)]
        Y[ix] = j
    return X.T, Y[:, 0]


def test_the_flower_has_the_courses_points():
    np.testing.assert_array_equal(flower()[0], course_flower()[0])


def test_the_flower_has_the_courses_classes():
    np.testing.assert_array_equal(flower()[1], course_flower()[1])


@pytest.mark.parametrize("m", [2, 3, 400, 1001])
def test_examples_are_columns(m):
    X, Y = flower(m)
    assert (X.shape, Y.shape) == ((2, m), (m,))


def test_points_are_float64_and_classes_int64():
    X, Y = flower()
    assert (X.dtype, Y.dtype) == (np.dtype("float64"), np.dtype("int64"))


@pytest.mark.parametrize(("m", "counts"), [(2, [1, 1]), (400, [200, 200]), (401, [200, 201])])
def test_half_of_the_points_are_of_each_class_and_an_odd_one_of_the_second(m, counts):
    assert np.bincount(flower(m)[1]).tolist() == counts


def test_one_seed_gives_the_same_bits():
    assert flower(random_state=3)[0].tobytes() == flower(random_state=3)[0].tobytes()


def test_another_seed_gives_other_points():
    assert not np.any(flower(random_state=3)[0] == flower(random_state=4)[0])


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002  # the legacy state is what must not change
    flower()
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_points_lie_within_the_petals_reach():
    X, _ = flower(4000)
    assert np.hypot(*X).max() < REACH


def test_each_class_has_four_of_the_eight_petals():
    X, Y = flower(4000)
    octant = np.floor(np.arctan2(X[0], X[1]) / (math.pi / 4)).astype(int) % 8
    share = np.asarray([Y[octant == petal].mean() for petal in range(8)])
    assert ((share < 1 - PETAL).sum(), (share > PETAL).sum()) == (4, 4)


def test_no_straight_line_tells_the_classes_apart():
    X, Y = flower()
    design = np.column_stack([X.T, np.ones(Y.size)])
    coefficients, *_ = np.linalg.lstsq(design, 2.0 * Y - 1.0, rcond=None)
    assert np.mean((design @ coefficients > 0.0) == Y) < LINE


@pytest.mark.parametrize("m", [1, 0, -3, 2.5, "400", True, None])
def test_a_bad_m_is_refused(m):
    with pytest.raises(ArgumentError, match=f"m must be .*2 or more; it is {m!r}"):
        flower(m)


@pytest.mark.parametrize("random_state", [-1, 1.5, "1", None])
def test_a_bad_random_state_is_refused(random_state):
    with pytest.raises(ArgumentError, match=f"random_state must be .*0 or more; it is {random_state!r}"):
        flower(random_state=random_state)
