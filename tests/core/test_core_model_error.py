"""Q, the covariance of a model's errors: what it is, and every method that can carry it against closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz96, TwoScaleLorenz96, dynamics_to_json
from xdan.core.methods import Record, method_by_name, run, tune
from xdan.core.methods.columns import Columns
from xdan.core.methods.covariance_forms import FormOf
from xdan.core.methods.minimisers import gauss_newton, l_bfgs
from xdan.core.methods.model_noise import sqrt_core, with_draws
from xdan.core.methods.weak_four_d_var import _WeakWindow
from xdan.core.observing import ObservingSystem
from xdan.core.random import Purpose, normal
from xdan.core.truth_model import TruthModel

N = 4
GENERATOR = torch.Generator().manual_seed(3)
MATRIX = 0.9 * torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=GENERATOR))[0]
FACTOR = torch.randn(N, 3, dtype=torch.float64, generator=GENERATOR)
Q = 0.3 * FACTOR @ FACTOR.T  # of rank 3: positive semi-definite alone
R = 0.5


def linear(**error):
    model = CustomDynamics(
        step=lambda x: x @ MATRIX.T, state={"x": N}, timestep=1.0, spin_up_time=0.0, distance=lambda a, b: (a - b).abs()
    )
    return model.with_model_error(**error) if error else model


def like(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def record_of(model, times=6, rows=2, missing=True):
    observation = normal(5, Purpose.OBSERVATION_ERROR, torch.arange(rows), torch.arange(times), N).double()
    if missing:
        observation[:, 2, 1] = torch.nan
    observing = ObservingSystem(like() + math.sqrt(R))
    return Record(model, observing, observation, [0] + [1] * (times - 1), torch.arange(rows), 0)


def kalman(record, x, p):
    """Means and covariances of the analyses after the first, in plain NumPy, from those after the first."""
    m, q = MATRIX.numpy(), Q.numpy()
    means, covariances = [], []
    for k in range(1, record.observation.shape[1]):
        x, p = m @ x, m @ p @ m.T + q
        y = record.observation[0, k].numpy()
        h = np.eye(N)[~np.isnan(y)]
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + R * np.eye(len(h)))
        x, p = x + gain @ (y[~np.isnan(y)] - h @ x), (np.eye(N) - gain @ h) @ p
        means.append(x)
        covariances.append(p)
    return np.array(means), np.array(covariances)


def test_what_a_model_error_is():
    scalar = linear(std=0.3).model_error
    assert scalar.word == 0.3
    assert scalar.independent
    assert_close(scalar.matrix(like()), 0.09 * torch.eye(N, dtype=torch.float64))
    full = linear(covariance=Q).model_error
    assert not full.independent
    assert_close(full.matrix(like()), Q)
    root = full.root(like())
    assert_close(root @ root.T, Q)
    assert_close(full.deviations(like()), Q.diagonal().sqrt())
    assert_close(full.added_to(like(2, N, N)), Q.expand(2, N, N))
    assert_close(
        linear(std=[1.0, 0.0, 2.0, 0.5]).model_error.added_to(like(N, N)).diagonal(),
        like(4) + torch.tensor([1.0, 0.0, 4.0, 0.25]),
    )
    noise = torch.randn(200_000, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_close(full.from_noise(noise).T.cov(), Q, atol=0.02, rtol=0.0)


def test_a_perfect_model_has_none():
    assert linear(std=0.0).model_error is None
    assert linear(covariance=np.zeros((N, N))).model_error is None
    wrong = linear(std=0.2)
    assert wrong.with_model_error().model_error is None
    assert wrong != linear()
    assert dynamics_to_json(wrong)["model_error"] == 0.2
    assert "model_error" not in dynamics_to_json(linear())


def test_errors_of_fields():
    model = TwoScaleLorenz96(sites=4, fast=4).with_model_error({"U": 0.5})
    assert_close(model.model_error.std, torch.cat([like(4) + 0.5, like(16)]))
    other = TwoScaleLorenz96(sites=4, fast=4).with_model_error({"U": 0.5, "V": np.arange(16.0)})
    assert_close(other.model_error.std[4:], torch.arange(16.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"std": -0.1}, "standard deviation -0.1: expected finite values, at least 0"),
        ({"std": math.nan}, "standard deviation nan"),
        ({"std": [1.0, 2.0]}, r"shape \(2,\): expected one number, or \(4,\)"),
        ({"std": "much"}, "model_error_std"),
        ({"std": {"u": 1.0}}, "names"),
        ({"covariance": np.eye(3)}, r"shape \(3, 3\): expected \(4, 4\)"),
        ({"covariance": np.diag([1.0, 1.0, 1.0, -1.0])}, "eigenvalue -1: expected a positive semi-definite matrix"),
        ({"covariance": np.triu(np.ones((4, 4)))}, "not symmetric"),
        ({"covariance": np.full((4, 4), np.inf)}, "not finite"),
        ({"std": 1.0, "covariance": np.eye(4)}, "exactly one"),
    ],
)
def test_what_is_no_q_is_refused(error, message):
    with pytest.raises((TypeError, ValueError), match=message):
        linear(**error)


@pytest.mark.parametrize("name", ["kalman", "extended-kalman", "second-order-kalman"])
def test_kalman_filters_carry_q_as_in_closed_form(name):
    parameters = {"c2": 8.0} if name == "second-order-kalman" else {"inflation": 1.0}
    record = record_of(linear(covariance=Q))
    method = method_by_name(name, **parameters).prepare(record)
    outputs, _ = run(method, record, members=True)
    means, covariances = kalman(record, outputs["analysis"][0, 0].numpy(), outputs["analysis_covariance"][0, 0].numpy())
    np.testing.assert_allclose(outputs["analysis"][0, 1:], means, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(outputs["analysis_covariance"][0, 1:], covariances, rtol=1e-6, atol=1e-7)


def test_no_interval_makes_no_error():
    model, x = linear(std=1.0), like(1, N)
    for name in ("kalman", "second-order-kalman"):
        method = method_by_name(name).prepare(record_of(model)) if name == "kalman" else None
        if method is not None:
            state = {"x": x, "covariance": torch.eye(N, dtype=torch.float64)[None]}
            assert_close(method.forecast(state, model, 0)["covariance"], state["covariance"])
    form = FormOf().of(model)
    assert_close(form.forecast(model, x, like(1, N, N), 0, 1.0, like() + 9), like(1, N, N))
    assert_close(form.forecast(model, x, like(1, N, N), 1, 1.0, like() + 9)[0], torch.eye(N, dtype=torch.float64))


def test_patches_hold_q_as_the_matrix_does():
    ring = Lorenz96(24)
    distance = (torch.arange(24)[:, None] - torch.arange(24)).abs()
    near = torch.minimum(distance, 24 - distance)
    correlated = 0.04 * torch.exp(-near.double() / 2)
    for error in ({"std": np.linspace(0.1, 0.5, 24)}, {"covariance": correlated}):
        model = ring.with_model_error(**error)
        form = FormOf(radius=3.0).of(model)
        assert not form.whole
        before = form.diagonal(like(1, 24) + 1.0)
        added = form.with_errors(before, model.model_error) - before
        expected = form.patches.cut(model.model_error.matrix(like()))
        assert_close(added[0], expected)
        assert_close(form.variances(before + added)[0], 1.0 + model.model_error.std.square())


def test_columns_hold_the_leading_part_of_q():
    """Of a Q of rank 2 three columns hold all, when there are enough of them to span both."""
    ring = Lorenz96(12)
    pattern = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = ring.with_model_error(covariance=pattern @ pattern.T)
    columns = Columns(model.space, 6, torch.device("cpu"))
    rows = like(1, 7, 12)
    rows[0, 1] = 3.0
    after = columns.with_errors(rows, model.model_error)[0]
    assert_close(after[0], like(12))
    draws = model.model_error.from_noise(columns._noise)
    expected = 9.0 * torch.ones(12, 12, dtype=torch.float64) + draws.T @ draws
    assert_close(after[1:].T @ after[1:], expected)


def test_draws_keep_the_mean_and_add_q():
    x = torch.randn(1, 5, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(20_000, 5, N)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error = linear(covariance=Q).model_error
    after = with_draws(x, error, noise)
    assert_close(after.mean(1), x.mean(1))
    anomalies = after - after.mean(1, keepdim=True)
    covariance = (anomalies.mT @ anomalies / 4).mean(0)
    assert_close(covariance, x[0].T.cov() + Q, atol=0.03, rtol=0.0)


def test_the_square_root_adds_q_exactly_where_members_span_the_state():
    x = torch.randn(3, 9, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = linear(covariance=Q).model_error
    after = sqrt_core(x, error)
    assert_close(after.mean(1), x.mean(1))
    for before, now in zip(x, after, strict=True):
        assert_close(now.T.cov(), before.T.cov() + Q)


def test_the_square_root_adds_the_part_of_q_in_the_span():
    x = torch.randn(1, 3, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after = sqrt_core(x, linear(covariance=Q).model_error)[0]
    anomalies = x[0] - x[0].mean(0)
    span = torch.linalg.pinv(anomalies) @ anomalies
    assert_close(after.T.cov(), x[0].T.cov() + span @ Q @ span)
    assert_close(sqrt_core(x[:, :1].expand(1, 3, N), linear(std=1.0).model_error), x[:, :1].expand(1, 3, N))


@pytest.mark.parametrize("name", ["etkf", "letkf", "enkf-n"])
def test_square_root_filters_are_the_kalman_filter_with_q(name):
    parameters = {"members": 12, "model_noise": "sqrt-core"}
    parameters |= {} if name == "enkf-n" else {"inflation": 1.0, "spin_up": 0}
    if name == "letkf":
        parameters["radius"] = 1e9
    if name == "enkf-n":
        parameters["form"] = "dual"
    record = record_of(linear(covariance=Q))
    outputs, _ = run(method_by_name(name, **parameters).prepare(record), record, members=True)
    before = outputs["members"][0, 0]
    means, covariances = kalman(record, before.mean(0).numpy(), before.T.cov().numpy())
    if name == "enkf-n":  # its prior inflates; a forecast from its own analysis has Q all the same
        one = outputs["members"][0, 2]
        assert_close(outputs["forecast_members"][0, 3].T.cov(), MATRIX @ one.T.cov() @ MATRIX.T + Q)
        return
    np.testing.assert_allclose(outputs["analysis"][0, 1:], means, rtol=1e-8, atol=1e-9)
    last = outputs["members"][0, -1]
    np.testing.assert_allclose(last.T.cov(), covariances[-1], rtol=1e-8, atol=1e-9)


def test_drawn_errors_come_near_the_kalman_filter_as_members_grow():
    record = record_of(linear(covariance=Q), rows=1)
    parameters = {"members": 1500, "inflation": 1.0, "spin_up": 0}
    outputs, _ = run(method_by_name("enkf", **parameters).prepare(record), record, members=True)
    before = outputs["members"][0, 0]
    means, covariances = kalman(record, before.mean(0).numpy(), before.T.cov().numpy())
    np.testing.assert_allclose(outputs["analysis"][0, 1:], means, atol=0.06)
    np.testing.assert_allclose(
        outputs["members"][0, -1].T.cov(), covariances[-1], atol=0.05
    )  # a variance's standard error is 0.01


def test_draws_do_not_depend_on_the_batch():
    record = record_of(linear(std=0.3), rows=3)
    method = method_by_name("etkf", members=5).prepare(record)
    whole, _ = run(method, record)
    last = Record(record.dynamics, record.observing, record.observation[2:], record.steps, record.trajectory[2:], 0)
    alone, _ = run(method, last)
    assert_close(alone["analysis"], whole["analysis"][2:])


def smoothed(window, background, b):
    """The fitted path in closed form: all states of the window are one Gaussian, which the observations condition."""
    m, steps = MATRIX.numpy(), len(window.steps)
    size = N * (steps + 1)
    path, errors = (
        np.zeros((size, size)),
        np.zeros((size, size)),
    )  # states of the start and the errors; their covariance
    for j in range(steps + 1):
        errors[N * j : N * (j + 1), N * j : N * (j + 1)] = b if j == 0 else Q.numpy()
        for i in range(j + 1):
            path[N * j : N * (j + 1), N * i : N * (i + 1)] = np.linalg.matrix_power(m, j - i)
    prior, mean = path @ errors @ path.T, path[:, :N] @ background
    y = np.concatenate([np.full(N, np.nan), *window.observation[0].numpy()])
    h = np.eye(size)[~np.isnan(y)]
    gain = prior @ h.T @ np.linalg.inv(h @ prior @ h.T + R * np.eye(len(h)))
    return (mean + gain @ (y[~np.isnan(y)] - h @ mean)).reshape(steps + 1, N)


@pytest.mark.parametrize("minimise", [gauss_newton, l_bfgs])
def test_weak_4d_var_fits_the_path_of_the_smoother(minimise):
    record = record_of(linear(covariance=Q), times=4)
    window = _WeakWindow(record.dynamics, record.observing, record.observation[:, 1:], [1, 1, 1])
    b = 0.7 * np.eye(N)
    error = record.dynamics.model_error
    root = error.root(like())
    factor = torch.block_diag(math.sqrt(0.7) * torch.eye(N, dtype=torch.float64), root, root, root)
    background = torch.cat([like(2, N) + 0.4, like(2, 3 * N)], 1)
    limit = 3 if minimise is gauss_newton else 60
    least = minimise(window, background, factor, 1e-9, limit)
    path = torch.stack([least.x[:, :N], *window.states(least.x)], 1)[0]
    np.testing.assert_allclose(path, smoothed(window, np.full(N, 0.4), b), atol=1e-5)


def test_weak_4d_var_of_a_perfect_model_is_4d_var():
    record = record_of(linear(), times=8, missing=False)
    runs = []
    for name in ("4d-var", "weak-4d-var"):
        method = tune(method_by_name(name, window=2, background=np.eye(N), scale=0.5), record)
        runs.append(run(method, record)[0]["analysis"])
    assert_close(runs[0], runs[1])


def test_weak_4d_var_slides_on_from_the_fitted_error():
    """Over windows of one interval it is a filter whose background moves by the model and its fitted error."""
    record = record_of(linear(covariance=Q), times=5, missing=False)
    method = method_by_name("weak-4d-var", window=1, background=np.eye(N), scale=0.5).prepare(record)
    analysis = run(method, record)[0]["analysis"][0].numpy()
    m, q, x = MATRIX.numpy(), Q.numpy(), analysis[0]
    p = m @ (0.5 * np.eye(N)) @ m.T + q
    gain = p @ np.linalg.inv(p + R * np.eye(N))
    for k in range(1, 5):
        x = m @ x
        x = x + gain @ (record.observation[0, k].numpy() - x)
        np.testing.assert_allclose(analysis[k], x, atol=1e-6)


@pytest.mark.parametrize("name", ["4d-var", "eda", "ienkf", "ienks", "ienkf-n", "ienks-n", "iterated-kalman-smoother"])
def test_methods_that_take_the_model_to_be_perfect_refuse_q_by_name(name):
    with pytest.raises(ValueError, match=f"the method {name!r} assumes a perfect model.*expected model_error=0"):
        method_by_name(name).check_dynamics(linear(std=0.1))
    method_by_name(name).check_dynamics(linear())


def test_the_state_covariance_has_q_with_its_second_order_filter_alone():
    with pytest.raises(ValueError, match="assumes a perfect model"):
        method_by_name("state-covariance").check_dynamics(linear(std=0.1))
    method_by_name("state-covariance", c2=8.0).check_dynamics(linear(std=0.1))


def test_particles_are_moved_by_q():
    """Sixteen clouds of particles see the same observations: their mean tends to the Kalman filter's analysis."""
    record = record_of(linear(covariance=Q), times=3, rows=16)
    record = replace(record, observation=record.observation[:1].expand(16, -1, -1))
    kalman_run, _ = run(method_by_name("kalman").prepare(record), record)
    for name in ("particle", "optimal-particle"):
        outputs, _ = run(method_by_name(name, members=1000).prepare(record), record)
        assert_close(outputs["analysis"].mean(0), kalman_run["analysis"][0], atol=0.06, rtol=0.0)


def test_particles_of_a_perfect_model_are_moved_all_the_same():
    assert method_by_name("particle")._error(linear()).word == 0.1
    assert method_by_name("particle", noise=0.0)._error(linear(std=0.4)) is None
    assert method_by_name("particle", noise=0.2)._error(linear(std=0.4)).word == 0.2


def test_truth_models():
    small, two = Lorenz96(4), TwoScaleLorenz96(sites=4, fast=4)
    truth = TruthModel.of(two, small)
    x = torch.arange(20.0)
    assert_close(truth.forecast_part(x), x[:4])
    assert TruthModel.of(None, small).places is None
    assert TruthModel.of(Lorenz96(4, forcing=7.0), small).places is None
    with pytest.raises(ValueError, match="expected one of them on its places"):
        TruthModel.of(Lorenz96(5), small)
    with pytest.raises(ValueError, match="one unit of time"):
        TruthModel.of(Lorenz96(4, time_unit=np.timedelta64(5, "D")), small)


def test_a_truth_errs_by_its_own_numbers():
    """With one seed the errors of the truth are no member's and no particle's."""
    model = linear(std=1.0)
    labels = torch.arange(2)
    x = TruthModel(model).advanced(like(2, N), 1, 0, labels, 1, seed=0)
    assert_close(x, normal(0, Purpose.TRUTH_NOISE, labels, torch.tensor([1]), N)[:, 0].double())
    particles = method_by_name("particle", members=3)
    particles = particles.prepare(record_of(model))
    drawn = particles._errors({"x": like(2, 3, N), "label": labels, "cycle": torch.ones(2, dtype=torch.int64)})
    assert not np.isclose(drawn.flatten(1)[:, :N].numpy(), x.numpy()).any()
    assert_close(TruthModel(model).advanced(like(2, N), 0, 0, labels, 0, seed=0), like(2, N))
