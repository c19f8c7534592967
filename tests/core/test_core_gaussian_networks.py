"""Networks that give a Gaussian: roots that are positive for any weights, symmetries, frozen means, their method."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.learning import objective_by_name
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.trainer import Optimiser, Trainer
from xdan.core.local_roots import LocalRoot, diagonal_root
from xdan.core.methods import Record, SpreadNetwork, method_of, run
from xdan.core.networks import (
    Committee,
    EnsembleCNN,
    GaussianCNN,
    KalmanCNN,
    LinearInZeta,
    ResidualCNN,
    network_by_name,
    network_of_shapes,
)
from xdan.core.networks.gaussian import ConstantSpread
from xdan.core.networks.neighbours import root_places
from xdan.core.observing import ObservingSystem, Sites
from xdan.core.spaces import Components, Field, FixedInput, Interval, Plane, Ring, Sphere, StateSpace

SMALL = {"filters": 3, "blocks": 1, "kernel": 3}


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loud(net, size=0.8, seed=0):
    """A network all of whose weights matter, in double precision."""
    net.double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            fan_in = parameter.shape[1] if parameter.ndim == 2 else 4
            parameter.copy_(normals(*parameter.shape, seed=100 * seed + index) * size / fan_in**0.5)
    return net.eval()


def around(space=None, memory=0, **changes):
    parameters = {**SMALL, "memory": memory} | ({} if space is None else {"space": space})
    return GaussianCNN({"name": "residual-cnn", "parameters": parameters}, **{**SMALL, **changes})


def inputs(net, size, batch=2):
    memory = normals(batch, net.memory, size, seed=3) if net.memory else None
    return normals(batch, size, seed=1), normals(batch, size, seed=2), memory


SPACES = {
    "ring of any length": (None, 9),
    "short ring": (None, 3),
    "ring": (StateSpace([Field("a", Ring(7))]), 7),
    "two fields": (StateSpace([Field("a", Ring(6)), Field("b", Ring(6))]), 12),
    "fine and coarse": (StateSpace([Field("a", Ring(5)), Field("b", Ring(10, dim="y"))]), 15),
    "interval": (StateSpace([Field("a", Interval(6))]), 6),
    "plane": (StateSpace([Field("a", Plane((4, 5)))]), 20),
    "components": (StateSpace([Field("a", Components(3))]), 3),
    "sphere": (StateSpace([Field("a", Sphere(4, 8))]), 32),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("size", [0.1, 1.0, 40.0])
def test_covariance_is_symmetric_and_positive_for_any_weights(name, size):
    space, components = SPACES[name]
    net = loud(around(space, memory=1, diagonals=5), size)
    analysis, memory, entries = net.distribution(*inputs(net, components))
    root = LocalRoot(entries, net.root_places(components))
    covariance = root.covariance
    assert_close(covariance, covariance.mT)
    scaled = covariance / (root.deviations[..., None] * root.deviations[..., None, :])
    assert float(torch.linalg.eigvalsh(scaled.detach()).min()) > 1e-6
    assert_close(covariance.diagonal(dim1=1, dim2=2).sqrt(), root.deviations)
    again = net(*inputs(net, components))
    assert torch.equal(analysis, again[0])
    assert torch.equal(memory, again[1])


@pytest.mark.parametrize("name", SPACES)
def test_rows_have_distinct_columns_the_diagonal_first(name):
    space, components = SPACES[name]
    places, distinct = root_places(space, 5, components)
    assert torch.equal(places[:, 0], torch.arange(components))
    assert distinct[:, 0].all()
    for row, known in zip(places.tolist(), distinct.tolist(), strict=True):
        kept = [place for place, one in zip(row, known, strict=True) if one]
        assert len(set(kept)) == len(kept)
        assert set(kept) == set(row)


def test_the_diagonal_dominates_however_large_the_weights_are():
    net = loud(around(diagonals=7), 1e4)
    entries = net.distribution(*inputs(net, 11))[2]
    sides = entries[..., 1:].abs().sum(-1)
    assert bool((sides <= 0.9501 * entries[..., 0]).all())
    assert bool((sides > 0.9 * entries[..., 0]).any())  # the bound is reached


@given(shift=st.integers(0, 10), memory=st.integers(0, 2))
@settings(max_examples=8, deadline=None)
def test_spread_and_correlations_move_with_the_ring(shift, memory):
    net = loud(around(memory=memory))
    x, zeta, before = inputs(net, 11)
    entries = net.distribution(x, zeta, before)[2]
    moved = net.distribution(
        x.roll(shift, -1), zeta.roll(shift, -1), None if before is None else before.roll(shift, -1)
    )
    assert_close(moved[2], entries.roll(shift, 1), rtol=1e-11, atol=1e-11)


def test_one_diagonal_is_independent_errors():
    net = loud(around(diagonals=1))
    entries = net.distribution(*inputs(net, 6))[2]
    assert entries.shape == (2, 6, 1)
    assert LocalRoot(entries, net.root_places(6)).is_diagonal


def test_root_solves_and_applies_as_its_matrix():
    places, distinct = root_places(None, 5, 8)
    entries = normals(3, 8, 5) * 0.2 * distinct + torch.eye(5, dtype=torch.float64)[0]
    root, error = LocalRoot(entries, places), normals(3, 8, seed=4)
    dense = torch.zeros(3, 8, 8, dtype=torch.float64)
    for n in range(8):
        for k in range(5):
            dense[:, n, places[n, k]] += entries[:, n, k]
    assert_close(root.dense, dense)
    assert_close(root.apply(error), (dense @ error[..., None])[..., 0])
    solved, log_determinant = root.solve(error)
    assert_close(root.apply(solved), error)
    assert_close(log_determinant, torch.linalg.slogdet(dense).logabsdet)
    scale = torch.arange(1.0, 9.0, dtype=torch.float64)
    assert_close(root.scaled(scale).covariance, root.covariance / (scale[:, None] * scale))
    alone = diagonal_root(error.abs(), torch.arange(8)[:, None])
    assert_close(alone.solve(error)[0], error.sign())
    assert_close(alone.solve(error)[1], error.abs().log().sum(-1))


def test_a_network_is_made_again_from_its_description():
    space = StateSpace([Field("a", Ring(6)), Field("b", Ring(6))])
    for net in (around(memory=2), around(space, diagonals=3, mean="frozen"), ConstantSpread(ResidualCNN(**SMALL), 5)):
        again = type(net)(**net.config())
        assert again.config() == net.config()
        shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        assert {name: tuple(value.shape) for name, value in again.state_dict().items()} == shapes
        assert network_of_shapes(net.name, net.config(), shapes).memory == net.memory


def test_fixed_inputs_are_those_of_the_centre():
    ring = Ring(6)
    values = normals(6)
    space = StateSpace([Field("a", ring)], [FixedInput("height", ring, values)])
    net = GaussianCNN(ResidualCNN(**SMALL, space=space), **SMALL)
    assert_close(net.fixed_inputs, net.centre.fixed_inputs)
    other = loud(net)
    one = other.distribution(*inputs(other, 6))[2]
    with torch.no_grad():
        other.fixed_inputs += 1.0
    assert not torch.equal(one, other.distribution(*inputs(other, 6))[2])


def test_derivatives_are_those_of_the_centre():
    net = loud(around(memory=1))
    x, zeta, memory = inputs(net, 9)
    for formula, site in (("analysis_covariance", ()), ("marginal_gain", (2,)), ("forecast_derivative", (2,))):
        expected = getattr(net.centre, formula)(x, zeta, memory, *site)
        assert_close(getattr(net, formula)(x, zeta, memory, *site), expected)
    assert net.reach == net.centre.reach


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (EnsembleCNN(members=3, **SMALL), "ensemble-cnn.*expected a network of one forecast without a spread"),
        (KalmanCNN(**SMALL), "kalman-cnn.*expected a network of one forecast without a spread"),
        (around(), "gaussian-cnn.*expected a network of one forecast without a spread"),
        ({"name": "nothing"}, "network 'nothing' is unknown"),
    ],
)
def test_what_says_its_spread_already_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        GaussianCNN(network)


def test_a_committee_has_a_spread_of_all_its_networks_or_of_none():
    spread, none = around(), ResidualCNN(**SMALL)
    with pytest.raises(ValueError, match=r"\['gaussian-cnn'\] give the spread .*expected a spread of all"):
        Committee([spread, none])
    assert not Committee([none, none]).gives_spread
    with pytest.raises(ValueError, match="gives no spread"):
        Committee([none, none]).distribution(torch.zeros(1, 8), torch.zeros(1, 8))
    assert isinstance(method_of(Committee([spread, spread])), SpreadNetwork)


def spreads(space=None, **changes):
    """Three networks with roots of different widths, memories and weights."""
    members = [around(space, memory, diagonals=width) for memory, width in ((0, 5), (2, 3), (1, 1))]
    return [loud(one, seed=seed) for seed, one in enumerate(members)]


@pytest.mark.parametrize("name", SPACES)
def test_a_committee_has_the_moments_of_the_mixture(name):
    """Law of total variance: the mean of the variances plus the variance of the means."""
    space, size = SPACES[name]
    members = spreads(space)
    together = Committee(members).double().eval()
    x, zeta, memory = inputs(together, size)
    analysis, after, entries = together.distribution(x, zeta, memory)
    places = together.root_places(size)
    parts = [(None, 0), (memory[:, :2], 1), (memory[:, 2:], 2)]
    each = [members[k].distribution(x, zeta, before) for before, k in parts]
    means = torch.stack([one[0] for one in each])
    variances = torch.stack(
        [LocalRoot(one[2], net.root_places(size)).deviations ** 2 for one, net in zip(each, members, strict=True)]
    )
    assert_close(analysis, means.mean(0))
    assert_close(after, torch.cat([each[1][1], each[2][1]], 1))
    root = LocalRoot(entries, places)
    expected = variances.mean(0) + means.var(0, correction=0)
    assert_close(root.deviations**2, expected)
    assert_close(root.covariance.diagonal(dim1=1, dim2=2), expected)  # no column stands twice
    assert torch.equal(places[:, 0], torch.arange(size))
    # Correlations are those of the mean root.
    mean_root = torch.stack(
        [LocalRoot(one[2], net.root_places(size)).dense for one, net in zip(each, members, strict=True)]
    ).mean(0)
    assert_close(correlations(root.covariance), correlations(mean_root @ mean_root.mT))


def correlations(covariance):
    deviations = covariance.diagonal(dim1=1, dim2=2).sqrt()
    return covariance / deviations[:, :, None] / deviations[:, None]


def test_a_mixture_has_the_moments_of_draws_from_its_networks():
    members = [loud(around(diagonals=3), seed=seed) for seed in range(2)]
    x, zeta, _ = inputs(members[0], 6, batch=1)
    together = Committee(members).double().eval()
    analysis, _, entries = together.distribution(x, zeta)
    draws = []
    for seed, net in enumerate(members):
        mean, _, root = net.distribution(x, zeta)
        draws.append(mean + LocalRoot(root, net.root_places(6)).apply(normals(200_000, 6, seed=seed)))
    draws = torch.cat(draws).detach()
    assert_close(draws.mean(0), analysis[0].detach(), atol=0.02, rtol=0.02)
    assert_close(draws.std(0), entries[0].detach().square().sum(-1).sqrt(), atol=0.0, rtol=0.02)


def test_a_committee_of_one_network_with_itself_has_its_distribution():
    net = loud(around())
    x, zeta, _ = inputs(net, 9)
    alone, pair = net.distribution(x, zeta), Committee([net, net]).double().eval().distribution(x, zeta)
    assert_close(pair[0], alone[0])
    assert_close(pair[2], alone[2])


def test_a_constant_spread_and_a_network_make_one_committee():
    constant = ConstantSpread(ResidualCNN(**SMALL), 8)
    together = Committee([constant, around(diagonals=3)])
    assert together.root_places(8).shape == (8, 4)
    again = network_by_name("committee", together.config())
    assert again.config() == together.config()
    assert again.gives_spread


def test_what_is_no_network_and_settings_that_do_not_go_together_are_refused():
    with pytest.raises(TypeError, match="network=3: expected an architecture"):
        GaussianCNN(3)
    with pytest.raises(ValueError, match="memory=2 and space= are those of the default network"):
        GaussianCNN(ResidualCNN(), memory=2)
    with pytest.raises(ValueError, match="mean='fixed': expected one of"):
        GaussianCNN(mean="fixed")
    with pytest.raises(ValueError, match="diagonals=4"):
        GaussianCNN(diagonals=4)
    with pytest.raises(ValueError, match="its analysis would keep its random weights"):
        GaussianCNN(mean="frozen").check_space(Lorenz96(8).space)
    with pytest.raises(ValueError, match="a spread for 5 components, and the states have 8"):
        ConstantSpread(ResidualCNN(), 5).check_state(("x",), (8,))
    with pytest.raises(ValueError, match="gives no spread"):
        ResidualCNN().distribution(torch.zeros(1, 8), torch.zeros(1, 8))


def test_a_network_for_one_space_is_made_for_another_where_it_has_none():
    space = StateSpace([Field("a", Ring(6)), Field("b", Ring(6))])
    made = GaussianCNN(memory=1, **SMALL).made_for(space)
    assert made.space is not None
    assert made.space.fields == space.fields
    assert made.memory == 1
    assert network_by_name("gaussian-cnn", {"space": space}).centre.space.fields == space.fields


@pytest.mark.parametrize(
    "centre",
    [
        ResidualCNN(**SMALL, memory=1),
        LinearInZeta(form="hypernetwork", rank=2, width=5, **SMALL),
        Committee([{"name": "residual-cnn", "parameters": SMALL}] * 2),
    ],
    ids=lambda one: one.name,
)
@pytest.mark.parametrize("objective", ["log-score", "crps", "energy", "variational"])
def test_training_leaves_a_frozen_mean_as_it_is_and_learns_the_spread(centre, objective):
    dynamics, observing = Lorenz96(8), ObservingSystem(std=torch.tensor(1.0))
    torch.manual_seed(0)
    net = GaussianCNN(type(centre)(**centre.config()), mean="frozen", **SMALL)
    net.normalise(2.3, 3.6, 1.0)
    twin = EndlessTwin(
        dynamics,
        Sites.all(),
        observing,
        steps=1,
        trajectories=3,
        batch=3,
        cycles=3,
        seed=0,
        like=torch.zeros((), dtype=torch.float32),
    )
    trainer = Trainer(net, dynamics, observing, objective_by_name(objective), Optimiser(weight_decay=0.1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(2):
        trainer.step(twin.window(step), 1.0)
    after = net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("centre."))
    assert all(not torch.equal(after[name], before[name]) for name in before if name.startswith("cnn.weights"))


# ---- the method ----


def record(cycles=4, batch=3, sites=8, seen=1.0):
    dynamics = Lorenz96(sites)
    observation = 3.0 * normals(batch, cycles, sites) + 2.0
    observation = torch.where(normals(batch, cycles, sites, seed=7) > -10.0 * seen, observation, torch.nan)
    observing = ObservingSystem(std=torch.tensor(0.8, dtype=torch.float64))
    return Record(dynamics, observing, observation, [0, *[1] * (cycles - 1)], torch.arange(batch), 0)


def test_a_run_has_the_analyses_of_the_centre_and_the_spread_of_the_root():
    net = loud(around(memory=1), 0.3)
    net.normalise(2.0, 3.6, 0.8)
    method = method_of(net)
    assert isinstance(method, SpreadNetwork)
    assert not method.reads_covariance
    one = record()
    outputs, state = run(method, one, members=True)
    plain, _ = run(method_of(net.centre), one)
    assert_close(outputs["analysis"], plain["analysis"], rtol=0, atol=0)
    assert_close(outputs["spread"], outputs["analysis_covariance"].diagonal(dim1=2, dim2=3).sqrt())
    # What the first observation leaves of the climate's variance.
    assert_close(outputs["spread"][:, 0] ** 2, torch.full((3, 8), 1 / (1 / 3.6**2 + 1 / 0.8**2), dtype=torch.float64))
    halves = [run(method, one.during(slice(0, 2)), members=True)]
    halves.append(run(method, one.during(slice(2, 4)), halves[0][1], members=True))
    for name, value in outputs.items():
        assert torch.equal(torch.cat([half[0][name] for half in halves], 1), value)
    assert torch.equal(halves[1][1]["root"], state["root"])


def test_the_first_spread_is_that_of_the_climate_where_nothing_is_observed():
    net = loud(around(), 0.3)
    net.normalise(2.0, 3.6, 0.8)
    one = record(cycles=1)
    one.observation[:, 0, 2] = torch.nan
    spread = run(method_of(net), one)[0]["spread"]
    assert_close(spread[:, 0, 2], torch.full((3,), 3.6, dtype=torch.float64))


def test_a_covariance_that_is_too_large_is_not_kept():
    method = method_of(around())
    with pytest.raises(ValueError, match=r"100,000 components.*leave members= out: the run has the spread"):
        method.check_kept(Lorenz96(100_000))
