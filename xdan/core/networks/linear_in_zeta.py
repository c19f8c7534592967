"""The analysis P_a(x_f) zeta, with a network for the map from the forecast to the covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import choice, real
from ..tangent import along, unit_direction
from ..tapers import gaspari_cohn
from .base import AnalysisNetwork, outdated
from .heads import renew, soften
from .layers import trunk_sizes
from .registry import register_network
from .sizes import LARGEST, odd, size
from .trunk import ResidualTrunk

FORMS = ("localised", "low-rank", "hypernetwork")


@register_network
class LinearInZeta(AnalysisNetwork):
    """x_a = x_f + P_a(x_f) zeta, P_a symmetric and positive semi-definite, never formed as a matrix.

    A circular residual CNN reads the forecast. What it gives at every site, shortened to the climatological deviation
    at most, is made into P_a in one of three forms.

    Parameters
    ----------
    form : {"localised", "low-rank", "hypernetwork"}
        "localised": P_a = rho o (X X^T), applied column by column as in Eq. B1, with X of shape (N, rank) and rho the
        taper of Gaspari and Cohn. "low-rank": P_a = X X^T. "hypernetwork": P_a = W^T W, with W a convolution of `rank`
        channels whose weights the CNN gives for every site.
    rank : int
        Columns of X, or channels of W.
    radius : float
        Of the taper, in sites: it is 5/24 there and zero from twice it on. Only where localised.
    width : int
        Odd number of sites that W spans. Only of the hypernetwork.
    filters, blocks, sub_blocks, kernel, activation
        Of the CNN, as for `ResidualCNN`.
    memory : int
        Latent channels per site that the CNN reads and renews beside the forecast, as `ResidualCNN` does: P_a then
        depends on the past as that of an ensemble does, and the increment stays linear in zeta.

    Raises
    ------
    TypeError
        For sizes that are no integers, a radius that is no number, or a form or activation that is no string.
    ValueError
        For an unknown form or sizes out of bounds; on states with fewer sites than the taper or W spans.

    References
    ----------
    Bocquet et al. (2024), Sect. 3.1.2 and App. B, Eq. 8b and B1, which describes the hypernetwork without testing it.
    """

    name: ClassVar[str] = "linear-in-zeta"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # `covariance` is the increment's matrix whatever `read` gives, as long as these two are those of this class.
        if outdated(cls, "covariance", ("forward", "apply_covariance")):
            setattr(cls, "covariance", AnalysisNetwork.covariance)  # noqa: B010

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
        memory: int = 0,
    ) -> None:
        super().__init__()
        self.form, self.rank, self.width = choice("form", form, FORMS), size("rank", rank), odd("width", width)
        self.radius, self.memory = real("radius", radius, above=0, most=LARGEST), size("memory", memory, 0)
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        outputs = self.rank * self.width if self.form == "hypernetwork" else self.rank
        if outputs > LARGEST:
            raise ValueError(f"rank={self.rank}, width={self.width}: expected at most {LARGEST} weights for a site")
        self.cnn = ResidualTrunk(1 + self.memory, outputs + 2 * self.memory, sizes, quiet=0.3)
        # At the start P_a is about 0.2 R, its root spread evenly over the columns.
        start = torch.full((outputs,), math.sqrt(0.2 / self.rank), dtype=torch.float32)
        if self.form == "hypernetwork":
            start = torch.where(torch.arange(outputs) % self.width == self.width // 2, start, 0.0)
        with torch.no_grad():
            self.cnn.biases[-1][:outputs].copy_(start)

    @property
    def reach(self) -> int | None:
        """Sites to each side that an output can depend on; all where nothing localises."""
        if self.form == "low-rank" or type(self.cnn) is not ResidualTrunk or not self._is_one_climate:
            return None
        return self.cnn.reach + (math.ceil(2 * self.radius) if self.form == "localised" else 2 * (self.width // 2))

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states off the ring, and rings that are shorter than what the taper or W spans."""
        super().check_state(dims, shape)
        self._check_sites(shape[0])

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        roots, memory = self.read(x, memory)
        # In units of the observation error: sigma zeta, and P_a / sigma^2.
        increment = self.apply_covariance(roots, zeta * self.error_std)
        return torch.addcmul(x, self.error_std, increment), memory

    def read(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """X or W as the CNN gives it, and the new memory.

        Parameters
        ----------
        x : Tensor, shape (B, N)
        memory : Tensor, shape (B, n, N), optional
            Empty where it is not given.

        Returns
        -------
        roots : Tensor, shape (C, N, B)
            In units of the observation error.
        memory : Tensor, shape (B, n, N), or None for a network without
        """
        features = soften((x - self.state_mean) / self.state_std).T[None]
        if not self.memory:
            return self._bounded(self.cnn(features)), None
        if memory is None:
            memory = x.new_zeros(len(x), self.memory, x.shape[1])
        before = memory.permute(1, 2, 0)
        out: Tensor = self.cnn(torch.cat([features, before]))
        roots, gate, candidate = out.split([len(out) - 2 * self.memory, self.memory, self.memory])
        return self._bounded(roots), renew(before, gate, candidate).permute(2, 0, 1)

    def _bounded(self, roots: Tensor) -> Tensor:
        """No root of a site is wider than the climate; without a bound a long training ends in ever larger ones."""
        widest = self.state_std / self.error_std
        return roots * (1.0 + (roots / widest).square().sum(0)).rsqrt()

    def covariance(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """P_a as a matrix, in the state's units squared, shape (B, N, N), and the new memory: for small rings only."""
        roots, memory = self.read(x, memory)
        sites = roots.shape[1]
        if self.form == "hypernetwork":
            self._check_sites(sites)
            # Row (c, s) of W holds its weights around site s.
            places = torch.arange(sites, device=x.device)[:, None] + torch.arange(self.width, device=x.device)
            places = (places - self.width // 2) % sites
            weights = roots.unflatten(0, (self.rank, self.width)).permute(3, 0, 2, 1)
            w = weights.new_zeros(*weights.shape[:3], sites).scatter(3, places.expand(weights.shape), weights)
            w = w.flatten(1, 2)
            answer = w.mT @ w
        else:
            columns = roots.permute(2, 1, 0)
            answer = columns @ columns.mT
            if self.form == "localised":
                taper = self._taper(torch.eye(sites, dtype=x.dtype, device=x.device)[:, :, None])
                answer = answer * taper[:, :, 0]
        return answer * self.error_std**2, memory

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """P_a as the network forms it."""
        if not self._is_one_climate:
            return super().analysis_covariance(x, zeta, memory)
        return self.covariance(x, memory)[0]

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Gamma at one site l: the derivative of P_a by x_l."""
        if not self._is_one_climate:
            return super().marginal_gain(x, zeta, memory, site)
        return along(lambda state: self.covariance(state, memory)[0], x, unit_direction(x, site), self._title)

    def apply_covariance(self, roots: Tensor, v: Tensor) -> Tensor:
        """P_a v / sigma^2, v of shape (B, N)."""
        v = v.T
        if self.form == "low-rank":
            return (roots * (roots * v).sum(1, keepdim=True)).sum(0).T
        if self.form == "localised":
            return (roots * self._taper(roots * v)).sum(0).T
        half = self.width // 2
        self._check_sites(roots.shape[1])
        parts = roots.unflatten(0, (self.rank, self.width)).unbind(1)
        inside = torch.stack([part * v.roll(half - k, 0) for k, part in enumerate(parts)]).sum(0)
        return torch.stack([(part * inside).sum(0).roll(k - half, 0) for k, part in enumerate(parts)]).sum(0).T

    def _check_sites(self, sites: int) -> None:
        if self.form == "hypernetwork" and sites < self.width:
            raise ValueError(f"width={self.width}: the state has {sites} sites; expected at least the width")
        spanned = 2 * math.ceil(2 * self.radius) - 1
        if self.form == "localised" and spanned > sites:
            raise ValueError(
                f"radius={self.radius}: the taper spans {spanned} sites, the state has {sites}; expected a "
                f"radius of at most {(sites + 1) / 4:g}"
            )

    def _taper(self, columns: Tensor) -> Tensor:
        """Rho times columns of shape (C, N, B): a sum over its band."""
        self._check_sites(columns.shape[1])
        reach = math.ceil(2 * self.radius) - 1
        taper = gaspari_cohn(torch.arange(reach + 1, dtype=columns.dtype, device=columns.device), self.radius)
        answer = taper[0] * columns
        for distance in range(1, reach + 1):
            answer = answer + taper[distance] * (columns.roll(distance, 1) + columns.roll(-distance, 1))
        return answer
