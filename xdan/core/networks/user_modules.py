"""Descriptions of networks that hold torch modules of a user: which modules they name, and the user's put in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .base import AnalysisNetwork
from .module import ModuleNetwork, check_instance, dotted_name
from .opening import differing_shapes
from .registry import network_by_name


def module_networks(network: nn.Module) -> list[ModuleNetwork]:
    """The networks around torch modules in a network, in their order. The network itself may be one of them."""
    return [part for part in network.modules() if isinstance(part, ModuleNetwork)]


def named_modules(description: Any) -> list[str]:
    """Dotted names of the torch modules in the description of a network, in their order."""
    return list(_named(description))


def with_modules(
    description: Mapping[str, Any], modules: nn.Module | Sequence[nn.Module], shapes: Mapping[str, tuple[int, ...]]
) -> AnalysisNetwork:
    """Make the network of a description, with modules of the user at the places where it names modules.

    Parameters
    ----------
    description : mapping
        "name" and "parameters".
    modules : torch.nn.Module, or sequence of them
        One module for all places, or one for each place.
    shapes : mapping of str to tuple of int
        Shapes that the network's `state_dict` should hold, by their names.

    Returns
    -------
    AnalysisNetwork
        The network, with the weights of the modules.

    Raises
    ------
    TypeError
        If a value is no torch module.
    ValueError
        If a module has another class or other tensors.
    """
    names = named_modules(description)
    several = isinstance(modules, (list, tuple))
    instances: list[Any] = list(modules) if isinstance(modules, (list, tuple)) else [modules] * len(names)
    if len(instances) != len(names):
        raise ValueError(f"module= holds {len(instances)} modules: expected {len(names)}, of the classes {names}")
    for k, (name, one) in enumerate(zip(names, instances, strict=True)):
        check_instance(one, f"module[{k}]" if several else "module")
        if not name.endswith(f".{type(one).__qualname__}"):
            raise ValueError(
                f"module={dotted_name(one)}: the weights are those of {name}: expected an instance of that class"
            )
    left = iter(instances)
    network = network_by_name(description["name"], _filled(description["parameters"], description["name"], left))
    state = {label: tuple(value.shape) for label, value in network.state_dict().items()}
    known = {label: tuple(shape) for label, shape in shapes.items()}
    if state != known:
        raise ValueError(
            f"the arrays do not fit the modules {names}: {differing_shapes(known, state)}; expected the values that "
            "their constructors had in the training"
        )
    return network


def moved(description: Mapping[str, Any], network: AnalysisNetwork) -> list[tuple[str, str]]:
    """Pairs of dotted names, for classes with the described name that stand in another file.

    The first name is in the description, and the second belongs to the module that was passed. The class of a script is
    in `__main__`, or in a file if the script is imported. These two are one class.
    """
    pairs = zip(named_modules(description), [one.label for one in module_networks(network)], strict=True)
    return [(one, now) for one, now in pairs if one != now and "__main__" not in (one.split(".")[0], now.split(".")[0])]


def how_to_open(names: Sequence[str], store: object) -> str:
    """The lines of code that open a store of modules, for a message."""
    kinds, lines = [], []
    for name in names:
        place, _, kind = name.rpartition(".")
        kinds.append(f"{kind}(...)")
        importable = place and place.split(".")[0] != "__main__" and "<locals>" not in place
        lines.append(f"from {place} import {kind}" if importable else f"run the code that defines {kind}")
    module = kinds[0] if len(set(names)) == 1 else f"[{', '.join(kinds)}]"
    return f"{'; '.join(dict.fromkeys(lines))}; xdan.open_network({str(store)!r}, module={module})"


def _named(described: Any) -> Iterator[str]:
    if isinstance(described, Mapping):
        parameters = described.get("parameters")
        if described.get("name") == ModuleNetwork.name and isinstance(parameters, Mapping):
            yield str(parameters.get("module"))
        elif described.get("name") is not None and isinstance(parameters, Mapping):
            yield from _named(list(parameters.values()))
    elif isinstance(described, (list, tuple)):
        for one in described:
            yield from _named(one)


def _filled(parameters: Any, name: Any, modules: Iterator[nn.Module]) -> Any:
    """The parameters of the network with this name. Names of modules become modules, and networks in them are made."""
    if name == ModuleNetwork.name:
        return {**parameters, "module": next(modules)}
    return {label: _made(value, modules) for label, value in parameters.items()}


def _made(value: Any, modules: Iterator[nn.Module]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_made(one, modules) for one in value]
    if not named_modules(value):
        return value
    return network_by_name(value["name"], _filled(value["parameters"], value["name"], modules))
