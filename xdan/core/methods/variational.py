"""3D-Var: a static background error covariance, climatological or trained from the scheme's own errors."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..derivatives import Mode
from ..observing import ObservingSystem
from ..progress import track
from .arguments import background_or_name, fitted, number_or_tune, plain_background
from .base import Differentiated, Method, Record, State, check_truth, register_method, run
from .climate import climate_moments, covariance_of

_TUNE_TRAJECTORIES, _TUNE_CYCLES = 16, 250
_SCALES = tuple(2.0 ** (k / 2) for k in range(4, -21, -1))  # 4 down to about 0.001
_TRAINING_ROUNDS = 4
_CURVES = {"innovation": "innovation_rms", "truth": "truth_rmse"}


@register_method("3d-var")
class ThreeDVar(Method):
    """3D-Var with linear H: x_a = x_f + s B H^T (s H B H^T + R)^{-1} (y - H x_f).

    The first analysis of a record starts from the climate, its mean and its whole covariance.

    Parameters
    ----------
    background : {"climatology", "trained"} or array of shape (N, N)
        B: the covariance of the dynamics' climatology; the covariance of the scheme's own forecast errors on
        the leading part of the record, iterated, which needs the truth; or given.
    scale : float or "tune"
        The factor s. "tune" takes the scale with the smallest mean square innovation on the leading part of
        the record. No truth is needed: E|y - H x_f|^2 is the forecast error's plus tr R. With `tune_on` "truth",
        that with the smallest analysis RMSE. The method's own candidates are refined by a parabola.

    Raises
    ------
    TypeError
        For arguments of another type.
    ValueError
        For another name, a matrix that is no covariance, or a scale that is not positive.

    References
    ----------
    Lorenc (1986), doi:10.1002/qj.49711247414.
    """

    outputs: ClassVar[dict[str, str]] = {"forecast_spread": "site", "spread": "site"}
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"scale": _SCALES}

    def __init__(self, background: Any = "climatology", scale: float | str = "tune") -> None:
        self.background = background_or_name(background, ("climatology", "trained"))
        self.scale = number_or_tune("scale", scale)
        self._static: Static | None = None
        self._curve: Tensor | None = None

    def config(self) -> dict[str, Any]:
        """Plain JSON parameters, as asked for."""
        return {"background": plain_background(self.background), "scale": self.scale} | self.asked_candidates()

    @property
    def derivatives(self) -> tuple[tuple[Differentiated, Mode], ...]:
        """Of the observation operator, in the gain."""
        return (("operator", "forward"),)

    def prepare(self, record: Record) -> Method:
        """Build B, and tune its scale on the record given."""
        self.check_derivatives(record)
        if isinstance(self.scale, str):
            check_truth(self.tune_on, record)
        like = record.observation
        mean, climate = climate_moments(record.dynamics, record.seed, like)
        b = climate if isinstance(self.background, str) else fitted(self.background, len(mean), like)
        static = Static(mean, climate, b, like.new_ones(()))
        if isinstance(self.background, str) and self.background == "trained":
            static = self._trained(record, static)
        if not isinstance(self.scale, str):
            return self._with(replace(static, scale=like.new_tensor(self.scale)))
        static, curve, best = self._tuned(record, static)
        self._warn_at_an_end("scale", self.tried("scale")[best])
        return self._with(static, curve)

    def _with(self, static: Static, curve: Tensor | None = None) -> ThreeDVar:
        ready = copy.copy(self)
        ready._static, ready._curve = static, curve
        return ready

    def _scales(self, like: Tensor) -> Tensor:
        """Scales to try; the method's own are rounded to single precision in every record."""
        dtype = torch.float64 if self._candidates else torch.float32
        return torch.tensor(self.tried("scale"), dtype=dtype).to(like)

    def _tuned(self, record: Record, static: Static) -> tuple[Static, Tensor, int]:
        """Choose the scale by innovations or by the truth; every candidate is a copy of the trajectories."""
        part = slice(_TUNE_TRAJECTORIES), slice(_TUNE_CYCLES)
        record = replace(
            record,
            observation=record.observation[part],
            steps=record.steps[part[1]],
            trajectory=record.trajectory[part[0]],
            truth=record.truth[part] if self.tune_on == "truth" and record.truth is not None else None,
        )
        scale = self._scales(static.b)
        copies, lanes = len(scale), len(record.observation)
        method = self._with(replace(static, scale=scale.repeat_interleave(lanes)))
        many = replace(
            record,
            observation=record.observation.repeat(copies, 1, 1),
            trajectory=record.trajectory.repeat(copies),
            truth=None,
        )
        outputs, _ = run(method, many, what=f"tuning scale of {self.name}")
        later = (slice(None), slice(_burn_in(record), None))
        if record.truth is not None:
            error = outputs["analysis"].unflatten(0, (copies, lanes)) - record.truth
            curve = error[:, *later].square().mean(-1).sqrt().flatten(1).mean(1)
        else:
            innovation = (many.observation - many.observing.observe(outputs["forecast"]))[later].reshape(copies, -1)
            curve = innovation.square().nanmean(1).sqrt()
            curve[outputs["diverged"].reshape(copies, -1).any(1)] = torch.inf
        self._check_curve(curve)
        best = int(torch.nan_to_num(curve, nan=torch.inf).argmin())
        # A parabola needs candidates that are evenly spaced.
        chosen = scale[best] if self._candidates else _vertex(scale, curve, best)
        return replace(static, scale=chosen), curve, best

    def _trained(self, record: Record, static: Static) -> Static:
        """Iterate B = Cov[x_f - x_t] of the scheme that uses B."""
        if record.truth is None:
            raise ValueError(
                "background='trained': expected a record with a truth; training needs the truth, which the record "
                "lacks; use background='climatology'"
            )
        if not bool(torch.isfinite(record.truth).all()):
            raise ValueError(
                "background='trained': the truth holds values that are not finite on the record's leading part, "
                "expected a finite one"
            )
        tuning = copy.copy(self)
        tuning.scale, tuning._candidates = "tune", None
        for _ in track(range(_TRAINING_ROUNDS), f"training the background of {self.name}"):
            scaled, _, _ = tuning._tuned(record, static)
            outputs, _ = run(self._with(scaled), record)
            errors = (outputs["forecast"] - record.truth)[:, _burn_in(record) :].flatten(0, 1)
            static = replace(static, b=covariance_of(errors[torch.isfinite(errors).all(1)]))
        return static

    @property
    def static(self) -> Static:
        """Moments that `prepare` made."""
        if self._static is None:
            raise RuntimeError("3D-Var is not prepared: call prepare(record) first")
        return self._static

    def tuned(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """The scale and B in use and, where the scale was tuned, the curve that chose it."""
        chosen: dict[str, tuple[tuple[str, ...], Any]] = {
            "background_scale": ((), self.static.scale.cpu().numpy()),
            "background_covariance": (("state", "state_dual"), self.static.b.cpu().numpy()),
        }
        if self._curve is not None:
            chosen["candidate_scale"] = (("candidate",), self._scales(self._curve).cpu().numpy())
            chosen[_CURVES[self.tune_on]] = (("candidate",), self._curve.cpu().numpy())
        return chosen

    def tuned_shapes(self) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Names, dims and shapes of `tuned`; -1 stands for the number of sites."""
        shapes: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
            "background_scale": ((), ()),
            "background_covariance": (("state", "state_dual"), (-1, -1)),
        }
        if isinstance(self.scale, str):
            shapes["candidate_scale"] = shapes[_CURVES[self.tune_on]] = (("candidate",), (len(self.tried("scale")),))
        return shapes

    def start(self, record: Record) -> State:
        """Begin at the climatological mean."""
        x = self.static.mean.expand(record.shape)
        return {"x": x, "forecast_spread": torch.zeros_like(x), "spread": torch.zeros_like(x)}

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Take the climate's whole covariance for the error of its mean."""
        static = self.static
        whole = replace(static, b=static.climate, scale=torch.ones_like(static.scale))
        return self._with(whole).analyse(state, observation, observed, observing)

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis, the gain solved for once where every site is observed."""
        static = self.static
        gain, forecast_variance, variance = static.gain(observed, observing, state["x"])
        innovation = torch.where(observed, observation - observing.observe(state["x"]), torch.zeros_like(observation))
        return {
            **state,
            "x": state["x"] + (gain @ innovation[..., None])[..., 0],
            "forecast_spread": forecast_variance.sqrt().expand(state["x"].shape),
            "spread": variance.sqrt().expand(state["x"].shape),
        }

    def analysis_outputs(self, state: State) -> dict[str, Tensor]:
        """Spreads that B and the gain stand for."""
        return {name: state[name] for name in self.outputs}


@dataclass(frozen=True)
class Static:
    """The moments of a static scheme.

    `mean` (N,) and `climate` (N, N) are the climatology's, `b` (N, N) the background's, `scale` () or (B,) its factor.
    """

    mean: Tensor
    climate: Tensor
    b: Tensor
    scale: Tensor
    _cache: dict[ObservingSystem, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def gain(self, observed: Tensor, observing: ObservingSystem, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gain, forecast variance and analysis variance at x (B, N); shapes (..., N, P), (..., N), (..., N)."""
        # One gain for all times and trajectories.
        same = bool(observed.all()) and observing.linear
        if same and (known := self._cache.get(observing)) is not None:
            return known
        if same and self.scale.ndim == 0:
            observed, x = observed[:1], x[:1]
        p = self.scale[..., None, None] * self.b
        rows, both = observing.observed_covariances(x, p, observed)
        # Rows of sites that are not observed are those of the identity, so they solve to zero.
        gain = torch.linalg.solve(both + observing.covariance_of(observed), rows).mT
        forecast = p.diagonal(dim1=-2, dim2=-1).clone()
        analysis = forecast - (gain * rows.mT).sum(-1)
        answer = gain, forecast, analysis.clamp_min(0.0)
        if same:
            self._cache.clear()  # an error that differs in time is another at every cycle
            self._cache[observing] = answer
        return answer


def _burn_in(record: Record) -> int:
    """Leading cycles that a tuning run leaves out."""
    return min(50, record.observation.shape[1] // 3)


def _vertex(scale: Tensor, curve: Tensor, best: int) -> Tensor:
    """Minimum of the parabola through the best candidate and its neighbours, in log scale."""
    if not 0 < best < len(scale) - 1 or not bool(curve[best - 1 : best + 2].isfinite().all()):
        return scale[best]
    left, middle, right = curve[best - 1 : best + 2]
    bend = left - 2 * middle + right
    shift = torch.where(bend > 0, 0.5 * (left - right) / bend, torch.zeros_like(bend)).clamp(-0.5, 0.5)
    return scale[best] * (scale[best + 1] / scale[best]) ** shift
