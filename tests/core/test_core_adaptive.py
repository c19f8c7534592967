"""Inflation that follows the innovations, and relaxation, against their formulas."""

import warnings

import pytest
import torch
from test_core_methods import DOUBLE, lorenz96_record, normals, record_of
from torch.testing import assert_close

from xdan.core.checks import XdanWarning
from xdan.core.dynamics import Lorenz96
from xdan.core.methods import Record, method_by_name, run, tune
from xdan.core.methods.adaptive import posterior_inflation
from xdan.core.observing import ObservingSystem

SIZE = 8
EVERY = torch.ones(2, SIZE, dtype=torch.bool)
NAMES = ("etkf", "letkf", "enkf", "denkf", "eakf", "rank-histogram", "hybrid-envar")


def settled(x: torch.Tensor, **entries: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": x, "label": torch.arange(len(x)), "cycle": torch.full((len(x),), 500), **entries}


def of(name: str, **parameters):
    more = {"hybrid-envar": {"static_weight": 0.0}, "letkf": {"radius": 1.5}}.get(name, {})
    return method_by_name(name, members=6, **more, **parameters).prepare(lorenz96_record(3))


def test_the_posterior_is_the_product_of_two_gaussians():
    square, spread, count = (torch.tensor([value]).double() for value in (31.0, 12.0, 20.0))
    before, variance = torch.tensor([1.3]).double(), 0.3
    estimate = (31.0 - 20.0) / 12.0
    of_estimate = 2 / 20 * ((1.3 * 12 + 20) / 12) ** 2
    grid = torch.linspace(-6.0, 9.0, 400_001).double()
    density = (-0.5 * (grid - 1.3) ** 2 / variance - 0.5 * (grid - estimate) ** 2 / of_estimate).exp()
    expected = (grid * density).sum() / density.sum()
    assert_close(posterior_inflation(before, square, spread, count, variance)[0], expected, rtol=1e-4, atol=0)


def test_the_variance_of_an_estimate_is_that_of_its_formula():
    """Innovations of a covariance alpha v + r, whose estimates vary as 2 / p ((alpha v + r) / v)^2 says."""
    alpha, spread, count = 1.6, 0.4, 50
    d = (alpha * spread + 1) ** 0.5 * normals(40_000, count)
    estimate = (d.square().sum(1) - count) / (count * spread)
    assert float(estimate.mean()) == pytest.approx(alpha, abs=0.02)
    assert float(estimate.var()) == pytest.approx(2 / count * ((alpha * spread + 1) / spread) ** 2, rel=0.03)


def test_the_factor_settles_at_that_of_the_innovations():
    alpha, spread, count = torch.ones(200).double(), 0.5, 40
    held = torch.full_like(alpha, count)
    for k in range(400):
        d = (1.7 * spread + 1) ** 0.5 * normals(200, count, seed=k)
        alpha = posterior_inflation(alpha, d.square().sum(1), spread * held, held, 0.1**2)
    assert float(alpha.mean()) == pytest.approx(1.7, abs=0.03)
    # gain / (2 - gain) of the variance of an estimate stays.
    of_estimate = 2 / count * ((1.7 * spread + 1) / spread) ** 2
    gain = 0.01 / (0.01 + of_estimate)
    assert float(alpha.std()) == pytest.approx((gain / (2 - gain) * of_estimate) ** 0.5, rel=0.2)


def test_nothing_observed_or_no_spread_leaves_the_factor():
    before, zero, some = torch.tensor([1.4, 1.4]), torch.tensor([0.0, 2.0]), torch.tensor([0.0, 3.0])
    assert torch.equal(posterior_inflation(before, some, 0 * some, zero, 0.1), before)
    assert torch.equal(posterior_inflation(before[:1], some[:1], some[1:], zero[:1], 0.1), before[:1])
    lowest = posterior_inflation(before, torch.zeros(2), torch.ones(2), torch.full((2,), 40.0), 100.0)
    assert torch.equal(lowest, torch.ones(2))


@pytest.mark.parametrize("name", NAMES)
def test_an_adaptive_analysis_is_that_of_inflated_members(name):
    adaptive, plain = of(name, inflation="adaptive", inflation_std=0.5), of(name, inflation=1.0)
    x, y = normals(2, 6, SIZE), 3.0 * normals(2, SIZE, seed=1)
    local = name == "letkf"
    before = torch.full((2, SIZE) if local else (2,), 1.1, dtype=torch.float64)
    observing = ObservingSystem(std=torch.linspace(0.6, 1.3, SIZE).double())
    after = adaptive.analyse(settled(x, inflation=before), y, EVERY, observing)
    root = after["inflation"]
    assert root.shape == before.shape
    mean = x.mean(1, keepdim=True)
    inflated = mean + root.reshape(2, 1, -1) * (x - mean)
    expected = plain.analyse(settled(inflated), y, EVERY, observing)["x"]
    assert_close(after["x"], expected, rtol=1e-10, atol=1e-10)
    r = observing.std**2
    terms = torch.stack([(y - mean[:, 0]).square() / r, x.var(1) / r, torch.ones_like(y)])
    if local:
        near, taper = adaptive.localisation(observing).near
        sums = (terms[..., near] * taper.square()).sum(-1)
    else:
        sums = terms.sum(-1)
    assert_close(root.square(), posterior_inflation(before.square(), *sums, 0.25), rtol=1e-10, atol=1e-10)


def test_a_local_factor_sees_innovations_nearby_alone():
    record, x = lorenz96_record(2), normals(2, 6, SIZE)
    method = method_by_name("eakf", members=6, radius=1.2, inflation="adaptive").prepare(record)
    one = torch.ones(2, SIZE, dtype=torch.float64)
    y = x.mean(1)
    far = y.clone()
    far[:, 0] += 6.0
    calm, moved = (
        method.analyse(settled(x, inflation=1.5 * one), z, EVERY, record.observing)["inflation"] for z in (y, far)
    )
    assert (moved > calm)[:, [0, 1, 2, 6, 7]].all()
    assert torch.equal(moved[:, 3:6], calm[:, 3:6])


def test_the_first_cycles_leave_the_factor_at_one():
    record = lorenz96_record(8)
    for name, dims in (("etkf", 2), ("letkf", 3)):
        parameters = {"radius": 1.5} if name == "letkf" else {}
        method = method_by_name(name, members=5, inflation="adaptive", spin_up=4, inflation_std=0.5, **parameters)
        inflation = run(method.prepare(record), record)[0]["inflation"]
        assert inflation.ndim == dims
        assert (inflation[:, :4] == 1).all()  # the first analysis has the number 0
        assert (inflation[:, 4:] != 1).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relaxation", ["rtps", "rtpp"])
def test_relaxation_follows_its_formula(name, relaxation):
    x, y = normals(2, 6, SIZE), normals(2, SIZE, seed=1)
    observing = ObservingSystem(std=DOUBLE + 0.7)
    plain = of(name, inflation=1.05).analyse(settled(x), y, EVERY, observing)["x"]
    relaxed = of(name, inflation=1.05, relaxation=relaxation, relaxation_factor=0.3)
    after = relaxed.analyse(settled(x), y, EVERY, observing)["x"]
    assert_close(after.mean(1), plain.mean(1), rtol=1e-11, atol=1e-11)
    if relaxation == "rtps":
        assert_close(after.std(1), 0.7 * plain.std(1) + 0.3 * x.std(1), rtol=1e-10, atol=1e-11)
        shape = (plain - plain.mean(1, keepdim=True)) / plain.std(1)[:, None]
        assert_close((after - after.mean(1, keepdim=True)) / after.std(1)[:, None], shape, rtol=1e-9, atol=1e-10)
    else:
        expected = 0.7 * (plain - plain.mean(1, keepdim=True)) + 0.3 * (x - x.mean(1, keepdim=True))
        assert_close(after - after.mean(1, keepdim=True), expected, rtol=1e-10, atol=1e-11)


def test_a_relaxation_factor_is_tuned():
    record = lorenz96_record(20)
    candidates = {"relaxation_factor": [0.2, 0.5]}
    method = method_by_name(
        "etkf", members=6, inflation=1.0, relaxation="rtps", relaxation_factor="tune", candidates=candidates
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XdanWarning)  # two candidates are both ends
        chosen = tune(method, record).chosen()
    assert chosen["candidate_relaxation_factor"].tolist() == [0.2, 0.5]


def test_shares_are_from_zero_to_one():
    x, y = normals(2, 6, SIZE), normals(2, SIZE, seed=1)
    observing = ObservingSystem(std=DOUBLE + 0.7)
    plain = of("etkf", inflation=1.05).analyse(settled(x), y, EVERY, observing)["x"]
    nothing = of("etkf", inflation=1.05, relaxation="rtps", relaxation_factor=0.0)
    assert_close(nothing.analyse(settled(x), y, EVERY, observing)["x"], plain, rtol=1e-11, atol=1e-11)
    asked = {"relaxation": "rtps", "relaxation_factor": "tune", "candidates": {"relaxation_factor": [0.0, 1.0]}}
    assert method_by_name("etkf", **asked).tried("relaxation_factor") == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"candidates of relaxation_factor=1\.2: expected .*at most 1"):
        method_by_name("etkf", **{**asked, "candidates": {"relaxation_factor": [0.5, 1.2]}})
    with pytest.raises(ValueError, match=r"candidates of static_weight=1\.2: expected .*at most 1"):
        method_by_name("hybrid-envar", static_weight="tune", candidates={"static_weight": [0.5, 1.2]})


def test_runs_of_before_have_the_parameters_they_had():
    assert method_by_name("etkf").config() == {
        "members": 40,
        "inflation": 1.01,
        "rotate": False,
        "spin_up": 100,
    }
    assert set(method_by_name("letkf").config()) == {"members", "radius", "inflation", "spin_up"}
    assert set(method_by_name("enkf").config()) == {"members", "inflation", "spin_up"}
    adaptive = method_by_name("etkf", inflation="adaptive", inflation_std=0.3, relaxation="rtps").config()
    assert (adaptive["inflation"], adaptive["inflation_std"], adaptive["relaxation"]) == ("adaptive", 0.3, "rtps")
    again = method_by_name("etkf", **adaptive)
    assert again.config() == adaptive


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"inflation": "adapted"}, "inflation='adapted': expected 'tune', 'adaptive' or a positive finite number"),
        ({"inflation_std": 0.0}, "inflation_std=0"),
        ({"relaxation": "rtp"}, r"relaxation='rtp': expected one of \['rtpp', 'rtps'\]"),
        ({"relaxation": "rtps", "relaxation_factor": 1.5}, r"relaxation_factor=1\.5: expected .*at most 1"),
        ({"relaxation_factor": "tune"}, "relaxation_factor='tune' without a relaxation: expected relaxation="),
    ],
)
def test_wrong_words_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        method_by_name("etkf", **parameters)


def test_innovations_raise_the_inflation_where_the_model_is_wrong():
    truth = record_of(Lorenz96(16, forcing=8.0), ObservingSystem(std=DOUBLE + 1.0), 120, lanes=6)
    wrong = Record(Lorenz96(16, forcing=9.0), truth.observing, truth.observation, truth.steps, truth.trajectory, 1)
    errors, spread = [], []
    for inflation in (1.02, "adaptive"):
        parameters = {"members": 17, "inflation": inflation, "inflation_std": 0.3, "spin_up": 20}
        outputs, _ = run(method_by_name("etkf", **parameters).prepare(wrong), wrong)
        errors.append(float((outputs["analysis"] - truth.truth)[:, 60:].square().mean().sqrt()))
        spread.append(outputs["spread"][:, 60:].mean())
    assert (outputs["inflation"][:, 60:].mean(1) > 1.02).all()
    assert errors[1] < 0.8 * errors[0]
