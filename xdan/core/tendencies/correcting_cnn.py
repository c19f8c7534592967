"""An analysis network that corrects the forecast model too: both are trained through the cycles together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ..checks import integer
from ..networks.base import AnalysisNetwork, Scale
from ..networks.registry import register_network
from ..networks.residual_cnn import ResidualCNN
from ..networks.sizes import odd
from ..spaces import StateSpace
from .base import TendencyNetwork
from .local_polynomial import LocalPolynomial

# Deviations of the state per model time in which g is measured. With a smaller unit the analysis learns to make up for
# the model's error long before g, whose steps are of this size, has found it.
_UNIT = 10.0


@register_network
class CorrectingCNN(AnalysisNetwork):
    """A `ResidualCNN` for the analysis, and a `LocalPolynomial` g for the forecast, dx/dt = f(x) + g(x).

    Every forecast is made by the corrected model, in training and in use. The objective is that of the cycles, so that
    g becomes what serves the objective best; it begins at zero. `Network.corrected(model)` gives the corrected model by
    itself, for other methods.

    Parameters
    ----------
    filters, blocks, sub_blocks, kernel, memory, activation, space
        As of `ResidualCNN`.
    correction_kernel : int
        Odd width of the window that g sees around every place.
    correction_degree : int
        0 for a constant of each field, 1 for a linear form, 2 for products too.

    Raises
    ------
    TypeError, ValueError
        As `ResidualCNN` and `LocalPolynomial`.

    References
    ----------
    Farchi et al. (2021), doi:10.1002/qj.4116, for corrections learned online; Bocquet et al. (2024),
    doi:10.1063/5.0230837, for the network.

    Examples
    --------
    >>> import xdan
    >>> net = xdan.CorrectingCNN(filters=8, correction_kernel=5, correction_degree=1)
    >>> net.name, net.correction_degree
    ('correcting-cnn', 1)
    """

    name: ClassVar[str] = "correcting-cnn"

    def __init__(
        self,
        filters: int = 24,
        blocks: int = 6,
        sub_blocks: int = 1,
        kernel: int = 5,
        memory: int = 0,
        activation: str = "gated",
        correction_kernel: int = 5,
        correction_degree: int = 1,
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        self.cnn = ResidualCNN(filters, blocks, sub_blocks, kernel, memory, activation, space=space)
        self.filters, self.blocks, self.sub_blocks = self.cnn.filters, self.cnn.blocks, self.cnn.sub_blocks
        self.kernel, self.memory, self.activation = self.cnn.kernel, self.cnn.memory, self.cnn.activation
        self.correction_kernel = odd("correction_kernel", correction_kernel)
        self.correction_degree = integer("correction_degree", correction_degree, least=0)
        self.correction = LocalPolynomial(self.correction_kernel, self.correction_degree, space)

    def model_correction(self) -> TendencyNetwork:
        """The polynomial g."""
        return self.correction

    def normalise(self, mean: Scale, std: Scale, error_std: Scale) -> None:
        """Set the normalisation of both; g is in units of ten deviations of the state per model time."""
        super().normalise(mean, std, error_std)
        self.cnn.normalise(mean, std, error_std)
        self.correction.normalise(self.state_mean, self.state_std, _UNIT * self.state_std)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of the analysis."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis of `ResidualCNN`."""
        analysis: tuple[Tensor, Tensor | None] = self.cnn(x, zeta, memory)
        return analysis
