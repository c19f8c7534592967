"""Iterates of a damped Gauss-Newton minimisation, one for each trajectory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """Where the minimisation stands, trajectories first; a derived class adds what its linearisation gives.

    Attributes
    ----------
    weights : Tensor, shape (B, M)
        The best so far.
    target : Tensor, shape (B, M)
        Where Gauss-Newton goes from the weights.
    cost, scale, count : Tensor, shape (B,)
        Cost at the weights, the share of the step to try next, and the runs over the window so far.
    """

    weights: Tensor
    target: Tensor
    cost: Tensor
    scale: Tensor
    count: Tensor

    @property
    def step(self) -> Tensor:
        """What to add to the weights next, shape (B, M)."""
        return self.scale[:, None] * (self.target - self.weights)

    def rows(self, index: Tensor) -> Self:
        """Some trajectories, by index or by flag."""
        if index.dtype != torch.bool and len(index) == len(self.cost):
            return self
        return replace(self, **{name: value[index] for name, value in vars(self).items()})

    def replaced(self, index: Tensor, by: Self) -> Self:
        """Some trajectories put back."""
        others = vars(by)
        return replace(self, **{name: value.index_copy(0, index, others[name]) for name, value in vars(self).items()})

    def where(self, flag: Tensor, other: Self) -> Self:
        """Keep this one where the flag is set."""
        if bool(flag.all()):
            return self
        others = vars(other)
        chosen = {
            name: torch.where(flag.reshape(-1, *(1 for _ in value.shape[1:])), value, others[name])
            for name, value in vars(self).items()
        }
        return replace(self, **chosen)

    def halved(self) -> Self:
        """Try half of the step."""
        return replace(self, scale=self.scale / 2, count=self.count + 1)
