"""Moments and error scales of each field: what a network of several fields is normalised with."""

import numpy as np
import pytest
import torch

import xdan
from xdan.core.methods import Record
from xdan.core.observing import LinearOperator, ObservingSystem
from xdan.core.spaces import Field, Ring, StateSpace
from xdan.training.data import TrainingData, climate_moments

SPACE = StateSpace([Field("h", Ring(4)), Field("u", Ring(8, dim="fine")), Field("v", Ring(4))])
MEAN, STD, ERROR = [10.0, -2.0, 0.0], [2.0, 30.0, 0.5], [0.5, 3.0, 7.0]
MODEL = xdan.CustomDynamics(step=lambda fields: fields, state=SPACE, timestep=1.0, spin_up_time=0.0)


def of_components(values: list[float]) -> torch.Tensor:
    counts = torch.tensor([field.geometry.size for field in SPACE])
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(counts)


def record(truth: bool, unseen: str | None = None, operator: LinearOperator | None = None) -> Record:
    """States of known moments, observed with the errors of each field, one field perhaps never."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 40, 50, SPACE.size, generator=generator, dtype=torch.float64)
    states = of_components(MEAN) + of_components(STD) * noise[0]
    observation = states + of_components(ERROR) * noise[1]
    if unseen:
        observation[..., SPACE.slices[unseen]] = torch.nan
    std = of_components(ERROR) if operator is None else torch.full((operator.size,), 0.1, dtype=torch.float64)
    observing = ObservingSystem(std=std, operator=operator)
    if operator is not None:
        observation = observation[..., : operator.size]
    return Record(MODEL, observing, observation, [0] + [1] * 49, torch.arange(40), 0, states if truth else None)


def data(of: Record, moments) -> TrainingData:
    return TrainingData(MODEL, of.observing, None, of, moments, {}, {})


@pytest.mark.parametrize("truth", [True, False])
def test_every_field_has_moments_of_its_own(truth):
    mean, std = climate_moments(record(truth), SPACE)
    counts = [40 * 50 * field.geometry.size for field in SPACE]
    assert (np.abs(np.subtract(mean, MEAN)) < 4 * np.hypot(STD, 0.0 if truth else ERROR) / np.sqrt(counts)).all()
    # Without the truth R is taken off, and at least a tenth of the variance left.
    expected = STD if truth else [2.0, 30.0, np.sqrt(0.1 * (0.5**2 + 7.0**2))]
    np.testing.assert_allclose(std, expected, rtol=0.03)


def test_one_field_or_none_has_moments_of_all():
    of = record(True)
    mean, std = climate_moments(of)
    assert (mean, std) == climate_moments(of, StateSpace(Field("x", Ring(16))))
    np.testing.assert_allclose([mean, std], [float(of.truth.mean()), float(of.truth.std(correction=0))], rtol=1e-12)


def test_a_field_that_does_not_vary_is_named():
    of = record(True)
    of.truth[..., SPACE.slices["u"]] = 3.0
    with pytest.raises(ValueError, match="the states of the field 'u' that validation reads have the mean 3 and"):
        climate_moments(of, SPACE)


def test_the_climate_of_a_field_that_is_never_observed_is_the_models():
    mean, std = climate_moments(record(False, unseen="u"), SPACE)
    np.testing.assert_allclose(mean[1], 0.0, atol=0.1)  # the model rests in standard normal noise
    np.testing.assert_allclose(std[1], 1.0, rtol=0.05)
    np.testing.assert_allclose(mean[0], 10.0, atol=0.1)


def test_error_scales_are_those_of_each_field():
    network = xdan.ResidualCNN(filters=2, blocks=1, space=SPACE)
    scale = data(record(True), (MEAN, STD)).error_scale(network)
    np.testing.assert_allclose(scale, ERROR, rtol=1e-12)
    one = data(record(True), (0.0, 1.0)).error_scale(xdan.ResidualCNN(filters=2, blocks=1))
    np.testing.assert_allclose(one**2, (4 * 0.5**2 + 8 * 3.0**2 + 4 * 7.0**2) / 16, rtol=1e-12)


def test_a_field_that_is_never_observed_has_the_others_share_of_its_deviation():
    network = xdan.ResidualCNN(filters=2, blocks=1, space=SPACE)
    scale = data(record(True, unseen="v"), (MEAN, STD)).error_scale(network)
    share = np.sqrt((0.5 / 2.0) * (3.0 / 30.0))
    np.testing.assert_allclose(scale, [0.5, 3.0, 0.5 * share], rtol=1e-12)


def test_error_scales_behind_an_operator_are_those_of_what_it_sees():
    """Two sites of h with the slope 4, one of u with the slope 1: errors of 0.1 / 4 and 0.1; v is not seen."""
    matrix = torch.zeros(3, 16, dtype=torch.float64)
    matrix[0, 0] = matrix[1, 1] = 4.0
    matrix[2, 5] = 1.0
    of = record(True, operator=LinearOperator(matrix))
    scale = data(of, (MEAN, STD)).error_scale(xdan.ResidualCNN(filters=2, blocks=1, space=SPACE))
    share = np.sqrt((0.025 / 2.0) * (0.1 / 30.0))
    np.testing.assert_allclose(scale, [0.025, 0.1, 0.5 * share], rtol=1e-6)
