"""Activations: what each one writes out is what autograd gives, and one class is all that a new one needs."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from page_blocks import blocks_of
from torch.func import jacfwd, jacrev
from torch.testing import assert_close

from xdan.core.networks import Activation, EnsembleCNN, LinearInZeta, ResidualCNN, register_activation
from xdan.core.networks.activations import _ACTIVATIONS, activation_by_name
from xdan.core.networks.fields_with_derivatives import FieldWithDerivatives, chain_by_autograd
from xdan.core.networks.layers import Layers, trunk_sizes
from xdan.core.networks.trunk import ResidualTrunk

SIZES = {"filters": 3, "blocks": 2, "sub_blocks": 2, "kernel": 3}
BUILT_IN = ["gated", "linear", "silu"]


class Bump(Activation):
    """z_1 exp(-z_2^2) + sin z_3: nothing but its value is given."""

    name = "bump"
    parts = 3

    def value(self, *sums):
        first, second, third = sums
        return first * torch.exp(-second.square()) + third.sin()


class Softplus(Activation):
    """log(1 + exp z), with derivatives and gradient of its own."""

    name = "softplus"
    gain = 0.7

    def value(self, *sums):
        return torch.log1p(sums[0].exp())

    def propagate(self, *sums):
        s = sums[0].value.sigmoid()
        return sums[0].apply(self.value(sums[0].value), s, s * (1 - s))

    def value_into(self, out, sums, start):
        torch.log1p(sums[0].exp(), out=out)
        if start is not None:
            out.add_(start)

    def gradient_into(self, out, sums, gradient, spare):
        torch.mul(gradient, torch.sigmoid(sums[0], out=spare), out=out[0])


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """The toys are registered for one test."""
    monkeypatch.setattr(_ACTIVATIONS, "_classes", dict(_ACTIVATIONS._classes))
    for cls in (Bump, Softplus):
        register_activation(cls)


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settled(net):
    """All weights and biases matter, in double precision."""
    net = net.double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            fan_in = parameter.shape[1] if parameter.ndim == 2 else 4
            parameter.copy_(normals(*parameter.shape, seed=index) * 0.9 / fan_in**0.5)
    net.normalise(2.3, 3.6, 0.7)
    return net


def inputs(net, batch=2, sites=7):
    shape = (batch, net.members, sites) if net.ensemble else (batch, sites)
    tensors = [2.3 + 3.6 * normals(*shape, seed=1), normals(batch, sites, seed=2)]
    return [*tensors, normals(batch, net.memory, sites, seed=3)] if net.memory else tensors


NETWORKS = {
    "residual": lambda activation: ResidualCNN(**SIZES, activation=activation),
    "memory": lambda activation: ResidualCNN(**SIZES, activation=activation, memory=2),
    "blind": lambda activation: ResidualCNN(**SIZES, activation=activation, sees_forecast=False),
    "linear in zeta": lambda activation: LinearInZeta("low-rank", rank=2, **SIZES, activation=activation),
    "ensemble": lambda activation: EnsembleCNN(members=3, **SIZES, activation=activation),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("activation", ["bump", "softplus"])
def test_a_new_activation_is_trained_by_its_own_gradient(activation, kind):
    net = settled(NETWORKS[kind](activation))
    assert net.config()["activation"] == activation

    def value_and_gradients():
        leaves = [value.clone().requires_grad_() for value in inputs(net)]
        analysis, memory = net(*leaves)
        analysis, memory = net(analysis, *leaves[1:2], memory)
        used = [*leaves, *net.parameters()]
        total = (analysis * normals(*analysis.shape, seed=9)).sum()
        return [analysis, *torch.autograd.grad(total, used, allow_unused=True, materialize_grads=True)]

    net.train()
    fast = [value_and_gradients() for _ in range(2)][1]  # buffers are used again
    assert (net.cnn._fast is not None) == (kind != "blind")
    net.eval()
    for one, other in zip(fast, value_and_gradients(), strict=True):
        assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["residual", "memory", "blind"])
@pytest.mark.parametrize("activation", ["bump", "softplus", *BUILT_IN])
def test_derivatives_of_a_network_with_any_activation_are_those_of_torch(activation, kind, mode):
    net = settled(NETWORKS[kind](activation)).eval()
    x, zeta, *memory = inputs(net, batch=1)

    def analysis(x, zeta):
        return net(x[None], zeta[None], *memory)[0][0]

    covariance = jacrev(analysis, 1)(x[0], zeta[0])
    gamma = jacfwd(jacrev(analysis, 1), 0)(x[0], zeta[0])
    slope = jacfwd(analysis, 0)(x[0], zeta[0])
    with mode():
        before = (x, zeta, *(memory or [None]))
        assert_close(net.analysis_covariance(*before)[0], covariance, rtol=0, atol=1e-11)
        assert_close(net.marginal_gain(*before, 4)[0], gamma[..., 4], rtol=0, atol=1e-11)
        assert_close(net.forecast_derivative(*before, 4)[0], slope[..., 4], rtol=0, atol=1e-11)
    assert (gamma.abs().max() > 1e-4) == (activation != "linear" and kind != "blind")


def test_derivatives_by_autograd_can_be_differentiated_by_the_weights():
    net = settled(NETWORKS["residual"]("bump")).eval()
    x, zeta = inputs(net, batch=1)
    weight = net.weights[2]
    (gradient,) = torch.autograd.grad(net.marginal_gain(x, zeta, None, 4)[0, 3, 2], weight)
    step = torch.zeros_like(weight)
    step[1, 4] = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step)
            values.append(net.marginal_gain(x, zeta, None, 4)[0, 3, 2].item())
            weight.sub_(sign * step)
    assert gradient[1, 4].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", ["bump", "softplus", *BUILT_IN])
def test_what_an_activation_writes_out_is_what_autograd_gives(name):
    activation = activation_by_name(name)
    z, start, gradient = normals(activation.parts, 4, 6), normals(4, 6, seed=1), normals(4, 6, seed=2)
    leaves = [part.clone().requires_grad_() for part in z]
    value = activation.value(*leaves)
    expected = torch.autograd.grad(value, leaves, gradient)
    for skip in (None, start):
        sums, out = z.clone().unbind(0), torch.empty(4, 6, dtype=torch.float64)
        activation.value_into(out, sums, skip)
        assert_close(out, value.detach() if skip is None else start + value.detach(), rtol=1e-12, atol=1e-13)
        into = torch.empty_like(z).unbind(0)
        activation.gradient_into(into, sums, gradient.clone(), torch.empty_like(out))
        for one, other in zip(into, expected, strict=True):
            assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("lacks", [(), ("x",), ("zeta", "mixed"), ("mixed",)])
@pytest.mark.parametrize("name", ["softplus", *BUILT_IN])
def test_propagation_that_is_written_out_is_that_of_autograd(name, lacks, windowed):
    activation = activation_by_name(name)
    window = torch.tensor([[6, 1], [0, 2], [1, 3]]) if windowed else None
    places = 3 if windowed else 7
    parts = {
        "value": normals(2 * activation.parts, 7, 1, 3),
        "x": normals(2 * activation.parts, 7, 1, 3, seed=1),
        "zeta": normals(2 * activation.parts, places, 2, 3, seed=2),
        "mixed": normals(2 * activation.parts, places, 2, 3, seed=3),
    }
    if "x" in lacks:
        lacks = ("x", "mixed")
    fields = FieldWithDerivatives(**{k: v for k, v in parts.items() if k not in lacks}, window=window)
    fields = fields.split(activation.parts)
    one, other = activation.propagate(*fields), chain_by_autograd(activation.value, fields)
    for label in ("value", "x", "zeta", "mixed"):
        first, second = getattr(one, label), getattr(other, label)
        second = torch.zeros(()) if second is None else second
        assert_close(torch.zeros_like(second) if first is None else first, second, rtol=1e-11, atol=1e-12)


def test_layers_run_one_after_another_and_every_block_adds_what_it_began_with():
    layers = Layers(2, 1, filters=4, blocks=2, sub_blocks=2, kernel=5, activation=activation_by_name("bump"))
    text = layers.run(
        "x", lambda layer, field: f"c{layer}({field})", lambda _, z, start: f"f({z})" + (f"+{start}" if start else "")
    )
    first = "f(c2(f(c1(c0(x)))))+c0(x)"
    assert text == f"c5(f(c4(f(c3({first}))))+{first})"
    assert layers.channels == [(2, 4), (4, 12), (4, 12), (4, 12), (4, 12), (4, 1)]
    assert [layer for layer in layers.hidden if layers.begins_block(layer)] == [1, 3]
    assert layers.reach == 12


def test_weights_begin_with_the_gain_of_the_activation():
    torch.manual_seed(0)
    trunk = ResidualTrunk(2, 1, trunk_sizes(200, 1, 1, 5, "softplus"), quiet=0.02)
    for weight, gain in zip(trunk.weights, (1.0, 0.7, 0.02), strict=True):
        assert weight.std().item() * weight.shape[1] ** 0.5 == pytest.approx(gain, rel=0.1)


def test_no_buffer_outlives_a_training():
    net = settled(NETWORKS["memory"]("gated")).train()
    tensors = inputs(net)
    net(*tensors)[0].sum().backward()
    buffers = weakref.ref(net.cnn._fast)
    assert buffers() is not None
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.cnn._fast is None
        other(*tensors)[0].sum().backward()
        assert other.cnn._fast is not None
    assert net.cnn._fast is buffers()
    net.eval()
    gc.collect()
    assert buffers() is None
    net.train()(*tensors)[0].sum().backward()
    buffers = weakref.ref(net.cnn._fast)
    net.float()
    gc.collect()
    assert buffers() is None


def test_the_activation_in_the_docs_is_the_one_of_its_name():
    (block,) = [one for one in blocks_of("network") if "register_activation" in one.code]
    exec(compile(block.code, "mish.py", "exec"), {"__name__": "mish"})
    z = normals(3, 5)
    assert_close(activation_by_name("mish").value(z), torch.nn.functional.mish(z))


def test_the_trunk_of_a_residual_cnn_does_not_show_in_its_state():
    net = settled(NETWORKS["memory"]("gated"))
    state = net.state_dict()
    layers = len(net.weights)
    expected = ["relative_alpha", "state_mean", "state_std", "error_std"]
    expected += [f"{kind}.{layer}" for kind in ("weights", "biases") for layer in range(layers)]
    assert list(state) == expected
    other = ResidualCNN(**SIZES, memory=2).double()
    kept = dict(state)
    other.load_state_dict(state)
    assert state.keys() == kept.keys()  # what is loaded is not changed
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    del state["biases.1"]
    with pytest.raises(RuntimeError, match=r"Missing key.*biases\.1"):
        other.load_state_dict(state)


def test_the_name_of_an_activation_belongs_to_one_class():
    class Other(Activation):
        name = "silu"

        def value(self, *sums):
            return sums[0]

    with pytest.raises(ValueError, match=r"the name 'silu' is that of .*SiLU: expected another `name` for "):
        register_activation(Other)
    register_activation(Bump)  # a cell that runs again
    assert type(activation_by_name("silu")).__name__ == "SiLU"
    with pytest.raises(ValueError, match=r"activation='relu': expected one of \['bump', 'gated'"):
        ResidualCNN(activation="relu")
