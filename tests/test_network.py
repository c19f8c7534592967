"""A network on disk and off it: the same bits, no pickle, and no store that was cut short or changed."""

import gc
import json
import math
import pickle
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from torch.testing import assert_close

import xdan
from xdan import network
from xdan.core.learning import Optimiser
from xdan.network import Network
from xdan.records.store import write_arrays


@pytest.fixture
def store(net, tmp_path):
    net.to_zarr(tmp_path / "net.zarr")
    return tmp_path / "net.zarr"


def test_same_bits_after_a_store(net, store, twin, run):
    opened = xdan.open_network(store)
    assert opened == net
    assert opened.digest == net.digest
    assert opened.description == net.description
    assert opened.arrays.keys() == net.arrays.keys()
    for name, value in net.arrays.items():
        assert opened.arrays[name].dtype == value.dtype
        assert opened.arrays[name].tobytes() == value.tobytes()
    xr.testing.assert_identical(opened.history, net.history)
    xr.testing.assert_identical(xdan.cycle(twin, opened), run)


def test_a_store_holds_plain_numbers(store):
    """Anything else would have to be unpickled or imported."""
    metadata = [json.loads(path.read_text()) for path in store.rglob("zarr.json")]
    arrays = [array for array in metadata if array["node_type"] == "array"]
    assert len(arrays) > 5
    assert {array["data_type"] for array in arrays} <= {"float32", "float64", "int64"}
    assert {codec["name"] for array in arrays for codec in array["codecs"]} <= {"bytes", "zstd", "crc32c"}


def test_no_history_is_no_obstacle(architecture, tmp_path):
    Network.from_module(architecture, ("x",), {}).to_zarr(tmp_path / "net.zarr")
    assert xdan.open_network(tmp_path / "net.zarr").history is None


def array_folders(store):
    return [path.parent for path in store.glob("*/zarr.json") if path.parent.name != "history"]


def test_missing_array_is_refused(store):
    for number, folder in enumerate(array_folders(store)):
        copy = store.parent / f"copy{number}.zarr"
        shutil.copytree(store, copy)
        shutil.rmtree(copy / folder.name)
        with pytest.raises(ValueError, match=f"cut short: arrays .*{folder.name}.* missing"):
            xdan.open_network(copy)


def test_missing_chunk_is_refused(store):
    for number, folder in enumerate(array_folders(store)):
        copy = store.parent / f"copy{number}.zarr"
        shutil.copytree(store, copy)
        value = zarr.open_array(copy / folder.name)
        shutil.rmtree(copy / folder.name / "c", ignore_errors=True)
        (copy / folder.name / "c").unlink(missing_ok=True)
        if np.any(value[...] != xdan.open_network(store).arrays[folder.name]):
            with pytest.raises(ValueError, match="cut short or changed"):
                xdan.open_network(copy)


def test_changed_value_is_refused(store):
    array = zarr.open_group(store, mode="r+")["weights.1"]
    array[0, 0] = np.nextafter(array[0, 0], np.float32(np.inf))
    with pytest.raises(ValueError, match="cut short or changed: its digest does not match"):
        xdan.open_network(store)


def test_no_store_and_another_store(tmp_path, twin):
    with pytest.raises(FileNotFoundError, match=r"nothing.zarr: there is no Zarr store"):
        xdan.open_network(tmp_path / "nothing.zarr")
    twin.to_zarr(tmp_path / "twin.zarr", consolidated=False)
    with pytest.raises(ValueError, match="not a group of arrays that xdan wrote"):
        xdan.open_network(tmp_path / "twin.zarr")
    write_arrays(tmp_path / "other.zarr", "", {}, {"steps": 1})
    with pytest.raises(ValueError, match=r"holds no network; found a description with \['steps'\]"):
        xdan.open_network(tmp_path / "other.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "os.system"}, r"network 'os.system' is unknown; known are \[.*'residual-cnn'"),
        ({"parameters": {"layers": 3}}, r"has no parameters \['layers'\]; it takes \[.*'filters'"),
        ({"parameters": {"filters": 5}}, "the arrays do not fit the network 'residual-cnn'"),
        ({"format": 99}, r"has network format 99, which a later xdan wrote: expected at most 1, .*; update xdan"),
    ],
    ids=["name", "unknown parameter", "other sizes", "format"],
)
def test_description_that_does_not_fit(net, tmp_path, change, message):
    write_arrays(tmp_path / "net.zarr", "", net.arrays, {**net.description, **change})
    with pytest.raises(ValueError, match=message):
        xdan.open_network(tmp_path / "net.zarr")


def test_existing_store_is_kept(net, store, single, quick):
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    other = xdan.train(single, **quick, seed=5, memory=1)
    with pytest.raises(FileExistsError, match="exists; pass mode='w' to overwrite it, or another path"):
        other.to_zarr(store)
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == files
    other.to_zarr(store, mode="w")
    assert xdan.open_network(store) == other


def test_other_dims_are_refused(net):
    circle = xdan.CustomDynamics(lambda x: -x, state={"lon": 8}, timestep=0.05)
    ds = xdan.twin(circle, cycles=3)
    with pytest.raises(ValueError, match=r"dims \('x',\), the record's state has \('lon',\): rename the record's dims"):
        xdan.cycle(ds, net, dynamics=circle)


def test_any_number_of_sites(net):
    ds = xdan.twin(xdan.Lorenz96(sites=13), cycles=12, seed=4)
    assert np.isfinite(xdan.cycle(ds, net).compute().analysis).all()


def test_its_modules_go_with_the_network(net):
    """Equal networks share a module, of each type; none is left when the last of them is gone."""
    arrays = {**net.arrays, "state_mean": net.arrays["state_mean"] + 1}
    one, other = (Network(net.description, arrays) for _ in range(2))
    single, double = one.method(), one.method(torch.float64)
    assert other.method() is single is one.method()
    assert double is not single
    assert pickle.loads(pickle.dumps(one)).method() is single
    modules = weakref.ref(single.network), weakref.ref(double.network)
    del one, other, single, double
    gc.collect()
    assert [module() for module in modules] == [None, None]
    assert net.method() is net.method()


def test_a_network_cannot_be_changed(net):
    digest = net.digest
    with pytest.raises(ValueError, match="read-only"):
        net.arrays["weights.0"][:] = 0
    with torch.no_grad():
        for parameter in net.module().parameters():
            parameter.zero_()
    np.testing.assert_array_equal(net.module().weights[0].detach(), net.arrays["weights.0"])
    assert Network(net.description, net.arrays).digest == digest


def test_the_callers_module_is_copied():
    module = xdan.ResidualCNN(filters=2, blocks=1)
    net = Network.from_module(module, ("x",), {})
    before = {name: value.copy() for name, value in net.arrays.items()}
    with torch.no_grad():
        module.weights[0].add_(1)
    np.testing.assert_array_equal(net.arrays["weights.0"], before["weights.0"])


def test_digest_is_of_what_computes(net):
    """Two networks are the same where they compute the same, however they were trained."""
    told = {**net.description, "training": {}}
    assert Network(told, net.arrays) == net
    moved = {**net.arrays, "weights.0": net.arrays["weights.0"] + np.float32(1e-6)}
    assert Network(net.description, moved) != net
    turned = {**net.description, "parameters": {**net.description["parameters"], "activation": "silu"}}
    assert Network(turned, net.arrays) != net
    assert hash(net) == hash(Network(told, net.arrays))


def test_travels_between_processes(net):
    again = pickle.loads(pickle.dumps(net))
    assert again == net
    assert again.description == net.description


def test_modules_keep_double_precision_where_asked(net, twin, run):
    assert run.analysis.dtype == np.float64
    module = net.module(torch.float64)
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    assert not module.training


def test_repr(net):
    assert repr(net).startswith("<xdan.Network residual-cnn(filters=4, blocks=1, ")
    assert f"{sum(v.size for v in net.arrays.values())} weights, validation RMSE 0." in repr(net)


@pytest.mark.filterwarnings(
    "ignore:the observations are far from the truth", "ignore:R is far larger", "ignore:the network sees"
)
@pytest.mark.filterwarnings("ignore:the network is used out of the setting")
def test_records_of_another_climate_are_refused(twin, single, architecture, quick, tmp_path):
    net = single.dan.train(architecture, **quick)
    kelvin = twin.assign(observation=twin.observation + 273.0)
    with pytest.raises(ValueError, match=r"trained on states of mean .* bring the record to the units of the training"):
        kelvin.dan.cycle(net)
    large = twin.assign(observation=100 * twin.observation, observation_error=100 * twin.observation_error)
    with pytest.raises(ValueError, match="trained on states of mean"):
        large.chunk(time=5).dan.cycle(net, store=tmp_path / "run.zarr", progress=False)
    loud = twin.assign(observation_error=30 * twin.observation_error)
    loud.dan.cycle(net)
    few = kelvin.assign(observation=kelvin.observation.where(kelvin.time < 0.1))
    with pytest.warns(xdan.XdanWarning, match="every trajectory diverged"):
        few.dan.cycle(net)


def test_a_committee_averages_trained_networks_and_trains_on(single, architecture, quick, tmp_path):
    pair = [single.dan.train(architecture, **quick, seed=seed) for seed in (0, 1)]
    both = xdan.committee(pair)
    assert both.memory == 2 * pair[0].memory
    assert xdan.committee([both, pair[0]]).memory == 3 * pair[0].memory  # its networks, one by one
    both.to_zarr(tmp_path / "net.zarr")
    assert xdan.open_network(tmp_path / "net.zarr") == both
    few = single.isel(time=slice(2))  # one analysis by the networks, from the same forecast
    alone = [few.dan.cycle(net).analysis.isel(time=1) for net in pair]
    xr.testing.assert_allclose(few.dan.cycle(both).analysis.isel(time=1), sum(alone) / 2, rtol=1e-5)
    onward = single.dan.train(both, **{**quick, "steps": 40}, optimiser=Optimiser(1e-3, 2e-4))
    assert onward != both
    told = onward.description["training"]["before"]
    assert told == {"committee": [net.description["training"] for net in pair]}
    assert "committee" in repr(onward)


def test_a_committee_takes_errors_that_were_estimated(tmp_path):
    """That of a field that no observation sees comes from states of the climate, which differ by the seed."""
    space = xdan.StateSpace([xdan.Field("h", xdan.Ring(4)), xdan.Field("u", xdan.Ring(4))])
    pair = []
    for error in (0.0157, 0.0158, 0.02):
        module = xdan.ResidualCNN(space=space, filters=2, blocks=1, kernel=3)
        module.normalise([0.0, 0.0], [1.0, 1.0], [0.3, error])
        pair.append(Network.from_module(module, space.dims, {"data": {}}))
    both = xdan.committee(pair[:2])
    both.to_zarr(tmp_path / "net.zarr")
    assert xdan.open_network(tmp_path / "net.zarr") == both
    with pytest.raises(ValueError, match=r"observation errors of \[.*\]: expected the same for all"):
        xdan.committee(pair)


def test_networks_that_make_no_committee_are_refused(net, twin, single, quick):
    with pytest.raises(TypeError, match="networks= holds a str: expected trained networks"):
        xdan.committee([net, "lorenz96"])
    for wrong in (net, 3, None, np.array(2)):
        with pytest.raises(TypeError, match=r"networks=.*: expected a list of trained networks"):
            xdan.committee(wrong)
    with pytest.raises(ValueError, match="expected at least two networks, none of them a committee"):
        xdan.committee(one for one in [net])
    loud = single.assign(observation_error=2 * single.observation_error).dan.train(**quick)
    with pytest.raises(ValueError, match=r"observation errors of \[.*\]: expected the same for all"):
        xdan.committee([net, loud])
    with pytest.raises(ValueError, match=r"\['ensemble-cnn'\] take members"):
        xdan.committee([net, single.dan.train(xdan.EnsembleCNN(members=2, filters=4, blocks=1), **quick)])


def test_a_committee_of_networks_from_other_settings_warns(net):
    def trained(**data):
        return Network({**net.description, "training": {"data": data}}, net.arrays)

    def ring(**parameters):
        return {"name": "lorenz96", "parameters": {"sites": 8, "forcing": 8.0, "timestep": 0.05, **parameters}}

    usual = {"interval": 0.05, "error_std": [1.0, 1.0], "observing": {"kind": "all", "parameters": {}}}
    base = trained(**usual, endless=ring())
    for alike in ({}, {"interval": 0.0500001}, {**usual, "dynamics": ring(sites=40, timestep=0.01)}):
        assert xdan.committee([base, trained(**alike)]).memory == 2 * net.memory
    for unlike, message in (
        ({**usual, "interval": 0.1}, r"interval: 0\.05, 0\.1\)"),
        ({"observing": {"kind": "every", "parameters": {"step": 2}}}, "observed sites: .*step=2"),
        ({"error_std": 2.0}, "observation error: 1, 2"),
        ({"dynamics": ring(forcing=10.0)}, r"the dynamics' forcing: 8\.0, 10\.0"),
        ({"dynamics": {"name": "lorenz63", "parameters": {}}}, "dynamics: 'lorenz96', 'lorenz63'"),
    ):
        with pytest.warns(xdan.XdanWarning, match=message):
            xdan.committee([base, trained(**unlike)])


@pytest.fixture(scope="module", params=network.SHIPPED)
def shipped(request):
    return request.param, xdan.open_network(request.param)


def test_shipped_networks_say_how_they_were_trained(shipped):
    name, net = shipped
    assert name in network.SHIPPED
    training = net.description["training"]
    assert {"seed", "window", "batch", "learning_rate", "torch", "seconds"} <= set(training)
    assert net.history.validation_rmse.min() == training["validation_rmse"]
    without = ("lorenz96", "lorenz96-wide", "lorenz96-gaussian", "lorenz96-single", "kuramoto-sivashinsky", "sphere-qg")
    assert (net.module().memory > 0) == (name not in without)
    folder = Path(network.__file__).with_name("trained") / f"{name}.zarr"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3_500_000


OTHERS = {  # what they were trained on, cycles, burn-in, and the RMSE that they stay below, in observation errors
    "kuramoto-sivashinsky": (xdan.KuramotoSivashinsky, {"interval": 1.0}, 60, 30, 0.15),
    "kuramoto-sivashinsky-memory": (xdan.KuramotoSivashinsky, {"interval": 1.0}, 60, 30, 0.14),
    "kuramoto-sivashinsky-kalman": (xdan.KuramotoSivashinsky, {"interval": 1.0}, 60, 30, 0.13),
    "kuramoto-sivashinsky-sparse": (
        xdan.KuramotoSivashinsky,
        {"interval": 1.0, "observe": xdan.Sites.every(8)},
        120,
        60,
        0.8,
    ),
    "lorenz96-sparse": (xdan.Lorenz96, {"interval": 0.15, "observe": xdan.Sites.every(4)}, 120, 60, 1.25),
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_other_systems_assimilate_there(name):
    model, experiment, cycles, burn_in, most = OTHERS[name]
    ds = xdan.twin(model(), **experiment, cycles=cycles, trajectories=4, seed=8).compute()
    run = ds.dan.cycle(xdan.open_network(name))
    assert float(ds.dan.score(run, burn_in=burn_in).rmse) < most


@pytest.mark.slow
def test_networks_on_the_sphere_assimilate_there():
    """All three come within half an observation error in two days, from a climate of four states."""
    model = xdan.SphereQG()
    states = model.advance(model.rest(torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(1))), 480)
    experiment = xdan.TwinExperiment(model, interval=0.25, error_std=2e6)
    ds = xdan.twin(experiment, cycles=8, trajectories=2, seed=8, climatology=states.numpy()).compute()
    for name in ("sphere-qg", "sphere-qg-memory", "sphere-qg-kalman"):
        score = ds.dan.score(ds.dan.cycle(xdan.open_network(name)), burn_in=7)
        assert float(score.rmse) < 0.5 * 2e6, name


def test_a_network_of_one_ring_works_on_another():
    net, longer = xdan.open_network("kuramoto-sivashinsky"), xdan.KuramotoSivashinsky(160, 40 * math.pi)
    other = net.for_space(longer.space)
    assert other.space == longer.space
    assert other.digest != net.digest
    ds = xdan.twin(longer, interval=1.0, cycles=90, trajectories=2, seed=8).compute()
    with pytest.warns(xdan.XdanWarning, match="the dynamics has length=125.6"):
        run = ds.dan.cycle(other)
    assert float(ds.dan.score(run, burn_in=60).rmse) < 0.15
    back = other.for_space(net.space)
    assert back == net
    with pytest.raises(ValueError, match="made for the fields"):
        ds.dan.cycle(net)


def test_a_network_of_a_sphere_takes_the_fixed_inputs_of_another():
    fine = xdan.SphereQG(42)
    net = xdan.open_network("sphere-qg")
    there = net.for_space(fine.space)
    expected = there.module().arrangement.fixed(fine.space.inputs)
    assert_close(there.module().fixed_inputs, expected.to(torch.float32))
    assert there.module().fixed_inputs.shape[1:] == (64, 128)


@pytest.mark.parametrize(
    ("space", "error", "text"),
    [
        ("ring", TypeError, "space='ring': expected a StateSpace"),
        (xdan.Lorenz63().space, ValueError, r"another space has the fields .*: expected \[\('u', '1', 'ring'\)\]"),
        (
            xdan.StateSpace(xdan.Field("u", xdan.Ring(8)), [xdan.FixedInput("depth", xdan.Ring(8), torch.ones(8))]),
            ValueError,
            r"another space has the fixed inputs \['depth'\]: expected \[\]",
        ),
    ],
)
def test_spaces_that_a_network_cannot_work_on_are_refused(space, error, text):
    with pytest.raises(error, match=text):
        xdan.open_network("kuramoto-sivashinsky").for_space(space)


def test_parameters_that_a_description_leaves_out_can_be_set():
    """Descriptions leave out what does nothing, such as a radius of None."""
    net = xdan.open_network("lorenz96-kalman")
    for parameters in ({"columns": 36}, {"radius": 12.0}, {"inflation": 1.02}, {"passes": 1}):
        other = net.with_parameters(**parameters)
        ((label, value),) = parameters.items()
        assert getattr(other.module(), label) == value
    assert net.with_parameters(columns=36).with_parameters(columns=None) == net
    with pytest.raises(TypeError, match="'colums'"):
        net.with_parameters(colums=36)


def test_a_committee_has_no_space_to_change():
    net = xdan.open_network("kuramoto-sivashinsky")
    with pytest.raises(TypeError, match="is made of others"):
        xdan.committee([net, net]).for_space(xdan.KuramotoSivashinsky(160, 40 * math.pi).space)


def test_a_network_of_any_ring_has_no_space_to_change():
    with pytest.raises(TypeError, match="works on any ring as it is"):
        xdan.open_network("lorenz96-wide").for_space(xdan.Lorenz96(80).space)


def rings():
    """Each network that was trained on 40 sites with some ring; all of the three rings are slow."""
    names = [name for name in network.SHIPPED if name.startswith("lorenz96") and name not in OTHERS]
    for place, name in enumerate(names):
        single = name == "lorenz96-single"  # slow to settle, and to run: 36 intervals backward and forward in a cycle
        quick = 40 if single else (40, 20, 100)[place % 3]
        for sites in (40,) if single else (20, 40, 100):
            yield pytest.param(name, sites, marks=pytest.mark.slow if single or sites != quick else ())


@pytest.mark.parametrize(("name", "sites"), list(rings()))
def test_shipped_networks_assimilate_on_any_ring(name, sites):
    net = xdan.open_network(name)
    cycles, trajectories, burn_in = (200, 3, 160) if name == "lorenz96-single" else (150, 320 // sites, 50)
    ds = xdan.twin(xdan.Lorenz96(sites=sites), cycles=cycles, trajectories=trajectories, seed=8).compute()
    run = ds.dan.cycle(net)
    assert float(ds.dan.score(run, burn_in=burn_in).rmse) < 0.235


@pytest.mark.parametrize("name", network.SHIPPED[:1])
def test_a_path_comes_before_a_shipped_name(name, twin, tmp_path, monkeypatch, architecture, single, quick):
    net = single.dan.train(architecture, **quick)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    (folder / "table.md").write_text("results of an example")
    shipped = xdan.open_network(name)
    assert shipped == xdan.open_network(network.shipped_store(name))
    shutil.rmtree(folder)
    net.to_zarr(name)
    assert xdan.open_network(name) == net != shipped
    assert name in xdan.networks().index


def test_a_network_with_a_covariance_is_saved_and_needs_its_run_for_a_gain(tmp_path):
    small = xdan.KalmanCNN(filters=4, blocks=1, kernel=3, memory=2, diagonals=3, c2=4.0)
    trained = xdan.train(xdan.Lorenz96(8), small, steps=3, batch=2, window=3, progress=False)
    trained.to_zarr(tmp_path / "net.zarr")
    opened = xdan.open_network(tmp_path / "net.zarr")
    assert opened == trained
    assert opened.module().c2 == 4.0
    record = xdan.twin(xdan.Lorenz96(8), interval=0.05, cycles=6, trajectories=2, seed=3).compute()
    run = record.dan.cycle(opened)
    assert {"spread", "forecast_spread"} <= set(run.data_vars)
    with pytest.raises(ValueError, match="expected a run that keeps it"):
        record.dan.gain(opened)


def test_other_parameters_on_the_same_weights():
    small = xdan.KalmanCNN(filters=2, blocks=1, kernel=3, memory=0, diagonals=3)
    net = xdan.train(xdan.Lorenz96(8), small, steps=1, batch=2, window=2, progress=False)
    other = net.with_parameters(c2=4.0, past=2)
    assert (other.module().second_order, other.module().past) == (4.0, 2)
    assert net.module().second_order == 8.0
    assert other.digest != net.digest
    assert other.description["training"] == net.description["training"]
    with pytest.raises(TypeError, match=r"'pasts'.*'kalman-cnn' has"):
        net.with_parameters(pasts=2)
    with pytest.raises(ValueError, match="c2=-1"):
        net.with_parameters(c2=-1.0)
    with pytest.raises(ValueError, match="arrays"):
        net.with_parameters(filters=3)
