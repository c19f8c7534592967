import numpy as np
import pytest
import torch
from torch.func import jacfwd, jacrev

import xdan
from xdan.core.networks import AnalysisNetwork, ResidualCNN
from xdan.core.sensitivity import marginal_gain, symmetry_average
from xdan.network import Network


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


def circular(sites=7, memory=0):
    torch.manual_seed(3)
    net = ResidualCNN(filters=4, blocks=2, kernel=3, memory=memory).double().eval()
    with torch.no_grad():
        for weight in net.weights:
            weight.mul_(3)
    return net, torch.randn(5, sites, dtype=torch.float64)


def full_gamma(net, state):
    def increment(x, zeta):
        return net(x[None], zeta[None])[0][0] - x

    zero = torch.zeros_like(state)
    return jacfwd(lambda x: jacrev(lambda zeta: increment(x, zeta))(zero))(state)


def test_bilinear_operator_returns_its_tensor():
    tensor = torch.randn(6, 6, 6, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    for site in range(6):
        found = marginal_gain(Bilinear(tensor), x, site, columns_at_once=4)
        torch.testing.assert_close(found, tensor[:, :, site].expand(3, 6, 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", [0, 2])
def test_site_average_is_that_of_the_whole_tensor(memory):
    net, x = circular(memory=memory)
    n, r = x.shape[1], 2
    expected = torch.zeros(n, n, dtype=torch.float64)
    for state in x:
        gamma = full_gamma(net, state)
        for i in range(n):
            for j in range(n):
                for site in range(n):
                    expected[i, j] += gamma[(i + site - r) % n, (j + site - r) % n, site] / (n * len(x))
    torch.testing.assert_close(symmetry_average(net, x, r, list(range(n))), expected, rtol=0, atol=1e-12)


def test_gain_is_lazy_and_the_same_for_any_chunks():
    net, _ = circular()
    network = Network.from_module(net, ("x",), {})
    ds = xdan.twin(xdan.Lorenz96(sites=7), cycles=6, trajectories=3, dtype="float64").load()
    whole = xdan.gain(ds, network, all_sites=True)
    cut = xdan.gain(ds.chunk(trajectory=2, time=5), network, all_sites=True)
    assert whole.chunks is not None
    assert whole.dims == ("i", "j")
    np.testing.assert_allclose(cut.values, whole.values, rtol=0, atol=1e-12)
    states = torch.from_numpy(ds.truth.values).flatten(0, 1)
    expected = symmetry_average(net, states, 3, list(range(7)))
    np.testing.assert_allclose(whole.values, expected.detach().numpy(), rtol=0, atol=1e-12)


def test_gain_refuses_what_it_cannot_do():
    network = Network.from_module(circular()[0], ("x",), {})
    ds = xdan.twin(xdan.Lorenz96(sites=7), cycles=2)
    with pytest.raises(ValueError, match="expected a site from 0 to 6"):
        xdan.gain(ds, network, reference=7)
    with pytest.raises(ValueError, match="kind='full' is unknown"):
        xdan.gain(ds, network, kind="full")
    with pytest.raises(ValueError, match="needs the truth"):
        xdan.gain(ds.drop_vars("truth"), network)
