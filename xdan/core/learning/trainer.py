"""Truncated backpropagation through the cycles: one step of training, and the state of a training for a checkpoint."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checks import choice, real
from ..dynamics import Dynamics
from ..keywords import constructor_checks_keywords
from ..methods import Record, State, method_of, run
from ..networks import AnalysisNetwork, module_networks
from ..observing import ObservingSystem
from .gradient import CudaGraph, Gradient, OneProcess, SeveralProcesses
from .named_tensors import prefixed, states_to_tensors, tensors_to_states, under
from .objectives import Objective
from .rollout import Window, roll_out
from .schedules import SCHEDULES

_NORMS = 101  # gradient norms that the median is taken over
_WORSE, _SLOWER = 1.3, 0.7  # if a score is this many times the best, training goes back; factor of the rates then
_PATIENCE = 50  # steps in a row without a finite gradient before training gives up


class Windows(Protocol):
    """The windows of a training. A window follows from its index and from the arrays of `arrays`.

    Attributes
    ----------
    per_epoch : int
        Number of windows of an epoch: for an endless twin one window of every trajectory, for a record all its cycles.
    """

    per_epoch: int

    def window(self, index: int) -> Window:
        """Give the index-th window; indices come in order."""

    def arrays(self) -> dict[str, Tensor]:
        """Arrays that a checkpoint needs to go on."""

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Go on from stored arrays."""

    def close(self) -> None:
        """End threads that read ahead."""


@constructor_checks_keywords
@dataclass(frozen=True)
class Optimiser:
    """How fast the weights follow the gradient: Muon on the hidden convolutions, Adam on everything else.

    Parameters
    ----------
    learning_rate : float
        Learning rate of Muon. A network without hidden convolutions, such as a torch module of yours, does not use it.
    adam_learning_rate : float
        Learning rate of Adam.
    weight_decay : float
        In every step the weights of hidden convolutions shrink by the learning rate times this number.
    clip : float
        A gradient is shortened to at most this many times the running median of its norm.
    schedule : {"linear", "constant", "cosine"}
        How both rates change during a training. They rise over the first hundredth of the training. Then "linear" goes
        down to zero along a straight line, "constant" does not change, and "cosine" goes down to zero along half a
        cosine. The rates follow the share of the steps that are done, or with `minutes=` the share of the time. With a
        falling rate the best weights mostly come at the end. If the end is open, as with `patience=`, take "constant".

    Raises
    ------
    TypeError
        If a value is no number, or the schedule is no name.
    ValueError
        If a rate or `clip` is not above 0, the weight decay is negative, or the schedule is unknown.

    Examples
    --------
    >>> import xdan
    >>> xdan.Optimiser(learning_rate=0.005, weight_decay=0.1)
    Optimiser(learning_rate=0.005, adam_learning_rate=0.002, weight_decay=0.1, clip=2.0, schedule='linear')
    """

    learning_rate: float = 0.01
    adam_learning_rate: float = 2e-3
    weight_decay: float = 0.0
    clip: float = 2.0
    schedule: str = "linear"

    def __post_init__(self) -> None:
        for label in ("learning_rate", "adam_learning_rate", "clip"):
            object.__setattr__(self, label, real(label, getattr(self, label), above=0.0))
        object.__setattr__(self, "weight_decay", real("weight_decay", self.weight_decay, least=0.0))
        choice("schedule", self.schedule, SCHEDULES)

    def config(self) -> dict[str, Any]:
        """JSON that identifies the optimiser, without the default schedule: early versions had only this schedule."""
        described = asdict(self)
        if self.schedule == type(self).schedule:
            del described["schedule"]
        return described


@dataclass
class StepReport:
    """Numbers of one step: mean loss, root of the mean `WindowGradient.square`, gradient norm, restarts."""

    loss: float
    rmse: float
    gradient_norm: float
    restarts: int


class Trainer:
    """Optimises a network window by window.

    Parameters
    ----------
    network : AnalysisNetwork
        Changed in place.
    dynamics : Dynamics
    observing : ObservingSystem
    objective : Objective
    optimiser : Optimiser
    processes : int
        Number of processes that share the trajectories of a batch, with this one. More than one on the CPU only.

    Attributes
    ----------
    step_count : int
        Number of steps so far.
    states : dict of int to State
        Last analyses of each group of trajectories, at the end of its last window.
    rates : list of float
        Learning rates, one for each of `optimisers`, before the schedule.
    norms : list of float
        Norms of the last gradients.
    fruitless : int
        Number of steps in a row without a finite gradient, until now.
    rewinds : int
        Number of times that training went back to the best weights.
    best : dict of str to Tensor
        Weights with the best validation; `best_score` is its RMSE, `best_innovation` its normalised innovation.
    best_loss : float or None
        Loss of the best validation, if the objective chooses the best weights by the loss.
    improved : bool
        Whether the last validation was the best so far.

    References
    ----------
    Loss and truncation: Eq. 4 and Sect. 2.2.1. Muon: Jordan et al. (2024), as in `torch.optim.Muon`.
    """

    def __init__(
        self,
        network: AnalysisNetwork,
        dynamics: Dynamics,
        observing: ObservingSystem,
        objective: Objective,
        optimiser: Optimiser,
        processes: int = 1,
    ) -> None:
        self.network, self.objective, self.clip = network, objective, optimiser.clip
        self.method = method_of(network)
        self.method.check_training(dynamics, observing)
        self.parameters = list(network.parameters())
        task = network, dynamics.on(self.parameters[0].device), observing, objective
        self.gradient: Gradient
        if processes > 1:
            self.gradient = SeveralProcesses(*task, processes)
        else:
            self.gradient = (CudaGraph if self.parameters[0].is_cuda else OneProcess)(*task)
        hidden = network.hidden_matrices()
        chosen = {id(p) for p in hidden}
        rest = [p for p in self.parameters if id(p) not in chosen]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(rest, lr=optimiser.adam_learning_rate, betas=(0.9, 0.99))
        ]
        if hidden:
            rate, decay = optimiser.learning_rate, optimiser.weight_decay
            self.optimisers.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, momentum=0.95))
        self.rates = [each.param_groups[0]["lr"] for each in self.optimisers]
        self.states: dict[int, State] = {}
        self.step_count = 0
        self.norms: list[float] = []
        self.fruitless = 0
        self.rewinds = 0
        self.best_score = math.inf
        self.best_innovation: float | None = None
        self.best_loss: float | None = None
        self.validation_loss = math.nan
        self.improved = False
        self.best = {name: value.clone() for name, value in network.state_dict().items()}

    def step(self, window: Window, rate: float) -> StepReport:
        """Take one gradient step on a window, with the learning rates multiplied by `rate`.

        Raises
        ------
        RuntimeError
            If no gradient was finite for many steps in a row.
        """
        state = None if window.fresh else self.states.get(window.group)
        result = self.gradient(window, state)
        self.states[window.group] = result.state
        norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in result.gradients])))
        self.step_count += 1
        if math.isfinite(norm):
            if norm > 0:  # otherwise nothing is learned; a step would follow the momentum alone
                self.fruitless = 0
                self._apply(result.gradients, norm, rate)
        else:
            self.fruitless += 1
            if self.fruitless >= _PATIENCE:
                raise RuntimeError(
                    f"no finite gradient in {_PATIENCE} steps up to step {self.step_count}: every batch holds a "
                    "diverging trajectory. Try a lower learning_rate= of xdan.Optimiser, a shorter window= or a "
                    "smaller interval"
                )
        square = result.square[~result.lost]
        square = square[~square.isnan()]  # a time without observations has none
        rmse = float(square.mean().sqrt()) if len(square) else math.nan
        return StepReport(float(result.loss), rmse, norm, int(result.lost.sum()))

    def _apply(self, gradients: Sequence[Tensor], norm: float, rate: float) -> None:
        """Make a step along the clipped gradients. Their common norm is `norm`, above zero."""
        self.norms = [*self.norms[1 - _NORMS :], norm]
        shorten = min(1.0, self.clip * statistics.median(self.norms) / norm)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.mul_(shorten)
        for optimiser, base in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = base * rate
            optimiser.step()

    def validate(self, record: Record, burn_in: int) -> float:
        """Validate the network, and return its mean RMSE: of analyses, or of innovations if the record has no truth.

        For several fields the RMSE is in units of their observation errors. If the validation is the best so far, the
        weights and their `normalised_innovation` are kept. If it is far worse than the best, training goes back to the
        best weights, with lower rates. Some objectives choose the best weights by the loss: then `validation_loss` is
        the loss of this validation.
        """
        self.network.eval()
        judged = None
        with torch.no_grad():
            if self.objective.judges(self.network):
                outputs, judged = self._judged(record, burn_in)
            else:
                outputs, _ = run(self.method, record)
        errors = self.network.component_errors
        if record.truth is not None:
            error = (outputs["analysis"] - record.truth)[:, burn_in:]
            square = (error if errors is None else error / errors).square().mean(-1)
        else:
            innovation = record.observing.observe(outputs["forecast"]) - record.observation
            if errors is not None:
                innovation = innovation / record.observing.error_variance().sqrt()
            square = innovation[:, burn_in:].square().nanmean(-1)
            # A time without observations says nothing; a lost trajectory, everything.
            square = torch.where(outputs["diverged"][:, burn_in:], math.inf, square)
            square = square[~square.isnan()]
        score = float(square.sqrt().mean())
        score = score if math.isfinite(score) else math.inf
        self.improved = self._is_best(score, judged)
        if self.improved:
            self.best_score, self.best_innovation = score, normalised_innovation(record, outputs["forecast"], burn_in)
            self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        # If a network learns without cycling, its cycles during the training say little.
        elif score > _WORSE * self.best_score and self.objective.cycles_network:
            self._rewind()
        return score

    def _judged(self, record: Record, burn_in: int) -> tuple[dict[str, Tensor], float]:
        """Forecasts and analyses of a record, and the loss of the network on it."""
        window = Window(record.truth, record.observation, tuple(record.steps), clock=record.clocks)
        rollout = roll_out(self.method, record.dynamics, record.observing, window, None)
        loss = float(self.objective.losses(rollout.since(burn_in)).mean())
        return {"forecast": rollout.forecast, "analysis": rollout.analysis, "diverged": rollout.lost}, loss

    def _is_best(self, score: float, loss: float | None) -> bool:
        """Whether the weights are the best so far: by the RMSE, or by the loss if the objective chooses by the loss."""
        if loss is None:
            return score < self.best_score
        self.validation_loss = loss
        if not math.isfinite(loss + score) or (self.best_loss is not None and loss >= self.best_loss):
            return False
        self.best_loss = loss
        return True

    def _rewind(self) -> None:
        """Go back to the best weights, with lower rates. All trajectories start anew."""
        self.network.load_state_dict(self.best)
        self.rates = [_SLOWER * rate for rate in self.rates]
        for optimiser in self.optimisers:
            optimiser.state.clear()
        self.states.clear()
        self.norms.clear()
        self.rewinds += 1

    def close(self) -> None:
        """End the helper processes."""
        self.gradient.close()

    def arrays(self) -> dict[str, Tensor]:
        """Tensors that a resumed training needs, by name."""
        arrays = prefixed("network/", self.network.state_dict()) | prefixed("best/", self.best)
        for number, optimiser in enumerate(self.optimisers):
            slots = states_to_tensors(optimiser.state_dict()["state"])
            arrays |= {f"optimiser/{number}/{name}": torch.as_tensor(value) for name, value in slots.items()}
        return arrays | prefixed("state/", states_to_tensors(self.states))

    def scalars(self) -> dict[str, Any]:
        """Other values that a resumed training needs, as JSON."""
        return {
            "step_count": self.step_count,
            "norms": self.norms,
            "fruitless": self.fruitless,
            "rewinds": self.rewinds,
            "rates": self.rates,
            "best_score": None if math.isinf(self.best_score) else self.best_score,
            "best_innovation": self.best_innovation,
            **({} if self.best_loss is None else {"best_loss": self.best_loss}),
            **({"modules": [one.seen() for one in modules]} if (modules := module_networks(self.network)) else {}),
        }

    def restore(self, arrays: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Go on from `arrays` and `scalars` of a training with this objective and this optimiser.

        Raises
        ------
        ValueError
            If a torch module in the network gives other analyses with the weights of that training.
        """
        self.network.load_state_dict(under(arrays, "network/"))
        for one, seen in zip(module_networks(self.network), scalars.get("modules", ()), strict=True):
            one.check_seen(seen)
        self.best = under(arrays, "best/")
        for number, optimiser in enumerate(self.optimisers):
            slots = tensors_to_states(under(arrays, f"optimiser/{number}/"))
            optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
        self.states = tensors_to_states(under(arrays, "state/"))
        self.step_count, self.fruitless = scalars["step_count"], scalars["fruitless"]
        self.norms, self.rates = list(scalars["norms"]), list(scalars["rates"])
        self.rewinds = scalars["rewinds"]
        self.best_score = math.inf if scalars["best_score"] is None else scalars["best_score"]
        self.best_innovation = scalars.get("best_innovation")  # checkpoints of earlier versions lack it
        self.best_loss = scalars.get("best_loss")


def normalised_innovation(record: Record, forecast: Tensor, burn_in: int) -> float | None:
    """Mean of (y - H x_f)^2 / R_ii over all observations after the burn-in.

    Parameters
    ----------
    record : Record
    forecast : Tensor, shape (B, K, N)
    burn_in : int

    Returns
    -------
    float or None
        The mean, rounded to four decimals; None if it is not finite, or nothing is observed.
    """
    later = slice(burn_in, None)
    innovation = (record.observation - record.observing.observe(forecast))[:, later]
    ratio = float((innovation.square() / record.observing.during(later).error_variance()).nanmean())
    return round(ratio, 4) if math.isfinite(ratio) else None
