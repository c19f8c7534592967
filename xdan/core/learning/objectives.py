"""Objectives: what a network is trained for, its loss over a window of cycles, and the gradient of that loss."""

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

_TINY = 1e-30  # keeps the root's gradient finite at zero, in any units
_CAP = 4.0  # bound on the gradient that cycles pass back, in units of what one cycle adds


@dataclass(frozen=True)
class WindowContents:
    """What the windows of a training hold, known before any of them is read.

    Attributes
    ----------
    cycles : int
        T, the length of a window.
    truth : bool
        Whether they have states to compare analyses with: the truth, or a teacher's analyses in its place.
    forecast : bool
        Whether they have a teacher's forecasts: then no model is run.
    covariance : bool
        Whether they have the analysis error covariance of a teacher, an ensemble beside an endless twin.
    """

    cycles: int
    truth: bool = True
    forecast: bool = False
    covariance: bool = False


@dataclass(frozen=True)
class WindowGradient:
    """The gradient of a window's loss, and what training notes beside it.

    Attributes
    ----------
    loss : float or Tensor, shape ()
        Mean over trajectories and cycles, detached.
    gradients : list of Tensor
        Of the mean, for every parameter in turn.
    square : Tensor, shape (B, T)
        What `Objective.square` gives, whose root is the RMSE of the history.
    lost : Tensor of bool, shape (B, T)
        Where a trajectory was restarted.
    state : dict of Tensor
        Analysis state at the window's end.
    """

    loss: float | Tensor
    gradients: list[Tensor]
    square: Tensor
    lost: Tensor
    state: State


class Objective(ABC):
    """What a network is trained for.

    A class of your own has a `name` and a `loss`, from what the cycles of a window gave to a loss for every trajectory
    and cycle. Its attributes say what the loss needs: training refuses networks and records without it before it reads
    any data. An objective with parameters keeps them as attributes of its constructor's
    names. `train(objective=...)` takes an object of it, or its name once the class is registered.

    A class may override `window_gradient` instead of `loss`, where it wants another pass through a window than the
    cycles and the way back through them.

    Attributes
    ----------
    name : str
        Under which it is registered, and which the description of a trained network holds.
    needs_truth : bool
        Whether windows need the truth. The record's truth is not read where this is False, and validation is by the
        innovations.
    needs_members : bool
        Whether the network needs members, which `Rollout.members` then holds.
    needs_spread : bool
        Whether the network needs to give a spread: `Rollout.root` then holds the roots of its analyses' covariances.
        With `needs_members` too, one of both is enough.
    needs_divergence : bool
        Whether the loss needs `Rollout.divergence`, at the cost of a second analysis in every cycle.
    needs_covariance : bool
        Whether windows need a teacher's analysis error covariance, of an ensemble beside an endless twin.
    least_window : int
        Cycles that a window needs.
    power : int
        p, where the loss's gradient by an analysis grows like (observation error)^p when the units change: 0 for a
        root mean square, 1 for a mean square, -1 for a misfit in units of the observation error.
    cycles_network : bool
        Whether the network is cycled. Where it is not, a bad validation says little of the way and does not send
        training back to the best weights, and no gradient passes through the model.
    through_model : bool
        Whether gradients pass through the model from cycle to cycle.

    Examples
    --------
    The Huber loss: quadratic for errors of a site up to `delta`, linear beyond.

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

        By default the attributes that are named as the constructor's parameters.

        Raises
        ------
        TypeError
            Where such an attribute is missing, or no plain value.
        """
        return constructor_values(self)

    def to_json(self) -> str | dict[str, Any]:
        """Describe it by its name, with the parameters where it has some."""
        parameters = self.config()
        return {"name": self.name, "parameters": parameters} if parameters else self.name

    def check(self, network: AnalysisNetwork, contents: WindowContents) -> None:
        """Refuse a network, or windows, that it cannot train on.

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
        """Give the loss of every trajectory and cycle.

        Parameters
        ----------
        rollout : Rollout
            Forecasts and analyses (B, T, N) that gradients pass through, and the window that they were made on.

        Returns
        -------
        Tensor, shape (B, T)
        """
        raise NotImplementedError(
            f"objective {self.name!r} has no loss: expected a method loss(rollout) of {type(self).__qualname__}, "
            "which gives a tensor of shape (trajectories, cycles)"
        )

    def judges(self, network: AnalysisNetwork) -> bool:
        """Whether the loss on the validation record chooses the best weights, and not the RMSE.

        By default it does for what scores the spread that the network gives, of which the RMSE says nothing.
        """
        return self.needs_spread and network.gives_spread

    def square(self, rollout: Rollout) -> Tensor:
        """Give the mean square that the history shows the root of, shape (B, T).

        That of the analysis error; without the truth that of the innovation, NaN where nothing is observed. Of several
        fields in units of their observation errors.
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
        """Give the gradient of a window's mean loss: through the cycles and back.

        The first analysis of a trajectory is not the network's: it has no loss, unless the window has no other.

        Parameters
        ----------
        method : DataAssimilationNetwork
            With the network that is trained.
        dynamics : Dynamics
        observing : ObservingSystem
        window : Window
        state : dict of Tensor, or None where the trajectories start
            Analysis that the window before left.

        Returns
        -------
        WindowGradient
        """
        batch, cycles = window.observation.shape[:2]
        size = math.prod(dynamics.shape) if self.needs_truth else window.observation.shape[-1]
        # One cycle's own share of an RMSE's gradient has the norm 1 / (batch * cycles * sqrt(sites)).
        # Of several fields the loss is in units of each field's error.
        # A tensor: nothing here waits for the device, so that a GPU can replay the whole pass as one graph.
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
        """Give what `loss` gives, (B, T), checked.

        Raises
        ------
        ValueError
            For another shape, or what is no real number or has no derivative.
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
        # The only cycle of a window may have a loss that no analysis of the network comes before.
        if shape[1] > 1 and rollout.analysis.requires_grad and not losses.requires_grad:
            raise ValueError(
                f"torch sees no derivative of the loss of objective {self.name!r} by the analyses: expected torch "
                "operations of rollout.analysis, without detach() or NumPy"
            )
        return losses


def gradients_of(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Gradient of a loss for every parameter in turn; zeros where nothing in it is the network's, and if frozen."""
    weights = list(parameters)
    learned = [weight for weight in weights if weight.requires_grad]
    if not loss.requires_grad:  # a window of one cycle that starts a record
        learned = []
    known = iter(torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True) if learned else ())
    return [next(known) if learned and weight.requires_grad else torch.zeros_like(weight) for weight in weights]


_OBJECTIVES: Registry[Objective] = Registry("objective", Objective, "xdan.Objective")
_Cls = TypeVar("_Cls", bound=type[Objective])


def register_objective(cls: _Cls) -> _Cls:
    """Register an objective class under its `name`, which `train(objective=...)` then takes.

    Parameters
    ----------
    cls : class derived from Objective
        With an attribute `name` of its own.

    Returns
    -------
    class
        The same class.

    Raises
    ------
    TypeError
        For what is no class of objectives, has no name of its own, or neither a loss nor a gradient.
    ValueError
        If another class has the name. A class that is defined anew takes its own place.

    Examples
    --------
    >>> import xdan
    >>> from xdan.core.learning.objectives import SquaredError
    >>> xdan.register_objective(SquaredError) is SquaredError  # what the decorator does, once more
    True
    """
    _OBJECTIVES.check(cls, "register_objective")
    check_complete(cls)
    return _OBJECTIVES.register(cls, "register_objective")


def check_complete(cls: type[Objective]) -> None:
    """Refuse a class of objectives that lacks a name, or both a loss and a gradient.

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
    """Make a registered objective, its parameters at their defaults.

    Raises
    ------
    TypeError, ValueError
        For what is no registered name.
    """
    return _OBJECTIVES[choice("objective", name, _OBJECTIVES)]()


def squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Mean square over the state, Eq. 4 up to a constant factor; (B, T, N) to (B, T)."""
    return (analysis - truth).square().mean(-1)


def root_squared_error(analysis: Tensor, truth: Tensor) -> Tensor:
    """Root mean square over the state, the score itself: large errors weigh less than in Eq. 4."""
    return (squared_error(analysis, truth) + _TINY).sqrt()


@register_objective
class SquaredError(Objective):
    """Mean square error of the analysis, Eq. 4 up to a constant factor."""

    name: ClassVar[str] = "mse"
    power: ClassVar[int] = 1

    def loss(self, rollout: Rollout) -> Tensor:
        """`squared_error` of the analysis."""
        return squared_error(rollout.scaled(rollout.analysis), rollout.scaled(rollout.truth()))


@register_objective
class RootSquaredError(Objective):
    """Root mean square error of the analysis, as the score takes it."""

    name: ClassVar[str] = "rmse"

    def loss(self, rollout: Rollout) -> Tensor:
        """`root_squared_error` of the analysis."""
        return root_squared_error(rollout.scaled(rollout.analysis), rollout.scaled(rollout.truth()))


@register_objective
class ForecastMisfit(Objective):
    """Misfit of the forecast to the next observations; the truth is not read."""

    name: ClassVar[str] = "forecast"
    needs_truth: ClassVar[bool] = False
    least_window: ClassVar[int] = 2
    power: ClassVar[int] = -1

    def loss(self, rollout: Rollout) -> Tensor:
        """Mean square of R^{-1/2} (y - H x_f)."""
        return rollout.misfit(rollout.forecast)


@register_objective
class AnalysisMisfit(Objective):
    """Misfit of the analysis to the observations that made it, corrected for having seen them.

    The truth is not read. The correction is twice the divergence of the analysis by the observations, as for
    out-of-sample errors: Mallia-Parfitt and Broecker (2016), doi:10.1063/1.4965029.
    """

    name: ClassVar[str] = "analysis"
    needs_truth: ClassVar[bool] = False
    needs_divergence: ClassVar[bool] = True
    power: ClassVar[int] = -1

    def loss(self, rollout: Rollout) -> Tensor:
        """Mean square of R^{-1/2} (y - H x_a), and the correction."""
        assert rollout.divergence is not None
        return rollout.misfit(rollout.analysis) + 2 * rollout.divergence / rollout.window.observation.shape[-1]
