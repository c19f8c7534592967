"""The registry of networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ..checks import perhaps, shown
from ..registry import Registry, constructor_parameters
from ..spaces import StateSpace
from .base import AnalysisNetwork

N = TypeVar("N", bound=type[AnalysisNetwork])

_SHOWN = 4  # number of names that a message lists

_NETWORKS: Registry[AnalysisNetwork] = Registry(
    "network",
    AnalysisNetwork,  # type: ignore[type-abstract]
    "xdan.AnalysisNetwork",
    "Import the module that registers a network of your own",
)
_PRESETS: dict[str, dict[str, Any]] = {}


def register_network(cls: N) -> N:
    """Register a network class under its `name`, as a decorator of the class.

    `train("name")` and sweeps then make the network by this name, and stores with this name open as this class. A store
    holds the name and `config()` of the class. It holds no code, and opening it imports nothing, so run the class's
    file before.

    Parameters
    ----------
    cls : class derived from AnalysisNetwork
        It has an attribute `name`, which it must not inherit.

    Returns
    -------
    class
        The same class.

    Raises
    ------
    TypeError
        If `cls` is not a class of networks, or sets no name.
    ValueError
        If another class has this name: stores with this name would open as this class. A class may be defined anew, for
        example in a notebook: it then replaces the earlier class.

    Examples
    --------
    >>> import xdan
    >>> xdan.register_network(xdan.ResidualCNN) is xdan.ResidualCNN  # the decorator makes this call
    True
    """
    return _NETWORKS.register(cls, "register_network")


def register_preset(name: str, cls: type[AnalysisNetwork], **parameters: Any) -> None:
    """Register a class with some of its parameters set, under another name. Stores have the name of the class.

    Raises
    ------
    TypeError
        If the name is not a string, or `cls` is not a class of networks.
    ValueError
        If another class has this name.
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
    """Name under which a network's class is registered, so that a store of its weights opens as this class.

    Raises
    ------
    ValueError
        If the class is not registered.
    """
    cls = type(network)
    name = getattr(cls, "name", None)
    if not _NETWORKS.has(name, cls):
        raise ValueError(
            f"{cls.__name__} is not registered, so that a saved network could not be opened: expected a `name` in the "
            "class and the decorator @xdan.register_network"
        )
    return str(name)


def network_parameters(name: str) -> set[str]:
    """Names of a registered network's parameters, including those that `**` passes on to a base class.

    Raises
    ------
    TypeError
        If the name is not a string.
    ValueError
        If the name is not registered.
    """
    return set(constructor_parameters(_NETWORKS[name]))


def network_for(space: StateSpace, name: str, parameters: Mapping[str, Any]) -> AnalysisNetwork:
    """Make a registered network with `network_by_name`, for a space if its class has the parameter `space`.

    By default every network is for one field on a ring.
    """
    if not space.is_plain_ring and "space" in network_parameters(name):
        parameters = {"space": space, **parameters}
    return network_by_name(name, parameters)


def network_by_name(name: str, parameters: Mapping[str, Any]) -> AnalysisNetwork:
    """Make a registered network with its random initial weights. Nothing is imported.

    Raises
    ------
    TypeError
        If the name is not a string, the parameters are not a mapping, or one of them has the wrong type.
    ValueError
        If the name is not registered, or a parameter is unknown or out of bounds.
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
