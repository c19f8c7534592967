"""The residual CNN: its formula, symmetry and reach, and the written-out gradient against the plain one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xdan.core.networks import Activation, ResidualCNN, network_by_name
from xdan.core.networks.base import formula
from xdan.core.networks.convolutions import circular_convolution
from xdan.core.networks.layers import trunk_sizes
from xdan.core.networks.trunk import ResidualTrunk

ARCHITECTURES = [
    {"activation": activation, "kernel": kernel, "sub_blocks": sub_blocks, "memory": memory}
    for activation in ("gated", "silu")
    for kernel in (1, 3, 5)
    for sub_blocks in (1, 2, 3)
    for memory in (0, 2)
]


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int = 0, **parameters) -> ResidualCNN:
    """A network all of whose weights and biases matter, in double precision."""
    net = ResidualCNN(**{"filters": 3, "blocks": 2, "kernel": 3, **parameters}).double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            # 0.6 over the root of the fan-in keeps activations of order one.
            fan_in = parameter.shape[1] if parameter.ndim == 2 else 4
            parameter.copy_(normals(*parameter.shape, seed=100 * seed + index) * 0.6 / fan_in**0.5)
    net.normalise(2.3, 3.6, 0.7)
    return net


def inputs(net: ResidualCNN, batch: int = 3, sites: int = 7, seed: int = 0) -> list[torch.Tensor]:
    tensors = [2.3 + 3.6 * normals(batch, sites, seed=seed), normals(batch, sites, seed=seed + 1)]
    if net.memory:
        tensors.append(normals(batch, net.memory, sites, seed=seed + 2))
    return tensors


def cycled(net: ResidualCNN, tensors: list[torch.Tensor], cycles: int) -> torch.Tensor:
    """A weighted sum of the outputs of cycles that follow one another."""
    x, zeta, *memory = tensors
    carried, total = (memory[0] if memory else None), x.new_zeros(())
    for cycle in range(cycles):
        x, carried = net(x, zeta.roll(cycle, -1), carried)
        total = total + (x * normals(*x.shape, seed=50 + cycle)).sum()
    return total if carried is None else total + (carried * normals(*carried.shape, seed=60)).sum()


def value_and_gradients(net: ResidualCNN, tensors: list[torch.Tensor], cycles: int = 1) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = cycled(net, leaves, cycles)
    return [value.detach(), *torch.autograd.grad(value, [*leaves, *net.parameters()])]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_circular_convolution_is_the_written_sum(kernel):
    x, weight, bias = normals(2, 6, 3), normals(4, 2 * kernel, seed=1), normals(4, seed=2)
    expected = torch.empty(4, 6, 3, dtype=torch.float64)
    for o in range(4):
        for n in range(6):
            expected[o, n] = bias[o]
            for k in range(kernel):
                for c in range(2):
                    expected[o, n] += weight[o, k * 2 + c] * x[c, (n + k - kernel // 2) % 6]
    assert_close(circular_convolution(x, weight, bias, kernel), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("activation", ["gated", "silu"])
def test_one_site_network_is_the_written_formula(activation):
    # One filter, kernel 1, one sub-block: Eq. 22 by hand.
    net = network(filters=1, blocks=1, kernel=1, activation=activation).eval()
    w, b = [p.detach() for p in net.weights], [p.detach() for p in net.biases]
    x, zeta = inputs(net)
    state, innovation = 5 * torch.tanh((x - 2.3) / 3.6 / 5), 5 * torch.tanh(0.7 * zeta / 5)
    h = w[0][0, 0] * state + w[0][0, 1] * innovation + b[0]
    if activation == "gated":
        branch = (w[1][0, 0] * h + b[1][0]) * torch.tanh(w[1][1, 0] * h + b[1][1])
    else:
        z = w[1][0, 0] * h + b[1]
        branch = z / (1 + torch.exp(-z))
    # The increment saturates at two climatological deviations.
    widest = 2 * 3.6 / 0.7
    increment = widest * torch.tanh((w[2][0, 0] * (h + branch) + b[2]) / widest)
    expected = x + net.alpha * zeta + 0.7 * increment
    assert_close(net(x, zeta)[0], expected, rtol=1e-12, atol=1e-12)


def test_new_memory_lies_between_the_old_and_the_candidate():
    net = network(filters=1, blocks=1, kernel=1, memory=1).eval()
    x, zeta, memory = inputs(net)
    with torch.no_grad():
        net.weights[-1].zero_()
        net.biases[-1].copy_(torch.tensor([0.0, 0.25, -0.75]))
    gate, candidate = torch.tensor([0.25, -0.75], dtype=torch.float64)
    expected = (1 - gate.sigmoid()) * memory + gate.sigmoid() * candidate.tanh()
    assert_close(net(x, zeta, memory)[1], expected, rtol=1e-13, atol=1e-13)


def test_no_memory_given_is_empty_memory():
    net = network(memory=2).eval()
    x, zeta, memory = inputs(net)
    assert_same(list(net(x, zeta)), list(net(x, zeta, torch.zeros_like(memory))))


@pytest.mark.parametrize("parameters", ARCHITECTURES, ids=lambda p: "-".join(map(str, p.values())))
def test_training_path_equals_the_plain_path(parameters):
    net = network(**parameters)
    tensors = inputs(net)
    assert_same(value_and_gradients(net.train(), tensors), value_and_gradients(net.eval(), tensors))


@pytest.mark.parametrize("sites", [1, 2, 3, 4])
def test_training_path_on_a_ring_shorter_than_the_kernel(sites):
    net = network(kernel=9, memory=2)
    tensors = inputs(net, sites=sites)
    assert_same(value_and_gradients(net.train(), tensors, 2), value_and_gradients(net.eval(), tensors, 2))


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("sub_blocks", [1, 2])
def test_training_path_keeps_every_cycle_until_its_gradient(memory, sub_blocks):
    net = network(memory=memory, sub_blocks=sub_blocks)
    for seed in (0, 10):  # the second time in buffers used before
        tensors = inputs(net, seed=seed)
        expected = value_and_gradients(net.eval(), tensors, cycles=3)
        assert_same(value_and_gradients(net.train(), tensors, cycles=3), expected)


def test_training_path_takes_gradients_in_any_order_and_shape():
    net = network()
    many = [inputs(net, *shape, seed) for seed, shape in enumerate(((3, 7), (2, 7), (3, 7), (3, 8)))]
    expected = [value_and_gradients(net.eval(), tensors) for tensors in many]
    net.train()
    values = [cycled(net, tensors, 1) for tensors in many]
    for index in (2, 0, 3, 1):
        gradients = torch.autograd.grad(values[index], list(net.parameters()))
        assert_same([values[index].detach(), *gradients], [expected[index][0], *expected[index][3:]])


@pytest.mark.parametrize("written_out", ["analysis", "trunk"])
@pytest.mark.parametrize(("device", "kept"), [("cpu", 3), ("meta", 0)])
def test_buffers_of_a_gpu_go_with_the_gradient(device, kept, written_out):
    """The meta device stands for a GPU: its tensors take no memory."""
    net = ResidualCNN(filters=2, blocks=1).to(device)
    x = torch.ones(2, 8, device=device, requires_grad=True)
    if written_out == "analysis":
        after = [net(x, x.detach())[0] for _ in range(3)]
        trunk = net.cnn
    else:
        trunk = ResidualTrunk(2, 1, trunk_sizes(2, 1, 1, 3, "gated")).to(device)
        after = [trunk(torch.stack([x.T, x.T])) for _ in range(3)]
    torch.autograd.grad(sum(one.sum() for one in after), x)
    fast = trunk._fast
    del after
    pools = fast._tapes, fast._scratches
    assert [sum(map(len, pool._free.values())) for pool in pools] == ([kept, 1] if kept else [0, 0])


def test_training_path_follows_its_weights():
    net = network().train()
    tensors = inputs(net)
    before = value_and_gradients(net, tensors)[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    in_place = value_and_gradients(net.train(), tensors)
    assert in_place[0] != before
    assert_same(in_place, value_and_gradients(net.eval(), tensors))
    net.weights[1] = torch.nn.Parameter(net.weights[1] * 1.2)
    assert_same(value_and_gradients(net.train(), tensors), value_and_gradients(net.eval(), tensors))


def test_training_path_without_a_gradient_equals_the_plain_path():
    net = network()
    tensors = inputs(net)
    with torch.no_grad():
        assert_same(list(net.train()(*tensors))[:1], list(net.eval()(*tensors))[:1])


def test_training_path_may_be_differentiated_again():
    net = network(memory=2).train()
    first, other = cycled(net, inputs(net), 2), cycled(net, inputs(net, seed=5), 2)
    once = torch.autograd.grad(first, list(net.parameters()), retain_graph=True)
    other.backward()
    assert_same(list(torch.autograd.grad(first, list(net.parameters()))), list(once))


@pytest.mark.parametrize("memory", [0, 2])
def test_jacobian_in_eval_mode_is_the_finite_difference(memory):
    net = network(memory=memory).eval()
    tensors = [t[:1] for t in inputs(net)]
    assert torch.autograd.gradcheck(lambda *t: net(*t)[0], [t.clone().requires_grad_() for t in tensors])
    jacobian = torch.func.jacrev(lambda zeta: net(tensors[0], zeta, *tensors[2:])[0][0])(tensors[1])[:, 0]
    h = 1e-5 * torch.eye(7, dtype=torch.float64)
    rest = [t.expand(7, *t.shape[1:]) for t in tensors]
    up, down = (net(rest[0], rest[1] + shift, *rest[2:])[0] for shift in (h, -h))
    assert_close(jacobian, ((up - down) / 2e-5).T.detach(), rtol=1e-8, atol=1e-8)


def test_second_derivatives_in_eval_mode_are_symmetric_and_not_zero():
    net = network().eval()
    x, zeta = (t[:1] for t in inputs(net))
    output = lambda x, zeta: net(x, zeta)[0].sum()  # noqa: E731
    mixed = torch.func.jacfwd(torch.func.jacrev(output, 1), 0)(x, zeta)[0, :, 0]
    swapped = torch.func.jacfwd(torch.func.jacrev(output, 0), 1)(x, zeta)[0, :, 0]
    assert_close(mixed, swapped.T, rtol=1e-11, atol=1e-12)
    assert mixed.abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=20, deadline=None)
@given(turn=st.integers(-12, 12), sites=st.integers(3, 12), memory=st.integers(0, 2), seed=st.integers(0, 99))
def test_network_turns_with_the_ring(training, turn, sites, memory, seed):
    net = network(seed, kernel=5, memory=memory).train(training)
    tensors = inputs(net, sites=sites, seed=seed)
    after, before = net(*(t.roll(turn, -1) for t in tensors)), net(*tensors)
    for one, other in zip(after[: 1 + bool(memory)], before, strict=False):
        assert_close(one, other.roll(turn, -1), rtol=1e-10, atol=1e-10)


def test_network_is_not_its_own_mirror_image():
    net = network().eval()
    tensors = inputs(net)
    assert (net(*(t.flip(-1) for t in tensors))[0].flip(-1) - net(*tensors)[0]).abs().max() > 0.01


@pytest.mark.parametrize(("kernel", "sub_blocks"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_a_site_depends_on_those_within_reach_and_no_others(kernel, sub_blocks):
    net = network(kernel=kernel, sub_blocks=sub_blocks).eval()
    sites = 2 * net.reach + 5
    x, zeta = (t[:1] for t in inputs(net, sites=sites))
    jacobian = torch.func.jacrev(lambda x: net(x, zeta)[0][0])(x)[:, 0]
    index = torch.arange(sites)
    distance = (index[:, None] - index).abs()
    near = torch.minimum(distance, sites - distance) <= net.reach
    assert torch.equal(jacobian != 0, near)


def test_the_number_of_sites_does_not_matter():
    net = network(memory=1).eval()
    small, large = inputs(net, sites=20), inputs(net, sites=31, seed=7)
    for one, other in zip(small, large, strict=True):
        other[..., :20] = one
    inner = slice(net.reach, 20 - net.reach)
    for one, other in zip(net(*small), net(*large), strict=True):
        assert_close(one[..., inner], other[..., inner], rtol=1e-12, atol=1e-12)


def test_trajectories_do_not_mix():
    net = network(memory=1).eval()
    tensors = inputs(net)
    for one, other in zip(net(*(t[1:2] for t in tensors)), net(*tensors), strict=True):
        assert_close(one, other[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("mean", "unit"), [(2.3, 3.6), (-280.0, 0.01)])
def test_normalisation_is_a_change_of_units(mean, unit):
    # In another unit and from another origin: a(mean + unit x, zeta / unit) = mean + unit a(x, zeta).
    net = network(memory=1).eval()
    x, zeta, memory = normals(2, 7), normals(2, 7, seed=1), normals(2, 1, 7, seed=2)
    net.normalise(0.0, 1.3, 0.7)
    plain, carried = net(x, zeta, memory)
    net.normalise(mean, 1.3 * unit, 0.7 * unit)
    scaled, carried_too = net(mean + unit * x, zeta / unit, memory)
    assert_close(scaled, mean + unit * plain, rtol=1e-11, atol=1e-11)
    assert_close(carried_too, carried, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", [0, 2])
def test_far_inputs_move_the_analysis_by_a_bounded_amount(memory):
    net = network(memory=memory).eval()
    x, zeta, *rest = inputs(net)
    for far in (1e2, 1e5):
        moved = net(far * x, far * zeta, *rest)[0] - far * x - net.alpha * far * zeta
        assert moved.abs().max() <= 2 * net.state_std * (1 + 1e-12)


def test_a_silent_trunk_leaves_alpha_zeta():
    net = network().eval()
    with torch.no_grad():
        net.weights[-1].zero_()
        net.biases[-1].zero_()
        net.relative_alpha.fill_(0.25)
    x, zeta = inputs(net)
    assert net.alpha.item() == pytest.approx(0.25 * net.error_std.item() ** 2, rel=1e-14)
    assert_close(net(x, zeta)[0], x + net.alpha * zeta, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("parameters", [{}, {"memory": 2, "activation": "silu", "sub_blocks": 2}])
def test_a_saved_state_and_the_parameters_determine_the_outputs(parameters):
    net = network(1, **parameters).eval()
    opened = network_by_name(net.name, net.config()).double().eval()
    opened.load_state_dict(net.state_dict())
    tensors = inputs(net)
    for one, other in zip(opened(*tensors), net(*tensors), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_hidden_matrices_are_all_convolutions_but_the_last():
    net = network(blocks=2, sub_blocks=2)
    assert [id(p) for p in net.hidden_matrices()] == [id(p) for p in list(net.weights)[:5]]
    assert len(net.weights) == 6


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"filters": 0}, "filters=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"sub_blocks": 0}, "sub_blocks=0"),
        ({"kernel": 4}, "kernel=4"),
        ({"kernel": -1}, "kernel=-1"),
        ({"memory": -1}, "memory=-1"),
        ({"activation": "relu"}, "activation='relu'"),
    ],
)
def test_sizes_that_make_no_network_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        ResidualCNN(**parameters)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"'transformer' is unknown.*residual-cnn"):
        network_by_name("transformer", {})


def test_an_unknown_parameter_of_a_network_is_refused():
    with pytest.raises(ValueError, match=r"no parameters \['width'\].*'filters'"):
        network_by_name("residual-cnn", {"width": 3})


class Scaled(ResidualCNN):
    """Three times its parent's increment, with the parent's own forward pass inside."""

    def forward(self, x, zeta, memory=None):
        analysis, memory = super().forward(x, zeta, memory)
        return x + 3 * (analysis - x), memory


class BySite(ResidualCNN):
    """One alpha for each of seven sites."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.relative_alpha = torch.nn.Parameter(torch.linspace(0.1, 0.7, 7))


class Learned(ResidualCNN):
    """Its unit of increments is trained."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        del self.error_std
        self.error_std = torch.nn.Parameter(torch.ones(()))


class Positive(ResidualCNN):
    """Its alpha is the square of what is trained."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.root = torch.nn.Parameter(torch.tensor(0.6))
        del self.relative_alpha

    @property
    def relative_alpha(self):
        return self.root**2


class Cubic(Activation):
    """An activation of which nothing is written out."""

    name = "cubic"

    def value(self, *sums):
        return sums[0] + 0.1 * sums[0] ** 3


class Other(ResidualCNN):
    """Its activation is one that the written-out gradient does not know."""

    def __init__(self, **parameters):
        super().__init__(**parameters, activation="silu")
        self.cnn.layers = replace(self.cnn.layers, activation=Cubic())


class OtherTrunk(ResidualCNN):
    """Its trunk is another than that of its parent."""

    def __init__(self, **parameters):
        super().__init__(**parameters)

        class Doubled(ResidualTrunk):
            def forward(self, features, *, fast=True):
                return 2 * super().forward(features, fast=fast)

        self.cnn.__class__ = Doubled


class HookedTrunk(ResidualCNN):
    """A hook changes what comes out of its trunk."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.cnn.register_forward_hook(lambda _, args, out: 2 * out)


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("cls", [Scaled, BySite, Learned, Positive, Other, OtherTrunk, HookedTrunk])
def test_a_derived_class_is_trained_by_the_gradient_of_its_own_forward_pass(cls, memory):
    net = cls(filters=3, blocks=2, kernel=3, memory=memory).double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.copy_(normals(*parameter.shape, seed=index) * 0.5)
    tensors = inputs(net, batch=7)  # as many states as sites: a wrong broadcast would pass
    assert_same(value_and_gradients(net.train(), tensors, 2), value_and_gradients(net.eval(), tensors, 2))
    net.eval()
    x, zeta, *rest = tensors
    covariance = formula(net, "analysis_covariance")(x, zeta, *(rest or [None]))
    one = torch.func.jacrev(lambda z: net(x[:1], z, *(part[:1] for part in rest))[0][0])(zeta[:1])[:, 0]
    assert_close(covariance[0], one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("sites", "states"), [(50, 1), (50, 3), (7, 20), (24, 2)])
def test_long_rings_in_parts_are_the_whole(monkeypatch, sites, states):
    """Where no gradient is recorded, rings and batches beyond a size run through the layers part by part."""
    torch.manual_seed(0)
    trunk = ResidualTrunk(2, 3, trunk_sizes(4, 1, 1, 3, "gated"), quiet=1.0).double().eval()  # a reach of three sites
    features = torch.randn(2, sites, states, dtype=torch.float64)
    whole = trunk(features)
    monkeypatch.setattr("xdan.core.networks.trunk._COLUMNS", 20)
    with torch.no_grad():
        parts = trunk(features)
        assert_close(parts, whole.detach(), rtol=1e-12, atol=1e-12)
    calls = []
    monkeypatch.setattr(trunk, "_in_parts", lambda features: calls.append(features))
    trunk(features)
    torch.func.vmap(trunk._on_ring)(features[None])
    assert not calls


def test_parts_of_a_network_without_a_reach(monkeypatch):
    torch.manual_seed(0)
    trunk = ResidualTrunk(2, 1, trunk_sizes(4, 1, 1, 1, "gated"), quiet=1.0).eval()
    features = torch.randn(2, 33, 1)
    with torch.no_grad():
        whole = trunk(features)
        monkeypatch.setattr("xdan.core.networks.trunk._COLUMNS", 8)
        assert_close(trunk(features), whole)
