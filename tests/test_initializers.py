"""Where training starts: the shapes, the spread of the weights, zero biases, and one seed for one network."""

import math
from itertools import pairwise

import numpy as np
import pytest

from xpnet.activations import ACTIVATIONS
from xpnet.errors import ArgumentError
from xpnet.initializers import GAINS, he, small_normal, xavier

SIZES = (30, 300, 200, 10)
WIDE = (300, 400, 200)  # so many weights that their spread can be measured
SPREAD = 5.0 / math.sqrt(2 * 400 * 200)  # 5 standard errors of a relative deviation over the fewest weights, 1.2 %

every_initializer = pytest.mark.parametrize("initialize", [he, xavier, small_normal])


@every_initializer
def test_each_layer_has_its_sizes(initialize):
    shapes = [(W.shape, b.shape) for W, b in initialize(SIZES)]
    assert shapes == [((300, 30), (300, 1)), ((200, 300), (200, 1)), ((10, 200), (10, 1))]


@every_initializer
def test_the_numbers_are_float64(initialize):
    assert {array.dtype for layer in initialize(SIZES) for array in layer} == {np.dtype("float64")}


@every_initializer
def test_biases_start_at_zero(initialize):
    assert not any(b.any() for _, b in initialize(SIZES))


@every_initializer
def test_no_weight_is_another_so_that_the_symmetry_is_broken(initialize):
    weights = np.concatenate([W.ravel() for W, _ in initialize(SIZES)])
    assert np.unique(weights).size == weights.size


@pytest.mark.parametrize(
    ("initialize", "deviations"),
    [
        (he, [math.sqrt(2 / 300), math.sqrt(2 / (400 + 200))]),  # the output's weights are Glorot's
        (xavier, [math.sqrt(2 / (300 + 400)), math.sqrt(2 / (400 + 200))]),
        (small_normal, [0.01, 0.01]),
    ],
)
def test_the_weights_have_the_papers_deviation(initialize, deviations):
    measured = [np.std(W) for W, _ in initialize(WIDE, random_state=4)]
    np.testing.assert_allclose(measured, deviations, rtol=SPREAD)


@every_initializer
def test_the_weights_are_centered(initialize):
    means = [np.mean(W) / np.std(W) for W, _ in initialize(WIDE, random_state=4)]
    np.testing.assert_allclose(means, 0.0, atol=2 * SPREAD)


@every_initializer
def test_one_seed_gives_the_same_bits(initialize):
    first, second = initialize(SIZES, random_state=7), initialize(SIZES, random_state=7)
    assert [W.tobytes() for W, _ in first] == [W.tobytes() for W, _ in second]


def test_the_weights_are_the_seeds_normal_numbers_in_the_order_drawn():
    """So that a seed's network outlives the next edit of the initializers."""
    generator = np.random.default_rng(7)
    drawn = [0.01 * generator.standard_normal((n_out, n_in)) for n_in, n_out in pairwise(SIZES)]
    np.testing.assert_equal([W for W, _ in small_normal(SIZES, random_state=7)], drawn)


@every_initializer
def test_another_seed_gives_another_network(initialize):
    (first, *_), (second, *_) = initialize(SIZES, random_state=7), initialize(SIZES, random_state=8)
    assert not np.any(first.W == second.W)


@every_initializer
def test_a_generator_is_drawn_from(initialize):
    (W, _), *_ = initialize(SIZES, random_state=np.random.default_rng(7))
    np.testing.assert_array_equal(W, initialize(SIZES, random_state=7)[0].W)


@every_initializer
def test_numpys_integers_are_sizes(initialize):
    assert initialize(np.asarray([3, 2]))[0].W.shape == (2, 3)


@every_initializer
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 0, 1), r"each of sizes must be 1 or more; it is 0"),
        ((3, -4, 1), r"each of sizes must be 1 or more; it is -4"),
        ((3, 2.5, 1), r"each of sizes must be a whole number, 1 or more; it is 2\.5"),
        ((3, "4", 1), r"each of sizes must be a whole number, 1 or more; it is '4'"),
        ((3, True), r"each of sizes must be a whole number, 1 or more; it is True"),
        ((3,), r"sizes must hold n_x and n_y, two numbers or more; it is \(3,\)"),
        ((), r"sizes must hold n_x and n_y, two numbers or more; it is \(\)"),
    ],
    ids=["zero", "negative", "fraction", "word", "bool", "one size", "no size"],
)
def test_bad_sizes_are_refused(initialize, sizes, message):
    with pytest.raises(ArgumentError, match=message):
        initialize(sizes)


def test_every_activations_gain_is_an_initializer():
    assert {activation.gain for activation in ACTIVATIONS.values()} == set(GAINS)
