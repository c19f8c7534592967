"""Small records by name: what the table says of them, verbs on each, and the same bits from every chunking."""

import dask
import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.assimilation.tutorials import _RECORDS

NAMES = list(_RECORDS)


@pytest.fixture(scope="module")
def records():
    return {name: xdan.tutorial(name) for name in NAMES}


def test_the_table_says_what_the_records_are(records):
    table = xdan.tutorials()
    assert list(table.index) == NAMES
    for name, row in table.iterrows():
        ds = records[name]
        assert row.what.endswith(".")
        assert row.trajectories == ds.sizes.get("trajectory", 1)
        truths = [ds[one].isel(time=0) for one in ds if str(one).startswith("truth")]
        assert row.sites == sum(truth.size for truth in truths) / row.trajectories
        assert f'"{xdan.models().query("`class` == @row.model").index[0]}"' in ds.attrs["dynamics"]
        if name != "dates":
            assert row.cycles == ds.sizes["time"]


# The root of the mean square error of the analyses, as parts of the deviation of the truth.
MOST = {
    "lorenz96": ("enkf-n", {"members": 20}, 0.08),
    "wrong-model": ("enkf-n", {"members": 20}, 0.25),
    "dates": ("enkf-n", {"members": 20}, 0.15),
    "two-fields": ("etkf", {"members": 40, "inflation": 1.05}, 0.05),
    "lorenz63": ("enkf-n", {"members": 8}, 0.06),
}


@pytest.mark.parametrize("name", MOST)
def test_a_baseline_follows_the_truth(name, records):
    ds = records[name]
    method, parameters, most = MOST[name]
    scores = ds.dan.score(ds.dan.baseline(method, progress=False, **parameters), burn_in=60)
    rmse = float(scores.rmse.sel(field="U") if name == "two-fields" else scores.rmse)
    truth = ds.truth_U if name == "two-fields" else ds.truth
    assert rmse < most * float(truth.std())
    assert rmse < 0.6 * float(ds.get("observation_error", ds.get("observation_error_U")).max())


@pytest.mark.parametrize(
    ("name", "most"), [("lorenz96", 0.25), ("lorenz96-sparse", 1.1), ("kuramoto-sivashinsky", 0.2)]
)
def test_the_trained_network_of_the_name_fits(name, most, records):
    ds = records[name]
    run = ds.dan.cycle(xdan.open_network(name), progress=False)
    assert float(ds.dan.score(run, burn_in=60).rmse) < most


def test_a_wrong_model_costs_accuracy(records):
    ds = records["wrong-model"]
    model = xdan.Lorenz96(forcing=9.0)
    wrong, right = (
        ds.dan.score(ds.dan.baseline("enkf-n", members=20, progress=False, **words), burn_in=60, **words).rmse
        for words in ({}, {"dynamics": model})
    )
    assert float(wrong) > 2 * float(right)


def test_what_is_missing(records):
    sparse, dated = records["lorenz96-sparse"].observation, records["dates"]
    assert (sparse.notnull().all(["trajectory", "time"]) == (sparse.x % 4 == 0)).all()
    counts = dated.observation.notnull().sum("x")
    assert (int(counts.min()), int(counts.max())) == (32, 40)
    gaps = np.diff(dated.time.values)
    assert sorted(set(gaps.astype("m8[h]").astype(int))) == [6, 30 * 24 + 6]
    assert "observation_V" not in records["two-fields"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_again_and_with_other_chunks(name, records, monkeypatch):
    made = xdan.twin

    def other_chunks(*args, **words):
        return made(*args, **words, chunks={"trajectory": 3, "time": 70})

    monkeypatch.setattr("xdan.assimilation.tutorials.twin", other_chunks)
    with dask.config.set(scheduler="threads"):
        again = xdan.tutorial(name)
    xr.testing.assert_identical(again, records[name])
    assert not any(variable.chunks for variable in again.variables.values())


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("lorenz-96", ValueError, r"'lorenz-96' is no record: expected one of \['lorenz96'.*, perhaps 'lorenz96'"),
        ("", ValueError, "is no record"),
        (96, TypeError, "expected one of the names"),
        (None, TypeError, "expected one of the names"),
    ],
)
def test_other_names_are_refused(name, error, words):
    with pytest.raises(error, match=words):
        xdan.tutorial(name)
