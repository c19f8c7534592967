"""Whether a run is as good as it says: its innovations against their expected variance, and what it lost."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .core.checks import XdanWarning
from .core.methods import Record
from .schema import Array

RATIO = "innovation_ratio"
_FORGOTTEN = 50  # cycles after which no method should remember its start
_FEWEST = 20  # cycles that a mean is taken over


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
    def words(self) -> str:
        """What is compared with."""
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
        variance = record.error.variance()
        if self.expected == "training":
            assert self.value is not None
            variance = variance * self.value.to(variance)
        elif self.expected == "climate":
            assert self.value is not None
            variance = variance + self.value.to(variance)
        else:
            assert spread is not None
            variance = variance + spread.square()
        innovation = record.observation - record.error.seen(forecast)
        return (innovation.square() / variance).nanmean(-1)

    def verdict(self, ratio: Array, diverged: Array, trajectory: Sequence[int] | Array, rows: slice) -> list[str]:
        """Say what is wrong with a run, or with some of its trajectories.

        Parameters
        ----------
        ratio, diverged : array, shape (R, K)
        trajectory : sequence of int
            Labels of all trajectories of the record.
        rows : slice
            Those that are looked at.
        """
        texts = []
        lost: Array = np.any(diverged, axis=1)
        if lost.all() and len(lost) == len(trajectory):
            first = int(diverged.argmax(1).min())
            texts.append(
                f"every trajectory diverged, the first at time index {first}: its output is NaN from there on. Look at "
                "the model's time step, the units of the record and of R, and the method's inflation"
            )
        later = ratio[:, _FORGOTTEN:]
        if later.shape[1] >= _FEWEST:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of trajectories of which nothing is observed
                mean = np.nanmean(later, axis=1)
            astray = (mean > self.limit) & ~lost
            if astray.any():
                labels = np.asarray(trajectory)[rows][astray]
                shown = f"{labels[:5].tolist()}{'...' if len(labels) > 5 else ''}"
                texts.append(
                    f"{int(astray.sum())} of {len(mean)} trajectories have lost the truth ({shown}): their innovations "
                    f"have {float(mean[astray].mean()):.3g} times the variance that {self.words}. {self.remedy}"
                )
        return texts


def tell(texts: Iterable[str], stacklevel: int = 3) -> None:
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
