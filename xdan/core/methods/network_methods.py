"""The registry of the methods that cycle networks."""

from __future__ import annotations

from typing import TypeVar

from ..registry import Registry
from .base import Method

M = TypeVar("M", bound=type[Method])

NETWORK_METHODS: Registry[Method] = Registry(
    "method of networks",
    Method,  # type: ignore[type-abstract]
    "xdan.core.methods.DataAssimilationNetwork",
)
"""Methods by their names. A network's `cycled_by` is one of these names."""


def cycles_networks(cls: M) -> M:
    """Register a method that cycles networks, under its `name`. A network's `cycled_by` refers to this name.

    Raises
    ------
    TypeError
        If `cls` is not a class of methods, or has no name.
    ValueError
        If another class has this name.
    """
    return NETWORK_METHODS.register(cls, "cycles_networks")
