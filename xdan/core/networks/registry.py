"""The registry that makes networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checks import shown
from .base import AnalysisNetwork, constructor_parameters

_SHOWN = 4  # names that a message lists

_NETWORKS: dict[str, tuple[type[AnalysisNetwork], Mapping[str, Any]]] = {}


def register_network(cls: type[AnalysisNetwork]) -> type[AnalysisNetwork]:
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
        If another class has the name: stores that hold it would open as this one.
    """
    if not isinstance(cls, type) or not issubclass(cls, AnalysisNetwork):
        raise TypeError(f"cls={shown(cls)}: expected a class derived from AnalysisNetwork")
    name = vars(cls).get("name")
    if not isinstance(name, str) or not name:
        raise TypeError(f"{cls.__name__} has no name: expected a class attribute `name`, which stores refer to")
    _register(cls.name, cls, {})
    return cls


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
    if not isinstance(cls, type) or not issubclass(cls, AnalysisNetwork):
        raise TypeError(f"cls={shown(cls)}: expected a class derived from AnalysisNetwork")
    _register(name, cls, parameters)


def _register(name: str, cls: type[AnalysisNetwork], parameters: Mapping[str, Any]) -> None:
    holder = _NETWORKS[name][0] if name in _NETWORKS else cls
    # A notebook's cell that runs again defines its class anew.
    if (holder.__module__, holder.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"the name {name!r} is that of {holder.__module__}.{holder.__qualname__}: expected another `name` for "
            f"{cls.__qualname__}, as stores refer to networks by it"
        )
    _NETWORKS[name] = cls, parameters


def registered_name(network: AnalysisNetwork) -> str:
    """Name under which a network's class is registered, so that a store of its weights opens as the same class.

    Raises
    ------
    ValueError
        If the class is not registered.
    """
    cls = type(network)
    name = getattr(cls, "name", None)
    if name not in _NETWORKS or _NETWORKS[name][0] is not cls:
        raise ValueError(
            f"{cls.__name__} is not registered, and a saved one could not be opened as what it is: expected a `name` "
            "of its own and the decorator xdan.register_network"
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
    if not isinstance(name, str):
        raise TypeError(f"network={shown(name)}: expected one of {sorted(_NETWORKS)}")
    if name not in _NETWORKS:
        raise ValueError(
            f"network {shown(name)} is unknown; known are {sorted(_NETWORKS)}: expected one of them. Import the module "
            "that registers a network of your own"
        )
    return set(constructor_parameters(_NETWORKS[name][0]))


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
    cls, preset = _NETWORKS[name]
    if unknown := sorted(str(label) for label in parameters if label not in accepted):
        raise ValueError(
            f"network {name!r} has no parameters {unknown[:_SHOWN]}; it takes {sorted(accepted)}: expected some"
        )
    return cls(**{**preset, **parameters})
