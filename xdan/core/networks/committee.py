"""Several networks whose analyses are averaged."""

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
    """x_a is the mean of what several networks make of one forecast; errors that they do not share average out.

    Parameters
    ----------
    networks : sequence of mapping
        Registered "name", and "parameters", of each. Every one has its own latent channels, which stand one after
        another in the committee's memory.

    Raises
    ------
    TypeError
        For what is no list of mappings, or names and parameters of the wrong type.
    ValueError
        For fewer than two networks, a committee in a committee, networks of members or beside a Kalman filter, or what
        is no network.

    References
    ----------
    Perrone and Cooper (1993), for regression in general.

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

    def __init__(self, networks: Sequence[Mapping[str, Any]] = ()) -> None:
        if not isinstance(networks, (list, tuple)) or not all(isinstance(one, Mapping) for one in networks):
            raise TypeError(f"networks={shown(networks)}: expected a list of names with their parameters")
        super().__init__(_space_of(networks))
        names = [one.get("name") for one in networks]
        if not 2 <= len(names) <= LARGEST or Committee.name in names:
            raise ValueError(
                f"a committee of {shown(names)}: expected at least two networks, none of them a committee, as "
                "xdan.committee([net, other]) makes it of trained ones"
            )
        self.networks = nn.ModuleList()
        for name, one in zip(names, networks, strict=True):
            self.networks.append(network_by_name(name, one.get("parameters", {})))
        if any(isinstance(one, Committee) for one in self._all()):
            raise ValueError(f"a committee of {shown(names)}: expected networks, none of them a committee")
        for one in self._all():
            if _fields(one.space) != _fields(self.space):
                raise ValueError(
                    f"a committee for the spaces {self.space!r} and {one.space!r}: expected networks for one space"
                )
        if guided := sorted({one.name for one in self._all() if one.guides}):
            raise ValueError(
                f"a committee of {shown(names)}: {guided} stand beside a Kalman filter of their own; expected networks "
                "of the forecast and the observations alone"
            )
        if ensembles := sorted({one.name for one in self._all() if one.ensemble}):
            raise ValueError(
                f"a committee of {shown(names)}: {ensembles} take members; expected networks of one forecast"
            )
        if spread := sorted({one.name for one in self._all() if one.gives_spread}):
            raise ValueError(
                f"a committee of {shown(names)}: {spread} give the spread of their analyses, which a committee would "
                "lose; expected networks without a spread. A committee gets one by xdan.calibrate(committee, source)"
            )
        if others := sorted({one.name for one in self._all() if one.cycled_by != self.cycled_by}):
            raise ValueError(
                f"a committee of {shown(names)}: {others} are parts of a filter, which knows H and R; expected "
                "networks of the forecast and the projected innovation"
            )
        self.memory = sum(self._channels())

    def _all(self) -> list[AnalysisNetwork]:
        return [cast(AnalysisNetwork, one) for one in self.networks]

    def _channels(self) -> list[int]:
        return [one.memory for one in self._all()]

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters."""
        return {"networks": [{"name": registered_name(one), "parameters": one.config()} for one in self._all()]}

    def made_for(self, space: StateSpace) -> Committee:
        """Give a committee of the same architectures, each made for the space."""
        networks = [one.made_for(space) for one in self._all()]
        if networks == self._all():
            return self
        together = Committee([{"name": registered_name(one), "parameters": one.config()} for one in networks])
        for place, one in zip(together._all(), networks, strict=True):
            place.take_fixed_inputs(one)
        return together

    def check_space(self, space: StateSpace) -> None:
        """Refuse a space that one of the networks is not for."""
        for one in self._all():
            one.check_space(space)

    def check_state(self, dims: Sequence[str], shape: Sequence[int]) -> None:
        """Refuse states that one of the networks does not take."""
        for one in self._all():
            one.check_state(dims, shape)

    @torch.no_grad()
    def normalise(self, mean: Scale, std: Scale, error_std: Scale) -> None:
        """Set the normalisation of all."""
        super().normalise(mean, std, error_std)
        for one in self._all():
            one.normalise(mean, std, error_std)

    @property
    def reach(self) -> int | None:
        """Sites to each side that an output can depend on: the farthest of all."""
        reaches = [None if is_patched(one) else one.reach for one in self._all()]
        return None if None in reaches else max(cast(list[int], reaches))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of all."""
        return [matrix for one in self._all() for matrix in one.hidden_matrices()]

    def parts(self, memory: Tensor | None) -> Iterator[tuple[AnalysisNetwork, Tensor | None]]:
        """Each network with its own part of the memory, (B, n, N)."""
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


def _space_of(networks: Sequence[Mapping[str, Any]]) -> StateSpace | None:
    """The fields of the first network; its fixed inputs are the network's own."""
    parameters = networks[0].get("parameters") if networks else None
    space = parameters.get("space") if isinstance(parameters, Mapping) else None
    if space is None or isinstance(space, StateSpace):
        return None if space is None else StateSpace(space.fields)
    return StateSpace(StateSpace.from_json(space).fields)


def _fields(space: StateSpace | None) -> object:
    return None if space is None else space.fields


def networks_of(network: AnalysisNetwork) -> list[AnalysisNetwork]:
    """The networks of a committee; another network by itself."""
    return network._all() if isinstance(network, Committee) else [network]
