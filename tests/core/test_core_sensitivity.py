"""Derivatives of networks, against torch's own and against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import jacfwd, jacrev

from xdan.core.networks import AnalysisNetwork, Committee, LinearInZeta, ResidualCNN
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

    def config(self):
        return {}

    def forward(self, x, zeta, memory=None):
        return x + torch.einsum("ijl,bj,bl->bi", self.tensor, zeta, x), None


def at_zero(x):
    """States without innovation."""
    return Points(x, torch.zeros_like(x))


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
def test_propagation_gives_the_analysis_and_its_derivative_by_the_forecast(name):
    net, points = make(name)
    direction = torch.zeros(7, dtype=torch.float64)
    direction[4] = 1.0
    field = net.propagate(points.x, points.zeta, points.memory, x_site=4)
    torch.testing.assert_close(field.value[0, :, 0].T, net(points.x, points.zeta, points.memory)[0], rtol=0, atol=1e-12)
    step = 1e-5
    moved = [net(points.x + s * step * direction, points.zeta, points.memory)[0] for s in (1, -1)]
    slope = (moved[0] - moved[1]) / (2 * step)
    torch.testing.assert_close(field.x[0, :, 0].T, slope, rtol=0, atol=1e-8)
    assert field.zeta is None
    assert field.mixed is None
    torch.testing.assert_close(forecast_derivative(net, points, 4), slope, rtol=0, atol=1e-8)


def test_derivative_of_a_committee_by_the_forecast_is_that_of_finite_differences():
    net, points = make("committee")
    step = torch.zeros(7, dtype=torch.float64)
    step[4] = 1e-5
    ahead, behind = (net(points.x + sign * step, points.zeta, points.memory)[0] for sign in (1, -1))
    torch.testing.assert_close(forecast_derivative(net, points, 4), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_bilinear_operator_returns_its_tensor():
    tensor = torch.randn(6, 6, 6, dtype=torch.float64)
    points = at_zero(torch.randn(3, 6, dtype=torch.float64))
    toy = Bilinear(tensor)
    torch.testing.assert_close(whole_marginal_gain(toy, points), tensor.expand(3, 6, 6, 6), rtol=0, atol=1e-10)
    expected = torch.einsum("ijl,bl->bij", tensor, points.x)
    torch.testing.assert_close(analysis_covariance(toy, points), expected, rtol=0, atol=1e-10)
    # Exactly linear in zeta: a regression is exact too, with no more samples than it needs.
    samples = torch.randn(3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(regressed_covariance(toy, points, samples), expected, rtol=0, atol=1e-9)
    for site in range(6):
        gain = composite_marginal_gain(toy, points, samples, site)
        torch.testing.assert_close(gain, tensor[:, :, site].expand(3, 6, 6), rtol=0, atol=1e-9)


class Curved(Bilinear):
    """As linear as the toy on average over Gaussian zeta, but not at any one: a cubic is added."""

    def forward(self, x, zeta, memory=None):
        analysis, _ = super().forward(x, zeta)
        return analysis + x * (zeta**3 - 3 * zeta), None


def test_composite_error_falls_as_the_root_of_the_samples():
    tensor = torch.randn(4, 4, 4, dtype=torch.float64)
    points = at_zero(torch.randn(1, 4, dtype=torch.float64))
    # For a unit Gaussian, E[(zeta^3 - 3 zeta)'] = 0: the smoothed gain is T.
    errors = []
    for count in (100, 6400):
        torch.manual_seed(1)
        samples = torch.randn(60, count, 4, dtype=torch.float64)
        many = at_zero(points.x.expand(60, 4))
        gain = composite_marginal_gain(Curved(tensor), many, samples, 2)
        errors.append(float((gain - tensor[:, :, 2]).square().mean().sqrt()))
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
    single = marginal_gain(net, at_zero(turned), 3).mean(0)
    whole = symmetry_average(whole_marginal_gain(net, at_zero(points.x)), group, 3).mean(0)
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-10)


class Louder(ResidualCNN):
    """Three times its parent's increment."""

    def forward(self, x, zeta, memory=None):
        analysis, memory = super().forward(x, zeta, memory)
        return x + 3 * (analysis - x), memory


class Mixed:
    def forward(self, x, zeta, memory=None):
        analysis, memory = super().forward(x, zeta, memory)
        return analysis + 0.1 * x * zeta, memory


class ByMixin(Mixed, ResidualCNN):
    """The forward pass comes from a class that is no network."""


class Farther(ResidualCNN):
    """It reads a site that its parent does not see."""

    def forward(self, x, zeta, memory=None):
        far = x.roll(9, -1) * zeta.roll(-11, -1)
        return super().forward(x, zeta, memory)[0] + 0.1 * far, None


class Known(Farther):
    """It says how far it sees, and has nothing else of its own."""

    @property
    def reach(self):
        return 12


class Grandchild(Louder):
    """It changes nothing."""


class Hooked(ResidualCNN):
    """Its forward pass is changed after it is made."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.register_forward_hook(lambda net, args, out: (args[0] + (out[0] - args[0]) ** 3, out[1]))


class Replaced(ResidualCNN):
    """Its forward pass is an attribute."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.forward = lambda x, zeta, memory=None: (x + 0.1 * (x * zeta).roll(7, -1), None)


class BySite(ResidualCNN):
    """One alpha for each of seven sites."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.relative_alpha = nn.Parameter(torch.linspace(0.1, 0.7, 7))


class OtherRoots(LinearInZeta):
    """The covariance is read as a whole; it is that of the increment."""

    def read(self, x, memory=None):
        roots, memory = super().read(x, memory)
        return roots * (1.0 + 0.1 * x.roll(3, -1).T), memory


class Skewed(LinearInZeta):
    """The increment is another than the matrix says."""

    def apply_covariance(self, roots, v):
        return super().apply_covariance(roots, v.roll(1, -1))


class Cubic(LinearInZeta):
    def forward(self, x, zeta, memory=None):
        analysis, memory = super().forward(x, zeta, memory)
        return analysis + 0.1 * x * zeta**3, memory


class Weighted(Committee):
    def forward(self, x, zeta, memory=None):
        analyses = [one(x, zeta, piece)[0] for one, piece in self.parts(memory)]
        return 0.9 * analyses[0] + 0.1 * analyses[1], None


def settled(net):
    net = net.double().eval().requires_grad_(False)
    net.normalise(2.3, 3.6, 1.3)
    for weight in net.parameters():
        weight.mul_(2)
    return net


def together(*nets):
    """A committee of networks that no registry knows."""
    pair = Committee([{"name": "residual-cnn", "parameters": SMALL}] * 2)
    pair.networks = nn.ModuleList(nets)
    return pair


ROOTS = {"rank": 3, "radius": 1.5, **SMALL}
DERIVED = {
    "forward": lambda: Louder(**SMALL),
    "mixin": lambda: ByMixin(**SMALL),
    "grandchild": lambda: Grandchild(**SMALL),
    "hook": lambda: Hooked(**SMALL),
    "attribute": lambda: Replaced(**SMALL),
    "numbers by site": lambda: BySite(**SMALL),
    "other roots": lambda: OtherRoots(**ROOTS),
    "other product": lambda: Skewed(**ROOTS),
    "not linear": lambda: Cubic(**ROOTS),
    "in a committee": lambda: together(Louder(**SMALL), Skewed(**ROOTS)),
    "hook in a committee": lambda: together(Hooked(**SMALL), ResidualCNN(**SMALL)),
    "committee": lambda: Weighted([{"name": "residual-cnn", "parameters": SMALL}] * 2),
}


@pytest.mark.parametrize("name", DERIVED)
def test_a_derived_class_has_the_derivatives_of_its_own_forward_pass(name):
    torch.manual_seed(3)
    net = settled(DERIVED[name]())
    x, zeta = torch.randn(2, 7, 7, dtype=torch.float64)  # as many states as sites: a wrong broadcast would pass
    points = Points(2.3 + 3.6 * x, 0.3 * zeta)
    covariance, gamma = reference(net, points)
    torch.testing.assert_close(analysis_covariance(net, points), covariance, rtol=0, atol=1e-10)
    torch.testing.assert_close(whole_marginal_gain(net, points), gamma, rtol=0, atol=1e-10)
    slope = torch.stack(
        [jacfwd(lambda s, k=k: net(s[None], points.zeta[k : k + 1])[0][0])(points.x[k]) for k in range(7)]
    )
    torch.testing.assert_close(forecast_derivative(net, points, 4), slope[..., 4], rtol=0, atol=1e-10)


@pytest.mark.parametrize("cls", [Farther, Known])
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: together(net, ResidualCNN(**SMALL))])
def test_a_derived_class_is_not_cut_at_its_parents_reach(cls, wrap):
    torch.manual_seed(3)
    net = settled(wrap(cls(**SMALL)))
    assert net.reach == (12 if cls is Known else None)
    x, zeta = torch.randn(2, 1, 53, dtype=torch.float64)
    points = Points(2.3 + 3.6 * x, 0.3 * zeta)
    for site in (0, 30):
        gamma = reference(net, points)[1][..., site] if site == 0 else None
        gain = marginal_gain(net, points, site)
        # a_i has 0.1 x_(i-9) zeta_(i+11), or half of it in a pair: far beyond what its parent sees.
        share = 0.05 if isinstance(net, Committee) else 0.1
        assert gain[0, (site + 9) % 53, (site + 20) % 53].item() == pytest.approx(share, rel=1e-9)
        if gamma is not None:
            torch.testing.assert_close(gain, gamma, rtol=0, atol=1e-10)


def test_what_a_class_brings_itself_is_kept():
    class Own(Louder):
        def analysis_covariance(self, x, zeta, memory):
            return 3 * ResidualCNN.analysis_covariance(self, x, zeta, memory) - 2 * torch.eye(x.shape[1])

        def hidden_matrices(self):
            return []

    class Plain(ResidualCNN):
        """Nothing of its forward pass is changed."""

        def __init__(self, filters=4):
            super().__init__(filters=filters)

        def config(self):
            return {"filters": self.filters}

    assert Plain.analysis_covariance is ResidualCNN.analysis_covariance
    assert Plain().reach == ResidualCNN(filters=4).reach
    assert Own.analysis_covariance is not AnalysisNetwork.analysis_covariance
    assert Own(**SMALL).reach is None
    assert Louder.marginal_gain is AnalysisNetwork.marginal_gain


def test_only_a_matrix_that_is_the_increments_is_a_networks_own_covariance():
    assert LinearInZeta(**ROOTS).forms_covariance
    assert OtherRoots(**ROOTS).forms_covariance
    for net in (Skewed(**ROOTS), Cubic(**ROOTS), ResidualCNN(**SMALL)):
        assert not net.forms_covariance
        with pytest.raises(ValueError, match="forms no P_a: expected"):
            net.covariance(torch.zeros(1, 7))


class Cube(torch.autograd.Function):
    """z^3, with a backward of torch operations and no forward derivative."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z**3

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return 3 * z**2 * gradient


class OnceOnly(Cube):
    """Its backward cannot be differentiated again."""

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return 3 * z**2 * gradient


ACTIVATIONS = {
    "glu": lambda z: nn.functional.glu(torch.cat([z, z], -1), -1),
    "rrelu": nn.functional.rrelu,
    "silu": nn.functional.silu,
    "cube": Cube.apply,
    "in place": lambda z: torch.empty_like(z).copy_(z).mul_(z).mul_(z),
}
PLAIN = {
    "glu": lambda z: z * torch.sigmoid(z),
    "rrelu": lambda z: torch.where(z > 0, z, (1 / 8 + 1 / 3) / 2 * z),
    "silu": lambda z: z * torch.sigmoid(z),
    "cube": lambda z: z**3,
    "in place": lambda z: z**3,
}


class Activated(AnalysisNetwork):
    """a = f(x zeta) + f(zeta of the next site) x, with an activation f."""

    name = "activated"

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def config(self):
        return {}

    def forward(self, x, zeta, memory=None):
        return x + self.activation(x * zeta) + self.activation(zeta.roll(1, -1)) * x, None


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_that_forward_mode_does_not_know(name):
    net, plain = Activated(ACTIVATIONS[name]).double().eval(), Activated(PLAIN[name]).double()
    torch.manual_seed(0)
    x, zeta, u, v = torch.randn(4, 3, 5, dtype=torch.float64)
    points = Points(x, zeta)
    covariance, gamma = reference(plain, points)
    for grad in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with grad():
            torch.testing.assert_close(analysis_covariance(net, points), covariance, rtol=0, atol=1e-12)
            torch.testing.assert_close(whole_marginal_gain(net, points), gamma, rtol=0, atol=1e-12)
            expected = torch.einsum("bijl,bj,bl->bi", gamma, v, u)
            torch.testing.assert_close(mixed_derivative(net, points, v, u), expected, rtol=0, atol=1e-12)
            expected = forecast_derivative(plain, points, 2)
            torch.testing.assert_close(forecast_derivative(net, points, 2), expected, rtol=0, atol=1e-12)
    assert not analysis_covariance(net, points).requires_grad or torch.is_grad_enabled()


def test_a_network_that_torch_cannot_differentiate_is_named():
    points = Points(*torch.randn(2, 3, 5, dtype=torch.float64))
    numpy = Activated(lambda z: torch.from_numpy(np.tanh(z.detach().numpy())))
    once = Activated(OnceOnly.apply)
    detached = Activated(lambda z: torch.tanh(z.detach()))
    hard = Activated(nn.functional.hardsigmoid)
    for net in (numpy, once, hard, detached):
        with pytest.raises(ValueError, match=r"the network 'activated'.*[Ee]xpected torch operations") as caught:
            whole_marginal_gain(net, points)
        assert "functorch" not in str(caught.value)
    for net in (numpy, detached):
        with pytest.raises(ValueError, match=r"the network 'activated'.*[Ee]xpected torch operations"):
            analysis_covariance(net, points)
    # A first derivative is there.
    expected = analysis_covariance(Activated(PLAIN["cube"]), points)
    torch.testing.assert_close(analysis_covariance(once, points), expected)
    # And a network that does not look at the innovation has none.
    idle = Activated(torch.zeros_like)
    assert not analysis_covariance(idle, points).any()
    assert not whole_marginal_gain(idle, points).any()


def test_a_network_that_fails_by_itself_says_so_in_its_own_words():
    def fails(z):
        raise RuntimeError("no such day")

    with pytest.raises(RuntimeError, match="no such day"):
        analysis_covariance(Activated(fails), Points(*torch.randn(2, 3, 5)))
