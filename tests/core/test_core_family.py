"""The other networks of the family: what each promises, exactly."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.learning import objective_by_name
from xdan.core.learning.gradient import OneProcess
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.methods import Record, method_of, run
from xdan.core.networks import Committee, EnsembleCNN, LinearInZeta, ResidualCNN, network_by_name
from xdan.core.networks.heads import soften
from xdan.core.observing import ObservingSystem, Sites
from xdan.core.tapers import gaspari_cohn

SMALL = {"filters": 4, "blocks": 2, "kernel": 3}
FORMS = {
    "localised": {"form": "localised", "rank": 3, "radius": 2.0},
    "low-rank": {"form": "low-rank", "rank": 3},
    "hypernetwork": {"form": "hypernetwork", "rank": 2, "width": 5},
}
PAIR = [
    {"name": "residual-cnn", "parameters": {**SMALL, "memory": 3}},
    {"name": "linear-in-zeta", "parameters": {**SMALL, **FORMS["hypernetwork"], "memory": 2}},
]
FAMILY = {
    "residual-cnn-linear": {},
    "residual-cnn-blind": {},
    "linear-in-zeta": FORMS["localised"],
    "linear-in-zeta low-rank": FORMS["low-rank"],
    "linear-in-zeta hypernetwork": FORMS["hypernetwork"],
    "linear-in-zeta with memory": {**FORMS["hypernetwork"], "memory": 2},
    "committee": {"networks": PAIR},
    "ensemble-cnn": {"members": 3},
    "ensemble-cnn exchangeable": {"members": 3, "exchangeable": True},
}
N = 13


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(name: str, **more):
    torch.manual_seed(0)
    sizes = {} if name == "committee" else SMALL
    net = network_by_name(name.split()[0], {**sizes, **FAMILY[name], **more}).double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            # No weight is too small to matter.
            parameter.add_(0.3 * normals(*parameter.shape, seed=index) / max(parameter.shape, default=1) ** 0.5)
    net.normalise(2.3, 3.6, 0.7)
    return net.eval()


def inputs(net, batch: int = 2, sites: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (batch, net.members, sites) if net.ensemble else (batch, sites)
    return 2.3 + 3.6 * normals(*shape, seed=5), normals(batch, sites, seed=6)


@pytest.mark.parametrize("name", FAMILY)
def test_every_network_commutes_with_turning_the_ring(name):
    net = make(name)
    x, zeta = inputs(net)
    turned = net(x.roll(4, -1), zeta.roll(4, -1))[0]
    assert_close(turned, net(x, zeta)[0].roll(4, -1), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(turned, net(x, zeta)[0])


@pytest.mark.parametrize("name", FAMILY)
def test_trajectories_do_not_mix(name):
    net = make(name)
    x, zeta = inputs(net)
    assert_close(net(x[1:], zeta[1:])[0], net(x, zeta)[0][1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_training_mode_has_the_values_and_gradients_of_plain_operations(name):
    net = make(name)
    x, zeta = inputs(net)

    def gradients() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), zeta.clone().requires_grad_()]
        out = net(*leaves)[0]
        used = [*leaves, *net.parameters()]
        return [out, *torch.autograd.grad((out * normals(*out.shape, seed=9)).sum(), used, allow_unused=True)]

    expected, values = gradients(), None
    net.train()
    for _ in range(2):  # buffers are used again
        values = gradients()
    for one, other in zip(values, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", FAMILY)
def test_a_saved_state_and_the_parameters_determine_the_outputs(name):
    net = make(name)
    opened = network_by_name(net.name, net.config()).double().eval()
    opened.load_state_dict(net.state_dict())
    assert torch.equal(opened(*inputs(net))[0], net(*inputs(net))[0])


@pytest.mark.parametrize("name", FAMILY)
def test_cycles_and_gradients_through_them_are_finite(name):
    net = make(name)
    dynamics, observing = Lorenz96(N), ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64))
    like = torch.zeros((), dtype=torch.float64)
    source = EndlessTwin(
        dynamics, Sites.random(6, N), observing, steps=1, trajectories=3, batch=3, cycles=4, seed=0, like=like
    )
    window = source.window(0)
    gradient = OneProcess(net, dynamics, observing, objective_by_name("mse"))(window, None)
    assert all(bool(g.isfinite().all()) for g in gradient.gradients)
    assert sum(float(g.abs().sum()) > 0 for g in gradient.gradients) > len(gradient.gradients) // 2
    record = Record(dynamics, observing, window.observation, (0, 1, 1, 1), torch.arange(3), 0)
    method = method_of(net.eval())
    outputs, _ = run(method, record, members=True)
    assert outputs["analysis"].shape == (3, 4, N)
    assert outputs.keys() >= {output.name for output in method.outputs}
    if net.ensemble:
        assert outputs["members"].shape == (3, 4, 3, N)
        assert_close(outputs["members"].mean(2), outputs["analysis"])
        assert (outputs["spread"][:, 0] > 0).all()
        assert outputs["spread"][:, 0].mean() > 0.5


def test_the_linear_network_is_affine():
    net = make("residual-cnn-linear")
    (x, zeta), (x2, zeta2) = inputs(net), (normals(2, N, seed=7), normals(2, N, seed=8))

    def f(t: float) -> torch.Tensor:
        return net(x + t * x2, zeta + t * zeta2)[0]

    assert_close(f(1.0) - f(0.0), (f(20.0) - f(0.0)) / 20, rtol=1e-10, atol=1e-10)


def test_the_blind_network_ignores_the_forecast():
    net = make("residual-cnn-blind")
    x, zeta = inputs(net)
    moved = x + normals(2, N, seed=7)
    assert_close(net(moved, zeta)[0] - moved, net(x, zeta)[0] - x, rtol=1e-12, atol=1e-12)
    seeing = make("residual-cnn-blind", sees_forecast=True)
    assert not torch.allclose(seeing(moved, zeta)[0] - moved, seeing(x, zeta)[0] - x)


@pytest.mark.parametrize("form", FORMS)
def test_linear_in_zeta_with_a_symmetric_positive_semi_definite_covariance(form):
    net = make(f"linear-in-zeta {form}".replace(" localised", ""))
    x, zeta = inputs(net)
    assert_close(net(x, 3.0 * zeta)[0] - x, 3.0 * (net(x, zeta)[0] - x), rtol=1e-11, atol=1e-11)
    for lane in range(2):
        p = torch.stack([net(x[lane : lane + 1], row[None])[0][0] - x[lane] for row in torch.eye(N).double()])
        assert_close(p, p.T, rtol=1e-11, atol=1e-12)
        values = torch.linalg.eigvalsh(p)
        assert values.min() > -1e-11 * values.max()
        assert values.max() > 1e-3
    assert not torch.allclose(net(x, zeta)[0] - x, net(x + 1.0, zeta)[0] - x - 1.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.01, 1e6])
def test_no_analysis_variance_is_far_beyond_the_climates(form, size):
    net = make(f"linear-in-zeta {form}".replace(" localised", ""))
    with torch.no_grad():
        net.cnn.weights[-1].mul_(size)
        net.cnn.biases[-1].mul_(size)
    x, _ = inputs(net)
    variance = net.covariance(x)[0].diagonal(dim1=1, dim2=2)
    sharing = FORMS[form].get("width", 1)  # sites whose roots reach the same site
    assert (variance <= sharing * 3.6**2 * (1 + 1e-12)).all()
    if size > 1:
        assert variance.max() > 0.9 * 3.6**2
    else:  # what is small passes as it is
        roots = net.cnn(soften((x - 2.3) / 3.6).T[None])
        assert_close(net.read(x)[0], roots, rtol=1e-3, atol=0)


def test_equation_b1_is_the_dense_product():
    net = make("linear-in-zeta")
    x, zeta = inputs(net)
    roots = net.read(x)[0]
    index = torch.arange(N)
    distance = (index[:, None] - index).abs()
    rho = gaspari_cohn(torch.minimum(distance, N - distance).double(), 2.0)
    for lane in range(2):
        columns = roots[:, :, lane].T
        dense = (rho * (columns @ columns.T)) @ zeta[lane]
        assert_close(net.apply_covariance(roots, zeta)[lane], dense, rtol=1e-12, atol=1e-12)


def test_the_low_rank_form_is_the_dense_product():
    net = make("linear-in-zeta low-rank")
    x, zeta = inputs(net)
    columns = net.read(x)[0][:, :, 1].T
    assert_close(net.apply_covariance(net.read(x)[0], zeta)[1], columns @ columns.T @ zeta[1], rtol=1e-12, atol=1e-12)


def test_a_committee_is_the_mean_of_its_networks_each_with_its_own_memory():
    net = make("committee")
    x, zeta = inputs(net)
    memory = normals(2, 5, N, seed=7)
    analysis, after = net(x, zeta, memory)
    one, first = net.networks[0](x, zeta, memory[:, :3])
    two, second = net.networks[1](x, zeta, memory[:, 3:])
    assert_close(analysis, 0.5 * (one + two), rtol=0, atol=1e-13)
    assert_close(after, torch.cat([first, second], 1), rtol=0, atol=0)
    assert net.memory == 5
    assert net.reach == max(part.reach for part in net.networks)
    assert len(net.hidden_matrices()) == 2 * 3


def test_a_committee_without_memory_carries_none():
    alone = {"name": "residual-cnn", "parameters": SMALL}
    net = network_by_name("committee", {"networks": [alone, PAIR[1]]})
    x, zeta = (value.float() for value in inputs(net))
    assert net(x, zeta)[1].shape == (2, 2, N)
    assert network_by_name("committee", {"networks": [alone, alone]})(x, zeta)[1] is None


def test_an_exchangeable_ensemble_may_be_reordered_and_another_size():
    net = make("ensemble-cnn exchangeable")
    x, zeta = inputs(net)
    order = torch.tensor([2, 0, 1])
    assert_close(net(x[:, order], zeta)[0], net(x, zeta)[0][:, order], rtol=1e-12, atol=1e-12)
    assert net(torch.cat([x, x], 1), zeta)[0].shape == (2, 6, N)
    placed = make("ensemble-cnn")
    assert not torch.allclose(placed(x[:, order], zeta)[0], placed(x, zeta)[0][:, order])


def test_zeta_of_an_ensemble_comes_from_its_mean():
    net, observing = make("ensemble-cnn"), ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64))
    method = method_of(net)
    x, _ = inputs(net)
    y, observed = normals(2, N, seed=3), torch.ones(2, N, dtype=torch.bool)
    after = method.analyse({"x": x}, y, observed, observing)
    assert_close(after["x"], net(x, (y - x.mean(1)) / 0.49)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (LinearInZeta, {"form": "dense"}, "form='dense'"),
        (LinearInZeta, {"rank": 0}, "rank=0"),
        (LinearInZeta, {"radius": 0.0}, "radius=0"),
        (LinearInZeta, {"rank": 2000, "form": "hypernetwork"}, "rank=2000, width=9: expected at most 10000 weights"),
        (ResidualCNN, {"filters": 10**9}, "filters=1000000000: expected at least 1 and at most 10000"),
        (ResidualCNN, {"blocks": 200, "sub_blocks": 200}, "expected at most 10000 layers together"),
        (LinearInZeta, {"width": 4}, "width=4"),
        (EnsembleCNN, {"members": 0}, "members=0"),
        (Committee, {"networks": PAIR[:1]}, r"a committee of \['residual-cnn'\]: expected at least two"),
        (Committee, {}, r"a committee of \[\]: expected at least two"),
        (Committee, {"networks": [*PAIR, {"name": "committee"}]}, "none of them a committee"),
        (Committee, {"networks": [*PAIR, {"name": "ensemble-cnn"}]}, r"\['ensemble-cnn'\] take members"),
        (Committee, {"networks": [*PAIR, {"name": "transformer"}]}, "network 'transformer' is unknown"),
        (ResidualCNN, {"activation": "relu"}, "activation='relu'"),
    ],
)
def test_sizes_that_make_no_network_are_refused(cls, parameters, message):
    with pytest.raises(ValueError, match=message):
        cls(**parameters)


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (Committee, {"networks": "abc"}, "networks='abc': expected a list of names with their parameters"),
        (Committee, {"networks": [3, 4]}, "expected a list of names with their parameters"),
        (Committee, {"networks": [*PAIR, {}]}, "network=None: expected one of"),
        (
            Committee,
            {"networks": [*PAIR, {"name": "residual-cnn", "parameters": [3]}]},
            r"parameters=\[3\]: expected a map",
        ),
        (ResidualCNN, {"filters": "3"}, "filters='3': expected an integer, at least 1"),
        (ResidualCNN, {"filters": 3.0}, r"filters=3\.0: expected an integer"),
        (ResidualCNN, {"kernel": None}, "kernel=None: expected an integer"),
        (ResidualCNN, {"blocks": True}, "blocks=True: expected an integer"),
        (ResidualCNN, {"memory": 1j}, "memory=1j: expected an integer"),
        (ResidualCNN, {"sub_blocks": [1]}, r"sub_blocks=\[1\]: expected an integer"),
        (ResidualCNN, {"activation": 3}, "activation=3: expected one of"),
        (ResidualCNN, {"sees_forecast": "no"}, "sees_forecast='no': expected True or False"),
        (LinearInZeta, {"form": None}, "form=None: expected one of"),
        (LinearInZeta, {"radius": "2"}, "radius='2': expected a number above 0|radius='2': expected a number, above 0"),
        (LinearInZeta, {"rank": 2.5}, r"rank=2\.5: expected an integer"),
        (LinearInZeta, {"width": True}, "width=True: expected an integer"),
        (EnsembleCNN, {"members": {}}, r"members=\{\}: expected an integer"),
        (EnsembleCNN, {"exchangeable": 1}, "exchangeable=1: expected True or False"),
    ],
)
def test_arguments_of_another_type_are_named(cls, parameters, message):
    with pytest.raises(TypeError, match=message):
        cls(**parameters)


def test_sizes_of_numpy_are_kept_as_plain_ones():
    sizes = {name: np.int64(3) for name in ("filters", "blocks", "sub_blocks", "kernel")}
    nets = [
        ResidualCNN(**sizes, memory=np.int64(2), sees_forecast=np.True_),
        EnsembleCNN(members=np.int32(3), exchangeable=np.False_, **sizes),
        LinearInZeta(rank=np.int64(2), radius=np.float32(1.5), width=np.int64(3), memory=np.uint8(1), **sizes),
    ]
    for net in nets:
        again = json.loads(json.dumps(net.config()))
        assert again == net.config()
        assert {type(value) for value in again.values()} <= {int, float, bool, str}


def test_networks_are_single_precision_whatever_the_default_of_the_process():
    torch.set_default_dtype(torch.float64)
    try:
        nets = [
            network_by_name(name.split()[0], {**({} if name == "committee" else SMALL), **FAMILY[name]})
            for name in FAMILY
        ]
    finally:
        torch.set_default_dtype(torch.float32)
    for net in nets:
        assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
        x, zeta = (value.float() for value in inputs(net))
        assert net(x, zeta)[0].dtype == torch.float32


def test_a_taper_wider_than_the_ring_and_a_wrong_number_of_members_are_refused():
    wide = make("linear-in-zeta", radius=4.0)
    with pytest.raises(ValueError, match=r"radius=4.0: the taper spans 15 sites, the state has 13; .* at most 3.5"):
        wide(*inputs(wide))
    net = make("ensemble-cnn")
    x, zeta = inputs(net)
    with pytest.raises(ValueError, match="made for 3 members, the state has 2"):
        net(x[:, :2], zeta)
