"""A climatology that the user brings: a sample of states that stands for a model's own spin-up."""

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

LEAST = 2  # states of a climatology: one has no variance


class GivenClimate:
    """States of a climate, from which starts are drawn by keyed indices.

    Attributes
    ----------
    states : Tensor of float64, shape (S, *shape)
    word : str
        How many they are, and their digest: what descriptions hold instead of the states.

    Parameters
    ----------
    states : array_like or Tensor, shape (..., *shape)
        They are copied. A labelled array has the dims of the model, in any order, beside others.
    dynamics : Dynamics
        Whose states they are.

    Raises
    ------
    TypeError
        For what holds no real numbers.
    ValueError
        For another shape, fewer than 2 states, values that are not finite, or states that are all the same.
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
        """Draw states, keyed by (seed, label, member, purpose), as `Dynamics.climatology` describes.

        The states are shuffled anew for every pass through them, and labels take `members` of them one after another:
        the members of a label are distinct, and so are neighbouring labels until a pass ends.

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
        """Refuse more members than there are states.

        Raises
        ------
        ValueError
        """
        if members > len(self.states):
            raise ValueError(
                f"{members} members start from the {len(self.states)} states of climatology=: expected at least "
                f"{members} states, as members are distinct; give more states, or take fewer members="
            )
