"""The flat vector: what lies where in it, and that layers come back out as they went in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet.device import dtype_name, place_of, to_host
from xpnet.parameters import count, flatten, sizes_of, unflatten
from xpnet.typing import Layer

# 2 features, 3 hidden units, 1 output: every number is its own place in the vector.
LAYERS = [
    Layer(np.asarray([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), np.asarray([[6.0], [7.0], [8.0]])),
    Layer(np.asarray([[9.0, 10.0, 11.0]]), np.asarray([[12.0]])),
]
SIZES = (2, 3, 1)
VECTOR = np.arange(13.0)


def on(backend, dtype):
    return [Layer(backend.asarray(W, dtype), backend.asarray(b, dtype)) for W, b in LAYERS]


def numbers(layers):
    return [to_host(array).tolist() for layer in layers for array in layer]


def test_sizes_are_read_off_the_layers():
    assert sizes_of(LAYERS) == SIZES


def test_sizes_of_networks_side_by_side_are_those_of_one():
    assert sizes_of([Layer(np.zeros((7, *W.shape)), np.zeros((7, *b.shape))) for W, b in LAYERS]) == SIZES


@pytest.mark.parametrize(("sizes", "parameters"), [((2, 3, 1), 13), ((784, 10), 7850), ((1, 1), 2), ((5, 4, 4, 3), 59)])
def test_count_is_every_weight_and_bias(sizes, parameters):
    assert count(sizes) == parameters


def test_the_vector_is_weights_row_after_row_then_biases_layer_after_layer(backend, dtype):
    assert to_host(flatten(on(backend, dtype), xp=backend.xp)).tolist() == VECTOR.tolist()


def test_layers_come_out_of_the_vector(backend, dtype):
    layers = unflatten(backend.asarray(VECTOR, dtype), SIZES, xp=backend.xp)
    assert numbers(layers) == numbers(LAYERS)


def test_vector_and_layers_keep_the_dtype(backend, dtype):
    vector = flatten(on(backend, dtype), xp=backend.xp)
    layers = unflatten(vector, SIZES, xp=backend.xp)
    assert {dtype_name(array) for array in (vector, *layers[0], *layers[1])} == {dtype}


def test_vector_and_layers_live_where_the_layers_did(backend):
    vector = flatten(on(backend, "float32"), xp=backend.xp)
    layers = unflatten(vector, SIZES, xp=backend.xp)
    assert [place_of(array) for array in (vector, *layers[0], *layers[1])] == [backend.place] * 5


@settings(deadline=None, database=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_any_network_goes_through_the_vector_unchanged(sizes):
    vector = np.random.default_rng(0).standard_normal(count(sizes))
    np.testing.assert_array_equal(flatten(unflatten(vector, sizes, xp=np), xp=np), vector)


@settings(deadline=None, database=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_the_vectors_layers_have_its_sizes(sizes):
    assert sizes_of(unflatten(np.zeros(count(sizes)), sizes, xp=np)) == tuple(sizes)


def test_the_vector_is_a_copy_of_the_layers():
    vector = flatten(LAYERS, xp=np)
    assert not any(np.shares_memory(vector, array) for layer in LAYERS for array in layer)


def test_numpys_layers_are_views_of_the_vector():
    vector = VECTOR.copy()
    layers = unflatten(vector, SIZES, xp=np)
    assert all(np.shares_memory(vector, array) for layer in layers for array in layer)
