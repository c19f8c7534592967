"""Methods against exact oracles: the Kalman filter on linear dynamics, dense formulas, brute force."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Dynamics, Lorenz96
from xdan.core.methods import (
    DataAssimilationNetwork,
    FiniteSizeEnKF,
    Method,
    Record,
    ThreeDVar,
    method_by_name,
    run,
    tune,
)
from xdan.core.methods.finite_size import _refined, dual_minimum
from xdan.core.networks import ResidualCNN
from xdan.core.observing import ObservingSystem, Sites, observe

DOUBLE = torch.zeros((), dtype=torch.float64)
SITES = 4
IDENTITY = torch.eye(SITES, dtype=torch.float64)
MASK = torch.tensor([True, False, True, True])
KINDS = ["scalar", "full"]


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(growth: float = 1.2) -> torch.Tensor:
    """A growing rotation with some shear: no mode dies out, and the matrix is far from symmetric."""
    turned = torch.linalg.qr(normals(SITES, SITES)).Q
    return growth * turned @ (IDENTITY + 0.1 * torch.ones_like(IDENTITY).triu(1))


def linear(matrix: torch.Tensor) -> CustomDynamics:
    return CustomDynamics(step=lambda x: x @ matrix.T, state={"x": SITES}, timestep=1.0, spin_up_time=0.0)


def error_and_matrix(kind: str) -> tuple[ObservingSystem, torch.Tensor]:
    if kind == "scalar":
        return ObservingSystem(std=DOUBLE + 0.8), 0.64 * IDENTITY
    root = normals(SITES, SITES, seed=9)
    matrix = root @ root.T + 0.5 * IDENTITY
    return ObservingSystem(covariance=matrix), matrix


def kalman_analysis(
    mean: torch.Tensor, p: torch.Tensor, y: torch.Tensor, observed: torch.Tensor, r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Textbook analysis, H written as a matrix."""
    h = torch.eye(len(mean), dtype=torch.float64)[observed]
    gain = p @ h.T @ torch.linalg.inv(h @ p @ h.T + h @ r @ h.T)
    return mean + gain @ (y[observed] - h @ mean), p - gain @ h @ p


def record_of(
    dynamics: Dynamics,
    observing: ObservingSystem,
    cycles: int,
    *,
    lanes: int = 2,
    sites: Sites | None = None,
    steps: Callable[[int], int] = lambda k: int(k > 0),
    truth: torch.Tensor | None = None,
) -> Record:
    """Observations of a free run, or of a truth that is given."""
    trajectory, every = torch.arange(lanes), [steps(k) for k in range(cycles)]
    if truth is None:
        state, states = dynamics.climatology(trajectory, 1, like=DOUBLE).flatten(1), []
        for count in every:
            state = dynamics.advance(state, count)
            states.append(state)
        truth = torch.stack(states, 1)
    observation = observe(truth, sites or Sites.all(), observing, trajectory, torch.arange(cycles), 1)
    return Record(dynamics, observing, observation, every, trajectory, 1, truth)


def lorenz96_record(cycles: int = 12, **options) -> Record:
    return record_of(Lorenz96(8), ObservingSystem(std=DOUBLE + 1.0), cycles, **options)


def network(memory: int = 0, zero: bool = False) -> ResidualCNN:
    torch.manual_seed(0)
    net = ResidualCNN(filters=4, blocks=1, kernel=3, memory=memory).double().eval()
    net.normalise(2.3, 3.6, 1.0)
    if zero:
        with torch.no_grad():
            for parameter in [*net.weights, *net.biases]:
                parameter.zero_()
    return net.requires_grad_(False)


METHODS: dict[str, Callable[[], Method]] = {
    "enkf-n": lambda: FiniteSizeEnKF(5),
    "3d-var": lambda: ThreeDVar(scale=0.1),
    "enkf-n primal": lambda: FiniteSizeEnKF(5, form="primal"),
    "enkf-n rotated": lambda: FiniteSizeEnKF(5, rotate=True),
    "enkf": lambda: method_by_name("enkf", members=6),
    "etkf": lambda: method_by_name("etkf", members=5, inflation=1.05),
    "etkf rotated": lambda: method_by_name("etkf", members=5, rotate=True),
    "enks": lambda: method_by_name("enks", members=5, lag=3, inflation=1.05),
    "letkf": lambda: method_by_name("letkf", members=4, radius=1.5),
    "etkf adaptive": lambda: method_by_name("etkf", members=5, inflation="adaptive", spin_up=2, relaxation="rtpp"),
    "letkf adaptive": lambda: method_by_name("letkf", members=4, radius=1.5, inflation="adaptive", spin_up=2),
    "denkf": lambda: method_by_name("denkf", members=5),
    "eakf": lambda: method_by_name("eakf", members=5, inflation=1.05),
    "rank-histogram": lambda: method_by_name("rank-histogram", members=5, radius=1.5, relaxation="rtps"),
    "hybrid-envar": lambda: method_by_name("hybrid-envar", members=4, radius=1.5, scale=0.1, anomalies="perturbed"),
    "es-mda": lambda: method_by_name("es-mda", members=5, lag=2, steps=2),
    "ienkf": lambda: method_by_name("ienkf", members=5, inflation=1.05),
    "ienkf bundle": lambda: method_by_name("ienkf", members=5, variant="bundle"),
    "ienks-n": lambda: method_by_name("ienks-n", members=10, lag=3),
    "extended-kalman": lambda: method_by_name("extended-kalman", inflation=1.05),
    "second-order-kalman": lambda: method_by_name("second-order-kalman", c2=4.0),
    "iterated-kalman-smoother": lambda: method_by_name("iterated-kalman-smoother", lag=3, c2=4.0),
    "optimal-interpolation": lambda: method_by_name("optimal-interpolation"),
    "4d-var": lambda: method_by_name("4d-var", window=3, scale=0.1),
    "4d-var l-bfgs": lambda: method_by_name("4d-var", window=2, scale=0.1, solver="l-bfgs"),
    "eda": lambda: method_by_name("eda", members=3, window=2),
    "particle": lambda: method_by_name("particle", members=20, noise=0.0),
    "optimal-particle": lambda: method_by_name("optimal-particle", members=20, noise=0.5),
    "state-covariance A1": lambda: method_by_name("state-covariance", algorithm="A1", depth=3, inflation=0.3),
    "state-covariance A2": lambda: method_by_name("state-covariance", depth=3, inflation=1.0),
    "dan": lambda: DataAssimilationNetwork(network()),
    "dan with memory": lambda: DataAssimilationNetwork(network(memory=2)),
}


def covariance_of(x: torch.Tensor) -> torch.Tensor:
    return torch.cov(x.T)


# --- EnKF-N ---


def enkf_analysis(
    method: FiniteSizeEnKF, x: torch.Tensor, y: torch.Tensor, observed: torch.Tensor, kind: str
) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Members after the analysis, inflation, and R."""
    observing, r = error_and_matrix(kind)
    after = method.analyse({"x": x[None]}, y[None], observed[None], observing)
    return after["x"][0], float(after["inflation"]), r


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observed", [MASK, torch.ones_like(MASK), torch.zeros_like(MASK)])
@pytest.mark.parametrize("members", [3, 9])
def test_capped_enkf_n_is_the_kalman_filter_of_its_own_moments(kind, observed, members):
    x = normals(members, SITES)
    y = x.mean(0) + 0.01 * normals(SITES, seed=1)  # a small innovation: the cap is active
    after, inflation, r = enkf_analysis(FiniteSizeEnKF(members), x, y, observed, kind)
    assert inflation == 1.0
    mean, p = kalman_analysis(x.mean(0), covariance_of(x), y, observed, r)
    assert_close(after.mean(0), mean, rtol=1e-11, atol=1e-12)
    assert_close(covariance_of(after), p, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("capped", "distance"), [(True, 5.0), (False, 5.0), (False, 0.01)])
def test_enkf_n_is_the_kalman_filter_of_its_inflated_moments(kind, capped, distance):
    members = 5
    x = normals(members, SITES)
    y = x.mean(0) + distance
    after, inflation, r = enkf_analysis(FiniteSizeEnKF(members, capped), x, y, MASK, kind)
    assert (inflation > 1.1) if distance > 1 else (inflation < 0.99)
    mean, p = kalman_analysis(x.mean(0), inflation**2 * covariance_of(x), y, MASK, r)
    assert_close(after.mean(0), mean, rtol=1e-11, atol=1e-12)
    assert_close(covariance_of(after), p, rtol=1e-10, atol=1e-11)


def test_enkf_n_takes_the_symmetric_square_root():
    members = 4
    x = normals(members, SITES)
    after, _, _ = enkf_analysis(FiniteSizeEnKF(members), x, x.mean(0), torch.ones_like(MASK), "full")
    before, moved = x - x.mean(0), after - after.mean(0)
    # With no more members than sites the transform in member space is known on the anomalies' span.
    transform = moved @ torch.linalg.pinv(before)
    assert_close(transform, transform.T, rtol=1e-10, atol=1e-11)
    assert torch.linalg.eigvalsh(transform).min() > -1e-12


def test_enkf_n_spread_is_the_sample_standard_deviation():
    method = FiniteSizeEnKF(5)
    outputs, _ = run(method, lorenz96_record(3), members=True)
    for name, members in (("forecast_spread", "forecast_members"), ("spread", "members")):
        expected = outputs[members].numpy().std(2, ddof=1)
        assert_close(outputs[name], torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    assert_close(outputs["analysis"], outputs["members"].mean(2), rtol=1e-13, atol=1e-13)


def kalman_filter(record: Record, matrix: torch.Tensor, r: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Analyses of every lane from mean zero and covariance `p` at the first time."""
    lanes = []
    for y in record.observation:
        mean, covariance, analyses = torch.zeros(SITES, dtype=torch.float64), p, []
        for k, steps in enumerate(record.steps):
            for _ in range(steps):
                mean, covariance = matrix @ mean, matrix @ covariance @ matrix.T
            mean, covariance = kalman_analysis(mean, covariance, y[k], ~y[k].isnan(), r)
            analyses.append(mean)
        lanes.append(torch.stack(analyses))
    return torch.stack(lanes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cycled_enkf_n_of_many_members_converges_to_the_kalman_filter(kind):
    matrix, (observing, r) = model(), error_and_matrix(kind)
    record = record_of(linear(matrix), observing, 50, sites=Sites.random(2, SITES))
    exact = kalman_filter(record, matrix, r, IDENTITY)
    distances = []
    for members in (100, 400):
        analysis = run(FiniteSizeEnKF(members), record)[0]["analysis"]
        # The first, sampled covariance is forgotten; what stays is the finite-size inflation, of order 1 / M.
        distances.append(float((analysis - exact)[:, 35:].square().mean().sqrt()))
    assert distances[1] < 0.01
    assert distances[1] < 0.4 * distances[0]


def dual_cost(zeta: torch.Tensor, values: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The cost as written."""
    m = len(values)
    return (d**2 / (1 + values / zeta[:, None])).sum(1) + m / (m - 1) * zeta - (m + 1) * zeta.log()


@pytest.mark.parametrize("capped", [True, False])
@settings(max_examples=60, deadline=None)
@given(
    members=st.integers(2, 30),
    seed=st.integers(0, 10_000),
    surprise=st.floats(0.01, 3),
    spread=st.floats(0.3, 3),
)
def test_dual_minimum_minimises_the_written_cost(capped, members, seed, surprise, spread):
    values = (spread * normals(members, seed=seed)) ** 2 * (members - 1) + 0.01
    # Innovations that are `surprise` times what the ensemble and R make of them.
    d = surprise * (1 + values / (members - 1)).sqrt() * normals(members, seed=seed + 1)
    top = members - 1 if capped else (members + 1) * (members - 1) / members
    grid = top * torch.logspace(-5, 0, 4001, dtype=torch.float64)
    cost = dual_cost(grid, values, d)
    zeta = dual_minimum(values[None], (values.sqrt() * d)[None], members, capped)
    assert 0 < zeta <= top
    assert dual_cost(zeta, values, d) <= cost.min() + 1e-10 * cost.min().abs() + 1e-10


def surprising_problems(members: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values over four decades, and innovations up to a hundred times their size."""
    rng = np.random.default_rng(seed)
    values = 10.0 ** rng.uniform(-2, 3, (count, members))
    d = 10.0 ** rng.uniform(-1, 1.5, (count, members)) * rng.normal(size=(count, members))
    return values, d


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("members", [5, 9])
def test_dual_minimum_is_the_lowest_of_several(members, capped):
    values, d = surprising_problems(members, 1500, members)
    eps = members / (members - 1)
    top = members - 1 if capped else (members + 1) / eps

    def cost(zeta: np.ndarray, row: slice | int = slice(None)) -> np.ndarray:
        fit = (d[row] ** 2 * zeta[..., None] / (zeta[..., None] + values[row])).sum(-1)
        return fit + eps * zeta - (members + 1) * np.log(zeta)

    grid = np.geomspace(1e-6 * top, top, 1000)
    costs = np.stack([cost(np.full(len(d), zeta)) for zeta in grid], 1)
    inner = (costs[:, 1:-1] < costs[:, :-2]) & (costs[:, 1:-1] <= costs[:, 2:])
    several = inner.sum(1) + (costs[:, -1] < costs[:, -2]) + (costs[:, 0] < costs[:, 1]) > 1
    assert several.sum() > 60
    lowest = np.empty(len(d))
    for row, index in enumerate(costs.argmin(1)):
        bounds = grid[max(0, index - 1)], grid[min(len(grid) - 1, index + 1)]
        inside = minimize_scalar(lambda z, row=row: cost(np.asarray(z), row), bounds=bounds, method="bounded")
        lowest[row] = min(costs[row].min(), inside.fun)
    problem = torch.from_numpy(values), torch.from_numpy(np.sqrt(values) * d)
    zeta = dual_minimum(*problem, members, capped).numpy()
    assert (cost(zeta) <= lowest + 1e-6 * (1 + np.abs(lowest))).all()
    # One bracket over the whole range, which is all that a bisection sees, misses some of them.
    ends = torch.full((len(d),), 1e-6 * top, dtype=torch.float64), torch.full((len(d),), top, dtype=torch.float64)
    bracketed = _refined(*ends, problem[0], problem[1] ** 2, members, top).numpy()
    missed = cost(bracketed) > lowest + 1e-3
    assert missed.sum() > 10
    # Where it finds the lowest, nothing has moved.
    np.testing.assert_array_equal(zeta[~missed & ~several], bracketed[~missed & ~several])
    same = np.abs(zeta / bracketed - 1) < 1e-6
    np.testing.assert_array_equal(zeta[same], bracketed[same])


def test_dual_minimum_in_single_precision_is_the_lowest_too():
    values, d = surprising_problems(5, 1000, 0)
    exact = dual_minimum(torch.from_numpy(values), torch.from_numpy(np.sqrt(values) * d), 5, True)
    problem = torch.from_numpy(values).float(), torch.from_numpy(np.sqrt(values) * d).float()
    zeta = dual_minimum(*problem, 5, True)
    assert zeta.dtype == torch.float32
    assert ((zeta / exact - 1).abs() < 1e-3).double().mean() > 0.998  # but for two minima of nearly one cost


def test_dual_minimum_without_an_innovation_is_known():
    # D = eps zeta - (M + 1) ln zeta falls up to (M + 1) / eps, beyond the cap.
    m = 10
    values, c = torch.ones(1, m, dtype=torch.float64), torch.zeros(1, m, dtype=torch.float64)
    assert float(dual_minimum(values, c, m, capped=True)) == m - 1
    assert float(dual_minimum(values, c, m, capped=False)) == pytest.approx((m + 1) * (m - 1) / m, rel=1e-7)


def test_dual_minimum_treats_every_trajectory_by_itself():
    values, c = normals(5, 6) ** 2, normals(5, 6, seed=1)
    alone = [dual_minimum(values[i : i + 1], c[i : i + 1], 6, True) for i in range(5)]
    assert_close(dual_minimum(values, c, 6, True), torch.cat(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("members", [1, 0, -3])
def test_an_ensemble_needs_two_members(members):
    with pytest.raises(ValueError, match=f"members={members}"):
        FiniteSizeEnKF(members)


# --- 3D-Var ---


def stationary_covariance(matrix: torch.Tensor, r: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Forecast covariance at the fixed point of the Riccati recursion."""
    p = IDENTITY
    for _ in range(2000):
        p = matrix @ kalman_analysis(p[0], p, p[0], observed, r)[1] @ matrix.T
    return p


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [Sites.all(), Sites.every(2)])
def test_3d_var_with_the_stationary_covariance_becomes_the_kalman_filter(kind, sites):
    matrix, (observing, r) = model(1.3), error_and_matrix(kind)
    observed = sites.mask(SITES, torch.arange(1), torch.arange(1), 0)[0, 0]
    p = stationary_covariance(matrix, r, observed)
    # The truth rests at zero: errors are those of any truth, and nothing grows out of bounds.
    truth = torch.zeros(2, 220, SITES, dtype=torch.float64)
    record = record_of(linear(matrix), observing, 220, sites=sites, truth=truth)
    method = ThreeDVar(background=p, scale=1.0).prepare(record)
    exact = kalman_filter(record, matrix, r, IDENTITY)
    outputs, _ = run(method, record)
    assert_close(outputs["analysis"][:, -20:], exact[:, -20:], rtol=1e-9, atol=1e-9)
    variance = kalman_analysis(p[0], p, p[0], observed, r)[1].diagonal()
    assert_close(outputs["spread"][0, -1] ** 2, variance, rtol=1e-9, atol=1e-9)
    assert_close(outputs["forecast_spread"][0, -1] ** 2, p.diagonal(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    masks=st.lists(st.lists(st.booleans(), min_size=SITES, max_size=SITES), min_size=1, max_size=3),
    scale=st.floats(0.01, 10),
)
def test_3d_var_analysis_is_the_dense_formula(kind, masks, scale):
    observing, r = error_and_matrix(kind)
    root = normals(SITES, SITES, seed=5)
    b, observed = root @ root.T, torch.tensor(masks)
    x, y = normals(len(masks), SITES, seed=6), normals(len(masks), SITES, seed=7)
    after = prepared_3d_var(b, scale, observing).analyse({"x": x}, y, observed, observing)
    for i, mask in enumerate(observed):
        analysis, p = kalman_analysis(x[i], scale * b, y[i], mask, r)
        assert_close(after["x"][i], analysis, rtol=1e-9, atol=1e-10)
        assert_close(after["spread"][i] ** 2, p.diagonal(), rtol=1e-8, atol=1e-10)


def prepared_3d_var(b: torch.Tensor, scale: float, observing: ObservingSystem) -> ThreeDVar:
    record = record_of(linear(model()), observing, 1, lanes=1)
    return ThreeDVar(background=b, scale=scale).prepare(record)


def test_3d_var_gain_is_not_kept_for_another_error_covariance():
    b = IDENTITY
    observed, y = torch.ones(1, SITES, dtype=torch.bool), torch.ones(1, SITES, dtype=torch.float64)
    errors = [error_and_matrix(kind) for kind in KINDS]
    method = prepared_3d_var(b, 1.0, errors[0][0])
    for observing, r in errors:
        analysis = method.analyse({"x": torch.zeros_like(y)}, y, observed, observing)["x"][0]
        assert_close(analysis, torch.linalg.solve(b + r, y[0]), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("scales", "gaps", "gains"),
    [
        ([0.5, 0.5, 2.0, 2.0, 1.0, 1.0], False, 3),  # as tuning repeats them
        ([0.5, 0.5, 0.5, 2.0, 1.0, 1.0], False, 6),  # not as often each
        ([0.5, 0.5, 2.0, 2.0, 1.0, 1.0], True, 6),
        ([0.5] * 6, False, 1),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_3d_var_shares_a_gain_among_trajectories_of_one_scale(scales, gaps, gains, kind):
    observing, _ = error_and_matrix(kind)
    method = prepared_3d_var(IDENTITY + 0.25, 1.0, observing).at({"scale": torch.tensor(scales, dtype=torch.float64)})
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 6, SITES, dtype=torch.float64, generator=generator)
    observed = torch.ones(6, SITES, dtype=torch.bool)
    observed[3, 1] = not gaps
    assert len(method.static.gain(observed, observing, x)[0]) == gains
    together = method.analyse({"x": x}, y, observed, observing)
    for row, scale in enumerate(scales):
        alone, lane = prepared_3d_var(IDENTITY + 0.25, scale, observing), slice(row, row + 1)
        expected = alone.analyse({"x": x[lane]}, y[lane], observed[lane], observing)
        for name in ("x", "forecast_spread", "spread"):
            assert_close(together[name][lane], expected[name], rtol=1e-12, atol=1e-14)


def test_first_analysis_of_3d_var_starts_from_the_climate():
    observing, r = error_and_matrix("full")
    record = record_of(linear(model()), observing, 1, sites=Sites.every(2))
    mean = torch.full((SITES,), 1.5, dtype=torch.float64)
    spread = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    mixing = torch.diag(spread) + 0.5 * torch.diag(spread[1:], -1)
    climate = CustomDynamics(
        step=lambda x: x,
        state={"x": SITES},
        timestep=1.0,
        spin_up_time=0.0,
        rest=lambda noise: mean + noise @ mixing.T,
    )
    record = Record(climate, observing, record.observation, record.steps, record.trajectory, 1)
    outputs, _ = run(ThreeDVar(background=IDENTITY, scale=0.1).prepare(record), record)
    sample = climate.climatology(range(4096), 1, purpose=6, like=DOUBLE)[:, 0]
    moments = sample.mean(0), torch.cov(sample.T)
    assert_close(outputs["forecast"][0, 0], moments[0], rtol=1e-12, atol=1e-12)
    for lane, y in enumerate(record.observation[:, 0]):
        analysis, _ = kalman_analysis(*moments, y, ~y.isnan(), r)
        assert_close(outputs["analysis"][lane, 0], analysis, rtol=1e-10, atol=1e-10)


def test_tuned_scale_of_3d_var_is_as_good_as_the_best_of_a_scan():
    observing = ObservingSystem(std=DOUBLE + 1.5)
    record = record_of(Lorenz96(8), observing, 250, lanes=16)
    method = tune(ThreeDVar(background=torch.eye(8), scale="tune"), record)
    chosen = float(method.chosen()["background_scale"])

    def scores(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Root mean square error of the forecast, and RMSE of the analysis."""
        weight = (scales / (scales + 1.5**2))[:, None, None]
        x, forecasts, analyses = record.observation[:, 0].expand(len(scales), -1, -1), [], []
        for k in range(1, 250):
            x = record.dynamics.advance(x, 1)
            forecasts.append((x - record.truth[:, k]).square().mean(-1))
            x = x + weight * (record.observation[:, k] - x)
            analyses.append((x - record.truth[:, k]).square().mean(-1))
        forecast, analysis = torch.stack(forecasts[49:]), torch.stack(analyses[49:])
        return forecast.mean((0, 2)).sqrt(), analysis.sqrt().mean((0, 2))

    scan = scores(4 * 2.0 ** -(torch.arange(37, dtype=torch.float64) / 3))
    tuned = scores(torch.tensor([chosen], dtype=torch.float64))
    assert 0 < int(scan[1].argmin()) < 36
    # Innovations measure the forecast's error; the best scale for the analysis is close to the best for that.
    assert tuned[0] < 1.005 * scan[0].min()
    assert tuned[1] < 1.03 * scan[1].min()


def test_trained_background_is_the_covariance_of_the_forecast_errors():
    # The fixed point of the iteration, up to what one more round changes.
    observing = ObservingSystem(std=DOUBLE + 1.0)
    record = record_of(Lorenz96(6), observing, 200, lanes=8)
    trained = tune(ThreeDVar(background="trained", scale="tune"), record)
    b = trained.chosen()["background_covariance"]
    again = (run(trained, record)[0]["forecast"] - record.truth)[:, 50:].flatten(0, 1)
    assert (torch.cov(again.T) - b).norm() < 0.1 * b.norm()
    plain = tune(ThreeDVar(scale="tune"), record)
    errors = [run(method, record)[0]["analysis"] - record.truth for method in (trained, plain)]
    assert errors[0][:, 50:].square().mean() < errors[1][:, 50:].square().mean()


def test_3d_var_must_be_prepared():
    with pytest.raises(RuntimeError, match=r"prepare\(record\)"):
        run(ThreeDVar(scale=1.0), lorenz96_record(2))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"background": "ensemble"}, "background='ensemble'"),
        ({"scale": "best"}, "scale='best'"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": -1}, "scale=-1"),
    ],
)
def test_3d_var_refuses_what_it_does_not_know(parameters, message):
    with pytest.raises(ValueError, match=message):
        ThreeDVar(**parameters)


def test_3d_var_refuses_a_background_of_another_size():
    with pytest.raises(ValueError, match=r"shape \(3, 3\): expected \(8, 8\)"):
        ThreeDVar(background=torch.eye(3), scale=1.0).prepare(lorenz96_record(1))


def test_trained_background_needs_the_truth():
    record = lorenz96_record(2)
    blind = Record(record.dynamics, record.observing, record.observation, record.steps, record.trajectory, 1)
    with pytest.raises(ValueError, match="no truth, and training needs one"):
        ThreeDVar(background="trained").prepare(blind)


# --- the network as a method ---


@pytest.mark.parametrize("kind", KINDS)
def test_first_analysis_of_a_network_is_optimal_interpolation(kind):
    observing, r = error_and_matrix(kind)
    record = record_of(linear(model()), observing, 1, lanes=3, sites=Sites.random(1, 3))
    outputs, _ = run(DataAssimilationNetwork(network(memory=2)), record)
    climate = 3.6**2 * IDENTITY
    mean = torch.full((SITES,), 2.3, dtype=torch.float64)
    for lane, y in enumerate(record.observation[:, 0]):
        expected, _ = kalman_analysis(mean, climate, y, ~y.isnan(), torch.diag(r.diagonal()))
        assert_close(outputs["forecast"][lane, 0], mean, rtol=1e-14, atol=0)
        assert_close(outputs["analysis"][lane, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_network_nudges_by_alpha_zeta(kind):
    observing, r = error_and_matrix(kind)
    record = record_of(linear(model(1.0)), observing, 5, sites=Sites.every(2))
    net = network(zero=True)
    outputs, _ = run(DataAssimilationNetwork(net), record)
    h = IDENTITY[::2]
    for k in range(1, 5):
        forecast = outputs["forecast"][:, k]
        innovation = record.observation[:, k, ::2] - forecast @ h.T
        zeta = innovation @ torch.linalg.inv(h @ r @ h.T) @ h
        assert_close(outputs["analysis"][:, k], forecast + net.alpha * zeta, rtol=1e-13, atol=1e-13)


def test_memory_is_carried_from_cycle_to_cycle():
    record, net = lorenz96_record(4), network(memory=2)
    outputs, _ = run(DataAssimilationNetwork(net), record)
    memory = None
    for k in range(1, 4):
        forecast = outputs["forecast"][:, k]
        analysis, memory = net(forecast, record.observation[:, k] - forecast, memory)
        assert_close(outputs["analysis"][:, k], analysis, rtol=1e-12, atol=1e-12)


# --- the loop ---


def assert_same_bits(one: torch.Tensor, other: torch.Tensor) -> None:
    assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# Optimal interpolation forgets its analysis; a few particles without model noise do not move.
MOVING = [name for name in METHODS if name not in ("optimal-interpolation", "particle")]


@pytest.mark.parametrize("name", MOVING)
def test_forecast_comes_before_the_analysis(name):
    record = lorenz96_record(6, steps=lambda k: (0, 1, 3, 2, 1, 2)[k])
    method = METHODS[name]().prepare(record)
    outputs, _ = run(method, record, members=True)
    before, after = ("forecast_members", "members") if method.ensemble else ("forecast", "analysis")
    for k in range(1, 6):
        expected = record.dynamics.advance(outputs[after][:, k - 1], record.steps[k])
        assert torch.equal(outputs[before][:, k], expected)
    assert (outputs["analysis"] - outputs["forecast"]).abs().flatten(2).amax(2).min() > 1e-3


@pytest.mark.parametrize("name", MOVING)
def test_analyses_are_drawn_to_the_observations_of_their_own_time(name):
    record = lorenz96_record()
    method = METHODS[name]().prepare(record)
    moved = record.observation.clone()
    moved[:, 7] += 0.5
    shifted = Record(record.dynamics, record.observing, moved, record.steps, record.trajectory, 1)
    one, other = (run(method, r)[0] for r in (record, shifted))
    assert torch.equal(one["analysis"][:, :7], other["analysis"][:, :7])
    assert torch.equal(one["forecast"][:, :8], other["forecast"][:, :8])
    assert (other["analysis"] - one["analysis"])[:, 7].mean() > 0.01


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cuts", [pytest.param((5,), marks=pytest.mark.slow), (1, 2, 9)])
def test_a_record_in_blocks_gives_what_the_whole_gives(name, cuts):
    record = lorenz96_record(steps=lambda k: (1 + k % 3) if k else 0, sites=Sites.random(3, 8))
    method = METHODS[name]().prepare(record)
    whole, end = run(method, record)
    state, parts = None, []
    for low, high in zip((0, *cuts), (*cuts, 12), strict=True):
        block = Record(
            record.dynamics,
            record.observing,
            record.observation[:, low:high],
            record.steps[low:high],
            record.trajectory,
            1,
        )
        outputs, state = run(method, block, state)
        parts.append(outputs)
    assert whole.keys() == parts[0].keys()
    for key, value in whole.items():
        assert_same_bits(torch.cat([part[key] for part in parts], 1), value)
    for key, value in end.items():
        assert_same_bits(state[key], value)


@pytest.mark.parametrize("name", METHODS)
def test_outputs_are_those_that_the_method_announces(name):
    record = lorenz96_record(5)
    method = METHODS[name]().prepare(record)
    outputs, _ = run(method, record)
    places = {output.name: output.place for output in method.outputs}
    assert outputs.keys() == {"forecast", "analysis", "diverged", *places}
    for key, value in outputs.items():
        per_site = places.get(key, "cycle" if key == "diverged" else "state") == "state"
        assert value.shape == ((2, 5, 8) if per_site else (2, 5))


def explosive() -> CustomDynamics:
    """Calm below 50, cubic growth above: one wild observation sends a lane to infinity."""
    return CustomDynamics(
        step=lambda x: torch.where(x.abs() < 50, 0.9 * x.roll(1, -1) + 0.5, x**3),
        state={"x": SITES},
        timestep=1.0,
        spin_up_time=0.0,
        distance=lambda a, b: (a - b).abs(),
    )


# Lost at the next forecast. The others run the model inside the analysis, and may break down in it or see the wall.
SIMPLE = [
    name
    for name in MOVING
    if name.split("-")[0] not in ("ienkf", "ienks", "iterated", "4d", "eda", "optimal", "ienkf bundle", "es")
]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("sites", "row"), [(Sites.all(), 1), (Sites.every(2), 0)])
def test_a_diverging_trajectory_is_flagged_and_harms_no_other(name, sites, row):
    observing, _ = error_and_matrix("scalar")
    calm = record_of(explosive(), observing, 12, lanes=4, sites=sites)
    wild = calm.observation.clone()
    wild[row, 4] += 5000.0
    record = Record(calm.dynamics, observing, wild, calm.steps, calm.trajectory, 1)
    method, rest = METHODS[name](), [k for k in range(4) if k != row]
    if hasattr(method, "spin_up"):
        method.spin_up = 3
    method = method.prepare(calm)
    outputs, _ = run(method, record)
    lost = outputs["diverged"]
    assert not lost[rest].any()
    if name in SIMPLE:
        assert lost[row].tolist() == [False] * 5 + [True] * 7
    assert not lost[row, :4].any()
    assert (lost[row].diff().int() >= 0).all()
    reference, _ = run(method, calm)
    # An iteration goes on with the trajectories that need it: the size of a batched product, and its rounding, change.
    rounding = {"rtol": 1e-10, "atol": 1e-11} if name.startswith(("ienk", "iter")) else {"rtol": 0, "atol": 0}
    for key, value in outputs.items():
        if key != "diverged":
            assert value[row, lost[row]].isnan().all()
            assert_same_bits(value[row, :4], reference[key][row, :4])
            assert value[row, 4:][~lost[row, 4:]].isfinite().all()
            assert_close(value[rest], reference[key][rest], **rounding, equal_nan=True)


def test_a_lost_trajectory_stays_lost_when_another_is_lost():
    observing, _ = error_and_matrix("scalar")
    calm = record_of(explosive(), observing, 8, lanes=3)
    wild = calm.observation.clone()
    wild[1, 2] += 5000.0
    wild[2, 4] += 5000.0
    record = Record(calm.dynamics, observing, wild, calm.steps, calm.trajectory, 1)
    outputs, _ = run(ThreeDVar(scale=0.1).prepare(calm), record)
    assert outputs["diverged"].sum(1).tolist() == [0, 5, 3]


def test_a_lost_trajectory_stays_lost_in_the_next_block():
    observing, _ = error_and_matrix("scalar")
    calm = record_of(explosive(), observing, 8)
    wild = calm.observation.clone()
    wild[1, 2] += 5000.0
    method = ThreeDVar(scale=0.1).prepare(calm)
    first = Record(calm.dynamics, observing, wild[:, :5], calm.steps[:5], calm.trajectory, 1)
    second = Record(calm.dynamics, observing, wild[:, 5:], calm.steps[5:], calm.trajectory, 1)
    outputs, _ = run(method, second, run(method, first)[1])
    assert outputs["diverged"].tolist() == [[False] * 3, [True] * 3]
    assert outputs["analysis"][1].isnan().all()


def test_an_analysis_that_diverges_is_flagged_in_its_own_cycle():
    observing, _ = error_and_matrix("scalar")
    calm = record_of(explosive(), observing, 4)
    wild = calm.observation.clone()
    wild[1, 2, 0] = 1e12
    record = Record(calm.dynamics, observing, wild, calm.steps, calm.trajectory, 1)
    outputs, _ = run(ThreeDVar(scale=0.1).prepare(calm), record)
    assert outputs["diverged"].tolist() == [[False] * 4, [False, False, True, True]]


@pytest.mark.parametrize("name", METHODS)
def test_trajectories_do_not_know_of_each_other(name):
    record = lorenz96_record(8, lanes=4, sites=Sites.random(3, 8))
    method = METHODS[name]().prepare(record)
    rows = [3, 1]
    observation, trajectory = record.observation[rows], record.trajectory[rows]
    some = Record(record.dynamics, record.observing, observation, record.steps, trajectory, 1)
    whole, part = run(method, record)[0], run(method, some)[0]
    for key, value in part.items():
        assert_close(value, whole[key][rows], rtol=1e-9, atol=1e-9, equal_nan=True)


def test_nothing_observed_leaves_the_forecast():
    record = lorenz96_record(4)
    blind = record.observation.clone()
    blind[:, 1:] = torch.nan
    record = Record(record.dynamics, record.observing, blind, record.steps, record.trajectory, 1)
    for method in (
        FiniteSizeEnKF(5),
        ThreeDVar(scale=0.1).prepare(record),
        DataAssimilationNetwork(network(zero=True)),
    ):
        outputs, _ = run(method, record)
        assert_close(outputs["analysis"][:, 1:], outputs["forecast"][:, 1:], rtol=1e-9, atol=1e-9)


def test_a_method_is_made_by_its_name():
    method = method_by_name("enkf-n", members=7, capped=False)
    assert isinstance(method, FiniteSizeEnKF)
    assert method.config() == {"members": 7, "capped": False, "form": "dual"}


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"'5d-var' is unknown.*3d-var.*enkf-n"):
        method_by_name("5d-var")


def test_an_unknown_parameter_of_a_method_is_refused():
    with pytest.raises(ValueError, match=r"'enkf-n'.*inflation"):
        method_by_name("enkf-n", inflation=1.02)
