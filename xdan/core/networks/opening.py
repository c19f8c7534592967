"""Networks from names and shapes of their tensors. No memory is taken for more than these tensors."""

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

_SPARE = 16  # a constructor may register twice the known tensors and values, and this many more
_SHOWN = 4  # names that a message lists


def network_of_shapes(
    name: str, parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> AnalysisNetwork:
    """Make a registered network, and check the names and shapes of its tensors, without memory for them.

    The network is made on torch's meta device. A description may claim any size. So the constructor is stopped if it
    registers far more tensors, or values, than `shapes` holds. A class that cannot be made on the meta device is made
    on the CPU, with this bound.

    Parameters
    ----------
    name : str
        A registered name.
    parameters : mapping
        Parameters of the network.
    shapes : mapping of str to tuple of int
        Shapes that the `state_dict` of the network should hold, by their names.

    Returns
    -------
    AnalysisNetwork
        The network. It can be asked for sizes, but its tensors have no values.

    Raises
    ------
    ValueError
        If there is no network with this name, or its tensors have other names or shapes.
    """
    title = f"network {shown(name) if isinstance(name, str) else type(name).__name__}"
    return module_of_shapes(partial(network_by_name, name, parameters), title, shapes)


def module_of_shapes(make: Callable[[], M], title: str, shapes: Mapping[str, tuple[int, ...]]) -> M:
    """Make a torch module, and check the names and shapes of its tensors, as `network_of_shapes` does.

    Parameters
    ----------
    make : callable
        Makes the module from its description.
    title : str
        Title of the module in messages.
    shapes : mapping of str to tuple of int

    Raises
    ------
    ValueError
        If the module cannot be made, or its tensors have other names or shapes.
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
    """A network has far more tensors, or values, than expected."""


def _bounded(make: Callable[[], M], shapes: Mapping[str, tuple[int, ...]]) -> M:
    try:
        with _at_most(shapes), torch.device("meta"):
            return make()
    except RecursionError:
        raise
    except RuntimeError:  # the constructor reads values of tensors
        with _at_most(shapes):
            return make()


_budget = threading.local()


@contextmanager
def _at_most(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Raise an error if modules of this thread register far more tensors or values than `shapes` holds."""
    _count_registrations()
    values = sum(map(math.prod, shapes.values()))
    _budget.left = [2 * len(shapes) + _SPARE, 2 * values + _SPARE]
    try:
        yield
    finally:
        _budget.left = None


@functools.cache
def _count_registrations() -> None:
    # The hooks stay: torch goes through them in every thread, so they must not change.
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
    """Say how the known names and shapes differ from the names and shapes of a network."""
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
