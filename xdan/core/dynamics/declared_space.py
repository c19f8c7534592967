"""The space of a model's state: as the class declares it, or made of its dims and coordinates."""

from __future__ import annotations

from typing import Any

from ..spaces import Field, StateSpace, Unstated

UNNAMED = "x"  # name of the field of a model that names none; variables of a record do not show it


class DefaultSpace:
    """One field on the dims and coordinates that a model has, where it declares no space."""

    def __get__(self, dynamics: Any, owner: type | None = None) -> Any:
        if dynamics is None:
            return self
        dims, coordinates = _declared(dynamics, "dims"), _declared(dynamics, "coordinates")
        units = "1" if isinstance(_class_value(dynamics, "units"), OfSpace) else _class_value(dynamics, "units")
        grid = Unstated({dim: coordinates[dim] for dim in dims})
        return StateSpace(Field(UNNAMED, grid, vars(dynamics).get("units", units)))


class OfSpace:
    """An attribute of a model that its space has, where the model does not set it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, dynamics: Any, owner: type | None = None) -> Any:
        if dynamics is None:
            return self
        if isinstance(space := _declared(dynamics, "space"), StateSpace):
            return getattr(space, self.name)
        if self.name == "units":
            return "1"
        raise AttributeError(self.name)


def _declared(dynamics: Any, name: str) -> Any:
    """What the object or its class sets, None where that is a default of this module."""
    value = vars(dynamics).get(name, _class_value(dynamics, name))
    return None if isinstance(value, (DefaultSpace, OfSpace)) else value


def _class_value(dynamics: Any, name: str) -> Any:
    return next(vars(base)[name] for base in type(dynamics).__mro__ if name in vars(base))
