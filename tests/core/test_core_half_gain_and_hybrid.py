"""The DEnKF, the hybrid 3D-EnVar and ES-MDA against dense formulas and other methods."""

import warnings

import numpy as np
import pytest
import torch
from test_core_methods import (
    DOUBLE,
    KINDS,
    MASK,
    SITES,
    covariance_of,
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
from xdan.core.dynamics import Lorenz96
from xdan.core.methods import Record, method_by_name, run, tune
from xdan.core.observing import LinearOperator, ObservingSystem
from xdan.core.tapers import gaspari_cohn

OBSERVING = ObservingSystem(std=DOUBLE + 1.0)


def settled(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": x, "label": torch.arange(len(x)), "cycle": torch.full((len(x),), 500)}


def gain_of(p: torch.Tensor, r: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return p @ h.T @ torch.linalg.inv(h @ p @ h.T + r)


# --- DEnKF ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [3, 9])
def test_denkf_takes_half_of_the_gain_for_anomalies(kind, members):
    observing, r = error_and_matrix(kind)
    record = record_of(linear(model()), observing, 3)
    method = method_by_name("denkf", members=members, inflation=1.2).prepare(record)
    x, y = normals(1, members, SITES), normals(1, SITES, seed=1)
    after = method.analyse(settled(x), y * MASK, MASK[None], observing)["x"][0]
    h = torch.eye(SITES, dtype=torch.float64)[MASK]
    p, mean = covariance_of(x[0]), x[0].mean(0)
    k = gain_of(p, h @ r @ h.T, h)
    assert_close(after.mean(0), kalman_analysis(mean, p, y[0], MASK, r)[0], rtol=1e-10, atol=1e-11)
    half = torch.eye(SITES, dtype=torch.float64) - 0.5 * k @ h
    assert_close(after - after.mean(0), 1.2 * (x[0] - mean) @ half.T, rtol=1e-10, atol=1e-11)


def test_denkf_with_a_radius_beyond_the_ring_is_the_one_without():
    record, x = lorenz96_record(2), normals(2, 5, 8)
    y, observed = record.observation[:, 0], torch.ones(2, 8, dtype=torch.bool)
    one, other = (
        method_by_name("denkf", members=5, radius=radius).prepare(record).analyse(settled(x), y, observed, OBSERVING)
        for radius in (None, 1e9)
    )
    assert_close(one["x"], other["x"], rtol=1e-9, atol=1e-10)


# --- hybrid 3D-EnVar ---


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("anomalies", ["ensemble", "hybrid"])
@pytest.mark.parametrize("radius", [None, 1.4])
def test_the_hybrid_gain_is_that_of_the_mean_covariance(weight, anomalies, radius):
    dynamics, size = Lorenz96(8), 8
    matrix = normals(3, size, seed=2)
    observing = ObservingSystem(std=torch.tensor([0.5, 1.0, 2.0]).double(), operator=LinearOperator(matrix))
    plain = lorenz96_record(3)
    if radius is not None:  # sites are observed then: an operator has no places here
        observing, matrix = OBSERVING, torch.eye(size, dtype=torch.float64)
    r = torch.diag(observing.error_variance().expand(len(matrix)))
    y, x = normals(1, len(matrix), seed=3), normals(1, 5, size)
    record = Record(dynamics, observing, y[:, None].expand(1, 3, -1), plain.steps, plain.trajectory[:1], 1)
    root = normals(size, size, seed=4)
    static = root @ root.T
    parameters = {"radius": radius, "static_weight": weight, "background": static, "scale": 0.2, "inflation": 1.1}
    method = method_by_name("hybrid-envar", members=5, anomalies=anomalies, **parameters).prepare(record)
    after = method.analyse(settled(x), y, torch.ones_like(y, dtype=torch.bool), observing)["x"][0]
    p, mean = covariance_of(x[0]), x[0].mean(0)
    if radius is not None:
        p = p * gaspari_cohn(dynamics.distances(torch.arange(size)).double(), radius)
    b = (1 - weight) * p + weight * 0.2 * static
    k = gain_of(b, r, matrix)
    assert_close(after.mean(0), mean + k @ (y[0] - matrix @ mean), rtol=1e-9, atol=1e-10)
    half = torch.eye(size, dtype=torch.float64) - 0.5 * (k if anomalies == "hybrid" else gain_of(p, r, matrix)) @ matrix
    assert_close(after - after.mean(0), 1.1 * (x[0] - mean) @ half.T, rtol=1e-9, atol=1e-10)


def test_a_hybrid_of_weight_one_moves_its_mean_as_3d_var():
    record = lorenz96_record(40)
    hybrid = method_by_name("hybrid-envar", members=6, static_weight=1.0).prepare(record)
    static = tune(method_by_name("3d-var"), record)
    x, y = normals(2, 6, 8), record.observation[:, 5]
    observed = torch.ones(2, 8, dtype=torch.bool)
    expected = static.analyse({"x": x.mean(1)}, y, observed, OBSERVING)["x"]
    assert_close(hybrid.analyse(settled(x), y, observed, OBSERVING)["x"].mean(1), expected, rtol=1e-10, atol=1e-11)
    assert float(hybrid.chosen()["background_scale"]) == pytest.approx(float(static.chosen()["background_scale"]))


def test_a_hybrid_of_weight_zero_is_the_denkf():
    record = lorenz96_record(6)
    parameters = {"members": 6, "inflation": 1.03, "spin_up": 3}
    one, _ = run(method_by_name("hybrid-envar", static_weight=0.0, **parameters).prepare(record), record)
    other, _ = run(method_by_name("denkf", **parameters).prepare(record), record)
    assert_close(one["analysis"], other["analysis"], rtol=1e-8, atol=1e-8)
    assert_close(one["spread"], other["spread"], rtol=1e-8, atol=1e-8)


def test_perturbed_members_have_the_kalman_covariance():
    observing, r = error_and_matrix("full")
    record = record_of(linear(model()), observing, 3, lanes=1)
    root = normals(SITES, SITES, seed=4)
    x, y = normals(1, 20_000, SITES) @ root.T, normals(1, SITES, seed=1)
    parameters = {"static_weight": 0.0, "inflation": 1.0, "anomalies": "perturbed"}
    method = method_by_name("hybrid-envar", members=20_000, **parameters).prepare(record)
    after = method.analyse(settled(x), y, torch.ones_like(y, dtype=torch.bool), observing)["x"][0]
    mean, p = kalman_analysis(x[0].mean(0), covariance_of(x[0]), y[0], torch.ones_like(MASK), r)
    assert_close(after.mean(0), mean, rtol=1e-10, atol=1e-10)
    assert_close(covariance_of(after), p, rtol=0.05, atol=0.03)


def test_the_static_weight_is_tuned_from_zero_on():
    record = lorenz96_record(30)
    candidates = {"static_weight": [0.0, 0.4]}
    method = method_by_name("hybrid-envar", members=5, static_weight="tune", scale=0.05, candidates=candidates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XdanWarning)  # two candidates are both ends
        tuned = tune(method, record)
    assert tuned.chosen()["candidate_static_weight"].tolist() == [0.0, 0.4]
    assert float(tuned.chosen()["tuned_static_weight"]) in (0.0, 0.4)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("hybrid-envar", {"static_weight": 1.5}, "static_weight=1.5: expected .*at most 1"),
        ("hybrid-envar", {"static_weight": -0.1}, "static_weight=-0.1: expected 'tune' or 0 or a positive"),
        ("hybrid-envar", {"scale": "tune"}, r"scale='tune': expected one of \['3d-var'\]"),
        ("hybrid-envar", {"anomalies": "half"}, "anomalies='half': expected one of"),
        ("es-mda", {"steps": [2.0, 3.0]}, "inverses of the coefficients add up to 0.8333.*expected 1"),
        ("es-mda", {"steps": 0}, "steps=0"),
        ("es-mda", {"update": "both"}, "update='both'"),
        ("es-mda", {"lag": 0}, "lag=0"),
    ],
)
def test_parameters_out_of_range_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        method_by_name(name, **parameters)


def test_steps_of_another_type_are_refused():
    for steps in ("four", {"a": 1.0}, 2.5, None):
        with pytest.raises(TypeError, match="steps="):
            method_by_name("es-mda", steps=steps)


# --- ES-MDA ---


@pytest.mark.parametrize("steps", [1, 3, [4.0, 2.0, 4.0]])
def test_deterministic_es_mda_is_the_smoother_of_a_linear_model(steps):
    record = record_of(linear(model()), error_and_matrix("full")[0], 7)
    parameters = {"members": 9, "lag": 2, "inflation": 1.0}
    mda = method_by_name("es-mda", steps=steps, update="deterministic", spin_up=0, **parameters).prepare(record)
    one, other = (run(m, record)[0] for m in (mda, method_by_name("ienks", **parameters).prepare(record)))
    for name in ("analysis", "spread", "smoothed"):
        assert_close(one[name], other[name], rtol=1e-7, atol=1e-7, equal_nan=True)
    assert one["smoothed"][:, 2:].isfinite().all()


def test_stochastic_es_mda_converges_like_one_over_the_root_of_the_members():
    record = record_of(linear(model()), error_and_matrix("scalar")[0], 12, lanes=8)
    exact, _ = run(method_by_name("kalman").prepare(record), record)
    distance = []
    for members in (16, 144):
        method = method_by_name("es-mda", members=members, steps=3, inflation=1.0).prepare(record)
        distance.append(float((run(method, record)[0]["analysis"] - exact["analysis"])[:, 6:].square().mean().sqrt()))
    assert 2.0 < distance[0] / distance[1] < 4.5  # nine times the members, a third of the distance


def test_each_step_of_es_mda_draws_other_numbers():
    record = lorenz96_record(4)
    method = method_by_name("es-mda", members=4, steps=3).prepare(record)
    drawn = []
    take = method.draw
    method.draw = lambda state, size: drawn.append(take(state, size)) or drawn[-1]
    run(method, record)
    assert len(drawn) == 3  # the first analysis is of another kind
    assert drawn[0].shape == (2, 3 * 4 * 8)
    assert len(np.unique(torch.cat(drawn).numpy())) == 3 * 2 * 3 * 4 * 8


def test_more_steps_help_over_a_long_interval():
    record = record_of(Lorenz96(12), OBSERVING, 40, lanes=6, steps=lambda k: 10 * (k > 0))
    errors = []
    for steps in (1, 4):
        parameters = {"update": "deterministic", "inflation": 1.1, "spin_up": 10}
        method = method_by_name("es-mda", members=16, steps=steps, **parameters).prepare(record)
        errors.append(float((run(method, record)[0]["analysis"] - record.truth)[:, 15:].square().mean().sqrt()))
    assert errors[1] < 0.9 * errors[0]
