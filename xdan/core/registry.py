"""Registries: names of classes, for stores and for calls.

There is one registry for each kind of thing that a user may add. A store holds a name and plain parameters. To open a
store, xdan looks the name up in a registry. Nothing that a store names is imported.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterator, KeysView
from typing import Any, Generic, TypeVar

from torch import Tensor

from .checks import perhaps, shown
from .keywords import constructor_checks_keywords

T = TypeVar("T")
C = TypeVar("C", bound=type)
_MISSING = object()


class Registry(Generic[T]):
    """Classes of one kind by name.

    Parameters
    ----------
    kind : str
        Name of the kind in messages, such as "network".
    base : type
        Base class of the kind.
    public : str
        Public name of the base class, such as "xdan.Dynamics".
    remedy : str
        What to do about an unknown name, if the user's class should have it.

    Examples
    --------
    >>> animals = Registry("animal", object, "object")
    >>> cat = animals.register(type("Cat", (), {"name": "cat"}), "register_animal")
    >>> "cat" in animals, list(animals), animals["cat"] is cat
    (True, ['cat'], True)
    """

    def __init__(self, kind: str, base: type[T], public: str, remedy: str = "") -> None:
        self.kind, self.base, self.public, self.remedy = kind, base, public, remedy
        self._classes: dict[str, type[T]] = {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, name: Any) -> type[T]:
        """Class with this name.

        Raises
        ------
        TypeError
            If the name is not a string.
        ValueError
            If no class has this name.
        """
        if not isinstance(name, str):
            raise TypeError(f"{self.kind}={shown(name)}: expected one of the names {list(self)}")
        if name not in self._classes:
            remedy = f". {self.remedy}" if self.remedy else ""
            raise ValueError(
                f"{self.kind} {shown(name)} is unknown; known are {list(self)}: expected one of them"
                f"{perhaps(name, self)}{remedy}"
            )
        return self._classes[name]

    def register(self, cls: C, function: str) -> C:
        """Register a class under its attribute `name`, for a decorator of classes. Its constructor checks keywords.

        Parameters
        ----------
        cls : type
        function : str
            Name of the decorator, for messages.

        Returns
        -------
        type
            The class itself.

        Raises
        ------
        TypeError
            If `cls` is not a class of this kind, has no `name`, or only inherits it.
        ValueError
            If the name is empty, or belongs to another class.
        """
        self.check(cls, function)
        name = vars(cls).get("name")
        if not isinstance(name, str):
            raise TypeError(f"{cls.__name__} has no name: expected a class attribute `name`, by which it is known")
        self.add(name, cls)
        return constructor_checks_keywords(cls)

    def check(self, cls: Any, function: str) -> None:
        """Refuse an object that is not a class of this kind.

        Parameters
        ----------
        cls : object
        function : str
            Name of the function that was called with the object, for the message.

        Raises
        ------
        TypeError
        """
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise TypeError(f"{function}({shown(cls)}): expected a class derived from {self.public}")

    def add(self, name: Any, cls: type[T]) -> None:
        """Register a class under a name.

        A class may be defined anew, for example by a notebook's cell that runs again. It replaces the earlier class.

        Raises
        ------
        ValueError
            If the name is not a word, or belongs to another class.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"name={shown(name)} of {cls.__qualname__}: expected a name that stores can refer to it by"
            )
        known = self._classes.get(name, cls)
        if _place(known) != _place(cls):
            raise ValueError(
                f"the name {name!r} is that of {_place(known)}: expected another `name` for {_place(cls)}, as stores "
                "and calls refer to it by its name"
            )
        self._classes[name] = cls

    def has(self, name: Any, cls: type) -> bool:
        """Whether a class is registered under a name."""
        return name in self and self._classes[name] is cls


def constructor_parameters(cls: type) -> KeysView[str]:
    """Names of a constructor's parameters in their order, including those that `**` passes on to a base class."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        named = (one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD))
        names |= dict.fromkeys(named)
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            break
    return names.keys()


def constructor_values(
    instance: Any, lists: bool = False, without: Collection[str] = (), **known: Any
) -> dict[str, Any]:
    """Parameters from which an instance was made, read from its attributes of the same names.

    Parameters
    ----------
    instance : object
    lists : bool
        Whether the constructor takes lists instead of tensors. Tensors are then returned as lists.
    without : collection of str
        Parameters to leave out.
    **known
        Values of some parameters, which are used instead of the attributes.

    Raises
    ------
    TypeError
        If such an attribute is missing, or is not a plain JSON value.
    """
    values = {}
    for name in constructor_parameters(type(instance)):
        if name in without:
            continue
        value = known[name] if name in known else getattr(instance, name, _MISSING)
        value = value.tolist() if lists and isinstance(value, Tensor) else value
        if value is _MISSING or not _is_plain(value):
            problem = "is missing" if value is _MISSING else f"is {shown(value)}"
            raise TypeError(
                f"{type(instance).__name__}.{name} {problem}: expected the plain value that __init__ was called with, "
                "kept as an attribute of that name, or a method config() that gives such values"
            )
        values[name] = value
    return values


def _is_plain(value: Any) -> bool:
    """Whether JSON returns a value unchanged."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _place(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"
