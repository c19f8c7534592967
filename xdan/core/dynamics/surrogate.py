"""A network in the place of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..checks import real, shown
from ..spaces import Field, Geometry, StateSpace
from ..tendencies import TendencyNetwork
from .base import Dynamics
from .declared_space import UNNAMED
from .learned import WEIGHTS, TendencyWeights, checked_provenance
from .model_time import Duration, with_time_unit
from .registry import register_dynamics


@register_dynamics
class SurrogateDynamics(Dynamics, pure=True):
    """A network in the place of a model: dx/dt = g(x). Runge-Kutta 4 steps it.

    Parameters
    ----------
    network : TendencyNetwork
        The tendency g, with its normalisation. It is copied.
    space : StateSpace, Field or Geometry
        The fields of the state. A network for one field on a ring works on a ring of any length.
    timestep : float
        Step in model time units. Intervals between analyses are multiples of it. A network also learns to compensate
        for errors of the step in its training, so another step gives another model.
    spin_up_time : float, optional
        Model time after which a start is on the attractor. Starts are noise with the climate's mean and standard
        deviation. By default 20 units and at least 400 steps.
    time_unit : numpy.timedelta64 or datetime.timedelta, optional
        Length of one unit of model time; None if time has no dimension.
    provenance : mapping, optional
        Plain JSON that says where g came from; `train_surrogate` writes it.

    Attributes
    ----------
    network : TendencyNetwork
        The network with frozen weights.
    provenance : dict

    Raises
    ------
    TypeError
        If an argument is not a tendency network, a space or a number.
    ValueError
        If the network is for another space, the step is not positive, or weights are not finite.

    See Also
    --------
    xdan.train_surrogate : trains g on a truth, or on the analyses of a run.
    xdan.save_dynamics, xdan.open_dynamics

    References
    ----------
    Bocquet et al. (2019), Nonlin. Processes Geophys. 26, doi:10.5194/npg-26-143-2019; Brajard et al. (2020),
    J. Comput. Sci. 44, doi:10.1016/j.jocs.2020.101171.

    Examples
    --------
    >>> import torch
    >>> from xdan import LocalPolynomial, Ring
    >>> SurrogateDynamics(LocalPolynomial(), Ring(6), 0.05).advance(torch.ones(2, 6), 3).shape  # dx/dt = 0 so far
    torch.Size([2, 6])
    """

    name: ClassVar[str] = "surrogate"

    def __init__(
        self,
        network: TendencyNetwork,
        space: StateSpace | Field | Geometry,
        timestep: float,
        spin_up_time: float | None = None,
        time_unit: Duration | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(network, Mapping):
            raise ValueError(f"a surrogate is described by a digest of its weights; {WEIGHTS}")
        self._set_up(TendencyWeights(network), space, timestep, spin_up_time, time_unit)
        self.provenance = checked_provenance(provenance)

    @classmethod
    def trained_with(cls, network: TendencyNetwork, space: StateSpace, timestep: float) -> SurrogateDynamics:
        """Make a model that uses the weights of `network` without a copy, so that gradients reach them."""
        made = cls.__new__(cls)
        made._set_up(TendencyWeights(network, live=True), space, timestep, None, None)
        made.provenance = {}
        return made

    def _set_up(
        self, weights: TendencyWeights, space: Any, timestep: Any, spin_up_time: Any, time_unit: Duration | None
    ) -> None:
        """Set the weights, the space and the times."""
        field = Field(UNNAMED, space) if isinstance(space, Geometry) else space
        whole = StateSpace(field) if isinstance(field, Field) else field
        if not isinstance(whole, StateSpace):
            raise TypeError(
                f"space={shown(space)}: expected the space of the states, such as model.space or xdan.Ring(40)"
            )
        weights.network.check_space(whole)
        self._weights, self.space, self.timestep = weights, whole, real("timestep", timestep, above=0.0)
        if spin_up_time is not None:
            self.spin_up_time = real("spin_up_time", spin_up_time, least=0.0)
        self.time_unit = time_unit

    @property
    def network(self) -> TendencyNetwork:
        """The network g."""
        return self._weights.network

    def config(self) -> dict[str, Any]:
        """Describe the surrogate. The network has a name and a digest of its weights."""
        described = {
            "network": self._weights.description(),
            "space": self.space.to_json(),
            "timestep": self.timestep,
            "spin_up_time": self.spin_up_time,
        }
        return with_time_unit(described, self.time_unit)

    def tendency(self, x: Tensor) -> Tensor:
        """Tendency g of states of shape (..., *shape)."""
        return self._weights(x, len(self.dims))

    def rest(self, noise: Tensor) -> Tensor:
        """Noise with the climate's mean and standard deviation, which the network knows."""
        network = self.network
        mean, std = (network.per_component(one).to(noise) for one in (network.state_mean, network.state_std))
        return (mean + std * noise.flatten(-len(self.dims))).reshape(noise.shape)

    def __repr__(self) -> str:
        fields = list(self.space.names)
        return f"SurrogateDynamics({self.network.name} of {fields}, weights {self._weights.digest[:12]})"
