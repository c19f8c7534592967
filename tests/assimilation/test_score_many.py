"""Several runs at once are scored as each by itself, and the record is read once for all."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import xdan

pytestmark = pytest.mark.filterwarnings("ignore:the truth does not follow:xdan.XdanWarning")


@pytest.fixture(scope="module")
def runs(twin, ensemble):
    """With members, with a spread, and with neither."""
    plain = ensemble[["forecast", "analysis", "diverged"]]
    return {"members": ensemble, "spread": ensemble.drop_dims("member"), "plain": plain + 0 * plain}


@pytest.mark.parametrize(
    ("settings", "lazy"),
    [
        ({}, False),
        ({"dim": "time"}, True),
        ({"along": "site"}, False),
        ({"also": ["energy"], "dim": ()}, False),
    ],
)
def test_each_row_is_the_score_of_its_run(twin, runs, settings, lazy):
    if "also" in settings:
        runs = dict.fromkeys(runs, runs["members"])
    ds, several = twin, runs
    if lazy:
        ds, several = twin.chunk(trajectory=3), {name: run.chunk(time=14) for name, run in runs.items()}
    together = xdan.score(ds, several, burn_in=2, **settings)
    assert together.method.values.tolist() == list(runs)
    if lazy:
        assert all(values.chunks is not None for values in together.data_vars.values())
        together = together.compute()
    for name, run in runs.items():
        one = xdan.score(twin, run, burn_in=2, **settings)
        row = together.sel({"method": name})
        for score in together.data_vars:
            if score in one:
                expected = one[score].drop_vars("crps_of", errors="ignore")
                xr.testing.assert_allclose(row[score].drop_vars(["method", "crps_of"]), expected)
                assert row[score].attrs["units"] == expected.attrs["units"]
            else:
                assert row[score].isnull().all()
        assert row.crps_of.item() == (one.crps_of.item() if "crps_of" in one.coords else "")


def test_a_table_has_a_row_for_each_run(twin, runs, tmp_path):
    together = xdan.score(twin, runs)
    table = together.to_pandas()
    assert table.index.tolist() == list(runs)
    assert table["crps_of"].tolist() == ["members", "Gaussian", ""]
    assert np.isnan(table.loc["plain", "crps"])
    assert np.isnan(table.loc["plain", "spread"])
    assert table.loc["plain", "mean_absolute_error"] == table.loc["spread", "mean_absolute_error"]
    assert together.crps.attrs["long_name"] == "continuous ranked probability score"
    assert together.attrs["title"] == "scores of several runs"
    assert together.attrs["cycles"] == 96
    together.to_zarr(tmp_path / "scores.zarr", consolidated=False)
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "scores.zarr", consolidated=False).load(), together)


def test_verdicts_take_several_runs(twin, ensemble):
    runs = {"one": ensemble, "two": ensemble.assign(members=ensemble.members + 0.3, spread=2 * ensemble.spread)}
    verbs = (
        lambda run: xdan.rank_histogram(twin, run),
        lambda run: xdan.spread_error(twin, run, bins=3),
        lambda run: xdan.reliability(twin, run, threshold=2.0, bins=4),
    )
    for verb in verbs:
        together = verb(runs)
        for name, run in runs.items():
            xr.testing.assert_allclose(together.sel({"method": name}, drop=True), verb(run))
    with pytest.raises(ValueError, match=r"the runs have \{'one': 5, 'few': 2\} members: expected as many in each"):
        xdan.rank_histogram(twin, {"one": ensemble, "few": ensemble.isel(member=[0, 1])})


def test_the_record_is_read_once_for_all(twin, runs):
    reads = []

    def read(block, block_info=None):
        if block_info:
            reads.append(block_info[0]["chunk-location"])
        return block

    def counted(name):
        array = da.from_array(twin[name].values, chunks=(2, 8, -1))
        array = array.map_blocks(read, dtype=float, meta=np.empty((0,) * 3))
        return twin[name].copy(data=array)

    ds = twin.assign(truth=counted("truth"), observation=counted("observation"))
    xdan.score(ds, runs).compute()
    assert len(reads) == 2 * 2 * 3  # two variables in 2 x 3 blocks


def test_warnings_name_the_run_and_tell_of_the_record_once(twin, run, net):
    wild = twin.copy(deep=True)
    wild.observation[1, 10] = 1e12
    lost = xdan.cycle(wild, net)
    with pytest.warns(xdan.XdanWarning, match="run 'lost': scores are not finite: 1 of 4 trajectories") as told:
        together = xdan.score(wild, {"kept": run, "lost": lost})
    assert len(told) == 1
    assert np.isfinite(together.rmse[0])
    assert together.diverged.values.tolist() == [0, 1]
    lazy = xdan.score(wild.chunk(), {"kept": run, "lost": lost})
    with pytest.warns(xdan.XdanWarning, match="run 'lost': scores are not finite: 1 of 4"):
        lazy.rmse.compute()


@pytest.mark.filterwarnings("default:the truth does not follow:xdan.XdanWarning")
def test_another_truth_is_told_once(twin, run):
    other = twin.truth + xr.DataArray(np.arange(24) % 2, dims="time")
    ds = twin.assign(truth=other)
    with pytest.warns(xdan.XdanWarning, match="^the truth does not follow") as told:
        xdan.score(ds, {"one": run, "two": run})
    assert len(told) == 1


WRONG = {
    "none": ({}, ValueError, r"run=\{\}: expected a mapping of names to runs"),
    "a number": ({1: None}, TypeError, "run has the name 1: expected words"),
    "no word": ({"": None}, TypeError, "run has the name '': expected words"),
    "no run": ({"a": 3}, TypeError, "run 'a' is a int: expected the Dataset"),
}


@pytest.mark.parametrize("label", WRONG)
def test_wrong_mappings_are_named(twin, label):
    runs, error, message = WRONG[label]
    for verb in (xdan.score, xdan.rank_histogram, xdan.spread_error):
        with pytest.raises(error, match=message):
            verb(twin, runs)


def test_the_run_that_does_not_fit_is_named(twin, run):
    with pytest.raises(ValueError, match="run 'late' and record differ in time"):
        xdan.score(twin, {"good": run, "late": run.assign_coords(time=run.time + 1)})
    with pytest.raises(ValueError, match=r"the run 'bare' lacks \['forecast'\]"):
        xdan.score(twin, {"bare": run.drop_vars("forecast")})
