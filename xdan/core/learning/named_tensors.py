"""Tensors of a training by names with slashes, as in its checkpoint; and the states of its trajectories."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..methods import State


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def states_to_tensors(states: Mapping[int, State]) -> dict[str, Tensor]:
    """Give each tensor of numbered states the name "number/name"."""
    return {f"{number}/{name}": value for number, state in states.items() for name, value in state.items()}


def tensors_to_states(tensors: Mapping[str, Tensor]) -> dict[int, State]:
    """Inverse of `states_to_tensors`."""
    states: dict[int, State] = {}
    for label, value in tensors.items():
        number, name = label.split("/")
        states.setdefault(int(number), {})[name] = value
    return states


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `under`: put a prefix before every name."""
    return {prefix + name: value for name, value in tensors.items()}
