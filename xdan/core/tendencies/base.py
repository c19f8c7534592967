"""The protocol of a tendency network: a function from the state to dx/dt, or a part of it, with weights."""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..checks import shown
from ..networks.arrangement import Arrangement
from ..networks.opening import module_of_shapes
from ..registry import Registry, constructor_parameters, constructor_values
from ..spaces import StateSpace


class TendencyNetwork(nn.Module, ABC):
    """A function g(x), in units of the state per model time, which is the same at every place of the state.

    In `CorrectedDynamics` it corrects a model, dx/dt = f(x) + g(x). In `SurrogateDynamics` it is the model,
    dx/dt = g(x). A new tendency network is one class. It has a `name`, the decorator `xdan.register_tendency`, and a
    `forward`. Its constructor takes plain values, `space` among them, and keeps them as attributes of the same names.

    Parameters
    ----------
    space : StateSpace, or its JSON, optional
        The fields of the states, which become channels on one grid. By default one field on a ring of any length.

    Attributes
    ----------
    name : str
        The registered name.
    space : StateSpace or None
        The fields; None for one field on a ring of any length.
    state_mean, state_std : Tensor, shape (), or (fields,) of several fields
        Climatological mean and standard deviation, in the units of each field. They normalise the inputs.
    tendency_std : Tensor, shape (), or (fields,) of several fields
        Typical size of g, in the units of each field per model time.

    Raises
    ------
    ValueError
        If the geometries of the fields cannot be joined.

    Examples
    --------
    >>> import torch, xdan
    >>> class Damping(xdan.TendencyNetwork):
    ...     name = "damping"
    ...     def forward(self, x):
    ...         return -x
    >>> model = xdan.CorrectedDynamics(xdan.Lorenz96(sites=8, forcing=0.0), Damping())
    >>> x = torch.ones(1, 8)
    >>> bool((model.advance(x, 1) < xdan.Lorenz96(sites=8, forcing=0.0).advance(x, 1)).all())
    True
    """

    name: ClassVar[str]
    space: StateSpace | None
    state_mean: Tensor
    state_std: Tensor
    tendency_std: Tensor

    def __init__(self, space: StateSpace | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.space = space if space is None or isinstance(space, StateSpace) else StateSpace.from_json(space)
        shape = () if self.space is None or self.space.single else (len(self.space),)
        for label, value in (("state_mean", 0.0), ("state_std", 1.0), ("tendency_std", 1.0)):
            self.register_buffer(label, torch.full(shape, value, dtype=torch.float32))
        _ = self.arrangement

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return g for states of shape (B, N), in this shape."""

    @cached_property
    def arrangement(self) -> Arrangement:
        """The fields as channels on one grid."""
        return Arrangement(self.space)

    def config(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same architecture."""
        values = constructor_values(self, space=None if self.space is None else self.space.to_json())
        if values.get("space", self) is None:
            del values["space"]
        return values

    def made_for(self, space: StateSpace) -> TendencyNetwork:
        """Return this architecture for the fields of a space, with initial weights.

        Returns
        -------
        TendencyNetwork
            A new network. For one field on a ring, which needs no space, a copy.
        """
        if self.space is not None or space.is_plain_ring or "space" not in constructor_parameters(type(self)):
            return copy.deepcopy(self)
        return type(self)(**{**self.config(), "space": space})

    def check_space(self, space: StateSpace) -> None:
        """Refuse a space with other fields than this network's.

        Raises
        ------
        ValueError
        """
        if self.space is None and not space.is_plain_ring:
            raise ValueError(
                f"the tendency network {self.name!r} was made for one field on a ring, and the states have the fields "
                f"{list(space.names)} on {[type(one.geometry).__name__ for one in space]}: expected one that is made "
                "with space=dynamics.space"
            )
        if self.space is not None and self.space != space:
            raise ValueError(
                f"the tendency network {self.name!r} was made for {self.space!r}, the states have {space!r}: expected "
                "one space; learn a network on this model's states"
            )

    @torch.no_grad()
    def normalise(self, mean: Any, std: Any, tendency_std: Any) -> None:
        """Set the normalisation. Each argument is a number, or one number for each of several fields.

        Raises
        ------
        ValueError
            If numbers are not finite, or standard deviations are not positive.
        """
        for label, value in (("state_mean", mean), ("state_std", std), ("tendency_std", tendency_std)):
            numbers = torch.as_tensor(value, dtype=torch.float64)
            if not bool(numbers.isfinite().all()) or (label != "state_mean" and not bool((numbers > 0).all())):
                raise ValueError(f"{label}={shown(numbers.tolist())}: expected finite numbers, deviations above 0")
            getattr(self, label).copy_(numbers)

    def digest(self) -> str:
        """SHA-256 of the architecture and of all weights."""
        h = hashlib.sha256(repr((self.name, self.config())).encode())
        for label, value in sorted(self.state_dict().items()):
            array = value.detach().cpu().contiguous().numpy()
            h.update(f"{label}{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return h.hexdigest()

    def _to_channels(self, x: Tensor) -> Tensor:
        """Normalised states as channels, (C, *sites, B), from (B, N)."""
        normalised = (x - self.per_component(self.state_mean)) / self.per_component(self.state_std)
        return self.arrangement.to_channels(normalised[None])

    def _from_channels(self, features: Tensor) -> Tensor:
        """Tendencies (B, N), in the state's units per model time, from channels (C, *sites, B)."""
        return self.arrangement.from_channels(features)[0] * self.per_component(self.tendency_std)

    def _taps(self, features: Tensor, kernel: int) -> Tensor:
        """Values around each site, (taps C, *sites, B), from (C, *sites, B). A tap is a place of the kernel."""
        arrangement = self.arrangement
        kernels = arrangement.kernels(kernel)
        if arrangement.is_ring or math.prod(kernels) == 1:
            width = kernels[0] if len(kernels) == 1 else 1
            return torch.cat([features.roll(width // 2 - k, 1) for k in range(width)])
        assert arrangement.grid is not None
        sites = features.shape[1:-1]
        padded = arrangement.grid.pad(features.movedim(-1, 0), [one // 2 for one in kernels])
        places = torch.cartesian_prod(*(torch.arange(one) for one in kernels)).reshape(-1, len(kernels)).tolist()
        parts = []
        for place in places:
            part = padded
            for axis, (first, count) in enumerate(zip(place, sites, strict=True)):
                part = part.narrow(2 + axis, first, count)
            parts.append(part)
        return torch.cat(parts, 1).movedim(0, -1)

    def per_component(self, scale: Tensor) -> Tensor:
        """Repeat a number for each field, for each component of a flat state, (N,). A single number stays one."""
        if scale.ndim == 0 or self.space is None:
            return scale
        return torch.cat([one.expand(f.geometry.size) for one, f in zip(scale, self.space, strict=True)])


T = TypeVar("T", bound=type[TendencyNetwork])

_TENDENCIES: Registry[TendencyNetwork] = Registry(
    "tendency network",
    TendencyNetwork,  # type: ignore[type-abstract]
    "xdan.TendencyNetwork",
    "Import the module that registers a tendency network of your own",
)


def register_tendency(cls: T) -> T:
    """Register a class of tendency networks under its `name`, as a decorator of the class. Stores refer to this name.

    Parameters
    ----------
    cls : class derived from TendencyNetwork
        It has an attribute `name`, which it must not inherit.

    Returns
    -------
    class
        The same class.

    Raises
    ------
    TypeError
        If `cls` is not a class of tendency networks, or sets no name.
    ValueError
        If another class has this name.

    Examples
    --------
    >>> import xdan
    >>> xdan.register_tendency(xdan.QuadraticCNN) is xdan.QuadraticCNN  # the decorator makes this call
    True
    """
    return _TENDENCIES.register(cls, "register_tendency")


def tendency_by_name(name: str, parameters: Mapping[str, Any]) -> TendencyNetwork:
    """Make a registered tendency network with initial weights. Nothing is imported.

    Raises
    ------
    TypeError
        If the name is not a string, or a parameter has the wrong type.
    ValueError
        If the name is not registered, or a parameter is unknown or out of bounds.
    """
    cls = _TENDENCIES[name]
    accepted = constructor_parameters(cls)
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters={shown(parameters)}: expected a mapping of the network's parameters")
    if unknown := sorted(str(label) for label in parameters if label not in accepted):
        raise ValueError(
            f"the tendency network {name!r} has no parameters {unknown}: expected some of {list(accepted)}"
        )
    return cls(**parameters)


def tendency_of_shapes(
    name: str, parameters: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> TendencyNetwork:
    """Make a tendency network without memory for its tensors. Refuse it if names or shapes differ from known ones.

    Parameters
    ----------
    name : str
    parameters : mapping
    shapes : mapping of str to tuple of int
        Names and shapes that its `state_dict` should have.

    Returns
    -------
    TendencyNetwork
        Its tensors have no values.

    Raises
    ------
    ValueError
        If there is no such network, or its names or shapes differ.
    """
    title = f"tendency network {shown(name) if isinstance(name, str) else type(name).__name__}"
    return module_of_shapes(partial(tendency_by_name, name, parameters), title, shapes)
