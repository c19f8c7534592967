"""Names of dynamics in stores, and their descriptions as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ..checks import perhaps, shown
from ..registry import Registry, constructor_parameters
from .base import Dynamics

D = TypeVar("D", bound=type[Dynamics])

_REGISTRY: Registry[Dynamics] = Registry("dynamics", Dynamics, "xdan.Dynamics")


def register_dynamics(cls: D) -> D:
    """Register a dynamics class under its `name`, as a decorator of the class.

    A store that was made with a registered dynamics holds its name and its `config()`, as
    `{"name": "lorenz96", "parameters": {"sites": 40, "forcing": 8.0, "timestep": 0.05}}`. The store is opened with
    `cls(**parameters)`. It needs no `dynamics=` if the module that defines the class was imported before.

    Parameters
    ----------
    cls : type
        A class derived from `xdan.Dynamics`, with a class attribute `name`.

    Returns
    -------
    type
        The class itself.

    Raises
    ------
    TypeError
        If `cls` is not a class derived from Dynamics, or sets no name.
    ValueError
        If another class has this name. A class may be defined anew, for example in a notebook: it then replaces the
        earlier class.

    See Also
    --------
    CustomDynamics : a model from a function, without a class. Stores of it are opened with `dynamics=`.

    Examples
    --------
    >>> import xdan
    >>> xdan.register_dynamics(xdan.Lorenz63) is xdan.Lorenz63  # the decorator makes this call
    True
    >>> "lorenz63" in xdan.models().index
    True
    """
    return _REGISTRY.register(cls, "register_dynamics")


def known_dynamics() -> dict[str, type[Dynamics]]:
    """Class of each name."""
    return {name: _REGISTRY[name] for name in _REGISTRY}


def dynamics_to_json(dynamics: Dynamics) -> dict[str, Any]:
    """Describe a dynamics as a name and its parameters.

    A class may be unregistered, and inherit the name of a registered class. It is then described by the name of the
    class, because a store must not open with another model than the one that made it. A climatology that the user gave
    is described by the digest of its states. A model error is described by its standard deviation or the digest of Q.

    Raises
    ------
    ValueError
        If the `config()` of a user's registered class cannot make the class again, or makes another model.
    """
    name, cls = dynamics.name, type(dynamics)
    if name in _REGISTRY and not _REGISTRY.has(name, cls):
        name = cls.__qualname__
    description: dict[str, Any] = {"name": name, "parameters": dynamics.config()}
    if _REGISTRY.has(name, cls) and not cls.__module__.startswith("xdan."):
        _check_config(dynamics, description)
    if dynamics.given_climate is not None:
        description["climatology"] = dynamics.given_climate.word
    if dynamics.model_error is not None:
        description["model_error"] = dynamics.model_error.word
    return description


def _check_config(dynamics: Dynamics, description: dict[str, Any]) -> None:
    """Refuse a description with which a store could not be opened."""
    config = f"config() of the dynamics {dynamics.label!r} gives {shown(description['parameters'])}"
    try:
        made = _made(json.loads(json.dumps(description)))
    except (TypeError, ValueError) as reason:
        raise ValueError(
            f"{config}, from which the class cannot be made ({reason}): expected the constructor's parameters as "
            "plain JSON values"
        ) from None
    made = made.with_climatology(dynamics.given_climate)  # fingerprints are computed at its states
    sizes = (dynamics.timestep, dynamics.dims, dynamics.shape, dynamics.time_unit)
    same = (made.timestep, made.dims, made.shape, made.time_unit) == sizes
    if not same or not torch.equal(made.fingerprint(), dynamics.fingerprint()):
        raise ValueError(
            f"{config}, from which the class makes another model: expected all parameters that the model depends on"
        )


def dynamics_from_json(description: Mapping[str, Any]) -> Dynamics:
    """Make the dynamics that a store names.

    Parameters
    ----------
    description : mapping
        It has "name" and "parameters"; other entries are ignored.

    Raises
    ------
    ValueError
        If it is not such a mapping, the name is not registered, or the parameters do not fit. Nothing is imported.
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
        raise ValueError(_unregistered(name, description.get("parameters"), remedy))
    cls, parameters = _REGISTRY[name], description.get("parameters", {})
    if not isinstance(parameters, Mapping):
        raise ValueError(f"dynamics {name!r} has parameters={shown(parameters)}: expected a mapping. {remedy}")
    accepted = constructor_parameters(cls)
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


def _unregistered(name: str, parameters: Any, remedy: str) -> str:
    """Say what to do if a store names a model that is not registered, and whose model it is."""
    function = parameters.get("function") if isinstance(parameters, Mapping) else None
    if isinstance(function, str):  # of CustomDynamics and NumpyDynamics
        return f"{remedy}: it is the {name} model of {shown(function)}, and no store holds a function"
    return (
        f"{remedy}, or import the module that registers it: dynamics {shown(name)} is not registered: expected one of "
        f"{list(_REGISTRY)}{perhaps(name, _REGISTRY)}"
    )
