"""The analysis x_f + P_a(x_f) zeta, with a network that computes the covariance from the forecast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import choice, real
from ..spaces import StateSpace
from ..tangent import along, unit_direction
from ..tapers import gaspari_cohn
from .base import AnalysisNetwork, outdated
from .heads import renew, soften
from .layers import trunk_sizes
from .registry import register_network
from .sizes import LARGEST, odd, size
from .trunk import ResidualTrunk

_MOST_TAPERED = 4096  # largest number of sites, off the ring, for which the taper is a matrix
FORMS = ("localised", "low-rank", "hypernetwork")


@register_network
class LinearInZeta(AnalysisNetwork):
    """x_a = x_f + P_a(x_f) zeta. P_a is symmetric and positive semi-definite, and is never formed as a matrix.

    A residual CNN reads the forecast and gives numbers for each component of the state, which are at most as large as
    the climatological deviation. P_a is made of these numbers in one of three forms. With several fields, rho tapers
    distances between the grid's sites, and W reads every field.

    Parameters
    ----------
    form : {"localised", "low-rank", "hypernetwork"}
        "localised": P_a = rho o (X X^T), applied column by column as in Eq. B1, where X has the shape (N, rank) and rho
        is the taper of Gaspari and Cohn. "low-rank": P_a = X X^T. "hypernetwork": P_a = W^T W, where W is a convolution
        of `rank` channels. The CNN gives the weights of W at each site.
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
    memory : int
        Number of latent channels of each component that the CNN reads and renews, as `ResidualCNN` does; 0 for none.
        P_a then depends on the past, as an ensemble's covariance does. The increment stays linear in zeta.

    Raises
    ------
    TypeError
        If a size is not an integer, the radius is not a number, or the form or activation is not a string.
    ValueError
        If a form is unknown, a size is out of bounds, or the states have fewer sites than the taper or W spans.

    References
    ----------
    Bocquet et al. (2024), Sect. 3.1.2 and App. B, Eq. 8b and B1. They describe the hypernetwork without testing it.

    Examples
    --------
    >>> import torch, xdan
    >>> net = xdan.LinearInZeta(filters=4, blocks=1, rank=2)
    >>> x, zeta = torch.zeros(1, 40), torch.randn(1, 40)
    >>> increments = [net(x, scale * zeta)[0] - x for scale in (1.0, 2.0)]
    >>> torch.allclose(2.0 * increments[0], increments[1])
    True
    """

    name: ClassVar[str] = "linear-in-zeta"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # If a class overrides neither of these two, `covariance` is the increment's matrix, whatever `read` gives.
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
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        self.form, self.rank, self.width = choice("form", form, FORMS), size("rank", rank), odd("width", width)
        self.radius, self.memory = real("radius", radius, above=0, most=LARGEST), size("memory", memory, 0)
        sizes = trunk_sizes(filters, blocks, sub_blocks, kernel, activation)
        self.filters, self.blocks, self.sub_blocks, self.kernel, self.activation = sizes
        channels = self.arrangement.channels
        self._taps = math.prod(self.arrangement.kernels(self.width)) if self.form == "hypernetwork" else 1
        outputs = self.rank * self._taps * channels
        if outputs > LARGEST:
            raise ValueError(f"rank={self.rank}, width={self.width}: expected at most {LARGEST} weights for a site")
        inputs = (1 + self.memory) * channels + self._fixed_channels
        self.cnn = ResidualTrunk(
            inputs, outputs + 2 * self.memory * channels, sizes, quiet=0.3, arrangement=self.arrangement
        )
        # At the start P_a is about 0.2 R. Its root is spread evenly over the columns.
        with torch.no_grad():
            self.cnn.biases[-1][:outputs].copy_(self._start(channels))

    def _start(self, channels: int) -> Tensor:
        """First roots of every site, shape (rank * taps * channels,). The columns' signs differ between channels."""
        size, middle = math.sqrt(0.2 / self.rank), self._taps // 2
        signs = [[1 - 2 * ((r & c).bit_count() % 2) for c in range(channels)] for r in range(self.rank)]
        taps = [[[size * sign if k == middle else 0.0 for sign in row] for k in range(self._taps)] for row in signs]
        return torch.tensor(taps, dtype=torch.float32).flatten()

    @property
    def reach(self) -> int | None:
        """Number of sites to each side that an output can depend on; None if nothing localises."""
        if self.space is not None or self.form == "low-rank" or type(self.cnn) is not ResidualTrunk:
            return None
        if not self._is_one_climate:
            return None
        return self.cnn.reach + (math.ceil(2 * self.radius) if self.form == "localised" else 2 * (self.width // 2))

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states of another space, and grids that are shorter than the taper or W."""
        super().check_state(dims, shape)
        self._check_sites(shape[:1] if self.arrangement.sites is None else self.arrangement.sites)
        if self.form == "localised" and self.cnn.grid is not None:
            _ = self._grid_taper

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Every convolution but the last."""
        return self.cnn.hidden_matrices()

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        roots, memory = self.read(x, memory)
        error_std = self.per_component(self.error_std)
        # In units of the observation error: zeta becomes sigma zeta, and P_a becomes P_a / sigma^2.
        increment = self.apply_covariance(roots, self.conserving(zeta, adjoint=True) * error_std)
        if self._conserved:
            return x + self.conserving(error_std * increment), memory
        return torch.addcmul(x, error_std, increment), memory

    def read(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """X or W, as the CNN gives it, and the new memory.

        Parameters
        ----------
        x : Tensor, shape (B, N)
        memory : Tensor, shape (B, n, N), optional
            By default the memory is empty.

        Returns
        -------
        roots : Tensor, shape (rank, N, B), or (rank * taps, N, B) of the hypernetwork
            In units of the observation error. The N components have the order of `arrangement`: channels before sites.
        memory : Tensor, shape (B, n, N), or None for a network without memory
        """
        arrangement, channels = self.arrangement, self.arrangement.channels
        scaled = soften((x - self.per_component(self.state_mean)) / self.per_component(self.state_std))
        features = [arrangement.to_channels(scaled[None])]
        if self.memory:
            memory = x.new_zeros(len(x), self.memory, x.shape[1]) if memory is None else memory
            features.append(arrangement.to_channels(memory.transpose(0, 1)))
        features += self._fixed(features[0])
        out: Tensor = self.cnn(torch.cat(features) if len(features) > 1 else features[0])
        roots, latent = out.split([len(out) - 2 * self.memory * channels, 2 * self.memory * channels])
        roots = self._bounded(roots.unflatten(0, (-1, channels))).flatten(1, -2)
        if not self.memory or memory is None:
            return roots, None
        gate, candidate = arrangement.from_channels(latent).transpose(0, 1).chunk(2, 1)
        return roots, renew(memory, gate, candidate)

    def _bounded(self, roots: Tensor) -> Tensor:
        """Bound the roots by the width of the climate. Without a bound, a long training ends in larger roots."""
        widest = self.arrangement.per_channel(self.state_std / self.error_std)
        return roots * (1.0 + (roots / widest).square().sum(0)).rsqrt()

    def covariance(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """P_a as a matrix, in the state's units squared, shape (B, N, N), and the new memory; for small states."""
        flat, memory = self.read(x, memory)
        roots = flat.unflatten(1, (self.arrangement.channels, -1))
        channels, sites = roots.shape[1:3]
        if self.form == "hypernetwork":
            self._check_length(sites)
            # Row (r, s) of W holds the weights of W around site s.
            places = self._around(sites).to(x.device).T
            weights = roots.unflatten(0, (self.rank, self._taps)).permute(4, 0, 2, 3, 1)
            w = weights.new_zeros(*weights.shape[:4], sites).scatter_add(4, places.expand(weights.shape), weights)
            w = w.transpose(2, 3).flatten(1, 2).flatten(2)
            answer = w.mT @ w
        else:
            columns = flat.permute(2, 1, 0)
            answer = columns @ columns.mT
            if self.form == "localised":
                taper = self._taper(torch.eye(sites, dtype=x.dtype, device=x.device)[:, :, None])[:, :, 0]
                answer = answer * taper.repeat(channels, channels)
        if self.arrangement.sites is not None:
            order = torch.arange(answer.shape[1], device=x.device).reshape(channels, *self.arrangement.sites, 1)
            order = self.arrangement.from_channels(order)[0, 0]
            answer = answer[:, order][:, :, order]
        scale = self.per_component(self.error_std)
        answer = answer * (scale**2 if scale.ndim == 0 else torch.outer(scale, scale))
        return self.conserving(self.conserving(answer).mT).mT, memory

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """P_a as the network forms it."""
        if not self._is_one_climate:
            return super().analysis_covariance(x, zeta, memory)
        return self.covariance(x, memory)[0]

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Gamma at one site l: the derivative of P_a with respect to x_l."""
        if not self._is_one_climate:
            return super().marginal_gain(x, zeta, memory, site)
        return along(lambda state: self.covariance(state, memory)[0], x, unit_direction(x, site), self._title)

    def apply_covariance(self, roots: Tensor, v: Tensor) -> Tensor:
        """P_a v / sigma^2. `roots` come from `read`, and v has the shape (B, N)."""
        v = self.arrangement.to_channels(v[None]).flatten(1, -2)
        flat, roots = roots, roots.unflatten(1, v.shape[:2])
        if self.form == "low-rank":
            answer = (flat * (flat * v.flatten(0, 1)).sum(1, keepdim=True)).sum(0).unflatten(0, v.shape[:2])
        elif self.form == "localised":
            answer = (roots * self._taper(_summed(roots * v))[:, None]).sum(0)
        else:
            self._check_length(v.shape[1])
            parts = roots.unflatten(0, (self.rank, self._taps)).unbind(1)
            inside = torch.stack([_summed(part * self._shifted(v, k)) for k, part in enumerate(parts)]).sum(0)[:, None]
            answer = torch.stack([self._spread((part * inside).sum(0), k) for k, part in enumerate(parts)]).sum(0)
        sites = self.arrangement.sites
        return self.arrangement.from_channels(answer if sites is None else answer.unflatten(1, sites))[0]

    def _shifted(self, v: Tensor, tap: int) -> Tensor:
        """For each site, the values (C, S, B) at the site that a tap of W reads."""
        if self.cnn.grid is None:
            return v.roll(self._taps // 2 - tap, 1)
        return v.index_select(1, self._around(v.shape[1])[tap].to(v.device))

    def _spread(self, v: Tensor, tap: int) -> Tensor:
        """The adjoint of `_shifted`."""
        if self.cnn.grid is None:
            return v.roll(tap - self._taps // 2, 1)
        return torch.zeros_like(v).index_add(1, self._around(v.shape[1])[tap].to(v.device), v)

    def _around(self, sites: int) -> Tensor:
        """The site that each tap of W reads, for each of the sites, shape (taps, S)."""
        return self._grid_around if self.cnn.grid is not None else _ring_around(sites, self._taps)

    @cached_property
    def _grid_around(self) -> Tensor:
        grid, widths = self.arrangement.grid, self.arrangement.kernels(self.width)
        assert grid is not None
        window = grid.pad(torch.arange(grid.size).reshape(grid.shape), [width // 2 for width in widths])
        for dim, width in enumerate(widths):
            window = window.unfold(dim, width, 1)
        dims = len(widths)
        return window.flatten(dims).flatten(0, dims - 1).T

    def _check_length(self, sites: int) -> None:
        """`_check_sites` for a ring, whose length is known only now."""
        if self.arrangement.sites is None:
            self._check_sites((sites,))

    def _check_sites(self, shape: Sequence[int]) -> None:
        spanned = 2 * math.ceil(2 * self.radius) - 1
        for sites in shape if self.arrangement.sites is None else [length for length in shape if length > 1]:
            if self.form == "hypernetwork" and sites < self.width:
                raise ValueError(f"width={self.width}: the state has {sites} sites; expected at least the width")
            if self.form == "localised" and spanned > sites:
                raise ValueError(
                    f"radius={self.radius}: the taper spans {spanned} sites, the state has {sites}; expected a "
                    f"radius of at most {(sites + 1) / 4:g}"
                )

    def _taper(self, columns: Tensor) -> Tensor:
        """Rho times columns of shape (K, S, B). On a ring this is a sum over a band."""
        sites = columns.shape[1]
        if self.cnn.grid is not None:
            return self._grid_taper.to(columns) @ columns
        if self.arrangement.sites == (1,):
            return columns
        self._check_length(sites)
        reach = math.ceil(2 * self.radius) - 1
        taper = gaspari_cohn(torch.arange(reach + 1, dtype=columns.dtype, device=columns.device), self.radius)
        answer = taper[0] * columns
        for distance in range(1, reach + 1):
            answer = answer + taper[distance] * (columns.roll(distance, 1) + columns.roll(-distance, 1))
        return answer

    @cached_property
    def _grid_taper(self) -> Tensor:
        """Rho as a matrix (S, S) of float64, for grids that are not a ring.

        Raises
        ------
        ValueError
            If the geometry knows no distances, or has too many sites for a matrix.
        """
        grid = self.cnn.grid
        assert grid is not None
        places, remedy = grid.positions(), "expected form='low-rank' or form='hypernetwork'"
        if grid.size > _MOST_TAPERED:
            raise ValueError(f"form='localised' on {grid.size} sites, of which at most {_MOST_TAPERED} fit: {remedy}")
        apart = None if places is None else grid.distances(places)
        if apart is None:
            raise ValueError(f"form='localised' on {grid!r}, which knows no distances: {remedy}")
        nearest = apart.masked_fill(torch.eye(len(apart), dtype=torch.bool), math.inf).amin(1)
        return gaspari_cohn(apart / nearest.median(), self.radius)


def _summed(x: Tensor) -> Tensor:
    """Sum over the channels C of (K, C, S, B)."""
    return x[:, 0] if x.shape[1] == 1 else x.sum(1)


def _ring_around(sites: int, taps: int) -> Tensor:
    return (torch.arange(taps)[:, None] - taps // 2 + torch.arange(sites)) % sites
