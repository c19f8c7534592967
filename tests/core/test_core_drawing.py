"""Draws from Gaussian analyses: their covariance, and labels that key them."""

import pytest
import torch
from torch.testing import assert_close

from xdan.core.drawing import draw_gaussian, symmetric_root


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(*lead, size=3):
    factor = normals(*lead, size, size)
    return factor @ factor.mT


def test_symmetric_root_is_symmetric_and_a_root_also_of_singular_covariances():
    covariance = covariances(4)
    covariance[0, 2] = covariance[0, :, 2] = 0.0
    root = symmetric_root(covariance)
    assert_close(root @ root.mT, covariance)
    assert_close(root, root.mT)


def test_symmetric_root_moves_with_the_components():
    covariance = covariances(1, size=5)
    g = torch.tensor([3, 0, 4, 1, 2])
    assert_close(symmetric_root(covariance[:, g][:, :, g]), symmetric_root(covariance)[:, g][:, :, g])


def test_draws_have_the_covariance_and_the_mean():
    covariance, mean = covariances(1, 1), normals(1, 1, 3)
    label = torch.arange(20_000)
    drawn = draw_gaussian(
        mean.expand(20_000, 1, 3), covariance.expand(20_000, 1, 3, 3), label, torch.tensor([5]), 2, seed=0
    )
    flat = (drawn[:, 0] - mean[0]).flatten(0, 1)
    size = covariance.diagonal(dim1=2, dim2=3).sum().item()
    assert_close(flat.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=4 * (size / 40_000) ** 0.5)
    assert_close(flat.T @ flat / len(flat), covariance[0, 0], rtol=0, atol=0.03 * size)
    between = (drawn[:, 0, 0] - mean[0]).T @ (drawn[:, 0, 1] - mean[0]) / 20_000
    assert float(between.abs().max()) < 0.03 * size


def test_a_diagonal_covariance_draws_as_deviations_do():
    mean, deviation = normals(2, 3, 4), normals(2, 3, 4, seed=1).abs()
    labels = torch.tensor([7, 9]), torch.arange(3)
    one = draw_gaussian(mean, deviation, *labels, 3, seed=1)
    other = draw_gaussian(mean, torch.diag_embed(deviation**2), *labels, 3, seed=1)
    assert_close(one, other)


def test_draws_are_keyed_by_labels_and_members_by_their_number():
    mean, deviation = normals(3, 4, 5), torch.ones(3, 4, 5, dtype=torch.float64)
    trajectory, time = torch.tensor([2, 5, 8]), torch.tensor([10, 11, 12, 13])
    whole = draw_gaussian(mean, deviation, trajectory, time, 4, seed=3)
    part = draw_gaussian(mean[1:, 2:], deviation[1:, 2:], trajectory[1:], time[2:], 2, seed=3)
    assert torch.equal(part, whole[1:, 2:, :2])
    assert not torch.equal(whole, draw_gaussian(mean, deviation, trajectory, time, 4, seed=4))
    assert whole.flatten().unique().numel() == whole.numel()


@pytest.mark.parametrize("ndim", [1, 2])
def test_what_is_lost_stays_lost_and_does_no_harm(ndim):
    mean = normals(2, 1, 3)
    errors = torch.ones(2, 1, 3, dtype=torch.float64)
    errors = errors if ndim == 1 else torch.diag_embed(errors)
    alone = draw_gaussian(mean, errors, torch.arange(2), torch.zeros(1, dtype=torch.int64), 2, 0)
    mean[0] = torch.nan
    errors[0] = torch.nan
    drawn = draw_gaussian(mean, errors, torch.arange(2), torch.zeros(1, dtype=torch.int64), 2, 0)
    assert bool(drawn[0].isnan().all())
    assert torch.equal(drawn[1], alone[1])
