"""Schedules of the learning rate: their values where these are known, and what all of them share."""

import math
from itertools import pairwise

import pytest

from xdan.core.learning import Optimiser
from xdan.core.learning.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("name", "quarter", "half", "end"),
    [("constant", 1.0, 1.0, 1.0), ("linear", 0.75, 0.5, 0.0), ("cosine", 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.0)],
)
def test_schedules_at_known_places(name, quarter, half, end):
    schedule = SCHEDULES[name]
    assert [schedule(spent) for spent in (0.25, 0.5, 1.0)] == pytest.approx([quarter, half, end], abs=1e-15)
    assert schedule(0.0) == pytest.approx(0.01)
    assert schedule(1.5) == pytest.approx(end, abs=1e-15)  # a last step may end after the time is over


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_and_then_never_rise_again(name):
    values = [SCHEDULES[name](share / 1000) for share in range(1001)]
    assert all(before < after for before, after in pairwise(values[:10]))
    assert all(before >= after for before, after in pairwise(values[11:]))


def test_the_usual_schedule_is_not_a_part_of_what_trainings_are_known_by():
    known = {"learning_rate": 0.01, "adam_learning_rate": 0.002, "weight_decay": 0.0, "clip": 2.0}
    assert Optimiser().config() == Optimiser(schedule="linear").config() == known
    assert Optimiser(schedule="cosine").config() == {**known, "schedule": "cosine"}


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"schedule='cosin': expected one of .*, perhaps 'cosine'"):
        Optimiser(schedule="cosin")
    with pytest.raises(TypeError, match=r"schedule=0\.5: expected one of"):
        Optimiser(schedule=0.5)
