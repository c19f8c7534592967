"""Runs with a backward pass: lazy, in memory, into stores, for any chunks; broken off and taken up."""

import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import xdan
from xdan.core.methods import smoothing
from xdan.records.streams import Stream

ETKF = {"members": 5, "inflation": 1.05, "keep_members": True, "smooth": True, "progress": False}
KALMAN = {"c2": 2.0, "keep_members": True, "smooth": True, "progress": False}
CASES = {"etkf": ETKF, "second-order-kalman": KALMAN}
SMOOTHED = {"etkf": "smoothed_members", "second-order-kalman": "smoothed_covariance"}
CLOSE = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def record(twin):
    """Twelve cycles, of which two are not observed at all, and one trajectory lacks more."""
    ds = twin.isel(time=slice(12)).copy(deep=True)
    ds.observation[:, 5:7] = np.nan
    ds.observation[1, 3:5] = np.nan
    return ds


@pytest.fixture(scope="module", params=CASES)
def case(request, record):
    return request.param, CASES[request.param], record.dan.baseline(request.param, **CASES[request.param])


def test_what_a_smoothed_run_holds(case, record):
    name, _, run = case
    assert run.smoothed.dims == record.truth.dims
    assert run.smoothed.units == run.smoothed_spread.units == run.analysis.units
    assert run.smoothed.long_name == "estimate of the state from the observations of all times"
    assert run.attrs["smoothed_by"] == "a backward pass: observations of all times"
    assert SMOOTHED[name] in run
    assert bool(run[["smoothed", "smoothed_spread", SMOOTHED[name]]].notnull().all().to_array().all())
    plain = record.dan.baseline(name, **{**CASES[name], "smooth": False})
    xr.testing.assert_identical(run[list(plain.data_vars)].drop_attrs(), plain.drop_attrs())
    assert "smoothed_by" not in plain.attrs
    members = run.get("smoothed_members")
    if members is not None:
        np.testing.assert_allclose(members.mean("member"), run.smoothed, **CLOSE)
        np.testing.assert_allclose(members.std("member", ddof=1), run.smoothed_spread, **CLOSE)


def test_smoothed_states_are_closer_to_the_truth(twin):
    run = twin.dan.baseline("enkf-n", members=8, smooth=True)
    error = np.sqrt(((run[["analysis", "smoothed"]] - twin.truth) ** 2).isel(time=slice(4, 18)).mean())
    assert float(error.smoothed) < 0.75 * float(error.analysis)


@settings(max_examples=2)
@given(rows=st.integers(1, 4), columns=st.integers(1, 12), small=st.booleans())
def test_any_chunks_give_the_same(case, record, rows, columns, small):
    name, options, whole = case
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(smoothing, "BYTES", 1 if small else 1 << 28)
        run = record.chunk(trajectory=rows, time=columns).dan.baseline(name, **options)
        assert run.smoothed.chunks[:2] == record.chunk(trajectory=rows, time=columns).observation.chunks[:2]
        xr.testing.assert_allclose(run.compute(), whole, **CLOSE)


def test_nothing_is_computed_early(record, computed):
    run = record.chunk(trajectory=2, time=4).dan.baseline("etkf", **ETKF)
    assert computed.calls == 0
    assert dask.is_dask_collection(run)


def stored(record, store, case):
    name, options, _ = case
    return record.chunk(trajectory=2, time=4).dan.baseline(name, store=store, **options)


def test_a_store_holds_the_same(case, record, tmp_path):
    run = stored(record, tmp_path / "run", case)
    xr.testing.assert_allclose(run.compute(), case[2], **CLOSE)
    assert run.attrs == case[2].attrs
    assert "xdan_resume" not in zarr.open_group(tmp_path / "run", mode="r")


@pytest.mark.parametrize("blow", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_broken_backward_pass_goes_on(case, record, tmp_path, blow, monkeypatch):
    """Three blocks in time of two rows: the two passes make six blocks each."""
    expected = stored(record, tmp_path / "whole", case)
    real, calls = Stream.write_back, []

    def breaking(self, *args):
        calls.append(args[:2])
        if len(calls) == blow:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "write_back", breaking)
        with pytest.raises(KeyboardInterrupt):
            stored(record, tmp_path / "run", case)
    resume = zarr.open_group(tmp_path / "run", path="xdan_resume", mode="r")
    done = [int(n) for n in resume["smoothed"][:]]
    assert sum(done) in (blow - 1, blow - 2)  # of two tasks side by side the other may be done
    # What is smoothed needs its start no more; the others have theirs.
    for row, count in enumerate(done):
        held = {int(key) for key in resume[f"carry/{row}"]}
        assert held >= set(range(1, 3 - count))
        assert not held & set(range(max(1, 3 - count), 3))
    with pytest.raises(ValueError, match="unfinished"):
        record.dan.score(xr.open_zarr(tmp_path / "run", consolidated=False))
    written = []
    monkeypatch.setattr(Stream, "write", lambda *_: pytest.fail("the forward pass was made again"))
    monkeypatch.setattr(Stream, "write_back", lambda self, *args: (written.append(args[:2]), real(self, *args))[1])
    run = stored(record, tmp_path / "run", case)
    assert len(written) == 6 - sum(done)
    xr.testing.assert_identical(run.load(), expected.load())


def test_a_broken_forward_pass_goes_on(record, tmp_path, monkeypatch):
    case = ("etkf", ETKF, None)
    expected = stored(record, tmp_path / "whole", case)
    real, calls = Stream.write, []

    def breaking(self, *args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "write", breaking)
        with pytest.raises(KeyboardInterrupt):
            stored(record, tmp_path / "run", case)
    with pytest.raises(FileExistsError, match="another method, record or setting"):
        stored(record, tmp_path / "run", ("etkf", {**ETKF, "smooth": False}, None))
    xr.testing.assert_identical(stored(record, tmp_path / "run", case).load(), expected.load())


def test_a_run_of_before_the_spread_goes_on_without_it(record, tmp_path, monkeypatch):
    """An unfinished store of an earlier version lacks an array that the method gives now."""
    options = {"members": 5, "lag": 2, "progress": False, "store": tmp_path / "run"}
    ds, real, calls = record.chunk(time=4), Stream.write, []

    def breaking(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Stream, "write", breaking)
        with pytest.raises(KeyboardInterrupt):
            ds.dan.baseline("ienks-n", **options)
    del zarr.open_group(tmp_path / "run", mode="r+")["smoothed_spread"]
    with pytest.warns(xdan.XdanWarning, match=r"an earlier version, which kept no \['smoothed_spread'\]"):
        run = ds.dan.baseline("ienks-n", **options)
    whole = record.dan.baseline("ienks-n", members=5, lag=2)
    assert "smoothed_spread" not in run
    np.testing.assert_allclose(run.smoothed, whole.smoothed, **CLOSE)


@pytest.mark.parametrize(
    ("name", "parameters"), [("ienks-n", {"members": 8}), ("iterated-kalman-smoother", {"c2": 2.0})]
)
def test_windowed_methods_give_the_spread_of_the_smoothed_state(twin, name, parameters):
    run = twin.dan.baseline(name, lag=3, **parameters)
    assert bool((run.smoothed_spread.isnull() == run.smoothed.isnull()).all())
    settled = run.isel(time=slice(6, 20))
    assert 0.2 < float(settled.smoothed_spread.mean() / settled.spread.mean()) < 0.95
    assert run.attrs["smoothed_by"] == "the method's lag: observations of up to 3 later times"


def test_several_fields(tmp_path):
    model = xdan.TwoScaleLorenz96()
    ds = xdan.twin(model, interval=0.01, cycles=5, trajectories=2, observe={"U": xdan.Sites.all()}, seed=1).compute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xdan.XdanWarning)
        run = ds.dan.baseline("etkf", members=4, smooth=True, keep_members=True)
    for field in model.space.names:
        assert run[f"smoothed_{field}"].dims == ds[f"truth_{field}"].dims
        assert "member" in run[f"smoothed_members_{field}"].dims


def test_restarts_and_gaps(record):
    run = record.dan.baseline("etkf", members=5, inflation=1.05, smooth=True, restart_after=0.07)
    assert bool(run.restarted.any())
    last = run.restarted.shift(time=-1, fill_value=True)
    same = abs(run.smoothed - run.analysis).max("x") < 1e-12
    assert bool(same.where(last, True).all())
    assert not bool(same.isel(time=slice(0, 2)).any())


def test_what_is_refused(record, net, tmp_path):
    for name, parameters in (("ienks-n", {"lag": 2}), ("enks", {"lag": 2})):
        with pytest.raises(ValueError, match="smooths by its lag already"):
            record.dan.baseline(name, smooth=True, store=tmp_path / "run", **parameters)
    with pytest.raises(ValueError, match="a network with a single forecast has no covariance"):
        record.dan.cycle(net, smooth=True)
    with pytest.raises(TypeError, match="smooth="):
        record.dan.baseline("etkf", smooth="yes")
    assert not Path(tmp_path / "run").exists()

    class Own(xdan.EnsembleMethod):
        name = "own"
        outputs = (*xdan.EnsembleMethod.outputs, xdan.Output("smoothed_spread", "something", "state"))

        def __init__(self):
            super().__init__(4)

        def analyse(self, state, observation, observed, observing):
            return {"x": state["x"]}

    with pytest.raises(ValueError, match="declares the outputs \\['smoothed_spread'\\]"):
        record.dan.cycle(Own(), smooth=True)
