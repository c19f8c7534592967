"""Imitating a covariance: what is compared, with what, and how it goes on."""

import pytest
import torch
from torch.testing import assert_close

from xdan.core.dynamics import Lorenz96
from xdan.core.learning import CovarianceImitation, objective_by_name
from xdan.core.learning.gradient import OneProcess, SeveralProcesses
from xdan.core.learning.imitation import TaughtTwin, covariance_errors
from xdan.core.learning.online_twin import EndlessTwin
from xdan.core.learning.trainer import Optimiser, Trainer
from xdan.core.methods import ETKF, Record, method_by_name, run
from xdan.core.networks import LinearInZeta
from xdan.core.observing import ObservingSystem, Sites

N = 12
MODEL = Lorenz96(N)
ERROR = ObservingSystem(std=torch.tensor(0.7, dtype=torch.float64))
FORMS = {
    "localised": {"form": "localised", "rank": 3, "radius": 2.0},
    "low-rank": {"form": "low-rank", "rank": 3},
    "hypernetwork": {"form": "hypernetwork", "rank": 2, "width": 5},
}


def make(form: str = "hypernetwork", memory: int = 2) -> LinearInZeta:
    torch.manual_seed(0)
    net = LinearInZeta(**FORMS[form], filters=4, blocks=2, kernel=3, memory=memory).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    net.normalise(2.3, 3.6, 0.7)
    return net


def twin() -> EndlessTwin:
    like = torch.zeros((), dtype=torch.float64)
    return EndlessTwin(MODEL, Sites.all(), ERROR, steps=1, trajectories=6, batch=3, cycles=4, seed=0, like=like)


def taught(members: int = 8, anew: bool = True) -> TaughtTwin:
    source = twin()
    record = Record(MODEL, ERROR, torch.zeros(1, 1, N, dtype=torch.float64), (0,), torch.arange(1), 0)
    return TaughtTwin(source, ETKF(members=members).prepare(record), anew)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("second-order-kalman", {"c2": 8.0}), ("state-covariance", {"c2": 8.0, "depth": 4, "past": "dynamics"})],
)
def test_a_teacher_may_have_a_covariance_of_its_own(name, parameters):
    """P_a that a run keeps: K = P_a R^-1 takes its forecast to its analysis."""
    record = Record(MODEL, ERROR, torch.zeros(1, 1, N, dtype=torch.float64), (0,), torch.arange(1), 0)
    teacher = method_by_name(name, inflation=1.0, **parameters).prepare(record)
    source = TaughtTwin(twin(), teacher)
    window = source.window(0)
    outputs = source._run(twin().window(0), None)
    assert_close(window.covariance, outputs["analysis_covariance"])
    innovation = (window.observation - window.forecast).flatten(0, 1)
    zeta = ERROR.project_innovation(innovation, torch.ones_like(innovation, dtype=torch.bool))
    increment = (window.covariance.flatten(0, 1) @ zeta[..., None])[..., 0].unflatten(0, window.forecast.shape[:2])
    later = slice(1, None) if name == "state-covariance" else slice(None)  # which has no past at first
    assert_close((window.forecast + increment)[:, later], outputs["analysis"][:, later])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory", [0, 2])
def test_the_matrix_is_the_one_that_analyses_apply(form, memory):
    net = make(form, memory).eval()
    x, zeta = torch.randn(2, 3, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = 0.5 * torch.ones(3, memory, N, dtype=torch.float64) if memory else None
    matrix, after = net.covariance(x, before)
    analysis, same = net(x, zeta, before)
    assert_close(x + (matrix @ zeta[:, :, None])[:, :, 0], analysis, rtol=1e-12, atol=1e-12)
    assert_close(matrix, matrix.mT, rtol=0, atol=1e-13)
    assert (torch.linalg.eigvalsh(matrix) > -1e-12).all()
    if memory:
        assert_close(after, same, rtol=0, atol=0)
        # What the increment is depends on memory, and is linear in zeta with it.
        assert not torch.allclose(net(x, zeta, 0 * before)[0], analysis)
        assert_close(net(x, 3 * zeta, before)[0] - x, 3 * (analysis - x), rtol=1e-12, atol=1e-12)
    else:
        assert after is None
        assert same is None


@pytest.mark.parametrize("memory", [0, 2])
def test_the_loss_is_the_mean_square_of_increments_over_all_projected_innovations_relative_to_the_teachers(memory):
    net, window = make(memory=memory).eval(), taught().window(0)
    errors, _ = covariance_errors(net, window, None)
    assert errors.shape == (3, 3)  # the first analysis is not the network's
    matrix, _ = net.covariance(window.forecast[:, 1])
    asked = window.covariance[:, 1]
    zeta = torch.eye(N, dtype=torch.float64)

    def over_all(p):
        return sum((p @ e).square().sum(-1) for e in zeta)

    # With memory each to its own teacher's; without, all to the mean.
    scale = over_all(asked) if memory else over_all(window.covariance[:, 1:]).mean()
    assert_close(errors[:, 0], over_all(matrix - asked) / scale)


def test_windows_hold_the_covariance_of_a_method_run_on_the_twin():
    source, alone = taught(), twin()
    windows = [source.window(index) for index in range(6)]
    of_group = [alone.window(index) for index in range(6)][::2]
    observation = torch.cat([w.observation for w in of_group], 1)
    record = Record(MODEL, ERROR, observation, (0, *(1,) * 11), alone.trajectory[:3], 0)
    outputs, _ = run(ETKF(members=8).prepare(record), record, members=True)
    assert_close(torch.cat([w.forecast for w in windows[::2]], 1), outputs["forecast"], rtol=1e-10, atol=1e-10)
    covariance = torch.cat([w.covariance for w in windows[::2]], 1)
    for lane in range(3):
        for k in (0, 5, 11):
            assert_close(covariance[lane, k], torch.cov(outputs["members"][lane, k].T), rtol=1e-9, atol=1e-10)


def test_a_restored_source_goes_on_with_the_same_windows():
    source = taught()
    for index in range(3):
        source.window(index)
    stored = {name: value.clone() for name, value in source.arrays().items()}
    expected = [source.window(index) for index in range(3, 6)]
    other = taught()
    other.restore(stored)
    for index, window in enumerate(expected, 3):
        again = other.window(index)
        assert torch.equal(again.covariance, window.covariance)
        assert torch.equal(again.forecast, window.forecast)


def test_processes_share_what_one_computes():
    net, window = make(), taught().window(0)
    one = OneProcess(net, MODEL, ERROR, CovarianceImitation())(window, None)
    many = SeveralProcesses(net, MODEL, ERROR, CovarianceImitation(), 2)
    try:
        other = many(window, None)
    finally:
        many.close()
    assert float(other.loss) == pytest.approx(float(one.loss), rel=1e-12)
    for a, b in zip(one.gradients, other.gradients, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert_close(other.state["memory"], one.state["memory"])


def test_the_gradient_is_that_of_finite_differences():
    net, source = make(), taught()
    window, state = source.window(0), {"memory": torch.zeros(3, 2, N, dtype=torch.float64)}
    gradient = OneProcess(net, MODEL, ERROR, CovarianceImitation())
    window_gradient = gradient(window, state)
    for parameter, slope in zip(gradient.parameters, window_gradient.gradients, strict=True):
        place = int(slope.abs().argmax())
        flat = parameter.data.view(-1)
        start, losses = float(flat[place]), []
        for step in (1e-5, -1e-5):
            flat[place] = start + step
            losses.append(float(covariance_errors(net, window, state)[0].mean().detach()))
        flat[place] = start
        assert float(slope.view(-1)[place]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-9)


def test_steps_bring_the_covariance_nearer():
    net, source = make(memory=0), taught(members=20)
    trainer = Trainer(net, MODEL, ERROR, CovarianceImitation(), Optimiser())
    reports = [trainer.step(source.window(index), 1.0) for index in range(60)]
    first, last = (sum(r.loss for r in part) for part in (reports[10:20], reports[-10:]))
    assert last < 0.7 * first


def test_batches_start_anew_in_turn():
    source = taught()
    fresh = [source.window(index).fresh for index in range(2 * 51)]  # of 4 cycles: 200 are 50 windows
    assert [index // 2 for index, anew in enumerate(fresh) if anew and index % 2 == 0] == [0, 50]
    assert [index // 2 for index, anew in enumerate(fresh) if anew and index % 2 == 1] == [0, 25]


def test_ensembles_have_settled_before_a_network_without_memory_sees_them():
    source, alone = taught(anew=False), twin()
    windows = [source.window(index) for index in range(4)]
    for index in range(2 * 25):  # 100 cycles in windows of 4, of two groups
        alone.window(index)
    for index, window in enumerate(windows):
        assert torch.equal(window.observation, alone.window(50 + index).observation)
        assert not window.fresh
    started = taught().window(0)
    assert windows[0].covariance.square().mean() < 0.5 * started.covariance.square().mean()


def test_a_settled_source_is_restored_as_it_was():
    source, other = taught(anew=False), taught(anew=False)
    source.window(0)
    stored = {name: value.clone() for name, value in source.arrays().items()}
    expected = source.window(1)
    other.restore(stored)
    assert torch.equal(other.window(1).covariance, expected.covariance)
    many = [source.window(index) for index in range(2, 160)]
    assert not any(window.fresh for window in many)


@pytest.mark.parametrize(("objective", "rewinds"), [("covariance", 0), ("mse", 1)])
def test_cycling_badly_meanwhile_does_not_send_an_imitation_back(objective, rewinds):
    window = twin().window(0)
    record = Record(MODEL, ERROR, window.observation, (0, 1, 1, 1), torch.arange(3), 0, window.truth)
    trainer = Trainer(make(), MODEL, ERROR, objective_by_name(objective), Optimiser())
    trainer.best_score = 1e-3
    trainer.validate(record, 1)
    assert trainer.rewinds == rewinds
