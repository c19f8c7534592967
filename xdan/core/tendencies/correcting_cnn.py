"""An analysis network that also corrects the forecast model. Both are trained together through the cycles."""

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

# Unit of g, in standard deviations of the state per model time. Training steps have this size. With a smaller unit, the
# analysis learns to compensate for the model's error long before g has learned it.
_UNIT = 10.0


@register_network
class CorrectingCNN(AnalysisNetwork):
    """A `ResidualCNN` for the analysis, and a `LocalPolynomial` g for the forecast, dx/dt = f(x) + g(x).

    The corrected model makes every forecast, in training and in use. The objective belongs to the cycles, so g becomes
    what is best for this objective. g begins at zero. `Network.corrected(model)` gives the corrected model alone, for
    use with other methods.

    Parameters
    ----------
    filters, blocks, sub_blocks, kernel, memory, activation, space
        See `ResidualCNN`.
    correction_kernel : int
        Odd width of the window around each place that g reads.
    correction_degree : int
        Degree of g: 0 for a constant in each field, 1 for a linear form, 2 for products too.

    Raises
    ------
    TypeError, ValueError
        See `ResidualCNN` and `LocalPolynomial`.

    References
    ----------
    Farchi et al. (2021), doi:10.1002/qj.4116: corrections that are learned online. Bocquet et al. (2024),
    doi:10.1063/5.0230837: the network.

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
        """Set the normalisation, also that of g: its unit is ten standard deviations of the state per model time."""
        super().normalise(mean, std, error_std)
        self.cnn.normalise(mean, std, error_std)
        self.correction.normalise(self.state_mean, self.state_std, _UNIT * self.state_std)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weights of the analysis."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis of `ResidualCNN`."""
        analysis: tuple[Tensor, Tensor | None] = self.cnn(x, zeta, memory)
        return analysis
