"""Serial filters against loops written out, the Kalman filter, and integrals of prior times likelihood."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_methods import DOUBLE, linear, lorenz96_record, model, normals, record_of
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.methods import Record, method_by_name, run
from xdan.core.methods.rank_histogram import posterior_quantiles
from xdan.core.observing import FunctionOperator, InterpolationOperator, ObservingSystem, Positions, Sites
from xdan.core.tapers import gaspari_cohn

SIZE = 8


def settled(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": x, "label": torch.arange(len(x)), "cycle": torch.full((len(x),), 500)}


def at_positions(where: torch.Tensor, std: torch.Tensor) -> ObservingSystem:
    positions = Positions(Lorenz96(SIZE).space, {"x": where})
    return ObservingSystem(std=std, operator=InterpolationOperator.at(positions), positions=positions)


def ring(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    apart = np.abs(points[:, None] - others[None]) % SIZE
    return np.minimum(apart, SIZE - apart)


def written_out(x, h, y, r, observed, to_state, to_seen):
    """Anderson (2003), for one trajectory, with the members of observation p (M,) in columns of h."""
    x, h = x.numpy().copy(), h.numpy().copy()
    for p in np.flatnonzero(observed):
        mean, variance = h[:, p].mean(), h[:, p].var(ddof=1)
        after = 1 / (1 / variance + 1 / r[p])
        by = after * (mean / variance + y[p] / r[p]) + np.sqrt(after / variance) * (h[:, p] - mean) - h[:, p]
        prior = h[:, p].copy()
        for members, taper in ((x, to_state), (h, to_seen)):
            for n in range(members.shape[1]):
                members[:, n] += taper[p, n] * np.cov(members[:, n], prior)[0, 1] / variance * by
    return torch.from_numpy(x)


@pytest.mark.parametrize("name", ["eakf", "ensrf"])
@pytest.mark.parametrize("radius", [None, 1.7])
@pytest.mark.parametrize("where", [None, [0.0, 1.25, 2.0, 4.5, 6.75]])
def test_serial_filters_are_the_loop_over_observations(name, radius, where):
    place = np.arange(SIZE, dtype=float) if where is None else np.array(where)
    std = torch.linspace(0.5, 1.2, len(place), dtype=torch.float64)
    observing = ObservingSystem(std=std) if where is None else at_positions(torch.tensor(where), std)
    record = record_of(Lorenz96(SIZE), ObservingSystem(std=DOUBLE + 1.0), 3)
    y, x = normals(2, len(place), seed=5), normals(2, 5, SIZE)
    record = Record(record.dynamics, observing, y[:, None].expand(2, 3, -1), record.steps, record.trajectory, 1)
    observed = torch.ones(2, len(place), dtype=torch.bool)
    observed[1, 3] = False
    method = method_by_name(name, members=5, radius=radius, inflation=1.1).prepare(record)
    analysis = method.analyse(settled(x), torch.where(observed, y, 0.0), observed, observing)["x"]
    sites = np.arange(SIZE, dtype=float)
    one = np.ones((len(place), SIZE))
    to_state = one if radius is None else gaspari_cohn(torch.from_numpy(ring(place, sites)), radius).numpy()
    # The taper at an observation's place lies linearly between those of the sites beside it.
    low, share = np.floor(place).astype(int), place % 1
    to_seen = to_state[:, low] * (1 - share) + to_state[:, (low + 1) % SIZE] * share
    for lane in range(2):
        h = observing.observe(x[lane])
        after = written_out(x[lane], h, y[lane].numpy(), std.numpy() ** 2, observed[lane].numpy(), to_state, to_seen)
        expected = after.mean(0) + 1.1 * (after - after.mean(0))
        assert_close(analysis[lane], expected, rtol=1e-10, atol=1e-11)


def test_an_observation_moves_nothing_beyond_twice_the_radius():
    record = lorenz96_record(2)
    for name in ("eakf", "rank-histogram"):
        method = method_by_name(name, members=5, radius=1.2, spin_up=0).prepare(record)
        only = torch.arange(SIZE) == 0
        observed, x = only.expand(2, SIZE), normals(2, 5, SIZE)
        after = method.analyse(settled(x), 3.0 * observed, observed, record.observing)["x"]
        moved = (after - x - 0.01 * (after - after.mean(1, keepdim=True)) / 1.01).abs().amax((0, 1))
        assert (moved[[0, 1, 2, 6, 7]] > 1e-4).all()
        assert moved[3:6].max() < 1e-12  # the inflation alone


class WithAParameter(Lorenz96):
    """Lorenz-96 whose last component has no place, as a parameter behind a state."""

    def distances(self, sites):
        apart = super().distances(sites).clone()
        apart[:, -1] = 1e9
        apart[sites == SIZE - 1] = 0.0
        return apart


def test_what_has_no_place_is_moved_by_every_observation():
    record = record_of(WithAParameter(SIZE), ObservingSystem(std=DOUBLE + 1.0), 2)
    x, y = normals(2, 5, SIZE), 3.0 * normals(2, SIZE, seed=1)
    for name in ("eakf", "denkf", "hybrid-envar"):
        parameters = {"static_weight": 0.0} if name == "hybrid-envar" else {}
        method = method_by_name(name, members=5, radius=1.2, inflation=1.0, **parameters).prepare(record)
        moved = []
        for k in (0, 3):
            observed = (torch.arange(SIZE) == k).expand(2, SIZE)
            after = method.analyse(settled(x), torch.where(observed, y, 0.0), observed, record.observing)["x"]
            moved.append((after - x).abs().amax((0, 1)) > 1e-9)
        assert moved[0][-1]
        assert moved[1][-1]
        assert not moved[0][4]
        assert not moved[1][6]


def test_nothing_observed_leaves_the_members():
    record, x = lorenz96_record(2), normals(2, 5, SIZE)
    for name in ("eakf", "rank-histogram"):
        method = method_by_name(name, members=5, inflation=1.0).prepare(record)
        none = torch.zeros(2, SIZE, dtype=torch.bool)
        after = method.analyse(settled(x), torch.zeros(2, SIZE), none, record.observing)["x"]
        assert_close(after, x, rtol=1e-14, atol=1e-14)


def test_correlated_errors_are_refused_beside_localisation():
    r = torch.eye(SIZE, dtype=torch.float64) + 0.3
    record = record_of(Lorenz96(SIZE), ObservingSystem(covariance=r), 3)
    with pytest.raises(ValueError, match=r"'eakf' takes observations one by one, .* expected standard deviations"):
        method_by_name("eakf", radius=2.0).prepare(record)
    method_by_name("eakf").prepare(record)


@pytest.mark.parametrize("name", ["denkf", "eakf", "rank-histogram", "hybrid-envar"])
def test_localisation_needs_distances_and_places(name):
    record = record_of(linear(model()), ObservingSystem(std=DOUBLE + 1.0), 3)
    with pytest.raises(ValueError, match="localisation needs a distance"):
        method_by_name(name, members=4, radius=2.0).prepare(record)
    square = ObservingSystem(std=DOUBLE + 1.0, operator=FunctionOperator(lambda x: x[..., :3] ** 2, 3))
    seen = lorenz96_record(3)
    seen = Record(seen.dynamics, square, seen.observation[..., :3], seen.steps, seen.trajectory, 1)
    with pytest.raises(ValueError, match=f"'{name}' weighs observations by their distance"):
        method_by_name(name, members=4, radius=2.0).prepare(seen)
    with pytest.raises(ValueError, match=r"radius=-1\.0: expected 'tune' or a positive finite number"):
        method_by_name(name, radius=-1.0)


def test_the_first_cycles_take_the_inflation_of_the_finite_size_prior():
    record = lorenz96_record(3)
    y, x = record.observation[:, 1] + 4.0, normals(2, 5, SIZE)
    observed = torch.ones(2, SIZE, dtype=torch.bool)
    enkf_n = method_by_name("enkf-n", members=5).prepare(record)
    inflation = enkf_n.analyse({"x": x}, y, observed, record.observing)["inflation"]
    assert (inflation > 1.1).all()
    mean = x.mean(1, keepdim=True)
    raised = mean + inflation[:, None, None] * (x - mean)
    for name in ("eakf", "denkf", "hybrid-envar"):
        method = method_by_name(name, members=5, inflation=1.0, **({"static_weight": 0.0} if "hyb" in name else {}))
        method = method.prepare(record)
        early = {**settled(x), "cycle": torch.tensor([3, 3])}
        expected = method.analyse(settled(raised), y, observed, record.observing)["x"]
        assert_close(method.analyse(early, y, observed, record.observing)["x"], expected, rtol=1e-9, atol=1e-10)


# --- the rank histogram ---


def by_quadrature(h: np.ndarray) -> np.ndarray:
    """Quantiles of the posterior of sorted members (M,), its density put on a fine grid."""
    from scipy.stats import norm

    count, std = len(h), h.std(ddof=1)
    part, tail = 1 / (count + 1), norm.ppf(1 / (count + 1))
    points = 20_001
    grids, densities = [], []
    left = np.linspace(min(h[0], 0) - 12 * max(1, std), h[0], points)
    grids.append(left)
    densities.append(norm.pdf(left, h[0] - std * tail, std) * np.exp(-0.5 * left**2))
    for low, high in itertools.pairwise(h):
        grids.append(np.linspace(low, high, 51))
        likelihood = 0.5 * (np.exp(-0.5 * low**2) + np.exp(-0.5 * high**2))
        densities.append(np.full(51, part / (high - low) * likelihood))
    right = np.linspace(h[-1], max(h[-1], 0) + 12 * max(1, std), points)
    grids.append(right)
    densities.append(norm.pdf(right, h[-1] + std * tail, std) * np.exp(-0.5 * right**2))
    steps = [0.5 * np.diff(g) * (d[1:] + d[:-1]) for g, d in zip(grids, densities, strict=True)]
    ends = np.concatenate([g[1:] for g in grids])
    cumulated = np.concatenate(steps).cumsum()
    wanted = part * np.arange(1, count + 1) * cumulated[-1]
    return np.interp(wanted, np.concatenate([[0], cumulated]), np.concatenate([[grids[0][0]], ends]))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 9), seed=st.integers(0, 9_999), spread=st.floats(0.1, 3.0), shift=st.floats(-4.0, 4.0))
def test_members_become_quantiles_of_prior_times_likelihood(count, seed, spread, shift):
    h = shift + spread * normals(1, count, seed=seed)
    quantiles = posterior_quantiles(h)
    order = h[0].argsort()
    expected = by_quadrature(h[0, order].numpy())
    assert_close(quantiles[0, order], torch.from_numpy(expected), rtol=1e-3, atol=2e-3 * (1 + spread))


def test_a_flat_likelihood_leaves_members_where_they_are():
    h = 1e-5 * normals(3, 7)
    assert_close(posterior_quantiles(h), h, rtol=1e-5, atol=1e-9)


def test_members_that_are_all_alike_stay():
    h = torch.full((2, 5), 3.0, dtype=torch.float64)
    assert torch.equal(posterior_quantiles(h), h)


def test_far_observations_and_lonely_members_give_finite_members():
    h = torch.tensor([[-50.0, -49.0, -48.0], [1e-3, 900.0, 901.0], [-30.0, 0.1, 30.0]], dtype=torch.float64)
    after = posterior_quantiles(h)
    assert after.isfinite().all()
    assert (after[0].abs() < 49).all()


def test_many_gaussian_members_become_those_of_the_eakf():
    distances = []
    eakf = method_by_name("eakf")
    for count in (30, 300, 3000):
        u = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
        h = 0.8 + 0.9 * torch.special.ndtri(u)[None]
        distances.append(float((posterior_quantiles(h) - eakf.moved(h)).square().mean().sqrt()))
    assert distances[2] < 0.01
    assert distances[2] < 0.3 * distances[1] < 0.09 * distances[0] * 1.5


def test_two_groups_of_members_are_told_apart():
    """Members about -3 and 3, an observation of 3 with unit error: the group at -3 has a likelihood of exp(-18)."""
    groups = torch.cat([normals(1, 20) * 0.3 - 3, normals(1, 20, seed=1) * 0.3 + 3], 1)
    h = groups - 3.0  # the observation is 0
    after = posterior_quantiles(h) + 3.0
    assert (after[0] > 1.5).float().mean() > 0.9
    adjusted = method_by_name("eakf").moved(h) + 3.0
    assert (adjusted[0] < 2.5).float().mean() > 0.4  # two groups still, nearer to each other
    near = groups[:, 20:].mean() - 3
    assert abs(after.mean() - 3 - near / 1.09) < 0.3 * abs(adjusted.mean() - 3)


def test_a_cycled_rank_histogram_filter_converges_to_the_kalman_filter():
    record = record_of(linear(model()), ObservingSystem(std=DOUBLE + 0.8), 8, lanes=12, sites=Sites.random(2, 4))
    exact, _ = run(method_by_name("kalman").prepare(record), record)
    distance = []
    for members in (25, 225):
        outputs, _ = run(method_by_name("rank-histogram", members=members, inflation=1.0).prepare(record), record)
        distance.append(float((outputs["analysis"] - exact["analysis"])[:, 4:].square().mean().sqrt()))
    assert distance[1] < 0.5 * distance[0]  # nine times the members, a third of the sampling error
