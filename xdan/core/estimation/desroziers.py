"""Statistics of innovations and residuals. They show R, and the forecast's errors in observation space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods import Method, Record, State, run
from ..observing import split_observation
from .structures import Structure, made_positive
from .uncertainty import errors_by_samples

_TIMES = 64  # number of times of a run that are in memory at once
_LEAST = 1e-3  # smallest eigenvalue of a full R, relative to the mean variance


@dataclass(frozen=True)
class Statistics:
    """Sums over the times of a group, for each trajectory.

    Attributes
    ----------
    observation : Tensor, shape (B, G, P, P), or (B, G, P)
        Sum of d_a d_f^T, with the residual d_a = y - H(x_a) and the innovation d_f = y - H(x_f), or its diagonal.
    forecast : Tensor, shape (B, G, P)
        Sum of the diagonal of (H(x_a) - H(x_f)) d_f^T.
    innovation : Tensor, shape (B, G, P)
        Sum of the squares of d_f.
    observed : Tensor, shape (B, G, P, P), or (B, G, P)
        Number of times that each pair of observations, or each observation, occurs.
    """

    observation: Tensor
    forecast: Tensor
    innovation: Tensor
    observed: Tensor


def desroziers(
    method: Method, record: Record, *, burn_in: int = 0, groups: int = 1, whole: bool = False
) -> tuple[Statistics, Tensor]:
    """Cycle a method over a record, and sum the products of its residuals and innovations.

    If the gain is optimal, E[d_a d_f^T] = R and E[(H(x_a) - H(x_f)) d_f^T] = H P_f H^T. The residual then shows the
    errors of the observations, and the increment in observation space shows those of the forecast.

    Parameters
    ----------
    method : Method
        A prepared method.
    record : Record
    burn_in : int
        Number of first times that the sums leave out.
    groups : int
        Number of groups of consecutive times. Each group has its sums.
    whole : bool
        Whether to sum matrices; otherwise only their diagonals.

    Returns
    -------
    Statistics
        NaN for trajectories that were lost.
    diverged : Tensor of bool, shape (B,)

    References
    ----------
    Desroziers, Berre, Chapnik and Poli (2005), doi:10.1256/qj.05.108, Eq. 1 to 3.
    """
    count, size = record.observation.shape[1:]
    sums = {
        name: record.observation.new_zeros(len(record.trajectory), groups, *tail).double()
        for name, tail in {
            "observation": (size, size) if whole else (size,),
            "observed": (size, size) if whole else (size,),
            "forecast": (size,),
            "innovation": (size,),
        }.items()
    }
    state: State | None = None
    diverged = torch.zeros(len(record.trajectory), dtype=torch.bool, device=record.observation.device)
    for start in range(0, count, _TIMES):
        part = record.during(slice(start, min(start + _TIMES, count)))
        outputs, state = run(method, part, state)
        diverged = outputs["diverged"][:, -1]
        observation, observed = split_observation(part.observation)
        seen = [part.observing.observe(outputs[name]) for name in ("forecast", "analysis")]
        innovation, residual = (torch.where(observed, observation - one, 0.0).double() for one in seen)
        for k in range(observation.shape[1]):
            if start + k < burn_in:
                continue
            group = (start + k - burn_in) * groups // (count - burn_in)
            d, left, mask = innovation[:, k], residual[:, k], observed[:, k].double()
            sums["observation"][:, group] += left[:, :, None] * d[:, None, :] if whole else left * d
            sums["observed"][:, group] += mask[:, :, None] * mask[:, None, :] if whole else mask
            sums["forecast"][:, group] += (d - left) * d
            sums["innovation"][:, group] += d.square()
    return Statistics(**sums), diverged


def observation_errors(sums: Mapping[str, Tensor], value: Tensor, structure: Structure) -> dict[str, Tensor]:
    """R for the next pass, from the statistics of all trajectories.

    Parameters
    ----------
    sums : mapping
        The entries of `Statistics`. Trajectories with values that are not finite are left out.
    value : Tensor, shape (P,) or (P, P)
        R of this pass. Components that are never observed keep their R.
    structure : Structure

    Returns
    -------
    dict of Tensor
        "observation", the next R; "forecast", variances (P,) of the forecast's errors in observation space;
        "innovation", the mean square innovation divided by its expected value; "lost", the number of trajectories that
        were left out; "raised", the smallest eigenvalue of a full R if it was not positive, otherwise 0.
    """
    alive = _alive(sums)
    whole = {name: each[alive].sum((0, 1)) for name, each in sums.items()}
    counts = whole["observed"].diagonal() if structure.whole else whole["observed"]
    forecast = structure_of_one_kind(structure).pooled(whole["forecast"] / counts, counts)
    innovation = whole["innovation"].sum() / counts.sum()
    raised = torch.zeros(())
    new = _ratio(whole, structure, value)
    if structure.whole:
        new = 0.5 * (new + new.mT)
        smallest = torch.linalg.eigvalsh(new)[0] if bool(new.isfinite().all()) else torch.zeros(())
        if float(smallest) <= 0.0:
            raised = smallest
            new = made_positive(new[None], _LEAST * float(new.diagonal().mean()))[0]
    variance = new.diagonal() if structure.whole else new
    expected = torch.where(counts > 0, counts * (variance + forecast), 0.0).sum() / counts.sum()
    lost = (~alive).sum()
    return {
        "observation": new,
        "forecast": forecast,
        "innovation": innovation / expected,
        "lost": lost,
        "raised": raised,
    }


def structure_of_one_kind(structure: Structure) -> Structure:
    """The structure of variances that corresponds to a structure of covariances."""
    return Structure("diagonal", structure.parts) if structure.whole else structure


def _alive(sums: Mapping[str, Tensor]) -> Tensor:
    """Flags of trajectories whose sums are all finite, (B,)."""
    return torch.stack([each.isfinite().flatten(1).all(1) for each in sums.values()]).all(0)


def _ratio(sums: Mapping[str, Tensor], structure: Structure, value: Tensor) -> Tensor:
    """Mean products, in the shape of R. Entries that never occur keep their value."""
    counts = sums["observed"]
    mean = torch.where(counts > 0, sums["observation"] / counts, value)
    if structure.whole:
        return structure.apart(mean)
    pooled = structure.pooled(mean, counts)
    return torch.where(pooled.isfinite(), pooled, value)


def standard_errors(sums: Mapping[str, Tensor], value: Tensor, structure: Structure, rate: float) -> Tensor:
    """Standard errors of R, in the shape of `value`, from the scatter between trajectories and groups of times.

    Parameters
    ----------
    sums, value, structure
        See `observation_errors`.
    rate : float
        Factor by which changes shrink from pass to pass.
    """
    if structure.fixed:
        return torch.full_like(value, torch.nan)
    alive = _alive(sums)
    samples = {name: each[alive].flatten(0, 1) for name, each in sums.items()}
    weights = samples["observed"]
    means = torch.stack(
        [_ratio({name: each[s] for name, each in samples.items()}, structure, value) for s in range(len(weights))]
    )
    if structure.kind == "scalar":
        onto = structure.onto_parts(value)
        weights = (weights @ onto)[:, structure.parts]
    return errors_by_samples(means, weights, rate)
