"""Training: what is held back, what is kept, and what the weights may depend on."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import xdan
from xdan.core.learning import Optimiser
from xdan.core.learning.trainer import Trainer
from xdan.core.observing import Sites
from xdan.core.twin import TwinExperiment


@pytest.fixture(scope="module")
def wide(model):
    """Ten trajectories of 24 cycles, float32."""
    return xdan.twin(model, cycles=24, trajectories=10, seed=3).compute(scheduler="synchronous")


@pytest.fixture
def windows(monkeypatch):
    """Truths of the windows that a training steps on."""
    seen, step = [], Trainer.step

    def note(self, window, rate):
        seen.append(window.truth.numpy().copy())
        return step(self, window, rate)

    monkeypatch.setattr(Trainer, "step", note)
    return seen


def same(a, b):
    """Bitwise the same weights."""
    return all(a.arrays[name].tobytes() == b.arrays[name].tobytes() for name in {*a.arrays, *b.arrays})


def told(net):
    return net.description["training"]["data"]


def test_validation_share_is_held_back(wide, architecture, quick, windows):
    net = xdan.train(wide, architecture, **{**quick, "steps": 40}, validation=0.2)
    assert (told(net)["training_lanes"], told(net)["validation_lanes"]) == (8, 2)
    places = set()
    for truth in windows:
        for row in truth:
            equal = (wide.truth.values[:, :, None] == row[0]).all((2, 3)).nonzero()
            places |= {(int(r), int(k)) for r, k in zip(*equal, strict=True)}
    assert {r for r, _ in places} == set(range(8))
    assert {k for _, k in places} == {0, 4, 8, 12, 16, 20}


def test_best_network_is_the_one_returned(wide, architecture, quick):
    """Its score is the least of the history, and what cycling it over the held back trajectories gives."""
    net = xdan.train(wide, architecture, **{**quick, "steps": 40}, validation=0.2, optimiser=Optimiser(0.5))
    scores = net.history.validation_rmse
    assert np.argmin(scores.values) != scores.size - 1, "otherwise nothing is tested"
    best = net.description["training"]["validation_rmse"]
    assert best == float(scores.min())
    held = wide.isel(trajectory=slice(8, None))
    analysis = xdan.cycle(held, net).analysis
    square = ((analysis - held.truth).isel(time=slice(24 // 3, None)) ** 2).mean("x")
    np.testing.assert_allclose(np.sqrt(square).mean(), best, rtol=1e-5)


def test_a_network_that_only_diverges_is_told(model, quick):
    wild = {**quick, "optimiser": Optimiser(1e3, 1e3), "steps": 2}
    with pytest.warns(xdan.XdanWarning, match="no validation of these 2 steps was finite"):
        net = xdan.train(model, "residual-cnn-linear", **wild)
    assert net.description["training"]["validation_rmse"] == np.inf


def test_history(net):
    history = net.history
    assert set(history) == {"loss", "rmse", "validation_rmse", "rate", "restarts", "rewinds", "seconds"}
    assert all(history[name].dims == ("step",) for name in history)
    assert all({"long_name", "units"} <= set(history[name].attrs) for name in history.variables)
    assert history.step.values.tolist() == [4, 8, 12, 16, 20, 24, 28, 30]
    assert (history.seconds.diff("step") >= 0).all()
    assert (history.rate.diff("step") < 0).all()
    assert np.isfinite(history.to_array()).all()


def test_history_means_are_of_the_steps_since_the_last(single, architecture, quick, monkeypatch):
    losses, step = [], Trainer.step

    def note(self, window, rate):
        report = step(self, window, rate)
        losses.append(report.loss)
        return report

    monkeypatch.setattr(Trainer, "step", note)
    history = xdan.train(single, architecture, **{**quick, "steps": 6}).history
    np.testing.assert_allclose(history.loss, [np.mean(losses[:4]), np.mean(losses[4:])])


def test_seed_decides(single, architecture, quick):
    first, again, other = (xdan.train(single, architecture, **quick, seed=seed) for seed in (7, 7, 8))
    assert same(first, again)
    xr.testing.assert_identical(first.history.drop_vars("seconds"), again.history.drop_vars("seconds"))
    assert not same(first, other)


def test_global_random_state_is_neither_used_nor_moved(single, architecture, quick, net):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = xdan.train(single, architecture, **{**quick, "steps": 30})
    assert torch.equal(before, torch.get_rng_state())
    assert same(again, net)


@pytest.mark.parametrize("chunks", [{"trajectory": 1, "time": 24}, {"trajectory": 2, "time": 7}])
def test_disk_and_memory_give_the_same_weights(single, architecture, quick, net, tmp_path, chunks):
    single.chunk(chunks).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    settings = {**quick, "steps": 30}
    assert same(xdan.train(opened, architecture, **settings), net)
    assert same(xdan.train(single.chunk(chunks), architecture, **settings), net)


def test_names_and_order_of_dims_do_not_matter(single, architecture, quick, net):
    renamed = single.transpose("x", "time", "trajectory").rename(truth="nature", observation="sondes")
    settings = {**quick, "steps": 30}
    assert same(xdan.train(renamed, architecture, **settings), net)
    bare = renamed.drop_attrs(deep=True)
    roles = {"truth": "nature", "observation": "sondes", "dynamics": xdan.Lorenz96(sites=8)}
    assert same(xdan.train(bare, architecture, **settings, **roles), net)


def test_one_long_trajectory_is_cut_in_segments(model, architecture, quick, windows):
    long = xdan.twin(model, cycles=400, trajectories=1, seed=2).compute()
    net = xdan.train(long, architecture, **{**quick, "steps": 100}, validation=0.25)
    # A batch of two and a quarter held back want four lanes, of 100 cycles.
    assert (told(net)["training_lanes"], told(net)["validation_lanes"]) == (3, 1)
    truth = long.truth.values[0]
    starts = {int((truth == row[0]).all(1).nonzero()[0][0]) for window in windows for row in window}
    assert max(starts) < 300, "the last segment is for validation"
    assert {0, 100} < starts


def test_without_trajectories(model, architecture, quick):
    long = xdan.twin(model, cycles=200, seed=2).compute()
    settings = {**quick, "steps": 6}
    bare = xdan.train(long.isel(trajectory=0, drop=True), architecture, **settings)
    assert same(bare, xdan.train(long, architecture, **settings))


def test_double_precision_records_train_in_single(twin, architecture, quick, net):
    from_double = xdan.train(twin, architecture, **{**quick, "steps": 30})
    assert {value.dtype for value in from_double.arrays.values()} == {np.dtype("f4")}
    np.testing.assert_allclose(from_double.arrays["weights.0"], net.arrays["weights.0"], rtol=0, atol=1e-3)


def test_uneven_intervals(model, architecture, quick):
    ds = xdan.twin(model, cycles=24, trajectories=4, interval=np.resize([0.05, 0.15], 23)).compute()
    net = xdan.train(ds, architecture, **quick)
    assert np.isfinite(net.history.rmse).all()


def test_gaps(model, architecture, quick):
    ds = xdan.twin(model, cycles=24, trajectories=4, observe=Sites.random(1, 6)).compute()
    net = xdan.train(ds, architecture, **quick)
    assert np.isfinite(net.history.rmse).all()


def test_carries_on_from_a_network_without_changing_it(single, net, quick):
    before = {name: value.copy() for name, value in net.arrays.items()}
    further = xdan.train(single, net, **quick)
    for name, value in before.items():
        np.testing.assert_array_equal(net.arrays[name], value)
    assert further.history.step.values.tolist() == [0, 4, 8]
    assert float(further.history.validation_rmse[0]) == net.description["training"]["validation_rmse"]


def test_what_carries_on_is_never_worse_than_what_it_began_with(single, net, quick):
    wild = xdan.train(single, net, **quick, optimiser=Optimiser(1.0, 1.0))
    scores = wild.history.validation_rmse.values
    assert scores[0] < scores[1:].min(), "otherwise nothing is tested"
    assert same(wild, net)
    assert wild.description["training"]["validation_rmse"] == scores[0]


def test_architecture_is_not_changed(single, architecture, quick):
    before = {name: value.clone() for name, value in architecture.state_dict().items()}
    xdan.train(single, architecture, **quick)
    for name, value in architecture.state_dict().items():
        assert torch.equal(value, before[name])


def test_by_name(single, quick):
    settings = {**quick, "steps": 1}
    net = xdan.train(single, "residual-cnn", memory=3, **settings)
    assert net.memory == 3
    assert xdan.train(single, **settings).memory == 0
    assert net.state_dims == ("x",)


def test_objectives(single, architecture, quick, net):
    settings = {**quick, "steps": 30}
    square, root = (xdan.train(single, architecture, objective=kind, **settings) for kind in ("mse", "rmse"))
    assert same(root, net)
    assert not same(square, root)


def test_normalised_to_the_data(single, architecture, quick):
    scaled = xdan.train(single, architecture, **quick, observation_error=0.5)
    assert float(scaled.arrays["error_std"]) == 0.5
    held = single.truth[-1].values.astype(float)
    np.testing.assert_allclose(scaled.arrays["state_mean"], held.mean(), rtol=1e-5)
    np.testing.assert_allclose(scaled.arrays["state_std"], held.std(), rtol=1e-5)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("memory", [0, 2])
def test_windows_of_one_cycle(single, quick, memory, processes):
    """The first analysis of a trajectory is not the network's: there is nothing to learn from it, and that is all."""
    network = xdan.ResidualCNN(filters=4, blocks=1, kernel=3, memory=memory)
    settings = {**quick, "window": 1, "steps": 24, "validate_every": 8, "processes": processes}
    net = xdan.train(single, network, **settings)
    assert net.description["training"]["window"] == 1
    start = xdan.train(single, network, optimiser=Optimiser(1e-9, 1e-9), **settings)
    moved = [abs(net.arrays[name] - start.arrays[name]).max() for name in net.arrays if name.startswith("weights")]
    assert min(moved) > 1e-4


def test_endless_twin(model, architecture, quick, windows):
    settings, twin = {**quick, "steps": 10, "trajectories": 4}, TwinExperiment(model, interval=0.1)
    first = xdan.train(twin, architecture, **settings)
    seen = [window.copy() for window in windows]
    assert same(first, xdan.train(twin, architecture, **settings))
    assert not same(first, xdan.train(twin, architecture, **settings, seed=1))
    # Two groups of two take turns and go on where they were; a cycle is two model steps.
    for before, after in zip(seen, seen[2:], strict=False):
        last = torch.from_numpy(before[:, -1])
        np.testing.assert_allclose(model.advance(last, 2), after[:, 0], rtol=0, atol=1e-4)
    states = np.concatenate([window.reshape(-1, 8) for window in seen])
    assert len(np.unique(states, axis=0)) == len(states)


def test_an_endless_twin_observed_by_instruments(quick):
    ring, positions = xdan.Lorenz96(sites=8, forcing=[8.0] * 4 + [4.0] * 4), [0.0, 1.0, 2.0, 3.0, 6.0]
    labels = {"x": positions, "instrument": ["buoy", "ship", "buoy", "ship", "ship"]}
    twin = TwinExperiment(ring, positions=labels, error_std={"buoy": 0.5, "ship": 2.0})
    net = xdan.train(twin, xdan.ResidualCNN(filters=2, blocks=1), **{**quick, "steps": 2})
    data = net.description["training"]["data"]
    assert data["endless"]["parameters"]["forcing"] == [8.0] * 4 + [4.0] * 4
    assert data["error_std"] == [0.5, 2.0]


def test_an_endless_twin_teaches(model, architecture, quick):
    settings = {**quick, "batch": 8, "steps": 60, "validate_every": 20}
    scores = xdan.train(model, architecture, **settings).history.validation_rmse.values
    # Trusting the observations alone gives 1.
    assert scores[-1] < scores[0] < 1.0


def test_epochs_of_an_endless_twin(model, architecture, quick, windows):
    """Three windows of each of five trajectories' groups; the rest of 11 / 2 has no group."""
    settings = {name: value for name, value in quick.items() if name != "steps"}
    net = xdan.train(model, architecture, **settings, epochs=3, trajectories=11)
    assert len(windows) == net.description["training"]["steps"] == 15
    assert [len(np.unique(np.concatenate(windows[k::5])[:, 0], axis=0)) for k in range(5)] == [6] * 5


def test_epochs_of_a_record(wide, architecture, quick, windows):
    settings = {name: value for name, value in quick.items() if name != "steps"}
    xdan.train(wide, architecture, **{**settings, "batch": 9}, epochs=2)
    firsts, counts = np.unique(np.concatenate(windows)[:, 0], axis=0, return_counts=True)
    assert len(firsts) == 9 * 24 // 4
    assert set(counts) == {2}


def test_endless_twin_as_observed(model, architecture, quick, monkeypatch):
    counts, step = [], Trainer.step

    def note(self, window, rate):
        counts.extend(window.observation.isfinite().sum(-1).flatten().tolist())
        return step(self, window, rate)

    monkeypatch.setattr(Trainer, "step", note)
    twin = TwinExperiment(model, observe=Sites.random(3, 5), error_std=0.5)
    net = xdan.train(twin, architecture, **{**quick, "steps": 6})
    assert set(counts) == {3, 4, 5}
    assert float(net.arrays["error_std"]) == 0.5


def test_truth_of_another_model_warns(single, architecture, quick):
    other = xdan.Lorenz96(sites=8, forcing=12.0)
    with pytest.warns(xdan.XdanWarning, match=r"does not follow Lorenz96\(sites=8, forcing=12.0"):
        xdan.train(single, architecture, **{**quick, "steps": 1}, dynamics=other)


def test_how_it_was_made_is_written_down(net, model):
    training = net.description["training"]
    assert (training["steps"], training["window"], training["batch"], training["seed"]) == (30, 4, 2, 0)
    assert training["data"]["dynamics"]["parameters"] == model.config()
    assert training["torch"] == torch.__version__


def test_minutes(single, architecture, quick):
    settings = {key: value for key, value in quick.items() if key != "steps"}
    net = xdan.train(single, architecture, **settings, minutes=0.005)
    assert net.description["training"]["steps"] is None
    assert net.history.step[-1] > 1


def test_finished_checkpoint_gives_the_same_network(single, architecture, quick, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "checkpoint.zarr"}
    first = xdan.train(single, architecture, **settings)
    again = xdan.train(single, architecture, **settings)
    assert same(first, again)
    assert same(first, xdan.train(single, architecture, **quick))
    xr.testing.assert_identical(first.history, again.history)


def test_checkpoint_of_other_settings(single, architecture, quick, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "checkpoint.zarr"}
    xdan.train(single, architecture, **settings)
    with pytest.raises(
        ValueError, match=r"of another run \(steps: 8 there, 9 now\); use the same settings, or another"
    ):
        xdan.train(single, architecture, **{**settings, "steps": 9})
    with pytest.raises(ValueError, match=r"of another run \(learning_rate: .* there, 0.5 now\)"):
        xdan.train(single, architecture, **settings, optimiser=Optimiser(0.5))


@pytest.mark.filterwarnings("ignore:the observations are far from the truth")
def test_a_checkpoint_of_another_record_is_refused(single, architecture, quick, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "checkpoint.zarr"}
    xdan.train(single, architecture, **settings)
    for other in (single.assign(observation=-single.observation), single.assign(observation_error=2.0)):
        with pytest.raises(ValueError, match=r"of another run \(data: "):
            xdan.train(other, architecture, **settings)


def test_a_numpy_seed_is_a_seed(single, architecture, quick):
    assert same(*(xdan.train(single, architecture, **{**quick, "seed": seed}) for seed in (3, np.int64(3))))


def test_threads_end_with_the_training(single, architecture, quick):
    import threading

    before = set(threading.enumerate())
    xdan.train(single.chunk(time=5), architecture, **quick)
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("ThreadPoolExecutor")]


def test_a_store_cut_short_is_refused(single, architecture, quick, tmp_path):
    single.chunk(time=6, trajectory=2).to_zarr(tmp_path / "twin.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "twin.zarr", consolidated=False)
    (tmp_path / "twin.zarr" / "truth" / "c" / "1" / "2" / "0").unlink()
    assert zarr.open_array(tmp_path / "twin.zarr" / "truth").nchunks_initialized == 7
    with pytest.raises(ValueError, match="'truth' has 7 of 8 chunks: it was cut short"):
        xdan.train(opened, architecture, **quick)


FAMILY = {
    "residual-cnn-linear": "residual-cnn-linear",
    "residual-cnn-blind": "residual-cnn-blind",
    "linear-in-zeta": xdan.LinearInZeta(rank=3, radius=1.5, filters=3, blocks=1, kernel=3),
    "hypernetwork": xdan.LinearInZeta(form="hypernetwork", rank=2, width=5, filters=3, blocks=1, kernel=3),
    "ensemble-cnn": xdan.EnsembleCNN(members=3, filters=3, blocks=1, kernel=3),
}


@pytest.mark.parametrize("name", FAMILY)
def test_every_network_trains_cycles_saves_and_opens(wide, quick, name, tmp_path):
    net = xdan.train(wide, FAMILY[name], **quick)
    assert np.isfinite(net.description["training"]["validation_rmse"])
    net.to_zarr(tmp_path / "net.zarr")
    opened = xdan.open_network(tmp_path / "net.zarr")
    keep = {"members": True} if net.ensemble else {}
    run, again = xdan.cycle(wide, net, **keep), xdan.cycle(wide, opened, **keep)
    xr.testing.assert_identical(run, again)
    if net.ensemble:
        assert run.members.sizes["member"] == 3
        np.testing.assert_allclose(run.members.mean("member"), run.analysis, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="takes members"):
            xdan.gain(wide, net)


def test_memory_of_a_network_without_any_is_refused(wide, quick):
    with pytest.raises(ValueError, match=r"'ensemble-cnn' has no parameters \['memory'\]"):
        xdan.train(wide, "ensemble-cnn", memory=2, **quick)


def test_processes_change_rounding_only(wide, architecture, quick):
    settings = {**quick, "steps": 4, "batch": 6}
    one, two = (xdan.train(wide, architecture, **settings, processes=count) for count in (1, 2))
    assert two.description["training"]["processes"] == 2
    for name, value in one.arrays.items():
        np.testing.assert_allclose(two.arrays[name], value, rtol=1e-3, atol=1e-5)


def test_processes_are_refused_within_a_daemonic_one(wide, architecture, quick, monkeypatch):
    import multiprocessing

    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    with pytest.raises(ValueError, match="processes=2: a batch is shared"):
        xdan.train(wide, architecture, **quick, processes=2)


@pytest.mark.parametrize("objective", ["forecast", "analysis"])
def test_observations_only_do_not_see_the_truth(wide, architecture, quick, objective):
    """The same weights where the truth is wrong, or gone; scored by the innovations of the trajectories held back."""
    gaps = wide.assign(observation=wide.observation.where(wide.x % 3 != 0))
    settings = {**quick, "steps": 12, "objective": objective}
    net = xdan.train(gaps, architecture, **settings, validation=0.2)
    assert same(net, xdan.train(gaps.assign(truth=gaps.truth + 5.0), architecture, **settings, validation=0.2))
    assert same(net, xdan.train(gaps.drop_vars("truth"), architecture, **settings, validation=0.2))
    held = gaps.isel(trajectory=slice(8, None))
    innovation = (held.observation - xdan.cycle(held, net).forecast).isel(time=slice(24 // 3, None))
    expected = float(np.sqrt((innovation**2).mean("x")).mean())
    scores = net.history.validation_rmse
    assert float(scores.min()) == pytest.approx(expected, rel=1e-4)
    error = float(wide.observation_error)
    assert float(net.arrays["state_std"]) == pytest.approx(float(np.sqrt(held.observation.var() - error**2)), rel=1e-4)


def test_endless_twins_train_on_observations_only(model, architecture, quick):
    net = xdan.train(model, architecture, **quick, objective="forecast", trajectories=4)
    other = xdan.train(model, architecture, **quick, trajectories=4)
    assert not same(net, other)
    assert 0.5 < float(net.history.validation_rmse[-1]) < 6
    assert ", validation RMS innovation " in repr(net)
    assert "training: validation RMS innovation" in net._repr_html_()
    assert net.history.validation_rmse.long_name == "validation RMS innovation"
    assert net.history.rmse.long_name.startswith("training RMS innovation")
    assert ", validation RMSE " in repr(other)
    assert other.history.validation_rmse.long_name == "validation analysis RMSE"


def test_members_are_trained_by_their_scores(wide, quick):
    network = xdan.EnsembleCNN(members=3, filters=3, blocks=1, kernel=3)
    nets = [xdan.train(wide, network, **quick, objective=objective) for objective in ("crps", "energy", "mse")]
    assert not same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_a_supervised_objective_without_truth_names_the_one_that_fits(wide, architecture, quick):
    with pytest.raises(ValueError, match=r"^pass truth=.* The objective 'rmse' needs the truth"):
        xdan.train(wide.drop_vars("truth"), architecture, **quick)


def test_a_dynamics_that_cannot_be_sent_names_the_remedy(quick):
    import threading

    lock = threading.Lock()

    def tendency(x):
        with lock:
            return (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + 8.0

    dynamics = xdan.CustomDynamics(tendency, state={"x": 8}, timestep=0.05)
    settings = {**quick, "batch": 4, "steps": 2}
    with pytest.raises(ValueError, match=r"'custom' cannot be sent .*lock.*processes=1"):
        xdan.train(dynamics, xdan.ResidualCNN(filters=2, blocks=1, kernel=3), **settings, processes=2)
    xdan.train(dynamics, xdan.ResidualCNN(filters=2, blocks=1, kernel=3), **settings, processes=1)


@pytest.fixture(scope="module")
def teacher(wide):
    """A teacher whose analysis is four fifths of the way from its forecast to the observations."""
    rng = np.random.default_rng(0)
    forecast = wide.truth + rng.normal(size=wide.truth.shape).astype("float32")
    return xr.Dataset({"forecast": forecast, "analysis": forecast + 0.8 * (wide.observation - forecast)})


def test_a_teacher_is_imitated(wide, teacher, quick):
    network = xdan.ResidualCNN(filters=4, blocks=1, kernel=3, activation="linear")
    settings = {**quick, "batch": 8, "steps": 150, "objective": "mse", "processes": 1, "validate_every": 10}
    net = xdan.train(wide.drop_vars("truth"), network, teacher=teacher, **settings)
    assert told(net)["teacher"]
    assert 50 * float(net.history.loss[-1]) < float(net.history.loss[0])
    with torch.no_grad():
        x = torch.from_numpy(wide.truth.values[:, 5])
        zeta = torch.from_numpy(np.random.default_rng(1).normal(size=x.shape).astype("float32"))
        analysis, _ = net.module().eval()(x, zeta, None)
    assert float((analysis - x - 0.8 * zeta).square().mean().sqrt()) < 0.1
    onward = wide.dan.train(net, **quick)
    assert not told(onward)["teacher"]


def test_a_teacher_is_the_same_for_any_number_of_processes(wide, teacher, architecture, quick):
    a, b = (xdan.train(wide, architecture, teacher=teacher, **quick, processes=count) for count in (1, 2))
    for name in a.arrays:
        np.testing.assert_allclose(a.arrays[name], b.arrays[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (lambda t: t.drop_vars("forecast"), {}, r"the teacher lacks \['forecast'\]"),
        (lambda t: t.isel(time=slice(9)), {}, "teacher and record differ in time: expected 24 labels"),
        (lambda t: t.where(t.time < 0.3), {}, "values that are not finite"),
        (lambda t: t, {"objective": "forecast"}, "objective='forecast' has no use for a teacher's analyses"),
        (lambda t: t.assign_attrs(xdan_status="unfinished"), {}, "the teacher's store is unfinished"),
    ],
)
def test_teachers_that_cannot_teach(wide, teacher, architecture, quick, change, more, message):
    with pytest.raises(ValueError, match=message):
        xdan.train(wide, architecture, teacher=change(teacher), **quick, **more)


def test_a_teacher_has_one_forecast_and_a_record(model, wide, teacher, quick):
    with pytest.raises(ValueError, match="this network takes members: expected no teacher"):
        xdan.train(wide, xdan.EnsembleCNN(members=3, filters=4, blocks=1), teacher=teacher, **quick)
    with pytest.raises(ValueError, match=r"\['teacher'\] go with a Dataset: .* an endless twin has error_std="):
        xdan.train(model, teacher=teacher, **quick)
    with pytest.raises(TypeError, match="teacher='enkf-n' on a record: expected the Dataset"):
        xdan.train(wide, teacher="enkf-n", **quick)


ROOT = xdan.LinearInZeta(form="hypernetwork", rank=2, width=3, filters=4, blocks=1, kernel=3, memory=2)
IMITATION = {"objective": "covariance", "teacher": {"method": "etkf", "members": 6, "inflation": 1.1}}


def test_a_covariance_is_imitated_and_training_goes_on_through_the_cycles(model, quick):
    # Long enough for the loss to fall whatever the seed.
    longer = {**quick, "batch": 8, "steps": 60, "validate_every": 30}
    net = xdan.train(model, ROOT, **longer, **IMITATION)
    assert float(net.history.loss[1]) < 0.95 * float(net.history.loss[0])
    assert told(net)["teacher"] == {"method": "etkf", "members": 6, "inflation": 1.1, "rotate": False, "spin_up": 100}
    assert net.description["training"]["objective"] == "covariance"
    onward = xdan.train(model, net, **quick)
    assert told(onward)["teacher"] is None
    assert onward.description["training"]["before"] == net.description["training"]


def test_an_imitation_that_was_cut_short_ends_with_the_same_weights(model, quick, tmp_path, monkeypatch):
    whole = xdan.train(model, ROOT, **quick, **IMITATION)
    step, settings = Trainer.step, {**quick, **IMITATION, "checkpoint": tmp_path / "ck.zarr"}
    monkeypatch.setattr("xdan.training.loop.clock.perf_counter", iter(range(0, 10**6, 31)).__next__)

    def cut(self, window, rate):
        if self.step_count == 5:
            raise KeyboardInterrupt
        return step(self, window, rate)

    with monkeypatch.context() as context:
        context.setattr(Trainer, "step", cut)
        with pytest.warns(xdan.XdanWarning, match="interrupted at step 5 of 8"):
            xdan.train(model, ROOT, **settings)
    resumed = xdan.train(model, ROOT, **settings)
    for name, value in whole.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], value)


@pytest.mark.parametrize(
    ("network", "more", "message"),
    [
        (ROOT, {"teacher": None}, "expected the name of a method to imitate that has a covariance, such as teacher="),
        (ROOT, {"teacher": xr.Dataset()}, "teacher=Dataset: expected the name of a method to imitate"),
        (ROOT, {"teacher": "3d-var"}, "teacher '3d-var' has no members to take a covariance from, nor one of its own"),
        (ROOT, {"teacher": "nobody"}, "'nobody' is unknown; known are"),
        (ROOT, {"teacher": {"members": 5}}, "expected the name of the method as 'method'"),
        (ROOT, {"teacher": {"method": "etkf", "member": 5}}, r"has no parameters \['member'\]"),
        ("residual-cnn", {}, r"'residual-cnn' forms no covariance; expected xdan.LinearInZeta"),
    ],
)
def test_covariances_that_cannot_be_imitated(model, quick, network, more, message):
    with pytest.raises(ValueError, match=message):
        xdan.train(model, network, **quick, **{**IMITATION, **more})


def test_a_record_has_no_ensemble_to_imitate(wide, quick):
    with pytest.raises(ValueError, match="objective='covariance' needs an ensemble beside the record"):
        xdan.train(wide, ROOT, **quick, **IMITATION)


def test_a_checkpoint_is_of_what_training_started_from(single, architecture, quick, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "ck.zarr"}
    first = xdan.train(single, architecture, **settings)
    with pytest.raises(ValueError, match=r"is of another run \(start: None there, "):
        xdan.train(single, first, **settings)
    shutil.rmtree(tmp_path / "ck.zarr")
    assert xdan.train(single, first, **settings).description["training"]["start"] == first.digest


def test_a_checkpoint_is_of_one_model(architecture, quick, tmp_path):
    def model(forcing):
        return xdan.CustomDynamics(
            lambda x: (x.roll(-1, -1) - x.roll(2, -1)) * x.roll(1, -1) - x + forcing, state={"x": 8}, timestep=0.05
        )

    settings = {**quick, "checkpoint": tmp_path / "ck.zarr"}
    xdan.train(model(8.0), architecture, **settings)
    with pytest.raises(ValueError, match="is of another run"):
        xdan.train(model(4.0), architecture, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": 0.1}, "interval: 0.05, 0.1"),
        ({"error_std": 0.5}, "observation error: 1, 0.5"),
        ({"observe": Sites.random(7, 8)}, "observed sites: kind=all, kind=random"),
    ],
)
def test_going_on_in_another_setting_is_told(model, architecture, quick, change, message):
    net = xdan.train(model, architecture, **quick)
    with pytest.warns(xdan.XdanWarning, match=f"another setting .*{message}"):
        xdan.train(TwinExperiment(model, **change), net, **quick)


def test_the_setting_is_written_down(wide, model, architecture, quick):
    """A record and an endless twin tell the same things."""
    record = told(xdan.train(wide, architecture, **quick, validation=0.2))
    assert record["interval"] == 0.05
    assert record["error_std"] == 1.0
    assert record["observing"] == {"name": "sites", "parameters": {"kind": "all"}}
    held = wide.truth[8:].values.astype(float)
    np.testing.assert_allclose(record["climate"], [held.mean(), held.std()], rtol=1e-4)
    endless = told(xdan.train(TwinExperiment(model, 0.1, Sites.every(2)), architecture, **quick))
    assert (endless["interval"], endless["error_std"], endless["observing"]["parameters"]["step"]) == (0.1, 1.0, 2)
    assert endless["dynamics"] == endless["endless"]


def test_uneven_settings_are_ranges(model, architecture, quick):
    deviation = np.linspace(0.5, 2.0, 8)
    ds = xdan.twin(
        model, cycles=24, trajectories=4, interval=np.resize([0.05, 0.15], 23), error_std=deviation, seed=2
    ).compute()
    ds = ds.assign(observation=ds.observation.where(ds.x % 4 != 0))  # gaps that the attributes do not know of
    setting = told(xdan.train(ds, architecture, **quick))
    assert (setting["interval"], setting["error_std"], setting["observing"]) == ([0.05, 0.15], [0.5, 2.0], 0.75)


@pytest.mark.parametrize("objective", ["rmse", "forecast"])
def test_innovations_of_the_best_weights_are_written_down(wide, architecture, quick, objective):
    noisy = wide.assign(observation_error=("x", np.linspace(0.9, 1.1, 8)))
    net = xdan.train(noisy, architecture, **{**quick, "steps": 12}, validation=0.2, objective=objective)
    held = noisy.isel(trajectory=slice(8, None))
    innovation = (held.observation - xdan.cycle(held, net).forecast) / held.observation_error
    expected = float((innovation.isel(time=slice(24 // 3, None)) ** 2).mean())
    assert net.description["training"]["validation_innovation"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("objective", ["rmse", "forecast"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (slice(8, None), "0 of the 256 values held back for validation are observed .* expected at least"),
        (slice(0, 8), "none of the 1536 values to train on is observed"),
    ],
)
def test_unobserved_parts_are_refused(wide, architecture, quick, objective, rows, message):
    ds = wide.copy(deep=True)
    ds["observation"][{"trajectory": rows}] = np.nan
    with pytest.raises(ValueError, match=message):
        xdan.train(ds, architecture, **quick, validation=0.2, objective=objective)


def test_single_trajectories_without_observations_are_told(wide, architecture, quick):
    ds = wide.copy(deep=True)
    ds["observation"][{"trajectory": [0, 9]}] = np.nan
    with pytest.warns(xdan.XdanWarning) as warned:
        net = xdan.train(ds, architecture, **quick, validation=0.2)
    words = [str(one.message) for one in warned]
    assert "1 of the 8 trajectories or segments to train on have no observations" in words[0]
    assert "1 of the 2 trajectories or segments held back have no observations" in words[1]
    assert all(np.isfinite(value).all() for value in net.arrays.values())


@pytest.mark.filterwarnings("ignore:the observations are far from the truth")
def test_a_record_that_stands_still_is_refused(wide, architecture, quick):
    still = wide.assign(truth=xr.full_like(wide.truth, 280.0))
    with (
        pytest.raises(ValueError, match="deviation 0: expected finite ones that vary"),
        pytest.warns(xdan.XdanWarning, match="does not follow"),
    ):
        xdan.train(still, architecture, **quick)


def test_a_dynamics_that_blows_up_is_refused(quick):
    model = xdan.CustomDynamics(lambda x: 1.0 - torch.sqrt(x), state={"x": 8}, timestep=0.05)
    with pytest.raises(ValueError, match=r"not finite after .* steps of the spin-up.*rest="):
        xdan.train(model, xdan.ResidualCNN(filters=4, blocks=1), **quick)


WRONG = {
    "source": [3, None, "lorenz96", xr.DataArray(1.0)],
    "network": [3, None, object()],
    "memory": [1.5, -1, True, "1"],
    "objective": [slice(None), "wrong", None, 1],
    "window": [2.0, 0, True, None, "4"],
    "batch": [2.5, 0, np.nan],
    "steps": [2.0, 0, "3", True, [3]],
    "epochs": [1.5, 0],
    "minutes": ["1", 0, np.inf, np.nan, 1j],
    "optimiser": [0, "adam", 0.01, Optimiser],
    "validation": [0, 1, 1.5, "0.1", np.nan],
    "validate_every": [0, 1.5, None],
    "patience": [0, 1.5, "2", True],
    "on_validation": [3, "print", {}],
    "seed": [-1, 2**32, 1.0, "0", None, True],
    "device": [0, None, "moon"],
    "processes": [0, 1.5, "2"],
    "checkpoint": [3.5, True],
    "progress": ["no", 1, None],
    "teacher": [3, ["etkf"]],
    "dynamics": [3, "lorenz96"],
    "truth": [3],
    "observation": [3],
    "trajectories": [0, 2.5, "4"],
}


@pytest.mark.parametrize("label", WRONG)
def test_wrong_arguments_are_named(model, quick, label):
    settings = {k: v for k, v in quick.items() if k != "steps" or label not in ("epochs", "minutes")}
    for value in WRONG[label]:
        with pytest.raises((TypeError, ValueError), match=r"expected|not a positive multiple") as caught:
            xdan.train(**{"source": model, "network": "residual-cnn", **settings, label: value})
        assert label in str(caught.value), value


WRONG_TWIN = {
    "interval": ["x", 0, np.nan, 0.07, [0.05]],
    "observe": [1, "all", Sites.random(0)],
    "error_std": [0, "x", 1j, np.nan, [1.0, -1.0], ["a"], [1.0, [2.0]]],
    "error_covariance": [np.eye(3), "x"],
}


@pytest.mark.parametrize("label", WRONG_TWIN)
def test_wrong_twins_are_named(model, quick, label):
    for value in WRONG_TWIN[label]:
        with pytest.raises((TypeError, ValueError), match=r"expected|not a positive multiple") as caught:
            xdan.train(TwinExperiment(model, **{label: value}), "residual-cnn", **quick)
        assert label in str(caught.value) or label == "observe" or value == 0.07, value


def test_numpy_numbers_are_welcome(single, architecture, quick, tmp_path):
    plain = {"window": 4, "batch": 2, "steps": 8, "validate_every": 4, "seed": 3}
    rates = {"learning_rate": 0.25, "clip": 2.0}
    ours = xdan.train(single, architecture, **plain, optimiser=Optimiser(**rates), progress=False)
    theirs = xdan.train(
        single,
        architecture,
        **{name: np.int64(value) for name, value in plain.items()},
        optimiser=Optimiser(**{name: np.float32(value) for name, value in rates.items()}),
        progress=np.bool_(False),
    )
    assert same(ours, theirs)
    plain |= rates
    for name in plain:
        assert type(theirs.description["training"][name]) is type(plain[name])


def test_a_model_without_gradient_is_refused(quick):
    model = xdan.CustomDynamics(lambda x: -torch.from_numpy(x.detach().numpy()), state={"x": 8}, timestep=0.05)
    with pytest.raises(ValueError, match="pass window=1"):
        xdan.train(model, xdan.ResidualCNN(filters=2, blocks=1), **quick)


def test_an_operator_with_a_wrong_gradient_is_refused(model, quick):
    def half(x):
        return 0.5 * x[..., :4].detach() + 0.5 * x[..., :4]

    with pytest.raises(ValueError, match="the observation operator is wrong"):
        xdan.train(TwinExperiment(model, operator=half), xdan.ResidualCNN(filters=2, blocks=1), **quick)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_default_type_does_not_matter(model, single, architecture, quick, request, processes):
    settings = {**quick, "processes": processes}
    expected = [xdan.train(source, architecture, **settings) for source in (single, model)]
    request.getfixturevalue("double")
    for source, before in zip((single, model), expected, strict=True):
        net = xdan.train(source, architecture, **settings)
        assert same(net, before)
        assert net.arrays["weights.0"].dtype == np.float32
    assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_modes_of_the_caller_do_not_matter(single, architecture, quick, mode):
    expected = xdan.train(single, architecture, **quick)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with mode():
        assert same(xdan.train(single, architecture, **quick), expected)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert same(
            xdan.train(xdan.Lorenz96(sites=8), "residual-cnn", **quick),
            xdan.train(xdan.Lorenz96(sites=8), "residual-cnn", **quick),
        )
    assert threads == torch.get_num_threads()
    assert torch.equal(state, torch.get_rng_state())


INTERRUPTED = """
import os, signal, sys, threading, warnings
import numpy as np, torch, xdan
from xdan.core.learning.trainer import Trainer

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored
folder, at, processes, again = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "again"
step, armed = Trainer.step, [True]

def stepping(self, window, rate):
    if self.step_count == at and armed[0]:
        os.kill(os.getpid(), signal.SIGINT)
        if again:
            os.kill(os.getpid(), signal.SIGINT)
        armed[0] = False
    return step(self, window, rate)

Trainer.step = stepping
settings = dict(window=3, batch=4, steps=12, validate_every=5, progress=False, processes=processes)
network = xdan.ResidualCNN(filters=2, blocks=1, kernel=3)

def train(**more):
    return xdan.train(xdan.Lorenz96(sites=8), network, **settings, **more)

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    try:
        net = train(checkpoint=folder + "/checkpoint")
    except xdan.TrainingInterrupted as stop:
        kept, reached = stop.network, train(on_validation=lambda told: True)  # that of the validation at step 5
        assert kept == reached
        print("KEPT")
        raise
training = net.description["training"]
assert training["interrupted"] is True and training["interrupted_at_step"] == at + 1, training
assert np.isfinite(training["validation_rmse"]), training
assert f"interrupted at step {at + 1} of 12" in str(told[0].message), told
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
resumed, whole = train(checkpoint=folder + "/checkpoint"), train()
assert "interrupted" not in resumed.description["training"]
assert resumed == whole
assert resumed.history.step.values.tolist() == whole.history.step.values.tolist() == [5, 10, 12]
print("DONE")
"""


@pytest.mark.parametrize(
    ("at", "processes"),
    [(2, 1), pytest.param(7, 1, marks=pytest.mark.slow), pytest.param(7, 2, marks=pytest.mark.slow)],
)
def test_ctrl_c_returns_the_best_network_until_then(tmp_path, at, processes):
    answer = run_script(INTERRUPTED, tmp_path, at, processes, "once")
    assert answer.stdout.strip() == "DONE", answer.stderr


@pytest.mark.slow
def test_a_second_ctrl_c_raises_and_keeps_the_network(tmp_path):
    answer = run_script(INTERRUPTED, tmp_path, 7, 1, "again")
    assert answer.stdout.strip() == "KEPT", answer.stderr
    assert "TrainingInterrupted: training was interrupted at step 7 of 12 steps; the same call goes on" in answer.stderr
    assert answer.returncode != 0


def test_ctrl_c_before_the_first_step_raises(single, architecture, quick, monkeypatch):
    from xdan.training.loop import Loop

    steps = Loop._steps

    def interrupted(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return steps(self, *arguments)

    monkeypatch.setattr(Loop, "_steps", interrupted)
    with pytest.raises(
        xdan.TrainingInterrupted, match=r"step 0 of 8 steps. The network .* net = stop\.network"
    ) as stop:
        xdan.train(single, architecture, **quick)
    weights = stop.value.network.arrays
    assert all(np.isfinite(value).all() for value in weights.values())  # those of the start
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("minutes", [False, True])
def test_ctrl_c_in_the_last_validation_is_told(single, architecture, quick, monkeypatch, minutes):
    from xdan.training.loop import Loop

    budget = {"steps": None, "minutes": 1e-4} if minutes else {}
    whole = None if minutes else xdan.train(single, architecture, **quick)
    validate = Loop._validate

    def interrupted(self, elapsed, rate):
        if minutes or self.trainer.step_count == quick["steps"]:
            signal.raise_signal(signal.SIGINT)
        validate(self, elapsed, rate)

    monkeypatch.setattr(Loop, "_validate", interrupted)
    with pytest.warns(xdan.XdanWarning, match="Ctrl-C came when the training had made its last step"):
        net = xdan.train(single, architecture, **{**quick, **budget})
    assert "interrupted" not in net.description["training"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if whole is not None:
        assert all(np.array_equal(net.arrays[name], value) for name, value in whole.arrays.items())


def run_script(text, *arguments):
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
