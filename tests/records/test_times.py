"""A record's times and a model's: dates of any calendar, numbers in any unit, and the steps between them."""

import datetime
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.records import schema, times

FIVE_DAYS = np.timedelta64(5, "D")
HOURS = [0, 6, 12, 18, 24, 54, 774]  # the last after a month without


@pytest.fixture(scope="module")
def dated():
    """A model whose step of 0.05 is six hours."""
    return xdan.Lorenz96(sites=8, time_unit=FIVE_DAYS)


def at(values, **attributes) -> xr.DataArray:
    """A variable that has these times and nothing else."""
    return xr.DataArray(np.zeros(len(values)), {"time": ("time", values, attributes)}, ["time"], name="observation")


def calendar_dates(calendar: str, hours=HOURS) -> np.ndarray:
    cftime = pytest.importorskip("cftime")
    return cftime.num2date(hours, "hours since 2000-02-27", calendar)


def kinds() -> dict:
    hours = np.array(HOURS)
    return {
        "datetime64": np.datetime64("2000-02-27", "ns") + hours * np.timedelta64(1, "h"),
        "seconds": np.datetime64("0900-02-27", "s") + hours * np.timedelta64(1, "h"),
        "timedelta64": hours * np.timedelta64(3600, "s"),
        "pandas": pd.DatetimeIndex(np.datetime64("2000-02-27") + hours * np.timedelta64(1, "h")),
    }


@pytest.mark.parametrize("kind", kinds())
def test_dates_are_steps_of_the_model(dated, kind):
    np.testing.assert_array_equal(times.steps_between(at(kinds()[kind]), dated), [0, 1, 1, 1, 1, 5, 120])


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian", "all_leap"])
def test_dates_of_a_calendar_are_steps_of_the_model(dated, calendar):
    """The same hours in every calendar, though February has 28, 29 or 30 days."""
    variable = at(calendar_dates(calendar))
    np.testing.assert_array_equal(times.steps_between(variable, dated), [0, 1, 1, 1, 1, 5, 120])


def test_a_month_has_the_length_of_its_calendar():
    cftime = pytest.importorskip("cftime")
    daily = xdan.Lorenz96(time_unit=np.timedelta64(20, "D"))  # a step is a day
    days = {"noleap": (28, 31), "standard": (29, 31), "360_day": (30, 30)}
    for calendar, months in days.items():
        dates = [cftime.datetime(2000, month, 1, calendar=calendar) for month in (2, 3, 4)]
        np.testing.assert_array_equal(times.steps_between(at(dates), daily), [0, *months])


@given(
    steps=st.lists(st.integers(1, 2000), min_size=1, max_size=30),
    minutes=st.integers(1, 10**5),
    year=st.integers(1700, 2200),
)
def test_dates_of_a_start_give_the_steps_back(steps, minutes, year):
    model = xdan.Lorenz96(time_unit=np.timedelta64(20 * minutes, "m"))
    before = np.array([0, *steps])
    dates = times.dates_from(np.datetime64(f"{year}-02-28T12"), before, model)
    assert dates.dtype == "M8[s]"
    assert dates[-1] - dates[0] == sum(steps) * np.timedelta64(minutes, "m")
    np.testing.assert_array_equal(times.steps_between(at(dates), model), before)


def test_dates_of_a_start_have_its_calendar(dated):
    cftime = pytest.importorskip("cftime")
    for calendar, second in (("noleap", (2001, 3, 1)), ("360_day", (2001, 2, 29)), ("standard", (2001, 3, 1))):
        dates = times.dates_from(cftime.datetime(2001, 2, 28, calendar=calendar), np.array([0, 4]), dated)
        assert dates[1] == cftime.datetime(*second, calendar=calendar)


def test_dates_of_a_step_that_no_second_holds():
    third = xdan.Lorenz96(time_unit=np.timedelta64(1, "s"), timestep=0.0003)
    dates = times.dates_from(datetime.datetime(2000, 1, 1), np.array([0, 1, 1]), third)
    np.testing.assert_array_equal(np.diff(dates), 300 * np.timedelta64(1, "us"))


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        ("2000-01-01", TypeError, "expected a date, such as np.datetime64"),
        (2000, TypeError, "expected a date"),
        (np.array(["2000"], "M8[D]"), TypeError, "expected a date"),
        (np.datetime64("NaT"), ValueError, "expected a date without a time zone"),
        (datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC), ValueError, "expected a date without a time zone"),
        (np.datetime64("2262-04-11", "ns"), ValueError, "its type ends before them; expected .* a start in seconds"),
    ],
)
def test_what_is_no_start(dated, start, error, message):
    with pytest.raises(error, match=message):
        times.dates_from(start, np.array([0, 4, 4]), dated)


def test_a_start_needs_a_unit_of_time(model):
    with pytest.raises(ValueError, match=r"no time_unit: .* give dynamics=xdan.Lorenz96\(time_unit=np.timedelta64"):
        times.dates_from(np.datetime64("2000"), np.array([0, 1]), model)


UNITS = ["h", "hours", "days since 2000-01-01", "s", "Day", "months since 1850-01-01", "yr"]


@pytest.mark.parametrize("units", UNITS)
def test_units_of_time_contradict_a_model_without_any(model, units):
    with pytest.raises(
        ValueError, match=r"counts in dimensionless model time: .* Pass dynamics=xdan.Lorenz96\(time_un"
    ):
        times.units_in_model_time({"units": units}, model)


@pytest.mark.parametrize("units", [None, "1", "", "model time units", "MTU", 1, "nondimensional"])
def test_words_that_are_no_unit_of_time(model, dated, units):
    assert times.units_in_model_time({"units": units}, model) == 1.0
    assert times.units_in_model_time({"units": units}, dated) == 1.0


@pytest.mark.parametrize(
    ("units", "scale"),
    [("days", 1 / 5), ("d", 1 / 5), ("h", 1 / 120), ("hours since 2000-01-01", 1 / 120), ("weeks", 7 / 5)],
)
def test_units_of_known_length_are_converted(dated, units, scale):
    assert times.units_in_model_time({"units": units}, dated) == pytest.approx(scale, rel=1e-15)
    numbers = np.array([0.0, 1.0, 4.0]) * 0.05 / scale
    np.testing.assert_array_equal(times.steps_between(at(1e4 + numbers, units=units), dated), [0, 1, 3])
    single = (1e4 + numbers).astype(np.float32)
    np.testing.assert_array_equal(times.steps_between(at(single, units=units), dated), [0, 1, 3])


@pytest.mark.parametrize("units", ["months", "years since 1850-01-01", "common_years since 2000-01-01"])
def test_units_without_a_fixed_length_are_refused(dated, units):
    with pytest.raises(ValueError, match=r"has no fixed length: expected dates, .* xr.decode_cf\(ds\)"):
        times.units_in_model_time({"units": units}, dated)


def test_model_time_in_another_unit(dated):
    for written, same in (("5 days", True), ("120 hours", True), ("1 days", False), ("five days", True)):
        if same:
            assert times.units_in_model_time({"units": "1", "time_unit": written}, dated) == 1.0
        else:
            with pytest.raises(ValueError, match=r"counts in units of 1 days, but one unit .* is 5 days: expected"):
                times.units_in_model_time({"units": "1", "time_unit": written}, dated)


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array(["2000-01-01", "NaT"], "M8[ns]"), r"time holds values that are missing \(NaT\)"),
        (np.array(["2000-01-01", "2000-01-01"], "M8[ns]"), "time does not increase at index 1"),
        (np.array(["2000-01-01", "1999-01-01"], "M8[ns]"), "time does not increase at index 1"),
        (np.array(["2000-01-01T00", "2000-01-01T01"], "M8[ns]"), r"an interval of 0.008.* one unit .* being 5 days"),
        (np.array(["a", "b"], object), "time is of object, the first is 'a': expected numbers in model time units, or"),
        (np.array([], "M8[ns]"), "holds no times"),
    ],
)
def test_dates_that_are_no_times_of_a_model(dated, values, message):
    with pytest.raises(ValueError, match=message):
        times.steps_between(at(values), dated)


def test_two_dates_of_a_calendar_that_do_not_increase(dated):
    with pytest.raises(ValueError, match="time does not increase at index 1"):
        times.steps_between(at(calendar_dates("noleap", [6, 0])), dated)


@given(
    steps=st.lists(st.integers(1, 300), min_size=2, max_size=40),
    beside=st.lists(st.floats(-0.049, 0.049), min_size=40, max_size=40),
)
def test_times_near_a_step_are_on_it_and_counted(steps, beside):
    model = xdan.Lorenz96(time_unit=FIVE_DAYS)
    whole = np.cumsum([0, *steps])
    moved = whole + np.array([0.0, *beside[: len(steps)]])
    off = np.abs(np.diff(moved) - steps)
    count = int((off > np.minimum(1e-4 * np.maximum(np.diff(moved), steps), 0.05)).sum())
    for values in (0.05 * moved, np.datetime64("2000-01-01", "ns") + (moved * 21_600e9).astype("m8[ns]")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(np.diff(times.steps_between(at(values), model)[0:]), np.diff([0, *steps]))
        texts = [str(one.message) for one in caught]
        assert len(texts) == bool(count)
        assert all(text.startswith(f"{count} of {len(steps)} intervals") for text in texts)


def test_times_that_are_not_near_a_step_are_refused(dated):
    """Every interval is near a step; the last times are not."""
    slow = 0.05 * 1.004 * np.arange(30)
    with pytest.warns(xdan.XdanWarning, match=r"12 of 12 intervals .* up to 0.048 of a step beside one"):
        times.steps_between(at(slow[:13]), dated)
    with pytest.raises(ValueError, match=r"not a positive multiple .* within 0.05 of a step of one, counted from the"):
        times.steps_between(at(slow), dated)


def test_two_times_at_one_step_are_refused(dated):
    with pytest.raises(ValueError, match="not a positive multiple"):
        times.steps_between(at([0.0, 0.05, 0.0515, 0.1]), dated)


def test_the_work_grows_with_the_number_of_times(dated):
    """A hundred thousand intervals that all differ."""
    steps = np.random.default_rng(0).permutation(100_000) + 1
    began = time.perf_counter()
    np.testing.assert_array_equal(times.steps_between(at(0.05 * np.cumsum([0, *steps])), dated)[1:], steps)
    assert time.perf_counter() - began < 2.0


def test_the_same_times(dated):
    ours = at(kinds()["datetime64"]).time
    second = ours + np.timedelta64(1, "s")
    assert times.same_times(ours, ours.astype("M8[s]"))
    assert times.same_times(ours, second)  # a thousandth of six hours is 21.6 s
    assert not times.same_times(ours, ours + np.timedelta64(22, "s"))
    assert not times.same_times(ours, ours[1:])
    assert not times.same_times(ours, at(np.arange(7.0)).time)
    assert not times.same_times(ours, at(kinds()["timedelta64"]).time)
    noleap = at(calendar_dates("noleap")).time
    assert times.same_times(noleap, noleap.copy())
    assert not times.same_times(noleap, at(calendar_dates("360_day")).time)
    assert not times.same_times(noleap, ours)
    words = at(np.array(list("abcdefg"), object)).time
    assert not times.same_times(noleap, words)


def test_dims_of_time(dated):
    dates, hours = kinds()["datetime64"], np.arange(7.0)
    for name, values, attributes in (
        ("valid", dates, {}),
        ("step", hours, {"axis": "T"}),
        ("t", hours, {"standard_name": "time"}),
        ("when", calendar_dates("noleap"), {}),
    ):
        variable = xr.DataArray(np.zeros((7, 2)), {name: (name, values, attributes), "x": [0, 1]}, [name, "x"])
        assert schema.time_dims(variable) == [name]
    assert schema.time_dims(xr.DataArray(np.zeros(2), {"x": ["a", "b"]}, ["x"])) == []


def test_drawn_times(dated):
    numbers, dates = at(np.arange(3.0)).time, at(kinds()["datetime64"]).time
    assert times.drawn_times(numbers)[1] == "model time"
    assert times.drawn_times(dates)[1] == "time"
    np.testing.assert_array_equal(times.drawn_times(dates)[0], dates)
    days, label = times.drawn_times(at(kinds()["timedelta64"]).time)
    np.testing.assert_allclose(days, np.array(HOURS) / 24)
    assert label == "days"
    days, label = times.drawn_times(at(calendar_dates("360_day")).time)
    np.testing.assert_allclose(days, np.array(HOURS) / 24)
    assert label == "days since 2000-02-27 00:00:00 (360_day)"
