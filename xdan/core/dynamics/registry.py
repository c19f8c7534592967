"""Names under which stores refer to a dynamics, and its plain description."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ..checks import shown
from .base import Dynamics

_REGISTRY: dict[str, type[Dynamics]] = {}


def register_dynamics(cls: type[Dynamics]) -> type[Dynamics]:
    """Register a dynamics class under its `name`, so that stores can refer to it.

    Raises
    ------
    TypeError
        For what is no class derived from Dynamics.
    ValueError
        If it has no name, or the name of another class. A class that is defined anew takes its own place.
    """
    if not (isinstance(cls, type) and issubclass(cls, Dynamics)):
        raise TypeError(f"register_dynamics({shown(cls)}): expected a class derived from xdan.Dynamics")
    name = cls.name
    if not isinstance(name, str) or name in ("", Dynamics.name):
        raise ValueError(f"name={shown(name)} of {cls.__qualname__}: expected a name that stores can refer to it by")
    known = _REGISTRY.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"name={name!r} is that of {known.__module__}.{known.__qualname__}: expected another name for "
            f"{cls.__module__}.{cls.__qualname__}, as stores refer to a dynamics by its name"
        )
    _REGISTRY[name] = cls
    return cls


def dynamics_to_json(dynamics: Dynamics) -> dict[str, Any]:
    """Describe a dynamics as a name and its parameters.

    A class that is not registered, and has inherited the name of one that is, goes by the name of the class: a store
    must not open with another model than the one that made it.
    """
    name, kind = dynamics.name, type(dynamics)
    if _REGISTRY.get(name, kind) is not kind:
        name = kind.__qualname__
    return {"name": name, "parameters": dynamics.config()}


def dynamics_from_json(description: Mapping[str, Any]) -> Dynamics:
    """Make the dynamics that a store names.

    Parameters
    ----------
    description : mapping
        With "name" and "parameters"; whatever else it holds is not looked at.

    Raises
    ------
    ValueError
        If it is no such mapping, the name is not registered, or the parameters do not fit; nothing is imported.
    """
    try:
        return _made(description)
    except RecursionError:
        raise ValueError(
            "the description of the dynamics is nested too deeply: expected a name and its parameters"
        ) from None


def _made(description: Any) -> Dynamics:
    remedy = "Pass dynamics= with the model that made the record"
    name = description.get("name") if isinstance(description, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(
            f"the dynamics is described by {shown(description)}: expected a name and its parameters. {remedy}"
        )
    if name not in _REGISTRY:
        raise ValueError(f"dynamics {name!r} is not registered: expected one of {sorted(_REGISTRY)}. {remedy}")
    cls, parameters = _REGISTRY[name], description.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise ValueError(f"dynamics {name!r} has parameters={shown(parameters)}: expected a mapping. {remedy}")
    accepted = set(inspect.signature(cls).parameters)
    if unknown := set(parameters) - accepted:
        raise ValueError(
            f"dynamics {name!r} has no parameters {sorted(map(str, unknown))}; it takes "
            f"{sorted(accepted)}, and no others are expected. Was the store written by a newer xdan? "
            "Otherwise pass dynamics="
        )
    try:
        return cls(**parameters)
    except (TypeError, OverflowError) as reason:
        raise ValueError(f"dynamics {name!r} cannot be made as it is described: {reason}. {remedy}") from None
