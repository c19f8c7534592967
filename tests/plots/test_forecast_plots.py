"""Curves of forecasts by lead time: what is drawn, and what is refused."""

import numpy as np
import pytest

import xdan


@pytest.fixture(scope="module")
def scores(twin, ensemble):
    members = twin.dan.forecast(ensemble, lead=0.2, members=4).isel(time=slice(0, 20))
    single = twin.dan.forecast(ensemble, lead=0.2).isel(time=slice(0, 20))
    return twin.dan.score_forecasts({"members": members, "single": single})


def labels(overlay):
    return [one.label for one in overlay if one.label]


def test_a_curve_a_method_with_its_spread_and_the_climate(scores):
    overlay = xdan.lead_time_curves(scores)
    expected = ["members", "members, spread", "single", "deviation of the climate", "sqrt(2) deviations"]
    assert labels(overlay) == expected
    curves = {one.label: one.dimension_values(1) for one in overlay if one.label}
    np.testing.assert_allclose(curves["single"], scores.rmse[1])
    np.testing.assert_allclose(curves["members, spread"], scores.spread[0])
    np.testing.assert_allclose(curves["sqrt(2) deviations"], np.sqrt(2) * float(scores.deviation[0]))
    band = next(one for one in overlay if not one.label)
    np.testing.assert_allclose(band.dimension_values("low"), scores.rmse[0] - 2 * scores.rmse_standard_error[0])


def test_other_scores_and_one_method(scores):
    assert labels(xdan.lead_time_curves(scores, value="acc")) == ["members", "single"]
    one = scores.isel(method=0, drop=True).assign_attrs(title="scores of forecasts of enkf-n by lead time")
    assert labels(xdan.lead_time_curves(one, levels=False, errors=0.0, log=True)) == ["enkf-n", "enkf-n, spread"]


def test_a_picture_for_each_field():
    fields = [xdan.Field("a", xdan.Ring(3), "m"), xdan.Field("b", xdan.Components(["p", "q"]), "K")]
    model = xdan.CustomDynamics(lambda f: {"a": -f["a"], "b": -f["b"]}, state=fields, timestep=0.1, spin_up_time=0.0)
    ds = xdan.twin(model, cycles=6, trajectories=3, interval=0.1, seed=0).compute()
    forecasts = ds.dan.forecast(which="truth", lead=0.2, dynamics=model).isel(time=slice(0, 4))
    layout = xdan.lead_time_curves(ds.dan.score_forecasts(forecasts, dynamics=model))
    assert len(layout) == 2
    assert [labels(one)[0] for one in layout] == ["the truth", "the truth"]


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"value": "skill"}, ValueError, "value='skill': expected a score along 'lead'"),
        ({"value": "deviation"}, ValueError, "expected a score along 'lead'"),
        ({"errors": -1.0}, ValueError, "errors=-1"),
        ({"log": 1}, TypeError, "log=1"),
    ],
)
def test_what_is_refused(scores, words, error, match):
    with pytest.raises(error, match=match):
        xdan.lead_time_curves(scores, **words)


def test_scores_of_each_trajectory_are_refused(twin, ensemble):
    forecasts = twin.dan.forecast(ensemble, lead=0.2).isel(time=slice(0, 20))
    with pytest.raises(ValueError, match=r"has the dims \['trajectory'\] too"):
        xdan.lead_time_curves(twin.dan.score_forecasts(forecasts, dim="time"))
