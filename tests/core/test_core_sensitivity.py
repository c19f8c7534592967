"""Derivatives of networks, against torch's own and against closed forms."""

import pytest
import torch
from torch.func import jacfwd, jacrev

from xdan.core.networks import AnalysisNetwork, Committee, LinearInZeta, ResidualCNN
from xdan.core.networks.jets import residual_cnn_jet
from xdan.core.sensitivity import (
    Points,
    analysis_covariance,
    bias,
    composite_marginal_gain,
    forecast_derivative,
    increment,
    increment_scaling,
    marginal_gain,
    mixed_derivative,
    regress,
    regressed_covariance,
    whole_marginal_gain,
)
from xdan.core.symmetry import Group, symmetry_average

SMALL = {"filters": 4, "blocks": 2, "kernel": 3}
NETWORKS = {
    "gated": lambda: ResidualCNN(**SMALL),
    "memory": lambda: ResidualCNN(**SMALL, memory=2),
    "silu": lambda: ResidualCNN(**SMALL, activation="silu"),
    "sub-blocks": lambda: ResidualCNN(**SMALL, sub_blocks=2),
    "linear": lambda: ResidualCNN(**SMALL, activation="linear"),
    "blind": lambda: ResidualCNN(**SMALL, sees_forecast=False),
    "localised": lambda: LinearInZeta(rank=3, radius=1.5, **SMALL),
    "low-rank": lambda: LinearInZeta(form="low-rank", rank=3, **SMALL),
    "hypernetwork": lambda: LinearInZeta(form="hypernetwork", rank=3, width=3, **SMALL),
    "committee": lambda: Committee(
        [
            {"name": "residual-cnn", "parameters": {**SMALL, "memory": 2}},
            {"name": "linear-in-zeta", "parameters": {"rank": 3, "radius": 1.5, **SMALL}},
        ]
    ),
    "hypernetwork, memory": lambda: LinearInZeta(form="hypernetwork", rank=3, width=3, memory=2, **SMALL),
}


class Bilinear(AnalysisNetwork):
    """a_i = sum_jl T[i, j, l] zeta_j x_l, whose marginal gain is T."""

    name = "bilinear"

    def __init__(self, tensor):
        super().__init__()
        self.tensor = tensor

    def parameters_json(self):
        return {}

    def forward(self, x, zeta, memory=None):
        return x + torch.einsum("ijl,bj,bl->bi", self.tensor, zeta, x), None


def make(name, sites=7, batch=3):
    torch.manual_seed(3)
    net = NETWORKS[name]().double().eval().requires_grad_(False)
    net.normalise(2.3, 3.6, 1.3)
    for weight in net.parameters():
        weight.mul_(2)
    x, zeta = torch.randn(2, batch, sites, dtype=torch.float64)
    memory = torch.randn(batch, net.memory, sites, dtype=torch.float64) if net.memory else None
    return net, Points(2.3 + 3.6 * x, 0.3 * zeta, memory)


def reference(net, points):
    """P_a and Gamma by torch, state by state."""
    covariances, gammas = [], []
    for k in range(len(points)):
        memory = None if points.memory is None else points.memory[k : k + 1]

        def analysis(x, zeta, memory=memory):
            return net(x[None], zeta[None], memory)[0][0]

        covariances.append(jacrev(analysis, 1)(points.x[k], points.zeta[k]))
        gammas.append(jacfwd(jacrev(analysis, 1), 0)(points.x[k], points.zeta[k]))
    return torch.stack(covariances), torch.stack(gammas)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_derivatives_are_those_of_torch(name):
    net, points = make(name)
    covariance, gamma = reference(net, points)
    torch.testing.assert_close(analysis_covariance(net, points), covariance, rtol=0, atol=1e-10)
    torch.testing.assert_close(whole_marginal_gain(net, points), gamma, rtol=0, atol=1e-10)
    v, u = torch.randn(2, *points.x.shape, dtype=torch.float64)
    expected = torch.einsum("bijl,bj,bl->bi", gamma, v, u)
    torch.testing.assert_close(mixed_derivative(net, points, v, u), expected, rtol=0, atol=1e-10)


def test_marginal_gain_says_something():
    for name in ("gated", "memory", "silu", "sub-blocks", "localised", "low-rank", "hypernetwork"):
        assert whole_marginal_gain(*make(name)).abs().max() > 1e-4, name
    for name in ("linear", "blind"):  # affine, and a function of zeta alone
        assert whole_marginal_gain(*make(name)).abs().max() < 1e-14, name


@pytest.mark.parametrize("name", ["gated", "memory", "localised", "hypernetwork"])
def test_a_window_of_the_ring_is_all_that_matters(name):
    net, points = make(name, sites=4 * make(name)[0].reach + 6, batch=1)
    _, gamma = reference(net, points)
    for site in (0, 1, points.x.shape[1] - 1):
        torch.testing.assert_close(marginal_gain(net, points, site), gamma[..., site], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["gated", "memory", "silu", "sub-blocks", "linear"])
def test_jet_gives_the_analysis_and_its_derivative_by_the_forecast(name):
    net, points = make(name)
    direction = torch.zeros(7, dtype=torch.float64)
    direction[4] = 1.0
    jet = residual_cnn_jet(net, points.x, points.zeta, points.memory, x_site=4)
    torch.testing.assert_close(jet.value[0, :, 0].T, net(points.x, points.zeta, points.memory)[0], rtol=0, atol=1e-12)
    step = 1e-5
    moved = [net(points.x + s * step * direction, points.zeta, points.memory)[0] for s in (1, -1)]
    slope = (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close(jet.x[0, :, 0].T, slope, rtol=0, atol=1e-8)
    assert jet.zeta is None
    assert jet.mixed is None
    torch.testing.assert_close(forecast_derivative(net, points, 4), slope, rtol=0, atol=1e-8)


def test_derivative_of_a_committee_by_the_forecast_is_that_of_finite_differences():
    net, points = make("committee")
    step = torch.zeros(7, dtype=torch.float64)
    step[4] = 1e-5
    ahead, behind = (net(points.x + sign * step, points.zeta, points.memory)[0] for sign in (1, -1))
    torch.testing.assert_close(forecast_derivative(net, points, 4), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_bilinear_operator_returns_its_tensor():
    tensor = torch.randn(6, 6, 6, dtype=torch.float64)
    points = Points.at_rest(torch.randn(3, 6, dtype=torch.float64))
    toy = Bilinear(tensor)
    torch.testing.assert_close(whole_marginal_gain(toy, points), tensor.expand(3, 6, 6, 6), rtol=0, atol=1e-10)
    expected = torch.einsum("ijl,bl->bij", tensor, points.x)
    torch.testing.assert_close(analysis_covariance(toy, points), expected, rtol=0, atol=1e-10)
    # Exactly linear in zeta: a regression is exact too, with no more samples than it needs.
    samples = torch.randn(3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(regressed_covariance(toy, points, samples), expected, rtol=0, atol=1e-9)
    for site in range(6):
        found = composite_marginal_gain(toy, points, samples, site)
        torch.testing.assert_close(found, tensor[:, :, site].expand(3, 6, 6), rtol=0, atol=1e-9)


class Curved(Bilinear):
    """As linear as the toy on average over Gaussian zeta, but not at any one: a cubic is added."""

    def forward(self, x, zeta, memory=None):
        analysis, _ = super().forward(x, zeta)
        return analysis + x * (zeta**3 - 3 * zeta), None


def test_composite_error_falls_as_the_root_of_the_samples():
    tensor = torch.randn(4, 4, 4, dtype=torch.float64)
    points = Points.at_rest(torch.randn(1, 4, dtype=torch.float64))
    # For a unit Gaussian, E[(zeta^3 - 3 zeta)'] = 0: the smoothed gain is T.
    errors = []
    for count in (100, 6400):
        torch.manual_seed(1)
        samples = torch.randn(60, count, 4, dtype=torch.float64)
        many = Points.at_rest(points.x.expand(60, 4))
        found = composite_marginal_gain(Curved(tensor), many, samples, 2)
        errors.append(float((found - tensor[:, :, 2]).square().mean().sqrt()))
    assert 6.0 < errors[0] / errors[1] < 10.5  # 8 for N_p^(-1/2)


def test_regression_is_the_pseudo_inverse_where_samples_leave_directions_out():
    torch.manual_seed(0)
    slopes = torch.randn(3, 5, dtype=torch.float64)
    samples = torch.randn(2, 40, 5, dtype=torch.float64)
    samples[..., [1, 3]] = 0.0
    responses = samples @ slopes.T + 7.0
    expected = slopes.clone()
    expected[:, [1, 3]] = 0.0
    torch.testing.assert_close(regress(samples, responses), expected.expand(2, 3, 5), rtol=0, atol=1e-10)


def test_linear_in_zeta_network_is_its_own_covariance_and_scales():
    net, points = make("localised")
    matrix = analysis_covariance(net, points)
    applied = (matrix @ points.zeta[..., None])[..., 0]
    torch.testing.assert_close(increment(net, points), applied, rtol=0, atol=1e-10)
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-10)
    samples = torch.randn(3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(regressed_covariance(net, points, samples), matrix, rtol=0, atol=1e-8)
    scales = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    ratio = increment_scaling(net, points, matrix, scales)
    torch.testing.assert_close(ratio, scales.expand(3, 3), rtol=1e-7, atol=0)
    assert bias(net, points).max() == 0.0


def test_singular_covariance_is_refused_unless_directions_may_be_left_out():
    net, points = make("low-rank")
    matrix = analysis_covariance(net, points)
    scales = torch.tensor([2.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="P_a is singular: 4 of its 7 singular values"):
        increment_scaling(net, points, matrix, scales)
    torch.testing.assert_close(
        increment_scaling(net, points, matrix, scales, cutoff=1e-9), scales.expand(3, 1), rtol=1e-6, atol=0
    )


def test_bias_is_the_size_of_the_increment_at_rest():
    net, points = make("gated")
    rest = net(points.x, torch.zeros_like(points.x))[0] - points.x
    torch.testing.assert_close(bias(net, points), rest.square().mean(1).sqrt())


def test_one_site_has_the_mean_of_all_where_states_are_turned():
    net, points = make("gated")
    group = Group.ring(7)
    turned = torch.cat([points.x[:, group.permutation(k)] for k in range(7)])
    single = marginal_gain(net, Points.at_rest(turned), 3).mean(0)
    whole = symmetry_average(whole_marginal_gain(net, Points.at_rest(points.x)), group, 3).mean(0)
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-10)
