"""What a user can get wrong: the error says what was found and how to mend it, and nothing is written."""

from types import SimpleNamespace

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.learning import Optimiser
from xdan.core.observing import Sites
from xdan.core.twin import TwinExperiment
from xdan.records.streams import Stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory, twin, net):
    """A network, a finished run, one that was killed, a twin that lacks a chunk, and a file that is no store."""
    path = tmp_path_factory.mktemp("stores")
    net.to_zarr(path / "net.zarr")
    xdan.cycle(twin, net, store=path / "run.zarr", progress=False)

    def killed(self, attributes=None):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            xdan.cycle(twin, net, store=path / "unfinished.zarr", progress=False)
    twin.chunk(time=8, trajectory=1).to_zarr(path / "cut.zarr", consolidated=False)
    (path / "cut.zarr" / "truth" / "c" / "2" / "1" / "0").unlink()
    (path / "file").write_text("no store")
    (path / "notes").mkdir()
    (path / "notes" / "x.txt").write_text("precious")
    return path


@pytest.fixture(scope="module")
def a(twin, single, net, run, ensemble, model, architecture, folder):
    """Everything that a call may need, all of it in order."""
    quick = {"window": 4, "batch": 2, "steps": 2, "progress": False}
    return SimpleNamespace(**locals())


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def circle(**changes):
    return xdan.CustomDynamics(lambda x: -x, **{"state": {"lon": 8}, "timestep": 0.05, **changes})


def train(a, ds=None, architecture=None, **changes):
    """With a checkpoint: then nothing may be left of it."""
    settings = {**a.quick, "checkpoint": a.folder / "new-checkpoint.zarr", **changes}
    return xdan.train(a.single if ds is None else ds, architecture or a.architecture, **settings)


def cycle(a, ds, **changes):
    """Where it may be, into a store: then nothing may be left of it."""
    return xdan.cycle(ds, a.net, **{"store": a.folder / "new.zarr", "progress": False, **changes})


def everywhere_nan(ds):
    return ds.assign(observation=ds.observation.where(False))


def one_not_finite(a, row, k, value):
    truth = a.single.truth.copy(deep=True)
    truth[row, k, 3] = value
    return a.single.assign(truth=truth)


def cut_short(a):
    return xr.open_zarr(a.folder / "cut.zarr", consolidated=False)


RECORDS = {
    "no observation": (
        lambda ds: ds.drop_vars("observation"),
        r"expected a variable 'observation', found \['observation_error', 'truth'\]; name it with observation=",
    ),
    "no state dim, and no name": (lambda ds: ds.rename({"x": "a site"}), r"as in ds.rename\(\{'a site': 'x'\}\)"),
    "a single site": (
        lambda ds: ds.isel(x=0),
        r"rename the record's dims. If a single place is selected, keep its dim",
    ),
    "no error": (
        lambda ds: ds.drop_vars("observation_error"),
        r"no observation error: expected .* or pass observation_error=",
    ),
    "no time": (lambda ds: ds.rename(time="n").drop_vars("n"), r"none is time: expected 'time', or a dim whose coord"),
    "no times": (lambda ds: ds.drop_vars("time"), r"'time' has no coordinate: expected analysis times"),
    "no state dim": (
        lambda ds: ds.rename(x="site"),
        r"dims \('trajectory', 'time', 'site'\), without \['x'\]: .* rename the record's dims, as in "
        r"ds.rename\(site='x'\)",
    ),
    "a dim too many": (
        lambda ds: ds.expand_dims(level=2),
        r"has dims \['level'\] beyond those expected, \(trajectory, time, x\)",
    ),
    "other number of sites": (
        lambda ds: ds.isel(x=slice(7)),
        r"state sizes \{'x': 7\}, the dynamics Lorenz96\(sites=8.* expects \{'x': 8\}; pass the dynamics=",
    ),
    "truth of other sizes": (
        lambda ds: ds.assign(truth=ds.truth[0].drop_vars("trajectory")),
        r"truth has sizes .*'trajectory': 1.*, observation .*'trajectory': 4.*: expected the same",
    ),
    "datetimes": (
        lambda ds: ds.assign_coords(time=np.arange(24).astype("datetime64[h]").astype("datetime64[ns]")),
        r"time is of datetime64.*has no time_unit: expected .* Pass dynamics=xdan.Lorenz96\(time_unit=",
    ),
    "time differences": (
        lambda ds: ds.assign_coords(time=np.arange(24) * np.timedelta64(6, "h")),
        r"time is of timedelta64.*has no time_unit: expected .* Pass dynamics=xdan.Lorenz96\(time_unit=",
    ),
    "dates in words": (
        lambda ds: ds.assign_coords(time=np.arange(24).astype("datetime64[h]").astype(str)),
        r"time is of <U.*, the first is .1970-01-01T00.*: expected numbers in model time units, or dates .*Convert",
    ),
    "time not finite": (
        lambda ds: ds.assign_coords(time=np.where(np.arange(24) == 3, np.nan, 0.05 * np.arange(24))),
        r"time holds values that are not finite",
    ),
    "sites in another order": (
        lambda ds: ds.isel(x=slice(None, None, -1)),
        r"labels of 'x' in another order than the dynamics: \[7, 6, 5, 4\]..., expected \[0, 1, 2, 3\]",
    ),
    "infinite observations": (
        lambda ds: ds.assign(observation=ds.observation.where(ds.time != ds.time[5], np.inf)),
        r"values of 'observation' are infinite: expected numbers, or NaN where nothing is observed",
    ),
    "time runs backwards": (lambda ds: ds.isel(time=slice(None, None, -1)), r"time does not increase at index 1: "),
    "time stands still": (
        lambda ds: ds.assign_coords(time=np.zeros(24)),
        r"time does not increase at index 1: 0.0 then 0.0",
    ),
    "interval no multiple of the step": (
        lambda ds: ds.assign_coords(time=0.07 * np.arange(24)),
        r"interval of 0.07 is not a positive multiple of the lorenz96 time step 0.05; expected a multiple",
    ),
    "labels that are no integers": (
        lambda ds: ds.assign_coords(trajectory=list("abcd")),
        r"trajectory labels are of .*: expected integers",
    ),
    "nothing observed": (
        everywhere_nan,
        r"every value of 'observation' is NaN, .* cut short, or does observation= name the wrong variable",
    ),
    "nothing observed, in chunks": (
        lambda ds: everywhere_nan(ds).chunk(time=5),
        r"every value of 'observation' is NaN",
    ),
    "unfinished": (
        lambda ds: ds.assign_attrs(xdan_status="unfinished"),
        r"the store is unfinished: .* Run the same call again to resume it",
    ),
    "no dynamics": (
        lambda ds: ds.drop_attrs(deep=False),
        r"attributes name no dynamics; pass dynamics=, for example xdan.Lorenz96",
    ),
    "dynamics that are not JSON": (
        lambda ds: ds.assign_attrs(dynamics="L96"),
        r"dynamics='L96' is not JSON of a name and its parameters",
    ),
    "dynamics of an unknown name": (
        lambda ds: ds.assign_attrs(dynamics='{"name": "os.system", "parameters": {}}'),
        r"Pass dynamics= .*: dynamics 'os.system' is not registered: expected one of \[.*'lorenz96'.*\]",
    ),
    "dynamics of unknown parameters": (
        lambda ds: ds.assign_attrs(dynamics='{"name": "lorenz96", "parameters": {"c": 1}}'),
        r"'lorenz96' has no parameters \['c'\]; it takes \['forcing', 'sites', 'time_unit', 'timestep'\].*pass",
    ),
    "error negative": (lambda ds: ds.assign(observation_error=-1.0), r"deviation -1: expected positive finite values"),
    "error zero": (lambda ds: ds.assign(observation_error=0.0), r"deviation 0: expected positive finite values"),
    "error of wrong size": (
        lambda ds: ds.assign(observation_error=("z", np.ones(5))),
        r"has shape \(5,\): expected \(\) or \(8,\) for standard deviations, or \(8, 8\) for a covariance matrix",
    ),
    "error of every trajectory": (
        lambda ds: ds.assign(observation_error=1 + ds.trajectory),
        r"'observation_error' varies along 'trajectory': expected dims \(\) or \('x',\)",
    ),
    "covariance in time": (
        lambda ds: ds.assign(observation_error=(1 + ds.time) * xr.DataArray(np.eye(8), dims=("x", "x_dual"))),
        r"observation error in time has shape \(\d+, 8, 8\): expected .* a covariance that changes in time is not",
    ),
    "error in time of no standard deviation": (
        lambda ds: ds.assign(observation_error=ds.time - ds.time[2]),
        r"observation error standard deviation .*: expected positive finite values",
    ),
    "observations without their operator": (
        lambda ds: ds.assign(observation=ds.observation.rename(x="obs")),
        r"has the dim 'obs' and the Dataset no 'observation_operator': pass operator=, a matrix of shape \(8, sites\)",
    ),
    "operator of other sites": (
        lambda ds: ds.assign(
            observation=ds.observation.rename(x="obs"), observation_operator=(("obs", "x2"), np.ones((8, 7)))
        ),
        r"the observation operator has dims \('obs', 'x2'\): expected \('obs', 'x'\)",
    ),
    "operator beside observed sites": (
        lambda ds: ds.assign(observation_operator=(("obs", "x"), np.ones((3, 8)))),
        r"without 'obs': an observation operator gives observations along 'obs'",
    ),
}

BAD_RECORDS = {
    "observation= is not there": (
        lambda a: cycle(a, a.twin, observation="sondes"),
        r"no variable 'sondes' for observation=: expected one of \['observation', 'observation_error', 'truth'\]",
    ),
    "truth= is not there": (lambda a: train(a, truth="nature"), r"no variable 'nature' for truth=: expected one of"),
    "no truth to train on": (
        lambda a: train(a, a.single.drop_vars("truth")),
        r"^pass truth=, .*or objective='forecast'.* objective 'rmse' needs the truth: .* found \['observation', "
        r"'observation_error'\]; .* truth=",
    ),
    "truth not finite": (
        lambda a: train(a, one_not_finite(a, 2, 7, np.nan)),
        r"holds 1 values that are not finite, .* 2.* 7.*cut the record, or leave those",
    ),
    "truth infinite": (lambda a: train(a, one_not_finite(a, 2, 7, np.inf)), r"holds 1 values that are not finite"),
    "unfinished store": (
        lambda a: cycle(a, xr.open_zarr(a.folder / "unfinished.zarr", consolidated=False)),
        r"the store is unfinished: .* Run the same call again to resume it",
    ),
    "unfinished run": (
        lambda a: xdan.score(a.twin, xr.open_zarr(a.folder / "unfinished.zarr", consolidated=False)),
        "the run's store is unfinished; run the same call again to resume it",
    ),
    "cycled from a store cut short": (
        lambda a: cycle(a, cut_short(a)),
        "'truth' has 11 of 12 chunks: it was cut",
    ),
    "trained from a store cut short": (
        lambda a: train(a, cut_short(a)),
        "'truth' has 11 of 12 chunks: it was cut",
    ),
}

BAD_DYNAMICS = {
    "the user's own, opened again": (
        lambda a: cycle(a, xdan.twin(circle(), cycles=3)),
        r"Pass dynamics= with the model that made the record: it is the custom model of 'circle.*, and no store holds",
    ),
    "too few sites": (lambda a: xdan.Lorenz96(sites=3), r"sites=3: expected at least 4"),
    "step too long": (
        lambda a: xdan.Lorenz96(timestep=0.1),
        r"timestep=0.1: expected a finite number, above 0 and at most 0.05",
    ),
    "two ways to step": (lambda a: circle(step=lambda x: x), r"expected exactly one of tendency= and step="),
    "no state": (lambda a: circle(state={}), r"names no dims; expected for example state=\{'x': 40\}"),
    "step not positive": (lambda a: circle(timestep=0.0), r"timestep=0: expected a finite number, above 0"),
}

BAD_ERRORS = {
    "negative": (lambda a: cycle(a, a.twin, observation_error=-1.0), r"deviation -1: expected positive finite values"),
    "zero": (
        lambda a: cycle(a, a.twin, observation_error=np.zeros(8)),
        r"deviation 0: expected positive finite",
    ),
    "NaN": (lambda a: cycle(a, a.twin, observation_error=np.nan), r"deviation nan: expected positive finite values"),
    "wrong size": (
        lambda a: cycle(a, a.twin, observation_error=[1.0, 2.0]),
        r"has shape \(2,\): expected \(\) or \(8,\) for standard deviations, or \(8, 8\) for a covariance matrix",
    ),
    "R of wrong size": (lambda a: cycle(a, a.twin, observation_error=np.eye(7)), r"has shape \(7, 7\): expected"),
    "R not positive definite": (
        lambda a: cycle(a, a.twin, observation_error=np.ones((8, 8))),
        r"R is not positive definite; expected a covariance matrix of full rank",
    ),
    "R not symmetric": (
        lambda a: cycle(a, a.twin, observation_error=np.eye(8) + np.eye(8, k=1)),
        r"R is not symmetric; expected a covariance matrix",
    ),
    "infinite": (lambda a: cycle(a, a.twin, observation_error=np.inf), r"deviation inf: expected positive finite"),
    "name is not there": (
        lambda a: cycle(a, a.twin, observation_error="sigma"),
        r"'sigma' for observation_error=: expected",
    ),
    "twin, negative": (lambda a: xdan.twin(a.model, error_std=-2.0), r"deviation -2: expected positive finite values"),
    "twin, wrong size": (lambda a: xdan.twin(a.model, error_std=[1, 2]), r"has shape \(2,\): expected \(\) or \(8,\)"),
    "twin, R of wrong size": (
        lambda a: xdan.twin(a.model, error_covariance=np.eye(3)),
        r"has shape \(3, 3\): exp",
    ),
    "twin, R singular": (
        lambda a: xdan.twin(a.model, error_covariance=np.ones((8, 8))),
        r"R is not positive definite",
    ),
    "endless twin, zero": (
        lambda a: train(a, TwinExperiment(a.model, error_std=0.0)),
        "error_std holds the standard deviation 0: expected positive finite values",
    ),
}

BAD_TWINS = {
    "no dynamics": (lambda a: xdan.twin("lorenz96"), r"experiment='lorenz96': expected an xdan Dynamics such as"),
    "no sites": (lambda a: xdan.twin(a.model, observe="all"), r"observe='all': expected Sites, such as"),
    "half a cycle": (lambda a: xdan.twin(a.model, cycles=2.5), r"cycles=2.5: expected an integer"),
    "chunks of another dim": (
        lambda a: xdan.twin(a.model, chunks={"x": 4}),
        r"chunks along \['x'\]: expected sizes along",
    ),
    "forcing": (lambda a: xdan.Lorenz96(forcing=np.nan), r"forcing=nan: expected a finite number"),
    "interval not a number": (
        lambda a: xdan.twin(a.model, interval=np.nan),
        r"interval=nan: expected a positive finite model time",
    ),
    "no cycles": (lambda a: xdan.twin(a.model, cycles=0), r"cycles=0: expected at least 1 "),
    "no trajectories": (lambda a: xdan.twin(a.model, trajectories=0), r"trajectories=0: expected at least 1 "),
    "intervals": (lambda a: xdan.twin(a.model, interval=[0.05] * 3, cycles=3), r"3 intervals for 3 cycles: expected 2"),
    "no multiple of the step": (
        lambda a: xdan.twin(a.model, interval=0.07),
        r"interval of 0.07 is not a positive multiple of the lorenz96 time step 0.05; expected a multiple",
    ),
    "interval zero": (
        lambda a: xdan.twin(a.model, interval=0.0),
        r"interval=0.0: expected a positive finite model time",
    ),
    "interval negative": (
        lambda a: xdan.twin(a.model, interval=-0.05),
        r"interval=-0.05: expected a positive finite model time",
    ),
    "chunk": (lambda a: xdan.twin(a.model, chunks={"time": 0}), r"chunks\['time'\]=0: expected at least 1"),
    "dtype": (
        lambda a: xdan.twin(a.model, dtype="float16"),
        r"dtype='float16': expected one of \['float32', 'float64'\]",
    ),
    "too many random sites": (
        lambda a: xdan.twin(a.model, observe=Sites.random(3, 9)),
        r"random sites, up to 9 of 8: expected high <= 8",
    ),
    "too wide a stride": (
        lambda a: xdan.twin(a.model, observe=Sites.every(9)),
        r"every 9-th of 8 sites: expected",
    ),
    "offset": (lambda a: Sites.every(2, 2), r"step=2, offset=2: expected 0 <= offset < step"),
    "random the wrong way round": (lambda a: Sites.random(5, 3), r"low=5, high=3: expected 0 <= low <= high"),
    "unknown rule": (lambda a: Sites("some"), r"kind='some': expected one of \['all', 'every', 'random'\]"),
}

BAD_TRAINING = {
    "half a step": (lambda a: train(a, steps=2.5), r"steps=2.5: expected an integer"),
    "clip": (lambda a: Optimiser(clip=0.0), r"clip=0: expected a finite number, above 0"),
    "weight decay": (
        lambda a: Optimiser(weight_decay=-0.1),
        r"weight_decay=-0.1: expected a finite number, at least 0",
    ),
    "an endless twin's arguments": (
        lambda a: train(a, trajectories=8),
        r"\['trajectories'\] describe an endless twin",
    ),
    "a twin experiment's parameter": (
        lambda a: train(a, interval=0.1),
        r"unexpected keyword argument 'interval': expected .*'dynamics', .*of xdan.TwinExperiment",
    ),
    "another word of time": (
        lambda a: train(a, seconds=40),
        r"argument 'seconds': expected its parameters, \['network', .*'minutes', .*; minutes= is the length in time",
    ),
    "an optimiser's parameter": (
        lambda a: train(a, clip=1.0),
        r"unexpected keyword argument 'clip': expected .* parameter of xdan.Optimiser",
    ),
    "members": (
        lambda a: train(a, objective="crps"),
        r"objective='crps' scores members.*xdan.EnsembleCNN\(members=10\)",
    ),
    "objective": (
        lambda a: train(a, objective="mae"),
        r"objective='mae': expected one of \['analysis', 'covariance', 'crps', .*'variational'\]",
    ),
    "both budgets": (lambda a: train(a, steps=3, minutes=1), r"expected one of steps=, epochs= and minutes="),
    "no epochs": (lambda a: train(a, steps=None, epochs=0), r"epochs=0: expected at least 1"),
    "no steps": (lambda a: train(a, steps=0), r"steps=0: expected at least 1"),
    "no minutes": (lambda a: train(a, steps=None, minutes=-1.0), r"minutes=-1: expected a finite number, above 0"),
    "learning rate": (lambda a: Optimiser(learning_rate=0.0), r"learning_rate=0: expected a finite number, above 0"),
    "window": (lambda a: train(a, window=0), r"window=0: expected at least 1"),
    "window of forecasts": (lambda a: train(a, window=1, objective="forecast"), r"expected a window of at least"),
    "batch": (lambda a: train(a, batch=0), r"batch=0: expected at least 1"),
    "validate_every": (lambda a: train(a, validate_every=0), r"validate_every=0: expected at least 1"),
    "validation": (lambda a: train(a, validation=1.0), r"validation=1: expected a finite number, above 0 and below 1"),
    "too short for two windows": (
        lambda a: train(a, window=13),
        r"has 4 trajectories of 24 cycles: too little for windows of 13 cycles. Expected .* 26 cycles.* window=",
    ),
    "a single short trajectory": (
        lambda a: train(a, a.single.isel(trajectory=[0])),
        r"has 1 trajectories of 24 cycles: too little .* or one of 128",
    ),
    "unknown network": (
        lambda a: train(a, architecture="transformer"),
        r"network 'transformer' is unknown; known are .*'residual-cnn'",
    ),
    "memory of an architecture": (
        lambda a: train(a, memory=2),
        r"memory=2 goes with a network given by name",
    ),
    "memory negative": (
        lambda a: train(a, architecture="residual-cnn", memory=-1),
        r"memory=-1: expected at least 0",
    ),
    "filters": (lambda a: xdan.ResidualCNN(filters=0), r"filters=0: expected at least 1"),
    "kernel": (lambda a: xdan.ResidualCNN(kernel=4), r"kernel=4: expected an odd number"),
    "activation": (lambda a: xdan.ResidualCNN(activation="relu"), r"activation='relu': expected one of"),
    "two state dims": (
        lambda a: train(a, circle(state={"lat": 2, "lon": 4})),
        r"the model says nothing of its grid {'lat': .*expected a geometry",
    ),
    "network of another state": (
        lambda a: train(a, circle(), architecture=a.net),
        r"the network works on states with dims \('x',\), the record's state has \('lon',\)",
    ),
    "interval of an endless twin": (
        lambda a: train(a, TwinExperiment(a.model, interval=0.07)),
        r"interval of 0.07 is not a positive",
    ),
    "checkpoint on another store": (
        lambda a: train(a, checkpoint=a.folder / "run.zarr"),
        r"run.zarr exists and is no checkpoint; choose another path for checkpoint=",
    ),
    "checkpoint on a file": (
        lambda a: train(a, checkpoint=a.folder / "file"),
        r"file exists and is no checkpoint; choose another path for checkpoint=",
    ),
}

BAD_CYCLING = {
    "a path for a network": (
        lambda a: xdan.cycle(a.twin, "net.zarr"),
        r"cannot cycle with str: expected a Network, as xdan.open_network\(\) and train\(\) give",
    ),
    "a folder of other things": (
        lambda a: cycle(a, a.twin, store=a.folder / "notes", mode="w"),
        r"notes exists and is no Zarr store: it is left alone",
    ),
    "the input's own store": (
        lambda a: cycle(a, cut_short(a).drop_vars("truth"), store=a.folder / "cut.zarr", mode="w"),
        r"cut.zarr' is the store that the record is read from; choose another path",
    ),
    "same run with another R unfinished": (
        lambda a: cycle(a, a.twin, observation_error=3.0, store=a.folder / "unfinished.zarr"),
        r"holds an unfinished run of another method, record or setting",
    ),
    "same run of another record unfinished": (
        lambda a: cycle(a, a.twin.assign(observation=-a.twin.observation), store=a.folder / "unfinished.zarr"),
        r"holds an unfinished run of another method, record or setting",
    ),
    "background not positive definite": (
        lambda a: xdan.baseline(a.twin.compute(), "3d-var", background=-np.eye(8)),
        r"background is not symmetric and positive definite",
    ),
    "network of another state": (
        lambda a: cycle(a, xdan.twin(circle(), cycles=3), dynamics=circle()),
        r"works on states with dims \('x',\), the record's state has \('lon',\): rename the record's dims, or train",
    ),
    "members unknown": (
        lambda a: cycle(a, a.twin, members=pd.NA),
        r"members=<NA>: expected True to keep them, or False",
    ),
    "members of a single state": (
        lambda a: cycle(a, a.twin, members=20),
        r"members=20: expected True to keep them, or False; 'dan' has 1",
    ),
    "existing store": (
        lambda a: cycle(a, a.twin, store=a.folder / "run.zarr"),
        r"run.zarr exists; pass mode='w' to overwrite it, or another path",
    ),
    "existing file": (lambda a: cycle(a, a.twin, store=a.folder / "file"), r"file exists; pass mode='w' to overwrite"),
    "another run unfinished": (
        lambda a: xdan.baseline(a.twin, "enkf-n", store=a.folder / "unfinished.zarr", progress=False),
        r"holds an unfinished run of another method, record or setting; pass mode='w'",
    ),
    "same run of another seed unfinished": (
        lambda a: cycle(a, a.twin, seed=1, store=a.folder / "unfinished.zarr"),
        r"holds an unfinished run of another method, record or setting; pass mode='w'",
    ),
    "mode": (lambda a: cycle(a, a.twin, mode="a"), r"mode='a': expected 'w-' \(new store\) or 'w' \(overwrite\)"),
    "unknown baseline": (
        lambda a: xdan.baseline(a.twin, "no-such-filter"),
        r"baseline 'no-such-filter' is unknown; known are \['3d-var', '4d-var'.*'enkf-n'",
    ),
    "unknown parameter": (
        lambda a: xdan.baseline(a.twin, "enkf-n", inflation=1.1),
        r"'enkf-n' has no parameters \['inflation'\]; "
        r"it takes \['capped', 'form', 'members', 'model_noise', 'rotate'\]",
    ),
    "parameter of another": (
        lambda a: xdan.baseline(a.twin, "3d-var", members=3),
        r"baseline '3d-var' has no parameters \['members'\]; it takes \['background', 'scale'\]",
    ),
    "one member": (lambda a: xdan.baseline(a.twin, "enkf-n", members=1), r"members=1: expected at least 2, a spread"),
    "background": (
        lambda a: xdan.baseline(a.twin, "3d-var", background="static"),
        r"background='static': expected 'climatology', 'trained' or a matrix of shape \(N, N\)",
    ),
    "background of wrong size": (
        lambda a: xdan.baseline(a.twin, "3d-var", background=torch.eye(3)),
        r"background has shape \(3, 3\): expected \(8, 8\)",
    ),
    "trained without truth": (
        lambda a: xdan.baseline(a.twin.drop_vars("truth"), "3d-var", background="trained"),
        r"the record has no truth, and training needs one; expected a record with a truth",
    ),
    "scale": (
        lambda a: xdan.baseline(a.twin, "3d-var", scale=-1.0),
        r"scale=-1.0: expected 'tune' or a positive",
    ),
    "members of 3D-Var": (
        lambda a: xdan.baseline(a.twin, "3d-var", keep_members=True),
        r"members=True: the method '3d-var' carries a single state, neither an ensemble nor a covariance",
    ),
    "scale by name": (lambda a: xdan.baseline(a.twin, "3d-var", scale="best"), r"scale='best': expected 'tune' or"),
}

BAD_SCORING = {
    "a network": (lambda a: xdan.score(a.twin, a.net), r"run is a Network: expected the Dataset that cycle\(\)"),
    "burn-in of everything": (lambda a: xdan.score(a.twin, a.run, burn_in=24), r"burn_in=24: expected 0 to 23"),
    "burn-in negative": (lambda a: xdan.score(a.twin, a.run, burn_in=-1), r"burn_in=-1: expected 0 to 23"),
    "over the state": (
        lambda a: xdan.score(a.twin, a.run, dim="x"),
        r"dim=\['x'\]: expected some of \['trajectory', 'time'\], and none of the state's dims",
    ),
    "no forecast": (
        lambda a: xdan.score(a.twin, a.run.drop_vars("forecast")),
        r"the run lacks \['forecast'\]; found \['analysis', 'diverged', 'innovation_ratio'\]",
    ),
    "no members": (
        lambda a: xdan.rank_histogram(a.twin, a.run),
        r"holds no 'members': run baseline\(..., keep",
    ),
}

BAD_NETWORKS = {
    "existing store": (
        lambda a: a.net.to_zarr(a.folder / "run.zarr"),
        r"run.zarr exists; pass mode='w' to overwrite",
    ),
    "mode": (
        lambda a: a.net.to_zarr(a.folder / "new.zarr", mode="r+"),
        r"mode='r\+': expected 'w-' \(new store\)",
    ),
    "a run, not a network": (
        lambda a: xdan.open_network(a.folder / "run.zarr"),
        r"run.zarr \(root\) is not a group of arrays that xdan wrote",
    ),
    "nothing there": (
        lambda a: xdan.open_network(a.folder / "none.zarr"),
        r"none.zarr: there is no Zarr store",
    ),
}

TABLE = [
    pytest.param(call, message, id=f"{group}: {name}")
    for group, cases in {
        "record": BAD_RECORDS,
        "dynamics": BAD_DYNAMICS,
        "error": BAD_ERRORS,
        "twin": BAD_TWINS,
        "training": BAD_TRAINING,
        "cycling": BAD_CYCLING,
        "scoring": BAD_SCORING,
        "network": BAD_NETWORKS,
    }.items()
    for name, (call, message) in cases.items()
]
OTHER_TYPES = {
    "twin: no dynamics": TypeError,
    "twin: no sites": TypeError,
    "twin: half a cycle": TypeError,
    "training: half a step": TypeError,
    "training: a twin experiment's parameter": TypeError,
    "training: another word of time": TypeError,
    "training: an optimiser's parameter": TypeError,
    "cycling: a path for a network": TypeError,
    "cycling: a folder of other things": FileExistsError,
    "cycling: same run with another R unfinished": FileExistsError,
    "cycling: same run of another record unfinished": FileExistsError,
    "scoring: a network": TypeError,
    "network: nothing there": FileNotFoundError,
    "network: existing store": FileExistsError,
    "cycling: members unknown": TypeError,
    "cycling: members of a single state": TypeError,
    "cycling: existing store": FileExistsError,
    "cycling: existing file": FileExistsError,
    "cycling: another run unfinished": FileExistsError,
    "cycling: same run of another seed unfinished": FileExistsError,
    "training: checkpoint on another store": FileExistsError,
    "training: checkpoint on a file": FileExistsError,
}


@pytest.mark.filterwarnings("ignore:the network is used out of the setting", "ignore:the observations are far")
@pytest.mark.parametrize(("call", "message"), TABLE)
def test_error_says_what_was_found_and_the_remedy(call, message, a, request):
    before = contents(a.folder)
    with pytest.raises(OTHER_TYPES.get(request.node.callspec.id, ValueError), match=message) as caught:
        call(a)
    assert type(caught.value) is OTHER_TYPES.get(request.node.callspec.id, ValueError)
    assert contents(a.folder) == before


VERBS = {
    "network": lambda a, ds: cycle(a, ds),
    "ensemble": lambda a, ds: xdan.baseline(ds, "enkf-n", members=3, store=a.folder / "new.zarr", progress=False),
    "training": lambda a, ds: train(a, ds),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("change", "message"), RECORDS.values(), ids=RECORDS.keys())
def test_records_are_refused_by_every_verb(verb, change, message, a):
    before = contents(a.folder)
    with pytest.raises(ValueError, match=message):
        VERBS[verb](a, change(a.twin))
    assert contents(a.folder) == before


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_seeds(a, seed):
    for call in (
        lambda: xdan.twin(a.model, seed=seed),
        lambda: cycle(a, a.twin.chunk(time=5), seed=seed, store=None),
        lambda: xdan.baseline(a.twin.chunk(time=5), "enkf-n", seed=seed),
        lambda: train(a, seed=seed),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"seed={seed}: expected an integer from 0 to 2\*\*32 - 1"):
            call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", [train, lambda a, **changes: cycle(a, a.twin, **changes)], ids=["train", "cycle"])
def test_no_gpu(a, verb):
    before = contents(a.folder)
    with pytest.raises(ValueError, match=r"device='cuda': this machine has no CUDA device; use device='auto' or 'cpu'"):
        verb(a, device="cuda")
    assert contents(a.folder) == before


@pytest.mark.parametrize("dynamics", ["lorenz96", 3, lambda x: x])
def test_dynamics_of_another_type(a, dynamics):
    with pytest.raises(TypeError, match=r"expected an xdan Dynamics such as xdan.Lorenz96\(\); wrap a torch function"):
        xdan.cycle(a.twin, a.net, dynamics=dynamics)


@pytest.mark.parametrize("source", ["twin.zarr", np.zeros(3)])
def test_training_on_another_type(source):
    with pytest.raises(TypeError, match=r"cannot train on source=.*: expected an xarray Dataset or an xdan"):
        xdan.train(source)


def test_bad_settings_are_refused_before_any_data_is_read(a, untouchable):
    """Observations of a cluster's size are not to be read for a typing error."""
    ds = untouchable(a.single, "truth", "observation")
    for changes in (
        {"objective": "mae"},
        {"steps": 0},
        {"validation": 2.0},
        {"window": 0},
        {"truth": "nature"},
        {"objective": "crps"},
        {"objective": "covariance", "teacher": "etkf"},
        {"objective": "forecast", "window": 1},
        {"objective": "forecast", "teacher": a.run},
        {"teacher": a.run.isel(time=slice(9))},
        {"window": 13},
        {"architecture": "residual-cnn", "memory": -1},
        {"processes": 2, "device": "cuda"},
    ):
        with pytest.raises(ValueError, match=r"[Ee]xpected|known|no variable|no CUDA"):
            train(a, ds, **changes)
    flat = untouchable(a.single.rename(x="lon"), "truth", "observation")
    with pytest.raises(
        ValueError, match=r"the network works on states with dims \('x',\), the record's state has \('lon',\)"
    ):
        train(a, flat, architecture=a.net, dynamics=circle())
    for call in (
        lambda: xdan.baseline(ds, "3d-var", keep_members=True),
        lambda: xdan.baseline(ds, "3d-var", scale=-1.0),
        lambda: xdan.score(ds, a.run, burn_in=99),
    ):
        with pytest.raises(ValueError, match=r"members=True|scale=|burn_in="):
            call()


def test_lazy_nan_record_says_so_when_streamed(a):
    """Building lazily reads nothing, so cannot say it; the result is a free run of the model, not a crash."""
    ds = a.twin.assign(observation=(("trajectory", "time", "x"), da.full((4, 24, 8), np.nan, chunks=(2, 8, 8))))
    ds.observation.attrs = a.twin.observation.attrs
    assert xdan.cycle(ds, a.net).analysis.chunks is not None
    with pytest.raises(ValueError, match="is NaN, which means that nothing is observed"):
        cycle(a, ds)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, r"device='gpu': expected 'auto', 'cpu'"),
        ({"minutes": "3", "steps": None}, TypeError, r"minutes='3': expected a number"),
        ({"validation": "0.1"}, TypeError, r"validation='0.1': expected a number"),
    ],
)
def test_settings_of_another_type(a, changes, error, message):
    with pytest.raises(error, match=message):
        train(a, **changes)


@pytest.mark.parametrize("network", [None, 3, torch.ones(1)])
def test_networks_of_another_type(a, network):
    with pytest.raises(TypeError, match=r"network=.*: expected a registered name, an architecture such as"):
        xdan.train(a.twin, network, steps=1, progress=False)


@pytest.mark.parametrize("verb", VERBS)
def test_records_whose_values_are_no_numbers_or_keep_their_fill_value(a, verb):
    filled = a.twin.observation.fillna(-9999.0)
    filled.attrs = {**a.twin.observation.attrs, "_FillValue": -9999.0}
    twice = a.twin.assign_coords(trajectory=[0, 1, 1, 3])
    for ds, error, message in (
        (a.twin.assign(observation=a.twin.observation.astype(complex)), TypeError, "dtype complex128: expected real"),
        (a.twin.assign(observation=a.twin.observation.astype(str)), TypeError, "expected real numbers"),
        (a.twin.assign(observation=filled), ValueError, r"_FillValue=-9999.0: expected NaN for its gaps"),
        (twice, ValueError, r"trajectory label 1 occurs 2 times"),
    ):
        with pytest.raises(error, match=message):
            VERBS[verb](a, ds)
