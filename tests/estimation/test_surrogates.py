"""Surrogates trained on a truth and on analyses, and how good models are beside one another."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.random import Purpose, uniform
from xdan.estimation.model_training import FitSettings
from xdan.estimation.stretches import Stretches

pytestmark = pytest.mark.filterwarnings("ignore:the truth does not follow:xdan.XdanWarning")

MODEL = xdan.Lorenz96(8)
SHORT = {
    "network": xdan.QuadraticCNN(filters=6, blocks=0),
    "steps": 250,
    "batch": 64,
    "rollouts": (1, 2),
    "progress": False,
}


@pytest.fixture(scope="module")
def record():
    return xdan.twin(MODEL, cycles=40, trajectories=16, seed=3).compute()


@pytest.fixture(scope="module")
def surrogate(record):
    return record.dan.train_surrogate(**SHORT)


def test_it_learns_the_model(record, surrogate, tmp_path):
    history = surrogate.provenance["history"]
    assert history["one_interval_error"][-1] < 0.02
    assert history["step"][-1] == 250
    skill = record.dan.forecast_skill({"true": MODEL, "surrogate": surrogate}, leads=4)
    relative = skill.rmse / skill.deviation
    assert float(relative.sel(model="true").max()) < 1e-5
    assert float(relative.sel(model="surrogate")[0]) < 0.02
    skill.to_zarr(tmp_path / "skill.zarr", consolidated=False)  # Zarr has no warning of the names
    assert surrogate.provenance["source"] == "truth"


def test_first_weights_are_those_of_the_seed(record):
    words = {"steps": 2, "batch": 4, "rollouts": (1,), "progress": False}
    one, other = (record.dan.train_surrogate(network=xdan.QuadraticCNN(filters=2), seed=1, **words) for _ in range(2))
    assert one == other
    assert record.dan.train_surrogate(network=xdan.QuadraticCNN(filters=2), seed=2, **words) != one


def test_it_learns_from_analyses(record, surrogate):
    run = record.dan.baseline("etkf", members=10, inflation=1.05, progress=False)
    of_run = record.dan.train_surrogate(run, burn_in=5, **SHORT)
    assert of_run != surrogate
    assert of_run.provenance["source"]["method"] == "etkf"
    # Errors of analyses stand in the way: forecasts are worse than those of a surrogate of the truth.
    skill = record.dan.forecast_skill({"analyses": of_run, "truth": surrogate}, leads=1, burn_in=5)
    errors = skill.rmse.isel(lead=0) / skill.deviation
    assert float(errors.sel(model="truth")) < float(errors.sel(model="analyses")) < 0.2


def test_a_killed_training_ends_the_same(record, surrogate, tmp_path, monkeypatch):
    import xdan.estimation.model_training as loop

    place, calls = tmp_path / "fit.zarr", []
    fit_step = loop.ModelFit.step

    def killed(self, states, rate):
        calls.append(self.step_count)
        if len(calls) == 61:
            raise KeyboardInterrupt
        return fit_step(self, states, rate)

    monkeypatch.setattr(loop, "_SAVE_EVERY", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(loop.ModelFit, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            record.dan.train_surrogate(checkpoint=place, **{**SHORT, "steps": 80})
    monkeypatch.setattr(loop, "_SAVE_EVERY", 30.0)
    resumed = record.dan.train_surrogate(checkpoint=place, **{**SHORT, "steps": 80})
    whole = record.dan.train_surrogate(**{**SHORT, "steps": 80})
    assert resumed == whole
    assert resumed.provenance["history"]["step"] == whole.provenance["history"]["step"]
    with pytest.raises(ValueError, match="another run"):
        record.dan.train_surrogate(checkpoint=place, **{**SHORT, "steps": 90})


def test_a_checkpoint_of_other_states_is_refused(record, tmp_path):
    words = {"network": xdan.QuadraticCNN(filters=2), "steps": 2, "batch": 4, "rollouts": (1,), "progress": False}
    first = record.dan.train_surrogate(checkpoint=tmp_path / "fit.zarr", **words)
    assert record.dan.train_surrogate(checkpoint=tmp_path / "fit.zarr", **words) == first
    other = record.assign(truth=record.truth.roll(trajectory=1))  # of the same title, model and sizes
    with pytest.raises(ValueError, match="another run"):
        other.dan.train_surrogate(checkpoint=tmp_path / "fit.zarr", **words)
    longer = record.assign(truth=record.truth.where(record.time < record.time[-1], record.truth + 1))
    with pytest.raises(ValueError, match="another run"):
        longer.dan.train_surrogate(checkpoint=tmp_path / "fit.zarr", **words)


def test_it_is_saved_and_opened_and_cycled(record, surrogate, tmp_path):
    xdan.save_dynamics(surrogate, tmp_path / "surrogate.zarr")
    opened = xdan.open_dynamics(tmp_path / "surrogate.zarr")
    assert opened == surrogate
    assert opened.provenance == surrogate.provenance
    words = {"members": 10, "progress": False}
    one, other = (record.dan.baseline("enkf-n", dynamics=m, **words) for m in (MODEL, opened))
    scores = [float(record.dan.score(run, burn_in=15).rmse) for run in (one, other)]
    assert scores[1] < 1.1 * scores[0]
    with pytest.raises(ValueError, match="corrects no model"):
        xdan.open_dynamics(tmp_path / "surrogate.zarr", MODEL)


def test_a_network_trains_with_it(record, surrogate, quick):
    net = record.dan.train(xdan.ResidualCNN(filters=4, blocks=1, kernel=3), dynamics=surrogate, **quick)
    assert np.isfinite(net.description["training"]["validation_rmse"])


def test_skill_of_a_model_that_decays():
    """Forecasts of dx/dt = -x by one of dx/dt = -2 x: the error is known at every lead."""
    space = xdan.Ring(4)
    decay, twice = (
        xdan.CustomDynamics(lambda x, r=rate: -r * x, state=space, timestep=0.1, name=f"decay-{rate}", spin_up_time=0.0)
        for rate in (1, 2)
    )
    ds = xdan.twin(decay, interval=0.1, cycles=6, trajectories=5, dtype="float64").compute()
    skill = ds.dan.forecast_skill({"twice": twice, "once": decay}, leads=3, every=2, dynamics=decay)
    start = ds.truth.isel(time=[0, 2])
    for lead, t in enumerate((0.1, 0.2, 0.3)):
        expected = float(np.sqrt((start**2).mean())) * (math.exp(-t) - math.exp(-2 * t))
        assert float(skill.rmse.sel(model="twice")[lead]) == pytest.approx(expected, rel=1e-4)
        assert float(skill.rmse.sel(model="once")[lead]) < 1e-12
        assert float(skill.correlation.sel(model="twice")[lead]) == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(skill.lead, [0.1, 0.2, 0.3])
    squares = (start.mean("x") * 0 + (start**2).mean("x")).mean("time")
    standard = float(squares.std(ddof=1)) / math.sqrt(5) / (2 * float(np.sqrt(squares.mean())))
    ratio = skill.rmse_standard_error.sel(model="twice") / skill.rmse.sel(model="twice")
    assert float(ratio[0]) == pytest.approx(standard / float(np.sqrt(squares.mean())), rel=1e-6)


def test_skill_is_lazy_and_does_not_depend_on_chunks(record, computed):
    models = {"wrong": xdan.Lorenz96(8, forcing=8.3)}
    lazy = record.chunk(trajectory=5, time=7).dan.forecast_skill(models, leads=3)
    assert computed.calls == 0
    assert lazy.rmse.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), record.dan.forecast_skill(models, leads=3), rtol=1e-6)


def test_skill_of_several_fields_and_of_a_time():
    two = xdan.TwoScaleLorenz96(sites=4, fast=2)
    ds = xdan.twin(two, interval=0.05, cycles=8, trajectories=2).compute()
    skill = ds.dan.forecast_skill({"same": two}, leads=2)
    assert skill.rmse.dims == ("model", "lead", "field")
    assert float(skill.rmse.max()) < 1e-4
    forced = xdan.CustomDynamics(lambda x, t: t - x, state=xdan.Ring(4), timestep=0.1, name="forced", spin_up_time=0.0)
    ds = xdan.twin(forced, interval=0.1, cycles=8, trajectories=2, dtype="float64").compute()
    skill = ds.dan.forecast_skill({"same": forced}, leads=2, every=3, burn_in=1, dynamics=forced)
    assert float(skill.rmse.max()) < 1e-12


@pytest.mark.parametrize("first", [0.0, 7.0])
def test_a_model_of_another_time_step_is_at_the_times_of_the_record(first):
    """A forcing t: each model counts time in steps of its own, from the record's first analysis."""
    whole, half = (
        xdan.CustomDynamics(lambda x, t: t - x, state=xdan.Ring(4), timestep=h, name="forced", spin_up_time=0.0)
        for h in (0.1, 0.05)
    )
    ds = xdan.twin(whole.starting_at(first), interval=0.1, cycles=30, trajectories=2, dtype="float64").compute()
    ds = ds.assign_coords(time=ds.time - ds.time[0] + first)
    models = {"whole": whole, "half": half, "elsewhere": half.starting_at(3.0)}
    skill = ds.dan.forecast_skill(models, leads=4, every=5, burn_in=2, dynamics=whole)
    assert float(skill.rmse.max()) < 1e-6


def test_the_climate_of_known_states(tmp_path):
    still = xdan.CustomDynamics(
        step=lambda x: x, state=xdan.Ring(8), timestep=0.1, name="still", spin_up_time=0.0, rest=waves
    )
    double = xdan.CustomDynamics(
        step=lambda x: x, state=xdan.Ring(8), timestep=0.1, name="twice", spin_up_time=0.0, rest=lambda x: 2 * waves(x)
    )
    climate = xdan.model_climate({"one": still, "two": double}, time=1.0, interval=0.5, trajectories=3)
    np.testing.assert_allclose(climate["mean"], [3.0, 6.0], rtol=1e-6)
    np.testing.assert_allclose(climate.deviation, [math.sqrt(2), 2 * math.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(climate.power.sel(model="one"), [0, 2.0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(climate.power.sum("wavenumber"), climate.deviation**2, rtol=1e-6)
    assert float(climate.density.sel(model="one").sum()) == pytest.approx(1.0)
    climate.to_zarr(tmp_path / "climate.zarr", consolidated=False)  # Zarr has no warning of the names


def waves(noise):
    """3 + 2 cos(2 k x), whatever the noise."""
    return 3 + 2 * torch.cos(2 * 2 * math.pi * torch.arange(8, dtype=noise.dtype) / 8) + 0 * noise


def test_stretches_are_keyed_and_skip_gaps():
    values = np.arange(2 * 9 * 3.0).reshape(2, 9, 3)
    values[1, 4] = np.nan
    states = xr.DataArray(values, dims=("trajectory", "time", "x"))
    stretches = Stretches([states], 7, "cpu")
    drawn = stretches.draw(3, 50, 2)
    assert torch.equal(drawn, Stretches([states], 7, "cpu").draw(3, 50, 2))
    assert bool(drawn.isfinite().all())
    assert torch.equal(drawn[:, 1] - drawn[:, 0], torch.full((50, 3), 3.0))
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 7 + 2 + 2
    assert not torch.equal(drawn, stretches.draw(4, 50, 2))
    assert stretches.longest == 8
    pairs = Stretches([states, 2 * states], 7, "cpu").spaced(100, 1)
    assert torch.equal(pairs[:, 1], 2 * pairs[:, 0])
    assert len(pairs) == 17
    with pytest.raises(ValueError, match="no stretch of 10 states"):
        stretches.draw(0, 1, 9)
    assert uniform(7, Purpose.NETWORK, torch.zeros(1), torch.tensor([3]), 1).shape == (1, 1, 1)


def test_the_curriculum():
    words = {"batch": 1, "learning_rate": 1e-3, "validate_every": 1, "seed": 0}
    settings = FitSettings.checked(steps=10, rollouts=(1, 4), **words)
    assert [settings.length(step) for step in range(10)] == [1] * 5 + [4] * 5


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"source": "analysis"}, ValueError, "expected 'truth', or a run"),
        ({"source": 3}, TypeError, "source=3"),
        ({"network": xdan.ResidualCNN()}, TypeError, "expected a tendency network"),
        ({"rollouts": ()}, TypeError, "rollouts"),
        ({"rollouts": (0,)}, ValueError, "rollouts=0"),
        ({"rollouts": (1, 40)}, ValueError, "expected shorter rollouts"),
        ({"timestep": 0.03}, ValueError, "multiple"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"network": xdan.LocalPolynomial(1, 1, xdan.TwoScaleLorenz96().space)}, ValueError, "expected one space"),
    ],
)
def test_bad_arguments_are_refused(record, change, error, match, computed):
    with pytest.raises(error, match=match):
        record.dan.train_surrogate(**{**SHORT, **change})
    assert computed.calls == 0


def test_other_bad_input(record):
    with pytest.raises(ValueError, match="needs the truth"):
        record.drop_vars("truth").dan.train_surrogate(**SHORT)
    with pytest.raises(ValueError, match="expected even intervals"):
        record.isel(time=[0, 1, 3, 4, 5, 6]).dan.train_surrogate(**SHORT)
    with pytest.raises(TypeError, match="expected a mapping"):
        record.dan.forecast_skill(MODEL)
    with pytest.raises(ValueError, match="has the space"):
        record.dan.forecast_skill({"large": xdan.Lorenz96(12)})
    with pytest.raises(ValueError, match="expected fewer leads"):
        record.dan.forecast_skill({"true": MODEL}, leads=40)
    with pytest.raises(TypeError, match="under a name"):
        xdan.model_climate({"true": 3})
