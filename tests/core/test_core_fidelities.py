"""Control variates and ensembles of several models, against exact variances and the Kalman filter."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_methods import IDENTITY, SITES, error_and_matrix, kalman_analysis, linear, model, normals, record_of
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz63, Lorenz96
from xdan.core.methods import MultifidelityEnKF, MultiModelEnKF, method_by_name, run
from xdan.core.methods.control_variates import (
    control_variate_covariance,
    control_variate_mean,
    control_variate_variance,
    member_counts,
    regression_weights,
)
from xdan.core.methods.fidelities import ObservedForecast
from xdan.core.methods.multi_model import combine_forecasts
from xdan.core.observing import LinearOperator, ObservingSystem
from xdan.core.random import Purpose

DOUBLE = torch.zeros((), dtype=torch.float64)
M = model()
EVERY = torch.ones(SITES, dtype=torch.bool)


# Control variates.


def exact_variance(counts, covariance, weights):
    """Variance of m_0 + sum a_k (m_k - m'_k) as a quadratic form in independent draws of (f_0, ..., f_K)."""
    shares = torch.zeros(len(counts), counts[-1], dtype=torch.float64)
    shares[0, : counts[0]] = 1 / counts[0]
    for k in range(1, len(counts)):
        shares[k, : counts[k]] += weights[k - 1] / counts[k]
        shares[k, : counts[k - 1]] -= weights[k - 1] / counts[k - 1]
    return float(torch.einsum("kn,kl,ln->", shares, covariance, shares))


def correlated(seed, models):
    root = normals(models, models, seed=seed)
    covariance = root @ root.T + 0.1 * torch.eye(models, dtype=torch.float64)
    deviations = covariance.diagonal().sqrt()
    return covariance, (covariance[0] / (deviations[0] * deviations))[1:].tolist(), deviations


@given(st.integers(0, 1000), st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_variance_formula_is_that_of_nested_draws_and_the_least(seed, increases, first):
    counts = [first, *(first + sum(increases[: k + 1]) for k in range(len(increases)))]
    covariance, rho, deviations = correlated(seed, len(counts))
    best = (covariance[0, 1:] / covariance.diagonal()[1:]).tolist()
    assert best == pytest.approx([r * float(deviations[0] / d) for r, d in zip(rho, deviations[1:], strict=True)])
    formula = control_variate_variance(counts, rho, float(covariance[0, 0]))
    assert formula == pytest.approx(exact_variance(counts, covariance, best), rel=1e-10)
    other = [weight + 0.3 for weight in best]
    assert exact_variance(counts, covariance, other) >= formula - 1e-12


def test_estimates_follow_the_formula_and_have_no_bias():
    counts, (covariance, rho, _) = [3, 7, 20], correlated(4, 3)
    draws = normals(40_000, counts[-1], 3, seed=1) @ torch.linalg.cholesky(covariance).T + 5.0
    values = [draws[:, :count, k : k + 1] for k, count in enumerate(counts)]
    best = (covariance[0, 1:] / covariance.diagonal()[1:]).tolist()
    mean = control_variate_mean(values, best)[:, 0]
    expected = control_variate_variance(counts, rho, float(covariance[0, 0]))
    assert float(mean.var()) == pytest.approx(expected, rel=0.03)
    assert abs(float(mean.mean()) - 5.0) < 4 * (expected / len(mean)) ** 0.5


def test_covariance_estimate_has_no_bias_where_it_is_positive():
    """With many draws no eigenvalue is negative, and the mean over repetitions is the covariance."""
    counts, (covariance, _, _) = [40, 120], correlated(7, 4)
    draws = normals(4_000, counts[-1], 4, seed=2) @ torch.linalg.cholesky(covariance).T
    values = [draws[:, : counts[0], :2], draws[:, :, 2:]]
    estimate = control_variate_covariance(values, [torch.tensor([0.5, -0.2], dtype=torch.float64)])
    assert_close(estimate.mean(0), covariance[:2, :2], rtol=0.02, atol=0.02)
    assert float(torch.linalg.eigvalsh(estimate).min()) > 0


def test_covariance_estimate_is_never_negative():
    values = [normals(50, 2, 5, seed=3), normals(50, 4, 5, seed=4)]
    plain = [torch.stack([torch.cov(one.T) for one in part]) for part in (*values, values[1][:, :2])]
    raw = plain[0] + 9 * (plain[1] - plain[2])
    assert float(torch.linalg.eigvalsh(raw).min()) < -1  # what is set to zero
    estimate = control_variate_covariance(values, [3.0])
    assert float(torch.linalg.eigvalsh(estimate).min()) > -1e-10
    kept, vectors = torch.linalg.eigh(raw)
    assert_close(estimate, (vectors * kept.clamp_min(0)[:, None]) @ vectors.mT)


def test_models_that_are_affine_in_each_other_need_no_costly_draws():
    low = normals(30, 3)
    high = 2.5 * low - 4.0
    weights = [regression_weights(high[:4], low[:4], scalar=False)]
    assert_close(weights[0], torch.full((3,), 2.5, dtype=torch.float64))
    assert_close(regression_weights(high[:4], low[:4], scalar=True), torch.tensor([2.5], dtype=torch.float64))
    assert_close(control_variate_mean([high[:4], low], weights), high.mean(0))
    assert_close(control_variate_covariance([high[:4], low], weights), torch.cov(high.T))


@pytest.mark.parametrize(
    ("costs", "rho", "budget"),
    [
        ([1.0, 0.1], [0.9], 12.0),
        ([1.0, 0.2, 0.05], [0.95, 0.7], 9.0),
        ([1.0, 0.2, 0.05], [0.5, 0.9], 9.0),  # the middle model is cheaper than its use
        ([1.0, 0.9], [0.3], 12.0),  # no cheap model pays
        ([2.0, 0.5], [-0.97], 15.0),
    ],
)
def test_counts_are_near_the_best_of_all(costs, rho, budget):
    """All integers are tried; rounding down may cost a little."""
    chosen = member_counts(costs, rho, budget)
    ranges = [range(2, int(budget / costs[0]) + 1), *(range(int(budget / cost) + 1) for cost in costs[1:])]
    best = 1.0
    for counts in itertools.product(*ranges):
        used = [0, *(k for k in range(1, len(counts)) if counts[k])]
        some = [counts[k] for k in used]
        if sum(n * c for n, c in zip(counts, costs, strict=True)) > budget + 1e-9 or sorted(some) != some:
            continue
        best = min(best, control_variate_variance(some, [rho[k - 1] for k in used[1:]]))
    assert chosen.cost <= budget + 1e-9
    assert best <= chosen.variance + 1e-12 <= 1.08 * best
    assert chosen.variance <= chosen.high_only
    used = [k for k, n in enumerate(chosen.counts) if n]
    again = control_variate_variance([chosen.counts[k] for k in used], [rho[k - 1] for k in used[1:]])
    assert again == pytest.approx(chosen.variance)


def test_counts_go_with_the_root_of_gain_over_cost():
    counts = member_counts([1.0, 0.01], [0.9], 1e6).counts
    assert counts[1] / counts[0] == pytest.approx((0.81 / 0.01 / (0.19 / 1.0)) ** 0.5, rel=1e-3)
    assert member_counts([1.0, 0.9], [0.3], 12.0).counts == (12, 0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: member_counts([1.0, 0.1], [1.2], 10.0), ValueError, r"correlations\[0\]=1.2"),
        (lambda: member_counts([1.0, 0.1], [0.9], 1.5), ValueError, "does not pay for 2 runs"),
        (lambda: member_counts([1.0, -0.1], [0.9], 9.0), ValueError, r"costs\[1\]"),
        (lambda: member_counts([1.0], [0.9], 9.0), ValueError, "1 costs and 1 correlations"),
        (lambda: member_counts("ab", [0.9], 9.0), TypeError, "costs='ab'"),
        (lambda: member_counts([1.0] * 14, [0.5] * 13, 90.0), ValueError, "at most 12"),
        (lambda: control_variate_variance([10, 5], [0.9]), ValueError, r"\[10, 5\]"),
        (lambda: control_variate_variance([10.0, 50], [0.9]), TypeError, "expected an integer"),
        (lambda: control_variate_variance([10, 50], []), ValueError, "2 models and 0"),
        (lambda: control_variate_variance([10, 50], [float("nan")]), ValueError, "correlations"),
        (lambda: control_variate_mean([normals(4, 1), normals(3, 1)], [1.0]), ValueError, "draws"),
    ],
)
def test_bad_numbers_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


# Filters.


def kalman(state, record, q=None):
    """Means and covariances of the Kalman filter after the first analysis, from the sample that a state holds."""
    observing = record.observing
    r = torch.diag_embed((observing.std**2).expand(SITES)) if observing.covariance is None else observing.covariance
    mean, p, rows = *state, []
    for k in range(1, record.observation.shape[1]):
        forecast, p = M @ mean, M @ p @ M.T
        p = p if q is None else p + q
        mean, p_a = kalman_analysis(forecast, p, record.observation[0, k], EVERY, r)
        rows.append((forecast, p.diagonal().sqrt(), mean, p_a.diagonal().sqrt()))
        p = p_a
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def against_kalman(method, record, sample, q=None, **tolerance):
    """Compare a run with the Kalman filter from the mean and covariance of the members after the first analysis."""
    outputs, _ = run(method.prepare(record), record, members=True)
    expected = kalman(sample(outputs["members"][0, 0]), record, q)
    assert_close(outputs["analysis"][0, 0], outputs["members"][0, 0, -method.blocks[-1][1] :].mean(0))
    assert_close(outputs["spread"][0, 0], sample(outputs["members"][0, 0])[1].diagonal().sqrt())
    names = ("forecast", "forecast_spread", "analysis", "spread")
    for name, value in zip(names, expected, strict=True):
        assert_close(outputs[name][0, 1:], value, **tolerance)
    return outputs


def pooled(sizes):
    def sample(x):
        parts = x.split(sizes)
        assert_close(torch.stack([part.mean(0) for part in parts]), parts[0].mean(0).expand(len(sizes), -1))
        rows = torch.cat([part - part.mean(0) for part in parts])
        return x.mean(0), rows.T @ rows / (len(x) - len(sizes))

    return sample


def last(count):
    return lambda x: (x[-count:].mean(0), torch.cov(x[-count:].T))


@pytest.mark.parametrize("kind", ["scalar", "full"])
def test_models_that_are_one_make_the_kalman_filter(kind):
    record = record_of(linear(M), error_and_matrix(kind)[0], 6, lanes=1)
    models = [(None, 6), (linear(M), 9)]
    method = MultiModelEnKF(models, inflation=1.0, model_errors="known", spin_up=0)
    outputs = against_kalman(method, record, pooled([6, 9]))
    for k in (1, 2):
        assert_close(outputs[f"weight_{k}"][0], torch.full((6, SITES), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("models", [[], [(0.5, 12)], [(0.5, 3), (-2.0, 15)]])
def test_cheap_models_that_are_multiples_make_the_kalman_filter_of_all_members(models):
    """Three costly members of four components: their covariance has rank 2, that of the estimate 4."""
    record = record_of(linear(M), error_and_matrix("full")[0], 6, lanes=1)
    principal, most = (3, models[-1][1]) if models else (9, 9)
    cheap = [(linear(factor * M), count) for factor, count in models]
    method = MultifidelityEnKF(principal, cheap, inflation=1.0, spin_up=0)
    against_kalman(method, record, last(most), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["multi-model-enkf", "multifidelity-enkf"])
def test_many_members_make_the_kalman_filter_of_a_model_with_errors(name):
    q = 0.2 * IDENTITY + 0.1
    noisy = linear(M).with_model_error(covariance=q)
    record = record_of(linear(M), error_and_matrix("full")[0], 4, lanes=1)
    if name == "multi-model-enkf":
        method, sample = MultiModelEnKF([(noisy, 1500)], 1.0, "known", spin_up=0), pooled([1500])
    else:
        record = replace(record, dynamics=noisy)
        method, sample = MultifidelityEnKF(3, [(linear(0.5 * M), 1500)], inflation=1.0, spin_up=0), last(1500)
    against_kalman(method, record, sample, q, rtol=0.1, atol=0.1)


def test_what_cheap_models_do_not_know_is_drawn(monkeypatch):
    """The cheap model knows two of four independent components; of the others its members get residuals."""
    costly, known = torch.tensor([1.3, 0.9, 1.1, 0.8]).double().diag(), torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    monkeypatch.setitem(globals(), "M", costly)
    record = record_of(linear(costly), ObservingSystem(std=DOUBLE + 0.8), 5, lanes=1)
    cheap = linear(known.diag() @ costly)
    method = MultifidelityEnKF(300, [(cheap, 1500)], "component", inflation=1.0, spin_up=0)
    against_kalman(method, record, last(1500), rtol=0.08, atol=0.08)


def test_a_spin_up_raises_a_covariance_that_innovations_contradict():
    """P = R = 1 and d = 10: P is raised to d^2 - R = 99, so that the gain is 0.99; and never lowered."""
    one = torch.ones(2, 1, dtype=torch.float64)
    observation = torch.tensor([[10.0], [0.5]], dtype=torch.float64)
    seen = ObservedForecast(0 * one, one[..., None], observation, one > 0, ObservingSystem(std=DOUBLE + 1.0))
    assert_close(seen.consistent_factor(), torch.tensor([99.0, 1.0], dtype=torch.float64))
    raised = ObservedForecast(0 * one, 99 * one[..., None], observation, one > 0, ObservingSystem(std=DOUBLE + 1.0))
    mean, kept = raised.analysis(99**0.5 * torch.tensor([[[-1.0], [1.0]]] * 2, dtype=torch.float64))
    assert_close(mean[0], torch.tensor([9.9], dtype=torch.float64))
    assert_close(kept[0, :, 0].square(), torch.full((2,), 0.99, dtype=torch.float64))


def test_forecasts_are_combined_by_the_best_linear_unbiased_estimate():
    roots = normals(3, 4, 5, 5, seed=5)
    errors, means = roots @ roots.mT + 0.1 * torch.eye(5, dtype=torch.float64), normals(3, 4, 5, seed=6)
    mean, error, weights = combine_forecasts(means, errors, DOUBLE.expand(3))
    precision = torch.linalg.inv(errors)
    expected = torch.linalg.inv(precision.sum(1))
    assert_close(error, expected)
    assert_close(mean, (expected @ (precision @ means[..., None]).sum(1))[..., 0])
    assert_close(weights.sum(1), torch.ones(3, 5, dtype=torch.float64))


def test_a_model_without_errors_is_followed_where_it_has_none():
    half = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    errors = torch.stack([torch.diag(half), torch.diag(1 - half)])[None]
    means = normals(1, 2, 4, seed=8)
    mean, error, weights = combine_forecasts(means, errors, DOUBLE.expand(1) + 1e-9)
    assert_close(mean[0], torch.cat([means[0, 1, :2], means[0, 0, 2:]]), rtol=0, atol=1e-7)
    assert float(error.abs().max()) < 1e-8
    assert_close(weights[0, 0], 1 - half, rtol=0, atol=1e-7)


def test_draws_of_the_combined_error_have_its_covariance():
    """Nothing is observed and the members are alike: what they have about the means of their models is drawn."""
    root = normals(SITES, SITES, seed=9)
    error = root @ root.T + IDENTITY
    record = record_of(linear(M), ObservingSystem(std=DOUBLE + 1.0), 1, lanes=4000)
    method = MultiModelEnKF([(None, 4), (linear(M), 4)], 1.0, "known", spin_up=0).prepare(record)
    state, zero = method.start(record), record.observation[:, 0] * 0
    labels = {"label": record.trajectory, "cycle": torch.zeros(4000, dtype=torch.int64)}
    state = {**state, **labels, "x": state["x"] * 0, "mean": zero, "error": error.expand(4000, -1, -1)}
    x = method.analyse(state, zero, zero > 0, record.observing)["x"]
    assert_close(x.reshape(4000, 2, 4, SITES).mean(2), torch.zeros(4000, 2, SITES, dtype=torch.float64))
    assert_close((x.mT @ x / (8 - 2)).mean(0), error, rtol=0.05, atol=0.1)


def noisy_record(std, cycles, lanes, observing):
    """Truth of a linear map with errors of these standard deviations in every interval."""
    truth, x = [], normals(lanes, SITES, seed=20)
    noise = normals(cycles, lanes, SITES, seed=21) * std
    for k in range(cycles):
        x = x @ (0.8 * M).T / 1.2 + noise[k]
        truth.append(x)
    return record_of(linear(0.8 * M / 1.2), observing, cycles, lanes=lanes, truth=torch.stack(truth, 1))


def test_errors_of_a_model_are_estimated_from_innovations():
    std = torch.tensor([0.2, 0.5, 1.0, 1.5], dtype=torch.float64)
    record = noisy_record(std, 150, 48, ObservingSystem(std=DOUBLE + 0.5))
    outputs, _ = run(MultiModelEnKF([(None, 60)], averaging=150, spin_up=0).prepare(record), record)
    variances = outputs["model_error_1"][:, -1].square().mean(0)
    seen = (1 - (1 - 1 / 150) ** 150) * 150  # cycles, of which earlier ones fade; the mean counts for 10 more
    assert_close(variances, (seen * std.square() + 10 * std.square().mean()) / (seen + 10), rtol=0.1, atol=0.01)
    scalar = MultiModelEnKF([(None, 60)], averaging=150, model_errors="scalar", spin_up=0)
    one, _ = run(scalar.prepare(record), record)
    assert float(one["model_error_1"][:, -1].square().mean()) == pytest.approx(float(std.square().mean()), rel=0.12)
    error = (outputs["analysis"] - record.truth)[:, 50:]
    assert float(error.square().mean()) == pytest.approx(float(outputs["spread"][:, 50:].square().mean()), rel=0.1)


def test_one_error_is_estimated_through_an_operator_too():
    """Of independent errors of one size, an operator that turns the state sees the same size."""
    turned = torch.linalg.qr(normals(SITES, SITES, seed=3)).Q
    record = noisy_record(torch.full((SITES,), 0.9).double(), 120, 32, ObservingSystem(std=DOUBLE + 0.5))
    observing = ObservingSystem(std=DOUBLE.expand(SITES) + 0.5, operator=LinearOperator(turned))
    record = replace(record, observing=observing, observation=record.observation @ turned.T)
    method = MultiModelEnKF([(None, 40)], averaging=120, model_errors="scalar", spin_up=0)
    outputs, _ = run(method.prepare(record), record)
    assert float(outputs["model_error_1"][:, -1].square().mean()) == pytest.approx(0.81, rel=0.1)
    with pytest.raises(ValueError, match="model_errors='scalar'"):
        MultiModelEnKF().prepare(record)


def lorenz96_record(lanes=3, cycles=8, **options):
    return record_of(Lorenz96(8), ObservingSystem(std=DOUBLE + 1.0), cycles, lanes=lanes, **options)


METHODS = {
    "multi-model": lambda: MultiModelEnKF([(Lorenz96(8, 7.0), 4), (Lorenz96(8, 9.0, timestep=0.025), 5)], 1.02),
    "multi-model scalar": lambda: MultiModelEnKF([(None, 4), (Lorenz96(8, 9.0), 5)], model_errors="scalar"),
    "multifidelity": lambda: MultifidelityEnKF(4, [(Lorenz96(8, 7.0), 9)]),
    "multifidelity by component": lambda: MultifidelityEnKF(4, [(None, 6), (Lorenz96(8, 7.0), 9)], "component"),
    "multifidelity given": lambda: MultifidelityEnKF(4, [(Lorenz96(8, 7.0), 9)], [0.9]),
}


@pytest.mark.parametrize("name", METHODS)
def test_trajectories_and_blocks_do_not_matter(name):
    record, method = lorenz96_record(), METHODS[name]()
    whole, _ = run(method.prepare(record), record)
    one = replace(record, observation=record.observation[1:2], trajectory=record.trajectory[1:2])
    alone, _ = run(method.prepare(one), one)
    head = replace(record, observation=record.observation[:, :5], steps=record.steps[:5])
    tail = replace(record, observation=record.observation[:, 5:], steps=record.steps[5:], clock=4)
    first, state = run(method.prepare(head), head)
    second, _ = run(method.prepare(head), tail, state)
    for label, value in whole.items():
        assert_close(alone[label], value[1:2], rtol=1e-7, atol=1e-7)
        assert_close(torch.cat([first[label], second[label]], 1), value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_again_from_its_description(name):
    record, method = lorenz96_record(1), METHODS[name]()
    again = method_by_name(method.name, **method.config())
    assert again.config() == method.config()
    assert_close(run(again.prepare(record), record)[0], run(method.prepare(record), record)[0], rtol=0, atol=0)


def test_a_model_is_made_again_with_its_errors():
    record = lorenz96_record(1)
    method = MultiModelEnKF([(Lorenz96(8).with_model_error(0.3), 5), (None, 4)], model_errors="known")
    again = method_by_name(method.name, **json.loads(json.dumps(method.config())))
    assert again.config() == method.config()
    assert again.models[0][0].model_error.word == 0.3
    assert_close(run(again.prepare(record), record)[0], run(method.prepare(record), record)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [Lorenz96(8).with_model_error(torch.arange(8.0)), linear(M), linear(M).with_model_error(covariance=IDENTITY)],
)
def test_a_model_that_is_described_by_a_digest_is_refused(other):
    config = MultiModelEnKF([(None, 4), (other, 5)], model_errors="known").config()
    with pytest.raises(ValueError, match=r"models\[1\]: .*a digest.*pass models= again"):
        MultiModelEnKF(**json.loads(json.dumps(config)))


def test_errors_of_the_model_and_residuals_are_drawn_for_their_own_purposes(monkeypatch):
    purposes, draw = {}, MultifidelityEnKF.draw

    def noted(self, state, size, purpose=Purpose.PERTURBATION):
        purposes[size] = purpose
        return draw(self, state, size, purpose)

    monkeypatch.setattr(MultifidelityEnKF, "draw", noted)
    record = replace(lorenz96_record(1), dynamics=Lorenz96(8).with_model_error(0.3))
    run(MultifidelityEnKF(4, [(Lorenz96(8, 7.0), 9)]).prepare(record), record)
    assert purposes == {9 * 8: Purpose.MODEL_NOISE, 5 * 4: Purpose.PERTURBATION}


def test_a_description_tells_functions_of_one_name_apart():
    words = [MultiModelEnKF([(linear(factor * M), 4)]).config()["models"][0][0] for factor in (1.0, 2.0)]
    assert words[0] != words[1]
    assert {**words[0], "step": ""} == {**words[1], "step": ""}


@pytest.mark.parametrize("name", METHODS)
def test_missing_observations_change_nothing_else(name):
    """Where nothing is observed the analysis is the forecast, and the truth is found again afterwards."""
    record, method = lorenz96_record(cycles=12), METHODS[name]()
    observation = record.observation.clone()
    observation[:, 4:6] = torch.nan
    observation[0, :, 2] = torch.nan
    outputs, _ = run(method.prepare(record), replace(record, observation=observation))
    assert_close(outputs["analysis"][:, 4:6], outputs["forecast"][:, 4:6])
    assert bool(torch.isfinite(outputs["analysis"]).all())


def test_a_lost_trajectory_does_not_stop_the_others():
    blows = CustomDynamics(lambda x: x * x.abs() * (x > 30), state={"x": 8}, timestep=0.05, spin_up_time=0.0)
    record = lorenz96_record()
    for method in (
        MultiModelEnKF([(blows, 4), (None, 4)], spin_up=0),
        MultifidelityEnKF(3, [(blows, 6)], spin_up=0),
    ):
        far = replace(record, observation=record.observation.clone())
        far.observation[1] = 60.0
        outputs, _ = run(method.prepare(far), far)
        assert outputs["diverged"][:, -1].tolist() == [False, True, False]
        assert bool(torch.isfinite(outputs["analysis"][[0, 2]]).all())


L96 = Lorenz96(8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MultiModelEnKF([]), ValueError, "at least one pair"),
        (lambda: MultiModelEnKF(L96), TypeError, "expected pairs"),
        (lambda: MultiModelEnKF([L96, 20]), TypeError, r"models\[0\]"),
        (lambda: MultiModelEnKF([("lorenz96", 20)]), TypeError, "no xdan.Dynamics"),
        (lambda: MultiModelEnKF([({"name": "lorenz97"}, 20)]), ValueError, "not registered"),
        (lambda: MultiModelEnKF([(L96, 1)]), ValueError, "at least 2"),
        (lambda: MultiModelEnKF([(L96, 20.0)]), TypeError, r"members of models\[0\]=20.0: expected an integer"),
        (lambda: MultiModelEnKF([(L96, 20)], model_errors="best"), ValueError, "model_errors='best'"),
        (lambda: MultiModelEnKF([(L96, 20)], averaging=1), ValueError, "averaging=1"),
        (lambda: MultiModelEnKF([(L96, 20)], inflation=-1.0), ValueError, "inflation"),
        (lambda: MultifidelityEnKF(20, [(L96, 10)]), ValueError, r"\[20, 10\].*do not decrease"),
        (lambda: MultifidelityEnKF(5, [(L96, 20), (L96, 10)]), ValueError, r"\[5, 20, 10\]"),
        (lambda: MultifidelityEnKF(1, [(L96, 10)]), ValueError, "principal=1"),
        (lambda: MultifidelityEnKF(5, [(L96, 10)], weights="both"), ValueError, "weights='both'"),
        (lambda: MultifidelityEnKF(5, [(L96, 10)], weights=[1.0, 2.0]), ValueError, "2 weights for 1 models"),
        (lambda: MultifidelityEnKF(5, [(L96, 10)], weights=0.5), TypeError, "weights=0.5"),
    ],
)
def test_bad_parameters_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Lorenz96(9), r"\{'x': 9\}.*expected that of the record"),
        (Lorenz63(), "expected that of the record"),
        (Lorenz96(8, timestep=0.04), "time step of 0.04, and the record an interval of 0.05"),
        (CustomDynamics(lambda x, t: -x, state={"x": 8}, timestep=0.05), "depends on time"),
        (Lorenz96(8).with_model_error(0.3), "known to err by 0.3"),
    ],
)
@pytest.mark.parametrize("cls", [MultiModelEnKF, MultifidelityEnKF])
def test_models_that_do_not_fit_are_refused(cls, other, words):
    method = MultiModelEnKF([(None, 4), (other, 4)]) if cls is MultiModelEnKF else MultifidelityEnKF(3, [(other, 4)])
    with pytest.raises(ValueError, match=words):
        method.prepare(lorenz96_record(1))


def test_a_model_of_its_own_time_step_fills_the_interval():
    """Half steps of a linear map whose square root is known: two of them are one step of the record's dynamics."""
    half = CustomDynamics(step=lambda x: 0.9**0.5 * x, state={"x": SITES}, timestep=0.5, spin_up_time=0.0)
    record = record_of(linear(0.9 * IDENTITY), ObservingSystem(std=DOUBLE + 0.5), 5)
    one, two = (MultiModelEnKF([(model, 8)], 1.0, "known", spin_up=0) for model in (None, half))
    assert_close(run(one.prepare(record), record)[0], run(two.prepare(record), record)[0])


def test_a_model_in_time_follows_the_clock():
    def forced(factor):
        return CustomDynamics(lambda x, t: factor * t - x, state={"x": SITES}, timestep=0.1, spin_up_time=0.0)

    principal = forced(3.0).starting_at(2.0)
    record = record_of(principal, ObservingSystem(std=DOUBLE + 0.5), 4, truth=normals(2, 4, SITES, seed=2))
    one, two = (MultiModelEnKF([(model, 8)], 1.0, "known", spin_up=0) for model in (None, forced(3.0)))
    assert_close(run(one.prepare(record), record)[0], run(two.prepare(record), record)[0])
