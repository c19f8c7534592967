"""3D-Var: a static background error covariance, from the climatology or trained from the method's errors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..derivative_checks import Mode
from ..observing import ObservingSystem
from ..progress import track
from .arguments import background_or_name, fitted, number_or_tune
from .base import Differentiated, Method
from .climate import climate_moments, covariance_of
from .declarations import SPREADS, Choice, Output, Search, Tunable
from .loop import run
from .record import Record, State
from .registry import register_method
from .tuning import burn_in, search_grid

# From 4 to about 0.001, rounded to single precision, so that records of any precision have the same numbers.
SCALES = Tunable(
    tuple(torch.tensor([2.0 ** (k / 2) for k in range(4, -21, -1)], dtype=torch.float32).tolist()),
    long_name="scales that were tried",
)
_TRAINING_ROUNDS = 4  # how often a trained B is computed again, from the errors of the analysis with the previous B


@register_method
class ThreeDVar(Method):
    """3D-Var with linear H: x_a = x_f + s B H^T (s H B H^T + R)^{-1} (y - H x_f).

    The first analysis of a record starts from the climate's mean and its whole covariance.

    Parameters
    ----------
    background : {"climatology", "trained"} or array of shape (N, N)
        Background error covariance B. "climatology": the covariance of the dynamics' climatology. "trained": the
        covariance of the method's forecast errors on the leading part of the record, iterated; it needs the truth. Or a
        matrix.
    scale : float or "tune"
        Factor s. "tune" takes the scale with the smallest mean square innovation on the leading part of the record.
        This needs no truth, because E|y - H x_f|^2 is the mean square forecast error plus tr R. With `tune_on="truth"`,
        the scale with the smallest analysis RMSE is taken. A parabola refines the default candidates.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If a name is unknown, a matrix is no covariance, or the scale is not positive.

    References
    ----------
    Lorenc (1986), doi:10.1002/qj.49711247414.

    Examples
    --------
    >>> import xdan
    >>> ds = xdan.twin(xdan.Lorenz96(sites=8), cycles=20, trajectories=4, seed=0).compute()
    >>> run = ds.dan.cycle(xdan.ThreeDVar(scale=0.1))
    >>> bool(ds.dan.score(run, burn_in=10).rmse < 1.0)
    True
    """

    name: ClassVar[str] = "3d-var"
    outputs: tuple[Output, ...] = SPREADS
    tunable: ClassVar[Mapping[str, Tunable]] = {"scale": SCALES}
    search: ClassVar[Search] = Search(cycles=250, burn_in=50, innovation="innovation_rms", together=True, refined=True)

    def __init__(self, background: Any = "climatology", scale: float | str = "tune") -> None:
        self.background = background_or_name(background, ("climatology", "trained"))
        self.scale = number_or_tune("scale", scale)
        self._static: Static | None = None

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Derivative of the observation operator, for the gain."""
        return (("operator", "forward"),)

    def set_up(self, record: Record) -> None:
        """Compute B; train it if asked for.

        Raises
        ------
        ValueError
            If B does not fit the record, or its training needs a truth and the record has none.
        """
        like = record.observation
        mean, climate = climate_moments(record.dynamics, record.seed, like)
        b = climate if isinstance(self.background, str) else fitted(self.background, len(mean), like)
        self._static = Static(mean, climate, b, like.new_ones(()))
        if isinstance(self.background, str) and self.background == "trained":
            self._static = replace(self._static, b=self._trained(record))
        if not isinstance(self.scale, str):
            self._static = replace(self._static, scale=like.new_tensor(self.scale))

    def at(self, numbers: Mapping[str, Any]) -> Self:
        """Return a copy with another scale, or with a scale for each trajectory."""
        chosen, scale = super().at(numbers), numbers["scale"]
        scale = scale if isinstance(scale, Tensor) else self.static.b.new_tensor(scale)
        chosen._static = replace(self.static, scale=scale)
        return chosen

    def _trained(self, record: Record) -> Tensor:
        """Iterate B = Cov[x_f - x_t] of the analysis with B, shape (N, N). Each round tunes the scale anew."""
        if record.truth is None:
            raise ValueError(
                "background='trained': the record has no truth, and training needs one; expected a record with a "
                "truth; use background='climatology'"
            )
        if not bool(torch.isfinite(record.truth).all()):
            raise ValueError(
                "background='trained': the truth holds values that are not finite on the record's leading part, "
                "expected a finite one"
            )
        scheme = copy.copy(self)
        scheme.scale = "tune"
        for _ in track(range(_TRAINING_ROUNDS), f"training the background of {self.name}"):
            tuned, _ = search_grid(scheme, record)
            outputs, _ = run(tuned, record)
            errors = (outputs["forecast"] - record.truth)[:, burn_in(record, self.search) :].flatten(0, 1)
            scheme._static = replace(scheme.static, b=covariance_of(errors[torch.isfinite(errors).all(1)]))
        return scheme.static.b

    @property
    def static(self) -> Static:
        """Mean, covariances and scale that `prepare` computed."""
        if self._static is None:
            raise RuntimeError("3D-Var is not prepared: call prepare(record) first")
        return self._static

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Declarations of the scale and of B. If the scale is tuned, also of the scores of all scales."""
        in_use = (
            Choice("background_scale", "factor of the background error covariance"),
            Choice(
                "background_covariance",
                "background error covariance before scaling",
                ("state", "state_dual"),
                (-1, -1),
            ),
        )
        along = [replace(choice, dims=("candidate",)) for choice in super().choices if choice.dims]
        return (*in_use, *along)

    def chosen(self) -> dict[str, Any]:
        """The scale and B. If the scale was tuned, also the scores of all scales."""
        values = super().chosen()
        values.pop("tuned_scale", None)
        static = self.static
        return {"background_scale": static.scale.cpu(), "background_covariance": static.b.cpu(), **values}

    def start(self, record: Record) -> State:
        """Begin at the climatological mean."""
        x = self.static.mean.expand(record.shape)
        return {"x": x, "forecast_spread": torch.zeros_like(x), "spread": torch.zeros_like(x)}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """First analysis: the background is the climate's mean, whose error has the climate's whole covariance."""
        static = self.static
        of_climate = copy.copy(self)
        of_climate._static = replace(static, b=static.climate, scale=torch.ones_like(static.scale))
        return of_climate.analyse(state, observation, observed, observing)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis. One gain serves all trajectories and times that have the same observations."""
        static = self.static
        gain, forecast_variance, variance = static.gain(observed, observing, state["x"])
        innovation = torch.where(observed, observation - observing.observe(state["x"]), torch.zeros_like(observation))
        return {
            **state,
            "x": state["x"] + static.increments(gain, innovation),
            "forecast_spread": static.of_trajectories(forecast_variance, len(observation)).sqrt(),
            "spread": static.of_trajectories(variance, len(observation)).sqrt(),
        }


@dataclass(frozen=True)
class Static:
    """Mean, covariances and scale of a static scheme.

    `mean` (N,) and `climate` (N, N) are those of the climatology. `b` (N, N) is the background covariance, and `scale`
    () or (B,) its factor.
    """

    mean: Tensor
    climate: Tensor
    b: Tensor
    scale: Tensor
    _cache: dict[ObservingSystem, tuple[Tensor, ...]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def distinct(self) -> Tensor:
        """Scales (G,), each of which B / G trajectories in a row have: tuning repeats each scale for all of them."""
        scales, counts = self.scale.reshape(-1).unique_consecutive(return_counts=True)
        return scales if bool((counts == counts[0]).all()) else self.scale

    def gain(self, observed: Tensor, observing: ObservingSystem, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gain, forecast variance and analysis variance at x (B, N); shapes (G, N, P), (G, N), (G, N).

        If all trajectories have the same observations and H is linear, G is the number of distinct scales. Otherwise G
        is B, or 1 for the forecast variance at a single scale.
        """
        seen, scale = observed[0], self.scale.reshape(-1)
        same = observing.linear and bool((observed == seen).all())
        if same and (kept := self._cache.get(observing)) is not None and torch.equal(kept[-1], seen):
            return kept[0], kept[1], kept[2]
        if same:
            scale = self.distinct
            observed, x = observed[: len(scale)], x[: len(scale)]  # any rows serve: they have the same mask and H
        p = scale[:, None, None] * self.b
        rows, both = observing.observed_covariances(x, p, observed)
        # Rows of missing observations are rows of the identity, so that their solution is zero.
        gain = torch.linalg.solve(both + observing.covariance_of(observed), rows).mT
        forecast = p.diagonal(dim1=-2, dim2=-1).clone()
        analysis = forecast - (gain * rows.mT).sum(-1)
        answer = gain, forecast, analysis.clamp_min(0.0)
        if same:
            self._cache.clear()  # if the error differs in time, every cycle has another gain
            self._cache[observing] = *answer, seen
        return answer

    def increments(self, gain: Tensor, innovation: Tensor) -> Tensor:
        """Increments K d, shape (B, N), of innovations (B, P) by gains (G, N, P)."""
        if len(gain) in (1, len(innovation)):
            return (gain @ innovation[..., None])[..., 0]
        groups: Tensor = innovation.unflatten(0, (len(gain), -1))
        return (groups @ gain.mT).flatten(0, 1)

    def of_trajectories(self, variance: Tensor, trajectories: int) -> Tensor:
        """Variances (G, N) that `gain` gave, for each trajectory, shape (B, N)."""
        return variance.repeat_interleave(trajectories // len(variance), 0)
