"""A residual network that corrects the analysis of a Kalman filter of one trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from ..checks import check_one_form, real
from ..spaces import StateSpace
from .base import AnalysisNetwork
from .heads import renew, saturate, soften
from .layers import trunk_sizes
from .neighbours import companions
from .registry import register_network
from .sizes import odd, size
from .trunk import ResidualTrunk

_TYPICAL = 0.2  # typical analysis error, in observation errors: the size of corrections and of roots of P_a
_NOTHING = (("passes", 1), ("radius", None), ("columns", None), ("inflation", 1.0))  # values without an effect
_QUIET = 0.01  # size of the correction at the start, so that the network begins as the filter


@register_network
class KalmanCNN(AnalysisNetwork):
    """Residual CNN that corrects the analysis of a second-order Kalman filter.

    The forecast carries the covariance P_a of its error: P_f = M P_a M^T + c2 Q2(P_a), as in the method
    "second-order-kalman", and K follows from P_f and R. The analysis is

        x_a = x_f + K d + a_theta(x_f, zeta, K d, P_a[, m]),   d = y - H x_f,

    The network reads the covariances in P_a of each component with its neighbours, which on a ring are the central
    diagonals. At the start its correction is nearly zero. A cycle costs 1 + N runs of the tangent linear model, for a
    state of N components, and products of matrices (N, N). No gradient goes through P or K.

    With a lag L, the network corrects the state L intervals earlier, as the method "iterated-kalman-smoother" does with
    one pass. Let M be the tangent linear model from that time to the present. The filter's increment is then
    P (H M)^T (H M P (H M)^T + R)^-1 d, and zeta is P (H M)^T R^-1 d. The model runs the corrected state to the present.
    A cycle costs (L + 1) (1 + N) runs of the tangent linear model, and L runs of the model.

    Gains are derivatives of this analysis with respect to zeta, in which K d = P_a zeta (`GuidedAnalysis`). A carried
    covariance comes from a run, `ds.dan.gain(network, run=ds.dan.cycle(network, members=True))`, and counts as
    constant. A rebuilt covariance (`past`) is a function of the state; its derivative is part of the marginal gain.
    With a lag, gains are refused.

    Parameters
    ----------
    filters : int
        Number N_f of channels of the hidden layers.
    blocks, sub_blocks : int
        N_b residual blocks, each with N_sb activated convolutions.
    kernel : int
        Odd width f of every convolution.
    memory : int
        Number of latent channels, as in `ResidualCNN`; 0 for none.
    diagonals : int
        Number of diagonals of P_a that the network reads, an odd number. On a grid with two dims: diagonals along each
        dim. With several fields on one geometry, also the covariances between the fields at a point.
    c2 : float
        Factor c2 of the second-order term.
    lag : int
        Number L of intervals back at which the network corrects the state; 0 for the present.
    passes : int
        With a lag: largest number of Gauss-Newton passes before the network's correction, as in
        "iterated-kalman-smoother". Each pass costs the same number of runs again. Lorenz-96 with intervals of 0.4 and
        more needs several.
    past : int
        0: the covariance is carried from cycle to cycle. Otherwise nothing is carried: at each analysis the model runs
        backward from the forecast through `past` intervals, and the filter runs forward through them from 0.03 R. About
        36 intervals of 0.05 are enough for Lorenz-96. A cycle costs `past` times more. Without latent channels, the
        analysis is then a function of the forecast and the observations alone.
    radius : float, optional
        For large states: the covariance is kept in patches, as in "second-order-kalman". On a ring, a cycle costs about
        2 radius + 1 runs of the tangent linear model, whatever the size of the ring. 12 is enough for Lorenz-96. By
        default the covariance is one matrix. `Network.with_parameters(radius=12)` sets it for a trained network.
    columns : int, optional
        For large states in which errors grow in few directions: the covariance is kept as this number of columns of a
        root, as in "second-order-kalman". A cycle costs one run of the tangent linear model for each column. By default
        there are no columns.
    inflation : float
        Factor of the standard deviations of P_a before the next forecast, as in "second-order-kalman". With columns it
        should be above 1, such as 1.02, because the columns do not represent errors outside their span.
    activation : {"gated", "silu", "linear"}
        Function between convolutions; see `ResidualCNN`.
    space : StateSpace, or its JSON, optional
        The fields that the network is for; see `ResidualCNN`. By default one field on a ring of any length.

    Raises
    ------
    TypeError
        If a size is not an integer, or an activation is not a string.
    ValueError
        If a size is out of bounds, the kernel or the diagonals are even, the activation is unknown, c2 is negative, lag
        and past are both positive, there are several passes without a lag, or the fields cannot be joined.

    Examples
    --------
    >>> import xdan
    >>> net = xdan.KalmanCNN(filters=8, memory=2, diagonals=5)
    >>> net.memory, net.guides  # K d and five diagonals
    (2, 6)
    """

    name: ClassVar[str] = "kalman-cnn"
    _companions: Tensor

    def __init__(
        self,
        filters: int = 24,
        blocks: int = 4,
        sub_blocks: int = 1,
        kernel: int = 5,
        memory: int = 8,
        diagonals: int = 9,
        c2: float = 8.0,
        lag: int = 0,
        passes: int = 1,
        past: int = 0,
        radius: float | None = None,
        columns: int | None = None,
        inflation: float = 1.0,
        activation: str = "gated",
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        self.memory, self.diagonals = size("memory", memory, 0), odd("diagonals", diagonals)
        self.second_order = self.c2 = real("c2", c2, least=0.0)
        self.inflation = real("inflation", inflation, above=0.0)
        if past and (self.inflation != 1.0 or columns is not None):
            raise ValueError(
                f"past={past}, inflation={inflation}, columns={columns}: a rebuilt covariance is one matrix, and "
                "is not inflated; expected inflation=1 and columns=None, or past=0"
            )
        self.lag, self.past = size("lag", lag, 0), size("past", past, 0)
        self.passes = size("passes", passes)
        if self.passes > 1 and not self.lag:
            raise ValueError(f"passes={self.passes}, lag=0: expected a lag, because passes need a window, or passes=1")
        self.radius = None if radius is None else real("radius", radius, above=0.0)
        self.columns = None if columns is None else size("columns", columns)
        check_one_form(radius, columns)
        if self.lag and (self.radius is not None or self.columns is not None):
            raise ValueError(
                f"radius={radius}, columns={columns}, lag={lag}: the covariance of a window is one matrix; expected "
                "lag=0, or neither of the others"
            )
        if self.lag and self.past:
            raise ValueError(f"lag={self.lag}, past={self.past}: expected one of them to be 0")
        near = torch.zeros(0, 0, dtype=torch.int64) if self.space is None else companions(self.space, self.diagonals)
        self.register_buffer("_companions", near, persistent=False)
        self.guides = 1 + (self.diagonals if self.space is None else near.shape[1])
        channels = self.arrangement.channels
        inputs = (2 + self.guides + self.memory) * channels + self._fixed_channels
        outputs = (1 + 2 * self.memory) * channels
        self.cnn = ResidualTrunk(inputs, outputs, sizes, quiet=_QUIET, arrangement=self.arrangement)

    @property
    def patch_radius(self) -> float | None:  # type: ignore[override]
        """The parameter `radius`."""
        return self.radius

    @property
    def covariance_columns(self) -> int | None:  # type: ignore[override]
        """The parameter `columns`."""
        return self.columns

    def companions(self, size: int) -> Tensor:
        """For each component, those whose covariance with it the network reads, int64 of shape (N, L); `size` is N."""
        if self.space is not None:
            return self._companions
        half, device = self.diagonals // 2, self._companions.device
        return (torch.arange(size, device=device)[:, None] + torch.arange(-half, half + 1, device=device)) % size

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters. Newer parameters are left out where they have no effect, as old networks lack them."""
        values = super().config()
        return {name: value for name, value in values.items() if (name, value) not in _NOTHING}

    def guide(self, increment: Tensor, covariance: Tensor) -> Tensor:
        """The filter's results as channels, (B, guides, N): K d (B, N), and the network's part of P_a (B, N, N)."""
        sites = torch.arange(increment.shape[1], device=increment.device)
        return self.guide_by(increment, covariance[:, sites[:, None], self.companions(len(sites))])

    def guide_by(self, increment: Tensor, covariances: Tensor) -> Tensor:
        """`guide` from the covariances of `companions` alone, (B, N, L)."""
        error_std = self.per_component(self.error_std)
        if error_std.ndim == 0:
            seen = covariances / (_TYPICAL * error_std) ** 2
        else:
            near = error_std[self.companions(len(error_std))]
            seen = covariances / (_TYPICAL * error_std[:, None]) / (_TYPICAL * near)
        return torch.cat([(increment / error_std)[:, None], seen.mT], 1)

    def hidden_matrices(self) -> list[torch.nn.Parameter]:
        """Every convolution but the last, as (out, taps * in) matrices."""
        return self.cnn.hidden_matrices()

    def forward(
        self, x: Tensor, zeta: Tensor, memory: Tensor | None = None, guides: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory. `guides` are the channels of `guide`; zero by default."""
        if guides is None:
            guides = x.new_zeros(len(x), self.guides, x.shape[1])
        if self.memory and memory is None:
            memory = x.new_zeros(len(x), self.memory, x.shape[1])
        mean, std, error_std = map(self.per_component, (self.state_mean, self.state_std, self.error_std))
        scaled = torch.stack([(x - mean) / std, zeta * error_std])
        arrangement, channels = self.arrangement, self.arrangement.channels
        features = [arrangement.to_channels(soften(torch.cat([scaled, guides.transpose(0, 1)])))]
        if memory is not None:
            features.append(arrangement.to_channels(memory.transpose(0, 1)))
        out = self.cnn(torch.cat([*features, *self._fixed(features[0])]))
        step = saturate(_TYPICAL * arrangement.from_channels(out[:channels])[0], std, error_std)
        analysis = x + self.conserving(error_std * (guides[:, 0] + step))
        if memory is None:
            return analysis, None
        gate, candidate = arrangement.from_channels(out[channels:]).transpose(0, 1).chunk(2, 1)
        return analysis, renew(memory, gate, candidate)

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> NoReturn:
        """Refused: it needs P_a of the filter. `GuidedAnalysis` has it."""
        self._refuse()

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> NoReturn:
        """Refused: it needs P_a of the filter. `GuidedAnalysis` has it."""
        self._refuse()

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> NoReturn:
        """Refused: it needs P_a of the filter. `GuidedAnalysis` has it."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"{self._title} reads P_a of the filter beside it, which the module does not know: expected "
            "ds.dan.gain(network), which computes P_a or reads it from a run, or a GuidedAnalysis of the module and P_a"
        )
