"""The protocol of analysis networks."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..registry import constructor_parameters, constructor_values
from ..spaces import StateSpace
from ..tangent import along, jacobian, mixed_jacobian, unit_direction
from .arrangement import Arrangement

_METHODS = (property, classmethod, staticmethod)

# Methods that a class may override by something faster than autodiff, as long as no derived class changes `forward`.
_FORMULAS = ("reach", "analysis_covariance", "marginal_gain", "forecast_derivative")
# Methods that the forward pass does not call: overriding them leaves the formulas right.
_BESIDE = {
    "config",
    "cycled_by",
    "follows_from_config",
    "made_anew",
    "takes",
    "made_for",
    "check_state",
    "check_space",
    "hidden_matrices",
    "guide",
    "guide_by",
    "companions",
    "normalise",
    "take_fixed_inputs",
    "forms_covariance",
    "model_correction",
    "distribution",
    "root",
    "root_places",
    *_FORMULAS,
}


Scale = float | Sequence[float] | Tensor
"""A number, or one number for each of several fields."""


class AnalysisNetwork(nn.Module, ABC):
    """A network that computes the analysis from the forecast and the projected innovation, x_a = a_theta(x_f, zeta).

    A new network is one class in one file. It needs a `name` and the decorator `xdan.register_network`. Its constructor
    takes plain values, each with a default, and keeps them as attributes of the same names. The analysis is in
    `forward`::

        import torch
        import xdan


        @xdan.register_network
        class Nudging(xdan.AnalysisNetwork):
            "Each site moves towards the observations near it."

            name = "nudging"

            def __init__(self, width: int = 3) -> None:
                super().__init__()
                self.width = width
                self.weights = torch.nn.Parameter(torch.full((width,), 0.1))

            def forward(self, x, zeta, memory=None):
                innovation = zeta * self.error_std
                shifted = [innovation.roll(self.width // 2 - k, -1) for k in range(self.width)]
                increment = sum(weight * one for weight, one in zip(self.weights, shifted))
                return x + self.error_std * increment, memory

    `xdan.train(xdan.Lorenz96(), "nudging")` then trains this network; so does `xdan.train` with an object,
    `Nudging(width=5)`. The network cycles, is saved and is opened like every other. A process that opens it must have
    run the file before, because xdan imports nothing that a store names. A store has the constructor's values
    (`config`) and the tensors of `state_dict`.

    Attributes and methods say what depends on the kind of network; callers do not ask for its class:

    - `ensemble`, `members`: whether the network takes members, and how many. `memory`: its number of latent channels.
    - `cycled_by`: name of the method that cycles the network.
    - `space`: the fields that the network was made for. The constructor needs such a parameter and passes it on to
      `super().__init__(space)`; None is one field on a ring. `self.space.unpack(x)` gives the fields of a flat state.
    - `check_state`: which states the network takes.
    - `normalise`: sets the climate and the observation error, before training.
    - `hidden_matrices`: which parameters an optimiser for matrices may train.
    - `covariance`: the matrix P_a, if the increment is P_a zeta; then `forms_covariance` is True.
    - `distribution`: the analysis and a root of its error covariance, if the network `gives_spread`.
    - `reach`, `analysis_covariance`, `marginal_gain`, `forecast_derivative`: derivatives of the analysis. Autodiff
      takes them, unless a class has faster formulas. A derived class may override `forward`, or another method that
      `forward` may call. Then autodiff takes its derivatives again, unless the derived class has formulas too.

    Attributes
    ----------
    name : str
        The registered name.
    space : StateSpace or None
        The fields of the network's states; None for one field on a ring of any length.
    memory : int
        Number of latent channels that go from cycle to cycle, for each component of the state; 0 without memory.
    guides : int
        Number of channels with the results of a Kalman filter beside the network; 0 without a filter. With a filter
        the forecast carries a covariance, `guide` computes the channels, and `forward` gets them as a fourth argument.
    second_order : float
        Factor c2 of the second-order term in the forecast of this covariance.
    inflation : float
        Factor by which the standard deviations of this covariance are multiplied before each forecast.
    lag : int
        Number of intervals back in time at which the network makes its analysis. The model runs it to the present.
    passes : int
        Number of Gauss-Newton iterations over the `lag` intervals, before the network's correction.
    patch_radius : float or None
        Radius of the patches in which the covariance is kept, in the units of the coordinates; None for one matrix.
    covariance_columns : int or None
        Number of columns of the root as which the covariance is kept; None for one matrix.
    past : int
        Number of intervals before the forecast from which every analysis computes the covariance anew. 0: the
        covariance is carried from cycle to cycle.
    ensemble : bool
        Whether the states are ensembles of `members` members, of shape (B, M, N).
    members : int
        Number of members; 1 for a network with one forecast.
    gives_spread : bool
        Whether the network gives a Gaussian distribution: an analysis and a root of its error covariance.
    any_members : bool
        Whether the same weights serve any number of members.
    described : bool
        Class attribute: whether `type(self)(**self.config())` makes this architecture. Otherwise it is copied.
    state_mean, state_std : Tensor, shape (), or (fields,) of several fields
        Climatological mean and standard deviation of a site of each field, in its units.
    error_std : Tensor, shape (), or (fields,) of several fields
        Typical observation error. It is the unit of increments, and its inverse is the unit of projected innovations.
        For a field that is never observed: its standard deviation times the ratio of error to deviation of the others.
    fixed_inputs : Tensor, shape (channels, *sites), where the space has such
        Values of the fixed inputs on the grid of `arrangement`. They are saved with the network.

    References
    ----------
    Bocquet et al. (2024), doi:10.1063/5.0230837, Eq. 2 and 22.

    Examples
    --------
    >>> import torch, xdan
    >>> class Nudging(xdan.AnalysisNetwork):
    ...     name = "nudging"
    ...     def forward(self, x, zeta, memory=None):
    ...         return x + 0.5 * zeta, memory
    >>> analysis, memory = Nudging()(torch.zeros(1, 4), torch.ones(1, 4))
    >>> analysis
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    name: ClassVar[str]
    memory: int = 0
    guides: int = 0
    second_order: float = 0.0
    inflation: float = 1.0
    lag: int = 0
    passes: int = 1
    past: int = 0
    patch_radius: float | None = None
    covariance_columns: int | None = None
    ensemble: ClassVar[bool] = False
    members: int = 1
    gives_spread: bool = False
    any_members: ClassVar[bool] = False
    described: ClassVar[bool] = True
    space: StateSpace | None
    state_mean: Tensor
    state_std: Tensor
    error_std: Tensor
    fixed_inputs: Tensor
    _conserved_on: tuple[torch.device, dict[int, Tensor]] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _FORMULAS:
            if outdated(cls, name):
                setattr(cls, name, vars(AnalysisNetwork)[name])

    def __init__(self, space: StateSpace | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.space = space if space is None or isinstance(space, StateSpace) else StateSpace.from_json(space)
        self.register_buffer("state_mean", torch.zeros(self._scale_shape, dtype=torch.float32))
        self.register_buffer("state_std", torch.ones(self._scale_shape, dtype=torch.float32))
        self.register_buffer("error_std", torch.ones(self._scale_shape, dtype=torch.float32))
        if self.space is not None and self.space.inputs:
            self.register_buffer("fixed_inputs", self.arrangement.fixed(self.space.inputs).to(torch.float32))

    @cached_property
    def arrangement(self) -> Arrangement:
        """The fields as channels on one grid.

        Raises
        ------
        ValueError
            If the geometries of the fields cannot be joined.
        """
        return Arrangement(self.space)

    def config(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same architecture.

        By default these are the attributes with the names of the constructor's parameters.

        Raises
        ------
        TypeError
            If such an attribute is missing, or is not a plain value.
        """
        values = constructor_values(self, space=None if self.space is None else self.space.to_json())
        if values.get("space", self) is None:
            del values["space"]  # descriptions of networks on a ring never had it
        return values

    @property
    def follows_from_config(self) -> bool:
        """Whether `config` makes this architecture again, that of every network in it included."""
        return all(part.described for part in self.modules() if isinstance(part, AnalysisNetwork))

    def made_anew(self) -> AnalysisNetwork:
        """A network of this architecture, its weights at their start: those of now, where `config` does not make it."""
        return type(self)(**self.config()) if self.follows_from_config else copy.deepcopy(self)

    @property
    def takes(self) -> str:
        """How messages say what `forward` takes."""
        return "forward(x, zeta, memory=None)"

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
            Latent channels of the previous cycle.

        Returns
        -------
        analysis : Tensor, shape of x
        memory : Tensor, shape (B, n, N), or None for a network without memory
        """

    @torch.no_grad()
    def normalise(self, mean: Scale, std: Scale, error_std: Scale) -> None:
        """Set the normalisation. Each argument is a number, or one number for each of several fields."""
        for buffer, value in ((self.state_mean, mean), (self.state_std, std), (self.error_std, error_std)):
            buffer.copy_(torch.as_tensor(value, dtype=torch.float64))

    @torch.no_grad()
    def take_fixed_inputs(self, other: AnalysisNetwork) -> None:
        """Copy the values of another network's fixed inputs, because a space's description does not hold them."""
        others = dict(other.named_buffers())
        for name, buffer in self.named_buffers():
            if name.rpartition(".")[2] == "fixed_inputs":
                buffer.copy_(others[name])

    def model_correction(self) -> nn.Module | None:
        """The correction of the model's tendency, a `TendencyNetwork`, that the network holds; None without one."""
        return None

    def per_component(self, scale: Tensor) -> Tensor:
        """Repeat a number for each field, (fields,), for each component, (N,). A single number stays one."""
        if scale.ndim == 0 or self.space is None or not self._scale_shape:
            return scale
        return torch.cat([one.expand(f.geometry.size) for one, f in zip(scale, self.space, strict=True)])

    @property
    def component_errors(self) -> Tensor | None:
        """Typical observation error of each component, (N,), the unit in which errors of several fields are compared.

        None for one field, whose errors are in the field's units.
        """
        return self.per_component(self.error_std) if self._scale_shape else None

    def conserving(self, change: Tensor, adjoint: bool = False) -> Tensor:
        """Subtract the area-weighted mean from an increment, in fields whose mean is conserved.

        Parameters
        ----------
        change : Tensor, shape (..., N)
        adjoint : bool
            Apply the transpose of this projection.
        """
        if not self._conserved:
            return change
        parts = list(change.split([field.geometry.size for field in self.space or ()], -1))
        for index, shares in self._area_shares(change.device).items():
            part, w = parts[index], shares.to(change)
            parts[index] = part - (w * part.sum(-1, keepdim=True) if adjoint else (w * part).sum(-1, keepdim=True))
        return torch.cat(parts, -1)

    @cached_property
    def _conserved(self) -> dict[int, Tensor]:
        """Number of each field with a conserved mean, and the area of each of its points as a share of the total."""
        fields = enumerate(self.space or ())
        return {k: field.geometry.weights() / field.geometry.weights().sum() for k, field in fields if field.conserved}

    def _area_shares(self, device: torch.device) -> dict[int, Tensor]:
        """`_conserved` on a device. The tensors stay there, because a CUDA graph must not copy from the CPU."""
        if self._conserved_on is None or self._conserved_on[0] != device:
            self._conserved_on = device, {k: shares.to(device) for k, shares in self._conserved.items()}
        return self._conserved_on[1]

    def made_for(self, space: StateSpace) -> AnalysisNetwork:
        """Return this architecture for the fields of a space, if the network was made for none and its class has one.

        Returns
        -------
        AnalysisNetwork
            A new network with initial weights. For one field on a ring, which needs no space, the network itself.
        """
        if self.space is not None or space.is_plain_ring or "space" not in constructor_parameters(type(self)):
            return self
        return type(self)(**{**self.config(), "space": space})

    def check_space(self, space: StateSpace) -> None:
        """Refuse a space whose fields this network cannot be trained on.

        A class without a parameter `space` decides by `check_state` alone.

        Raises
        ------
        ValueError
            If the network is for other fields.
        """
        if self.space is not None and not (self.space.single and space.single):
            check_same_fields(self.space, space, self._title)  # its message names more than the packed dim
        self.check_state(space.dims, space.shape)
        if self.space is not None:
            check_same_fields(self.space, space, self._title)
        elif not space.is_plain_ring and "space" in constructor_parameters(type(self)):
            raise ValueError(
                f"{self._title} was made for one field on a ring, and the states have the fields {space.fields}: "
                "expected one that is made with space=dynamics.space"
            )

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states that this network does not take. By default it takes the states of its space only.

        Without a space, states on more than one dim are refused, because the network is for a ring.

        Parameters
        ----------
        dims : sequence of str
            Names of the state's dims.
        shape : sequence of int
            Their lengths.

        Raises
        ------
        ValueError
            If the network does not take the states.
        """
        if self.space is not None:
            if (tuple(dims), tuple(shape)) != (self.space.dims, self.space.shape):
                raise ValueError(
                    f"the state has dims {tuple(dims)} of lengths {tuple(shape)}: expected {self.space.dims} of "
                    f"{self.space.shape}, of the space that {self._title} was made for"
                )
        elif len(dims) != 1:
            raise ValueError(
                f"the state has dims {tuple(dims)}: expected one, as {self._title} was made for a ring; or space="
                "dynamics.space where its constructor takes it"
            )

    @property
    def cycled_by(self) -> str:
        """Name of the method that cycles the network. The default methods call `forward` on one forecast or members."""
        if self.guides:
            return "kalman-dan-lagged" if self.lag else "kalman-dan-rebuilt" if self.past else "kalman-dan"
        return "ensemble-dan" if self.ensemble else "dan"

    @property
    def reach(self) -> int | None:
        """Number of sites to each side, on a ring, that an output can depend on; None if it may depend on all."""
        return None

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Parameters that an optimiser for matrices may train."""
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
        """Derivative of the analysis with respect to x_l at one site l, shape (B, N).

        Raises
        ------
        ValueError
            If torch cannot differentiate the network.
        """
        return along(lambda state: self._analysis(state, zeta, memory), x, unit_direction(x, site), self._title)

    def guide(self, increment: Tensor, covariance: Tensor) -> Tensor:
        """The filter's results as channels, (B, guides, N), from its increment K d (B, N) and P_a (B, N, N)."""
        raise NotImplementedError(f"{self._title} has guides={self.guides}: expected a method `guide`")

    def companions(self, size: int) -> Tensor:
        """For each component, those whose covariance with it the network reads, int64 of shape (N, L); `size` is N."""
        raise NotImplementedError(f"{self._title} has guides={self.guides}: expected a method `companions`")

    def guide_by(self, increment: Tensor, covariances: Tensor) -> Tensor:
        """`guide` from the covariances of `companions` alone, (B, N, L)."""
        raise NotImplementedError(f"{self._title} has guides={self.guides}: expected a method `guide_by`")

    def covariance(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """P_a as the network forms it, (B, N, N), and the new memory. Only some networks have such a matrix.

        Raises
        ------
        ValueError
            If the network does not form P_a.
        """
        raise ValueError(f"{self._title} forms no P_a: expected a network whose increment is P_a zeta")

    @property
    def forms_covariance(self) -> bool:
        """Whether the increment is `covariance` times zeta."""
        return type(self).covariance is not AnalysisNetwork.covariance

    def distribution(
        self, x: Tensor, zeta: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Analysis, memory, and a sparse root L of the analysis's error covariance P_a = L L^T.

        Parameters
        ----------
        x, zeta, memory
            See `forward`.

        Returns
        -------
        analysis : Tensor, shape (B, N)
        memory : Tensor, shape (B, n, N), or None
        root : Tensor, shape (B, N, L)
            Entries of each row of L, in the columns of `root_places`.

        Raises
        ------
        ValueError
            If the network gives no spread.
        """
        raise ValueError(f"{self._title} gives no spread: expected one such as xdan.GaussianCNN")

    def root_places(self, size: int) -> Tensor:
        """For each component, the columns of its row of the root, int64 of shape (N, L), itself first; `size` is N."""
        raise ValueError(f"{self._title} gives no spread: expected one such as xdan.GaussianCNN")

    @property
    def _is_one_climate(self) -> bool:
        """Whether all sites of a field have one normalisation. A derived class may have one for each site."""
        return all(scale.shape == self._scale_shape for scale in (self.state_mean, self.state_std, self.error_std))

    @property
    def _scale_shape(self) -> tuple[int, ...]:
        """Shape of the normalisation: (fields,) for several fields, () for one."""
        return () if self.space is None or self.space.single else (len(self.space),)

    @property
    def _fixed_channels(self) -> int:
        """Number of channels of the fixed inputs."""
        return len(self.fixed_inputs) if self.space is not None and self.space.inputs else 0

    def _fixed(self, like: Tensor) -> list[Tensor]:
        """The fixed inputs for a batch, (channels, *sites, B), as features need them; empty without fixed inputs."""
        if not self._fixed_channels:
            return []
        return [self.fixed_inputs[..., None].expand(*self.fixed_inputs.shape, like.shape[-1])]

    @property
    def _title(self) -> str:
        return f"the network {self.name!r}"

    def _analysis(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        analysis: Tensor = self(x, zeta, memory)[0]
        return analysis


def check_same_fields(made_for: StateSpace, other: StateSpace, title: str) -> None:
    """Refuse a space whose fields differ from those of a network in names, units, geometries or order.

    Raises
    ------
    ValueError
    """
    known, here = ([(f.name, f.units, f.geometry) for f in space] for space in (made_for, other))
    if known != here:
        both = zip(known, here, strict=False)
        pair = next(((one, two) for one, two in both if one != two), (made_for.names, other.names))
        raise ValueError(
            f"{title} was made for the fields {made_for.names}, the states have {other.names}, and they differ in "
            f"{pair[1]}: expected {pair[0]}. Bring the record to them, or train a network on it"
        )


def outdated(cls: type[AnalysisNetwork], name: str, parts: Collection[str] | None = None) -> bool:
    """Whether a class inherits a formula, and changes the forward pass that the formula belongs to.

    Parameters
    ----------
    cls : type
    name : str
        Name of the formula's method.
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
    """A derivative by the class's formula. Autodiff takes it if hooks or an attribute change this one network."""
    return partial(getattr(AnalysisNetwork if is_patched(network) else type(network), name), network)


def is_patched(network: nn.Module) -> bool:
    """Whether hooks or an attribute `forward` change what a network, or a part of it, computes."""
    return any("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks for part in network.modules())
