"""Runs of early versions."""

import json

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.records.record import read
from xdan.records.runs import read_run, warn_of_old_smoothed


def old(run, method, parameters, shift):
    """A run as an early version wrote it: `smoothed` at the time of the analysis."""
    late = run.smoothed.shift(time=shift)
    late.attrs = {**run.smoothed.attrs, "long_name": "estimate, at each time, of the state a window earlier"}
    told = {"method": method, "method_parameters": json.dumps(parameters)}
    return run.assign(smoothed=late).assign_attrs(told)


@pytest.mark.parametrize(
    ("method", "parameters", "lag"),
    [("ienks-n", {"lag": 2}, 2), ("4d-var", {"window": 3}, 3), ("ienkf-n", {"members": 5}, 1)],
)
def test_reading_an_old_smoothed_state_warns_and_names_the_shift(twin, tmp_path, method, parameters, lag):
    run = twin.dan.baseline("ienks-n", members=5, lag=2)
    old(run, method, parameters, lag).to_zarr(tmp_path / "run", consolidated=False)
    stored = xr.open_zarr(tmp_path / "run", consolidated=False)
    words = rf"it is taken {lag} cycles earlier, as by run\['smoothed'\]\.shift\(time=-{lag}\)"
    with pytest.warns(xdan.XdanWarning, match=words):
        states = read_run(read(twin), stored, ["smoothed"])
    np.testing.assert_array_equal(states["smoothed"][:, : 22 - lag], run.smoothed[:, : 22 - lag])


def test_other_runs_do_not_warn(twin, tmp_path):
    run = twin.dan.baseline("ienks-n", members=5, lag=2)
    assert warn_of_old_smoothed(run) == 0
    read_run(read(twin), run, ["smoothed", "smoothed_spread"])
    read_run(read(twin), old(run, "ienks-n", {"lag": 2}, 2), ["analysis"])
