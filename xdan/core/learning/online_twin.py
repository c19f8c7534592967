"""An endless twin experiment, generated window by window."""

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
    """Truth and observations that never end nor repeat.

    Parameters
    ----------
    dynamics : Dynamics
        That of the forecasts. One that depends on time stands at the first time of all trajectories.
    sites : Sites or FieldSites
    observing : ObservingSystem
    steps : int
        Model steps in an interval.
    trajectories, batch : int
        How many trajectories go on side by side, and how many a window holds; they take turns.
    cycles : int
        Cycles of a window.
    seed : int
    like : Tensor
        Dtype and device.
    first : int
        Label of the first trajectory.
    supervised : bool
        Whether windows have their truth.
    model : TruthModel, optional
        Makes the truth, where the model of the forecasts does not.
    truth_steps : int, optional
        Its steps in an interval.
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
        """Give the next cycles of the group whose turn it is.

        Raises
        ------
        ValueError
            If the truth becomes not finite.
        """
        turn, group = divmod(index, self.groups)
        first = turn * self.cycles
        rows = slice(group * self.batch, (group + 1) * self.batch)
        truth, states = self.truth[rows].clone(), []  # a view would change under the window
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
        if not self.dynamics.autonomous:  # a window's first interval leads to its first time
            clock = torch.full((len(observation),), (first - 1) * self.steps)
        return Window(record if self.supervised else None, observation, steps, group, fresh=turn == 0, clock=clock)

    def arrays(self) -> dict[str, Tensor]:
        """Truth to carry on from."""
        return {"truth": self.truth}

    def restore(self, arrays: dict[str, Tensor]) -> None:
        """Carry on from a stored truth."""
        self.truth = arrays["truth"].clone()

    def close(self) -> None:
        """Nothing to give back."""
