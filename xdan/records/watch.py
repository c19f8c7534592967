"""Warnings about a run: its innovations are larger than expected, or its trajectories diverged."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..core.checks import XdanWarning
from ..core.methods import Record
from .schema import Array

RATIO = "innovation_ratio"
_FORGOTTEN = 50  # cycles after which no method should remember its start
_FEWEST = 20  # observed cycles that a mean is taken over
_MEDIAN = 0.4549  # of the square of a standard normal number
_TOO_CLOSE = 0.02  # ratio of observations minus truth: errors of a seventh of the deviation that R says
_UNEXPLAINED = 9.0  # ratio of observations minus truth: errors of three times the deviation that R says
_STRAY, _LEAST = 6.0, 5  # ratio in the second half of a network's short run, and observed cycles of it
_HOPELESS = 100.0  # ratio that only wrong units or a wrong R explain, however few cycles are observed


@dataclass(frozen=True)
class Watch:
    """How large the innovations of a run should be.

    Attributes
    ----------
    expected : {"spread", "training", "climate"}
        What their variance is compared with: the forecast's own spread and R; R times a factor that the network had in
        training; or the climate's variance and R, which says no more than that a forecast is of any use.
    value : Tensor, shape () or (P,), or None
        Of "training", the factor; of "climate", the variance of H(x) over the climate.
    remedy : str
        What to do about innovations that are too large.
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
        """What the innovations are compared with, as a part of a sentence."""
        return {
            "spread": "forecast variance and R expect",
            "training": "the network had in training",
            "climate": "the climatology would have",
        }[self.expected]

    def ratio(self, record: Record, forecast: Tensor, spread: Tensor | None) -> Tensor:
        """Mean over the observations of a time of (y - H x_f)^2 over its expected variance, NaN where there are none.

        Parameters
        ----------
        record : Record
        forecast : Tensor, shape (B, K, N)
        spread : Tensor, shape (B, K, N), or None
            The forecast's.

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
            Of the trajectories in `rows`. A ratio is NaN where nothing is observed.
        trajectory : sequence of int
            Labels of all trajectories of the record.
        rows : slice
            Positions of the R trajectories in the record.

        Returns
        -------
        list of str
            One sentence for each thing that is wrong. A trajectory has lost the truth if its mean ratio from cycle 50
            on is above `limit`. Where fewer than 20 of these cycles are observed, the mean over all cycles but the
            first must be above 100; of a network the mean over the second half, where 5 cycles of it are observed,
            above 6.
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
        enough = np.isfinite(settled).sum(axis=1) >= _FEWEST  # the mean of a few ratios is large by chance
        mean = np.where(enough, _mean_observed(settled), _mean_observed(ratio[:, 1:]))
        limit = np.where(enough, self.limit, _HOPELESS)
        if self.expected == "training":  # a network does not take long to settle
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
                f"{self.remedy}"
            )
        return texts


def _mean_observed(ratio: Array) -> Array:
    """Mean over the observed times, shape (R,); NaN where nothing is observed.

    NumPy's nanmean warns there, and threads share the filters that would silence it.
    """
    observed = ~np.isnan(ratio)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(observed, ratio, 0.0).sum(axis=1) / observed.sum(axis=1)
    return mean


def far_from_truth(record: Record) -> str:
    """Say how far observations are from the truth, where R does not explain it; nothing where it does."""
    assert record.truth is not None
    misfit = (record.observation - record.observing.observe(record.truth)).square() / record.observing.error_variance()
    # The median, as a few trajectories that are lost do not speak for all.
    ratio = float(misfit.nanmedian()) / _MEDIAN
    if ratio < _TOO_CLOSE:
        return (
            f"R is far larger than the observations' errors: their median square is {ratio:.2g} times what R expects. "
            "Look whether the observation error is a standard deviation, and in the units of the observations"
        )
    if not ratio > _UNEXPLAINED:  # true too where nothing is observed: the ratio is NaN
        return ""
    return (
        f"the observations are far from the truth: their median square difference is {ratio:.3g} times what R expects. "
        "Look at the units of both, at the observation error, and at which variables play these roles"
    )


def warn_of(texts: Iterable[str], stacklevel: int = 3) -> None:
    """Warn of each text that is not empty, here and, from a worker of a cluster, at its clients too."""
    cluster = sys.modules.get("distributed")
    for text in filter(None, texts):
        if cluster is None:
            warnings.warn(text, XdanWarning, stacklevel=stacklevel)
        else:
            cluster.worker.warn(text, XdanWarning, stacklevel=stacklevel)


def attribute(texts: Sequence[str]) -> dict[str, Any]:
    """Attributes of a run that was warned of."""
    return {"xdan_warnings": list(texts)} if texts else {}
