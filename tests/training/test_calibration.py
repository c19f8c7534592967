"""A spread for networks without: what constant spreads are, with the truth and without, and networks around others."""

import numpy as np
import pytest
import torch
import xarray as xr

import xdan
from xdan.core.dynamics import Lorenz96
from xdan.core.learning import calibration
from xdan.core.learning.calibration import error_variance
from xdan.core.methods import Record
from xdan.core.networks import ResidualCNN
from xdan.core.observing import ObservingSystem
from xdan.core.random import Purpose

QUICK = {"window": 3, "batch": 2, "steps": 3, "validate_every": 2, "progress": False}
SMALL = {"filters": 3, "blocks": 1, "kernel": 3}


@pytest.fixture(scope="module")
def record():
    return xdan.twin(xdan.Lorenz96(sites=8), cycles=30, trajectories=8, seed=3).compute()


@pytest.fixture(scope="module")
def plain(record):
    return xdan.train(record, xdan.ResidualCNN(**SMALL), **QUICK)


def test_constant_spread_is_the_root_mean_square_error_of_what_is_held_back(record, plain):
    net = xdan.calibrate(plain, record, kind="constant", validation=0.25)
    held = record.isel(trajectory=slice(6, None))
    run = held.dan.cycle(plain)
    error = (run.analysis - held.truth).isel(time=slice(10, None))
    expected = np.sqrt((error.astype(float) ** 2).mean(["trajectory", "time"]))
    spread = held.dan.cycle(net).spread
    np.testing.assert_allclose(spread.isel(time=5), np.broadcast_to(expected, (2, 8)), rtol=1e-4)
    xr.testing.assert_equal(held.dan.cycle(net).analysis, run.analysis)
    assert "calibrated" in spread.attrs["long_name"]
    assert net.description["training"]["calibrated"]["truth"]
    assert net.description["training"]["before"] == plain.description["training"]


def test_without_the_truth_stein_tells_the_error_of_a_linear_analysis():
    """x_a = x_f + k (y - x_f): where x_f is the truth's climate, its error is that of the written means."""

    class Linear(ResidualCNN):
        def forward(self, x, zeta, memory=None):
            return x + 0.3 * zeta * self.error_std**2, None

    network = Linear(**SMALL).double()
    dynamics, std = Lorenz96(8), 1.5
    observing = ObservingSystem(std=torch.tensor(std, dtype=torch.float64))
    network.normalise(2.3, 3.6, std)
    generator = torch.Generator().manual_seed(0)
    truth = dynamics.climate_sample(4000, 0, purpose=Purpose.CLIMATOLOGY, like=torch.zeros((), dtype=torch.float64))
    states = [truth]
    for _ in range(2):
        states.append(dynamics.advance(states[-1], 1))
    truth = torch.stack(states, 1)
    observation = truth + std * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    known = Record(dynamics, observing, observation, [0, 1, 1], torch.arange(4000), 0, truth)
    blind = Record(dynamics, observing, observation, [0, 1, 1], torch.arange(4000), 0)
    right, estimate = error_variance(network, known, 1), error_variance(network, blind, 1)
    assert right.shape == estimate.shape == (8,)
    assert len(estimate.unique()) == 1
    scatter = 2**0.5 * std**2 * 2 / (4000 * 8 * 2) ** 0.5
    assert abs(float(estimate[0] - right.mean())) < 4 * scatter
    assert scatter < 0.05 * float(right.mean())


def test_network_spread_is_learned_and_the_analyses_stay(record, plain, tmp_path):
    net = xdan.calibrate(plain, record, **SMALL, **QUICK, diagonals=3)
    run = record.dan.cycle(net)
    xr.testing.assert_equal(run.analysis, record.dan.cycle(plain).analysis)
    assert float(run.spread.isel(time=slice(2, None)).std()) > 0
    assert net.description["training"]["objective"]["name"] == "log-score"
    assert "validation_loss" in net.history
    assert net.description["training"]["validation_loss"] == pytest.approx(float(net.history.validation_loss.min()))
    net.to_zarr(tmp_path / "net.zarr")
    opened = xdan.open_network(tmp_path / "net.zarr")
    assert opened == net
    xr.testing.assert_identical(record.dan.cycle(opened), run)
    assert str(record.dan.score(run).crps_of.values) == "Gaussian"
    further = xdan.train(record, net, objective="crps", **QUICK)
    xr.testing.assert_equal(record.dan.cycle(further).analysis, run.analysis)


def test_a_factor_makes_the_spread_as_large_as_the_errors(record, plain):
    before = xdan.with_spread(plain, **SMALL)
    net = xdan.calibrate(before, record, kind="factor", validation=0.25)
    held = record.isel(trajectory=slice(6, None))
    run, old = held.dan.cycle(net, members=True), held.dan.cycle(before, members=True)
    late = {"time": slice(10, None)}
    error = (run.analysis - held.truth).isel(late).astype(float)
    assert float((run.spread.isel(late).astype(float) ** 2).mean()) == pytest.approx(float((error**2).mean()), rel=1e-4)
    factor = net.description["training"]["spread_factors"][0]
    np.testing.assert_allclose(
        run.analysis_covariance.isel(late), factor**2 * old.analysis_covariance.isel(late), rtol=1e-3, atol=1e-5
    )
    again = xdan.calibrate(net, record, kind="factor", validation=0.25)
    assert again.description["training"]["spread_factors"] == [1.0]
    with pytest.raises(ValueError, match="has no spread that a factor changes"):
        xdan.calibrate(plain, record, kind="factor")


def test_a_whole_network_is_trained_by_its_name(record):
    net = xdan.train(
        record, xdan.GaussianCNN(xdan.ResidualCNN(memory=1, **SMALL), **SMALL), objective="log-score", **QUICK
    )
    run = record.dan.cycle(net, members=True)
    assert {"memory", "analysis_covariance", "spread"} <= set(run)
    gain = record.dan.gain(net, run=run, kind="covariance", every=10)  # derivatives of the mean; the root plays no part
    assert gain.sizes["i"] == 8


def test_first_weights_follow_from_the_seed(plain):
    one, same, other = (xdan.with_spread(plain, seed=seed, **SMALL) for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize("kind", ["network", "constant"])
def test_what_has_a_spread_or_is_not_trained_is_refused(record, plain, kind):
    with pytest.raises(TypeError, match="expected a trained Network"):
        xdan.calibrate(xdan.ResidualCNN(), record, kind=kind)
    around = xdan.with_spread(plain, **SMALL)
    with pytest.raises(ValueError, match=r"'gaussian-cnn'.*expected a network of one forecast without a spread"):
        xdan.calibrate(around, record, kind=kind)


@pytest.mark.parametrize("kind", ["network", "constant"])
def test_a_network_of_members_is_refused_by_the_same_sentence(record, kind):
    net = xdan.train(record, xdan.EnsembleCNN(members=3, **SMALL), **QUICK)
    with pytest.raises(ValueError, match=r"'ensemble-cnn'.*expected a network of one forecast without a spread"):
        xdan.calibrate(net, record, kind=kind)


@pytest.mark.parametrize("factor", [float("nan"), 0.0])
def test_a_factor_that_is_no_positive_number_is_refused(record, plain, monkeypatch, factor):
    monkeypatch.setattr(calibration, "spread_factors", lambda *_: [factor])
    with pytest.raises(ValueError, match=r"factors of the spread are .*expected positive numbers"):
        xdan.calibrate(xdan.with_spread(plain, **SMALL), record, kind="factor")


def test_wrong_arguments_are_refused(record, plain):
    with pytest.raises(ValueError, match="kind='variable': expected one of"):
        xdan.calibrate(plain, record, kind="variable")
    with pytest.raises(TypeError, match="trains nothing and takes no"):
        xdan.calibrate(plain, record, kind="constant", steps=3)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'sharpness'"):
        xdan.calibrate(plain, record, sharpness=3)
    blind = record.drop_vars("truth")
    with pytest.raises(ValueError, match="needs the truth"):
        xdan.calibrate(plain, blind, **QUICK)
