"""One step of a backward pass: it corrects a state by later observations (Rauch, Tung and Striebel)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..dynamics import Dynamics
from ..roots import eigh_or_nan
from .advancing import advance_along
from .declarations import Output
from .record import State

SMOOTHED = Output("smoothed", "estimate of the state from the observations of all times", "state", "state")
PRIOR_INFLATION = "prior_inflation"  # entry of a state: the analysis multiplied the forecast's anomalies by this factor
SMOOTHED_SPREAD = Output("smoothed_spread", "standard deviation of the smoothed state", "state", "state")


class BackwardPass(ABC):
    """How a method goes back over its run, from the analysis of one time to the analysis of the time before.

    The pass carries a state with the entries that `entries` names. The method's analysis state has these entries too.

    Notes
    -----
    Inflation counts as an error of the model, like Q and the second-order term of a forecast. The gain of a step back
    is P_a M^T P_f^+. Here P_a is the analysis covariance before inflation. P_f is the covariance that the filter used;
    it follows from the inflated P_a. The reason: take a component that the model multiplies by m in an interval, and
    an inflation that multiplies the standard deviation by f. The gain of this component is 1 / (f^2 m). The filter
    keeps a variance only where f m is above 1. There f times the gain is below 1, so the influence of later
    observations fades with time. With the inflated P_a the gain would be 1 / m. Where m is below 1 this gain is above
    1, and every step back would make errors larger.

    Parameters
    ----------
    inflation : float
        Factor by which the method inflated the standard deviation of its analysis state.

    Attributes
    ----------
    entries : tuple of str
        Entries of a method's state that a step back reads.
    """

    entries: tuple[str, ...] = ("x",)

    @property
    def carried(self) -> tuple[str, ...]:
        """Entries of the states that the pass carries."""
        return self.entries

    def __init__(self, inflation: float = 1.0) -> None:
        self.inflation = inflation

    def forecast(self, state: State) -> State:
        """Entries of a method's forecast state that a step back reads."""
        return {name: state[name] for name in self.entries}

    @abstractmethod
    def analysis(self, state: State) -> State:
        """Entries of a method's analysis state before inflation. At the last time this is the smoothed state."""

    @abstractmethod
    def numbers(self, members: int, size: int) -> int:
        """How many numbers the entries of one trajectory hold, for M members and N components."""

    @abstractmethod
    def step(self, analysis: State, forecast: State, smoothed: State, dynamics: Dynamics, steps: int) -> State:
        """Smoothed state of a time k, from the smoothed state of the next time.

        Parameters
        ----------
        analysis : dict of Tensor
            Entries of the analysis state of time k, before it was inflated.
        forecast, smoothed : dict of Tensor
            Entries of the forecast state, and the smoothed state, of time k + 1.
        dynamics : Dynamics
            At time k, if the model depends on time.
        steps : int
            Model steps from k to k + 1.

        Returns
        -------
        dict of Tensor
        """

    @abstractmethod
    def outputs(self, smoothed: State, members: bool) -> dict[str, Tensor]:
        """`smoothed` and `smoothed_spread`, (B, N); with `members` also the smoothed members or covariance."""


class GaussianBackward(BackwardPass):
    """Backward pass of a Kalman filter that carries a covariance matrix."""

    entries = ("x", "covariance")

    def analysis(self, state: State) -> State:
        """The mean and P_a."""
        return {"x": state["x"], "covariance": state["covariance"] / self.inflation**2}

    def numbers(self, members: int, size: int) -> int:
        """Size of a mean and a matrix."""
        return size * (1 + size)

    def step(self, analysis: State, forecast: State, smoothed: State, dynamics: Dynamics, steps: int) -> State:
        """Smoothed mean and covariance, by the gain P_a M^T P_f^+ with the tangent linear model M at the analysis."""
        p = analysis["covariance"]
        # The model propagates the rows p_j of P_a to M p_j. Together these rows are P_a M^T.
        _, cross = advance_along(dynamics, analysis["x"], p, steps)
        gain = smoother_gain(cross, forecast["covariance"])
        change = smoothed["x"] - forecast["x"]
        p = smoothed_covariance(p, gain, forecast["covariance"], smoothed["covariance"])
        return {"x": analysis["x"] + (gain @ change[..., None])[..., 0], "covariance": p}

    def outputs(self, smoothed: State, members: bool) -> dict[str, Tensor]:
        """The mean, the standard deviations and, with `members`, `smoothed_covariance`."""
        spread = smoothed["covariance"].diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
        values = {"smoothed": smoothed["x"], "smoothed_spread": spread}
        return {**values, "smoothed_covariance": smoothed["covariance"]} if members else values


class EnsembleBackward(BackwardPass):
    """Backward pass of an ensemble whose members keep their order from an analysis to the next forecast.

    No ensemble method inflates the first analysis of a trajectory. The pass treats it as inflated all the same.

    Parameters
    ----------
    inflation : float
        Factor by which the method inflated the standard deviation of its analysis state.
    prior : str
        Name of an entry of the analysis state, shape (B,), if the method has one. It holds the factor by which the
        analysis first inflated the anomalies of the forecast, as the finite-size prior does.
    """

    def __init__(self, inflation: float = 1.0, prior: str = PRIOR_INFLATION) -> None:
        super().__init__(inflation)
        self.prior = prior

    @property
    def carried(self) -> tuple[str, ...]:
        """The members, and the inflation factor of their forecast."""
        return *self.entries, PRIOR_INFLATION

    def analysis(self, state: State) -> State:
        """The members with their anomalies before inflation, and the inflation factor of their forecast."""
        x = state["x"]
        mean, prior = x.mean(1, keepdim=True), state.get(self.prior, x.new_ones(len(x)))
        return {"x": x if self.inflation == 1.0 else mean + (x - mean) / self.inflation, PRIOR_INFLATION: prior}

    def numbers(self, members: int, size: int) -> int:
        """Size of the members."""
        return members * size

    def step(self, analysis: State, forecast: State, smoothed: State, dynamics: Dynamics, steps: int) -> State:
        """Smoothed members, by the covariances of the ensemble. The forecast covariance includes its inflation."""
        x, prior = forecast["x"], smoothed[PRIOR_INFLATION][:, None, None]
        mean = x.mean(1, keepdim=True)
        inflated = torch.where(prior == 1.0, x, mean + prior * (x - mean))
        after = smoothed_members(analysis["x"], inflated, smoothed["x"], self.inflation * prior)
        return {"x": after, PRIOR_INFLATION: analysis[PRIOR_INFLATION]}

    def outputs(self, smoothed: State, members: bool) -> dict[str, Tensor]:
        """Mean and spread of the members; with `members` also the members."""
        x = smoothed["x"]
        spread = x.std(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0])
        values = {"smoothed": x.mean(1), "smoothed_spread": spread}
        return {**values, "smoothed_members": x} if members else values


def smoother_gain(cross: Tensor, forecast_covariance: Tensor) -> Tensor:
    """The gain of the smoother, G = C P_f^+, shape (B, N, N).

    Directions that decay leave P_f without variance in working precision. In these directions the inverse would amplify
    rounding errors. The error is small there already, so the pseudo-inverse leaves the analysis as it is.

    Parameters
    ----------
    cross : Tensor, shape (B, N, N)
        C = P_a M^T, the covariance between the analysis and the forecast from it.
    forecast_covariance : Tensor, shape (B, N, N)
        P_f.

    References
    ----------
    Rauch, Tung and Striebel (1965), doi:10.2514/3.3166.
    """
    values, vectors = eigh_or_nan(forecast_covariance)
    least = values[:, -1:] * values.shape[1] * torch.finfo(values.dtype).eps
    inverse = torch.where(values > least, 1 / torch.where(values > least, values, 1.0), 0.0)
    inverse = torch.where(values.isnan(), torch.nan, inverse)
    gain: Tensor = ((cross @ vectors) * inverse[:, None]) @ vectors.mT
    return gain


def smoothed_covariance(analysis: Tensor, gain: Tensor, forecast: Tensor, smoothed: Tensor) -> Tensor:
    """P_s,k = P_a,k + G (P_s,k+1 - P_f,k+1) G^T, all of shape (B, N, N)."""
    p = analysis + gain @ (smoothed - forecast) @ gain.mT
    return 0.5 * (p + p.mT)


def smoothed_members(analysis: Tensor, forecast: Tensor, smoothed: Tensor, inflation: Tensor | None = None) -> Tensor:
    """Members (B, M, N) of one time, corrected by the observations of later times.

    This is the smoother of Rauch, Tung and Striebel with the covariances of the ensemble. The anomalies are rows:
    A_a of the analysis, and A_f of the forecast from this analysis. Without inflation,

        X_s,k = X_a,k + (X_s,k+1 - X_f,k+1) A_f,k+1^+ A_a,k.

    Let an inflation f act between the two. In the linear case A_f = f A_a M^T, and the gain P_a M^T P_f^+ is
    A_a^T A_f^{+T} / f. The smoothed anomalies are a symmetric root of the smoothed covariance. With
    V = A_s,k+1 A_f^+,

        A_s,k = (I + (V^T V - A_f A_f^+) / f^2)^{1/2} A_a,k.

    Parameters
    ----------
    analysis : Tensor, shape (B, M, N)
        X_a,k, before inflation.
    forecast, smoothed : Tensor, shape (B, M, N)
        X_f,k+1 and X_s,k+1. The forecast members include their draws of model error.
    inflation : Tensor, shape (B, 1, 1), optional
        The factor f; by default 1.

    References
    ----------
    Raanes (2016), doi:10.1002/qj.2728, Sect. 3; Cosme et al. (2012), doi:10.1175/MWR-D-11-00088.1.
    """
    mean, after, end = (x.mean(1, keepdim=True) for x in (analysis, forecast, smoothed))
    anomalies = forecast - after
    inverse = torch.linalg.pinv(anomalies)
    moved: Tensor = analysis + (smoothed - forecast) @ inverse @ (analysis - mean)
    if inflation is None or bool((inflation == 1.0).all()):
        return moved
    v = (smoothed - end) @ inverse
    values, vectors = eigh_or_nan((v.mT @ v - anomalies @ inverse) / inflation**2 + torch.eye(v.shape[1]).to(v))
    root = (vectors * values.sqrt()[:, None]) @ vectors.mT
    rooted = mean + ((end - after) @ inverse / inflation + root) @ (analysis - mean)
    return torch.where(inflation == 1.0, moved, rooted)
