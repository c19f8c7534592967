"""Observations at positions: H by gather and scatter, against dense matrices and against sites."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_core_methods import METHODS, network, record_of
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.methods import Record, method_by_name, method_of, run, tune
from xdan.core.observing import InterpolationOperator, LinearOperator, ObservingSystem, Positions, deviations_of
from xdan.core.spaces import Components, Field, Interval, Plane, Ring, Sphere, StateSpace

SITES, TIMES = 8, 10
STD = torch.tensor(0.7, dtype=torch.float64)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def places(*shape: int, seed: int = 0) -> torch.Tensor:
    return SITES * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(operator: InterpolationOperator, size: int) -> torch.Tensor:
    """H as a matrix (..., P, N), its entries put there one by one."""
    matrix = torch.zeros(*operator.indices.shape[:-1], size, dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in operator.indices.shape)).tolist():
        matrix[(*place[:-1], int(operator.indices[tuple(place)]))] += operator.weights[tuple(place)]
    return matrix


def on_ring(where: torch.Tensor, **errors) -> ObservingSystem:
    positions = Positions(Lorenz96(SITES).space, {"x": where})
    errors = errors or {"std": STD}
    return ObservingSystem(**errors, operator=InterpolationOperator.at(positions), positions=positions)


@given(
    geometry=st.sampled_from([Ring(6), Interval(6), Plane((3, 4), (False, True)), Sphere(4, 6)]),
    count=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_an_operator_is_its_matrix(geometry, count, seed):
    points = geometry.positions()
    low, high = points.amin(0), points.amax(0)
    where = low + (high - low) * torch.rand(count, len(low), generator=torch.Generator().manual_seed(seed)).double()
    space = StateSpace([Field("a", geometry), Field("b", geometry)])
    fields = ["a" if k % 3 else "b" for k in range(count)]
    positions = Positions(space, dict(zip(geometry.dims, where.T, strict=True)), fields)
    operator = InterpolationOperator.at(positions)
    matrix = dense(operator, space.size)
    x, v, members = normals(3, space.size), normals(3, count, seed=1), normals(3, 2, space.size, seed=2)
    assert_close(operator(x), x @ matrix.T)
    assert_close(operator.tangent(x, members), members @ matrix.T)
    assert_close(operator.adjoint(x, v), v @ matrix)
    half = matrix[:, : geometry.size].abs().sum(1) > 0  # each sees its field
    assert half.tolist() == [name == "a" for name in fields]
    observed = torch.rand(3, count) < 0.7
    variance = normals(space.size, seed=3).square()
    seen, onto = operator.spread(x, variance, observed)
    known, onto_known = LinearOperator(matrix).spread(x, variance, observed)
    assert_close(seen, known)
    assert_close(onto(v[..., None]), onto_known(v[..., None]))


def test_gradients_pass_through_h_and_its_adjoint():
    operator = on_ring(places(5)).operator
    x, v = normals(2, SITES).requires_grad_(), normals(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,))
    assert torch.autograd.gradcheck(lambda v: operator.adjoint(x.detach(), v), (v,))


def test_h_of_several_times_is_that_of_each():
    observing = on_ring(places(TIMES, 5))
    matrices = dense(observing.operator, SITES)
    x = normals(3, TIMES, SITES)
    assert_close(observing.observe(x), torch.einsum("kpn,bkn->bkp", matrices, x))
    assert_close(observing.during(slice(2, 5)).observe(x[:, 2:5]), observing.observe(x)[:, 2:5])
    assert_close(observing.at(3).observe(x[:, 3]), x[:, 3] @ matrices[3].T)
    rows = torch.tensor([4, 0, 4])
    batch, v = observing.at_times(rows), normals(3, 5)
    expected = torch.stack([x[b, 0] @ matrices[k].T for b, k in enumerate(rows.tolist())])
    assert_close(batch.observe(x[:, 0]), expected)
    assert_close(batch.tangent(x[:, 0], x)[:, 1], torch.stack([x[b, 1] @ matrices[k].T for b, k in enumerate(rows)]))
    assert_close(batch.adjoint(x[:, 0], v), torch.stack([v[b] @ matrices[k] for b, k in enumerate(rows)]))
    assert_close(batch.repeat(2).observe(x[:, 0].repeat_interleave(2, 0)), expected.repeat_interleave(2, 0))
    assert observing.differs
    assert observing.in_time
    assert not observing.at(3).in_time
    assert not on_ring(places(5)).differs


def test_typical_error_is_that_of_the_matrix():
    observing = on_ring(places(5))
    plain = ObservingSystem(std=STD, operator=LinearOperator(dense(observing.operator, SITES)))
    assert observing.typical_error(normals(4, SITES)) == pytest.approx(plain.typical_error(normals(4, SITES)))
    assert_close(observing.climate_variance(normals(9, SITES)), plain.climate_variance(normals(9, SITES)))


class InTime(ObservingSystem):
    """Another observing system at each time, as a method gets it."""

    def __init__(self, each: list[ObservingSystem]) -> None:
        super().__init__(std=STD)
        self.each = each

    def at(self, k):
        return self.each[k]

    @property
    def direct(self):
        return False

    linear = True


def moving_record(where: torch.Tensor) -> Record:
    """A truth of Lorenz-96 observed at positions that move."""
    plain = record_of(Lorenz96(SITES), ObservingSystem(std=STD), TIMES)
    observing = on_ring(where)
    y = observing.observe(plain.truth) + 0.7 * normals(len(plain.truth), *where.shape, seed=7)
    y[0, 3:5] = torch.nan
    y[1, :, 2] = torch.nan
    return replace(plain, observing=observing, observation=y)


MOVED = [
    name
    for name in METHODS
    if "particle" not in name
    and "4d-var" not in name
    and name not in ("eda", "kalman")
    and getattr(METHODS[name](), "radius", None) is None  # matrices have no places
]


@pytest.mark.parametrize("name", [*MOVED, "extended-kalman", "dan"])
def test_methods_see_the_h_of_each_time(name):
    """The same analyses as with a dense matrix at each time, and the same bits in two blocks as in one."""
    record = moving_record(places(TIMES, 5))
    matrices = dense(record.observing.operator, SITES)
    matrix = InTime([ObservingSystem(std=STD, operator=LinearOperator(m)) for m in matrices])

    def method():
        if name == "dan":
            return method_of(network(memory=2))
        return METHODS[name]() if name in METHODS else method_by_name(name, inflation=1.05)

    prepared = tune(method(), record)
    outputs, _ = run(prepared, record)
    expected, _ = run(prepared, replace(record, observing=matrix))
    assert_close(outputs["analysis"], expected["analysis"], rtol=1e-6, atol=1e-6)
    first = replace(
        record,
        observing=record.observing.during(slice(0, 4)),
        observation=record.observation[:, :4],
        steps=record.steps[:4],
    )
    later = replace(
        record,
        observing=record.observing.during(slice(4, None)),
        observation=record.observation[:, 4:],
        steps=record.steps[4:],
    )
    one, state = run(prepared, first)
    two, _ = run(prepared, later, state)
    assert torch.equal(torch.cat([one["analysis"], two["analysis"]], 1), outputs["analysis"])


@pytest.mark.parametrize("name", ["4d-var", "3d-var", "extended-kalman"])
def test_observations_that_take_turns_at_the_sites_are_those_of_the_sites(name):
    """At time k the observation i is at the site i + k; sorted, it is the record of all sites."""
    plain = record_of(Lorenz96(SITES), ObservingSystem(std=STD), TIMES)
    order = (torch.arange(SITES) + torch.arange(TIMES)[:, None]) % SITES
    turned = plain.observation.gather(2, order.expand(plain.observation.shape))
    moving = replace(plain, observing=on_ring(order.double()), observation=turned)
    settings = {"window": 3, "scale": 0.1, "tolerance": 1e-9, "iterations": 40} if name == "4d-var" else {}
    settings |= {"inflation": 1.05} if name == "extended-kalman" else {}
    settings |= {"scale": 0.1} if name == "3d-var" else {}
    runs = [run(method_by_name(name, **settings).prepare(one), one)[0]["analysis"] for one in (plain, moving)]
    assert_close(*runs, rtol=1e-7, atol=1e-7)
    blind = replace(moving, observation=plain.observation)
    assert not torch.allclose(run(method_by_name(name, **settings).prepare(blind), blind)[0]["analysis"], runs[0])


@pytest.mark.parametrize("solver", ["gauss-newton", "l-bfgs"])
def test_four_d_var_keeps_the_h_of_its_window_from_block_to_block(solver):
    record = moving_record(places(TIMES, 5))
    method = method_by_name("4d-var", window=3, scale=0.1, solver=solver).prepare(record)
    whole, _ = run(method, record)
    parts, state = [], None
    for part in (slice(0, 2), slice(2, 7), slice(7, TIMES)):
        block = replace(
            record,
            observing=record.observing.during(part),
            observation=record.observation[:, part],
            steps=record.steps[part],
        )
        outputs, state = run(method, block, state)
        parts.append(outputs["analysis"])
    assert torch.equal(torch.cat(parts, 1), whole["analysis"])


# The local filter.


STILL = ObservingSystem(std=STD)
LOCAL = {"eakf": {"inflation": "adaptive"}, "hybrid-envar": {"scale": 0.1, "static_weight": 0.2}}


@pytest.mark.parametrize("name", ["eakf", "hybrid-envar"])
def test_filters_with_a_radius_at_sites_that_move_are_the_direct_ones(name):
    """Even sites and odd ones in turns: by positions, and as sites of which every other one is missing."""
    plain = record_of(Lorenz96(SITES), ObservingSystem(std=STD), 6)
    where = 2 * torch.arange(SITES // 2) + torch.arange(6)[:, None] % 2
    seen = torch.zeros(6, SITES, dtype=torch.bool).scatter(1, where, True)
    gaps = replace(plain, observation=torch.where(seen, plain.observation, torch.nan))
    picked = plain.observation.gather(2, where.expand(2, -1, -1))
    moving = replace(plain, observing=on_ring(where.double()), observation=picked)
    method = method_by_name(name, members=4, radius=1.5, spin_up=2, **LOCAL[name])
    one, other = method.prepare(gaps), method.prepare(moving)
    for k in range(4):
        state = {"x": normals(2, 4, SITES, seed=k), "label": torch.arange(2), "cycle": torch.tensor([k, k])}
        state["inflation"] = torch.full((2, SITES), 1.1, dtype=torch.float64)
        expected = one.analyse(state, torch.where(seen[k], plain.observation[:, k], 0.0), seen[k].expand(2, -1), STILL)
        y, every = picked[:, k], torch.ones(2, SITES // 2, dtype=torch.bool)
        assert_close(other.analyse(state, y, every, moving.observing.at(k))["x"], expected["x"], rtol=1e-9, atol=1e-9)
        elsewhere = other.analyse(state, y, every, moving.observing.at(k + 1))["x"]
        assert (elsewhere - expected["x"]).abs().max() > 0.1


def test_letkf_at_positions_of_the_sites_is_the_direct_one():
    plain = record_of(Lorenz96(SITES), ObservingSystem(std=STD), TIMES)
    settings = {"members": 4, "radius": 1.5, "inflation": 1.05}
    expected, _ = run(method_by_name("letkf", **settings).prepare(plain), plain)
    sites = torch.arange(SITES)
    for order in (sites, sites.flip(0), (sites + torch.arange(TIMES)[:, None]) % SITES):
        y = plain.observation.gather(2, order.expand(plain.observation.shape))
        record = replace(plain, observing=on_ring(order.double()), observation=y)
        method = method_by_name("letkf", **settings).prepare(record)
        state, k = {"x": normals(2, 4, SITES), "label": sites[:2], "cycle": torch.tensor([3, 3])}, 2
        answers = [
            one.analyse(state, r.observation[:, k], ~r.observation[:, k].isnan(), r.observing.at(k))["x"]
            for one, r in ((method, record), (method_by_name("letkf", **settings).prepare(plain), plain))
        ]
        assert_close(*answers, rtol=1e-10, atol=1e-10)
        if order is sites:
            assert_close(run(method, record)[0]["analysis"], expected["analysis"], rtol=1e-8, atol=1e-8)


def test_letkf_localises_the_observations_of_any_operator():
    """An observation moves the sites within twice its radius alone; what has no place moves none."""
    space = Lorenz96(SITES).space
    positions = Positions(space, {"x": torch.tensor([2.5, torch.nan])})
    means = torch.zeros(2, SITES, dtype=torch.float64)
    means[0, 2:4], means[1, 5] = 0.5, 1.0
    observing = ObservingSystem(std=STD, operator=LinearOperator(means), positions=positions)
    record = replace(record_of(Lorenz96(SITES), observing, 3), observation=normals(2, 3, 2))
    method = method_by_name("letkf", members=4, radius=0.9, inflation=1.0, spin_up=0).prepare(record)
    x = normals(2, 4, SITES)
    state = {"x": x, "label": torch.arange(2), "cycle": torch.tensor([3, 3])}
    everything = torch.ones(2, 2, dtype=torch.bool)
    moved = method.analyse(state, record.observation[:, 0], everything, observing)["x"] - x
    assert (moved.abs().amax((0, 1)) > 1e-9).tolist() == [k in (1, 2, 3, 4) for k in range(SITES)]


def test_letkf_of_an_operator_without_positions_is_refused():
    observing = ObservingSystem(std=STD, operator=LinearOperator(torch.eye(SITES).double()))
    with pytest.raises(ValueError, match="the operator's observations have no positions: expected positions=, for exa"):
        method_by_name("letkf", members=4).prepare(record_of(Lorenz96(SITES), observing, 3))
    space = StateSpace([Field("u", Ring(3)), Field("a", Components(2))])
    positions = Positions(space, {"x": torch.tensor([1.0])}, ["u"])
    with pytest.raises(ValueError, match="localisation needs distances from places to all components"):
        list(positions.distances())


# What is refused.


@pytest.mark.parametrize(
    ("coordinates", "fields", "message"),
    [
        ({}, None, r"expected \(P,\), or \(K, P\) where they move in time"),
        ({"x": torch.zeros(2), "y": torch.zeros(3)}, None, r"expected \(P,\), or \(K, P\) where they move"),
        ({"x": torch.zeros(2)}, None, r"the state has the fields \['u', 'h'\]: expected the name of each"),
        ({"x": torch.zeros(2)}, ["u"], "field names 1 observations: expected 2"),
        ({"x": torch.zeros(2)}, ["u", "q"], r"no field 'q': expected one of \['u', 'h'\]"),
        ({"x": torch.zeros(2)}, ["u", "h"], r"for observations of the field 'h'; \['y', 'z'\] are missing"),
        ({"x": torch.zeros(2), "y": torch.zeros(2)}, ["u", "u"], r"positions along \['y'\]: expected .* \['x'\] alone"),
    ],
)
def test_positions_that_cannot_be_are_refused(coordinates, fields, message):
    space = StateSpace([Field("u", Ring(4)), Field("h", Plane((3, 4), dims=("y", "z")))])
    with pytest.raises(ValueError, match=message):
        Positions(space, coordinates, fields)


def test_instruments_have_an_error_each():
    assert deviations_of(["a", "b", "a"], {"a": 0.5, "b": 2.0}) == [0.5, 2.0, 0.5]
    with pytest.raises(ValueError, match=r"expected one for each instrument; \['b'\] have none"):
        deviations_of(["a", "b"], {"a": 0.5})
    with pytest.raises(ValueError, match=r"observation errors of \['c'\]: expected those of the instruments \['a'\]"):
        deviations_of(["a"], {"a": 0.5, "c": 1.0})
