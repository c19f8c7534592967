"""Making a network whose tensors are known by name and shape, without memory for more than those."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checks import shown
from .base import AnalysisNetwork
from .registry import network_by_name

M = TypeVar("M", bound=nn.Module)

_SPARE = 16  # tensors, and values, that a constructor may register beyond twice those known
_SHOWN = 4  # names that a message lists


def network_of_shapes(
    name: str, parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> AnalysisNetwork:
    """Make a registered network that has tensors of some names and shapes, without memory for them.

    It is made on torch's meta device, and its making ends as soon as it has more tensors, or values, than are known:
    a description may claim any size. A class that cannot be made on that device is made on the CPU, with that bound.

    Parameters
    ----------
    name : str
        A registered name.
    parameters : mapping
        Of the network.
    shapes : mapping of str to tuple of int
        What its `state_dict` should hold.

    Returns
    -------
    AnalysisNetwork
        To ask for its sizes; its tensors have no values.

    Raises
    ------
    ValueError
        If there is no such network, or its names or shapes are others.
    """
    title = f"network {shown(name) if isinstance(name, str) else type(name).__name__}"
    return module_of_shapes(partial(network_by_name, name, parameters), title, shapes)


def module_of_shapes(make: Callable[[], M], title: str, shapes: Mapping[str, tuple[int, ...]]) -> M:
    """Make a torch module that has tensors of some names and shapes, as `network_of_shapes` does.

    Parameters
    ----------
    make : callable
        Makes the module from its description.
    title : str
        What messages call it.
    shapes : mapping of str to tuple of int

    Raises
    ------
    ValueError
        If it cannot be made, or its names or shapes are others.
    """
    try:
        network = _bounded(make, shapes)
    except _LargerError:
        values = sum(map(math.prod, shapes.values()))
        raise ValueError(
            f"the arrays do not fit the {title}: with these parameters it has more than {len(shapes)} arrays or "
            f"{values} values; expected the arrays and the parameters of one network"
        ) from None
    except ValueError:
        raise
    except (Exception, MemoryError) as error:
        raise ValueError(
            f"the {title} cannot be made from its parameters: {error}; expected those that its config() gives"
        ) from error
    state = {label: tuple(value.shape) for label, value in network.state_dict().items()}
    known = {label: tuple(shape) for label, shape in shapes.items()}
    if state != known:
        raise ValueError(f"the arrays do not fit the {title}: {differing_shapes(known, state)}")
    return network


class _LargerError(Exception):
    """A network has more tensors, or values, than are known."""


def _bounded(make: Callable[[], M], shapes: Mapping[str, tuple[int, ...]]) -> M:
    try:
        with _at_most(shapes), torch.device("meta"):
            return make()
    except RecursionError:
        raise
    except RuntimeError:  # its constructor asks for values
        with _at_most(shapes):
            return make()


_budget = threading.local()


@contextmanager
def _at_most(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Raise where this thread's modules register more than twice what is known."""
    _count_registrations()
    values = sum(map(math.prod, shapes.values()))
    _budget.left = [2 * len(shapes) + _SPARE, 2 * values + _SPARE]
    try:
        yield
    finally:
        _budget.left = None


@functools.cache
def _count_registrations() -> None:
    # The hooks stay: torch goes through them in every thread, which must not see them change.
    nn.modules.module.register_module_parameter_registration_hook(_count)
    nn.modules.module.register_module_buffer_registration_hook(_count)


def _count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
    left = getattr(_budget, "left", None)
    if left is None or tensor is None:
        return
    left[0] -= 1
    left[1] -= tensor.numel()
    if min(left) < 0:
        raise _LargerError


def differing_shapes(known: Mapping[str, tuple[int, ...]], state: Mapping[str, tuple[int, ...]]) -> str:
    """How the names and shapes that are known differ from those of a network."""
    parts = [
        f"{name!r} has shape {known[name]}, expected {shape}"
        for name, shape in state.items()
        if name in known and known[name] != shape
    ]
    if missing := [name for name in state if name not in known]:
        parts.append(f"expected {missing[:_SHOWN]} too")
    if left_over := [name for name in known if name not in state]:
        parts.append(f"expected no {left_over[:_SHOWN]}")
    return "; ".join(parts[:_SHOWN])
