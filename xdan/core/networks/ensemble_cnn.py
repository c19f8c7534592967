"""A residual CNN for a whole ensemble: its input and output are members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import switch
from ..spaces import StateSpace
from .base import AnalysisNetwork
from .heads import saturate, soften
from .layers import trunk_sizes
from .registry import register_network
from .sizes import size
from .trunk import ResidualTrunk


@register_network
class EnsembleCNN(AnalysisNetwork):
    """E_a = E_f + alpha zeta + a_theta(E_f, zeta), where zeta is the projected innovation of the members' mean.

    Parameters
    ----------
    members : int
        Number N_e of members. States have shape (B, N_e, N).
    exchangeable : bool
        False: one CNN with N_e + 1 channels in and N_e out, as in the slides; each member has a fixed channel. True:
        one CNN for all members. It reads a member's anomaly, the mean, the spread and zeta. Then the members may be
        reordered, and their number may change.
    filters : int
        Number N_f of channels of the hidden layers.
    blocks, sub_blocks : int
        N_b residual blocks, each with N_sb activated convolutions.
    kernel : int
        Odd width f of every convolution, along each dim of the grid that has more than one site.
    activation : {"gated", "silu", "linear"}
        Function between convolutions. "gated": the convolution of a sub-block has 2 N_f channels; one half is
        multiplied by the tanh of the other half.
    space : StateSpace, or its JSON, optional
        The fields of the states, which become channels on one grid. By default one field on a ring of any length.

    Raises
    ------
    TypeError
        If a size is not an integer, an activation is not a string, or `exchangeable` is not True or False.
    ValueError
        If a size is out of bounds, or the states have another number of members.

    References
    ----------
    Bocquet et al., slides on data assimilation networks, Eq. 2a and 2b.

    Examples
    --------
    >>> import torch, xdan
    >>> net = xdan.EnsembleCNN(members=5, filters=4, blocks=1)
    >>> analysis, memory = net(torch.zeros(2, 5, 40), torch.zeros(2, 40))
    >>> tuple(analysis.shape)
    (2, 5, 40)
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
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        self.members, self.exchangeable = size("members", members), switch("exchangeable", exchangeable)
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        inputs, outputs = (4, 1) if self.exchangeable else (self.members + 1, self.members)
        channels = self.arrangement.channels
        inputs = inputs * channels + self._fixed_channels
        self.cnn = ResidualTrunk(inputs, outputs * channels, sizes, arrangement=self.arrangement)
        self.relative_alpha = nn.Parameter(torch.tensor(0.4, dtype=torch.float32))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weights of every convolution but the last."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis members, shape of x (B, N_e, N), from zeta (B, N). There is no memory."""
        if not self.exchangeable and x.shape[1] != self.members:
            raise ValueError(
                f"the network was made for {self.members} members, the state has {x.shape[1]}: expected as many "
                "members; train a network for that number, or one with exchangeable=True"
            )
        std, error_std = map(self.per_component, (self.state_std, self.error_std))
        innovation = zeta * error_std
        read = self._exchangeable if self.exchangeable else self._placed
        step = saturate(read(x, innovation), std, error_std)
        step = step + (self.relative_alpha * innovation)[:, None]
        if self._conserved:
            return x + self.conserving(error_std * step), None
        return torch.addcmul(x, error_std, step), None

    def _placed(self, x: Tensor, innovation: Tensor) -> Tensor:
        states = (x - self.per_component(self.state_mean)) / self.per_component(self.state_std)
        read = soften(torch.cat([states, innovation[:, None]], 1))
        return self._convolved(read.transpose(0, 1)).transpose(0, 1)

    def _convolved(self, read: Tensor) -> Tensor:
        """Output of the CNN for K flat states (K, B, N), as flat states."""
        features = self.arrangement.to_channels(read)
        fixed = self._fixed(features)
        return self.arrangement.from_channels(self.cnn(torch.cat([features, *fixed]) if fixed else features))

    def _exchangeable(self, x: Tensor, innovation: Tensor) -> Tensor:
        b, m, n = x.shape
        mean = x.mean(1, keepdim=True)
        anomaly = (x - mean) / self.per_component(self.error_std)
        # Second moment of the anomalies: it is finite, and smooth where members coincide.
        spread = (anomaly.square().mean(1, keepdim=True) + 1e-6).sqrt()
        climate, std = self.per_component(self.state_mean), self.per_component(self.state_std)
        features = [anomaly, ((mean - climate) / std), spread, innovation[:, None]]
        stacked = torch.stack([f.expand(b, m, n) for f in features])
        return self._convolved(soften(stacked).flatten(1, 2))[0].reshape(b, m, n)
