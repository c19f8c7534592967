"""Imitating a teacher's analysis error covariance, before a network is trained through the cycles."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..methods import DataAssimilationNetwork, Method, Record, State, run
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from ..progress import track
from .named_tensors import prefixed, states_to_tensors, tensors_to_states, under
from .objectives import Objective, WindowContents, WindowGradient, gradients_of, register_objective
from .online_twin import EndlessTwin
from .rollout import Window

_SETTLED = 100  # cycles in which an ensemble settles
_LIFE = 200  # cycles after which trajectories start anew: a network must know how an ensemble settles, too


@register_objective
class CovarianceImitation(Objective):
    """Distance of the network's P_a from a teacher's, at the teacher's forecasts: `covariance_errors`.

    The network is not cycled. This is a start for networks that form a covariance, before they are trained through
    the cycles.
    """

    name: ClassVar[str] = "covariance"
    needs_covariance: ClassVar[bool] = True
    cycles_network: ClassVar[bool] = False

    def check(self, network: AnalysisNetwork, contents: WindowContents) -> None:
        """Refuse a network that forms no P_a, too."""
        super().check(network, contents)
        if not network.forms_covariance:
            raise ValueError(
                f"objective={self.name!r}: network {network.name!r} has no covariance of its own; expected "
                "xdan.LinearInZeta(form='hypernetwork'), whose P_a is one"
            )

    def window_gradient(
        self,
        method: DataAssimilationNetwork,
        dynamics: Dynamics,
        observing: ObservingSystem,
        window: Window,
        state: State | None,
    ) -> WindowGradient:
        """Give the gradient of the mean distance; the history shows the root of the distances."""
        network = method.network
        with torch.enable_grad():
            errors, end = covariance_errors(network, window, state)
            loss = errors.mean()
            gradients = gradients_of(loss, network.parameters())
        errors = errors.detach()
        return WindowGradient(loss.detach(), gradients, errors, torch.zeros_like(errors).bool(), end)


def covariance_errors(network: AnalysisNetwork, window: Window, state: State | None) -> tuple[Tensor, State]:
    """How far the network's P_a is from a teacher's, at the teacher's forecasts.

    The squared Frobenius norm of P_a - P_teacher, divided by that of P_teacher: the mean square by which the increments
    P zeta differ, relative to the teacher's, for projected innovations whose sites are independent and of one variance,
    all of them at once instead of one draw. Without memory, divided by the mean of the window.

    Parameters
    ----------
    network : AnalysisNetwork
        That forms a covariance.
    window : Window
        With `forecast` and `covariance`.
    state : dict of Tensor, or None where the trajectories start
        The memory that the window before left.

    Returns
    -------
    errors : Tensor, shape (B, T), or (B, T - 1) where the trajectories start
    state : dict of Tensor
        The last forecast, and the memory; detached.
    """
    assert window.forecast is not None
    assert window.covariance is not None
    memory = None if state is None else state.get("memory")
    # The first analysis of a trajectory is not the network's.
    first = 1 if state is None and len(window.steps) > 1 else 0
    forecast = window.forecast[:, first:]
    if network.memory:
        matrices = []
        for x in forecast.unbind(1):
            matrix, memory = network.covariance(x, memory)
            matrices.append(matrix)
        covariance = torch.stack(matrices, 1)
    else:
        covariance = network.covariance(forecast.flatten(0, 1))[0].unflatten(0, forecast.shape[:2])
    target = window.covariance[:, first:]
    unit = network.error_std.double() ** 2 if (scale := network.component_errors) is None else 1.0
    if scale is not None:
        covariance, target = (matrix / torch.outer(scale, scale) for matrix in (covariance, target))
    # Of a teacher that is all but certain, relative to an error of a hundredth of the observations'.
    tiny = forecast.shape[-1] * (1e-4 * unit) ** 2
    size = target.square().sum((2, 3)).clamp_min(tiny)
    # Relative each, so that ensembles which settle, whose P_a is ten times as large, do not drown the others.
    errors = (covariance - target).square().sum((2, 3)) / (size if network.memory else size.mean())
    end = {"x": window.forecast[:, -1]}
    if memory is not None:
        end["memory"] = memory.detach()
    return errors, end


class TaughtTwin:
    """An endless twin beside which a method runs that has a P_a: windows have its forecasts and that covariance.

    Where one of its trajectories diverges, the method starts anew for a whole batch.

    Parameters
    ----------
    twin : EndlessTwin
    teacher : Method
        With members, or a covariance that a run keeps; prepared.
    anew : bool
        Whether the method starts anew from time to time, too: then windows show how ensembles settle. Otherwise it has
        settled before the first window: a network without memory cannot tell an ensemble that settles from one that
        has settled.
    """

    def __init__(self, twin: EndlessTwin, teacher: Method, anew: bool = True) -> None:
        self.twin, self.teacher, self.anew = twin, teacher, anew
        self.per_epoch = twin.per_epoch
        self.states: dict[int, State] = {}

    def window(self, index: int) -> Window:
        """Give the next cycles of the group whose turn it is."""
        if self.anew:
            return self._next(index)
        before = self.twin.groups * math.ceil(_SETTLED / self.twin.cycles)
        if index == 0:
            for early in track(range(before), "settling the teacher"):
                self._next(early)
        return self._next(before + index)

    def _next(self, index: int) -> Window:
        """Give the twin's window, with what the teacher makes of it."""
        window = self.twin.window(index)
        life = max(1, _LIFE // self.twin.cycles)  # in windows
        # Groups are staggered, so that not all of them start anew together.
        turn = index // self.twin.groups + window.group * life // self.twin.groups
        fresh = window.fresh or (self.anew and turn % life == 0)
        outputs = self._run(window, None if fresh else self.states.get(window.group))
        if bool(outputs["diverged"].any()):
            fresh, outputs = True, self._run(window, None)
        if self.teacher.ensemble:
            anomalies = outputs["members"] - outputs["analysis"][:, :, None]
            covariance = anomalies.mT @ anomalies / (self.teacher.members - 1)
        else:
            covariance = outputs["analysis_covariance"]
        return replace(window, fresh=fresh, forecast=outputs["forecast"], covariance=covariance)

    def _run(self, window: Window, state: State | None) -> dict[str, Tensor]:
        twin = self.twin
        rows = slice(window.group * twin.batch, (window.group + 1) * twin.batch)
        anew = state is None
        record = Record(
            twin.dynamics,
            twin.observing,
            window.observation,
            (0, *window.steps[1:]) if anew else window.steps,
            twin.trajectory[rows],
            twin.seed,
            clock=window.clock_at(1 if anew else 0),
        )
        with torch.no_grad():
            outputs, self.states[window.group] = run(self.teacher, record, state, members=True)
        return outputs

    def arrays(self) -> dict[str, Tensor]:
        """Truth and members to carry on from."""
        return self.twin.arrays() | prefixed("teacher/", states_to_tensors(self.states))

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Carry on from stored arrays."""
        self.twin.restore(arrays)
        self.states = tensors_to_states({name: value.clone() for name, value in under(arrays, "teacher/").items()})

    def close(self) -> None:
        """Nothing to give back."""
