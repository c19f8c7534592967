"""What an analysis network is, and the registry that opens one by name."""

from __future__ import annotations

import functools
import inspect
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import shown
from ..tangent import along, jacobian, mixed_jacobian, unit_direction

_SPARE = 16  # tensors, and values, that a constructor may register beyond twice those known
_SHOWN = 4  # names that a message lists
_METHODS = (property, classmethod, staticmethod)


# Methods that a class may override by something faster than autodiff, as long as no derived class changes `forward`.
_FORMULAS = ("reach", "analysis_covariance", "marginal_gain", "forecast_derivative")
# Methods that the forward pass does not call: overriding them leaves the formulas right.
_BESIDE = {"config", "check_state", "hidden_matrices", "normalise", "forms_covariance", *_FORMULAS}


class AnalysisNetwork(nn.Module, ABC):
    """The increment a_theta of Eq. 2 or 22, with the normalisation it was trained with.

    Derivatives of the analysis are taken by autodiff. A class may override `reach`, `analysis_covariance`,
    `marginal_gain` and `forecast_derivative` by what is faster. A class derived from it that overrides `forward`, or
    any method that `forward` may call, has those of this class again, unless it brings its own.

    Attributes
    ----------
    name : str
        The name it is registered under.
    memory : int
        Latent channels per site that are carried from cycle to cycle.
    ensemble : bool
        Whether states are members, `members` of them, of shape (B, M, N).
    state_mean, state_std : Tensor, shape ()
        Climatological moments of a site of the state, in its units.
    error_std : Tensor, shape ()
        Typical observation error; the unit of increments, and its inverse that of projected innovations.
    """

    name: ClassVar[str]
    memory: int = 0
    ensemble: ClassVar[bool] = False
    members: int = 1
    state_mean: Tensor
    state_std: Tensor
    error_std: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _FORMULAS:
            if outdated(cls, name):
                setattr(cls, name, vars(AnalysisNetwork)[name])

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state_mean", torch.zeros((), dtype=torch.float32))
        self.register_buffer("state_std", torch.ones((), dtype=torch.float32))
        self.register_buffer("error_std", torch.ones((), dtype=torch.float32))

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same architecture."""

    @abstractmethod
    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis from forecast and projected innovation.

        Parameters
        ----------
        x : Tensor, shape (B, N), or (B, M, N) for an ensemble network
            Forecast.
        zeta : Tensor, shape (B, N)
            Projected innovation.
        memory : Tensor, shape (B, n, N), optional
            Latent channels of the last cycle.

        Returns
        -------
        analysis : Tensor, shape of x
        memory : Tensor, shape (B, n, N), or None for a network without
        """

    @torch.no_grad()
    def normalise(self, mean: float, std: float, error_std: float) -> None:
        """Set the normalisation."""
        self.state_mean.fill_(mean)
        self.state_std.fill_(std)
        self.error_std.fill_(error_std)

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states that the network does not take.

        Parameters
        ----------
        dims : sequence of str
            Dims of the state.
        shape : sequence of int
            Sizes along them.

        Raises
        ------
        ValueError
        """
        if len(dims) != 1:
            raise ValueError(f"the state has dims {dims}: expected one, as the networks work on a ring")

    @property
    def reach(self) -> int | None:
        """Sites to each side, on the ring, that an output can depend on; None where it may be all."""
        return None

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Parameters that an optimiser for matrices may treat as such."""
        return []

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """P_a[i, j] = d a_i / d zeta_j, Eq. 5, at x and zeta (B, N) and memory (B, n, N); shape (B, N, N).

        Raises
        ------
        ValueError
            If torch cannot differentiate the network.
        """
        return jacobian(lambda z: self._analysis(x, z, memory), zeta, self._title)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Gamma[i, j, l] = d^2 a_i / (dx_l dzeta_j) at one site l, Eq. 9, shape (B, N, N) along i and j.

        Raises
        ------
        ValueError
            If torch cannot differentiate the network twice.
        """
        return mixed_jacobian(
            lambda state, z: self._analysis(state, z, memory), x, zeta, unit_direction(x, site), self._title
        )

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Derivative of the analysis by x_l at one site l, shape (B, N).

        Raises
        ------
        ValueError
            If torch cannot differentiate the network.
        """
        return along(lambda state: self._analysis(state, zeta, memory), x, unit_direction(x, site), self._title)

    def covariance(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """P_a as the network forms it, (B, N, N), and the new memory: only of networks that have such a matrix.

        Raises
        ------
        ValueError
            For others.
        """
        raise ValueError(f"{self._title} forms no P_a of its own: expected one whose increment is P_a zeta")

    @property
    def forms_covariance(self) -> bool:
        """Whether the increment is `covariance` times zeta."""
        return type(self).covariance is not AnalysisNetwork.covariance

    @property
    def _is_one_climate(self) -> bool:
        """Whether the normalisation is one for all sites; a derived class may have one for each."""
        return all(scale.ndim == 0 for scale in (self.state_mean, self.state_std, self.error_std))

    @property
    def _title(self) -> str:
        return f"the network {self.name!r}"

    def _analysis(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        analysis: Tensor = self(x, zeta, memory)[0]
        return analysis


def outdated(cls: type[AnalysisNetwork], name: str, parts: Collection[str] | None = None) -> bool:
    """Whether a class inherits a formula, and changes the forward pass that the formula belongs to.

    Parameters
    ----------
    cls : type
    name : str
        Of the formula's method.
    parts : collection of str, optional
        Methods that the formula relies on; by default all methods of the class that defines it.
    """
    owner = next(base for base in cls.__mro__ if name in vars(base))
    if parts is None:
        lineage = [base for base in owner.__mro__ if issubclass(base, AnalysisNetwork)]
        values = {label: value for base in lineage for label, value in vars(base).items() if label[:2] != "__"}
        parts = {label for label, value in values.items() if callable(value) or isinstance(value, _METHODS)} - _BESIDE
    changed = {label for base in cls.__mro__ if base not in owner.__mro__ for label in vars(base)}
    return not changed.isdisjoint({*parts, "forward", "__call__", "__getattr__"})


def formula(network: AnalysisNetwork, name: str) -> Callable[..., Tensor]:
    """A derivative by the class's formula; by autodiff where hooks or an attribute change this one network."""
    return partial(getattr(AnalysisNetwork if is_patched(network) else type(network), name), network)


def is_patched(network: AnalysisNetwork) -> bool:
    """Whether hooks or an attribute `forward` change what a network, or a part of it, computes."""
    return any("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks for part in network.modules())


_NETWORKS: dict[str, tuple[type[AnalysisNetwork], Mapping[str, Any]]] = {}


def register_network(cls: type[AnalysisNetwork]) -> type[AnalysisNetwork]:
    """Register a network class under its `name`.

    Raises
    ------
    TypeError
        For what is no class of networks, or has no name of its own.
    ValueError
        If another class has the name: stores that hold it would open as this one.
    """
    if not isinstance(cls, type) or not issubclass(cls, AnalysisNetwork):
        raise TypeError(f"cls={shown(cls)}: expected a class derived from AnalysisNetwork")
    if not isinstance(vars(cls).get("name"), str):
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
            "of its own and the decorator register_network of xdan.core.networks"
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
        raise ValueError(f"network {shown(name)} is unknown; known are {sorted(_NETWORKS)}: expected one of them")
    names: set[str] = set()
    for cls in _NETWORKS[name][0].__mro__:
        if "__init__" in vars(cls):
            _, *parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            names |= {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
    return names


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
    try:
        network = _bounded(name, parameters, shapes)
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
        raise ValueError(f"the arrays do not fit the {title}: {_difference(known, state)}")
    return network


class _LargerError(Exception):
    """A network has more tensors, or values, than are known."""


def _bounded(name: str, parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> AnalysisNetwork:
    try:
        with _at_most(shapes), torch.device("meta"):
            return network_by_name(name, parameters)
    except RecursionError:
        raise
    except RuntimeError:  # its constructor asks for values
        with _at_most(shapes):
            return network_by_name(name, parameters)


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


def _difference(known: Mapping[str, tuple[int, ...]], state: Mapping[str, tuple[int, ...]]) -> str:
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
