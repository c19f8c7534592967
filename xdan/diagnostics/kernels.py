"""What is computed at the states of one block: a kernel, a few states at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.networks import AnalysisNetwork
from ..core.observing import ObservingSystem, split_observation
from ..core.random import Purpose, normal
from ..core.sensitivity import Points
from ..network import Network
from ..records.blocks import array_to_tensor, in_block, tensor_to_array
from ..records.record import Setup, refuse_fill_values
from ..records.schema import Array


@dataclass(frozen=True)
class Batch:
    """A few states, as a kernel sees them.

    Attributes
    ----------
    points : Points
    observing : ObservingSystem
        Of each state's time.
    observed : Tensor of bool, shape (B, P), optional
        Which observations are made; where the kernel asked for it.
    draw : callable
        draw(P', stream) gives standard normal numbers of shape (B, P', size), keyed by trajectory and time.
    background : Tensor, shape () or (N, N), optional
        Deviation of forecast errors, or a Cholesky factor of their covariance, that samples have beside R's.
    """

    points: Points
    observing: ObservingSystem
    observed: Tensor | None
    draw: Callable[[int, int, int], Tensor]
    background: Tensor | None

    def samples(self, count: int) -> Tensor:
        """Draw projected innovations H^T R^-1 (eps + H e), of covariance H^T R^-1 (R + H P_f H^T) R^-1 H, App. H.

        Returns
        -------
        Tensor, shape (B, count, N)
        """
        assert self.observed is not None
        x, observed = self.points.x, self.observed
        size = observed.shape[1]
        noise = self.draw(count, size, 0)
        # One row of R for every sample of a state.
        repeated = self.observing.repeat(count)
        x, observed = x.repeat_interleave(count, 0), observed.repeat_interleave(count, 0)
        innovation = repeated.errors_from(noise.flatten(0, 1).to(x))
        if self.background is not None:
            errors = self.draw(count, x.shape[1], 1).flatten(0, 1).to(x)
            errors = errors * self.background if self.background.ndim == 0 else errors @ self.background.T
            innovation = innovation + repeated.tangent(x, errors[:, None])[:, 0]
        zeta: Tensor = repeated.project_innovation(innovation, observed, x).unflatten(0, (-1, count))
        return zeta


Kernel = Callable[[AnalysisNetwork, Batch], Tensor]
"""What is computed: from a network and B states to a tensor of shape (B, ...)."""


@dataclass(frozen=True)
class Work:
    """What is to be done with every block.

    Attributes
    ----------
    kernel : callable
    at_once : int
        States in a batch.
    innovation : {"zero", "sampled", "run"}
    background : Tensor or None
        As in `Batch`.
    seed : int
    device : str
    dtype : numpy.dtype
        To compute in.
    reduced : tuple of bool
        Whether to sum over trajectories, and over times.
    tail : tuple of int
        Shape of what the kernel gives for a state.
    """

    kernel: Kernel
    at_once: int
    innovation: str
    background: Tensor | None
    seed: int
    device: str
    dtype: np.dtype[Any]
    reduced: tuple[bool, bool]
    tail: tuple[int, ...]


def work_on_block(
    arrays: Sequence[Any],
    rows: slice,
    positions: np.ndarray[Any, np.dtype[np.int64]],
    setup: Setup,
    network: Network,
    work: Work,
) -> Array:
    """Compute a kernel over the states of one block, a few at a time so that memory stays flat."""
    in_block()
    states, observation, memory = (None if a is None else array_to_tensor(a, work.dtype, work.device) for a in arrays)
    assert states is not None
    shape, wanted = states.shape[:2], states.dtype
    if not bool(torch.isfinite(states).all()):
        raise ValueError(
            "some states are not finite: the record has gaps or the run diverged; leave them out, for example with "
            "ds.isel(trajectory=...) or burn_in=; expected finite states"
        )
    if observation is not None and bool(torch.isinf(observation).any()):
        raise ValueError("some observations are infinite: expected numbers, or NaN where nothing is observed")
    for name, values in (("state", states), ("observation", observation)):
        if values is not None:
            refuse_fill_values(values.cpu().numpy(), name)
    module = network.method(wanted, work.device).network
    observing = setup.observing.to(wanted, work.device)
    background = None if work.background is None else work.background.to(states)
    labels = torch.from_numpy(setup.trajectory[rows].copy())
    times = torch.from_numpy(positions.copy())
    lead = tuple(1 if gone else size for gone, size in zip(work.reduced, shape, strict=True))
    summed = any(work.reduced)
    found = torch.zeros(*lead, *work.tail, dtype=torch.float64 if summed else wanted, device=states.device)
    with torch.no_grad():
        for r, k in _rectangles(shape, work.at_once):
            batch = _batch(states[r, k], observation, memory, (r, k), observing, labels[r], times[k], work, background)
            values = work.kernel(module, batch).unflatten(0, (r.stop - r.start, k.stop - k.start)).to(found.dtype)
            if not summed:
                found[r, k] = values
                continue
            for axis, gone in enumerate(work.reduced):
                values = values.sum(axis, keepdim=True) if gone else values
            here = tuple(slice(0, 1) if gone else part for gone, part in zip(work.reduced, (r, k), strict=True))
            found[here] += values
    return tensor_to_array(found)


def _rectangles(shape: Sequence[int], at_once: int) -> Iterator[tuple[slice, slice]]:
    """Cut rows and columns into rectangles of about so many states."""
    height = min(shape[0], at_once)
    width = max(1, at_once // height)
    for first in range(0, shape[0], height):
        for start in range(0, shape[1], width):
            yield slice(first, min(first + height, shape[0])), slice(start, min(start + width, shape[1]))


def _batch(
    states: Tensor,
    observation: Tensor | None,
    memory: Tensor | None,
    place: tuple[slice, slice],
    observing: ObservingSystem,
    labels: Tensor,
    times: Tensor,
    work: Work,
    background: Tensor | None,
) -> Batch:
    x = states.flatten(0, 1).flatten(1)
    observing = observing.at_times(times.repeat(len(labels)).to(x.device))

    def draw(count: int, size: int, stream: int) -> Tensor:
        numbers = normal(work.seed, Purpose.SENSITIVITY, labels, times, count * size, stream)
        drawn: Tensor = numbers.flatten(0, 1).unflatten(1, (count, size)).to(x.device)
        return drawn

    values = observed = None
    if observation is not None:
        values, observed = split_observation(observation[place].flatten(0, 1).flatten(1))
    channels = None if memory is None else memory[place].flatten(0, 1).flatten(2)
    points = replace(Points.at_rest(x), memory=channels)
    batch = Batch(points, observing, observed, draw, background)
    if work.innovation == "zero":
        return batch
    assert values is not None
    assert observed is not None
    zeta = (
        observing.project_innovation(values - observing.observe(x), observed, x)
        if work.innovation == "run"
        else batch.samples(1)[:, 0]
    )
    return replace(batch, points=replace(points, zeta=zeta))
