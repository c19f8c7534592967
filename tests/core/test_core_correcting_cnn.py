"""A network that corrects the forecast model beside its analysis, trained through the cycles."""

import pytest
import torch
from torch.testing import assert_close

import xdan
from xdan.core.dynamics import CorrectedDynamics
from xdan.core.learning import objective_by_name
from xdan.core.learning.gradient import OneProcess
from xdan.core.learning.rollout import Window
from xdan.core.methods import method_of
from xdan.core.observing import ObservingSystem

MODEL = xdan.Lorenz96(8, forcing=9.0)
SIZES = {"filters": 4, "blocks": 1, "kernel": 3, "correction_kernel": 3}


def network(degree=1):
    torch.manual_seed(0)
    net = xdan.CorrectingCNN(**SIZES, correction_degree=degree).double()
    net.normalise(2.3, 3.6, 1.0)
    with torch.no_grad():
        net.correction.coefficients.copy_(0.02 * torch.randn_like(net.correction.coefficients))
    return net


def window():
    generator = torch.Generator().manual_seed(1)
    truth = 3.0 + torch.randn(2, 3, 8, dtype=torch.float64, generator=generator)
    observation = truth + torch.randn(truth.shape, dtype=torch.float64, generator=generator)
    return Window(truth=truth, observation=observation, steps=(1, 2, 1))


def test_forecasts_are_those_of_the_corrected_model():
    net, x = network(), torch.randn(2, 8, dtype=torch.float64) + 3.0
    corrected = CorrectedDynamics(MODEL, net.correction)
    ahead = method_of(net).forecast({"x": x}, MODEL, 3)["x"]
    assert_close(ahead, corrected.advance(x, 3))
    assert not torch.allclose(ahead, MODEL.advance(x, 3), atol=1e-3)


def test_a_correction_begins_at_zero():
    net = xdan.CorrectingCNN(**SIZES).double()
    x = torch.randn(2, 8, dtype=torch.float64)
    assert_close(method_of(net).forecast({"x": x}, MODEL, 2)["x"], MODEL.advance(x, 2))


def test_the_gradient_reaches_the_correction_through_the_cycles():
    """Against central differences of the loss in every coefficient."""
    net, observing = network(), ObservingSystem(torch.ones((), dtype=torch.float64))
    gradient = OneProcess(net, MODEL, observing, objective_by_name("mse"))
    state = {"x": torch.full((2, 8), 2.5, dtype=torch.float64)}
    names = [name for name, _ in net.named_parameters()]
    result = gradient(window(), state)
    (place,) = [k for k, name in enumerate(names) if name == "correction.coefficients"]
    coefficients = net.correction.coefficients
    differences = torch.zeros_like(coefficients)
    for term in range(coefficients.shape[1]):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                coefficients[0, term] += sign * 1e-6
                losses.append(float(gradient(window(), state).loss))
                coefficients[0, term] -= sign * 1e-6
        differences[0, term] = (losses[0] - losses[1]) / 2e-6
    assert_close(result.gradients[place], differences, rtol=1e-5, atol=1e-7)


def test_it_is_trained_saved_and_opened(tmp_path, quick):
    experiment = xdan.TwinExperiment(MODEL, truth_dynamics=xdan.Lorenz96(8))
    net = xdan.train(experiment, xdan.CorrectingCNN(**SIZES, correction_degree=0), **quick)
    corrected = net.corrected(MODEL)
    assert corrected.provenance["network"] == net.digest
    assert float(corrected.correction(torch.zeros(8)).abs().max()) > 0
    net.to_zarr(tmp_path / "net.zarr")
    again = xdan.open_network(tmp_path / "net.zarr")
    assert again == net
    assert again.corrected(MODEL) == corrected
    with pytest.raises(ValueError, match="fields"):
        net.corrected(xdan.TwoScaleLorenz96(sites=4, fast=4))


def test_a_network_without_a_correction_says_so(net, model):
    with pytest.raises(ValueError, match="holds no correction of the model"):
        net.corrected(model)
