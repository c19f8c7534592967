"""Sixty mistakes of new users: each is refused or warned of, with what came, what was expected and what to do."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import xdan

TABLES = {
    "dims": {
        "dims in capitals": (
            lambda a: xdan.cycle(a.twin.rename(x="X"), a.net),
            (
                r"'truth' has dims .*'X'",
                r"without \['x'\]: expected the dynamics' state dims",
                "rename the record's dims",
            ),
        ),
        "trajectory and time are stacked": (
            lambda a: xdan.cycle(a.twin.stack(sample=("trajectory", "time")), a.net),
            (r"dims \('x', 'sample'\)", "none is time: expected 'time'", "rename the dim of the analysis times"),
        ),
        "trajectories are called members": (
            lambda a: xdan.cycle(a.twin.rename(trajectory="member"), a.net),
            (r"has dims \['member'\]", r"expected, \(trajectory, time, x\)", r"rename them, or .*ds.isel\(member=0\)"),
        ),
        "a single time is selected": (
            lambda a: xdan.cycle(a.twin.isel(time=3), a.net),
            (r"dims \('trajectory', 'x'\)", "expected 'time'", r"a single time: ds.isel\(time=\[0\]\)"),
        ),
        "a single site is selected": (
            lambda a: xdan.cycle(a.twin.isel(x=3), a.net),
            (r"dims \('trajectory', 'time'\)", "expected the dynamics' state dims", r"a single place .*: x=\[0\]"),
        ),
        "times are shuffled": (
            lambda a: xdan.cycle(a.twin.isel(time=[0, 5, 3, 9]), a.net),
            ("0.25 then 0.15", "expected times in ascending order, each once", r"ds.sortby\('time'\)"),
        ),
        "a model of another size": (
            lambda a: xdan.cycle(a.twin, a.net, dynamics=xdan.Lorenz96(sites=40)),
            (r"state sizes \{'x': 8\}", r"sites=40.* expects \{'x': 40\}", "pass the dynamics= of this record"),
        ),
    },
    "types": {
        "a DataArray in place of the record": (
            lambda a: xdan.cycle(a.twin.observation, a.net),
            ("DataArray", "expected the Dataset of a twin or of a record", "arrays go into an xarray.Dataset"),
        ),
        "a path in place of the record": (
            lambda a: xdan.cycle("record.zarr", a.net),
            ("ds='record.zarr'", "expected the Dataset", "xarray.open_zarr opens a store"),
        ),
        "network and record are exchanged": (
            lambda a: xdan.cycle(a.net, a.twin),
            ("ds=<xdan.Network", "expected the Dataset", "xarray.open_zarr"),
        ),
        "a method's name for cycle": (
            lambda a: xdan.cycle(a.twin, "enkf-n"),
            ("cannot cycle with str", "expected a Network", r"classical ones go by name through baseline\(\)"),
        ),
        "a class in place of a method": (
            lambda a: xdan.cycle(a.twin, xdan.FiniteSizeEnKF),
            ("the class FiniteSizeEnKF", "expected an object", r"such as FiniteSizeEnKF\(\)"),
        ),
        "a class in place of a model": (
            lambda a: xdan.twin(xdan.Lorenz96),
            ("experiment=<class", "expected an xdan Dynamics", r"such as xdan.Lorenz96\(\)"),
        ),
        "a function in place of a model": (
            lambda a: xdan.cycle(a.twin, a.net, dynamics=lambda x: -x),
            ("dynamics=<function", "expected an xdan Dynamics", r"wrap a torch function as xdan.CustomDynamics\("),
        ),
        "a NumPy function as a torch model": (
            lambda a: xdan.twin(
                xdan.CustomDynamics(lambda x: np.roll(x, 1), state={"x": 8}, timestep=0.05, spin_up_time=1.0), cycles=2
            ),
            ("gave a ndarray", r"expected a tensor of shape \(\d, 8\)", "write it with torch, or .*xdan.NumpyDynamics"),
        ),
        "an experiment and its settings": (
            lambda a: xdan.twin(xdan.TwinExperiment(a.model), error_std=2.0),
            (r"\['error_std'\] beside a TwinExperiment", "expected none", r"dataclasses.replace\(experiment"),
        ),
        "sites by their numbers": (
            lambda a: xdan.twin(a.model, observe=[0, 2, 4]),
            (r"observe=\[0, 2, 4\]", "expected Sites", r"such as xdan.Sites.all\(\) or xdan.Sites.every\(2\)"),
        ),
    },
    "units and dates": {
        "truth and observation in two units": (
            lambda a: xdan.cycle(a.twin.assign(observation=a.twin.observation.assign_attrs(units="K")), a.net),
            ("'truth' is in '1' and 'observation' in 'K'", "taken as the same unit", "Convert one of them"),
        ),
        "hours for a model without units": (
            lambda a: xdan.cycle(
                a.twin.assign_coords(time=a.twin.time.assign_attrs(units="hours since 2000-01-01")), a.net
            ),
            ("time is in 'hours since 2000-01-01'", "expected times in", r"Pass dynamics=xdan.Lorenz96\(time_unit="),
        ),
        "a date for a model without a time unit": (
            lambda a: xdan.twin(a.model, start=np.datetime64("2000-01-01")),
            ("start=np.datetime64", "which has no time_unit: expected how long", "or leave out start="),
        ),
        "a date in words": (
            lambda a: xdan.twin(a.days, start="2000-01-01"),
            ("start='2000-01-01'", "expected a date", "such as np.datetime64"),
        ),
        "a time unit as a number": (
            lambda a: xdan.Lorenz96(time_unit=5),
            ("time_unit=5", "expected how long one unit of model time lasts", r"np.timedelta64\(1, 'D'\)"),
        ),
        "dates that no number of steps reaches": (
            lambda a: xdan.baseline(a.uneven, "enkf-n", members=3),
            (r"an interval of 0\.\d+ is not a positive multiple", "expected a multiple", "choose another interval, or"),
        ),
        "the variance in place of the deviation": (
            lambda a: xdan.baseline(a.twin, "optimal-interpolation", observation_error=100.0),
            ("R is far larger than the observations' errors", "what R expects", "Look whether .* standard deviation"),
        ),
        "observations in another unit": (
            lambda a: xdan.baseline(a.twin.assign(observation=a.twin.observation + 273.15), "optimal-interpolation"),
            ("the observations are far from the truth", "what R expects", "Look at the units of both"),
        ),
    },
    "fill values": {
        "gaps of -999": (
            lambda a: xdan.cycle(a.filled(-999.0), a.net),
            ("96 of 768 values of 'observation' are -999", "expected NaN", r"ds.where\(ds.observation != -999\)"),
        ),
        "gaps of 1e20": (
            lambda a: xdan.train(a.filled(1e20), a.architecture, **a.quick),
            (r"96 of 768 values of 'observation' are 1e\+20", "expected NaN", "ds.where"),
        ),
    },
    "names": {
        "a dash forgotten": (
            lambda a: xdan.baseline(a.twin, "enkfn"),
            ("baseline 'enkfn' is unknown", "known are .*: expected one of them", "perhaps 'enkf-n'"),
        ),
        "a method in capitals": (
            lambda a: xdan.baseline(a.twin, "LETKF"),
            ("'LETKF' is unknown", "expected one of them", "perhaps 'letkf'"),
        ),
        "a parameter's plural": (
            lambda a: xdan.baseline(a.twin, "enkf-n", member=20),
            (r"no parameters \['member'\]", r"it takes \[.*\], expected no others", "perhaps 'members'"),
        ),
        "inflation misspelt": (
            lambda a: xdan.baseline(a.twin, "etkf", inflaton=1.1),
            (r"no parameters \['inflaton'\]", "expected no others", "perhaps 'inflation'"),
        ),
        "a variable misspelt": (
            lambda a: xdan.cycle(a.twin, a.net, observation="observations"),
            ("no variable 'observations' for observation=", "expected one of", "perhaps 'observation'"),
        ),
        "a word of a record misspelt": (
            lambda a: xdan.cycle(a.twin, a.net, observation_errors=1.0),
            ("observation_errors=1.0", "expected no argument beyond", "perhaps 'observation_error'"),
        ),
        "a parameter of a model": (
            lambda a: xdan.Lorenz96(site=8),
            ("site=8", "expected no argument beyond .*'forcing'", "perhaps 'sites'"),
        ),
        "a parameter of a network": (
            lambda a: xdan.ResidualCNN(filter=8),
            ("filter=8", "expected no argument beyond .*'kernel'", "perhaps 'filters'"),
        ),
        "a setting of an experiment": (
            lambda a: xdan.TwinExperiment(a.model, error_sdt=1.0),
            ("error_sdt=1.0", "expected no argument beyond .*'interval'", "perhaps 'error_std'"),
        ),
        "a setting of a spread": (
            lambda a: xdan.with_spread(a.net, mea="frozen"),
            ("mea='frozen'", "expected no argument beyond .*'filters'", "perhaps 'mean'"),
        ),
        "a verb misspelt": (
            lambda a: a.twin.dan.cylce(a.net),
            (".dan has no 'cylce'", "it has .*'baseline'", "perhaps 'cycle'"),
        ),
        "a class in small letters": (
            lambda a: xdan.lorenz96,
            ("no attribute 'lorenz96'", "it has .*'baseline'", "perhaps 'Lorenz96'"),
        ),
        "a twin's cycles": (
            lambda a: xdan.twin(a.model, n_cycles=10),
            (r"takes no \['n_cycles'\]", "expected .*'interval'", "perhaps 'cycles'"),
        ),
    },
    "methods": {
        "a Kalman filter of a nonlinear model": (
            lambda a: xdan.baseline(a.twin, "kalman"),
            ("that of 'lorenz96' is not", "expected f", "take 'extended-kalman' or an ensemble method"),
        ),
        "tuning by a truth that is not there": (
            lambda a: xdan.baseline(a.twin.drop_vars("truth"), "etkf", inflation="tune", tune_on="truth"),
            ("tune_on='truth': the record has no truth", "expected one", "use tune_on='innovation'"),
        ),
        "a smoother that looks past the record": (
            lambda a: xdan.baseline(a.twin, "ienks-n", members=3, lag=50),
            ("lag=50", "the record has 24 times", "expected more than the lag"),
        ),
        "a climatology of one state": (
            lambda a: xdan.baseline(a.twin, "enkf-n", members=3, climatology=np.zeros((5, 8))),
            ("all 5 states of climatology= are the same", "expected states that differ", "their spread is that"),
        ),
        "an operator beside observed sites": (
            lambda a: xdan.baseline(a.twin, "enkf-n", members=3, operator=np.ones((3, 8))),
            ("has dims .* without 'obs'", "expected that dim", "or no operator where sites are observed"),
        ),
        "two descriptions of R": (
            lambda a: xdan.twin(a.model, error_std=2.0, error_covariance=np.eye(8)),
            ("both were given", "expected one of error_std= and error_covariance=", "None removes one of them"),
        ),
    },
    "networks and training": {
        "a network misspelt": (
            lambda a: xdan.train(a.single, "residual_cnn", **a.quick),
            ("network 'residual_cnn' is unknown", "expected one of them", "perhaps 'residual-cnn'"),
        ),
        "the architecture's sizes to train": (
            lambda a: xdan.train(a.single, filters=40, **a.quick),
            ("argument 'filters'", "expected its parameters", r"pass network=xdan.ResidualCNN\(filters=...\)"),
        ),
        "the learning rate to train": (
            lambda a: xdan.train(a.single, learning_rate=0.001, **a.quick),
            ("argument 'learning_rate'", "expected its parameters", "is a parameter of xdan.Optimiser, for optimiser="),
        ),
        "a batch in words of another library": (
            lambda a: xdan.train(a.single, batch_size=2, steps=2),
            ("argument 'batch_size'", "expected its parameters", "perhaps 'batch'"),
        ),
        "a schedule to train": (
            lambda a: xdan.train(a.single, schedule="cosine", **a.quick),
            ("argument 'schedule'", "expected its parameters", "is a parameter of xdan.Optimiser, for optimiser="),
        ),
        "a schedule misspelt": (
            lambda a: xdan.Optimiser(schedule="cosinus"),
            ("schedule='cosinus'", r"expected one of \['constant', 'cosine', 'linear'\]", "perhaps 'cosine'"),
        ),
        "no patience at all": (
            lambda a: xdan.train(a.single, patience=0, **a.quick),
            ("patience=0", "expected at least 1", "patience="),
        ),
        "a name for what is called at validations": (
            lambda a: xdan.train(a.single, on_validation="print", **a.quick),
            ("on_validation='print'", "expected a function of one dict", "may return True to stop the training"),
        ),
        "a number for an optimiser": (
            lambda a: xdan.train(a.single, optimiser=0.001, **a.quick),
            ("optimiser=0.001", "expected an xdan.Optimiser", r"such as xdan.Optimiser\(learning_rate="),
        ),
        "an objective misspelt": (
            lambda a: xdan.train(a.single, objective="rsme", **a.quick),
            ("objective='rsme'", r"expected one of \['analysis'", "perhaps 'rmse'"),
        ),
        "training on a run": (
            lambda a: xdan.train(a.run, a.architecture, **a.quick),
            (r"found \['analysis'", "expected a variable 'observation'", "looks like a run: pass the record"),
        ),
        "a network as its own teacher": (
            lambda a: xdan.train(a.single, teacher=a.net, **a.quick),
            ("teacher=<xdan.Network", r"expected the Dataset that baseline\(\) returned", "or .* a method's name"),
        ),
        "a committee of one": (
            lambda a: xdan.committee([a.net]),
            (
                r"a committee of \['residual-cnn'\]",
                "expected at least two networks",
                r"xdan.committee\(\[net, other\]\)",
            ),
        ),
        "a class in place of a torch module": (
            lambda a: xdan.train(a.single, a.Affine, **a.quick),
            ("network=Affine is a class", "expected an instance of it", r"such as Affine\(...\)"),
        ),
        "a torch module that gives a shorter state": (
            lambda a: xdan.train(a.single, a.Affine(8, 5), **a.quick),
            (r"Affine gave torch.float32 of shape \(1, 5\)", "expected the analysis", r"of shape \(1, 8\)"),
        ),
        "a torch module without parameters": (
            lambda a: xdan.train(a.single, torch.nn.Identity(), **a.quick),
            ("the module Identity has no parameters", "expected some to train", "as torch.nn.Parameter or layers"),
        ),
        "a torch module to cycle with": (
            lambda a: xdan.cycle(a.single, a.Affine(8, 8)),
            ("cannot cycle with Affine", "expected a Network", r"train\(\) give, of a torch module too"),
        ),
        "a network for another R": (
            lambda a: xdan.cycle(a.twin.isel(time=slice(6)), a.net, observation_error=3.0),
            ("the observation error is 3", "in training it was 1", r"ds.dan.train\(\)"),
        ),
        "a network for another forcing": (
            lambda a: xdan.cycle(a.twin.isel(time=slice(6)), a.net, dynamics=xdan.Lorenz96(sites=8, forcing=9.0)),
            ("the dynamics has forcing=9", "in training it had 8", r"compare with baseline\('enkf-n'\)"),
        ),
        "a network for another interval": (
            lambda a: xdan.cycle(a.twin.isel(time=slice(0, 24, 4)), a.net),
            ("the interval is 0.2", "in training it was 0.05", r"ds.dan.train\(\)"),
        ),
    },
    "stores": {
        "a run into NetCDF": (
            lambda a: xdan.cycle(a.twin, a.net, store=a.folder / "run.nc", progress=False),
            ("run.nc' is the name of a .nc file", "expected the path of a Zarr store", r"ds.to_netcdf\(path\)"),
        ),
        "weights of torch as a network": (
            lambda a: xdan.open_network(a.folder / "net.pt"),
            ("net.pt' is the name of a .pt file", "expected the path of a Zarr store", "such as 'run.zarr'"),
        ),
        "a torch module opened without it": (
            lambda a: xdan.open_network(a.folder / "module.zarr"),
            (
                "weights of the torch module '.*Affine', and no code",
                "expected module=",
                "import Affine; xdan.open_net",
            ),
        ),
        "a torch module opened with another": (
            lambda a: xdan.open_network(a.folder / "module.zarr", module=torch.nn.Linear(8, 8)),
            (r"module=torch.*Linear: the weights are those of .*Affine", "expected an instance of that class"),
        ),
        "a record opened as a network": (
            lambda a: xdan.open_network(a.folder / "record.zarr"),
            ("record.zarr .* is not a group of arrays", "expected a store of a network", "opened by xarray.open_zarr"),
        ),
        "a network opened as a model": (
            lambda a: xdan.open_dynamics(a.folder / "net.zarr"),
            ("holds no model", "expected a store that save_dynamics wrote", "networks are opened by open_network"),
        ),
        "a model that needs no store": (
            lambda a: xdan.save_dynamics(a.model, a.folder / "model.zarr"),
            ("dynamics=Lorenz96", "expected a CorrectedDynamics or", "the attributes of a record describe any other"),
        ),
    },
    "scores": {
        "fewer trajectories than the run has": (
            lambda a: xdan.score(a.twin.isel(trajectory=[0, 1]), a.run),
            ("'forecast' has 4", "expected 2 labels", "Make the run on this record"),
        ),
        "run and record are exchanged": (
            lambda a: xdan.score(a.run, a.twin),
            (r"found \['analysis'", "expected a variable 'observation'", "looks like a run: pass the record"),
        ),
        "an analysis of another name": (
            lambda a: xdan.score(a.twin, a.run.rename(analysis="xa")),
            (r"lacks \['analysis'\]; found .*'xa'", r"expected what cycle\(\) or baseline\(\)", "ds.rename"),
        ),
        "ranks without members": (
            lambda a: xdan.rank_histogram(a.twin, a.run),
            ("holds no 'members'", "expected members of every cycle", r"run baseline\(..., keep_members=True\)"),
        ),
        "a score by its name": (
            lambda a: xdan.score(a.twin, a.run, also="rmse"),
            ("also='rmse'", "expected a list", r"of xdan.StateScore\(function"),
        ),
        "a map of scores": (
            lambda a: xdan.score(a.twin, a.run, along="sites"),
            ("along='sites'", r"expected one of \['site', 'state'\]", "perhaps 'site'"),
        ),
        "forecasts longer than the record": (
            lambda a: xdan.forecast_skill(a.twin, {"model": a.model}, leads=100),
            ("leads=100", "of a truth of 24 cycles", "expected fewer leads"),
        ),
    },
    "plots": {
        "a list of runs": (
            lambda a: xdan.rmse_in_time(a.twin, [a.run]),
            ("runs is a list", "expected a mapping of name to a run", r"of cycle\(\) or baseline\(\)"),
        ),
        "a number of cycles": (
            lambda a: xdan.hovmoller(a.twin, a.run, cycles=10),
            ("cycles=10", "expected a slice of positions", r"such as slice\(0, 200\)"),
        ),
        "a map of a state of one dim": (
            lambda a: xdan.field_maps(a.twin, a.run),
            (r"the state has dims \('x',\)", "expected 2", "see xdan.explore"),
        ),
    },
    "diagnostics and estimates": {
        "the gain of a method's name": (
            lambda a: xdan.gain(a.twin, "enkf-n"),
            ("network='enkf-n'", "expected a Network", r"as train\(\) and open_network\(\) give"),
        ),
        "a group in words": (
            lambda a: xdan.gain(a.twin, a.net, group="ring"),
            ("group='ring'", "expected an xdan.Group", r"such as xdan.Group.ring\(8\)"),
        ),
        "a covariance without members": (
            lambda a: xdan.ensemble_covariance(a.run),
            ("holds no 'members'", "expected one made with", r"baseline\(..., keep_members=True\)"),
        ),
        "exponents of a record": (
            lambda a: xdan.lyapunov_spectrum(a.twin),
            ("dynamics=<xarray.Dataset>", "expected an xdan Dynamics", r"such as xdan.Lorenz96\(\)"),
        ),
        "vectors without a truth": (
            lambda a: xdan.lyapunov_vectors(a.twin.drop_vars("truth")),
            (r"found \['observation', 'observation_error'\]", "expected a variable 'truth'", "name it with truth="),
        ),
        "a parameter that the model does not have": (
            lambda a: xdan.estimate_parameters(a.twin, None, {"force": (7.0, 1.0)}, progress=False),
            ("no parameter 'force'", "expected some of its real parameters", r"\['forcing'\]"),
        ),
        "a prior without a deviation": (
            lambda a: xdan.estimate_parameters(a.twin, None, {"forcing": 7.0}, progress=False),
            (r"parameters\['forcing'\]=7.0", "expected a pair", r"\(mean, deviation\)"),
        ),
        "a correction of an unknown form": (
            lambda a: xdan.learn_correction(a.twin, a.ensemble, "cubic"),
            ("kind='cubic'", "expected one of", r"or a network such as xdan.QuadraticCNN\(\)"),
        ),
        "a surrogate's network by name": (
            lambda a: xdan.train_surrogate(a.twin, network="quadratic-cnn"),
            ("network='quadratic-cnn'", "expected a tendency network", r"such as xdan.QuadraticCNN\(\)"),
        ),
        "a scheme of a sweep in one word": (
            lambda a: xdan.sweep(a.model, {"filter": "enkf-n"}),
            ("scheme 'filter' is 'enkf-n'", "expected a mapping", r"such as \{'baseline': 'enkf-n'\}"),
        ),
    },
}
CASES = {f"{topic}: {name}": case for topic, cases in TABLES.items() for name, case in cases.items()}


class Affine(torch.nn.Linear):
    """A torch module as a user brings it."""

    def forward(self, x, zeta):
        return super().forward(x + zeta)


@pytest.fixture(scope="module")
def a(twin, single, net, run, ensemble, model, architecture, quick, tmp_path_factory):
    """All that the calls need, in order."""
    folder = tmp_path_factory.mktemp("stores")
    net.to_zarr(folder / "net.zarr")
    xdan.train(single, Affine(8, 8), **quick).to_zarr(folder / "module.zarr")
    twin.to_zarr(folder / "record.zarr", consolidated=False)
    (folder / "net.pt").write_bytes(b"weights")
    days = xdan.Lorenz96(sites=8, time_unit=np.timedelta64(5, "D"))
    dates = np.datetime64("2000-01-01", "ns") + np.arange(24) * np.timedelta64(6, "h")
    dates[12:] += np.timedelta64(1, "h")
    time = ("time", dates, {"axis": "T"})
    uneven = twin.assign_coords(time=time).assign_attrs(xdan.twin(days, cycles=2).attrs)

    def filled(value):
        return single.assign(observation=single.observation.where(single.x > 0, value))

    return SimpleNamespace(Affine=Affine, **locals())


def told(call, a):
    """The message of an error, or of the package's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(a)
            if isinstance(result, xr.Dataset):
                result.load()
        except (TypeError, ValueError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
    return "\n".join(str(one.message) for one in caught if issubclass(one.category, xdan.XdanWarning))


def test_there_are_sixty():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("call", "parts"), CASES.values(), ids=CASES.keys())
def test_message_says_what_came_what_was_expected_and_what_to_do(call, parts, a):
    message = " ".join(told(call, a).split())
    assert message, "silent"
    assert [part for part in parts if not re.search(part, message)] == [], message
