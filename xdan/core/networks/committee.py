"""Committees: several networks whose analyses are averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..checks import shown
from ..spaces import StateSpace
from .base import AnalysisNetwork, Scale, formula, is_patched
from .registry import network_by_name, register_network, registered_name
from .sizes import LARGEST


@register_network
class Committee(AnalysisNetwork):
    """The analysis x_a is the mean of the analyses that several networks make from one forecast.

    Errors that the networks do not share become smaller in the mean. If the networks give a spread, the committee gives
    one too: the spread of the mixture of their M Gaussians N(x_m, P_m), each with the weight 1/M. By the law of total
    variance, the variance s_n^2 is the mean of the variances plus the variance of the means::

        x_a = 1/M sum_m x_m,   s_n^2 = 1/M sum_m [P_m]_nn + 1/M sum_m (x_m - x_a)_n^2.

    The correlations of different components come from the mean root, 1/M sum_m L_m, where P_m = L_m L_m^T. The rows of
    the mean root are scaled to the variances above. So a committee of one network with itself has the P_a of this
    network.

    Parameters
    ----------
    networks : sequence of mapping or AnalysisNetwork
        The networks, or a mapping with the registered "name" and the "parameters" of each. Each network has its latent
        channels. They stand one after another in the memory of the committee.

    Raises
    ------
    TypeError
        If `networks` is no list of mappings or networks, or a name or parameters have a wrong type.
    ValueError
        If there are fewer than two networks; if one of them is a committee, takes members or works beside a Kalman
        filter; if some give a spread and others do not; or if a mapping describes no network.

    References
    ----------
    Perrone and Cooper (1993), for regression in general. Lakshminarayanan, Pritzel and Blundell (2017),
    arXiv:1612.01474, Sect. 2.4, for the mixture of Gaussians.

    Examples
    --------
    >>> import torch, xdan
    >>> member = {"name": "residual-cnn", "parameters": {"filters": 4, "memory": 2}}
    >>> net = xdan.Committee([member, member])
    >>> analysis, memory = net(torch.zeros(1, 40), torch.zeros(1, 40))
    >>> tuple(analysis.shape), net.memory
    ((1, 40), 4)
    """

    name: ClassVar[str] = "committee"
    _kept: tuple[Any, Tensor, Tensor | None] | None = None

    def __init__(self, networks: Sequence[Mapping[str, Any] | AnalysisNetwork] = ()) -> None:
        if not isinstance(networks, (list, tuple)) or not all(
            isinstance(one, (Mapping, AnalysisNetwork)) for one in networks
        ):
            raise TypeError(f"networks={shown(networks)}: expected a list of names with their parameters")
        names = [one.get("name") if isinstance(one, Mapping) else one.name for one in networks]
        if not 2 <= len(names) <= LARGEST or Committee.name in names:
            raise ValueError(
                f"a committee of {shown(names)}: expected at least two networks, none of them a committee, as "
                "xdan.committee([net, other]) makes it of trained ones"
            )
        made = [_made(one) for one in networks]
        super().__init__(None if made[0].space is None else StateSpace(made[0].space.fields))
        self.networks = nn.ModuleList(made)
        if any(isinstance(one, Committee) for one in made):
            raise ValueError(f"a committee of {shown(names)}: expected networks, none of them a committee")
        for one in made:
            if _fields(one.space) != _fields(self.space):
                raise ValueError(
                    f"a committee for the spaces {self.space!r} and {one.space!r}: expected networks for one space"
                )
        if guided := sorted({one.name for one in made if one.guides}):
            raise ValueError(
                f"a committee of {shown(names)}: {guided} stand beside a Kalman filter of their own; expected networks "
                "of the forecast and the observations alone"
            )
        if ensembles := sorted({one.name for one in made if one.ensemble}):
            raise ValueError(
                f"a committee of {shown(names)}: {ensembles} take members; expected networks of one forecast"
            )
        self.gives_spread = made[0].gives_spread
        if len({one.gives_spread for one in made}) > 1:
            spread = sorted({one.name for one in made if one.gives_spread})
            raise ValueError(
                f"a committee of {shown(names)}: {spread} give the spread of their analyses and the others none; "
                "expected a spread of all, as xdan.calibrate(net, source) gives it, or of none"
            )
        if others := sorted({one.name for one in made if one.cycled_by != self.cycled_by}):
            raise ValueError(
                f"a committee of {shown(names)}: {others} are parts of a filter, which knows H and R; expected "
                "networks of the forecast and the projected innovation"
            )
        self.memory = sum(self._channels())

    @property
    def cycled_by(self) -> str:
        """Name of the method that cycles the committee, as it cycles the networks."""
        return "gaussian-dan" if self.gives_spread else "dan"

    def _all(self) -> list[AnalysisNetwork]:
        return [cast(AnalysisNetwork, one) for one in self.networks]

    def _channels(self) -> list[int]:
        return [one.memory for one in self._all()]

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"networks": [{"name": registered_name(one), "parameters": one.config()} for one in self._all()]}

    def made_for(self, space: StateSpace) -> Committee:
        """Return a committee of these architectures, each made for the space."""
        networks = [one.made_for(space) for one in self._all()]
        if networks == self._all():
            return self
        return Committee(networks)

    def check_space(self, space: StateSpace) -> None:
        """Refuse a space on which one of the networks does not work."""
        for one in self._all():
            one.check_space(space)

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states that one of the networks does not take."""
        for one in self._all():
            one.check_state(dims, shape)

    @torch.no_grad()
    def normalise(self, mean: Scale, std: Scale, error_std: Scale) -> None:
        """Set the normalisation of the committee and of all networks."""
        super().normalise(mean, std, error_std)
        for one in self._all():
            one.normalise(mean, std, error_std)

    @property
    def reach(self) -> int | None:
        """Number of sites to each side on which an output can depend: the largest reach of the networks."""
        reaches = [None if is_patched(one) else one.reach for one in self._all()]
        return None if None in reaches else max(cast(list[int], reaches))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Hidden matrices of all networks."""
        return [matrix for one in self._all() for matrix in one.hidden_matrices()]

    def parts(self, memory: Tensor | None) -> Iterator[tuple[AnalysisNetwork, Tensor | None]]:
        """Go through the networks, each with its part (B, n, N) of the memory."""
        pieces = [None] * len(self.networks) if memory is None else memory.split(self._channels(), 1)
        for one, piece in zip(self._all(), pieces, strict=True):
            yield one, piece if one.memory else None

    def analysis_covariance(self, x: Tensor, zeta: Tensor, memory: Tensor | None) -> Tensor:
        """Mean of the networks' P_a."""
        return self._mean("analysis_covariance", x, zeta, memory)

    def marginal_gain(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Mean of the networks' Gamma at one site l."""
        return self._mean("marginal_gain", x, zeta, memory, site)

    def forecast_derivative(self, x: Tensor, zeta: Tensor, memory: Tensor | None, site: int) -> Tensor:
        """Mean of the networks' derivatives by x_l."""
        return self._mean("forecast_derivative", x, zeta, memory, site)

    def _mean(self, name: str, x: Tensor, zeta: Tensor, memory: Tensor | None, *site: int) -> Tensor:
        return torch.stack([formula(one, name)(x, zeta, piece, *site) for one, piece in self.parts(memory)]).mean(0)

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis and new memory; shapes as in the base class."""
        analyses, after = [], []
        for one, before in self.parts(memory):
            analysis, remembered = one(x, zeta, before)
            analyses.append(analysis)
            if remembered is not None:
                after.append(remembered)
        return torch.stack(analyses).mean(0), torch.cat(after, 1) if after else None

    def distribution(
        self, x: Tensor, zeta: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Analysis, memory, and the root of the mixture's covariance; shapes as in the base class."""
        if not self.gives_spread:
            return super().distribution(x, zeta, memory)
        analyses, after, roots = [], [], []
        for one, before in self.parts(memory):
            analysis, remembered, root = one.distribution(x, zeta, before)
            analyses.append(analysis)
            roots.append(root)
            if remembered is not None:
                after.append(remembered)
        means = torch.stack(analyses)
        centre = means.mean(0)
        variance = torch.stack([root.square().sum(-1) for root in roots]).mean(0) + (means - centre).square().mean(0)
        mean_root = self._mean_root(roots)
        rows = mean_root.square().sum(-1, keepdim=True).sqrt()
        return centre, torch.cat(after, 1) if after else None, variance.sqrt()[..., None] * mean_root / rows

    def root_places(self, size: int) -> Tensor:
        """Columns of the roots of all networks, int64 of shape (N, L). Equal columns are there once."""
        return self._columns(size)[0] if self.gives_spread else super().root_places(size)

    def _mean_root(self, roots: Sequence[Tensor]) -> Tensor:
        """Mean of the networks' roots, in the columns of `root_places`. A repeated column is zero."""
        _, first = self._columns(roots[0].shape[1])
        if first is None:
            return torch.stack(list(roots)).mean(0)
        entries = torch.cat(list(roots), -1) / len(roots)
        return torch.zeros_like(entries).scatter_add(-1, first.expand(entries.shape), entries)

    def _columns(self, size: int) -> tuple[Tensor, Tensor | None]:
        """Return `root_places`, and for each column its first place; None if all networks have equal columns.

        The result is kept, because a CUDA graph reads no number back.
        """
        key, kept = (size, self.state_mean.device), self._kept  # threads share the network: each reads it once
        if kept is None or kept[0] != key:
            places = [one.root_places(size) for one in self._all()]
            if all(one.shape == places[0].shape and torch.equal(one, places[0]) for one in places[1:]):
                kept = key, places[0], None
            else:
                columns = torch.cat(places, 1)
                kept = key, columns, (columns[:, :, None] == columns[:, None, :]).int().argmax(-1)
            self._kept = kept
        return kept[1:]


def _made(network: Mapping[str, Any] | AnalysisNetwork) -> AnalysisNetwork:
    """The network itself, or the network of a description."""
    if isinstance(network, AnalysisNetwork):
        return network
    return network_by_name(cast(str, network.get("name")), network.get("parameters", {}))


def _fields(space: StateSpace | None) -> object:
    return None if space is None else space.fields


def networks_of(network: AnalysisNetwork) -> list[AnalysisNetwork]:
    """The networks of a committee; for another network, a list with this network alone."""
    return network._all() if isinstance(network, Committee) else [network]
