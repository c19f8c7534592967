"""Numbers of formats: what an xdan reads, refuses, and leaves as it is."""

import numpy as np
import pytest
import xarray as xr
import zarr

import xdan
from xdan.core.formats import FORMAT, FORMATS, LaterFormatError, data_format, read_format
from xdan.records.checkpoint import Checkpoint
from xdan.records.store import read_arrays, write_arrays
from xdan.records.streams import Stream
from xdan.sweeps.cell_store import CellStore

LATER = 99


@pytest.mark.parametrize("kind", FORMATS)
def test_every_number_up_to_the_newest_is_read(kind):
    newest = FORMATS[kind]
    assert [read_format(kind, stated, "it") for stated in (None, *range(1, newest + 1))] == [1, *range(1, newest + 1)]
    assert read_format(kind, np.int64(newest), "it") == newest  # as netCDF gives it
    with pytest.raises(
        LaterFormatError, match=rf"it has {kind} format {newest + 1}, .* at most {newest}, .*update xdan"
    ):
        read_format(kind, newest + 1, "it")


@pytest.mark.parametrize("stated", [0, -1, 1.0, True, "2", [1], float("nan")])
def test_what_is_no_number_of_a_format_is_refused(stated):
    with pytest.raises(ValueError, match=r"the run has data format .*: expected a whole number from 1 to"):
        data_format({FORMAT: stated}, "the run")


@pytest.fixture(scope="module")
def ds():
    return xdan.twin(xdan.Lorenz96(sites=8), cycles=12, trajectories=2, seed=0).compute()


@pytest.fixture(scope="module")
def run(ds):
    return ds.dan.baseline("etkf", members=5, keep_members=True, inflation=1.1)


def later(made):
    return made.assign_attrs({FORMAT: LATER})


def test_results_have_the_number_and_none_is_needed(ds, run):
    with pytest.warns(xdan.XdanWarning, match="has not converged"):
        estimate = ds.dan.estimate_errors(model_error=0.5, iterations=1, progress=False)
    for made in (ds, run, ds.dan.forecast(run, lead=0.1), estimate):
        assert made.attrs[FORMAT] == FORMATS["data"]
    bare, before = ds.drop_attrs(deep=False), run.drop_attrs(deep=False)
    xr.testing.assert_equal(bare.dan.score(before, dynamics=xdan.Lorenz96(sites=8)), ds.dan.score(run))


READERS = {
    "record": lambda ds, run: later(ds).dan.baseline("3d-var", scale=0.1),
    "run": lambda ds, run: ds.dan.score(later(run)),
    "runs": lambda ds, run: ds.dan.score({"now": run, "later": later(run)}),
    "members": lambda ds, run: xdan.ensemble_covariance(later(run)),
    "spread": lambda ds, run: xdan.draw_members(later(run), 3),
    "teacher": lambda ds, run: ds.dan.train(teacher=later(run), objective="mse", steps=1, progress=False),
    "forecasts": lambda ds, run: ds.dan.score_forecasts(later(ds.dan.forecast(run, lead=0.1))),
    "covariance": lambda ds, run: xdan.covariance_spectrum(later(xdan.ensemble_covariance(run))),
    "estimate": lambda ds, run: xdan.estimate_of(later(xr.Dataset({"a": ("iteration", [1.0]), "a_estimate": 1.0}))),
    "cube": lambda ds, run: xdan.scaling_law(later(xr.Dataset({"rmse": (("trajectories", "batch"), np.ones((3, 3)))}))),
}


@pytest.mark.parametrize("reader", READERS)
def test_later_data_is_refused(ds, run, reader):
    with pytest.raises(LaterFormatError, match=r"has data format 99, which a later xdan wrote: .*; update xdan"):
        READERS[reader](ds, run)


def test_later_network_and_dynamics_are_refused(tmp_path):
    net = xdan.open_network("lorenz96")
    write_arrays(tmp_path / "net", "", net.arrays, {**net.description, "format": LATER})
    with pytest.raises(LaterFormatError, match=r"net has network format 99, .*; update xdan"):
        xdan.open_network(tmp_path / "net")
    model = xdan.CorrectedDynamics(xdan.Lorenz96(sites=8), xdan.LocalPolynomial())
    xdan.save_dynamics(model, tmp_path / "model")
    arrays, description = read_arrays(tmp_path / "model", "")
    write_arrays(tmp_path / "later", "", arrays, {**description, "format": LATER})
    with pytest.raises(LaterFormatError, match=r"later has dynamics format 99, .*; update xdan"):
        xdan.open_dynamics(tmp_path / "later")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_later_checkpoint_is_refused_and_an_earlier_one_read(tmp_path, monkeypatch):
    saved = {"net/w": np.arange(3.0), "step": np.array(4)}
    with monkeypatch.context() as patch:
        patch.setattr("xdan.records.checkpoint.FORMATS", {"checkpoint": LATER})
        Checkpoint(tmp_path / "later", {"steps": 3}).save(saved, {})
    with pytest.raises(LaterFormatError, match=r"later has checkpoint format 99, .*; update xdan"):
        Checkpoint(tmp_path / "later", {"steps": 3}).load()
    # Format 1 kept each array by itself, and no number.
    Checkpoint(tmp_path / "first", {"steps": 3}).save({}, {})
    group = zarr.open_group(tmp_path / "first", mode="r+")
    group.attrs["xdan_checkpoint"] = '{"steps": 3}'
    old, scalars = {"net.w": saved["net/w"], "step": saved["step"]}, {"_names": ["net/w", "step"], "count": 7}
    write_arrays(tmp_path / "first", f"slot{group.attrs['latest']}", old, scalars)
    arrays, scalars = Checkpoint(tmp_path / "first", {"steps": 3}).load()
    assert scalars == {"count": 7}
    assert arrays.keys() == saved.keys()
    np.testing.assert_array_equal(arrays["net/w"], saved["net/w"])


def test_unfinished_run_of_a_later_xdan_is_left_alone(ds, tmp_path):
    store, words = tmp_path / "run", {"inflation": 1.1, "members": 5, "progress": False}

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            ds.dan.baseline("etkf", store=store, **words)
    assert zarr.open_group(store, mode="r").attrs[FORMAT] == FORMATS["data"]
    zarr.open_group(store, mode="r+").attrs[FORMAT] = LATER
    before = files(store)
    with pytest.raises(LaterFormatError, match=r"unfinished run in .* has data format 99, .*; update xdan"):
        ds.dan.baseline("etkf", store=store, **words)
    assert files(store) == before
    made = ds.dan.baseline("etkf", store=store, mode="w", **words)
    assert made.attrs[FORMAT] == FORMATS["data"]


def test_sweep_of_a_later_xdan_is_left_alone(tmp_path):
    schemes = {"3D-Var": {"baseline": "3d-var", "scale": 0.1}}
    words = {"cycles": 4, "trajectories": 2, "burn_in": 1, "progress": False, "store": tmp_path / "sweep"}
    cube = xdan.sweep(xdan.Lorenz96(sites=8), schemes, **words)
    assert cube.attrs[FORMAT] == FORMATS["data"]
    zarr.open_group(tmp_path / "sweep", mode="r+").attrs[FORMAT] = LATER
    before = files(tmp_path / "sweep")
    with pytest.raises(LaterFormatError, match=r"the sweep in .* has data format 99, .*; update xdan"):
        xdan.sweep(xdan.Lorenz96(sites=8), schemes, **words)
    assert files(tmp_path / "sweep") == before


def test_a_sweep_keeps_the_network_of_a_later_xdan(tmp_path):
    """It is not damaged: it would be a loss to train it again."""
    net = xdan.open_network("lorenz96")
    write_arrays(tmp_path / "networks" / "key", "", net.arrays, {**net.description, "format": LATER})
    store = CellStore(tmp_path / "sweep", {"schemes": {}})
    before = files(tmp_path)
    with pytest.raises(LaterFormatError, match="network format 99"):
        store._kept(tmp_path / "networks" / "key", None)
    assert files(tmp_path) == before
