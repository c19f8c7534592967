"""The registry that makes networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ..checks import perhaps, shown
from ..registry import Registry, constructor_parameters
from ..spaces import StateSpace
from .base import AnalysisNetwork

N = TypeVar("N", bound=type[AnalysisNetwork])

_SHOWN = 4  # names that a message lists

_NETWORKS: Registry[AnalysisNetwork] = Registry(
    "network",
    AnalysisNetwork,  # type: ignore[type-abstract]
    "xdan.AnalysisNetwork",
    "Import the module that registers a network of your own",
)
_PRESETS: dict[str, dict[str, Any]] = {}


def register_network(cls: N) -> N:
    """Register a network class under its `name`, as a decorator of the class.

    `train("name")` and sweeps then make it by that name, and stores that name it open as this class. A store names the
    class and its `config()`; it holds no code, and opening one imports nothing: run the class's file before.

    Parameters
    ----------
    cls : class derived from AnalysisNetwork
        With an attribute `name` of its own.

    Returns
    -------
    class
        The same.

    Raises
    ------
    TypeError
        For what is no class of networks, or has no name of its own.
    ValueError
        If another class has the name: stores that hold it would open as this one. A class that is defined anew takes
        its own place.

    Examples
    --------
    >>> import xdan
    >>> xdan.register_network(xdan.ResidualCNN) is xdan.ResidualCNN  # what the decorator does, once more
    True
    """
    return _NETWORKS.register(cls, "register_network")


def register_preset(name: str, cls: type[AnalysisNetwork], **parameters: Any) -> None:
    """Register a class with some of its parameters set, under another name; it is saved under its own.

    Raises
    ------
    TypeError
        For a name that is no string, or what is no class of networks.
    ValueError
        If another class has the name.
    """
    if not isinstance(name, str):
        raise TypeError(f"name={shown(name)}: expected a string")
    _NETWORKS.check(cls, "register_preset")
    _NETWORKS.add(name, cls)
    _PRESETS[name] = parameters


def known_networks() -> dict[str, tuple[type[AnalysisNetwork], dict[str, Any]]]:
    """Class of each name, and the parameters that the name sets."""
    return {name: (_NETWORKS[name], dict(_PRESETS.get(name, {}))) for name in _NETWORKS}


def registered_name(network: AnalysisNetwork) -> str:
    """Name under which a network's class is registered, so that a store of its weights opens as the same class.

    Raises
    ------
    ValueError
        If the class is not registered.
    """
    cls = type(network)
    name = getattr(cls, "name", None)
    if not _NETWORKS.has(name, cls):
        raise ValueError(
            f"{cls.__name__} is not registered, and a saved one could not be opened as what it is: expected a `name` "
            "of its own and the decorator @xdan.register_network"
        )
    return str(name)


def network_parameters(name: str) -> set[str]:
    """Names of a registered network's parameters, and of those that it hands on to its parent's by `**`.

    Raises
    ------
    TypeError
        If the name is no string.
    ValueError
        If the name is not registered.
    """
    return set(constructor_parameters(_NETWORKS[name]))


def network_for(space: StateSpace, name: str, parameters: Mapping[str, Any]) -> AnalysisNetwork:
    """Make a registered network as `network_by_name` does, for a space where its class has that parameter.

    One field on a ring is every network's default.
    """
    if not space.is_plain_ring and "space" in network_parameters(name):
        parameters = {"space": space, **parameters}
    return network_by_name(name, parameters)


def network_by_name(name: str, parameters: Mapping[str, Any]) -> AnalysisNetwork:
    """Make a registered network, its weights at their random start.

    Raises
    ------
    TypeError
        If the name is no string, the parameters are no mapping, or one of them has the wrong type.
    ValueError
        If the name is not registered, or a parameter is unknown or cannot be; nothing is imported.
    """
    accepted = network_parameters(name)
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters={shown(parameters)}: expected a mapping of the network's parameters")
    if unknown := sorted(str(label) for label in parameters if label not in accepted):
        raise ValueError(
            f"network {name!r} has no parameters {unknown[:_SHOWN]}; it takes {sorted(accepted)}: expected some"
            f"{perhaps(unknown[0], accepted)}"
        )
    return _NETWORKS[name](**{**_PRESETS.get(name, {}), **parameters})
