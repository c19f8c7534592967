"""Networks that give a Gaussian distribution: the analysis of another network, and a root of its error covariance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..checks import choice, shown
from ..spaces import StateSpace
from .base import AnalysisNetwork, Scale, formula, is_patched
from .registry import network_by_name, register_network, registered_name
from .sizes import size

Mean = Literal["trained", "frozen"]
TYPICAL = 0.2  # first standard deviation of analysis errors, in observation errors


class GaussianNetwork(AnalysisNetwork):
    """A Gaussian N(x_a, L L^T) around the analysis x_a of another network, its `centre`.

    What concerns the analysis alone, such as its derivatives, comes from the centre. A derived class gives the root L:
    `root` gives its entries and `root_places` their columns.

    Parameters
    ----------
    network : AnalysisNetwork, or mapping of its registered "name" and "parameters"
        A network with one forecast and without a spread.
    mean : {"trained", "frozen"}
        Whether training changes the weights of the centre.

    Raises
    ------
    TypeError
        If the argument does not describe a network.
    ValueError
        If the network has members, a Kalman filter or a spread, so that it has an uncertainty already.
    """

    gives_spread = True
    cycled_by: ClassVar[str] = "gaussian-dan"

    def __init__(self, network: AnalysisNetwork | Mapping[str, Any], mean: Mean = "trained") -> None:
        centre = _made(network)
        check_centre(centre)
        super().__init__(centre.space)
        self.mean = choice("mean", mean, ("trained", "frozen"))
        self.centre = centre
        self.memory = centre.memory
        super().normalise(centre.state_mean, centre.state_std, centre.error_std)
        if self._fixed_channels:
            self.fixed_inputs.copy_(centre.fixed_inputs)
        if self.mean == "frozen":
            centre.requires_grad_(False)

    @property
    def described_centre(self) -> dict[str, Any]:
        """Name and parameters of the centre, plain JSON."""
        return {"name": registered_name(self.centre), "parameters": self.centre.config()}

    @abstractmethod
    def root(self, x: Tensor, zeta: Tensor, analysis: Tensor, memory: Tensor | None) -> Tensor:
        """Entries of the root, (B, N, L), from forecast, projected innovation, analysis and new memory."""

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory of the centre."""
        analysis, after = self.centre(x, zeta, memory)
        return analysis, after

    def distribution(
        self, x: Tensor, zeta: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Analysis, memory and root; shapes as in the base class."""
        analysis, after = self(x, zeta, memory)
        return analysis, after, self.root(x, zeta, analysis, after)

    def check_space(self, space: StateSpace) -> None:
        """Refuse a space that the centre is not for, and a frozen centre with random weights."""
        if self.mean == "frozen":
            raise ValueError(
                f"{self._title} with mean='frozen' and weights that are not trained: its analysis would keep its "
                "random weights; expected mean='trained', or xdan.with_spread(net) of a trained network"
            )
        self.centre.check_space(space)

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states that the centre does not take."""
        self.centre.check_state(dims, shape)

    @torch.no_grad()
    def normalise(self, mean: Scale, std: Scale, error_std: Scale) -> None:
        """Set the normalisation, also that of the centre."""
        super().normalise(mean, std, error_std)
        self.centre.normalise(mean, std, error_std)

    def model_correction(self) -> nn.Module | None:
        """The correction that the centre holds; None without one."""
        return self.centre.model_correction()

    @property
    def reach(self) -> int | None:
        """Number of sites to each side that the analysis can depend on."""
        return None if is_patched(self) else self.centre.reach

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of the centre, if it is trained."""
        return [] if self.mean == "frozen" else self.centre.hidden_matrices()

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """Derivative of the analysis with respect to zeta, Eq. 5: the centre's P_a. The spread is not part of it."""
        return formula(self.centre, "analysis_covariance")(x, zeta, memory)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Gamma of the centre at one site l."""
        return formula(self.centre, "marginal_gain")(x, zeta, memory, site)

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Derivative of the centre's analysis with respect to x_l."""
        return formula(self.centre, "forecast_derivative")(x, zeta, memory, site)


@register_network
class ConstantSpread(GaussianNetwork):
    """The analysis of a trained network with a constant spread: one number for each component.

    `xdan.calibrate(net, ds, kind="constant")` makes it. Errors of different components are assumed to be independent.

    Parameters
    ----------
    network : AnalysisNetwork, or mapping of its "name" and "parameters"
        The network of the analysis. Training does not change its weights.
    components : int
        Number N of components.

    Raises
    ------
    TypeError, ValueError
        See `GaussianNetwork`; also if the number of components is not a positive integer.
    """

    name: ClassVar[str] = "constant-spread"

    def __init__(
        self, network: AnalysisNetwork | Mapping[str, Any] | None = None, components: int = 40, mean: Mean = "frozen"
    ) -> None:
        super().__init__({"name": "residual-cnn", "parameters": {}} if network is None else network, mean)
        self.components = size("components", components)
        self.log_spread = nn.Parameter(torch.zeros(self.components, dtype=torch.float32))

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"network": self.described_centre, "components": self.components, "mean": self.mean}

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states of another size."""
        super().check_state(dims, shape)
        if (components := int(torch.Size(shape).numel())) != self.components:
            raise ValueError(
                f"{self._title} has a spread for {self.components} components, and the states have {components}: "
                "expected as many; calibrate the network anew for these states"
            )

    def root_places(self, size: int) -> Tensor:
        """Column of each component: the component itself, (N, 1)."""
        return torch.arange(size, device=self.log_spread.device)[:, None]

    def root(self, x: Tensor, zeta: Tensor, analysis: Tensor, memory: Tensor | None) -> Tensor:
        """The spread, (B, N, 1)."""
        spread = self.log_spread.exp()
        return spread[:, None].expand(len(x), *spread.shape, 1)


def check_centre(network: AnalysisNetwork) -> None:
    """Refuse a network whose analysis has an uncertainty already.

    Raises
    ------
    ValueError
    """
    if network.cycled_by != "dan":
        raise ValueError(
            f"network={registered_name(network)!r}: its members, its filter or its root say how uncertain its analysis "
            "is; expected a network of one forecast without a spread"
        )


def _made(network: Any) -> AnalysisNetwork:
    """The network itself, or a network with initial weights from a description."""
    if isinstance(network, AnalysisNetwork):
        return network
    if not isinstance(network, Mapping) or not isinstance(network.get("parameters", {}), Mapping):
        raise TypeError(
            f"network={shown(network)}: expected an architecture such as xdan.ResidualCNN(), or its name and its "
            "parameters as {'name': 'residual-cnn', 'parameters': {}}"
        )
    return network_by_name(network.get("name", ""), network.get("parameters", {}))
