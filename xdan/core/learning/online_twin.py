"""An endless twin experiment that is generated window by window."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..observing import FieldSites, ObservingSystem, Sites, observe
from ..progress import track
from ..truth_model import TruthModel
from ..twin import check_truth
from .rollout import Window


class EndlessTwin:
    """Truth and observations that never end and never repeat.

    Parameters
    ----------
    dynamics : Dynamics
        The model of the forecasts. If it depends on time, it stands at the first time of all trajectories.
    sites : Sites or FieldSites
    observing : ObservingSystem
    steps : int
        Number of model steps in an interval.
    trajectories, batch : int
        Number of trajectories in total, and in a window. Groups of trajectories take turns.
    cycles : int
        Number of cycles of a window.
    seed : int
    like : Tensor
        The tensors have its dtype and device.
    first : int
        Label of the first trajectory.
    supervised : bool
        Whether windows hold their truth.
    model : TruthModel, optional
        The model of the truth, if it differs from the model of the forecasts.
    truth_steps : int, optional
        Number of steps of the truth's model in an interval.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        sites: Sites | FieldSites,
        observing: ObservingSystem,
        *,
        steps: int,
        trajectories: int,
        batch: int,
        cycles: int,
        seed: int,
        like: Tensor,
        first: int = 0,
        supervised: bool = True,
        model: TruthModel | None = None,
        truth_steps: int | None = None,
    ) -> None:
        self.dynamics, self.sites, self.observing = dynamics.on(like.device), sites, observing
        self.model = TruthModel(self.dynamics) if model is None else model.on(like.device)
        self.truth_steps = steps if truth_steps is None else truth_steps
        self.steps, self.batch, self.cycles, self.seed = steps, batch, cycles, seed
        self.groups = self.per_epoch = max(1, trajectories // batch)
        self.supervised = supervised
        self.trajectory = torch.arange(first, first + self.groups * batch)
        self.truth = self.model.start(self.trajectory, seed, like)

    def window(self, index: int) -> Window:
        """Return the next cycles of the group that comes next.

        Raises
        ------
        ValueError
            If the truth is not finite any more.
        """
        turn, group = divmod(index, self.groups)
        first = turn * self.cycles
        rows = slice(group * self.batch, (group + 1) * self.batch)
        truth, states = self.truth[rows].clone(), []  # a view would change after the window is returned
        with torch.no_grad():
            for cycle in track(range(self.cycles), "running the truth"):
                states.append(self.model.forecast_part(truth))
                time, steps_before = first + cycle, (first + cycle) * self.truth_steps
                labels = self.trajectory[rows]
                truth = self.model.advanced(truth, self.truth_steps, steps_before, labels, time + 1, self.seed)
            self.truth[rows] = truth
            record = torch.stack(states, 1)
            check_truth(self.model.dynamics, record, self.trajectory[rows], first)
            times = torch.arange(first, first + self.cycles)
            keys = (self.trajectory[rows].to(record.device), times.to(record.device))
            observation = observe(record, self.sites, self.observing, *keys, self.seed)
        steps = (self.steps,) * self.cycles
        clock = None
        if not self.dynamics.autonomous:  # the first interval of a window ends at its first time
            clock = torch.full((len(observation),), (first - 1) * self.steps)
        return Window(record if self.supervised else None, observation, steps, group, fresh=turn == 0, clock=clock)

    def arrays(self) -> dict[str, Tensor]:
        """Truth, from which a resumed training goes on."""
        return {"truth": self.truth}

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Resume from a stored truth."""
        self.truth = arrays["truth"].clone()

    def close(self) -> None:
        """Nothing to end."""
