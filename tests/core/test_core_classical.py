"""Classical methods against the Kalman filter, finite differences and each other."""

import math

import pytest
import torch
from test_core_methods import (
    DOUBLE,
    IDENTITY,
    KINDS,
    SITES,
    error_and_matrix,
    kalman_analysis,
    linear,
    lorenz96_record,
    model,
    normals,
    record_of,
)
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.methods import Method, Record, State, method_by_name, run
from xdan.core.methods.ensemble import InverseRoot, rotation
from xdan.core.methods.local import gaspari_cohn
from xdan.core.methods.minimisers import Window, gauss_newton, l_bfgs
from xdan.core.observing import ErrorCovariance, Sites

# Exactly the Kalman filter of their own members' moments on linear dynamics, as long as members span the state.
DETERMINISTIC = {
    "etkf": {"inflation": 1.0, "spin_up": 0},
    "etkf rotated": {"inflation": 1.0, "rotate": True, "spin_up": 0},
    "letkf": {"inflation": 1.0, "radius": 1e9, "spin_up": 0},
    "ienkf": {},
    "ienkf bundle": {"variant": "bundle"},
    "ienks": {"lag": 3},
}


def everywhere(matrix: torch.Tensor) -> CustomDynamics:
    return CustomDynamics(
        step=lambda x: x @ matrix.T,
        state={"x": SITES},
        timestep=1.0,
        spin_up_time=0.0,
        distance=lambda a, b: (a - b).abs(),
    )


def moments_after_first(outputs, record: Record, matrix: torch.Tensor, r: torch.Tensor, lane: int):
    """Textbook analyses and covariances after the first, from the moments of the members at the first."""
    members = outputs["members"][lane, 0]
    rest = Record(record.dynamics, record.error, record.observation[:, 1:], record.steps[1:], record.trajectory, 1)
    return moments(rest, matrix, r, lane, members.mean(0), torch.cov(members.T))


def moments(record: Record, matrix: torch.Tensor, r: torch.Tensor, lane: int, mean: torch.Tensor, p: torch.Tensor):
    """Textbook analyses and covariances of a lane from given moments before the first."""
    means, covariances = [], []
    for k, steps in enumerate(record.steps):
        for _ in range(steps):
            mean, p = matrix @ mean, matrix @ p @ matrix.T
        y = record.observation[lane, k]
        mean, p = kalman_analysis(mean, p, y, ~y.isnan(), r)
        means.append(mean)
        covariances.append(p)
    return torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [Sites.all(), Sites.random(1, 3)])
def test_kalman_filter_is_the_textbook_one(kind, sites):
    matrix, (error, r) = model(), error_and_matrix(kind)
    record = record_of(linear(matrix), error, 15, sites=sites)
    for name in ("kalman", "extended-kalman"):
        method = method_by_name(name, inflation=1.0).prepare(record)
        start = method.start(record)
        outputs, _ = run(method, record)
        for lane in range(2):
            means, covariances = moments(record, matrix, r, lane, start["x"][lane], start["covariance"][lane])
            assert_close(outputs["analysis"][lane], means, rtol=1e-8, atol=1e-9)
            spread = covariances.diagonal(dim1=1, dim2=2).sqrt()
            assert_close(outputs["spread"][lane], spread, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [Sites.all(), Sites.random(1, 3)])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_ensembles_are_the_kalman_filter_of_their_moments(name, kind, sites):
    if name == "letkf" and kind == "full":
        pytest.skip("refused, as tested below")
    matrix, (error, r) = model(), error_and_matrix(kind)
    record = record_of(everywhere(matrix), error, 8, sites=sites, steps=lambda k: (1 + k % 2) if k else 0)
    method = method_by_name(name.split()[0], members=9, **DETERMINISTIC[name]).prepare(record)
    outputs, _ = run(method, record, members=True)
    accuracy = 2e-4 if "bundle" in name else 1e-7
    for lane in range(2):
        means, covariances = moments_after_first(outputs, record, matrix, r, lane)
        assert_close(outputs["analysis"][lane, 1:], means, rtol=accuracy, atol=accuracy)
        found = torch.stack([torch.cov(e.T) for e in outputs["members"][lane, 1:]])
        assert_close(found, covariances, rtol=accuracy, atol=accuracy)


def test_smoother_is_the_rauch_tung_striebel_one():
    # With a lag of one: E[x_{k-1} | y_1..k], from the joint Gaussian of both times.
    matrix, (error, r) = model(), error_and_matrix("full")
    record = record_of(linear(matrix), error, 6)
    method = method_by_name("ienks", members=9, lag=1).prepare(record)
    outputs, _ = run(method, record, members=True)
    means, covariances = moments_after_first(outputs, record, matrix, r, 0)
    for k in range(2, 6):
        before, q = means[k - 2], covariances[k - 2]
        gain = q @ matrix.T @ torch.linalg.inv(matrix @ q @ matrix.T + r)
        expected = before + gain @ (record.observation[0, k] - matrix @ before)
        assert_close(outputs["smoothed"][0, k], expected, rtol=1e-7, atol=1e-8)
    assert outputs["smoothed"][:, 0].isnan().all()


def test_stochastic_enkf_converges_like_one_over_the_root_of_the_members():
    error, _ = error_and_matrix("scalar")
    record = record_of(linear(model()), error, 30, lanes=8)
    method = method_by_name("kalman").prepare(record)
    exact, _ = run(method, record)
    distance = []
    for members in (50, 800):
        outputs, _ = run(method_by_name("enkf", members=members, inflation=1.0).prepare(record), record)
        distance.append(float((outputs["analysis"] - exact["analysis"])[:, 15:].square().mean().sqrt()))
    # Sixteen times the members: a quarter of the distance.
    assert 2.5 < distance[0] / distance[1] < 6.5


@pytest.mark.parametrize("name", ["particle", "optimal-particle"])
def test_particle_filters_converge_to_the_kalman_filter_with_model_noise(name):
    growth, noise, sigma = 0.9, 0.4, 0.7
    dynamics = CustomDynamics(step=lambda x: growth * x, state={"x": 1}, timestep=1.0, spin_up_time=0.0)
    error = ErrorCovariance(std=DOUBLE + sigma)
    record = record_of(dynamics, error, 12, lanes=4)
    method = method_by_name(name, members=20_000, noise=noise).prepare(record)
    outputs, _ = run(method, record)
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for k in range(12):
        if k:
            mean, variance = growth * mean, growth**2 * variance + noise**2
        gain = variance / (variance + sigma**2)
        mean, variance = mean + gain * (record.observation[:, k, 0] - mean), (1 - gain) * variance
        assert_close(outputs["analysis"][:, k, 0], mean, rtol=0, atol=0.03)
        assert_close(outputs["spread"][:, k, 0], variance.sqrt(), rtol=0.05, atol=0)


def test_optimal_proposal_keeps_more_particles():
    record = record_of(Lorenz96(8), ErrorCovariance(std=DOUBLE + 0.5), 20)
    sizes = [
        run(method_by_name(name, members=200, noise=0.5).prepare(record), record)[0]["effective_sample_size"].mean()
        for name in ("particle", "optimal-particle")
    ]
    assert sizes[1] > 1.3 * sizes[0]


# --- 4D-Var ---


@pytest.mark.parametrize("minimise", [gauss_newton, l_bfgs])
@pytest.mark.parametrize("kind", KINDS)
def test_4d_var_on_linear_dynamics_is_the_least_squares_solution(minimise, kind):
    matrix, (error, r) = model(), error_and_matrix(kind)
    observation = normals(2, 3, SITES)
    observation[0, 1, 2] = torch.nan
    background, root = normals(2, SITES, seed=3), torch.linalg.cholesky(IDENTITY + 0.3)
    window = Window(linear(matrix), error, observation, (0, 1, 2))
    found = minimise(window, background, root, 1e-9, 200)
    assert not found.unconverged.any()
    for lane in range(2):
        normal_matrix = torch.linalg.inv(root @ root.T)
        right = normal_matrix @ background[lane]
        power = IDENTITY
        for k, steps in enumerate((0, 1, 2)):
            power = torch.linalg.matrix_power(matrix, steps) @ power
            h = IDENTITY[~observation[lane, k].isnan()]
            weight = power.T @ h.T @ torch.linalg.inv(h @ r @ h.T) @ h
            normal_matrix = normal_matrix + weight @ power
            right = right + weight @ observation[lane, k].nan_to_num(0.0)
        assert_close(found.x[lane], torch.linalg.solve(normal_matrix, right), rtol=1e-6, atol=1e-6)


def test_both_solvers_of_4d_var_find_the_same_minimum():
    record = lorenz96_record(10)
    outputs = [
        run(
            method_by_name("4d-var", window=3, scale=0.1, solver=solver, tolerance=1e-7, iterations=200).prepare(
                record
            ),
            record,
        )[0]
        for solver in ("gauss-newton", "l-bfgs")
    ]
    assert_close(outputs[0]["analysis"], outputs[1]["analysis"], rtol=1e-4, atol=1e-4)


def test_4d_var_of_one_interval_sees_the_model_between():
    record = lorenz96_record(30, lanes=8)
    errors = []
    for name, parameters in (("3d-var", {"scale": 0.05}), ("4d-var", {"window": 4, "scale": 0.05})):
        outputs, _ = run(method_by_name(name, **parameters).prepare(record), record)
        errors.append((outputs["analysis"] - record.truth)[:, 10:].square().mean().sqrt())
    assert errors[1] < errors[0]


# --- localisation ---


def test_gaspari_cohn_is_the_self_convolution_of_a_hat():
    # Their function is the convolution over R^3 of the hat 1 - r / c, r < c, with itself, normalised.
    c = 1.0
    s = torch.linspace(-1.0, 1.0, 121, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(s, s, s, indexing="ij"), -1)

    def hat(points: torch.Tensor) -> torch.Tensor:
        return (1 - points.norm(dim=-1) / c).clamp_min(0.0)

    whole = (hat(grid) ** 2).sum()
    for distance in (0.0, 0.3, 0.9, 1.2, 1.7):
        shift = torch.tensor([distance, 0.0, 0.0], dtype=torch.float64)
        expected = (hat(grid) * hat(grid - shift)).sum() / whole
        # The hat of half the width: zero from twice `radius`, which is twice its own width.
        found = gaspari_cohn(torch.tensor(distance, dtype=torch.float64), c)
        assert float(found) == pytest.approx(float(expected), abs=2e-3)
    assert float(gaspari_cohn(torch.tensor(2.0), 1.0)) == 0.0
    assert float(gaspari_cohn(torch.tensor(1.0), 1.0)) == pytest.approx(5 / 24)


def test_letkf_does_not_look_beyond_twice_its_radius():
    record = lorenz96_record(2)
    method = method_by_name("letkf", members=5, radius=1.2).prepare(record)
    moved = record.observation.clone()
    moved[:, 1, 0] += 3.0
    shifted = Record(record.dynamics, record.error, moved, record.steps, record.trajectory, 1)
    change = (run(method, shifted)[0]["analysis"] - run(method, record)[0]["analysis"])[:, 1].abs().amax(0)
    assert (change[[0, 1, 2, 6, 7]] > 0).all()
    assert not change[3:6].any()


# --- covariance from the state ---


def test_state_covariance_a2_on_linear_dynamics_is_the_kalman_filters_own():
    # A past as long as the record, from epsilon^2 I at its beginning: the Kalman filter of that prior.
    matrix, (error, r) = model(), error_and_matrix("full")
    cycles = 6
    record = record_of(linear(matrix), error, cycles)
    method = method_by_name("state-covariance", depth=cycles, epsilon=1.5, inflation=1.0).prepare(record)
    start = method.start(record)["x"]
    outputs, _ = run(method, record)
    means, covariances = moments(record, matrix, r, 0, start[0], 2.25 * IDENTITY)
    assert_close(outputs["analysis"][0], means, rtol=1e-9, atol=1e-9)
    spread = covariances.diagonal(dim1=1, dim2=2).sqrt()
    assert_close(outputs["spread"][0], spread, rtol=1e-9, atol=1e-9)


def test_the_past_of_the_dynamics_is_that_of_the_analyses_where_nothing_is_corrected():
    record = lorenz96_record(5)
    blind = record.observation.clone()
    blind[:, 1:4] = torch.nan
    record = Record(record.dynamics, record.error, blind, record.steps, record.trajectory, 1)
    found = [
        run(method_by_name("state-covariance", depth=3, inflation=1.0, past=past).prepare(record), record)[0]
        for past in ("analyses", "dynamics")
    ]
    assert_close(found[0]["analysis"], found[1]["analysis"], rtol=1e-4, atol=1e-4)


# --- gradients ---

DIFFERENTIABLE = {
    "etkf": {"members": 4, "inflation": 1.1, "spin_up": 0},
    "etkf in its spin-up": {"members": 4},
    "etkf rotated": {"members": 4, "rotate": True},
    "enkf": {"members": 4},
    "enkf-n": {"members": 4},
    "enkf-n uncapped": {"members": 4, "capped": False},
    "enkf-n primal": {"members": 4, "form": "primal"},
    "letkf": {"members": 4, "radius": 1.5, "spin_up": 0},
    "letkf in its spin-up": {"members": 4, "radius": 1.5},
    "enkf after its spin-up": {"members": 4, "spin_up": 0},
    "ienkf": {"members": 4, "tolerance": 1e-12, "iterations": 40},
    "ienkf-n": {"members": 4, "tolerance": 1e-13, "iterations": 80},
    "ienks": {"members": 4, "lag": 2, "tolerance": 1e-12, "iterations": 40},
    "ienks bundle": {"members": 4, "lag": 2, "variant": "bundle", "tolerance": 1e-12, "iterations": 40},
    "3d-var": {"scale": 0.2},
    "optimal-interpolation": {},
    "optimal-particle": {"members": 4, "threshold": 0.0},
    "extended-kalman": {"inflation": 1.1},
    "4d-var": {"window": 2, "scale": 0.1, "tolerance": 1e-12, "iterations": 60},
    "state-covariance": {"depth": 2, "inflation": 1.0},
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_through_a_cycle_is_the_finite_difference(name):
    record = record_of(Lorenz96(5), ErrorCovariance(std=DOUBLE + 0.6), 3, lanes=1)
    method = method_by_name(name.split()[0], **DIFFERENTIABLE[name]).prepare(record)
    _, begin = run(method, record)

    # What the analysis starts from: the state, but for a window's the state at its start.
    source = "begin" if name.split()[0] in ("4d-var", "ienks") else "x"

    def analysis(x: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        state: State = {**begin, source: x}
        state = method.forecast(state, record.dynamics, 1)
        observed = torch.ones_like(observation, dtype=torch.bool)
        after = method.analyse(state, observation, observed, record.error)
        return method.mean(after) + (after["x"].square().mean(1) if method.ensemble else 0.0)

    x, y = begin[source].clone(), record.observation[:, 2] + 2.0
    weights = normals(1, 5, seed=4)
    leaves = [x.requires_grad_(), y.requires_grad_()]
    # Optimal interpolation forgets the state.
    gradients = torch.autograd.grad((weights * analysis(*leaves)).sum(), leaves, materialize_grads=True)
    for index, gradient in enumerate(gradients):
        direction = normals(*gradient.shape, seed=7)
        h = 1e-5
        ends = []
        for sign in (1, -1):
            moved = [leaf.detach() + (sign * h * direction if i == index else 0) for i, leaf in enumerate(leaves)]
            with torch.no_grad():
                ends.append((weights * analysis(*moved)).sum())
        expected = (ends[0] - ends[1]) / (2 * h)
        found = (gradient * direction).sum()
        assert float(found) == pytest.approx(float(expected), rel=2e-5, abs=1e-7)


def test_inverse_root_has_a_gradient_where_eigenvalues_are_equal():
    p = torch.diag(torch.tensor([2.0, 2.0, 2.0, 5.0], dtype=torch.float64))

    def root(half: torch.Tensor) -> torch.Tensor:
        full = p + half + half.T
        return InverseRoot.apply(full, *torch.linalg.eigh(full.detach()))

    assert torch.autograd.gradcheck(root, [torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)])


def test_rotations_are_orthogonal_and_keep_the_mean():
    q = rotation(normals(3, 5, 5))
    assert_close(q @ q.mT, torch.eye(6, dtype=torch.float64).expand(3, 6, 6), rtol=0, atol=1e-12)
    assert_close(q.sum(1), torch.ones(3, 6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (q - torch.eye(6)).abs().max() > 0.1


# --- what each method is for ---


def rmse(method: Method, record: Record, burn_in: int) -> float:
    error = (run(method, record)[0]["analysis"] - record.truth)[:, burn_in:]
    return float(error.square().mean(-1).sqrt().mean())


def test_iterations_help_where_the_dynamics_is_nonlinear():
    record = record_of(Lorenz96(10), ErrorCovariance(std=DOUBLE + 1.0), 60, lanes=8, steps=lambda k: 8 * (k > 0))
    assert rmse(method_by_name("ienkf-n", members=12).prepare(record), record, 20) < 0.85 * rmse(
        method_by_name("enkf-n", members=12).prepare(record), record, 20
    )


def test_a_longer_lag_helps_the_smoother():
    record = record_of(Lorenz96(10), ErrorCovariance(std=DOUBLE + 1.0), 100, lanes=8)
    outputs, _ = run(method_by_name("ienks-n", members=12, lag=5).prepare(record), record)
    filtered = (outputs["analysis"] - record.truth)[:, 45:95].square().mean().sqrt()
    smoothed = (outputs["smoothed"][:, 50:] - record.truth[:, 45:95]).square().mean().sqrt()
    assert smoothed < 0.8 * filtered


def test_the_spin_up_finds_the_truth_from_the_climatology():
    record = record_of(Lorenz96(40), ErrorCovariance(std=DOUBLE + 1.0), 220, lanes=8)
    errors = [
        rmse(method_by_name("etkf", members=18, inflation=1.03, spin_up=cycles).prepare(record), record, 120)
        for cycles in (0, 100)
    ]
    assert errors[1] < 0.5
    assert errors[1] < 0.7 * errors[0]


# --- tuning ---


@pytest.mark.parametrize("tune_on", ["innovation", "truth"])
def test_the_tuned_inflation_is_the_best_of_those_tried(tune_on):
    record = record_of(Lorenz96(10), ErrorCovariance(std=DOUBLE + 1.0), 120, lanes=4)
    asked = method_by_name("etkf", members=5, inflation="tune", tune_on=tune_on)
    ready = asked.prepare(record)
    tuned = ready.tuned()
    curve = torch.from_numpy(tuned["innovation_score" if tune_on == "innovation" else "truth_rmse"][1])
    candidates = tuned["candidate_inflation"][1]
    assert tuned["tuned_inflation"][1] == pytest.approx(candidates[int(curve.argmin())])
    assert ready.parameters()["inflation"] == "tune"
    # What a run with that number gives, and what one without inflation loses.
    number = float(tuned["tuned_inflation"][1])
    plain = run(method_by_name("etkf", members=5, inflation=number).prepare(record), record)[0]
    assert torch.equal(run(ready, record)[0]["analysis"], plain["analysis"])
    assert curve.min() < curve[0]
    shapes = {name: values[1] for name, values in asked.tuned_shapes().items()}
    assert shapes == {name: torch.as_tensor(values[1]).shape for name, values in tuned.items()}


def test_tuning_of_two_parameters_tries_their_product():
    record = record_of(Lorenz96(8), ErrorCovariance(std=DOUBLE + 1.0), 40, lanes=2)
    tuned = method_by_name("letkf", members=4, radius="tune", inflation="tune").prepare(record).tuned()
    assert tuned["innovation_score"][1].shape == (
        len(tuned["candidate_radius"][1]),
        len(tuned["candidate_inflation"][1]),
    )


def test_tuning_on_the_truth_needs_it():
    record = lorenz96_record(12)
    blind = Record(record.dynamics, record.error, record.observation, record.steps, record.trajectory, 1)
    with pytest.raises(ValueError, match=r"tune_on=.truth.*no truth"):
        method_by_name("etkf", members=4, inflation="tune", tune_on="truth").prepare(blind)


def test_tuning_without_observations_says_so():
    record = lorenz96_record(12)
    blind = torch.full_like(record.observation, math.nan)
    record = Record(record.dynamics, record.error, blind, record.steps, record.trajectory, 1)
    with pytest.raises(ValueError, match=r"finite score.*nothing is observed"):
        method_by_name("etkf", members=4, inflation="tune").prepare(record)


def test_a_method_to_be_tuned_must_be_prepared():
    with pytest.raises(RuntimeError, match=r"call prepare\(record\)"):
        method_by_name("etkf", inflation="tune").number("inflation")


# --- bad input and bad luck ---


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("etkf", {"members": 1}, "members=1: expected at least 2"),
        ("etkf", {"inflation": -0.1}, "inflation=-0.1: expected 'tune' or a positive finite number"),
        ("etkf", {"inflation": "best"}, "inflation='best'"),
        ("etkf", {"tune_on": "luck"}, "tune_on='luck': expected one of"),
        ("letkf", {"radius": 0}, "radius=0: expected 'tune' or a positive finite number"),
        ("ienks", {"lag": 0}, "lag=0: expected at least 1"),
        ("ienks", {"variant": "both"}, "variant='both': expected one of"),
        ("ienks", {"tolerance": 0.0}, "tolerance=0: expected a finite number, above 0"),
        ("ienks-n", {"inflation": 1.1}, "expected one of the two"),
        ("ienkf", {"lag": 2}, "lag=2: 'ienkf' has a lag of 1, expected no other; take 'ienks'"),
        ("enkf-n", {"form": "triple"}, "form='triple'"),
        ("4d-var", {"window": 0}, "window=0"),
        ("4d-var", {"scale": -1.0}, "scale=-1.0"),
        ("4d-var", {"solver": "adam"}, "solver='adam'"),
        ("eda", {"scale": "tune"}, "scale='tune' goes with '4d-var'"),
        ("particle", {"noise": -1.0}, "noise=-1: expected a finite number, at least 0"),
        ("state-covariance", {"algorithm": "A3"}, "algorithm='A3'"),
        ("state-covariance", {"depth": 0}, "depth=0"),
    ],
)
def test_parameters_out_of_range_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        method_by_name(name, **parameters)


@pytest.mark.parametrize(("name", "parameter"), [("ienks", "lag"), ("4d-var", "window")])
def test_a_window_longer_than_the_record_is_refused(name, parameter):
    with pytest.raises(ValueError, match=f"{parameter}=9: the record has 5 times"):
        method_by_name(name, **{parameter: 9}).prepare(lorenz96_record(5))


def test_localisation_needs_a_distance():
    record = record_of(linear(model()), ErrorCovariance(std=DOUBLE + 1.0), 3)
    with pytest.raises(ValueError, match="localisation needs a distance"):
        method_by_name("letkf", members=4).prepare(record)


def test_letkf_needs_a_diagonal_r():
    error, _ = error_and_matrix("full")
    with pytest.raises(ValueError, match="diagonal R"):
        method_by_name("letkf", members=4).prepare(record_of(linear(model()), error, 3))


def test_the_kalman_filter_refuses_nonlinear_dynamics():
    with pytest.raises(ValueError, match="needs a linear dynamics, and that of 'lorenz96' is not"):
        method_by_name("kalman").prepare(lorenz96_record(3))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ienkf", {"members": 5}),
        ("4d-var", {"window": 2, "scale": 0.1}),
        ("4d-var", {"window": 2, "scale": 0.1, "solver": "l-bfgs"}),
        ("eda", {"members": 3, "window": 2}),
    ],
)
def test_each_analysis_says_whether_it_converged(name, parameters):
    record = lorenz96_record(10, lanes=3, steps=lambda k: 4 * (k > 0))
    blind = record.observation.clone()
    blind[:, 5:] = torch.nan
    record = Record(record.dynamics, record.error, blind, record.steps, record.trajectory, 1)
    method = method_by_name(name, **parameters, iterations=2, tolerance=1e-9).prepare(record)
    outputs = run(method, record)[0]
    flags = outputs["unconverged"]
    assert flags[:, 2:5].eq(1).all()
    # Without observations in the window there is nothing to fit.
    assert flags[:, 8:].eq(0).all()
    assert (outputs["iterations"][:, 8:] <= 1).all()
