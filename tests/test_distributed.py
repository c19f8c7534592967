"""Separate processes: the same numbers, also when one of them is killed, runs out of memory, or finds the disk full."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import xdan
from xdan.core.progress import Bar

TINY = {"network": "residual-cnn", "filters": 4, "blocks": 1, "kernel": 3, "steps": 30, "window": 4, "batch": 2}
SIZES = {"cycles": 60, "trajectories": 6, "burn_in": 10, "progress": False}
AXES = {"window": [2, 3, 4, 5]}
TIMED = ["seconds", "training_seconds"]


@pytest.fixture(scope="module", autouse=True)
def small_validation():
    """None: what is computed here is compared with what other processes compute."""


@pytest.fixture(scope="module")
def cluster():
    """Two processes of one thread under nannies, which start others in place of those that die."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="1.5GiB", dashboard_address=":0", silence_logs=50
    ) as opened:
        yield opened


@pytest.fixture
def client(cluster):
    distributed = pytest.importorskip("distributed")
    with dask.config.set(scheduler=None), distributed.Client(cluster) as opened:
        opened.wait_for_workers(2)
        yield opened


@pytest.fixture(scope="module")
def record(tmp_path_factory, model):
    """A store of many blocks."""
    path = tmp_path_factory.mktemp("record") / "record.zarr"
    ds = xdan.twin(model, cycles=320, trajectories=32, seed=5, chunks={"trajectory": 4, "time": 16})
    ds.to_zarr(path, consolidated=False)
    return xr.open_zarr(path, consolidated=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """A sweep that nothing went wrong with."""
    store = tmp_path_factory.mktemp("whole") / "sweep.zarr"
    return xdan.sweep(model, {"DAN": TINY}, AXES, store=store, **SIZES).load()


def kill_one(client):
    """Kill a worker, once it holds something."""
    for _ in range(600):
        holding = {address: keys for address, keys in client.has_what().items() if keys}
        if holding:
            victim = max(holding, key=lambda address: len(holding[address]))
            os.kill(client.run(os.getpid, workers=[victim])[victim], signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError("no worker ever held a result")


def test_scores_and_gains_of_separate_processes(client, record, net):
    record = record.isel(trajectory=slice(12), time=slice(64))
    run = record.dan.cycle(net)
    lazy = [record.dan.score(run, burn_in=8).rmse, record.dan.gain(net)]
    answers = dask.compute(*lazy)
    expected = dask.compute(*lazy, scheduler="synchronous")
    for one, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_killed_worker_changes_no_gain(client, record, net):
    omega = record.dan.gain(net)
    expected = omega.compute(scheduler="synchronous")
    future = client.compute(omega)
    kill_one(client)
    assert not future.done()
    np.testing.assert_allclose(future.result().values, expected.values, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_killed_worker_changes_no_run(client, record, net):
    expected = record.dan.cycle(net).compute(scheduler="synchronous")
    future = client.compute(record.dan.cycle(net).analysis)
    kill_one(client)
    assert not future.done()
    np.testing.assert_allclose(future.result().values, expected.analysis.values, rtol=1e-5, atol=1e-5)


def test_a_smoothed_run_of_separate_processes(client, record, tmp_path):
    record = record.isel(trajectory=slice(8), time=slice(48))
    settings = {"members": 5, "progress": False}
    stored = record.dan.reanalysis("etkf", store=tmp_path / "run", **settings)
    expected = record.dan.reanalysis("etkf", **settings).compute(scheduler="synchronous")
    np.testing.assert_allclose(stored.smoothed, expected.smoothed, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_a_killed_worker_changes_no_sweep(client, model, whole, tmp_path, monkeypatch):
    store, killed = tmp_path / "sweep.zarr", []
    update = Bar.update

    def killing(bar, *args):
        if not killed:
            killed.append(True)
            worker = min(client.scheduler_info()["workers"])
            os.kill(client.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
        return update(bar, *args)

    monkeypatch.setattr(Bar, "update", killing)
    cube = xdan.sweep(model, {"DAN": TINY}, AXES, store=store, **SIZES)
    assert killed
    assert cube.failed.sum() == 0
    xr.testing.assert_allclose(cube.load().drop_vars(TIMED), whole.drop_vars(TIMED), rtol=1e-5)


@pytest.mark.slow
def test_a_cell_that_kills_its_workers_is_told(client, model, tmp_path):
    """What the kernel does to a process that is out of memory, the dynamics' own step does here."""

    def allow(failures):
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", failures))

    deadly = xdan.CustomDynamics(_die_in_a_worker, state={"x": 8}, timestep=0.05)
    allow(0)
    try:
        schemes = {"OI": {"baseline": "optimal-interpolation"}}
        cube = xdan.sweep(deadly, schemes, seeds=2, store=tmp_path / "s", **SIZES)
    finally:
        allow(3)
    assert cube.failed.values.ravel().tolist() == [1, 1]
    assert all("KilledWorker" in error and "memory_limit" in error for error in json.loads(cube.attrs["errors"]))


def _die_in_a_worker(x):
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return -x


@pytest.mark.parametrize("place", ["networks", "cells"])
@pytest.mark.slow
def test_a_full_disk_stops_a_sweep_and_keeps_its_cells(model, whole, tmp_path, monkeypatch, place):
    from zarr.storage import LocalStore

    store, put = tmp_path / "sweep.zarr", LocalStore.set

    async def full(self, key, value):
        done = list(Path(store, "cells").glob("*/zarr.json"))
        if len(done) >= 2 and place in str(self.root / key):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), key)
        return await put(self, key, value)

    with monkeypatch.context() as m:
        m.setattr(LocalStore, "set", full)
        with pytest.raises(
            OSError, match=r"no room left for .*sweep.zarr: finished cells are kept; make room"
        ) as raised:
            xdan.sweep(model, {"DAN": TINY}, AXES, store=store, **SIZES)
    assert raised.value.errno == errno.ENOSPC
    kept = {path: path.read_bytes() for path in Path(store, "cells").glob("*/zarr.json")}
    assert len(kept) >= 2
    resumed = xdan.sweep(model, {"DAN": TINY}, AXES, store=store, **SIZES)
    assert resumed.failed.sum() == 0
    xr.testing.assert_identical(resumed.load().drop_vars(TIMED), whole.drop_vars(TIMED))


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_killed_goes_on(model, whole, tmp_path, blow):
    store = tmp_path / "sweep.zarr"
    script = (
        "import signal, xdan\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a parent may have it ignored
        f"xdan.sweep(xdan.Lorenz96(sites=8), {{'DAN': {TINY!r}}}, {AXES!r}, store={str(store)!r}, **{SIZES!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    for _ in range(6000):
        done = len(list((store / "cells").glob("*/zarr.json")))
        if done or child.poll() is not None:
            break
        time.sleep(0.02)
    child.send_signal(blow)
    _, told = child.communicate()
    assert 0 < done < 4
    assert child.returncode != 0
    assert blow != signal.SIGINT or told.rstrip().endswith("KeyboardInterrupt")
    resumed = xdan.sweep(model, {"DAN": TINY}, AXES, store=store, **SIZES)
    xr.testing.assert_identical(resumed.load().drop_vars(TIMED), whole.drop_vars(TIMED))
