"""Objectives: the loss over a window of cycles that training makes small, and the gradient of this loss."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..checks import choice, integer, is_json_mapping, shown, switch
from ..dynamics import Dynamics
from ..methods import DataAssimilationNetwork, State
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from ..registry import Registry, constructor_values
from .rollout import Rollout, Window, roll_out

_TINY = 1e-30  # keeps the gradient of a root finite at zero, in any units
_CAP = 4.0  # largest gradient that a cycle passes back, in units of the gradient that one cycle adds


@dataclass(frozen=True)
class WindowContents:
    """The contents of a training's windows, known before any window is read.

    Attributes
    ----------
    cycles : int
        Length T of a window.
    truth : bool
        Whether windows have states to compare analyses with: the truth, or a teacher's analyses instead of it.
    forecast : bool
        Whether windows have a teacher's forecasts. Then no model runs.
    covariance : bool
        Whether windows have the analysis error covariance of a teacher, which is an ensemble beside an endless twin.
    """

    cycles: int
    truth: bool = True
    forecast: bool = False
    covariance: bool = False


@dataclass(frozen=True)
class WindowGradient:
    """The gradient of a window's loss, and numbers that training records.

    Attributes
    ----------
    loss : float or Tensor, shape ()
        Mean of the loss over trajectories and cycles, detached.
    gradients : list of Tensor
        Gradient of this mean, for each parameter in turn.
    square : Tensor, shape (B, T)
        Result of `Objective.square`. Its root is the RMSE in the history.
    lost : Tensor of bool, shape (B, T)
        Where a trajectory was lost and started anew.
    state : dict of Tensor
        Analysis state at the end of the window.
    """

    loss: float | Tensor
    gradients: list[Tensor]
    square: Tensor
    lost: Tensor
    state: State


class Objective(ABC):
    """What training makes small.

    A new objective is a class with a `name` and a `loss`. The loss takes the results of a window's cycles and gives a
    number for each trajectory and cycle. The attributes of the class say what the loss needs: training refuses networks
    and records without it before any data are read. The constructor keeps its parameters as attributes of the same
    names. `train(objective=...)` takes an object of the class, or its name if the class is registered.

    A class may override `window_gradient` instead of `loss`, if it does not go through the cycles and back through
    them.

    Attributes
    ----------
    name : str
        The registered name. The description of a trained network holds it.
    needs_truth : bool
        Whether windows need the truth. If False, the record's truth is not read, and validation uses the innovations.
    needs_members : bool
        Whether the network needs members. `Rollout.members` then holds them.
    needs_spread : bool
        Whether the network must give a spread. `Rollout.root` then holds the roots of its analysis covariances. If
        `needs_members` is True too, members or a spread are enough.
    needs_divergence : bool
        Whether the loss needs `Rollout.divergence`, which costs a second analysis in every cycle.
    needs_covariance : bool
        Whether windows need a teacher's analysis error covariance, from an ensemble beside an endless twin.
    least_window : int
        Smallest number of cycles of a window.
    power : int
        Power p: when the units change, the loss's gradient with respect to an analysis is multiplied by the p-th power
        of the observation error. 0 for a root mean square, 1 for a mean square, -1 for a misfit in observation errors.
    cycles_network : bool
        Whether the network is cycled. If it is not, no gradient passes through the model, and training does not go back
        to the best weights after a bad validation, which then says little.
    through_model : bool
        Whether gradients pass through the model from cycle to cycle.

    Examples
    --------
    The Huber loss is quadratic for errors of a site up to `delta`, and linear beyond.

    >>> import torch, xdan
    >>> @xdan.register_objective
    ... class Huber(xdan.Objective):
    ...     name = "huber"
    ...
    ...     def __init__(self, delta=1.0):
    ...         self.delta = delta
    ...
    ...     def loss(self, rollout):
    ...         error = rollout.analysis - rollout.truth()
    ...         zero = torch.zeros_like(error)
    ...         return torch.nn.functional.huber_loss(error, zero, reduction="none", delta=self.delta).mean(-1)
    >>> settings = {"batch": 2, "window": 2, "steps": 1, "progress": False}
    >>> network = xdan.ResidualCNN(filters=2, blocks=1)
    >>> net = xdan.train(xdan.Lorenz96(sites=8), network, objective=Huber(delta=0.5), **settings)
    >>> net.description["training"]["objective"]
    {'name': 'huber', 'parameters': {'delta': 0.5}}
    """

    name: ClassVar[str]
    needs_truth: ClassVar[bool] = True
    needs_members: ClassVar[bool] = False
    needs_spread: ClassVar[bool] = False
    needs_divergence: ClassVar[bool] = False
    needs_covariance: ClassVar[bool] = False
    least_window: ClassVar[int] = 1
    power: ClassVar[int] = 0
    cycles_network: ClassVar[bool] = True
    through_model: ClassVar[bool] = True

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters from which `type(self)(**parameters)` makes the same objective.

        By default these are the attributes with the names of the constructor's parameters.

        Raises
        ------
        TypeError
            If such an attribute is missing, or is not a plain value.
        """
        return constructor_values(self)

    def to_json(self) -> str | dict[str, Any]:
        """Describe the objective: its name, and its parameters if it has some."""
        parameters = self.config()
        return {"name": self.name, "parameters": parameters} if parameters else self.name

    def check(self, network: AnalysisNetwork, contents: WindowContents) -> None:
        """Refuse a network, or windows, that the objective cannot train on.

        Parameters
        ----------
        network : AnalysisNetwork
        contents : WindowContents

        Raises
        ------
        ValueError
        """
        title = f"objective={self.name!r}"
        if not is_json_mapping(self.config()):
            raise ValueError(f"config() of {title} gave {shown(self.config())}: expected a dict of plain JSON values")
        if contents.cycles < self.least_window:
            raise ValueError(
                f"window={contents.cycles} with {title}: its loss needs cycles that follow one another, expected a "
                f"window of at least {self.least_window}"
            )
        if self.needs_covariance and not contents.covariance:
            raise ValueError(
                f"{title} needs an ensemble beside the record: expected to train on the dynamics, as an endless twin, "
                "with teacher='etkf'; or imitate a run's analyses with objective='mse' and teacher=run"
            )
        if contents.forecast and (not self.needs_truth or self.needs_members or self.needs_spread):
            raise ValueError(f"{title} has no use for a teacher's analyses: expected 'mse' or 'rmse'")
        if contents.forecast and network.ensemble:
            raise ValueError(
                "a teacher has one forecast and one analysis, and this network takes members: expected no teacher="
            )
        has_members, either = network.ensemble and network.members > 1, self.needs_members and self.needs_spread
        if self.needs_members and not has_members and not (either and network.gives_spread):
            others = ", a network with a spread such as xdan.GaussianCNN()" if either else ""
            raise ValueError(
                f"{title} scores members, and the network has a single forecast: expected an ensemble network such as "
                f"xdan.EnsembleCNN(members=10){others}, or objective='rmse'"
            )
        if self.needs_spread and not either and not network.gives_spread:
            raise ValueError(
                f"{title} scores a spread, and the network {network.name!r} gives none: expected a network such as "
                "xdan.GaussianCNN(), or xdan.with_spread(net) of a trained network"
            )

    def loss(self, rollout: Rollout) -> Tensor:
        """Return the loss of each trajectory and cycle.

        Parameters
        ----------
        rollout : Rollout
            Forecasts and analyses (B, T, N) that gradients pass through, and their window.

        Returns
        -------
        Tensor, shape (B, T)
        """
        raise NotImplementedError(
            f"objective {self.name!r} has no loss: expected a method loss(rollout) of {type(self).__qualname__}, "
            "which gives a tensor of shape (trajectories, cycles)"
        )

    def judges(self, network: AnalysisNetwork) -> bool:
        """Whether the loss on the validation record chooses the best weights, instead of the RMSE.

        By default it does if the loss scores the network's spread, on which the RMSE does not depend.
        """
        return self.needs_spread and network.gives_spread

    def square(self, rollout: Rollout) -> Tensor:
        """Return the mean square, shape (B, T), whose root the history shows.

        It is the mean square of the analysis error. Without the truth it is that of the innovation, NaN where nothing
        is observed. Several fields are in units of their observation errors.
        """
        window = rollout.window
        if window.truth is not None:
            return rollout.scaled(rollout.analysis - window.truth).square().mean(-1)
        innovation = rollout.observing.observe(rollout.forecast) - window.observation
        if rollout.scale is not None:
            times = slice(window.start, window.start + len(window.steps))
            innovation = innovation / rollout.observing.during(times).error_variance().sqrt()
        return innovation.square().nanmean(-1)

    def window_gradient(
        self,
        method: DataAssimilationNetwork,
        dynamics: Dynamics,
        observing: ObservingSystem,
        window: Window,
        state: State | None,
    ) -> WindowGradient:
        """Return the gradient of a window's mean loss, through the cycles and back.

        The network does not make the first analysis of a trajectory. This analysis has no loss, unless it is the only
        one of the window.

        Parameters
        ----------
        method : DataAssimilationNetwork
            The method of the network that is trained.
        dynamics : Dynamics
        observing : ObservingSystem
        window : Window
        state : dict of Tensor, or None where the trajectories start
            Analysis state at the end of the previous window.

        Returns
        -------
        WindowGradient
        """
        batch, cycles = window.observation.shape[:2]
        size = math.prod(dynamics.shape) if self.needs_truth else window.observation.shape[-1]
        # The gradient that one cycle adds to an RMSE's has the norm 1 / (batch * cycles * sqrt(sites)).
        # With several fields the loss is in units of each field's error.
        # The cap is a tensor: nothing here waits for the device, so that a GPU can replay the whole pass as one graph.
        network = method.network
        unit = network.error_std.double() ** self.power if network.component_errors is None else 1.0
        cap = _CAP * unit / (batch * cycles * math.sqrt(size))
        with torch.enable_grad():
            rollout = roll_out(
                method, dynamics, observing, window, state, cap, self.needs_divergence, self.through_model
            )
            loss = self.losses(rollout.since(1 if state is None and cycles > 1 else 0)).mean()
            gradients = gradients_of(loss, network.parameters())
        with torch.no_grad():
            square = self.square(rollout)
        return WindowGradient(loss.detach(), gradients, square.detach(), rollout.lost, rollout.state)

    def losses(self, rollout: Rollout) -> Tensor:
        """Return the result of `loss`, (B, T), after checks.

        Raises
        ------
        ValueError
            If the result has another shape, is not real, or has no derivative.
        """
        losses: Any = self.loss(rollout)
        shape = tuple(rollout.lost.shape)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != shape:
            answer = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else shown(losses)
            raise ValueError(
                f"the loss of objective {self.name!r} gave {answer}: expected a tensor of shape {shape}, a loss for "
                "every trajectory and cycle"
            )
        if not losses.is_floating_point():
            raise ValueError(f"the loss of objective {self.name!r} is of {losses.dtype}: expected real numbers")
        # If a window has one cycle, its loss may not depend on an analysis of the network.
        if shape[1] > 1 and rollout.analysis.requires_grad and not losses.requires_grad:
            raise ValueError(
                f"torch sees no derivative of the loss of objective {self.name!r} by the analyses: expected torch "
                "operations of rollout.analysis, without detach() or NumPy"
            )
        return losses


def gradients_of(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Gradient of a loss for each parameter in turn. Zero for frozen weights, and for a loss without a network."""
    weights = list(parameters)
    learned = [weight for weight in weights if weight.requires_grad]
    if not loss.requires_grad:  # a window with one cycle, at the start of a record
        learned = []
    known = iter(torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True) if learned else ())
    return [next(known) if learned and weight.requires_grad else torch.zeros_like(weight) for weight in weights]


_OBJECTIVES: Registry[Objective] = Registry("objective", Objective, "xdan.Objective")
_Cls = TypeVar("_Cls", bound=type[Objective])


def register_objective(cls: _Cls) -> _Cls:
    """Register an objective class under its `name`. `train(objective=...)` then takes this name.

    Parameters
    ----------
    cls : class derived from Objective
        It has an attribute `name`, which it must not inherit.

    Returns
    -------
    class
        The same class.

    Raises
    ------
    TypeError
        If `cls` is not a class of objectives, sets no name, or has neither a loss nor a gradient.
    ValueError
        If another class has this name. A class may be defined anew, for example in a notebook: it then replaces the
        earlier class.

    Examples
    --------
    >>> import xdan
    >>> from xdan.core.learning.objectives import SquaredError
    >>> xdan.register_objective(SquaredError) is SquaredError  # the decorator makes this call
    True
    """
    _OBJECTIVES.check(cls, "register_objective")
    check_complete(cls)
    return _OBJECTIVES.register(cls, "register_objective")


def check_complete(cls: type[Objective]) -> None:
    """Refuse a class of objectives without a name, or without both a loss and a gradient.

    Raises
    ------
    TypeError
    """
    if not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f"{cls.__name__} has no name: expected a class attribute `name`, which descriptions refer to")
    if cls.loss is Objective.loss and cls.window_gradient is Objective.window_gradient:
        raise TypeError(
            f"{cls.__name__} has no loss: expected a method loss(rollout) that gives a tensor of shape (trajectories, "
            "cycles)"
        )
    switches = ("needs_truth", "needs_members", "needs_spread", "needs_divergence", "needs_covariance")
    for name in (*switches, "cycles_network", "through_model"):
        switch(f"{cls.__name__}.{name}", getattr(cls, name))
    integer(f"{cls.__name__}.least_window", cls.least_window, least=1)
    integer(f"{cls.__name__}.power", cls.power)


def objective_names() -> Sequence[str]:
    """Names of the registered objectives."""
    return list(_OBJECTIVES)


def objective_by_name(name: str) -> Objective:
    """Make a registered objective with the defaults of its parameters.

    Raises
    ------
    TypeError, ValueError
        If the name is not registered.
    """
    return _OBJECTIVES[choice("objective", name, _OBJECTIVES)]()


def squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Mean square over the state, Eq. 4 except for a constant factor; from (B, T, N) to (B, T)."""
    return (analysis - truth).square().mean(-1)


def root_squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Root mean square over the state, which is the score. Large errors count less than in Eq. 4."""
    return (squared_error(analysis, truth) + _TINY).sqrt()


@register_objective
class SquaredError(Objective):
    """Mean square error of the analysis, Eq. 4 except for a constant factor."""

    name: ClassVar[str] = "mse"
    power: ClassVar[int] = 1

    def loss(self, rollout: Rollout) -> Tensor:
        """`squared_error` of the analysis."""
        return squared_error(rollout.scaled(rollout.analysis), rollout.scaled(rollout.truth()))


@register_objective
class RootSquaredError(Objective):
    """Root mean square error of the analysis, as in the score."""

    name: ClassVar[str] = "rmse"

    def loss(self, rollout: Rollout) -> Tensor:
        """`root_squared_error` of the analysis."""
        return root_squared_error(rollout.scaled(rollout.analysis), rollout.scaled(rollout.truth()))


@register_objective
class ForecastMisfit(Objective):
    """Misfit of the forecast to the next observations. The truth is not read."""

    name: ClassVar[str] = "forecast"
    needs_truth: ClassVar[bool] = False
    least_window: ClassVar[int] = 2
    power: ClassVar[int] = -1

    def loss(self, rollout: Rollout) -> Tensor:
        """Mean square of R^{-1/2} (y - H x_f)."""
        return rollout.misfit(rollout.forecast)


@register_objective
class AnalysisMisfit(Objective):
    """Misfit of the analysis to its observations, corrected because the analysis depends on these observations.

    The truth is not read. The correction is twice the divergence of the analysis with respect to the observations. It
    is the correction for out-of-sample errors: Mallia-Parfitt and Broecker (2016), doi:10.1063/1.4965029.
    """

    name: ClassVar[str] = "analysis"
    needs_truth: ClassVar[bool] = False
    needs_divergence: ClassVar[bool] = True
    power: ClassVar[int] = -1

    def loss(self, rollout: Rollout) -> Tensor:
        """Mean square of R^{-1/2} (y - H x_a), plus the correction."""
        assert rollout.divergence is not None
        return rollout.misfit(rollout.analysis) + 2 * rollout.divergence / rollout.window.observation.shape[-1]
