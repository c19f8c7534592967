"""Warnings about a run: the innovations are larger than expected, or trajectories diverged."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..core.checks import XdanWarning, warn
from ..core.methods import Record
from .schema import Array

RATIO = "innovation_ratio"
_LOOK_AT = (
    "With data of another program, look first at the dynamics' time_unit, the units of the observations and of R, and "
    "the order of the sites"
)
_FORGOTTEN = 50  # number of cycles after which a method should have forgotten its start
_FEWEST = 20  # least number of observed cycles that a mean is taken over
_MEDIAN = 0.4549  # median of the square of a standard normal number
_TOO_CLOSE = 0.02  # least ratio for observations minus truth: errors of a seventh of the deviation in R
_UNEXPLAINED = 9.0  # largest ratio for observations minus truth: errors of three deviations in R
_STRAY, _LEAST = 6.0, 5  # in the second half of a network's short run: largest ratio, least observed cycles
_HOPELESS = 100.0  # ratio that only wrong units or a wrong R explain, even in few cycles


@dataclass(frozen=True)
class Watch:
    """The size that the innovations of a run should have.

    Attributes
    ----------
    expected : {"spread", "training", "climate"}
        The quantity that their variance is compared with. "spread": the forecast's variance plus R. "training": R times
        the factor that the network had in training. "climate": the climate's variance plus R, which any useful forecast
        stays below.
    value : Tensor, shape () or (P,), or None
        For "training" the factor, for "climate" the variance of H(x) over the climate.
    remedy : str
        What to do if the innovations are too large.
    """

    expected: str
    value: Tensor | None
    remedy: str

    @property
    def limit(self) -> float:
        """Ratio above which a trajectory has lost the truth."""
        return 0.8 if self.expected == "climate" else 2.5

    @property
    def comparison(self) -> str:
        """The quantity that the innovations are compared with, as a part of a sentence."""
        return {
            "spread": "forecast variance and R expect",
            "training": "the network had in training",
            "climate": "the climatology would have",
        }[self.expected]

    def ratio(self, record: Record, forecast: Tensor, spread: Tensor | None) -> Tensor:
        """Mean of (y - H x_f)^2 / (expected variance) over the observations of each time; NaN if there are none.

        Parameters
        ----------
        record : Record
        forecast : Tensor, shape (B, K, N)
        spread : Tensor, shape (B, K, N), or None
            The forecast's standard deviation.

        Returns
        -------
        Tensor, shape (B, K)
        """
        variance = record.observing.error_variance()
        if self.expected == "training":
            assert self.value is not None
            variance = variance * self.value.to(variance)
        elif self.expected == "climate":
            assert self.value is not None
            variance = variance + self.value.to(variance)
        else:
            assert spread is not None
            variance = variance + spread.square()
        innovation = record.observation - record.observing.observe(forecast)
        return (innovation.square() / variance).nanmean(-1)

    def verdict(self, ratio: Array, diverged: Array, trajectory: Sequence[int] | Array, rows: slice) -> list[str]:
        """Say what is wrong with a run, or with some of its trajectories.

        Parameters
        ----------
        ratio, diverged : array, shape (R, K)
            The results of `ratio` and the flags of divergence, of the trajectories in `rows`. A ratio is NaN if nothing
            is observed.
        trajectory : sequence of int
            Labels of all trajectories of the record.
        rows : slice
            Positions of the R trajectories in the record.

        Returns
        -------
        list of str
            One sentence for each fault. A trajectory has lost the truth if its mean ratio from cycle 50 on is above
            `limit`. If fewer than 20 of these cycles are observed, the mean over all cycles but the first must be above
            100. A network has lost the truth, too, if the mean over the second half is above 6 and at least 5 cycles of
            this half are observed.
        """
        texts = []
        lost: Array = np.any(diverged, axis=1)
        if lost.all() and len(lost) == len(trajectory):
            first = int(diverged.argmax(1).min())
            texts.append(
                f"every trajectory diverged, the first at time index {first}: its output is NaN from there on. Look at "
                "the model's time step, the units of the record and of R, and the method's inflation"
            )
        settled = ratio[:, _FORGOTTEN:]
        enough = np.isfinite(settled).sum(axis=1) >= _FEWEST  # the mean of a few ratios may be large by chance
        mean = np.where(enough, _mean_observed(settled), _mean_observed(ratio[:, 1:]))
        limit = np.where(enough, self.limit, _HOPELESS)
        if self.expected == "training":  # a network settles within few cycles
            half = ratio[:, max(1, ratio.shape[1] // 2) :]
            short = ~enough & (np.isfinite(half).sum(axis=1) >= _LEAST)
            mean, limit = np.where(short, _mean_observed(half), mean), np.where(short, _STRAY, limit)
        astray = (mean > limit) & ~lost
        if astray.any():
            labels = np.asarray(trajectory)[rows][astray]
            first_labels = f"{labels[:5].tolist()}{'...' if len(labels) > 5 else ''}"
            texts.append(
                f"{int(astray.sum())} of {len(mean)} trajectories have lost the truth ({first_labels}): their "
                f"innovations have {float(mean[astray].mean()):.3g} times the variance that {self.comparison}. "
                f"{self.remedy}. {_LOOK_AT}"
            )
        return texts


def _mean_observed(ratio: Array) -> Array:
    """Mean over the observed times, shape (R,); NaN if nothing is observed.

    NumPy's nanmean would warn then, and the filters that silence a warning are shared by all threads.
    """
    observed = ~np.isnan(ratio)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(observed, ratio, 0.0).sum(axis=1) / observed.sum(axis=1)
    return mean


def far_from_truth(record: Record) -> str:
    """Say how far observations are from the truth, if R does not explain it; "" if R does."""
    assert record.truth is not None
    misfit = (record.observation - record.observing.observe(record.truth)).square() / record.observing.error_variance()
    # The median is taken, as a few lost trajectories do not speak for all.
    ratio = float(misfit.nanmedian()) / _MEDIAN
    if ratio < _TOO_CLOSE:
        return (
            f"R is far larger than the observations' errors: their median square is {ratio:.2g} times what R expects. "
            "Look whether the observation error is a standard deviation, and in the units of the observations"
        )
    if not ratio > _UNEXPLAINED:  # also true if nothing is observed: the ratio is NaN
        return ""
    return (
        f"the observations are far from the truth: their median square difference is {ratio:.3g} times what R expects. "
        "Look at the units of both, at the observation error, at the order of their sites, and at which variables play "
        "these roles"
    )


def warn_of(texts: Iterable[str]) -> None:
    """Warn with each text that is not empty. A worker of a cluster warns its clients, too."""
    emit = _warn_clients if _in_worker() else warn
    for text in filter(None, texts):
        emit(text)


def _in_worker() -> bool:
    """Whether a task of a cluster calls."""
    cluster = sys.modules.get("distributed")
    if cluster is None:
        return False
    try:
        cluster.get_worker()
    except ValueError:
        return False
    return True


def _warn_clients(text: str) -> None:
    sys.modules["distributed"].worker.warn(text, XdanWarning, stacklevel=3)


def attribute(texts: Sequence[str]) -> dict[str, Any]:
    """Attributes of a run that hold its warnings."""
    return {"xdan_warnings": list(texts)} if texts else {}
