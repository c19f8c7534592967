"""Lead times as arguments, steps and coordinates; valid times among a record's times."""

import datetime

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.records.leads import lead_coordinates, lead_numbers, lead_steps, model_time, steps_of, valid_positions
from xdan.records.times import positions_among

MODEL = xdan.Lorenz96(sites=8, time_unit=np.timedelta64(5, "D"))  # a step of 0.05 is 6 hours


def times(values, **attrs):
    return xr.DataArray(values, dims="time", coords={"time": ("time", values, attrs)})["time"]


def test_steps_of_numbers_and_time_differences():
    assert steps_of("lead", 0.5, MODEL) == 10
    assert steps_of("lead", np.timedelta64(36, "h"), MODEL) == 6
    assert steps_of("lead", datetime.timedelta(days=1), MODEL) == 4
    with pytest.raises(ValueError, match="lead="):
        steps_of("lead", np.timedelta64(7, "h"), MODEL)
    with pytest.raises(TypeError, match="lead=None"):
        steps_of("lead", None, MODEL)


def test_steps_of_words():
    assert steps_of("lead", "36h", MODEL) == 6
    assert steps_of("lead", "1 days 12:00:00", MODEL) == 6
    assert model_time("restart_after", "3D", MODEL) == model_time("restart_after", np.timedelta64(3, "D"), MODEL)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ("5", ValueError, "lead='5': expected a time difference with its unit, such as '5D'.*or a number"),
        ("5 moons", ValueError, "lead='5 moons': expected a time difference with its unit"),
        ("NaT", ValueError, "lead='NaT': expected a time difference"),
        ("-1D", ValueError, "lead='-1D': expected a positive time"),
        (None, TypeError, r"lead=None.*or a time difference such as np.timedelta64\(5, 'D'\) or '5D'"),
    ],
)
def test_words_that_are_no_length_of_time(value, error, match):
    with pytest.raises(error, match=match):
        steps_of("lead", value, MODEL)


def test_words_need_a_time_unit():
    with pytest.raises(ValueError, match="lead='5D', and one unit of the time of"):
        steps_of("lead", "5D", xdan.Lorenz96())


@pytest.mark.parametrize(
    ("time", "lead", "units"),
    [
        (times(np.array([0.0, 0.05]), units="1"), [0.0, 0.05, 0.2], "1"),
        (times(np.array([12.0, 18.0]), units="hours"), [0.0, 6.0, 24.0], "hours"),
        (times(np.array([12.0, 18.0]), units="hours since 2000-01-01"), [0.0, 6.0, 24.0], "hours"),
        (times(np.array(["2000-01-01", "2000-01-02"], "datetime64[ns]")), np.array([0, 6, 24], "timedelta64[h]"), None),
        (times(np.array([6, 12], "timedelta64[h]")), np.array([0, 6, 24], "timedelta64[h]"), None),
    ],
)
def test_coordinates_go_there_and_back(time, lead, units):
    steps = np.array([0, 1, 4])
    made = xr.Dataset(coords=lead_coordinates(time, steps, MODEL))
    assert made.lead.attrs.get("units") == units
    np.testing.assert_array_equal(made.lead, lead)
    np.testing.assert_array_equal(made.valid_time, time.values[:, None] + np.asarray(lead)[None])
    np.testing.assert_array_equal(lead_steps(made.lead, MODEL), steps)
    numbers, said = lead_numbers(made.lead)
    assert said == ("days" if units is None else units)
    np.testing.assert_allclose(numbers, np.array([0, 0.25, 1.0]) * {"days": 1, "1": 0.2, "hours": 24}[said])


def test_cftime_dates():
    cftime = pytest.importorskip("cftime")
    time = times(np.array([cftime.DatetimeNoLeap(2000, 2, 28)], dtype=object))
    made = lead_coordinates(time, np.array([0, 4]), MODEL)
    assert list(made["valid_time"][1][0]) == [cftime.DatetimeNoLeap(2000, 2, 28), cftime.DatetimeNoLeap(2000, 3, 1)]


def test_dates_far_from_now_do_not_wrap_around():
    """Nanoseconds of 64 bits end in 2262."""
    time = times(np.array(["2700-01-01"], "datetime64[s]"))
    made = lead_coordinates(time, np.array([4]), MODEL)
    assert made["valid_time"][1][0, 0] == np.datetime64("2700-01-02", "s")


def test_positions_among_times():
    ours = times(np.array([0.0, 0.1, 0.4, 0.5]))
    theirs = times(np.array([0.4 + 1e-9, 0.3, 0.0, 2.0, -1.0]))
    assert positions_among(ours, theirs).tolist() == [2, -1, 0, -1, -1]
    with pytest.raises(ValueError, match="same kind of times"):
        positions_among(ours, times(np.array(["2000-01-01"], "datetime64[s]")))


def test_valid_positions_by_steps():
    record, clock = times(np.array([0.0, 0.1, 0.15, 0.3])), np.array([0, 2, 3, 6])
    starts, valid = valid_positions(record, clock, record[1:3], np.array([0, 1, 3, 9]))
    assert starts.tolist() == [1, 2]
    assert valid.tolist() == [[1, 2, -1, -1], [2, -1, 3, -1]]
