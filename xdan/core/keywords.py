"""Keywords of public functions and classes: a misspelt one is refused at once, and the message names a similar one."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from .checks import perhaps, shown

Verb = TypeVar("Verb", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)

_TYPED = re.compile(r"Unpack\[(\w+)\]")  # annotation of keywords that a TypedDict lists


def checks_keywords(function: Verb) -> Verb:
    """Decorate a function, so that it refuses keywords which it does not take, with the name of a similar keyword.

    Python names no similar keyword, and a function with `**words` cannot tell its parameters from these words. A
    function whose `**words` are typed as `Unpack` of a TypedDict takes the keys of the TypedDict. A function with other
    `**words` calls `check_keywords` itself.

    Raises
    ------
    TypeError
        From the function, if it takes no such keyword.

    Examples
    --------
    >>> @checks_keywords
    ... def score(run, *, burn_in=0): ...
    >>> score(1, burnin=3)
    Traceback (most recent call last):
    ...
    TypeError: burnin=3: expected no argument beyond ['run', 'burn_in'], perhaps 'burn_in'
    """

    @functools.wraps(function)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        check_keywords(function, keywords)
        return function(*arguments, **keywords)

    return cast(Verb, checked)


def constructor_checks_keywords(cls: Class) -> Class:
    """Decorate a class, so that its constructor refuses keywords as `checks_keywords` does.

    A constructor that the class inherits, or one with `**words`, stays as it is: what it calls may check.

    Returns
    -------
    type
        The class itself.

    Examples
    --------
    >>> @constructor_checks_keywords
    ... class Ring:
    ...     def __init__(self, sites=40): ...
    >>> Ring(site=8)
    Traceback (most recent call last):
    ...
    TypeError: site=8: expected no argument beyond ['sites'], perhaps 'sites'
    """
    construct: Any = vars(cls).get("__init__")
    if construct is None:
        return cls
    _, *parameters = inspect.signature(construct).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return cls
    known = [one.name for one in parameters]

    @functools.wraps(construct)
    def checked(instance: Any, *arguments: Any, **keywords: Any) -> None:
        refuse_unknown(keywords, known)
        construct(instance, *arguments, **keywords)

    setattr(cls, "__init__", checked)  # noqa: B010
    return cls


def check_keywords(function: Callable[..., Any], keywords: Mapping[str, Any], others: Iterable[str] = ()) -> None:
    """Refuse keywords that a function does not take.

    Parameters
    ----------
    function : callable
    keywords : mapping of str to object
        The caller's keywords.
    others : iterable of str
        Keywords that the function takes, and that its signature does not list.

    Raises
    ------
    TypeError
    """
    refuse_unknown(keywords, [*keywords_of(function), *others])


def refuse_unknown(keywords: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse keywords that are none of some names.

    Raises
    ------
    TypeError
    """
    known = list(dict.fromkeys(names))
    if unknown := [name for name in keywords if name not in known]:
        wrong = f"{unknown[0]}={shown(keywords[unknown[0]])}"
        raise TypeError(f"{wrong}: expected no argument beyond {known}{perhaps(unknown[0], known)}")


@functools.cache
def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the keywords that a function's signature lists."""
    known: list[str] = []
    for name, one in inspect.signature(function).parameters.items():
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            known.append(name)
        elif one.kind is one.VAR_KEYWORD and (typed := _TYPED.fullmatch(str(one.annotation))):
            known += inspect.unwrap(function).__globals__[typed[1]].__annotations__
    return tuple(known)
