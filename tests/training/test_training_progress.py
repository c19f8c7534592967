"""What a training says while it goes on, what may stop it, and what is left when it is stopped."""

import logging
import math
import pickle
import signal
from contextlib import suppress

import numpy as np
import pytest

import xdan
import xdan.estimation.model_training as fitting
from xdan.core.learning.trainer import Trainer
from xdan.records.checkpoint import Checkpoint
from xdan.training import loop

KEYS = {"step", "seconds", "loss", "validation_rmse", "best", "best_validation_rmse"}


def same(one, other):
    return all(np.array_equal(value, other.arrays[name]) for name, value in one.arrays.items())


@pytest.fixture
def scores(monkeypatch):
    """Gives the validations these scores, whatever the network does."""

    def give(*values):
        waiting = iter(values)

        def validate(self, record, burn_in):
            score = next(waiting)
            self.improved = score < self.best_score
            if self.improved:
                self.best_score = score
                self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
            return score

        monkeypatch.setattr(Trainer, "validate", validate)

    return give


def test_every_validation_is_told(single, architecture, quick):
    told = []
    net = xdan.train(single, architecture, **{**quick, "steps": 10}, on_validation=told.append)
    assert [one["step"] for one in told] == net.history.step.values.tolist() == [4, 8, 10]
    for name in ("loss", "validation_rmse", "seconds"):
        assert [one[name] for one in told] == net.history[name].values.tolist()
    rmse = np.array([one["validation_rmse"] for one in told])
    assert [one["best_validation_rmse"] for one in told] == np.minimum.accumulate(rmse).tolist()
    assert [one["best"] for one in told] == [bool(rmse[k] < rmse[:k].min(initial=math.inf)) for k in range(3)]
    assert all(set(one) == KEYS for one in told)
    assert {type(value) for one in told for value in one.values()} == {int, float, bool}
    assert same(net, xdan.train(single, architecture, **{**quick, "steps": 10}))


def test_a_loss_that_judges_is_told(single, quick):
    told = []
    network = xdan.GaussianCNN(xdan.ResidualCNN(filters=2, blocks=1), filters=2, blocks=1)
    net = xdan.train(single, network, objective="log-score", **quick, on_validation=told.append)
    assert [one["validation_loss"] for one in told] == net.history.validation_loss.values.tolist()


@pytest.mark.parametrize("answer", [True, np.True_])
def test_true_stops_a_training(single, architecture, quick, answer, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "ck.zarr"}
    net = xdan.train(single, architecture, **settings, on_validation=lambda told: answer)
    training = net.description["training"]
    assert (training["stopped_by"], training["stopped_at_step"]) == ("on_validation", 4)
    assert "interrupted" not in training
    assert net.history.step.values.tolist() == [4]
    on = xdan.train(single, architecture, **settings)  # as if nothing had stopped it
    assert "stopped_by" not in on.description["training"]
    assert same(on, xdan.train(single, architecture, **quick))


@pytest.mark.parametrize("answer", [None, False, "stop", 1, np.ones(3)])
def test_other_answers_stop_nothing(single, architecture, quick, answer):
    net = xdan.train(single, architecture, **quick, on_validation=lambda told: answer)
    assert net.history.step.values.tolist() == [4, 8]


@pytest.mark.parametrize("function", [lambda: None, lambda told, more: None, 3.0])
def test_what_cannot_be_told_is_refused_at_once(single, function):
    with pytest.raises(TypeError, match=r"on_validation=.* expected a function of one dict"):
        xdan.train(single, on_validation=function)


@pytest.mark.parametrize("saved", [False, True])
def test_an_error_while_told_loses_nothing(single, architecture, quick, saved, tmp_path):
    settings = {**quick, "steps": 12, **({"checkpoint": tmp_path / "ck.zarr"} if saved else {})}

    def fails(told):
        if told["step"] == 8:
            raise LookupError("no such plot")

    with pytest.raises(LookupError, match="no such plot") as caught:
        xdan.train(single, architecture, **settings, on_validation=fails)
    (note,) = caught.value.__notes__
    assert "raised by on_validation=" in note
    kept = caught.value.network
    reached = xdan.train(single, architecture, **{**quick, "steps": 12}, on_validation=lambda told: told["step"] == 8)
    assert same(kept, reached)
    assert kept.description["training"]["interrupted_at_step"] == 8
    if saved:
        steps = []
        on = xdan.train(single, architecture, **settings, on_validation=lambda told: steps.append(told["step"]))
        assert steps == [12]
        assert same(on, xdan.train(single, architecture, **{**quick, "steps": 12}))


def test_ctrl_c_while_told_keeps_network_and_checkpoint(single, architecture, quick, tmp_path):
    settings = {**quick, "steps": 12, "checkpoint": tmp_path / "ck.zarr"}

    def interrupts(told):
        raise KeyboardInterrupt

    with pytest.warns(xdan.XdanWarning, match=r"interrupted at step 4 of 12: the best .* the same call goes on"):
        net = xdan.train(single, architecture, **settings, on_validation=interrupts)
    assert net.description["training"]["interrupted_at_step"] == 4
    steps = []
    on = xdan.train(single, architecture, **settings, on_validation=lambda told: steps.append(told["step"]))
    assert steps == [8, 12]
    assert same(on, xdan.train(single, architecture, **{**quick, "steps": 12}))


@pytest.mark.parametrize("fails", [False, True])
def test_a_stop_before_the_first_step_of_a_network_that_is_carried_on_is_resumed(single, net, quick, fails, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "ck.zarr"}

    def stops(told):
        if fails:
            raise LookupError
        return True

    with suppress(LookupError):
        xdan.train(single, net, **settings, on_validation=stops)
    on = xdan.train(single, net, **settings)
    assert on.history.step.values.tolist() == [0, 4, 8]  # the first validation stands there once
    assert same(on, xdan.train(single, net, **quick))


@pytest.mark.parametrize(
    ("values", "patience", "stop"),
    [
        ([3.0, 2.0, 2.0, 2.5, 1.0, 0.5], 2, 8),  # an equal score is no better one
        ([3.0, 2.0, 2.1, 1.0, 1.5, 0.5], 2, None),
        ([3.0, 4.0, 1.0, 1.0, 1.0, 1.0], 1, 4),
        ([math.inf, math.inf, math.inf, 1.0, 1.0, 1.0], 3, 6),  # none was finite
        ([1.0, math.inf, math.inf, 1.0, 1.0, 1.0], 3, 8),
    ],
)
@pytest.mark.filterwarnings("ignore:no validation of these")
def test_patience_counts_validations_without_a_better_one(single, architecture, quick, scores, values, patience, stop):
    scores(*values)
    settings = {**quick, "steps": 12, "validate_every": 2}
    net = xdan.train(single, architecture, **settings, patience=patience)
    training = net.description["training"]
    assert training["patience"] == patience
    assert training.get("stopped_by") == (None if stop is None else "patience")
    assert training.get("stopped_at_step") == stop
    assert int(net.history.step[-1]) == (12 if stop is None else stop)


def test_patience_counts_what_a_checkpoint_has_seen(single, architecture, quick, scores, tmp_path):
    settings = {**quick, "steps": 12, "validate_every": 2, "checkpoint": tmp_path / "ck.zarr"}
    scores(3.0, 2.0, 2.5, 2.5, 1.0, 1.5)
    first = xdan.train(single, architecture, **settings, patience=1)
    again = xdan.train(single, architecture, **settings, patience=1)  # does not go on
    more = xdan.train(single, architecture, **settings, patience=2)
    whole = xdan.train(single, architecture, **settings)
    ends = [int(net.history.step[-1]) for net in (first, again, more, whole)]
    assert ends == [6, 6, 8, 12]
    assert same(first, again)


def test_a_network_that_is_carried_on_counts_from_where_it_was(single, net, quick, scores):
    scores(1.0, 2.0, 2.0, 0.5)
    on = xdan.train(single, net, **{**quick, "validate_every": 2}, patience=2)
    assert on.history.step.values.tolist() == [0, 2, 4]
    assert same(on, net)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rates_follow_the_schedule(single, architecture, quick, schedule):
    optimiser = xdan.Optimiser(schedule=schedule)
    net = xdan.train(single, architecture, **{**quick, "validate_every": 2}, optimiser=optimiser)
    shares = np.array([1, 3, 5, 7]) / 8  # of the last step before each validation
    expected = {"constant": 0 * shares + 1, "linear": 1 - shares, "cosine": (1 + np.cos(np.pi * shares)) / 2}
    np.testing.assert_allclose(net.history.rate, expected[schedule], rtol=1e-12)
    assert net.description["training"].get("schedule", "linear") == schedule


def test_a_checkpoint_is_of_one_schedule_and_of_any_patience(single, architecture, quick, tmp_path):
    settings = {**quick, "checkpoint": tmp_path / "ck.zarr"}
    xdan.train(single, architecture, **settings, on_validation=lambda told: True)
    with pytest.raises(ValueError, match=r"of another run \(schedule: None there, 'cosine' now\)"):
        xdan.train(single, architecture, **settings, optimiser=xdan.Optimiser(schedule="cosine"))
    xdan.train(single, architecture, **settings, patience=5)


def test_validations_and_saves_are_logged(single, architecture, quick, tmp_path, caplog):
    settings = {**quick, "checkpoint": tmp_path / "ck.zarr"}
    with caplog.at_level(logging.DEBUG, logger="xdan"):
        net = xdan.train(single, architecture, **settings, on_validation=lambda told: True)
    (line,) = [one for one in caplog.records if one.levelno == logging.INFO and "RMSE" in one.message]
    assert line.name == "xdan.training"
    loss, rmse = float(net.history.loss[0]), float(net.history.validation_rmse[0])
    assert line.message.startswith("step 4 of 8 steps, ")
    assert line.message.endswith(f": loss {loss:.4g}, validation RMSE {rmse:.4g}, the best so far")
    assert "stopped by on_validation at step 4" in caplog.messages
    assert f"step 4 is saved in {tmp_path / 'ck.zarr'}" in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="xdan"):
        xdan.train(single, architecture, **settings)
    assert caplog.messages[0] == f"goes on at step 4 of 8 steps from {tmp_path / 'ck.zarr'}"


def test_nothing_is_printed_where_nobody_asked(single, architecture, quick, capfd):
    xdan.train(single, architecture, **quick)
    assert capfd.readouterr() == ("", "")


def test_minutes_left_are_those_of_the_budget(single, architecture, quick, monkeypatch):
    bars, make = [], loop.bar_of
    monkeypatch.setattr(loop, "bar_of", lambda *rest, **words: bars.append(make(*rest, **words)) or bars[-1])
    seconds = iter(range(0, 10**6, 7))
    monkeypatch.setattr(loop.clock, "perf_counter", lambda: float(next(seconds)))
    settings = {name: value for name, value in quick.items() if name != "steps"}
    xdan.train(single, architecture, **settings, minutes=5)
    (bar,) = bars
    assert bar.total == 300.0
    assert bar.n == 300.0


def test_the_clock_starts_with_the_first_step(single, net, quick, monkeypatch):
    now, bars, shown, make = [0.0], [], [], loop.bar_of
    validate, step = Trainer.validate, Trainer.step
    settings = {name: value for name, value in quick.items() if name != "steps"}

    def slowly(self, *rest):
        shown.append(bars[-1].postfix)
        now[0] += 1000.0  # longer than the budget
        return validate(self, *rest)

    def one_second(self, *rest):
        now[0] += 1.0
        return step(self, *rest)

    monkeypatch.setattr(loop, "bar_of", lambda *rest, **words: bars.append(make(*rest, **words)) or bars[-1])
    monkeypatch.setattr(loop.clock, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Trainer, "validate", slowly)
    monkeypatch.setattr(Trainer, "step", one_second)
    on = xdan.train(single, net, **settings, minutes=0.05)
    assert on.history.step.values.tolist() == [0, 3]
    assert on.history.seconds.values.tolist() == [0.0, 3.0]
    assert shown[0] == "validating"
    assert bars[0].postfix.startswith("validation RMSE ")


def test_a_training_without_a_step_says_so(single, net, quick, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(loop.clock, "perf_counter", lambda: float(next(ticks)))
    settings = {name: value for name, value in quick.items() if name != "steps"}
    with pytest.warns(xdan.XdanWarning, match=r"^no step was made in 1e-05 minutes: .* Train longer"):
        on = xdan.train(single, net, **settings, minutes=1e-5)
    assert all(np.array_equal(value, net.arrays[name]) for name, value in on.arrays.items())
    xdan.train(single, net, **settings, minutes=1e-5, on_validation=lambda told: True)  # stopped on purpose: no warning


def test_what_ctrl_c_left_travels(net):
    stop = pickle.loads(pickle.dumps(xdan.TrainingInterrupted("at step 3", net)))
    assert str(stop) == "at step 3"
    assert stop.network == net
    assert isinstance(stop, KeyboardInterrupt)


SURROGATE = {"steps": 12, "batch": 4, "rollouts": (1,), "validate_every": 3, "progress": False}


@pytest.mark.parametrize(("at", "saved"), [(7, False), (7, True), (11, True)])
def test_ctrl_c_keeps_what_a_surrogate_has_learned(twin, monkeypatch, at, saved, tmp_path):
    step = fitting.ModelFit.step

    def interrupted(self, states, rate):
        if self.step_count == at:
            signal.raise_signal(signal.SIGINT)
        return step(self, states, rate)

    network = xdan.LocalPolynomial(degree=2)
    place = {"checkpoint": tmp_path / "ck.zarr"} if saved else {}
    with monkeypatch.context() as patched:
        patched.setattr(fitting.ModelFit, "step", interrupted)
        with pytest.raises(
            xdan.TrainingInterrupted, match=rf"interrupted at step {at + 1} of 12.*stop\.network"
        ) as stop:
            twin.dan.train_surrogate(network=network, **SURROGATE, **place)
    assert ("the same call goes on" in str(stop.value)) == saved
    assert isinstance(stop.value.network, xdan.LocalPolynomial)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole = twin.dan.train_surrogate(network=network, **SURROGATE)
    if saved:
        _, scalars = Checkpoint._read(Checkpoint(tmp_path / "ck.zarr", {}), 1)
        assert scalars["fit"]["step_count"] == at + 1
        assert twin.dan.train_surrogate(network=network, **SURROGATE, **place) == whole
