"""Covariances as columns of a root: what they keep of the whole matrix."""

from dataclasses import replace

import pytest
import torch
from test_core_methods import normals, record_of
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, Lorenz96
from xdan.core.learning import objective_by_name
from xdan.core.learning.gradient import OneProcess
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.methods import method_by_name, method_of, run
from xdan.core.methods.columns import Columns
from xdan.core.methods.covariance_forms import FormOf, InColumns, OneMatrix
from xdan.core.methods.gaussian_forecast import forecast_moments
from xdan.core.networks import KalmanCNN
from xdan.core.observing import LinearOperator, ObservingSystem, Sites
from xdan.core.spaces import Field, Ring, Sphere, StateSpace

SIZE, COUNT = 12, 5
CPU = torch.device("cpu")
MOST = torch.tensor(1e9, dtype=torch.float64)


def form(space=None, count: int = COUNT, companions=None) -> InColumns:
    return InColumns(Columns(Lorenz96(SIZE).space if space is None else space, count, CPU), companions)


def whole(covariance: torch.Tensor) -> torch.Tensor:
    """The matrix that rows (B, 1 + k, N) stand for."""
    return torch.diag_embed(covariance[:, 0].square()) + covariance[:, 1:].mT @ covariance[:, 1:]


def errors(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, ObservingSystem]:
    """What is observed, an innovation, and errors that differ from site to site."""
    observed = normals(batch, SIZE, seed=4) < 0.6
    return observed, normals(batch, SIZE, seed=5), ObservingSystem(0.5 + normals(SIZE, seed=6).abs())


@pytest.mark.parametrize("independent", [0.0, 0.7])
def test_an_analysis_is_that_of_the_matrix(independent):
    covariance = normals(3, 1 + COUNT, SIZE)
    covariance[:, 0] = independent * covariance[:, 0].abs()
    observed, innovation, observing = errors()
    x = normals(3, SIZE, seed=8)
    increment, after = form().update(x, covariance, innovation, observed, observing)
    expected, matrix = OneMatrix().update(x, whole(covariance), innovation, observed, observing)
    assert_close(increment, expected, rtol=1e-10, atol=1e-11)
    assert_close(whole(after), matrix, rtol=1e-10, atol=1e-11)
    assert_close(whole(form().analysed(x, covariance, observed, observing)), matrix, rtol=1e-10, atol=1e-11)


def test_a_forecast_is_that_of_the_matrix_where_the_columns_hold_it():
    """Four directions of a linear model need no more than four columns; a fifth is left for what is new."""
    covariance = torch.zeros(2, 1 + COUNT, SIZE, dtype=torch.float64)
    covariance[:, 1:5] = normals(2, 4, SIZE)
    dynamics, x = Lorenz96(SIZE), 8 + normals(2, SIZE, seed=2)
    after = form().forecast(dynamics, x, covariance, 3, 0.0, MOST)
    expected = forecast_moments(dynamics, x, whole(covariance), 3).covariance
    assert_close(whole(after), expected, rtol=1e-10, atol=1e-10)
    gram = after[:, 1:] @ after[:, 1:].mT
    assert_close(gram, torch.diag_embed(gram.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-9)
    assert bool((gram.diagonal(dim1=1, dim2=2).diff(dim=1) <= 1e-9).all())
    assert form().forecast(dynamics, x, covariance, 0, 1.0, MOST) is covariance


def test_the_second_term_is_that_of_the_leading_columns():
    """Of twenty sites and fifteen columns, four and their ten pairs are all held. The columns stand in any order."""
    size, count = 20, 15
    root = torch.zeros(2, count, size, dtype=torch.float64)
    root[:, :4] = 0.3 * normals(2, 4, size)
    turned = torch.linalg.qr(normals(2, count, count, seed=6))[0] @ root
    covariance = torch.cat([torch.zeros(2, 1, size, dtype=torch.float64), turned], 1)
    bilinear = CustomDynamics(  # without a closed form, so that the matrix takes second derivatives too
        step=lambda x: x + 0.05 * x.roll(1, -1) * x.roll(-1, -1), state={"x": size}, timestep=1.0, spin_up_time=0.0
    )
    x = normals(2, size, seed=2)
    moments = forecast_moments(bilinear, x, whole(covariance), 1)
    after = form(bilinear.space, count).forecast(bilinear, x, covariance, 1, 2.0, MOST)
    assert_close(whole(after), moments.inflated(2.0, MOST), rtol=1e-9, atol=1e-10)
    trace = whole(after).diagonal(dim1=1, dim2=2).sum(1).min() * 0.999  # a bound below it
    bounded = whole(form(bilinear.space, count).forecast(bilinear, x, covariance, 1, 2.0, trace))
    assert_close(bounded, moments.inflated(2.0, trace), rtol=1e-9, atol=1e-10)


def test_independent_errors_become_columns_of_their_variance():
    space = StateSpace(Field("x", Ring(400)))
    kept = form(space, 200)
    still = CustomDynamics(step=lambda x: 1.0 * x, state=space, timestep=1.0, spin_up_time=0.0)
    variance = (1.0 + torch.arange(400.0, dtype=torch.float64) / 400)[None]
    after = kept.forecast(still, torch.zeros(1, 400, dtype=torch.float64), kept.diagonal(variance), 1, 0.0, MOST)
    assert_close(kept.variances(kept.diagonal(variance)), variance)
    assert bool((after[:, 0] == 0).all())
    ratio = kept.variances(after) / variance  # a mean of 200 squares: 1 +- 0.1
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(ratio.std()) == pytest.approx(0.1, abs=0.02)


def test_directions_are_compared_without_units_and_by_area():
    """A field in units a million times as small has as many columns as before."""
    ring = Ring(SIZE)
    two = StateSpace([Field("a", ring), Field("b", ring)])
    rows = normals(2, 9, 2 * SIZE)
    scale = torch.cat([torch.ones(SIZE), torch.full((SIZE,), 1e6)]).to(torch.float64)
    plain, other = (Columns(two, 4, CPU)._leading(one) for one in (rows, rows * scale))
    assert_close(plain.mT @ plain, other.mT @ other / scale / scale[:, None], rtol=1e-8, atol=1e-10)
    sphere = StateSpace(Field("x", Sphere(8, 16, grid="gaussian")))
    area = sphere["x"].geometry.weights()
    near_pole, near_equator = torch.zeros(2, 1, 128, dtype=torch.float64).unbind(0)
    near_pole[0, 3], near_equator[0, 3 * 16 + 3] = 1.2, 1.0  # taller, but of a smaller area
    first = Columns(sphere, 1, CPU)._leading(torch.stack([near_pole, near_equator], 1))
    assert area[3] < area[3 * 16 + 3]
    assert_close(first.abs(), near_equator[None], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_filter_by_columns_is_as_accurate_as_one_by_a_matrix():
    """On Lorenz-96, whose errors grow in a third of all directions, with some inflation for what is left out."""
    model = Lorenz96(SIZE)
    record = record_of(model, ObservingSystem(torch.ones((), dtype=torch.float64)), cycles=150, lanes=4)
    rmse = {}
    for label, columns, inflation in (("matrix", None, 1.0), ("columns", 9, 1.03)):
        method = method_by_name("second-order-kalman", c2=4.0, columns=columns, inflation=inflation).prepare(record)
        outputs, _ = run(method, record)
        square = (outputs["analysis"] - record.truth)[:, 50:].square()
        rmse[label] = float(square.mean(-1).sqrt().mean())
    assert rmse["columns"] == pytest.approx(rmse["matrix"], rel=0.1)


def test_a_network_sees_columns_as_it_sees_the_matrix():
    covariance = normals(2, 1 + COUNT, SIZE)
    torch.manual_seed(0)
    net = KalmanCNN(filters=4, blocks=1, memory=0, columns=COUNT).double()
    kept = FormOf(None, COUNT, net.companions).of(Lorenz96(SIZE))
    assert_close(kept.seen(covariance), OneMatrix(net.companions).seen(whole(covariance)))
    observed, innovation, observing = errors(2)
    x, y = normals(2, SIZE, seed=3), normals(2, SIZE, seed=3) + innovation
    bound = method_of(net).bound(Lorenz96(SIZE))
    by_columns = bound.analyse({"x": x, "covariance": covariance}, y, observed, observing)["x"]
    net_alone = KalmanCNN(**{**net.config(), "columns": None}).double()
    net_alone.load_state_dict(net.state_dict())
    alone = method_of(net_alone).bound(Lorenz96(SIZE))
    expected = alone.analyse({"x": x, "covariance": whole(covariance)}, y, observed, observing)["x"]
    assert_close(by_columns, expected, rtol=1e-10, atol=1e-11)


def test_what_is_not_finite_loses_its_own_trajectory():
    covariance = normals(2, 1 + COUNT, SIZE)
    covariance[1, 2, 3] = torch.nan
    observed, innovation, observing = errors(2)
    increment, after = form().update(normals(2, SIZE), covariance, innovation, observed, observing)
    assert bool(increment[0].isfinite().all())
    assert bool(increment[1].isnan().any())
    moved = form().forecast(Lorenz96(SIZE), normals(2, SIZE), after, 1, 1.0, MOST)
    assert bool(moved[0].isfinite().all())


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"columns": 4, "radius": 2.0}, ValueError, "radius=2.0, columns=4: expected at most one"),
        ({"columns": 0}, ValueError, "columns"),
        ({"columns": 2.5}, TypeError, "columns"),
    ],
)
@pytest.mark.parametrize("make", [lambda **words: method_by_name("second-order-kalman", **words), KalmanCNN])
def test_bad_columns_are_refused(make, settings, error, text):
    with pytest.raises(error, match=text):
        make(**settings)


def test_columns_and_a_window_are_refused():
    with pytest.raises(ValueError, match="columns=4, lag=2"):
        KalmanCNN(columns=4, lag=2)


@pytest.mark.parametrize("kind", ["operator", "correlated errors", "both"])
def test_an_analysis_of_other_observations_is_that_of_the_matrix(kind):
    operator = None if kind == "correlated errors" else LinearOperator(normals(7, SIZE, seed=2))
    count = SIZE if operator is None else 7
    root = torch.eye(count, dtype=torch.float64) + 0.2 * normals(count, count, seed=3)
    errors = {"std": torch.ones(count, dtype=torch.float64)} if kind == "operator" else {"covariance": root @ root.T}
    observing = ObservingSystem(**errors, operator=operator)
    covariance = normals(3, 1 + COUNT, SIZE)
    covariance[:, 0] = 0.0
    observed, innovation = normals(3, count, seed=4) < 0.6, normals(3, count, seed=5)
    x = normals(3, SIZE, seed=8)
    increment, after = form().update(x, covariance, innovation, observed, observing)
    expected, matrix = OneMatrix().update(x, whole(covariance), innovation, observed, observing)
    assert_close(increment, expected, rtol=1e-9, atol=1e-10)
    assert_close(whole(after), matrix, rtol=1e-9, atol=1e-10)
    with pytest.raises(ValueError, match=r"columns=5, and observations of an operator .* begins with independent"):
        form().check_first(observing, "the network")


def test_a_filter_starts_from_the_leading_columns_of_the_climate():
    states = 3.0 * normals(400, SIZE) @ torch.diag(torch.linspace(1.0, 0.1, SIZE, dtype=torch.float64))
    model = Lorenz96(SIZE).with_climatology(states)
    mean, covariance, most = form().climate(model, 0, states)
    exact = torch.cov(states.T)
    assert_close(mean, states.mean(0))
    assert_close(whole(covariance[None])[0].diagonal(), exact.diagonal())
    assert float(most) == pytest.approx(float(exact.trace()))
    leading = torch.linalg.eigvalsh(exact).flip(0)[:COUNT]
    assert_close(covariance[1:].square().sum(1), leading)
    few = Lorenz96(SIZE).with_climatology(states[:3])  # of two directions alone
    assert int((form().climate(few, 0, states)[1][1:].square().sum(1) > 1e-12).sum()) == 2


def test_a_network_by_columns_starts_from_a_climatology_that_is_given():
    """Its first analysis is then a Kalman update with the climate's covariance, not one of each site by itself."""
    states = 3.0 * normals(400, SIZE - 1) @ normals(SIZE - 1, SIZE, seed=9) / SIZE**0.5  # of as many directions
    torch.manual_seed(0)
    net = KalmanCNN(filters=4, blocks=1, memory=0, columns=SIZE - 1).double()
    net.normalise(0.0, 3.0, 1.0)
    unit = ObservingSystem(torch.ones((), dtype=torch.float64))
    model = Lorenz96(SIZE).with_climatology(states)
    record = record_of(model, unit, cycles=1, sites=Sites.every(3))
    first, _ = run(method_of(net).prepare(record), record)
    p = torch.cov(states.T)
    seen = torch.arange(0, SIZE, 3)
    gain = p[:, seen] @ torch.linalg.inv(p[seen][:, seen] + torch.eye(len(seen), dtype=torch.float64))
    mean = states.mean(0)
    expected = mean + (record.observation[:, 0, seen] - mean[seen]) @ gain.T
    assert_close(first["analysis"][:, 0], expected, rtol=1e-8, atol=1e-8)
    plain = replace(record, dynamics=Lorenz96(SIZE))
    alone, _ = run(method_of(net).prepare(plain), plain)
    assert_close(alone["analysis"][:, 0, 1], torch.zeros(2, dtype=torch.float64))


def test_a_climate_of_several_fields_is_ranked_without_units():
    two = StateSpace([Field("a", Ring(SIZE)), Field("b", Ring(SIZE))])
    waves = torch.cat([torch.cos(torch.arange(SIZE) * 0.5), 1e-3 * torch.sin(torch.arange(SIZE) * 0.7)])
    states = normals(300, 2).repeat_interleave(SIZE, 1) * waves + 1e-6 * normals(300, 2 * SIZE)
    model = CustomDynamics(step=lambda x: x, state=two, timestep=1.0, spin_up_time=0.0).with_climatology(states)
    covariance = form(two, 2).climate(model, 0, states)[1]
    share = covariance[1:].square().sum(0) / states.var(0)
    assert float(share[waves.abs() > 1e-4].min()) > 0.99  # the small field's pattern is in a column too


@pytest.mark.parametrize("lag", [0, 1])
def test_a_network_inflates_before_each_forecast(lag):
    torch.manual_seed(0)
    still = CustomDynamics(step=lambda x: 1.0 * x, state={"x": SIZE}, timestep=1.0, spin_up_time=0.0)
    spread = {}
    for inflation in (1.0, 1.5):
        net = KalmanCNN(filters=2, blocks=1, memory=0, c2=0.0, lag=lag, inflation=inflation).double()
        record = record_of(still, ObservingSystem(torch.ones((), dtype=torch.float64)), cycles=4)
        spread[inflation] = run(method_of(net).prepare(record), record)[0]["forecast_spread"]
    late = 1 + lag
    assert bool((spread[1.5][:, late:] > 1.05 * spread[1.0][:, late:]).all())
    if not lag:  # P_f = 1.5^2 P_a
        variance = 0.5  # of the first analysis, from a climate of variance 1
        assert_close(spread[1.5][:, 1], torch.full((2, SIZE), 1.5 * variance**0.5, dtype=torch.float64))


def test_what_a_rebuilt_covariance_cannot_have_is_refused():
    for settings in ({"inflation": 1.1}, {"columns": 3}):
        with pytest.raises(ValueError, match="a rebuilt covariance is one matrix, and is not inflated"):
            KalmanCNN(past=4, **settings)


def test_a_training_by_columns_refuses_an_operator():
    model = Lorenz96(SIZE)
    net = KalmanCNN(filters=2, blocks=1, memory=0, columns=4)
    operator = LinearOperator(torch.eye(3, SIZE, dtype=torch.float64))
    observing = ObservingSystem(torch.ones(3, dtype=torch.float64), operator=operator)
    with pytest.raises(ValueError, match="columns=4, and observations of an operator"):
        method_of(net).check_training(model, observing)
    method_of(net).check_training(model, ObservingSystem(torch.ones(())))


def test_a_training_by_columns_goes_back_through_the_correction():
    torch.manual_seed(0)
    model = Lorenz96(SIZE)
    net = KalmanCNN(filters=4, blocks=1, memory=2, columns=5, inflation=1.05).double()
    net.normalise(2.3, 3.6, 1.0)
    observing, like = ObservingSystem(torch.ones((), dtype=torch.float64)), torch.zeros((), dtype=torch.float64)
    sizes = {"steps": 1, "trajectories": 3, "batch": 3, "cycles": 4, "seed": 0, "like": like}
    source = EndlessTwin(model, Sites.all(), observing, **sizes)
    gradient = OneProcess(net, model, observing, objective_by_name("mse"))
    result = gradient(source.window(0), None)
    assert result.state["covariance"].shape == (3, 6, SIZE)
    assert all(bool(one.isfinite().all()) and float(one.norm()) > 0 for one in result.gradients)
    again = gradient(source.window(1), result.state)
    assert bool(again.state["covariance"].isfinite().all())


def test_a_small_state_has_a_matrix():
    assert FormOf(None, 40).of(Lorenz96(40)).whole
    assert not FormOf(None, 39).of(Lorenz96(40)).whole
