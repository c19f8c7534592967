"""Imitation of a teacher's analysis error covariance, before a network is trained through the cycles."""

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

_SETTLED = 100  # number of cycles after which an ensemble has settled
_LIFE = 200  # trajectories start anew after so many cycles, so that a network also learns how an ensemble settles


@register_objective
class CovarianceImitation(Objective):
    """Distance between the P_a of the network and that of a teacher, at the teacher's forecasts; `covariance_errors`.

    The network is not cycled. This objective is a first stage for networks that form a covariance, before training
    through the cycles.
    """

    name: ClassVar[str] = "covariance"
    needs_covariance: ClassVar[bool] = True
    cycles_network: ClassVar[bool] = False

    def check(self, network: AnalysisNetwork, contents: WindowContents) -> None:
        """Refuse also a network that forms no P_a."""
        super().check(network, contents)
        if not network.forms_covariance:
            raise ValueError(
                f"objective={self.name!r}: network {network.name!r} forms no covariance; expected "
                "xdan.LinearInZeta(form='hypernetwork'), which forms P_a"
            )

    def window_gradient(
        self,
        method: DataAssimilationNetwork,
        dynamics: Dynamics,
        observing: ObservingSystem,
        window: Window,
        state: State | None,
    ) -> WindowGradient:
        """Gradient of the mean distance. The history shows the root of the distances."""
        network = method.network
        with torch.enable_grad():
            errors, end = covariance_errors(network, window, state)
            loss = errors.mean()
            gradients = gradients_of(loss, network.parameters())
        errors = errors.detach()
        return WindowGradient(loss.detach(), gradients, errors, torch.zeros_like(errors).bool(), end)


def covariance_errors(network: AnalysisNetwork, window: Window, state: State | None) -> tuple[Tensor, State]:
    """Distance between the P_a of the network and that of a teacher, at the teacher's forecasts.

    It is the squared Frobenius norm of P_a - P_teacher, divided by that of P_teacher. This equals the mean square
    difference of the increments P zeta, relative to the teacher's, over projected innovations with independent sites of
    equal variance. No draws are needed. Without memory, the divisor is the mean over the window.

    Parameters
    ----------
    network : AnalysisNetwork
        A network that forms a covariance.
    window : Window
        A window with `forecast` and `covariance`.
    state : dict of Tensor, or None where the trajectories start
        Memory at the end of the previous window.

    Returns
    -------
    errors : Tensor, shape (B, T), or (B, T - 1) where the trajectories start
    state : dict of Tensor
        The last forecast and the memory, detached.
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
    # If a teacher is almost certain, the norm is relative to an error of a hundredth of the observation error.
    tiny = forecast.shape[-1] * (1e-4 * unit) ** 2
    size = target.square().sum((2, 3)).clamp_min(tiny)
    # Relative to each covariance: ensembles that settle have a P_a ten times as large, and must not dominate.
    errors = (covariance - target).square().sum((2, 3)) / (size if network.memory else size.mean())
    end = {"x": window.forecast[:, -1]}
    if memory is not None:
        end["memory"] = memory.detach()
    return errors, end


class TaughtTwin:
    """An endless twin with a teacher, a method that has a P_a. Windows hold the teacher's forecasts and its P_a.

    If one of its trajectories is lost, the teacher starts anew for a whole batch.

    Parameters
    ----------
    twin : EndlessTwin
    teacher : Method
        A prepared method with members, or with a covariance that a run stores.
    anew : bool
        Whether the teacher starts anew from time to time. Then windows show how ensembles settle. Otherwise the teacher
        has settled before the first window. A network without memory needs this: it cannot distinguish an ensemble that
        settles from one that has settled.
    """

    def __init__(self, twin: EndlessTwin, teacher: Method, anew: bool = True) -> None:
        self.twin, self.teacher, self.anew = twin, teacher, anew
        self.per_epoch = twin.per_epoch
        self.states: dict[int, State] = {}

    def window(self, index: int) -> Window:
        """Return the next cycles of the group that comes next."""
        if self.anew:
            return self._next(index)
        before = self.twin.groups * math.ceil(_SETTLED / self.twin.cycles)
        if index == 0:
            for early in track(range(before), "settling the teacher"):
                self._next(early)
        return self._next(before + index)

    def _next(self, index: int) -> Window:
        """Return the twin's window, with the teacher's forecasts and covariances."""
        window = self.twin.window(index)
        life = max(1, _LIFE // self.twin.cycles)  # in windows
        # Groups are shifted in time, so that they do not all start anew together.
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
        """Truth and members, from which a resumed training goes on."""
        return self.twin.arrays() | prefixed("teacher/", states_to_tensors(self.states))

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Resume from stored arrays."""
        self.twin.restore(arrays)
        self.states = tensors_to_states({name: value.clone() for name, value in under(arrays, "teacher/").items()})

    def close(self) -> None:
        """Nothing to end."""
