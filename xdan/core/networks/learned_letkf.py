"""An ensemble transform Kalman filter with learned inflation and localisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import choice, integer, real
from ..ensemble_space import centre
from ..spaces import StateSpace
from ..spaces.ring import Ring
from .base import AnalysisNetwork
from .learned_taper import FixedTaper, LearnedTaper
from .local_transforms import PriorWeight, local_transforms
from .registry import register_network, register_preset
from .site_statistics import FEATURES, Seen, pair_features, site_features
from .sizes import size

INFLATIONS = ("fixed", "scalar", "sites", "state")
LOCALISATIONS = ("none", "fixed", "taper", "state")
_BOUND = 0.7  # largest size of the logarithm of an inflation that depends on the state
_ENTRIES = 1 << 25  # number of entries of local matrices in one batch


@register_network
class LearnedLETKF(AnalysisNetwork):
    """ETKF or LETKF whose inflation, localisation or both are learned through the cycles.

    Each site has the whitened anomalies S and the whitened innovation d of the observations. Their columns are
    multiplied by the roots of the tapers. The analysis members are those of Hunt et al. (2007),

        w = P^-1 S d,   X_a = lambda (M - 1)^1/2 P^-1/2 X,   P = (M - 1) / alpha^2 I + S S^T,

    with a factor alpha of the forecast's anomalies and a factor lambda of the analysis's. No weight belongs to a single
    member: a trained network works with any number of members, `net.with_parameters(members=20)`, and their order has
    no effect. Forecasts draw no model errors: the inflation learns to account for them.

    Parameters
    ----------
    members : int
        Ensemble size M, at least 2.
    inflation_form : {"state", "scalar", "sites", "fixed"}
        How alpha and lambda are computed. "state": a network with one hidden layer, the same at all sites. It reads the
        logarithms of the forecast spread; of the ratio of innovations to the spread's prediction, now and on average
        over about ten cycles; of the observations' information; and the number of members. "scalar", "sites": alpha is
        1, and lambda is one learned number, or one for each site. "fixed": lambda is `first_inflation`.
    localisation_form : {"state", "taper", "fixed", "none"}
        How the taper is computed. "taper": exp(-b(d)), where the cost b grows with the distance d and is piecewise
        linear between `nodes`. "state": exp(-e^c b(d)), where a network with one hidden layer gives c for each pair of
        a component and an observation. It reads their sample correlation, their distance and the inputs of the
        inflation. "fixed": the taper of Gaspari and Cohn. "none": one transform for all sites, an ETKF; an alpha that
        depends on the state is then the geometric mean over the sites.
    first_inflation : float
        Inflation at the start of training, for example that of a tuned filter.
    radius : float
        Radius of the taper of Gaspari and Cohn at the start of training, in units of the coordinates.
    farthest : float
        Distance of the last node. Beyond it a learned taper is zero.
    nodes : int
        Number of nodes of a learned taper, including the one at distance 0.
    hidden : int
        Number of units of each hidden layer.
    spin_up : int
        Number of first cycles, after a start, in which the prior's weight (M - 1) / alpha^2 comes from the finite-size
        prior of the EnKF-N, as in the method "letkf".
    sites : int
        For inflation_form="sites" and one field on a ring: number N of sites.
    space : StateSpace, or its JSON, optional
        The fields that the network is for. By default one field on a ring of any length.

    Raises
    ------
    TypeError
        If a number or a word has the wrong type.
    ValueError
        If a word is unknown, a number is out of bounds, or there are fewer than 2 members.

    References
    ----------
    Hunt, Kostelich and Szunyogh (2007), doi:10.1016/j.physd.2006.11.008. Inflation and localisation that are learned
    from errors of the analysis: Bach et al. (2024), arXiv:2410.10523, Sect. 9.4.3.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=10, trajectories=4, seed=0).compute()
    >>> network = xdan.LearnedLETKF(members=5, radius=2.0)
    >>> net = ds.dan.train(network, steps=1, window=3, batch=2, progress=False)
    >>> run = ds.dan.cycle(net)
    >>> dict(run.inflation.sizes)
    {'trajectory': 4, 'time': 10, 'x': 8}
    """

    name: ClassVar[str] = "learned-letkf"
    ensemble: ClassVar[bool] = True
    any_members: ClassVar[bool] = True

    def __init__(
        self,
        members: int = 20,
        inflation_form: str = "state",
        localisation_form: str = "state",
        first_inflation: float = 1.02,
        radius: float = 5.5,
        farthest: float = 20.0,
        nodes: int = 21,
        hidden: int = 8,
        spin_up: int = 100,
        sites: int = 40,
        space: StateSpace | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(space)
        self.members, self.hidden = size("members", members, 2), size("hidden", hidden)
        self.inflation_form = choice("inflation_form", inflation_form, INFLATIONS)
        self.localisation_form = choice("localisation_form", localisation_form, LOCALISATIONS)
        self.first_inflation = real("first_inflation", first_inflation, above=0.0)
        self.radius, self.farthest = real("radius", radius, above=0.0), real("farthest", farthest, above=0.0)
        self.nodes, self.spin_up = size("nodes", nodes, 2), integer("spin_up", spin_up, least=0)
        self.sites = size("sites", sites) if self.space is None else self.space.size
        start = math.log(self.first_inflation)
        if self.inflation_form == "fixed":
            self.register_buffer("log_inflation", torch.tensor(start, dtype=torch.float32), persistent=False)
        else:
            shape = (self.sites,) if self.inflation_form == "sites" else ()
            self.log_inflation = nn.Parameter(torch.full(shape, start, dtype=torch.float32))
        self.statistics: nn.Sequential | None = None
        if self.inflation_form == "state":
            last = nn.Linear(self.hidden, 2)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.statistics = nn.Sequential(nn.Linear(FEATURES, self.hidden), nn.Tanh(), last)
        self.taper: LearnedTaper | FixedTaper | None = None
        if self.localisation_form == "fixed":
            self.taper = FixedTaper(self.radius)
        elif self.localisation_form != "none":
            layer = self.hidden if self.localisation_form == "state" else 0
            self.taper = LearnedTaper(self.radius, self.farthest, self.nodes, layer)

    @property
    def cycled_by(self) -> str:
        """Name of the method that passes on the observations and their distances."""
        return "learned-letkf"

    @property
    def localised(self) -> bool:
        """Whether the network has tapers."""
        return self.taper is not None

    def check_state(self, dims: Any, shape: Any) -> None:
        """Refuse states that do not have the size of the inflation."""
        super().check_state(dims, shape)
        if self.inflation_form == "sites" and self.space is None and shape[0] != self.sites:
            raise ValueError(f"sites={self.sites}: the state has {shape[0]} sites; expected that number")

    def forward(self, x: Tensor, zeta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Analysis of members (B, M, N) if every component is observed with the typical error. There is no memory.

        The method that cycles the network calls `assimilate`, which knows what is observed. Distances are those of the
        space; on a ring without a space they are numbers of sites.
        """
        error_std = self.per_component(self.error_std)
        distance = None
        if self.localised:
            sites = torch.arange(x.shape[2])
            distance = Ring(len(sites)).distances(sites[:, None].double()) if self.space is None else None
            distance = self.space.distances(sites) if self.space is not None else distance
            if distance is None:
                raise ValueError(
                    f"{self._title} localises, and its space knows no distances: expected localisation_form='none'"
                )
            distance = distance.to(x)
        seen = Seen(centre(x)[1] / error_std, zeta * error_std, torch.ones_like(zeta), distance)
        return self.assimilate(x, seen, torch.ones_like(zeta))[0], None

    def assimilate(
        self,
        x: Tensor,
        seen: Seen,
        running: Tensor,
        young: Tensor | None = None,
        prior_weight: PriorWeight | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One analysis.

        Parameters
        ----------
        x : Tensor, shape (B, M, N)
            Forecast.
        seen : Seen
        running : Tensor, shape (B, N)
            Running consistency of the earlier cycles; 1 at a start.
        young : Tensor of bool, shape (B,), optional
            Trajectories that spin up; by default none.
        prior_weight : callable, optional
            Weight of the prior of these trajectories.

        Returns
        -------
        analysis : Tensor, shape (B, M, N)
        running : Tensor, shape (B, N)
        inflation : Tensor, shape (B, N)
            alpha times lambda, without the effect of the spin-up.
        """
        anomalies = centre(x)[1]
        m, n = x.shape[1:]
        scaled = anomalies / self.per_component(self.error_std)
        base = seen.innovation.new_ones(n, seen.innovation.shape[1])
        if self.taper is not None:
            assert seen.distance is not None
            base = self.taper(seen.distance)
        features, running = site_features(scaled.square().sum(1) / (m - 1), seen, base, running)
        before, after = self._inflations(features)
        if self.taper is None:
            before = before.mean(1, keepdim=True)

        def zeta_of(rows: slice) -> PriorWeight:
            def zeta(values: Tensor, rotated: Tensor) -> Tensor:
                weight = (m - 1) * (-2.0 * before[:, rows]).exp()
                if young is None or prior_weight is None:
                    return weight
                with torch.no_grad():
                    spun = prior_weight(values, rotated)
                return torch.where(young[:, None], spun, weight)

            return zeta

        parts = []
        for rows in self._at_once(x, seen):
            taper = base[:1]
            if self.taper is not None:
                assert seen.distance is not None
                taper = base[rows]
                if self.taper.pairs is not None:
                    apart = seen.distance[rows]
                    pairs = pair_features(scaled[:, :, rows], seen, apart / self.taper.end)
                    taper = self.taper(apart, features[:, rows], pairs)
            taper_rows = slice(0, 1) if self.taper is None else rows
            parts.append(
                local_transforms(anomalies[:, :, rows], seen.anomalies, seen.innovation, taper, zeta_of(taper_rows))
            )
        increment = torch.cat([part[0] for part in parts], -1)
        transformed = torch.cat([part[1] for part in parts], -1)
        change = self.conserving(increment[:, None] + after.exp()[:, None] * transformed - anomalies)
        return x + change, running, (before + after).exp().expand(len(x), n)

    def _inflations(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of alpha and lambda, (B, N)."""
        after = self.log_inflation.expand(features.shape[:2])
        if self.statistics is None:
            return torch.zeros_like(after), after
        both = _BOUND * torch.tanh(self.statistics(features) / _BOUND)
        return both[..., 0], after + both[..., 1]

    def _at_once(self, x: Tensor, seen: Seen) -> list[slice]:
        """Batches of sites whose matrices fit into memory together; all sites at once if there is one transform."""
        b, m, n = x.shape
        if self.taper is None:
            return [slice(0, n)]
        seen_count = seen.anomalies.shape[2]
        step = max(1, _ENTRIES // (b * max(min(m, seen_count) ** 2, seen_count, 1)))
        return [slice(start, start + step) for start in range(0, n, step)]


register_preset("learned-inflation", LearnedLETKF, members=40, localisation_form="none", first_inflation=1.01)
register_preset("learned-localisation", LearnedLETKF, inflation_form="fixed")
