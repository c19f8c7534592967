"""A climatology that the user gives: a sample of states that replaces the model's spin-up."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import real_array, shown
from ..random import Purpose, uniform

if TYPE_CHECKING:
    from .base import Dynamics

LEAST = 2  # smallest number of states: one state has no variance


class GivenClimate:
    """States of a climate. Starts are drawn from them by keyed indices.

    Attributes
    ----------
    states : Tensor of float64, shape (S, *shape)
    word : str
        Number of states, and their digest. Descriptions hold it instead of the states.

    Parameters
    ----------
    states : array_like or Tensor, shape (..., *shape)
        They are copied. A labelled array has the dims of the model, in any order, and other dims for the states.
    dynamics : Dynamics
        The model of these states.

    Raises
    ------
    TypeError
        If the states are not real numbers.
    ValueError
        If the shape is wrong, there are fewer than 2 states, values are not finite, or all states are equal.
    """

    def __init__(self, states: Any, dynamics: Dynamics) -> None:
        shape = dynamics.shape
        if hasattr(states, "dims"):
            if missing := [dim for dim in dynamics.dims if dim not in states.dims]:
                raise ValueError(
                    f"climatology= has the dims {tuple(states.dims)}, without {missing}: expected {dynamics.dims}, "
                    f"those of a state of {dynamics.label!r}, and one for the states, such as 'sample'"
                )
            states = states.transpose(..., *dynamics.dims)
        numbers = real_array("climatology", states, finite=False)
        if numbers.ndim <= len(shape) or numbers.shape[numbers.ndim - len(shape) :] != shape:
            raise ValueError(
                f"climatology= has shape {numbers.shape}: expected (states, {', '.join(map(str, shape))}), states of "
                f"{dynamics.label!r} along the first axis"
            )
        numbers = numbers.reshape(-1, *shape)
        if len(numbers) < LEAST:
            raise ValueError(f"climatology= holds {len(numbers)} states: expected at least {LEAST}")
        self.states = torch.from_numpy(numbers)
        lost = int((~self.states.isfinite()).flatten(1).any(1).sum())
        if lost:
            raise ValueError(
                f"{lost} of the {len(numbers)} states of climatology= are not finite: expected whole states; leave "
                "those out, for example states[np.isfinite(states).all(axis=1)]"
            )
        if bool((self.states == self.states[:1]).all()):
            raise ValueError(
                f"all {len(numbers)} states of climatology= are the same, {shown(self.states[0].flatten().tolist())}: "
                "expected states that differ, as their spread is that of the climate"
            )
        digest = hashlib.sha256(repr(shape).encode() + self.states.numpy().tobytes()).hexdigest()
        self.word = f"{len(numbers)} states, sha256 {digest[:16]}"

    def __len__(self) -> int:
        return len(self.states)

    def draw(self, labels: Sequence[int] | Tensor, seed: int, members: int, purpose: Purpose) -> Tensor:
        """Draw states, keyed by (seed, label, member, purpose); see `Dynamics.climatology`.

        The states are shuffled, and labels take `members` of them one after another. When all states are used, they are
        shuffled again. The members of a label are distinct. Neighbouring labels have distinct states, except where a
        new shuffle begins.

        Returns
        -------
        Tensor of float64, shape (R, members, *shape)

        Raises
        ------
        ValueError
            If there are fewer states than members.
        """
        self.check_members(members)
        count = len(self.states)
        keys, in_pass = torch.as_tensor(labels, dtype=torch.int64).cpu(), count // members
        passes, place = torch.unique(keys.div(in_pass, rounding_mode="floor"), return_inverse=True)
        first = members * keys.remainder(in_pass)
        index = torch.empty(len(keys), members, dtype=torch.int64)
        for number, key in enumerate(passes):
            order = uniform(seed, purpose, key[None], torch.zeros(1, dtype=torch.int64), count)[0, 0].argsort()
            rows = place == number
            index[rows] = order[first[rows, None] + torch.arange(members)]
        return self.states[index]

    def check_members(self, members: int) -> None:
        """Refuse more members than states.

        Raises
        ------
        ValueError
        """
        if members > len(self.states):
            raise ValueError(
                f"{members} members start from the {len(self.states)} states of climatology=: expected at least "
                f"{members} states, as members are distinct; give more states, or take fewer members="
            )
