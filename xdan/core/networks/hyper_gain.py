"""A Kalman gain with a background covariance that a network computes from the forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..observing import ObservingSystem
from ..roots import cholesky_or_nan, cholesky_solved
from ..spaces import StateSpace
from .base import AnalysisNetwork, Scale
from .linear_in_zeta import LinearInZeta
from .registry import register_network


@register_network
class HyperGain(AnalysisNetwork):
    """x_a = x_f + K (y - H(x_f)), K = B H^T (H B H^T + R)^-1. A residual CNN computes B from the forecast.

    B is symmetric and positive semi-definite. It has one of the forms of `LinearInZeta`, which computes P_a where this
    network computes B. H and R are not learned. The increment therefore never exceeds what B and R allow, and a trained
    network can use observations at other sites or with other errors. Each analysis forms matrices (N, N) and solves a
    system of size P, so states should be small.

    Parameters
    ----------
    form : {"localised", "low-rank", "hypernetwork"}
        "localised": B = rho o (X X^T), where X, of shape (N, rank), comes from the CNN, and rho is the taper of Gaspari
        and Cohn. "low-rank": B = X X^T. "hypernetwork": B = W^T W, where W is a convolution of `rank` channels. The CNN
        gives the weights of W at each site.
    rank : int
        Number of columns of X, or of channels of W.
    radius : float
        For "localised": radius of the taper, in sites. The taper is 5/24 there and zero from twice this distance on.
        Off the ring, a site is the median distance of a point to its nearest neighbour.
    width : int
        For "hypernetwork": the odd number of sites that W spans along each dim.
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
        If a size is not an integer, the radius is not a number, or the form or activation is not a string.
    ValueError
        If a form is unknown, a size is out of bounds, or the states have fewer sites than the taper or W spans.

    References
    ----------
    A learned gain: Bach et al. (2024), arXiv:2410.10523, Sect. 9.4.1 and 9.4.2. The forms: Bocquet et al.
    (2024), doi:10.1063/5.0230837, App. B.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> network = xdan.HyperGain("low-rank", rank=4, filters=4, blocks=1)
    >>> net = ds.dan.train(network, steps=2, window=4, batch=2, progress=False)
    >>> dict(ds.dan.cycle(net).analysis.sizes)
    {'trajectory': 4, 'time': 20, 'x': 8}
    """

    name: ClassVar[str] = "hyper-gain"

    def __init__(
        self,
        form: str = "localised",
        rank: int = 16,
        radius: float = 5.0,
        width: int = 9,
        filters: int = 24,
        blocks: int = 6,
        sub_blocks: int = 1,
        kernel: int = 5,
        activation: str = "gated",
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        made = LinearInZeta(
            form, rank, radius, width, filters, blocks, sub_blocks, kernel, activation, space=self.space
        )
        self.form, self.rank, self.radius, self.width = made.form, made.rank, made.radius, made.width
        self.filters, self.blocks, self.sub_blocks = made.filters, made.blocks, made.sub_blocks
        self.kernel, self.activation = made.kernel, made.activation
        self.maker = made

    @property
    def cycled_by(self) -> str:
        """Name of the method that knows H and R."""
        return "kalman-gain"

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states that the network of B does not take."""
        self.maker.check_state(dims, shape)

    @torch.no_grad()
    def normalise(self, mean: Scale, std: Scale, error_std: Scale) -> None:
        """Set the normalisation, also that of the network of B."""
        super().normalise(mean, std, error_std)
        self.maker.normalise(mean, std, error_std)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of the network of B."""
        return self.maker.hidden_matrices()

    def background(self, x: Tensor) -> Tensor:
        """B at forecasts (B, N), shape (B, N, N)."""
        return self.maker.covariance(x)[0]

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis if every component is observed with the typical error. There is no memory.

        The method that cycles the network calls `assimilate`, which knows what is observed.
        """
        error_std = self.per_component(self.error_std)
        observing = ObservingSystem(error_std)
        every = torch.ones_like(zeta, dtype=torch.bool)
        return self.assimilate(x, zeta * error_std**2, every, observing), None

    def assimilate(self, x: Tensor, innovation: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """One analysis from an innovation (B, P), of which entries with `observed` are read; shape of x (B, N)."""
        rows, square = observing.observed_covariances(x, self.background(x), observed)
        matrix = square + observing.covariance_of(observed)
        d = torch.where(observed, innovation, torch.zeros_like(innovation))
        solved = cholesky_solved(d[..., None], cholesky_or_nan(matrix))
        return x + self.conserving((rows.mT @ solved)[..., 0])
