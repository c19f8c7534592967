"""Classical methods against the Kalman filter, finite differences and each other."""

import gc
import json
import math
import warnings
import weakref
from collections import OrderedDict
from dataclasses import replace

import numpy as np
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

from xdan.core.checks import XdanWarning
from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.methods import Method, Record, State, accepted_parameters, climate, method_by_name, run, tune
from xdan.core.methods.ensemble import InverseRoot, rotation
from xdan.core.methods.minimisers import Window, gauss_newton, l_bfgs
from xdan.core.methods.tuning import warn_at_an_end
from xdan.core.methods.variational import Static
from xdan.core.observing import FunctionOperator, ObservingSystem, Sites
from xdan.core.random import Purpose
from xdan.core.tapers import gaspari_cohn

# Exactly the Kalman filter of their own members' moments on linear dynamics, as long as members span the state.
DETERMINISTIC = {
    "etkf": {"inflation": 1.0, "spin_up": 0},
    "etkf rotated": {"inflation": 1.0, "rotate": True, "spin_up": 0},
    "letkf": {"inflation": 1.0, "radius": 1e9, "spin_up": 0},
    "eakf": {"inflation": 1.0, "spin_up": 0},
    "ensrf": {"inflation": 1.0, "spin_up": 0},
    "es-mda": {"inflation": 1.0, "spin_up": 0, "lag": 2, "steps": [4.0, 2.0, 4.0], "update": "deterministic"},
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
    rest = Record(record.dynamics, record.observing, record.observation[:, 1:], record.steps[1:], record.trajectory, 1)
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
    matrix, (observing, r) = model(), error_and_matrix(kind)
    record = record_of(linear(matrix), observing, 15, sites=sites)
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
    matrix, (observing, r) = model(), error_and_matrix(kind)
    record = record_of(everywhere(matrix), observing, 8, sites=sites, steps=lambda k: (1 + k % 2) if k else 0)
    method = method_by_name(name.split()[0], members=9, **DETERMINISTIC[name]).prepare(record)
    outputs, _ = run(method, record, members=True)
    accuracy = 2e-4 if "bundle" in name else 1e-7
    for lane in range(2):
        means, covariances = moments_after_first(outputs, record, matrix, r, lane)
        assert_close(outputs["analysis"][lane, 1:], means, rtol=accuracy, atol=accuracy)
        sample_covariances = torch.stack([torch.cov(e.T) for e in outputs["members"][lane, 1:]])
        assert_close(sample_covariances, covariances, rtol=accuracy, atol=accuracy)


def test_smoother_is_the_rauch_tung_striebel_one():
    # With a lag of one: E[x_{k-1} | y_1..k], from the joint Gaussian of both times.
    matrix, (observing, r) = model(), error_and_matrix("full")
    record = record_of(linear(matrix), observing, 6)
    method = method_by_name("ienks", members=9, lag=1).prepare(record)
    outputs, _ = run(method, record, members=True)
    means, covariances = moments_after_first(outputs, record, matrix, r, 0)
    for k in range(2, 6):
        before, q = means[k - 2], covariances[k - 2]
        gain = q @ matrix.T @ torch.linalg.inv(matrix @ q @ matrix.T + r)
        expected = before + gain @ (record.observation[0, k] - matrix @ before)
        assert_close(outputs["smoothed"][0, k], expected, rtol=1e-7, atol=1e-8)
    assert outputs["smoothed"][:, 0].isnan().all()


@pytest.mark.slow
def test_stochastic_enkf_converges_like_one_over_the_root_of_the_members():
    observing, _ = error_and_matrix("scalar")
    record = record_of(linear(model()), observing, 25, lanes=8)
    method = method_by_name("kalman").prepare(record)
    exact, _ = run(method, record)
    distance = []
    for members in (25, 400):
        outputs, _ = run(method_by_name("enkf", members=members, inflation=1.0).prepare(record), record)
        distance.append(float((outputs["analysis"] - exact["analysis"])[:, 15:].square().mean().sqrt()))
    # Sixteen times the members: a quarter of the distance.
    assert 2.5 < distance[0] / distance[1] < 6.5


@pytest.mark.parametrize("name", ["particle", "optimal-particle"])
@pytest.mark.slow
def test_particle_filters_converge_to_the_kalman_filter_with_model_noise(name):
    growth, noise, sigma = 0.9, 0.4, 0.7
    dynamics = CustomDynamics(step=lambda x: growth * x, state={"x": 1}, timestep=1.0, spin_up_time=0.0)
    observing = ObservingSystem(std=DOUBLE + sigma)
    record = record_of(dynamics, observing, 12, lanes=4)
    method = method_by_name(name, members=6_000, noise=noise).prepare(record)
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
    record = record_of(Lorenz96(8), ObservingSystem(std=DOUBLE + 0.5), 20)
    sizes = [
        run(method_by_name(name, members=200, noise=0.5).prepare(record), record)[0]["effective_sample_size"].mean()
        for name in ("particle", "optimal-particle")
    ]
    assert sizes[1] > 1.3 * sizes[0]


# --- 4D-Var ---


@pytest.mark.parametrize("minimise", [gauss_newton, l_bfgs])
@pytest.mark.parametrize("kind", KINDS)
def test_4d_var_on_linear_dynamics_is_the_least_squares_solution(minimise, kind):
    matrix, (observing, r) = model(), error_and_matrix(kind)
    observation = normals(2, 3, SITES)
    observation[0, 1, 2] = torch.nan
    background, root = normals(2, SITES, seed=3), torch.linalg.cholesky(IDENTITY + 0.3)
    window = Window(linear(matrix), observing, observation, (0, 1, 2))
    minimum = minimise(window, background, root, 1e-9, 200)
    assert not minimum.unconverged.any()
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
        assert_close(minimum.x[lane], torch.linalg.solve(normal_matrix, right), rtol=1e-6, atol=1e-6)


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
        correlation = gaspari_cohn(torch.tensor(distance, dtype=torch.float64), c)
        assert float(correlation) == pytest.approx(float(expected), abs=2e-3)
    assert float(gaspari_cohn(torch.tensor(2.0), 1.0)) == 0.0
    assert float(gaspari_cohn(torch.tensor(1.0), 1.0)) == pytest.approx(5 / 24)


def test_letkf_does_not_look_beyond_twice_its_radius():
    record = lorenz96_record(2)
    method = method_by_name("letkf", members=5, radius=1.2).prepare(record)
    moved = record.observation.clone()
    moved[:, 1, 0] += 3.0
    shifted = Record(record.dynamics, record.observing, moved, record.steps, record.trajectory, 1)
    change = (run(method, shifted)[0]["analysis"] - run(method, record)[0]["analysis"])[:, 1].abs().amax(0)
    assert (change[[0, 1, 2, 6, 7]] > 0).all()
    assert not change[3:6].any()


# --- covariance from the state ---


def test_state_covariance_a2_on_linear_dynamics_is_the_kalman_filters_own():
    # A past as long as the record, from epsilon^2 I at its beginning: the Kalman filter of that prior.
    matrix, (observing, r) = model(), error_and_matrix("full")
    cycles = 6
    record = record_of(linear(matrix), observing, cycles)
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
    record = Record(record.dynamics, record.observing, blind, record.steps, record.trajectory, 1)
    outputs = [
        run(method_by_name("state-covariance", depth=3, inflation=1.0, past=past).prepare(record), record)[0]
        for past in ("analyses", "dynamics")
    ]
    assert_close(outputs[0]["analysis"], outputs[1]["analysis"], rtol=1e-4, atol=1e-4)


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
    "second-order-kalman": {"c2": 8.0},
    "iterated-kalman-smoother": {"lag": 2, "c2": 8.0, "tolerance": 1e-12, "iterations": 40},
    "4d-var": {"window": 2, "scale": 0.1, "tolerance": 1e-12, "iterations": 60},
    "state-covariance": {"depth": 2, "inflation": 1.0},
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_through_a_cycle_is_the_finite_difference(name):
    record = record_of(Lorenz96(5), ObservingSystem(std=DOUBLE + 0.6), 3, lanes=1)
    method = method_by_name(name.split()[0], **DIFFERENTIABLE[name]).prepare(record)
    _, begin = run(method, record)

    # What the analysis starts from: the state, but for a window's the state at its start.
    source = "begin" if name.split()[0] in ("4d-var", "ienks", "iterated-kalman-smoother") else "x"

    def analysis(x: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        state: State = {**begin, source: x}
        state = method.forecast(state, record.dynamics, 1)
        observed = torch.ones_like(observation, dtype=torch.bool)
        after = method.analyse(state, observation, observed, record.observing)
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
        slope = (gradient * direction).sum()
        assert float(slope) == pytest.approx(float(expected), rel=2e-5, abs=1e-7)


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


def test_a_rotated_analysis_has_the_moments_of_the_other():
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(3, *shape, 6, generator=generator, dtype=torch.float64) for shape in ((5,), ()))
    observing = ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64))
    state = {"x": x, "label": torch.arange(3), "cycle": torch.ones(3, dtype=torch.int64)}
    ensembles = []
    for rotate in (False, True):
        method = method_by_name("enkf-n", members=5, rotate=rotate)
        method.seed = 0
        ensembles.append(method.analyse(state, y, torch.ones_like(y, dtype=torch.bool), observing)["x"])
    plain, turned = ensembles
    assert (plain - turned).abs().max() > 0.01
    torch.testing.assert_close(turned.mean(1), plain.mean(1))
    for one, other in zip(turned, plain, strict=True):
        torch.testing.assert_close(torch.cov(one.T), torch.cov(other.T))


def test_the_gain_of_a_mask_that_stays_is_solved_for_once(monkeypatch):
    b = torch.eye(4, dtype=torch.float64) + 0.3
    static = Static(torch.zeros(4, dtype=torch.float64), b, b, torch.ones((), dtype=torch.float64))
    observing = ObservingSystem(std=torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64))
    solve, solved = torch.linalg.solve, []
    monkeypatch.setattr(torch.linalg, "solve", lambda *args: solved.append(1) or solve(*args))
    x = torch.zeros(3, 4, dtype=torch.float64)
    masks = [torch.tensor(one).expand(3, 4) for one in ([True, False, True, False], [False, True, True, True])]
    for mask, count in ((masks[0], 1), (masks[0], 1), (masks[1], 2), (masks[1], 2), (masks[0], 3)):
        gain = static.gain(mask, observing, x)[0]
        assert len(solved) == count
        h = torch.eye(4, dtype=torch.float64)[mask[0]]
        r = torch.diag(observing.std[mask[0]] ** 2)
        expected = b @ h.T @ torch.linalg.inv(h @ b @ h.T + r)
        torch.testing.assert_close(gain[0][:, mask[0]], expected)
        assert (gain[0][:, ~mask[0]] == 0).all()


def test_iterations_help_where_the_dynamics_is_nonlinear():
    record = record_of(Lorenz96(10), ObservingSystem(std=DOUBLE + 1.0), 60, lanes=8, steps=lambda k: 8 * (k > 0))
    assert rmse(method_by_name("ienkf-n", members=12).prepare(record), record, 20) < 0.85 * rmse(
        method_by_name("enkf-n", members=12).prepare(record), record, 20
    )


def test_a_longer_lag_helps_the_smoother():
    record = record_of(Lorenz96(10), ObservingSystem(std=DOUBLE + 1.0), 100, lanes=8)
    outputs, _ = run(method_by_name("ienks-n", members=12, lag=5).prepare(record), record)
    filtered = (outputs["analysis"] - record.truth)[:, 45:95].square().mean().sqrt()
    smoothed = (outputs["smoothed"][:, 50:] - record.truth[:, 45:95]).square().mean().sqrt()
    assert smoothed < 0.8 * filtered


def test_the_spin_up_finds_the_truth_from_the_climatology():
    record = record_of(Lorenz96(40), ObservingSystem(std=DOUBLE + 1.0), 220, lanes=8)
    errors = [
        rmse(method_by_name("etkf", members=18, inflation=1.03, spin_up=cycles).prepare(record), record, 120)
        for cycles in (0, 100)
    ]
    assert errors[1] < 0.5
    assert errors[1] < 0.7 * errors[0]


# --- tuning ---


@pytest.mark.parametrize("tune_on", ["innovation", "truth"])
@pytest.mark.slow
def test_the_tuned_inflation_is_the_best_of_those_tried(tune_on):
    record = record_of(Lorenz96(10), ObservingSystem(std=DOUBLE + 1.0), 120, lanes=4)
    asked = method_by_name("etkf", members=5, inflation="tune", tune_on=tune_on)
    ready = tune(asked, record)
    tuned = ready.chosen()
    curve = torch.from_numpy(tuned["innovation_score" if tune_on == "innovation" else "truth_rmse"])
    candidates = tuned["candidate_inflation"]
    assert tuned["tuned_inflation"] == pytest.approx(candidates[int(curve.argmin())])
    assert ready.config()["inflation"] == "tune"
    # What a run with that number gives, and what one without inflation loses.
    number = float(tuned["tuned_inflation"])
    plain = run(method_by_name("etkf", members=5, inflation=number).prepare(record), record)[0]
    assert torch.equal(run(ready, record)[0]["analysis"], plain["analysis"])
    assert curve.min() < curve[0]
    shapes = {choice.name: choice.shape for choice in asked.choices}
    assert shapes == {name: np.shape(value) for name, value in tuned.items()}


def test_tuning_of_two_parameters_tries_their_product():
    record = record_of(Lorenz96(8), ObservingSystem(std=DOUBLE + 1.0), 40, lanes=2)
    tried = {"radius": [1.0, 2.0, 4.0], "inflation": [1.0, 1.1]}
    method = method_by_name("letkf", members=4, radius="tune", inflation="tune", candidates=tried)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XdanWarning)
        tuned = tune(method, record).chosen()
    assert tuned["innovation_score"].shape == (3, 2)
    best = np.unravel_index(tuned["innovation_score"].argmin(), (3, 2))
    assert (tuned["tuned_radius"], tuned["tuned_inflation"]) == tuple(
        tried[name][index] for name, index in zip(("radius", "inflation"), best, strict=True)
    )


def test_tuning_on_the_truth_needs_it():
    record = lorenz96_record(12)
    blind = Record(record.dynamics, record.observing, record.observation, record.steps, record.trajectory, 1)
    with pytest.raises(ValueError, match=r"tune_on=.truth.*no truth"):
        tune(method_by_name("etkf", members=4, inflation="tune", tune_on="truth"), blind)


def test_tuning_without_observations_says_so():
    record = lorenz96_record(12)
    blind = torch.full_like(record.observation, math.nan)
    record = Record(record.dynamics, record.observing, blind, record.steps, record.trajectory, 1)
    with pytest.raises(ValueError, match=r"finite score.*nothing is observed"):
        tune(method_by_name("etkf", members=4, inflation="tune"), record)


def test_a_method_to_be_tuned_must_be_tuned():
    with pytest.raises(RuntimeError, match=r"call tune\(method, record\)"):
        method_by_name("etkf", inflation="tune").number("inflation")


def lags(method: Method) -> dict[str, int]:
    return {output.name: output.lag for output in method.outputs if output.lag}


@pytest.mark.parametrize(("name", "lag"), [("ienks", {"lag": 4}), ("4d-var", {"window": 4, "scale": 0.1})])
def test_the_smoothed_state_is_that_of_its_lag(name, lag):
    record = record_of(Lorenz96(10), ObservingSystem(std=DOUBLE + 1.0), 60, lanes=4, steps=lambda k: 2 * (k > 0))
    method = method_by_name(name, **lag, **({"members": 14} if name == "ienks" else {})).prepare(record)
    assert lags(method) == {"smoothed": 4} | ({"smoothed_spread": 4} if name == "ienks" else {})
    smoothed = run(method, record)[0]["smoothed"]
    assert smoothed[:, :4].isnan().all()
    assert smoothed[:, 4:].isfinite().all()
    off = [(smoothed[:, 20:] - record.truth[:, 20 - k : 60 - k]).square().mean().sqrt() for k in range(8)]
    assert min(off[:4] + off[5:]) > 2 * off[4]


def test_other_methods_have_no_lag():
    assert lags(method_by_name("etkf")) == {}
    assert lags(method_by_name("ienkf-n")) == {"smoothed": 1, "smoothed_spread": 1}


# --- candidates ---


def tuned_on_ring(candidates=None, **parameters):
    record = record_of(Lorenz96(10), ObservingSystem(std=DOUBLE + 1.0), 60, lanes=2)
    return tune(method_by_name("etkf", members=6, inflation="tune", candidates=candidates, **parameters), record)


def test_candidates_come_from_the_caller_sorted():
    method = method_by_name("letkf", radius="tune", candidates={"radius": np.array([6.0, 2.0, 4.0, 2.0])})
    assert method.config()["candidates"] == {"radius": [2.0, 4.0, 6.0]}
    assert {choice.name: choice.shape for choice in method.choices}["candidate_radius"] == (3,)
    assert "candidates" not in method_by_name("letkf", radius="tune").config()
    json.dumps(method.config())


def test_tuning_tries_the_callers_candidates_only():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XdanWarning)
        tuned = tuned_on_ring({"inflation": [1.01, 1.05, 1.5]}).chosen()
    np.testing.assert_array_equal(tuned["candidate_inflation"], [1.01, 1.05, 1.5])
    assert tuned["tuned_inflation"] in (1.01, 1.05, 1.5)
    assert tuned["innovation_score"].shape == (3,)


def test_an_end_of_the_candidates_warns():
    with pytest.warns(XdanWarning, match=r"tuning inflation of 'etkf' chose 1.6, an end .*smaller.*candidates="):
        tuned_on_ring({"inflation": [1.6, 1.8, 2.0]})


def test_no_inflation_at_all_is_a_natural_end():
    method = method_by_name("etkf", inflation="tune", candidates={"inflation": [1.0, 1.1]})
    warn_at_an_end(method, "inflation", 1.0)
    with pytest.warns(XdanWarning, match="chose 1.1"):
        warn_at_an_end(method, "inflation", 1.1)
    shrinking = method_by_name("state-covariance", inflation="tune", candidates={"inflation": [1.0, 1.1]})
    with pytest.warns(XdanWarning, match="smaller"):
        warn_at_an_end(shrinking, "inflation", 1.0)


@pytest.mark.parametrize(("name", "parameters"), [("3d-var", {}), ("4d-var", {"window": 2})])
def test_a_scale_is_one_of_the_callers(name, parameters):
    record = lorenz96_record(40)
    method = method_by_name(name, **parameters, scale="tune", candidates={"scale": [1e-3, 3e-3]})
    with pytest.warns(XdanWarning, match="tuning scale of .*larger"):
        ready = tune(method, record)
    tuned = ready.chosen()
    chosen = tuned["background_scale" if name == "3d-var" else "tuned_scale"]
    assert float(chosen) == 3e-3
    np.testing.assert_array_equal(tuned["candidate_scale"], [1e-3, 3e-3])
    shapes = {choice.name: choice.shape for choice in method.choices if -1 not in choice.shape}
    assert shapes == {key: np.shape(tuned[key]) for key in shapes}
    assert ready.config()["candidates"] == {"scale": [1e-3, 3e-3]}


@pytest.mark.parametrize(
    ("parameters", "candidates", "kind", "message"),
    [
        ({"inflation": "tune"}, [1.0, 1.1], TypeError, "expected a mapping"),
        ({"inflation": "tune"}, {"radius": [1.0, 2.0]}, ValueError, r"those are \['inflation'\]"),
        ({"inflation": 1.1}, {"inflation": [1.0, 1.1]}, ValueError, r"candidates of \['inflation'\]: expected"),
        ({"inflation": "tune"}, {"inflation": [1.1, 1.1]}, ValueError, "expected at least 2 distinct"),
        ({"inflation": "tune"}, {"inflation": [1.1, math.nan]}, ValueError, "expected a finite number, above 0"),
        ({"inflation": "tune"}, {"inflation": [0.0, 1.0]}, ValueError, "expected a finite number, above 0"),
        ({"inflation": "tune"}, {"inflation": "1.0"}, TypeError, "expected a list of numbers"),
        ({"inflation": "tune"}, {"inflation": np.array(1.0)}, TypeError, "expected a list of numbers"),
        ({"inflation": "tune"}, {"inflation": 3}, TypeError, "expected a list of numbers"),
        ({"inflation": "tune"}, {"inflation": [1.0, True]}, TypeError, "expected a number"),
    ],
)
def test_candidates_that_are_none_are_refused(parameters, candidates, kind, message):
    with pytest.raises(kind, match=message):
        method_by_name("etkf", **parameters, candidates=candidates)


# --- bad input and bad luck ---


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("etkf", {"members": 2.0}, "members=2.0: expected an integer"),
        ("etkf", {"members": True}, "members=True: expected an integer"),
        ("etkf", {"inflation": np.ones(3)}, "inflation=.*expected 'tune' or a positive finite number"),
        ("etkf", {"inflation": None}, "inflation=None: expected 'tune'"),
        ("etkf", {"rotate": 1}, "rotate=1: expected True or False"),
        ("etkf", {"spin_up": 1.5}, "spin_up=1.5: expected an integer"),
        ("etkf", {"tune_on": {}}, "tune_on={}: expected one of"),
        ("enkf-n", {"capped": "False"}, "capped='False': expected True or False"),
        ("enkf-n", {"form": ["dual"]}, "form=.*expected one of"),
        ("ienks", {"lag": "2"}, "lag='2': expected an integer"),
        ("ienks", {"finite_size": "no"}, "finite_size='no': expected True or False"),
        ("ienks", {"tolerance": ""}, "tolerance='': expected a number"),
        ("ienks", {"iterations": 3.0}, "iterations=3.0: expected an integer"),
        ("4d-var", {"window": math.inf}, "window=inf: expected an integer"),
        ("4d-var", {"scale": 1j}, "scale=1j: expected 'tune'"),
        ("4d-var", {"background": np.eye(3) + 0j}, "background holds complex128: expected 'climatology' or a matrix"),
        ("3d-var", {"background": np.eye(3, dtype="M8[s]")}, "background holds datetime64"),
        ("3d-var", {"background": np.full((2, 2), None)}, "background holds object"),
        ("3d-var", {"background": [[1.0, 0.0], [0.0]]}, "background=.*expected 'climatology', 'trained' or a matrix"),
        ("3d-var", {"background": np.ma.masked_equal(np.eye(2), 0)}, "background holds gaps"),
        ("particle", {"noise": [1]}, r"noise=\[1\]: expected a number"),
        ("particle", {"threshold": None}, "threshold=None: expected a number"),
        ("state-covariance", {"depth": 2.5}, "depth=2.5: expected an integer"),
        ("state-covariance", {"epsilon": "1"}, "epsilon='1': expected a number"),
        ([], {}, r"name=\[\]: expected the name"),
    ],
)
def test_arguments_of_another_type_are_named(name, parameters, message):
    with pytest.raises(TypeError, match=message):
        method_by_name(name, **parameters)


def test_numbers_of_numpy_are_taken_and_written_down_plainly():
    asked = {"members": np.int64(5), "radius": np.float32(4), "inflation": np.float32(1.5), "spin_up": np.int16(3)}
    method = method_by_name("letkf", **asked)
    assert json.loads(json.dumps(method.config())) == {key: float(value) for key, value in asked.items()}
    assert method_by_name("etkf", rotate=np.bool_(True)).config()["rotate"] is True


@pytest.mark.parametrize("name", ["3d-var", "4d-var"])
@pytest.mark.parametrize("units", [1.0, 1e-6, 1e6])
def test_a_background_is_symmetric_relative_to_its_own_size(name, units):
    scale = units**2 * np.diag([1.0, 1e-4, 1e4])  # components in units of their own
    full = np.sqrt(scale) @ (np.eye(3) + 0.5) @ np.sqrt(scale)
    method_by_name(name, scale=1.0, background=full)
    method_by_name(name, scale=1.0, background=torch.from_numpy(full).float())
    for row, column in ((0, 1), (1, 2), (2, 0)):
        skew = full.copy()
        skew[row, column] *= 1.1
        with pytest.raises(ValueError, match=r"not symmetric and .*: it is skew; expected"):
            method_by_name(name, scale=1.0, background=skew)


@pytest.mark.parametrize(
    ("background", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\): expected"),
        (np.ones(4), r"shape \(4,\): expected"),
        (np.diag([1.0, np.nan]), "not finite: expected"),
        (np.diag([1.0, -1.0]), "no Cholesky factor; expected"),
        (np.ones((2, 2)), "no Cholesky factor; expected"),
        ("trained well", "background='trained well': expected"),
    ],
)
def test_a_background_that_is_no_covariance_is_refused(background, message):
    for name in ("3d-var", "4d-var", "eda"):
        with pytest.raises(ValueError, match=message):
            method_by_name(name, scale=1.0, background=background)


def test_a_background_of_another_size_is_refused():
    for name in ("3d-var", "4d-var"):
        with pytest.raises(ValueError, match=r"background has shape \(3, 3\): expected \(8, 8\)"):
            method_by_name(name, scale=1.0, background=np.eye(3)).prepare(lorenz96_record(8))


@pytest.mark.parametrize(("name", "parameter"), [("ienkf-n", "finite_size"), ("ienks-n", "finite_size")])
def test_what_makes_a_method_is_not_a_parameter_of_it(name, parameter):
    assert parameter not in accepted_parameters(name)
    with pytest.raises(ValueError, match=f"{name}' has a {parameter} of True, expected no other; take 'ienks'"):
        method_by_name(name, **{parameter: False})


# --- a state of one variable ---


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("climatology", {}),
        ("optimal-interpolation", {}),
        ("3d-var", {}),
        ("3d-var", {"background": "trained", "scale": 0.5}),
        ("4d-var", {"window": 2, "scale": 0.01}),
        ("4d-var", {"window": 2, "scale": 0.01, "solver": "l-bfgs"}),
        ("eda", {"members": 3, "window": 2, "scale": 0.01}),
        ("extended-kalman", {"inflation": 1.1}),
        ("second-order-kalman", {"c2": 2.0}),
        ("iterated-kalman-smoother", {"lag": 2, "c2": 2.0}),
        ("state-covariance", {"depth": 2, "inflation": 1.0}),
        ("enkf-n", {"members": 5}),
        ("ienks-n", {"members": 5, "lag": 2}),
        ("letkf", {"members": 5, "radius": 1.0}),
        ("optimal-particle", {"members": 20}),
    ],
)
def test_a_state_of_one_variable_has_a_covariance_of_one_number(name, parameters):
    logistic = CustomDynamics(
        step=lambda x: 3.9 * x * (1 - x),
        state={"x": 1},
        timestep=1.0,
        rest=torch.sigmoid,
        spin_up_time=50.0,
        distance=lambda a, b: (a - b).abs(),
    )
    record = record_of(logistic, ObservingSystem(std=DOUBLE + 0.05), 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XdanWarning)
        method = tune(method_by_name(name, **parameters), record)
    outputs, _ = run(method, record)
    assert outputs["analysis"].shape == (2, 12, 1)
    if name == "optimal-interpolation":
        x = logistic.climatology(range(4096), 1, purpose=Purpose.CLIMATOLOGY, like=DOUBLE).numpy().ravel()
        gain = x.var(ddof=1) / (x.var(ddof=1) + 0.05**2)
        expected = x.mean() + gain * (record.observation.numpy() - x.mean())
        np.testing.assert_allclose(outputs["analysis"], expected, rtol=1e-10)


# --- linear models and derivatives ---


def well(x: torch.Tensor) -> torch.Tensor:
    return x + 0.05 * (x - x**3)


@pytest.mark.parametrize(
    "dynamics",
    [
        Lorenz96(8, forcing=0.5),
        CustomDynamics(well, state={"x": 2}, timestep=0.05, rest=lambda z: z.abs() + 0.1),
        CustomDynamics(step=well, state={"x": 2}, timestep=0.05, rest=lambda z: z.abs() + 0.1),
        CustomDynamics(step=lambda x: x - 0.1 * x**3, state={"x": 2}, timestep=1.0, rest=lambda z: 0 * z),
        CustomDynamics(step=lambda x: 0.9 * x.abs(), state={"x": 2}, timestep=1.0),
        CustomDynamics(step=lambda x: 1e-6 * well(1e6 * x), state={"x": 2}, timestep=0.05, rest=lambda z: 1e-6 * z),
    ],
    ids=["one point", "wells", "one well", "at rest", "kinked", "small units"],
)
def test_a_model_that_is_linear_at_its_climate_only_is_refused(dynamics):
    record = record_of(dynamics, ObservingSystem(std=DOUBLE + 0.3), 4)
    with pytest.raises(ValueError, match=r"needs a linear dynamics.*expected f"):
        method_by_name("kalman").prepare(record)


@pytest.mark.parametrize("units", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("growth", [0.3, 1.2])
def test_affine_models_are_linear_in_any_units(units, offset, growth):
    matrix = growth * torch.linalg.qr(normals(SITES, SITES)).Q
    dynamics = CustomDynamics(
        step=lambda x: units * offset + (x - units * offset) @ matrix.T + 0.1 * units,
        state={"x": SITES},
        timestep=1.0,
        spin_up_time=5.0,
        rest=lambda noise: units * (offset + noise),
    )
    record = record_of(dynamics, ObservingSystem(std=DOUBLE + units), 4, steps=lambda k: 5 * (k > 0))
    method_by_name("kalman").prepare(record)


def test_the_kalman_filter_refuses_a_nonlinear_operator():
    observing = ObservingSystem(std=DOUBLE + 1.0)
    record = record_of(linear(model(0.9)), observing, 3)
    for function, right in ((lambda x: x**2, False), (lambda x: 2 * x + 1, True)):
        bent = replace(record, observing=ObservingSystem(std=DOUBLE + 1.0, operator=FunctionOperator(function, SITES)))
        if right:
            method_by_name("kalman").prepare(bent)
            continue
        with pytest.raises(ValueError, match="needs a linear observation operator"):
            method_by_name("kalman").prepare(bent)


RING = Lorenz96(8)
BLACK_BOX = CustomDynamics(
    step=lambda x: torch.from_numpy(RING.step(x.detach()).numpy()),
    state={"x": 8},
    timestep=0.05,
    rest=RING.rest,
    name="black box",
)


@pytest.mark.parametrize(
    ("name", "parameters", "instead"),
    [
        ("4d-var", {"scale": 0.1, "window": 2, "solver": "l-bfgs"}, "solver='gauss-newton'"),
        ("4d-var", {"scale": 0.1, "window": 2}, "solver='l-bfgs'"),
        ("eda", {"window": 2}, "'etkf'"),
        ("extended-kalman", {}, "'etkf'"),
        ("state-covariance", {}, "'etkf'"),
    ],
)
def test_a_black_box_is_refused_by_what_differentiates_it(name, parameters, instead):
    record = record_of(BLACK_BOX, ObservingSystem(std=DOUBLE + 1.0), 4)
    with pytest.raises(ValueError, match=f"the model 'black box'.*expected.*{instead}"):
        method_by_name(name, **parameters).prepare(record)
    run(method_by_name("etkf", members=4).prepare(record), record)


@pytest.mark.parametrize("name", ["3d-var", "optimal-interpolation", "etkf", "4d-var", "extended-kalman"])
def test_an_operator_without_a_derivative_is_refused_before_the_run(name):
    record = lorenz96_record(8)
    function = FunctionOperator(lambda x: torch.from_numpy(x.detach().numpy() ** 2), 8)
    record = replace(record, observing=ObservingSystem(std=DOUBLE + 1.0, operator=function))
    parameters = {"inflation": 1.1} if name in ("etkf", "extended-kalman") else {}
    with pytest.raises(ValueError, match=f"the observation operator.*expected.*'{name}' needs it"):
        method_by_name(name, **parameters).prepare(record)


# --- climates ---


@pytest.fixture
def drawn(monkeypatch):
    """The dynamics whose climate is computed, in a cache that begins empty."""
    computed, compute = [], climate._moments
    monkeypatch.setattr(climate, "_known", OrderedDict())
    monkeypatch.setattr(climate, "_moments", lambda *asked: computed.append(asked[0]) or compute(*asked))
    return computed


def test_a_climate_is_computed_once(drawn):
    for forcing in (8.0, 8.0, 6.0, 8.0):
        mean, covariance = climate.climate_moments(Lorenz96(9, forcing=forcing), 5, DOUBLE)
    x = Lorenz96(9).climatology(range(4096), 5, purpose=Purpose.CLIMATOLOGY, like=DOUBLE).flatten(1).numpy()
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.T), rtol=1e-10, atol=1e-12)
    assert [dynamics.forcing for dynamics in drawn] == [8.0, 6.0]
    climate.climate_moments(Lorenz96(9), 6, DOUBLE)
    climate.climate_moments(Lorenz96(9), 5, DOUBLE.float())
    assert len(drawn) == 4


def test_a_climate_is_not_that_of_a_model_of_the_same_description(drawn):
    def wells(start, far):
        return CustomDynamics(
            step=lambda x: torch.where(x.abs() > 5, far * x, 0.5 * x + 1),
            state={"x": 2},
            timestep=1.0,
            spin_up_time=3.0,
            rest=lambda noise: noise + start,
        )

    means = [climate.climate_moments(wells(*pair), 0, DOUBLE)[0] for pair in ((0.0, 1.0), (9.0, 1.0), (9.0, 0.9))]
    assert len(drawn) == 3
    assert len({round(float(mean[0]), 6) for mean in means}) == 3


def test_few_climates_are_kept(drawn):
    for forcing in range(1, 8):
        still = CustomDynamics(step=lambda x, f=forcing: 0 * x + f, state={"x": 2}, timestep=1.0, spin_up_time=1.0)
        climate.climate_moments(still, 0, DOUBLE)
    assert len(climate._known) == climate._KEPT


def test_climates_keep_no_function_alive(drawn):
    """A function may hold a network on a GPU."""

    class Decay:
        def __call__(self, x):
            return -0.1 * x

    decay = Decay()
    model = CustomDynamics(decay, state={"x": 2}, timestep=0.1, spin_up_time=1.0)
    for _ in range(2):
        climate.climate_moments(model, 0, DOUBLE)
    assert len(drawn) == 1
    gone = weakref.ref(decay)
    del decay, model, drawn[:]
    gc.collect()
    assert gone() is None
    assert len(climate._known) == 1


def test_a_climate_that_blows_up_is_refused():
    wild = CustomDynamics(step=lambda x: x**3, state={"x": 2}, timestep=1.0, spin_up_time=20.0)
    with pytest.raises(ValueError, match=r"of 4096 states .*'custom' are not finite .*expected"):
        climate.climate_moments(wild, 0, DOUBLE)


@pytest.mark.parametrize("name", ["extended-kalman", "state-covariance"])
def test_blocks_of_a_record_take_the_climate_that_was_prepared(name, drawn):
    record = lorenz96_record(3)
    method = method_by_name(name, inflation=1.1).prepare(record)
    climate._known.clear()
    method.start(record)
    method.start(record)
    assert len(drawn) == 1
    with pytest.raises(RuntimeError, match=r"call prepare\(record\)"):
        method_by_name(name).start(record)


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
    record = record_of(linear(model()), ObservingSystem(std=DOUBLE + 1.0), 3)
    with pytest.raises(ValueError, match="localisation needs a distance"):
        method_by_name("letkf", members=4).prepare(record)


def local_analysis(x, y, r, taper, inflation):
    """Hunt et al.: one site's analysis (M,) of members x (M, P) observed as they are, R raised by the tapers."""
    near = taper > 0
    raised = r[near][:, near] + torch.diag(r.diagonal()[near] * (1 / taper[near] - 1))
    mean = x.mean(0)
    s = (x - mean)[:, near]
    precision = (len(x) - 1) * torch.eye(len(x), dtype=x.dtype) + s @ torch.linalg.inv(raised) @ s.T
    values, vectors = torch.linalg.eigh(precision)
    weights = torch.linalg.inv(precision) @ s @ torch.linalg.inv(raised) @ (y - mean)[near]
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return weights, inflation * (len(x) - 1) ** 0.5 * root


def test_letkf_of_correlated_errors_raises_each_variance_by_its_distance():
    """Blocks of two sites of a ring, and one gap, against R + diag(R) (1/t - 1) written out."""
    size = 8
    r = torch.kron(torch.eye(4, dtype=torch.float64), torch.tensor([[1.0, 0.7], [0.7, 0.8]], dtype=torch.float64))
    record = record_of(Lorenz96(size), ObservingSystem(covariance=r), 4)
    method = method_by_name("letkf", members=5, radius=1.6, inflation=1.1, spin_up=0).prepare(record)
    x = normals(2, 5, size)
    observed = torch.ones(2, size, dtype=torch.bool)
    observed[1, 3] = False
    y = normals(2, size, seed=5)
    state = {"x": x, "label": torch.arange(2), "cycle": torch.tensor([9, 9])}
    analysis = method.analyse(state, torch.where(observed, y, 0.0), observed, record.observing)["x"]
    taper = gaspari_cohn(record.dynamics.distances(torch.arange(size)), 1.6)
    for lane in range(2):
        for site in range(size):
            here = torch.where(observed[lane], taper[site], 0.0)
            weights, root = local_analysis(x[lane], y[lane], r, here, 1.1)
            mean = x[lane].mean(0)
            members = mean[site] + (x[lane] - mean)[:, site] @ (weights[:, None] + root)
            assert_close(analysis[lane, :, site], members, rtol=1e-9, atol=1e-10)


def test_letkf_of_blocks_of_one_has_the_bits_of_deviations():
    std = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
    answers = []
    for observing in (ObservingSystem(covariance=torch.diag(std**2)), ObservingSystem(std=(std**2).sqrt())):
        record = record_of(Lorenz96(8), observing, 4)
        method = method_by_name("letkf", members=4, radius=2.0, spin_up=0).prepare(record)
        y = record.observation[:, 0]
        state = {"x": normals(len(y), 4, 8), "label": torch.arange(len(y)), "cycle": torch.full((len(y),), 9)}
        answers.append(method.analyse(state, y, torch.ones_like(y, dtype=torch.bool), observing)["x"])
    assert torch.equal(*answers)


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
    record = Record(record.dynamics, record.observing, blind, record.steps, record.trajectory, 1)
    method = method_by_name(name, **parameters, iterations=2, tolerance=1e-9).prepare(record)
    outputs = run(method, record)[0]
    flags = outputs["unconverged"]
    assert flags[:, 2:5].eq(1).all()
    # Without observations in the window there is nothing to fit.
    assert flags[:, 8:].eq(0).all()
    assert (outputs["iterations"][:, 8:] <= 1).all()
