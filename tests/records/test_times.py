"""A record's times and a model's."""

import numpy as np
import pytest

import xdan
from xdan.records import times


@pytest.mark.parametrize("units", ["h", "hours", "days since 2000-01-01", "s", "Day", "months since 1850-01-01", "yr"])
def test_units_of_time_contradict_a_model_without_any(model, units):
    with pytest.raises(ValueError, match="counts in dimensionless model time: expected times in those"):
        times.check_time_units(units, model)


@pytest.mark.parametrize("units", [None, "1", "", "model time units", "MTU", 1, "nondimensional"])
def test_words_that_are_no_unit_of_time(model, units):
    times.check_time_units(units, model)


@pytest.mark.parametrize(
    ("units", "fits"), [("days", True), ("d", True), ("h", False), ("days since 2000-01-01", True)]
)
def test_a_model_that_counts_in_days(units, fits):
    model = xdan.CustomDynamics(lambda x: -x, state={"x": 3}, timestep=0.1, time_unit=np.timedelta64(1, "D"))
    if fits:
        times.check_time_units(units, model)
    else:
        with pytest.raises(ValueError, match=r"counts in model time units of 86400 s"):
            times.check_time_units(units, model)


@pytest.mark.parametrize(("units", "factor"), [("h", 120.0), ("days since 2000-01-01", 5.0)])
def test_real_times_are_refused_by_every_verb(twin, run, units, factor):
    real = twin.assign_coords(time=("time", twin.time.values * factor, {**twin.time.attrs, "units": units}))
    for call in (
        lambda: real.dan.baseline("etkf", members=4),
        lambda: real.dan.score(run),
        lambda: real.dan.train(steps=1, window=2, progress=False),
    ):
        with pytest.raises(ValueError, match=f"time is in '{units}'"):
            call()


def test_an_interval_of_too_many_steps(twin):
    with pytest.raises(ValueError, match=r"steps of 0.05: expected at most .*is the time in other units"):
        twin.assign_coords(time=twin.time * 1e9).dan.baseline("3d-var")
