"""How large the errors of a network's analyses are, component by component, with the truth and without."""

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
    """The network, and how its analysis of each component answers to that component's observation."""

    outputs: ClassVar[tuple[Output, ...]] = (_SENSITIVITY,)  # type: ignore[misc]

    def first(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """Optimal interpolation, whose answer no one asks for."""
        return {**super().first(state, observation, observed, observing), "sensitivity": torch.zeros_like(state["x"])}

    def analyse(self, state: State, observation: Tensor, observed: Tensor, observing: ObservingSystem) -> State:
        """One analysis, and another of observations that are moved along random signs."""
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
    """RMSE of the analyses of each field over the root mean square of their spread, after burn-in.

    Parameters
    ----------
    network : AnalysisNetwork
        That `gives_spread`.
    record : Record
        With the truth.
    burn_in : int

    Returns
    -------
    list of float
        One for each field of the record's state.
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

    With the truth that of analysis minus truth. Without it, by Stein's unbiased estimate of risk, from observations of
    independent errors of variance R: (y - x_a)^2 - R + 2 R dx_a / dy, where y is there. The derivative is that along
    one direction of random signs: its mean is the derivative by the observation of the component. Single values of
    this estimate scatter by some 2^(1/2) R about an error variance that may be a small share of R. So it is averaged
    over the components of a field too.

    Parameters
    ----------
    network : AnalysisNetwork
        Of one forecast.
    record : Record
    burn_in : int

    Returns
    -------
    Tensor of float64, shape (N,)
        Without the truth one number for each field, NaN of a field that is never observed.

    Raises
    ------
    ValueError
        Without the truth, for observations by an operator or with correlated errors.
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
