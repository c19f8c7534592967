"""The space of a model's state: the class declares it, or it is made from dims and coordinates."""

from __future__ import annotations

from typing import Any

from ..spaces import Field, StateSpace, Unstated

UNNAMED = "x"  # name of the field if a model names none; variables of a record do not show it


class DefaultSpace:
    """Default of `space`: one field on the dims and coordinates of the model."""

    def __get__(self, dynamics: Any, owner: type | None = None) -> Any:
        if dynamics is None:
            return self
        dims, coordinates = _declared(dynamics, "dims"), _declared(dynamics, "coordinates")
        units = _declared(dynamics, "units")
        grid = Unstated({dim: coordinates[dim] for dim in dims})
        return StateSpace(Field(UNNAMED, grid, "1" if units is None else units))


class OfSpace:
    """An attribute that comes from the model's space, unless the model sets it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, dynamics: Any, owner: type | None = None) -> Any:
        if dynamics is None:
            return self
        if (space := stated_space(dynamics)) is not None:
            return getattr(space, self.name)
        if self.name == "units":
            return "1"
        raise AttributeError(self.name)


def stated_space(dynamics: Any) -> StateSpace | None:
    """The space that a model declares; None if the model sets dims and coordinates instead."""
    space = _declared(dynamics, "space")
    return space if isinstance(space, StateSpace) else None


def _declared(dynamics: Any, name: str) -> Any:
    """The value that the object or its class sets; None if this is a default of this module."""
    inside = vars(dynamics)
    value = inside[name] if name in inside else _class_value(dynamics, name)
    return None if isinstance(value, (DefaultSpace, OfSpace)) else value


def _class_value(dynamics: Any, name: str) -> Any:
    return next(vars(base)[name] for base in type(dynamics).__mro__ if name in vars(base))
