"""Schedules: their formulas, how they compose, and that a plateau's is the same in a fit that is resumed."""

import math
import pickle
import re

import numpy as np
import pytest

import xpnet
from xpnet import schedules
from xpnet.errors import ArgumentError, CheckpointError
from xpnet.schedules import Waiting, cosine, exponential, plateau, step, warm_up

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 10  # times ε: a few roundings each

RATES = {
    "step": (step(0.4, every=3, factor=0.5), lambda e: 0.4 * 0.5 ** (e // 3)),
    "exponential": (exponential(0.4, factor=0.9), lambda e: 0.4 * 0.9**e),
    "cosine": (cosine(0.4, epochs=10), lambda e: 0.2 * (1 + math.cos(math.pi * min(e, 9) / 10))),
    "warm-up": (warm_up(0.4, epochs=3), lambda e: 0.4 * min(1, (e + 1) / 4)),
    "warm-up before cosine": (
        warm_up(cosine(0.4, epochs=10), epochs=3),
        lambda e: 0.1 * (e + 1) if e < 3 else 0.2 * (1 + math.cos(math.pi * min(e - 3, 9) / 10)),
    ),
    "a function of one's own in steps": (
        step(lambda epoch: 1 / (epoch + 1), every=5),
        lambda e: 0.1 ** (e // 5) / (e + 1),
    ),
}
every_rate = pytest.mark.parametrize(("rate", "formula"), RATES.values(), ids=RATES)


@every_rate
def test_a_schedule_is_its_formula(rate, formula):
    expected = [formula(epoch) for epoch in range(20)]
    assert [rate(epoch) for epoch in range(20)] == pytest.approx(expected, rel=ROUNDING * EPS)


@every_rate
def test_the_history_keeps_the_rates_that_a_schedule_gives(rate, formula):
    X, Y = xpnet.datasets.flower(40)
    net = xpnet.fit(X, Y, hidden=2, epochs=12, patience=None, learning_rate=rate, random_state=0)
    assert net.history["learning_rate"] == [rate(epoch) for epoch in range(12)]


@pytest.mark.parametrize("rate", [warm_up(cosine(0.25, epochs=7), epochs=2), plateau(step(0.5, every=3))], ids=repr)
def test_a_schedule_reads_as_the_call_that_made_it(rate):
    made = eval(repr(rate), vars(schedules))
    assert [made(epoch) for epoch in range(12)] == [rate(epoch) for epoch in range(12)]
    assert made == rate


def test_a_schedule_can_be_pickled():
    rate = plateau(warm_up(cosine(0.25, epochs=7), epochs=2))
    assert pickle.loads(pickle.dumps(rate)) == rate


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: step(0.1, every=0), "every must be 1 or more; it is 0"),
        (lambda: step(0.1, every=1, factor=0), "factor must be a finite number more than 0; it is 0"),
        (lambda: exponential(-1, factor=0.5), "learning_rate must be a finite number more than 0; it is -1"),
        (lambda: cosine(0.1, epochs=1.5), "epochs must be a whole number"),
        (lambda: warm_up("fast", epochs=3), "learning_rate must be a finite number more than 0; it is 'fast'"),
        (lambda: plateau(0.1, factor=1), "factor must be a finite number more than 0 and less than 1; it is 1"),
        (lambda: plateau(0.1, patience=0), "patience must be 1 or more; it is 0"),
        (lambda: warm_up(plateau(0.1), epochs=3), r"plateau\(0\.1, .*\) looks at the costs\. Put plateau outermost"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("name", ["scheduler", "lr_scheduler"])
def test_other_libraries_names_lead_here(name):
    with pytest.raises(ArgumentError, match=re.escape("pass learning_rate=xpnet.schedules.cosine(...)")):
        xpnet.fit([[0.0, 1.0]], [0, 1], **{name: None})


# Plateau --------------------------------------------------------------------------------------------------------------


def rates_after(rate, costs):
    """Return α of each epoch, as costs come in."""
    waiting, found = Waiting(), []
    for epoch, cost in enumerate(costs):
        found.append(rate(epoch, waiting))
        waiting = rate.after(waiting, cost)
    return found


def test_a_plateau_lowers_the_rate_after_so_many_epochs_without_a_fall():
    costs = [1.0, 0.5, 0.5, 0.51, 0.4, 0.4, 0.4, 0.4, 0.4, 0.3]
    assert rates_after(plateau(8, patience=2), costs) == [8, 8, 8, 8, 4, 4, 4, 2, 2, 1]


def test_a_fall_below_tol_is_none():
    assert rates_after(plateau(8, patience=2, tol=0.1), [1.0, 0.95, 0.92, 0.85]) == [8, 8, 8, 4]


def test_a_plateau_lowers_a_schedule_too():
    assert rates_after(plateau(step(8, every=2, factor=0.5), patience=1), [1.0] * 4) == [8, 8, 2, 1]


def test_a_plateau_never_comes_to_zero():
    assert rates_after(plateau(1.0, factor=0.1, patience=1), [1.0] * 2_000)[-1] == schedules.LEAST


SETTINGS = {
    "hidden": 4,
    "epochs": 60,
    "patience": None,
    "optimizer": "momentum",
    "learning_rate": plateau(4.0, patience=2),
    "random_state": 0,
}


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("at", [1, 17, 41])
def test_a_fit_with_a_plateau_is_resumed_bit_for_bit(at, validated, tmp_path):
    X, Y = xpnet.datasets.flower()
    options = SETTINGS | ({"validation_fraction": 0.25} if validated else {})
    straight = xpnet.fit(X, Y, **options)
    xpnet.fit(X, Y, **options | {"epochs": at}, checkpoint=tmp_path / "run")
    resumed = xpnet.fit(X, Y, **options, checkpoint=tmp_path / "run")
    assert len(set(straight.history["learning_rate"])) > 3
    assert resumed.history["learning_rate"] == straight.history["learning_rate"]
    assert np.array_equal(resumed.W1, straight.W1)


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path):
    X, Y = xpnet.datasets.flower(40)
    xpnet.fit(X, Y, **SETTINGS | {"epochs": 2}, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"learning_rate was plateau\(4\.0, .*, is plateau\(2\.0, "):
        xpnet.fit(X, Y, **SETTINGS | {"learning_rate": plateau(2.0, patience=2)}, checkpoint=tmp_path / "run")
