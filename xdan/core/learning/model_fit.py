"""The learned part of a model, fitted through the model's forecasts: gradient steps, and what a resumed run needs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..dynamics import CorrectedDynamics, SurrogateDynamics
from .named_tensors import prefixed, states_to_tensors, tensors_to_states, under

_PATIENCE = 50  # number of successive steps without a finite gradient after which training gives up
_LONGEST = 1.0  # largest norm of a gradient of the normalised loss; longer ones are shortened


class ModelFit:
    """Optimises the weights of a model's network, so that forecasts come close to the states that follow.

    The loss is the mean over leads l = 1, ..., L of |x_l - M^l(x_0)|^2, with each component in units of its standard
    deviation. The steps are those of Adam.

    Parameters
    ----------
    dynamics : CorrectedDynamics or SurrogateDynamics
        A model made by `trained_with`. The weights of its network change in place.
    steps : int
        Number of model steps between two states.
    scale : Tensor, shape (N,)
        Standard deviations of the components, in the state's units.
    learning_rate : float

    Attributes
    ----------
    best : dict of str to Tensor
        Weights with the best validation. `best_score` is the value of this validation.
    step_count : int
    """

    def __init__(
        self, dynamics: CorrectedDynamics | SurrogateDynamics, steps: int, scale: Tensor, learning_rate: float
    ) -> None:
        self.dynamics, self.network, self.steps, self.scale = dynamics, dynamics.network, steps, scale
        self.rate, self.step_count, self.fruitless = learning_rate, 0, 0
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        self.best_score = math.inf
        self.best = {name: value.clone() for name, value in self.network.state_dict().items()}

    def loss(self, states: Tensor) -> Tensor:
        """Mean square of normalised errors at each lead, shape (L,), for sequences of states (B, L + 1, N)."""
        shape = self.dynamics.shape
        x, losses = states[:, 0].unflatten(-1, shape), []
        for lead in range(1, states.shape[1]):
            x = self.dynamics.advance(x, self.steps)
            losses.append(((x.flatten(1) - states[:, lead]) / self.scale).square().mean())
        return torch.stack(losses)

    def step(self, states: Tensor, rate: float) -> float:
        """Take one step on sequences of states, with the learning rate times `rate`. Return the loss.

        Raises
        ------
        RuntimeError
            If many successive steps had no finite gradient.
        """
        self.network.train()
        self.optimiser.zero_grad()
        loss = self.loss(states).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), _LONGEST)
        self.step_count += 1
        if bool(norm.isfinite()):
            self.fruitless = 0
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * rate
            self.optimiser.step()
        else:
            self.fruitless += 1
            if self.fruitless >= _PATIENCE:
                raise RuntimeError(
                    f"no finite gradient in {_PATIENCE} steps up to step {self.step_count}: expected forecasts of the "
                    "network that stay finite. Try a lower learning_rate=, shorter rollouts= or a smaller timestep="
                )
        return loss.item()

    def validate(self, states: Tensor) -> Tensor:
        """Root mean square errors at each lead, (L,), in standard deviations. Keep the weights if they are the best."""
        self.network.eval()
        with torch.no_grad():
            errors = self.loss(states).sqrt()
        score = float(errors.square().mean().sqrt())
        if math.isfinite(score) and score < self.best_score:
            self.best_score = score
            self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        return errors

    def arrays(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as named tensors."""
        arrays = prefixed("network/", self.network.state_dict()) | prefixed("best/", self.best)
        slots = states_to_tensors(self.optimiser.state_dict()["state"])
        return arrays | prefixed("optimiser/", {name: torch.as_tensor(value) for name, value in slots.items()})

    def scalars(self) -> dict[str, Any]:
        """Other things that a resumed run needs, as JSON values."""
        best = None if math.isinf(self.best_score) else self.best_score
        return {"step_count": self.step_count, "fruitless": self.fruitless, "best_score": best}

    def restore(self, arrays: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Resume from `arrays` and `scalars`."""
        self.network.load_state_dict(under(arrays, "network/"))
        self.best = under(arrays, "best/")
        slots = tensors_to_states(under(arrays, "optimiser/"))
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": slots})
        self.step_count, self.fruitless = scalars["step_count"], scalars["fruitless"]
        self.best_score = math.inf if scalars["best_score"] is None else scalars["best_score"]
