"""What all methods that carry members share."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..random import Purpose
from .base import Method, Record, State


class EnsembleMethod(Method):
    """A method whose state is an ensemble, `x` of shape (B, M, N).

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.

    Raises
    ------
    ValueError
        For fewer than 2 members.
    """

    ensemble: ClassVar[bool] = True
    outputs: ClassVar[dict[str, str]] = {"forecast_spread": "site", "spread": "site"}

    def __init__(self, members: int) -> None:
        if int(members) != members:
            raise ValueError(f"members={members}: expected an integer")
        if members < 2:
            raise ValueError(f"members={members}: expected at least 2, a spread needs them")
        self.members = int(members)

    def start(self, record: Record) -> State:
        """Members drawn from the dynamics' climatology."""
        x = record.dynamics.climatology(
            record.trajectory,
            record.seed,
            members=self.members,
            purpose=Purpose.ENSEMBLE,
            like=record.observation,
        )
        return {"x": x.flatten(2)}

    def forecast_outputs(self, state: State) -> dict[str, Tensor]:
        """Forecast spread."""
        return {"forecast_spread": state["x"].std(1)}

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Analysis spread."""
        return {"spread": state["x"].std(1)}
