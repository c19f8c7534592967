"""What an analysis network is: the protocol that every network keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..registry import constructor_values
from ..tangent import along, jacobian, mixed_jacobian, unit_direction

_METHODS = (property, classmethod, staticmethod)

# Methods that a class may override by something faster than autodiff, as long as no derived class changes `forward`.
_FORMULAS = ("reach", "analysis_covariance", "marginal_gain", "forecast_derivative")
# Methods that the forward pass does not call: overriding them leaves the formulas right.
_BESIDE = {"config", "check_state", "hidden_matrices", "normalise", "forms_covariance", *_FORMULAS}


class AnalysisNetwork(nn.Module, ABC):
    """A network that makes the analysis from the forecast and the projected innovation, x_a = a_theta(x_f, zeta).

    A new network is one class in one file. It needs a `name`, the decorator `xdan.register_network`, a constructor of
    plain values with a default for each, which it keeps as attributes of the same names, and a `forward`::

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

    `xdan.train(xdan.Lorenz96(), "nudging")` then trains it, or an instance, `Nudging(width=5)`. It cycles, is saved and
    is opened as the others are; a process that opens it must have run the file, for nothing that a store names is
    imported. A store has the constructor's values (`config`) and the tensors of `state_dict`.

    A class says by attributes and methods what depends on its kind; callers ask no network for its class:

    - `ensemble`, `members`: whether it takes members, and how many. `memory`: latent channels that it carries.
    - `check_state`: which states it takes.
    - `normalise`: takes the climate and the observation error, before training.
    - `hidden_matrices`: which parameters an optimiser for matrices may take.
    - `covariance`: the matrix P_a where the increment is P_a zeta; `forms_covariance` then says so.
    - `reach`, `analysis_covariance`, `marginal_gain`, `forecast_derivative`: derivatives of the analysis, taken
      by autodiff unless a class brings what is faster. A class derived from such a one that overrides `forward`, or any
      method that `forward` may call, has those of autodiff again, unless it brings its own.

    Attributes
    ----------
    name : str
        The name it is registered under.
    memory : int
        Latent channels per site that are carried from cycle to cycle.
    ensemble : bool
        Whether states are members, `members` of them, of shape (B, M, N).
    members : int
        1 for a network of one forecast.
    state_mean, state_std : Tensor, shape ()
        Climatological moments of a site of the state, in its units.
    error_std : Tensor, shape ()
        Typical observation error; the unit of increments, and its inverse that of projected innovations.

    References
    ----------
    Bocquet et al. (2024), doi:10.1063/5.0230837, Eq. 2 and 22.
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

    def config(self) -> dict[str, Any]:
        """Plain JSON values from which `type(self)(**parameters)` makes the same architecture.

        By default the attributes that are named as the constructor's parameters.

        Raises
        ------
        TypeError
            Where such an attribute is missing, or no plain value.
        """
        return constructor_values(self)

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
        """Refuse states that this network does not take: by default those on more than one dim, as it is for a ring.

        Parameters
        ----------
        dims : sequence of str
            Names of the state's dims.
        shape : sequence of int
            Their lengths.

        Raises
        ------
        ValueError
            For such states.
        """
        if len(dims) != 1:
            raise ValueError(f"the state has dims {tuple(dims)}: expected one, as the networks work on a ring")

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


def is_patched(network: nn.Module) -> bool:
    """Whether hooks or an attribute `forward` change what a network, or a part of it, computes."""
    return any("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks for part in network.modules())
