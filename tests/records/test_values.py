"""What the values of a record are: packing, units, fill values."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xdan
from xdan.records import arranging, units, values


@pytest.mark.parametrize("fill", [-999.0, -9999.0, 1e20, 9.969209968386869e36, np.float32(9.96921e36), -32767])
def test_a_common_fill_value_is_told_once(fill):
    numbers = np.random.default_rng(0).normal(3.0, 4.0, (5, 20, 8))
    numbers[2, 3, 4] = fill
    value, count = values.fill_value(numbers)
    assert value == pytest.approx(float(fill), rel=1e-6)
    assert count == 1


def test_any_value_that_stands_often_and_far_away():
    numbers = np.random.default_rng(0).normal(3.0, 4.0, (5, 20, 8))
    numbers[:, ::2, 1] = -1234.5
    assert values.fill_value(numbers) == (-1234.5, 50)
    numbers[:, ::2, 1] = -8.0  # clipped, not filled
    assert values.fill_value(numbers) is None


@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.floats(1e-6, 1e6))
def test_numbers_of_any_size_are_no_fill_values(seed, mean, deviation):
    numbers = np.random.default_rng(seed).normal(mean, deviation, 400)
    assert values.fill_value(numbers) is None
    assert values.fill_value(np.append(numbers, np.nan)) is None


@pytest.mark.parametrize("constant", [0.0, -999.0])
def test_constants_and_single_values_are_no_fill_values(constant):
    assert values.fill_value(np.full((3, 4), constant)) is None
    assert values.fill_value(np.array([constant])) is None
    assert values.fill_value(np.array([np.nan, np.inf])) is None


def test_fill_values_stop_every_verb(twin, net):
    filled = twin.copy(deep=True)
    filled["observation"][{"x": 3}] = -999.0
    for call in (
        lambda ds: ds.dan.cycle(net),
        lambda ds: ds.dan.baseline("etkf", members=4),
        lambda ds: ds.chunk(time=6).dan.cycle(net).compute(),
    ):
        with pytest.raises(ValueError, match=r"values of 'observation' are -999, far from all others.*expected NaN"):
            call(filled)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"scale_factor": 0.01}, "scale_factor=0.01: its values are packed"),
        ({"add_offset": np.float32(273.15)}, "add_offset="),
        ({"_FillValue": -999.0}, "_FillValue=-999.0: expected NaN for its gaps"),
        ({"missing_value": np.array([1e20])}, "missing_value="),
        ({"_FillValue": "x"}, "_FillValue='x'"),
    ],
)
def test_packed_values_are_refused(twin, attributes, told):
    packed = twin.assign(observation=twin.observation.assign_attrs(attributes))
    with pytest.raises(ValueError, match=told):
        packed.dan.baseline("3d-var")


def test_neutral_packing_is_none(twin):
    neutral = {"scale_factor": 1.0, "add_offset": 0, "_FillValue": np.nan, "missing_value": np.float32("nan")}
    arranging.check_packing(twin.observation.assign_attrs(neutral))


def of_units(word):
    return xr.DataArray([1.0], dims="x", attrs={} if word is None else {"units": word}, name="temperature")


@pytest.mark.parametrize(("one", "other"), [("K", "degC"), ("kelvin", "Celsius"), ("degF", "deg C"), ("degree_C", "K")])
def test_kelvin_beside_celsius(one, other):
    with pytest.raises(ValueError, match="expected one unit for both"):
        units.check_units(of_units(one), of_units(other))


@pytest.mark.parametrize(("one", "other"), [("K", "kelvin"), ("degC", "Celsius"), ("m s-1", "m s-1"), ("1", None)])
def test_units_that_are_the_same(one, other):
    units.check_units(of_units(one), of_units(other))


def test_units_that_are_spelled_apart_warn():
    with pytest.warns(xdan.XdanWarning, match="'m/s' and .* in 'm s-1': they are taken as the same unit"):
        units.check_units(of_units("m/s"), of_units("m s-1"))


def test_a_record_in_two_units_is_refused(twin):
    apart = twin.assign(
        truth=twin.truth.assign_attrs(units="degC"), observation=(twin.observation + 273.15).assign_attrs(units="K")
    )
    with pytest.raises(ValueError, match="'truth' is in 'degC' and 'observation' in 'K'"):
        apart.dan.baseline("etkf", members=4)


def test_observations_far_from_the_truth_warn(twin):
    """Units that no attribute names."""
    kelvin = twin.assign(observation=twin.observation + 273.15)
    with pytest.warns(xdan.XdanWarning) as caught:
        run = kelvin.dan.baseline("climatology")
    texts = [str(warning.message) for warning in caught]
    assert "the observations are far from the truth" in texts[0]
    assert "4 of 4 trajectories have lost the truth" in texts[1]
    assert run.attrs["xdan_warnings"] == texts


def test_a_run_in_other_units_is_refused(twin, run):
    celsius = twin.assign(
        truth=twin.truth.assign_attrs(units="degC"), observation=twin.observation.assign_attrs(units="degC")
    )
    kelvin = run.assign(analysis=(run.analysis + 273.15).assign_attrs(units="K"))
    with pytest.raises(ValueError, match="'analysis' is in 'K' and 'truth' in 'degC': expected one unit"):
        celsius.dan.score(kelvin)


@pytest.mark.parametrize(("fill", "count", "least"), [(-99.0, 1, 10.0), (-123.0, 10, 20.0)])
def test_how_far_away_a_fill_value_is(fill, count, least):
    """In deviations of numbers that lie evenly, half of the distance of their quantiles at 16 and 84 %."""
    evenly = np.linspace(-1.0, 1.0, 2001)  # those quantiles are -0.68 and 0.68
    for away, expected in ((1.1 * least, (fill, count)), (0.9 * least, None)):
        numbers = evenly * abs(fill) / (0.68 * away)
        assert values.fill_value(np.append(numbers, [fill] * count)) == expected
