"""Least squares: increments of analyses show the tendency that a model lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tendencies import LocalPolynomial

FOLDS = 8  # number of groups of data; each group is left out once
_PENALTIES = tuple(10.0 ** (power / 2) for power in range(-18, 3))  # penalties of a coefficient, for each sample


@dataclass(frozen=True)
class NormalEquations:
    """Sums over samples of features phi (F,) and values y (C,), for each of several groups of data.

    Attributes
    ----------
    gram : Tensor, shape (G, F, F)
        Sums of phi phi^T.
    moment : Tensor, shape (G, F, C)
        Sums of phi y^T.
    square : Tensor, shape (G, C)
        Sums of y^2.
    count : Tensor, shape (G,)
        Numbers of samples.
    """

    gram: Tensor
    moment: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def of_increments(
        cls, network: LocalPolynomial, start: Tensor, end: Tensor, increment: Tensor, interval: Tensor, group: Tensor
    ) -> NormalEquations:
        """Sums over intervals; each place of the grid is a sample.

        The increment divided by the interval, (x_a - x_f) / tau, is regressed on the mean of the terms at both ends of
        the forecast, (phi(previous x_a) + phi(x_f)) / 2. This is the trapezoidal rule for the mean over the interval.

        Parameters
        ----------
        network : LocalPolynomial
            The network of the terms, in double precision.
        start, end, increment : Tensor, shape (B, N)
            Analyses at the start of the forecasts, forecasts, and increments of the next analyses. Values that are not
            finite are left out.
        interval : Tensor, shape (B,)
            Length tau of each interval, in model time.
        group : Tensor of int64, shape (B,)
            Group of each sample, from 0 to `FOLDS` - 1.
        """
        whole = (start.isfinite() & end.isfinite() & increment.isfinite()).all(-1)
        start, end, increment, interval, group = (one[whole] for one in (start, end, increment, interval, group))
        channels = network.arrangement.channels
        gram = start.new_zeros(FOLDS, network.terms, network.terms)
        moment, square = start.new_zeros(FOLDS, network.terms, channels), start.new_zeros(FOLDS, channels)
        count = start.new_zeros(FOLDS)
        rate = increment / interval[:, None] / network.per_component(network.tendency_std)
        for fold in group.unique().tolist():
            some = group == fold
            terms = (network.features(start[some]) + network.features(end[some])).flatten(1) / 2
            target = network.arrangement.to_channels(rate[some][None]).flatten(1)
            gram[fold], moment[fold] = terms @ terms.T, terms @ target.T
            square[fold], count[fold] = target.square().sum(1), target.shape[1]
        return cls(gram, moment, square, count)

    def coefficients(self, penalty: float | None = None) -> tuple[Tensor, float]:
        """Minimise the mean square misfit plus a penalty times |w|^2. The constant has no penalty.

        Parameters
        ----------
        penalty : float, optional
            By default chosen by cross-validation: coefficients of all groups but one must fit the group that is left
            out best, in the sum over groups. Increments contain the errors of the observations, so coefficients that
            fit these errors are made smaller.

        Returns
        -------
        coefficients : Tensor, shape (C, F)
        penalty : float
        """
        if penalty is None:
            penalty = min(_PENALTIES, key=self._left_out)
        return _solved(self.gram.sum(0), self.moment.sum(0), self.count.sum(), penalty), penalty

    def standard_errors(self, penalty: float) -> Tensor:
        """Standard errors of the coefficients, shape (C, F), by leaving out one group after another (jackknife)."""
        groups = self._groups
        values = torch.stack([self._without(group, penalty) for group in groups])
        spread = (values - values.mean(0)).square().sum(0)
        return (spread * (len(groups) - 1) / len(groups)).sqrt()

    @property
    def _groups(self) -> Sequence[int]:
        """Groups that have samples."""
        groups: list[int] = self.count.nonzero()[:, 0].tolist()
        return groups

    def _without(self, group: int, penalty: float) -> Tensor:
        """Coefficients of all groups but one."""
        gram, moment = self.gram.sum(0) - self.gram[group], self.moment.sum(0) - self.moment[group]
        return _solved(gram, moment, self.count.sum() - self.count[group], penalty)

    def _left_out(self, penalty: float) -> float:
        """Sum over groups of the squared misfit of a group, with coefficients of all other groups."""
        total = 0.0
        for group in self._groups:
            w = self._without(group, penalty)
            misfit = self.square[group].sum() - 2 * (w.T * self.moment[group]).sum() + (w @ self.gram[group] * w).sum()
            total += float(misfit)
        return total


def _solved(gram: Tensor, moment: Tensor, count: Tensor, penalty: float) -> Tensor:
    """Coefficients (C, F) of the normal equations, with a penalty for each sample."""
    weight = torch.full((len(gram),), penalty, dtype=gram.dtype)
    weight[0] = 0.0  # the constant has no penalty
    solution: Tensor = torch.linalg.lstsq(gram + (count * weight).diag(), moment, driver="gelsd").solution
    return solution.T
