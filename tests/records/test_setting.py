"""What a network was trained on, and in what a record differs from it."""

import json

import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.records import setting
from xdan.records.record import read

TRAINED = {
    "dynamics": {"name": "lorenz96", "parameters": {"sites": 40, "forcing": 8.0, "timestep": 0.05}},
    "interval": 0.05,
    "error_std": 1.0,
    "observing": {"name": "sites", "parameters": {"kind": "all"}},
}


def differing(description, ds):
    labelled = read(ds)
    return setting.differences(description, labelled.setup, labelled.sites)


def told(ds, **changes):
    return differing({"training": {"data": {**TRAINED, **changes}}}, ds)


def test_a_record_like_the_training(twin):
    assert told(twin) == []
    assert differing({}, twin) == []
    assert differing({"training": {"committee": [{"data": TRAINED}]}}, twin) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"interval": 0.1}, "the interval is 0.1, in training it was 0.05"),
        ({"interval": [0.05, 0.05, 0.2]}, "the interval is 0.05 to 0.2, in training it was 0.05"),
        ({"error_std": 2.0}, "the observation error is 2, in training it was 1"),
        ({"error_covariance": 0.25 * np.eye(8)}, "the observation error is 0.5, in training it was 1"),
        (
            {"observe": xdan.Sites.every(2)},
            "the observed sites are kind=every, step=2, offset=0, in training they were kind=all",
        ),
    ],
)
def test_what_differs_is_named(model, options, expected):
    assert told(xdan.twin(model, cycles=4, **options)) == [expected]


def test_another_model_is_named(twin):
    forced = xdan.twin(xdan.Lorenz96(sites=8, forcing=6.0), cycles=4)
    assert told(forced) == ["the dynamics has forcing=6.0, in training it had 8.0"]
    other = xdan.twin(xdan.Lorenz63(), interval=0.05, cycles=4)
    assert "the dynamics is 'lorenz63', in training it was 'lorenz96'" in told(other)


@pytest.mark.parametrize("data", [None, 3, [], {"interval": "x", "error_std": {}, "observing": 1, "dynamics": [1]}])
def test_odd_descriptions_tell_nothing(twin, data):
    assert differing({"training": {"data": data}}, twin) == []


def test_a_run_out_of_its_setting_warns_and_says_so(tmp_path):
    net = xdan.open_network("lorenz96")
    ds = xdan.twin(xdan.Lorenz96(), interval=0.1, cycles=6, trajectories=2).compute()
    with pytest.warns(xdan.XdanWarning, match="out of the setting that it was trained in: the interval is 0.1"):
        run = ds.dan.cycle(net)
    with pytest.warns(xdan.XdanWarning, match="out of the setting"):
        stored = ds.dan.cycle(net, store=tmp_path / "run.zarr", progress=False)
    with pytest.warns(xdan.XdanWarning, match="out of the setting"):
        lazy = ds.chunk(time=3).dan.cycle(net)
    for one in (run, stored, xr.open_zarr(tmp_path / "run.zarr", consolidated=False), lazy):
        texts = one.attrs["xdan_warnings"]
        assert "the interval is 0.1" in json.dumps(texts)


def test_the_setting_itself_is_quiet():
    ds = xdan.twin(xdan.Lorenz96(), cycles=6, trajectories=2).compute()
    assert "xdan_warnings" not in ds.dan.cycle(xdan.open_network("lorenz96")).attrs


@pytest.mark.parametrize(
    ("observing", "warns"), [(TRAINED["observing"], True), (0.5, False), (1.0, True), ("x", False)]
)
def test_another_share_of_observations_is_told(twin, observing, warns):
    """Also where no attribute says which sites are observed."""
    half = twin.observation.where(twin.x % 2 == 0).values
    text = setting.observed_otherwise({"training": {"data": {"observing": observing}}}, half)
    assert ("sees 50% of the observations that there may be, in training it saw 100%" in text) == warns
    assert setting.observed_otherwise({}, half) == ""


def test_a_gap_in_time_is_no_other_setting(model):
    intervals = [0.05] * 30
    intervals[7] = 0.5
    assert told(xdan.twin(model, cycles=31, interval=intervals)) == []
