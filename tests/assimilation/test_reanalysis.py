"""One verb for a smoothed record, whatever the way of the method."""

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.core.methods import method_by_name

BACKWARD, LAG = "a backward pass: observations of all times", "the method's lag: observations of up to {} later times"


@pytest.mark.parametrize(
    ("name", "lag", "parameters", "cycled", "words"),
    [
        ("etkf", None, {"members": 4}, ("etkf", {"members": 4, "smooth": True}), BACKWARD),
        ("etkf", 3, {"members": 4}, ("enks", {"members": 4, "lag": 3}), LAG.format(3)),
        ("enkf-n", 3, {"members": 4}, ("enks", {"members": 4, "lag": 3, "finite_size": True}), LAG.format(3)),
        ("ienks-n", None, {"members": 4}, ("ienks-n", {"members": 4}), LAG.format(1)),
        ("ienks-n", 2, {"members": 4}, ("ienks-n", {"members": 4, "lag": 2}), LAG.format(2)),
        ("ienkf-n", 1, {"members": 4}, ("ienkf-n", {"members": 4}), LAG.format(1)),
        ("4d-var", 2, {}, ("4d-var", {"window": 2}), LAG.format(2)),
        ("enkf", None, {"members": 4}, ("enkf", {"members": 4, "smooth": True}), BACKWARD),
    ],
)
def test_a_method_by_its_name(twin, name, lag, parameters, cycled, words):
    ds = twin.isel(time=slice(8))
    run = ds.dan.reanalysis(name, lag=lag, **parameters)
    xr.testing.assert_identical(run, ds.dan.baseline(cycled[0], **cycled[1]))
    assert run.attrs["smoothed_by"] == words
    assert bool(run.smoothed.isel(time=0).notnull().all())


def test_methods_and_networks(twin, net):
    ds = twin.isel(time=slice(8))
    etkf, ienks = method_by_name("etkf", members=4), method_by_name("ienks-n", members=4, lag=2)
    run = ds.dan.reanalysis(etkf, keep_members=True)
    xr.testing.assert_identical(run, ds.dan.cycle(etkf, members=True, smooth=True))
    xr.testing.assert_identical(ds.dan.reanalysis(ienks, lag=2), ds.dan.cycle(ienks))
    with pytest.raises(ValueError, match="lag=3: 'ienks-n' has a lag of 2; expected that, or none"):
        ds.dan.reanalysis(ienks, lag=3)
    with pytest.raises(ValueError, match="lag=3: 'etkf' has none; expected no lag"):
        ds.dan.reanalysis(etkf, lag=3)
    with pytest.raises(ValueError, match="a network with a single forecast has no covariance"):
        ds.dan.reanalysis(net)
    kalman = xdan.Network.from_module(xdan.KalmanCNN(filters=3, blocks=1, kernel=3), ("x",), {})
    assert ds.dan.reanalysis(kalman).attrs["smoothed_by"] == BACKWARD


def test_into_a_store(twin, tmp_path):
    ds = twin.isel(time=slice(8)).chunk(time=3)
    run = ds.dan.reanalysis("enkf-n", members=4, store=tmp_path / "run", progress=False)
    np.testing.assert_allclose(run.smoothed, ds.compute().dan.reanalysis("enkf-n", members=4).smoothed, atol=1e-9)


@pytest.mark.parametrize("name", ["letkf", "3d-var", "second-order-kalman"])
def test_a_lag_that_a_method_cannot_have(twin, name):
    with pytest.raises(ValueError, match=rf"lag=2: the method {name!r} has no such lag; .*'enks'.*'etkf'"):
        twin.dan.reanalysis(name, lag=2)


def test_no_lag_is_no_number(twin):
    with pytest.raises(TypeError, match="lag="):
        twin.dan.reanalysis("etkf", lag="all")
