"""Members drawn from runs: labels, chunks, parts, fields, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import xdan

SIZES = {"trajectory": 3, "time": 4, "x": 5}


def run_of(covariance=True, seed=0, **labels):
    random = np.random.default_rng(seed)
    dims, shape = tuple(SIZES), tuple(SIZES.values())
    coords = {"trajectory": [4, 5, 9], "time": 0.05 * np.arange(4), "x": np.arange(5)} | labels
    ds = xr.Dataset({"analysis": (dims, random.normal(size=shape), {"units": "m"})}, coords)
    factor = random.normal(size=(*shape, 5)) * 0.3
    matrix = factor @ factor.swapaxes(-1, -2)
    ds["spread"] = dims, np.sqrt(np.diagonal(matrix, axis1=-2, axis2=-1))
    if covariance:
        ds["analysis_covariance"] = ("trajectory", "time", "x_dual", "x"), matrix
    return ds


def test_draws_have_labels_and_scatter_about_the_analysis():
    run = run_of()
    members = xdan.draw_members(run, 400, seed=1)
    assert members.name == "members"
    assert members.dims == ("trajectory", "time", "member", "x")
    assert members.attrs["units"] == "m"
    xr.testing.assert_equal(members.x, run.x)
    anomaly = (members - run.analysis).isel(trajectory=1, time=2).values
    covariance = run.analysis_covariance.isel(trajectory=1, time=2).values
    assert np.abs(np.cov(anomaly.T) - covariance).max() < 0.25 * np.abs(covariance).max()


@pytest.mark.parametrize("chunks", [{"trajectory": 1, "time": 3}, {"time": 1, "x": 2}, {}])
def test_draws_do_not_depend_on_chunks(chunks):
    whole, run = xdan.draw_members(run_of(), 3), run_of().chunk(chunks)
    lazy = xdan.draw_members(run, 3)
    assert lazy.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), whole, rtol=1e-12)


@pytest.mark.parametrize(
    "time",
    [0.05 * np.arange(4), np.arange(4), pd.date_range("2001-01-01", periods=4, freq="6h")],
    ids=lambda t: t.dtype,
)
def test_a_part_of_a_run_has_the_same_draws(time):
    run = run_of(time=time)
    whole = xdan.draw_members(run, 4)
    assert len(np.unique(whole - run.analysis)) == whole.size
    part = xdan.draw_members(run.isel(trajectory=[2], time=slice(1, 3)), 2)
    xr.testing.assert_allclose(part, whole.isel(trajectory=[2], time=slice(1, 3), member=slice(2)), rtol=1e-12)
    one = xdan.draw_members(run.isel(trajectory=2), 2)
    assert one.dims == ("time", "member", "x")
    xr.testing.assert_allclose(one, whole.isel(trajectory=2, member=slice(2)), rtol=1e-12)


def test_a_spread_alone_draws_independent_errors_and_warns():
    run = run_of(covariance=False)
    with pytest.warns(xdan.XdanWarning, match="as if the errors of different components were independent"):
        members = xdan.draw_members(run, 400)
    anomaly = (members - run.analysis).isel(trajectory=0, time=0)
    np.testing.assert_allclose(anomaly.std("member"), run.spread[0, 0], rtol=0.15)


def test_several_fields_are_drawn_together():
    model = xdan.TwoScaleLorenz96(sites=4, fast=2)
    ds = xdan.twin(model, cycles=4, trajectories=2, interval=0.05, seed=0).compute()
    small = {"filters": 2, "blocks": 1, "kernel": 3}
    centre = xdan.ResidualCNN(**small, space=model.space)
    net = xdan.train(
        ds.isel(time=[0, 1, 2, 3]),
        xdan.GaussianCNN(centre, **small),
        window=2,
        batch=1,
        steps=1,
        validation=0.5,
        progress=False,
    )
    run = ds.dan.cycle(net, members=True)
    members = xdan.draw_members(run, 300)
    assert set(members.data_vars) == {f"members_{name}" for name in model.space.names}
    for name in model.space.names:
        drawn = members[f"members_{name}"]
        assert drawn.dims[:3] == ("trajectory", "time", "member")
        np.testing.assert_allclose(drawn.std("member"), run[f"spread_{name}"], rtol=0.35)
    with_members = run.merge(members)
    assert float(xdan.rank_histogram(ds, with_members).sum()) > 0


def test_what_cannot_be_drawn_from_is_refused():
    with pytest.raises(TypeError, match="run=3: expected the Dataset"):
        xdan.draw_members(3, 2)
    with pytest.raises(ValueError, match="members=0"):
        xdan.draw_members(run_of(), 0)
    with pytest.raises(ValueError, match="says nothing of the errors"):
        xdan.draw_members(run_of()[["analysis"]], 2)
    run = run_of()
    with pytest.raises(ValueError, match="the run holds 'members'"):
        xdan.draw_members(run.assign(members=xdan.draw_members(run, 2)), 2)
