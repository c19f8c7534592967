"""Networks on spaces: dense references, symmetries, the plane of one row, gradients, conserved means, fixed inputs."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics
from xdan.core.learning.objectives import RootSquaredError, SquaredError
from xdan.core.learning.rollout import CappedGradient, Window, roll_out
from xdan.core.methods import DataAssimilationNetwork, Record, run
from xdan.core.networks import AnalysisNetwork, Committee, ResidualCNN, network_by_name, network_for
from xdan.core.networks.arrangement import Arrangement
from xdan.core.networks.layers import trunk_sizes
from xdan.core.networks.trunk import ResidualTrunk
from xdan.core.observing import ObservingSystem
from xdan.core.sensitivity import Points, analysis_covariance, marginal_gain
from xdan.core.spaces import Components, Field, FixedInput, Interval, Plane, Ring, Sphere, StateSpace

SMALL = {"filters": 3, "blocks": 2, "kernel": 3}
NETWORKS = {
    "residual": ("residual-cnn", SMALL),
    "memory": ("residual-cnn", {**SMALL, "memory": 2, "sub_blocks": 2}),
    "silu": ("residual-cnn", {**SMALL, "activation": "silu", "sees_forecast": False}),
    "linear": ("residual-cnn", {**SMALL, "activation": "linear"}),
    "localised": ("linear-in-zeta", {**SMALL, "rank": 3, "radius": 1.5}),
    "low-rank": ("linear-in-zeta", {**SMALL, "rank": 3, "form": "low-rank", "memory": 1}),
    "hypernetwork": ("linear-in-zeta", {**SMALL, "rank": 2, "width": 3, "form": "hypernetwork"}),
    "ensemble": ("ensemble-cnn", {**SMALL, "members": 2}),
    "exchangeable": ("ensemble-cnn", {**SMALL, "members": 2, "exchangeable": True}),
}


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def space_on(*geometries, conserved=()) -> StateSpace:
    return StateSpace([Field(f"f{k}", one, conserved=k in conserved) for k, one in enumerate(geometries)])


def made(name: str, space: StateSpace | None, seed: int = 0, **changes) -> AnalysisNetwork:
    """A network all of whose weights matter, in double precision, with other moments for every field."""
    registered, parameters = NETWORKS[name]
    net = network_by_name(registered, {**parameters, **changes, "space": space}).double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            fan_in = parameter.shape[1] if parameter.ndim == 2 else 4
            parameter.copy_(normals(*parameter.shape, seed=100 * seed + index) * 0.6 / fan_in**0.5)
    fields = 1 if space is None else len(space)
    scale = torch.arange(1, fields + 1, dtype=torch.float64)
    scale = scale[0] if fields == 1 else scale
    net.normalise(0.3 * scale, 1.6 * scale, 0.7 / scale)
    return net.eval()


def inputs(net: AnalysisNetwork, size: int, batch: int = 2, seed: int = 0) -> list[torch.Tensor]:
    members = (net.members,) if net.ensemble else ()
    tensors = [2.0 * normals(batch, *members, size, seed=seed), normals(batch, size, seed=seed + 1)]
    return [*tensors, normals(batch, net.memory, size, seed=seed + 2)] if net.memory else tensors


def outputs(net: AnalysisNetwork, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [one for one in net(*tensors) if one is not None]


def assert_same(actual, expected, tolerance: float = 1e-11) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, rtol=tolerance, atol=tolerance)


# ---- convolutions on a grid ----


def dense_convolution(grid, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, kernels) -> torch.Tensor:
    """The written sum over taps of what the geometry pads, x of shape (C, *sites, B)."""
    padded = grid.pad(x.movedim(-1, 0), [kernel // 2 for kernel in kernels]).movedim(0, -1)
    taps = weight.unflatten(1, (*kernels, x.shape[0]))
    answer = bias.reshape(-1, *(1 for _ in x.shape[1:])) + torch.zeros(len(bias), *x.shape[1:], dtype=x.dtype)
    for tap in itertools.product(*map(range, kernels)):
        window = padded[(slice(None), *(slice(t, t + n) for t, n in zip(tap, grid.sites, strict=True)))]
        answer = answer + torch.einsum("oc,c...->o...", taps[(slice(None), *tap)], window)
    return answer


@pytest.mark.parametrize(
    "grid",
    [Interval(5), Plane((4, 5)), Plane((1, 6), (True, False)), Plane((3, 4), (False, True)), Sphere(4, 6)],
    ids=repr,
)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_trunk_convolves_what_the_geometry_pads(grid, kernel):
    arrangement = Arrangement(space_on(grid))
    trunk = ResidualTrunk(2, 3, trunk_sizes(4, 1, 1, kernel, "silu"), arrangement=arrangement).double()
    kernels = tuple(kernel if n > 1 else 1 for n in grid.sites)
    assert trunk.weights[0].shape == (4, 2 * math.prod(kernels))
    weights, biases = ([p.detach() for p in part] for part in (trunk.weights, trunk.biases))
    x = normals(2, *grid.sites, 3)
    first = dense_convolution(grid, x, weights[0], biases[0], kernels)
    hidden = first + torch.nn.functional.silu(dense_convolution(grid, first, weights[1], biases[1], kernels))
    expected = dense_convolution(grid, hidden, weights[2], biases[2], kernels)
    assert_same([trunk(x).detach()], [expected], 1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows_first", [True, False])
def test_a_plane_of_one_row_is_the_ring(name, rows_first):
    n = 9
    plane = Plane((1, n) if rows_first else (n, 1))
    ring, flat = made(name, None), made(name, space_on(plane))
    assert [p.shape for p in ring.parameters()] == [p.shape for p in flat.parameters()]
    tensors = inputs(ring, n)
    assert_same(outputs(flat, tensors), outputs(ring, tensors), 1e-12)
    if not ring.ensemble:
        points = Points(*tensors)
        assert_same([analysis_covariance(flat, points)], [analysis_covariance(ring, points)], 1e-11)
        assert_same([marginal_gain(flat, points, 3)], [marginal_gain(ring, points, 3)], 1e-11)
    for net in (ring, flat):
        net.train()
    leaves = [[tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2)]
    gradients = [
        torch.autograd.grad(
            sum((o * normals(*o.shape, seed=9)).sum() for o in outputs(net, one)), [*one, *net.parameters()]
        )
        for net, one in zip((ring, flat), leaves, strict=True)
    ]
    assert_same(gradients[1], gradients[0], 1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_ring_that_is_stated_is_the_ring_of_any_length(name):
    plain, stated = made(name, None), made(name, space_on(Ring(9)))
    tensors = inputs(plain, 9)
    assert_same(outputs(stated, tensors), outputs(plain, tensors), 1e-13)


# ---- symmetries ----


def lifted(permutation: torch.Tensor, fields: int) -> torch.Tensor:
    """Move every field of one geometry alike."""
    return torch.cat([permutation + k * len(permutation) for k in range(fields)])


@pytest.mark.parametrize(
    ("grid", "moves"),
    [
        (Ring(8), ["shift along x"]),
        (Plane((6, 7)), ["shift along y", "shift along x"]),
        (Plane((6, 7), (False, True)), ["shift along x"]),
        (Sphere(6, 8), ["shift along lon"]),
    ],
    ids=["ring", "torus", "channel", "sphere"],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_commute_with_the_shifts_of_their_grid(grid, moves, name):
    net = made(name, space_on(grid, grid))
    tensors = inputs(net, 2 * grid.size)
    expected = outputs(net, tensors)
    for move in moves:
        g = lifted(grid.symmetries()[move], 2)
        assert_same(outputs(net, [tensor[..., g] for tensor in tensors]), [one[..., g] for one in expected], 1e-11)
        assert not torch.allclose(expected[0], expected[0][..., g])


def test_a_network_of_weights_that_are_alike_commutes_with_reflections_too():
    """With taps that are symmetric, walls and poles are no other places from either side."""
    for grid in (Interval(7), Plane((5, 6), (False, False)), Sphere(6, 8), Sphere([-90.0, -45.0, 0.0, 45.0, 90.0], 8)):
        net = made("residual", space_on(grid))
        with torch.no_grad():
            for weight in net.weights:
                taps = weight.unflatten(1, (*net.cnn.kernels, -1))
                dims = tuple(range(1, taps.ndim - 1))
                weight.copy_(
                    sum(
                        taps.flip(some) for k in range(len(dims) + 1) for some in itertools.combinations(dims, k)
                    ).flatten(1)
                )
        x, zeta = inputs(net, grid.size)
        expected = net(x, zeta)[0]
        for name, g in grid.symmetries().items():
            if not name.startswith("exchange"):
                assert_same([net(x[:, g], zeta[:, g])[0]], [expected[:, g]], 1e-11)


# ---- several fields ----

SPACES = {
    "ring of two": space_on(Ring(6), Ring(6)),
    "two scales": space_on(Ring(4), Ring(12, dim="fast")),
    "components": space_on(Components(3), Components(2, dim="c")),
    "interval": space_on(Interval(5), Interval(10, dim="z")),
    "plane": space_on(Plane((4, 5)), Plane((8, 5), dims=("v", "u"))),
    "sphere": space_on(Sphere(4, 6), Sphere(4, 6)),
}


def weighted(net: AnalysisNetwork, tensors: list[torch.Tensor]) -> torch.Tensor:
    return sum((one * normals(*one.shape, seed=30 + k)).sum() for k, one in enumerate(outputs(net, tensors)))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", ["residual", "memory", "low-rank", "exchangeable"])
def test_training_gradients_are_finite_differences(space, name):
    net = made(name, space).train()
    tensors = [tensor.requires_grad_() for tensor in inputs(net, space.size)]
    leaves = [*tensors, *net.parameters()]
    gradients = torch.autograd.grad(weighted(net, tensors), leaves)
    h = 1e-6
    with torch.no_grad():
        for k, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
            direction = normals(*leaf.shape, seed=70 + k)
            leaf.add_(direction, alpha=h)
            ahead = weighted(net, tensors)
            leaf.add_(direction, alpha=-2 * h)
            behind = weighted(net, tensors)
            leaf.add_(direction, alpha=h)
            assert_close((gradient * direction).sum(), (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_written_out_gradient_is_that_of_plain_operations(space):
    for name in ("residual", "memory"):
        net, plain = made(name, space).train(), made(name, space)
        leaves = [[tensor.clone().requires_grad_() for tensor in inputs(net, space.size)] for _ in range(2)]
        both = [
            [weighted(one, tensors), *torch.autograd.grad(weighted(one, tensors), [*tensors, *one.parameters()])]
            for one, tensors in zip((net, plain), leaves, strict=True)
        ]
        assert_same(*both)
        assert net._has_fast_gradient(leaves[0][0]) == Arrangement(space).is_ring


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("form", ["localised", "low-rank", "hypernetwork"])
def test_the_covariance_is_the_derivative_symmetric_and_semi_definite(space, form):
    net = made(form, space, **({"radius": 0.75} if form == "localised" else {}))
    x, zeta, *memory = inputs(net, space.size)
    p = net.covariance(x, *memory)[0]
    assert_same([net(x, zeta, *memory)[0] - x], [(p @ zeta[..., None])[..., 0]])
    assert_same([p], [p.mT])
    assert torch.linalg.eigvalsh(p).min() > -1e-12 * p.abs().max()
    assert_same([AnalysisNetwork.analysis_covariance(net, x, zeta, *(memory or [None]))], [p])


@pytest.mark.parametrize("name", NETWORKS)
def test_units_of_a_field_do_not_matter(name):
    """The first field in other units, and its moments with it: the analysis is the old one in these units."""
    space, factor = SPACES["two scales"], 1000.0
    net, other = made(name, space), made(name, space)
    unit = torch.tensor([factor, 1.0], dtype=torch.float64)
    other.normalise(net.state_mean * unit, net.state_std * unit, net.error_std * unit)
    x, zeta, *memory = inputs(net, space.size)
    scale = net.per_component(unit)
    analysis = outputs(net, [x, zeta, *memory])
    assert_same(outputs(other, [x * scale, zeta / scale, *memory]), [analysis[0] * scale, *analysis[1:]], 1e-9)


def test_no_increment_of_a_field_is_wider_than_its_climate():
    space = SPACES["two scales"]
    net = made("residual", space)
    with torch.no_grad():
        net.relative_alpha.zero_()
        net.biases[-1].fill_(1e6)
    x, zeta = inputs(net, space.size)
    increments = space.unpack((net(x, zeta)[0] - x).detach())
    for field, std in zip(space, net.state_std, strict=True):
        assert_close(increments[field.name], torch.full_like(increments[field.name], 2.0 * float(std)))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_every_network_takes_every_joined_space(data):
    count = data.draw(st.integers(1, 3))
    kind = data.draw(st.sampled_from([Ring, Interval, Components, Plane, Sphere]))
    size = data.draw(st.integers(3, 6))
    grid = {Plane: lambda: Plane((size, 3)), Sphere: lambda: Sphere(size, 4)}.get(kind, lambda: kind(size))()
    space = StateSpace(
        [Field(f"f{k}", grid, conserved=data.draw(st.booleans())) for k in range(count)],
        [FixedInput("shape", grid, normals(*grid.shape, seed=5))] if data.draw(st.booleans()) else [],
    )
    name = data.draw(st.sampled_from(sorted(NETWORKS)))
    net = made(name, space, **({"radius": 0.5} if name == "localised" else {}))
    again = type(net)(**net.config()).double().eval()
    again.load_state_dict(net.state_dict())
    tensors = inputs(net, space.size)
    assert_same(outputs(again, tensors), outputs(net, tensors), 0.0)
    analysis = outputs(net, tensors)[0]
    assert analysis.shape == tensors[0].shape
    for field, part in space.slices.items():
        change = ((analysis - tensors[0])[..., part] * space[field].geometry.weights()).sum(-1)
        assert (change.abs().max() < 1e-11) == space[field].conserved
    net.check_space(space)


# ---- options ----


def test_a_conserved_mean_keeps_the_covariance_of_the_increment():
    space = space_on(Interval([0.0, 1.0, 3.0, 6.0]), Interval([0.0, 1.0, 3.0, 6.0]), conserved=(1,))
    net = made("low-rank", space)
    x, zeta, memory = inputs(net, space.size)
    p = net.covariance(x, memory)[0]
    assert_same([p], [p.mT])
    assert_same([net(x, zeta, memory)[0] - x], [(p @ zeta[..., None])[..., 0]])
    weights = space["f1"].geometry.weights()
    assert (p[:, 4:] * weights[:, None]).sum(1).abs().max() < 1e-12


def test_fixed_inputs_change_the_analysis_and_are_weights():
    grid, values = Sphere(4, 6), normals(4, 6, seed=7)
    space = StateSpace(Field("h", grid), [FixedInput("orography", grid, values)])
    for name in NETWORKS:
        net = made(name, space, **({"radius": 0.5} if name == "localised" else {}))
        assert_close(net.state_dict()["fixed_inputs"][0], values, rtol=0, atol=1e-6)
        tensors = inputs(net, grid.size)
        before = outputs(net, tensors)[0]
        other = type(net)(**net.config()).double().eval()  # a description has no values
        assert not bool(other.fixed_inputs.any())
        other.take_fixed_inputs(net)
        assert torch.equal(other.fixed_inputs, net.fixed_inputs)
        with torch.no_grad():
            net.fixed_inputs.zero_()
        assert not torch.allclose(outputs(net, tensors)[0], before)


def test_a_committee_is_of_one_space():
    space = SPACES["two scales"]
    nets = [made("residual", space), made("low-rank", space)]
    described = [{"name": net.name, "parameters": net.config()} for net in nets]
    together = Committee(described).double().eval()
    for place, net in zip(together.networks, nets, strict=True):
        place.load_state_dict(net.state_dict())
    together.normalise(*(getattr(nets[0], name) for name in ("state_mean", "state_std", "error_std")))
    x, zeta, memory = inputs(together, space.size)
    both = [nets[0](x, zeta)[0], nets[1](x, zeta, memory)[0]]
    assert_same([together(x, zeta, memory)[0]], [torch.stack(both).mean(0)], 1e-13)
    assert together.space == space
    with pytest.raises(ValueError, match="expected networks for one space"):
        Committee([described[0], {"name": "residual-cnn", "parameters": SMALL}])


# ---- which network for which space ----


def test_networks_by_name_are_made_for_a_space_that_is_no_plain_ring():
    for space, plain in ((space_on(Ring(5)), True), (space_on(Components(3)), False), (SPACES["plane"], False)):
        net = network_for(space, "residual-cnn", SMALL)
        assert (net.space is None) == plain
        assert ("space" in net.config()) != plain


@pytest.mark.parametrize("name", NETWORKS)
def test_an_architecture_is_made_for_the_fields_of_its_data(name):
    registered, parameters = NETWORKS[name]
    net, space = network_by_name(registered, parameters), SPACES["two scales"]
    other = net.made_for(space)
    assert (type(other), other.space, other.made_for(space)) == (type(net), space, other)
    assert other.config() == {**net.config(), "space": space.to_json()}
    assert net.made_for(space_on(Ring(5))) is net  # weights and numbers on a ring are as ever
    if not net.ensemble:
        both = [{"name": registered, "parameters": parameters}] * 2
        together = Committee(both).made_for(space)
        assert [one.space for one in together.networks] == [space, space]


@pytest.mark.parametrize("space", [SPACES["two scales"], space_on(Components(3)), space_on(Ring(4), conserved=(0,))])
def test_a_network_of_a_ring_is_refused_elsewhere_with_the_remedy(space):
    with pytest.raises(ValueError, match=r"was made for one field on a ring.*space=dynamics\.space"):
        ResidualCNN(**SMALL).check_space(space)


def test_a_network_of_another_space_is_refused_by_what_differs():
    net = made("residual", SPACES["two scales"])
    other = StateSpace([Field("f0", Ring(4), units="K"), *SPACES["two scales"].fields[1:]])
    with pytest.raises(ValueError, match=r"differ in \('f0', 'K', Ring.*expected \('f0', '1', Ring"):
        net.check_space(other)
    with pytest.raises(ValueError, match=r"was made for the fields \['f0', 'f1'\], the states have \['f0'\]"):
        net.check_space(space_on(Ring(4)))
    with pytest.raises(ValueError, match=r"dims .* of lengths \(7,\): expected \('state',\) of \(16,\)"):
        net.check_state(["state"], [7])


@pytest.mark.parametrize(
    ("parameters", "grid", "message"),
    [
        ({"radius": 4.0}, Plane((16, 10)), "the taper spans 15 sites, the state has 10"),
        ({"radius": 1.0}, Sphere(64, 128), "form='localised' on 8192 sites, of which at most 4096 fit: expected form="),
        ({"form": "hypernetwork", "width": 9}, Sphere(6, 16), "width=9: the state has 6 sites"),
    ],
)
def test_tapers_and_windows_that_do_not_fit_are_refused(parameters, grid, message):
    net = network_by_name("linear-in-zeta", {**SMALL, **parameters, "space": space_on(grid)})
    with pytest.raises(ValueError, match=message):
        net.check_space(net.space)


# ---- cycles ----


def model_on(space: StateSpace, **changes) -> CustomDynamics:
    return CustomDynamics(**{"step": lambda f: f, "state": space, "timestep": 1.0, "spin_up_time": 0.0, **changes})


def test_the_first_analysis_is_interpolation_from_each_fields_climate():
    space = space_on(Ring(3), Ring(3), conserved=(1,))
    net = made("memory", space)
    method = DataAssimilationNetwork(net)
    y = normals(2, 1, 6)
    y[0, 0, 1] = torch.nan
    observing = ObservingSystem(std=torch.tensor([0.5, 0.5, 0.5, 2.0, 2.0, 2.0], dtype=torch.float64))
    outputs, _ = run(method, Record(model_on(space), observing, y, [0], torch.arange(2), 0, None))
    mean, std = (part.repeat_interleave(3) for part in (net.state_mean, net.state_std))
    gain = std**2 / (std**2 + observing.error_variance())
    expected = (gain * (y[:, 0] - mean)).nan_to_num(0.0)
    expected[:, 3:] -= expected[:, 3:].mean(1, keepdim=True)
    assert_same([outputs["forecast"][:, 0], outputs["analysis"][:, 0]], [mean.expand(2, 6), mean + expected], 1e-12)


def test_a_trajectory_is_lost_once_one_of_its_fields_is():
    """The small field grows past a million times its start, where the large one is as large all along."""
    space = space_on(Ring(2), Ring(2))
    factors = {"f0": 1.0, "f1": 1e3}
    model = model_on(space, step=lambda fields: {name: factors[name] * value for name, value in fields.items()})
    net = made("residual", space)
    net.normalise([1e9, 2.0], [1e9, 1.0], [1.0, 1.0])
    y = torch.full((1, 6, 4), torch.nan, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    observing = ObservingSystem(std=torch.ones((), dtype=torch.float64))
    record = Record(model, observing, y, [0, 1, 1, 1, 1, 1], torch.arange(1), 0, None)
    outputs, state = run(DataAssimilationNetwork(net), record)
    # 2, 2e3, 2e6, 2e9: past 1e6 times 2 in the fourth forecast.
    assert outputs["diverged"][0].tolist() == [False, False, False, True, True, True]
    assert state["bound"].shape == (1, 2)


def test_losses_of_several_fields_are_in_units_of_their_errors():
    space = space_on(Ring(2), Ring(2))
    net = made("residual", space)
    net.normalise([0.0, 0.0], [100.0, 1.0], [10.0, 0.1])
    truth, observation = normals(1, 2, 4), normals(1, 2, 4, seed=1)
    observing = ObservingSystem(std=torch.tensor([10.0, 10.0, 0.1, 0.1], dtype=torch.float64))
    method, window = DataAssimilationNetwork(net), Window(truth, observation, (1, 1))
    rollout = roll_out(method, model_on(space), observing, window, None)
    errors = (rollout.analysis - truth) / torch.tensor([10.0, 10.0, 0.1, 0.1], dtype=torch.float64)
    assert_close(SquaredError().loss(rollout), errors.square().mean(-1), rtol=1e-12, atol=0)
    assert_close(RootSquaredError().loss(rollout), errors.square().mean(-1).sqrt(), rtol=1e-12, atol=0)
    assert_close(SquaredError().square(rollout), errors.square().mean(-1), rtol=1e-12, atol=0)


def test_gradients_are_capped_in_units_of_the_errors():
    x, scale = normals(3, 4).requires_grad_(), torch.tensor([100.0, 100.0, 0.01, 0.01], dtype=torch.float64)
    slope = torch.tensor([[1e-6, 0, 0, 0], [0, 1e6, 0, 0], [0, 0, 300.0, 400.0]], dtype=torch.float64)
    (CappedGradient.apply(x, 1.0, scale) * slope).sum().backward()
    # Norms in units of the errors are 1e-4, 1e8 and 5; the last two are shortened to 1.
    assert_close(x.grad, slope * torch.tensor([1.0, 1e-8, 0.2], dtype=torch.float64)[:, None], rtol=1e-12, atol=0)
