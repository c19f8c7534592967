"""Training of one network for several numbers of members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import integer, shown
from ..dynamics import Dynamics
from ..methods import DataAssimilationNetwork, State
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from .objectives import Objective, WindowContents, WindowGradient, register_objective, root_squared_error
from .rollout import Rollout, Window


@register_objective
class AcrossMembers(Objective):
    """Root mean square error of the analysis, averaged over filters with different numbers of members.

    Each window is run once for each number of members, by filters that continue side by side. All numbers are trained
    together because a network that is trained for one number after another forgets the first. Validation uses the
    network's number of members.

    Parameters
    ----------
    members : sequence of int
        Numbers of members, each at least 2.

    Raises
    ------
    TypeError
        If `members` is not a list or tuple of integers, or is empty.
    ValueError
        If a number is below 2.

    Examples
    --------
    >>> import xdan
    >>> objective = xdan.AcrossMembers((3, 5))
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> network = xdan.LearnedLETKF(members=5, radius=2.0)
    >>> net = xdan.train(ds, network, objective=objective, steps=1, window=3, batch=2, progress=False)
    >>> ds.dan.cycle(net.with_parameters(members=3), members=True).sizes["member"]
    3
    """

    name: ClassVar[str] = "rmse-across-members"

    def __init__(self, members: Sequence[int] = (7, 10, 20)) -> None:
        if not isinstance(members, (list, tuple)) or not members:
            raise TypeError(f"members={shown(members)}: expected numbers of members, such as (7, 10, 20)")
        self.members = [integer("members", count, least=2) for count in members]

    def check(self, network: AnalysisNetwork, contents: WindowContents) -> None:
        """Refuse a network with weights for each member, or with a single forecast."""
        super().check(network, contents)
        if not network.any_members:
            raise ValueError(
                f"objective={self.name!r} trains for several numbers of members, and the network {network.name!r} is "
                "for one: expected a network such as xdan.LearnedLETKF()"
            )

    def loss(self, rollout: Rollout) -> Tensor:
        """`root_squared_error` of the analysis, for one number of members."""
        return root_squared_error(rollout.scaled(rollout.analysis), rollout.scaled(rollout.truth()))

    def window_gradient(
        self,
        method: DataAssimilationNetwork,
        dynamics: Dynamics,
        observing: ObservingSystem,
        window: Window,
        state: State | None,
    ) -> WindowGradient:
        """Mean over the numbers of members. Names of the state's entries begin with the number of members."""
        results: list[WindowGradient] = []
        after: State = {}
        for count in self.members:
            sign = f"{count}-"
            before = None
            if state is not None:
                before = {name.removeprefix(sign): v for name, v in state.items() if name.startswith(sign)}
            one = super().window_gradient(method.with_members(count), dynamics, observing, window, before)
            after |= {f"{sign}{name}": value for name, value in one.state.items()}
            results.append(one)
        gradients = [torch.stack(parts).mean(0) for parts in zip(*(one.gradients for one in results), strict=True)]
        loss = torch.stack([torch.as_tensor(one.loss) for one in results]).mean()
        square = torch.stack([one.square for one in results]).mean(0)
        lost = torch.stack([one.lost for one in results]).any(0)
        return WindowGradient(loss, gradients, square, lost, after)
