"""Symmetries that several geometries of one space have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Geometry

_PLACES = 64  # number of points whose distances show whether two permutations are one motion
_NEAR = 1e-6  # relative to the largest distance: largest difference of two equal distances


def joint_symmetries(geometries: Sequence[Geometry]) -> dict[str, list[Tensor]]:
    """Motions of the space that map the points of every geometry to points of this geometry.

    Parameters
    ----------
    geometries : sequence of Geometry
        Geometries that meet (`Geometry.meets`).

    Returns
    -------
    dict of str to list of Tensor
        A permutation for each geometry, by the name that the first geometry gives to the motion. For one geometry, and
        for equal ones, these are its `symmetries`. For shifts on grids of different spacing, it is the smallest shift
        that all grids have. For other motions, it is the one that keeps the distances between the geometries' points.
    """
    first, *others = geometries
    joint = {}
    for name, move in first.symmetries().items():
        moves = [move]
        for other in others:
            partner = move if other == first else _partner(first, move, other)
            if partner is None:
                break
            moves.append(partner)
        else:
            joint[name] = moves
            continue
        if shifts := _common_shift(geometries, move):
            joint[name] = shifts
    return joint


def period(move: Tensor) -> int | None:
    """Common length of all cycles of a permutation, if it is a shift; None if the lengths differ."""
    images, place, length = move.tolist(), 0, 0
    while place or not length:
        place, length = images[place], length + 1
    identity = torch.arange(len(move))
    if not torch.equal(power_of(move, length), identity):
        return None
    shorter = (length // prime for prime in range(2, length + 1) if length % prime == 0)
    return None if any(bool((power_of(move, turns) == identity).any()) for turns in shorter) else length


def power_of(move: Tensor, exponent: int) -> Tensor:
    """A permutation applied `exponent` times."""
    result, square = torch.arange(len(move)), move
    while exponent:
        if exponent & 1:
            result = result[square]
        square, exponent = square[square], exponent >> 1
    return result


def _partner(geometry: Geometry, move: Tensor, other: Geometry) -> Tensor | None:
    """The symmetry of another geometry that is the same motion as a symmetry of the first; None if there is none."""
    return next((one for one in other.symmetries().values() if _one_motion(geometry, move, other, one)), None)


def _common_shift(geometries: Sequence[Geometry], move: Tensor) -> list[Tensor] | None:
    """The smallest common power of a shift of the first geometry and shifts of the others."""
    first, *others = geometries
    length = period(move)
    if length is None:
        return None
    choices = [
        [(one, count) for one in other.symmetries().values() if (count := period(one)) is not None] for other in others
    ]
    for steps in (d for d in range(1, length) if length % d == 0):
        turns, shift = length // steps, power_of(move, steps)
        moves = [shift]
        for other, shifts in zip(others, choices, strict=True):
            powers = (power_of(one, count // turns) for one, count in shifts if count % turns == 0)
            partner = next((one for one in powers if _one_motion(first, shift, other, one)), None)
            if partner is None:
                break
            moves.append(partner)
        else:
            return moves
    return None


def _one_motion(geometry: Geometry, move: Tensor, other: Geometry, move_of_other: Tensor) -> bool:
    """Whether d(a_i, b_j) = d(a_{g(i)}, b_{h(j)}) for points a and b of two geometries and permutations g and h."""
    places = geometry.positions()
    if places is None:
        return False
    some = torch.linspace(0, geometry.size - 1, min(_PLACES, geometry.size)).round().long()
    before, after = other.distances(places[some]), other.distances(places[move[some]])
    if before is None or after is None:
        return False
    return bool((after[:, move_of_other] - before).abs().max() <= _NEAR * before.max())
