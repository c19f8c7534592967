"""The trainer: its gradients, runs that resume exactly, and learning that helps."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.learning.objectives import objective_by_name, root_squared_error, squared_error
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.rollout import Window, roll_out
from xdan.core.learning.schedules import linear_decay
from xdan.core.learning.trainer import Optimiser, Trainer, normalised_innovation
from xdan.core.methods import DataAssimilationNetwork, Record, run
from xdan.core.networks import ResidualCNN
from xdan.core.observing import ObservingSystem, Sites

DYNAMICS = Lorenz96(12)
ERROR = ObservingSystem(std=torch.tensor(1.0, dtype=torch.float64))


SUPERVISED = {"mse": squared_error, "rmse": root_squared_error}


def triple(*arguments):
    """Analyses, lost trajectories and the state at the end."""
    rollout = roll_out(*arguments)
    return rollout.analysis, rollout.lost, rollout.state


def network(seed: int = 0, memory: int = 2, filters: int = 4) -> ResidualCNN:
    torch.manual_seed(seed)
    net = ResidualCNN(filters=filters, blocks=2, kernel=3, memory=memory).double()
    net.normalise(2.3, 3.6, 1.0)
    return net


def twin(batch: int = 5, cycles: int = 4, sites: Sites | None = None, first: int = 0) -> EndlessTwin:
    """Two groups of trajectories."""
    return EndlessTwin(
        DYNAMICS,
        sites or Sites.random(6, 12),
        ERROR,
        steps=1,
        trajectories=2 * batch,
        batch=batch,
        cycles=cycles,
        seed=0,
        like=torch.zeros((), dtype=torch.float64),
        first=first,
    )


def trainer(net: ResidualCNN, objective: str = "rmse", **settings) -> Trainer:
    return Trainer(net, DYNAMICS, ERROR, objective_by_name(objective), Optimiser(**settings))


def gradients_of_a_step(window: Window, **settings) -> tuple[list[torch.Tensor], float]:
    """Gradients, not shortened, and loss of one step on a window."""
    trains = trainer(network(), clip=1e9, **settings)
    report = trains.step(window, 1.0)
    return [p.grad.clone() for p in trains.parameters], report.loss


@pytest.mark.parametrize("objective", SUPERVISED)
def test_gradients_of_a_step_are_those_of_the_mean_loss(objective):
    window, net = twin().window(0), network().train()
    analysis, _, _ = triple(DataAssimilationNetwork(net), DYNAMICS, ERROR, window, None)
    # The first analysis is not the network's.
    loss = SUPERVISED[objective](analysis[:, 1:], window.truth[:, 1:]).mean()
    expected = torch.autograd.grad(loss, list(net.parameters()))
    gradients, reported = gradients_of_a_step(window, objective=objective)
    assert reported == pytest.approx(float(loss.detach()), rel=1e-12)
    for gradient, other in zip(gradients, expected, strict=True):
        assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_a_group_carries_on_where_its_last_window_ended():
    source, net = twin(), network()
    trains = trainer(net, learning_rate=1e-30, adam_learning_rate=1e-30)
    windows = [source.window(index) for index in range(4)]
    for window in windows:
        trains.step(window, 1.0)
    for group in (0, 1):
        first, second = (w for w in windows if w.group == group)
        observation = torch.cat([first.observation, second.observation], 1)
        record = Record(DYNAMICS, ERROR, observation, (0, *[1] * 7), torch.arange(5), 0)
        _, end = run(DataAssimilationNetwork(net.eval()), record)
        assert_close(trains.states[group]["x"], end["x"].detach(), rtol=1e-9, atol=1e-9)


def test_weight_decay_shrinks_the_hidden_convolutions_only():
    window, nets = twin().window(0), [network(), network()]
    before = [p.detach().clone() for p in nets[0].parameters()]
    for net, decay in zip(nets, (0.0, 0.5), strict=True):
        trainer(net, learning_rate=0.02, adam_learning_rate=0.003, weight_decay=decay).step(window, 0.5)
    hidden = {id(p) for p in nets[0].hidden_matrices()}
    for old, plain, decayed in zip(before, nets[0].parameters(), nets[1].parameters(), strict=True):
        expected = plain - 0.02 * 0.5 * 0.5 * old if id(plain) in hidden else plain
        assert_close(decayed.detach(), expected.detach())


def test_the_report_counts_restarts_and_leaves_them_out_of_the_rmse():
    source = twin()
    window = source.window(0)
    trains = trainer(network())
    clean = trains.step(window, 0.0)
    window.truth[2, 1:3] += 100.0
    trains = trainer(network())
    report = trains.step(window, 0.0)
    assert (clean.restarts, report.restarts) == (0, 2)
    assert report.rmse < 2 * clean.rmse
    assert report.loss > 5 * clean.loss


def test_the_report_gives_the_root_mean_square_error_of_the_analyses():
    window, net = twin().window(0), network().train()
    analysis, _, _ = triple(DataAssimilationNetwork(net), DYNAMICS, ERROR, window, None)
    trains = trainer(net)
    report = trains.step(window, 1.0)
    expected = (analysis - window.truth).detach().square().mean().sqrt()
    assert report.rmse == pytest.approx(float(expected), rel=1e-12)


def test_a_step_without_a_finite_gradient_leaves_the_weights_alone():
    window, net = twin().window(0), network()
    window.truth[0, 1] = torch.nan
    before = [p.detach().clone() for p in net.parameters()]
    trains = trainer(net)
    trains.step(window, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    trains.step(twin().window(0), 1.0)
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_training_gives_up_when_no_gradient_is_finite():
    window = twin(cycles=2).window(0)
    window.truth[0, 1] = torch.nan
    trains = trainer(network())
    for _ in range(49):
        trains.step(window, 1.0)
    with pytest.raises(RuntimeError, match=r"no finite gradient in 50 steps up to step 50"):
        trains.step(window, 1.0)


def test_a_large_gradient_is_shortened_to_its_usual_length():
    source = twin()
    trains = trainer(network(), clip=0.5)
    norm = trains.step(source.window(0), 1.0).gradient_norm
    # The median of one norm is that norm.
    length = torch.stack([p.grad.norm() for p in trains.parameters]).norm()
    assert float(length) == pytest.approx(0.5 * norm, rel=1e-10)


def test_rates_of_both_optimisers_follow_the_schedule():
    net = network()
    trains = trainer(net, learning_rate=0.02, adam_learning_rate=0.003)
    trains.step(twin().window(0), 0.25)
    rates = sorted(o.param_groups[0]["lr"] for o in trains.optimisers)
    held = {id(p) for o in trains.optimisers for g in o.param_groups for p in g["params"]}
    assert rates == pytest.approx([0.25 * 0.003, 0.25 * 0.02])
    assert held == {id(p) for p in net.parameters()}


def snapshot(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in arrays.items()}


def validation() -> Record:
    window = twin(cycles=6, first=1000).window(0)
    trajectory = torch.arange(1000, 1005)
    return Record(DYNAMICS, ERROR, window.observation, (0, *[1] * 5), trajectory, 0, window.truth)


def test_a_resumed_run_ends_with_the_same_weights():
    record = validation()
    source, net = twin(), network()
    trains = trainer(net)
    for index in range(10):
        if index == 5:
            trains.validate(record, 2)
            saved = snapshot(trains.arrays()), dict(trains.scalars()), snapshot(source.arrays())
        trains.step(source.window(index), 1.0 - index / 10)
    end = snapshot(trains.arrays()), trains.scalars()
    resumed_source, resumed_net = twin(), network(seed=1)
    trains = trainer(resumed_net)
    trains.restore(*saved[:2])
    resumed_source.restore(saved[2])
    for index in range(5, 10):
        trains.step(resumed_source.window(index), 1.0 - index / 10)
    resumed_end = snapshot(trains.arrays()), trains.scalars()
    assert resumed_end[0].keys() == end[0].keys()
    assert all(torch.equal(resumed_end[0][name], value) for name, value in end[0].items())
    assert resumed_end[1] == end[1]


def test_scalars_of_a_new_trainer_survive_json():
    trains, other = trainer(network()), trainer(network())
    other.restore(trains.arrays(), json.loads(json.dumps(trains.scalars(), allow_nan=False)))
    assert other.scalars() == trains.scalars()


def test_validation_scores_the_analyses_after_burn_in():
    record, net = validation(), network()
    trains = trainer(net)
    score = trains.validate(record, 2)
    with torch.no_grad():
        analysis = run(DataAssimilationNetwork(net.eval()), record)[0]["analysis"]
    expected = (analysis - record.truth)[:, 2:].square().mean(-1).sqrt().mean()
    assert score == pytest.approx(float(expected), rel=1e-12)


def test_validation_keeps_the_best_weights():
    record, net = validation(), network()
    trains = trainer(net)
    score = trains.validate(record, 2)
    good = snapshot(net.state_dict())
    with torch.no_grad():
        net.relative_alpha.fill_(-0.5)
    assert trains.validate(record, 2) > score
    assert trains.best_score == score
    assert all(torch.equal(trains.best[name], value) for name, value in good.items())
    with torch.no_grad():
        net.relative_alpha.fill_(4.0)
        net.biases[-1].fill_(torch.nan)
    assert trains.validate(record, 2) == float("inf")
    assert trains.best_score == score


def test_a_validation_far_worse_than_the_best_goes_back_to_it():
    record, net, source = validation(), network(), twin()
    trains = trainer(net, learning_rate=0.02, adam_learning_rate=0.003)
    trains.step(source.window(0), 1.0)
    trains.validate(record, 2)
    good = snapshot(net.state_dict())
    trains.step(source.window(1), 1.0)
    with torch.no_grad():
        net.relative_alpha.fill_(4.0)
    assert trains.validate(record, 2) > 1.3 * trains.best_score
    assert all(torch.equal(value, good[name]) for name, value in net.state_dict().items())
    assert trains.rewinds == 1
    assert trains.rates == pytest.approx([0.7 * 0.003, 0.7 * 0.02])
    assert not trains.states
    assert not any(optimiser.state for optimiser in trains.optimisers)
    # It goes on, and a resumed run knows the rates.
    trains.step(source.window(2), 1.0)
    other = trainer(network(seed=3), learning_rate=0.02, adam_learning_rate=0.003)
    other.restore(trains.arrays(), json.loads(json.dumps(trains.scalars())))
    assert other.rates == trains.rates
    assert other.rewinds == 1


def test_training_brings_the_error_down():
    net, source = network(memory=0, filters=6), twin(batch=12, cycles=5, sites=Sites.all())
    held_out = twin(batch=12, cycles=40, sites=Sites.all(), first=500).window(0)
    steps = (0, *[1] * 39)
    record = Record(DYNAMICS, ERROR, held_out.observation, steps, torch.arange(12), 0, held_out.truth)
    trains = trainer(net)
    before = trains.validate(record, 15)
    for index in range(60):
        trains.step(source.window(index), linear_decay(index / 60))
    after = trains.validate(record, 15)
    assert after < 0.85 * before


def test_linear_decay_rises_briefly_and_falls_to_zero():
    assert linear_decay(1.0) == 0.0
    assert linear_decay(0.5) == 0.5
    assert linear_decay(0.0) == pytest.approx(0.01)
    assert linear_decay(0.005) == pytest.approx(0.51 * 0.995)


def test_normalised_innovations_are_of_what_is_observed_after_burn_in():
    rng = np.random.default_rng(0)
    forecast, observation = rng.normal(size=(3, 6, 12)), rng.normal(size=(3, 6, 12))
    observation[rng.random(observation.shape) < 0.3] = np.nan
    deviation = np.linspace(0.5, 2.0, 12)
    observing = ObservingSystem(std=torch.from_numpy(deviation))
    record = Record(DYNAMICS, observing, torch.from_numpy(observation), (0, *[1] * 5), torch.arange(3), 0)
    expected = np.nanmean(((observation - forecast) / deviation)[:, 2:] ** 2)
    assert normalised_innovation(record, torch.from_numpy(forecast), 2) == round(expected, 4)
    nothing = replace(record, observation=torch.full_like(record.observation, torch.nan))
    assert normalised_innovation(nothing, torch.from_numpy(forecast), 2) is None


def test_checkpoints_of_earlier_versions_lack_the_innovation():
    trains, other = trainer(network()), trainer(network(seed=1))
    trains.validate(validation(), 2)
    assert trains.best_innovation > 0
    scalars = {name: value for name, value in trains.scalars().items() if name != "best_innovation"}
    other.restore(trains.arrays(), scalars)
    assert other.best_innovation is None
    assert other.best_score == trains.best_score


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"learning_rate": 0.0}, ValueError),
        ({"learning_rate": "x"}, TypeError),
        ({"learning_rate": math.nan}, ValueError),
        ({"learning_rate": 1j}, TypeError),
        ({"learning_rate": None}, TypeError),
        ({"learning_rate": np.ones(2)}, TypeError),
        ({"adam_learning_rate": -1.0}, ValueError),
        ({"adam_learning_rate": math.inf}, ValueError),
        ({"adam_learning_rate": True}, TypeError),
        ({"weight_decay": -0.1}, ValueError),
        ({"weight_decay": math.nan}, ValueError),
        ({"weight_decay": "0"}, TypeError),
        ({"clip": 0}, ValueError),
        ({"clip": math.inf}, ValueError),
        ({"clip": None}, TypeError),
    ],
)
def test_an_optimiser_that_cannot_be_is_refused(parameters, error):
    (name,) = parameters
    with pytest.raises(error, match=rf"{name}=.*expected"):
        Optimiser(**parameters)


def test_rates_are_plain_numbers():
    assert type(Optimiser(learning_rate=np.float32(0.25)).learning_rate) is float
    assert Optimiser(clip=3) == Optimiser(clip=3.0)
