"""A Kalman gain whose forecast covariance a network makes from the forecast."""

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
    """x_a = x_f + K (y - H(x_f)), K = B H^T (H B H^T + R)^-1, B made by a residual CNN of the forecast.

    B is symmetric and positive semi-definite, in one of the forms of `LinearInZeta`, which makes P_a of the forecast
    where this network makes B. Here H and R are not learned: the increment never goes beyond what B and R allow, and a
    trained network takes observations at other sites, or with other errors. Matrices (N, N) are formed and (P, P)
    solved with at every analysis: for small states.

    Parameters
    ----------
    form : {"localised", "low-rank", "hypernetwork"}
        "localised": B = rho o (X X^T), with X of shape (N, rank) from the CNN, and rho the taper of Gaspari and Cohn.
        "low-rank": B = X X^T. "hypernetwork": B = W^T W, with W a convolution of `rank` channels whose weights the CNN
        gives for every site.
    rank : int
        Columns of X, or channels of W.
    radius : float
        Of the taper, in sites: it is 5/24 there and zero from twice it on. Only where localised. Off the ring a site is
        the median distance of a point to the nearest other one.
    width : int
        Odd number of sites that W spans along each dim. Only of the hypernetwork.
    filters : int
        N_f, channels of the hidden layers.
    blocks, sub_blocks : int
        N_b residual blocks of N_sb activated convolutions each.
    kernel : int
        Odd width f of every convolution, along each dim of the grid that has more than one site.
    activation : {"gated", "silu", "linear"}
        "gated": each sub-block's convolution has 2 N_f channels, one half multiplied with the tanh of the other.
    space : StateSpace, or its JSON, optional
        The fields of the states, joined on one grid as channels. One field on a ring of any length by default.

    Raises
    ------
    TypeError
        For sizes that are no integers, a radius that is no number, or a form or activation that is no string.
    ValueError
        For an unknown form or sizes out of bounds; on states with fewer sites than the taper or W spans.

    References
    ----------
    A gain that is learned: Bach et al. (2024), arXiv:2410.10523, Sect. 9.4.1 and 9.4.2. The forms: Bocquet et al.
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
        """The method that knows H and R."""
        return "kalman-gain"

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse what the network that makes B does not take."""
        self.maker.check_state(dims, shape)

    @torch.no_grad()
    def normalise(self, mean: Scale, std: Scale, error_std: Scale) -> None:
        """Set the normalisation of both."""
        super().normalise(mean, std, error_std)
        self.maker.normalise(mean, std, error_std)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of the network that makes B."""
        return self.maker.hidden_matrices()

    def background(self, x: Tensor) -> Tensor:
        """B at forecasts (B, N), shape (B, N, N)."""
        return self.maker.covariance(x)[0]

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis where every component is observed with the typical error; no memory.

        The method that cycles the network calls `assimilate`, which knows what is observed.
        """
        error_std = self.per_component(self.error_std)
        observing = ObservingSystem(error_std)
        every = torch.ones_like(zeta, dtype=torch.bool)
        return self.assimilate(x, zeta * error_std**2, every, observing), None

    def assimilate(self, x: Tensor, innovation: Tensor, observed: Tensor, observing: ObservingSystem) -> Tensor:
        """One analysis from an innovation (B, P), read where observed; shape of x (B, N)."""
        rows, square = observing.observed_covariances(x, self.background(x), observed)
        matrix = square + observing.covariance_of(observed)
        d = torch.where(observed, innovation, torch.zeros_like(innovation))
        solved = cholesky_solved(d[..., None], cholesky_or_nan(matrix))
        return x + self.conserving((rows.mT @ solved)[..., 0])
