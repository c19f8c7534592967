"""Corrections learned from increments: closed forms, a filter with a gain of one, stores, and what is refused."""

import json
import shutil

import dask
import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import xdan
from xdan.core.checks import XdanWarning
from xdan.core.methods import method_by_name
from xdan.estimation.control import control_record
from xdan.estimation.increments import Increments
from xdan.estimation.learners import shrunk
from xdan.records.record import read

WRONG = xdan.Lorenz96(8, forcing=9.0)
FILTER = {"members": 12, "inflation": 4.0, "progress": False}  # its gain is nearly one where observations are precise
QUIET = {"dynamics": WRONG, "progress": False}


def at_rest(corrected):
    """The correction of the state zero, at the first site."""
    return corrected.correction(torch.zeros(8, dtype=torch.float64))[0].item()


pytestmark = pytest.mark.filterwarnings(
    "ignore:the truth does not follow:xdan.XdanWarning",
    "ignore:.* have lost the truth:xdan.XdanWarning",
)


@pytest.fixture(scope="module")
def record():
    """A truth of F = 8 with small errors: every analysis is nearly the truth, and increments are the model's errors."""
    return xdan.twin(xdan.Lorenz96(8), cycles=60, trajectories=8, error_std=0.02, seed=3, dtype="float64").compute()


@pytest.fixture(scope="module")
def run(record):
    return record.dan.baseline("etkf", dynamics=WRONG, **FILTER)


def test_precise_observations_show_the_whole_error(record, run):
    corrected = record.dan.learn_correction(run, "constant", burn_in=5, **QUIET)
    (row,) = corrected.provenance["passes"]
    value = at_rest(corrected)
    assert value == pytest.approx(-1.0, abs=0.05)
    assert row["learned"] == pytest.approx(0.05 * abs(value), rel=0.05)
    assert 0 < row["learned_standard_error"] < 0.01
    assert row["lost"] == 0.0
    assert corrected.provenance["run"]["method"] == "etkf"
    assert corrected.provenance["record"]["cycles"] == 60


def test_passes_remove_the_mean_innovation(record, run):
    corrected = record.dan.learn_correction(run, "constant", burn_in=5, passes=3, **QUIET)
    again = record.dan.baseline("etkf", dynamics=corrected, **FILTER)
    innovation = (record.observation - again.forecast).isel(time=slice(5, None))
    assert abs(float(innovation.mean())) < 5e-4
    assert float((record.observation - run.forecast).isel(time=slice(5, None)).mean()) < -0.04
    assert corrected.provenance["passes"][2]["increment"] < 0.6 * corrected.provenance["passes"][0]["increment"]
    scores = [float(record.dan.score(one, burn_in=5).forecast_rmse) for one in (run, again)]
    assert scores[1] < 0.7 * scores[0]


def test_the_control_takes_off_what_a_perfect_model_shows(record):
    """Where the model is perfect, increments still depend on the state; with the control nothing is learned."""
    noisy = xdan.twin(xdan.Lorenz96(8), cycles=120, trajectories=16, error_std=1.0, seed=4).compute()
    perfect = noisy.dan.baseline("etkf", **{**FILTER, "inflation": 1.5})
    words = {"burn_in": 10, "progress": False, "passes": 1}
    with_control, without = (noisy.dan.learn_correction(perfect, "linear", control=c, **words) for c in (True, False))
    rows = [one.provenance["passes"][0] for one in (with_control, without)]
    assert rows[1]["learned"] > 5 * rows[1]["learned_standard_error"]
    assert rows[0]["learned"] < 0.35 * rows[1]["learned"]


def test_the_control_is_observed_as_the_record(record):
    holes = record.observation.where(record.x > 1).where(record.time != record.time[3])
    ds = record.assign(observation=holes.assign_attrs(record.observation.attrs))
    labelled = read(ds, dynamics=WRONG)
    one, other = (control_record(ds, labelled, number, 0) for number in (1, 2))
    assert "truth" not in one
    assert (one.observation.isnull() == ds.observation.isnull()).all()
    assert one.observation.dims == ds.observation.dims
    assert float(abs(one.observation - other.observation).mean()) > 1.0
    split = control_record(ds.chunk(trajectory=3, time=17), read(ds.chunk(trajectory=3, time=17), dynamics=WRONG), 1, 0)
    assert split.observation.chunks is not None
    xr.testing.assert_allclose(split.observation.compute(), one.observation, rtol=1e-9)
    whole = control_record(record, read(record, dynamics=WRONG), 1, 0).observation.values
    step = WRONG.advance(torch.from_numpy(whole[:, 10].copy()), 1).numpy()
    assert np.std(whole[:, 11] - step) < 0.04  # errors of 0.02 at both ends


def test_any_chunks_give_the_same(record, run):
    words = {"burn_in": 5, "control": False, **QUIET}
    whole = record.dan.learn_correction(run, "linear", **words)
    parts = record.chunk(trajectory=3, time=11).dan.learn_correction(
        run.chunk(trajectory=3, time=11), "linear", **words
    )
    assert torch.allclose(whole.network.coefficients, parts.network.coefficients, rtol=1e-5, atol=1e-6)


def test_moments_and_lost_trajectories(record, run):
    broken = run.copy()
    broken["analysis"] = run.analysis.where((run.trajectory != 2) | (run.time < run.time[30]))
    labelled = read(record, dynamics=WRONG)
    moments = Increments.of(labelled, broken, 5).moments()
    assert moments.lost == pytest.approx(30 / 54 / 8, abs=0.01)
    kept = run.analysis.isel(time=slice(5, -1), trajectory=[0, 1, 3, 4, 5, 6, 7])
    assert moments.mean[0] == pytest.approx(float(kept.mean()), abs=0.1)
    corrected = record.dan.learn_correction(broken, "constant", burn_in=5, control=False, **QUIET)
    assert at_rest(corrected) == pytest.approx(-1.0, abs=0.06)


@pytest.mark.slow
def test_a_network_finds_it_too(record, run):
    network = xdan.QuadraticCNN(filters=3, kernel=1, blocks=0)
    words = {"burn_in": 5, "steps": 300, "batch": 64, "learning_rate": 0.02, "control": False, **QUIET}
    corrected = record.dan.learn_correction(run, network, **words)
    states = torch.from_numpy(run.analysis.values[:, 20:30].copy()).reshape(-1, 8)
    assert float(corrected.correction(states).mean()) == pytest.approx(-1.0, abs=0.1)
    again = record.dan.learn_correction(run, network, **words)
    assert again == corrected
    assert network.first.shape == (9, 1)


def test_a_store_keeps_the_passes(record, run, tmp_path):
    words = {"burn_in": 5, "passes": 2, "store": tmp_path / "passes", **QUIET}
    first = record.dan.learn_correction(run, "constant", **words)
    assert sorted(p.name for p in (tmp_path / "passes").glob("*.zarr")) == [
        "call.zarr",
        "control-1.zarr",
        "control-2.zarr",
        "run-2.zarr",
    ]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "passes").rglob("zarr.json")}
    second = record.dan.learn_correction(run, "constant", **words)
    assert first == second
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "passes").rglob("zarr.json")} == times
    with pytest.raises(FileExistsError, match="another correction"):
        record.dan.learn_correction(run, "linear", **words)


def test_a_store_is_of_one_call(record, run, tmp_path):
    words = {"kind": "constant", "burn_in": 5, "store": tmp_path / "passes", **QUIET}
    first = record.dan.learn_correction(run, **words)
    other = record.assign(observation=record.observation + 0.01)
    etkf = method_by_name("etkf", members=12, inflation=4.5)
    for ds, change, differs in (
        (other, {}, "record"),
        (record, {"observation_error": 0.04}, "experiment"),
        (record, {"seed": 3}, "settings"),
        (record, {"burn_in": 6}, "settings"),
        (record, {"control": False}, "settings"),
        (record, {"method": etkf}, "method"),
        (record, {"dynamics": WRONG.with_model_error(0.1)}, "model"),
    ):
        with pytest.raises(FileExistsError, match=f"another correction, which differs in .*{differs}"):
            ds.dan.learn_correction(run, **{**words, **change})
    moved = run.assign(analysis=run.analysis + 0.01)
    with pytest.raises(FileExistsError, match="first pass"):
        record.dan.learn_correction(moved, **words)
    shutil.rmtree(tmp_path / "passes" / "call.zarr")
    with pytest.raises(FileExistsError, match="not the call that made them"):
        record.dan.learn_correction(run, **words)
    assert first.provenance["verb"] == "learn_correction"


def test_a_checkpoint_of_another_fit_is_refused(record, run, tmp_path, monkeypatch):
    """The fit of a pass knows its states by itself, also where nothing else tells two calls apart."""
    monkeypatch.setattr("xdan.estimation.corrections.claim", lambda folder, call: None, raising=False)
    words = {"steps": 2, "batch": 4, "burn_in": 5, "control": False, "store": tmp_path / "passes", **QUIET}
    network = xdan.QuadraticCNN(filters=2)
    first = record.dan.learn_correction(run, network, **words)
    assert record.dan.learn_correction(run, network, **words) == first
    with pytest.raises(ValueError, match="another run"):
        record.dan.learn_correction(run.assign(analysis=run.analysis + 0.01), network, **words)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"passes": 1}, r"control=True cycles .*pass method= .*or control=False$"),
        ({"passes": 2}, r"passes=2 and control=True cycles .*or passes=1 and control=False$"),
        ({"passes": 2, "control": False}, r"passes=2 cycles .*or passes=1$"),
    ],
)
def test_what_needs_the_method_is_said(record, run, change, match):
    silent = run.assign_attrs(method_parameters="{}", network_digest="0")
    with pytest.raises(ValueError, match=match):
        record.dan.learn_correction(silent, "constant", burn_in=5, **{**QUIET, **change})


def test_the_control_errs_as_a_truth_does(record):
    """The control's truth is that of `TruthModel`: a twin of the model with its error, of the same seed."""
    noisy = xdan.Lorenz96(8, forcing=9.0).with_model_error(0.3)
    twin = xdan.twin(noisy, truth_dynamics=noisy, cycles=12, trajectories=3, seed=5, error_std=1e-6, dtype="float64")
    twin = twin.compute()
    seed = 5
    control = control_record(twin, read(twin, dynamics=noisy), 0, seed)
    np.testing.assert_allclose(control.observation, twin.truth, atol=1e-4)


def test_going_on_with_a_corrected_model(record, run):
    first = record.dan.learn_correction(run, "constant", burn_in=5, **QUIET)
    latest = record.dan.baseline("etkf", dynamics=first, **FILTER)
    words = {"dynamics": first, "burn_in": 5, "progress": False}
    second = record.dan.learn_correction(latest, "constant", **words)
    assert second.model == WRONG
    assert abs(at_rest(second) + 1) < 0.02
    with pytest.raises(ValueError, match=r"corrected by .* already"):
        record.dan.learn_correction(latest, "linear", **words)


def test_a_correction_that_makes_it_worse_is_flagged(record, run):
    with pytest.warns(XdanWarning, match="makes the assimilation worse"):
        corrected = record.dan.learn_correction(run, "constant", passes=3, relaxation=6.0, burn_in=5, **QUIET)
    assert corrected.provenance["converged"] is False
    assert len(corrected.provenance["passes"]) == 1


def test_saving_and_opening(record, run, tmp_path):
    corrected = record.dan.learn_correction(run, "linear", burn_in=5, control=False, **QUIET)
    xdan.save_dynamics(corrected, tmp_path / "model.zarr")
    opened = xdan.open_dynamics(tmp_path / "model.zarr")
    assert opened == corrected
    assert opened.provenance == corrected.provenance
    x = torch.randn(2, 8, dtype=torch.float64)
    assert torch.equal(opened.advance(x, 3), corrected.advance(x, 3))
    with pytest.raises(FileExistsError):
        xdan.save_dynamics(corrected, tmp_path / "model.zarr")
    dressed = xdan.CorrectedDynamics(WRONG.with_model_error(0.2).with_climatology(torch.randn(5, 8)), corrected.network)
    xdan.save_dynamics(dressed, tmp_path / "model.zarr", mode="w")
    assert xdan.open_dynamics(tmp_path / "model.zarr") == dressed
    # The model may be handed over with the climatology and the Q that it was corrected with, or with others.
    for model in (WRONG, WRONG.with_model_error(0.2).with_climatology(torch.randn(5, 8))):
        assert xdan.open_dynamics(tmp_path / "model.zarr", model) == dressed


def test_a_record_of_a_corrected_model_is_known(record, run, tmp_path):
    corrected = record.dan.learn_correction(run, "constant", burn_in=5, control=False, **QUIET)
    of_it = record.dan.baseline("etkf", dynamics=corrected, **FILTER)
    described = json.loads(of_it.attrs["dynamics"])
    assert described["name"] == "corrected"
    assert described["parameters"]["network"]["digest"] == corrected.network.digest()
    ds = xdan.twin(corrected, cycles=4, trajectories=2)
    with pytest.raises(ValueError, match="open_dynamics"):
        ds.dan.baseline("climatology")
    assert ds.dan.baseline("climatology", dynamics=corrected).sizes["time"] == 4


def test_a_user_s_own_model_is_handed_over(tmp_path):
    mine = xdan.CustomDynamics(lambda x: -x, state=xdan.Ring(6), timestep=0.1, name="decay")
    other = xdan.CustomDynamics(lambda x: -2 * x, state=xdan.Ring(6), timestep=0.1, name="decay")
    corrected = xdan.CorrectedDynamics(mine, xdan.LocalPolynomial())
    xdan.save_dynamics(corrected, tmp_path / "model.zarr")
    with pytest.raises(ValueError, match=r"no store holds a function; here as model="):
        xdan.open_dynamics(tmp_path / "model.zarr")
    assert xdan.open_dynamics(tmp_path / "model.zarr", mine) == corrected
    with pytest.raises(ValueError, match="not what it was"):
        xdan.open_dynamics(tmp_path / "model.zarr", other)
    with pytest.raises(ValueError, match="expected the model that"):
        xdan.open_dynamics(tmp_path / "model.zarr", xdan.Lorenz96(6))


@pytest.mark.parametrize("name", ["weights.coefficients", "fingerprint"])
def test_damaged_stores(name, tmp_path):
    path = tmp_path / "model.zarr"
    xdan.save_dynamics(xdan.CorrectedDynamics(WRONG, xdan.LocalPolynomial()), path)
    zarr.open_group(path, mode="r+")[name][...] = 1.0
    with pytest.raises(ValueError, match="cut short or changed"):
        xdan.open_dynamics(path)


def test_stores_of_other_things(tmp_path, net):
    net.to_zarr(tmp_path / "net.zarr")
    with pytest.raises(ValueError, match="holds no model with a learned part"):
        xdan.open_dynamics(tmp_path / "net.zarr")
    with pytest.raises(FileNotFoundError):
        xdan.open_dynamics(tmp_path / "nothing.zarr")
    with pytest.raises(TypeError, match=r"needs? a store"):
        xdan.save_dynamics(WRONG, tmp_path / "model.zarr")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"kind": "cubic"}, ValueError, "kind='cubic': expected one of"),
        ({"kind": xdan.ResidualCNN()}, TypeError, "expected one of"),
        ({"passes": 0}, ValueError, "passes=0"),
        ({"burn_in": 55}, ValueError, "leaves 4 intervals"),
        ({"penalty": -1.0}, ValueError, "penalty"),
        ({"relaxation": "newton"}, ValueError, "expected 'secant'"),
        ({"dynamics": xdan.Lorenz96(8)}, ValueError, "run's forecasts were made by the model"),
        ({"method": "enkf"}, TypeError, "expected a trained network or a method"),
        ({"validation": 1.0}, ValueError, "validation"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"control": "no"}, TypeError, "control"),
        ({"control": "no", "passes": 2}, TypeError, "control"),
        ({"kind": xdan.LocalPolynomial(1, 1, xdan.TwoScaleLorenz96().space)}, ValueError, "expected one space"),
    ],
)
def test_bad_arguments_are_refused_at_once(record, run, change, error, match, computed):
    with pytest.raises(error, match=match):
        record.dan.learn_correction(run, **{"kind": "linear", "burn_in": 5, **QUIET, **change})
    assert computed.calls == 0


def test_a_run_of_another_record(record, run):
    part = record.isel(trajectory=slice(0, 4))
    with pytest.raises(ValueError, match="run and record differ in trajectory"):
        part.dan.learn_correction(run, "linear", burn_in=5, **QUIET)
    with pytest.raises(TypeError, match="expected the Dataset"):
        record.dan.learn_correction(run.analysis, "linear", **QUIET)
    silent = run.assign_attrs(method="my-own")
    with pytest.raises(ValueError, match="pass method="):
        record.dan.learn_correction(silent, "linear", burn_in=5, **QUIET)


def test_uneven_intervals_are_for_least_squares_only(record, run):
    keep = [0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15, 17]
    uneven = record.isel(time=keep)
    again = uneven.dan.baseline("etkf", dynamics=WRONG, **FILTER)
    words = {"burn_in": 2, "control": False, **QUIET}
    corrected = uneven.dan.learn_correction(again, "constant", **words)
    assert at_rest(corrected) == pytest.approx(-1.0, abs=0.1)
    with pytest.raises(ValueError, match="expected even intervals"):
        uneven.dan.learn_correction(again, "cnn", **words)


@pytest.mark.slow
def test_the_verb_works_under_threads(record, run):
    with dask.config.set(scheduler="threads", num_workers=2):
        threaded = record.chunk(trajectory=2).dan.learn_correction(
            run.chunk(trajectory=2), "constant", **QUIET, burn_in=5
        )
    plain = record.dan.learn_correction(run, "constant", burn_in=5, **QUIET)
    assert torch.allclose(threaded.network.coefficients, plain.network.coefficients, rtol=1e-4)


def test_shrinking():
    values, errors = torch.tensor([2.0, 1.0, -4.0]), torch.tensor([1.0, 2.0, 0.0])
    assert torch.allclose(shrunk(values, errors), torch.tensor([1.5, 0.0, -4.0]))


def test_a_correction_of_nothing_says_so():
    """The forecast model is right: no coefficient is larger than its error."""
    model = xdan.Lorenz96(8)
    record = xdan.twin(model, cycles=60, trajectories=4, seed=3).compute()
    run = record.dan.baseline("etkf", members=10, inflation=1.05, progress=False)
    with pytest.warns(xdan.XdanWarning, match="nothing was learned"):
        same = record.dan.learn_correction(run, "constant", burn_in=30, control=False, progress=False)
    x = torch.linspace(-3.0, 9.0, 8)
    assert torch.equal(same.correction(x), torch.zeros(8))
