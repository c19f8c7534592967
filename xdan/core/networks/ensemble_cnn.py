"""A residual CNN of a whole ensemble: members in, members out."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..checks import switch
from .base import AnalysisNetwork
from .heads import saturate, soften
from .layers import trunk_sizes
from .registry import register_network
from .sizes import size
from .trunk import ResidualTrunk


@register_network
class EnsembleCNN(AnalysisNetwork):
    """E_a = E_f + alpha zeta + a_theta(E_f, zeta), zeta the projected innovation of the members' mean.

    Parameters
    ----------
    members : int
        N_e. States have shape (B, N_e, N).
    exchangeable : bool
        False: one CNN with N_e + 1 channels in and N_e out, as in the slides: members have places. True: the same CNN
        for every member, which reads that member's anomaly, the mean, the spread and zeta; members may be reordered,
        and their number may change.
    filters, blocks, sub_blocks, kernel, activation
        As for `ResidualCNN`.

    Raises
    ------
    TypeError
        For sizes that are no integers, an activation that is no string, or `exchangeable` other than True or False.
    ValueError
        For sizes out of bounds, or states with another number of members.

    References
    ----------
    Bocquet et al., slides on data assimilation networks, Eq. 2a and 2b.
    """

    name: ClassVar[str] = "ensemble-cnn"
    ensemble: ClassVar[bool] = True

    def __init__(
        self,
        members: int = 10,
        exchangeable: bool = False,
        filters: int = 24,
        blocks: int = 6,
        sub_blocks: int = 1,
        kernel: int = 5,
        activation: str = "gated",
    ) -> None:
        super().__init__()
        self.members, self.exchangeable = size("members", members), switch("exchangeable", exchangeable)
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        inputs, outputs = (4, 1) if self.exchangeable else (self.members + 1, self.members)
        self.cnn = ResidualTrunk(inputs, outputs, sizes)
        self.relative_alpha = nn.Parameter(torch.tensor(0.4, dtype=torch.float32))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis members, shape of x (B, N_e, N), from zeta (B, N); no memory."""
        if not self.exchangeable and x.shape[1] != self.members:
            raise ValueError(
                f"the network was made for {self.members} members, the state has {x.shape[1]}; train one for that "
                "number, or one with exchangeable=True"
            )
        innovation = zeta * self.error_std
        read = self._exchangeable if self.exchangeable else self._placed
        step = saturate(read(x, innovation), self.state_std, self.error_std)
        step = step + (self.relative_alpha * innovation)[:, None]
        return torch.addcmul(x, self.error_std, step), None

    def _placed(self, x: Tensor, innovation: Tensor) -> Tensor:
        states = (x - self.state_mean) / self.state_std
        out: Tensor = self.cnn(soften(torch.cat([states, innovation[:, None]], 1)).permute(1, 2, 0))
        return out.permute(2, 0, 1)

    def _exchangeable(self, x: Tensor, innovation: Tensor) -> Tensor:
        b, m, n = x.shape
        mean = x.mean(1, keepdim=True)
        anomaly = (x - mean) / self.error_std
        # Anomalies' second moment about the mean: finite, and smooth where members coincide.
        spread = (anomaly.square().mean(1, keepdim=True) + 1e-6).sqrt()
        features = [anomaly, ((mean - self.state_mean) / self.state_std), spread, innovation[:, None]]
        stacked = torch.stack([f.expand(b, m, n) for f in features])
        out: Tensor = self.cnn(soften(stacked).flatten(1, 2).mT)
        return out[0].T.reshape(b, m, n)
