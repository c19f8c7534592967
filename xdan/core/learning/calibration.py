"""How large the errors of a network's analyses are in each component, with the truth and without it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..methods import DataAssimilationNetwork, Method, Output, Record, State, method_of, run
from ..networks import AnalysisNetwork
from ..observing import ObservingSystem
from ..progress import counted, part_bar
from .rollout import PROBE, random_signs

_SENSITIVITY = Output("sensitivity", "derivative of the observed analysis by its observation", "state")


class _Probed(DataAssimilationNetwork):
    """A network, and how its analysis of each component depends on this component's observation."""

    outputs: ClassVar[tuple[Output, ...]] = (_SENSITIVITY,)  # type: ignore[misc]

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, without a sensitivity."""
        return {**super().first(state, observation, observed, observing), "sensitivity": torch.zeros_like(state["x"])}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis, and another one from observations that are changed along random signs."""
        after = super().analyse(state, observation, observed, observing)
        step = PROBE * observing.error_variance().sqrt() * random_signs(observation) * observed
        moved = super().analyse(state, observation + step, observed, observing)
        answer = torch.where(observed, (moved["x"] - after["x"]) / torch.where(observed, step, 1.0), 0.0)
        return {**after, "sensitivity": answer}


def _run(method: Method, record: Record) -> dict[str, Tensor]:
    """What a method gives over a record, with a bar where bars are shown."""
    with part_bar(len(record.steps), "calibrating") as bar:
        return run(method, record, tick=counted(bar))[0]


@torch.no_grad()
def spread_factors(network: AnalysisNetwork, record: Record, burn_in: int) -> list[float]:
    """RMSE of the analyses of each field, divided by the root mean square of their spread, after burn-in.

    Parameters
    ----------
    network : AnalysisNetwork
        A network that `gives_spread`.
    record : Record
        A record with a truth.
    burn_in : int

    Returns
    -------
    list of float
        One number for each field of the record's state.
    """
    assert record.truth is not None
    network.eval()
    outputs = _run(method_of(network), record)
    square = (outputs["analysis"] - record.truth)[:, burn_in:].double().square()
    variance = outputs["spread"][:, burn_in:].double().square()
    space = record.dynamics.space
    parts = [space.slices[field.name] for field in space]
    return [float((square[..., part].mean() / variance[..., part].mean()).sqrt()) for part in parts]


@torch.no_grad()
def error_variance(network: AnalysisNetwork, record: Record, burn_in: int) -> Tensor:
    """Mean square error of the analyses of each component, over trajectories and times after burn-in.

    With the truth, this is the mean square of analysis minus truth. Without it, Stein's unbiased estimate of risk is
    used, for observations with independent errors of variance R: (y - x_a)^2 - R + 2 R dx_a / dy, where y is observed.
    The derivative is taken along one direction of random signs; its mean is the derivative with respect to the
    component's observation. Single values of this estimate scatter by about 2^(1/2) R around an error variance that may
    be a small share of R. The estimate is therefore averaged over the components of a field too.

    Parameters
    ----------
    network : AnalysisNetwork
        A network with one forecast.
    record : Record
    burn_in : int

    Returns
    -------
    Tensor of float64, shape (N,)
        Without the truth, one number for each field. NaN for a field that is never observed.

    Raises
    ------
    ValueError
        Without the truth, if the observations have an operator or correlated errors.
    """
    network.eval()
    observing = record.observing
    if record.truth is not None:
        outputs = _run(DataAssimilationNetwork(network), record)
        return (outputs["analysis"] - record.truth)[:, burn_in:].double().square().mean((0, 1))
    if not observing.direct or observing.covariance is not None:
        raise ValueError(
            "without the truth the spread follows from direct observations of independent errors, and these have an "
            "operator or correlated errors: expected a record with a truth"
        )
    outputs = _run(_Probed(network), record)
    later = slice(burn_in, None)
    residual = (record.observation - outputs["analysis"])[:, later].double()
    variance = observing.during(later).error_variance().double().expand(residual.shape)
    square = residual.square() - variance + 2 * variance * outputs["sensitivity"][:, later].double()
    square = torch.where(residual.isnan(), torch.nan, square)
    space = record.dynamics.space
    means = [square[..., space.slices[field.name]].nanmean().expand(field.geometry.size) for field in space]
    return torch.cat(means)
