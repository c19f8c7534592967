"""Sweeps: cells, sharing, resuming, failing."""

import json
import logging
import shutil
import signal
import time
from dataclasses import replace

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr
import zarr

import xdan
from xdan.core.progress import Bar
from xdan.core.twin import TwinExperiment
from xdan.sweeps import cells, schemes
from xdan.sweeps.plan import SweepPlan

TINY = {"network": "residual-cnn", "filters": 4, "blocks": 1, "kernel": 3, "steps": 4, "window": 4, "batch": 2}
TIMED = ["seconds", "training_seconds"]
SIZES = {"cycles": 12, "trajectories": 3, "burn_in": 2, "progress": False}


@pytest.fixture
def model():
    return xdan.Lorenz96(sites=8)


@pytest.fixture
def counted(monkeypatch):
    """Counts trainings and tests."""
    counts = {"train": 0, "score": 0}
    for name in counts:
        method = getattr(cells.Cell, name)

        def counting(self, *args, _name=name, _method=method):
            counts[_name] += 1
            return _method(self, *args)

        monkeypatch.setattr(cells.Cell, name, counting)
    return counts


def test_a_cell_is_the_experiment_by_hand(model, tmp_path):
    cube = xdan.sweep(
        model,
        {"EnKF-N": {"baseline": "enkf-n", "members": 5}, "DAN": TINY},
        {"interval": [0.05, 0.1], "forcing": [6.0]},
        seeds=2,
        store=tmp_path / "sweep.zarr",
        **SIZES,
    )
    assert cube.rmse.dims == ("scheme", "interval", "forcing", "seed")
    assert dict(cube.sizes) == {"scheme": 2, "interval": 2, "forcing": 1, "seed": 2}
    other = xdan.Lorenz96(sites=8, forcing=6.0)
    test = xdan.twin(other, interval=0.1, cycles=12, trajectories=3, seed=1_000_001).compute()
    place = {"interval": 0.1, "forcing": 6.0, "seed": 1}
    run = test.dan.baseline("enkf-n", members=5, seed=1)
    assert float(cube.rmse.sel(scheme="EnKF-N", **place)) == float(test.dan.score(run, burn_in=2).rmse)
    settings = {key: TINY[key] for key in ("steps", "window", "batch")}
    network = xdan.ResidualCNN(filters=4, blocks=1, kernel=3)
    net = xdan.train(TwinExperiment(other, interval=0.1), network, seed=1, progress=False, **settings)
    score = test.dan.score(test.dan.cycle(net), burn_in=2)
    assert float(cube.rmse.sel(scheme="DAN", **place)) == float(score.rmse)
    assert float(cube.validation_rmse.sel(scheme="DAN", **place)) == net.description["training"]["validation_rmse"]
    assert cube.rmse.attrs["units"] == "1"
    assert cube.interval.attrs == {"long_name": "interval between analyses", "units": "model time"}
    assert np.isfinite(cube.rmse).all()


def test_cubes_of_schemes_with_and_without_a_crps_join(model, tmp_path):
    with_spread, without = {"EnKF-N": {"baseline": "enkf-n", "members": 5}}, {"4D-Var": {"baseline": "4d-var"}}
    first = xdan.sweep(model, with_spread, store=tmp_path / "with.zarr", **SIZES)
    second = xdan.sweep(model, without, store=tmp_path / "without.zarr", **SIZES)
    together = xr.concat([first, second], "scheme", combine_attrs="drop_conflicts")
    assert together.crps_of.values.tolist() == ["Gaussian", ""]
    assert np.isfinite(together.crps.values[:, 0]).tolist() == [True, False]


def test_what_is_there_is_not_computed_again(model, tmp_path, counted):
    schemes = {"EnKF-N": {"baseline": "enkf-n", "members": 5}}
    first = xdan.sweep(model, schemes, {"error_std": [0.5, 1.0]}, store=tmp_path / "s", **SIZES)
    assert counted["score"] == 2
    again = xdan.sweep(model, schemes, {"error_std": [0.5, 1.0]}, store=tmp_path / "s", **SIZES)
    assert counted["score"] == 2
    xr.testing.assert_identical(first, again)
    assert first.rmse.chunks is None  # what the store holds later is another cube
    longer = xdan.sweep(
        model,
        {**schemes, "ETKF": {"baseline": "etkf", "members": 5, "inflation": 1.1}},
        {"error_std": [0.5, 1.0, 2.0]},
        seeds=2,
        store=tmp_path / "s",
        **SIZES,
    )
    assert counted["score"] == 12
    xr.testing.assert_equal(longer.rmse.sel(scheme=["EnKF-N"], error_std=[0.5, 1.0], seed=[0]), first.rmse)
    opened = xr.open_zarr(tmp_path / "s", consolidated=False)
    xr.testing.assert_identical(opened.load(), longer)


def test_values_that_replace_others_change_no_cube_at_hand(model, tmp_path):
    schemes = {"EnKF-N": {"baseline": "enkf-n", "members": 5}}
    first = xdan.sweep(model, schemes, {"error_std": [0.5, 1.0]}, store=tmp_path / "s", **SIZES)
    before = first.rmse.values.copy()
    xdan.sweep(model, schemes, {"error_std": [2.0, 3.0]}, store=tmp_path / "s", **SIZES)
    np.testing.assert_array_equal(first.rmse.values, before)


@pytest.mark.parametrize("checkpoint", ["of another run", "of nothing"])
def test_a_checkpoint_that_is_of_no_use_is_left_behind(model, tmp_path, checkpoint):
    whole = xdan.sweep(model, {"DAN": TINY}, store=tmp_path / "whole", **SIZES)
    (key,) = (path.name for path in (tmp_path / "whole" / "networks").glob("*") if path.is_dir())
    folder = tmp_path / "s" / "networks" / f"{key}.checkpoint"
    if checkpoint == "of nothing":
        folder.mkdir(parents=True)
        (folder / "zarr.json.partial").write_text("{")
    else:
        xdan.train(model, "residual-cnn", steps=2, window=2, batch=2, checkpoint=folder, progress=False)
    zarr.open_group(tmp_path / "s", mode="a", attributes=dict(zarr.open_group(tmp_path / "whole").attrs))
    cube = xdan.sweep(model, {"DAN": TINY}, store=tmp_path / "s", **SIZES)
    xr.testing.assert_identical(cube.drop_vars(TIMED), whole.drop_vars(TIMED))
    assert not folder.exists()


@pytest.mark.slow
def test_a_cell_travels_light(model, monkeypatch, quick):
    """Architectures without weights; a trained network once, whatever the number of its cells."""
    net = xdan.train(model, xdan.ResidualCNN(filters=32), **quick)
    schemes = {"own": {"network": xdan.ResidualCNN(filters=80)}, "mine": {"network": net}}
    cube = xdan.sweep(model, schemes, {"error_std": [0.5, 1.0]}, seeds=50, **SIZES)
    sizes = sorted(len(cloudpickle.dumps(task)) for task in dict(cube.__dask_graph__()).values())
    assert len(sizes) > 300
    assert sizes[-2] < 6000  # bytes; the last is the network that was given
    assert sizes[-1] > 100_000


def test_shared_networks_are_trained_once(model, tmp_path, counted):
    axes = {"sites": [8, 12, 16]}
    schemes = {"transferred": {**TINY, "trained_on": {"sites": 8}}, "retrained": TINY}
    cube = xdan.sweep(model, schemes, axes, store=tmp_path / "s", **SIZES)
    assert counted == {"train": 3, "score": 5}
    # On eight sites both were trained alike.
    assert float(cube.rmse[0, 0, 0]) == float(cube.rmse[1, 0, 0])
    assert float(cube.rmse[0, 2, 0]) != float(cube.rmse[1, 2, 0])


def test_a_scheme_is_the_same_along_axes_that_are_not_its_own(model, tmp_path, counted):
    schemes = {"EnKF-N": {"baseline": "enkf-n", "members": 5}, "DAN": TINY}
    cube = xdan.sweep(model, schemes, {"filters": [4, 6]}, store=tmp_path / "s", **SIZES)
    assert counted == {"train": 2, "score": 3}
    assert float(cube.rmse[0, 0, 0]) == float(cube.rmse[0, 1, 0])


def test_lazy_without_a_store(model, counted):
    cube = xdan.sweep(model, {"DAN": TINY}, {"window": [2, 4]}, **SIZES)
    assert counted == {"train": 0, "score": 0}
    assert cube.rmse.chunks is not None
    assert np.isfinite(cube.rmse.compute()).all()
    assert counted == {"train": 2, "score": 2}


@pytest.mark.filterwarnings("ignore:the network is used out of the setting")
@pytest.mark.filterwarnings("ignore:.* trajectories have lost the truth")
def test_a_trained_network_is_tested_only(model, tmp_path, counted, quick):
    net = xdan.train(model, xdan.ResidualCNN(filters=4, blocks=1), **quick)
    counted["train"] = 0
    cube = xdan.sweep(model, {"mine": {"network": net}}, {"error_std": [0.5, 1.0]}, store=tmp_path / "s", **SIZES)
    assert counted == {"train": 0, "score": 2}
    assert np.isfinite(cube.rmse).all()
    architecture = {"network": xdan.ResidualCNN(filters=4, blocks=1), "steps": 4, "batch": 2, "window": 4}
    wide = xdan.sweep(model, {"own": architecture}, {"filters": [4, 5]}, **SIZES)
    assert wide.sizes["filters"] == 2


def test_axes_of_observing_networks_have_labels(model, tmp_path):
    axes = {"observe": {"all": xdan.Sites.all(), "every other": xdan.Sites.every(2)}}
    cube = xdan.sweep(model, {"3D-Var": {"baseline": "3d-var", "scale": 0.1}}, axes, store=tmp_path / "s", **SIZES)
    assert cube.observe.values.tolist() == ["all", "every other"]
    assert float(cube.rmse.sel(observe="all").squeeze()) < float(cube.rmse.sel(observe="every other").squeeze())
    unnamed = xdan.sweep(
        model, {"3D-Var": {"baseline": "3d-var", "scale": 0.1}}, {"observe": [xdan.Sites.all()]}, **SIZES
    )
    assert json.loads(str(unnamed.observe.values[0]))["parameters"] == {"kind": "all"}


def test_labels_are_numbers_or_names(model, tmp_path):
    schemes = {"OI": {"baseline": "optimal-interpolation"}}
    axes = {"observe": {4: xdan.Sites.random(4), "all": xdan.Sites.all()}}
    cube = xdan.sweep(model, schemes, axes, store=tmp_path / "s", **SIZES)
    assert cube.observe.values.tolist() == ["4", "all"]
    with pytest.raises(ValueError, match="axis 'observe' has a value twice"):
        xdan.sweep(model, schemes, {"observe": {4: xdan.Sites.all(), "4": xdan.Sites.all()}}, **SIZES)
    with pytest.raises(TypeError, match=r"axis 'observe' has the labels \[\(4,\)\]: expected numbers or names"):
        xdan.sweep(model, schemes, {"observe": {(4,): xdan.Sites.all()}}, **SIZES)


@pytest.fixture
def windy(monkeypatch):
    """Every training fails."""

    def failing(*_):
        raise FloatingPointError("too windy")

    monkeypatch.setattr(schemes, "fit", failing)


def test_a_failure_without_a_store_is_told(model, windy):
    cube = xdan.sweep(model, {"DAN": TINY}, **SIZES)
    with pytest.warns(xdan.XdanWarning, match="a cell failed: FloatingPointError: too windy"):
        assert cube.failed.compute(scheduler="synchronous").values.tolist() == [[1.0]]


def test_failures_are_kept_and_the_others_go_on(model, tmp_path, monkeypatch, counted):
    score_of_cell = cells.Cell.score

    def failing(self, network):
        if self.experiment.error_std == 2.0:
            raise FloatingPointError("too windy")
        return score_of_cell(self, network)

    schemes = {"EnKF-N": {"baseline": "enkf-n", "members": 5}}
    axes = {"error_std": [1.0, 2.0, 3.0]}
    with monkeypatch.context() as m:
        m.setattr(cells.Cell, "score", failing)
        cube = xdan.sweep(model, schemes, axes, store=tmp_path / "s", **SIZES)
    assert cube.failed.values.ravel().tolist() == [0, 1, 0]
    assert np.isnan(cube.rmse.values.ravel()).tolist() == [False, True, False]
    assert json.loads(cube.attrs["errors"]) == ["FloatingPointError: too windy"]
    before = counted["score"]
    still = xdan.sweep(model, schemes, axes, store=tmp_path / "s", **SIZES)
    assert counted["score"] == before
    xr.testing.assert_identical(cube, still)
    mended = xdan.sweep(model, schemes, axes, store=tmp_path / "s", retry=True, **SIZES)
    assert counted["score"] == before + 1
    assert mended.failed.sum() == 0


def test_a_training_that_fails_is_kept_too(model, tmp_path, windy):
    cube = xdan.sweep(model, {"DAN": TINY}, store=tmp_path / "s", **SIZES)
    assert cube.failed.values.tolist() == [[1.0]]
    assert json.loads(cube.attrs["errors"]) == ["FloatingPointError: too windy"]


def test_a_sweep_cut_short_is_taken_up(model, tmp_path, counted, monkeypatch):
    schemes = {"DAN": TINY}
    axes = {"window": [2, 3, 4]}
    whole = xdan.sweep(model, schemes, axes, store=tmp_path / "whole", **SIZES)
    score_of_cell = cells.Cell.score

    begun = []

    def interrupted(self, network):
        begun.append(self)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return score_of_cell(self, network)

    with monkeypatch.context() as m:
        m.setattr(cells.Cell, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            xdan.sweep(model, schemes, axes, store=tmp_path / "s", **SIZES)
    done = len(list((tmp_path / "s" / "cells").glob("*/zarr.json")))
    assert done == 2
    before = counted["score"]
    resumed = xdan.sweep(model, schemes, axes, store=tmp_path / "s", **SIZES)
    assert counted["score"] - before == 3 - done
    xr.testing.assert_identical(resumed.drop_vars(TIMED), whole.drop_vars(TIMED))


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("distributed", marks=pytest.mark.slow)])
def test_any_scheduler_gives_the_same(model, tmp_path, scheduler):
    schemes, axes = {"DAN": TINY, "EnKF-N": {"baseline": "enkf-n", "members": 5}}, {"error_std": [0.5, 1.0]}
    expected = xdan.sweep(model, schemes, axes, store=tmp_path / "one", **SIZES).drop_vars(TIMED)
    if scheduler == "threads":
        with dask.config.set(scheduler="threads"):
            cube = xdan.sweep(model, schemes, axes, store=tmp_path / "two", **SIZES)
    else:
        from distributed import Client

        with (
            dask.config.set(scheduler=None),
            Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"),
        ):
            cube = xdan.sweep(model, schemes, axes, store=tmp_path / "two", **SIZES)
    xr.testing.assert_allclose(cube.drop_vars(TIMED), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("schemes", "axes", "more", "message"),
    [
        ({}, {}, {}, "no schemes: expected at least one"),
        ({"a": {"members": 3}}, {}, {}, "has the keys .* expected 'baseline' or 'network' among them"),
        ({"a": {"baseline": "enkf-x"}}, {}, {}, "baseline 'enkf-x' is unknown; known are"),
        ({"a": {"network": "cnn"}}, {}, {}, "network 'cnn' is unknown; known are"),
        (
            {"a": {**TINY, "depth": 3}},
            {},
            {},
            r"scheme 'a' takes no \['depth'\]; it takes \['activation', .*'window'\]",
        ),
        (
            {"a": TINY},
            {"depth": [1]},
            {},
            r"axes \['depth'\] are no parameters of any scheme: expected some of \['activation'",
        ),
        ({"a": TINY}, {"window": []}, {}, "axis 'window' has no values"),
        ({"a": TINY}, {"window": [2, 2]}, {}, "axis 'window' has a value twice"),
        ({"a": {"baseline": "enkf-n"}}, {"members": [1]}, {}, "members=1"),
        ({"a": {**TINY, "trained_on": {"planet": 3}}}, {}, {}, r"trained_on takes .* expected none of \['planet'\]"),
        ({"a": TINY}, {"window": [4, 0]}, {}, "window=0: expected at least 1"),
        ({"a": {**TINY, "minutes": 1.0}}, {}, {}, "expected one of steps=, epochs= and minutes="),
        ({"a": TINY}, {"kernel": [3, 4]}, {}, "kernel=4"),
        ({"a": TINY}, {}, {"seeds": []}, "seeds has no values: expected at least one"),
        ({"a": TINY}, {}, {"seeds": [-1]}, "seeds=-1: expected at least 0"),
        ({"a": TINY}, {"interval": [0.05, 0.07]}, {}, "0.07"),
        ({"a": TINY}, {"interval": ["a", "b"]}, {}, "axis 'interval' has the values .*: expected numbers"),
        ({"a": TINY}, {"interval": [[0.05], [0.1]]}, {}, "axis 'interval' has the values .*: expected numbers"),
        ({"a": {**TINY, "trained_on": {"interval": 0.07}}}, {}, {}, "0.07"),
        ({"a": TINY}, {"observe": [xdan.Sites.random(9)]}, {}, "9"),
        ({"a": TINY}, {}, {"burn_in": 12}, "a burn-in shorter than the cycles"),
        ({"a": TINY}, {"steps": [1], "minutes": [1]}, {}, r"axes \['minutes', 'steps'\] all say how long"),
        ({"a": {"baseline": "enkf-n", "trained_on": {"sites": 8}}}, {}, {}, "scheme 'a' trains nothing"),
        ({"a": {**TINY, "validation": 0.5}}, {}, {}, r"scheme 'a' takes no \['validation'\]"),
        ({"a": {**TINY, "objective": "crps"}}, {}, {}, "objective='crps' scores members"),
    ],
)
def test_what_cannot_be_is_refused_at_once(model, tmp_path, schemes, axes, more, message, counted):
    with pytest.raises(ValueError, match=message):
        xdan.sweep(model, schemes, axes, store=tmp_path / "s", **{**SIZES, **more})
    assert counted == {"train": 0, "score": 0}
    assert not (tmp_path / "s").exists()


def test_axes_are_lists_of_values(model):
    with pytest.raises(TypeError, match="axis 'window' is 3: expected a sequence of values"):
        xdan.sweep(model, {"a": TINY}, {"window": 3})
    with pytest.raises(TypeError, match="expected an xdan Dynamics"):
        xdan.sweep("lorenz96", {"a": TINY})


def test_what_differs_in_time_goes_with_no_sweep(model):
    methods = {"OI": {"baseline": "optimal-interpolation"}}
    with pytest.raises(ValueError, match=r"interval=\(0.05, 0.1\): expected one interval"):
        xdan.sweep(TwinExperiment(model, interval=[0.05, 0.1]), methods, **SIZES)
    changing = xr.DataArray(np.ones(12), dims="time")
    with pytest.raises(ValueError, match=r"error_std has dims \['time'\]: expected some of \('x',\)"):
        xdan.sweep(TwinExperiment(model, error_std=changing), methods, **SIZES)


def first_four(x):
    return x[..., :4]


def test_an_operator_and_full_errors_go_with_a_sweep(model, tmp_path):
    methods, matrix = {"EnKF-N": {"baseline": "enkf-n", "members": 5}}, np.eye(8)[:4]
    covariance = np.eye(4) + 0.2
    experiment = TwinExperiment(model, operator=first_four, error_covariance=covariance)
    cube = xdan.sweep(experiment, methods, {"interval": [0.05, 0.1]}, store=tmp_path / "s", **SIZES)
    test = xdan.twin(
        model, interval=0.1, operator=matrix, error_covariance=covariance, cycles=12, trajectories=3, seed=1_000_000
    ).compute()
    by_hand = test.dan.score(test.dan.baseline("enkf-n", members=5), burn_in=2)
    np.testing.assert_allclose(cube.rmse.sel(interval=0.1).item(), by_hand.rmse, rtol=1e-5)
    by_matrix = TwinExperiment(model, operator=matrix, error_covariance=covariance)
    again = xdan.sweep(by_matrix, methods, {"interval": [0.05, 0.1]}, store=tmp_path / "s", **SIZES)
    xr.testing.assert_identical(again, cube)
    for other in (
        TwinExperiment(model, operator=np.eye(8)[1:5], error_covariance=covariance),
        TwinExperiment(model, operator=matrix, error_covariance=2 * covariance),
        TwinExperiment(model, operator=matrix, error_std=np.ones(4)),
        TwinExperiment(model),
    ):
        with pytest.raises(FileExistsError, match=r"holds another sweep .*observing: "):
            xdan.sweep(other, methods, {"interval": [0.05, 0.1]}, store=tmp_path / "s", **SIZES)


def test_keys_of_cells_are_those_of_stores_written_before(model):
    """A store of another day is resumed by them."""
    sizes = {"cycles": 12, "trajectories": 3, "burn_in": 2}
    methods = {"EnKF-N": {"baseline": "enkf-n", "members": 5}, "DAN": {**TINY, "trained_on": {"interval": 0.1}}}
    experiment = TwinExperiment(model, observe=xdan.Sites.every(2), error_std=2)
    keys = [cell.key[:12] for cell in SweepPlan.of(experiment, methods, {"forcing": [6.0]}, 1, sizes, False).cells()]
    assert keys == ["571671f2fb79", "0a43f4437856"]


def test_another_sweep_is_not_overwritten(model, tmp_path):
    schemes = {"EnKF-N": {"baseline": "enkf-n", "members": 5}}
    xdan.sweep(model, schemes, store=tmp_path / "s", **SIZES)
    with pytest.raises(FileExistsError, match=r"another sweep \(interval: 0.05 there, 0.1 now\)"):
        xdan.sweep(TwinExperiment(model, interval=0.1), schemes, store=tmp_path / "s", **SIZES)
    with pytest.raises(FileExistsError, match=r"scheme 'EnKF-N': .*'members': 5.* there, .*'members': 6"):
        xdan.sweep(model, {"EnKF-N": {"baseline": "enkf-n", "members": 6}}, store=tmp_path / "s", **SIZES)
    xdan.twin(model, cycles=4).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    with pytest.raises(
        FileExistsError, match=r"twin.zarr exists and holds no sweep: it is left alone; choose another store="
    ):
        xdan.sweep(model, schemes, store=tmp_path / "twin.zarr", **SIZES)
    assert "truth" in zarr.open_group(tmp_path / "twin.zarr", mode="r")


@pytest.mark.slow
def test_many_cells_are_asked_for(model, tmp_path):
    with pytest.raises(ValueError, match=r"600 cells are to be computed, with 10.0 hours of training .* pass yes=True"):
        xdan.sweep(
            model,
            {"a": {**{k: v for k, v in TINY.items() if k != "steps"}, "minutes": 1.0}},
            seeds=600,
            store=tmp_path / "s",
            **SIZES,
        )
    assert not (tmp_path / "s").exists()

    with pytest.raises(ValueError, match="600 cells are to be computed"):
        xdan.sweep(model, {"OI": {"baseline": "optimal-interpolation"}}, seeds=600, **SIZES)


def test_a_dynamics_is_known_by_what_it_does(model, tmp_path):
    schemes = {"OI": {"baseline": "optimal-interpolation"}}

    def decaying(rate):
        return xdan.CustomDynamics(lambda x: 1 - rate * x, state={"x": 4}, timestep=0.05)

    xdan.sweep(decaying(1.0), schemes, store=tmp_path / "s", **SIZES)
    with pytest.raises(FileExistsError, match=r"another sweep .dynamics: "):
        xdan.sweep(decaying(2.0), schemes, store=tmp_path / "s", **SIZES)

    class Windy(xdan.Lorenz96):
        def advance(self, x, steps):
            return super().advance(x, steps) + 0.1

    with pytest.raises(ValueError, match=r"axes \['forcing'\] are no parameters of any scheme"):
        xdan.sweep(Windy(sites=8), schemes, {"forcing": [8.0]}, **SIZES)


def test_numbers_beside_names(model, tmp_path):
    schemes = {"ETKF": {"baseline": "etkf", "members": 5}}
    cube = xdan.sweep(model, schemes, {"inflation": [1.1, "tune"]}, store=tmp_path / "s", **SIZES)
    assert cube.inflation.values.tolist() == ["1.1", "tune"]
    one, same = (TwinExperiment(model, error_std=value) for value in (1, 1.0))
    whole = xdan.sweep(one, schemes, {"inflation": [1.1]}, store=tmp_path / "t", **SIZES)
    again = xdan.sweep(same, schemes, {"inflation": [1.1]}, store=tmp_path / "t", **SIZES)
    xr.testing.assert_identical(whole, again)


def test_schedulers_of_the_session_are_left_alone(model, tmp_path):
    with dask.config.set(scheduler="threads"):
        xdan.sweep(model, {"EnKF-N": {"baseline": "enkf-n"}}, seeds=4, **SIZES).compute()
        assert dask.config.get("scheduler") == "threads"


@pytest.mark.slow
def test_a_damaged_network_is_trained_again(model, tmp_path, counted):
    whole = xdan.sweep(model, {"DAN": TINY}, store=tmp_path / "s", **SIZES)
    (folder,) = (path for path in (tmp_path / "s" / "networks").iterdir() if path.is_dir())
    for number, damage in enumerate(["empty", "flip", "cut", "delete"]):
        chunk = next(f for f in sorted((folder / "weights.0").rglob("*")) if f.is_file() and f.name != "zarr.json")
        content = chunk.read_bytes()
        if damage == "empty":
            chunk.write_bytes(b"")
        elif damage == "flip":
            chunk.write_bytes(content[:-3] + bytes([content[-3] ^ 16]) + content[-2:])
        elif damage == "cut":
            (folder / "zarr.json").write_text((folder / "zarr.json").read_text()[:40])
        else:
            (folder / "zarr.json").unlink()
        shutil.rmtree(tmp_path / "s" / "cells")
        with pytest.warns(xdan.XdanWarning, match=f"networks/{folder.name} .* it is trained again"):
            again = xdan.sweep(model, {"DAN": TINY}, store=tmp_path / "s", **SIZES)
        xr.testing.assert_identical(again.drop_vars(TIMED), whole.drop_vars(TIMED))
        assert counted["train"] == number + 2


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"zarr_format": 3, "node_type": "group", "attributes": {"arrays": []}}']
)
def test_a_damaged_cell_is_computed_again(model, tmp_path, counted, damage):
    schemes = {"OI": {"baseline": "optimal-interpolation"}}
    whole = xdan.sweep(model, schemes, seeds=2, store=tmp_path / "s", **SIZES)
    cell = next((tmp_path / "s" / "cells").glob("*/zarr.json"))
    cell.write_bytes(damage)
    with pytest.warns(xdan.XdanWarning, match=f"cells/{cell.parent.name} .* it is computed again"):
        again = xdan.sweep(model, schemes, seeds=2, store=tmp_path / "s", **SIZES)
    xr.testing.assert_identical(again.drop_vars(TIMED), whole.drop_vars(TIMED))
    assert counted["score"] == 3


def test_damage_at_the_root_is_mended(model, tmp_path, counted):
    schemes = {"OI": {"baseline": "optimal-interpolation"}}
    whole = xdan.sweep(model, schemes, store=tmp_path / "s", **SIZES)
    (tmp_path / "s" / "zarr.json").write_text("{")
    (tmp_path / "s" / "rmse" / "zarr.json").write_text("")
    with pytest.warns(xdan.XdanWarning, match=r"zarr.json .* it is written again"):
        again = xdan.sweep(model, schemes, store=tmp_path / "s", **SIZES)
    xr.testing.assert_identical(again, whole)
    assert counted["score"] == 1


@pytest.mark.slow
def test_a_network_of_another_training_is_not_taken(model, tmp_path, counted, quick):
    whole = xdan.sweep(model, {"DAN": TINY}, store=tmp_path / "s", **SIZES)
    (folder,) = (path for path in (tmp_path / "s" / "networks").iterdir() if path.is_dir())
    other = xdan.train(model, xdan.ResidualCNN(filters=4, blocks=1, kernel=3), **{**quick, "seed": 5, "steps": 4})
    mine = xdan.open_network(folder)
    training = {**mine.description["training"], "interrupted": True}
    unfinished = xdan.network.Network({**mine.description, "training": training}, mine.arrays)
    for network in (other, unfinished):
        network.to_zarr(folder, mode="w")
        shutil.rmtree(tmp_path / "s" / "cells")
        with pytest.warns(xdan.XdanWarning, match="it is of another training, or of one that was cut short"):
            again = xdan.sweep(model, {"DAN": TINY}, store=tmp_path / "s", **SIZES)
        xr.testing.assert_identical(again.drop_vars(TIMED), whole.drop_vars(TIMED))


@pytest.mark.parametrize(("at", "text"), [(2, "interrupted at step 2 of 4"), (4, "made its last step: it is whole")])
def test_ctrl_c_in_a_training_ends_the_sweep_and_keeps_its_checkpoint(model, tmp_path, monkeypatch, at, text):
    from xdan.core.learning.trainer import Trainer

    schemes = {"OI": {"baseline": "optimal-interpolation"}, "DAN": TINY}
    whole = xdan.sweep(model, schemes, store=tmp_path / "whole", **SIZES)
    step = Trainer.step

    def stepping(self, window, rate):
        if self.step_count == at - 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, window, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stepping)
        with pytest.raises(KeyboardInterrupt, match=text):
            xdan.sweep(model, schemes, store=tmp_path / "s", **SIZES)
    assert len(list((tmp_path / "s" / "networks").glob("*.checkpoint"))) == 1
    steps = []
    monkeypatch.setattr(Trainer, "step", lambda self, *args: steps.append(1) or step(self, *args))
    resumed = xdan.sweep(model, schemes, store=tmp_path / "s", **SIZES)
    xr.testing.assert_identical(resumed.drop_vars(TIMED), whole.drop_vars(TIMED))
    assert len(steps) == 4 - at


@pytest.mark.parametrize("yes", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"seeds": 10**9},
        {"seeds": range(10**9)},
        {"axes": {"forcing": range(10**5), "interval": range(1, 10**4 + 1)}},
        {"axes": {"forcing": range(10**30)}},
    ],
)
def test_cells_are_counted_before_they_are_listed(model, more, yes):
    begin = time.perf_counter()
    total = 10**30 if more.get("axes", {}).get("forcing") == range(10**30) else 10**9
    with pytest.raises(ValueError, match=f"a cube of {total} cells: expected at most"):
        xdan.sweep(model, {"OI": {"baseline": "optimal-interpolation"}}, yes=yes, **more, **SIZES)
    assert time.perf_counter() - begin < 1.0


def test_numpy_numbers_are_welcome(model, tmp_path):
    schemes = {"DAN": {**TINY, "steps": np.int64(4), "learning_rate": np.float32(0.25)}}
    sizes = {name: np.int64(SIZES[name]) for name in ("cycles", "trajectories", "burn_in")}
    cube = xdan.sweep(
        TwinExperiment(model, interval=np.float64(0.05)),
        schemes,
        {"error_std": np.array([0.5, 1.0], "f4")},
        seeds=np.arange(1),
        retry=np.bool_(False),
        store=tmp_path / "s",
        progress=False,
        **sizes,
    )
    plain = {"DAN": {**TINY, "learning_rate": 0.25}}
    again = xdan.sweep(model, plain, {"error_std": [0.5, 1.0]}, seeds=1, store=tmp_path / "s", **SIZES)
    xr.testing.assert_identical(cube, again)


WRONG = {
    "experiment": [3, None],
    "schemes": [
        2,
        None,
        [],
        {"E": 1j},
        {"E": {"baseline": 3}},
        {"E": {"network": 3}},
        {3: {"baseline": "etkf"}},
        {"E": {"baseline": "etkf", "members": 1j}},
        {"N": {**TINY, "trained_on": 3}},
        {"N": {**TINY, "learning_rate": "fast"}},
    ],
    "axes": [
        3,
        "forcing",
        [1],
        {"forcing": 8.0},
        {"forcing": iter([8.0])},
        {"forcing": np.array(8.0)},
        {3: [1]},
        {"forcing": [1j]},
        {"forcing": [np.nan]},
        {"interval": [True]},
        {"observe": [object()]},
    ],
    "seeds": [1.5, 0, -1, True, None, "1", [0.5], [True], [0, 0], [2**32], range(2**32 - 5, 2**32)],
    "cycles": [1.5, 0, None, True],
    "trajectories": [0, 2.0],
    "burn_in": [-1, 12, 13, 1.5, None],
    "store": [1.5, True],
    "retry": [1, "yes", None],
    "yes": ["no", 0],
    "progress": ["no", 1, None, {"desc": "x"}],
}


@pytest.mark.parametrize("label", WRONG)
def test_wrong_arguments_are_named(model, label):
    plain = {"experiment": model, "schemes": {"E": {"baseline": "etkf", "members": 4}}, **SIZES}
    for value in WRONG[label]:
        with pytest.raises((TypeError, ValueError), match="expected"):
            xdan.sweep(**{**plain, label: value})


def test_the_log_and_the_bar_name_the_cells(model, tmp_path, caplog, monkeypatch):
    told = []
    monkeypatch.setattr(Bar, "set_postfix_str", lambda self, text="", refresh=True: told.append(text))
    with caplog.at_level(logging.INFO, logger="xdan.runs"):
        sizes = {**SIZES, "cycles": 4, "trajectories": 2}
        xdan.sweep(model, {"OI": {"baseline": "optimal-interpolation"}, "DAN": TINY}, store=tmp_path / "s", **sizes)
    cells_begun = ["OI, seed=0", "DAN, seed=0"]
    assert set(told) >= {*cells_begun, "training for DAN, seed=0"}  # beside the training's own
    lines = [record.message for record in caplog.records]
    for name in cells_begun:
        assert lines.count(f"sweep: {name} begins") == 1
    assert lines.index("sweep: the training for DAN, seed=0 begins") < lines.index("sweep: DAN, seed=0 begins")


def test_titles_name_the_labels_of_axes_and_change_no_key(model):
    of = {"OI": {"baseline": "optimal-interpolation"}}
    sizes = {"cycles": 4, "trajectories": 2, "burn_in": 2}
    made = list(SweepPlan.of(model, of, {"error_std": {"good": 0.5, "bad": 2.0}}, 2, sizes, False).cells())
    assert [cell.title for cell in made] == [f"OI, error_std={e}, seed={s}" for e in ("good", "bad") for s in (0, 1)]
    assert all(replace(cell, title="").key == cell.key for cell in made)
