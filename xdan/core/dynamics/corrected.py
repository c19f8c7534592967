"""A model with a learned correction of its tendency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..checks import shown
from ..tendencies import TendencyNetwork
from .base import Dynamics
from .custom import CustomDynamics
from .learned import WEIGHTS, TendencyWeights, checked_provenance
from .registry import dynamics_to_json, register_dynamics


@register_dynamics
class CorrectedDynamics(Dynamics, pure=True):
    """A model and a learned correction g of its errors: dx/dt = f(x, t) + g(x).

    g belongs to the tendency, not to an interval, so that the corrected model can be used with any interval between
    analyses. If Runge-Kutta 4 steps the model's tendency, g acts in all four stages. If the model has its own step S,
    such as an exponential integrator, x -> x + h/2 g(x) is applied before and after S. This is of second order in h.

    Parameters
    ----------
    model : Dynamics
        The model that is corrected. If it has a given climatology or a model error, the corrected model has them too.
    network : TendencyNetwork
        The correction g. It is copied, so that further training of `network` does not change this model.
    provenance : mapping, optional
        Plain JSON that says where g came from; `learn_correction` writes it. It does not distinguish models.

    Attributes
    ----------
    model : Dynamics
    network : TendencyNetwork
        The correction with frozen weights.
    provenance : dict

    Raises
    ------
    TypeError
        If `model` is not a Dynamics, or `network` is not a tendency network.
    ValueError
        If the correction is for another space, the model is corrected already, `vet` refuses the model (its `advance`
        must agree with its `step`), or weights are not finite.

    See Also
    --------
    xdan.learn_correction : learns g from the increments of a run.
    xdan.save_dynamics, xdan.open_dynamics

    References
    ----------
    Danforth et al. (2007), Mon. Wea. Rev. 135, doi:10.1175/MWR3266.1; Farchi et al. (2021), J. Comput. Sci. 55,
    doi:10.1016/j.jocs.2021.101468: corrections of the resolvent and of the tendency.

    Examples
    --------
    >>> import torch
    >>> from xdan import Lorenz96, LocalPolynomial
    >>> g = LocalPolynomial(degree=0)  # a constant
    >>> _ = torch.nn.init.constant_(g.coefficients, 0.5)
    >>> corrected, better = CorrectedDynamics(Lorenz96(forcing=7.5), g), Lorenz96(forcing=8.0)
    >>> x = torch.linspace(-5, 9, 40, dtype=torch.float64)
    >>> torch.allclose(corrected.advance(x, 4), better.advance(x, 4))
    True
    """

    name: ClassVar[str] = "corrected"

    def __init__(self, model: Dynamics, network: TendencyNetwork, provenance: Mapping[str, Any] | None = None) -> None:
        if isinstance(model, Mapping) or isinstance(network, Mapping):
            raise ValueError(f"a corrected model is described by its model and a digest of its weights; {WEIGHTS}")
        self._set_up(model, TendencyWeights(network), checked_provenance(provenance))

    @classmethod
    def trained_with(cls, model: Dynamics, network: TendencyNetwork) -> CorrectedDynamics:
        """Make a model that uses the weights of `network` without a copy, so that gradients reach them."""
        made = cls.__new__(cls)
        made._set_up(model, TendencyWeights(network, live=True), {})
        return made

    def _set_up(self, model: Any, weights: TendencyWeights, provenance: dict[str, Any]) -> None:
        """Take over the attributes of the model."""
        if not isinstance(model, Dynamics):
            raise TypeError(f"model={shown(model)}: expected an xdan Dynamics such as xdan.Lorenz96()")
        if isinstance(model, CorrectedDynamics):
            raise ValueError(
                f"the model {model.label!r} is corrected already: expected a model without a correction; correct "
                "model.model by one network"
            )
        weights.network.check_space(model.space)
        model.vet()  # tests that `advance` and `step` are one model, because the parts below use either of them
        self.given_climate, self.model_error = model.given_climate, model.model_error
        self.model = model._copied(given_climate=None, model_error=None, _model_step=0, _first=(0.0, 0))
        self._first, self._model_step = model._first, model._model_step
        self._weights, self.provenance = weights, provenance
        self.space, self.timestep, self.spin_up_time = model.space, model.timestep, model.spin_up_time
        self.dims, self.coordinates, self.units = model.dims, model.coordinates, model.units
        self.time_unit, self.time_origin, self.autonomous = model.time_unit, model.time_origin, model.autonomous
        self.has_derivatives = model.has_derivatives  # type: ignore[misc]
        of_tendency = isinstance(model, CustomDynamics) and model._tendency is not None
        self._in_tendency = type(model).step is (CustomDynamics.step if of_tendency else Dynamics.step)

    @property
    def label(self) -> str:
        """Name of the model in messages, which says that the model is corrected."""
        return f"{self.model.label}, corrected"

    @property
    def network(self) -> TendencyNetwork:
        """The correction g."""
        return self._weights.network

    def config(self) -> dict[str, Any]:
        """Describe the model and the correction. The correction has a name and a digest of its weights."""
        return {"model": dynamics_to_json(self.model), "network": self._weights.description()}

    def parameter_values(self) -> dict[str, Any]:
        """Real parameters of the corrected model. The weights of the correction are not among them."""
        return self.model.parameter_values()

    def _remade(self, values: dict[str, Any]) -> CorrectedDynamics:
        return self._copied(model=self.model._remade(values))

    def computing_with(self, values: Mapping[str, Tensor]) -> CorrectedDynamics:
        """A copy whose model computes with tensors in the place of some parameters. The correction does not change."""
        return self._copied(model=self.model.computing_with(values), _vetted=True)

    def correction(self, x: Tensor) -> Tensor:
        """Correction g for states of shape (..., *shape), in their units per model time."""
        return self._weights(x, len(self.dims))

    def tendency(self, x: Tensor, *time: float) -> Tensor:
        """Tendency f + g for states of shape (..., *shape).

        Raises
        ------
        TypeError
            If the model has a step and no tendency.
        """
        return self.model.tendency(x, *time) + self.correction(x)

    def step(self, x: Tensor, *time: float) -> Tensor:
        """Advance states of shape (..., *shape) by one `timestep`. `time` is there if the model depends on time."""
        if self._in_tendency:
            return self._runge_kutta(x, self.timestep, *(time or (self._time,)))
        half = self.timestep / 2
        after = self._step_of_model(x + half * self.correction(x), *time)
        return after + half * self.correction(after)

    def _step_of_model(self, x: Tensor, *time: float) -> Tensor:
        """A step of the model. `time` is there if the model depends on time."""
        now = time or (() if self.autonomous else (self.model_time,))
        return self.model.step(x, *now)

    def retreat(self, x: Tensor, steps: int) -> Tensor:
        """Go back in time by the tendency; see `Dynamics.retreat`.

        Raises
        ------
        ValueError
            If the model has its own step.
        """
        return self._retreated(x, steps) if self._in_tendency else super().retreat(x, steps)

    def rest(self, noise: Tensor) -> Tensor:
        """Turn noise into states for spin-ups, as the model does."""
        return self.model.rest(noise)

    def distances(self, sites: Tensor) -> Tensor | None:
        """Distances between components, as the model gives them."""
        return self.model.distances(sites)

    def __repr__(self) -> str:
        return f"CorrectedDynamics({self.model!r}, {self.network.name}, weights {self._weights.digest[:12]})"
