"""Networks whose forecast carries a covariance: at the start the filter, exactly; then a correction of it."""

import math
from dataclasses import replace

import pytest
import torch
from test_core_methods import DOUBLE, SITES, error_and_matrix, linear, model, normals, record_of
from torch.testing import assert_close

from xdan.core.dynamics import CustomDynamics, KuramotoSivashinsky, Lorenz63, Lorenz96
from xdan.core.learning import objective_by_name
from xdan.core.learning.gradient import OneProcess
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.rollout import roll_out
from xdan.core.methods import method_by_name, method_of, run
from xdan.core.networks import KalmanCNN, network_by_name
from xdan.core.networks.neighbours import companions
from xdan.core.observing import ObservingSystem, Sites
from xdan.core.spaces import Components, Field, Plane, Ring, StateSpace

KINDS = ("scalar", "diagonal", "full")


def network(quiet: bool = False, **settings) -> KalmanCNN:
    torch.manual_seed(0)
    net = KalmanCNN(**{"filters": 6, "blocks": 2, "kernel": 3, "memory": 2, "diagonals": 3, **settings}).double()
    net.normalise(2.3, 3.6, 1.0)
    if quiet:
        with torch.no_grad():
            list(net.cnn.weights)[-1].zero_()
    return net


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [Sites.all(), Sites.random(1, 3)])
def test_a_silent_network_is_the_second_order_filter(kind, sites):
    """From one analysis on, as the filter starts from the climate's whole covariance."""
    observing, _ = error_and_matrix(kind)
    dynamics = Lorenz96(SITES)
    record = record_of(dynamics, observing, 12, sites=sites)
    classical = method_by_name("second-order-kalman", c2=8.0).prepare(record)
    net = network(quiet=True)
    net.normalise(2.3, float((classical.climate[1].trace() / SITES).sqrt()), 1.0)  # which bounds the inflation
    guided = method_of(net)
    outputs, _ = run(guided, record)
    state = guided.first(guided.start(record), *split(record, 0), observing)
    for k in range(1, 12):
        state = {name: state[name] for name in ("x", "covariance")}
        state = classical.forecast(state, dynamics, 1)
        close = {"rtol": 1e-6, "atol": 1e-6}  # a network's scales are in single precision
        assert_close(outputs["forecast"][:, k], state["x"], **close)
        assert_close(outputs["forecast_spread"][:, k], state["covariance"].diagonal(dim1=1, dim2=2).sqrt(), **close)
        state = classical.analyse(state, *split(record, k), observing)
        assert_close(outputs["analysis"][:, k], state["x"], **close)
        assert_close(outputs["spread"][:, k], state["covariance"].diagonal(dim1=1, dim2=2).sqrt(), **close)


def two_fields() -> CustomDynamics:
    """Linear: a wave of a field and its slope on a ring, each in its own units."""
    space = StateSpace([Field("h", Ring(6), units="m"), Field("u", Ring(6), units="m s-1")])

    def step(fields):
        h, u = fields["h"], fields["u"]
        return {"h": 1.05 * h - 2.0 * (u.roll(-1, -1) - u), "u": 0.95 * u - 0.1 * (h - h.roll(1, -1))}

    return CustomDynamics(step=step, state=space, timestep=1.0, spin_up_time=0.0)


def swirl() -> CustomDynamics:
    """Linear: a field on a plane that moves aside as it goes down, and grows."""
    return CustomDynamics(
        step=lambda x: 0.7 * x + 0.2 * x.roll(1, -1) + 0.15 * x.roll((1, 1), (-2, -1)),
        state=StateSpace(Field("x", Plane((3, 4)))),
        timestep=1.0,
        spin_up_time=0.0,
    )


SPACES = [
    (Lorenz63(), 5),
    (two_fields(), 1),
    (swirl(), 1),
]


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize(("dynamics", "steps"), SPACES)
def test_a_silent_network_on_any_fields_is_the_filter(dynamics, steps, lag):
    size = dynamics.space.size
    if dynamics.spin_up_time == 0.0:
        dynamics = dynamics.with_climatology(normals(50, *dynamics.shape))
    observing = ObservingSystem(std=DOUBLE + 1.0)
    truth = [dynamics.climatology([0, 1], 1, like=DOUBLE).flatten(1)]
    for _ in range(7):
        truth.append(dynamics.advance(truth[-1].reshape(2, *dynamics.shape), steps).flatten(1))
    record = record_of(dynamics, observing, 8, steps=lambda k: steps * int(k > 0), truth=torch.stack(truth, 1))
    name, extra = ("iterated-kalman-smoother", {"lag": lag, "iterations": 1}) if lag else ("second-order-kalman", {})
    classical = method_by_name(name, c2=1.0, **extra).prepare(record)
    net = network(quiet=True, lag=lag, space=dynamics.space, c2=1.0)
    fields = len(dynamics.space)
    net.normalise(*([[value] * fields if fields > 1 else value for value in (0.0, 1e3, 1.0)]))
    guided = method_of(net).bound(dynamics)
    start = guided.first(guided.start(record), *split(record, 0), observing)
    mine, state = start, {**start, "iterations": start["x"].new_zeros(2), "unconverged": start["x"].new_zeros(2)}
    state = {**state, "covariance": state["covariance"].clone()}
    classical._climate = classical.climate[0], torch.eye(size, dtype=torch.float64) * 1e6  # bounds nothing
    for k in range(1, 8):
        state, mine = (method.forecast(s, dynamics, steps) for method, s in ((classical, state), (guided, mine)))
        state, mine = (
            method.analyse(s, *split(record, k), observing) for method, s in ((classical, state), (guided, mine))
        )
        assert_close(mine["x"], state["x"], rtol=1e-5, atol=1e-5)
        assert_close(mine["covariance"], state["covariance"], rtol=1e-5, atol=1e-5)


def test_companions_are_neighbours_and_the_other_fields_at_a_point():
    geometry = Plane((4, 5))
    space = StateSpace([Field("h", geometry), Field("u", geometry)])
    seen = companions(space, 3)
    assert seen.shape == (40, 6)
    assert seen[7].tolist() == [2, 7, 12, 6, 8, 27]  # row 1, column 2: above, itself, below, left, right, u there
    assert seen[20].tolist() == [35, 20, 25, 24, 21, 0]  # the first of u, around both edges
    points = companions(StateSpace(Field("x", Components(3))), 9)
    assert points.tolist() == [[0, 1, 2]] * 3
    ring = companions(KuramotoSivashinsky(24, 22.0).space, 5)
    assert ring[0].tolist() == [22, 23, 0, 1, 2] == KalmanCNN(diagonals=5).companions(24)[0].tolist()


def split(record, k):
    observation = record.observation[:, k]
    return observation.nan_to_num(0.0), ~observation.isnan()


def test_the_first_analysis_is_optimal_interpolation():
    matrix, (observing, r) = model(), error_and_matrix("full")
    record = record_of(linear(matrix), observing, 2)
    net = network()
    outputs, _ = run(method_of(net), record)
    p = 3.6**2 * torch.eye(matrix.shape[0], dtype=torch.float64)
    gain = p @ torch.linalg.inv(p + r)
    assert_close(outputs["spread"][0, 0], (p - gain @ p).diagonal().sqrt(), rtol=1e-9, atol=1e-12)


def test_the_network_sees_the_diagonals_around_the_ring():
    net = network(diagonals=5)
    increment, covariance = normals(2, 7), normals(2, 7, 7)
    guides = net.guide(increment, covariance)
    assert guides.shape == (2, net.guides, 7) == (2, 6, 7)
    assert_close(guides[:, 0], increment)
    for channel, offset in enumerate(range(-2, 3), 1):
        for n in range(7):
            assert_close(guides[:, channel, n], covariance[:, n, (n + offset) % 7] / 0.04)


def test_what_it_does_moves_with_the_ring():
    net = network()
    x, zeta, memory = normals(2, 8), normals(2, 8, seed=1), normals(2, 2, 8, seed=2)
    covariance = normals(2, 8, 8, seed=3)
    covariance = covariance @ covariance.mT
    increment = (covariance @ zeta[..., None])[..., 0]
    analysis, after = net(x, zeta, memory, net.guide(increment, covariance))
    turned = net.guide(increment.roll(3, -1), covariance.roll((3, 3), (-2, -1)))
    other, memory_after = net(x.roll(3, -1), zeta.roll(3, -1), memory.roll(3, -1), turned)
    assert_close(other, analysis.roll(3, -1))
    assert_close(memory_after, after.roll(3, -1))


@pytest.mark.parametrize("memory", [0, 2])
def test_the_gradient_is_the_finite_difference_at_a_fixed_covariance(memory):
    """No gradient passes through P: with one cycle of the network there is no other way to the weights."""
    net = network(memory=memory)
    observing = ObservingSystem(std=DOUBLE + 1.0)
    sizes = {"steps": 1, "trajectories": 3, "batch": 3, "cycles": 2, "seed": 0, "like": DOUBLE + 0.0}
    source = EndlessTwin(Lorenz96(8), Sites.every(2), observing, **sizes)
    gradient = OneProcess(net, source.dynamics, observing, objective_by_name("mse"))
    window = source.window(0)
    answer = gradient(window, None)
    weights = list(net.parameters())
    directions = [normals(*one.shape, seed=k) if one.ndim else normals(1)[0] for k, one in enumerate(weights)]
    expected = sum(float((a * b).sum()) for a, b in zip(answer.gradients, directions, strict=True))
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            for one, direction in zip(weights, directions, strict=True):
                one.add_(sign * 1e-6 * direction)
        losses.append(float(gradient(window, None).loss))
        with torch.no_grad():
            for one, direction in zip(weights, directions, strict=True):
                one.sub_(sign * 1e-6 * direction)
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(expected, rel=1e-5)


def test_a_window_goes_on_from_the_covariance_that_the_last_one_left():
    net, observing = network(), ObservingSystem(std=DOUBLE + 1.0)
    sizes = {"steps": 1, "trajectories": 3, "batch": 3, "cycles": 4, "seed": 0, "like": DOUBLE + 0.0}
    gradient = OneProcess(net, Lorenz96(8), observing, objective_by_name("mse"))
    source = EndlessTwin(Lorenz96(8), Sites.all(), observing, **sizes)
    state = gradient(source.window(0), None).state
    assert not state["covariance"].requires_grad
    after = gradient(source.window(1), state)
    assert {"x", "covariance", "memory"} == set(after.state)
    assert (after.square < 4).all()
    assert not after.lost.any()


def test_derivatives_without_the_filter_are_refused():
    net = network()
    x = normals(2, 8)
    for call in (
        lambda: net.analysis_covariance(x, x, None),
        lambda: net.marginal_gain(x, x, None, 0),
        lambda: net.forecast_derivative(x, x, None, 0),
    ):
        with pytest.raises(ValueError, match="reads P_a of the filter beside it, which the module does not know"):
            call()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diagonals": 4}, "diagonals=4"),
        ({"c2": -1.0}, "c2=-1"),
        ({"kernel": 2}, "kernel=2"),
    ],
)
def test_what_it_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KalmanCNN(**settings)


def test_a_model_without_derivatives_is_refused():
    black = CustomDynamics(step=lambda x: torch.from_numpy(x.detach().numpy() * 0.9), state={"x": 6}, timestep=1.0)
    with pytest.raises(ValueError, match="deriv"):
        method_of(network()).prepare(record_of(black, ObservingSystem(std=DOUBLE + 1.0), 3))


def test_a_mean_is_conserved_and_fixed_inputs_are_seen():
    dynamics = KuramotoSivashinsky(24, 22.0)
    net = network(space=dynamics.space)
    x, increment = normals(2, 24), normals(2, 24, seed=1)
    guides = net.guide(increment, torch.eye(24, dtype=torch.float64).expand(2, 24, 24))
    analysis, _ = net(x, normals(2, 24, seed=2), None, guides)
    assert_close(analysis.mean(1), x.mean(1))
    assert (analysis - x).abs().max() > 0.1


def test_it_is_known_by_its_name():
    assert isinstance(network_by_name("kalman-cnn", {"filters": 4}), KalmanCNN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [Sites.all(), Sites.random(1, 3)])
@pytest.mark.parametrize(("lag", "passes", "steps"), [(1, 1, 1), (3, 1, 1), (2, 20, 4)])
def test_a_silent_network_some_intervals_back_is_the_smoother(kind, sites, lag, passes, steps):
    observing, _ = error_and_matrix(kind)
    dynamics = Lorenz96(SITES)
    record = record_of(dynamics, observing, 10, sites=sites, steps=lambda k: steps * int(k > 0))
    classical = method_by_name("iterated-kalman-smoother", c2=8.0, lag=lag, iterations=passes).prepare(record)
    net = network(quiet=True, lag=lag, passes=passes)
    net.normalise(2.3, float((classical.climate[1].trace() / SITES).sqrt()), 1.0)  # which bounds the inflation
    guided = method_of(net).bound(dynamics)
    outputs, _ = run(guided, record)
    start = guided.first(guided.start(record), *split(record, 0), observing)
    names = ("x", "begin", "covariance", "steps", "smoothed", "forecast_spread", "spread")
    state = {name: start[name] for name in names}
    state |= {"iterations": state["x"].new_zeros(2), "unconverged": state["x"].new_zeros(2)}
    close = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}  # a network's scales are in single precision
    for k in range(1, 10):
        state = classical.forecast(state, dynamics, steps)
        assert_close(outputs["forecast"][:, k], state["x"], **close)
        state = classical.analyse(state, *split(record, k), observing)
        for output, name in (("analysis", "x"), ("smoothed", "smoothed"), ("forecast_spread", "forecast_spread")):
            assert_close(outputs[output][:, k], state[name], **close)


def test_on_a_linear_model_no_lag_changes_a_silent_network():
    record = record_of(linear(model()), error_and_matrix("full")[0], 9, sites=Sites.random(1, 3))
    plain, _ = run(method_of(network(quiet=True)), record)
    lagged, _ = run(method_of(network(quiet=True, lag=3)), record)
    for name in ("analysis", "forecast", "spread", "forecast_spread"):
        assert_close(lagged[name], plain[name], rtol=1e-7, atol=1e-7)


def test_windows_are_those_of_each_trajectory():
    """One that starts anew begins a window without length, and moves no other."""
    net = network(lag=2)
    dynamics = Lorenz96(8)
    method = method_of(net).bound(dynamics)
    record = record_of(dynamics, ObservingSystem(std=DOUBLE + 1.0), 6, lanes=3)
    state = method.first(method.start(record), *split(record, 0), record.observing)
    for k in range(1, 4):
        state = method.analyse(method.forecast(state, dynamics, 1), *split(record, k), record.observing)
    anew = method.first(method.start(record), *split(record, 3), record.observing)
    lost = torch.tensor([False, True, False])
    mixed = {name: torch.where(lost.reshape(-1, *(1 for _ in v.shape[1:])), anew[name], v) for name, v in state.items()}
    assert mixed["steps"].tolist() == [[1, 1], [0, 0], [1, 1]]
    for k in (4, 5):
        mixed, state, anew = (
            method.analyse(method.forecast(one, dynamics, 1), *split(record, k), record.observing)
            for one in (mixed, state, anew)
        )
    for name in ("x", "begin", "covariance", "memory", "spread"):
        assert_close(mixed[name][[0, 2]], state[name][[0, 2]])
        assert_close(mixed[name][1], anew[name][1])
    assert_close(dynamics.advance(mixed["begin"], 2), mixed["x"])


@pytest.mark.parametrize("settings", [{}, {"lag": 2}, {"lag": 2, "passes": 3}])
def test_the_gradient_is_that_of_the_loss_through_all_cycles(settings):
    """Of a linear model, where no weight of the network changes the covariance or the gain."""
    net, observing = network(**settings), ObservingSystem(std=DOUBLE + 1.0)
    sizes = {"steps": 1, "trajectories": 3, "batch": 3, "cycles": 5, "seed": 0, "like": DOUBLE + 0.0}
    source = EndlessTwin(linear(model()), Sites.every(2), observing, **sizes)
    window, method = source.window(0), method_of(net)

    def loss():
        return (roll_out(method, source.dynamics, observing, window, None).analysis - window.truth).square().mean()

    for weight in list(net.parameters())[:2]:
        direction = normals(*weight.shape)
        slope = float((torch.autograd.grad(loss(), weight)[0] * direction).sum())
        losses = []
        for step in (1e-6, -2e-6, 1e-6):
            with torch.no_grad():
                weight.add_(step * direction)
                losses.append(float(loss()))
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_a_lag_needs_a_model_that_does_not_depend_on_time():
    moving = CustomDynamics(tendency=lambda x, t: torch.cos(t) - x, state={"x": 6}, timestep=0.05)
    with pytest.raises(ValueError, match="expected one that does not, or lag=0"):
        method_of(network(lag=2)).bound(moving)


def test_a_covariance_of_many_sites_is_refused():
    method = method_of(network())
    with pytest.raises(ValueError, match=r"2,001 x 2,001 .* expected at most 2,000 .*radius=\.\.\."):
        method.start_like(DOUBLE, (1, 2001))
    record = record_of(linear(model()), ObservingSystem(std=DOUBLE + 1.0), 3)
    wide = replace(record, dynamics=Lorenz96(2001))
    for name, settings in (("second-order-kalman", {}), ("iterated-kalman-smoother", {"lag": 1})):
        with pytest.raises(ValueError, match="expected at most 2,000 components"):
            method_by_name(name, c2=1.0, **settings).prepare(wide)


# --- a covariance that the forecast alone tells ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_network_with_a_past_is_the_covariance_from_the_state(kind):
    observing, _ = error_and_matrix(kind)
    dynamics = Lorenz96(SITES)
    record = record_of(dynamics, observing, 9)
    settings = {"past": "dynamics", "depth": 3, "c2": 8.0, "epsilon": math.sqrt(0.03), "inflation": 1.0}
    classical = method_by_name("state-covariance", **settings).prepare(record)
    net = network(quiet=True, past=3)
    net.normalise(2.3, float((classical._climate[1].trace() / SITES).sqrt()), 1.0)
    guided = method_of(net).bound(dynamics)
    outputs, _ = run(guided, record)
    assert_close(outputs["forecast"][:, 1:], dynamics.advance(outputs["analysis"][:, :-1], 1))
    x = outputs["forecast"]
    for k in range(3, 9):
        past = {"x": x[:, k], "steps": torch.ones(2, 3, dtype=torch.int64)}
        past["observed"] = torch.ones(2, 3, SITES, dtype=torch.bool)
        past["analyses"] = x[:, :3]  # not read
        state = classical.analyse(past, *split(record, k), observing)
        close = {"rtol": 1e-5, "atol": 1e-5}  # a network's scales are in single precision
        assert_close(outputs["analysis"][:, k], state["x"], **close)
        assert_close(outputs["forecast_spread"][:, k], state["forecast_spread"], **close)
        assert_close(outputs["spread"][:, k], state["spread"], **close)


def test_a_network_with_a_past_carries_nothing():
    """Two histories that lead to one forecast have one analysis."""
    net = network(past=4, memory=0)
    dynamics = Lorenz96(8)
    method = method_of(net).bound(dynamics)
    record = record_of(dynamics, ObservingSystem(std=DOUBLE + 1.0), 4)
    state = method.first(method.start(record), *split(record, 0), record.observing)
    assert set(state) == {"x", "steps", "forecast_spread", "spread"}
    one = method.analyse(method.forecast(state, dynamics, 1), *split(record, 1), record.observing)
    before = {**one, "spread": 7.0 * one["spread"], "forecast_spread": 0.0 * one["spread"]}
    ahead, other = (method.forecast(each, dynamics, 1) for each in (one, before))
    first, second = (method.analyse(each, *split(record, 2), record.observing) for each in (ahead, other))
    for name in first:
        assert_close(first[name], second[name], rtol=0, atol=0)


def test_weights_are_those_of_any_past():
    """The same tensors, so that a network trained with a covariance that is carried serves without."""
    carried, rebuilt = network(), network(past=5)
    assert [one.shape for one in carried.parameters()] == [one.shape for one in rebuilt.parameters()]
    with pytest.raises(ValueError, match="lag=1, past=2: expected one of them to be 0"):
        network(lag=1, past=2)
    with pytest.raises(ValueError, match="passes=2, lag=0: expected a lag"):
        network(passes=2)
    moving = CustomDynamics(tendency=lambda x, t: torch.cos(t) - x, state={"x": 6}, timestep=0.05)
    with pytest.raises(ValueError, match="expected one that does not, or past=0"):
        method_of(rebuilt).bound(moving)


def test_no_lag_is_the_plain_network():
    """And a lagged one does the same in a window that has no intervals yet, as long as it is silent."""
    record = record_of(Lorenz96(8), ObservingSystem(std=DOUBLE + 1.0), 2)
    plain, lagged = method_of(network(quiet=True, lag=0)), method_of(network(quiet=True, lag=2)).bound(record.dynamics)
    assert type(plain) is type(method_of(network()))
    start = lagged.first(lagged.start(record), *split(record, 0), record.observing)
    assert not start["steps"].any()
    one, other = (each.analyse(start, *split(record, 1), record.observing) for each in (plain, lagged))
    for name in ("x", "covariance"):
        assert_close(other[name], one[name], rtol=1e-9, atol=1e-9)


def test_an_analysis_that_cannot_be_made_is_not_finite():
    """Nothing that looks like an analysis is left where H P H^T + R is not positive."""
    record = record_of(Lorenz96(8), ObservingSystem(std=DOUBLE + 1.0), 2)
    method = method_of(network())
    state = method.first(method.start(record), *split(record, 0), record.observing)
    state["covariance"][1] = -5.0 * torch.eye(8).double()
    after = method.analyse(state, *split(record, 1), record.observing)
    for name in ("x", "covariance"):
        assert after[name][0].isfinite().all()
        assert not after[name][1].isfinite().any()


def test_a_record_no_longer_than_the_lag_is_refused():
    record = record_of(Lorenz96(8), ObservingSystem(std=DOUBLE + 1.0), 3)
    with pytest.raises(ValueError, match="lag=3: the record has 3 times; expected more than the lag"):
        method_of(network(lag=3)).bound(record.dynamics).prepare(record)
