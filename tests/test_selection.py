"""A selection answers as an array of its numbers would."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xpnet import selection
from xpnet.selection import Picked, Selection

quietly = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def masks(draw):
    """Draw some of up to 300 examples, few or many."""
    m, share = draw(st.integers(1, 300)), draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 99))).random(m) < share


@pytest.fixture(autouse=True, params=[1, 7, 4_096])
def block(request, monkeypatch):
    monkeypatch.setattr(selection, "BLOCK", request.param)


@given(masks(), st.integers(-5, 320), st.integers(-5, 320))
@quietly
def test_slices_are_those_of_the_numbers(block, mask, start, stop):
    numbers = np.flatnonzero(mask)
    made = Selection(mask)
    assert (made.size, len(made)) == (numbers.size, numbers.size)
    assert made[start:stop].tolist() == numbers[start:stop].tolist()
    assert made[start:stop].dtype == np.int64
    assert np.asarray(made).tolist() == numbers.tolist()


@given(masks(), st.lists(st.integers(0, 299), max_size=20))
@quietly
def test_positions_are_looked_up(block, mask, positions):
    numbers = np.flatnonzero(mask)
    positions = np.asarray([i for i in positions if i < numbers.size], dtype=np.int64)
    assert Selection(mask)[positions].tolist() == numbers[positions].tolist()
    assert [Selection(mask)[int(i)] for i in positions] == numbers[positions].tolist()


@pytest.mark.parametrize("shape", [(), (3,)])
def test_labels_are_picked_out_when_asked_for(shape):
    mask = np.random.default_rng(0).random(100) < 0.3
    labels = np.random.default_rng(1).integers(0, 9, (*shape, 100))
    picked, known = Picked(labels, Selection(mask)), labels[..., mask]
    assert (picked.shape, picked.ndim, picked.size, picked.dtype) == (known.shape, known.ndim, known.size, known.dtype)
    assert np.array_equal(picked[..., 3:11], known[..., 3:11])
    assert np.array_equal(picked[..., np.array([0, 1, 7])], known[..., [0, 1, 7]])


@pytest.mark.parametrize("held", [0, 1, 40, 100])
def test_a_split_holds_out_the_first_of_numpys_permutation(held):
    rest, out = selection.split(100, held, [5, 2])
    permuted = np.random.default_rng([5, 2]).permutation(100)
    assert np.asarray(out).tolist() == sorted(permuted[:held])
    assert np.asarray(rest).tolist() == sorted(permuted[held:])
