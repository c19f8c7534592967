"""A CNN that gives the spread of another network's analysis; it varies in space and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..spaces import StateSpace
from .base import AnalysisNetwork
from .gaussian import TYPICAL, GaussianNetwork, Mean
from .heads import soften
from .layers import trunk_sizes
from .neighbours import root_places
from .registry import register_network
from .sizes import odd, size
from .trunk import ResidualTrunk

_DOMINANT = 0.95  # largest sum of a row's entries beside the diagonal of the root, in units of the diagonal entry
_WIDE = 5.0  # largest change of the logarithm of the spread from its start
_QUIET = 0.02  # size of the trunk's output at the start, so that the spread begins nearly constant


@register_network
class GaussianCNN(GaussianNetwork):
    """Mean and spread, x ~ N(x_a, L L^T): x_a is a network's analysis, and a second CNN gives the sparse root L.

    Row n of the root has the spread s_n of component n, and weights r_nk of the components k near it::

        L_nk = s_n r_nk / (sum_k r_nk^2)^(1/2),   r_nn = 1,   sum_{k != n} |r_nk| < 0.95,

    L is multiplied by one factor for each field, `spread_factor`, which is 1 unless `xdan.calibrate` sets it.

    The diagonal dominates each row. L is therefore regular and P_a = L L^T is positive definite for any weights. The
    diagonal of P_a is s_n^2. Correlations reach twice as far as a row does. The CNN reads the forecast, the projected
    innovation, the increment x_a - x_f, and the memory of the analysis if there is one.

    Parameters
    ----------
    network : AnalysisNetwork, or mapping of its "name" and "parameters", optional
        The network of x_a; by default a `ResidualCNN`.
    mean : {"trained", "frozen"}
        Whether training changes the weights of this network. With "frozen" the analyses stay as they are: training
        learns the spread alone, which takes minutes.
    filters : int
        Number N_f of channels of the hidden layers of the CNN that gives the spread.
    blocks, sub_blocks : int
        N_b residual blocks of this CNN, each with N_sb activated convolutions.
    kernel : int
        Odd width f of its convolutions, along each dim of the grid that has more than one site.
    activation : {"gated", "silu", "linear"}
        Function between convolutions. "gated": the convolution of a sub-block has 2 N_f channels; one half is
        multiplied by the tanh of the other half.
    diagonals : int
        An odd number. A row of L has the component and diagonals // 2 neighbours on each side, along each dim of a
        grid, and the same point of other fields. With 1, the errors of components are independent.
    memory : int
        Number of latent channels of the default `network`; 0 for none.
    space : StateSpace, or its JSON, optional
        Fields of the default `network`. By default one field on a ring of any length.

    Raises
    ------
    TypeError
        If a size is not an integer, an activation is not a string, or `network` does not describe a network.
    ValueError
        If a size is out of bounds, kernel or diagonals are even, the activation or `mean` is unknown, `memory` or
        `space` are combined with `network`, or the network has members, a filter or a spread already.

    References
    ----------
    Nix and Weigend (1994), doi:10.1109/ICNN.1994.374138: mean and variance from one network.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> network = xdan.GaussianCNN(xdan.ResidualCNN(filters=4, blocks=1), filters=4, blocks=1)
    >>> net = xdan.train(ds, network, objective="log-score", steps=2, window=4, batch=2, progress=False)
    >>> bool((ds.dan.cycle(net).spread > 0).all())
    True
    """

    name: ClassVar[str] = "gaussian-cnn"
    _places: Tensor
    _distinct: Tensor
    spread_factor: Tensor
    _on_ring: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        network: AnalysisNetwork | Mapping[str, Any] | None = None,
        mean: Mean = "trained",
        filters: int = 24,
        blocks: int = 3,
        sub_blocks: int = 1,
        kernel: int = 5,
        diagonals: int = 5,
        activation: str = "gated",
        memory: int = 0,
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        memory = size("memory", memory, 0)
        if network is None:
            parameters = {"memory": memory} if space is None else {"memory": memory, "space": space}
            network = {"name": "residual-cnn", "parameters": parameters}
        elif memory or space is not None:
            raise ValueError(
                f"memory={memory} and space= are those of the default network: expected neither beside network=, whose "
                "memory and space are used"
            )
        super().__init__(network, mean)
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        self.diagonals = odd("diagonals", diagonals)
        places, distinct = root_places(self.space, self.diagonals, 0 if self.space is None else self.space.size)
        self.register_buffer("_places", places, persistent=False)
        self.register_buffer("_distinct", distinct, persistent=False)
        self.register_buffer("spread_factor", torch.ones(self._scale_shape, dtype=torch.float32))
        channels, rows = self.arrangement.channels, places.shape[1]
        inputs = (3 + self.memory) * channels + self._fixed_channels
        self.cnn = ResidualTrunk(inputs, rows * channels, sizes, quiet=_QUIET, arrangement=self.arrangement)

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters. Memory and space are among the centre's parameters."""
        names = ("mean", "filters", "blocks", "sub_blocks", "kernel", "diagonals", "activation")
        return {"network": self.described_centre, **{name: getattr(self, name) for name in names}}

    def made_for(self, space: StateSpace) -> AnalysisNetwork:
        """Return this architecture, around a centre for the fields of the space."""
        centre = self.centre.made_for(space)
        if centre is self.centre:
            return self
        return type(self)(**{**self.config(), "network": centre})

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last of the CNN that gives the spread; also those of the centre, if trained."""
        return [*self.cnn.hidden_matrices(), *super().hidden_matrices()]

    def root_places(self, size: int) -> Tensor:
        """For each component, itself and the components near it, int64 of shape (N, L). `size` is N."""
        return self._columns(size)[0]

    def _columns(self, size: int) -> tuple[Tensor, Tensor]:
        """`root_places`, and which of them are used."""
        if self.space is not None:
            return self._places, self._distinct
        known, device = self._on_ring, self.state_mean.device
        if known is None or len(known[0]) != size or known[0].device != device:
            places, distinct = root_places(None, self.diagonals, size)
            known = self._on_ring = places.to(device), distinct.to(device)
        return known

    def root(self, x: Tensor, zeta: Tensor, analysis: Tensor, memory: Tensor | None) -> Tensor:
        """Entries of the root, (B, N, L)."""
        mean, std, error_std = map(self.per_component, (self.state_mean, self.state_std, self.error_std))
        read = torch.stack([(x - mean) / std, zeta * error_std, (analysis - x) / error_std])
        features = [self.arrangement.to_channels(soften(read))]
        if memory is not None:
            features.append(self.arrangement.to_channels(memory.transpose(0, 1)))
        out = self.cnn(torch.cat([*features, *self._fixed(features[0])]))
        log_spread, *sides = self.arrangement.from_channels(out)  # each (B, N)
        unit = TYPICAL * error_std * self.per_component(self.spread_factor)
        spread = unit * (_WIDE * (log_spread / _WIDE).tanh()).exp()
        row = [torch.ones_like(spread)]
        if sides:
            weights = torch.stack(sides, -1) * self._columns(x.shape[1])[1][:, 1:]
            weights = _DOMINANT * weights / (1.0 + weights.abs().sum(-1, keepdim=True))
            row += weights.unbind(-1)
        ratios = torch.stack(row, -1)
        entries: Tensor = spread[..., None] * ratios / ratios.square().sum(-1, keepdim=True).sqrt()
        return entries
