"""The registry of the methods that networks are cycled by."""

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
"""Methods by the names that `AnalysisNetwork.cycled_by` gives."""


def cycles_networks(cls: M) -> M:
    """Register a method that is made of a network, under its `name`, which a network's `cycled_by` then refers to.

    Raises
    ------
    TypeError
        For what is no class of methods, or has no name.
    ValueError
        If another class has the name.
    """
    return NETWORK_METHODS.register(cls, "cycles_networks")
